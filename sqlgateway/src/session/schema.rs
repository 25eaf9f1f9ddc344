//! DDL in a session: inside a block it joins the block's transaction; alone it is
//! one transaction, or several steps for index builds.

use super::Session;
use super::block::commit_error;
use super::run::{Retry, read_only_error};
use super::stream::Limits;
use super::types::Outcome;
use crate::catalog::CatalogChange;
use crate::ddl::{self, DdlEnv};
use crate::error::{Result, SqlError};
use crate::gateway::Gateway;
use crate::query::QueryContext;
use crate::statement::{Statement, TransactionModes};
use async_trait::async_trait;
use datafusion::sql::sqlparser::ast;
use lineradb_client::TransactionOptions;
use std::sync::Arc;

/// What one step of a DDL statement does; run again on conflicts.
#[async_trait]
pub trait DdlWork: Send {
    /// Does it.
    ///
    /// # Errors
    /// Those of the statement.
    async fn run(&mut self, env: &mut DdlEnv<'_>) -> Result<()>;
}

/// A whole statement as one step.
struct Whole<'a> {
    tree: &'a ast::Statement,
    tag: String,
}

#[async_trait]
impl DdlWork for Whole<'_> {
    async fn run(&mut self, env: &mut DdlEnv<'_>) -> Result<()> {
        self.tag = ddl::run(env, self.tree).await?;
        Ok(())
    }
}

/// Runs the steps of a DDL statement that is no part of a block.
pub struct DdlRunner<'a> {
    gateway: &'a Arc<Gateway>,
    context: QueryContext,
    options: TransactionOptions,
    notices: Vec<SqlError>,
}

impl DdlRunner<'_> {
    /// The gateway.
    pub fn gateway(&self) -> &Arc<Gateway> {
        self.gateway
    }

    /// One transaction that changes the catalog; run again on conflicts.
    ///
    /// # Errors
    /// Those of the work and the transaction layer.
    pub async fn step(&mut self, limits: &Limits, work: &mut dyn DdlWork) -> Result<()> {
        let mut retry = Retry::new(limits);
        loop {
            // Not under the request's idempotency key: the second of several steps
            // would be answered with the outcome of the first.
            let options = TransactionOptions {
                idempotency: None,
                ..self.options.clone()
            };
            let txn = self.gateway.client().begin(options)?;
            let attempt = async {
                let change = CatalogChange::begin(self.gateway.catalog(), &txn, None).await?;
                let mut env = DdlEnv {
                    gateway: self.gateway,
                    change,
                    context: self.context.clone(),
                    notices: Vec::new(),
                };
                work.run(&mut env).await?;
                let notices = std::mem::take(&mut env.notices);
                // A statement that changed nothing leaves the catalog alone.
                let pending = if txn.has_writes() {
                    Some(env.change.finish()?)
                } else {
                    None
                };
                Ok((pending, notices))
            };
            let error = match limits.run(attempt).await {
                Ok((pending, notices)) => match txn.commit().await {
                    Ok(_) => {
                        self.notices.extend(notices);
                        if let Some(pending) = pending {
                            self.gateway.catalog().install(pending.snapshot);
                            self.gateway.clean_up();
                        }
                        return Ok(());
                    }
                    Err(e) => {
                        let snapshot = pending.map(|p| p.snapshot);
                        let snapshot =
                            snapshot.unwrap_or_else(|| self.gateway.catalog().snapshot());
                        commit_error(e, &snapshot)
                    }
                },
                Err(e) => {
                    txn.rollback().await;
                    e
                }
            };
            if error.is_schema_changed() {
                self.gateway.catalog().refresh().await?;
            }
            retry.after(error).await?;
        }
    }
}

impl Session {
    /// Runs a DDL statement.
    pub(super) async fn run_schema(
        &mut self,
        tree: &ast::Statement,
        _statement: &Statement,
        limits: &Limits,
    ) -> Result<Outcome> {
        let read_only = match &self.block {
            Some(b) => b.read_only,
            None => self.settings.default_read_only,
        };
        if read_only {
            return Err(read_only_error(&ddl::what(tree)));
        }
        let tag = if self.block.is_some() {
            self.schema_in_block(tree, limits).await?
        } else {
            self.schema_alone(tree, limits).await?
        };
        Ok(Outcome::command(tag))
    }

    async fn schema_in_block(&mut self, tree: &ast::Statement, limits: &Limits) -> Result<String> {
        let context = self.context();
        let Some(block) = &self.block else {
            return Err(SqlError::internal("the transaction block vanished"));
        };
        block.txn.set_deadline(limits.deadline);
        let txn = block.txn.clone();
        let pending = block.pending.clone();
        let had_writes = txn.has_writes();
        let gateway = Arc::clone(&self.gateway);
        let work = async {
            let change = CatalogChange::begin(gateway.catalog(), &txn, pending.as_ref()).await?;
            let mut env = DdlEnv {
                gateway: &gateway,
                change,
                context,
                notices: Vec::new(),
            };
            let tag = ddl::run(&mut env, tree).await?;
            let notices = std::mem::take(&mut env.notices);
            let changed = had_writes || txn.has_writes();
            let pending = if changed {
                Some(env.change.finish()?)
            } else {
                None
            };
            Ok((tag, notices, pending))
        };
        let (tag, notices, pending) = limits.run(work).await?;
        self.notices.extend(notices);
        if let (Some(block), Some(pending)) = (&mut self.block, pending) {
            block.pending = Some(pending);
        }
        Ok(tag)
    }

    async fn schema_alone(&mut self, tree: &ast::Statement, limits: &Limits) -> Result<String> {
        let mut options = self.transaction_options(&TransactionModes::default());
        options.deadline = limits.deadline;
        let gateway = Arc::clone(&self.gateway);
        let mut runner = DdlRunner {
            gateway: &gateway,
            context: self.context(),
            options,
            notices: Vec::new(),
        };
        let result = match ddl::online::run(&mut runner, tree, limits).await {
            Ok(Some(tag)) => Ok(tag),
            Ok(None) => {
                let mut whole = Whole {
                    tree,
                    tag: String::new(),
                };
                runner.step(limits, &mut whole).await.map(|()| whole.tag)
            }
            Err(e) => Err(e),
        };
        let notices = std::mem::take(&mut runner.notices);
        self.notices.extend(notices);
        result
    }
}
