//! Registers in the rows of a table, each request one statement.

use super::Request;
use crate::linear::{Action, Answer, Value};
use crate::sql::{Failure, Session, Sessions};
use anyhow::{Result, bail};

pub(super) const NAME: &str = "registers";
pub(super) const CREATE: &str = "CREATE TABLE registers (k int8 PRIMARY KEY, v int8 NOT NULL)";

const READ: &str = "SELECT v FROM registers WHERE k = $1";
const WRITE: &str = "INSERT INTO registers (k, v) VALUES ($1, $2) \
                     ON CONFLICT (k) DO UPDATE SET v = excluded.v";
const DELETE: &str = "DELETE FROM registers WHERE k = $1";
const REPLACE: &str = "UPDATE registers SET v = $3 WHERE k = $1 AND v = $2";
const REMOVE: &str = "DELETE FROM registers WHERE k = $1 AND v = $2";
const CREATE_ROW: &str = "INSERT INTO registers (k, v) VALUES ($1, $2) ON CONFLICT (k) DO NOTHING";

/// A client of the table.
pub(super) struct Table(Sessions);

impl Table {
    pub(super) fn new(urls: Vec<String>, number: usize) -> Self {
        Table(Sessions::new(urls, number))
    }

    pub(super) async fn ready(&mut self) -> bool {
        self.0.ready().await
    }

    /// Carries a request out.
    ///
    /// # Errors
    /// An answer that makes no sense.
    pub(super) async fn request(
        &mut self,
        number: u64,
        request: Request,
    ) -> Result<Result<Action, Failure>> {
        let session = self.0.get()?;
        let rows = match carry_out(session, number as i64, request).await {
            Ok(rows) => rows,
            Err(failure) => {
                if failure.unknown {
                    self.0.leave();
                }
                return Ok(Err(failure));
            }
        };
        Ok(Ok(match (request, rows) {
            (Request::Read, Rows::Read(value)) => Action::Read(value),
            (Request::Write(value), Rows::Changed(0..=1)) => Action::Write(value),
            (Request::CompareAndSet { expected, new }, rows) => Action::CompareAndSet {
                expected,
                new,
                answer: match rows {
                    Rows::Changed(1) | Rows::Read(None) => Answer::Set,
                    Rows::Changed(0) => Answer::Differs,
                    Rows::Read(value) => Answer::Found(value),
                    Rows::Changed(rows) => bail!("{rows} rows of one key were changed"),
                },
            },
            (request, rows) => bail!("{request:?} was answered with {rows:?}"),
        }))
    }
}

/// What a statement answers.
#[derive(Debug)]
enum Rows {
    Read(Value),
    Changed(u64),
}

async fn carry_out(session: &mut Session, key: i64, request: Request) -> Result<Rows, Failure> {
    let changed = match request {
        // To replace nothing by nothing is to look whether there is something.
        Request::Read
        | Request::CompareAndSet {
            expected: None,
            new: None,
        } => {
            let rows = session.query(READ, &[&key]).await;
            let rows = rows.map_err(Failure::before_commit)?;
            return Ok(Rows::Read(rows.first().map(|row| row.get(0))));
        }
        Request::Write(Some(value)) => session.execute(WRITE, &[&key, &value]).await?,
        Request::Write(None) => session.execute(DELETE, &[&key]).await?,
        Request::CompareAndSet {
            expected: Some(expected),
            new: Some(new),
        } => session.execute(REPLACE, &[&key, &expected, &new]).await?,
        Request::CompareAndSet {
            expected: Some(expected),
            new: None,
        } => session.execute(REMOVE, &[&key, &expected]).await?,
        Request::CompareAndSet {
            expected: None,
            new: Some(new),
        } => session.execute(CREATE_ROW, &[&key, &new]).await?,
    };
    Ok(Rows::Changed(changed))
}
