//! EXPLAIN and EXPLAIN ANALYZE.

use super::context::QueryContext;
use super::engine::Planned;
use super::errors::sql_error;
use crate::error::Result;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{displayable, execute_stream};
use futures::TryStreamExt;
use lineradb_client::Transaction;
use lineradb_common::sql::Datum;
use std::fmt::Write;

/// What EXPLAIN shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExplainOptions {
    /// Run the query and show rows and times.
    pub analyze: bool,
    /// Show the logical plan, spans and schemas too.
    pub verbose: bool,
}

impl Planned {
    /// The plan as text, one line per operator. With `analyze` the query runs
    /// and its rows are thrown away.
    ///
    /// # Errors
    /// As [`Planned::execute`]; with `analyze` also as the query fails.
    pub async fn explain(
        &self,
        _context: &QueryContext,
        transaction: &Transaction,
        parameters: &[Datum],
        options: ExplainOptions,
    ) -> Result<String> {
        let (plan, task) = self.physical(Some(transaction), parameters).await?;
        let mut out = String::new();
        if options.verbose {
            let _ = writeln!(out, "Logical plan:");
            for line in self.logical().display_indent().to_string().lines() {
                let _ = writeln!(out, "  {line}");
            }
            let _ = writeln!(out, "Physical plan:");
        }
        if !options.analyze {
            out.push_str(&clean(
                &displayable(plan.as_ref())
                    .indent(options.verbose)
                    .to_string(),
            ));
            return Ok(out);
        }
        let before = transaction.timing();
        let mut rows = 0usize;
        let mut stream = execute_stream(plan.clone(), task).map_err(sql_error)?;
        while let Some(batch) = stream.try_next().await.map_err(sql_error)? {
            rows += batch.num_rows();
        }
        drop(stream);
        out.push_str(&clean(
            &DisplayableExecutionPlan::with_metrics(plan.as_ref())
                .indent(options.verbose)
                .to_string(),
        ));
        let used = transaction.timing().since(&before);
        let _ = writeln!(out, "Rows: {rows}");
        let _ = writeln!(
            out,
            "Requests to shards: {}, {} us waiting for them, {} us at the nodes ({} us scanning)",
            used.requests, used.request_us, used.shard_us, used.scan_us
        );
        Ok(out)
    }
}

/// Without the marks of internal names.
fn clean(text: &str) -> String {
    text.replace('\u{1}', "#")
}
