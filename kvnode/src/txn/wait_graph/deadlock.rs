//! A circle of transactions that wait for each other.

use bytes::Bytes;
use lineradb_common::{Timestamp, TxnId};
use std::fmt;
use std::iter::once;

/// A transaction among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contender {
    /// When it began. Compared first: the youngest is the largest.
    pub started: Timestamp,
    /// Which it is.
    pub id: TxnId,
}

/// Transactions that wait in a circle: each for the next one, the last for the
/// first. The first has to give way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    victim: TxnId,
    blocker: TxnId,
    others: Vec<TxnId>,
}

impl Deadlock {
    /// `None`: they are fewer than two.
    pub(super) fn new(circle: &[TxnId]) -> Option<Self> {
        let [victim, blocker, others @ ..] = circle else {
            return None;
        };
        Some(Deadlock {
            victim: *victim,
            blocker: *blocker,
            others: others.to_vec(),
        })
    }

    /// Reads one from a message; `None`: it is none.
    pub fn from_ids(ids: &[Bytes]) -> Option<Self> {
        let ids: Option<Vec<TxnId>> = ids.iter().map(|id| TxnId::from_slice(id)).collect();
        Self::new(&ids?)
    }

    /// Who gives way.
    pub fn victim(&self) -> TxnId {
        self.victim
    }

    /// For whom it waits.
    pub fn blocker(&self) -> TxnId {
        self.blocker
    }
}

/// One line for each wait, as in the detail of PostgreSQL's error.
impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = || once(self.blocker).chain(self.others.iter().copied());
        let waiters = once(self.victim).chain(rest());
        let holders = rest().chain(once(self.victim));
        for (n, (waiter, holder)) in waiters.zip(holders).enumerate() {
            let line = if n == 0 { "" } else { "\n" };
            write!(
                f,
                "{line}Transaction {waiter} waits for transaction {holder}."
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_in_the_circle_is_named_with_whom_it_waits_for() {
        let id = |n: u8| TxnId([n; 16]);
        let bytes = |n: u8| Bytes::copy_from_slice(&id(n).0);
        let deadlock = Deadlock::from_ids(&[bytes(3), bytes(1), bytes(2)]).unwrap();
        assert_eq!((deadlock.victim(), deadlock.blocker()), (id(3), id(1)));
        let line = |a: u8, b: u8| format!("Transaction {} waits for transaction {}.", id(a), id(b));
        let text = [line(3, 1), line(1, 2), line(2, 3)].join("\n");
        assert_eq!(deadlock.to_string(), text);
        assert_eq!(Deadlock::from_ids(&[bytes(1)]), None);
        assert_eq!(Deadlock::from_ids(&[bytes(1), "short".into()]), None);
    }
}
