//! Refusing statements whose shape would cost too much before they are parsed.
//!
//! Trees as deep as a text is long overflow stacks (a chain of 20,000 `+` is a
//! tree of that depth), planning takes more than linear time in the depth of an
//! expression, and the parser tries each nested call in several ways, which
//! doubles its work at each level. One statement must not take the gateway from
//! everybody, so the tokens are counted first: PostgreSQL has the same answer,
//! 54001, for what is too deep for it.

use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

/// Calls inside calls.
const CALLS_MAX: usize = 12;
/// Operators in one expression without AND or OR.
const OPERATORS_MAX: usize = 100;
/// ANDs and ORs in one expression.
const JUNCTIONS_MAX: usize = 1000;

/// What was counted inside one pair of parentheses.
#[derive(Default)]
struct Level {
    call: bool,
    operators: usize,
    junctions: usize,
}

/// Checks the tokens of a statement.
///
/// # Errors
/// 54001 when it is too deep.
pub fn check(tokens: &[TokenWithSpan]) -> Result<()> {
    let mut levels = vec![Level::default()];
    let mut calls = 0;
    let mut before: Option<&Token> = None;
    for token in tokens.iter().map(|t| &t.token) {
        if matches!(token, Token::Whitespace(_)) {
            continue;
        }
        match token {
            Token::LParen => {
                let call = before.is_some_and(may_be_called);
                calls += usize::from(call);
                if calls > CALLS_MAX {
                    return Err(too_deep("function calls are nested too deeply"));
                }
                levels.push(Level {
                    call,
                    ..Level::default()
                });
            }
            Token::RParen => {
                let level = levels.pop().unwrap_or_default();
                calls -= usize::from(level.call);
            }
            _ => {}
        }
        if levels.is_empty() {
            // Unbalanced: the parser says where.
            return Ok(());
        }
        if let Some(level) = levels.last_mut() {
            level.count(token)?;
        }
        before = Some(token);
    }
    Ok(())
}

impl Level {
    fn count(&mut self, token: &Token) -> Result<()> {
        match token {
            Token::Comma | Token::SemiColon => {
                self.operators = 0;
                self.junctions = 0;
            }
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR => {
                    self.operators = 0;
                    self.junctions += 1;
                }
                Keyword::SELECT
                | Keyword::FROM
                | Keyword::WHERE
                | Keyword::UNION
                | Keyword::WHEN
                | Keyword::THEN
                | Keyword::ELSE
                | Keyword::SET => self.operators = 0,
                _ => {}
            },
            Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::Caret
            | Token::StringConcat
            | Token::Pipe
            | Token::Ampersand
            | Token::ShiftLeft
            | Token::ShiftRight
            | Token::Eq
            | Token::Neq
            | Token::Lt
            | Token::Gt
            | Token::LtEq
            | Token::GtEq
            | Token::DoubleColon => self.operators += 1,
            _ => {}
        }
        if self.operators > OPERATORS_MAX {
            return Err(too_deep("an expression has too many operators in a row"));
        }
        if self.junctions > JUNCTIONS_MAX {
            return Err(too_deep("a condition has too many ANDs and ORs"));
        }
        Ok(())
    }
}

/// Whether a parenthesis after this token may be that of a call.
fn may_be_called(token: &Token) -> bool {
    let Token::Word(word) = token else {
        return false;
    };
    !matches!(
        word.keyword,
        Keyword::ALL
            | Keyword::AND
            | Keyword::ANY
            | Keyword::AS
            | Keyword::BY
            | Keyword::CASE
            | Keyword::ELSE
            | Keyword::EXCEPT
            | Keyword::EXISTS
            | Keyword::FROM
            | Keyword::HAVING
            | Keyword::IN
            | Keyword::INTERSECT
            | Keyword::JOIN
            | Keyword::LATERAL
            | Keyword::NOT
            | Keyword::ON
            | Keyword::OR
            | Keyword::SELECT
            | Keyword::SOME
            | Keyword::THEN
            | Keyword::UNION
            | Keyword::USING
            | Keyword::VALUES
            | Keyword::WHEN
            | Keyword::WHERE
    )
}

fn too_deep(what: &str) -> SqlError {
    SqlError::new("54001", format!("statement too complex: {what}"))
        .with_hint("Split it, or use a list (IN, VALUES, ANY) instead of a chain.")
}

#[cfg(test)]
mod tests {
    use crate::statement::parse;

    fn sqlstate(sql: &str) -> String {
        parse(sql).map_or_else(|e| e.sqlstate.to_string(), |_| "00000".into())
    }

    #[test]
    fn deep_statements_are_refused_before_they_are_parsed() {
        let nested = |n: usize| format!("SELECT {}1{}", "abs(".repeat(n), ")".repeat(n));
        assert_eq!(sqlstate(&nested(8)), "00000");
        assert_eq!(sqlstate(&nested(40)), "54001");
        let sum = |n: usize| format!("SELECT 1{}", "+1".repeat(n));
        assert_eq!(sqlstate(&sum(100)), "00000");
        assert_eq!(sqlstate(&sum(20_000)), "54001");
        let or = |n: usize| format!("SELECT 1 WHERE a = 1{}", " OR a = 2".repeat(n));
        assert_eq!(sqlstate(&or(1000)), "00000");
        assert_eq!(sqlstate(&or(1001)), "54001");
        // Long is not deep.
        let rows = format!(
            "INSERT INTO t VALUES (1, 2 + 3){}",
            ", (-1, 2 * 3)".repeat(5000)
        );
        assert_eq!(sqlstate(&rows), "00000");
        assert_eq!(sqlstate("SELECT 1)"), "42601");
    }
}
