//! A leader that nobody answers falls silent.
//!
//! Followers replace a leader that they do not hear. One whose messages arrive while the
//! answers to them do not (a link that is dead in one direction, or too slow) they would
//! follow for as long as that lasts, though it can neither commit nor serve a read. So a
//! leader that has had no answer from a quorum for a while says nothing, for long enough
//! that the others elect one of them; and then speaks for a moment, since there may be
//! nobody else, and answers may come again.
//!
//! This is Ongaro's rule that a leader steps down without a round of heartbeats to a
//! majority within an election timeout (dissertation, section 6.2), for a library whose
//! leaders do not step down. Its own `quorum_loss_probe_interval` holds heartbeats back,
//! but not appends that are tried again, each of which followers take for a sign of life.
//! Safety does not depend on any of this: whoever was replaced finds a higher term, and
//! until then cannot commit.
//!
//! The price: where answers were late for everybody, and come in time again, a leader that
//! alone can lead (the only one with the last entries) speaks a silence later, three seconds
//! at most as nodes are set up, than it could.

use crate::consensus::Timing;
use crate::consensus::metrics;
use crate::consensus::types::TypeConfig;
use lineradb_common::ShardId;
use lineradb_common::clock::Stopwatch;
use openraft::alias::InstantOf;
use parking_lot::Mutex;
use std::sync::OnceLock;
use std::time::Duration;

/// When a leader speaks that is not answered.
#[derive(Clone, Copy, Debug)]
struct Rhythm {
    /// It goes on for so long.
    patience: Duration,
    /// Then it says nothing: followers find out, and one of them is elected.
    silence: Duration,
    /// Then it speaks for so long, and is silent again.
    probe: Duration,
}

impl Rhythm {
    fn of(timing: &Timing) -> Self {
        Rhythm {
            patience: timing.election_max * 2,
            silence: timing.election_max * 3,
            probe: timing.heartbeat * 2,
        }
    }

    /// Whether a leader speaks that has not been answered for so long.
    fn speaks(self, unanswered: Duration) -> bool {
        let Some(beyond) = unanswered.checked_sub(self.patience) else {
            return true;
        };
        let within = beyond.as_nanos() % (self.silence + self.probe).as_nanos();
        within >= self.silence.as_nanos()
    }
}

/// What a replica knows of the answers to its messages as a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// It is a quorum by itself.
    Alone,
    /// When those of a quorum were sent that have come last in this term; `None`: none has.
    Last(u64, Option<InstantOf<TypeConfig>>),
}

/// Decides whether a replica speaks, as a leader.
pub struct Hearing {
    shard: ShardId,
    rhythm: Rhythm,
    answered: OnceLock<Box<dyn Fn() -> Answered + Send + Sync>>,
    known: Mutex<Known>,
}

/// What was known when something was last to be said.
struct Known {
    answered: Answered,
    /// Since that is so.
    since: Stopwatch,
    /// It was said.
    spoke: bool,
}

impl Hearing {
    /// Of a replica of the shard; it says everything until it is told to [`Hearing::listen`].
    pub fn new(shard: ShardId, timing: &Timing) -> Self {
        Hearing {
            shard,
            rhythm: Rhythm::of(timing),
            answered: OnceLock::new(),
            known: Mutex::new(Known {
                answered: Answered::Alone,
                since: Stopwatch::start(),
                spoke: true,
            }),
        }
    }

    /// From now on `answered` tells. Before that everything is said.
    pub(crate) fn listen(&self, answered: impl Fn() -> Answered + Send + Sync + 'static) {
        // It is called once, by whoever starts the replica.
        let _ = self.answered.set(Box::new(answered));
    }

    /// Whether something may be said now.
    pub(crate) fn speaks(&self) -> bool {
        let Some(answered) = self.answered.get().map(|answered| answered()) else {
            return true;
        };
        let mut known = self.known.lock();
        if known.answered != answered || answered == Answered::Alone {
            known.answered = answered;
            known.since = Stopwatch::start();
        }
        let speaks = self.rhythm.speaks(known.since.elapsed());
        if known.spoke && !speaks {
            metrics::get().silences_total.inc();
            tracing::warn!(
                shard = %self.shard,
                "no quorum answers this leader: it falls silent, so that others elect another one"
            );
        }
        known.spoke = speaks;
        speaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_answers_is_silent_for_an_election_and_then_asks_again() {
        for heartbeat_ms in [50, 300, 2_000] {
            let timing = Timing::every(Duration::from_millis(heartbeat_ms));
            let rhythm = Rhythm::of(&timing);
            let step = timing.heartbeat / 10;
            let spoken: Vec<bool> = (0..600).map(|n| rhythm.speaks(step * n)).collect();
            let runs: Vec<(bool, Duration)> = spoken
                .chunk_by(|a, b| a == b)
                .map(|run| (run[0], step * run.len() as u32))
                .collect();
            assert!(runs[0].0 && runs[0].1 >= timing.election_max * 2);
            for run in &runs[1..runs.len() - 1] {
                match run {
                    // A follower's lease, and the longest time until it asks for votes.
                    (false, silent) => assert!(*silent > timing.election_max * 2),
                    (true, probe) => assert!(*probe >= timing.heartbeat),
                }
            }
            assert!(runs.len() > 4);
        }
    }

    #[test]
    fn answers_begin_the_time_anew() {
        let timing = Timing::every(Duration::from_millis(1));
        let hearing = Hearing::new(ShardId(1), &timing);
        assert!(hearing.speaks());
        let answered = std::sync::Arc::new(Mutex::new(Answered::Last(1, None)));
        let told = answered.clone();
        hearing.listen(move || *told.lock());
        let silent = || {
            while hearing.speaks() {
                std::thread::yield_now();
            }
        };
        silent();
        *answered.lock() = Answered::Last(2, None);
        assert!(hearing.speaks());
        silent();
        *answered.lock() = Answered::Alone;
        for _ in 0..1_000 {
            assert!(hearing.speaks());
        }
    }
}
