//! Simple queries: one text, one or several statements.
//!
//! Several statements form one implicit transaction, as in PostgreSQL. A single
//! one that looks up or changes one row by its key is not parsed at all when its
//! text, apart from literals, was seen before.

use super::plan::{CompiledStatement, PlanKey, compile};
use super::types::{Outcome, TransactionStatus};
use super::{Prepared, Session, opens_implicit};
use crate::error::{Result, SqlError};
use crate::statement::lift::{Lifted, lift};
use crate::statement::{self, Command, Statement, TransactionModes};
use lineradb_common::clock::wall_clock_us;
use lineradb_common::limits::SQL_BYTES_MAX;
use lineradb_common::sql::{Datum, SqlType};
use std::collections::VecDeque;
use std::sync::Arc;

/// A simple query under way.
pub struct SimpleQuery {
    text: Arc<str>,
    lifted: Option<Lifted>,
    statements: VecDeque<Statement>,
    several: bool,
    over: bool,
}

impl Session {
    /// Begins a simple query: the statements of the text, to be run one after
    /// the other by [`Session::next_simple`]. Several statements form one
    /// implicit transaction.
    ///
    /// # Errors
    /// 42601 with a position.
    pub fn begin_simple(&mut self, sql: &str) -> Result<SimpleQuery> {
        if sql.len() > SQL_BYTES_MAX {
            return Err(SqlError::new(
                "54000",
                format!("the statement is longer than {SQL_BYTES_MAX} bytes"),
            ));
        }
        self.note_request(sql, &[]);
        let mut query = SimpleQuery {
            text: sql.into(),
            lifted: lift(sql),
            statements: VecDeque::new(),
            several: false,
            over: false,
        };
        if query.lifted.is_none() {
            query.parse().inspect_err(|_| self.fail())?;
        }
        Ok(query)
    }

    /// Runs the next statement of a simple query; `None`: that was all (the
    /// implicit transaction is committed with the last statement). After an
    /// error the rest is skipped and the implicit transaction rolled back. The
    /// outcome before must have been consumed (rows, COPY).
    ///
    /// # Errors
    /// Those of the statement; then the query is over.
    pub async fn next_simple(&mut self, query: &mut SimpleQuery) -> Option<Result<Outcome>> {
        if query.over {
            return None;
        }
        if let Some(lifted) = query.lifted.take() {
            match self.run_lifted(&lifted).await {
                Ok(Some(outcome)) => {
                    query.over = true;
                    return Some(Ok(outcome));
                }
                Ok(None) => {
                    if let Err(e) = query.parse() {
                        self.fail();
                        return Some(Err(self.end_simple(query, e).await));
                    }
                }
                Err(e) => return Some(Err(self.end_simple(query, e).await)),
            }
        }
        // A result stream or COPY of the statement before may have failed.
        let failed = self
            .block
            .as_ref()
            .is_some_and(|b| !b.explicit && b.is_failed());
        let Some(statement) = query.statements.pop_front().filter(|_| !failed) else {
            query.over = true;
            if failed {
                self.rollback_block().await;
                return None;
            }
            return match &self.block {
                Some(b) if !b.explicit => match self.commit_block().await {
                    Ok(()) => None,
                    Err(e) => Some(Err(e)),
                },
                _ => None,
            };
        };
        if query.several && self.block.is_none() && opens_implicit(statement.command()) {
            self.settings.statement_time_us = wall_clock_us() as i64;
            let begun = match self.begin_block(&TransactionModes::default(), false) {
                Ok(()) => self.replay_block().await,
                Err(e) => Err(e),
            };
            match begun {
                Ok(None) => {}
                Ok(Some(outcome)) => {
                    query.over = true;
                    query.statements.clear();
                    return Some(Ok(outcome));
                }
                Err(e) => return Some(Err(self.end_simple(query, e).await)),
            }
        }
        let prepared = Arc::new(Prepared {
            statement,
            parameter_types: Vec::new(),
            columns: None,
            plan: parking_lot::Mutex::new(None),
        });
        match self.run_statement(&prepared, Vec::new()).await {
            Ok(outcome) => Some(Ok(outcome)),
            Err(mut e) => {
                // Positions count from the start of the whole text.
                let offset = prepared.statement.offset();
                let before = statement::lexer::char_position(&query.text, offset) - 1;
                e.position = e.position.map(|p| p + before);
                Some(Err(self.end_simple(query, e).await))
            }
        }
    }

    async fn end_simple(&mut self, query: &mut SimpleQuery, error: SqlError) -> SqlError {
        query.over = true;
        query.statements.clear();
        if self.transaction_status() == TransactionStatus::Idle {
            self.rollback_block().await;
        }
        error
    }

    /// Runs a statement whose literals were lifted; `None`: it needs them to be
    /// planned.
    async fn run_lifted(&mut self, lifted: &Lifted) -> Result<Option<Outcome>> {
        self.settings.statement_time_us = wall_clock_us() as i64;
        let context = self.context();
        if { self.block.as_ref() }.is_some_and(|b| b.own_catalog().is_some()) {
            return Ok(None);
        }
        let key = PlanKey {
            text: lifted.text.as_str().into(),
            types: lifted.types.clone(),
            search_path: context.settings.search_path.clone(),
            time_zone: context.settings.time_zone_name.clone(),
        };
        let compiled = match self.gateway.plans.get(&key, &context) {
            Some(compiled) => compiled,
            None => {
                let compiled = Arc::new(self.compile_lifted(lifted, &context).await);
                self.gateway.plans.put(key, &compiled);
                compiled
            }
        };
        if !compiled.is_simple() {
            return Ok(None);
        }
        // Strings are read as what their place asks for.
        let mut parameters = Vec::with_capacity(lifted.values.len());
        for (at, value) in lifted.values.iter().enumerate() {
            let target = compiled.parameter_types.get(at).copied();
            parameters.push(match (value, target) {
                (Datum::Text(text), Some(t)) if !t.is_text() => {
                    Datum::parse(t, text, &context.settings.time_zone)
                        .inspect_err(|_| self.fail())?
                }
                (other, _) => other.clone(),
            });
        }
        let parameter_types: Vec<SqlType> = compiled.parameter_types.clone();
        let prepared = Arc::new(Prepared {
            statement: compiled.statement.clone(),
            parameter_types,
            columns: compiled.columns.clone(),
            plan: parking_lot::Mutex::new(Some(compiled)),
        });
        self.run_statement(&prepared, parameters).await.map(Some)
    }

    async fn compile_lifted(
        &self,
        lifted: &Lifted,
        context: &crate::query::QueryContext,
    ) -> CompiledStatement {
        let liftable = match statement::parse(&lifted.text) {
            Ok(s) => match &s[..] {
                [one] if matches!(one.command(), Command::Sql(_)) => {
                    compile(&self.gateway.engine, context, one, &lifted.types)
                        .await
                        .ok()
                        .filter(CompiledStatement::is_simple)
                        .filter(|c| c.parameter_types.len() == lifted.types.len())
                }
                _ => None,
            },
            Err(_) => None,
        };
        liftable.unwrap_or_else(|| CompiledStatement::not_liftable(context))
    }
}

impl SimpleQuery {
    fn parse(&mut self) -> Result<()> {
        self.statements = statement::parse(&self.text)?.into();
        self.several = self.statements.len() > 1;
        Ok(())
    }
}
