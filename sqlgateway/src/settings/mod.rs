//! Session settings: PostgreSQL's names, defaults and checks for those that
//! clients use. What has an effect here is a typed field as well; what only
//! exists so that clients may set it (such as `client_min_messages`) is kept as
//! text. Values that would change results in a way we do not implement are
//! refused.

mod known;
mod requests;

use crate::error::{Result, SqlError};
use lineradb_common::sql::TimeZone;
use std::collections::BTreeMap;
use std::time::Duration;

use known::{KNOWN, Kind, Known};
pub use known::{REPORTED, SERVER_VERSION};
pub use requests::{SetRequest, SetRequests};

/// What a session has set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who is connected.
    pub user: String,
    /// The database.
    pub database: String,
    /// Schemas in which unqualified names are looked up, `pg_catalog` excluded.
    pub search_path: Vec<String>,
    /// The session's time zone.
    pub time_zone: TimeZone,
    /// Its name as it was set.
    pub time_zone_name: String,
    /// Name that the client gave itself.
    pub application_name: String,
    /// When the statement began: `statement_timestamp()`, microseconds.
    pub statement_time_us: i64,
    /// When the transaction began: `now()`, microseconds.
    pub transaction_time_us: i64,
    /// Longest a statement may run; `None`: no limit.
    pub statement_timeout: Option<Duration>,
    /// Longest wait for one lock; `None`: no limit.
    pub lock_timeout: Option<Duration>,
    /// Longest pause inside a transaction block; `None`: no limit.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// Longest pause outside of a transaction block; `None`: no limit.
    pub idle_session_timeout: Option<Duration>,
    /// Isolation level of the next transactions.
    pub default_isolation: String,
    /// Next transactions are READ ONLY.
    pub default_read_only: bool,
    /// The open transaction's isolation level.
    pub transaction_isolation: String,
    /// The open transaction is READ ONLY.
    pub transaction_read_only: bool,
    /// Makes the next transaction happen once under this key.
    pub idempotency_key: Option<String>,
    /// The rest, as text, where it differs from the default.
    other: BTreeMap<&'static str, String>,
    /// Names with a dot: anybody's.
    custom: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            user: "lineradb".into(),
            database: "lineradb".into(),
            search_path: vec!["public".into()],
            time_zone: TimeZone::UTC,
            time_zone_name: "UTC".into(),
            application_name: String::new(),
            statement_time_us: 0,
            transaction_time_us: 0,
            statement_timeout: None,
            lock_timeout: None,
            idle_in_transaction_timeout: None,
            idle_session_timeout: None,
            default_isolation: "serializable".into(),
            default_read_only: false,
            transaction_isolation: "serializable".into(),
            transaction_read_only: false,
            idempotency_key: None,
            other: BTreeMap::new(),
            custom: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// `SHOW name`: the value as text. `None`: no such setting.
    pub fn show(&self, name: &str) -> Option<String> {
        let name = name.to_ascii_lowercase();
        let duration = |d: Option<Duration>| d.map_or_else(|| "0".to_owned(), show_duration);
        let on_off = |on: bool| if on { "on" } else { "off" }.to_owned();
        Some(match name.as_str() {
            "timezone" => self.time_zone_name.clone(),
            "application_name" => self.application_name.clone(),
            "session_authorization" => self.user.clone(),
            "statement_timeout" => duration(self.statement_timeout),
            "lock_timeout" => duration(self.lock_timeout),
            "idle_in_transaction_session_timeout" => duration(self.idle_in_transaction_timeout),
            "idle_session_timeout" => duration(self.idle_session_timeout),
            "default_transaction_isolation" => self.default_isolation.clone(),
            "default_transaction_read_only" => on_off(self.default_read_only),
            "transaction_isolation" => self.transaction_isolation.clone(),
            "transaction_read_only" => on_off(self.transaction_read_only),
            "idempotency_key" => self.idempotency_key.clone().unwrap_or_default(),
            other => match find(other) {
                Some(k) => self
                    .other
                    .get(k.name)
                    .cloned()
                    .unwrap_or_else(|| k.default.to_owned()),
                None => return self.custom.get(other).cloned(),
            },
        })
    }

    /// All settings that `SHOW ALL` and `pg_settings` list: name, value,
    /// description.
    pub fn all(&self) -> Vec<(&'static str, String, &'static str)> {
        KNOWN
            .iter()
            .map(|k| (k.name, self.show(k.name).unwrap_or_default(), k.description))
            .collect()
    }

    /// `SET name TO values`; `None`: DEFAULT. `defaults` are the session's
    /// settings as it began.
    ///
    /// # Errors
    /// 42704 for an unknown name, 22023 for a wrong value, 55P02 for one that
    /// cannot be changed.
    pub fn set(
        &mut self,
        name: &str,
        values: Option<&[String]>,
        defaults: &Settings,
    ) -> Result<()> {
        let name = name.to_ascii_lowercase();
        let Some(k) = find(&name) else {
            if name.contains('.') {
                match values {
                    Some(v) => self.custom.insert(name, v.join(", ")),
                    None => self.custom.remove(&name),
                };
                return Ok(());
            }
            return Err(SqlError::new(
                "42704",
                format!("unrecognized configuration parameter \"{name}\""),
            ));
        };
        if matches!(k.kind, Kind::Fixed) {
            return Err(SqlError::new(
                "55P02",
                format!("parameter \"{}\" cannot be changed", k.name),
            ));
        }
        let Some(values) = values else {
            return self.reset(k.name, defaults);
        };
        let value = values.join(", ");
        let wrong = || {
            SqlError::new(
                "22023",
                format!("invalid value for parameter \"{}\": \"{value}\"", k.name),
            )
        };
        match k.kind {
            Kind::Bool => _ = parse_bool(&value).ok_or_else(wrong)?,
            Kind::Integer(low, high) => {
                let n: i64 = value.trim().parse().map_err(|_| wrong())?;
                if !(low..=high).contains(&n) {
                    return Err(SqlError::new(
                        "22023",
                        format!(
                            "{n} is outside the valid range for parameter \"{}\" ({low} .. {high})",
                            k.name
                        ),
                    ));
                }
            }
            Kind::Real => _ = value.trim().parse::<f64>().map_err(|_| wrong())?,
            Kind::Choice(choices) => {
                if !choices.contains(&value.to_ascii_lowercase().as_str()) {
                    return Err(wrong());
                }
            }
            Kind::Time => _ = parse_duration(&value).ok_or_else(wrong)?,
            Kind::Text | Kind::Fixed => {}
        }
        let duration = || parse_duration(&value).filter(|d| !d.is_zero());
        match k.name {
            "timezone" => {
                // A bare number is hours east of UTC.
                let text = match value.parse::<f64>() {
                    Ok(hours) => {
                        self.time_zone = TimeZone::Fixed((hours * 3600.0) as i32);
                        self.time_zone_name = value.clone();
                        return Ok(());
                    }
                    Err(_) => value.clone(),
                };
                self.time_zone = TimeZone::parse(&text).map_err(|_| wrong())?;
                self.time_zone_name = match &self.time_zone {
                    TimeZone::Named(tz) => tz.name().to_owned(),
                    TimeZone::Fixed(_) => text,
                };
            }
            "search_path" => {
                self.search_path = values
                    .iter()
                    .flat_map(|v| v.split(','))
                    .map(|s| s.trim().trim_matches('"').to_owned())
                    .map(|s| if s == "$user" { self.user.clone() } else { s })
                    .filter(|s| !s.is_empty() && s != "pg_catalog")
                    .collect();
                let shown: Vec<String> = values.iter().map(|v| quote_name(v)).collect();
                self.other.insert(k.name, shown.join(", "));
            }
            "datestyle" => {
                let upper = value.to_ascii_uppercase();
                let known = |w: &str| matches!(w, "ISO" | "MDY" | "US" | "NONEURO" | "NONEUROPEAN");
                if !upper.split([',', ' ']).filter(|w| !w.is_empty()).all(known) {
                    return Err(SqlError::unsupported(format!("DateStyle {value}")));
                }
            }
            "client_encoding" => {
                // Read as PostgreSQL reads it: by its letters and digits.
                let letters = value.chars().filter(char::is_ascii_alphanumeric);
                let name: String = letters.collect::<String>().to_ascii_lowercase();
                if !matches!(name.as_str(), "utf8" | "unicode") {
                    return Err(wrong());
                }
                self.other.insert(k.name, "UTF8".to_owned());
            }
            "application_name" => self.application_name = value,
            "statement_timeout" => self.statement_timeout = duration(),
            "lock_timeout" => self.lock_timeout = duration(),
            "idle_in_transaction_session_timeout" => self.idle_in_transaction_timeout = duration(),
            "idle_session_timeout" => self.idle_session_timeout = duration(),
            "default_transaction_isolation" => self.default_isolation = value.to_ascii_lowercase(),
            "transaction_isolation" => self.transaction_isolation = value.to_ascii_lowercase(),
            "default_transaction_read_only" => {
                self.default_read_only = parse_bool(&value).unwrap_or(false);
            }
            "transaction_read_only" => {
                self.transaction_read_only = parse_bool(&value).unwrap_or(false);
            }
            "idempotency_key" => {
                if value.len() > 1024 {
                    return Err(wrong());
                }
                self.idempotency_key = (!value.is_empty()).then_some(value);
            }
            _ => {
                let shown = match (k.kind, parse_bool(&value)) {
                    (Kind::Bool, Some(on)) => if on { "on" } else { "off" }.to_owned(),
                    _ => value,
                };
                self.other.insert(k.name, shown);
            }
        }
        Ok(())
    }

    fn reset(&mut self, name: &'static str, defaults: &Settings) -> Result<()> {
        match name {
            "timezone" => {
                self.time_zone = defaults.time_zone.clone();
                self.time_zone_name = defaults.time_zone_name.clone();
            }
            "application_name" => self.application_name = defaults.application_name.clone(),
            "statement_timeout" => self.statement_timeout = defaults.statement_timeout,
            "lock_timeout" => self.lock_timeout = defaults.lock_timeout,
            "idle_in_transaction_session_timeout" => {
                self.idle_in_transaction_timeout = defaults.idle_in_transaction_timeout;
            }
            "idle_session_timeout" => self.idle_session_timeout = defaults.idle_session_timeout,
            "default_transaction_isolation" => {
                self.default_isolation = defaults.default_isolation.clone();
            }
            "default_transaction_read_only" => self.default_read_only = defaults.default_read_only,
            "transaction_isolation" => self.transaction_isolation = self.default_isolation.clone(),
            "transaction_read_only" => self.transaction_read_only = self.default_read_only,
            "idempotency_key" => self.idempotency_key = None,
            _ => {}
        }
        if name == "search_path" {
            self.search_path = defaults.search_path.clone();
        }
        match defaults.other.get(name) {
            Some(v) => self.other.insert(name, v.clone()),
            None => self.other.remove(name),
        };
        Ok(())
    }
}

fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.name == name)
}

/// PostgreSQL's booleans.
pub fn parse_bool(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => Some(true),
        "off" | "false" | "no" | "0" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// `100`, `100ms`, `2s`, `1min`, `1h`, `1d`.
fn parse_duration(value: &str) -> Option<Duration> {
    let value = value.trim();
    let split = value
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))
        .unwrap_or(value.len());
    let number: f64 = value[..split].parse().ok()?;
    let factor = match value[split..].trim() {
        "" | "ms" => 1.0,
        "us" => 0.001,
        "s" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    let ms = number * factor;
    (0.0..=f64::from(i32::MAX))
        .contains(&ms)
        .then(|| Duration::from_micros((ms * 1000.0) as u64))
}

fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    match ms {
        0 => format!("{}us", d.as_micros()),
        _ if ms.is_multiple_of(86_400_000) => format!("{}d", ms / 86_400_000),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}min", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

fn quote_name(name: &str) -> String {
    let plain = !name.is_empty()
        && name.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b',' | b' ')
        });
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.trim_matches('"'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(s: &mut Settings, name: &str, value: &str) -> Result<(), String> {
        let d = Settings::default();
        s.set(name, Some(&[value.to_owned()]), &d)
            .map_err(|e| e.sqlstate)
    }

    #[test]
    fn values_are_checked_and_shown() {
        let mut s = Settings::default();
        set(&mut s, "statement_timeout", "1500ms").unwrap();
        assert_eq!(s.show("statement_timeout").unwrap(), "1500ms");
        assert_eq!(s.statement_timeout, Some(Duration::from_millis(1500)));
        set(&mut s, "TimeZone", "europe/berlin").unwrap();
        assert_eq!(s.show("TIMEZONE").unwrap(), "Europe/Berlin");
        assert_eq!(set(&mut s, "timezone", "Mars/Base"), Err("22023".into()));
        assert_eq!(set(&mut s, "nonsense", "1"), Err("42704".into()));
        assert_eq!(set(&mut s, "server_version", "1"), Err("55P02".into()));
        assert_eq!(set(&mut s, "datestyle", "German"), Err("0A000".into()));
        assert_eq!(set(&mut s, "extra_float_digits", "9"), Err("22023".into()));
        set(&mut s, "client_encoding", "'utf-8'").unwrap();
        assert_eq!(s.show("client_encoding").unwrap(), "UTF8");
        assert_eq!(
            set(&mut s, "client_encoding", "latin1"),
            Err("22023".into())
        );
        set(&mut s, "my.var", "x").unwrap();
        assert_eq!(s.show("my.var").unwrap(), "x");
        assert_eq!(s.show("none.such"), None);
    }

    #[test]
    fn default_goes_back_to_what_the_session_began_with() {
        let mut begin = Settings::default();
        set(&mut begin, "search_path", "a").unwrap();
        let mut s = begin.clone();
        s.set("search_path", Some(&["b".into(), "$user".into()]), &begin)
            .unwrap();
        assert_eq!(s.search_path, vec!["b", "lineradb"]);
        s.set("search_path", None, &begin).unwrap();
        assert_eq!(s.search_path, vec!["a"]);
        assert_eq!(s.show("search_path").unwrap(), "a");
    }

    #[test]
    fn names_are_sorted_and_unique() {
        assert!(KNOWN.windows(2).all(|p| p[0].name < p[1].name));
    }
}
