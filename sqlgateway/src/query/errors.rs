//! From DataFusion's and Arrow's errors to SQLSTATEs.
//!
//! Where an error carries its SQLSTATE (our functions, the transaction layer)
//! that is used; else its structure is; the text is the last resort. Internal
//! text (backtraces, rule names, "This feature is not implemented") is removed.

use super::subqueries::REWRITTEN;
use crate::error::SqlError;
use arrow::error::ArrowError;
use datafusion::common::{SchemaError, TableReference};
use datafusion::error::DataFusionError;
use lineradb_functions::FunctionError;

/// Carries a [`SqlError`] through DataFusion.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Carried(pub SqlError);

/// A [`SqlError`] as DataFusion carries it.
pub fn carry(error: impl Into<SqlError>) -> DataFusionError {
    DataFusionError::External(Box::new(Carried(error.into())))
}

/// What the user is told about an error of planning or execution.
pub fn sql_error(error: DataFusionError) -> SqlError {
    classify(&error)
}

/// See [`sql_error`].
pub fn classify(error: &DataFusionError) -> SqlError {
    if let Some(carried) = find_carried(error) {
        return carried.clone();
    }
    if let Some(found) = FunctionError::find(error) {
        return SqlError::new(found.sqlstate, found.message.clone());
    }
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            classify(inner)
        }
        DataFusionError::Shared(inner) => classify(inner),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => classify(first),
            None => SqlError::internal("empty error"),
        },
        DataFusionError::ArrowError(inner, _) => arrow_error(inner),
        DataFusionError::External(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => classify(inner),
            None => match inner.downcast_ref::<ArrowError>() {
                Some(inner) => arrow_error(inner),
                None => SqlError::internal(inner.to_string()),
            },
        },
        DataFusionError::SchemaError(inner, _) => schema_error(inner),
        DataFusionError::SQL(inner, _) => SqlError::syntax(clean(&inner.to_string())),
        DataFusionError::NotImplemented(text) => not_implemented(text),
        DataFusionError::ResourcesExhausted(text) => {
            SqlError::new("53200", format!("out of memory: {}", clean(text)))
        }
        DataFusionError::Plan(text) => planning(text),
        DataFusionError::Execution(text) => execution(text),
        DataFusionError::Internal(text) => SqlError::internal(clean(text)),
        other => SqlError::internal(clean(&other.strip_backtrace())),
    }
}

fn find_carried(error: &DataFusionError) -> Option<&SqlError> {
    match error {
        DataFusionError::External(inner) => {
            if let Some(carried) = inner.downcast_ref::<Carried>() {
                return Some(&carried.0);
            }
            find_carried(inner.downcast_ref::<DataFusionError>()?)
        }
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            find_carried(inner)
        }
        DataFusionError::Shared(inner) => find_carried(inner),
        DataFusionError::Collection(errors) => errors.iter().find_map(find_carried),
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::ExternalError(inner) => match inner.downcast_ref::<Carried>() {
                Some(carried) => Some(&carried.0),
                None => find_carried(inner.downcast_ref::<DataFusionError>()?),
            },
            _ => None,
        },
        _ => None,
    }
}

fn arrow_error(error: &ArrowError) -> SqlError {
    match error {
        ArrowError::DivideByZero => SqlError::new("22012", "division by zero"),
        ArrowError::ArithmeticOverflow(_) => SqlError::new("22003", "value out of range"),
        ArrowError::CastError(text) => SqlError::new("22P02", clean(text)),
        ArrowError::ParseError(text) => SqlError::new("22P02", clean(text)),
        ArrowError::NotYetImplemented(text) => SqlError::new("0A000", clean(text)),
        ArrowError::ExternalError(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => classify(inner),
            None => SqlError::internal(inner.to_string()),
        },
        ArrowError::InvalidArgumentError(text) if text.contains("too large to store") => {
            SqlError::new("22003", "numeric field overflow")
        }
        ArrowError::ComputeError(text) => execution(text),
        other => execution(&other.to_string()),
    }
}

fn schema_error(error: &SchemaError) -> SqlError {
    match error {
        SchemaError::FieldNotFound {
            field,
            valid_fields,
        } => {
            let made_here = |t: &TableReference| t.table() == REWRITTEN;
            if field.relation.as_ref().is_some_and(made_here) {
                // Of our own making: DataFusion lost it on the way.
                return SqlError::unsupported("this form of a correlated subquery");
            }
            if let Some(table) = &field.relation
                && !valid_fields.is_empty()
                && !valid_fields.iter().any(|f| {
                    f.relation
                        .as_ref()
                        .is_some_and(|r| r.table() == table.table())
                })
            {
                return SqlError::new(
                    "42P01",
                    format!("missing FROM-clause entry for table \"{}\"", table.table()),
                );
            }
            let name = match &field.relation {
                Some(table) => format!("{}.{}", table.table(), field.name),
                None => field.name.clone(),
            };
            match &field.relation {
                Some(_) => SqlError::new("42703", format!("column {name} does not exist")),
                None => SqlError::undefined_column(name),
            }
        }
        SchemaError::AmbiguousReference { field } => SqlError::new(
            "42702",
            format!("column reference \"{}\" is ambiguous", field.name),
        ),
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => SqlError::new(
            "42701",
            format!("column \"{name}\" specified more than once"),
        ),
    }
}

/// What the coercion of `op ANY (x)` says of an `x` that is no array.
const NO_ARRAY: &str = "requires array on right side";

/// Messages of planning that say what is wrong only in words.
fn planning(text: &str) -> SqlError {
    let text = clean(text);
    let lower = text.to_lowercase();
    if lower.contains(NO_ARRAY) {
        return SqlError::new("42809", "op ANY/ALL (array) requires array on right side");
    }
    let state = if lower.contains("invalid function")
        || lower.contains("does not exist")
        || lower.contains("failed to coerce arguments")
        || lower.contains("no function matches")
        || lower.contains("coercion from")
        || lower.contains("cannot infer common")
        || lower.contains("cannot coerce arithmetic")
        || lower.contains("failed to match any signature")
        || lower.contains("cannot be evaluated with")
    {
        "42883"
    } else if lower.contains("table") && lower.contains("not found") {
        "42P01"
    } else if lower.contains("specified more than once")
        || lower.contains("projections require unique expression names")
    {
        "42P12"
    } else if lower.contains("must appear in the group by")
        || lower.contains("must be in group by")
        || lower.contains("could not be resolved from available columns")
        || lower.contains("non-aggregate values")
        || lower.contains("aggregate functions are not allowed")
    {
        "42803"
    } else if lower.contains("same number of columns")
        || lower.contains("must have the same number")
        || lower.contains("schema has different number")
        || lower.contains("should only return one column")
        || lower.contains("only one column")
        || lower.contains("too many columns")
    {
        "42601"
    } else if lower.contains("physical plan does not support")
        || lower.contains("correlated")
        || lower.contains("subquery")
        || lower.contains("unsupported")
        || lower.contains("not supported")
    {
        "0A000"
    } else if lower.contains("placeholder") {
        "42P18"
    } else if lower.contains("window function") {
        "42P20"
    } else if lower.contains("cast") || lower.contains("type") {
        "42804"
    } else {
        "42601"
    };
    SqlError::new(state, text)
}

/// What DataFusion does not have, without its way of writing expressions.
fn not_implemented(text: &str) -> SqlError {
    let text = clean(text);
    if !text.starts_with("Physical plan does not support logical expression") {
        return SqlError::new("0A000", text);
    }
    SqlError::unsupported(match text.contains("OuterReferenceColumn") {
        true => "this form of a correlated subquery",
        false => "a subquery in this place",
    })
}

/// Messages of execution that say what is wrong only in words.
fn execution(text: &str) -> SqlError {
    let text = clean(text);
    let lower = text.to_lowercase();
    let (state, message) = if lower.contains("divide by zero") {
        ("22012", "division by zero".to_owned())
    } else if lower.contains("overflow") || lower.contains("out of range") {
        ("22003", text)
    } else if lower.contains("scalar subquery returned more than one row")
        || lower.contains("more than one row")
    {
        (
            "21000",
            "more than one row returned by a subquery used as an expression".to_owned(),
        )
    } else if lower.contains("regular expression") || lower.contains("regex") {
        ("2201B", text)
    } else if lower.contains("cast") || lower.contains("parse") || lower.contains("convert") {
        ("22P02", text)
    } else if lower.contains("not implemented") || lower.contains("not supported") {
        ("0A000", text)
    } else if lower.contains("invalid") || lower.contains("must be") {
        ("22023", text)
    } else {
        ("XX000", text)
    };
    SqlError::new(state, message)
}

/// Without what only developers read.
fn clean(text: &str) -> String {
    let mut text = text;
    if let Some(at) = text.find("\n\nbacktrace:") {
        text = &text[..at];
    }
    for prefix in [
        "This feature is not implemented: ",
        "Error during planning: ",
        "Execution error: ",
        "Arrow error: ",
        "Internal error: ",
        "sql parser error: ",
        "ParserError(\"",
        "Compute error: ",
        "Cast error: ",
        "Parser error: ",
    ] {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    let text = match text.find("This issue was likely caused by a bug in DataFusion") {
        Some(at) => &text[..at],
        None => text,
    };
    text.replace('\u{1}', "")
        .trim_end_matches(".\n")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::common::Column;

    #[test]
    fn a_carried_error_comes_out_whole() {
        let error = carry(SqlError::undefined_table("t")).context("while planning");
        assert_eq!(sql_error(error).sqlstate, "42P01");
    }

    #[test]
    fn structure_decides_before_text() {
        let missing = DataFusionError::SchemaError(
            Box::new(SchemaError::FieldNotFound {
                field: Box::new(Column::from_name("x")),
                valid_fields: vec![],
            }),
            Box::new(None),
        );
        let error = sql_error(missing);
        assert_eq!(error.sqlstate, "42703");
        assert_eq!(error.message, "column \"x\" does not exist");
        let zero = DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None);
        assert_eq!(sql_error(zero).sqlstate, "22012");
    }

    #[test]
    fn developers_text_is_removed() {
        let error = sql_error(DataFusionError::NotImplemented("x\n\nbacktrace: y".into()));
        assert_eq!(
            (error.sqlstate.as_str(), error.message.as_str()),
            ("0A000", "x")
        );
    }
}
