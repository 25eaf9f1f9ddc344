//! PostgreSQL's text forms of values, in and out.

use super::{
    Datum, Interval, Numeric, SqlType, TimeZone, ValueError, ValueResult, datetime, datetime_text,
};
use std::fmt::Write;

pub(super) fn parse(sql_type: SqlType, text: &str, zone: &TimeZone) -> ValueResult<Datum> {
    Ok(match sql_type {
        SqlType::Bool => Datum::Bool(parse_bool(text)?),
        SqlType::Int2 => Datum::Int2(parse_int(text, "smallint")?),
        SqlType::Int4 => Datum::Int4(parse_int(text, "integer")?),
        SqlType::Int8 => Datum::Int8(parse_int(text, "bigint")?),
        SqlType::Oid => Datum::Oid(parse_int(text, "oid")?),
        SqlType::Float4 => {
            let v = parse_float(text, "real")? as f32;
            let exact = parse_float(text, "real")?;
            if v.is_infinite() && exact.is_finite() || v == 0.0 && exact != 0.0 {
                return Err(ValueError::new(
                    "22003",
                    format!("\"{}\" is out of range for type real", text.trim()),
                ));
            }
            Datum::Float4(v)
        }
        SqlType::Float8 => Datum::Float8(parse_float(text, "double precision")?),
        SqlType::Numeric(_) => Datum::Numeric(Numeric::parse(text)?),
        SqlType::Text
        | SqlType::Varchar(_)
        | SqlType::Name
        | SqlType::InternalChar
        | SqlType::Json
        | SqlType::Unknown
        | SqlType::Void => {
            check_text(text)?;
            Datum::Text(text.to_owned())
        }
        SqlType::Char(_) => {
            check_text(text)?;
            Datum::Text(text.trim_end_matches(' ').to_owned())
        }
        SqlType::Bytea => Datum::Bytea(parse_bytea(text)?.into()),
        SqlType::Date => Datum::Date(datetime::parse_date(text, zone)?),
        SqlType::Time => Datum::Time(datetime::parse_time(text, zone)?),
        SqlType::Timestamp => Datum::Timestamp(datetime::parse_timestamp(text, zone)?),
        SqlType::TimestampTz => Datum::TimestampTz(datetime::parse_timestamptz(text, zone)?),
        SqlType::Interval => Datum::Interval(Interval::parse(text)?),
        SqlType::Uuid => Datum::Uuid(
            *uuid::Uuid::parse_str(text.trim())
                .map_err(|_| ValueError::syntax("uuid", text))?
                .as_bytes(),
        ),
        SqlType::Array(_) => {
            let element = sql_type.element().unwrap_or(SqlType::Text);
            Datum::Array(element, parse_array(element, text, zone)?)
        }
    })
}

/// Text cannot hold the character 0, as in PostgreSQL.
fn check_text(text: &str) -> ValueResult<()> {
    if text.as_bytes().contains(&0) {
        return Err(ValueError::new(
            "22021",
            "invalid byte sequence for encoding \"UTF8\": 0x00",
        ));
    }
    Ok(())
}

fn parse_bool(text: &str) -> ValueResult<bool> {
    let t = text.trim().to_ascii_lowercase();
    let prefix = |word: &str, min: usize| t.len() >= min && word.starts_with(&t);
    if prefix("true", 1) || prefix("yes", 1) || t == "on" || t == "1" {
        Ok(true)
    } else if prefix("false", 1) || prefix("no", 1) || prefix("off", 2) || t == "0" {
        Ok(false)
    } else {
        Err(ValueError::syntax("boolean", text))
    }
}

fn parse_int<T: TryFrom<i128>>(text: &str, name: &str) -> ValueResult<T> {
    let t = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let digits = t.strip_prefix(['+', '-']).unwrap_or(t);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ValueError::syntax(name, text));
    }
    let range = || {
        ValueError::new(
            "22003",
            format!("value \"{t}\" is out of range for type {name}"),
        )
    };
    let v: i128 = t.parse().map_err(|_| range())?;
    T::try_from(v).map_err(|_| range())
}

fn parse_float(text: &str, name: &str) -> ValueResult<f64> {
    let t = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let lower = t.to_ascii_lowercase();
    Ok(match lower.as_str() {
        "nan" => f64::NAN,
        "infinity" | "+infinity" | "inf" | "+inf" => f64::INFINITY,
        "-infinity" | "-inf" => f64::NEG_INFINITY,
        _ => {
            if !lower
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'+' | b'-'))
            {
                return Err(ValueError::syntax(name, text));
            }
            let v: f64 = lower.parse().map_err(|_| ValueError::syntax(name, text))?;
            let nonzero = lower
                .split('e')
                .next()
                .is_some_and(|m| m.bytes().any(|b| (b'1'..=b'9').contains(&b)));
            if v.is_infinite() || (v == 0.0 && nonzero) {
                return Err(ValueError::new(
                    "22003",
                    format!("\"{t}\" is out of range for type {name}"),
                ));
            }
            v
        }
    })
}

/// `\x` and hex digits, or the old escape form.
fn parse_bytea(text: &str) -> ValueResult<Vec<u8>> {
    if let Some(digits) = text.strip_prefix("\\x") {
        let digits: String = digits
            .chars()
            .filter(|c| !c.is_ascii_whitespace())
            .collect();
        return hex::decode(digits)
            .map_err(|e| ValueError::new("22023", format!("invalid hexadecimal data: {e}")));
    }
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] != b'\\' {
            out.push(bytes[i]);
            i += 1;
        } else if bytes.get(i + 1) == Some(&b'\\') {
            out.push(b'\\');
            i += 2;
        } else {
            let octal = bytes
                .get(i + 1..i + 4)
                .and_then(|d| std::str::from_utf8(d).ok())
                .and_then(|d| u8::from_str_radix(d, 8).ok())
                .ok_or_else(|| ValueError::new("22P02", "invalid input syntax for type bytea"))?;
            out.push(octal);
            i += 4;
        }
    }
    Ok(out)
}

/// `{1,2,NULL,"a,b"}`: one dimension.
fn parse_array(element: SqlType, text: &str, zone: &TimeZone) -> ValueResult<Vec<Datum>> {
    let bad = || ValueError::new("22P02", format!("malformed array literal: \"{text}\""));
    let body = text
        .trim()
        .strip_prefix('{')
        .and_then(|t| t.strip_suffix('}'))
        .ok_or_else(bad)?;
    if body.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut in_quotes = false;
    let mut chars = body.chars();
    loop {
        let c = chars.next();
        match c {
            Some('\\') => word.push(chars.next().ok_or_else(bad)?),
            Some('"') => {
                in_quotes = !in_quotes;
                quoted = true;
            }
            Some('{' | '}') if !in_quotes => {
                return Err(ValueError::new(
                    "0A000",
                    "arrays of several dimensions are not supported yet",
                ));
            }
            Some(',') | None if !in_quotes => {
                let item = if quoted { word.as_str() } else { word.trim() };
                if !quoted && item.is_empty() {
                    return Err(bad());
                }
                out.push(if !quoted && item.eq_ignore_ascii_case("null") {
                    Datum::Null
                } else {
                    parse(element, item, zone)?
                });
                word.clear();
                quoted = false;
                if c.is_none() {
                    return Ok(out);
                }
            }
            Some(other) => word.push(other),
            None => return Err(bad()),
        }
    }
}

pub(super) fn format_into(datum: &Datum, sql_type: SqlType, zone: &TimeZone, out: &mut String) {
    // Writing to a string cannot fail.
    match datum {
        Datum::Null => {}
        Datum::Bool(v) => out.push(if *v { 't' } else { 'f' }),
        Datum::Int2(v) => _ = write!(out, "{v}"),
        Datum::Int4(v) => _ = write!(out, "{v}"),
        Datum::Int8(v) => _ = write!(out, "{v}"),
        Datum::Oid(v) => _ = write!(out, "{v}"),
        Datum::Float4(v) => write_float(f64::from(*v), &format!("{v:e}"), 6, out),
        Datum::Float8(v) => write_float(*v, &format!("{v:e}"), 15, out),
        Datum::Numeric(n) => match sql_type {
            SqlType::Numeric(None) => _ = write!(out, "{}", n.normalized()),
            _ => _ = write!(out, "{n}"),
        },
        Datum::Text(s) => {
            out.push_str(s);
            if let SqlType::Char(width) = sql_type {
                let have = s.chars().count();
                out.extend(std::iter::repeat_n(
                    ' ',
                    (width as usize).saturating_sub(have),
                ));
            }
        }
        Datum::Bytea(b) => {
            out.push_str("\\x");
            for byte in b.iter() {
                let _ = write!(out, "{byte:02x}");
            }
        }
        Datum::Date(d) => datetime_text::write_date(*d, out),
        Datum::Time(t) => datetime_text::write_time(*t, out),
        Datum::Timestamp(t) => datetime_text::write_timestamp(*t, out),
        Datum::TimestampTz(t) => datetime_text::write_timestamptz(*t, zone, out),
        Datum::Interval(i) => i.write(out),
        Datum::Uuid(u) => _ = write!(out, "{}", uuid::Uuid::from_bytes(*u)),
        Datum::Array(element, values) => {
            out.push('{');
            for (i, v) in values.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                match v.format(*element, zone) {
                    None => out.push_str("NULL"),
                    Some(text) => write_array_item(&text, out),
                }
            }
            out.push('}');
        }
    }
}

fn write_array_item(text: &str, out: &mut String) {
    let plain = !text.is_empty()
        && !text.eq_ignore_ascii_case("null")
        && !text
            .chars()
            .any(|c| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace());
    if plain {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// The shortest digits that read back, in PostgreSQL's layout: plain between
/// 1e-4 and 1e`plain_digits`, else with an exponent of two digits at least.
fn write_float(v: f64, shortest: &str, plain_digits: i32, out: &mut String) {
    if v.is_nan() {
        return out.push_str("NaN");
    }
    if v.is_infinite() {
        return out.push_str(if v > 0.0 { "Infinity" } else { "-Infinity" });
    }
    // `shortest` is d[.ddd]e[-]x.
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(m) => ("-", m),
        None => ("", mantissa),
    };
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    out.push_str(sign);
    if !(-4..plain_digits).contains(&exponent) {
        let (head, tail) = digits.split_at(1);
        out.push_str(head);
        if !tail.is_empty() {
            out.push('.');
            out.push_str(tail);
        }
        let _ = write!(
            out,
            "e{}{:02}",
            if exponent < 0 { '-' } else { '+' },
            exponent.abs()
        );
        return;
    }
    if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
        out.push_str(&digits);
        return;
    }
    let int_len = exponent as usize + 1;
    if digits.len() <= int_len {
        out.push_str(&digits);
        out.extend(std::iter::repeat_n('0', int_len - digits.len()));
    } else {
        out.push_str(&digits[..int_len]);
        out.push('.');
        out.push_str(&digits[int_len..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(t: SqlType, text: &str) -> String {
        Datum::parse(t, text, &TimeZone::UTC)
            .unwrap()
            .format(t, &TimeZone::UTC)
            .unwrap()
    }

    fn code(t: SqlType, text: &str) -> &'static str {
        Datum::parse(t, text, &TimeZone::UTC).unwrap_err().sqlstate
    }

    #[test]
    fn output_is_postgresqls() {
        for (t, input, output) in [
            (SqlType::Bool, "yes", "t"),
            (SqlType::Bool, "off", "f"),
            (SqlType::Int2, " -32768 ", "-32768"),
            (SqlType::Float8, "0.1", "0.1"),
            (SqlType::Float8, "1e15", "1e+15"),
            (SqlType::Float8, "100000000000000", "100000000000000"),
            (SqlType::Float8, "0.0001", "0.0001"),
            (SqlType::Float8, "0.00001", "1e-05"),
            (SqlType::Float8, "1.5e300", "1.5e+300"),
            (SqlType::Float8, "-0", "-0"),
            (SqlType::Float8, "infinity", "Infinity"),
            (SqlType::Float4, "1e6", "1e+06"),
            (SqlType::Float4, "123456", "123456"),
            (SqlType::Float4, "3.14", "3.14"),
            (SqlType::Numeric(None), "1.500", "1.5"),
            (SqlType::Numeric(Some((10, 3))), "1.500", "1.500"),
            (SqlType::Bytea, "\\xDEADbeef", "\\xdeadbeef"),
            (SqlType::Bytea, "a\\001\\\\", "\\x61015c"),
            (SqlType::Char(4), "ab  ", "ab  "),
            (
                SqlType::Uuid,
                "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            (SqlType::Array(23), "{1, NULL,3}", "{1,NULL,3}"),
            (
                SqlType::Array(25),
                r#"{a,"b c","d\"e",""}"#,
                r#"{a,"b c","d\"e",""}"#,
            ),
        ] {
            assert_eq!(round(t, input), output, "{t} {input}");
        }
    }

    #[test]
    fn wrong_text_has_postgresqls_code() {
        for (t, text, sqlstate) in [
            (SqlType::Int4, "abc", "22P02"),
            (SqlType::Int4, "", "22P02"),
            (SqlType::Int4, "1.5", "22P02"),
            (SqlType::Int4, "2147483648", "22003"),
            (SqlType::Int2, "32768", "22003"),
            (SqlType::Int8, "9223372036854775808", "22003"),
            (SqlType::Bool, "maybe", "22P02"),
            (SqlType::Float8, "1e400", "22003"),
            (SqlType::Float8, "1e-400", "22003"),
            (SqlType::Float8, "x", "22P02"),
            (SqlType::Float4, "1e39", "22003"),
            (SqlType::Uuid, "x", "22P02"),
            (SqlType::Text, "a\0b", "22021"),
            (SqlType::Array(23), "{1", "22P02"),
        ] {
            assert_eq!(code(t, text), sqlstate, "{t} {text}");
        }
    }
}
