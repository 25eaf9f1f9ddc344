//! What an entry of a shard's log says.
//!
//! A command is evaluated by the leader of one term against one version of the
//! shard, and names both: apply rejects it when either has changed by the time
//! its turn comes (PROTOCOLS C2), and when a value that it was evaluated on is
//! no longer there (`expect`, X3). Rejection is a verdict, the same on every
//! replica, and changes nothing but the applied index.
//!
//! The bytes are our own: a version byte, then fields in a fixed order with
//! little-endian varints. They are encoded once by the proposer and travel
//! unchanged through the log, the wire and apply, where the fields are slices
//! of the entry (nothing is copied).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lineradb_common::{NodeId, ReplicaId, ShardId};

/// Format of an encoded command; anything else is refused.
const FORMAT: u8 = 1;

/// A tree of the node's storage engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tree {
    /// Committed versions: addressable key and inverted timestamp.
    Data,
    /// Provisional writes: addressable key.
    Intent,
    /// Transaction records.
    Txn,
    /// What belongs to this replica alone.
    Local,
}

impl Tree {
    /// The trees that are part of a shard and replicated with it.
    pub const REPLICATED: [Tree; 3] = [Tree::Data, Tree::Intent, Tree::Txn];
    /// All trees, in the order in which the engine knows them.
    pub const ALL: [Tree; 4] = [Tree::Data, Tree::Intent, Tree::Txn, Tree::Local];

    /// The name of the engine's keyspace.
    pub const fn name(self) -> &'static str {
        match self {
            Tree::Data => "data",
            Tree::Intent => "intent",
            Tree::Txn => "txn",
            Tree::Local => "local",
        }
    }

    /// The number that stands for it in bytes.
    pub const fn number(self) -> u8 {
        match self {
            Tree::Data => 0,
            Tree::Intent => 1,
            Tree::Txn => 2,
            Tree::Local => 3,
        }
    }

    /// The tree of a number.
    pub const fn from_number(number: u8) -> Option<Tree> {
        match number {
            0 => Some(Tree::Data),
            1 => Some(Tree::Intent),
            2 => Some(Tree::Txn),
            3 => Some(Tree::Local),
            _ => None,
        }
    }
}

/// One write of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Where.
    pub tree: Tree,
    /// The key, as the tree stores it.
    pub key: Bytes,
    /// What is to stand there; `None` deletes.
    pub value: Option<Bytes>,
}

/// A value on which the command was evaluated: a compare-and-set at apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Where.
    pub tree: Tree,
    /// The key, as the tree stores it.
    pub key: Bytes,
    /// [`value_hash`] of the value that must be there; `None`: nothing may be.
    pub hash: Option<u64>,
}

/// The hash by which [`Expect`] names a value.
pub fn value_hash(value: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(value)
}

/// A replica as commands, descriptors and membership name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Unique in its group for ever (PROTOCOLS C3).
    pub id: ReplicaId,
    /// Where its node listened when this was written; the address book knows
    /// better.
    pub address: String,
}

impl Replica {
    /// The node on which it lives.
    pub fn node(&self) -> NodeId {
        self.id.node()
    }
}

/// What the command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Writes, all or nothing.
    Write {
        /// In order; a later one wins over an earlier one on the same key.
        ops: Vec<Op>,
        /// What must still hold.
        expect: Vec<Expect>,
    },
    /// Gives `[split_key, end)` to a new shard with replicas on the same nodes.
    Split {
        /// Not the start of the shard, and inside it.
        split_key: Bytes,
        /// The right half.
        new_shard_id: ShardId,
        /// One for each replica of the shard, on the same nodes.
        child_replicas: Vec<Replica>,
    },
}

/// What a log entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The term of the leader that evaluated it (C2).
    pub term: u64,
    /// The shard version for which it was evaluated.
    pub shard_version: u64,
    /// What to do.
    pub body: Body,
}

/// What became of a command: the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done, and visible.
    Applied,
    /// Nothing was changed.
    Rejected(Rejection),
}

/// Why nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It was evaluated in another term than the one in which it was logged.
    StaleTerm,
    /// The shard has another version, or a key is outside its range.
    ShardChanged,
    /// A value on which it was evaluated is no longer there.
    ExpectFailed,
    /// A split waits until no schema version is being written (S2).
    SchemaIntent,
}

/// Bytes that are not a command.
#[derive(Debug, thiserror::Error)]
#[error("not a command: {0}")]
pub struct Malformed(pub &'static str);

impl Command {
    /// The bytes that are logged.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len_hint());
        out.put_u8(FORMAT);
        put_varint(&mut out, self.term);
        put_varint(&mut out, self.shard_version);
        match &self.body {
            Body::Write { ops, expect } => {
                out.put_u8(1);
                put_varint(&mut out, ops.len() as u64);
                for op in ops {
                    out.put_u8(op.tree.number() | if op.value.is_some() { 0x80 } else { 0 });
                    put_slice(&mut out, &op.key);
                    if let Some(value) = &op.value {
                        put_slice(&mut out, value);
                    }
                }
                put_varint(&mut out, expect.len() as u64);
                for expect in expect {
                    out.put_u8(expect.tree.number() | if expect.hash.is_some() { 0x80 } else { 0 });
                    put_slice(&mut out, &expect.key);
                    if let Some(hash) = expect.hash {
                        out.put_u64_le(hash);
                    }
                }
            }
            Body::Split {
                split_key,
                new_shard_id,
                child_replicas,
            } => {
                out.put_u8(2);
                put_slice(&mut out, split_key);
                put_varint(&mut out, new_shard_id.0);
                put_varint(&mut out, child_replicas.len() as u64);
                for replica in child_replicas {
                    put_varint(&mut out, replica.id.0);
                    put_slice(&mut out, replica.address.as_bytes());
                }
            }
        }
        out.freeze()
    }

    /// Reads a command; its keys and values are slices of `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one command of a known format.
    pub fn decode(mut bytes: Bytes) -> Result<Command, Malformed> {
        let input = &mut bytes;
        if take_u8(input)? != FORMAT {
            return Err(Malformed("unknown format version"));
        }
        let term = take_varint(input)?;
        let shard_version = take_varint(input)?;
        let body = match take_u8(input)? {
            1 => take_write(input)?,
            2 => take_split(input)?,
            _ => return Err(Malformed("unknown kind")),
        };
        if input.has_remaining() {
            return Err(Malformed("trailing bytes"));
        }
        Ok(Command {
            term,
            shard_version,
            body,
        })
    }

    /// About how many bytes the encoding takes.
    pub fn encoded_len_hint(&self) -> usize {
        match &self.body {
            Body::Write { ops, expect } => {
                let ops: usize = ops
                    .iter()
                    .map(|op| op.key.len() + op.value.as_ref().map_or(0, Bytes::len) + 8)
                    .sum();
                let expect: usize = expect.iter().map(|e| e.key.len() + 12).sum();
                32 + ops + expect
            }
            Body::Split { split_key, .. } => 256 + split_key.len(),
        }
    }
}

fn take_write(input: &mut Bytes) -> Result<Body, Malformed> {
    let count = take_count(input)?;
    let mut ops = Vec::with_capacity(count);
    for _ in 0..count {
        let head = take_u8(input)?;
        let tree = Tree::from_number(head & 0x7f).ok_or(Malformed("unknown tree"))?;
        let key = take_slice(input)?;
        let value = match head & 0x80 {
            0 => None,
            _ => Some(take_slice(input)?),
        };
        ops.push(Op { tree, key, value });
    }
    let count = take_count(input)?;
    let mut expect = Vec::with_capacity(count);
    for _ in 0..count {
        let head = take_u8(input)?;
        let tree = Tree::from_number(head & 0x7f).ok_or(Malformed("unknown tree"))?;
        let key = take_slice(input)?;
        let hash = match head & 0x80 {
            0 => None,
            _ if input.remaining() < 8 => return Err(Malformed("ends inside a hash")),
            _ => Some(input.get_u64_le()),
        };
        expect.push(Expect { tree, key, hash });
    }
    Ok(Body::Write { ops, expect })
}

fn take_split(input: &mut Bytes) -> Result<Body, Malformed> {
    let split_key = take_slice(input)?;
    let new_shard_id = ShardId(take_varint(input)?);
    let count = take_count(input)?;
    let mut child_replicas = Vec::with_capacity(count);
    for _ in 0..count {
        let id = ReplicaId(take_varint(input)?);
        let address = String::from_utf8(take_slice(input)?.to_vec())
            .map_err(|_| Malformed("address is not text"))?;
        child_replicas.push(Replica { id, address });
    }
    Ok(Body::Split {
        split_key,
        new_shard_id,
        child_replicas,
    })
}

pub(crate) fn put_varint(out: &mut BytesMut, mut v: u64) {
    while v >= 0x80 {
        out.put_u8(v as u8 | 0x80);
        v >>= 7;
    }
    out.put_u8(v as u8);
}

pub(crate) fn put_slice(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

pub(crate) fn take_u8(input: &mut Bytes) -> Result<u8, Malformed> {
    if !input.has_remaining() {
        return Err(Malformed("ends early"));
    }
    Ok(input.get_u8())
}

pub(crate) fn take_varint(input: &mut Bytes) -> Result<u64, Malformed> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_u8(input)?;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            break;
        }
        v |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(v);
        }
    }
    Err(Malformed("number too long"))
}

pub(crate) fn take_slice(input: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = take_varint(input)?;
    if length > input.remaining() as u64 {
        return Err(Malformed("ends inside a byte string"));
    }
    Ok(input.split_to(length as usize))
}

/// A number of items; each takes at least one byte, so a larger one is a lie
/// that must not reserve memory.
pub(crate) fn take_count(input: &mut Bytes) -> Result<usize, Malformed> {
    let count = take_varint(input)?;
    if count > input.remaining() as u64 {
        return Err(Malformed("more items than bytes"));
    }
    Ok(count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn tree() -> impl Strategy<Value = Tree> {
        (0u8..4).prop_filter_map("tree", Tree::from_number)
    }

    fn body() -> impl Strategy<Value = Body> {
        let op = (tree(), bytes(), proptest::option::of(bytes()))
            .prop_map(|(tree, key, value)| Op { tree, key, value });
        let expect = (tree(), bytes(), any::<Option<u64>>()).prop_map(|(tree, key, hash)| Expect {
            tree,
            key,
            hash,
        });
        let replica = (any::<u64>(), "[a-z:0-9]{0,20}").prop_map(|(id, address)| Replica {
            id: ReplicaId(id),
            address,
        });
        prop_oneof![
            (
                proptest::collection::vec(op, 0..8),
                proptest::collection::vec(expect, 0..4)
            )
                .prop_map(|(ops, expect)| Body::Write { ops, expect }),
            (
                bytes(),
                any::<u64>(),
                proptest::collection::vec(replica, 0..4)
            )
                .prop_map(|(split_key, shard, child_replicas)| Body::Split {
                    split_key,
                    new_shard_id: ShardId(shard),
                    child_replicas
                }),
        ]
    }

    proptest! {
        #[test]
        fn commands_come_back(term: u64, shard_version: u64, body in body()) {
            let command = Command { term, shard_version, body };
            prop_assert_eq!(Command::decode(command.encode()).unwrap(), command);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::decode(Bytes::from(bytes));
        }

        #[test]
        fn a_cut_command_is_refused(body in body(), cut in 1usize..20) {
            let bytes = Command { term: 3, shard_version: 1, body }.encode();
            prop_assume!(cut < bytes.len());
            prop_assert!(Command::decode(bytes.slice(..bytes.len() - cut)).is_err());
        }
    }
}
