//! Points at which a running query lets others run, and can be cancelled.
//!
//! DataFusion makes the leaves of a plan yield. A join makes many batches of
//! one that it read, so an aggregate above it would not come back for minutes.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::unnest::UnnestExec;
use std::sync::Arc;

/// The rule: operators that multiply rows yield between their batches.
#[derive(Debug)]
pub struct YieldWhereRowsMultiply;

impl PhysicalOptimizerRule for YieldWhereRowsMultiply {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let yielding = plan.transform_up(|node| {
            let multiplies = node.name().ends_with("JoinExec")
                || node.is::<UnnestExec>()
                || node.is::<RecursiveQueryExec>();
            Ok(if multiplies {
                Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>)
            } else {
                Transformed::no(node)
            })
        })?;
        Ok(yielding.data)
    }

    fn name(&self) -> &str {
        "yield_where_rows_multiply"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
