//! A store in memory for tests: sorted maps, frozen by cloning.

use super::{Cursor, Reader, Result, Store};
use crate::command::{Expect, Op, Tree, value_hash};
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

type Map = BTreeMap<Bytes, Bytes>;

/// The trees of a test.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<RwLock<MemoryReader>>);

impl MemoryStore {
    /// Writes, atomically.
    pub fn apply(&self, ops: &[Op]) {
        let mut state = self.0.write();
        for op in ops {
            let tree = Arc::make_mut(&mut state.trees[usize::from(op.tree.number())]);
            match &op.value {
                Some(value) => tree.insert(op.key.clone(), value.clone()),
                None => tree.remove(&op.key),
            };
        }
    }

    /// Whether all of these hold.
    pub fn holds(&self, expect: &[Expect]) -> bool {
        let state = self.0.read();
        expect.iter().all(|e| {
            let found = state.trees[usize::from(e.tree.number())].get(&e.key);
            found.map(|v| value_hash(v)) == e.hash
        })
    }
}

impl Store for MemoryStore {
    type Snapshot = MemoryReader;

    fn snapshot(&self) -> MemoryReader {
        self.0.read().clone()
    }

    fn approximate_size(&self, _: Tree, _: &[u8], _: &[u8]) -> u64 {
        0
    }
}

/// A frozen state.
#[derive(Clone, Default)]
pub struct MemoryReader {
    trees: [Arc<Map>; 4],
}

impl Reader for MemoryReader {
    type Cursor = MemoryCursor;

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.trees[usize::from(tree.number())].get(key).cloned())
    }

    fn cursor(&self, tree: Tree, lower: &[u8], upper: &[u8]) -> MemoryCursor {
        MemoryCursor {
            map: self.trees[usize::from(tree.number())].clone(),
            lower: Bytes::copy_from_slice(lower),
            upper: Bytes::copy_from_slice(upper),
            at: None,
            patient: false,
            paused: false,
        }
    }

    /// Pauses before each key that it finds.
    fn patient_cursor(&self, tree: Tree, lower: &[u8], upper: &[u8]) -> MemoryCursor {
        MemoryCursor {
            patient: true,
            ..self.cursor(tree, lower, upper)
        }
    }
}

/// A position in one tree.
pub struct MemoryCursor {
    map: Arc<Map>,
    lower: Bytes,
    upper: Bytes,
    at: Option<(Bytes, Bytes)>,
    patient: bool,
    paused: bool,
}

impl MemoryCursor {
    fn forward(&mut self, from: Bound<&[u8]>) {
        let bounds = (from, Bound::Unbounded);
        let found = self.map.range::<[u8], _>(bounds).next();
        self.at = found
            .filter(|(k, _)| **k < self.upper)
            .map(|(k, v)| (k.clone(), v.clone()));
        self.paused = self.patient && self.at.is_some();
    }

    fn backward(&mut self, to: Bound<&[u8]>) {
        let bounds = (Bound::Unbounded, to);
        let found = self.map.range::<[u8], _>(bounds).next_back();
        self.at = found
            .filter(|(k, _)| **k >= self.lower)
            .map(|(k, v)| (k.clone(), v.clone()));
        self.paused = self.patient && self.at.is_some();
    }

    fn position(&self) -> &(Bytes, Bytes) {
        self.at.as_ref().expect("used only while valid")
    }
}

impl Cursor for MemoryCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        let lower = self.lower.clone();
        self.forward(Bound::Included(&lower));
        Ok(())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        let upper = self.upper.clone();
        self.backward(Bound::Excluded(&upper));
        Ok(())
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        let from = self.lower.clone();
        self.forward(Bound::Included(from.as_ref().max(key)));
        Ok(())
    }
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<()> {
        if key >= self.upper.as_ref() {
            return self.seek_to_last();
        }
        self.backward(Bound::Included(key));
        Ok(())
    }
    fn next(&mut self) -> Result<()> {
        let key = self.position().0.clone();
        self.forward(Bound::Excluded(&key));
        Ok(())
    }
    fn prev(&mut self) -> Result<()> {
        let key = self.position().0.clone();
        self.backward(Bound::Excluded(&key));
        Ok(())
    }
    fn valid(&self) -> bool {
        self.at.is_some() && !self.paused
    }
    fn paused_at(&self) -> Option<&[u8]> {
        self.paused.then(|| self.position().0.as_ref())
    }
    fn resume(&mut self) -> Result<()> {
        self.paused = false;
        Ok(())
    }
    fn key(&self) -> &[u8] {
        &self.position().0
    }
    fn value(&self) -> Bytes {
        self.position().1.clone()
    }
}
