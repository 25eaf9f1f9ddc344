//! The scripts in `tests/slt`, in the format of sqllogictest: statements with
//! the rows or the error that they give. An error is named by its SQLSTATE or by
//! a part of its message.

use crate::cluster::on_cluster;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, SimpleQueryMessage};

/// One statement of a script and what it must give.
struct Record {
    line: usize,
    sql: String,
    expected: Expected,
}

enum Expected {
    Done,
    Rows(Vec<String>),
    Error(String),
}

/// The records of a script.
fn records(script: &str) -> Vec<Record> {
    let mut records = Vec::new();
    let mut lines = script.lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        let mut words = line.split(' ');
        let kind = (words.next(), words.next());
        if !matches!(kind.0, Some("statement" | "query")) {
            continue;
        }
        let mut sql = Vec::new();
        while let Some((_, part)) = lines.next_if(|(_, l)| !l.is_empty() && *l != "----") {
            sql.push(part);
        }
        let mut rows = Vec::new();
        if lines.next_if(|(_, l)| *l == "----").is_some() {
            while let Some((_, row)) = lines.next_if(|(_, l)| !l.is_empty()) {
                rows.push(row.to_owned());
            }
        }
        let expected = match kind {
            (Some("query"), _) => Expected::Rows(rows),
            (_, Some("error")) => {
                let text = line.trim_start_matches("statement error").trim();
                // The format has regular expressions here.
                Expected::Error(text.replace('\\', ""))
            }
            _ => Expected::Done,
        };
        records.push(Record {
            line: at + 1,
            sql: sql.join("\n"),
            expected,
        });
    }
    records
}

/// Runs a statement: its rows as lines.
async fn rows(client: &Client, sql: &str) -> Result<Vec<String>, DbError> {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => match error.as_db_error() {
            Some(error) => return Err(error.clone()),
            None => panic!("{error}: {sql}"),
        },
    };
    let shown = |value: Option<&str>| match value {
        None => "NULL".to_owned(),
        Some("") => "(empty)".to_owned(),
        Some(text) => text.replace('\n', "\\n"),
    };
    let mut lines = Vec::new();
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message {
            let values: Vec<String> = (0..row.len()).map(|at| shown(row.get(at))).collect();
            lines.push(values.join(" "));
        }
    }
    Ok(lines)
}

/// Runs a script on a cluster of its own; all that is wrong is listed at once.
fn holds(script: &'static str) {
    on_cluster(move |cluster| async move {
        let client = cluster.connect().await;
        let mut wrong = Vec::new();
        for Record {
            line,
            sql,
            expected,
        } in records(script)
        {
            let got = rows(&client, &sql).await;
            let (fine, wanted) = match (&got, expected) {
                (Ok(_), Expected::Done) => (true, String::new()),
                (Ok(rows), Expected::Rows(expected)) => {
                    (*rows == expected, format!("{expected:?}"))
                }
                (Err(e), Expected::Error(text)) => {
                    (e.code().code() == text || e.message().contains(&text), text)
                }
                (_, Expected::Error(text)) => (false, text),
                (_, Expected::Rows(expected)) => (false, format!("{expected:?}")),
                (_, Expected::Done) => (false, "no error".to_owned()),
            };
            if !fine {
                let got = got.map_err(|e| format!("{} {}", e.code().code(), e.message()));
                wrong.push(format!(
                    "line {line}: {sql}\n  expected {wanted}\n  got {got:?}"
                ));
            }
        }
        assert!(
            wrong.is_empty(),
            "{} wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        cluster.stop().await;
    });
}

#[test]
fn corners() {
    holds(include_str!("../slt/corners.slt"));
}

#[test]
fn ddl() {
    holds(include_str!("../slt/ddl.slt"));
}

#[test]
fn dml() {
    holds(include_str!("../slt/dml.slt"));
}

#[test]
fn equality() {
    holds(include_str!("../slt/equality.slt"));
}

#[test]
fn fidelity() {
    holds(include_str!("../slt/fidelity.slt"));
}

#[test]
fn joins() {
    holds(include_str!("../slt/joins.slt"));
}

#[test]
fn literals() {
    holds(include_str!("../slt/literals.slt"));
}

#[test]
fn ordering() {
    holds(include_str!("../slt/ordering.slt"));
}

#[test]
fn point_statements() {
    holds(include_str!("../slt/point.slt"));
}

#[test]
fn queries() {
    holds(include_str!("../slt/queries.slt"));
}

#[test]
fn transactions() {
    holds(include_str!("../slt/transactions.slt"));
}

#[test]
fn types() {
    holds(include_str!("../slt/types.slt"));
}

/// What holds without tables holds with a cluster below.
#[test]
fn semantics() {
    holds(include_str!("../slt/semantics.slt"));
}
