//! Benchmarks of LineraDB. Every suite prints a Markdown table and, with
//! `--json FILE`, writes an array of [`Figure`]s.

pub mod chart;
pub mod figures;
pub mod kv;
pub mod storage;
pub mod tpch;

pub use figures::Figure;
