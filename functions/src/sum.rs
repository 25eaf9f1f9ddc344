//! `sum` as PostgreSQL types it: bigints sum to numeric, and a sum that needs
//! more than 38 digits is an error instead of another number. Everything else
//! (integers that sum to bigint, floats, DISTINCT) is DataFusion's own.

use crate::decimal;
use crate::error::FunctionError;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array};
use arrow::datatypes::{DataType, Decimal128Type, FieldRef};
use datafusion::common::{ScalarValue, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF,
    Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

/// The function.
pub fn sum() -> Arc<AggregateUDF> {
    static SUM: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| {
        Arc::new(AggregateUDF::from(CheckedSum {
            signature: Signature::user_defined(Volatility::Immutable),
            inner: Sum::new(),
        }))
    });
    SUM.clone()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedSum {
    signature: Signature,
    inner: Sum,
}

/// The decimal type of a result, when it is one.
fn decimal_of(args: &AccumulatorArgs) -> Option<(u8, i8)> {
    match args.return_field.data_type() {
        DataType::Decimal128(p, s) if !args.is_distinct => Some((*p, *s)),
        _ => None,
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        "sum"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [one] = types else {
            return plan_err!("function sum takes one argument");
        };
        Ok(vec![match one {
            DataType::Int8 | DataType::Int16 | DataType::Int32 => DataType::Int64,
            // Marked by its precision: a bigint that sums to numeric.
            DataType::Int64 | DataType::UInt32 | DataType::UInt64 => DataType::Decimal128(20, 0),
            DataType::Float32 | DataType::Float64 | DataType::Null => DataType::Float64,
            DataType::Decimal128(..) => one.clone(),
            other => return plan_err!("function sum({other}) does not exist"),
        }])
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Decimal128(_, s)] => Ok(DataType::Decimal128(38, *s)),
            _ => self.inner.return_type(types),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match decimal_of(&args) {
            Some((precision, scale)) => Ok(Box::new(One {
                sum: 0,
                count: 0,
                precision,
                scale,
            })),
            None => self.inner.accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match decimal_of(&args) {
            Some(_) => self.accumulator(args),
            None => self.inner.create_sliding_accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        match decimal_of(&args) {
            Some((precision, scale)) => Ok(Box::new(Groups {
                sums: Vec::new(),
                seen: Vec::new(),
                precision,
                scale,
            })),
            None => self.inner.create_groups_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

fn add(a: i128, b: i128) -> Result<i128, FunctionError> {
    a.checked_add(b)
        .ok_or_else(|| FunctionError::out_of_range("numeric"))
        .and_then(decimal::check)
}

fn values(arrays: &[ArrayRef]) -> Result<&Decimal128Array> {
    match arrays
        .first()
        .and_then(|a| a.as_primitive_opt::<Decimal128Type>())
    {
        Some(values) => Ok(values),
        None => internal_err!("sum of decimals got another type"),
    }
}

/// One sum. Counting lets a window slide: rows can be taken out again.
#[derive(Debug)]
struct One {
    sum: i128,
    count: i64,
    precision: u8,
    scale: i8,
}

impl Accumulator for One {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        for value in values(arrays)?.iter().flatten() {
            self.sum = add(self.sum, value)?;
            self.count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        for value in values(arrays)?.iter().flatten() {
            self.sum = add(self.sum, -value)?;
            self.count -= 1;
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = (self.count > 0).then_some(self.sum);
        Ok(ScalarValue::Decimal128(sum, self.precision, self.scale))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
}

/// Many sums at once.
#[derive(Debug)]
struct Groups {
    sums: Vec<i128>,
    seen: Vec<bool>,
    precision: u8,
    scale: i8,
}

impl Groups {
    fn array(&self, values: impl Iterator<Item = Option<i128>>) -> Result<ArrayRef> {
        let array: Decimal128Array = values.collect();
        Ok(Arc::new(
            array.with_precision_and_scale(self.precision, self.scale)?,
        ))
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        arrays: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.sums.resize(total_num_groups, 0);
        self.seen.resize(total_num_groups, false);
        let values = values(arrays)?;
        for (row, group) in group_indices.iter().enumerate() {
            let skipped = filter.is_some_and(|f| f.is_null(row) || !f.value(row));
            if skipped || values.is_null(row) {
                continue;
            }
            self.sums[*group] = add(self.sums[*group], values.value(row))?;
            self.seen[*group] = true;
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        let seen = emit_to.take_needed(&mut self.seen);
        self.array(sums.into_iter().zip(seen).map(|(v, s)| s.then_some(v)))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn merge_batch(
        &mut self,
        arrays: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.update_batch(arrays, group_indices, None, total_num_groups)
    }

    fn convert_to_state(
        &self,
        arrays: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let values = values(arrays)?;
        let kept = values.iter().enumerate().map(|(row, v)| {
            let skipped = filter.is_some_and(|f| f.is_null(row) || !f.value(row));
            if skipped { None } else { v }
        });
        Ok(vec![self.array(kept)?])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i128>() + self.seen.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_beyond_38_digits_is_an_error() {
        let mut one = One {
            sum: 0,
            count: 0,
            precision: 38,
            scale: 0,
        };
        let big = 10i128.pow(38) - 1;
        let array: ArrayRef = Arc::new(
            Decimal128Array::from(vec![Some(big), None])
                .with_precision_and_scale(38, 0)
                .unwrap_or_else(|e| panic!("{e}")),
        );
        assert!(one.update_batch(std::slice::from_ref(&array)).is_ok());
        assert!(one.update_batch(std::slice::from_ref(&array)).is_err());
        assert!(one.retract_batch(&[array]).is_ok());
        assert_eq!(
            one.evaluate().ok(),
            Some(ScalarValue::Decimal128(None, 38, 0))
        );
    }
}
