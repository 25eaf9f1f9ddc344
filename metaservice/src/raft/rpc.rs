//! What the other members call: the `MetaRaft` service.

use super::{Raft, codec};
use crate::state::codec::FORMAT;
use lineradb_proto::meta::v1::RaftBytes;
use lineradb_proto::meta::v1::meta_raft_server::MetaRaft;
use lineradb_proto::raft::v1 as pb;
use prost::Message;
use tonic::{Request, Response, Status};

/// Hands messages of other members to this member's group.
pub struct RaftService {
    /// The group.
    pub raft: Raft,
}

fn read<M: Message + Default>(request: Request<RaftBytes>) -> Result<M, Status> {
    let bytes = request.into_inner();
    if bytes.format_version != u32::from(FORMAT) {
        return Err(Status::failed_precondition(format!(
            "raft message of format {}, this build speaks {FORMAT}",
            bytes.format_version
        )));
    }
    M::decode(bytes.payload).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn answer(message: &impl Message) -> Response<RaftBytes> {
    Response::new(RaftBytes {
        format_version: u32::from(FORMAT),
        payload: message.encode_to_vec().into(),
    })
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[async_trait::async_trait]
impl MetaRaft for RaftService {
    async fn append(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let rpc = codec::append_from(&read::<pb::AppendEntries>(request)?)?;
        let reply = self.raft.append_entries(rpc).await.map_err(stopped)?;
        Ok(answer(&codec::append_reply_to(&reply)))
    }

    async fn vote(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let rpc = codec::vote_request_from(&read::<pb::VoteRequest>(request)?)?;
        let reply = self.raft.vote(rpc).await.map_err(stopped)?;
        Ok(answer(&codec::vote_reply_to(&reply)))
    }

    async fn pre_vote(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let rpc = codec::vote_request_from(&read::<pb::VoteRequest>(request)?)?;
        let reply = self.raft.pre_vote(rpc).await.map_err(stopped)?;
        Ok(answer(&codec::vote_reply_to(&reply)))
    }

    async fn transfer_leader(
        &self,
        request: Request<RaftBytes>,
    ) -> Result<Response<RaftBytes>, Status> {
        let rpc = codec::transfer_from(&read::<pb::TransferLeader>(request)?)?;
        let taken = self
            .raft
            .handle_transfer_leader(rpc)
            .await
            .map_err(stopped)?;
        if let Err(refusal) = taken {
            return Err(Status::failed_precondition(format!("{refusal:?}")));
        }
        let body = Some(pb::raft_reply::Body::Transferred(true));
        Ok(answer(&pb::RaftReply { id: 0, body }))
    }

    async fn install_snapshot(
        &self,
        request: Request<RaftBytes>,
    ) -> Result<Response<RaftBytes>, Status> {
        let (vote, snapshot) = codec::snapshot_from(&read::<pb::SnapshotHeader>(request)?)?;
        let reply = self
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(stopped)?;
        Ok(answer(&pb::SnapshotReply {
            vote: Some(codec::vote_to(&reply.vote)),
            unknown_group: String::new(),
        }))
    }
}
