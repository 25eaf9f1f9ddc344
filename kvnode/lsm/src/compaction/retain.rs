//! Which versions of a key anybody can still see.
//!
//! The snapshots alive cut history into stripes. A reader sees the newest version of its stripe or of an older one,
//! so of each key one version per stripe is enough, the newest. The newest sequence number visible when the job
//! began counts as a snapshot as well: later readers start at least there. Where no deeper level holds the key, a
//! tombstone of the oldest stripe hides nothing and goes, too.
//!
//! Range deletes do to all keys of a range what a tombstone does to one: what is older and of the same stripe goes.
//! Of the range deletes themselves one per stripe is kept, and none of the oldest where nothing is below.

use super::filter::CompactionFilter;
use crate::error::Result;
use crate::ranges::RangeSet;
use crate::slice::Slice;
use crate::table::TableMeta;
use crate::types::{Kind, SeqNo, Trailer};

/// Decides entry by entry, in the order of the tree.
pub(crate) struct Retention {
    /// Ascending; the last one is the newest sequence number when the job began.
    snapshots: Vec<SeqNo>,
    /// Range deletes of all inputs.
    ranges: RangeSet,
    /// Stripe of the entry before, of the same key.
    last_stripe: Option<usize>,
    filter: Option<Box<dyn CompactionFilter>>,
    filtered: u64,
}

impl Retention {
    /// `snapshots` ascending, with the newest visible sequence number at the end.
    pub fn new(snapshots: Vec<SeqNo>, ranges: RangeSet) -> Self {
        Self {
            snapshots,
            ranges,
            last_stripe: None,
            filter: None,
            filtered: 0,
        }
    }

    fn stripe(&self, seqno: SeqNo) -> usize {
        self.snapshots.partition_point(|snapshot| *snapshot < seqno)
    }

    /// The newest sequence number of a stripe.
    fn stripe_end(&self, stripe: usize) -> SeqNo {
        self.snapshots.get(stripe).copied().unwrap_or(SeqNo::MAX)
    }

    /// True if nobody can see anything of a table any more: it need not even be read.
    pub fn hides_table(&self, table: &TableMeta) -> bool {
        if self.ranges.is_empty() {
            return false;
        }
        let seqno = self.stripe_end(self.stripe(table.smallest_seqno));
        let (smallest, largest) = (&table.smallest_key, &table.largest_key);
        self.ranges.newest_over(smallest, largest, seqno) > table.largest_seqno
    }

    /// The range deletes to keep. `is_below` says whether a deeper level may hold keys of a range.
    pub fn ranges_kept(&self, is_below: impl Fn(&[u8], &[u8]) -> bool) -> RangeSet {
        let mut last = None;
        self.ranges.clone().retain(|fragment, seqno| {
            let place = Some((fragment.start.clone(), self.stripe(seqno)));
            let shadowed = last == place;
            let hides_nothing =
                self.stripe(seqno) == 0 && !is_below(&fragment.start, &fragment.end);
            last = place;
            !shadowed && !hides_nothing
        })
    }

    /// Hands over the user's own say in what is kept.
    pub fn with_filter(self, filter: Option<Box<dyn CompactionFilter>>) -> Self {
        Self { filter, ..self }
    }

    /// Values that the filter has dropped.
    pub fn filtered(&self) -> u64 {
        self.filtered
    }

    /// What is kept of the next entry: itself, a tombstone in its place, or nothing. `value` reads its value, if that
    /// matters; `is_below` says whether a deeper level may hold its key.
    pub fn keep(
        &mut self,
        new_key: bool,
        key: &[u8],
        mut trailer: Trailer,
        value: impl FnOnce() -> Result<Slice>,
        is_below: impl FnOnce() -> bool,
    ) -> Result<Option<Trailer>> {
        let stripe = self.stripe(trailer.seqno());
        let shadowed = !new_key && self.last_stripe == Some(stripe);
        self.last_stripe = Some(stripe);
        let hidden = self.ranges.newest(key, self.stripe_end(stripe)) > trailer.seqno();
        if shadowed || hidden {
            return Ok(None);
        }
        if let Some(filter) = &mut self.filter
            && !trailer.is_delete()
            && !filter.keep(key, &value()?)
        {
            // As a tombstone it goes on hiding what is older.
            trailer = Trailer::new(trailer.seqno(), Kind::Delete);
            self.filtered += 1;
        }
        let hides_nothing = trailer.is_delete() && stripe == 0 && !is_below();
        Ok((!hides_nothing).then_some(trailer))
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
        let mut retention = Retention::new(snapshots.to_vec(), RangeSet::default());
        let mut new_key = true;
        let mut kept = Vec::new();
        for (seqno, kind) in entries {
            let trailer = Trailer::new(*seqno, *kind);
            let nothing = || Ok(Slice::default());
            let found = retention.keep(new_key, b"k", trailer, nothing, || below);
            if found.ok().flatten() == Some(trailer) {
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

    #[test]
    fn what_the_filter_drops_leaves_a_tombstone_where_something_may_be_below() {
        struct Odd;
        impl CompactionFilter for Odd {
            fn keep(&mut self, _: &[u8], value: &[u8]) -> bool {
                value[0] % 2 == 1
            }
        }
        let kept = |seqno: SeqNo, value: u8, below: bool| {
            let retention = Retention::new(vec![5, 10], RangeSet::default());
            let mut retention = retention.with_filter(Some(Box::new(Odd)));
            let trailer = Trailer::new(seqno, Put);
            let value = Slice::from(bytes::Bytes::from(vec![value]));
            let kept = retention.keep(true, b"k", trailer, || Ok(value), || below);
            (kept.ok().flatten(), retention.filtered())
        };
        let tombstone = |seqno| Some(Trailer::new(seqno, Delete));
        assert_eq!(kept(3, 1, false), (Some(Trailer::new(3, Put)), 0));
        assert_eq!(kept(3, 2, false), (None, 1));
        assert_eq!(kept(3, 2, true), (tombstone(3), 1));
        // A snapshot may still see an older version.
        assert_eq!(kept(7, 2, false), (tombstone(7), 1));
    }

    #[test]
    fn a_range_delete_takes_what_is_older_in_its_stripe() {
        let range = |seqno| ("b".into(), "d".into(), seqno);
        let ranges = RangeSet::build([range(5), range(6), range(9)]);
        let retention = || Retention::new(vec![7, 10], ranges.clone());
        let kept = |key: &[u8], seqno| {
            let trailer = Trailer::new(seqno, Put);
            let kept = retention().keep(true, key, trailer, || Ok(Slice::default()), || true);
            kept.ok().flatten().is_some()
        };
        assert!(!kept(b"b", 4) && !kept(b"b", 8) && kept(b"b", 7) && kept(b"c", 10));
        assert!(kept(b"a", 4) && kept(b"d", 4));
        let seqnos = |below| {
            let kept = retention().ranges_kept(|_, _| below);
            kept.fragments()[0].seqnos.clone()
        };
        assert_eq!((seqnos(true), seqnos(false)), (vec![9, 6], vec![9]));
        let table = |smallest_seqno, largest_seqno| TableMeta {
            number: 1,
            bytes: 1,
            smallest_key: "b".into(),
            largest_key: "c".into(),
            smallest_seqno,
            largest_seqno,
            entries: 1,
            tombstones: 0,
            ..TableMeta::default()
        };
        let hidden = |smallest, largest| retention().hides_table(&table(smallest, largest));
        assert!(hidden(1, 5) && hidden(8, 8) && !hidden(5, 6) && !hidden(6, 8));
    }
}
