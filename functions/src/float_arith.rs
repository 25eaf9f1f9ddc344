//! Arithmetic on floats: what would be infinity or vanish is 22003, and a division
//! by zero 22012.

use crate::arith::Op;
use crate::error::FunctionError;
use crate::udf::{arrays, primitive};
use arrow::array::{ArrayRef, ArrowPrimitiveType, PrimitiveArray};
use arrow::compute::kernels::arity::try_binary;
use arrow::error::ArrowError;
use datafusion::error::Result;
use datafusion::logical_expr::ScalarFunctionArgs;
use std::sync::Arc;

/// What floats need to know of themselves here.
pub(crate) trait Float: Copy + PartialEq {
    fn finite(self) -> bool;
    fn infinite(self) -> bool;
    fn zero(self) -> bool;
    fn nan(self) -> bool;
    fn apply(op: Op, a: Self, b: Self) -> Self;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
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
    Ok(value)
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
