//! `x op ANY (array)` and `ALL`: types, and lists of values out of arrays that
//! are known, so that `id = ANY ($1)` finds its rows by key.

use super::casts::convert;
use super::equality::with_both_zeros;
use super::errors::carry;
use crate::error::SqlError;
use crate::settings::Settings;
use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Cast, InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
use lineradb_common::sql::SqlType;
use lineradb_functions::quantified::{ALL, ANY};

/// True for the comparison of a value with an array.
pub fn is_quantified(function: &ScalarFunction) -> bool {
    matches!(function.name(), ANY | ALL) && function.args.len() == 3
}

fn is_untyped_text(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(v, None)
        if matches!(v.data_type(), DataType::Utf8 | DataType::Utf8View) && !v.is_null())
}

/// Gives the untyped side the type that the other one asks for.
pub fn of_quantified(
    function: &mut ScalarFunction,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<()> {
    let sql_type =
        |e: &Expr| -> Result<SqlType> { Ok(SqlType::from_field(&e.to_field(schema)?.1)) };
    let (value, array) = (sql_type(&function.args[0])?, sql_type(&function.args[1])?);
    if is_untyped_text(&function.args[1]) {
        let bare = std::mem::take(&mut function.args[1]);
        let target = SqlType::Array(value.oid());
        function.args[1] = convert(bare, SqlType::Text, target, settings)?;
    } else if is_untyped_text(&function.args[0])
        && let Some(element) = array.element()
        && !element.is_text()
    {
        let bare = std::mem::take(&mut function.args[0]);
        function.args[0] = convert(bare, SqlType::Text, element, settings)?;
    }
    let array = sql_type(&function.args[1])?;
    if !matches!(array, SqlType::Array(_)) && !function.args[1].get_type(schema)?.is_null() {
        return Err(carry(SqlError::new(
            "42809",
            "op ANY/ALL (array) requires array on right side",
        )));
    }
    if value == SqlType::Interval {
        return Err(carry(SqlError::unsupported(
            "a comparison of intervals with an array",
        )));
    }
    Ok(())
}

/// True when a plan compares with arrays that are not known yet.
pub fn has_quantified(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found |=
                expr.exists(|e| Ok(matches!(e, Expr::ScalarFunction(f) if is_quantified(f))))?;
            Ok(match found {
                true => TreeNodeRecursion::Stop,
                false => TreeNodeRecursion::Continue,
            })
        })
    })?;
    Ok(found)
}

/// Makes lists out of arrays that are known.
pub fn expand(plan: LogicalPlan) -> Result<LogicalPlan> {
    let expanded = plan.transform_up_with_subqueries(|plan| {
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let listed = expr.transform_up(|e| match e {
                Expr::ScalarFunction(f) if is_quantified(&f) => as_list(f),
                other => Ok(Transformed::no(other)),
            })?;
            Ok(match listed.transformed {
                true => Transformed::yes(name.restore(listed.data)),
                false => listed,
            })
        })
    })?;
    Ok(expanded.data)
}

/// `x = ANY (array)` as `x IN (...)`, and `x <> ALL (array)` as its negation.
fn as_list(mut function: ScalarFunction) -> Result<Transformed<Expr>> {
    let operator = match &function.args[2] {
        Expr::Literal(op, _) => op.try_as_str().flatten().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let negated = match (function.name(), operator.as_str()) {
        (ANY, "=") => false,
        (ALL, "<>") => true,
        _ => return Ok(Transformed::no(Expr::ScalarFunction(function))),
    };
    let Some(elements) = elements(&function.args[1])? else {
        return Ok(Transformed::no(Expr::ScalarFunction(function)));
    };
    if elements.is_empty() {
        return Ok(Transformed::yes(Expr::Literal(negated.into(), None)));
    }
    let literals = elements.into_iter().map(|v| Expr::Literal(v, None));
    let mut list: Vec<Expr> = literals.collect();
    with_both_zeros(&mut list);
    let value = Box::new(function.args.swap_remove(0));
    Ok(Transformed::yes(Expr::InList(InList::new(
        value, list, negated,
    ))))
}

/// The elements of a constant array that is not NULL.
fn elements(array: &Expr) -> Result<Option<Vec<ScalarValue>>> {
    match array {
        Expr::Literal(ScalarValue::List(list), _) if list.len() == 1 && list.is_valid(0) => {
            let values = list.as_ref().value(0);
            if values.as_list_opt::<i32>().is_some() {
                return Ok(None);
            }
            (0..values.len())
                .map(|i| ScalarValue::try_from_array(&values, i))
                .collect::<Result<Vec<_>>>()
                .map(Some)
        }
        Expr::Cast(Cast { expr, field }) => {
            let DataType::List(item) = field.data_type() else {
                return Ok(None);
            };
            match elements(expr)? {
                Some(values) => values
                    .into_iter()
                    .map(|v| v.cast_to(item.data_type()))
                    .collect::<Result<Vec<_>>>()
                    .map(Some),
                None => Ok(None),
            }
        }
        _ => Ok(None),
    }
}
