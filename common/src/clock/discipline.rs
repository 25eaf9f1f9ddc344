//! What a process knows of the cluster's time (rules T1, T2). Pure: samples
//! and readings of the raw counter come in, bounds come out.
//!
//! A process asks the time master; the answer holds for some instant between
//! sending the question and receiving the answer (Cristian, *Probabilistic
//! clock synchronization*, 1989). So at a later reading of the own counter the
//! cluster's time is at least what the master said plus what has passed since
//! the answer came, and at most that plus what has passed since the question
//! left; both less or plus what two counters can drift apart meanwhile. No
//! midpoint is guessed: asymmetric delays are covered.

/// How far apart two sound counters run, in parts per million.
pub const DRIFT_PPM: u64 = 200;

/// What bounds grow by: with two counters 200 ppm apart, the one is slower by
/// 200.00 and the other faster by 200.04.
const GROWTH_PPM: u64 = DRIFT_PPM + 1;

/// How long a sample may be used, from the sending of its probe, in
/// microseconds of the own counter (V of rule T2).
pub const SAMPLE_VALID_US: u64 = 60_000_000;

/// A reading of a raw monotonic counter, in microseconds. Counters of two
/// machines, or of two boots of one, have nothing to do with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Raw(pub u64);

impl Raw {
    /// Microseconds from `earlier` to here; 0 if it is later.
    pub fn since(self, earlier: Raw) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// So many microseconds later.
    #[must_use]
    pub fn plus(self, micros: u64) -> Raw {
        Raw(self.0.saturating_add(micros))
    }
}

/// Two points in microseconds between which the cluster's time is, both
/// included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Not after the cluster's time.
    pub earliest: u64,
    /// Not before the cluster's time.
    pub latest: u64,
}

impl Bounds {
    /// The error: how far the two are apart.
    pub fn width(self) -> u64 {
        self.latest.saturating_sub(self.earliest)
    }

    /// True if both can be right.
    pub fn overlaps(self, other: Bounds) -> bool {
        self.earliest <= other.latest && other.earliest <= self.latest
    }
}

/// What `micros` on one counter may be more or less on another one. At least 2:
/// readings are rounded down.
pub fn drift_over(micros: u64) -> u64 {
    let parts = u128::from(micros) * u128::from(GROWTH_PPM);
    u64::try_from(parts.div_ceil(1_000_000) + 2).unwrap_or(u64::MAX)
}

/// What a span on one counter is at most on another one.
pub fn at_most(micros: u64) -> u64 {
    micros.saturating_add(drift_over(micros))
}

/// One answer of the time master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The epoch of the clock, which a cold start raises.
    pub epoch: u64,
    /// The own counter before the probe was sent.
    pub sent: Raw,
    /// The own counter after the answer had come.
    pub received: Raw,
    /// What the master knew in between.
    pub at_master: Bounds,
    /// The master reads the very counter that we do (it runs under the same
    /// boot of the same machine), and this is its reading. If it knows the time
    /// exactly, so do we, now and later. If it does not, then the time runs by
    /// another counter, and this one drifts against that like any.
    pub shared: Option<Raw>,
}

impl Sample {
    /// Whether it may still be used.
    pub fn is_valid(&self, now: Raw) -> bool {
        now.since(self.sent) <= SAMPLE_VALID_US
    }

    /// What it says about the present; about the past, too, for those who have
    /// read the counter before the sample came.
    pub fn bounds(&self, now: Raw) -> Bounds {
        let Bounds { earliest, latest } = self.at_master;
        if let Some(read) = self.shared.filter(|_| earliest == latest) {
            let time = earliest.saturating_add(now.since(read));
            let time = time.saturating_sub(read.since(now));
            return Bounds {
                earliest: time,
                latest: time,
            };
        }
        let (least, most) = (now.since(self.received), now.since(self.sent));
        let early = match self.received.since(now) {
            0 => 0,
            before => at_most(before),
        };
        Bounds {
            earliest: { earliest.saturating_add(least) }
                .saturating_sub(drift_over(least))
                .saturating_sub(early),
            latest: latest.saturating_add(at_most(most)),
        }
    }

    /// The latest that it was at a reading `at` of the counter before the probe was sent:
    /// what has passed since, at least, is taken off.
    pub fn latest_at(&self, at: Raw) -> u64 {
        let passed = self.sent.since(at);
        let least = passed.saturating_sub(drift_over(passed));
        self.at_master.latest.saturating_sub(least)
    }

    /// What no sound master on a sound machine says.
    fn is_malformed(&self) -> bool {
        let outside = |read| read < self.sent || self.received < read;
        self.received < self.sent
            || self.at_master.latest < self.at_master.earliest
            || self.shared.is_some_and(outside)
    }
}

/// A new sample says what an earlier one excludes: the own counter, or the
/// master's, is not to be trusted (rule T1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From the earlier sample.
    pub ours: Bounds,
    /// From the new one.
    pub theirs: Bounds,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { ours, theirs } = self;
        write!(
            f,
            "this clock says {} to {}, and was told {} to {}: one of two counters runs more than \
             {DRIFT_PPM} ppm wrong, or stood still",
            ours.earliest, ours.latest, theirs.earliest, theirs.latest
        )
    }
}

/// The samples of one process.
#[derive(Clone, Debug, Default)]
pub struct Discipline {
    epoch: u64,
    /// The one that says most about the present.
    best: Option<Sample>,
    /// The last one: what is left when the best one's life is over.
    newest: Option<Sample>,
    /// Old ones, half of a life apart: what a new one is held against. A rate
    /// that is wrong shows over a long time only.
    anchors: [Option<Sample>; 2],
    /// Answers to what was asked until then are not believed any more.
    not_before: Option<Raw>,
}

impl Discipline {
    /// The epoch of the clock that it last heard of; 0 before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes a sample in, or drops all because it contradicts them. One of an
    /// earlier epoch, or that is too old when it comes, or malformed, changes
    /// nothing.
    ///
    /// # Errors
    /// When a clock is broken; nothing is known then until the answer to a
    /// probe that is sent later.
    pub fn observe(&mut self, sample: Sample) -> Result<(), Fault> {
        let too_old = !sample.is_valid(sample.received)
            || self.not_before.is_some_and(|before| sample.sent <= before);
        if sample.epoch < self.epoch || too_old || sample.is_malformed() {
            return Ok(());
        }
        if sample.epoch > self.epoch {
            // Nothing that was known holds in it.
            *self = Discipline {
                epoch: sample.epoch,
                ..Discipline::default()
            };
        }
        // Answers may come in another order than they are taken in.
        let kept = [self.best, self.newest, self.anchors[0], self.anchors[1]];
        let kept = kept.into_iter().flatten();
        let now = kept
            .clone()
            .fold(sample.received, |now, kept| now.max(kept.received));
        for kept in kept.filter(|kept| kept.is_valid(now)) {
            let (ours, theirs) = (kept.bounds(now), sample.bounds(now));
            if !ours.overlaps(theirs) {
                self.drop_samples(now);
                return Err(Fault { ours, theirs });
            }
        }
        let narrower = |best: &Sample| {
            best.is_valid(now) && best.bounds(now).width() < sample.bounds(now).width()
        };
        if !self.best.as_ref().is_some_and(narrower) {
            self.best = Some(sample);
        }
        self.newest = Some(sample);
        let young = |anchor: &Sample| now.since(anchor.sent) <= SAMPLE_VALID_US / 2;
        if !self.anchors[1].as_ref().is_some_and(young) {
            self.anchors = [self.anchors[1], Some(sample)];
        }
        Ok(())
    }

    /// Forgets everything but the epoch, and what is on its way.
    pub fn drop_samples(&mut self, now: Raw) {
        *self = Discipline {
            epoch: self.epoch,
            not_before: Some(now),
            ..Discipline::default()
        };
    }

    /// True for a sample that was not passed over.
    pub fn took(&self, sample: &Sample) -> bool {
        self.newest.as_ref() == Some(sample)
    }

    /// What is known about the present; `None` if nothing is.
    pub fn bounds(&self, now: Raw) -> Option<Bounds> {
        self.sample(now).map(|sample| sample.bounds(now))
    }

    /// The sample in use.
    pub fn sample(&self, now: Raw) -> Option<Sample> {
        let samples = [self.best, self.newest];
        samples
            .into_iter()
            .flatten()
            .find(|sample| sample.is_valid(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sent: u64, received: u64, earliest: u64, latest: u64) -> Sample {
        Sample {
            epoch: 1,
            sent: Raw(sent),
            received: Raw(received),
            at_master: Bounds { earliest, latest },
            shared: None,
        }
    }

    #[test]
    fn the_error_is_the_round_trip_then_the_drift() {
        let mut clock = Discipline::default();
        assert_eq!(clock.bounds(Raw(0)), None);
        clock.observe(sample(100, 300, 5_000, 5_000)).unwrap();
        let at = |raw| clock.bounds(Raw(raw)).unwrap();
        assert_eq!((at(300).earliest, at(300).latest), (4_998, 5_203));
        // A second later: 2 x 201 ppm more.
        assert_eq!(at(1_000_300).width(), 200 + 201 + 202 + 4);
        // A little earlier: the answer may have been read since.
        assert_eq!((at(250).earliest, at(250).latest), (4_945, 5_153));
        assert!(clock.bounds(Raw(100 + SAMPLE_VALID_US)).is_some());
        assert_eq!(clock.bounds(Raw(101 + SAMPLE_VALID_US)), None);
    }

    #[test]
    fn the_narrower_sample_is_used() {
        let mut clock = Discipline::default();
        clock.observe(sample(0, 100, 1_000, 1_000)).unwrap();
        // Slow: the first one still says more.
        clock.observe(sample(1_000, 2_000, 2_500, 2_500)).unwrap();
        assert_eq!(clock.sample(Raw(2_000)).unwrap().sent, Raw(0));
        // After a second it does not.
        let later = sample(1_000_000, 1_000_300, 1_001_050, 1_001_050);
        clock.observe(later).unwrap();
        assert_eq!(clock.sample(Raw(1_000_300)), Some(later));
    }

    /// The best one may be so good that no later one is better, and then end.
    #[test]
    fn the_newest_sample_follows_the_best() {
        let mut clock = Discipline::default();
        clock.observe(sample(0, 2, 1_000, 1_000)).unwrap();
        let slow = sample(50_000_000, 50_100_000, 50_050_000, 50_050_000);
        clock.observe(slow).unwrap();
        assert_eq!(clock.sample(Raw(60_000_000)).unwrap().sent, Raw(0));
        assert_eq!(clock.sample(Raw(60_000_001)), Some(slow));
        // One whose life is over when it comes is none.
        clock.observe(sample(1, 70_000_000, 1_001, 1_001)).unwrap();
        assert_eq!(clock.sample(Raw(70_000_000)), Some(slow));
    }

    #[test]
    fn what_contradicts_drops_everything_that_was_asked_before() {
        let mut clock = Discipline::default();
        clock.observe(sample(0, 100, 1_000, 1_000)).unwrap();
        let fault = clock.observe(sample(10_000, 10_100, 11_500, 11_500));
        assert!(fault.is_err_and(|fault| !fault.ours.overlaps(fault.theirs)));
        assert_eq!(clock.bounds(Raw(10_100)), None);
        // An answer that was on its way.
        clock
            .observe(sample(10_050, 10_200, 11_100, 11_100))
            .unwrap();
        assert_eq!(clock.bounds(Raw(10_200)), None);
        clock
            .observe(sample(20_000, 20_100, 21_500, 21_500))
            .unwrap();
        assert!(clock.bounds(Raw(20_100)).is_some());
        clock.drop_samples(Raw(20_200));
        assert_eq!(clock.bounds(Raw(20_200)), None);
    }

    #[test]
    fn the_order_in_which_answers_are_taken_in_does_not_matter() {
        // Sound samples of one line: time = raw + 5,000,000.
        let quick = sample(940, 950, 5_000_945, 5_000_945);
        let slow = sample(900, 1_300, 5_001_290, 5_001_290);
        for order in [[quick, slow], [slow, quick]] {
            let mut clock = Discipline::default();
            for sample in order {
                assert_eq!(clock.observe(sample), Ok(()));
            }
            assert!(
                clock.bounds(Raw(930)).is_some(),
                "who read the counter before"
            );
        }
    }

    #[test]
    fn a_malformed_sample_is_none() {
        let mut clock = Discipline::default();
        let outside = Sample {
            shared: Some(Raw(99)),
            ..sample(100, 300, 5_000, 5_000)
        };
        for sample in [sample(2, 1, 5, 5), sample(1, 2, 6, 5), outside] {
            clock.observe(sample).unwrap();
        }
        assert_eq!(clock.sample(Raw(300)), None);
    }

    /// 300 ppm cannot be seen between two probes, but is after some seconds.
    #[test]
    fn a_wrong_rate_is_found_out() {
        let mut clock = Discipline::default();
        let found = (1..).map(|n| n * 250_000u64).find(|raw| {
            let time = raw + raw * 300 / 1_000_000;
            clock
                .observe(sample(*raw, raw + 200, time + 100, time + 100))
                .is_err()
        });
        let seconds = found.map(|raw| raw / 1_000_000);
        assert!(
            seconds.is_some_and(|seconds| (1..60).contains(&seconds)),
            "{seconds:?}"
        );
    }

    #[test]
    fn a_new_epoch_begins_anew_and_an_old_one_is_over() {
        let mut clock = Discipline::default();
        clock.observe(sample(0, 100, 1_000, 1_000)).unwrap();
        let new = Sample {
            epoch: 2,
            ..sample(10_000, 10_100, 9_000_000, 9_000_000)
        };
        clock.observe(new).unwrap();
        clock
            .observe(sample(11_000, 11_010, 12_000, 12_000))
            .unwrap();
        assert_eq!((clock.epoch(), clock.sample(Raw(11_010))), (2, Some(new)));
    }

    #[test]
    fn one_counter_has_no_error_if_the_time_runs_by_it() {
        let mut clock = Discipline::default();
        let shared = Sample {
            shared: Some(Raw(150)),
            ..sample(100, 300, 5_000, 5_000)
        };
        clock.observe(shared).unwrap();
        let exact = Bounds {
            earliest: 1_004_850,
            latest: 1_004_850,
        };
        assert_eq!(clock.bounds(Raw(1_000_000)), Some(exact));
        // A master that follows another counter drifts, and we with it.
        let following = Sample {
            shared: Some(Raw(150)),
            ..sample(100, 300, 4_900, 5_100)
        };
        assert_eq!(
            following.bounds(Raw(1_000_300)).width(),
            200 + 200 + 201 + 202 + 4
        );
    }
}
