//! Where writes may land: the choice of the commit timestamp (PROTOCOLS X0).
//!
//! Plain code over a snapshot and a view of the timestamp cache: the same for a
//! one-round commit, which lands there, and for a prewrite, whose intents stand
//! there until the fate of their transaction is known.

use super::refusal::Refusal;
use super::schema;
use super::wait_graph::Contender;
use crate::command::{Op, Tree};
use crate::mvcc::{self, Intent, IntentWrite, Reader, Version, keys};
use crate::rules::{Rule, Rules};
use bytes::Bytes;
use lineradb_common::{ShardId, TableId, Timestamp, TxnId, limits};
use lineradb_proto::shard::v1::write;
use lineradb_proto::shard::v1::{self as proto, Isolation, ShardDescriptor};

/// Who writes.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The attempt.
    pub id: TxnId,
    /// Where its record stands.
    pub anchor: Bytes,
    /// The commit attempt's own timestamp.
    pub attempt_ts: Timestamp,
    /// When the transaction began.
    pub started: Timestamp,
    /// Its isolation level.
    pub isolation: Isolation,
}

impl Writer {
    /// Reads it from a request.
    ///
    /// # Errors
    /// When the id is malformed.
    pub fn from_meta(meta: Option<&proto::TxnMeta>) -> Result<Self, Refusal> {
        let meta = meta.ok_or_else(|| Refusal::invalid("the request names no transaction"))?;
        Ok(Writer {
            id: txn_id(&meta.id)?,
            // Copied: a slice would keep the whole frame of the request.
            anchor: Bytes::copy_from_slice(&meta.anchor),
            attempt_ts: Timestamp::from_raw(meta.attempt_ts),
            started: Timestamp::from_raw(match meta.start_ts {
                0 => meta.attempt_ts,
                at => at,
            }),
            isolation: meta.isolation(),
        })
    }

    /// As one that waits among others.
    pub fn contender(&self) -> Contender {
        Contender {
            started: self.started,
            id: self.id,
        }
    }
}

/// Reads a transaction id.
///
/// # Errors
/// When it has not 16 bytes.
pub fn txn_id(bytes: &[u8]) -> Result<TxnId, Refusal> {
    TxnId::from_slice(bytes).ok_or_else(|| Refusal::invalid("a transaction id has 16 bytes"))
}

/// What a write is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// A key of the shared key space.
    Key(Bytes),
    /// The schema version of a table in this shard.
    Schema(TableId),
}

/// One write of a request, checked and addressed.
#[derive(Clone, Debug)]
pub struct Target {
    /// What it is on.
    pub on: On,
    /// Where it stands.
    pub addressable: Bytes,
    /// What is written; `None` deletes.
    pub value: Option<Bytes>,
    /// What must hold.
    pub condition: Option<write::Condition>,
    /// The schema version that must stand there now, for a schema write.
    pub replaces_version: Option<u64>,
}

impl Target {
    /// The key as errors name it; empty for a schema version.
    pub fn user_key(&self) -> Bytes {
        match &self.on {
            On::Key(key) => key.clone(),
            On::Schema(_) => Bytes::new(),
        }
    }

    fn to_lock(&self, intent: &Intent) -> proto::Lock {
        match &self.on {
            On::Key(key) => intent.to_lock(key.clone(), 0),
            On::Schema(table) => intent.to_lock(Bytes::new(), table.0),
        }
    }
}

/// Whether a key lies in a shard.
pub fn in_shard(descriptor: &ShardDescriptor, key: &[u8]) -> bool {
    let (start, end) = descriptor
        .span
        .as_ref()
        .map_or((&[][..], &[][..]), |s| (&s.start[..], &s.end[..]));
    lineradb_common::keys::in_span(key, start, end)
}

/// Checks a key's length and place.
///
/// # Errors
/// `INVALID_ARGUMENT` or `SHARD_CHANGED`.
pub fn check_key(descriptor: &ShardDescriptor, key: &[u8]) -> Result<(), Refusal> {
    if key.len() > limits::ENCODED_KEY_BYTES_MAX {
        return Err(Refusal::invalid(format!(
            "a key has {} bytes, at most {} are allowed",
            key.len(),
            limits::ENCODED_KEY_BYTES_MAX
        )));
    }
    if in_shard(descriptor, key) {
        Ok(())
    } else {
        Err(Refusal::shard_changed())
    }
}

/// Checks the writes of a request and says where they stand. A schema write is
/// clipped to the shard by being the write of the shard's own version key (S2).
///
/// # Errors
/// `INVALID_ARGUMENT` or `SHARD_CHANGED`.
pub fn targets(
    descriptor: &ShardDescriptor,
    writes: &[proto::Write],
) -> Result<Vec<Target>, Refusal> {
    let mut out = Vec::with_capacity(writes.len());
    for write in writes {
        let value_bytes = write.value.as_ref().map_or(0, Bytes::len);
        if value_bytes > limits::VALUE_BYTES_MAX {
            return Err(Refusal::invalid(format!(
                "a value has {value_bytes} bytes, at most {} are allowed",
                limits::VALUE_BYTES_MAX
            )));
        }
        out.push(match &write.target {
            Some(write::Target::Key(key)) => {
                check_key(descriptor, key)?;
                Target {
                    on: On::Key(key.clone()),
                    addressable: keys::addressable(key),
                    value: write.value.clone(),
                    condition: write.condition,
                    replaces_version: None,
                }
            }
            Some(write::Target::Schema(write)) => schema_target(descriptor, write)?,
            None => return Err(Refusal::invalid("a write has no target")),
        });
    }
    Ok(out)
}

fn schema_target(
    descriptor: &ShardDescriptor,
    write: &proto::SchemaWrite,
) -> Result<Target, Refusal> {
    let shard = descriptor.span.clone().unwrap_or_default();
    let span = write.span.clone().unwrap_or_default();
    if !lineradb_common::keys::spans_overlap(&span.start, &span.end, &shard.start, &shard.end) {
        return Err(Refusal::shard_changed());
    }
    let table = TableId(write.table_id);
    Ok(Target {
        on: On::Schema(table),
        addressable: keys::schema_key(ShardId(descriptor.shard_id), table),
        value: Some(Bytes::copy_from_slice(&schema::encode(write.version))),
        condition: None,
        replaces_version: Some(write.replaces),
    })
}

/// Where the writes of a request may land, and what stands there now.
#[derive(Debug, PartialEq, Eq)]
pub struct Placement {
    /// The lowest timestamp at which all may land together.
    pub timestamp: Timestamp,
    /// Per target: the newest committed version; 0: none.
    pub newest: Vec<Timestamp>,
    /// Per target: the transaction's own intent, laid before.
    pub own: Vec<Option<Intent>>,
}

/// Finds the lowest timestamp at or above `at_least` for all targets and
/// checks their conditions. `lowest` answers from the timestamp cache.
///
/// # Errors
/// `LOCKED`, `CONDITION_FAILED`, `WRITE_CONFLICT`, or the store's.
pub fn place(
    reader: &impl Reader,
    writer: &Writer,
    targets: &[Target],
    read_ts: Timestamp,
    at_least: Timestamp,
    lowest: impl Fn(&Target) -> Timestamp,
) -> Result<Placement, Refusal> {
    let mut placement = Placement {
        timestamp: at_least.max(read_ts),
        newest: Vec::with_capacity(targets.len()),
        own: Vec::with_capacity(targets.len()),
    };
    let mut locks = Vec::new();
    for target in targets {
        let intent = mvcc::read_intent(reader, &target.addressable)?;
        let own = match intent {
            Some(intent) if intent.txn == writer.id => Some(intent),
            Some(intent) => {
                locks.push(target.to_lock(&intent));
                continue;
            }
            None => None,
        };
        let newest = mvcc::newest_version(reader, &target.addressable, Timestamp::MAX)?;
        let newest_ts = newest.as_ref().map_or(Timestamp::ZERO, |v| v.timestamp);
        let value = newest.and_then(|v| v.version.value);
        if own.is_none() {
            check_condition(writer, target, read_ts, newest_ts, value.as_deref())?;
        }
        // Its own intent has kept everybody off since it was laid.
        let floor = own.as_ref().map_or_else(
            || lowest(target).max(newest_ts.next()),
            |intent| intent.timestamp,
        );
        placement.timestamp = placement.timestamp.max(floor);
        placement.newest.push(newest_ts);
        placement.own.push(own);
    }
    if locks.is_empty() {
        Ok(placement)
    } else {
        Err(Refusal::locked(locks))
    }
}

fn check_condition(
    writer: &Writer,
    target: &Target,
    read_ts: Timestamp,
    newest: Timestamp,
    value: Option<&[u8]>,
) -> Result<(), Refusal> {
    let exists = value.is_some();
    if let Some(replaced) = target.replaces_version {
        let current = value.map_or(Ok(0), schema::decode)?;
        if current != replaced {
            let message = "the schema version that the write replaces is not current any more";
            return Err(Refusal::conflict(Bytes::new(), message));
        }
    }
    match target.condition {
        Some(write::Condition::Absent(true)) if exists => {
            return Err(Refusal::condition_failed(target.user_key(), newest));
        }
        Some(write::Condition::Exists(true)) if !exists => {
            return Err(Refusal::condition_failed(target.user_key(), newest));
        }
        // X4: in every isolation level.
        Some(write::Condition::Replaces(seen)) if newest.raw() != seen => {
            let message = "the version that the write replaces is not the newest any more";
            return Err(Refusal::conflict(target.user_key(), message));
        }
        _ => {}
    }
    // X0: REPEATABLE READ carries r, also for blind writes.
    if writer.isolation == Isolation::RepeatableRead
        && matches!(target.on, On::Key(_))
        && newest > read_ts
    {
        let message = "the key was written after the transaction's snapshot";
        return Err(Refusal::conflict(target.user_key(), message));
    }
    Ok(())
}

/// The writes of a one-round commit at `at`.
pub fn commit_ops(
    writer: &Writer,
    targets: &[Target],
    placement: &Placement,
    at: Timestamp,
    rules: Rules,
) -> Vec<Op> {
    let mut ops = Vec::with_capacity(targets.len() + 1);
    let mut marked = false;
    for (target, own) in targets.iter().zip(&placement.own) {
        let first = matches!(&target.on, On::Key(key) if *key == writer.anchor);
        marked |= first;
        // X1: the first write's version carries the transaction's id.
        let id = first && rules.hold(Rule::VersionCarriesId);
        let version = Version {
            value: target.value.clone(),
            txn: id.then_some(writer.id),
        };
        ops.push(Op {
            tree: Tree::Data,
            key: keys::version_key(&target.addressable, at),
            value: Some(version.encode()),
        });
        if own.is_some() {
            ops.push(Op {
                tree: Tree::Intent,
                key: target.addressable.clone(),
                value: None,
            });
        }
    }
    if !marked {
        // Nothing is written at the anchor itself: a record marks it.
        let record = mvcc::TxnRecord {
            status: mvcc::Status::Committed(at),
            ..mvcc::TxnRecord::aborted(writer.attempt_ts)
        };
        ops.push(Op {
            tree: Tree::Txn,
            key: keys::record_key(&writer.anchor, writer.id),
            value: Some(record.encode()),
        });
    }
    ops
}

/// The intents of a prewrite at `at`, those laid before left as they are.
pub fn intent_ops(
    writer: &Writer,
    targets: &[Target],
    placement: &Placement,
    at: Timestamp,
) -> Vec<Op> {
    let mut ops = Vec::with_capacity(targets.len());
    for (n, target) in targets.iter().enumerate() {
        if placement.own[n].is_some() {
            continue;
        }
        let intent = Intent {
            txn: writer.id,
            anchor: writer.anchor.clone(),
            attempt_ts: writer.attempt_ts,
            timestamp: at,
            replaced: placement.newest[n],
            write: target
                .value
                .clone()
                .map_or(IntentWrite::Delete, IntentWrite::Put),
        };
        ops.push(Op {
            tree: Tree::Intent,
            key: target.addressable.clone(),
            value: Some(intent.encode()),
        });
    }
    ops
}

/// What is known of an attempt before it is evaluated (X1): its own record, or
/// the version that carries its id.
///
/// # Errors
/// `TXN_ABORTED` when a recovery aborted it; else the store's.
pub fn earlier_fate(
    reader: &impl Reader,
    writer: &Writer,
    one_phase: bool,
    rules: Rules,
) -> Result<Option<Timestamp>, Refusal> {
    let key = keys::record_key(&writer.anchor, writer.id);
    if let Some(bytes) = reader.get(Tree::Txn, &key).map_err(Refusal::from)? {
        match mvcc::TxnRecord::decode_status(bytes)? {
            mvcc::Status::Committed(at) => return Ok(Some(at)),
            mvcc::Status::Aborted if rules.hold(Rule::AbortedRecordMet) => {
                return Err(Refusal::aborted());
            }
            mvcc::Status::Aborted | mvcc::Status::Staging(_) => {}
        }
    }
    if one_phase {
        // A frame that was delivered twice finds its own version on top.
        let anchor = keys::addressable(&writer.anchor);
        let newest = mvcc::newest_version(reader, &anchor, Timestamp::MAX)?;
        if let Some(newest) = newest
            && newest.version.txn == Some(writer.id)
        {
            return Ok(Some(newest.timestamp));
        }
    }
    Ok(None)
}

/// Ten minutes: older attempts are refused (X1).
pub const ATTEMPT_AGE_MAX_US: u64 = 10 * 60 * 1_000_000;

/// Refuses attempts of unknown or too great age.
///
/// # Errors
/// `ATTEMPT_TOO_OLD`.
pub fn check_attempt(writer: &Writer, now: Timestamp) -> Result<(), Refusal> {
    if now.micros() > writer.attempt_ts.micros() + ATTEMPT_AGE_MAX_US {
        return Err(Refusal::attempt_too_old());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
