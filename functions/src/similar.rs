//! Patterns: `SIMILAR TO`, POSIX regular expressions and `LIKE ... ESCAPE`,
//! translated into what the engine below matches.

use crate::error::FunctionError;
use crate::udf::{Function, arrays, field, result, texts};
use arrow::array::{Array, StringViewArray};
use arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::sync::Arc;

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let one = vec![DataType::Utf8View];
    let two = vec![DataType::Utf8View, DataType::Utf8View];
    vec![
        Function::exact(
            "pg_similar_pattern",
            &[],
            vec![one.clone(), two.clone()],
            |_, _| Ok(field(DataType::Utf8View)),
            |a| translate(a, similar_to_regex),
        ),
        Function::exact(
            "pg_regex_pattern",
            &[],
            vec![one],
            |_, _| Ok(field(DataType::Utf8View)),
            |a| translate(a, |p, _| posix_to_regex(p)),
        ),
        Function::exact(
            "pg_like_escape",
            &["like_escape"],
            vec![two],
            |_, _| Ok(field(DataType::Utf8View)),
            |a| translate(a, |p, e| like_escape(p, e.unwrap_or("\\"))),
        ),
    ]
}

type Translate = fn(&str, Option<&str>) -> Result<String, FunctionError>;

fn translate(args: &ScalarFunctionArgs, f: Translate) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let patterns = texts(&columns[0])?;
    let escapes = columns.get(1).map(texts).transpose()?;
    let mut out = Vec::with_capacity(patterns.len());
    for row in 0..patterns.len() {
        let null = patterns.is_null(row) || escapes.is_some_and(|e| e.is_null(row));
        out.push(if null {
            None
        } else {
            Some(f(patterns.value(row), escapes.map(|e| e.value(row)))?)
        });
    }
    result(args, Arc::new(StringViewArray::from_iter(out)))
}

fn escape_char(escape: Option<&str>) -> Result<Option<char>, FunctionError> {
    let Some(escape) = escape else {
        return Ok(Some('\\'));
    };
    let mut chars = escape.chars();
    match (chars.next(), chars.next()) {
        (first, None) => Ok(first),
        _ => Err(FunctionError::new("22019", "invalid escape string")),
    }
}

/// A SQL regular expression (`SIMILAR TO`) as an anchored regular expression.
///
/// # Errors
/// 22019 for a wrong escape string, 2201B for a pattern that ends in it.
pub fn similar_to_regex(pattern: &str, escape: Option<&str>) -> Result<String, FunctionError> {
    let escape = escape_char(escape)?;
    let mut out = String::from("(?s)^(?:");
    let mut in_class = false;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if Some(c) == escape {
            let Some(next) = chars.next() else {
                return Err(FunctionError::new("2201B", "invalid regular expression"));
            };
            out.push_str(&regex::escape(&next.to_string()));
        } else if in_class {
            in_class = c != ']';
            if c == '\\' {
                out.push('\\');
            }
            out.push(c);
        } else {
            match c {
                '%' => out.push_str(".*"),
                '_' => out.push('.'),
                '[' => {
                    in_class = true;
                    out.push('[');
                }
                '(' => out.push_str("(?:"),
                '|' | '*' | '+' | '?' | '{' | '}' | ')' => out.push(c),
                other => out.push_str(&regex::escape(&other.to_string())),
            }
        }
    }
    out.push_str(")$");
    Ok(out)
}

/// A POSIX regular expression of PostgreSQL in the engine's syntax: `.` also
/// matches a line break, and PostgreSQL's own escapes are translated.
///
/// # Errors
/// 0A000 for what the engine cannot match (back references, look-around).
pub fn posix_to_regex(pattern: &str) -> Result<String, FunctionError> {
    let body = match pattern.strip_prefix("***") {
        Some(rest) => match rest.chars().next() {
            Some('=') => return Ok(regex::escape(&rest[1..])),
            Some(':') => &rest[1..],
            _ => return Err(FunctionError::new("2201B", "invalid regular expression")),
        },
        None => pattern,
    };
    if body.contains("(?=") || body.contains("(?!") || body.contains("(?<") {
        return Err(FunctionError::unsupported(
            "look-around in regular expressions is not supported",
        ));
    }
    let mut out = String::from("(?s)");
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            None => return Err(FunctionError::new("2201B", "invalid regular expression")),
            Some('y') => out.push_str("\\b"),
            Some('Y') => out.push_str("\\B"),
            Some('m') => out.push_str("\\b{start}"),
            Some('M') => out.push_str("\\b{end}"),
            Some('Z') => out.push_str("\\z"),
            Some('b') => out.push_str("\\x08"),
            Some('B') => out.push_str("\\\\"),
            Some('e') => out.push_str("\\x1b"),
            Some(d) if d.is_ascii_digit() && d != '0' => {
                return Err(FunctionError::unsupported(
                    "back references in regular expressions are not supported",
                ));
            }
            Some(other) => {
                out.push('\\');
                out.push(other);
            }
        }
    }
    Ok(out)
}

/// A `LIKE` pattern with another escape character, as one with backslashes.
///
/// # Errors
/// 22019 for a wrong escape string, 22025 for a pattern that ends in it.
pub fn like_escape(pattern: &str, escape: &str) -> Result<String, FunctionError> {
    let escape = escape_char(Some(escape))?;
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if Some(c) == escape {
            let Some(next) = chars.next() else {
                return Err(FunctionError::new(
                    "22025",
                    "LIKE pattern must not end with escape character",
                ));
            };
            out.push('\\');
            out.push(next);
        } else if c == '\\' {
            out.push_str("\\\\");
        } else {
            out.push(c);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similar(text: &str, pattern: &str) -> bool {
        let pattern = similar_to_regex(pattern, None).unwrap_or_default();
        regex::Regex::new(&pattern).is_ok_and(|r| r.is_match(text))
    }

    #[test]
    fn similar_to_matches_the_whole_text() {
        assert!(!similar("abc", "b"));
        assert!(similar("abc", "%(b|d)%"));
        assert!(!similar("abc", "(b|c)%"));
        assert!(similar("abc", "a_c"));
        assert!(similar("a.c", "a.c"));
        assert!(!similar("abc", "a.c"));
        assert!(similar("a%c", "a\\%c"));
        assert!(similar("aaa", "a{3}"));
        assert!(similar("a\nb", "a%b"));
    }

    #[test]
    fn like_with_another_escape() {
        assert_eq!(like_escape("a!%b", "!").ok().as_deref(), Some("a\\%b"));
        assert_eq!(like_escape("a\\b", "!").ok().as_deref(), Some("a\\\\b"));
        assert_eq!(like_escape("a!", "!").unwrap_err().sqlstate, "22025");
        assert_eq!(like_escape("a", "xy").unwrap_err().sqlstate, "22019");
    }

    #[test]
    fn posix_patterns_match_line_breaks() {
        let p = posix_to_regex("^a.c$").unwrap_or_default();
        assert!(regex::Regex::new(&p).is_ok_and(|r| r.is_match("a\nc")));
        assert_eq!(posix_to_regex("(a)\\1").unwrap_err().sqlstate, "0A000");
    }
}
