//! Functions that look at the session, the clock or the catalog. They are made
//! for one statement, with what they answer inside; a statement that calls one
//! is planned anew each time.

use super::context::QueryContext;
use super::errors::carry;
use super::identifiers::{
    BaseName, format_type, identifiers_in, identifiers_out, oids, type_by_name,
};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, ListArray, StringViewArray};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use lineradb_common::random;
use lineradb_common::sql::{Datum, SqlType};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Body = Arc<dyn Fn(&ScalarFunctionArgs) -> Result<ColumnarValue> + Send + Sync>;

/// A function with a closure for a body.
pub struct Closure {
    name: String,
    signature: Signature,
    returns: SqlType,
    body: Body,
    /// The whole answer, when it does not depend on arguments.
    constant: Option<ScalarValue>,
}

impl fmt::Debug for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closure")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Closure {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.constant == other.constant
    }
}

impl Eq for Closure {}

impl Hash for Closure {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Closure {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns.arrow_type())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(self.returns.field(&self.name, true)))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.to_vec())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        (self.body)(&args)
    }

    fn simplify(&self, args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(match &self.constant {
            Some(value) => ExprSimplifyResult::Simplified(Expr::Literal(value.clone(), None)),
            None => ExprSimplifyResult::Original(args),
        })
    }
}

/// A function of any arguments; the body gets them as they come.
pub fn function(
    name: &str,
    returns: SqlType,
    volatility: Volatility,
    body: impl Fn(&ScalarFunctionArgs) -> Result<ColumnarValue> + Send + Sync + 'static,
) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(Closure {
        name: name.to_owned(),
        signature: Signature::one_of(
            vec![
                datafusion::logical_expr::TypeSignature::Nullary,
                datafusion::logical_expr::TypeSignature::VariadicAny,
            ],
            volatility,
        ),
        returns,
        body: Arc::new(body),
        constant: None,
    }))
}

/// A function with one answer.
pub fn constant(name: &str, returns: SqlType, value: ScalarValue) -> Arc<ScalarUDF> {
    let answer = value.clone();
    Arc::new(ScalarUDF::new_from_impl(Closure {
        name: name.to_owned(),
        signature: Signature::one_of(
            vec![
                datafusion::logical_expr::TypeSignature::Nullary,
                datafusion::logical_expr::TypeSignature::VariadicAny,
            ],
            Volatility::Immutable,
        ),
        returns,
        body: Arc::new(move |_| Ok(ColumnarValue::Scalar(answer.clone()))),
        constant: Some(value),
    }))
}

fn text(value: impl Into<String>) -> ScalarValue {
    ScalarValue::Utf8View(Some(value.into()))
}

/// Maps each row of the first argument, given as text.
fn map_text(
    args: &ScalarFunctionArgs,
    f: impl Fn(&str) -> Result<Option<String>>,
) -> Result<ColumnarValue> {
    let rows = rows(args);
    let Some(first) = args.args.first() else {
        return Err(carry(SqlError::new("42883", "an argument is missing")));
    };
    let array = first.clone().into_array(rows)?;
    let array = arrow::compute::cast(&array, &DataType::Utf8View)?;
    let mut out = Vec::with_capacity(array.len());
    for value in array.as_string_view() {
        out.push(match value {
            Some(value) => f(value)?,
            None => None,
        });
    }
    finish(args, Arc::new(StringViewArray::from_iter(out)))
}

pub(super) fn rows(args: &ScalarFunctionArgs) -> usize {
    let all = args
        .args
        .iter()
        .all(|a| matches!(a, ColumnarValue::Scalar(_)));
    if all { 1 } else { args.number_rows }
}

pub(super) fn finish(args: &ScalarFunctionArgs, array: ArrayRef) -> Result<ColumnarValue> {
    let all = args
        .args
        .iter()
        .all(|a| matches!(a, ColumnarValue::Scalar(_)));
    if all && !args.args.is_empty() {
        Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(
            &array, 0,
        )?))
    } else {
        Ok(ColumnarValue::Array(array))
    }
}

/// True for functions whose answer is folded into the plan.
pub fn depends_on_statement(name: &str) -> bool {
    !matches!(
        name,
        "gen_random_uuid" | "uuid_generate_v4" | "pg_typeof" | "version"
    )
}

/// The function of that name for one statement.
pub fn session_function(name: &str, context: &QueryContext) -> Option<Arc<ScalarUDF>> {
    let settings = &context.settings;
    let now = settings.transaction_time_us;
    let zoned = |t: i64| ScalarValue::TimestampMicrosecond(Some(t), Some("UTC".into()));
    let local = |t: i64| -> Option<i64> {
        match Datum::TimestampTz(t).cast(SqlType::Timestamp, &settings.time_zone) {
            Ok(Datum::Timestamp(t)) => Some(t),
            _ => None,
        }
    };
    let none = |t: SqlType| ScalarValue::try_from(&t.arrow_type()).unwrap_or(ScalarValue::Null);
    let name_value = |n: &str| constant(name, SqlType::Name, text(n));
    Some(match name {
        "now" | "current_timestamp" | "transaction_timestamp" => {
            constant(name, SqlType::TimestampTz, zoned(now))
        }
        "statement_timestamp" | "clock_timestamp" => constant(
            name,
            SqlType::TimestampTz,
            zoned(settings.statement_time_us),
        ),
        "localtimestamp" => constant(
            name,
            SqlType::Timestamp,
            ScalarValue::TimestampMicrosecond(local(now), None),
        ),
        "current_date" => constant(
            name,
            SqlType::Date,
            ScalarValue::Date32(local(now).map(|t| t.div_euclid(86_400_000_000) as i32)),
        ),
        "localtime" => constant(
            name,
            SqlType::Time,
            ScalarValue::Time64Microsecond(local(now).map(|t| t.rem_euclid(86_400_000_000))),
        ),
        "current_user" | "user" | "session_user" | "current_role" => name_value(&settings.user),
        "current_database" | "current_catalog" => name_value(&settings.database),
        "current_schema" => {
            let found = settings
                .search_path
                .iter()
                .find(|s| context.catalog.schema(s).is_some() || s.as_str() == "public");
            match found {
                Some(schema) => name_value(schema),
                None => constant(name, SqlType::Name, ScalarValue::Utf8View(None)),
            }
        }
        "current_schemas" => {
            let path = settings.search_path.clone();
            function(
                name,
                SqlType::Array(SqlType::Text.oid()),
                Volatility::Immutable,
                move |args| {
                    let implicit = matches!(
                        args.args.first(),
                        Some(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))))
                    );
                    let mut names: Vec<Option<&str>> = Vec::new();
                    if implicit {
                        names.push(Some("pg_catalog"));
                    }
                    names.extend(path.iter().map(|s| Some(s.as_str())));
                    let values: ArrayRef = Arc::new(StringViewArray::from_iter(names));
                    let DataType::List(field) = SqlType::Array(SqlType::Text.oid()).arrow_type()
                    else {
                        return Err(carry(SqlError::internal("no list type")));
                    };
                    let offsets = arrow::buffer::OffsetBuffer::from_lengths([values.len()]);
                    let list = ListArray::try_new(field, offsets, values, None)?;
                    Ok(ColumnarValue::Scalar(ScalarValue::List(Arc::new(list))))
                },
            )
        }
        "version" => constant(name, SqlType::Text, text(version(context))),
        "pg_backend_pid" => {
            let pid = settings.show("backend_pid").and_then(|p| p.parse().ok());
            constant(
                name,
                SqlType::Int4,
                ScalarValue::Int32(Some(pid.unwrap_or(0))),
            )
        }
        "pg_is_in_recovery" => constant(name, SqlType::Bool, ScalarValue::Boolean(Some(false))),
        "pg_postmaster_start_time" | "pg_conf_load_time" => {
            constant(name, SqlType::TimestampTz, zoned(0))
        }
        "inet_server_addr" | "inet_client_addr" => {
            constant(name, SqlType::Text, none(SqlType::Text))
        }
        "inet_server_port" | "inet_client_port" => {
            constant(name, SqlType::Int4, none(SqlType::Int4))
        }
        "current_setting" => {
            let settings = settings.clone();
            function(name, SqlType::Text, Volatility::Immutable, move |args| {
                let missing_ok = matches!(
                    args.args.get(1),
                    Some(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))))
                );
                map_text(args, |n| match settings.show(n) {
                    Some(value) => Ok(Some(value)),
                    None if missing_ok => Ok(None),
                    None => Err(carry(SqlError::new(
                        "42704",
                        format!("unrecognized configuration parameter \"{n}\""),
                    ))),
                })
            })
        }
        "pg_typeof" => function(name, SqlType::Text, Volatility::Immutable, |args| {
            let found =
                args.arg_fields
                    .first()
                    .map_or("unknown".to_owned(), |f| match f.data_type() {
                        DataType::Null => "unknown".to_owned(),
                        _ => SqlType::from_field(f).base_name(),
                    });
            Ok(ColumnarValue::Scalar(text(found)))
        }),
        "gen_random_uuid" | "uuid_generate_v4" => {
            function(name, SqlType::Uuid, Volatility::Volatile, |args| {
                let values: Vec<[u8; 16]> = (0..args.number_rows)
                    .map(|_| *random::uuid().as_bytes())
                    .collect();
                let array = FixedSizeBinaryArray::try_from_iter(values.into_iter())?;
                Ok(ColumnarValue::Array(Arc::new(array)))
            })
        }
        "pg_table_is_visible"
        | "pg_type_is_visible"
        | "pg_function_is_visible"
        | "pg_operator_is_visible"
        | "pg_opclass_is_visible"
        | "pg_collation_is_visible"
        | "pg_statistics_obj_is_visible"
        | "has_table_privilege"
        | "has_schema_privilege"
        | "has_database_privilege"
        | "has_column_privilege"
        | "has_any_column_privilege"
        | "has_function_privilege"
        | "has_sequence_privilege"
        | "has_type_privilege"
        | "has_language_privilege"
        | "has_tablespace_privilege"
        | "pg_has_role" => constant(name, SqlType::Bool, ScalarValue::Boolean(Some(true))),
        "pg_relation_is_publishable" | "pg_is_other_temp_schema" => {
            constant(name, SqlType::Bool, ScalarValue::Boolean(Some(false)))
        }
        "obj_description"
        | "col_description"
        | "shobj_description"
        | "pg_get_viewdef"
        | "pg_get_partkeydef"
        | "pg_get_serial_sequence"
        | "pg_get_statisticsobjdef_columns"
        | "pg_tablespace_location"
        | "pg_get_function_result"
        | "pg_get_function_arguments" => constant(name, SqlType::Text, none(SqlType::Text)),
        "pg_get_userbyid" => name_value("lineradb"),
        "pg_encoding_to_char" => name_value("UTF8"),
        "pg_get_expr" => function(name, SqlType::Text, Volatility::Immutable, |args| {
            map_text(args, |t| Ok(Some(t.to_owned())))
        }),
        "pg_total_relation_size"
        | "pg_relation_size"
        | "pg_table_size"
        | "pg_indexes_size"
        | "pg_database_size" => constant(name, SqlType::Int8, ScalarValue::Int64(Some(0))),
        "pg_size_pretty" => function(name, SqlType::Text, Volatility::Immutable, |args| {
            map_text(args, |t| Ok(Some(format!("{t} bytes"))))
        }),
        "format_type" => function(name, SqlType::Text, Volatility::Immutable, format_type),
        "pg_regclass_in" => {
            let context = context.clone();
            identifiers_in(name, move |n| {
                context
                    .virtual_tables
                    .relation_oid(&context, n)
                    .ok_or_else(|| SqlError::undefined_table(n))
            })
        }
        "to_regclass" => {
            let context = context.clone();
            function(name, SqlType::Oid, Volatility::Immutable, move |args| {
                oids(args, |n| {
                    Ok(context.virtual_tables.relation_oid(&context, n))
                })
            })
        }
        "pg_regtype_in" => identifiers_in(name, |n| {
            let bare = n.strip_prefix("pg_catalog.").unwrap_or(n);
            type_by_name(bare)
                .map(SqlType::oid)
                .ok_or_else(|| SqlError::new("42704", format!("type \"{n}\" does not exist")))
        }),
        "pg_regnamespace_in" => {
            let context = context.clone();
            identifiers_in(name, move |n| match n {
                "pg_catalog" => Ok(11),
                _ => context.catalog.schema(n).map(|s| s.oid).ok_or_else(|| {
                    SqlError::new("3F000", format!("schema \"{n}\" does not exist"))
                }),
            })
        }
        "pg_regrole_in" => identifiers_in(name, |_| Ok(10)),
        "pg_regproc_in" | "pg_regprocedure_in" => identifiers_in(name, |n| {
            Err(SqlError::new(
                "42883",
                format!("function \"{n}\" does not exist"),
            ))
        }),
        "pg_regclass_out" => {
            let context = context.clone();
            identifiers_out(name, move |oid| {
                context.virtual_tables.relation_name(&context, oid)
            })
        }
        "pg_regtype_out" => identifiers_out(name, |oid| SqlType::from_oid(oid).map(SqlType::name)),
        "pg_regnamespace_out" => {
            let context = context.clone();
            identifiers_out(name, move |oid| match oid {
                11 => Some("pg_catalog".into()),
                _ => context
                    .catalog
                    .schemas()
                    .find(|s| s.oid == oid)
                    .map(|s| s.name.clone()),
            })
        }
        "pg_regrole_out" => identifiers_out(name, |_| Some("lineradb".into())),
        "pg_regproc_out" | "pg_regprocedure_out" => {
            identifiers_out(name, |oid| (oid == 0).then(|| "-".into()))
        }
        _ => return None,
    })
}

fn version(context: &QueryContext) -> String {
    let number = context
        .settings
        .show("server_version")
        .unwrap_or_else(|| "16.0".into());
    format!(
        "PostgreSQL {number} (LineraDB {})",
        env!("CARGO_PKG_VERSION")
    )
}
