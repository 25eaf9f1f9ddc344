//! Running planned statements: the transaction around them, and the retries that
//! the client never sees.
//!
//! A statement outside a block is a transaction of its own and is run again on a
//! conflict or a schema change, until its time is up. The same holds for the first
//! statement of a block: nothing of the block has been answered yet, so it starts
//! over as a whole. Later statements answer 40001, but at READ COMMITTED, where a
//! statement alone starts over. A commit whose outcome is unknown is never
//! repeated (40003).

use super::block::name_of;
use super::errors::{commit_error, duplicate_key};
use super::history::{History, beyond_history};
use super::plan::{CompiledStatement, Plan};
use super::stream::{Held, Limits, hold, of_rows, timed_out};
use super::types::{Outcome, ResultColumn};
use super::{Prepared, Retry, Session};
use crate::activity::Open;
use crate::dml::writer::Checks;
use crate::dml::{Changed, DmlContext, DmlPlan};
use crate::error::{Result, SqlError};
use crate::point::scalar::Values;
use crate::query::QueryContext;
use crate::statement::{Command, TransactionModes};
use bytes::Bytes;
use lineradb_client::{Error as ClientError, Transaction, TransactionOptions};
use lineradb_common::sql::Datum;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Rows at hand or to come, and what else a statement did.
pub(super) enum Ran {
    /// Rows of a query.
    Rows(Held),
    /// One row or none.
    Row(Option<Vec<Datum>>),
    /// Rows were changed.
    Changed(Changed),
}

impl Session {
    /// Runs a SELECT, INSERT, UPDATE or DELETE.
    pub(super) async fn run_planned(
        &mut self,
        prepared: &Prepared,
        parameters: &[Datum],
        limits: &Limits,
    ) -> Result<Outcome> {
        let history = match prepared.statement.as_of() {
            Some(as_of) => Some(self.history(as_of, limits).await?),
            None => None,
        };
        if self.block.is_some() {
            if history.is_some() {
                return Err(SqlError::new(
                    "25001",
                    "AS OF SYSTEM TIME belongs to the whole transaction: give it with BEGIN",
                ));
            }
            self.run_in_block(prepared, parameters, limits).await
        } else {
            let past = history.is_some();
            let ran = self.run_alone(prepared, parameters, limits, history).await;
            ran.map_err(|e| if past { beyond_history(e) } else { e })
        }
    }

    async fn run_alone(
        &mut self,
        prepared: &Prepared,
        parameters: &[Datum],
        limits: &Limits,
        history: Option<History>,
    ) -> Result<Outcome> {
        let mut options = self.transaction_options(&TransactionModes::default());
        options.deadline = limits.deadline;
        if let Some(history) = &history {
            options.read_only = true;
            options.read_at = Some(history.at);
        }
        let keyed = options.idempotency.is_some();
        let mut retry = Retry::new(limits);
        loop {
            let (context, compiled) = match &history {
                Some(history) => {
                    let context = self.context_of(Arc::clone(&history.catalog));
                    let declared: Vec<_> =
                        prepared.parameter_types.iter().map(|t| Some(*t)).collect();
                    let work = self.compile_then(&prepared.statement, &declared, &context);
                    let compiled = limits.run(work).await?;
                    prepared.check_columns(&compiled)?;
                    (context, compiled)
                }
                None => {
                    let context = self.context();
                    let compiled = limits.run(self.current_plan(prepared, &context)).await?;
                    // Planning may have read the catalog again.
                    (self.context(), compiled)
                }
            };
            check_read_only(&compiled, options.read_only)?;
            let txn = self.gateway.client.begin(options.clone())?;
            options.started = Some(txn.started());
            self.activity.runs_in(self.activity_of(&txn, &options));
            if keyed {
                let earlier = txn.earlier_outcome().await;
                if !matches!(earlier, Ok(None)) {
                    // The answer must not run ahead of the clock (T5).
                    txn.rollback().await;
                }
                if let Some(earlier) = earlier? {
                    return Ok(self.answer_earlier(&earlier.result_summary));
                }
            }
            let attempt = Attempt {
                session: self,
                context: &context,
                txn: &txn,
                compiled: &compiled,
                parameters,
                checks: Checks::AtCommit,
            };
            let ran = limits.run(attempt.run()).await;
            let error = match ran {
                Ok(Ran::Rows(held)) if !held.is_complete() => {
                    // Too large to hold back: what follows cannot be retried.
                    let failed = Arc::new(AtomicBool::new(false));
                    let stream = held.into_stream(limits.clone(), Some(txn), failed);
                    return Ok(rows_outcome(&compiled, stream));
                }
                Ok(ran) => {
                    let summary = summary(&compiled, &ran);
                    match self.commit_alone(&txn, summary, &context).await {
                        Ok(Some(earlier)) => return Ok(self.answer_earlier(&earlier)),
                        Ok(None) => return finish(&compiled, ran, limits),
                        Err(e) => e,
                    }
                }
                Err(e) => {
                    txn.rollback().await;
                    self.remember_timing(&txn);
                    e
                }
            };
            if error.is_schema_changed() {
                self.gateway.catalog.refresh().await?;
            }
            retry.after(error).await?;
            self.remember_retry();
        }
    }

    /// Commits a statement that is its own transaction.
    async fn commit_alone(
        &mut self,
        txn: &Transaction,
        summary: Option<Bytes>,
        context: &QueryContext,
    ) -> Result<Option<Bytes>> {
        if let Some(summary) = summary {
            txn.set_result_summary(summary);
        }
        let result = txn.commit().await;
        self.remember_timing(txn);
        match result {
            Ok(commit) => Ok(commit.earlier.map(|e| e.result_summary)),
            Err(e) => Err(commit_error(e, &context.catalog)),
        }
    }

    pub(super) fn answer_earlier(&mut self, summary: &Bytes) -> Outcome {
        let tag = String::from_utf8_lossy(summary).into_owned();
        self.earlier_outcome = Some(tag.clone());
        let rows = tag.rsplit(' ').next().and_then(|n| n.parse().ok());
        Outcome::Command { tag, rows }
    }

    async fn run_in_block(
        &mut self,
        prepared: &Prepared,
        parameters: &[Datum],
        limits: &Limits,
    ) -> Result<Outcome> {
        let mut retry = Retry::new(limits);
        loop {
            let context = self.context();
            let compiled = limits.run(self.current_plan(prepared, &context)).await?;
            let context = self.context();
            let Some(block) = &mut self.block else {
                return Err(SqlError::internal("the transaction block vanished"));
            };
            check_read_only(&compiled, block.read_only)?;
            block.txn.set_deadline(limits.deadline);
            block.txn.set_lock_timeout(self.settings.lock_timeout);
            let txn = block.begin_statement().await?;
            let failed = Arc::clone(&block.failed);
            let first = block.statements == 0 && block.pending.is_none() && !txn.has_writes();
            let before = (!first && block.restarts_statements()).then(|| txn.savepoint());
            let attempt = Attempt {
                session: self,
                context: &context,
                txn: &txn,
                compiled: &compiled,
                parameters,
                checks: Checks::Now,
            };
            match limits.run(attempt.run()).await {
                Ok(Ran::Rows(held)) => {
                    let stream = held.into_stream(limits.clone(), None, failed);
                    return Ok(rows_outcome(&compiled, stream));
                }
                Ok(ran) => return finish(&compiled, ran, limits),
                Err(error) => {
                    if error.is_schema_changed() {
                        self.gateway.catalog.refresh().await?;
                    }
                    if let Some(before) = &before
                        && matches!(error.cause.as_deref(), Some(ClientError::Conflict { .. }))
                    {
                        txn.rollback_to(before);
                        retry.after(error).await?;
                        self.timing_before.retries += 1;
                        continue;
                    }
                    if !first || !error.retryable {
                        return Err(error);
                    }
                    retry.after(error).await?;
                    self.remember_timing(&txn);
                    self.remember_retry();
                    // Nothing of the block was answered: it begins anew.
                    if let Some(block) = &mut self.block {
                        block.txn.rollback().await;
                        block.begin_anew(&self.gateway.client)?;
                    }
                }
            }
        }
    }
}

/// One try of a statement.
struct Attempt<'a> {
    session: &'a Session,
    context: &'a QueryContext,
    txn: &'a Transaction,
    compiled: &'a CompiledStatement,
    parameters: &'a [Datum],
    checks: Checks,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Ran> {
        match &self.compiled.plan {
            Plan::Point(point) => {
                let values = Values {
                    parameters: self.parameters,
                    row: &[],
                    settings: &self.context.settings,
                };
                Ok(Ran::Row(point.run(self.txn, &values).await?))
            }
            Plan::Query(planned) => {
                let stream = planned
                    .execute(self.context, self.txn, self.parameters)
                    .await?;
                Ok(Ran::Rows(hold(stream).await?))
            }
            Plan::Dml(dml) => {
                let ctx = DmlContext {
                    query: self.context,
                    catalog: &self.session.gateway.catalog,
                    txn: self.txn,
                    parameters: self.parameters,
                    checks: self.checks,
                };
                dml.run(&ctx)
                    .await
                    .map(Ran::Changed)
                    .map_err(|e| match e.cause.as_deref() {
                        Some(ClientError::ConditionFailed { key }) => {
                            duplicate_key(key, &self.context.catalog).unwrap_or(e)
                        }
                        _ => e,
                    })
            }
            Plan::Other | Plan::NotLiftable => {
                Err(SqlError::internal("a statement without a plan was run"))
            }
        }
    }
}

/// What a repeat under the same idempotency key is answered with.
fn summary(compiled: &CompiledStatement, ran: &Ran) -> Option<Bytes> {
    match (ran, &compiled.plan) {
        (Ran::Changed(changed), Plan::Dml(dml)) => {
            Some(Bytes::from(format!("{} {}", dml.tag(), changed.count)))
        }
        _ => None,
    }
}

fn check_read_only(compiled: &CompiledStatement, read_only: bool) -> Result<()> {
    let writes = match &compiled.plan {
        Plan::Dml(p) if matches!(**p, DmlPlan::Lock(_)) => Some("SELECT FOR UPDATE"),
        Plan::Dml(p) => Some(p.tag().trim_end_matches(" 0")),
        Plan::Point(p) if p.locks() => Some("SELECT FOR UPDATE"),
        _ => None,
    };
    match writes {
        Some(tag) if read_only => Err(read_only_error(tag)),
        _ => Ok(()),
    }
}

/// 25006.
pub(super) fn read_only_error(tag: &str) -> SqlError {
    SqlError::new(
        "25006",
        format!("cannot execute {tag} in a read-only transaction"),
    )
}

fn columns_of(compiled: &CompiledStatement) -> Arc<[ResultColumn]> {
    compiled
        .columns
        .clone()
        .unwrap_or_else(|| Arc::from(Vec::new()))
}

fn rows_outcome(
    compiled: &CompiledStatement,
    stream: datafusion::execution::SendableRecordBatchStream,
) -> Outcome {
    Outcome::Rows {
        columns: columns_of(compiled),
        stream,
        tag: "SELECT",
        count: true,
    }
}

/// The outcome of a statement whose transaction needs nothing more.
fn finish(compiled: &CompiledStatement, ran: Ran, limits: &Limits) -> Result<Outcome> {
    Ok(match ran {
        Ran::Rows(held) => {
            let failed = Arc::new(AtomicBool::new(false));
            rows_outcome(compiled, held.into_stream(limits.clone(), None, failed))
        }
        Ran::Row(row) => {
            let columns = columns_of(compiled);
            let rows: Vec<Vec<Datum>> = row.into_iter().collect();
            rows_outcome(compiled, of_rows(&columns, &rows)?)
        }
        Ran::Changed(changed) => {
            let Plan::Dml(dml) = &compiled.plan else {
                return Err(SqlError::internal("rows changed without a plan"));
            };
            let tag = dml.tag();
            match changed.returned {
                Some((columns, rows)) => Outcome::Rows {
                    stream: of_rows(&columns, &rows)?,
                    columns,
                    tag,
                    count: true,
                },
                None => Outcome::Command {
                    tag: format!("{tag} {}", changed.count),
                    rows: Some(changed.count),
                },
            }
        }
    })
}

/// True for statements that run inside a transaction with a plan.
pub(super) fn is_planned(command: &Command) -> bool {
    use datafusion::sql::sqlparser::ast::Statement as S;
    match command {
        Command::Sql(s) => matches!(
            **s,
            S::Query(_) | S::Insert(_) | S::Update(_) | S::Delete(_)
        ),
        _ => false,
    }
}

/// 57014 when the deadline has passed already.
pub(super) fn check_deadline(limits: &Limits) -> Result<()> {
    match limits.deadline {
        Some(at) if at <= lineradb_common::clock::deadline_after(Duration::ZERO) => {
            Err(timed_out())
        }
        _ => Ok(()),
    }
}

impl Session {
    /// What others see of a statement that is its own transaction.
    fn activity_of(&self, txn: &Transaction, options: &TransactionOptions) -> Open {
        Open {
            id: txn.id(),
            isolation: name_of(options.isolation),
            read_only: options.read_only,
            began_us: self.settings.statement_time_us,
            statements: 0,
            failed: false,
        }
    }

    /// Commits a COPY that is its own transaction.
    pub(crate) async fn commit_copy(
        &mut self,
        txn: &Transaction,
        rows: u64,
        context: &QueryContext,
    ) -> Result<()> {
        txn.set_result_summary(Bytes::from(format!("COPY {rows}")));
        let result = txn.commit().await;
        self.remember_timing(txn);
        match result {
            Ok(_) => Ok(()),
            Err(e) => {
                if matches!(e, ClientError::SchemaChanged { .. }) {
                    self.gateway.catalog.refresh().await?;
                }
                Err(commit_error(e, &context.catalog))
            }
        }
    }
}
