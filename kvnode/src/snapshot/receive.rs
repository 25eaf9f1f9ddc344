//! The receiver's side: messages back into a cut, or nothing.

use super::chunks::checksum;
use super::{Row, ShardCut};
use crate::command::{Malformed, Tree, take_u8, take_varint};
use crate::consensus::types::{SnapshotMeta, decode_membership, raft_log_id};
use crate::raft_log::LogId;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_proto::raft::v1 as proto;
use lineradb_proto::shard::v1::ShardDescriptor;
use prost::Message;
use proto::snapshot_chunk::Part;

/// A snapshot that is being received.
pub struct Assembly {
    meta: SnapshotMeta,
    descriptor: ShardDescriptor,
    rows: Vec<Row>,
    complete: bool,
}

impl Assembly {
    /// Begins with the header.
    ///
    /// # Errors
    /// When it does not decode.
    pub fn begin(header: &proto::SnapshotHeader) -> Result<Self> {
        let descriptor = ShardDescriptor::decode(header.shard_state.clone())
            .map_err(|error| Error::Corrupt(format!("state of a snapshot: {error}")))?;
        if descriptor.shard_id != header.group_id {
            return Err(Error::Corrupt("a snapshot of another shard".into()));
        }
        let meta = decode_meta(header.meta.clone())
            .map_err(|error| Error::Corrupt(format!("meta of a snapshot: {error}")))?;
        Ok(Assembly {
            meta,
            descriptor,
            rows: Vec::new(),
            complete: false,
        })
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// When a checksum or the count of rows is wrong, or messages are out of
    /// order.
    pub fn add(&mut self, chunk: proto::SnapshotChunk) -> Result<()> {
        if self.complete {
            return Err(Error::Corrupt("a snapshot goes on after its end".into()));
        }
        match chunk.part {
            Some(Part::Rows(rows)) => {
                if rows.keys.len() != rows.values.len() || checksum(&rows) != rows.checksum {
                    return Err(Error::Corrupt("checksum of a snapshot's chunk".into()));
                }
                let tree = u8::try_from(rows.keyspace)
                    .ok()
                    .and_then(Tree::from_number)
                    .filter(|tree| *tree != Tree::Local)
                    .ok_or_else(|| Error::Corrupt("unknown tree in a snapshot".into()))?;
                let pairs = rows.keys.into_iter().zip(rows.values);
                self.rows
                    .extend(pairs.map(|(key, value)| Row { tree, key, value }));
                Ok(())
            }
            Some(Part::End(end)) => {
                if end.rows != self.rows.len() as u64 {
                    return Err(Error::Corrupt(format!(
                        "a snapshot of {} rows arrived with {}",
                        end.rows,
                        self.rows.len()
                    )));
                }
                self.complete = true;
                Ok(())
            }
            Some(Part::Header(_)) | None => Err(Error::Corrupt(
                "a snapshot's messages are out of order".into(),
            )),
        }
    }

    /// The cut, when all of it has come.
    ///
    /// # Errors
    /// When the stream ended before its end.
    pub fn finish(self) -> Result<(SnapshotMeta, ShardCut)> {
        if !self.complete {
            return Err(Error::Corrupt("a snapshot ends early".into()));
        }
        Ok((self.meta, ShardCut::incoming(self.rows, self.descriptor)))
    }
}

fn decode_meta(mut input: Bytes) -> Result<SnapshotMeta, Malformed> {
    if take_u8(&mut input)? != 1 {
        return Err(Malformed("unknown format version"));
    }
    let last = LogId {
        term: take_varint(&mut input)?,
        index: take_varint(&mut input)?,
    };
    Ok(SnapshotMeta {
        last_log_id: Some(raft_log_id(last)),
        last_membership: decode_membership(input)?,
    })
}
