//! A scalar function made of plain function pointers, so that a family of
//! small functions needs no type each.

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, StringViewArray};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{ScalarValue, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, Volatility,
};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Types of the arguments after coercion.
pub type Coerce = fn(&[DataType]) -> Result<Vec<DataType>>;
/// Type of the result.
pub type Returns = fn(&[DataType], &[Option<&ScalarValue>]) -> Result<FieldRef>;
/// The body.
pub type Invoke = fn(&ScalarFunctionArgs) -> Result<ColumnarValue>;

/// A scalar function by function pointers; two are the same when their names
/// are.
#[derive(Debug, Clone)]
pub struct Function {
    name: &'static str,
    aliases: Vec<String>,
    signature: Signature,
    coerce: Option<Coerce>,
    returns: Returns,
    invoke: Invoke,
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl Function {
    /// A function that decides the types of its arguments itself.
    pub fn coerced(
        name: &'static str,
        coerce: Coerce,
        returns: Returns,
        invoke: Invoke,
    ) -> Arc<ScalarUDF> {
        Arc::new(ScalarUDF::new_from_impl(Self {
            name,
            aliases: Vec::new(),
            signature: Signature::user_defined(Volatility::Immutable),
            coerce: Some(coerce),
            returns,
            invoke,
        }))
    }

    /// A function with one of a few exact lists of argument types.
    pub fn exact(
        name: &'static str,
        aliases: &[&str],
        argument_types: Vec<Vec<DataType>>,
        returns: Returns,
        invoke: Invoke,
    ) -> Arc<ScalarUDF> {
        let signatures: Vec<TypeSignature> = argument_types
            .into_iter()
            .map(|types| {
                if types.is_empty() {
                    TypeSignature::Nullary
                } else {
                    TypeSignature::Exact(types)
                }
            })
            .collect();
        Arc::new(ScalarUDF::new_from_impl(Self {
            name,
            aliases: aliases.iter().map(|s| (*s).to_owned()).collect(),
            signature: Signature::one_of(signatures, Volatility::Immutable),
            coerce: None,
            returns,
            invoke,
        }))
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let none = vec![None; arg_types.len()];
        Ok((self.returns)(arg_types, &none)?.data_type().clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<DataType> = args
            .arg_fields
            .iter()
            .map(|f| f.data_type().clone())
            .collect();
        (self.returns)(&types, args.scalar_arguments)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match self.coerce {
            Some(coerce) => coerce(arg_types),
            None => Ok(arg_types.to_vec()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        (self.invoke)(&args)
    }
}

/// A nullable result field without a name.
pub fn field(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("", data_type, true))
}

/// True when every argument is a constant: the result then is one too.
pub fn all_scalar(args: &ScalarFunctionArgs) -> bool {
    args.args
        .iter()
        .all(|a| matches!(a, ColumnarValue::Scalar(_)))
}

/// The arguments as arrays: of length one when all are constants.
pub fn arrays(args: &ScalarFunctionArgs) -> Result<Vec<ArrayRef>> {
    let rows = if all_scalar(args) {
        1
    } else {
        args.number_rows
    };
    args.args
        .iter()
        .map(|a| a.clone().into_array(rows))
        .collect()
}

/// The values of an array of a known type.
///
/// # Errors
/// When a plan was made with other types: never a panic.
pub fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef) -> Result<&PrimitiveArray<T>> {
    match array.as_primitive_opt::<T>() {
        Some(values) => Ok(values),
        None => internal_err!("expected {}, got {}", T::DATA_TYPE, array.data_type()),
    }
}

/// The texts of an array.
///
/// # Errors
/// When a plan was made with other types.
pub fn texts(array: &ArrayRef) -> Result<&StringViewArray> {
    match array.as_string_view_opt() {
        Some(values) => Ok(values),
        None => internal_err!("expected a text, got {}", array.data_type()),
    }
}

/// The counterpart of [`arrays`]: a constant result for constant arguments.
pub fn result(args: &ScalarFunctionArgs, array: ArrayRef) -> Result<ColumnarValue> {
    if all_scalar(args) && array.len() == 1 {
        Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(
            &array, 0,
        )?))
    } else {
        Ok(ColumnarValue::Array(array))
    }
}
