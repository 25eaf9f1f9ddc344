//! Our own bytes for what openraft keeps and sends, so that nothing on disk or
//! on the wire depends on the library's types. Messages are those of
//! `lineradb.raft.v1`; a member's id stands where a replica's would.

use super::{Entry, LogId, Membership, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use crate::error::{Error, Result};
use crate::state::{Command, codec};
use bytes::Bytes;
use lineradb_proto::raft::v1 as pb;
use openraft::EntryPayload;
use openraft::impls::BasicNode;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use std::collections::{BTreeMap, BTreeSet};

/// What an entry says.
#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(oneof = "PayloadKind", tags = "1, 2, 3")]
    kind: Option<PayloadKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum PayloadKind {
    #[prost(bool, tag = "1")]
    Blank(bool),
    #[prost(message, tag = "2")]
    Command(Command),
    #[prost(message, tag = "3")]
    Membership(Members),
}

/// A membership: one set of voters, or two while it is joint.
#[derive(Clone, PartialEq, prost::Message)]
struct Members {
    #[prost(message, repeated, tag = "1")]
    configurations: Vec<Voters>,
    #[prost(btree_map = "uint64, string", tag = "2")]
    addresses: BTreeMap<u64, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Voters {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

/// A membership and the entry that set it.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredMembers {
    #[prost(message, optional, tag = "1")]
    log_id: Option<pb::LogId>,
    #[prost(message, required, tag = "2")]
    members: Members,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Meta {
    #[prost(message, optional, tag = "1")]
    last: Option<pb::LogId>,
    #[prost(message, required, tag = "2")]
    membership: StoredMembers,
}

/// A vote as a message.
pub fn vote_to(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        replica_id: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// A vote from a message.
pub fn vote_from(vote: &pb::Vote) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.replica_id)
    } else {
        Vote::new(vote.term, vote.replica_id)
    }
}

fn need_vote(vote: &Option<pb::Vote>) -> Result<Vote> {
    vote.as_ref()
        .map(vote_from)
        .ok_or_else(|| Error::Corrupt("a raft message without a vote".to_owned()))
}

/// A log id as a message.
pub fn log_id_to(id: &LogId) -> pb::LogId {
    pb::LogId {
        term: id.leader_id.term,
        replica_id: 0,
        index: id.index,
    }
}

/// A log id from a message.
pub fn log_id_from(id: &pb::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

fn members_to(membership: &Membership) -> Members {
    let voters = membership.get_joint_config().iter();
    Members {
        configurations: voters
            .map(|set| Voters {
                ids: set.iter().copied().collect(),
            })
            .collect(),
        addresses: membership
            .nodes()
            .map(|(id, node)| (*id, node.addr.clone()))
            .collect(),
    }
}

fn members_from(members: &Members) -> Result<Membership> {
    let sets: Vec<BTreeSet<u64>> = { members.configurations.iter() }
        .map(|c| c.ids.iter().copied().collect())
        .collect();
    let nodes: BTreeMap<u64, BasicNode> = { members.addresses.iter() }
        .map(|(id, address)| (*id, BasicNode::new(address)))
        .collect();
    Membership::new(sets, nodes).map_err(|e| Error::Corrupt(format!("a membership: {e}")))
}

fn stored_members_to(stored: &StoredMembership) -> StoredMembers {
    StoredMembers {
        log_id: stored.log_id().as_ref().map(log_id_to),
        members: members_to(stored.membership()),
    }
}

fn stored_members_from(stored: &StoredMembers) -> Result<StoredMembership> {
    if stored.members == Members::default() {
        return Ok(StoredMembership::default());
    }
    Ok(StoredMembership::new(
        stored.log_id.as_ref().map(log_id_from),
        members_from(&stored.members)?,
    ))
}

/// A stored membership as bytes.
pub fn encode_membership(stored: &StoredMembership) -> Vec<u8> {
    codec::encode(&stored_members_to(stored))
}

/// Reads what [`encode_membership`] wrote.
///
/// # Errors
/// When the bytes are damaged.
pub fn decode_membership(bytes: &[u8]) -> Result<StoredMembership> {
    stored_members_from(&codec::decode("membership", bytes)?)
}

/// A snapshot's description as bytes.
pub fn encode_meta(meta: &SnapshotMeta) -> Vec<u8> {
    codec::encode(&Meta {
        last: meta.last_log_id.as_ref().map(log_id_to),
        membership: stored_members_to(&meta.last_membership),
    })
}

/// Reads what [`encode_meta`] wrote.
///
/// # Errors
/// When the bytes are damaged.
pub fn decode_meta(bytes: &[u8]) -> Result<SnapshotMeta> {
    let meta: Meta = codec::decode("snapshot description", bytes)?;
    Ok(SnapshotMeta {
        last_log_id: meta.last.as_ref().map(log_id_from),
        last_membership: stored_members_from(&meta.membership)?,
    })
}

/// An entry as a message.
pub fn entry_to(entry: &Entry) -> pb::Entry {
    let kind = match &entry.payload {
        EntryPayload::Blank => PayloadKind::Blank(true),
        EntryPayload::Normal(command) => PayloadKind::Command(command.clone()),
        EntryPayload::Membership(m) => PayloadKind::Membership(members_to(m)),
    };
    pb::Entry {
        id: Some(log_id_to(&entry.log_id)),
        payload: codec::encode(&Payload { kind: Some(kind) }).into(),
    }
}

/// An entry from a message.
///
/// # Errors
/// When it does not decode, or is of a version that this build does not know:
/// a command that is skipped would make the members differ.
pub fn entry_from(entry: &pb::Entry) -> Result<Entry> {
    let id = { entry.id.as_ref() }
        .map(log_id_from)
        .ok_or_else(|| Error::Corrupt("a log entry without an id".to_owned()))?;
    let payload: Payload = codec::decode("log entry", &entry.payload)?;
    let payload = match payload.kind {
        Some(PayloadKind::Blank(_)) => EntryPayload::Blank,
        Some(PayloadKind::Command(command)) if command.body.is_some() => {
            EntryPayload::Normal(command)
        }
        Some(PayloadKind::Membership(members)) => EntryPayload::Membership(members_from(&members)?),
        _ => {
            return Err(Error::Corrupt(format!(
                "log entry {} is of a kind that this build does not know",
                id.index
            )));
        }
    };
    Ok(openraft::Entry {
        log_id: id,
        payload,
    })
}

/// An append as a message.
pub fn append_to(rpc: &AppendEntriesRequest<TypeConfig>) -> pb::AppendEntries {
    pb::AppendEntries {
        vote: Some(vote_to(&rpc.vote)),
        previous: rpc.prev_log_id.as_ref().map(log_id_to),
        entries: rpc.entries.iter().map(entry_to).collect(),
        committed: rpc.leader_commit.as_ref().map(log_id_to),
    }
}

/// An append from a message.
///
/// # Errors
/// When it does not decode.
pub fn append_from(rpc: &pb::AppendEntries) -> Result<AppendEntriesRequest<TypeConfig>> {
    Ok(AppendEntriesRequest {
        vote: need_vote(&rpc.vote)?,
        prev_log_id: rpc.previous.as_ref().map(log_id_from),
        entries: rpc.entries.iter().map(entry_from).collect::<Result<_>>()?,
        leader_commit: rpc.committed.as_ref().map(log_id_from),
    })
}

/// The answer to an append as a message.
pub fn append_reply_to(reply: &AppendEntriesResponse<TypeConfig>) -> pb::AppendReply {
    use pb::append_reply::Result as R;
    let result = match reply {
        AppendEntriesResponse::Success => R::Success(true),
        AppendEntriesResponse::PartialSuccess(Some(id)) => R::PartialSuccess(log_id_to(id)),
        // Index 0 of term 0 is nobody's: nothing was taken.
        AppendEntriesResponse::PartialSuccess(None) => R::PartialSuccess(pb::LogId::default()),
        AppendEntriesResponse::Conflict => R::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => R::HigherVote(vote_to(vote)),
    };
    pb::AppendReply {
        result: Some(result),
    }
}

/// The answer to an append from a message.
///
/// # Errors
/// When it is empty.
pub fn append_reply_from(reply: &pb::AppendReply) -> Result<AppendEntriesResponse<TypeConfig>> {
    use pb::append_reply::Result as R;
    Ok(match &reply.result {
        Some(R::Success(_)) => AppendEntriesResponse::Success,
        Some(R::PartialSuccess(id)) => AppendEntriesResponse::PartialSuccess(
            (*id != pb::LogId::default()).then(|| log_id_from(id)),
        ),
        Some(R::Conflict(_)) => AppendEntriesResponse::Conflict,
        Some(R::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote_from(vote)),
        None => return Err(Error::Corrupt("an empty append reply".to_owned())),
    })
}

/// A request for a vote as a message.
pub fn vote_request_to(rpc: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(vote_to(&rpc.vote)),
        last_log: rpc.last_log_id.as_ref().map(log_id_to),
        transfer: rpc.leadership_transfer,
    }
}

/// A request for a vote from a message.
///
/// # Errors
/// When it does not decode.
pub fn vote_request_from(rpc: &pb::VoteRequest) -> Result<VoteRequest<TypeConfig>> {
    Ok(VoteRequest {
        vote: need_vote(&rpc.vote)?,
        last_log_id: rpc.last_log.as_ref().map(log_id_from),
        leadership_transfer: rpc.transfer,
    })
}

/// The answer to a request for a vote as a message.
pub fn vote_reply_to(reply: &VoteResponse<TypeConfig>) -> pb::VoteReply {
    pb::VoteReply {
        vote: Some(vote_to(&reply.vote)),
        granted: reply.vote_granted,
        last_log: reply.last_log_id.as_ref().map(log_id_to),
    }
}

/// The answer to a request for a vote from a message.
///
/// # Errors
/// When it does not decode.
pub fn vote_reply_from(reply: &pb::VoteReply) -> Result<VoteResponse<TypeConfig>> {
    Ok(VoteResponse {
        vote: need_vote(&reply.vote)?,
        vote_granted: reply.granted,
        last_log_id: reply.last_log.as_ref().map(log_id_from),
    })
}

/// A hand-over of leadership as a message.
pub fn transfer_to(rpc: &TransferLeaderRequest<TypeConfig>) -> pb::TransferLeader {
    pb::TransferLeader {
        from: Some(vote_to(rpc.from_leader())),
        to_replica: *rpc.to_node_id(),
        last_log: rpc.last_log_id().map(log_id_to),
    }
}

/// A hand-over of leadership from a message.
///
/// # Errors
/// When it does not decode.
pub fn transfer_from(rpc: &pb::TransferLeader) -> Result<TransferLeaderRequest<TypeConfig>> {
    Ok(TransferLeaderRequest::new(
        need_vote(&rpc.from)?,
        rpc.to_replica,
        rpc.last_log.as_ref().map(log_id_from),
    ))
}

/// A snapshot as a message.
pub fn snapshot_to(vote: &Vote, meta: &SnapshotMeta, state: Bytes) -> pb::SnapshotHeader {
    pb::SnapshotHeader {
        vote: Some(vote_to(vote)),
        meta: encode_meta(meta).into(),
        shard_state: state,
        ..pb::SnapshotHeader::default()
    }
}

/// A snapshot from a message.
///
/// # Errors
/// When it does not decode.
pub fn snapshot_from(header: &pb::SnapshotHeader) -> Result<(Vote, super::Snapshot)> {
    Ok((
        need_vote(&header.vote)?,
        openraft::storage::Snapshot {
            meta: decode_meta(&header.meta)?,
            snapshot: header.shard_state.clone(),
        },
    ))
}
