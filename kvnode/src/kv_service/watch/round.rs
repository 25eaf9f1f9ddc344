//! One round of a watch, without I/O: the pages that the stretches of the watched
//! span have answered so far, and what of them can be told in order.
//!
//! ```text
//!             known up to                    to
//!  stretch 1  ------x---x--------------------|   done
//!  stretch 2  -x---------x-----|                 a page, there is more
//!  stretch 3  ----------------------|            a page, there is more
//!                              ^ all before here is in order and goes out
//! ```
//!
//! A stretch whose page has not gone out yet is not asked for another one, so that
//! a round holds one page of each at most. The one that lags behind has always
//! been emptied: it is asked next, and the round ends.

use lineradb_client::{Change, ChangesPage, Stretch};
use lineradb_common::{Position, Timestamp};
use std::collections::VecDeque;

/// A round under way.
pub struct Round {
    to: Position,
    parts: Vec<Part>,
    later: bool,
}

struct Part {
    stretch: Stretch,
    /// In order.
    changes: VecDeque<Change>,
}

impl Round {
    /// Begins: what is known of the stretches is to be carried on to `to`.
    pub fn new(stretches: Vec<Stretch>, to: Timestamp) -> Self {
        let part = |stretch| Part {
            stretch,
            changes: VecDeque::new(),
        };
        Round {
            to: Position::whole(to),
            parts: stretches.into_iter().map(part).collect(),
            later: false,
        }
    }

    /// Up to where.
    pub fn to(&self) -> Timestamp {
        self.to.timestamp
    }

    fn is_due(&self, part: &Part) -> bool {
        part.changes.is_empty() && part.stretch.after < self.to
    }

    /// The stretches of which the next pages are to be read.
    pub fn due(&self) -> Vec<Stretch> {
        let due = self.parts.iter().filter(|part| self.is_due(part));
        due.map(|part| part.stretch.clone()).collect()
    }

    /// Takes the pages of all stretches that were due, however they were cut.
    pub fn take(&mut self, pages: Vec<ChangesPage>) {
        let mut parts = std::mem::take(&mut self.parts);
        parts.retain(|part| !self.is_due(part));
        for page in pages {
            self.later |= page.later;
            parts.push(Part {
                stretch: page.stretch,
                changes: page.changes.into(),
            });
        }
        parts.sort_by(|a, b| a.stretch.span.start.cmp(&b.stretch.span.start));
        self.parts = parts;
    }

    /// Everything at or before has been read.
    pub fn reached(&self) -> Position {
        let reached = self.parts.iter().map(|part| &part.stretch.after).min();
        reached.unwrap_or(&self.to).clone()
    }

    /// Takes out, in order, what has been read up to where everything has.
    pub fn ready(&mut self) -> Vec<Change> {
        let reached = self.reached();
        let mut ready = Vec::new();
        for part in &mut self.parts {
            let covered = |change: &Change| reached.covers(change.timestamp, &change.key);
            let count = part.changes.partition_point(covered);
            ready.extend(part.changes.drain(..count));
        }
        ready.sort_by(|a, b| (a.timestamp, &a.key).cmp(&(b.timestamp, &b.key)));
        ready
    }

    /// Whether all has been read, and taken out.
    pub fn is_done(&self) -> bool {
        let done = |part: &Part| part.changes.is_empty() && part.stretch.after >= self.to;
        self.parts.iter().all(done)
    }

    /// The stretches for the next round, and whether there is something for it
    /// already.
    pub fn finish(self) -> (Vec<Stretch>, bool) {
        let stretches = self.parts.into_iter().map(|part| part.stretch);
        (stretches.collect(), self.later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lineradb_client::Span;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Place = (u64, Vec<u8>);

    fn change((timestamp, key): &Place) -> Change {
        Change {
            key: Bytes::from(key.clone()),
            timestamp: Timestamp::from_raw(*timestamp),
            value: Some(Bytes::new()),
            previous: None,
        }
    }

    /// The next page of a stretch, of `size` changes at most, as a leader answers.
    fn page(all: &BTreeSet<Place>, stretch: Stretch, to: u64, size: usize) -> ChangesPage {
        let to = Timestamp::from_raw(to);
        let mut changes: Vec<Change> = all.iter().map(change).collect();
        changes.retain(|c| {
            let known = stretch.after.covers(c.timestamp, &c.key);
            !known && c.timestamp <= to && stretch.span.contains(&c.key)
        });
        let mut after = Position::whole(to);
        if changes.len() > size {
            let cut = changes[size].timestamp;
            changes.truncate(size);
            if changes[0].timestamp < cut {
                changes.retain(|c| c.timestamp < cut);
                after = Position::whole(cut.previous());
            } else {
                after = Position {
                    timestamp: cut,
                    key: Some(changes[size - 1].key.clone()),
                };
            }
        }
        ChangesPage {
            stretch: Stretch { after, ..stretch },
            changes,
            later: false,
        }
    }

    proptest! {
        /// Stretches that are cut under way, pages of any size: each change comes
        /// once, in order, and never before all that belongs before it.
        #[test]
        fn a_round_tells_each_change_once_and_in_order(
            all in prop::collection::btree_set((1u64..9, prop::collection::vec(0u8..6, 1..3)), 0..60),
            from in 0u64..6,
            to in 6u64..11,
            borders in prop::collection::vec(0u8..6, 0..4),
            sizes in prop::collection::vec(1usize..5, 1..6),
        ) {
            let all: BTreeSet<Place> = all;
            let mut round = Round::new(
                vec![Stretch {
                    span: Span::default(),
                    after: Position::whole(Timestamp::from_raw(from)),
                    recent: None,
                }],
                Timestamp::from_raw(to),
            );
            let mut borders = borders.into_iter();
            let mut sizes = sizes.into_iter().cycle();
            let mut told: Vec<Place> = Vec::new();
            let mut turns = 0;
            while !round.is_done() {
                turns += 1;
                prop_assert!(turns < 200, "it goes on for ever");
                let due = round.due();
                prop_assert!(!due.is_empty());
                let mut pages = Vec::new();
                for stretch in due {
                    let border = borders.next().map(|b| Bytes::from(vec![b]));
                    let inside = border.filter(|b| stretch.span.contains(b) && *b > stretch.span.start);
                    let mut pieces = vec![stretch.clone()];
                    if let Some(border) = inside {
                        let piece = |span| Stretch { span, ..stretch.clone() };
                        pieces = vec![
                            piece(Span::new(border.clone(), stretch.span.end.clone())),
                            piece(Span::new(stretch.span.start.clone(), border)),
                        ];
                    }
                    for piece in pieces {
                        pages.push(page(&all, piece, to, sizes.next().unwrap()));
                    }
                }
                round.take(pages);
                let reached = round.reached();
                let ready = round.ready();
                told.extend(ready.into_iter().map(|c| (c.timestamp.raw(), c.key.to_vec())));
                let before = all.iter().filter(|(t, key)| {
                    *t > from && reached.covers(Timestamp::from_raw(*t), key)
                });
                prop_assert_eq!(told.len(), before.count());
            }
            let expected: Vec<Place> =
                all.into_iter().filter(|(t, _)| *t > from && *t <= to).collect();
            prop_assert_eq!(told, expected);
            let (stretches, _) = round.finish();
            prop_assert!(stretches.iter().all(|s| s.after == Position::whole(Timestamp::from_raw(to))));
        }
    }
}
