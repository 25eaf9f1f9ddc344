use super::run_fragment;
use crate::mvcc::{Result, RowSource};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, Schema};
use bytes::{Bytes, BytesMut};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::{binary, col, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::filter::FilterExec;
use lineradb_common::sql::{
    Datum, LayoutColumn, Place, RowLayout, SqlType, encode_key_datum, encode_row_value,
};
use lineradb_common::{TableId, keys};
use lineradb_functions::plan::{FragmentInput, PLAN_FORMAT_VERSION, encode};
use lineradb_proto::shard::v1::{
    BufferedWrite, Error as ProtoError, ErrorCode, Fragment, FragmentReply, Span,
};
use std::sync::Arc;

const TABLE: TableId = TableId(7);

struct Rows(Vec<(Bytes, Bytes)>);

impl RowSource for Rows {
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        Ok(if self.0.is_empty() {
            None
        } else {
            Some(self.0.remove(0))
        })
    }
}

fn layout() -> Arc<RowLayout> {
    let column = |id, name: &str, sql_type, place| LayoutColumn {
        id,
        name: name.into(),
        sql_type,
        nullable: id != 1,
        place,
        missing: Datum::Null,
    };
    Arc::new(RowLayout {
        table: TABLE,
        index: 1,
        key_types: vec![SqlType::Int8],
        columns: vec![
            column(1, "id", SqlType::Int8, Place::Key(0)),
            column(2, "v", SqlType::Int8, Place::Value),
        ],
    })
}

fn key(id: i64) -> Bytes {
    let mut key = keys::index_prefix(TABLE, 1);
    encode_key_datum(&Datum::Int8(id), &mut key).unwrap();
    BytesMut::freeze(key)
}

fn value(v: i64) -> Bytes {
    encode_row_value([(2, &Datum::Int8(v))]).into()
}

fn rows(n: i64) -> Rows {
    Rows((0..n).map(|i| (key(i), value(i * 10))).collect())
}

fn leaf() -> Arc<dyn ExecutionPlan> {
    Arc::new(FragmentInput::new(vec![0, 1], layout().schema()))
}

fn request(plan: Bytes) -> Fragment {
    let prefix = keys::index_prefix(TABLE, 1).freeze();
    Fragment {
        span: Some(Span {
            start: prefix.clone(),
            end: keys::prefix_end(&prefix),
        }),
        plan_format_version: PLAN_FORMAT_VERSION,
        plan,
        layout: layout().encode(),
        ..Default::default()
    }
}

fn batches(reply: &FragmentReply) -> Vec<RecordBatch> {
    if reply.arrow_ipc.is_empty() {
        return vec![];
    }
    arrow::ipc::reader::StreamReader::try_new(reply.arrow_ipc.as_ref(), None)
        .unwrap()
        .map(|b| b.unwrap())
        .collect()
}

fn ids(reply: &FragmentReply) -> Vec<i64> {
    batches(reply)
        .iter()
        .flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect()
}

async fn run(rows: Rows, request: &Fragment) -> Result<FragmentReply, ProtoError> {
    let mut rows = rows;
    run_fragment(&mut rows, request).await
}

fn greater_than(v: i64) -> Bytes {
    let schema = layout().schema();
    let predicate = binary(
        col("v", &schema).unwrap(),
        Operator::Gt,
        lit(v),
        &Schema::clone(&schema),
    )
    .unwrap();
    encode(Arc::new(FilterExec::try_new(predicate, leaf()).unwrap())).unwrap()
}

#[tokio::test]
async fn rows_come_page_by_page() {
    let mut request = request(Bytes::new());
    request.page_rows = 3;
    let reply = run(rows(5), &request).await.unwrap();
    assert_eq!(ids(&reply), [0, 1, 2]);
    assert!(reply.more);
    assert_eq!(reply.resume, keys::key_after(&key(2)));
    assert_eq!(reply.rows_examined, 3);
}

#[tokio::test]
async fn a_filter_runs_at_the_node() {
    let reply = run(rows(5), &request(greater_than(20))).await.unwrap();
    assert_eq!(ids(&reply), [3, 4]);
    assert!(!reply.more);
    assert_eq!(reply.rows_examined, 5);
}

#[tokio::test]
async fn own_writes_are_merged_under_the_plan() {
    let mut request = request(greater_than(20));
    request.overlay = vec![
        BufferedWrite {
            key: key(1),
            value: Some(value(100)),
        },
        BufferedWrite {
            key: key(3),
            value: None,
        },
        BufferedWrite {
            key: key(9),
            value: Some(value(90)),
        },
    ];
    let reply = run(rows(5), &request).await.unwrap();
    assert_eq!(ids(&reply), [1, 4, 9]);
    request.reverse = true;
    let mut backwards = rows(5);
    backwards.0.reverse();
    let reply = run(backwards, &request).await.unwrap();
    assert_eq!(ids(&reply), [9, 4, 1]);
}

#[tokio::test]
async fn partial_states_compose_over_pages() {
    let schema = layout().schema();
    let count = AggregateExprBuilder::new(count_udaf(), vec![col("v", &schema).unwrap()])
        .schema(schema.clone())
        .alias("n")
        .build()
        .unwrap();
    let plan = AggregateExec::try_new(
        AggregateMode::Partial,
        PhysicalGroupBy::default(),
        vec![Arc::new(count)],
        vec![None],
        leaf(),
        schema,
    )
    .unwrap();
    let mut request = request(encode(Arc::new(plan)).unwrap());
    request.page_rows = 4;
    let first = run(rows(6), &request).await.unwrap();
    assert_eq!((ids(&first), first.more), (vec![4], true));
}

#[tokio::test]
async fn a_limit_stops_early() {
    let mut request = request(encode(leaf()).unwrap());
    request.limit = 2;
    let reply = run(rows(100), &request).await.unwrap();
    assert_eq!(ids(&reply), [0, 1]);
    assert_eq!(reply.rows_examined, 2);
}

#[tokio::test]
async fn plans_without_columns_keep_their_row_count() {
    let plan = FragmentInput::new(vec![], Arc::new(Schema::empty()));
    let reply = run(rows(5), &request(encode(Arc::new(plan)).unwrap()))
        .await
        .unwrap();
    assert_eq!(
        batches(&reply)
            .iter()
            .map(RecordBatch::num_rows)
            .sum::<usize>(),
        5
    );
}

#[tokio::test]
async fn other_formats_and_hostile_bytes_are_refused() {
    let mut other = request(greater_than(1));
    other.plan_format_version += 1;
    let error = run(rows(1), &other).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PlanFormat);
    let good = greater_than(1);
    for cut in 1..good.len() {
        let mut bytes = good.to_vec();
        bytes.truncate(cut);
        let _ = run(rows(2), &request(bytes.into())).await;
        let mut bytes = good.to_vec();
        bytes[cut] ^= 0x5a;
        let _ = run(rows(2), &request(bytes.into())).await;
    }
    let wrong_column = FragmentInput::new(
        vec![9],
        Arc::new(Schema::new(vec![arrow::datatypes::Field::new(
            "x",
            DataType::Int64,
            true,
        )])),
    );
    let error = run(rows(1), &request(encode(Arc::new(wrong_column)).unwrap()))
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
}
