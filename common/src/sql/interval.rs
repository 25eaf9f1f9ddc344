//! `interval`: months, days and microseconds, as PostgreSQL keeps them.

use super::{ValueError, ValueResult};
use std::cmp::Ordering;

const DAY_US: i128 = 86_400_000_000;

/// A span of time. Equal and ordered as PostgreSQL does: a month is 30 days, a
/// day 24 hours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interval {
    /// Years and months.
    pub months: i32,
    /// Days.
    pub days: i32,
    /// The rest.
    pub micros: i64,
}

impl Interval {
    /// In microseconds; a month is 30 days, a day 24 hours.
    pub fn span(&self) -> i128 {
        (i128::from(self.months) * 30 + i128::from(self.days)) * DAY_US + i128::from(self.micros)
    }

    /// As Arrow's month, day, nanosecond.
    ///
    /// # Errors
    /// 22008 when the nanoseconds do not fit.
    pub fn to_arrow(self) -> ValueResult<arrow::datatypes::IntervalMonthDayNano> {
        let nanos = self
            .micros
            .checked_mul(1000)
            .ok_or_else(|| ValueError::new("22008", "interval out of range"))?;
        Ok(arrow::datatypes::IntervalMonthDayNano::new(
            self.months,
            self.days,
            nanos,
        ))
    }
}

/// Units of PostgreSQL's input, by prefix of their names.
fn unit(word: &str) -> Option<(i64, u8)> {
    // (factor, field): 0 months, 1 days, 2 microseconds.
    Some(match word {
        "millennium" | "millennia" | "mil" | "mils" => (12_000, 0),
        "century" | "centuries" | "cent" | "c" => (1200, 0),
        "decade" | "decades" | "dec" | "decs" => (120, 0),
        "year" | "years" | "yr" | "yrs" | "y" => (12, 0),
        "month" | "months" | "mon" | "mons" => (1, 0),
        "week" | "weeks" | "w" => (7, 1),
        "day" | "days" | "d" => (1, 1),
        "hour" | "hours" | "hr" | "hrs" | "h" => (3_600_000_000, 2),
        "minute" | "minutes" | "min" | "mins" | "m" => (60_000_000, 2),
        "second" | "seconds" | "sec" | "secs" | "s" => (1_000_000, 2),
        "millisecond" | "milliseconds" | "msec" | "msecs" | "ms" => (1000, 2),
        "microsecond" | "microseconds" | "usec" | "usecs" | "us" => (1, 2),
        _ => return None,
    })
}

struct Sum {
    months: f64,
    days: f64,
    micros: f64,
}

impl Sum {
    /// Adds `amount` units, handing fractions down as PostgreSQL does (a month
    /// is 30 days, a day 24 hours).
    fn add(&mut self, amount: f64, (factor, field): (i64, u8)) {
        let total = amount * factor as f64;
        match field {
            0 => {
                self.months += total.trunc();
                let days = total.fract() * 30.0;
                // 0.1 year and the like are not exact in binary.
                let days = if (days - days.round()).abs() < 1e-9 {
                    days.round()
                } else {
                    days
                };
                self.days += days.trunc();
                self.micros += days.fract() * DAY_US as f64;
            }
            1 => {
                self.days += total.trunc();
                self.micros += total.fract() * DAY_US as f64;
            }
            _ => self.micros += total,
        }
    }

    fn finish(self) -> ValueResult<Interval> {
        let fits = |v: f64, max: f64| v.abs() <= max;
        if !fits(self.months, f64::from(i32::MAX))
            || !fits(self.days, f64::from(i32::MAX))
            || !fits(self.micros, 9.0e18)
        {
            return Err(ValueError::new(
                "22008",
                "interval field value out of range",
            ));
        }
        Ok(Interval {
            months: self.months as i32,
            days: self.days as i32,
            micros: self.micros.round() as i64,
        })
    }
}

impl Interval {
    /// Reads PostgreSQL's forms: `1 year 2 mons -3 days 04:05:06.7 ago`, and
    /// ISO 8601 (`P1Y2M3DT4H5M6S`).
    ///
    /// # Errors
    /// 22007 for other text, 22008 out of range.
    pub fn parse(text: &str) -> ValueResult<Interval> {
        let bad = || {
            ValueError::new(
                "22007",
                format!("invalid input syntax for type interval: \"{text}\""),
            )
        };
        let s = text.trim();
        let mut sum = Sum {
            months: 0.0,
            days: 0.0,
            micros: 0.0,
        };
        if let Some(iso) = s.strip_prefix('P') {
            parse_iso(iso, &mut sum).ok_or_else(bad)?;
            return sum.finish();
        }
        let lower = s.to_ascii_lowercase();
        let (body, ago) = match lower.strip_suffix(" ago") {
            Some(body) => (body, true),
            None => (lower.as_str(), false),
        };
        let mut pending: Option<f64> = None;
        let mut any = false;
        for word in words(body.strip_prefix('@').unwrap_or(body)) {
            if word.contains(':') {
                if let Some(days) = pending.take() {
                    sum.add(days, (1, 1));
                }
                sum.micros += clock(word).ok_or_else(bad)?;
                any = true;
            } else if let Some(u) = unit(word) {
                sum.add(pending.take().ok_or_else(bad)?, u);
                any = true;
            } else {
                if pending.is_some() {
                    return Err(bad());
                }
                if !word
                    .bytes()
                    .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-'))
                {
                    return Err(bad());
                }
                pending = Some(word.parse::<f64>().map_err(|_| bad())?);
            }
        }
        // A bare number is seconds.
        if let Some(seconds) = pending {
            sum.add(seconds, (1_000_000, 2));
            any = true;
        }
        if !any {
            return Err(bad());
        }
        if ago {
            sum = Sum {
                months: -sum.months,
                days: -sum.days,
                micros: -sum.micros,
            };
        }
        sum.finish()
    }

    /// PostgreSQL's style: `1 year 2 mons 3 days 04:05:06.7`.
    pub fn write(&self, out: &mut String) {
        let start = out.len();
        let mut part = |n: i64, one: &str, many: &str, negative_before: bool| -> bool {
            if n == 0 {
                return negative_before;
            }
            if out.len() > start {
                out.push(' ');
            }
            if negative_before && n > 0 {
                out.push('+');
            }
            out.push_str(&n.to_string());
            out.push(' ');
            out.push_str(if n == 1 { one } else { many });
            n < 0
        };
        let negative = part(i64::from(self.months / 12), "year", "years", false);
        let negative = part(i64::from(self.months % 12), "mon", "mons", negative);
        let negative = part(i64::from(self.days), "day", "days", negative);
        if self.micros != 0 || out.len() == start {
            if out.len() > start {
                out.push(' ');
            }
            if self.micros < 0 {
                out.push('-');
            } else if negative {
                out.push('+');
            }
            let us = self.micros.unsigned_abs();
            let seconds = us / 1_000_000;
            out.push_str(&format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ));
            super::datetime_text::write_fraction((us % 1_000_000) as i64, out);
        }
    }

    /// From Arrow's month, day, nanosecond.
    pub fn from_arrow(v: arrow::datatypes::IntervalMonthDayNano) -> Self {
        Interval {
            months: v.months,
            days: v.days,
            micros: v.nanoseconds.div_euclid(1000),
        }
    }
}

/// Words; a number and a unit may stick together (`1day`).
fn words(text: &str) -> impl Iterator<Item = &str> {
    let letter = u8::is_ascii_alphabetic;
    text.split_whitespace().flat_map(move |word| {
        // `1h30m` is four. Cut beside letters, the pieces are UTF-8.
        let pieces = { word.as_bytes() }.chunk_by(move |a, b| letter(a) == letter(b));
        pieces.filter_map(|piece| std::str::from_utf8(piece).ok())
    })
}

/// `04:05`, `-04:05:06.7` in microseconds.
fn clock(word: &str) -> Option<f64> {
    let (sign, body) = match word.as_bytes().first()? {
        b'-' => (-1.0, &word[1..]),
        b'+' => (1.0, &word[1..]),
        _ => (1.0, word),
    };
    let parts: Vec<&str> = body.split(':').collect();
    let number = |s: &str| {
        s.bytes()
            .all(|b| b.is_ascii_digit() || b == b'.')
            .then(|| s.parse::<f64>().ok())?
    };
    let (h, m, s) = match parts[..] {
        [h, m] => (number(h)?, number(m)?, 0.0),
        [h, m, s] => (number(h)?, number(m)?, number(s)?),
        _ => return None,
    };
    (m < 60.0 && s <= 60.0).then_some(sign * ((h * 60.0 + m) * 60.0 + s) * 1e6)
}

fn parse_iso(text: &str, sum: &mut Sum) -> Option<()> {
    let mut in_time = false;
    let mut number = String::new();
    let mut any = false;
    for c in text.chars() {
        match c {
            'T' if number.is_empty() => in_time = true,
            '0'..='9' | '.' | '-' | '+' => number.push(c),
            _ => {
                let u = match (c, in_time) {
                    ('Y', false) => (12, 0),
                    ('M', false) => (1, 0),
                    ('W', false) => (7, 1),
                    ('D', false) => (1, 1),
                    ('H', true) => (3_600_000_000, 2),
                    ('M', true) => (60_000_000, 2),
                    ('S', true) => (1_000_000, 2),
                    _ => return None,
                };
                sum.add(number.parse().ok()?, u);
                number.clear();
                any = true;
            }
        }
    }
    (any && number.is_empty()).then_some(())
}

impl PartialEq for Interval {
    fn eq(&self, other: &Self) -> bool {
        self.span() == other.span()
    }
}

impl Eq for Interval {}

impl PartialOrd for Interval {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Interval {
    fn cmp(&self, other: &Self) -> Ordering {
        self.span().cmp(&other.span())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> String {
        let mut out = String::new();
        Interval::parse(text).unwrap().write(&mut out);
        out
    }

    #[test]
    fn forms_of_postgresql() {
        for (input, output) in [
            ("1 day", "1 day"),
            (
                "1 year 2 months 3 days 04:05:06.7",
                "1 year 2 mons 3 days 04:05:06.7",
            ),
            ("04:05:06", "04:05:06"),
            ("-1 day", "-1 days"),
            ("1 mon -1 day", "1 mon -1 days"),
            ("-1 mon 2 days", "-1 mons +2 days"),
            ("2 days ago", "-2 days"),
            ("1.5 days", "1 day 12:00:00"),
            ("1.5 months", "1 mon 15 days"),
            ("90 minutes", "01:30:00"),
            ("P1Y2M3DT4H5M6S", "1 year 2 mons 3 days 04:05:06"),
            ("0", "00:00:00"),
            ("1week", "7 days"),
            ("-00:00:01", "-00:00:01"),
            ("1 12:00", "1 day 12:00:00"),
        ] {
            assert_eq!(round(input), output, "{input}");
        }
        for bad in ["", "day", "1 parsec", "1 2 days", "abc"] {
            assert_eq!(Interval::parse(bad).unwrap_err().sqlstate, "22007", "{bad}");
        }
    }

    #[test]
    fn a_month_is_thirty_days() {
        assert_eq!(
            Interval::parse("1 mon").unwrap(),
            Interval::parse("30 days").unwrap()
        );
        assert!(Interval::parse("31 days").unwrap() > Interval::parse("1 mon").unwrap());
    }
}
