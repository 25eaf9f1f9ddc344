//! PostgreSQL-semantics scalar functions, and the format in which a piece of a
//! plan travels from a gateway to the node that holds the rows.
//!
//! Both ends of a fragment must know the same functions: the gateway plans
//! with them, the node runs them next to the data. So they live here, below
//! both, and nothing else does. DataFusion's own arithmetic and casts differ
//! silently from PostgreSQL (wrapping overflow, truncating casts, infinities
//! instead of errors); every function here gives PostgreSQL's value or an
//! error with its SQLSTATE.

pub mod arith;
pub mod cast;
pub mod chain;
pub mod decimal;
pub mod error;
mod extract;
pub mod float_arith;
pub mod format;
pub mod length;
pub mod nullable;
mod number_types;
mod pattern;
pub mod plan;
pub mod quantified;
pub mod similar;
pub mod strings;
pub mod sum;
pub mod sum_float;
pub mod temporal;
pub mod to_char;
pub mod udf;

pub use error::FunctionError;

use datafusion::execution::FunctionRegistry;
use datafusion::execution::registry::MemoryFunctionRegistry;
use datafusion::logical_expr::ScalarUDF;
use std::sync::{Arc, LazyLock};

/// Every function of this crate, under the names that plans carry.
pub fn all() -> &'static [Arc<ScalarUDF>] {
    static ALL: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
        let mut all = arith::functions();
        all.extend(cast::functions());
        all.extend(float_arith::functions());
        all.extend(format::functions());
        all.extend(length::functions());
        all.extend(chain::functions());
        all.extend(nullable::functions());
        all.extend(quantified::functions());
        all.extend(similar::functions());
        all.extend(strings::functions());
        all.extend(temporal::functions());
        all.extend(to_char::functions());
        all
    });
    &ALL
}

/// A function of this crate by name.
pub fn by_name(name: &str) -> Option<Arc<ScalarUDF>> {
    all().iter().find(|f| f.name() == name).cloned()
}

/// What a node knows: DataFusion's functions and ours.
pub fn registry() -> datafusion::error::Result<MemoryFunctionRegistry> {
    let mut registry = MemoryFunctionRegistry::new();
    datafusion::functions::register_all(&mut registry)?;
    datafusion::functions_nested::register_all(&mut registry)?;
    datafusion::functions_aggregate::register_all(&mut registry)?;
    for function in all() {
        registry.register_udf(function.clone())?;
    }
    registry.register_udaf(sum::sum())?;
    registry.register_udaf(sum::avg_sum())?;
    Ok(registry)
}
