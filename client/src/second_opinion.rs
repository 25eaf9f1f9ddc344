//! While an answer stays out: does the replica that was asked still lead?
//!
//! A node that is paused, or cut off from the other replicas, takes requests
//! and answers none of them. Nothing tells it from a node where a request waits
//! for a lock, except the other replicas: they have elected another leader, or
//! they have not. So whoever has waited for [`PATIENCE`] asks them. As long as
//! the newest of their opinions names the node that was asked, the wait is
//! right. When it names another, no answer of the old one is worth waiting for:
//! a leader confirms with a quorum before it answers (L3), and its proposals
//! are bound to its term (C2).
//!
//! It is a hint. A stale one costs a round trip, or makes an attempt's outcome
//! unknown, which X1 settles; it never decides anything.
//!
//! Many requests may wait for one node: the first whose patience ends asks, the
//! others are woken when it has heard of a leader.

use crate::connection::Connections;
use crate::shard_map::ShardMap;
use lineradb_common::clock::deadline_after;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{Request, ShardDescriptor, reply, request};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// An answer is waited for so long before others are asked, and asked again.
/// Well below an election timeout, so that a new leader is soon found.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long the replicas have to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// What replicas said last, by shard.
#[derive(Default)]
pub struct Opinions {
    last: Mutex<HashMap<u64, Opinion>>,
    /// Somebody has heard of a leader.
    news: Notify,
}

#[derive(Clone, Copy)]
struct Opinion {
    asked_at: Instant,
    /// The leader in the newest term that somebody named one for; `None`: no
    /// answer (yet).
    leader: Option<u64>,
}

/// What somebody who waits does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Another node leads.
    Leave(u64),
    /// Ask the replicas.
    Ask,
    /// Others have asked; their answer is good until then.
    WaitUntil(Instant),
}

impl Opinions {
    /// For a request sent to `node` at `sent`, which still waits at `now`.
    /// Whoever is told to ask is noted as asking.
    fn next(&self, shard_id: u64, node: u64, sent: Instant, now: Instant) -> Next {
        let mut opinions = self.last.lock();
        // An opinion from before the request may be why it was sent there.
        let fresh = opinions.get(&shard_id).filter(|o| o.asked_at >= sent);
        match fresh {
            Some(Opinion {
                leader: Some(leader),
                ..
            }) if *leader != node => Next::Leave(*leader),
            Some(opinion) if now < opinion.asked_at + PATIENCE => {
                Next::WaitUntil(opinion.asked_at + PATIENCE)
            }
            _ => {
                let asked = Opinion {
                    asked_at: now,
                    leader: None,
                };
                opinions.insert(shard_id, asked);
                Next::Ask
            }
        }
    }

    /// What those said who were asked at `asked_at`.
    fn heard(&self, shard_id: u64, asked_at: Instant, leader: Option<u64>) {
        if let Some(opinion) = self.last.lock().get_mut(&shard_id)
            && opinion.asked_at == asked_at
        {
            opinion.leader = leader;
        }
    }

    /// Forgets shards that are not there any more.
    pub fn retain(&self, map: &ShardMap) {
        self.last.lock().retain(|id, _| map.by_id(*id).is_some());
    }

    /// Waits until the replicas take another node than `node` for the leader;
    /// answers which. For ever, if that does not happen.
    pub async fn other_leader(
        &self,
        shard: &ShardDescriptor,
        node: u64,
        map: impl Fn() -> std::sync::Arc<ShardMap>,
        connections: &Connections,
    ) -> u64 {
        if shard.replicas.iter().all(|replica| replica.node_id == node) {
            return std::future::pending().await;
        }
        let sent = deadline_after(Duration::ZERO);
        tokio::time::sleep(PATIENCE).await;
        loop {
            // Before the look: what is heard after it wakes this one.
            let mut news = pin!(self.news.notified());
            news.as_mut().enable();
            let now = deadline_after(Duration::ZERO);
            match self.next(shard.shard_id, node, sent, now) {
                Next::Leave(leader) => return leader,
                Next::WaitUntil(then) => {
                    let _ = tokio::time::timeout_at(then, news).await;
                }
                Next::Ask => {
                    let leader = ask_all(shard, &map(), connections).await;
                    self.heard(shard.shard_id, now, leader);
                    if leader.is_some() {
                        self.news.notify_waiters();
                    }
                }
            }
        }
    }
}

/// Asks all replicas at once whom they follow.
async fn ask_all(
    shard: &ShardDescriptor,
    map: &ShardMap,
    connections: &Connections,
) -> Option<u64> {
    let calls = shard.replicas.iter().map(|replica| {
        let request = Request {
            shard_id: shard.shard_id,
            shard_version: shard.version,
            timeout_ms: ANSWER_TIMEOUT.as_millis() as u32,
            body: Some(request::Body::WhoLeads(pb::WhoLeads {})),
            ..Request::default()
        };
        let service = connections.node(map.address(replica));
        async move {
            let call = tokio::time::timeout(ANSWER_TIMEOUT, service.call(request));
            match call.await.ok()?.ok()?.body? {
                reply::Body::WhoLeads(opinion) => Some(opinion),
                _ => None,
            }
        }
    });
    let opinions = futures::future::join_all(calls).await;
    newest(opinions.into_iter().flatten(), shard)
}

/// The leader in the newest term for which one of the shard's nodes is named.
fn newest(
    opinions: impl Iterator<Item = pb::WhoLeadsReply>,
    shard: &ShardDescriptor,
) -> Option<u64> {
    opinions
        .filter(|o| shard.replicas.iter().any(|r| r.node_id == o.leader_node_id))
        .max_by_key(|o| o.term)
        .map(|o| o.leader_node_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opinion(leader_node_id: u64, term: u64) -> pb::WhoLeadsReply {
        pb::WhoLeadsReply {
            leader_node_id,
            term,
        }
    }

    #[test]
    fn the_newest_term_with_a_leader_counts() {
        let shard = ShardDescriptor {
            replicas: (1..=3)
                .map(|node_id| pb::Replica {
                    node_id,
                    ..pb::Replica::default()
                })
                .collect(),
            ..ShardDescriptor::default()
        };
        let of = |opinions: &[pb::WhoLeadsReply]| newest(opinions.iter().copied(), &shard);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[opinion(0, 9)]), None);
        assert_eq!(of(&[opinion(2, 4), opinion(1, 3)]), Some(2));
        assert_eq!(of(&[opinion(2, 4), opinion(3, 5), opinion(0, 6)]), Some(3));
        // One that was cut off believes in an old leader; the real one knows better.
        assert_eq!(of(&[opinion(1, 5), opinion(2, 4)]), Some(1));
        // A node that is none of the shard's is no leader of it.
        assert_eq!(of(&[opinion(7, 9), opinion(1, 3)]), Some(1));
    }

    #[test]
    fn one_asks_and_all_hear() {
        let opinions = Opinions::default();
        let start = deadline_after(Duration::ZERO);
        let at = |ms| start + Duration::from_millis(ms);
        // Two requests wait for node 1; the second one only looks.
        assert_eq!(opinions.next(5, 1, start, at(300)), Next::Ask);
        assert_eq!(
            opinions.next(5, 1, at(100), at(310)),
            Next::WaitUntil(at(600))
        );
        // They take node 1 for the leader: asked again when it is time.
        opinions.heard(5, at(300), Some(1));
        assert_eq!(
            opinions.next(5, 1, start, at(320)),
            Next::WaitUntil(at(600))
        );
        assert_eq!(opinions.next(5, 1, start, at(600)), Next::Ask);
        // A late answer to the first question is none to the second.
        opinions.heard(5, at(300), Some(3));
        assert_eq!(
            opinions.next(5, 1, start, at(650)),
            Next::WaitUntil(at(900))
        );
        opinions.heard(5, at(600), Some(2));
        assert_eq!(opinions.next(5, 1, start, at(660)), Next::Leave(2));
        assert_eq!(opinions.next(5, 1, at(100), at(660)), Next::Leave(2));
        assert_eq!(
            opinions.next(5, 2, at(100), at(660)),
            Next::WaitUntil(at(900))
        );
        // What was said before a request was sent is no news to it.
        assert_eq!(opinions.next(5, 1, at(700), at(1000)), Next::Ask);
        // Each shard has its own.
        assert_eq!(opinions.next(6, 1, start, at(1000)), Next::Ask);
    }
}
