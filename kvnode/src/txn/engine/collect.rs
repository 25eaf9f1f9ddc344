//! Collects history that is too old to be read (PROTOCOLS X5).
//!
//! ```text
//! what is protected? (asked of the metaservice)
//!    |
//! threshold raised in memory, then replicated: from now on nothing below is
//!    |                                          read, written or refreshed
//!    |  at least 11 minutes
//! sweep: garbage at or below that threshold is deleted, piece by piece, by
//!        ordinary replicated writes: all replicas stay the same
//! ```
//!
//! Only the leader evaluates, and it raises its own threshold before it proposes
//! the raise; a new leader has applied everything that its predecessors proposed
//! with effect before it looks the threshold up. So a request that passed the
//! check sees a snapshot in which nothing at or above its timestamp is missing.
//!
//! **Why the pause.** A commit attempt in doubt is looked for by the id on its
//! first version (X1), for ten minutes from the attempt's own timestamp. A
//! version below a threshold was evaluated before that threshold was raised, so
//! its attempt is older than the raise; eleven minutes later a push of it is
//! refused as too old, whether it finds the version or not. The same holds for
//! records of aborted attempts (X3). A new leader counts from the beginning of
//! its leadership.
//!
//! **What is protected** (a long read, a backup) is never raised above: the threshold
//! rises to the kept history before the time of the metaservice's answer, or to the
//! oldest timestamp protected in it, whichever is less. What was protected later is
//! younger than that ([`Protected`]). Without an answer no threshold rises.
//!
//! **Outcomes of idempotency keys** (X2) go 25 hours below the threshold. A
//! transaction may commit at a timestamp that old only if it began then, and no
//! leader accepts one that began more than the kept history and an hour ago, so
//! an outcome stands for 24 hours after its commit at least.

use super::{Call, Engine};
use crate::command::{Body, Command, Op, Tree, Verdict};
use crate::mvcc::collect::{self, Budget, Found, Horizon};
use crate::mvcc::{self, Reader, Store, keys};
use crate::rules::Rule;
use crate::txn::leading::Leading;
use crate::txn::metrics;
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use bytes::Bytes;
use lineradb_common::clock::deadline_after;
use lineradb_common::limits::HISTORY_MIN;
use lineradb_common::{ShardId, Timestamp, spawn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between the raise of a threshold and its sweep.
const PAUSE_MIN: Duration = Duration::from_secs(11 * 60);
/// What a leader's clock allows below the kept history, should the threshold
/// lag behind.
const LAG_MAX: Duration = Duration::from_secs(60 * 60);
/// How far below the threshold outcomes of idempotency keys stay.
const OUTCOMES: Duration = Duration::from_secs(25 * 60 * 60);
/// Records of aborted attempts older than this go.
const ATTEMPTS: Duration = Duration::from_secs(20 * 60);
/// A piece: a few milliseconds.
const BUDGET: Budget = Budget {
    examined: 2_000,
    found: 2_000,
};
/// Between two pieces of a sweep: it takes a tenth of a core, no more.
const BREATH: Duration = Duration::from_millis(20);
/// Without a quorum the next shard comes first.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How much history is kept; 0: all of it.
#[derive(Debug, Default)]
pub(super) struct History(AtomicU64);

impl History {
    fn kept(&self) -> Option<Duration> {
        let micros = self.0.load(Ordering::Relaxed);
        (micros != 0).then(|| Duration::from_micros(micros))
    }
}

/// Which history has to stay, as the metaservice has said.
#[derive(Clone, Copy, Debug)]
pub struct Protected {
    /// When it said so; what was protected before is in it.
    pub as_of: Timestamp,
    /// The oldest timestamp that is protected.
    pub oldest: Option<Timestamp>,
}

impl Protected {
    /// How far a threshold may rise where so much history is kept.
    fn threshold(&self, kept: Duration) -> Timestamp {
        let usual = before(self.as_of, kept);
        self.oldest.map_or(usual, |oldest| usual.min(oldest))
    }
}

/// Where one leadership's collection stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collection {
    /// The threshold that is to be swept, and since when it has been in force
    /// at least.
    raised: Option<(Timestamp, Timestamp)>,
    /// When that was done last.
    pub(super) swept: Timestamp,
    /// The sweep has seen what a higher threshold makes garbage.
    pending: bool,
    /// Nothing is left that could become garbage without another write after
    /// this one.
    clean_at: Option<u64>,
}

fn before(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_micros(now.micros().saturating_sub(by.as_micros() as u64))
}

/// The threshold of a shard as stored.
pub(super) fn stored_threshold(reader: &impl Reader, shard: ShardId) -> mvcc::Result<Timestamp> {
    let Some(value) = reader.get(Tree::Txn, &keys::threshold_key(shard))? else {
        return Ok(Timestamp::ZERO);
    };
    let bytes = value.as_ref().try_into().map_err(|_| {
        mvcc::Error::Node(crate::Error::Corrupt(
            "a threshold of the collection".into(),
        ))
    })?;
    Ok(Timestamp::from_raw(u64::from_be_bytes(bytes)))
}

impl<C: Consensus, S: Store> Engine<C, S> {
    /// How much history is kept from now on.
    pub fn keep_history(&self, history: Duration) {
        // X1: the ids of first writes are needed for so long.
        let micros = history.max(HISTORY_MIN).as_micros() as u64;
        self.history.0.store(micros, Ordering::Relaxed);
    }

    /// Refuses what needs history that may be gone. Comes after the snapshot
    /// was taken on which the request is evaluated.
    pub(super) fn check_history(&self, call: &Call, at: Timestamp) -> Result<(), Refusal> {
        let oldest = call.leading.threshold();
        if at < oldest && self.rules.hold(Rule::ThresholdRefuses) {
            return Err(Refusal::too_old(at, oldest));
        }
        Ok(())
    }

    /// Refuses also what lies before all history that is kept without protection, be
    /// it there or not: of writers, since the outcomes of idempotency keys rest on it (X2).
    pub(super) fn check_age(&self, call: &Call, at: Timestamp) -> Result<(), Refusal> {
        self.check_history(call, at)?;
        let Some(kept) = self.history.kept() else {
            return Ok(());
        };
        let oldest = before(self.clock.now()?.latest, kept + LAG_MAX);
        match at < oldest {
            true => Err(Refusal::too_old(at, oldest)),
            false => Ok(()),
        }
    }

    /// Does what is due: raises the threshold as far as `protected` allows, or sweeps
    /// below one that has been in force for long enough. Does nothing where this
    /// replica does not lead.
    ///
    /// # Errors
    /// When the shard moved or changed meanwhile, or the store fails; the next
    /// call goes on.
    pub async fn collect(self: &Arc<Self>, protected: Option<Protected>) -> Result<(), Refusal> {
        let Some(kept) = self.history.kept() else {
            return Ok(());
        };
        let leading = self.lead()?;
        leading.locks.expire();
        let now = self.clock.now()?.earliest;
        let state = leading.collection();
        let Some((threshold, since)) = state.raised else {
            // Whatever a predecessor raised is in force since now at the latest.
            leading.set_collection(Collection {
                raised: Some((leading.threshold(), now)),
                ..Collection::default()
            });
            return Ok(());
        };
        let pause = PAUSE_MIN.max(kept / 8);
        let written = self.consensus.applied_index();
        // Also where the threshold may not rise: another sweep soon finds little.
        let rested = before(now, pause) >= since.max(state.swept);
        if rested && state.clean_at != Some(written) {
            let horizon = Horizon {
                threshold,
                attempts: before(now, ATTEMPTS),
                outcomes: before(threshold, OUTCOMES),
            };
            let (pending, own) = self.sweep(&leading, horizon).await?;
            metrics::SWEEPS.inc();
            // What others wrote meanwhile, the sweep may have passed before it came.
            let after = self.consensus.applied_index();
            leading.set_collection(Collection {
                swept: now,
                pending,
                clean_at: (!pending && after == written + own).then_some(after),
                ..state
            });
        }
        // X5: nothing that is protected is raised above, and no threshold is that was
        // not swept.
        let next = protected.map_or(Timestamp::ZERO, |protected| protected.threshold(kept));
        let state = leading.collection();
        if state.pending && state.swept >= since && next > threshold {
            // In memory first: what is evaluated from here on respects it.
            leading.raise_threshold(next);
            let op = Op {
                tree: Tree::Txn,
                key: keys::threshold_key(self.shard),
                value: Some(Bytes::copy_from_slice(&next.raw().to_be_bytes())),
            };
            self.propose_collection(&leading, vec![op]).await?;
            leading.set_collection(Collection {
                raised: Some((next, self.clock.now()?.earliest)),
                ..Collection::default()
            });
        }
        Ok(())
    }

    /// Deletes the garbage below a horizon; answers whether more will come, and
    /// in how many proposals it was done.
    async fn sweep(&self, leading: &Leading, horizon: Horizon) -> Result<(bool, u64), Refusal> {
        let descriptor = self.consensus.descriptor();
        let span = descriptor.span.clone().unwrap_or_default();
        let range = (
            keys::addressable(&span.start),
            keys::addressable_end(&span.end),
        );
        let (mut pending, mut proposals) = (false, 0);
        for (tree, (lower, upper)) in [
            (Tree::Data, keys::schema_range(self.shard)),
            (Tree::Data, range.clone()),
            (Tree::Txn, range),
        ] {
            let mut from = lower;
            loop {
                let snapshot = self.store.snapshot();
                let found = spawn::stalling(|| {
                    if tree == Tree::Txn {
                        collect::records(&snapshot, &from, &upper, &horizon, BUDGET)
                    } else {
                        collect::versions(&snapshot, &from, &upper, &horizon, BUDGET, self.rules)
                    }
                })?;
                drop(snapshot);
                let Found {
                    ops,
                    resume,
                    pending: more,
                } = found;
                pending |= more;
                let count = ops.len() as u64;
                if count > 0 {
                    self.propose_collection(leading, ops).await?;
                    proposals += 1;
                    metrics::COLLECTED
                        .with_label_values(&[tree.name()])
                        .inc_by(count);
                }
                match resume {
                    Some(next) => from = next,
                    None => break,
                }
                tokio::time::sleep(BREATH).await;
            }
        }
        Ok((pending, proposals))
    }

    async fn propose_collection(&self, leading: &Leading, ops: Vec<Op>) -> Result<(), Refusal> {
        let command = Command {
            term: leading.term,
            shard_version: self.consensus.descriptor().version,
            body: Body::Write {
                ops,
                expect: Vec::new(),
            },
        };
        // Done twice, late or never: all the same.
        let proposed = self.consensus.propose(command);
        match tokio::time::timeout_at(deadline_after(PROPOSAL_TIMEOUT), proposed).await {
            Ok(Ok(Verdict::Applied)) => Ok(()),
            Ok(Ok(Verdict::Rejected(_))) => Err(Refusal::shard_changed()),
            Ok(Err(error)) => Err(Refusal::unavailable(error.to_string())),
            Err(_) => Err(Refusal::unknown("no verdict in time")),
        }
    }
}
