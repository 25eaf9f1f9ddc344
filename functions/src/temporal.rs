//! Dates, times and intervals where DataFusion's result differs from
//! PostgreSQL's: `extract` with fractions, differences as intervals, intervals
//! compared by length, `age`, `justify_*`, time zones.

use crate::cast::value_error;
use crate::error::FunctionError;
use crate::udf::{Function, arrays, field, primitive, result, texts};
use arrow::array::{
    Array, ArrayRef, Date32Array, Decimal128Array, Float64Array, Int32Array,
    IntervalMonthDayNanoArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    DataType, Date32Type, FieldRef, Float64Type, Int32Type, IntervalMonthDayNano,
    IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use lineradb_common::sql::{Datum, SqlType, TimeZone, civil_from_days, datum_at, days_from_civil};
use std::sync::Arc;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

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

fn days_of(micros: i64) -> i32 {
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

fn coerce_extract(types: &[DataType]) -> Result<Vec<DataType>> {
    let [_, value] = types else {
        return plan_err!("extract takes a field and a value");
    };
    let value = match value {
        DataType::Timestamp(_, None) => timestamp(),
        DataType::Timestamp(_, Some(_)) => timestamptz(),
        DataType::Date32 | DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Interval(_) | DataType::Duration(_) => interval(),
        DataType::Null => timestamp(),
        other => return plan_err!("function extract does not exist for type {other}"),
    };
    Ok(vec![DataType::Utf8, value])
}

/// Digits after the point of a field.
fn digits(name: &str) -> i8 {
    match name {
        "second" | "seconds" | "sec" | "epoch" | "julian" => 6,
        "milliseconds" | "millisecond" | "msec" | "ms" => 3,
        _ => 0,
    }
}

fn returns_extract(_: &[DataType], scalars: &[Option<&ScalarValue>]) -> Result<FieldRef> {
    let name = scalars
        .first()
        .copied()
        .flatten()
        .and_then(|v| v.try_as_str().flatten())
        .unwrap_or("epoch")
        .to_ascii_lowercase();
    Ok(field(DataType::Decimal128(38, digits(&name))))
}

fn extract(args: &ScalarFunctionArgs, as_float: bool) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let Some(ColumnarValue::Scalar(name)) = args.args.first() else {
        return Err(FunctionError::unsupported("extract with a computed field").into());
    };
    let name = name
        .try_as_str()
        .flatten()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let values = &columns[1];
    let sql_type = SqlType::from_arrow(values.data_type());
    let mut out: Vec<Option<i128>> = Vec::with_capacity(values.len());
    for row in 0..values.len() {
        let value = if values.is_null(row) {
            Datum::Null
        } else {
            datum_at(values.as_ref(), row, sql_type).map_err(value_error)?
        };
        out.push(part(&name, &value)?);
    }
    let scale = digits(&name);
    let array: ArrayRef = if as_float {
        let divisor = 10f64.powi(i32::from(scale));
        Arc::new(
            out.into_iter()
                .map(|v| v.map(|v| v as f64 / divisor))
                .collect::<Float64Array>(),
        )
    } else {
        Arc::new(Decimal128Array::from(out).with_precision_and_scale(38, scale)?)
    };
    result(args, array)
}

/// A field of a value, times ten to the power of [`digits`].
fn part(name: &str, value: &Datum) -> Result<Option<i128>, FunctionError> {
    let (days, micros) = match value {
        Datum::Null => return Ok(None),
        Datum::Date(d) => (Some(*d), 0),
        Datum::Timestamp(t) | Datum::TimestampTz(t) => (Some(days_of(*t)), t.rem_euclid(DAY)),
        Datum::Time(t) => (None, *t),
        Datum::Interval(i) => return interval_part(name, i).map(Some),
        _ => return Err(FunctionError::new("42883", "extract needs a date or time")),
    };
    let unknown = || {
        FunctionError::new(
            "22023",
            format!("unit \"{name}\" not recognized or not supported for this type"),
        )
    };
    if !matches!(value, Datum::Date(_))
        && let Some(v) = time_part(name, micros)
    {
        return Ok(Some(v));
    }
    let Some(days) = days else {
        return match name {
            "epoch" => Ok(Some(i128::from(micros))),
            _ => Err(unknown()),
        };
    };
    let (year, month, day) = civil_from_days(days);
    let weekday = (i64::from(days) + 4).rem_euclid(7);
    Ok(Some(match name {
        "year" | "years" => i128::from(if year <= 0 { year - 1 } else { year }),
        "month" | "months" => i128::from(month),
        "day" | "days" => i128::from(day),
        "quarter" => i128::from((month - 1) / 3 + 1),
        "dow" => i128::from(weekday),
        "isodow" => i128::from(if weekday == 0 { 7 } else { weekday }),
        "doy" => i128::from(days - days_from_civil(year, 1, 1) + 1),
        "week" | "weeks" => i128::from(iso_week(days).1),
        "isoyear" => i128::from(iso_week(days).0),
        "decade" | "decades" => i128::from(year.div_euclid(10)),
        "century" | "centuries" if year > 0 => i128::from((year + 99) / 100),
        "millennium" | "millenniums" if year > 0 => i128::from((year + 999) / 1000),
        "epoch" => i128::from(days) * i128::from(DAY) + i128::from(micros),
        "timezone" | "timezone_hour" | "timezone_minute"
            if matches!(value, Datum::TimestampTz(_)) =>
        {
            0
        }
        _ => return Err(unknown()),
    }))
}

fn time_part(name: &str, micros: i64) -> Option<i128> {
    Some(i128::from(match name {
        "hour" | "hours" => micros / (3600 * SECOND),
        "minute" | "minutes" => micros / (60 * SECOND) % 60,
        // Six digits: the value in microseconds.
        "second" | "seconds" | "sec" => micros % (60 * SECOND),
        // Three digits: thousandths of milliseconds.
        "milliseconds" | "millisecond" | "msec" | "ms" => micros % (60 * SECOND),
        "microseconds" | "microsecond" | "usec" | "us" => micros % (60 * SECOND),
        _ => return None,
    }))
}

fn interval_part(name: &str, i: &lineradb_common::sql::Interval) -> Result<i128, FunctionError> {
    if let Some(v) = time_part(name, i.micros) {
        return Ok(match name {
            "hour" | "hours" => i128::from(i.micros / (3600 * SECOND)),
            _ => v,
        });
    }
    Ok(match name {
        "year" | "years" => i128::from(i.months / 12),
        "month" | "months" => i128::from(i.months % 12),
        "day" | "days" => i128::from(i.days),
        "quarter" => i128::from(i.months % 12 / 3 + 1),
        "decade" | "decades" => i128::from(i.months / 120),
        "century" | "centuries" => i128::from(i.months / 1200),
        "millennium" | "millenniums" => i128::from(i.months / 12000),
        "epoch" => {
            // A year counts 365.25 days, a month 30.
            let days = i128::from(i.months / 12) * 1461 * i128::from(DAY) / 4
                + i128::from(i.months % 12) * 30 * i128::from(DAY);
            days + i128::from(i.days) * i128::from(DAY) + i128::from(i.micros)
        }
        _ => {
            return Err(FunctionError::new(
                "22023",
                format!("unit \"{name}\" not recognized for type interval"),
            ));
        }
    })
}

/// ISO 8601 year and week of a day.
pub(crate) fn iso_week(days: i32) -> (i32, i32) {
    let weekday = (i64::from(days) + 3).rem_euclid(7) as i32; // Monday is 0
    let thursday = days - weekday + 3;
    let (year, _, _) = civil_from_days(thursday);
    (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
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

    #[test]
    fn iso_weeks_belong_to_the_year_of_their_thursday() {
        assert_eq!(iso_week(days_from_civil(2021, 1, 3)), (2020, 53));
        assert_eq!(iso_week(days_from_civil(2024, 12, 30)), (2025, 1));
    }

    #[test]
    fn parts_of_a_moment() {
        let t = Datum::Timestamp(i64::from(days_from_civil(2024, 2, 29)) * DAY + 30_500_000);
        assert_eq!(part("second", &t).ok().flatten(), Some(30_500_000));
        assert_eq!(part("doy", &t).ok().flatten(), Some(60));
        assert_eq!(part("dow", &t).ok().flatten(), Some(4));
        assert!(part("fortnight", &t).is_err());
    }
}
