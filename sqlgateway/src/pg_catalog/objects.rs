//! The catalog by OID: what functions and tables of `pg_catalog` look up.

use super::relations::{self, SystemRelation};
use crate::catalog::{CatalogSnapshot, IndexDescriptor, TableDescriptor};
use arrow::array::RecordBatch;
use lineradb_common::sql::SqlType;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// OID of the owner of everything: the role `lineradb`.
pub const OWNER: u32 = 10;
/// Its name.
pub const OWNER_NAME: &str = "lineradb";
/// OID of the schema `pg_catalog`.
pub const PG_CATALOG: u32 = 11;
/// OID of the schema `information_schema`.
pub const INFORMATION_SCHEMA: u32 = 13_207;
/// OID of the schema `lineradb_internal`.
pub const LINERADB_INTERNAL: u32 = 13_600;
/// OID of the database.
pub const DATABASE: u32 = 5;
/// OID of the access method `heap`.
pub const HEAP: u32 = 2;
/// OID of the access method `btree`.
pub const BTREE: u32 = 403;

/// What an OID of `pg_class` means.
pub enum Object {
    /// A table.
    Table(Arc<TableDescriptor>),
    /// An index of a table.
    Index(Arc<TableDescriptor>, IndexDescriptor),
    /// A relation of the system.
    System(&'static SystemRelation),
}

/// A catalog snapshot with what was derived from it.
pub struct Objects {
    /// The snapshot.
    pub catalog: Arc<CatalogSnapshot>,
    relations: HashMap<u32, Object>,
    constraints: HashMap<u32, u32>,
    /// Rows that depend on the snapshot alone.
    pub batches: Mutex<HashMap<&'static str, RecordBatch>>,
}

impl Objects {
    /// Derives.
    pub fn new(catalog: Arc<CatalogSnapshot>) -> Self {
        let mut relations: HashMap<u32, Object> = relations::all()
            .iter()
            .map(|relation| (relation.oid, Object::System(relation)))
            .collect();
        let mut constraints = HashMap::new();
        for table in catalog.tables() {
            relations.insert(table.id, Object::Table(Arc::clone(table)));
            for index in indexes(table) {
                relations.insert(index.oid, Object::Index(Arc::clone(table), index.clone()));
                if index.constraint_oid != 0 {
                    constraints.insert(index.constraint_oid, index.oid);
                }
            }
        }
        Objects {
            catalog,
            relations,
            constraints,
            batches: Mutex::default(),
        }
    }

    /// A relation by OID.
    pub fn relation(&self, oid: u32) -> Option<&Object> {
        self.relations.get(&oid)
    }

    /// The index behind a constraint, by the constraint's OID.
    pub fn constraint(&self, oid: u32) -> Option<(&Arc<TableDescriptor>, &IndexDescriptor)> {
        match self.relations.get(self.constraints.get(&oid)?)? {
            Object::Index(table, index) => Some((table, index)),
            _ => None,
        }
    }

    /// OID of a schema.
    pub fn schema_oid(&self, name: &str) -> u32 {
        match name {
            "pg_catalog" => PG_CATALOG,
            "information_schema" => INFORMATION_SCHEMA,
            "lineradb_internal" => LINERADB_INTERNAL,
            name => self.catalog.schema(name).map_or(0, |schema| schema.oid),
        }
    }

    /// Name of the schema with an OID.
    pub fn schema_name(&self, oid: u32) -> Option<String> {
        match oid {
            PG_CATALOG => Some("pg_catalog".into()),
            INFORMATION_SCHEMA => Some("information_schema".into()),
            LINERADB_INTERNAL => Some("lineradb_internal".into()),
            oid => {
                let mut schemas = self.catalog.schemas();
                schemas.find(|s| s.oid == oid).map(|s| s.name.clone())
            }
        }
    }

    /// OID of a relation from its name as it is written: qualified or not,
    /// quoted or not.
    pub fn relation_oid(&self, text: &str, search_path: &[String]) -> Option<u32> {
        let parts = parse_name(text)?;
        let in_schema = |schema: &str, name: &str| {
            relations::find(schema, name)
                .map(|relation| relation.oid)
                .or_else(|| self.catalog.relation(schema, name))
        };
        match parts.as_slice() {
            [name] => in_schema("pg_catalog", name).or_else(|| {
                search_path
                    .iter()
                    .find_map(|schema| in_schema(schema, name))
            }),
            [schema, name] | [_, schema, name] => in_schema(schema, name),
            _ => None,
        }
    }

    /// Name of a relation as `regclass` prints it: qualified unless the search
    /// path finds it.
    pub fn relation_name(&self, oid: u32, search_path: &[String]) -> Option<String> {
        let (schema, name) = self.qualified(oid)?;
        if self.is_visible(oid, search_path) {
            return Some(quote_identifier(name));
        }
        Some(format!(
            "{}.{}",
            quote_identifier(schema),
            quote_identifier(name)
        ))
    }

    /// Schema and name of a relation.
    pub fn qualified(&self, oid: u32) -> Option<(&str, &str)> {
        Some(match self.relations.get(&oid)? {
            Object::Table(table) => (&table.schema, &table.name),
            Object::Index(table, index) => (&table.schema, &index.name),
            Object::System(relation) => (relation.schema, relation.name),
        })
    }

    /// True when the unqualified name of a relation means it.
    pub fn is_visible(&self, oid: u32, search_path: &[String]) -> bool {
        self.qualified(oid).is_some_and(|(_, name)| {
            self.relation_oid(&quote_identifier(name), search_path) == Some(oid)
        })
    }
}

/// The indexes of a table that users know, the primary one first.
pub fn indexes(table: &TableDescriptor) -> impl Iterator<Item = &IndexDescriptor> {
    std::iter::once(&table.primary)
        .filter(|_| table.has_primary_key())
        .chain(&table.indexes)
}

/// Splits `a."B.c"` into its parts; `None` for text that is no name.
fn parse_name(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut part = String::new();
            let mut characters = quoted.char_indices().peekable();
            let end = loop {
                match characters.next()? {
                    (_, '"') if characters.next_if(|(_, c)| *c == '"').is_some() => part.push('"'),
                    (at, '"') => break at + 1,
                    (_, character) => part.push(character),
                }
            };
            parts.push(part);
            rest = &quoted[end..];
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            if rest[..end].is_empty() {
                return None;
            }
            parts.push(rest[..end].to_lowercase());
            rest = &rest[end..];
        }
        if rest.is_empty() {
            return Some(parts);
        }
        rest = rest.strip_prefix('.')?;
    }
}

/// A name as SQL needs it: quoted unless it is plain.
pub fn quote_identifier(name: &str) -> String {
    const RESERVED: [&str; 24] = [
        "all",
        "and",
        "any",
        "as",
        "case",
        "check",
        "column",
        "constraint",
        "default",
        "desc",
        "do",
        "end",
        "from",
        "group",
        "limit",
        "not",
        "null",
        "order",
        "primary",
        "select",
        "table",
        "unique",
        "user",
        "where",
    ];
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty();
    if plain && !RESERVED.contains(&name) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `CREATE INDEX` of an index, or just its column `number` (from 1).
pub fn index_definition(table: &TableDescriptor, index: &IndexDescriptor, number: i64) -> String {
    let columns = column_names(table, &index.columns);
    if number > 0 {
        return columns
            .get(number as usize - 1)
            .cloned()
            .unwrap_or_default();
    }
    format!(
        "CREATE {}INDEX {} ON {}.{} USING btree ({})",
        if index.unique { "UNIQUE " } else { "" },
        quote_identifier(&index.name),
        quote_identifier(&table.schema),
        quote_identifier(&table.name),
        columns.join(", ")
    )
}

/// `PRIMARY KEY (a, b)` or `UNIQUE (a)`.
pub fn constraint_definition(table: &TableDescriptor, index: &IndexDescriptor) -> String {
    let kind = if index.id == table.primary.id {
        "PRIMARY KEY"
    } else {
        "UNIQUE"
    };
    format!(
        "{kind} ({})",
        column_names(table, &index.columns).join(", ")
    )
}

fn column_names(table: &TableDescriptor, ids: &[u32]) -> Vec<String> {
    ids.iter()
        .map(|id| table.column_by_id(*id).map_or("?", |column| &column.name))
        .map(quote_identifier)
        .collect()
}

/// A type's name with its modifier, as `format_type` prints it.
pub fn format_type(oid: u32, modifier: Option<i64>) -> String {
    let modifier = modifier.filter(|modifier| *modifier >= 0).unwrap_or(-1);
    let sized = |name: &str| match modifier - 4 {
        length @ 0.. => format!("{name}({length})"),
        _ => name.to_owned(),
    };
    match oid {
        0 => "-".to_owned(),
        1042 if modifier < 0 => "character".to_owned(),
        1042 => sized("character"),
        1043 => sized("character varying"),
        1700 if modifier >= 4 => {
            let packed = modifier - 4;
            format!("numeric({},{})", packed >> 16, packed & 0x7ff)
        }
        oid => match SqlType::from_oid(oid) {
            Some(SqlType::Unknown) => "unknown".to_owned(),
            Some(sql_type) => sql_type.name(),
            None => super::types::name(oid).map_or_else(|| "???".to_owned(), str::to_owned),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_as_sql_reads_them() {
        let parts = |text: &str| parse_name(text).unwrap();
        assert_eq!(parts("T"), ["t"]);
        assert_eq!(parts("Public.\"My.T\"\"x\""), ["public", "My.T\"x"]);
        for bad in ["", "a.", "\"open", "\"a\"b"] {
            assert!(parse_name(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn names_are_quoted_where_needed() {
        assert_eq!(quote_identifier("a_1"), "a_1");
        assert_eq!(quote_identifier("A"), "\"A\"");
        assert_eq!(quote_identifier("select"), "\"select\"");
        assert_eq!(quote_identifier("1a"), "\"1a\"");
    }

    #[test]
    fn types_print_with_their_modifiers() {
        assert_eq!(format_type(23, None), "integer");
        assert_eq!(format_type(1043, Some(24)), "character varying(20)");
        assert_eq!(format_type(1043, Some(-1)), "character varying");
        assert_eq!(format_type(1042, Some(7)), "character(3)");
        assert_eq!(format_type(1700, Some(655_366)), "numeric(10,2)");
        assert_eq!(format_type(1184, Some(-1)), "timestamp with time zone");
        assert_eq!(format_type(1009, None), "text[]");
        assert_eq!(format_type(3_802, None), "jsonb");
        assert_eq!(format_type(4_000_000, None), "???");
    }

    #[test]
    fn system_relations_are_visible_by_name() {
        let objects = Objects::new(Arc::new(CatalogSnapshot::default()));
        let path = ["public".to_owned()];
        assert_eq!(objects.relation_oid("pg_class", &path), Some(1259));
        assert_eq!(
            objects.relation_oid("pg_catalog.pg_class", &path),
            Some(1259)
        );
        assert_eq!(objects.relation_name(1259, &path).unwrap(), "pg_class");
        let tables = objects.relation_oid("information_schema.tables", &path);
        assert_eq!(
            objects.relation_name(tables.unwrap(), &path).unwrap(),
            "information_schema.tables"
        );
        assert!(objects.relation_oid("tables", &path).is_none());
    }
}
