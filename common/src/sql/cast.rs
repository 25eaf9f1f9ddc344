//! Casts between SQL types: what an assignment to a column does, and what an
//! explicit CAST allows beyond it.

use super::datetime::{DAY_US, SECOND_US};
use super::{Datum, Numeric, SqlType, TimeZone, ValueError, ValueResult};

pub(super) fn assign(datum: Datum, target: SqlType, zone: &TimeZone) -> ValueResult<Datum> {
    convert(datum, target, zone, false)
}

pub(super) fn cast(datum: Datum, target: SqlType, zone: &TimeZone) -> ValueResult<Datum> {
    convert(datum, target, zone, true)
}

fn convert(datum: Datum, target: SqlType, zone: &TimeZone, explicit: bool) -> ValueResult<Datum> {
    use Datum as D;
    Ok(match (datum, target) {
        (D::Null, _) => D::Null,

        (D::Text(s), SqlType::Varchar(Some(n))) => D::Text(limit(s, n, explicit, false)?),
        (D::Text(s), SqlType::Char(n)) => D::Text(limit(s, n, explicit, true)?),
        (D::Text(s), t) if t.is_text() => D::Text(s),
        (D::Text(s), t) => {
            let value = Datum::parse(t, &s, zone)?;
            fit_numeric(value, t, explicit)?
        }
        (d @ D::Bool(_), SqlType::Bool) => d,
        (D::Bool(v), SqlType::Int4) if explicit => D::Int4(i32::from(v)),
        (D::Int4(v), SqlType::Bool) if explicit => D::Bool(v != 0),

        (d @ (D::Int2(_) | D::Int4(_) | D::Int8(_) | D::Oid(_)), t)
            if t.is_number() || t == SqlType::Oid =>
        {
            let v = d.as_i64().unwrap_or(0);
            match t {
                SqlType::Float4 => D::Float4(v as f32),
                SqlType::Float8 => D::Float8(v as f64),
                SqlType::Numeric(_) => fit_numeric(D::Numeric(Numeric::from_i64(v)), t, explicit)?,
                _ => to_integer(i128::from(v), t)?,
            }
        }
        (D::Numeric(n), t) if t.is_number() => match t {
            SqlType::Float4 => D::Float4(n.to_f32()),
            SqlType::Float8 => D::Float8(n.to_f64()),
            SqlType::Numeric(_) => fit_numeric(D::Numeric(n), t, explicit)?,
            _ => to_integer(n.round_to_i128(), t)?,
        },
        (D::Float4(v), SqlType::Float4) => D::Float4(v),
        (D::Float4(v), SqlType::Float8) => D::Float8(f64::from(v)),
        (D::Float4(v), t @ SqlType::Numeric(_)) => {
            fit_numeric(D::Numeric(Numeric::from_f32(v)?), t, explicit)?
        }
        (D::Float4(v), t) if t.is_integer() => float_to_integer(f64::from(v), t)?,
        (D::Float8(v), SqlType::Float8) => D::Float8(v),
        (D::Float8(v), SqlType::Float4) => {
            let w = v as f32;
            if w.is_infinite() && v.is_finite() {
                return Err(ValueError::new("22003", "value out of range: overflow"));
            }
            if w == 0.0 && v != 0.0 {
                return Err(ValueError::new("22003", "value out of range: underflow"));
            }
            D::Float4(w)
        }
        (D::Float8(v), t @ SqlType::Numeric(_)) => {
            fit_numeric(D::Numeric(Numeric::from_f64(v)?), t, explicit)?
        }
        (D::Float8(v), t) if t.is_integer() => float_to_integer(v, t)?,

        (d @ D::Bytea(_), SqlType::Bytea)
        | (d @ D::Date(_), SqlType::Date)
        | (d @ D::Time(_), SqlType::Time)
        | (d @ D::Timestamp(_), SqlType::Timestamp)
        | (d @ D::TimestampTz(_), SqlType::TimestampTz)
        | (d @ D::Interval(_), SqlType::Interval)
        | (d @ D::Uuid(_), SqlType::Uuid) => d,

        (D::Date(d), SqlType::Timestamp) => D::Timestamp(i64::from(d) * DAY_US),
        (D::Date(d), SqlType::TimestampTz) => D::TimestampTz(zone.to_utc(i64::from(d) * DAY_US)?),
        (D::Timestamp(t), SqlType::Date) => D::Date(t.div_euclid(DAY_US) as i32),
        (D::Timestamp(t), SqlType::Time) => D::Time(t.rem_euclid(DAY_US)),
        (D::Timestamp(t), SqlType::TimestampTz) => D::TimestampTz(zone.to_utc(t)?),
        (D::TimestampTz(t), SqlType::Timestamp) => D::Timestamp(zone.to_local(t)),
        (D::TimestampTz(t), SqlType::Date) => D::Date(zone.to_local(t).div_euclid(DAY_US) as i32),
        (D::TimestampTz(t), SqlType::Time) => D::Time(zone.to_local(t).rem_euclid(DAY_US)),
        (D::Interval(i), SqlType::Time) => D::Time(i.micros.rem_euclid(DAY_US)),
        (D::Time(t), SqlType::Interval) => D::Interval(super::Interval {
            months: 0,
            days: (t / DAY_US) as i32,
            micros: t % DAY_US / SECOND_US * SECOND_US + t % SECOND_US,
        }),
        (D::Array(e, values), SqlType::Array(_)) => {
            let element = target.element().unwrap_or(e);
            D::Array(
                element,
                values
                    .into_iter()
                    .map(|v| convert(v, element, zone, explicit))
                    .collect::<ValueResult<_>>()?,
            )
        }
        // Anything has a text form; as in PostgreSQL that is an assignment cast.
        (d, t) if t.is_text() => {
            let own = d.sql_type().unwrap_or(SqlType::Text);
            let text = match (&d, explicit) {
                (D::Bool(v), _) => v.to_string(),
                _ => d.format(own, zone).unwrap_or_default(),
            };
            convert(D::Text(text), t, zone, explicit)?
        }
        (d, t) => {
            let from = d.sql_type().map_or_else(String::new, SqlType::name);
            return Err(if explicit {
                ValueError::new("42846", format!("cannot cast type {from} to {}", t.name()))
            } else {
                ValueError::new(
                    "42804",
                    format!(
                        "column is of type {} but expression is of type {from}",
                        t.name()
                    ),
                )
            });
        }
    })
}

/// Applies the limit of `varchar(n)` or `char(n)`: blanks beyond it vanish, other
/// characters are an error, or are cut by an explicit cast.
fn limit(mut s: String, n: u32, explicit: bool, trim: bool) -> ValueResult<String> {
    if s.len() > n as usize
        && let Some((at, _)) = s.char_indices().nth(n as usize)
    {
        if !explicit && s[at..].bytes().any(|b| b != b' ') {
            let name = if trim {
                SqlType::Char(n)
            } else {
                SqlType::Varchar(Some(n))
            };
            return Err(ValueError::new(
                "22001",
                format!("value too long for type {}", name.name()),
            ));
        }
        s.truncate(at);
    }
    if trim {
        s.truncate(s.trim_end_matches(' ').len());
    }
    Ok(s)
}

fn fit_numeric(datum: Datum, target: SqlType, explicit: bool) -> ValueResult<Datum> {
    Ok(match (datum, target) {
        // A column must be able to hold it; an expression need not.
        (Datum::Numeric(n), SqlType::Numeric(None)) if !explicit => Datum::Numeric(n.fit_bare()?),
        (Datum::Numeric(n), SqlType::Numeric(Some((p, s)))) => Datum::Numeric(n.fit(p, s)?),
        (other, _) => other,
    })
}

fn to_integer(v: i128, target: SqlType) -> ValueResult<Datum> {
    let range = || ValueError::out_of_range(&target.name());
    Ok(match target {
        SqlType::Int2 => Datum::Int2(v.try_into().map_err(|_| range())?),
        SqlType::Int4 => Datum::Int4(v.try_into().map_err(|_| range())?),
        SqlType::Oid => Datum::Oid(v.try_into().map_err(|_| range())?),
        _ => Datum::Int8(v.try_into().map_err(|_| range())?),
    })
}

/// Rounds half to even, as PostgreSQL's casts from floats do.
fn float_to_integer(v: f64, target: SqlType) -> ValueResult<Datum> {
    let r = v.round_ties_even();
    if !r.is_finite() || r.abs() > 1e19 {
        return Err(ValueError::out_of_range(&target.name()));
    }
    to_integer(r as i128, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(d: Datum, t: SqlType) -> Result<Datum, &'static str> {
        d.assign(t, &TimeZone::UTC).map_err(|e| e.sqlstate)
    }

    fn num(s: &str) -> Datum {
        Datum::Numeric(Numeric::parse(s).unwrap())
    }

    #[test]
    fn numbers_round_and_are_checked() {
        assert_eq!(assigned(num("2.5"), SqlType::Int4), Ok(Datum::Int4(3)));
        assert_eq!(
            assigned(Datum::Float8(2.5), SqlType::Int4),
            Ok(Datum::Int4(2))
        );
        assert_eq!(
            assigned(Datum::Float8(3.7), SqlType::Int4),
            Ok(Datum::Int4(4))
        );
        assert_eq!(assigned(Datum::Int8(40_000), SqlType::Int2), Err("22003"));
        assert_eq!(
            assigned(num("123.456"), SqlType::Numeric(Some((5, 2)))),
            Ok(num("123.46"))
        );
        assert_eq!(
            assigned(num("1234.5"), SqlType::Numeric(Some((5, 2)))),
            Err("22003")
        );
        assert_eq!(
            assigned(Datum::Float8(f64::NAN), SqlType::Int4),
            Err("22003")
        );
    }

    #[test]
    fn strings_must_fit_unless_only_blanks_are_lost() {
        let t = SqlType::Varchar(Some(3));
        assert_eq!(assigned("abcd".into(), t), Err("22001"));
        assert_eq!(assigned("abc  ".into(), t), Ok("abc".into()));
        assert_eq!(assigned("ééé".into(), t), Ok("ééé".into()));
        assert_eq!(assigned("ab ".into(), SqlType::Char(5)), Ok("ab".into()));
        assert_eq!(
            Datum::from("abcd").cast(t, &TimeZone::UTC).unwrap(),
            "abc".into()
        );
    }

    #[test]
    fn text_is_read_as_the_target() {
        assert_eq!(assigned("7".into(), SqlType::Int4), Ok(Datum::Int4(7)));
        assert_eq!(assigned("x".into(), SqlType::Int4), Err("22P02"));
        assert_eq!(
            assigned("1970-01-02".into(), SqlType::Date),
            Ok(Datum::Date(1))
        );
    }

    #[test]
    fn types_without_a_cast_are_refused() {
        assert_eq!(assigned(Datum::Bool(true), SqlType::Int4), Err("42804"));
        assert_eq!(assigned(Datum::Int4(1), SqlType::Date), Err("42804"));
    }
}
