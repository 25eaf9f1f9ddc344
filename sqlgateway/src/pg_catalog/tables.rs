//! The rows of `pg_catalog`'s tables.
//!
//! Each function names only the columns that say something; the others get the
//! value that PostgreSQL has where there is nothing to say ([`zero`]).

use super::fixed::{fixed, operator_class};
use super::objects::{BTREE, HEAP, OWNER, OWNER_NAME, Objects, index_definition, indexes};
use super::relations::{self, SystemRelation};
use super::types;
use crate::catalog::{IndexDescriptor, IndexState, TableDescriptor};
use arrow::array::RecordBatch;
use lineradb_common::sql::{Datum, DatumArrayBuilder, SqlType, ValueError, ValueResult};
use std::sync::Arc;

/// Collects rows of a system relation.
pub struct Rows {
    pub(super) relation: &'static SystemRelation,
    columns: Vec<DatumArrayBuilder>,
    error: Option<ValueError>,
}

/// The value of a column that a row does not name.
pub fn zero(sql_type: SqlType) -> Datum {
    match sql_type {
        SqlType::Bool => Datum::Bool(false),
        SqlType::Int2 => Datum::Int2(0),
        SqlType::Int4 => Datum::Int4(0),
        SqlType::Oid => Datum::Oid(0),
        SqlType::InternalChar | SqlType::Name => Datum::Text(String::new()),
        _ => Datum::Null,
    }
}

/// Text.
pub fn text(value: &str) -> Datum {
    Datum::Text(value.to_owned())
}

impl Rows {
    /// For a relation.
    pub fn new(relation: &'static SystemRelation) -> Self {
        Rows {
            relation,
            columns: relation
                .columns
                .iter()
                .map(|(_, sql_type)| DatumArrayBuilder::new(*sql_type, 64))
                .collect(),
            error: None,
        }
    }

    /// Adds a row: the value of each column by name; `None`: [`zero`].
    pub fn push(&mut self, value: impl Fn(&str) -> Option<Datum>) {
        for ((name, sql_type), builder) in self.relation.columns.iter().zip(&mut self.columns) {
            let datum = value(name).unwrap_or_else(|| zero(*sql_type));
            if let Err(error) = builder.push(&datum) {
                self.error.get_or_insert(error);
            }
        }
    }

    /// The rows.
    ///
    /// # Errors
    /// XX000 when a value is not of its column's type.
    pub fn finish(mut self) -> ValueResult<RecordBatch> {
        if let Some(error) = self.error {
            return Err(ValueError::new(
                "XX000",
                format!("{}: {}", self.relation.name, error.message),
            ));
        }
        let arrays = self.columns.iter_mut().map(DatumArrayBuilder::finish);
        RecordBatch::try_new(Arc::clone(&self.relation.arrow), arrays.collect())
            .map_err(|error| ValueError::new("XX000", format!("{}: {error}", self.relation.name)))
    }
}

/// The rows of a relation of `pg_catalog` that depend on the snapshot alone.
///
/// # Errors
/// XX000 when a value is not of its column's type.
pub fn rows(relation: &'static SystemRelation, objects: &Objects) -> ValueResult<RecordBatch> {
    let mut rows = Rows::new(relation);
    match relation.name {
        "pg_namespace" => namespaces(&mut rows, objects),
        "pg_class" => classes(&mut rows, objects),
        "pg_attribute" => attributes(&mut rows, objects),
        "pg_attrdef" => defaults(&mut rows, objects),
        "pg_type" => return all_types(relation),
        "pg_index" => index_rows(&mut rows, objects),
        "pg_constraint" => constraints(&mut rows, objects),
        "pg_tables" => table_view(&mut rows, objects),
        "pg_indexes" => index_view(&mut rows, objects),
        _ => fixed(&mut rows),
    }
    rows.finish()
}

fn namespaces(rows: &mut Rows, objects: &Objects) {
    let mut names: Vec<&str> = vec!["pg_catalog", "information_schema", "lineradb_internal"];
    for schema in objects.catalog.schemas() {
        if !names.contains(&schema.name.as_str()) {
            names.push(&schema.name);
        }
    }
    for name in names {
        rows.push(|column| match column {
            "oid" => Some(Datum::Oid(objects.schema_oid(name))),
            "nspname" => Some(text(name)),
            "nspowner" => Some(Datum::Oid(OWNER)),
            _ => None,
        });
    }
}

fn classes(rows: &mut Rows, objects: &Objects) {
    let mut class = |oid: u32, schema: &str, name: &str, kind: &str, columns: usize, has: bool| {
        rows.push(|column| {
            Some(match column {
                "oid" => Datum::Oid(oid),
                "relfilenode" if kind != "v" => Datum::Oid(oid),
                "relname" => text(name),
                "relnamespace" => Datum::Oid(objects.schema_oid(schema)),
                "relowner" => Datum::Oid(OWNER),
                "relam" => Datum::Oid(match kind {
                    "i" => BTREE,
                    "r" => HEAP,
                    _ => 0,
                }),
                // Not analysed: PostgreSQL's way to say that it does not know.
                "reltuples" => Datum::Float4(-1.0),
                "relhasindex" => Datum::Bool(has),
                "relpersistence" => text("p"),
                "relkind" => text(kind),
                "relnatts" => Datum::Int2(columns as i16),
                "relispopulated" => Datum::Bool(true),
                "relreplident" => text(if kind == "r" { "d" } else { "n" }),
                _ => return None,
            })
        });
    };
    for relation in relations::all() {
        let columns = relation.columns.len();
        let (schema, name) = (relation.schema, relation.name);
        class(relation.oid, schema, name, relation.kind, columns, false);
    }
    for table in objects.catalog.tables() {
        let columns = table.visible_columns().count();
        let has_index = indexes(table).next().is_some();
        class(
            table.id,
            &table.schema,
            &table.name,
            "r",
            columns,
            has_index,
        );
        for index in indexes(table) {
            let columns = index.columns.len();
            class(index.oid, &table.schema, &index.name, "i", columns, false);
        }
    }
}

/// What `pg_attribute` says about a column.
struct Attribute<'a> {
    relation: u32,
    name: &'a str,
    number: i16,
    sql_type: SqlType,
    not_null: bool,
    has_default: bool,
}

fn attributes(rows: &mut Rows, objects: &Objects) {
    for relation in relations::all() {
        for (at, (name, sql_type)) in relation.columns.iter().enumerate() {
            attribute(
                rows,
                &Attribute {
                    relation: relation.oid,
                    name,
                    number: at as i16 + 1,
                    sql_type: *sql_type,
                    not_null: relation.kind == "r" && zero(*sql_type) != Datum::Null,
                    has_default: false,
                },
            );
        }
    }
    for table in objects.catalog.tables() {
        for column in table.visible_columns() {
            attribute(
                rows,
                &Attribute {
                    relation: table.id,
                    name: &column.name,
                    number: column.id as i16,
                    sql_type: column.sql_type,
                    not_null: !column.nullable,
                    has_default: column.default.is_some(),
                },
            );
        }
        for index in indexes(table) {
            for (at, id) in index.columns.iter().enumerate() {
                let Some(column) = table.column_by_id(*id) else {
                    continue;
                };
                attribute(
                    rows,
                    &Attribute {
                        relation: index.oid,
                        name: &column.name,
                        number: at as i16 + 1,
                        sql_type: column.sql_type,
                        not_null: false,
                        has_default: false,
                    },
                );
            }
        }
    }
}

fn attribute(rows: &mut Rows, attribute: &Attribute<'_>) {
    let sql_type = attribute.sql_type;
    let length = sql_type.type_length();
    rows.push(|column| {
        Some(match column {
            "attrelid" => Datum::Oid(attribute.relation),
            "attname" => text(attribute.name),
            "atttypid" => Datum::Oid(sql_type.oid()),
            "attstattarget" | "attcacheoff" => Datum::Int4(-1),
            "attlen" => Datum::Int2(length),
            "attnum" => Datum::Int2(attribute.number),
            "attndims" => Datum::Int4(i32::from(sql_type.element().is_some())),
            "atttypmod" => Datum::Int4(sql_type.type_modifier()),
            "attbyval" => Datum::Bool((1..=8).contains(&length)),
            "attalign" => text(match length {
                1 => "c",
                2 => "s",
                8 => "d",
                _ => "i",
            }),
            "attstorage" => text(match sql_type {
                SqlType::Numeric(_) => "m",
                _ if length == -1 => "x",
                _ => "p",
            }),
            "attnotnull" => Datum::Bool(attribute.not_null),
            "atthasdef" => Datum::Bool(attribute.has_default),
            "attislocal" => Datum::Bool(true),
            "attcollation" => Datum::Oid(collation(sql_type)),
            _ => return None,
        })
    });
}

fn collation(sql_type: SqlType) -> u32 {
    match sql_type {
        SqlType::Name => 950,
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) => 100,
        _ => 0,
    }
}

fn defaults(rows: &mut Rows, objects: &Objects) {
    for table in objects.catalog.tables() {
        for column in table.visible_columns() {
            let Some(default) = &column.default else {
                continue;
            };
            rows.push(|name| {
                Some(match name {
                    // Stable, unique in this table, out of the way of others.
                    "oid" => Datum::Oid(0x8000_0000 | (table.id << 8) | (column.id & 0xff)),
                    "adrelid" => Datum::Oid(table.id),
                    "adnum" => Datum::Int2(column.id as i16),
                    "adbin" => text(default),
                    _ => return None,
                })
            });
        }
    }
}

fn all_types(relation: &'static SystemRelation) -> ValueResult<RecordBatch> {
    let arrays = relation
        .columns
        .iter()
        .map(|(name, sql_type)| {
            let mut builder = DatumArrayBuilder::new(*sql_type, 160);
            for datum in types::values(name, *sql_type) {
                builder.push(&datum)?;
            }
            Ok(builder.finish())
        })
        .collect::<ValueResult<Vec<_>>>()?;
    RecordBatch::try_new(Arc::clone(&relation.arrow), arrays)
        .map_err(|error| ValueError::new("XX000", format!("pg_type: {error}")))
}

/// A vector of column numbers or OIDs.
fn numbers<'a>(ids: impl IntoIterator<Item = &'a u32>) -> Datum {
    let values = ids.into_iter().map(|id| Datum::Int2(*id as i16)).collect();
    Datum::Array(SqlType::Int2, values)
}

fn index_rows(rows: &mut Rows, objects: &Objects) {
    for table in objects.catalog.tables() {
        for index in indexes(table) {
            let count = index.columns.len();
            let public = index.state == IndexState::Public;
            rows.push(|column| {
                Some(match column {
                    "indexrelid" => Datum::Oid(index.oid),
                    "indrelid" => Datum::Oid(table.id),
                    "indnatts" | "indnkeyatts" => Datum::Int2(count as i16),
                    "indisunique" => Datum::Bool(index.unique || is_primary(table, index)),
                    "indisprimary" => Datum::Bool(is_primary(table, index)),
                    "indimmediate" | "indisready" | "indislive" => Datum::Bool(true),
                    "indisvalid" => Datum::Bool(public),
                    "indkey" => numbers(&index.columns),
                    "indoption" => Datum::Array(SqlType::Int2, vec![Datum::Int2(0); count]),
                    "indclass" | "indcollation" => {
                        let of = |id: &u32| {
                            let sql_type = table.column_by_id(*id).map(|c| c.sql_type);
                            Datum::Oid(sql_type.map_or(0, |sql_type| {
                                if column == "indclass" {
                                    operator_class(sql_type).0
                                } else {
                                    collation(sql_type)
                                }
                            }))
                        };
                        Datum::Array(SqlType::Oid, index.columns.iter().map(of).collect())
                    }
                    _ => return None,
                })
            });
        }
    }
}

fn is_primary(table: &TableDescriptor, index: &IndexDescriptor) -> bool {
    index.id == table.primary.id
}

fn constraints(rows: &mut Rows, objects: &Objects) {
    for table in objects.catalog.tables() {
        for index in indexes(table).filter(|index| index.constraint_oid != 0) {
            rows.push(|column| {
                Some(match column {
                    "oid" => Datum::Oid(index.constraint_oid),
                    "conname" => text(&index.name),
                    "connamespace" => Datum::Oid(objects.schema_oid(&table.schema)),
                    "contype" => text(if is_primary(table, index) { "p" } else { "u" }),
                    "convalidated" | "conislocal" | "connoinherit" => Datum::Bool(true),
                    "conrelid" => Datum::Oid(table.id),
                    "conindid" => Datum::Oid(index.oid),
                    "confupdtype" | "confdeltype" | "confmatchtype" => text(" "),
                    "conkey" => numbers(&index.columns),
                    _ => return None,
                })
            });
        }
    }
}

fn table_view(rows: &mut Rows, objects: &Objects) {
    let mut row = |schema: &str, name: &str, has_indexes: bool| {
        rows.push(|column| {
            Some(match column {
                "schemaname" => text(schema),
                "tablename" => text(name),
                "tableowner" => text(OWNER_NAME),
                "tablespace" => Datum::Null,
                "hasindexes" => Datum::Bool(has_indexes),
                _ => return None,
            })
        });
    };
    for relation in relations::all().iter().filter(|r| r.kind == "r") {
        row(relation.schema, relation.name, false);
    }
    for table in objects.catalog.tables() {
        row(&table.schema, &table.name, indexes(table).next().is_some());
    }
}

fn index_view(rows: &mut Rows, objects: &Objects) {
    for table in objects.catalog.tables() {
        for index in indexes(table) {
            rows.push(|column| {
                Some(match column {
                    "schemaname" => text(&table.schema),
                    "tablename" => text(&table.name),
                    "indexname" => text(&index.name),
                    "tablespace" => Datum::Null,
                    "indexdef" => text(&index_definition(table, index, 0)),
                    _ => return None,
                })
            });
        }
    }
}
