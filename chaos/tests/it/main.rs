//! End-to-end tests against real processes.
#![allow(clippy::unwrap_used)]

mod durability;
mod metrics;
mod replacement;
