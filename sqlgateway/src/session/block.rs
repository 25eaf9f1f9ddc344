//! Transactions of a session: blocks opened by BEGIN, and implicit ones that span
//! the statements of one simple query or one pipeline.

use super::Session;
use super::errors::commit_error;
use super::history::History;
use super::types::{Outcome, TransactionStatus};
use crate::activity::Open;
use crate::catalog::{CatalogSnapshot, PendingDdl};
use crate::error::{Result, SqlError};
use crate::settings::Settings;
use crate::statement::TransactionModes;
use bytes::Bytes;
use lineradb_client::{
    Client, Error as ClientError, IdempotencyRequest, Isolation, Savepoint, Transaction,
    TransactionOptions,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An open transaction.
pub(super) struct Block {
    pub txn: Transaction,
    /// Opened by BEGIN; else it ends with the simple query or at Sync.
    pub explicit: bool,
    /// Set by a statement, or by a result stream that ended in an error.
    pub failed: Arc<AtomicBool>,
    /// What it changed in the catalog.
    pub pending: Option<PendingDdl>,
    /// The time that it reads, if not its own.
    pub history: Option<History>,
    pub savepoints: Vec<NamedSavepoint>,
    /// Statements that ran in it.
    pub statements: u64,
    /// Its `now()`.
    pub began_us: i64,
    pub read_only: bool,
    /// Settings to return to on ROLLBACK.
    pub settings_before: Settings,
    pub options: TransactionOptions,
    /// With an idempotency key: the hash of all that was asked so far.
    pub(super) request_hash: Option<Bytes>,
    /// The command tag of the last statement, for the outcome of a keyed request.
    pub(super) last_tag: String,
}

pub(super) struct NamedSavepoint {
    name: String,
    savepoint: Savepoint,
    pending: Option<PendingDdl>,
    /// Statements before it.
    settings: (Settings, Settings),
}

impl Block {
    /// The handle for a statement that begins now.
    pub async fn begin_statement(&mut self) -> Result<Transaction> {
        if self.restarts_statements() {
            self.txn = self.txn.begin_statement().await?;
        }
        Ok(self.txn.clone())
    }

    /// Begins again, before anything has come of it. Its savepoints are all at the
    /// beginning.
    pub fn begin_anew(&mut self, client: &Client) -> Result<()> {
        self.options.started = Some(self.txn.started());
        self.txn = client.begin(self.options.clone())?;
        if !self.savepoints.is_empty() {
            self.txn.savepoint();
        }
        Ok(())
    }

    /// A change of the schema is serializable, and so is all that follows it.
    pub async fn serialize(&mut self) -> Transaction {
        self.txn = self.txn.serialize().await;
        self.options.isolation = Isolation::Serializable;
        self.txn.clone()
    }

    /// READ COMMITTED: a statement that met a newer version of a row sees it when
    /// it is run again, whatever was answered before.
    pub fn restarts_statements(&self) -> bool {
        self.options.isolation == Isolation::ReadCommitted
    }

    /// The catalog that it sees, if that is not the newest.
    pub fn own_catalog(&self) -> Option<&Arc<CatalogSnapshot>> {
        match (&self.pending, &self.history) {
            (Some(pending), _) => Some(&pending.snapshot),
            (None, Some(history)) => Some(&history.catalog),
            (None, None) => None,
        }
    }

    /// What others see of it.
    pub fn activity(&self) -> Open {
        Open {
            id: self.txn.id(),
            isolation: name_of(self.options.isolation),
            read_only: self.read_only,
            began_us: self.began_us,
            statements: self.statements,
            failed: self.is_failed(),
        }
    }

    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

impl Session {
    /// ReadyForQuery's status.
    pub fn transaction_status(&self) -> TransactionStatus {
        match &self.block {
            Some(b) if b.explicit && b.is_failed() => TransactionStatus::Failed,
            Some(b) if b.explicit => TransactionStatus::InTransaction,
            _ => TransactionStatus::Idle,
        }
    }

    /// Marks the open transaction as failed: something outside a statement went
    /// wrong (a parameter that does not decode, a value that does not encode).
    pub fn fail(&mut self) {
        if let Some(block) = &self.block {
            block.fail();
        }
    }

    /// Options of a transaction that begins now: SERIALIZABLE, which costs a
    /// single statement nothing, since it is run again unseen.
    pub(super) fn transaction_options(&mut self, modes: &TransactionModes) -> TransactionOptions {
        let read_only = modes.read_only.unwrap_or(self.settings.default_read_only);
        let idempotency = self.take_idempotency();
        TransactionOptions {
            read_only,
            idempotency,
            lock_timeout: self.settings.lock_timeout,
            ..TransactionOptions::default()
        }
    }

    fn take_idempotency(&mut self) -> Option<IdempotencyRequest> {
        let key = self.settings.idempotency_key.take()?;
        self.session_settings.idempotency_key = None;
        Some(IdempotencyRequest {
            user: self.settings.user.clone(),
            key,
            request_hash: self.request_hash.clone(),
        })
    }

    /// Opens a transaction, or makes the implicit one explicit.
    pub(super) fn begin_block(&mut self, modes: &TransactionModes, explicit: bool) -> Result<()> {
        if let Some(block) = &mut self.block {
            if block.explicit {
                self.notice("25001", "there is already a transaction in progress");
                return Ok(());
            }
            block.explicit = explicit;
            let named = modes.isolation.is_some() || modes.read_only.is_some();
            if explicit && named {
                self.set_transaction(modes, false)?;
            }
            return Ok(());
        }
        let settings_before = self.settings.clone();
        let mut options = self.transaction_options(modes);
        if explicit {
            let level = modes.isolation.as_ref();
            let level = level.unwrap_or(&self.settings.default_isolation).clone();
            options.isolation = isolation_of(&level)?;
            self.settings.transaction_isolation = level;
            self.settings.transaction_read_only = options.read_only;
        }
        let txn = self.gateway.client.begin(options.clone())?;
        self.block = Some(Block {
            txn,
            explicit,
            failed: Arc::new(AtomicBool::new(false)),
            pending: None,
            history: None,
            savepoints: Vec::new(),
            statements: 0,
            began_us: self.settings.statement_time_us,
            read_only: options.read_only,
            settings_before,
            request_hash: options.idempotency.as_ref().map(|r| r.request_hash.clone()),
            last_tag: String::new(),
            options,
        });
        Ok(())
    }

    /// SET TRANSACTION: only before the first query.
    pub(super) fn set_transaction(
        &mut self,
        modes: &TransactionModes,
        session: bool,
    ) -> Result<()> {
        if let Some(level) = &modes.isolation {
            isolation_of(level)?;
        }
        if session {
            if let Some(level) = &modes.isolation {
                self.settings.default_isolation = level.clone();
                self.session_settings.default_isolation = level.clone();
            }
            if let Some(read_only) = modes.read_only {
                self.settings.default_read_only = read_only;
                self.session_settings.default_read_only = read_only;
            }
            return Ok(());
        }
        let Some(block) = &mut self.block else {
            self.notice(
                "25P01",
                "SET TRANSACTION can only be used in transaction blocks",
            );
            return Ok(());
        };
        let changes_level = modes.isolation.is_some()
            && modes.isolation.as_ref() != Some(&self.settings.transaction_isolation);
        if block.statements > 0 && changes_level {
            return Err(SqlError::new(
                "25001",
                "SET TRANSACTION ISOLATION LEVEL must be called before any query",
            ));
        }
        if block.statements > 0 && block.read_only && modes.read_only == Some(false) {
            return Err(SqlError::new(
                "25001",
                "transaction read-write mode must be set before any query",
            ));
        }
        if block.statements > 0 {
            block.read_only |= modes.read_only == Some(true);
            self.settings.transaction_read_only = block.read_only;
            return Ok(());
        }
        // Nothing has happened in it: begin it anew with the modes.
        let explicit = block.explicit;
        let mut options = block.options.clone();
        if let Some(level) = &modes.isolation {
            options.isolation = isolation_of(level)?;
            self.settings.transaction_isolation = level.clone();
        }
        if let Some(read_only) = modes.read_only {
            options.read_only = read_only;
            block.read_only = read_only;
            self.settings.transaction_read_only = read_only;
        }
        block.options = options;
        block.begin_anew(&self.gateway.client)?;
        block.explicit = explicit;
        Ok(())
    }

    /// Makes the open transaction one of the past; before its first query.
    pub(super) fn go_back(&mut self, history: Option<History>) -> Result<()> {
        let (Some(history), Some(block)) = (history, &mut self.block) else {
            return Ok(());
        };
        if block.statements > 0 {
            return Err(SqlError::new(
                "25001",
                "AS OF SYSTEM TIME must come before any query of the transaction",
            ));
        }
        block.options.isolation = Isolation::Serializable;
        block.options.read_only = true;
        block.options.read_at = Some(history.at);
        block.begin_anew(&self.gateway.client)?;
        block.read_only = true;
        block.history = Some(history);
        self.settings.transaction_read_only = true;
        Ok(())
    }

    /// The first outcome of the request that opens an implicit block, when it was
    /// carried out before under its idempotency key: all of its text is known
    /// before it runs.
    pub(super) async fn replay_block(&mut self) -> Result<Option<Outcome>> {
        let earlier = match &self.block {
            Some(block) if block.request_hash.is_some() => block.txn.earlier_outcome().await?,
            _ => None,
        };
        let Some(earlier) = earlier else {
            return Ok(None);
        };
        self.rollback_block().await;
        Ok(Some(self.answer_earlier(&earlier.result_summary)))
    }

    /// COMMIT of the open transaction.
    pub(super) async fn commit_block(&mut self) -> Result<()> {
        let Some(block) = self.block.take() else {
            return Ok(());
        };
        self.activity.leaves();
        self.remember_timing(&block.txn);
        if block.is_failed() {
            block.txn.rollback().await;
            self.settings_after_rollback(&block.settings_before);
            return Ok(());
        }
        // Not the last statement's: the client may have thought for long.
        block.txn.set_deadline(self.limits().deadline);
        if let Some(hash) = &block.request_hash {
            block.txn.set_request_hash(hash.clone());
            // A block ends with COMMIT, an implicit one with its last statement.
            let summary = match block.explicit {
                true => "COMMIT".to_owned(),
                false => block.last_tag.clone(),
            };
            block.txn.set_result_summary(Bytes::from(summary));
        }
        let result = block.txn.commit().await;
        self.remember_timing(&block.txn);
        match result {
            Ok(commit) => {
                self.settings_after_commit();
                // An earlier request's outcome: nothing of this one is committed.
                if let Some(pending) = block.pending.filter(|_| commit.earlier.is_none()) {
                    self.gateway.catalog.install(pending.snapshot);
                    self.gateway.clean_up();
                }
                self.earlier_outcome = commit
                    .earlier
                    .map(|e| String::from_utf8_lossy(&e.result_summary).into_owned());
                Ok(())
            }
            Err(error) => {
                self.settings_after_rollback(&block.settings_before);
                let snapshot = match &block.pending {
                    Some(p) => Arc::clone(&p.snapshot),
                    None => self.gateway.catalog.snapshot(),
                };
                if matches!(error, ClientError::SchemaChanged { .. }) {
                    // The next statement plans with the new schema.
                    let _ = self.gateway.catalog.refresh().await;
                }
                Err(commit_error(error, &snapshot))
            }
        }
    }

    /// ROLLBACK of the open transaction.
    pub(super) async fn rollback_block(&mut self) {
        if let Some(block) = self.block.take() {
            self.activity.leaves();
            block.txn.rollback().await;
            self.remember_timing(&block.txn);
            self.settings_after_rollback(&block.settings_before);
        }
    }

    fn settings_after_commit(&mut self) {
        // SET LOCAL ends here.
        self.settings = self.session_settings.clone();
        self.restore_transaction_settings();
    }

    fn settings_after_rollback(&mut self, before: &Settings) {
        self.settings = before.clone();
        self.session_settings = before.clone();
        self.settings.idempotency_key = None;
        self.session_settings.idempotency_key = None;
        self.restore_transaction_settings();
    }

    fn restore_transaction_settings(&mut self) {
        for s in [&mut self.settings, &mut self.session_settings] {
            s.transaction_isolation.clone_from(&s.default_isolation);
            s.transaction_read_only = s.default_read_only;
        }
    }

    pub(super) fn savepoint(&mut self, name: &str) -> Result<()> {
        let settings = (self.settings.clone(), self.session_settings.clone());
        let block = self.explicit_block("SAVEPOINT")?;
        block.savepoints.push(NamedSavepoint {
            name: name.to_owned(),
            savepoint: block.txn.savepoint(),
            pending: block.pending.clone(),
            settings,
        });
        Ok(())
    }

    pub(super) fn release_savepoint(&mut self, name: &str) -> Result<()> {
        let block = self.explicit_block("RELEASE SAVEPOINT")?;
        let at = find_savepoint(block, name)?;
        block.savepoints.truncate(at);
        Ok(())
    }

    pub(super) fn rollback_to_savepoint(&mut self, name: &str) -> Result<()> {
        let block = self.explicit_block("ROLLBACK TO SAVEPOINT")?;
        let at = find_savepoint(block, name)?;
        // Later savepoints vanish, this one stays.
        block.savepoints.truncate(at + 1);
        let s = &block.savepoints[at];
        block.txn.rollback_to(&s.savepoint);
        block.pending.clone_from(&s.pending);
        block.failed.store(false, Ordering::Release);
        let (settings, session_settings) = s.settings.clone();
        self.settings = settings;
        self.session_settings = session_settings;
        Ok(())
    }

    fn explicit_block(&mut self, what: &str) -> Result<&mut Block> {
        match &mut self.block {
            Some(b) if b.explicit => Ok(b),
            _ => Err(SqlError::new(
                "25P01",
                format!("{what} can only be used in transaction blocks"),
            )),
        }
    }
}

/// As PostgreSQL: READ UNCOMMITTED is READ COMMITTED.
fn isolation_of(level: &str) -> Result<Isolation> {
    match level {
        "serializable" => Ok(Isolation::Serializable),
        "repeatable read" => Ok(Isolation::RepeatableRead),
        "read committed" | "read uncommitted" => Ok(Isolation::ReadCommitted),
        _ => Err(SqlError::new(
            "22023",
            format!("invalid value for parameter \"transaction_isolation\": \"{level}\""),
        )),
    }
}

/// As SHOW gives it.
pub(super) fn name_of(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Serializable => "serializable",
        Isolation::RepeatableRead => "repeatable read",
        Isolation::ReadCommitted => "read committed",
    }
}

fn find_savepoint(block: &Block, name: &str) -> Result<usize> {
    block
        .savepoints
        .iter()
        .rposition(|s| s.name == name)
        .ok_or_else(|| SqlError::new("3B001", format!("savepoint \"{name}\" does not exist")))
}
