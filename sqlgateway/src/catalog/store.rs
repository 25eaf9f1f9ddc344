//! The catalog in the KV tier, and the gateway's cached snapshot of it.
//!
//! | key | value |
//! |---|---|
//! | `c` `v` | the catalog version, raised by every DDL |
//! | `c` `s` name | a schema |
//! | `c` `d` table id | a table descriptor |
//! | `c` `g` id | a span of keys that no table uses any more, to be deleted |
//! | `c` `b` table id, index id | an index build and who drives it (`ddl::builds`) |
//!
//! Every DDL locks the version key first: DDL statements run one at a time, so
//! names need no keys of their own.

use super::{CatalogSnapshot, IdBlock, SchemaDescriptor, TableDescriptor};
use crate::error::{Result, SqlError};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_client::{
    Client, Condition, Isolation, LockOptions, ScanOptions, Span, Transaction, TransactionOptions,
    WriteOptions,
};
use lineradb_common::keys;
use serde::{Deserialize, Serialize};
use slot::Slot;
use std::sync::Arc;

/// OID of the schema `public`, as in PostgreSQL.
pub const PUBLIC_OID: u32 = 2200;
/// First OID of user objects, as in PostgreSQL.
pub const FIRST_USER_OID: u32 = 16_384;

/// A slot for an `Arc` that is swapped whole.
mod slot {
    use parking_lot::RwLock;
    use std::sync::Arc;

    #[derive(Debug)]
    pub struct Slot<T>(RwLock<Arc<T>>);

    impl<T> Slot<T> {
        pub fn new(value: T) -> Self {
            Slot(RwLock::new(Arc::new(value)))
        }

        pub fn load(&self) -> Arc<T> {
            Arc::clone(&self.0.read())
        }

        pub fn store_if(&self, value: Arc<T>, newer: impl Fn(&T, &T) -> bool) {
            let mut slot = self.0.write();
            if newer(&value, &slot) {
                *slot = value;
            }
        }
    }
}

/// A span that no table uses any more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Garbage {
    /// First key, in hex.
    pub start: String,
    /// First key after it, in hex.
    pub end: String,
}

impl Garbage {
    /// Of a span.
    pub fn of(span: &Span) -> Self {
        Garbage {
            start: hex::encode(&span.start),
            end: hex::encode(&span.end),
        }
    }

    /// The span.
    pub fn span(&self) -> Option<Span> {
        Some(Span::new(
            hex::decode(&self.start).ok()?,
            hex::decode(&self.end).ok()?,
        ))
    }
}

/// An index under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexBuild {
    /// Who drives it.
    pub driver: String,
    /// Raised by the driver while it lives.
    pub beat: u64,
    /// The rows below this key are indexed, in hex; none: nothing is yet.
    pub from: Option<String>,
    /// The command tag of the statement that began it.
    pub tag: String,
    /// The idempotency key of that statement: the build's last step commits
    /// under it, whoever takes that step (X2).
    pub idempotency: Option<BuildKey>,
}

/// An idempotency key that a build carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildKey {
    /// Whose key it is.
    pub user: String,
    /// The key.
    pub key: String,
    /// What it stands for, in hex.
    pub request_hash: String,
}

fn key(kind: u8, rest: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(2 + rest.len());
    key.put_u8(keys::CATALOG);
    key.put_u8(kind);
    key.put_slice(rest);
    key.freeze()
}

pub(crate) fn version_key() -> Bytes {
    key(b'v', &[])
}

pub(crate) fn table_key(id: u32) -> Bytes {
    key(b'd', &id.to_be_bytes())
}

pub(crate) fn schema_key(name: &str) -> Bytes {
    key(b's', name.as_bytes())
}

pub(crate) fn garbage_key(id: u64) -> Bytes {
    key(b'g', &id.to_be_bytes())
}

pub(crate) fn garbage_span() -> Span {
    Span::prefix(&key(b'g', &[]))
}

pub(crate) fn build_key(table: u32, index: u32) -> Bytes {
    let mut id = [0; 8];
    id[..4].copy_from_slice(&table.to_be_bytes());
    id[4..].copy_from_slice(&index.to_be_bytes());
    key(b'b', &id)
}

/// Table and index of a build's key.
pub(crate) fn build_of(key: &[u8]) -> Option<(u32, u32)> {
    let id = u64::from_be_bytes(key.get(2..)?.try_into().ok()?);
    Some(((id >> 32) as u32, id as u32))
}

pub(crate) fn build_span() -> Span {
    Span::prefix(&key(b'b', &[]))
}

/// The catalog as one gateway sees it.
pub struct CatalogStore {
    client: Client,
    cached: Slot<CatalogSnapshot>,
    refreshing: tokio::sync::Mutex<()>,
    /// OIDs of new objects.
    pub oids: IdBlock,
    /// Row ids of tables without a primary key.
    pub row_ids: IdBlock,
}

impl CatalogStore {
    /// Reads the catalog; writes the first one into a new cluster.
    ///
    /// # Errors
    /// 57P03 while the cluster cannot be reached.
    pub async fn open(client: Client) -> Result<Self> {
        let store = CatalogStore {
            client: client.clone(),
            oids: IdBlock::new(client.clone(), "sql_oid", 32),
            row_ids: IdBlock::new(client.clone(), "sql_rowid", 16_384),
            cached: Slot::new(CatalogSnapshot::default()),
            refreshing: tokio::sync::Mutex::new(()),
        };
        store.refresh().await?;
        if store.cached.load().version() == 0 {
            store.bootstrap().await?;
            store.refresh().await?;
        }
        Ok(store)
    }

    async fn bootstrap(&self) -> Result<()> {
        let txn = self.client.begin(TransactionOptions::default())?;
        let public = SchemaDescriptor {
            oid: PUBLIC_OID,
            name: "public".into(),
        };
        let first = WriteOptions {
            table: None,
            condition: Condition::Absent,
        };
        txn.put(version_key(), version_value(1), first)?;
        txn.put(
            schema_key("public"),
            encode(&public)?,
            WriteOptions::default(),
        )?;
        match txn.commit().await {
            Ok(_) => Ok(()),
            // Another gateway was first, or may have been.
            Err(
                lineradb_client::Error::ConditionFailed { .. }
                | lineradb_client::Error::Conflict { .. }
                | lineradb_client::Error::Unknown { .. },
            ) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> Arc<CatalogSnapshot> {
        self.cached.load()
    }

    /// Reads the newest catalog; callers at the same time share one read.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub async fn refresh(&self) -> Result<Arc<CatalogSnapshot>> {
        let _one_at_a_time = self.refreshing.lock().await;
        let txn = self.client.begin(TransactionOptions {
            isolation: Isolation::Serializable,
            read_only: true,
            ..TransactionOptions::default()
        })?;
        let loaded = self.load(&txn).await;
        txn.rollback().await;
        let loaded = loaded?;
        self.install(Arc::clone(&loaded));
        Ok(loaded)
    }

    /// The catalog as `txn` sees it. Its reads join the transaction's.
    ///
    /// # Errors
    /// Those of the transaction layer, XX001 for descriptors that do not decode.
    pub async fn load(&self, txn: &Transaction) -> Result<Arc<CatalogSnapshot>> {
        let version = match txn.get(&version_key(), None).await? {
            Some(value) => decode_version(&value)?,
            None => return Ok(Arc::new(CatalogSnapshot::default())),
        };
        let cached = self.cached.load();
        if cached.version() == version {
            return Ok(cached);
        }
        let mut schemas: Vec<SchemaDescriptor> = Vec::new();
        for (_, value) in txn
            .scan(Span::prefix(&schema_key("")), ScanOptions::default(), None)
            .await?
        {
            schemas.push(decode(&value)?);
        }
        let mut tables = Vec::new();
        for (_, value) in txn
            .scan(Span::prefix(&key(b'd', &[])), ScanOptions::default(), None)
            .await?
        {
            let table: TableDescriptor = decode(&value)?;
            if table.format != super::descriptor::DESCRIPTOR_FORMAT {
                return Err(SqlError::new(
                    "XX001",
                    format!(
                        "table \"{}\" is described in format {}, which this gateway does not know",
                        table.name, table.format
                    ),
                ));
            }
            // Unchanged tables are shared with the snapshot before.
            match cached.table_by_id(table.id) {
                Some(old) if **old == table => tables.push(Arc::clone(old)),
                _ => tables.push(Arc::new(table)),
            }
        }
        Ok(Arc::new(CatalogSnapshot::new(version, schemas, tables)))
    }

    /// Takes a snapshot that is committed, if it is newer than the one in use.
    pub fn install(&self, snapshot: Arc<CatalogSnapshot>) {
        self.cached
            .store_if(snapshot, |new, old| new.version() > old.version());
    }

    /// Locks the catalog for a DDL statement and reads it as the transaction
    /// sees it.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub async fn load_for_change(&self, txn: &Transaction) -> Result<CatalogSnapshot> {
        txn.locking_get(&[version_key()], None, LockOptions::default())
            .await?;
        Ok((*self.load(txn).await?).clone())
    }
}

pub(crate) fn version_value(version: u64) -> Bytes {
    Bytes::copy_from_slice(&version.to_be_bytes())
}

fn decode_version(value: &[u8]) -> Result<u64> {
    <[u8; 8]>::try_from(value)
        .map(u64::from_be_bytes)
        .map_err(|_| SqlError::new("XX001", "the catalog version does not decode"))
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|e| SqlError::internal(format!("a descriptor does not encode: {e}")))
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(value: &[u8]) -> Result<T> {
    serde_json::from_slice(value)
        .map_err(|e| SqlError::new("XX001", format!("a descriptor does not decode: {e}")))
}
