//! Functions on text and numbers whose DataFusion namesakes answer otherwise
//! than PostgreSQL's: case mapping, rounding, and functions that give infinity
//! or NaN where PostgreSQL raises an error.

use crate::arith;
use crate::decimal;
use crate::error::FunctionError;
use crate::udf::{Function, arrays, field, primitive, result, texts};
use arrow::array::{Array, ArrayRef, Decimal128Array, Float64Array, StringViewArray};
use arrow::datatypes::{DataType, Decimal128Type, FieldRef, Float64Type, Int32Type};
use arrow::error::ArrowError;
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::sync::Arc;

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let text = || vec![vec![DataType::Utf8View]];
    let returns_text = |_: &[DataType], _: &[Option<&ScalarValue>]| Ok(field(DataType::Utf8View));
    let mut all = vec![
        Function::exact("upper", &[], text(), returns_text, |a| {
            map_text(a, |s| fold(s, |c| single(c.to_uppercase(), c)))
        }),
        Function::exact("lower", &[], text(), returns_text, |a| {
            map_text(a, |s| fold(s, |c| single(c.to_lowercase(), c)))
        }),
        Function::exact("quote_ident", &[], text(), returns_text, |a| {
            map_text(a, quote_ident)
        }),
        Function::exact("quote_literal", &[], text(), returns_text, |a| {
            map_text(a, quote_literal)
        }),
        Function::coerced("round", coerce_rounding, returns_rounding, |a| {
            rounding(a, Mode::Round)
        }),
        Function::coerced("trunc", coerce_rounding, returns_rounding, |a| {
            rounding(a, Mode::Trunc)
        }),
        Function::coerced("ceil", coerce_rounding, returns_rounding, |a| {
            rounding(a, Mode::Ceil)
        }),
        Function::coerced("ceiling", coerce_rounding, returns_rounding, |a| {
            rounding(a, Mode::Ceil)
        }),
        Function::coerced("floor", coerce_rounding, returns_rounding, |a| {
            rounding(a, Mode::Floor)
        }),
    ];
    let one = || vec![vec![DataType::Float64]];
    let two = || vec![vec![DataType::Float64, DataType::Float64]];
    fn float(_: &[DataType], _: &[Option<&ScalarValue>]) -> Result<FieldRef> {
        Ok(field(DataType::Float64))
    }
    all.extend([
        Function::exact("sqrt", &[], one(), float, |a| {
            map_float(a, |v| {
                if v < 0.0 {
                    return Err(FunctionError::new(
                        "2201F",
                        "cannot take square root of a negative number",
                    ));
                }
                Ok(v.sqrt())
            })
        }),
        Function::exact("ln", &[], one(), float, |a| {
            map_float(a, |v| log(v, f64::ln))
        }),
        Function::exact("log10", &[], one(), float, |a| {
            map_float(a, |v| log(v, f64::log10))
        }),
        Function::exact(
            "log",
            &[],
            vec![one().remove(0), two().remove(0)],
            float,
            |a| match a.args.len() {
                1 => map_float(a, |v| log(v, f64::log10)),
                _ => map_floats(a, |base, v| {
                    let base = log(base, f64::ln)?;
                    if base == 0.0 {
                        return Err(FunctionError::division_by_zero());
                    }
                    Ok(log(v, f64::ln)? / base)
                }),
            },
        ),
        Function::exact("exp", &[], one(), float, |a| {
            map_float(a, |v| finite(v.exp(), v.is_finite()))
        }),
        Function::exact("power", &["pow"], two(), float, |a| map_floats(a, power)),
        Function::exact("acos", &[], one(), float, |a| {
            map_float(a, |v| unit(v, f64::acos))
        }),
        Function::exact("asin", &[], one(), float, |a| {
            map_float(a, |v| unit(v, f64::asin))
        }),
        Function::exact("cbrt", &[], one(), float, |a| {
            map_float(a, |v| Ok(v.cbrt()))
        }),
    ]);
    all
}

/// The one character of a case mapping; mappings to several keep the
/// character, as PostgreSQL's `towupper` does (`upper('ß')` is `ß`).
fn single(mut mapped: impl Iterator<Item = char>, original: char) -> char {
    match (mapped.next(), mapped.next()) {
        (Some(c), None) => c,
        _ => original,
    }
}

fn fold(text: &str, f: impl Fn(char) -> char) -> String {
    text.chars().map(f).collect()
}

fn map_text(args: &ScalarFunctionArgs, f: impl Fn(&str) -> String) -> Result<ColumnarValue> {
    let array = arrays(args)?.remove(0);
    let out: StringViewArray = texts(&array)?.iter().map(|v| v.map(&f)).collect();
    result(args, Arc::new(out))
}

/// Words that PostgreSQL quotes although they look like plain names.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "current_date",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "initially",
    "intersect",
    "into",
    "lateral",
    "leading",
    "limit",
    "localtime",
    "localtimestamp",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "placing",
    "primary",
    "references",
    "returning",
    "select",
    "session_user",
    "some",
    "symmetric",
    "table",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "when",
    "where",
    "window",
    "with",
];

/// `quote_ident`.
pub fn quote_ident(name: &str) -> String {
    let plain = name
        .chars()
        .enumerate()
        .all(|(i, c)| c == '_' || c.is_ascii_lowercase() || (i > 0 && c.is_ascii_digit()));
    if plain && !name.is_empty() && !RESERVED.contains(&name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// `quote_literal`.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

fn map_float(
    args: &ScalarFunctionArgs,
    f: impl Fn(f64) -> Result<f64, FunctionError>,
) -> Result<ColumnarValue> {
    let array = arrays(args)?.remove(0);
    let out: Float64Array =
        primitive::<Float64Type>(&array)?.try_unary(|v| f(v).map_err(ArrowError::from))?;
    result(args, Arc::new(out))
}

fn map_floats(
    args: &ScalarFunctionArgs,
    f: impl Fn(f64, f64) -> Result<f64, FunctionError>,
) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let out: Float64Array = arrow::compute::kernels::arity::try_binary(
        primitive::<Float64Type>(&columns[0])?,
        primitive::<Float64Type>(&columns[1])?,
        |a, b| f(a, b).map_err(ArrowError::from),
    )?;
    result(args, Arc::new(out))
}

fn log(v: f64, f: fn(f64) -> f64) -> Result<f64, FunctionError> {
    if v == 0.0 {
        return Err(FunctionError::new("2201E", "cannot take logarithm of zero"));
    }
    if v < 0.0 {
        return Err(FunctionError::new(
            "2201E",
            "cannot take logarithm of a negative number",
        ));
    }
    Ok(f(v))
}

fn finite(v: f64, from_finite: bool) -> Result<f64, FunctionError> {
    if v.is_infinite() && from_finite {
        return Err(FunctionError::new("22003", "value out of range: overflow"));
    }
    if v == 0.0 && from_finite {
        return Err(FunctionError::new("22003", "value out of range: underflow"));
    }
    Ok(v)
}

fn unit(v: f64, f: fn(f64) -> f64) -> Result<f64, FunctionError> {
    if v.is_nan() || (-1.0..=1.0).contains(&v) {
        Ok(f(v))
    } else {
        Err(FunctionError::new("22003", "input is out of range"))
    }
}

fn power(a: f64, b: f64) -> Result<f64, FunctionError> {
    if a == 0.0 && b < 0.0 {
        return Err(FunctionError::new(
            "2201F",
            "zero raised to a negative power is undefined",
        ));
    }
    if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 {
        return Err(FunctionError::new(
            "2201F",
            "a negative number raised to a non-integer power yields a complex result",
        ));
    }
    let v = a.powf(b);
    finite(v, a.is_finite() && b.is_finite() && a != 0.0)
}

#[derive(Clone, Copy)]
enum Mode {
    Round,
    Trunc,
    Ceil,
    Floor,
}

/// Integers and texts round as doubles, as PostgreSQL resolves them; numerics
/// stay numeric; a second argument makes the first one numeric.
fn coerce_rounding(types: &[DataType]) -> Result<Vec<DataType>> {
    let first = match (types.first(), types.len()) {
        (Some(DataType::Decimal128(p, s)), 1 | 2) => DataType::Decimal128(*p, *s),
        (Some(DataType::Float32 | DataType::Float64), 2) => {
            return plan_err!("function round(double precision, integer) does not exist");
        }
        (Some(DataType::Int16 | DataType::Int32 | DataType::Int64), 2) => {
            DataType::Decimal128(19, 0)
        }
        (Some(t), 1) if arith::is_number(t) || t.is_null() => DataType::Float64,
        (Some(t), 2) if t.is_null() => DataType::Decimal128(38, 10),
        _ => return plan_err!("function does not exist for these argument types: {types:?}"),
    };
    Ok(match types.len() {
        1 => vec![first],
        _ => vec![first, DataType::Int32],
    })
}

fn returns_rounding(types: &[DataType], scalars: &[Option<&ScalarValue>]) -> Result<FieldRef> {
    let types = coerce_rounding(types)?;
    Ok(field(match &types[0] {
        DataType::Decimal128(_, s) => {
            let digits = match scalars.get(1).copied().flatten() {
                Some(ScalarValue::Int32(Some(n))) => (*n).clamp(0, 30) as i8,
                Some(ScalarValue::Int64(Some(n))) => (*n).clamp(0, 30) as i8,
                _ if types.len() == 2 => *s,
                _ => 0,
            };
            DataType::Decimal128(38, digits)
        }
        other => other.clone(),
    }))
}

fn rounding(args: &ScalarFunctionArgs, mode: Mode) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let array = &columns[0];
    let out: ArrayRef = match (array.data_type(), args.return_type()) {
        (DataType::Decimal128(_, from), DataType::Decimal128(p, to)) => {
            let values = primitive::<Decimal128Type>(array)?;
            let digits = columns.get(1).map(primitive::<Int32Type>).transpose()?;
            let mut out = Vec::with_capacity(values.len());
            for row in 0..values.len() {
                if values.is_null(row) || digits.is_some_and(|d| d.is_null(row)) {
                    out.push(None);
                    continue;
                }
                let at = digits.map_or(0, |d| d.value(row)).clamp(-38, 30);
                let rounded = round_decimal(values.value(row), *from, at as i8, mode)?;
                out.push(Some(decimal::rescale(rounded, at as i8, *to)?));
            }
            Arc::new(Decimal128Array::from(out).with_precision_and_scale(*p, *to)?)
        }
        _ => Arc::new(
            primitive::<Float64Type>(array)?.unary::<_, Float64Type>(|v| match mode {
                Mode::Round => v.round_ties_even(),
                Mode::Trunc => v.trunc(),
                Mode::Ceil => v.ceil(),
                Mode::Floor => v.floor(),
            }),
        ),
    };
    result(args, out)
}

/// The value at scale `to`, rounded as `mode` says.
fn round_decimal(value: i128, from: i8, to: i8, mode: Mode) -> Result<i128, FunctionError> {
    if to >= from || matches!(mode, Mode::Round) {
        return decimal::rescale(value, from, to);
    }
    let factor = 10i128
        .checked_pow(u32::from((from - to).unsigned_abs()))
        .unwrap_or(i128::MAX);
    Ok(match mode {
        Mode::Floor => value.div_euclid(factor),
        Mode::Ceil => -((-value).div_euclid(factor)),
        Mode::Trunc | Mode::Round => value / factor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_mapping_keeps_one_character_per_character() {
        assert_eq!(fold("straße", |c| single(c.to_uppercase(), c)), "STRAßE");
        assert_eq!(fold("ÄÖ", |c| single(c.to_lowercase(), c)), "äö");
    }

    #[test]
    fn decimals_round_by_mode() {
        let all = |v| {
            [Mode::Round, Mode::Trunc, Mode::Ceil, Mode::Floor]
                .map(|m| round_decimal(v, 1, 0, m).unwrap_or(i128::MAX))
        };
        assert_eq!(all(25), [3, 2, 3, 2]);
        assert_eq!(all(-25), [-3, -2, -2, -3]);
        assert_eq!(all(20), [2, 2, 2, 2]);
    }

    #[test]
    fn names_are_quoted_when_needed() {
        assert_eq!(quote_ident("a1"), "a1");
        assert_eq!(quote_ident("A"), "\"A\"");
        assert_eq!(quote_ident("select"), "\"select\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
    }
}
