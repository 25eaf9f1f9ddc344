//! A client that speaks SQL. What it does is its script's; how it finds a gateway, and
//! what a failure leaves behind, is the same for all of them.

use crate::sql::{Failure, Session, Sessions};
use crate::workload::{Client, Outcome};
use anyhow::{Error, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use std::future::Future;

/// Why an operation has no result.
#[derive(Debug)]
pub enum Unserved {
    /// The database says so, or says nothing.
    Failure(Failure),
    /// It was answered with what no state of the database explains.
    Nonsense(Error),
}

impl From<Failure> for Unserved {
    fn from(failure: Failure) -> Self {
        Unserved::Failure(failure)
    }
}

impl From<Error> for Unserved {
    fn from(error: Error) -> Self {
        Unserved::Nonsense(error)
    }
}

/// What a client does.
pub trait Script: Send + 'static {
    /// One thing that it does.
    type Operation: Send + Sync;

    /// The next one, by chance.
    fn draw(&mut self, chance: &mut StdRng) -> Self::Operation;

    /// How an operation stands in the history: function and arguments.
    fn invocation(operation: &Self::Operation) -> (&'static str, Value);

    /// Carries it out; a transaction that it has begun may be left open when it fails.
    ///
    /// # Errors
    /// See [`Unserved`].
    fn run(
        session: &mut Session,
        operation: &Self::Operation,
    ) -> impl Future<Output = Result<Value, Unserved>> + Send;
}

/// A client with a script.
pub struct SqlClient<S> {
    sessions: Sessions,
    chance: StdRng,
    script: S,
}

impl<S: Script> SqlClient<S> {
    /// The client of that number of the gateways at these addresses.
    pub fn new(urls: Vec<String>, number: usize, seed: u64, script: S) -> Self {
        SqlClient {
            sessions: Sessions::new(urls, number),
            chance: StdRng::seed_from_u64(seed.wrapping_add(number as u64)),
            script,
        }
    }
}

impl<S: Script> Client for SqlClient<S> {
    type Operation = S::Operation;

    async fn ready(&mut self) -> bool {
        self.sessions.ready().await
    }

    fn draw(&mut self) -> S::Operation {
        self.script.draw(&mut self.chance)
    }

    fn invocation(operation: &S::Operation) -> (&'static str, Value) {
        S::invocation(operation)
    }

    async fn run(&mut self, operation: &S::Operation) -> Result<Outcome> {
        let session = self.sessions.get()?;
        match S::run(session, operation).await {
            Ok(value) => Ok(Outcome::Ok(value)),
            Err(Unserved::Nonsense(error)) => Err(error),
            Err(Unserved::Failure(failure)) => {
                // Leaves a failed transaction behind, if there is one.
                let over = failure.unknown || session.is_over();
                if over || session.command("ROLLBACK").await.is_err() {
                    self.sessions.leave();
                }
                Ok(failure.into())
            }
        }
    }
}
