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

/// What happens to bytes on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// They wait until the rules change.
    Held,
    /// They go on after so long.
    After(Duration),
}

/// What is done to the network. Links that are not named pass at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Links on which nothing passes.
    pub held: BTreeSet<Link>,
    /// Links on which bytes take so long.
    pub delayed: BTreeMap<Link, Duration>,
}

impl Rules {
    /// Holds these links.
    pub fn hold(links: impl IntoIterator<Item = Link>) -> Self {
        Rules {
            held: links.into_iter().collect(),
            delayed: BTreeMap::new(),
        }
    }

    /// Delays these links.
    pub fn delay(links: impl IntoIterator<Item = Link>, by: Duration) -> Self {
        Rules {
            held: BTreeSet::new(),
            delayed: links.into_iter().map(|link| (link, by)).collect(),
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
            Passage::After(self.delayed.get(&link).copied().unwrap_or_default())
        }
    }
}
