//! Values on their way out (PostgreSQL text and binary formats, JSON) and in
//! (parameters).
//!
//! The text forms themselves live in `lineradb_common::sql`, because COPY, casts
//! and the nodes need them too; here is what only a front end needs. Columns of
//! the common Arrow types are written straight from the array, without a value
//! in between: that is where a wide result spends its time.

mod binary;
mod json;
mod parameter;
mod rows;

pub use binary::write_binary;
pub use json::{JsonRows, write_json, write_json_string};
pub use parameter::{from_json, from_wire};
pub use rows::{Format, RowEncoder};
