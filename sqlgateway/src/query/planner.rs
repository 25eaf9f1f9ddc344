//! What SQL names mean for one statement: tables of the catalog snapshot,
//! virtual tables, functions, types.
//!
//! DataFusion's `SqlToRel` asks here directly; there is no session context and
//! no catalog object of DataFusion's. Whatever is looked up is noted, because
//! the requests of the plan carry the versions of the tables.

use super::context::QueryContext;
use super::errors::{carry, sql_error};
use super::functions::{depends_on_statement, session_function};
use super::scope::Named;
use super::table::ShardTable;
use super::types::Types;
use super::virtual_tables::VirtualProvider;
use crate::error::{Result as SqlResult, SqlError};
use crate::pg_catalog::is_system_schema;
use crate::settings::Settings;
use crate::statement::object_name;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::TableFunctionArgs;
use datafusion::catalog::cte_worktable::CteWorkTable;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DFSchema, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::{
    AggregateFunction, BinaryExpr, ScalarFunction, WindowFunction,
};
use datafusion::logical_expr::planner::{
    ContextProvider, ExprPlanner, PlannerResult, RawAggregateExpr, RawBinaryExpr, RawWindowExpr,
    TypePlanner,
};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    AggregateUDF, Expr, ExprSchemable, HigherOrderUDF, Operator, ScalarUDF, TableSource,
    WindowFunctionDefinition, WindowUDF,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::{BinaryOperator, ObjectName};
use lineradb_client::TableVersion;
use lineradb_common::sql::SqlType;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// What the planning of a statement found out on the way.
#[derive(Debug, Default)]
pub struct Notes {
    /// Tables that the plan reads, with their versions.
    pub tables: Vec<TableVersion>,
    /// A session function was folded into the plan.
    pub bound_to_statement: bool,
}

/// Resolves names for one statement.
pub struct Names<'a> {
    state: &'a SessionState,
    context: &'a QueryContext,
    notes: Mutex<Notes>,
    catalog_functions: OnceLock<HashMap<String, Arc<ScalarUDF>>>,
    expr_planners: Vec<Arc<dyn ExprPlanner>>,
}

impl<'a> Names<'a> {
    /// For one statement.
    pub fn new(state: &'a SessionState, context: &'a QueryContext) -> Self {
        let mut expr_planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(PostgresPlanner {
            settings: context.settings.clone(),
        })];
        expr_planners.extend(state.expr_planners().iter().cloned());
        Self {
            state,
            context,
            notes: Mutex::default(),
            catalog_functions: OnceLock::new(),
            expr_planners,
        }
    }

    /// What was looked up.
    pub fn into_notes(self) -> Notes {
        self.notes.into_inner()
    }

    /// A table's columns, in order.
    ///
    /// # Errors
    /// 42P01 when there is no such table.
    pub fn columns_of(&self, name: &ObjectName) -> SqlResult<Vec<Named>> {
        let (schema, table) = object_name(name)?;
        let catalog = &self.context.catalog;
        let path = &self.context.settings.search_path;
        let source = self.get_table_source(match &schema {
            Some(schema) => TableReference::partial(schema.as_str(), table.as_str()),
            None => TableReference::bare(table.as_str()),
        });
        let schema_of = source.map_err(sql_error)?.schema();
        let mut columns: Vec<Named> = { schema_of.fields().iter() }
            .map(|field| Named {
                name: field.name().clone(),
                sql_type: Some(SqlType::from_field(field)),
            })
            .collect();
        if self.context.row_ids
            && let Some(descriptor) = catalog.resolve(schema.as_deref(), &table, path)
        {
            columns.retain(|column| descriptor.column(&column.name).is_some());
        }
        Ok(columns)
    }

    fn virtual_table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableSource>> {
        let table = self.context.virtual_tables.table(schema, name)?;
        self.notes.lock().bound_to_statement = true;
        Some(provider_as_source(Arc::new(VirtualProvider::new(
            table,
            self.context.clone(),
        ))))
    }
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        if let Some(catalog) = name.catalog()
            && catalog != self.context.settings.database
        {
            return Err(carry(SqlError::unsupported(format!(
                "cross-database reference {name}"
            ))));
        }
        let table = name.table();
        let found = match name.schema() {
            Some(schema) if is_system_schema(schema) => self.virtual_table(schema, table),
            Some(_) => None,
            None => self.virtual_table("pg_catalog", table),
        };
        if let Some(found) = found {
            return Ok(found);
        }
        let descriptor =
            self.context
                .catalog
                .resolve(name.schema(), table, &self.context.settings.search_path);
        match descriptor {
            Some(descriptor) => {
                let version = descriptor.table_version();
                let mut notes = self.notes.lock();
                if !notes.tables.contains(&version) {
                    notes.tables.push(version);
                }
                drop(notes);
                let table =
                    ShardTable::new(descriptor.clone(), self.context.row_ids).map_err(carry)?;
                Ok(provider_as_source(Arc::new(table)))
            }
            None => Err(carry(SqlError::undefined_table(match name.schema() {
                Some(schema) => format!("{schema}.{table}"),
                None => table.to_owned(),
            }))),
        }
    }

    fn get_table_function_source(
        &self,
        name: &str,
        args: Vec<Expr>,
    ) -> Result<Arc<dyn TableSource>> {
        let Some(function) = self.state.table_functions().get(name) else {
            return Err(carry(SqlError::new(
                "42883",
                format!("function {name} does not exist or does not return a set"),
            )));
        };
        let simplifier = ExprSimplifier::new(SimplifyContext::default());
        let schema = DFSchema::empty();
        let args = args
            .into_iter()
            .map(|arg| {
                let arg = super::semantics::operators(arg, &schema, &self.context.settings)?;
                simplifier.simplify(simplifier.coerce(arg, &schema)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let args = super::series::arguments(name, args, &self.context.settings)?;
        let provider =
            function.create_table_provider_with_args(TableFunctionArgs::new(&args, self.state))?;
        Ok(provider_as_source(provider))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(
            name, schema,
        ))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.expr_planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(Types))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let functions = self.catalog_functions.get_or_init(|| {
            self.context
                .virtual_tables
                .functions(self.context)
                .into_iter()
                .map(|f| (f.name().to_owned(), f))
                .collect()
        });
        if let Some(function) = functions.get(name) {
            self.notes.lock().bound_to_statement = true;
            return Some(function.clone());
        }
        if let Some(function) = session_function(name, self.context) {
            if depends_on_statement(name) {
                self.notes.lock().bound_to_statement = true;
            }
            return Some(function);
        }
        let name = match name {
            "mod" => "pg_mod",
            "abs" => "pg_abs",
            "sign" => "signum",
            other => other,
        };
        if NOT_POSTGRES.contains(&name) {
            return None;
        }
        self.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        let name = match name {
            "every" => "bool_and",
            "variance" => "var_samp",
            other => other,
        };
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}

/// Functions of DataFusion's that share a name with PostgreSQL's but not a
/// meaning, and have no replacement yet.
const NOT_POSTGRES: &[&str] = &["to_unixtime", "arrow_cast", "arrow_typeof", "struct"];

/// `extract` with fractions, and `avg` as an exact quotient.
#[derive(Debug)]
struct PostgresPlanner {
    settings: Arc<Settings>,
}

fn scalar(name: &str, args: Vec<Expr>) -> Result<Expr> {
    match lineradb_functions::by_name(name) {
        Some(function) => Ok(Expr::ScalarFunction(ScalarFunction::new_udf(
            function, args,
        ))),
        None => Err(carry(SqlError::internal(format!("no function {name}")))),
    }
}

impl ExprPlanner for PostgresPlanner {
    /// What DataFusion has no types for (`interval * 2`, `'1' + 1`, a uuid compared
    /// with a literal).
    fn plan_binary_op(
        &self,
        raw: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        let op = match raw.op {
            BinaryOperator::Plus => Operator::Plus,
            BinaryOperator::Minus => Operator::Minus,
            BinaryOperator::Multiply => Operator::Multiply,
            BinaryOperator::Divide => Operator::Divide,
            BinaryOperator::Modulo => Operator::Modulo,
            BinaryOperator::Eq => Operator::Eq,
            BinaryOperator::NotEq => Operator::NotEq,
            BinaryOperator::Lt => Operator::Lt,
            BinaryOperator::LtEq => Operator::LtEq,
            BinaryOperator::Gt => Operator::Gt,
            BinaryOperator::GtEq => Operator::GtEq,
            _ => return Ok(PlannerResult::Original(raw)),
        };
        let (Ok(left), Ok(right)) = (raw.left.get_type(schema), raw.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(raw));
        };
        let placeholder = |e: &Expr| matches!(e, Expr::Placeholder(p) if p.field.is_none());
        let typed = BinaryTypeCoercer::new(&left, &op, &right)
            .get_result_type()
            .is_ok();
        if typed || placeholder(&raw.left) || placeholder(&raw.right) {
            return Ok(PlannerResult::Original(raw));
        }
        let binary = Expr::BinaryExpr(BinaryExpr::new(Box::new(raw.left), op, Box::new(raw.right)));
        Ok(PlannerResult::Planned(super::semantics::operators(
            binary,
            schema,
            &self.settings,
        )?))
    }

    fn plan_extract(&self, args: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        Ok(PlannerResult::Planned(scalar("pg_extract", args)?))
    }

    fn plan_aggregate(&self, raw: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        if raw.func.name() != "avg" {
            return Ok(PlannerResult::Original(raw));
        }
        let make = |function: Arc<AggregateUDF>| {
            Expr::AggregateFunction(AggregateFunction::new_udf(
                function,
                raw.args.clone(),
                raw.distinct,
                raw.filter.clone(),
                raw.order_by.clone(),
                raw.null_treatment,
            ))
        };
        let sum = make(lineradb_functions::sum::avg_sum());
        let count = make(datafusion::functions_aggregate::count::count_udaf());
        Ok(PlannerResult::Planned(scalar(
            "pg_avg_div",
            vec![sum, count],
        )?))
    }

    fn plan_window(&self, raw: RawWindowExpr) -> Result<PlannerResult<RawWindowExpr>> {
        let is_average =
            matches!(&raw.func_def, WindowFunctionDefinition::AggregateUDF(f) if f.name() == "avg");
        if !is_average {
            return Ok(PlannerResult::Original(raw));
        }
        let make = |function: Arc<AggregateUDF>| {
            let mut window = WindowFunction::new(
                WindowFunctionDefinition::AggregateUDF(function),
                raw.args.clone(),
            );
            window.params.partition_by = raw.partition_by.clone();
            window.params.order_by = raw.order_by.clone();
            window.params.window_frame = raw.window_frame.clone();
            window.params.filter = raw.filter.clone();
            window.params.null_treatment = raw.null_treatment;
            window.params.distinct = raw.distinct;
            Expr::WindowFunction(Box::new(window))
        };
        let sum = make(lineradb_functions::sum::avg_sum());
        let count = make(datafusion::functions_aggregate::count::count_udaf());
        Ok(PlannerResult::Planned(scalar(
            "pg_avg_div",
            vec![sum, count],
        )?))
    }
}
