//! What the time master answers (rule T3). Pure: readings of its raw counter
//! come in, bounds come out.
//!
//! There is one *line* of reference time: a counter, a point on it, and the
//! time there. A new master may not simply draw a new one, since others still
//! hold samples of the old one, and acknowledge and read by these. It goes
//! through these stages:
//!
//! 1. **Silent**, for the length of a lease: until then its predecessor may
//!    still answer, who cannot know yet that it is one.
//! 2. If it holds a valid sample itself: **following**. It reports bounds that
//!    contain the old line: its own earliest, and as latest the line that it is
//!    going to draw. That line is chosen so that it meets its own latest when
//!    all samples of the predecessor are over.
//! 3. Then it **leads** on that line, and its error is 0.
//! 4. Without a sample: **cold**. It answers nothing until all samples of
//!    earlier masters are over, then draws a line above all that any of them
//!    allowed, in a new epoch.
//!
//! **Why the line is drawn at once in stage 2.** If the master reported its own
//! latest there, which grows by its counter and the drift, then a process with
//! a slower counter, told early, would have a latest that grows less; the time
//! jumps to the master's at the switch, and that process' interval no longer
//! contains it: by up to the drift over the life of a sample, 12 ms. A line
//! with the slope of the master's counter is one that every interval keeps up
//! with (`simulation.rs` has the history).

use super::discipline::{Bounds, Raw, SAMPLE_VALID_US, Sample, at_most};

/// How long a master answers after the beginning of the last round in which a
/// quorum confirmed that it leads, in microseconds of its counter.
pub const MASTER_LEASE_US: u64 = 1_000_000;

/// Reference time by one counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// A reading.
    pub raw: Raw,
    /// The time then, in microseconds.
    pub time: u64,
}

impl Line {
    /// The time at a reading, which may be before `raw`.
    pub fn at(self, raw: Raw) -> u64 {
        match raw >= self.raw {
            true => self.time.saturating_add(raw.since(self.raw)),
            false => self.time.saturating_sub(self.raw.since(raw)),
        }
    }
}

/// Where a master is between its election and an error of 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its predecessor may still answer.
    Silent {
        /// Not from here on.
        until: Raw,
    },
    /// No sample is valid: it waits until that is so everywhere.
    Cold {
        /// It is so from here on.
        until: Raw,
    },
    /// The predecessor's line is still the time.
    Following {
        /// What it knows of that line.
        sample: Sample,
        /// Its own, which is the time from the point `line.raw` on.
        line: Line,
    },
    /// Its line is the time. It is committed, so that a successor who reads the
    /// same counter can go on with it.
    Leading {
        /// The line.
        line: Line,
    },
}

/// A time master's state, from its election until it leads no more.
#[derive(Clone, Copy, Debug)]
pub struct Master {
    epoch: u64,
    stage: Stage,
}

impl Master {
    /// Of one that knows since `now` that it leads. `epoch`: the last one that
    /// was committed.
    pub fn elected(epoch: u64, now: Raw) -> Self {
        let until = now.plus(at_most(MASTER_LEASE_US));
        Master {
            epoch,
            stage: Stage::Silent { until },
        }
    }

    /// Of one that leads on a line that is committed, with a ceiling above it:
    /// `time` at `now`.
    pub fn drawing(epoch: u64, now: Raw, time: u64) -> Self {
        Master {
            epoch,
            stage: Stage::Leading {
                line: Line { raw: now, time },
            },
        }
    }

    /// The epoch that it answers in.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The present stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Goes on to the stage of `now`. `own` is its own sample, if it has a
    /// valid one of the present epoch. A cold start is ended by
    /// [`Master::drawing`], when [`Master::may_draw`] says so.
    pub fn advance(&mut self, now: Raw, own: Option<Sample>) {
        if let Stage::Silent { until } = self.stage
            && now >= until
        {
            let over = now.plus(at_most(SAMPLE_VALID_US));
            let own = own.filter(|own| own.epoch == self.epoch && own.is_valid(now));
            self.stage = match own {
                None => Stage::Cold { until: over },
                Some(sample) => Stage::Following {
                    sample,
                    line: Line {
                        raw: over,
                        time: sample.bounds(over).latest,
                    },
                },
            };
        }
    }

    /// The line that it may lead on from now on, once that is committed; until
    /// then it goes on following, which is right as long as nobody has led.
    pub fn due(&self, now: Raw) -> Option<Line> {
        match self.stage {
            Stage::Following { line, .. } if now >= line.raw => Some(line),
            _ => None,
        }
    }

    /// True once no sample of an earlier master is valid anywhere, in a cold
    /// start.
    pub fn may_draw(&self, now: Raw) -> bool {
        matches!(self.stage, Stage::Cold { until } if now >= until)
    }

    /// What it knows; `None` while it must be silent. May be answered if,
    /// *after* `now` was read, the lease held and the latest is not above the
    /// committed ceiling.
    pub fn bounds(&self, now: Raw) -> Option<Bounds> {
        match self.stage {
            Stage::Silent { .. } | Stage::Cold { .. } => None,
            Stage::Following { sample, line } => Some(Bounds {
                earliest: sample.bounds(now).earliest,
                latest: line.at(now),
            }),
            Stage::Leading { line } => {
                let time = line.at(now);
                Some(Bounds {
                    earliest: time,
                    latest: time,
                })
            }
        }
    }
}

/// Where a cold start begins its line, in microseconds: above everything that
/// anybody may have acknowledged or read by before (rule T3). `ceiling` is what
/// was committed, `slack` the largest error that a process works with.
pub fn cold_start(wall: u64, ceiling: u64, slack: u64) -> u64 {
    match ceiling {
        // The cluster's first start: nobody has a sample.
        0 => wall,
        _ => wall.max(
            ceiling
                .saturating_add(at_most(SAMPLE_VALID_US))
                .saturating_add(slack),
        ),
    }
}
