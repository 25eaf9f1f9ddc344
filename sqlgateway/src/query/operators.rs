//! The rule of the pass before coercion, for one expression: operators become
//! checked functions, untyped literals take the type of what they meet, and what
//! PostgreSQL has no operator for is refused.

use super::arrays::{is_quantified, of_quantified};
use super::casts::{cast_to, explicit_cast};
use super::common_type::{self, Purpose, unify};
use super::correlated;
use super::equality;
use super::errors::carry;
use super::semantics::{call, is_interval, is_text, is_untyped, sql_type_of, type_of};
use super::temporal::{temporal_arithmetic, zoned_function};
use super::untyped::{class, is_text_literal, literal_as};
use crate::error::SqlError;
use crate::settings::Settings;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::functions::expr_fn;
use datafusion::logical_expr::expr::{Between, BinaryExpr, InList, ScalarFunction, WindowFunction};
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, lit, when,
};
use lineradb_common::sql::SqlType;
use lineradb_functions::arith::is_number;
use std::sync::Arc;

pub(super) fn operator(
    expr: Expr,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    match expr {
        // Not what PostgreSQL types 1 as.
        Expr::Literal(ScalarValue::Int64(Some(v)), m) => Ok(match i32::try_from(v) {
            Ok(v) => Transformed::yes(Expr::Literal(ScalarValue::Int32(Some(v)), m)),
            Err(_) => Transformed::no(Expr::Literal(ScalarValue::Int64(Some(v)), m)),
        }),
        Expr::Literal(ScalarValue::UInt64(Some(v)), m) => Ok(Transformed::yes(Expr::Literal(
            ScalarValue::Decimal128(Some(i128::from(v)), 20, 0),
            m,
        ))),
        Expr::Negative(inner) => {
            let t = type_of(&inner, schema)?;
            if is_interval(&t) {
                Ok(Transformed::yes(call("pg_interval_neg", vec![*inner])?))
            } else {
                Ok(Transformed::yes(call("pg_neg", vec![*inner])?))
            }
        }
        Expr::Cast(cast) => explicit_cast(cast, schema, settings),
        Expr::Case(case) => common_type::of_case(case, schema, settings),
        Expr::InSubquery(compared) => {
            correlated::check_in(&compared)?;
            common_type::of_in_subquery(compared, schema, settings)
        }
        Expr::Exists(exists) => Ok(Transformed::yes(correlated::of_exists(exists)?)),
        Expr::ScalarSubquery(subquery) => nullable_subquery(subquery),
        Expr::BinaryExpr(binary) => binary_operator(binary, schema, settings),
        Expr::InList(InList {
            expr,
            list,
            negated,
        }) => {
            let target = sql_type_of(&expr, schema)?;
            let mut list = list
                .into_iter()
                .map(|e| typed(e, &expr, target, settings))
                .collect::<Result<Vec<_>>>()?;
            let mut expr = expr;
            let mut compared: Vec<&mut Expr> = list.iter_mut().collect();
            compared.push(&mut expr);
            // One value is compared as `=` does, more as an array of one type.
            let purpose = match compared.len() {
                0..=2 => Purpose::Compare,
                _ => Purpose::Result,
            };
            unify(&mut compared, schema, settings, purpose)?;
            let list = equality::of_list(InList::new(expr, list, negated), schema)?;
            Ok(Transformed::yes(Expr::InList(list)))
        }
        Expr::Between(Between {
            expr,
            negated,
            low,
            high,
        }) => {
            let target = sql_type_of(&expr, schema)?;
            let mut low = typed(*low, &expr, target, settings)?;
            let mut high = typed(*high, &expr, target, settings)?;
            let mut expr = expr;
            let mut compared = [expr.as_mut(), &mut low, &mut high];
            unify(&mut compared, schema, settings, Purpose::Compare)?;
            let (expr, low, high) = if target == SqlType::Interval {
                (
                    Box::new(call("pg_interval_span", vec![*expr])?),
                    call("pg_interval_span", vec![low])?,
                    call("pg_interval_span", vec![high])?,
                )
            } else {
                (expr, low, high)
            };
            Ok(Transformed::yes(Expr::Between(Between {
                expr,
                negated,
                low: Box::new(low),
                high: Box::new(high),
            })))
        }
        Expr::Like(mut like) => {
            let t = type_of(&like.expr, schema)?;
            if is_text(&t) || t.is_null() {
                like.expr = Box::new(padded(*like.expr, schema)?);
                Ok(Transformed::yes(Expr::Like(like)))
            } else {
                Err(no_operator("~~", &t, &DataType::Utf8))
            }
        }
        Expr::AggregateFunction(aggregate) => Ok(Transformed::yes(Expr::AggregateFunction(
            equality::aggregated(aggregate, schema)?,
        ))),
        Expr::WindowFunction(window) => {
            check_default(&window, schema)?;
            let window = equality::windowed(*window, schema)?;
            Ok(Transformed::yes(Expr::WindowFunction(Box::new(window))))
        }
        Expr::ScalarFunction(mut function) => {
            if function.name() == "nullif" {
                return common_type::of_nullif(function, schema, settings);
            }
            common_type::of_function(&mut function, schema, settings)?;
            if is_quantified(&function) {
                of_quantified(&mut function, schema, settings)?;
                return Ok(Transformed::yes(Expr::ScalarFunction(function)));
            }
            shown_values(&mut function, schema, settings)?;
            let name = function.func.clone();
            match (name.name(), &mut function.args[..]) {
                // There is one for points in time in the session's zone, and one without.
                ("date_trunc", [_, date]) if type_of(date, schema)? == DataType::Date32 => {
                    let bare = std::mem::take(date);
                    *date = cast_to(bare, SqlType::Date, SqlType::TimestampTz, settings)?;
                }
                ("to_hex", [number]) if type_of(number, schema)? == DataType::Int32 => {
                    let wide = number.clone().cast_to(&DataType::Int64, schema)?;
                    *number = {
                        let mask = Box::new(lit(0xffff_ffff_i64));
                        Expr::BinaryExpr(BinaryExpr::new(
                            Box::new(wide),
                            Operator::BitwiseAnd,
                            mask,
                        ))
                    };
                }
                _ => {}
            }
            zoned_function(function, schema, settings)
        }
        other => Ok(Transformed::no(other)),
    }
}

/// The default of `lag` and `lead`, which the engine would cut to the type of the value.
fn check_default(window: &WindowFunction, schema: &DFSchema) -> Result<()> {
    let (name, args) = (window.fun.name(), &window.params.args);
    let ("lag" | "lead", [value, _, default]) = (name, &args[..]) else {
        return Ok(());
    };
    let (t, of_default) = (type_of(value, schema)?, type_of(default, schema)?);
    let fits = match (&t, &of_default) {
        (a, b) if a == b || b.is_null() || is_untyped(default) => true,
        (a, b) if a.is_integer() && b.is_integer() => a.primitive_width() >= b.primitive_width(),
        (DataType::Float64, b) => b.is_numeric(),
        (DataType::Decimal128(p, s), DataType::Decimal128(q, r)) => {
            s >= r && i32::from(*p) - i32::from(*s) >= i32::from(*q) - i32::from(*r)
        }
        (DataType::Decimal128(..), b) => b.is_integer(),
        (a, b) => is_text(a) && is_text(b),
    };
    match fits {
        true => Ok(()),
        false => Err(carry(
            SqlError::unsupported(format!("a default of another type in {name}"))
                .with_hint("Cast the value and the default to one type."),
        )),
    }
}

/// A scalar subquery may find no row: its value is NULL then, also over a column
/// that is never NULL.
fn nullable_subquery(subquery: Subquery) -> Result<Transformed<Expr>> {
    fn has_one_row(plan: &LogicalPlan) -> bool {
        match plan {
            LogicalPlan::Projection(p) => has_one_row(&p.input),
            LogicalPlan::SubqueryAlias(a) => has_one_row(&a.input),
            LogicalPlan::Aggregate(a) => a.group_expr.is_empty(),
            LogicalPlan::EmptyRelation(e) => e.produce_one_row,
            _ => false,
        }
    }
    let plan = &subquery.subquery;
    let [column] = &plan.schema().columns()[..] else {
        return Ok(Transformed::no(Expr::ScalarSubquery(subquery)));
    };
    if plan.schema().field(0).is_nullable() || has_one_row(plan) {
        return Ok(Transformed::no(Expr::ScalarSubquery(subquery)));
    }
    let value = call("pg_nullable", vec![Expr::Column(column.clone())])?
        .alias_qualified(column.relation.clone(), column.name.clone());
    let plan = LogicalPlanBuilder::from(plan.as_ref().clone()).project([value])?;
    Ok(Transformed::yes(Expr::ScalarSubquery(
        subquery.with_plan(Arc::new(plan.build()?)),
    )))
}

/// Patterns see the blanks of a `char(n)`, which are not stored.
fn padded(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    Ok(match sql_type_of(&expr, schema)? {
        SqlType::Char(n) => expr_fn::rpad(vec![expr, lit(i64::from(n))]),
        _ => expr,
    })
}

/// What builds texts of any values shows booleans as `t` and `f` (a cast to text
/// says `true`), and everything else as PostgreSQL writes it.
fn shown_values(
    function: &mut ScalarFunction,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<()> {
    let name = function.name().to_owned();
    match name.as_str() {
        "concat" | "concat_ws" | "format" => {}
        "array_to_string" | "list_to_string" | "array_join" | "list_join" => {
            let elements = function.args.first().map(|a| type_of(a, schema));
            let simple = match elements.transpose()? {
                Some(DataType::List(element)) => {
                    let t = element.data_type();
                    is_text(t) || t.is_integer() || t.is_null()
                }
                _ => true,
            };
            if !simple {
                return Err(carry(SqlError::unsupported(format!(
                    "{name} of an array of anything but texts and integers"
                ))));
            }
            return Ok(());
        }
        _ => return Ok(()),
    }
    for arg in &mut function.args {
        let t = type_of(arg, schema)?;
        if t == DataType::Boolean {
            let bare = std::mem::take(arg);
            *arg = when(bare.clone(), lit("t"))
                .when(Expr::Not(Box::new(bare)), lit("f"))
                .end()?;
        } else if matches!(t, DataType::List(_)) && name != "format" {
            return Err(carry(SqlError::unsupported(format!("{name} of an array"))));
        } else if !is_text(&t) && !t.is_null() && !t.is_integer() && !matches!(t, DataType::List(_))
        {
            let bare = std::mem::take(arg);
            *arg = as_text(bare, schema, settings)?;
        }
    }
    Ok(())
}

pub(super) fn no_operator(
    op: &str,
    left: &DataType,
    right: &DataType,
) -> datafusion::error::DataFusionError {
    let name = |t: &DataType| SqlType::from_arrow(t).name();
    carry(
        SqlError::new(
            "42883",
            format!(
                "operator does not exist: {} {op} {}",
                name(left),
                name(right)
            ),
        )
        .with_hint("You might need to add explicit type casts."),
    )
}

/// An untyped literal takes the type of what it is compared with.
pub(super) fn typed(
    expr: Expr,
    other: &Expr,
    target: SqlType,
    settings: &Settings,
) -> Result<Expr> {
    if let (true, SqlType::Char(_)) = (is_text_literal(&expr), target) {
        return Ok(without_blanks(expr));
    }
    if !is_text_literal(&expr) || is_untyped(other) || matches!(target, SqlType::Array(_)) {
        return Ok(expr);
    }
    literal_as(expr, target, settings)
}

/// A text literal as a value of `char(n)`: blanks at its end do not count.
fn without_blanks(expr: Expr) -> Expr {
    let trim = |s: &str| Some(s.trim_end_matches(' ').to_owned());
    match expr {
        Expr::Literal(ScalarValue::Utf8(Some(s)), m) => {
            Expr::Literal(ScalarValue::Utf8(trim(&s)), m)
        }
        Expr::Literal(ScalarValue::Utf8View(Some(s)), m) => {
            Expr::Literal(ScalarValue::Utf8View(trim(&s)), m)
        }
        other => other,
    }
}

pub(super) fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

fn is_pattern(op: Operator) -> bool {
    matches!(
        op,
        Operator::LikeMatch
            | Operator::ILikeMatch
            | Operator::NotLikeMatch
            | Operator::NotILikeMatch
            | Operator::RegexMatch
            | Operator::RegexIMatch
            | Operator::RegexNotMatch
            | Operator::RegexNotIMatch
    )
}

pub(super) fn binary_operator(
    binary: BinaryExpr,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    let BinaryExpr { left, op, right } = binary;
    let (lt, rt) = (type_of(&left, schema)?, type_of(&right, schema)?);
    if is_comparison(op) {
        let (ls, rs) = (sql_type_of(&left, schema)?, sql_type_of(&right, schema)?);
        let mut new_left = typed(*left.clone(), &right, rs, settings)?;
        let mut new_right = typed(*right.clone(), &left, ls, settings)?;
        if new_left == *left && new_right == *right {
            comparable(op, &new_left, &lt, ls, &new_right, &rt, rs)?;
        }
        let mut compared = [&mut new_left, &mut new_right];
        unify(&mut compared, schema, settings, Purpose::Compare)?;
        let interval =
            is_interval(&type_of(&new_left, schema)?) && is_interval(&type_of(&new_right, schema)?);
        let (new_left, new_right) = if interval {
            (
                call("pg_interval_span", vec![new_left])?,
                call("pg_interval_span", vec![new_right])?,
            )
        } else {
            (new_left, new_right)
        };
        return Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(
            Box::new(new_left),
            op,
            Box::new(new_right),
        ))));
    }
    let name = match op {
        Operator::Plus => "pg_add",
        Operator::Minus => "pg_sub",
        Operator::Multiply => "pg_mul",
        Operator::Divide => "pg_div",
        Operator::Modulo => "pg_mod",
        Operator::StringConcat => {
            // One side must be a text: `1 || 2` is no operator.
            let joinable = |t: &DataType| {
                is_text(t) || t.is_null() || matches!(t, DataType::List(_) | DataType::Binary)
            };
            if !joinable(&lt) && !joinable(&rt) {
                return Err(no_operator("||", &lt, &rt));
            }
            return joined(*left, &lt, *right, &rt, schema, settings);
        }
        op if is_pattern(op) => {
            let left = Box::new(padded(*left, schema)?);
            return Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(
                left, op, right,
            ))));
        }
        _ => {
            return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr::new(
                left, op, right,
            ))));
        }
    };
    if let Some(expr) = temporal_arithmetic(&left, &lt, op, &right, &rt, settings)? {
        return Ok(Transformed::yes(expr));
    }
    let number = |e: &Expr, t: &DataType| is_number(t) || is_untyped(e) || t.is_null();
    if number(&left, &lt) && number(&right, &rt) && (is_number(&lt) || is_number(&rt)) {
        let left = number_or_literal(*left, &rt, settings)?;
        let right = number_or_literal(*right, &lt, settings)?;
        return Ok(Transformed::yes(call(name, vec![left, right])?));
    }
    if lt.is_null() || rt.is_null() || is_interval(&lt) || is_interval(&rt) {
        return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr::new(
            left, op, right,
        ))));
    }
    Err(no_operator(&op.to_string(), &lt, &rt))
}

/// `||`: what is joined to a text is one, as PostgreSQL writes it.
fn joined(
    mut left: Expr,
    lt: &DataType,
    mut right: Expr,
    rt: &DataType,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    let listed = |t: &DataType| matches!(t, DataType::List(_));
    if !listed(lt) && !listed(rt) {
        let sides = [(&mut left, lt, rt), (&mut right, rt, lt)];
        for (side, t, other) in sides {
            if is_text(other) && *t == DataType::Binary {
                return Err(carry(SqlError::unsupported(
                    "|| of a bytea and a text; cast one of them",
                )));
            }
            if !is_text(t) && !t.is_null() && *t != DataType::Binary {
                let bare = std::mem::take(side);
                *side = as_text(bare, schema, settings)?;
            }
        }
    }
    Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(
        Box::new(left),
        Operator::StringConcat,
        Box::new(right),
    ))))
}

/// A value as PostgreSQL writes it in this session.
fn as_text(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Expr> {
    let from = sql_type_of(&expr, schema)?;
    cast_to(expr, from, SqlType::Text, settings)
}

/// An untyped literal beside a number is a number of its type.
fn number_or_literal(expr: Expr, other: &DataType, settings: &Settings) -> Result<Expr> {
    match is_text_literal(&expr) {
        true => literal_as(expr, SqlType::from_arrow(other), settings),
        false => Ok(expr),
    }
}

/// Comparisons that PostgreSQL refuses and DataFusion answers.
pub(super) fn comparable(
    op: Operator,
    left: &Expr,
    lt: &DataType,
    ls: SqlType,
    right: &Expr,
    rt: &DataType,
    rs: SqlType,
) -> Result<()> {
    if is_untyped(left) || is_untyped(right) || lt.is_null() || rt.is_null() {
        return Ok(());
    }
    let class = |t: SqlType| match t {
        SqlType::Oid => class(SqlType::Int4),
        SqlType::Array(_) => 0,
        other => class(other),
    };
    if class(ls) != class(rs) && class(ls) != 0 && class(rs) != 0 {
        return Err(no_operator(&op.to_string(), lt, rt));
    }
    Ok(())
}
