//! What each function of `pg_catalog` answers.
//!
//! What PostgreSQL can do and we cannot (advisory locks) is an error here: a stub
//! that answers would be believed.

use super::functions::Lookup;
use super::objects::{
    OWNER, OWNER_NAME, Object, constraint_definition, format_type, index_definition,
};
use super::types;
use crate::settings::SetRequest;
use lineradb_common::sql::{Datum, SqlType, ValueError, ValueResult};

type Body = fn(&Lookup, &[Datum]) -> ValueResult<Datum>;

/// A function: its name, what it returns, and what it does with its arguments.
pub struct Function {
    /// Its name, lower case.
    pub name: &'static str,
    /// Its result type.
    pub returns: SqlType,
    /// NULL when an argument is NULL.
    pub(super) strict: bool,
    pub(super) body: Body,
}

const fn strict(name: &'static str, returns: SqlType, body: Body) -> Function {
    Function {
        name,
        returns,
        strict: true,
        body,
    }
}

const fn lenient(name: &'static str, returns: SqlType, body: Body) -> Function {
    Function {
        name,
        returns,
        strict: false,
        body,
    }
}

const TEXT: SqlType = SqlType::Text;
const BOOL: SqlType = SqlType::Bool;
const INT8: SqlType = SqlType::Int8;
const OID: SqlType = SqlType::Oid;

/// All of them.
pub static FUNCTIONS: [Function; 103] = [
    lenient("format_type", TEXT, |_, a| {
        if arg(a, 0).is_null() {
            return Ok(Datum::Null);
        }
        let modifier = a.get(1).filter(|value| !value.is_null());
        let modifier = modifier.map(|_| integer(a, 1));
        Ok(words(format_type(oid(a, 0)?, modifier)))
    }),
    strict("pg_get_expr", TEXT, |_, a| Ok(arg(a, 0))),
    strict("pg_get_indexdef", TEXT, |l, a| {
        Ok(match l.objects.relation(oid(a, 0)?) {
            Some(Object::Index(table, index)) => {
                words(index_definition(table, index, integer(a, 1)))
            }
            _ => Datum::Null,
        })
    }),
    strict("pg_get_constraintdef", TEXT, |l, a| {
        Ok(match l.objects.constraint(oid(a, 0)?) {
            Some((table, index)) => words(constraint_definition(table, index)),
            None => Datum::Null,
        })
    }),
    // What there is none of.
    lenient("pg_get_viewdef", TEXT, null),
    lenient("pg_get_ruledef", TEXT, null),
    lenient("pg_get_triggerdef", TEXT, null),
    lenient("pg_get_functiondef", TEXT, null),
    lenient("pg_get_function_result", TEXT, null),
    lenient("pg_get_function_arguments", TEXT, null),
    lenient("pg_get_function_identity_arguments", TEXT, null),
    lenient("pg_get_function_sqlbody", TEXT, null),
    lenient("pg_get_statisticsobjdef", TEXT, null),
    lenient("pg_get_statisticsobjdef_columns", TEXT, null),
    lenient("pg_get_partkeydef", TEXT, null),
    lenient("pg_get_partition_constraintdef", TEXT, null),
    lenient("pg_get_serial_sequence", TEXT, null),
    lenient("obj_description", TEXT, null),
    lenient("col_description", TEXT, null),
    lenient("shobj_description", TEXT, null),
    lenient("pg_tablespace_location", TEXT, |_, _| Ok(words(""))),
    // Visibility.
    strict("pg_table_is_visible", BOOL, |l, a| {
        let path = &l.settings.search_path;
        Ok(Datum::Bool(l.objects.is_visible(oid(a, 0)?, path)))
    }),
    strict("pg_type_is_visible", BOOL, truth),
    strict("pg_function_is_visible", BOOL, truth),
    strict("pg_operator_is_visible", BOOL, truth),
    strict("pg_opclass_is_visible", BOOL, truth),
    strict("pg_opfamily_is_visible", BOOL, truth),
    strict("pg_collation_is_visible", BOOL, truth),
    strict("pg_conversion_is_visible", BOOL, truth),
    strict("pg_statistics_obj_is_visible", BOOL, truth),
    strict("pg_ts_config_is_visible", BOOL, truth),
    strict("pg_ts_dict_is_visible", BOOL, truth),
    strict("pg_ts_parser_is_visible", BOOL, truth),
    strict("pg_ts_template_is_visible", BOOL, truth),
    strict("pg_relation_is_publishable", BOOL, untruth),
    // Roles: everybody is a superuser yet.
    strict("pg_get_userbyid", SqlType::Name, |_, a| {
        let oid = oid(a, 0)?;
        Ok(words(if oid == OWNER {
            OWNER_NAME.to_owned()
        } else {
            format!("unknown (OID={oid})")
        }))
    }),
    strict("has_table_privilege", BOOL, truth),
    strict("has_any_column_privilege", BOOL, truth),
    strict("has_column_privilege", BOOL, truth),
    strict("has_schema_privilege", BOOL, truth),
    strict("has_database_privilege", BOOL, truth),
    strict("has_function_privilege", BOOL, truth),
    strict("has_sequence_privilege", BOOL, truth),
    strict("has_tablespace_privilege", BOOL, truth),
    strict("has_type_privilege", BOOL, truth),
    strict("has_language_privilege", BOOL, truth),
    strict("pg_has_role", BOOL, truth),
    strict("row_security_active", BOOL, untruth),
    // Sizes: the gateway does not know them; NULL is what it knows.
    lenient("pg_table_size", INT8, null),
    lenient("pg_relation_size", INT8, null),
    lenient("pg_total_relation_size", INT8, null),
    lenient("pg_indexes_size", INT8, null),
    lenient("pg_database_size", INT8, null),
    lenient("pg_tablespace_size", INT8, null),
    strict("pg_size_pretty", TEXT, |_, a| {
        let bytes = arg(a, 0).as_f64().unwrap_or_default();
        Ok(words(size_pretty(bytes)))
    }),
    strict("pg_encoding_to_char", SqlType::Name, |_, a| {
        Ok(words(if integer(a, 0) == 6 { "UTF8" } else { "" }))
    }),
    strict("pg_char_to_encoding", SqlType::Int4, |_, a| {
        let name = string(a, 0).to_lowercase().replace('-', "");
        Ok(Datum::Int4(if name == "utf8" { 6 } else { -1 }))
    }),
    lenient("getdatabaseencoding", SqlType::Name, |_, _| {
        Ok(words("UTF8"))
    }),
    lenient("pg_client_encoding", SqlType::Name, |_, _| {
        Ok(words("UTF8"))
    }),
    lenient("pg_is_in_recovery", BOOL, untruth),
    lenient("pg_is_wal_replay_paused", BOOL, untruth),
    lenient("pg_my_temp_schema", OID, |_, _| Ok(Datum::Oid(0))),
    lenient("pg_is_other_temp_schema", BOOL, untruth),
    lenient("inet_server_addr", TEXT, null),
    lenient("inet_server_port", SqlType::Int4, null),
    lenient("inet_client_addr", TEXT, null),
    lenient("inet_client_port", SqlType::Int4, null),
    strict("to_regclass", OID, |l, a| {
        let path = &l.settings.search_path;
        let found = l.objects.relation_oid(&string(a, 0), path);
        Ok(found.map_or(Datum::Null, Datum::Oid))
    }),
    strict("to_regtype", OID, |_, a| {
        Ok(types::oid(&string(a, 0)).map_or(Datum::Null, Datum::Oid))
    }),
    strict("to_regnamespace", OID, |l, a| {
        Ok(match l.objects.schema_oid(&string(a, 0)) {
            0 => Datum::Null,
            oid => Datum::Oid(oid),
        })
    }),
    strict("pg_index_column_has_property", BOOL, |_, a| {
        Ok(index_property(&string(a, 2)))
    }),
    strict("pg_index_has_property", BOOL, |_, a| {
        Ok(Datum::Bool(string(a, 1) == "clusterable"))
    }),
    strict("pg_indexam_has_property", BOOL, |_, a| {
        let known = ["can_order", "can_unique", "can_multi_col"];
        Ok(Datum::Bool(known.contains(&string(a, 1).as_str())))
    }),
    strict("pg_relation_filenode", OID, |_, a| {
        oid(a, 0).map(Datum::Oid)
    }),
    // Used by the rewriting of catalog queries.
    strict("lineradb_column_default", TEXT, |l, a| {
        let number = integer(a, 1) as u32;
        Ok(match l.objects.relation(oid(a, 0)?) {
            Some(Object::Table(table)) => table
                .column_by_id(number)
                .and_then(|column| column.default.clone())
                .map_or(Datum::Null, Datum::Text),
            _ => Datum::Null,
        })
    }),
    lenient("lineradb_no_names", SqlType::Array(25), |_, _| {
        Ok(Datum::Array(SqlType::Text, Vec::new()))
    }),
    // Casts to and from the object identifier types, as query::rewrite names
    // them.
    strict("pg_regclass_in", OID, |l, a| {
        let name = string(a, 0);
        number(&name)
            .or_else(|| l.objects.relation_oid(&name, &l.settings.search_path))
            .map(Datum::Oid)
            .ok_or_else(|| missing("42P01", "relation", &name))
    }),
    strict("pg_regclass_out", TEXT, |l, a| {
        let oid = oid(a, 0)?;
        let found = l.objects.relation_name(oid, &l.settings.search_path);
        Ok(words(found.unwrap_or_else(|| unnamed(oid))))
    }),
    strict("pg_regtype_in", OID, |_, a| {
        let name = string(a, 0);
        number(&name)
            .or_else(|| types::oid(&name))
            .map(Datum::Oid)
            .ok_or_else(|| missing("42704", "type", &name))
    }),
    strict("pg_regtype_out", TEXT, |_, a| {
        Ok(words(format_type(oid(a, 0)?, None)))
    }),
    strict("pg_regnamespace_in", OID, |l, a| {
        let name = string(a, 0);
        number(&name)
            .or_else(|| Some(l.objects.schema_oid(&name)).filter(|oid| *oid != 0))
            .map(Datum::Oid)
            .ok_or_else(|| missing("3F000", "schema", &name))
    }),
    strict("pg_regnamespace_out", TEXT, |l, a| {
        let oid = oid(a, 0)?;
        Ok(words(
            l.objects.schema_name(oid).unwrap_or_else(|| unnamed(oid)),
        ))
    }),
    strict("pg_regrole_in", OID, |_, a| {
        let name = string(a, 0);
        number(&name)
            .or_else(|| (name == OWNER_NAME).then_some(OWNER))
            .map(Datum::Oid)
            .ok_or_else(|| missing("42704", "role", &name))
    }),
    strict("pg_regrole_out", TEXT, |_, a| {
        let oid = oid(a, 0)?;
        Ok(words(if oid == OWNER {
            OWNER_NAME.to_owned()
        } else {
            unnamed(oid)
        }))
    }),
    // Functions print as they are stored: by name.
    strict("pg_regproc_out", TEXT, |_, a| Ok(arg(a, 0))),
    strict("pg_regproc_in", TEXT, |_, a| Ok(arg(a, 0))),
    lenient("set_config", TEXT, set_config),
    // There are no advisory locks, hence none to give back. Connection pools ask
    // for it whenever a connection is returned.
    lenient("pg_advisory_unlock_all", SqlType::Void, null),
    // Honest refusals.
    // Asked by SQLAlchemy about sequences, of which there are none.
    lenient("json_build_object", SqlType::Json, refuse),
    lenient("pg_advisory_lock", SqlType::Void, refuse),
    lenient("pg_advisory_lock_shared", SqlType::Void, refuse),
    lenient("pg_advisory_unlock", BOOL, refuse),
    lenient("pg_advisory_unlock_shared", BOOL, refuse),
    lenient("pg_advisory_xact_lock", SqlType::Void, refuse),
    lenient("pg_advisory_xact_lock_shared", SqlType::Void, refuse),
    lenient("pg_try_advisory_lock", BOOL, refuse),
    lenient("pg_try_advisory_lock_shared", BOOL, refuse),
    lenient("pg_try_advisory_xact_lock", BOOL, refuse),
    lenient("pg_try_advisory_xact_lock_shared", BOOL, refuse),
    lenient("pg_cancel_backend", BOOL, refuse),
    lenient("pg_terminate_backend", BOOL, refuse),
    lenient("pg_reload_conf", BOOL, refuse),
    lenient("pg_notify", SqlType::Void, refuse),
];

fn null(_: &Lookup, _: &[Datum]) -> ValueResult<Datum> {
    Ok(Datum::Null)
}

fn truth(_: &Lookup, _: &[Datum]) -> ValueResult<Datum> {
    Ok(Datum::Bool(true))
}

fn untruth(_: &Lookup, _: &[Datum]) -> ValueResult<Datum> {
    Ok(Datum::Bool(false))
}

fn refuse(_: &Lookup, _: &[Datum]) -> ValueResult<Datum> {
    Err(ValueError::new(
        "0A000",
        "this function is not supported yet",
    ))
}

/// Checks the value now; the session sets it when the statement has succeeded.
fn set_config(l: &Lookup, a: &[Datum]) -> ValueResult<Datum> {
    if arg(a, 0).is_null() {
        return Err(ValueError::new("22004", "SET requires parameter name"));
    }
    let request = SetRequest {
        name: string(a, 0).to_lowercase(),
        value: (!arg(a, 1).is_null()).then(|| string(a, 1)),
        local: arg(a, 2) == Datum::Bool(true),
    };
    let mut changed = (*l.settings).clone();
    let values = request.value.clone().map(|value| [value]);
    let values = values.as_ref().map(|v| &v[..]);
    changed
        .set(&request.name, values, &l.settings)
        .map_err(|error| {
            let sqlstate = match error.sqlstate.as_str() {
                "42704" => "42704",
                "55P02" => "55P02",
                "0A000" => "0A000",
                _ => "22023",
            };
            ValueError::new(sqlstate, error.message)
        })?;
    let shown = changed.show(&request.name).unwrap_or_default();
    l.set_requests.push(request);
    Ok(words(shown))
}

fn words(text: impl Into<String>) -> Datum {
    Datum::Text(text.into())
}

fn arg(arguments: &[Datum], at: usize) -> Datum {
    arguments.get(at).cloned().unwrap_or(Datum::Null)
}

fn string(arguments: &[Datum], at: usize) -> String {
    match arguments.get(at) {
        Some(Datum::Text(text)) => text.clone(),
        _ => String::new(),
    }
}

/// An integer, 0 when the argument is absent.
fn integer(arguments: &[Datum], at: usize) -> i64 {
    match arguments.get(at) {
        Some(Datum::Text(text)) => text.trim().parse().unwrap_or_default(),
        Some(other) => other.as_i64().unwrap_or_default(),
        None => 0,
    }
}

fn oid(arguments: &[Datum], at: usize) -> ValueResult<u32> {
    match arguments.get(at) {
        Some(Datum::Text(text)) => text
            .trim()
            .parse()
            .map_err(|_| ValueError::syntax("oid", text)),
        Some(other) => Ok(other
            .as_i64()
            .and_then(|v| u32::try_from(v).ok())
            .unwrap_or(0)),
        None => Ok(0),
    }
}

/// An OID written as a number; `-` is none.
fn number(text: &str) -> Option<u32> {
    match text.trim() {
        "-" => Some(0),
        text => text.parse().ok(),
    }
}

/// How an OID that names nothing prints.
fn unnamed(oid: u32) -> String {
    match oid {
        0 => "-".to_owned(),
        oid => oid.to_string(),
    }
}

fn missing(sqlstate: &'static str, kind: &str, name: &str) -> ValueError {
    ValueError::new(sqlstate, format!("{kind} \"{name}\" does not exist"))
}

fn index_property(name: &str) -> Datum {
    match name {
        "asc" | "nulls_last" | "orderable" | "returnable" | "search_array" => Datum::Bool(true),
        "desc" | "nulls_first" | "distance_orderable" | "search_nulls" => Datum::Bool(false),
        _ => Datum::Null,
    }
}

/// `pg_size_pretty`: the largest unit with less than 10240 of the next.
fn size_pretty(bytes: f64) -> String {
    let mut value = bytes;
    let mut unit = "bytes";
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if value.abs() < 10_240.0 {
            break;
        }
        value /= 1_024.0;
        unit = next;
    }
    format!("{:.0} {unit}", value.round())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_postgresql_prints_them() {
        for (bytes, text) in [
            (0.0, "0 bytes"),
            (10_239.0, "10239 bytes"),
            (10_240.0, "10 kB"),
            (20_971_520.0, "20 MB"),
        ] {
            assert_eq!(size_pretty(bytes), text);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = FUNCTIONS.iter().map(|function| function.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FUNCTIONS.len());
    }
}
