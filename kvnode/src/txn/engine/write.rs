//! Writes: one-round commits and prewrites.
//!
//! Latches first, then the timestamp cache, then the choice of the timestamp,
//! then the schema versions at that timestamp; whatever must be waited for is
//! waited for without latches, and the evaluation starts again.

use super::locking::lock_refusal;
use super::wait::Patience;
use super::{Answer, Call, Engine, SchemaCheck};
use crate::command::Op;
use crate::mvcc::{Store, keys};
use crate::rules::Rule;
use crate::txn::fate;
use crate::txn::latches::LatchGuard;
use crate::txn::leading::{Effects, Leading};
use crate::txn::lock_table::{Turn, Wait};
use crate::txn::metrics;
use crate::txn::placement::{self, On, Placement, Target, Writer};
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use bytes::Bytes;
use lineradb_common::{TableId, Timestamp, limits};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::oneshot;

/// How often a commit that moves over its own reads waits for writes in flight
/// before it asks its client to refresh.
const REFRESHES_MAX: usize = 3;

/// The two kinds of write.
enum Kind<'a> {
    OnePhase(&'a proto::OnePhaseCommit),
    Prewrite {
        min_ts: Timestamp,
        /// With the write of the anchor: all keys that the transaction writes.
        staged_keys: &'a [Bytes],
    },
}

/// A write on its way.
struct Attempt<'a> {
    kind: Kind<'a>,
    writer: Writer,
    targets: Vec<Target>,
    /// Tables whose schema version it writes.
    tables: Vec<TableId>,
    read_ts: Timestamp,
}

/// What became of it.
enum Written {
    /// It stands at this timestamp.
    At(Timestamp),
    /// Nothing was written: the reads must be refreshed up to here.
    Needs(Timestamp),
}

/// The outcome of looking over a commit's own reads in `(r, s]`.
enum Reads {
    Unchanged,
    InFlight(oneshot::Receiver<()>),
    LetTheClientRefresh,
}

impl<C: Consensus, S: Store> Engine<C, S> {
    pub(super) async fn one_phase_commit(
        self: &Arc<Self>,
        call: &mut Call,
        commit: &proto::OnePhaseCommit,
    ) -> Answer {
        let attempt = self.attempt(
            call,
            Kind::OnePhase(commit),
            commit.txn.as_ref(),
            commit.read_ts,
            &commit.writes,
        )?;
        let bytes: usize = attempt.targets.iter().map(target_bytes).sum();
        if bytes > limits::PROPOSAL_BYTES_MAX {
            return Err(Refusal::new(
                ErrorCode::LimitExceeded,
                format!("{bytes} bytes are too many for one round: lay them as intents"),
            ));
        }
        if !placement::in_shard(&call.descriptor, &attempt.writer.anchor) {
            return Err(Refusal::invalid(
                "the anchor of a one-round commit lies in its shard",
            ));
        }
        let leading = call.leading.clone();
        let _turn = self.pass_locks(call, &leading, &attempt).await?;
        let reply = match self.write(call, &attempt).await? {
            Written::At(at) => {
                if at > attempt.read_ts {
                    metrics::PUSHED_COMMITS.inc();
                }
                proto::OnePhaseCommitReply {
                    commit_ts: at.raw(),
                    needs_ts: 0,
                }
            }
            Written::Needs(at) => proto::OnePhaseCommitReply {
                commit_ts: 0,
                needs_ts: at.raw(),
            },
        };
        let observed = Timestamp::from_raw(reply.commit_ts);
        Ok((reply::Body::OnePhaseCommit(reply), observed))
    }

    pub(super) async fn prewrite(
        self: &Arc<Self>,
        call: &mut Call,
        prewrite: &proto::Prewrite,
    ) -> Answer {
        let min_ts = Timestamp::from_raw(prewrite.min_ts);
        self.check_ahead(min_ts)?;
        let attempt = self.attempt(
            call,
            Kind::Prewrite {
                min_ts,
                staged_keys: &prewrite.staged_keys,
            },
            prewrite.txn.as_ref(),
            prewrite.read_ts,
            &prewrite.writes,
        )?;
        let stages = !prewrite.staged_keys.is_empty();
        if stages {
            check_staging(&attempt, min_ts, &prewrite.staged_keys)?;
        }
        let leading = call.leading.clone();
        let turn = self.pass_locks(call, &leading, &attempt).await?;
        let (Written::At(at) | Written::Needs(at)) = self.write(call, &attempt).await?;
        turn.keep();
        let reply = proto::PrewriteReply {
            timestamp: at.raw(),
            staged: stages && at <= min_ts,
        };
        Ok((reply::Body::Prewrite(reply), Timestamp::ZERO))
    }

    fn attempt<'a>(
        &self,
        call: &Call,
        kind: Kind<'a>,
        meta: Option<&proto::TxnMeta>,
        read_ts: u64,
        writes: &[proto::Write],
    ) -> Result<Attempt<'a>, Refusal> {
        let writer = Writer::from_meta(meta)?;
        let read_ts = match read_ts {
            0 => self.clock.now()?.latest,
            at => Timestamp::from_raw(at),
        };
        let latest = self.check_ahead(read_ts)?;
        self.check_ahead(writer.attempt_ts)?;
        placement::check_attempt(&writer, latest)?;
        let targets = placement::targets(&call.descriptor, writes)?;
        if targets.is_empty() {
            return Err(Refusal::invalid("the request writes nothing"));
        }
        let tables = targets.iter().filter_map(|target| match target.on {
            On::Schema(table) => Some(table),
            On::Key(_) => None,
        });
        Ok(Attempt {
            kind,
            tables: tables.collect(),
            writer,
            targets,
            read_ts,
        })
    }

    async fn write(
        self: &Arc<Self>,
        call: &mut Call,
        attempt: &Attempt<'_>,
    ) -> Result<Written, Refusal> {
        let mut patience = Patience::new();
        let who = Some(attempt.writer.contender());
        let mut refreshes = 0;
        loop {
            let leading = call.leading.clone();
            let mut places: Vec<Bytes> = { attempt.targets.iter() }
                .map(|t| t.addressable.clone())
                .collect();
            // X1: whoever decides the attempt's fate latches its anchor, also
            // when nothing is written there.
            if matches!(attempt.kind, Kind::OnePhase(_))
                && placement::in_shard(&call.descriptor, &attempt.writer.anchor)
            {
                let anchor = keys::addressable(&attempt.writer.anchor);
                if !places.contains(&anchor) {
                    places.push(anchor);
                }
            }
            let latched = leading.latches.acquire(places, Timestamp::ZERO);
            let guard = self.until(call, latched).await?;
            self.still(call)?;
            // Again: it may have waited long, and the records of aborted
            // attempts that are too old are gone (X3).
            placement::check_attempt(&attempt.writer, self.clock.now()?.latest)?;
            self.trust(&leading)?;
            let snapshot = self.store.snapshot();
            if placement::in_shard(&call.descriptor, &attempt.writer.anchor) {
                let one_phase = matches!(attempt.kind, Kind::OnePhase(_));
                let fate =
                    placement::earlier_fate(&snapshot, &attempt.writer, one_phase, self.rules)?;
                if let Some(at) = fate {
                    return Ok(Written::At(at));
                }
            }
            self.check_age(call, attempt.read_ts)?;
            let placement = match self.place(call, attempt, &snapshot) {
                Ok(placement) => placement,
                Err(refusal) if refusal.code() == ErrorCode::Locked => {
                    drop(guard);
                    self.wait_for_intents(call, &mut patience, who, refusal)
                        .await?;
                    continue;
                }
                Err(refusal) => return self.refuse(call, attempt, guard, refusal).await,
            };
            let at = placement.timestamp;
            // L3: what it reads at `at` (its own reads, schema versions) is in
            // the memory of this leader alone; the next one starts that much
            // above its clock.
            if self.rules.hold(Rule::EffectsReadable)
                && at > self.clock.now()?.earliest.plus_micros(super::READ_LEAD_US)
            {
                self.check_ahead(at)?;
                drop(guard);
                self.wait_readable(call, at).await?;
                continue;
            }
            if let Kind::OnePhase(commit) = &attempt.kind
                && at > attempt.read_ts
            {
                match self.may_move(call, attempt, commit, &guard, at)? {
                    Reads::Unchanged => {}
                    Reads::InFlight(changed) if refreshes < REFRESHES_MAX => {
                        refreshes += 1;
                        drop(guard);
                        let _ = self.until(call, changed).await?;
                        continue;
                    }
                    // The refresh goes above what was recorded here for this
                    // attempt: the next one has another id.
                    Reads::InFlight(_) | Reads::LetTheClientRefresh => {
                        return Ok(Written::Needs(at.next()));
                    }
                }
            }
            self.check_ahead(at)?;
            guard.set_timestamp(at);
            let effect = if self.rules.hold(Rule::SchemaAtEffect) {
                at
            } else {
                attempt.read_ts
            };
            let own = Some(attempt.writer.id);
            match self.check_schema(call, effect, own, Some(&guard), &attempt.tables)? {
                SchemaCheck::Same => {}
                SchemaCheck::InFlight(changed) => {
                    drop(guard);
                    let _ = self.until(call, changed).await?;
                    continue;
                }
                SchemaCheck::Refused(refusal) if refusal.code() == ErrorCode::Locked => {
                    drop(guard);
                    self.wait_for_intents(call, &mut patience, who, refusal)
                        .await?;
                    continue;
                }
                SchemaCheck::Refused(refusal) => {
                    drop(guard);
                    self.confirm(call).await?;
                    return Err(refusal);
                }
            }
            if self.land(call, attempt, guard, &placement).await? {
                return Ok(Written::At(at));
            }
        }
    }

    /// Memory locks of others come first (X4: only so that it waits in line).
    async fn pass_locks<'a>(
        &self,
        call: &mut Call,
        leading: &'a Leading,
        attempt: &Attempt<'_>,
    ) -> Result<Turn<'a>, Refusal> {
        let keys = attempt
            .targets
            .iter()
            .filter_map(|target| match &target.on {
                On::Key(key) => Some(key),
                On::Schema(_) => None,
            });
        let wait = Wait::Until(call.deadline);
        let passed = leading.locks.pass(keys, attempt.writer.contender(), wait);
        self.until(call, passed).await?.map_err(lock_refusal)
    }

    fn place(
        &self,
        call: &Call,
        attempt: &Attempt<'_>,
        snapshot: &S::Snapshot,
    ) -> Result<Placement, Refusal> {
        let at_least = match attempt.kind {
            Kind::OnePhase(_) => Timestamp::ZERO,
            Kind::Prewrite { min_ts, .. } => min_ts,
        };
        let leading = &call.leading;
        let lowest = |target: &Target| match &target.on {
            On::Key(key) => leading.cache.lowest_write(key, attempt.writer.id),
            On::Schema(table) => {
                let floor = leading.cache.floor().next();
                leading.schema.lowest_write(*table).max(floor)
            }
        };
        let (writer, targets) = (&attempt.writer, &attempt.targets[..]);
        placement::place(snapshot, writer, targets, attempt.read_ts, at_least, lowest)
    }

    /// A refusal that tells about the data is a read (L3): into the cache, and
    /// confirmed. The latches stood since before the snapshot.
    async fn refuse<T>(
        &self,
        call: &mut Call,
        attempt: &Attempt<'_>,
        guard: LatchGuard,
        refusal: Refusal,
    ) -> Result<T, Refusal> {
        if refusal.code() == ErrorCode::ConditionFailed {
            let at = attempt.read_ts.max(refusal.observed);
            let key = &refusal.error.key;
            call.leading
                .cache
                .read_point(key, at, Some(attempt.writer.id));
            self.still(call)?;
            drop(guard);
            self.wait_readable(call, at).await?;
            self.confirm(call).await?;
        }
        Err(refusal)
    }

    /// X0: whether the leader may move the commit to `at` by itself.
    fn may_move(
        &self,
        call: &Call,
        attempt: &Attempt<'_>,
        commit: &proto::OnePhaseCommit,
        guard: &LatchGuard,
        at: Timestamp,
    ) -> Result<Reads, Refusal> {
        if commit.reads_elsewhere {
            return Ok(Reads::LetTheClientRefresh);
        }
        // What the isolation level does not ask to hold at `at` is not in it.
        if commit.reads.is_empty() {
            return Ok(Reads::Unchanged);
        }
        // The same order as any read at `at`: cache, writes in flight, snapshot.
        let own = Some(attempt.writer.id);
        let leading = &call.leading;
        for span in &commit.reads {
            leading.cache.read_span(&span.start, &span.end, at, own);
        }
        let instant = leading.latches.instant();
        for span in &commit.reads {
            let lower = keys::addressable(&span.start);
            let upper = keys::addressable_end(&span.end);
            let blocker = leading
                .latches
                .span_blocker(&lower, &upper, at, instant, Some(guard));
            if let Some(changed) = blocker {
                return Ok(Reads::InFlight(changed));
            }
        }
        let snapshot = self.store.snapshot();
        for span in &commit.reads {
            let changed = super::read::changed_in_span(&snapshot, span, attempt.read_ts, at, own);
            match changed {
                Ok((None, _)) => {}
                Ok((Some(key), _)) => {
                    let message = "a key that the transaction read was written meanwhile";
                    return Err(Refusal::conflict(key, message));
                }
                // Undecided: the client's refresh meets and pushes it.
                Err(crate::mvcc::Error::Locked(_)) => return Ok(Reads::LetTheClientRefresh),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Reads::Unchanged)
    }

    async fn land(
        &self,
        call: &mut Call,
        attempt: &Attempt<'_>,
        guard: LatchGuard,
        placement: &Placement,
    ) -> Result<bool, Refusal> {
        let (writer, targets) = (&attempt.writer, &attempt.targets[..]);
        let at = placement.timestamp;
        let mut effects = Effects {
            tables: attempt.tables.clone(),
            ..Effects::default()
        };
        let parts = match attempt.kind {
            Kind::OnePhase(_) => {
                effects.release = Some(writer.id);
                let own = targets.iter().zip(&placement.own);
                let own = own.filter(|(_, own)| own.is_some());
                effects.resolved = own.map(|(t, _)| t.addressable.clone()).collect();
                let ops = placement::commit_ops(writer, targets, placement, at, self.rules);
                vec![(ops, Vec::new())]
            }
            Kind::Prewrite {
                min_ts,
                staged_keys,
            } => {
                let mut ops = placement::intent_ops(writer, targets, placement, at);
                // A write that was pushed voids the commit at `min_ts`: its
                // coordinator has to refresh first (X0, X3).
                let staged = match at <= min_ts && !staged_keys.is_empty() {
                    true => fate::stage(&self.store.snapshot(), writer, at, staged_keys)?,
                    false => None,
                };
                match staged {
                    Some(record) => {
                        ops.push(record);
                        vec![(ops, Vec::new())]
                    }
                    None => in_proposals(ops),
                }
            }
        };
        if parts.is_empty() {
            return Ok(true);
        }
        self.propose(call, guard, parts, effects).await
    }
}

/// A record is staged with the write of its anchor, in one proposal, and declares
/// every write: one that it does not name would be missed by nobody (X3).
fn check_staging(
    attempt: &Attempt<'_>,
    min_ts: Timestamp,
    staged_keys: &[Bytes],
) -> Result<(), Refusal> {
    let names: HashSet<&[u8]> = staged_keys.iter().map(|key| &key[..]).collect();
    let keys = { attempt.targets.iter() }.map(Target::user_key);
    let anchored = keys.clone().any(|key| key == attempt.writer.anchor);
    let declared = keys.clone().all(|key| names.contains(&key[..]));
    let names: usize = staged_keys.iter().map(|key| key.len() + 4).sum();
    let bytes: usize = attempt.targets.iter().map(target_bytes).sum();
    let fits = names <= fate::RECORD_BYTES_MAX && bytes + names <= limits::PROPOSAL_BYTES_MAX;
    let plain = attempt.tables.is_empty() && min_ts >= attempt.read_ts;
    match anchored && declared && fits && plain {
        true => Ok(()),
        false => Err(Refusal::invalid(
            "a record is staged with the write of its anchor, declares every write, \
             none of a schema, and stands at the timestamp of the commit",
        )),
    }
}

/// Cuts writes that need not be atomic into proposals of bearable size.
pub(super) fn in_proposals(ops: Vec<Op>) -> Vec<(Vec<Op>, Vec<crate::command::Expect>)> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = 0;
    for op in ops {
        let size = op.key.len() + op.value.as_ref().map_or(0, Bytes::len) + 16;
        if bytes + size > limits::PROPOSAL_BYTES_MAX && !part.is_empty() {
            parts.push((std::mem::take(&mut part), Vec::new()));
            bytes = 0;
        }
        bytes += size;
        part.push(op);
    }
    if !part.is_empty() {
        parts.push((part, Vec::new()));
    }
    parts
}

fn target_bytes(target: &Target) -> usize {
    target.addressable.len() + target.value.as_ref().map_or(0, Bytes::len) + 32
}
