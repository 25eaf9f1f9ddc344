//! The PostgreSQL protocol, by tokio-postgres.

use crate::cluster::on_cluster;
use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use lineradb_common::spawn;
use tokio_postgres::error::{ErrorPosition, SqlState};
use tokio_postgres::types::Type;
use tokio_postgres::{NoTls, SimpleQueryMessage};

#[test]
fn values_come_back_in_text_and_binary() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute(
                "CREATE TABLE v (id int PRIMARY KEY, b bool, i8 int8, f float8, n numeric(10,2), \
                 t text, y bytea, d date, ts timestamptz)",
            )
            .await
            .unwrap();
        let inserted = client
            .execute(
                "INSERT INTO v (id, b, i8, f, t, y) VALUES ($1, $2, $3, $4, $5, $6)",
                &[
                    &1_i32,
                    &true,
                    &i64::MAX,
                    &0.1_f64,
                    &"é'\"",
                    &&b"\x00\xff"[..],
                ],
            )
            .await
            .unwrap();
        assert_eq!(inserted, 1);
        let row = client
            .query_one("SELECT b, i8, f, t, y, n FROM v WHERE id = $1", &[&1_i32])
            .await
            .unwrap();
        assert!(row.get::<_, bool>(0));
        assert_eq!(row.get::<_, i64>(1), i64::MAX);
        assert_eq!(row.get::<_, f64>(2), 0.1);
        assert_eq!(row.get::<_, &str>(3), "é'\"");
        assert_eq!(row.get::<_, &[u8]>(4), b"\x00\xff");
        assert_eq!(row.columns()[5].type_(), &Type::NUMERIC);
        client
            .batch_execute(
                "UPDATE v SET n = 1.5, d = '2024-02-29', ts = '2024-02-29 10:00:00+02' WHERE id = 1",
            )
            .await
            .unwrap();
        let messages = client
            .simple_query("SELECT b, i8, f, n, y, d, ts FROM v")
            .await
            .unwrap();
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.unwrap();
        let values: Vec<_> = (0..row.len()).map(|at| row.get(at).unwrap()).collect();
        assert_eq!(
            values,
            [
                "t",
                "9223372036854775807",
                "0.1",
                "1.50",
                "\\x00ff",
                "2024-02-29",
                "2024-02-29 08:00:00+00"
            ]
        );
        // As JDBC writes a date.
        let dated = client
            .query(
                "SELECT 1 WHERE '2024-02-29 +00'::date = DATE '2024-02-29'",
                &[],
            )
            .await;
        assert_eq!(dated.unwrap().len(), 1);
        cluster.stop().await;
    });
}

#[test]
fn statements_are_described_before_they_run() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute("CREATE TABLE d (id int PRIMARY KEY, name varchar(5))")
            .await
            .unwrap();
        let statement = client
            .prepare("SELECT name, id FROM d WHERE id = $1")
            .await
            .unwrap();
        assert_eq!(statement.params(), [Type::INT4]);
        let types: Vec<_> = statement
            .columns()
            .iter()
            .map(|column| (column.name(), column.type_().clone()))
            .collect();
        assert_eq!(types, [("name", Type::VARCHAR), ("id", Type::INT4)]);
        assert!(
            client
                .query(&statement, &[&1_i32])
                .await
                .unwrap()
                .is_empty()
        );
        cluster.stop().await;
    });
}

#[test]
fn errors_carry_sqlstate_and_position_and_leave_the_connection_usable() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        for (sql, code) in [
            ("SELECT nope", SqlState::UNDEFINED_COLUMN),
            ("SELECT * FROM nope", SqlState::UNDEFINED_TABLE),
            ("SELEC 1", SqlState::SYNTAX_ERROR),
            ("SELECT 1/0", SqlState::DIVISION_BY_ZERO),
        ] {
            let error = client.simple_query(sql).await.unwrap_err();
            assert_eq!(error.code(), Some(&code), "{sql}");
            let error = client.query(sql, &[]).await.unwrap_err();
            assert_eq!(error.code(), Some(&code), "{sql}");
        }
        for (sql, at) in [
            ("SELECT 1; SELECT 2 +\n nope", 23),
            ("SELECT * FROM nope", 15),
            ("SELECT a.oid FROM pg_class b", 8),
        ] {
            let error = client.simple_query(sql).await.unwrap_err();
            let position = error.as_db_error().unwrap().position().cloned();
            assert_eq!(position, Some(ErrorPosition::Original(at)), "{sql}");
        }
        let error = client.simple_query("SELECT 1 FROM").await.unwrap_err();
        assert!(error.as_db_error().unwrap().position().is_some());
        let one: i32 = client.query_one("SELECT 1", &[]).await.unwrap().get(0);
        assert_eq!(one, 1);
        cluster.stop().await;
    });
}

#[test]
fn several_statements_are_one_transaction() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute("CREATE TABLE s (id int PRIMARY KEY)")
            .await
            .unwrap();
        let error = client
            .batch_execute("INSERT INTO s VALUES (1); INSERT INTO s VALUES (2); SELECT 1/0")
            .await
            .unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
        let count = |row: tokio_postgres::Row| row.get::<_, i64>(0);
        let rows = client.query_one("SELECT count(*) FROM s", &[]).await;
        assert_eq!(count(rows.unwrap()), 0);
        client
            .batch_execute("INSERT INTO s VALUES (1); INSERT INTO s VALUES (2)")
            .await
            .unwrap();
        let rows = client.query_one("SELECT count(*) FROM s", &[]).await;
        assert_eq!(count(rows.unwrap()), 2);
        cluster.stop().await;
    });
}

#[test]
fn a_failed_block_accepts_only_its_end() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute("SELECT 1/0").await.unwrap_err();
        let error = client.batch_execute("SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
        client.batch_execute("ROLLBACK").await.unwrap();
        client.batch_execute("SELECT 1").await.unwrap();
        // A parameter that does not decode fails the block as well.
        client.batch_execute("BEGIN").await.unwrap();
        client
            .query("SELECT $1::int / 0", &[&1_i32])
            .await
            .unwrap_err();
        let error = client.batch_execute("SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
        client.batch_execute("ROLLBACK").await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn portals_are_fetched_in_portions() {
    on_cluster(|cluster| async move {
        let mut client = cluster.connect().await;
        let transaction = client.transaction().await.unwrap();
        let portal = transaction
            .bind("SELECT g FROM generate_series(1, 5) AS g", &[])
            .await
            .unwrap();
        let mut sizes = Vec::new();
        loop {
            let rows = transaction.query_portal(&portal, 2).await.unwrap();
            sizes.push(rows.len());
            if rows.len() < 2 {
                break;
            }
        }
        assert_eq!(sizes, [2, 2, 1]);
        transaction.commit().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn pipelined_statements_are_answered_in_order() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        let queries: Vec<_> = (0..20)
            .map(|number: i32| {
                let client = &client;
                async move {
                    let row = client.query_one("SELECT $1::int + 1", &[&number]).await;
                    row.unwrap().get::<_, i32>(0)
                }
            })
            .collect();
        let answers = futures::future::join_all(queries).await;
        assert_eq!(answers, (1..=20).collect::<Vec<_>>());
        cluster.stop().await;
    });
}

#[test]
fn copy_in_and_out() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute("CREATE TABLE c (id int PRIMARY KEY, t text)")
            .await
            .unwrap();
        let sink = client.copy_in("COPY c FROM STDIN").await.unwrap();
        let mut sink = Box::pin(sink);
        // A line may be cut anywhere.
        for piece in ["1\tone\n2\tt", "wo\n3\t\\N\n"] {
            sink.send(Bytes::from(piece)).await.unwrap();
        }
        assert_eq!(sink.as_mut().finish().await.unwrap(), 3);
        let out = client.copy_out("COPY c TO STDOUT").await.unwrap();
        let pieces: Vec<Bytes> = out.try_collect().await.unwrap();
        // Drivers rely on one message per row.
        assert_eq!(pieces.len(), 3);
        let mut lines: Vec<String> = String::from_utf8(pieces.concat())
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        assert_eq!(lines, ["1\tone", "2\ttwo", "3\t\\N"]);
        // A COPY that fails copies nothing, and the connection goes on.
        let sink = client.copy_in("COPY c FROM STDIN").await.unwrap();
        let mut sink = Box::pin(sink);
        let _ = sink.send(Bytes::from("4\tfour\nx\ty\n")).await;
        let error = sink.as_mut().finish().await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INVALID_TEXT_REPRESENTATION));
        let rows = client
            .query_one("SELECT count(*) FROM c", &[])
            .await
            .unwrap();
        assert_eq!(rows.get::<_, i64>(0), 3);
        cluster.stop().await;
    });
}

#[test]
fn a_cancel_request_ends_the_running_statement() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        let cancel = client.cancel_token();
        let canceller = spawn::task("canceller", async move {
            // Until it hits: the statement may not have begun yet.
            for _ in 0..200 {
                cancel.cancel_query(NoTls).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        let error = client
            .batch_execute(
                "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b",
            )
            .await
            .unwrap_err();
        canceller.abort();
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
        cluster.stop().await;
    });
}

#[test]
fn large_results_are_streamed() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        let rows = client
            .query_raw(
                "SELECT g FROM generate_series(1, 200000) AS g",
                std::iter::empty::<i32>(),
            )
            .await
            .unwrap();
        let mut rows = Box::pin(rows);
        let mut count = 0;
        while rows.try_next().await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 200_000);
        cluster.stop().await;
    });
}

#[test]
fn wrong_databases_and_busy_ports_are_named() {
    on_cluster(|cluster| async move {
        let address = cluster.gateway.addresses.pg;
        let url = format!("postgres://lineradb@{address}/nope");
        let Err(error) = tokio_postgres::connect(&url, NoTls).await else {
            panic!("connected");
        };
        assert_eq!(error.code(), Some(&SqlState::INVALID_CATALOG_NAME));
        cluster.stop().await;
    });
}

/// A block under a key is the same request only if all of its statements are.
#[test]
fn the_key_of_a_block_stands_for_all_its_statements() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0), (2, 0)",
            )
            .await
            .unwrap();
        let block = async |id: i32| {
            client
                .batch_execute("SET idempotency_key = 'k'")
                .await
                .unwrap();
            client.batch_execute("BEGIN").await.unwrap();
            let update = format!("UPDATE t SET v = v + 1 WHERE id = {id}");
            client.batch_execute(&update).await.unwrap();
            client.batch_execute("COMMIT").await
        };
        block(1).await.unwrap();
        block(1).await.unwrap();
        let error = block(2).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "22023");
        let row = client.query_one("SELECT sum(v) FROM t", &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 1);
        cluster.stop().await;
    });
}
