//! The index of a table: which block a key lies in.
//!
//! It has two levels. A *partition* is a block with an entry per data block: a key that is not below the block's last
//! one and below the first of the next; value `offset varint, length varint`. The *top* is a block with an entry per
//! partition: the key and trailer of its last entry; value `offset varint, length varint, number of the partition's
//! first data block varint`. So a search reads the top, which is small and verified when the table is opened, one
//! partition, verified at its first use, and the data block: a table that is new and cold costs its first reader
//! three pages and not an index of the length of the table (RocksDB, *partitioned index*).
//!
//! All restart points are entries: a search in either is a plain binary search.

use super::block::{Block, BlockBuilder, BlockView, Malformed};
use super::format::{Handle, PartKind, part_range, verify_part};
use super::marks::Marks;
use crate::coding::{put_varint, take_varint};
use crate::types::Trailer;

/// A partition of this length is full.
const PARTITION_BYTES: usize = 4096;

/// What is wrong, and in which part.
pub(super) type Wrong = (Handle, Malformed);

struct Partition {
    /// Number of its first data block.
    first: usize,
    handle: Handle,
}

/// The index of an open table.
pub(super) struct Index {
    top: Block,
    top_handle: Handle,
    partitions: Vec<Partition>,
    verified: Marks,
    block_count: usize,
}

impl Index {
    /// From its top, which is verified.
    pub fn new(top: Block, top_handle: Handle, block_count: usize) -> Result<Self, Malformed> {
        let view = top.view();
        let mut partitions = Vec::with_capacity(view.restart_count);
        for at in 0..view.restart_count {
            let (_, entry) = view.restart_entry(at)?;
            let partition = decode_partition(&view.bytes[entry.value])
                .ok_or(Malformed("entry is not that of a partition"))?;
            let in_order = match partitions.last() {
                Some(Partition { first, .. }) => *first < partition.first,
                None => partition.first == 0,
            };
            if !in_order || partition.first >= block_count {
                return Err(Malformed("partitions do not follow each other"));
            }
            partitions.push(partition);
        }
        Ok(Self {
            verified: Marks::new(partitions.len()),
            top,
            top_handle,
            partitions,
            block_count,
        })
    }

    /// Number of data blocks.
    pub fn block_count(&self) -> usize {
        self.block_count
    }

    /// Verifies all of it.
    pub fn verify_whole(&self, map: &[u8]) -> Result<(), Wrong> {
        (0..self.partitions.len()).try_for_each(|at| self.partition(map, at).map(drop))
    }

    fn partition<'a>(&self, map: &'a [u8], at: usize) -> Result<BlockView<'a>, Wrong> {
        let partition = &self.partitions[at];
        let wrong = |what| (partition.handle, Malformed(what));
        self.verified
            .once(at, || match verify_part(map, partition.handle) {
                Ok((_, PartKind::Raw)) => Ok(()),
                Ok(_) => Err(wrong("unexpected compression")),
                Err(what) => Err(wrong(what)),
            })?;
        let range =
            part_range(map, partition.handle).ok_or_else(|| wrong("outside of the file"))?;
        let view = BlockView::new(&map[range]).map_err(|error| (partition.handle, error))?;
        let next = self.partitions.get(at + 1);
        let end = next.map_or(self.block_count, |next| next.first);
        match partition.first + view.restart_count == end {
            true => Ok(view),
            false => Err(wrong("wrong number of entries")),
        }
    }

    /// The first data block that may hold something at or after a place, and where it is; `None` if all that is there
    /// is before.
    #[inline]
    pub fn find(
        &self,
        map: &[u8],
        user_key: &[u8],
        trailer: Trailer,
    ) -> Result<Option<(usize, Handle)>, Wrong> {
        let top = self.top.view().lower_bound_restart(user_key, trailer);
        let at = top.map_err(|error| (self.top_handle, error))?;
        let Some(partition) = self.partitions.get(at) else {
            return Ok(None);
        };
        let view = self.partition(map, at)?;
        let wrong = |error| (partition.handle, error);
        let within = view.lower_bound_restart(user_key, trailer).map_err(wrong)?;
        if within == view.restart_count {
            return Err(wrong(Malformed("ends before the index says")));
        }
        let handle = block_handle(view, within).map_err(wrong)?;
        Ok(Some((partition.first + within, handle)))
    }

    /// Where a data block is.
    pub fn handle(&self, map: &[u8], ordinal: usize) -> Result<Handle, Wrong> {
        let after = self.partitions.partition_point(|p| p.first <= ordinal);
        let at = after.saturating_sub(1);
        let view = self.partition(map, at)?;
        let partition = &self.partitions[at];
        block_handle(view, ordinal - partition.first).map_err(|error| (partition.handle, error))
    }
}

fn block_handle(view: BlockView<'_>, at: usize) -> Result<Handle, Malformed> {
    let (_, entry) = view.restart_entry(at)?;
    Handle::decode(&view.bytes[entry.value]).ok_or(Malformed("entry is not a block handle"))
}

fn decode_partition(mut bytes: &[u8]) -> Option<Partition> {
    let offset = take_varint(&mut bytes)?;
    let length = u32::try_from(take_varint(&mut bytes)?).ok()?;
    let first = usize::try_from(take_varint(&mut bytes)?).ok()?;
    bytes.is_empty().then_some(Partition {
        first,
        handle: Handle { offset, length },
    })
}

/// Puts an index together while its table is written. The partitions stay in memory until then: they follow the data.
pub(super) struct IndexBuilder {
    current: BlockBuilder,
    last_trailer: Trailer,
    /// Number of the first data block of the current partition.
    first: u32,
    block_count: u32,
    full: Vec<FullPartition>,
}

/// A partition that is to be written.
pub(super) struct FullPartition {
    pub bytes: Vec<u8>,
    last_key: Vec<u8>,
    last_trailer: Trailer,
    first: u32,
}

impl IndexBuilder {
    pub fn new() -> Self {
        Self {
            current: BlockBuilder::new(1),
            last_trailer: Trailer::OLDEST,
            first: 0,
            block_count: 0,
            full: Vec::new(),
        }
    }

    /// Adds the next data block.
    pub fn add(&mut self, separator: &[u8], trailer: Trailer, handle: Handle) {
        let mut encoded = Vec::with_capacity(12);
        handle.encode(&mut encoded);
        self.current.add(separator, trailer, &encoded);
        self.last_trailer = trailer;
        self.block_count += 1;
        if self.current.len() >= PARTITION_BYTES {
            self.end_partition();
        }
    }

    fn end_partition(&mut self) {
        if self.current.is_empty() {
            return;
        }
        self.full.push(FullPartition {
            last_key: self.current.last_key().to_vec(),
            last_trailer: self.last_trailer,
            first: self.first,
            bytes: self.current.finish().to_vec(),
        });
        self.current.clear();
        self.first = self.block_count;
    }

    /// Writes the partitions with `write`, which says where each is, and gives the top and the number of data blocks.
    pub fn finish<E>(
        mut self,
        mut write: impl FnMut(&[u8]) -> Result<Handle, E>,
    ) -> Result<(Vec<u8>, u32), E> {
        self.end_partition();
        let mut top = BlockBuilder::new(1);
        for partition in &self.full {
            let mut value = Vec::with_capacity(16);
            write(&partition.bytes)?.encode(&mut value);
            put_varint(&mut value, u64::from(partition.first));
            top.add(&partition.last_key, partition.last_trailer, &value);
        }
        Ok((top.finish().to_vec(), self.block_count))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::format::part_crc;
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// An index over blocks with these separators, and the file that its partitions lie in.
    fn index(separators: &BTreeSet<Vec<u8>>) -> (Index, Vec<u8>) {
        let mut file = Vec::new();
        let mut builder = IndexBuilder::new();
        for (at, key) in separators.iter().enumerate() {
            builder.add(key, Trailer::OLDEST, data_block(at));
        }
        let write = |bytes: &[u8]| {
            let (offset, kind) = (file.len() as u64, PartKind::Raw as u8);
            file.extend_from_slice(bytes);
            file.push(kind);
            file.extend_from_slice(&part_crc(bytes, kind, offset).to_le_bytes());
            Ok::<_, ()>(Handle {
                offset,
                length: bytes.len() as u32,
            })
        };
        let (top, blocks) = builder.finish(write).unwrap();
        let top = Block::new(Bytes::from(top)).unwrap();
        let index = Index::new(top, Handle::default(), blocks as usize).unwrap();
        (index, file)
    }

    fn data_block(ordinal: usize) -> Handle {
        Handle {
            offset: ordinal as u64 * 1000,
            length: 1000,
        }
    }

    proptest! {
        #[test]
        fn a_search_finds_the_first_block_that_is_not_before(
            separators in prop::collection::btree_set(prop::collection::vec(0u8..4, 1..40), 1..400),
            probes in prop::collection::vec(prop::collection::vec(0u8..5, 0..40), 1..20),
        ) {
            let (index, file) = index(&separators);
            prop_assert_eq!(index.block_count(), separators.len());
            for (ordinal, key) in separators.iter().enumerate() {
                prop_assert_eq!(index.handle(&file, ordinal).unwrap(), data_block(ordinal));
                let found = index.find(&file, key, Trailer::NEWEST).unwrap();
                prop_assert_eq!(found, Some((ordinal, data_block(ordinal))));
            }
            for probe in probes {
                let expected = separators.iter().position(|key| *key >= probe);
                let found = index.find(&file, &probe, Trailer::NEWEST).unwrap();
                prop_assert_eq!(found, expected.map(|at| (at, data_block(at))));
            }
        }
    }

    #[test]
    fn damage_is_found_at_the_first_use_of_a_partition() {
        let separators: BTreeSet<Vec<u8>> =
            (0u32..2000).map(|n| n.to_be_bytes().to_vec()).collect();
        let (index, mut file) = index(&separators);
        assert!(index.partitions.len() > 3);
        let damaged = index.partitions[1].handle;
        file[damaged.offset as usize + 20] ^= 1;
        assert!(index.handle(&file, 0).is_ok());
        let wrong = index.handle(&file, index.partitions[1].first).unwrap_err();
        assert_eq!(
            wrong,
            (damaged, Malformed("contents do not match their checksum"))
        );
    }
}
