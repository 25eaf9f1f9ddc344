//! Casts: explicit ones, those that PostgreSQL makes implicitly, and those that
//! DataFusion's coercion inserted. What keeps every value stays Arrow's; the rest
//! becomes `pg_cast`.

use super::errors::carry;
use super::semantics::{call, is_text, is_untyped, is_utc, literal, sql_type_of, type_of};
use crate::error::SqlError;
use crate::settings::Settings;
use arrow::datatypes::{DataType, IntervalUnit};
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::Cast;
use lineradb_common::sql::{Datum, Numeric, SqlType};

/// A value of another type, as an implicit cast makes it.
pub(super) fn convert(expr: Expr, from: SqlType, to: SqlType, settings: &Settings) -> Result<Expr> {
    if let Expr::Literal(ScalarValue::Decimal128(Some(v), _, scale), _) = &expr
        && let Ok(number) = Numeric::new(*v, scale.unsigned_abs())
        && (*scale >= 0 && to == SqlType::Float8)
    {
        let value = ScalarValue::Float64(Some(number.to_f64()));
        return Ok(Expr::Literal(value, None));
    }
    if let (Expr::Literal(ScalarValue::Int32(Some(v)), _), SqlType::Float8) = (&expr, to) {
        let value = ScalarValue::Float64(Some(f64::from(*v)));
        return Ok(Expr::Literal(value, None));
    }
    cast_to(expr, from, to, settings)
}

/// `pg_cast(expr, 'type'[, 'zone'])`, or its value when that is known now: then
/// what is no value of the type is an error of the statement, as it is in
/// PostgreSQL.
pub(super) fn cast_to(expr: Expr, from: SqlType, to: SqlType, settings: &Settings) -> Result<Expr> {
    let storable = !matches!(to, SqlType::Array(_) | SqlType::Void | SqlType::Unknown);
    if let Expr::Literal(value, _) = &expr
        && is_text(&value.data_type())
        && storable
        && let Some(text) = value.try_as_str().flatten()
    {
        let zone = &settings.time_zone;
        let datum = Datum::Text(text.to_owned()).cast(to, zone).map_err(carry)?;
        let value = super::engine::scalar_of(&datum, to).map_err(carry)?;
        let metadata = lineradb_functions::cast::field_of(to).metadata().clone();
        return Ok(Expr::Literal(value, Some(FieldMetadata::from(metadata))));
    }
    let mut args = vec![expr, literal(to.to_string())];
    if zone_matters(from, to) && !is_utc(settings) {
        args.push(literal(settings.time_zone_name.clone()));
    }
    call("pg_cast", args)
}

fn zone_matters(from: SqlType, to: SqlType) -> bool {
    (from == SqlType::TimestampTz) != (to == SqlType::TimestampTz)
}

/// A text literal as a numeric with the digits that it has.
pub(super) fn numeric_literal(expr: Expr) -> Result<Expr> {
    let Expr::Literal(value, m) = &expr else {
        return Ok(expr);
    };
    let text = value.try_as_str().flatten().unwrap_or_default();
    let number = Numeric::parse(text).map_err(carry)?;
    Ok(Expr::Literal(
        ScalarValue::Decimal128(Some(number.mantissa()), 38, number.scale() as i8),
        m.clone(),
    ))
}

pub(super) fn explicit_cast(
    cast: Cast,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    let target = SqlType::from_field(&cast.field);
    let from_type = type_of(&cast.expr, schema)?;
    let from = sql_type_of(&cast.expr, schema)?;
    let nested = |t: &DataType| {
        matches!(
            t,
            DataType::List(_)
                | DataType::LargeList(_)
                | DataType::FixedSizeList(..)
                | DataType::Struct(_)
                | DataType::Map(..)
        )
    };
    if nested(&from_type) {
        return match cast.field.data_type() {
            t if elements_keep_values(&from_type, t) => Ok(Transformed::no(Expr::Cast(cast))),
            t if nested(t) => Err(carry(SqlError::unsupported(
                "a cast between arrays that changes their elements; unnest, cast and array_agg them",
            ))),
            _ => Err(carry(SqlError::unsupported(format!(
                "a cast from an array to {}",
                target.name()
            )))),
        };
    }
    if nested(cast.field.data_type()) {
        if from_type.is_null() {
            return Ok(Transformed::no(Expr::Cast(cast)));
        }
        return Ok(Transformed::yes(cast_to(
            *cast.expr, from, target, settings,
        )?));
    }
    let limited = matches!(
        target,
        SqlType::Varchar(Some(_)) | SqlType::Char(_) | SqlType::Numeric(Some(_))
    );
    // The value of a parameter has the type, but not yet the length.
    let to_limit = limited && matches!(*cast.expr, Expr::Placeholder(_));
    if !to_limit
        && from == target
        && from_type == *cast.field.data_type()
        && !is_untyped(&cast.expr)
    {
        return Ok(Transformed::yes(*cast.expr));
    }
    check_cast(&from_type, from, target)?;
    Ok(Transformed::yes(cast_to(
        *cast.expr, from, target, settings,
    )?))
}

/// 42846 for casts that PostgreSQL does not have.
fn check_cast(from_type: &DataType, from: SqlType, to: SqlType) -> Result<()> {
    use SqlType as T;
    let time = |t| matches!(t, T::Date | T::Time | T::Timestamp | T::TimestampTz);
    let number = |t: T| t.is_number() || t == T::Oid;
    let wrong = if from_type.is_null() || from.is_text() || to.is_text() {
        false
    } else {
        match (from, to) {
            (T::Bool, t) | (t, T::Bool) => !matches!(t, T::Bool | T::Int4),
            (T::Uuid, t) | (t, T::Uuid) => t != T::Uuid,
            (T::Bytea, t) | (t, T::Bytea) => t != T::Bytea,
            (a, b) => {
                (number(a) && (time(b) || b == T::Interval))
                    || (number(b) && (time(a) || a == T::Interval))
            }
        }
    };
    if wrong {
        return Err(carry(SqlError::new(
            "42846",
            format!("cannot cast type {} to {}", from.name(), to.name()),
        )));
    }
    Ok(())
}

/// Casts that coercion inserted: those that keep every value stay as they are,
/// the others become ours.
pub(super) fn implicit_cast(
    expr: Expr,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    let Expr::Cast(cast) = expr else {
        return Ok(Transformed::no(expr));
    };
    let from = type_of(&cast.expr, schema)?;
    let to = cast.field.data_type().clone();
    if keeps_values(&from, &to) {
        return Ok(Transformed::no(Expr::Cast(cast)));
    }
    let from_sql = sql_type_of(&cast.expr, schema)?;
    if is_text(&to) {
        // As PostgreSQL writes it, in the encoding that was asked for.
        let text = cast_to(*cast.expr, from_sql, SqlType::Text, settings)?;
        return Ok(Transformed::yes(match to == SqlType::Text.arrow_type() {
            true => text,
            false => Expr::Cast(Cast::new(Box::new(text), to)),
        }));
    }
    let to_sql = match &to {
        DataType::Decimal128(p, s) if *s >= 0 => SqlType::Numeric(Some((*p, *s as u8))),
        other => SqlType::from_arrow(other),
    };
    if to_sql.arrow_type() != to {
        // Units and encodings that SQL has no name for.
        return Ok(Transformed::no(Expr::Cast(cast)));
    }
    Ok(Transformed::yes(cast_to(
        *cast.expr, from_sql, to_sql, settings,
    )?))
}

/// The engine casts the elements of arrays by itself: that is right where the
/// values stay as they are, or are written as texts in the one way there is.
fn elements_keep_values(from: &DataType, to: &DataType) -> bool {
    let item = |t: &DataType| match t {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Some(item.data_type().clone())
        }
        _ => None,
    };
    match (item(from), item(to)) {
        (Some(from), Some(to)) if is_text(&to) => {
            from.is_integer()
                || is_text(&from)
                || from.is_null()
                || matches!(from, DataType::Boolean | DataType::Date32)
        }
        (Some(from), Some(to)) => {
            keeps_values(&from, &to)
                || (is_text(&from) && to.is_integer())
                || matches!(
                    (&from, &to),
                    (DataType::Date32, DataType::Timestamp(_, None))
                )
        }
        _ => from == to,
    }
}

fn keeps_values(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    let width = |t: &D| match t {
        D::Int8 | D::UInt8 => 1,
        D::Int16 | D::UInt16 => 2,
        D::Int32 | D::UInt32 => 3,
        D::Int64 | D::UInt64 => 4,
        _ => 0,
    };
    if from == to || from.is_null() || (is_text(from) && is_text(to)) {
        return true;
    }
    if width(from) > 0 && width(to) > 0 {
        return width(to) >= width(from);
    }
    match (from, to) {
        (f, D::Float64) if width(f) > 0 => true,
        (f, D::Decimal128(p, s) | D::Decimal256(p, s)) if width(f) > 0 => {
            i32::from(*p) - i32::from(*s) >= 19
                || (width(f) <= 3 && i32::from(*p) - i32::from(*s) >= 10)
                || (width(f) <= 2 && i32::from(*p) - i32::from(*s) >= 5)
        }
        (D::Decimal128(p1, s1), D::Decimal128(p2, s2)) => {
            s2 >= s1 && i32::from(*p2) - i32::from(*s2) >= i32::from(*p1) - i32::from(*s1)
        }
        (D::Decimal128(..), D::Decimal256(..)) => true,
        (D::Float32, D::Float64) => true,
        (D::Interval(_), D::Interval(IntervalUnit::MonthDayNano)) => true,
        (D::Timestamp(_, a), D::Timestamp(_, b)) => a.is_some() == b.is_some(),
        (D::Time64(_), D::Time64(_)) => true,
        (
            D::Binary | D::BinaryView | D::LargeBinary,
            D::Binary | D::BinaryView | D::LargeBinary,
        ) => true,
        (D::List(_) | D::LargeList(_) | D::FixedSizeList(..) | D::Struct(_), _) => true,
        (_, D::List(_) | D::LargeList(_) | D::FixedSizeList(..) | D::Struct(_)) => true,
        (D::Dictionary(..), _) | (_, D::Dictionary(..)) => true,
        _ => false,
    }
}
