//! One page of a fragment.

use super::input::Merged;
use crate::mvcc::RowSource;
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::registry::FunctionRegistry;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use futures::{FutureExt, TryStreamExt};
use lineradb_common::keys::{in_span, key_after};
use lineradb_common::sql::{RowBatchBuilder, RowLayout, ValueError};
use lineradb_functions::FunctionError;
use lineradb_functions::plan::{Decoded, PLAN_FORMAT_VERSION, decode};
use lineradb_proto::shard::v1::{Error as ProtoError, ErrorCode, Fragment, FragmentReply};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

/// Rows examined per page unless the request says less.
const PAGE_ROWS: usize = 32_768;
/// Decoded bytes after which a page ends.
const PAGE_BYTES: usize = 4 << 20;
/// Rows run at a time when only a few results are wanted.
const LIMITED_ROWS: usize = 1024;
/// What all fragments of a node may hold at once while they run.
const MEMORY_LIMIT: usize = 512 << 20;

type Result<T, E = ProtoError> = std::result::Result<T, E>;

fn error(code: ErrorCode, message: impl Into<String>) -> ProtoError {
    ProtoError {
        code: code.into(),
        message: message.into(),
        ..Default::default()
    }
}

fn execution(sqlstate: &str, message: impl Into<String>) -> ProtoError {
    ProtoError {
        sqlstate: sqlstate.to_owned(),
        ..error(ErrorCode::Execution, message)
    }
}

fn value_error(e: ValueError) -> ProtoError {
    execution(e.sqlstate, e.message)
}

/// What the user is told when a plan fails over rows.
fn failed(e: DataFusionError) -> ProtoError {
    if let Some(found) = FunctionError::find(&e) {
        return execution(found.sqlstate, found.message.clone());
    }
    let text = e.find_root().strip_backtrace();
    let lower = text.to_lowercase();
    let state = match e.find_root() {
        DataFusionError::ResourcesExhausted(_) => "53200",
        _ if lower.contains("divide by zero") => "22012",
        _ if lower.contains("overflow") || lower.contains("out of range") => "22003",
        _ if lower.contains("too large to store") => "22003",
        _ if lower.contains("cast") || lower.contains("parse") => "22P02",
        _ if lower.contains("regex") || lower.contains("regular expression") => "2201B",
        _ => "XX000",
    };
    execution(state, text)
}

/// The functions and limits that fragments run with.
fn context() -> Result<Arc<TaskContext>> {
    static CONTEXT: OnceLock<Arc<TaskContext>> = OnceLock::new();
    if let Some(context) = CONTEXT.get() {
        return Ok(context.clone());
    }
    let build = || -> datafusion::error::Result<Arc<TaskContext>> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(MEMORY_LIMIT)))
            .build_arc()?;
        let mut config = SessionConfig::new().with_target_partitions(1);
        config.options_mut().execution.time_zone = Some("UTC".into());
        let mut state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime)
            .build();
        let known = lineradb_functions::registry()?;
        for name in known.udfs() {
            state.register_udf(known.udf(&name)?)?;
        }
        for name in known.udafs() {
            state.register_udaf(known.udaf(&name)?)?;
        }
        Ok(state.task_ctx())
    };
    let context = build().map_err(failed)?;
    Ok(CONTEXT.get_or_init(|| context).clone())
}

/// Runs one page of a fragment over rows that are visible to its transaction,
/// in key order (descending when the request says so).
///
/// # Errors
/// `PLAN_FORMAT` for a plan of another format, `INVALID_ARGUMENT` for bytes
/// that are no plan, `EXECUTION` with a SQLSTATE when an expression fails, and
/// what the rows themselves answer (`LOCKED`).
pub async fn run_fragment(rows: &mut dyn RowSource, request: &Fragment) -> Result<FragmentReply> {
    if request.plan_format_version != PLAN_FORMAT_VERSION && !request.plan.is_empty() {
        return Err(error(
            ErrorCode::PlanFormat,
            format!(
                "plan format {} is not spoken here, only {PLAN_FORMAT_VERSION}",
                request.plan_format_version
            ),
        ));
    }
    let layout = RowLayout::decode(&request.layout)
        .map_err(|e| error(ErrorCode::InvalidArgument, e.message))?;
    let layout = Arc::new(layout);
    let context = context()?;
    let decoded = match request.plan.is_empty() {
        true => None,
        false => Some(decode_plan(&request.plan, &layout, &context)?),
    };
    let sorted = request.overlay.is_sorted_by(|a, b| a.key < b.key);
    let span = request.span.clone().unwrap_or_default();
    let inside = request
        .overlay
        .iter()
        .all(|w| in_span(&w.key, &span.start, &span.end));
    if !sorted || !inside {
        return Err(error(
            ErrorCode::InvalidArgument,
            "the buffered writes are not sorted or lie outside of the span",
        ));
    }
    let page = Page::new(request, layout, decoded, context);
    page.run(Merged::new(rows, &request.overlay, request.reverse))
        .await
}

fn decode_plan(plan: &[u8], layout: &RowLayout, context: &Arc<TaskContext>) -> Result<Decoded> {
    let invalid = |m: String| error(ErrorCode::InvalidArgument, m);
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(plan, context)))
        .map_err(|_| invalid("the plan does not decode".into()))?
        .map_err(|e| invalid(e.strip_backtrace()))?;
    let mut seen = vec![false; layout.columns.len()];
    for column in decoded.columns() {
        match seen.get_mut(*column) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(invalid("the plan does not fit the layout".into())),
        }
    }
    Ok(decoded)
}

struct Page {
    layout: Arc<RowLayout>,
    decoded: Option<Decoded>,
    context: Arc<TaskContext>,
    rows_max: usize,
    /// Rows run through the plan at once.
    chunk: usize,
    limit: Option<usize>,
    reverse: bool,
}

impl Page {
    fn new(
        request: &Fragment,
        layout: Arc<RowLayout>,
        decoded: Option<Decoded>,
        context: Arc<TaskContext>,
    ) -> Self {
        let rows_max = match usize::try_from(request.page_rows) {
            Ok(n) if n > 0 => n.min(PAGE_ROWS),
            _ => PAGE_ROWS,
        };
        let limit = match usize::try_from(request.limit) {
            Ok(0) | Err(_) => None,
            Ok(n) => Some(n),
        };
        // A plan that keeps every row needs no more rows than are wanted.
        let keeps_rows = decoded.as_ref().is_none_or(|d| {
            let mut node: &Arc<dyn ExecutionPlan> = &d.plan;
            loop {
                match (node.name(), node.children().as_slice()) {
                    ("FragmentInput", _) => return true,
                    ("ProjectionExec" | "LocalLimitExec", [next]) => node = next,
                    _ => return false,
                }
            }
        });
        let chunk = match limit {
            None => rows_max,
            Some(limit) if keeps_rows => limit.min(rows_max),
            Some(_) => LIMITED_ROWS.min(rows_max),
        };
        Self {
            layout,
            decoded,
            context,
            rows_max,
            chunk,
            limit,
            reverse: request.reverse,
        }
    }

    async fn run(self, mut rows: Merged<'_>) -> Result<FragmentReply> {
        let columns: Vec<usize> = match &self.decoded {
            Some(decoded) => decoded.columns().to_vec(),
            None => (0..self.layout.columns.len()).collect(),
        };
        let mut builder = RowBatchBuilder::new(self.layout.clone(), Some(&columns));
        let mut out = Vec::new();
        let (mut examined, mut produced, mut bytes) = (0usize, 0usize, 0usize);
        let mut last: Option<Bytes> = None;
        let mut exhausted = false;
        while !exhausted && examined < self.rows_max && bytes < PAGE_BYTES {
            if self.limit.is_some_and(|limit| produced >= limit) {
                break;
            }
            let mut in_chunk = 0;
            let mut decoded_rows = 0;
            while in_chunk < self.chunk && examined < self.rows_max {
                let Some((key, value)) = rows.next().map_err(ProtoError::from)? else {
                    exhausted = true;
                    break;
                };
                examined += 1;
                in_chunk += 1;
                if let Some(value) = value {
                    decoded_rows += 1;
                    if !columns.is_empty() {
                        builder.push(&key, &value).map_err(value_error)?;
                    }
                }
                last = Some(key);
                if bytes + builder.byte_size() >= PAGE_BYTES {
                    break;
                }
            }
            bytes += builder.byte_size();
            let batch = match columns.is_empty() {
                false => builder.finish().map_err(value_error)?,
                true => RecordBatch::try_new_with_options(
                    builder.schema().clone(),
                    vec![],
                    &RecordBatchOptions::new().with_row_count(Some(decoded_rows)),
                )
                .map_err(|e| failed(e.into()))?,
            };
            for batch in self.through_plan(batch).await? {
                produced += batch.num_rows();
                out.push(batch);
            }
        }
        let resume = match (exhausted, last, self.reverse) {
            (true, _, _) | (_, None, _) => None,
            (false, Some(key), false) => Some(key_after(&key)),
            (false, Some(key), true) => Some(key),
        };
        Ok(FragmentReply {
            arrow_ipc: encode(&out).map_err(failed)?,
            more: resume.is_some(),
            resume: resume.unwrap_or_default(),
            rows_examined: examined as u64,
        })
    }

    async fn through_plan(&self, batch: RecordBatch) -> Result<Vec<RecordBatch>> {
        let Some(decoded) = &self.decoded else {
            return Ok(vec![batch]);
        };
        let schema = decoded.input_schema().clone();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(schema, batch.columns().to_vec(), &options)
            .map_err(|e| error(ErrorCode::InvalidArgument, e.to_string()))?;
        decoded.set_input(vec![batch]).map_err(failed)?;
        let run = async {
            let stream = execute_stream(decoded.plan.clone(), self.context.clone())?;
            stream.try_collect::<Vec<_>>().await
        };
        match AssertUnwindSafe(run).catch_unwind().await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(execution("XX000", "a fragment failed to run")),
        }
    }
}

/// Batches in the Arrow IPC stream format; nothing for no rows.
fn encode(batches: &[RecordBatch]) -> datafusion::error::Result<Bytes> {
    let Some(first) = batches.iter().find(|b| b.num_rows() > 0) else {
        return Ok(Bytes::new());
    };
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new(&mut out, first.schema_ref())?;
    for batch in batches.iter().filter(|b| b.num_rows() > 0) {
        writer.write(batch)?;
    }
    writer.finish()?;
    drop(writer);
    Ok(Bytes::from(out))
}
