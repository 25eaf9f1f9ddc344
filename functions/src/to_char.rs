//! `to_char` for times and numbers, `to_date` and `to_timestamp`, for the
//! common patterns. A pattern that PostgreSQL knows and this does not is an
//! error (0A000), never another text.

use crate::cast::value_error;
use crate::error::FunctionError;
use crate::extract::iso_week;
use crate::pattern::{Piece, Word, pieces};
use crate::temporal::{timestamp, timestamptz};
use crate::udf::{Function, arrays, field, primitive, result, texts};
use arrow::array::{Array, Date32Array, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use lineradb_common::sql::{Datum, Numeric, SqlType, civil_from_days, datum_at, days_from_civil};
use std::sync::Arc;

const SECOND: i64 = 1_000_000;

const DAY: i64 = 86_400 * SECOND;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let text = DataType::Utf8View;
    vec![
        Function::coerced(
            "to_char",
            |types| {
                let [value, _] = types else {
                    return plan_err!("function to_char takes two arguments");
                };
                let value = match value {
                    DataType::Date32 | DataType::Timestamp(_, None) => timestamp(),
                    DataType::Timestamp(_, Some(_)) => timestamptz(),
                    DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                        DataType::Decimal128(19, 0)
                    }
                    DataType::Decimal128(..) | DataType::Float64 => value.clone(),
                    DataType::Float32 => DataType::Float64,
                    DataType::Null => timestamp(),
                    _ => return plan_err!("function to_char({value}, text) does not exist"),
                };
                Ok(vec![value, DataType::Utf8View])
            },
            |_, _| Ok(field(DataType::Utf8View)),
            to_char,
        ),
        Function::exact(
            "to_date",
            &[],
            vec![vec![text.clone(), text.clone()]],
            |_, _| Ok(field(DataType::Date32)),
            |a| {
                let out = parse_all(a)?;
                let days: Date32Array = out
                    .into_iter()
                    .map(|v| v.map(|t| t.div_euclid(DAY) as i32))
                    .collect();
                result(a, Arc::new(days))
            },
        ),
        Function::exact(
            "to_timestamp",
            &[],
            vec![vec![DataType::Float64], vec![text.clone(), text]],
            |_, _| Ok(field(timestamptz())),
            to_timestamp,
        ),
    ]
}

fn to_timestamp(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let micros: TimestampMicrosecondArray = if args.args.len() == 1 {
        let seconds = arrays(args)?.remove(0);
        let mut out = Vec::with_capacity(seconds.len());
        for v in primitive::<Float64Type>(&seconds)? {
            out.push(match v {
                None => None,
                Some(v) if v.is_finite() && v.abs() < 9.0e12 => {
                    Some((v * SECOND as f64).round_ties_even() as i64)
                }
                Some(v) => {
                    return Err(FunctionError::new(
                        "22008",
                        format!("timestamp out of range: \"{v}\""),
                    )
                    .into());
                }
            });
        }
        out.into_iter().collect()
    } else {
        parse_all(args)?.into_iter().collect()
    };
    result(args, Arc::new(micros.with_timezone("UTC")))
}

fn to_char(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let values = &columns[0];
    let patterns = texts(&columns[1])?;
    let sql_type = SqlType::from_arrow(values.data_type());
    let mut out = Vec::with_capacity(values.len());
    for row in 0..values.len() {
        if values.is_null(row) || patterns.is_null(row) {
            out.push(None);
            continue;
        }
        let value = datum_at(values.as_ref(), row, sql_type).map_err(value_error)?;
        let pattern = patterns.value(row);
        out.push(Some(match value {
            Datum::Timestamp(t) => format_time(t, pattern, false)?,
            Datum::TimestampTz(t) => format_time(t, pattern, true)?,
            Datum::Numeric(n) => format_number(n, pattern)?,
            Datum::Float8(v) => format_number(Numeric::from_f64(v).map_err(value_error)?, pattern)?,
            _ => return Err(FunctionError::unsupported("to_char of this type").into()),
        }));
    }
    result(args, Arc::new(StringViewArray::from_iter(out)))
}

/// A name in the case of its pattern word, padded to nine characters.
fn cased(name: &str, like: &str, fill: bool) -> String {
    let mut letters = like.chars();
    let (first, second) = (letters.next(), letters.next());
    let name = match (first, second) {
        (Some(a), Some(b)) if a.is_uppercase() && b.is_uppercase() => name.to_uppercase(),
        (Some(a), _) if a.is_uppercase() => name.to_owned(),
        _ => name.to_lowercase(),
    };
    if fill { format!("{name:<9}") } else { name }
}

fn format_time(micros: i64, pattern: &str, zoned: bool) -> Result<String, FunctionError> {
    let days = micros.div_euclid(DAY) as i32;
    let time = micros.rem_euclid(DAY);
    let (year, month, day) = civil_from_days(days);
    let weekday = (i64::from(days) + 4).rem_euclid(7) as usize;
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;
    let hour = time / (3600 * SECOND);
    let mut out = String::new();
    for piece in pieces(pattern)? {
        let (word, text, fill) = match piece {
            Piece::Literal(c) => {
                out.push(c);
                continue;
            }
            Piece::Word { word, text, fill } => (word, text, fill),
        };
        let (number, width) = match word {
            Word::Month => {
                out.push_str(&cased(MONTHS[month as usize - 1], &text, fill));
                continue;
            }
            Word::Mon => {
                out.push_str(&cased(&MONTHS[month as usize - 1][..3], &text, false));
                continue;
            }
            Word::Day => {
                out.push_str(&cased(DAYS[weekday], &text, fill));
                continue;
            }
            Word::Dy => {
                out.push_str(&cased(&DAYS[weekday][..3], &text, false));
                continue;
            }
            Word::Meridiem => {
                let word = if hour >= 12 { "PM" } else { "AM" };
                let lower = text.starts_with(|c: char| c.is_lowercase());
                out.push_str(&if lower {
                    word.to_lowercase()
                } else {
                    word.into()
                });
                continue;
            }
            Word::Zone => {
                if zoned {
                    out.push_str("UTC");
                }
                continue;
            }
            Word::Hour24 => (hour, 2),
            Word::Hour12 => ((hour + 11) % 12 + 1, 2),
            Word::Minute => (time / (60 * SECOND) % 60, 2),
            Word::Second => (time / SECOND % 60, 2),
            Word::Milli => (time % SECOND / 1000, 3),
            Word::Micro => (time % SECOND, 6),
            Word::Year => (i64::from(year), 4),
            Word::Year2 => (i64::from(year.rem_euclid(100)), 2),
            Word::IsoYear => (i64::from(iso_week(days).0), 4),
            Word::IsoWeek => (i64::from(iso_week(days).1), 2),
            Word::IsoDay => (if weekday == 0 { 7 } else { weekday as i64 }, 1),
            Word::MonthNumber => (i64::from(month), 2),
            Word::DayOfYear => (i64::from(day_of_year), 3),
            Word::DayNumber => (i64::from(day), 2),
            Word::WeekDay => (weekday as i64 + 1, 1),
            Word::Week => (i64::from((day_of_year - 1) / 7 + 1), 2),
            Word::WeekOfMonth => (i64::from((day - 1) / 7 + 1), 1),
            Word::Quarter => (i64::from((month - 1) / 3 + 1), 1),
        };
        if year <= 0 {
            return Err(FunctionError::unsupported("to_char of years before 1"));
        }
        if fill {
            out.push_str(&format!("{number:0width$}"));
        } else {
            out.push_str(&number.to_string());
        }
    }
    Ok(out)
}

/// Digits, `.`, `,` and `FM`: the patterns that need no locale.
fn format_number(value: Numeric, pattern: &str) -> Result<String, FunctionError> {
    let mut rest = pattern;
    let mut fill = true;
    if rest.len() >= 2 && rest.is_char_boundary(2) && rest[..2].eq_ignore_ascii_case("FM") {
        fill = false;
        rest = &rest[2..];
    }
    if rest.chars().any(|c| !matches!(c, '9' | '0' | '.' | ',')) || rest.matches('.').count() > 1 {
        return Err(FunctionError::unsupported(format!(
            "the pattern \"{pattern}\" of to_char for numbers"
        )));
    }
    let (whole, fraction) = rest.split_once('.').unwrap_or((rest, ""));
    if fraction.contains(',') || (!fill && fraction.contains('9')) {
        return Err(FunctionError::unsupported(format!(
            "the pattern \"{pattern}\" of to_char for numbers"
        )));
    }
    let rounded = value
        .rescale(fraction.len() as u8)
        .map_err(FunctionError::from)?;
    let negative = rounded.mantissa() < 0;
    let digits = rounded.mantissa().unsigned_abs().to_string();
    let digits = format!("{digits:0>width$}", width = fraction.len() + 1);
    let (int, frac) = digits.split_at(digits.len() - fraction.len());
    let int = if int == "0" && !fraction.is_empty() {
        ""
    } else {
        int
    };
    let places = whole.chars().filter(|c| *c != ',').count();
    let overflow = int.len() > places;
    let mut body = Vec::new();
    let mut source = int.chars().rev();
    let zero_from = whole.find('0');
    for (i, c) in whole.char_indices().rev() {
        if c == ',' {
            // A separator shows only when a digit stands to its left.
            let more = source.clone().next().is_some() || zero_from.is_some_and(|z| z < i);
            body.push(if more { ',' } else { ' ' });
            continue;
        }
        match source.next() {
            Some(digit) => body.push(if overflow { '#' } else { digit }),
            None if zero_from.is_some_and(|z| z <= i) => body.push('0'),
            None => body.push(' '),
        }
    }
    body.reverse();
    let text: String = body.into_iter().collect();
    let shown = text.trim_start();
    let padding = text.len() - shown.len();
    let mut out = String::new();
    if fill {
        out.push_str(&" ".repeat(padding));
        out.push(if negative { '-' } else { ' ' });
    } else if negative {
        out.push('-');
    }
    out.push_str(shown);
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(&if overflow {
            "#".repeat(frac.len())
        } else {
            frac.to_owned()
        });
    }
    Ok(out)
}

fn parse_all(args: &ScalarFunctionArgs) -> Result<Vec<Option<i64>>> {
    let columns = arrays(args)?;
    let (texts, patterns) = (texts(&columns[0])?, texts(&columns[1])?);
    let mut out = Vec::with_capacity(texts.len());
    for row in 0..texts.len() {
        out.push(if texts.is_null(row) || patterns.is_null(row) {
            None
        } else {
            Some(parse_time(texts.value(row), patterns.value(row))?)
        });
    }
    Ok(out)
}

/// Reads a text by a pattern of numeric fields.
fn parse_time(text: &str, pattern: &str) -> Result<i64, FunctionError> {
    let (mut year, mut month, mut day) = (1i64, 1i64, 1i64);
    let (mut hour, mut minute, mut micros) = (0i64, 0i64, 0i64);
    let mut meridiem = None;
    let mut rest = text.trim_start();
    let bad = || {
        FunctionError::new(
            "22007",
            format!("invalid value \"{text}\" for the pattern \"{pattern}\""),
        )
    };
    for piece in pieces(pattern)? {
        let (word, width) = match piece {
            Piece::Literal(_) => {
                let mut chars = rest.chars();
                if chars.next().is_some_and(|c| !c.is_ascii_alphanumeric()) {
                    rest = chars.as_str();
                }
                continue;
            }
            Piece::Word { word, .. } => (
                word,
                match word {
                    Word::Year => 4,
                    Word::Micro => 6,
                    Word::Milli => 3,
                    Word::Hour24
                    | Word::Hour12
                    | Word::Minute
                    | Word::Second
                    | Word::MonthNumber
                    | Word::DayNumber => 2,
                    Word::Mon | Word::Month | Word::Meridiem => 0,
                    _ => {
                        return Err(FunctionError::unsupported(format!(
                            "the pattern \"{pattern}\" for reading times"
                        )));
                    }
                },
            ),
        };
        if word == Word::Meridiem {
            let head = rest.get(..2).ok_or_else(bad)?.to_ascii_uppercase();
            meridiem = Some(match head.as_str() {
                "AM" => false,
                "PM" => true,
                _ => return Err(bad()),
            });
            rest = &rest[2..];
            continue;
        }
        if matches!(word, Word::Mon | Word::Month) {
            let found = MONTHS.iter().enumerate().find_map(|(i, name)| {
                let name = if word == Word::Mon { &name[..3] } else { name };
                let head = rest.get(..name.len())?;
                head.eq_ignore_ascii_case(name).then_some((i, name.len()))
            });
            let (i, len) = found.ok_or_else(bad)?;
            month = i as i64 + 1;
            rest = &rest[len..];
            continue;
        }
        rest = rest.trim_start();
        let len = rest
            .bytes()
            .take(width)
            .take_while(u8::is_ascii_digit)
            .count();
        let number: i64 = rest[..len].parse().map_err(|_| bad())?;
        rest = &rest[len..];
        match word {
            Word::Year => year = number,
            Word::MonthNumber => month = number,
            Word::DayNumber => day = number,
            Word::Hour24 | Word::Hour12 => hour = number,
            Word::Minute => minute = number,
            Word::Second => micros += number * SECOND,
            Word::Milli => micros += number * 1000 * 10i64.pow(3 - len as u32),
            _ => micros += number * 10i64.pow(6 - len as u32),
        }
    }
    if let Some(afternoon) = meridiem {
        if !(1..=12).contains(&hour) {
            return Err(bad());
        }
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && micros < 60 * SECOND;
    if !in_range {
        return Err(FunctionError::new(
            "22008",
            format!("date/time field value out of range: \"{text}\""),
        ));
    }
    let days = days_from_civil(year as i32, month as u32, day as u32);
    if civil_from_days(days).1 != month as u32 {
        return Err(FunctionError::new(
            "22008",
            format!("date/time field value out of range: \"{text}\""),
        ));
    }
    Ok(i64::from(days) * DAY + hour * 3600 * SECOND + minute * 60 * SECOND + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time() -> i64 {
        i64::from(days_from_civil(2024, 3, 5)) * DAY + (14 * 3600 + 7 * 60 + 9) * SECOND + 12_345
    }

    fn shown(pattern: &str) -> String {
        format_time(time(), pattern, false).unwrap_or_else(|e| e.sqlstate.to_owned())
    }

    #[test]
    fn times_by_pattern() {
        assert_eq!(shown("YYYY-MM-DD HH24:MI:SS"), "2024-03-05 14:07:09");
        assert_eq!(shown("HH12:MI AM"), "02:07 PM");
        assert_eq!(shown("FMDay, DD Mon YYYY"), "Tuesday, 05 Mar 2024");
        assert_eq!(shown("Month"), "March    ");
        assert_eq!(shown("MS US"), "012 012345");
        assert_eq!(shown("\"Q\"Q"), "Q1");
        assert_eq!(shown("DDth"), "0A000");
        assert_eq!(shown("CC"), "0A000");
    }

    #[test]
    fn numbers_by_pattern() {
        let n = |m, s| Numeric::new(m, s).unwrap_or(Numeric::ZERO);
        let f = |m, s, p: &str| format_number(n(m, s), p).unwrap_or_else(|e| e.sqlstate.into());
        assert_eq!(f(12345, 1, "9999.99"), " 1234.50");
        assert_eq!(f(-485, 0, "999"), "-485");
        assert_eq!(f(1485, 0, "9,999"), " 1,485");
        assert_eq!(f(485, 0, "9,999"), "   485");
        assert_eq!(f(12, 0, "000"), " 012");
        assert_eq!(f(12, 0, "FM000"), "012");
        assert_eq!(f(12345, 0, "999"), " ###");
        assert_eq!(f(1, 0, "RN"), "0A000");
    }

    #[test]
    fn times_are_read_by_pattern() {
        assert_eq!(
            parse_time("2024-03-05 14:07:09.012345", "YYYY-MM-DD HH24:MI:SS.US").ok(),
            Some(time())
        );
        assert_eq!(
            parse_time("05 Mar 2024", "DD Mon YYYY").ok(),
            Some(time().div_euclid(DAY) * DAY)
        );
        assert_eq!(
            parse_time("2024-02-30", "YYYY-MM-DD").unwrap_err().sqlstate,
            "22008"
        );
    }
}
