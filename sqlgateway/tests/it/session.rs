//! What a session promises besides results: its prepared statements, settings,
//! idle time, idempotency keys.

use crate::cluster::{Cluster, on_cluster};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// The first column of the rows of a text.
async fn column(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    rows.collect()
}

async fn code(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.unwrap_err();
    error.code().unwrap().code().to_owned()
}

/// The error that ends a connection on which `sql` was run and then nothing more.
async fn end_of_a_silent_connection(cluster: &Cluster, sql: &str) -> SqlState {
    let url = format!(
        "postgres://lineradb@{}/lineradb",
        cluster.gateway.addresses.pg
    );
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let connection = lineradb_common::spawn::task("silent-connection", connection);
    client.batch_execute(sql).await.unwrap();
    let error = connection.await.unwrap().unwrap_err();
    error.code().unwrap().clone()
}

#[test]
fn silent_sessions_are_ended() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
            .await
            .unwrap();
        let ended = end_of_a_silent_connection(
            &cluster,
            "SET idle_in_transaction_session_timeout = '100ms'; BEGIN; INSERT INTO t VALUES (1)",
        );
        assert_eq!(ended.await, SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT);
        // Its transaction is rolled back and holds nothing up.
        client
            .batch_execute("INSERT INTO t VALUES (1)")
            .await
            .unwrap();
        let ended = end_of_a_silent_connection(&cluster, "SET idle_session_timeout = '100ms'");
        assert_eq!(ended.await.code(), "57P05");
        cluster.stop().await;
    });
}

#[test]
fn of_two_in_a_deadlock_the_older_goes_on_at_once() {
    on_cluster(|cluster| async move {
        let (older, younger) = (cluster.connect().await, cluster.connect().await);
        older
            .batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, n int); \
                 INSERT INTO t VALUES (1, 0), (2, 0)",
            )
            .await
            .unwrap();
        older
            .batch_execute("BEGIN; UPDATE t SET n = 1 WHERE id = 1")
            .await
            .unwrap();
        younger
            .batch_execute("BEGIN; UPDATE t SET n = 2 WHERE id = 2")
            .await
            .unwrap();
        // The younger one does not end its block before the older one is through.
        let (first, second) = tokio::join!(
            older.batch_execute("UPDATE t SET n = 1 WHERE id = 2"),
            younger.batch_execute("UPDATE t SET n = 2 WHERE id = 1"),
        );
        first.unwrap();
        let error = second.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code(), &SqlState::T_R_DEADLOCK_DETECTED);
        assert_eq!(error.message(), "deadlock detected");
        assert_eq!(error.detail().unwrap().lines().count(), 2);
        older.batch_execute("COMMIT").await.unwrap();
        younger.batch_execute("ROLLBACK").await.unwrap();
        let rows = column(&younger, "SELECT n FROM t ORDER BY id").await;
        assert_eq!(rows, ["1", "1"]);
        cluster.stop().await;
    });
}

#[test]
fn prepared_statements_are_one_namespace() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        let parsed = client.prepare("SELECT $1::int + 1").await.unwrap();
        client
            .batch_execute("PREPARE plus (int) AS SELECT $1 + 2")
            .await
            .unwrap();
        let names = "SELECT name FROM pg_prepared_statements WHERE from_sql = ";
        let by_protocol = column(&client, &format!("{names}false")).await;
        assert_eq!(by_protocol.len(), 1);
        assert_eq!(column(&client, &format!("{names}true")).await, ["plus"]);
        let types = "SELECT parameter_types FROM pg_prepared_statements WHERE from_sql";
        assert_eq!(column(&client, types).await, ["{integer}"]);
        // SQL runs what the protocol prepared.
        let execute = format!("EXECUTE {}(1)", by_protocol[0]);
        assert_eq!(column(&client, &execute).await, ["2"]);
        assert_eq!(column(&client, "EXECUTE plus(1)").await, ["3"]);
        assert_eq!(code(&client, "PREPARE plus AS SELECT 1").await, "42P05");
        // And takes it away.
        client.batch_execute("DEALLOCATE ALL").await.unwrap();
        let error = client.query(&parsed, &[&1_i32]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "26000");
        assert_eq!(code(&client, "EXECUTE plus(1)").await, "26000");
        assert!(
            column(&client, "SELECT name FROM pg_prepared_statements")
                .await
                .is_empty()
        );
        cluster.stop().await;
    });
}

#[test]
fn what_is_set_belongs_to_the_transaction() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        let shown = async || column(&client, "SHOW application_name").await;
        client
            .batch_execute("SET application_name = 'a'")
            .await
            .unwrap();
        assert_eq!(
            code(&client, "SET application_name = 'b'; SELECT 1/0").await,
            "22012"
        );
        assert_eq!(shown().await, ["a"]);
        client
            .batch_execute("SET application_name = 'b'; SELECT 1")
            .await
            .unwrap();
        assert_eq!(shown().await, ["b"]);
        client
            .batch_execute("SET LOCAL application_name = 'c'; SELECT 1")
            .await
            .unwrap();
        assert_eq!(shown().await, ["b"]);
        let set = "SELECT set_config('application_name', 'd', false)";
        assert_eq!(column(&client, set).await, ["d"]);
        assert_eq!(shown().await, ["d"]);
        assert_eq!(
            code(&client, "SELECT set_config('no_such', '1', false)").await,
            "42704"
        );
        // What pools send when a connection goes back.
        client
            .batch_execute(
                "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL; DEALLOCATE ALL",
            )
            .await
            .unwrap();
        assert_eq!(shown().await, [""]);
        cluster.stop().await;
    });
}

#[test]
fn ddl_under_a_key_happens_once() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        let keyed = async |key: &str, sql: &str| {
            client
                .batch_execute(&format!("SET idempotency_key = '{key}'"))
                .await
                .unwrap();
            client.simple_query(sql).await
        };
        for _ in 0..2 {
            keyed("1", "CREATE TABLE t (id int PRIMARY KEY, v int)")
                .await
                .unwrap();
            keyed("2", "INSERT INTO t VALUES (1, 1), (2, 2)")
                .await
                .unwrap();
            keyed("3", "CREATE INDEX ON t (v)").await.unwrap();
            keyed("4", "ALTER TABLE t ADD COLUMN w int").await.unwrap();
            // Several statements are known as a whole.
            keyed("5", "CREATE TABLE u (id int); INSERT INTO u VALUES (1)")
                .await
                .unwrap();
        }
        let indexes = "SELECT indexname FROM pg_indexes WHERE tablename = 't' ORDER BY 1";
        assert_eq!(column(&client, indexes).await, ["t_pkey", "t_v_idx"]);
        assert_eq!(column(&client, "SELECT count(*) FROM u").await, ["1"]);
        let error = keyed("3", "CREATE INDEX ON t (w)").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "22023");
        // A key stands for what was sent before the data.
        let error = keyed("6", "COPY t FROM STDIN").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "0A000");
        cluster.stop().await;
    });
}

#[test]
fn statements_nest_once_and_modes_are_never_lost() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        client
            .batch_execute("CREATE TABLE n (id int PRIMARY KEY)")
            .await
            .unwrap();
        // What holds a statement is not held by one: nesting has an end.
        for deep in [
            format!("{} SELECT 1", "EXPLAIN ".repeat(10_000)),
            format!("{} SELECT 1", "PREPARE a AS ".repeat(10_000)),
            "PREPARE a AS EXECUTE a".to_owned(),
        ] {
            assert_eq!(code(&client, &deep).await, "42601");
        }
        // BEGIN after a SET in one message makes the implicit transaction explicit,
        // with the modes that it names.
        let text = "SET application_name = 'q'; BEGIN READ ONLY; INSERT INTO n VALUES (1)";
        assert_eq!(code(&client, text).await, "25006");
        client.batch_execute("ROLLBACK").await.unwrap();
        assert!(column(&client, "SELECT id FROM n").await.is_empty());

        let late =
            "SET application_name = 'z'; SET idempotency_key = 'k'; INSERT INTO n VALUES (2)";
        assert_eq!(code(&client, late).await, "25001");
        assert!(column(&client, "SELECT id FROM n").await.is_empty());
        cluster.stop().await;
    });
}
