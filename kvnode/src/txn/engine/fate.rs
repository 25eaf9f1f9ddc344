//! The commit point, pushes, recovery and resolution, ordered by the latches of the keys
//! concerned.

use super::write::in_proposals;
use super::{Answer, Call, Engine};
use crate::mvcc::{Store, keys};
use crate::rules::Rule;
use crate::txn::fate::{self, Decision};
use crate::txn::latches::LatchGuard;
use crate::txn::leading::Effects;
use crate::txn::metrics;
use crate::txn::placement::{self, Writer, check_key, txn_id};
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use bytes::Bytes;
use lineradb_common::{TableId, Timestamp, spawn};
use lineradb_proto::shard::v1::{self as proto, reply};
use std::sync::Arc;

impl<C: Consensus, S: Store> Engine<C, S> {
    /// Latches that order deciders among each other and against writes of the
    /// same key, and that no read waits for.
    async fn latch(&self, call: &mut Call, places: Vec<Bytes>) -> Result<LatchGuard, Refusal> {
        let leading = call.leading.clone();
        let latched = leading.latches.acquire(places, Timestamp::MAX);
        let guard = self.until(call, latched).await?;
        self.still(call)?;
        Ok(guard)
    }

    /// Carries a decision out; `None`: what it rested on changed, start over.
    async fn carry_out<T>(
        &self,
        call: &mut Call,
        guard: LatchGuard,
        decision: Decision<T>,
    ) -> Result<Option<T>, Refusal> {
        match decision {
            Decision::Known(known) => Ok(Some(known)),
            Decision::Write { ops, expect, then } => {
                let parts = vec![(ops, expect)];
                let applied = self.propose(call, guard, parts, Effects::default()).await?;
                Ok(applied.then_some(then))
            }
        }
    }

    pub(super) async fn commit_record(
        self: &Arc<Self>,
        call: &mut Call,
        request: &proto::CommitRecord,
    ) -> Answer {
        let writer = Writer::from_meta(request.txn.as_ref())?;
        let commit_ts = Timestamp::from_raw(request.commit_ts);
        if commit_ts.is_zero() {
            return Err(Refusal::invalid("a commit has a timestamp"));
        }
        self.check_ahead(commit_ts)?;
        check_key(&call.descriptor, &writer.anchor)?;
        let outcome = loop {
            let place = keys::addressable(&writer.anchor);
            let guard = self.latch(call, vec![place]).await?;
            // Under the latch: the age counts when the record is written.
            placement::check_attempt(&writer, self.clock.now()?.latest)?;
            let snapshot = self.store.snapshot();
            let decision = fate::commit_record(&snapshot, &writer, request, self.rules)?;
            if let Some(outcome) = self.carry_out(call, guard, decision).await? {
                break outcome;
            }
        };
        let observed = match &outcome {
            proto::commit_record_reply::Outcome::Committed(at) => *at,
            proto::commit_record_reply::Outcome::Aborted(_) => 0,
        };
        let reply = proto::CommitRecordReply {
            outcome: Some(outcome),
        };
        let body = reply::Body::CommitRecord(reply);
        Ok((body, Timestamp::from_raw(observed)))
    }

    pub(super) async fn push(self: &Arc<Self>, call: &mut Call, request: &proto::Push) -> Answer {
        let id = txn_id(&request.txn_id)?;
        check_key(&call.descriptor, &request.anchor)?;
        let status = loop {
            let place = keys::addressable(&request.anchor);
            let guard = self.latch(call, vec![place]).await?;
            let now = self.clock.now()?.earliest;
            let silence = call.leading.coordinators.silence(id, now);
            let decision = fate::push(&self.store.snapshot(), request, id, now, silence)?;
            if let Some(status) = self.carry_out(call, guard, decision).await? {
                break status;
            }
        };
        let observed = match status {
            proto::push_reply::Status::Committed(at) => Timestamp::from_raw(at),
            _ => Timestamp::ZERO,
        };
        let reply = proto::PushReply {
            status: Some(status),
        };
        Ok((reply::Body::Push(reply), observed))
    }

    pub(super) async fn recover(
        self: &Arc<Self>,
        call: &mut Call,
        request: &proto::Recover,
    ) -> Answer {
        let id = txn_id(&request.txn_id)?;
        check_key(&call.descriptor, &request.anchor)?;
        self.check_ahead(Timestamp::from_raw(request.staged_ts))?;
        let status = loop {
            let place = keys::addressable(&request.anchor);
            let guard = self.latch(call, vec![place]).await?;
            let decision = fate::recover(&self.store.snapshot(), request, id, self.rules)?;
            let decides = matches!(decision, Decision::Write { .. });
            if let Some(status) = self.carry_out(call, guard, decision).await? {
                metrics::RECOVERIES.inc_by(u64::from(decides));
                break status;
            }
        };
        let observed = match status {
            proto::recover_reply::Status::Committed(at) => Timestamp::from_raw(at),
            _ => Timestamp::ZERO,
        };
        let reply = proto::RecoverReply {
            status: Some(status),
        };
        Ok((reply::Body::Recover(reply), observed))
    }

    pub(super) async fn resolve(
        self: &Arc<Self>,
        call: &mut Call,
        request: &proto::Resolve,
    ) -> Answer {
        let id = txn_id(&request.txn_id)?;
        for key in &request.keys {
            check_key(&call.descriptor, key)?;
        }
        let commit_ts = Timestamp::from_raw(request.commit_ts);
        self.check_ahead(commit_ts)?;
        let commit_ts = (!commit_ts.is_zero()).then_some(commit_ts);
        let intents = fate::intents_at(self.shard, &request.keys, &request.schema_tables);
        let places: Vec<Bytes> = intents.iter().map(|at| at.addressable.clone()).collect();
        let guard = self.latch(call, places.clone()).await?;
        let ops = fate::resolve(&self.store.snapshot(), id, commit_ts, &intents)?;
        let effects = Effects {
            tables: request.schema_tables.iter().map(|t| TableId(*t)).collect(),
            resolved: places,
            release: Some(id),
        };
        if ops.is_empty() {
            drop(guard);
            // X3: its sender takes every intent for resolved and forgets the
            // record. One that leads no more may never have had the intents.
            if self.rules.hold(Rule::NothingLeftConfirmed) {
                self.confirm(call).await?;
            }
            call.leading.applied(&effects);
        } else {
            self.propose(call, guard, in_proposals(ops), effects)
                .await?;
        }
        let reply = reply::Body::Resolve(proto::ResolveReply {});
        Ok((reply, Timestamp::ZERO))
    }

    pub(super) async fn forget_records(
        self: &Arc<Self>,
        call: &mut Call,
        request: &proto::ForgetRecords,
    ) -> Answer {
        let mut records = Vec::with_capacity(request.records.len());
        for record in &request.records {
            check_key(&call.descriptor, &record.anchor)?;
            records.push((record.anchor.clone(), txn_id(&record.txn_id)?));
        }
        // Without latches: whoever decided on the absence of such a record holds
        // the anchor's until its verdict is there, and the record came later.
        let guard = self.latch(call, Vec::new()).await?;
        let snapshot = self.store.snapshot();
        let ops = spawn::stalling(|| fate::forget(&snapshot, &records))?;
        if !ops.is_empty() {
            self.propose(call, guard, in_proposals(ops), Effects::default())
                .await?;
        }
        let reply = reply::Body::ForgetRecords(proto::ForgetRecordsReply {});
        Ok((reply, Timestamp::ZERO))
    }
}
