//! `extract` and `date_part`: fields of dates, times and intervals.

use crate::cast::value_error;
use crate::error::FunctionError;
use crate::temporal::{DAY, SECOND, days_of, interval, timestamp, timestamptz};
use crate::udf::{arrays, field, result};
use arrow::array::{Array, ArrayRef, Decimal128Array, Float64Array};
use arrow::datatypes::{DataType, FieldRef, TimeUnit};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs};
use lineradb_common::sql::{Datum, SqlType, civil_from_days, datum_at, days_from_civil};
use std::sync::Arc;

pub(crate) fn coerce_extract(types: &[DataType]) -> Result<Vec<DataType>> {
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

pub(crate) fn returns_extract(
    _: &[DataType],
    scalars: &[Option<&ScalarValue>],
) -> Result<FieldRef> {
    let name = scalars
        .first()
        .copied()
        .flatten()
        .and_then(|v| v.try_as_str().flatten())
        .unwrap_or("epoch")
        .to_ascii_lowercase();
    Ok(field(DataType::Decimal128(38, digits(&name))))
}

pub(crate) fn extract(args: &ScalarFunctionArgs, as_float: bool) -> Result<ColumnarValue> {
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
pub(crate) fn part(name: &str, value: &Datum) -> Result<Option<i128>, FunctionError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
