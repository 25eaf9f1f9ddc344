//! Statements that the session carries out itself: transactions, settings,
//! prepared statements, COPY, EXPLAIN, and those that need no work here.

mod copy;
mod cursor;
mod prepare;
mod set;

use super::lexer::tokens;
use super::{AsOf, Command};
use crate::error::{Result, SqlError};
use cursor::Cursor;

pub use copy::{CopyCommand, CopyOptions, CopySource};

/// Modes of BEGIN and SET TRANSACTION.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// ISOLATION LEVEL, in lower case.
    pub isolation: Option<String>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
    /// AS OF SYSTEM TIME.
    pub as_of: Option<AsOf>,
}

/// The value of SET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetValue {
    /// SET x TO DEFAULT
    Default,
    /// SET x TO a, b
    Values(Vec<String>),
}

/// What DISCARD forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardKind {
    /// All session state.
    All,
    /// Cached plans.
    Plans,
    /// Sequences or temporary tables, which do not exist.
    Nothing(&'static str),
}

/// Reads a utility statement; `None`: it is none.
///
/// # Errors
/// 42601 with a position.
pub(super) fn parse(text: &str) -> Result<Option<Command>> {
    let mut c = Cursor {
        text,
        tokens: tokens(text)?,
        at: 0,
    };
    let Some(first) = c.word() else {
        return Ok(None);
    };
    let command = match first.as_str() {
        "begin" => {
            c.accept_any(&["work", "transaction"]);
            Command::Begin(c.modes()?)
        }
        "start" => {
            c.expect("transaction")?;
            Command::Begin(c.modes()?)
        }
        "commit" | "end" => {
            c.accept_any(&["work", "transaction"]);
            if c.accept("prepared") {
                return Ok(Some(Command::Unsupported(
                    "two-phase commit by statement".into(),
                )));
            }
            Command::Commit(c.chain()?)
        }
        "rollback" | "abort" => {
            c.accept_any(&["work", "transaction"]);
            if c.accept("prepared") {
                return Ok(Some(Command::Unsupported(
                    "two-phase commit by statement".into(),
                )));
            }
            if c.accept("to") {
                c.accept("savepoint");
                Command::RollbackTo(c.name()?)
            } else {
                Command::Rollback(c.chain()?)
            }
        }
        "savepoint" => Command::Savepoint(c.name()?),
        "release" => {
            c.accept("savepoint");
            Command::Release(c.name()?)
        }
        "set" => c.set()?,
        "show" => c.show()?,
        "reset" => {
            if c.accept("all") {
                Command::Reset(None)
            } else {
                Command::Reset(Some(c.setting_name()?))
            }
        }
        "discard" => match c.word().as_deref() {
            Some("all") => Command::Discard(DiscardKind::All),
            Some("plans") => Command::Discard(DiscardKind::Plans),
            Some("sequences") => Command::Discard(DiscardKind::Nothing("DISCARD SEQUENCES")),
            Some("temp" | "temporary") => Command::Discard(DiscardKind::Nothing("DISCARD TEMP")),
            _ => return Err(c.syntax_before()),
        },
        "deallocate" => {
            c.accept("prepare");
            if c.accept("all") {
                Command::Deallocate(None)
            } else {
                Command::Deallocate(Some(c.name()?))
            }
        }
        "prepare" => c.prepare()?,
        "execute" => c.execute()?,
        "explain" => return c.explain().map(Some),
        "copy" => c.copy()?,
        "vacuum" => return Ok(Some(Command::NoOperation("VACUUM"))),
        "analyze" | "analyse" => return Ok(Some(Command::NoOperation("ANALYZE"))),
        "reindex" => return Ok(Some(Command::NoOperation("REINDEX"))),
        "cluster" => return Ok(Some(Command::NoOperation("CLUSTER"))),
        "checkpoint" => return Ok(Some(Command::NoOperation("CHECKPOINT"))),
        // Nobody listens and no cursor is open: as in PostgreSQL, there is nothing
        // to end. Connection pools send these when a connection goes back.
        "unlisten" => {
            if !c.symbol("*") {
                c.name()?;
            }
            Command::Nothing("UNLISTEN")
        }
        "close" => {
            if c.accept("all") {
                Command::Nothing("CLOSE CURSOR ALL")
            } else {
                let name = c.name()?;
                c.end()?;
                return Err(SqlError::new(
                    "34000",
                    format!("cursor \"{name}\" does not exist"),
                ));
            }
        }
        "listen" | "notify" | "lock" | "declare" | "fetch" | "move" | "do" | "call" | "grant"
        | "revoke" | "comment" | "security" | "import" | "reassign" | "load" | "refresh"
        | "merge" => {
            return Ok(Some(Command::Unsupported(first.to_uppercase())));
        }
        // TABLE t is short for SELECT * FROM t.
        "table" => {
            let name = &text[c.tokens.get(1).map_or(text.len(), |t| t.start)..];
            let query =
                super::parse_sql(&format!("SELECT * FROM {name}")).map_err(|e| SqlError {
                    position: None,
                    ..e
                })?;
            return Ok(Some(Command::Sql(Box::new(query))));
        }
        _ => return Ok(None),
    };
    c.end()?;
    Ok(Some(command))
}

impl Cursor<'_> {
    fn chain(&mut self) -> Result<bool> {
        if !self.accept("and") {
            return Ok(false);
        }
        let no = self.accept("no");
        self.expect("chain")?;
        Ok(!no)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(sql: &str) -> Command {
        parse(sql).unwrap().expect("a utility statement")
    }

    #[test]
    fn transactions() {
        assert!(matches!(
            one("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
            Command::Begin(m) if m.isolation.as_deref() == Some("repeatable read")
                && m.read_only == Some(true)
        ));
        assert!(matches!(one("START TRANSACTION"), Command::Begin(_)));
        assert!(matches!(one("END"), Command::Commit(false)));
        assert!(matches!(one("ABORT"), Command::Rollback(false)));
        assert!(matches!(one("ROLLBACK TO SAVEPOINT A"), Command::RollbackTo(n) if n == "a"));
        assert!(parse("BEGIN NONSENSE").is_err());
        for misspelt in ["SERIALISABLE", "READ", "READ COMITTED", "REPEATABLE"] {
            let error = parse(&format!("BEGIN ISOLATION LEVEL {misspelt}")).unwrap_err();
            assert_eq!(error.sqlstate, "22023", "{misspelt}");
        }
        assert!(matches!(
            one("BEGIN READ ONLY, AS OF SYSTEM TIME '-3s'"),
            Command::Begin(m) if m.as_of.is_some() && m.read_only == Some(true)
        ));
        assert!(parse("COMMIT 1").is_err());
    }

    #[test]
    fn settings() {
        for (sql, name, values) in [
            ("SET search_path TO a, \"B\"", "search_path", vec!["a", "B"]),
            (
                "SET TIME ZONE 'Europe/Berlin'",
                "timezone",
                vec!["Europe/Berlin"],
            ),
            ("SET TimeZone = UTC", "timezone", vec!["UTC"]),
            (
                "SET SESSION statement_timeout = 100",
                "statement_timeout",
                vec!["100"],
            ),
            (
                "set client_encoding to 'UTF8'",
                "client_encoding",
                vec!["UTF8"],
            ),
            (
                "SET extra_float_digits = -3",
                "extra_float_digits",
                vec!["-3"],
            ),
        ] {
            match one(sql) {
                Command::Set(n, SetValue::Values(v), false) => {
                    assert_eq!(n, name);
                    assert_eq!(v, values);
                }
                other => panic!("{sql}: {other:?}"),
            }
        }
        assert!(
            matches!(one("SHOW TRANSACTION ISOLATION LEVEL"), Command::Show(n) if n == "transaction_isolation")
        );
        assert!(matches!(one("SHOW TIME ZONE"), Command::Show(n) if n == "timezone"));
        assert!(matches!(one("SHOW LAST TIMING"), Command::ShowLastTiming));
        assert!(matches!(one("SET LOCAL x.y = 1"), Command::Set(n, _, true) if n == "x.y"));
    }

    #[test]
    fn copies() {
        let Command::Copy(c) =
            one("COPY s.t (a, \"B\") FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';', NULL '')")
        else {
            panic!("copy");
        };
        assert!(!c.to && c.options.csv && c.options.header);
        assert_eq!(c.options.delimiter, Some(';'));
        assert_eq!(c.options.null.as_deref(), Some(""));
        assert!(
            matches!(c.source, CopySource::Table { ref columns, .. } if columns == &["a", "B"])
        );
        let Command::Copy(c) = one("copy t from stdin with (freeze on)") else {
            panic!("copy");
        };
        assert!(!c.options.csv);
        let Command::Copy(c) = one("COPY (SELECT 1) TO STDOUT CSV HEADER") else {
            panic!("copy");
        };
        assert!(c.to && c.options.csv && c.options.header);
        let Command::Copy(c) = one("COPY t TO STDOUT DELIMITER E'\\t'") else {
            panic!("copy");
        };
        assert_eq!(c.options.delimiter, Some('\t'));
        assert!(parse("COPY t FROM '/etc/passwd'").is_err());
    }

    #[test]
    fn prepared_statements() {
        match one("PREPARE p (int, text) AS SELECT $1, $2") {
            Command::Prepare(name, types, inner) => {
                assert_eq!(name, "p");
                assert_eq!(types.len(), 2);
                assert_eq!(inner.text(), "SELECT $1, $2");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(one("EXECUTE p (1, 'x,)')"), Command::Execute(_, p) if p.len() == 2));
        assert!(matches!(one("DEALLOCATE ALL"), Command::Deallocate(None)));
        assert!(matches!(
            one("EXPLAIN (ANALYZE, COSTS OFF) SELECT 1"),
            Command::Explain {
                analyze: true,
                verbose: false,
                ..
            }
        ));
    }
}
