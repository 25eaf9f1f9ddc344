//! Properties of the encodings: what goes in comes out, and the order of keys is
//! the order of values.

use super::*;
use crate::TableId;
use bytes::BytesMut;
use proptest::prelude::*;
use std::sync::Arc;

const TYPES: [SqlType; 16] = [
    SqlType::Bool,
    SqlType::Int2,
    SqlType::Int4,
    SqlType::Int8,
    SqlType::Float4,
    SqlType::Float8,
    SqlType::Numeric(None),
    SqlType::Numeric(Some((20, 4))),
    SqlType::Text,
    SqlType::Varchar(Some(40)),
    SqlType::Bytea,
    SqlType::Date,
    SqlType::Time,
    SqlType::Timestamp,
    SqlType::TimestampTz,
    SqlType::Uuid,
];

fn datum(t: SqlType) -> BoxedStrategy<Datum> {
    match t {
        SqlType::Bool => any::<bool>().prop_map(Datum::Bool).boxed(),
        SqlType::Int2 => any::<i16>().prop_map(Datum::Int2).boxed(),
        SqlType::Int4 => any::<i32>().prop_map(Datum::Int4).boxed(),
        SqlType::Int8 => any::<i64>().prop_map(Datum::Int8).boxed(),
        SqlType::Float4 => any::<f32>()
            .prop_map(|v| Datum::Float4(if v == 0.0 { 0.0 } else { v }))
            .boxed(),
        SqlType::Float8 => any::<f64>()
            .prop_map(|v| Datum::Float8(if v == 0.0 { 0.0 } else { v }))
            .boxed(),
        SqlType::Numeric(None) => (-(10_i128.pow(27))..10_i128.pow(27), 0_u8..=10)
            .prop_map(|(m, s)| Datum::Numeric(Numeric::new(m, s).unwrap().normalized()))
            .boxed(),
        SqlType::Numeric(Some((_, s))) => (-(10_i128.pow(18))..10_i128.pow(18))
            .prop_map(move |m| Datum::Numeric(Numeric::new(m, s).unwrap()))
            .boxed(),
        SqlType::Bytea => prop::collection::vec(0_u8..4, 0..6)
            .prop_map(|v| Datum::Bytea(v.into()))
            .boxed(),
        SqlType::Date => (-700_000..2_900_000_i32).prop_map(Datum::Date).boxed(),
        SqlType::Time => (0..86_400_000_000_i64).prop_map(Datum::Time).boxed(),
        SqlType::Timestamp => any::<i64>().prop_map(|v| Datum::Timestamp(v / 100)).boxed(),
        SqlType::TimestampTz => any::<i64>()
            .prop_map(|v| Datum::TimestampTz(v / 100))
            .boxed(),
        SqlType::Uuid => any::<[u8; 16]>().prop_map(Datum::Uuid).boxed(),
        _ => "[a-cä ]{0,5}".prop_map(Datum::Text).boxed(),
    }
}

fn nullable(t: SqlType) -> BoxedStrategy<Datum> {
    prop_oneof![1 => Just(Datum::Null), 9 => datum(t)].boxed()
}

fn pair() -> impl Strategy<Value = (SqlType, Datum, Datum)> {
    prop::sample::select(&TYPES[..]).prop_flat_map(|t| (Just(t), nullable(t), nullable(t)))
}

fn key(d: &Datum) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_key_datum(d, &mut out).unwrap();
    out.to_vec()
}

fn same(a: &Datum, b: &Datum) -> bool {
    match (a, b) {
        (Datum::Float4(a), Datum::Float4(b)) => a == b || a.is_nan() && b.is_nan(),
        (Datum::Float8(a), Datum::Float8(b)) => a == b || a.is_nan() && b.is_nan(),
        _ => a == b,
    }
}

proptest! {
    #[test]
    fn keys_are_ordered_as_values((t, a, b) in pair()) {
        prop_assert_eq!(key(&a).cmp(&key(&b)), a.compare(&b).unwrap(), "{} {:?} {:?}", t, a, b);
    }

    #[test]
    fn keys_come_back((t, a, b) in pair()) {
        let mut bytes = key(&a);
        bytes.extend(key(&b));
        let mut input = &bytes[..];
        let back = decode_key_datum(t, &mut input).unwrap();
        prop_assert!(same(&back, &a), "{:?} {:?}", back, a);
        let mut skipped = &bytes[..];
        skip_key_datum(t, &mut skipped).unwrap();
        prop_assert_eq!(skipped, input);
        let back = decode_key_datum(t, &mut input).unwrap();
        prop_assert!(same(&back, &b));
        prop_assert!(input.is_empty());
    }

    #[test]
    fn text_forms_come_back((t, a, _) in pair()) {
        if let Some(text) = a.format(t, &TimeZone::UTC) {
            let back = Datum::parse(t, &text, &TimeZone::UTC).unwrap();
            prop_assert!(same(&back, &a), "{} {:?} {:?} {}", t, back, a, text);
        }
    }

    #[test]
    fn rows_come_back_as_values_and_as_arrow(
        row in TYPES.iter().map(|t| nullable(*t)).collect::<Vec<_>>(),
        in_key in prop::collection::vec(any::<bool>(), TYPES.len()),
    ) {
        let layout = Arc::new(layout(&in_key));
        let decoded = RowLayout::decode(&layout.encode()).unwrap();
        prop_assert_eq!(&decoded, &*layout);
        let (k, v) = encode(&layout, &row);
        let back = layout.decode_row(&k, &v).unwrap();
        for (a, b) in back.iter().zip(&row) {
            prop_assert!(same(a, b), "{:?} {:?}", a, b);
        }
        // A projection in another order.
        let projection: Vec<usize> = (0..row.len()).rev().step_by(2).collect();
        let mut builder = RowBatchBuilder::new(Arc::clone(&layout), Some(&projection));
        builder.push(&k, &v).unwrap();
        builder.push(&k, &v).unwrap();
        let batch = builder.finish().unwrap();
        prop_assert_eq!(batch.num_rows(), 2);
        for (at, column) in projection.iter().zip(batch.columns()) {
            let d = datum_at(column.as_ref(), 1, TYPES[*at]).unwrap();
            prop_assert!(same(&d, &row[*at]), "{:?} {:?}", d, row[*at]);
        }
    }
}

fn layout(in_key: &[bool]) -> RowLayout {
    let mut key_types = Vec::new();
    let columns = TYPES
        .iter()
        .enumerate()
        .map(|(i, t)| LayoutColumn {
            id: i as u32 + 1,
            name: format!("c{i}"),
            sql_type: *t,
            nullable: true,
            place: if in_key[i] {
                key_types.push(*t);
                Place::Key(key_types.len() as u32 - 1)
            } else {
                Place::Value
            },
            missing: Datum::Null,
        })
        .collect();
    RowLayout {
        table: TableId(16_384),
        index: 1,
        key_types,
        columns,
    }
}

fn encode(layout: &RowLayout, row: &[Datum]) -> (BytesMut, Vec<u8>) {
    let mut key = crate::keys::index_prefix(layout.table, layout.index);
    let mut values = Vec::new();
    for (c, d) in layout.columns.iter().zip(row) {
        match c.place {
            Place::Key(_) => encode_key_datum(d, &mut key).unwrap(),
            Place::Value => values.push((c.id, d)),
        }
    }
    let value = encode_row_value(values);
    (key, value)
}

#[test]
fn columns_added_and_dropped_since_are_tolerated() {
    let column = |id, missing| LayoutColumn {
        id,
        name: format!("c{id}"),
        sql_type: SqlType::Int4,
        nullable: true,
        place: Place::Value,
        missing,
    };
    // The row was written with columns 1, 2, 4; now there are 1, 3, 4, 5.
    let value = encode_row_value([
        (1, &Datum::Int4(10)),
        (2, &Datum::Int4(20)),
        (4, &Datum::Null),
    ]);
    let layout = Arc::new(RowLayout {
        table: TableId(1),
        index: 1,
        key_types: vec![],
        columns: vec![
            column(5, Datum::Int4(55)),
            column(1, Datum::Null),
            column(3, Datum::Int4(33)),
            column(4, Datum::Int4(44)),
        ],
    });
    let key = crate::keys::index_prefix(layout.table, 1);
    let want = vec![
        Datum::Int4(55),
        Datum::Int4(10),
        Datum::Int4(33),
        Datum::Null,
    ];
    assert_eq!(layout.decode_row(&key, &value).unwrap(), want);
    let mut builder = RowBatchBuilder::new(Arc::clone(&layout), None);
    builder.push(&key, &value).unwrap();
    let batch = builder.finish().unwrap();
    let got: Vec<Datum> = batch
        .columns()
        .iter()
        .map(|c| datum_at(c.as_ref(), 0, SqlType::Int4).unwrap())
        .collect();
    assert_eq!(got, want);
}

#[test]
fn other_formats_are_refused() {
    assert!(RowLayout::decode(&[9, 1, 2]).is_err());
    assert!(RowLayout::decode(&[]).is_err());
    assert!(RowValueReader::new(&[9]).is_err());
    let mut cut = RowValueReader::new(&[1, 2]).unwrap();
    assert!(cut.next_column().is_err());
}

#[test]
fn no_columns_still_count_rows() {
    let layout = Arc::new(layout(&[false; TYPES.len()]));
    let mut builder = RowBatchBuilder::new(layout, Some(&[]));
    builder.push(&[0; 13], &[1]).unwrap();
    assert_eq!(builder.finish().unwrap().num_rows(), 1);
}
