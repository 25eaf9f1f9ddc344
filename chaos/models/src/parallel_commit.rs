//! Parallel commit, its recovery, and a change of leaders in between (rules X0,
//! X3, L3, L5, C2; the protocol is CockroachDB's, SIGMOD 2020, section 3).
//!
//! One transaction writes keys A and B, on a shard each; its record lies on the
//! first shard. It sends both intents and the record in state STAGING at once,
//! all with its timestamp. It is committed as soon as all three have landed at
//! or below the staged timestamp, whoever may know of it. A key that was read
//! later than that lets an intent land above only; then the transaction stages
//! again, at the highest timestamp. As long as it has acknowledged nothing it may
//! also give up.
//!
//! A reader at a fixed timestamp reads both keys. Meets it an intent, then it
//! may think at any time that the coordinator is dead, and recovers: without a
//! record it writes ABORTED; with a STAGING one it looks for each declared
//! write, where it finds none prevents that it lands at that timestamp, and
//! puts down a verdict if the record is still what it read.
//!
//! A write is decided (*evaluated*) by a leader and then replicated, and a
//! shard may change its leader in between: what was proposed is in the log or
//! lost, and the memory of who read what is gone.

use stateright::{Model, Property};

/// Timestamps: the transaction begins at 1, the reader reads at 2.
type Time = u8;

const BEGIN: Time = 1;
const READ: Time = 2;

/// A and B.
const KEYS: usize = 2;

/// The rules; `false` is off.
#[derive(Clone, Copy, Debug)]
pub struct ParallelCommit {
    /// L5: a leader remembers what was read, and no write lands below.
    pub reads_are_remembered: bool,
    /// L3: a new leader takes for granted that everything was read until now.
    pub mark_of_a_new_leader: bool,
    /// C2: what a leader has decided enters the log in its term only.
    pub proposals_end_with_their_term: bool,
    /// X3: recovery reads a key whose write it misses, so that the write can
    /// land only above.
    pub recovery_reads_what_is_missing: bool,
    /// X3: a verdict is put down only if the record is what was read.
    pub verdict_compares: bool,
    /// X3: without a record, recovery writes ABORTED before it says so.
    pub absence_is_written: bool,
    /// X3: an ABORTED record that goes leaves behind that the attempt is refused.
    pub late_attempts_are_refused: bool,
    /// A write that was pushed above the staged timestamp voids the commit.
    pub pushed_writes_stage_again: bool,
    /// A coordinator gives up, which aborts what it has staged without a look, only
    /// as long as it has acknowledged nothing.
    pub gives_up_before_it_acknowledges: bool,
}

impl ParallelCommit {
    /// As it is to be.
    pub const SOUND: Self = Self {
        reads_are_remembered: true,
        mark_of_a_new_leader: true,
        proposals_end_with_their_term: true,
        recovery_reads_what_is_missing: true,
        verdict_compares: true,
        absence_is_written: true,
        late_attempts_are_refused: true,
        pushed_writes_stage_again: true,
        gives_up_before_it_acknowledges: true,
    };
}

/// The transaction's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Record {
    /// None.
    Absent,
    /// Committed if all writes are there at or below this.
    Staging(Time),
    /// For good.
    Committed(Time),
    /// For good.
    Aborted,
    /// An ABORTED one was collected; attempts of that age are refused.
    Refused,
}

/// What a key has of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A write whose fate the record says.
    Intent(Time),
    /// A committed version.
    Version(Time),
}

/// A key, with the leader of its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    held: Held,
    /// The leader's memory: nothing at or below may be written any more.
    read_at: Time,
    /// Decided by a leader and not applied: where it lands. Until then the key
    /// is latched at that leader.
    proposed: Option<Time>,
    /// The proposal is of a leader that leads no more.
    of_former_leader: bool,
    leader_changed: bool,
}

/// The coordinator's and the network's view of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sent {
    /// Not there yet, or never.
    InFlight,
    /// The leader has it.
    Arrived,
    /// Landed, and the answer is on its way.
    Landed(Time),
    /// The coordinator knows where it landed.
    Known(Time),
}

/// A recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// None is under way.
    Idle,
    /// It read a record with this timestamp, and has looked for these writes.
    Looking {
        /// As read.
        staged: Time,
        /// Whether each is there.
        found: [Option<bool>; KEYS],
    },
}

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    keys: [Key; KEYS],
    record: Record,
    writes: [Sent; KEYS],
    /// Staging messages that are under way.
    staging_sent: Vec<Time>,
    /// Answers to them under way.
    staging_landed: Vec<Time>,
    /// The highest timestamp at which the coordinator has staged.
    staged: Time,
    /// The highest at which it knows that the record landed.
    staged_known: Time,
    acknowledged: Option<Time>,
    gave_up: bool,
    recovery: Recovery,
    /// What the reader saw of each key: whether the transaction's write.
    saw: [Option<bool>; KEYS],
    /// Whether the client already knew of the commit by then.
    knew: [bool; KEYS],
    /// Somebody was told that the transaction is aborted.
    told_aborted: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A write arrives at the leader, which decides where it lands.
    Evaluate(usize),
    /// What was decided is applied.
    Apply(usize),
    /// The shard gets another leader; what was proposed is in the log or not.
    ChangeLeader(usize, bool),
    /// The coordinator learns where a write landed.
    WriteAnswer(usize),
    /// A STAGING record arrives.
    Stage(Time),
    /// The coordinator learns that it landed.
    StageAnswer(Time),
    /// The coordinator stages again, as a write was pushed.
    StageAgain,
    /// All has landed: the client is told.
    Acknowledge,
    /// The coordinator's explicit commit arrives.
    Commit,
    /// The coordinator calls its commit off, if that is not committed yet.
    GiveUp,
    /// The reader reads a key.
    Read(usize),
    /// The reader takes the coordinator for dead, and reads the record.
    Recover,
    /// It looks for a declared write.
    Look(usize),
    /// It puts down its verdict.
    Decide,
    /// Somebody carries the record's fate out at a key.
    Resolve(usize),
    /// The record is collected.
    Collect,
}

impl State {
    fn committed_at(&self) -> Option<Time> {
        match self.record {
            Record::Committed(at) => Some(at),
            _ => None,
        }
    }

    fn is_blocked(&self, key: usize) -> bool {
        let latched = self.keys[key].proposed.is_some() && !self.keys[key].of_former_leader;
        latched || matches!(self.keys[key].held, Held::Intent(at) if at <= READ)
    }
}

impl Model for ParallelCommit {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let key = Key {
            held: Held::Nothing,
            read_at: 0,
            proposed: None,
            of_former_leader: false,
            leader_changed: false,
        };
        vec![State {
            keys: [key; KEYS],
            record: Record::Absent,
            writes: [Sent::InFlight; KEYS],
            staging_sent: vec![BEGIN],
            staging_landed: Vec::new(),
            staged: BEGIN,
            staged_known: 0,
            acknowledged: None,
            gave_up: false,
            recovery: Recovery::Idle,
            saw: [None; KEYS],
            knew: [false; KEYS],
            told_aborted: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for key in 0..KEYS {
            actions.extend([
                Action::Evaluate(key),
                Action::Apply(key),
                Action::ChangeLeader(key, true),
                Action::ChangeLeader(key, false),
                Action::WriteAnswer(key),
                Action::Read(key),
                Action::Look(key),
                Action::Resolve(key),
            ]);
        }
        actions.extend(state.staging_sent.iter().map(|at| Action::Stage(*at)));
        actions.extend(
            state
                .staging_landed
                .iter()
                .map(|at| Action::StageAnswer(*at)),
        );
        actions.extend([
            Action::StageAgain,
            Action::Acknowledge,
            Action::Commit,
            Action::GiveUp,
            Action::Recover,
            Action::Decide,
            Action::Collect,
        ]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let allowed = match action {
            Action::Evaluate(key) => self.evaluate(&mut next, key),
            Action::Apply(key) => self.apply(&mut next, key),
            Action::ChangeLeader(key, in_log) => self.change_leader(&mut next, key, in_log),
            Action::WriteAnswer(key) => write_answer(&mut next, key),
            Action::Stage(at) => self.stage(&mut next, at),
            Action::StageAnswer(at) => {
                next.staging_landed.retain(|landed| *landed != at);
                next.staged_known = next.staged_known.max(at);
                true
            }
            Action::StageAgain => self.stage_again(&mut next),
            Action::Acknowledge => self.acknowledge(&mut next),
            Action::Commit => commit(&mut next),
            Action::GiveUp => self.give_up(&mut next),
            Action::Read(key) => self.read(&mut next, key),
            Action::Recover => self.recover(&mut next),
            Action::Look(key) => self.look(&mut next, key),
            Action::Decide => self.decide(&mut next),
            Action::Resolve(key) => resolve(&mut next, key),
            Action::Collect => self.collect(&mut next),
        };
        (allowed && next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "an acknowledged transaction is not aborted",
                |_, state: &State| {
                    let aborted = matches!(state.record, Record::Aborted | Record::Refused);
                    state.acknowledged.is_none() || !(aborted || state.told_aborted)
                },
            ),
            Property::always(
                "a transaction is committed or aborted, not both",
                |_, state: &State| {
                    let version = |key: &Key| matches!(key.held, Held::Version(_));
                    !(state.told_aborted
                        && (state.committed_at().is_some() || state.keys.iter().any(version)))
                },
            ),
            Property::always(
                "it is acknowledged at the timestamp at which it commits",
                |_, state: &State| match (state.acknowledged, state.committed_at()) {
                    (Some(acknowledged), Some(committed)) => acknowledged == committed,
                    _ => true,
                },
            ),
            Property::always("both writes have one timestamp", |_, state: &State| match (
                state.keys[0].held,
                state.keys[1].held,
            ) {
                (Held::Version(a), Held::Version(b)) => a == b,
                _ => true,
            }),
            Property::always(
                "a reader sees all of it or nothing",
                |_, state: &State| match state.saw {
                    [Some(a), Some(b)] => a == b,
                    _ => true,
                },
            ),
            Property::always(
                "nothing commits below a read that has not seen it",
                |_, state: &State| {
                    let unseen = state.saw.contains(&Some(false));
                    let committed = state.committed_at().or(state.acknowledged);
                    !(unseen && committed.is_some_and(|at| at <= READ))
                },
            ),
            Property::always(
                "who reads after the acknowledgement sees it",
                |_, state: &State| {
                    let missed =
                        (0..KEYS).any(|key| state.knew[key] && state.saw[key] == Some(false));
                    !(missed && state.acknowledged.is_some_and(|at| at <= READ))
                },
            ),
            Property::sometimes("it commits at its own timestamp", |_, state: &State| {
                state.acknowledged == Some(BEGIN)
            }),
            Property::sometimes("it commits above the reader", |_, state: &State| {
                state.acknowledged.is_some_and(|at| at > READ)
            }),
            Property::sometimes("recovery aborts it", |_, state: &State| {
                state.told_aborted && state.record == Record::Aborted
            }),
            Property::sometimes("recovery commits it", |_, state: &State| {
                state.acknowledged.is_none() && state.committed_at().is_some()
            }),
            Property::sometimes("the reader sees all", |_, state: &State| {
                state.saw == [Some(true); KEYS]
            }),
            Property::sometimes("the reader sees nothing", |_, state: &State| {
                state.saw == [Some(false); KEYS]
            }),
        ]
    }
}

impl ParallelCommit {
    fn evaluate(&self, state: &mut State, at: usize) -> bool {
        let key = &mut state.keys[at];
        if state.writes[at] != Sent::InFlight || key.proposed.is_some() {
            return false;
        }
        state.writes[at] = Sent::Arrived;
        // L5, X0: above everything that was read.
        key.proposed = Some(match self.reads_are_remembered {
            true => BEGIN.max(key.read_at + 1),
            false => BEGIN,
        });
        true
    }

    fn apply(&self, state: &mut State, at: usize) -> bool {
        let key = &mut state.keys[at];
        let Some(lands) = key.proposed else {
            return false;
        };
        key.proposed = None;
        if key.of_former_leader && self.proposals_end_with_their_term {
            return false;
        }
        key.of_former_leader = false;
        key.held = Held::Intent(lands);
        state.writes[at] = Sent::Landed(lands);
        true
    }

    fn change_leader(&self, state: &mut State, at: usize, in_log: bool) -> bool {
        if state.keys[at].leader_changed {
            return false;
        }
        if state.keys[at].proposed.is_some() {
            match in_log {
                true => {
                    self.apply(state, at);
                }
                // C2: it is gone, and its writer never hears of it.
                false if self.proposals_end_with_their_term => state.keys[at].proposed = None,
                false => state.keys[at].of_former_leader = true,
            }
        } else if in_log {
            return false;
        }
        let key = &mut state.keys[at];
        key.leader_changed = true;
        // L3: the present is above every read so far.
        key.read_at = match self.mark_of_a_new_leader {
            true => key.read_at.max(READ),
            false => 0,
        };
        true
    }

    fn stage(&self, state: &mut State, at: Time) -> bool {
        state.staging_sent.retain(|sent| *sent != at);
        match state.record {
            Record::Absent => state.record = Record::Staging(at),
            // The same attempt, staged again; a late message changes nothing.
            Record::Staging(before) if before < at => state.record = Record::Staging(at),
            Record::Staging(_) | Record::Committed(_) => {}
            Record::Aborted | Record::Refused => return true,
        }
        state.staging_landed.push(at);
        state.staging_landed.sort_unstable();
        true
    }

    fn stage_again(&self, state: &mut State) -> bool {
        let [Sent::Known(a), Sent::Known(b)] = state.writes else {
            return false;
        };
        if !self.pushed_writes_stage_again || state.gave_up || a.max(b) <= state.staged {
            return false;
        }
        state.staged = a.max(b);
        state.staging_sent.push(state.staged);
        true
    }

    fn acknowledge(&self, state: &mut State) -> bool {
        let all = state.writes.iter().all(|write| match write {
            Sent::Known(at) => *at <= state.staged || !self.pushed_writes_stage_again,
            _ => false,
        });
        let over = state.acknowledged.is_some() || state.gave_up;
        if !all || state.staged_known != state.staged || over {
            return false;
        }
        state.acknowledged = Some(state.staged);
        true
    }

    fn give_up(&self, state: &mut State) -> bool {
        let told = state.acknowledged.is_some() && self.gives_up_before_it_acknowledges;
        if told || !matches!(state.record, Record::Absent | Record::Staging(_)) {
            return false;
        }
        state.gave_up = true;
        state.record = Record::Aborted;
        state.told_aborted = true;
        true
    }

    fn read(&self, state: &mut State, at: usize) -> bool {
        if state.saw[at].is_some() || state.is_blocked(at) {
            return false;
        }
        state.knew[at] = state.acknowledged.is_some();
        let key = &mut state.keys[at];
        key.read_at = key.read_at.max(READ);
        state.saw[at] = Some(matches!(key.held, Held::Version(version) if version <= READ));
        true
    }

    fn recover(&self, state: &mut State) -> bool {
        let met = |key: &Key| matches!(key.held, Held::Intent(_));
        if state.recovery != Recovery::Idle || !state.keys.iter().any(met) {
            return false;
        }
        match state.record {
            Record::Absent => {
                state.told_aborted = true;
                if self.absence_is_written {
                    state.record = Record::Aborted;
                } else {
                    abort_intents(state);
                }
            }
            Record::Staging(staged) => {
                let found = [None; KEYS];
                state.recovery = Recovery::Looking { staged, found };
            }
            Record::Committed(_) => return false,
            Record::Aborted | Record::Refused => state.told_aborted = true,
        }
        true
    }

    fn look(&self, state: &mut State, at: usize) -> bool {
        let key = &mut state.keys[at];
        let latched = key.proposed.is_some() && !key.of_former_leader;
        let Recovery::Looking { staged, found } = &mut state.recovery else {
            return false;
        };
        if found[at].is_some() || latched {
            return false;
        }
        let there = match key.held {
            Held::Intent(lies) | Held::Version(lies) => lies <= *staged,
            Held::Nothing => false,
        };
        if !there && self.recovery_reads_what_is_missing {
            key.read_at = key.read_at.max(*staged);
        }
        found[at] = Some(there);
        true
    }

    fn decide(&self, state: &mut State) -> bool {
        let Recovery::Looking { staged, found } = state.recovery else {
            return false;
        };
        let missing = found.contains(&Some(false));
        if !missing && found.contains(&None) {
            return false;
        }
        state.recovery = Recovery::Idle;
        let unchanged = state.record == Record::Staging(staged);
        let open = matches!(state.record, Record::Staging(_));
        if unchanged || (open && !self.verdict_compares) {
            state.record = match missing {
                true => Record::Aborted,
                false => Record::Committed(staged),
            };
            state.told_aborted |= missing;
        }
        true
    }

    fn collect(&self, state: &mut State) -> bool {
        let intents = state
            .keys
            .iter()
            .any(|key| matches!(key.held, Held::Intent(_)));
        if state.record != Record::Aborted || intents {
            return false;
        }
        state.record = match self.late_attempts_are_refused {
            true => Record::Refused,
            false => Record::Absent,
        };
        true
    }
}

fn write_answer(state: &mut State, at: usize) -> bool {
    let Sent::Landed(lands) = state.writes[at] else {
        return false;
    };
    state.writes[at] = Sent::Known(lands);
    true
}

fn commit(state: &mut State) -> bool {
    match (state.acknowledged, state.record) {
        (Some(at), Record::Staging(_)) => {
            state.record = Record::Committed(at);
            true
        }
        _ => false,
    }
}

fn resolve(state: &mut State, at: usize) -> bool {
    let key = &mut state.keys[at];
    let Held::Intent(_) = key.held else {
        return false;
    };
    key.held = match state.record {
        // All writes of a transaction get its timestamp.
        Record::Committed(committed) => Held::Version(committed),
        Record::Aborted | Record::Refused => Held::Nothing,
        Record::Absent | Record::Staging(_) => return false,
    };
    true
}

fn abort_intents(state: &mut State) {
    for key in &mut state.keys {
        if let Held::Intent(_) = key.held {
            key.held = Held::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{assert_needed, assert_sound};

    #[test]
    fn no_history_breaks_a_promise() {
        assert_sound(ParallelCommit::SOUND);
    }

    /// Each rule is there for something.
    #[test]
    fn without_a_rule_a_promise_is_broken() {
        assert_needed(
            ParallelCommit::SOUND,
            &[
                ("L5", |m| m.reads_are_remembered = false),
                ("L3", |m| m.mark_of_a_new_leader = false),
                ("C2", |m| m.proposals_end_with_their_term = false),
                ("X3, reads", |m| m.recovery_reads_what_is_missing = false),
                ("X3, compare", |m| m.verdict_compares = false),
                ("X3, absence", |m| m.absence_is_written = false),
                ("X3, late", |m| m.late_attempts_are_refused = false),
                ("X0, pushed", |m| m.pushed_writes_stage_again = false),
                ("X1, gives up", |m| {
                    m.gives_up_before_it_acknowledges = false
                }),
            ],
        );
    }
}
