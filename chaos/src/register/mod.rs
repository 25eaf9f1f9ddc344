//! Registers: single keys that are read, written and compared-and-set by single
//! requests, each of which is linearizable (`check`).
//!
//! There are two kinds: rows of a table, through any gateway, and keys of the
//! KV API, through any kvnode. A client knows one kind. Every second one of a kind only
//! reads: where writes hang, because a node is cut off from the others, it goes on
//! asking, and must not be told what was true before. Few registers are in use
//! at once, and each makes way for a new one after some operations: the search
//! for an order looks at one register at a time, and is quick when not many of
//! its operations have an unknown outcome. Every number is written once, so that
//! a read tells which write it has seen; nothing (an absent key) is written often.

mod check;
mod kv;
mod table;

pub use check::check;

use crate::harness::Cluster;
use crate::linear::{Action, Answer, Value};
use crate::sql::connect;
use crate::workload::{Client, Outcome, Workload};
use anyhow::Result;
use kv::Kv;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use table::Table;

/// Registers of a kind in use at once.
const REGISTERS: u64 = 4;
/// Operations on a register, on average, before it makes way.
const OPERATIONS: u64 = 100;
/// One in so many writes writes nothing.
const DELETES: u32 = 10;

/// Where a register lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Store {
    /// In a table.
    Table,
    /// In the key space of the KV API.
    Kv,
}

/// The name of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Register {
    store: Store,
    number: u64,
}

impl std::fmt::Display for Register {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.store {
            Store::Table => write!(f, "table/{}", self.number),
            Store::Kv => write!(f, "kv/{}", self.number),
        }
    }
}

/// What the clients of one kind share.
#[derive(Debug, Default)]
struct Shared {
    /// Operations drawn so far.
    drawn: u64,
    /// The last number that was to be written.
    written: i64,
    /// What was last seen in a register: a good guess for compare-and-set.
    seen: HashMap<u64, Value>,
}

impl Shared {
    fn in_use(&self) -> std::ops::Range<u64> {
        let first = self.drawn / OPERATIONS;
        first..first + REGISTERS
    }

    /// A number that was never written, or now and then nothing, which deletes.
    fn new_value(&mut self, chance: &mut StdRng) -> Value {
        if chance.random_ratio(1, DELETES) {
            return None;
        }
        self.written += 1;
        Some(self.written)
    }
}

/// The workload.
pub struct Registers {
    seed: u64,
    table: Arc<Mutex<Shared>>,
    kv: Arc<Mutex<Shared>>,
}

impl Registers {
    /// With clients whose operations follow from a seed.
    pub fn new(seed: u64) -> Self {
        Registers {
            seed,
            table: Arc::default(),
            kv: Arc::default(),
        }
    }

    /// Clients of either kind alternate.
    fn kind(&self, number: usize) -> (Store, &Arc<Mutex<Shared>>) {
        match number % 2 {
            0 => (Store::Table, &self.table),
            _ => (Store::Kv, &self.kv),
        }
    }
}

impl Workload for Registers {
    type Client = RegisterClient;

    async fn prepare(&self, cluster: &Cluster) -> Result<()> {
        let client = connect(&cluster.pg_url(0)).await?;
        client.batch_execute(table::CREATE).await?;
        cluster.split_at(&client, table::NAME).await
    }

    fn client(&self, cluster: &Cluster, number: usize) -> RegisterClient {
        let (store, shared) = self.kind(number);
        let of_kind = number / 2;
        RegisterClient {
            store,
            only_reads: of_kind % 2 == 1,
            shared: shared.clone(),
            chance: StdRng::seed_from_u64(self.seed.wrapping_add(number as u64)),
            server: match store {
                Store::Table => Server::Table(Table::new(cluster.pg_urls(), of_kind)),
                Store::Kv => Server::Kv(Kv::new(cluster.kv_addresses.clone(), of_kind)),
            },
        }
    }

    /// Every register that there ever was.
    fn closing(&self, number: usize) -> Vec<Operation> {
        let (store, shared) = self.kind(number);
        let numbers = 0..shared.lock().in_use().end;
        let read = |number| Operation {
            register: Register { store, number },
            request: Request::Read,
        };
        numbers.map(read).collect()
    }
}

/// What is done to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Read,
    Write(Value),
    CompareAndSet { expected: Value, new: Value },
}

/// An operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    register: Register,
    request: Request,
}

enum Server {
    Table(Table),
    Kv(Kv),
}

/// A client of one kind of registers.
pub struct RegisterClient {
    store: Store,
    only_reads: bool,
    shared: Arc<Mutex<Shared>>,
    chance: StdRng,
    server: Server,
}

impl Client for RegisterClient {
    type Operation = Operation;

    async fn ready(&mut self) -> bool {
        match &mut self.server {
            Server::Table(table) => table.ready().await,
            Server::Kv(kv) => kv.ready().await,
        }
    }

    fn draw(&mut self) -> Operation {
        let mut shared = self.shared.lock();
        shared.drawn += 1;
        let number = self.chance.random_range(shared.in_use());
        let request = match self.chance.random_range(0..3) {
            _ if self.only_reads => Request::Read,
            0 => Request::Read,
            1 => Request::Write(shared.new_value(&mut self.chance)),
            _ => Request::CompareAndSet {
                expected: shared.seen.get(&number).copied().flatten(),
                new: shared.new_value(&mut self.chance),
            },
        };
        let store = self.store;
        Operation {
            register: Register { store, number },
            request,
        }
    }

    fn invocation(operation: &Operation) -> (&'static str, serde_json::Value) {
        let register = operation.register.to_string();
        match operation.request {
            Request::Read => ("read", json!([register, null])),
            Request::Write(value) => ("write", json!([register, value])),
            Request::CompareAndSet { expected, new } => ("cas", json!([register, [expected, new]])),
        }
    }

    async fn run(&mut self, operation: &Operation) -> Result<Outcome> {
        let Operation { register, request } = *operation;
        let answer = match &mut self.server {
            Server::Table(table) => table.request(register.number, request).await,
            Server::Kv(kv) => kv.request(register.number, request).await,
        }?;
        let action = match answer {
            Ok(action) => action,
            Err(failure) => return Ok(failure.into()),
        };
        let mut shared = self.shared.lock();
        match action {
            Action::Read(seen) | Action::Write(seen) => shared.seen.insert(register.number, seen),
            Action::CompareAndSet { new, answer, .. } => match answer {
                Answer::Set => shared.seen.insert(register.number, new),
                Answer::Found(found) => shared.seen.insert(register.number, found),
                Answer::Differs | Answer::Unknown => shared.seen.remove(&register.number),
            },
        };
        Ok(Outcome::Ok(result_of(register, action)))
    }
}

/// How an operation stands in the history when it has ended.
fn result_of(register: Register, action: Action) -> serde_json::Value {
    let register = register.to_string();
    match action {
        Action::Read(value) | Action::Write(value) => json!([register, value]),
        Action::CompareAndSet {
            expected,
            new,
            answer,
        } => {
            let answer = match answer {
                Answer::Set => json!(["set"]),
                Answer::Found(found) => json!(["found", found]),
                Answer::Differs => json!(["differs"]),
                Answer::Unknown => json!(null),
            };
            json!([register, [expected, new], answer])
        }
    }
}
