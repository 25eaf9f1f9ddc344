//! `+ - * / %` and unary minus on numbers, checked as PostgreSQL checks them:
//! 22003 on overflow (integers, floats, decimals), 22012 on division by zero.
//!
//! The gateway puts these in place of DataFusion's operators on numeric types,
//! which wrap silently. Dates and intervals keep DataFusion's operators.

use crate::decimal;
use crate::error::FunctionError;
use crate::float_arith::floats;
use crate::number_types::{as_decimal, coerce_integer, coerce_one};
pub use crate::number_types::{coerce, is_number};
use crate::udf::{Function, arrays, field, primitive, result};
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, Decimal128Array, PrimitiveArray};
use arrow::compute::kernels::arity::try_binary;
use arrow::compute::kernels::numeric;
use arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
};
use arrow::error::ArrowError;
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
}

impl Op {
    /// The operator that a character stands for.
    pub(crate) fn from_symbol(symbol: char) -> Option<Self> {
        Some(match symbol {
            '+' => Op::Add,
            '-' => Op::Sub,
            '*' => Op::Mul,
            '/' => Op::Div,
            '%' => Op::Rem,
            _ => return None,
        })
    }
}

/// Names of the functions, by operator.
pub const NAMES: [(&str, &str); 5] = [
    ("+", "pg_add"),
    ("-", "pg_sub"),
    ("*", "pg_mul"),
    ("/", "pg_div"),
    ("%", "pg_mod"),
];

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::coerced(
            "pg_add",
            coerce,
            |t, _| returns(Op::Add, t),
            |a| binary(Op::Add, a),
        ),
        Function::coerced(
            "pg_sub",
            coerce,
            |t, _| returns(Op::Sub, t),
            |a| binary(Op::Sub, a),
        ),
        Function::coerced(
            "pg_mul",
            coerce,
            |t, _| returns(Op::Mul, t),
            |a| binary(Op::Mul, a),
        ),
        Function::coerced(
            "pg_div",
            coerce,
            |t, _| returns(Op::Div, t),
            |a| binary(Op::Div, a),
        ),
        Function::coerced(
            "pg_mod",
            coerce,
            |t, _| returns(Op::Rem, t),
            |a| binary(Op::Rem, a),
        ),
        Function::coerced("pg_neg", coerce_one, |t, _| Ok(field(t[0].clone())), negate),
        Function::coerced(
            "pg_bit_not",
            coerce_integer,
            |t, _| Ok(field(t[0].clone())),
            |a| unary(a, |v| Some(!v), |v| v, |v| v),
        ),
        Function::coerced("pg_abs", coerce_one, |t, _| Ok(field(t[0].clone())), abs),
        Function::coerced(
            "pg_avg_div",
            |t| match coerce(t)?.as_slice() {
                [DataType::Decimal128(..), ..] | [DataType::Int64, ..] => {
                    Ok(vec![as_decimal(&t[0]), DataType::Decimal128(19, 0)])
                }
                _ => Ok(vec![DataType::Float64; 2]),
            },
            |t, _| {
                Ok(field(match &t[0] {
                    DataType::Decimal128(_, 0) => {
                        DataType::Decimal128(decimal::MAX_PRECISION, WHOLE_AVERAGE_SCALE)
                    }
                    DataType::Decimal128(_, s) => DataType::Decimal128(
                        decimal::MAX_PRECISION,
                        decimal::DIVISION_SCALE.max(*s),
                    ),
                    // Averages of int2 and int4 leave room for all digits.
                    DataType::Int64 => {
                        DataType::Decimal128(decimal::MAX_PRECISION, decimal::DIVISION_SCALE)
                    }
                    _ => DataType::Float64,
                }))
            },
            average,
        ),
    ]
}

/// Fraction digits of an average of bigints: the rest is for their 19 digits.
const WHOLE_AVERAGE_SCALE: i8 = 19;

/// A sum over a count: `avg`. No rows: NULL.
fn average(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    if let DataType::Decimal128(precision, scale) = args.return_type() {
        let from = match columns[0].data_type() {
            DataType::Decimal128(_, s) => *s,
            _ => 0,
        };
        let sums = primitive::<Decimal128Type>(&columns[0])?;
        let counts = primitive::<Decimal128Type>(&columns[1])?;
        let mut out = Vec::with_capacity(sums.len());
        for row in 0..sums.len() {
            let empty = sums.is_null(row) || counts.is_null(row) || counts.value(row) == 0;
            out.push(if empty {
                None
            } else {
                Some(decimal::quotient(
                    sums.value(row),
                    from,
                    counts.value(row),
                    0,
                    *scale,
                )?)
            });
        }
        let out = Decimal128Array::from(out).with_precision_and_scale(*precision, *scale)?;
        return result(args, Arc::new(out));
    }
    let out: PrimitiveArray<Float64Type> = arrow::compute::kernels::arity::binary(
        primitive::<Float64Type>(&columns[0])?,
        primitive::<Float64Type>(&columns[1])?,
        |sum, count| sum / count,
    )?;
    result(args, Arc::new(out))
}

pub(crate) fn returns(op: Op, types: &[DataType]) -> Result<arrow::datatypes::FieldRef> {
    let types = coerce(types)?;
    Ok(field(match (&types[0], &types[1]) {
        (DataType::Decimal128(p1, s1), DataType::Decimal128(p2, s2)) => {
            let (precision, scale) = match op {
                Op::Add | Op::Sub => decimal::add_type(*p1, *s1, *p2, *s2),
                Op::Mul => decimal::mul_type(*p1, *s1, *p2, *s2),
                Op::Div => decimal::div_type(*s1, *s2),
                Op::Rem => decimal::add_type(*p1, *s1, *p2, *s2),
            };
            DataType::Decimal128(precision, scale)
        }
        (other, _) => other.clone(),
    }))
}

/// The name that PostgreSQL's message gives to a type.
fn type_name(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        _ => "value",
    }
}

fn translate(error: ArrowError, data_type: &DataType) -> DataFusionError {
    match error {
        ArrowError::DivideByZero => FunctionError::division_by_zero().into(),
        ArrowError::ArithmeticOverflow(_) => {
            FunctionError::out_of_range(type_name(data_type)).into()
        }
        other => other.into(),
    }
}

pub(crate) fn binary(op: Op, args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    // A NULL constant makes everything NULL; the kernels below need a value.
    for arg in &args.args {
        if let ColumnarValue::Scalar(value) = arg
            && value.is_null()
        {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(
                args.return_type(),
            )?));
        }
    }
    if let DataType::Decimal128(precision, scale) = args.return_type() {
        return decimals(op, args, *precision, *scale);
    }
    let left = datum(&args.args[0])?;
    let right = datum(&args.args[1])?;
    let (left, right) = (left.as_ref(), right.as_ref());
    let kernel = match op {
        Op::Add => numeric::add,
        Op::Sub => numeric::sub,
        Op::Mul => numeric::mul,
        Op::Div => numeric::div,
        Op::Rem => numeric::rem,
    };
    let array = match args.return_type() {
        DataType::Float64 => floats::<Float64Type>(op, args)?,
        DataType::Float32 => floats::<Float32Type>(op, args)?,
        // The kernel calls MIN % -1 an overflow; its value is 0.
        data_type if op == Op::Rem => match kernel(left, right) {
            Err(ArrowError::ArithmeticOverflow(_)) => integer_remainder(args)?,
            other => other.map_err(|e| translate(e, data_type))?,
        },
        data_type => kernel(left, right).map_err(|e| translate(e, data_type))?,
    };
    result(args, array)
}

fn datum(value: &ColumnarValue) -> Result<Box<dyn arrow::array::Datum>> {
    Ok(match value {
        ColumnarValue::Array(array) => Box::new(array.clone()),
        ColumnarValue::Scalar(scalar) => Box::new(scalar.to_scalar()?),
    })
}

fn integer_remainder(args: &ScalarFunctionArgs) -> Result<ArrayRef> {
    fn run<T>(columns: &[ArrayRef], rem: fn(T::Native, T::Native) -> T::Native) -> Result<ArrayRef>
    where
        T: ArrowPrimitiveType,
        T::Native: Default + PartialEq,
    {
        let out: PrimitiveArray<T> = try_binary(
            primitive::<T>(&columns[0])?,
            primitive::<T>(&columns[1])?,
            |a, b| {
                if b == T::Native::default() {
                    Err(FunctionError::division_by_zero().into())
                } else {
                    Ok::<_, ArrowError>(rem(a, b))
                }
            },
        )?;
        Ok(Arc::new(out))
    }
    let columns = arrays(args)?;
    match args.return_type() {
        DataType::Int16 => run::<Int16Type>(&columns, i16::wrapping_rem),
        DataType::Int32 => run::<Int32Type>(&columns, i32::wrapping_rem),
        _ => run::<Int64Type>(&columns, i64::wrapping_rem),
    }
}

fn decimals(op: Op, args: &ScalarFunctionArgs, precision: u8, scale: i8) -> Result<ColumnarValue> {
    let scale_of = |i: usize| match args.arg_fields[i].data_type() {
        DataType::Decimal128(_, s) => *s,
        _ => 0,
    };
    let (s1, s2) = (scale_of(0), scale_of(1));
    let columns = arrays(args)?;
    let (a, b) = (
        primitive::<Decimal128Type>(&columns[0])?,
        primitive::<Decimal128Type>(&columns[1])?,
    );
    let out: Decimal128Array = match op {
        Op::Mul if s1 + s2 == scale => {
            try_binary(a, b, |x: i128, y: i128| match x.checked_mul(y) {
                Some(v) => decimal::check(v).map_err(ArrowError::from),
                None => decimal::mul(x, s1, y, s2, scale).map_err(ArrowError::from),
            })?
        }
        Op::Mul => try_binary(a, b, |x, y| {
            decimal::mul(x, s1, y, s2, scale).map_err(ArrowError::from)
        })?,
        Op::Div => try_binary(a, b, |x, y| {
            decimal::quotient(x, s1, y, s2, scale).map_err(ArrowError::from)
        })?,
        Op::Add | Op::Sub | Op::Rem => {
            let factor = |s: i8| 10i128.pow(u32::from((scale - s).unsigned_abs()));
            let (f1, f2) = (factor(s1), factor(s2));
            try_binary(a, b, |x: i128, y: i128| {
                let moved = x.checked_mul(f1).zip(y.checked_mul(f2));
                let value = match (moved, op) {
                    (Some((x, y)), Op::Add) => x.checked_add(y),
                    (Some((x, y)), Op::Sub) => x.checked_sub(y),
                    (Some((_, 0)), _) => return Err(FunctionError::division_by_zero().into()),
                    (Some((x, y)), _) => x.checked_rem(y),
                    (None, _) => None,
                };
                let value = value.ok_or_else(|| FunctionError::out_of_range("numeric"))?;
                decimal::check(value).map_err(ArrowError::from)
            })?
        }
    };
    let out = out.with_precision_and_scale(precision, scale)?;
    result(args, Arc::new(out))
}

fn unary(
    args: &ScalarFunctionArgs,
    int: fn(i64) -> Option<i64>,
    float: fn(f64) -> f64,
    dec: fn(i128) -> i128,
) -> Result<ColumnarValue> {
    let array = arrays(args)?.remove(0);
    let data_type = args.return_type().clone();
    let range = |v: Option<i64>| {
        v.ok_or_else(|| ArrowError::from(FunctionError::out_of_range(type_name(&data_type))))
    };
    let out: ArrayRef = match &data_type {
        DataType::Int16 => Arc::new(
            primitive::<Int16Type>(&array)?.try_unary::<_, Int16Type, _>(|v| {
                range(int(i64::from(v)).filter(|v| i16::try_from(*v).is_ok())).map(|v| v as i16)
            })?,
        ),
        DataType::Int32 => Arc::new(
            primitive::<Int32Type>(&array)?.try_unary::<_, Int32Type, _>(|v| {
                range(int(i64::from(v)).filter(|v| i32::try_from(*v).is_ok())).map(|v| v as i32)
            })?,
        ),
        DataType::Int64 => Arc::new(
            primitive::<Int64Type>(&array)?.try_unary::<_, Int64Type, _>(|v| range(int(v)))?,
        ),
        DataType::Float32 => Arc::new(
            primitive::<Float32Type>(&array)?
                .unary::<_, Float32Type>(|v| float(f64::from(v)) as f32),
        ),
        DataType::Float64 => {
            Arc::new(primitive::<Float64Type>(&array)?.unary::<_, Float64Type>(float))
        }
        DataType::Decimal128(p, s) => Arc::new(
            primitive::<Decimal128Type>(&array)?
                .unary::<_, Decimal128Type>(dec)
                .with_precision_and_scale(*p, *s)?,
        ),
        other => return plan_err!("operator does not exist: - {other}"),
    };
    result(args, out)
}

fn negate(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let negated = |v: f64| if v.is_nan() { f64::NAN } else { -v };
    unary(args, i64::checked_neg, negated, |v| -v)
}

fn abs(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    unary(args, i64::checked_abs, f64::abs, i128::abs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::by_name;
    use arrow::datatypes::Field;

    fn run(name: &str, left: ScalarValue, right: ScalarValue) -> Result<ScalarValue> {
        let function = by_name(name).ok_or(DataFusionError::Internal("no such".into()))?;
        let types = function.coerce_types(&[left.data_type(), right.data_type()])?;
        let args = vec![left.cast_to(&types[0])?, right.cast_to(&types[1])?];
        let return_field = field(function.return_type(&types)?);
        let arg_fields = types
            .into_iter()
            .map(|t| Arc::new(Field::new("a", t, true)))
            .collect();
        let value = function.invoke_with_args(ScalarFunctionArgs {
            args: args.into_iter().map(ColumnarValue::Scalar).collect(),
            arg_fields,
            number_rows: 1,
            return_field,
            config_options: Arc::default(),
        })?;
        match value {
            ColumnarValue::Scalar(value) => Ok(value),
            ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0),
        }
    }

    fn state(name: &str, left: ScalarValue, right: ScalarValue) -> &'static str {
        match run(name, left, right) {
            Ok(_) => "",
            Err(e) => FunctionError::find(&e).map_or("?", |e| e.sqlstate),
        }
    }

    #[test]
    fn integers_do_not_wrap() {
        assert_eq!(state("pg_add", i32::MAX.into(), 1i32.into()), "22003");
        assert_eq!(state("pg_mul", i64::MAX.into(), 2i32.into()), "22003");
        assert_eq!(state("pg_div", i32::MIN.into(), (-1i32).into()), "22003");
        assert_eq!(state("pg_div", 1i32.into(), 0i32.into()), "22012");
        assert_eq!(state("pg_mod", 1i32.into(), 0i32.into()), "22012");
        assert_eq!(
            run("pg_mod", i32::MIN.into(), (-1i32).into()).ok(),
            Some(0i32.into())
        );
        assert_eq!(
            run("pg_add", 1i32.into(), 2i64.into()).ok(),
            Some(3i64.into())
        );
        assert_eq!(
            run("pg_add", 1i32.into(), ScalarValue::Null).ok(),
            Some(ScalarValue::Int32(None))
        );
    }

    #[test]
    fn floats_raise_instead_of_infinity() {
        assert_eq!(state("pg_div", 1f64.into(), 0f64.into()), "22012");
        assert_eq!(state("pg_mul", 1e200f64.into(), 1e200f64.into()), "22003");
        assert_eq!(state("pg_mul", 1e-200f64.into(), 1e-200f64.into()), "22003");
        assert!(run("pg_add", f64::INFINITY.into(), 1f64.into()).is_ok());
    }

    #[test]
    fn decimals_are_exact_or_an_error() {
        let max = ScalarValue::Decimal128(Some(10i128.pow(38) - 1), 38, 0);
        assert_eq!(state("pg_add", max.clone(), 1i32.into()), "22003");
        assert_eq!(state("pg_mul", max, 2i32.into()), "22003");
        let third = run(
            "pg_div",
            ScalarValue::Decimal128(Some(10), 2, 1),
            3i32.into(),
        );
        assert_eq!(
            third.ok(),
            Some(ScalarValue::Decimal128(
                Some(33_333_333_333_333_333_333),
                38,
                20
            ))
        );
    }
}
