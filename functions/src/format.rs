//! `format(text, ...)`, and `width_bucket`.

use crate::arith;
use crate::decimal::pow10;
use crate::error::FunctionError;
use crate::strings::{quote_ident, quote_literal};
use crate::udf::{Function, arrays, field, primitive, result, texts};
use arrow::array::{Array, ArrayRef, Int32Array, StringViewArray};
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int32Type, i256};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::coerced(
            "format",
            |types| match types {
                [] => plan_err!("function format() does not exist"),
                types => Ok(vec![DataType::Utf8View; types.len()]),
            },
            |_, _| Ok(field(DataType::Utf8View)),
            format_rows,
        ),
        Function::coerced(
            "width_bucket",
            coerce_bucket,
            |_, _| Ok(field(DataType::Int32)),
            width_bucket,
        ),
    ]
}

fn format_rows(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let columns = columns.iter().map(texts).collect::<Result<Vec<_>>>()?;
    let rows = columns.first().map_or(0, |c| c.len());
    let mut out = Vec::with_capacity(rows);
    for row in 0..rows {
        let at =
            |column: &StringViewArray| column.is_valid(row).then(|| column.value(row).to_owned());
        let values: Vec<Option<String>> = columns[1..].iter().map(|c| at(c)).collect();
        out.push(match at(columns[0]) {
            Some(template) => Some(format(&template, &values)?),
            None => None,
        });
    }
    let out: ArrayRef = Arc::new(StringViewArray::from_iter(out));
    result(args, out)
}

fn invalid(message: &str) -> FunctionError {
    FunctionError::new("22023", message)
}

/// A run of digits; `None` without one.
fn number(rest: &mut Peekable<Chars>) -> Result<Option<usize>, FunctionError> {
    let mut value: Option<usize> = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        rest.next();
        value = Some(value.unwrap_or(0) * 10 + digit as usize);
        if value > Some(1 << 20) {
            return Err(FunctionError::out_of_range("number"));
        }
    }
    Ok(value)
}

/// The template with its `%s`, `%I`, `%L` and `%%` replaced.
pub fn format(template: &str, values: &[Option<String>]) -> Result<String, FunctionError> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template.chars().peekable();
    let mut next = 0;
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if rest.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        // `%[position$][-][width]type`
        let mut width = number(&mut rest)?;
        if width.is_some() && rest.next_if_eq(&'$').is_some() {
            next = match width {
                Some(position @ 1..) => position - 1,
                _ => {
                    return Err(invalid(
                        "format specifies argument 0, but arguments are numbered from 1",
                    ));
                }
            };
            width = None;
        }
        let mut left = false;
        if width.is_none() {
            while rest.next_if_eq(&'-').is_some() {
                left = true;
            }
            width = number(&mut rest)?;
        }
        let kind = match rest.next() {
            Some('*') => {
                return Err(FunctionError::unsupported(
                    "a width of format() that is an argument",
                ));
            }
            Some(kind @ ('s' | 'I' | 'L')) => kind,
            Some(other) => {
                return Err(invalid(&format!(
                    "unrecognized format() type specifier \"{other}\""
                )));
            }
            None => return Err(invalid("unterminated format() type specifier")),
        };
        let Some(value) = values.get(next) else {
            return Err(invalid("too few arguments for format()"));
        };
        next += 1;
        let text = match (kind, value) {
            ('s', value) => value.clone().unwrap_or_default(),
            ('I', Some(value)) => quote_ident(value),
            ('I', None) => {
                return Err(FunctionError::new(
                    "22004",
                    "null values cannot be formatted as an SQL identifier",
                ));
            }
            (_, Some(value)) => quote_literal(value),
            (_, None) => "NULL".to_owned(),
        };
        let blanks = width.unwrap_or(0).saturating_sub(text.chars().count());
        if !left {
            out.extend(std::iter::repeat_n(' ', blanks));
        }
        out.push_str(&text);
        if left {
            out.extend(std::iter::repeat_n(' ', blanks));
        }
    }
    Ok(out)
}

/// Numerics when one is there and no float is, else doubles, as PostgreSQL
/// resolves the name.
fn coerce_bucket(types: &[DataType]) -> Result<Vec<DataType>> {
    let [operand, low, high, count] = types else {
        return plan_err!("function width_bucket does not exist with these arguments");
    };
    let bounds = [operand, low, high];
    let number = |t: &DataType| t.is_null() || arith::is_number(t);
    if !bounds.iter().all(|t| number(t)) || !(count.is_null() || count.is_integer()) {
        return plan_err!("function width_bucket does not exist for {types:?}");
    }
    let exact = bounds.iter().any(|t| t.is_decimal()) && !bounds.iter().any(|t| t.is_floating());
    let mut coerced = Vec::with_capacity(4);
    for t in bounds {
        coerced.push(match (exact, t) {
            (false, _) => DataType::Float64,
            (true, DataType::Decimal128(..)) => t.clone(),
            (true, _) => DataType::Decimal128(38, 0),
        });
    }
    coerced.push(DataType::Int32);
    Ok(coerced)
}

fn width_bucket(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let counts = primitive::<Int32Type>(&columns[3])?;
    let mut out = Vec::with_capacity(counts.len());
    for row in 0..counts.len() {
        if columns.iter().any(|c| c.is_null(row)) {
            out.push(None);
            continue;
        }
        let count = counts.value(row);
        if count <= 0 {
            return Err(bounds("count must be greater than zero").into());
        }
        out.push(Some(match columns[0].data_type() {
            DataType::Float64 => {
                let at = |i: usize| -> Result<f64> {
                    Ok(primitive::<Float64Type>(&columns[i])?.value(row))
                };
                float_bucket(at(0)?, at(1)?, at(2)?, count)?
            }
            _ => {
                let scale = |i: usize| match columns[i].data_type() {
                    DataType::Decimal128(_, s) => *s,
                    _ => 0,
                };
                let common = scale(0).max(scale(1)).max(scale(2));
                let at = |i: usize| -> Result<i256> {
                    let value = primitive::<Decimal128Type>(&columns[i])?.value(row);
                    let factor = pow10(u32::from((common - scale(i)).unsigned_abs()));
                    Ok(i256::from_i128(value).wrapping_mul(factor))
                };
                exact_bucket(at(0)?, at(1)?, at(2)?, count)?
            }
        }));
    }
    result(args, Arc::new(Int32Array::from(out)))
}

fn bounds(message: &str) -> FunctionError {
    FunctionError::new("2201G", message)
}

/// One above the last bucket.
fn above(count: i32) -> Result<i32, FunctionError> {
    count
        .checked_add(1)
        .ok_or_else(|| FunctionError::out_of_range("integer"))
}

fn float_bucket(value: f64, low: f64, high: f64, count: i32) -> Result<i32, FunctionError> {
    if value.is_nan() || low.is_nan() || high.is_nan() {
        return Err(bounds(
            "operand, lower bound, and upper bound cannot be NaN",
        ));
    }
    if low.is_infinite() || high.is_infinite() {
        return Err(bounds("lower and upper bounds must be finite"));
    }
    if low == high {
        return Err(bounds("lower bound cannot equal upper bound"));
    }
    let (before, after) = if low < high {
        (value < low, value >= high)
    } else {
        (value > low, value <= high)
    };
    Ok(match (before, after) {
        (true, _) => 0,
        (_, true) => above(count)?,
        _ => {
            // Halved, so that the difference of two finite doubles is finite.
            let part = (value / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0);
            ((part * f64::from(count)) as i32).min(count - 1) + 1
        }
    })
}

fn exact_bucket(value: i256, low: i256, high: i256, count: i32) -> Result<i32, FunctionError> {
    if low == high {
        return Err(bounds("lower bound cannot equal upper bound"));
    }
    let (before, after) = if low < high {
        (value < low, value >= high)
    } else {
        (value > low, value <= high)
    };
    Ok(match (before, after) {
        (true, _) => 0,
        (_, true) => above(count)?,
        _ => {
            let bucket = value
                .wrapping_sub(low)
                .checked_mul(i256::from_i128(i128::from(count)))
                .and_then(|n| n.checked_div(high.wrapping_sub(low)))
                .and_then(i256::to_i128)
                .and_then(|n| i32::try_from(n).ok())
                .ok_or_else(|| FunctionError::out_of_range("numeric"))?;
            above(bucket)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(template: &str, values: &[Option<&str>]) -> Result<String, &'static str> {
        let values: Vec<_> = values.iter().map(|v| v.map(str::to_owned)).collect();
        format(template, &values).map_err(|e| e.sqlstate)
    }

    #[test]
    fn templates_are_filled() {
        let all = [Some("a"), Some("it's"), None];
        assert_eq!(
            text("%s, %L, %L|%%", &all).as_deref(),
            Ok("a, 'it''s', NULL|%")
        );
        assert_eq!(text("%2$s %1$I %s", &all).as_deref(), Ok("it's a it's"));
        assert_eq!(
            text("[%3s][%-3s]", &[Some("a"), Some("b")]).as_deref(),
            Ok("[  a][b  ]")
        );
        assert_eq!(text("%s", &[]), Err("22023"));
        assert_eq!(text("%d", &all), Err("22023"));
        assert_eq!(text("%", &all), Err("22023"));
        assert_eq!(text("%I", &[None]), Err("22004"));
    }

    #[test]
    fn buckets_count_from_one() {
        let float = |v, l, h| float_bucket(v, l, h, 5).map_err(|e| e.sqlstate);
        assert_eq!(float(5.0, 0.0, 10.0), Ok(3));
        assert_eq!(float(-1.0, 0.0, 10.0), Ok(0));
        assert_eq!(float(10.0, 0.0, 10.0), Ok(6));
        assert_eq!(float(9.0, 10.0, 0.0), Ok(1));
        assert_eq!(float(1.0, 2.0, 2.0), Err("2201G"));
        let exact = |v, l, h| {
            let i = i256::from_i128;
            exact_bucket(i(v), i(l), i(h), 5).map_err(|e| e.sqlstate)
        };
        assert_eq!(exact(5, 0, 10), Ok(3));
        assert_eq!(exact(10, 10, 0), Ok(1));
        assert_eq!(exact(0, 10, 0), Ok(6));
    }
}
