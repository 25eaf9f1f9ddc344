//! [`PointRead`]: a key on its way through the tables of a tree.

use super::{bloom, without_version};
use crate::statistics::ReadStripe;
use crate::types::Trailer;

/// What a point read looks for: hashed once for the filters of all tables, and counted once at its end. Most tables
/// that are asked do not have the key; hash and counters would be most of what that answer costs.
pub(crate) struct PointRead<'a> {
    pub user_key: &'a [u8],
    /// The newest entry that the reader may see.
    pub trailer: Trailer,
    /// The last hash asked for, and how many bytes of the key it leaves out.
    hash: Option<(usize, u64)>,
    filters_useful: u64,
    filters_passed: u64,
    counters: &'a ReadStripe,
}

impl<'a> PointRead<'a> {
    pub fn new(user_key: &'a [u8], trailer: Trailer, counters: &'a ReadStripe) -> Self {
        Self {
            user_key,
            trailer,
            hash: None,
            filters_useful: 0,
            filters_passed: 0,
            counters,
        }
    }

    /// Hash of the key without its last bytes. Most tables of a tree leave out equally many: all but those that came by
    /// ingestion, whose filters hold whole keys.
    #[inline]
    pub(super) fn hash(&mut self, version_bytes: usize) -> u64 {
        match self.hash {
            Some((left_out, hash)) if left_out == version_bytes => hash,
            _ => {
                let hash = bloom::hash(without_version(self.user_key, version_bytes));
                self.hash = Some((version_bytes, hash));
                hash
            }
        }
    }

    /// Notes what a filter said.
    #[inline]
    pub(super) fn note(&mut self, passes: bool) {
        match passes {
            true => self.filters_passed += 1,
            false => self.filters_useful += 1,
        }
    }
}

impl Drop for PointRead<'_> {
    fn drop(&mut self) {
        if self.filters_useful > 0 {
            self.counters.bloom_useful.add(self.filters_useful);
        }
        if self.filters_passed > 0 {
            self.counters.bloom_passed.add(self.filters_passed);
        }
    }
}
