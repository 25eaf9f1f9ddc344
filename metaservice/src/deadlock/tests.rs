use super::*;
use proptest::prelude::*;

fn id(n: usize) -> TxnId {
    TxnId([n as u8; 16])
}

fn ids(of: &[usize]) -> Circle {
    of.iter().map(|n| id(*n)).collect()
}

/// The larger the number, the younger.
fn wait(waiter: usize, holders: &[usize]) -> Wait {
    Wait {
        waiter: id(waiter),
        started: waiter as u64,
        holders: ids(holders),
    }
}

const fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Whether a transaction waits for itself, by way of others: from the edges alone.
fn waits_for_itself(edges: &BTreeSet<(TxnId, TxnId)>, txn: TxnId) -> bool {
    let mut reached = BTreeSet::from([txn]);
    loop {
        let next: BTreeSet<TxnId> = { edges.iter() }
            .filter(|(waiter, _)| reached.contains(waiter))
            .map(|(_, holder)| *holder)
            .collect();
        if next.contains(&txn) {
            return true;
        }
        let before = reached.len();
        reached.extend(next);
        if reached.len() == before {
            return false;
        }
    }
}

/// What must hold for the circles found among some waits.
fn check(waits: &[Wait]) {
    let found = circles(waits.iter());
    let mut edges = BTreeSet::new();
    let mut started: BTreeMap<TxnId, u64> = BTreeMap::new();
    for wait in waits {
        edges.extend(wait.holders.iter().map(|holder| (wait.waiter, *holder)));
        let known = started.entry(wait.waiter).or_insert(wait.started);
        *known = wait.started.min(*known);
    }
    edges.retain(|(waiter, holder)| waiter != holder);
    for circle in &found {
        assert!(circle.len() > 1);
        let distinct: BTreeSet<&TxnId> = circle.iter().collect();
        assert_eq!(distinct.len(), circle.len(), "{circle:?}");
        let next = circle.iter().cycle().skip(1);
        for (waiter, holder) in circle.iter().zip(next) {
            assert!(edges.contains(&(*waiter, *holder)), "{circle:?}");
        }
        let youngest = circle.iter().max_by_key(|txn| (started[txn], **txn));
        assert_eq!(circle.first(), youngest);
    }
    // One after the other: each victim is in a circle, and none is left behind.
    for circle in &found {
        assert!(waits_for_itself(&edges, circle[0]), "{found:?}");
        edges.retain(|(waiter, _)| *waiter != circle[0]);
    }
    for txn in started.keys() {
        assert!(!waits_for_itself(&edges, *txn), "{txn} after {found:?}");
    }
}

/// All graphs of four transactions, of which each may wait for each other.
#[test]
fn every_graph_of_four() {
    let pairs: Vec<(usize, usize)> = (0..4)
        .flat_map(|a| (0..4).map(move |b| (a, b)))
        .filter(|(a, b)| a != b)
        .collect();
    for graph in 0..1_u32 << pairs.len() {
        let edges = pairs.iter().enumerate();
        let edges = edges.filter(|(bit, _)| graph >> bit & 1 == 1);
        let waits: Vec<Wait> = edges.map(|(_, (a, b))| wait(*a, &[*b])).collect();
        check(&waits);
    }
}

fn any_wait() -> impl Strategy<Value = Wait> {
    let holders = proptest::collection::vec(0..12_usize, 0..4);
    (0..12_usize, 0..5_u64, holders).prop_map(|(waiter, started, holders)| Wait {
        started,
        ..wait(waiter, &holders)
    })
}

proptest! {
    #[test]
    fn any_graph(waits in proptest::collection::vec(any_wait(), 0..24)) {
        check(&waits);
    }

    /// However the waits are spread over nodes, and in whatever order these report: in
    /// the end no circle is left, and each victim was told once, where it waits.
    #[test]
    fn any_spread_over_nodes(
        waits in proptest::collection::vec((any_wait(), 0..3_u64), 0..24),
        mut order in Just(vec![0_u64, 1, 2, 0, 1, 2]).prop_shuffle(),
    ) {
        // A round in which everybody reports breaks one circle at least.
        order.extend((0..=waits.len()).flat_map(|_| 0..3));
        let mut nodes: BTreeMap<u64, Vec<Wait>> = BTreeMap::new();
        for (wait, node) in waits {
            nodes.entry(node).or_default().push(wait);
        }
        let mut detector = Detector::default();
        let mut victims = BTreeSet::new();
        for node in order {
            let mine = nodes.entry(node).or_default().clone();
            for circle in detector.report(at(0), node, mine.clone()) {
                let mut waits = mine.iter().filter(|wait| wait.waiter == circle[0]);
                let here = waits.any(|wait| wait.holders.contains(&circle[1]));
                prop_assert!(here, "{circle:?} told to {node}");
                prop_assert!(victims.insert(circle[0]), "{circle:?} again");
                // It gives everything up.
                for waits in nodes.values_mut() {
                    waits.retain(|wait| wait.waiter != circle[0]);
                }
            }
        }
        let left: Vec<Wait> = nodes.into_values().flatten().collect();
        prop_assert_eq!(circles(left.iter()), Vec::<Circle>::new());
    }
}

#[test]
fn a_circle_over_two_nodes_is_told_to_the_victims_node() {
    let mut detector = Detector::default();
    assert!(detector.report(at(0), 1, vec![wait(2, &[1])]).is_empty());
    // The older one waits here: the other node is told, when it asks.
    assert!(detector.report(at(10), 2, vec![wait(1, &[2])]).is_empty());
    let told = detector.report(at(100), 1, vec![wait(2, &[1])]);
    assert_eq!(told, [ids(&[2, 1])]);
    // Whoever still waits is told again: the answer may have been lost.
    assert!(detector.report(at(110), 2, vec![wait(1, &[2])]).is_empty());
    let told = detector.report(at(200), 1, vec![wait(2, &[1])]);
    assert_eq!(told, [ids(&[2, 1])]);
    assert_eq!(detector.waits(at(200)), 1);
}

#[test]
fn a_report_takes_the_place_of_the_one_before() {
    let mut detector = Detector::default();
    detector.report(at(0), 1, vec![wait(1, &[2]), wait(5, &[6])]);
    assert_eq!(detector.waits(at(0)), 2);
    // The older one does not wait any more when the younger one begins to.
    detector.report(at(100), 1, vec![wait(5, &[6])]);
    assert!(detector.report(at(110), 2, vec![wait(2, &[1])]).is_empty());
    assert_eq!(detector.waits(at(110)), 2);
    detector.report(at(120), 1, Vec::new());
    detector.report(at(120), 2, Vec::new());
    assert_eq!(detector.waits(at(120)), 0);
}

#[test]
fn a_report_that_is_not_renewed_lapses() {
    let lapse = LAPSE.as_millis() as u64;
    let mut detector = Detector::default();
    detector.report(at(0), 1, vec![wait(1, &[2])]);
    let told = detector.report(at(lapse - 1), 2, vec![wait(2, &[1])]);
    assert_eq!(told, [ids(&[2, 1])]);
    assert!(
        detector
            .report(at(lapse), 2, vec![wait(2, &[1])])
            .is_empty()
    );
    assert_eq!(detector.waits(at(lapse)), 1);
}

/// A statement may have parts on several nodes, and a read knows less of its
/// transaction's age than a lock does: the earliest beginning counts.
#[test]
fn a_transaction_waits_at_several_places() {
    let mut detector = Detector::default();
    let late = Wait {
        started: 9,
        ..wait(1, &[7])
    };
    detector.report(at(0), 1, vec![late, wait(3, &[1])]);
    detector.report(at(0), 2, vec![wait(1, &[3])]);
    let told = detector.report(at(1), 1, vec![wait(3, &[1])]);
    assert_eq!(told, [ids(&[3, 1])]);
}

#[test]
fn long_queues_are_looked_through_quickly() {
    let queue = |n: usize| Wait {
        waiter: TxnId((n as u128).to_be_bytes()),
        started: n as u64,
        holders: vec![TxnId((n as u128 + 1).to_be_bytes())],
    };
    let waits: Vec<Wait> = (0..100_000).map(queue).collect();
    assert!(circles(waits.iter()).is_empty());
    let mut closed = waits;
    closed.last_mut().unwrap().holders.push(TxnId([0; 16]));
    assert_eq!(circles(closed.iter()).len(), 1);
}
