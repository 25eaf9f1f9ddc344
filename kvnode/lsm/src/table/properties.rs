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

/// What a table says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Properties {
    /// Without number and length of the file, which are the reader's to fill in.
    pub meta: TableMeta,
    /// How many bytes at the end of each key the filter leaves out.
    pub version_bytes: usize,
    pub sizes: Sizes,
}

/// What estimates of sizes rest on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Bytes of all keys and values.
    pub entries: u64,
    /// About how many bytes the data blocks have once they lie on a level that is compressed.
    pub settled: u64,
}

/// `(tag varint | length varint | body)*`; numbers are u64.
pub(super) fn encode(properties: &Properties) -> Vec<u8> {
    let Properties {
        meta,
        version_bytes,
        sizes,
    } = properties;
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
    let mut meta = TableMeta {
        number: 0,
        bytes: 0,
        smallest_key: Vec::new(),
        largest_key: Vec::new(),
        smallest_seqno: 0,
        largest_seqno: 0,
        entries: 0,
        tombstones: 0,
        range_deletes: 0,
        largest_exclusive: false,
        assigned_seqno: 0,
    };
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
            _ => {}
        }
    }
    Some(Properties {
        meta,
        version_bytes,
        sizes,
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
            let Properties { meta, sizes, .. } = &mut properties;
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
