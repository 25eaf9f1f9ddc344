//! Results as streams: a row at a time as JSON lines, or record batches as
//! Arrow IPC. The first batch is awaited before the status is sent, so that
//! most errors still are a status; a later one ends the stream visibly.

use super::error::{HttpError, error_json};
use super::params::Param;
use super::request::Answer;
use super::run::{self, unique_names};
use crate::encode::{JsonRows, write_json_string};
use crate::error::{Result, SqlError};
use crate::metrics;
use crate::query::errors::sql_error;
use crate::session::{Outcome, ResultColumn, Session};
use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use arrow::ipc::writer::StreamWriter;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use lineradb_common::clock::Stopwatch;
use lineradb_common::spawn;
use lineradb_common::sql::TimeZone;
use std::io;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// Chunks between the plan and the client.
const CHUNKS: usize = 2;
/// A JSON chunk is sent when it has this many bytes.
const CHUNK_BYTES: usize = 32 << 10;

type Chunks = mpsc::Sender<io::Result<Bytes>>;

/// How a streamed statement began.
enum Begun {
    /// Rows follow.
    Streaming,
    /// It returned no rows: one JSON document after all.
    Document(Vec<u8>),
}

/// Runs one statement, and answers with its rows as they come. `finish` takes
/// the session back when the last row is sent.
///
/// # Errors
/// What failed before the first row.
pub async fn respond<F, Fut>(
    mut session: Session,
    sql: String,
    params: Vec<Param>,
    answer: Answer,
    finish: F,
) -> std::result::Result<Response, HttpError>
where
    F: FnOnce(Session) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (begun, wait) = oneshot::channel();
    let (chunks, receiver) = mpsc::channel(CHUNKS);
    spawn::task("http-stream", async move {
        let watch = Stopwatch::start();
        let kind = metrics::kind_of(&sql);
        let mut begun = Some(begun);
        let ran = serve(&mut session, &sql, &params, answer, &chunks, &mut begun).await;
        let outcome = ran.and(session.sync().await);
        let code = outcome.as_ref().err().map_or("00000", |e| &e.sqlstate);
        metrics::statement(kind, code, watch.elapsed());
        finish(session).await;
        if let Err(error) = outcome {
            match begun.take() {
                // Nobody waits any more: the client went away.
                Some(begun) => drop(begun.send(Err(error))),
                None => break_off(&chunks, answer, &error).await,
            }
        }
    });
    let gone = || SqlError::internal("the statement's task ended early");
    match wait.await.map_err(|_| HttpError::from(gone()))?? {
        Begun::Document(document) => Ok(json_document(document)),
        Begun::Streaming => {
            let kind = match answer {
                Answer::Arrow => "application/vnd.apache.arrow.stream",
                _ => "application/x-ndjson",
            };
            let body = Body::from_stream(ReceiverStream::new(receiver));
            Ok((StatusCode::OK, [(header::CONTENT_TYPE, kind)], body).into_response())
        }
    }
}

/// A JSON document as an answer.
pub fn json_document(document: Vec<u8>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::OK, kind, document).into_response()
}

/// The end of a stream that failed: JSON lines can say so, Arrow only by
/// breaking off.
async fn break_off(chunks: &Chunks, answer: Answer, error: &SqlError) {
    let last = match answer {
        Answer::Arrow => Err(io::Error::other(error.message.clone())),
        _ => Ok(Bytes::from(format!("{}\n", error_json(error)))),
    };
    // Nobody reads any more: nothing to tell.
    let _ = chunks.send(last).await;
}

async fn serve(
    session: &mut Session,
    sql: &str,
    params: &[Param],
    answer: Answer,
    chunks: &Chunks,
    begun: &mut Option<oneshot::Sender<Result<Begun>>>,
) -> Result<()> {
    let mut start = |value: Begun| {
        if let Some(begun) = begun.take() {
            // A client that went away is noticed with the first chunk.
            let _ = begun.send(Ok(value));
        }
    };
    let watch = Stopwatch::start();
    let (columns, mut stream) = match run::start_one(session, sql, params).await? {
        Outcome::Rows {
            columns, stream, ..
        } => (columns, stream),
        other => {
            let results = run::Results::of(session, other).await?;
            session.sync().await?;
            let elapsed = watch.elapsed().as_secs_f64() * 1e3;
            start(Begun::Document(
                results.document(elapsed, &session.last_timing()),
            ));
            return Ok(());
        }
    };
    let first = stream.next().await.transpose().map_err(sql_error)?;
    start(Begun::Streaming);
    let zone = session.settings().time_zone.clone();
    match answer {
        Answer::Arrow => arrow(&columns, first, stream, chunks).await,
        _ => lines(&columns, first, stream, zone, chunks).await,
    }
}

/// Sends a chunk; an error when the client went away.
async fn send(chunks: &Chunks, bytes: Vec<u8>) -> Result<()> {
    chunks
        .send(Ok(bytes.into()))
        .await
        .map_err(|_| SqlError::new("57014", "canceling statement: the client went away"))
}

async fn lines(
    columns: &Arc<[ResultColumn]>,
    first: Option<RecordBatch>,
    mut stream: SendableRecordBatchStream,
    zone: TimeZone,
    chunks: &Chunks,
) -> Result<()> {
    let types = columns.iter().map(|column| column.sql_type).collect();
    let rows = JsonRows::new(types, zone);
    let names: Vec<Vec<u8>> = unique_names(columns)
        .iter()
        .map(|name| {
            let mut out = Vec::new();
            write_json_string(name, &mut out);
            out
        })
        .collect();
    let mut out = Vec::new();
    let mut next = first;
    while let Some(batch) = next {
        for row in 0..batch.num_rows() {
            rows.object(&names, &batch, row, &mut out)?;
            out.push(b'\n');
            if out.len() >= CHUNK_BYTES {
                send(chunks, std::mem::take(&mut out)).await?;
            }
        }
        if !out.is_empty() {
            send(chunks, std::mem::take(&mut out)).await?;
        }
        next = stream.next().await.transpose().map_err(sql_error)?;
    }
    Ok(())
}

async fn arrow(
    columns: &Arc<[ResultColumn]>,
    first: Option<RecordBatch>,
    mut stream: SendableRecordBatchStream,
    chunks: &Chunks,
) -> Result<()> {
    let broken = |error: arrow::error::ArrowError| SqlError::internal(error.to_string());
    // The plan's names are its own; the client gets the statement's labels.
    let fields: Vec<Field> = stream
        .schema()
        .fields()
        .iter()
        .zip(columns.iter())
        .map(|(field, column)| {
            Field::new(&column.name, field.data_type().clone(), true)
                .with_metadata(column.sql_type.metadata())
        })
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(broken)?;
    let mut next = first;
    while let Some(batch) = next {
        let batch =
            RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()).map_err(broken)?;
        writer.write(&batch).map_err(broken)?;
        send(chunks, std::mem::take(writer.get_mut())).await?;
        next = stream.next().await.transpose().map_err(sql_error)?;
    }
    writer.finish().map_err(broken)?;
    send(chunks, std::mem::take(writer.get_mut())).await
}
