//! Small readers and writers shared by the value formats.

use super::{Error, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use lineradb_common::{Timestamp, TxnId};

pub(super) fn put_slice(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Reads fields from stored bytes; every reader fails instead of panicking.
pub(super) struct Fields {
    rest: Bytes,
    what: &'static str,
}

impl Fields {
    pub fn new(bytes: Bytes, what: &'static str) -> Self {
        Fields { rest: bytes, what }
    }

    fn need(&self, length: usize) -> Result<()> {
        if self.rest.len() < length {
            return Err(Error::corrupt(format!("{} ends early", self.what)));
        }
        Ok(())
    }

    pub fn u8(&mut self) -> Result<u8> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.need(8)?;
        Ok(self.rest.get_u64())
    }

    pub fn timestamp(&mut self) -> Result<Timestamp> {
        self.u64().map(Timestamp::from_raw)
    }

    pub fn txn_id(&mut self) -> Result<TxnId> {
        self.need(16)?;
        let mut id = [0; 16];
        self.rest.copy_to_slice(&mut id);
        Ok(TxnId(id))
    }

    pub fn slice(&mut self) -> Result<Bytes> {
        let length = self.u32()? as usize;
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    /// A number of items that take at least one byte each.
    pub fn count(&mut self) -> Result<usize> {
        let count = self.u32()? as usize;
        self.need(count)?;
        Ok(count)
    }

    pub fn rest(self) -> Bytes {
        self.rest
    }

    pub fn unknown<T>(&self) -> Result<T> {
        Err(Error::corrupt(format!(
            "{} has an unknown format",
            self.what
        )))
    }
}
