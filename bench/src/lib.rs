//! Benchmarks of LineraDB. Every suite prints a Markdown table and, with
//! `--json FILE`, writes an array of [`Figure`]s.

pub mod chart;
pub mod figures;
#[cfg(feature = "cluster")]
pub mod kv;
pub mod storage;
#[cfg(feature = "cluster")]
pub mod tpch;
#[cfg(feature = "cluster")]
pub mod txn;

pub use figures::Figure;
