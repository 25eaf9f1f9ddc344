//! Values that PostgreSQL takes for equal and the engine tells apart: `-0` and `0`, and
//! intervals of one length (`1 mon` and `30 days`). Comparisons of two values are right
//! by themselves (Arrow compares floats so, intervals are compared by their length);
//! here are the places that sort, group or look values up by their bits.

use super::errors::carry;
use super::semantics::{call, is_interval, type_of};
use crate::error::SqlError;
use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{AggregateFunction, InList, WindowFunction};
use datafusion::logical_expr::{
    Distinct, DistinctOn, Expr, LogicalPlan, WindowFrameBound, WindowFrameUnits,
};
use lineradb_functions::float_arith::PLAIN_ZERO;

/// Intervals of the same length are one group, whatever they are made of: the engine
/// would tell `1 mon` and `30 days` apart. (Groups of floats it makes rightly.)
pub fn refuse_equal_intervals(plan: &LogicalPlan) -> Result<()> {
    let interval =
        |e: &Expr, schema: &DFSchema| matches!(type_of(e, schema), Ok(t) if is_interval(&t));
    let found = match plan {
        LogicalPlan::Aggregate(aggregate) => {
            let schema = aggregate.input.schema();
            let distinct = |e: &Expr| match e {
                Expr::AggregateFunction(f) => {
                    f.params.distinct && f.params.args.iter().any(|a| interval(a, schema))
                }
                _ => false,
            };
            aggregate.group_expr.iter().any(|e| interval(e, schema))
                || aggregate.aggr_expr.iter().any(distinct)
        }
        LogicalPlan::Distinct(distinct) => {
            let fields = distinct.input().schema().fields();
            fields.iter().any(|f| is_interval(f.data_type()))
        }
        _ => false,
    };
    match found {
        true => Err(carry(SqlError::unsupported(
            "GROUP BY or DISTINCT over intervals",
        ))),
        false => Ok(()),
    }
}

/// What a value is sorted by: the length of an interval, a float without the sign of
/// its zero.
fn sort_key(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let is_key = matches!(&expr, Expr::ScalarFunction(f)
        if matches!(f.name(), "pg_interval_span" | PLAIN_ZERO));
    let t = type_of(&expr, schema)?;
    if is_interval(&t) {
        call("pg_interval_span", vec![expr])
    } else if t.is_floating() && !is_key {
        call(PLAIN_ZERO, vec![expr])
    } else {
        Ok(expr)
    }
}

/// A sort by [`sort_key`]s, also of what DISTINCT ON takes the first of.
pub fn sorted(mut plan: LogicalPlan) -> Result<LogicalPlan> {
    let (by, input) = match &mut plan {
        LogicalPlan::Sort(sort) => (&mut sort.expr, &sort.input),
        LogicalPlan::Distinct(Distinct::On(DistinctOn {
            on_expr,
            sort_expr: Some(by),
            input,
            ..
        })) => {
            for key in on_expr {
                *key = sort_key(std::mem::take(key), input.schema())?;
            }
            (by, &*input)
        }
        _ => return Ok(plan),
    };
    for by in by {
        let bare = std::mem::take(&mut by.expr);
        by.expr = sort_key(bare, input.schema())?;
    }
    Ok(plan)
}

/// A window function over partitions and an order by [`sort_key`]s.
///
/// # Errors
/// 0A000 for a frame of intervals around an interval: they are no longer of one type.
pub fn windowed(mut window: WindowFunction, schema: &DFSchema) -> Result<WindowFunction> {
    let params = &mut window.params;
    let distance = |bound: &WindowFrameBound| matches!(bound, WindowFrameBound::Preceding(v) | WindowFrameBound::Following(v) if !v.is_null());
    let frame = &params.window_frame;
    let by_distance = frame.units == WindowFrameUnits::Range
        && (distance(&frame.start_bound) || distance(&frame.end_bound));
    for by in &mut params.order_by {
        let bare = std::mem::take(&mut by.expr);
        if by_distance && is_interval(&type_of(&bare, schema)?) {
            return Err(carry(SqlError::unsupported(
                "RANGE with an offset over intervals",
            )));
        }
        by.expr = sort_key(bare, schema)?;
    }
    for by in &mut params.partition_by {
        let bare = std::mem::take(by);
        *by = sort_key(bare, schema)?;
    }
    Ok(window)
}

/// An aggregate over rows in an order by [`sort_key`]s, and over distinct floats.
pub fn aggregated(
    mut aggregate: AggregateFunction,
    schema: &DFSchema,
) -> Result<AggregateFunction> {
    let params = &mut aggregate.params;
    if params.distinct {
        for arg in &mut params.args {
            if type_of(arg, schema)?.is_floating() {
                *arg = plain_zero(std::mem::take(arg))?;
            }
        }
    }
    // WITHIN GROUP says what to aggregate.
    if !aggregate.func.supports_within_group_clause() {
        for by in &mut params.order_by {
            let bare = std::mem::take(&mut by.expr);
            by.expr = sort_key(bare, schema)?;
        }
    }
    Ok(aggregate)
}

/// A float without the sign of its zero.
pub fn plain_zero(expr: Expr) -> Result<Expr> {
    match expr {
        Expr::Literal(ScalarValue::Float64(Some(v)), m) => {
            Ok(Expr::Literal(ScalarValue::Float64(Some(v + 0.0)), m))
        }
        Expr::Literal(ScalarValue::Float32(Some(v)), m) => {
            Ok(Expr::Literal(ScalarValue::Float32(Some(v + 0.0)), m))
        }
        other => call(PLAIN_ZERO, vec![other]),
    }
}

/// A list of floats that holds one zero holds the other.
pub fn with_both_zeros(list: &mut Vec<Expr>) {
    let is = |e: &Expr, single: f32, double: f64| match e {
        Expr::Literal(ScalarValue::Float64(Some(v)), _) => v.to_bits() == double.to_bits(),
        Expr::Literal(ScalarValue::Float32(Some(v)), _) => v.to_bits() == single.to_bits(),
        _ => false,
    };
    let zero = list.iter().find(|e| is(e, 0.0, 0.0));
    let minus = list.iter().find(|e| is(e, -0.0, -0.0));
    let one = match (zero, minus) {
        (Some(one), None) | (None, Some(one)) => one,
        _ => return,
    };
    let other = match one {
        Expr::Literal(ScalarValue::Float64(Some(v)), m) => {
            Expr::Literal(ScalarValue::Float64(Some(-v)), m.clone())
        }
        Expr::Literal(ScalarValue::Float32(Some(v)), m) => {
            Expr::Literal(ScalarValue::Float32(Some(-v)), m.clone())
        }
        _ => return,
    };
    list.push(other);
}

/// `x IN (list)`, which looks values up by their bits.
pub fn of_list(mut list: InList, schema: &DFSchema) -> Result<InList> {
    let t = type_of(&list.expr, schema)?;
    if is_interval(&t) {
        list.expr = Box::new(comparable(*list.expr, schema)?);
        for item in &mut list.list {
            *item = comparable(std::mem::take(item), schema)?;
        }
        return Ok(list);
    }
    let mut has_floats = t.is_floating();
    for item in &list.list {
        has_floats |= type_of(item, schema)?.is_floating();
    }
    if !has_floats {
        return Ok(list);
    }
    for item in &mut list.list {
        let whole = match item {
            Expr::Literal(ScalarValue::Int32(Some(v)), _) => i64::from(*v),
            Expr::Literal(ScalarValue::Int64(Some(v)), _) => *v,
            _ => continue,
        };
        let float = match t {
            DataType::Float32 => ScalarValue::Float32(Some(whole as f32)),
            DataType::Float64 => ScalarValue::Float64(Some(whole as f64)),
            _ => continue,
        };
        *item = Expr::Literal(float, None);
    }
    let constants = list.list.iter().all(|e| matches!(e, Expr::Literal(..)));
    if constants && t.is_floating() && list.expr.any_column_refs() {
        // Bare columns are what keys of tables and indexes are found by.
        with_both_zeros(&mut list.list);
        return Ok(list);
    }
    list.expr = Box::new(comparable(*list.expr, schema)?);
    for item in &mut list.list {
        *item = comparable(std::mem::take(item), schema)?;
    }
    Ok(list)
}

/// A value in the form in which it has the bits of all that equal it.
pub fn comparable(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let t = type_of(&expr, schema)?;
    if is_interval(&t) {
        call("pg_interval_span", vec![expr])
    } else if t.is_floating() {
        plain_zero(expr)
    } else {
        Ok(expr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Field;
    use datafusion::logical_expr::{col, lit};
    use std::collections::HashMap;

    #[test]
    fn a_list_with_one_zero_holds_both() {
        let mut list = vec![lit(1.5), lit(-0.0)];
        with_both_zeros(&mut list);
        assert_eq!(list, vec![lit(1.5), lit(-0.0), lit(0.0)]);
        with_both_zeros(&mut list);
        assert_eq!(list.len(), 3);
        let mut list = vec![lit(1.5)];
        with_both_zeros(&mut list);
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn columns_stay_bare_in_lists_of_constants() {
        let list = |expr, list| InList::new(Box::new(expr), list, false);
        let field = Field::new("d", DataType::Float64, true);
        let schema = DFSchema::from_unqualified_fields(vec![field].into(), HashMap::new());
        let schema = schema.expect("a schema");
        let found = of_list(list(col("d"), vec![lit(0), lit(2)]), &schema).expect("a list");
        assert_eq!(found, list(col("d"), vec![lit(0.0), lit(2.0), lit(-0.0)]));
        let found = of_list(list(lit(-0.0), vec![lit(0.0)]), &schema).expect("a list");
        assert_eq!(found, list(lit(0.0), vec![lit(0.0)]));
    }
}
