//! The filter of an open table, verified page by page.
//!
//! A question touches one line of the filter ([`bloom`]). So that a large table costs a question no more than a small
//! one when it is new and cold, nothing but the page of that line is read and verified, at its first use; the
//! checksums of the pages are a part of their own (*checks*: number of probes u8, then a crc u32 per page), which is
//! verified when the table is opened. RocksDB partitions its filters for the same reason; here the map is paged
//! already, and a question needs no search for its partition.

use super::block::Malformed;
use super::bloom;
use super::format::{Handle, PartKind, part_crc};
use super::marks::Marks;
use crate::coding::u32_at;
use std::ops::Range;

/// Bytes of a filter under one checksum: whole lines.
const PAGE_BYTES: usize = 4096;

/// Where the filter of a table is.
pub(super) struct Filter {
    lines: Range<usize>,
    checks: Range<usize>,
    probes: u8,
    verified: Marks,
}

/// The checks of a filter that lies at `offset`.
pub(super) fn checks(lines: &[u8], probes: u8, offset: u64) -> Vec<u8> {
    let mut checks = vec![probes];
    for (page, bytes) in lines.chunks(PAGE_BYTES).enumerate() {
        let offset = offset + (page * PAGE_BYTES) as u64;
        let crc = part_crc(bytes, PartKind::Raw as u8, offset);
        checks.extend_from_slice(&crc.to_le_bytes());
    }
    checks
}

impl Filter {
    /// From the ranges of its parts, of which `checks` is verified.
    pub fn new(map: &[u8], lines: Range<usize>, checks: Range<usize>) -> Result<Self, Malformed> {
        let pages = lines.len().div_ceil(PAGE_BYTES);
        if checks.len() != 1 + 4 * pages {
            return Err(Malformed("not one checksum for each page of the filter"));
        }
        let probes = map[checks.start];
        if !lines.is_empty() && !bloom::makes_sense(lines.len(), probes) {
            return Err(Malformed("no such filter can be built"));
        }
        Ok(Self {
            verified: Marks::new(pages),
            lines,
            checks,
            probes,
        })
    }

    /// True if the table has one.
    pub fn exists(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Verifies all of it.
    pub fn verify_whole(&self, map: &[u8]) -> Result<(), (Handle, Malformed)> {
        let mut pages = 0..self.lines.len().div_ceil(PAGE_BYTES);
        pages.try_for_each(|page| self.verified.once(page, || self.verify(map, page)))
    }

    /// False only if no key of this hash was put into the filter.
    #[inline]
    pub fn may_contain(&self, map: &[u8], hash: u64) -> Result<bool, (Handle, Malformed)> {
        let lines = &map[self.lines.clone()];
        let line = bloom::line_at(lines.len(), hash);
        let page = line / PAGE_BYTES;
        self.verified.once(page, || self.verify(map, page))?;
        Ok(bloom::may_contain(&lines[line..], self.probes, hash))
    }

    #[cold]
    fn verify(&self, map: &[u8], page: usize) -> Result<(), (Handle, Malformed)> {
        let start = self.lines.start + page * PAGE_BYTES;
        let bytes = &map[start..self.lines.end.min(start + PAGE_BYTES)];
        let crc = part_crc(bytes, PartKind::Raw as u8, start as u64);
        match u32_at(map, self.checks.start + 1 + 4 * page) == Some(crc) {
            true => Ok(()),
            false => Err((
                Handle {
                    offset: start as u64,
                    length: bytes.len() as u32,
                },
                Malformed("contents do not match their checksum"),
            )),
        }
    }
}
