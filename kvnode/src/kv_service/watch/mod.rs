//! Watch: the changes of a range in the order of their commit timestamps, each
//! once, none missing.
//!
//! ```text
//! resolved --(changes in (resolved, to], of all shards)--> resolved = to --> ...
//!             \ a round: pages, put in order (`round`), told (`messages`)
//! ```
//!
//! **Why nothing is missed.** A round reads the span at `to` as a transaction would:
//! after it nothing commits there at or below `to`, whoever leads, however shards
//! are split, and undecided commits are decided first (`txn/engine/changes.rs`). So
//! `resolved` is all that a watch has to know, and all that a client needs to go on
//! elsewhere: leaders, nodes and shards keep nothing for it that is not a hint.
//!
//! **Why it disturbs nobody.** A read at a timestamp pushes writes that come later
//! above it. `to` lies behind what the clock has certainly passed (`LAG`): only
//! transactions that began longer ago than that are pushed. It also makes the wait
//! of T5 a matter of course: every change told is older than `earliest`.
//!
//! **Between rounds** the leaders are asked to say when something is written into
//! the span ([`Waiting`]); once a second there is a round without it, which is also
//! what makes the messages that only say how far all is resolved.
//!
//! Nothing runs ahead of the client: the next step is taken when it asks for the
//! next message, so that a slow one holds at most the pages of one round.

mod messages;
mod metrics;
mod round;

pub(crate) use metrics::declare;

use super::{Call, rules, status_of};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use lineradb_client::backoff::Backoff;
use lineradb_client::{ChangesOptions, ChangesPage, Client, Error, Span, Stretch};
use lineradb_common::clock::{SharedClock, Stopwatch, deadline_after, wait_past};
use lineradb_common::{Position, Timestamp, limits};
use lineradb_proto::kv::v1::{WatchRequest, WatchResponse};
use metrics::OpenWatch;
use round::Round;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How far a round reads behind what the clock has passed: longer than most
/// transactions of the KV API take.
const LAG: Duration = Duration::from_millis(20);
/// A watch says how far it is at least so often; so long the leaders are asked to
/// wait for something new.
const PROGRESS: Duration = Duration::from_secs(1);
/// Between rounds of a watch that nobody tells when something is written.
const POLL: Duration = Duration::from_millis(200);
/// So long a shard may be without an answer before the watch ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests to wait, of all watches of the node: they occupy places in the streams
/// to other nodes.
const WAITS_MAX: usize = 512;
/// Bytes of the first pages of a round, all together, and of the later ones, of
/// which there are some only while a watch catches up.
const PAGES_BYTES: usize = 1 << 20;
const CATCH_UP_BYTES: usize = 4 << 20;
const PAGE_BYTES_MIN: usize = 16 << 10;

/// What all watches of a node share.
pub(super) struct Watches {
    open: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Watches {
    /// None yet; all of them end with `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Watches {
            open: Arc::new(Semaphore::new(limits::KV_WATCHES_MAX)),
            waits: Arc::new(Semaphore::new(WAITS_MAX)),
            stop,
        }
    }

    /// Begins a watch. What is refused is refused here.
    pub async fn start(
        &self,
        client: Client,
        call: &Call,
        request: &WatchRequest,
    ) -> Result<Watch, Status> {
        let span = rules::watched_span(request)?;
        let place = self.open.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "this node serves {} watches already",
                limits::KV_WATCHES_MAX
            ))
        })?;
        let now = client.clock().now().map_err(clock_status)?.latest;
        let from = match request.from_timestamp {
            0 => now,
            from => Timestamp::from_raw(from),
        };
        if from > now {
            return Err(Status::invalid_argument(format!(
                "a watch from {} cannot begin: it is {} at the latest",
                from.raw(),
                now.raw()
            )));
        }
        let mut watch = Watch {
            resolved: from,
            stretches: vec![Stretch {
                span,
                after: Position::whole(from),
                recent: None,
            }],
            round: None,
            messages: VecDeque::new(),
            waiting: Waiting::new(self.waits.clone()),
            more: true,
            told: Stopwatch::start(),
            previous: request.previous_values,
            deadline: call.stream_deadline,
            stop: self.stop.clone(),
            client,
            _open: OpenWatch::new(place),
        };
        if request.from_timestamp == 0 {
            // T5: what begins after the first message is certainly later.
            wait_past(&**watch.client.clock(), from)
                .await
                .map_err(clock_status)?;
        } else {
            // Whether the history is there is known when it has been read.
            watch.read_on().await?;
        }
        watch.messages.push_front(messages::progress(from, true));
        Ok(watch)
    }
}

fn clock_status(error: lineradb_common::Error) -> Status {
    status_of(&Error::from(error))
}

/// One watch: a client that asks for the next message, again and again.
pub(super) struct Watch {
    client: Client,
    previous: bool,
    /// All changes at or below have been told, or stand in `messages`.
    resolved: Timestamp,
    /// The span between rounds.
    stretches: Vec<Stretch>,
    round: Option<Round>,
    messages: VecDeque<WatchResponse>,
    waiting: Waiting,
    /// The next round need not be waited for.
    more: bool,
    /// Since the last message.
    told: Stopwatch,
    deadline: Option<Instant>,
    stop: CancellationToken,
    _open: OpenWatch,
}

impl Watch {
    /// Its messages, until it fails.
    pub fn into_stream(self) -> BoxStream<'static, Result<WatchResponse, Status>> {
        let next = |watch: Option<Watch>| async move {
            let mut watch = watch?;
            match watch.next_or_end().await {
                Ok(message) => Some((Ok(message), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        };
        futures::stream::unfold(Some(self), next).boxed()
    }

    async fn next_or_end(&mut self) -> Result<WatchResponse, Status> {
        let (stop, deadline) = (self.stop.clone(), self.deadline);
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Status::unavailable(
                "the node is stopping: go on at another one, from the last resolved timestamp",
            )),
            () = late => Err(Status::deadline_exceeded("the deadline of the watch has come")),
            message = self.next() => message,
        }
    }

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                self.told = Stopwatch::start();
                metrics::CHANGES.inc_by(message.changes.len() as u64);
                return Ok(message);
            }
            if self.round.is_none() && self.told.elapsed() >= PROGRESS {
                self.messages
                    .push_back(messages::progress(self.resolved, false));
                continue;
            }
            if self.round.is_none() && !self.more {
                self.waiting.wait(&self.client, &self.stretches).await;
                self.more = true;
            }
            self.read_on().await?;
        }
    }

    /// Reads the next pages of the round, or of a new one, and makes messages of
    /// what is in order then.
    async fn read_on(&mut self) -> Result<(), Status> {
        let first = self.round.is_none();
        if first {
            let to = next_end(self.client.clock(), self.resolved).await?;
            self.round = Some(Round::new(std::mem::take(&mut self.stretches), to));
        }
        let Some(round) = &mut self.round else {
            return Ok(());
        };
        let due = round.due();
        let bytes = if first { PAGES_BYTES } else { CATCH_UP_BYTES };
        let options = ChangesOptions {
            to: round.to(),
            previous: self.previous,
            page_bytes: (bytes / due.len().max(1)).max(PAGE_BYTES_MIN),
        };
        let pages = read(&self.client, due, options).await?;
        round.take(pages);
        let reached = round.reached();
        self.messages
            .extend(messages::messages(round.ready(), &reached));
        self.resolved = self.resolved.max(reached.resolved());
        if round.is_done()
            && let Some(round) = self.round.take()
        {
            (self.stretches, self.more) = round.finish();
        }
        Ok(())
    }
}

/// Up to where the next round reads: all that may be committed by now, as soon as
/// that lies far enough back.
async fn next_end(clock: &SharedClock, resolved: Timestamp) -> Result<Timestamp, Status> {
    let deadline = deadline_after(PATIENCE);
    let lag = LAG.as_micros() as u64;
    let mut backoff = Backoff::routing();
    loop {
        let past = async {
            let now = clock.now()?.latest;
            wait_past(&**clock, now.plus_micros(lag)).await?;
            Ok::<_, lineradb_common::Error>(clock.now()?.earliest)
        };
        let error = match past.await {
            Ok(earliest) => {
                let to = Timestamp::from_micros(earliest.micros().saturating_sub(lag));
                if to > resolved {
                    return Ok(to);
                }
                continue;
            }
            Err(error) => error,
        };
        if !backoff.pause(deadline).await {
            return Err(clock_status(error));
        }
    }
}

/// Reads pages; waits for shards that are without a leader, for commits that are
/// undecided, and for the clock.
async fn read(
    client: &Client,
    stretches: Vec<Stretch>,
    options: ChangesOptions,
) -> Result<Vec<ChangesPage>, Status> {
    let deadline = deadline_after(PATIENCE);
    let mut backoff = Backoff::routing();
    loop {
        match client.changes(stretches.clone(), options, deadline).await {
            Ok(pages) => return Ok(pages),
            Err(error @ (Error::Unavailable { .. } | Error::LockTimeout { .. })) => {
                if !backoff.pause(deadline).await {
                    let error = Error::unavailable(error.to_string());
                    return Err(status_of(&error));
                }
            }
            Err(error) => return Err(status_of(&error)),
        }
    }
}

/// Which stretch of which list is waited for.
type Name = (Span, u64);

/// The requests to the leaders to say when something is written.
struct Waiting {
    places: Arc<Semaphore>,
    under_way: FuturesUnordered<BoxFuture<'static, (Name, bool)>>,
    names: HashSet<Name>,
}

impl Waiting {
    fn new(places: Arc<Semaphore>) -> Self {
        Waiting {
            places,
            under_way: FuturesUnordered::new(),
            names: HashSet::new(),
        }
    }

    /// Returns when something was written into one of the stretches since its last
    /// page, as far as is known, or after a while.
    async fn wait(&mut self, client: &Client, stretches: &[Stretch]) {
        let until = match self.ask(client, stretches) {
            true => deadline_after(PROGRESS),
            false => deadline_after(POLL),
        };
        loop {
            let answered = tokio::select! {
                Some(answered) = self.under_way.next() => Some(answered),
                () = tokio::time::sleep_until(until) => None,
            };
            match answered {
                Some((name, written)) => {
                    self.names.remove(&name);
                    if written {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    /// Asks the leaders of the stretches that are not being asked. False: not all of
    /// them are.
    fn ask(&mut self, client: &Client, stretches: &[Stretch]) -> bool {
        let mut all = true;
        for stretch in stretches {
            let Some(recent) = &stretch.recent else {
                all = false;
                continue;
            };
            let name = (stretch.span.clone(), recent.epoch);
            if self.names.contains(&name) {
                continue;
            }
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                all = false;
                continue;
            };
            self.names.insert(name.clone());
            let (client, stretch) = (client.clone(), stretch.clone());
            self.under_way.push(Box::pin(async move {
                let written = client.await_write(&stretch, PROGRESS).await;
                drop(place);
                (name, written)
            }));
        }
        all
    }
}
