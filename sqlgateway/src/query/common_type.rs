//! Where expressions of several types meet, they get the type that PostgreSQL
//! gives them. DataFusion makes a numeric beside a float a decimal of 15 fraction
//! digits, an integer beside a `real` a `real`, and a date beside a timestamp
//! nanoseconds, which end in 2262.

use super::casts::convert;
use super::equality;
use super::errors::carry;
use super::operators::{binary_operator, comparable, no_operator, typed};
use super::semantics::{call, is_interval, is_text, is_untyped, sql_type_of, type_of};
use super::untyped::{class, is_text_literal, literal_columns, type_literals};
use crate::error::SqlError;
use crate::settings::Settings;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, NullEquality, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{BinaryExpr, Case, Cast, InSubquery, ScalarFunction};
use datafusion::logical_expr::{
    Distinct, Expr, ExprSchemable, Join, JoinType, LogicalPlan, LogicalPlanBuilder, Operator,
    Union, when,
};
use lineradb_common::sql::{SqlType, TYPE_METADATA_KEY};
use lineradb_functions::nullable::{self, ORIGIN_METADATA_KEY};
use std::sync::Arc;

/// What the common type is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The operands of a comparison.
    Compare,
    /// One result out of several: CASE, COALESCE, UNION.
    Result,
}

/// The type that some of these must be converted to; `None` when DataFusion's
/// own choice is PostgreSQL's.
fn common(types: &[DataType], purpose: Purpose) -> Option<SqlType> {
    let any = |f: fn(&DataType) -> bool| types.iter().any(f);
    let single = any(|t| matches!(t, DataType::Float32));
    let double = any(|t| matches!(t, DataType::Float64));
    let decimal = any(DataType::is_decimal);
    let integer = any(DataType::is_integer);
    if single || double {
        return match (purpose, double) {
            _ if !decimal && !integer => None,
            (Purpose::Result, false) => Some(SqlType::Float4),
            (_, true) if !decimal => None,
            _ => Some(SqlType::Float8),
        };
    }
    let date = any(|t| matches!(t, DataType::Date32));
    let naive = any(|t| matches!(t, DataType::Timestamp(_, None)));
    let zoned = any(|t| matches!(t, DataType::Timestamp(_, Some(_))));
    match (date || naive, zoned) {
        (true, true) => Some(SqlType::TimestampTz),
        (true, false) if date && naive => Some(SqlType::Timestamp),
        _ => None,
    }
}

/// True for the types that are converted to `target`; the others have it, or are
/// left to DataFusion.
fn must_convert(from: &DataType, target: SqlType) -> bool {
    match target {
        SqlType::Float4 | SqlType::Float8 => from.is_decimal() || from.is_integer(),
        SqlType::Timestamp => matches!(from, DataType::Date32),
        SqlType::TimestampTz => matches!(from, DataType::Date32 | DataType::Timestamp(_, None)),
        _ => false,
    }
}

/// Gives expressions that meet one type, where that is not DataFusion's choice.
pub fn unify(
    exprs: &mut [&mut Expr],
    schema: &DFSchema,
    settings: &Settings,
    purpose: Purpose,
) -> Result<bool> {
    let types = exprs
        .iter()
        .map(|e| e.get_type(schema))
        .collect::<Result<Vec<_>>>()?;
    let Some(target) = common(&types, purpose) else {
        return Ok(false);
    };
    for (expr, from) in exprs.iter_mut().zip(&types) {
        if must_convert(from, target) {
            let bare = std::mem::take(*expr);
            **expr = convert(bare, SqlType::from_arrow(from), target, settings)?;
        }
    }
    Ok(true)
}

/// The results of a CASE, and what it compares.
pub fn of_case(
    mut case: Case,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    let mut results: Vec<&mut Expr> = case
        .when_then_expr
        .iter_mut()
        .map(|(_, then)| then.as_mut())
        .chain(case.else_expr.as_deref_mut())
        .collect();
    let mut changed = type_literals(&mut results, schema, settings, "CASE")?;
    changed |= unify(&mut results, schema, settings, Purpose::Result)?;
    if let Some(compared) = case.expr.as_deref_mut() {
        let (t, sql) = (type_of(compared, schema)?, sql_type_of(compared, schema)?);
        for (when, _) in &mut case.when_then_expr {
            let bare = std::mem::take(when.as_mut());
            let (wt, wsql) = (type_of(&bare, schema)?, sql_type_of(&bare, schema)?);
            // An untyped literal that is looked at is a text.
            if is_untyped(compared) && !wt.is_null() && !t.is_null() && class(wsql) != class(sql) {
                return Err(no_operator("=", &t, &wt));
            }
            comparable(Operator::Eq, compared, &t, sql, &bare, &wt, wsql)?;
            changed |= is_text_literal(&bare);
            **when = typed(bare, compared, sql, settings)?;
        }
        let mut compared: Vec<&mut Expr> = std::iter::once(compared)
            .chain(
                case.when_then_expr
                    .iter_mut()
                    .map(|(when, _)| when.as_mut()),
            )
            .collect();
        changed |= unify(&mut compared, schema, settings, Purpose::Compare)?;
        for compared in compared {
            let bare = std::mem::take(compared);
            let before = bare.clone();
            *compared = equality::comparable(bare, schema)?;
            changed |= *compared != before;
        }
    }
    let case = Expr::Case(case);
    Ok(if changed {
        Transformed::yes(case)
    } else {
        Transformed::no(case)
    })
}

/// The arguments of functions that return one of them.
pub fn of_function(
    function: &mut ScalarFunction,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<bool> {
    if !matches!(function.name(), "coalesce" | "greatest" | "least") {
        return Ok(false);
    }
    let construct = function.name().to_uppercase();
    let mut args: Vec<&mut Expr> = function.args.iter_mut().collect();
    let changed = type_literals(&mut args, schema, settings, &construct)?;
    Ok(unify(&mut args, schema, settings, Purpose::Result)? || changed)
}

/// `nullif(a, b)` is `a` as the operator `a = b` sees it: itself, or what it is
/// converted to where there is no operator for the two types.
pub fn of_nullif(
    function: ScalarFunction,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    let [a, b] = &function.args[..] else {
        return Ok(Transformed::no(Expr::ScalarFunction(function)));
    };
    let (at, bt) = (type_of(a, schema)?, type_of(b, schema)?);
    let (a_sql, b_sql) = (sql_type_of(a, schema)?, sql_type_of(b, schema)?);
    if at.is_null()
        || bt.is_null()
        || (at == bt && !is_interval(&at) && !at.is_floating())
        || is_text(&at) && is_text(&bt)
    {
        return Ok(Transformed::no(Expr::ScalarFunction(function)));
    }
    let equal = BinaryExpr::new(Box::new(a.clone()), Operator::Eq, Box::new(b.clone()));
    let equal = binary_operator(equal, schema, settings)?.data;
    let (float, exact) = (
        |t: &DataType| t.is_floating(),
        |t: &DataType| t.is_integer() || t.is_decimal(),
    );
    let value = if float(&at) {
        a.clone()
    } else if exact(&at) && float(&bt) {
        convert(a.clone(), a_sql, SqlType::Float8, settings)?
    } else if at.is_integer() && bt.is_decimal() {
        convert(a.clone(), a_sql, SqlType::Numeric(None), settings)?
    } else {
        typed(a.clone(), b, b_sql, settings)?
    };
    let none = ScalarValue::try_from(&type_of(&value, schema)?)?;
    Ok(Transformed::yes(
        when(equal, Expr::Literal(none, None)).otherwise(value)?,
    ))
}

/// `x IN (SELECT y)`.
pub fn of_in_subquery(
    mut compared: InSubquery,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    let query = &compared.subquery.subquery;
    let [column] = &query.schema().columns()[..] else {
        return Ok(Transformed::no(Expr::InSubquery(compared)));
    };
    let column = Expr::Column(column.clone());
    let rows = query.schema().as_ref().clone();
    let (t, sql) = (column.get_type(&rows)?, sql_type_of(&column, &rows)?);
    if !t.is_null() {
        let bare = std::mem::take(compared.expr.as_mut());
        compared.expr = Box::new(typed(bare, &column, sql, settings)?);
        let (xt, xsql) = (
            type_of(&compared.expr, schema)?,
            sql_type_of(&compared.expr, schema)?,
        );
        comparable(Operator::Eq, &compared.expr, &xt, xsql, &column, &t, sql)?;
    }
    let types = [compared.expr.get_type(schema)?, column.get_type(&rows)?];
    let target = common(&types, Purpose::Compare);
    let by_bits = |t: &DataType| t.is_floating() || is_interval(t);
    if target.is_none() && !types.iter().any(by_bits) {
        return Ok(Transformed::no(Expr::InSubquery(compared)));
    }
    let comparable = |value: Expr, from: &DataType, schema: &DFSchema| match target {
        Some(target) if must_convert(from, target) => {
            convert(value, SqlType::from_arrow(from), target, settings)
        }
        _ => equality::comparable(value, schema),
    };
    compared.expr = Box::new(comparable(*compared.expr, &types[0], schema)?);
    let value = comparable(column.clone(), &types[1], &rows)?;
    if value != column {
        let plan =
            LogicalPlanBuilder::from(query.as_ref().clone()).project([value.alias("value")])?;
        compared.subquery = compared.subquery.with_plan(Arc::new(plan.build()?));
    }
    Ok(Transformed::yes(Expr::InSubquery(compared)))
}

/// The values of each column of VALUES.
pub fn of_values(rows: &mut [Vec<Expr>], settings: &Settings) -> Result<()> {
    let empty = DFSchema::empty();
    let width = rows.first().map_or(0, Vec::len);
    for column in 0..width {
        let mut values: Vec<&mut Expr> =
            rows.iter_mut().filter_map(|r| r.get_mut(column)).collect();
        type_literals(&mut values, &empty, settings, "VALUES")?;
        unify(&mut values, &empty, settings, Purpose::Result)?;
    }
    Ok(())
}

/// Takes off the cast that DataFusion put around a value while it read VALUES: to a
/// decimal around a float, to a text (of an encoding that no cast of the user's
/// has) around anything beside a text. A cast of the user's to a numeric with digits has metadata, and
/// one to a bare numeric the digits of that.
pub fn undo_cast(expr: Expr) -> Result<Expr> {
    let bare = SqlType::Numeric(None).arrow_type();
    match expr {
        Expr::Cast(Cast { expr, field })
            if is_text(field.data_type())
                && *field.data_type() != SqlType::Text.arrow_type()
                && field.metadata().is_empty() =>
        {
            Ok(*expr)
        }
        Expr::Cast(Cast { expr, field })
            if field.data_type().is_decimal()
                && *field.data_type() != bare
                && field.metadata().is_empty()
                && expr.get_type(&DFSchema::empty())?.is_floating() =>
        {
            Ok(*expr)
        }
        other => Ok(other),
    }
}

fn type_at(plan: &LogicalPlan, column: usize) -> DataType {
    plan.schema().field(column).data_type().clone()
}

/// The target of each column of queries whose rows become one set.
fn targets(
    inputs: &[&LogicalPlan],
    literals: &[Vec<Option<SqlType>>],
    purpose: Purpose,
) -> Vec<Option<SqlType>> {
    let width = inputs.first().map_or(0, |p| p.schema().fields().len());
    (0..width)
        .map(|i| {
            let typed = inputs.iter().zip(literals);
            let typed = typed.filter(|(_, literals)| literals[i].is_none());
            let types: Vec<DataType> = typed.map(|(p, _)| type_at(p, i)).collect();
            common(&types, purpose)
        })
        .collect()
}

/// A query with some columns converted, and others as computed values, by the function
/// that makes them so.
fn with_columns(
    plan: &Arc<LogicalPlan>,
    targets: &[Option<SqlType>],
    literals: &[Option<SqlType>],
    computed: &[Option<&'static str>],
    settings: &Settings,
) -> Result<Arc<LogicalPlan>> {
    let expressions = plan
        .schema()
        .iter()
        .zip(targets.iter().zip(literals).zip(computed))
        .map(|((qualifier, field), ((target, literal), computed))| {
            let column = Expr::Column((qualifier, field).into());
            if let Some(target) = literal {
                let value = convert(column, SqlType::Text, *target, settings)?;
                return Ok(value.alias_qualified(qualifier.cloned(), field.name()));
            }
            match target {
                Some(target) if must_convert(field.data_type(), *target) => {
                    let from = SqlType::from_field(field);
                    let converted = convert(column, from, *target, settings)?;
                    Ok(converted.alias_qualified(qualifier.cloned(), field.name()))
                }
                _ if computed.is_some() => {
                    let value = call(computed.unwrap_or(nullable::NAME), vec![column])?;
                    Ok(value.alias_qualified(qualifier.cloned(), field.name()))
                }
                _ => Ok(column),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    let plan = LogicalPlanBuilder::from(plan.as_ref().clone()).project(expressions)?;
    Ok(Arc::new(plan.build()?))
}

/// The columns of a UNION.
pub fn of_union(union: Union, settings: &Settings) -> Result<Transformed<LogicalPlan>> {
    let inputs: Vec<&LogicalPlan> = union.inputs.iter().map(AsRef::as_ref).collect();
    let width = |plan: &LogicalPlan| plan.schema().fields().len();
    if inputs.iter().any(|input| width(input) != width(inputs[0])) {
        // The engine has added what it is sorted by to one of them.
        return Err(carry(SqlError::new(
            "42703",
            "ORDER BY names a column that the UNION does not return",
        )));
    }
    let literals = literal_columns(&inputs, "UNION")?;
    let targets = targets(&inputs, &literals, Purpose::Result);
    // A column that comes from several tables comes from none.
    let origin = |plan: &LogicalPlan, i: usize| {
        let field = plan.schema().field(i);
        field.metadata().get(ORIGIN_METADATA_KEY).cloned()
    };
    let mixed: Vec<bool> = (0..targets.len())
        .map(|i| {
            let mut origins = inputs.iter().map(|p| origin(p, i));
            let first = origins.next().flatten();
            origins.any(|o| o != first)
        })
        .collect();
    // Of types with several names comes the one that values have by themselves.
    let tag = |plan: &LogicalPlan, i: usize| {
        let field = plan.schema().field(i);
        field.metadata().get(TYPE_METADATA_KEY).cloned()
    };
    let tagged: Vec<bool> = (0..targets.len())
        .map(|i| {
            let mut tags = inputs.iter().filter_map(|p| tag(p, i));
            let first = tags.next();
            tags.any(|t| first.as_ref() != Some(&t))
        })
        .collect();
    let typed = literals.iter().flatten().any(Option::is_some);
    let differs = mixed.contains(&true) || tagged.contains(&true);
    if targets.iter().all(Option::is_none) && !differs && !typed {
        // The schemas of the inputs may say less than they did: the schema of all is made anew.
        let union = Union::try_new_with_loose_types(union.inputs)?;
        return Ok(Transformed::yes(LogicalPlan::Union(union)));
    }
    let inputs = union
        .inputs
        .iter()
        .zip(&literals)
        .map(|(input, literals)| {
            let computed: Vec<Option<&str>> = (0..targets.len())
                .map(|i| match (tagged[i], mixed[i]) {
                    (true, _) if tag(input, i).is_some() => Some(nullable::UNTAGGED),
                    (_, true) if origin(input, i).is_some() => Some(nullable::NAME),
                    _ => None,
                })
                .collect();
            with_columns(input, &targets, literals, &computed, settings)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Transformed::yes(LogicalPlan::Union(
        Union::try_new_with_loose_types(inputs)?,
    )))
}

/// The keys of a join (USING, NATURAL), and the columns of INTERSECT and EXCEPT,
/// which are joins where NULL equals NULL.
pub fn of_join(mut join: Join, settings: &Settings) -> Result<Transformed<LogicalPlan>> {
    let set_operation = matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti)
        && join.null_equality == NullEquality::NullEqualsNull
        && join.on.len() == join.left.schema().fields().len();
    if set_operation {
        let construct = match join.join_type {
            JoinType::LeftSemi => "INTERSECT",
            _ => "EXCEPT",
        };
        let inputs = [join.left.as_ref(), join.right.as_ref()];
        let literals = literal_columns(&inputs, construct)?;
        let targets = targets(&inputs, &literals, Purpose::Result);
        let mut changes = targets.iter().chain(literals.iter().flatten());
        if changes.any(Option::is_some) {
            let none = vec![None; targets.len()];
            join.left = match join.left.as_ref() {
                LogicalPlan::Distinct(Distinct::All(input)) => {
                    let input = with_columns(input, &targets, &literals[0], &none, settings)?;
                    Arc::new(LogicalPlan::Distinct(Distinct::All(input)))
                }
                _ => with_columns(&join.left, &targets, &literals[0], &none, settings)?,
            };
            join.right = with_columns(&join.right, &targets, &literals[1], &none, settings)?;
            return Ok(Transformed::yes(
                LogicalPlan::Join(join).recompute_schema()?,
            ));
        }
    }
    let mut changed = false;
    for (left, right) in &mut join.on {
        let types = [
            left.get_type(join.left.schema())?,
            right.get_type(join.right.schema())?,
        ];
        let Some(target) = common(&types, Purpose::Compare) else {
            continue;
        };
        for (expr, from) in [left, right].into_iter().zip(&types) {
            if must_convert(from, target) {
                let bare = std::mem::replace(expr, Expr::Column(Column::from_name("")));
                *expr = convert(bare, SqlType::from_arrow(from), target, settings)?;
                changed = true;
            }
        }
    }
    let join = LogicalPlan::Join(join);
    Ok(match changed {
        true => Transformed::yes(join),
        false => Transformed::no(join),
    })
}
