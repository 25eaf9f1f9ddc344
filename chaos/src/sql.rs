//! A connection to a gateway, and what its errors say of a commit.
//!
//! A statement that fails has done nothing, with these exceptions, after which
//! nobody knows: no answer came, the connection broke, or the server says so
//! (40003, class 08, 57P01, 57P02, and XX000, which promises nothing). What was
//! sent before COMMIT is certain, whatever happens: [`Failure::before_commit`].

use crate::turns::Turns;
use anyhow::{Context, Result};
use lineradb_common::clock::deadline_after;
use lineradb_common::spawn;
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, Row, Statement};

/// A statement without an answer for so long is given up: longer than it takes a
/// gateway to find out that a leader is lost, and its successor.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// A gateway that does not let somebody in for so long is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long [`connect`] tries.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Why a statement has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// It may have taken effect, or still will.
    pub unknown: bool,
    /// For people.
    pub reason: String,
}

impl Failure {
    /// One after which nobody knows.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Failure {
            unknown: true,
            reason: reason.into(),
        }
    }

    /// This failure when COMMIT was not sent yet: nothing was committed.
    #[must_use]
    pub fn before_commit(self) -> Self {
        Failure {
            unknown: false,
            ..self
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Failure::unknown(error.to_string());
        };
        Failure {
            unknown: leaves_unknown(db.code().code()),
            reason: format!("{}: {}", db.code().code(), db.message()),
        }
    }
}

/// True for an SQLSTATE after which a commit may or may not have happened.
fn leaves_unknown(sqlstate: &str) -> bool {
    matches!(sqlstate, "40003" | "57P01" | "57P02" | "XX000") || sqlstate.starts_with("08")
}

/// True for an error of a gateway that serves: of the statement, or a conflict.
fn serves(error: &Error) -> bool {
    let code = error.code().map_or("", |code| code.code());
    let of_the_statement = ["22", "23", "25", "40", "42", "55", "72"];
    code != "40003" && of_the_statement.iter().any(|class| code.starts_with(class))
}

/// Connects, retrying for ten seconds.
///
/// # Errors
/// When nobody answers in that time.
pub async fn connect(url: &str) -> Result<Client> {
    let deadline = deadline_after(CONNECT_PATIENCE);
    loop {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                spawn::task("sql-connection", async move {
                    // A broken connection shows as an error of the next statement.
                    let _ = connection.await;
                });
                return Ok(client);
            }
            Err(error) if deadline.elapsed() > Duration::ZERO => {
                return Err(error).context(format!("connecting to {url}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A connection that gives up what takes too long. Dropping it closes the
/// socket, whatever is on its way.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    statements: HashMap<String, Statement>,
    given_up: bool,
}

impl Session {
    /// Connects once; `None` when that does not succeed soon.
    pub async fn connect(url: &str) -> Option<Session> {
        let connecting = tokio_postgres::connect(url, NoTls);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let (client, connection) = connected.ok()?.ok()?;
        let connection = spawn::task("sql-connection", async move {
            // As above.
            let _ = connection.await;
        });
        Some(Session {
            client,
            connection,
            statements: HashMap::new(),
            given_up: false,
        })
    }

    /// True when no statement can succeed any more, or the gateway does not serve.
    pub fn is_over(&self) -> bool {
        self.given_up || self.client.is_closed()
    }

    /// Runs statements without parameters: ROLLBACK and its like.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn command(&mut self, sql: &str) -> Result<(), Failure> {
        let answer = in_time(self.client.batch_execute(sql)).await;
        self.answered(answer)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn begin(&mut self) -> Result<(), Failure> {
        self.command("BEGIN").await.map_err(Failure::before_commit)
    }

    /// Ends it.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn commit(&mut self) -> Result<(), Failure> {
        self.command("COMMIT").await
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn query(
        &mut self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let statement = self.prepared(sql).await?;
        let answer = in_time(self.client.query(&statement, parameters)).await;
        self.answered(answer)
    }

    /// The number of rows that a statement changed.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn execute(
        &mut self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Failure> {
        let statement = self.prepared(sql).await?;
        let answer = in_time(self.client.execute(&statement, parameters)).await;
        self.answered(answer)
    }

    /// Preparing does nothing that could be unknown.
    async fn prepared(&mut self, sql: &str) -> Result<Statement, Failure> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let answer = in_time(self.client.prepare(sql)).await;
        let statement = self.answered(answer).map_err(Failure::before_commit)?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    fn answered<T>(&mut self, answer: Option<Result<T, Error>>) -> Result<T, Failure> {
        match answer {
            Some(Ok(result)) => Ok(result),
            Some(Err(error)) => {
                self.given_up |= !serves(&error);
                Err(Failure::from(&error))
            }
            None => {
                self.given_up = true;
                Err(Failure::unknown("no answer in time"))
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn in_time<T>(statement: impl Future<Output = Result<T, Error>>) -> Option<Result<T, Error>> {
    tokio::time::timeout(STATEMENT_TIMEOUT, statement)
        .await
        .ok()
}

/// The sessions of a client, one after the other.
pub struct Sessions {
    urls: Vec<String>,
    turns: Turns,
    current: Option<Session>,
}

impl Sessions {
    /// Of the client of that number.
    pub fn new(urls: Vec<String>, number: usize) -> Self {
        Sessions {
            turns: Turns::new(urls.len(), number),
            urls,
            current: None,
        }
    }

    /// Before each operation: connects unless it is; false when the gateway whose turn it is lets
    /// nobody in.
    pub async fn ready(&mut self) -> bool {
        let connected = self.current.as_ref().is_some_and(|s| !s.is_over());
        if let Some(server) = self.turns.next(connected) {
            self.current = None;
            self.current = Session::connect(&self.urls[server]).await;
        }
        self.current.is_some()
    }

    /// The session.
    ///
    /// # Errors
    /// When it was not made [`Sessions::ready`].
    pub fn get(&mut self) -> Result<&mut Session> {
        self.current.as_mut().context("there is no session")
    }

    /// The next session is a new one.
    pub fn leave(&mut self) {
        self.current = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_errors_leave_a_commit_unknown() {
        for known in [
            "40001", "40P01", "55P03", "57P03", "57014", "23505", "25P02",
        ] {
            assert!(!leaves_unknown(known), "{known}");
        }
        for unknown in ["40003", "08006", "08007", "57P01", "XX000"] {
            assert!(leaves_unknown(unknown), "{unknown}");
        }
        let lost = Failure::unknown("no answer in time");
        assert!(lost.unknown && !lost.before_commit().unknown);
    }
}
