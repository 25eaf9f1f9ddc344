//! The handle that a process holds on its cluster.

use crate::background::{self, Janitor, Job};
use crate::backoff::Backoff;
use crate::connection::Connections;
use crate::history::{self, History};
use crate::meta::MetaClient;
use crate::metrics;
use crate::protection::{self, OpenTransactions};
use crate::router::Router;
use crate::service::LocalNodes;
use crate::shard_map::ShardMap;
use crate::types::{Commit, EarlierOutcome, TransactionOptions};
use crate::{Error, Result, Transaction};
use bytes::Bytes;
use lineradb_common::clock::{ClusterClock, SharedClock, deadline_after};
use lineradb_common::{ShardId, spawn};
use lineradb_proto::meta::v1::SplitShardRequest;
use lineradb_proto::shard::v1::ShardDescriptor;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How a client reaches its cluster.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Addresses (`host:port`) of the metaservice's members.
    pub metas: Vec<String>,
    /// The process's clock.
    pub clock: SharedClock,
    /// The clock that the client disciplines against the metaservice: the same
    /// one as `clock`, unless somebody else does that.
    pub synchronise: Option<Arc<ClusterClock>>,
    /// Nodes of this process.
    pub local: Option<LocalNodes>,
    /// Where the process runs, as tiers (`region`, `zone`): the past is read from the
    /// nearest replica.
    pub locality: HashMap<String, String>,
    /// How long one operation (a read, a commit) may take before it answers
    /// `Unavailable`.
    pub operation_timeout: Duration,
}

impl ClientOptions {
    /// For a process with a clock of its own.
    pub fn new(metas: Vec<String>) -> Self {
        let clock = ClusterClock::unsynchronised();
        ClientOptions {
            metas,
            clock: clock.clone(),
            synchronise: Some(clock),
            local: None,
            locality: HashMap::new(),
            operation_timeout: Duration::from_secs(10),
        }
    }
}

/// A cheap handle; clones share everything.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Shared>);

/// What all transactions of a process share.
pub(crate) struct Shared {
    pub(crate) router: Arc<Router>,
    pub(crate) clock: SharedClock,
    pub(crate) janitor: Janitor,
    pub(crate) open: Arc<OpenTransactions>,
    pub(crate) operation_timeout: Duration,
}

/// What became of a keyed run.
#[derive(Clone, Debug)]
pub enum Ran<T> {
    /// It ran and committed.
    Committed(T, Commit),
    /// An earlier request under the same idempotency key had committed.
    Earlier(EarlierOutcome),
}

impl Client {
    /// Reaches the metaservice, sets the clock, loads the map; retries until
    /// it succeeds (callers bound it with a timeout when they must).
    ///
    /// # Errors
    /// When the addresses are malformed.
    pub async fn connect(options: ClientOptions) -> Result<Client> {
        let meta = MetaClient::new(options.metas)?;
        if let Some(clock) = &options.synchronise {
            meta.synchronise(clock).await;
            let (meta, clock) = (meta.clone(), Arc::downgrade(clock));
            spawn::task("clock", async move { meta.keep_synchronised(clock).await });
        }
        let connections = Connections::new(options.clock.clone(), options.local);
        let router = Arc::new(Router::new(
            meta.clone(),
            connections,
            History::new(options.locality),
        ));
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            match meta
                .get_map(deadline_after(options.operation_timeout))
                .await
            {
                Ok(map) => {
                    router.merge_map(&map);
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "waiting for the shard map");
                    tokio::time::sleep(backoff.step()).await;
                }
            }
        }
        let watcher = Arc::downgrade(&router);
        spawn::task("map-watch", async move {
            meta.watch(|map| {
                let router = watcher.upgrade();
                if let Some(router) = &router {
                    router.merge_map(&map);
                }
                router.is_some()
            })
            .await;
        });
        Ok(Self::assemble(
            router,
            options.clock,
            options.operation_timeout,
        ))
    }

    /// A client on a router that is ready.
    pub(crate) fn assemble(
        router: Arc<Router>,
        clock: SharedClock,
        operation_timeout: Duration,
    ) -> Client {
        metrics::declare();
        let janitor = background::start(router.clone());
        history::keep_closed(&router);
        let shared = Arc::new(Shared {
            router,
            clock,
            janitor,
            open: Arc::default(),
            operation_timeout,
        });
        let protect = protection::keep(Arc::downgrade(&shared));
        spawn::task("protect-history", protect);
        Client(shared)
    }

    /// Starts a transaction at the clock's latest, or in the past if it is to. No
    /// message is sent.
    ///
    /// # Errors
    /// When the clock is not synchronised; `Invalid` for a time that may lie
    /// ahead, and for the past without `read_only`.
    pub fn begin(&self, options: TransactionOptions) -> Result<Transaction> {
        // Before the time is read: what it said then may not count later.
        let generation = self.0.clock.generation();
        let now = self.0.clock.now()?;
        let read_ts = match options.read_at {
            None => now.latest,
            // T5: nothing is read above e.
            Some(at) if at <= now.earliest && options.read_only => at,
            Some(_) => {
                return Err(Error::invalid(
                    "only what is past can be read, and only read",
                ));
            }
        };
        Ok(Transaction::new(
            self.0.clone(),
            options,
            read_ts,
            generation,
        ))
    }

    /// A block of `count` ids of a sequence that nobody else gets; the first.
    ///
    /// # Errors
    /// When the metaservice cannot be reached in time.
    pub async fn allocate_ids(&self, sequence: &str, count: u64) -> Result<u64> {
        let deadline = self.operation_deadline();
        self.meta().allocate_ids(sequence, count, deadline).await
    }

    /// Splits the shard that holds `key`, at `key`. Left and right.
    ///
    /// # Errors
    /// When it cannot be done in time, or the key is a border already.
    pub async fn split_at(&self, key: &[u8]) -> Result<(ShardDescriptor, ShardDescriptor)> {
        self.split(SplitShardRequest {
            shard_id: 0,
            split_key: Bytes::copy_from_slice(key),
        })
        .await
    }

    /// Splits a shard in its middle. Left and right.
    ///
    /// # Errors
    /// When it cannot be done in time.
    pub async fn split_shard(&self, shard: ShardId) -> Result<(ShardDescriptor, ShardDescriptor)> {
        self.split(SplitShardRequest {
            shard_id: shard.0,
            split_key: Bytes::new(),
        })
        .await
    }

    async fn split(
        &self,
        request: SplitShardRequest,
    ) -> Result<(ShardDescriptor, ShardDescriptor)> {
        let deadline = self.operation_deadline();
        let reply = self.meta().split_shard(request, deadline).await?;
        self.0.router.refresh_map(deadline).await;
        Ok((
            reply.left.unwrap_or_default(),
            reply.right.unwrap_or_default(),
        ))
    }

    /// What is believed about the shards now.
    pub fn map(&self) -> Arc<ShardMap> {
        self.0.router.map()
    }

    /// The process's clock.
    pub fn clock(&self) -> &SharedClock {
        &self.0.clock
    }

    /// The metaservice.
    pub fn meta(&self) -> &MetaClient {
        self.0.router.meta()
    }

    /// Runs `f` in transactions until one commits; retries conflicts with
    /// jittered backoff until the deadline. `f` must be repeatable.
    ///
    /// # Errors
    /// Those of `f` and of commit that a retry cannot mend, or the last one
    /// when time is up.
    pub async fn run<T, F, Fut>(&self, options: TransactionOptions, f: F) -> Result<T>
    where
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        if options.idempotency.is_some() {
            return Err(Error::internal("keyed transactions go through run_keyed"));
        }
        match self.run_keyed(options, f).await? {
            Ran::Committed(value, _) => Ok(value),
            Ran::Earlier(_) => Err(Error::internal("an outcome without a key")),
        }
    }

    /// As [`Client::run`], for transactions that may carry an idempotency key.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub async fn run_keyed<T, F, Fut>(&self, options: TransactionOptions, f: F) -> Result<Ran<T>>
    where
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let deadline = options
            .deadline
            .unwrap_or_else(|| self.operation_deadline());
        let default_deadline = options.default_deadline || options.deadline.is_none();
        let mut options = TransactionOptions {
            deadline: Some(deadline),
            default_deadline,
            ..options
        };
        let mut backoff = Backoff::contention();
        loop {
            let transaction = self.begin(options.clone())?;
            options.started = Some(transaction.started());
            let error = match self.run_once(&transaction, &f).await {
                Ok(ran) => return Ok(ran),
                Err(error) => error,
            };
            transaction.rollback().await;
            if !error.is_retryable() || !backoff.pause(deadline).await {
                return Err(error);
            }
        }
    }

    async fn run_once<T, F, Fut>(&self, transaction: &Transaction, f: &F) -> Result<Ran<T>>
    where
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        if let Some(earlier) = transaction.earlier_outcome().await? {
            // It ends here: the answer must not run ahead of the clock (T5).
            transaction.rollback().await;
            return Ok(Ran::Earlier(earlier));
        }
        let value = f(transaction.clone()).await?;
        let commit = transaction.commit().await?;
        Ok(match commit.earlier {
            Some(earlier) => Ran::Earlier(earlier),
            None => Ran::Committed(value, commit),
        })
    }

    /// Returns when every commit so far says so without a look at its writes. To be
    /// waited for, within bounds, before a process ends: others would take its
    /// last commits over several shards for undecided, for five seconds.
    pub async fn settled(&self) {
        self.0.janitor.settled().await;
    }

    pub(crate) fn operation_deadline(&self) -> Instant {
        deadline_after(self.0.operation_timeout)
    }
}

impl Shared {
    /// Hands work to the background; dropped when too much is waiting there.
    pub(crate) fn clean(&self, job: Job) {
        self.janitor.submit(job);
    }
}
