//! Clusters of real processes, the faults done to them, and workloads whose
//! results can be checked.
//!
//! * [`harness`]: starts, kills (`kill -9`) and restarts metaservice, kvnodes
//!   and gateways on loopback ports under one folder.
//! * [`proxy`]: stands on every link between them, and cuts it.
//! * [`bank`]: transfers between accounts that live on different shards; the
//!   total never changes, whatever dies.
//!
//! Nothing here reaches into a process: what a test sees is what a user sees.

pub mod bank;
pub mod harness;
pub mod proxy;
