use super::*;
use futures::FutureExt;
use lineradb_common::Timestamp;

/// A is the oldest.
const A: Contender = contender(1);
const B: Contender = contender(2);
const C: Contender = contender(3);

const fn contender(n: u8) -> Contender {
    Contender {
        started: Timestamp::from_micros(n as u64),
        id: TxnId([n; 16]),
    }
}

/// The victim of a deadlock, and for whom it waited.
fn gave_way(outcome: Result<(), LockError>) -> (TxnId, TxnId) {
    match outcome {
        Err(LockError::Deadlock(deadlock)) => (deadlock.victim(), deadlock.blocker()),
        other => panic!("no deadlock: {other:?}"),
    }
}

fn key(name: &'static str) -> [Bytes; 1] {
    [Bytes::from_static(name.as_bytes())]
}

fn soon() -> Wait {
    Wait::Until(deadline_after(Duration::from_secs(60)))
}

fn table() -> LockTable {
    LockTable::new(Arc::default())
}

#[tokio::test]
async fn exclusive_locks_are_given_in_order() {
    let table = table();
    table.acquire(&key("k"), A, true, soon()).await.unwrap();
    table.acquire(&key("k"), A, true, Wait::No).await.unwrap();
    let (k1, k2) = (key("k"), key("k"));
    let mut b = Box::pin(table.acquire(&k1, B, true, soon()));
    let mut c = Box::pin(table.acquire(&k2, C, true, soon()));
    assert!((&mut b).now_or_never().is_none());
    assert!((&mut c).now_or_never().is_none());
    let refused = table.acquire(&k1, contender(9), false, Wait::No).await;
    assert_eq!(refused, Err(LockError::Taken(C.id)));
    table.release(A.id);
    assert_eq!(b.now_or_never(), Some(Ok(())));
    assert!((&mut c).now_or_never().is_none());
    table.release(B.id);
    assert_eq!(c.now_or_never(), Some(Ok(())));
    table.release(C.id);
    assert_eq!(table.locked(), 0);
    assert!(table.graph.is_empty());
}

#[tokio::test]
async fn shared_locks_are_shared_and_upgrades_close_a_cycle() {
    let table = table();
    let k = key("k");
    table.acquire(&k, A, false, soon()).await.unwrap();
    table.acquire(&k, B, false, soon()).await.unwrap();
    let mut a = Box::pin(table.acquire(&k, A, true, soon()));
    assert!((&mut a).now_or_never().is_none());
    let b = table.acquire(&k, B, true, soon()).await;
    assert_eq!(gave_way(b), (B.id, A.id));
    table.release(B.id);
    assert_eq!(a.now_or_never(), Some(Ok(())));
}

#[tokio::test]
async fn the_younger_of_two_in_two_tables_gives_way_whoever_comes_last() {
    let k = key("k");
    for older_last in [true, false] {
        let graph = Arc::new(WaitGraph::default());
        let (left, right) = (LockTable::new(graph.clone()), LockTable::new(graph));
        left.acquire(&k, A, true, soon()).await.unwrap();
        right.acquire(&k, B, true, soon()).await.unwrap();
        let mut a = Box::pin(right.acquire(&k, A, true, soon()));
        let mut b = Box::pin(left.acquire(&k, B, true, soon()));
        let loser = if older_last {
            assert!((&mut b).now_or_never().is_none());
            assert!((&mut a).now_or_never().is_none());
            b.now_or_never().expect("it is woken")
        } else {
            assert!((&mut a).now_or_never().is_none());
            b.now_or_never().expect("it does not begin to wait")
        };
        assert_eq!(gave_way(loser), (B.id, A.id));
        right.release(B.id);
        assert_eq!(a.now_or_never(), Some(Ok(())));
    }
}

/// B waits for C, which waits for A; then C goes away, and B waits for A.
#[tokio::test]
async fn a_waiter_learns_who_is_ahead_of_it_by_now() {
    let graph = Arc::new(WaitGraph::default());
    let (left, right) = (LockTable::new(graph.clone()), LockTable::new(graph));
    let k = key("k");
    left.acquire(&k, A, false, soon()).await.unwrap();
    right.acquire(&k, B, true, soon()).await.unwrap();
    let mut c = Box::pin(left.acquire(&k, C, true, soon()));
    assert!((&mut c).now_or_never().is_none());
    let mut b = Box::pin(left.acquire(&k, B, true, soon()));
    assert!((&mut b).now_or_never().is_none());
    drop(c);
    let mut a = Box::pin(right.acquire(&k, A, true, soon()));
    assert!((&mut a).now_or_never().is_none());
    assert_eq!(gave_way(b.await), (B.id, A.id));
}

#[tokio::test]
async fn what_waits_for_a_transaction_that_is_over_is_told() {
    let table = table();
    let (k1, k2) = (key("k1"), key("k2"));
    table.acquire(&k1, A, true, soon()).await.unwrap();
    table.acquire(&k2, B, true, soon()).await.unwrap();
    let mut b = Box::pin(table.acquire(&k1, B, true, soon()));
    assert!((&mut b).now_or_never().is_none());
    table.release(B.id);
    assert_eq!(b.now_or_never(), Some(Err(LockError::TimedOut)));
    table.release(A.id);
    assert_eq!(table.locked(), 0);
}

#[tokio::test]
async fn two_requests_of_one_transaction_wait_apart() {
    let table = table();
    let k = key("k");
    table.acquire(&k, A, true, soon()).await.unwrap();
    let mut first = Box::pin(table.acquire(&k, B, true, soon()));
    assert!((&mut first).now_or_never().is_none());
    let mut again = Box::pin(table.acquire(&k, B, true, soon()));
    assert!((&mut again).now_or_never().is_none());
    drop(first);
    table.release(A.id);
    assert_eq!(again.now_or_never(), Some(Ok(())));
}

#[tokio::test]
async fn a_waiter_that_leaves_lets_the_next_one_in() {
    let table = table();
    let k = key("k");
    table.acquire(&k, A, false, soon()).await.unwrap();
    let mut b = Box::pin(table.acquire(&k, B, true, soon()));
    assert!((&mut b).now_or_never().is_none());
    let mut c = Box::pin(table.acquire(&k, C, false, soon()));
    assert!(
        (&mut c).now_or_never().is_none(),
        "behind an exclusive waiter"
    );
    drop(b);
    assert_eq!(c.now_or_never(), Some(Ok(())));
    table.release(A.id);
    table.release(C.id);
    assert_eq!(table.locked(), 0);
}

#[tokio::test]
async fn writes_without_locks_queue_behind_them() {
    let table = table();
    let k = key("k");
    drop(table.pass(k.iter(), B, Wait::No).await);
    table.acquire(&k, A, true, soon()).await.unwrap();
    let mut b = Box::pin(table.pass(k.iter(), B, soon()));
    assert!((&mut b).now_or_never().is_none());
    drop(table.pass(k.iter(), A, Wait::No).await);
    table.release(A.id);
    let turn = b.now_or_never().unwrap();
    assert_eq!(table.locked(), 1);
    drop(turn);
    assert_eq!(table.locked(), 0);
}

#[tokio::test]
async fn what_the_silent_hold_goes_also_where_nobody_waits() {
    let table = table();
    for name in ["k", "l"] {
        table.acquire(&key(name), A, true, soon()).await.unwrap();
    }
    table.expire();
    assert_eq!(table.locked(), 2, "it was heard of just now");
    table.release_silent(Duration::ZERO);
    assert_eq!(table.locked(), 0);
    assert_eq!(table.list(|_| true), []);
}

/// A gateway dies with a transaction that holds a lock and others that wait for it.
#[tokio::test]
async fn the_silent_do_not_get_what_the_silent_held() {
    let table = table();
    table.acquire(&key("k"), A, true, soon()).await.unwrap();
    let (k1, k2) = (key("k"), key("k"));
    let mut b = Box::pin(table.acquire(&k1, B, true, soon()));
    let mut commit = Box::pin(table.pass(k2.iter(), C, soon()));
    assert!((&mut b).now_or_never().is_none());
    assert!((&mut commit).now_or_never().is_none());
    table.state.lock().expiry = Duration::ZERO;
    table.release(A.id);
    assert_eq!(b.now_or_never(), Some(Err(LockError::Silent)));
    // It sends no heartbeats, and holds nobody up.
    let turn = commit.now_or_never().unwrap();
    assert!(table.state.lock().waiting.is_empty());
    drop(turn);
    assert_eq!(table.locked(), 0);
}

/// A lock that is handed over does not make its owner younger than it is.
#[tokio::test]
async fn who_waits_goes_on_being_heard_of() {
    let table = table();
    table.acquire(&key("k"), A, true, soon()).await.unwrap();
    let k = key("k");
    let mut b = Box::pin(table.acquire(&k, B, true, soon()));
    assert!((&mut b).now_or_never().is_none());
    let before = Stopwatch::start();
    table.heartbeat(B.id);
    let heard = |state: &State| state.waiting[&B.id].heard.elapsed();
    assert!(heard(&table.state.lock()) <= before.elapsed());
    // Not to wait for something: time has to pass.
    let passed = Duration::from_millis(20);
    std::thread::sleep(passed);
    table.release(A.id);
    assert_eq!(b.now_or_never(), Some(Ok(())));
    let state = table.state.lock();
    assert!(state.waiting.is_empty());
    assert!(state.owners[&B.id].heard.elapsed() >= passed);
}
