//! Which server a client asks.
//!
//! Half of the clients go round: each asks the next server after [`STAY`] operations,
//! else nobody would ask a server that the others have left. The other half are at
//! home at one server, leave it when it does not serve, and come back. With the first
//! half alone all would soon be where nothing is answered, each waiting for its
//! timeout, and the servers that do answer would stand idle: a pause of the clients
//! that is none of the cluster.

/// Operations of one turn.
pub const STAY: usize = 50;

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
        Turns {
            servers: servers.max(1),
            home: number % servers.max(1),
            goes_round: number / 2 % 2 == 1,
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
    fn half_of_the_clients_stay_at_home() {
        for number in [0, 1, 4, 5] {
            assert_eq!(visits(number, &[], 1000), [number % 3]);
        }
        for number in [2, 3, 6, 7] {
            let n = number % 3;
            assert_eq!(visits(number, &[], 160), [n, (n + 1) % 3, (n + 2) % 3, n]);
        }
        // Each server is somebody's home.
        let homes = [0, 1, 4, 5].map(|number| number % 3);
        assert!((0..3).all(|server| homes.contains(&server)));
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
