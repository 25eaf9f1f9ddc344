//! The data path over gRPC: one long-lived stream per pair of processes. Each
//! frame's requests are answered side by side; replies leave in frames of
//! whatever has gathered. A stream has a bounded number of requests under way;
//! beyond it nothing is read, and HTTP/2's flow control holds the sender.

use super::ShardNode;
use futures::Stream;
use lineradb_common::clock::{SharedClock, Stopwatch, meet};
use lineradb_common::{Timestamp, spawn};
use lineradb_proto::shard::v1::shard_server::Shard;
use lineradb_proto::shard::v1::{self as proto, ReplyFrame, RequestFrame};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Requests of one stream under way at once.
const UNDER_WAY_MAX: usize = 2048;
/// Replies in one frame.
const FRAME_REPLIES_MAX: usize = 256;
/// Bytes of values after which a frame leaves.
const FRAME_BYTES: usize = 1 << 20;

/// The gRPC service `lineradb.shard.v1.Shard` of a node.
#[derive(Clone)]
pub struct ShardGrpc {
    node: Arc<ShardNode>,
    clock: SharedClock,
}

impl ShardGrpc {
    /// Serves a node.
    pub fn new(node: Arc<ShardNode>, clock: SharedClock) -> Self {
        ShardGrpc { node, clock }
    }
}

#[tonic::async_trait]
impl Shard for ShardGrpc {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ReplyFrame, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<RequestFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let from = request.remote_addr();
        let frames = request.into_inner();
        let (replies, gathered) = mpsc::channel(UNDER_WAY_MAX);
        let clock = self.clock.clone();
        let node = self.node.clone();
        // What closes the stream, as its last word.
        let closed = Arc::new(OnceLock::new());
        let (over, why) = (CancellationToken::new(), closed.clone());
        let ended = over.clone();
        spawn::task("shard-stream", async move {
            if let Err(reason) = receive(&node, &clock, frames, replies).await {
                tracing::error!(?from, reason, "a frame is not used");
                let _ = why.set(reason);
                ended.cancel();
            }
        });
        let clock = self.clock.clone();
        let stream = futures::stream::unfold(gathered, move |mut gathered| {
            let (clock, over, closed) = (clock.clone(), over.clone(), closed.clone());
            async move {
                let replies = tokio::select! {
                    replies = gather(&mut gathered) => replies?,
                    () = over.cancelled() => {
                        gathered.close();
                        let status = closed.get().map(|why| Status::failed_precondition(*why));
                        return Some((Err(status?), gathered));
                    }
                };
                let earliest = clock.now().map_or(Timestamp::ZERO, |now| now.earliest);
                let frame = ReplyFrame {
                    earliest: earliest.raw(),
                    replies,
                };
                Some((Ok(frame), gathered))
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

async fn receive(
    node: &Arc<ShardNode>,
    clock: &SharedClock,
    mut frames: Streaming<RequestFrame>,
    replies: mpsc::Sender<proto::Reply>,
) -> Result<(), &'static str> {
    let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    // A stream that breaks leaves its requests running: their fate is decided,
    // nobody hears of it.
    while let Ok(Some(frame)) = frames.message().await {
        let arrived = Stopwatch::start();
        // T1: before anything is read by our clock for it.
        let theirs = Timestamp::from_raw(frame.earliest);
        meet(&**clock, theirs).await?;
        for request in frame.requests {
            let Ok(permit) = under_way.clone().acquire_owned().await else {
                return Ok(());
            };
            let (node, replies) = (node.clone(), replies.clone());
            spawn::task("shard-request", async move {
                let reply = node.handle_queued(request, arrived).await;
                let _ = replies.send(reply).await;
                drop(permit);
            });
        }
    }
    Ok(())
}

/// The next reply and whatever else is there; `None`: the stream is over.
async fn gather(gathered: &mut mpsc::Receiver<proto::Reply>) -> Option<Vec<proto::Reply>> {
    let first = gathered.recv().await?;
    let mut bytes = weight(&first);
    let mut replies = vec![first];
    while replies.len() < FRAME_REPLIES_MAX && bytes < FRAME_BYTES {
        let Ok(reply) = gathered.try_recv() else {
            break;
        };
        bytes += weight(&reply);
        replies.push(reply);
    }
    Some(replies)
}

fn weight(reply: &proto::Reply) -> usize {
    prost::Message::encoded_len(reply)
}
