//! Types of parameters that the client did not declare: that of a cast around
//! them, of what they are compared with, of the column or the other results that
//! they stand beside; a count in LIMIT; else text. A parameter has one type in a
//! statement, however often it is used.

use super::arrays::is_quantified;
use arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{BinaryExpr, Cast, Placeholder};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
use lineradb_common::sql::SqlType;
use std::collections::HashMap;
use std::sync::Arc;

/// What is known of the types of parameters.
#[derive(Debug, Default)]
pub struct Known(HashMap<String, FieldRef>);

fn field(sql_type: SqlType) -> FieldRef {
    Arc::new(sql_type.field("", true))
}

fn untyped(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Placeholder(Placeholder { id, field: None }) => Some(id),
        _ => None,
    }
}

impl Known {
    /// The types that the client has declared: they are as they are.
    pub fn declared(types: &[Option<SqlType>]) -> Self {
        let declared = types.iter().enumerate().filter_map(|(at, sql_type)| {
            let sql_type = sql_type.as_ref()?;
            Some((format!("${}", at + 1), field(*sql_type)))
        });
        Self(declared.collect())
    }

    /// Notes what is first known of a parameter: in the one encoding that its values
    /// come in, and without a length, which is the cast's to apply.
    fn note(&mut self, id: &str, found: FieldRef) {
        if found.data_type().is_null() {
            return;
        }
        let found = match SqlType::from_field(&found) {
            SqlType::Varchar(_) => field(SqlType::Varchar(None)),
            sql_type if sql_type.is_text() => field(sql_type),
            _ => found,
        };
        self.0.entry(id.to_owned()).or_insert(found);
    }

    /// Learns from an expression over `schema`.
    ///
    /// # Errors
    /// When a type cannot be told.
    pub fn learn(&mut self, expr: &Expr, schema: &DFSchema) -> Result<()> {
        expr.apply(|e| {
            self.learn_here(e, schema);
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(())
    }

    fn learn_here(&mut self, expr: &Expr, schema: &DFSchema) {
        match expr {
            Expr::Placeholder(Placeholder {
                id,
                field: Some(field),
            }) => self.note(id, field.clone()),
            Expr::Cast(Cast { expr, field }) => {
                if let Some(id) = untyped(expr) {
                    self.note(id, field.clone());
                }
            }
            // The engine reads every integer as a bigint.
            Expr::BinaryExpr(BinaryExpr { left, right, .. }) => {
                for (one, other) in [(left, right), (right, left)] {
                    if let Expr::Placeholder(Placeholder { id, .. }) = one.as_ref()
                        && let Expr::Literal(ScalarValue::Int64(Some(v)), None) = other.as_ref()
                        && i32::try_from(*v).is_ok()
                    {
                        self.note(id, field(SqlType::Int4));
                    }
                }
            }
            Expr::Case(case) => {
                let results = case.when_then_expr.iter().map(|(_, then)| then.as_ref());
                let results: Vec<&Expr> = results.chain(case.else_expr.as_deref()).collect();
                self.alike(&results, schema);
            }
            Expr::ScalarFunction(f) if is_quantified(f) => {
                let of = |e: &Expr| -> Option<SqlType> {
                    Some(SqlType::from_field(&e.to_field(schema).ok()?.1))
                };
                if let (Some(id), Some(t)) = (untyped(&f.args[1]), of(&f.args[0])) {
                    self.note(id, field(SqlType::Array(t.oid())));
                }
                if let (Some(id), Some(t)) = (untyped(&f.args[0]), of(&f.args[1]))
                    && let Some(element) = t.element()
                {
                    self.note(id, field(element));
                }
            }
            Expr::ScalarFunction(f)
                if matches!(f.name(), "coalesce" | "nullif" | "greatest" | "least") =>
            {
                self.alike(&f.args.iter().collect::<Vec<_>>(), schema);
            }
            _ => {}
        }
    }

    /// Expressions of one type.
    fn alike(&mut self, exprs: &[&Expr], schema: &DFSchema) {
        let typed = exprs.iter().find_map(|e| match e {
            Expr::Literal(ScalarValue::Int64(Some(v)), None) if i32::try_from(*v).is_ok() => {
                Some(field(SqlType::Int4))
            }
            e if untyped(e).is_some() => None,
            e => match e.to_field(schema) {
                Ok((_, found)) if !found.data_type().is_null() => {
                    Some(Arc::new(found.as_ref().clone().with_nullable(true)))
                }
                _ => None,
            },
        });
        let Some(typed) = typed else { return };
        for expr in exprs {
            if let Some(id) = untyped(expr) {
                self.note(id, typed.clone());
            }
        }
    }

    /// Gives the parameters of an expression their types: what was learnt, else
    /// that of a cast around them, else `default`.
    ///
    /// # Errors
    /// Never for well-formed expressions.
    pub fn apply(&self, expr: Expr, default: &FieldRef) -> Result<Transformed<Expr>> {
        expr.transform_down(|e| match e {
            Expr::Placeholder(Placeholder { id, field }) => {
                let known = self.0.get(&id).unwrap_or(default);
                let same = field.as_ref().is_some_and(|f| f == known);
                let placeholder =
                    Expr::Placeholder(Placeholder::new_with_field(id, Some(known.clone())));
                Ok(match same {
                    true => Transformed::no(placeholder),
                    false => Transformed::yes(placeholder),
                })
            }
            other => Ok(Transformed::no(other)),
        })
    }
}

/// Gives the parameters of a plan their types; `declared`: by the client.
pub fn type_placeholders(plan: LogicalPlan, declared: &[Option<SqlType>]) -> Result<LogicalPlan> {
    let mut known = Known::declared(declared);
    plan.apply_with_subqueries(|node| {
        let mut schema = merge_schema(&node.inputs());
        schema.merge(node.schema());
        node.apply_expressions(|expr| {
            known.learn(expr, &schema)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    let (text, count) = (field(SqlType::Text), field(SqlType::Int8));
    let typed = plan.transform_up_with_subqueries(|plan| {
        let default = match plan {
            LogicalPlan::Limit(_) => &count,
            _ => &text,
        };
        plan.map_expressions(|expr| known.apply(expr, default))?
            .map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(typed.data)
}

/// Counts of LIMIT and OFFSET as the engine wants them: parameters of another integer
/// type, now that they have values, as the bigints that they are cast to.
pub fn with_known_limits(plan: LogicalPlan) -> Result<LogicalPlan> {
    fn value(expr: Expr) -> Result<Expr> {
        match expr {
            Expr::Cast(Cast { expr, field }) => Ok(match value(*expr)? {
                Expr::Literal(count, m) => Expr::Literal(count.cast_to(field.data_type())?, m),
                other => Expr::Cast(Cast::new_from_field(Box::new(other), field)),
            }),
            other => Ok(other),
        }
    }
    let known = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Limit(_) => plan.map_expressions(|expr| match expr {
            Expr::Cast(_) => Ok(Transformed::yes(value(expr)?)),
            other => Ok(Transformed::no(other)),
        }),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(known.data)
}
