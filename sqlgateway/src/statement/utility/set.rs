//! SET, SHOW, and the modes of a transaction.

use super::super::lexer::{TokenKind, char_position};
use super::super::{AsOf, Command};
use super::cursor::Cursor;
use super::{SetValue, TransactionModes};
use crate::error::{Result, SqlError};

impl Cursor<'_> {
    pub(super) fn modes(&mut self) -> Result<TransactionModes> {
        let mut modes = TransactionModes::default();
        while self.at < self.tokens.len() {
            if self.accept("isolation") {
                self.expect("level")?;
                modes.isolation = Some(self.isolation_level()?.to_owned());
            } else if let Some((as_of, next)) = AsOf::read(self.text, &self.tokens, self.at)? {
                modes.as_of = Some(as_of);
                self.at = next;
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

    fn isolation_level(&mut self) -> Result<&'static str> {
        let place = self.peek().map(|t| char_position(self.text, t.start));
        let first = self.word();
        let level = match first.as_deref() {
            Some("serializable") => Some("serializable"),
            Some("repeatable") if self.accept("read") => Some("repeatable read"),
            Some("read") if self.accept("committed") => Some("read committed"),
            Some("read") if self.accept("uncommitted") => Some("read uncommitted"),
            _ => None,
        };
        level.ok_or_else(|| {
            SqlError::new("22023", "unknown isolation level")
                .with_hint(
                    "The levels are SERIALIZABLE, REPEATABLE READ, READ COMMITTED and READ \
                     UNCOMMITTED.",
                )
                .at(place)
        })
    }

    pub(super) fn set(&mut self) -> Result<Command> {
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

    pub(super) fn show(&mut self) -> Result<Command> {
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
}
