//! What this process believes about which shard holds which keys. Pure data:
//! beliefs in, routes out.
//!
//! Beliefs come from the metaservice's map and from the descriptors that nodes
//! put into their refusals; either may be old. The newest version wins: a
//! split or merge raises the version of every shard that it touches above
//! those that it replaces, so a descriptor that overlaps one of an equal or
//! higher version of *another* shard is a memory of the past. A wrong belief
//! costs a round trip and is corrected by the answer; it never breaks anything,
//! since each request names the shard and the version that it was meant for.
//!
//! Invariants: entries do not overlap; each shard id appears once. There may
//! be gaps (nothing known).

use crate::types::Span;
use bytes::Bytes;
use lineradb_common::locality;
use lineradb_proto::meta::v1::ClusterMap;
use lineradb_proto::shard::v1::{Replica, ShardDescriptor};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The key range of a shard.
pub fn span_of(shard: &ShardDescriptor) -> Span {
    shard.span.as_ref().map_or_else(Span::default, |span| Span {
        start: span.start.clone(),
        end: span.end.clone(),
    })
}

/// A cache of descriptors by range.
#[derive(Clone, Debug, Default)]
pub struct ShardMap {
    shards: BTreeMap<Bytes, Arc<ShardDescriptor>>,
    starts: HashMap<u64, Bytes>,
    addresses: HashMap<u64, String>,
    localities: Arc<HashMap<u64, HashMap<String, String>>>,
    revision: u64,
}

impl ShardMap {
    /// Revision of the newest whole map seen.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All that is known, in key order.
    pub fn shards(&self) -> impl DoubleEndedIterator<Item = &Arc<ShardDescriptor>> {
        self.shards.values()
    }

    /// The shard that holds `key`.
    pub fn lookup(&self, key: &[u8]) -> Option<&Arc<ShardDescriptor>> {
        let (_, shard) = self
            .shards
            .range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key)))
            .next_back()?;
        span_of(shard).contains(key).then_some(shard)
    }

    /// The shard that holds the keys just below `end` (empty: the last keys of
    /// all).
    pub fn lookup_before(&self, end: &[u8]) -> Option<&Arc<ShardDescriptor>> {
        let upper = if end.is_empty() {
            std::ops::Bound::Unbounded
        } else {
            std::ops::Bound::Excluded(end)
        };
        let (_, shard) = self
            .shards
            .range::<[u8], _>((std::ops::Bound::Unbounded, upper))
            .next_back()?;
        let span = span_of(shard);
        (span.end.is_empty() || (!end.is_empty() && span.end.as_ref() >= end)).then_some(shard)
    }

    /// The shard with an id.
    pub fn by_id(&self, shard_id: u64) -> Option<&Arc<ShardDescriptor>> {
        self.shards.get(self.starts.get(&shard_id)?)
    }

    /// Cuts a span at shard borders, in key order. A part without a shard is a
    /// gap in what is known.
    pub fn split_span(&self, span: &Span) -> Vec<(Span, Option<Arc<ShardDescriptor>>)> {
        let mut parts = Vec::new();
        let mut cursor = span.start.clone();
        loop {
            let rest = Span::new(cursor.clone(), span.end.clone());
            if rest.is_empty() {
                return parts;
            }
            let shard = self.lookup(&cursor).cloned();
            let end = match &shard {
                Some(shard) => span_of(shard).end,
                None => self.next_start_after(&cursor),
            };
            let part = rest.intersect(&Span::new(cursor, end.clone()));
            let done = end.is_empty() || (!span.end.is_empty() && end >= span.end);
            parts.push((part, shard));
            if done {
                return parts;
            }
            cursor = end;
        }
    }

    fn next_start_after(&self, key: &Bytes) -> Bytes {
        self.shards
            .range((
                std::ops::Bound::Excluded(key.clone()),
                std::ops::Bound::Unbounded,
            ))
            .next()
            .map_or_else(Bytes::new, |(start, _)| start.clone())
    }

    /// Where a replica listens: as its node said last, else as the descriptor
    /// says.
    pub fn address<'a>(&'a self, replica: &'a Replica) -> &'a str {
        self.addresses
            .get(&replica.node_id)
            .map_or(replica.address.as_str(), String::as_str)
    }

    /// The replica nearest to `home`: that with which it shares the most tiers, of
    /// several the leader. Where nothing is known of places, the leader.
    pub fn nearest<'a>(
        &self,
        shard: &'a ShardDescriptor,
        home: &HashMap<String, String>,
    ) -> Option<&'a Replica> {
        let shared = |replica: &Replica| {
            let there = self.localities.get(&replica.node_id);
            let tiers = there.map_or(0, |there| locality::shared(home, there));
            (tiers, replica.node_id == shard.leader_node_id)
        };
        let best = shard.replicas.iter().max_by_key(|replica| shared(replica));
        best.filter(|replica| shared(replica) != (0, false))
    }

    /// Takes over a whole map of the metaservice. What nodes said since may be
    /// newer and then stays. True when something changed.
    pub fn merge_map(&mut self, map: &ClusterMap) -> bool {
        if map.revision < self.revision {
            return false;
        }
        let mut next = ShardMap {
            revision: map.revision,
            addresses: self.addresses.clone(),
            localities: { map.nodes.iter() }
                .map(|node| (node.node_id, node.locality.clone()))
                .collect::<HashMap<_, _>>()
                .into(),
            ..ShardMap::default()
        };
        for node in &map.nodes {
            if !node.address.is_empty() {
                next.addresses.insert(node.node_id, node.address.clone());
            }
        }
        for shard in &map.shards {
            let mut shard = shard.clone();
            if let Some(known) = self.by_id(shard.shard_id) {
                keep_hint(&mut shard, known);
            }
            next.merge(shard);
        }
        for known in self.shards.values() {
            next.merge(ShardDescriptor::clone(known));
        }
        let changed = next.shards != self.shards || next.addresses != self.addresses;
        *self = next;
        changed
    }

    /// Takes over one descriptor, unless something newer is known. True when
    /// something changed.
    pub fn merge(&mut self, mut shard: ShardDescriptor) -> bool {
        let span = span_of(&shard);
        if span.is_empty() || shard.shard_id == 0 {
            return false;
        }
        let overlapping: Vec<Arc<ShardDescriptor>> = self.overlapping(&span);
        let same = self.by_id(shard.shard_id).cloned();
        let rank = |s: &ShardDescriptor| (s.version, s.configuration_version);
        if let Some(same) = &same {
            if rank(same) > rank(&shard) {
                return false;
            }
            if rank(same) == rank(&shard) {
                return shard.leader_node_id != 0
                    && self.set_leader(shard.shard_id, shard.leader_node_id);
            }
            if shard.leader_node_id == 0 {
                keep_hint(&mut shard, same);
            }
        }
        if overlapping
            .iter()
            .any(|other| other.shard_id != shard.shard_id && other.version >= shard.version)
        {
            return false;
        }
        for old in overlapping.iter().chain(&same) {
            self.forget(old.shard_id);
        }
        self.starts.insert(shard.shard_id, span.start.clone());
        self.shards.insert(span.start, Arc::new(shard));
        true
    }

    fn overlapping(&self, span: &Span) -> Vec<Arc<ShardDescriptor>> {
        let first = self
            .shards
            .range(..=span.start.clone())
            .next_back()
            .map(|(_, shard)| shard);
        let later = self
            .shards
            .range((
                std::ops::Bound::Excluded(span.start.clone()),
                std::ops::Bound::Unbounded,
            ))
            .map(|(_, shard)| shard)
            .take_while(|shard| span_of(shard).overlaps(span));
        first
            .into_iter()
            .filter(|shard| span_of(shard).overlaps(span))
            .chain(later)
            .cloned()
            .collect()
    }

    /// Notes who leads a shard; 0: nobody known. True when that is news.
    pub fn set_leader(&mut self, shard_id: u64, node_id: u64) -> bool {
        let Some(shard) = self
            .starts
            .get(&shard_id)
            .and_then(|start| self.shards.get_mut(start))
        else {
            return false;
        };
        if shard.leader_node_id == node_id {
            return false;
        }
        Arc::make_mut(shard).leader_node_id = node_id;
        true
    }

    /// Drops what is known about a shard.
    pub fn forget(&mut self, shard_id: u64) {
        if let Some(start) = self.starts.remove(&shard_id) {
            self.shards.remove(&start);
        }
    }
}

/// The leader known so far, if it still is a replica: what we learnt from the
/// nodes themselves is younger than what the metaservice has heard.
fn keep_hint(shard: &mut ShardDescriptor, known: &ShardDescriptor) {
    let leader = known.leader_node_id;
    if leader != 0 && shard.replicas.iter().any(|r| r.node_id == leader) {
        shard.leader_node_id = leader;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_proto::shard::v1 as pb;
    use proptest::prelude::*;

    fn shard(id: u64, version: u64, start: &[u8], end: &[u8]) -> ShardDescriptor {
        ShardDescriptor {
            shard_id: id,
            span: Some(pb::Span {
                start: Bytes::copy_from_slice(start),
                end: Bytes::copy_from_slice(end),
            }),
            version,
            configuration_version: 1,
            replicas: [1, 2, 3]
                .map(|node_id| Replica {
                    replica_id: node_id << 16 | 1,
                    node_id,
                    address: format!("n{node_id}"),
                })
                .to_vec(),
            leader_node_id: 0,
        }
    }

    fn id_at(map: &ShardMap, key: &[u8]) -> Option<u64> {
        map.lookup(key).map(|s| s.shard_id)
    }

    #[test]
    fn a_split_replaces_its_parent_and_the_parent_does_not_come_back() {
        let mut map = ShardMap::default();
        assert!(map.merge(shard(1, 1, b"", b"")));
        assert!(map.merge(shard(2, 2, b"m", b"")));
        assert_eq!(id_at(&map, b"z"), Some(2));
        assert_eq!(id_at(&map, b"a"), None, "the parent's old range is void");
        assert!(map.merge(shard(1, 2, b"", b"m")));
        assert!(!map.merge(shard(1, 1, b"", b"")));
        assert_eq!(id_at(&map, b"a"), Some(1));
        assert_eq!(id_at(&map, b"m"), Some(2));
    }

    #[test]
    fn a_whole_map_repairs_versions_that_do_not_compare() {
        // A child whose version starts at 1 under a parent at 5.
        let mut map = ShardMap::default();
        map.merge(shard(1, 5, b"", b""));
        let whole = ClusterMap {
            revision: 9,
            shards: vec![shard(2, 1, b"m", b""), shard(1, 6, b"", b"m")],
            ..ClusterMap::default()
        };
        assert!(map.merge_map(&whole));
        assert_eq!(id_at(&map, b"z"), Some(2));
        assert_eq!(id_at(&map, b"a"), Some(1));
    }

    #[test]
    fn leader_hints_survive_until_the_replica_is_gone() {
        let mut map = ShardMap::default();
        map.merge(shard(1, 1, b"", b""));
        assert!(map.set_leader(1, 3));
        let mut moved = shard(1, 1, b"", b"");
        moved.configuration_version = 2;
        assert!(map.merge(moved.clone()));
        assert_eq!(map.by_id(1).unwrap().leader_node_id, 3);
        moved.configuration_version = 3;
        moved.replicas.pop();
        assert!(map.merge(moved));
        assert_eq!(map.by_id(1).unwrap().leader_node_id, 0);
    }

    #[test]
    fn spans_split_at_borders_with_gaps_named() {
        let mut map = ShardMap::default();
        map.merge(shard(1, 1, b"b", b"d"));
        map.merge(shard(2, 1, b"d", b"f"));
        let parts: Vec<_> = map
            .split_span(&Span::default())
            .into_iter()
            .map(|(span, s)| (span, s.map(|s| s.shard_id)))
            .collect();
        assert_eq!(
            parts,
            vec![
                (Span::new("", "b"), None),
                (Span::new("b", "d"), Some(1)),
                (Span::new("d", "f"), Some(2)),
                (Span::new("f", ""), None),
            ]
        );
        assert_eq!(map.split_span(&Span::new("c", "c")), vec![]);
        assert_eq!(map.lookup_before(b"d").unwrap().shard_id, 1);
        assert_eq!(map.lookup_before(b"e").unwrap().shard_id, 2);
        assert!(map.lookup_before(b"").is_none());
        assert!(map.lookup_before(b"b").is_none());
    }

    /// A history of splits and merges over one-byte keys: every descriptor
    /// that ever was, and the current ones.
    fn history(steps: &[(u8, bool)]) -> (Vec<ShardDescriptor>, Vec<ShardDescriptor>) {
        let mut current = vec![shard(1, 1, b"", b"")];
        let mut all = current.clone();
        for (i, &(at, merge)) in steps.iter().enumerate() {
            let at = at.max(1);
            let index = current
                .iter()
                .position(|s| span_of(s).contains(&[at]))
                .unwrap();
            if merge && index + 1 < current.len() {
                let right = current.remove(index + 1);
                let left = &mut current[index];
                left.version = left.version.max(right.version) + 1;
                left.span.as_mut().unwrap().end = span_of(&right).end;
                all.push(left.clone());
            } else if span_of(&current[index]).start.as_ref() != [at] {
                let left = &mut current[index];
                left.version += 1;
                let end = span_of(left).end;
                left.span.as_mut().unwrap().end = Bytes::copy_from_slice(&[at]);
                let right = shard(100 + i as u64, left.version, &[at], &end);
                all.push(left.clone());
                all.push(right.clone());
                current.insert(index + 1, right);
            }
        }
        (all, current)
    }

    proptest! {
        #[test]
        fn whatever_arrives_in_whatever_order_the_present_wins(
            steps in prop::collection::vec((any::<u8>(), any::<bool>()), 0..24),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
        ) {
            let (all, current) = history(&steps);
            let mut map = ShardMap::default();
            for pick in &order {
                map.merge(pick.get(&all).clone());
                let mut end = Some(Bytes::new());
                for s in map.shards() {
                    let span = span_of(s);
                    let before = end.expect("nothing after the end of the key space");
                    prop_assert!(before <= span.start, "overlap");
                    end = (!span.end.is_empty()).then_some(span.end);
                }
                prop_assert_eq!(map.starts.len(), map.shards.len());
            }
            for s in &current {
                map.merge(s.clone());
            }
            for key in 0..=255u8 {
                let truth = current.iter().find(|s| span_of(s).contains(&[key])).unwrap();
                prop_assert_eq!(map.lookup(&[key]).map(|s| s.shard_id), Some(truth.shard_id));
            }
            let parts = map.split_span(&Span::default());
            prop_assert_eq!(parts.len(), current.len());
        }
    }
}
