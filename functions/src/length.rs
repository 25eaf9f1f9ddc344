//! `length`, `octet_length` and `bit_length` of texts and byte strings.
//!
//! The blanks at the end of a `char(n)` are not stored: they count as octets, and
//! not as characters or bits, as in PostgreSQL.

use crate::udf::{Function, arrays, field, result, texts};
use arrow::array::{ArrayRef, AsArray, Int32Array};
use arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use lineradb_common::sql::SqlType;
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Characters,
    Octets,
    Bits,
}

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let integer =
        |_: &[DataType], _: &[Option<&datafusion::common::ScalarValue>]| Ok(field(DataType::Int32));
    vec![
        Function::coerced("length", text_or_bytes, integer, |a| {
            length(a, Unit::Characters)
        }),
        Function::coerced("char_length", text, integer, |a| {
            length(a, Unit::Characters)
        }),
        Function::coerced("character_length", text, integer, |a| {
            length(a, Unit::Characters)
        }),
        Function::coerced("octet_length", text_or_bytes, integer, |a| {
            length(a, Unit::Octets)
        }),
        Function::coerced("bit_length", text_or_bytes, integer, |a| {
            length(a, Unit::Bits)
        }),
    ]
}

fn text(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Null] => {
            Ok(vec![DataType::Utf8View])
        }
        _ => plan_err!("function length does not exist for these argument types: {types:?}"),
    }
}

fn text_or_bytes(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [DataType::Binary | DataType::BinaryView | DataType::LargeBinary] => {
            Ok(vec![DataType::Binary])
        }
        _ => text(types),
    }
}

fn length(args: &ScalarFunctionArgs, unit: Unit) -> Result<ColumnarValue> {
    let array = arrays(args)?.remove(0);
    let in_unit = |octets: usize| match unit {
        Unit::Bits => octets as i32 * 8,
        _ => octets as i32,
    };
    let out: Int32Array = if let Some(values) = array.as_binary_opt::<i32>() {
        values.iter().map(|v| v.map(|v| in_unit(v.len()))).collect()
    } else {
        let blanks = |s: &str| match args.arg_fields.first().map(|f| SqlType::from_field(f)) {
            Some(SqlType::Char(n)) if unit == Unit::Octets => {
                (n as usize).saturating_sub(s.chars().count())
            }
            _ => 0,
        };
        let measured = |s: &str| match unit {
            Unit::Characters => s.chars().count() as i32,
            _ => in_unit(s.len() + blanks(s)),
        };
        texts(&array)?.iter().map(|v| v.map(measured)).collect()
    };
    let out: ArrayRef = Arc::new(out);
    result(args, out)
}
