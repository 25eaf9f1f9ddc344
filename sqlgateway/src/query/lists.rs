//! Lists and constants as the optimizer may compare them. Where it merges two conditions
//! on one column (`x IN (1, 2) AND x NOT IN (2, 3)`), it takes expressions that are not
//! the same for values that are not equal. That is so for constants of one form; it is
//! not for parameters, columns, constants that carry a type's name, and the two zeros
//! of floats.

use super::equality::with_both_zeros;
use super::operators::is_comparison;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{BinaryExpr, Cast, InList};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};

/// What a plan or an expression holds of lists.
#[derive(Default)]
struct Lists {
    /// Lists, and what may become one.
    all: usize,
    /// Lists with something else than constants.
    open: usize,
}

impl Lists {
    /// Looks through a condition, one conjunct after the other. A conjunct that is more than one test may become a
    /// list in the optimizer, whatever joins its tests: `x = 1 OR x = 2`, `NOT (x <> 1 AND x <> 2)`, a CASE.
    fn count(&mut self, expr: &Expr) -> Result<()> {
        if let Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::And,
            right,
        }) = expr
        {
            self.count(left)?;
            return self.count(right);
        }
        let mut tests = 0;
        expr.apply(|e| {
            match e {
                Expr::InList(list) => {
                    self.all += 1;
                    self.open += usize::from(is_open(list));
                }
                // `f = 0` becomes a list in here.
                Expr::BinaryExpr(BinaryExpr {
                    left,
                    op: Operator::Eq,
                    right,
                }) if is_float(left) || is_float(right) => self.all += 1,
                Expr::BinaryExpr(BinaryExpr { op, .. }) if is_comparison(*op) => tests += 1,
                Expr::BinaryExpr(BinaryExpr {
                    op: Operator::And | Operator::Or,
                    ..
                })
                | Expr::Case(_) => tests += 2,
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        self.all += usize::from(tests > 1);
        Ok(())
    }

    /// Two of them might be merged wrongly.
    fn may_meet(&self) -> bool {
        self.open > 0 && self.all > 1
    }
}

/// A constant that is a float, or is about to be.
fn is_float(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => value.data_type().is_floating(),
        Expr::Cast(cast) => cast.field.data_type().is_floating(),
        _ => false,
    }
}

fn is_open(list: &InList) -> bool {
    !list.list.iter().all(|e| matches!(e, Expr::Literal(..)))
}

/// Makes the conditions of a plan safe to be merged.
pub fn settle_plan(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut lists = Lists::default();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            lists.count(expr)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    let open = lists.may_meet();
    let settled = plan.transform_up_with_subqueries(|plan| {
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let settled = settle(expr, open)?;
            Ok(match settled.transformed {
                true => Transformed::yes(name.restore(settled.data)),
                false => settled,
            })
        })
    })?;
    Ok(settled.data)
}

/// The same for an expression alone.
pub fn settle_expr(expr: Expr) -> Result<Expr> {
    let mut lists = Lists::default();
    lists.count(&expr)?;
    Ok(settle(expr, lists.may_meet())?.data)
}

fn settle(expr: Expr, open: bool) -> Result<Transformed<Expr>> {
    expr.transform_up(|e| match e {
        // What gives another value each time is asked once.
        Expr::InList(list) if open && is_open(&list) && !list.expr.is_volatile() => {
            Ok(Transformed::yes(written_out(list)))
        }
        Expr::InList(mut list) => {
            let before = list.list.clone();
            list.list = before.iter().cloned().map(bare).collect();
            let changed = list.list != before;
            let list = Expr::InList(list);
            Ok(match changed {
                true => Transformed::yes(list),
                false => Transformed::no(list),
            })
        }
        Expr::BinaryExpr(compared) if is_comparison(compared.op) => compare(compared),
        other => Ok(Transformed::no(other)),
    })
}

/// A comparison with bare constants; one with zero as a list of both.
fn compare(compared: BinaryExpr) -> Result<Transformed<Expr>> {
    let BinaryExpr { left, op, right } = compared;
    let before = (left.clone(), right.clone());
    let (left, right) = (bare(*left), bare(*right));
    let changed = (&left, &right) != (before.0.as_ref(), before.1.as_ref());
    if op == Operator::Eq {
        let (column, constant) = match (&left, &right) {
            (Expr::Column(_), constant) => (&left, constant),
            (constant, Expr::Column(_)) => (&right, constant),
            _ => (&left, &left),
        };
        let mut zeros = vec![constant.clone()];
        with_both_zeros(&mut zeros);
        if zeros.len() == 2 {
            let list = InList::new(Box::new(column.clone()), zeros, false);
            return Ok(Transformed::yes(Expr::InList(list)));
        }
    }
    let compared = Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)));
    Ok(match changed {
        true => Transformed::yes(compared),
        false => Transformed::no(compared),
    })
}

/// A constant without the name of its type, which the other side has; as a float, where
/// it becomes one.
fn bare(expr: Expr) -> Expr {
    match expr {
        Expr::Literal(value, Some(_)) => Expr::Literal(value, None),
        Expr::Cast(Cast { expr, field }) if field.data_type().is_floating() => match *expr {
            Expr::Literal(value, m) => match value.cast_to(field.data_type()) {
                Ok(float) => Expr::Literal(float, None),
                Err(_) => Expr::Cast(Cast::new_from_field(
                    Box::new(Expr::Literal(value, m)),
                    field,
                )),
            },
            other => Expr::Cast(Cast::new_from_field(Box::new(other), field)),
        },
        other => other,
    }
}

/// `x IN (a, b, ...)` as a balanced tree of comparisons.
fn written_out(list: InList) -> Expr {
    let (op, joined) = match list.negated {
        false => (Operator::Eq, Operator::Or),
        true => (Operator::NotEq, Operator::And),
    };
    let mut tests: Vec<Expr> = list
        .list
        .into_iter()
        .map(|item| {
            let value = list.expr.clone();
            Expr::BinaryExpr(BinaryExpr::new(value, op, Box::new(item)))
        })
        .collect();
    while tests.len() > 1 {
        let mut pairs = tests.into_iter();
        let mut joined_pairs = Vec::new();
        while let Some(left) = pairs.next() {
            joined_pairs.push(match pairs.next() {
                Some(right) => {
                    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), joined, Box::new(right)))
                }
                None => left,
            });
        }
        tests = joined_pairs;
    }
    tests.pop().unwrap_or(Expr::Literal(
        ScalarValue::Boolean(Some(list.negated)),
        None,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::common::metadata::FieldMetadata;
    use datafusion::logical_expr::{col, lit, placeholder};
    use std::collections::HashMap;

    fn list(items: Vec<Expr>, negated: bool) -> Expr {
        Expr::InList(InList::new(Box::new(col("x")), items, negated))
    }

    #[test]
    fn lists_of_parameters_are_written_out_where_two_meet() {
        let one = list(vec![placeholder("$1"), placeholder("$2")], false);
        assert_eq!(settle_expr(one.clone()).expect("one"), one);
        let two = one.and(list(vec![placeholder("$3")], true));
        let equal = |id: &str| col("x").eq(placeholder(id));
        let expected = equal("$1")
            .or(equal("$2"))
            .and(col("x").not_eq(placeholder("$3")));
        assert_eq!(settle_expr(two).expect("two"), expected);
        let open = list(vec![placeholder("$1"), placeholder("$2")], false);
        let written = equal("$1").or(equal("$2"));
        let choice = col("x").eq(lit(1)).or(col("x").eq(lit(2)));
        let settled = settle_expr(choice.clone().and(open.clone())).expect("a choice");
        assert_eq!(settled, choice.and(written.clone()));
        let other = col("x").not_eq(lit(1)).and(col("x").not_eq(lit(2)));
        let plain = other.clone().and(open.clone());
        assert_eq!(settle_expr(plain.clone()).expect("plain tests"), plain);
        let negated = Expr::Not(Box::new(other));
        let settled = settle_expr(negated.clone().and(open.clone())).expect("a negation");
        assert_eq!(settled, negated.and(written.clone()));
        let zeros = list(vec![lit(0.0), lit(-0.0)], false);
        let settled = settle_expr(col("x").eq(lit(0.0)).and(open)).expect("a zero");
        assert_eq!(settled, zeros.and(written));
    }

    #[test]
    fn constants_have_one_form() {
        let metadata = FieldMetadata::from(HashMap::from([("k".to_owned(), "v".to_owned())]));
        let named = Expr::Literal(ScalarValue::Int32(Some(1)), Some(metadata));
        let settled = settle_expr(list(vec![lit(1), named.clone()], false)).expect("a list");
        assert_eq!(settled, list(vec![lit(1), lit(1)], false));
        let settled = settle_expr(col("x").not_eq(named)).expect("a comparison");
        assert_eq!(settled, col("x").not_eq(lit(1)));
        let settled = settle_expr(lit(-0.0).eq(col("x"))).expect("zero");
        assert_eq!(settled, list(vec![lit(-0.0), lit(0.0)], false));
    }
}
