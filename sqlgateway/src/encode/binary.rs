//! PostgreSQL's binary formats (the `*send` functions of its types).

use bytes::{BufMut, BytesMut};
use lineradb_common::sql::{Datum, Numeric, SqlType, TimeZone, ValueResult};

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's day zero.
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Appends a value (not NULL) without its length.
///
/// # Errors
/// 22008 for a time that PostgreSQL's format cannot hold.
pub fn write_binary(
    datum: &Datum,
    sql_type: SqlType,
    zone: &TimeZone,
    out: &mut BytesMut,
) -> ValueResult<()> {
    match datum {
        Datum::Null => {}
        Datum::Bool(value) => out.put_u8(u8::from(*value)),
        Datum::Int2(value) => out.put_i16(*value),
        Datum::Int4(value) => out.put_i32(*value),
        Datum::Int8(value) => out.put_i64(*value),
        Datum::Oid(value) => out.put_u32(*value),
        Datum::Float4(value) => out.put_f32(*value),
        Datum::Float8(value) => out.put_f64(*value),
        Datum::Numeric(value) => numeric(*value, sql_type, out),
        Datum::Text(text) => match sql_type {
            // Padded when sent, as in text.
            SqlType::Char(_) => {
                let mut padded = String::new();
                datum.format_into(sql_type, zone, &mut padded);
                out.put_slice(padded.as_bytes());
            }
            _ => out.put_slice(text.as_bytes()),
        },
        Datum::Bytea(bytes) => out.put_slice(bytes),
        Datum::Date(days) => out.put_i32(days.saturating_sub(EPOCH_DAYS)),
        Datum::Time(micros) => out.put_i64(*micros),
        Datum::Timestamp(micros) | Datum::TimestampTz(micros) => {
            out.put_i64(micros.saturating_sub(EPOCH_MICROS));
        }
        Datum::Interval(interval) => {
            out.put_i64(interval.micros);
            out.put_i32(interval.days);
            out.put_i32(interval.months);
        }
        Datum::Uuid(bytes) => out.put_slice(bytes),
        Datum::Array(element, values) => array(*element, values, zone, out)?,
    }
    Ok(())
}

fn array(
    element: SqlType,
    values: &[Datum],
    zone: &TimeZone,
    out: &mut BytesMut,
) -> ValueResult<()> {
    if values.is_empty() {
        out.put_i32(0);
        out.put_i32(0);
        out.put_u32(element.oid());
        return Ok(());
    }
    out.put_i32(1);
    out.put_i32(i32::from(values.iter().any(Datum::is_null)));
    out.put_u32(element.oid());
    out.put_i32(values.len() as i32);
    out.put_i32(1);
    for value in values {
        if value.is_null() {
            out.put_i32(-1);
            continue;
        }
        let start = out.len();
        out.put_i32(0);
        write_binary(value, element, zone, out)?;
        let length = (out.len() - start - 4) as i32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

/// Groups of four decimal digits, the first with weight 10000^weight.
fn numeric(value: Numeric, sql_type: SqlType, out: &mut BytesMut) {
    const BASE: u128 = 10_000;
    // A bare numeric column is printed without trailing zeros, in both formats.
    let value = match sql_type {
        SqlType::Numeric(Some(_)) => value,
        _ => value.normalized(),
    };
    let scale = u32::from(value.scale());
    let magnitude = value.mantissa().unsigned_abs();
    // Split at the point, so that neither half overflows when aligned to
    // groups of four digits.
    let unit = 10_u128.pow(scale);
    let (mut whole, fraction) = (magnitude / unit, magnitude % unit);
    let mut digits: Vec<i16> = Vec::new();
    while whole > 0 {
        digits.push((whole % BASE) as i16);
        whole /= BASE;
    }
    digits.reverse();
    let mut weight = digits.len() as i16 - 1;
    if scale > 0 {
        let text = format!("{fraction:0width$}", width = scale as usize);
        for group in text.as_bytes().chunks(4) {
            let digit = (0..4).fold(0_i16, |digit, at| {
                digit * 10 + group.get(at).map_or(0, |byte| i16::from(byte - b'0'))
            });
            digits.push(digit);
        }
    }
    let leading = digits.iter().take_while(|&&digit| digit == 0).count();
    digits.drain(..leading);
    weight -= leading as i16;
    while digits.last() == Some(&0) {
        digits.pop();
    }
    if digits.is_empty() {
        weight = 0;
    }
    out.put_i16(digits.len() as i16);
    out.put_i16(weight);
    let negative = value.mantissa() < 0;
    out.put_u16(if negative { 0x4000 } else { 0 });
    out.put_u16(scale as u16);
    for digit in digits {
        out.put_i16(digit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_common::sql::Interval;

    fn binary(datum: Datum, sql_type: SqlType) -> String {
        let mut out = BytesMut::new();
        write_binary(&datum, sql_type, &TimeZone::UTC, &mut out).unwrap();
        hex::encode(out)
    }

    fn of_numeric(text: &str) -> String {
        binary(
            Datum::Numeric(Numeric::parse(text).unwrap()),
            SqlType::Numeric(Some((38, 4))),
        )
    }

    // The expected bytes are what PostgreSQL 15's send functions return.
    #[test]
    fn numerics_as_postgresql_sends_them() {
        assert_eq!(of_numeric("0"), "0000000000000000");
        assert_eq!(of_numeric("1"), "00010000000000000001");
        assert_eq!(of_numeric("-123456.78"), "0003000140000002000c0d801e78");
        assert_eq!(of_numeric("10000"), "00010001000000000001");
        assert_eq!(of_numeric("0.0001"), "0001ffff000000040001");
        assert_eq!(of_numeric("0.00001"), "0001fffe0000000503e8");
        assert_eq!(of_numeric("1.50"), "000200000000000200011388");
    }

    #[test]
    fn times_count_from_2000() {
        assert_eq!(
            binary(Datum::Date(EPOCH_DAYS + 1), SqlType::Date),
            "00000001"
        );
        assert_eq!(
            binary(Datum::TimestampTz(EPOCH_MICROS - 1), SqlType::TimestampTz),
            "ffffffffffffffff"
        );
        let interval = Interval {
            months: 14,
            days: 3,
            micros: 4_000_000,
        };
        assert_eq!(
            binary(Datum::Interval(interval), SqlType::Interval),
            "00000000003d0900000000030000000e"
        );
    }

    #[test]
    fn arrays_with_nulls() {
        assert_eq!(
            binary(
                Datum::Array(SqlType::Int4, vec![Datum::Int4(1), Datum::Null]),
                SqlType::Array(23)
            ),
            "0000000100000001000000170000000200000001000000040000000\
             1ffffffff"
        );
        assert_eq!(
            binary(Datum::Array(SqlType::Text, vec![]), SqlType::Array(25)),
            "000000000000000000000019"
        );
    }
}
