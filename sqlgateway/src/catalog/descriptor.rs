//! What the catalog keeps about a table.

use crate::error::{Result, SqlError};
use bytes::Bytes;
use lineradb_client::{Span, TableVersion};
use lineradb_common::sql::{Datum, LayoutColumn, Place, RowLayout, SqlType};
use lineradb_common::{TableId, keys};
use serde::{Deserialize, Serialize};

/// Format of the descriptors; another one is refused.
pub const DESCRIPTOR_FORMAT: u32 = 1;

/// A schema (namespace).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaDescriptor {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableDescriptor {
    /// [`DESCRIPTOR_FORMAT`].
    pub format: u32,
    /// Also its OID.
    pub id: u32,
    /// The schema that it is in.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Raised by every DDL on it (S2).
    pub version: u64,
    /// All columns in order, hidden ones too.
    pub columns: Vec<ColumnDescriptor>,
    /// The id that the next column gets; ids are never reused.
    pub next_column_id: u32,
    /// The index that holds the rows.
    pub primary: IndexDescriptor,
    /// A primary index that is being built to replace `primary`: maintained, not
    /// read (S5).
    #[serde(default)]
    pub pending_primary: Option<IndexDescriptor>,
    /// The other indexes.
    pub indexes: Vec<IndexDescriptor>,
    /// The id that the next index gets; ids are never reused.
    pub next_index_id: u32,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColumnDescriptor {
    /// Stable within the table, from 1; also PostgreSQL's `attnum`.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// False: NOT NULL.
    pub nullable: bool,
    /// DEFAULT, as SQL text.
    pub default: Option<String>,
    /// The value of rows written before the column was added, in text form;
    /// none: NULL.
    pub missing: Option<String>,
    /// Not visible to users: the row id of a table without a primary key.
    pub hidden: bool,
}

/// Who uses an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexState {
    /// Writes maintain it; nothing reads it yet (S5).
    WriteOnly,
    /// Complete.
    Public,
}

/// An index, the primary one included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexDescriptor {
    /// Part of its keys.
    pub id: u32,
    /// Its OID in pg_class.
    pub oid: u32,
    /// The OID of its constraint (primary key or UNIQUE); 0: none.
    pub constraint_oid: u32,
    /// Its name.
    pub name: String,
    /// Refuses equal keys (NULLs are never equal).
    pub unique: bool,
    /// Ids of its columns in order.
    pub columns: Vec<u32>,
    /// Who uses it.
    pub state: IndexState,
}

impl TableDescriptor {
    /// Its id in keys.
    pub fn table_id(&self) -> TableId {
        TableId(u64::from(self.id))
    }

    /// What requests carry (S1).
    pub fn table_version(&self) -> TableVersion {
        TableVersion {
            table: self.table_id(),
            version: self.version,
        }
    }

    /// All its keys.
    pub fn span(&self) -> Span {
        Span::prefix(&keys::table_prefix(self.table_id()))
    }

    /// All keys of one of its indexes.
    pub fn index_span(&self, index: u32) -> Span {
        Span::prefix(&self.index_prefix(index))
    }

    /// The prefix of the keys of one of its indexes.
    pub fn index_prefix(&self, index: u32) -> Bytes {
        keys::index_prefix(self.table_id(), index).freeze()
    }

    /// The columns that users see, in order.
    pub fn visible_columns(&self) -> impl Iterator<Item = &ColumnDescriptor> {
        self.columns.iter().filter(|c| !c.hidden)
    }

    /// A visible column by name.
    pub fn column(&self, name: &str) -> Option<&ColumnDescriptor> {
        self.columns.iter().find(|c| !c.hidden && c.name == name)
    }

    /// A column by id.
    pub fn column_by_id(&self, id: u32) -> Option<&ColumnDescriptor> {
        self.columns.iter().find(|c| c.id == id)
    }

    /// Position of a column in `columns`, by id.
    pub fn position_of(&self, id: u32) -> Option<usize> {
        self.columns.iter().position(|c| c.id == id)
    }

    /// Positions in `columns` of the visible columns.
    pub fn visible_positions(&self) -> Vec<usize> {
        (0..self.columns.len())
            .filter(|at| !self.columns[*at].hidden)
            .collect()
    }

    /// `schema.name`, or just the name in `public`.
    pub fn display_name(&self) -> String {
        if self.schema == "public" {
            self.name.clone()
        } else {
            format!("{}.{}", self.schema, self.name)
        }
    }

    /// True when users declared a primary key (else rows have a hidden id).
    pub fn has_primary_key(&self) -> bool {
        self.primary.constraint_oid != 0
    }

    /// Indexes that plans may read, the primary one first.
    pub fn public_indexes(&self) -> impl Iterator<Item = &IndexDescriptor> {
        std::iter::once(&self.primary).chain(
            self.indexes
                .iter()
                .filter(|i| i.state == IndexState::Public),
        )
    }

    /// How the rows decode: all columns (hidden ones too, in the order of
    /// `columns`) from the primary index.
    ///
    /// # Errors
    /// XX001 when the descriptor contradicts itself.
    pub fn primary_layout(&self) -> Result<RowLayout> {
        self.layout_over(&self.primary, &self.primary.columns, false)
    }

    /// How the rows of a primary index under construction decode.
    ///
    /// # Errors
    /// XX001 when there is none.
    pub fn pending_layout(&self) -> Result<RowLayout> {
        match &self.pending_primary {
            Some(pending) => self.layout_over(pending, &pending.columns, false),
            None => Err(SqlError::new("XX001", "no primary key is being built")),
        }
    }

    /// How the entries of a secondary index decode: its columns and those of the
    /// primary key, in the order of `columns`. In a non-unique index all of them
    /// are in the key; in a unique one those of the primary key are in the value.
    ///
    /// # Errors
    /// XX001 when the descriptor contradicts itself.
    pub fn index_layout(&self, index: &IndexDescriptor) -> Result<RowLayout> {
        let mut key = index.columns.clone();
        if !index.unique {
            key.extend(
                self.primary
                    .columns
                    .iter()
                    .filter(|c| !index.columns.contains(c)),
            );
        }
        self.layout_over(index, &key, true)
    }

    fn layout_over(
        &self,
        index: &IndexDescriptor,
        key: &[u32],
        only_covered: bool,
    ) -> Result<RowLayout> {
        let key_types = key
            .iter()
            .map(|id| self.required_column(*id).map(|c| c.sql_type))
            .collect::<Result<Vec<_>>>()?;
        let mut columns = Vec::with_capacity(self.columns.len());
        for c in &self.columns {
            let place = match key.iter().position(|id| *id == c.id) {
                Some(at) => Place::Key(at as u32),
                None if only_covered && !self.primary.columns.contains(&c.id) => continue,
                None => Place::Value,
            };
            columns.push(LayoutColumn {
                id: c.id,
                name: c.name.clone(),
                sql_type: c.sql_type,
                nullable: c.nullable,
                place,
                missing: c.missing_value()?,
            });
        }
        Ok(RowLayout {
            table: self.table_id(),
            index: index.id,
            key_types,
            columns,
        })
    }

    fn required_column(&self, id: u32) -> Result<&ColumnDescriptor> {
        self.column_by_id(id).ok_or_else(|| {
            SqlError::new(
                "XX001",
                format!("table \"{}\" has no column with id {id}", self.name),
            )
        })
    }
}

impl ColumnDescriptor {
    /// The value of rows written before the column was added.
    ///
    /// # Errors
    /// XX001 when the descriptor's text is no value of the type.
    pub fn missing_value(&self) -> Result<Datum> {
        match &self.missing {
            None => Ok(Datum::Null),
            Some(text) => Ok(Datum::parse(
                self.sql_type,
                text,
                &lineradb_common::sql::TimeZone::UTC,
            )?),
        }
    }
}
