//! The SQL types: their names, PostgreSQL OIDs, and Arrow representation.

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use std::collections::HashMap;
use std::sync::Arc;

/// Key of the Arrow field metadata that carries the SQL type (its
/// [`Display`](std::fmt::Display) form), so that what Arrow cannot say survives a plan.
pub const TYPE_METADATA_KEY: &str = "lineradb.type";

/// Scale of a bare `numeric` column in Arrow.
pub const BARE_NUMERIC_SCALE: u8 = 10;
/// Most digits of a `numeric`.
pub const NUMERIC_PRECISION_MAX: u8 = 38;

/// A SQL type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SqlType {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`, or `numeric(precision, scale)`
    Numeric(Option<(u8, u8)>),
    /// `text`
    Text,
    /// `character varying`, with its limit in characters
    Varchar(Option<u32>),
    /// `character(n)`
    Char(u32),
    /// `bytea`
    Bytea,
    /// `date`
    Date,
    /// `time without time zone`
    Time,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    TimestampTz,
    /// `interval`
    Interval,
    /// `uuid`
    Uuid,
    /// `oid`: results of catalog queries only
    Oid,
    /// `name`: results of catalog queries only
    Name,
    /// `"char"`: results of catalog queries only
    InternalChar,
    /// `json` text: results only
    Json,
    /// `void`: results of functions called for their effect
    Void,
    /// A literal whose type is not known yet (`unknown`)
    Unknown,
    /// An array; the element type by its OID (see [`SqlType::element`])
    Array(u32),
}

impl SqlType {
    /// PostgreSQL's type OID.
    pub fn oid(self) -> u32 {
        match self {
            SqlType::Bool => 16,
            SqlType::Bytea => 17,
            SqlType::InternalChar => 18,
            SqlType::Name => 19,
            SqlType::Int8 => 20,
            SqlType::Int2 => 21,
            SqlType::Int4 => 23,
            SqlType::Text => 25,
            SqlType::Oid => 26,
            SqlType::Json => 114,
            SqlType::Float4 => 700,
            SqlType::Float8 => 701,
            SqlType::Unknown => 705,
            SqlType::Char(_) => 1042,
            SqlType::Varchar(_) => 1043,
            SqlType::Date => 1082,
            SqlType::Time => 1083,
            SqlType::Timestamp => 1114,
            SqlType::TimestampTz => 1184,
            SqlType::Interval => 1186,
            SqlType::Numeric(_) => 1700,
            SqlType::Void => 2278,
            SqlType::Uuid => 2950,
            SqlType::Array(element) => match element {
                16 => 1000,
                17 => 1001,
                18 => 1002,
                19 => 1003,
                20 => 1016,
                21 => 1005,
                23 => 1007,
                25 => 1009,
                26 => 1028,
                114 => 199,
                700 => 1021,
                701 => 1022,
                1042 => 1014,
                1043 => 1015,
                1082 => 1182,
                1083 => 1183,
                1114 => 1115,
                1184 => 1185,
                1186 => 1187,
                1700 => 1231,
                2950 => 2951,
                _ => 2277,
            },
        }
    }

    /// The type with an OID, without modifiers.
    pub fn from_oid(oid: u32) -> Option<Self> {
        let simple = [
            SqlType::Bool,
            SqlType::Bytea,
            SqlType::InternalChar,
            SqlType::Name,
            SqlType::Int8,
            SqlType::Int2,
            SqlType::Int4,
            SqlType::Text,
            SqlType::Oid,
            SqlType::Json,
            SqlType::Float4,
            SqlType::Float8,
            SqlType::Unknown,
            SqlType::Char(1),
            SqlType::Varchar(None),
            SqlType::Date,
            SqlType::Time,
            SqlType::Timestamp,
            SqlType::TimestampTz,
            SqlType::Interval,
            SqlType::Numeric(None),
            SqlType::Void,
            SqlType::Uuid,
        ];
        simple.iter().copied().find(|t| t.oid() == oid).or_else(|| {
            simple
                .iter()
                .map(|t| SqlType::Array(t.oid()))
                .find(|t| t.oid() == oid && oid != 2277)
        })
    }

    /// PostgreSQL's type modifier (`atttypmod`); -1: none.
    pub fn type_modifier(self) -> i32 {
        match self {
            SqlType::Varchar(Some(n)) | SqlType::Char(n) => n as i32 + 4,
            SqlType::Numeric(Some((p, s))) => ((i32::from(p) << 16) | i32::from(s)) + 4,
            _ => -1,
        }
    }

    /// Bytes of a value (`typlen`); -1: variable.
    pub fn type_length(self) -> i16 {
        match self {
            SqlType::Bool | SqlType::InternalChar => 1,
            SqlType::Int2 => 2,
            SqlType::Int4 | SqlType::Oid | SqlType::Float4 | SqlType::Date | SqlType::Void => 4,
            SqlType::Int8
            | SqlType::Float8
            | SqlType::Time
            | SqlType::Timestamp
            | SqlType::TimestampTz => 8,
            SqlType::Interval | SqlType::Uuid => 16,
            SqlType::Name => 64,
            SqlType::Unknown => -2,
            _ => -1,
        }
    }

    /// The element type of an array type.
    pub fn element(self) -> Option<SqlType> {
        match self {
            SqlType::Array(oid) => SqlType::from_oid(oid),
            _ => None,
        }
    }

    /// True for `text`, `varchar`, `char` and the like.
    pub fn is_text(self) -> bool {
        matches!(
            self,
            SqlType::Text
                | SqlType::Varchar(_)
                | SqlType::Char(_)
                | SqlType::Name
                | SqlType::InternalChar
                | SqlType::Json
                | SqlType::Unknown
                | SqlType::Void
        )
    }

    /// True for `int2`, `int4`, `int8`.
    pub fn is_integer(self) -> bool {
        matches!(self, SqlType::Int2 | SqlType::Int4 | SqlType::Int8)
    }

    /// True for integers, floats and `numeric`.
    pub fn is_number(self) -> bool {
        self.is_integer()
            || matches!(
                self,
                SqlType::Float4 | SqlType::Float8 | SqlType::Numeric(_)
            )
    }

    /// True when a table column may have the type.
    pub fn is_storable(self) -> bool {
        !matches!(
            self,
            SqlType::Oid
                | SqlType::Name
                | SqlType::InternalChar
                | SqlType::Json
                | SqlType::Void
                | SqlType::Unknown
                | SqlType::Array(_)
        )
    }

    /// True when a column of the type may be part of a primary key or index.
    pub fn is_indexable(self) -> bool {
        self.is_storable() && self != SqlType::Interval
    }

    /// How values of the type lie in Arrow.
    pub fn arrow_type(self) -> DataType {
        match self {
            SqlType::Bool => DataType::Boolean,
            SqlType::Int2 => DataType::Int16,
            SqlType::Int4 => DataType::Int32,
            SqlType::Int8 => DataType::Int64,
            SqlType::Float4 => DataType::Float32,
            SqlType::Float8 => DataType::Float64,
            SqlType::Numeric(None) => {
                DataType::Decimal128(NUMERIC_PRECISION_MAX, BARE_NUMERIC_SCALE as i8)
            }
            SqlType::Numeric(Some((p, s))) => DataType::Decimal128(p, s as i8),
            SqlType::Text
            | SqlType::Varchar(_)
            | SqlType::Char(_)
            | SqlType::Name
            | SqlType::InternalChar
            | SqlType::Json
            | SqlType::Void
            | SqlType::Unknown => DataType::Utf8View,
            SqlType::Bytea => DataType::Binary,
            SqlType::Date => DataType::Date32,
            SqlType::Time => DataType::Time64(TimeUnit::Microsecond),
            SqlType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            SqlType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            SqlType::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            SqlType::Uuid => DataType::FixedSizeBinary(16),
            SqlType::Oid => DataType::UInt32,
            SqlType::Array(_) => {
                let element = self.element().unwrap_or(SqlType::Text);
                // Without metadata: DataFusion drops that of list items wherever a
                // list becomes a constant. The array's own field names the type.
                DataType::List(Arc::new(Field::new_list_field(element.arrow_type(), true)))
            }
        }
    }

    /// An Arrow field of the type, with the metadata that keeps it.
    pub fn field(self, name: &str, nullable: bool) -> Field {
        Field::new(name, self.arrow_type(), nullable).with_metadata(self.metadata())
    }

    /// The field metadata that keeps the type.
    pub fn metadata(self) -> HashMap<String, String> {
        HashMap::from([(TYPE_METADATA_KEY.to_owned(), self.to_string())])
    }

    /// The SQL type of an Arrow field: what its metadata says if that fits its
    /// data type, else what the data type suggests.
    pub fn from_field(field: &Field) -> SqlType {
        let natural = SqlType::from_arrow(field.data_type());
        match field.metadata().get(TYPE_METADATA_KEY) {
            Some(text) => match text.parse::<SqlType>() {
                // An expression may have changed the data type and kept the metadata.
                Ok(t) if t.is_stored_as(field.data_type(), natural) => t,
                _ => natural,
            },
            None => natural,
        }
    }

    /// Whether values of the type may have this data type, which suggests `natural`.
    fn is_stored_as(self, data_type: &DataType, natural: SqlType) -> bool {
        match (self, data_type) {
            (SqlType::Uuid, _) => true,
            (SqlType::Numeric(digits), DataType::Decimal128(_, scale)) => {
                digits.is_none_or(|(_, own)| i16::from(own) == i16::from(*scale))
            }
            (SqlType::Array(_), DataType::List(item)) => match self.element() {
                Some(element) => {
                    let suggested = SqlType::from_arrow(item.data_type());
                    element.is_stored_as(item.data_type(), suggested)
                }
                None => true,
            },
            (own, _) if own.is_number() => {
                own.family() == natural.family() && own.arrow_type() == *data_type
            }
            (own, _) => own.family() == natural.family(),
        }
    }

    /// The SQL type that an Arrow data type suggests.
    pub fn from_arrow(data_type: &DataType) -> SqlType {
        match data_type {
            DataType::Boolean => SqlType::Bool,
            DataType::Int8 | DataType::UInt8 | DataType::Int16 => SqlType::Int2,
            DataType::UInt16 | DataType::Int32 => SqlType::Int4,
            DataType::UInt32 | DataType::Int64 | DataType::UInt64 => SqlType::Int8,
            DataType::Float16 | DataType::Float32 => SqlType::Float4,
            DataType::Float64 => SqlType::Float8,
            DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..) => SqlType::Numeric(None),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => SqlType::Bytea,
            DataType::FixedSizeBinary(16) => SqlType::Uuid,
            DataType::FixedSizeBinary(_) => SqlType::Bytea,
            DataType::Date32 | DataType::Date64 => SqlType::Date,
            DataType::Time32(_) | DataType::Time64(_) => SqlType::Time,
            DataType::Timestamp(_, None) => SqlType::Timestamp,
            DataType::Timestamp(_, Some(_)) => SqlType::TimestampTz,
            DataType::Interval(_) | DataType::Duration(_) => SqlType::Interval,
            DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
                SqlType::Array(SqlType::from_field(f).oid())
            }
            DataType::Dictionary(_, value) => SqlType::from_arrow(value),
            _ => SqlType::Text,
        }
    }

    /// Types of one family share an Arrow representation up to width and scale.
    fn family(self) -> u8 {
        match self {
            SqlType::Bool => 0,
            SqlType::Int2 | SqlType::Int4 | SqlType::Int8 | SqlType::Oid => 1,
            SqlType::Float4 | SqlType::Float8 => 2,
            SqlType::Numeric(_) => 3,
            SqlType::Bytea => 5,
            SqlType::Date => 6,
            SqlType::Time => 7,
            SqlType::Timestamp => 8,
            SqlType::TimestampTz => 9,
            SqlType::Interval => 10,
            SqlType::Uuid => 11,
            SqlType::Array(_) => 12,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [SqlType; 26] = [
        SqlType::Bool,
        SqlType::Int2,
        SqlType::Int4,
        SqlType::Int8,
        SqlType::Float4,
        SqlType::Float8,
        SqlType::Numeric(None),
        SqlType::Numeric(Some((10, 2))),
        SqlType::Text,
        SqlType::Varchar(None),
        SqlType::Varchar(Some(7)),
        SqlType::Char(3),
        SqlType::Bytea,
        SqlType::Date,
        SqlType::Time,
        SqlType::Timestamp,
        SqlType::TimestampTz,
        SqlType::Interval,
        SqlType::Uuid,
        SqlType::Oid,
        SqlType::Name,
        SqlType::InternalChar,
        SqlType::Json,
        SqlType::Void,
        SqlType::Unknown,
        SqlType::Array(23),
    ];

    #[test]
    fn a_type_survives_its_text_and_its_arrow_field() {
        for t in ALL {
            assert_eq!(t.to_string().parse::<SqlType>().unwrap(), t);
            assert_eq!(SqlType::from_field(&t.field("c", true)), t, "{t}");
        }
    }

    #[test]
    fn metadata_that_no_longer_fits_is_ignored() {
        let field = Field::new("c", DataType::Int64, true)
            .with_metadata(SqlType::Varchar(Some(3)).metadata());
        assert_eq!(SqlType::from_field(&field), SqlType::Int8);
    }

    #[test]
    fn oids_come_back() {
        for t in ALL {
            let back = SqlType::from_oid(t.oid()).unwrap();
            assert_eq!(back.oid(), t.oid());
        }
    }
}
