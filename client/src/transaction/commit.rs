//! The end of a transaction (PROTOCOLS section 4).
//!
//! ```text
//!  no writes               -> nothing is sent
//!  writes in one shard     -> OnePhaseCommit, one consensus round
//!  writes in several       -> Prewrite to all at once, and with the anchor's
//!                             part a record that says STAGING at r
//!                             all landed at r: the commit point, one round
//!                             else, s = the largest timestamp of all:
//!                               refresh everything read in (r, s]
//!                               CommitRecord at the anchor: the commit point
//!                             afterwards, in the background: CommitRecord if
//!                             it is not there yet, Resolve
//! ```
//!
//! The record that says STAGING lists every write of the transaction, so that
//! whoever finds it can see for himself whether it is committed (X3: *parallel
//! commit*; CockroachDB, SIGMOD 2020, section 3). Transactions with more keys than
//! a record holds and those that change a schema take the second round.
//!
//! What may be reported: *committed* after the leader of the anchor said so, or
//! all leaders that they have what was staged; *aborted* when
//! the commit point was certainly never reached; else the attempt is decided
//! by a forced push at its anchor, which either finds it committed or makes
//! its commit impossible (X1); *unknown* when even that cannot be learnt in
//! time. An attempt in doubt is never sent again.

use super::items::WriteItem;
use super::plan::Plan;
use super::refresh::ReadPart;
use super::settle::{Intents, commit_error};
use super::{Inner, schema};
use crate::background::id_bytes;
use crate::backoff::Backoff;
use crate::failure::{Effect, Failure};
use crate::metrics::Way;
use crate::router::{At, Context, Routed, to_proto};
use crate::shard_map::span_of;
use crate::types::{Commit, EarlierOutcome, Span};
use crate::{Error, Result};
use lineradb_common::{TableId, Timestamp, limits};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{Reply, ShardDescriptor, commit_record_reply, reply, request};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes of writes that one consensus round may commit alone.
const ONE_PHASE_BYTES_MAX: usize = limits::PROPOSAL_BYTES_MAX / 4;
/// Bytes of writes in one Prewrite: what one node evaluates, logs and applies
/// at a stretch, so that a bulk load leaves room for others in between.
const PART_BYTES_MAX: usize = 1 << 20;

/// How a commit ended well.
enum Done {
    At(Timestamp),
    Earlier(EarlierOutcome),
}

impl Inner {
    pub(super) async fn commit(self: &Arc<Self>) -> Result<Commit> {
        let _alone = self.gate.write().await;
        let plan = self.plan()?;
        if let Err(error) = self.check_clock() {
            self.end();
            return Err(error);
        }
        let read_ts = plan.read_ts;
        let only_reads = plan.items.is_empty();
        let result = if plan.items.is_empty() {
            // X4: what was read under a lock holds together with the rest.
            let proven = match plan.held.is_empty() {
                true => Ok(()),
                false => self.catch_up(&plan, None, &self.context()).await,
            };
            proven.map(|()| Done::At(read_ts))
        } else {
            self.carry_out(plan).await
        };
        self.end();
        let result = match result {
            Ok(Done::At(at)) => Ok(Commit {
                timestamp: at,
                earlier: None,
            }),
            Ok(Done::Earlier(earlier)) => Ok(Commit {
                timestamp: earlier.timestamp,
                earlier: Some(earlier),
            }),
            Err(error) => Err(error),
        };
        // A transaction that only read is certain when what it saw is: its own
        // timestamp wrote nothing.
        let written = match &result {
            Ok(commit) if commit.timestamp > read_ts || commit.earlier.is_some() => {
                commit.timestamp
            }
            Ok(commit) => commit.timestamp.min(read_ts),
            Err(_) => Timestamp::ZERO,
        };
        match (self.wait_until_certain(written).await, result) {
            // What it wrote is there; what it only read can be read again.
            (Ok(()), Ok(commit)) if only_reads => self.check_clock().map(|()| commit),
            (Err(clock), Ok(_)) if only_reads => Err(clock),
            (Err(clock), Ok(_)) => Err(Error::Unknown {
                message: format!("committed, but the clock was lost before the answer: {clock}"),
            }),
            (_, result) => result,
        }
    }

    async fn carry_out(self: &Arc<Self>, mut plan: Plan) -> Result<Done> {
        let context = self.context();
        let outcome = loop {
            let parts = self
                .shared
                .router
                .group(plan.items.clone(), usize::MAX, context.deadline)
                .await
                .map_err(Failure::into_error)?;
            let weight: usize = plan.items.iter().map(Routed::weight).sum();
            let schemas = plan
                .items
                .iter()
                .any(|item| matches!(item, WriteItem::Schema { .. }));
            // DDL always goes the long way (S2).
            let one = parts.len() == 1 && !schemas && weight <= ONE_PHASE_BYTES_MAX;
            match parts.first().filter(|_| one) {
                Some((shard, _)) => {
                    self.catch_up(&plan, Some(&span_of(shard)), &context)
                        .await?;
                    match self.one_phase(&mut plan, shard, &context).await {
                        Ok(Some(done)) => break Ok(done),
                        Ok(None) => {}
                        Err(error) => break Err(error),
                    }
                }
                None => {
                    self.catch_up(&plan, None, &context).await?;
                    break self.several_shards(&plan, context).await;
                }
            }
        };
        // X2: somebody has used the key before. A row that an earlier request under it
        // has written says so as well, and may say it first.
        match (outcome, &plan.keyed) {
            (Err(Error::ConditionFailed { key }), Some(keyed)) => {
                match self.first_outcome().await {
                    Err(Error::Conflict { .. }) if key != *keyed => {
                        Err(Error::ConditionFailed { key })
                    }
                    first => first.map(Done::Earlier),
                }
            }
            (outcome, _) => outcome,
        }
    }

    /// Commits in one round. `None`: nothing was written, try again (the plan
    /// has moved up, or the shard is another one).
    async fn one_phase(
        &self,
        plan: &mut Plan,
        shard: &ShardDescriptor,
        context: &Context<'_>,
    ) -> Result<Option<Done>> {
        let here = span_of(shard);
        let mut reads = Vec::new();
        let mut reads_elsewhere = false;
        let mut tables: BTreeSet<TableId> =
            plan.items.iter().filter_map(WriteItem::table).collect();
        for part in plan.to_prove() {
            let inside = part.span.intersect(&here);
            reads_elsewhere |= inside != part.span;
            if !inside.is_empty() {
                tables.extend(part.table);
                if !part.schema_only {
                    reads.push(to_proto(&inside));
                }
            }
        }
        let meta = self.meta(plan)?;
        let commit = pb::OnePhaseCommit {
            txn: Some(meta.clone()),
            read_ts: plan.read_ts.raw(),
            writes: plan.items.iter().map(WriteItem::to_proto).collect(),
            reads,
            reads_elsewhere,
        };
        let message = (
            request::Body::OnePhaseCommit(commit),
            schema(&plan.versions, tables),
        );
        let router = &self.shared.router;
        let answer = router
            .call_contended(shard, &message, Effect::Once, context)
            .await;
        let reply = match answer {
            Ok(Reply {
                body: Some(reply::Body::OnePhaseCommit(reply)),
                ..
            }) => reply,
            Ok(_) => {
                let at = self.decide(&meta, "a node sent nonsense", context).await?;
                return Ok(Some(Done::At(at)));
            }
            Err(Failure::Unknown(why)) => {
                let at = self.decide(&meta, &why, context).await?;
                return Ok(Some(Done::At(at)));
            }
            Err(Failure::Moved(_)) => {
                let mut pause = Backoff::routing();
                if !pause.pause(context.deadline).await {
                    return Err(Error::unavailable("the shard kept changing"));
                }
                return Ok(None);
            }
            Err(failure) => return Err(commit_error(failure)),
        };
        if reply.commit_ts != 0 {
            context.receipt.add(|t| t.consensus_rounds += 1);
            Way::OneShard.count();
            return Ok(Some(Done::At(Timestamp::from_raw(reply.commit_ts))));
        }
        let needed = Timestamp::from_raw(reply.needs_ts);
        if needed <= plan.read_ts {
            return Err(Error::internal("a commit was neither made nor refused"));
        }
        let mut parts = plan.to_prove();
        let written = plan.items.iter().filter_map(|item| match item {
            WriteItem::Key { key, entry } => Some((key, entry.table)),
            WriteItem::Schema { .. } => None,
        });
        parts.extend(self.written(written));
        self.refresh(parts, &plan.versions, plan.read_ts, needed, context)
            .await?;
        plan.read_ts = needed;
        Ok(None)
    }

    /// Commits over several shards: in one round where it can be staged and
    /// nothing is pushed, else in two.
    async fn several_shards(
        self: &Arc<Self>,
        plan: &Plan,
        mut context: Context<'_>,
    ) -> Result<Done> {
        let meta = self.meta(plan)?;
        context.contention.holder = Some((Timestamp::from_raw(meta.attempt_ts), self.id));
        self.state.lock().committing = vec![plan.anchor.clone()];
        self.keep_alive();
        let mut intents = Intents::new(self, &meta, &plan.items);
        let declared = plan.declared();

        let make = |_: &ShardDescriptor, items: &[WriteItem]| {
            let anchored = items.iter().any(|item| *item.start() == plan.anchor);
            let prewrite = pb::Prewrite {
                txn: Some(meta.clone()),
                read_ts: plan.read_ts.raw(),
                min_ts: plan.read_ts.raw(),
                writes: items.iter().map(WriteItem::to_proto).collect(),
                staged_keys: match anchored {
                    true => declared.clone(),
                    false => Vec::new(),
                },
            };
            let tables = items.iter().filter_map(WriteItem::table);
            (
                request::Body::Prewrite(prewrite),
                schema(&plan.versions, tables),
            )
        };
        let router = &self.shared.router;
        let laid = router
            .scatter(
                plan.items.clone(),
                make,
                Effect::Once,
                PART_BYTES_MAX,
                &context,
            )
            .await;
        let laid = match laid {
            Ok(laid) => laid,
            // All may have landed all the same, and somebody may have found out
            // already, while this took long.
            Err(Failure::Unknown(why)) if !declared.is_empty() => {
                let at = self.decide(&meta, &why, &context).await?;
                intents.committed(at, None);
                return Ok(Done::At(at));
            }
            // A part that has not landed never will, and without a record
            // nothing is committed, whatever was laid.
            Err(failure) => return Err(commit_error(failure)),
        };

        context.receipt.add(|t| t.consensus_rounds += 1);
        let mut commit_ts = plan.read_ts;
        let mut staged = false;
        let mut parts = Vec::new();
        for (items, reply) in laid {
            let Some(reply::Body::Prewrite(reply)) = reply.body else {
                let at = self.decide(&meta, "a node sent nonsense", &context).await?;
                intents.committed(at, None);
                return Ok(Done::At(at));
            };
            let at = Timestamp::from_raw(reply.timestamp);
            commit_ts = commit_ts.max(at);
            staged |= reply.staged;
            parts.push((items, at));
        }
        if staged && commit_ts == plan.read_ts {
            // X3: committed. What says so may come later.
            Way::Parallel.count();
            intents.committed(commit_ts, Some(plan.commit_record(&meta, commit_ts)));
            return Ok(Done::At(commit_ts));
        }
        if commit_ts > plan.read_ts {
            self.validate(plan, &parts, commit_ts, &context).await?;
        }
        let done = self.record(plan, &meta, commit_ts, &context).await?;
        if let Done::At(at) = &done {
            Way::TwoRounds.count();
            intents.committed(*at, None);
        }
        Ok(done)
    }

    /// Proves at the commit timestamp what the transaction read, and the
    /// schema versions of what it wrote (S1).
    async fn validate(
        &self,
        plan: &Plan,
        laid: &[(Vec<WriteItem>, Timestamp)],
        commit_ts: Timestamp,
        context: &Context<'_>,
    ) -> Result<()> {
        let mut parts = plan.to_prove();
        for (items, _) in laid.iter().filter(|(_, at)| *at < commit_ts) {
            let mut seen = BTreeSet::new();
            for item in items {
                if let Some(table) = item.table()
                    && seen.insert(table)
                {
                    parts.push(ReadPart {
                        table: Some(table),
                        span: Span::point(item.start()),
                        schema_only: true,
                    });
                }
            }
        }
        self.refresh(parts, &plan.versions, plan.read_ts, commit_ts, context)
            .await
    }

    /// The commit point.
    async fn record(
        &self,
        plan: &Plan,
        meta: &pb::TxnMeta,
        commit_ts: Timestamp,
        context: &Context<'_>,
    ) -> Result<Done> {
        let record = plan.commit_record(meta, commit_ts);
        let make = |_: &ShardDescriptor| (request::Body::CommitRecord(record.clone()), Vec::new());
        let at = At::Key(plan.anchor.clone());
        let answer = self
            .shared
            .router
            .call_at(at, make, Effect::Once, context)
            .await;
        context.receipt.add(|t| t.consensus_rounds += 1);
        let outcome = match answer {
            Ok((_, reply)) => match reply.body {
                Some(reply::Body::CommitRecord(reply)) => reply.outcome,
                _ => None,
            },
            Err(Failure::Unknown(why)) => {
                return self.decide(meta, &why, context).await.map(Done::At);
            }
            Err(failure) => {
                return Err(commit_error(failure));
            }
        };
        match outcome {
            Some(commit_record_reply::Outcome::Committed(at)) => {
                Ok(Done::At(Timestamp::from_raw(at)))
            }
            Some(commit_record_reply::Outcome::Aborted(_)) => Err(Error::Aborted {
                message: "its recovery came first".into(),
            }),
            None => {
                let at = self.decide(meta, "a node sent nonsense", context).await?;
                Ok(Done::At(at))
            }
        }
    }

    fn meta(&self, plan: &Plan) -> Result<pb::TxnMeta> {
        Ok(pb::TxnMeta {
            id: id_bytes(self.id),
            anchor: plan.anchor.clone(),
            attempt_ts: self.shared.clock.now()?.latest.raw(),
            isolation: self.options.isolation.to_proto() as i32,
            start_ts: self.started.raw(),
        })
    }
}
