//! COPY FROM STDIN and TO STDOUT.

use super::run::read_only_error;
use super::stream::Limits;
use super::types::{CopyFormat, CopyOut, Outcome};
use super::{Prepared, Session};
use crate::dml::copy_in::CopyIn;
use crate::dml::copy_out;
use crate::error::{Result, SqlError};
use crate::statement::{CopyCommand, CopySource, Statement, TransactionModes};
use std::sync::Arc;

impl Session {
    pub(super) async fn copy(&mut self, copy: &CopyCommand, limits: &Limits) -> Result<Outcome> {
        if copy.to {
            return self.copy_out(copy, limits).await;
        }
        let CopySource::Table {
            schema,
            name,
            columns,
        } = &copy.source
        else {
            return Err(SqlError::internal("COPY FROM a query"));
        };
        let keyed = match &self.block {
            Some(b) => b.request_hash.is_some(),
            None => self.settings.idempotency_key.is_some(),
        };
        if keyed {
            // The key stands for the statements; the data come after them.
            return Err(SqlError::unsupported("COPY FROM under an idempotency key"));
        }
        let mut context = self.context();
        let own_catalog = self.block.as_ref().is_some_and(|b| b.pending.is_some());
        let mut codec = crate::dml::resolve_table(&context, schema.as_deref(), name);
        if codec.is_err() && !own_catalog {
            self.gateway.catalog.refresh().await?;
            context = self.context();
            codec = crate::dml::resolve_table(&context, schema.as_deref(), name);
        }
        let codec = codec?;
        let (txn, block_failed) = match &mut self.block {
            Some(b) => {
                if b.read_only {
                    return Err(read_only_error("COPY FROM"));
                }
                b.txn.set_deadline(limits.deadline);
                (b.begin_statement().await?, Some(Arc::clone(&b.failed)))
            }
            None => {
                let mut options = self.transaction_options(&TransactionModes::default());
                if options.read_only {
                    return Err(read_only_error("COPY FROM"));
                }
                options.deadline = limits.deadline;
                (self.gateway.client.begin(options)?, None)
            }
        };
        let copy_in = CopyIn::begin(
            Arc::clone(&self.gateway),
            context,
            codec,
            txn,
            block_failed,
            columns,
            &copy.options,
            limits.clone(),
        )?;
        Ok(Outcome::CopyIn(copy_in))
    }

    async fn copy_out(&mut self, copy: &CopyCommand, limits: &Limits) -> Result<Outcome> {
        let query = match &copy.source {
            CopySource::Query(query) => (**query).clone(),
            CopySource::Table {
                schema,
                name,
                columns,
            } => copy_out::table_query(schema.as_deref(), name, columns)?,
        };
        let statement = Statement::from_ast(datafusion::sql::sqlparser::ast::Statement::Query(
            Box::new(query),
        ));
        let prepared = Prepared {
            statement,
            parameter_types: Vec::new(),
            columns: None,
            plan: parking_lot::Mutex::new(None),
        };
        let outcome = Box::pin(self.run_planned(&prepared, &[], limits)).await?;
        let Outcome::Rows {
            columns, stream, ..
        } = outcome
        else {
            return Err(SqlError::new(
                "0A000",
                "COPY query must have a RETURNING clause",
            ));
        };
        let format = if copy.options.csv {
            CopyFormat::Csv
        } else {
            CopyFormat::Text
        };
        Ok(Outcome::CopyOut(CopyOut {
            format,
            columns: columns.len(),
            stream: copy_out::encode(
                columns,
                stream,
                &copy.options,
                self.settings.time_zone.clone(),
            ),
        }))
    }
}
