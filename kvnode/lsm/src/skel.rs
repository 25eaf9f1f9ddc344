//! SKELETON: signatures only, replaced by the engine within minutes.
#![allow(missing_docs, dead_code, unused_variables)]
use crate::*;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
#[derive(Clone)]
pub struct Db;
impl Db {
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, options: Options) -> Result<Db> {
        Err(Error::Closed)
    }
    pub fn keyspace(&self, name: &str) -> Result<KeyspaceId> {
        Err(Error::Closed)
    }
    pub fn write(&self, batch: WriteBatch, options: WriteOptions) -> Result<SeqNo> {
        Err(Error::Closed)
    }
    pub fn get(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<Slice>> {
        Err(Error::Closed)
    }
    pub fn snapshot(&self) -> Snapshot {
        Snapshot
    }
    pub fn flush(&self) -> Result<SeqNo> {
        Err(Error::Closed)
    }
    pub fn flushed_seqno(&self) -> SeqNo {
        0
    }
    pub fn last_seqno(&self) -> SeqNo {
        0
    }
    pub fn on_flush(&self, callback: impl Fn(SeqNo) + Send + Sync + 'static) {}
    pub fn statistics(&self) -> Statistics {
        Statistics::default()
    }
    pub fn close(&self) -> Result<()> {
        Ok(())
    }
    pub fn approximate_size(&self, keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> u64 {
        0
    }
}
#[derive(Clone)]
pub struct Snapshot;
impl Snapshot {
    pub fn get(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<Slice>> {
        Err(Error::Closed)
    }
    pub fn iter(&self, keyspace: KeyspaceId, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Iter {
        Iter
    }
    pub fn seqno(&self) -> SeqNo {
        0
    }
}
pub struct Iter;
impl Iter {
    pub fn seek_to_first(&mut self) -> Result<()> {
        Err(Error::Closed)
    }
    pub fn seek_to_last(&mut self) -> Result<()> {
        Err(Error::Closed)
    }
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        Err(Error::Closed)
    }
    pub fn seek_for_prev(&mut self, key: &[u8]) -> Result<()> {
        Err(Error::Closed)
    }
    pub fn valid(&self) -> bool {
        false
    }
    pub fn next(&mut self) -> Result<()> {
        Err(Error::Closed)
    }
    pub fn prev(&mut self) -> Result<()> {
        Err(Error::Closed)
    }
    pub fn key(&self) -> &[u8] {
        &[]
    }
    pub fn value(&self) -> &[u8] {
        &[]
    }
    pub fn value_slice(&self) -> Slice {
        Slice::default()
    }
}
