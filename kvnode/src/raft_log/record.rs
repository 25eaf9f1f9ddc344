//! The bytes of the raft log.
//!
//! ```text
//! segment: magic 8 | format u32 | number u64 | previous length u64 | crc32c u32 | batch*
//! batch:   magic u32 | crc32c u32 | bytes u32 | records u32 | sequence u64 | synced u64 | record*
//! record:  crc32c u32 | bytes u32 | kind u8 | group varint | replica varint | fields
//! ```
//!
//! All fixed-width numbers are little endian. The checksum of a batch covers
//! its header, the checksum of a record its kind and fields: an old entry is
//! verified when it is read back alone. `synced` is the offset in this segment
//! up to which a sync had returned when the batch was written.

use crate::command::{Malformed, put_slice, put_varint, take_slice, take_u8, take_varint};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{GroupId, ReplicaId, ShardId};

pub(crate) const SEGMENT_MAGIC: &[u8; 8] = b"LDBRAFT\x01";
pub(crate) const FORMAT: u32 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 32;
pub(crate) const BATCH_MAGIC: u32 = 0x5eed_ba7c;
pub(crate) const BATCH_HEADER_BYTES: usize = 32;
pub(crate) const RECORD_HEADER_BYTES: usize = 8;

/// Position in a group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId {
    /// Term of the leader that appended it.
    pub term: u64,
    /// Position.
    pub index: u64,
}

/// A vote, as Raft keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Term.
    pub term: u64,
    /// For whom.
    pub replica: ReplicaId,
    /// Known to have been elected.
    pub committed: bool,
}

/// What a record says of a group's replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Entry {
        id: LogId,
        payload: Bytes,
    },
    Vote(Vote),
    /// Everything above this index is gone.
    Truncate {
        after: Option<u64>,
    },
    /// Everything up to here is gone, for it is durable elsewhere.
    Purge(LogId),
    /// The replica was destroyed; its last vote (C3).
    Tombstone {
        vote: Option<Vote>,
    },
}

/// Appends a record with its header; returns its length.
pub(crate) fn put_record(
    out: &mut BytesMut,
    group: GroupId,
    replica: ReplicaId,
    record: &Record,
) -> u32 {
    let start = out.len();
    out.put_bytes(0, RECORD_HEADER_BYTES);
    out.put_u8(match record {
        Record::Entry { .. } => 1,
        Record::Vote(_) => 2,
        Record::Truncate { .. } => 3,
        Record::Purge(_) => 4,
        Record::Tombstone { .. } => 5,
    });
    put_varint(out, group.0);
    put_varint(out, replica.0);
    match record {
        Record::Entry { id, payload } => {
            put_log_id(out, *id);
            put_slice(out, payload);
        }
        Record::Vote(vote) => put_vote(out, vote),
        Record::Truncate { after } => match after {
            None => out.put_u8(0),
            Some(index) => {
                out.put_u8(1);
                put_varint(out, *index);
            }
        },
        Record::Purge(id) => put_log_id(out, *id),
        Record::Tombstone { vote } => match vote {
            None => out.put_u8(0),
            Some(vote) => {
                out.put_u8(1);
                put_vote(out, vote);
            }
        },
    }
    let body = out.len() - start - RECORD_HEADER_BYTES;
    let crc = crc32c::crc32c(&out[start + RECORD_HEADER_BYTES..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&(body as u32).to_le_bytes());
    (body + RECORD_HEADER_BYTES) as u32
}

/// Reads the record at the start of `input` and moves past it.
pub(crate) fn take_record(
    input: &mut Bytes,
) -> Result<(GroupId, ReplicaId, Record, u32), Malformed> {
    let (Some(crc), Some(length)) = (u32_at(input, 0), u32_at(input, 4)) else {
        return Err(Malformed("ends inside a record header"));
    };
    let length = length as usize;
    if input.len() < RECORD_HEADER_BYTES + length {
        return Err(Malformed("ends inside a record"));
    }
    let _ = input.split_to(RECORD_HEADER_BYTES);
    let mut body = input.split_to(length);
    if crc32c::crc32c(&body) != crc {
        return Err(Malformed("record checksum"));
    }
    let kind = take_u8(&mut body)?;
    let group = ShardId(take_varint(&mut body)?);
    let replica = ReplicaId(take_varint(&mut body)?);
    let record = match kind {
        1 => Record::Entry {
            id: take_log_id(&mut body)?,
            payload: take_slice(&mut body)?,
        },
        2 => Record::Vote(take_vote(&mut body)?),
        3 => Record::Truncate {
            after: match take_u8(&mut body)? {
                0 => None,
                _ => Some(take_varint(&mut body)?),
            },
        },
        4 => Record::Purge(take_log_id(&mut body)?),
        5 => Record::Tombstone {
            vote: match take_u8(&mut body)? {
                0 => None,
                _ => Some(take_vote(&mut body)?),
            },
        },
        _ => return Err(Malformed("unknown kind of record")),
    };
    if !body.is_empty() {
        return Err(Malformed("trailing bytes in a record"));
    }
    Ok((
        group,
        replica,
        record,
        (length + RECORD_HEADER_BYTES) as u32,
    ))
}

pub(crate) fn put_log_id(out: &mut BytesMut, id: LogId) {
    put_varint(out, id.term);
    put_varint(out, id.index);
}

pub(crate) fn take_log_id(input: &mut Bytes) -> Result<LogId, Malformed> {
    Ok(LogId {
        term: take_varint(input)?,
        index: take_varint(input)?,
    })
}

pub(crate) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    put_varint(out, vote.term);
    put_varint(out, vote.replica.0);
    out.put_u8(u8::from(vote.committed));
}

pub(crate) fn take_vote(input: &mut Bytes) -> Result<Vote, Malformed> {
    Ok(Vote {
        term: take_varint(input)?,
        replica: ReplicaId(take_varint(input)?),
        committed: take_u8(input)? != 0,
    })
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What stands at the start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub number: u64,
    /// Length of the segment before this one when it was closed; 0: none.
    pub previous_length: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..20].copy_from_slice(&self.number.to_le_bytes());
        out[20..28].copy_from_slice(&self.previous_length.to_le_bytes());
        let crc = crc32c::crc32c(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = bytes
            .get(..SEGMENT_HEADER_BYTES)
            .ok_or(Malformed("ends inside the segment header"))?;
        if header[..7] != SEGMENT_MAGIC[..7] {
            return Err(Malformed("not a segment of a raft log"));
        }
        if u32_at(header, 28) != Some(crc32c::crc32c(&header[..28])) {
            return Err(Malformed("checksum of the segment header"));
        }
        if u32_at(header, 8) != Some(FORMAT) {
            return Err(Malformed("unknown format version"));
        }
        match (u64_at(header, 12), u64_at(header, 20)) {
            (Some(number), Some(previous_length)) => Ok(SegmentHeader {
                number,
                previous_length,
            }),
            _ => Err(Malformed("ends inside the segment header")),
        }
    }
}

/// What stands at the start of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Bytes of the records.
    pub bytes: u32,
    pub records: u32,
    pub sequence: u64,
    /// Synced up to here when this was written.
    pub synced: u64,
}

impl BatchHeader {
    pub(crate) fn encode_into(self, out: &mut [u8]) {
        out[..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        out[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.records.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.synced.to_le_bytes());
        let crc = crc32c::crc32c(&out[8..32]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = bytes
            .get(..BATCH_HEADER_BYTES)
            .ok_or(Malformed("ends inside a batch header"))?;
        if u32_at(header, 0) != Some(BATCH_MAGIC) {
            return Err(Malformed("no batch begins here"));
        }
        if u32_at(header, 4) != Some(crc32c::crc32c(&header[8..32])) {
            return Err(Malformed("checksum of a batch header"));
        }
        match (
            u32_at(header, 8),
            u32_at(header, 12),
            u64_at(header, 16),
            u64_at(header, 24),
        ) {
            (Some(bytes), Some(records), Some(sequence), Some(synced)) => Ok(BatchHeader {
                bytes,
                records,
                sequence,
                synced,
            }),
            _ => Err(Malformed("ends inside a batch header")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_a_flipped_bit_is_seen() {
        let vote = Vote {
            term: 9,
            replica: ReplicaId(70000),
            committed: true,
        };
        let records = [
            Record::Entry {
                id: LogId { term: 3, index: 7 },
                payload: Bytes::from_static(b"payload"),
            },
            Record::Vote(vote),
            Record::Truncate { after: Some(4) },
            Record::Truncate { after: None },
            Record::Purge(LogId { term: 1, index: 2 }),
            Record::Tombstone { vote: Some(vote) },
            Record::Tombstone { vote: None },
        ];
        for record in records {
            let mut out = BytesMut::new();
            let length = put_record(&mut out, ShardId(5), ReplicaId(6), &record);
            assert_eq!(length as usize, out.len());
            let bytes = out.freeze();
            let mut input = bytes.clone();
            let (group, replica, decoded, _) = take_record(&mut input).unwrap();
            assert_eq!((group, replica), (ShardId(5), ReplicaId(6)));
            assert_eq!(decoded, record);
            assert!(input.is_empty());
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(take_record(&mut Bytes::from(bad)).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn headers_come_back() {
        let header = SegmentHeader {
            number: 12,
            previous_length: 99,
        };
        assert_eq!(SegmentHeader::decode(&header.encode()).unwrap(), header);
        let batch = BatchHeader {
            bytes: 1,
            records: 2,
            sequence: 3,
            synced: 4,
        };
        let mut out = [0; BATCH_HEADER_BYTES];
        batch.encode_into(&mut out);
        assert_eq!(BatchHeader::decode(&out).unwrap(), batch);
        out[20] ^= 1;
        assert!(BatchHeader::decode(&out).is_err());
    }
}
