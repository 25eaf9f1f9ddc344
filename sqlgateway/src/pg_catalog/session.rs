//! The rows of `pg_catalog`'s views that show the session itself: its settings,
//! its activity, its prepared statements. Never shared with another session.

use super::objects::{DATABASE, OWNER, format_type};
use super::relations::SystemRelation;
use super::tables::{Rows, text};
use crate::query::QueryContext;
use arrow::array::RecordBatch;
use lineradb_common::sql::{Datum, SqlType, ValueResult};

/// The rows of a relation that depend on the session.
pub fn session_rows(
    relation: &'static SystemRelation,
    context: &QueryContext,
) -> Option<ValueResult<RecordBatch>> {
    let settings = &context.settings;
    let mut rows = Rows::new(relation);
    match relation.name {
        "pg_settings" => {
            for (name, value, description) in settings.all() {
                rows.push(|column| match column {
                    "name" => Some(text(name)),
                    "setting" | "reset_val" => Some(text(&value)),
                    "short_desc" => Some(text(description)),
                    "category" => Some(text("Client Connection Defaults")),
                    "context" => Some(text("user")),
                    "vartype" => Some(text("string")),
                    "source" => Some(text("session")),
                    _ => None,
                });
            }
        }
        "pg_stat_activity" => rows.push(|column| {
            Some(match column {
                "datid" => Datum::Oid(DATABASE),
                "datname" => text(&settings.database),
                "pid" | "leader_pid" => Datum::Null,
                "usesysid" => Datum::Oid(OWNER),
                "usename" => text(&settings.user),
                "application_name" => text(&settings.application_name),
                "client_port" => Datum::Null,
                "xact_start" => Datum::TimestampTz(settings.transaction_time_us),
                "query_start" | "state_change" => Datum::TimestampTz(settings.statement_time_us),
                "state" => text("active"),
                "backend_type" => text("client backend"),
                "backend_xid" | "backend_xmin" => Datum::Null,
                _ => return None,
            })
        }),
        "pg_prepared_statements" => {
            for (name, named) in context.prepared.iter() {
                let types = &named.prepared.parameter_types;
                let types = types
                    .iter()
                    .map(|t| Datum::Text(format_type(t.oid(), None)));
                let types: Vec<Datum> = types.collect();
                rows.push(|column| {
                    Some(match column {
                        "name" => text(name),
                        "statement" => text(&named.text),
                        "prepare_time" => Datum::TimestampTz(named.prepared_us),
                        "parameter_types" => Datum::Array(SqlType::Text, types.clone()),
                        "from_sql" => Datum::Bool(named.from_sql),
                        // Plans are the gateway's, shared by all sessions: how
                        // often this statement had one made is not counted.
                        "generic_plans" | "custom_plans" => Datum::Int8(0),
                        _ => return None,
                    })
                });
            }
        }
        _ => return None,
    }
    Some(rows.finish())
}
