//! A cluster in memory that keeps to the contract of `shard.proto` in the
//! simplest way: one store under one lock, several shards, one leading node.
//! Faults are planted by the tests: answers or requests that get lost,
//! refusals, shards that split under way.

use crate::client::Client;
use crate::connection::Connections;
use crate::history::History;
use crate::router::Router;
use crate::service::{LocalNodes, ShardService, TransportError};
use crate::shard_map::span_of;
use crate::{MetaClient, Span};
use arrow::array::{ArrayRef, BinaryArray};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use lineradb_common::clock::{LoneClock, SharedClock};
use lineradb_common::keys;
use lineradb_proto::meta::v1::ClusterMap;
use lineradb_proto::shard::v1::*;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

pub const NODES: u64 = 3;
pub const PAGE_ROWS: usize = 3;

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It takes effect, the answer is lost.
    LoseReply,
    /// It never arrives, and the sender cannot know.
    LoseRequest,
    /// It arrives after `deliver_late` is called.
    Delay,
    /// It arrives and is never answered.
    Hang,
    /// It is refused.
    Refuse(ErrorCode),
    /// Something happens just before it is looked at.
    Before(fn(&mut Store)),
}

type Matcher = Box<dyn Fn(&request::Body) -> bool + Send>;

#[derive(Clone, Debug)]
pub struct Version {
    pub value: Option<Bytes>,
    pub writer: Bytes,
}

#[derive(Clone, Debug)]
pub struct Intent {
    pub meta: TxnMeta,
    pub ts: u64,
    pub value: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record {
    Committed(u64),
    Aborted,
    Staging(u64),
}

#[derive(Default)]
pub struct Store {
    pub shards: Vec<ShardDescriptor>,
    pub leader: u64,
    pub data: BTreeMap<(Bytes, std::cmp::Reverse<u64>), Version>,
    pub intents: BTreeMap<Bytes, Intent>,
    pub records: HashMap<(Bytes, Bytes), Record>,
    /// What the records in state STAGING declare.
    pub staged: HashMap<(Bytes, Bytes), Vec<Bytes>>,
    /// The timestamp cache: span, timestamp, reader.
    pub reads: Vec<(Span, u64, Bytes)>,
    pub locks: HashMap<Bytes, Bytes>,
    pub schemas: HashMap<u64, Vec<(u64, u64)>>,
    faults: Vec<(Matcher, usize, Fault)>,
    late: Vec<Request>,
    /// Bodies that took effect or were refused, by kind.
    pub log: Vec<&'static str>,
    /// Changes before are not told any more.
    pub oldest: u64,
    /// The nodes that have answered reads of what is closed.
    pub closed_reads: Vec<u64>,
    /// Chance of losing a request or a reply of any kind, per mille.
    pub noise: u64,
}

pub fn error(code: ErrorCode, message: &str) -> Box<Error> {
    Box::new(Error {
        code: code as i32,
        message: message.into(),
        ..Error::default()
    })
}

pub fn to_span(span: Option<&lineradb_proto::shard::v1::Span>) -> Span {
    let span = span.cloned().unwrap_or_default();
    Span::new(span.start, span.end)
}

fn kind(body: &request::Body) -> &'static str {
    match body {
        request::Body::Get(_) => "get",
        request::Body::Scan(_) => "scan",
        request::Body::Fragment(_) => "fragment",
        request::Body::LockingRead(_) => "lock",
        request::Body::OnePhaseCommit(_) => "1pc",
        request::Body::Prewrite(_) => "prewrite",
        request::Body::CommitRecord(_) => "record",
        request::Body::Push(_) => "push",
        request::Body::QueryIntents(_) => "query",
        request::Body::Recover(_) => "recover",
        request::Body::Resolve(_) => "resolve",
        request::Body::ForgetRecords(_) => "forget",
        request::Body::Refresh(_) => "refresh",
        request::Body::Changes(_) => "changes",
        request::Body::AwaitWrite(_) => "await",
        request::Body::HeartbeatLocks(_) => "heartbeat",
        request::Body::ReleaseLocks(_) => "release",
        request::Body::Split(_) => "split",
        request::Body::ListLocks(_) => "list_locks",
        request::Body::WhoLeads(_) => "who_leads",
        request::Body::Close(_) => "close",
    }
}

impl Store {
    pub fn split(&mut self, at: &[u8]) {
        let id = self.shards.iter().map(|s| s.shard_id).max().unwrap_or(0) + 1;
        let parent = self
            .shards
            .iter_mut()
            .find(|s| span_of(s).contains(at))
            .unwrap();
        parent.version += 1;
        let mut child = parent.clone();
        child.shard_id = id;
        child.span.as_mut().unwrap().start = Bytes::copy_from_slice(at);
        parent.span.as_mut().unwrap().end = Bytes::copy_from_slice(at);
        self.shards.push(child);
    }

    pub fn newest(&self, key: &Bytes, at: u64) -> Option<(u64, &Version)> {
        self.data
            .range((key.clone(), std::cmp::Reverse(at))..)
            .next()
            .filter(|((k, _), _)| k == key)
            .map(|((_, ts), v)| (ts.0, v))
    }

    pub fn locked(&self, keys: &[Bytes]) -> Box<Error> {
        let mut e = error(ErrorCode::Locked, "locked");
        for key in keys {
            let intent = &self.intents[key];
            e.locks.push(Lock {
                key: key.clone(),
                schema_table: 0,
                txn_id: intent.meta.id.clone(),
                anchor: intent.meta.anchor.clone(),
                attempt_ts: intent.meta.attempt_ts,
            });
        }
        e
    }

    pub fn foreign_intents(&self, span: &Span, at: u64, txn: &Bytes) -> Vec<Bytes> {
        self.intents
            .iter()
            .filter(|(k, i)| span.contains(k) && i.ts <= at && i.meta.id != *txn)
            .map(|(k, _)| k.clone())
            .collect()
    }

    pub fn check_schema(&self, schema: &[SchemaVersion], at: u64) -> Result<(), Box<Error>> {
        for named in schema {
            let history = self.schemas.get(&named.table_id);
            let visible = history
                .and_then(|h| h.iter().rev().find(|(ts, _)| *ts <= at))
                .map_or(0, |(_, version)| *version);
            if visible != named.version {
                let mut e = error(ErrorCode::SchemaChanged, "schema changed");
                e.schema = Some(SchemaVersion {
                    table_id: named.table_id,
                    version: visible,
                });
                return Err(e);
            }
        }
        Ok(())
    }

    pub fn read(
        &mut self,
        key: &Bytes,
        at: u64,
        txn: &Bytes,
    ) -> Result<VersionedValue, Box<Error>> {
        let span = Span::point(key);
        let foreign = self.foreign_intents(&span, at, txn);
        if !foreign.is_empty() {
            return Err(self.locked(&foreign));
        }
        self.reads.push((span, at, txn.clone()));
        Ok(match self.newest(key, at) {
            Some((ts, version)) => VersionedValue {
                present: version.value.is_some(),
                value: version.value.clone().unwrap_or_default(),
                version_ts: ts,
            },
            None => VersionedValue::default(),
        })
    }

    pub fn rows(
        &mut self,
        span: &Span,
        reverse: bool,
        limit: usize,
        at: u64,
        txn: &Bytes,
    ) -> Result<(Vec<KeyValue>, Option<Bytes>), Box<Error>> {
        let foreign = self.foreign_intents(span, at, txn);
        if !foreign.is_empty() {
            return Err(self.locked(&foreign));
        }
        self.reads.push((span.clone(), at, txn.clone()));
        let mut keys: Vec<Bytes> = self
            .data
            .keys()
            .map(|(k, _)| k.clone())
            .filter(|k| span.contains(k))
            .collect();
        keys.dedup();
        if reverse {
            keys.reverse();
        }
        let mut out = Vec::new();
        for key in keys {
            if let Some((ts, version)) = self.newest(&key, at)
                && let Some(value) = version.value.clone()
            {
                if out.len() == limit {
                    let last: &KeyValue = &out[limit - 1];
                    let resume = if reverse { last.key.clone() } else { key };
                    return Ok((out, Some(resume)));
                }
                out.push(KeyValue {
                    key,
                    value,
                    version_ts: ts,
                });
            }
        }
        Ok((out, None))
    }

    pub fn changed(&self, span: &Span, from: u64, to: u64, txn: &Bytes) -> Option<Bytes> {
        self.data
            .iter()
            .find(|((k, ts), v)| span.contains(k) && ts.0 > from && ts.0 <= to && v.writer != *txn)
            .map(|((k, _), _)| k.clone())
    }

    /// Checks writes and answers the smallest timestamp at which they may take
    /// effect.
    pub fn admit(&self, meta: &TxnMeta, read_ts: u64, writes: &[Write]) -> Result<u64, Box<Error>> {
        let record = self.records.get(&(meta.anchor.clone(), meta.id.clone()));
        if record == Some(&Record::Aborted) {
            return Err(error(ErrorCode::TxnAborted, "aborted by a recovery"));
        }
        let mut s = read_ts;
        for write in writes {
            let key = match &write.target {
                Some(write::Target::Key(key)) => key,
                Some(write::Target::Schema(_)) | None => continue,
            };
            if self.intents.get(key).is_some_and(|i| i.meta.id != meta.id) {
                return Err(self.locked(std::slice::from_ref(key)));
            }
            let newest = self.newest(key, u64::MAX);
            let present = newest.is_some_and(|(_, v)| v.value.is_some());
            let version = newest.map_or(0, |(ts, _)| ts);
            let mut fail = None;
            match write.condition {
                Some(write::Condition::Absent(_)) if present => {
                    fail = Some(ErrorCode::ConditionFailed);
                }
                Some(write::Condition::Exists(_)) if !present => {
                    fail = Some(ErrorCode::ConditionFailed);
                }
                Some(write::Condition::Replaces(v)) if v != version => {
                    fail = Some(ErrorCode::WriteConflict);
                }
                _ => {}
            }
            // X0: REPEATABLE READ carries r.
            if meta.isolation() == Isolation::RepeatableRead && version > read_ts {
                fail = Some(ErrorCode::WriteConflict);
            }
            if let Some(code) = fail {
                let mut e = error(code, "condition");
                e.key = key.clone();
                return Err(e);
            }
            s = s.max(version + 1);
            for (span, ts, txn) in &self.reads {
                if span.contains(key) && *txn != meta.id {
                    s = s.max(ts + 1);
                }
            }
        }
        Ok(s)
    }

    pub fn put_version(&mut self, key: Bytes, ts: u64, value: Option<Bytes>, writer: Bytes) {
        let version = Version { value, writer };
        self.data.insert((key, std::cmp::Reverse(ts)), version);
    }

    /// Takes up a request as the node `node` would.
    fn take_up(&mut self, node: u64, request: Request) -> Reply {
        let id = request.id;
        let known = self.shards.iter().find(|s| s.shard_id == request.shard_id);
        let answer = match known {
            None => Err(error(ErrorCode::ShardNotFound, "no such shard")),
            Some(_) if matches!(request.body, Some(request::Body::WhoLeads(_))) => {
                let opinion = WhoLeadsReply {
                    leader_node_id: self.leader,
                    term: 1,
                };
                Ok((reply::Body::WhoLeads(opinion), 0))
            }
            // L4: what is closed any node answers.
            Some(_) if request.closed.is_some() => {
                self.closed_reads.push(node);
                self.evaluate(request)
            }
            Some(_) if node != self.leader => {
                let mut e = error(ErrorCode::NotLeader, "not the leader");
                e.leader_node_id = self.leader;
                Err(e)
            }
            Some(shard) if shard.version != request.shard_version => {
                let mut e = error(ErrorCode::ShardChanged, "another version");
                e.shards = self.shards.clone();
                Err(e)
            }
            Some(_) => self.evaluate(request),
        };
        let (body, observed) = match answer {
            Ok(ok) => ok,
            Err(e) => (reply::Body::Error(*e), 0),
        };
        Reply {
            id,
            observed,
            timing: Some(Timing {
                total_us: 1,
                ..Timing::default()
            }),
            body: Some(body),
        }
    }

    fn fault_for(&mut self, body: &request::Body) -> Option<Fault> {
        let at = self.faults.iter().position(|(m, _, _)| m(body))?;
        let fault = self.faults[at].2.clone();
        self.faults[at].1 -= 1;
        if self.faults[at].1 == 0 {
            drop(self.faults.remove(at));
        }
        Some(fault)
    }
}

pub fn to_arrow(rows: &BTreeMap<Bytes, Bytes>) -> Bytes {
    let column = |values: Vec<&[u8]>| Arc::new(BinaryArray::from_vec(values)) as ArrayRef;
    let batch = RecordBatch::try_from_iter([
        ("key", column(rows.keys().map(|k| k.as_ref()).collect())),
        ("value", column(rows.values().map(|v| v.as_ref()).collect())),
    ])
    .unwrap();
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new(&mut out, &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    drop(writer);
    out.into()
}

fn meta_node(node_id: u64) -> lineradb_proto::meta::v1::Node {
    lineradb_proto::meta::v1::Node {
        node_id,
        address: format!("node-{node_id}"),
        locality: HashMap::from([("zone".to_owned(), format!("z{node_id}"))]),
        ..Default::default()
    }
}

pub fn now_us() -> u64 {
    lineradb_common::clock::wall_clock_us()
}

/// A handle on the cluster.
#[derive(Clone)]
pub struct Fake(pub Arc<Mutex<Store>>);

struct Node(Fake, u64);

#[async_trait::async_trait]
impl ShardService for Node {
    async fn call(&self, request: Request) -> Result<Reply, TransportError> {
        tokio::task::yield_now().await;
        match self.answer(request) {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

impl Node {
    /// `None`: it never comes.
    fn answer(&self, request: Request) -> Option<Result<Reply, TransportError>> {
        let mut store = self.0.0.lock();
        let body = request.body.as_ref().expect("a body");
        let leads = self.1 == store.leader;
        let mut fault = if leads { store.fault_for(body) } else { None };
        if fault.is_none() && lineradb_common::random::below(1000) < store.noise {
            fault = Some(match lineradb_common::random::below(4) {
                0 => Fault::LoseReply,
                1 => Fault::LoseRequest,
                2 => Fault::Delay,
                _ => Fault::Refuse(ErrorCode::Unavailable),
            });
        }
        if leads {
            store.log.push(kind(body));
        }
        Some(match fault {
            Some(Fault::Hang) => return None,
            Some(Fault::LoseRequest) => Err(TransportError::Lost("request lost".into())),
            Some(Fault::Delay) => {
                store.late.push(request);
                Err(TransportError::Lost("late".into()))
            }
            Some(Fault::LoseReply) => {
                store.take_up(self.1, request);
                Err(TransportError::Lost("reply lost".into()))
            }
            Some(Fault::Refuse(code)) => Ok(Reply {
                body: Some(reply::Body::Error(*error(code, "planted"))),
                ..Reply::default()
            }),
            Some(Fault::Before(f)) => {
                f(&mut store);
                Ok(store.take_up(self.1, request))
            }
            None => Ok(store.take_up(self.1, request)),
        })
    }
}

impl Fake {
    /// A cluster whose shards begin at "" and at each of `borders`, and a
    /// client that knows its map.
    pub fn start(borders: &[&str], timeout: Duration) -> (Fake, Client) {
        let mut shards = Vec::new();
        let mut starts = vec![""];
        starts.extend(borders);
        for (i, start) in starts.iter().enumerate() {
            let end = starts.get(i + 1).copied().unwrap_or("");
            shards.push(ShardDescriptor {
                shard_id: i as u64 + 1,
                span: Some(lineradb_proto::shard::v1::Span {
                    start: Bytes::copy_from_slice(start.as_bytes()),
                    end: Bytes::copy_from_slice(end.as_bytes()),
                }),
                version: 1,
                configuration_version: 1,
                replicas: (1..=NODES)
                    .map(|node_id| Replica {
                        replica_id: node_id << 16 | 1,
                        node_id,
                        address: format!("node-{node_id}"),
                    })
                    .collect(),
                leader_node_id: 0,
            });
        }
        let fake = Fake(Arc::new(Mutex::new(Store {
            shards: shards.clone(),
            leader: 2,
            ..Store::default()
        })));
        let client = fake.client(timeout);
        (fake, client)
    }

    /// Another process's client.
    pub fn client(&self, timeout: Duration) -> Client {
        self.client_by(LoneClock::start(), timeout)
    }

    /// One that reads by this clock.
    pub fn client_by(&self, clock: SharedClock, timeout: Duration) -> Client {
        let local = LocalNodes::new();
        for node in 1..=NODES {
            local.register(format!("node-{node}"), Arc::new(Node(self.clone(), node)));
        }
        // Nobody listens there: the map is as stale as the tests make it.
        let meta = MetaClient::new(vec!["127.0.0.1:1".into()]).unwrap();
        let home = HashMap::from([("zone".to_owned(), "z3".to_owned())]);
        let connections = Connections::new(clock.clone(), Some(local));
        let router = Router::new(meta, connections, History::new(home));
        router.merge_map(&ClusterMap {
            revision: 1,
            shards: self.0.lock().shards.clone(),
            nodes: (1..=NODES).map(meta_node).collect(),
            ..ClusterMap::default()
        });
        Client::assemble(Arc::new(router), clock, timeout)
    }

    /// Plants a fault for the next `times` requests of a kind.
    pub fn plant(&self, what: &'static str, times: usize, fault: Fault) {
        let matcher: Matcher = Box::new(move |body| kind(body) == what);
        self.0.lock().faults.push((matcher, times, fault));
    }

    /// What was delayed arrives now.
    pub fn deliver_late(&self) -> Vec<Reply> {
        let mut store = self.0.lock();
        let late = std::mem::take(&mut store.late);
        let leader = store.leader;
        late.into_iter().map(|r| store.take_up(leader, r)).collect()
    }

    pub fn heal(&self) {
        let mut store = self.0.lock();
        store.noise = 0;
        store.faults.clear();
    }

    pub fn log_clear(&self) {
        self.0.lock().log.clear();
    }

    /// Requests of a kind that reached the leader.
    pub fn count(&self, what: &str) -> usize {
        self.0.lock().log.iter().filter(|k| **k == what).count()
    }

    pub fn intents(&self) -> usize {
        self.0.lock().intents.len()
    }

    pub fn locks(&self) -> usize {
        self.0.lock().locks.len()
    }

    pub fn lay_intent(&self, key: &str, anchor: &str, id: u8, attempt_ts: u64) {
        let meta = TxnMeta {
            id: Bytes::from(vec![id; 16]),
            anchor: Bytes::copy_from_slice(anchor.as_bytes()),
            attempt_ts,
            isolation: 0,
            start_ts: 0,
        };
        let intent = Intent {
            meta,
            ts: attempt_ts,
            value: Some(Bytes::from_static(b"intent")),
        };
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.0.lock().intents.insert(key, intent);
    }

    pub fn decide(&self, anchor: &str, id: u8, record: Record) {
        let anchor = Bytes::copy_from_slice(anchor.as_bytes());
        let at = (anchor, Bytes::from(vec![id; 16]));
        self.0.lock().records.insert(at, record);
    }

    /// A commit that somebody staged, anchored at the first key, of which all has
    /// landed.
    pub fn stage<const N: usize>(&self, keys: [&str; N], id: u8, at: u64) {
        for key in keys {
            self.lay_intent(key, keys[0], id, at);
        }
        self.decide(keys[0], id, Record::Staging(at));
        let record = (
            Bytes::copy_from_slice(keys[0].as_bytes()),
            Bytes::from(vec![id; 16]),
        );
        let keys = keys.map(|key| Bytes::copy_from_slice(key.as_bytes()));
        self.0.lock().staged.insert(record, keys.to_vec());
    }

    /// How many versions of a key hold a value.
    pub fn versions(&self, key: &str) -> usize {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let end = keys::key_after(&key);
        let store = self.0.lock();
        store
            .data
            .range((key, std::cmp::Reverse(u64::MAX))..(end, std::cmp::Reverse(u64::MAX)))
            .count()
    }
}
