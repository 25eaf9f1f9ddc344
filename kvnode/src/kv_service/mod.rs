//! The public key-value API, on every kvnode, for every key (`kv.proto`).
//!
//! It is a front end like the SQL gateway: each call is one transaction of the
//! client library, which finds the leaders (the local node by a function call)
//! and retries conflicts. A single `Get` skips the transaction: the leader
//! reads at its own clock. What is decided without I/O lives in `rules`; `watch`
//! follows the changes of a range.

pub mod rules;
mod watch;

pub(crate) use watch::declare;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use lineradb_client::{
    Client, Error, IdempotencyRequest, Ran, ScanOptions, Timing, Transaction, TransactionOptions,
    WriteOptions,
};
use lineradb_common::Timestamp;
use lineradb_common::clock::{Stopwatch, deadline_after, wait_past};
use lineradb_common::limits;
use lineradb_proto::kv::v1::kv_server::{Kv, KvServer};
use lineradb_proto::kv::v1::*;
use prost::Message;
use rules::{Step, checked_value, code_of, stored_key, stored_span, user_key};
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status};
use watch::Watches;

/// Whose idempotency keys these are: the API knows no users yet.
const USER: &str = "kv";
/// Largest request and response: a batch of several large values.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A caller that names no deadline gets this one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Nobody may hold a call open longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

const _: () = assert!(MESSAGE_BYTES_MAX > 2 * limits::VALUE_BYTES_MAX);

/// The service.
pub struct KvService {
    client: Arc<OnceLock<Client>>,
    watches: Watches,
}

impl KvService {
    fn client(&self) -> Result<&Client, Status> {
        self.client.get().ok_or_else(|| {
            status_of(&Error::Unavailable {
                message: "the node has not seen the shard map yet".into(),
            })
        })
    }
}

/// The service, ready to be mounted. The client comes when the shard map has
/// been seen; calls before that are answered with UNAVAILABLE. Watches end with
/// `stop`.
pub fn server(client: Arc<OnceLock<Client>>, stop: CancellationToken) -> KvServer<KvService> {
    let watches = Watches::new(stop);
    KvServer::new(KvService { client, watches })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// What a call brings besides its message.
struct Call {
    watch: Stopwatch,
    deadline: tokio::time::Instant,
    /// The caller itself set the deadline.
    own_deadline: bool,
    /// When a stream without an end of its own has to end: if the caller said so.
    stream_deadline: Option<tokio::time::Instant>,
}

impl Call {
    fn new(metadata: &MetadataMap) -> Self {
        let named = metadata
            .get("grpc-timeout")
            .and_then(|v| v.to_str().ok())
            .and_then(rules::grpc_timeout);
        let timeout = named.unwrap_or(DEFAULT_TIMEOUT).min(TIMEOUT_MAX);
        Call {
            watch: Stopwatch::start(),
            deadline: deadline_after(timeout),
            own_deadline: named.is_some(),
            stream_deadline: named.map(deadline_after),
        }
    }

    fn options(&self) -> TransactionOptions {
        TransactionOptions {
            deadline: Some(self.deadline),
            default_deadline: !self.own_deadline,
            ..TransactionOptions::default()
        }
    }

    fn header(&self, timestamp: Timestamp, timing: &Timing) -> Option<ResponseHeader> {
        let us = |us: u64| us.min(u64::from(u32::MAX)) as u32;
        Some(ResponseHeader {
            timestamp: timestamp.raw(),
            total_us: self.watch.elapsed_us(),
            lock_wait_us: us(timing.lock_wait_us),
            consensus_us: us(timing.consensus_us),
        })
    }

    fn status(&self, error: &Error) -> Status {
        let status = status_of(error);
        let late = deadline_after(Duration::ZERO) >= self.deadline;
        if status.code() == Code::Unavailable && self.own_deadline && late {
            let metadata = status.metadata().clone();
            let message = status.message();
            return Status::with_metadata(Code::DeadlineExceeded, message, metadata);
        }
        status
    }
}

/// An error as gRPC says it, with words for programs.
fn status_of(error: &Error) -> Status {
    let (code, word) = code_of(error);
    let mut status = Status::new(code, error.to_string());
    let metadata = status.metadata_mut();
    metadata.insert("lineradb-error", MetadataValue::from_static(word));
    let retry = if error.is_retryable() {
        "true"
    } else {
        "false"
    };
    metadata.insert("lineradb-retryable", MetadataValue::from_static(retry));
    if let Error::HistoryGone { oldest, .. } = error {
        let oldest = MetadataValue::from(oldest.raw());
        metadata.insert("lineradb-oldest-timestamp", oldest);
    }
    status
}

/// What a write came to, whether it ran now or under an earlier request.
struct Written<T> {
    answer: T,
    timestamp: Timestamp,
    timing: Timing,
}

impl KvService {
    /// Runs `body` as one transaction; its answer is kept as the result
    /// summary of a keyed request, and a repeat gets the kept one.
    async fn write<Q, T, F, Fut>(
        &self,
        call: &Call,
        request: &Q,
        idempotency_key: &str,
        body: F,
    ) -> Result<Written<T>, Status>
    where
        Q: rules::Keyed,
        T: Message + Default,
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        rules::checked_idempotency_key(idempotency_key)?;
        let mut options = call.options();
        if !idempotency_key.is_empty() {
            options.idempotency = Some(IdempotencyRequest {
                user: USER.to_owned(),
                key: idempotency_key.to_owned(),
                request_hash: rules::request_hash(request),
            });
        }
        let body = &body;
        let ran = self
            .client()?
            .run_keyed(options, |txn| async move {
                let answer = body(txn.clone()).await?;
                txn.set_result_summary(answer.encode_to_vec().into());
                Ok((answer, txn))
            })
            .await
            .map_err(|error| call.status(&error))?;
        match ran {
            Ran::Committed((answer, txn), commit) => Ok(Written {
                answer,
                timestamp: commit.timestamp,
                timing: txn.timing(),
            }),
            Ran::Earlier(earlier) => Ok(Written {
                answer: T::decode(earlier.result_summary).map_err(|_| {
                    Status::internal("the kept outcome of the first request does not decode")
                })?,
                timestamp: earlier.timestamp,
                timing: Timing::default(),
            }),
        }
    }
}

/// Carries out the steps of a request in order.
async fn carry_out(txn: &Transaction, steps: &[Step]) -> Result<Vec<OperationResult>, Error> {
    let mut results = Vec::with_capacity(steps.len());
    for step in steps {
        let mut result = OperationResult::default();
        match step {
            Step::Put(key, value) => {
                txn.put(key.clone(), value.clone(), WriteOptions::default())?;
            }
            Step::Delete(key) => txn.delete(key.clone(), WriteOptions::default())?,
            Step::Get(key) => {
                let found = txn.versioned_get(std::slice::from_ref(key), None).await?;
                if let Some((value, version)) = found.into_iter().next().flatten() {
                    result = OperationResult {
                        found: true,
                        value,
                        version: version.raw(),
                    };
                }
            }
        }
        results.push(result);
    }
    Ok(results)
}

#[tonic::async_trait]
impl Kv for KvService {
    type ScanStream = BoxStream<'static, Result<ScanResponse, Status>>;
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let call = Call::new(request.metadata());
        let key = stored_key(&request.get_ref().key)?;
        let read = self
            .client()?
            .read_now(key, Some(call.deadline))
            .await
            .map_err(|error| call.status(&error))?;
        let header = call.header(read.timestamp, &read.timing);
        let found = read.found.is_some();
        let (value, version) = read.found.unwrap_or_default();
        Ok(Response::new(GetResponse {
            header,
            found,
            value,
            version: version.raw(),
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let call = Call::new(request.metadata());
        let request = request.into_inner();
        let key = stored_key(&request.key)?;
        checked_value(&request.value)?;
        let (key, value) = (&key, &request.value);
        let written = self
            .write(
                &call,
                &request,
                &request.idempotency_key,
                |txn| async move {
                    txn.put(key.clone(), value.clone(), WriteOptions::default())?;
                    Ok(PutResponse::default())
                },
            )
            .await?;
        Ok(Response::new(PutResponse {
            header: call.header(written.timestamp, &written.timing),
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let call = Call::new(request.metadata());
        let request = request.into_inner();
        let key = &stored_key(&request.key)?;
        let written = self
            .write(
                &call,
                &request,
                &request.idempotency_key,
                |txn| async move {
                    txn.delete(key.clone(), WriteOptions::default())?;
                    Ok(DeleteResponse::default())
                },
            )
            .await?;
        Ok(Response::new(DeleteResponse {
            header: call.header(written.timestamp, &written.timing),
        }))
    }

    async fn compare_and_swap(
        &self,
        request: Request<CompareAndSwapRequest>,
    ) -> Result<Response<CompareAndSwapResponse>, Status> {
        let call = Call::new(request.metadata());
        let request = request.into_inner();
        let key = &stored_key(&request.key)?;
        request.value.as_ref().map_or(Ok(()), checked_value)?;
        let (expected, value) = (&request.expected, &request.value);
        let written = self
            .write(
                &call,
                &request,
                &request.idempotency_key,
                |txn| async move {
                    let current = txn.get(key, None).await?;
                    let swapped = current == *expected;
                    if swapped {
                        match value {
                            Some(value) => {
                                txn.put(key.clone(), value.clone(), WriteOptions::default())?;
                            }
                            None => txn.delete(key.clone(), WriteOptions::default())?,
                        }
                    }
                    Ok(CompareAndSwapResponse {
                        header: None,
                        swapped,
                        current: current.filter(|_| !swapped),
                    })
                },
            )
            .await?;
        Ok(Response::new(CompareAndSwapResponse {
            header: call.header(written.timestamp, &written.timing),
            ..written.answer
        }))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let call = Call::new(request.metadata());
        let request = request.into_inner();
        let span = &stored_span(&request.start, &request.end)?;
        let written = self
            .write(
                &call,
                &request,
                &request.idempotency_key,
                |txn| async move {
                    let mut pages = txn.scan_stream(span.clone(), ScanOptions::default(), None);
                    let mut deleted = 0;
                    while let Some(page) = pages.next().await {
                        for (key, _) in page? {
                            txn.delete(key, WriteOptions::default())?;
                            deleted += 1;
                        }
                    }
                    Ok(DeleteRangeResponse {
                        header: None,
                        deleted,
                    })
                },
            )
            .await?;
        Ok(Response::new(DeleteRangeResponse {
            header: call.header(written.timestamp, &written.timing),
            ..written.answer
        }))
    }

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let call = Arc::new(Call::new(request.metadata()));
        let request = request.into_inner();
        let span = stored_span(&request.start, &request.end)?;
        let options = TransactionOptions {
            read_only: true,
            // A long scan is bounded page by page, unless the caller bounds it.
            deadline: call.own_deadline.then_some(call.deadline),
            ..TransactionOptions::default()
        };
        let txn = self
            .client()?
            .begin(options)
            .map_err(|error| call.status(&error))?;
        let scan = ScanOptions {
            reverse: request.reverse,
            limit: request.limit,
        };
        let clock = self.client()?.clock().clone();
        let pages = txn.versioned_scan(span, scan, None).then(move |page| {
            let (call, txn, clock) = (call.clone(), txn.clone(), clock.clone());
            async move {
                let pairs = page.map_err(|error| call.status(&error))?;
                // T5, for each page: the caller may act on it at once.
                wait_past(&*clock, txn.observed())
                    .await
                    .map_err(|error| call.status(&error.into()))?;
                let pairs = pairs.into_iter().map(|(key, value, version)| KeyValue {
                    key: user_key(&key),
                    value,
                    version: version.raw(),
                });
                Ok(ScanResponse {
                    pairs: pairs.collect(),
                    header: call.header(txn.read_timestamp(), &txn.timing()),
                })
            }
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn batch_write(
        &self,
        request: Request<BatchWriteRequest>,
    ) -> Result<Response<BatchWriteResponse>, Status> {
        let call = Call::new(request.metadata());
        let request = request.into_inner();
        let steps = &rules::steps(&request.operations)?;
        if steps.iter().any(|step| matches!(step, Step::Get(_))) {
            return Err(Status::invalid_argument(
                "a batch holds puts and deletes; reads belong into Txn",
            ));
        }
        let written = self
            .write(
                &call,
                &request,
                &request.idempotency_key,
                |txn| async move {
                    carry_out(&txn, steps).await?;
                    Ok(BatchWriteResponse::default())
                },
            )
            .await?;
        Ok(Response::new(BatchWriteResponse {
            header: call.header(written.timestamp, &written.timing),
        }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let call = Call::new(request.metadata());
        let request = request.into_inner();
        rules::check_compares(&request.compare)?;
        let compares = &request.compare;
        let (success, failure) = (
            &rules::steps(&request.success)?,
            &rules::steps(&request.failure)?,
        );
        let keys: Result<Vec<Bytes>, Status> =
            compares.iter().map(|c| stored_key(&c.key)).collect();
        let keys = &keys?;
        let mut written = self
            .write(
                &call,
                &request,
                &request.idempotency_key,
                |txn| async move {
                    let found = txn.versioned_get(keys, None).await?;
                    let succeeded = compares.iter().zip(&found).all(|(compare, found)| {
                        let found = found.as_ref().map(|(value, at)| (value, at.raw()));
                        rules::holds(compare, found)
                    });
                    let steps = if succeeded { success } else { failure };
                    Ok(TxnResponse {
                        header: None,
                        succeeded,
                        results: carry_out(&txn, steps).await?,
                    })
                },
            )
            .await?;
        for result in &mut written.answer.results {
            // Read back within the transaction: written by this commit.
            if result.found && result.version == 0 {
                result.version = written.timestamp.raw();
            }
        }
        Ok(Response::new(TxnResponse {
            header: call.header(written.timestamp, &written.timing),
            ..written.answer
        }))
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::new(request.metadata());
        let client = self.client()?.clone();
        let watch = self.watches.start(client, &call, request.get_ref()).await?;
        Ok(Response::new(watch.into_stream()))
    }
}
