//! Is a register history with unique values strictly serializable?
//!
//! Builds the serialization graph (Adya: write-write, write-read and read-write
//! edges) plus an edge from whatever ended before something else began, and
//! looks for a cycle.

use lineradb_common::Timestamp;
use std::collections::{BTreeMap, HashMap};

/// An acknowledged transaction.
#[derive(Debug)]
pub struct Done {
    pub number: u64,
    pub began: u64,
    pub ended: u64,
    pub at: Timestamp,
    /// What it read: the number of the writer, 0 for nothing.
    pub reads: Vec<(&'static str, u64)>,
    pub writes: Vec<&'static str>,
}

/// The edges of the serialization graph; panics on a read of what nobody wrote.
/// `all` may lack writers that died after their commit was decided by others.
fn edges(done: &[Done]) -> Vec<Vec<usize>> {
    let index: HashMap<u64, usize> = done
        .iter()
        .enumerate()
        .map(|(n, d)| (d.number, n))
        .collect();
    let mut versions: BTreeMap<&str, BTreeMap<Timestamp, usize>> = BTreeMap::new();
    for (n, txn) in done.iter().enumerate() {
        for key in &txn.writes {
            let old = versions.entry(key).or_default().insert(txn.at, n);
            assert!(old.is_none(), "two versions of {key} at {}", txn.at);
        }
    }
    let mut edges = vec![Vec::new(); done.len()];
    for order in versions.values() {
        let order: Vec<usize> = order.values().copied().collect();
        for pair in order.windows(2) {
            edges[pair[0]].push(pair[1]);
        }
    }
    for (n, txn) in done.iter().enumerate() {
        for (key, writer) in &txn.reads {
            let order = versions.entry(key).or_default();
            let next = if *writer == 0 {
                order.values().next()
            } else {
                let from = *index.get(writer).unwrap_or_else(|| {
                    panic!(
                        "{} read {key} of {writer}, which never committed",
                        txn.number
                    )
                });
                edges[from].push(n);
                let after = (
                    std::ops::Bound::Excluded(done[from].at),
                    std::ops::Bound::Unbounded,
                );
                order.range(after).next().map(|(_, next)| next)
            };
            if let Some(next) = next.filter(|next| **next != n) {
                edges[n].push(*next);
            }
        }
        for (m, other) in done.iter().enumerate() {
            if txn.ended < other.began {
                edges[n].push(m);
            }
        }
    }
    edges
}

/// True when no transaction comes before itself.
pub fn strictly_serializable(done: &[Done]) -> bool {
    let edges = edges(done);
    let mut waiting = vec![0usize; done.len()];
    for to in edges.iter().flatten() {
        waiting[*to] += 1;
    }
    let mut ready: Vec<usize> = (0..done.len()).filter(|n| waiting[*n] == 0).collect();
    let mut placed = 0;
    while let Some(n) = ready.pop() {
        placed += 1;
        for to in &edges[n] {
            waiting[*to] -= 1;
            if waiting[*to] == 0 {
                ready.push(*to);
            }
        }
    }
    placed == done.len()
}

#[test]
fn the_checker_finds_write_skew_and_stale_reads() {
    let txn = |number, began, ended, reads: &[(&'static str, u64)], writes: &[&'static str]| Done {
        number,
        began,
        ended,
        at: Timestamp::from_raw(100 + number),
        reads: reads.to_vec(),
        writes: writes.to_vec(),
    };
    let reads = [("a", 0), ("b", 0)];
    let skew = [txn(1, 0, 8, &reads, &["a"]), txn(2, 1, 9, &reads, &["b"])];
    assert!(!strictly_serializable(&skew));
    let stale = [txn(1, 0, 1, &[], &["a"]), txn(2, 2, 3, &[("a", 0)], &[])];
    assert!(!strictly_serializable(&stale));
    let overlapping = [txn(1, 0, 2, &[], &["a"]), txn(2, 1, 3, &[("a", 0)], &[])];
    assert!(strictly_serializable(&overlapping));
}
