//! The fate of transactions over several shards: the commit point, recovery,
//! and what becomes of intents. Plain code: a snapshot and a request in, a
//! decision out.
//!
//! A transaction whose record says STAGING is committed when all of its writes
//! have landed. Whoever pushes it is told so, looks for the writes
//! ([`all_there`], whose reads keep out what is not there), and comes back with
//! a verdict ([`recover`]), which is put down if the record is still what it was
//! (X3; the protocol is CockroachDB's parallel commit, SIGMOD 2020, section 3).

use super::coordinators::SILENCE_MAX;
use super::placement::{ATTEMPT_AGE_MAX_US, Writer};
use super::refusal::Refusal;
use crate::command::{Expect, Op, Tree, value_hash};
use crate::mvcc::{self, Reader, SchemaSpan, Status, TxnRecord, keys};
use crate::rules::{Rule, Rules};
use bytes::Bytes;
use lineradb_common::{ShardId, TableId, Timestamp, TxnId};
use lineradb_proto::shard::v1 as proto;
use lineradb_proto::shard::v1::{commit_record_reply, push_reply, recover_reply};
use std::time::Duration;

/// Bytes of keys in a record: readers that meet an intent read it. In a COMMITTED
/// one they are a help, not a need, and left out beyond this; a transaction with
/// more cannot be staged.
pub const RECORD_BYTES_MAX: usize = 16 << 10;

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

/// A transaction's record, as it was found.
struct Found {
    key: Bytes,
    hash: Option<u64>,
    record: Option<TxnRecord>,
}

impl Found {
    fn read(reader: &impl Reader, anchor: &[u8], id: TxnId) -> mvcc::Result<Found> {
        let key = keys::record_key(anchor, id);
        let bytes = reader.get(Tree::Txn, &key)?;
        Ok(Found {
            key,
            hash: bytes.as_deref().map(value_hash),
            record: bytes.map(TxnRecord::decode).transpose()?,
        })
    }

    fn status(&self) -> Option<Status> {
        self.record.as_ref().map(|record| record.status)
    }

    /// X3: what a decision about the record rests on.
    fn unchanged(&self) -> Expect {
        Expect {
            tree: Tree::Txn,
            key: self.key.clone(),
            hash: self.hash,
        }
    }

    /// The record that takes its place.
    fn replace(self, record: &TxnRecord) -> Op {
        Op {
            tree: Tree::Txn,
            key: self.key,
            value: Some(record.encode()),
        }
    }
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
    let found = Found::read(reader, &writer.anchor, writer.id)?;
    match found.status() {
        Some(Status::Committed(at)) => return Ok(Decision::Known(Reply::Committed(at.raw()))),
        Some(Status::Aborted) if rules.hold(Rule::AbortedRecordMet) => {
            return Ok(Decision::Known(Reply::Aborted(true)));
        }
        Some(Status::Aborted | Status::Staging(_)) | None => {}
    }
    let commit_ts = Timestamp::from_raw(request.commit_ts);
    let compares = rules.hold(Rule::AbortedRecordMet);
    Ok(Decision::Write {
        expect: compares.then(|| found.unchanged()).into_iter().collect(),
        ops: vec![found.replace(&committed_record(writer, commit_ts, request))],
        then: Reply::Committed(commit_ts.raw()),
    })
}

/// The STAGING record that goes with the intent at the anchor; `None` when the
/// transaction has a record already. It needs no compare-and-set at apply: whoever
/// writes a record holds the latch of its anchor, as the caller does, in the term
/// in which this is proposed (C2).
///
/// # Errors
/// When the store fails.
pub fn stage(
    reader: &impl Reader,
    writer: &Writer,
    at: Timestamp,
    keys: &[Bytes],
) -> mvcc::Result<Option<Op>> {
    let found = Found::read(reader, &writer.anchor, writer.id)?;
    if found.record.is_some() {
        return Ok(None);
    }
    let record = TxnRecord {
        status: Status::Staging(at),
        attempt_ts: writer.attempt_ts,
        intent_keys: keys.to_vec(),
        intent_schemas: Vec::new(),
    };
    Ok(Some(found.replace(&record)))
}

/// Whether all of these keys hold an intent of a transaction at or below the
/// timestamp that it has staged. The caller has seen to it that what is not there
/// now lands above that, if at all.
///
/// # Errors
/// When the store fails.
pub fn all_there(
    reader: &impl Reader,
    id: TxnId,
    staged: Timestamp,
    keys: &[Bytes],
) -> mvcc::Result<bool> {
    for key in keys {
        let intent = mvcc::read_intent(reader, &keys::addressable(key))?;
        if !intent.is_some_and(|intent| intent.txn == id && intent.timestamp <= staged) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The verdict on a transaction that was found in state STAGING.
///
/// # Errors
/// When the store fails.
pub fn recover(
    reader: &impl Reader,
    request: &proto::Recover,
    id: TxnId,
    rules: Rules,
) -> Result<Decision<recover_reply::Status>, Refusal> {
    use recover_reply::Status as Reply;
    let found = Found::read(reader, &request.anchor, id)?;
    let staged = Timestamp::from_raw(request.staged_ts);
    let compares = rules.hold(Rule::VerdictCompares);
    let record = match (found.status(), &found.record) {
        (Some(Status::Committed(at)), _) if compares => {
            return Ok(Decision::Known(Reply::Committed(at.raw())));
        }
        (Some(Status::Aborted), _) => return Ok(Decision::Known(Reply::Aborted(true))),
        // X3: a verdict is one on what was looked for.
        (Some(Status::Staging(at)), _) if at != staged && compares => {
            return Ok(Decision::Known(Reply::Changed(true)));
        }
        (Some(Status::Staging(_) | Status::Committed(_)), Some(record)) => record,
        _ => return Ok(Decision::Known(Reply::Changed(true))),
    };
    let (record, then) = match request.commit {
        true => {
            let status = Status::Committed(staged);
            let record = TxnRecord {
                status,
                ..record.clone()
            };
            (record, Reply::Committed(staged.raw()))
        }
        false => (TxnRecord::aborted(record.attempt_ts), Reply::Aborted(true)),
    };
    Ok(Decision::Write {
        expect: vec![found.unchanged()],
        ops: vec![found.replace(&record)],
        then,
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
    let found = Found::read(reader, &request.anchor, id)?;
    match found.status() {
        Some(Status::Committed(at)) => return Ok(Decision::Known(Reply::Committed(at.raw()))),
        Some(Status::Aborted) => return Ok(Decision::Known(Reply::Aborted(true))),
        Some(Status::Staging(_)) | None => {}
    }
    let attempt_ts = Timestamp::from_raw(request.attempt_ts);
    let age = Duration::from_micros(now.micros().saturating_sub(attempt_ts.micros()));
    let dead = age > SILENCE_MAX && silence > SILENCE_MAX;
    if !request.force && !dead {
        return Ok(Decision::Known(Reply::Pending(true)));
    }
    if let (Some(Status::Staging(at)), Some(record)) = (found.status(), &found.record) {
        if !request.force {
            return Ok(Decision::Known(Reply::Staging(proto::Staging {
                commit_ts: at.raw(),
                keys: record.intent_keys.clone(),
            })));
        }
        // The coordinator itself, which has acknowledged nothing: until the record
        // says COMMITTED nobody else shows the writes, so it may give up whatever
        // has landed, and needs no other shard for it.
        return Ok(Decision::Write {
            expect: vec![found.unchanged()],
            ops: vec![found.replace(&TxnRecord::aborted(attempt_ts))],
            then: Reply::Aborted(true),
        });
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
        expect: vec![found.unchanged()],
        ops: vec![found.replace(&TxnRecord::aborted(attempt_ts))],
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
        let found = Found::read(reader, anchor, *id)?;
        let Some(Status::Committed(at)) = found.status() else {
            continue;
        };
        let version = keys::version_key(&keys::addressable(anchor), at);
        let Some(version) = reader.get(Tree::Data, &version)? else {
            continue;
        };
        if mvcc::Version::decode(version)?.txn == Some(*id) {
            ops.push(Op {
                tree: Tree::Txn,
                key: found.key,
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
