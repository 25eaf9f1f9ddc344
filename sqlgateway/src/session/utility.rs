//! What the session does itself: transactions, settings, prepared statements,
//! EXPLAIN, COPY.

use super::stream::{Limits, of_rows};
use super::types::{Outcome, ResultColumn};
use super::{Prepared, Session};
use crate::error::{Result, SqlError};
use crate::point::compile::compile;
use crate::point::scalar::{ParameterTypes, Scope, Values};
use crate::statement::{Command, DiscardKind, SetValue, TransactionModes, sql_type};
use datafusion::sql::sqlparser::ast::Expr;
use lineradb_common::sql::{Datum, SqlType};
use std::sync::Arc;

/// What a utility statement returns; `None`: no rows.
pub(super) fn columns_of(command: &Command) -> Option<Arc<[ResultColumn]>> {
    let text = |name: &str| ResultColumn::new(name, SqlType::Text);
    Some(match command {
        Command::Show(name) => Arc::from(vec![text(name)]),
        Command::ShowAll => Arc::from(vec![text("name"), text("setting"), text("description")]),
        Command::ShowLastTiming => Arc::from(vec![
            text("part"),
            ResultColumn::new("value", SqlType::Int8),
        ]),
        Command::Explain { .. } => explain_columns(),
        _ => return None,
    })
}

/// What EXPLAIN returns.
pub(super) fn explain_columns() -> Arc<[ResultColumn]> {
    Arc::from(vec![ResultColumn::new("QUERY PLAN", SqlType::Text)])
}

impl Session {
    /// Transaction control, which also works in failed blocks. `None`: it is
    /// something else.
    pub(super) async fn transaction_command(
        &mut self,
        command: &Command,
        limits: &Limits,
    ) -> Result<Option<Outcome>> {
        let tag = match command {
            Command::Begin(modes) => {
                self.refuse_if_failed()?;
                let history = self.history_of(modes, limits).await?;
                self.begin_block(modes, true)?;
                self.go_back(history)?;
                "BEGIN"
            }
            Command::Commit(chain) => {
                let failed = match &self.block {
                    Some(b) => b.is_failed(),
                    None => {
                        self.notice("25P01", "there is no transaction in progress");
                        false
                    }
                };
                let modes = self.chained(*chain);
                self.commit_block().await?;
                self.reopen(modes)?;
                if failed { "ROLLBACK" } else { "COMMIT" }
            }
            Command::Rollback(chain) => {
                if self.block.is_none() {
                    self.notice("25P01", "there is no transaction in progress");
                }
                let modes = self.chained(*chain);
                self.rollback_block().await;
                self.reopen(modes)?;
                "ROLLBACK"
            }
            Command::RollbackTo(name) => {
                self.rollback_to_savepoint(name)?;
                "ROLLBACK"
            }
            _ => return Ok(None),
        };
        self.publish_settings();
        Ok(Some(Outcome::command(tag)))
    }

    /// The modes of the transaction that AND CHAIN opens.
    fn chained(&self, chain: bool) -> Option<TransactionModes> {
        (chain && self.block.is_some()).then(|| TransactionModes {
            isolation: Some(self.settings.transaction_isolation.clone()),
            read_only: Some(self.settings.transaction_read_only),
            as_of: None,
        })
    }

    fn reopen(&mut self, modes: Option<TransactionModes>) -> Result<()> {
        match modes {
            Some(modes) => self.begin_block(&modes, true),
            None => Ok(()),
        }
    }

    /// Everything else that is not planned.
    pub(super) async fn utility(
        &mut self,
        prepared: &Arc<Prepared>,
        parameters: &[Datum],
        limits: &Limits,
    ) -> Result<Outcome> {
        let command = prepared.statement.command();
        match command {
            Command::Empty => Ok(Outcome::Empty),
            Command::Savepoint(name) => {
                self.savepoint(name)?;
                Ok(Outcome::command("SAVEPOINT"))
            }
            Command::Release(name) => {
                self.release_savepoint(name)?;
                Ok(Outcome::command("RELEASE"))
            }
            Command::SetTransaction(modes, true) if modes.as_of.is_some() => Err(
                SqlError::unsupported("AS OF SYSTEM TIME for all transactions of a session"),
            ),
            Command::SetTransaction(modes, session) => {
                let history = self.history_of(modes, limits).await?;
                self.set_transaction(modes, *session)?;
                self.go_back(history)?;
                self.publish_settings();
                Ok(Outcome::command("SET"))
            }
            Command::Set(name, value, local) => {
                let implicit = self.block.as_ref().is_some_and(|b| !b.explicit);
                if name == "idempotency_key" && implicit {
                    // Its transaction has begun without a key: the statements that
                    // follow would not be recognised when they come again.
                    return Err(SqlError::new(
                        "25001",
                        "SET idempotency_key must come before the other statements of its request",
                    ));
                }
                self.set_command(name, value, *local)?;
                Ok(Outcome::command("SET"))
            }
            Command::Reset(Some(name)) => {
                self.change_setting(name, None, false)?;
                Ok(Outcome::command("RESET"))
            }
            Command::Reset(None) => {
                self.reset_settings();
                Ok(Outcome::command("RESET"))
            }
            Command::Show(name) => self.show(name),
            Command::ShowAll => {
                let rows: Vec<Vec<Datum>> = self
                    .settings
                    .all()
                    .into_iter()
                    .map(|(n, v, d)| vec![n.into(), v.into(), d.into()])
                    .collect();
                rows_of(command, "SHOW", rows)
            }
            Command::ShowLastTiming => {
                let parts = { self.timing.parts() }.into_iter();
                let rows = parts
                    .map(|(n, v)| vec![n.into(), Datum::Int8(v as i64)])
                    .collect();
                rows_of(command, "SHOW", rows)
            }
            Command::Discard(kind) => self.discard(*kind),
            Command::Prepare(name, types, statement) => {
                self.refuse_taken(name)?;
                let types = types
                    .iter()
                    .map(|t| sql_type(t).map(Some))
                    .collect::<Result<Vec<_>>>()?;
                let inner = Box::pin(self.prepare((**statement).clone(), &types)).await?;
                let text = Arc::clone(prepared.statement.shared_text());
                self.keep(name.clone(), inner, text, true)?;
                Ok(Outcome::command("PREPARE"))
            }
            Command::Execute(name, arguments) => {
                let inner = self.prepared(name)?;
                // The protocol can prepare an EXECUTE, even of itself.
                if matches!(inner.statement.command(), Command::Execute(..)) {
                    return Err(SqlError::unsupported("EXECUTE of an EXECUTE"));
                }
                let values = self.evaluate_arguments(name, arguments, &inner.parameter_types)?;
                Box::pin(self.dispatch(&inner, values, limits)).await
            }
            Command::Deallocate(None) => {
                self.deallocate_all();
                Ok(Outcome::command("DEALLOCATE ALL"))
            }
            Command::Deallocate(Some(name)) => {
                self.deallocate(name)?;
                Ok(Outcome::command("DEALLOCATE"))
            }
            Command::Explain {
                analyze,
                verbose,
                statement,
            } => {
                self.explain(statement, parameters, *analyze, *verbose, limits)
                    .await
            }
            Command::Copy(copy) => self.copy(copy, limits).await,
            Command::NoOperation(tag) => {
                if self.block.as_ref().is_some_and(|b| b.explicit) && *tag == "VACUUM" {
                    return Err(SqlError::new(
                        "25001",
                        "VACUUM cannot run inside a transaction block",
                    ));
                }
                let why = match *tag {
                    "ANALYZE" => "no statistics are kept",
                    _ => "old versions are collected in the background",
                };
                self.notice("00000", format!("{tag} has nothing to do: {why}"));
                Ok(Outcome::command(*tag))
            }
            Command::Nothing(tag) => Ok(Outcome::command(*tag)),
            Command::Unsupported(feature) => Err(SqlError::unsupported(feature)),
            Command::Begin(_)
            | Command::Commit(_)
            | Command::Rollback(_)
            | Command::RollbackTo(_)
            | Command::Sql(_) => Err(SqlError::internal("a statement took the wrong way")),
        }
    }

    fn set_command(&mut self, name: &str, value: &SetValue, local: bool) -> Result<()> {
        if local && self.block.is_none() {
            self.notice("25P01", "SET LOCAL can only be used in transaction blocks");
            return Ok(());
        }
        if name == "transaction_isolation" || name == "transaction_read_only" {
            let SetValue::Values(values) = value else {
                return Ok(());
            };
            let text = values.join(" ").to_lowercase();
            let modes = if name == "transaction_isolation" {
                TransactionModes {
                    isolation: Some(text),
                    ..TransactionModes::default()
                }
            } else {
                TransactionModes {
                    read_only: crate::settings::parse_bool(&text),
                    ..TransactionModes::default()
                }
            };
            return self.set_transaction(&modes, false);
        }
        let values = match value {
            SetValue::Default => None,
            SetValue::Values(v) => Some(v.as_slice()),
        };
        self.change_setting(name, values, local)
    }

    /// What the statement asked for by `set_config()`.
    pub(super) fn carry_out_set_requests(&mut self) -> Result<()> {
        for request in self.set_requests.take() {
            // Alone, the statement was the transaction.
            if request.local && self.block.is_none() {
                continue;
            }
            let value = match request.value {
                Some(value) => SetValue::Values(vec![value]),
                None => SetValue::Default,
            };
            self.set_command(&request.name, &value, request.local)?;
        }
        Ok(())
    }

    fn reset_settings(&mut self) {
        let keep = self.settings.transaction_isolation.clone();
        let read_only = self.settings.transaction_read_only;
        let time = self.settings.statement_time_us;
        self.settings = self.initial_settings.clone();
        self.settings.transaction_isolation = keep;
        self.settings.transaction_read_only = read_only;
        self.settings.statement_time_us = time;
        self.session_settings = self.settings.clone();
        self.publish_settings();
    }

    fn show(&self, name: &str) -> Result<Outcome> {
        let shown = match name {
            "datestyle" => "DateStyle",
            "timezone" => "TimeZone",
            "intervalstyle" => "IntervalStyle",
            other => other,
        };
        let value = self.settings.show(name).ok_or_else(|| {
            SqlError::new(
                "42704",
                format!("unrecognized configuration parameter \"{name}\""),
            )
        })?;
        let columns: Arc<[ResultColumn]> = Arc::from(vec![ResultColumn::new(shown, SqlType::Text)]);
        Ok(Outcome::Rows {
            stream: of_rows(&columns, &[vec![value.into()]])?,
            columns,
            tag: "SHOW",
            count: false,
        })
    }

    fn discard(&mut self, kind: DiscardKind) -> Result<Outcome> {
        match kind {
            DiscardKind::All => {
                if self.block.is_some() {
                    return Err(SqlError::new(
                        "25001",
                        "DISCARD ALL cannot run inside a transaction block",
                    ));
                }
                self.deallocate_all();
                self.reset_settings();
                Ok(Outcome::command("DISCARD ALL"))
            }
            // Plans are shared by all sessions and checked at each use.
            DiscardKind::Plans => Ok(Outcome::command("DISCARD PLANS")),
            DiscardKind::Nothing(tag) => Ok(Outcome::command(tag)),
        }
    }

    /// The arguments of EXECUTE.
    fn evaluate_arguments(
        &self,
        name: &str,
        arguments: &[Expr],
        types: &[SqlType],
    ) -> Result<Vec<Datum>> {
        if arguments.len() != types.len() {
            return Err(SqlError::syntax(format!(
                "wrong number of parameters for prepared statement \"{name}\""
            ))
            .with_detail(format!(
                "Expected {} parameters but got {}.",
                types.len(),
                arguments.len()
            )));
        }
        let context = self.context();
        let values = Values {
            parameters: &[],
            row: &[],
            settings: &context.settings,
        };
        arguments
            .iter()
            .zip(types)
            .map(|(e, t)| {
                let mut none = ParameterTypes::default();
                let typed =
                    compile(e, &Scope::default(), &mut none, Some(*t)).ok_or_else(|| {
                        SqlError::unsupported(format!(
                            "the expression {e} as an argument of EXECUTE"
                        ))
                    })?;
                let value = typed.expr.evaluate(&values)?;
                Ok(value.assign(*t, &context.settings.time_zone)?)
            })
            .collect()
    }
}

fn rows_of(command: &Command, tag: &'static str, rows: Vec<Vec<Datum>>) -> Result<Outcome> {
    let columns = columns_of(command).unwrap_or_else(|| Arc::from(Vec::new()));
    Ok(Outcome::Rows {
        stream: of_rows(&columns, &rows)?,
        columns,
        tag,
        count: false,
    })
}
