//! The block cache: decompressed blocks of tables, within a budget of bytes.
//!
//! Only compressed blocks come here; the others are read in place from the memory map, and the operating system's
//! page cache is their cache. Eviction is `quick_cache`'s S3-FIFO variant, sharded.

use crate::table::Block;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use std::hash::{BuildHasherDefault, Hasher};

/// File number and offset of a block.
pub(crate) type BlockKey = (u64, u64);

/// What a cached block costs beside its bytes.
const BLOCK_OVERHEAD_BYTES: u64 = 64;

#[derive(Clone, Copy)]
struct BlockWeighter;

impl Weighter<BlockKey, Block> for BlockWeighter {
    fn weight(&self, _: &BlockKey, block: &Block) -> u64 {
        block.len() as u64 + BLOCK_OVERHEAD_BYTES
    }
}

/// Mixes the two words of a block key; the same in every run, as everything here.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.0 ^= self.0 >> 32;
    }
}

/// The cache of one database.
pub(crate) struct BlockCache {
    blocks: Cache<BlockKey, Block, BlockWeighter, BuildHasherDefault<KeyHasher>>,
}

impl BlockCache {
    pub fn new(bytes: u64, block_bytes: usize) -> Self {
        let items = usize::try_from(bytes / (block_bytes as u64).max(1))
            .unwrap_or(usize::MAX)
            .clamp(16, 1 << 24);
        let hasher = BuildHasherDefault::default();
        Self {
            blocks: Cache::with(
                items,
                bytes.max(1),
                BlockWeighter,
                hasher,
                DefaultLifecycle::default(),
            ),
        }
    }

    pub fn get(&self, key: BlockKey) -> Option<Block> {
        self.blocks.get(&key)
    }

    pub fn insert(&self, key: BlockKey, block: Block) {
        self.blocks.insert(key, block);
    }

    pub fn bytes(&self) -> u64 {
        self.blocks.weight()
    }
}
