//! Which protections of history are still wanted.
//!
//! A protection is a record of the replicated state; that its holder lives is known
//! to the leader alone, from the requests that renew it. A new leader counts the
//! silence from the beginning of its term, so that an outage of the metaservice, in
//! which nobody could renew anything, ends no protection. (As with coordinators of
//! transactions in a kvnode.)
//!
//! **Invariant** (X5): whoever was told that a protection holds is told so of a
//! record that no command under way takes away. So a protection that is being ended
//! is not renewed: it is made anew, if its timestamp is young enough for that.

use crate::state::ProtectionRecord;
use crate::state::command::Unprotect;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// A holder is heard of before there is its record, by less than this.
const RECORD_COMES: Duration = Duration::from_secs(60);

/// What one leadership knows of the holders.
#[derive(Debug, Default)]
pub struct Leases {
    /// When they were heard of last.
    heard: BTreeMap<Bytes, Duration>,
    /// Revisions of which the end was proposed.
    ending: BTreeMap<Bytes, u64>,
}

impl Leases {
    /// True when a record stands, and is not about to be taken away.
    pub fn stands(&self, record: &ProtectionRecord) -> bool {
        self.ending.get(&record.id) != Some(&record.revision)
    }

    /// The holder of a protection was heard of.
    pub fn hear(&mut self, id: &Bytes, now: Duration) {
        self.heard.insert(id.clone(), now);
    }

    /// Its holder gives it back.
    pub fn give_back(&mut self, record: &ProtectionRecord) -> Unprotect {
        self.ending.insert(record.id.clone(), record.revision);
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
        let of = |id: &Bytes| records.iter().find(|record| record.id == id);
        let young = |at: &Duration| now.saturating_sub(*at) < RECORD_COMES;
        self.heard.retain(|id, at| young(at) || of(id).is_some());
        self.ending
            .retain(|id, revision| of(id).is_some_and(|record| record.revision == *revision));
        let silent: Vec<_> = { records.iter() }
            .filter(|record| {
                let last = self.heard.get(&record.id).copied().unwrap_or(since);
                let lease = Duration::from_millis(record.lease_ms.into());
                now.saturating_sub(last) >= lease || !self.stands(record)
            })
            .collect();
        { silent.into_iter() }
            .map(|record| self.give_back(record))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(leases.stands(&records[0]) && !leases.stands(&records[1]));
        // The command may be lost: it is proposed until the record is gone, whatever its
        // holder says meanwhile.
        leases.hear(&records[1].id, at(111));
        assert_eq!(leases.end_silent(&records, at(100), at(112)), ended);
        // Made anew, it is another one.
        let records = [record(1, 1), record(2, 3)];
        assert!(leases.stands(&records[1]));
        assert!(leases.end_silent(&records, at(100), at(113)).is_empty());
        assert_eq!(leases.end_silent(&records, at(100), at(119)).len(), 1);
        assert!(leases.end_silent(&[], at(100), at(150)).is_empty());
    }
}
