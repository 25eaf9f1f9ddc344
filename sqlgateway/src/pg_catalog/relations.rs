//! The relations of `pg_catalog`, `information_schema` and `lineradb_internal`:
//! their names, OIDs and columns, from `system.tsv`.

use arrow::datatypes::{Schema, SchemaRef};
use lineradb_common::sql::SqlType;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// A system relation.
#[derive(Debug)]
pub struct SystemRelation {
    /// `pg_catalog`, `information_schema` or `lineradb_internal`.
    pub schema: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its OID.
    pub oid: u32,
    /// `r` or `v`.
    pub kind: &'static str,
    /// Names and types.
    pub columns: Vec<(&'static str, SqlType)>,
    /// The same for Arrow.
    pub arrow: SchemaRef,
}

/// Relations that have rows; every other one is always empty.
const FILLED: [&str; 32] = [
    "pg_am",
    "pg_attrdef",
    "pg_attribute",
    "pg_authid",
    "pg_class",
    "pg_collation",
    "pg_constraint",
    "pg_database",
    "pg_index",
    "pg_indexes",
    "pg_language",
    "pg_namespace",
    "pg_opclass",
    "pg_prepared_statements",
    "pg_proc",
    "pg_roles",
    "pg_settings",
    "pg_shadow",
    "pg_stat_activity",
    "pg_tables",
    "pg_tablespace",
    "pg_type",
    "pg_user",
    "columns",
    "constraint_column_usage",
    "constraint_table_usage",
    "enabled_roles",
    "information_schema_catalog_name",
    "key_column_usage",
    "schemata",
    "table_constraints",
    "tables",
];

static RELATIONS: LazyLock<Vec<SystemRelation>> = LazyLock::new(|| {
    include_str!("system.tsv")
        .lines()
        .filter_map(parse)
        .collect()
});

static BY_NAME: LazyLock<HashMap<(&'static str, &'static str), &'static SystemRelation>> =
    LazyLock::new(|| all().iter().map(|r| ((r.schema, r.name), r)).collect());

/// True for the schemas that hold system relations only.
pub fn is_system_schema(name: &str) -> bool {
    matches!(
        name,
        "pg_catalog" | "information_schema" | "lineradb_internal"
    )
}

/// All of them.
pub fn all() -> &'static [SystemRelation] {
    &RELATIONS
}

/// One by name.
pub fn find<'a>(schema: &'a str, name: &'a str) -> Option<&'static SystemRelation> {
    // A map with 'static keys is also one with shorter-lived keys.
    let by_name: &HashMap<(&'a str, &'a str), &'static SystemRelation> = &BY_NAME;
    by_name.get(&(schema, name)).copied()
}

/// True for a relation of `pg_catalog` that never has rows here.
pub fn is_always_empty(name: &str) -> bool {
    find("pg_catalog", name).is_some() && !FILLED.contains(&name)
}

fn parse(line: &'static str) -> Option<SystemRelation> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = line.split('|');
    let (schema, name) = (fields.next()?, fields.next()?);
    let (oid, kind) = (fields.next()?.parse().ok()?, fields.next()?);
    let columns: Vec<(&'static str, SqlType)> = fields
        .next()?
        .split(',')
        .filter_map(|column| {
            let (name, text) = column.split_once(':')?;
            Some((name, column_type(text)))
        })
        .collect();
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, sql_type)| sql_type.field(name, true))
        .collect();
    Some(SystemRelation {
        schema,
        name,
        oid,
        kind,
        columns,
        arrow: Arc::new(Schema::new(fields)),
    })
}

/// The type that stands for a type of PostgreSQL's catalog. What has no type
/// here (`pg_node_tree`, `inet`, `regproc`, ...) is text, as it prints.
fn column_type(text: &str) -> SqlType {
    if let Some(element) = text.strip_suffix("[]") {
        return SqlType::Array(column_type(element).oid());
    }
    match text {
        "oid" | "xid" => SqlType::Oid,
        "name" => SqlType::Name,
        "\"char\"" => SqlType::InternalChar,
        "boolean" => SqlType::Bool,
        "smallint" => SqlType::Int2,
        "integer" => SqlType::Int4,
        "bigint" => SqlType::Int8,
        "real" => SqlType::Float4,
        "double precision" => SqlType::Float8,
        "timestamp with time zone" => SqlType::TimestampTz,
        "interval" => SqlType::Interval,
        "bytea" => SqlType::Bytea,
        "int2vector" => SqlType::Array(SqlType::Int2.oid()),
        "oidvector" => SqlType::Array(SqlType::Oid.oid()),
        "yes_or_no" => SqlType::Varchar(Some(3)),
        _ => SqlType::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relations_are_there() {
        assert!(all().len() > 130);
        let class = find("pg_catalog", "pg_class").unwrap();
        assert_eq!((class.oid, class.kind), (1259, "r"));
        assert_eq!(class.columns[0], ("oid", SqlType::Oid));
        assert!(find("pg_catalog", "nope").is_none());
        assert!(find("public", "pg_class").is_none());
    }

    #[test]
    fn every_filled_relation_exists() {
        for name in FILLED {
            assert!(
                find("pg_catalog", name).is_some() || find("information_schema", name).is_some(),
                "{name}"
            );
        }
        assert!(is_always_empty("pg_policy"));
        assert!(!is_always_empty("pg_class"));
        assert!(!is_always_empty("orders"));
    }

    #[test]
    fn oids_are_unique() {
        let mut oids: Vec<u32> = all().iter().map(|relation| relation.oid).collect();
        oids.sort_unstable();
        let count = oids.len();
        oids.dedup();
        assert_eq!(oids.len(), count);
    }
}
