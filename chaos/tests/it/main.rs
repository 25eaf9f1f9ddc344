//! End-to-end tests against real processes.
#![allow(clippy::unwrap_used)]

mod availability;
mod commits;
mod durability;
mod metrics;
mod replacement;
mod workloads;
