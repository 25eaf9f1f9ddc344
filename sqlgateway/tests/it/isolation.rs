//! Isolation levels and AS OF SYSTEM TIME, as two clients at once see them.

use crate::cluster::on_cluster;
use futures::future::join;
use tokio_postgres::{Client, IsolationLevel, SimpleQueryMessage};

/// The rows of a text, columns joined by a blank.
async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL"));
            Some(columns.collect::<Vec<_>>().join(" "))
        }
        _ => None,
    });
    rows.collect()
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {error:?}");
    }
}

async fn code(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.unwrap_err();
    error.code().unwrap().code().to_owned()
}

#[test]
fn repeatable_read_has_one_snapshot_and_loses_no_update() {
    on_cluster(|cluster| async move {
        let (one, two) = (cluster.connect().await, cluster.connect().await);
        run(&one, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
        run(&one, "INSERT INTO t VALUES (1, 0), (2, 0)").await;
        run(&one, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
        assert_eq!(rows(&one, "SELECT v FROM t WHERE id = 1").await, ["0"]);
        run(&two, "UPDATE t SET v = v + 1").await;
        assert_eq!(rows(&one, "SELECT sum(v) FROM t").await, ["0"]);
        let error = one
            .batch_execute("UPDATE t SET v = v + 1 WHERE id = 1")
            .await;
        let error = error.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "40001");
        assert_eq!(
            error.detail(),
            Some("Key (id)=(1) of index \"t_pkey\" on table \"t\".")
        );
        run(&one, "ROLLBACK").await;
        assert_eq!(rows(&one, "SELECT sum(v) FROM t").await, ["2"]);
        cluster.stop().await;
    });
}

/// Two transactions read both rows and each changes one: forbidden by
/// SERIALIZABLE alone.
#[test]
fn write_skew_is_what_the_levels_differ_in() {
    on_cluster(|cluster| async move {
        let (one, two) = (cluster.connect().await, cluster.connect().await);
        run(&one, "CREATE TABLE duty (id int PRIMARY KEY, v bool)").await;
        for (level, allowed) in [
            ("SERIALIZABLE", false),
            ("REPEATABLE READ", true),
            ("READ COMMITTED", true),
        ] {
            run(
                &one,
                "DELETE FROM duty; INSERT INTO duty VALUES (1, true), (2, true)",
            )
            .await;
            for (client, id) in [(&one, 1), (&two, 2)] {
                run(client, &format!("BEGIN ISOLATION LEVEL {level}")).await;
                assert_eq!(
                    rows(client, "SHOW transaction_isolation").await,
                    [level.to_lowercase()]
                );
                assert_eq!(
                    rows(client, "SELECT count(*) FROM duty WHERE v").await,
                    ["2"]
                );
                run(
                    client,
                    &format!("UPDATE duty SET v = false WHERE id = {id}"),
                )
                .await;
            }
            let (first, second) =
                join(one.batch_execute("COMMIT"), two.batch_execute("COMMIT")).await;
            let committed = usize::from(first.is_ok()) + usize::from(second.is_ok());
            assert_eq!(committed, if allowed { 2 } else { 1 }, "{level}");
        }
        cluster.stop().await;
    });
}

#[test]
fn statements_of_read_committed_see_what_is_committed_and_wait_for_rows() {
    on_cluster(|cluster| async move {
        let (one, two) = (cluster.connect().await, cluster.connect().await);
        run(&one, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
        run(&one, "INSERT INTO t VALUES (1, 0), (2, 0)").await;
        run(&one, "SET default_transaction_isolation = 'read committed'").await;
        run(&one, "BEGIN").await;
        assert_eq!(rows(&one, "SELECT v FROM t WHERE id = 1").await, ["0"]);
        run(&two, "UPDATE t SET v = 10 WHERE id = 1").await;
        assert_eq!(rows(&one, "SELECT v FROM t WHERE id = 1").await, ["10"]);
        // By key, and found by a scan: the row was changed after the transaction
        // began, and the update goes on from what is there.
        run(&two, "UPDATE t SET v = 20").await;
        run(&one, "UPDATE t SET v = v + 1 WHERE id = 1").await;
        run(&one, "UPDATE t SET v = v + 1 WHERE v < 100").await;
        assert_eq!(
            rows(&one, "SELECT v FROM t ORDER BY id").await,
            ["22", "21"]
        );
        // The other waits for the rows and comes out with both changes.
        run(&two, "BEGIN ISOLATION LEVEL READ COMMITTED").await;
        assert_eq!(rows(&two, "SELECT v FROM t WHERE id = 1").await, ["20"]);
        let (waited, _) = join(
            two.batch_execute("UPDATE t SET v = v + 100 WHERE v < 1000"),
            run(&one, "COMMIT"),
        )
        .await;
        waited.unwrap();
        run(&two, "COMMIT").await;
        assert_eq!(
            rows(&two, "SELECT v FROM t ORDER BY id").await,
            ["122", "121"]
        );
        cluster.stop().await;
    });
}

#[test]
fn a_cursor_of_read_committed_keeps_its_snapshot() {
    on_cluster(|cluster| async move {
        let (mut one, two) = (cluster.connect().await, cluster.connect().await);
        run(
            &two,
            "CREATE TABLE t (id int PRIMARY KEY, v int, filler text)",
        )
        .await;
        // Rows so large that they come in several pages.
        run(
            &two,
            "INSERT INTO t SELECT i, 0, repeat('x', 400000) FROM generate_series(1, 12) s(i)",
        )
        .await;
        let level = IsolationLevel::ReadCommitted;
        let txn = one
            .build_transaction()
            .isolation_level(level)
            .start()
            .await
            .unwrap();
        let portal = txn
            .bind("SELECT v, filler FROM t ORDER BY id", &[])
            .await
            .unwrap();
        let values = |rows: Vec<tokio_postgres::Row>| -> Vec<i32> {
            rows.iter().map(|row| row.get(0)).collect()
        };
        assert_eq!(values(txn.query_portal(&portal, 1).await.unwrap()), [0]);
        run(&two, "UPDATE t SET v = 1").await;
        let seen = txn.query_one("SELECT sum(v) FROM t", &[]).await.unwrap();
        assert_eq!(seen.get::<_, i64>(0), 12);
        assert_eq!(values(txn.query_portal(&portal, 0).await.unwrap()), [0; 11]);
        txn.commit().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_schema_change_inside_of_a_weak_transaction_is_serializable() {
    on_cluster(|cluster| async move {
        let (one, two) = (cluster.connect().await, cluster.connect().await);
        run(&one, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
        run(&one, "INSERT INTO t VALUES (1, 1), (2, 2)").await;
        for level in ["READ COMMITTED", "REPEATABLE READ"] {
            // A row that comes between the build of an index and its commit is not
            // missing from it.
            run(&one, &format!("BEGIN ISOLATION LEVEL {level}")).await;
            assert_eq!(
                rows(&one, "SELECT count(*) FROM t WHERE v < 100").await,
                ["2"]
            );
            run(&one, "CREATE UNIQUE INDEX by_v ON t (v)").await;
            let (built, inserted) = join(
                one.batch_execute("COMMIT"),
                two.batch_execute("INSERT INTO t VALUES (3, 300)"),
            )
            .await;
            inserted.unwrap();
            if let Err(error) = built {
                assert_eq!(error.code().unwrap().code(), "40001");
                run(&one, "CREATE UNIQUE INDEX by_v ON t (v)").await;
            }
            assert_eq!(rows(&one, "SELECT id FROM t WHERE v = 300").await, ["3"]);
            assert_eq!(code(&one, "INSERT INTO t VALUES (4, 300)").await, "23505");
            run(&one, "DROP INDEX by_v; DELETE FROM t WHERE id > 2").await;
        }
        cluster.stop().await;
    });
}

#[test]
fn the_past_is_read_as_it_was() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        run(&client, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
        run(&client, "INSERT INTO t VALUES (1, 10), (2, 20)").await;
        let then = cluster.now_micros();
        run(
            &client,
            "UPDATE t SET v = v + 1; DELETE FROM t WHERE id = 2",
        )
        .await;
        run(&client, "ALTER TABLE t ADD COLUMN w int DEFAULT 7").await;
        run(&client, "CREATE TABLE later (id int PRIMARY KEY)").await;
        let as_of = format!("AS OF SYSTEM TIME {then}");
        for query in [
            format!("SELECT * FROM t {as_of} ORDER BY id"),
            format!("SELECT * FROM t {as_of} WHERE v < 100 ORDER BY id"),
            format!("BEGIN {as_of}; SELECT * FROM t ORDER BY id; COMMIT"),
            format!("BEGIN; SET TRANSACTION {as_of}; SELECT * FROM t ORDER BY id; COMMIT"),
        ] {
            assert_eq!(rows(&client, &query).await, ["1 10", "2 20"], "{query}");
        }
        let by_key = format!("SELECT v FROM t {as_of} WHERE id = 1");
        assert_eq!(rows(&client, &by_key).await, ["10"]);
        let prepared = client.query(&by_key, &[]).await.unwrap();
        assert_eq!(prepared[0].get::<_, i32>(0), 10);
        assert_eq!(rows(&client, "SELECT * FROM t").await, ["1 11 7"]);
        assert_eq!(
            code(&client, &format!("SELECT * FROM later {as_of}")).await,
            "42P01"
        );

        for (wrong, sqlstate) in [
            ("SELECT * FROM t AS OF SYSTEM TIME '2999-01-01'", "22023"),
            ("SELECT * FROM t AS OF SYSTEM TIME 'soon'", "22023"),
            ("SELECT * FROM t AS OF SYSTEM TIME", "42601"),
            (
                "INSERT INTO t SELECT 9, 9, 9 FROM t AS OF SYSTEM TIME '-1s'",
                "0A000",
            ),
            (
                "SELECT * FROM (SELECT * FROM t AS OF SYSTEM TIME '-1s') x",
                "0A000",
            ),
            ("BEGIN READ WRITE AS OF SYSTEM TIME '-1s'", "22023"),
            ("BEGIN ISOLATION LEVEL SERIALISABLE", "22023"),
            ("SET transaction_isolation = 'chaos'", "22023"),
        ] {
            assert_eq!(code(&client, wrong).await, sqlstate, "{wrong}");
        }
        let several = format!("SELECT * FROM t {as_of}; SELECT * FROM t");
        assert_eq!(code(&client, &several).await, "25001");
        run(&client, &format!("BEGIN {as_of}")).await;
        assert_eq!(code(&client, "DELETE FROM t").await, "25006");
        assert_eq!(code(&client, "SELECT 1").await, "25P02");
        run(&client, "ROLLBACK; BEGIN; SELECT 1").await;
        assert_eq!(
            code(&client, &format!("SELECT * FROM t {as_of}")).await,
            "25001"
        );
        run(&client, "ROLLBACK").await;
        cluster.stop().await;
    });
}

#[test]
fn the_receipt_tells_how_a_statement_went() {
    on_cluster(|cluster| async move {
        let (one, two) = (cluster.connect().await, cluster.connect().await);
        run(&one, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
        let lines = rows(&one, "EXPLAIN ANALYZE INSERT INTO t VALUES (1, 0)").await;
        assert!(
            lines.contains(&"  Consensus Rounds: 1".to_owned()),
            "{lines:?}"
        );
        let timing = async || {
            let parts = rows(&one, "SHOW LAST TIMING").await;
            let of = |name: &str| {
                let value = { parts.iter() }.find_map(|part| part.strip_prefix(name));
                value.unwrap().trim().parse::<u64>().unwrap()
            };
            (of("consensus_rounds "), of("retries "))
        };
        run(&one, "UPDATE t SET v = 1 WHERE id = 1").await;
        assert_eq!(timing().await, (1, 0));
        // Run again, since the row was changed after the statement had begun to
        // look: its first transaction reads, the other commits, and then it locks.
        run(
            &one,
            "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT * FROM t",
        )
        .await;
        run(&two, "BEGIN; UPDATE t SET v = 2 WHERE id = 1").await;
        let (waited, _) = join(
            one.batch_execute("UPDATE t SET v = v + 10 WHERE v < 100"),
            run(&two, "COMMIT"),
        )
        .await;
        waited.unwrap();
        assert_eq!(rows(&one, "SELECT v FROM t").await, ["12"]);
        run(&one, "COMMIT").await;
        assert_eq!(timing().await, (1, 0));
        cluster.stop().await;
    });
}

#[test]
fn who_waits_for_whom_can_be_seen() {
    on_cluster(|cluster| async move {
        let (one, two, three) = (
            cluster.connect().await,
            cluster.connect().await,
            cluster.connect().await,
        );
        run(&one, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
        run(&one, "INSERT INTO t VALUES (7, 0)").await;
        run(&one, "SET application_name = 'holder'").await;
        run(&two, "SET application_name = 'waiter'").await;
        run(&one, "BEGIN; SELECT * FROM t WHERE id = 7 FOR UPDATE").await;
        let open = "SELECT id, state, statements FROM lineradb_internal.transactions \
                    WHERE application_name = 'holder'";
        let seen = rows(&three, open).await.remove(0);
        let (holder, rest) = seen.split_once(' ').unwrap();
        assert_eq!(rest, "idle in transaction 1");
        let held = "SELECT table_name, index_name, key, mode, granted, transaction_id \
                    FROM lineradb_internal.locks";
        assert_eq!(
            rows(&three, held).await,
            [format!("t t_pkey (id)=(7) exclusive t {holder}")]
        );
        let look = async {
            let waits = "SELECT table_name, key, waiting_transaction, blocking_transaction \
                         FROM lineradb_internal.contention WHERE waited_ms >= 0";
            let seen = loop {
                if let Some(seen) = rows(&three, waits).await.pop() {
                    break seen;
                }
            };
            let waiter = "SELECT id FROM lineradb_internal.transactions \
                          WHERE application_name = 'waiter' AND state = 'active'";
            let waiter = rows(&three, waiter).await.remove(0);
            assert_eq!(seen, format!("t (id)=(7) {waiter} {holder}"));
            run(&one, "COMMIT").await;
        };
        let (waited, ()) = join(two.batch_execute("UPDATE t SET v = 1 WHERE id = 7"), look).await;
        waited.unwrap();
        assert!(rows(&three, held).await.is_empty());
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle'";
        assert_eq!(rows(&three, sessions).await, ["2"]);
        cluster.stop().await;
    });
}

#[test]
fn rows_that_a_query_finds_can_be_locked() {
    on_cluster(|cluster| async move {
        let (one, two) = (cluster.connect().await, cluster.connect().await);
        run(&one, "CREATE TABLE jobs (id int PRIMARY KEY, state text)").await;
        run(
            &one,
            "INSERT INTO jobs SELECT i, 'new' FROM generate_series(1, 6) s(i)",
        )
        .await;
        // Workers on one queue: each takes the next jobs that are free.
        let next = "SELECT id FROM jobs WHERE state = 'new' ORDER BY 1 LIMIT 2 \
                    FOR UPDATE SKIP LOCKED";
        for level in ["SERIALIZABLE", "READ COMMITTED"] {
            for client in [&one, &two] {
                run(client, &format!("BEGIN ISOLATION LEVEL {level}")).await;
            }
            let (mine, theirs) = (rows(&one, next).await, rows(&two, next).await);
            assert_eq!(mine.len() + theirs.len(), 4, "{mine:?} {theirs:?}");
            assert!(mine.iter().all(|id| !theirs.contains(id)));
            for (client, ids) in [(&one, &mine), (&two, &theirs)] {
                let done = format!("DELETE FROM jobs WHERE id IN ({})", ids.join(", "));
                run(client, &done).await;
            }
            run(&two, "COMMIT").await;
            run(&one, "COMMIT").await;
            run(
                &one,
                "INSERT INTO jobs SELECT i, 'new' FROM generate_series(7, 10) s(i) \
                       ON CONFLICT DO NOTHING",
            )
            .await;
        }
        run(
            &one,
            "DELETE FROM jobs; INSERT INTO jobs VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        )
        .await;

        run(&one, "BEGIN").await;
        let shown =
            "SELECT j.*, upper(state) FROM jobs j WHERE state > 'a' ORDER BY id DESC FOR UPDATE";
        assert_eq!(rows(&one, shown).await, ["3 c C", "2 b B"]);
        let nowait = "SELECT * FROM jobs WHERE state = 'b' FOR SHARE NOWAIT";
        assert_eq!(code(&two, nowait).await, "55P03");
        // What waits sees what the other has made of the row.
        let (waited, ()) = join(
            async { rows(&two, "SELECT * FROM jobs WHERE state > 'b' FOR UPDATE").await },
            run(&one, "UPDATE jobs SET state = 'd' WHERE id = 3; COMMIT"),
        )
        .await;
        assert_eq!(waited, ["3 d"]);

        run(
            &one,
            "CREATE TABLE bare (v text); INSERT INTO bare VALUES ('x')",
        )
        .await;
        assert_eq!(rows(&one, "SELECT * FROM bare FOR UPDATE").await, ["x"]);
        let of = "SELECT b.v, j.id FROM bare b JOIN jobs j ON j.id = 1 FOR UPDATE OF j";
        assert_eq!(rows(&one, of).await, ["x 1"]);
        run(
            &one,
            "CREATE TABLE f (id int PRIMARY KEY, x float8); INSERT INTO f VALUES (1, 'NaN')",
        )
        .await;
        let nan = "SELECT id FROM f WHERE id > 0 FOR UPDATE SKIP LOCKED";
        assert_eq!(rows(&one, nan).await, ["1"]);
        for wrong in [
            "SELECT id FROM jobs j WHERE EXISTS (SELECT 1 FROM f) FOR UPDATE SKIP LOCKED",
            "SELECT f.id FROM f JOIN jobs ON true FOR UPDATE OF f SKIP LOCKED",
            "WITH jobs AS (SELECT id, 'x' AS state FROM f) SELECT * FROM jobs FOR UPDATE",
            "SELECT count(*) FROM jobs GROUP BY state FOR UPDATE",
            "SELECT DISTINCT state FROM jobs FOR UPDATE",
            "SELECT * FROM jobs a, jobs b FOR UPDATE",
            "SELECT * FROM (SELECT * FROM jobs FOR UPDATE) x",
        ] {
            assert_eq!(code(&one, wrong).await, "0A000", "{wrong}");
        }
        let unknown = "SELECT * FROM jobs FOR UPDATE OF nothing";
        assert_eq!(code(&one, unknown).await, "42P01");
        let read_only = "BEGIN READ ONLY; SELECT * FROM jobs WHERE state > 'a' FOR UPDATE";
        assert_eq!(code(&one, read_only).await, "25006");
        run(&one, "ROLLBACK").await;
        cluster.stop().await;
    });
}

/// A block that begins anew before anything has come of it keeps its savepoints.
#[test]
fn savepoints_outlive_a_new_beginning() {
    on_cluster(|cluster| async move {
        let client = cluster.connect().await;
        run(&client, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
        run(&client, "INSERT INTO t VALUES (1, 0)").await;
        for again in ["", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;"] {
            run(&client, &format!("BEGIN; SAVEPOINT s; {again}")).await;
            run(&client, "UPDATE t SET v = 1; ROLLBACK TO s; COMMIT").await;
            assert_eq!(rows(&client, "SELECT v FROM t").await, ["0"], "{again}");
        }
        cluster.stop().await;
    });
}
