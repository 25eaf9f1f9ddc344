use super::*;
use crate::mvcc::Store;
use crate::mvcc::memory::MemoryStore;
use lineradb_proto::shard::v1::ErrorCode;

const ME: TxnId = TxnId([1; 16]);
const OTHER: TxnId = TxnId([2; 16]);

fn ts(n: u64) -> Timestamp {
    Timestamp::from_raw(n)
}

fn writer(isolation: Isolation) -> Writer {
    Writer {
        id: ME,
        anchor: Bytes::from_static(b"a"),
        attempt_ts: ts(1),
        started: ts(1),
        isolation,
    }
}

fn descriptor() -> ShardDescriptor {
    ShardDescriptor {
        shard_id: 1,
        span: Some(proto::Span {
            start: Bytes::from_static(b"a"),
            end: Bytes::from_static(b"n"),
        }),
        version: 1,
        ..Default::default()
    }
}

fn put(key: &'static str, condition: Option<write::Condition>) -> proto::Write {
    proto::Write {
        target: Some(write::Target::Key(key.into())),
        value: Some("v".into()),
        condition,
    }
}

fn schema_write(replaces: u64) -> proto::Write {
    proto::Write {
        target: Some(write::Target::Schema(proto::SchemaWrite {
            table_id: 7,
            span: Some(proto::Span {
                start: Bytes::from_static(b"c"),
                end: Bytes::new(),
            }),
            version: 5,
            replaces,
        })),
        ..Default::default()
    }
}

fn stored(store: &MemoryStore, place: &[u8], at: u64, value: Option<&[u8]>) {
    let version = Version {
        value: value.map(Bytes::copy_from_slice),
        txn: None,
    };
    store.apply(&[Op {
        tree: Tree::Data,
        key: keys::version_key(place, ts(at)),
        value: Some(version.encode()),
    }]);
}

fn intent(store: &MemoryStore, place: Bytes, txn: TxnId, at: u64) {
    let intent = Intent {
        txn,
        anchor: Bytes::from_static(b"x"),
        attempt_ts: ts(1),
        timestamp: ts(at),
        replaced: Timestamp::ZERO,
        write: IntentWrite::Delete,
    };
    store.apply(&[Op {
        tree: Tree::Intent,
        key: place,
        value: Some(intent.encode()),
    }]);
}

fn run(
    store: &MemoryStore,
    isolation: Isolation,
    write: proto::Write,
    read_ts: u64,
    lowest: u64,
) -> Result<Placement, Refusal> {
    let targets = targets(&descriptor(), &[write])?;
    place(
        &store.snapshot(),
        &writer(isolation),
        &targets,
        ts(read_ts),
        Timestamp::ZERO,
        |_| ts(lowest),
    )
}

#[test]
fn a_commit_lands_at_its_read_timestamp_unless_something_is_above() {
    use Isolation::{ReadCommitted, RepeatableRead, Serializable};
    let store = MemoryStore::default();
    stored(&store, &keys::addressable(b"k"), 20, Some(b"old"));
    for isolation in [Serializable, RepeatableRead, ReadCommitted] {
        let at = |r, lowest| run(&store, isolation, put("k", None), r, lowest);
        assert_eq!(at(30, 11).unwrap().timestamp, ts(30));
        assert_eq!(at(30, 41).unwrap().timestamp, ts(41));
        // A version above the read timestamp: above it, or 40001 (X0).
        match isolation {
            RepeatableRead => {
                assert_eq!(at(19, 0).unwrap_err().code(), ErrorCode::WriteConflict);
            }
            _ => assert_eq!(at(19, 0).unwrap().timestamp, ts(21)),
        }
    }
}

#[test]
fn conditions_are_about_the_newest_version() {
    use write::Condition::{Absent, Exists, Replaces};
    let store = MemoryStore::default();
    stored(&store, &keys::addressable(b"live"), 20, Some(b"x"));
    stored(&store, &keys::addressable(b"dead"), 20, None);
    let check = |key, condition| {
        let result = run(
            &store,
            Isolation::Serializable,
            put(key, Some(condition)),
            30,
            0,
        );
        result
            .map(|_| ())
            .map_err(|refusal| (refusal.code(), refusal.observed.raw()))
    };
    assert_eq!(
        check("live", Absent(true)),
        Err((ErrorCode::ConditionFailed, 20))
    );
    assert_eq!(check("dead", Absent(true)), Ok(()));
    assert_eq!(check("missing", Absent(true)), Ok(()));
    assert_eq!(check("live", Exists(true)), Ok(()));
    assert_eq!(
        check("dead", Exists(true)),
        Err((ErrorCode::ConditionFailed, 20))
    );
    assert_eq!(
        check("missing", Exists(true)),
        Err((ErrorCode::ConditionFailed, 0))
    );
    assert_eq!(check("live", Replaces(20)), Ok(()));
    assert_eq!(
        check("live", Replaces(19)),
        Err((ErrorCode::WriteConflict, 0))
    );
    assert_eq!(check("missing", Replaces(0)), Ok(()));
    assert_eq!(
        check("live", Replaces(0)),
        Err((ErrorCode::WriteConflict, 0))
    );
}

#[test]
fn foreign_intents_stop_every_write_and_own_ones_keep_their_place() {
    let store = MemoryStore::default();
    intent(&store, keys::addressable(b"k"), OTHER, 99);
    let refusal = run(&store, Isolation::Serializable, put("k", None), 30, 0).unwrap_err();
    assert_eq!(refusal.code(), ErrorCode::Locked);
    assert_eq!(refusal.error.locks[0].key, "k");
    intent(&store, keys::addressable(b"k"), ME, 50);
    // Readers that wait for it have pushed the cache; its place is its own.
    let placed = run(&store, Isolation::Serializable, put("k", None), 30, 70).unwrap();
    assert_eq!(placed.timestamp, ts(50));
    let targets = targets(&descriptor(), &[put("k", None)]).unwrap();
    let writer = writer(Isolation::Serializable);
    assert!(intent_ops(&writer, &targets, &placed, ts(50)).is_empty());
    let ops = commit_ops(&writer, &targets, &placed, ts(50), Rules::default());
    assert!(
        ops.iter()
            .any(|op| op.tree == Tree::Intent && op.value.is_none())
    );
}

#[test]
fn schema_writes_replace_the_version_that_they_name() {
    let store = MemoryStore::default();
    let place = keys::schema_key(ShardId(1), TableId(7));
    let new = |replaces| {
        run(
            &store,
            Isolation::Serializable,
            schema_write(replaces),
            30,
            0,
        )
    };
    assert!(new(0).is_ok());
    assert_eq!(new(4).unwrap_err().code(), ErrorCode::WriteConflict);
    stored(&store, &place, 20, Some(&schema::encode(4)));
    assert!(new(4).is_ok());
    assert_eq!(new(0).unwrap_err().code(), ErrorCode::WriteConflict);
}

#[test]
fn keys_outside_and_oversized_ones_are_refused() {
    let code = |write: proto::Write| targets(&descriptor(), &[write]).unwrap_err().code();
    assert_eq!(code(put("z", None)), ErrorCode::ShardChanged);
    assert_eq!(code(put("n", None)), ErrorCode::ShardChanged);
    let long = Bytes::from(vec![b'b'; limits::ENCODED_KEY_BYTES_MAX + 1]);
    let mut write = put("b", None);
    write.target = Some(write::Target::Key(long));
    assert_eq!(code(write), ErrorCode::InvalidArgument);
    let mut write = put("b", None);
    write.value = Some(vec![0; limits::VALUE_BYTES_MAX + 1].into());
    assert_eq!(code(write), ErrorCode::InvalidArgument);
    assert_eq!(code(proto::Write::default()), ErrorCode::InvalidArgument);
}

#[test]
fn only_the_first_write_carries_the_id_and_else_a_record_does() {
    let store = MemoryStore::default();
    let mut me = writer(Isolation::Serializable);
    let targets = targets(&descriptor(), &[put("a", None), put("b", None)]).unwrap();
    let placed = Placement {
        timestamp: ts(9),
        newest: vec![ts(0); 2],
        own: vec![None, None],
    };
    store.apply(&commit_ops(&me, &targets, &placed, ts(9), Rules::default()));
    let reader = store.snapshot();
    assert_eq!(
        earlier_fate(&reader, &me, true, Rules::default()),
        Ok(Some(ts(9)))
    );
    let b = mvcc::newest_version(&reader, &keys::addressable(b"b"), ts(9)).unwrap();
    assert_eq!(b.unwrap().version.txn, None);
    me.anchor = Bytes::from_static(b"elsewhere");
    let ops = commit_ops(&me, &targets, &placed, ts(9), Rules::default());
    assert_eq!(ops.last().unwrap().tree, Tree::Txn);
}

#[test]
fn old_attempts_are_refused() {
    let mut me = writer(Isolation::Serializable);
    me.attempt_ts = Timestamp::from_micros(1_000_000);
    let at = |us| check_attempt(&me, Timestamp::from_micros(us)).map_err(|r| r.code());
    assert_eq!(at(601_000_000), Ok(()));
    assert_eq!(at(601_000_001), Err(ErrorCode::AttemptTooOld));
}
