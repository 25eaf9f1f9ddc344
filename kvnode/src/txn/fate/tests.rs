use super::*;
use crate::mvcc::Store;
use crate::mvcc::memory::MemoryStore;
use commit_record_reply::Outcome as Committing;
use lineradb_proto::shard::v1::Isolation;
use push_reply::Status as Pushed;

const ME: TxnId = TxnId([1; 16]);

fn ts(n: u64) -> Timestamp {
    Timestamp::from_raw(n)
}

fn writer(id: TxnId) -> Writer {
    Writer {
        id,
        anchor: Bytes::from_static(b"a"),
        attempt_ts: Timestamp::from_micros(1_000_000),
        started: Timestamp::from_micros(1_000_000),
        isolation: Isolation::Serializable,
    }
}

/// Applies a decision as the log would; `None`: an expectation failed.
fn carry_out<T>(store: &MemoryStore, decision: Decision<T>) -> Option<T> {
    match decision {
        Decision::Known(known) => Some(known),
        Decision::Write { ops, expect, then } => {
            store.holds(&expect).then(|| store.apply(&ops))?;
            Some(then)
        }
    }
}

fn commit(store: &MemoryStore, id: TxnId, at: u64) -> Option<Committing> {
    let request = proto::CommitRecord {
        commit_ts: at,
        intent_keys: vec!["a".into(), "b".into()],
        ..Default::default()
    };
    let decision = commit_record(&store.snapshot(), &writer(id), &request, Rules::default());
    carry_out(store, decision.unwrap())
}

/// A push so many seconds after the epoch, of a coordinator never heard of.
fn push_at(store: &MemoryStore, id: TxnId, seconds: u64, force: bool) -> Option<Pushed> {
    push_after_silence(store, id, seconds, force, Duration::MAX)
}

fn push_after_silence(
    store: &MemoryStore,
    id: TxnId,
    seconds: u64,
    force: bool,
    silence: Duration,
) -> Option<Pushed> {
    let request = proto::Push {
        anchor: "a".into(),
        attempt_ts: writer(id).attempt_ts.raw(),
        force,
        ..Default::default()
    };
    let now = Timestamp::from_micros(seconds * 1_000_000);
    carry_out(
        store,
        push(&store.snapshot(), &request, id, now, silence).unwrap(),
    )
}

#[test]
fn a_long_commit_whose_coordinator_is_heard_of_stays_undecided() {
    let store = MemoryStore::default();
    let second = Duration::from_secs(1);
    assert_eq!(
        push_after_silence(&store, ME, 60, false, second),
        Some(Pushed::Pending(true))
    );
    assert_eq!(
        push_after_silence(&store, ME, 60, false, 6 * second),
        Some(Pushed::Aborted(true))
    );
}

#[test]
fn the_commit_point_is_written_once_and_repeats_find_it() {
    let store = MemoryStore::default();
    assert_eq!(push_at(&store, ME, 2, false), Some(Pushed::Pending(true)));
    assert_eq!(commit(&store, ME, 70), Some(Committing::Committed(70)));
    assert_eq!(commit(&store, ME, 99), Some(Committing::Committed(70)));
    assert_eq!(push_at(&store, ME, 99, true), Some(Pushed::Committed(70)));
}

#[test]
fn a_silent_or_forced_attempt_is_aborted_for_good() {
    for (seconds, force) in [(7, false), (1, true)] {
        let store = MemoryStore::default();
        assert_eq!(
            push_at(&store, ME, seconds, force),
            Some(Pushed::Aborted(true))
        );
        assert_eq!(commit(&store, ME, 70), Some(Committing::Aborted(true)));
        assert_eq!(push_at(&store, ME, 1, false), Some(Pushed::Aborted(true)));
    }
}

#[test]
fn verdicts_are_compared_at_apply() {
    // Two deciders evaluated on the same state: the second one starts over.
    let store = MemoryStore::default();
    let before = store.snapshot();
    let request = proto::Push {
        anchor: "a".into(),
        force: true,
        ..Default::default()
    };
    let verdict = push(&before, &request, ME, ts(0), Duration::ZERO).unwrap();
    assert_eq!(commit(&store, ME, 70), Some(Committing::Committed(70)));
    assert_eq!(carry_out(&store, verdict), None);
    assert_eq!(push_at(&store, ME, 1, true), Some(Pushed::Committed(70)));
}

#[test]
fn resolution_touches_only_its_own_intents() {
    let lay = |store: &MemoryStore, key: &'static str, txn, write| {
        let intent = mvcc::Intent {
            txn,
            anchor: "a".into(),
            attempt_ts: ts(1),
            timestamp: ts(5),
            replaced: ts(0),
            write,
        };
        store.apply(&[Op {
            tree: Tree::Intent,
            key: keys::addressable(key.as_bytes()),
            value: Some(intent.encode()),
        }]);
    };
    let requested: [Bytes; 4] = ["a".into(), "b".into(), "c".into(), "gone".into()];
    let places = intents_at(ShardId(1), &requested, &[7]);
    // Below its intents nothing was committed: these are strays.
    for commit_ts in [Some(ts(9)), Some(ts(4)), None] {
        let store = MemoryStore::default();
        lay(&store, "a", ME, mvcc::IntentWrite::Put("v".into()));
        lay(&store, "b", ME, mvcc::IntentWrite::Delete);
        lay(&store, "c", TxnId([2; 16]), mvcc::IntentWrite::Delete);
        let ops = resolve(&store.snapshot(), ME, commit_ts, &places).unwrap();
        store.apply(&ops);
        let reader = store.snapshot();
        let intent = |key: &[u8]| mvcc::read_intent(&reader, &keys::addressable(key)).unwrap();
        assert!(intent(b"a").is_none() && intent(b"b").is_none() && intent(b"c").is_some());
        let version = |key: &[u8]| {
            let found = mvcc::newest_version(&reader, &keys::addressable(key), ts(99)).unwrap();
            found.map(|v| (v.timestamp, v.version.value, v.version.txn))
        };
        if commit_ts == Some(ts(9)) {
            assert_eq!(version(b"a"), Some((ts(9), Some("v".into()), Some(ME))));
            assert_eq!(version(b"b"), Some((ts(9), None, None)));
        } else {
            assert_eq!((version(b"a"), version(b"b")), (None, None));
        }
        assert_eq!(version(b"gone"), None);
    }
}

#[test]
fn a_huge_record_keeps_what_fits() {
    let request = proto::CommitRecord {
        intent_keys: vec![Bytes::from(vec![b'k'; 5 << 10]); 9],
        ..Default::default()
    };
    let record = committed_record(&writer(ME), ts(1), &request);
    assert_eq!(record.intent_keys.len(), 3);
}
