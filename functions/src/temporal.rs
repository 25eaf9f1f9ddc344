//! Dates, times and intervals where DataFusion's result differs from
//! PostgreSQL's: `extract` with fractions, differences as intervals, intervals
//! compared by length, `age`, `justify_*`, time zones.

use crate::cast::value_error;
use crate::error::FunctionError;
use crate::extract::{coerce_extract, extract, returns_extract};
use crate::udf::{Function, arrays, field, primitive, result, texts};
use arrow::array::{
    Array, Date32Array, Decimal128Array, Int32Array, IntervalMonthDayNanoArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{
    DataType, Date32Type, FieldRef, Float64Type, Int32Type, IntervalMonthDayNano,
    IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use lineradb_common::sql::{Datum, SqlType, TimeZone, civil_from_days, days_from_civil};
use std::sync::Arc;

pub(crate) const SECOND: i64 = 1_000_000;

pub(crate) const DAY: i64 = 86_400 * SECOND;

/// `timestamp`.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// `timestamptz`.
pub fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// `interval`.
pub fn interval() -> DataType {
    DataType::Interval(IntervalUnit::MonthDayNano)
}

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    fn intervals(_: &[DataType], _: &[Option<&ScalarValue>]) -> Result<FieldRef> {
        Ok(field(interval()))
    }
    fn decimals(_: &[DataType], _: &[Option<&ScalarValue>]) -> Result<FieldRef> {
        Ok(field(DataType::Decimal128(38, 0)))
    }
    let one = || vec![vec![interval()]];
    vec![
        Function::coerced("pg_extract", coerce_extract, returns_extract, |a| {
            extract(a, false)
        }),
        Function::coerced(
            "date_part",
            coerce_extract,
            |_, _| Ok(field(DataType::Float64)),
            |a| extract(a, true),
        ),
        Function::exact(
            "pg_timestamp_diff",
            &[],
            vec![vec![timestamp(); 2], vec![timestamptz(); 2]],
            intervals,
            |a| timestamps(a, |x, y| from_micros(i128::from(x) - i128::from(y))),
        ),
        Function::exact(
            "age",
            &[],
            vec![vec![timestamp(); 2], vec![timestamptz(); 2]],
            intervals,
            |a| timestamps(a, age),
        ),
        Function::exact("justify_hours", &[], one(), intervals, |a| {
            map(a, justify_hours)
        }),
        Function::exact("justify_days", &[], one(), intervals, |a| {
            map(a, justify_days)
        }),
        Function::exact("justify_interval", &[], one(), intervals, |a| {
            map(a, justify_interval)
        }),
        Function::exact("pg_interval_neg", &[], one(), intervals, |a| {
            map(a, |i| {
                IntervalMonthDayNano::new(-i.months, -i.days, -i.nanoseconds)
            })
        }),
        // The parts of an interval that the calendar counts, and the clock.
        Function::exact("pg_interval_days", &[], one(), intervals, |a| {
            map(a, |i| IntervalMonthDayNano::new(i.months, i.days, 0))
        }),
        Function::exact("pg_interval_time", &[], one(), intervals, |a| {
            map(a, |i| IntervalMonthDayNano::new(0, 0, i.nanoseconds))
        }),
        Function::exact("pg_interval_span", &[], one(), decimals, |a| {
            let array = arrays(a)?.remove(0);
            let out: Decimal128Array = primitive::<IntervalMonthDayNanoType>(&array)?
                .iter()
                .map(|v| v.map(span))
                .collect();
            result(a, Arc::new(out.with_precision_and_scale(38, 0)?))
        }),
        Function::exact(
            "pg_interval_mul",
            &[],
            vec![vec![interval(), DataType::Float64]],
            intervals,
            |a| scale(a, Ok),
        ),
        Function::exact(
            "pg_interval_div",
            &[],
            vec![vec![interval(), DataType::Float64]],
            intervals,
            |a| {
                scale(a, |f| {
                    if f == 0.0 {
                        Err(FunctionError::division_by_zero())
                    } else {
                        Ok(1.0 / f)
                    }
                })
            },
        ),
        Function::exact(
            "pg_date_add",
            &[],
            vec![vec![DataType::Date32, DataType::Int32]],
            |_, _| Ok(field(DataType::Date32)),
            |a| {
                let columns = arrays(a)?;
                let out: Date32Array = arrow::compute::kernels::arity::try_binary(
                    primitive::<Date32Type>(&columns[0])?,
                    primitive::<Int32Type>(&columns[1])?,
                    |d: i32, n: i32| {
                        d.checked_add(n)
                            .ok_or_else(|| FunctionError::new("22008", "date out of range").into())
                    },
                )?;
                result(a, Arc::new(out))
            },
        ),
        Function::exact(
            "pg_date_diff",
            &[],
            vec![vec![DataType::Date32; 2]],
            |_, _| Ok(field(DataType::Int32)),
            |a| {
                let columns = arrays(a)?;
                let out: Int32Array = arrow::compute::kernels::arity::try_binary(
                    primitive::<Date32Type>(&columns[0])?,
                    primitive::<Date32Type>(&columns[1])?,
                    |x: i32, y: i32| {
                        x.checked_sub(y)
                            .ok_or_else(|| FunctionError::new("22008", "date out of range").into())
                    },
                )?;
                result(a, Arc::new(out))
            },
        ),
        Function::coerced(
            "timezone",
            |types| match types {
                [_, DataType::Timestamp(_, None)] => Ok(vec![DataType::Utf8View, timestamp()]),
                [
                    _,
                    DataType::Timestamp(..) | DataType::Date32 | DataType::Null,
                ] => Ok(vec![DataType::Utf8View, timestamptz()]),
                _ => plan_err!("function timezone does not exist for {types:?}"),
            },
            |types, _| {
                Ok(field(match types.get(1) {
                    Some(DataType::Timestamp(_, Some(_))) => timestamp(),
                    _ => timestamptz(),
                }))
            },
            time_zone,
        ),
    ]
}

/// An interval of whole days and the rest.
fn from_micros(micros: i128) -> Result<IntervalMonthDayNano, FunctionError> {
    let out = || FunctionError::new("22008", "interval out of range");
    let days = i32::try_from(micros / i128::from(DAY)).map_err(|_| out())?;
    let rest = (micros % i128::from(DAY)) as i64;
    Ok(IntervalMonthDayNano::new(0, days, rest * 1000))
}

/// Length in microseconds, a month of 30 days: how intervals compare.
fn span(i: IntervalMonthDayNano) -> i128 {
    (i128::from(i.months) * 30 + i128::from(i.days)) * i128::from(DAY)
        + i128::from(i.nanoseconds / 1000)
}

fn timestamps(
    args: &ScalarFunctionArgs,
    f: fn(i64, i64) -> Result<IntervalMonthDayNano, FunctionError>,
) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let out: IntervalMonthDayNanoArray = arrow::compute::kernels::arity::try_binary(
        primitive::<TimestampMicrosecondType>(&columns[0])?,
        primitive::<TimestampMicrosecondType>(&columns[1])?,
        |a, b| f(a, b).map_err(arrow::error::ArrowError::from),
    )?;
    result(args, Arc::new(out))
}

fn map(
    args: &ScalarFunctionArgs,
    f: fn(IntervalMonthDayNano) -> IntervalMonthDayNano,
) -> Result<ColumnarValue> {
    let array = arrays(args)?.remove(0);
    let out: IntervalMonthDayNanoArray = primitive::<IntervalMonthDayNanoType>(&array)?.unary(f);
    result(args, Arc::new(out))
}

fn scale(
    args: &ScalarFunctionArgs,
    factor: fn(f64) -> Result<f64, FunctionError>,
) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let out: IntervalMonthDayNanoArray = arrow::compute::kernels::arity::try_binary(
        primitive::<IntervalMonthDayNanoType>(&columns[0])?,
        primitive::<Float64Type>(&columns[1])?,
        |i, f| {
            let f = factor(f)?;
            multiply(i, f).map_err(arrow::error::ArrowError::from)
        },
    )?;
    result(args, Arc::new(out))
}

/// `interval * factor`: fractions of months flow into days, of days into time.
fn multiply(i: IntervalMonthDayNano, f: f64) -> Result<IntervalMonthDayNano, FunctionError> {
    let out = || FunctionError::new("22008", "interval out of range");
    let months = f64::from(i.months) * f;
    let days = f64::from(i.days) * f;
    let whole_months = months.trunc();
    let month_rest = (months - whole_months) * 30.0;
    let whole_days = days.trunc() + month_rest.trunc();
    let day_rest = (days - days.trunc()) + (month_rest - month_rest.trunc());
    let micros = (i.nanoseconds as f64 / 1000.0) * f + day_rest * DAY as f64;
    let micros = micros.round_ties_even();
    if !micros.is_finite()
        || whole_months.abs() > f64::from(i32::MAX)
        || whole_days.abs() > f64::from(i32::MAX)
        || micros.abs() > (i64::MAX / 1000) as f64
    {
        return Err(out());
    }
    Ok(IntervalMonthDayNano::new(
        whole_months as i32,
        whole_days as i32,
        micros as i64 * 1000,
    ))
}

fn justify_hours(i: IntervalMonthDayNano) -> IntervalMonthDayNano {
    let nanos_per_day = DAY * 1000;
    let mut days = i
        .days
        .saturating_add((i.nanoseconds / nanos_per_day) as i32);
    let mut nanos = i.nanoseconds % nanos_per_day;
    if days > 0 && nanos < 0 {
        days -= 1;
        nanos += nanos_per_day;
    } else if days < 0 && nanos > 0 {
        days += 1;
        nanos -= nanos_per_day;
    }
    IntervalMonthDayNano::new(i.months, days, nanos)
}

fn justify_days(i: IntervalMonthDayNano) -> IntervalMonthDayNano {
    let mut months = i.months.saturating_add(i.days / 30);
    let mut days = i.days % 30;
    if months > 0 && days < 0 {
        months -= 1;
        days += 30;
    } else if months < 0 && days > 0 {
        months += 1;
        days -= 30;
    }
    IntervalMonthDayNano::new(months, days, i.nanoseconds)
}

fn justify_interval(i: IntervalMonthDayNano) -> IntervalMonthDayNano {
    let total = span(i);
    let month = 30 * i128::from(DAY);
    let rest = total % month;
    IntervalMonthDayNano::new(
        (total / month) as i32,
        (rest / i128::from(DAY)) as i32,
        (rest % i128::from(DAY)) as i64 * 1000,
    )
}

pub(crate) fn days_of(micros: i64) -> i32 {
    micros.div_euclid(DAY) as i32
}

fn month_length(year: i32, month: u32) -> i64 {
    let (y, m) = if month == 12 {
        (year + 1, 1)
    } else {
        (year, month + 1)
    };
    i64::from(days_from_civil(y, m, 1) - days_from_civil(year, month, 1))
}

/// `age(a, b)`: years, months and days between, as a calendar counts.
fn age(a: i64, b: i64) -> Result<IntervalMonthDayNano, FunctionError> {
    let negative = a < b;
    let (later, earlier) = if negative { (b, a) } else { (a, b) };
    let (y1, m1, d1) = civil_from_days(days_of(later));
    let (y2, m2, d2) = civil_from_days(days_of(earlier));
    let mut months = i64::from(y1 - y2) * 12 + i64::from(m1) - i64::from(m2);
    let mut days = i64::from(d1) - i64::from(d2);
    let mut micros = later.rem_euclid(DAY) - earlier.rem_euclid(DAY);
    if micros < 0 {
        micros += DAY;
        days -= 1;
    }
    if days < 0 {
        days += if negative {
            month_length(y1, m1)
        } else {
            month_length(y2, m2)
        };
        months -= 1;
    }
    let sign = if negative { -1 } else { 1 };
    Ok(IntervalMonthDayNano::new(
        (months * sign) as i32,
        (days * sign) as i32,
        micros * sign * 1000,
    ))
}

fn time_zone(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let zones = texts(&columns[0])?;
    let local = matches!(args.return_type(), DataType::Timestamp(_, None));
    let values = primitive::<TimestampMicrosecondType>(&columns[1])?;
    let mut out = Vec::with_capacity(values.len());
    for row in 0..values.len() {
        if zones.is_null(row) || values.is_null(row) {
            out.push(None);
            continue;
        }
        let zone = TimeZone::parse(zones.value(row)).map_err(value_error)?;
        let value = values.value(row);
        let moved = if local {
            Datum::TimestampTz(value).cast(SqlType::Timestamp, &zone)
        } else {
            Datum::Timestamp(value).cast(SqlType::TimestampTz, &zone)
        };
        match moved.map_err(value_error)? {
            Datum::Timestamp(t) | Datum::TimestampTz(t) => out.push(Some(t)),
            _ => out.push(None),
        }
    }
    let mut array = TimestampMicrosecondArray::from(out);
    if !local {
        array = array.with_timezone("UTC");
    }
    result(args, Arc::new(array))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_counts_as_a_calendar() {
        let at = |y, m, d| i64::from(days_from_civil(y, m, d)) * DAY;
        let i = age(at(2001, 4, 10), at(1957, 6, 13)).unwrap_or_default();
        assert_eq!((i.months, i.days), (43 * 12 + 9, 27));
        let i = age(at(2000, 1, 1), at(2000, 3, 1)).unwrap_or_default();
        assert_eq!((i.months, i.days), (-2, 0));
    }

    #[test]
    fn differences_have_days() {
        let i = from_micros(i128::from(2 * DAY + SECOND)).unwrap_or_default();
        assert_eq!((i.days, i.nanoseconds), (2, 1_000_000_000));
    }

    #[test]
    fn months_are_thirty_days_long() {
        assert_eq!(
            span(IntervalMonthDayNano::new(1, 0, 0)),
            span(IntervalMonthDayNano::new(0, 30, 0))
        );
        let half = multiply(IntervalMonthDayNano::new(1, 0, 0), 0.5).unwrap_or_default();
        assert_eq!((half.months, half.days, half.nanoseconds), (0, 15, 0));
    }
}
