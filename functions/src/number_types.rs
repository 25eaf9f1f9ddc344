//! Types of numbers: which of two PostgreSQL prefers, and in which arithmetic is
//! done.

use arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;

/// True for the types that this module computes with.
pub fn is_number(data_type: &DataType) -> bool {
    rank(data_type).is_some()
}

/// Order of preference among numeric types: the higher wins.
fn rank(data_type: &DataType) -> Option<u8> {
    Some(match data_type {
        DataType::Int16 | DataType::Int8 | DataType::UInt8 => 1,
        DataType::Int32 | DataType::UInt16 => 2,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => 3,
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => 4,
        DataType::Float32 => 5,
        DataType::Float64 => 6,
        _ => return None,
    })
}

/// The decimal type that holds every value of an integer type.
pub(crate) fn as_decimal(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Int16 | DataType::Int8 | DataType::UInt8 => DataType::Decimal128(5, 0),
        DataType::Int32 | DataType::UInt16 => DataType::Decimal128(10, 0),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => DataType::Decimal128(19, 0),
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal256(p, s) => {
            DataType::Decimal128((*p).min(38), *s)
        }
        other => other.clone(),
    }
}

/// The integer type that arithmetic works with.
fn as_signed(rank: u8) -> DataType {
    match rank {
        1 => DataType::Int16,
        2 => DataType::Int32,
        _ => DataType::Int64,
    }
}

/// The common types of two operands, by PostgreSQL's preference: numeric with
/// a float gives double precision, integers widen, an untyped operand takes
/// the other's type.
pub fn coerce(types: &[DataType]) -> Result<Vec<DataType>> {
    let [left, right] = types else {
        return plan_err!("arithmetic needs two operands");
    };
    let text = |t: &DataType| {
        matches!(
            t,
            DataType::Null | DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8
        )
    };
    let (a, b) = match (rank(left), rank(right)) {
        (Some(a), Some(b)) => (a, b),
        (Some(a), None) if text(right) => (a, a),
        (None, Some(b)) if text(left) => (b, b),
        (None, None) if text(left) && text(right) => (2, 2),
        _ => return plan_err!("operator does not exist: {left} and {right}"),
    };
    let known = |t: &DataType, other: &DataType| {
        if rank(t).is_some() {
            t.clone()
        } else if rank(other).is_some() {
            other.clone()
        } else {
            DataType::Int32
        }
    };
    let (left, right) = (known(left, right), known(right, left));
    Ok(match a.max(b) {
        // real with real stays real; real with anything else is double.
        5 if a == b => vec![DataType::Float32; 2],
        5 | 6 => vec![DataType::Float64; 2],
        4 => vec![as_decimal(&left), as_decimal(&right)],
        other => vec![as_signed(other); 2],
    })
}

pub(crate) fn coerce_one(types: &[DataType]) -> Result<Vec<DataType>> {
    let [one] = types else {
        return plan_err!("one argument is needed");
    };
    match rank(one) {
        Some(4) => Ok(vec![as_decimal(one)]),
        Some(r @ 1..=3) => Ok(vec![as_signed(r)]),
        Some(_) => Ok(vec![one.clone()]),
        None if one.is_null() => Ok(vec![DataType::Float64]),
        None => plan_err!("operator does not exist: - {one}"),
    }
}

/// One integer; an untyped operand is an `integer`.
pub(crate) fn coerce_integer(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [one] if one.is_null() => Ok(vec![DataType::Int32]),
        [one] => match rank(one) {
            Some(r @ 1..=3) => Ok(vec![as_signed(r)]),
            _ => plan_err!("operator does not exist: ~ {one}"),
        },
        _ => plan_err!("one argument is needed"),
    }
}
