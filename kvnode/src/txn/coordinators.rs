//! Coordinators of commits that were heard of lately: what tells a long commit
//! from a dead coordinator.
//!
//! A transaction over several shards may need longer than the five seconds
//! after which a silent coordinator is taken for dead (a bulk load lays
//! millions of intents). While it works it sends a heartbeat every second to
//! the shard of its anchor, whose leader remembers it here; a push then answers
//! "pending" instead of aborting it. The memory dies with the leadership: a new
//! leader counts the silence from the moment it began to lead, so that a live
//! coordinator has time to be heard.
//!
//! Safety never rests on this: whoever is aborted meets the ABORTED record
//! (PROTOCOLS X3).

use lineradb_common::{Timestamp, TxnId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// After this long without a word a coordinator is taken for dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Silent ones are swept out when so many are remembered, then at every
/// doubling of the live ones.
const SWEEP_MIN: usize = 1024;

/// The coordinators that one leadership has heard of.
pub struct Coordinators {
    began: Timestamp,
    heard: Mutex<Heard>,
}

struct Heard {
    last: HashMap<TxnId, Timestamp>,
    sweep_at: usize,
}

impl Coordinators {
    /// Of a leadership that begins now: nobody was heard of yet.
    pub fn new(now: Timestamp) -> Self {
        Coordinators {
            began: now,
            heard: Mutex::new(Heard {
                last: HashMap::new(),
                sweep_at: SWEEP_MIN,
            }),
        }
    }

    /// A heartbeat came.
    pub fn hear(&self, txn: TxnId, now: Timestamp) {
        let mut heard = self.heard.lock();
        heard.last.insert(txn, now);
        if heard.last.len() >= heard.sweep_at {
            heard.last.retain(|_, last| since(*last, now) < SILENCE_MAX);
            heard.sweep_at = SWEEP_MIN.max(heard.last.len() * 2);
        }
    }

    /// How long nothing was heard of a coordinator, as far as this leadership
    /// can know.
    pub fn silence(&self, txn: TxnId, now: Timestamp) -> Duration {
        let heard = self.heard.lock();
        since(*heard.last.get(&txn).unwrap_or(&self.began), now)
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::from_micros(now.micros().saturating_sub(then.micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_ones_are_swept_out() {
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let coordinators = Coordinators::new(at(0));
        for n in 0..4 * SWEEP_MIN as u64 {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            coordinators.hear(TxnId(id), at(10 * n));
        }
        assert!(coordinators.heard.lock().last.len() <= SWEEP_MIN);
        let last = TxnId([0xff; 16]);
        coordinators.hear(last, at(100_000));
        assert_eq!(coordinators.silence(last, at(100_003)).as_secs(), 3);
        assert_eq!(coordinators.silence(TxnId([1; 16]), at(7)).as_secs(), 7);
    }
}
