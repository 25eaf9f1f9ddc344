//! SQL values and how they become bytes: types, exact text forms, the order of
//! keys, the format of rows, and their way into Arrow.
//!
//! Gateways and nodes share this module, so that a row means the same thing on
//! both sides of a [`RowLayout`]. What is stored (keys, row values, layouts)
//! carries format versions; what is only computed does not.
//!
//! Policies that a reader should know:
//!
//! * `numeric` is exact up to 38 digits and an error (22003) beyond, never
//!   rounded to something that fits. `numeric(p,s)` rounds to `s` digits as
//!   PostgreSQL does. Bare `numeric` is a `Decimal128(38, 10)` column: a value
//!   that needs more than 10 fractional digits or more than 28 integer digits is
//!   refused with a hint to declare precision and scale; it prints without
//!   trailing zeros.
//! * `char(n)` is stored without its padding and padded when printed, so that
//!   comparisons ignore trailing blanks as PostgreSQL's do.
//! * Times count microseconds; `timestamptz` is UTC inside and in the session's
//!   zone in text.

mod arrow_batch;
mod arrow_value;
mod cast;
mod copy_text;
mod datetime;
mod datetime_text;
mod datum;
mod error;
mod interval;
mod key;
mod layout;
mod numeric;
mod row;
#[cfg(test)]
mod tests;
mod timezone;
mod type_names;
mod types;

pub use arrow_batch::RowBatchBuilder;
pub use arrow_value::{DatumArrayBuilder, batch_from_rows, datum_at};
pub use datetime::{civil_from_days, days_from_civil};
pub use datum::Datum;
pub use error::{ValueError, ValueResult};
pub use interval::Interval;
pub use key::{decode_key_datum, encode_key_datum, skip_key_datum};
pub use layout::{LayoutColumn, Place, RowLayout};
pub use numeric::Numeric;
pub use row::{RowValueReader, StoredColumn, encode_row_value};
pub use timezone::TimeZone;
pub use types::{SqlType, TYPE_METADATA_KEY};
