//! What is done to a cluster, drawn from a seed: the same seed does the same
//! things in the same order to a cluster of the same size. Nothing here acts;
//! `nemesis` does.

use crate::proxy::{Link, Peer, Quality, Rules};
use clap::ValueEnum;
use lineradb_common::clock::SOUND_PPM;
use lineradb_common::faults::Fault as Broken;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two faults, for the cluster to recover in.
const QUIET_MS: std::ops::Range<u64> = 1_000..4_000;
/// How long a fault lasts: either shorter than it takes others to notice and to
/// do something about it, or longer.
const LASTS_MS: [std::ops::Range<u64>; 2] = [500..3_000, 3_000..12_000];
/// How long bytes take on a link with a delay.
const DELAY_MS: std::ops::Range<u64> = 5..150;
/// Of a thousand chunks so many are lost.
const LOST: std::ops::Range<u32> = 10..200;
/// What passes on a slow link.
const BYTES_PER_SECOND: std::ops::Range<u32> = 16_000..256_000;
/// What a sync takes longer on a slow disk.
const SYNC_DELAY_MS: std::ops::Range<u64> = 10..500;
/// How fast a bad counter runs: not at all, half as fast, a thousandth slower ... twice as fast.
const RATES_PPM: [u64; 7] = [
    0, 500_000, 900_000, 999_000, 1_001_000, 1_100_000, 2_000_000,
];
/// How far a bad counter jumps.
const JUMP_MS: std::ops::Range<u64> = 5..2_000;

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// `kill -9` of one process, and a restart later
    Kill,
    /// SIGSTOP of one process, and SIGCONT later
    Pause,
    /// Some processes and the others do not reach each other
    Partition,
    /// What one process sends, or is sent, does not arrive
    OneWay,
    /// What one process sends, and is sent, takes long
    Delay,
    /// A part of what one process sends, and is sent, is lost and sent again
    Loss,
    /// Little passes in a second from one process to the others, and back
    Slow,
    /// Two halves reach each other through one kvnode alone
    Bridge,
    /// `kill -9` of all processes at once, and a restart of all
    Restart,
    /// Syncs of one process take long
    SlowDisk,
    /// One process finds no room on its disk, may end of it, and is started again
    FullDisk,
    /// The clock of a kvnode or gateway stands still, runs at a rate of its own or jumps
    Clock,
    /// Nothing
    None,
}

impl Kind {
    /// Everything that may happen to a cluster; its clocks go wrong only where they are
    /// measured.
    pub fn all(measured_clocks: bool) -> Vec<Kind> {
        let kinds = Kind::value_variants().iter().copied();
        kinds
            .filter(|kind| *kind != Kind::None && (*kind != Kind::Clock || measured_clocks))
            .collect()
    }
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process is killed.
    Kill(Peer),
    /// A process stands still.
    Pause(Peer),
    /// These processes are killed at once.
    KillAll(Vec<Peer>),
    /// A process breaks its disk or its clock.
    Inside(Peer, Broken),
    /// The network obeys these rules.
    Network {
        /// For people.
        what: String,
        /// The rules.
        rules: Rules,
    },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Kill(peer) => write!(f, "kill {peer}"),
            Fault::Pause(peer) => write!(f, "pause {peer}"),
            Fault::KillAll(all) => write!(f, "kill {}", list(all)),
            Fault::Inside(peer, broken) => write!(f, "{peer} {broken}"),
            Fault::Network { what, .. } => f.write_str(what),
        }
    }
}

/// A fault, when it comes and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Time without a fault before it.
    pub quiet: Duration,
    /// What happens.
    pub fault: Fault,
    /// Time until it is undone.
    pub lasts: Duration,
}

/// All that will happen to a cluster; without an end.
pub struct Plan {
    kinds: Vec<Kind>,
    kvnodes: Vec<Peer>,
    others: Vec<Peer>,
    spares_metaservice: bool,
    chance: StdRng,
}

impl Plan {
    /// For a cluster of so many kvnodes and gateways and one metaservice.
    pub fn new(kinds: &[Kind], kvnodes: usize, gateways: usize, seed: u64) -> Self {
        let kinds = kinds.iter().filter(|kind| **kind != Kind::None);
        let mut others = vec![Peer::Metaservice];
        others.extend((0..gateways).map(Peer::Gateway));
        Plan {
            kinds: kinds.copied().collect(),
            kvnodes: (0..kvnodes).map(Peer::KvNode).collect(),
            others,
            spares_metaservice: false,
            chance: StdRng::seed_from_u64(seed),
        }
    }

    /// The metaservice is paused where it would be killed.
    #[must_use]
    pub fn sparing_metaservice(self, spares_metaservice: bool) -> Self {
        Plan {
            spares_metaservice,
            ..self
        }
    }

    fn fault(&mut self) -> Option<Fault> {
        Some(match self.kinds.choose(&mut self.chance).copied()? {
            Kind::None => return None,
            Kind::Kill => match self.victim()? {
                Peer::Metaservice if self.spares_metaservice => Fault::Pause(Peer::Metaservice),
                victim => Fault::Kill(victim),
            },
            Kind::Pause => Fault::Pause(self.victim()?),
            Kind::Partition => self.partition()?,
            Kind::OneWay => self.one_way()?,
            Kind::Delay => {
                let slow = self.kvnode()?;
                let delay = self.duration(DELAY_MS);
                let quality = Quality {
                    delay,
                    ..Quality::default()
                };
                self.impaired(slow, quality, format!("delay {slow} by {delay:?}"))
            }
            Kind::Loss => {
                let lossy = self.kvnode()?;
                let lost = self.chance.random_range(LOST);
                let quality = Quality {
                    lost_per_mille: lost,
                    ..Quality::default()
                };
                let percent = f64::from(lost) / 10.0;
                self.impaired(lossy, quality, format!("loss {lossy} of {percent} %"))
            }
            Kind::Slow => {
                let slow = self.kvnode()?;
                let rate = self.chance.random_range(BYTES_PER_SECOND);
                let quality = Quality {
                    bytes_per_second: Some(rate),
                    ..Quality::default()
                };
                let kilobytes = rate / 1000;
                self.impaired(slow, quality, format!("slow {slow}, {kilobytes} kB/s"))
            }
            Kind::Bridge => self.bridge()?,
            Kind::Restart => {
                let spared = |peer: &Peer| self.spares_metaservice && *peer == Peer::Metaservice;
                Fault::KillAll(self.all_but(spared))
            }
            Kind::SlowDisk => {
                let slow = self.with_disk(false)?;
                Fault::Inside(slow, Broken::SyncDelay(self.duration(SYNC_DELAY_MS)))
            }
            Kind::FullDisk => {
                let full = self.with_disk(self.spares_metaservice)?;
                Fault::Inside(full, Broken::DiskFull(true))
            }
            Kind::Clock => self.clock()?,
        })
    }

    /// Mostly a kvnode, else the metaservice.
    fn with_disk(&mut self, spares_metaservice: bool) -> Option<Peer> {
        match !spares_metaservice && self.chance.random_ratio(1, 5) {
            true => Some(Peer::Metaservice),
            false => self.kvnode(),
        }
    }

    /// Everybody believes the metaservice: it is left alone.
    fn clock(&mut self) -> Option<Fault> {
        let wrong = match self.victim()? {
            Peer::Metaservice => self.kvnode()?,
            other => other,
        };
        let broken = match self.chance.random() {
            true => Broken::ClockJump(self.duration(JUMP_MS)),
            false => Broken::ClockRate(*RATES_PPM.choose(&mut self.chance)?),
        };
        debug_assert_ne!(broken, Broken::ClockRate(SOUND_PPM));
        Some(Fault::Inside(wrong, broken))
    }

    /// All links of a kvnode, in both directions.
    fn impaired(&self, bad: Peer, quality: Quality, what: String) -> Fault {
        let others = self.all_but(|peer| *peer == bad);
        let links = others.into_iter().flat_map(|peer| both(bad, peer));
        Fault::Network {
            what,
            rules: Rules::impair(links, quality),
        }
    }

    /// The kvnodes but one fall into two halves; the other processes reach that one and
    /// one of the halves.
    fn bridge(&mut self) -> Option<Fault> {
        let mut kvnodes = self.kvnodes.clone();
        kvnodes.shuffle(&mut self.chance);
        let bridge = kvnodes.pop()?;
        let half = kvnodes.len() / 2;
        let (mut left, mut right): (Vec<Peer>, Vec<Peer>) =
            (kvnodes[..half].to_vec(), kvnodes[half..].to_vec());
        for other in &self.others {
            match self.chance.random() {
                true => left.push(*other),
                false => right.push(*other),
            }
        }
        let cut = |a: Peer| right.clone().into_iter().flat_map(move |b| both(a, b));
        Some(Fault::Network {
            what: format!("bridge {} | {bridge} | {}", list(&left), list(&right)),
            rules: Rules::hold(left.iter().flat_map(|a| cut(*a))),
        })
    }

    fn all_but(&self, left_out: impl Fn(&Peer) -> bool) -> Vec<Peer> {
        let all = self.kvnodes.iter().chain(&self.others).copied();
        all.filter(|peer| !left_out(peer)).collect()
    }

    fn kvnode(&mut self) -> Option<Peer> {
        self.kvnodes.choose(&mut self.chance).copied()
    }

    /// Mostly a kvnode.
    fn victim(&mut self) -> Option<Peer> {
        match self.chance.random_ratio(2, 3) {
            true => self.kvnode(),
            false => self.others.choose(&mut self.chance).copied(),
        }
    }

    /// One kvnode alone; or a minority of them and the rest, with each of the
    /// other processes on either side.
    fn partition(&mut self) -> Option<Fault> {
        let side: BTreeSet<Peer> = if self.chance.random() {
            self.kvnode().into_iter().collect()
        } else {
            let mut shuffled = self.kvnodes.clone();
            shuffled.shuffle(&mut self.chance);
            let largest = shuffled.len().saturating_sub(1) / 2;
            shuffled.truncate(self.chance.random_range(1..=largest.max(1)));
            let others = self.others.iter().filter(|_| self.chance.random());
            shuffled.into_iter().chain(others.copied()).collect()
        };
        let rest = self.all_but(|peer| side.contains(peer));
        let cut = |a: Peer| rest.iter().flat_map(move |b| both(a, *b));
        let links = side.iter().flat_map(|a| cut(*a));
        Some(Fault::Network {
            what: format!("partition {} | {}", list(&side), list(&rest)),
            rules: Rules::hold(links),
        })
    }

    /// One direction between a kvnode and another process, or all others.
    fn one_way(&mut self) -> Option<Fault> {
        let node = self.kvnode()?;
        let mut others = self.all_but(|peer| *peer == node);
        if self.chance.random() {
            let one = *others.choose(&mut self.chance)?;
            others = vec![one];
        }
        let outward = self.chance.random();
        let link = |other: &Peer| match outward {
            true => Link::new(node, *other),
            false => Link::new(*other, node),
        };
        let arrow = if outward { "->" } else { "<-" };
        Some(Fault::Network {
            what: format!("one-way {node} {arrow} {}", list(&others)),
            rules: Rules::hold(others.iter().map(link)),
        })
    }

    fn duration(&mut self, ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.chance.random_range(ms))
    }
}

impl Iterator for Plan {
    type Item = Strike;

    fn next(&mut self) -> Option<Strike> {
        let [short, long] = LASTS_MS;
        let lasts = if self.chance.random() { short } else { long };
        Some(Strike {
            quiet: self.duration(QUIET_MS),
            fault: self.fault()?,
            lasts: self.duration(lasts),
        })
    }
}

fn both(a: Peer, b: Peer) -> [Link; 2] {
    [Link::new(a, b), Link::new(b, a)]
}

fn list<'a>(peers: impl IntoIterator<Item = &'a Peer>) -> String {
    let names: Vec<String> = peers.into_iter().map(Peer::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(kind: Kind, kvnodes: usize) -> Vec<Strike> {
        Plan::new(&[kind], kvnodes, 2, 1).take(200).collect()
    }

    fn held(strike: &Strike) -> &BTreeSet<Link> {
        match &strike.fault {
            Fault::Network { rules, .. } => &rules.held,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_seed_is_a_plan() {
        let all = [
            Kind::Kill,
            Kind::Pause,
            Kind::Partition,
            Kind::OneWay,
            Kind::Delay,
            Kind::Loss,
            Kind::Slow,
            Kind::Bridge,
            Kind::Restart,
            Kind::SlowDisk,
            Kind::FullDisk,
            Kind::Clock,
        ];
        let plan = |seed| -> Vec<Strike> { Plan::new(&all, 3, 2, seed).take(50).collect() };
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        assert_eq!(Plan::new(&[Kind::None], 3, 2, 1).next(), None);
        assert_eq!(Plan::new(&[], 3, 2, 1).next(), None);
    }

    #[test]
    fn every_process_is_killed_some_time() {
        let killed: BTreeSet<String> = strikes(Kind::Kill, 3)
            .iter()
            .map(|strike| strike.fault.to_string())
            .collect();
        assert_eq!(killed.len(), 6, "{killed:?}");
        assert!(killed.contains("kill metaservice-1"));
        let mut spared = Plan::new(&[Kind::Kill], 3, 2, 1).sparing_metaservice(true);
        let meta = |strike: &Strike| strike.fault == Fault::Kill(Peer::Metaservice);
        assert!(!spared.by_ref().take(200).any(|strike| meta(&strike)));
    }

    #[test]
    fn a_partition_holds_both_directions_and_leaves_a_majority_together() {
        for kvnodes in [3, 5] {
            for strike in strikes(Kind::Partition, kvnodes) {
                let held = held(&strike);
                assert!(!held.is_empty());
                assert!(held.iter().all(|link| held.contains(&link.back())));
                let lonely = |n: usize| {
                    let cut =
                        |m: &usize| held.contains(&Link::new(Peer::KvNode(n), Peer::KvNode(*m)));
                    (0..kvnodes).filter(cut).count() > kvnodes / 2
                };
                let minority = (0..kvnodes).filter(|n| lonely(*n)).count();
                assert!((1..=kvnodes / 2).contains(&minority), "{}", strike.fault);
            }
        }
    }

    #[test]
    fn one_way_leaves_the_other_way_open() {
        let strikes = strikes(Kind::OneWay, 3);
        for strike in &strikes {
            let held = held(strike);
            assert!(!held.is_empty());
            assert!(held.iter().all(|link| !held.contains(&link.back())));
        }
        let single = strikes.iter().filter(|s| held(s).len() == 1).count();
        assert!(single > 50 && single < 150, "{single}");
    }

    #[test]
    fn who_tells_the_time_tells_it_right_and_is_not_made_to_end() {
        let victims = |kind, spares| -> BTreeSet<String> {
            let plan = Plan::new(&[kind], 3, 2, 1).sparing_metaservice(spares);
            let victim = |strike: Strike| match strike.fault {
                Fault::Inside(peer, _) => peer.to_string(),
                other => panic!("{other}"),
            };
            plan.take(200).map(victim).collect()
        };
        assert_eq!(victims(Kind::Clock, true).len(), 5);
        assert!(!victims(Kind::Clock, true).contains("metaservice-1"));
        assert_eq!(victims(Kind::FullDisk, true).len(), 3);
        assert_eq!(victims(Kind::FullDisk, false).len(), 4);
        assert_eq!(victims(Kind::SlowDisk, true).len(), 4);
    }

    #[test]
    fn a_bridge_reaches_all_and_the_halves_do_not_reach_each_other() {
        for kvnodes in [3, 5] {
            for strike in strikes(Kind::Bridge, kvnodes) {
                let held = held(&strike);
                assert!(held.iter().all(|link| held.contains(&link.back())));
                let all: Vec<Peer> = (0..kvnodes).map(Peer::KvNode).collect();
                let reaches_all =
                    |a: &&Peer| !all.iter().any(|b| held.contains(&Link::new(**a, *b)));
                assert_eq!(
                    all.iter().filter(reaches_all).count(),
                    1,
                    "{}",
                    strike.fault
                );
            }
        }
    }

    #[test]
    fn a_bad_link_is_bad_in_its_own_way() {
        let quality = |kind| {
            let strike = strikes(kind, 3).remove(0);
            match strike.fault {
                Fault::Network { rules, .. } => {
                    // The others, there and back.
                    assert_eq!(rules.impaired.len(), 10);
                    rules.impaired.into_values().next().unwrap()
                }
                other => panic!("{other:?}"),
            }
        };
        assert!(quality(Kind::Delay).delay > Duration::ZERO);
        assert!(quality(Kind::Loss).lost_per_mille > 0);
        assert!(quality(Kind::Slow).bytes_per_second.is_some());
    }

    #[test]
    fn all_are_killed_at_once_unless_nobody_could_tell_the_time_then() {
        let killed = |spares| {
            let plan = Plan::new(&[Kind::Restart], 3, 2, 1).sparing_metaservice(spares);
            match plan.into_iter().next().unwrap().fault {
                Fault::KillAll(all) => (all.len(), all.contains(&Peer::Metaservice)),
                other => panic!("{other}"),
            }
        };
        assert_eq!(killed(false), (6, true));
        assert_eq!(killed(true), (5, false));
    }
}
