//! Names of the SQL types: PostgreSQL's, and the short form that metadata and
//! descriptors keep.

use super::{SqlType, ValueError, ValueResult};
use std::fmt;
use std::str::FromStr;

impl SqlType {
    /// The name that PostgreSQL's `format_type` prints.
    pub fn name(self) -> String {
        match self {
            SqlType::Bool => "boolean".into(),
            SqlType::Int2 => "smallint".into(),
            SqlType::Int4 => "integer".into(),
            SqlType::Int8 => "bigint".into(),
            SqlType::Float4 => "real".into(),
            SqlType::Float8 => "double precision".into(),
            SqlType::Numeric(None) => "numeric".into(),
            SqlType::Numeric(Some((p, s))) => format!("numeric({p},{s})"),
            SqlType::Text => "text".into(),
            SqlType::Varchar(None) => "character varying".into(),
            SqlType::Varchar(Some(n)) => format!("character varying({n})"),
            SqlType::Char(n) => format!("character({n})"),
            SqlType::Bytea => "bytea".into(),
            SqlType::Date => "date".into(),
            SqlType::Time => "time without time zone".into(),
            SqlType::Timestamp => "timestamp without time zone".into(),
            SqlType::TimestampTz => "timestamp with time zone".into(),
            SqlType::Interval => "interval".into(),
            SqlType::Uuid => "uuid".into(),
            SqlType::Oid => "oid".into(),
            SqlType::Name => "name".into(),
            SqlType::InternalChar => "\"char\"".into(),
            SqlType::Json => "json".into(),
            SqlType::Void => "void".into(),
            SqlType::Unknown => "unknown".into(),
            SqlType::Array(_) => match self.element() {
                Some(e) => format!("{}[]", e.name()),
                None => "anyarray".into(),
            },
        }
    }

    /// PostgreSQL's short name (`typname`), without modifiers.
    pub fn short_name(self) -> &'static str {
        match self {
            SqlType::Bool => "bool",
            SqlType::Int2 => "int2",
            SqlType::Int4 => "int4",
            SqlType::Int8 => "int8",
            SqlType::Float4 => "float4",
            SqlType::Float8 => "float8",
            SqlType::Numeric(_) => "numeric",
            SqlType::Text => "text",
            SqlType::Varchar(_) => "varchar",
            SqlType::Char(_) => "bpchar",
            SqlType::Bytea => "bytea",
            SqlType::Date => "date",
            SqlType::Time => "time",
            SqlType::Timestamp => "timestamp",
            SqlType::TimestampTz => "timestamptz",
            SqlType::Interval => "interval",
            SqlType::Uuid => "uuid",
            SqlType::Oid => "oid",
            SqlType::Name => "name",
            SqlType::InternalChar => "char",
            SqlType::Json => "json",
            SqlType::Void => "void",
            SqlType::Unknown => "unknown",
            SqlType::Array(e) => match e {
                16 => "_bool",
                17 => "_bytea",
                20 => "_int8",
                21 => "_int2",
                23 => "_int4",
                25 => "_text",
                700 => "_float4",
                701 => "_float8",
                1043 => "_varchar",
                1082 => "_date",
                1114 => "_timestamp",
                1184 => "_timestamptz",
                1700 => "_numeric",
                2950 => "_uuid",
                _ => "anyarray",
            },
        }
    }
}

/// The short form kept in metadata and descriptors: `int4`, `varchar(10)`,
/// `numeric(10,2)`, `int4[]`.
impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SqlType::Numeric(Some((p, s))) => write!(f, "numeric({p},{s})"),
            SqlType::Varchar(Some(n)) => write!(f, "varchar({n})"),
            SqlType::Char(n) => write!(f, "bpchar({n})"),
            SqlType::InternalChar => f.write_str("\"char\""),
            SqlType::Array(oid) => match self.element() {
                Some(e) => write!(f, "{}[]", e.short_name()),
                None => write!(f, "oid:{oid}[]"),
            },
            other => f.write_str(other.short_name()),
        }
    }
}

impl FromStr for SqlType {
    type Err = ValueError;

    fn from_str(s: &str) -> ValueResult<Self> {
        let bad = || ValueError::corrupt(format!("\"{s}\" names no type"));
        if let Some(element) = s.strip_suffix("[]") {
            return Ok(SqlType::Array(element.parse::<SqlType>()?.oid()));
        }
        let (head, arguments) = match s.split_once('(') {
            Some((head, rest)) => (head, Some(rest.strip_suffix(')').ok_or_else(bad)?)),
            None => (s, None),
        };
        let number = |t: &str| t.trim().parse::<u32>().map_err(|_| bad());
        Ok(match (head, arguments) {
            ("varchar", Some(n)) => SqlType::Varchar(Some(number(n)?)),
            ("bpchar", Some(n)) => SqlType::Char(number(n)?),
            ("bpchar", None) => SqlType::Char(1),
            ("numeric", Some(ps)) => {
                let (p, s) = ps.split_once(',').ok_or_else(bad)?;
                SqlType::Numeric(Some((number(p)? as u8, number(s)? as u8)))
            }
            ("\"char\"", None) => SqlType::InternalChar,
            (_, Some(_)) => return Err(bad()),
            (name, None) => [
                SqlType::Bool,
                SqlType::Int2,
                SqlType::Int4,
                SqlType::Int8,
                SqlType::Float4,
                SqlType::Float8,
                SqlType::Numeric(None),
                SqlType::Text,
                SqlType::Varchar(None),
                SqlType::Bytea,
                SqlType::Date,
                SqlType::Time,
                SqlType::Timestamp,
                SqlType::TimestampTz,
                SqlType::Interval,
                SqlType::Uuid,
                SqlType::Oid,
                SqlType::Name,
                SqlType::Json,
                SqlType::Void,
                SqlType::Unknown,
            ]
            .into_iter()
            .find(|t| t.short_name() == name)
            .ok_or_else(bad)?,
        })
    }
}

impl serde::Serialize for SqlType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SqlType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
