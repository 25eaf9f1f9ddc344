//! Plans of statements and the gateway's cache of them.
//!
//! A plan belongs to the catalog snapshot that it was made with and to a search
//! path; it is used only while both are the same. Plans into which the clock or
//! a setting was folded are never kept.

use super::types::ResultColumn;
use crate::catalog::CatalogSnapshot;
use crate::dml::DmlPlan;
use crate::dml::codec::TableCodec;
use crate::dml::exprs::Compiler;
use crate::dml::insert::InsertPlan;
use crate::dml::locked::LockingSelect;
use crate::dml::update::ModifyPlan;
use crate::error::Result;
use crate::point::scalar::ParameterTypes;
use crate::point::{PointSelect, plain_select, single_table};
use crate::query::{Planned, QueryContext, QueryEngine};
use crate::statement::{Command, Statement, placed};
use datafusion::sql::sqlparser::ast::{self, Query, SetExpr};
use lineradb_common::sql::SqlType;
use std::sync::Arc;

/// How a statement is run.
#[derive(Debug)]
pub enum Plan {
    /// SELECT of one row by key.
    Point(PointSelect),
    /// SELECT by the query engine.
    Query(Box<Planned>),
    /// INSERT, UPDATE, DELETE.
    Dml(Box<DmlPlan>),
    /// DDL and what the session does itself.
    Other,
    /// A text with lifted literals that needs its literals to be planned.
    NotLiftable,
}

/// A plan and what it depends on.
#[derive(Debug)]
pub struct CompiledStatement {
    /// The statement.
    pub statement: Statement,
    /// The plan.
    pub plan: Plan,
    /// Types of `$1`, `$2`, ...
    pub parameter_types: Vec<SqlType>,
    /// What it returns; `None`: no rows.
    pub columns: Option<Arc<[ResultColumn]>>,
    /// It may be used again.
    cacheable: bool,
    snapshot: Arc<CatalogSnapshot>,
    search_path: Vec<String>,
    time_zone: String,
}

impl CompiledStatement {
    /// True when it is still right in this context.
    pub fn is_valid(&self, context: &QueryContext) -> bool {
        self.cacheable
            && Arc::ptr_eq(&self.snapshot, &context.catalog)
            && self.search_path == context.settings.search_path
            && self.time_zone == context.settings.time_zone_name
    }

    fn new(
        statement: &Statement,
        plan: Plan,
        parameters: &ParameterTypes,
        context: &QueryContext,
    ) -> Self {
        let columns = match &plan {
            Plan::Point(p) => Some(Arc::clone(&p.columns)),
            Plan::Query(p) => Some(Arc::clone(&p.columns)),
            Plan::Dml(p) => p.columns(),
            Plan::Other | Plan::NotLiftable => None,
        };
        let cacheable = match &plan {
            Plan::Query(p) => p.cacheable,
            Plan::Dml(p) => p.is_cacheable(),
            _ => true,
        };
        CompiledStatement {
            statement: statement.clone(),
            plan,
            parameter_types: parameters.finish(),
            columns,
            cacheable,
            snapshot: Arc::clone(&context.catalog),
            search_path: context.settings.search_path.clone(),
            time_zone: context.settings.time_zone_name.clone(),
        }
    }

    /// A plan that says: plan with the literals.
    pub fn not_liftable(context: &QueryContext) -> Self {
        Self::new(
            &Statement::empty(),
            Plan::NotLiftable,
            &ParameterTypes::default(),
            context,
        )
    }

    /// True for a plan that does not need the query engine.
    pub fn is_simple(&self) -> bool {
        match &self.plan {
            Plan::Point(_) => true,
            Plan::Dml(p) => p.explain().1.is_none() && p.is_cacheable(),
            _ => false,
        }
    }
}

/// Plans a statement. `declared` are the parameter types that the client gave.
///
/// # Errors
/// Those of planning.
pub async fn compile(
    engine: &QueryEngine,
    context: &QueryContext,
    statement: &Statement,
    declared: &[Option<SqlType>],
) -> Result<CompiledStatement> {
    let Command::Sql(tree) = statement.command() else {
        return Ok(CompiledStatement::new(
            statement,
            Plan::Other,
            &ParameterTypes::new(declared),
            context,
        ));
    };
    let mut compiler = Compiler {
        engine,
        context,
        parameters: ParameterTypes::new(declared),
    };
    let plan = compile_tree(&mut compiler, tree)
        .await
        .map_err(|e| placed(e, statement))?;
    Ok(CompiledStatement::new(
        statement,
        plan,
        &compiler.parameters,
        context,
    ))
}

async fn compile_tree(compiler: &mut Compiler<'_>, tree: &ast::Statement) -> Result<Plan> {
    let inserts = |p| Plan::Dml(Box::new(DmlPlan::Insert(Box::new(p))));
    let modifies = |p| Plan::Dml(Box::new(DmlPlan::Modify(Box::new(p))));
    Ok(match tree {
        ast::Statement::Query(query) => match &*query.body {
            // WITH .. INSERT and the like.
            SetExpr::Insert(ast::Statement::Insert(insert)) => {
                inserts(InsertPlan::plan(compiler, insert, query.with.as_ref()).await?)
            }
            SetExpr::Update(ast::Statement::Update(update)) => {
                modifies(ModifyPlan::plan_update(compiler, update, query.with.as_ref()).await?)
            }
            SetExpr::Delete(ast::Statement::Delete(delete)) => {
                modifies(ModifyPlan::plan_delete(compiler, delete, query.with.as_ref()).await?)
            }
            _ => match point_select(compiler, query) {
                Some(point) => Plan::Point(point),
                None if !query.locks.is_empty() => {
                    let locking = LockingSelect::plan(compiler, query).await?;
                    Plan::Dml(Box::new(DmlPlan::Lock(Box::new(locking))))
                }
                None => {
                    let planned = compiler
                        .engine
                        .plan(compiler.context, query, &compiler.parameters.types)
                        .await?;
                    compiler.parameters.merge(&planned.parameter_types);
                    Plan::Query(Box::new(planned))
                }
            },
        },
        ast::Statement::Insert(insert) => inserts(InsertPlan::plan(compiler, insert, None).await?),
        ast::Statement::Update(update) => {
            modifies(ModifyPlan::plan_update(compiler, update, None).await?)
        }
        ast::Statement::Delete(delete) => {
            modifies(ModifyPlan::plan_delete(compiler, delete, None).await?)
        }
        _ => Plan::Other,
    })
}

fn point_select(compiler: &mut Compiler<'_>, query: &Query) -> Option<PointSelect> {
    let (_, factor) = plain_select(query)?;
    let (schema, name, alias) = single_table(factor)?;
    let settings = &compiler.context.settings;
    let table =
        compiler
            .context
            .catalog
            .resolve(schema.as_deref(), &name, &settings.search_path)?;
    let codec = Arc::new(TableCodec::new(table).ok()?);
    let mut parameters = compiler.parameters.clone();
    let point = PointSelect::compile(&codec, &alias, query, &mut parameters)?;
    compiler.parameters = parameters;
    Some(point)
}

/// What a cached plan is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlanKey {
    /// The statement, with literals lifted or parameters of its own.
    pub text: Arc<str>,
    /// Types of the literals, or those that the client declared.
    pub types: Vec<Option<SqlType>>,
    /// The schemas in which names are looked up.
    pub search_path: Vec<String>,
    /// Casts between dates and points in time are planned with it.
    pub time_zone: String,
}

/// Plans by text, shared by the sessions of a gateway.
pub struct PlanCache {
    cache: quick_cache::sync::Cache<PlanKey, Arc<CompiledStatement>>,
}

/// Plans kept.
const PLANS: usize = 4096;
/// Longer texts (bulk inserts) are not kept.
const TEXT_BYTES: usize = 8192;

impl PlanCache {
    /// An empty cache.
    pub fn new() -> Self {
        PlanCache {
            cache: quick_cache::sync::Cache::new(PLANS),
        }
    }

    /// A plan that is right in this context.
    pub fn get(&self, key: &PlanKey, context: &QueryContext) -> Option<Arc<CompiledStatement>> {
        self.cache.get(key).filter(|c| c.is_valid(context))
    }

    /// Keeps a plan, if it may be used again.
    pub fn put(&self, key: PlanKey, compiled: &Arc<CompiledStatement>) {
        if compiled.cacheable && key.text.len() <= TEXT_BYTES {
            self.cache.insert(key, Arc::clone(compiled));
        }
    }

    /// Forgets all plans (DISCARD PLANS).
    pub fn clear(&self) {
        self.cache.clear();
    }
}

impl Default for PlanCache {
    fn default() -> Self {
        Self::new()
    }
}
