//! Parameters of a request, as the text that the client wrote: a JSON number
//! becomes the value that its digits say, not the nearest binary fraction, and
//! `json` keeps the text as it came.

use crate::encode;
use lineradb_common::sql::{Datum, Numeric, SqlType, TimeZone, ValueError, ValueResult};

/// One parameter: the text of a JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param(String);

impl Param {
    /// Its value as one of a SQL type.
    ///
    /// # Errors
    /// 22P02, 22003 or 22008 for a value that is none of the type.
    pub fn datum(&self, sql_type: SqlType, zone: &TimeZone) -> ValueResult<Datum> {
        datum(&self.0, sql_type, zone)
    }
}

fn datum(text: &str, sql_type: SqlType, zone: &TimeZone) -> ValueResult<Datum> {
    let takes_numbers = sql_type.is_number() || sql_type.is_text() || sql_type == SqlType::Oid;
    match text.as_bytes().first() {
        Some(b'n') => Ok(Datum::Null),
        Some(_) if sql_type == SqlType::Json => Ok(Datum::Text(text.to_owned())),
        Some(b'-' | b'0'..=b'9') if takes_numbers => {
            // 3.0 and 1e3 are integers in JSON.
            let whole = match sql_type.is_integer() || sql_type == SqlType::Oid {
                true => whole(text),
                false => None,
            };
            Datum::parse(sql_type, whole.as_deref().unwrap_or(text), zone)
        }
        Some(b'[') => match sql_type.element() {
            Some(element) => elements(text)
                .iter()
                .map(|value| datum(&value.0, element, zone))
                .collect::<ValueResult<Vec<_>>>()
                .map(|values| Datum::Array(element, values)),
            None => other(text, sql_type, zone),
        },
        _ => other(text, sql_type, zone),
    }
}

fn other(text: &str, sql_type: SqlType, zone: &TimeZone) -> ValueResult<Datum> {
    // The body was JSON, but its values were not read: 1e400 is none of a double.
    let value =
        serde_json::from_str(text).map_err(|_| ValueError::syntax(&sql_type.name(), text))?;
    encode::from_json(sql_type, &value, zone)
}

/// A number with a fraction or an exponent that is a whole one all the same.
fn whole(text: &str) -> Option<String> {
    if !text.contains(['.', 'e', 'E']) {
        return None;
    }
    let number = Numeric::parse(text).ok()?;
    let unit = 10_i128.checked_pow(u32::from(number.scale()))?;
    let whole = number.mantissa() % unit == 0;
    whole.then(|| (number.mantissa() / unit).to_string())
}

/// The field `params` of a body that is a JSON object; `None` without one. Of a
/// body that is none, nothing.
pub fn of_body(body: &str) -> Option<Vec<Param>> {
    let mut scan = Scan { text: body, at: 0 };
    scan.blanks();
    scan.at += 1;
    loop {
        scan.blanks();
        let name: String = serde_json::from_str(scan.value()?).ok()?;
        scan.blanks();
        scan.at += 1;
        scan.blanks();
        let value = scan.value()?;
        if name == "params" {
            return value.starts_with('[').then(|| elements(value));
        }
        scan.blanks();
        scan.at += 1;
    }
}

/// The elements of a JSON array.
fn elements(array: &str) -> Vec<Param> {
    let mut scan = Scan { text: array, at: 1 };
    let mut elements = Vec::new();
    loop {
        scan.blanks();
        match scan.value() {
            Some(value) => elements.push(Param(value.to_owned())),
            None => return elements,
        }
        scan.blanks();
        // The comma, or the end.
        scan.at += 1;
    }
}

/// Goes over a text that is known to be JSON.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// The text of the value that begins here; `None` at the end of a container.
    fn value(&mut self) -> Option<&'a str> {
        let start = self.at;
        match self.peek()? {
            b'"' => self.string(),
            b'[' | b'{' => {
                let mut depth = 0;
                loop {
                    match self.peek()? {
                        b'"' => {
                            self.string();
                            continue;
                        }
                        b'[' | b'{' => depth += 1,
                        b']' | b'}' => depth -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if depth == 0 {
                        break;
                    }
                }
            }
            b']' | b'}' | b',' | b':' => return None,
            _ => {
                while self
                    .peek()
                    .is_some_and(|b| !matches!(b, b',' | b']' | b'}') && !b.is_ascii_whitespace())
                {
                    self.at += 1;
                }
            }
        }
        self.text.get(start..self.at)
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += 1 + usize::from(byte == b'\\');
            if byte == b'"' {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn value(text: &str, sql_type: SqlType) -> Result<String, String> {
        Param(text.to_owned())
            .datum(sql_type, &TimeZone::UTC)
            .map(|d| d.format(sql_type, &TimeZone::UTC).unwrap_or("NULL".into()))
            .map_err(|e| e.sqlstate.to_string())
    }

    #[test]
    fn numbers_are_what_their_digits_say() {
        let numeric = SqlType::Numeric(None);
        let long = "12345678901234567890.123456789";
        assert_eq!(value(long, numeric).unwrap(), long);
        assert_eq!(value(long, SqlType::Text).unwrap(), long);
        assert_eq!(value("0.1", numeric).unwrap(), "0.1");
        assert_eq!(
            value("9223372036854775807", SqlType::Int8).unwrap(),
            "9223372036854775807"
        );
        assert_eq!(
            value("9223372036854775808", SqlType::Int8),
            Err("22003".into())
        );
        assert_eq!(value("3.0", SqlType::Int4).unwrap(), "3");
        assert_eq!(value("1e3", SqlType::Int4).unwrap(), "1000");
        assert_eq!(value("1.5", SqlType::Int4), Err("22P02".into()));
        assert_eq!(value("0.1", SqlType::Float8).unwrap(), "0.1");
        assert_eq!(
            value("[0.25, null]", SqlType::Array(1700)).unwrap(),
            "{0.25,NULL}"
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_null() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(1_000), "]".repeat(1_000));
        for (text, sql_type) in [("1e400", SqlType::Bool), (&*deep, SqlType::Int4)] {
            assert_eq!(value(text, sql_type).unwrap_err(), "22P02");
        }
    }

    #[test]
    fn json_keeps_its_text() {
        let text = "{\"b\": 1.000, \"a\":[12345678901234567890]}";
        assert_eq!(value(text, SqlType::Json).unwrap(), text);
        assert_eq!(value("null", SqlType::Json).unwrap(), "NULL");
    }

    #[test]
    fn params_are_found_wherever_they_stand() {
        let params =
            |body: &str| of_body(body).map(|p| p.into_iter().map(|p| p.0).collect::<Vec<_>>());
        let found = params(
            r#" {"sql": "\"params\": [7]", "\u0070arams" : [ 1 , "a,]\"", [2,{"x":3}] ] } "#,
        );
        assert_eq!(found.unwrap(), ["1", "\"a,]\\\"\"", "[2,{\"x\":3}]"]);
        assert_eq!(params(r#"{"sql":"", "params":[]}"#).unwrap(), [""; 0]);
        assert_eq!(params(r#"{"params":null}"#), None);
        assert_eq!(params(r#"{"sql":"x"}"#), None);
        assert_eq!(params("{}"), None);
    }

    proptest! {
        #[test]
        fn elements_are_those_of_the_array(texts: Vec<String>, numbers: Vec<i64>) {
            let array = json!([texts, numbers, {"a": texts}, null, true]);
            let body = json!({"sql": "x", "params": array}).to_string();
            let found: Vec<Value> = of_body(&body)
                .unwrap()
                .iter()
                .map(|p| serde_json::from_str(&p.0).unwrap())
                .collect();
            prop_assert_eq!(Value::Array(found), array);
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = of_body(&text);
        }
    }
}
