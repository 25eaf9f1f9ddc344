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

use lineradb_common::TxnId;
use lineradb_common::clock::Stopwatch;
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
    began: Stopwatch,
    heard: Mutex<Heard>,
}

struct Heard {
    last: HashMap<TxnId, Stopwatch>,
    sweep_at: usize,
}

impl Default for Coordinators {
    fn default() -> Self {
        Coordinators {
            began: Stopwatch::start(),
            heard: Mutex::new(Heard {
                last: HashMap::new(),
                sweep_at: SWEEP_MIN,
            }),
        }
    }
}

impl Coordinators {
    /// A heartbeat came.
    pub fn hear(&self, txn: TxnId) {
        let mut heard = self.heard.lock();
        heard.last.insert(txn, Stopwatch::start());
        if heard.last.len() >= heard.sweep_at {
            heard.last.retain(|_, last| last.elapsed() < SILENCE_MAX);
            heard.sweep_at = SWEEP_MIN.max(heard.last.len() * 2);
        }
    }

    /// How long nothing was heard of a coordinator, as far as this leadership
    /// can know.
    pub fn silence(&self, txn: TxnId) -> Duration {
        let heard = self.heard.lock();
        heard.last.get(&txn).unwrap_or(&self.began).elapsed()
    }
}
