//! The semantics script run without a cluster, and plans over a catalog in
//! memory.

use super::{EngineOptions, NoVirtualTables, Planned, QueryContext, QueryEngine};
use crate::catalog::{
    CatalogSnapshot, ColumnDescriptor, IndexDescriptor, IndexState, SchemaDescriptor,
    TableDescriptor,
};
use crate::error::{Result, SqlError};
use crate::query::sql_error;
use crate::settings::Settings;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::displayable;
use datafusion::sql::sqlparser::ast::{Query, Statement};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use futures::TryStreamExt;
use lineradb_common::sql::{Datum, SqlType, TimeZone, datum_at};
use std::sync::Arc;

fn parse(sql: &str) -> Result<Box<Query>> {
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql)
        .map_err(|e| SqlError::syntax(e.to_string()))?;
    match statements.pop() {
        Some(Statement::Query(query)) => Ok(query),
        _ => Err(SqlError::syntax("not a query")),
    }
}

fn engine() -> Arc<QueryEngine> {
    QueryEngine::new(EngineOptions::default()).unwrap()
}

fn context(tables: Vec<TableDescriptor>) -> QueryContext {
    let schema = SchemaDescriptor {
        oid: 2200,
        name: "public".into(),
    };
    QueryContext {
        catalog: Arc::new(CatalogSnapshot::new(
            1,
            [schema],
            tables.into_iter().map(Arc::new),
        )),
        virtual_tables: Arc::new(NoVirtualTables),
        settings: Arc::new(Settings::default()),
        prepared: Arc::default(),
        set_requests: Arc::default(),
        row_ids: false,
    }
}

/// `name: column type, ...`; the first `key` columns are the primary key.
fn table(id: u32, name: &str, key: usize, columns: &str) -> TableDescriptor {
    let columns: Vec<ColumnDescriptor> = columns
        .split(", ")
        .enumerate()
        .map(|(i, c)| {
            let (name, sql_type) = c.split_once(' ').unwrap();
            ColumnDescriptor {
                id: i as u32 + 1,
                name: name.into(),
                sql_type: sql_type.parse().unwrap(),
                nullable: i >= key,
                default: None,
                missing: None,
                hidden: false,
            }
        })
        .collect();
    let index = |index_id, name: String, columns| IndexDescriptor {
        id: index_id,
        oid: id * 10 + index_id,
        constraint_oid: id * 10 + 9,
        name,
        unique: true,
        columns,
        state: IndexState::Public,
    };
    TableDescriptor {
        format: 1,
        id,
        schema: "public".into(),
        name: name.into(),
        version: 1,
        next_column_id: columns.len() as u32 + 1,
        primary: index(1, format!("{name}_pkey"), (1..=key as u32).collect()),
        indexes: vec![IndexDescriptor {
            unique: false,
            constraint_oid: 0,
            ..index(2, format!("{name}_second"), vec![key as u32 + 1])
        }],
        next_index_id: 3,
        pending_primary: None,
        columns,
    }
}

async fn plan(context: &QueryContext, sql: &str) -> Result<Planned> {
    engine().plan(context, &*parse(sql)?, &[]).await
}

/// Rows of a query without tables, as text.
async fn rows(
    engine: &QueryEngine,
    context: &QueryContext,
    sql: &str,
    parameters: &[Datum],
) -> Result<Vec<String>> {
    let planned = engine.plan(context, &*parse(sql)?, &[]).await?;
    let mut stream = planned.execute_detached(parameters).await?;
    let mut out = Vec::new();
    while let Some(batch) = stream.try_next().await.map_err(sql_error)? {
        for row in 0..batch.num_rows() {
            let mut line = Vec::new();
            for (i, column) in planned.columns.iter().enumerate() {
                let array = batch.column(i);
                let value = match array.is_null(row) {
                    true => Datum::Null,
                    false => datum_at(array.as_ref(), row, column.sql_type)?,
                };
                let text = value.format(column.sql_type, &TimeZone::UTC);
                line.push(match text {
                    None => "NULL".to_owned(),
                    Some(text) if text.is_empty() => "(empty)".to_owned(),
                    Some(text) => text.replace('\n', "\\n"),
                });
            }
            out.push(line.join(" "));
        }
    }
    Ok(out)
}

/// Every record of the script; all failures are listed at once.
#[tokio::test]
async fn the_semantics_script_holds() {
    let script = include_str!("../../tests/slt/semantics.slt");
    let (engine, context) = (engine(), context(vec![]));
    let mut wrong = Vec::new();
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        let expect_error = line.strip_prefix("statement error ");
        if expect_error.is_none() && !line.starts_with("query ") {
            continue;
        }
        let mut sql = String::new();
        while let Some(line) = lines.next_if(|l| !l.is_empty() && *l != "----") {
            sql.push_str(line);
            sql.push('\n');
        }
        let mut expected: Vec<String> = Vec::new();
        if lines.next_if(|l| *l == "----").is_some() {
            while let Some(line) = lines.next_if(|l| !l.is_empty()) {
                expected.push(line.to_owned());
            }
        }
        let got = rows(&engine, &context, &sql, &[]).await;
        let fine = match (&got, expect_error) {
            (Ok(rows), None) => *rows == expected,
            (Err(e), Some(state)) => e.sqlstate == state.trim(),
            _ => false,
        };
        if !fine {
            wrong.push(format!(
                "{}  expected {:?} {expected:?}\n  got {:?}",
                sql,
                expect_error,
                got.map_err(|e| (e.sqlstate, e.message))
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[tokio::test]
async fn results_are_named_and_typed_as_postgresql_does() {
    let context = context(vec![table(
        100,
        "t",
        1,
        "id int4, v varchar(5), n numeric(10,2)",
    )]);
    let planned = plan(
        &context,
        "SELECT id, v, n, count(*) OVER (), 1, 'x', id + 1, id AS a, id FROM t",
    )
    .await
    .unwrap();
    let names: Vec<&str> = planned.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "id", "v", "n", "count", "?column?", "?column?", "?column?", "a", "id"
        ]
    );
    let types: Vec<SqlType> = planned.columns.iter().map(|c| c.sql_type).collect();
    assert_eq!(
        types[..7],
        [
            SqlType::Int4,
            SqlType::Varchar(Some(5)),
            SqlType::Numeric(Some((10, 2))),
            SqlType::Int8,
            SqlType::Int4,
            SqlType::Text,
            SqlType::Int4
        ]
    );
    assert_eq!(
        (
            planned.columns[1].table_oid,
            planned.columns[1].column_number
        ),
        (100, 2)
    );
    assert_eq!(planned.tables.len(), 1);
    assert!(planned.cacheable);
}

#[tokio::test]
async fn parameters_take_the_types_of_what_they_meet() {
    let context = context(vec![table(100, "t", 1, "id int4, v text, u uuid")]);
    let planned = plan(
        &context,
        "SELECT $4 FROM t WHERE id = $1 AND v LIKE $2 AND u = $3 LIMIT $5",
    )
    .await
    .unwrap();
    assert_eq!(
        planned.parameter_types,
        [
            SqlType::Int4,
            SqlType::Text,
            SqlType::Uuid,
            SqlType::Text,
            SqlType::Int8
        ]
    );
    let engine = engine();
    let answer = rows(&engine, &context, "SELECT $1::int + 1", &[Datum::Int4(2)]).await;
    assert_eq!(answer.unwrap(), ["3"]);
}

#[tokio::test]
async fn what_depends_on_the_statement_is_not_cached() {
    let context = context(vec![table(100, "t", 1, "id int4, at timestamptz")]);
    assert!(
        !plan(&context, "SELECT * FROM t WHERE at < now()")
            .await
            .unwrap()
            .cacheable
    );
    assert!(
        !plan(&context, "SELECT current_user")
            .await
            .unwrap()
            .cacheable
    );
    assert!(
        plan(&context, "SELECT * FROM t WHERE id = 1")
            .await
            .unwrap()
            .cacheable
    );
}

async fn physical(context: &QueryContext, sql: &str) -> String {
    let planned = plan(context, sql).await.unwrap();
    let (plan, _) = planned.physical(None, &[]).await.unwrap();
    displayable(plan.as_ref()).indent(false).to_string()
}

#[tokio::test]
async fn work_is_shipped_to_the_nodes() {
    let context = context(vec![table(100, "t", 2, "a int4, b int4, c int4, d text")]);
    let text = physical(&context, "SELECT d FROM t WHERE a = 1 AND c > 5").await;
    assert!(
        text.contains("at the nodes=[") && text.contains("FilterExec"),
        "{text}"
    );
    assert!(!text.contains("\n  FilterExec"), "{text}");
    let text = physical(
        &context,
        "SELECT d, count(*), sum(c + 1) FROM t WHERE a > 1 GROUP BY d",
    )
    .await;
    assert!(
        text.contains("at the nodes=[AggregateExec: mode=Partial"),
        "{text}"
    );
    let text = physical(&context, "SELECT count(*) FROM t").await;
    assert!(
        text.contains("at the nodes=[AggregateExec: mode=Partial"),
        "{text}"
    );
    let text = physical(&context, "SELECT * FROM t WHERE c + b > 5 LIMIT 3").await;
    assert!(text.contains("limit=3"), "{text}");
    let text = physical(&context, "SELECT * FROM t LIMIT 3").await;
    assert!(text.contains("fetch=3"), "{text}");
    // A limit under a filter is one of the whole table.
    let text = physical(
        &context,
        "SELECT * FROM (SELECT * FROM t LIMIT 3) x WHERE c > 1",
    )
    .await;
    assert!(text.contains("FilterExec: c"), "{text}");
}

#[tokio::test]
async fn keys_order_and_narrow_scans() {
    let context = context(vec![table(100, "t", 2, "a int4, b int4, c int4, d text")]);
    let text = physical(&context, "SELECT * FROM t ORDER BY a, b").await;
    assert!(!text.contains("SortExec"), "{text}");
    let text = physical(&context, "SELECT * FROM t ORDER BY a DESC, b DESC LIMIT 1").await;
    assert!(
        text.contains("reverse") && !text.contains("SortExec"),
        "{text}"
    );
    let text = physical(&context, "SELECT * FROM t WHERE a IN (1, 2, 3)").await;
    assert!(text.contains("spans=3"), "{text}");
    let text = physical(&context, "SELECT * FROM t WHERE a = 1 AND a = 2").await;
    assert!(text.contains("EmptyExec"), "{text}");
    let text = physical(&context, "SELECT * FROM t WHERE c = 7").await;
    assert!(
        text.contains("IndexLookup") && text.contains("t_second"),
        "{text}"
    );
    let text = physical(&context, "SELECT a, c FROM t WHERE c = 7").await;
    assert!(
        text.contains("ShardScan: public.t using t_second"),
        "{text}"
    );
}

#[tokio::test]
async fn errors_carry_their_sqlstate() {
    let context = context(vec![table(100, "t", 1, "id int4, v text")]);
    for (sql, state) in [
        ("SELECT x FROM t", "42703"),
        ("SELECT t.x FROM t", "42703"),
        ("SELECT z.x FROM t", "42P01"),
        ("SELECT * FROM nope", "42P01"),
        ("SELECT id FROM t a, t b", "42702"),
        ("SELECT v + 1 FROM t", "42883"),
        ("SELECT v, count(*) FROM t", "42803"),
        ("SELECT id FROM t WHERE count(*) > 1", "42803"),
        ("SELECT id FROM t WHERE v = 1", "42883"),
        ("SELECT id FROM t WHERE id = 'x'", "22P02"),
        ("SELECT id FROM t UNION SELECT id, v FROM t", "42601"),
        (
            "SELECT id FROM t WHERE id IN (SELECT id FROM t FOR UPDATE)",
            "0A000",
        ),
    ] {
        let got = match plan(&context, sql).await {
            Err(error) => error.sqlstate,
            // Found out when constants are evaluated.
            Ok(planned) => match planned.execute_detached(&[]).await {
                Err(error) => error.sqlstate,
                Ok(stream) => match stream.try_collect::<Vec<_>>().await {
                    Err(error) => sql_error(error).sqlstate,
                    Ok(_) => String::new(),
                },
            },
        };
        assert_eq!(got, state, "{sql}");
    }
}

/// The tables of TPC-H.
pub(crate) fn tpch() -> QueryContext {
    context(vec![
        table(
            1,
            "region",
            1,
            "r_regionkey int4, r_name bpchar(25), r_comment varchar(152)",
        ),
        table(
            2,
            "nation",
            1,
            "n_nationkey int4, n_name bpchar(25), n_regionkey int4, n_comment varchar(152)",
        ),
        table(
            3,
            "part",
            1,
            "p_partkey int4, p_name varchar(55), p_mfgr bpchar(25), p_brand bpchar(10), p_type varchar(25), p_size int4, p_container bpchar(10), p_retailprice numeric(15,2), p_comment varchar(23)",
        ),
        table(
            4,
            "supplier",
            1,
            "s_suppkey int4, s_name bpchar(25), s_address varchar(40), s_nationkey int4, s_phone bpchar(15), s_acctbal numeric(15,2), s_comment varchar(101)",
        ),
        table(
            5,
            "partsupp",
            2,
            "ps_partkey int4, ps_suppkey int4, ps_availqty int4, ps_supplycost numeric(15,2), ps_comment varchar(199)",
        ),
        table(
            6,
            "customer",
            1,
            "c_custkey int4, c_name varchar(25), c_address varchar(40), c_nationkey int4, c_phone bpchar(15), c_acctbal numeric(15,2), c_mktsegment bpchar(10), c_comment varchar(117)",
        ),
        table(
            7,
            "orders",
            1,
            "o_orderkey int8, o_custkey int4, o_orderstatus bpchar(1), o_totalprice numeric(15,2), o_orderdate date, o_orderpriority bpchar(15), o_clerk bpchar(15), o_shippriority int4, o_comment varchar(79)",
        ),
        table(
            8,
            "lineitem",
            2,
            "l_orderkey int8, l_linenumber int4, l_partkey int4, l_suppkey int4, l_quantity numeric(15,2), l_extendedprice numeric(15,2), l_discount numeric(15,2), l_tax numeric(15,2), l_returnflag bpchar(1), l_linestatus bpchar(1), l_shipdate date, l_commitdate date, l_receiptdate date, l_shipinstruct bpchar(25), l_shipmode bpchar(10), l_comment varchar(44)",
        ),
    ])
}

#[tokio::test]
async fn all_tpch_queries_plan() {
    let context = tpch();
    let mut wrong = Vec::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/queries/tpch");
    for n in 1..=22 {
        let sql = std::fs::read_to_string(format!("{folder}/q{n}.sql")).unwrap();
        match plan(&context, &sql).await {
            Err(e) => wrong.push(format!("q{n}: {} {}", e.sqlstate, e.message)),
            Ok(planned) => match planned.physical(None, &[]).await {
                Err(e) => wrong.push(format!("q{n} physical: {} {}", e.sqlstate, e.message)),
                Ok((plan, _)) => {
                    let text = displayable(plan.as_ref()).indent(false).to_string();
                    if text.contains("CrossJoinExec") && n != 11 && n != 15 && n != 22 {
                        wrong.push(format!("q{n} crosses tables:\n{text}"));
                    }
                }
            },
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_logical_plan_keeps_its_placeholders() {
    let context = context(vec![table(100, "t", 1, "id int4, v text")]);
    let planned = plan(&context, "SELECT * FROM t WHERE id = $1")
        .await
        .unwrap();
    let text = planned.logical().display_indent().to_string();
    assert!(text.contains("id = $1"), "{text}");
    assert!(!matches!(planned.logical(), LogicalPlan::EmptyRelation(_)));
}
