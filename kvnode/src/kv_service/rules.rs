//! The plain decisions of the KV API: what is a valid request, what a client
//! error means in gRPC, how a comparison comes out.

use bytes::Bytes;
use lineradb_client::{Error, Span};
use lineradb_common::{keys, limits};
use lineradb_proto::kv::v1::compare::{Against, Relation};
use lineradb_proto::kv::v1::{
    BatchWriteRequest, Compare, CompareAndSwapRequest, DeleteRangeRequest, DeleteRequest,
    Operation, PutRequest, TxnRequest, WatchRequest, operation,
};
use prost::Message;
use std::time::Duration;
use tonic::{Code, Status};
use xxhash_rust::xxh3::xxh3_128;

/// Longest idempotency key.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 1024;

/// A request that may carry an idempotency key.
pub trait Keyed: Message {
    /// Its method: messages of two methods may have the same bytes.
    const METHOD: &'static str;
}

macro_rules! keyed {
    ($($request:ident $method:literal),*) => {
        $(impl Keyed for $request {
            const METHOD: &'static str = $method;
        })*
    };
}

keyed!(
    PutRequest "put", DeleteRequest "delete", DeleteRangeRequest "delete_range",
    CompareAndSwapRequest "compare_and_swap", BatchWriteRequest "batch_write", TxnRequest "txn"
);

/// What tells a request from others under the same idempotency key (X2).
pub fn request_hash<Q: Keyed>(request: &Q) -> Bytes {
    let mut bytes = Q::METHOD.as_bytes().to_vec();
    // No method has a zero byte in its name.
    bytes.push(0);
    bytes.extend(request.encode_to_vec());
    Bytes::copy_from_slice(&xxh3_128(&bytes).to_be_bytes())
}

/// The stored key of a user's key.
pub fn stored_key(key: &[u8]) -> Result<Bytes, Status> {
    if key.is_empty() {
        return Err(Status::invalid_argument("the key is empty"));
    }
    bounded(key, "the key")?;
    Ok(keys::kv_key(key))
}

/// The user's key of a stored one.
pub fn user_key(stored: &Bytes) -> Bytes {
    stored.slice(1.min(stored.len())..)
}

/// The stored span of a user's range; an empty end is the end of the space.
pub fn stored_span(start: &[u8], end: &[u8]) -> Result<Span, Status> {
    bounded(start, "the start")?;
    bounded(end, "the end")?;
    if !end.is_empty() && start > end {
        return Err(Status::invalid_argument("the range runs backwards"));
    }
    let end = if end.is_empty() {
        keys::prefix_end(&[keys::KV])
    } else {
        keys::kv_key(end)
    };
    Ok(Span::new(keys::kv_key(start), end))
}

/// The stored span that a watch is about: a key, a prefix, or a range.
pub fn watched_span(request: &WatchRequest) -> Result<Span, Status> {
    let forms = [
        !request.key.is_empty(),
        !request.prefix.is_empty(),
        !(request.start.is_empty() && request.end.is_empty()),
    ];
    if forms.into_iter().filter(|named| *named).count() > 1 {
        return Err(Status::invalid_argument(
            "a watch is about a key, or a prefix, or a range",
        ));
    }
    if !request.key.is_empty() {
        return Ok(Span::point(&stored_key(&request.key)?));
    }
    if !request.prefix.is_empty() {
        bounded(&request.prefix, "the prefix")?;
        return Ok(Span::prefix(&keys::kv_key(&request.prefix)));
    }
    let span = stored_span(&request.start, &request.end)?;
    if span.is_empty() {
        return Err(Status::invalid_argument("the range is empty"));
    }
    Ok(span)
}

fn bounded(key: &[u8], what: &str) -> Result<(), Status> {
    if key.len() > limits::KV_KEY_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "{what} has {} bytes, at most {} are allowed",
            key.len(),
            limits::KV_KEY_BYTES_MAX
        )));
    }
    Ok(())
}

/// Refuses values that are too large.
pub fn checked_value(value: &Bytes) -> Result<(), Status> {
    if value.len() > limits::VALUE_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "the value has {} bytes, at most {} are allowed",
            value.len(),
            limits::VALUE_BYTES_MAX
        )));
    }
    Ok(())
}

/// Refuses idempotency keys that are too long.
pub fn checked_idempotency_key(key: &str) -> Result<(), Status> {
    if key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "the idempotency key has {} bytes, at most {IDEMPOTENCY_KEY_BYTES_MAX} are allowed",
            key.len()
        )));
    }
    Ok(())
}

/// One operation, with its key as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write.
    Put(Bytes, Bytes),
    /// Delete.
    Delete(Bytes),
    /// Read.
    Get(Bytes),
}

/// Checks the operations of a request.
pub fn steps(operations: &[Operation]) -> Result<Vec<Step>, Status> {
    let steps = operations
        .iter()
        .enumerate()
        .map(|(i, operation)| match &operation.operation {
            Some(operation::Operation::Put(put)) => {
                checked_value(&put.value)?;
                Ok(Step::Put(stored_key(&put.key)?, put.value.clone()))
            }
            Some(operation::Operation::Delete(delete)) => {
                Ok(Step::Delete(stored_key(&delete.key)?))
            }
            Some(operation::Operation::Get(get)) => Ok(Step::Get(stored_key(&get.key)?)),
            None => Err(Status::invalid_argument(format!("operation {i} is empty"))),
        });
    steps.collect()
}

/// Checks the comparisons of a request.
pub fn check_compares(compares: &[Compare]) -> Result<(), Status> {
    for (i, compare) in compares.iter().enumerate() {
        stored_key(&compare.key)?;
        let relation = Relation::try_from(compare.relation).map_err(|_| {
            Status::invalid_argument(format!("comparison {i} has an unknown relation"))
        })?;
        match (&compare.against, relation) {
            (None, _) => {
                return Err(Status::invalid_argument(format!(
                    "comparison {i} names nothing to compare with"
                )));
            }
            (Some(Against::Exists(_)), Relation::Less | Relation::Greater) => {
                return Err(Status::invalid_argument(format!(
                    "comparison {i}: existence is equal or not equal, nothing else"
                )));
            }
            (Some(_), _) => {}
        }
    }
    Ok(())
}

/// Does a comparison hold for what was found (value and version)? A key that
/// does not exist has an empty value and version 0.
pub fn holds(compare: &Compare, found: Option<(&Bytes, u64)>) -> bool {
    use std::cmp::Ordering;
    let order = match &compare.against {
        Some(Against::Value(value)) => found.map_or(&b""[..], |(v, _)| v).cmp(value.as_ref()),
        Some(Against::Version(version)) => found.map_or(0, |(_, v)| v).cmp(version),
        Some(Against::Exists(exists)) => found.is_some().cmp(exists),
        None => return false,
    };
    match compare.relation() {
        Relation::Equal => order == Ordering::Equal,
        Relation::NotEqual => order != Ordering::Equal,
        Relation::Less => order == Ordering::Less,
        Relation::Greater => order == Ordering::Greater,
    }
}

/// How long the caller is willing to wait (the `grpc-timeout` header: up to
/// eight digits and a unit).
pub fn grpc_timeout(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The gRPC code of a client error (the comments of `kv.proto`), and a word for
/// programs, sent as the metadata `lineradb-error`.
pub fn code_of(error: &Error) -> (Code, &'static str) {
    match error {
        Error::Conflict { .. } => (Code::Aborted, "conflict"),
        Error::SchemaChanged { .. } => (Code::Aborted, "schema-changed"),
        Error::LockTimeout { .. } => (Code::Aborted, "lock-timeout"),
        Error::Deadlock { .. } => (Code::Aborted, "deadlock"),
        Error::Aborted { .. } => (Code::Aborted, "aborted"),
        Error::ConditionFailed { .. } => (Code::FailedPrecondition, "condition-failed"),
        Error::IdempotencyMismatch => (Code::FailedPrecondition, "idempotency-mismatch"),
        Error::Unknown { .. } => (Code::Unknown, "outcome-unknown"),
        Error::Unavailable { .. } => (Code::Unavailable, "unavailable"),
        Error::Timeout => (Code::DeadlineExceeded, "timeout"),
        Error::Invalid { .. } => (Code::InvalidArgument, "invalid"),
        Error::Limit { .. } => (Code::ResourceExhausted, "limit"),
        Error::HistoryGone { .. } => (Code::OutOfRange, "history-gone"),
        Error::Execution { .. } | Error::Internal { .. } => (Code::Internal, "internal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_limits() {
        assert!(stored_key(b"").is_err());
        assert!(stored_key(&vec![0; limits::KV_KEY_BYTES_MAX]).is_ok());
        let long = stored_key(&vec![0; limits::KV_KEY_BYTES_MAX + 1]).unwrap_err();
        assert_eq!(long.code(), Code::InvalidArgument);
        assert!(checked_value(&Bytes::from(vec![0; limits::VALUE_BYTES_MAX])).is_ok());
        assert!(checked_value(&Bytes::from(vec![0; limits::VALUE_BYTES_MAX + 1])).is_err());
        assert_eq!(user_key(&stored_key(b"abc").unwrap()), &b"abc"[..]);
    }

    #[test]
    fn requests_of_two_methods_are_two_requests() {
        let put = PutRequest {
            key: "a".into(),
            value: "z".into(),
            idempotency_key: "k".into(),
        };
        let delete = DeleteRangeRequest {
            start: "a".into(),
            end: "z".into(),
            idempotency_key: "k".into(),
        };
        assert_eq!(put.encode_to_vec(), delete.encode_to_vec());
        assert_ne!(request_hash(&put), request_hash(&delete));
        assert_eq!(request_hash(&put), request_hash(&put.clone()));
    }

    #[test]
    fn ranges_stay_in_their_own_space() {
        let all = stored_span(b"", b"").unwrap();
        assert!(all.contains(&stored_key(&[0xff; 10]).unwrap()));
        assert!(!all.contains(&keys::table_prefix(lineradb_common::TableId(1))));
        assert!(stored_span(b"b", b"a").is_err());
        assert!(stored_span(b"a", b"a").unwrap().is_empty());
    }

    #[test]
    fn a_watch_is_about_a_key_a_prefix_or_a_range() {
        let span =
            |start: &'static str, end: &'static str, key: &'static str, prefix: &'static str| {
                watched_span(&WatchRequest {
                    start: start.into(),
                    end: end.into(),
                    key: key.into(),
                    prefix: prefix.into(),
                    ..WatchRequest::default()
                })
            };
        let holds = |span: &Span, keys: &[&str]| {
            keys.iter()
                .map(|k| span.contains(&stored_key(k.as_bytes()).unwrap()))
                .collect::<Vec<_>>()
        };
        let names = ["a", "ab", "b", "c"];
        let key = span("", "", "a", "").unwrap();
        assert_eq!(holds(&key, &names), [true, false, false, false]);
        let prefix = span("", "", "", "a").unwrap();
        assert_eq!(holds(&prefix, &names), [true, true, false, false]);
        let range = span("ab", "c", "", "").unwrap();
        assert_eq!(holds(&range, &names), [false, true, true, false]);
        let all = span("", "", "", "").unwrap();
        assert_eq!(holds(&all, &names), [true; 4]);
        assert!(!all.contains(&keys::table_prefix(lineradb_common::TableId(1))));
        for refused in [
            span("a", "", "k", ""),
            span("", "", "k", "p"),
            span("b", "a", "", ""),
            span("b", "b", "", ""),
        ] {
            assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn comparisons_treat_a_missing_key_as_empty_at_version_zero() {
        let compare = |relation: Relation, against| Compare {
            key: Bytes::from_static(b"k"),
            relation: relation as i32,
            against: Some(against),
        };
        let value = |v: &'static [u8]| Against::Value(Bytes::from_static(v));
        let found = Bytes::from_static(b"m");
        let found = Some((&found, 7));
        assert!(holds(&compare(Relation::Equal, value(b"m")), found));
        assert!(holds(&compare(Relation::Less, value(b"n")), found));
        assert!(holds(&compare(Relation::Greater, value(b"a")), found));
        assert!(!holds(&compare(Relation::NotEqual, value(b"m")), found));
        assert!(holds(&compare(Relation::Equal, Against::Version(7)), found));
        assert!(holds(&compare(Relation::Equal, Against::Version(0)), None));
        assert!(holds(
            &compare(Relation::Equal, Against::Exists(false)),
            None
        ));
        assert!(holds(
            &compare(Relation::NotEqual, Against::Exists(false)),
            found
        ));
        assert!(check_compares(&[compare(Relation::Less, Against::Exists(true))]).is_err());
        let nothing = Compare {
            key: Bytes::from_static(b"k"),
            ..Compare::default()
        };
        assert!(check_compares(&[nothing]).is_err());
    }

    #[test]
    fn timeouts_parse_as_grpc_says() {
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("2H"), Some(Duration::from_secs(7200)));
        for bad in ["", "S", "5", "123456789S", "-1S", "5x", "5é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
