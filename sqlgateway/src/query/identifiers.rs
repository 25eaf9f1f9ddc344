//! Types by name and by OID, and object identifiers from and to their names.

use super::errors::carry;
use super::functions::{finish, function, rows};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, StringViewArray, UInt32Array};
use arrow::datatypes::{DataType, UInt32Type};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, Volatility};
use lineradb_common::sql::SqlType;
use std::sync::Arc;

/// A type by any of its names.
pub(super) fn type_by_name(name: &str) -> Option<SqlType> {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;
    let dialect = PostgreSqlDialect {};
    let parsed = Parser::new(&dialect)
        .try_with_sql(name)
        .ok()?
        .parse_data_type()
        .ok()?;
    super::types::sql_type_of(&parsed).ok()
}

pub(super) trait BaseName {
    fn base_name(self) -> String;
}

impl BaseName for SqlType {
    /// The name without modifiers.
    fn base_name(self) -> String {
        match self {
            SqlType::Numeric(_) => "numeric".into(),
            SqlType::Varchar(_) => "character varying".into(),
            SqlType::Char(_) => "character".into(),
            other => other.name(),
        }
    }
}

pub(super) fn format_type(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let rows = rows(args);
    let column = |i: usize, to: &DataType| -> Result<Option<ArrayRef>> {
        match args.args.get(i) {
            Some(a) => Ok(Some(arrow::compute::cast(
                &a.clone().into_array(rows)?,
                to,
            )?)),
            None => Ok(None),
        }
    };
    let Some(oids) = column(0, &DataType::Int64)? else {
        return Err(carry(SqlError::new("42883", "format_type needs a type")));
    };
    let modifiers = column(1, &DataType::Int64)?;
    let mut out = Vec::with_capacity(oids.len());
    let oids = oids.as_primitive::<arrow::datatypes::Int64Type>();
    for row in 0..oids.len() {
        if oids.is_null(row) {
            out.push(None);
            continue;
        }
        let modifier = modifiers.as_ref().map_or(-1, |m| {
            let m = m.as_primitive::<arrow::datatypes::Int64Type>();
            if m.is_null(row) { -1 } else { m.value(row) }
        });
        let oid = u32::try_from(oids.value(row)).unwrap_or(0);
        out.push(Some(match SqlType::from_oid(oid) {
            None => "???".to_owned(),
            Some(t) => with_modifier(t, modifier),
        }));
    }
    finish(args, Arc::new(StringViewArray::from_iter(out)))
}

fn with_modifier(t: SqlType, modifier: i64) -> String {
    if modifier < 4 {
        return t.base_name();
    }
    match t {
        SqlType::Varchar(_) | SqlType::Char(_) => format!("{}({})", t.base_name(), modifier - 4),
        SqlType::Numeric(_) => {
            let m = modifier - 4;
            format!("numeric({},{})", m >> 16, m & 0x7ff)
        }
        other => other.base_name(),
    }
}

pub(super) fn oids(
    args: &ScalarFunctionArgs,
    f: impl Fn(&str) -> Result<Option<u32>>,
) -> Result<ColumnarValue> {
    let Some(first) = args.args.first() else {
        return Err(carry(SqlError::new("42883", "an argument is missing")));
    };
    let array = arrow::compute::cast(&first.clone().into_array(rows(args))?, &DataType::Utf8View)?;
    let mut out = Vec::with_capacity(array.len());
    for value in array.as_string_view() {
        out.push(match value {
            Some(value) => match value.trim().parse::<u32>() {
                Ok(oid) => Some(oid),
                Err(_) => f(value)?,
            },
            None => None,
        });
    }
    finish(args, Arc::new(UInt32Array::from(out)))
}

pub(super) fn identifiers_in(
    name: &str,
    find: impl Fn(&str) -> crate::error::Result<u32> + Send + Sync + 'static,
) -> Arc<ScalarUDF> {
    function(name, SqlType::Oid, Volatility::Immutable, move |args| {
        oids(args, |n| find(n).map(Some).map_err(carry))
    })
}

pub(super) fn identifiers_out(
    name: &str,
    find: impl Fn(u32) -> Option<String> + Send + Sync + 'static,
) -> Arc<ScalarUDF> {
    function(name, SqlType::Text, Volatility::Immutable, move |args| {
        let Some(first) = args.args.first() else {
            return Err(carry(SqlError::new("42883", "an argument is missing")));
        };
        let array = first.clone().into_array(rows(args))?;
        let array = arrow::compute::cast(&array, &DataType::UInt32)?;
        let out: StringViewArray = array
            .as_primitive::<UInt32Type>()
            .iter()
            .map(|v| v.map(|oid| find(oid).unwrap_or_else(|| oid.to_string())))
            .collect();
        finish(args, Arc::new(out))
    })
}
