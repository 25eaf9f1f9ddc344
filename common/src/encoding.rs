//! Memcomparable encoding: bytes whose order is the order of the values, so
//! that the store below needs to know nothing about types. The idea is that of
//! FoundationDB's tuple layer and of MyRocks.
//!
//! * Fixed-width integers: big endian, sign bit flipped.
//! * Floats: IEEE bits, all flipped when negative, else the sign bit flipped;
//!   -0.0 is stored as 0.0, NaN as the one greatest NaN (as PostgreSQL orders).
//! * Byte strings: `0x00` is escaped to `0x00 0xff`, the end is `0x00 0x01`,
//!   so that a prefix sorts before what continues it.

use crate::{Error, Result};
use bytes::{BufMut, BytesMut};

/// Appends an unsigned integer.
pub fn put_u64(out: &mut BytesMut, v: u64) {
    out.put_u64(v);
}

/// Appends a signed integer.
pub fn put_i64(out: &mut BytesMut, v: i64) {
    out.put_u64((v as u64) ^ (1 << 63));
}

/// Appends a float in PostgreSQL's order (NaN greatest, -0 equal to 0).
pub fn put_f64(out: &mut BytesMut, v: f64) {
    let v = if v == 0.0 {
        0.0
    } else if v.is_nan() {
        f64::NAN.abs()
    } else {
        v
    };
    let bits = v.to_bits();
    out.put_u64(if bits >> 63 == 1 {
        !bits
    } else {
        bits ^ (1 << 63)
    });
}

/// Appends a byte string.
pub fn put_bytes(out: &mut BytesMut, v: &[u8]) {
    out.reserve(v.len() + 2);
    for &b in v {
        out.put_u8(b);
        if b == 0 {
            out.put_u8(0xff);
        }
    }
    out.put_slice(&[0, 1]);
}

/// Reads an unsigned integer and moves past it.
///
/// # Errors
/// When the input is too short; the other readers alike.
pub fn take_u64(input: &mut &[u8]) -> Result<u64> {
    let (head, rest) = input
        .split_first_chunk::<8>()
        .ok_or_else(|| Error::corrupt("key ends inside a number"))?;
    *input = rest;
    Ok(u64::from_be_bytes(*head))
}

/// Reads a signed integer.
///
/// # Errors
/// When the input is too short.
pub fn take_i64(input: &mut &[u8]) -> Result<i64> {
    Ok((take_u64(input)? ^ (1 << 63)) as i64)
}

/// Reads a float.
///
/// # Errors
/// When the input is too short.
pub fn take_f64(input: &mut &[u8]) -> Result<f64> {
    let bits = take_u64(input)?;
    Ok(f64::from_bits(if bits >> 63 == 1 {
        bits ^ (1 << 63)
    } else {
        !bits
    }))
}

/// Reads a byte string.
///
/// # Errors
/// When the input ends before the string does, or an escape is malformed.
pub fn take_bytes(input: &mut &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut i = 0;
    loop {
        match (input.get(i), input.get(i + 1)) {
            (Some(0), Some(0xff)) => {
                out.push(0);
                i += 2;
            }
            (Some(0), Some(1)) => {
                *input = &input[i + 2..];
                return Ok(out);
            }
            (Some(0), _) | (None, _) => return Err(Error::corrupt("malformed string in a key")),
            (Some(&b), _) => {
                out.push(b);
                i += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(v: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_bytes(&mut out, v);
        out.to_vec()
    }

    #[test]
    fn strings_keep_their_order_and_come_back() {
        let values: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"\0a", b"a", b"a\0", b"ab"];
        for pair in values.windows(2) {
            assert!(bytes(pair[0]) < bytes(pair[1]), "{pair:?}");
        }
        for v in values {
            let encoded = bytes(v);
            let mut input = &encoded[..];
            assert_eq!(take_bytes(&mut input).unwrap(), v);
            assert!(input.is_empty());
        }
    }

    #[test]
    fn numbers_keep_their_order_and_come_back() {
        let ints = [i64::MIN, -5, -1, 0, 1, 7, i64::MAX];
        let enc = |v| {
            let mut out = BytesMut::new();
            put_i64(&mut out, v);
            out.to_vec()
        };
        for pair in ints.windows(2) {
            assert!(enc(pair[0]) < enc(pair[1]));
        }
        let floats = [
            f64::NEG_INFINITY,
            -1.5,
            -f64::MIN_POSITIVE,
            0.0,
            1.5,
            f64::INFINITY,
            f64::NAN,
        ];
        let enc = |v| {
            let mut out = BytesMut::new();
            put_f64(&mut out, v);
            out.to_vec()
        };
        for pair in floats.windows(2) {
            assert!(enc(pair[0]) < enc(pair[1]));
        }
        assert_eq!(enc(-0.0), enc(0.0));
        assert_eq!(take_f64(&mut &enc(-1.5)[..]).unwrap(), -1.5);
    }

    #[test]
    fn malformed_strings_are_errors() {
        for bad in [&b"abc"[..], b"a\0", b"a\0\x02", b""] {
            assert!(take_bytes(&mut &bad[..]).is_err());
        }
    }
}
