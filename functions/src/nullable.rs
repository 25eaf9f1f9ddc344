//! `pg_nullable(x)` is `x` as a computed value: possibly NULL, and no longer the
//! column of a table. DataFusion takes what a schema says about NULLs for a
//! promise, and wants the columns of a UNION to say the same. `pg_untagged(x)` is `x`
//! without the name of its type as well: what varchars and texts have in common.

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use std::sync::Arc;

/// Key of the field metadata that says which column of which table a value is.
pub const ORIGIN_METADATA_KEY: &str = "lineradb.origin";

/// The function that keeps the name of the type.
pub const NAME: &str = "pg_nullable";
/// The one that does not.
pub const UNTAGGED: &str = "pg_untagged";

#[derive(Debug, PartialEq, Eq, Hash)]
struct Nullable {
    name: &'static str,
    signature: Signature,
}

pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name| {
        Arc::new(ScalarUDF::new_from_impl(Nullable {
            name,
            signature: Signature::any(1, Volatility::Immutable),
        }))
    };
    vec![function(NAME), function(UNTAGGED)]
}

impl ScalarUDFImpl for Nullable {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [one] => Ok(one.clone()),
            _ => plan_err!("pg_nullable takes one argument"),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        match args.arg_fields {
            [one] => {
                let mut field = one.as_ref().clone().with_nullable(true);
                match self.name {
                    UNTAGGED => field.metadata_mut().clear(),
                    _ => _ = field.metadata_mut().remove(ORIGIN_METADATA_KEY),
                }
                Ok(Arc::new(field))
            }
            _ => plan_err!("pg_nullable takes one argument"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.into_iter().next() {
            Some(value) => Ok(value),
            None => plan_err!("pg_nullable takes one argument"),
        }
    }
}
