//! What the requests of one transaction cost and saw: the latency receipt, and
//! the timestamps that its answer must wait for (T5).

use crate::types::Timing;
use lineradb_common::Timestamp;
use lineradb_proto::shard::v1::Reply;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the requests of one transaction cost and saw.
#[derive(Debug, Default)]
pub struct Receipt {
    observed: AtomicU64,
    timing: Mutex<Timing>,
}

impl Receipt {
    /// The largest commit timestamp examined so far (T5).
    pub fn observed(&self) -> Timestamp {
        Timestamp::from_raw(self.observed.load(Ordering::Acquire))
    }

    /// Notes a commit timestamp learnt otherwise.
    pub fn observe(&self, timestamp: u64) {
        self.observed.fetch_max(timestamp, Ordering::AcqRel);
    }

    /// The sums so far.
    pub fn timing(&self) -> Timing {
        *self.timing.lock()
    }

    /// Changes the sums.
    pub fn add(&self, change: impl FnOnce(&mut Timing)) {
        change(&mut self.timing.lock());
    }

    /// Notes a reply and how long it took to come.
    pub fn note(&self, reply: &Reply, took: Duration) {
        self.observe(reply.observed);
        self.add(|timing| {
            timing.requests += 1;
            timing.request_us += took.as_micros() as u64;
            if let Some(t) = &reply.timing {
                timing.add(t);
            }
        });
    }
}
