//! The receiver's side: messages back into a cut, in a file, or nothing.

use super::ShardCut;
use super::chunks::checksum;
use super::spool::{Spool, Writer, tree_of};
use crate::command::{Malformed, take_u8, take_varint};
use crate::consensus::bounds::Bounds;
use crate::consensus::types::{SnapshotMeta, decode_membership, raft_log_id};
use crate::raft_log::LogId;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_proto::raft::v1 as proto;
use lineradb_proto::shard::v1::ShardDescriptor;
use prost::Message;
use proto::snapshot_chunk::Part;
use std::sync::Arc;

/// A snapshot that is being received.
pub struct Assembly {
    meta: SnapshotMeta,
    bounds: Bounds,
    descriptor: ShardDescriptor,
    rows: Writer,
    complete: bool,
}

impl Assembly {
    /// Begins with the header, and a file for the rows.
    ///
    /// # Errors
    /// When it does not decode, or there is no room.
    pub fn begin(header: &proto::SnapshotHeader, spool: &Arc<Spool>) -> Result<Self> {
        let descriptor = ShardDescriptor::decode(header.shard_state.clone())
            .map_err(|error| Error::Corrupt(format!("state of a snapshot: {error}")))?;
        if descriptor.shard_id != header.group_id {
            return Err(Error::Corrupt("a snapshot of another shard".into()));
        }
        let meta = decode_meta(header.meta.clone())
            .map_err(|error| Error::Corrupt(format!("meta of a snapshot: {error}")))?;
        Ok(Assembly {
            meta,
            bounds: Bounds::of(&descriptor),
            descriptor,
            rows: spool.create()?,
            complete: false,
        })
    }

    /// The shard as the header tells it.
    pub fn descriptor(&self) -> &ShardDescriptor {
        &self.descriptor
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// When a checksum or the count of rows is wrong, a key is another shard's,
    /// or messages are out of order.
    pub fn add(&mut self, chunk: proto::SnapshotChunk) -> Result<()> {
        if self.complete {
            return Err(Error::Corrupt("a snapshot goes on after its end".into()));
        }
        match chunk.part {
            Some(Part::Rows(rows)) => {
                if rows.keys.len() != rows.values.len() || checksum(&rows) != rows.checksum {
                    return Err(Error::Corrupt("checksum of a snapshot's chunk".into()));
                }
                if tree_of(rows.keyspace).is_none() {
                    return Err(Error::Corrupt("unknown tree in a snapshot".into()));
                }
                // Here only the stream breaks; later it would stop the replica.
                if !rows.keys.iter().all(|key| self.bounds.contains(key)) {
                    return Err(Error::Corrupt(
                        "a snapshot with a key of another shard".into(),
                    ));
                }
                self.rows.put(&rows)
            }
            Some(Part::End(end)) => {
                if end.rows != self.rows.rows() {
                    return Err(Error::Corrupt(format!(
                        "a snapshot of {} rows arrived with {}",
                        end.rows,
                        self.rows.rows()
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

    /// The cut, when all of it has come. It is durable.
    ///
    /// # Errors
    /// When the stream ended before its end, or the file cannot be synced.
    pub fn finish(self) -> Result<(SnapshotMeta, ShardCut)> {
        if !self.complete {
            return Err(Error::Corrupt("a snapshot ends early".into()));
        }
        let rows = self.rows.seal()?;
        Ok((self.meta, ShardCut::incoming(rows, self.descriptor)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::bounds::{local_prefix, range_start};
    use crate::consensus::types::StoredMembership;
    use bytes::{BufMut, BytesMut};
    use lineradb_common::ShardId;
    use lineradb_lsm::SimVfs;
    use lineradb_proto::shard::v1::Span;
    use std::path::Path;

    #[test]
    fn keys_of_another_shard_are_refused_as_they_arrive() {
        let spool = Spool::open(Arc::new(SimVfs::new()), Path::new("/snapshots")).unwrap();
        let descriptor = ShardDescriptor {
            shard_id: 1,
            span: Some(Span {
                start: Bytes::from_static(b"b"),
                end: Bytes::from_static(b"m"),
            }),
            ..ShardDescriptor::default()
        };
        let mut meta = BytesMut::from(&[1, 5, 9][..]);
        meta.put_slice(&crate::consensus::types::encode_membership(
            &StoredMembership::default(),
        ));
        let header = proto::SnapshotHeader {
            group_id: 1,
            shard_state: descriptor.encode_to_vec().into(),
            meta: meta.freeze(),
            ..proto::SnapshotHeader::default()
        };
        let add = |key: Bytes| {
            let mut rows = proto::SnapshotRows {
                keyspace: 0,
                keys: vec![key],
                values: vec![Bytes::new()],
                checksum: 0,
            };
            rows.checksum = checksum(&rows);
            let mut assembly = Assembly::begin(&header, &spool).unwrap();
            assembly.add(proto::SnapshotChunk {
                part: Some(Part::Rows(rows)),
            })
        };
        add(range_start(b"b")).unwrap();
        add(local_prefix(ShardId(1))).unwrap();
        for key in [
            range_start(b"a"),
            range_start(b"m"),
            local_prefix(ShardId(2)),
        ] {
            assert!(matches!(add(key), Err(Error::Corrupt(_))));
        }
    }
}
