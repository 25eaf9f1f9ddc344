//! `a + b - c * ...` in one call: `pg_chain('+-*', a, b, c, ...)` works from left
//! to right exactly as the operators would, one inside the other.
//!
//! DataFusion types an expression anew at every level of it, and a plan that
//! travels may not nest deeply; long sums that programs write are flat this way.

use crate::arith;
use crate::udf::Function;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::sync::Arc;

/// The name of the function.
pub const NAME: &str = "pg_chain";

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![Function::coerced(NAME, coerce, returns, invoke)]
}

fn coerce(types: &[DataType]) -> Result<Vec<DataType>> {
    if types.len() < 3 || types[1..].iter().any(|t| !arith::is_number(t)) {
        return plan_err!("{NAME} takes operators and numbers");
    }
    let mut types = types.to_vec();
    types[0] = DataType::Utf8;
    Ok(types)
}

fn operators(value: Option<&ScalarValue>) -> Result<Vec<arith::Op>> {
    let Some(text) = value.and_then(|v| v.try_as_str().flatten()) else {
        return plan_err!("{NAME} needs constant operators");
    };
    match text.chars().map(arith::Op::from_symbol).collect() {
        Some(operators) => Ok(operators),
        None => plan_err!("{NAME} knows no such operators: {text}"),
    }
}

fn returns(types: &[DataType], scalars: &[Option<&ScalarValue>]) -> Result<FieldRef> {
    let operators = operators(scalars.first().copied().flatten())?;
    let Some((first, rest)) = types.get(1..).and_then(<[DataType]>::split_first) else {
        return plan_err!("{NAME} needs operands");
    };
    let mut result = Arc::new(Field::new("", first.clone(), true));
    for (op, operand) in operators.iter().zip(rest) {
        result = arith::returns(*op, &[result.data_type().clone(), operand.clone()])?;
    }
    Ok(result)
}

fn as_type(value: &ColumnarValue, to: &DataType) -> Result<ColumnarValue> {
    if &value.data_type() == to {
        return Ok(value.clone());
    }
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    Ok(match value {
        ColumnarValue::Array(array) => {
            ColumnarValue::Array(cast_with_options(array, to, &options)?)
        }
        ColumnarValue::Scalar(scalar) => ColumnarValue::Scalar(scalar.cast_to(to)?),
    })
}

fn invoke(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let operators = match args.args.first() {
        Some(ColumnarValue::Scalar(text)) => operators(Some(text))?,
        _ => return plan_err!("{NAME} needs constant operators"),
    };
    let Some((first, rest)) = args.args.get(1..).and_then(<[ColumnarValue]>::split_first) else {
        return plan_err!("{NAME} needs operands");
    };
    let mut value = first.clone();
    for (op, operand) in operators.into_iter().zip(rest) {
        let types = arith::coerce(&[value.data_type(), operand.data_type()])?;
        let fields = types
            .iter()
            .map(|t| Arc::new(Field::new("", t.clone(), true)));
        let step = ScalarFunctionArgs {
            args: vec![as_type(&value, &types[0])?, as_type(operand, &types[1])?],
            arg_fields: fields.collect(),
            number_rows: args.number_rows,
            return_field: arith::returns(op, &types)?,
            config_options: Arc::clone(&args.config_options),
        };
        value = arith::binary(op, &step)?;
    }
    Ok(value)
}
