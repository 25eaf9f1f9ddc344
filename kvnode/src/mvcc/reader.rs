//! What reading needs from a store: point reads and ordered cursors over one
//! frozen state.

use super::{Result, keys};
use crate::command::Tree;
use bytes::Bytes;
use lineradb_common::Timestamp;

/// Where snapshots come from.
pub trait Store: Send + Sync + 'static {
    /// A frozen state.
    type Snapshot: Reader;

    /// The state that holds everything applied so far.
    fn snapshot(&self) -> Self::Snapshot;

    /// About how many bytes a range of a tree takes; 0 when it is not known.
    fn approximate_size(&self, tree: Tree, start: &[u8], end: &[u8]) -> u64;
}

/// A frozen state of the store.
pub trait Reader: Clone + Send + Sync + 'static {
    /// Walks a tree in order.
    type Cursor: Cursor;

    /// The value of a key.
    ///
    /// # Errors
    /// When the store fails; the others alike.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>>;

    /// A cursor over `[lower, upper)`, not positioned yet.
    fn cursor(&self, tree: Tree, lower: &[u8], upper: &[u8]) -> Self::Cursor;

    /// The same, but a move over many deleted keys pauses ([`Cursor::paused_at`]).
    fn patient_cursor(&self, tree: Tree, lower: &[u8], upper: &[u8]) -> Self::Cursor;

    /// A cursor over the versions of an addressable key at or below a timestamp,
    /// newest first, not positioned yet.
    fn versions(&self, addressable: &[u8], at: Timestamp) -> Self::Cursor {
        let first = keys::version_key(addressable, at);
        self.cursor(Tree::Data, &first, &keys::versions_end(addressable))
    }

    /// A cursor over `[lower, upper)` of the versions, not positioned yet. What it gives is right for timestamps in
    /// `(after, to]`; others may be left out, and collected ones may come.
    fn written_between(
        &self,
        lower: &[u8],
        upper: &[u8],
        after: Timestamp,
        to: Timestamp,
    ) -> Self::Cursor {
        let _ = (after, to);
        self.cursor(Tree::Data, lower, upper)
    }
}

/// A position in a tree. It owns what it reads.
pub trait Cursor: Send + 'static {
    /// To the first key of the range.
    ///
    /// # Errors
    /// When the store fails; the other moves alike.
    fn seek_to_first(&mut self) -> Result<()>;
    /// To the last key of the range.
    ///
    /// # Errors
    /// When the store fails.
    fn seek_to_last(&mut self) -> Result<()>;
    /// To the first key that is not below `key`.
    ///
    /// # Errors
    /// When the store fails.
    fn seek(&mut self, key: &[u8]) -> Result<()>;
    /// To the last key that is not above `key`.
    ///
    /// # Errors
    /// When the store fails.
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<()>;
    /// Forward by one. Only while valid.
    ///
    /// # Errors
    /// When the store fails.
    fn next(&mut self) -> Result<()>;
    /// Back by one. Only while valid.
    ///
    /// # Errors
    /// When the store fails.
    fn prev(&mut self) -> Result<()>;
    /// True while it stands on a key of the range.
    fn valid(&self) -> bool;
    /// Where a patient cursor has paused, not being valid: it has found no key
    /// before this one (after this one, going back).
    fn paused_at(&self) -> Option<&[u8]>;
    /// Goes on with a move that has paused.
    ///
    /// # Errors
    /// When the store fails.
    fn resume(&mut self) -> Result<()>;
    /// The key. Only while valid.
    fn key(&self) -> &[u8];
    /// The value. Only while valid.
    fn value(&self) -> Bytes;
}
