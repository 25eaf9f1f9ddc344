//! Sums of floats, digit for digit as PostgreSQL adds them: `real` in single
//! precision, one value after the other, from the first value on (not from
//! zero), and 22003 when finite values add up to infinity.
//!
//! A window that slides keeps its values and adds them again: taking a float
//! out of a sum does not give the sum of the others.

use crate::error::FunctionError;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::{ScalarValue, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use std::collections::VecDeque;

/// In which precision is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// `real`
    Single,
    /// `double precision`
    Double,
}

impl Precision {
    /// That of an Arrow type; `None` when it is no float.
    pub fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Float32 => Some(Precision::Single),
            DataType::Float64 => Some(Precision::Double),
            _ => None,
        }
    }

    fn add(self, sum: Option<f64>, value: f64) -> Result<f64, FunctionError> {
        let Some(sum) = sum else { return Ok(value) };
        let added = match self {
            // A double holds the exact sum of two singles up to one rounding.
            Precision::Single => f64::from((sum + value) as f32),
            Precision::Double => sum + value,
        };
        if added.is_infinite() && sum.is_finite() && value.is_finite() {
            return Err(FunctionError::new("22003", "value out of range: overflow"));
        }
        Ok(added)
    }

    fn array(self, values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
        match self {
            Precision::Single => {
                let values = values.map(|v| v.map(|v| v as f32));
                std::sync::Arc::new(values.collect::<Float32Array>())
            }
            Precision::Double => std::sync::Arc::new(values.collect::<Float64Array>()),
        }
    }

    fn scalar(self, value: Option<f64>) -> ScalarValue {
        match self {
            Precision::Single => ScalarValue::Float32(value.map(|v| v as f32)),
            Precision::Double => ScalarValue::Float64(value),
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Precision::Single => DataType::Float32,
            Precision::Double => DataType::Float64,
        }
    }
}

/// Calls `f` with each row and its value.
fn each(
    arrays: &[ArrayRef],
    mut f: impl FnMut(usize, Option<f64>) -> Result<(), FunctionError>,
) -> Result<()> {
    let Some(array) = arrays.first() else {
        return internal_err!("sum without an argument");
    };
    match array.data_type() {
        DataType::Float32 => {
            for (row, value) in array.as_primitive::<Float32Type>().iter().enumerate() {
                f(row, value.map(f64::from))?;
            }
        }
        DataType::Float64 => {
            for (row, value) in array.as_primitive::<Float64Type>().iter().enumerate() {
                f(row, value)?;
            }
        }
        other => return internal_err!("a float sum of {other}"),
    }
    Ok(())
}

/// One sum.
#[derive(Debug)]
pub struct One {
    sum: Option<f64>,
    precision: Precision,
}

impl One {
    /// Of no values.
    pub fn new(precision: Precision) -> Self {
        Self {
            sum: None,
            precision,
        }
    }
}

impl Accumulator for One {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        each(arrays, |_, value| {
            if let Some(value) = value {
                self.sum = Some(self.precision.add(self.sum, value)?);
            }
            Ok(())
        })
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.precision.scalar(self.sum))
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

/// The sum of a window that slides over the rows.
#[derive(Debug)]
pub struct Sliding {
    values: VecDeque<f64>,
    precision: Precision,
}

impl Sliding {
    /// Of no values.
    pub fn new(precision: Precision) -> Self {
        Self {
            values: VecDeque::new(),
            precision,
        }
    }
}

impl Accumulator for Sliding {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        each(arrays, |_, value| {
            self.values.extend(value);
            Ok(())
        })
    }

    fn retract_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        each(arrays, |_, value| {
            if value.is_some() {
                self.values.pop_front();
            }
            Ok(())
        })
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut sum = None;
        for value in &self.values {
            sum = Some(self.precision.add(sum, *value)?);
        }
        Ok(self.precision.scalar(sum))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<f64>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
}

/// A sum of distinct values, added in their order.
#[derive(Debug)]
pub struct Distinct {
    values: Vec<f64>,
    precision: Precision,
}

impl Distinct {
    /// Of no values.
    pub fn new(precision: Precision) -> Self {
        Self {
            values: Vec::new(),
            precision,
        }
    }

    fn settle(&mut self) {
        self.values.sort_by(f64::total_cmp);
        self.values
            .dedup_by(|a, b| a == b || (a.is_nan() && b.is_nan()));
    }
}

impl Accumulator for Distinct {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        let before = self.values.len();
        each(arrays, |_, value| {
            self.values.extend(value);
            Ok(())
        })?;
        if self.values.len() > before {
            self.settle();
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut sum = None;
        for value in &self.values {
            sum = Some(self.precision.add(sum, *value)?);
        }
        Ok(self.precision.scalar(sum))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<f64>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<ScalarValue> = self
            .values
            .iter()
            .map(|v| self.precision.scalar(Some(*v)))
            .collect();
        let list = ScalarValue::new_list_nullable(&values, &self.precision.data_type());
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
pub struct Groups {
    sums: Vec<Option<f64>>,
    precision: Precision,
}

impl Groups {
    /// Of no groups.
    pub fn new(precision: Precision) -> Self {
        Self {
            sums: Vec::new(),
            precision,
        }
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
        self.sums.resize(total_num_groups, None);
        each(arrays, |row, value| {
            let skipped = filter.is_some_and(|f| f.is_null(row) || !f.value(row));
            if let (false, Some(value)) = (skipped, value) {
                let sum = &mut self.sums[group_indices[row]];
                *sum = Some(self.precision.add(*sum, value)?);
            }
            Ok(())
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        Ok(self.precision.array(sums.into_iter()))
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
        Ok(vec![self.precision.array(kept.into_iter())])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<Option<f64>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn sum(mut of: impl Accumulator, values: Vec<Option<f32>>) -> Option<ScalarValue> {
        let array: ArrayRef = Arc::new(Float32Array::from(values));
        of.update_batch(&[array]).ok()?;
        of.evaluate().ok()
    }

    #[test]
    fn reals_add_in_single_precision() {
        let values = vec![Some(16_777_216.0), None, Some(1.0), Some(1.0)];
        assert_eq!(
            sum(One::new(Precision::Single), values),
            Some(ScalarValue::Float32(Some(16_777_216.0)))
        );
        assert_eq!(
            sum(One::new(Precision::Single), vec![None]),
            Some(ScalarValue::Float32(None))
        );
        let huge = vec![Some(f32::MAX), Some(f32::MAX)];
        assert_eq!(sum(One::new(Precision::Single), huge), None);
    }

    #[test]
    fn a_sliding_window_adds_what_is_left() {
        let mut sliding = Sliding::new(Precision::Double);
        let array = |v: Vec<f64>| -> ArrayRef { Arc::new(Float64Array::from(v)) };
        assert!(sliding.update_batch(&[array(vec![1e20, 1.0])]).is_ok());
        assert!(sliding.retract_batch(&[array(vec![1e20])]).is_ok());
        assert_eq!(
            sliding.evaluate().ok(),
            Some(ScalarValue::Float64(Some(1.0)))
        );
    }

    #[test]
    fn distinct_values_are_added_once() {
        let values = vec![Some(2.0), Some(2.0), Some(f32::NAN), Some(f32::NAN)];
        let Some(ScalarValue::Float32(Some(v))) = sum(Distinct::new(Precision::Single), values)
        else {
            panic!("no sum");
        };
        assert!(v.is_nan());
        let values = vec![Some(2.0), Some(2.0), Some(1.0)];
        assert_eq!(
            sum(Distinct::new(Precision::Single), values),
            Some(ScalarValue::Float32(Some(3.0)))
        );
    }
}
