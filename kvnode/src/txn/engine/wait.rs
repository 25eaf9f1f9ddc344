//! Waiting for others, never beyond the request's time or the leadership.

use super::locking::gives_way;
use super::{Answer, Call, Engine};
use crate::mvcc::{self, Store, keys};
use crate::txn::metrics;
use crate::txn::placement::txn_id;
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use crate::txn::wait_graph::Contender;
use bytes::Bytes;
use lineradb_common::clock::{Stopwatch, deadline_after};
use lineradb_common::{TableId, Timestamp};
use lineradb_proto::shard::v1::{self as proto, ErrorCode};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// How long a request waits for the resolution of intents before it asks its
/// client to push their transactions.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 20 });
/// A coordinator silent for this long is not waited for.
const SILENT_US: u64 = 5_000_000;

/// How long a request has waited for intents so far.
pub(super) struct Patience(Option<Stopwatch>);

impl Patience {
    pub fn new() -> Self {
        Patience(None)
    }

    fn left(&mut self) -> Duration {
        let watch = self.0.get_or_insert_with(Stopwatch::start);
        PATIENCE.saturating_sub(watch.elapsed())
    }
}

impl<C: Consensus, S: Store> Engine<C, S> {
    /// Waits for something of this leadership.
    pub(super) async fn until<T>(
        &self,
        call: &mut Call,
        future: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        let mut future = pin!(future);
        // Nearly always there is nothing to wait for: no timer then.
        if let std::task::Poll::Ready(done) = futures::poll!(future.as_mut()) {
            return Ok(done);
        }
        let watch = Stopwatch::start();
        let lost = call.leading.lost();
        let outcome = tokio::select! {
            biased;
            done = &mut future => Ok(done),
            () = lost.cancelled() => Err(Refusal::not_leader(None)),
            () = tokio::time::sleep_until(call.deadline) => Err(Refusal::deadline()),
        };
        call.timing.lock_wait_us += watch.elapsed_us();
        metrics::LOCK_WAIT_SECONDS.observe(watch.elapsed().as_secs_f64());
        outcome
    }

    /// Waits a little for the intents of others to be resolved. `Ok`: look
    /// again. `who`: the transaction that has met them, if it is one.
    ///
    /// # Errors
    /// `LOCKED`, when the client had better push their transactions; `DEADLOCK`,
    /// when their owners wait for this one, which is younger.
    pub(super) async fn wait_for_intents(
        &self,
        call: &mut Call,
        patience: &mut Patience,
        who: Option<Contender>,
        refusal: Refusal,
    ) -> Result<(), Refusal> {
        let locks = &refusal.error.locks;
        metrics::INTENTS_MET.inc_by(locks.len() as u64);
        if let Some(who) = who {
            let owners = locks.iter().map(|lock| txn_id(&lock.txn_id));
            let owners = owners.collect::<Result<Vec<_>, _>>()?;
            call.met = Some(who.id);
            self.graph
                .meet(who, self.shard, owners)
                .map_err(gives_way)?;
        }
        let now = self.clock.now()?.earliest;
        let silent = |lock: &proto::Lock| {
            now.micros() > Timestamp::from_raw(lock.attempt_ts).micros() + SILENT_US
        };
        let left = patience.left();
        let Some(first) = locks.first().filter(|_| !left.is_zero()) else {
            return Err(refusal);
        };
        if locks.iter().any(silent) {
            return Err(refusal);
        }
        let place = self.place_of(first);
        let leading = call.leading.clone();
        let mut resolved = pin!(leading.resolved_at(&place).notified());
        resolved.as_mut().enable();
        // Resolved before we listened?
        let waiting_for = txn_id(&first.txn_id)?;
        let intent = mvcc::read_intent(&self.store.snapshot(), &place)?;
        if intent.is_none_or(|intent| intent.txn != waiting_for) {
            return Ok(());
        }
        let until = deadline_after(left);
        let waited = self
            .until(call, tokio::time::timeout_at(until, resolved))
            .await?;
        waited.map_err(|_| refusal)
    }

    /// A transaction waits for intents until an answer says something else.
    pub(super) fn passed_intents(&self, call: &Call, answer: &Answer) {
        let still = answer
            .as_ref()
            .is_err_and(|refusal| refusal.code() == ErrorCode::Locked);
        if let Some(txn) = call.met.filter(|_| !still) {
            self.graph.pass(txn, self.shard);
        }
    }

    fn place_of(&self, lock: &proto::Lock) -> Bytes {
        if lock.schema_table == 0 {
            keys::addressable(&lock.key)
        } else {
            keys::schema_key(self.shard, TableId(lock.schema_table))
        }
    }

    /// Waits until the clock allows a read at `at` (L3: `r <= e + read_lead`).
    pub(super) async fn wait_readable(
        &self,
        call: &mut Call,
        at: Timestamp,
    ) -> Result<(), Refusal> {
        loop {
            let earliest = self.clock.now()?.earliest;
            let bound = earliest.plus_micros(super::READ_LEAD_US);
            if at <= bound {
                return Ok(());
            }
            let missing = Duration::from_micros(at.micros() - bound.micros() + 1);
            self.until(call, tokio::time::sleep(missing)).await?;
        }
    }

    /// Confirms by a round begun now that this replica still leads.
    pub(super) async fn confirm(&self, call: &mut Call) -> Result<(), Refusal> {
        let term = call.leading.term;
        self.confirmed(call, self.consensus.read_index(term)).await
    }

    /// Waits for a round that was begun.
    pub(super) async fn confirmed(
        &self,
        call: &mut Call,
        round: impl Future<Output = Result<(), crate::consensus::ReadError>>,
    ) -> Result<(), Refusal> {
        use crate::consensus::ReadError;
        let watch = Stopwatch::start();
        let outcome = tokio::time::timeout_at(call.deadline, round).await;
        call.timing.read_index_us += watch.elapsed_us();
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ReadError::NotLeader { leader })) => Err(Refusal::not_leader(leader)),
            Ok(Err(ReadError::Unavailable(why))) => Err(Refusal::unavailable(why)),
            Err(_) => Err(Refusal::unavailable("no quorum within the request's time")),
        }
    }
}
