//! Between openraft's messages and ours.

use crate::command::Malformed;
use crate::consensus::types::{
    Entry, RaftLogId, RaftVote, TypeConfig, entry_from, entry_payload, log_id_from, raft_log_id,
    raft_vote, vote_from,
};
use crate::raft_log::{LogId, Vote};
use lineradb_common::ReplicaId;
use lineradb_proto::raft::v1 as proto;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};

pub(crate) fn vote_to_proto(vote: Vote) -> proto::Vote {
    proto::Vote {
        term: vote.term,
        replica_id: vote.replica.0,
        committed: vote.committed,
    }
}

pub(crate) fn vote_from_proto(vote: &proto::Vote) -> Vote {
    Vote {
        term: vote.term,
        replica: ReplicaId(vote.replica_id),
        committed: vote.committed,
    }
}

fn put_vote(vote: &RaftVote) -> Option<proto::Vote> {
    Some(vote_to_proto(vote_from(vote)))
}

fn take_vote(vote: Option<proto::Vote>) -> Result<RaftVote, Malformed> {
    let vote = vote.ok_or(Malformed("a message without its vote"))?;
    Ok(raft_vote(vote_from_proto(&vote)))
}

fn put_log_id(id: &RaftLogId) -> proto::LogId {
    let id = log_id_from(id);
    proto::LogId {
        term: id.term,
        replica_id: 0,
        index: id.index,
    }
}

fn take_log_id(id: proto::LogId) -> LogId {
    LogId {
        term: id.term,
        index: id.index,
    }
}

pub(crate) fn put_append(request: &AppendEntriesRequest<TypeConfig>) -> proto::AppendEntries {
    proto::AppendEntries {
        vote: put_vote(&request.vote),
        previous: request.prev_log_id.as_ref().map(put_log_id),
        entries: request
            .entries
            .iter()
            .map(|entry| proto::Entry {
                id: Some(put_log_id(&entry.log_id)),
                payload: entry_payload(&entry.payload),
            })
            .collect(),
        committed: request.leader_commit.as_ref().map(put_log_id),
    }
}

pub(crate) fn take_append(
    message: proto::AppendEntries,
) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let entries: Result<Vec<Entry>, Malformed> = message
        .entries
        .into_iter()
        .map(|entry| {
            let id = entry.id.ok_or(Malformed("an entry without its id"))?;
            entry_from(take_log_id(id), entry.payload)
        })
        .collect();
    Ok(AppendEntriesRequest {
        vote: take_vote(message.vote)?,
        prev_log_id: message.previous.map(take_log_id).map(raft_log_id),
        entries: entries?,
        leader_commit: message.committed.map(take_log_id).map(raft_log_id),
    })
}

pub(crate) fn put_append_reply(
    response: &AppendEntriesResponse<TypeConfig>,
) -> Option<proto::AppendReply> {
    use proto::append_reply::Result as Outcome;
    let result = match response {
        AppendEntriesResponse::Success => Outcome::Success(true),
        AppendEntriesResponse::PartialSuccess(Some(id)) => Outcome::PartialSuccess(put_log_id(id)),
        // Nothing was stored: the leader tries again.
        AppendEntriesResponse::PartialSuccess(None) => return None,
        AppendEntriesResponse::Conflict => Outcome::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => {
            Outcome::HigherVote(vote_to_proto(vote_from(vote)))
        }
    };
    Some(proto::AppendReply {
        result: Some(result),
    })
}

pub(crate) fn take_append_reply(
    reply: proto::AppendReply,
) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    use proto::append_reply::Result as Outcome;
    Ok(match reply.result {
        Some(Outcome::Success(_)) => AppendEntriesResponse::Success,
        Some(Outcome::PartialSuccess(id)) => {
            AppendEntriesResponse::PartialSuccess(Some(raft_log_id(take_log_id(id))))
        }
        Some(Outcome::Conflict(_)) => AppendEntriesResponse::Conflict,
        Some(Outcome::HigherVote(vote)) => {
            AppendEntriesResponse::HigherVote(raft_vote(vote_from_proto(&vote)))
        }
        None => return Err(Malformed("an empty reply")),
    })
}

pub(crate) fn put_vote_request(request: &VoteRequest<TypeConfig>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: put_vote(&request.vote),
        last_log: request.last_log_id.as_ref().map(put_log_id),
        transfer: request.leadership_transfer,
    }
}

pub(crate) fn take_vote_request(
    message: proto::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let last = message.last_log.map(take_log_id).map(raft_log_id);
    let mut request = VoteRequest::new(take_vote(message.vote)?, last);
    request.leadership_transfer = message.transfer;
    Ok(request)
}

pub(crate) fn put_vote_reply(response: &VoteResponse<TypeConfig>) -> proto::VoteReply {
    proto::VoteReply {
        vote: put_vote(&response.vote),
        granted: response.vote_granted,
        last_log: response.last_log_id.as_ref().map(put_log_id),
    }
}

pub(crate) fn take_vote_reply(
    reply: proto::VoteReply,
) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let last = reply.last_log.map(take_log_id).map(raft_log_id);
    Ok(VoteResponse::new(
        take_vote(reply.vote)?,
        last,
        reply.granted,
    ))
}

pub(crate) fn put_transfer(request: &TransferLeaderRequest<TypeConfig>) -> proto::TransferLeader {
    proto::TransferLeader {
        from: put_vote(request.from_leader()),
        to_replica: *request.to_node_id(),
        last_log: request.last_log_id().map(put_log_id),
    }
}

pub(crate) fn take_transfer(
    message: proto::TransferLeader,
) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    Ok(TransferLeaderRequest::new(
        take_vote(message.from)?,
        message.to_replica,
        message.last_log.map(take_log_id).map(raft_log_id),
    ))
}
