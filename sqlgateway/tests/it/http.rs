//! The HTTP interface, spoken by hand over a socket: what is tested is what
//! clients get.

use crate::cluster::{Cluster, on_cluster};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status, headers and body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }
}

async fn send(cluster: &Cluster, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(cluster.gateway.addresses.http)
        .await
        .unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
         Content-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Answer {
        status,
        head: head.to_lowercase(),
        body,
    }
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    out
}

async fn sql(cluster: &Cluster, body: Value) -> Answer {
    send(cluster, "POST", "/v1/sql", "", &body.to_string()).await
}

#[test]
fn results_have_the_shape_of_the_contract() {
    on_cluster(|cluster| async move {
        let answer = sql(
            &cluster,
            json!({"sql": "SELECT $1::int8 AS id, 'a' AS t, NULL::int AS n", "params": [1]}),
        )
        .await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let body = answer.json();
        assert_eq!(body["columns"][0], json!({"name": "id", "type": "int8"}));
        assert_eq!(body["rows"], json!([[1, "a", null]]));
        assert_eq!(body["rows_affected"], Value::Null);
        assert_eq!(body["command"], "SELECT");
        assert!(body["elapsed_ms"].is_number() && body["timing"].is_object());
        assert!(body.get("results").is_none());
        let body = sql(
            &cluster,
            json!({"sql": "CREATE TABLE h (id int PRIMARY KEY, big int8, x numeric); \
                           INSERT INTO h VALUES (1, 9007199254740993, 1.5), (2, 1, NULL); \
                           SELECT big, x FROM h ORDER BY id"}),
        )
        .await
        .json();
        assert_eq!(
            body["rows"],
            json!([["9007199254740993", "1.5"], [1, null]])
        );
        assert_eq!(body["results"].as_array().unwrap().len(), 3);
        assert_eq!(body["results"][1]["rows_affected"], 2);
        cluster.stop().await;
    });
}

#[test]
fn bad_requests_say_what_is_wrong() {
    on_cluster(|cluster| async move {
        for (body, status, code) in [
            (json!({"sql": "SELECT 1", "parms": []}), 400, "08P01"),
            (json!({"sql": "SELECT $1::int", "params": []}), 400, "08P01"),
            (
                json!({"sql": "SELECT $1::int", "params": [1, 2]}),
                400,
                "08P01",
            ),
            (
                json!({"sql": "SELECT $1::int", "params": ["x"]}),
                400,
                "22P02",
            ),
            (
                json!({"sql": "SELECT $1::int", "params": [3_000_000_000_u64]}),
                400,
                "22003",
            ),
            (json!({"sql": "SELEC 1"}), 400, "42601"),
            (json!({"sql": "SELECT * FROM nope"}), 400, "42P01"),
            (json!({"sql": "SELECT 1", "timeout_ms": 0}), 400, "22023"),
            (
                json!({"sql": "SELECT 1", "transaction": "nope"}),
                404,
                "25P01",
            ),
            (json!({"sql": "BEGIN"}), 400, "25001"),
        ] {
            let answer = sql(&cluster, body.clone()).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (status, code),
                "{body}"
            );
        }
        let answer = send(&cluster, "POST", "/v1/sql", "", "{").await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "22P02"));
        let answer = send(&cluster, "GET", "/v1/sql", "", "").await;
        assert_eq!(answer.status, 405);
        let answer = send(&cluster, "GET", "/nope", "", "").await;
        assert_eq!(answer.status, 404);
        let foreign = "Origin: https://evil.example\r\n";
        let answer = send(
            &cluster,
            "POST",
            "/v1/sql",
            foreign,
            "{\"sql\":\"SELECT 1\"}",
        )
        .await;
        assert_eq!(answer.status, 403);
        cluster.stop().await;
    });
}

#[test]
fn an_idempotency_key_makes_it_happen_once() {
    on_cluster(|cluster| async move {
        sql(
            &cluster,
            json!({"sql": "CREATE TABLE k (id int PRIMARY KEY, n int)"}),
        )
        .await;
        sql(&cluster, json!({"sql": "INSERT INTO k VALUES (1, 0)"})).await;
        let key = "Idempotency-Key: one\r\n";
        let body =
            json!({"sql": "UPDATE k SET n = n + 1 WHERE id = $1", "params": [1]}).to_string();
        for replayed in [Value::Null, json!(true)] {
            let answer = send(&cluster, "POST", "/v1/sql", key, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let answer = answer.json();
            assert_eq!(answer["rows_affected"], 1);
            assert_eq!(answer["command"], "UPDATE");
            assert_eq!(answer["replayed"], replayed);
        }
        let other = json!({"sql": "UPDATE k SET n = 7 WHERE id = $1", "params": [1]}).to_string();
        let answer = send(&cluster, "POST", "/v1/sql", key, &other).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "22023"));
        let rows = sql(&cluster, json!({"sql": "SELECT n FROM k"}))
            .await
            .json();
        assert_eq!(rows["rows"], json!([[1]]));
        cluster.stop().await;
    });
}

#[test]
fn transactions_span_requests() {
    on_cluster(|cluster| async move {
        sql(
            &cluster,
            json!({"sql": "CREATE TABLE x (id int PRIMARY KEY)"}),
        )
        .await;
        let begin = |body: Value| {
            let cluster = &cluster;
            async move {
                let answer = send(cluster, "POST", "/v1/transactions", "", &body.to_string()).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                answer.json()["transaction"].as_str().unwrap().to_owned()
            }
        };
        let count = || {
            let cluster = &cluster;
            async move {
                let rows = sql(cluster, json!({"sql": "SELECT count(*) FROM x"})).await;
                rows.json()["rows"][0][0].clone()
            }
        };
        let id = begin(json!({"isolation": "serializable"})).await;
        let insert = json!({"sql": "INSERT INTO x VALUES (1)", "transaction": id});
        assert_eq!(sql(&cluster, insert).await.status, 200);
        assert_eq!(count().await, 0);
        let path = format!("/v1/transactions/{id}/commit");
        assert_eq!(send(&cluster, "POST", &path, "", "").await.status, 200);
        assert_eq!(send(&cluster, "POST", &path, "", "").await.status, 404);
        assert_eq!(count().await, 1);

        let id = begin(json!({"read_only": true})).await;
        let insert = json!({"sql": "INSERT INTO x VALUES (2)", "transaction": id});
        let answer = sql(&cluster, insert).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "25006"));
        let path = format!("/v1/transactions/{id}/rollback");
        assert_eq!(send(&cluster, "POST", &path, "", "{}").await.status, 200);
        assert_eq!(count().await, 1);
        cluster.stop().await;
    });
}

#[test]
fn rows_are_streamed_as_lines_and_as_arrow() {
    on_cluster(|cluster| async move {
        let body = json!({"sql": "SELECT g AS id FROM generate_series(1, 3) AS g"}).to_string();
        let accept = "Accept: application/x-ndjson\r\n";
        let answer = send(&cluster, "POST", "/v1/sql", accept, &body).await;
        assert!(
            answer.head.contains("application/x-ndjson"),
            "{}",
            answer.head
        );
        let lines: Vec<Value> = answer
            .body
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            lines,
            [json!({"id": 1}), json!({"id": 2}), json!({"id": 3})]
        );
        let body = json!({"sql": "SELECT nope"}).to_string();
        let answer = send(&cluster, "POST", "/v1/sql", accept, &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "42703"));
        cluster.stop().await;
    });
}

#[test]
fn a_timeout_cancels_the_statement() {
    on_cluster(|cluster| async move {
        let slow = "SELECT count(*) FROM generate_series(1, 1000000) a, \
                    generate_series(1, 1000000) b";
        let answer = sql(&cluster, json!({"sql": slow, "timeout_ms": 50})).await;
        assert_eq!((answer.status, answer.code().as_str()), (408, "57014"));
        cluster.stop().await;
    });
}

#[test]
fn operations_pages() {
    on_cluster(|cluster| async move {
        assert_eq!(send(&cluster, "GET", "/healthz", "", "").await.status, 200);
        assert_eq!(send(&cluster, "GET", "/readyz", "", "").await.status, 200);
        let page = send(&cluster, "GET", "/", "", "").await;
        assert!(page.head.contains("text/html"));
        let api = send(&cluster, "GET", "/openapi.json", "", "").await.json();
        assert!(api["paths"]["/v1/sql"]["post"].is_object());
        sql(&cluster, json!({"sql": "SELECT 1"})).await;
        let metrics = send(&cluster, "GET", "/metrics", "", "").await.body;
        for series in [
            "lineradb_sql_statements_total",
            "lineradb_sql_statement_seconds",
            "lineradb_pg_connections",
            "lineradb_http_requests_total",
        ] {
            assert!(metrics.contains(series), "{series}");
        }
        cluster.stop().await;
    });
}
