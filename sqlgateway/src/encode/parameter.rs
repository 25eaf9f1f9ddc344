//! Parameters: from the wire (text or binary) and from JSON to values.
//!
//! A parameter that is no value of its type is refused with PostgreSQL's code
//! (22P02 text, 22P03 binary, 22003 range, 22021 encoding), before anything
//! runs.

use super::binary::{EPOCH_DAYS, EPOCH_MICROS};
use bytes::{Buf, Bytes};
use lineradb_common::sql::{Datum, Interval, Numeric, SqlType, TimeZone, ValueError, ValueResult};
use serde_json::Value;

/// Reads a parameter of the extended protocol; `format` is 0 (text) or 1.
///
/// # Errors
/// 22P02, 22P03, 22003, 22008 or 22021.
pub fn from_wire(
    sql_type: SqlType,
    format: i16,
    bytes: &Bytes,
    zone: &TimeZone,
) -> ValueResult<Datum> {
    if format == 0 {
        let text = utf8(bytes)?;
        return Datum::parse(sql_type, text, zone);
    }
    binary(sql_type, bytes.clone(), zone)
}

fn utf8(bytes: &[u8]) -> ValueResult<&str> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let byte = bytes.get(error.valid_up_to()).copied().unwrap_or(0);
        ValueError::new(
            "22021",
            format!("invalid byte sequence for encoding \"UTF8\": 0x{byte:02x}"),
        )
    })?;
    if text.contains('\0') {
        return Err(ValueError::new(
            "22021",
            "invalid byte sequence for encoding \"UTF8\": 0x00",
        ));
    }
    Ok(text)
}

fn malformed(sql_type: SqlType) -> ValueError {
    ValueError::new(
        "22P03",
        format!("incorrect binary data format for type {}", sql_type.name()),
    )
}

fn out_of_range(sql_type: SqlType) -> ValueError {
    ValueError::new("22008", format!("{} out of range", sql_type.short_name()))
}

fn binary(sql_type: SqlType, mut bytes: Bytes, zone: &TimeZone) -> ValueResult<Datum> {
    let size = |expected: usize| {
        if bytes.len() == expected {
            Ok(())
        } else {
            Err(malformed(sql_type))
        }
    };
    Ok(match sql_type {
        SqlType::Bool => {
            size(1)?;
            Datum::Bool(bytes.get_u8() != 0)
        }
        SqlType::Int2 => {
            size(2)?;
            Datum::Int2(bytes.get_i16())
        }
        SqlType::Int4 => {
            size(4)?;
            Datum::Int4(bytes.get_i32())
        }
        SqlType::Int8 => {
            size(8)?;
            Datum::Int8(bytes.get_i64())
        }
        SqlType::Oid => {
            size(4)?;
            Datum::Oid(bytes.get_u32())
        }
        SqlType::Float4 => {
            size(4)?;
            Datum::Float4(bytes.get_f32())
        }
        SqlType::Float8 => {
            size(8)?;
            Datum::Float8(bytes.get_f64())
        }
        SqlType::Date => {
            size(4)?;
            let days = bytes.get_i32().checked_add(EPOCH_DAYS);
            Datum::Date(days.ok_or_else(|| out_of_range(sql_type))?)
        }
        SqlType::Time => {
            size(8)?;
            let micros = bytes.get_i64();
            if !(0..=86_400_000_000).contains(&micros) {
                return Err(out_of_range(sql_type));
            }
            Datum::Time(micros)
        }
        SqlType::Timestamp | SqlType::TimestampTz => {
            size(8)?;
            let micros = bytes.get_i64().checked_add(EPOCH_MICROS);
            let micros = micros.ok_or_else(|| out_of_range(sql_type))?;
            match sql_type {
                SqlType::Timestamp => Datum::Timestamp(micros),
                _ => Datum::TimestampTz(micros),
            }
        }
        SqlType::Interval => {
            size(16)?;
            let micros = bytes.get_i64();
            let days = bytes.get_i32();
            let months = bytes.get_i32();
            Datum::Interval(Interval {
                months,
                days,
                micros,
            })
        }
        SqlType::Uuid => {
            size(16)?;
            let mut uuid = [0; 16];
            bytes.copy_to_slice(&mut uuid);
            Datum::Uuid(uuid)
        }
        SqlType::Bytea => Datum::Bytea(bytes),
        SqlType::Numeric(_) => numeric(bytes)?,
        SqlType::Array(_) => array(sql_type, bytes, zone)?,
        // The binary form of text is text.
        _ => Datum::parse(sql_type, utf8(&bytes)?, zone)?,
    })
}

fn numeric(mut bytes: Bytes) -> ValueResult<Datum> {
    let bad = || malformed(SqlType::Numeric(None));
    if bytes.len() < 8 {
        return Err(bad());
    }
    let (count, weight) = (bytes.get_u16(), bytes.get_i16());
    let (sign, scale) = (bytes.get_u16(), bytes.get_u16());
    if bytes.len() != usize::from(count) * 2 || scale > 16_383 {
        return Err(bad());
    }
    let mut text = match sign {
        0 => String::new(),
        0x4000 => "-".to_owned(),
        0xc000 => return Numeric::parse("NaN").map(Datum::Numeric),
        0xd000 | 0xf000 => return Numeric::parse("Infinity").map(Datum::Numeric),
        _ => return Err(bad()),
    };
    let mut digits = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let digit = bytes.get_u16();
        if digit > 9_999 {
            return Err(bad());
        }
        digits.push(digit);
    }
    if i32::from(weight) > 40 {
        return Err(ValueError::out_of_range("numeric"));
    }
    let digit_at = |position: i32| {
        let index = i32::from(weight) - position;
        usize::try_from(index)
            .ok()
            .and_then(|index| digits.get(index))
            .copied()
            .unwrap_or(0)
    };
    for position in (0..=i32::from(weight).max(0)).rev() {
        text.push_str(&format!("{:04}", digit_at(position)));
    }
    if scale > 0 {
        let groups = i32::from(scale).div_euclid(4) + 1;
        let fraction: String = (1..=groups)
            .map(|group| format!("{:04}", digit_at(-group)))
            .collect();
        text.push('.');
        text.push_str(&fraction[..usize::from(scale)]);
    }
    Numeric::parse(&text).map(Datum::Numeric)
}

fn array(sql_type: SqlType, mut bytes: Bytes, zone: &TimeZone) -> ValueResult<Datum> {
    let bad = || malformed(sql_type);
    let element = sql_type.element().ok_or_else(bad)?;
    if bytes.len() < 12 {
        return Err(bad());
    }
    let dimensions = bytes.get_i32();
    let _has_null = bytes.get_i32();
    if bytes.get_u32() != element.oid() {
        return Err(ValueError::new(
            "42804",
            format!("wrong element type for {}", sql_type.name()),
        ));
    }
    match dimensions {
        0 => return Ok(Datum::Array(element, Vec::new())),
        1 => {}
        _ => {
            return Err(ValueError::new(
                "0A000",
                "arrays of more than one dimension are not supported",
            ));
        }
    }
    if bytes.len() < 8 {
        return Err(bad());
    }
    let count = bytes.get_i32();
    let _lower_bound = bytes.get_i32();
    let mut values = Vec::new();
    for _ in 0..count {
        if bytes.len() < 4 {
            return Err(bad());
        }
        let length = bytes.get_i32();
        if length < 0 {
            values.push(Datum::Null);
            continue;
        }
        if bytes.len() < length as usize {
            return Err(bad());
        }
        values.push(binary(element, bytes.split_to(length as usize), zone)?);
    }
    Ok(Datum::Array(element, values))
}

/// Reads a parameter of the HTTP interface.
///
/// Strings are read as PostgreSQL reads them; numbers and booleans fit the types
/// that hold them exactly; `json` takes anything.
///
/// # Errors
/// 22P02, 22003 or 22008 for a value that is none of the type.
pub fn from_json(sql_type: SqlType, value: &Value, zone: &TimeZone) -> ValueResult<Datum> {
    let wrong = |kind: &str| {
        ValueError::new(
            "22P02",
            format!("a JSON {kind} is no value of type {}", sql_type.name()),
        )
    };
    match (value, sql_type) {
        (Value::Null, _) => Ok(Datum::Null),
        (value, SqlType::Json) => Ok(Datum::Text(value.to_string())),
        (Value::String(text), _) => Datum::parse(sql_type, utf8(text.as_bytes())?, zone),
        (Value::Bool(value), SqlType::Bool) => Ok(Datum::Bool(*value)),
        (Value::Bool(_), text) if text.is_text() => {
            Datum::parse(sql_type, &value.to_string(), zone)
        }
        (Value::Bool(_), _) => Err(wrong("boolean")),
        (Value::Number(number), _)
            if sql_type.is_number() || sql_type.is_text() || sql_type == SqlType::Oid =>
        {
            // 3.0 and 1e3 are integers in JSON.
            let whole = number
                .as_f64()
                .filter(|v| number.is_f64() && v.fract() == 0.0 && v.abs() <= 9e15);
            match whole {
                Some(whole) if sql_type.is_integer() => {
                    Datum::parse(sql_type, &format!("{whole:.0}"), zone)
                }
                _ => Datum::parse(sql_type, &number.to_string(), zone),
            }
        }
        (Value::Number(_), _) => Err(wrong("number")),
        (Value::Array(values), SqlType::Array(_)) => {
            let element = sql_type.element().ok_or_else(|| wrong("array"))?;
            let values = values
                .iter()
                .map(|value| from_json(element, value, zone))
                .collect::<ValueResult<Vec<_>>>()?;
            Ok(Datum::Array(element, values))
        }
        (Value::Array(_), _) => Err(wrong("array")),
        (Value::Object(_), _) => Err(wrong("object")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::write_binary;
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;
    use serde_json::json;

    fn back(datum: &Datum, sql_type: SqlType) -> Datum {
        let mut out = BytesMut::new();
        write_binary(datum, sql_type, &TimeZone::UTC, &mut out).unwrap();
        from_wire(sql_type, 1, &out.freeze(), &TimeZone::UTC).unwrap()
    }

    #[test]
    fn binary_values_come_back() {
        for (datum, sql_type) in [
            (Datum::Bool(true), SqlType::Bool),
            (Datum::Int2(-2), SqlType::Int2),
            (Datum::Int8(i64::MIN), SqlType::Int8),
            (Datum::Float8(1.5), SqlType::Float8),
            (Datum::Date(-1), SqlType::Date),
            (Datum::Timestamp(0), SqlType::Timestamp),
            (Datum::TimestampTz(1), SqlType::TimestampTz),
            (Datum::Uuid([7; 16]), SqlType::Uuid),
            (Datum::Bytea(Bytes::from_static(b"\0x")), SqlType::Bytea),
            (
                Datum::Array(SqlType::Int4, vec![Datum::Null, Datum::Int4(3)]),
                SqlType::Array(23),
            ),
        ] {
            assert_eq!(back(&datum, sql_type), datum);
        }
    }

    #[test]
    fn binary_of_the_wrong_length_is_refused() {
        for sql_type in [SqlType::Int4, SqlType::Numeric(None), SqlType::Array(23)] {
            let error = from_wire(sql_type, 1, &Bytes::from_static(b"\0"), &TimeZone::UTC);
            assert_eq!(error.unwrap_err().sqlstate, "22P03");
        }
    }

    #[test]
    fn json_of_another_kind_is_refused() {
        for (sql_type, value) in [
            (SqlType::Int4, json!(true)),
            (SqlType::Bool, json!(1)),
            (SqlType::Text, json!({"a": 1})),
            (SqlType::Int4, json!([1])),
            (SqlType::Date, json!(3)),
        ] {
            let error = from_json(sql_type, &value, &TimeZone::UTC).unwrap_err();
            assert_eq!(error.sqlstate, "22P02", "{value}");
        }
        assert_eq!(
            from_json(SqlType::Int4, &Value::Null, &TimeZone::UTC).unwrap(),
            Datum::Null
        );
    }

    proptest! {
        #[test]
        fn numerics_come_back(mantissa in -(10_i128.pow(37))..10_i128.pow(37), scale in 0_u8..30) {
            let sql_type = SqlType::Numeric(Some((38, scale)));
            let value = Numeric::new(mantissa, scale).unwrap();
            let Datum::Numeric(got) = back(&Datum::Numeric(value), sql_type) else {
                panic!("no numeric");
            };
            prop_assert_eq!((got.mantissa(), got.scale()), (mantissa, scale));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, oid in 0_u32..3000) {
            if let Some(sql_type) = SqlType::from_oid(oid) {
                let _ = from_wire(sql_type, 1, &bytes.into(), &TimeZone::UTC);
            }
        }
    }
}
