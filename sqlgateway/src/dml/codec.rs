//! Rows as keys and values of a table's indexes.
//!
//! | index | key after the prefix | value |
//! |---|---|---|
//! | primary | its columns | all other columns |
//! | unique | its columns; those of the primary key, too, when one is NULL | primary key columns that are not its own |
//! | other | its columns, then those of the primary key | none |

use crate::catalog::{IndexDescriptor, IndexState, TableDescriptor};
use crate::error::{Result, SqlError};
use bytes::{Bytes, BytesMut};
use lineradb_common::limits::ENCODED_KEY_BYTES_MAX;
use lineradb_common::sql::{
    Datum, RowLayout, TimeZone, decode_key_datum, encode_key_datum, encode_row_value,
};
use std::fmt;
use std::sync::Arc;

/// How the rows of a table are encoded, worked out once per schema version.
#[derive(Debug)]
pub struct TableCodec {
    /// The table.
    pub table: Arc<TableDescriptor>,
    /// How rows decode.
    pub layout: Arc<RowLayout>,
    /// The primary index first, then the others; a new primary index under
    /// construction last.
    pub indexes: Vec<IndexCodec>,
}

/// How the entries of one index are encoded.
#[derive(Debug)]
pub struct IndexCodec {
    /// The index.
    pub index: IndexDescriptor,
    prefix: Bytes,
    /// Positions of its columns in the row.
    key: Vec<usize>,
    /// Positions of the primary key columns that it lacks.
    suffix: Vec<usize>,
    /// (column id, position) of what its value holds, ids ascending.
    value: Vec<(u32, usize)>,
    /// The entry is the whole row: NULLs are not allowed in its key.
    whole_row: bool,
}

/// An entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// No other row may have this key.
    pub unique: bool,
}

/// A key for people: `(a, b)=(1, x)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyText {
    names: Vec<String>,
    values: Vec<String>,
}

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (names, values) = (self.names.join(", "), self.values.join(", "));
        write!(f, "({names})=({values})")
    }
}

impl TableCodec {
    /// Where the entries of indexes lie that are being built.
    pub fn building_prefixes(&self) -> Vec<Bytes> {
        let indexes = self.table.indexes.iter();
        indexes
            .filter(|index| index.state != IndexState::Public)
            .chain(&self.table.pending_primary)
            .map(|index| self.table.index_prefix(index.id))
            .collect()
    }

    /// For a table.
    ///
    /// # Errors
    /// XX001 when the descriptor contradicts itself.
    pub fn new(table: &Arc<TableDescriptor>) -> Result<Self> {
        let mut indexes = vec![IndexCodec::whole_row(table, &table.primary)?];
        for index in &table.indexes {
            indexes.push(IndexCodec::secondary(table, index)?);
        }
        if let Some(pending) = &table.pending_primary {
            indexes.push(IndexCodec::whole_row(table, pending)?);
        }
        Ok(TableCodec {
            table: Arc::clone(table),
            layout: Arc::new(table.primary_layout()?),
            indexes,
        })
    }

    /// The primary index.
    pub fn primary(&self) -> &IndexCodec {
        &self.indexes[0]
    }

    /// A stored row as values, in the order of the table's columns.
    ///
    /// # Errors
    /// XX001 for bytes that do not decode.
    pub fn decode(&self, key: &[u8], value: &[u8]) -> Result<Vec<Datum>> {
        Ok(self.layout.decode_row(key, value)?)
    }

    /// The entries of a row, in the order of `indexes`.
    ///
    /// # Errors
    /// 23502 for a NULL in a primary key, 54000 for a key that is too long.
    pub fn entries(&self, row: &[Datum]) -> Result<Vec<Entry>> {
        self.indexes
            .iter()
            .map(|i| i.entry(&self.table, row))
            .collect()
    }

    /// Which index a key belongs to, and what it says.
    pub fn place(&self, key: &[u8]) -> Option<(&IndexDescriptor, KeyText)> {
        let index = self.indexes.iter().find(|i| key.starts_with(&i.prefix))?;
        Some((&index.index, index.text_of(&self.table, key)?))
    }

    /// 23505 for a key of one of the indexes, in PostgreSQL's words.
    pub fn duplicate(&self, key: &[u8]) -> SqlError {
        match self.indexes.iter().find(|i| key.starts_with(&i.prefix)) {
            Some(index) => index.duplicate(&self.table, key),
            None => SqlError::new("23505", "duplicate key value violates unique constraint"),
        }
    }
}

impl IndexCodec {
    fn whole_row(table: &TableDescriptor, index: &IndexDescriptor) -> Result<Self> {
        let key = positions(table, &index.columns)?;
        let mut value: Vec<(u32, usize)> = table
            .columns
            .iter()
            .enumerate()
            .filter(|(at, _)| !key.contains(at))
            .map(|(at, c)| (c.id, at))
            .collect();
        value.sort_unstable();
        Ok(IndexCodec {
            prefix: table.index_prefix(index.id),
            index: index.clone(),
            key,
            suffix: Vec::new(),
            value,
            whole_row: true,
        })
    }

    fn secondary(table: &TableDescriptor, index: &IndexDescriptor) -> Result<Self> {
        let key = positions(table, &index.columns)?;
        let suffix: Vec<usize> = positions(table, &table.primary.columns)?
            .into_iter()
            .filter(|at| !key.contains(at))
            .collect();
        let mut value: Vec<(u32, usize)> = if index.unique {
            suffix
                .iter()
                .map(|at| (table.columns[*at].id, *at))
                .collect()
        } else {
            Vec::new()
        };
        value.sort_unstable();
        Ok(IndexCodec {
            prefix: table.index_prefix(index.id),
            index: index.clone(),
            key,
            suffix,
            value,
            whole_row: false,
        })
    }

    /// Positions of its columns in the row.
    pub fn key_positions(&self) -> &[usize] {
        &self.key
    }

    /// The entry of a row.
    ///
    /// # Errors
    /// 23502 for a NULL in a primary key, 54000 for a key that is too long.
    pub fn entry(&self, table: &TableDescriptor, row: &[Datum]) -> Result<Entry> {
        let mut key = BytesMut::with_capacity(64);
        key.extend_from_slice(&self.prefix);
        let mut has_null = false;
        for at in &self.key {
            if row[*at].is_null() {
                if self.whole_row {
                    return Err(not_null(table, *at, row));
                }
                has_null = true;
            }
            encode_key_datum(&row[*at], &mut key)?;
        }
        let unique = self.whole_row || self.index.unique && !has_null;
        if !unique {
            for at in &self.suffix {
                encode_key_datum(&row[*at], &mut key)?;
            }
        }
        if key.len() > ENCODED_KEY_BYTES_MAX {
            return Err(SqlError::new(
                "54000",
                format!(
                    "index row of {} bytes exceeds the maximum of {ENCODED_KEY_BYTES_MAX} for index \"{}\"",
                    key.len(),
                    self.index.name
                ),
            ));
        }
        let value = encode_row_value(self.value.iter().map(|(id, at)| (*id, &row[*at])));
        Ok(Entry {
            key: key.freeze(),
            value: value.into(),
            unique,
        })
    }

    /// The key of values of its columns; `None` when one is NULL.
    ///
    /// # Errors
    /// 0A000 for a value that cannot be part of a key.
    pub fn key_of(&self, values: &[Datum]) -> Result<Option<Bytes>> {
        let mut key = BytesMut::with_capacity(48);
        key.extend_from_slice(&self.prefix);
        for v in values {
            if v.is_null() {
                return Ok(None);
            }
            encode_key_datum(v, &mut key)?;
        }
        Ok(Some(key.freeze()))
    }

    /// 23505 for one of its keys, in PostgreSQL's words.
    pub fn duplicate(&self, table: &TableDescriptor, key: &[u8]) -> SqlError {
        let error = SqlError::new(
            "23505",
            format!(
                "duplicate key value violates unique constraint \"{}\"",
                self.index.name
            ),
        );
        match self.text_of(table, key) {
            Some(text) => error.with_detail(format!("Key {text} already exists.")),
            None => error,
        }
    }

    fn text_of(&self, table: &TableDescriptor, key: &[u8]) -> Option<KeyText> {
        let mut rest = key.get(self.prefix.len()..)?;
        let mut text = KeyText::default();
        for at in &self.key {
            let c = &table.columns[*at];
            let v = decode_key_datum(c.sql_type, &mut rest).ok()?;
            text.names.push(c.name.clone());
            let shown = v.format(c.sql_type, &TimeZone::UTC);
            text.values.push(shown.unwrap_or_else(|| "null".into()));
        }
        Some(text)
    }
}

fn positions(table: &TableDescriptor, ids: &[u32]) -> Result<Vec<usize>> {
    ids.iter()
        .map(|id| {
            table.position_of(*id).ok_or_else(|| {
                SqlError::new(
                    "XX001",
                    format!("an index of \"{}\" names a missing column", table.name),
                )
            })
        })
        .collect()
}

/// 23502 for a NULL in a NOT NULL column, in PostgreSQL's words.
pub fn not_null(table: &TableDescriptor, at: usize, row: &[Datum]) -> SqlError {
    let shown: Vec<String> = table
        .columns
        .iter()
        .zip(row)
        .filter(|(c, _)| !c.hidden)
        .map(|(c, v)| {
            v.format(c.sql_type, &TimeZone::UTC)
                .unwrap_or_else(|| "null".into())
        })
        .collect();
    SqlError::new(
        "23502",
        format!(
            "null value in column \"{}\" of relation \"{}\" violates not-null constraint",
            table.columns[at].name, table.name
        ),
    )
    .with_detail(format!("Failing row contains ({}).", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ColumnDescriptor, DESCRIPTOR_FORMAT, IndexState};
    use lineradb_common::sql::SqlType;

    fn column(id: u32, name: &str, sql_type: SqlType, nullable: bool) -> ColumnDescriptor {
        ColumnDescriptor {
            id,
            name: name.into(),
            sql_type,
            nullable,
            default: None,
            missing: None,
            hidden: false,
        }
    }

    fn index(id: u32, name: &str, unique: bool, columns: &[u32]) -> IndexDescriptor {
        IndexDescriptor {
            id,
            oid: 20_000 + id,
            constraint_oid: u32::from(unique) * (30_000 + id),
            name: name.into(),
            unique,
            columns: columns.to_vec(),
            state: IndexState::Public,
        }
    }

    fn codec() -> TableCodec {
        let table = TableDescriptor {
            format: DESCRIPTOR_FORMAT,
            id: 16_384,
            schema: "public".into(),
            name: "t".into(),
            version: 1,
            columns: vec![
                column(1, "id", SqlType::Int4, false),
                column(2, "email", SqlType::Text, true),
                column(3, "n", SqlType::Int8, true),
            ],
            next_column_id: 4,
            primary: index(1, "t_pkey", true, &[1]),
            pending_primary: None,
            indexes: vec![
                index(2, "t_email_key", true, &[2]),
                index(3, "t_n_idx", false, &[3]),
            ],
            next_index_id: 4,
        };
        TableCodec::new(&Arc::new(table)).unwrap()
    }

    #[test]
    fn a_row_comes_back_from_its_primary_entry() {
        let codec = codec();
        let row = vec![Datum::Int4(7), "a@b".into(), Datum::Int8(9)];
        let entries = codec.entries(&row).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(
            codec.decode(&entries[0].key, &entries[0].value).unwrap(),
            row
        );
        assert_eq!(
            entries.iter().map(|e| e.unique).collect::<Vec<_>>(),
            [true, true, false]
        );
        // The unique entry leads back to the row.
        let layout = codec.table.index_layout(&codec.table.indexes[0]).unwrap();
        assert_eq!(
            layout
                .decode_row(&entries[1].key, &entries[1].value)
                .unwrap(),
            vec![Datum::Int4(7), "a@b".into()]
        );
        let layout = codec.table.index_layout(&codec.table.indexes[1]).unwrap();
        assert_eq!(
            layout
                .decode_row(&entries[2].key, &entries[2].value)
                .unwrap(),
            vec![Datum::Int4(7), Datum::Int8(9)]
        );
    }

    #[test]
    fn nulls_are_not_equal_in_a_unique_index() {
        let codec = codec();
        let a = codec
            .entries(&[Datum::Int4(1), Datum::Null, Datum::Null])
            .unwrap();
        let b = codec
            .entries(&[Datum::Int4(2), Datum::Null, Datum::Null])
            .unwrap();
        assert!(!a[1].unique);
        assert_ne!(a[1].key, b[1].key);
        let layout = codec.table.index_layout(&codec.table.indexes[0]).unwrap();
        assert_eq!(
            layout.decode_row(&a[1].key, &a[1].value).unwrap(),
            vec![Datum::Int4(1), Datum::Null]
        );
    }

    #[test]
    fn errors_are_postgresqls() {
        let codec = codec();
        let e = codec
            .entries(&[Datum::Null, Datum::Null, Datum::Null])
            .unwrap_err();
        assert_eq!(e.sqlstate, "23502");
        let key = codec.indexes[1].key_of(&["a@b".into()]).unwrap().unwrap();
        let e = codec.duplicate(&key);
        assert_eq!(
            e.message,
            "duplicate key value violates unique constraint \"t_email_key\""
        );
        assert_eq!(
            e.detail.as_deref(),
            Some("Key (email)=(a@b) already exists.")
        );
    }
}
