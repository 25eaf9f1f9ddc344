//! The connection of the shell: sends text, prints results and errors.

use super::SqlArgs;
use super::split::{self, Open};
use super::table::Table;
use anyhow::{Context, Result};
use futures::{SinkExt, StreamExt, TryStreamExt};
use lineradb_common::clock::Stopwatch;
use lineradb_common::spawn;
use serde_json::{Value, json};
use std::io::Write;
use tokio_postgres::error::{DbError, ErrorPosition};
use tokio_postgres::{AsyncMessage, Client, Error, NoTls, SimpleQueryMessage};

/// A connected shell and its switches.
pub struct Shell {
    client: Client,
    /// Where it is connected, for the prompt and `\conninfo`.
    pub database: String,
    /// As given.
    pub url: String,
    json: bool,
    /// `\x`
    pub expanded: bool,
    /// `\timing`
    pub timing: bool,
    /// `\q`
    pub quit: bool,
}

impl Shell {
    /// Connects, and prints the server's notices from then on.
    pub async fn connect(args: &SqlArgs) -> Result<Shell> {
        let config: tokio_postgres::Config = args.url.parse().context("--url")?;
        let database = config.get_dbname().unwrap_or("lineradb").to_owned();
        let (client, mut connection) = config.connect(NoTls).await.with_context(|| {
            format!(
                "cannot connect to {} (is a server running? `lineradb dev` starts one)",
                args.url
            )
        })?;
        // Ends by itself when the client is dropped.
        spawn::task("sql-shell-connection", async move {
            let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(message) = messages.next().await {
                match message {
                    Ok(AsyncMessage::Notice(notice)) => {
                        eprintln!("{}:  {}", notice.severity(), notice.message());
                    }
                    Ok(_) => {}
                    Err(error) => {
                        eprintln!("connection lost: {error}");
                        break;
                    }
                }
            }
        });
        Ok(Shell {
            client,
            database,
            url: args.url.clone(),
            json: args.json,
            expanded: args.expanded,
            timing: false,
            quit: false,
        })
    }

    /// The first line of an interactive shell.
    pub async fn greeting(&self) -> String {
        let version = match self.client.simple_query("SHOW server_version").await {
            Ok(messages) => messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            }),
            Err(_) => None,
        };
        format!(
            "lineradb sql {} (server {})\nType \\? for help, \\q to leave.",
            env!("CARGO_PKG_VERSION"),
            version.as_deref().unwrap_or("unknown")
        )
    }

    /// What to show in front of the next line.
    pub fn prompt(&self, open: Open) -> String {
        let mark = match open {
            Open::Nothing => "=",
            Open::Statement => "-",
            Open::Quoted => "'",
        };
        format!("{}{mark}> ", self.database)
    }

    /// Sends `sql` as one message and prints every result. False on an error.
    pub async fn simple(&mut self, sql: &str) -> bool {
        let watch = Stopwatch::start();
        let result = if is_copy_out(sql) {
            self.copy_out(sql).await
        } else {
            self.query(sql).await
        };
        let ok = match result {
            Ok(()) => true,
            Err(error) => {
                self.print_error(sql, &error);
                false
            }
        };
        if self.timing {
            let time = format!("Time: {:.3} ms", watch.elapsed().as_secs_f64() * 1e3);
            // Standard output is the results' alone when it is read by a program.
            match self.json {
                true => eprintln!("{time}"),
                false => println!("{time}"),
            }
        }
        if self.client.is_closed() {
            eprintln!("The connection to the server was lost.");
            self.quit = true;
        }
        ok
    }

    /// True when a query has rows; `None` after an error, which is printed.
    pub async fn exists(&self, sql: &str) -> Option<bool> {
        match self.client.simple_query(sql).await {
            Ok(messages) => Some(
                messages
                    .iter()
                    .any(|message| matches!(message, SimpleQueryMessage::Row(_))),
            ),
            Err(error) => {
                self.print_error(sql, &error);
                None
            }
        }
    }

    /// Runs a COPY FROM STDIN with its data. False on an error.
    pub async fn copy_in(&mut self, sql: &str, data: String) -> bool {
        let copied = async {
            let sink = self.client.copy_in(sql).await?;
            futures::pin_mut!(sink);
            sink.send(bytes::Bytes::from(data)).await?;
            sink.finish().await
        };
        match copied.await {
            Ok(rows) => {
                if !self.json {
                    println!("COPY {rows}");
                }
                true
            }
            Err(error) => {
                self.print_error(sql, &error);
                false
            }
        }
    }

    async fn copy_out(&self, sql: &str) -> Result<(), Error> {
        let stream = self.client.copy_out(sql).await?;
        futures::pin_mut!(stream);
        let mut out = std::io::stdout();
        while let Some(chunk) = stream.try_next().await? {
            // A closed pipe ends the output, not the shell.
            if out.write_all(&chunk).is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn query(&self, sql: &str) -> Result<(), Error> {
        let statements = split::statements(sql);
        let mut tags = statements.iter();
        // JSON needs the columns' types, which the simple protocol hides.
        let types = match statements.as_slice() {
            [one] if self.json => match self.client.prepare(one).await {
                Ok(prepared) => prepared
                    .columns()
                    .iter()
                    .map(|column| Some(column.type_().clone()))
                    .collect(),
                Err(_) => Vec::new(),
            },
            _ => Vec::new(),
        };
        let cancel = self.client.cancel_token();
        let run = async {
            let stream = self.client.simple_query_raw(sql).await?;
            futures::pin_mut!(stream);
            let mut table: Option<Table> = None;
            while let Some(message) = stream.try_next().await? {
                match message {
                    SimpleQueryMessage::RowDescription(columns) => {
                        table = Some(Table {
                            columns: columns.iter().map(|c| c.name().to_owned()).collect(),
                            types: types.clone(),
                            rows: Vec::new(),
                        });
                    }
                    SimpleQueryMessage::Row(row) => {
                        let values = (0..row.len()).map(|i| row.get(i).map(str::to_owned));
                        table.get_or_insert_default().rows.push(values.collect());
                    }
                    SimpleQueryMessage::CommandComplete(rows) => {
                        let statement = tags.next().map_or("", String::as_str);
                        self.print(table.take(), statement, rows);
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        futures::pin_mut!(run);
        loop {
            tokio::select! {
                result = &mut run => return result,
                pressed = tokio::signal::ctrl_c() => {
                    if pressed.is_ok() {
                        eprintln!("Cancel request sent");
                        // The statement then ends with 57014.
                        if let Err(error) = cancel.cancel_query(NoTls).await {
                            eprintln!("cancel failed: {error}");
                        }
                    }
                }
            }
        }
    }

    fn print_error(&self, sql: &str, error: &Error) {
        match error.as_db_error() {
            _ if self.json => eprintln!("{}", error_json(error)),
            Some(error) => eprint!("{}", describe(sql, error)),
            None => eprintln!("ERROR:  {error}"),
        }
    }

    fn print(&self, table: Option<Table>, statement: &str, rows: u64) {
        match table {
            Some(table) if self.json => println!("{}", table.json()),
            Some(table) if self.expanded => print!("{}", table.expanded()),
            Some(table) => println!("{}", table.aligned()),
            None if self.json => {}
            None => println!("{}", command_tag(statement, rows)),
        }
    }
}

/// The tag as psql prints it; this client is told only the number of rows.
fn command_tag(statement: &str, rows: u64) -> String {
    let mut words = statement
        .split(|c: char| !c.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_uppercase)
        .filter(|word| !matches!(word.as_str(), "UNIQUE" | "OR" | "REPLACE"));
    let first = words.next().unwrap_or_default();
    match first.as_str() {
        "INSERT" => format!("INSERT 0 {rows}"),
        "UPDATE" | "DELETE" | "SELECT" | "COPY" | "MERGE" => format!("{first} {rows}"),
        "CREATE" | "DROP" | "ALTER" | "TRUNCATE" => match words.next() {
            Some(second) => format!("{first} {second}"),
            None => first,
        },
        _ => first,
    }
}

/// True for `COPY ... FROM STDIN`.
pub fn is_copy_in(statement: &str) -> bool {
    is_copy(statement, "STDIN")
}

fn is_copy_out(statement: &str) -> bool {
    is_copy(statement, "STDOUT")
}

fn is_copy(statement: &str, end: &str) -> bool {
    let mut words = statement
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty());
    words
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("copy"))
        && words.any(|word| word.eq_ignore_ascii_case(end))
}

/// An error as the HTTP interface shows it.
fn error_json(error: &Error) -> Value {
    let Some(error) = error.as_db_error() else {
        return json!({"error": {"message": error.to_string()}});
    };
    let position = match error.position() {
        Some(ErrorPosition::Original(position)) => Some(position),
        _ => None,
    };
    json!({"error": {
        "code": error.code().code(),
        "message": error.message(),
        "detail": error.detail(),
        "hint": error.hint(),
        "position": position,
    }})
}

fn describe(sql: &str, error: &DbError) -> String {
    let position = match error.position() {
        Some(ErrorPosition::Original(position)) => Some(*position as usize),
        _ => None,
    };
    let mut out = format!(
        "{}:  {}: {}\n",
        error.severity(),
        error.code().code(),
        error.message()
    );
    if let Some(caret) = position.and_then(|position| caret(sql, position)) {
        out.push_str(&caret);
    }
    for (name, text) in [("DETAIL", error.detail()), ("HINT", error.hint())] {
        if let Some(text) = text {
            out.push_str(&format!("{name}:  {text}\n"));
        }
    }
    out
}

/// Characters of a line that are shown in front of an error, and in all.
const CARET_BEFORE: usize = 50;
const CARET_WIDTH: usize = 75;

/// The line that holds character `position` (from 1), and a caret below it.
fn caret(sql: &str, position: usize) -> Option<String> {
    let mut left = position.checked_sub(1)?;
    for (number, line) in sql.split('\n').enumerate() {
        let length = line.chars().count();
        if left <= length {
            let head = format!("LINE {}: ", number + 1);
            // Of a long line, what is around the error.
            let from = left.saturating_sub(CARET_BEFORE);
            let line: String = line.chars().skip(from).take(CARET_WIDTH).collect();
            let space: String = line
                .chars()
                .take(left - from)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            return Some(format!(
                "{head}{line}\n{:width$}{space}^\n",
                "",
                width = head.len()
            ));
        }
        left -= length + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_below_the_error() {
        assert_eq!(
            caret("select 1,\n  nope", 13).unwrap(),
            "LINE 2:   nope\n          ^\n"
        );
        assert_eq!(caret("select", 99), None);
    }

    #[test]
    fn tags_say_what_was_done() {
        assert_eq!(command_tag("insert into t values (1)", 1), "INSERT 0 1");
        assert_eq!(
            command_tag("create unique index i on t(a)", 0),
            "CREATE INDEX"
        );
        assert_eq!(command_tag("BEGIN", 0), "BEGIN");
        assert_eq!(command_tag("delete from t", 3), "DELETE 3");
    }

    #[test]
    fn copy_is_told_from_other_statements() {
        assert!(is_copy_in("copy t (a, b) from stdin with (format csv)"));
        assert!(is_copy_out("COPY t TO STDOUT"));
        assert!(!is_copy_in("select 'copy from stdin'"));
    }
}
