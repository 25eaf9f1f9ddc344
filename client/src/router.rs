//! Sends a request to whoever leads the shard that it concerns, and hides
//! everything that a retry can hide: elections, splits, stale maps, dead
//! nodes, lost links. Bounded by a deadline, always.
//!
//! Three layers, each a loop:
//! * [`Router::call_shard`]: one shard at one version; finds its leader.
//! * [`Router::call_at`] and [`Router::scatter`]: keys and spans; cut again
//!   when a shard turns out to have changed.
//! * around both, [`contention`](crate::contention): foreign intents are
//!   pushed, resolved, or waited for.
//!
//! A request with an effect that must not happen twice ([`Effect::Once`]) is
//! sent again only after an answer that says that nothing was done (X1).

use crate::backoff::Backoff;
use crate::connection::Connections;
use crate::contention::Contention;
use crate::failure::{Effect, Failure};
use crate::history::History;
use crate::meta::MetaClient;
use crate::receipt::Receipt;
use crate::second_opinion::Opinions;
use crate::service::TransportError;
use crate::shard_map::{ShardMap, span_of};
use crate::types::Span;
use bytes::Bytes;
use futures::StreamExt;
use lineradb_common::clock::{Stopwatch, deadline_after};
use lineradb_proto::meta::v1::ClusterMap;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ErrorCode, Reply, Request, ShardDescriptor, reply, request};
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Requests of one scatter under way at once.
const PARALLEL_MAX: usize = 16;
/// A map refresh waits for the metaservice no longer than this.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// While a leader is looked for among replicas that are known.
const REFRESH_BRIEF: Duration = Duration::from_millis(100);

/// How one operation is to be carried out.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// When it must be over.
    pub deadline: Instant,
    /// Who pays.
    pub receipt: &'a Receipt,
    /// What to do about foreign intents.
    pub contention: Contention,
    /// It reads the past: any replica may answer (L4).
    pub past: bool,
}

/// A message for a shard: what to do, and the schema versions that it was
/// planned with.
pub type Message = (request::Body, Vec<pb::SchemaVersion>);

/// Where a request begins.
#[derive(Clone, Debug)]
pub enum At {
    /// The shard that holds this key.
    Key(Bytes),
    /// The shard that holds the keys just below; empty: the last of all.
    Before(Bytes),
}

/// Work that can be cut at shard borders.
pub trait Routed: Clone {
    /// Where it begins.
    fn start(&self) -> &Bytes;
    /// The part below `end`, and the rest (`end` is never empty).
    fn cut(self, end: &Bytes) -> (Self, Option<Self>);
    /// Its size in a message.
    fn weight(&self) -> usize;
}

impl Routed for Bytes {
    fn start(&self) -> &Bytes {
        self
    }
    fn cut(self, _end: &Bytes) -> (Self, Option<Self>) {
        (self, None)
    }
    fn weight(&self) -> usize {
        self.len()
    }
}

/// The way to the shards; shared by all transactions of a process.
pub struct Router {
    meta: MetaClient,
    map: RwLock<Arc<ShardMap>>,
    connections: Connections,
    opinions: Opinions,
    history: History,
    refreshes: AtomicU64,
    refreshing: tokio::sync::Mutex<()>,
}

impl Router {
    /// A router with an empty map, for a process that knows the past as `history`.
    pub fn new(meta: MetaClient, connections: Connections, history: History) -> Self {
        Router {
            meta,
            map: RwLock::default(),
            connections,
            opinions: Opinions::default(),
            history,
            refreshes: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::new(()),
        }
    }

    /// What is believed now.
    pub fn map(&self) -> Arc<ShardMap> {
        self.map.read().clone()
    }

    fn change_map(&self, change: impl FnOnce(&mut ShardMap) -> bool) -> bool {
        let mut map = self.map.write();
        change(Arc::make_mut(&mut map))
    }

    /// Takes over a whole map.
    pub fn merge_map(&self, map: &ClusterMap) {
        self.change_map(|m| m.merge_map(map));
        self.opinions.retain(&self.map());
    }

    /// Asks the metaservice for the map; callers at the same time share one
    /// answer. Failing is no error: what is known may still do.
    pub async fn refresh_map(&self, deadline: Instant) {
        let seen = self.refreshes.load(Ordering::Acquire);
        let until = deadline.min(deadline_after(REFRESH_TIMEOUT));
        let Ok(_alone) = tokio::time::timeout_at(until, self.refreshing.lock()).await else {
            return;
        };
        if self.refreshes.load(Ordering::Acquire) != seen {
            return;
        }
        match self.meta.get_map(until).await {
            Ok(map) => self.merge_map(&map),
            Err(error) => tracing::debug!(%error, "the shard map could not be refreshed"),
        }
        self.refreshes.fetch_add(1, Ordering::AcqRel);
    }

    /// Sends to the leader of `shard`, which must still have the version that
    /// the request was cut for.
    pub async fn call_shard(
        &self,
        shard: &ShardDescriptor,
        message: &Message,
        effect: Effect,
        context: &Context<'_>,
    ) -> Result<Reply, Failure> {
        if context.past
            && let Some(reply) = self.read_past(shard, message, context).await
        {
            return Ok(reply);
        }
        let mut backoff = Backoff::routing();
        let mut turn = 0;
        let mut last = "not tried".to_owned();
        let mut strangers = 0;
        loop {
            let Some(current) = self.map().by_id(shard.shard_id).cloned() else {
                return Err(Failure::Moved(last));
            };
            if current.version != shard.version || current.replicas.is_empty() {
                return Err(Failure::Moved(last));
            }
            let replica = choose(&current, turn);
            let now_left = time_left(context.deadline);
            if now_left.is_zero() {
                return Err(Failure::Unavailable(last));
            }
            let request = Request {
                id: 0,
                shard_id: shard.shard_id,
                shard_version: shard.version,
                timeout_ms: now_left.as_millis().clamp(1, u128::from(u32::MAX)) as u32,
                schema: message.1.clone(),
                closed: None,
                body: Some(message.0.clone()),
            };
            let address = self.map().address(replica).to_owned();
            let node = replica.node_id;
            let watch = Stopwatch::start();
            let service = self.connections.node(&address);
            let other =
                self.opinions
                    .other_leader(&current, node, || self.map(), &self.connections);
            // Which waits for long by its nature, and is a hint (`changes.rs`).
            let is_hint = matches!(message.0, request::Body::AwaitWrite(_));
            let answer = tokio::select! {
                biased;
                answer = service.call(request) => answer.map_err(|error| (error, 0)),
                leader = other, if !is_hint => {
                    let why = format!("no answer, and node {leader} leads now");
                    Err((TransportError::Lost(why), leader))
                }
            };
            match answer {
                Ok(mut reply) => {
                    context.receipt.note(&reply, watch.elapsed());
                    let error = match reply.body.take() {
                        Some(reply::Body::Error(error)) => error,
                        Some(body) => {
                            reply.body = Some(body);
                            self.change_leader(shard.shard_id, node);
                            return Ok(reply);
                        }
                        None if effect == Effect::Once => {
                            return Err(Failure::Unknown(format!(
                                "node {node} sent an empty reply"
                            )));
                        }
                        None => {
                            return Err(Failure::Refused(pb::Error {
                                message: format!("node {node} sent an empty reply"),
                                ..pb::Error::default()
                            }));
                        }
                    };
                    last = format!("node {node}: {}", error.message);
                    match ErrorCode::try_from(error.code) {
                        Ok(ErrorCode::NotLeader) => {
                            self.learn(&error.shards);
                            let leader = error.leader_node_id;
                            let known = leader != node
                                && current.replicas.iter().any(|r| r.node_id == leader);
                            self.change_leader(shard.shard_id, if known { leader } else { 0 });
                            turn += 1;
                            if known && turn <= 1 {
                                continue;
                            }
                        }
                        Ok(ErrorCode::ShardNotFound) => {
                            self.change_leader(shard.shard_id, 0);
                            turn += 1;
                            strangers += 1;
                            if strangers >= current.replicas.len() {
                                // Nobody there knows it: neither do we.
                                self.change_map(|m| {
                                    m.forget(shard.shard_id);
                                    true
                                });
                                return Err(Failure::Moved(last));
                            }
                        }
                        Ok(ErrorCode::ShardChanged) => {
                            if !self.learn(&error.shards) {
                                self.refresh_map(context.deadline).await;
                            }
                            return Err(Failure::Moved(last));
                        }
                        Ok(ErrorCode::Unavailable) => {
                            // It may have lost its quorum: ask the others too.
                            self.change_leader(shard.shard_id, 0);
                            turn += 1;
                        }
                        Ok(ErrorCode::OutcomeUnknown) if effect == Effect::Once => {
                            return Err(Failure::Unknown(last));
                        }
                        Ok(ErrorCode::OutcomeUnknown) => turn += 1,
                        _ => return Err(Failure::Refused(error)),
                    }
                }
                Err((TransportError::Lost(why), leader)) if effect == Effect::Once => {
                    self.change_leader(shard.shard_id, leader);
                    return Err(Failure::Unknown(format!("node {node}: {why}")));
                }
                Err((TransportError::Lost(why) | TransportError::NotSent(why), leader)) => {
                    last = format!("node {node}: {why}");
                    self.change_leader(shard.shard_id, leader);
                    turn += 1;
                }
            }
            if turn % (2 * current.replicas.len()) == 0 {
                // The metaservice may be down: that must not slow this down.
                let soon = deadline_after(REFRESH_BRIEF);
                self.refresh_map(context.deadline.min(soon)).await;
            }
            if !backoff.pause(context.deadline).await {
                return Err(Failure::Unavailable(last));
            }
        }
    }

    fn change_leader(&self, shard_id: u64, node_id: u64) {
        let known = self.map().by_id(shard_id).map(|s| s.leader_node_id);
        if known.is_some_and(|known| known != node_id) {
            self.change_map(|m| m.set_leader(shard_id, node_id));
        }
    }

    fn learn(&self, shards: &[ShardDescriptor]) -> bool {
        let mut shards: Vec<_> = shards.to_vec();
        // Parents before the children that they made room for.
        shards.sort_by_key(|s| std::cmp::Reverse(s.version));
        self.change_map(|m| {
            let mut changed = false;
            for shard in shards {
                changed |= m.merge(shard);
            }
            changed
        })
    }

    /// The shard where a request begins; asks the metaservice until it is
    /// known.
    pub async fn locate(
        &self,
        at: &At,
        deadline: Instant,
    ) -> Result<Arc<ShardDescriptor>, Failure> {
        let mut backoff = Backoff::routing();
        loop {
            let map = self.map();
            let found = match at {
                At::Key(key) => map.lookup(key),
                At::Before(end) => map.lookup_before(end),
            };
            if let Some(shard) = found.filter(|s| !s.replicas.is_empty()) {
                return Ok(shard.clone());
            }
            self.refresh_map(deadline).await;
            let known = self.map();
            if !Arc::ptr_eq(&known, &map) {
                // Something was learnt: look again at once, pause if in vain.
                let found = match at {
                    At::Key(key) => known.lookup(key),
                    At::Before(end) => known.lookup_before(end),
                };
                if found.is_some_and(|s| !s.replicas.is_empty()) {
                    continue;
                }
            }
            if !backoff.pause(deadline).await {
                return Err(Failure::Unavailable(
                    "no shard is known to hold a key".into(),
                ));
            }
        }
    }

    /// Sends what `make` builds for the shard at a place; builds it anew when
    /// the shard there changed. Foreign intents are dealt with.
    pub async fn call_at<F>(
        &self,
        at: At,
        make: F,
        effect: Effect,
        context: &Context<'_>,
    ) -> Result<(Arc<ShardDescriptor>, Reply), Failure>
    where
        F: Fn(&ShardDescriptor) -> Message,
    {
        let mut backoff = Backoff::routing();
        loop {
            let shard = self.locate(&at, context.deadline).await?;
            let message = make(&shard);
            match self.call_contended(&shard, &message, effect, context).await {
                Err(Failure::Moved(why)) => {
                    if !backoff.pause(context.deadline).await {
                        return Err(Failure::Unavailable(why));
                    }
                }
                answer => return Ok((shard, answer?)),
            }
        }
    }

    /// Cuts work by shard (and into messages of at most `bytes_max`), sends
    /// all of it in parallel, and again what turned out to lie elsewhere.
    /// Returns what each message held and its reply; on a failure, others may
    /// have taken effect, or may yet.
    pub async fn scatter<T, F>(
        &self,
        work: Vec<T>,
        make: F,
        effect: Effect,
        bytes_max: usize,
        context: &Context<'_>,
    ) -> Result<Vec<(Vec<T>, Reply)>, Failure>
    where
        T: Routed,
        F: Fn(&ShardDescriptor, &[T]) -> Message,
    {
        let mut done = Vec::new();
        let mut queue = work;
        let mut backoff = Backoff::routing();
        loop {
            let parts = self.group(queue, bytes_max, context.deadline).await?;
            let calls = parts.into_iter().map(|(shard, items)| {
                let message = make(&shard, &items);
                async move {
                    let answer = self.call_contended(&shard, &message, effect, context).await;
                    (items, answer)
                }
            });
            let mut answers = futures::stream::iter(calls).buffer_unordered(PARALLEL_MAX);
            queue = Vec::new();
            let mut failure: Option<Failure> = None;
            let mut moved = String::new();
            while let Some((items, answer)) = answers.next().await {
                match answer {
                    Ok(reply) => done.push((items, reply)),
                    Err(Failure::Moved(why)) => {
                        moved = why;
                        queue.extend(items);
                    }
                    Err(deadlock) if deadlock.is_deadlock() => return Err(deadlock),
                    Err(other) => failure = Some(Failure::worse(failure, other)),
                }
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            if queue.is_empty() {
                return Ok(done);
            }
            if !backoff.pause(context.deadline).await {
                return Err(Failure::Unavailable(moved));
            }
        }
    }

    /// Cuts work by shard, in the order of the work.
    pub async fn group<T: Routed>(
        &self,
        work: Vec<T>,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<Vec<(Arc<ShardDescriptor>, Vec<T>)>, Failure> {
        let mut parts: Vec<Part<T>> = Vec::new();
        let mut open: std::collections::HashMap<u64, usize> = std::collections::HashMap::new();
        for item in work {
            let mut rest = Some(item);
            while let Some(item) = rest.take() {
                let shard = match self.map().lookup(item.start()) {
                    Some(shard) if !shard.replicas.is_empty() => shard.clone(),
                    _ => {
                        self.locate(&At::Key(item.start().clone()), deadline)
                            .await?
                    }
                };
                let end = span_of(&shard).end;
                let (item, more) = if end.is_empty() {
                    (item, None)
                } else {
                    item.cut(&end)
                };
                rest = more;
                let weight = item.weight();
                let fits = open.get(&shard.shard_id).copied().filter(|&i| {
                    parts[i].bytes + weight <= bytes_max && parts[i].shard.version == shard.version
                });
                let at = fits.unwrap_or_else(|| {
                    open.insert(shard.shard_id, parts.len());
                    parts.push(Part {
                        shard,
                        items: Vec::new(),
                        bytes: 0,
                    });
                    parts.len() - 1
                });
                parts[at].bytes += weight;
                parts[at].items.push(item);
            }
        }
        Ok(parts.into_iter().map(|p| (p.shard, p.items)).collect())
    }

    /// The metaservice.
    pub fn meta(&self) -> &MetaClient {
        &self.meta
    }

    /// The way to the nodes.
    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// What is known of the past.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }
}

struct Part<T> {
    shard: Arc<ShardDescriptor>,
    items: Vec<T>,
    bytes: usize,
}

/// The replica to ask: the leader when one is known, else the next in turn.
fn choose(shard: &ShardDescriptor, turn: usize) -> &pb::Replica {
    let leader = shard.leader_node_id;
    shard
        .replicas
        .iter()
        .find(|r| leader != 0 && r.node_id == leader)
        .unwrap_or(&shard.replicas[turn % shard.replicas.len()])
}

fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(deadline_after(Duration::ZERO))
}

/// A span as it stands in messages.
pub fn to_proto(span: &Span) -> pb::Span {
    pb::Span {
        start: span.start.clone(),
        end: span.end.clone(),
    }
}
