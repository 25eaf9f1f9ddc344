//! The way to one peer of one group, as openraft sees it.

use super::codec;
use super::hearing::Hearing;
use super::{Lane, Pending, Transport, TransportError};
use crate::command::Malformed;
use crate::consensus::types::{RaftVote, TypeConfig, raft_vote, vote_from};
use crate::snapshot::{self, ShardCut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use lineradb_common::{ReplicaId, ShardId};
use lineradb_proto::raft::v1 as proto;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use proto::raft_reply::Body as Answer;
use proto::raft_request::Body as Question;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Appends under way to one follower.
const PIPELINE: usize = 32;
/// Pause after a peer was unreachable.
const BACKOFF: Duration = Duration::from_millis(50);

type RpcError = RPCError<TypeConfig>;

/// Makes the ways to the peers of one replica.
#[derive(Clone)]
pub struct Factory {
    /// How messages travel.
    pub transport: Arc<dyn Transport>,
    /// The group.
    pub group: ShardId,
    /// The replica that sends.
    pub replica: ReplicaId,
    /// How long an append may take: a sync of the peer's disk is in it.
    pub append_timeout: Duration,
    /// Whether a leader says anything.
    pub hearing: Arc<Hearing>,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &openraft::BasicNode) -> Peer {
        self.peer(target, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &openraft::BasicNode) -> Peer {
        self.peer(target, Lane::Urgent)
    }
}

impl Factory {
    fn peer(&self, target: u64, appends: Lane) -> Peer {
        Peer {
            factory: self.clone(),
            target: ReplicaId(target),
            appends,
        }
    }
}

/// The way to one peer.
pub struct Peer {
    factory: Factory,
    target: ReplicaId,
    /// The lane of appends: urgent for heartbeats.
    appends: Lane,
}

fn unreachable(error: &TransportError) -> RpcError {
    RPCError::Unreachable(Unreachable::new(error))
}

fn malformed(error: &Malformed) -> RpcError {
    RPCError::Network(NetworkError::new(error))
}

/// Waits for a reply at most this long; answers from stopped or unknown groups
/// count as unreachable, so that openraft backs off (C3: never created here).
async fn answer(pending: Pending, timeout: Duration) -> Result<Answer, RpcError> {
    let reply = match tokio::time::timeout(timeout, pending).await {
        Err(_) => Err(TransportError::unreachable("no reply in time")),
        Ok(Err(_)) => Err(TransportError::unreachable("the transport stopped")),
        Ok(Ok(reply)) => reply,
    };
    match reply.map_err(|error| unreachable(&error))?.body {
        Some(Answer::UnknownGroup(why) | Answer::Failed(why)) => {
            Err(unreachable(&TransportError::unreachable(why)))
        }
        Some(answer) => Ok(answer),
        None => Err(malformed(&Malformed("an empty reply"))),
    }
}

async fn append_answer(
    pending: Pending,
    timeout: Duration,
) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
    match answer(pending, timeout).await? {
        Answer::Append(reply) => codec::take_append_reply(reply).map_err(|e| malformed(&e)),
        _ => Err(malformed(&Malformed("a reply to something else"))),
    }
}

impl Peer {
    fn send(&self, lane: Lane, body: Question) -> Pending {
        crate::consensus::metrics::get().messages_sent_total.inc();
        self.factory.transport.send(
            self.target.node(),
            lane,
            proto::RaftRequest {
                id: 0,
                group_id: self.factory.group.0,
                to_replica: self.target.0,
                from_replica: self.factory.replica.0,
                body: Some(body),
            },
        )
    }

    async fn ask_vote(
        &self,
        question: Question,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match answer(self.send(Lane::Urgent, question), option.hard_ttl()).await? {
            Answer::Vote(reply) => codec::take_vote_reply(reply).map_err(|e| malformed(&e)),
            _ => Err(malformed(&Malformed("a reply to something else"))),
        }
    }

    /// An error while this leader is silent.
    fn speaks(&self) -> Result<(), RpcError> {
        let silent = || TransportError::unreachable("this leader is not answered, and silent");
        match self.factory.hearing.speaks() {
            true => Ok(()),
            false => Err(unreachable(&silent())),
        }
    }

    fn append(&self, request: &AppendEntriesRequest<TypeConfig>) -> Result<Pending, RpcError> {
        self.speaks()?;
        Ok(self.send(self.appends, Question::Append(codec::put_append(request))))
    }

    /// Replies that come late still count: a follower may be at a sync of its
    /// disk, and broken connections are noticed otherwise.
    fn timeout(&self, option: &RPCOption) -> Duration {
        option.hard_ttl().max(self.factory.append_timeout)
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = ShardCut;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let timeout = self.timeout(&option);
        append_answer(self.append(&rpc)?, timeout).await
    }

    /// Many appends under way at once, in order: each is queued when it is
    /// taken from the input, and the replies are waited for in that order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let peer = &*self;
        if let Err(silent) = peer.speaks() {
            return futures::future::ready(Err(silent)).boxed();
        }
        let replies = input
            .map(move |request| {
                let previous = request.prev_log_id;
                let last = request.entries.last().map(|e| e.log_id).or(previous);
                let timeout = peer.timeout(&option);
                let pending = peer.append(&request);
                async move {
                    let response = append_answer(pending?, timeout).await?;
                    if matches!(response, AppendEntriesResponse::Conflict) && previous.is_none() {
                        return Err(malformed(&Malformed("a conflict before the first entry")));
                    }
                    Ok(response.into_stream_result(previous, last))
                }
            })
            .buffered(PIPELINE);
        // Nothing after the first failure: what follows it was sent in vain.
        let until_failure = replies.scan(false, |failed, reply| {
            if *failed {
                return futures::future::ready(None);
            }
            *failed = !matches!(reply, Ok(Ok(_)));
            futures::future::ready(Some(reply))
        });
        futures::future::ready(Ok(until_failure.boxed())).boxed()
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(Question::Vote(codec::put_vote_request(&rpc)), &option)
            .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(Question::PreVote(codec::put_vote_request(&rpc)), &option)
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, ShardCut>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let chunks = snapshot::chunks(
            self.factory.group,
            self.factory.replica,
            self.target,
            vote_from(&vote),
            &snapshot.meta,
            snapshot.snapshot,
        );
        let sent = self.factory.transport.install(self.target.node(), chunks);
        let reply = tokio::select! {
            reply = sent => reply,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let failed = |error: TransportError| StreamingError::from(unreachable(&error));
        let reply = reply.map_err(failed)?;
        match reply.vote {
            Some(vote) if reply.unknown_group.is_empty() => {
                crate::consensus::metrics::get().snapshots_sent_total.inc();
                Ok(SnapshotResponse::new(raft_vote(codec::vote_from_proto(
                    &vote,
                ))))
            }
            _ => Err(failed(TransportError::unreachable(reply.unknown_group))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let question = Question::Transfer(codec::put_transfer(&request));
        answer(self.send(Lane::Bulk, question), self.timeout(&option)).await?;
        Ok(Ok(()))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}
