//! Which server a client asks.
//!
//! One client in [`ROUND`] goes round: it asks the next server after [`STAY`]
//! operations, and so also those that others have left. The others are at home at one
//! server, leave it when it does not serve, and come back. If all went round, all
//! would soon be where nothing is answered, each waiting for its timeout, and the
//! servers that do answer would stand idle: a pause of the clients that is none of the
//! cluster.

/// Operations of one turn.
const STAY: usize = 50;

/// Not a power of two, so that it is independent of what else clients differ in.
const ROUND: usize = 3;

/// The servers of one client, one after the other.
#[derive(Debug)]
pub struct Turns {
    servers: usize,
    home: usize,
    goes_round: bool,
    at: Option<usize>,
    served: usize,
}

impl Turns {
    /// Of the client of that number, among so many servers.
    pub fn new(servers: usize, number: usize) -> Self {
        let servers = servers.max(1);
        Turns {
            servers,
            // Those who stay are spread evenly.
            home: (number - number / ROUND) % servers,
            goes_round: number % ROUND == ROUND - 1,
            at: None,
            served: 0,
        }
    }

    /// Before each operation: whom to connect to, unless the client stays where it is
    /// `connected`.
    pub fn next(&mut self, connected: bool) -> Option<usize> {
        self.served += 1;
        let at = match self.at {
            None => self.home,
            Some(at) if !connected => (at + 1) % self.servers,
            Some(at) if self.served <= STAY || (at == self.home && !self.goes_round) => {
                return None;
            }
            Some(at) if self.goes_round => (at + 1) % self.servers,
            Some(_) => self.home,
        };
        self.served = 0;
        self.at = Some(at);
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where operations take place while these servers serve nobody.
    fn visits(number: usize, down: &[usize], operations: usize) -> Vec<usize> {
        let mut turns = Turns::new(3, number);
        let (mut connected, mut at) = (false, 0);
        let mut visits = Vec::new();
        while visits.len() < operations {
            at = turns.next(connected).unwrap_or(at);
            connected = !down.contains(&at);
            if connected {
                visits.push(at);
            }
        }
        visits.dedup();
        visits
    }

    #[test]
    fn most_clients_stay_at_home() {
        for (number, home) in [(0, 0), (1, 1), (3, 2), (4, 0), (6, 1)] {
            assert_eq!(visits(number, &[], 1000), [home]);
        }
        for (number, home) in [(2, 2), (5, 1), (8, 0)] {
            let [second, third] = [1, 2].map(|n| (home + n) % 3);
            assert_eq!(visits(number, &[], 160), [home, second, third, home]);
        }
    }

    #[test]
    fn who_is_not_served_at_home_asks_there_again_later() {
        assert_eq!(visits(0, &[0], 200), [1]);
        assert_eq!(visits(1, &[1, 2], 200), [0]);
        // One failure, and it is back after a turn.
        let mut turns = Turns::new(3, 0);
        assert_eq!(turns.next(false), Some(0));
        assert_eq!(turns.next(false), Some(1));
        let away = (0..).find_map(|n| turns.next(true).map(|at| (n, at)));
        assert_eq!(away, Some((STAY, 0)));
        assert!((0..1000).all(|_| turns.next(true).is_none()));
    }
}
