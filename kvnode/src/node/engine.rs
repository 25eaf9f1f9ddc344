//! Opening the storage engine, also when it is damaged.
//!
//! The engine has no log of its own (D1), so its tables cannot be repaired
//! here; the other replicas have the data. A damaged engine is put aside,
//! whole, and the node starts with an empty one and reports its replicas as
//! failed: each is replaced under a new id (C3) and filled by a snapshot. That
//! is done only when every one of them has others to be rebuilt from;
//! otherwise the node does not start, and the error names the damaged file.

use super::KvNodeOptions;
use super::identity::Identity;
use crate::consensus::storage_options;
use crate::{Error, Result};
use lineradb_client::meta::MetaClient;
use lineradb_common::clock::deadline_after;
use lineradb_common::spawn;
use lineradb_lsm::{Db, Options, RealVfs};
use lineradb_proto::meta::v1::ClusterMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Replicas that a shard needs so that one of them may be thrown away.
const REPLICAS_MIN: usize = 3;

/// An open engine, and why the one before it was put aside, if it was.
pub(super) struct Engine {
    pub(super) db: Db,
    pub(super) lost: Option<String>,
}

/// Opens the engine of a node.
///
/// # Errors
/// When the folder is in use (the message names the process), or the engine is
/// damaged and cannot be rebuilt from others.
pub(super) async fn open(options: &KvNodeOptions, meta: &MetaClient) -> Result<Engine> {
    let dir = options.data.join("engine");
    let damage = match open_at(&dir, options.block_cache_bytes).await {
        Ok(db) => return Ok(Engine { db, lost: None }),
        Err(Error::Storage(error)) if error.is_corruption() => error,
        Err(error) => return Err(error),
    };
    tracing::error!(%damage, "the storage engine is damaged");
    let unavailable = |why: String| Error::Corrupt(format!("{damage}; {why}"));
    let identity = Identity::open(&options.data)?;
    let map = { meta.get_map(deadline_after(Duration::from_secs(10))) }
        .await
        .map_err(|e| unavailable(format!("whether others have the data is not known: {e}")))?;
    if let Some(shard) = only_here(&map, identity.node_id().0) {
        return Err(unavailable(format!(
            "shard {shard} has too few replicas elsewhere to be rebuilt: restore a backup, or \
             remove {} to give up its data",
            dir.display()
        )));
    }
    put_aside(&dir)?;
    let db = open_at(&dir, options.block_cache_bytes).await?;
    let lost = Some(format!("lost with a damaged storage engine: {damage}"));
    Ok(Engine { db, lost })
}

async fn open_at(dir: &Path, block_cache_bytes: u64) -> Result<Db> {
    let dir = dir.to_owned();
    let open = move || {
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(dir.display().to_string(), e))?;
        let engine = Options {
            block_cache_bytes,
            ..storage_options()
        };
        Ok(Db::open(Arc::new(RealVfs), &dir, engine)?)
    };
    spawn::blocking(open)
        .await
        .map_err(|e| Error::Unavailable(e.to_string()))?
}

/// A shard of which this node holds a replica and too few others do.
fn only_here(map: &ClusterMap, node_id: u64) -> Option<u64> {
    map.shards
        .iter()
        .filter(|s| s.replicas.iter().any(|r| r.node_id == node_id))
        .find(|s| s.replicas.len() < REPLICAS_MIN)
        .map(|s| s.shard_id)
}

fn put_aside(dir: &Path) -> Result<()> {
    let free = (1..)
        .map(|n: u32| dir.with_extension(format!("damaged-{n}")))
        .find(|path| !path.exists());
    let Some(aside) = free else {
        return Err(Error::Refused("too many damaged engines".into()));
    };
    tracing::error!(aside = %aside.display(), "putting the damaged storage engine aside");
    std::fs::rename(dir, &aside).map_err(|e| Error::io(dir.display().to_string(), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_proto::shard::v1::{Replica, ShardDescriptor};

    #[test]
    fn an_engine_is_given_up_only_when_others_have_it_all() {
        let shard = |shard_id, nodes: &[u64]| ShardDescriptor {
            shard_id,
            replicas: { nodes.iter() }
                .map(|node| Replica {
                    node_id: *node,
                    ..Replica::default()
                })
                .collect(),
            ..ShardDescriptor::default()
        };
        let map = ClusterMap {
            shards: vec![shard(1, &[1, 2, 3]), shard(2, &[4])],
            ..ClusterMap::default()
        };
        assert_eq!(only_here(&map, 1), None);
        assert_eq!(only_here(&map, 4), Some(2));
    }

    #[test]
    fn damaged_engines_are_kept() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("engine");
        for n in 1..3 {
            std::fs::create_dir(&dir).unwrap();
            put_aside(&dir).unwrap();
            assert!(data.path().join(format!("engine.damaged-{n}")).exists());
        }
    }
}
