//! `lineradb_internal`: what the cluster is doing now, asked for when it is read.
//!
//! | relation | rows |
//! |---|---|
//! | `transactions` | open transactions of this gateway's sessions |
//! | `locks` | who holds and who awaits which row, at all leaders |
//! | `contention` | who waits for whom, and for how long |
//!
//! A transaction of another gateway, or of the KV API, is known by its id alone.
//! Each leader answers for the moment in which it is asked.

use super::objects::{DATABASE, OWNER};
use super::relations::SystemRelation;
use super::tables::{Rows, text};
use crate::activity::{Activities, Activity, Doing};
use crate::catalog::CatalogSnapshot;
use crate::dml::codec::TableCodec;
use crate::query::QueryContext;
use arrow::array::RecordBatch;
use lineradb_client::{Client, LockMode, LockState, Span};
use lineradb_common::TableId;
use lineradb_common::keys::table_prefix;
use lineradb_common::sql::{Datum, ValueError, ValueResult};
use std::collections::HashMap;
use std::sync::Arc;

/// Whom to ask.
#[derive(Clone)]
pub struct Cluster {
    /// All leaders.
    pub client: Client,
    /// This gateway's sessions.
    pub activities: Arc<Activities>,
}

impl Cluster {
    /// The rows of a relation that shows the present; `None`: it is none.
    pub async fn rows(
        &self,
        relation: &'static SystemRelation,
        context: &QueryContext,
    ) -> Option<ValueResult<RecordBatch>> {
        let mut rows = Rows::new(relation);
        match (relation.schema, relation.name) {
            ("pg_catalog", "pg_stat_activity") => self.sessions(&mut rows, context),
            ("lineradb_internal", "transactions") => self.transactions(&mut rows),
            ("lineradb_internal", name) => {
                let locks = match self.client.locks(Span::default()).await {
                    Ok(locks) => locks,
                    Err(error) => {
                        return Some(Err(ValueError::new("57P03", error.to_string())));
                    }
                };
                let places = Places::new(&context.catalog);
                match name {
                    "locks" => show_locks(&mut rows, &locks, places),
                    _ => show_waits(&mut rows, &locks, places),
                }
            }
            _ => return None,
        }
        Some(rows.finish())
    }

    fn sessions(&self, rows: &mut Rows, context: &QueryContext) {
        for (session, now) in self.activities.all() {
            let began = now.transaction.as_ref().map(|open| open.began_us);
            rows.push(|column| {
                Some(match column {
                    "datid" => Datum::Oid(DATABASE),
                    "datname" => text(&context.settings.database),
                    "pid" => Datum::Int4(session.pid),
                    "leader_pid" | "client_port" | "backend_xid" | "backend_xmin" => Datum::Null,
                    "usesysid" => Datum::Oid(OWNER),
                    "usename" => text(&session.user),
                    "application_name" => text(&now.application_name),
                    "backend_start" => Datum::TimestampTz(session.began_us),
                    "xact_start" => began.map_or(Datum::Null, Datum::TimestampTz),
                    "query_start" | "state_change" => Datum::TimestampTz(now.query_us),
                    "state" => text(now.state()),
                    "query" => text(&now.query),
                    "backend_type" => text("client backend"),
                    _ => return None,
                })
            });
        }
    }

    fn transactions(&self, rows: &mut Rows) {
        for (session, now) in self.activities.all() {
            transaction(rows, &session, &now);
        }
    }
}

fn transaction(rows: &mut Rows, session: &Activity, now: &Doing) {
    let Some(open) = &now.transaction else {
        return;
    };
    rows.push(|column| {
        Some(match column {
            "id" => text(&open.id.to_string()),
            "pid" => Datum::Int4(session.pid),
            "user_name" => text(&session.user),
            "application_name" => text(&now.application_name),
            "isolation_level" => text(open.isolation),
            "read_only" => Datum::Bool(open.read_only),
            "began" => Datum::TimestampTz(open.began_us),
            "statements" => Datum::Int8(open.statements as i64),
            "state" => text(now.state()),
            "query" => text(&now.query),
            _ => return None,
        })
    });
}

/// Where a key lies, in words.
#[derive(Clone, Debug, Default)]
struct Place {
    table: Option<String>,
    index: Option<String>,
    row: Option<String>,
}

/// Places by key; each table's codec is made once.
struct Places<'a> {
    catalog: &'a CatalogSnapshot,
    codecs: HashMap<u32, Option<TableCodec>>,
}

impl<'a> Places<'a> {
    fn new(catalog: &'a CatalogSnapshot) -> Self {
        Places {
            catalog,
            codecs: HashMap::new(),
        }
    }

    /// The place of a key; outside of tables it is named by its bytes.
    fn of(&mut self, key: &[u8]) -> Place {
        self.in_table(key).unwrap_or_else(|| Place {
            row: Some(format!("\\x{}", hex::encode(key))),
            ..Place::default()
        })
    }

    fn in_table(&mut self, key: &[u8]) -> Option<Place> {
        let id = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
        if !key.starts_with(&table_prefix(TableId(id))) {
            return None;
        }
        let id = u32::try_from(id).ok()?;
        let catalog = self.catalog;
        let codec = { self.codecs.entry(id) }
            .or_insert_with(|| TableCodec::new(catalog.table_by_id(id)?).ok());
        let codec = codec.as_ref()?;
        let (index, row) = codec.place(key)?;
        Some(Place {
            table: Some(codec.table.name.clone()),
            index: Some(index.name.clone()),
            row: Some(row.to_string()),
        })
    }
}

fn named(name: Option<&String>) -> Datum {
    name.map_or(Datum::Null, |name| text(name))
}

fn milliseconds(state: &LockState) -> Datum {
    let waits = state.waits.map(|waits| waits.as_millis() as i64);
    waits.map_or(Datum::Null, Datum::Int8)
}

fn show_locks(rows: &mut Rows, locks: &[LockState], mut places: Places<'_>) {
    for lock in locks {
        let place = places.of(&lock.key);
        let mode = match lock.mode {
            LockMode::Shared => "shared",
            LockMode::Exclusive => "exclusive",
            LockMode::Intent => "intent",
        };
        rows.push(|column| {
            Some(match column {
                "table_name" => named(place.table.as_ref()),
                "index_name" => named(place.index.as_ref()),
                "key" => named(place.row.as_ref()),
                "transaction_id" => text(&lock.txn.to_string()),
                "mode" => text(mode),
                "granted" => Datum::Bool(lock.waits.is_none()),
                "waited_ms" => milliseconds(lock),
                _ => return None,
            })
        });
    }
}

/// Each waiter with the holder that it waits for, or with whoever is ahead of it.
fn show_waits(rows: &mut Rows, locks: &[LockState], mut places: Places<'_>) {
    for of_key in locks.chunk_by(|a, b| a.key == b.key) {
        let (holders, waiters) = of_key.split_at(of_key.partition_point(|l| l.waits.is_none()));
        let Some(first) = waiters.first() else {
            continue;
        };
        let place = places.of(&first.key);
        for (at, waiter) in waiters.iter().enumerate() {
            let conflicts = |l: &&LockState| {
                let shared = l.mode == LockMode::Shared && waiter.mode == LockMode::Shared;
                l.txn != waiter.txn && !shared
            };
            let ahead = waiters[..at].iter().next_back();
            let blocker = holders.iter().find(conflicts).or(ahead);
            rows.push(|column| {
                Some(match column {
                    "table_name" => named(place.table.as_ref()),
                    "index_name" => named(place.index.as_ref()),
                    "key" => named(place.row.as_ref()),
                    "waiting_transaction" => text(&waiter.txn.to_string()),
                    "blocking_transaction" => {
                        blocker.map_or(Datum::Null, |l| text(&l.txn.to_string()))
                    }
                    "waited_ms" => milliseconds(waiter),
                    _ => return None,
                })
            });
        }
    }
}
