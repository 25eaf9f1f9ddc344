//! What a node keeps for each of its replicas in the tree `local`.
//!
//! Key: shard id (8 bytes, big endian) and a field letter. All of it is written
//! in the batch of whatever it belongs to: the applied position with the writes
//! that it counts, a split's child with its parent's descriptor (C4), a
//! snapshot's rows with the position that they stand for.

use super::bounds;
use super::storage::Storage;
use super::types::{StoredMembership, decode_membership, encode_membership};
use crate::command::{Malformed, Tree, take_slice, take_u8, take_varint};
use crate::raft_log::{LogId, Vote};
use crate::{Error, Result};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{ReplicaId, ShardId, keys};
use lineradb_lsm::WriteBatch;
use lineradb_proto::shard::v1::ShardDescriptor;
use prost::Message;
use std::collections::BTreeMap;
use std::ops::Bound;

const REPLICA: u8 = b'r';
const APPLIED: u8 = b'a';
const MEMBERSHIP: u8 = b'm';
const DESCRIPTOR: u8 = b'd';
const SEED: u8 = b's';
const INSTALLING: u8 = b'i';
const SHED: u8 = b'x';

/// What a replica's log starts with when it was not born empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed {
    /// Everything up to here is in the seed itself: a purged id.
    pub base: LogId,
    /// The vote with which the replica is born.
    pub vote: Option<Vote>,
}

/// A snapshot whose installation has begun and not ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Installing {
    /// Where its rows are.
    pub file: String,
    pub rows: u64,
    pub applied: LogId,
    pub membership: StoredMembership,
    pub descriptor: ShardDescriptor,
}

/// Everything kept for one replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReplicaRecord {
    pub replica: ReplicaId,
    pub descriptor: ShardDescriptor,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    pub seed: Option<Seed>,
    /// A snapshot is being installed: rows and position are between two states.
    pub installing: Option<Installing>,
    /// Spans that this replica held and gave up to a snapshot, without applying
    /// the splits behind it: children may be born there by asking (C4).
    pub shed: Vec<(Bytes, Bytes)>,
}

impl ReplicaRecord {
    /// What it holds, and what the snapshot under way will make it hold.
    fn spans(&self) -> impl Iterator<Item = (Bytes, Bytes)> {
        let installing = self.installing.as_ref().map(|i| &i.descriptor);
        std::iter::once(&self.descriptor)
            .chain(installing)
            .map(bounds::span)
    }
}

/// No two replicas of a node hold the same key (C4).
///
/// # Errors
/// [`Error::Unavailable`] when one of the records claims part of the range.
pub(crate) fn check_room<'a>(
    descriptor: &ShardDescriptor,
    records: impl Iterator<Item = &'a ReplicaRecord>,
) -> Result<()> {
    let (start, end) = bounds::span(descriptor);
    for record in records {
        if record
            .spans()
            .any(|(a, b)| keys::spans_overlap(&start, &end, &a, &b))
        {
            return Err(Error::Unavailable(format!(
                "shard {} overlaps shard {} on this node",
                descriptor.shard_id, record.descriptor.shard_id
            )));
        }
    }
    Ok(())
}

/// The same for a snapshot of a shard that has a replica here. One that was cut
/// before a split that this node knows of covers the child's range as well.
///
/// # Errors
/// As [`check_room`]; when the records cannot be read.
pub(crate) fn check_install(storage: &Storage, descriptor: &ShardDescriptor) -> Result<()> {
    let records = load_all(storage)?;
    let others = { records.iter() }
        .filter(|(shard, _)| shard.0 != descriptor.shard_id)
        .map(|(_, record)| record);
    check_room(descriptor, others)
}

/// The ranges of the trees that are a shard's alone on this node: what another
/// replica claims is left out.
pub(crate) fn own_ranges(
    storage: &Storage,
    descriptor: &ShardDescriptor,
) -> Result<Vec<(Bytes, Bytes)>> {
    let records = load_all(storage)?;
    let mut parts = vec![bounds::span(descriptor)];
    for (shard, record) in records {
        if shard.0 == descriptor.shard_id {
            continue;
        }
        for other in record.spans() {
            let rest = parts.iter().flat_map(|p| bounds::left_over(p, &other));
            parts = rest.collect();
        }
    }
    let local = bounds::local_prefix(ShardId(descriptor.shard_id));
    let upper = bounds::prefix_end(&local);
    let ranges = parts.iter().map(|(start, end)| bounds::range(start, end));
    Ok(std::iter::once((local, upper)).chain(ranges).collect())
}

fn key(shard: ShardId, field: u8) -> [u8; 9] {
    let mut key = [field; 9];
    key[..8].copy_from_slice(&shard.0.to_be_bytes());
    key
}

pub(crate) fn put_applied(
    batch: &mut WriteBatch,
    storage: &Storage,
    shard: ShardId,
    applied: LogId,
) {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&applied.term.to_le_bytes());
    value[8..].copy_from_slice(&applied.index.to_le_bytes());
    batch.put(storage.keyspace(Tree::Local), &key(shard, APPLIED), &value);
}

pub(crate) fn put_membership(
    batch: &mut WriteBatch,
    storage: &Storage,
    shard: ShardId,
    membership: &StoredMembership,
) {
    batch.put(
        storage.keyspace(Tree::Local),
        &key(shard, MEMBERSHIP),
        &encode_membership(membership),
    );
}

pub(crate) fn put_descriptor(
    batch: &mut WriteBatch,
    storage: &Storage,
    descriptor: &ShardDescriptor,
) {
    let shard = ShardId(descriptor.shard_id);
    batch.put(
        storage.keyspace(Tree::Local),
        &key(shard, DESCRIPTOR),
        &descriptor.encode_to_vec(),
    );
}

/// Everything of a new replica.
pub(crate) fn put_replica(batch: &mut WriteBatch, storage: &Storage, record: &ReplicaRecord) {
    let shard = ShardId(record.descriptor.shard_id);
    let local = storage.keyspace(Tree::Local);
    batch.put(local, &key(shard, REPLICA), &record.replica.0.to_le_bytes());
    put_descriptor(batch, storage, &record.descriptor);
    put_membership(batch, storage, shard, &record.membership);
    match record.applied {
        Some(applied) => put_applied(batch, storage, shard, applied),
        None => batch.delete(local, &key(shard, APPLIED)),
    }
    match &record.seed {
        Some(seed) => batch.put(local, &key(shard, SEED), &encode_seed(seed)),
        None => batch.delete(local, &key(shard, SEED)),
    }
    delete_installing(batch, storage, shard);
    put_shed(batch, storage, shard, &record.shed);
}

pub(crate) fn put_installing(
    batch: &mut WriteBatch,
    storage: &Storage,
    shard: ShardId,
    installing: &Installing,
) {
    use crate::command::{put_slice, put_varint};
    let mut out = BytesMut::new();
    out.put_u8(1);
    put_slice(&mut out, installing.file.as_bytes());
    put_varint(&mut out, installing.rows);
    put_varint(&mut out, installing.applied.term);
    put_varint(&mut out, installing.applied.index);
    put_slice(&mut out, &installing.descriptor.encode_to_vec());
    out.put_slice(&encode_membership(&installing.membership));
    batch.put(storage.keyspace(Tree::Local), &key(shard, INSTALLING), &out);
}

pub(crate) fn delete_installing(batch: &mut WriteBatch, storage: &Storage, shard: ShardId) {
    batch.delete(storage.keyspace(Tree::Local), &key(shard, INSTALLING));
}

fn decode_installing(mut input: Bytes) -> Result<Installing, Malformed> {
    if take_u8(&mut input)? != 1 {
        return Err(Malformed("unknown format version"));
    }
    let file = String::from_utf8(take_slice(&mut input)?.to_vec())
        .map_err(|_| Malformed("a file's name is not text"))?;
    let rows = take_varint(&mut input)?;
    let applied = LogId {
        term: take_varint(&mut input)?,
        index: take_varint(&mut input)?,
    };
    let descriptor = ShardDescriptor::decode(take_slice(&mut input)?)
        .map_err(|_| Malformed("a malformed descriptor"))?;
    Ok(Installing {
        file,
        rows,
        applied,
        membership: decode_membership(input)?,
        descriptor,
    })
}

/// The spans that a replica has shed.
pub(crate) fn put_shed(
    batch: &mut WriteBatch,
    storage: &Storage,
    shard: ShardId,
    shed: &[(Bytes, Bytes)],
) {
    use crate::command::put_slice;
    let (local, key) = (storage.keyspace(Tree::Local), key(shard, SHED));
    if shed.is_empty() {
        batch.delete(local, &key);
        return;
    }
    let mut out = BytesMut::new();
    for (start, end) in shed {
        put_slice(&mut out, start);
        put_slice(&mut out, end);
    }
    batch.put(local, &key, &out);
}

fn decode_shed(mut input: Bytes) -> Result<Vec<(Bytes, Bytes)>, Malformed> {
    let mut shed = Vec::new();
    while !input.is_empty() {
        shed.push((take_slice(&mut input)?, take_slice(&mut input)?));
    }
    Ok(shed)
}

/// Forgets a replica.
pub(crate) fn delete_replica(batch: &mut WriteBatch, storage: &Storage, shard: ShardId) {
    for field in [
        REPLICA, APPLIED, MEMBERSHIP, DESCRIPTOR, SEED, INSTALLING, SHED,
    ] {
        batch.delete(storage.keyspace(Tree::Local), &key(shard, field));
    }
}

fn encode_seed(seed: &Seed) -> Bytes {
    use crate::command::put_varint;
    let mut out = BytesMut::with_capacity(32);
    put_varint(&mut out, seed.base.term);
    put_varint(&mut out, seed.base.index);
    match &seed.vote {
        None => out.put_u8(0),
        Some(vote) => {
            out.put_u8(1 + u8::from(vote.committed));
            put_varint(&mut out, vote.term);
            put_varint(&mut out, vote.replica.0);
        }
    }
    out.freeze()
}

fn decode_seed(mut input: Bytes) -> Result<Seed, Malformed> {
    let base = LogId {
        term: take_varint(&mut input)?,
        index: take_varint(&mut input)?,
    };
    let vote = match take_u8(&mut input)? {
        0 => None,
        kind => Some(Vote {
            term: take_varint(&mut input)?,
            replica: ReplicaId(take_varint(&mut input)?),
            committed: kind == 2,
        }),
    };
    Ok(Seed { base, vote })
}

/// Whether a replica of the shard is on record.
pub(crate) fn exists(storage: &Storage, shard: ShardId) -> Result<bool> {
    Ok(storage
        .db
        .get(storage.keyspace(Tree::Local), &key(shard, REPLICA))?
        .is_some())
}

/// The record of one shard's replica.
pub(crate) fn load(storage: &Storage, shard: ShardId) -> Result<Option<ReplicaRecord>> {
    let mut found = load_range(storage, shard, Some(shard))?;
    Ok(found.remove(&shard))
}

/// The records of all replicas.
pub(crate) fn load_all(storage: &Storage) -> Result<BTreeMap<ShardId, ReplicaRecord>> {
    load_range(storage, ShardId(0), None)
}

fn load_range(
    storage: &Storage,
    from: ShardId,
    to: Option<ShardId>,
) -> Result<BTreeMap<ShardId, ReplicaRecord>> {
    let mut records: BTreeMap<ShardId, ReplicaRecord> = BTreeMap::new();
    let mut replicas = BTreeMap::new();
    let snapshot = storage.db.snapshot();
    let upper = to.map(|shard| key(shard, 0xff));
    let mut iter = snapshot.iter(
        storage.keyspace(Tree::Local),
        Bound::Included(&from.0.to_be_bytes()),
        upper
            .as_ref()
            .map_or(Bound::Unbounded, |k| Bound::Included(&k[..])),
    );
    iter.seek_to_first()?;
    while iter.valid() {
        let (shard, field) = match (iter.key().first_chunk::<8>(), iter.key().get(8)) {
            (Some(shard), Some(field)) => (ShardId(u64::from_be_bytes(*shard)), *field),
            _ => return Err(Error::Corrupt("a malformed key in the tree local".into())),
        };
        let value = Bytes::copy_from_slice(iter.value());
        let record = records.entry(shard).or_default();
        let malformed = |error: Malformed| {
            Error::Corrupt(format!(
                "record '{}' of shard {shard}: {error}",
                field as char
            ))
        };
        match field {
            REPLICA => {
                let replica = number(&value, 0).map_err(malformed)?;
                record.replica = ReplicaId(replica);
                replicas.insert(shard, replica);
            }
            APPLIED => {
                record.applied = Some(LogId {
                    term: number(&value, 0).map_err(malformed)?,
                    index: number(&value, 8).map_err(malformed)?,
                });
            }
            MEMBERSHIP => record.membership = decode_membership(value).map_err(malformed)?,
            DESCRIPTOR => {
                record.descriptor = ShardDescriptor::decode(value).map_err(|error| {
                    Error::Corrupt(format!("descriptor of shard {shard}: {error}"))
                })?;
            }
            SEED => record.seed = Some(decode_seed(value).map_err(malformed)?),
            INSTALLING => {
                record.installing = Some(decode_installing(value).map_err(malformed)?);
            }
            SHED => record.shed = decode_shed(value).map_err(malformed)?,
            _ => return Err(Error::Corrupt(format!("unknown record of shard {shard}"))),
        }
        iter.next()?;
    }
    records.retain(|shard, _| replicas.contains_key(shard));
    Ok(records)
}

fn number(value: &[u8], at: usize) -> Result<u64, Malformed> {
    value
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_le_bytes)
        .ok_or(Malformed("too short"))
}
