//! The way to the other members: unary gRPC calls of `MetaRaft`.

use super::{Snapshot, TypeConfig, Vote, codec};
use crate::state::codec::FORMAT;
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::meta::v1::meta_raft_client::MetaRaftClient;
use lineradb_proto::raft::v1 as pb;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use prost::Message;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Largest message between members: a snapshot is one message.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Channels to the members, made when first needed.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    inner: Arc<PeersInner>,
}

#[derive(Debug, Default)]
struct PeersInner {
    addresses: BTreeMap<u64, String>,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    /// Addresses as configured now: they win over those in the log.
    pub fn new(addresses: BTreeMap<u64, String>) -> Self {
        Peers {
            inner: Arc::new(PeersInner {
                addresses,
                channels: Mutex::default(),
            }),
        }
    }

    /// Where a member listens.
    pub fn address(&self, id: u64) -> Option<&String> {
        self.inner.addresses.get(&id)
    }

    /// All members.
    pub fn all(&self) -> &BTreeMap<u64, String> {
        &self.inner.addresses
    }

    /// A channel to an address; it connects when it is used.
    pub fn channel(&self, address: &str) -> Result<Channel, tonic::Status> {
        let mut channels = self.inner.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| tonic::Status::internal(format!("member address {address}: {e}")))?
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = endpoint.connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// Makes connections for openraft.
pub struct Factory {
    /// Where the members are.
    pub peers: Peers,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        let configured = self.peers.address(target).cloned();
        Connection {
            peers: self.peers.clone(),
            address: configured.unwrap_or_else(|| node.addr.clone()),
        }
    }
}

/// The way to one member.
pub struct Connection {
    peers: Peers,
    address: String,
}

#[derive(Clone, Copy)]
enum Call {
    Append,
    Vote,
    PreVote,
    Transfer,
    Snapshot,
}

fn unreachable(error: impl std::fmt::Display) -> Unreachable<TypeConfig> {
    Unreachable::from_string(error)
}

impl Connection {
    async fn call<M: Message + Default>(
        &self,
        call: Call,
        message: &impl Message,
        limit: Duration,
    ) -> Result<M, Unreachable<TypeConfig>> {
        let channel = self.peers.channel(&self.address).map_err(unreachable)?;
        let mut client = MetaRaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut request = tonic::Request::new(meta::RaftBytes {
            format_version: u32::from(FORMAT),
            payload: message.encode_to_vec().into(),
        });
        request.set_timeout(limit);
        let answer = async {
            match call {
                Call::Append => client.append(request).await,
                Call::Vote => client.vote(request).await,
                Call::PreVote => client.pre_vote(request).await,
                Call::Transfer => client.transfer_leader(request).await,
                Call::Snapshot => client.install_snapshot(request).await,
            }
        };
        let answer = tokio::time::timeout(limit, answer)
            .await
            .map_err(|_| unreachable("no answer in time"))?
            .map_err(unreachable)?
            .into_inner();
        M::decode(answer.payload).map_err(unreachable)
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = bytes::Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = codec::append_to(&rpc);
        let reply: pb::AppendReply = self
            .call(Call::Append, &message, option.hard_ttl())
            .await
            .map_err(RPCError::Unreachable)?;
        codec::append_reply_from(&reply).map_err(|e| RPCError::Unreachable(unreachable(e)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = codec::vote_request_to(&rpc);
        let reply: pb::VoteReply = self
            .call(Call::Vote, &message, option.hard_ttl())
            .await
            .map_err(RPCError::Unreachable)?;
        codec::vote_reply_from(&reply).map_err(|e| RPCError::Unreachable(unreachable(e)))
    }

    // Implemented although it has a default: the default answers "granted".
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = codec::vote_request_to(&rpc);
        let reply: pb::VoteReply = self
            .call(Call::PreVote, &message, option.hard_ttl())
            .await
            .map_err(RPCError::Unreachable)?;
        codec::vote_reply_from(&reply).map_err(|e| RPCError::Unreachable(unreachable(e)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let message = codec::snapshot_to(&vote, &snapshot.meta, snapshot.snapshot);
        let send = self.call::<pb::SnapshotReply>(Call::Snapshot, &message, option.hard_ttl());
        let reply = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = send => reply.map_err(StreamingError::Unreachable)?,
        };
        match &reply.vote {
            Some(vote) => Ok(SnapshotResponse::new(codec::vote_from(vote))),
            None => Err(StreamingError::Unreachable(unreachable("no vote in reply"))),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = codec::transfer_to(&rpc);
        let _: pb::RaftReply = self
            .call(Call::Transfer, &message, option.hard_ttl())
            .await
            .map_err(RPCError::Unreachable)?;
        Ok(Ok(()))
    }
}
