//! Which links pass, which are held, which are slow. Plain data.

use super::Peer;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What one service sends to another: an ordered pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// The sender.
    pub from: Peer,
    /// The receiver.
    pub to: Peer,
}

impl Link {
    /// From one service to another.
    pub fn new(from: Peer, to: Peer) -> Self {
        Link { from, to }
    }

    /// The other direction.
    pub fn back(self) -> Link {
        Link::new(self.to, self.from)
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

/// A link that is worse than others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    /// Bytes take so long.
    pub delay: Duration,
    /// Of a thousand chunks of bytes so many are lost, and sent again after a timeout, as
    /// TCP would, while those behind them wait.
    pub lost_per_mille: u32,
    /// No more bytes pass in a second, on each connection.
    pub bytes_per_second: Option<u32>,
}

/// What TCP waits at least before it sends again (Linux), doubled each time.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// Nor is anything lost more often than that.
const LOST_TIMES_MAX: u32 = 4;

impl Quality {
    /// How long so many bytes take; `chance` draws a number below the given one.
    pub(super) fn takes(&self, bytes: usize, mut chance: impl FnMut(u64) -> u64) -> Duration {
        let transfer = self.bytes_per_second.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 / f64::from(rate.max(1)))
        });
        let mut timeouts = Duration::ZERO;
        for time in 0..LOST_TIMES_MAX {
            if chance(1000) >= u64::from(self.lost_per_mille) {
                break;
            }
            timeouts += RETRANSMISSION * (1 << time);
        }
        self.delay + transfer + timeouts
    }
}

/// What happens to bytes on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// They wait until the rules change.
    Held,
    /// They go on as the link allows.
    Open(Quality),
}

/// What is done to the network. Links that are not named pass at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Links on which nothing passes.
    pub held: BTreeSet<Link>,
    /// Links that are not as good as others.
    pub impaired: BTreeMap<Link, Quality>,
}

impl Rules {
    /// Holds these links.
    pub fn hold(links: impl IntoIterator<Item = Link>) -> Self {
        Rules {
            held: links.into_iter().collect(),
            impaired: BTreeMap::new(),
        }
    }

    /// Makes these links as bad as that.
    pub fn impair(links: impl IntoIterator<Item = Link>, quality: Quality) -> Self {
        Rules {
            held: BTreeSet::new(),
            impaired: links.into_iter().map(|link| (link, quality)).collect(),
        }
    }

    /// True when something may be sent and answered.
    pub(super) fn connects(&self, link: Link) -> bool {
        !self.held.contains(&link) && !self.held.contains(&link.back())
    }

    pub(super) fn passage(&self, link: Link) -> Passage {
        if self.held.contains(&link) {
            Passage::Held
        } else {
            Passage::Open(self.impaired.get(&link).copied().unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_link_takes_its_time() {
        let good = Quality::default();
        assert_eq!(good.takes(1 << 20, |_| 0), Duration::ZERO);
        let slow = Quality {
            delay: Duration::from_millis(5),
            bytes_per_second: Some(1_000),
            ..good
        };
        assert_eq!(slow.takes(500, |_| 0), Duration::from_millis(505));
        let lossy = Quality {
            lost_per_mille: 20,
            ..good
        };
        assert_eq!(lossy.takes(1, |_| 20), Duration::ZERO);
        // Lost, lost again, and then not.
        let mut draws = [19, 0, 500].into_iter();
        let twice = lossy.takes(1, |_| draws.next().unwrap());
        assert_eq!(twice, Duration::from_millis(600));
        assert_eq!(lossy.takes(1, |_| 0), Duration::from_millis(3_000));
    }
}
