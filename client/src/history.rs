//! Reads of the past by any replica (PROTOCOLS L4).
//!
//! A transaction that reads the past (`AS OF SYSTEM TIME`) needs no leader: what stands at
//! or below a closed timestamp never changes, and each replica that has applied the
//! entry named with it holds it. So such a read goes to the nearest replica, and costs no
//! round of consensus, also where that is the leader.
//!
//! The leader of a shard closes a timestamp when it is asked to. A background task asks,
//! once a second, for each shard whose past was read in the last half minute; what the
//! leader answers is good for ever, so that reads in use go on when it is gone. A read that
//! is too recent for what is known goes to the leader as ever, and so does one that
//! the replica refuses (it lags, it met a provisional write, the shard has split).

use crate::contention::Contention;
use crate::failure::Effect;
use crate::metrics;
use crate::receipt::Receipt;
use crate::router::{Context, Message, Router};
use lineradb_common::clock::{Stopwatch, deadline_after};
use lineradb_common::spawn;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ErrorCode, Reply, Request, ShardDescriptor, reply, request};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// How often a leader is asked to close a timestamp.
const CLOSE_INTERVAL: Duration = Duration::from_secs(1);
/// A leader that takes longer is asked again.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Leaders asked at once.
const PARALLEL_MAX: usize = 64;
/// Closed timestamps that are kept of a shard.
const KEPT: usize = 16;
/// A shard whose past nobody has read for so long is left alone.
const UNUSED: Duration = Duration::from_secs(30);
/// A replica that takes longer for a page is left for the leader.
const PATIENCE: Duration = Duration::from_secs(1);
/// A node that did not answer is not asked again for so long.
const SILENT: Duration = Duration::from_secs(5);
/// One that lags behind.
const LAGS: Duration = Duration::from_secs(1);
/// While nothing is read, the task looks so often whether it is needed at all.
const IDLE: Duration = Duration::from_secs(5);

/// What is known of the past of shards.
pub struct History {
    home: HashMap<String, String>,
    shards: Mutex<HashMap<u64, Past>>,
    /// Nodes that did not serve a shard (0: any), and until when they are not asked.
    avoided: Mutex<HashMap<(u64, u64), Instant>>,
    wanted: Arc<Notify>,
}

/// Of one shard.
struct Past {
    /// Of the shard, for which `closed` is.
    version: u64,
    /// The oldest first: of those that allow a read the first one is what a replica that
    /// lags has most likely applied.
    closed: VecDeque<pb::Closed>,
    /// When a leader is to be asked next; `None`: one is being asked.
    due: Option<Instant>,
    used: Instant,
}

impl History {
    /// For a process that runs at `home`.
    pub fn new(home: HashMap<String, String>) -> Self {
        History {
            home,
            shards: Mutex::default(),
            avoided: Mutex::default(),
            wanted: Arc::default(),
        }
    }

    /// What allows any replica to answer a read at `at`; notes that it is wanted.
    fn closed(&self, shard: &ShardDescriptor, at: u64) -> Option<pb::Closed> {
        let mut shards = self.shards.lock();
        let past = shards.entry(shard.shard_id).or_insert_with(|| {
            self.wanted.notify_one();
            Past {
                version: shard.version,
                closed: VecDeque::new(),
                due: Some(now()),
                used: now(),
            }
        });
        past.used = now();
        let mut closed = past.closed.iter().filter(|_| past.version == shard.version);
        closed.find(|closed| at <= closed.timestamp).copied()
    }

    /// A leader has answered; `None`: nothing.
    fn learn(&self, shard_id: u64, closed: Option<(u64, pb::Closed)>) {
        let mut shards = self.shards.lock();
        let Some(past) = shards.get_mut(&shard_id) else {
            return;
        };
        past.due = Some(deadline_after(CLOSE_INTERVAL));
        let Some((version, closed)) = closed else {
            return;
        };
        if version < past.version {
            return;
        }
        if past.version != version {
            past.version = version;
            past.closed.clear();
        }
        if past
            .closed
            .back()
            .is_none_or(|last| last.timestamp < closed.timestamp)
        {
            past.closed.push_back(closed);
            if past.closed.len() > KEPT {
                past.closed.pop_front();
            }
        }
    }

    /// The shards whose leaders are to be asked now, and when the next one is; what has not
    /// been read lately is forgotten.
    fn due(&self) -> (Vec<u64>, Instant) {
        let mut shards = self.shards.lock();
        shards.retain(|_, past| past.used.elapsed() < UNUSED);
        let (now, mut next) = (now(), deadline_after(IDLE));
        let mut due = Vec::new();
        for (id, past) in shards.iter_mut() {
            match past.due {
                Some(at) if at <= now => {
                    past.due = None;
                    due.push(*id);
                }
                Some(at) => next = next.min(at),
                // It is there again within that time, at the latest.
                None => next = next.min(now + CLOSE_TIMEOUT),
            }
        }
        if !due.is_empty() {
            next = next.min(now + CLOSE_INTERVAL);
        }
        (due, next)
    }

    fn avoid(&self, node: u64, shard_id: u64, length: Duration) {
        let until = deadline_after(length);
        self.avoided.lock().insert((node, shard_id), until);
    }

    fn is_avoided(&self, node: u64, shard_id: u64) -> bool {
        let mut avoided = self.avoided.lock();
        avoided.retain(|_, until| *until > now());
        avoided.contains_key(&(node, 0)) || avoided.contains_key(&(node, shard_id))
    }
}

fn now() -> Instant {
    deadline_after(Duration::ZERO)
}

/// The timestamp of a read; 0 for all else.
fn read_ts(body: &request::Body) -> u64 {
    match body {
        request::Body::Get(get) => get.read_ts,
        request::Body::Scan(scan) => scan.read_ts,
        request::Body::Fragment(fragment) => fragment.read_ts,
        _ => 0,
    }
}

impl Router {
    /// Has the nearest replica answer a read of the past; `None`: ask the leader.
    pub(crate) async fn read_past(
        &self,
        shard: &ShardDescriptor,
        message: &Message,
        context: &Context<'_>,
    ) -> Option<Reply> {
        let at = read_ts(&message.0);
        if at == 0 {
            // A push, or what else a read may need on its way.
            return None;
        }
        let answer = self.try_past(shard, message, at, context).await;
        let by = match answer {
            Some(_) => "any_replica",
            None => "leader",
        };
        metrics::PAST_READS.with_label_values(&[by]).inc();
        answer
    }

    async fn try_past(
        &self,
        shard: &ShardDescriptor,
        message: &Message,
        at: u64,
        context: &Context<'_>,
    ) -> Option<Reply> {
        let history = self.history();
        let closed = history.closed(shard, at)?;
        let map = self.map();
        let current = map.by_id(shard.shard_id)?;
        let replica = map.nearest(current, &history.home)?;
        if history.is_avoided(replica.node_id, shard.shard_id) {
            return None;
        }
        let left = context.deadline.saturating_duration_since(now());
        // A fragment may take long, but the leader may have to do it all over.
        let patience = match message.0 {
            request::Body::Fragment(_) => left / 2,
            _ => PATIENCE.min(left),
        };
        let request = Request {
            id: 0,
            shard_id: shard.shard_id,
            shard_version: shard.version,
            timeout_ms: patience.as_millis().clamp(1, u128::from(u32::MAX)) as u32,
            schema: message.1.clone(),
            closed: Some(closed),
            body: Some(message.0.clone()),
        };
        let service = self.connections().node(map.address(replica));
        let watch = Stopwatch::start();
        let answer = tokio::time::timeout(patience, service.call(request)).await;
        let Ok(Ok(reply)) = answer else {
            history.avoid(replica.node_id, 0, SILENT);
            return None;
        };
        match &reply.body {
            None => None,
            Some(reply::Body::Error(error)) => {
                if error.code() == ErrorCode::Unavailable {
                    history.avoid(replica.node_id, shard.shard_id, LAGS);
                }
                None
            }
            Some(_) => {
                context.receipt.note(&reply, watch.elapsed());
                Some(reply)
            }
        }
    }

    /// Has the leader of a shard close a timestamp.
    async fn close(&self, shard_id: u64) {
        let closed = match self.map().by_id(shard_id).cloned() {
            Some(shard) => self.closed_by(&shard).await.map(|c| (shard.version, c)),
            None => None,
        };
        self.history().learn(shard_id, closed);
    }

    async fn closed_by(&self, shard: &ShardDescriptor) -> Option<pb::Closed> {
        let receipt = Receipt::default();
        let context = Context {
            deadline: deadline_after(CLOSE_TIMEOUT),
            receipt: &receipt,
            contention: Contention::PATIENT,
            past: false,
        };
        let message = (request::Body::Close(pb::Close {}), Vec::new());
        let answer = self.call_shard(shard, &message, Effect::Repeatable, &context);
        match answer.await.map(|reply| reply.body) {
            Ok(Some(reply::Body::Close(reply))) => reply.closed,
            answer => {
                tracing::debug!(shard = shard.shard_id, ?answer, "no timestamp is closed");
                None
            }
        }
    }
}

/// Asks the leaders of the shards whose past is read, for as long as the router lives.
pub fn keep_closed(router: &Arc<Router>) {
    let wanted = router.history().wanted.clone();
    let router: Weak<Router> = Arc::downgrade(router);
    let parallel = Arc::new(Semaphore::new(PARALLEL_MAX));
    spawn::task("closed-timestamps", async move {
        while let Some(router) = router.upgrade() {
            let (due, next) = router.history().due();
            for shard in due {
                let Ok(permit) = parallel.clone().try_acquire_owned() else {
                    // Leaders that are gone hold the permits: in a second again.
                    router.history().learn(shard, None);
                    continue;
                };
                let router = router.clone();
                spawn::task("close-timestamp", async move {
                    router.close(shard).await;
                    drop(permit);
                });
            }
            drop(router);
            // A shard that comes into use is not kept waiting.
            let _ = tokio::time::timeout_at(next, wanted.notified()).await;
        }
    });
}
