//! PostgreSQL's lexical rules, as far as we need them ourselves: splitting a text
//! into statements, reading utility statements, and lifting literals out of
//! point statements. One pass, no allocation per token. Expressions and DDL are
//! left to `sqlparser`.

use crate::error::SqlError;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A keyword or unquoted name.
    Word,
    /// A quoted name.
    Quoted,
    /// Digits only.
    Integer,
    /// A number with a point or an exponent.
    Decimal,
    /// `'...'` without backslash escapes.
    String,
    /// `E'...'`, `U&'...'`, `B'...'`, `X'...'`, `$tag$...$tag$`.
    OtherString,
    /// `$1`.
    Parameter,
    /// `;`
    Semicolon,
    /// Any other character, one by one.
    Symbol,
}

/// A token: its kind and where it is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// First byte.
    pub start: usize,
    /// First byte after it.
    pub end: usize,
}

/// All tokens of a text.
///
/// # Errors
/// 42601 for a string, name or comment without its end.
pub fn tokens(sql: &str) -> Result<Vec<Token>, SqlError> {
    let bytes = sql.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4 + 4);
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        let kind = match bytes[i] {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => {
                i += 1;
                continue;
            }
            b'-' if bytes.get(i + 1) == Some(&b'-') => {
                i = memchr(b'\n', bytes, i).unwrap_or(bytes.len());
                continue;
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                i = comment_end(bytes, i).ok_or_else(|| unterminated(sql, "/* comment", start))?;
                continue;
            }
            b'\'' => {
                i = quoted_end(bytes, i, b'\'', false)
                    .ok_or_else(|| unterminated(sql, "quoted string", start))?;
                TokenKind::String
            }
            b'"' => {
                i = quoted_end(bytes, i, b'"', false)
                    .ok_or_else(|| unterminated(sql, "quoted identifier", start))?;
                TokenKind::Quoted
            }
            b'$' => {
                let digits = digits_end(bytes, i + 1);
                if digits > i + 1 {
                    i = digits;
                    TokenKind::Parameter
                } else if let Some(tag_end) = dollar_tag(bytes, i) {
                    let tag = &sql[i..tag_end];
                    let body = sql[tag_end..]
                        .find(tag)
                        .ok_or_else(|| unterminated(sql, "dollar-quoted string", start))?;
                    i = tag_end + body + tag.len();
                    TokenKind::OtherString
                } else {
                    i += 1;
                    TokenKind::Symbol
                }
            }
            b'0'..=b'9' => {
                let (end, decimal) = number_end(bytes, i);
                i = end;
                if decimal {
                    TokenKind::Decimal
                } else {
                    TokenKind::Integer
                }
            }
            b'.' if bytes.get(i + 1).is_some_and(u8::is_ascii_digit) => {
                i = number_end(bytes, i).0;
                TokenKind::Decimal
            }
            b';' => {
                i += 1;
                TokenKind::Semicolon
            }
            c if is_word_start(c) => {
                let end = word_end(bytes, i);
                let escape = matches!(bytes[i], b'e' | b'E') && end == i + 1;
                let prefix =
                    matches!(bytes[i], b'b' | b'B' | b'x' | b'X' | b'n' | b'N') && end == i + 1;
                let unicode = matches!(bytes[i], b'u' | b'U')
                    && end == i + 1
                    && bytes.get(end) == Some(&b'&');
                let at = if unicode { end + 1 } else { end };
                if (escape || prefix || unicode) && bytes.get(at) == Some(&b'\'') {
                    i = quoted_end(bytes, at, b'\'', escape)
                        .ok_or_else(|| unterminated(sql, "quoted string", start))?;
                    TokenKind::OtherString
                } else {
                    i = end;
                    TokenKind::Word
                }
            }
            _ => {
                i += sql[i..].chars().next().map_or(1, char::len_utf8);
                TokenKind::Symbol
            }
        };
        out.push(Token {
            kind,
            start,
            end: i,
        });
    }
    Ok(out)
}

/// The value of a `'...'` literal.
pub fn unquote(text: &str, quote: char) -> String {
    let inner = text
        .strip_prefix(quote)
        .and_then(|t| t.strip_suffix(quote))
        .unwrap_or(text);
    let doubled: String = [quote, quote].iter().collect();
    inner.replace(&doubled, quote.encode_utf8(&mut [0; 4]))
}

/// The number of the character at a byte, counted from 1.
pub fn char_position(sql: &str, byte: usize) -> usize {
    sql.get(..byte).map_or(1, |s| s.chars().count() + 1)
}

fn unterminated(sql: &str, what: &str, start: usize) -> SqlError {
    let near = &sql[start..];
    let near: String = near.chars().take(40).collect();
    SqlError::syntax(format!("unterminated {what} at or near \"{near}\""))
        .at(Some(char_position(sql, start)))
}

fn memchr(needle: u8, bytes: &[u8], from: usize) -> Option<usize> {
    bytes[from..]
        .iter()
        .position(|b| *b == needle)
        .map(|p| from + p)
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || c >= 0x80
}

fn word_end(bytes: &[u8], mut i: usize) -> usize {
    while i < bytes.len()
        && (is_word_start(bytes[i]) || bytes[i].is_ascii_digit() || bytes[i] == b'$')
    {
        i += 1;
    }
    i
}

fn digits_end(bytes: &[u8], mut i: usize) -> usize {
    while i < bytes.len() && bytes[i].is_ascii_digit() {
        i += 1;
    }
    i
}

fn number_end(bytes: &[u8], start: usize) -> (usize, bool) {
    let mut i = digits_end(bytes, start);
    let mut decimal = false;
    if bytes.get(i) == Some(&b'.') && bytes.get(i + 1) != Some(&b'.') {
        decimal = true;
        i = digits_end(bytes, i + 1);
    }
    if matches!(bytes.get(i), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(i + 1), Some(b'+' | b'-')));
        let end = digits_end(bytes, i + 1 + sign);
        if end > i + 1 + sign {
            decimal = true;
            i = end;
        }
    }
    (i, decimal)
}

/// After the closing quote; doubled quotes and, with `escapes`, backslashes are
/// part of the string.
fn quoted_end(bytes: &[u8], start: usize, quote: u8, escapes: bool) -> Option<usize> {
    let mut i = start + 1;
    while i < bytes.len() {
        if escapes && bytes[i] == b'\\' {
            i += 2;
        } else if bytes[i] != quote {
            i += 1;
        } else if bytes.get(i + 1) == Some(&quote) {
            i += 2;
        } else {
            return Some(i + 1);
        }
    }
    None
}

fn comment_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0;
    let mut i = start;
    while i + 1 < bytes.len() {
        match (bytes[i], bytes[i + 1]) {
            (b'/', b'*') => {
                depth += 1;
                i += 2;
            }
            (b'*', b'/') => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => i += 1,
        }
    }
    None
}

/// After `$tag$`, when a dollar quote starts here.
fn dollar_tag(bytes: &[u8], start: usize) -> Option<usize> {
    let mut i = start + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'$' => return Some(i + 1),
            c if is_word_start(c) || (i > start + 1 && c.is_ascii_digit()) => i += 1,
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(sql: &str) -> Vec<(TokenKind, &str)> {
        tokens(sql)
            .unwrap()
            .into_iter()
            .map(|t| (t.kind, &sql[t.start..t.end]))
            .collect()
    }

    #[test]
    fn tokens_of_postgresql() {
        use TokenKind::*;
        assert_eq!(
            kinds(
                "SELECT a1, \"b\"\"c\", 'it''s' -- x;\n /* /* ; */ */ , $1, 1.5e3, E'\\';' $$;$$ ;"
            ),
            vec![
                (Word, "SELECT"),
                (Word, "a1"),
                (Symbol, ","),
                (Quoted, "\"b\"\"c\""),
                (Symbol, ","),
                (String, "'it''s'"),
                (Symbol, ","),
                (Parameter, "$1"),
                (Symbol, ","),
                (Decimal, "1.5e3"),
                (Symbol, ","),
                (OtherString, "E'\\';'"),
                (OtherString, "$$;$$"),
                (Semicolon, ";"),
            ]
        );
        assert_eq!(kinds("a.1"), vec![(Word, "a"), (Decimal, ".1")]);
        assert_eq!(kinds("ä é"), vec![(Word, "ä"), (Word, "é")]);
    }

    #[test]
    fn what_does_not_end_is_an_error_with_its_position() {
        let e = tokens("SELECT 'ü', 'abc").unwrap_err();
        assert_eq!((e.sqlstate.as_str(), e.position), ("42601", Some(13)));
        for bad in ["/* x", "\"x", "$a$ x", "E'x\\'"] {
            assert!(tokens(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quotes_are_undone() {
        assert_eq!(unquote("'it''s'", '\''), "it's");
        assert_eq!(unquote("\"a\"\"b\"", '"'), "a\"b");
    }
}
