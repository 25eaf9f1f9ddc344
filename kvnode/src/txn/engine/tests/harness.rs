//! A shard whose group is simulated: a log in memory, terms, replicas that take
//! over, proposals and confirmations that wait until the test lets them go.

use crate::command::{Body, Command, Expect, Rejection, Tree, Verdict};
use crate::consensus::{Leadership, ProposeError, ReadError, SplitApplied, Tail};
use crate::mvcc::memory::MemoryStore;
use crate::mvcc::{Cursor, Reader, Store};
use crate::rules::Rules;
use crate::txn::{Consensus, Engine, Protected, Refusal};
use bytes::Bytes;
use lineradb_common::clock::{Clock, Interval};
use lineradb_common::{ShardId, Timestamp, TxnId};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, ShardDescriptor, reply, request, write};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// A clock that moves by a microsecond whenever it is read.
#[derive(Debug)]
pub struct TickingClock(AtomicU64);

impl TickingClock {
    pub fn advance(&self, us: u64) {
        self.0.fetch_add(us, Ordering::SeqCst);
    }
}

impl Clock for TickingClock {
    fn now(&self) -> lineradb_common::Result<Interval> {
        let now = Timestamp::from_micros(self.0.fetch_add(1, Ordering::SeqCst));
        Ok(Interval {
            earliest: now,
            latest: now,
        })
    }
}

/// What all replicas of the test's group share.
pub struct Shared {
    pub store: MemoryStore,
    pub tail: Tail,
    term: AtomicU64,
    descriptor: Mutex<Arc<ShardDescriptor>>,
    /// Proposals and confirmations pass only with a permit.
    pub proposals: Semaphore,
    pub rounds: Semaphore,
    /// Every `lose`-th verdict is lost; 0: none.
    pub lose: AtomicU64,
    proposed: AtomicU64,
}

/// The replica that leads one term.
#[derive(Clone)]
pub struct FakeGroup {
    pub shared: Arc<Shared>,
    pub term: u64,
}

impl FakeGroup {
    fn leads(&self) -> bool {
        self.shared.term.load(Ordering::SeqCst) == self.term
    }
}

impl Consensus for FakeGroup {
    fn descriptor(&self) -> Arc<ShardDescriptor> {
        self.shared.descriptor.lock().clone()
    }

    /// A deposed leader does not know it yet.
    fn leadership(&self) -> Leadership {
        Leadership::Leader { term: self.term }
    }

    fn applied_index(&self) -> u64 {
        self.shared.proposed.load(Ordering::SeqCst)
    }

    fn as_of<T>(&self, index: u64, take: impl FnOnce() -> T) -> Option<T> {
        (self.applied_index() >= index).then(take)
    }

    fn tail(&self) -> &Tail {
        &self.shared.tail
    }

    async fn propose(&self, command: Command) -> Result<Verdict, ProposeError> {
        let permit = self.shared.proposals.acquire().await;
        let number = self.shared.proposed.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        drop(permit);
        if !self.leads() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let lose = self.shared.lose.load(Ordering::SeqCst);
        if lose > 0 && number % lose == lose - 1 {
            // Every other one of the lost never happened.
            if number.is_multiple_of(2) {
                self.shared.apply(&command);
            }
            return Err(ProposeError::Unknown("lost by the test".into()));
        }
        Ok(self.shared.apply(&command))
    }

    async fn read_index(&self, term: u64) -> Result<(), ReadError> {
        let permit = self.shared.rounds.acquire().await;
        tokio::task::yield_now().await;
        drop(permit);
        if self.leads() && term == self.term {
            Ok(())
        } else {
            Err(ReadError::NotLeader { leader: None })
        }
    }
}

impl Shared {
    fn apply(&self, command: &Command) -> Verdict {
        let mut descriptor = self.descriptor.lock();
        if command.shard_version != descriptor.version {
            return Verdict::Rejected(Rejection::ShardChanged);
        }
        match &command.body {
            Body::Write { ops, expect } => {
                if !self.holds(expect) {
                    return Verdict::Rejected(Rejection::ExpectFailed);
                }
                let versions = ops
                    .iter()
                    .filter(|op| op.tree == Tree::Data && op.value.is_some());
                let written: Vec<Bytes> = versions.map(|op| op.key.clone()).collect();
                self.tail.begin(&written);
                self.store.apply(ops);
                self.tail.end();
            }
            Body::Split { split_key, .. } => {
                let mut left = (**descriptor).clone();
                left.version += 1;
                left.span = Some(proto::Span {
                    start: left.span.unwrap_or_default().start,
                    end: split_key.clone(),
                });
                *descriptor = Arc::new(left);
            }
        }
        Verdict::Applied
    }

    fn holds(&self, expect: &[Expect]) -> bool {
        self.store.holds(expect)
    }
}

pub type TestEngine = Arc<Engine<FakeGroup, MemoryStore>>;

/// One shard under test.
pub struct Shard {
    pub clock: Arc<TickingClock>,
    pub shared: Arc<Shared>,
    pub engine: TestEngine,
    pub rules: Rules,
}

pub const SHARD: ShardId = ShardId(1);

pub fn id(n: u8) -> TxnId {
    TxnId([n; 16])
}

impl Shard {
    pub fn new(rules: Rules) -> Self {
        let clock = Arc::new(TickingClock(AtomicU64::new(1_000_000_000)));
        let shard = Self::unled(rules, clock, MemoryStore::default(), 5);
        // The mark is fixed by the first look, then time passes it.
        let _ = shard.engine.lead();
        shard.clock.advance(60_000);
        shard
    }

    /// A shard with a store and a clock that exist, whose leader of `term` has
    /// looked at nothing yet.
    pub fn unled(rules: Rules, clock: Arc<TickingClock>, store: MemoryStore, term: u64) -> Self {
        let descriptor = ShardDescriptor {
            shard_id: SHARD.0,
            span: Some(proto::Span::default()),
            version: 1,
            ..Default::default()
        };
        let shared = Arc::new(Shared {
            store,
            tail: Tail::default(),
            term: AtomicU64::new(term),
            descriptor: Mutex::new(Arc::new(descriptor)),
            proposals: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            rounds: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            lose: AtomicU64::new(0),
            proposed: AtomicU64::new(0),
        });
        let engine = engine(&shared, &clock, rules, term);
        Shard {
            clock,
            shared,
            engine,
            rules,
        }
    }

    /// Another replica wins an election; its engine. The old leader does not
    /// know it yet.
    pub fn elect(&self) -> TestEngine {
        let term = self.shared.term.fetch_add(1, Ordering::SeqCst) + 1;
        engine(&self.shared, &self.clock, self.rules, term)
    }

    /// The leader of the current term hears of the next one being elected only
    /// by being refused.
    pub fn depose(&self) {
        self.shared.term.fetch_add(1, Ordering::SeqCst);
    }

    /// The election is yet to come.
    pub fn undo_election(&self) {
        self.shared.term.fetch_sub(1, Ordering::SeqCst);
    }

    /// Stops proposals (or rounds) until [`resume`].
    pub fn pause(gate: &Semaphore) {
        gate.forget_permits(usize::MAX);
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now().unwrap().latest
    }

    /// Collects, told now that nothing older than this is protected.
    pub async fn collect(&self, oldest: Option<Timestamp>) -> Result<(), Refusal> {
        let as_of = self.now();
        self.engine.collect(Some(Protected { as_of, oldest })).await
    }

    pub async fn call(&self, body: request::Body) -> proto::Reply {
        call(&self.engine, body, &[]).await
    }

    /// How many records of transactions and outcomes are stored.
    pub fn records(&self) -> usize {
        let snapshot = self.shared.store.snapshot();
        let end = crate::mvcc::keys::addressable_end(b"");
        let mut cursor = snapshot.cursor(Tree::Txn, &[0], &end);
        cursor.seek_to_first().unwrap();
        let mut count = 0;
        while cursor.valid() {
            count += 1;
            cursor.next().unwrap();
        }
        count
    }
}

pub fn resume(gate: &Semaphore) {
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
}

fn engine(shared: &Arc<Shared>, clock: &Arc<TickingClock>, rules: Rules, term: u64) -> TestEngine {
    let group = FakeGroup {
        shared: shared.clone(),
        term,
    };
    let store = shared.store.clone();
    Engine::new(SHARD, group, store, clock.clone(), Arc::default(), rules)
}

pub async fn call(engine: &TestEngine, body: request::Body, schema: &[(u64, u64)]) -> proto::Reply {
    let request = proto::Request {
        shard_id: SHARD.0,
        shard_version: engine.consensus().descriptor().version,
        timeout_ms: 60_000,
        schema: schema
            .iter()
            .map(|(table_id, version)| proto::SchemaVersion {
                table_id: *table_id,
                version: *version,
            })
            .collect(),
        body: Some(body),
        ..Default::default()
    };
    engine.handle(request, 0).await
}

pub fn meta(txn: TxnId, anchor: &'static str, attempt_ts: Timestamp) -> Option<proto::TxnMeta> {
    Some(proto::TxnMeta {
        id: Bytes::copy_from_slice(&txn.0),
        anchor: anchor.into(),
        attempt_ts: attempt_ts.raw(),
        isolation: proto::Isolation::Serializable.into(),
        start_ts: 0,
    })
}

pub fn put(key: &'static str, value: impl Into<Bytes>) -> proto::Write {
    proto::Write {
        target: Some(write::Target::Key(key.into())),
        value: Some(value.into()),
        condition: None,
    }
}

pub fn schema_write(table_id: u64, version: u64, replaces: u64) -> proto::Write {
    proto::Write {
        target: Some(write::Target::Schema(proto::SchemaWrite {
            table_id,
            span: Some(proto::Span::default()),
            version,
            replaces,
        })),
        ..Default::default()
    }
}

pub fn get(keys: &[&'static str], at: Timestamp, txn: Option<TxnId>) -> request::Body {
    request::Body::Get(proto::Get {
        keys: keys.iter().map(|key| (*key).into()).collect(),
        read_ts: at.raw(),
        txn_id: txn.map_or_else(Bytes::new, |txn| Bytes::copy_from_slice(&txn.0)),
    })
}

pub fn point(key: &'static str) -> proto::Span {
    proto::Span {
        start: key.into(),
        end: lineradb_common::keys::key_after(key.as_bytes()),
    }
}

/// A one-round commit of a transaction anchored at its first write.
pub fn commit(txn: TxnId, read_ts: Timestamp, writes: Vec<proto::Write>) -> proto::OnePhaseCommit {
    let anchor = match writes[0].target.clone() {
        Some(write::Target::Key(key)) => key,
        _ => Bytes::from_static(b"anchor"),
    };
    let mut meta = meta(txn, "", read_ts).unwrap();
    meta.anchor = anchor;
    proto::OnePhaseCommit {
        txn: Some(meta),
        read_ts: read_ts.raw(),
        writes,
        ..Default::default()
    }
}

pub fn code(reply: &proto::Reply) -> Option<ErrorCode> {
    match &reply.body {
        Some(reply::Body::Error(error)) => Some(error.code()),
        _ => None,
    }
}

/// The values of a get, `None` where absent.
pub fn values(reply: &proto::Reply) -> Vec<Option<Bytes>> {
    match &reply.body {
        Some(reply::Body::Get(get)) => {
            let value = |v: &proto::VersionedValue| v.present.then(|| v.value.clone());
            get.values.iter().map(value).collect()
        }
        other => panic!("not a get: {other:?}"),
    }
}

pub fn committed(reply: &proto::Reply) -> Timestamp {
    match &reply.body {
        Some(reply::Body::OnePhaseCommit(reply)) if reply.commit_ts != 0 => {
            Timestamp::from_raw(reply.commit_ts)
        }
        other => panic!("not committed: {other:?}"),
    }
}

pub fn pushed(reply: &proto::Reply) -> proto::push_reply::Status {
    match &reply.body {
        Some(reply::Body::Push(push)) => push.status.clone().unwrap(),
        other => panic!("not a push: {other:?}"),
    }
}

pub fn push(txn: TxnId, anchor: &'static str, attempt_ts: Timestamp, force: bool) -> request::Body {
    request::Body::Push(proto::Push {
        txn_id: Bytes::copy_from_slice(&txn.0),
        anchor: anchor.into(),
        attempt_ts: attempt_ts.raw(),
        force,
    })
}

/// A split at `key` as the left half's replica sees it.
pub fn split(key: &'static str, term: u64) -> SplitApplied {
    let half = |start: &'static str, end: &'static str| {
        Arc::new(ShardDescriptor {
            span: Some(proto::Span {
                start: start.into(),
                end: end.into(),
            }),
            version: 2,
            ..Default::default()
        })
    };
    SplitApplied {
        left: half("", key),
        right: half(key, ""),
        term,
    }
}
