//! [`VersionEdit`]: one atomic change of the set of tables, and its bytes in the manifest.
//!
//! ```text
//! edit  := format version varint | field*
//! field := tag varint | length varint | body
//! ```
//!
//! | tag | body |
//! |---|---|
//! | 1 keyspace | id varint, name |
//! | 2 table added | keyspace varint, level varint, then of the table: number, bytes, entries, tombstones, smallest seqno, largest seqno (varints), smallest key, largest key (length and bytes) |
//! | 3 table dropped | keyspace varint, level varint, number varint |
//! | 4 flushed seqno | varint |
//! | 5 log number | varint: logs below it are not needed |
//! | 6 next file number | varint |
//! | 7 table with range deletes, or ingested, added | as 2, then varints: number of range deletes; 1 if nothing is said about the largest key itself, else 0; sequence number of all entries, or 0 if they have their own |
//! | 8 table that points to blob files added | as 7, then of each blob file: number, bytes that the table points to (varints) |
//!
//! An unknown tag is an error: an old build must not silently skip what a newer one found worth recording.

use super::LEVELS;
use crate::coding::{put_prefixed, put_varint, take_length, take_prefixed, take_varint};
use crate::table::TableMeta;
use crate::table::blob::BlobUse;
use crate::types::{SEQNO_MAX, SeqNo};

const FORMAT_VERSION: u64 = 1;

/// A change of what the manifest records. All of it takes effect or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VersionEdit {
    pub keyspaces: Vec<(u32, String)>,
    /// Keyspace, level, table.
    pub added: Vec<(u32, usize, TableMeta)>,
    /// Keyspace, level, file number.
    pub removed: Vec<(u32, usize, u64)>,
    pub flushed_seqno: Option<SeqNo>,
    pub log_number: Option<u64>,
    pub next_file_number: Option<u64>,
}

fn put_field(bytes: &mut Vec<u8>, tag: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let mut field = Vec::new();
    body(&mut field);
    put_varint(bytes, tag);
    put_prefixed(bytes, &field);
}

impl VersionEdit {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, FORMAT_VERSION);
        for (id, name) in &self.keyspaces {
            put_field(&mut bytes, 1, |body| {
                put_varint(body, u64::from(*id));
                body.extend_from_slice(name.as_bytes());
            });
        }
        for (keyspace, level, meta) in &self.added {
            put_field(&mut bytes, table_tag(meta), |body| {
                put_table(body, *keyspace, *level, meta)
            });
        }
        for (keyspace, level, number) in &self.removed {
            put_field(&mut bytes, 3, |body| {
                put_varint(body, u64::from(*keyspace));
                put_varint(body, *level as u64);
                put_varint(body, *number);
            });
        }
        let numbers = [
            (4, self.flushed_seqno),
            (5, self.log_number),
            (6, self.next_file_number),
        ];
        for (tag, number) in numbers {
            if let Some(number) = number {
                put_field(&mut bytes, tag, |body| put_varint(body, number));
            }
        }
        bytes
    }

    pub fn decode(mut input: &[u8]) -> Result<Self, String> {
        let input = &mut input;
        let version = take_varint(input).ok_or("edit without a format version")?;
        if version != FORMAT_VERSION {
            return Err(format!(
                "edit has format version {version}, this build reads {FORMAT_VERSION}"
            ));
        }
        let mut edit = Self::default();
        while !input.is_empty() {
            let tag = take_varint(input).ok_or("field without a tag")?;
            let mut body = take_prefixed(input).ok_or("field ends after the edit")?;
            edit.take_field(tag, &mut body)
                .ok_or_else(|| format!("malformed field with tag {tag}"))?;
            if !body.is_empty() {
                return Err(format!("field with tag {tag} has bytes to spare"));
            }
        }
        Ok(edit)
    }

    fn take_field(&mut self, tag: u64, body: &mut &[u8]) -> Option<()> {
        match tag {
            1 => {
                let id = u32::try_from(take_varint(body)?).ok()?;
                self.keyspaces
                    .push((id, String::from_utf8(std::mem::take(body).to_vec()).ok()?));
            }
            2 => self.added.push(take_table(body)?),
            7 | 8 => {
                let (keyspace, level, mut meta) = take_table(body)?;
                meta.range_deletes = take_varint(body)?;
                meta.largest_exclusive = match take_varint(body)? {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                meta.assigned_seqno = take_number(body)?;
                if tag == 8 {
                    meta.blobs = take_blobs(body)?;
                }
                self.added.push((keyspace, level, meta));
            }
            3 => {
                let (keyspace, level) = take_place(body)?;
                self.removed.push((keyspace, level, take_varint(body)?));
            }
            4 => self.flushed_seqno = Some(take_number(body)?),
            5 => self.log_number = Some(take_number(body)?),
            6 => self.next_file_number = Some(take_number(body)?),
            _ => return None,
        }
        Some(())
    }
}

/// A build that does not know range deletes, ingestion or blob files must not take such a table for any other.
fn table_tag(meta: &TableMeta) -> u64 {
    let plain = meta.range_deletes == 0 && meta.assigned_seqno == 0;
    match (meta.blobs.is_empty(), plain) {
        (false, _) => 8,
        (true, false) => 7,
        (true, true) => 2,
    }
}

/// To the end of the field; in the order of their numbers, each once.
fn take_blobs(body: &mut &[u8]) -> Option<Vec<BlobUse>> {
    let mut blobs: Vec<BlobUse> = Vec::new();
    while !body.is_empty() {
        let (file, bytes) = (take_varint(body)?, take_varint(body)?);
        if blobs.last().is_some_and(|last| last.file >= file) {
            return None;
        }
        blobs.push(BlobUse { file, bytes });
    }
    Some(blobs)
}

fn put_table(body: &mut Vec<u8>, keyspace: u32, level: usize, meta: &TableMeta) {
    let TableMeta {
        number,
        bytes,
        smallest_key,
        largest_key,
        smallest_seqno,
        largest_seqno,
        entries,
        tombstones,
        range_deletes,
        largest_exclusive,
        assigned_seqno,
        blobs,
    } = meta;
    put_varint(body, u64::from(keyspace));
    put_varint(body, level as u64);
    for field in [
        number,
        bytes,
        entries,
        tombstones,
        smallest_seqno,
        largest_seqno,
    ] {
        put_varint(body, *field);
    }
    put_prefixed(body, smallest_key);
    put_prefixed(body, largest_key);
    if table_tag(meta) >= 7 {
        put_varint(body, *range_deletes);
        put_varint(body, u64::from(*largest_exclusive));
        put_varint(body, *assigned_seqno);
    }
    for blob in blobs {
        put_varint(body, blob.file);
        put_varint(body, blob.bytes);
    }
}

/// One that can be counted on from: of a sequence, of files, of bytes.
fn take_number(body: &mut &[u8]) -> Option<u64> {
    take_varint(body).filter(|number| *number < SEQNO_MAX)
}

fn take_place(body: &mut &[u8]) -> Option<(u32, usize)> {
    let keyspace = u32::try_from(take_varint(body)?).ok()?;
    let level = take_length(body).filter(|level| *level < LEVELS)?;
    Some((keyspace, level))
}

fn take_table(body: &mut &[u8]) -> Option<(u32, usize, TableMeta)> {
    let (keyspace, level) = take_place(body)?;
    let mut number = || take_number(body);
    let (file, bytes, entries, tombstones) = (number()?, number()?, number()?, number()?);
    let (smallest_seqno, largest_seqno) = (number()?, number()?);
    let smallest_key = take_prefixed(body)?.to_vec();
    let largest_key = take_prefixed(body)?.to_vec();
    if smallest_key > largest_key {
        return None;
    }
    let number = file;
    let meta = TableMeta {
        number,
        bytes,
        smallest_key,
        largest_key,
        smallest_seqno,
        largest_seqno,
        entries,
        tombstones,
        ..TableMeta::default()
    };
    Some((keyspace, level, meta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn edit() -> VersionEdit {
        let meta = TableMeta {
            number: 7,
            bytes: 1 << 40,
            smallest_key: b"a".to_vec(),
            largest_key: b"zz".to_vec(),
            smallest_seqno: 1,
            largest_seqno: 900,
            entries: 12,
            tombstones: 3,
            ..TableMeta::default()
        };
        let ingested = TableMeta {
            assigned_seqno: 77,
            ..meta.clone()
        };
        let with_ranges = TableMeta {
            range_deletes: 2,
            largest_exclusive: true,
            ..meta.clone()
        };
        let blob = |file, bytes| BlobUse { file, bytes };
        let with_blobs = TableMeta {
            blobs: vec![blob(3, 1 << 33), blob(5, 70_000)],
            ..meta.clone()
        };
        VersionEdit {
            keyspaces: vec![(0, "data".to_owned()), (1, "locks".to_owned())],
            added: vec![
                (1, 6, meta),
                (0, 0, with_ranges),
                (0, 0, ingested),
                (1, 5, with_blobs),
            ],
            removed: vec![(0, 0, 5), (0, 1, 6)],
            flushed_seqno: Some(900),
            log_number: Some(8),
            next_file_number: Some(9),
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(VersionEdit::decode(&edit().encode()), Ok(edit()));
        assert_eq!(
            VersionEdit::decode(&VersionEdit::default().encode()),
            Ok(VersionEdit::default())
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>, at in 0usize..80, mask: u8) {
            let _ = VersionEdit::decode(&bytes);
            let mut damaged = edit().encode();
            let at = at % damaged.len();
            damaged[at] ^= mask;
            let _ = VersionEdit::decode(&damaged);
        }
    }
}
