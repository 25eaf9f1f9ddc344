//! The prepared statements of a session: one namespace for SQL (PREPARE, EXECUTE,
//! DEALLOCATE) and for the wire protocol (Parse, Bind, Close), as in PostgreSQL.
//! The statement without a name is the protocol's alone: SQL neither sees nor
//! removes it.

use super::{Prepared, Session};
use crate::error::{Result, SqlError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A prepared statement, as `pg_prepared_statements` shows it.
#[derive(Clone, Debug)]
pub struct Named {
    /// The statement.
    pub prepared: Arc<Prepared>,
    /// The text that was sent: for SQL the PREPARE statement itself.
    pub text: Arc<str>,
    /// When it was prepared, in microseconds.
    pub prepared_us: i64,
    /// By PREPARE, not by the protocol.
    pub from_sql: bool,
}

/// The prepared statements of a session, by name; shared with the statements that
/// look at them.
#[derive(Clone, Debug, Default)]
pub struct PreparedStatements(BTreeMap<String, Named>);

impl PreparedStatements {
    /// Those that have a name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Named)> {
        let named = self.0.iter().filter(|(name, _)| !name.is_empty());
        named.map(|(name, named)| (name.as_str(), named))
    }
}

impl Session {
    /// 42P05 when the name is taken; the unnamed statement is replaced instead.
    ///
    /// # Errors
    /// See above.
    pub fn refuse_taken(&self, name: &str) -> Result<()> {
        if name.is_empty() || !self.prepared.0.contains_key(name) {
            return Ok(());
        }
        Err(SqlError::new(
            "42P05",
            format!("prepared statement \"{name}\" already exists"),
        ))
    }

    /// Keeps a statement that the protocol prepared.
    ///
    /// # Errors
    /// 42P05 when the name is taken.
    pub fn keep_parsed(&mut self, name: String, prepared: Arc<Prepared>, text: &str) -> Result<()> {
        self.keep(name, prepared, text.into(), false)
    }

    pub(super) fn keep(
        &mut self,
        name: String,
        prepared: Arc<Prepared>,
        text: Arc<str>,
        from_sql: bool,
    ) -> Result<()> {
        self.refuse_taken(&name)?;
        let named = Named {
            prepared,
            text,
            prepared_us: self.settings.statement_time_us,
            from_sql,
        };
        Arc::make_mut(&mut self.prepared).0.insert(name, named);
        Ok(())
    }

    /// A prepared statement, whoever prepared it.
    ///
    /// # Errors
    /// 26000 when there is none of that name.
    pub fn prepared(&self, name: &str) -> Result<Arc<Prepared>> {
        match self.prepared.0.get(name) {
            Some(named) => Ok(Arc::clone(&named.prepared)),
            None => Err(unknown(name)),
        }
    }

    /// The protocol's Close: of something that need not exist.
    pub fn close_prepared(&mut self, name: &str) {
        if self.prepared.0.contains_key(name) {
            Arc::make_mut(&mut self.prepared).0.remove(name);
        }
    }

    /// DEALLOCATE name.
    pub(super) fn deallocate(&mut self, name: &str) -> Result<()> {
        match Arc::make_mut(&mut self.prepared).0.remove(name) {
            Some(_) => Ok(()),
            None => Err(unknown(name)),
        }
    }

    /// DEALLOCATE ALL.
    pub(super) fn deallocate_all(&mut self) {
        Arc::make_mut(&mut self.prepared)
            .0
            .retain(|name, _| name.is_empty());
    }
}

fn unknown(name: &str) -> SqlError {
    let message = if name.is_empty() {
        "unnamed prepared statement does not exist".to_owned()
    } else {
        format!("prepared statement \"{name}\" does not exist")
    };
    SqlError::new("26000", message)
}
