//! Random transactions, elections, lost verdicts and dead coordinators on one
//! shard; whatever was acknowledged must be strictly serializable.

use super::checker::{Done, strictly_serializable};
use super::harness::*;
use crate::rules::Rules;
use bytes::Bytes;
use lineradb_common::clock::Clock;
use lineradb_common::{Timestamp, TxnId, spawn};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, push_reply, reply, request};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const CLIENTS: u64 = 6;
const TRANSACTIONS: u64 = 12;

/// Xorshift: the schedule follows from the seed.
pub(super) struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn keys(&mut self, at_most: u64) -> Vec<&'static str> {
        let mut keys = Vec::new();
        for _ in 0..self.below(at_most + 1) {
            let key = KEYS[self.below(KEYS.len() as u64) as usize];
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }
}

pub(super) struct World {
    pub shard: Shard,
    leader: Mutex<TestEngine>,
    done: Mutex<Vec<Done>>,
    events: AtomicU64,
    numbers: AtomicU64,
}

fn txn_id(number: u64) -> TxnId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    TxnId(id)
}

fn id_bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&txn_id(number).0)
}

fn value_of(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number_of(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().unwrap())
}

/// Why a transaction came to nothing.
pub(super) struct GaveUp;

impl World {
    fn event(&self) -> u64 {
        self.events.fetch_add(1, Ordering::SeqCst)
    }

    fn elect(&self) {
        let mut leader = self.leader.lock();
        let next = self.shard.elect();
        leader.lost_leadership();
        *leader = next;
    }

    /// Sends a request to the leader. A verdict that is lost means that the
    /// leadership is.
    async fn send(&self, body: request::Body) -> proto::Reply {
        let leader = self.leader.lock().clone();
        let reply = call(&leader, body, &[]).await;
        if code(&reply) == Some(ErrorCode::OutcomeUnknown)
            && Arc::ptr_eq(&leader, &self.leader.lock())
        {
            self.elect();
        }
        reply
    }

    /// Sends a request until the leader answers it; pushes and resolves what
    /// stands in the way, as the client library does.
    pub async fn ask(&self, body: request::Body) -> Result<proto::Reply, GaveUp> {
        for _ in 0..40 {
            let reply = self.send(body.clone()).await;
            match &reply.body {
                Some(reply::Body::Error(error)) => match error.code() {
                    ErrorCode::NotLeader => tokio::task::yield_now().await,
                    ErrorCode::Locked => self.recover(&error.locks).await,
                    _ => return Ok(reply),
                },
                _ => return Ok(reply),
            }
        }
        Err(GaveUp)
    }

    /// Asks for the fate of a transaction, and decides it where it is to be
    /// decided. 0: aborted.
    async fn fate(&self, push: proto::Push) -> Option<u64> {
        use proto::recover_reply;
        let reply = self.send(request::Body::Push(push.clone())).await;
        let staging = match reply.body {
            Some(reply::Body::Push(proto::PushReply {
                status: Some(status),
            })) => match status {
                push_reply::Status::Committed(at) => return Some(at),
                push_reply::Status::Aborted(_) => return Some(0),
                push_reply::Status::Pending(_) => return None,
                push_reply::Status::Staging(staging) => staging,
            },
            _ => return None,
        };
        let mut commit = true;
        for key in &staging.keys {
            let query = request::Body::QueryIntents(proto::QueryIntents {
                txn_id: push.txn_id.clone(),
                commit_ts: staging.commit_ts,
                keys: vec![key.clone()],
            });
            match self.send(query).await.body {
                Some(reply::Body::QueryIntents(reply)) => commit &= reply.all_there,
                _ => return None,
            }
        }
        let verdict = request::Body::Recover(proto::Recover {
            txn_id: push.txn_id,
            anchor: push.anchor,
            staged_ts: staging.commit_ts,
            commit,
        });
        match self.send(verdict).await.body {
            Some(reply::Body::Recover(reply)) => match reply.status? {
                recover_reply::Status::Committed(at) => Some(at),
                recover_reply::Status::Aborted(_) => Some(0),
                recover_reply::Status::Changed(_) => None,
            },
            _ => None,
        }
    }

    async fn recover(&self, locks: &[proto::Lock]) {
        for lock in locks {
            let push = proto::Push {
                txn_id: lock.txn_id.clone(),
                anchor: lock.anchor.clone(),
                attempt_ts: lock.attempt_ts,
                force: false,
            };
            let Some(commit_ts) = self.fate(push).await else {
                continue;
            };
            let resolve = request::Body::Resolve(proto::Resolve {
                txn_id: lock.txn_id.clone(),
                keys: vec![lock.key.clone()],
                commit_ts,
                ..Default::default()
            });
            self.send(resolve).await;
        }
    }

    /// What became of an attempt whose reply was lost (X1).
    async fn decide(
        &self,
        number: u64,
        anchor: &'static str,
        attempt: Timestamp,
    ) -> Option<Timestamp> {
        loop {
            let push = proto::Push {
                txn_id: id_bytes(number),
                anchor: anchor.into(),
                attempt_ts: attempt.raw(),
                force: true,
            };
            if let Some(at) = self.fate(push).await {
                return (at != 0).then(|| Timestamp::from_raw(at));
            }
            tokio::task::yield_now().await;
        }
    }

    async fn read(
        &self,
        number: u64,
        r: Timestamp,
        keys: &[&'static str],
        scan: bool,
        observed: &mut Timestamp,
    ) -> Result<Vec<(&'static str, u64)>, GaveUp> {
        let mut out = Vec::new();
        if scan {
            let body = request::Body::Scan(proto::Scan {
                span: Some(proto::Span::default()),
                read_ts: r.raw(),
                txn_id: id_bytes(number),
                ..Default::default()
            });
            let reply = self.ask(body).await?;
            *observed = (*observed).max(Timestamp::from_raw(reply.observed));
            let Some(reply::Body::Scan(reply)) = reply.body else {
                return Err(GaveUp);
            };
            for key in KEYS {
                let pair = reply.pairs.iter().find(|pair| pair.key == key);
                out.push((key, pair.map_or(0, |pair| number_of(&pair.value))));
            }
        } else {
            for key in keys {
                let reply = self.ask(get(&[key], r, Some(txn_id(number)))).await?;
                *observed = (*observed).max(Timestamp::from_raw(reply.observed));
                if code(&reply).is_some() {
                    return Err(GaveUp);
                }
                let value = values(&reply)[0].clone();
                out.push((*key, value.map_or(0, |value| number_of(&value))));
            }
        }
        Ok(out)
    }

    async fn refresh(
        &self,
        number: u64,
        spans: &[proto::Span],
        from: Timestamp,
        to: Timestamp,
    ) -> bool {
        let body = request::Body::Refresh(proto::Refresh {
            spans: spans.to_vec(),
            from_ts: from.raw(),
            to_ts: to.raw(),
            txn_id: id_bytes(number),
        });
        let reply = self.ask(body).await.ok().and_then(|reply| reply.body);
        matches!(
            reply,
            Some(reply::Body::Refresh(proto::RefreshReply { ok: true, .. }))
        )
    }

    async fn one_phase(
        &self,
        number: u64,
        mut r: Timestamp,
        spans: &[proto::Span],
        writes: &[&'static str],
        elsewhere: bool,
    ) -> Option<Timestamp> {
        for _ in 0..5 {
            let puts = writes
                .iter()
                .map(|key| put(key, value_of(number)))
                .collect();
            let mut commit = commit(txn_id(number), r, puts);
            commit.reads = spans.to_vec();
            commit.reads_elsewhere = elsewhere;
            let attempt = Timestamp::from_raw(commit.txn.as_ref()?.attempt_ts);
            let body = request::Body::OnePhaseCommit(commit);
            let reply = self.ask(body).await.ok()?;
            match &reply.body {
                Some(reply::Body::OnePhaseCommit(reply)) if reply.commit_ts != 0 => {
                    return Some(Timestamp::from_raw(reply.commit_ts));
                }
                Some(reply::Body::OnePhaseCommit(reply)) => {
                    let needs = Timestamp::from_raw(reply.needs_ts);
                    if !self.refresh(number, spans, r, needs).await {
                        return None;
                    }
                    r = needs;
                }
                Some(reply::Body::Error(error)) if error.code() == ErrorCode::OutcomeUnknown => {
                    return self.decide(number, writes[0], attempt).await;
                }
                _ => return None,
            }
        }
        None
    }

    async fn two_phase(
        &self,
        number: u64,
        r: Timestamp,
        spans: &[proto::Span],
        writes: &[&'static str],
        dies: bool,
    ) -> Option<Timestamp> {
        let anchor = writes[0];
        let attempt = self.shard.now();
        let meta = meta(txn_id(number), anchor, attempt);
        let stages = !dies || number.is_multiple_of(2);
        let (mut s, mut staged, mut in_doubt) = (Some(r), false, false);
        for key in writes {
            let body = request::Body::Prewrite(proto::Prewrite {
                txn: meta.clone(),
                read_ts: r.raw(),
                min_ts: r.raw(),
                writes: vec![put(key, value_of(number))],
                staged_keys: match stages && *key == anchor {
                    true => writes.iter().map(|key| (*key).into()).collect(),
                    false => Vec::new(),
                },
            });
            match self.ask(body).await.map(|reply| reply.body) {
                Ok(Some(reply::Body::Prewrite(reply))) => {
                    s = s.map(|s| s.max(Timestamp::from_raw(reply.timestamp)));
                    staged |= reply.staged;
                }
                Ok(Some(reply::Body::Error(error)))
                    if error.code() == ErrorCode::OutcomeUnknown =>
                {
                    (s, in_doubt) = (None, true);
                }
                _ => s = None,
            }
        }
        // X3: committed, whatever becomes of the coordinator.
        let committed = staged && s == Some(r);
        if dies && !in_doubt {
            return committed.then_some(r);
        }
        if let Some(to) = s
            && to > r
            && !self.refresh(number, spans, r, to).await
        {
            s = None;
        }
        let mut commit_ts = None;
        if let Some(at) = s {
            let body = request::Body::CommitRecord(proto::CommitRecord {
                txn: meta,
                commit_ts: at.raw(),
                ..Default::default()
            });
            let reply = self.ask(body).await.ok().and_then(|reply| reply.body);
            if let Some(reply::Body::CommitRecord(reply)) = &reply
                && let Some(proto::commit_record_reply::Outcome::Committed(at)) = reply.outcome
            {
                commit_ts = Some(Timestamp::from_raw(at));
            }
        }
        if committed {
            // Acknowledged: it gives up no more.
            if commit_ts.is_none() {
                return Some(r);
            }
            assert_eq!(commit_ts, Some(r), "what had landed was aborted");
        } else if commit_ts.is_none() {
            commit_ts = self.decide(number, anchor, attempt).await;
        }
        let resolve = request::Body::Resolve(proto::Resolve {
            txn_id: id_bytes(number),
            keys: writes.iter().map(|key| (*key).into()).collect(),
            commit_ts: commit_ts.map_or(0, Timestamp::raw),
            ..Default::default()
        });
        let _ = self.ask(resolve).await;
        commit_ts
    }

    async fn transaction(&self, chance: &mut Chance) {
        let began = self.event();
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        // Now and then a clock that runs ahead, within its bound.
        let ahead = if chance.below(4) == 0 {
            chance.below(30_000)
        } else {
            0
        };
        let r = self.shard.now().plus_micros(ahead);
        // Equal timestamps of several transactions must occur.
        let r = if chance.below(2) == 0 {
            Timestamp::from_micros(r.micros() | 127)
        } else {
            r
        };
        let keys = chance.keys(3);
        let scan = chance.below(5) == 0;
        let mut observed = Timestamp::ZERO;
        let Ok(reads) = self.read(number, r, &keys, scan, &mut observed).await else {
            return;
        };
        for _ in 0..chance.below(4) {
            tokio::task::yield_now().await;
        }
        let writes = chance.keys(2);
        let spans: Vec<proto::Span> = if scan {
            vec![proto::Span::default()]
        } else {
            keys.iter().map(|key| point(key)).collect()
        };
        let at = if writes.is_empty() {
            Some(r)
        } else if chance.below(2) == 0 {
            let elsewhere = chance.below(3) == 0;
            self.one_phase(number, r, &spans, &writes, elsewhere).await
        } else {
            let dies = chance.below(10) == 0;
            self.two_phase(number, r, &spans, &writes, dies).await
        };
        let Some(at) = at else {
            return;
        };
        // T5: the commit wait. The reader waits for what it saw.
        let wait = if writes.is_empty() {
            observed
        } else {
            at.max(observed)
        };
        while self.shard.clock.now().unwrap().earliest.micros() <= wait.micros() {
            self.shard.clock.advance(500);
            tokio::task::yield_now().await;
        }
        let ended = self.event();
        self.done.lock().push(Done {
            number,
            began,
            ended,
            at,
            reads,
            writes,
        });
    }
}

/// A shard with nobody at work yet; some seeds lose verdicts.
pub(super) fn world(seed: u64, rules: Rules) -> Arc<World> {
    let shard = Shard::new(rules);
    shard
        .shared
        .lose
        .store([0, 9, 23][seed as usize % 3], Ordering::SeqCst);
    Arc::new(World {
        leader: Mutex::new(shard.engine.clone()),
        shard,
        done: Mutex::default(),
        events: AtomicU64::new(0),
        numbers: AtomicU64::new(1),
    })
}

/// Clients do their transactions; answers those that were acknowledged.
pub(super) async fn work(world: &Arc<World>, seed: u64) -> Vec<Done> {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let world = world.clone();
            spawn::task("client", async move {
                let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (client + 1));
                for _ in 0..TRANSACTIONS {
                    world.transaction(&mut chance).await;
                    match chance.below(20) {
                        0 => world.elect(),
                        // Dead coordinators are dead after five seconds.
                        1 => world.shard.clock.advance(5_100_000),
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    std::mem::take(&mut *world.done.lock())
}

#[tokio::test]
async fn random_histories_are_strictly_serializable() {
    let mut acknowledged = 0;
    for seed in 1..=25 {
        let done = work(&world(seed, Rules::default()), seed).await;
        acknowledged += done.len();
        assert!(strictly_serializable(&done), "seed {seed}: {done:#?}");
    }
    assert!(
        acknowledged > 500,
        "only {acknowledged} transactions committed"
    );
}
