//! `AS OF SYSTEM TIME`: CockroachDB's clause for reading the past. PostgreSQL's
//! grammar does not have it, so it is taken out of a query before that is parsed.

use super::lexer::{Token, TokenKind, char_position, tokens, unquote};
use crate::error::{Result, SqlError};
use lineradb_common::Timestamp;
use lineradb_common::sql::{Datum, Interval, SqlType, TimeZone};
use std::borrow::Cow;

const WORDS: [&str; 4] = ["as", "of", "system", "time"];
/// The most recent past that any replica serves, as a call that stands for
/// [`ANY_REPLICA`]: leaders close what is three seconds old (L4), clients hear of it
/// once a second.
const FOLLOWER_READ: [&str; 3] = ["follower_read_timestamp", "(", ")"];
const ANY_REPLICA: &str = "-4.8s";

/// When a query is to read, as it was written: `'-10s'` (before now), a point in
/// time, or microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsOf(String);

impl AsOf {
    /// Reads the clause at `at`; `None`: another one is there. Answers the first
    /// token after it as well.
    ///
    /// # Errors
    /// 42601 for a value of another form.
    pub fn read(text: &str, tokens: &[Token], at: usize) -> Result<Option<(AsOf, usize)>> {
        let is_word = |i: usize, word: &str| {
            tokens.get(at + i).is_some_and(|t| {
                t.kind == TokenKind::Word && text[t.start..t.end].eq_ignore_ascii_case(word)
            })
        };
        if !WORDS.iter().enumerate().all(|(i, word)| is_word(i, word)) {
            return Ok(None);
        }
        let at = at + WORDS.len();
        let written = |t: &Token| text[t.start..t.end].to_owned();
        match tokens.get(at) {
            Some(t) if t.kind == TokenKind::String => {
                Ok(Some((AsOf(unquote(&written(t), '\'')), at + 1)))
            }
            Some(t) if t.kind == TokenKind::Integer => Ok(Some((AsOf(written(t)), at + 1))),
            _ if is_call(text, &tokens[at.min(tokens.len())..]) => Ok(Some((
                AsOf(ANY_REPLICA.to_owned()),
                at + FOLLOWER_READ.len(),
            ))),
            found => {
                let place = found.map_or(text.len(), |t| t.start);
                Err(SqlError::syntax(
                    "AS OF SYSTEM TIME takes a string: a negative interval ('-10s') or a point in \
                     time, or follower_read_timestamp()",
                )
                .at(Some(char_position(text, place))))
            }
        }
    }

    /// The timestamp meant, if `now` is the cluster's time.
    ///
    /// # Errors
    /// 22023 for what is neither an interval nor a point in time, or lies ahead.
    pub fn timestamp(&self, now: Timestamp, zone: &TimeZone) -> Result<Timestamp> {
        let text = self.0.trim();
        let micros = match text.strip_prefix('-') {
            // The sign is that of the whole interval.
            Some(ago) => i128::from(now.micros()) - Interval::parse(ago).map_err(bad)?.span(),
            None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map_err(|_| self.unreadable())?
            }
            None => match Datum::parse(SqlType::TimestampTz, text, zone) {
                Ok(Datum::TimestampTz(us)) => i128::from(us),
                _ => return Err(self.unreadable()),
            },
        };
        if micros > i128::from(now.micros()) {
            return Err(SqlError::new(
                "22023",
                format!("AS OF SYSTEM TIME '{text}' lies in the future"),
            )
            .with_detail("The time may be anything from the oldest history kept up to now."));
        }
        let micros = u64::try_from(micros).unwrap_or(0).max(1);
        Ok(Timestamp::from_micros(micros))
    }

    fn unreadable(&self) -> SqlError {
        SqlError::new(
            "22023",
            format!("AS OF SYSTEM TIME does not understand '{}'", self.0),
        )
        .with_hint("Give a negative interval, such as '-10s', or a point in time.")
    }
}

/// Whether the tokens begin with the call of [`FOLLOWER_READ`].
fn is_call(text: &str, tokens: &[Token]) -> bool {
    tokens.len() >= FOLLOWER_READ.len() && { tokens.iter().zip(FOLLOWER_READ) }
        .all(|(token, part)| text[token.start..token.end].eq_ignore_ascii_case(part))
}

fn bad(error: lineradb_common::sql::ValueError) -> SqlError {
    SqlError::new("22023", format!("AS OF SYSTEM TIME: {}", error.message))
}

/// Takes the clause out of a query. Blanks stand where it was, so that positions
/// stay true.
///
/// # Errors
/// 42601 when it is malformed or given twice, 0A000 in a subquery.
pub fn take(text: &str) -> Result<(Cow<'_, str>, Option<AsOf>)> {
    let mut windows = text.as_bytes().windows(6);
    let mentions = windows.any(|w| w[0] | 0x20 == b's' && w.eq_ignore_ascii_case(b"system"));
    if !mentions {
        return Ok((Cow::Borrowed(text), None));
    }
    let all = tokens(text)?;
    let mut found: Option<(AsOf, usize, usize)> = None;
    let mut depth = 0_usize;
    for at in 0..all.len() {
        match &text[all[at].start..all[at].end] {
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            _ => {}
        }
        let Some((as_of, next)) = AsOf::read(text, &all, at)? else {
            continue;
        };
        let place = Some(char_position(text, all[at].start));
        if depth > 0 {
            return Err(SqlError::unsupported(
                "AS OF SYSTEM TIME in a subquery (it belongs to the whole statement)",
            )
            .at(place));
        }
        if found.is_some() {
            return Err(SqlError::syntax("AS OF SYSTEM TIME is given twice").at(place));
        }
        found = Some((as_of, all[at].start, all[next - 1].end));
    }
    let Some((as_of, start, end)) = found else {
        return Ok((Cow::Borrowed(text), None));
    };
    let blanks = " ".repeat(text[start..end].chars().count());
    let without = [&text[..start], &blanks, &text[end..]].concat();
    Ok((Cow::Owned(without), Some(as_of)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> AsOf {
        AsOf(text.into())
    }

    #[test]
    fn the_clause_is_taken_out_and_positions_stay() {
        let text = "SELECT a FROM t as of System TIME '-1s' WHERE x";
        let (without, as_of) = take(text).unwrap();
        assert_eq!(as_of, Some(of("-1s")));
        assert_eq!(without.find("WHERE"), text.find("WHERE"));
        assert!(!without.to_lowercase().contains("system"));
        let any = take("SELECT 1 FROM t AS OF SYSTEM TIME Follower_Read_Timestamp ( ) LIMIT 1");
        let (without, as_of) = any.unwrap();
        assert_eq!(as_of, Some(of("-4.8s")));
        assert!(without.trim_end().ends_with("LIMIT 1") && !without.contains('('));
        for same in [
            "SELECT 'as of system time 1'",
            "SELECT system FROM t AS of",
            "SELECT 1",
        ] {
            assert_eq!(take(same).unwrap(), (Cow::Borrowed(same), None));
        }
        for wrong in [
            "SELECT 1 AS OF SYSTEM TIME",
            "SELECT 1 AS OF SYSTEM TIME now()",
            "SELECT 1 AS OF SYSTEM TIME follower_read_timestamp(",
            "SELECT 1 AS OF SYSTEM TIME '-1s' AS OF SYSTEM TIME '-2s'",
        ] {
            assert_eq!(take(wrong).unwrap_err().sqlstate, "42601", "{wrong}");
        }
        let nested = take("SELECT * FROM (SELECT 1 FROM t AS OF SYSTEM TIME '-1s') x");
        assert_eq!(nested.unwrap_err().sqlstate, "0A000");
    }

    #[test]
    fn intervals_count_from_now_and_nothing_lies_ahead() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let utc = TimeZone::UTC;
        let at = |text: &str| of(text).timestamp(now, &utc);
        assert_eq!(at("-10s").unwrap().micros(), now.micros() - 10_000_000);
        assert_eq!(at("-1h30m").unwrap().micros(), now.micros() - 5_400_000_000);
        assert_eq!(
            at("1600000000000000").unwrap().micros(),
            1_600_000_000_000_000
        );
        assert_eq!(
            at("2020-09-13 12:26:40+00").unwrap().micros(),
            1_600_000_000_000_000
        );
        assert_eq!(at("-5000 years").unwrap().micros(), 1);
        for wrong in [
            "2030-01-01",
            "1h",
            "-soon",
            "yesterday's",
            "",
            "9999999999999999999999",
        ] {
            assert_eq!(at(wrong).unwrap_err().sqlstate, "22023", "{wrong}");
        }
    }
}
