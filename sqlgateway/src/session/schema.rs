//! DDL in a session: inside a block it joins the block's transaction; alone it is
//! one transaction, or several steps for index builds.
//!
//! Alone and under an idempotency key, the step that completes the statement
//! commits under the key (X2): a repeat, also one at the same time, is answered
//! with the first one's outcome, and what it has begun itself is taken back.

use super::errors::commit_error;
use super::run::read_only_error;
use super::stream::Limits;
use super::types::Outcome;
use super::{Retry, Session};
use crate::catalog::CatalogChange;
use crate::ddl::{self, DdlEnv};
use crate::error::{Result, SqlError};
use crate::gateway::Gateway;
use crate::query::QueryContext;
use crate::settings::Settings;
use crate::statement::{Statement, TransactionModes};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::sql::sqlparser::ast;
use lineradb_client::{IdempotencyRequest, TransactionOptions};
use std::sync::Arc;

/// What one step of a DDL statement does; run again on conflicts.
#[async_trait]
pub trait DdlWork: Send {
    /// Does it.
    ///
    /// # Errors
    /// Those of the statement.
    async fn run(&mut self, env: &mut DdlEnv<'_>) -> Result<()>;

    /// The statement's command tag, when this step completes it. Asked before the
    /// step runs (is it the one?) and afterwards.
    fn completes(&self) -> Option<String> {
        None
    }
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

    fn completes(&self) -> Option<String> {
        Some(self.tag.clone())
    }
}

/// Runs the steps of a DDL statement that is no part of a block.
pub struct DdlRunner<'a> {
    gateway: &'a Arc<Gateway>,
    context: QueryContext,
    options: TransactionOptions,
    notices: Vec<SqlError>,
}

/// The result summary of the first request under the same idempotency key.
pub type Earlier = Option<Bytes>;

impl<'a> DdlRunner<'a> {
    /// For work that no session waits for; `idempotency`: of the statement that
    /// began it.
    pub fn background(gateway: &'a Arc<Gateway>, idempotency: Option<IdempotencyRequest>) -> Self {
        let settings = Settings::default();
        DdlRunner {
            gateway,
            context: QueryContext {
                catalog: gateway.catalog().snapshot(),
                virtual_tables: Arc::clone(&gateway.virtual_tables),
                settings: Arc::new(settings),
                prepared: Arc::default(),
                set_requests: Arc::default(),
                row_ids: false,
            },
            options: TransactionOptions {
                idempotency,
                ..TransactionOptions::default()
            },
            notices: Vec::new(),
        }
    }

    /// The gateway.
    pub fn gateway(&self) -> &'a Arc<Gateway> {
        self.gateway
    }

    /// The idempotency key of the statement.
    pub fn idempotency(&self) -> Option<&IdempotencyRequest> {
        self.options.idempotency.as_ref()
    }

    /// What an earlier request under the statement's key came to.
    ///
    /// # Errors
    /// 22023 when that was another request; those of the transaction layer.
    async fn earlier(&self) -> Result<Earlier> {
        if self.options.idempotency.is_none() {
            return Ok(None);
        }
        let txn = self.gateway.client().begin(self.options.clone())?;
        let earlier = txn.earlier_outcome().await;
        txn.rollback().await;
        Ok(earlier?.map(|e| e.result_summary))
    }

    /// One transaction that changes the catalog; run again on conflicts. The step
    /// that completes the statement changes nothing when the statement has been
    /// carried out before under its key: then that outcome is answered.
    ///
    /// # Errors
    /// Those of the work and the transaction layer.
    pub async fn step(&mut self, limits: &Limits, work: &mut dyn DdlWork) -> Result<Earlier> {
        let mut retry = Retry::new(limits);
        loop {
            // Earlier steps are not under the key: the next one would be answered
            // with their outcome.
            let idempotency = match work.completes() {
                Some(_) => self.options.idempotency.clone(),
                None => None,
            };
            let options = TransactionOptions {
                idempotency,
                deadline: limits.deadline,
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
                if let Some(tag) = work.completes() {
                    txn.set_result_summary(Bytes::from(tag));
                }
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
                    Ok(commit) => {
                        if let Some(earlier) = commit.earlier {
                            return Ok(Some(earlier.result_summary));
                        }
                        self.notices.extend(notices);
                        if let Some(pending) = pending {
                            self.gateway.catalog().install(pending.snapshot);
                            self.gateway.clean_up();
                        }
                        return Ok(None);
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
            // What stands in the way may be the same request, sent twice at once.
            if !error.retryable
                && work.completes().is_some()
                && let Some(earlier) = self.earlier().await?
            {
                return Ok(Some(earlier));
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
        if self.block.is_some() {
            let tag = self.schema_in_block(tree, limits).await?;
            return Ok(Outcome::command(tag));
        }
        Ok(match self.schema_alone(tree, limits).await? {
            Done::Now(tag) => Outcome::command(tag),
            Done::Earlier(summary) => self.answer_earlier(&summary),
        })
    }

    async fn schema_in_block(&mut self, tree: &ast::Statement, limits: &Limits) -> Result<String> {
        let context = self.context();
        let Some(block) = &mut self.block else {
            return Err(SqlError::internal("the transaction block vanished"));
        };
        block.txn.set_deadline(limits.deadline);
        block.begin_statement().await?;
        let txn = block.serialize().await;
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

    async fn schema_alone(&mut self, tree: &ast::Statement, limits: &Limits) -> Result<Done> {
        let mut options = self.transaction_options(&TransactionModes::default());
        options.deadline = limits.deadline;
        let gateway = Arc::clone(&self.gateway);
        let mut runner = DdlRunner {
            gateway: &gateway,
            context: self.context(),
            options,
            notices: Vec::new(),
        };
        let result = alone(&mut runner, tree, limits).await;
        let notices = std::mem::take(&mut runner.notices);
        self.notices.extend(notices);
        result
    }
}

/// How a DDL statement ended well.
pub enum Done {
    /// Carried out; its command tag.
    Now(String),
    /// Carried out before, under the same idempotency key.
    Earlier(Bytes),
}

async fn alone(runner: &mut DdlRunner<'_>, tree: &ast::Statement, limits: &Limits) -> Result<Done> {
    if let Some(earlier) = limits.run(runner.earlier()).await? {
        return Ok(Done::Earlier(earlier));
    }
    if let Some(done) = ddl::online::run(runner, tree, limits).await? {
        return Ok(done);
    }
    let mut whole = Whole {
        tree,
        tag: String::new(),
    };
    Ok(match runner.step(limits, &mut whole).await? {
        Some(earlier) => Done::Earlier(earlier),
        None => Done::Now(whole.tag),
    })
}
