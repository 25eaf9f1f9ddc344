//! Integration tests of the storage engine, in one binary.
#![allow(clippy::unwrap_used)]

mod blobs;
mod corruption;
mod crash;
mod faults;
mod ingest;
mod model;
mod real;
mod seeds;
mod support;
mod threads;
mod versions;
