//! What goes on when nobody waits for it: resolving the intents of decided
//! transactions, releasing locks, and the heartbeat of live ones.
//!
//! All of it is a courtesy: a lost job costs others a push (intents) or five
//! seconds (locks, and commits that only their staged records show), never
//! correctness. So the queues are bounded, handing over never blocks, and what does
//! not fit is dropped. Commits that are to be made explicit have a queue of their
//! own: those who wait for one must not wait for a shard that is down.

use crate::contention::{Contention, Fate};
use crate::failure::Effect;
use crate::receipt::Receipt;
use crate::router::{At, Context, Routed, Router};
use crate::transaction::items::WriteItem;
use bytes::Bytes;
use lineradb_common::clock::deadline_after;
use lineradb_common::{Timestamp, TxnId, spawn};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, commit_record_reply, reply, request};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};

/// Jobs waiting at most.
const JOBS_MAX: usize = 8 * 1024;
/// Jobs under way at once.
const PARALLEL_MAX: usize = 64;
/// A job that takes longer is given up.
const JOB_TIMEOUT: Duration = Duration::from_secs(20);
/// Commits that are being made explicit at once, each by one round of consensus;
/// one that takes longer is found by its recovery, five seconds after it was
/// staged.
const EXPLICIT_MAX: usize = 256;
const EXPLICIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of keys in one Resolve.
const RESOLVE_BYTES_MAX: usize = 512 * 1024;
/// Records of finished commits that wait to be forgotten, and how often they are:
/// together, since each time costs a round of consensus.
const RECORDS_MAX: usize = 16 * 1024;
const FORGET: Duration = Duration::from_secs(2);
/// A shard without a quorum does not hold up the records of the others for longer.
const FORGET_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of records in one message.
const FORGET_BYTES_MAX: usize = 128 * 1024;
/// Memory locks expire five seconds after the last heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Something to do later.
pub enum Job {
    /// Release memory locks.
    Release {
        /// Whose.
        txn: TxnId,
        /// On which keys.
        keys: Vec<Bytes>,
    },
    /// Make the intents of a decided transaction versions, or remove them.
    Resolve {
        /// Whose.
        txn: TxnId,
        /// What was written.
        items: Vec<WriteItem>,
        /// When it is known to have committed.
        committed: Option<Timestamp>,
        /// Else the push at its anchor says how it ended, or ends it, so that
        /// parts that still arrive find their fate.
        push: pb::Push,
    },
}

/// A commit that only its staged record shows, and what comes after it.
struct Explicit {
    record: Box<pb::CommitRecord>,
    then: Job,
}

/// Takes jobs and heartbeats.
pub struct Janitor {
    jobs: mpsc::Sender<Job>,
    commits: mpsc::Sender<Explicit>,
    /// How many of `commits` are waiting or under way.
    unsettled: watch::Sender<usize>,
    live: Arc<Mutex<HashMap<TxnId, Weak<dyn Alive>>>>,
}

/// What the heartbeat needs to know of a live transaction.
pub trait Alive: Send + Sync {
    /// One key in each place where it must be known to live.
    fn keys(&self) -> Vec<Bytes>;
}

impl Janitor {
    /// Hands over a job; never blocks.
    pub fn submit(&self, job: Job) {
        if self.jobs.try_send(job).is_err() {
            tracing::debug!("a clean-up job was dropped: too many are waiting");
        }
    }

    /// Hands over the record of a commit whose writes have all landed, and what is
    /// to be done when it is there: as long as the record says STAGING, an intent
    /// that is gone is one that never landed. Never blocks.
    pub fn make_explicit(&self, record: Box<pb::CommitRecord>, then: Job) {
        self.unsettled.send_modify(|count| *count += 1);
        if self.commits.try_send(Explicit { record, then }).is_err() {
            self.unsettled.send_modify(|count| *count -= 1);
            tracing::debug!("a commit is left for others to find: too many are waiting");
        }
    }

    /// Returns when every commit so far is explicit, or given up.
    pub async fn settled(&self) {
        // The sender is here: this cannot fail.
        let _ = self
            .unsettled
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }

    /// Sends heartbeats for a transaction until it is forgotten or dropped.
    pub fn keep_alive(&self, txn: TxnId, alive: Weak<dyn Alive>) {
        self.live.lock().insert(txn, alive);
    }

    /// Stops the heartbeats.
    pub fn forget(&self, txn: TxnId) {
        self.live.lock().remove(&txn);
    }
}

/// Starts the tasks; they end when the janitor is dropped.
pub fn start(router: Arc<Router>) -> Janitor {
    let (jobs, queue) = mpsc::channel(JOBS_MAX);
    let (commits, staged) = mpsc::channel(JOBS_MAX);
    let unsettled = watch::Sender::new(0);
    let live = Arc::new(Mutex::new(HashMap::new()));
    let (done, finished) = mpsc::channel(RECORDS_MAX);
    spawn::task(
        "explicit-commits",
        make_explicit(router.clone(), staged, jobs.downgrade(), unsettled.clone()),
    );
    spawn::task("clean-up", work_off(router.clone(), queue, done));
    spawn::task("forget-records", forget(router.clone(), finished));
    spawn::task(
        "lock-heartbeat",
        beat(Arc::downgrade(&router), Arc::downgrade(&live)),
    );
    Janitor {
        jobs,
        commits,
        unsettled,
        live,
    }
}

async fn make_explicit(
    router: Arc<Router>,
    mut staged: mpsc::Receiver<Explicit>,
    jobs: mpsc::WeakSender<Job>,
    unsettled: watch::Sender<usize>,
) {
    let permits = Arc::new(Semaphore::new(EXPLICIT_MAX));
    while let Some(Explicit { record, then }) = staged.recv().await {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let (router, jobs, unsettled) = (router.clone(), jobs.clone(), unsettled.clone());
        spawn::task("explicit-commit", async move {
            let _permit = permit;
            let there = put_down(&router, *record).await;
            unsettled.send_modify(|count| *count -= 1);
            if let Some(jobs) = jobs.upgrade().filter(|_| there) {
                jobs.try_send(then).ok();
            }
        });
    }
}

async fn work_off(
    router: Arc<Router>,
    mut queue: mpsc::Receiver<Job>,
    done: mpsc::Sender<pb::RecordAt>,
) {
    let permits = Arc::new(Semaphore::new(PARALLEL_MAX));
    while let Some(job) = queue.recv().await {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let (router, done) = (router.clone(), done.clone());
        spawn::task("clean-up-job", async move {
            let _permit = permit;
            run(&router, &done, job).await;
        });
    }
}

async fn run(router: &Router, done: &mpsc::Sender<pb::RecordAt>, job: Job) {
    let receipt = Receipt::default();
    let context = Context {
        deadline: deadline_after(JOB_TIMEOUT),
        receipt: &receipt,
        contention: Contention::PATIENT,
        past: false,
    };
    match job {
        Job::Release { txn, keys } => {
            to_each_shard(router, keys, &context, || {
                request::Body::ReleaseLocks(pb::ReleaseLocks {
                    txn_id: id_bytes(txn),
                })
            })
            .await;
        }
        Job::Resolve {
            txn,
            items,
            committed,
            push,
        } => {
            let record = pb::RecordAt {
                // A copy: it may be a piece of a large reply, and waits.
                anchor: Bytes::copy_from_slice(&push.anchor),
                txn_id: push.txn_id.clone(),
            };
            let commit_ts = match committed {
                Some(at) => at.raw(),
                None => match router.push(push, &context).await {
                    Ok(Fate::Committed(at)) => at,
                    Ok(Fate::Aborted) => 0,
                    undecided => {
                        tracing::debug!(?undecided, "intents are left for others to decide");
                        return;
                    }
                },
            };
            let make = |_: &ShardDescriptor, items: &[WriteItem]| {
                let mut resolve = pb::Resolve {
                    txn_id: id_bytes(txn),
                    commit_ts,
                    ..pb::Resolve::default()
                };
                for item in items {
                    match item {
                        WriteItem::Key { key, .. } => resolve.keys.push(key.clone()),
                        WriteItem::Schema { table, .. } => resolve.schema_tables.push(table.0),
                    }
                }
                (request::Body::Resolve(resolve), Vec::new())
            };
            let keys_only = items.into_iter().map(WriteItem::without_value).collect();
            let resolved = router
                .scatter(
                    keys_only,
                    make,
                    Effect::Repeatable,
                    RESOLVE_BYTES_MAX,
                    &context,
                )
                .await;
            match resolved {
                Ok(_) if commit_ts != 0 => {
                    // A full queue, like a dead gateway, leaves records behind.
                    done.try_send(record).ok();
                }
                Ok(_) => {}
                Err(failure) => {
                    tracing::debug!(?failure, "intents are left for others to resolve");
                }
            }
        }
    }
}

/// Makes the commit of a transaction explicit, of which all writes have landed.
async fn put_down(router: &Router, record: pb::CommitRecord) -> bool {
    let receipt = Receipt::default();
    let context = Context {
        deadline: deadline_after(EXPLICIT_TIMEOUT),
        receipt: &receipt,
        contention: Contention::PATIENT,
        past: false,
    };
    let anchor = record.txn.as_ref().map(|txn| txn.anchor.clone());
    let at = At::Key(anchor.unwrap_or_default());
    let make = |_: &ShardDescriptor| (request::Body::CommitRecord(record.clone()), Vec::new());
    let answer = router.call_at(at, make, Effect::Repeatable, &context).await;
    match answer.map(|(_, reply)| reply.body) {
        Ok(Some(reply::Body::CommitRecord(reply))) => {
            let committed = matches!(
                reply.outcome,
                Some(commit_record_reply::Outcome::Committed(_))
            );
            if !committed {
                tracing::error!(?reply, "a commit that has landed is not taken for one");
            }
            committed
        }
        unknown => {
            tracing::debug!(?unknown, "a commit is left for others to find");
            false
        }
    }
}

impl Routed for pb::RecordAt {
    fn start(&self) -> &Bytes {
        &self.anchor
    }

    fn cut(self, _: &Bytes) -> (Self, Option<Self>) {
        (self, None)
    }

    fn weight(&self) -> usize {
        self.anchor.len() + self.txn_id.len() + 8
    }
}

async fn forget(router: Arc<Router>, mut finished: mpsc::Receiver<pb::RecordAt>) {
    let mut records = Vec::new();
    while finished.recv_many(&mut records, RECORDS_MAX).await > 0 {
        let receipt = Receipt::default();
        let context = Context {
            deadline: deadline_after(FORGET_TIMEOUT),
            receipt: &receipt,
            contention: Contention::PATIENT,
            past: false,
        };
        let make = |_: &ShardDescriptor, records: &[pb::RecordAt]| {
            let forget = pb::ForgetRecords {
                records: records.to_vec(),
            };
            (request::Body::ForgetRecords(forget), Vec::new())
        };
        let records = std::mem::take(&mut records);
        if let Err(failure) = router
            .scatter(
                records,
                make,
                Effect::Repeatable,
                FORGET_BYTES_MAX,
                &context,
            )
            .await
        {
            tracing::debug!(?failure, "records of finished commits stay");
        }
        tokio::time::sleep(FORGET).await;
    }
}

/// One message to each shard that holds one of the keys. Failing is no harm.
async fn to_each_shard<F>(router: &Router, keys: Vec<Bytes>, context: &Context<'_>, body: F)
where
    F: Fn() -> request::Body + Send + Sync,
{
    let make = |_: &ShardDescriptor, _: &[Bytes]| (body(), Vec::new());
    if let Err(failure) = router
        .scatter(keys, make, Effect::Repeatable, usize::MAX, context)
        .await
    {
        tracing::debug!(?failure, "a courtesy message was not delivered");
    }
}

async fn beat(router: Weak<Router>, live: Weak<Mutex<HashMap<TxnId, Weak<dyn Alive>>>>) {
    let under_way = Arc::new(Semaphore::new(PARALLEL_MAX));
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let (Some(router), Some(live)) = (router.upgrade(), live.upgrade()) else {
            return;
        };
        let alive: Vec<(TxnId, Arc<dyn Alive>)> = {
            let mut live = live.lock();
            live.retain(|_, t| t.strong_count() > 0);
            live.iter()
                .filter_map(|(id, t)| Some((*id, t.upgrade()?)))
                .collect()
        };
        for (txn, transaction) in alive {
            let keys = transaction.keys();
            drop(transaction);
            let keys = one_per_shard(&router, keys);
            if keys.is_empty() {
                continue;
            }
            let Ok(permit) = under_way.clone().acquire_owned().await else {
                return;
            };
            let router = router.clone();
            spawn::task("lock-heartbeat-one", async move {
                let _permit = permit;
                let receipt = Receipt::default();
                let context = Context {
                    deadline: deadline_after(HEARTBEAT * 2),
                    receipt: &receipt,
                    contention: Contention::PATIENT,
                    past: false,
                };
                to_each_shard(&router, keys, &context, || {
                    request::Body::HeartbeatLocks(pb::HeartbeatLocks {
                        txn_id: id_bytes(txn),
                    })
                })
                .await;
            });
        }
    }
}

/// Keeps one key for each shard.
fn one_per_shard(router: &Router, keys: Vec<Bytes>) -> Vec<Bytes> {
    let map = router.map();
    let mut seen = BTreeSet::new();
    keys.into_iter()
        .filter(|key| {
            map.lookup(Routed::start(key))
                .is_none_or(|shard| seen.insert(shard.shard_id))
        })
        .collect()
}

/// A transaction id as it stands in messages.
pub fn id_bytes(txn: TxnId) -> Bytes {
    Bytes::copy_from_slice(&txn.0)
}
