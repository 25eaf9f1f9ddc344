//! How a function fails: with the SQLSTATE that PostgreSQL gives.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

/// An error of evaluation that already knows its SQLSTATE. It travels inside
/// `DataFusionError::External`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct FunctionError {
    /// Five characters, as PostgreSQL's.
    pub sqlstate: &'static str,
    /// For the user.
    pub message: String,
}

impl FunctionError {
    /// An error with any SQLSTATE.
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            sqlstate,
            message: message.into(),
        }
    }

    /// 22003.
    pub fn out_of_range(what: &str) -> Self {
        Self::new("22003", format!("{what} out of range"))
    }

    /// 22012.
    pub fn division_by_zero() -> Self {
        Self::new("22012", "division by zero")
    }

    /// 0A000.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new("0A000", message)
    }

    /// Finds the error that has a SQLSTATE inside what DataFusion and Arrow
    /// wrapped around it.
    pub fn find(error: &DataFusionError) -> Option<&Self> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        // The chain is as long as the wrapping is deep; it has an end.
        while let Some(current) = next {
            if let Some(found) = current.downcast_ref::<Self>() {
                return Some(found);
            }
            next = match current.downcast_ref::<DataFusionError>() {
                Some(DataFusionError::External(inner)) => Some(inner.as_ref()),
                Some(DataFusionError::Context(_, inner)) => Some(inner.as_ref()),
                Some(DataFusionError::Diagnostic(_, inner)) => Some(inner.as_ref()),
                Some(DataFusionError::Shared(inner)) => Some(inner.as_ref()),
                Some(DataFusionError::ArrowError(inner, _)) => Some(inner.as_ref()),
                Some(DataFusionError::Collection(errors)) => {
                    return errors.iter().find_map(Self::find);
                }
                _ => match current.downcast_ref::<ArrowError>() {
                    Some(ArrowError::ExternalError(inner)) => Some(inner.as_ref()),
                    _ => current.source(),
                },
            };
        }
        None
    }
}

impl From<FunctionError> for DataFusionError {
    fn from(error: FunctionError) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<FunctionError> for ArrowError {
    fn from(error: FunctionError) -> Self {
        ArrowError::ExternalError(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sqlstate_is_found_through_wrappers() {
        let error: DataFusionError = FunctionError::division_by_zero().into();
        let error = DataFusionError::Context("x".into(), Box::new(error));
        let error = DataFusionError::Shared(std::sync::Arc::new(error));
        assert_eq!(
            FunctionError::find(&error).map(|e| e.sqlstate),
            Some("22012")
        );
        assert!(FunctionError::find(&DataFusionError::Internal("x".into())).is_none());
    }
}
