//! The plain values that callers hand in and get back.

use bytes::Bytes;
use lineradb_common::{TableId, Timestamp, keys};
use std::time::Duration;
use tokio::time::Instant;

/// A half-open key range; an empty `end` is the end of the key space.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First key.
    pub start: Bytes,
    /// First key that no longer belongs to it.
    pub end: Bytes,
}

impl Span {
    /// `[start, end)`.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Span {
            start: start.into(),
            end: end.into(),
        }
    }

    /// Just one key.
    pub fn point(key: &[u8]) -> Self {
        Span {
            start: Bytes::copy_from_slice(key),
            end: keys::key_after(key),
        }
    }

    /// All keys that start with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Span {
            start: Bytes::copy_from_slice(prefix),
            end: keys::prefix_end(prefix),
        }
    }

    /// True when no key lies in it.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// True when `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        keys::in_span(key, &self.start, &self.end)
    }

    /// True when the two share a key.
    pub fn overlaps(&self, other: &Span) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && keys::spans_overlap(&self.start, &self.end, &other.start, &other.end)
    }

    /// The part of it that lies inside `other` (may be empty).
    pub fn intersect(&self, other: &Span) -> Span {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        if !end.is_empty() && end < start {
            return Span {
                end: start.clone(),
                start,
            };
        }
        Span { start, end }
    }
}

/// The schema version of a table that a request was planned with (S1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableVersion {
    /// The table.
    pub table: TableId,
    /// Its version.
    pub version: u64,
}

/// Isolation levels. What each of them proves at commit stands in
/// `transaction/isolation.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// As if one at a time, in real-time order.
    #[default]
    Serializable,
    /// Snapshot isolation.
    RepeatableRead,
    /// Each statement sees what was committed when it began.
    ReadCommitted,
}

/// Makes a commit happen once, however often the request is sent (X2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyRequest {
    /// Whose key it is.
    pub user: String,
    /// The key as the caller gave it.
    pub key: String,
    /// Digest of the request; another request under the key is refused.
    pub request_hash: Bytes,
}

/// How a transaction starts.
#[derive(Clone, Debug, Default)]
pub struct TransactionOptions {
    /// Isolation level.
    pub isolation: Isolation,
    /// Refuse writes.
    pub read_only: bool,
    /// Read the past: all of the transaction, which must be read only, sees what
    /// was committed then.
    pub read_at: Option<Timestamp>,
    /// When the first attempt began, of what is tried again: of those who wait for locks in
    /// a circle the youngest gives way, and one that has lost grows older than those that
    /// come after it. (Between those who lay intents the attempt decides.)
    pub started: Option<Timestamp>,
    /// Exactly once.
    pub idempotency: Option<IdempotencyRequest>,
    /// How long one lock may be waited for; `None`: until the deadline.
    pub lock_timeout: Option<Duration>,
    /// When all of it must be over; single operations have the client's
    /// `operation_timeout` besides.
    pub deadline: Option<Instant>,
    /// Nobody asked for this deadline: a commit in doubt may be decided a few
    /// seconds after it, instead of being answered as unknown.
    pub default_deadline: bool,
}

/// How a locking read behaves.
#[derive(Clone, Copy, Debug)]
pub struct LockOptions {
    /// Wait for locks that others hold; `false` answers
    /// [`LockTimeout`](crate::Error::LockTimeout) at once (NOWAIT).
    pub wait: bool,
    /// FOR SHARE.
    pub shared: bool,
}

impl Default for LockOptions {
    fn default() -> Self {
        LockOptions {
            wait: true,
            shared: false,
        }
    }
}

/// How a scan behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanOptions {
    /// From the end of the span to its start.
    pub reverse: bool,
    /// At most so many pairs; 0: all.
    pub limit: u64,
}

/// What must hold for a key when the write takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// The key does not exist.
    Absent,
    /// The key exists.
    Exists,
}

/// How a write behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// The table whose row or index entry it is.
    pub table: Option<TableVersion>,
    /// Checked at commit, or at once where the transaction already knows.
    pub condition: Condition,
}

/// A piece of a SQL plan to run next to the data.
#[derive(Clone, Debug, Default)]
pub struct FragmentRequest {
    /// Keys to scan; inside the table's range.
    pub span: Span,
    /// Encoded `lineradb_common::sql::RowLayout`.
    pub layout: Bytes,
    /// Format of `plan`.
    pub plan_format_version: u32,
    /// Serialised plan; empty: the rows as they are.
    pub plan: Bytes,
    /// From the end of the span to its start.
    pub reverse: bool,
    /// Stop each partition after so many output rows; 0: never.
    pub limit: u64,
    /// The table.
    pub table: Option<TableVersion>,
}

/// How a transaction ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// When it took place; the read timestamp for a transaction without writes.
    pub timestamp: Timestamp,
    /// Set when an earlier request under the same idempotency key had already
    /// committed: this one changed nothing.
    pub earlier: Option<EarlierOutcome>,
}

/// What an earlier request under the same idempotency key did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierOutcome {
    /// When it committed.
    pub timestamp: Timestamp,
    /// What its coordinator noted with `set_result_summary`.
    pub result_summary: Bytes,
}

/// Where the time of a transaction went, in microseconds, summed over its
/// requests: the latency receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Requests sent.
    pub requests: u64,
    /// From sending to the answer, as seen here (network included).
    pub request_us: u64,
    /// At the shard leaders, all told.
    pub shard_us: u64,
    /// Waiting to be looked at.
    pub queue_us: u64,
    /// Waiting for locks and intents.
    pub lock_wait_us: u64,
    /// From proposal to applied, fsync included.
    pub consensus_us: u64,
    /// Confirming leadership for reads.
    pub read_index_us: u64,
    /// Reading and running fragments.
    pub scan_us: u64,
    /// Waiting for the clock before the answer (T5).
    pub commit_wait_us: u64,
    /// Rounds of consensus, one after the other, until the commit.
    pub consensus_rounds: u64,
    /// Transactions in the way that were asked for their fate.
    pub pushes: u64,
    /// Proofs that what was read holds at a later timestamp.
    pub refreshes: u64,
    /// Times that the statement was run again, unseen.
    pub retries: u64,
}

impl Timing {
    /// Adds the receipt of one reply.
    pub fn add(&mut self, reply: &lineradb_proto::shard::v1::Timing) {
        self.shard_us += u64::from(reply.total_us);
        self.queue_us += u64::from(reply.queue_us);
        self.lock_wait_us += u64::from(reply.lock_wait_us);
        self.consensus_us += u64::from(reply.consensus_us);
        self.read_index_us += u64::from(reply.read_index_us);
        self.scan_us += u64::from(reply.scan_us);
    }

    /// Time spent since `earlier`, a copy of the same receipt taken before.
    pub fn since(&self, earlier: &Timing) -> Timing {
        self.with(earlier, |now, then| now.saturating_sub(then))
    }

    /// Both together.
    pub fn plus(&self, other: &Timing) -> Timing {
        self.with(other, |one, two| one + two)
    }

    fn with(&self, other: &Timing, f: impl Fn(u64, u64) -> u64) -> Timing {
        Timing {
            requests: f(self.requests, other.requests),
            request_us: f(self.request_us, other.request_us),
            shard_us: f(self.shard_us, other.shard_us),
            queue_us: f(self.queue_us, other.queue_us),
            lock_wait_us: f(self.lock_wait_us, other.lock_wait_us),
            consensus_us: f(self.consensus_us, other.consensus_us),
            read_index_us: f(self.read_index_us, other.read_index_us),
            scan_us: f(self.scan_us, other.scan_us),
            commit_wait_us: f(self.commit_wait_us, other.commit_wait_us),
            consensus_rounds: f(self.consensus_rounds, other.consensus_rounds),
            pushes: f(self.pushes, other.pushes),
            refreshes: f(self.refreshes, other.refreshes),
            retries: f(self.retries, other.retries),
        }
    }

    /// Every part by its name, which ends with `_us` for microseconds.
    pub fn parts(&self) -> [(&'static str, u64); 13] {
        [
            ("requests", self.requests),
            ("request_us", self.request_us),
            ("shard_us", self.shard_us),
            ("queue_us", self.queue_us),
            ("lock_wait_us", self.lock_wait_us),
            ("consensus_us", self.consensus_us),
            ("read_index_us", self.read_index_us),
            ("scan_us", self.scan_us),
            ("commit_wait_us", self.commit_wait_us),
            ("consensus_rounds", self.consensus_rounds),
            ("pushes", self.pushes),
            ("refreshes", self.refreshes),
            ("retries", self.retries),
        ]
    }
}
