//! From stored rows to Arrow, column by column, without a value in between.

use super::layout::KEY_PREFIX;
use super::row::{take_i64, take_interval, take_numeric};
use super::types::BARE_NUMERIC_SCALE;
use super::{
    Datum, DatumArrayBuilder, Place, RowLayout, RowValueReader, SqlType, ValueError, ValueResult,
    decode_key_datum, skip_key_datum,
};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use std::sync::Arc;

/// Turns keys and row values into a record batch.
pub struct RowBatchBuilder {
    layout: Arc<RowLayout>,
    schema: SchemaRef,
    /// Positions in `layout.columns` of the columns wanted.
    projection: Vec<usize>,
    builders: Vec<DatumArrayBuilder>,
    /// For each key column up to the last one wanted: the builder that takes it.
    key_slots: Vec<Option<usize>>,
    /// (column id, builder) of the columns wanted from the value, ids ascending.
    value_slots: Vec<(u32, usize)>,
    rows: usize,
    bytes: usize,
}

impl RowBatchBuilder {
    /// For the columns of `projection` (positions in `layout.columns`, any
    /// order, each at most once), or all of them.
    pub fn new(layout: Arc<RowLayout>, projection: Option<&[usize]>) -> Self {
        let projection: Vec<usize> = match projection {
            Some(wanted) => wanted
                .iter()
                .copied()
                .filter(|i| *i < layout.columns.len())
                .collect(),
            None => (0..layout.columns.len()).collect(),
        };
        let mut key_slots = vec![None; layout.key_types.len()];
        let mut value_slots = Vec::new();
        let mut fields = Vec::with_capacity(projection.len());
        let mut builders = Vec::with_capacity(projection.len());
        for (slot, at) in projection.iter().enumerate() {
            let c = &layout.columns[*at];
            fields.push(c.sql_type.field(&c.name, c.nullable));
            builders.push(DatumArrayBuilder::new(c.sql_type, 0));
            match c.place {
                Place::Key(k) => key_slots[k as usize] = Some(slot),
                Place::Value => value_slots.push((c.id, slot)),
            }
        }
        while key_slots.last() == Some(&None) {
            key_slots.pop();
        }
        value_slots.sort_unstable();
        RowBatchBuilder {
            schema: Arc::new(Schema::new(fields)),
            projection,
            builders,
            key_slots,
            value_slots,
            rows: 0,
            bytes: 0,
            layout,
        }
    }

    /// The schema of the batches.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds a row, given its whole key (with the table and index prefix). After
    /// an error the builder is unusable.
    ///
    /// # Errors
    /// XX001 for bytes that do not decode.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> ValueResult<()> {
        self.rows += 1;
        self.bytes += key.len() + value.len() + 8;
        if !self.key_slots.is_empty() {
            let mut rest = key
                .get(KEY_PREFIX..)
                .ok_or_else(|| ValueError::corrupt("key is too short"))?;
            for (at, slot) in self.key_slots.iter().enumerate() {
                let t = self.layout.key_types[at];
                match slot {
                    Some(slot) => {
                        let datum = decode_key_datum(t, &mut rest)?;
                        self.builders[*slot].push(&datum)?;
                    }
                    None => skip_key_datum(t, &mut rest)?,
                }
            }
        }
        if self.value_slots.is_empty() {
            return Ok(());
        }
        let mut reader = RowValueReader::new(value)?;
        let mut next = 0;
        while next < self.value_slots.len() {
            let Some((id, bytes)) = reader.next_column()? else {
                break;
            };
            // Columns that this row does not have.
            while next < self.value_slots.len() && self.value_slots[next].0 < id {
                self.push_missing(next)?;
                next += 1;
            }
            if next < self.value_slots.len() && self.value_slots[next].0 == id {
                let slot = self.value_slots[next].1;
                push_stored(&mut self.builders[slot], bytes)?;
                next += 1;
            }
        }
        for at in next..self.value_slots.len() {
            self.push_missing(at)?;
        }
        Ok(())
    }

    fn push_missing(&mut self, at: usize) -> ValueResult<()> {
        let slot = self.value_slots[at].1;
        let missing = &self.layout.columns[self.projection[slot]].missing;
        self.builders[slot].push(missing)
    }

    /// Rows added since the last `finish`.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// True when no row was added.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Roughly how many bytes the rows added take.
    pub fn byte_size(&self) -> usize {
        self.bytes
    }

    /// The rows added, as a batch; the builder starts again.
    ///
    /// # Errors
    /// XX001 when Arrow refuses them (NULL in a NOT NULL column).
    pub fn finish(&mut self) -> ValueResult<RecordBatch> {
        let columns = self.builders.iter_mut().map(|b| b.finish()).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        self.rows = 0;
        self.bytes = 0;
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| ValueError::corrupt(e.to_string()))
    }
}

/// Adds a column's bytes; the common types without a [`Datum`] in between.
fn push_stored(builder: &mut DatumArrayBuilder, bytes: Option<&[u8]>) -> ValueResult<()> {
    use super::arrow_value::Column;
    let Some(bytes) = bytes else {
        return builder.push(&Datum::Null);
    };
    let sql_type = builder.sql_type();
    let range = |_| ValueError::corrupt("integer is out of its column's range");
    match builder.column() {
        Column::Int2(b) => b.append_value(take_i64(bytes)?.try_into().map_err(range)?),
        Column::Int4(b) => b.append_value(take_i64(bytes)?.try_into().map_err(range)?),
        Column::Int8(b) => b.append_value(take_i64(bytes)?),
        Column::Date(b) => b.append_value(take_i64(bytes)?.try_into().map_err(range)?),
        Column::Timestamp(b) => b.append_value(take_i64(bytes)?),
        Column::Text(b) => b.append_value(
            std::str::from_utf8(bytes)
                .map_err(|_| ValueError::corrupt("text in a row is not UTF-8"))?,
        ),
        Column::Bytea(b) => b.append_value(bytes),
        Column::Numeric(b) => {
            let scale = match sql_type {
                SqlType::Numeric(Some((_, s))) => s,
                _ => BARE_NUMERIC_SCALE,
            };
            b.append_value(take_numeric(bytes)?.rescale(scale)?.mantissa());
        }
        Column::Interval(b) => b.append_value(take_interval(bytes)?.to_arrow()?),
        _ => {
            let datum = RowValueReader::decode(sql_type, bytes)?;
            return builder.push(&datum);
        }
    }
    Ok(())
}
