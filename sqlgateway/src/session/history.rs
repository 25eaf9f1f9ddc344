//! Reading the past: `AS OF SYSTEM TIME` on a query, on BEGIN and on SET
//! TRANSACTION. All of such a transaction is read at one timestamp, which lies
//! between the oldest history kept and now; the tables are those of that time.

use super::stream::Limits;
use super::{CompiledStatement, Session, plan};
use crate::catalog::CatalogSnapshot;
use crate::error::{Result, SqlError};
use crate::query::QueryContext;
use crate::statement::{AsOf, Statement, TransactionModes};
use lineradb_client::{Error as ClientError, TransactionOptions};
use lineradb_common::Timestamp;
use lineradb_common::sql::SqlType;
use std::sync::Arc;

/// A point in the past.
#[derive(Clone)]
pub(super) struct History {
    pub at: Timestamp,
    /// The tables of then.
    pub catalog: Arc<CatalogSnapshot>,
}

impl Session {
    /// Goes back.
    pub(super) async fn history(&self, as_of: &AsOf, limits: &Limits) -> Result<History> {
        let now = self
            .gateway
            .client
            .clock()
            .now()
            .map_err(ClientError::from)?
            .earliest;
        let at = as_of.timestamp(now, &self.settings.time_zone)?;
        let txn = self.gateway.client.begin(TransactionOptions {
            read_at: Some(at),
            read_only: true,
            deadline: limits.deadline,
            ..TransactionOptions::default()
        })?;
        let catalog = limits.run(self.gateway.catalog.load(&txn)).await;
        txn.rollback().await;
        let catalog = catalog.map_err(beyond_history)?;
        Ok(History { at, catalog })
    }

    /// What `modes` go back to.
    pub(super) async fn history_of(
        &self,
        modes: &TransactionModes,
        limits: &Limits,
    ) -> Result<Option<History>> {
        let Some(as_of) = &modes.as_of else {
            return Ok(None);
        };
        if modes.read_only == Some(false) {
            return Err(SqlError::new(
                "22023",
                "a transaction AS OF SYSTEM TIME is read only",
            ));
        }
        self.history(as_of, limits).await.map(Some)
    }

    /// Plans a query against the tables of then. Such plans are not kept.
    pub(super) async fn compile_then(
        &self,
        statement: &Statement,
        declared: &[Option<SqlType>],
        context: &QueryContext,
    ) -> Result<Arc<CompiledStatement>> {
        let compiled = plan::compile(&self.gateway.engine, context, statement, declared).await?;
        Ok(Arc::new(compiled))
    }
}

/// The error for a time of which no history is kept any more.
pub(super) fn beyond_history(error: SqlError) -> SqlError {
    if error.sqlstate != "72000" {
        return error;
    }
    SqlError::new("22023", "AS OF SYSTEM TIME goes back too far").with_detail(format!(
        "{} The time may be anything from then up to now.",
        sentence(&error.message)
    ))
}

fn sentence(message: &str) -> String {
    let mut chars = message.chars();
    match chars.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_that_is_gone_is_a_wrong_time() {
        let gone = SqlError::new("72000", "snapshot too old: history before 7.0 is not kept");
        let error = beyond_history(gone);
        assert_eq!(error.sqlstate, "22023");
        assert_eq!(
            error.detail.as_deref(),
            Some(
                "Snapshot too old: history before 7.0 is not kept. The time may be anything from \
                 then up to now."
            )
        );
        let other = beyond_history(SqlError::new("57P03", "no quorum"));
        assert_eq!(other.sqlstate, "57P03");
    }
}
