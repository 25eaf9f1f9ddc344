//! The value of a stored row: the columns that are not in its key.
//!
//! ```text
//!  format (1 byte) | column | column | ...      ascending column ids
//!  column = varint(id << 1 | is_null) [ varint(length) bytes ]
//! ```
//!
//! A reader skips ids that its layout does not have (dropped columns), and takes
//! the layout's `missing` value for ids that the row does not have (columns added
//! since). So NULLs are written.

use super::{Datum, Interval, Numeric, SqlType, ValueError, ValueResult};
use bytes::Bytes;

const FORMAT: u8 = 1;

/// Encodes a row value: `columns` are (column id, value) in ascending order of
/// ids.
pub fn encode_row_value<'a>(columns: impl IntoIterator<Item = (u32, &'a Datum)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.push(FORMAT);
    let mut last = None;
    for (id, datum) in columns {
        debug_assert!(last < Some(id), "column ids must ascend");
        last = Some(id);
        put_varint(&mut out, u128::from(id) << 1 | u128::from(datum.is_null()));
        if datum.is_null() {
            continue;
        }
        let mut bytes = [0_u8; 24];
        match datum {
            Datum::Text(s) => put_slice(&mut out, s.as_bytes()),
            Datum::Bytea(b) => put_slice(&mut out, b),
            other => {
                let n = encode_fixed(other, &mut bytes);
                put_slice(&mut out, &bytes[..n]);
            }
        }
    }
    out
}

pub(super) fn put_slice(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u128);
    out.extend_from_slice(bytes);
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut v: u128) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub(super) fn take_varint(input: &mut &[u8]) -> ValueResult<u128> {
    let mut v = 0_u128;
    for shift in (0..128).step_by(7) {
        let (&byte, rest) = input
            .split_first()
            .ok_or_else(|| ValueError::corrupt("row value ends inside a number"))?;
        *input = rest;
        v |= u128::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(v);
        }
    }
    Err(ValueError::corrupt("number in a row value is too long"))
}

pub(super) fn take_slice<'a>(input: &mut &'a [u8]) -> ValueResult<&'a [u8]> {
    let n = take_varint(input)?;
    let n = usize::try_from(n)
        .ok()
        .filter(|n| *n <= input.len())
        .ok_or_else(|| ValueError::corrupt("row value ends inside a column"))?;
    let (head, rest) = input.split_at(n);
    *input = rest;
    Ok(head)
}

/// Little-endian without the leading bytes that the sign implies.
fn put_int(v: i128, out: &mut [u8]) -> usize {
    let bytes = v.to_le_bytes();
    let mut n = 16;
    while n > 1 {
        let fill = if bytes[n - 2] & 0x80 == 0 { 0 } else { 0xff };
        if bytes[n - 1] != fill {
            break;
        }
        n -= 1;
    }
    out[..n].copy_from_slice(&bytes[..n]);
    n
}

#[inline]
pub(super) fn take_int(bytes: &[u8]) -> ValueResult<i128> {
    let n = bytes.len();
    if n == 0 || n > 16 {
        return Err(ValueError::corrupt("integer of a wrong length"));
    }
    let fill = if bytes[n - 1] & 0x80 == 0 { 0 } else { 0xff };
    let mut full = [fill; 16];
    full[..n].copy_from_slice(bytes);
    Ok(i128::from_le_bytes(full))
}

/// As `take_int`, for values of 8 bytes at most.
#[inline]
pub(super) fn take_i64(bytes: &[u8]) -> ValueResult<i64> {
    let n = bytes.len();
    if n == 0 || n > 8 {
        return Err(ValueError::corrupt("integer of a wrong length"));
    }
    let fill = if bytes[n - 1] & 0x80 == 0 { 0 } else { 0xff };
    let mut full = [fill; 8];
    full[..n].copy_from_slice(bytes);
    Ok(i64::from_le_bytes(full))
}

/// Values without a length of their own; 24 bytes at most.
fn encode_fixed(datum: &Datum, out: &mut [u8; 24]) -> usize {
    match datum {
        Datum::Bool(v) => {
            out[0] = u8::from(*v);
            1
        }
        Datum::Int2(v) => put_int(i128::from(*v), out),
        Datum::Int4(v) | Datum::Date(v) => put_int(i128::from(*v), out),
        Datum::Int8(v) | Datum::Time(v) | Datum::Timestamp(v) | Datum::TimestampTz(v) => {
            put_int(i128::from(*v), out)
        }
        Datum::Oid(v) => put_int(i128::from(*v), out),
        // There is one NaN.
        Datum::Float4(v) => {
            let v = if v.is_nan() { f32::NAN } else { *v };
            out[..4].copy_from_slice(&v.to_le_bytes());
            4
        }
        Datum::Float8(v) => {
            let v = if v.is_nan() { f64::NAN } else { *v };
            out[..8].copy_from_slice(&v.to_le_bytes());
            8
        }
        Datum::Numeric(n) => {
            out[0] = n.scale();
            1 + put_int(n.mantissa(), &mut out[1..])
        }
        Datum::Interval(i) => {
            out[..4].copy_from_slice(&i.months.to_le_bytes());
            out[4..8].copy_from_slice(&i.days.to_le_bytes());
            out[8..16].copy_from_slice(&i.micros.to_le_bytes());
            16
        }
        Datum::Uuid(u) => {
            out[..16].copy_from_slice(u);
            16
        }
        Datum::Null | Datum::Text(_) | Datum::Bytea(_) | Datum::Array(..) => 0,
    }
}

pub(super) fn take_numeric(bytes: &[u8]) -> ValueResult<Numeric> {
    let (&scale, rest) = bytes
        .split_first()
        .ok_or_else(|| ValueError::corrupt("empty number in a row"))?;
    Numeric::new(take_int(rest)?, scale).map_err(|e| ValueError::corrupt(e.message))
}

pub(super) fn take_interval(bytes: &[u8]) -> ValueResult<Interval> {
    let bad = || ValueError::corrupt("interval of a wrong length");
    let bytes: &[u8; 16] = bytes.try_into().map_err(|_| bad())?;
    let (months, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let (days, rest) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
    let (micros, _) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
    Ok(Interval {
        months: i32::from_le_bytes(*months),
        days: i32::from_le_bytes(*days),
        micros: i64::from_le_bytes(*micros),
    })
}

/// A column's id and its bytes; no bytes: NULL.
pub type StoredColumn<'a> = (u32, Option<&'a [u8]>);

/// Reads the columns of a row value in ascending order of their ids.
pub struct RowValueReader<'a> {
    input: &'a [u8],
}

impl<'a> RowValueReader<'a> {
    /// Starts reading.
    ///
    /// # Errors
    /// XX001 for another format.
    pub fn new(input: &'a [u8]) -> ValueResult<Self> {
        match input.split_first() {
            Some((&FORMAT, input)) => Ok(RowValueReader { input }),
            // An index entry without columns.
            None => Ok(RowValueReader { input }),
            Some((other, _)) => Err(ValueError::corrupt(format!(
                "row value has the unknown format {other}"
            ))),
        }
    }

    /// The next column: its id and its bytes (`None`: NULL), which
    /// [`RowValueReader::decode`] turns into a value.
    ///
    /// # Errors
    /// XX001 for bytes that do not decode.
    pub fn next_column(&mut self) -> ValueResult<Option<StoredColumn<'a>>> {
        if self.input.is_empty() {
            return Ok(None);
        }
        let head = take_varint(&mut self.input)?;
        let id = u32::try_from(head >> 1)
            .map_err(|_| ValueError::corrupt("column id is out of range"))?;
        if head & 1 == 1 {
            return Ok(Some((id, None)));
        }
        Ok(Some((id, Some(take_slice(&mut self.input)?))))
    }

    /// The value in a column's bytes.
    ///
    /// # Errors
    /// XX001 for bytes that do not decode.
    pub fn decode(sql_type: SqlType, bytes: &[u8]) -> ValueResult<Datum> {
        let narrow = |_| ValueError::corrupt("integer is out of its column's range");
        let length = |_| ValueError::corrupt("value of a wrong length");
        Ok(match sql_type {
            SqlType::Bool => Datum::Bool(bytes.first().is_some_and(|b| *b != 0)),
            SqlType::Int2 => Datum::Int2(take_i64(bytes)?.try_into().map_err(narrow)?),
            SqlType::Int4 => Datum::Int4(take_i64(bytes)?.try_into().map_err(narrow)?),
            SqlType::Int8 => Datum::Int8(take_i64(bytes)?),
            SqlType::Oid => Datum::Oid(take_i64(bytes)?.try_into().map_err(narrow)?),
            SqlType::Float4 => Datum::Float4(f32::from_le_bytes(bytes.try_into().map_err(length)?)),
            SqlType::Float8 => Datum::Float8(f64::from_le_bytes(bytes.try_into().map_err(length)?)),
            SqlType::Numeric(_) => Datum::Numeric(take_numeric(bytes)?),
            SqlType::Bytea => Datum::Bytea(Bytes::copy_from_slice(bytes)),
            SqlType::Date => Datum::Date(take_i64(bytes)?.try_into().map_err(narrow)?),
            SqlType::Time => Datum::Time(take_i64(bytes)?),
            SqlType::Timestamp => Datum::Timestamp(take_i64(bytes)?),
            SqlType::TimestampTz => Datum::TimestampTz(take_i64(bytes)?),
            SqlType::Interval => Datum::Interval(take_interval(bytes)?),
            SqlType::Uuid => Datum::Uuid(bytes.try_into().map_err(length)?),
            SqlType::Array(_) => return Err(ValueError::corrupt("arrays are not stored")),
            _ => Datum::Text(
                std::str::from_utf8(bytes)
                    .map_err(|_| ValueError::corrupt("text in a row is not UTF-8"))?
                    .to_owned(),
            ),
        })
    }
}
