//! Reading a utility statement token by token.

use crate::error::{Result, SqlError};
use crate::statement::lexer::{Token, TokenKind, char_position, unquote};
use crate::statement::parse_expr;
use datafusion::sql::sqlparser::ast;

pub(super) struct Cursor<'a> {
    pub(super) text: &'a str,
    pub(super) tokens: Vec<Token>,
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn text_of(&self, token: Token) -> &'a str {
        &self.text[token.start..token.end]
    }

    pub(super) fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).copied()
    }

    /// The next token's text in lower case, when it is a word.
    pub(super) fn peek_word(&self) -> Option<String> {
        self.peek()
            .filter(|t| t.kind == TokenKind::Word)
            .map(|t| self.text_of(t).to_lowercase())
    }

    pub(super) fn word(&mut self) -> Option<String> {
        let word = self.peek_word()?;
        self.at += 1;
        Some(word)
    }

    pub(super) fn accept(&mut self, word: &str) -> bool {
        let found = self.peek_word().as_deref() == Some(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn accept_any(&mut self, words: &[&str]) -> bool {
        words.iter().any(|w| self.accept(w))
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<()> {
        if self.accept(word) {
            Ok(())
        } else {
            Err(self.syntax())
        }
    }

    pub(super) fn symbol(&mut self, symbol: &str) -> bool {
        let found = self
            .peek()
            .is_some_and(|t| t.kind == TokenKind::Symbol && self.text_of(t) == symbol);
        self.at += usize::from(found);
        found
    }

    pub(super) fn end(&self) -> Result<()> {
        if self.at == self.tokens.len() {
            Ok(())
        } else {
            Err(self.syntax())
        }
    }

    /// The error at the next token.
    pub(super) fn syntax(&self) -> SqlError {
        match self.peek() {
            Some(t) => SqlError::syntax(format!("syntax error at or near \"{}\"", self.text_of(t)))
                .at(Some(char_position(self.text, t.start))),
            None => SqlError::syntax("syntax error at end of input")
                .at(Some(self.text.chars().count() + 1)),
        }
    }

    pub(super) fn syntax_before(&mut self) -> SqlError {
        self.at = self.at.saturating_sub(1);
        self.syntax()
    }

    /// A name: folded unless quoted.
    pub(super) fn name(&mut self) -> Result<String> {
        let Some(t) = self.peek() else {
            return Err(self.syntax());
        };
        let text = self.text_of(t);
        let name = match t.kind {
            TokenKind::Word => text.to_lowercase(),
            TokenKind::Quoted => unquote(text, '"'),
            _ => return Err(self.syntax()),
        };
        self.at += 1;
        Ok(name)
    }

    pub(super) fn setting_name(&mut self) -> Result<String> {
        if self.accept("transaction") {
            self.expect("isolation")?;
            self.expect("level")?;
            return Ok("transaction_isolation".into());
        }
        if self.accept("session") {
            self.expect("authorization")?;
            return Ok("session_authorization".into());
        }
        let mut name = self.name()?;
        if name == "time" && self.accept("zone") {
            return Ok("timezone".into());
        }
        while self.symbol(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    /// `'text'`, with `E''` understood.
    pub(super) fn string(&mut self) -> Result<String> {
        let Some(t) = self.peek() else {
            return Err(self.syntax());
        };
        let text = self.text_of(t);
        let value = match t.kind {
            TokenKind::String => unquote(text, '\''),
            TokenKind::OtherString => match parse_expr(text)? {
                ast::Expr::Value(v) => v.value.into_string().ok_or_else(|| self.syntax())?,
                _ => return Err(self.syntax()),
            },
            _ => return Err(self.syntax()),
        };
        self.at += 1;
        Ok(value)
    }

    pub(super) fn char(&mut self, what: &str) -> Result<char> {
        let text = self.string()?;
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if c.len_utf8() == 1 => Ok(c),
            _ => Err(SqlError::new(
                "0A000",
                format!("COPY {what} must be a single one-byte character"),
            )),
        }
    }
}
