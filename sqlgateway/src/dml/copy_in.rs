//! `COPY t FROM STDIN`: one COPY is one transaction, or part of the block that it
//! is in. Rows are encoded and buffered as they come; unique keys are checked by
//! conditions at commit, so that a load costs no read per row.

use super::DmlContext;
use super::codec::TableCodec;
use super::copy_format::{Fields, Format, Reader};
use super::exprs::Compiler;
use super::insert::{Defaults, finish_rows, target_columns};
use super::writer::{Checks, RowWriter};
use crate::error::{Result, SqlError};
use crate::gateway::Gateway;
use crate::point::scalar::ParameterTypes;
use crate::point::table_column;
use crate::query::QueryContext;
use crate::session::stream::Limits;
use crate::session::{CopyFormat, ResultColumn, Session};
use crate::statement::CopyOptions;
use datafusion::sql::sqlparser::ast;
use lineradb_client::Transaction;
use lineradb_common::sql::Datum;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows encoded at a time.
const BATCH: usize = 1000;

/// `COPY t FROM STDIN` under way.
pub struct CopyIn {
    gateway: Arc<Gateway>,
    context: QueryContext,
    codec: Arc<TableCodec>,
    txn: Transaction,
    /// Set when it runs inside a transaction: how to fail that.
    block_failed: Option<Arc<AtomicBool>>,
    columns: Vec<ResultColumn>,
    targets: Vec<usize>,
    defaults: Defaults,
    format: CopyFormat,
    reader: Reader,
    header: Option<bool>,
    rows: Vec<Fields>,
    copied: u64,
    limits: Limits,
}

impl CopyIn {
    /// Begins; `block_failed` is set inside a transaction.
    #[allow(clippy::too_many_arguments)] // one call site
    pub(crate) fn begin(
        gateway: Arc<Gateway>,
        context: QueryContext,
        codec: Arc<TableCodec>,
        txn: Transaction,
        block_failed: Option<Arc<AtomicBool>>,
        columns: &[String],
        options: &CopyOptions,
        limits: Limits,
    ) -> Result<Self> {
        let names: Vec<ast::ObjectName> = columns
            .iter()
            .map(|c| ast::ObjectName::from(vec![ast::Ident::with_quote('"', c)]))
            .collect();
        let targets = target_columns(&codec, &names)?;
        let defaults = {
            let mut compiler = Compiler {
                engine: &gateway.engine,
                context: &context,
                parameters: ParameterTypes::default(),
            };
            let others = (0..codec.table.columns.len()).filter(|at| !targets.contains(at));
            Defaults::compile(&mut compiler, &codec, others)?
        };
        Ok(CopyIn {
            columns: targets
                .iter()
                .map(|at| table_column(&codec, *at, None))
                .collect(),
            reader: Reader::new(Format::new(options)?),
            format: if options.csv {
                CopyFormat::Csv
            } else {
                CopyFormat::Text
            },
            header: options.header.then_some(options.header_match),
            gateway,
            context,
            codec,
            txn,
            block_failed,
            targets,
            defaults,
            rows: Vec::new(),
            copied: 0,
            limits,
        })
    }

    /// The columns that the data fill.
    pub fn columns(&self) -> &[ResultColumn] {
        &self.columns
    }

    /// The format of the data.
    pub fn format(&self) -> CopyFormat {
        self.format
    }

    /// Takes a piece of the data; pieces need not end at line ends.
    ///
    /// # Errors
    /// 22P04 and the errors of the values; the COPY is over then: call `fail`.
    pub async fn write(&mut self, data: &[u8]) -> Result<()> {
        let result = self.take(data).await;
        self.note(result)
    }

    async fn take(&mut self, data: &[u8]) -> Result<()> {
        self.reader.push(data, &mut self.rows)?;
        if self.rows.len() >= BATCH {
            self.flush().await?;
        }
        Ok(())
    }

    fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let (Err(_), Some(failed)) = (&result, &self.block_failed) {
            failed.store(true, Ordering::Release);
        }
        result
    }

    async fn flush(&mut self) -> Result<()> {
        let fields = std::mem::take(&mut self.rows);
        let first_line = self.reader.line + 1 - fields.len() as u64;
        let mut rows = Vec::with_capacity(fields.len());
        for (i, fields) in fields.into_iter().enumerate() {
            let line = first_line + i as u64;
            if let Some(check) = self.header.take() {
                if check {
                    self.check_header(&fields)?;
                }
                continue;
            }
            rows.push(self.row(fields, line)?);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let work = async {
            let ctx = DmlContext {
                query: &self.context,
                catalog: &self.gateway.catalog,
                txn: &self.txn,
                parameters: &[],
                checks: Checks::AtCommit,
            };
            self.defaults.fill(&ctx, &mut rows)?;
            finish_rows(&ctx, &self.codec, &mut rows).await?;
            RowWriter {
                codec: &self.codec,
                txn: &self.txn,
                checks: Checks::AtCommit,
            }
            .insert(&rows)
            .await
        };
        self.limits.run(work).await.map_err(|mut e| {
            e.detail.get_or_insert_with(|| {
                format!(
                    "COPY {}, near line {}",
                    self.codec.table.name, self.reader.line
                )
            });
            e
        })?;
        self.copied += rows.len() as u64;
        Ok(())
    }

    fn row(&self, fields: Fields, line: u64) -> Result<Vec<Datum>> {
        let name = &self.codec.table.name;
        let where_ = |column: &str| format!("COPY {name}, line {line}, column {column}");
        if fields.len() != self.targets.len() {
            let message = match self.targets.get(fields.len()) {
                Some(at) => format!(
                    "missing data for column \"{}\"",
                    self.codec.table.columns[*at].name
                ),
                None => "extra data after last expected column".to_owned(),
            };
            return Err(
                SqlError::new("22P04", message).with_detail(format!("COPY {name}, line {line}"))
            );
        }
        let mut row = vec![Datum::Null; self.codec.table.columns.len()];
        for (at, field) in self.targets.iter().zip(fields) {
            let c = &self.codec.table.columns[*at];
            if let Some(text) = field {
                row[*at] = Datum::parse(c.sql_type, &text, &self.context.settings.time_zone)
                    .map_err(|e| SqlError::from(e).with_detail(where_(&c.name)))?;
            }
        }
        Ok(row)
    }

    fn check_header(&self, fields: &Fields) -> Result<()> {
        let expected: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
        let found: Vec<&str> = fields.iter().map(|f| f.as_deref().unwrap_or("")).collect();
        if expected == found {
            return Ok(());
        }
        Err(SqlError::new(
            "22P04",
            format!(
                "column names of the header ({}) are not those of the table ({})",
                found.join(", "),
                expected.join(", ")
            ),
        ))
    }

    /// The data are complete: inserts what is left and commits, unless in a
    /// transaction block. Answers the rows copied.
    ///
    /// # Errors
    /// As `write`, and those of the commit.
    pub async fn finish(mut self, session: &mut Session) -> Result<u64> {
        let rest = async {
            self.reader.finish(&mut self.rows)?;
            self.flush().await
        }
        .await;
        if let Err(e) = self.note(rest) {
            if self.block_failed.is_none() {
                self.txn.rollback().await;
            }
            return Err(e);
        }
        if self.block_failed.is_none() {
            session
                .commit_copy(&self.txn, self.copied, &self.context)
                .await?;
        }
        Ok(self.copied)
    }

    /// The client gave up, or `write` failed: nothing is copied. Answers the
    /// error to report (57014 with the client's message).
    pub async fn fail(self, session: &mut Session, message: &str) -> SqlError {
        match &self.block_failed {
            Some(failed) => failed.store(true, Ordering::Release),
            None => self.txn.rollback().await,
        }
        session.fail();
        SqlError::new("57014", format!("COPY from stdin failed: {message}"))
    }
}
