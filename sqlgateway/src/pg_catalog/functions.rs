//! The functions of `pg_catalog` that look things up, as DataFusion functions
//! bound to one statement's catalog and settings. What each one answers stands in
//! `function_list`.

use super::function_list::{FUNCTIONS, Function};
use super::objects::Objects;
use crate::error::SqlError;
use crate::query::errors::carry;
use crate::settings::{SetRequests, Settings};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result as FusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, Volatility,
};
use lineradb_common::sql::{Datum, DatumArrayBuilder, SqlType, ValueError, ValueResult, datum_at};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

/// What a function sees.
pub struct Lookup {
    /// The catalog by OID.
    pub objects: Arc<Objects>,
    /// The session's settings.
    pub settings: Arc<Settings>,
    /// Where `set_config` leaves what it is asked for.
    pub set_requests: Arc<SetRequests>,
}

/// The functions of one statement.
pub fn bind(lookup: &Arc<Lookup>) -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS
        .iter()
        .map(|function| {
            Arc::new(ScalarUDF::from(Bound {
                function,
                lookup: Arc::clone(lookup),
            }))
        })
        .collect()
}

/// A function and what it sees.
struct Bound {
    function: &'static Function,
    lookup: Arc<Lookup>,
}

static STABLE: LazyLock<Signature> = LazyLock::new(|| signature(Volatility::Stable));
static VOLATILE: LazyLock<Signature> = LazyLock::new(|| signature(Volatility::Volatile));

fn signature(volatility: Volatility) -> Signature {
    let arguments = vec![TypeSignature::Nullary, TypeSignature::VariadicAny];
    Signature::one_of(arguments, volatility)
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.function.name)
    }
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        self.function.name == other.function.name && Arc::ptr_eq(&self.lookup, &other.lookup)
    }
}

impl Eq for Bound {}

impl Hash for Bound {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name.hash(state);
    }
}

impl ScalarUDFImpl for Bound {
    fn name(&self) -> &str {
        self.function.name
    }

    fn signature(&self) -> &Signature {
        // Called when the statement runs, not when it is planned.
        match self.function.name {
            "set_config" => &VOLATILE,
            _ => &STABLE,
        }
    }

    fn return_type(&self, _arguments: &[DataType]) -> FusionResult<DataType> {
        Ok(self.function.returns.arrow_type())
    }

    fn return_field_from_args(&self, _arguments: ReturnFieldArgs<'_>) -> FusionResult<FieldRef> {
        let name = self.function.name;
        Ok(Arc::new(self.function.returns.field(name, true)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> FusionResult<ColumnarValue> {
        let external = |error: ValueError| carry(SqlError::from(error));
        let constant = arguments
            .args
            .iter()
            .all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { arguments.number_rows };
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let types: Vec<SqlType> = arguments
            .arg_fields
            .iter()
            .map(|field| SqlType::from_field(field))
            .collect();
        let mut out = DatumArrayBuilder::new(self.function.returns, rows);
        let mut values = Vec::with_capacity(arrays.len());
        for row in 0..rows {
            values.clear();
            for (array, sql_type) in arrays.iter().zip(&types) {
                values.push(datum_at(array.as_ref(), row, *sql_type).map_err(external)?);
            }
            let datum = if self.function.strict && values.iter().any(Datum::is_null) {
                Datum::Null
            } else {
                self.call(&values).map_err(external)?
            };
            out.push(&datum).map_err(external)?;
        }
        let array = out.finish();
        if constant {
            let scalar = datafusion::common::ScalarValue::try_from_array(&array, 0)?;
            return Ok(ColumnarValue::Scalar(scalar));
        }
        Ok(ColumnarValue::Array(array))
    }
}

impl Bound {
    fn call(&self, values: &[Datum]) -> ValueResult<Datum> {
        (self.function.body)(&self.lookup, values).map_err(|mut error| {
            if error.sqlstate == "0A000" {
                error.message = format!("{}() is not supported yet", self.function.name);
            }
            error
        })
    }
}
