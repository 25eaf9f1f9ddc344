//! The clock against a world that knows the true time: counters that drift,
//! delays of any asymmetry, pauses, masters that come and go without noticing,
//! processes that share a master's counter. At every step every interval must
//! contain the one reference time; so any two taken at one instant overlap.
//!
//! The reference is the line of whoever leads. It passes from one line to the
//! next at the point at which the next one was planned to begin.

use super::discipline::{Bounds, Discipline, Raw, SAMPLE_VALID_US, Sample};
use super::master::{Line, MASTER_LEASE_US, Master, Stage, cold_start};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// The last two run on the machines of the first two.
const PROCESSES: usize = 5;

/// Whose counter a process reads.
fn machine(process: usize) -> usize {
    match process {
        3 => 0,
        4 => 1,
        _ => process,
    }
}

/// Half of what two may differ by.
const PPM_MAX: i64 = 100;

/// A process: its counter, what it knows, and what it believes about itself.
struct Process {
    start: u64,
    ppm: i64,
    clock: Discipline,
    /// With its term.
    master: Option<(u64, Master)>,
    /// Its counter at the beginning of the last round in which a quorum said
    /// that it leads.
    confirmed: Raw,
    /// It does nothing until then.
    paused_until: u64,
}

enum Event {
    Tick(usize),
    /// A probe reaches somebody who may think that it is the master.
    Probe {
        from: usize,
        to: usize,
        sent: Raw,
    },
    /// The master has read its clock; now it checks its lease.
    Check {
        from: usize,
        to: usize,
        sent: Raw,
        term: u64,
        epoch: u64,
        read: Raw,
        at_master: Bounds,
    },
    Answer {
        to: usize,
        sample: Sample,
    },
    Elect,
    Confirm {
        master: usize,
        began: Raw,
        term: u64,
    },
    Depose(usize, u64),
    Restart(usize),
    Pause(usize),
}

struct World {
    rng: StdRng,
    /// True time in microseconds.
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    processes: Vec<Process>,
    leader: usize,
    term: u64,
    /// Committed in the master's group.
    epoch: u64,
    ceiling: u64,
    /// Whose counter, and its line; none before the first start.
    reference: Option<(usize, Line)>,
    switches: usize,
    cold_starts: usize,
    answers: usize,
    /// The latest that any process reckoned with.
    told: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let extreme = rng.random_bool(0.5);
        let processes = (0..PROCESSES).map(|_| Process {
            start: rng.random_range(0..1 << 40),
            ppm: match (extreme, rng.random_bool(0.5)) {
                (true, true) => PPM_MAX,
                (true, false) => -PPM_MAX,
                (false, _) => rng.random_range(-PPM_MAX..=PPM_MAX),
            },
            clock: Discipline::default(),
            master: None,
            confirmed: Raw(0),
            paused_until: 0,
        });
        let processes = processes.collect();
        let mut world = World {
            rng,
            now: 1_000_000,
            events: BTreeMap::new(),
            sequence: 0,
            processes,
            leader: 0,
            term: 0,
            epoch: 0,
            ceiling: 0,
            reference: None,
            switches: 0,
            cold_starts: 0,
            answers: 0,
            told: 0,
        };
        world.after(0, Event::Elect);
        for process in 0..PROCESSES {
            world.after(1000, Event::Tick(process));
        }
        world
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.sequence += 1;
        self.events
            .insert((self.now + micros, self.sequence), event);
    }

    fn raw_at(&self, process: usize, now: u64) -> Raw {
        let Process { start, ppm, .. } = self.processes[machine(process)];
        let elapsed = i128::from(now) * i128::from(1_000_000 + ppm) / 1_000_000;
        Raw(start + elapsed as u64)
    }

    fn raw(&self, process: usize) -> Raw {
        self.raw_at(process, self.now)
    }

    /// Mostly a fraction of a millisecond, at times seconds.
    fn delay(&mut self) -> u64 {
        match self.rng.random_range(0..20) {
            0 => self.rng.random_range(0..3_000_000),
            1..4 => self.rng.random_range(0..50_000),
            _ => self.rng.random_range(0..400),
        }
    }

    /// The true time at a reading.
    fn instant_of(&self, process: usize, raw: Raw) -> u64 {
        let Process { start, ppm, .. } = self.processes[machine(process)];
        let elapsed = i128::from(raw.0 - start) * 1_000_000;
        (elapsed / i128::from(1_000_000 + ppm)) as u64
    }

    fn time(&self) -> Option<u64> {
        self.reference
            .map(|(process, line)| line.at(self.raw(process)))
    }

    fn step(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return;
        };
        self.now = at;
        self.happen(event);
        self.pass_to_the_next_line();
        self.check();
    }

    fn check(&mut self) {
        let Some(time) = self.time() else { return };
        for (number, process) in self.processes.iter().enumerate() {
            let Some(Bounds { earliest, latest }) = process.clock.bounds(self.raw(number)) else {
                continue;
            };
            self.told = self.told.max(latest);
            assert!(
                earliest <= time && time <= latest,
                "at {}: process {number} says {earliest} to {latest}, it is {time}; {:?} led by \
                 {:?}",
                self.now,
                process.clock,
                self.processes.iter().map(|p| p.master).collect::<Vec<_>>(),
            );
        }
    }

    /// A paused process takes its events later.
    fn postpone(&mut self, process: usize, event: Event) -> Option<Event> {
        let until = self.processes[process].paused_until;
        if until <= self.now {
            return Some(event);
        }
        self.after(until - self.now, event);
        None
    }

    fn happen(&mut self, event: Event) {
        let who = match &event {
            Event::Tick(who) | Event::Probe { to: who, .. } | Event::Check { to: who, .. } => *who,
            Event::Answer { to, .. } => *to,
            Event::Confirm { master, .. } | Event::Depose(master, _) => *master,
            Event::Elect | Event::Restart(_) | Event::Pause(_) => usize::MAX,
        };
        let event = match who {
            usize::MAX => event,
            who => match self.postpone(who, event) {
                Some(event) => event,
                None => return,
            },
        };
        match event {
            Event::Tick(who) => self.tick(who),
            Event::Probe { from, to, sent } => self.read(from, to, sent),
            Event::Check { .. } => self.answer(event),
            Event::Answer { to, mut sample } => {
                sample.received = self.raw(to);
                self.processes[to].clock.observe(sample).unwrap();
            }
            Event::Elect => self.elect(),
            Event::Confirm {
                master,
                began,
                term,
            } => {
                if term == self.term && self.leader == master {
                    let confirmed = &mut self.processes[master].confirmed;
                    *confirmed = began.max(*confirmed);
                }
            }
            Event::Depose(who, term) => {
                if self.leader != who || self.term == term {
                    self.processes[who].master = None;
                }
            }
            Event::Restart(who) => {
                let process = &mut self.processes[who];
                process.clock = Discipline::default();
                if who != self.leader {
                    process.master = None;
                }
            }
            Event::Pause(who) => {
                let pause = self.rng.random_range(0..90_000_000);
                self.processes[who].paused_until = self.now + pause;
            }
        }
    }

    fn tick(&mut self, who: usize) {
        self.after(250_000, Event::Tick(who));
        let sent = self.raw(who);
        // It may ask one that leads no more.
        let to = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..PROCESSES),
            _ => self.leader,
        };
        let delay = self.delay();
        self.after(
            delay,
            Event::Probe {
                from: who,
                to,
                sent,
            },
        );
        if self.leader == who {
            let (delay, term) = (self.delay(), self.term);
            self.after(
                delay,
                Event::Confirm {
                    master: who,
                    began: sent,
                    term,
                },
            );
            self.lead(who);
        }
    }

    /// What the leader does besides answering.
    fn lead(&mut self, who: usize) {
        let now = self.raw(who);
        let own = self.processes[who].clock.sample(now);
        let wall = self.now + 1_700_000_000_000_000;
        let (epoch, first) = (self.epoch, self.reference.is_none());
        let Some((_, master)) = &mut self.processes[who].master else {
            return;
        };
        master.advance(now, own);
        let until = match master.stage() {
            Stage::Cold { until } => until,
            _ => now,
        };
        if master.may_draw(now) || (first && matches!(master.stage(), Stage::Cold { .. })) {
            let time = cold_start(wall, self.ceiling, 0);
            assert!(time > self.told, "a cold start below what was told");
            *master = Master::drawing(epoch + 1, now, time);
            self.epoch += 1;
            self.ceiling = time + 5_000_000;
            self.cold_starts += 1;
            self.draw(who, Line { raw: now, time }, until);
            return;
        }
        if let Some(line) = master.due(now) {
            *master = Master::drawing(epoch, now, line.at(now));
            let latest = line.at(now);
            self.ceiling = self.ceiling.max(latest + 5_000_000);
            self.draw(who, line, line.raw);
            return;
        }
        if let Some(bounds) = master.bounds(now) {
            self.ceiling = self.ceiling.max(bounds.latest + 5_000_000);
        }
    }

    fn read(&mut self, from: usize, to: usize, sent: Raw) {
        let (read, own) = (self.raw(to), self.processes[to].clock.sample(self.raw(to)));
        let Some((term, master)) = &mut self.processes[to].master else {
            return;
        };
        master.advance(read, own);
        let Some(at_master) = master.bounds(read) else {
            return;
        };
        let (term, epoch) = (*term, master.epoch());
        let pause = self.delay();
        let check = Event::Check {
            from,
            to,
            sent,
            term,
            epoch,
            read,
            at_master,
        };
        self.after(pause, check);
    }

    fn answer(&mut self, event: Event) {
        let Event::Check {
            from,
            to,
            sent,
            term,
            epoch,
            read,
            at_master,
        } = event
        else {
            return;
        };
        let now = self.raw(to);
        let process = &self.processes[to];
        // Its lease is one of the term in which it has read.
        let leads = process.master.is_some_and(|(current, _)| current == term);
        let in_lease = now.since(process.confirmed) < MASTER_LEASE_US;
        if !leads || !in_lease || at_master.latest > self.ceiling {
            return;
        }
        self.answers += 1;
        // The questioner's other reading is put in when it arrives.
        let shared = (machine(from) == machine(to)).then_some(read);
        let sample = Sample {
            epoch,
            sent,
            received: sent,
            at_master,
            shared,
        };
        let delay = self.delay();
        self.after(delay, Event::Answer { to: from, sample });
    }

    /// The line of the present leader is the time from its planned beginning on.
    fn pass_to_the_next_line(&mut self) {
        let (who, now) = (self.leader, self.raw(self.leader));
        let Some((_, master)) = self.processes[who].master else {
            return;
        };
        if let Some(line) = master.due(now) {
            self.draw(who, line, line.raw);
        }
    }

    /// Another line is the time. `at`: when the one before ended.
    fn draw(&mut self, who: usize, line: Line, at: Raw) {
        if self.reference == Some((machine(who), line)) {
            return;
        }
        if let Some((process, before)) = self.reference {
            let instant = self.instant_of(who, at);
            let before = before.at(self.raw_at(process, instant));
            let after = line.at(at.max(line.raw));
            assert!(
                before <= after + 1,
                "time goes back from {before} to {after}"
            );
        }
        self.reference = Some((machine(who), line));
        self.switches += 1;
    }

    fn elect(&mut self) {
        let (old, term) = (self.leader, self.term);
        self.leader = self.rng.random_range(0..PROCESSES);
        self.term += 1;
        if self.leader != old {
            // It learns of it some time.
            let learns = self.rng.random_range(0..20_000_000);
            self.after(learns, Event::Depose(old, term));
        }
        let now = self.raw(self.leader);
        let master = Master::elected(self.epoch, now);
        self.processes[self.leader].master = Some((self.term, master));
        let next = match self.rng.random_range(0..5) {
            0 => self.rng.random_range(0..2_000_000),
            1 => SAMPLE_VALID_US + self.rng.random_range(0..3_000_000),
            _ => self.rng.random_range(0..300_000_000),
        };
        self.after(next, Event::Elect);
        let who = self.rng.random_range(0..PROCESSES);
        if self.rng.random_bool(0.3) {
            self.after(next / 2, Event::Pause(who));
        }
        match self.rng.random_range(0..8) {
            0 => (0..PROCESSES).for_each(|who| self.after(next, Event::Restart(who))),
            1..4 => self.after(next / 3, Event::Restart(who)),
            _ => {}
        }
    }
}

#[test]
fn every_interval_contains_the_reference_time() {
    let (mut switches, mut cold_starts, mut answers) = (0, 0, 0);
    for seed in 0..40 {
        let mut world = World::new(seed);
        for _ in 0..50_000 {
            world.step();
        }
        switches += world.switches;
        cold_starts += world.cold_starts;
        answers += world.answers;
    }
    // It was not a quiet life.
    assert!(
        switches > 100 && cold_starts > 40 && answers > 100_000,
        "{switches} {cold_starts} {answers}"
    );
}

/// The history that speaks against reporting the own latest, growing, and
/// switching to it (see `master.rs`).
#[test]
fn a_slow_counter_keeps_up_with_the_line_of_a_new_master() {
    let slow = |now: u64| Raw(now - now * 200 / 1_000_000);
    let exact = |time| Bounds {
        earliest: time,
        latest: time,
    };
    let (sent, time) = (Raw(1_000_000), 5_000_000);
    let own = Sample {
        epoch: 1,
        sent,
        received: sent,
        at_master: exact(time),
        shared: None,
    };
    let mut master = Master::elected(1, sent);
    master.advance(Raw(3_000_000), Some(own));
    let Stage::Following { line, .. } = master.stage() else {
        panic!("{master:?}");
    };
    // A process asks early, and uses the answer when the master has switched.
    let early = Raw(3_100_000);
    let told = |latest| {
        let at = slow(early.0);
        let at_master = Bounds {
            earliest: own.bounds(early).earliest,
            latest,
        };
        let sample = Sample {
            sent: at,
            received: at,
            at_master,
            ..own
        };
        let late = Raw(line.raw.0 + 50_000);
        assert!(sample.is_valid(slow(late.0)));
        (sample.bounds(slow(late.0)).latest, line.at(late))
    };
    let (latest, time) = told(own.bounds(early).latest);
    assert!(
        latest + 11_000 < time,
        "its latest, {latest}, is 11 ms before the time, {time}"
    );
    let (latest, time) = told(master.bounds(early).unwrap().latest);
    assert!(latest >= time);
}
