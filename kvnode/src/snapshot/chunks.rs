//! The sender's side: a cut as a sequence of messages.

use super::{Row, ShardCut};
use crate::consensus::types::{SnapshotMeta, encode_membership, log_id_from};
use crate::raft_log::Vote;
use crate::{Error, Result};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{ReplicaId, ShardId, spawn};
use lineradb_proto::raft::v1 as proto;
use prost::Message;
use proto::snapshot_chunk::Part;
use tokio::sync::mpsc;

/// About how many bytes of rows a chunk holds.
pub const CHUNK_BYTES: usize = 512 << 10;
/// Chunks read ahead of the network.
const AHEAD: usize = 4;

/// Reads the cut on a blocking thread, chunk by chunk, as fast as they are
/// taken. The stream ends early, with an error, when the engine fails.
pub fn chunks(
    group: ShardId,
    from: ReplicaId,
    to: ReplicaId,
    vote: Vote,
    meta: &SnapshotMeta,
    cut: ShardCut,
) -> mpsc::Receiver<Result<proto::SnapshotChunk>> {
    let (tx, rx) = mpsc::channel(AHEAD);
    let header = proto::SnapshotHeader {
        group_id: group.0,
        to_replica: to.0,
        from_replica: from.0,
        vote: Some(crate::transport::codec::vote_to_proto(vote)),
        meta: encode_meta(meta),
        shard_state: cut.descriptor().encode_to_vec().into(),
    };
    spawn::task("send snapshot", async move {
        let read = spawn::blocking(move || send(header, cut, &tx));
        match read.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                // Usual while the receiver's replica is not born yet.
                tracing::debug!(%group, %error, "a snapshot was not sent in full");
            }
            Err(error) => tracing::warn!(%group, %error, "reading a snapshot failed"),
        }
    });
    rx
}

fn send(
    header: proto::SnapshotHeader,
    cut: ShardCut,
    tx: &mpsc::Sender<Result<proto::SnapshotChunk>>,
) -> Result<()> {
    let put = |part: Part| {
        tx.blocking_send(Ok(proto::SnapshotChunk { part: Some(part) }))
            .map_err(|_| Error::Unavailable("the receiver of the snapshot is gone".into()))
    };
    put(Part::Header(header))?;
    let mut total = 0;
    let mut gathered = Gathered::default();
    let read = cut.for_each(|row: Row| {
        total += 1;
        match gathered.add(row) {
            Some(full) => put(Part::Rows(full)),
            None => Ok(()),
        }
    });
    if let Err(error) = read {
        let text = error.to_string();
        // The receiver must see a broken stream, not a short one.
        let _ = tx.blocking_send(Err(error));
        return Err(Error::Unavailable(text));
    }
    if let Some(rest) = gathered.rest() {
        put(Part::Rows(rest))?;
    }
    put(Part::End(proto::SnapshotEnd { rows: total }))
}

/// Rows on their way into a chunk.
#[derive(Default)]
pub(super) struct Gathered {
    chunk: proto::SnapshotRows,
    bytes: usize,
}

impl Gathered {
    /// Takes a row; gives the chunk before it when that is full.
    pub(super) fn add(&mut self, row: Row) -> Option<proto::SnapshotRows> {
        let keyspace = u32::from(row.tree.number());
        let ends = self.bytes > CHUNK_BYTES || self.chunk.keyspace != keyspace;
        let full = if ends { self.rest() } else { None };
        self.chunk.keyspace = keyspace;
        self.bytes += row.key.len() + row.value.len();
        self.chunk.keys.push(row.key);
        self.chunk.values.push(row.value);
        full
    }

    /// What has gathered since the last full chunk.
    pub(super) fn rest(&mut self) -> Option<proto::SnapshotRows> {
        self.bytes = 0;
        let chunk = std::mem::take(&mut self.chunk);
        (!chunk.keys.is_empty()).then(|| sealed(chunk))
    }
}

fn sealed(mut rows: proto::SnapshotRows) -> proto::SnapshotRows {
    rows.checksum = checksum(&rows);
    rows
}

/// Over lengths, keys and values in order.
pub(super) fn checksum(rows: &proto::SnapshotRows) -> u32 {
    let mut crc = 0;
    for (key, value) in rows.keys.iter().zip(&rows.values) {
        crc = crc32c::crc32c_append(crc, &(key.len() as u32).to_le_bytes());
        crc = crc32c::crc32c_append(crc, key);
        crc = crc32c::crc32c_append(crc, &(value.len() as u32).to_le_bytes());
        crc = crc32c::crc32c_append(crc, value);
    }
    crc
}

/// Position and membership, in our codec: a version byte first.
fn encode_meta(meta: &SnapshotMeta) -> Bytes {
    use crate::command::put_varint;
    let mut out = BytesMut::new();
    out.put_u8(1);
    let last = meta.last_log_id.as_ref().map(log_id_from);
    put_varint(&mut out, last.map_or(0, |id| id.term));
    put_varint(&mut out, last.map_or(0, |id| id.index));
    out.put_slice(&encode_membership(&meta.last_membership));
    out.freeze()
}
