//! Rows of `pg_type`, from `types.tsv`.

use super::objects::{OWNER, PG_CATALOG};
use lineradb_common::sql::{Datum, SqlType};
use std::sync::LazyLock;

/// The fields of a line, as text, in the order of the file's first line.
static TYPES: LazyLock<Vec<Vec<&'static str>>> = LazyLock::new(|| {
    include_str!("types.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('|').collect())
        .collect()
});

const FIELDS: [&str; 17] = [
    "oid",
    "typname",
    "typlen",
    "typbyval",
    "typtype",
    "typcategory",
    "typispreferred",
    "typdelim",
    "typelem",
    "typarray",
    "typinput",
    "typoutput",
    "typreceive",
    "typsend",
    "typalign",
    "typstorage",
    "typcollation",
];

/// One field of every type: `None` for a column that the file does not have.
pub fn values(column: &str, sql_type: SqlType) -> Vec<Datum> {
    let at = FIELDS.iter().position(|field| *field == column);
    let of = |fields: &Vec<&'static str>| match (at, column) {
        (Some(at), _) => datum(fields.get(at).copied().unwrap_or_default(), sql_type),
        (None, "typnamespace") => Datum::Oid(PG_CATALOG),
        (None, "typowner") => Datum::Oid(OWNER),
        (None, "typisdefined") => Datum::Bool(true),
        (None, "typtypmod") => Datum::Int4(-1),
        (None, "typdefault" | "typdefaultbin" | "typacl") => Datum::Null,
        (None, _) => super::tables::zero(sql_type),
    };
    TYPES.iter().map(of).collect()
}

fn datum(text: &str, sql_type: SqlType) -> Datum {
    match sql_type {
        SqlType::Oid => text.parse().map_or(Datum::Null, Datum::Oid),
        SqlType::Int2 => text.parse().map_or(Datum::Null, Datum::Int2),
        SqlType::Int4 => text.parse().map_or(Datum::Null, Datum::Int4),
        SqlType::Bool => Datum::Bool(text == "t"),
        _ => Datum::Text(text.to_owned()),
    }
}

/// `typname` of a type.
pub fn name(oid: u32) -> Option<&'static str> {
    let text = oid.to_string();
    let found = TYPES.iter().find(|fields| fields.first() == Some(&&*text));
    found.and_then(|fields| fields.get(1).copied())
}

/// OID of a type by `typname` or by the name that SQL uses.
pub fn oid(name: &str) -> Option<u32> {
    let name = name.trim().trim_start_matches("pg_catalog.").to_lowercase();
    let (base, array) = match name.strip_suffix("[]") {
        Some(base) => (base.trim(), true),
        None => (name.as_str(), false),
    };
    let base = match base.split_once('(') {
        Some((base, _)) => base.trim(),
        None => base,
    };
    let base = match base {
        "boolean" => "bool",
        "smallint" => "int2",
        "integer" | "int" => "int4",
        "bigint" => "int8",
        "real" => "float4",
        "double precision" | "float" => "float8",
        "decimal" => "numeric",
        "character varying" => "varchar",
        "character" => "bpchar",
        "\"char\"" => "char",
        "timestamp without time zone" => "timestamp",
        "timestamp with time zone" => "timestamptz",
        "time without time zone" => "time",
        "time with time zone" => "timetz",
        other => other,
    };
    let found = TYPES.iter().find(|fields| fields.get(1) == Some(&base))?;
    found.get(if array { 9 } else { 0 })?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_that_we_have_is_in_pg_type() {
        for oid in [16, 17, 20, 21, 23, 25, 26, 700, 701, 1042, 1043, 1700, 2950] {
            let sql_type = SqlType::from_oid(oid).unwrap();
            assert_eq!(name(oid), Some(sql_type.short_name()));
            assert_eq!(super::oid(&sql_type.name()), Some(oid));
        }
    }

    #[test]
    fn types_are_found_by_either_name() {
        assert_eq!(oid("int4"), Some(23));
        assert_eq!(oid("pg_catalog.Timestamp With Time Zone"), Some(1184));
        assert_eq!(oid("varchar(10)"), Some(1043));
        assert_eq!(oid("text[]"), Some(1009));
        assert_eq!(oid("nope"), None);
    }
}
