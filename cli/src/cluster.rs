//! `lineradb cluster`: what the metaservice knows, and orders to it.

use crate::kv::{parse, show, table};
use clap::{Args, Subcommand};
use lineradb_client::MetaClient;
use lineradb_common::clock::deadline_after;
use lineradb_common::keys;
use lineradb_proto::meta::v1::{ClusterMap, Node, SplitShardRequest, StatusReply};
use lineradb_proto::shard::v1::ShardDescriptor;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Shows and changes the cluster.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Members of the metaservice.
    #[arg(
        long,
        global = true,
        env = "LINERADB_META",
        value_delimiter = ',',
        default_value = "127.0.0.1:9190"
    )]
    pub meta: Vec<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Give up after so many milliseconds.
    #[arg(long, global = true, default_value_t = 10_000)]
    pub timeout_ms: u64,
    /// What to do.
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What `lineradb cluster` does.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// The cluster at a glance.
    Status,
    /// The nodes that hold data.
    Nodes,
    /// The shards and where they live.
    Shards,
    /// Split a live shard, in its middle or at a key.
    Split {
        /// The shard to split in its middle.
        #[arg(long, conflicts_with = "key", required_unless_present = "key")]
        shard: Option<u64>,
        /// The key of the whole key space at which to split (`k` and a key of
        /// the KV API; `\x` and hexadecimal digits for others).
        #[arg(long)]
        key: Option<String>,
    },
}

/// Runs the command. `status` exits with 1 when a node or a leader is missing.
///
/// # Errors
/// When the metaservice does not answer, or refuses.
pub async fn run(args: ClusterArgs) -> anyhow::Result<ExitCode> {
    let meta = MetaClient::new(args.meta.clone())?;
    let deadline = deadline_after(Duration::from_millis(args.timeout_ms));
    match &args.command {
        ClusterCommand::Status => {
            let status = meta.status(deadline).await?;
            let map = meta.get_map(deadline).await?;
            let summary = Summary::of(&status, &map);
            if args.json {
                println!("{}", summary.json());
            } else {
                println!("{}", summary.text());
            }
            Ok(ExitCode::from(u8::from(!summary.healthy())))
        }
        ClusterCommand::Nodes => {
            let map = meta.get_map(deadline).await?;
            if args.json {
                let nodes: Vec<Value> = map.nodes.iter().map(|n| node_json(n, &map)).collect();
                println!("{}", Value::Array(nodes));
            } else {
                let mut table = table([
                    "node", "address", "http", "live", "replicas", "leaders", "locality",
                ]);
                for node in &map.nodes {
                    let (replicas, leaders) = load(node.node_id, &map);
                    table.add_row([
                        node.node_id.to_string(),
                        node.address.clone(),
                        node.http_address.clone(),
                        yes_no(node.live),
                        replicas.to_string(),
                        leaders.to_string(),
                        locality(node),
                    ]);
                }
                println!("{table}");
            }
            Ok(ExitCode::SUCCESS)
        }
        ClusterCommand::Shards => {
            let map = meta.get_map(deadline).await?;
            print_shards(&map.shards, args.json);
            Ok(ExitCode::SUCCESS)
        }
        ClusterCommand::Split { shard, key } => {
            let request = SplitShardRequest {
                shard_id: shard.unwrap_or(0),
                split_key: key
                    .as_deref()
                    .map(parse)
                    .transpose()?
                    .unwrap_or_default()
                    .into(),
            };
            let reply = meta.split_shard(request, deadline).await?;
            let both: Vec<_> = reply.left.into_iter().chain(reply.right).collect();
            print_shards(&both, args.json);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The cluster at a glance.
struct Summary {
    cluster_id: String,
    meta_leader: u64,
    meta_members: usize,
    revision: u64,
    replication_factor: u32,
    nodes: usize,
    live: usize,
    shards: usize,
    leaderless: usize,
    short_of_replicas: usize,
}

impl Summary {
    fn of(status: &StatusReply, map: &ClusterMap) -> Self {
        let wanted = status.replication_factor as usize;
        let digits = status.cluster_id.iter().map(|b| format!("{b:02x}"));
        Summary {
            cluster_id: digits.collect(),
            meta_leader: status.leader_id,
            meta_members: status.members.len(),
            revision: map.revision,
            replication_factor: status.replication_factor,
            nodes: map.nodes.len(),
            live: map.nodes.iter().filter(|n| n.live).count(),
            shards: map.shards.len(),
            leaderless: map.shards.iter().filter(|s| s.leader_node_id == 0).count(),
            short_of_replicas: map
                .shards
                .iter()
                .filter(|s| s.replicas.len() < wanted)
                .count(),
        }
    }

    fn healthy(&self) -> bool {
        self.meta_leader != 0
            && self.shards > 0
            && self.live == self.nodes
            && self.leaderless == 0
            && self.short_of_replicas == 0
    }

    fn json(&self) -> Value {
        json!({
            "healthy": self.healthy(),
            "cluster_id": self.cluster_id,
            "metaservice": {"leader": self.meta_leader, "members": self.meta_members},
            "revision": self.revision,
            "replication_factor": self.replication_factor,
            "nodes": self.nodes,
            "live_nodes": self.live,
            "shards": self.shards,
            "shards_without_leader": self.leaderless,
            "shards_short_of_replicas": self.short_of_replicas,
        })
    }

    fn text(&self) -> String {
        let state = if self.healthy() {
            "healthy"
        } else {
            "NOT healthy"
        };
        format!(
            "cluster       {} ({state})\n\
             metaservice   member {} leads, {} in all, map revision {}\n\
             nodes         {} of {} live\n\
             shards        {} ({} copies each); {} without a leader, {} short of replicas",
            self.cluster_id,
            self.meta_leader,
            self.meta_members,
            self.revision,
            self.live,
            self.nodes,
            self.shards,
            self.replication_factor,
            self.leaderless,
            self.short_of_replicas,
        )
    }
}

fn print_shards(shards: &[ShardDescriptor], as_json: bool) {
    if as_json {
        let shards: Vec<Value> = shards.iter().map(shard_json).collect();
        println!("{}", Value::Array(shards));
        return;
    }
    let mut table = table(["shard", "from", "to", "version", "leader", "replicas on"]);
    for shard in shards {
        let (start, end) = bounds(shard);
        table.add_row([
            shard.shard_id.to_string(),
            start,
            end,
            format!("{}.{}", shard.version, shard.configuration_version),
            match shard.leader_node_id {
                0 => "-".to_owned(),
                node => node.to_string(),
            },
            nodes_of(shard),
        ]);
    }
    println!("{table}");
}

fn shard_json(shard: &ShardDescriptor) -> Value {
    let (start, end) = bounds(shard);
    let replicas = shard
        .replicas
        .iter()
        .map(|r| json!({"replica": r.replica_id, "node": r.node_id, "address": r.address}));
    json!({
        "shard": shard.shard_id,
        "start": start,
        "end": end,
        "version": shard.version,
        "configuration_version": shard.configuration_version,
        "leader": (shard.leader_node_id != 0).then_some(shard.leader_node_id),
        "replicas": replicas.collect::<Vec<Value>>(),
    })
}

fn node_json(node: &Node, map: &ClusterMap) -> Value {
    let (replicas, leaders) = load(node.node_id, map);
    json!({
        "node": node.node_id,
        "address": node.address,
        "http": node.http_address,
        "live": node.live,
        "last_heartbeat_ms_ago": node.last_heartbeat_ms_ago,
        "incarnation": node.incarnation,
        "replicas": replicas,
        "leaders": leaders,
        "locality": node.locality,
    })
}

/// Replicas and leaderships of a node.
fn load(node: u64, map: &ClusterMap) -> (usize, usize) {
    let replicas = map.shards.iter().flat_map(|s| &s.replicas);
    let leaders = map.shards.iter().filter(|s| s.leader_node_id == node);
    (
        replicas.filter(|r| r.node_id == node).count(),
        leaders.count(),
    )
}

fn locality(node: &Node) -> String {
    let mut pairs: Vec<String> = node
        .locality
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    pairs.sort();
    pairs.join(",")
}

fn nodes_of(shard: &ShardDescriptor) -> String {
    let nodes: Vec<String> = shard
        .replicas
        .iter()
        .map(|r| r.node_id.to_string())
        .collect();
    nodes.join(",")
}

fn bounds(shard: &ShardDescriptor) -> (String, String) {
    let span = shard.span.clone().unwrap_or_default();
    (key_text(&span.start, "start"), key_text(&span.end, "end"))
}

/// A key of the whole key space, for people: the space it lies in, and the
/// rest.
fn key_text(key: &[u8], empty: &str) -> String {
    let Some((space, rest)) = key.split_first() else {
        return format!("({empty})");
    };
    let space = match *space {
        keys::CATALOG => "catalog",
        keys::IDEMPOTENCY => "idempotency",
        keys::KV => "kv",
        keys::TABLE => "table",
        _ => return show(key),
    };
    if let (keys::TABLE, Some((id, rest))) = (key[0], rest.split_first_chunk::<8>()) {
        let id = u64::from_be_bytes(*id);
        return match rest {
            [] => format!("table {id}"),
            _ => format!("table {id} {}", show(rest)),
        };
    }
    match rest {
        [] => space.to_owned(),
        _ => format!("{space} {}", show(rest)),
    }
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "NO" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_common::TableId;

    #[test]
    fn keys_read_as_what_they_are() {
        assert_eq!(key_text(b"", "start"), "(start)");
        assert_eq!(key_text(b"k", "end"), "kv");
        assert_eq!(key_text(b"kabc", "end"), "kv abc");
        assert_eq!(key_text(&keys::table_prefix(TableId(7)), "end"), "table 7");
        assert_eq!(key_text(&[0xff], "end"), "\\xff");
    }

    #[test]
    fn a_missing_leader_or_node_is_not_healthy() {
        let status = StatusReply {
            leader_id: 1,
            replication_factor: 1,
            ..StatusReply::default()
        };
        let shard = ShardDescriptor {
            shard_id: 1,
            leader_node_id: 1,
            replicas: vec![Default::default()],
            ..ShardDescriptor::default()
        };
        let node = Node {
            node_id: 1,
            live: true,
            ..Node::default()
        };
        let mut map = ClusterMap {
            shards: vec![shard],
            nodes: vec![node],
            ..ClusterMap::default()
        };
        assert!(Summary::of(&status, &map).healthy());
        map.shards[0].leader_node_id = 0;
        assert!(!Summary::of(&status, &map).healthy());
        map.shards[0].leader_node_id = 1;
        map.nodes[0].live = false;
        let summary = Summary::of(&status, &map);
        assert!(!summary.healthy() && summary.text().contains("NOT healthy"));
    }
}
