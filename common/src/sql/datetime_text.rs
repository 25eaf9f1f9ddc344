//! Dates and times as text: ISO style, as PostgreSQL prints them.

use super::TimeZone;
use super::datetime::{DAY_US, SECOND_US, civil_from_days};
use std::fmt::Write;

pub(crate) fn write_date(days: i32, out: &mut String) {
    let (y, m, d) = civil_from_days(days);
    let (shown, bc) = if y > 0 { (y, false) } else { (1 - y, true) };
    // Writing to a string cannot fail.
    let _ = write!(out, "{shown:04}-{m:02}-{d:02}");
    if bc {
        out.push_str(" BC");
    }
}

pub(crate) fn write_time(us: i64, out: &mut String) {
    let seconds = us / SECOND_US;
    let _ = write!(
        out,
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    write_fraction(us % SECOND_US, out);
}

pub(crate) fn write_fraction(us: i64, out: &mut String) {
    if us != 0 {
        let text = format!("{us:06}");
        out.push('.');
        out.push_str(text.trim_end_matches('0'));
    }
}

fn write_local(us: i64, zone: Option<i32>, out: &mut String) {
    let mut date = String::new();
    write_date(us.div_euclid(DAY_US) as i32, &mut date);
    let (day, bc) = match date.strip_suffix(" BC") {
        Some(day) => (day, " BC"),
        None => (date.as_str(), ""),
    };
    out.push_str(day);
    out.push(' ');
    write_time(us.rem_euclid(DAY_US), out);
    if let Some(offset) = zone {
        out.push(if offset < 0 { '-' } else { '+' });
        let o = offset.abs();
        let _ = write!(out, "{:02}", o / 3600);
        if o % 3600 != 0 {
            let _ = write!(out, ":{:02}", o / 60 % 60);
        }
        if o % 60 != 0 {
            let _ = write!(out, ":{:02}", o % 60);
        }
    }
    out.push_str(bc);
}

pub(crate) fn write_timestamp(us: i64, out: &mut String) {
    write_local(us, None, out);
}

pub(crate) fn write_timestamptz(us: i64, zone: &TimeZone, out: &mut String) {
    write_local(zone.to_local(us), Some(zone.offset_at_utc(us)), out);
}
