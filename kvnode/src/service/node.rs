//! [`ShardNode`]: all shards of a node as the data path sees them. Finds the
//! engine of a request's shard, and attaches an engine to every replica that
//! comes.

use crate::Result;
use crate::consensus::{Group, GroupObserver, Groups, Leadership, SplitApplied};
use crate::mvcc::LsmStore;
use crate::rules::Rules;
use crate::txn::{Engine, Inheritance, Protected, Refusal, WaitGraph};
use lineradb_client::meta::MetaClient;
use lineradb_client::{ShardService, TransportError};
use lineradb_common::clock::{SharedClock, Stopwatch, deadline_after};
use lineradb_common::keys::spans_overlap;
use lineradb_common::{ReplicaId, ShardId, Timestamp};
use lineradb_proto::meta::v1::ProtectionsReply;
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

type GroupEngine = Engine<Group, LsmStore>;

/// How often it is looked whether history is to be collected.
const COLLECT_INTERVAL: Duration = Duration::from_secs(30);
/// How long the metaservice has to say what is protected.
const PROTECTIONS_TIMEOUT: Duration = Duration::from_secs(5);

fn protected(reply: &ProtectionsReply) -> Protected {
    let timestamps = reply.protections.iter().map(|it| it.timestamp);
    Protected {
        as_of: Timestamp::from_raw(reply.as_of),
        oldest: timestamps.min().map(Timestamp::from_raw),
    }
}

/// What [`ShardNode::new`] needs.
pub struct ShardNodeOptions {
    /// The groups of this node.
    pub groups: Groups,
    /// The storage engine under them.
    pub db: lineradb_lsm::Db,
    /// The cluster's time.
    pub clock: SharedClock,
}

struct Attached {
    replica: ReplicaId,
    engine: Arc<GroupEngine>,
}

/// Serves the shards of a node: in process through [`ShardService`], over gRPC
/// through [`ShardGrpc`](super::ShardGrpc).
pub struct ShardNode {
    groups: Groups,
    store: LsmStore,
    clock: SharedClock,
    pub(super) graph: Arc<WaitGraph>,
    engines: RwLock<HashMap<ShardId, Attached>>,
    /// C5: what right halves inherit that have no engine yet.
    inherited: Arc<Mutex<HashMap<ShardId, Inheritance>>>,
}

impl ShardNode {
    /// Serves the groups of a node.
    ///
    /// # Errors
    /// When the storage engine lacks a keyspace.
    pub fn new(options: ShardNodeOptions) -> Result<Arc<Self>> {
        let node = Arc::new(ShardNode {
            groups: options.groups,
            store: LsmStore::new(options.db)?,
            clock: options.clock,
            graph: Arc::default(),
            engines: RwLock::default(),
            inherited: Arc::default(),
        });
        for group in node.groups.list() {
            node.engine(&group);
        }
        Ok(node)
    }

    /// Collects history that is too old to be read, for as long as it is polled
    /// (X5).
    pub async fn collect(self: Arc<Self>, meta: MetaClient, history: Duration) {
        loop {
            let protected = match meta.protections(deadline_after(PROTECTIONS_TIMEOUT)).await {
                Ok(reply) => Some(protected(&reply)),
                Err(error) => {
                    tracing::debug!(%error, "not known which history is protected");
                    None
                }
            };
            self.collect_once(history, protected).await;
            tokio::time::sleep(COLLECT_INTERVAL).await;
        }
    }

    /// Does what is due for every shard that this node leads, one after the
    /// other.
    pub async fn collect_once(&self, history: Duration, protected: Option<Protected>) {
        for group in self.groups.list() {
            let engine = self.engine(&group);
            engine.keep_history(history);
            if !matches!(group.leadership(), Leadership::Leader { .. }) {
                continue;
            }
            // A shard that moved or changed is looked at again.
            if let Err(refusal) = engine.collect(protected).await {
                tracing::debug!(
                    shard = %group.shard_id(),
                    reason = refusal.error.message,
                    "history was not collected"
                );
            }
        }
    }

    /// Answers one request.
    pub async fn handle(&self, request: proto::Request) -> proto::Reply {
        self.handle_queued(request, Stopwatch::start()).await
    }

    /// Answers a request that has waited since `arrived`.
    pub(super) async fn handle_queued(
        &self,
        request: proto::Request,
        arrived: Stopwatch,
    ) -> proto::Reply {
        let id = request.id;
        let extent = extent(&request);
        let mut reply = match self.groups.get(ShardId(request.shard_id)) {
            Some(group) => {
                if let Some(done) = at_any_replica(&group, &request) {
                    return done;
                }
                if let Some(done) = self.split_done(&request) {
                    return done;
                }
                let engine = self.engine(&group);
                engine.handle(request, arrived.elapsed_us()).await
            }
            None => {
                let code = ErrorCode::ShardNotFound;
                let refusal = Refusal::new(code, "this node has no replica of the shard");
                proto::Reply {
                    id,
                    body: Some(reply::Body::Error(*refusal.error)),
                    ..Default::default()
                }
            }
        };
        if let Some(reply::Body::Error(error)) = &mut reply.body
            && error.code() == ErrorCode::ShardChanged
        {
            error.shards = self.shards_over(&extent);
        }
        reply
    }

    /// A split that was done before (idempotent by the new shard's id).
    fn split_done(&self, request: &proto::Request) -> Option<proto::Reply> {
        let Some(request::Body::Split(split)) = &request.body else {
            return None;
        };
        let child = self.groups.get(ShardId(split.new_shard_id))?;
        let split_key = child.descriptor().span.clone()?.start;
        Some(proto::Reply {
            id: request.id,
            body: Some(reply::Body::Split(proto::SplitReply { split_key })),
            ..Default::default()
        })
    }

    fn engine(&self, group: &Group) -> Arc<GroupEngine> {
        let (shard, replica) = (group.shard_id(), group.replica_id());
        if let Some(attached) = self.engines.read().get(&shard)
            && attached.replica == replica
        {
            return attached.engine.clone();
        }
        let engine = {
            let mut engines = self.engines.write();
            if let Some(attached) = engines.get(&shard)
                && attached.replica == replica
            {
                return attached.engine.clone();
            }
            let engine = Engine::new(
                shard,
                group.clone(),
                self.store.clone(),
                self.clock.clone(),
                self.graph.clone(),
                Rules::default(),
            );
            if let Some(inheritance) = self.inherited.lock().remove(&shard) {
                engine.inherit(inheritance);
            }
            let attached = Attached {
                replica,
                engine: engine.clone(),
            };
            engines.insert(shard, attached);
            // Replicas that went leave their engines behind: drop them now.
            engines.retain(|shard, _| self.groups.get(*shard).is_some());
            engine
        };
        group.set_observer(Arc::new(Observer {
            engine: Arc::downgrade(&engine),
            inherited: self.inherited.clone(),
        }));
        engine
    }

    /// Current descriptors of this node's shards that overlap a span.
    fn shards_over(&self, extent: &proto::Span) -> Vec<proto::ShardDescriptor> {
        let groups = self.groups.list().into_iter();
        groups
            .filter_map(|group| {
                let mut descriptor = (*group.descriptor()).clone();
                let span = descriptor.span.clone().unwrap_or_default();
                if !spans_overlap(&span.start, &span.end, &extent.start, &extent.end) {
                    return None;
                }
                descriptor.leader_node_id = match group.leadership() {
                    Leadership::Leader { .. } => group.replica_id().node().0,
                    Leadership::Follower { leader } => leader.map_or(0, |node| node.0),
                };
                Some(descriptor)
            })
            .collect()
    }
}

/// What is answered by leaders and followers alike.
fn at_any_replica(group: &Group, request: &proto::Request) -> Option<proto::Reply> {
    let Some(request::Body::WhoLeads(_)) = &request.body else {
        return None;
    };
    let (leader, term) = group.opinion().unwrap_or_default();
    let reply = proto::WhoLeadsReply {
        leader_node_id: leader.0,
        term,
    };
    Some(proto::Reply {
        id: request.id,
        body: Some(reply::Body::WhoLeads(reply)),
        ..Default::default()
    })
}

/// The smallest span that holds all keys of a request.
fn extent(request: &proto::Request) -> proto::Span {
    use request::Body;
    let mut extent: Option<proto::Span> = None;
    let mut add = |start: &bytes::Bytes, end: bytes::Bytes| {
        let span = proto::Span {
            start: start.clone(),
            end,
        };
        extent = Some(match extent.take() {
            None => span,
            Some(old) => proto::Span {
                start: old.start.min(span.start),
                end: if old.end.is_empty() || span.end.is_empty() {
                    bytes::Bytes::new()
                } else {
                    old.end.max(span.end)
                },
            },
        });
    };
    let point = lineradb_common::keys::key_after;
    let mut keys = |keys: &[bytes::Bytes]| {
        for key in keys {
            add(key, point(key));
        }
    };
    match &request.body {
        Some(Body::Get(get)) => keys(&get.keys),
        Some(Body::LockingRead(read)) => keys(&read.keys),
        Some(Body::Resolve(resolve)) => keys(&resolve.keys),
        Some(Body::CommitRecord(record)) => {
            keys(
                record
                    .txn
                    .as_ref()
                    .map_or(&[], |txn| std::slice::from_ref(&txn.anchor)),
            );
        }
        Some(Body::QueryIntents(query)) => keys(&query.keys),
        Some(Body::Recover(recover)) => keys(std::slice::from_ref(&recover.anchor)),
        Some(Body::ForgetRecords(forget)) => {
            for record in &forget.records {
                add(&record.anchor, point(&record.anchor));
            }
        }
        Some(Body::Push(push)) => keys(std::slice::from_ref(&push.anchor)),
        Some(Body::OnePhaseCommit(proto::OnePhaseCommit { writes, .. }))
        | Some(Body::Prewrite(proto::Prewrite { writes, .. })) => {
            for write in writes {
                match &write.target {
                    Some(proto::write::Target::Key(key)) => add(key, point(key)),
                    Some(proto::write::Target::Schema(schema)) => {
                        let span = schema.span.clone().unwrap_or_default();
                        add(&span.start, span.end);
                    }
                    None => {}
                }
            }
        }
        Some(Body::Scan(proto::Scan { span, .. }))
        | Some(Body::Fragment(proto::Fragment { span, .. }))
        | Some(Body::Changes(proto::Changes { span, .. }))
        | Some(Body::AwaitWrite(proto::AwaitWrite { span, .. })) => {
            let span = span.clone().unwrap_or_default();
            add(&span.start, span.end);
        }
        Some(Body::Refresh(refresh)) => {
            for span in &refresh.spans {
                add(&span.start, span.end.clone());
            }
        }
        _ => {}
    }
    // Without keys of its own the request concerns all that is here.
    extent.unwrap_or_default()
}

struct Observer {
    engine: Weak<GroupEngine>,
    inherited: Arc<Mutex<HashMap<ShardId, Inheritance>>>,
}

impl GroupObserver for Observer {
    /// The engine starts a term with an empty memory by itself (C1).
    fn on_leader(&self, _term: u64) {}

    fn on_lost_leadership(&self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.lost_leadership();
        }
    }

    fn on_split(&self, split: &SplitApplied) {
        if let Some(engine) = self.engine.upgrade()
            && let Some(inheritance) = engine.split_applied(split)
        {
            let child = ShardId(split.right.shard_id);
            self.inherited.lock().insert(child, inheritance);
        }
    }
}

#[async_trait::async_trait]
impl ShardService for ShardNode {
    async fn call(&self, request: proto::Request) -> Result<proto::Reply, TransportError> {
        Ok(self.handle(request).await)
    }
}
