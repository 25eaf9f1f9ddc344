//! Relations of `pg_catalog` whose rows are always the same: access methods, roles,
//! collations, operator classes, functions. Every gateway answers alike.

use super::objects::{BTREE, DATABASE, HEAP, OWNER, OWNER_NAME, PG_CATALOG};
use super::tables::{Rows, text};
use lineradb_common::sql::{Datum, SqlType};

/// OID and name of the default btree operator class of a type.
pub(super) fn operator_class(sql_type: SqlType) -> (u32, &'static str) {
    match sql_type {
        SqlType::Bool => (10_003, "bool_ops"),
        SqlType::Char(_) => (10_004, "bpchar_ops"),
        SqlType::Bytea => (10_006, "bytea_ops"),
        SqlType::Date => (3_122, "date_ops"),
        SqlType::Float4 => (10_012, "float4_ops"),
        SqlType::Float8 => (3_123, "float8_ops"),
        SqlType::Int2 => (1_979, "int2_ops"),
        SqlType::Int4 => (1_978, "int4_ops"),
        SqlType::Int8 => (3_124, "int8_ops"),
        SqlType::Interval => (10_022, "interval_ops"),
        SqlType::Numeric(_) => (3_125, "numeric_ops"),
        SqlType::Time => (10_038, "time_ops"),
        SqlType::TimestampTz => (3_127, "timestamptz_ops"),
        SqlType::Timestamp => (3_128, "timestamp_ops"),
        SqlType::Uuid => (10_065, "uuid_ops"),
        SqlType::Text | SqlType::Varchar(_) => (3_126, "text_ops"),
        _ => (0, ""),
    }
}

/// Relations whose rows are always the same.
pub(super) fn fixed(rows: &mut Rows) {
    let oid = |value: u32| Some(Datum::Oid(value));
    let word = |value: &str| Some(text(value));
    match rows.relation.name {
        "pg_am" => {
            for (number, name, kind) in [(HEAP, "heap", "t"), (BTREE, "btree", "i")] {
                rows.push(|column| match column {
                    "oid" => oid(number),
                    "amname" => word(name),
                    "amtype" => word(kind),
                    "amhandler" => word("-"),
                    _ => None,
                });
            }
        }
        "pg_database" => rows.push(|column| match column {
            "oid" => oid(DATABASE),
            "datname" => word("lineradb"),
            "datdba" => oid(OWNER),
            "encoding" => Some(Datum::Int4(6)),
            "datlocprovider" => word("c"),
            "datallowconn" => Some(Datum::Bool(true)),
            "datconnlimit" => Some(Datum::Int4(-1)),
            "dattablespace" => oid(1_663),
            // Text is ordered by its bytes.
            "datcollate" => word("C"),
            "datctype" => word("C.UTF-8"),
            _ => None,
        }),
        "pg_roles" | "pg_authid" | "pg_user" | "pg_shadow" => rows.push(|column| match column {
            "oid" | "usesysid" => oid(OWNER),
            "rolname" | "usename" => word(OWNER_NAME),
            "rolconnlimit" => Some(Datum::Int4(-1)),
            "rolpassword" | "passwd" => word("********"),
            "rolsuper" | "rolinherit" | "rolcreaterole" | "rolcreatedb" | "rolcanlogin"
            | "rolbypassrls" | "usecreatedb" | "usesuper" | "usebypassrls" => {
                Some(Datum::Bool(true))
            }
            _ => None,
        }),
        "pg_collation" => {
            for (number, name) in [(100, "default"), (950, "C"), (951, "POSIX")] {
                rows.push(|column| match column {
                    "oid" => oid(number),
                    "collname" => word(name),
                    "collnamespace" => oid(PG_CATALOG),
                    "collowner" => oid(OWNER),
                    "collprovider" => word(if number == 100 { "d" } else { "c" }),
                    "collisdeterministic" => Some(Datum::Bool(true)),
                    "collencoding" => Some(Datum::Int4(-1)),
                    "collcollate" | "collctype" if number != 100 => word(name),
                    _ => None,
                });
            }
        }
        "pg_tablespace" => {
            for (number, name) in [(1_663, "pg_default"), (1_664, "pg_global")] {
                rows.push(|column| match column {
                    "oid" => oid(number),
                    "spcname" => word(name),
                    "spcowner" => oid(OWNER),
                    _ => None,
                });
            }
        }
        "pg_language" => {
            for (number, name) in [(12, "internal"), (14, "sql")] {
                rows.push(|column| match column {
                    "oid" => oid(number),
                    "lanname" => word(name),
                    "lanowner" => oid(OWNER),
                    "lanpltrusted" => Some(Datum::Bool(number == 14)),
                    _ => None,
                });
            }
        }
        "pg_opclass" => {
            for sql_type in INDEXED {
                let (number, name) = operator_class(sql_type);
                rows.push(|column| match column {
                    "oid" => oid(number),
                    "opcmethod" => oid(BTREE),
                    "opcname" => word(name),
                    "opcnamespace" => oid(PG_CATALOG),
                    "opcowner" => oid(OWNER),
                    "opcintype" => oid(sql_type.oid()),
                    "opcdefault" => Some(Datum::Bool(true)),
                    _ => None,
                });
            }
        }
        "pg_proc" => {
            for (at, function) in super::function_list::FUNCTIONS.iter().enumerate() {
                rows.push(|column| match column {
                    "oid" => oid(14_000 + at as u32),
                    "proname" | "prosrc" => word(function.name),
                    "pronamespace" => oid(PG_CATALOG),
                    "proowner" => oid(OWNER),
                    "prolang" => oid(12),
                    "procost" => Some(Datum::Float4(1.0)),
                    "prorows" => Some(Datum::Float4(0.0)),
                    "prokind" => word("f"),
                    "provolatile" => word("s"),
                    "proparallel" => word("s"),
                    "prorettype" => oid(function.returns.oid()),
                    "proargtypes" => Some(Datum::Array(SqlType::Oid, Vec::new())),
                    "prosupport" => word("-"),
                    _ => None,
                });
            }
        }
        // Always empty.
        _ => {}
    }
}

const INDEXED: [SqlType; 16] = [
    SqlType::Bool,
    SqlType::Char(1),
    SqlType::Bytea,
    SqlType::Date,
    SqlType::Float4,
    SqlType::Float8,
    SqlType::Int2,
    SqlType::Int4,
    SqlType::Int8,
    SqlType::Interval,
    SqlType::Numeric(None),
    SqlType::Time,
    SqlType::TimestampTz,
    SqlType::Timestamp,
    SqlType::Uuid,
    SqlType::Text,
];
