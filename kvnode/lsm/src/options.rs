//! Settings of a database. Everything here has a default that serves a kvnode; what nobody would change is a
//! constant beside the code that uses it.

use crate::compaction::filter::CompactionFilterFactory;
use crate::error::{Error, Result};
use crate::version::LEVELS;
use std::sync::Arc;

/// Who runs flush and compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Background {
    /// Threads of the database: one flushes, [`Options::compaction_threads`] compact.
    #[default]
    Threads,
    /// The caller of `write` or `flush`, before it returns. No thread exists and no clock is read: what the
    /// simulator and the crash tests need.
    Inline,
}

/// How data blocks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As they are; reads point straight into the memory map.
    None,
    /// LZ4, where it saves at least an eighth.
    #[default]
    Lz4,
    /// Zstandard at its level 3, where it saves at least an eighth: smaller, and slower to read.
    Zstd,
}

/// Settings of one database.
#[derive(Debug, Clone)]
pub struct Options {
    /// Keyspaces that must exist; the missing ones are created at open. Those already on disk stay.
    pub keyspaces: Vec<String>,
    /// Whether there is a write-ahead log. Without one, a crash keeps exactly what
    /// [`Db::flushed_seqno`](crate::Db::flushed_seqno) says (rule D1).
    pub wal: bool,
    /// Who runs flush and compaction.
    pub background: Background,
    /// Threads that compact, each tables that no other works on.
    pub compaction_threads: usize,
    /// Bytes of tables that all compactions together write in a second; 0 sets no limit. While writers are held up
    /// there is none, and flushes have none.
    pub compaction_bytes_per_second: u64,
    /// Size at which the active memtables (of all keyspaces together) are handed to the flush.
    pub memtable_bytes: usize,
    /// Full memtables that may wait for the flush before writers stall.
    pub immutable_memtables_max: usize,
    /// Budget of the cache of decompressed blocks.
    pub block_cache_bytes: u64,
    /// Size of a data block before compression.
    pub block_bytes: usize,
    /// Size at which a compaction starts a new table.
    pub table_bytes: u64,
    /// Values of this length and more go into blob files, apart from their keys; 0 leaves all values in the tables.
    pub blob_value_bytes_min: usize,
    /// Bits of bloom filter per key in tables that are written for the deepest level, where nine tenths of the keys are,
    /// or for ingestion; 0 writes no filter. Those for other levels have five more, and keep them where they are moved to
    /// the deepest level as they are.
    pub bloom_bits_per_key: u32,
    /// Keyspaces whose keys end with a version, and how many bytes that has. Their filters hold keys without it, so
    /// that [`Snapshot::iter_versions`](crate::Snapshot::iter_versions) passes by the tables that have no version of
    /// a key.
    pub version_bytes: Vec<(String, usize)>,
    /// What one commit group writes to the log is compressed by LZ4 from this length on, where that saves an eighth;
    /// 0 compresses none of it.
    pub log_compression_bytes_min: usize,
    /// How data blocks are stored, from level `compression_level_min` on, and large values on all levels.
    pub compression: Compression,
    /// Levels above this one (smaller numbers) are not compressed: their tables are short-lived.
    pub compression_level_min: usize,
    /// How data blocks of the deepest level are stored, where nine tenths of the data are; `None`: as the others.
    pub compression_last_level: Option<Compression>,
    /// Drops worthless values during compactions.
    pub compaction_filter: Option<Arc<dyn CompactionFilterFactory>>,
    /// Number of level-0 tables of a tree that starts a compaction.
    pub level0_compaction_tables: usize,
    /// Number of level-0 tables of a tree at which writers are slowed down.
    pub level0_slowdown_tables: usize,
    /// Number of level-0 tables of a tree at which writers stall.
    pub level0_stall_tables: usize,
    /// Size of the first level below level 0 that is worth having.
    pub level_base_bytes: u64,
    /// How much larger each level is than the one above.
    pub level_growth: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keyspaces: vec!["default".to_owned()],
            wal: true,
            background: Background::Threads,
            compaction_threads: 2,
            compaction_bytes_per_second: 0,
            memtable_bytes: 64 << 20,
            immutable_memtables_max: 2,
            block_cache_bytes: 64 << 20,
            block_bytes: 4 << 10,
            table_bytes: 64 << 20,
            blob_value_bytes_min: 64 << 10,
            bloom_bits_per_key: 10,
            version_bytes: Vec::new(),
            log_compression_bytes_min: 32 << 10,
            compression: Compression::Lz4,
            compression_level_min: 2,
            compression_last_level: None,
            compaction_filter: None,
            level0_compaction_tables: 4,
            level0_slowdown_tables: 20,
            level0_stall_tables: 36,
            level_base_bytes: 256 << 20,
            level_growth: 10,
        }
    }
}

impl Options {
    /// The defaults with these keyspaces.
    pub fn with_keyspaces<S: Into<String>>(keyspaces: impl IntoIterator<Item = S>) -> Self {
        Self {
            keyspaces: keyspaces.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// How many bytes of a keyspace's keys are their version.
    pub(crate) fn version_bytes_of(&self, keyspace: &str) -> usize {
        let mut all = self.version_bytes.iter();
        all.find(|(name, _)| name == keyspace)
            .map_or(0, |(_, bytes)| *bytes)
    }

    /// Bits of bloom filter per key of a level.
    ///
    /// An absent key is looked for in as many sorted runs as there are, so what it costs is the sum of their false
    /// positives, each of which is a search; and a key costs as many bits on a large level as on a small one. The sum is
    /// least for a given size of all filters when a level that is ten times smaller has ln 10 / (ln 2)^2 = 4.8 bits
    /// more (Dayan, Athanassoulis, Idreos: "Monkey", SIGMOD 2017). One step is enough: of what is above the deepest
    /// level, nine tenths are on one level again.
    pub(crate) fn bloom_bits_per_key_at(&self, level: usize) -> u32 {
        /// More than on the deepest level.
        const BITS_ABOVE: u32 = 5;
        match self.bloom_bits_per_key {
            0 => 0,
            bits if level + 1 == LEVELS => bits,
            bits => bits.saturating_add(BITS_ABOVE),
        }
    }

    /// How data blocks of a level are stored.
    pub(crate) fn compression_at(&self, level: usize) -> Compression {
        match self.compression_last_level {
            Some(compression) if level + 1 == LEVELS => compression,
            _ if level >= self.compression_level_min => self.compression,
            _ => Compression::None,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let complain = |what: &str| {
            Err(Error::InvalidOptions {
                what: what.to_owned(),
            })
        };
        if self.memtable_bytes == 0 || self.block_bytes == 0 || self.table_bytes == 0 {
            return complain("memtable_bytes, block_bytes and table_bytes must not be 0");
        }
        if self.compaction_threads == 0 {
            return complain("compaction_threads must not be 0");
        }
        if self.immutable_memtables_max == 0 || self.level0_compaction_tables == 0 {
            return complain("immutable_memtables_max and level0_compaction_tables must not be 0");
        }
        if self.level0_stall_tables < self.level0_compaction_tables {
            return complain("level0_stall_tables must not be below level0_compaction_tables");
        }
        if self.level_growth < 2 || self.level_base_bytes == 0 {
            return complain("level_growth must be at least 2 and level_base_bytes not 0");
        }
        if self
            .keyspaces
            .iter()
            .any(|name| name.is_empty() || name.len() > 255)
        {
            return complain("a keyspace name has 1 to 255 bytes");
        }
        Ok(())
    }
}

/// Settings of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Return only when the write is on stable storage (the log is synced). Without a log this has no meaning:
    /// call [`Db::flush`](crate::Db::flush).
    pub sync: bool,
}

impl WriteOptions {
    /// Durable when the write returns.
    pub const SYNC: Self = Self { sync: true };
    /// Durable some time later.
    pub const NO_SYNC: Self = Self { sync: false };
}
