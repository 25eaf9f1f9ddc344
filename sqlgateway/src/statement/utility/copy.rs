//! COPY: its source, direction and options, in both of PostgreSQL's syntaxes.

use super::cursor::Cursor;
use crate::error::{Result, SqlError};
use crate::statement::{Command, parse_sql};
use datafusion::sql::sqlparser::ast;

/// What COPY copies.
#[derive(Clone, Debug, PartialEq)]
pub enum CopySource {
    /// A table and some of its columns (empty: all).
    Table {
        /// Its schema, when given.
        schema: Option<String>,
        /// Its name.
        name: String,
        /// Columns.
        columns: Vec<String>,
    },
    /// COPY (query) TO
    Query(Box<ast::Query>),
}

/// COPY.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyCommand {
    /// What.
    pub source: CopySource,
    /// TO STDOUT; else FROM STDIN.
    pub to: bool,
    /// How.
    pub options: CopyOptions,
}

/// Options of COPY.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// CSV; else text.
    pub csv: bool,
    /// The first line names the columns.
    pub header: bool,
    /// HEADER MATCH: and they must be right.
    pub header_match: bool,
    /// DELIMITER
    pub delimiter: Option<char>,
    /// NULL
    pub null: Option<String>,
    /// QUOTE
    pub quote: Option<char>,
    /// ESCAPE
    pub escape: Option<char>,
    /// FORCE_QUOTE columns; `*`: all.
    pub force_quote: Vec<String>,
}

impl Cursor<'_> {
    pub(super) fn copy(&mut self) -> Result<Command> {
        let source = if self.symbol("(") {
            let from = self.peek().ok_or_else(|| self.syntax())?.start;
            let to = self.close_parenthesis()?;
            match parse_sql(&self.text[from..to])? {
                ast::Statement::Query(query) => CopySource::Query(query),
                _ => return Err(SqlError::unsupported("COPY of a data-changing statement")),
            }
        } else {
            let mut name = self.name()?;
            let mut schema = None;
            if self.symbol(".") {
                schema = Some(std::mem::replace(&mut name, self.name()?));
            }
            let mut columns = Vec::new();
            if self.symbol("(") {
                loop {
                    columns.push(self.name()?);
                    if self.symbol(")") {
                        break;
                    }
                    if !self.symbol(",") {
                        return Err(self.syntax());
                    }
                }
            }
            CopySource::Table {
                schema,
                name,
                columns,
            }
        };
        let to = match self.word().as_deref() {
            Some("to") => true,
            Some("from") => false,
            _ => return Err(self.syntax_before()),
        };
        match self.word().as_deref() {
            Some("stdout") if to => {}
            Some("stdin") if !to => {}
            Some("program") => return Err(SqlError::unsupported("COPY PROGRAM")),
            Some(_) => return Err(self.syntax_before()),
            None => {
                return Err(
                    SqlError::unsupported("COPY from or to a file of the server")
                        .with_hint("Use STDIN or STDOUT, or psql's \\copy."),
                );
            }
        }
        if !to && matches!(source, CopySource::Query(_)) {
            return Err(self.syntax());
        }
        let options = self.copy_options()?;
        if self.peek_word().as_deref() == Some("where") {
            return Err(SqlError::unsupported("COPY FROM .. WHERE"));
        }
        Ok(Command::Copy(Box::new(CopyCommand {
            source,
            to,
            options,
        })))
    }

    fn copy_options(&mut self) -> Result<CopyOptions> {
        let mut o = CopyOptions::default();
        self.accept("with");
        let listed = self.symbol("(");
        loop {
            let option = match self.peek_word() {
                Some(word) if word != "where" => word,
                _ => break,
            };
            self.at += 1;
            if !listed {
                self.accept("as");
            }
            match option.as_str() {
                "format" => match self.name()?.as_str() {
                    "csv" => o.csv = true,
                    "text" => {}
                    "binary" => return Err(SqlError::unsupported("COPY BINARY")),
                    other => {
                        return Err(SqlError::new(
                            "22023",
                            format!("COPY format \"{other}\" not recognized"),
                        ));
                    }
                },
                "csv" if !listed => o.csv = true,
                "binary" => return Err(SqlError::unsupported("COPY BINARY")),
                "header" => match listed.then(|| self.boolean()).flatten() {
                    Some(on) => o.header = on,
                    None if listed && self.accept("match") => {
                        o.header = true;
                        o.header_match = true;
                    }
                    None => o.header = true,
                },
                "freeze" => {
                    if listed {
                        self.boolean();
                    }
                }
                "delimiter" | "delimiters" => o.delimiter = Some(self.char("delimiter")?),
                "null" => o.null = Some(self.string()?),
                "quote" => o.quote = Some(self.char("quote")?),
                "escape" => o.escape = Some(self.char("escape")?),
                "encoding" => {
                    let name = self.string()?.to_lowercase();
                    if !matches!(name.as_str(), "utf8" | "utf-8" | "unicode") {
                        return Err(SqlError::unsupported(format!("COPY ENCODING {name}")));
                    }
                }
                "force_quote" if listed => o.force_quote = self.force_columns()?,
                "force" if self.accept("quote") => o.force_quote = self.force_columns()?,
                "force_not_null" | "force_null" | "force" | "on_error" | "log_verbosity"
                | "default" | "oids" => {
                    return Err(SqlError::unsupported(format!(
                        "COPY option {}",
                        option.to_uppercase()
                    )));
                }
                _ => {
                    return Err(SqlError::syntax(format!(
                        "option \"{option}\" not recognized"
                    )));
                }
            }
            if listed && !self.symbol(",") {
                break;
            }
        }
        if listed && !self.symbol(")") {
            return Err(self.syntax());
        }
        if !o.csv && (o.quote.is_some() || o.escape.is_some()) {
            return Err(SqlError::unsupported(
                "COPY quote available only in CSV mode: this",
            ));
        }
        Ok(o)
    }

    fn force_columns(&mut self) -> Result<Vec<String>> {
        if self.symbol("*") {
            return Ok(vec!["*".into()]);
        }
        let listed = self.symbol("(");
        let mut out = vec![self.name()?];
        while self.symbol(",") {
            out.push(self.name()?);
        }
        if listed && !self.symbol(")") {
            return Err(self.syntax());
        }
        Ok(out)
    }

    fn boolean(&mut self) -> Option<bool> {
        let t = self.peek()?;
        let value = match self.text_of(t).to_lowercase().trim_matches('\'') {
            "true" | "on" | "1" | "yes" => true,
            "false" | "off" | "0" | "no" => false,
            _ => return None,
        };
        self.at += 1;
        Some(value)
    }
}
