//! Arithmetic on dates, times and intervals, and functions that see a point in
//! time in the session's zone.

use super::casts::cast_to;
use super::errors::carry;
use super::operators::no_operator;
use super::semantics::{call, is_interval, is_text, is_utc, literal, type_of};
use crate::error::SqlError;
use crate::settings::Settings;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{BinaryExpr, Cast, ScalarFunction};
use datafusion::logical_expr::{Expr, Operator};
use lineradb_common::sql::{Datum, SqlType};
use lineradb_functions::arith::is_number;
use lineradb_functions::temporal;

/// Arithmetic on dates, times and intervals.
pub(super) fn temporal_arithmetic(
    left: &Expr,
    lt: &DataType,
    op: Operator,
    right: &Expr,
    rt: &DataType,
    settings: &Settings,
) -> Result<Option<Expr>> {
    use DataType as D;
    let stamp = |t: &D| matches!(t, D::Timestamp(..));
    let naive = |t: &D| matches!(t, D::Timestamp(_, None));
    let date = |t: &D| matches!(t, D::Date32);
    let integer = |t: &D| matches!(t, D::Int16 | D::Int32 | D::Int64);
    let (l, r) = (|| left.clone(), || right.clone());
    let binary = |a: Expr, op: Operator, b: Expr| {
        Expr::BinaryExpr(BinaryExpr::new(Box::new(a), op, Box::new(b)))
    };
    let to = |e: Expr, from: SqlType, t: SqlType| cast_to(e, from, t, settings);
    let as_date = |e: Expr| Expr::Cast(Cast::new(Box::new(e), temporal::timestamp()));
    let text_literal =
        |e: &Expr| matches!(e, Expr::Literal(v, None) if is_text(&v.data_type()) && !v.is_null());
    // Untyped literals first: they take the type that PostgreSQL prefers.
    if text_literal(right) {
        let target = match (lt, op) {
            (D::Timestamp(..) | D::Date32 | D::Time64(_), Operator::Plus) => SqlType::Interval,
            (D::Timestamp(_, None), Operator::Minus) => SqlType::Timestamp,
            (D::Timestamp(_, Some(_)), Operator::Minus) => SqlType::TimestampTz,
            (D::Date32, Operator::Minus) => SqlType::Date,
            (D::Interval(_), Operator::Plus | Operator::Minus) => SqlType::Interval,
            _ => return Ok(None),
        };
        let right = to(r(), SqlType::Text, target)?;
        let rt = target.arrow_type();
        return temporal_arithmetic(left, lt, op, &right, &rt, settings);
    }
    Ok(Some(match op {
        Operator::Minus if stamp(lt) && stamp(rt) => {
            let (a, b) = if naive(lt) == naive(rt) {
                (l(), r())
            } else {
                let zoned = |e: Expr, t: &D| match naive(t) {
                    true => to(e, SqlType::Timestamp, SqlType::TimestampTz),
                    false => Ok(e),
                };
                (zoned(l(), lt)?, zoned(r(), rt)?)
            };
            call("pg_timestamp_diff", vec![a, b])?
        }
        Operator::Minus if stamp(lt) && date(rt) => {
            let b = if naive(lt) {
                as_date(r())
            } else {
                to(r(), SqlType::Date, SqlType::TimestampTz)?
            };
            call("pg_timestamp_diff", vec![l(), b])?
        }
        Operator::Minus if date(lt) && stamp(rt) => {
            let a = if naive(rt) {
                as_date(l())
            } else {
                to(l(), SqlType::Date, SqlType::TimestampTz)?
            };
            call("pg_timestamp_diff", vec![a, r()])?
        }
        Operator::Minus if date(lt) && date(rt) => call("pg_date_diff", vec![l(), r()])?,
        Operator::Plus if date(lt) && integer(rt) => {
            call("pg_date_add", vec![l(), int4(r(), rt)?])?
        }
        Operator::Plus if integer(lt) && date(rt) => {
            call("pg_date_add", vec![r(), int4(l(), lt)?])?
        }
        Operator::Minus if date(lt) && integer(rt) => call(
            "pg_date_add",
            vec![l(), call("pg_neg", vec![int4(r(), rt)?])?],
        )?,
        Operator::Plus | Operator::Minus if date(lt) && is_interval(rt) => {
            binary(as_date(l()), op, r())
        }
        Operator::Plus if is_interval(lt) && date(rt) => binary(as_date(r()), op, l()),
        Operator::Plus | Operator::Minus
            if stamp(lt) && !naive(lt) && is_interval(rt) && !is_utc(settings) =>
        {
            // Days and months are those of the session's calendar, hours those of
            // the clock.
            let zone = || literal(settings.time_zone_name.clone());
            let local = call("timezone", vec![zone(), l()])?;
            let days = binary(local, op, call("pg_interval_days", vec![r()])?);
            let moved = call("timezone", vec![zone(), days])?;
            binary(moved, op, call("pg_interval_time", vec![r()])?)
        }
        Operator::Multiply if is_interval(lt) && is_number(rt) => {
            call("pg_interval_mul", vec![l(), float8(r())])?
        }
        Operator::Multiply if is_number(lt) && is_interval(rt) => {
            call("pg_interval_mul", vec![r(), float8(l())])?
        }
        Operator::Divide if is_interval(lt) && is_number(rt) => {
            call("pg_interval_div", vec![l(), float8(r())])?
        }
        _ => {
            let temporal = |t: &D| {
                stamp(t) || date(t) || is_interval(t) || matches!(t, D::Time64(_) | D::Time32(_))
            };
            let handled_below = (stamp(lt) && is_interval(rt))
                || (is_interval(lt) && stamp(rt) && op == Operator::Plus)
                || (is_interval(lt) && is_interval(rt))
                || (matches!(lt, D::Time64(_)) && is_interval(rt));
            if (temporal(lt) || temporal(rt)) && !lt.is_null() && !rt.is_null() {
                let plus_minus = matches!(op, Operator::Plus | Operator::Minus);
                if handled_below && plus_minus {
                    return Ok(Some(binary(l(), op, r())));
                }
                return Err(no_operator(&op.to_string(), lt, rt));
            }
            return Ok(None);
        }
    }))
}

fn int4(expr: Expr, t: &DataType) -> Result<Expr> {
    if matches!(t, DataType::Int64) {
        return call("pg_cast", vec![expr, literal("int4")]);
    }
    Ok(Expr::Cast(Cast::new(Box::new(expr), DataType::Int32)))
}

fn float8(expr: Expr) -> Expr {
    Expr::Cast(Cast::new(Box::new(expr), DataType::Float64))
}

/// Functions on `timestamptz` see the session's local time.
pub(super) fn zoned_function(
    function: ScalarFunction,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    if function.name() == "age" {
        return age(function, schema, settings);
    }
    if function.name() == "to_timestamp" && function.args.len() == 2 && !is_utc(settings) {
        return zoned_to_timestamp(function, settings);
    }
    let position = match function.name() {
        "pg_extract" | "date_part" | "date_trunc" => 1,
        "to_char" => 0,
        _ => return Ok(Transformed::no(Expr::ScalarFunction(function))),
    };
    let Some(argument) = function.args.get(position) else {
        return Ok(Transformed::no(Expr::ScalarFunction(function)));
    };
    let zoned = matches!(type_of(argument, schema)?, DataType::Timestamp(_, Some(_)));
    let word = |at: usize| match function.args.get(at) {
        Some(Expr::Literal(v, _)) => v.try_as_str().flatten().unwrap_or_default().to_lowercase(),
        _ => String::new(),
    };
    // Seconds since 1970 are the same everywhere.
    let epoch = position == 1 && function.name() != "date_trunc" && word(0) == "epoch";
    if zoned && !is_utc(settings) && function.name() == "to_char" {
        known_pattern(&function, "to_char")?;
    }
    if !zoned || is_utc(settings) || epoch {
        return Ok(Transformed::no(Expr::ScalarFunction(function)));
    }
    let zone = || literal(settings.time_zone_name.clone());
    let back = function.name() == "date_trunc";
    let mut function = function;
    let local = call("timezone", vec![zone(), function.args[position].clone()])?;
    function.args[position] = local;
    let expr = Expr::ScalarFunction(function);
    Ok(Transformed::yes(if back {
        call("timezone", vec![zone(), expr])?
    } else {
        expr
    }))
}

/// A pattern that says nothing of the zone, which a local time does not have.
fn known_pattern(function: &ScalarFunction, name: &str) -> Result<()> {
    let pattern = match function.args.get(1) {
        Some(Expr::Literal(v, _)) => v.try_as_str().flatten().map(str::to_lowercase),
        _ => None,
    };
    let problem = match pattern {
        None => "a pattern that is no literal",
        Some(p) if p.contains("tz") => "the pattern \"TZ\"",
        Some(p) if p.contains("of") => "the pattern \"OF\"",
        Some(_) => return Ok(()),
    };
    Err(carry(SqlError::unsupported(format!(
        "{problem} of {name} in a time zone other than UTC"
    ))))
}

/// The text says a local time of the session.
fn zoned_to_timestamp(function: ScalarFunction, settings: &Settings) -> Result<Transformed<Expr>> {
    known_pattern(&function, "to_timestamp")?;
    let read = Expr::ScalarFunction(function);
    let local = call("timezone", vec![literal("UTC"), read])?;
    let zone = literal(settings.time_zone_name.clone());
    Ok(Transformed::yes(call("timezone", vec![zone, local])?))
}

/// `age` counts on the session's calendar, by default from the midnight before now.
fn age(
    mut function: ScalarFunction,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    if function.args.len() == 1 {
        let now = Datum::TimestampTz(settings.transaction_time_us);
        let now = now.cast(SqlType::Timestamp, &settings.time_zone);
        let Datum::Timestamp(now) = now.map_err(carry)? else {
            return Err(carry(SqlError::internal("the local time")));
        };
        let today = now.div_euclid(86_400_000_000) * 86_400_000_000;
        let midnight = ScalarValue::TimestampMicrosecond(Some(today), None);
        function.args.insert(0, Expr::Literal(midnight, None));
    }
    for arg in &mut function.args {
        let bare = std::mem::take(arg);
        *arg = local_time(bare, schema, settings)?;
    }
    Ok(Transformed::yes(call("age", function.args)?))
}

/// A point in time on the session's calendar.
fn local_time(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Expr> {
    Ok(match type_of(&expr, schema)? {
        DataType::Date32 => Expr::Cast(Cast::new(Box::new(expr), temporal::timestamp())),
        DataType::Timestamp(_, Some(_)) => {
            let zone = literal(settings.time_zone_name.clone());
            call("timezone", vec![zone, expr])?
        }
        _ => expr,
    })
}
