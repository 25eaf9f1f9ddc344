//! Between values and Arrow arrays.

use super::types::BARE_NUMERIC_SCALE;
use super::{Datum, Interval, Numeric, SqlType, ValueError, ValueResult};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder,
    FixedSizeBinaryBuilder, Float32Builder, Float64Builder, Int16Builder, Int32Builder,
    Int64Builder, IntervalMonthDayNanoBuilder, RecordBatch, RecordBatchOptions, StringViewBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder, UInt32Builder,
};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal128Type, DurationMicrosecondType,
    DurationMillisecondType, DurationNanosecondType, DurationSecondType, Field, Float16Type,
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, IntervalDayTimeType,
    IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType, SchemaRef,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use std::sync::Arc;

/// The value of a row of an array, as a value of `sql_type` (any Arrow
/// representation that [`SqlType::from_arrow`] knows is read).
///
/// # Errors
/// XX000 for an Arrow type that has no SQL value; 22008 for times out of range;
/// 22003 for integers above 2^63.
pub fn datum_at(array: &dyn Array, row: usize, sql_type: SqlType) -> ValueResult<Datum> {
    if array.is_null(row) {
        return Ok(Datum::Null);
    }
    macro_rules! at {
        ($t:ty) => {
            array.as_primitive::<$t>().value(row)
        };
    }
    let range = || ValueError::new("22008", "timestamp out of range");
    let datum = match array.data_type() {
        DataType::Null => Datum::Null,
        DataType::Boolean => Datum::Bool(array.as_boolean().value(row)),
        DataType::Int8 => integer(i64::from(at!(Int8Type)), sql_type, SqlType::Int2),
        DataType::UInt8 => integer(i64::from(at!(UInt8Type)), sql_type, SqlType::Int2),
        DataType::Int16 => integer(i64::from(at!(Int16Type)), sql_type, SqlType::Int2),
        DataType::UInt16 => integer(i64::from(at!(UInt16Type)), sql_type, SqlType::Int4),
        DataType::Int32 => integer(i64::from(at!(Int32Type)), sql_type, SqlType::Int4),
        DataType::UInt32 => integer(i64::from(at!(UInt32Type)), sql_type, SqlType::Int8),
        DataType::Int64 => integer(at!(Int64Type), sql_type, SqlType::Int8),
        DataType::UInt64 => integer(
            i64::try_from(at!(UInt64Type)).map_err(|_| ValueError::out_of_range("bigint"))?,
            sql_type,
            SqlType::Int8,
        ),
        DataType::Float16 => Datum::Float4(at!(Float16Type).to_f32()),
        DataType::Float32 => match sql_type {
            SqlType::Float8 => Datum::Float8(f64::from(at!(Float32Type))),
            _ => Datum::Float4(at!(Float32Type)),
        },
        DataType::Float64 => Datum::Float8(at!(Float64Type)),
        DataType::Decimal128(_, scale) => decimal(at!(Decimal128Type), *scale, sql_type)?,
        DataType::Decimal256(_, scale) => {
            let v = array
                .as_primitive::<arrow::datatypes::Decimal256Type>()
                .value(row)
                .to_i128()
                .ok_or_else(|| ValueError::out_of_range("numeric"))?;
            decimal(v, *scale, sql_type)?
        }
        DataType::Utf8 => text(array.as_string::<i32>().value(row), sql_type),
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(row), sql_type),
        DataType::Utf8View => text(array.as_string_view().value(row), sql_type),
        DataType::Binary => bytea(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytea(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytea(array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => {
            let bytes = array.as_fixed_size_binary().value(row);
            match <[u8; 16]>::try_from(bytes) {
                Ok(uuid) if sql_type != SqlType::Bytea => Datum::Uuid(uuid),
                _ => bytea(bytes),
            }
        }
        DataType::Date32 => Datum::Date(at!(Date32Type)),
        DataType::Date64 => Datum::Date((at!(Date64Type)).div_euclid(86_400_000) as i32),
        DataType::Time32(TimeUnit::Second) => {
            Datum::Time(i64::from(at!(Time32SecondType)) * 1_000_000)
        }
        DataType::Time32(_) => Datum::Time(i64::from(at!(Time32MillisecondType)) * 1000),
        DataType::Time64(TimeUnit::Microsecond) => Datum::Time(at!(Time64MicrosecondType)),
        DataType::Time64(_) => Datum::Time(at!(Time64NanosecondType) / 1000),
        DataType::Timestamp(unit, zone) => {
            let us = match unit {
                TimeUnit::Second => at!(TimestampSecondType).checked_mul(1_000_000),
                TimeUnit::Millisecond => at!(TimestampMillisecondType).checked_mul(1000),
                TimeUnit::Microsecond => Some(at!(TimestampMicrosecondType)),
                TimeUnit::Nanosecond => Some(at!(TimestampNanosecondType).div_euclid(1000)),
            }
            .ok_or_else(range)?;
            if zone.is_some() {
                Datum::TimestampTz(us)
            } else {
                Datum::Timestamp(us)
            }
        }
        DataType::Duration(unit) => {
            let us = match unit {
                TimeUnit::Second => at!(DurationSecondType).checked_mul(1_000_000),
                TimeUnit::Millisecond => at!(DurationMillisecondType).checked_mul(1000),
                TimeUnit::Microsecond => Some(at!(DurationMicrosecondType)),
                TimeUnit::Nanosecond => Some(at!(DurationNanosecondType).div_euclid(1000)),
            }
            .ok_or_else(range)?;
            // timestamp - timestamp counts whole days, as PostgreSQL does.
            Datum::Interval(Interval {
                months: 0,
                days: (us / 86_400_000_000) as i32,
                micros: us % 86_400_000_000,
            })
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            Datum::Interval(Interval::from_arrow(at!(IntervalMonthDayNanoType)))
        }
        DataType::Interval(IntervalUnit::DayTime) => {
            let v = at!(IntervalDayTimeType);
            Datum::Interval(Interval {
                months: 0,
                days: v.days,
                micros: i64::from(v.milliseconds) * 1000,
            })
        }
        DataType::Interval(IntervalUnit::YearMonth) => Datum::Interval(Interval {
            months: at!(IntervalYearMonthType),
            days: 0,
            micros: 0,
        }),
        DataType::List(field) => {
            let values = array.as_list::<i32>().value(row);
            list(&values, SqlType::from_field(field), sql_type)?
        }
        DataType::LargeList(field) => {
            let values = array.as_list::<i64>().value(row);
            list(&values, SqlType::from_field(field), sql_type)?
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let keys = arrow::compute::cast(dictionary.keys(), &DataType::Int64)
                .map_err(|e| ValueError::new("XX000", e.to_string()))?;
            let at = keys.as_primitive::<Int64Type>().value(row);
            datum_at(dictionary.values().as_ref(), at as usize, sql_type)?
        }
        other => {
            return Err(ValueError::new(
                "0A000",
                format!("values of the type {other} cannot be returned yet"),
            ));
        }
    };
    Ok(datum)
}

fn integer(v: i64, wanted: SqlType, natural: SqlType) -> Datum {
    let t = match wanted {
        SqlType::Int2 | SqlType::Int4 | SqlType::Int8 | SqlType::Oid => wanted,
        _ => natural,
    };
    match t {
        SqlType::Int2 => i16::try_from(v).map_or(Datum::Int8(v), Datum::Int2),
        SqlType::Int4 => i32::try_from(v).map_or(Datum::Int8(v), Datum::Int4),
        SqlType::Oid => u32::try_from(v).map_or(Datum::Int8(v), Datum::Oid),
        _ => Datum::Int8(v),
    }
}

fn decimal(v: i128, scale: i8, wanted: SqlType) -> ValueResult<Datum> {
    let n = if scale >= 0 {
        Numeric::new(v, scale as u8)?
    } else {
        let factor = 10_i128
            .checked_pow(u32::from(scale.unsigned_abs()))
            .and_then(|f| v.checked_mul(f))
            .ok_or_else(|| ValueError::out_of_range("numeric"))?;
        Numeric::new(factor, 0)?
    };
    Ok(Datum::Numeric(match wanted {
        SqlType::Numeric(Some((_, s))) => n.rescale(s)?,
        _ => n,
    }))
}

fn text(s: &str, wanted: SqlType) -> Datum {
    match wanted {
        SqlType::Char(_) => Datum::Text(s.trim_end_matches(' ').to_owned()),
        _ => Datum::Text(s.to_owned()),
    }
}

fn bytea(b: &[u8]) -> Datum {
    Datum::Bytea(bytes::Bytes::copy_from_slice(b))
}

fn list(values: &ArrayRef, natural: SqlType, wanted: SqlType) -> ValueResult<Datum> {
    let element = wanted.element().unwrap_or(natural);
    let items = (0..values.len())
        .map(|i| datum_at(values.as_ref(), i, element))
        .collect::<ValueResult<_>>()?;
    Ok(Datum::Array(element, items))
}

/// The Arrow builder behind a [`DatumArrayBuilder`].
pub(super) enum Column {
    Bool(BooleanBuilder),
    Int2(Int16Builder),
    Int4(Int32Builder),
    Int8(Int64Builder),
    Oid(UInt32Builder),
    Float4(Float32Builder),
    Float8(Float64Builder),
    Numeric(Decimal128Builder),
    Text(StringViewBuilder),
    Bytea(BinaryBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Interval(IntervalMonthDayNanoBuilder),
    Uuid(FixedSizeBinaryBuilder),
    /// Element type, elements, and where each list ends (`None`: NULL).
    List(SqlType, Box<DatumArrayBuilder>, Vec<Option<usize>>),
}

/// Builds an array of a SQL type value by value.
pub struct DatumArrayBuilder {
    sql_type: SqlType,
    column: Column,
}

impl DatumArrayBuilder {
    /// For values of a type.
    pub fn new(sql_type: SqlType, capacity: usize) -> Self {
        let column = match sql_type {
            SqlType::Bool => Column::Bool(BooleanBuilder::with_capacity(capacity)),
            SqlType::Int2 => Column::Int2(Int16Builder::with_capacity(capacity)),
            SqlType::Int4 => Column::Int4(Int32Builder::with_capacity(capacity)),
            SqlType::Int8 => Column::Int8(Int64Builder::with_capacity(capacity)),
            SqlType::Oid => Column::Oid(UInt32Builder::with_capacity(capacity)),
            SqlType::Float4 => Column::Float4(Float32Builder::with_capacity(capacity)),
            SqlType::Float8 => Column::Float8(Float64Builder::with_capacity(capacity)),
            SqlType::Numeric(_) => Column::Numeric(
                Decimal128Builder::with_capacity(capacity).with_data_type(sql_type.arrow_type()),
            ),
            SqlType::Bytea => Column::Bytea(BinaryBuilder::new()),
            SqlType::Date => Column::Date(Date32Builder::with_capacity(capacity)),
            SqlType::Time => Column::Time(Time64MicrosecondBuilder::with_capacity(capacity)),
            SqlType::Timestamp | SqlType::TimestampTz => Column::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(capacity)
                    .with_data_type(sql_type.arrow_type()),
            ),
            SqlType::Interval => {
                Column::Interval(IntervalMonthDayNanoBuilder::with_capacity(capacity))
            }
            SqlType::Uuid => Column::Uuid(FixedSizeBinaryBuilder::with_capacity(capacity, 16)),
            SqlType::Array(_) => {
                let element = sql_type.element().unwrap_or(SqlType::Text);
                Column::List(
                    element,
                    Box::new(DatumArrayBuilder::new(element, capacity)),
                    Vec::new(),
                )
            }
            _ => Column::Text(StringViewBuilder::with_capacity(capacity)),
        };
        DatumArrayBuilder { sql_type, column }
    }

    /// The type of the values.
    pub fn sql_type(&self) -> SqlType {
        self.sql_type
    }

    pub(super) fn column(&mut self) -> &mut Column {
        &mut self.column
    }

    /// Adds a value (of the type, or NULL).
    ///
    /// # Errors
    /// 42804 for a value of another type, 22003 for a numeric that the column's
    /// scale cannot hold.
    pub fn push(&mut self, datum: &Datum) -> ValueResult<()> {
        use Column as C;
        let null = datum.is_null();
        match (&mut self.column, datum) {
            (C::Bool(b), Datum::Bool(v)) => b.append_value(*v),
            (C::Bool(b), _) if null => b.append_null(),
            (C::Int2(b), Datum::Int2(v)) => b.append_value(*v),
            (C::Int2(b), _) if null => b.append_null(),
            (C::Int4(b), Datum::Int4(v)) => b.append_value(*v),
            (C::Int4(b), _) if null => b.append_null(),
            (C::Int8(b), Datum::Int8(v)) => b.append_value(*v),
            (C::Int8(b), _) if null => b.append_null(),
            (C::Oid(b), Datum::Oid(v)) => b.append_value(*v),
            (C::Oid(b), _) if null => b.append_null(),
            (C::Float4(b), Datum::Float4(v)) => b.append_value(*v),
            (C::Float4(b), _) if null => b.append_null(),
            (C::Float8(b), Datum::Float8(v)) => b.append_value(*v),
            (C::Float8(b), _) if null => b.append_null(),
            (C::Numeric(b), Datum::Numeric(n)) => {
                let scaled = match self.sql_type {
                    SqlType::Numeric(Some((p, s))) => n.fit(p, s)?,
                    _ => n.fit_bare()?.rescale(BARE_NUMERIC_SCALE)?,
                };
                b.append_value(scaled.mantissa());
            }
            (C::Numeric(b), _) if null => b.append_null(),
            (C::Text(b), Datum::Text(v)) => b.append_value(v),
            (C::Text(b), _) if null => b.append_null(),
            (C::Bytea(b), Datum::Bytea(v)) => b.append_value(v),
            (C::Bytea(b), _) if null => b.append_null(),
            (C::Date(b), Datum::Date(v)) => b.append_value(*v),
            (C::Date(b), _) if null => b.append_null(),
            (C::Time(b), Datum::Time(v)) => b.append_value(*v),
            (C::Time(b), _) if null => b.append_null(),
            (C::Timestamp(b), Datum::Timestamp(v)) if self.sql_type == SqlType::Timestamp => {
                b.append_value(*v);
            }
            (C::Timestamp(b), Datum::TimestampTz(v)) if self.sql_type == SqlType::TimestampTz => {
                b.append_value(*v);
            }
            (C::Timestamp(b), _) if null => b.append_null(),
            (C::Interval(b), Datum::Interval(v)) => b.append_value(v.to_arrow()?),
            (C::Interval(b), _) if null => b.append_null(),
            (C::Uuid(b), Datum::Uuid(v)) => b
                .append_value(v)
                .map_err(|e| ValueError::new("XX000", e.to_string()))?,
            (C::Uuid(b), _) if null => b.append_null(),
            (C::List(_, elements, ends), Datum::Array(_, values)) => {
                for v in values {
                    elements.push(v)?;
                }
                let end = ends.iter().rev().find_map(|e| *e).unwrap_or(0) + values.len();
                ends.push(Some(end));
            }
            (C::List(_, _, ends), _) if null => ends.push(None),
            (_, other) => {
                return Err(ValueError::new(
                    "42804",
                    format!(
                        "a value of type {} stands where {} is expected",
                        other.sql_type().map_or_else(String::new, SqlType::name),
                        self.sql_type.name()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The array; the builder starts again.
    pub fn finish(&mut self) -> ArrayRef {
        match &mut self.column {
            Column::Bool(b) => Arc::new(b.finish()),
            Column::Int2(b) => Arc::new(b.finish()),
            Column::Int4(b) => Arc::new(b.finish()),
            Column::Int8(b) => Arc::new(b.finish()),
            Column::Oid(b) => Arc::new(b.finish()),
            Column::Float4(b) => Arc::new(b.finish()),
            Column::Float8(b) => Arc::new(b.finish()),
            Column::Numeric(b) => Arc::new(b.finish()),
            Column::Text(b) => Arc::new(b.finish()),
            Column::Bytea(b) => Arc::new(b.finish()),
            Column::Date(b) => Arc::new(b.finish()),
            Column::Time(b) => Arc::new(b.finish()),
            Column::Timestamp(b) => Arc::new(b.finish()),
            Column::Interval(b) => Arc::new(b.finish()),
            Column::Uuid(b) => Arc::new(b.finish()),
            Column::List(element, elements, ends) => {
                let values = elements.finish();
                let mut last = 0;
                let mut lengths = Vec::with_capacity(ends.len());
                let mut valid = Vec::with_capacity(ends.len());
                for end in ends.drain(..) {
                    valid.push(end.is_some());
                    let end = end.unwrap_or(last);
                    lengths.push(end - last);
                    last = end;
                }
                Arc::new(arrow::array::ListArray::new(
                    Arc::new(Field::new_list_field(element.arrow_type(), true)),
                    arrow::buffer::OffsetBuffer::from_lengths(lengths),
                    values,
                    Some(arrow::buffer::NullBuffer::from(valid)),
                ))
            }
        }
    }
}

/// A record batch of rows; `types` are the SQL types of the columns.
///
/// # Errors
/// 42804 for a value of another type than its column.
pub fn batch_from_rows(
    schema: &SchemaRef,
    types: &[SqlType],
    rows: &[Vec<Datum>],
) -> ValueResult<RecordBatch> {
    let columns = types
        .iter()
        .enumerate()
        .map(|(c, t)| {
            let mut builder = DatumArrayBuilder::new(*t, rows.len());
            for row in rows {
                builder.push(row.get(c).unwrap_or(&Datum::Null))?;
            }
            Ok(builder.finish())
        })
        .collect::<ValueResult<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| ValueError::new("XX000", e.to_string()))
}
