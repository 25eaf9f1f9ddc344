use super::*;
use futures::FutureExt;
use lineradb_common::Timestamp;
use lineradb_common::clock::Stopwatch;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SHARD: ShardId = ShardId(1);

fn id(n: u8) -> TxnId {
    TxnId([n; 16])
}

/// The larger the number, the younger.
fn contender(n: u8) -> Contender {
    Contender {
        started: Timestamp::from_micros(n.into()),
        id: id(n),
    }
}

fn ids(deadlock: &Deadlock) -> (TxnId, TxnId) {
    (deadlock.victim(), deadlock.blocker())
}

fn is_woken(waiting: &Waiting<'_>) -> bool {
    waiting.woken().now_or_never().is_some()
}

#[test]
fn equally_old_ones_are_told_apart_by_their_ids() {
    let graph = WaitGraph::default();
    let started = Timestamp::from_micros(1);
    let at_once = |n| Contender { started, id: id(n) };
    let seven = graph.enter(at_once(7), vec![id(8)]).unwrap();
    let refused = graph.enter(at_once(8), vec![id(7)]).err().unwrap();
    assert_eq!(ids(&refused), (id(8), id(7)));
    assert!(!is_woken(&seven));
}

#[test]
fn one_newcomer_may_close_several_circles() {
    let graph = WaitGraph::default();
    // 2 and 3 wait for 1, which then waits for both; 4 waits for nobody in a circle.
    let two = graph.enter(contender(2), vec![id(1)]).unwrap();
    let three = graph.enter(contender(3), vec![id(1)]).unwrap();
    let four = graph.enter(contender(4), vec![id(1)]).unwrap();
    let one = graph.enter(contender(1), vec![id(2), id(3)]).unwrap();
    assert!(is_woken(&two) && is_woken(&three));
    assert!(!is_woken(&four) && !is_woken(&one));
    for (waiting, n) in [(&two, 2), (&three, 3)] {
        match waiting.look(vec![id(1)]) {
            Err(GiveUp::Deadlock(deadlock)) => assert_eq!(ids(&deadlock), (id(n), id(1))),
            other => panic!("no deadlock: {other:?}"),
        }
    }
    drop((one, two, three, four));
    assert!(graph.is_empty());
}

#[test]
fn a_verdict_on_a_wait_that_is_over_is_void() {
    let graph = WaitGraph::default();
    let circle = || Deadlock::new(&[id(2), id(1)]).unwrap();
    assert!(!graph.condemn(circle()), "it does not wait here");
    let two = graph.enter(contender(2), vec![id(1)]).unwrap();
    assert!(graph.condemn(circle()));
    assert!(is_woken(&two));
    // By now it waits for another one; a circle with that one is seen again.
    assert_eq!(two.look(vec![id(3)]), Ok(()));
    assert!(!graph.condemn(circle()));
    let refused = graph.enter(contender(3), vec![id(2)]).err().unwrap();
    assert_eq!(ids(&refused), (id(3), id(2)));
    // The next verdict counts like the first.
    let three = Deadlock::new(&[id(2), id(3)]).unwrap();
    assert!(graph.condemn(three.clone()));
    assert_eq!(two.look(vec![id(3)]), Err(GiveUp::Deadlock(three)));
}

#[test]
fn a_transaction_waits_for_all_that_its_requests_wait_for() {
    let graph = WaitGraph::default();
    let here = graph.enter(contender(2), vec![id(8)]).unwrap();
    let there = graph.enter(contender(2), vec![id(1)]).unwrap();
    let one = graph.enter(contender(1), vec![id(2)]).unwrap();
    assert!(is_woken(&there) && !is_woken(&here));
    // The other request leaves; the verdict stands.
    drop(here);
    assert!(matches!(there.look(vec![id(1)]), Err(GiveUp::Deadlock(_))));
    drop((there, one));
    assert!(graph.is_empty());
}

#[test]
fn waits_are_reported_when_they_last() {
    let graph = WaitGraph::default();
    let waiting = graph.enter(contender(2), vec![id(1)]).unwrap();
    waiting.look(vec![id(1)]).unwrap();
    let watch = Stopwatch::start();
    while graph.lasts().now_or_never().is_none() {
        assert!(watch.elapsed() < Duration::from_secs(60));
        waiting.look(vec![id(1)]).unwrap();
        std::thread::yield_now();
    }
    let reported = LastingWait {
        waiter: contender(2),
        holders: vec![id(1)],
    };
    assert_eq!(graph.lasting(), [reported]);
    // Who gives way is no concern of others.
    graph.condemn(Deadlock::new(&[id(2), id(1)]).unwrap());
    assert!(graph.lasting().is_empty());
    drop(waiting);
    assert!(graph.lasts().now_or_never().is_none());
}

/// A commit has laid an intent and waits for a lock; whoever holds that lock meets
/// the intent. Younger or older: the younger one gives way.
#[test]
fn those_who_ask_again_and_again_are_part_of_circles() {
    for (commit, reader) in [(1, 2), (2, 1)] {
        let graph = WaitGraph::default();
        let lock = graph.enter(contender(commit), vec![id(reader)]).unwrap();
        let watch = Stopwatch::start();
        let met = loop {
            assert!(watch.elapsed() < Duration::from_secs(60));
            let met = graph.meet(contender(reader), SHARD, vec![id(commit)]);
            if met.is_err() || is_woken(&lock) {
                break met;
            }
            std::thread::yield_now();
        };
        let circle = match met {
            Err(deadlock) => deadlock,
            Ok(()) => match lock.look(vec![id(reader)]) {
                Err(GiveUp::Deadlock(deadlock)) => deadlock,
                other => panic!("no deadlock: {other:?}"),
            },
        };
        assert_eq!(ids(&circle), (id(2), id(1)));
        drop(lock);
        graph.pass(id(reader), SHARD);
        assert!(graph.is_empty());
    }
}

/// Whether anybody waits in a circle: `edges` says who waits for whom.
fn has_circle(edges: &BTreeMap<u8, BTreeSet<u8>>) -> bool {
    let mut left = edges.clone();
    loop {
        let is_free = |holders: &BTreeSet<u8>| !holders.iter().any(|h| left.contains_key(h));
        let free = left.iter().find(|(_, holders)| is_free(holders));
        match free.map(|(waiter, _)| *waiter) {
            Some(waiter) => left.remove(&waiter),
            None => return !left.is_empty(),
        };
    }
}

proptest! {
    /// Whatever comes in whatever order: nobody who still waits is in a circle, and
    /// nobody gives way without one.
    #[test]
    fn no_circle_is_left(waits in proptest::collection::vec((0..6u8, 0..6u8), 1..20)) {
        let graph = WaitGraph::default();
        let mut open: Vec<(u8, u8, Option<Waiting<'_>>)> = Vec::new();
        let edges = |open: &[(u8, u8, Option<Waiting<'_>>)]| {
            let mut edges: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
            for (waiter, holder, waiting) in open {
                if waiting.is_some() {
                    edges.entry(*waiter).or_default().insert(*holder);
                }
            }
            edges
        };
        for (waiter, holder) in waits {
            if waiter == holder {
                continue;
            }
            let mut would_be = edges(&open);
            would_be.entry(waiter).or_default().insert(holder);
            let closes = has_circle(&would_be);
            let mut refused = false;
            match graph.enter(contender(waiter), vec![id(holder)]) {
                Ok(waiting) => open.push((waiter, holder, Some(waiting))),
                Err(deadlock) => {
                    prop_assert_eq!(deadlock.victim(), id(waiter));
                    prop_assert!(closes);
                    refused = true;
                }
            }
            let mut victims = BTreeSet::new();
            for (waiter, holder, waiting) in &open {
                let gives_up = waiting.as_ref().map(|w| w.look(vec![id(*holder)]));
                if let Some(Err(GiveUp::Deadlock(deadlock))) = gives_up {
                    prop_assert_eq!(deadlock.victim(), id(*waiter));
                    prop_assert!(closes && !refused);
                    victims.insert(*waiter);
                }
            }
            // A transaction that gives way gives everything up.
            for (waiter, _, waiting) in &mut open {
                if victims.contains(waiter) {
                    *waiting = None;
                }
            }
            prop_assert!(!has_circle(&edges(&open)));
        }
    }
}
