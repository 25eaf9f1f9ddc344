//! Clocks compared (rule T1): every frame between a coordinator and a node carries
//! the sender's earliest time. It was sent before it arrived, so it must not lie above
//! the receiver's latest. If it does, one of the two clocks is wrong, whatever their
//! samples said: a counter that stood still with its machine, a time master that
//! answered what it should not.
//!
//! ```text
//!   receiver's interval      [e ... l]
//!   sender's                              [e' ... l']     e' > l: cannot both be right
//!   the time master, asked now       [E ........ L]
//!        e' <= L: it does not contradict the sender: we are wrong, drop all, ask anew
//!        e' >  L: the sender is wrong: its frames are not compared for a while
//! ```
//!
//! The rule says: drop all. Done at sight, one process whose clock is ahead takes
//! the time from every process that it talks to, and that is what T4 forbids (a clock's
//! fault must not spread). So the time master is asked first, at once, while the frame
//! waits. A process that is told that it is wrong has another
//! [generation](super::Clock::generation): transactions that began before are not
//! answered, since what they read may be older than what others were told. A process
//! that is behind notices in the first frame that it receives, be it request or reply:
//! so only the earliest time is carried.

use super::{Clock, Culprit};
use crate::Timestamp;
use std::time::{Duration, Instant};

/// After the master has said that a peer is wrong, that is not asked again for so long.
const DISTRUST: Duration = Duration::from_secs(60);

/// The clock of whoever is at the other end of a stream.
#[derive(Debug, Default)]
pub struct Peer {
    distrusted: Option<Instant>,
}

impl Peer {
    /// A frame has arrived that left when the peer's earliest time was `theirs` (0: it
    /// had none). Returns when it may be used; answers true when the peer has just been
    /// found wrong.
    pub async fn met(&mut self, clock: &dyn Clock, theirs: Timestamp) -> bool {
        let Some(comparing) = clock.compare(theirs) else {
            return false;
        };
        if self.distrusted.is_some_and(|at| at.elapsed() < DISTRUST) {
            return false;
        }
        let they = comparing.await == Culprit::They;
        self.distrusted = they.then(Instant::now);
        they
    }
}

#[cfg(test)]
mod tests {
    use super::super::discipline::{Bounds, Raw, Sample};
    use super::super::{Clock, ClusterClock};
    use super::*;
    use crate::spawn;
    use std::sync::Arc;

    const SECOND: u64 = 1_000_000;

    /// The master says that it is `time`, give or take a millisecond.
    fn tells(time: u64) -> Sample {
        let now = Raw::now();
        Sample {
            epoch: 1,
            sent: now,
            received: now,
            at_master: Bounds {
                earliest: time - 1_000,
                latest: time + 1_000,
            },
            shared: None,
        }
    }

    /// A clock that was told `told`, while the time is `truth`: asked anew, the master
    /// says that.
    fn clock(told: u64, truth: u64) -> Arc<ClusterClock> {
        let clock = ClusterClock::unsynchronised();
        clock.observe(tells(told));
        let start = Raw::now();
        let asked = Arc::downgrade(&clock);
        spawn::task("time-master", async move {
            while let Some(clock) = asked.upgrade() {
                clock.doubted().await;
                clock.observe(tells(truth + Raw::now().since(start)));
            }
        });
        clock
    }

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[tokio::test]
    async fn what_fits_costs_nothing() {
        let clock = clock(100 * SECOND, 100 * SECOND);
        let mut peer = Peer::default();
        for theirs in [0, 50 * SECOND, 100 * SECOND, 100 * SECOND + 900] {
            assert!(clock.compare(at(theirs)).is_none());
            assert!(!peer.met(&*clock, at(theirs)).await);
        }
        assert_eq!(clock.generation(), 0);
        // Whoever has no time has nothing to compare.
        let none = ClusterClock::unsynchronised();
        assert!(none.compare(at(SECOND)).is_none());
    }

    /// One bad clock does not take the time from the others.
    #[tokio::test]
    async fn a_peer_that_is_ahead_is_found_out() {
        let clock = clock(100 * SECOND, 100 * SECOND);
        let mut peer = Peer::default();
        assert!(peer.met(&*clock, at(130 * SECOND)).await);
        assert_eq!(clock.generation(), 0);
        assert!(clock.now().is_ok());
        // And not asked about with each frame.
        assert!(!peer.met(&*clock, at(131 * SECOND)).await);
    }

    /// It reads what is old and does not know it, until somebody talks to it.
    #[tokio::test]
    async fn who_is_behind_drops_what_it_knows() {
        let clock = clock(100 * SECOND, 130 * SECOND);
        let mut peer = Peer::default();
        assert!(!peer.met(&*clock, at(130 * SECOND)).await);
        assert_eq!(clock.generation(), 1);
        // Asked once more, it knows the time.
        while clock.now().is_err() {
            tokio::task::yield_now().await;
        }
        assert!(clock.now().unwrap().earliest >= at(130 * SECOND - 1_000));
        assert!(!peer.met(&*clock, at(130 * SECOND)).await);
        assert_eq!(clock.generation(), 1);
    }

    #[tokio::test]
    async fn without_the_master_nobody_is_right() {
        let clock = ClusterClock::unsynchronised();
        clock.observe(tells(100 * SECOND));
        let mut peer = Peer::default();
        assert!(!peer.met(&*clock, at(130 * SECOND)).await);
        assert_eq!(clock.generation(), 1);
        assert!(clock.now().is_err());
    }
}
