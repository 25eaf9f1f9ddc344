//! What every workload has in common: clients that draw operations, carry them
//! out, and record what they learn of them.

use crate::harness::Cluster;
use crate::history::{History, Kind};
use crate::sql::Failure;
use anyhow::{Result, bail};
use lineradb_common::clock::deadline_after;
use serde_json::Value;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two attempts to find somebody who serves.
const PAUSE: Duration = Duration::from_millis(50);
/// After everything was healed, an operation has to succeed within this time.
const SERVED_AGAIN: Duration = Duration::from_secs(60);

/// What a client knows of an operation that has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It took place, with this result.
    Ok(Value),
    /// It did not and will not take place.
    Fail(String),
    /// Nobody knows.
    Info(String),
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure.unknown {
            true => Outcome::Info(failure.reason),
            false => Outcome::Fail(failure.reason),
        }
    }
}

/// What a checker makes of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is one that the promise allows.
    Holds,
    /// It is not, for these reasons.
    Violated(Vec<String>),
    /// It says nothing, or too much to be decided.
    Undecided(String),
}

#[cfg(test)]
impl Verdict {
    /// Why it is violated, which it is.
    pub(crate) fn reasons(self) -> Vec<String> {
        match self {
            Verdict::Violated(reasons) => reasons,
            other => panic!("{other:?}"),
        }
    }
}

/// One client: it does one operation at a time.
pub trait Client: Send + 'static {
    /// What it does.
    type Operation: Send + Sync;

    /// Looks for a server unless it has one; false when there is none now.
    fn ready(&mut self) -> impl Future<Output = bool> + Send;

    /// The next operation, by chance.
    fn draw(&mut self) -> Self::Operation;

    /// How an operation stands in the history: function and arguments.
    fn invocation(operation: &Self::Operation) -> (&'static str, Value);

    /// Carries an operation out. After an unknown outcome it goes on with
    /// another server.
    ///
    /// # Errors
    /// An answer that no state of the database explains.
    fn run(&mut self, operation: &Self::Operation) -> impl Future<Output = Result<Outcome>> + Send;
}

/// A workload: its clients, and what they work on.
pub trait Workload: Send + Sync + 'static {
    /// Its clients.
    type Client: Client;

    /// Creates what the clients work on.
    fn prepare(&self, cluster: &Cluster) -> impl Future<Output = Result<()>> + Send;

    /// The client of that number.
    fn client(&self, cluster: &Cluster, number: usize) -> Self::Client;

    /// What the client of that number asks when everything is over.
    fn closing(&self, number: usize) -> Vec<<Self::Client as Client>::Operation>;
}

/// The names under which one client appears in a history: a new one after each
/// outcome that it does not know.
pub struct Processes {
    current: u64,
    clients: u64,
}

impl Processes {
    /// Those of one client among so many.
    pub fn new(number: usize, clients: usize) -> Self {
        Processes {
            current: number as u64,
            clients: clients as u64,
        }
    }
}

/// Carries out one operation and records it; true when it took place.
async fn step<C: Client>(
    client: &mut C,
    operation: &C::Operation,
    processes: &mut Processes,
    history: &History,
) -> Result<bool> {
    let (function, arguments) = C::invocation(operation);
    let process = processes.current;
    history.invoke(process, function, arguments.clone());
    let (kind, value, error) = match client.run(operation).await? {
        Outcome::Ok(result) => (Kind::Ok, result, None),
        Outcome::Fail(reason) => (Kind::Fail, arguments, Some(reason)),
        Outcome::Info(reason) => {
            processes.current += processes.clients;
            (Kind::Info, arguments, Some(reason))
        }
    };
    history.complete(process, kind, function, value, error);
    Ok(kind == Kind::Ok)
}

/// Operations by chance until `stop` is set.
///
/// # Errors
/// When one is answered with what cannot be.
pub async fn drive<C: Client>(
    mut client: C,
    mut processes: Processes,
    history: Arc<History>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    while !stop.load(Ordering::Acquire) {
        if !client.ready().await {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let operation = client.draw();
        step(&mut client, &operation, &mut processes, &history).await?;
    }
    Ok(())
}

/// These operations, each until it has taken place.
///
/// # Errors
/// When one does not within a minute, or is answered with what cannot be.
pub async fn close<C: Client>(
    client: &mut C,
    operations: &[C::Operation],
    mut processes: Processes,
    history: &History,
) -> Result<()> {
    for operation in operations {
        let deadline = deadline_after(SERVED_AGAIN);
        while !client.ready().await || !step(client, operation, &mut processes, history).await? {
            if deadline.elapsed() > Duration::ZERO {
                let (function, value) = C::invocation(operation);
                bail!("not served a minute after everything was healed: {function} {value}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
