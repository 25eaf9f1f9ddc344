//! Why a value was refused, with PostgreSQL's code for it.

/// A value that cannot be what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ValueError {
    /// Five characters, as in PostgreSQL's appendix A.
    pub sqlstate: &'static str,
    /// For people; PostgreSQL's wording where there is one.
    pub message: String,
}

/// Result of value operations.
pub type ValueResult<T> = std::result::Result<T, ValueError>;

impl ValueError {
    /// An error with a code.
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        ValueError {
            sqlstate,
            message: message.into(),
        }
    }

    /// 22P02: text that is no value of the type.
    pub fn syntax(type_name: &str, text: &str) -> Self {
        Self::new(
            "22P02",
            format!("invalid input syntax for type {type_name}: \"{text}\""),
        )
    }

    /// 22003: a number that does not fit.
    pub fn out_of_range(type_name: &str) -> Self {
        Self::new("22003", format!("{type_name} out of range"))
    }

    /// XX001: stored bytes that do not decode.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new("XX001", message)
    }
}
