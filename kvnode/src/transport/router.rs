//! What arrives, handed to the replica addressed.

use super::arrivals::Arrivals;
use super::codec;
use super::{Chunks, Handler};
use crate::consensus::types::{TypeConfig, raft_vote};
use crate::consensus::{Group, GroupsCore};
use crate::snapshot::Assembly;
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use lineradb_common::clock::deadline_after;
use lineradb_common::{ReplicaId, ShardId, spawn};
use lineradb_proto::raft::v1 as proto;
use openraft::errors::{Infallible, RaftError};
use prost::Message;
use proto::raft_reply::Body as Answer;
use proto::raft_request::Body as Question;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// How long a message may wait for its replica: a split's child is reached by
/// its leader before its node has applied the split.
const BIRTH_WAIT: Duration = Duration::from_millis(100);
/// How long the next part of a snapshot may take.
const CHUNK_WAIT: Duration = Duration::from_secs(30);

/// Answers for all replicas of a node.
pub(crate) struct Router {
    groups: Weak<GroupsCore>,
    arrivals: Arc<Arrivals>,
}

fn unknown(group: u64, replica: u64) -> Answer {
    Answer::UnknownGroup(format!("no replica {replica} of shard {group} here"))
}

fn at_once(groups: &Weak<GroupsCore>, group: u64, replica: u64) -> Option<Group> {
    let core = groups.upgrade()?;
    core.replica(ShardId(group), ReplicaId(replica))
}

async fn find(
    groups: &Weak<GroupsCore>,
    group: u64,
    replica: u64,
    until: Instant,
) -> Option<Group> {
    let found = at_once(groups, group, replica);
    if found.is_some() {
        return found;
    }
    let core = groups.upgrade()?;
    core.wait_for(ShardId(group), ReplicaId(replica), until)
        .await
}

fn stopped(error: &RaftError<TypeConfig, Infallible>) -> Answer {
    Answer::UnknownGroup(format!("the replica has stopped: {error}"))
}

async fn respond(
    groups: Weak<GroupsCore>,
    arrivals: Arc<Arrivals>,
    request: proto::RaftRequest,
) -> Answer {
    let until = deadline_after(BIRTH_WAIT);
    let (shard, replica) = (request.group_id, request.to_replica);
    let here = || at_once(&groups, shard, replica).is_some();
    let mut place = arrivals.enter((shard, replica), here);
    place.turn().await;
    let Some(group) = find(&groups, shard, replica, until).await else {
        // Never made by the message itself (C3): the sender is asked (C4).
        if let Some(core) = groups.upgrade()
            && matches!(
                request.body,
                Some(Question::Append(_) | Question::Vote(_) | Question::PreVote(_))
            )
        {
            core.addressed(
                ShardId(request.group_id),
                ReplicaId(request.to_replica),
                ReplicaId(request.from_replica),
            );
        }
        return unknown(request.group_id, request.to_replica);
    };
    let raft = group.raft();
    let bad = |error: crate::command::Malformed| Answer::Failed(error.to_string());
    match request.body {
        Some(Question::Append(message)) => match codec::take_append(message) {
            Err(error) => bad(error),
            Ok(rpc) => {
                let mut appended = pin!(raft.append_entries(rpc));
                // The first poll hands it over: then it is the next one's turn.
                let first = futures::poll!(appended.as_mut());
                drop(place);
                let appended = match first {
                    Poll::Ready(appended) => appended,
                    Poll::Pending => appended.await,
                };
                match appended {
                    Err(error) => stopped(&error),
                    Ok(response) => codec::put_append_reply(&response)
                        .map_or_else(|| Answer::Failed("nothing stored".into()), Answer::Append),
                }
            }
        },
        Some(Question::Vote(message)) => match codec::take_vote_request(message) {
            Err(error) => bad(error),
            Ok(rpc) => match raft.vote(rpc).await {
                Err(error) => stopped(&error),
                Ok(response) => Answer::Vote(codec::put_vote_reply(&response)),
            },
        },
        Some(Question::PreVote(message)) => match codec::take_vote_request(message) {
            Err(error) => bad(error),
            Ok(rpc) => match raft.pre_vote(rpc).await {
                Err(error) => stopped(&error),
                Ok(response) => Answer::Vote(codec::put_vote_reply(&response)),
            },
        },
        Some(Question::Transfer(message)) => match codec::take_transfer(message) {
            Err(error) => bad(error),
            Ok(rpc) => match raft.handle_transfer_leader(rpc).await {
                Ok(Ok(())) => Answer::Transferred(true),
                Ok(Err(error)) => Answer::Failed(error.to_string()),
                Err(error) => Answer::UnknownGroup(format!("the replica has stopped: {error}")),
            },
        },
        Some(Question::Birth(_)) => {
            let descriptor = group.member_here(ReplicaId(request.from_replica));
            Answer::Birth(proto::BirthAnswer {
                shard_state: descriptor.map_or_else(Bytes::new, |d| d.encode_to_vec().into()),
            })
        }
        None => Answer::Failed("an empty request".into()),
    }
}

#[async_trait]
impl Handler for Router {
    fn request(&self, request: proto::RaftRequest) -> BoxFuture<'static, proto::RaftReply> {
        let (groups, arrivals) = (self.groups.clone(), self.arrivals.clone());
        async move {
            let id = request.id;
            let body = Some(respond(groups, arrivals, request).await);
            proto::RaftReply { id, body }
        }
        .boxed()
    }

    async fn install(&self, mut chunks: Chunks) -> Result<proto::SnapshotReply, String> {
        let header = match chunks.recv().await {
            Some(Ok(proto::SnapshotChunk {
                part: Some(proto::snapshot_chunk::Part::Header(header)),
            })) => header,
            Some(Err(error)) => return Err(error.to_string()),
            _ => return Err("a snapshot begins with its header".into()),
        };
        let until = deadline_after(BIRTH_WAIT);
        let found = find(&self.groups, header.group_id, header.to_replica, until);
        let Some(group) = found.await else {
            return Ok(proto::SnapshotReply {
                vote: None,
                unknown_group: format!(
                    "no replica {} of shard {} here",
                    header.to_replica, header.group_id
                ),
            });
        };
        // One at a time: each takes room on the disk until it is installed.
        let Some(core) = self.groups.upgrade() else {
            return Err("the node is stopping".into());
        };
        let _one = core.snapshot_permit().await.map_err(|e| e.to_string())?;
        let mut assembly =
            spawn::stalling(|| Assembly::begin(&header, &core.spool)).map_err(|e| e.to_string())?;
        // C4: refused, the sender comes again with a later one.
        let fits = |assembly: &Assembly| {
            spawn::stalling(|| core.check_install(assembly.descriptor())).map_err(|e| e.to_string())
        };
        fits(&assembly)?;
        let silent = |_| "the snapshot's sender fell silent".to_owned();
        while let Some(chunk) = { tokio::time::timeout(CHUNK_WAIT, chunks.recv()) }
            .await
            .map_err(silent)?
        {
            let chunk = chunk.map_err(|e| e.to_string())?;
            spawn::stalling(|| assembly.add(chunk)).map_err(|e| e.to_string())?;
        }
        fits(&assembly)?;
        let (meta, cut) = spawn::stalling(|| assembly.finish()).map_err(|e| e.to_string())?;
        let vote = header
            .vote
            .map(|vote| raft_vote(codec::vote_from_proto(&vote)))
            .ok_or("a snapshot without its vote")?;
        let snapshot = openraft::Snapshot {
            meta,
            snapshot: cut,
        };
        let response = group
            .raft()
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|error| error.to_string())?;
        Ok(proto::SnapshotReply {
            vote: Some(codec::vote_to_proto(crate::consensus::types::vote_from(
                &response.vote,
            ))),
            unknown_group: String::new(),
        })
    }
}

/// Keeps a strong hold on the router for transports that only have a weak one.
pub(crate) fn router(groups: Weak<GroupsCore>) -> Arc<dyn Handler> {
    Arc::new(Router {
        groups,
        arrivals: Arc::default(),
    })
}
