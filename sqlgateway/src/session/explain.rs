//! EXPLAIN and EXPLAIN ANALYZE.

use super::plan::Plan;
use super::stream::{Limits, of_rows};
use super::types::Outcome;
use super::utility::explain_columns;
use super::{Prepared, Session};
use crate::error::{Result, SqlError};
use crate::query::ExplainOptions;
use crate::statement::{Command, Statement, TransactionModes};
use lineradb_client::Timing;
use lineradb_common::clock::Stopwatch;
use lineradb_common::sql::Datum;

impl Session {
    pub(super) async fn explain(
        &mut self,
        statement: &Statement,
        parameters: &[Datum],
        analyze: bool,
        verbose: bool,
        limits: &Limits,
    ) -> Result<Outcome> {
        let statement = match statement.command() {
            Command::Execute(name, _) => self.prepared(name)?.statement.clone(),
            _ => statement.clone(),
        };
        if statement.as_of().is_some() {
            return Err(SqlError::unsupported(
                "EXPLAIN of a query AS OF SYSTEM TIME (open a transaction with BEGIN AS OF SYSTEM \
                 TIME instead)",
            ));
        }
        let compiled = limits.run(self.compile(&statement, &[], false)).await?;
        let options = ExplainOptions { analyze, verbose };
        let context = self.context();
        let mut text = match &compiled.plan {
            Plan::Point(p) => p.explain(),
            Plan::Dml(p) => p.explain().0,
            Plan::Query(_) => String::new(),
            Plan::Other | Plan::NotLiftable => {
                return Err(SqlError::syntax("this statement has no plan to explain"));
            }
        };
        let below = match &compiled.plan {
            Plan::Query(p) => Some(&**p),
            Plan::Dml(p) => p.explain().1,
            _ => None,
        };
        if let Some(planned) = below {
            // The rows that a DML statement reads are explained, not read twice.
            let analyze = analyze && matches!(compiled.plan, Plan::Query(_));
            let (txn, own) = match &mut self.block {
                Some(b) => (b.begin_statement().await?, false),
                None => {
                    let options = self.transaction_options(&TransactionModes::default());
                    (self.gateway.client.begin(options)?, true)
                }
            };
            let work = planned.explain(
                &context,
                &txn,
                parameters,
                ExplainOptions { analyze, ..options },
            );
            let plan = limits.run(work).await;
            if own {
                txn.rollback().await;
            }
            self.remember_timing(&txn);
            let plan = plan?;
            if text.is_empty() {
                text = plan;
            } else {
                for line in plan.lines() {
                    text.push_str("\n  ");
                    text.push_str(line);
                }
            }
        }
        if analyze && !matches!(compiled.plan, Plan::Query(_)) {
            let watch = Stopwatch::start();
            let prepared = Prepared {
                statement,
                parameter_types: compiled.parameter_types.clone(),
                columns: compiled.columns.clone(),
                plan: parking_lot::Mutex::new(None),
            };
            let outcome = Box::pin(self.run_planned(&prepared, parameters, limits)).await?;
            let rows = match outcome {
                Outcome::Command { rows, .. } => rows.unwrap_or(0),
                Outcome::Rows {
                    stream, columns, ..
                } => crate::dml::rows::collect(stream, &columns).await?.len() as u64,
                _ => 0,
            };
            text.push_str(&format!(
                "\nActual Rows: {rows}\nExecution Time: {:.3} ms",
                f64::from(watch.elapsed_us()) / 1000.0,
            ));
        }
        if analyze {
            if let Some(txn) = self.block.as_ref().map(|b| b.txn.clone()) {
                self.remember_timing(&txn);
            }
            text.push_str(&receipt(&self.timing));
        }
        let columns = explain_columns();
        let rows: Vec<Vec<Datum>> = text.lines().map(|l| vec![l.into()]).collect();
        Ok(Outcome::Rows {
            stream: of_rows(&columns, &rows)?,
            columns,
            tag: "EXPLAIN",
            count: false,
        })
    }
}

/// Where the time went, a line each; what was nothing is left out, but for what
/// tells how a commit went.
fn receipt(timing: &Timing) -> String {
    let mut text = String::from("\nLatency Receipt:");
    for (name, value) in timing.parts() {
        let always = matches!(name, "requests" | "consensus_rounds" | "retries");
        if value == 0 && !always {
            continue;
        }
        let line = match name.strip_suffix("_us") {
            Some(name) => format!("\n  {}: {:.3} ms", title(name), value as f64 / 1000.0),
            None => format!("\n  {}: {value}", title(name)),
        };
        text.push_str(&line);
    }
    text
}

/// `lock_wait`: `Lock Wait`.
fn title(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(1);
        format!("{}{rest}", first.to_uppercase())
    });
    words.collect::<Vec<_>>().join(" ")
}
