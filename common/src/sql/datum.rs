//! One SQL value.

use super::{Interval, Numeric, SqlType, TimeZone, ValueError, ValueResult};
use bytes::Bytes;
use std::cmp::Ordering;

/// One SQL value. Equality is identity of representation; SQL's comparison is
/// [`Datum::compare`].
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// SQL NULL, of any type
    Null,
    /// `boolean`
    Bool(bool),
    /// `smallint`
    Int2(i16),
    /// `integer`
    Int4(i32),
    /// `bigint`
    Int8(i64),
    /// `real`
    Float4(f32),
    /// `double precision`
    Float8(f64),
    /// `numeric`
    Numeric(Numeric),
    /// `text`, `varchar`, `char` (without padding), `name`, `unknown`
    Text(String),
    /// `bytea`
    Bytea(Bytes),
    /// Days since 1970-01-01
    Date(i32),
    /// Microseconds since midnight
    Time(i64),
    /// Microseconds since 1970-01-01, without zone
    Timestamp(i64),
    /// Microseconds since 1970-01-01 UTC
    TimestampTz(i64),
    /// `interval`
    Interval(Interval),
    /// `uuid`
    Uuid([u8; 16]),
    /// `oid`
    Oid(u32),
    /// An array: element type and elements
    Array(SqlType, Vec<Datum>),
}

impl Datum {
    /// True for NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    /// The type of the value itself, without modifiers; `None` for NULL.
    pub fn sql_type(&self) -> Option<SqlType> {
        Some(match self {
            Datum::Null => return None,
            Datum::Bool(_) => SqlType::Bool,
            Datum::Int2(_) => SqlType::Int2,
            Datum::Int4(_) => SqlType::Int4,
            Datum::Int8(_) => SqlType::Int8,
            Datum::Float4(_) => SqlType::Float4,
            Datum::Float8(_) => SqlType::Float8,
            Datum::Numeric(_) => SqlType::Numeric(None),
            Datum::Text(_) => SqlType::Text,
            Datum::Bytea(_) => SqlType::Bytea,
            Datum::Date(_) => SqlType::Date,
            Datum::Time(_) => SqlType::Time,
            Datum::Timestamp(_) => SqlType::Timestamp,
            Datum::TimestampTz(_) => SqlType::TimestampTz,
            Datum::Interval(_) => SqlType::Interval,
            Datum::Uuid(_) => SqlType::Uuid,
            Datum::Oid(_) => SqlType::Oid,
            Datum::Array(e, _) => SqlType::Array(e.oid()),
        })
    }

    /// Reads PostgreSQL's text form of a value of type `sql_type`. The length of
    /// `varchar(n)` and the like is not applied (see [`Datum::assign`]).
    ///
    /// # Errors
    /// 22P02 for text that is no value of the type, 22003 and 22008 for values
    /// out of its range.
    pub fn parse(sql_type: SqlType, text: &str, zone: &TimeZone) -> ValueResult<Datum> {
        super::copy_text::parse(sql_type, text, zone)
    }

    /// Appends PostgreSQL's text form; nothing for NULL. `sql_type` pads
    /// `char(n)` and trims bare `numeric`.
    pub fn format_into(&self, sql_type: SqlType, zone: &TimeZone, out: &mut String) {
        super::copy_text::format_into(self, sql_type, zone, out);
    }

    /// PostgreSQL's text form; `None` for NULL.
    pub fn format(&self, sql_type: SqlType, zone: &TimeZone) -> Option<String> {
        if self.is_null() {
            return None;
        }
        let mut out = String::new();
        self.format_into(sql_type, zone, &mut out);
        Some(out)
    }

    /// Converts on assignment to a column of type `target`: what PostgreSQL
    /// casts implicitly or on assignment, plus text read as any type. Lengths,
    /// precision and ranges are checked.
    ///
    /// # Errors
    /// 22003, 22001, 22P02, 22008; 42804 where no cast exists.
    pub fn assign(self, target: SqlType, zone: &TimeZone) -> ValueResult<Datum> {
        super::cast::assign(self, target, zone)
    }

    /// Converts as an explicit `CAST`: as [`Datum::assign`], but text that is
    /// too long is cut, and anything has a text form.
    ///
    /// # Errors
    /// 22003, 22P02, 22008; 42846 where no cast exists.
    pub fn cast(self, target: SqlType, zone: &TimeZone) -> ValueResult<Datum> {
        super::cast::cast(self, target, zone)
    }

    /// SQL's order of two values of one type, NULLs last, NaN greatest.
    ///
    /// # Errors
    /// 42883 for values of types that do not compare.
    pub fn compare(&self, other: &Datum) -> ValueResult<Ordering> {
        use Datum as D;
        Ok(match (self, other) {
            (D::Null, D::Null) => Ordering::Equal,
            (D::Null, _) => Ordering::Greater,
            (_, D::Null) => Ordering::Less,
            (D::Bool(a), D::Bool(b)) => a.cmp(b),
            (D::Text(a), D::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (D::Bytea(a), D::Bytea(b)) => a.cmp(b),
            (D::Date(a), D::Date(b)) => a.cmp(b),
            (D::Time(a), D::Time(b))
            | (D::Timestamp(a), D::Timestamp(b))
            | (D::TimestampTz(a), D::TimestampTz(b)) => a.cmp(b),
            (D::Interval(a), D::Interval(b)) => a.cmp(b),
            (D::Uuid(a), D::Uuid(b)) => a.cmp(b),
            (D::Oid(a), D::Oid(b)) => a.cmp(b),
            (a, b) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => match (a.as_exact(), b.as_exact()) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    _ => match (a.as_f64(), b.as_f64()) {
                        (Some(a), Some(b)) => compare_floats(a, b),
                        _ => {
                            return Err(ValueError::new(
                                "42883",
                                "operator does not exist: these types do not compare",
                            ));
                        }
                    },
                },
            },
        })
    }

    /// The value of an integer.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Datum::Int2(v) => Some(i64::from(*v)),
            Datum::Int4(v) => Some(i64::from(*v)),
            Datum::Int8(v) => Some(*v),
            Datum::Oid(v) => Some(i64::from(*v)),
            _ => None,
        }
    }

    /// The value of an integer or `numeric`.
    pub fn as_exact(&self) -> Option<Numeric> {
        match self {
            Datum::Numeric(n) => Some(*n),
            other => other.as_i64().map(Numeric::from_i64),
        }
    }

    /// The value of any number, as a double.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Datum::Float4(v) => Some(f64::from(*v)),
            Datum::Float8(v) => Some(*v),
            other => other.as_exact().map(Numeric::to_f64),
        }
    }

    /// Bytes that the value takes in memory, roughly.
    pub fn size(&self) -> usize {
        size_of::<Datum>()
            + match self {
                Datum::Text(s) => s.len(),
                Datum::Bytea(b) => b.len(),
                Datum::Array(_, v) => v.iter().map(Datum::size).sum(),
                _ => 0,
            }
    }
}

/// PostgreSQL's order of floats: NaN equals NaN and is greatest, -0 equals 0.
pub(crate) fn compare_floats(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
    }
}

impl From<&str> for Datum {
    fn from(v: &str) -> Self {
        Datum::Text(v.to_owned())
    }
}

impl From<String> for Datum {
    fn from(v: String) -> Self {
        Datum::Text(v)
    }
}

impl From<i32> for Datum {
    fn from(v: i32) -> Self {
        Datum::Int4(v)
    }
}

impl From<i64> for Datum {
    fn from(v: i64) -> Self {
        Datum::Int8(v)
    }
}

impl From<bool> for Datum {
    fn from(v: bool) -> Self {
        Datum::Bool(v)
    }
}
