//! The metaservice: who is here, which shards there are and where they live.
//!
//! One to five members form a Raft group of their own. What they agree on is
//! [`state`] (pure); what only the leader knows is [`view`]; [`planner`] and
//! [`placement`] decide, [`deadlock`] looks for circles and [`protection`] for who keeps history, also pure; [`raft`] makes it durable and replicated;
//! [`server`] is the process: gRPC, HTTP, the loop that proposes what the
//! planner decided.
//!
//! The metaservice is off the data path: with all its members down, cached
//! routes, reads, writes and commits go on.

pub mod config;
pub mod deadlock;
pub mod error;
mod http;
mod metrics;
pub mod placement;
pub mod planner;
pub mod protection;
pub mod raft;
pub mod server;
mod service;
pub mod state;
pub mod view;

pub use config::MetaConfig;
pub use error::{Error, Result};
pub use server::MetaService;
