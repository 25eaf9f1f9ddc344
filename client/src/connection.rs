//! One long-lived stream to each node that this process talks to (the
//! `Exchange` call of `shard.proto`).
//!
//! Requests of all transactions gather in a bounded queue; whenever the stream
//! can take a frame, everything queued goes out in it (up to a size), so that
//! a busy stream pays one wake-up for many requests. Replies come in any order
//! and find their waiter by id.
//!
//! What a failure means is decided here and nowhere else: a request still in
//! the queue was *not sent*; one that was put into a frame of a stream that
//! broke is *lost*: it may have taken effect.

use crate::service::{LocalNodes, ShardService, TransportError};
use lineradb_common::clock::{SharedClock, deadline_after, meet};
use lineradb_common::{Timestamp, spawn};
use lineradb_proto::shard::v1::shard_client::ShardClient;
use lineradb_proto::shard::v1::{Reply, Request, RequestFrame};
use parking_lot::Mutex;
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Largest frame that either side accepts.
pub const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;
/// A frame is closed once it holds so many bytes.
const FRAME_BYTES_TARGET: usize = 1024 * 1024;
/// Requests in one frame at most.
const FRAME_REQUESTS_MAX: usize = 256;
/// Requests queued for one node at most; the next one waits.
const QUEUE_REQUESTS_MAX: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed attempt to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that does not answer a ping for so long is taken for dead.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// A server may take this much longer than it was allowed to before the
/// answer is given up here.
const GRACE: Duration = Duration::from_millis(250);

/// How this process dials a node or the metaservice.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 * 1024 * 1024)
        .initial_connection_window_size(32 * 1024 * 1024)
        .tcp_nodelay(true))
}

/// All nodes that this process has talked to, by address.
pub struct Connections {
    local: Option<LocalNodes>,
    clock: SharedClock,
    remote: Mutex<HashMap<String, Arc<Connection>>>,
}

impl Connections {
    /// Nobody yet; nodes in `local` are called directly.
    pub fn new(clock: SharedClock, local: Option<LocalNodes>) -> Self {
        Connections {
            local,
            clock,
            remote: Mutex::default(),
        }
    }

    /// The node at an address. Never waits: a stream is opened by the first
    /// request.
    pub fn node(&self, address: &str) -> Arc<dyn ShardService> {
        if let Some(node) = self.local.as_ref().and_then(|l| l.get(address)) {
            return node;
        }
        let mut remote = self.remote.lock();
        if let Some(connection) = remote.get(address) {
            return connection.clone();
        }
        let connection = Connection::start(address.to_owned(), self.clock.clone());
        remote.insert(address.to_owned(), connection.clone());
        connection
    }
}

type Answer = Result<Reply, TransportError>;
type Waiters = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

struct Queued {
    request: Request,
    answer: oneshot::Sender<Answer>,
}

/// A node behind the network.
struct Connection {
    queue: mpsc::Sender<Queued>,
    waiters: Waiters,
    next_id: AtomicU64,
}

impl Connection {
    fn start(address: String, clock: SharedClock) -> Arc<Self> {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let waiters = Waiters::default();
        let connection = Arc::new(Connection {
            queue,
            waiters: waiters.clone(),
            next_id: AtomicU64::new(1),
        });
        let driver = Driver {
            address,
            clock,
            requests,
            waiters,
        };
        spawn::task("shard-stream", driver.run());
        connection
    }
}

/// Forgets the waiter of a call that was given up.
struct Forget<'a>(&'a Waiters, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

#[async_trait::async_trait]
impl ShardService for Connection {
    async fn call(&self, mut request: Request) -> Answer {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        request.id = id;
        let patience = Duration::from_millis(u64::from(request.timeout_ms)) + GRACE;
        let deadline = deadline_after(patience);
        let (answer, reply) = oneshot::channel();
        let queued = Queued { request, answer };
        match tokio::time::timeout_at(deadline, self.queue.send(queued)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(TransportError::NotSent("the stream is closed".into())),
            Err(_) => return Err(TransportError::NotSent("the queue stayed full".into())),
        }
        let _forget = Forget(&self.waiters, id);
        match tokio::time::timeout_at(deadline, reply).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(TransportError::Lost("the stream ended".into())),
            Err(_) => Err(TransportError::Lost("no answer in time".into())),
        }
    }
}

/// Keeps the stream of one connection going.
struct Driver {
    address: String,
    clock: SharedClock,
    requests: mpsc::Receiver<Queued>,
    waiters: Waiters,
}

impl Driver {
    async fn run(mut self) {
        let mut batch = Vec::new();
        // A stream is opened when the first request is there.
        while self
            .requests
            .recv_many(&mut batch, FRAME_REQUESTS_MAX)
            .await
            > 0
        {
            match self.connect().await {
                Ok(channel) => {
                    let why = self.exchange(channel, &mut batch).await;
                    tracing::debug!(address = %self.address, why, "shard stream ended");
                    let lost: Vec<_> = self.waiters.lock().drain().collect();
                    for (_, waiter) in lost {
                        let _ = waiter.send(Err(TransportError::Lost(why.clone())));
                    }
                    fail_unsent(&mut batch, &why);
                    // A peer that accepts and closes at once is not stormed.
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
                Err(why) => {
                    fail_unsent(&mut batch, &why);
                    while let Ok(queued) = self.requests.try_recv() {
                        batch.push(queued);
                    }
                    fail_unsent(&mut batch, &why);
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
            }
        }
    }

    async fn connect(&self) -> Result<Channel, String> {
        let say = |error: tonic::transport::Error| {
            format!("cannot reach {}: {}", self.address, chain(&error))
        };
        let connecting = endpoint(&self.address).map_err(say)?;
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting.connect()).await {
            Ok(channel) => channel.map_err(say),
            Err(_) => Err(format!("cannot reach {}: no answer", self.address)),
        }
    }

    /// Runs one stream until it breaks; says why. `batch` holds the requests
    /// that are to go out first.
    async fn exchange(&mut self, channel: Channel, batch: &mut Vec<Queued>) -> String {
        let (frames, outgoing) = mpsc::channel::<RequestFrame>(1);
        let mut client = ShardClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        let Driver {
            address,
            clock,
            requests,
            waiters,
        } = self;
        let writer = async {
            loop {
                // First room, then requests: what gathers meanwhile shares the
                // frame.
                let Ok(room) = frames.reserve().await else {
                    return "the peer closed the stream".to_owned();
                };
                if batch.is_empty() && requests.recv_many(batch, FRAME_REQUESTS_MAX).await == 0 {
                    return "closed".to_owned();
                }
                let earliest = clock.now().map_or(0, |now| now.earliest.raw());
                room.send(RequestFrame {
                    earliest,
                    requests: fill_frame(batch, waiters),
                });
            }
        };
        let reader = async {
            let mut replies = match client.exchange(ReceiverStream::new(outgoing)).await {
                Ok(replies) => replies.into_inner(),
                Err(status) => return format!("refused: {}", status.message()),
            };
            loop {
                match replies.message().await {
                    Ok(Some(frame)) => {
                        // T1: before anybody uses what it brings.
                        let theirs = Timestamp::from_raw(frame.earliest);
                        if let Err(why) = meet(&**clock, theirs).await {
                            tracing::error!(%address, why, "a frame is not used");
                            return why.to_owned();
                        }
                        let mut waiters = waiters.lock();
                        for reply in frame.replies {
                            // Nobody waits any more: the call was given up.
                            if let Some(waiter) = waiters.remove(&reply.id) {
                                let _ = waiter.send(Ok(reply));
                            }
                        }
                    }
                    Ok(None) => return "the peer ended the stream".to_owned(),
                    Err(status) => return format!("the stream broke: {}", status.message()),
                }
            }
        };
        tokio::select! {
            why = writer => why,
            why = reader => why,
        }
    }
}

/// Moves requests from `batch` into a frame until it is large enough, and
/// notes who waits for them.
fn fill_frame(batch: &mut Vec<Queued>, waiters: &Waiters) -> Vec<Request> {
    let mut bytes = 0;
    let mut count = 0;
    for queued in batch.iter() {
        bytes += queued.request.encoded_len();
        count += 1;
        if bytes >= FRAME_BYTES_TARGET {
            break;
        }
    }
    let mut waiters = waiters.lock();
    batch
        .drain(..count)
        .filter(|queued| !queued.answer.is_closed())
        .map(|queued| {
            waiters.insert(queued.request.id, queued.answer);
            queued.request
        })
        .collect()
}

fn fail_unsent(batch: &mut Vec<Queued>, why: &str) {
    for queued in batch.drain(..) {
        let _ = queued
            .answer
            .send(Err(TransportError::NotSent(why.to_owned())));
    }
}

/// An error with its causes: tonic's own message is just "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_common::clock::discipline::{Bounds, Raw, Sample};
    use lineradb_common::clock::{Clock, ClusterClock, ManualClock};
    use lineradb_proto::shard::v1::shard_server::{Shard, ShardServer};
    use lineradb_proto::shard::v1::{Push, PushReply};
    use lineradb_proto::shard::v1::{ReplyFrame, reply, request};
    use tonic::{Response, Status, Streaming};

    /// Answers every request but those for shard 13, which break the stream,
    /// and those for shard 7, which are swallowed.
    struct Echo;

    #[async_trait::async_trait]
    impl Shard for Echo {
        type ExchangeStream = ReceiverStream<Result<ReplyFrame, Status>>;
        async fn exchange(
            &self,
            request: tonic::Request<Streaming<RequestFrame>>,
        ) -> Result<Response<Self::ExchangeStream>, Status> {
            let mut frames = request.into_inner();
            let (out, replies) = mpsc::channel(4);
            spawn::task("echo", async move {
                while let Ok(Some(frame)) = frames.message().await {
                    for request in frame.requests.into_iter().rev() {
                        let message = match request.shard_id {
                            7 => continue,
                            13 => Err(Status::internal("broken on purpose")),
                            shard => Ok(ReplyFrame {
                                earliest: Timestamp::from_micros(shard * 1_000_000).raw(),
                                replies: vec![Reply {
                                    id: request.id,
                                    observed: shard,
                                    body: Some(reply::Body::Push(PushReply::default())),
                                    ..Reply::default()
                                }],
                            }),
                        };
                        if out.send(message).await.is_err() {
                            return;
                        }
                    }
                }
            });
            Ok(Response::new(ReceiverStream::new(replies)))
        }
    }

    async fn serve(port: u16) -> (String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder()
            .add_service(ShardServer::new(Echo))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        let task = spawn::task("server", async move {
            let _ = server.await;
        });
        (address, task)
    }

    fn request(shard_id: u64, timeout_ms: u32) -> Request {
        Request {
            shard_id,
            timeout_ms,
            body: Some(request::Body::Push(Push::default())),
            ..Request::default()
        }
    }

    #[tokio::test]
    async fn replies_find_their_requests_and_failures_say_what_they_mean() {
        let (address, server) = serve(0).await;
        let connections = Arc::new(Connections::new(ManualClock::at(5), None));
        let node = connections.node(&address);
        let calls = (100..200).map(|shard| {
            let node = node.clone();
            async move { node.call(request(shard, 5_000)).await.unwrap().observed }
        });
        let got = futures::future::join_all(calls).await;
        assert_eq!(got, (100..200).collect::<Vec<_>>());

        // A stream that breaks loses what it carried, and the next call opens
        // another one.
        let lost = node.call(request(13, 5_000)).await;
        assert!(matches!(lost, Err(TransportError::Lost(_))), "{lost:?}");
        assert_eq!(node.call(request(1, 5_000)).await.unwrap().observed, 1);

        // No answer in time: lost as well, and its waiter is forgotten.
        let swallowed = node.call(request(7, 10)).await;
        assert!(matches!(swallowed, Err(TransportError::Lost(_))));
        server.abort();

        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = nobody.local_addr().unwrap().to_string();
        drop(nobody);
        let unsent = connections.node(&address).call(request(1, 5_000)).await;
        assert!(
            matches!(unsent, Err(TransportError::NotSent(_))),
            "{unsent:?}"
        );
    }

    /// T1: a process whose clock is behind is told so by the first reply, before
    /// anybody has seen what that brings.
    #[tokio::test]
    async fn a_clock_that_is_behind_is_found_out_before_a_reply_is_used() {
        let (address, _server) = serve(0).await;
        let clock = ClusterClock::unsynchronised();
        let tells = |second: u64| {
            let now = Raw::now();
            clock.observe(Sample {
                epoch: 1,
                sent: now,
                received: now,
                at_master: Bounds {
                    earliest: second * 1_000_000,
                    latest: second * 1_000_000 + 100,
                },
                shared: None,
            });
        };
        tells(100);
        let connections = Connections::new(clock.clone(), None);
        let node = connections.node(&address);
        assert!(node.call(request(100, 5_000)).await.is_ok());
        let before = clock.generation();
        let master = async {
            clock.doubted().await;
            tells(130);
        };
        let call = node.call(request(130, 5_000));
        let used = async { (call.await.is_ok(), clock.generation() > before) };
        let (used, ()) = tokio::join!(used, master);
        assert_eq!(used, (true, true));
    }

    #[test]
    fn a_frame_is_closed_when_it_is_large_enough() {
        let waiters = Waiters::default();
        let mut keep = Vec::new();
        let mut batch: Vec<Queued> = (1..=4)
            .map(|id| {
                let (answer, waiter) = oneshot::channel();
                keep.push(waiter);
                let mut request = request(id, 1);
                request.id = id;
                request.body = Some(request::Body::Push(Push {
                    anchor: vec![0; FRAME_BYTES_TARGET / 2].into(),
                    ..Push::default()
                }));
                Queued { request, answer }
            })
            .collect();
        keep.remove(0);
        let frame = fill_frame(&mut batch, &waiters);
        let ids: Vec<u64> = frame.iter().map(|r| r.id).collect();
        assert_eq!(
            ids,
            vec![2],
            "the first was given up, the third is too much"
        );
        assert_eq!(batch.len(), 2);
        assert_eq!(waiters.lock().len(), 1);
    }
}
