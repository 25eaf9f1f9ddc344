//! PostgreSQL's operators and casts in place of DataFusion's.
//!
//! Two passes around DataFusion's type coercion. Before it, where the user's
//! own types are still visible: integer literals get PostgreSQL's type,
//! arithmetic becomes checked functions, untyped literals take the type of what
//! they meet, explicit casts become `pg_cast`. After it: what coercion inserted
//! and Arrow would do differently.

use super::arrays::{is_quantified, of_quantified};
use super::averages::share_sums;
use super::chains::flatten;
use super::common_type::{self, Purpose, unify};
use super::errors::carry;
use super::lateral::inline_laterals;
use super::outer::refresh_outer_columns;
use crate::error::SqlError;
use crate::settings::Settings;
use arrow::datatypes::{DataType, IntervalUnit};
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as DfColumn, DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::functions::expr_fn;
use datafusion::logical_expr::expr::{Between, BinaryExpr, Cast, InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, RecursiveQuery, Subquery, lit,
    when,
};
use lineradb_common::sql::{Datum, Numeric, SqlType, TimeZone};
use lineradb_functions::arith::is_number;
use lineradb_functions::temporal;
use std::sync::Arc;

/// The pass before type coercion.
pub fn before_coercion(plan: LogicalPlan, settings: &Settings) -> Result<LogicalPlan> {
    let plan = share_sums(inline_laterals(plan)?)?;
    refresh_outer_columns(rewrite(plan, settings, operator)?)
}

/// The pass after type coercion.
pub fn after_coercion(plan: LogicalPlan, settings: &Settings) -> Result<LogicalPlan> {
    rewrite(plan, settings, implicit_cast)
}

type Rule = fn(Expr, &DFSchema, &Settings) -> Result<Transformed<Expr>>;

fn rewrite(plan: LogicalPlan, settings: &Settings, rule: Rule) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|plan| {
        // LIMIT counts rows; its literals stay as the engine wants them.
        if matches!(plan, LogicalPlan::Limit(_) | LogicalPlan::TableScan(_)) {
            return Ok(Transformed::no(plan));
        }
        let plan = match plan {
            LogicalPlan::Union(union) => common_type::of_union(union, settings)?.data,
            LogicalPlan::Join(join) => common_type::of_join(join, settings)?.data,
            other => other,
        };
        let mut schema = merge_schema(&plan.inputs());
        schema.merge(plan.schema());
        if let LogicalPlan::Values(values) = plan {
            let mut rows = values
                .values
                .into_iter()
                .map(|row| {
                    row.into_iter()
                        .map(|e| apply(common_type::undo_decimal(e)?, &schema, settings, rule))
                        .collect::<Result<Vec<_>>>()
                })
                .collect::<Result<Vec<_>>>()?;
            common_type::of_values(&mut rows, settings)?;
            same_types(&mut rows)?;
            return Ok(Transformed::yes(LogicalPlanBuilder::values(rows)?.build()?));
        }
        if let LogicalPlan::RecursiveQuery(recursive) = plan {
            return Ok(Transformed::yes(LogicalPlan::RecursiveQuery(
                as_work_table(recursive)?,
            )));
        }
        let names = NamePreserver::new(&plan);
        let rewritten = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let before = expr.clone();
            let after = apply(flatten(expr, &schema)?, &schema, settings, rule)?;
            if after == before {
                Ok(Transformed::no(after))
            } else {
                Ok(Transformed::yes(name.restore(after)))
            }
        })?;
        rewritten.map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(rewritten.data)
}

/// Gives the values of a column one SQL type: DataFusion wants equal metadata.
fn same_types(rows: &mut [Vec<Expr>]) -> Result<()> {
    let width = rows.first().map_or(0, Vec::len);
    let empty = DFSchema::empty();
    for column in 0..width {
        let mut fields = Vec::with_capacity(rows.len());
        for row in rows.iter() {
            if let Some(value) = row.get(column) {
                fields.push(value.to_field(&empty)?.1);
            }
        }
        if fields.iter().all(|f| f.metadata().is_empty()) {
            continue;
        }
        let first = fields.iter().find(|f| !f.data_type().is_null());
        let sql_type = first.map_or(SqlType::Text, |f| SqlType::from_field(f));
        let equal = fields
            .iter()
            .all(|f| f.data_type().is_null() || SqlType::from_field(f) == sql_type);
        let sql_type = match (equal, first) {
            (false, Some(field)) => SqlType::from_arrow(field.data_type()),
            _ => sql_type,
        };
        let metadata = FieldMetadata::from(sql_type.metadata());
        for row in rows.iter_mut() {
            if let Some(value) = row.get_mut(column) {
                let bare = std::mem::replace(value, Expr::Literal(ScalarValue::Null, None));
                *value = bare.alias_with_metadata("", Some(metadata.clone()));
            }
        }
    }
    Ok(())
}

/// Both terms of a recursive query return what its work table was made with.
fn as_work_table(mut recursive: RecursiveQuery) -> Result<RecursiveQuery> {
    let mut schema = None;
    recursive.recursive_term.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.table_name.table() == recursive.name
        {
            schema = Some(scan.source.schema());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let Some(schema) = schema else {
        return Ok(recursive);
    };
    let convert = |term: &Arc<LogicalPlan>| -> Result<Arc<LogicalPlan>> {
        let expressions = term
            .schema()
            .iter()
            .zip(schema.fields())
            .map(|((qualifier, from), to)| {
                let column = Expr::Column(DfColumn::from((qualifier, from)));
                if from.data_type() == to.data_type() {
                    column
                } else {
                    Expr::Cast(Cast::new(Box::new(column), to.data_type().clone()))
                        .alias_qualified(qualifier.cloned(), from.name())
                }
            })
            .collect::<Vec<_>>();
        Ok(Arc::new(
            LogicalPlanBuilder::from(term.as_ref().clone())
                .project(expressions)?
                .build()?,
        ))
    };
    recursive.static_term = convert(&recursive.static_term)?;
    recursive.recursive_term = convert(&recursive.recursive_term)?;
    Ok(recursive)
}

fn apply(expr: Expr, schema: &DFSchema, settings: &Settings, rule: Rule) -> Result<Expr> {
    Ok(expr.transform_up(|e| rule(e, schema, settings))?.data)
}

/// The first pass over one expression, for expressions that stand alone.
pub fn operators(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Expr> {
    apply(flatten(expr, schema)?, schema, settings, operator)
}

/// The second pass over one expression.
pub fn implicit_casts(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Expr> {
    apply(expr, schema, settings, implicit_cast)
}

fn call(name: &str, args: Vec<Expr>) -> Result<Expr> {
    match lineradb_functions::by_name(name) {
        Some(f) => Ok(Expr::ScalarFunction(ScalarFunction::new_udf(f, args))),
        None => Err(carry(SqlError::internal(format!("no function {name}")))),
    }
}

fn literal(text: impl Into<String>) -> Expr {
    Expr::Literal(ScalarValue::Utf8(Some(text.into())), None)
}

fn zone_matters(from: SqlType, to: SqlType) -> bool {
    (from == SqlType::TimestampTz) != (to == SqlType::TimestampTz)
}

fn is_utc(settings: &Settings) -> bool {
    settings.time_zone == TimeZone::UTC
}

/// `pg_cast(expr, 'type'[, 'zone'])`, or its value when that is known now: then
/// what is no value of the type is an error of the statement, as it is in
/// PostgreSQL.
fn cast_to(expr: Expr, from: SqlType, to: SqlType, settings: &Settings) -> Result<Expr> {
    let storable = !matches!(to, SqlType::Array(_) | SqlType::Void | SqlType::Unknown);
    if let Expr::Literal(value, _) = &expr
        && is_text(&value.data_type())
        && storable
        && let Some(text) = value.try_as_str().flatten()
    {
        let zone = &settings.time_zone;
        let datum = Datum::Text(text.to_owned()).cast(to, zone).map_err(carry)?;
        let value = super::engine::scalar_of(&datum, to).map_err(carry)?;
        let metadata = lineradb_functions::cast::field_of(to).metadata().clone();
        return Ok(Expr::Literal(value, Some(FieldMetadata::from(metadata))));
    }
    let mut args = vec![expr, literal(to.to_string())];
    if zone_matters(from, to) && !is_utc(settings) {
        args.push(literal(settings.time_zone_name.clone()));
    }
    call("pg_cast", args)
}

fn type_of(expr: &Expr, schema: &DFSchema) -> Result<DataType> {
    expr.get_type(schema)
}

fn sql_type_of(expr: &Expr, schema: &DFSchema) -> Result<SqlType> {
    let (_, field) = expr.to_field(schema)?;
    Ok(SqlType::from_field(&field))
}

fn is_text(t: &DataType) -> bool {
    matches!(t, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
}

/// A literal that PostgreSQL would call `unknown`.
fn is_untyped(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, None) => value.is_null() || is_text(&value.data_type()),
        Expr::Alias(alias) => is_untyped(&alias.expr),
        _ => false,
    }
}

fn is_interval(t: &DataType) -> bool {
    matches!(t, DataType::Interval(_))
}

fn operator(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Transformed<Expr>> {
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
        Expr::InSubquery(compared) => common_type::of_in_subquery(compared, schema, settings),
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
            Ok(Transformed::yes(Expr::InList(InList {
                expr,
                list,
                negated,
            })))
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
        Expr::ScalarFunction(mut function) => {
            common_type::of_function(&mut function, schema, settings)?;
            if is_quantified(&function) {
                of_quantified(&mut function, schema, settings)?;
                return Ok(Transformed::yes(Expr::ScalarFunction(function)));
            }
            shown_booleans(&mut function, schema)?;
            zoned_function(function, schema, settings)
        }
        other => Ok(Transformed::no(other)),
    }
}

/// A value of another type, as an implicit cast makes it.
pub(super) fn convert(expr: Expr, from: SqlType, to: SqlType, settings: &Settings) -> Result<Expr> {
    if let Expr::Literal(ScalarValue::Decimal128(Some(v), _, scale), _) = &expr
        && let Ok(number) = Numeric::new(*v, scale.unsigned_abs())
        && (*scale >= 0 && to == SqlType::Float8)
    {
        let value = ScalarValue::Float64(Some(number.to_f64()));
        return Ok(Expr::Literal(value, None));
    }
    cast_to(expr, from, to, settings)
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

/// What builds texts of any values shows booleans as `t` and `f`; a cast to
/// text says `true`.
fn shown_booleans(function: &mut ScalarFunction, schema: &DFSchema) -> Result<()> {
    if !matches!(function.name(), "concat" | "concat_ws" | "format") {
        return Ok(());
    }
    for arg in &mut function.args {
        if type_of(arg, schema)? == DataType::Boolean {
            let bare = std::mem::take(arg);
            *arg = when(bare.clone(), lit("t"))
                .when(Expr::Not(Box::new(bare)), lit("f"))
                .end()?;
        }
    }
    Ok(())
}

fn no_operator(op: &str, left: &DataType, right: &DataType) -> datafusion::error::DataFusionError {
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
fn typed(expr: Expr, other: &Expr, target: SqlType, settings: &Settings) -> Result<Expr> {
    let is_text_literal =
        matches!(&expr, Expr::Literal(v, None) if is_text(&v.data_type()) && !v.is_null());
    if let (true, SqlType::Char(_)) = (is_text_literal, target) {
        return Ok(without_blanks(expr));
    }
    if !is_text_literal || is_untyped(other) || target.is_text() || target == SqlType::Unknown {
        return Ok(expr);
    }
    if matches!(target, SqlType::Array(_)) {
        return Ok(expr);
    }
    // The length or precision of a column does not apply to what it meets.
    let bare = match target {
        SqlType::Numeric(_) => return numeric_literal(expr),
        other => other,
    };
    cast_to(expr, SqlType::Text, bare, settings)
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

/// A text literal as a numeric with the digits that it has.
fn numeric_literal(expr: Expr) -> Result<Expr> {
    let Expr::Literal(value, m) = &expr else {
        return Ok(expr);
    };
    let text = value.try_as_str().flatten().unwrap_or_default();
    let number = Numeric::parse(text).map_err(carry)?;
    Ok(Expr::Literal(
        ScalarValue::Decimal128(Some(number.mantissa()), 38, number.scale() as i8),
        m.clone(),
    ))
}

fn explicit_cast(cast: Cast, schema: &DFSchema, settings: &Settings) -> Result<Transformed<Expr>> {
    let target = SqlType::from_field(&cast.field);
    let from_type = type_of(&cast.expr, schema)?;
    let from = sql_type_of(&cast.expr, schema)?;
    let nested = |t: &DataType| {
        matches!(
            t,
            DataType::List(_)
                | DataType::LargeList(_)
                | DataType::FixedSizeList(..)
                | DataType::Struct(_)
                | DataType::Map(..)
        )
    };
    if nested(&from_type) {
        return match cast.field.data_type() {
            t if nested(t) => Ok(Transformed::no(Expr::Cast(cast))),
            _ => Err(carry(SqlError::unsupported(format!(
                "a cast from an array to {}",
                target.name()
            )))),
        };
    }
    if nested(cast.field.data_type()) {
        if from_type.is_null() {
            return Ok(Transformed::no(Expr::Cast(cast)));
        }
        return Ok(Transformed::yes(cast_to(
            *cast.expr, from, target, settings,
        )?));
    }
    if matches!(*cast.expr, Expr::Placeholder(_)) && cast.field.data_type() == &from_type {
        // The parameter has the type already; only a length is left to apply.
        let limited = matches!(
            target,
            SqlType::Varchar(Some(_)) | SqlType::Char(_) | SqlType::Numeric(Some(_))
        );
        if !limited {
            return Ok(Transformed::yes(*cast.expr));
        }
    }
    if from == target && from_type == *cast.field.data_type() && !is_untyped(&cast.expr) {
        return Ok(Transformed::yes(*cast.expr));
    }
    check_cast(&from_type, from, target)?;
    Ok(Transformed::yes(cast_to(
        *cast.expr, from, target, settings,
    )?))
}

/// 42846 for casts that PostgreSQL does not have.
fn check_cast(from_type: &DataType, from: SqlType, to: SqlType) -> Result<()> {
    use SqlType as T;
    let time = |t| matches!(t, T::Date | T::Time | T::Timestamp | T::TimestampTz);
    let number = |t: T| t.is_number() || t == T::Oid;
    let wrong = if from_type.is_null() || from.is_text() || to.is_text() {
        false
    } else {
        match (from, to) {
            (T::Bool, t) | (t, T::Bool) => !matches!(t, T::Bool | T::Int4),
            (T::Uuid, t) | (t, T::Uuid) => t != T::Uuid,
            (T::Bytea, t) | (t, T::Bytea) => t != T::Bytea,
            (a, b) => {
                (number(a) && (time(b) || b == T::Interval))
                    || (number(b) && (time(a) || a == T::Interval))
            }
        }
    };
    if wrong {
        return Err(carry(SqlError::new(
            "42846",
            format!("cannot cast type {} to {}", from.name(), to.name()),
        )));
    }
    Ok(())
}

fn is_comparison(op: Operator) -> bool {
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

fn binary_operator(
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
            return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr::new(
                left, op, right,
            ))));
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

/// An untyped literal beside a number is a number of its type.
fn number_or_literal(expr: Expr, other: &DataType, settings: &Settings) -> Result<Expr> {
    let is_text_literal =
        matches!(&expr, Expr::Literal(v, None) if is_text(&v.data_type()) && !v.is_null());
    if !is_text_literal {
        return Ok(expr);
    }
    match SqlType::from_arrow(other) {
        SqlType::Numeric(_) => numeric_literal(expr),
        target => cast_to(expr, SqlType::Text, target, settings),
    }
}

/// Comparisons that PostgreSQL refuses and DataFusion answers.
fn comparable(
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
        t if t.is_number() || t == SqlType::Oid => 1,
        t if t.is_text() => 2,
        SqlType::Bool => 3,
        SqlType::Date | SqlType::Timestamp | SqlType::TimestampTz => 4,
        SqlType::Time => 5,
        SqlType::Interval => 6,
        SqlType::Uuid => 7,
        SqlType::Bytea => 8,
        _ => 0,
    };
    if class(ls) != class(rs) && class(ls) != 0 && class(rs) != 0 {
        return Err(no_operator(&op.to_string(), lt, rt));
    }
    Ok(())
}

/// Arithmetic on dates, times and intervals.
fn temporal_arithmetic(
    left: &Expr,
    lt: &DataType,
    op: Operator,
    right: &Expr,
    rt: &DataType,
    settings: &Settings,
) -> Result<Option<Expr>> {
    use DataType as D;
    let stamp = |t: &D| matches!(t, D::Timestamp(..));
    let naive = |t: &D| matches!(t, D::Timestamp(_, None));
    let date = |t: &D| matches!(t, D::Date32);
    let integer = |t: &D| matches!(t, D::Int16 | D::Int32 | D::Int64);
    let (l, r) = (|| left.clone(), || right.clone());
    let binary = |a: Expr, op: Operator, b: Expr| {
        Expr::BinaryExpr(BinaryExpr::new(Box::new(a), op, Box::new(b)))
    };
    let to = |e: Expr, from: SqlType, t: SqlType| cast_to(e, from, t, settings);
    let as_date = |e: Expr| Expr::Cast(Cast::new(Box::new(e), temporal::timestamp()));
    let text_literal =
        |e: &Expr| matches!(e, Expr::Literal(v, None) if is_text(&v.data_type()) && !v.is_null());
    // Untyped literals first: they take the type that PostgreSQL prefers.
    if text_literal(right) {
        let target = match (lt, op) {
            (D::Timestamp(..) | D::Date32 | D::Time64(_), Operator::Plus) => SqlType::Interval,
            (D::Timestamp(_, None), Operator::Minus) => SqlType::Timestamp,
            (D::Timestamp(_, Some(_)), Operator::Minus) => SqlType::TimestampTz,
            (D::Date32, Operator::Minus) => SqlType::Date,
            (D::Interval(_), Operator::Plus | Operator::Minus) => SqlType::Interval,
            _ => return Ok(None),
        };
        let right = to(r(), SqlType::Text, target)?;
        let rt = target.arrow_type();
        return temporal_arithmetic(left, lt, op, &right, &rt, settings);
    }
    Ok(Some(match op {
        Operator::Minus if stamp(lt) && stamp(rt) => {
            let (a, b) = if naive(lt) == naive(rt) {
                (l(), r())
            } else {
                let zoned = |e: Expr, t: &D| match naive(t) {
                    true => to(e, SqlType::Timestamp, SqlType::TimestampTz),
                    false => Ok(e),
                };
                (zoned(l(), lt)?, zoned(r(), rt)?)
            };
            call("pg_timestamp_diff", vec![a, b])?
        }
        Operator::Minus if stamp(lt) && date(rt) => {
            let b = if naive(lt) {
                as_date(r())
            } else {
                to(r(), SqlType::Date, SqlType::TimestampTz)?
            };
            call("pg_timestamp_diff", vec![l(), b])?
        }
        Operator::Minus if date(lt) && stamp(rt) => {
            let a = if naive(rt) {
                as_date(l())
            } else {
                to(l(), SqlType::Date, SqlType::TimestampTz)?
            };
            call("pg_timestamp_diff", vec![a, r()])?
        }
        Operator::Minus if date(lt) && date(rt) => call("pg_date_diff", vec![l(), r()])?,
        Operator::Plus if date(lt) && integer(rt) => {
            call("pg_date_add", vec![l(), int4(r(), rt)?])?
        }
        Operator::Plus if integer(lt) && date(rt) => {
            call("pg_date_add", vec![r(), int4(l(), lt)?])?
        }
        Operator::Minus if date(lt) && integer(rt) => call(
            "pg_date_add",
            vec![l(), call("pg_neg", vec![int4(r(), rt)?])?],
        )?,
        Operator::Plus | Operator::Minus if date(lt) && is_interval(rt) => {
            binary(as_date(l()), op, r())
        }
        Operator::Plus if is_interval(lt) && date(rt) => binary(as_date(r()), op, l()),
        Operator::Plus | Operator::Minus
            if stamp(lt) && !naive(lt) && is_interval(rt) && !is_utc(settings) =>
        {
            // Days and months are those of the session's calendar.
            let zone = || literal(settings.time_zone_name.clone());
            let local = call("timezone", vec![zone(), l()])?;
            call("timezone", vec![zone(), binary(local, op, r())])?
        }
        Operator::Multiply if is_interval(lt) && is_number(rt) => {
            call("pg_interval_mul", vec![l(), float8(r())])?
        }
        Operator::Multiply if is_number(lt) && is_interval(rt) => {
            call("pg_interval_mul", vec![r(), float8(l())])?
        }
        Operator::Divide if is_interval(lt) && is_number(rt) => {
            call("pg_interval_div", vec![l(), float8(r())])?
        }
        _ => {
            let temporal = |t: &D| {
                stamp(t) || date(t) || is_interval(t) || matches!(t, D::Time64(_) | D::Time32(_))
            };
            let handled_below = (stamp(lt) && is_interval(rt))
                || (is_interval(lt) && stamp(rt) && op == Operator::Plus)
                || (is_interval(lt) && is_interval(rt))
                || (matches!(lt, D::Time64(_)) && is_interval(rt));
            if (temporal(lt) || temporal(rt)) && !lt.is_null() && !rt.is_null() {
                let plus_minus = matches!(op, Operator::Plus | Operator::Minus);
                if handled_below && plus_minus {
                    return Ok(Some(binary(l(), op, r())));
                }
                return Err(no_operator(&op.to_string(), lt, rt));
            }
            return Ok(None);
        }
    }))
}

fn int4(expr: Expr, t: &DataType) -> Result<Expr> {
    if matches!(t, DataType::Int64) {
        return call("pg_cast", vec![expr, literal("int4")]);
    }
    Ok(Expr::Cast(Cast::new(Box::new(expr), DataType::Int32)))
}

fn float8(expr: Expr) -> Expr {
    Expr::Cast(Cast::new(Box::new(expr), DataType::Float64))
}

/// Functions on `timestamptz` see the session's local time.
fn zoned_function(
    function: ScalarFunction,
    schema: &DFSchema,
    settings: &Settings,
) -> Result<Transformed<Expr>> {
    if function.name() == "age" && function.args.len() == 1 {
        let today = settings.transaction_time_us.div_euclid(86_400_000_000) * 86_400_000_000;
        let midnight = Expr::Literal(ScalarValue::TimestampMicrosecond(Some(today), None), None);
        let argument = as_timestamp(function.args[0].clone(), schema)?;
        return Ok(Transformed::yes(call("age", vec![midnight, argument])?));
    }
    let position = match function.name() {
        "pg_extract" | "date_part" | "date_trunc" => 1,
        "to_char" => 0,
        _ => return Ok(Transformed::no(Expr::ScalarFunction(function))),
    };
    let Some(argument) = function.args.get(position) else {
        return Ok(Transformed::no(Expr::ScalarFunction(function)));
    };
    let zoned = matches!(type_of(argument, schema)?, DataType::Timestamp(_, Some(_)));
    if !zoned || is_utc(settings) {
        return Ok(Transformed::no(Expr::ScalarFunction(function)));
    }
    let zone = || literal(settings.time_zone_name.clone());
    let back = function.name() == "date_trunc";
    let mut function = function;
    let local = call("timezone", vec![zone(), function.args[position].clone()])?;
    function.args[position] = local;
    let expr = Expr::ScalarFunction(function);
    Ok(Transformed::yes(if back {
        call("timezone", vec![zone(), expr])?
    } else {
        expr
    }))
}

fn as_timestamp(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    Ok(match type_of(&expr, schema)? {
        DataType::Date32 => Expr::Cast(Cast::new(Box::new(expr), temporal::timestamp())),
        DataType::Timestamp(_, Some(_)) => {
            Expr::Cast(Cast::new(Box::new(expr), temporal::timestamp()))
        }
        _ => expr,
    })
}

/// Casts that coercion inserted: those that keep every value stay as they are,
/// the others become ours.
fn implicit_cast(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Transformed<Expr>> {
    let Expr::Cast(cast) = expr else {
        return Ok(Transformed::no(expr));
    };
    let from = type_of(&cast.expr, schema)?;
    let to = cast.field.data_type().clone();
    if keeps_values(&from, &to) {
        return Ok(Transformed::no(Expr::Cast(cast)));
    }
    let from_sql = sql_type_of(&cast.expr, schema)?;
    let to_sql = match &to {
        DataType::Decimal128(p, s) if *s >= 0 => SqlType::Numeric(Some((*p, *s as u8))),
        other => SqlType::from_arrow(other),
    };
    if to_sql.arrow_type() != to {
        // Units and encodings that SQL has no name for.
        return Ok(Transformed::no(Expr::Cast(cast)));
    }
    Ok(Transformed::yes(cast_to(
        *cast.expr, from_sql, to_sql, settings,
    )?))
}

fn keeps_values(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    let width = |t: &D| match t {
        D::Int8 | D::UInt8 => 1,
        D::Int16 | D::UInt16 => 2,
        D::Int32 | D::UInt32 => 3,
        D::Int64 | D::UInt64 => 4,
        _ => 0,
    };
    if from == to || from.is_null() || (is_text(from) && is_text(to)) {
        return true;
    }
    if width(from) > 0 && width(to) > 0 {
        return width(to) >= width(from);
    }
    match (from, to) {
        (f, D::Float64) if width(f) > 0 => true,
        (f, D::Decimal128(p, s) | D::Decimal256(p, s)) if width(f) > 0 => {
            i32::from(*p) - i32::from(*s) >= 19
                || (width(f) <= 3 && i32::from(*p) - i32::from(*s) >= 10)
                || (width(f) <= 2 && i32::from(*p) - i32::from(*s) >= 5)
        }
        (D::Decimal128(p1, s1), D::Decimal128(p2, s2)) => {
            s2 >= s1 && i32::from(*p2) - i32::from(*s2) >= i32::from(*p1) - i32::from(*s1)
        }
        (D::Decimal128(..), D::Decimal256(..) | D::Float64) => true,
        (D::Float32, D::Float64) => true,
        (D::Interval(_), D::Interval(IntervalUnit::MonthDayNano)) => true,
        (D::Timestamp(_, a), D::Timestamp(_, b)) => a.is_some() == b.is_some(),
        (D::Time64(_), D::Time64(_)) => true,
        (
            D::Binary | D::BinaryView | D::LargeBinary,
            D::Binary | D::BinaryView | D::LargeBinary,
        ) => true,
        (D::List(_) | D::LargeList(_) | D::FixedSizeList(..) | D::Struct(_), _) => true,
        (_, D::List(_) | D::LargeList(_) | D::FixedSizeList(..) | D::Struct(_)) => true,
        (D::Dictionary(..), _) | (_, D::Dictionary(..)) => true,
        _ => false,
    }
}
