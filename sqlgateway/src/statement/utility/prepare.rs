//! PREPARE, EXECUTE and EXPLAIN: statements that hold another one.

use super::super::lexer::char_position;
use super::super::{Command, Statement, parse_command, parse_expr};
use super::cursor::Cursor;
use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::sync::Arc;

impl Cursor<'_> {
    pub(super) fn prepare(&mut self) -> Result<Command> {
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
        let statement = self.inner(rest, &["explain", "prepare", "execute"])?;
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

    /// The statement that the rest of the text is. Those that hold a statement
    /// themselves are `refused`, as in PostgreSQL: so nesting has an end.
    fn inner(&mut self, from: usize, refused: &[&str]) -> Result<Statement> {
        if self.peek_word().is_some_and(|w| refused.contains(&&*w)) {
            return Err(self.syntax());
        }
        self.at = self.tokens.len();
        let text = &self.text[from..];
        let (command, as_of) = parse_command(text).map_err(|mut e| {
            let before = char_position(self.text, from) - 1;
            e.position = e.position.map(|p| p + before);
            e
        })?;
        Ok(Statement {
            text: text.into(),
            offset: from,
            command: Arc::new(command),
            as_of,
        })
    }

    pub(super) fn execute(&mut self) -> Result<Command> {
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

    pub(super) fn explain(&mut self) -> Result<Command> {
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
            statement: Box::new(self.inner(rest, &["explain", "prepare"])?),
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
