//! Between processes: one ordered stream in each direction for every pair of
//! nodes and lane, frames of whatever has queued, reconnecting with backoff.
//! Heartbeats and votes have a connection of their own, and each snapshot too
//! (C8).

use super::{Chunks, Handler, Lane, Pending, Transport, TransportError, dispatch};
use crate::consensus::AddressBook;
use async_trait::async_trait;
use futures::StreamExt;
use lineradb_common::{NodeId, spawn};
use lineradb_proto::raft::v1 as proto;
use parking_lot::Mutex;
use prost::Message;
use proto::raft_client::RaftClient;
use proto::raft_server;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// Requests queued for one node; above, they are refused and openraft retries.
const QUEUE: usize = 8192;
/// Messages in one frame at most.
const FRAME_MESSAGES: usize = 256;
/// Bytes in one frame, one message more or less: a peer that catches up is sent
/// many large ones at once.
const FRAME_BYTES: usize = 4 << 20;
/// Frames between the queue and the socket.
const FRAMES: usize = 4;
/// Largest message taken or sent: a proposal and its surroundings.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);

type Waiting = oneshot::Sender<Result<proto::RaftReply, TransportError>>;

struct Queued {
    request: proto::RaftRequest,
    reply: Waiting,
}

/// Sends over gRPC.
pub struct GrpcTransport {
    book: Arc<dyn AddressBook>,
    peers: Mutex<HashMap<(NodeId, Lane), mpsc::Sender<Queued>>>,
}

impl GrpcTransport {
    /// Finds nodes in `book`, anew at each connection.
    pub fn new(book: Arc<dyn AddressBook>) -> Arc<Self> {
        Arc::new(GrpcTransport {
            book,
            peers: Mutex::default(),
        })
    }

    fn peer(&self, node: NodeId, lane: Lane) -> mpsc::Sender<Queued> {
        let mut peers = self.peers.lock();
        if let Some(queue) = peers.get(&(node, lane))
            && !queue.is_closed()
        {
            return queue.clone();
        }
        let (tx, rx) = mpsc::channel(QUEUE);
        peers.insert((node, lane), tx.clone());
        spawn::task("raft peer", run_peer(node, Arc::clone(&self.book), rx));
        tx
    }
}

async fn connect(book: &dyn AddressBook, node: NodeId) -> Result<RaftClient<Channel>, String> {
    let address = book
        .address(node)
        .ok_or_else(|| format!("the address of node {node} is not known"))?;
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address}: {error}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .connect()
        .await
        .map_err(|error| format!("{address}: {error}"))?;
    Ok(RaftClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// Serves the queue of one node for as long as the transport lives.
async fn run_peer(node: NodeId, book: Arc<dyn AddressBook>, mut queue: mpsc::Receiver<Queued>) {
    let mut pause = RECONNECT_MIN;
    loop {
        let why = match connect(book.as_ref(), node).await {
            Err(why) => why,
            Ok(client) => match exchange(client, &mut queue).await {
                Ended::Closed => return,
                Ended::Broken(why) => {
                    pause = RECONNECT_MIN;
                    why
                }
            },
        };
        tracing::debug!(%node, why, "no stream to the node");
        // While there is no way, nothing is kept waiting.
        let again = tokio::time::sleep(pause);
        pause = (pause * 2).min(RECONNECT_MAX);
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = &mut again => break,
                queued = queue.recv() => match queued {
                    None => return,
                    Some(queued) => {
                        let _ = queued.reply.send(Err(TransportError::unreachable(why.clone())));
                    }
                },
            }
        }
    }
}

enum Ended {
    /// The transport was dropped.
    Closed,
    /// The stream broke.
    Broken(String),
}

/// Runs one stream until it breaks.
async fn exchange(mut client: RaftClient<Channel>, queue: &mut mpsc::Receiver<Queued>) -> Ended {
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let mut incoming = match client.exchange(ReceiverStream::new(outgoing)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ended::Broken(status.to_string()),
    };
    let mut waiting: HashMap<u64, Waiting> = HashMap::new();
    let mut next_id = 1;
    let mut batch = Vec::with_capacity(FRAME_MESSAGES);
    let ended = loop {
        tokio::select! {
            frame = incoming.next() => match frame {
                Some(Ok(frame)) => {
                    for reply in frame.replies {
                        if let Some(waiting) = waiting.remove(&reply.id) {
                            let _ = waiting.send(Ok(reply));
                        }
                    }
                }
                Some(Err(status)) => break Ended::Broken(status.to_string()),
                None => break Ended::Broken("the peer closed the stream".into()),
            },
            taken = take(&frames, queue, &mut batch) => {
                let Some(permit) = taken else {
                    break if frames.is_closed() {
                        Ended::Broken("the stream is closed".into())
                    } else {
                        Ended::Closed
                    };
                };
                let mut requests = Vec::with_capacity(batch.len());
                for queued in batch.drain(..) {
                    // A caller that has given up is not sent for.
                    if queued.reply.is_closed() {
                        continue;
                    }
                    let mut request = queued.request;
                    request.id = next_id;
                    waiting.insert(next_id, queued.reply);
                    next_id += 1;
                    requests.push(request);
                }
                if !requests.is_empty() {
                    permit.send(proto::RaftFrame { requests, ..proto::RaftFrame::default() });
                }
                if waiting.len() > QUEUE {
                    waiting.retain(|_, reply| !reply.is_closed());
                }
            }
        }
    };
    for (_, reply) in waiting {
        let _ = reply.send(Err(TransportError::unreachable("the stream broke")));
    }
    ended
}

/// Waits for room in the stream first, so that the frame holds whatever has
/// queued by then. Cancelling it loses nothing.
async fn take<'a>(
    frames: &'a mpsc::Sender<proto::RaftFrame>,
    queue: &mut mpsc::Receiver<Queued>,
    batch: &mut Vec<Queued>,
) -> Option<mpsc::Permit<'a, proto::RaftFrame>> {
    let permit = frames.reserve().await.ok()?;
    let first = queue.recv().await?;
    let mut bytes = first.request.encoded_len();
    batch.push(first);
    while bytes < FRAME_BYTES && batch.len() < FRAME_MESSAGES {
        let Ok(next) = queue.try_recv() else { break };
        bytes += next.request.encoded_len();
        batch.push(next);
    }
    Some(permit)
}

#[async_trait]
impl Transport for GrpcTransport {
    fn send(&self, to: NodeId, lane: Lane, request: proto::RaftRequest) -> Pending {
        let (reply, pending) = oneshot::channel();
        if let Err(refused) = self.peer(to, lane).try_send(Queued { request, reply }) {
            let (mpsc::error::TrySendError::Full(queued)
            | mpsc::error::TrySendError::Closed(queued)) = refused;
            let _ = queued
                .reply
                .send(Err(TransportError::unreachable("the queue is full")));
        }
        pending
    }

    async fn install(
        &self,
        to: NodeId,
        mut chunks: Chunks,
    ) -> Result<proto::SnapshotReply, TransportError> {
        let mut client = connect(self.book.as_ref(), to)
            .await
            .map_err(TransportError::Unreachable)?;
        let (tx, rx) = mpsc::channel(FRAMES);
        spawn::task("snapshot chunks", async move {
            while let Some(chunk) = chunks.recv().await {
                // A broken source ends the stream before its end message: the
                // receiver installs nothing.
                let Ok(chunk) = chunk else { return };
                if tx.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        match client.install_snapshot(ReceiverStream::new(rx)).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(TransportError::unreachable(status.to_string())),
        }
    }

    fn serve(&self, _handler: Arc<dyn Handler>) {}
}

/// The service that the node mounts.
#[derive(Clone)]
pub struct RaftService {
    handler: Arc<dyn Handler>,
    stopping: watch::Receiver<bool>,
}

impl RaftService {
    /// Streams end when `stopping` turns true: the peers then look for the node
    /// anew.
    pub(crate) fn new(handler: Arc<dyn Handler>, stopping: watch::Receiver<bool>) -> Self {
        RaftService { handler, stopping }
    }
}

#[async_trait]
impl raft_server::Raft for RaftService {
    type ExchangeStream = ReceiverStream<Result<proto::RaftFrame, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::RaftFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut incoming = request.into_inner();
        let handler = Arc::clone(&self.handler);
        let (replies, ready) = mpsc::unbounded_channel();
        let (frames, outgoing) = mpsc::channel(FRAMES);
        spawn::task("raft replies", send_replies(ready, frames));
        let mut stopping = self.stopping.clone();
        spawn::task("raft requests", async move {
            loop {
                let frame = tokio::select! {
                    frame = incoming.next() => frame,
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                };
                let Some(Ok(frame)) = frame else { return };
                for request in frame.requests {
                    let replies = replies.clone();
                    dispatch(handler.as_ref(), request, move |reply| {
                        // The stream is gone: the peer asks again.
                        let _ = replies.send(reply);
                    });
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::SnapshotReply>, Status> {
        let mut incoming = request.into_inner();
        let (tx, rx) = mpsc::channel(FRAMES);
        spawn::task("snapshot received", async move {
            while let Some(chunk) = incoming.next().await {
                let chunk = chunk.map_err(|status| crate::Error::Unavailable(status.to_string()));
                if tx.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        match self.handler.install(rx).await {
            Ok(reply) => Ok(Response::new(reply)),
            Err(why) => Err(Status::aborted(why)),
        }
    }
}

/// Gathers replies into frames. The queue before it is as long as there are
/// requests under way, which the sender bounds.
async fn send_replies(
    mut ready: mpsc::UnboundedReceiver<proto::RaftReply>,
    frames: mpsc::Sender<Result<proto::RaftFrame, Status>>,
) {
    let mut replies = Vec::with_capacity(FRAME_MESSAGES);
    while ready.recv_many(&mut replies, FRAME_MESSAGES).await > 0 {
        let frame = proto::RaftFrame {
            replies: std::mem::take(&mut replies),
            ..proto::RaftFrame::default()
        };
        if frames.send(Ok(frame)).await.is_err() {
            return;
        }
    }
}
