//! How far whoever follows changes has got.

use crate::Timestamp;
use bytes::Bytes;
use std::cmp::Ordering;

/// A place in the order of changes, by commit timestamp and then by key:
/// everything at or before it is known. One transaction may change more than one
/// message holds, so that a place between two keys of one timestamp is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The commit timestamp.
    pub timestamp: Timestamp,
    /// Of the changes at the timestamp, those of keys up to this one; `None`:
    /// all of them.
    pub key: Option<Bytes>,
}

impl Position {
    /// Behind everything at or below a timestamp.
    pub fn whole(timestamp: Timestamp) -> Self {
        Position {
            timestamp,
            key: None,
        }
    }

    /// Whether a change is at or before it.
    pub fn covers(&self, timestamp: Timestamp, key: &[u8]) -> bool {
        match timestamp.cmp(&self.timestamp) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => self.key.as_ref().is_none_or(|last| key <= &last[..]),
        }
    }

    /// The timestamp at or below which everything is known.
    pub fn resolved(&self) -> Timestamp {
        match self.key {
            None => self.timestamp,
            Some(_) => self.timestamp.previous(),
        }
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        self.timestamp
            .cmp(&other.timestamp)
            .then_with(|| match (&self.key, &other.key) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(own), Some(other)) => own.cmp(other),
            })
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_place_covers_what_an_earlier_one_does() {
        let at = |t: u64, key: Option<&'static str>| Position {
            timestamp: Timestamp::from_raw(t),
            key: key.map(Bytes::from),
        };
        let places = [
            at(0, None),
            at(5, Some("")),
            at(5, Some("b")),
            at(5, None),
            at(6, Some("a")),
        ];
        let changes = [
            (0, "z"),
            (5, ""),
            (5, "a"),
            (5, "b"),
            (5, "c"),
            (6, "a"),
            (6, "b"),
        ];
        for pair in places.windows(2) {
            assert!(pair[0] < pair[1]);
            for (t, key) in changes {
                let covers = |p: &Position| p.covers(Timestamp::from_raw(t), key.as_bytes());
                assert!(!covers(&pair[0]) || covers(&pair[1]));
            }
        }
        let count = |p: &Position| {
            let covered =
                |(t, key): &&(u64, &str)| p.covers(Timestamp::from_raw(*t), key.as_bytes());
            changes.iter().filter(covered).count()
        };
        assert_eq!(places.each_ref().map(count), [1, 2, 4, 5, 6]);
        assert_eq!(at(5, Some("b")).resolved(), Timestamp::from_raw(4));
        assert_eq!(at(5, None).resolved(), Timestamp::from_raw(5));
    }
}
