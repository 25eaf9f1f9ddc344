//! The gateway from outside: real clients against a cluster in this process.
#![allow(clippy::unwrap_used)]

mod builds;
mod cluster;
mod golden;
mod http;
mod isolation;
mod psql;
mod session;
mod wire;
