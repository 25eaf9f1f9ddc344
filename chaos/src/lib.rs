//! Clusters of real processes, the faults done to them, and workloads whose
//! results can be checked.
//!
//! * [`harness`]: starts, kills (`kill -9`), pauses and restarts metaservice,
//!   kvnodes and gateways on loopback ports under one folder.
//! * [`proxy`]: stands on every link between them, and cuts it.
//! * [`faults`] draws what is done from a seed, [`nemesis`] does it.
//! * [`history`]: what clients asked for and what came of it; [`workload`]: what
//!   all clients have in common, [`turns`] whom each asks, [`sql`] what their errors mean.
//! * [`script`] and [`kv`]: clients of SQL and of the KV API.
//! * [`bank`]: transfers between accounts; [`append`] and [`keys`]: transactions over lists
//!   and keys, checked for strict serializability, by [`elle`] where keys are overwritten;
//!   [`register`]: single keys, checked for linearizability by [`linear`]; [`counter`],
//!   [`queue`] and [`timestamps`], with invariants of their own.
//! * [`run`] puts one of each together; [`timeline`] draws what came of it.
//!
//! Nothing here reaches into a process: what a test sees is what a user sees.

pub mod append;
pub mod bank;
pub mod counter;
pub mod elle;
pub mod faults;
pub mod harness;
pub mod history;
pub mod keys;
pub mod kv;
pub mod linear;
pub mod nemesis;
pub mod proxy;
pub mod queue;
pub mod register;
pub mod run;
pub mod script;
pub mod sql;
pub mod timeline;
pub mod timestamps;
pub mod turns;
pub mod workload;
