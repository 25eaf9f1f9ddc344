//! Where the other nodes listen: learnt from the map that the metaservice
//! publishes, kept in `addresses.json` so that a restart needs nobody.

use crate::consensus::AddressBook;
use lineradb_client::meta::MetaClient;
use lineradb_common::NodeId;
use lineradb_proto::meta::v1::ClusterMap;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The address book of a node.
#[derive(Debug)]
pub(super) struct Addresses {
    path: PathBuf,
    known: RwLock<BTreeMap<u64, String>>,
    /// The map as it was last published; empty before the first.
    map: RwLock<Arc<ClusterMap>>,
}

impl Addresses {
    /// What the folder remembers. A damaged or missing file is an empty book:
    /// the map fills it.
    pub(super) fn open(data: &Path) -> Self {
        let path = data.join("addresses.json");
        let known = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Addresses {
            path,
            known: RwLock::new(known),
            map: RwLock::default(),
        }
    }

    /// The map as it was last published.
    pub(super) fn map(&self) -> Arc<ClusterMap> {
        self.map.read().clone()
    }

    fn learn(&self, map: ClusterMap) {
        let addresses = map.nodes.iter().map(|n| (n.node_id, n.address.clone()));
        let new: BTreeMap<u64, String> = addresses.collect();
        *self.map.write() = Arc::new(map);
        if *self.known.read() == new {
            return;
        }
        let saved = serde_json::to_vec(&new)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&self.path, text));
        if let Err(error) = saved {
            tracing::warn!(%error, path = %self.path.display(), "the address book was not saved");
        }
        *self.known.write() = new;
    }
}

impl AddressBook for Addresses {
    fn address(&self, node: NodeId) -> Option<String> {
        self.known.read().get(&node.0).cloned()
    }
}

/// Keeps the book up to date for ever.
pub(super) async fn follow(meta: MetaClient, book: Arc<Addresses>) {
    meta.watch(|map| {
        book.learn(map);
        true
    })
    .await;
}
