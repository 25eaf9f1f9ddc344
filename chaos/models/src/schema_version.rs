//! A schema version against a writer that does not know it yet (rules S1, S3,
//! S5, L5).
//!
//! `CREATE INDEX` writes the table's version at a time *t*: from then on writers
//! maintain the index. Then it reads the table as of *t* and fills the index
//! with the rows that it finds. A transaction plans an insert by the version
//! that it sees, and writes a row on one shard and something else on another;
//! either write may be pushed up, and it commits at the highest of them. The
//! promise: in the end the index has the row.

use stateright::{Model, Property};

/// Timestamps.
type Time = u8;

/// Reads and plans of the first attempt.
const FIRST: Time = 1;
/// Of the second one, which comes after everything else.
const SECOND: Time = 9;
/// The least that the version is written at.
const CHANGE: Time = 3;
/// Where a reader pushes the second write.
const PUSHED: Time = 5;

/// The rules; `false` is off.
#[derive(Clone, Copy, Debug)]
pub struct SchemaVersion {
    /// S1: the version is compared where and when a write takes effect.
    pub compared_at_the_write: bool,
    /// S1: and again at the commit timestamp, if that is higher.
    pub compared_at_the_commit: bool,
    /// S1, L5: the comparison is a read of the version that is remembered: the
    /// version cannot be written below it any more.
    pub comparison_is_a_read: bool,
    /// S3: who meets a version that is about to be written waits for its fate.
    pub waits_for_the_intent: bool,
    /// L5: what the backfill has read is not written below any more.
    pub backfill_is_a_read: bool,
    /// S5: the backfill comes after the version, and reads as of its time.
    pub backfill_after_the_version: bool,
    /// The backfill waits for what is undecided below its time.
    pub backfill_waits_for_intents: bool,
}

impl SchemaVersion {
    /// As it is to be.
    pub const SOUND: Self = Self {
        compared_at_the_write: true,
        compared_at_the_commit: true,
        comparison_is_a_read: true,
        waits_for_the_intent: true,
        backfill_is_a_read: true,
        backfill_after_the_version: true,
        backfill_waits_for_intents: true,
    };
}

/// How far the change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Not begun.
    None,
    /// Its intent lies on the version key.
    Intent(Time),
    /// The version is written.
    Written(Time),
}

/// How far the transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Writer {
    /// Not planned.
    Begun,
    /// It knows the version; these of its writes have landed.
    Planned {
        /// It maintains the index.
        indexed: bool,
        /// Where the row lies.
        row: Option<Time>,
        /// Where the other write lies.
        other: Option<Time>,
    },
    /// Its commit is sent, at this time, and may arrive at any moment.
    Committed {
        /// It wrote an index entry.
        indexed: bool,
        /// When.
        at: Time,
    },
}

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    change: Change,
    /// The index was filled as of this.
    filled_at: Option<Time>,
    /// The backfill found the row.
    found: bool,
    writer: Writer,
    attempt: Time,
    /// Reads of the version key, and of the row's place.
    version_read_at: Time,
    row_read_at: Time,
    /// Somebody has read the place of the other write.
    other_read_at: Time,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The writer looks at the version, as of its attempt.
    Plan,
    /// Its row arrives at its leader.
    WriteRow,
    /// Its other write arrives at another one.
    WriteOther,
    /// A reader reads the other's place.
    ReadOther,
    /// It commits.
    Commit,
    /// The version's intent is laid.
    Announce,
    /// The version is written.
    Change,
    /// The index is filled.
    Fill,
}

impl State {
    /// The version that is valid at a time: whether the index is maintained;
    /// `None` if that is not decided yet.
    fn version_at(&self, rules: &SchemaVersion, at: Time) -> Option<bool> {
        match self.change {
            Change::Intent(time) if time <= at && rules.waits_for_the_intent => None,
            Change::Written(time) => Some(time <= at),
            Change::None | Change::Intent(_) => Some(false),
        }
    }

    fn retry(&mut self) {
        self.writer = Writer::Begun;
        self.attempt = SECOND;
    }
}

impl Model for SchemaVersion {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            change: Change::None,
            filled_at: None,
            found: false,
            writer: Writer::Begun,
            attempt: FIRST,
            version_read_at: 0,
            row_read_at: 0,
            other_read_at: 0,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.extend([
            Action::Plan,
            Action::WriteRow,
            Action::WriteOther,
            Action::ReadOther,
            Action::Commit,
            Action::Announce,
            Action::Change,
            Action::Fill,
        ]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        match action {
            Action::Plan => self.plan(&mut next)?,
            Action::WriteRow => self.write_row(&mut next)?,
            Action::WriteOther => write_other(&mut next)?,
            Action::ReadOther => next.other_read_at = PUSHED - 1,
            Action::Commit => self.commit(&mut next)?,
            Action::Announce => {
                let Change::None = next.change else {
                    return None;
                };
                next.change = Change::Intent(CHANGE.max(next.version_read_at + 1));
            }
            Action::Change => {
                let Change::Intent(at) = next.change else {
                    return None;
                };
                next.change = Change::Written(at);
            }
            Action::Fill => self.fill(&mut next)?,
        }
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the index has the row", |_, state: &State| {
                let changed = matches!(state.change, Change::Written(_));
                match state.writer {
                    Writer::Committed { indexed, .. } if changed && state.filled_at.is_some() => {
                        indexed || state.found
                    }
                    _ => true,
                }
            }),
            Property::always(
                "an entry is written only after the version",
                |_, state: &State| match (state.writer, state.change) {
                    (Writer::Committed { indexed: true, at }, Change::Written(time)) => time <= at,
                    (Writer::Committed { indexed: true, .. }, _) => false,
                    _ => true,
                },
            ),
            Property::sometimes("the backfill finds the row", |_, state: &State| state.found),
            Property::sometimes("the writer maintains the index", |_, state: &State| {
                matches!(state.writer, Writer::Committed { indexed: true, .. })
            }),
            Property::sometimes("it has to begin anew", |_, state: &State| {
                state.attempt == SECOND
            }),
            Property::sometimes(
                "it commits below the version, after that is announced",
                |_, state: &State| {
                    let announced = matches!(state.change, Change::Intent(_));
                    announced && matches!(state.writer, Writer::Committed { .. })
                },
            ),
        ]
    }
}

impl SchemaVersion {
    fn plan(&self, state: &mut State) -> Option<()> {
        let Writer::Begun = state.writer else {
            return None;
        };
        state.writer = Writer::Planned {
            indexed: state.version_at(self, state.attempt)?,
            row: None,
            other: None,
        };
        Some(())
    }

    fn write_row(&self, state: &mut State) -> Option<()> {
        let Writer::Planned {
            indexed,
            row: None,
            other,
        } = state.writer
        else {
            return None;
        };
        // L5: above what was read there.
        let at = state.attempt.max(state.row_read_at + 1);
        if self.compared_at_the_write {
            if state.version_at(self, at)? != indexed {
                state.retry();
                return Some(());
            }
            self.remember(state, at);
        }
        state.writer = Writer::Planned {
            indexed,
            row: Some(at),
            other,
        };
        Some(())
    }

    /// The comparison of a version is a read of it.
    fn remember(&self, state: &mut State, at: Time) {
        if self.comparison_is_a_read {
            state.version_read_at = state.version_read_at.max(at);
        }
    }

    fn commit(&self, state: &mut State) -> Option<()> {
        let Writer::Planned {
            indexed,
            row: Some(row),
            other: Some(other),
        } = state.writer
        else {
            return None;
        };
        let at = row.max(other);
        if at > row && self.compared_at_the_commit {
            if state.version_at(self, at)? != indexed {
                state.retry();
                return Some(());
            }
            self.remember(state, at);
        }
        state.writer = Writer::Committed { indexed, at };
        Some(())
    }

    fn fill(&self, state: &mut State) -> Option<()> {
        if state.filled_at.is_some() {
            return None;
        }
        let at = match state.change {
            Change::Written(at) => at,
            Change::Intent(at) if !self.backfill_after_the_version => at,
            Change::None if !self.backfill_after_the_version => CHANGE,
            Change::None | Change::Intent(_) => return None,
        };
        match state.writer {
            Writer::Planned { row: Some(row), .. }
                if row <= at && self.backfill_waits_for_intents =>
            {
                return None;
            }
            Writer::Committed { at: row, .. } => state.found = row <= at,
            _ => {}
        }
        if self.backfill_is_a_read {
            state.row_read_at = state.row_read_at.max(at);
        }
        state.filled_at = Some(at);
        Some(())
    }
}

fn write_other(state: &mut State) -> Option<()> {
    let Writer::Planned {
        indexed,
        row,
        other: None,
    } = state.writer
    else {
        return None;
    };
    state.writer = Writer::Planned {
        indexed,
        row,
        other: Some(state.attempt.max(state.other_read_at + 1)),
    };
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{assert_needed, assert_sound};

    #[test]
    fn the_index_has_the_row_in_every_history() {
        assert_sound(SchemaVersion::SOUND);
    }

    #[test]
    fn without_a_rule_the_row_is_missing() {
        assert_needed(
            SchemaVersion::SOUND,
            &[
                ("S1 at the write", |m| m.compared_at_the_write = false),
                ("S1 at the commit", |m| m.compared_at_the_commit = false),
                ("S1 as a read", |m| m.comparison_is_a_read = false),
                ("S3", |m| m.waits_for_the_intent = false),
                ("L5", |m| m.backfill_is_a_read = false),
                ("S5", |m| m.backfill_after_the_version = false),
                ("intents", |m| m.backfill_waits_for_intents = false),
            ],
        );
    }
}
