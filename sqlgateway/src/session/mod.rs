//! Sessions: what front ends (PostgreSQL wire, HTTP) run statements through.
//!
//! | file | what |
//! |---|---|
//! | `types` | results, statuses, cancel handles |
//! | `plan` | plans and the gateway's cache of them |
//! | `planning` | what is planned against, plans kept and made anew |
//! | `run`, `retry` | planned statements, retries |
//! | `block` | transactions, savepoints, what COMMIT and ROLLBACK do to settings |
//! | `simple` | simple queries: several statements, lifted literals |
//! | `prepared` | the namespace of prepared statements |
//! | `utility`, `explain`, `copy` | SET, SHOW, PREPARE and other statements |
//! | `errors` | which row a key is |
//! | `history` | AS OF SYSTEM TIME |
//! | `schema` | DDL inside and outside of transactions |
//! | `stream` | result streams, statement timeout, cancel |

mod block;
mod copy;
mod errors;
mod explain;
mod history;
mod plan;
mod planning;
mod prepared;
mod retry;
mod run;
mod schema;
mod simple;
pub mod stream;
mod types;
mod utility;

use crate::activity::Activity;
use crate::error::{Result, SqlError};

use crate::settings::{REPORTED, SetRequests, Settings};
use crate::statement::{Command, Statement};
use block::Block;
use bytes::Bytes;
use lineradb_client::{Timing, Transaction};
use lineradb_common::clock::{deadline_after, wall_clock_us};
use lineradb_common::sql::{Datum, SqlType};
use sha2::{Digest, Sha256};
use std::sync::Arc;
pub use stream::Limits;

pub use crate::dml::copy_in::CopyIn;
pub use crate::gateway::{Gateway, GatewayOptions};
pub use plan::{CompiledStatement, PlanCache};
pub use prepared::{Named, PreparedStatements};
pub(crate) use retry::Retry;
pub use schema::{DdlRunner, DdlWork, Done};
pub use simple::SimpleQuery;
pub use types::{
    CancelHandle, CopyFormat, CopyOut, CopyPiece, Outcome, ResultColumn, SessionParams,
    TransactionStatus,
};

/// A statement ready to run.
#[derive(Debug)]
pub struct Prepared {
    /// The statement.
    pub statement: Statement,
    /// Types of `$1`, `$2`, ...
    pub parameter_types: Vec<SqlType>,
    /// What it returns; `None`: no rows.
    pub columns: Option<Arc<[ResultColumn]>>,
    plan: parking_lot::Mutex<Option<Arc<CompiledStatement>>>,
}

/// One connection's state.
pub struct Session {
    gateway: Arc<Gateway>,
    /// What is in force.
    settings: Settings,
    /// What stays when SET LOCAL ends.
    session_settings: Settings,
    /// What the session began with: RESET goes back to it.
    initial_settings: Settings,
    /// What front ends were shown last.
    shared_settings: Arc<Settings>,
    block: Option<Block>,
    pipelined: bool,
    prepared: Arc<PreparedStatements>,
    set_requests: Arc<SetRequests>,
    cancel: CancelHandle,
    key: (i32, i32),
    activity: Arc<Activity>,
    reported: Vec<Option<String>>,
    notices: Vec<SqlError>,
    request_hash: Bytes,
    earlier_outcome: Option<String>,
    timing: Timing,
    timing_base: Timing,
    /// Of the statement's earlier tries.
    timing_before: Timing,
}

impl Session {
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        settings: Settings,
        cancel: CancelHandle,
        key: (i32, i32),
        activity: Arc<Activity>,
    ) -> Self {
        let mut settings = settings;
        settings
            .transaction_isolation
            .clone_from(&settings.default_isolation);
        settings.transaction_read_only = settings.default_read_only;
        Session {
            gateway,
            session_settings: settings.clone(),
            initial_settings: settings.clone(),
            shared_settings: Arc::new(settings.clone()),
            settings,
            block: None,
            pipelined: false,
            prepared: Arc::default(),
            set_requests: Arc::default(),
            cancel,
            key,
            activity,
            reported: vec![None; REPORTED.len()],
            notices: Vec::new(),
            request_hash: Bytes::new(),
            earlier_outcome: None,
            timing: Timing::default(),
            timing_base: Timing::default(),
            timing_before: Timing::default(),
        }
    }

    /// Splits and parses a text.
    ///
    /// # Errors
    /// 42601 with a position.
    pub fn parse(&self, sql: &str) -> Result<Vec<Statement>> {
        crate::statement::parse(sql)
    }

    /// Plans a statement; `parameter_types` are those that the client declared.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn prepare(
        &mut self,
        statement: Statement,
        parameter_types: &[Option<SqlType>],
    ) -> Result<Arc<Prepared>> {
        self.settings.statement_time_us = wall_clock_us() as i64;
        let limits = self.limits();
        if run::is_planned(statement.command()) {
            self.refuse_if_failed()?;
            let compiled = match statement.as_of() {
                Some(as_of) => {
                    let then = self.history(as_of, &limits).await;
                    match then {
                        Ok(then) => {
                            let context = self.context_of(then.catalog);
                            let work = self.compile_then(&statement, parameter_types, &context);
                            limits.run(work).await
                        }
                        Err(error) => Err(error),
                    }
                }
                None => {
                    let work = self.compile(&statement, parameter_types, true);
                    limits.run(work).await
                }
            };
            let compiled = match compiled {
                Ok(c) => c,
                Err(e) => {
                    self.fail();
                    return Err(e);
                }
            };
            return Ok(Arc::new(Prepared {
                statement,
                parameter_types: compiled.parameter_types.clone(),
                columns: compiled.columns.clone(),
                plan: parking_lot::Mutex::new(Some(compiled)),
            }));
        }
        let (parameter_types, columns) = match statement.command() {
            // EXECUTE returns what the statement named returns.
            Command::Execute(name, _) => match self.prepared(name) {
                Ok(inner) => (Vec::new(), inner.columns.clone()),
                Err(_) => (Vec::new(), None),
            },
            Command::Explain { statement, .. } => {
                let types = match statement.command() {
                    Command::Sql(_) => limits
                        .run(self.compile(statement, parameter_types, false))
                        .await?
                        .parameter_types
                        .clone(),
                    _ => Vec::new(),
                };
                (types, Some(utility::explain_columns()))
            }
            other => (Vec::new(), utility::columns_of(other)),
        };
        Ok(Arc::new(Prepared {
            statement,
            parameter_types,
            columns,
            plan: parking_lot::Mutex::new(None),
        }))
    }

    /// Runs a prepared statement. `parameters` have the prepared types. An error
    /// fails the transaction block, if there is one.
    ///
    /// # Errors
    /// Those of the statement.
    pub async fn execute(
        &mut self,
        prepared: &Arc<Prepared>,
        parameters: Vec<Datum>,
    ) -> Result<Outcome> {
        if parameters.len() != prepared.parameter_types.len() {
            return Err(SqlError::new(
                "08P01",
                format!(
                    "bind message supplies {} parameters, but prepared statement requires {}",
                    parameters.len(),
                    prepared.parameter_types.len()
                ),
            ));
        }
        self.note_request(prepared.statement.text(), &parameters);
        if self.pipelined && self.block.is_none() && opens_implicit(prepared.statement.command()) {
            self.settings.statement_time_us = wall_clock_us() as i64;
            self.begin_block(&crate::statement::TransactionModes::default(), false)?;
        }
        self.run_statement(prepared, parameters).await
    }

    /// Remembers what a key that is set, or that the open block has, stands for.
    fn note_request(&mut self, text: &str, parameters: &[Datum]) {
        if let Some(hash) = self.block.as_mut().and_then(|b| b.request_hash.as_mut()) {
            *hash = request_hash(hash, text, parameters);
        }
        if self.settings.idempotency_key.is_some() {
            self.request_hash = request_hash(&[], text, parameters);
        }
    }

    /// Says whether further statements of the same pipeline follow before Sync:
    /// then they form one implicit transaction that [`Session::sync`] ends, as in
    /// PostgreSQL. Without it each statement is a transaction of its own, which
    /// can be retried unseen.
    pub fn set_pipelined(&mut self, pipelined: bool) {
        self.pipelined = pipelined;
    }

    /// Runs one statement, simple or prepared.
    async fn run_statement(
        &mut self,
        prepared: &Arc<Prepared>,
        parameters: Vec<Datum>,
    ) -> Result<Outcome> {
        self.settings.statement_time_us = wall_clock_us() as i64;
        let limits = self.limits();
        let shows_timing = matches!(prepared.statement.command(), Command::ShowLastTiming);
        if !shows_timing {
            self.timing = Timing::default();
            self.timing_before = Timing::default();
            self.timing_base = match &self.block {
                Some(b) => b.txn.timing(),
                None => Timing::default(),
            };
        }
        self.set_requests.take();
        self.activity.begin(
            prepared.statement.shared_text(),
            &self.settings.application_name,
            self.settings.statement_time_us,
        );
        let result = self.dispatch(prepared, parameters, &limits).await;
        let mut result = result.map_err(|e| errors::with_place(e, &self.catalog()));
        if result.is_ok()
            && let Err(error) = self.carry_out_set_requests()
        {
            result = Err(error);
        }
        if let Some(block) = &mut self.block {
            if begins_work(prepared.statement.command()) {
                block.statements += 1;
            }
            let txn = block.txn.clone();
            let mut gives_way = false;
            match &result {
                Ok(outcome) => block.last_tag = outcome.tag().to_owned(),
                Err(error) => {
                    block.fail();
                    // To a savepoint it could return, with the locks from before it.
                    gives_way = error.sqlstate == "40P01" && block.savepoints.is_empty();
                }
            }
            // AND CHAIN: what is open now has not begun.
            let chains = matches!(
                prepared.statement.command(),
                Command::Commit(true) | Command::Rollback(true)
            );
            if !shows_timing && !chains {
                self.remember_timing(&txn);
            }
            if gives_way {
                // The others of the deadlock need not wait for ROLLBACK.
                txn.rollback().await;
            }
        }
        self.activity.end(self.block.as_ref().map(Block::activity));
        result
    }

    async fn dispatch(
        &mut self,
        prepared: &Arc<Prepared>,
        parameters: Vec<Datum>,
        limits: &Limits,
    ) -> Result<Outcome> {
        let command = prepared.statement.command();
        if let Some(outcome) = self.transaction_command(command, limits).await? {
            return Ok(outcome);
        }
        self.refuse_if_failed()?;
        run::check_deadline(limits)?;
        if run::is_planned(command) {
            return self.run_planned(prepared, &parameters, limits).await;
        }
        if let Command::Sql(tree) = command {
            return self.run_schema(tree, &prepared.statement, limits).await;
        }
        self.utility(prepared, &parameters, limits).await
    }

    fn refuse_if_failed(&self) -> Result<()> {
        match &self.block {
            Some(b) if b.is_failed() => Err(SqlError::new(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
            )),
            _ => Ok(()),
        }
    }

    /// What ends a statement that begins now.
    fn limits(&self) -> Limits {
        Limits {
            token: self.cancel.renew(),
            deadline: self.settings.statement_timeout.map(deadline_after),
        }
    }

    /// The extended protocol's Sync: ends the implicit transaction of the
    /// statements since the last one.
    ///
    /// # Errors
    /// Those of the commit.
    pub async fn sync(&mut self) -> Result<()> {
        self.pipelined = false;
        match &self.block {
            Some(b) if !b.explicit => self.commit_block().await,
            _ => Ok(()),
        }
    }

    /// What is set.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.shared_settings
    }

    /// As `SET name = value`.
    ///
    /// # Errors
    /// 42704 for an unknown name, 22023 for a wrong value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        self.change_setting(name, Some(&[value.to_owned()]), false)
    }

    fn change_setting(&mut self, name: &str, values: Option<&[String]>, local: bool) -> Result<()> {
        self.settings.set(name, values, &self.initial_settings)?;
        if !local {
            self.session_settings
                .set(name, values, &self.initial_settings)?;
        }
        self.publish_settings();
        Ok(())
    }

    fn publish_settings(&mut self) {
        self.shared_settings = Arc::new(self.settings.clone());
    }

    /// Cancels the running statement from elsewhere.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Process id and secret for BackendKeyData.
    pub fn backend_key(&self) -> (i32, i32) {
        self.key
    }

    /// Settings reported by ParameterStatus that changed since the last call; all
    /// of them at the first.
    pub fn take_parameter_changes(&mut self) -> Vec<(&'static str, String)> {
        if self.shared_settings.time_zone_name != self.settings.time_zone_name {
            self.publish_settings();
        }
        let mut out = Vec::new();
        for ((name, shown), last) in REPORTED.iter().zip(&mut self.reported) {
            let value = self.settings.show(name).unwrap_or_default();
            if last.as_ref() != Some(&value) {
                *last = Some(value.clone());
                out.push((*shown, value));
            }
        }
        out
    }

    /// Notices to send to the client, collected since the last call.
    pub fn take_notices(&mut self) -> Vec<SqlError> {
        std::mem::take(&mut self.notices)
    }

    fn notice(&mut self, sqlstate: &str, message: impl Into<String>) {
        self.notices.push(SqlError::new(sqlstate, message));
    }

    /// Makes the next transaction happen once under this key (X2).
    pub fn set_idempotency_key(&mut self, key: Option<String>) {
        self.settings.idempotency_key.clone_from(&key);
        self.session_settings.idempotency_key = key;
    }

    /// Set when the last commit found that its idempotency key had committed
    /// before: the first outcome's result summary (command tag).
    pub fn take_earlier_outcome(&mut self) -> Option<String> {
        self.earlier_outcome.take()
    }

    /// Where the time of the last statement went.
    pub fn last_timing(&self) -> Timing {
        self.timing
    }

    fn remember_timing(&mut self, txn: &Transaction) {
        let now = txn.timing();
        let now = if now.requests >= self.timing_base.requests {
            now.since(&self.timing_base)
        } else {
            now
        };
        self.timing = self.timing_before.plus(&now);
    }

    /// The statement is run again, with a transaction that is new.
    fn remember_retry(&mut self) {
        self.timing_before = self.timing;
        self.timing_before.retries += 1;
        self.timing_base = Timing::default();
    }

    /// The gateway.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Rolls back what is open.
    pub async fn close(mut self) {
        self.rollback_block().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gateway.forget_session(self.key.0);
    }
}

/// Statements that open the implicit transaction of a pipeline or of a simple query
/// with several statements. What is set belongs to it as well: it is undone when
/// the transaction fails. The idempotency key does not: it is for the transaction
/// that begins next.
fn opens_implicit(command: &Command) -> bool {
    match command {
        Command::Sql(_)
        | Command::Copy(_)
        | Command::Explain { .. }
        | Command::Execute(..)
        | Command::Reset(_)
        | Command::SetTransaction(..) => true,
        Command::Set(name, ..) => name != "idempotency_key",
        _ => false,
    }
}

/// What an idempotency key is bound to: the text and its parameters, after what
/// came before in the same transaction block.
fn request_hash(before: &[u8], text: &str, parameters: &[Datum]) -> Bytes {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(text.as_bytes());
    for p in parameters {
        hash.update([0]);
        hash.update(format!("{p:?}").as_bytes());
    }
    Bytes::copy_from_slice(&hash.finalize())
}

/// True for a statement that reads or writes: after the first one of a block its
/// isolation level stands.
fn begins_work(command: &Command) -> bool {
    matches!(
        command,
        Command::Sql(_) | Command::Copy(_) | Command::Execute(..) | Command::Explain { .. }
    )
}
