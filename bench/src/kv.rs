//! `lineradb-bench kv`: puts and linearizable gets through the public gRPC API
//! of a running cluster, at several numbers of clients spread over the nodes.

use crate::Figure;
use crate::figures::percentile;
use anyhow::Result;
use lineradb_common::clock::Stopwatch;
use lineradb_common::{random, spawn};
use lineradb_proto::kv::v1::kv_client::KvClient;
use lineradb_proto::kv::v1::{GetRequest, PutRequest};
use std::time::Duration;
use tonic::transport::Endpoint;

const KEYS: u64 = 100_000;

/// Runs puts, then gets, at each number of clients, `seconds` each.
///
/// # Errors
/// When a node cannot be reached or answers an error.
pub async fn run(addresses: &[String], clients: &[usize], seconds: u64) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for put in [true, false] {
        let what = if put { "put" } else { "get" };
        for &count in clients {
            let (rate, mut latencies) =
                phase(addresses, count, put, Duration::from_secs(seconds)).await?;
            figures.push(Figure::ours(
                format!("kv {what}, {count} clients"),
                "ops/s",
                rate,
            ));
            for percent in [50.0, 99.0] {
                figures.push(Figure::ours(
                    format!("kv {what}, {count} clients, p{percent}"),
                    "us",
                    percentile(&mut latencies, percent),
                ));
            }
        }
    }
    Ok(figures)
}

async fn phase(
    addresses: &[String],
    clients: usize,
    put: bool,
    length: Duration,
) -> Result<(f64, Vec<u32>)> {
    let stopwatch = Stopwatch::start();
    let mut tasks = Vec::new();
    for n in 0..clients {
        let endpoint = Endpoint::from_shared(format!("http://{}", addresses[n % addresses.len()]))?;
        tasks.push(spawn::task("bench-client", async move {
            let mut client = KvClient::new(endpoint.connect().await?);
            let mut latencies = Vec::new();
            while stopwatch.elapsed() < length {
                let key = format!("bench/{:08}", random::below(KEYS)).into_bytes();
                let request = Stopwatch::start();
                if put {
                    let put = PutRequest {
                        key: key.into(),
                        value: vec![b'x'; 100].into(),
                        ..Default::default()
                    };
                    client.put(put).await?;
                } else {
                    client.get(GetRequest { key: key.into() }).await?;
                }
                latencies.push(request.elapsed_us());
            }
            anyhow::Ok(latencies)
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    Ok((all.len() as f64 / stopwatch.elapsed().as_secs_f64(), all))
}
