//! Who this node is, on its disk: `node.json`, replaced atomically and synced.
//!
//! The uuid is drawn once per folder; the metaservice gives it a node id. An
//! empty folder therefore is a new node: ids never come back without their data
//! (PROTOCOLS C3).

use crate::{Error, Result};
use lineradb_common::{NodeId, random};
use lineradb_proto::meta::v1::RegisterNodeReply;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const FORMAT_VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format_version: u32,
    #[serde(with = "text")]
    uuid: uuid::Uuid,
    node_id: u64,
    incarnation: u64,
    cluster_id: Vec<u8>,
}

/// A uuid as people read it.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(uuid: &Uuid, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(uuid)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(from)?;
        Uuid::parse_str(&text).map_err(D::Error::custom)
    }
}

/// The identity of a data folder.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    stored: Stored,
}

impl Identity {
    /// Reads the identity of a folder, or draws one.
    ///
    /// # Errors
    /// When the file is damaged or cannot be written.
    pub(super) fn open(data: &Path) -> Result<Self> {
        let path = data.join("node.json");
        let stored = match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes)
                    .map_err(|e| Error::Corrupt(format!("{}: {e}", path.display())))?;
                if stored.format_version != FORMAT_VERSION {
                    return Err(Error::Refused(format!(
                        "{} has format {}, this program reads {FORMAT_VERSION}",
                        path.display(),
                        stored.format_version
                    )));
                }
                stored
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Stored {
                format_version: FORMAT_VERSION,
                uuid: random::uuid(),
                node_id: 0,
                incarnation: 0,
                cluster_id: Vec::new(),
            },
            Err(error) => return Err(Error::io(path.display().to_string(), error)),
        };
        let identity = Identity { path, stored };
        identity.save()?;
        Ok(identity)
    }

    /// Remembers what the metaservice said.
    ///
    /// # Errors
    /// When the folder belongs to another cluster, or cannot be written.
    pub(super) fn registered(&mut self, reply: &RegisterNodeReply) -> Result<()> {
        let known = &self.stored.cluster_id;
        if !known.is_empty() && known[..] != reply.cluster_id[..] {
            return Err(Error::Refused(format!(
                "{} belongs to another cluster than the metaservice: use its own folder or an empty one",
                self.path.display()
            )));
        }
        self.stored.node_id = reply.node_id;
        self.stored.incarnation = reply.incarnation;
        self.stored.cluster_id = reply.cluster_id.to_vec();
        self.save()
    }

    pub(super) fn uuid(&self) -> Vec<u8> {
        self.stored.uuid.as_bytes().to_vec()
    }

    pub(super) fn is_registered(&self) -> bool {
        self.stored.node_id != 0
    }

    pub(super) fn node_id(&self) -> NodeId {
        NodeId(self.stored.node_id)
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.stored.incarnation
    }

    fn save(&self) -> Result<()> {
        let fail = |e| Error::io(self.path.display().to_string(), e);
        let text = serde_json::to_vec_pretty(&self.stored)
            .map_err(|e| Error::Corrupt(format!("node identity: {e}")))?;
        let temporary = self.path.with_extension("json.new");
        let mut file = File::create(&temporary).map_err(fail)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(fail)?;
        std::fs::rename(&temporary, &self.path).map_err(fail)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)
                .and_then(|f| f.sync_all())
                .map_err(fail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_identity_and_its_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::open(dir.path()).unwrap();
        assert!(!first.is_registered());
        let reply = RegisterNodeReply {
            node_id: 7,
            incarnation: 1,
            cluster_id: vec![1].into(),
        };
        first.registered(&reply).unwrap();
        let mut again = Identity::open(dir.path()).unwrap();
        assert_eq!((again.uuid(), again.node_id()), (first.uuid(), NodeId(7)));
        let other = RegisterNodeReply {
            cluster_id: vec![2].into(),
            ..reply
        };
        assert!(again.registered(&other).is_err());
    }
}
