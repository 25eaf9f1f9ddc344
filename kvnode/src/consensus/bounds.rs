//! Which bytes of the trees belong to a shard.
//!
//! The order of escaped keys is the order of the keys, and a key's escape is no
//! prefix of another's, so a shard's range of keys is one range of bytes in
//! each replicated tree, whatever follows the key there (a timestamp, a record
//! kind). Beside it a shard has its local keys, under its own id.

use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{ShardId, encoding};
use lineradb_proto::shard::v1::ShardDescriptor;

const LOCAL: u8 = 0x00;
const RANGE: u8 = 0x01;
const END: u8 = 0x02;
/// Follows the shard in the key of a table's schema version (S2).
const SCHEMA: u8 = b'v';

/// The bytes of one shard in the replicated trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// First key of the range.
    pub start: Bytes,
    /// Above the last key of the range.
    pub end: Bytes,
    /// Prefix of the local keys.
    pub local: Bytes,
}

impl Bounds {
    pub(crate) fn of(descriptor: &ShardDescriptor) -> Self {
        let (start, end) = span(descriptor);
        Bounds {
            start: range_start(&start),
            end: range_end(&end),
            local: local_prefix(ShardId(descriptor.shard_id)),
        }
    }

    /// Whether a key of a replicated tree belongs to the shard.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        (key >= &self.start[..] && key < &self.end[..]) || key.starts_with(&self.local)
    }

    /// The two byte ranges, lower bound included and upper bound excluded.
    pub(crate) fn ranges(&self) -> [(Bytes, Bytes); 2] {
        [
            (self.local.clone(), prefix_end(&self.local)),
            (self.start.clone(), self.end.clone()),
        ]
    }
}

/// The span of a descriptor; no span is the empty key up to the end.
pub(crate) fn span(descriptor: &ShardDescriptor) -> (Bytes, Bytes) {
    match &descriptor.span {
        Some(span) => (span.start.clone(), span.end.clone()),
        None => (Bytes::new(), Bytes::new()),
    }
}

/// What of a span another one does not cover: at most one part on each side.
pub(crate) fn left_over(before: &(Bytes, Bytes), now: &(Bytes, Bytes)) -> Vec<(Bytes, Bytes)> {
    let above = |a: &Bytes, b: &Bytes| !b.is_empty() && (a.is_empty() || a > b);
    let mut parts = Vec::new();
    if before.0 < now.0 {
        let end = if above(&now.0, &before.1) {
            &before.1
        } else {
            &now.0
        };
        parts.push((before.0.clone(), end.clone()));
    }
    if above(&before.1, &now.1) {
        let start = std::cmp::max(&before.0, &now.1);
        parts.push((start.clone(), before.1.clone()));
    }
    parts
}

/// Whether one span lies in another.
pub(crate) fn lies_in(inner: &(Bytes, Bytes), outer: &(Bytes, Bytes)) -> bool {
    inner.0 >= outer.0 && (outer.1.is_empty() || (!inner.1.is_empty() && inner.1 <= outer.1))
}

/// Where a key begins in the trees.
pub(crate) fn range_start(key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(key.len() + 3);
    out.put_u8(RANGE);
    encoding::put_bytes(&mut out, key);
    out.freeze()
}

/// The bytes of a span of keys in the trees.
pub(crate) fn range(start: &[u8], end: &[u8]) -> (Bytes, Bytes) {
    (range_start(start), range_end(end))
}

fn range_end(key: &[u8]) -> Bytes {
    if key.is_empty() {
        Bytes::from_static(&[END])
    } else {
        range_start(key)
    }
}

/// Prefix of a shard's local keys.
pub(crate) fn local_prefix(shard: ShardId) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(LOCAL);
    out.put_u64(shard.0);
    out.freeze()
}

/// Prefix of a shard's schema versions.
pub(crate) fn schema_prefix(shard: ShardId) -> Bytes {
    let mut out = BytesMut::with_capacity(10);
    out.put_slice(&local_prefix(shard));
    out.put_u8(SCHEMA);
    out.freeze()
}

/// The table of what follows [`schema_prefix`].
pub(crate) fn schema_table(rest: &[u8]) -> Option<lineradb_common::TableId> {
    let table = rest.first_chunk::<8>()?;
    Some(lineradb_common::TableId(u64::from_be_bytes(*table)))
}

/// Above every key with this prefix.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let end = lineradb_common::keys::prefix_end(prefix);
    if end.is_empty() {
        Bytes::from_static(&[0xff; 16])
    } else {
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_proto::shard::v1::Span;
    use proptest::prelude::*;

    fn shard(start: &[u8], end: &[u8]) -> ShardDescriptor {
        ShardDescriptor {
            shard_id: 7,
            span: Some(Span {
                start: Bytes::copy_from_slice(start),
                end: Bytes::copy_from_slice(end),
            }),
            ..ShardDescriptor::default()
        }
    }

    proptest! {
        #[test]
        fn a_key_is_in_the_bytes_if_and_only_if_it_is_in_the_range(
            key: Vec<u8>, start: Vec<u8>, end: Vec<u8>, suffix: Vec<u8>
        ) {
            let bounds = Bounds::of(&shard(&start, &end));
            let mut stored = range_start(&key).to_vec();
            stored.extend(suffix);
            prop_assert_eq!(
                bounds.contains(&stored),
                lineradb_common::keys::in_span(&key, &start, &end)
            );
        }
    }

    #[test]
    fn what_is_left_over_lies_outside() {
        let span = |a: &'static str, b: &'static str| (Bytes::from(a), Bytes::from(b));
        let left = |before, now| left_over(&before, &now);
        assert_eq!(left(span("b", "m"), span("b", "m")), []);
        assert_eq!(left(span("b", "m"), span("b", "f")), [span("f", "m")]);
        assert_eq!(left(span("b", ""), span("b", "f")), [span("f", "")]);
        assert_eq!(left(span("", ""), span("", "f")), [span("f", "")]);
        assert_eq!(
            left(span("b", "m"), span("d", "f")),
            [span("b", "d"), span("f", "m")]
        );
        assert!(lies_in(&span("f", "h"), &span("f", "m")));
        assert!(lies_in(&span("f", ""), &span("f", "")));
        assert!(!lies_in(&span("f", ""), &span("f", "m")));
        assert!(!lies_in(&span("e", "g"), &span("f", "m")));
    }

    #[test]
    fn local_keys_belong_to_their_shard_alone() {
        let bounds = Bounds::of(&shard(b"a", b"b"));
        assert!(bounds.contains(&schema_prefix(ShardId(7))));
        assert!(!bounds.contains(&schema_prefix(ShardId(8))));
    }
}
