//! The format of `Fragment.plan`: a DataFusion physical plan whose only leaf is
//! the rows of the node's scan.
//!
//! The gateway replaces its scan by a [`FragmentInput`] and encodes; the node
//! decodes, hands the leaf one page of rows at a time and runs the plan over
//! it. The leaf says which columns of the layout it wants and under which
//! schema. Functions are named; both ends resolve them in [`crate::registry`].

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType,
};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use datafusion_proto::bytes::{
    physical_plan_from_bytes_with_proto_converter, physical_plan_to_bytes_with_proto_converter,
};
use datafusion_proto::physical_plan::{
    DeduplicatingProtoConverter, PhysicalExtensionCodec, PhysicalProtoConverterExtension,
};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Raised when either this format, the functions, or DataFusion's own plan
/// format change; a node refuses any other.
pub const PLAN_FORMAT_VERSION: u32 = 55_03;

/// Most bytes of a plan that a node decodes.
pub const MAX_PLAN_BYTES: usize = 1 << 20;

/// The leaf of a fragment: rows of the scan, some of its columns.
pub struct FragmentInput {
    columns: Vec<usize>,
    batches: Mutex<Vec<RecordBatch>>,
    properties: Arc<PlanProperties>,
}

impl fmt::Debug for FragmentInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FragmentInput")
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}

impl FragmentInput {
    /// A leaf of some columns of a layout; `schema` is that of these columns.
    pub fn new(columns: Vec<usize>, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self {
            columns,
            batches: Mutex::new(Vec::new()),
            properties: Arc::new(properties),
        }
    }

    /// Positions of its columns in the layout.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The rows that the next execution reads.
    pub fn set(&self, batches: Vec<RecordBatch>) {
        *self.batches.lock().unwrap_or_else(PoisonError::into_inner) = batches;
    }
}

impl DisplayAs for FragmentInput {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "FragmentInput: columns={:?}", self.columns)
    }
}

impl ExecutionPlan for FragmentInput {
    fn name(&self) -> &str {
        "FragmentInput"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batches =
            std::mem::take(&mut *self.batches.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Box::pin(MemoryStream::try_new(
            batches,
            self.schema(),
            None,
        )?))
    }

    fn statistics_from_inputs(
        &self,
        _: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(Arc::new(Statistics::new_unknown(&self.schema())))
    }
}

/// Encodes the leaf: the positions of its columns, and its schema.
#[derive(Debug)]
struct Codec;

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _: &TaskContext,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !inputs.is_empty() {
            return plan_err!("the leaf of a fragment has no inputs");
        }
        let malformed = || DataFusionError::Plan("malformed leaf of a fragment".into());
        let (count, mut rest) = buf.split_first_chunk::<4>().ok_or_else(malformed)?;
        let count = u32::from_be_bytes(*count) as usize;
        let mut columns = Vec::new();
        for _ in 0..count {
            let (column, tail) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
            columns.push(u32::from_be_bytes(*column) as usize);
            rest = tail;
        }
        let schema = decode_schema(rest)?;
        if schema.fields().len() != columns.len() {
            return Err(malformed());
        }
        Ok(Arc::new(FragmentInput::new(columns, Arc::new(schema))))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some(input) = node.downcast_ref::<FragmentInput>() else {
            return plan_err!("{} cannot be shipped to a node", node.name());
        };
        buf.extend_from_slice(&(input.columns.len() as u32).to_be_bytes());
        for column in &input.columns {
            buf.extend_from_slice(&(*column as u32).to_be_bytes());
        }
        encode_schema(&input.schema(), buf)
    }
}

/// A schema as an Arrow IPC stream without batches.
fn encode_schema(schema: &Schema, buf: &mut Vec<u8>) -> Result<()> {
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(buf, schema)?;
    writer.finish()?;
    Ok(())
}

fn decode_schema(bytes: &[u8]) -> Result<Schema> {
    let reader = arrow::ipc::reader::StreamReader::try_new(bytes, None)?;
    Ok(reader.schema().as_ref().clone())
}

/// Encodes a plan whose only leaf is a [`FragmentInput`].
///
/// # Errors
/// When something in the plan does not travel: the plan then stays here.
pub fn encode(plan: Arc<dyn ExecutionPlan>) -> Result<bytes::Bytes> {
    physical_plan_to_bytes_with_proto_converter(plan, &Codec, &DeduplicatingProtoConverter {})
}

/// A decoded fragment: the plan and its leaf.
#[derive(Debug)]
pub struct Decoded {
    /// The whole plan.
    pub plan: Arc<dyn ExecutionPlan>,
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl Decoded {
    /// Positions of the columns of the leaf in the layout.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The schema of the leaf.
    pub fn input_schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Hands rows to the leaf.
    ///
    /// # Errors
    /// When the batches do not have the schema that the plan was made for.
    pub fn set_input(&self, batches: Vec<RecordBatch>) -> Result<()> {
        let leaf = leaf_of(&self.plan)?;
        let Some(input) = leaf.downcast_ref::<FragmentInput>() else {
            return plan_err!("a fragment without a leaf");
        };
        for batch in &batches {
            let same = batch.schema().fields().len() == self.schema.fields().len()
                && batch
                    .schema()
                    .fields()
                    .iter()
                    .zip(self.schema.fields())
                    .all(|(a, b)| a.data_type() == b.data_type());
            if !same {
                return plan_err!("the plan of a fragment does not fit the layout");
            }
        }
        input.set(batches);
        Ok(())
    }
}

fn leaf_of(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut node = plan.clone();
    loop {
        let next = match node.children().as_slice() {
            [] => break,
            [one] => Arc::clone(*one),
            _ => return plan_err!("a fragment is a chain of operators"),
        };
        node = next;
    }
    Ok(node)
}

/// Decodes a plan, checking that it is a chain above one leaf of ours: nothing
/// that a fragment names can reach files or the network.
///
/// # Errors
/// For bytes that are no such plan.
pub fn decode(bytes: &[u8], context: &TaskContext) -> Result<Decoded> {
    if bytes.len() > MAX_PLAN_BYTES {
        return plan_err!("the plan of a fragment is too large");
    }
    let plan = physical_plan_from_bytes_with_proto_converter(
        bytes,
        context,
        &Codec,
        &DeduplicatingProtoConverter {},
    )?;
    let mut node = plan.clone();
    loop {
        let allowed = matches!(
            node.name(),
            "FragmentInput"
                | "FilterExec"
                | "ProjectionExec"
                | "AggregateExec"
                | "LocalLimitExec"
                | "GlobalLimitExec"
                | "SortExec"
        );
        if !allowed {
            return plan_err!("a fragment may not contain {}", node.name());
        }
        if node.properties().output_partitioning().partition_count() != 1 {
            return plan_err!("a fragment has one partition");
        }
        let next = match node.children().as_slice() {
            [] => break,
            [one] => Arc::clone(*one),
            _ => return plan_err!("a fragment is a chain of operators"),
        };
        node = next;
    }
    let Some(input) = node.downcast_ref::<FragmentInput>() else {
        return plan_err!("a fragment without a leaf");
    };
    let columns = input.columns.clone();
    let schema = input.schema();
    Ok(Decoded {
        plan,
        columns,
        schema,
    })
}

/// True for types that the IPC format carries as they are.
pub fn travels(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Null)
}
