//! The fate of transactions over several shards: the commit point, recovery,
//! and what becomes of intents. Plain code: a snapshot and a request in, a
//! decision out.

use super::coordinators::SILENCE_MAX;
use super::placement::{ATTEMPT_AGE_MAX_US, Writer};
use super::refusal::Refusal;
use crate::command::{Expect, Op, Tree};
use crate::mvcc::{self, Outcome, Reader, SchemaSpan, Status, TxnRecord, keys};
use crate::rules::{Rule, Rules};
use bytes::Bytes;
use lineradb_common::{ShardId, TableId, Timestamp, TxnId};
use lineradb_proto::shard::v1 as proto;
use lineradb_proto::shard::v1::{commit_record_reply, push_reply};
use std::time::Duration;

/// Intent keys in a record are a help for recovery, not a need: beyond this
/// they are left out.
/// Readers that meet an intent read the record.
const RECORD_BYTES_MAX: usize = 16 << 10;

/// What to answer, or what to write first.
#[derive(Debug, PartialEq)]
pub enum Decision<T> {
    /// Known already.
    Known(T),
    /// Known once this is written.
    Write {
        /// The writes.
        ops: Vec<Op>,
        /// What they rest on (X3: a compare-and-set at apply).
        expect: Vec<Expect>,
        /// The answer then.
        then: T,
    },
}

fn absent(tree: Tree, key: &Bytes) -> Expect {
    Expect {
        tree,
        key: key.clone(),
        hash: None,
    }
}

fn read_record(
    reader: &impl Reader,
    anchor: &[u8],
    id: TxnId,
) -> mvcc::Result<(Bytes, Option<TxnRecord>)> {
    let key = keys::record_key(anchor, id);
    let record = reader.get(Tree::Txn, &key)?;
    Ok((key, record.map(TxnRecord::decode).transpose()?))
}

/// The commit point of a transaction over several shards.
///
/// # Errors
/// When the store fails.
pub fn commit_record(
    reader: &impl Reader,
    writer: &Writer,
    request: &proto::CommitRecord,
    rules: Rules,
) -> Result<Decision<commit_record_reply::Outcome>, Refusal> {
    use commit_record_reply::Outcome as Reply;
    let (key, record) = read_record(reader, &writer.anchor, writer.id)?;
    match record.map(|record| record.status) {
        Some(Status::Committed(at)) => return Ok(Decision::Known(Reply::Committed(at.raw()))),
        Some(Status::Aborted) if rules.hold(Rule::AbortedRecordMet) => {
            return Ok(Decision::Known(Reply::Aborted(true)));
        }
        Some(Status::Aborted) | None => {}
    }
    let commit_ts = Timestamp::from_raw(request.commit_ts);
    let mut ops = Vec::with_capacity(2);
    let mut expect = Vec::with_capacity(2);
    if let Some(idempotency) = &request.idempotency {
        let key = keys::outcome_key(&writer.anchor);
        if let Some(bytes) = reader.get(Tree::Txn, &key).map_err(Refusal::from)? {
            let earlier = Outcome::decode(bytes)?;
            return Ok(Decision::Known(Reply::Earlier(proto::EarlierOutcome {
                commit_ts: earlier.commit_ts.raw(),
                request_hash: earlier.request_hash,
                result_summary: earlier.result_summary,
            })));
        }
        let outcome = Outcome {
            txn: writer.id,
            commit_ts,
            request_hash: idempotency.request_hash.clone(),
            result_summary: idempotency.result_summary.clone(),
        };
        expect.push(absent(Tree::Txn, &key));
        ops.push(Op {
            tree: Tree::Txn,
            key,
            value: Some(outcome.encode()),
        });
    }
    if rules.hold(Rule::AbortedRecordMet) {
        expect.push(absent(Tree::Txn, &key));
    }
    ops.push(Op {
        tree: Tree::Txn,
        key,
        value: Some(committed_record(writer, commit_ts, request).encode()),
    });
    Ok(Decision::Write {
        ops,
        expect,
        then: Reply::Committed(commit_ts.raw()),
    })
}

fn committed_record(
    writer: &Writer,
    commit_ts: Timestamp,
    request: &proto::CommitRecord,
) -> TxnRecord {
    let mut bytes = 0;
    let fitting = request.intent_keys.iter().take_while(|key| {
        bytes += key.len() + 4;
        bytes <= RECORD_BYTES_MAX
    });
    TxnRecord {
        status: Status::Committed(commit_ts),
        attempt_ts: writer.attempt_ts,
        intent_keys: fitting.cloned().collect(),
        intent_schemas: request
            .intent_schemas
            .iter()
            .map(|schema| {
                let span = schema.span.clone().unwrap_or_default();
                SchemaSpan {
                    table: TableId(schema.table_id),
                    start: span.start,
                    end: span.end,
                    version: schema.version,
                }
            })
            .collect(),
    }
}

/// The fate of a transaction, decided when its coordinator is dead or asks for
/// it (X1, X3). Dead is a coordinator whose attempt is old and of which nothing
/// was heard for `silence`.
///
/// # Errors
/// When the store fails.
pub fn push(
    reader: &impl Reader,
    request: &proto::Push,
    id: TxnId,
    now: Timestamp,
    silence: Duration,
) -> Result<Decision<push_reply::Status>, Refusal> {
    use push_reply::Status as Reply;
    let (key, record) = read_record(reader, &request.anchor, id)?;
    match record.map(|record| record.status) {
        Some(Status::Committed(at)) => return Ok(Decision::Known(Reply::Committed(at.raw()))),
        Some(Status::Aborted) => return Ok(Decision::Known(Reply::Aborted(true))),
        None => {}
    }
    let attempt_ts = Timestamp::from_raw(request.attempt_ts);
    let age = Duration::from_micros(now.micros().saturating_sub(attempt_ts.micros()));
    let dead = age > SILENCE_MAX && silence > SILENCE_MAX;
    if !request.force && !dead {
        return Ok(Decision::Known(Reply::Pending(true)));
    }
    // A commit in one round leaves no record but its id on its first version.
    let anchor = keys::addressable(&request.anchor);
    if let Some(at) = mvcc::find_version_of(reader, &anchor, id)? {
        return Ok(Decision::Known(Reply::Committed(at.raw())));
    }
    // X1, X5: the version of a commit in one round may be collected by now, so
    // its absence proves nothing. Whoever met an intent, or has left one at the
    // anchor, asks about a commit over several shards, whose record would be
    // here, or is forgotten since nothing was left to resolve.
    let old = age > Duration::from_micros(ATTEMPT_AGE_MAX_US);
    let laid = mvcc::read_intent(reader, &anchor)?.is_some_and(|intent| intent.txn == id);
    if request.force && old && !laid {
        return Err(Refusal::attempt_too_old());
    }
    Ok(Decision::Write {
        expect: vec![absent(Tree::Txn, &key)],
        ops: vec![Op {
            tree: Tree::Txn,
            key,
            value: Some(TxnRecord::aborted(attempt_ts).encode()),
        }],
        then: Reply::Aborted(true),
    })
}

/// Deletes the records of commits that have nothing left to resolve. Each has
/// done its work but for one thing: a message of the attempt that arrives only
/// now may lay an intent once more, and whoever meets that asks at the anchor
/// (X3). There the first version carries the transaction's id and answers
/// instead; once that is collected (X5), the intent is older than any attempt
/// that is accepted, and dropping it loses nothing, since its write is a version
/// already.
///
/// # Errors
/// When the store fails.
pub fn forget(reader: &impl Reader, records: &[(Bytes, TxnId)]) -> mvcc::Result<Vec<Op>> {
    let mut ops = Vec::with_capacity(records.len());
    for (anchor, id) in records {
        let (key, record) = read_record(reader, anchor, *id)?;
        let Some(Status::Committed(at)) = record.map(|record| record.status) else {
            continue;
        };
        let version = keys::version_key(&keys::addressable(anchor), at);
        let Some(version) = reader.get(Tree::Data, &version)? else {
            continue;
        };
        if mvcc::Version::decode(version)?.txn == Some(*id) {
            ops.push(Op {
                tree: Tree::Txn,
                key,
                value: None,
            });
        }
    }
    Ok(ops)
}

/// An intent's place: a key of the shared key space or a schema version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentAt {
    /// Where it stands.
    pub addressable: Bytes,
    /// The key, `None` for a schema version.
    pub key: Option<Bytes>,
}

/// Where the intents of a resolve request stand.
pub fn intents_at(shard: ShardId, keys: &[Bytes], tables: &[u64]) -> Vec<IntentAt> {
    let keys = keys.iter().map(|key| IntentAt {
        addressable: keys::addressable(key),
        key: Some(key.clone()),
    });
    let tables = tables.iter().map(|table| IntentAt {
        addressable: keys::schema_key(shard, TableId(*table)),
        key: None,
    });
    keys.chain(tables).collect()
}

/// Turns the intents of a decided transaction into versions, or removes them.
/// Those that are gone are skipped. A commit lies at or above all of its
/// intents: one above it was laid by a late message, and is no version.
///
/// # Errors
/// When the store fails.
pub fn resolve(
    reader: &impl Reader,
    id: TxnId,
    commit_ts: Option<Timestamp>,
    intents: &[IntentAt],
) -> mvcc::Result<Vec<Op>> {
    let mut ops = Vec::with_capacity(intents.len() * 2);
    for at in intents {
        let Some(intent) = mvcc::read_intent(reader, &at.addressable)? else {
            continue;
        };
        if intent.txn != id {
            continue;
        }
        if let Some(commit_ts) = commit_ts.filter(|at| *at >= intent.timestamp) {
            // The version of an anchor carries the transaction's id.
            let anchors = at.key.as_ref() == Some(&intent.anchor);
            let version = mvcc::Version {
                value: intent.value(),
                txn: anchors.then_some(id),
            };
            ops.push(Op {
                tree: Tree::Data,
                key: keys::version_key(&at.addressable, commit_ts),
                value: Some(version.encode()),
            });
        }
        // Last: many writes are cut into several proposals, and whoever comes
        // after a failure between two must still find what is to be done.
        ops.push(Op {
            tree: Tree::Intent,
            key: at.addressable.clone(),
            value: None,
        });
    }
    Ok(ops)
}

#[cfg(test)]
mod tests;
