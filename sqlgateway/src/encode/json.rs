//! JSON as the HTTP interface promises it: NULL is null, integers beyond ±2^53,
//! numeric, NaN and infinities are strings, bytea is `\x` hex, times are
//! ISO 8601, json is JSON.

use arrow::array::{Array, RecordBatch};
use lineradb_common::sql::{Datum, SqlType, TimeZone, ValueResult, datum_at};
use std::io::Write;

/// Largest integer whose neighbours a JSON number still tells apart everywhere.
const EXACT: i64 = 1 << 53;

/// Appends a value.
pub fn write_json(datum: &Datum, sql_type: SqlType, zone: &TimeZone, out: &mut Vec<u8>) {
    let text = |out: &mut Vec<u8>| {
        let mut text = String::new();
        datum.format_into(sql_type, zone, &mut text);
        write_json_string(&text, out);
    };
    match datum {
        Datum::Null => out.extend_from_slice(b"null"),
        Datum::Bool(value) => {
            out.extend_from_slice(if *value { &b"true"[..] } else { &b"false"[..] });
        }
        Datum::Int2(value) => number(i64::from(*value), out),
        Datum::Int4(value) => number(i64::from(*value), out),
        Datum::Int8(value) => number(*value, out),
        Datum::Oid(value) => number(i64::from(*value), out),
        Datum::Float4(value) if value.is_finite() => {
            let mut text = String::new();
            datum.format_into(sql_type, zone, &mut text);
            out.extend_from_slice(text.as_bytes());
        }
        Datum::Float8(value) if value.is_finite() => {
            let mut text = String::new();
            datum.format_into(sql_type, zone, &mut text);
            out.extend_from_slice(text.as_bytes());
        }
        Datum::Text(value) if sql_type == SqlType::Json => {
            // Only what is JSON may go into the document as it is.
            match serde_json::from_str::<serde::de::IgnoredAny>(value) {
                Ok(_) => out.extend_from_slice(value.as_bytes()),
                Err(_) => write_json_string(value, out),
            }
        }
        Datum::Text(value) if !matches!(sql_type, SqlType::Char(_)) => {
            write_json_string(value, out);
        }
        Datum::Timestamp(_) | Datum::TimestampTz(_) => {
            let mut text = String::new();
            datum.format_into(sql_type, zone, &mut text);
            write_json_string(&iso_8601(&text), out);
        }
        Datum::Array(element, values) => {
            out.push(b'[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_json(value, *element, zone, out);
            }
            out.push(b']');
        }
        _ => text(out),
    }
}

fn number(value: i64, out: &mut Vec<u8>) {
    let quote = !(-EXACT..=EXACT).contains(&value);
    // Writing to a Vec does not fail.
    let _ = if quote {
        write!(out, "\"{value}\"")
    } else {
        write!(out, "{value}")
    };
}

/// Appends a JSON string.
pub fn write_json_string(text: &str, out: &mut Vec<u8>) {
    // Writing a string to a Vec does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// `2024-01-31 10:00:00+02` to `2024-01-31T10:00:00+02:00`.
fn iso_8601(text: &str) -> String {
    let mut out = text.replacen(' ', "T", 1);
    let zone = out
        .char_indices()
        .skip(10)
        .find(|(_, c)| matches!(c, '+' | '-'))
        .map(|(at, _)| at);
    if let Some(at) = zone {
        let end = out[at..].find(' ').map_or(out.len(), |space| at + space);
        if end - at == 3 {
            out.insert_str(end, ":00");
        }
    }
    out
}

/// Writes the rows of batches as JSON arrays.
pub struct JsonRows {
    types: Vec<SqlType>,
    zone: TimeZone,
}

impl JsonRows {
    /// For columns of these types.
    pub fn new(types: Vec<SqlType>, zone: TimeZone) -> Self {
        JsonRows { types, zone }
    }

    /// Appends row `row` of `batch` as `[...]`.
    ///
    /// # Errors
    /// XX000 for an Arrow type that has no SQL value.
    pub fn array(&self, batch: &RecordBatch, row: usize, out: &mut Vec<u8>) -> ValueResult<()> {
        out.push(b'[');
        for (at, (column, sql_type)) in batch.columns().iter().zip(&self.types).enumerate() {
            if at > 0 {
                out.push(b',');
            }
            self.value(column.as_ref(), row, *sql_type, out)?;
        }
        out.push(b']');
        Ok(())
    }

    /// Appends row `row` of `batch` as `{...}`; `names` are JSON strings.
    ///
    /// # Errors
    /// XX000 for an Arrow type that has no SQL value.
    pub fn object(
        &self,
        names: &[Vec<u8>],
        batch: &RecordBatch,
        row: usize,
        out: &mut Vec<u8>,
    ) -> ValueResult<()> {
        out.push(b'{');
        for (at, (name, column)) in names.iter().zip(batch.columns()).enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(name);
            out.push(b':');
            self.value(column.as_ref(), row, self.types[at], out)?;
        }
        out.push(b'}');
        Ok(())
    }

    fn value(
        &self,
        column: &dyn Array,
        row: usize,
        sql_type: SqlType,
        out: &mut Vec<u8>,
    ) -> ValueResult<()> {
        let datum = datum_at(column, row, sql_type)?;
        write_json(&datum, sql_type, &self.zone, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lineradb_common::sql::Numeric;

    fn json(datum: Datum, sql_type: SqlType) -> String {
        let mut out = Vec::new();
        write_json(&datum, sql_type, &TimeZone::UTC, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn integers_beyond_2_53_are_strings() {
        assert_eq!(
            json(Datum::Int8(1 << 53), SqlType::Int8),
            "9007199254740992"
        );
        assert_eq!(
            json(Datum::Int8((1 << 53) + 1), SqlType::Int8),
            "\"9007199254740993\""
        );
        assert_eq!(
            json(Datum::Int8(i64::MIN), SqlType::Int8),
            "\"-9223372036854775808\""
        );
    }

    #[test]
    fn what_no_json_number_holds_is_a_string() {
        let numeric = Datum::Numeric(Numeric::parse("1.10").unwrap());
        assert_eq!(json(numeric, SqlType::Numeric(Some((10, 2)))), "\"1.10\"");
        assert_eq!(json(Datum::Float8(f64::NAN), SqlType::Float8), "\"NaN\"");
        assert_eq!(
            json(Datum::Float8(f64::NEG_INFINITY), SqlType::Float8),
            "\"-Infinity\""
        );
        assert_eq!(json(Datum::Float8(0.1), SqlType::Float8), "0.1");
    }

    #[test]
    fn bytes_times_and_text() {
        assert_eq!(
            json(
                Datum::Bytea(Bytes::from_static(b"\xde\xad")),
                SqlType::Bytea
            ),
            r#""\\xdead""#
        );
        assert_eq!(
            json(Datum::TimestampTz(1_500_000), SqlType::TimestampTz),
            "\"1970-01-01T00:00:01.5+00:00\""
        );
        assert_eq!(
            json(Datum::Timestamp(0), SqlType::Timestamp),
            "\"1970-01-01T00:00:00\""
        );
        assert_eq!(
            json(Datum::Text("a\"\n".into()), SqlType::Text),
            r#""a\"\n""#
        );
        assert_eq!(json(Datum::Null, SqlType::Text), "null");
    }

    #[test]
    fn json_is_json_and_arrays_are_arrays() {
        assert_eq!(
            json(Datum::Text("{\"a\": [1]}".into()), SqlType::Json),
            "{\"a\": [1]}"
        );
        assert_eq!(
            json(Datum::Text("{oops".into()), SqlType::Json),
            "\"{oops\""
        );
        assert_eq!(
            json(
                Datum::Array(SqlType::Int4, vec![Datum::Int4(1), Datum::Null]),
                SqlType::Array(23)
            ),
            "[1,null]"
        );
    }

    #[test]
    fn offsets_have_minutes() {
        assert_eq!(
            iso_8601("2024-01-31 10:00:00-03:30"),
            "2024-01-31T10:00:00-03:30"
        );
        assert_eq!(
            iso_8601("0044-03-15 00:00:00+00 BC"),
            "0044-03-15T00:00:00+00:00 BC"
        );
    }
}
