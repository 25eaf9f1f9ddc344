//! Ranges: reading them, and deciding whether reported ones fit together.

use lineradb_proto::shard::v1::ShardDescriptor;
use std::collections::BTreeMap;

/// Start and end of a descriptor; an empty end has no bound.
pub fn span_of(descriptor: &ShardDescriptor) -> (&[u8], &[u8]) {
    match &descriptor.span {
        Some(span) => (&span.start, &span.end),
        None => (&[], &[]),
    }
}

/// True when `inner` lies within `outer`; empty ends have no bound.
fn within(inner: (&[u8], &[u8]), outer: (&[u8], &[u8])) -> bool {
    inner.0 >= outer.0
        && (outer.1.is_empty() || (!inner.1.is_empty() && inner.1 <= outer.1))
        && (inner.1.is_empty() || inner.0 < inner.1)
}

/// True when the sorted `spans` follow each other without gap or overlap and
/// cover exactly `outer`.
pub fn tile(spans: &[(&[u8], &[u8])], outer: (&[u8], &[u8])) -> bool {
    let (Some(first), Some(last)) = (spans.first(), spans.last()) else {
        return false;
    };
    first.0 == outer.0
        && last.1 == outer.1
        && spans.iter().all(|s| s.1.is_empty() || s.0 < s.1)
        && spans
            .windows(2)
            .all(|pair| !pair[0].1.is_empty() && pair[0].1 == pair[1].0)
}

/// The parts into which `old` has been split, when `reported` (by shard id)
/// holds all of them: they tile the old range exactly. `known` says which
/// shards are in the map already.
///
/// A parent that is reported shrunk before its child has been heard of is not
/// taken over yet: the map would have a hole.
pub fn complete_split(
    old: &ShardDescriptor,
    reported: &BTreeMap<u64, ShardDescriptor>,
    known: impl Fn(u64) -> bool,
) -> Option<Vec<ShardDescriptor>> {
    let parent = reported.get(&old.shard_id)?;
    if parent.version <= old.version {
        return None;
    }
    let outer = span_of(old);
    let mut parts: Vec<&ShardDescriptor> = reported
        .values()
        .filter(|d| d.shard_id == old.shard_id || !known(d.shard_id))
        .filter(|d| within(span_of(d), outer))
        .collect();
    parts.sort_by_key(|d| span_of(d));
    let spans: Vec<_> = parts.iter().map(|d| span_of(d)).collect();
    let complete = parts.iter().any(|d| d.shard_id == old.shard_id) && tile(&spans, outer);
    complete.then(|| parts.into_iter().cloned().collect())
}

/// Takes over from `new` what is newer: the range by its version, the replicas
/// by their configuration version. Says whether anything changed.
pub fn merge_newer(into: &mut ShardDescriptor, new: &ShardDescriptor) -> bool {
    let mut changed = false;
    if new.version > into.version {
        into.version = new.version;
        into.span.clone_from(&new.span);
        changed = true;
    }
    if new.configuration_version > into.configuration_version && !new.replicas.is_empty() {
        into.configuration_version = new.configuration_version;
        into.replicas.clone_from(&new.replicas);
        changed = true;
    }
    changed
}
