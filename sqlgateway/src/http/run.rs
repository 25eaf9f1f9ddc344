//! Runs the statements of a request on a session, and writes their results as
//! JSON while the rows come.

use super::params::Param;
use crate::encode::{JsonRows, write_json_string};
use crate::error::{Result, SqlError};
use crate::metrics;
use crate::query::errors::sql_error;
use crate::session::{Outcome, ResultColumn, Session};
use futures::StreamExt;
use lineradb_client::Timing;
use lineradb_common::clock::Stopwatch;
use lineradb_common::sql::Datum;
use serde_json::Value;
use std::fmt::Write;
use std::sync::Arc;

/// Largest JSON answer; beyond it rows are to be streamed.
const ANSWER_MAX: usize = 64 << 20;

/// The results of a request.
#[derive(Default)]
pub struct Results {
    /// One JSON object per statement, without its closing brace.
    statements: Vec<Vec<u8>>,
    size: usize,
    /// The request's idempotency key had committed before.
    replayed: bool,
}

/// Runs `sql`; with `params` it must be one statement.
///
/// # Errors
/// The first statement's error; what was implicit is rolled back.
pub async fn run(session: &mut Session, sql: &str, params: Option<&[Param]>) -> Result<Results> {
    let mut results = Results::default();
    let kind = metrics::kind_of(sql);
    let watch = Stopwatch::start();
    let ran = match params {
        Some(params) => one(session, sql, params, &mut results).await,
        None => all(session, sql, &mut results).await,
    };
    // Also after an error: ends what was implicit.
    let ended = session.sync().await;
    let outcome = ran.and(ended);
    let code = outcome.as_ref().err().map_or("00000", |e| &e.sqlstate);
    metrics::statement(kind, code, watch.elapsed());
    outcome?;
    if let Some(tag) = session.take_earlier_outcome() {
        results = Results::default();
        results.replayed = true;
        let (command, rows) = split_tag(&tag);
        results.command(command, rows);
    }
    Ok(results)
}

async fn all(session: &mut Session, sql: &str, results: &mut Results) -> Result<()> {
    let mut query = session.begin_simple(sql)?;
    while let Some(outcome) = session.next_simple(&mut query).await {
        results.take(session, outcome?).await?;
    }
    Ok(())
}

async fn one(
    session: &mut Session,
    sql: &str,
    params: &[Param],
    results: &mut Results,
) -> Result<()> {
    let outcome = start_one(session, sql, params).await?;
    results.take(session, outcome).await
}

/// Plans and starts one statement.
///
/// # Errors
/// 42601 unless it is one statement, 08P01 for a wrong number of parameters,
/// those of the parameters' values, and its own.
pub async fn start_one(session: &mut Session, sql: &str, params: &[Param]) -> Result<Outcome> {
    let mut statements = session.parse(sql)?;
    let statement = match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => statement,
        (None, _) => return Ok(Outcome::Empty),
        (Some(_), false) => {
            return Err(SqlError::syntax(
                "parameters and streaming need exactly one statement",
            ));
        }
    };
    if statement.is_empty() {
        return Ok(Outcome::Empty);
    }
    let prepared = session.prepare(statement, &[]).await?;
    let types = &prepared.parameter_types;
    if params.len() != types.len() {
        let message = format!(
            "the statement has {} parameters, but the request supplies {}",
            types.len(),
            params.len()
        );
        return Err(SqlError::new("08P01", message));
    }
    let zone = session.settings().time_zone.clone();
    let mut values: Vec<Datum> = Vec::with_capacity(params.len());
    for (at, (value, sql_type)) in params.iter().zip(types).enumerate() {
        let value = value.datum(*sql_type, &zone).map_err(|error| {
            SqlError::from(error).with_detail(format!("Parameter ${}.", at + 1))
        })?;
        values.push(value);
    }
    session.execute(&prepared, values).await
}

impl Results {
    /// The results of one statement that returns no rows.
    ///
    /// # Errors
    /// 0A000 for COPY.
    pub async fn of(session: &mut Session, outcome: Outcome) -> Result<Results> {
        let mut results = Results::default();
        results.take(session, outcome).await?;
        Ok(results)
    }

    /// True for the first outcome of an idempotency key, told again.
    pub fn is_replayed(&self) -> bool {
        self.replayed
    }

    async fn take(&mut self, session: &mut Session, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Rows {
                columns,
                mut stream,
                tag,
                count: _,
            } => {
                let mut out = head(&columns);
                let zone = session.settings().time_zone.clone();
                let types = columns.iter().map(|column| column.sql_type).collect();
                let rows = JsonRows::new(types, zone);
                let mut sent = 0_u64;
                while let Some(batch) = stream.next().await {
                    let batch = batch.map_err(sql_error)?;
                    for row in 0..batch.num_rows() {
                        if sent > 0 {
                            out.push(b',');
                        }
                        rows.array(&batch, row, &mut out)?;
                        sent += 1;
                    }
                    if self.size + out.len() > ANSWER_MAX {
                        return Err(SqlError::new(
                            "54000",
                            format!("the result is larger than {ANSWER_MAX} bytes"),
                        )
                        .with_hint("Ask for a stream with \"Accept: application/x-ndjson\"."));
                    }
                }
                let command = split_tag(tag).0;
                let affected = match command {
                    "INSERT" | "UPDATE" | "DELETE" | "MERGE" => Some(sent),
                    _ => None,
                };
                tail(&mut out, command, affected);
                self.push(out);
            }
            Outcome::Command { tag, rows } => self.command(split_tag(&tag).0, rows),
            Outcome::Empty => self.command("", None),
            Outcome::CopyIn(copy) => {
                copy.fail(session, "COPY needs the PostgreSQL protocol")
                    .await;
                return Err(no_copy());
            }
            Outcome::CopyOut(_) => return Err(no_copy()),
        }
        Ok(())
    }

    fn command(&mut self, command: &str, rows: Option<u64>) {
        let mut out = head(&[]);
        tail(&mut out, command, rows);
        self.push(out);
    }

    fn push(&mut self, statement: Vec<u8>) {
        self.size += statement.len();
        self.statements.push(statement);
    }

    /// The answer: the last statement's result, all of them when there are
    /// several, and the receipt.
    pub fn document(mut self, elapsed_ms: f64, timing: &Timing) -> Vec<u8> {
        if self.statements.is_empty() {
            self.command("", None);
        }
        let mut out = match self.statements.last() {
            Some(last) => last.clone(),
            None => Vec::new(),
        };
        if self.statements.len() > 1 {
            out.extend_from_slice(b",\"results\":[");
            for (at, statement) in self.statements.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(statement);
                out.push(b'}');
            }
            out.push(b']');
        }
        let mut rest = String::new();
        // Writing to a String does not fail.
        let _ = write!(rest, ",\"elapsed_ms\":{elapsed_ms:.3}");
        let _ = write!(rest, ",\"timing\":{}", timing_json(timing));
        if self.replayed {
            rest.push_str(",\"replayed\":true");
        }
        rest.push('}');
        out.extend_from_slice(rest.as_bytes());
        out
    }
}

fn no_copy() -> SqlError {
    SqlError::unsupported("COPY over HTTP")
        .with_hint("Use the PostgreSQL protocol, for example psql's \\copy.")
}

fn head(columns: &[ResultColumn]) -> Vec<u8> {
    let mut out = b"{\"columns\":[".to_vec();
    for (at, column) in columns.iter().enumerate() {
        out.extend_from_slice(if at > 0 {
            b",{\"name\":"
        } else {
            b"{\"name\":"
        });
        write_json_string(&column.name, &mut out);
        out.extend_from_slice(b",\"type\":");
        write_json_string(column.sql_type.short_name(), &mut out);
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"rows\":[");
    out
}

fn tail(out: &mut Vec<u8>, command: &str, rows: Option<u64>) {
    out.extend_from_slice(b"],\"rows_affected\":");
    match rows {
        Some(rows) => out.extend_from_slice(rows.to_string().as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"command\":");
    write_json_string(command, out);
}

/// `INSERT 0 3` is `INSERT` and 3.
pub fn split_tag(tag: &str) -> (&str, Option<u64>) {
    let mut command = tag.trim_end();
    let mut rows = None;
    while let Some((head, last)) = command.rsplit_once(' ') {
        let Ok(number) = last.parse() else { break };
        rows = rows.or(Some(number));
        command = head;
    }
    (command, rows)
}

/// The receipt, in microseconds.
pub fn timing_json(timing: &Timing) -> Value {
    let parts = { timing.parts() }.into_iter();
    parts
        .map(|(name, value)| (name, Value::from(value)))
        .collect()
}

/// Names that a JSON object can hold: a repeated one gets a number.
pub fn unique_names(columns: &Arc<[ResultColumn]>) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(columns.len());
    for column in columns.iter() {
        let mut name = column.name.clone();
        let mut number = 1;
        while names.contains(&name) {
            number += 1;
            name = format!("{}_{number}", column.name);
        }
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_common::sql::SqlType;

    #[test]
    fn tags_are_split() {
        assert_eq!(split_tag("INSERT 0 3"), ("INSERT", Some(3)));
        assert_eq!(split_tag("INSERT 0"), ("INSERT", Some(0)));
        assert_eq!(split_tag("CREATE TABLE"), ("CREATE TABLE", None));
        assert_eq!(split_tag("DELETE 2"), ("DELETE", Some(2)));
    }

    #[test]
    fn one_statement_is_the_document_of_the_contract() {
        let mut results = Results::default();
        let mut out = head(&[ResultColumn::new("id", SqlType::Int8)]);
        out.extend_from_slice(b"[1]");
        tail(&mut out, "SELECT", None);
        results.push(out);
        let text = String::from_utf8(results.document(1.2, &Timing::default())).unwrap();
        assert!(text.starts_with(
            r#"{"columns":[{"name":"id","type":"int8"}],"rows":[[1]],"rows_affected":null,"command":"SELECT","elapsed_ms":1.200,"timing":{"requests":0,"#
        ));
        assert!(
            serde_json::from_str::<Value>(&text)
                .unwrap()
                .get("results")
                .is_none()
        );
    }

    #[test]
    fn several_statements_have_results() {
        let mut results = Results::default();
        results.command("CREATE TABLE", None);
        results.command("INSERT", Some(2));
        let document = results.document(0.0, &Timing::default());
        let value: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(value["command"], "INSERT");
        assert_eq!(value["rows_affected"], 2);
        assert_eq!(value["results"].as_array().unwrap().len(), 2);
        assert_eq!(value["results"][0]["command"], "CREATE TABLE");
    }

    #[test]
    fn repeated_names_are_numbered() {
        let columns: Arc<[ResultColumn]> = ["a", "b", "a"]
            .map(|name| ResultColumn::new(name, SqlType::Text))
            .into();
        assert_eq!(unique_names(&columns), ["a", "b", "a_2"]);
    }
}
