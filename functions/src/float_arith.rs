//! Arithmetic on floats: what would be infinity or vanish is 22003, and a division
//! by zero 22012. And the one zero that keys have: PostgreSQL takes `-0` and `0` for
//! equal, what sorts or looks up by bits does not.

use crate::arith::Op;
use crate::error::FunctionError;
use crate::udf::{Function, arrays, field, primitive, result};
use arrow::array::{
    ArrayRef, ArrowPrimitiveType, AsArray, Float32Array, Float64Array, PrimitiveArray,
};
use arrow::compute::kernels::arity::try_binary;
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::error::ArrowError;
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::sync::Arc;

/// Name of the function that makes `-0` a `0`, and any NaN the one that there is.
pub const PLAIN_ZERO: &str = "pg_plain_zero";

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![Function::exact(
        PLAIN_ZERO,
        &[],
        vec![vec![DataType::Float32], vec![DataType::Float64]],
        |types, _| match types {
            [one] => Ok(field(one.clone())),
            _ => plan_err!("{PLAIN_ZERO} takes one float"),
        },
        plain_zero,
    )]
}

fn plain_zero(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let array = arrays(args)?.remove(0);
    result(args, plain_zeros(array))
}

/// Floats with one zero and one NaN; other arrays as they are.
pub(crate) fn plain_zeros(array: ArrayRef) -> ArrayRef {
    // The sum of zeros of both signs is the positive one (IEEE 754, 6.3).
    if let Some(floats) = array.as_primitive_opt::<Float32Type>() {
        let plain: Float32Array =
            floats.unary(|v: f32| if v.is_nan() { f32::NAN } else { v + 0.0 });
        Arc::new(plain)
    } else if let Some(floats) = array.as_primitive_opt::<Float64Type>() {
        let plain: Float64Array =
            floats.unary(|v: f64| if v.is_nan() { f64::NAN } else { v + 0.0 });
        Arc::new(plain)
    } else {
        array
    }
}

/// What floats need to know of themselves here.
pub(crate) trait Float: Copy + PartialEq {
    const NOT_A_NUMBER: Self;
    fn finite(self) -> bool;
    fn infinite(self) -> bool;
    fn zero(self) -> bool;
    fn nan(self) -> bool;
    fn apply(op: Op, a: Self, b: Self) -> Self;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
            const NOT_A_NUMBER: Self = Self::NAN;
            fn finite(self) -> bool {
                self.is_finite()
            }
            fn infinite(self) -> bool {
                self.is_infinite()
            }
            fn zero(self) -> bool {
                self == 0.0
            }
            fn nan(self) -> bool {
                self.is_nan()
            }
            fn apply(op: Op, a: Self, b: Self) -> Self {
                match op {
                    Op::Add => a + b,
                    Op::Sub => a - b,
                    Op::Mul => a * b,
                    Op::Div => a / b,
                    Op::Rem => a % b,
                }
            }
        }
    };
}

float!(f32);
float!(f64);

fn float_op<F: Float>(op: Op, a: F, b: F) -> std::result::Result<F, FunctionError> {
    if matches!(op, Op::Div | Op::Rem) && b.zero() && !a.nan() {
        return Err(FunctionError::division_by_zero());
    }
    let value = F::apply(op, a, b);
    if value.infinite() && a.finite() && b.finite() {
        return Err(FunctionError::new("22003", "value out of range: overflow"));
    }
    let vanished = match op {
        Op::Mul => value.zero() && !a.zero() && !b.zero(),
        Op::Div => value.zero() && !a.zero() && b.finite(),
        _ => false,
    };
    if vanished {
        return Err(FunctionError::new("22003", "value out of range: underflow"));
    }
    // The machine's own has its sign set; there is only one.
    Ok(if value.nan() { F::NOT_A_NUMBER } else { value })
}

pub(crate) fn floats<T>(op: Op, args: &ScalarFunctionArgs) -> Result<ArrayRef>
where
    T: ArrowPrimitiveType,
    T::Native: Float,
{
    let columns = arrays(args)?;
    let out: PrimitiveArray<T> = try_binary(
        primitive::<T>(&columns[0])?,
        primitive::<T>(&columns[1])?,
        |a, b| float_op(op, a, b).map_err(ArrowError::from),
    )?;
    Ok(Arc::new(out))
}
