//! The rows of `information_schema`'s views.

use super::objects::{OWNER_NAME, Objects, format_type, indexes};
use super::relations::{self, SystemRelation};
use super::tables::{Rows, text};
use crate::catalog::TableDescriptor;
use arrow::array::RecordBatch;
use lineradb_common::sql::{Datum, SqlType, ValueResult};

/// The one database: every `*_catalog` column.
const CATALOG: &str = "lineradb";

/// The rows of a view.
///
/// # Errors
/// XX000 when a value is not of its column's type.
pub fn rows(relation: &'static SystemRelation, objects: &Objects) -> ValueResult<RecordBatch> {
    let mut rows = Rows::new(relation);
    match relation.name {
        "information_schema_catalog_name" => rows.push(|_| Some(text(CATALOG))),
        "enabled_roles" => rows.push(|_| Some(text(OWNER_NAME))),
        "schemata" => schemata(&mut rows, objects),
        "tables" => tables(&mut rows, objects),
        "columns" => columns(&mut rows, objects),
        "table_constraints" => constraints(&mut rows, objects),
        "key_column_usage" | "constraint_column_usage" | "constraint_table_usage" => {
            usage(&mut rows, objects, relation.name);
        }
        // Always empty.
        _ => {}
    }
    rows.finish()
}

fn yes(value: bool) -> Datum {
    text(if value { "YES" } else { "NO" })
}

fn int(value: impl Into<i64>) -> Datum {
    Datum::Int4(value.into() as i32)
}

fn schemata(rows: &mut Rows, objects: &Objects) {
    let mut names = vec!["pg_catalog", "information_schema"];
    for schema in objects.catalog.schemas() {
        if !names.contains(&schema.name.as_str()) {
            names.push(&schema.name);
        }
    }
    for name in names {
        rows.push(|column| {
            Some(match column {
                "catalog_name" => text(CATALOG),
                "schema_name" => text(name),
                "schema_owner" => text(OWNER_NAME),
                _ => Datum::Null,
            })
        });
    }
}

fn tables(rows: &mut Rows, objects: &Objects) {
    let mut row = |schema: &str, name: &str, view: bool, system: bool| {
        rows.push(|column| {
            Some(match column {
                "table_catalog" => text(CATALOG),
                "table_schema" => text(schema),
                "table_name" => text(name),
                "table_type" => text(if view { "VIEW" } else { "BASE TABLE" }),
                "is_insertable_into" => yes(!view && !system),
                "is_typed" => yes(false),
                _ => Datum::Null,
            })
        });
    };
    for relation in relations::all() {
        row(relation.schema, relation.name, relation.kind == "v", true);
    }
    for table in objects.catalog.tables() {
        row(&table.schema, &table.name, false, false);
    }
}

fn columns(rows: &mut Rows, objects: &Objects) {
    for relation in relations::all() {
        for (at, (name, sql_type)) in relation.columns.iter().enumerate() {
            let table = (relation.schema, relation.name);
            column_row(rows, table, name, at + 1, *sql_type, true, None);
        }
    }
    for table in objects.catalog.tables() {
        for column in table.visible_columns() {
            column_row(
                rows,
                (&table.schema, &table.name),
                &column.name,
                column.id as usize,
                column.sql_type,
                column.nullable,
                column.default.as_deref(),
            );
        }
    }
}

fn column_row(
    rows: &mut Rows,
    (schema, table): (&str, &str),
    name: &str,
    position: usize,
    sql_type: SqlType,
    nullable: bool,
    default: Option<&str>,
) {
    let precision: Option<(i64, i64, Option<i64>)> = match sql_type {
        SqlType::Int2 => Some((16, 2, Some(0))),
        SqlType::Int4 => Some((32, 2, Some(0))),
        SqlType::Int8 => Some((64, 2, Some(0))),
        SqlType::Float4 => Some((24, 2, None)),
        SqlType::Float8 => Some((53, 2, None)),
        SqlType::Numeric(Some((precision, scale))) => {
            Some((precision.into(), 10, Some(scale.into())))
        }
        _ => None,
    };
    let length = match sql_type {
        SqlType::Varchar(length) => length,
        SqlType::Char(length) => Some(length),
        _ => None,
    };
    rows.push(|column| {
        Some(match column {
            "table_catalog" | "udt_catalog" => text(CATALOG),
            "table_schema" => text(schema),
            "table_name" => text(table),
            "column_name" => text(name),
            "ordinal_position" => int(position as i64),
            "column_default" => default.map_or(Datum::Null, text),
            "is_nullable" => yes(nullable),
            "data_type" if sql_type.element().is_some() => text("ARRAY"),
            // Without the modifier: it has columns of its own.
            "data_type" => text(&format_type(sql_type.oid(), None)),
            "character_maximum_length" => length.map_or(Datum::Null, int),
            "character_octet_length" => match (length, sql_type.is_text()) {
                (Some(length), _) => int(i64::from(length) * 4),
                (None, true) => int(1_i64 << 30),
                (None, false) => Datum::Null,
            },
            "numeric_precision" => precision.map_or(Datum::Null, |p| int(p.0)),
            "numeric_precision_radix" => match sql_type {
                SqlType::Numeric(_) => int(10),
                _ => precision.map_or(Datum::Null, |p| int(p.1)),
            },
            "numeric_scale" => precision.and_then(|p| p.2).map_or(Datum::Null, int),
            "datetime_precision" => match sql_type {
                SqlType::Date => int(0),
                SqlType::Time | SqlType::Timestamp | SqlType::TimestampTz | SqlType::Interval => {
                    int(6)
                }
                _ => Datum::Null,
            },
            "udt_schema" => text("pg_catalog"),
            "udt_name" => text(sql_type.short_name()),
            "dtd_identifier" => text(&position.to_string()),
            "is_self_referencing" | "is_identity" | "identity_cycle" => yes(false),
            "is_generated" => text("NEVER"),
            "is_updatable" => yes(true),
            _ => Datum::Null,
        })
    });
}

fn constraints(rows: &mut Rows, objects: &Objects) {
    for table in objects.catalog.tables() {
        let mut row = |name: &str, kind: &str| {
            rows.push(|column| {
                Some(match column {
                    "constraint_catalog" | "table_catalog" => text(CATALOG),
                    "constraint_schema" | "table_schema" => text(&table.schema),
                    "constraint_name" => text(name),
                    "table_name" => text(&table.name),
                    "constraint_type" => text(kind),
                    "is_deferrable" | "initially_deferred" => yes(false),
                    "enforced" => yes(true),
                    "nulls_distinct" if kind == "UNIQUE" => yes(true),
                    _ => Datum::Null,
                })
            });
        };
        for index in indexes(table).filter(|index| index.constraint_oid != 0) {
            let primary = index.id == table.primary.id;
            row(&index.name, if primary { "PRIMARY KEY" } else { "UNIQUE" });
        }
        for column in table.visible_columns().filter(|column| !column.nullable) {
            // PostgreSQL 15 shows NOT NULL as a check, named by OIDs.
            let schema = objects.schema_oid(&table.schema);
            let name = format!("{schema}_{}_{}_not_null", table.id, column.id);
            row(&name, "CHECK");
        }
    }
}

fn usage(rows: &mut Rows, objects: &Objects, view: &str) {
    for table in objects.catalog.tables() {
        for index in indexes(table).filter(|index| index.constraint_oid != 0) {
            let ids: &[u32] = match view {
                // One row per constraint.
                "constraint_table_usage" => index.columns.get(..1).unwrap_or_default(),
                _ => &index.columns,
            };
            for (at, id) in ids.iter().enumerate() {
                usage_row(rows, table, &index.name, at, *id);
            }
        }
    }
}

fn usage_row(rows: &mut Rows, table: &TableDescriptor, constraint: &str, at: usize, id: u32) {
    rows.push(|column| {
        Some(match column {
            "constraint_catalog" | "table_catalog" => text(CATALOG),
            "constraint_schema" | "table_schema" => text(&table.schema),
            "constraint_name" => text(constraint),
            "table_name" => text(&table.name),
            "column_name" => table
                .column_by_id(id)
                .map_or(Datum::Null, |column| text(&column.name)),
            "ordinal_position" => int(at as i64 + 1),
            _ => Datum::Null,
        })
    });
}
