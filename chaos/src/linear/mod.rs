//! Is the history of one register linearizable? The search of Wing and Gong, as
//! Lowe improved it: try to put the operations into one order, each between its
//! beginning and its end, that a register could have gone through; go back where
//! this does not go on; and never go on twice from the same set of operations
//! with the same value.
//!
//! An operation of unknown outcome may take effect at any time after its
//! beginning, or never. It has no end before which it must have its place: so
//! it is tried everywhere, and the search is done when all others have theirs.
//!
//! Example. `w(1)` is unknown, then comes `r -> none`, then `r -> 1`. The search
//! places `w(1)` first, cannot place the first read, goes back, places that read,
//! then `w(1)`, then the other read: linearizable. If a third read then says
//! `none`, nothing is left to try.
//!
//! Real time is the order of the history's events. Deciding is exponential in the
//! number of operations that overlap, unknown ones above all; beyond
//! [`STEPS_MAX`] the answer is that there is none.

use std::collections::HashSet;

/// A register holds a number or nothing.
pub type Value = Option<i64>;

/// Steps of one search at most.
pub const STEPS_MAX: usize = 4_000_000;

/// What was asked, and what is known of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read this.
    Read(Value),
    /// Wrote this.
    Write(Value),
    /// Wrote `new` if there was `expected`.
    CompareAndSet {
        /// What had to be there.
        expected: Value,
        /// What was to be there.
        new: Value,
        /// Whether that happened.
        answer: Answer,
    },
}

/// What came of a compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `new` was written.
    Set,
    /// Something else was there.
    Differs,
    /// This was there, not what was expected.
    Found(Value),
    /// Nobody knows.
    Unknown,
}

impl Action {
    /// What the register holds afterwards; `None` when it cannot have answered
    /// so.
    fn apply(self, before: Value) -> Option<Value> {
        match self {
            Action::Read(seen) => (seen == before).then_some(before),
            Action::Write(new) => Some(new),
            Action::CompareAndSet {
                expected,
                new,
                answer,
            } => {
                let equal = before == expected;
                match answer {
                    Answer::Set => equal.then_some(new),
                    Answer::Differs => (!equal).then_some(before),
                    Answer::Found(seen) => (!equal && seen == before).then_some(before),
                    Answer::Unknown => Some(if equal { new } else { before }),
                }
            }
        }
    }
}

/// An operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What was done.
    pub action: Action,
    /// The place of its beginning in the history.
    pub invoked: usize,
    /// The place of its end; `None`: its outcome is unknown.
    pub returned: Option<usize>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linearizable {
    /// There is such an order.
    Yes,
    /// There is none. The longest order that was found left the register like
    /// this, and this call, among others, without a place.
    No {
        /// What the register held then.
        value: Value,
        /// The first end that could not be passed.
        stuck: Call,
    },
    /// The search was given up.
    Undecided,
}

/// Searches an order for the calls to one register, which held nothing at the
/// start.
pub fn check(calls: &[Call]) -> Linearizable {
    check_within(calls, STEPS_MAX)
}

fn check_within(calls: &[Call], steps_max: usize) -> Linearizable {
    let mut events = Events::of(calls);
    let mut missing = calls.iter().filter(|c| c.returned.is_some()).count();
    let mut placed = Places::none(calls.len());
    let mut tried: HashSet<(Places, Value)> = HashSet::new();
    // The calls placed so far, with the value before each.
    let mut order: Vec<(usize, Value)> = Vec::new();
    let mut value: Value = None;
    let mut best: Option<(usize, Value, usize)> = None;
    let mut at = events.first();
    for _ in 0..steps_max {
        if missing == 0 {
            return Linearizable::Yes;
        }
        match events.kind(at) {
            Place::Begin(call) => {
                let after = calls[call].action.apply(value);
                let after = after.map(|after| (placed.with(call), after));
                match after.filter(|after| tried.insert(after.clone())) {
                    Some(after) => {
                        order.push((call, value));
                        (placed, value) = after;
                        missing -= usize::from(calls[call].returned.is_some());
                        events.take_out(call);
                        at = events.first();
                    }
                    None => at = events.next(at),
                }
            }
            // An end is reached by going over its call's beginning: that call
            // must have had its place by now.
            place => {
                if let Place::End(call) = place
                    && best.is_none_or(|(placed, ..)| order.len() >= placed)
                {
                    best = Some((order.len(), value, call));
                }
                let Some((call, before)) = order.pop() else {
                    return match best {
                        Some((_, value, call)) => Linearizable::No {
                            value,
                            stuck: calls[call],
                        },
                        None => Linearizable::Undecided,
                    };
                };
                value = before;
                placed = placed.without(call);
                missing += usize::from(calls[call].returned.is_some());
                at = events.put_back(call);
            }
        }
    }
    Linearizable::Undecided
}

/// What stands at a place of the list.
#[derive(Clone, Copy, Debug)]
enum Place {
    Begin(usize),
    End(usize),
    /// Behind the last event.
    Tail,
}

/// The beginnings and ends of the calls that have no place yet, in the order of
/// the history: a doubly linked list in arrays. Call `c` begins at node `2c` and
/// ends at `2c + 1`; the last two nodes are the list's head and tail.
struct Events {
    next: Vec<usize>,
    previous: Vec<usize>,
    ends: Vec<bool>,
}

impl Events {
    fn of(calls: &[Call]) -> Self {
        let mut nodes: Vec<(usize, usize)> = Vec::with_capacity(2 * calls.len());
        for (c, call) in calls.iter().enumerate() {
            nodes.push((call.invoked, 2 * c));
            nodes.extend(call.returned.map(|returned| (returned, 2 * c + 1)));
        }
        nodes.sort_unstable();
        let (head, tail) = (2 * calls.len(), 2 * calls.len() + 1);
        let mut events = Events {
            next: vec![tail; tail + 1],
            previous: vec![head; tail + 1],
            ends: calls.iter().map(|c| c.returned.is_some()).collect(),
        };
        let mut last = head;
        for (_, node) in nodes {
            events.next[last] = node;
            events.previous[node] = last;
            last = node;
        }
        events.next[last] = tail;
        events.previous[tail] = last;
        events
    }

    fn first(&self) -> usize {
        self.next[self.next.len() - 2]
    }

    fn next(&self, node: usize) -> usize {
        self.next[node]
    }

    fn kind(&self, node: usize) -> Place {
        match node {
            n if n + 2 >= self.next.len() => Place::Tail,
            n if n % 2 == 0 => Place::Begin(n / 2),
            n => Place::End(n / 2),
        }
    }

    fn take_out(&mut self, call: usize) {
        self.unlink(2 * call);
        if self.ends[call] {
            self.unlink(2 * call + 1);
        }
    }

    /// The reverse of the last `take_out`; answers the node behind the call's
    /// beginning.
    fn put_back(&mut self, call: usize) -> usize {
        if self.ends[call] {
            self.link(2 * call + 1);
        }
        self.link(2 * call);
        self.next[2 * call]
    }

    fn unlink(&mut self, node: usize) {
        let (previous, next) = (self.previous[node], self.next[node]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn link(&mut self, node: usize) {
        let (previous, next) = (self.previous[node], self.next[node]);
        self.next[previous] = node;
        self.previous[next] = node;
    }
}

/// A set of calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Places(Box<[u64]>);

impl Places {
    fn none(calls: usize) -> Self {
        Places(vec![0; calls.div_ceil(64)].into())
    }

    fn with(&self, call: usize) -> Self {
        let mut bits = self.0.clone();
        bits[call / 64] |= 1 << (call % 64);
        Places(bits)
    }

    fn without(mut self, call: usize) -> Self {
        self.0[call / 64] &= !(1 << (call % 64));
        self
    }
}

#[cfg(test)]
mod tests;
