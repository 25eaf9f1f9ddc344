//! Compaction: keeping the levels in shape.
//!
//! - [`pick`] decides, as a pure function of table sizes and key ranges, what is to be merged next;
//! - [`retain`] decides which versions of a key anybody can still see;
//! - [`filter`] lets the user drop values;
//! - [`garbage`] decides which table to rewrite for the sake of blob files that are mostly garbage;
//! - [`rewrite`] writes sorted entries into new tables, for compactions and for flushes alike.
//!
//! Leveled compaction with level sizes that follow the data: the sizes are set from the last level upwards, each a
//! tenth of the next, so that nine tenths of the data are in the last level at any total size, which bounds space
//! amplification (the dynamic level sizes of RocksDB; Dong et al., "Optimizing Space Amplification in RocksDB",
//! CIDR 2017, section 3).

mod blobs;
pub(crate) mod filter;
pub(crate) mod garbage;
pub(crate) mod pick;
pub(crate) mod retain;
pub(crate) mod rewrite;
