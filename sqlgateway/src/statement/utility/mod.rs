//! Statements that the session carries out itself: transactions, settings,
//! prepared statements, COPY, EXPLAIN, and those that need no work here.

mod copy;
mod cursor;

use super::lexer::{TokenKind, char_position, tokens};
use super::{Command, Statement, parse_command, parse_expr};
use crate::error::{Result, SqlError};
use cursor::Cursor;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::sync::Arc;

pub use copy::{CopyCommand, CopyOptions, CopySource};

/// Modes of BEGIN and SET TRANSACTION.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// ISOLATION LEVEL, in lower case.
    pub isolation: Option<String>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
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
        "listen" | "notify" | "unlisten" | "lock" | "declare" | "fetch" | "move" | "close"
        | "do" | "call" | "grant" | "revoke" | "comment" | "security" | "import" | "reassign"
        | "load" | "refresh" | "merge" => {
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

    fn modes(&mut self) -> Result<TransactionModes> {
        let mut modes = TransactionModes::default();
        while self.at < self.tokens.len() {
            if self.accept("isolation") {
                self.expect("level")?;
                let level = match self.word().as_deref() {
                    Some("serializable") => "serializable",
                    Some("repeatable") => {
                        self.expect("read")?;
                        "repeatable read"
                    }
                    Some("read") => match self.word().as_deref() {
                        Some("committed") => "read committed",
                        Some("uncommitted") => "read uncommitted",
                        _ => return Err(self.syntax_before()),
                    },
                    _ => return Err(self.syntax_before()),
                };
                modes.isolation = Some(level.to_owned());
            } else if self.accept("read") {
                modes.read_only = Some(if self.accept("only") {
                    true
                } else {
                    self.expect("write")?;
                    false
                });
            } else if self.accept("not") {
                self.expect("deferrable")?;
            } else if !self.accept("deferrable") {
                return Err(self.syntax());
            }
            self.symbol(",");
        }
        Ok(modes)
    }

    fn set(&mut self) -> Result<Command> {
        let local = self.accept("local");
        if !local && self.accept("session") {
            if self.accept("characteristics") {
                self.expect("as")?;
                self.expect("transaction")?;
                return Ok(Command::SetTransaction(self.modes()?, true));
            }
            if self.accept("authorization") {
                return Err(SqlError::unsupported("SET SESSION AUTHORIZATION"));
            }
        }
        if self.accept("transaction") {
            if self.accept("snapshot") {
                return Err(SqlError::unsupported("SET TRANSACTION SNAPSHOT"));
            }
            return Ok(Command::SetTransaction(self.modes()?, false));
        }
        if self.accept("role") {
            return Err(SqlError::unsupported("SET ROLE"));
        }
        if self.accept("names") {
            let value = match self.peek() {
                None => SetValue::Default,
                Some(_) => SetValue::Values(vec![self.string()?]),
            };
            return Ok(Command::Set("client_encoding".into(), value, local));
        }
        let is_zone = self.peek_word().as_deref() == Some("time");
        let name = self.setting_name()?;
        let separated = self.symbol("=") || self.accept("to");
        if !(separated || is_zone && name == "timezone") {
            return Err(self.syntax());
        }
        if self.accept("default") || (name == "timezone" && self.accept("local")) {
            return Ok(Command::Set(name, SetValue::Default, local));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.set_value()?);
            if !self.symbol(",") {
                break;
            }
        }
        Ok(Command::Set(name, SetValue::Values(values), local))
    }

    fn set_value(&mut self) -> Result<String> {
        let sign = if self.symbol("-") {
            "-"
        } else {
            self.symbol("+");
            ""
        };
        let Some(t) = self.peek() else {
            return Err(self.syntax());
        };
        if self.peek_word().as_deref() == Some("interval") {
            self.at += 1;
            let text = self.string()?;
            // SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE
            self.at = self.tokens.len();
            return Ok(text);
        }
        match t.kind {
            TokenKind::String | TokenKind::OtherString => self.string(),
            TokenKind::Integer | TokenKind::Decimal => {
                self.at += 1;
                Ok(format!("{sign}{}", self.text_of(t)))
            }
            // Case is kept: values such as `UTC` show as they were given.
            TokenKind::Word => {
                self.at += 1;
                Ok(self.text_of(t).to_owned())
            }
            TokenKind::Quoted => self.name(),
            _ => Err(self.syntax()),
        }
    }

    fn show(&mut self) -> Result<Command> {
        if self.accept("all") {
            return Ok(Command::ShowAll);
        }
        if self.peek_word().as_deref() == Some("last") {
            self.at += 1;
            self.expect("timing")?;
            return Ok(Command::ShowLastTiming);
        }
        Ok(Command::Show(self.setting_name()?))
    }

    fn prepare(&mut self) -> Result<Command> {
        if self.peek_word().as_deref() == Some("transaction") {
            return Ok(Command::Unsupported("PREPARE TRANSACTION".into()));
        }
        let name = self.name()?;
        let mut types = Vec::new();
        if self.symbol("(") {
            let from = self.peek().ok_or_else(|| self.syntax())?.start;
            let to = self.close_parenthesis()?;
            types = parse_types(&self.text[from..to])?;
        }
        self.expect("as")?;
        let rest = self.peek().ok_or_else(|| self.syntax())?.start;
        let statement = self.inner(rest)?;
        Ok(Command::Prepare(name, types, Box::new(statement)))
    }

    /// Moves past the closing parenthesis of the one just opened; answers where
    /// it is.
    pub(super) fn close_parenthesis(&mut self) -> Result<usize> {
        let mut depth = 1;
        while let Some(t) = self.peek() {
            self.at += 1;
            match self.text_of(t) {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(t.start);
            }
        }
        Err(self.syntax())
    }

    /// The statement that the rest of the text is.
    fn inner(&mut self, from: usize) -> Result<Statement> {
        self.at = self.tokens.len();
        let text = &self.text[from..];
        let command = parse_command(text).map_err(|mut e| {
            let before = char_position(self.text, from) - 1;
            e.position = e.position.map(|p| p + before);
            e
        })?;
        Ok(Statement {
            text: text.into(),
            offset: from,
            command: Arc::new(command),
        })
    }

    fn execute(&mut self) -> Result<Command> {
        let name = self.name()?;
        let mut parameters = Vec::new();
        if self.symbol("(") {
            let from = self.peek().ok_or_else(|| self.syntax())?.start;
            let to = self.close_parenthesis()?;
            if from < to {
                let row =
                    parse_expr(&format!("f({})", &self.text[from..to])).map_err(|e| SqlError {
                        position: None,
                        ..e
                    })?;
                parameters = function_arguments(row).ok_or_else(|| self.syntax())?;
            }
        }
        Ok(Command::Execute(name, parameters))
    }

    fn explain(&mut self) -> Result<Command> {
        let (mut analyze, mut verbose) = (false, false);
        if self.symbol("(") {
            loop {
                let option = self.name()?;
                let value = self.peek_word();
                let mut on = true;
                if let Some(value) = value {
                    self.at += 1;
                    on = !matches!(value.as_str(), "false" | "off" | "0");
                    if option == "format" && value != "text" {
                        return Err(SqlError::unsupported(format!("EXPLAIN (FORMAT {value})")));
                    }
                }
                match option.as_str() {
                    "analyze" => analyze = on,
                    "verbose" => verbose = on,
                    "costs" | "buffers" | "timing" | "summary" | "settings" | "wal" | "format"
                    | "distributed" | "generic_plan" => {}
                    other => {
                        return Err(SqlError::syntax(format!(
                            "unrecognized EXPLAIN option \"{other}\""
                        )));
                    }
                }
                if self.symbol(")") {
                    break;
                }
                if !self.symbol(",") {
                    return Err(self.syntax());
                }
            }
        } else {
            analyze = self.accept_any(&["analyze", "analyse"]);
            verbose = self.accept("verbose");
        }
        let rest = self.peek().ok_or_else(|| self.syntax())?.start;
        Ok(Command::Explain {
            analyze,
            verbose,
            statement: Box::new(self.inner(rest)?),
        })
    }
}

fn parse_types(text: &str) -> Result<Vec<ast::DataType>> {
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect)
        .try_with_sql(text)
        .map_err(|e| SqlError::syntax(e.to_string()))?;
    parser
        .parse_comma_separated(Parser::parse_data_type)
        .map_err(|e| SqlError::syntax(e.to_string()))
}

fn function_arguments(expr: ast::Expr) -> Option<Vec<ast::Expr>> {
    let ast::Expr::Function(f) = expr else {
        return None;
    };
    let ast::FunctionArguments::List(list) = f.args else {
        return None;
    };
    list.args
        .into_iter()
        .map(|a| match a {
            ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(e)) => Some(e),
            _ => None,
        })
        .collect()
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
