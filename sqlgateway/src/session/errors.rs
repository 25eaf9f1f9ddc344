//! Errors of the transaction layer in terms of tables: which row of which index a
//! key is.

use crate::catalog::CatalogSnapshot;
use crate::dml::codec::TableCodec;
use crate::error::SqlError;
use lineradb_client::Error as ClientError;

/// The error of a commit: a failed condition is a duplicate key.
pub(super) fn commit_error(error: ClientError, catalog: &CatalogSnapshot) -> SqlError {
    if let ClientError::ConditionFailed { key } = &error
        && let Some(duplicate) = duplicate_key(key, catalog)
    {
        return duplicate;
    }
    error.into()
}

/// 23505 for a key, when its table is known.
pub(super) fn duplicate_key(key: &[u8], catalog: &CatalogSnapshot) -> Option<SqlError> {
    Some(codec_of(key, catalog)?.duplicate(key))
}

/// Says at which row transactions met, where the error knows it.
pub(super) fn with_place(mut error: SqlError, catalog: &CatalogSnapshot) -> SqlError {
    let key = match error.cause.as_deref() {
        Some(ClientError::Conflict { key, .. } | ClientError::LockTimeout { key }) => key,
        _ => return error,
    };
    if error.detail.is_none() {
        error.detail = place(key, catalog);
    }
    error
}

/// A key in words.
fn place(key: &[u8], catalog: &CatalogSnapshot) -> Option<String> {
    let codec = codec_of(key, catalog)?;
    let (index, text) = codec.place(key)?;
    let (table, index) = (&codec.table.name, &index.name);
    Some(format!(
        "Key {text} of index \"{index}\" on table \"{table}\"."
    ))
}

fn codec_of(key: &[u8], catalog: &CatalogSnapshot) -> Option<TableCodec> {
    let id = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
    let table = catalog.table_by_id(u32::try_from(id).ok()?)?;
    TableCodec::new(table).ok()
}
