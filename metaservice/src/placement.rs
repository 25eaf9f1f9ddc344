//! Where replicas go: a pure function of the nodes and the shard.
//!
//! A consistent-hash ring with virtual nodes orders all nodes anew for each
//! shard; a node that joins or leaves changes that order for about 1/N of the
//! shards only. From this order the replicas are taken so that failure domains
//! are spread first: each replica goes to the first node in ring order whose
//! zone, region and cloud are the least used so far. Within equal domains the
//! ring decides alone.

use consistent_hash::{DefaultHash, Node, StaticHashRing};
use lineradb_common::locality::DOMAINS;
use std::collections::BTreeMap;

/// Virtual nodes of a node of weight 1: enough that loads differ by a few
/// percent.
const VIRTUAL_NODES: usize = 128;

/// A node that may hold replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub node_id: u64,
    /// Where it runs.
    pub locality: BTreeMap<String, String>,
    /// Relative capacity; 0 takes nothing.
    pub weight: u32,
}

/// The nodes for the replicas of a shard: `count` of them, or fewer when there
/// are not enough. `keep` stays (members that are not to move).
pub fn place(shard_id: u64, candidates: &[Candidate], count: usize, keep: &[u64]) -> Vec<u64> {
    let by_id: BTreeMap<u64, &Candidate> = candidates.iter().map(|c| (c.node_id, c)).collect();
    let mut chosen: Vec<u64> = keep.iter().copied().take(count).collect();
    let mut rest: Vec<&Candidate> = ring_order(shard_id, candidates)
        .into_iter()
        .filter(|id| !chosen.contains(id))
        .filter_map(|id| by_id.get(&id).copied())
        .collect();
    while chosen.len() < count && !rest.is_empty() {
        let used: Vec<&Candidate> = chosen
            .iter()
            .filter_map(|id| by_id.get(id).copied())
            .collect();
        // The first of the smallest: ring order decides among equals.
        let best = rest
            .iter()
            .enumerate()
            .min_by_key(|(order, c)| (crowding(c, &used), *order))
            .map(|(order, _)| order);
        let Some(best) = best else { break };
        chosen.push(rest.remove(best).node_id);
    }
    chosen
}

/// How many of `used` share each domain with `candidate`, the largest domain
/// first: smaller is better spread.
fn crowding(candidate: &Candidate, used: &[&Candidate]) -> [usize; DOMAINS.len()] {
    let mut shared = [0; DOMAINS.len()];
    for other in used {
        for (level, name) in DOMAINS.iter().enumerate() {
            if candidate.locality.get(*name) != other.locality.get(*name) {
                break;
            }
            shared[level] += 1;
        }
    }
    shared
}

/// All nodes, in the order in which the ring offers them for a shard.
fn ring_order(shard_id: u64, candidates: &[Candidate]) -> Vec<u64> {
    let nodes = candidates.iter().map(|c| {
        let quantity = VIRTUAL_NODES.saturating_mul(c.weight.min(1000) as usize);
        Node::new(c.node_id).quantity(quantity)
    });
    let ring = StaticHashRing::new(DefaultHash, nodes);
    // An id alone and a virtual node's (id, sequence) hash differently; the
    // tag keeps shard ids apart from anything else that may be placed one day.
    ring.calc_candidates(&("shard", shard_id))
        .map(|n| n.key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn node(node_id: u64, region: u64, zone: u64) -> Candidate {
        Candidate {
            node_id,
            locality: BTreeMap::from([
                ("region".to_owned(), format!("r{region}")),
                ("zone".to_owned(), format!("z{zone}")),
            ]),
            weight: 1,
        }
    }

    fn nodes(count: u64) -> Vec<Candidate> {
        (1..=count).map(|id| node(id, 0, 0)).collect()
    }

    #[test]
    fn replicas_go_to_different_zones_before_different_nodes() {
        let nodes = [
            node(1, 1, 1),
            node(2, 1, 1),
            node(3, 1, 2),
            node(4, 1, 2),
            node(5, 1, 3),
        ];
        for shard in 1..200 {
            let zones: BTreeSet<_> = place(shard, &nodes, 3, &[])
                .into_iter()
                .map(|id| nodes[id as usize - 1].locality["zone"].clone())
                .collect();
            assert_eq!(zones.len(), 3, "shard {shard}");
        }
    }

    #[test]
    fn a_node_of_weight_zero_takes_nothing() {
        let mut nodes = nodes(3);
        nodes[0].weight = 0;
        for shard in 1..50 {
            assert!(!place(shard, &nodes, 3, &[]).contains(&1));
        }
    }

    #[test]
    fn load_is_even_enough() {
        let nodes = nodes(8);
        let mut load = BTreeMap::<u64, usize>::new();
        for shard in 1..=4000 {
            for id in place(shard, &nodes, 3, &[]) {
                *load.entry(id).or_default() += 1;
            }
        }
        let mean = 4000 * 3 / 8;
        for (id, count) in load {
            assert!(
                count > mean * 7 / 10 && count < mean * 13 / 10,
                "node {id}: {count}"
            );
        }
    }

    #[test]
    fn a_joining_node_moves_its_share_and_no_more() {
        for n in [3u64, 5, 9] {
            let before = nodes(n);
            let after = nodes(n + 1);
            let (mut moved, shards) = (0usize, 3000u64);
            for shard in 1..=shards {
                let old: BTreeSet<_> = place(shard, &before, 3, &[]).into_iter().collect();
                let new: BTreeSet<_> = place(shard, &after, 3, &[]).into_iter().collect();
                // Only the new node ever comes in: nothing else is shuffled.
                assert!(new.difference(&old).all(|id| *id == n + 1));
                moved += new.difference(&old).count();
            }
            let share = shards as usize * 3 / (n as usize + 1);
            assert!(
                moved > share * 6 / 10 && moved < share * 14 / 10,
                "{n} nodes: {moved} replicas moved, its share is {share}"
            );
        }
    }

    proptest! {
        #[test]
        fn placement_is_deterministic_distinct_and_spread(
            shard in 1u64..1_000_000,
            layout in proptest::collection::vec((0u64..3, 0u64..3), 1..12),
            count in 1usize..6,
        ) {
            let nodes: Vec<_> = (1..).zip(&layout).map(|(id, (r, z))| node(id, *r, *z)).collect();
            let chosen = place(shard, &nodes, count, &[]);
            prop_assert_eq!(chosen.len(), count.min(nodes.len()));
            let distinct: BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
            let mut reversed = nodes.clone();
            reversed.reverse();
            prop_assert_eq!(&place(shard, &reversed, count, &[]), &chosen);
            // As many regions as there can be.
            let all: BTreeSet<_> = layout.iter().map(|(r, _)| r).collect();
            let used: BTreeSet<_> = chosen.iter().map(|id| &layout[*id as usize - 1].0).collect();
            prop_assert_eq!(used.len(), count.min(all.len()).min(nodes.len()));
        }

        #[test]
        fn members_that_stay_are_kept(shard in 1u64..1000, keep in 1u64..6) {
            let chosen = place(shard, &nodes(6), 3, &[keep]);
            prop_assert!(chosen.contains(&keep));
            prop_assert_eq!(chosen.len(), 3);
        }
    }
}
