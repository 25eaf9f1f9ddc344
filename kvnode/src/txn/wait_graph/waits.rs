//! The waits of a node as plain data: who waits where for whom, the search for
//! circles, and verdicts.

use super::{Contender, Deadlock, GiveUp, HOLDERS_MAX, LastingWait};
use lineradb_common::clock::Stopwatch;
use lineradb_common::{ShardId, Timestamp, TxnId};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Lock waits that last for so long are reported.
pub const LOCK_WAIT_LASTS: Duration = Duration::from_millis(50);
/// Intent waits that last for so long count, and are reported.
const INTENT_WAIT_LASTS: Duration = Duration::from_millis(100);
/// A transaction that has not asked again for so long does not wait any more.
const ASKS_AGAIN: Duration = Duration::from_secs(1);
/// Waits of those who do not ask any more are swept out when so many transactions
/// wait, then at every doubling.
const SWEEP_MIN: usize = 1024;

/// Where somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A place in the queue of a lock.
    Queue(u64),
    /// In front of intents of a shard.
    Intents(ShardId),
}

/// One wait.
pub struct Wait {
    at: At,
    holders: Vec<TxnId>,
    since: Stopwatch,
    looked: Stopwatch,
    lasts: bool,
    /// A lock wait is woken when it has to look before its time.
    wake: Option<Arc<Notify>>,
}

impl Wait {
    /// It begins now.
    pub fn new(at: At, holders: Vec<TxnId>, wake: Option<Arc<Notify>>) -> Self {
        let now = Stopwatch::start();
        Wait {
            at,
            holders,
            since: now,
            looked: now,
            lasts: false,
            wake,
        }
    }

    fn outlives(&self) -> bool {
        let patience = match self.at {
            At::Queue(_) => LOCK_WAIT_LASTS,
            At::Intents(_) => INTENT_WAIT_LASTS,
        };
        self.since.elapsed() >= patience
    }

    fn lapsed(&self) -> bool {
        matches!(self.at, At::Intents(_)) && self.looked.elapsed() > ASKS_AGAIN
    }

    /// Whether it is looked at when circles are looked for.
    fn counts(&self) -> bool {
        match self.at {
            At::Queue(_) => true,
            At::Intents(_) => self.lasts && !self.lapsed(),
        }
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake.notify_one();
        }
    }
}

/// A transaction that waits, perhaps at several places at once.
struct Party {
    started: Timestamp,
    waits: Vec<Wait>,
    /// It gives way: it is taken to wait for nobody any more.
    verdict: Option<Verdict>,
    over: bool,
}

struct Verdict {
    deadlock: Deadlock,
    /// The wait that has to look whether it is so, and as long as which the
    /// verdict lives.
    at: At,
}

impl Party {
    fn remove(&mut self, gone: impl Fn(&Wait) -> bool) {
        let verdict = &mut self.verdict;
        self.waits.retain(|wait| {
            let gone = gone(wait);
            if gone {
                verdict.take_if(|verdict| verdict.at == wait.at);
            }
            !gone
        });
    }
}

/// All waits of a node.
#[derive(Default)]
pub struct Waits {
    parties: HashMap<TxnId, Party>,
    tickets: u64,
    sweep_at: usize,
}

impl Waits {
    /// A number that no other wait has.
    pub fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.parties.is_empty()
    }

    /// Whether a transaction waits there.
    pub fn contains(&self, txn: TxnId, at: At) -> bool {
        let party = self.parties.get(&txn);
        party.is_some_and(|party| party.waits.iter().any(|wait| wait.at == at))
    }

    /// A wait begins.
    pub fn join(&mut self, who: Contender, wait: Wait) {
        let party = self.parties.entry(who.id).or_insert_with(|| Party {
            started: who.started,
            waits: Vec::with_capacity(1),
            verdict: None,
            over: false,
        });
        // A read names its timestamp only, which moves up.
        party.started = party.started.min(who.started);
        party.waits.push(wait);
    }

    /// A wait ends.
    pub fn leave(&mut self, txn: TxnId, at: At) {
        self.remove(txn, |wait| wait.at == at);
    }

    /// What a transaction does not ask for any more.
    pub fn forget_lapsed(&mut self, txn: TxnId) {
        self.remove(txn, Wait::lapsed);
    }

    fn remove(&mut self, txn: TxnId, gone: impl Fn(&Wait) -> bool) {
        if let Some(party) = self.parties.get_mut(&txn) {
            party.remove(gone);
            if party.waits.is_empty() {
                self.parties.remove(&txn);
            }
        }
    }

    /// A transaction is over: its waits are woken and told.
    pub fn end(&mut self, txn: TxnId) {
        if let Some(party) = self.parties.get_mut(&txn) {
            party.over = true;
            party.waits.iter().for_each(Wait::wake);
        }
    }

    /// A wait looks who is ahead by now. Answers whether it begins to last.
    pub fn look(&mut self, txn: TxnId, at: At, holders: Vec<TxnId>) -> Result<bool, GiveUp> {
        let Some(party) = self.parties.get_mut(&txn) else {
            return Ok(false);
        };
        if party.over {
            return Err(GiveUp::Over);
        }
        let verdict = party.verdict.take_if(|verdict| verdict.at == at);
        let void = verdict.is_some();
        if let Some(Verdict { deadlock, .. }) = verdict
            && holders.contains(&deadlock.blocker())
        {
            return Err(GiveUp::Deadlock(deadlock));
        }
        let Some(wait) = party.waits.iter_mut().find(|wait| wait.at == at) else {
            return Ok(false);
        };
        let news = void || wait.holders != holders || !wait.counts();
        wait.holders = holders;
        wait.looked = Stopwatch::start();
        let begins = !wait.lasts && wait.outlives();
        wait.lasts |= begins;
        if news {
            self.settle(txn).map_err(GiveUp::Deadlock)?;
        }
        Ok(begins)
    }

    /// Has the youngest of every circle through a transaction give way; an error
    /// when that is the transaction itself.
    pub fn settle(&mut self, txn: TxnId) -> Result<(), Deadlock> {
        let mut condemned = Vec::new();
        while let Some(mut circle) = self.circle_through(txn) {
            let ages = circle.iter().map(|id| self.age_of(*id)).enumerate();
            let youngest = ages.max_by_key(|(_, age)| *age).map_or(0, |(at, _)| at);
            circle.rotate_left(youngest);
            let Some(deadlock) = Deadlock::new(&circle) else {
                return Ok(());
            };
            let victim = deadlock.victim();
            if victim == txn {
                // Without it, the others wait in no circle.
                for id in condemned {
                    if let Some(party) = self.parties.get_mut(&id) {
                        party.verdict = None;
                    }
                }
                return Err(deadlock);
            }
            if !self.condemn(deadlock) {
                return Ok(());
            }
            condemned.push(victim);
        }
        Ok(())
    }

    fn age_of(&self, id: TxnId) -> Option<Contender> {
        let started = self.parties.get(&id)?.started;
        Some(Contender { started, id })
    }

    /// Tells a victim that it has to give way, if it waits for its blocker.
    pub fn condemn(&mut self, deadlock: Deadlock) -> bool {
        let Some(party) = self.parties.get_mut(&deadlock.victim()) else {
            return false;
        };
        let blocker = deadlock.blocker();
        let mut waits = party.waits.iter();
        let Some(wait) = waits.find(|wait| wait.holders.contains(&blocker)) else {
            return false;
        };
        wait.wake();
        let at = wait.at;
        // The first verdict stands.
        party.verdict.get_or_insert(Verdict { deadlock, at });
        true
    }

    /// The shortest circle through a transaction, which comes first in it.
    fn circle_through(&self, txn: TxnId) -> Option<Vec<TxnId>> {
        let mut before: HashMap<TxnId, TxnId> = HashMap::new();
        let mut open = VecDeque::from([txn]);
        while let Some(waiter) = open.pop_front() {
            for holder in self.ahead_of(waiter) {
                if holder == txn {
                    let back = |id: &TxnId| before.get(id).copied();
                    let mut circle: Vec<TxnId> =
                        std::iter::successors(Some(waiter), back).collect();
                    circle.reverse();
                    return Some(circle);
                }
                if let Entry::Vacant(new) = before.entry(holder) {
                    new.insert(waiter);
                    open.push_back(holder);
                }
            }
        }
        None
    }

    fn ahead_of(&self, txn: TxnId) -> impl Iterator<Item = TxnId> + '_ {
        let party = self.parties.get(&txn);
        let party = party.filter(|party| party.verdict.is_none() && !party.over);
        let waits = party.into_iter().flat_map(|party| &party.waits);
        let waits = waits.filter(|wait| wait.counts());
        waits.flat_map(|wait| wait.holders.iter().copied())
    }

    /// The waits that last, and for how long they have; without those of
    /// transactions that give way.
    pub fn lasting(&mut self) -> Vec<(Duration, LastingWait)> {
        self.sweep();
        let mut lasting = Vec::new();
        for (id, party) in &self.parties {
            if party.verdict.is_some() || party.over {
                continue;
            }
            let waiter = Contender {
                started: party.started,
                id: *id,
            };
            for wait in party.waits.iter().filter(|wait| wait.lasts) {
                let holders = wait.holders.iter().copied().take(HOLDERS_MAX).collect();
                lasting.push((wait.since.elapsed(), LastingWait { waiter, holders }));
            }
        }
        lasting
    }

    /// Keeps those who do not ask any more from piling up.
    pub fn sweep_when_many(&mut self) {
        if self.parties.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.sweep();
            self.sweep_at = self.parties.len() * 2;
        }
    }

    fn sweep(&mut self) {
        self.parties.retain(|_, party| {
            party.remove(Wait::lapsed);
            !party.waits.is_empty()
        });
    }
}
