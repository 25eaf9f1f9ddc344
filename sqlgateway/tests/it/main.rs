//! The gateway from outside: real clients against a cluster in this process.
#![allow(clippy::unwrap_used)]

mod cluster;
mod golden;
mod http;
mod psql;
mod wire;
