//! The small words of the engine: sequence numbers, keyspace ids, kinds of entries, and the trailer that packs
//! the last two into the order of the tree.
//!
//! Every operation of a batch takes one sequence number, so a later operation of a batch shadows an earlier one
//! on the same key. Entries sort by user key ascending, then by [`Trailer`] *descending*: the newest version of a
//! key comes first, and a reader at sequence number `s` seeks to `(key, Trailer::at(s))` and takes what it finds
//! (the order of LevelDB's internal keys).

use std::cmp::Ordering;

/// Position of an operation in the history of one database: 0 is "nothing written yet".
pub type SeqNo = u64;
/// The last one: a [`Trailer`] has 62 bits for it.
pub(crate) const SEQNO_MAX: SeqNo = u64::MAX >> 2;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 64 * 1024;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest encoded batch, in bytes.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// A keyspace (a tree of its own, sharing log and memory with its siblings) of one open [`Db`](crate::Db).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyspaceId(pub(crate) u32);

impl KeyspaceId {
    /// Dense index, stable on disk: keyspaces are numbered from 0 in the order of their creation.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an entry says about its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The key is absent from this sequence number on.
    Delete = 0,
    /// The key has this value from this sequence number on.
    Put = 1,
    /// All keys from this one up to, and not including, another are absent from this sequence number on. In batches
    /// and logs only: memtables and tables keep range deletes apart from their entries.
    DeleteRange = 2,
    /// As [`Kind::Put`], but the value lies in a blob file, and in its place a pointer. In tables only.
    Blob = 3,
}

/// Sequence number and kind in one word: `seqno << 2 | kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Trailer(pub u64);

impl Trailer {
    /// Sorts before every entry of the same key.
    pub const NEWEST: Self = Self(u64::MAX);
    /// Sorts after every entry of the same key.
    pub const OLDEST: Self = Self(0);

    pub fn new(seqno: SeqNo, kind: Kind) -> Self {
        Self(seqno << 2 | kind as u64)
    }

    /// Where a reader at `seqno` starts: sorts before all entries of that and older sequence numbers.
    pub fn at(seqno: SeqNo) -> Self {
        Self(seqno << 2 | 3)
    }

    pub fn seqno(self) -> SeqNo {
        self.0 >> 2
    }

    pub fn is_delete(self) -> bool {
        self.0 & 3 == Kind::Delete as u64
    }

    pub fn is_blob(self) -> bool {
        self.0 & 3 == Kind::Blob as u64
    }

    /// The same kind with another sequence number.
    pub fn at_seqno(self, seqno: SeqNo) -> Self {
        Self(seqno << 2 | self.0 & 3)
    }

    /// The same sequence number with another kind.
    pub fn of_kind(self, kind: Kind) -> Self {
        Self::new(self.seqno(), kind)
    }

    /// True if a table may hold an entry of this kind.
    pub fn is_known(self) -> bool {
        self.0 & 3 != Kind::DeleteRange as u64
    }
}

/// The order of the tree.
pub(crate) fn compare(left: (&[u8], Trailer), right: (&[u8], Trailer)) -> Ordering {
    left.0.cmp(right.0).then_with(|| right.1.0.cmp(&left.1.0))
}
