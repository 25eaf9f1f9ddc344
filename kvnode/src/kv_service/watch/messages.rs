//! Changes as messages of a watch, without I/O.
//!
//! What one transaction has changed stands in one message, so that whoever resumes
//! from any message he has read gets all of a transaction or nothing. One that has
//! changed more than a message bears is cut; the parts but the last do not count it
//! as resolved.

use crate::kv_service::rules::user_key;
use lineradb_client::Change;
use lineradb_common::{Position, Timestamp};
use lineradb_proto::kv::v1::change::Kind;
use lineradb_proto::kv::v1::{self as kv, ResponseHeader, WatchResponse};
use prost::Message;

/// Bytes of changes in one message; a single one may be larger.
const BYTES: usize = 1 << 20;
/// What one transaction has changed is cut when it is larger. Clients take four
/// megabytes unless they are told otherwise.
const TRANSACTION_BYTES_MAX: usize = 3 << 20;

/// A message without changes.
pub fn progress(resolved: Timestamp, started: bool) -> WatchResponse {
    message(Vec::new(), resolved, started)
}

fn message(changes: Vec<kv::Change>, resolved: Timestamp, started: bool) -> WatchResponse {
    WatchResponse {
        header: Some(ResponseHeader {
            timestamp: resolved.raw(),
            ..ResponseHeader::default()
        }),
        changes,
        resolved: resolved.raw(),
        started,
    }
}

/// The messages that tell all changes (in order) up to a place.
pub fn messages(changes: Vec<Change>, reached: &Position) -> Vec<WatchResponse> {
    let mut out = Vec::new();
    // What goes into the next message: transactions that are whole, and the one
    // under way behind them.
    let mut open: Vec<kv::Change> = Vec::new();
    let (mut bytes, mut whole, mut whole_bytes) = (0, 0, 0);
    let mut at = Timestamp::ZERO;
    for change in changes {
        let (timestamp, change) = (change.timestamp, to_proto(change));
        let weight = change.encoded_len() + 8;
        if timestamp > at {
            (whole, whole_bytes) = (open.len(), bytes);
        }
        if whole > 0 && bytes + weight > BYTES {
            let rest = open.split_off(whole);
            // The last of the whole ones is the one before `timestamp`'s.
            let resolved = open
                .last()
                .map_or(at, |last| Timestamp::from_raw(last.version));
            out.push(message(std::mem::replace(&mut open, rest), resolved, false));
            bytes -= whole_bytes;
            (whole, whole_bytes) = (0, 0);
        }
        if !open.is_empty() && bytes + weight > TRANSACTION_BYTES_MAX {
            let part = std::mem::take(&mut open);
            out.push(message(part, timestamp.previous(), false));
            bytes = 0;
        }
        at = timestamp;
        bytes += weight;
        open.push(change);
    }
    if !open.is_empty() {
        out.push(message(open, reached.resolved(), false));
    }
    out
}

fn to_proto(change: Change) -> kv::Change {
    let kind = match change.value {
        Some(_) => Kind::Put,
        None => Kind::Delete,
    };
    let (previous_value, previous_version) = change.previous.unzip();
    kv::Change {
        key: user_key(&change.key),
        value: change.value.unwrap_or_default(),
        version: change.timestamp.raw(),
        kind: kind.into(),
        previous_value,
        previous_version: previous_version.map_or(0, Timestamp::raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn change(timestamp: u64, key: u16, bytes: usize) -> Change {
        let mut stored = vec![b'k'];
        stored.extend_from_slice(&key.to_be_bytes());
        Change {
            key: stored.into(),
            timestamp: Timestamp::from_raw(timestamp),
            value: Some(vec![0; bytes].into()),
            previous: None,
        }
    }

    #[test]
    fn a_change_says_what_it_is() {
        let deleted = Change {
            value: None,
            previous: Some((Bytes::from_static(b"old"), Timestamp::from_raw(3))),
            ..change(7, 1, 0)
        };
        let told = messages(
            vec![deleted, change(9, 1, 2)],
            &Position::whole(Timestamp::from_raw(11)),
        );
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].resolved, told[0].started), (11, false));
        let [gone, put] = &told[0].changes[..] else {
            panic!("{told:?}");
        };
        assert_eq!(
            (gone.kind(), gone.version, &gone.key[..]),
            (Kind::Delete, 7, &[0, 1][..])
        );
        assert_eq!(gone.previous_value.as_deref(), Some(&b"old"[..]));
        assert_eq!(gone.previous_version, 3);
        assert_eq!((put.kind(), put.value.len()), (Kind::Put, 2));
        assert_eq!((&put.previous_value, put.previous_version), (&None, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_transaction_is_told_whole_or_not_resolved(
            sizes in prop::collection::vec((1u64..9, 0usize..700_000), 0..24),
            partial: bool,
        ) {
            let mut sizes = sizes;
            sizes.sort_unstable();
            let all: Vec<Change> = { sizes.iter().enumerate() }
                .map(|(n, (at, bytes))| change(*at, n as u16, *bytes))
                .collect();
            let reached = match all.last().filter(|_| partial) {
                Some(last) => Position { timestamp: last.timestamp, key: Some(last.key.clone()) },
                None => Position::whole(Timestamp::from_raw(20)),
            };
            let told = messages(all.clone(), &reached);
            let mut seen = 0;
            let mut resolved = 0;
            for message in &told {
                prop_assert!(!message.changes.is_empty());
                prop_assert!(message.resolved >= resolved);
                resolved = message.resolved;
                for change in &message.changes {
                    prop_assert_eq!(change.version, all[seen].timestamp.raw());
                    prop_assert_eq!(&change.key[..], &all[seen].key[1..]);
                    seen += 1;
                }
                // What is resolved has been told, and what has not been is not.
                let rest = all.get(seen).map_or(u64::MAX, |next| next.timestamp.raw());
                prop_assert!(resolved < rest);
                let size: usize = message.changes.iter().map(|c| c.encoded_len() + 8).sum();
                prop_assert!(size <= TRANSACTION_BYTES_MAX || message.changes.len() == 1);
                let first = message.changes[0].version;
                let one = message.changes.iter().all(|c| c.version == first);
                prop_assert!(one || size <= BYTES);
            }
            prop_assert_eq!(seen, all.len());
            if !told.is_empty() {
                prop_assert_eq!(resolved, reached.resolved().raw());
            }
        }
    }
}
