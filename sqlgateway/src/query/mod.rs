//! SELECT: from a sqlparser AST to a stream of Arrow batches.
//!
//! The way of a query: [`rewrite`] makes the AST say what PostgreSQL means
//! where DataFusion would read it differently; [`planner`] turns it into a
//! logical plan against one catalog snapshot; [`semantics`] replaces operators
//! and casts by checked ones; DataFusion optimises; [`scan`] plans the access
//! to tables, one partition per shard; [`pushdown`] ships what it can to the
//! nodes. What would silently differ from PostgreSQL is an error (0A000).
//!
//! Everything folded from the clock or from session settings is bound when the
//! statement starts and never outlives it in a cache.

mod arrays;
mod averages;
mod casts;
mod chains;
mod clauses;
mod common_type;
pub mod context;
mod cooperate;
mod correlated;
pub mod engine;
mod equality;
pub mod errors;
pub mod explain;
pub mod expression;
pub mod functions;
mod identifiers;
mod lateral;
mod lists;
mod literals;
mod lookup;
pub mod names;
mod operators;
mod order_by;
mod outer;
mod placeholders;
mod planner;
mod pushdown;
mod quantified;
pub mod rewrite;
mod rows;
mod scan;
mod scope;
mod semantics;
mod series;
mod spans;
mod spellings;
mod subqueries;
mod table;
mod temporal;
pub mod types;
mod untyped;
mod using;
mod virtual_tables;

#[cfg(test)]
mod tests;

pub use context::{NoVirtualTables, QueryContext, VirtualTable, VirtualTables};
pub use engine::{EngineOptions, Planned, QueryEngine};
pub use errors::{carry, sql_error};
pub use explain::ExplainOptions;
pub use expression::{Compiled, ExpressionScope};
