//! Expressions of DML statements (RETURNING, SET, DEFAULT, ON CONFLICT) over rows
//! of values: simple ones directly, others through the query engine.

use crate::error::{Result, SqlError};
use crate::point::compile::compile;
use crate::point::is_plain_wildcard;
use crate::point::scalar::{ParameterTypes, Scalar, Scope, Values};
use crate::query::{Compiled, ExpressionScope, QueryContext, QueryEngine};
use crate::session::ResultColumn;
use crate::statement::ident;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::sql::sqlparser::ast::{Expr, Query, SelectItem, Visit, Visitor};
use lineradb_common::sql::{Datum, SqlType, batch_from_rows, datum_at};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// True for an expression that has a query in it.
pub fn has_subquery(expr: &Expr) -> bool {
    struct Find;
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    expr.visit(&mut Find).is_break()
}

/// The shape of the rows that expressions are evaluated on.
#[derive(Clone, Debug)]
pub struct RowShape {
    /// Visible columns by name.
    pub scope: Scope,
    /// All columns of the rows.
    pub types: Vec<SqlType>,
    /// Their Arrow form.
    pub schema: SchemaRef,
    /// Qualifiers and the columns that they cover.
    pub qualifiers: Vec<(String, Range<usize>)>,
    /// The table whose columns come first: its OID and their numbers.
    pub table: (u32, Vec<i16>),
}

impl RowShape {
    /// Rows of a table known as `qualifier`, followed by those known as others
    /// (such as `excluded`), each of the same table.
    pub fn of_table(table: &crate::catalog::TableDescriptor, qualifiers: &[&str]) -> Self {
        let mut fields = Vec::new();
        let mut types = Vec::new();
        let mut scope = Scope::default();
        let mut ranges = Vec::new();
        for q in qualifiers {
            let start = types.len();
            for mut c in crate::point::access::table_scope(table, q).columns {
                c.position += start;
                scope.columns.push(c);
            }
            for c in &table.columns {
                types.push(c.sql_type);
                fields.push(c.sql_type.field(&c.name, true));
            }
            ranges.push(((*q).to_owned(), start..types.len()));
        }
        RowShape {
            scope,
            types,
            schema: Arc::new(Schema::new(fields)),
            qualifiers: ranges,
            table: (
                table.id,
                table.columns.iter().map(|c| c.id as i16).collect(),
            ),
        }
    }

    /// No columns at all.
    pub fn empty() -> Self {
        RowShape {
            scope: Scope::default(),
            types: Vec::new(),
            schema: Arc::new(Schema::empty()),
            qualifiers: Vec::new(),
            table: (0, Vec::new()),
        }
    }
}

/// A list of expressions, ready to be evaluated.
#[derive(Debug)]
pub enum Exprs {
    /// Simple ones.
    Simple(Vec<Scalar>),
    /// Compiled by the query engine.
    Engine(Compiled),
}

/// Where compilation happens.
pub struct Compiler<'a> {
    /// For what is not simple.
    pub engine: &'a QueryEngine,
    /// Catalog and settings.
    pub context: &'a QueryContext,
    /// Parameter types found so far.
    pub parameters: ParameterTypes,
}

impl Compiler<'_> {
    /// Compiles a select list.
    ///
    /// # Errors
    /// Those of planning.
    pub fn select_list(
        &mut self,
        items: &[SelectItem],
        shape: &RowShape,
    ) -> Result<(Exprs, Vec<ResultColumn>)> {
        if let Some(simple) = self.simple_list(items, shape) {
            return Ok(simple);
        }
        let compiled = self.engine_list(items, shape)?;
        let columns = compiled.columns.to_vec();
        Ok((Exprs::Engine(compiled), columns))
    }

    /// Compiles expressions; `hints` are the types of the columns that they are
    /// assigned to.
    ///
    /// # Errors
    /// Those of planning.
    pub fn expressions(
        &mut self,
        exprs: &[Expr],
        hints: &[Option<SqlType>],
        shape: &RowShape,
    ) -> Result<Exprs> {
        let saved = self.parameters.clone();
        let simple: Option<Vec<Scalar>> = exprs
            .iter()
            .zip(hints)
            .map(|(e, hint)| compile(e, &shape.scope, &mut self.parameters, *hint).map(|t| t.expr))
            .collect();
        if let Some(simple) = simple {
            return Ok(Exprs::Simple(simple));
        }
        self.parameters = saved;
        // A parameter that stands alone takes the type of its column.
        for (e, hint) in exprs.iter().zip(hints) {
            hint_placeholder(e, *hint, &mut self.parameters);
        }
        let items: Vec<SelectItem> = exprs
            .iter()
            .map(|e| SelectItem::UnnamedExpr(e.clone()))
            .collect();
        Ok(Exprs::Engine(self.engine_list(&items, shape)?))
    }

    fn engine_list(&mut self, items: &[SelectItem], shape: &RowShape) -> Result<Compiled> {
        let scope = ExpressionScope {
            schema: Arc::clone(&shape.schema),
            qualifiers: shape.qualifiers.clone(),
        };
        let compiled = self
            .engine
            .compile(self.context, &scope, items, &self.parameters.types)?;
        self.parameters.merge(&compiled.parameter_types);
        Ok(compiled)
    }

    fn simple_list(
        &mut self,
        items: &[SelectItem],
        shape: &RowShape,
    ) -> Option<(Exprs, Vec<ResultColumn>)> {
        let mut exprs = Vec::new();
        let mut columns = Vec::new();
        let column = |position: usize, name: String| {
            let (oid, numbers) = &shape.table;
            ResultColumn {
                name,
                sql_type: shape.types[position],
                table_oid: *oid,
                column_number: numbers[position % numbers.len()],
            }
        };
        for item in items {
            let (expr, label) = match item {
                SelectItem::Wildcard(o) if is_plain_wildcard(o) => {
                    for c in &shape.scope.columns {
                        exprs.push(Scalar::Column(c.position));
                        columns.push(column(c.position, c.name.clone()));
                    }
                    continue;
                }
                SelectItem::UnnamedExpr(e) => (e, None),
                SelectItem::ExprWithAlias { expr, alias } => (expr, Some(ident(alias))),
                _ => return None,
            };
            let mut parameters = self.parameters.clone();
            let typed = compile(expr, &shape.scope, &mut parameters, None)?;
            if typed.may_need_more_digits() {
                return None;
            }
            match (&typed.expr, label) {
                (Scalar::Column(at), label) => {
                    let name = label.unwrap_or_else(|| {
                        shape
                            .scope
                            .columns
                            .iter()
                            .find(|c| c.position == *at)
                            .map_or_else(String::new, |c| c.name.clone())
                    });
                    columns.push(column(*at, name));
                }
                (_, Some(label)) => columns.push(ResultColumn::new(label, typed.sql_type)),
                _ => return None,
            }
            self.parameters = parameters;
            exprs.push(typed.expr);
        }
        Some((Exprs::Simple(exprs), columns))
    }
}

/// Tells a parameter that stands alone the type of its column.
pub fn hint_placeholder(expr: &Expr, hint: Option<SqlType>, parameters: &mut ParameterTypes) {
    use datafusion::sql::sqlparser::ast::Value;
    match expr {
        Expr::Nested(inner) => hint_placeholder(inner, hint, parameters),
        Expr::Value(v) => {
            if let Value::Placeholder(name) = &v.value
                && let Some(at) = crate::point::compile::placeholder(name)
            {
                parameters.resolve(at, hint);
            }
        }
        _ => {}
    }
}

impl Exprs {
    /// The values for each row.
    ///
    /// # Errors
    /// Those of the expressions.
    pub fn evaluate(
        &self,
        context: &QueryContext,
        shape: &RowShape,
        rows: &[Vec<Datum>],
        parameters: &[Datum],
    ) -> Result<Vec<Vec<Datum>>> {
        match self {
            Exprs::Simple(exprs) => rows
                .iter()
                .map(|row| {
                    let values = Values {
                        parameters,
                        row,
                        settings: &context.settings,
                    };
                    exprs.iter().map(|e| e.evaluate(&values)).collect()
                })
                .collect(),
            Exprs::Engine(compiled) => {
                let batch = batch_from_rows(&shape.schema, &shape.types, rows)?;
                let arrays = compiled.evaluate(context, &batch, parameters)?;
                if arrays.len() != compiled.columns.len() {
                    return Err(SqlError::internal("expressions gave too few columns"));
                }
                (0..rows.len())
                    .map(|at| {
                        arrays
                            .iter()
                            .zip(compiled.columns.iter())
                            .map(|(a, c)| Ok(datum_at(a.as_ref(), at, c.sql_type)?))
                            .collect()
                    })
                    .collect()
            }
        }
    }

    /// How many expressions.
    pub fn len(&self) -> usize {
        match self {
            Exprs::Simple(e) => e.len(),
            Exprs::Engine(c) => c.columns.len(),
        }
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// False when the clock or a setting was folded in while compiling.
    pub fn is_cacheable(&self) -> bool {
        match self {
            Exprs::Simple(_) => true,
            Exprs::Engine(c) => c.cacheable,
        }
    }
}
