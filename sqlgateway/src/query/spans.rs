//! Which keys of an index can satisfy a condition: plain functions from filters
//! to spans. A span may be too wide, never too narrow: the filters run again
//! over the rows.

use bytes::{Bytes, BytesMut};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{Between, BinaryExpr, Cast, InList};
use datafusion::logical_expr::{Expr, Operator};
use lineradb_client::Span;
use lineradb_common::keys;
use lineradb_common::sql::{Datum, SqlType, TimeZone, datum_at, encode_key_datum};
use std::cmp::Ordering;

/// Most spans that one condition is cut into.
const MAX_SPANS: usize = 512;

/// A column of a key.
#[derive(Clone, Debug)]
pub struct KeyColumn {
    /// Its name in the filters.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
}

/// What a condition says about the keys of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// Where matching keys are: disjoint, ascending. Empty: nowhere.
    pub spans: Vec<Span>,
    /// Leading columns fixed to values.
    pub fixed: usize,
    /// The column after those has a lower, an upper bound.
    pub bounds: (bool, bool),
}

#[derive(Clone, Debug, Default)]
struct Column {
    /// The values that it may have, if they are known.
    values: Option<Vec<Datum>>,
    low: Option<(Datum, bool)>,
    high: Option<(Datum, bool)>,
}

/// The spans of an index whose keys can satisfy all `filters`.
pub fn constrain(prefix: &Bytes, key: &[KeyColumn], filters: &[Expr]) -> Constraint {
    let mut columns: Vec<Column> = vec![Column::default(); key.len()];
    for filter in filters {
        note(filter, key, &mut columns);
    }
    let mut prefixes = vec![BytesMut::from(prefix.as_ref())];
    let mut fixed = 0;
    for column in &columns {
        let Some(values) = &column.values else { break };
        if prefixes.len() * values.len() > MAX_SPANS {
            break;
        }
        let mut next = Vec::with_capacity(prefixes.len() * values.len());
        for prefix in &prefixes {
            for value in values {
                let mut longer = prefix.clone();
                if encode_key_datum(value, &mut longer).is_ok() {
                    next.push(longer);
                }
            }
        }
        prefixes = next;
        fixed += 1;
    }
    let mut bounds = (false, false);
    let mut spans = Vec::with_capacity(prefixes.len());
    let range = columns
        .get(fixed)
        .filter(|c| c.low.is_some() || c.high.is_some());
    for prefix in prefixes {
        match range {
            None => spans.push(Span::prefix(&prefix)),
            Some(column) => {
                bounds = (column.low.is_some(), column.high.is_some());
                if let Some(span) = bounded(&prefix, column) {
                    spans.push(span);
                }
            }
        }
    }
    spans.sort_by(|a, b| a.start.cmp(&b.start));
    spans.dedup();
    Constraint {
        spans,
        fixed,
        bounds,
    }
}

/// The span of one prefix whose next column is bounded.
fn bounded(prefix: &BytesMut, column: &Column) -> Option<Span> {
    let with = |value: &Datum| -> Option<BytesMut> {
        let mut key = prefix.clone();
        encode_key_datum(value, &mut key).ok()?;
        Some(key)
    };
    let start: Bytes = match &column.low {
        None => prefix.clone().freeze(),
        Some((value, inclusive)) => match (with(value), inclusive) {
            (Some(key), true) => key.freeze(),
            (Some(key), false) => keys::prefix_end(&key),
            (None, _) => prefix.clone().freeze(),
        },
    };
    // NULLs sort last and satisfy no bound.
    let nulls = || with(&Datum::Null).map_or_else(|| keys::prefix_end(prefix), BytesMut::freeze);
    let end: Bytes = match &column.high {
        None => nulls(),
        Some((value, inclusive)) => match (with(value), inclusive) {
            (Some(key), true) => keys::prefix_end(&key),
            (Some(key), false) => key.freeze(),
            (None, _) => nulls(),
        },
    };
    (end.is_empty() || start < end).then(|| Span::new(start, end))
}

fn note(filter: &Expr, key: &[KeyColumn], columns: &mut [Column]) {
    match filter {
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::And,
            right,
        }) => {
            note(left, key, columns);
            note(right, key, columns);
        }
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Or,
            right,
        }) => {
            // `a = 1 OR a = 2`: a list.
            if let (Some((i, a)), Some((j, b))) = (values_of(left, key), values_of(right, key))
                && i == j
            {
                restrict(&mut columns[i], [a, b].concat());
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, value) = match (column_of(left, key), column_of(right, key)) {
                (Some(i), None) => (i, *op, right),
                (None, Some(i)) => match op.swap() {
                    Some(op) => (i, op, left),
                    None => return,
                },
                _ => return,
            };
            let Some(value) = value_of(value, key[column].sql_type) else {
                return;
            };
            let target = &mut columns[column];
            match op {
                Operator::Eq => match value {
                    Value::Exact(v) => restrict(target, vec![v]),
                    Value::Never => restrict(target, vec![]),
                    Value::Unknown => {}
                },
                Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                    let v = match value {
                        Value::Exact(v) => v,
                        Value::Never => return restrict(target, vec![]),
                        Value::Unknown => return,
                    };
                    let inclusive = matches!(op, Operator::LtEq | Operator::GtEq);
                    if matches!(op, Operator::Gt | Operator::GtEq) {
                        tighten(&mut target.low, v, inclusive, Ordering::Greater);
                    } else {
                        tighten(&mut target.high, v, inclusive, Ordering::Less);
                    }
                }
                _ => {}
            }
        }
        Expr::InList(InList { negated: false, .. }) => {
            if let Some((i, values)) = values_of(filter, key) {
                restrict(&mut columns[i], values);
            }
        }
        Expr::Between(Between {
            expr,
            negated: false,
            low,
            high,
        }) => {
            if let Some(i) = column_of(expr, key) {
                let t = key[i].sql_type;
                if let Some(Value::Exact(v)) = value_of(low, t) {
                    tighten(&mut columns[i].low, v, true, Ordering::Greater);
                }
                if let Some(Value::Exact(v)) = value_of(high, t) {
                    tighten(&mut columns[i].high, v, true, Ordering::Less);
                }
            }
        }
        Expr::IsNull(inner) => {
            if let Some(i) = column_of(inner, key) {
                restrict(&mut columns[i], vec![Datum::Null]);
            }
        }
        Expr::Column(_) => {
            if let Some(i) = column_of(filter, key)
                && key[i].sql_type == SqlType::Bool
            {
                restrict(&mut columns[i], vec![Datum::Bool(true)]);
            }
        }
        Expr::Not(inner) => {
            if let Some(i) = column_of(inner, key)
                && key[i].sql_type == SqlType::Bool
            {
                restrict(&mut columns[i], vec![Datum::Bool(false)]);
            }
        }
        _ => {}
    }
}

/// A column and the only values that satisfy the condition.
fn values_of(filter: &Expr, key: &[KeyColumn]) -> Option<(usize, Vec<Datum>)> {
    match filter {
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Or,
            right,
        }) => {
            let (i, mut a) = values_of(left, key)?;
            let (j, b) = values_of(right, key)?;
            (i == j).then(|| {
                a.extend(b);
                (i, a)
            })
        }
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Eq,
            right,
        }) => {
            let (i, value) = match (column_of(left, key), column_of(right, key)) {
                (Some(i), None) => (i, right),
                (None, Some(i)) => (i, left),
                _ => return None,
            };
            match value_of(value, key[i].sql_type)? {
                Value::Exact(v) => Some((i, vec![v])),
                Value::Never => Some((i, vec![])),
                Value::Unknown => None,
            }
        }
        Expr::InList(InList {
            expr,
            list,
            negated: false,
        }) => {
            let i = column_of(expr, key)?;
            let mut values = Vec::with_capacity(list.len());
            for item in list {
                match value_of(item, key[i].sql_type)? {
                    Value::Exact(v) => values.push(v),
                    Value::Never => {}
                    Value::Unknown => return None,
                }
            }
            Some((i, values))
        }
        _ => None,
    }
}

fn restrict(column: &mut Column, mut values: Vec<Datum>) {
    if let Some(old) = &column.values {
        values.retain(|v| old.iter().any(|o| same(o, v)));
    }
    values.sort_by(|a, b| a.compare(b).unwrap_or(Ordering::Equal));
    values.dedup_by(|a, b| same(a, b));
    column.values = Some(values);
}

fn same(a: &Datum, b: &Datum) -> bool {
    a.is_null() == b.is_null() && a.compare(b).is_ok_and(Ordering::is_eq)
}

/// Keeps the tighter of two bounds; `better` says on which side that is.
fn tighten(bound: &mut Option<(Datum, bool)>, value: Datum, inclusive: bool, better: Ordering) {
    let replace = match bound {
        None => true,
        Some((old, old_inclusive)) => match value.compare(old) {
            Ok(Ordering::Equal) => *old_inclusive && !inclusive,
            Ok(order) => order == better,
            Err(_) => false,
        },
    };
    if replace {
        *bound = Some((value, inclusive));
    }
}

fn column_of(expr: &Expr, key: &[KeyColumn]) -> Option<usize> {
    match expr {
        Expr::Column(column) => key.iter().position(|k| k.name == column.name),
        // A widened integer: its values keep their order.
        Expr::Cast(Cast { expr, field }) => {
            let i = column_of(expr, key)?;
            let wide = matches!(
                field.data_type(),
                arrow::datatypes::DataType::Int32
                    | arrow::datatypes::DataType::Int64
                    | arrow::datatypes::DataType::Decimal128(_, 0)
            );
            (key[i].sql_type.is_integer() && wide).then_some(i)
        }
        _ => None,
    }
}

enum Value {
    /// A value of the column's type.
    Exact(Datum),
    /// NULL, or no value of the type: no row matches.
    Never,
    /// Not to be used for keys.
    Unknown,
}

fn value_of(expr: &Expr, sql_type: SqlType) -> Option<Value> {
    let Expr::Literal(value, _) = expr else {
        return None;
    };
    if value.is_null() {
        return Some(Value::Never);
    }
    Some(datum_of(value, sql_type).map_or(Value::Unknown, Value::Exact))
}

/// A literal as a value of a column, if it is exactly one.
pub fn datum_of(value: &ScalarValue, sql_type: SqlType) -> Option<Datum> {
    if matches!(sql_type, SqlType::Char(_)) {
        return None;
    }
    let array = value.to_array().ok()?;
    let natural = SqlType::from_arrow(array.data_type());
    let datum = datum_at(array.as_ref(), 0, natural).ok()?;
    let text = sql_type.is_text();
    if text != natural.is_text() {
        return None;
    }
    if text {
        return Some(datum);
    }
    let converted = datum.clone().assign(sql_type, &TimeZone::UTC).ok()?;
    converted
        .compare(&datum)
        .is_ok_and(Ordering::is_eq)
        .then_some(converted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::logical_expr::{col, lit};

    fn key() -> Vec<KeyColumn> {
        ["a", "b"]
            .into_iter()
            .map(|name| KeyColumn {
                name: name.into(),
                sql_type: SqlType::Int4,
            })
            .collect()
    }

    fn with(values: &[i32]) -> BytesMut {
        let mut key = BytesMut::from(&b"p"[..]);
        for v in values {
            encode_key_datum(&Datum::Int4(*v), &mut key).unwrap_or_default();
        }
        key
    }

    fn spans(filters: &[Expr]) -> Constraint {
        constrain(&Bytes::from_static(b"p"), &key(), filters)
    }

    #[test]
    fn equalities_fix_a_prefix() {
        let c = spans(&[col("a").eq(lit(1)), col("b").eq(lit(2))]);
        assert_eq!(c.fixed, 2);
        assert_eq!(c.spans, vec![Span::prefix(&with(&[1, 2]))]);
        let c = spans(&[col("b").eq(lit(2))]);
        assert_eq!((c.fixed, c.spans.len()), (0, 1));
        assert_eq!(c.spans[0], Span::prefix(b"p"));
    }

    #[test]
    fn lists_give_several_spans_in_order() {
        let c = spans(&[col("a").in_list(vec![lit(3), lit(1), lit(3)], false)]);
        assert_eq!(
            c.spans,
            vec![Span::prefix(&with(&[1])), Span::prefix(&with(&[3]))]
        );
        let c = spans(&[col("a").eq(lit(2)).or(col("a").eq(lit(1)))]);
        assert_eq!(c.spans.len(), 2);
    }

    #[test]
    fn ranges_follow_the_fixed_prefix() {
        let c = spans(&[
            col("a").eq(lit(1)),
            col("b").gt(lit(5)),
            col("b").lt_eq(lit(9)),
        ]);
        assert_eq!((c.fixed, c.bounds), (1, (true, true)));
        assert_eq!(
            c.spans,
            vec![Span::new(
                keys::prefix_end(&with(&[1, 5])),
                keys::prefix_end(&with(&[1, 9]))
            )]
        );
    }

    #[test]
    fn contradictions_leave_nothing() {
        let c = spans(&[col("a").eq(lit(1)), col("a").eq(lit(2))]);
        assert!(c.spans.is_empty());
        let c = spans(&[col("a").eq(lit(ScalarValue::Int32(None)))]);
        assert!(c.spans.is_empty());
        let c = spans(&[col("a").gt(lit(5)), col("a").lt(lit(5))]);
        assert!(c.spans.is_empty());
    }

    #[test]
    fn values_of_other_types_do_not_narrow() {
        let c = spans(&[col("a").eq(lit(1.5f64))]);
        assert_eq!(c.fixed, 0);
        let c = spans(&[col("a").eq(lit(1i64))]);
        assert_eq!(c.fixed, 1);
    }
}
