//! Lifting literals out of a statement's text, so that the statements of a
//! simple-protocol client that differ only in their values share one compiled
//! plan. On the level of tokens: a few microseconds, no parse.

use super::lexer::{TokenKind, tokens, unquote};
use lineradb_common::sql::{Datum, Numeric, SqlType};

/// A text whose literals became parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Lifted {
    /// The text with `$1`, `$2`, ... for literals. The key of the plan cache,
    /// together with the types.
    pub text: String,
    /// The types of the literals; `None`: a string, which takes the type that its
    /// place asks for.
    pub types: Vec<Option<SqlType>>,
    /// Their values; strings as text.
    pub values: Vec<Datum>,
}

/// Lifts the numbers and plain strings of a single SELECT, INSERT, UPDATE or
/// DELETE. `None`: another statement, one with parameters or special strings of
/// its own, or several.
pub fn lift(sql: &str) -> Option<Lifted> {
    let tokens = tokens(sql).ok()?;
    let first = tokens.first()?;
    let head = &sql[first.start..first.end];
    if !["select", "insert", "update", "delete"]
        .iter()
        .any(|w| head.eq_ignore_ascii_case(w))
    {
        return None;
    }
    let mut text = String::with_capacity(sql.len() + 8);
    let mut types = Vec::new();
    let mut values = Vec::new();
    let mut last_end = first.start;
    for (i, token) in tokens.iter().enumerate() {
        let source = &sql[token.start..token.end];
        if token.kind == TokenKind::Semicolon {
            // Only at the end.
            if i + 1 < tokens.len() {
                return None;
            }
            continue;
        }
        // Tokens that touch must stay together (`<=`, `t.a`).
        if token.start > last_end && !text.is_empty() {
            text.push(' ');
        }
        last_end = token.end;
        let (t, value) = match token.kind {
            TokenKind::Integer => integer(source)?,
            TokenKind::Decimal => (
                Some(SqlType::Numeric(None)),
                Datum::Numeric(Numeric::parse(source).ok()?),
            ),
            TokenKind::String => (None, Datum::Text(unquote(source, '\''))),
            TokenKind::OtherString | TokenKind::Parameter => return None,
            TokenKind::Word | TokenKind::Quoted | TokenKind::Symbol | TokenKind::Semicolon => {
                text.push_str(source);
                continue;
            }
        };
        types.push(t);
        values.push(value);
        text.push('$');
        text.push_str(&types.len().to_string());
    }
    Some(Lifted {
        text,
        types,
        values,
    })
}

/// PostgreSQL's type of an integer literal: the smallest of int4, int8, numeric.
fn integer(source: &str) -> Option<(Option<SqlType>, Datum)> {
    if let Ok(v) = source.parse::<i32>() {
        return Some((Some(SqlType::Int4), Datum::Int4(v)));
    }
    if let Ok(v) = source.parse::<i64>() {
        return Some((Some(SqlType::Int8), Datum::Int8(v)));
    }
    Some((
        Some(SqlType::Numeric(None)),
        Datum::Numeric(Numeric::parse(source).ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_become_parameters() {
        let l = lift("UPDATE t SET a = a + -5, b='x''y' WHERE id=12345678901 ;").unwrap();
        assert_eq!(l.text, "UPDATE t SET a = a + -$1, b=$2 WHERE id=$3");
        assert_eq!(
            l.types,
            vec![Some(SqlType::Int4), None, Some(SqlType::Int8)]
        );
        assert_eq!(
            l.values,
            vec![
                Datum::Int4(5),
                Datum::Text("x'y".into()),
                Datum::Int8(12_345_678_901)
            ]
        );
    }

    #[test]
    fn other_texts_are_left_alone() {
        for sql in [
            "BEGIN",
            "SELECT 1; SELECT 2",
            "SELECT $1",
            "SELECT E'a\\n'",
            "CREATE TABLE t (a int)",
            "SELECT 'unterminated",
            "",
        ] {
            assert!(lift(sql).is_none(), "{sql}");
        }
    }
}
