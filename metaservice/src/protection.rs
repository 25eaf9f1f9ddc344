//! Which protections of history are still wanted.
//!
//! A protection is a record of the replicated state; that its holder lives is known
//! to the leader alone, from the requests that renew it. A new leader counts the
//! silence from the beginning of its term, so that an outage of the metaservice, in
//! which nobody could renew anything, ends no protection. (As with coordinators of
//! transactions in a kvnode.)
//!
//! **Invariant** (X5): whoever was told that a protection holds is told so of a
//! record that no command under way takes away. A command that ends a record names
//! its revision. So a record is confirmed without a command only when it was written
//! in this very leadership, which knows what it has ended itself; in all other cases
//! it is written anew, under another revision.

use crate::state::ProtectionRecord;
use crate::state::command::Unprotect;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A holder is heard of before there is its record, by less than this.
const RECORD_COMES: Duration = Duration::from_secs(60);
/// Records that are ended at a time: each is a command.
const ENDED_AT_ONCE: usize = 16;

/// What one leadership knows of the holders.
#[derive(Debug, Default)]
pub struct Leases {
    /// When they were heard of last.
    heard: BTreeMap<Bytes, Duration>,
    /// Revisions that were written in this leadership.
    written: BTreeSet<u64>,
    /// Revisions of which the end was proposed.
    ending: BTreeSet<u64>,
}

impl Leases {
    /// True when nothing can be under way that takes a record away.
    pub fn stands(&self, record: &ProtectionRecord) -> bool {
        self.written.contains(&record.revision) && !self.ending.contains(&record.revision)
    }

    /// The holder of a protection was heard of.
    pub fn hear(&mut self, id: &Bytes, now: Duration) {
        self.heard.insert(id.clone(), now);
    }

    /// A record was written.
    pub fn wrote(&mut self, revision: u64) {
        self.written.insert(revision);
    }

    /// Its holder gives it back.
    pub fn give_back(&mut self, record: &ProtectionRecord) -> Unprotect {
        self.ending.insert(record.revision);
        Unprotect {
            id: record.id.clone(),
            revision: record.revision,
        }
    }

    /// Ends what nobody has renewed for its lease, in a leadership that began at
    /// `since`.
    pub fn end_silent(
        &mut self,
        records: &[ProtectionRecord],
        since: Duration,
        now: Duration,
    ) -> Vec<Unprotect> {
        let known = |id: &Bytes| records.iter().any(|record| record.id == id);
        let young = |at: &Duration| now.saturating_sub(*at) < RECORD_COMES;
        self.heard.retain(|id, at| young(at) || known(id));
        // A revision that is gone never comes back; one to come is above all others.
        if let Some(oldest) = records.iter().map(|record| record.revision).min() {
            self.written = self.written.split_off(&oldest);
            self.ending = self.ending.split_off(&oldest);
        }
        let silent: Vec<_> = { records.iter() }
            .filter(|record| {
                let last = self.heard.get(&record.id).copied().unwrap_or(since);
                let lease = Duration::from_millis(record.lease_ms.into());
                now.saturating_sub(last) >= lease || self.ending.contains(&record.revision)
            })
            .take(ENDED_AT_ONCE)
            .collect();
        { silent.into_iter() }
            .map(|record| self.give_back(record))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::command::{Body, Protect, SetClock};
    use crate::state::{ClockRecord, Reply, State};
    use lineradb_common::Timestamp;
    use lineradb_common::limits::HISTORY_MIN;
    use proptest::prelude::*;

    fn record(id: u8, revision: u64) -> ProtectionRecord {
        ProtectionRecord {
            id: Bytes::copy_from_slice(&[id; 16]),
            timestamp: 7,
            lease_ms: 10_000,
            revision,
        }
    }

    #[test]
    fn who_is_silent_for_a_lease_loses_it() {
        let at = Duration::from_secs;
        let records = [record(1, 1), record(2, 2)];
        let mut leases = Leases::default();
        // A new leader has heard of nobody: that is nobody's fault.
        assert!(leases.end_silent(&records, at(100), at(109)).is_empty());
        leases.hear(&records[0].id, at(109));
        let ended = leases.end_silent(&records, at(100), at(110));
        assert_eq!(ended.len(), 1);
        assert_eq!((&ended[0].id, ended[0].revision), (&records[1].id, 2));
        // The command may be lost: it is proposed until the record is gone, whatever its
        // holder says meanwhile.
        leases.hear(&records[1].id, at(111));
        assert_eq!(leases.end_silent(&records, at(100), at(112)), ended);
        // Made anew, it is another one.
        let records = [record(1, 1), record(2, 3)];
        assert!(leases.end_silent(&records, at(100), at(113)).is_empty());
        assert_eq!(leases.end_silent(&records, at(100), at(119)).len(), 1);
        assert!(leases.end_silent(&[], at(100), at(150)).is_empty());
    }

    /// An end that was decided in an earlier leadership may still be proposed.
    #[test]
    fn only_what_this_leadership_wrote_stands() {
        let (old, new) = (record(1, 1), record(1, 2));
        let mut leases = Leases::default();
        assert!(!leases.stands(&old));
        leases.wrote(2);
        assert!(leases.stands(&new) && !leases.stands(&old));
        leases.give_back(&new);
        assert!(!leases.stands(&new));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The clock goes on by so many minutes.
        Pass(u64),
        /// A shard asks, and raises its threshold some time later.
        Ask,
        /// A holder asks for a timestamp so many minutes ago.
        Protect(u8, u64),
        /// A record is ended.
        End(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u64..6).prop_map(Step::Pass),
            Just(Step::Ask),
            (0u8..3, 0u64..40).prop_map(|(id, ago)| Step::Protect(id, ago)),
            (0u8..3).prop_map(Step::End),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// X5: whatever was asked when, no shard raises its threshold above what is
        /// protected.
        #[test]
        fn no_threshold_rises_above_what_is_protected(steps in steps()) {
            const MINUTE: u64 = 60_000_000;
            let mut state = State::default();
            let mut ceiling_us = 100 * MINUTE;
            let mut highest = Timestamp::ZERO;
            for step in steps {
                match step {
                    Step::Pass(minutes) => {
                        ceiling_us += minutes * MINUTE;
                        let clock = ClockRecord { ceiling_us, epoch: 1, ..ClockRecord::default() };
                        let expected = state.header.clock.clone();
                        let set = SetClock { expected, clock: Some(clock) };
                        prop_assert_eq!(state.apply(&Body::SetClock(set).into()).reply, Reply::Done);
                    }
                    Step::Ask => {
                        // No answer names a time above the ceiling.
                        let told = state.header.clock.as_ref().map_or(0, |c| c.ceiling_us);
                        let kept = HISTORY_MIN.as_micros() as u64;
                        let usual = Timestamp::from_micros(told.saturating_sub(kept));
                        let protected = state.header.protections.iter();
                        let oldest = protected.map(|p| Timestamp::from_raw(p.timestamp)).min();
                        highest = highest.max(oldest.map_or(usual, |oldest| usual.min(oldest)));
                    }
                    Step::Protect(id, ago) => {
                        let protect = Protect {
                            id: Bytes::copy_from_slice(&[id; 16]),
                            timestamp: Timestamp::from_micros(ceiling_us - ago * MINUTE).raw(),
                            lease_ms: 1_000,
                        };
                        let young = ago < 10;
                        let reply = state.apply(&Body::Protect(protect).into()).reply;
                        let done = matches!(reply, Reply::Protected(_));
                        prop_assert!(done || !young, "{}", reply);
                    }
                    Step::End(id) => {
                        if let Some(record) = state.protection(&[id; 16]) {
                            let end = Leases::default().give_back(record);
                            state.apply(&Body::Unprotect(end).into());
                        }
                    }
                }
                for record in &state.header.protections {
                    prop_assert!(highest <= Timestamp::from_raw(record.timestamp));
                }
            }
        }
    }
}
