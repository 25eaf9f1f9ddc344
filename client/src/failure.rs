//! Why a request was not answered as hoped, and what that means for the
//! transaction that sent it.

use crate::Error;
use bytes::Bytes;
use lineradb_common::TableId;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::ErrorCode;

/// May a request be sent again when its answer is lost?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Yes: a read, or something idempotent.
    Repeatable,
    /// No: a lost answer is an unknown outcome (X1).
    Once,
}

/// Why a request was not answered as hoped.
#[derive(Debug)]
pub enum Failure {
    /// The leader said no, for a reason that routing cannot mend.
    Refused(pb::Error),
    /// The shard is not what it was: cut the request again. Nothing was done.
    Moved(String),
    /// It may have taken effect ([`Effect::Once`] only).
    Unknown(String),
    /// The deadline passed, or the clock is not there; nothing was done.
    Unavailable(String),
    /// A younger transaction gave way to an older one. Nothing was done.
    GaveWay(Bytes),
}

impl Failure {
    /// Of two failures the one that says more: a refusal before a lost answer
    /// before the rest.
    pub fn worse(first: Option<Failure>, second: Failure) -> Failure {
        let rank = |f: &Failure| match f {
            Failure::Refused(_) => 3,
            Failure::GaveWay(_) => 2,
            Failure::Unknown(_) => 1,
            Failure::Moved(_) | Failure::Unavailable(_) => 0,
        };
        match first {
            Some(first) if rank(&first) >= rank(&second) => first,
            _ => second,
        }
    }

    /// True when the transaction gives way to end a deadlock: others wait for it, and
    /// may be the ones for whom the rest of its requests wait.
    pub fn is_deadlock(&self) -> bool {
        matches!(self, Failure::Refused(e) if e.code == ErrorCode::Deadlock as i32)
    }

    /// The error for a caller whose request had no effect that could be in
    /// doubt.
    pub fn into_error(self) -> Error {
        match self {
            Failure::Refused(error) => refusal(error),
            Failure::Moved(message) | Failure::Unknown(message) | Failure::Unavailable(message) => {
                Error::Unavailable { message }
            }
            Failure::GaveWay(key) => Error::conflict("an older transaction holds a key", key),
        }
    }
}

/// What a leader's refusal means for the transaction.
pub fn refusal(error: pb::Error) -> Error {
    let pb::Error {
        code,
        message,
        schema,
        key,
        sqlstate,
        ..
    } = error;
    match ErrorCode::try_from(code) {
        Ok(ErrorCode::SchemaChanged) => {
            let schema = schema.unwrap_or_default();
            Error::SchemaChanged {
                table: TableId(schema.table_id),
                current: schema.version,
            }
        }
        Ok(ErrorCode::ConditionFailed) => Error::ConditionFailed { key },
        Ok(ErrorCode::WriteConflict) => Error::conflict(message, key),
        Ok(ErrorCode::TxnAborted | ErrorCode::AttemptTooOld) => Error::Aborted { message },
        Ok(ErrorCode::LockTimeout | ErrorCode::Locked) => Error::LockTimeout { key },
        Ok(ErrorCode::Deadlock) => Error::Deadlock { detail: message },
        Ok(ErrorCode::InvalidArgument) => Error::Invalid { message },
        Ok(ErrorCode::LimitExceeded) => Error::Limit { message },
        // History that is not kept any more (X5) has a SQLSTATE of its own.
        Ok(ErrorCode::TimestampOutOfRange) if !sqlstate.is_empty() => {
            Error::Execution { sqlstate, message }
        }
        Ok(ErrorCode::Execution) => Error::Execution { sqlstate, message },
        Ok(ErrorCode::OutcomeUnknown) => Error::Unknown { message },
        Ok(
            ErrorCode::NotLeader
            | ErrorCode::ShardNotFound
            | ErrorCode::ShardChanged
            | ErrorCode::Unavailable,
        ) => Error::Unavailable { message },
        Ok(ErrorCode::PlanFormat | ErrorCode::TimestampOutOfRange | ErrorCode::Internal)
        | Err(_) => Error::Internal { message },
    }
}
