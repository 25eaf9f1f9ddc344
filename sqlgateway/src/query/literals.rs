//! Literals, operators and type names that the engine spells otherwise: numbers with
//! an exponent, intervals of one field, `OPERATOR(...)`, `regclass` and its kin.

use super::rewrite::{call, literal, name_of, take};
use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, DataType, DateTimeField, Expr, FunctionArg, FunctionArgExpr,
    FunctionArguments, Value,
};

/// `1.5e3` without its exponent; what a numeric does not hold is a double.
pub(super) fn plain_number(digits: &str) -> Expr {
    use lineradb_common::sql::Numeric;
    if let Ok(number) = Numeric::parse(digits) {
        let scale = usize::from(number.scale());
        let mantissa = format!("{:0>width$}", number.mantissa(), width = scale + 1);
        let (whole, fraction) = mantissa.split_at(mantissa.len() - scale);
        let text = match fraction {
            // The point alone keeps it a numeric.
            "" => format!("{whole}."),
            _ => format!("{whole}.{fraction}"),
        };
        return Expr::value(Value::Number(text, false));
    }
    Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(Expr::value(Value::SingleQuotedString(digits.to_owned()))),
        data_type: DataType::DoublePrecision,
        array: false,
        format: None,
    }
}

pub(super) fn interval_with_field(value: &str, field: &DateTimeField) -> Result<String> {
    let unit = field.to_string().to_lowercase();
    let known = [
        "year", "month", "day", "hour", "minute", "second", "years", "months", "days", "hours",
        "minutes", "seconds",
    ];
    let number = value.trim();
    let whole = number
        .strip_prefix(['-', '+'])
        .unwrap_or(number)
        .chars()
        .all(|c| c.is_ascii_digit());
    if known.contains(&unit.as_str()) && whole && !number.is_empty() {
        return Ok(format!("{number} {unit}"));
    }
    Err(SqlError::unsupported(format!("INTERVAL '{value}' {field}")))
}

pub(super) fn custom_operator(parts: &[String]) -> Result<BinaryOperator> {
    let Some(symbol) = parts.last() else {
        return Err(SqlError::syntax("empty operator"));
    };
    Ok(match symbol.as_str() {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "%" => BinaryOperator::Modulo,
        "||" => BinaryOperator::StringConcat,
        other => return Err(SqlError::unsupported(format!("operator {other}"))),
    })
}

/// The kind of an object identifier type, by its name.
fn identifier_kind(data_type: &DataType) -> Option<&'static str> {
    let name = match data_type {
        DataType::Regclass => return Some("regclass"),
        DataType::Custom(name, args) if args.is_empty() => name_of(name),
        _ => return None,
    };
    [
        "regclass",
        "regtype",
        "regproc",
        "regprocedure",
        "regnamespace",
        "regrole",
    ]
    .into_iter()
    .find(|k| *k == name)
}

/// Casts to `regclass` and its kin: a text becomes an OID, anything else
/// becomes the object's name.
pub(super) fn object_identifier(inner: &mut Expr, data_type: &DataType) -> Result<Option<Expr>> {
    if let Some(kind) = identifier_kind(data_type) {
        let name = match literal(inner) {
            Some(_) => format!("pg_{kind}_in"),
            None => format!("pg_{kind}_out"),
        };
        return Ok(Some(call(&name, vec![take(inner)])));
    }
    // `x::regclass::oid` is x: undo the inner name.
    if let Expr::Function(f) = inner
        && name_of(&f.name).starts_with("pg_reg")
        && name_of(&f.name).ends_with("_out")
        && !matches!(
            super::types::sql_type_of(data_type),
            Ok(t) if t.is_text()
        )
        && let FunctionArguments::List(list) = &f.args
        && let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = list.args.as_slice()
    {
        return Ok(Some(Expr::Cast {
            kind: CastKind::DoubleColon,
            expr: Box::new(argument.clone()),
            data_type: data_type.clone(),
            array: false,
            format: None,
        }));
    }
    Ok(None)
}
