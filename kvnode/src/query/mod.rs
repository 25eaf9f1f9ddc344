//! Fragments: pieces of SQL plans that run next to the rows.
//!
//! A request names a span, says how keys and values decode (`RowLayout`) and
//! carries a plan whose leaf is the rows. Each request is one page: rows are
//! read, decoded to Arrow and run through the whole plan, and the reply says
//! where the next page starts. Nothing is kept between requests, so a shard
//! may split or move between two pages of a query.
//!
//! The plan comes from a gateway of the same version (`plan_format_version`),
//! but it is bytes from the network: only a chain of known operators over the
//! one leaf is run, memory is bounded by the page, and neither decoding nor
//! running may take the node down.

mod input;
mod run;

pub use run::run_fragment;

#[cfg(test)]
mod tests;
