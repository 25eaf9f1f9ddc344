//! Which versions of a key anybody can still see.
//!
//! The snapshots alive cut history into stripes. A reader sees the newest version of its stripe or of an older one,
//! so of each key one version per stripe is enough, the newest. The newest sequence number visible when the job
//! began counts as a snapshot as well: later readers start at least there. Where no deeper level holds the key, a
//! tombstone of the oldest stripe hides nothing and goes, too.

use crate::types::{SeqNo, Trailer};

/// Decides entry by entry, in the order of the tree.
#[derive(Debug)]
pub(crate) struct Retention {
    /// Ascending; the last one is the newest sequence number when the job began.
    snapshots: Vec<SeqNo>,
    /// Stripe of the entry before, of the same key.
    last_stripe: Option<usize>,
}

impl Retention {
    /// `snapshots` ascending, with the newest visible sequence number at the end.
    pub fn new(snapshots: Vec<SeqNo>) -> Self {
        Self {
            snapshots,
            last_stripe: None,
        }
    }

    /// Whether to keep the next entry. `is_below` says whether a deeper level may hold its key.
    pub fn keep(
        &mut self,
        new_key: bool,
        trailer: Trailer,
        is_below: impl FnOnce() -> bool,
    ) -> bool {
        let stripe = self
            .snapshots
            .partition_point(|snapshot| *snapshot < trailer.seqno());
        let shadowed = !new_key && self.last_stripe == Some(stripe);
        self.last_stripe = Some(stripe);
        let hides_nothing = || trailer.is_delete() && stripe == 0 && !is_below();
        !(shadowed || hides_nothing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Kind::{Delete, Put};

    fn kept(
        snapshots: &[SeqNo],
        entries: &[(SeqNo, crate::types::Kind)],
        below: bool,
    ) -> Vec<SeqNo> {
        let mut retention = Retention::new(snapshots.to_vec());
        let mut new_key = true;
        let mut kept = Vec::new();
        for (seqno, kind) in entries {
            if retention.keep(new_key, Trailer::new(*seqno, *kind), || below) {
                kept.push(*seqno);
            }
            new_key = false;
        }
        kept
    }

    #[test]
    fn one_version_per_stripe() {
        let entries = [(9, Put), (7, Put), (5, Put), (4, Put), (2, Put)];
        assert_eq!(kept(&[10], &entries, false), [9]);
        assert_eq!(kept(&[5, 10], &entries, false), [9, 5]);
        assert_eq!(kept(&[4, 6, 10], &entries, false), [9, 5, 4]);
    }

    #[test]
    fn a_tombstone_goes_when_it_hides_nothing() {
        let entries = [(9, Delete), (7, Put)];
        assert_eq!(kept(&[10], &entries, true), [9]);
        assert_eq!(kept(&[10], &entries, false), Vec::<SeqNo>::new());
        assert_eq!(kept(&[8, 10], &entries, false), [9, 7]);
    }
}
