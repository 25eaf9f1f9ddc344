//! Opening the storage engine, also when it or the raft log is damaged.
//!
//! The engine has no log of its own (D1), so its tables cannot be repaired
//! here, and neither can a log below what was synced (D3); the other replicas
//! have the data. A damaged store is put aside, whole, and the node starts with
//! an empty one and reports its replicas as failed: each is replaced under a
//! new id (C3) and filled by a snapshot. That is done only when every one of
//! them has enough others on nodes that are alive; otherwise the node does not
//! start, and the error names the damaged file.

use super::KvNodeOptions;
use super::identity::Identity;
use crate::consensus::storage_options;
use crate::{Error, Result};
use lineradb_client::meta::MetaClient;
use lineradb_common::clock::deadline_after;
use lineradb_common::spawn;
use lineradb_lsm::{Db, Options};
use lineradb_proto::meta::v1::ClusterMap;
use lineradb_proto::shard::v1::ShardDescriptor;
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

/// Replicas on other live nodes that a shard needs so that the one here may be
/// thrown away. Two nodes that find damage at once wait for each other.
const OTHERS_MIN: usize = 2;
/// How long the other nodes may take to come: all may be starting.
const OTHERS_WAIT: Duration = Duration::from_secs(60);

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
    let damage = match open_at(options).await {
        Ok(db) => return Ok(Engine { db, lost: None }),
        Err(Error::Storage(error)) if error.is_corruption() => error,
        Err(error) => return Err(error),
    };
    start_over(options, meta, &damage.to_string(), &["engine"]).await
}

/// Puts damaged parts of a node's data aside and opens an empty engine.
///
/// # Errors
/// When the other nodes cannot rebuild what is here.
pub(super) async fn start_over(
    options: &KvNodeOptions,
    meta: &MetaClient,
    damage: &str,
    parts: &[&str],
) -> Result<Engine> {
    tracing::error!(damage, "the data of this node are damaged");
    let unavailable = |why: String| Error::Corrupt(format!("{damage}; {why}"));
    let identity = Identity::open(&options.data)?;
    let deadline = deadline_after(OTHERS_WAIT);
    loop {
        let map = meta.get_map(deadline).await;
        let map = map
            .map_err(|e| unavailable(format!("whether others have the data is not known: {e}")))?;
        let Some(shard) = only_here(&map, identity.node_id().0) else {
            break;
        };
        // Others that do not exist are not waited for.
        let hopeless = shard.replicas.len() <= OTHERS_MIN;
        let shard = shard.shard_id;
        let pause = tokio::time::sleep(Duration::from_millis(200));
        if hopeless || tokio::time::timeout_at(deadline, pause).await.is_err() {
            return Err(unavailable(format!(
                "shard {shard} has too few live replicas elsewhere to be rebuilt: start the other \
                 nodes, restore a backup, or remove {} to give up its data",
                options.data.display()
            )));
        }
    }
    for part in parts {
        put_aside(&options.data.join(part))?;
    }
    let db = open_at(options).await?;
    let lost = Some(format!("lost with damaged data: {damage}"));
    Ok(Engine { db, lost })
}

async fn open_at(options: &KvNodeOptions) -> Result<Db> {
    let (dir, vfs) = (options.data.join("engine"), options.vfs.clone());
    let block_cache_bytes = options.block_cache_bytes;
    let open = move || {
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(dir.display().to_string(), e))?;
        let engine = Options {
            block_cache_bytes,
            ..storage_options()
        };
        Ok(Db::open(vfs, &dir, engine)?)
    };
    spawn::blocking(open)
        .await
        .map_err(|e| Error::Unavailable(e.to_string()))?
}

/// A shard of which this node holds a replica and too few others that live do.
fn only_here(map: &ClusterMap, node_id: u64) -> Option<&ShardDescriptor> {
    let live: HashSet<u64> = { map.nodes.iter() }
        .filter(|node| node.live && node.node_id != node_id)
        .map(|node| node.node_id)
        .collect();
    let others = |s: &&ShardDescriptor| {
        { s.replicas.iter() }
            .filter(|r| live.contains(&r.node_id))
            .count()
    };
    map.shards
        .iter()
        .filter(|s| s.replicas.iter().any(|r| r.node_id == node_id))
        .find(|s| others(s) < OTHERS_MIN)
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
    use lineradb_proto::meta::v1::Node;
    use lineradb_proto::shard::v1::Replica;

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
        let map = |dead: u64| ClusterMap {
            shards: vec![shard(1, &[1, 2, 3]), shard(2, &[4])],
            nodes: { 1..=4 }
                .map(|node_id| Node {
                    node_id,
                    live: node_id != dead,
                    ..Node::default()
                })
                .collect(),
            ..ClusterMap::default()
        };
        let found = |dead, node| only_here(&map(dead), node).map(|s| s.shard_id);
        assert_eq!(found(1, 1), None);
        assert_eq!(found(2, 1), Some(1));
        assert_eq!(found(1, 4), Some(2));
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
