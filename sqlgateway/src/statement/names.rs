//! Names and types of `sqlparser`'s tree as ours.

use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CharacterLength, DataType, ExactNumberInfo, Ident, ObjectName, TimezoneInfo,
};
use lineradb_common::sql::SqlType;

/// Longest name, as in PostgreSQL; longer ones are cut.
const NAME_BYTES_MAX: usize = 63;

/// A name as PostgreSQL folds it: lower case unless quoted, 63 bytes at most.
pub fn ident(ident: &Ident) -> String {
    let mut name = match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    };
    if name.len() > NAME_BYTES_MAX {
        let mut end = NAME_BYTES_MAX;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
    }
    name
}

/// Schema (when given) and name. A database in front must be ours.
///
/// # Errors
/// 0A000 for another database, 42601 for more parts.
pub fn object_name(name: &ObjectName) -> Result<(Option<String>, String)> {
    let parts = name
        .0
        .iter()
        .map(|part| part.as_ident().map(ident))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| SqlError::syntax(format!("improper qualified name: {name}")))?;
    match &parts[..] {
        [name] => Ok((None, name.clone())),
        [schema, name] => Ok((Some(schema.clone()), name.clone())),
        [database, schema, name] if database == "lineradb" => {
            Ok((Some(schema.clone()), name.clone()))
        }
        [_, _, _] => Err(SqlError::new(
            "0A000",
            format!("cross-database references are not implemented: \"{name}\""),
        )),
        _ => Err(SqlError::syntax(format!(
            "improper qualified name (too many dotted names): {name}"
        ))),
    }
}

/// The SQL type that a type name means.
///
/// # Errors
/// 0A000 for PostgreSQL's types that we do not have, 42704 for others, 22023 for
/// modifiers out of range.
pub fn sql_type(data_type: &DataType) -> Result<SqlType> {
    let length = |l: &Option<CharacterLength>| -> Result<Option<u32>> {
        match l {
            None => Ok(None),
            Some(CharacterLength::IntegerLength { length, .. }) => {
                let n = u32::try_from(*length).unwrap_or(u32::MAX);
                if n == 0 {
                    return Err(SqlError::new("22023", "length for type must be at least 1"));
                }
                if n > 10_485_760 {
                    return Err(SqlError::new(
                        "22023",
                        "length for type cannot exceed 10485760",
                    ));
                }
                Ok(Some(n))
            }
            Some(CharacterLength::Max) => Ok(None),
        }
    };
    Ok(match data_type {
        DataType::Bool | DataType::Boolean => SqlType::Bool,
        DataType::Int2(None) | DataType::SmallInt(None) => SqlType::Int2,
        DataType::Int(None) | DataType::Int4(None) | DataType::Integer(None) => SqlType::Int4,
        DataType::Int8(None) | DataType::BigInt(None) => SqlType::Int8,
        DataType::Real | DataType::Float4 => SqlType::Float4,
        DataType::Float8 | DataType::DoublePrecision => SqlType::Float8,
        DataType::Double(ExactNumberInfo::None) => SqlType::Float8,
        DataType::Float(info) => match info {
            ExactNumberInfo::None => SqlType::Float8,
            ExactNumberInfo::Precision(1..=24) => SqlType::Float4,
            ExactNumberInfo::Precision(25..=53) => SqlType::Float8,
            _ => {
                return Err(SqlError::new(
                    "22023",
                    "precision for type float must be between 1 and 53 bits",
                ));
            }
        },
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => numeric(info)?,
        DataType::Text => SqlType::Text,
        DataType::Varchar(l) | DataType::CharacterVarying(l) | DataType::CharVarying(l) => {
            SqlType::Varchar(length(l)?)
        }
        DataType::Char(l) | DataType::Character(l) => SqlType::Char(length(l)?.unwrap_or(1)),
        DataType::Bytea => SqlType::Bytea,
        DataType::Date => SqlType::Date,
        DataType::Time(precision, zone) => {
            microseconds(precision.as_ref())?;
            match zone {
                TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => SqlType::Time,
                _ => return Err(SqlError::unsupported("type time with time zone")),
            }
        }
        DataType::Timestamp(precision, zone) => {
            microseconds(precision.as_ref())?;
            match zone {
                TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => SqlType::Timestamp,
                TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => SqlType::TimestampTz,
            }
        }
        DataType::Interval {
            fields: None,
            precision,
        } => {
            microseconds(precision.as_ref())?;
            SqlType::Interval
        }
        DataType::Interval { .. } => {
            return Err(SqlError::unsupported("type interval with fields"));
        }
        DataType::Uuid => SqlType::Uuid,
        DataType::Array(
            ArrayElemTypeDef::SquareBracket(element, _) | ArrayElemTypeDef::AngleBracket(element),
        ) => SqlType::Array(sql_type(element)?.oid()),
        DataType::Custom(name, modifiers) => custom(name, modifiers)?,
        DataType::JSON => SqlType::Json,
        other => {
            return Err(SqlError::unsupported(format!(
                "type {}",
                other.to_string().to_lowercase()
            )));
        }
    })
}

fn numeric(info: &ExactNumberInfo) -> Result<SqlType> {
    let (p, s) = match info {
        ExactNumberInfo::None => return Ok(SqlType::Numeric(None)),
        ExactNumberInfo::Precision(p) => (*p, 0_i64),
        ExactNumberInfo::PrecisionAndScale(p, s) => (*p, *s),
    };
    if p == 0 || p > 1000 {
        return Err(SqlError::new(
            "22023",
            format!("NUMERIC precision {p} must be between 1 and 1000"),
        ));
    }
    if p > 38 {
        return Err(SqlError::unsupported(format!(
            "numeric precision {p} (the largest is 38)"
        )));
    }
    if s < 0 || s > p as i64 {
        return Err(SqlError::unsupported(format!(
            "NUMERIC scale {s} outside of 0 to precision {p}"
        )));
    }
    Ok(SqlType::Numeric(Some((p as u8, s as u8))))
}

/// Times keep six digits; fewer would round silently.
fn microseconds(precision: Option<&u64>) -> Result<()> {
    match precision {
        None | Some(6) => Ok(()),
        Some(p) => Err(SqlError::unsupported(format!(
            "time precision {p} (only 6 digits of a second)"
        ))),
    }
}

fn custom(name: &ObjectName, modifiers: &[String]) -> Result<SqlType> {
    let (schema, name) = object_name(name)?;
    if schema.as_deref().is_some_and(|s| s != "pg_catalog") {
        return Err(SqlError::new(
            "42704",
            format!(
                "type \"{}.{name}\" does not exist",
                schema.unwrap_or_default()
            ),
        ));
    }
    let number = || modifiers.first().and_then(|m| m.parse::<u32>().ok());
    Ok(match name.as_str() {
        "bpchar" => match number() {
            Some(n) => SqlType::Char(n),
            None => SqlType::Text,
        },
        "varchar" => SqlType::Varchar(number()),
        "bool" => SqlType::Bool,
        "int2" => SqlType::Int2,
        "int4" => SqlType::Int4,
        "int8" => SqlType::Int8,
        "float4" => SqlType::Float4,
        "float8" => SqlType::Float8,
        "text" => SqlType::Text,
        "bytea" => SqlType::Bytea,
        "date" => SqlType::Date,
        "time" => SqlType::Time,
        "timestamp" => SqlType::Timestamp,
        "timestamptz" => SqlType::TimestampTz,
        "interval" => SqlType::Interval,
        "uuid" => SqlType::Uuid,
        "numeric" => SqlType::Numeric(None),
        "oid" => SqlType::Oid,
        "name" => SqlType::Name,
        "char" => SqlType::InternalChar,
        "unknown" => SqlType::Unknown,
        "serial" | "serial4" | "serial8" | "bigserial" | "smallserial" | "serial2" => {
            return Err(SqlError::unsupported(format!("type {name} (sequences)"))
                .with_hint("Declare the column as bigint and give the values, or as uuid DEFAULT gen_random_uuid()."));
        }
        "json" | "jsonb" | "xml" | "money" | "inet" | "cidr" | "macaddr" | "timetz" | "bit"
        | "varbit" | "point" | "line" | "box" | "path" | "polygon" | "circle" | "tsvector"
        | "tsquery" | "citext" | "hstore" => {
            return Err(SqlError::unsupported(format!("type {name}")));
        }
        _ => {
            return Err(SqlError::new(
                "42704",
                format!("type \"{name}\" does not exist"),
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::ast::{Expr, Statement};

    fn cast_type(name: &str) -> Result<SqlType> {
        let Statement::Query(q) = super::super::parse_sql(&format!("SELECT x::{name}"))? else {
            panic!("a query");
        };
        let select = q.body.as_select().expect("a select").clone();
        match &select.projection[0] {
            datafusion::sql::sqlparser::ast::SelectItem::UnnamedExpr(Expr::Cast {
                data_type,
                ..
            }) => sql_type(data_type),
            other => panic!("a cast: {other}"),
        }
    }

    #[test]
    fn type_names_of_postgresql() {
        for (name, t) in [
            ("int", SqlType::Int4),
            ("bigint", SqlType::Int8),
            ("smallint", SqlType::Int2),
            ("float8", SqlType::Float8),
            ("double precision", SqlType::Float8),
            ("real", SqlType::Float4),
            ("numeric", SqlType::Numeric(None)),
            ("numeric(10)", SqlType::Numeric(Some((10, 0)))),
            ("decimal(10,2)", SqlType::Numeric(Some((10, 2)))),
            ("character varying(5)", SqlType::Varchar(Some(5))),
            ("varchar", SqlType::Varchar(None)),
            ("char(3)", SqlType::Char(3)),
            ("character", SqlType::Char(1)),
            ("timestamp with time zone", SqlType::TimestampTz),
            ("timestamptz", SqlType::TimestampTz),
            ("timestamp", SqlType::Timestamp),
            ("time", SqlType::Time),
            ("interval", SqlType::Interval),
            ("uuid", SqlType::Uuid),
            ("bytea", SqlType::Bytea),
            ("int[]", SqlType::Array(23)),
        ] {
            assert_eq!(cast_type(name).unwrap(), t, "{name}");
        }
        for (name, code) in [
            ("numeric(40,2)", "0A000"),
            ("jsonb", "0A000"),
            ("timestamp(3)", "0A000"),
            ("nonsense", "42704"),
            ("bigserial", "0A000"),
        ] {
            assert_eq!(cast_type(name).unwrap_err().sqlstate, code, "{name}");
        }
    }
}
