//! Deadlocks over several nodes: transactions that wait for each other in a circle
//! of which no node sees all.
//!
//! Each node reports its waits, all of them at a time; the last reports together are
//! a graph, and every circle in it is a deadlock, since a transaction needs all that
//! it waits for. The **youngest** of a circle gives way: it has done the least so
//! far (ties go by the id, so that every look at the same reports says the same).
//! Who that is is told to the node on which it waits, with that node's next report:
//! no verdict is stored, and one about a wait that is over is never given.
//!
//! Plain data, as all of the leader's view: a new leader knows everything again
//! with the next reports. A report lapses when it is not renewed; so a node that
//! died, or cannot be heard, keeps nobody from going on for long.
//!
//! Reports are of different moments. A circle of waits that were never there at the
//! same time ends a transaction for nothing; it is tried again.

use lineradb_common::TxnId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A report that is not renewed for so long lapses. Nodes renew theirs ten times a
/// second.
pub const LAPSE: Duration = Duration::from_millis(500);

/// A transaction that waits for others: for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Who waits.
    pub waiter: TxnId,
    /// When it began: the youngest has the largest.
    pub started: u64,
    /// For whom.
    pub holders: Vec<TxnId>,
}

/// Transactions in a circle: each waits for the next one, the last for the first,
/// which has to give way.
pub type Circle = Vec<TxnId>;

/// What the nodes have reported last.
#[derive(Debug, Default)]
pub struct Detector {
    reports: BTreeMap<u64, Report>,
}

#[derive(Debug)]
struct Report {
    at: Duration,
    waits: Vec<Wait>,
}

impl Detector {
    /// Takes the place of what a node has reported before. Answers the circles whose
    /// victim waits on this node; they are taken to be broken then.
    pub fn report(&mut self, now: Duration, node: u64, waits: Vec<Wait>) -> Vec<Circle> {
        self.lapse(now);
        if waits.is_empty() {
            self.reports.remove(&node);
            return Vec::new();
        }
        self.reports.insert(node, Report { at: now, waits });
        let mut circles = circles(self.reports.values().flat_map(|report| &report.waits));
        circles.retain(|circle| self.waits_on(node, circle));
        let gone: BTreeSet<TxnId> = circles.iter().filter_map(|c| c.first()).copied().collect();
        for report in self.reports.values_mut() {
            report.waits.retain(|wait| !gone.contains(&wait.waiter));
        }
        circles
    }

    /// How many waits are known.
    pub fn waits(&mut self, now: Duration) -> usize {
        self.lapse(now);
        self.reports.values().map(|report| report.waits.len()).sum()
    }

    /// Whether the first of a circle waits for the second on a node.
    fn waits_on(&self, node: u64, circle: &[TxnId]) -> bool {
        let (Some(report), [victim, blocker, ..]) = (self.reports.get(&node), circle) else {
            return false;
        };
        let is_it = |wait: &Wait| wait.waiter == *victim && wait.holders.contains(blocker);
        report.waits.iter().any(is_it)
    }

    fn lapse(&mut self, now: Duration) {
        self.reports
            .retain(|_, report| now.saturating_sub(report.at) < LAPSE);
    }
}

/// Circles such that none is left when the first of each is gone.
pub fn circles<'a>(waits: impl Iterator<Item = &'a Wait>) -> Vec<Circle> {
    let mut graph = Graph::new(waits);
    let mut found = Vec::new();
    for from in 0..graph.txns.len() {
        while let Some(circle) = graph.circle_behind(from) {
            found.push(circle.iter().map(|at| graph.txns[*at]).collect());
            graph.remove(circle[0]);
        }
    }
    found
}

/// Those who wait, by age: the youngest last. Whoever waits for nobody who is here
/// is not: so each of the rest waits for one of the rest.
struct Graph {
    txns: Vec<TxnId>,
    ahead: Vec<Vec<usize>>,
    behind: Vec<Vec<usize>>,
    /// How many of `ahead` are here.
    blockers: Vec<usize>,
    here: Vec<bool>,
}

impl Graph {
    fn new<'a>(waits: impl Iterator<Item = &'a Wait>) -> Self {
        // A transaction may wait at several places, and not all know its age.
        let mut parties: BTreeMap<TxnId, (u64, BTreeSet<TxnId>)> = BTreeMap::new();
        for wait in waits {
            let new = || (wait.started, BTreeSet::new());
            let (started, holders) = parties.entry(wait.waiter).or_insert_with(new);
            *started = wait.started.min(*started);
            holders.extend(wait.holders.iter().filter(|id| **id != wait.waiter));
        }
        let mut txns: Vec<TxnId> = parties.keys().copied().collect();
        txns.sort_by_key(|id| (parties.get(id).map(|(started, _)| *started), *id));
        let place: BTreeMap<TxnId, usize> = txns.iter().copied().zip(0..).collect();
        let mut behind = vec![Vec::new(); txns.len()];
        let mut ahead = Vec::with_capacity(txns.len());
        for (at, id) in txns.iter().enumerate() {
            let holders = parties.get(id).into_iter().flat_map(|(_, holders)| holders);
            let mut places: Vec<usize> = holders.filter_map(|h| place.get(h)).copied().collect();
            places.sort_unstable();
            for holder in &places {
                behind[*holder].push(at);
            }
            ahead.push(places);
        }
        let mut graph = Graph {
            blockers: ahead.iter().map(Vec::len).collect(),
            here: vec![true; txns.len()],
            txns,
            ahead,
            behind,
        };
        for at in 0..graph.txns.len() {
            if graph.here[at] && graph.blockers[at] == 0 {
                graph.remove(at);
            }
        }
        graph
    }

    /// Takes one out, and those who then wait for nobody who is here.
    fn remove(&mut self, at: usize) {
        self.here[at] = false;
        let mut gone = vec![at];
        while let Some(at) = gone.pop() {
            for waiter in &self.behind[at] {
                self.blockers[*waiter] -= 1;
                if self.here[*waiter] && self.blockers[*waiter] == 0 {
                    self.here[*waiter] = false;
                    gone.push(*waiter);
                }
            }
        }
    }

    /// The circle that somebody is in or waits for, the youngest first; `None`: it
    /// is not here.
    fn circle_behind(&self, from: usize) -> Option<Vec<usize>> {
        if !self.here[from] {
            return None;
        }
        let mut passed: BTreeMap<usize, usize> = BTreeMap::new();
        let mut way = Vec::new();
        let mut at = from;
        while !passed.contains_key(&at) {
            passed.insert(at, way.len());
            way.push(at);
            at = self.ahead[at].iter().copied().find(|to| self.here[*to])?;
        }
        let mut circle = way.split_off(passed.get(&at).copied()?);
        let youngest = circle.iter().enumerate().max_by_key(|(_, at)| **at)?.0;
        circle.rotate_left(youngest);
        Some(circle)
    }
}

#[cfg(test)]
mod tests;
