//! The engine: plans queries, keeps the plans, runs them.

use super::arrays::{expand, has_quantified};
use super::context::QueryContext;
use super::cooperate::YieldWhereRowsMultiply;
use super::errors::{carry, sql_error};
use super::functions::session_function;
use super::names::{name_outputs, plain};
use super::order_by::look_up_order_names;
use super::placeholders::{type_placeholders, with_known_limits};
use super::planner::{Names, Notes};
use super::pushdown::ShipFragments;
use super::rewrite::{refuse_locking, rewrite_query};
use super::scan::Binding;
use super::semantics::{after_coercion, before_coercion};
use super::using::write_out_joins;
use crate::error::{Result, SqlError};
use crate::session::ResultColumn;
use arrow::datatypes::{DataType, Field};
use datafusion::common::config::ConfigOptions;
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{
    FunctionRegistry, SendableRecordBatchStream, SessionState, SessionStateBuilder, TaskContext,
};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::SessionConfig;
use datafusion::sql::planner::{NullOrdering, ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{Query, Statement, TableFactor, Visit, Visitor};
use lineradb_client::{TableVersion, Transaction};
use lineradb_common::spawn;
use lineradb_common::sql::{Datum, DatumArrayBuilder, SqlType};
use lineradb_functions::nullable::ORIGIN_METADATA_KEY;
use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Tables in a query from which it is planned off the threads that serve
/// connections: joins cost milliseconds.
const SMALL_QUERY_TABLES: usize = 2;

/// How an engine is made.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes that all queries together may hold before they spill or fail.
    pub memory_limit: usize,
    /// Threads that one query's joins and aggregates are dealt to.
    pub parallelism: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            memory_limit: 1 << 30,
            parallelism: 2,
        }
    }
}

/// Plans and runs queries. One per gateway; sessions share it.
pub struct QueryEngine {
    state: Arc<SessionState>,
}

impl fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryEngine").finish_non_exhaustive()
    }
}

/// A query ready to run, any number of times while the tables keep their
/// versions and, unless it is `cacheable`, within its statement only.
#[derive(Clone)]
pub struct Planned {
    /// What it returns.
    pub columns: Arc<[ResultColumn]>,
    /// Types of `$1`, `$2`, ...
    pub parameter_types: Vec<SqlType>,
    /// What it reads.
    pub tables: Vec<TableVersion>,
    /// False when the clock or the session was folded into it: plan again for
    /// each execution.
    pub cacheable: bool,
    /// Parameters are compared with as arrays.
    arrays: bool,
    plan: Arc<LogicalPlan>,
    state: Arc<SessionState>,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planned")
            .field("columns", &self.columns)
            .field("parameter_types", &self.parameter_types)
            .finish_non_exhaustive()
    }
}

fn configuration(options: &EngineOptions) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(options.parallelism.max(1))
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false);
    let o: &mut ConfigOptions = config.options_mut();
    o.sql_parser.parse_float_as_decimal = true;
    o.execution.time_zone = Some("UTC".into());
    o.optimizer.enable_round_robin_repartition = false;
    // Scans take no filters at run time yet.
    o.optimizer.enable_dynamic_filter_pushdown = false;
    o.optimizer.skip_failed_rules = false;
    config
}

/// How SQL text is read.
pub(super) fn parser_options() -> ParserOptions {
    ParserOptions {
        parse_float_as_decimal: true,
        enable_ident_normalization: true,
        support_varchar_with_length: true,
        map_string_types_to_utf8view: true,
        enable_options_value_normalization: false,
        collect_spans: false,
        default_null_ordering: NullOrdering::NullsMax,
    }
}

impl QueryEngine {
    /// An engine.
    ///
    /// # Errors
    /// XX000 when DataFusion refuses its configuration.
    pub fn new(options: EngineOptions) -> Result<Arc<Self>> {
        let build = || -> datafusion::error::Result<SessionState> {
            let runtime = RuntimeEnvBuilder::new()
                .with_memory_pool(Arc::new(FairSpillPool::new(options.memory_limit)))
                .build_arc()?;
            let mut state = SessionStateBuilder::new()
                .with_config(configuration(&options))
                .with_runtime_env(runtime)
                .with_default_features()
                .with_physical_optimizer_rule(Arc::new(ShipFragments))
                .with_physical_optimizer_rule(Arc::new(YieldWhereRowsMultiply))
                .build();
            for function in lineradb_functions::all() {
                state.register_udf(function.clone())?;
            }
            state.register_udaf(lineradb_functions::sum::sum())?;
            state.register_udaf(lineradb_functions::sum::avg_sum())?;
            Ok(state)
        };
        Ok(Arc::new(Self {
            state: Arc::new(build().map_err(sql_error)?),
        }))
    }

    pub(super) fn state(&self) -> &Arc<SessionState> {
        &self.state
    }

    /// Plans a query. `parameter_types` are those that the client gave; the
    /// others are inferred.
    ///
    /// # Errors
    /// As PostgreSQL's analysis, and 0A000 for what is not supported.
    pub async fn plan(
        &self,
        context: &QueryContext,
        query: &Query,
        parameter_types: &[Option<SqlType>],
    ) -> Result<Planned> {
        if count_tables(query) <= SMALL_QUERY_TABLES {
            return plan_now(&self.state, context, query.clone(), parameter_types);
        }
        let (state, context, query) = (self.state.clone(), context.clone(), query.clone());
        let types = parameter_types.to_vec();
        match spawn::blocking(move || plan_now(&state, &context, query, &types)).await {
            Ok(result) => result,
            Err(error) => Err(SqlError::internal(format!("planning failed: {error}"))),
        }
    }
}

fn count_tables(query: &Query) -> usize {
    struct Count(usize);
    impl Visitor for Count {
        type Break = ();
        fn pre_visit_table_factor(&mut self, _: &TableFactor) -> ControlFlow<()> {
            self.0 += 1;
            ControlFlow::Continue(())
        }
    }
    let mut count = Count(0);
    let _ = query.visit(&mut count);
    count.0
}

/// The planner's context, with the parameter types that are known.
pub(super) fn planner_context(parameter_types: &[Option<SqlType>]) -> PlannerContext {
    let fields = parameter_types
        .iter()
        .map(|t| t.map(|t| Arc::new(t.field("", true))))
        .collect();
    PlannerContext::new().with_prepare_param_data_types(fields)
}

fn plan_now(
    state: &Arc<SessionState>,
    context: &QueryContext,
    mut query: Query,
    parameter_types: &[Option<SqlType>],
) -> Result<Planned> {
    refuse_locking(&query)?;
    crate::pg_catalog::rewrite_query(&mut query);
    name_outputs(&mut query);
    rewrite_query(&mut query)?;
    let names = Names::new(state, context);
    write_out_joins(&mut query, &names)?;
    look_up_order_names(&mut query)?;
    let relations = SqlToRel::new_with_options(&names, parser_options());
    let plan = relations
        .sql_statement_to_plan_with_context(
            Statement::Query(Box::new(query)),
            &mut planner_context(parameter_types),
        )
        .map_err(sql_error)?;
    drop(relations);
    let Notes {
        tables,
        bound_to_statement,
    } = names.into_notes();
    let plan = finish_logical(state, context, plan, parameter_types).map_err(sql_error)?;
    let parameter_types = parameters_of(&plan.analyzed, parameter_types).map_err(sql_error)?;
    refuse_matrices(&plan.analyzed)?;
    let columns = plan
        .analyzed
        .schema()
        .fields()
        .iter()
        .map(|f| result_column(f))
        .collect();
    Ok(Planned {
        columns,
        parameter_types,
        tables,
        cacheable: !bound_to_statement
            && context.settings.time_zone == lineradb_common::sql::TimeZone::UTC,
        arrays: has_quantified(&plan.optimized).map_err(sql_error)?,
        plan: Arc::new(plan.optimized),
        state: state.clone(),
    })
}

struct Logical {
    analyzed: LogicalPlan,
    optimized: LogicalPlan,
}

fn finish_logical(
    state: &SessionState,
    context: &QueryContext,
    plan: LogicalPlan,
    parameter_types: &[Option<SqlType>],
) -> datafusion::error::Result<Logical> {
    let plan = type_placeholders(plan, parameter_types)?;
    let plan = before_coercion(plan, &context.settings)?;
    let plan = state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})?;
    let analyzed = after_coercion(plan, &context.settings)?;
    let optimized = state
        .optimizer()
        .optimize(analyzed.clone(), state, |_, _| {})?;
    let optimized = match has_quantified(&optimized)? {
        true => expand(optimized)?,
        false => optimized,
    };
    Ok(Logical {
        analyzed,
        optimized,
    })
}

/// Types of all parameters, by number.
fn parameters_of(
    plan: &LogicalPlan,
    given: &[Option<SqlType>],
) -> datafusion::error::Result<Vec<SqlType>> {
    let mut types: Vec<SqlType> = given.iter().map(|t| t.unwrap_or(SqlType::Text)).collect();
    for (name, field) in plan.get_parameter_fields()? {
        let number: usize = match name.trim_start_matches('$').parse() {
            Ok(n) if (1..=65_535).contains(&n) => n,
            _ => {
                return Err(carry(SqlError::new(
                    "42P02",
                    format!("there is no parameter {name}"),
                )));
            }
        };
        if types.len() < number {
            types.resize(number, SqlType::Text);
        }
        if given.get(number - 1).copied().flatten().is_none()
            && let Some(field) = field
        {
            types[number - 1] = SqlType::from_field(&field);
        }
    }
    Ok(types)
}

/// Arrays of arrays are no arrays of several dimensions.
fn refuse_matrices(plan: &LogicalPlan) -> Result<()> {
    for field in plan.schema().fields() {
        if let DataType::List(item) | DataType::LargeList(item) = field.data_type()
            && matches!(item.data_type(), DataType::List(_) | DataType::LargeList(_))
        {
            return Err(SqlError::unsupported("an array of several dimensions"));
        }
    }
    Ok(())
}

/// How the user sees a column.
pub(super) fn result_column(field: &Field) -> ResultColumn {
    let mut column = ResultColumn::new(plain(field.name()), output_type(field));
    if let Some((table, number)) = field
        .metadata()
        .get(ORIGIN_METADATA_KEY)
        .and_then(|o| o.split_once(':'))
    {
        column.table_oid = table.parse().unwrap_or(0);
        column.column_number = number.parse().unwrap_or(0);
    }
    column
}

fn output_type(field: &Field) -> SqlType {
    if field.data_type().is_null() {
        return SqlType::Text;
    }
    lineradb_functions::cast::shown_type(field)
}

/// A parameter's value as a scalar of its type.
pub(super) fn scalar_of(datum: &Datum, sql_type: SqlType) -> Result<ScalarValue> {
    if datum.is_null() {
        return ScalarValue::try_from(&sql_type.arrow_type()).map_err(sql_error);
    }
    let mut builder = DatumArrayBuilder::new(sql_type, 1);
    builder.push(datum)?;
    ScalarValue::try_from_array(&builder.finish(), 0).map_err(sql_error)
}

/// The values of all parameters.
pub(super) fn bind(types: &[SqlType], parameters: &[Datum]) -> Result<ParamValues> {
    if parameters.len() < types.len() {
        return Err(SqlError::new(
            "08P01",
            format!(
                "{} parameters were given, the statement needs {}",
                parameters.len(),
                types.len()
            ),
        ));
    }
    let mut values = Vec::with_capacity(types.len());
    for (datum, sql_type) in parameters.iter().zip(types) {
        values.push(ScalarAndMetadata::new(scalar_of(datum, *sql_type)?, None));
    }
    Ok(ParamValues::List(values))
}

impl Planned {
    /// The optimised logical plan, with its placeholders.
    pub fn logical(&self) -> &LogicalPlan {
        &self.plan
    }

    /// The physical plan of one execution, and what to run it with.
    pub(super) async fn physical(
        &self,
        transaction: Option<&Transaction>,
        parameters: &[Datum],
    ) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>)> {
        let plan = if self.parameter_types.is_empty() {
            self.plan.as_ref().clone()
        } else {
            let values = bind(&self.parameter_types, parameters)?;
            let bound = self.plan.as_ref().clone();
            bound
                .replace_params_with_values(&values)
                .and_then(|plan| match self.arrays {
                    true => expand(plan),
                    false => Ok(plan),
                })
                .and_then(with_known_limits)
                .map_err(sql_error)?
        };
        let mut state = self.state.as_ref().clone();
        if let Some(transaction) = transaction {
            state.config_mut().set_extension(Arc::new(Binding {
                transaction: transaction.clone(),
            }));
        }
        let physical = DefaultPhysicalPlanner::default()
            .create_physical_plan(&plan, &state)
            .await
            .map_err(sql_error)?;
        Ok((physical, state.task_ctx()))
    }

    /// Runs it. Errors of execution come out of the stream (see
    /// [`sql_error`]).
    ///
    /// # Errors
    /// As binding and physical planning fail.
    pub async fn execute(
        &self,
        _context: &QueryContext,
        transaction: &Transaction,
        parameters: &[Datum],
    ) -> Result<SendableRecordBatchStream> {
        let (plan, task) = self.physical(Some(transaction), parameters).await?;
        execute_stream(plan, task).map_err(sql_error)
    }

    /// Runs a query that reads no table of the cluster: expressions, virtual
    /// tables.
    ///
    /// # Errors
    /// As [`Planned::execute`]; XX000 in the stream when a table is read.
    pub async fn execute_detached(
        &self,
        parameters: &[Datum],
    ) -> Result<SendableRecordBatchStream> {
        let (plan, task) = self.physical(None, parameters).await?;
        execute_stream(plan, task).map_err(sql_error)
    }
}

/// True when a name is one of the session's own functions.
pub fn is_session_function(name: &str, context: &QueryContext) -> bool {
    session_function(name, context).is_some()
}

/// Values by parameter name, for expressions.
pub(super) fn by_name(
    types: &[SqlType],
    parameters: &[Datum],
) -> Result<HashMap<String, ScalarValue>> {
    let mut out = HashMap::with_capacity(types.len());
    for (i, sql_type) in types.iter().enumerate() {
        let Some(datum) = parameters.get(i) else {
            return Err(SqlError::new(
                "08P01",
                format!("parameter ${} is missing", i + 1),
            ));
        };
        out.insert(format!("${}", i + 1), scalar_of(datum, *sql_type)?);
    }
    Ok(out)
}
