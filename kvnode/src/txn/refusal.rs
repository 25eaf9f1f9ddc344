//! Errors as the data path answers them.

use super::wait_graph::Deadlock;
use bytes::Bytes;
use lineradb_common::{NodeId, TableId, Timestamp};
use lineradb_proto::shard::v1 as proto;
use lineradb_proto::shard::v1::ErrorCode;

/// A request that is answered with an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The error, boxed: replies without one are the rule.
    pub error: Box<proto::Error>,
    /// The largest commit timestamp on which it rests (PROTOCOLS T5: errors
    /// wait as well).
    pub observed: Timestamp,
}

impl Refusal {
    /// An error of a code with a sentence for people.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Refusal {
            error: Box::new(proto::Error {
                code: code.into(),
                message: message.into(),
                ..Default::default()
            }),
            observed: Timestamp::ZERO,
        }
    }

    /// The code.
    pub fn code(&self) -> ErrorCode {
        self.error.code()
    }

    /// The caller sent something wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// Another replica leads.
    pub fn not_leader(leader: Option<NodeId>) -> Self {
        let mut refusal = Self::new(ErrorCode::NotLeader, "this replica does not lead the shard");
        refusal.error.leader_node_id = leader.map_or(0, |node| node.0);
        refusal
    }

    /// Stale shard version or a key outside; the service adds the descriptors.
    pub fn shard_changed() -> Self {
        Self::new(
            ErrorCode::ShardChanged,
            "the shard has another range or version",
        )
    }

    /// Nothing was done, try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// The request's time is up and nothing was done.
    pub fn deadline() -> Self {
        Self::unavailable("the request's time ran out before anything was done")
    }

    /// It may or may not be applied later.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::OutcomeUnknown, message)
    }

    /// Undecided writes of others are in the way.
    pub fn locked(locks: Vec<proto::Lock>) -> Self {
        let message = "undecided writes of other transactions are in the way";
        let mut refusal = Self::new(ErrorCode::Locked, message);
        refusal.error.locks = locks;
        refusal
    }

    /// It waits in a circle with others and gives way.
    pub fn deadlock(deadlock: &Deadlock) -> Self {
        Self::new(ErrorCode::Deadlock, deadlock.to_string())
    }

    /// A condition `absent` or `exists` does not hold.
    pub fn condition_failed(key: Bytes, observed: Timestamp) -> Self {
        let mut refusal = Self::new(ErrorCode::ConditionFailed, "a condition on a key failed");
        refusal.error.key = key;
        refusal.observed = observed;
        refusal
    }

    /// Another transaction's version is in the way: retry.
    pub fn conflict(key: Bytes, message: &str) -> Self {
        let mut refusal = Self::new(ErrorCode::WriteConflict, message);
        refusal.error.key = key;
        refusal
    }

    /// A recovery aborted the transaction before.
    pub fn aborted() -> Self {
        Self::new(
            ErrorCode::TxnAborted,
            "the transaction was aborted by a recovery",
        )
    }

    /// The request was planned with another version of a table.
    pub fn schema_changed(table: TableId, current: u64, since: Timestamp) -> Self {
        let mut refusal = Self::new(
            ErrorCode::SchemaChanged,
            format!("table {table} has schema version {current}"),
        );
        refusal.error.schema = Some(proto::SchemaVersion {
            table_id: table.0,
            version: current,
        });
        refusal.observed = since;
        refusal
    }

    /// The history that it needs may be collected already (X5).
    pub fn too_old(timestamp: Timestamp, oldest: Timestamp) -> Self {
        let mut refusal = Self::new(
            ErrorCode::TimestampOutOfRange,
            format!(
                "snapshot too old: it is of {timestamp}, and history before {oldest} is not kept; \
                 begin the transaction again"
            ),
        );
        refusal.error.sqlstate = "72000".to_owned();
        refusal.error.oldest_ts = oldest.raw();
        refusal
    }

    /// The attempt is older than its traces are kept for (X1).
    pub fn attempt_too_old() -> Self {
        Self::new(
            ErrorCode::AttemptTooOld,
            "the commit attempt is older than ten minutes",
        )
    }

    /// A timestamp that no sound clock gives.
    pub fn out_of_range(timestamp: Timestamp, latest: Timestamp) -> Self {
        Self::new(
            ErrorCode::TimestampOutOfRange,
            format!("timestamp {timestamp} is too far above this node's clock ({latest})"),
        )
    }
}

impl From<crate::mvcc::Error> for Refusal {
    fn from(error: crate::mvcc::Error) -> Self {
        Refusal {
            error: Box::new(error.into()),
            observed: Timestamp::ZERO,
        }
    }
}

impl From<lineradb_common::Error> for Refusal {
    fn from(error: lineradb_common::Error) -> Self {
        Refusal::unavailable(error.message)
    }
}
