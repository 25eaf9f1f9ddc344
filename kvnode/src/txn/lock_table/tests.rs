use super::*;
use futures::FutureExt;

const A: TxnId = TxnId([1; 16]);
const B: TxnId = TxnId([2; 16]);
const C: TxnId = TxnId([3; 16]);

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
    let refused = table.acquire(&k1, TxnId([9; 16]), false, Wait::No).await;
    assert_eq!(refused, Err(LockError::Taken(A)));
    table.release(A);
    assert_eq!(b.now_or_never(), Some(Ok(())));
    assert!((&mut c).now_or_never().is_none());
    table.release(B);
    assert_eq!(c.now_or_never(), Some(Ok(())));
    table.release(C);
    assert_eq!(table.locked(), 0);
    assert!(table.graph.0.lock().is_empty());
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
    assert_eq!(b, Err(LockError::Deadlock));
    table.release(B);
    assert_eq!(a.now_or_never(), Some(Ok(())));
}

#[tokio::test]
async fn whoever_closes_a_cycle_over_two_tables_is_refused() {
    let graph = Arc::new(WaitGraph::default());
    let (left, right) = (LockTable::new(graph.clone()), LockTable::new(graph));
    let k = key("k");
    left.acquire(&k, A, true, soon()).await.unwrap();
    right.acquire(&k, B, true, soon()).await.unwrap();
    let mut b = Box::pin(left.acquire(&k, B, true, soon()));
    assert!((&mut b).now_or_never().is_none());
    assert_eq!(
        right.acquire(&k, A, true, soon()).await,
        Err(LockError::Deadlock)
    );
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
    table.release(A);
    table.release(C);
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
    table.release(A);
    let turn = b.now_or_never().unwrap();
    assert_eq!(table.locked(), 1);
    drop(turn);
    assert_eq!(table.locked(), 0);
}
