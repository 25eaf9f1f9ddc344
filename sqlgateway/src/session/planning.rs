//! What a session plans its statements against, and the plans that it keeps.

use super::block::Block;
use super::plan::{self, CompiledStatement};
use super::types::ResultColumn;
use super::{Prepared, Session};
use crate::catalog::CatalogSnapshot;
use crate::error::{Result, SqlError};
use crate::query::QueryContext;
use lineradb_common::sql::SqlType;
use std::sync::Arc;

impl Session {
    /// What statements are planned against now.
    pub(super) fn context(&self) -> QueryContext {
        self.context_of(self.catalog())
    }

    /// The catalog that the next statement sees.
    pub(super) fn catalog(&self) -> Arc<CatalogSnapshot> {
        match self.block.as_ref().and_then(Block::own_catalog) {
            Some(own) => Arc::clone(own),
            None => self.gateway.catalog.snapshot(),
        }
    }

    pub(super) fn context_of(&self, catalog: Arc<CatalogSnapshot>) -> QueryContext {
        let mut settings = self.settings.clone();
        settings.transaction_time_us = match &self.block {
            Some(b) => b.began_us,
            None => settings.statement_time_us,
        };
        QueryContext {
            catalog,
            virtual_tables: Arc::clone(&self.gateway.virtual_tables),
            settings: Arc::new(settings),
            prepared: Arc::clone(&self.prepared),
            set_requests: Arc::clone(&self.set_requests),
            row_ids: false,
        }
    }

    /// Plans a statement, from the cache where possible; reads the catalog again
    /// before it says that something does not exist (S4).
    pub(super) async fn compile(
        &self,
        statement: &crate::statement::Statement,
        declared: &[Option<SqlType>],
        cache: bool,
    ) -> Result<Arc<CompiledStatement>> {
        let context = self.context();
        let own_catalog = self.block.as_ref().and_then(Block::own_catalog).is_some();
        let key = plan::PlanKey {
            text: Arc::clone(statement.shared_text()),
            types: declared.to_vec(),
            search_path: context.settings.search_path.clone(),
            time_zone: context.settings.time_zone_name.clone(),
        };
        let cache = cache && !own_catalog;
        // A text without literals is its own lifted text: what is kept under it may
        // be the mark that it cannot be lifted, which is no plan.
        if cache
            && let Some(found) = self.gateway.plans.get(&key, &context)
            && !matches!(found.plan, plan::Plan::NotLiftable)
        {
            return Ok(found);
        }
        let engine = &self.gateway.engine;
        let mut compiled = plan::compile(engine, &context, statement, declared).await;
        if let Err(e) = &compiled
            && !own_catalog
            && matches!(
                e.sqlstate.as_str(),
                "42P01" | "42703" | "3F000" | "42704" | "42P10"
            )
        {
            let fresh = self.gateway.catalog.refresh().await?;
            if !Arc::ptr_eq(&fresh, &context.catalog) {
                let context = self.context_of(fresh);
                compiled = plan::compile(engine, &context, statement, declared).await;
            }
        }
        let compiled = Arc::new(compiled?);
        if cache {
            self.gateway.plans.put(key, &compiled);
        }
        Ok(compiled)
    }

    /// The plan of a prepared statement, made anew when it is no longer right.
    pub(super) async fn current_plan(
        &self,
        prepared: &Prepared,
        context: &QueryContext,
    ) -> Result<Arc<CompiledStatement>> {
        let held = prepared.plan.lock().clone();
        if let Some(held) = held
            && held.is_valid(context)
        {
            return Ok(held);
        }
        let declared: Vec<Option<SqlType>> =
            prepared.parameter_types.iter().map(|t| Some(*t)).collect();
        let compiled = self.compile(&prepared.statement, &declared, true).await?;
        prepared.check_columns(&compiled)?;
        *prepared.plan.lock() = Some(Arc::clone(&compiled));
        Ok(compiled)
    }
}

impl Prepared {
    /// The client was told the names and types of the columns.
    pub(super) fn check_columns(&self, compiled: &CompiledStatement) -> Result<()> {
        let (Some(before), Some(now)) = (&self.columns, &compiled.columns) else {
            return Ok(());
        };
        let mut pairs = before.iter().zip(now.iter());
        let is_same =
            |a: &ResultColumn, b: &ResultColumn| (&a.name, a.sql_type) == (&b.name, b.sql_type);
        let same = before.len() == now.len() && pairs.all(|(a, b)| is_same(a, b));
        match same {
            true => Ok(()),
            false => Err(SqlError::new(
                "0A000",
                "cached plan must not change result type",
            )),
        }
    }
}
