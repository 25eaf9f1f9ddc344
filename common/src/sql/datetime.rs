//! Dates and times: calendar arithmetic, and PostgreSQL's text forms on input (ISO
//! and the usual variants).

use super::{TimeZone, ValueError, ValueResult};

pub(crate) const SECOND_US: i64 = 1_000_000;
pub(crate) const DAY_US: i64 = 86_400 * SECOND_US;
/// 4713-11-24 BC, PostgreSQL's first day.
const MIN_DAY: i64 = -2_440_588;
/// First day of the year 294277: timestamps end there, so do our dates.
const MAX_DAY: i64 = 106_751_993;

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar.
pub fn days_from_civil(year: i32, month: u32, day: u32) -> i32 {
    let y = i64::from(year) - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let m = i64::from(month);
    let doy = (153 * (m + if m > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(day) - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    (era * 146_097 + doe - 719_468) as i32
}

/// Year, month and day of a count of days since 1970-01-01.
pub fn civil_from_days(days: i32) -> (i32, u32, u32) {
    let z = i64::from(days) + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year as i32, month, day)
}

fn days_in_month(year: i32, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// What a text of a date or time says.
#[derive(Default)]
struct Parsed {
    days: Option<i32>,
    time_us: Option<i64>,
    offset: Option<i32>,
    zone: Option<TimeZone>,
}

fn bad_field(text: &str) -> ValueError {
    ValueError::new(
        "22008",
        format!("date/time field value out of range: \"{text}\""),
    )
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

fn month_by_name(word: &str) -> Option<u32> {
    let word = word.to_ascii_lowercase();
    (word.len() >= 3)
        .then(|| {
            MONTHS
                .iter()
                .position(|m| m.starts_with(&word) || (word == "sept" && *m == "september"))
        })
        .flatten()
        .map(|i| i as u32 + 1)
}

fn civil(year: i32, month: u32, day: u32, text: &str) -> ValueResult<i32> {
    if month == 0 || month > 12 || day == 0 || day > days_in_month(year, month) {
        return Err(bad_field(text));
    }
    let days = days_from_civil(year, month, day);
    if !(MIN_DAY..MAX_DAY).contains(&i64::from(days)) || year.abs() > 300_000 {
        return Err(ValueError::new(
            "22008",
            format!("date out of range: \"{text}\""),
        ));
    }
    Ok(days)
}

/// `04:05`, `04:05:06.789`, with 24:00:00 allowed.
fn parse_clock(word: &str, text: &str) -> Option<ValueResult<i64>> {
    let mut parts = word.split(':');
    let number = |s: &str| -> Option<i64> {
        (!s.is_empty() && s.len() <= 2 && s.bytes().all(|b| b.is_ascii_digit()))
            .then(|| s.parse().ok())?
    };
    let h = number(parts.next()?)?;
    let m = number(parts.next()?)?;
    let us = match parts.next() {
        Some(s) => {
            let (whole, frac) = s.split_once('.').unwrap_or((s, ""));
            number(whole)? * SECOND_US + fraction_us(frac)?
        }
        None => 0,
    };
    if parts.next().is_some() {
        return None;
    }
    let total = (h * 60 + m) * 60 * SECOND_US + us;
    // :60 is carried, as PostgreSQL does.
    if h > 24 || m > 59 || us > 60 * SECOND_US || total > DAY_US {
        return Some(Err(bad_field(text)));
    }
    Some(Ok(total))
}

/// Digits after the point as microseconds, rounded.
fn fraction_us(frac: &str) -> Option<i64> {
    if !frac.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut us = 0;
    for i in 0..7 {
        let digit = frac.as_bytes().get(i).map_or(0, |b| i64::from(b - b'0'));
        if i < 6 {
            us = us * 10 + digit;
        } else if digit >= 5 {
            us += 1;
        }
    }
    Some(us)
}

/// `2024-01-31`, `20240131`, `1/31/2024`, `31-Jan-2024`: one word.
fn parse_date_word(word: &str, text: &str) -> Option<ValueResult<i32>> {
    let (negative, body) = match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    if negative {
        return None;
    }
    if body.len() == 8 && body.bytes().all(|b| b.is_ascii_digit()) {
        let n = |r: std::ops::Range<usize>| body[r].parse::<u32>().ok();
        return Some(civil(n(0..4)? as i32, n(4..6)?, n(6..8)?, text));
    }
    let separator = ['-', '/', '.'].into_iter().find(|s| body.contains(*s))?;
    let parts: Vec<&str> = body.split(separator).collect();
    let [a, b, c] = parts[..] else { return None };
    let number = |s: &str| -> Option<u32> {
        (!s.is_empty() && s.len() <= 7 && s.bytes().all(|b| b.is_ascii_digit()))
            .then(|| s.parse().ok())?
    };
    let year = |s: &str| -> Option<i32> {
        let y = number(s)? as i32;
        Some(match (s.len(), y) {
            (1 | 2, 0..=69) => y + 2000,
            (1 | 2, _) => y + 1900,
            _ => y,
        })
    };
    if let Some(month) = month_by_name(b) {
        // 31-Jan-2024, 2024-Jan-31
        return Some(if a.len() >= 3 {
            civil(year(a)?, month, number(c)?, text)
        } else {
            civil(year(c)?, month, number(a)?, text)
        });
    }
    Some(if a.len() >= 3 {
        civil(number(a)? as i32, number(b)?, number(c)?, text)
    } else {
        // DateStyle MDY
        civil(year(c)?, number(a)?, number(b)?, text)
    })
}

fn parse_words(type_name: &str, text: &str, now: impl Fn() -> i64) -> ValueResult<Parsed> {
    let bad = || {
        ValueError::new(
            "22007",
            format!("invalid input syntax for type {type_name}: \"{text}\""),
        )
    };
    let mut out = Parsed::default();
    let mut bc = false;
    let mut pm: Option<bool> = None;
    let mut named: (Option<u32>, Vec<u32>) = (None, Vec::new());
    let lower = text.trim().to_ascii_lowercase();
    if lower.is_empty() {
        return Err(bad());
    }
    if matches!(lower.as_str(), "infinity" | "-infinity" | "+infinity") {
        return Err(ValueError::new(
            "0A000",
            format!("the {type_name} value \"{text}\" is not supported"),
        ));
    }
    // T between date and time; a zone may stick to the time.
    let mut words: Vec<String> = Vec::new();
    for word in text.split([' ', '\t', '\n', ',']).filter(|w| !w.is_empty()) {
        match word.find(['T', 't']) {
            Some(at)
                if at > 0
                    && word[..at].bytes().all(|b| b.is_ascii_digit() || b == b'-')
                    && word[at + 1..].starts_with(|c: char| c.is_ascii_digit()) =>
            {
                words.push(word[..at].to_owned());
                words.push(word[at + 1..].to_owned());
            }
            _ => words.push(word.to_owned()),
        }
    }
    for word in &words {
        let low = word.to_ascii_lowercase();
        if word.contains(':') && word.starts_with(|c: char| c.is_ascii_digit()) {
            let split = word
                .find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.'))
                .unwrap_or(word.len());
            let clock = parse_clock(&word[..split], text).ok_or_else(bad)??;
            if out.time_us.replace(clock).is_some() {
                return Err(bad());
            }
            match &word[split..] {
                "" => {}
                "am" | "AM" => pm = Some(false),
                "pm" | "PM" => pm = Some(true),
                zone => match TimeZone::parse(zone).map_err(|_| bad())? {
                    TimeZone::Fixed(s) => out.offset = Some(s),
                    named => out.zone = Some(named),
                },
            }
        } else if let Some(days) = parse_date_word(word, text) {
            if out.days.replace(days?).is_some() {
                return Err(bad());
            }
        } else if low == "bc" {
            bc = true;
        } else if low == "ad" {
        } else if low == "am" || low == "pm" {
            pm = Some(low == "pm");
        } else if matches!(
            low.as_str(),
            "now" | "today" | "tomorrow" | "yesterday" | "epoch"
        ) {
            let us = now();
            let today = us.div_euclid(DAY_US) as i32;
            match low.as_str() {
                "now" => {
                    out.days = Some(today);
                    out.time_us = Some(us.rem_euclid(DAY_US));
                }
                "today" => out.days = Some(today),
                "tomorrow" => out.days = Some(today + 1),
                "yesterday" => out.days = Some(today - 1),
                _ => {
                    out.days = Some(0);
                    out.time_us = Some(0);
                    out.offset = Some(0);
                }
            }
        } else if let Some(month) = month_by_name(&low) {
            named.0 = Some(month);
        } else if let Some(n) = (low.len() <= 4 && low.bytes().all(|b| b.is_ascii_digit()))
            .then(|| low.parse::<u32>().ok())
            .flatten()
        {
            named.1.push(n);
        } else if matches!(
            low.as_str(),
            "mon"
                | "tue"
                | "wed"
                | "thu"
                | "fri"
                | "sat"
                | "sun"
                | "monday"
                | "tuesday"
                | "wednesday"
                | "thursday"
                | "friday"
                | "saturday"
                | "sunday"
        ) {
        } else if (out.time_us.is_some() || out.days.is_some())
            && out.offset.is_none()
            && out.zone.is_none()
        {
            // Also behind a date alone: JDBC writes dates as `2024-02-29 +00`.
            match TimeZone::parse(word).map_err(|_| bad())? {
                TimeZone::Fixed(s) => out.offset = Some(s),
                zone => out.zone = Some(zone),
            }
        } else {
            return Err(bad());
        }
    }
    match (named.0, &named.1[..]) {
        (Some(month), &[a, b]) if out.days.is_none() => {
            let (day, year) = if a > 31 { (b, a) } else { (a, b) };
            out.days = Some(civil(year as i32, month, day, text)?);
        }
        (None, []) => {}
        _ => return Err(bad()),
    }
    if let (Some(pm), Some(t)) = (pm, out.time_us) {
        let hour = t / (3600 * SECOND_US);
        if !(1..=12).contains(&hour) {
            return Err(bad_field(text));
        }
        let base = t - if hour == 12 { 12 * 3600 * SECOND_US } else { 0 };
        out.time_us = Some(base + if pm { 12 * 3600 * SECOND_US } else { 0 });
    }
    if let (true, Some(days)) = (bc, out.days) {
        let (y, m, d) = civil_from_days(days);
        out.days = Some(civil(1 - y, m, d, text)?);
    }
    Ok(out)
}

fn wall_us() -> i64 {
    crate::clock::wall_clock_us() as i64
}

pub(crate) fn parse_date(text: &str, zone: &TimeZone) -> ValueResult<i32> {
    parse_words("date", text, || zone.to_local(wall_us()))?
        .days
        .ok_or_else(|| {
            ValueError::new(
                "22007",
                format!("invalid input syntax for type date: \"{text}\""),
            )
        })
}

pub(crate) fn parse_time(text: &str, zone: &TimeZone) -> ValueResult<i64> {
    parse_words("time", text, || zone.to_local(wall_us()))?
        .time_us
        .ok_or_else(|| {
            ValueError::new(
                "22007",
                format!("invalid input syntax for type time: \"{text}\""),
            )
        })
}

fn combine(days: i32, time_us: i64) -> ValueResult<i64> {
    i64::from(days)
        .checked_mul(DAY_US)
        .and_then(|d| d.checked_add(time_us))
        .ok_or_else(|| ValueError::new("22008", "timestamp out of range"))
}

/// `timestamp`: a zone in the text is ignored, as PostgreSQL does.
pub(crate) fn parse_timestamp(text: &str, zone: &TimeZone) -> ValueResult<i64> {
    let p = parse_words("timestamp", text, || zone.to_local(wall_us()))?;
    let days = p.days.ok_or_else(|| {
        ValueError::new(
            "22007",
            format!("invalid input syntax for type timestamp: \"{text}\""),
        )
    })?;
    combine(days, p.time_us.unwrap_or(0))
}

pub(crate) fn parse_timestamptz(text: &str, zone: &TimeZone) -> ValueResult<i64> {
    let p = parse_words("timestamp with time zone", text, || {
        zone.to_local(wall_us())
    })?;
    let days = p.days.ok_or_else(|| {
        ValueError::new(
            "22007",
            format!("invalid input syntax for type timestamp with time zone: \"{text}\""),
        )
    })?;
    let local = combine(days, p.time_us.unwrap_or(0))?;
    match (p.offset, p.zone) {
        (Some(offset), _) => local
            .checked_sub(i64::from(offset) * SECOND_US)
            .ok_or_else(|| ValueError::new("22008", "timestamp out of range")),
        (None, Some(named)) => named.to_utc(local),
        (None, None) => zone.to_utc(local),
    }
}

#[cfg(test)]
mod tests {
    use super::super::datetime_text::{write_date, write_timestamp, write_timestamptz};
    use super::*;

    fn tz(us: i64, zone: &TimeZone) -> String {
        let mut out = String::new();
        write_timestamptz(us, zone, &mut out);
        out
    }

    #[test]
    fn civil_dates_come_back() {
        for days in (-1_000_000..1_000_000).step_by(373) {
            let (y, m, d) = civil_from_days(days);
            assert_eq!(days_from_civil(y, m, d), days);
        }
        assert_eq!(days_from_civil(1970, 1, 1), 0);
        assert_eq!(days_from_civil(2000, 3, 1), 11_017);
    }

    #[test]
    fn dates_are_read_in_the_usual_forms() {
        let utc = &TimeZone::UTC;
        for text in [
            "2024-01-05",
            "20240105",
            "1/5/2024",
            "January 5, 2024",
            "5 Jan 2024",
            "05-Jan-2024",
            "2024-01-05 10:11:12",
        ] {
            let mut out = String::new();
            write_date(parse_date(text, utc).unwrap(), &mut out);
            assert_eq!(out, "2024-01-05", "{text}");
        }
        assert_eq!(parse_date("2023-02-29", utc).unwrap_err().sqlstate, "22008");
        assert_eq!(parse_date("hello", utc).unwrap_err().sqlstate, "22007");
        assert_eq!(parse_date("", utc).unwrap_err().sqlstate, "22007");
        let mut out = String::new();
        write_date(parse_date("0044-03-15 BC", utc).unwrap(), &mut out);
        assert_eq!(out, "0044-03-15 BC");
    }

    #[test]
    fn timestamps_honour_zones() {
        let berlin = TimeZone::parse("europe/berlin").unwrap();
        let us = parse_timestamptz("2024-07-01 12:00", &berlin).unwrap();
        assert_eq!(tz(us, &TimeZone::UTC), "2024-07-01 10:00:00+00");
        assert_eq!(tz(us, &berlin), "2024-07-01 12:00:00+02");
        for text in [
            "2024-07-01T10:00:00Z",
            "2024-07-01 10:00:00.000+00",
            "2024-07-01 15:30:00+05:30",
            "2024-07-01 12:00:00 Europe/Berlin",
        ] {
            assert_eq!(
                parse_timestamptz(text, &TimeZone::UTC).unwrap(),
                us,
                "{text}"
            );
        }
        let india = TimeZone::parse("+05:30").unwrap();
        assert_eq!(tz(us, &india), "2024-07-01 15:30:00+05:30");
    }

    #[test]
    fn fractions_round_and_print_short() {
        let us = parse_timestamp("2024-01-01 00:00:00.1234567", &TimeZone::UTC).unwrap();
        let mut out = String::new();
        write_timestamp(us, &mut out);
        assert_eq!(out, "2024-01-01 00:00:00.123457");
        assert_eq!(parse_time("24:00:00", &TimeZone::UTC).unwrap(), DAY_US);
        assert!(parse_time("25:00", &TimeZone::UTC).is_err());
        assert_eq!(
            parse_time("3:04 pm", &TimeZone::UTC).unwrap(),
            (15 * 60 + 4) * 60 * SECOND_US
        );
    }
}
