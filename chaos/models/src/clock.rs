//! The fail-over of the time master (rules T2, T3).
//!
//! Two machines take turns at being the master of the cluster's time; a third
//! process only asks. Time is counted in ticks that all counters share (what
//! drift does is left to the simulation in `common/src/clock`, which runs the
//! real code); a sample is valid for [`VALID`] ticks, a master's lease lasts
//! [`LEASE`]. Messages take any number of ticks, a master may stop at any
//! point between reading its clock, checking its lease and answering, and one
//! that leads no more may not know it.
//!
//! The reference time is the line of whoever has first answered exactly from
//! it; every interval must contain it, always.

use stateright::{Model, Property};

/// Ticks for which a sample may be used, from the sending of its probe.
const VALID: i8 = 3;
/// Ticks for which a master answers after a quorum confirmed it.
const LEASE: i8 = 1;
/// Ticks by which the ceiling is raised ahead.
const AHEAD: i8 = 1;
const ELECTIONS: u8 = 2;

/// Masters are 0 and 1; the third one only asks.
const PROCESSES: usize = 3;
const ASKS: usize = 2;

/// The rules; `false` is off.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// So many ticks are looked at: two elections and what follows take nine,
    /// one takes seven.
    pub ticks: i8,
    /// A new master is silent until its predecessor's lease must be over.
    pub silent_for_a_lease: bool,
    /// It follows its predecessor's line until all samples of it are over.
    pub follows_until_samples_end: bool,
    /// Without a sample it waits for that, too.
    pub cold_start_waits: bool,
    /// It then starts above what samples may have allowed, not at its wall clock.
    pub cold_start_above_the_ceiling: bool,
    /// It answers under a lease at all.
    pub answers_under_a_lease: bool,
    /// The lease that it checks is one of the term in which it has read.
    pub reads_and_checks_in_one_term: bool,
    /// A sample is not used for ever.
    pub samples_end: bool,
    /// On its way from one line to another it takes its latest, not its middle.
    pub switches_to_its_latest: bool,
}

impl Clock {
    /// As it is to be.
    pub const SOUND: Self = Self {
        ticks: 9,
        silent_for_a_lease: true,
        follows_until_samples_end: true,
        cold_start_waits: true,
        cold_start_above_the_ceiling: true,
        answers_under_a_lease: true,
        reads_and_checks_in_one_term: true,
        samples_end: true,
        switches_to_its_latest: true,
    };
}

/// Bounds as distances from the tick count: they move along with it by
/// themselves, since no counter drifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    earliest: i8,
    latest: i8,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sample {
    epoch: u8,
    sent: i8,
    bounds: Bounds,
}

/// Where a master is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Until then.
    Silent(i8),
    /// Until then, without a sample.
    Cold(i8),
    /// With a sample of the line that is the time until then.
    Following(Bounds, i8),
    /// On a line: its distance from the tick count.
    Leading(i8),
}

/// Somebody who thinks that it is the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Master {
    /// The election that it won last.
    term: u8,
    epoch: u8,
    stage: Stage,
    /// The beginning of the last round in which a quorum confirmed it.
    confirmed: i8,
}

/// A question and what has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// On its way.
    Sent(i8),
    /// A master (this one, in this term) has read its clock, and is about to
    /// check its lease: when the probe was sent, the epoch, what it read and
    /// when.
    Read(usize, u8, i8, u8, Bounds, i8),
    /// The answer is on its way: epoch, bounds at a tick count.
    Answered(i8, u8, Bounds, i8),
}

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    now: i8,
    leader: usize,
    elections: u8,
    /// Committed.
    epoch: u8,
    ceiling: i8,
    masters: [Option<Master>; 2],
    samples: [Option<Sample>; PROCESSES],
    /// Of the process that only asks.
    probe: Option<Probe>,
    /// The reference time: its distance from the tick count.
    reference: i8,
    /// The latest time that any process has reckoned with: what a cold start
    /// must be above, since somebody may have read or acknowledged there.
    told: i8,
    went_back: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// All counters move on.
    Tick,
    /// The other machine becomes the leader.
    Elect,
    /// The leader hears from a quorum that it leads.
    Confirm,
    /// A master looks whether its stage is over.
    Advance(usize),
    /// The other machine gets a sample of the leader, who has read its clock at
    /// the beginning of the round trip or at its end.
    Follow(bool),
    /// The process asks.
    Ask,
    /// A master reads its clock for it.
    Read(usize),
    /// It checks its lease and answers.
    Answer,
    /// The answer arrives.
    Receive,
}

impl State {
    fn bounds_of(&self, rules: &Clock, process: usize) -> Option<Bounds> {
        let sample = self.samples[process]?;
        let is_valid = !rules.samples_end || self.now - sample.sent <= VALID;
        is_valid.then_some(sample.bounds)
    }
}

impl Master {
    fn bounds(&self) -> Option<Bounds> {
        match self.stage {
            Stage::Silent(_) | Stage::Cold(_) => None,
            Stage::Following(bounds, _) => Some(bounds),
            Stage::Leading(line) => Some(Bounds {
                earliest: line,
                latest: line,
            }),
        }
    }
}

impl Model for Clock {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // The first master has drawn the cluster's first line at once: nobody
        // has a sample.
        let first = Master {
            term: 0,
            epoch: 1,
            stage: Stage::Leading(0),
            confirmed: 0,
        };
        vec![State {
            now: 0,
            leader: 0,
            elections: 0,
            epoch: 1,
            ceiling: AHEAD,
            masters: [Some(first), None],
            samples: [None; PROCESSES],
            probe: None,
            reference: 0,
            told: 0,
            went_back: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.extend([Action::Tick, Action::Elect, Action::Confirm]);
        actions.extend([Action::Advance(0), Action::Advance(1)]);
        actions.extend([Action::Follow(false), Action::Follow(true)]);
        actions.extend([Action::Ask, Action::Answer, Action::Receive]);
        actions.extend([Action::Read(0), Action::Read(1)]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let allowed = match action {
            Action::Tick => {
                next.now += 1;
                self.forget(&mut next);
                next.now <= self.ticks
            }
            Action::Elect => elect(&mut next),
            Action::Confirm => confirm(&mut next),
            Action::Advance(master) => self.advance(&mut next, master),
            Action::Follow(late) => self.follow(&mut next, late),
            Action::Ask => ask(&mut next),
            Action::Read(master) => read(&mut next, master),
            Action::Answer => self.answer(&mut next),
            Action::Receive => receive(&mut next),
        };
        let told = (0..PROCESSES).filter_map(|process| next.bounds_of(self, process));
        let told = told.map(|bounds| bounds.latest + next.now).max();
        next.told = next.told.max(told.unwrap_or(0));
        (allowed && next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "every interval contains the time",
                |rules: &Clock, state: &State| {
                    let right = |process| {
                        state.bounds_of(rules, process).is_none_or(|bounds| {
                            bounds.earliest <= state.reference && state.reference <= bounds.latest
                        })
                    };
                    (0..PROCESSES).all(right)
                },
            ),
            Property::always("the time does not go back", |_, state: &State| {
                !state.went_back
            }),
            Property::sometimes(
                "the second machine leads on a line of its own",
                |_, state: &State| {
                    let leads = |master: Master| matches!(master.stage, Stage::Leading(_));
                    state.elections == 1 && state.epoch == 1 && state.masters[1].is_some_and(leads)
                },
            ),
            Property::sometimes("a cold start ends", |_, state: &State| {
                let leads = |master: Master| matches!(master.stage, Stage::Leading(_));
                state.epoch > 1 && state.masters.iter().flatten().any(|master| leads(*master))
            }),
            Property::sometimes("both believe that they lead", |_, state: &State| {
                state.masters.iter().all(Option::is_some)
            }),
        ]
    }
}

impl Clock {
    /// What nobody will look at any more is the same for all.
    fn forget(&self, state: &mut State) {
        for process in 0..PROCESSES {
            if state.samples[process].is_some() && state.bounds_of(self, process).is_none() {
                state.samples[process] = None;
            }
        }
        let sent = state.probe.map(|probe| match probe {
            Probe::Sent(sent) | Probe::Answered(sent, ..) | Probe::Read(_, _, sent, ..) => sent,
        });
        if sent.is_some_and(|sent| state.now - sent > VALID) {
            state.probe = None;
        }
    }

    /// As if it had asked a tick before, or is told a tick later: it does not
    /// know which.
    fn follow(&self, state: &mut State, late: bool) -> bool {
        let Some(leader) = state.masters[state.leader] else {
            return false;
        };
        let Some(Bounds { earliest, latest }) = leader.bounds() else {
            return false;
        };
        if !self.may_answer(state, state.leader) || latest + state.now > state.ceiling {
            return false;
        }
        if earliest == latest && leader.epoch >= state.epoch {
            draw(state, latest);
        }
        state.samples[1 - state.leader] = Some(Sample {
            epoch: leader.epoch,
            sent: state.now - i8::from(late),
            bounds: Bounds {
                earliest: earliest - i8::from(!late),
                latest: latest + i8::from(late),
            },
        });
        true
    }

    fn advance(&self, state: &mut State, at: usize) -> bool {
        let now = state.now;
        let own = state.bounds_of(self, at);
        let own = own.filter(|_| state.samples[at].is_some_and(|own| own.epoch == state.epoch));
        let leads = state.leader == at;
        let (epoch, ceiling) = (state.epoch, state.ceiling);
        let Some(master) = &mut state.masters[at] else {
            return false;
        };
        match master.stage {
            Stage::Silent(until) if now > until || !self.silent_for_a_lease => {
                master.stage = match own {
                    Some(bounds) => Stage::Following(bounds, now + VALID),
                    None => Stage::Cold(now + VALID),
                };
            }
            Stage::Following(bounds, until) if now > until || !self.follows_until_samples_end => {
                let middle = (bounds.earliest + bounds.latest).div_euclid(2);
                master.stage = Stage::Leading(match self.switches_to_its_latest {
                    true => bounds.latest,
                    false => middle,
                });
            }
            // To begin an epoch takes a commit in the group.
            Stage::Cold(until) if leads && (now > until || !self.cold_start_waits) => {
                let start = match self.cold_start_above_the_ceiling {
                    true => ceiling + VALID + 1,
                    // Wall clocks say anything.
                    false => 0,
                };
                *master = Master {
                    epoch: epoch + 1,
                    stage: Stage::Leading(start - now),
                    ..*master
                };
                state.epoch += 1;
                state.ceiling = start + AHEAD;
                state.went_back |= start <= state.told;
                state.reference = start - now;
            }
            _ => return false,
        }
        true
    }

    fn may_answer(&self, state: &State, at: usize) -> bool {
        let confirmed = state.masters[at].map(|master| master.confirmed);
        confirmed.is_some_and(|confirmed| state.now - confirmed <= LEASE)
            || !self.answers_under_a_lease
    }

    fn answer(&self, state: &mut State) -> bool {
        let Some(Probe::Read(at, term, sent, epoch, bounds, when)) = state.probe else {
            return false;
        };
        let current = state.masters[at].map(|master| master.term);
        if current != Some(term) && self.reads_and_checks_in_one_term {
            return false;
        }
        if !self.may_answer(state, at) {
            return false;
        }
        if bounds.latest + when > state.ceiling {
            return false;
        }
        if bounds.earliest == bounds.latest && epoch >= state.epoch {
            draw(state, bounds.latest);
        }
        state.probe = Some(Probe::Answered(sent, epoch, bounds, when));
        true
    }
}

fn elect(state: &mut State) -> bool {
    if state.elections == ELECTIONS {
        return false;
    }
    state.elections += 1;
    state.leader = 1 - state.leader;
    state.masters[state.leader] = Some(Master {
        term: state.elections,
        epoch: state.epoch,
        stage: Stage::Silent(state.now + LEASE),
        confirmed: state.now,
    });
    true
}

fn confirm(state: &mut State) -> bool {
    let now = state.now;
    let Some(master) = &mut state.masters[state.leader] else {
        return false;
    };
    master.confirmed = now;
    let (epoch, bounds, stage) = (master.epoch, master.bounds(), master.stage);
    if let Some(bounds) = bounds {
        state.ceiling = state.ceiling.max(bounds.latest + now + AHEAD);
        // What it knows exactly is a sample to itself.
        if let Stage::Leading(line) = stage {
            draw(state, line);
            let sent = now;
            state.samples[state.leader] = Some(Sample {
                epoch,
                sent,
                bounds,
            });
        }
    }
    true
}

/// A line becomes the time with the first answer from it.
fn draw(state: &mut State, line: i8) {
    state.went_back |= state.reference > line;
    state.reference = line;
}

fn read(state: &mut State, at: usize) -> bool {
    let Some(Probe::Sent(sent)) = state.probe else {
        return false;
    };
    let Some((master, bounds)) = state.masters[at].and_then(|it| Some((it, it.bounds()?))) else {
        return false;
    };
    let read = Probe::Read(at, master.term, sent, master.epoch, bounds, state.now);
    state.probe = Some(read);
    true
}

fn ask(state: &mut State) -> bool {
    if state.probe.is_some() {
        return false;
    }
    state.probe = Some(Probe::Sent(state.now));
    true
}

fn receive(state: &mut State) -> bool {
    let Some(Probe::Answered(sent, epoch, bounds, when)) = state.probe else {
        return false;
    };
    state.probe = None;
    let known = state.samples[ASKS].map_or(0, |sample| sample.epoch);
    if epoch < known || state.now - sent > VALID {
        return true;
    }
    // At least what it was, plus what has passed since it came; at most what it
    // was, plus what has passed since the question left.
    let bounds = Bounds {
        earliest: bounds.earliest + when - state.now,
        latest: bounds.latest + when - sent,
    };
    state.samples[ASKS] = Some(Sample {
        epoch,
        sent,
        bounds,
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{assert_needed, assert_sound};

    #[test]
    fn every_interval_contains_the_time_in_every_history() {
        assert_sound(Clock {
            ticks: 7,
            ..Clock::SOUND
        });
    }

    #[test]
    fn without_a_rule_some_interval_lies() {
        assert_needed(
            Clock::SOUND,
            &[
                ("the silence", |m| m.silent_for_a_lease = false),
                ("following", |m| m.follows_until_samples_end = false),
                ("the cold wait", |m| m.cold_start_waits = false),
                ("the ceiling", |m| m.cold_start_above_the_ceiling = false),
                ("the lease", |m| m.answers_under_a_lease = false),
                ("one term", |m| m.reads_and_checks_in_one_term = false),
                ("the end of samples", |m| m.samples_end = false),
                ("the latest", |m| m.switches_to_its_latest = false),
            ],
        );
    }
}
