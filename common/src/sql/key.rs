//! The order of keys: values as bytes whose order is SQL's order.
//!
//! Each value starts with a tag: 1 for a value, 0xff for NULL (NULLs last). What
//! follows uses [`crate::encoding`]; numbers of one family (integers) have one
//! form, so that a key does not depend on the width of the column.
//!
//! `numeric` follows CockroachDB's idea: sign, decimal exponent, then pairs of
//! digits without trailing zeros, so that equal values have equal keys whatever
//! their scale. Negative numbers have all bytes after the sign inverted.

use super::{Datum, Numeric, SqlType, ValueError, ValueResult};
use crate::encoding;
use bytes::{BufMut, BytesMut};

const VALUE: u8 = 1;
const NULL: u8 = 0xff;
const NEGATIVE: u8 = 1;
const ZERO: u8 = 2;
const POSITIVE: u8 = 3;

/// Appends a value so that the order of the bytes is SQL's order, NULLs last.
///
/// # Errors
/// 0A000 for a type that cannot be part of a key.
pub fn encode_key_datum(datum: &Datum, out: &mut BytesMut) -> ValueResult<()> {
    if datum.is_null() {
        out.put_u8(NULL);
        return Ok(());
    }
    out.put_u8(VALUE);
    match datum {
        Datum::Null => {}
        Datum::Bool(v) => out.put_u8(u8::from(*v)),
        Datum::Int2(v) => encoding::put_i64(out, i64::from(*v)),
        Datum::Int4(v) => encoding::put_i64(out, i64::from(*v)),
        Datum::Int8(v) => encoding::put_i64(out, *v),
        Datum::Float4(v) => encoding::put_f64(out, f64::from(*v)),
        Datum::Float8(v) => encoding::put_f64(out, *v),
        Datum::Numeric(n) => put_numeric(out, *n),
        Datum::Text(s) => encoding::put_bytes(out, s.as_bytes()),
        Datum::Bytea(b) => encoding::put_bytes(out, b),
        Datum::Date(d) => encoding::put_i64(out, i64::from(*d)),
        Datum::Time(t) | Datum::Timestamp(t) | Datum::TimestampTz(t) => {
            encoding::put_i64(out, *t);
        }
        Datum::Uuid(u) => out.put_slice(u),
        Datum::Interval(_) | Datum::Oid(_) | Datum::Array(..) => {
            return Err(ValueError::new(
                "0A000",
                "columns of this type cannot be part of a key or index yet",
            ));
        }
    }
    Ok(())
}

/// Reads a value of a type and moves past it.
///
/// # Errors
/// XX001 for bytes that do not decode.
pub fn decode_key_datum(sql_type: SqlType, input: &mut &[u8]) -> ValueResult<Datum> {
    match take_u8(input)? {
        NULL => return Ok(Datum::Null),
        VALUE => {}
        other => {
            return Err(ValueError::corrupt(format!(
                "key has the unknown tag {other}"
            )));
        }
    }
    let int = |input: &mut &[u8]| encoding::take_i64(input).map_err(corrupt);
    let narrow = |_| ValueError::corrupt("integer in a key is out of its column's range");
    Ok(match sql_type {
        SqlType::Bool => Datum::Bool(take_u8(input)? != 0),
        SqlType::Int2 => Datum::Int2(int(input)?.try_into().map_err(narrow)?),
        SqlType::Int4 => Datum::Int4(int(input)?.try_into().map_err(narrow)?),
        SqlType::Int8 => Datum::Int8(int(input)?),
        SqlType::Float4 => Datum::Float4(encoding::take_f64(input).map_err(corrupt)? as f32),
        SqlType::Float8 => Datum::Float8(encoding::take_f64(input).map_err(corrupt)?),
        SqlType::Numeric(modifier) => {
            let n = take_numeric(input)?;
            Datum::Numeric(match modifier {
                Some((_, scale)) => n.rescale(scale)?,
                None => n,
            })
        }
        t if t.is_text() => Datum::Text(
            String::from_utf8(encoding::take_bytes(input).map_err(corrupt)?)
                .map_err(|_| ValueError::corrupt("text in a key is not UTF-8"))?,
        ),
        SqlType::Bytea => Datum::Bytea(encoding::take_bytes(input).map_err(corrupt)?.into()),
        SqlType::Date => Datum::Date(int(input)?.try_into().map_err(narrow)?),
        SqlType::Time => Datum::Time(int(input)?),
        SqlType::Timestamp => Datum::Timestamp(int(input)?),
        SqlType::TimestampTz => Datum::TimestampTz(int(input)?),
        SqlType::Uuid => Datum::Uuid(*take_array::<16>(input)?),
        other => {
            return Err(ValueError::corrupt(format!(
                "a key cannot hold the type {other}"
            )));
        }
    })
}

/// Moves past a value of a type.
///
/// # Errors
/// XX001 for bytes that do not decode.
pub fn skip_key_datum(sql_type: SqlType, input: &mut &[u8]) -> ValueResult<()> {
    if input.first() == Some(&NULL) {
        *input = &input[1..];
        return Ok(());
    }
    let fixed = match sql_type {
        SqlType::Bool => 2,
        SqlType::Uuid => 17,
        SqlType::Numeric(_) | SqlType::Bytea => 0,
        t if t.is_text() => 0,
        _ => 9,
    };
    if fixed == 0 {
        return decode_key_datum(sql_type, input).map(|_| ());
    }
    *input = input
        .get(fixed..)
        .ok_or_else(|| ValueError::corrupt("key ends inside a value"))?;
    Ok(())
}

fn corrupt(e: crate::Error) -> ValueError {
    ValueError::corrupt(e.message)
}

fn take_u8(input: &mut &[u8]) -> ValueResult<u8> {
    let (first, rest) = input
        .split_first()
        .ok_or_else(|| ValueError::corrupt("key ends early"))?;
    *input = rest;
    Ok(*first)
}

fn take_array<'a, const N: usize>(input: &mut &'a [u8]) -> ValueResult<&'a [u8; N]> {
    let (head, rest) = input
        .split_first_chunk::<N>()
        .ok_or_else(|| ValueError::corrupt("key ends inside a value"))?;
    *input = rest;
    Ok(head)
}

fn put_numeric(out: &mut BytesMut, n: Numeric) {
    let n = n.normalized();
    if n.mantissa() == 0 {
        out.put_u8(ZERO);
        return;
    }
    let negative = n.mantissa() < 0;
    out.put_u8(if negative { NEGATIVE } else { POSITIVE });
    let digits = n.mantissa().unsigned_abs().to_string();
    // value = 0.digits * 10^exponent, exponent in -37..=39
    let exponent = digits.len() as i32 - i32::from(n.scale());
    let flip = if negative { 0xff } else { 0 };
    out.put_u8((exponent + 128) as u8 ^ flip);
    let digits = digits.trim_end_matches('0').as_bytes();
    for pair in digits.chunks(2) {
        let high = pair[0] - b'0';
        let low = pair.get(1).map_or(0, |d| d - b'0');
        out.put_u8((high * 10 + low + 1) ^ flip);
    }
    out.put_u8(flip);
}

fn take_numeric(input: &mut &[u8]) -> ValueResult<Numeric> {
    let (flip, negative) = match take_u8(input)? {
        ZERO => return Ok(Numeric::ZERO),
        NEGATIVE => (0xff, true),
        POSITIVE => (0, false),
        _ => return Err(ValueError::corrupt("malformed number in a key")),
    };
    let exponent = i32::from(take_u8(input)? ^ flip) - 128;
    let mut mantissa: i128 = 0;
    let mut digits = 0;
    loop {
        let pair = take_u8(input)? ^ flip;
        if pair == 0 {
            break;
        }
        if pair > 100 || digits > 38 {
            return Err(ValueError::corrupt("malformed number in a key"));
        }
        mantissa = mantissa * 100 + i128::from(pair - 1);
        digits += 2;
    }
    // The last pair may carry a zero that was not there.
    if mantissa % 10 == 0 && mantissa != 0 {
        mantissa /= 10;
        digits -= 1;
    }
    let scale = digits - exponent;
    let bad = || ValueError::corrupt("malformed number in a key");
    let signed = if negative { -mantissa } else { mantissa };
    if scale >= 0 {
        Numeric::new(signed, scale.try_into().map_err(|_| bad())?).map_err(|_| bad())
    } else {
        let factor = 10_i128.checked_pow(scale.unsigned_abs()).ok_or_else(bad)?;
        Numeric::new(signed.checked_mul(factor).ok_or_else(bad)?, 0).map_err(|_| bad())
    }
}
