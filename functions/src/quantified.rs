//! `x op ANY (array)` and `x op ALL (array)`, as `pg_any(x, array, 'op')` and
//! `pg_all(x, array, 'op')`: NULL for a NULL array, and where a NULL among the
//! elements could decide.

use crate::arith;
use crate::error::FunctionError;
use crate::float_arith::plain_zeros;
use crate::udf::{Function, arrays, field, result};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::kernels::cmp;
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use std::sync::Arc;

/// Name of `x op ANY (array)`.
pub const ANY: &str = "pg_any";
/// Name of `x op ALL (array)`.
pub const ALL: &str = "pg_all";

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let boolean = |_: &[DataType], _: &[Option<&datafusion::common::ScalarValue>]| {
        Ok(field(DataType::Boolean))
    };
    vec![
        Function::coerced(ANY, coerce, boolean, |a| quantified(a, false)),
        Function::coerced(ALL, coerce, boolean, |a| quantified(a, true)),
    ]
}

/// The type in which a value and the elements of an array are compared.
fn common(value: &DataType, element: &DataType) -> Option<DataType> {
    use DataType as D;
    let text = |t: &D| matches!(t, D::Utf8 | D::Utf8View | D::LargeUtf8);
    let bytes = |t: &D| matches!(t, D::Binary | D::BinaryView | D::LargeBinary);
    let day_or_time = |t: &D| matches!(t, D::Date32 | D::Timestamp(_, None));
    Some(match (value, element) {
        (D::Interval(_), _) | (_, D::Interval(_)) => return None,
        (a, b) if a == b => a.clone(),
        (D::Null, t) | (t, D::Null) => t.clone(),
        (a, b) if text(a) && text(b) => D::Utf8View,
        (a, b) if bytes(a) && bytes(b) => D::Binary,
        (a, b) if day_or_time(a) && day_or_time(b) => D::Timestamp(TimeUnit::Microsecond, None),
        (D::Float32, b) | (b, D::Float32) if arith::is_number(b) => D::Float64,
        (a, b) if arith::is_number(a) && arith::is_number(b) => {
            match arith::coerce(&[a.clone(), b.clone()]).ok()?.as_slice() {
                [D::Decimal128(p1, s1), D::Decimal128(p2, s2)] => {
                    let (_, scale) = crate::decimal::add_type(*p1, *s1, *p2, *s2);
                    D::Decimal128(crate::decimal::MAX_PRECISION, scale)
                }
                [one, _] => one.clone(),
                _ => return None,
            }
        }
        _ => return None,
    })
}

fn coerce(types: &[DataType]) -> Result<Vec<DataType>> {
    let [value, array, _] = types else {
        return plan_err!("a comparison with an array takes a value, an array and an operator");
    };
    let element = match array {
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            f.data_type().clone()
        }
        // A literal is read as an array of the type of the value.
        DataType::Null | DataType::Utf8 | DataType::Utf8View => value.clone(),
        _ => {
            return Err(FunctionError::new(
                "42809",
                "op ANY/ALL (array) requires array on right side",
            )
            .into());
        }
    };
    let Some(common) = common(value, &element) else {
        return plan_err!("operator does not exist: {value} = {element}");
    };
    let list = DataType::List(Arc::new(Field::new_list_field(common.clone(), true)));
    Ok(vec![common, list, DataType::Utf8])
}

fn quantified(args: &ScalarFunctionArgs, all: bool) -> Result<ColumnarValue> {
    let columns = arrays(args)?;
    let operator = match args.args.get(2) {
        Some(ColumnarValue::Scalar(op)) => op.try_as_str().flatten().unwrap_or_default(),
        _ => "",
    };
    let compare = match operator {
        "=" => cmp::eq,
        "<>" => cmp::neq,
        "<" => cmp::lt,
        "<=" => cmp::lt_eq,
        ">" => cmp::gt,
        ">=" => cmp::gt_eq,
        other => return plan_err!("operator {other} ANY/ALL (array) is not supported"),
    };
    let Some(lists) = columns[1].as_list_opt::<i32>() else {
        return plan_err!("op ANY/ALL (array) requires array on right side");
    };
    // Each value beside each element of its array.
    let mut rows = Vec::new();
    let mut ends = Vec::with_capacity(lists.len());
    let mut elements: Vec<ArrayRef> = Vec::with_capacity(lists.len());
    for row in 0..lists.len() {
        if lists.is_valid(row) {
            let values = lists.value(row);
            rows.resize(rows.len() + values.len(), row as u32);
            elements.push(values);
        }
        ends.push(rows.len());
    }
    let verdicts = if rows.is_empty() {
        BooleanArray::from(Vec::<bool>::new())
    } else {
        let elements: Vec<&dyn Array> = elements.iter().map(AsRef::as_ref).collect();
        let elements = plain_zeros(arrow::compute::concat(&elements)?);
        let values = plain_zeros(take(&columns[0], &UInt32Array::from(rows), None)?);
        compare(&values, &elements)?
    };
    let mut start = 0;
    let out: BooleanArray = ends
        .iter()
        .enumerate()
        .map(|(row, end)| {
            let mine = start..*end;
            start = *end;
            lists.is_valid(row).then(|| reduce(&verdicts, mine, all))?
        })
        .collect();
    result(args, Arc::new(out))
}

/// Three-valued OR, or AND, over a run of verdicts.
fn reduce(verdicts: &BooleanArray, run: std::ops::Range<usize>, all: bool) -> Option<bool> {
    let mut unknown = false;
    for at in run {
        match verdicts.is_valid(at).then(|| verdicts.value(at)) {
            Some(v) if v != all => return Some(v),
            Some(_) => {}
            None => unknown = true,
        }
    }
    (!unknown).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_leave_it_open_unless_another_element_decides() {
        let v = BooleanArray::from(vec![Some(false), None, Some(true)]);
        assert_eq!(reduce(&v, 0..3, false), Some(true));
        assert_eq!(reduce(&v, 0..2, false), None);
        assert_eq!(reduce(&v, 0..3, true), Some(false));
        assert_eq!(reduce(&v, 1..3, true), None);
        assert_eq!(reduce(&v, 0..0, true), Some(true));
        assert_eq!(reduce(&v, 0..0, false), Some(false));
    }
}
