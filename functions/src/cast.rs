//! `CAST` with PostgreSQL's rounding, range checks, lengths and text forms.
//!
//! The target type travels as a constant text argument, so that one function
//! name serves every type and needs no codec of its own:
//! `pg_cast(value, 'varchar(3)', 'Europe/Berlin')`. The zone is there only when
//! the result depends on it. `pg_assign` is the same for implicit casts and
//! assignments: too long texts are errors instead of being cut.

use crate::error::FunctionError;
use crate::udf::{Function, arrays, result};
use arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Field, FieldRef};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use lineradb_common::sql::{
    Datum, DatumArrayBuilder, Numeric, SqlType, TYPE_METADATA_KEY, TimeZone, ValueError, datum_at,
};
use std::sync::Arc;

impl From<ValueError> for FunctionError {
    fn from(error: ValueError) -> Self {
        FunctionError::new(error.sqlstate, error.message)
    }
}

/// A [`ValueError`] as DataFusion carries it.
pub fn value_error(error: ValueError) -> DataFusionError {
    FunctionError::from(error).into()
}

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::coerced("pg_cast", coerce, returns, |a| invoke(a, Datum::cast)),
        Function::coerced("pg_assign", coerce, returns, |a| invoke(a, Datum::assign)),
    ]
}

fn coerce(types: &[DataType]) -> Result<Vec<DataType>> {
    if types.len() < 2 || types.len() > 3 {
        return plan_err!("pg_cast takes a value, a type and perhaps a zone");
    }
    let mut types = types.to_vec();
    for t in types.iter_mut().skip(1) {
        *t = DataType::Utf8;
    }
    Ok(types)
}

fn text(value: Option<&ScalarValue>) -> Option<&str> {
    value.and_then(|v| v.try_as_str().flatten())
}

fn returns(types: &[DataType], scalars: &[Option<&ScalarValue>]) -> Result<FieldRef> {
    let Some(name) = text(scalars.get(1).copied().flatten()) else {
        return plan_err!("pg_cast needs a constant type, got {types:?}");
    };
    let target: SqlType = name.parse().map_err(value_error)?;
    Ok(field_of(target))
}

/// A nullable field of a type. It says its SQL type only where the Arrow type
/// does not: columns of VALUES and UNION want equal metadata.
pub fn field_of(target: SqlType) -> FieldRef {
    let arrow_type = target.arrow_type();
    if SqlType::from_arrow(&arrow_type) == target {
        Arc::new(Field::new("", arrow_type, true))
    } else {
        Arc::new(target.field("", true))
    }
}

/// True when Arrow's own cast gives PostgreSQL's value for every input.
fn same_in_arrow(from: &DataType, from_sql: SqlType, to: SqlType) -> bool {
    use SqlType as T;
    match (from_sql, to) {
        (T::Int2, T::Int2 | T::Int4 | T::Int8 | T::Float4 | T::Float8) => true,
        (T::Int4, T::Int4 | T::Int8 | T::Float8) => true,
        (T::Int8, T::Int8 | T::Float8) => true,
        (T::Float4, T::Float4 | T::Float8) | (T::Float8, T::Float8) => true,
        (T::Date, T::Timestamp) | (T::Date, T::Date) => true,
        (T::Text | T::Varchar(_) | T::Name, T::Text | T::Varchar(None)) => matches!(
            from,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
        ),
        (a, b) => a == b && !matches!(b, T::Varchar(_) | T::Char(_) | T::Numeric(_)),
    }
}

/// Converts a whole array.
///
/// # Errors
/// 22003, 22P02, 22001 and 42846 as the conversion of values says.
pub fn cast_array(
    array: &ArrayRef,
    from: SqlType,
    to: SqlType,
    zone: &TimeZone,
    convert: fn(Datum, SqlType, &TimeZone) -> std::result::Result<Datum, ValueError>,
) -> Result<ArrayRef> {
    if same_in_arrow(array.data_type(), from, to) || array.data_type().is_null() {
        if (from, to) == (SqlType::Date, SqlType::Timestamp) {
            dates_in_range(array)?;
        }
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        return Ok(cast_with_options(array, &to.arrow_type(), &options)?);
    }
    if let (Some(numerics), DataType::Decimal128(_, scale @ 0..), SqlType::Float8) = (
        array.as_primitive_opt::<Decimal128Type>(),
        array.data_type(),
        to,
    ) {
        let scale = scale.unsigned_abs();
        let doubles: Float64Array = numerics.try_unary(|v| {
            Numeric::new(v, scale)
                .map(Numeric::to_f64)
                .map_err(value_error)
        })?;
        return Ok(Arc::new(doubles));
    }
    let mut builder = DatumArrayBuilder::new(to, array.len());
    for row in 0..array.len() {
        let value = if array.is_null(row) {
            Datum::Null
        } else {
            let value = datum_at(array.as_ref(), row, from).map_err(value_error)?;
            let value = if to.is_text() && matches!(from, SqlType::Numeric(_)) {
                // With the digits that it is shown with.
                value.format(from, zone).map_or(Datum::Null, Datum::Text)
            } else {
                value
            };
            convert(value, to, zone).map_err(value_error)?
        };
        builder.push(&value).map_err(value_error)?;
    }
    let out = builder.finish();
    if out.data_type() == &to.arrow_type() {
        Ok(out)
    } else {
        Ok(arrow::compute::cast(&out, &to.arrow_type())?)
    }
}

/// 22008 for dates that no timestamp holds: Arrow would wrap them.
fn dates_in_range(array: &ArrayRef) -> Result<()> {
    const LAST: i32 = 106_741_034;
    const FIRST: i32 = -2_440_588;
    let Some(days) = array.as_primitive_opt::<Date32Type>() else {
        return Ok(());
    };
    match days.iter().flatten().all(|d| (FIRST..=LAST).contains(&d)) {
        true => Ok(()),
        false => Err(FunctionError::new("22008", "date out of range for timestamp").into()),
    }
}

/// The SQL type of a field as its values are shown: a computed numeric has the
/// digits of its scale, unless that is only the precision of a quotient or
/// what a bare numeric is stored with.
pub fn shown_type(field: &Field) -> SqlType {
    match (SqlType::from_field(field), field.data_type()) {
        (SqlType::Numeric(_), DataType::Decimal128(p, s))
            if (0..10).contains(s) && !field.metadata().contains_key(TYPE_METADATA_KEY) =>
        {
            SqlType::Numeric(Some((*p, *s as u8)))
        }
        (t, _) => t,
    }
}

fn invoke(
    args: &ScalarFunctionArgs,
    convert: fn(Datum, SqlType, &TimeZone) -> std::result::Result<Datum, ValueError>,
) -> Result<ColumnarValue> {
    let constant = |i: usize| match args.args.get(i) {
        Some(ColumnarValue::Scalar(value)) => value.try_as_str().flatten(),
        _ => None,
    };
    let Some(name) = constant(1) else {
        return plan_err!("pg_cast needs a constant type");
    };
    let target: SqlType = name.parse().map_err(value_error)?;
    let zone = match constant(2) {
        Some(zone) => TimeZone::parse(zone).map_err(value_error)?,
        None => TimeZone::UTC,
    };
    let Some(field) = args.arg_fields.first() else {
        return plan_err!("pg_cast needs a value");
    };
    let from = shown_type(field);
    let array = arrays(args)?.remove(0);
    let out = cast_array(&array, from, target, &zone, convert)?;
    result(args, out)
}
