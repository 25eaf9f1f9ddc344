//! Which transactions a pattern consists of.
//!
//! The names are those of Jepsen's workloads; what each looks for:
//! * set: a write that was acknowledged and is lost, or seen and then not seen;
//! * long fork: two readers that see two writes in different orders (parallel
//!   snapshot isolation allows it);
//! * sequential: one client's second write, seen without its first one;
//! * causal reverse: the same of two clients, one of which began after the other had
//!   ended (serializability allows it, strict serializability does not);
//! * write skew: two transactions, each of which sees that the other has not written
//!   (snapshot isolation allows it; G2 in Adya's terms);
//! * rw-register: anything, by reads and blind writes of few keys.

use super::{Step, Transaction};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::ops::Range;

/// Keys of a set that are read together.
const SET: i64 = 36;
/// Keys of a group whose readers might disagree.
const GROUP: i64 = 6;
/// Keys back from the last one that readers of causal reverse look at.
const WINDOW: i64 = 12;
/// Pairs back from the last one that readers of sequential look at.
const PAIRS: i64 = 4;
/// Registers in use at once.
const REGISTERS: i64 = 5;
/// Writes to registers before one of them makes way.
const WRITES: i64 = 30;
/// Longest transaction over registers.
const STEPS_MAX: usize = 4;

/// What transactions look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Single writes, and scans of many keys.
    Set,
    /// Single writes, and reads of few keys in any order.
    LongFork,
    /// Two writes by one client, and two reads in the opposite order.
    Sequential,
    /// Single writes one after the other, and reads of the last ones backwards.
    CausalReverse,
    /// Two keys of which one may be written, by who has seen that neither is.
    WriteSkew,
    /// Reads and overwrites.
    RwRegister,
}

impl Pattern {
    /// Those in which a key is written once.
    #[cfg(test)]
    pub(super) const ONCE: [Pattern; 5] = [
        Pattern::Set,
        Pattern::LongFork,
        Pattern::Sequential,
        Pattern::CausalReverse,
        Pattern::WriteSkew,
    ];
}

/// What a client does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) first: Transaction,
    pub(super) then: Option<Transaction>,
}

impl From<Transaction> for Plan {
    fn from(first: Transaction) -> Self {
        Plan { first, then: None }
    }
}

/// What the clients of a run have in common.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    /// The keys below this one are in use, or were.
    next: i64,
    /// Keys of the group that are still to be written (long fork).
    unwritten: Vec<i64>,
    /// The last number that was to be written to a register.
    number: i64,
}

impl Drawn {
    /// All keys that were drawn so far are below this one.
    pub(super) fn keys(&self) -> i64 {
        self.next
    }

    /// The next one or two transactions of a client.
    pub(super) fn draw(&mut self, pattern: Pattern, chance: &mut StdRng) -> Plan {
        // Before anything is written there is nothing to read.
        let reads = self.next > 0 && chance.random();
        match (pattern, reads) {
            (Pattern::Set | Pattern::CausalReverse, false) => write(self.fresh(1)).into(),
            (Pattern::Set, true) => Transaction::scan(self.last(SET)).into(),
            (Pattern::CausalReverse, true) => {
                // The later a key, the earlier it is read.
                let keys = self.last(WINDOW).rev();
                Transaction::new(keys.map(Step::Read)).into()
            }
            (Pattern::LongFork, _) => self.long_fork(reads, chance).into(),
            (Pattern::Sequential, _) => self.sequential(reads, chance),
            (Pattern::WriteSkew, _) => self.write_skew(chance),
            (Pattern::RwRegister, _) => self.register(chance).into(),
        }
    }

    /// The first of so many keys that nobody has used.
    fn fresh(&mut self, keys: i64) -> i64 {
        self.next += keys;
        self.next - keys
    }

    /// The last so many keys, or fewer.
    fn last(&self, keys: i64) -> Range<i64> {
        (self.next - keys).max(0)..self.next
    }

    fn long_fork(&mut self, reads: bool, chance: &mut StdRng) -> Transaction {
        if reads {
            let mut group: Vec<i64> = self.last(GROUP).collect();
            group.shuffle(chance);
            return Transaction::new(group.into_iter().map(Step::Read));
        }
        let key = self.unwritten.pop().unwrap_or_else(|| {
            let first = self.fresh(GROUP);
            self.unwritten = (first + 1..first + GROUP).collect();
            self.unwritten.shuffle(chance);
            first
        });
        write(key)
    }

    /// Writes one key and then its neighbour, which lies in the next table; reads the
    /// neighbour and then the key.
    fn sequential(&mut self, reads: bool, chance: &mut StdRng) -> Plan {
        let (first, then) = if reads {
            let pairs = self.next / 2;
            let pair = chance.random_range((pairs - PAIRS).max(0)..pairs);
            (read(2 * pair + 1), read(2 * pair))
        } else {
            let key = self.fresh(2);
            (write(key), write(key + 1))
        };
        Plan {
            first,
            then: Some(then),
        }
    }

    /// Both transactions over a pair are drawn by different clients at about the same
    /// time: the one that begins the pair, and the next one.
    fn write_skew(&mut self, chance: &mut StdRng) -> Plan {
        let own = match self.unwritten.pop() {
            Some(own) => own,
            None => {
                let first = self.fresh(2);
                let (own, other) = match chance.random() {
                    true => (first, first + 1),
                    false => (first + 1, first),
                };
                self.unwritten.push(other);
                own
            }
        };
        let first = own - own % 2;
        let pair = [first, first + 1].map(Step::Read);
        let steps = pair.into_iter().chain([Step::Write(own, own)]);
        Transaction::new(steps).if_absent().into()
    }

    fn register(&mut self, chance: &mut StdRng) -> Transaction {
        let steps = chance.random_range(1..=STEPS_MAX);
        let first = self.number / WRITES;
        self.next = first + REGISTERS;
        let step = |_| {
            let key = chance.random_range(first..first + REGISTERS);
            if chance.random() {
                return Step::Read(key);
            }
            self.number += 1;
            Step::Write(key, self.number)
        };
        Transaction::new((0..steps).map(step))
    }
}

fn read(key: i64) -> Transaction {
    Transaction::new([Step::Read(key)])
}

/// A key that is written once holds itself.
fn write(key: i64) -> Transaction {
    Transaction::new([Step::Write(key, key)])
}

#[cfg(test)]
mod tests {
    use super::super::TABLES;
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    fn drawn(pattern: Pattern) -> (Vec<Transaction>, Drawn) {
        let mut chance = StdRng::seed_from_u64(1);
        let mut drawn = Drawn::default();
        let mut all = Vec::new();
        while all.len() < 2_000 {
            let plan = drawn.draw(pattern, &mut chance);
            all.extend([plan.first].into_iter().chain(plan.then));
        }
        (all, drawn)
    }

    #[test]
    fn every_key_is_written_once_and_looked_at() {
        for pattern in Pattern::ONCE {
            let (transactions, drawn) = drawn(pattern);
            let (mut read, mut written) = (BTreeSet::new(), BTreeSet::new());
            for step in transactions.iter().flat_map(|t| &t.steps) {
                match *step {
                    Step::Read(key) => {
                        assert!(key < drawn.keys(), "{pattern:?}: {key}");
                        read.insert(key);
                    }
                    Step::Write(key, value) => {
                        assert_eq!(key, value);
                        assert!(written.insert(key), "{pattern:?}: {key} twice");
                    }
                }
            }
            assert!(written.len() >= 100, "{pattern:?}: {}", written.len());
            let unread = written.difference(&read).count();
            assert!(unread * 2 < written.len(), "{pattern:?}: {unread} unread");
        }
    }

    #[test]
    fn a_number_is_written_to_one_register() {
        let (transactions, _) = drawn(Pattern::RwRegister);
        let writes = transactions.iter().flat_map(|t| &t.steps);
        let writes = writes.filter_map(|step| match step {
            Step::Write(_, value) => Some(*value),
            Step::Read(_) => None,
        });
        let numbers: Vec<i64> = writes.collect();
        let distinct: BTreeSet<i64> = numbers.iter().copied().collect();
        assert_eq!(numbers.len(), distinct.len());
    }

    #[test]
    fn both_keys_of_a_pair_lie_in_different_shards() {
        for pattern in [Pattern::Sequential, Pattern::WriteSkew] {
            let (transactions, _) = drawn(pattern);
            let pairs = transactions.iter().map(Transaction::span);
            for (first, last) in pairs.filter(|(first, last)| first != last) {
                assert_eq!((first % 2, last), (0, first + 1));
                assert_ne!(first % TABLES, last % TABLES);
            }
        }
    }

    #[test]
    fn write_skew_writes_only_where_it_has_seen_nothing() {
        let (transactions, _) = drawn(Pattern::WriteSkew);
        assert!(transactions.iter().all(|t| t.if_absent));
        let (others, _) = drawn(Pattern::CausalReverse);
        assert!(others.iter().all(|t| !t.if_absent));
    }
}
