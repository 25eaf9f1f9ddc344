//! Untyped literals where several values become one (CASE, COALESCE, UNION,
//! VALUES): they take the type of the others, which must go together. DataFusion
//! would make everything a text beside one.

use super::casts::{cast_to, numeric_literal};
use super::errors::carry;
use super::semantics::{is_text, is_untyped, sql_type_of, type_of};
use crate::error::SqlError;
use crate::settings::Settings;
use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};
use lineradb_common::sql::SqlType;

/// Where a type stands among those that it is converted to and from.
fn rank(t: SqlType) -> u8 {
    match t {
        SqlType::Int2 | SqlType::Date => 1,
        SqlType::Int4 | SqlType::Timestamp => 2,
        SqlType::Int8 | SqlType::TimestampTz => 3,
        SqlType::Numeric(_) => 4,
        SqlType::Float4 => 5,
        _ => 6,
    }
}

/// Types of different classes are never converted to each other unasked; 0 for
/// those of which nothing is said here.
pub(super) fn class(t: SqlType) -> u8 {
    match t {
        t if t.is_number() => 1,
        t if t.is_text() => 2,
        SqlType::Bool => 3,
        SqlType::Date | SqlType::Timestamp | SqlType::TimestampTz => 4,
        SqlType::Time => 5,
        SqlType::Interval => 6,
        SqlType::Uuid => 7,
        SqlType::Bytea => 8,
        SqlType::Array(_) => 9,
        _ => 0,
    }
}

/// The type of one result out of several values of these types.
fn result_type(types: &[SqlType], construct: &str) -> Result<Option<SqlType>> {
    let mut result: Option<SqlType> = None;
    for t in types.iter().copied() {
        result = Some(match result {
            None => t,
            Some(r) if class(r) != class(t) && class(r) != 0 && class(t) != 0 => {
                return Err(carry(SqlError::new(
                    "42804",
                    format!(
                        "{construct} types {} and {} cannot be matched",
                        r.name(),
                        t.name()
                    ),
                )));
            }
            Some(r) if rank(t) > rank(r) => t,
            Some(r) => r,
        });
    }
    Ok(result)
}

/// A text that the user gave no type.
pub(super) fn is_text_literal(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(v, None) if is_text(&v.data_type()) && !v.is_null())
}

/// A text literal as a value of a type. The length or precision of a column does
/// not apply to what it meets.
pub(super) fn literal_as(expr: Expr, target: SqlType, settings: &Settings) -> Result<Expr> {
    match target {
        t if t.is_text() || t == SqlType::Unknown => Ok(expr),
        SqlType::Numeric(_) => numeric_literal(expr),
        other => cast_to(expr, SqlType::Text, other, settings),
    }
}

/// Gives the untyped literals among values that become one result their type.
///
/// # Errors
/// 42804 for values that do not go together, 22P02 and the like for literals that
/// are no values of the type.
pub(super) fn type_literals(
    values: &mut [&mut Expr],
    schema: &DFSchema,
    settings: &Settings,
    construct: &str,
) -> Result<bool> {
    let mut types = Vec::with_capacity(values.len());
    for value in values.iter() {
        if !is_untyped(value) && !type_of(value, schema)?.is_null() {
            types.push(sql_type_of(value, schema)?);
        }
    }
    let Some(target) = result_type(&types, construct)? else {
        return Ok(false);
    };
    let mut changed = false;
    for value in values.iter_mut().filter(|v| is_text_literal(v)) {
        let bare = std::mem::take(*value);
        **value = literal_as(bare, target, settings)?;
        changed = true;
    }
    Ok(changed)
}

/// True when a column of a query is an untyped literal.
fn is_literal_column(plan: &LogicalPlan, at: usize) -> bool {
    match plan {
        LogicalPlan::Projection(projection) => projection.expr.get(at).is_some_and(|e| match e {
            Expr::Alias(alias) => is_text_literal(&alias.expr),
            other => is_text_literal(other),
        }),
        LogicalPlan::Distinct(Distinct::All(input)) => is_literal_column(input, at),
        LogicalPlan::Sort(sort) => is_literal_column(&sort.input, at),
        LogicalPlan::Limit(limit) => is_literal_column(&limit.input, at),
        _ => false,
    }
}

/// For each query of a set operation the columns that are untyped literals, with
/// the type that they get.
///
/// # Errors
/// 42804 for columns that do not go together.
pub(super) fn literal_columns(
    inputs: &[&LogicalPlan],
    construct: &str,
) -> Result<Vec<Vec<Option<SqlType>>>> {
    let width = inputs.first().map_or(0, |p| p.schema().fields().len());
    let mut literals = vec![vec![None; width]; inputs.len()];
    for at in 0..width {
        let typed = inputs.iter().filter_map(|plan| {
            let field = plan.schema().field(at);
            let said = !field.data_type().is_null() && !is_literal_column(plan, at);
            said.then(|| SqlType::from_field(field))
        });
        let types: Vec<SqlType> = typed.collect();
        let target = match result_type(&types, construct)? {
            Some(t) if !t.is_text() && t != SqlType::Unknown => t,
            _ => continue,
        };
        let target = match target {
            SqlType::Numeric(_) => SqlType::Numeric(None),
            other => other,
        };
        for (plan, columns) in inputs.iter().zip(&mut literals) {
            if is_literal_column(plan, at) {
                columns[at] = Some(target);
            }
        }
    }
    Ok(literals)
}
