//! SQL type names: all of PostgreSQL's that we have, as Arrow fields that
//! remember the SQL type.

use arrow::datatypes::FieldRef;
use datafusion::error::Result;
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CharacterLength, DataType as Sql, ExactNumberInfo, ObjectName, TimezoneInfo,
};
use lineradb_common::sql::SqlType;

use super::errors::carry;
use crate::error::SqlError;

/// Plans type names.
#[derive(Debug)]
pub struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &Sql) -> Result<Option<FieldRef>> {
        match sql_type_of(sql_type) {
            Ok(t) => Ok(Some(lineradb_functions::cast::field_of(t))),
            Err(e) => Err(carry(e)),
        }
    }
}

/// The type that a name in the AST means.
///
/// # Errors
/// 42704 for names that are no types, 0A000 for types that we do not have.
pub fn sql_type_of(data_type: &Sql) -> Result<SqlType, SqlError> {
    let length = |n: &Option<CharacterLength>| -> Result<Option<u32>, SqlError> {
        match n {
            None => Ok(None),
            Some(CharacterLength::IntegerLength { length, .. })
                if (1..=10_485_760).contains(length) =>
            {
                Ok(Some(*length as u32))
            }
            Some(_) => Err(SqlError::new(
                "22023",
                "length for type varchar must be between 1 and 10485760",
            )),
        }
    };
    Ok(match data_type {
        Sql::Boolean | Sql::Bool => SqlType::Bool,
        Sql::SmallInt(None) | Sql::Int2(None) => SqlType::Int2,
        Sql::Int(None) | Sql::Integer(None) | Sql::Int4(None) => SqlType::Int4,
        Sql::BigInt(None) | Sql::Int8(None) => SqlType::Int8,
        Sql::Real | Sql::Float4 => SqlType::Float4,
        Sql::Double(ExactNumberInfo::None) | Sql::DoublePrecision | Sql::Float8 => SqlType::Float8,
        Sql::Float(ExactNumberInfo::None) => SqlType::Float8,
        Sql::Float(ExactNumberInfo::Precision(p)) if (1..=24).contains(p) => SqlType::Float4,
        Sql::Float(ExactNumberInfo::Precision(p)) if (25..=53).contains(p) => SqlType::Float8,
        Sql::Numeric(info) | Sql::Decimal(info) | Sql::Dec(info) => match info {
            ExactNumberInfo::None => SqlType::Numeric(None),
            ExactNumberInfo::Precision(p) => numeric(*p, 0)?,
            ExactNumberInfo::PrecisionAndScale(p, s) => numeric(*p, *s)?,
        },
        Sql::Text | Sql::String(None) => SqlType::Text,
        Sql::Varchar(n) | Sql::CharacterVarying(n) | Sql::CharVarying(n) => {
            SqlType::Varchar(length(n)?)
        }
        Sql::Char(n) | Sql::Character(n) => SqlType::Char(length(n)?.unwrap_or(1)),
        Sql::Bytea => SqlType::Bytea,
        Sql::Date => SqlType::Date,
        Sql::Time(None | Some(6), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            SqlType::Time
        }
        Sql::Timestamp(None | Some(6), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            SqlType::Timestamp
        }
        Sql::Timestamp(None | Some(6), TimezoneInfo::Tz | TimezoneInfo::WithTimeZone) => {
            SqlType::TimestampTz
        }
        Sql::Interval {
            fields: None,
            precision: None,
        } => SqlType::Interval,
        Sql::Uuid => SqlType::Uuid,
        Sql::JSON => SqlType::Json,
        Sql::Array(
            ArrayElemTypeDef::SquareBracket(inner, _)
            | ArrayElemTypeDef::AngleBracket(inner)
            | ArrayElemTypeDef::Parenthesis(inner),
        ) => SqlType::Array(sql_type_of(inner)?.oid()),
        Sql::Regclass => SqlType::Oid,
        Sql::Custom(name, arguments) if arguments.is_empty() => named(name)?,
        Sql::Custom(name, arguments) => {
            let base = last(name);
            let number = |i: usize| {
                arguments
                    .get(i)
                    .and_then(|a| a.parse::<u64>().ok())
                    .ok_or_else(|| SqlError::syntax("a type modifier must be a number"))
            };
            match base.as_str() {
                "varchar" => SqlType::Varchar(Some(number(0)? as u32)),
                "bpchar" => SqlType::Char(number(0)? as u32),
                "numeric" if arguments.len() == 1 => numeric(number(0)?, 0)?,
                "numeric" => numeric(number(0)?, number(1)? as i64)?,
                _ => return Err(SqlError::unsupported(format!("type {data_type}"))),
            }
        }
        other => return Err(SqlError::unsupported(format!("type {other}"))),
    })
}

fn numeric(precision: u64, scale: i64) -> Result<SqlType, SqlError> {
    if !(1..=1000).contains(&precision) {
        return Err(SqlError::new(
            "22023",
            format!("NUMERIC precision {precision} must be between 1 and 1000"),
        ));
    }
    if precision > 38 || scale < 0 || scale > precision as i64 {
        return Err(SqlError::unsupported(format!(
            "numeric({precision},{scale}): precision up to 38 and scale from 0 to the precision"
        )));
    }
    Ok(SqlType::Numeric(Some((precision as u8, scale as u8))))
}

fn last(name: &ObjectName) -> String {
    name.0
        .last()
        .and_then(|p| p.as_ident())
        .map(|i| i.value.to_lowercase())
        .unwrap_or_default()
}

fn named(name: &ObjectName) -> Result<SqlType, SqlError> {
    if name.0.len() > 2 {
        return Err(SqlError::syntax(format!("invalid type name \"{name}\"")));
    }
    let base = last(name);
    let quoted_char = base == "char"
        && name
            .0
            .last()
            .is_some_and(|p| p.as_ident().is_some_and(|i| i.quote_style.is_some()));
    if quoted_char {
        return Ok(SqlType::InternalChar);
    }
    Ok(match base.as_str() {
        "bpchar" => SqlType::Char(1),
        "int" | "integer" => SqlType::Int4,
        "smallint" => SqlType::Int2,
        "bigint" => SqlType::Int8,
        "boolean" => SqlType::Bool,
        "decimal" => SqlType::Numeric(None),
        "real" => SqlType::Float4,
        "string" => SqlType::Text,
        "regclass" | "regtype" | "regproc" | "regprocedure" | "regnamespace" | "regrole"
        | "xid" | "cid" => SqlType::Oid,
        "oidvector" | "int2vector" | "anyarray" | "aclitem" | "pg_node_tree" => SqlType::Text,
        other => match other.parse::<SqlType>() {
            Ok(t) => t,
            Err(_) => {
                return Err(SqlError::new(
                    "42704",
                    format!("type \"{other}\" does not exist"),
                ));
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::ast::{Expr, SelectItem, SetExpr, Statement};
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    fn of(name: &str) -> Result<SqlType, SqlError> {
        let sql = format!("SELECT NULL::{name}");
        let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, &sql)
            .map_err(|e| SqlError::syntax(e.to_string()))?;
        let Some(Statement::Query(query)) = statements.pop() else {
            return Err(SqlError::internal("no query"));
        };
        let SetExpr::Select(select) = *query.body else {
            return Err(SqlError::internal("no select"));
        };
        match &select.projection[0] {
            SelectItem::UnnamedExpr(Expr::Cast { data_type, .. }) => sql_type_of(data_type),
            other => Err(SqlError::internal(other.to_string())),
        }
    }

    #[test]
    fn names_of_types() {
        for (name, expected) in [
            ("uuid", SqlType::Uuid),
            ("character varying(3)", SqlType::Varchar(Some(3))),
            ("character(4)", SqlType::Char(4)),
            ("char", SqlType::Char(1)),
            ("varchar", SqlType::Varchar(None)),
            ("pg_catalog.int4", SqlType::Int4),
            ("pg_catalog.text", SqlType::Text),
            ("timestamp with time zone", SqlType::TimestampTz),
            ("timestamptz", SqlType::TimestampTz),
            ("time", SqlType::Time),
            ("numeric(10,2)", SqlType::Numeric(Some((10, 2)))),
            ("double precision", SqlType::Float8),
            ("float", SqlType::Float8),
            ("name", SqlType::Name),
            ("\"char\"", SqlType::InternalChar),
            ("oid", SqlType::Oid),
            ("pg_catalog.regclass", SqlType::Oid),
            ("int[]", SqlType::Array(23)),
            ("bytea", SqlType::Bytea),
            ("interval", SqlType::Interval),
        ] {
            assert_eq!(of(name).ok(), Some(expected), "{name}");
        }
        assert_eq!(of("nonsense").unwrap_err().sqlstate, "42704");
        assert_eq!(of("numeric(50,2)").unwrap_err().sqlstate, "0A000");
    }
}
