//! Rows of a query as values, and the shape of statements made from others.

use crate::error::{Result, SqlError};
use crate::session::ResultColumn;
use crate::statement::parse_sql;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::sql::sqlparser::ast::{self, Expr, Query, SelectItem, SetExpr};
use futures::StreamExt;
use lineradb_common::limits::TXN_BYTES_MAX;
use lineradb_common::sql::{Datum, datum_at};

/// All rows of a stream. They must fit into a transaction anyway.
///
/// # Errors
/// 54000 when they do not, and those of the query.
pub async fn collect(
    mut stream: SendableRecordBatchStream,
    columns: &[ResultColumn],
) -> Result<Vec<Vec<Datum>>> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(crate::query::sql_error)?;
        bytes += batch.get_array_memory_size();
        if bytes > TXN_BYTES_MAX {
            return Err(SqlError::new(
                "54000",
                format!("the statement touches more than {TXN_BYTES_MAX} bytes of rows"),
            )
            .with_hint("Split it into several statements."));
        }
        for at in 0..batch.num_rows() {
            rows.push(
                batch
                    .columns()
                    .iter()
                    .zip(columns)
                    .map(|(a, c)| datum_at(a.as_ref(), at, c.sql_type))
                    .collect::<Result<Vec<_>, _>>()?,
            );
        }
    }
    Ok(rows)
}

/// `SELECT items FROM tables WHERE condition` as a tree.
///
/// # Errors
/// Never for a parser that reads `SELECT 1`.
pub fn select(
    items: Vec<SelectItem>,
    from: Vec<ast::TableWithJoins>,
    selection: Option<Expr>,
    with: Option<ast::With>,
) -> Result<Query> {
    let ast::Statement::Query(mut query) = parse_sql("SELECT 1")? else {
        return Err(SqlError::internal("SELECT is no query"));
    };
    let SetExpr::Select(select) = &mut *query.body else {
        return Err(SqlError::internal("SELECT is no query"));
    };
    select.projection = items;
    select.from = from;
    select.selection = selection;
    query.with = with;
    Ok(*query)
}

/// `qualifier.column` as an item of a select list.
pub fn column_item(qualifier: &str, column: &str) -> SelectItem {
    SelectItem::UnnamedExpr(Expr::CompoundIdentifier(vec![
        ast::Ident::with_quote('"', qualifier),
        ast::Ident::with_quote('"', column),
    ]))
}
