//! From SQL text to statements.
//!
//! [`lexer`] splits the text; [`utility`] reads what the session does itself
//! (transactions, settings, COPY, PREPARE and so on: `sqlparser` knows most of it
//! only in part); everything else is `sqlparser`'s tree in PostgreSQL's dialect.

mod as_of;
pub mod lexer;
pub mod lift;
mod names;
mod places;
mod precedence;
mod shape;
mod utility;

use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserOptions};
use datafusion::sql::sqlparser::tokenizer::Tokenizer;
use lexer::{TokenKind, char_position};
use std::sync::Arc;

pub use as_of::AsOf;
pub use names::{ident, object_name, sql_type};
pub use places::placed;
pub use utility::{CopyCommand, CopyOptions, CopySource, DiscardKind, SetValue, TransactionModes};

/// One statement of a text.
#[derive(Clone, Debug)]
pub struct Statement {
    text: Arc<str>,
    /// Bytes of the whole text before `text`.
    offset: usize,
    command: Arc<Command>,
    as_of: Option<AsOf>,
}

/// What a statement asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Nothing.
    Empty,
    /// BEGIN, START TRANSACTION
    Begin(TransactionModes),
    /// COMMIT, END; true: AND CHAIN
    Commit(bool),
    /// ROLLBACK, ABORT; true: AND CHAIN
    Rollback(bool),
    /// SAVEPOINT
    Savepoint(String),
    /// RELEASE SAVEPOINT
    Release(String),
    /// ROLLBACK TO SAVEPOINT
    RollbackTo(String),
    /// SET; true: LOCAL
    Set(String, SetValue, bool),
    /// SET TRANSACTION; true: SESSION CHARACTERISTICS
    SetTransaction(TransactionModes, bool),
    /// SHOW
    Show(String),
    /// SHOW ALL
    ShowAll,
    /// SHOW LAST TIMING
    ShowLastTiming,
    /// RESET; `None`: ALL
    Reset(Option<String>),
    /// DISCARD
    Discard(DiscardKind),
    /// PREPARE name (types) AS statement
    Prepare(String, Vec<ast::DataType>, Box<Statement>),
    /// EXECUTE name (parameters)
    Execute(String, Vec<ast::Expr>),
    /// DEALLOCATE; `None`: ALL
    Deallocate(Option<String>),
    /// EXPLAIN
    Explain {
        /// Runs it, too.
        analyze: bool,
        /// More of it.
        verbose: bool,
        /// The statement.
        statement: Box<Statement>,
    },
    /// COPY
    Copy(Box<CopyCommand>),
    /// VACUUM, ANALYZE, REINDEX, CHECKPOINT, ...: the tag; nothing is to be done.
    NoOperation(&'static str),
    /// What ends something that cannot have begun (CLOSE ALL, UNLISTEN): the tag.
    Nothing(&'static str),
    /// LISTEN, LOCK TABLE and the like: the feature that is missing.
    Unsupported(String),
    /// SELECT, INSERT, UPDATE, DELETE, DDL
    Sql(Box<ast::Statement>),
}

impl Statement {
    /// Its text, without the semicolon.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its text, shared.
    pub fn shared_text(&self) -> &Arc<str> {
        &self.text
    }

    /// True for an empty statement (only blanks and comments).
    pub fn is_empty(&self) -> bool {
        matches!(*self.command, Command::Empty)
    }

    /// What it asks for.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// When a query is to read, if not now.
    pub fn as_of(&self) -> Option<&AsOf> {
        self.as_of.as_ref()
    }

    /// Where it starts in the text that it was parsed from, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// An empty statement.
    pub fn empty() -> Self {
        Statement {
            text: "".into(),
            offset: 0,
            command: Arc::new(Command::Empty),
            as_of: None,
        }
    }

    /// A statement made from a tree.
    pub fn from_ast(statement: ast::Statement) -> Self {
        Statement {
            text: statement.to_string().into(),
            offset: 0,
            command: Arc::new(Command::Sql(Box::new(statement))),
            as_of: None,
        }
    }
}

/// Splits and parses. Empty statements between semicolons are left out; a text
/// with nothing in it gives one empty statement.
///
/// # Errors
/// 42601 with a position.
pub fn parse(sql: &str) -> Result<Vec<Statement>> {
    let mut out = Vec::new();
    for (start, end) in split(sql)? {
        out.push(parse_one(sql, start, end)?);
    }
    if out.is_empty() {
        out.push(Statement {
            text: "".into(),
            offset: 0,
            command: Arc::new(Command::Empty),
            as_of: None,
        });
    }
    Ok(out)
}

/// Byte ranges of the statements of a text, without semicolons and without the
/// blanks and comments around them.
///
/// # Errors
/// 42601 for a string, name or comment without its end.
pub fn split(sql: &str) -> Result<Vec<(usize, usize)>> {
    let mut out = Vec::new();
    let mut range: Option<(usize, usize)> = None;
    for token in lexer::tokens(sql)? {
        if token.kind == TokenKind::Semicolon {
            out.extend(range.take());
        } else {
            let start = range.map_or(token.start, |r| r.0);
            range = Some((start, token.end));
        }
    }
    out.extend(range);
    Ok(out)
}

fn parse_one(sql: &str, start: usize, end: usize) -> Result<Statement> {
    let text = &sql[start..end];
    let (command, as_of) = parse_command(text).map_err(|mut e| {
        // Positions count from the start of the whole text.
        let before = char_position(sql, start) - 1;
        e.position = e.position.map(|p| p + before);
        e
    })?;
    Ok(Statement {
        text: text.into(),
        offset: start,
        command: Arc::new(command),
        as_of,
    })
}

/// Parses one statement without its semicolon.
fn parse_command(text: &str) -> Result<(Command, Option<AsOf>)> {
    if let Some(command) = utility::parse(text)? {
        return Ok((command, None));
    }
    let (plain, as_of) = as_of::take(text)?;
    let statement = parse_sql(&plain)?;
    if as_of.is_some() && !reads(&statement) {
        return Err(SqlError::unsupported(
            "AS OF SYSTEM TIME in a statement that is no query",
        ));
    }
    Ok((Command::Sql(Box::new(statement)), as_of))
}

fn reads(statement: &ast::Statement) -> bool {
    use ast::SetExpr;
    match statement {
        ast::Statement::Query(query) => !matches!(
            &*query.body,
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_)
        ),
        _ => false,
    }
}

/// Parses a SELECT, DML or DDL statement.
///
/// # Errors
/// 42601 with a position.
pub fn parse_sql(text: &str) -> Result<ast::Statement> {
    let mut parser = parser(text)?;
    let mut statement = parser
        .parse_statement()
        .map_err(|e| syntax(text, &e.to_string()))?;
    expect_end(text, &parser)?;
    precedence::regroup_statement(&mut statement);
    Ok(statement)
}

/// Parses an expression, such as a DEFAULT that the catalog keeps as text.
///
/// # Errors
/// 42601 with a position.
pub fn parse_expr(text: &str) -> Result<ast::Expr> {
    let mut parser = parser(text)?;
    let mut expr = parser
        .parse_expr()
        .map_err(|e| syntax(text, &e.to_string()))?;
    expect_end(text, &parser)?;
    precedence::regroup_expr(&mut expr);
    Ok(expr)
}

const DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

fn parser(text: &str) -> Result<Parser<'static>> {
    let tokens = Tokenizer::new(&DIALECT, text)
        .with_unescape(true)
        .tokenize_with_location()
        .map_err(|e| syntax(text, &format!("sql parser error: {e}")))?;
    shape::check(&tokens)?;
    Ok(Parser::new(&DIALECT)
        .with_recursion_limit(128)
        .with_options(ParserOptions::new().with_unescape(true))
        .with_tokens_with_locations(tokens))
}

fn expect_end(text: &str, parser: &Parser<'_>) -> Result<()> {
    use datafusion::sql::sqlparser::tokenizer::Token;
    let next = parser.peek_token_ref();
    if next.token == Token::EOF {
        return Ok(());
    }
    let at = location(text, next.span.start.line, next.span.start.column);
    Err(SqlError::syntax(format!("syntax error at or near \"{}\"", next.token)).at(at))
}

/// PostgreSQL's form of `sqlparser`'s message, with its position.
fn syntax(text: &str, message: &str) -> SqlError {
    let message = message
        .strip_prefix("sql parser error: ")
        .unwrap_or(message);
    let (body, at) = match message.rsplit_once(" at Line: ") {
        Some((body, place)) => {
            let mut numbers = place
                .split(|c: char| !c.is_ascii_digit())
                .filter(|s| !s.is_empty())
                .map(|s| s.parse::<u64>().unwrap_or(0));
            let (line, column) = (numbers.next(), numbers.next());
            match (line, column) {
                (Some(line), Some(column)) => (body, location(text, line, column)),
                _ => (body, None),
            }
        }
        None => (message, None),
    };
    if message.contains("recursion limit") {
        return SqlError::new("54001", "statement is nested too deeply");
    }
    match body.rsplit_once("found: ") {
        Some((expected, "EOF")) => {
            let expected = expected.trim().trim_end_matches(',');
            SqlError::syntax("syntax error at end of input")
                .with_detail(expected.to_owned())
                .at(Some(text.chars().count() + 1))
        }
        Some((expected, found)) => {
            let expected = expected.trim().trim_end_matches(',');
            SqlError::syntax(format!("syntax error at or near \"{found}\""))
                .with_detail(expected.to_owned())
                .at(at)
        }
        None => SqlError::syntax(format!("syntax error: {body}")).at(at),
    }
}

/// The number of the character at a line and column (both from 1).
fn location(text: &str, line: u64, column: u64) -> Option<usize> {
    if line == 0 {
        return None;
    }
    let before: usize = text
        .split_inclusive('\n')
        .take(line as usize - 1)
        .map(|l| l.chars().count())
        .sum();
    Some(before + column as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_split_and_classified() {
        let all = parse("BEGIN; -- x\nSELECT 1;;\n INSERT INTO t VALUES (';'); COMMIT;").unwrap();
        let texts: Vec<&str> = all.iter().map(Statement::text).collect();
        assert_eq!(
            texts,
            ["BEGIN", "SELECT 1", "INSERT INTO t VALUES (';')", "COMMIT"]
        );
        assert!(matches!(all[0].command(), Command::Begin(_)));
        assert!(matches!(all[1].command(), Command::Sql(_)));
        assert!(matches!(all[3].command(), Command::Commit(false)));
        assert!(parse(" -- nothing\n;").unwrap()[0].is_empty());
    }

    #[test]
    fn positions_count_from_the_start_of_the_text() {
        let e = parse("SELECT 1; SELEC 2").unwrap_err();
        assert_eq!(e.sqlstate, "42601");
        assert_eq!(e.position, Some(11));
        let e = parse("SELECT 1 +").unwrap_err();
        assert_eq!(e.message, "syntax error at end of input");
        let e = parse("SELECT 1 1 2").unwrap_err();
        assert_eq!(e.sqlstate, "42601");
    }

    #[test]
    fn what_pgbench_sends_is_read() {
        for sql in [
            "drop table if exists pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers",
            "create table pgbench_history(tid int,bid int,aid    int,delta int,mtime timestamp,filler char(22))",
            "create table pgbench_tellers(tid int not null,bid int,tbalance int,filler char(84)) with (fillfactor=100)",
            "truncate table pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers",
            "copy pgbench_accounts from stdin with (freeze on)",
            "copy pgbench_accounts from stdin",
            "vacuum analyze pgbench_branches",
            "alter table pgbench_branches add primary key (bid)",
            "select count(*) from pgbench_branches",
            "END",
            "vacuum pgbench_branches",
        ] {
            parse(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }
}
