//! Iterators.
//!
//! Inside, an [`InternalIterator`] walks entries: every version of every key, in the order of the tree. Memtables
//! and runs of tables are such iterators, and [`MergeIter`] makes one of many. The public [`Iter`] sits on a merge
//! and shows keys: of each the newest version at its sequence number, and none that is deleted.

mod cursor;
mod merge;

pub use cursor::Iter;
pub(crate) use merge::{MergeIter, Source};

use crate::error::Result;
use crate::table::blob::Value;
use crate::types::Trailer;

/// A position among entries. Accessors may be called only while `valid()`; after an error the position is
/// undefined until the next seek.
pub(crate) trait InternalIterator {
    fn valid(&self) -> bool;
    fn seek_to_first(&mut self) -> Result<()>;
    fn seek_to_last(&mut self) -> Result<()>;
    /// To the first entry at or after `(user_key, trailer)`.
    fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()>;
    /// To the last entry at or before `(user_key, trailer)`.
    fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()>;
    fn next(&mut self) -> Result<()>;
    fn prev(&mut self) -> Result<()>;
    fn user_key(&self) -> &[u8];
    fn trailer(&self) -> Trailer;
    /// What the entry has in the place of its value: for one of kind [`Kind::Blob`](crate::types::Kind::Blob) a pointer.
    fn value(&self) -> &[u8];
    /// The value, or where it is, without a copy.
    fn pinned_value(&self) -> Result<Value>;
}
