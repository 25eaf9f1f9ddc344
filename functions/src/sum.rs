//! `sum` as PostgreSQL types it: bigints sum to numeric, reals to real, and a
//! sum that needs more than 38 digits, or that does not fit bigint, is an error
//! instead of another number. [`sum_float`](crate::sum_float) adds floats.
//!
//! `avg` is a sum over a count; its sum of reals is a double (`pg_avg_sum`).

use crate::decimal;
use crate::error::FunctionError;
use crate::sum_float::{self, Precision};
use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, Decimal128Array, Int64Array,
};
use arrow::datatypes::{DataType, Decimal128Type, FieldRef, Int16Type, Int32Type, Int64Type};
use datafusion::common::{ScalarValue, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF,
    Signature, Volatility,
};
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

/// The function.
pub fn sum() -> Arc<AggregateUDF> {
    static SUM: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| named("sum"));
    SUM.clone()
}

/// The sum below `avg`.
pub fn avg_sum() -> Arc<AggregateUDF> {
    static SUM: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| named(AVG_SUM));
    SUM.clone()
}

/// Name of [`avg_sum`].
pub const AVG_SUM: &str = "pg_avg_sum";

fn named(name: &'static str) -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::from(CheckedSum {
        name,
        signature: Signature::user_defined(Volatility::Immutable),
        inner: Sum::new(),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedSum {
    name: &'static str,
    signature: Signature,
    inner: Sum,
}

/// How the sums of a call are kept: everything but floats as `i128`.
fn exact(args: &AccumulatorArgs) -> Option<DataType> {
    match args.return_field.data_type() {
        t @ (DataType::Int64 | DataType::Decimal128(..)) => Some(t.clone()),
        _ => None,
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Types that are taken as they are must stay what they are: this is asked
    /// again about its own answer.
    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [one] = types else {
            return plan_err!("function sum takes one argument");
        };
        Ok(vec![match one {
            DataType::Int8 | DataType::Int16 => DataType::Int16,
            DataType::Int32 => DataType::Int32,
            DataType::Int64 | DataType::UInt32 | DataType::UInt64 => DataType::Decimal128(20, 0),
            DataType::Float32 if self.name != AVG_SUM => DataType::Float32,
            DataType::Float32 | DataType::Float64 | DataType::Null => DataType::Float64,
            DataType::Decimal128(..) => one.clone(),
            other => return plan_err!("function sum({other}) does not exist"),
        }])
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        // Asked about types before coercion, too: the answer must be the same.
        let types = self.coerce_types(types)?;
        match types.as_slice() {
            [DataType::Int16 | DataType::Int32] => Ok(DataType::Int64),
            [DataType::Decimal128(_, s)] => Ok(DataType::Decimal128(38, *s)),
            [DataType::Float32] => Ok(DataType::Float32),
            _ => self.inner.return_type(&types),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if let Some(precision) = Precision::of(args.return_field.data_type()) {
            return Ok(match args.is_distinct {
                true => Box::new(sum_float::Distinct::new(precision)),
                false => Box::new(sum_float::One::new(precision)),
            });
        }
        match exact(&args) {
            Some(data_type) if args.is_distinct => Ok(Box::new(Distinct {
                values: HashSet::new(),
                data_type,
            })),
            Some(data_type) => Ok(Box::new(One {
                sum: 0,
                count: 0,
                data_type,
            })),
            None => self.inner.accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return plan_err!("sum(DISTINCT) over a sliding window is not supported");
        }
        match Precision::of(args.return_field.data_type()) {
            Some(precision) => Ok(Box::new(sum_float::Sliding::new(precision))),
            None => self.accumulator(args),
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
        if let Some(precision) = Precision::of(args.return_field.data_type()) {
            return Ok(Box::new(sum_float::Groups::new(precision)));
        }
        match exact(&args) {
            Some(data_type) => Ok(Box::new(Groups {
                sums: Vec::new(),
                seen: Vec::new(),
                data_type,
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

/// Calls `f` with each row and its value, arguments or states alike.
fn each(
    arrays: &[ArrayRef],
    mut f: impl FnMut(usize, Option<i128>) -> Result<(), FunctionError>,
) -> Result<()> {
    fn run<T>(
        array: &ArrayRef,
        f: &mut impl FnMut(usize, Option<i128>) -> Result<(), FunctionError>,
    ) -> Result<()>
    where
        T: ArrowPrimitiveType,
        T::Native: Into<i128>,
    {
        let values = array.as_primitive::<T>();
        for row in 0..values.len() {
            f(row, values.is_valid(row).then(|| values.value(row).into()))?;
        }
        Ok(())
    }
    let Some(array) = arrays.first() else {
        return internal_err!("sum without an argument");
    };
    match array.data_type() {
        DataType::Int16 => run::<Int16Type>(array, &mut f),
        DataType::Int32 => run::<Int32Type>(array, &mut f),
        DataType::Int64 => run::<Int64Type>(array, &mut f),
        DataType::Decimal128(..) => run::<Decimal128Type>(array, &mut f),
        other => internal_err!("an exact sum of {other}"),
    }
}

/// Sums as the type of the result.
fn array_of(data_type: &DataType, values: Vec<Option<i128>>) -> Result<ArrayRef> {
    if let DataType::Decimal128(precision, scale) = data_type {
        let array = Decimal128Array::from(values).with_precision_and_scale(*precision, *scale)?;
        return Ok(Arc::new(array));
    }
    let narrow = |v: i128| i64::try_from(v).map_err(|_| FunctionError::out_of_range("bigint"));
    let values = values
        .into_iter()
        .map(|v| v.map(narrow).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Int64Array::from(values)))
}

fn scalar_of(data_type: &DataType, value: Option<i128>) -> Result<ScalarValue> {
    ScalarValue::try_from_array(&array_of(data_type, vec![value])?, 0)
}

/// One sum. Counting lets a window slide: rows can be taken out again.
#[derive(Debug)]
struct One {
    sum: i128,
    count: i64,
    data_type: DataType,
}

impl Accumulator for One {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        each(arrays, |_, value| {
            if let Some(value) = value {
                self.sum = add(self.sum, value)?;
                self.count += 1;
            }
            Ok(())
        })
    }

    fn retract_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        each(arrays, |_, value| {
            if let Some(value) = value {
                self.sum = add(self.sum, -value)?;
                self.count -= 1;
            }
            Ok(())
        })
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        scalar_of(&self.data_type, (self.count > 0).then_some(self.sum))
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

/// A sum of distinct values.
#[derive(Debug)]
struct Distinct {
    values: HashSet<i128>,
    data_type: DataType,
}

impl Accumulator for Distinct {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        each(arrays, |_, value| {
            self.values.extend(value);
            Ok(())
        })
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut sum = None;
        for value in &self.values {
            sum = Some(add(sum.unwrap_or(0), *value)?);
        }
        scalar_of(&self.data_type, sum)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<i128>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values = self
            .values
            .iter()
            .map(|v| scalar_of(&self.data_type, Some(*v)))
            .collect::<Result<Vec<_>>>()?;
        let list = ScalarValue::new_list_nullable(&values, &self.data_type);
        Ok(vec![ScalarValue::List(list)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(lists) = states.first().and_then(|a| a.as_list_opt::<i32>()) else {
            return internal_err!("a state of sum(DISTINCT) is a list");
        };
        for list in lists.iter().flatten() {
            self.update_batch(&[list])?;
        }
        Ok(())
    }
}

/// Many sums at once.
#[derive(Debug)]
struct Groups {
    sums: Vec<i128>,
    seen: Vec<bool>,
    data_type: DataType,
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
        each(arrays, |row, value| {
            let skipped = filter.is_some_and(|f| f.is_null(row) || !f.value(row));
            if let (false, Some(value)) = (skipped, value) {
                let group = group_indices[row];
                self.sums[group] = add(self.sums[group], value)?;
                self.seen[group] = true;
            }
            Ok(())
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        let seen = emit_to.take_needed(&mut self.seen);
        let values = sums.into_iter().zip(seen).map(|(v, s)| s.then_some(v));
        array_of(&self.data_type, values.collect())
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
        let mut kept = Vec::new();
        each(arrays, |row, value| {
            let skipped = filter.is_some_and(|f| f.is_null(row) || !f.value(row));
            kept.push(if skipped { None } else { value });
            Ok(())
        })?;
        Ok(vec![array_of(&self.data_type, kept)?])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i128>() + self.seen.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Int32Array;

    fn one(data_type: DataType) -> One {
        One {
            sum: 0,
            count: 0,
            data_type,
        }
    }

    #[test]
    fn a_sum_beyond_38_digits_is_an_error() {
        let mut one = one(DataType::Decimal128(38, 0));
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

    #[test]
    fn integers_sum_to_bigint() {
        let mut one = one(DataType::Int64);
        let array: ArrayRef = Arc::new(Int32Array::from(vec![Some(i32::MAX), None, Some(1)]));
        assert!(one.update_batch(&[array]).is_ok());
        assert_eq!(one.evaluate().ok(), Some(ScalarValue::Int64(Some(1 << 31))));
    }
}
