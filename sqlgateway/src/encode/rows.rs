//! Record batches to DataRow messages.

use super::write_binary;
use arrow::array::{
    Array, AsArray, BooleanArray, Float64Array, Int16Array, Int32Array, Int64Array, RecordBatch,
    StringArray, StringViewArray,
};
use arrow::datatypes::{DataType, Float64Type, Int16Type, Int32Type, Int64Type};
use bytes::{BufMut, BytesMut};
use lineradb_common::sql::{Datum, SqlType, TimeZone, ValueResult, datum_at};
use std::fmt::Write;

/// How a column is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As text.
    Text,
    /// In the type's binary format.
    Binary,
}

impl Format {
    /// The code of the protocol.
    pub fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }

    /// The formats of `count` columns from the codes of a Bind: none is all
    /// text, one is for all.
    ///
    /// # Errors
    /// The number of codes given, when it is neither 0, 1 nor `count`.
    pub fn spread(codes: &[i16], count: usize) -> Result<Vec<Format>, usize> {
        let one = |code: i16| {
            if code == 1 {
                Format::Binary
            } else {
                Format::Text
            }
        };
        match codes {
            [] => Ok(vec![Format::Text; count]),
            [code] => Ok(vec![one(*code); count]),
            codes if codes.len() == count => Ok(codes.iter().map(|code| one(*code)).collect()),
            codes => Err(codes.len()),
        }
    }
}

/// Writes rows as DataRow messages.
pub struct RowEncoder {
    columns: Vec<(SqlType, Format)>,
    zone: TimeZone,
    scratch: String,
}

/// An array whose type was looked up once for a batch.
enum Column<'a> {
    Bool(&'a BooleanArray),
    Int2(&'a Int16Array),
    Int4(&'a Int32Array),
    Int8(&'a Int64Array),
    Float8(&'a Float64Array),
    Text(&'a StringArray),
    TextView(&'a StringViewArray),
    Other(&'a dyn Array),
}

impl RowEncoder {
    /// For columns of these types, in these formats.
    pub fn new(types: impl IntoIterator<Item = (SqlType, Format)>, zone: TimeZone) -> Self {
        RowEncoder {
            columns: types.into_iter().collect(),
            zone,
            scratch: String::new(),
        }
    }

    /// Appends rows `from..to` of a batch, one DataRow each.
    ///
    /// # Errors
    /// When a value has no PostgreSQL form; nothing of that row is left in `out`.
    pub fn rows(
        &mut self,
        batch: &RecordBatch,
        from: usize,
        to: usize,
        out: &mut BytesMut,
    ) -> ValueResult<()> {
        let arrays: Vec<Column<'_>> = batch
            .columns()
            .iter()
            .zip(&self.columns)
            .map(|(array, (sql_type, _))| Column::of(array.as_ref(), *sql_type))
            .collect();
        for row in from..to {
            let start = out.len();
            out.put_u8(b'D');
            out.put_i32(0);
            out.put_i16(arrays.len() as i16);
            for (at, array) in arrays.iter().enumerate() {
                if let Err(error) = self.value(array, at, row, out) {
                    out.truncate(start);
                    return Err(error);
                }
            }
            let length = (out.len() - start - 1) as i32;
            out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn value(
        &mut self,
        array: &Column<'_>,
        column: usize,
        row: usize,
        out: &mut BytesMut,
    ) -> ValueResult<()> {
        if array.is_null(row) {
            out.put_i32(-1);
            return Ok(());
        }
        let (sql_type, format) = self.columns[column];
        let start = out.len();
        out.put_i32(0);
        match (array, format) {
            (Column::Text(text), _) => out.put_slice(text.value(row).as_bytes()),
            (Column::TextView(text), _) => out.put_slice(text.value(row).as_bytes()),
            (Column::Bool(values), Format::Text) => {
                out.put_u8(if values.value(row) { b't' } else { b'f' });
            }
            (Column::Bool(values), Format::Binary) => out.put_u8(u8::from(values.value(row))),
            (Column::Int2(values), Format::Binary) => out.put_i16(values.value(row)),
            (Column::Int4(values), Format::Binary) => out.put_i32(values.value(row)),
            (Column::Int8(values), Format::Binary) => out.put_i64(values.value(row)),
            (Column::Float8(values), Format::Binary) => out.put_f64(values.value(row)),
            (Column::Int2(values), Format::Text) => integer(i64::from(values.value(row)), out),
            (Column::Int4(values), Format::Text) => integer(i64::from(values.value(row)), out),
            (Column::Int8(values), Format::Text) => integer(values.value(row), out),
            (Column::Float8(values), Format::Text) => {
                self.text(&Datum::Float8(values.value(row)), sql_type, out);
            }
            (Column::Other(array), _) => {
                let datum = datum_at(*array, row, sql_type)?;
                match format {
                    Format::Text => self.text(&datum, sql_type, out),
                    Format::Binary => write_binary(&datum, sql_type, &self.zone, out)?,
                }
            }
        }
        let length = (out.len() - start - 4) as i32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn text(&mut self, datum: &Datum, sql_type: SqlType, out: &mut BytesMut) {
        self.scratch.clear();
        datum.format_into(sql_type, &self.zone, &mut self.scratch);
        out.put_slice(self.scratch.as_bytes());
    }
}

fn integer(value: i64, out: &mut BytesMut) {
    // Writing to a growing buffer does not fail.
    let _ = write!(out, "{value}");
}

impl<'a> Column<'a> {
    fn of(array: &'a dyn Array, sql_type: SqlType) -> Column<'a> {
        match (array.data_type(), sql_type) {
            (DataType::Boolean, SqlType::Bool) => Column::Bool(array.as_boolean()),
            (DataType::Int16, SqlType::Int2) => Column::Int2(array.as_primitive::<Int16Type>()),
            (DataType::Int32, SqlType::Int4) => Column::Int4(array.as_primitive::<Int32Type>()),
            (DataType::Int64, SqlType::Int8) => Column::Int8(array.as_primitive::<Int64Type>()),
            (DataType::Float64, SqlType::Float8) => {
                Column::Float8(array.as_primitive::<Float64Type>())
            }
            // char(n) is padded when printed: the slow way.
            (_, SqlType::Char(_)) => Column::Other(array),
            (DataType::Utf8, text) if text.is_text() => Column::Text(array.as_string()),
            (DataType::Utf8View, text) if text.is_text() => {
                Column::TextView(array.as_string_view())
            }
            _ => Column::Other(array),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Column::Bool(array) => array.is_null(row),
            Column::Int2(array) => array.is_null(row),
            Column::Int4(array) => array.is_null(row),
            Column::Int8(array) => array.is_null(row),
            Column::Float8(array) => array.is_null(row),
            Column::Text(array) => array.is_null(row),
            Column::TextView(array) => array.is_null(row),
            // NullArray answers only through its logical nulls.
            Column::Other(array) => array.data_type() == &DataType::Null || array.is_null(row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Date32Array, NullArray};
    use std::sync::Arc;

    fn encode(array: ArrayRef, sql_type: SqlType, format: Format) -> Vec<Option<Vec<u8>>> {
        let rows = array.len();
        let batch = RecordBatch::try_from_iter([("c", array)]).unwrap();
        let mut out = BytesMut::new();
        RowEncoder::new([(sql_type, format)], TimeZone::UTC)
            .rows(&batch, 0, rows, &mut out)
            .unwrap();
        let mut values = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            assert_eq!(rest[0], b'D');
            let length = i32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            let body = &rest[7..=length];
            let size = i32::from_be_bytes(body[..4].try_into().unwrap());
            values.push((size >= 0).then(|| {
                assert_eq!(size as usize, body.len() - 4);
                body[4..].to_vec()
            }));
            rest = &rest[length + 1..];
        }
        values
    }

    fn text(array: impl Array + 'static, sql_type: SqlType) -> Vec<Option<String>> {
        encode(Arc::new(array), sql_type, Format::Text)
            .into_iter()
            .map(|value| value.map(|value| String::from_utf8(value).unwrap()))
            .collect()
    }

    #[test]
    fn text_as_postgresql_prints_it() {
        assert_eq!(
            text(Int64Array::from(vec![Some(-7), None]), SqlType::Int8),
            [Some("-7".into()), None]
        );
        assert_eq!(
            text(BooleanArray::from(vec![true, false]), SqlType::Bool),
            [Some("t".into()), Some("f".into())]
        );
        assert_eq!(
            text(
                Float64Array::from(vec![0.1, 1e20, f64::NAN, -0.0]),
                SqlType::Float8
            )
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
            ["0.1", "1e+20", "NaN", "-0"]
        );
        assert_eq!(
            text(Date32Array::from(vec![0]), SqlType::Date),
            [Some("1970-01-01".into())]
        );
        assert_eq!(
            text(StringViewArray::from(vec!["", "é"]), SqlType::Text),
            [Some(String::new()), Some("é".into())]
        );
        assert_eq!(text(NullArray::new(1), SqlType::Text), [None]);
    }

    #[test]
    fn binary_integers_are_big_endian() {
        assert_eq!(
            encode(
                Arc::new(Int32Array::from(vec![258])),
                SqlType::Int4,
                Format::Binary
            ),
            [Some(vec![0, 0, 1, 2])]
        );
    }

    #[test]
    fn format_codes_spread_over_columns() {
        assert_eq!(Format::spread(&[], 2), Ok(vec![Format::Text; 2]));
        assert_eq!(Format::spread(&[1], 2), Ok(vec![Format::Binary; 2]));
        assert_eq!(Format::spread(&[0, 1, 1], 2), Err(3));
    }
}
