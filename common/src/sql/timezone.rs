//! Time zones of sessions.

use super::datetime::{DAY_US, SECOND_US};
use super::{ValueError, ValueResult};
use chrono::{Offset, TimeZone as _};

/// A session's time zone.
#[derive(Clone, Debug, PartialEq)]
pub enum TimeZone {
    /// A named zone of the time zone database.
    Named(chrono_tz::Tz),
    /// A fixed offset in seconds east of UTC.
    Fixed(i32),
}

impl TimeZone {
    /// UTC.
    pub const UTC: TimeZone = TimeZone::Named(chrono_tz::Tz::UTC);

    /// A zone by name (`Europe/Berlin`, any case) or offset (`+02`, `-05:30`).
    ///
    /// # Errors
    /// 22023 when there is none.
    pub fn parse(text: &str) -> ValueResult<TimeZone> {
        let text = text.trim();
        let bad = || ValueError::new("22023", format!("time zone \"{text}\" not recognized"));
        if text.eq_ignore_ascii_case("z") || text.eq_ignore_ascii_case("zulu") {
            return Ok(TimeZone::UTC);
        }
        if let Some(seconds) = parse_offset(text) {
            return Ok(TimeZone::Fixed(seconds));
        }
        chrono_tz::TZ_VARIANTS
            .iter()
            .find(|tz| tz.name().eq_ignore_ascii_case(text))
            .copied()
            .map(TimeZone::Named)
            .ok_or_else(bad)
    }

    /// Seconds east of UTC at an instant.
    pub fn offset_at_utc(&self, micros: i64) -> i32 {
        match self {
            TimeZone::Fixed(s) => *s,
            TimeZone::Named(chrono_tz::Tz::UTC) => 0,
            TimeZone::Named(tz) => chrono::DateTime::from_timestamp_micros(micros).map_or(0, |t| {
                tz.offset_from_utc_datetime(&t.naive_utc())
                    .fix()
                    .local_minus_utc()
            }),
        }
    }

    /// Seconds east of UTC at a local time. Where the clock is set back the
    /// earlier offset counts, where it is set forward the one before the gap, as
    /// in PostgreSQL.
    pub fn offset_at_local(&self, micros: i64) -> i32 {
        match self {
            TimeZone::Fixed(s) => *s,
            TimeZone::Named(chrono_tz::Tz::UTC) => 0,
            TimeZone::Named(tz) => {
                let Some(local) = chrono::DateTime::from_timestamp_micros(micros) else {
                    return 0;
                };
                match tz.offset_from_local_datetime(&local.naive_utc()) {
                    chrono::MappedLocalTime::Single(o) => o.fix().local_minus_utc(),
                    // The later offset from UTC is standard time: PostgreSQL's choice.
                    chrono::MappedLocalTime::Ambiguous(a, b) => {
                        a.fix().local_minus_utc().min(b.fix().local_minus_utc())
                    }
                    chrono::MappedLocalTime::None => self.offset_at_utc(micros - DAY_US),
                }
            }
        }
    }

    /// An instant from a local time.
    ///
    /// # Errors
    /// 22008 when it is out of range.
    pub fn to_utc(&self, local_micros: i64) -> ValueResult<i64> {
        local_micros
            .checked_sub(i64::from(self.offset_at_local(local_micros)) * SECOND_US)
            .ok_or_else(|| ValueError::new("22008", "timestamp out of range"))
    }

    /// The local time of an instant.
    pub fn to_local(&self, micros: i64) -> i64 {
        micros.saturating_add(i64::from(self.offset_at_utc(micros)) * SECOND_US)
    }
}

/// `+02`, `-0530`, `+05:30:15`, in seconds.
fn parse_offset(text: &str) -> Option<i32> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let digits = |s: &str| -> Option<i32> {
        (!s.is_empty() && s.len() <= 2 && s.bytes().all(|b| b.is_ascii_digit()))
            .then(|| s.parse().ok())?
    };
    let parts: Vec<&str> = rest.split(':').collect();
    let (h, m, s) = match parts[..] {
        [hm] if hm.len() == 4 && hm.is_ascii() => (digits(&hm[..2])?, digits(&hm[2..])?, 0),
        [h] => (digits(h)?, 0, 0),
        [h, m] => (digits(h)?, digits(m)?, 0),
        [h, m, s] => (digits(h)?, digits(m)?, digits(s)?),
        _ => return None,
    };
    (h <= 15 && m < 60 && s < 60).then_some(sign * (h * 3600 + m * 60 + s))
}
