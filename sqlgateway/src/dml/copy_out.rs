//! `COPY .. TO STDOUT`: a query's rows in the text or CSV format.

use super::copy_format::Format;
use crate::error::Result;
use crate::query::sql_error;
use crate::session::{CopyPiece, ResultColumn};
use crate::statement::{CopyOptions, parse_sql};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::sql::sqlparser::ast;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use lineradb_common::sql::{TimeZone, datum_at};
use std::sync::Arc;

/// `SELECT columns FROM table` as a tree.
///
/// # Errors
/// Never for names that are quoted.
pub fn table_query(schema: Option<&str>, name: &str, columns: &[String]) -> Result<ast::Query> {
    let quote = |n: &str| format!("\"{}\"", n.replace('"', "\"\""));
    let list = if columns.is_empty() {
        "*".to_owned()
    } else {
        columns
            .iter()
            .map(|c| quote(c))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let table = match schema {
        Some(s) => format!("{}.{}", quote(s), quote(name)),
        None => quote(name),
    };
    match parse_sql(&format!("SELECT {list} FROM {table}"))? {
        ast::Statement::Query(query) => Ok(*query),
        _ => Err(crate::error::SqlError::internal("SELECT is no query")),
    }
}

/// Rows as COPY data, one piece per batch; it says where its rows end, since
/// clients get one message per row.
pub fn encode(
    columns: Arc<[ResultColumn]>,
    rows: SendableRecordBatchStream,
    options: &CopyOptions,
    zone: TimeZone,
) -> BoxStream<'static, Result<CopyPiece>> {
    let format = match Format::new(options) {
        Ok(f) => f,
        Err(e) => return stream::once(async { Err(e) }).boxed(),
    };
    let force: Vec<bool> = columns
        .iter()
        .map(|c| options.force_quote.iter().any(|f| f == "*" || *f == c.name))
        .collect();
    let header = options.header.then(|| {
        let names: Vec<Option<&str>> = columns.iter().map(|c| Some(c.name.as_str())).collect();
        let mut out = Vec::new();
        format.write_row(&names, &[], &mut out);
        Ok(CopyPiece {
            ends: vec![out.len()],
            data: out.into(),
            rows: 0,
        })
    });
    let body = rows.map(move |batch| {
        let batch = batch.map_err(sql_error)?;
        let mut out = Vec::with_capacity(batch.num_rows() * 32);
        let mut ends = Vec::with_capacity(batch.num_rows());
        let mut texts: Vec<Option<String>> = Vec::with_capacity(columns.len());
        for at in 0..batch.num_rows() {
            texts.clear();
            for (array, c) in batch.columns().iter().zip(columns.iter()) {
                texts.push(datum_at(array.as_ref(), at, c.sql_type)?.format(c.sql_type, &zone));
            }
            let fields: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
            format.write_row(&fields, &force, &mut out);
            ends.push(out.len());
        }
        Ok(CopyPiece {
            ends,
            data: out.into(),
            rows: batch.num_rows() as u64,
        })
    });
    stream::iter(header).chain(body).boxed()
}
