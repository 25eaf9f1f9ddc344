//! The catalog queries of psql 15, as it sends them, and of drivers.

use crate::cluster::on_cluster;
use tokio_postgres::SimpleQueryMessage;

/// Rows as text, `None` is NULL.
async fn rows(client: &tokio_postgres::Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client
        .simple_query(sql)
        .await
        .unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|at| row.get(at).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        })
        .collect()
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values
        .iter()
        .map(|value| Some((*value).to_owned()))
        .collect()
}

#[test]
fn every_query_of_psql_is_answered() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute(
                "CREATE TABLE t (id int8 PRIMARY KEY, name varchar(20) NOT NULL DEFAULT 'x', \
                 v numeric(10,2), UNIQUE (name)); CREATE INDEX t_v ON t (v, id)",
            )
            .await
            .unwrap();
        let mut failed = Vec::new();
        for part in include_str!("psql.sql").split("\n-- ").skip(1) {
            let Some((command, sql)) = part.split_once('\n') else {
                continue;
            };
            if !command.starts_with('\\') {
                continue;
            }
            if let Err(error) = client.simple_query(sql).await {
                let error = error.as_db_error().map(ToString::to_string);
                failed.push(format!("{command}: {error:?}\n{sql}"));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        cluster.stop().await;
    });
}

#[test]
fn tables_are_described() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute(
                "CREATE TABLE t (id int8 PRIMARY KEY, name varchar(20) NOT NULL DEFAULT 'x', \
                 v numeric(10,2), UNIQUE (name)); CREATE INDEX t_v ON t (v, id)",
            )
            .await
            .unwrap();
        let columns = rows(
            &client,
            "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull \
             FROM pg_catalog.pg_attribute a WHERE a.attrelid = 't'::regclass AND a.attnum > 0 \
             ORDER BY a.attnum",
        )
        .await;
        assert_eq!(
            columns,
            [
                some(&["id", "bigint", "t"]),
                some(&["name", "character varying(20)", "t"]),
                some(&["v", "numeric(10,2)", "f"]),
            ]
        );
        let indexes = rows(
            &client,
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 't' ORDER BY 1",
        )
        .await;
        assert_eq!(
            indexes[2],
            some(&["t_v", "CREATE INDEX t_v ON public.t USING btree (v, id)"])
        );
        let keys = rows(
            &client,
            "SELECT kcu.column_name FROM information_schema.table_constraints tc \
             JOIN information_schema.key_column_usage kcu \
             ON kcu.constraint_name = tc.constraint_name AND kcu.table_name = tc.table_name \
             WHERE tc.table_name = 't' AND tc.constraint_type = 'PRIMARY KEY'",
        )
        .await;
        assert_eq!(keys, [some(&["id"])]);
        let described = rows(
            &client,
            "SELECT column_name, data_type, is_nullable, character_maximum_length \
             FROM information_schema.columns WHERE table_schema = 'public' \
             AND table_name = 't' ORDER BY ordinal_position",
        )
        .await;
        assert_eq!(
            described[1][..3],
            some(&["name", "character varying", "NO"])
        );
        assert_eq!(described[1][3].as_deref(), Some("20"));
        cluster.stop().await;
    });
}

#[test]
fn locks_that_do_not_exist_are_refused() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        let error = client
            .simple_query("SELECT pg_advisory_lock(1)")
            .await
            .unwrap_err();
        assert_eq!(error.code().unwrap().code(), "0A000");
        cluster.stop().await;
    });
}
