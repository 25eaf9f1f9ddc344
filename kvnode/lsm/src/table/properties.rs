//! What a table says about itself, as tagged fields: a reader skips tags that it does not know.
//!
//! For tables of a database the manifest knows all this; for a table that comes from outside it is all there is.

use super::TableMeta;
use crate::coding::{put_prefixed, put_varint, take_prefixed, take_varint, u64_at};

const ENTRIES: u64 = 1;
const TOMBSTONES: u64 = 2;
const SMALLEST_SEQNO: u64 = 3;
const LARGEST_SEQNO: u64 = 4;
const SMALLEST_KEY: u64 = 5;
const LARGEST_KEY: u64 = 6;
const RANGE_DELETES: u64 = 7;
const VERSION_BYTES: u64 = 8;
const ENTRY_BYTES: u64 = 9;
const SETTLED_BYTES: u64 = 10;
const SMALLEST_VERSION: u64 = 11;
const LARGEST_VERSION: u64 = 12;
const BLOB_STEPS: u64 = 13;

/// What a table says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Properties {
    /// Without what the manifest alone knows: number and length of the file, blob files, an assigned sequence number.
    pub meta: TableMeta,
    /// How many bytes at the end of each key the filter leaves out.
    pub version_bytes: usize,
    pub sizes: Sizes,
    pub blob_steps: BlobSteps,
    pub versions: Versions,
}

/// The range of the versions in a table: of the last bytes of its keys. Empty where keys have no versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Versions {
    pub smallest: Vec<u8>,
    pub largest: Vec<u8>,
}

impl Versions {
    /// Widens the range by the version of a key.
    pub fn add(&mut self, version: &[u8]) {
        if self.largest.is_empty() || *version < *self.smallest {
            self.smallest = version.to_vec();
        }
        if *version > *self.largest {
            self.largest = version.to_vec();
        }
    }

    /// True unless it is known that no version of the closed range is there.
    pub fn may_meet(&self, first: &[u8], last: &[u8]) -> bool {
        self.largest.is_empty() || (*self.smallest <= *last && *self.largest >= *first)
    }
}

/// How many bytes of blobs the first blocks of a table point to: number of blocks, bytes; both ascend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BlobSteps(Vec<(u64, u64)>);

impl BlobSteps {
    /// Notes that so many blocks point to so many bytes.
    pub fn add(&mut self, blocks: u64, bytes: u64) {
        self.0.push((blocks, bytes));
    }

    /// About how many bytes the blocks before this one point to.
    pub fn before(&self, block: usize) -> u64 {
        let steps = self
            .0
            .partition_point(|(blocks, _)| *blocks <= block as u64);
        steps.checked_sub(1).map_or(0, |last| self.0[last].1)
    }

    /// How many bytes all of them point to.
    pub fn total(&self) -> u64 {
        self.0.last().map_or(0, |(_, bytes)| *bytes)
    }

    /// Varints: distances to the step before.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut last = (0, 0);
        for step in &self.0 {
            put_varint(&mut bytes, step.0 - last.0);
            put_varint(&mut bytes, step.1 - last.1);
            last = *step;
        }
        bytes
    }

    fn decode(mut input: &[u8]) -> Option<Self> {
        let input = &mut input;
        let (mut steps, mut last) = (Vec::new(), (0u64, 0u64));
        while !input.is_empty() {
            let blocks = last.0.checked_add(take_varint(input)?)?;
            last = (blocks, last.1.checked_add(take_varint(input)?)?);
            steps.push(last);
        }
        Some(Self(steps))
    }
}

/// What estimates of sizes rest on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Bytes of all keys and values.
    pub entries: u64,
    /// About how many bytes the data blocks have once they lie on a level that is compressed, with the blobs that they
    /// point to.
    pub settled: u64,
}

/// `(tag varint | length varint | body)*`; numbers are u64.
pub(super) fn encode(properties: &Properties) -> Vec<u8> {
    let Properties {
        meta,
        version_bytes,
        sizes,
        blob_steps,
        versions,
    } = properties;
    let blob_steps = blob_steps.encode();
    let mut bytes = Vec::new();
    let numbers = [
        (ENTRIES, meta.entries),
        (TOMBSTONES, meta.tombstones),
        (SMALLEST_SEQNO, meta.smallest_seqno),
        (LARGEST_SEQNO, meta.largest_seqno),
        (RANGE_DELETES, meta.range_deletes),
        (VERSION_BYTES, *version_bytes as u64),
        (ENTRY_BYTES, sizes.entries),
        (SETTLED_BYTES, sizes.settled),
    ];
    for (tag, number) in numbers {
        put_varint(&mut bytes, tag);
        put_prefixed(&mut bytes, &number.to_le_bytes());
    }
    for (tag, key) in [
        (SMALLEST_KEY, &meta.smallest_key),
        (LARGEST_KEY, &meta.largest_key),
        (SMALLEST_VERSION, &versions.smallest),
        (LARGEST_VERSION, &versions.largest),
        (BLOB_STEPS, &blob_steps),
    ] {
        put_varint(&mut bytes, tag);
        put_prefixed(&mut bytes, key);
    }
    bytes
}

/// Reads what [`encode`] wrote; `None` if the bytes are no such fields.
pub(super) fn decode(mut input: &[u8]) -> Option<Properties> {
    let input = &mut input;
    let (mut version_bytes, mut sizes) = (0, Sizes::default());
    let (mut versions, mut blob_steps) = (Versions::default(), BlobSteps::default());
    let mut meta = TableMeta::default();
    while !input.is_empty() {
        let tag = take_varint(input)?;
        let body = take_prefixed(input)?;
        let number = u64_at(body, 0);
        match tag {
            ENTRIES => meta.entries = number?,
            TOMBSTONES => meta.tombstones = number?,
            SMALLEST_SEQNO => meta.smallest_seqno = number?,
            LARGEST_SEQNO => meta.largest_seqno = number?,
            RANGE_DELETES => meta.range_deletes = number?,
            VERSION_BYTES => version_bytes = usize::try_from(number?).ok()?,
            ENTRY_BYTES => sizes.entries = number?,
            SETTLED_BYTES => sizes.settled = number?,
            SMALLEST_KEY => meta.smallest_key = body.to_vec(),
            LARGEST_KEY => meta.largest_key = body.to_vec(),
            SMALLEST_VERSION => versions.smallest = body.to_vec(),
            LARGEST_VERSION => versions.largest = body.to_vec(),
            BLOB_STEPS => blob_steps = BlobSteps::decode(body)?,
            _ => {}
        }
    }
    Some(Properties {
        meta,
        version_bytes,
        sizes,
        blob_steps,
        versions,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_come_back_and_any_bytes_are_read_without_a_panic(bytes: Vec<u8>, numbers: [u64; 7], version_bytes: u32) {
            let _ = decode(&bytes);
            let mut properties = decode(b"").unwrap();
            properties.version_bytes = version_bytes as usize;
            properties.blob_steps.add(u64::from(version_bytes), numbers[0]);
            let Properties { meta, sizes, versions, .. } = &mut properties;
            versions.smallest = bytes.clone();
            [
                meta.entries, meta.tombstones, meta.smallest_seqno, meta.largest_seqno, meta.range_deletes,
                sizes.entries, sizes.settled,
            ] = numbers;
            meta.smallest_key = bytes.clone();
            meta.largest_key = [&bytes[..], b"z"].concat();
            let mut encoded = encode(&properties);
            prop_assert_eq!(decode(&encoded).unwrap(), properties);
            encoded.extend_from_slice(&[99, 1, 0]);
            prop_assert!(decode(&encoded).is_some(), "an unknown tag is skipped");
        }
    }
}
