//! How the keys and values of one index of one table decode.

use super::row::{put_slice, put_varint, take_slice, take_varint};
use super::{
    Datum, RowValueReader, SqlType, ValueError, ValueResult, decode_key_datum, encode_row_value,
    skip_key_datum,
};
use crate::TableId;
use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use std::sync::Arc;

const FORMAT: u8 = 1;
/// Bytes of a key before its first column: prefix, table id, index id.
pub(super) const KEY_PREFIX: usize = 13;

/// Where a column's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The n-th column of the key (see [`RowLayout::key_types`]).
    Key(u32),
    /// In the row value, under the column's id.
    Value,
}

/// A column of a layout.
#[derive(Clone, Debug, PartialEq)]
pub struct LayoutColumn {
    /// Stable id within the table.
    pub id: u32,
    /// Name of the Arrow field.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// False for NOT NULL columns.
    pub nullable: bool,
    /// Where its value is.
    pub place: Place,
    /// The value of rows that were written before the column was added.
    pub missing: Datum,
}

/// How the keys and values of one index of one table decode. Travels with
/// every fragment request.
#[derive(Clone, Debug, PartialEq)]
pub struct RowLayout {
    /// The table.
    pub table: TableId,
    /// The index whose span is scanned (primary indexes hold whole rows).
    pub index: u32,
    /// Types of all columns of the key, in key order.
    pub key_types: Vec<SqlType>,
    /// The columns that a scan can return, in the order of its Arrow schema.
    pub columns: Vec<LayoutColumn>,
}

impl RowLayout {
    /// The Arrow schema of all columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(
            self.columns
                .iter()
                .map(|c| c.sql_type.field(&c.name, c.nullable))
                .collect::<Vec<_>>(),
        ))
    }

    /// As bytes, for a fragment request.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT];
        put_varint(&mut out, u128::from(self.table.0));
        put_varint(&mut out, u128::from(self.index));
        put_varint(&mut out, self.key_types.len() as u128);
        for t in &self.key_types {
            put_slice(&mut out, t.to_string().as_bytes());
        }
        put_varint(&mut out, self.columns.len() as u128);
        for c in &self.columns {
            put_varint(&mut out, u128::from(c.id));
            put_slice(&mut out, c.name.as_bytes());
            put_slice(&mut out, c.sql_type.to_string().as_bytes());
            out.push(u8::from(c.nullable));
            put_varint(
                &mut out,
                match c.place {
                    Place::Value => 0,
                    Place::Key(at) => u128::from(at) + 1,
                },
            );
            put_slice(&mut out, &encode_row_value([(0, &c.missing)]));
        }
        out.into()
    }

    /// From bytes.
    ///
    /// # Errors
    /// XX001 for another format version or malformed bytes.
    pub fn decode(bytes: &[u8]) -> ValueResult<Self> {
        let mut input = match bytes.split_first() {
            Some((&FORMAT, rest)) => rest,
            _ => return Err(ValueError::corrupt("row layout of an unknown format")),
        };
        let input = &mut input;
        let number = |input: &mut &[u8]| -> ValueResult<u32> {
            u32::try_from(take_varint(input)?)
                .map_err(|_| ValueError::corrupt("number in a row layout is out of range"))
        };
        let text = |input: &mut &[u8]| -> ValueResult<String> {
            String::from_utf8(take_slice(input)?.to_vec())
                .map_err(|_| ValueError::corrupt("row layout is not UTF-8"))
        };
        let table = TableId(
            u64::try_from(take_varint(input)?)
                .map_err(|_| ValueError::corrupt("table id is out of range"))?,
        );
        let index = number(input)?;
        let mut key_types = Vec::new();
        for _ in 0..number(input)? {
            key_types.push(text(input)?.parse()?);
        }
        let mut columns = Vec::new();
        for _ in 0..number(input)? {
            let id = number(input)?;
            let name = text(input)?;
            let sql_type: SqlType = text(input)?.parse()?;
            let nullable = number(input)? != 0;
            let place = match number(input)? {
                0 => Place::Value,
                at if (at as usize) <= key_types.len() => Place::Key(at - 1),
                _ => return Err(ValueError::corrupt("row layout names a missing key column")),
            };
            let missing = match RowValueReader::new(take_slice(input)?)?.next_column()? {
                Some((_, Some(bytes))) => RowValueReader::decode(sql_type, bytes)?,
                _ => Datum::Null,
            };
            columns.push(LayoutColumn {
                id,
                name,
                sql_type,
                nullable,
                place,
                missing,
            });
        }
        Ok(RowLayout {
            table,
            index,
            key_types,
            columns,
        })
    }

    /// All columns of a row, in order, as values.
    ///
    /// # Errors
    /// XX001 for bytes that do not decode.
    pub fn decode_row(&self, key: &[u8], value: &[u8]) -> ValueResult<Vec<Datum>> {
        let mut row: Vec<Datum> = self.columns.iter().map(|c| c.missing.clone()).collect();
        let mut rest = key
            .get(KEY_PREFIX..)
            .ok_or_else(|| ValueError::corrupt("key is too short"))?;
        for (at, t) in self.key_types.iter().enumerate() {
            let place = Place::Key(at as u32);
            match self.columns.iter().position(|c| c.place == place) {
                Some(i) => row[i] = decode_key_datum(*t, &mut rest)?,
                None => skip_key_datum(*t, &mut rest)?,
            }
        }
        let mut reader = RowValueReader::new(value)?;
        while let Some((id, bytes)) = reader.next_column()? {
            let found = self
                .columns
                .iter()
                .position(|c| c.id == id && c.place == Place::Value);
            if let Some(i) = found {
                row[i] = match bytes {
                    Some(bytes) => RowValueReader::decode(self.columns[i].sql_type, bytes)?,
                    None => Datum::Null,
                };
            }
        }
        Ok(row)
    }
}
