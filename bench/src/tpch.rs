//! `lineradb-bench tpch`: the 22 queries of TPC-H against a running gateway,
//! each compared, value by value, with what DataFusion answers on the same data
//! in memory, and timed beside it.

use crate::Figure;
use anyhow::{Context, Result, bail};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use lineradb_common::clock::Stopwatch;
use std::sync::Arc;
use tokio_postgres::{Client, SimpleQueryMessage};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow,
    SupplierArrow,
};

/// The texts of the 22 queries.
pub const QUERIES: [&str; 22] = [
    include_str!("../queries/tpch/q1.sql"),
    include_str!("../queries/tpch/q2.sql"),
    include_str!("../queries/tpch/q3.sql"),
    include_str!("../queries/tpch/q4.sql"),
    include_str!("../queries/tpch/q5.sql"),
    include_str!("../queries/tpch/q6.sql"),
    include_str!("../queries/tpch/q7.sql"),
    include_str!("../queries/tpch/q8.sql"),
    include_str!("../queries/tpch/q9.sql"),
    include_str!("../queries/tpch/q10.sql"),
    include_str!("../queries/tpch/q11.sql"),
    include_str!("../queries/tpch/q12.sql"),
    include_str!("../queries/tpch/q13.sql"),
    include_str!("../queries/tpch/q14.sql"),
    include_str!("../queries/tpch/q15.sql"),
    include_str!("../queries/tpch/q16.sql"),
    include_str!("../queries/tpch/q17.sql"),
    include_str!("../queries/tpch/q18.sql"),
    include_str!("../queries/tpch/q19.sql"),
    include_str!("../queries/tpch/q20.sql"),
    include_str!("../queries/tpch/q21.sql"),
    include_str!("../queries/tpch/q22.sql"),
];

/// What `load` makes anew.
const TABLES: [&str; 8] = [
    "region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem",
];

/// Runs the queries; with `load`, creates and fills the tables first, in place of
/// those of an earlier run.
///
/// # Errors
/// When a query fails, or answers something else than DataFusion does.
pub async fn run(url: &str, scale: f64, load: bool) -> Result<Vec<Figure>> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let connection = lineradb_common::spawn::task("bench-connection", connection);
    let mut figures = Vec::new();
    if load {
        for table in TABLES {
            let drop = format!("DROP TABLE IF EXISTS {table}");
            client.batch_execute(&drop).await?;
        }
        let stopwatch = Stopwatch::start();
        lineradb_cli::sample::load_tpch(&client, scale).await?;
        figures.push(Figure::ours(
            "load by COPY",
            "s",
            stopwatch.elapsed().as_secs_f64(),
        ));
    }
    let peer = in_memory(scale)?;
    let mut wrong = Vec::new();
    for (n, text) in QUERIES.iter().enumerate() {
        let name = format!("Q{}", n + 1);
        let expected = in_memory_rows(&peer, text).await.context(name.clone())?;
        let stopwatch = Stopwatch::start();
        in_memory_rows(&peer, text).await?;
        let peer_ms = stopwatch.elapsed().as_secs_f64() * 1e3;
        let stopwatch = Stopwatch::start();
        let found = match rows(&client, text).await {
            Ok(found) => found,
            Err(error) => {
                wrong.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        let ms = stopwatch.elapsed().as_secs_f64() * 1e3;
        if let Err(difference) = compare(&expected, &found) {
            wrong.push(format!("{name}: {difference:#}"));
        }
        figures.push(Figure {
            name,
            unit: "ms",
            ours: ms,
            peer: Some(peer_ms),
            peer_name: Some("DataFusion in memory".into()),
            ratio: Some(peer_ms / ms),
        });
    }
    drop(client);
    connection.await??;
    if !wrong.is_empty() {
        bail!(
            "{} of 22 queries are wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
    println!("all 22 queries answer what DataFusion answers");
    Ok(figures)
}

fn in_memory(scale: f64) -> Result<SessionContext> {
    let context = SessionContext::new();
    macro_rules! table {
        ($name:literal, $arrow:ident, $generator:ident) => {
            let batches: Vec<RecordBatch> =
                $arrow::new($generator::new(scale, 1, 1)).collect::<Result<_, _>>()?;
            let schema = batches.first().context("no rows")?.schema();
            context.register_table($name, Arc::new(MemTable::try_new(schema, vec![batches])?))?;
        };
    }
    table!("region", RegionArrow, RegionGenerator);
    table!("nation", NationArrow, NationGenerator);
    table!("part", PartArrow, PartGenerator);
    table!("supplier", SupplierArrow, SupplierGenerator);
    table!("partsupp", PartSuppArrow, PartSuppGenerator);
    table!("customer", CustomerArrow, CustomerGenerator);
    table!("orders", OrderArrow, OrderGenerator);
    table!("lineitem", LineItemArrow, LineItemGenerator);
    Ok(context)
}

type Rows = Vec<Vec<Option<String>>>;

async fn in_memory_rows(context: &SessionContext, text: &str) -> Result<Rows> {
    let frame = context.sql(text).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batch = concat_batches(&schema, &frame.collect().await?)?;
    let options = FormatOptions::default();
    let mut rows = Vec::with_capacity(batch.num_rows());
    let formatters = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        rows.push(
            batch
                .columns()
                .iter()
                .zip(&formatters)
                .map(|(column, formatter)| {
                    (!column.is_null(row)).then(|| formatter.value(row).to_string())
                })
                .collect(),
        );
    }
    Ok(rows)
}

async fn rows(client: &Client, text: &str) -> Result<Rows> {
    let mut rows = Vec::new();
    for message in client.simple_query(text).await? {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push(
                (0..row.len())
                    .map(|n| row.get(n).map(str::to_owned))
                    .collect(),
            );
        }
    }
    Ok(rows)
}

/// Equal row by row; rows that tie in the query's order may come in any order.
fn compare(expected: &Rows, found: &Rows) -> Result<()> {
    if expected.len() != found.len() {
        bail!("{} rows instead of {}", found.len(), expected.len());
    }
    let same = |a: &Rows, b: &Rows| a.iter().zip(b).position(|(a, b)| !rows_equal(a, b));
    if same(expected, found).is_none() {
        return Ok(());
    }
    let sorted = |rows: &Rows| {
        let mut rows = rows.clone();
        rows.sort_by_key(|row| {
            row.iter()
                .map(|v| canonical(v.as_deref()))
                .collect::<Vec<_>>()
        });
        rows
    };
    let (expected, found) = (sorted(expected), sorted(found));
    match same(&expected, &found) {
        None => Ok(()),
        Some(n) => bail!("row {n} is {:?} instead of {:?}", found[n], expected[n]),
    }
}

fn canonical(value: Option<&str>) -> String {
    match value.map(|v| (v, v.parse::<f64>())) {
        None => String::new(),
        Some((_, Ok(number))) => format!("{number:.2}"),
        Some((text, Err(_))) => text.to_owned(),
    }
}

fn rows_equal(a: &[Option<String>], b: &[Option<String>]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|pair| match pair {
            (None, None) => true,
            (Some(a), Some(b)) => a == b || numbers_equal(a, b),
            _ => false,
        })
}

/// Averages carry more digits in one system than in the other.
fn numbers_equal(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-4 * a.abs().max(b.abs()).max(1e-2),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_numbers_where_they_are_numbers() {
        let row = |v: &[&str]| vec![v.iter().map(|v| Some((*v).to_owned())).collect::<Vec<_>>()];
        assert!(compare(&row(&["1.50", "a"]), &row(&["1.5000001", "a"])).is_ok());
        assert!(compare(&row(&["1.50", "a"]), &row(&["1.6", "a"])).is_err());
        assert!(compare(&row(&["a"]), &row(&["b"])).is_err());
        assert!(compare(&row(&["a"]), &vec![]).is_err());
    }
}
