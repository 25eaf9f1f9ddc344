//! [`Slice`]: bytes that came out of the database, owned by whoever holds them.
//!
//! A slice points into the memory map of a table, into a cached block or into the arena of a memtable and keeps
//! that memory alive by a reference count; reading a value copies nothing. The price is that a small slice can
//! pin a large block: who keeps values for long copies them (`to_vec`).

use crate::memtable::Pinned;
use bytes::Bytes;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

/// Immutable bytes with a shared owner. Dereferences to `[u8]`; cloning is a reference count.
#[derive(Clone)]
pub struct Slice(Owner);

#[derive(Clone)]
enum Owner {
    /// A map or a block.
    Shared(Bytes),
    /// The arena of a memtable.
    Pinned(Pinned),
}

impl Default for Slice {
    fn default() -> Self {
        Self(Owner::Shared(Bytes::new()))
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Owner::Shared(bytes) => bytes,
            Owner::Pinned(pinned) => pinned.as_ref(),
        }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Bytes> for Slice {
    fn from(bytes: Bytes) -> Self {
        Self(Owner::Shared(bytes))
    }
}

impl From<Pinned> for Slice {
    fn from(pinned: Pinned) -> Self {
        Self(Owner::Pinned(pinned))
    }
}

impl From<Slice> for Bytes {
    fn from(slice: Slice) -> Self {
        match slice.0 {
            Owner::Shared(bytes) => bytes,
            Owner::Pinned(pinned) => Bytes::from_owner(pinned),
        }
    }
}

impl PartialEq for Slice {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Slice {}

impl PartialOrd for Slice {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slice {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Slice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialEq<[u8]> for Slice {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<[u8; N]> for Slice {
    fn eq(&self, other: &[u8; N]) -> bool {
        **self == other[..]
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Slice {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == other[..]
    }
}

impl PartialEq<&[u8]> for Slice {
    fn eq(&self, other: &&[u8]) -> bool {
        **self == **other
    }
}

impl PartialEq<Vec<u8>> for Slice {
    fn eq(&self, other: &Vec<u8>) -> bool {
        **self == other[..]
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "b\"{}\"", self.escape_ascii())
    }
}
