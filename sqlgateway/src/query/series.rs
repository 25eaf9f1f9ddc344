//! Arguments of `generate_series` as DataFusion's function wants them: 64-bit
//! integers, and nanoseconds for points in time. Dates are points in time with a
//! zone, as PostgreSQL reads them; what does not fit nanoseconds is refused.

use super::errors::carry;
use crate::error::SqlError;
use crate::settings::Settings;
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use lineradb_common::sql::{Datum, SqlType, TimeZone};

/// The arguments of a table function.
///
/// # Errors
/// 42883 for a series without an end, 0A000 for points in time that cannot be
/// counted here.
pub fn arguments(name: &str, args: Vec<Expr>, settings: &Settings) -> Result<Vec<Expr>> {
    if name != "generate_series" {
        return Ok(args);
    }
    if args.len() < 2 {
        return Err(carry(SqlError::new(
            "42883",
            "function generate_series(integer) does not exist",
        )));
    }
    let temporal = args.iter().any(|a| {
        matches!(
            a,
            Expr::Literal(
                ScalarValue::Date32(_) | ScalarValue::TimestampMicrosecond(..),
                _
            )
        )
    });
    args.into_iter()
        .map(|arg| argument(arg, temporal, settings))
        .collect()
}

fn argument(arg: Expr, temporal: bool, settings: &Settings) -> Result<Expr> {
    let far = || {
        carry(SqlError::unsupported(
            "a series beyond the years 1678 to 2261",
        ))
    };
    let Expr::Literal(value, _) = &arg else {
        return Ok(arg);
    };
    let value = match value {
        ScalarValue::Int16(v) => ScalarValue::Int64(v.map(i64::from)),
        ScalarValue::Int32(v) => ScalarValue::Int64(v.map(i64::from)),
        ScalarValue::Date32(_) if settings.time_zone != TimeZone::UTC => {
            return Err(carry(SqlError::unsupported(
                "a series of dates in a time zone other than UTC",
            )));
        }
        ScalarValue::Date32(Some(days)) => {
            let nanos = i64::from(*days).checked_mul(86_400_000_000_000);
            ScalarValue::TimestampNanosecond(Some(nanos.ok_or_else(far)?), Some("UTC".into()))
        }
        ScalarValue::TimestampMicrosecond(Some(_), Some(_))
            if settings.time_zone != TimeZone::UTC =>
        {
            return Err(carry(SqlError::unsupported(
                "a series of points in time in a time zone other than UTC",
            )));
        }
        ScalarValue::TimestampMicrosecond(Some(micros), zone) => {
            let nanos = micros.checked_mul(1000).ok_or_else(far)?;
            ScalarValue::TimestampNanosecond(Some(nanos), zone.clone())
        }
        ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) if temporal => {
            let step = Datum::Text(text.clone()).cast(SqlType::Interval, &settings.time_zone);
            super::engine::scalar_of(&step.map_err(carry)?, SqlType::Interval).map_err(carry)?
        }
        _ => return Ok(arg),
    };
    Ok(Expr::Literal(value, None))
}
