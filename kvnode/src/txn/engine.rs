//! The engine of one replica: answers requests while the replica leads.
//!
//! ```text
//! request -> leader? version? -> read   cache, wait for writes, snapshot, confirm   (L3)
//!                             -> write  latches, place, schema check, propose       (X0, S1)
//!                             -> fate   commit point, push, resolve                 (X1-X3)
//! ```
//!
//! Evaluation is plain code (`placement`, `fate`, `mvcc`); this file and its
//! children order it against time, latches and consensus. A proposal runs in a
//! task of its own that holds the latches until its fate is known, whatever
//! becomes of the caller.

mod changes;
mod closed;
mod collect;
mod fate;
mod locking;
mod read;
mod split;
mod wait;
mod write;

use super::latches::LatchGuard;
use super::leading::{Effects, Leading};
use super::metrics;
use super::refusal::Refusal;
use super::schema::{TableVersions, Verdict as SchemaVerdict};
use super::seam::Consensus;
use super::wait_graph::WaitGraph;
use crate::command::{Body as CommandBody, Command, Expect, Op, Rejection, Verdict};
use crate::consensus::{Leadership, ProposeError, SplitApplied};
use crate::mvcc::{Store, keys};
use crate::rules::{Rule, Rules};
use lineradb_common::clock::{self, SharedClock, Stopwatch};
use lineradb_common::{ShardId, TableId, Timestamp, TxnId, spawn};
use lineradb_proto::shard::v1::{self as proto, ShardDescriptor, reply, request};
use parking_lot::RwLock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use collect::{Collection, Protected};

/// How far above the clock's `earliest` a read is served (L3).
pub(super) const READ_LEAD_US: u64 = 50_000;
/// Timestamps further above `latest` are refused: twice the largest clock
/// error (T4).
const AHEAD_MAX_US: u64 = 1_000_000;
/// The time of a request that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a request is answered with, and the largest commit timestamp on which
/// the answer rests.
type Answer = Result<(reply::Body, Timestamp), Refusal>;

/// Evaluates the requests of one shard on one replica.
pub struct Engine<C, S> {
    shard: ShardId,
    consensus: C,
    store: S,
    clock: SharedClock,
    graph: Arc<WaitGraph>,
    rules: Rules,
    leading: RwLock<Option<Arc<Leading>>>,
    /// C5: the term in which this shard was split off a shard that this very
    /// replica led, and the highest timestamp read there.
    inherited: RwLock<Option<Inheritance>>,
    history: collect::History,
}

/// What the right half of a split has from the leader of the whole (C5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inheritance {
    /// The term in which that led.
    pub term: u64,
    /// The highest timestamp that was read there.
    pub floor: Timestamp,
    /// Of the clock that has set it (T1).
    pub clock_generation: u64,
}

/// One request under way.
struct Call {
    leading: Arc<Leading>,
    descriptor: Arc<ShardDescriptor>,
    schema: Vec<proto::SchemaVersion>,
    deadline: Instant,
    timing: proto::Timing,
    /// The transaction, once it has met intents: it is taken to wait for them.
    met: Option<TxnId>,
}

/// Whether the versions with which a request was planned hold.
enum SchemaCheck {
    Same,
    /// Another version is in flight: look again when this changes.
    InFlight(oneshot::Receiver<()>),
    Refused(Refusal),
}

impl<C: Consensus, S: Store> Engine<C, S> {
    /// An engine for a replica.
    pub fn new(
        shard: ShardId,
        consensus: C,
        store: S,
        clock: SharedClock,
        graph: Arc<WaitGraph>,
        rules: Rules,
    ) -> Arc<Self> {
        Arc::new(Engine {
            shard,
            consensus,
            store,
            clock,
            graph,
            rules,
            leading: RwLock::new(None),
            inherited: RwLock::new(None),
            history: collect::History::default(),
        })
    }

    /// The replica's group.
    pub fn consensus(&self) -> &C {
        &self.consensus
    }

    /// The replica leads no more: whoever waits is told.
    pub fn lost_leadership(&self) {
        if let Some(leading) = &*self.leading.read() {
            leading.lost().cancel();
        }
    }

    /// A split was applied to this shard; answers what the right half's engine
    /// inherits when this replica led without a break (C5).
    pub fn split_applied(&self, split: &SplitApplied) -> Option<Inheritance> {
        let leading = self.leading.read().clone()?;
        (leading.term == split.term && !leading.lost().is_cancelled()).then(|| Inheritance {
            term: split.term,
            clock_generation: leading.clock_generation(),
            floor: leading.cache.highest(),
        })
    }

    /// C5: the floor of a right half whose leader led the parent.
    pub fn inherit(&self, inheritance: Inheritance) {
        *self.inherited.write() = Some(inheritance);
    }

    /// The memory of the current leadership. What a term began with stays for
    /// the whole term; a lower term never replaces a higher one.
    fn lead(&self) -> Result<Arc<Leading>, Refusal> {
        let term = match self.consensus.leadership() {
            Leadership::Leader { term } => term,
            Leadership::Follower { leader } => return Err(Refusal::not_leader(leader)),
        };
        if let Some(leading) = &*self.leading.read()
            && leading.term == term
        {
            self.trust(leading)?;
            leading.hold_on();
            return Ok(leading.clone());
        }
        let mut current = self.leading.write();
        if let Some(leading) = &*current {
            if leading.term == term {
                self.trust(leading)?;
                return Ok(leading.clone());
            }
            if leading.term > term {
                return Err(Refusal::not_leader(None));
            }
            leading.lost().cancel();
        }
        let (mark, generation) = self.low_water_mark(term)?;
        let now = self.clock.now()?.earliest;
        let graph = self.graph.clone();
        let leading = Arc::new(Leading::new(term, mark, now, generation, graph, self.rules));
        self.trust(&leading)?;
        // X5: what earlier terms raised is applied, since this one serves.
        leading.raise_threshold(collect::stored_threshold(
            &self.store.snapshot(),
            self.shard,
        )?);
        *current = Some(leading.clone());
        Ok(leading)
    }

    /// L3 with ReadIndex: nobody served a read above `latest + read_lead`. And the
    /// generation of the clock that says so.
    fn low_water_mark(&self, term: u64) -> Result<(Timestamp, u64), Refusal> {
        // Before the time is read: what it said then may not count later.
        let generation = self.clock.generation();
        if let Some(inherited) = *self.inherited.read()
            && inherited.term == term
        {
            return Ok(match self.rules.hold(Rule::SplitInheritance) {
                true => (inherited.floor, inherited.clock_generation),
                false => (Timestamp::ZERO, generation),
            });
        }
        if !self.rules.hold(Rule::LowWaterMark) {
            return Ok((Timestamp::ZERO, generation));
        }
        Ok((self.above_all_reads()?, generation))
    }

    /// T1: where the clock was found wrong since it has set the floor of the timestamp
    /// cache, that is raised first. Comes before each evaluation of a write, too: it may
    /// have waited since it began.
    fn trust(&self, leading: &Leading) -> Result<(), Refusal> {
        leading.trust(self.clock.generation(), || self.above_all_reads())
    }

    fn above_all_reads(&self) -> Result<Timestamp, Refusal> {
        Ok(self.clock.now()?.latest.plus_micros(READ_LEAD_US))
    }

    /// Answers one request. `queue_us` is how long it waited before.
    pub async fn handle(self: &Arc<Self>, request: proto::Request, queue_us: u32) -> proto::Reply {
        let watch = Stopwatch::start();
        let (kind, alone) = kind_of(&request);
        let id = request.id;
        let mut timing = proto::Timing::default();
        let answer = if let Some(closed) = &request.closed {
            let answer = self.read_closed(&request, closed).await;
            timing.scan_us = watch.elapsed_us();
            answer
        } else {
            match self.open(&request) {
                Ok(mut call) => {
                    let answer = self.dispatch(&mut call, request.body).await;
                    self.passed_intents(&call, &answer);
                    timing = call.timing;
                    answer
                }
                Err(refusal) => Err(refusal),
            }
        };
        let (body, observed) = match answer {
            Ok(answer) => answer,
            Err(refusal) => (reply::Body::Error(*refusal.error), refusal.observed),
        };
        // T5: a request that one shard answers alone waits here.
        if alone && !observed.is_zero() {
            let _ = clock::wait_past(&*self.clock, observed).await;
        }
        timing.queue_us = queue_us;
        timing.total_us = queue_us.saturating_add(watch.elapsed_us());
        let code = match &body {
            reply::Body::Error(error) => error.code().as_str_name(),
            _ => "OK",
        };
        metrics::REQUESTS.with_label_values(&[kind, code]).inc();
        let seconds = metrics::REQUEST_SECONDS.with_label_values(&[kind]);
        seconds.observe(watch.elapsed().as_secs_f64());
        proto::Reply {
            id,
            observed: observed.raw(),
            timing: Some(timing),
            body: Some(body),
        }
    }

    fn open(&self, request: &proto::Request) -> Result<Call, Refusal> {
        let leading = self.lead()?;
        let descriptor = self.consensus.descriptor();
        if descriptor.version != request.shard_version {
            return Err(Refusal::shard_changed());
        }
        let timeout = match request.timeout_ms {
            0 => DEFAULT_TIMEOUT,
            ms => Duration::from_millis(ms.into()),
        };
        Ok(Call {
            leading,
            descriptor,
            schema: request.schema.clone(),
            deadline: clock::deadline_after(timeout),
            timing: proto::Timing::default(),
            met: None,
        })
    }

    async fn dispatch(self: &Arc<Self>, call: &mut Call, body: Option<request::Body>) -> Answer {
        use request::Body;
        match body {
            Some(Body::Get(get)) => self.get(call, &get).await,
            Some(Body::Scan(scan)) => self.scan(call, &scan).await,
            Some(Body::Fragment(fragment)) => self.fragment(call, &fragment).await,
            Some(Body::Refresh(refresh)) => self.refresh(call, &refresh).await,
            Some(Body::LockingRead(read)) => self.locking_read(call, &read).await,
            Some(Body::OnePhaseCommit(commit)) => self.one_phase_commit(call, &commit).await,
            Some(Body::Prewrite(prewrite)) => self.prewrite(call, &prewrite).await,
            Some(Body::CommitRecord(record)) => self.commit_record(call, &record).await,
            Some(Body::Push(push)) => self.push(call, &push).await,
            Some(Body::QueryIntents(query)) => self.query_intents(call, &query).await,
            Some(Body::Recover(recover)) => self.recover(call, &recover).await,
            Some(Body::Resolve(resolve)) => self.resolve(call, &resolve).await,
            Some(Body::ForgetRecords(forget)) => self.forget_records(call, &forget).await,
            Some(Body::HeartbeatLocks(beat)) => {
                let id = super::placement::txn_id(&beat.txn_id)?;
                call.leading.locks.heartbeat(id);
                let now = self.clock.now()?.earliest;
                call.leading.coordinators.hear(id, now);
                let reply = proto::HeartbeatLocksReply {};
                Ok((reply::Body::HeartbeatLocks(reply), Timestamp::ZERO))
            }
            Some(Body::ReleaseLocks(release)) => {
                call.leading
                    .locks
                    .release(super::placement::txn_id(&release.txn_id)?);
                let reply = proto::ReleaseLocksReply {};
                Ok((reply::Body::ReleaseLocks(reply), Timestamp::ZERO))
            }
            Some(Body::Changes(changes)) => self.changes(call, changes).await,
            Some(Body::AwaitWrite(wait)) => self.await_write(call, &wait).await,
            Some(Body::Split(split)) => self.split(call, &split).await,
            Some(Body::ListLocks(list)) => self.list_locks(call, &list),
            Some(Body::Close(_)) => self.close(call).await,
            // Any replica answers it, its leader or not: the node does.
            Some(Body::WhoLeads(_)) | None => Err(Refusal::invalid(
                "the request has no body that this node knows",
            )),
        }
    }

    /// The shard is still what the request was routed with. Checked after the
    /// request's reads are in the timestamp cache: a split that is applied
    /// later inherits them (C5).
    fn still(&self, call: &Call) -> Result<(), Refusal> {
        if self.consensus.descriptor().version == call.descriptor.version {
            Ok(())
        } else {
            Err(Refusal::shard_changed())
        }
    }

    /// Refuses timestamps that no sound clock gives (T4); answers `latest`.
    fn check_ahead(&self, timestamp: Timestamp) -> Result<Timestamp, Refusal> {
        let latest = self.clock.now()?.latest;
        if timestamp > latest.plus_micros(AHEAD_MAX_US) {
            return Err(Refusal::out_of_range(timestamp, latest));
        }
        Ok(latest)
    }

    /// Compares the schema versions of a request at the timestamp of its
    /// effect, and records the comparison as a read (S1, S6). `except` are
    /// tables that the request itself writes.
    fn check_schema(
        &self,
        call: &Call,
        at: Timestamp,
        own: Option<TxnId>,
        guard: Option<&LatchGuard>,
        except: &[TableId],
    ) -> Result<SchemaCheck, Refusal> {
        for planned in &call.schema {
            let table = TableId(planned.table_id);
            if except.contains(&table) {
                continue;
            }
            let leading = &call.leading;
            leading.schema.record_read(table, at);
            leading.cache.raise_highest(at);
            let key = keys::schema_key(self.shard, table);
            let instant = leading.latches.instant();
            if let Some(changed) = leading.latches.point_blocker(&key, at, instant, guard) {
                return Ok(SchemaCheck::InFlight(changed));
            }
            let versions = leading
                .schema
                .versions(table, self.shard, || self.store.snapshot())?;
            if let Some(refusal) = self.compare(&versions, table, at, planned.version, own) {
                return Ok(SchemaCheck::Refused(refusal));
            }
        }
        Ok(SchemaCheck::Same)
    }

    fn compare(
        &self,
        versions: &TableVersions,
        table: TableId,
        at: Timestamp,
        planned: u64,
        own: Option<TxnId>,
    ) -> Option<Refusal> {
        match versions.check(at, planned, own) {
            SchemaVerdict::Same(_) => None,
            SchemaVerdict::Changed { current, since } => {
                Some(Refusal::schema_changed(table, current, since))
            }
            SchemaVerdict::Undecided(intent) => Some(Refusal::locked(vec![
                intent.to_lock(bytes::Bytes::new(), table.0),
            ])),
        }
    }

    /// Has writes decided and applied. The latches stay until their fate is
    /// known. `Ok(false)`: an expectation failed, evaluate again.
    async fn propose(
        &self,
        call: &mut Call,
        guard: LatchGuard,
        parts: Vec<(Vec<Op>, Vec<Expect>)>,
        effects: Effects,
    ) -> Result<bool, Refusal> {
        let watch = Stopwatch::start();
        let consensus = self.consensus.clone();
        let leading = call.leading.clone();
        let shard_version = call.descriptor.version;
        let task = spawn::task("proposal", async move {
            for (ops, expect) in parts {
                let command = Command {
                    term: leading.term,
                    shard_version,
                    body: CommandBody::Write { ops, expect },
                };
                match consensus.propose(command).await {
                    Ok(Verdict::Applied) => {}
                    Ok(rejected) => return Ok(rejected),
                    Err(error) => {
                        if matches!(error, ProposeError::Unknown(_)) {
                            leading.keep_until_lost(guard);
                        }
                        return Err(error);
                    }
                }
            }
            leading.applied(&effects);
            drop(guard);
            Ok(Verdict::Applied)
        });
        let verdict = tokio::time::timeout_at(call.deadline, task).await;
        call.timing.consensus_us += watch.elapsed_us();
        let verdict = verdict
            .map_err(|_| Refusal::unknown("no verdict within the request's time"))?
            .map_err(|_| Refusal::unknown("the node is stopping"))?;
        match verdict {
            Ok(Verdict::Applied) => Ok(true),
            Ok(Verdict::Rejected(Rejection::ExpectFailed)) => Ok(false),
            Ok(Verdict::Rejected(Rejection::StaleTerm)) => Err(Refusal::not_leader(None)),
            Ok(Verdict::Rejected(Rejection::ShardChanged)) => Err(Refusal::shard_changed()),
            Ok(Verdict::Rejected(Rejection::SchemaIntent)) => {
                Err(Refusal::unavailable("a schema version is being written"))
            }
            Err(ProposeError::NotLeader { leader }) => Err(Refusal::not_leader(leader)),
            Err(ProposeError::Unavailable(why)) => Err(Refusal::unavailable(why)),
            Err(ProposeError::Unknown(why)) => Err(Refusal::unknown(why)),
        }
    }
}

/// The name of a request for metrics, and whether this shard answers it alone
/// (it then took the read timestamp from this leader's clock).
fn kind_of(request: &proto::Request) -> (&'static str, bool) {
    use request::Body;
    if request.closed.is_some() {
        return ("closed_read", false);
    }
    match &request.body {
        Some(Body::Get(get)) => ("get", get.read_ts == 0),
        Some(Body::Scan(scan)) => ("scan", scan.read_ts == 0),
        Some(Body::Fragment(fragment)) => ("fragment", fragment.read_ts == 0),
        Some(Body::LockingRead(_)) => ("locking_read", false),
        Some(Body::OnePhaseCommit(commit)) => ("one_phase_commit", commit.read_ts == 0),
        Some(Body::Prewrite(_)) => ("prewrite", false),
        Some(Body::CommitRecord(_)) => ("commit_record", false),
        Some(Body::Push(_)) => ("push", false),
        Some(Body::QueryIntents(_)) => ("query_intents", false),
        Some(Body::Recover(_)) => ("recover", false),
        Some(Body::Resolve(_)) => ("resolve", false),
        Some(Body::Refresh(_)) => ("refresh", false),
        Some(Body::ForgetRecords(_)) => ("forget_records", false),
        Some(Body::HeartbeatLocks(_)) => ("heartbeat_locks", false),
        Some(Body::ReleaseLocks(_)) => ("release_locks", false),
        Some(Body::Changes(_)) => ("changes", false),
        Some(Body::AwaitWrite(_)) => ("await_write", false),
        Some(Body::Split(_)) => ("split", false),
        Some(Body::ListLocks(_)) => ("list_locks", false),
        Some(Body::WhoLeads(_)) => ("who_leads", false),
        Some(Body::Close(_)) => ("close", false),
        None => ("unknown", false),
    }
}

#[cfg(test)]
mod tests;
