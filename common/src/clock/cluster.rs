//! [`ClusterClock`]: the clock of a process, disciplined against the time
//! master (`discipline.rs` decides; here are the counter, the lock, the
//! metrics), and compared with the clocks of others (`compare.rs` says why).

use super::discipline::{Bounds, Discipline, Raw, Sample};
use super::{Clock, Comparing, Culprit, Interval, MAX_CLOCK_ERROR, SleepWatch, monotonic_raw_us};
use crate::telemetry::register;
use crate::{Error, ErrorKind, Result, Timestamp};
use parking_lot::{Mutex, RwLock};
use prometheus::{Gauge, IntCounter};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long the time master has to say who is right: it may be electing a leader.
const ARBITER_TIMEOUT: Duration = Duration::from_secs(5);
/// The master's answer cannot tell whether a clock that is ahead by less than a round
/// trip is right. Ours gives in, once in so long; what still disagrees is wrong.
const GIVES_IN_ONCE_US: u64 = 60_000_000;

struct Metrics {
    error: Gauge,
    probes: IntCounter,
    faults: IntCounter,
    disagreements: IntCounter,
}

#[allow(clippy::expect_used)] // constant names: wrong ones fail at the first start
static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let counter =
        |name: &str, help: &str| register(IntCounter::new(name, help).expect("a valid metric"));
    Metrics {
        error: register(
            Gauge::new(
                "lineradb_clock_error_seconds",
                "How far the earliest and the latest time that this process reckons with are apart",
            )
            .expect("a valid metric"),
        ),
        probes: counter(
            "lineradb_clock_probes_total",
            "Answers of the time master that this process has used",
        ),
        faults: counter(
            "lineradb_clock_faults_total",
            "Times that this process has dropped what it knew of the time, because it did not fit",
        ),
        disagreements: counter(
            "lineradb_clock_disagreements_total",
            "Messages whose sender's clock and this process's cannot both be right",
        ),
    }
});

/// The clock of a process.
#[derive(Debug)]
pub struct ClusterClock {
    discipline: RwLock<Discipline>,
    /// The largest earliest time given out since all was dropped, in microseconds: it
    /// never falls. Changed with the discipline locked.
    earliest: AtomicU64,
    sleep: SleepWatch,
    generation: AtomicU64,
    /// Somebody cannot wait for the next probe.
    doubt: Notify,
    /// The newest answer of the time master, fitting or not.
    told: watch::Sender<Option<Sample>>,
    /// After all was dropped last.
    dropped: AtomicU64,
    /// When another process was believed more than our own samples.
    gave_in: Mutex<Option<Raw>>,
}

impl ClusterClock {
    /// A clock that answers errors until it has a sample.
    pub fn unsynchronised() -> Arc<Self> {
        LazyLock::force(&METRICS);
        Arc::new(ClusterClock {
            discipline: RwLock::default(),
            earliest: AtomicU64::new(0),
            sleep: SleepWatch::start(),
            generation: AtomicU64::new(0),
            doubt: Notify::new(),
            told: watch::Sender::new(None),
            dropped: AtomicU64::new(0),
            gave_in: Mutex::default(),
        })
    }

    /// What it knows of the present, however little.
    fn bounds(&self) -> Option<Bounds> {
        if self.sleep.has_slept() {
            self.drop_after_sleep(&mut self.discipline.write());
        }
        let discipline = self.discipline.read();
        let bounds = discipline.bounds(Raw::now())?;
        // Two samples may say different things, both rightly; the time itself
        // never goes back, unless what was said was wrong.
        let earliest = self
            .earliest
            .fetch_max(bounds.earliest, Ordering::AcqRel)
            .max(bounds.earliest);
        Some(Bounds {
            earliest,
            latest: bounds.latest.max(earliest),
        })
    }

    /// Returns when the time master is to be asked at once.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Takes in an answer of the time master. One that does not fit drops all
    /// that is known.
    pub fn observe(&self, sample: Sample) {
        if self.take_in(sample) {
            self.told.send_replace(Some(sample));
        }
    }

    /// True for one that says something of the present.
    fn take_in(&self, sample: Sample) -> bool {
        let mut discipline = self.discipline.write();
        self.drop_after_sleep(&mut discipline);
        let before = (discipline.epoch(), discipline.bounds(Raw::now()).is_some());
        match discipline.observe(sample) {
            Ok(()) => {
                METRICS.probes.inc();
                if let Some(bounds) = discipline.bounds(Raw::now()) {
                    METRICS.error.set(bounds.width() as f64 / 1e6);
                }
                let took = discipline.took(&sample);
                // After a gap, or in another epoch, it says nothing about what was said before.
                if took && before != (discipline.epoch(), true) {
                    self.generation.fetch_add(1, Ordering::AcqRel);
                }
                took
            }
            Err(fault) => {
                self.has_dropped();
                tracing::error!(%fault, "the clock is not to be trusted; synchronising anew");
                true
            }
        }
    }

    /// The sample in use.
    pub fn sample(&self) -> Option<Sample> {
        let mut discipline = self.discipline.write();
        self.drop_after_sleep(&mut discipline);
        discipline.sample(Raw::now())
    }

    /// Asks the master: does what another process said at the reading `at` of our
    /// counter contradict it as well?
    async fn arbitrate(&self, theirs: Timestamp, at: Raw) -> Culprit {
        let mut told = self.told.subscribe();
        self.doubt.notify_one();
        let fresh = told.wait_for(|sample| sample.is_some_and(|sample| sample.sent >= at));
        let sample = match tokio::time::timeout(ARBITER_TIMEOUT, fresh).await {
            Ok(Ok(sample)) => *sample,
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(sample) = sample else {
            return Culprit::Unknown;
        };
        if sample.latest_at(at) < theirs.micros() {
            return Culprit::They;
        }
        let mut gave_in = self.gave_in.lock();
        if at.0 <= self.dropped.load(Ordering::Acquire) {
            // By the answer itself, or for another message.
            self.doubt.notify_one();
            return Culprit::We;
        }
        if gave_in.is_some_and(|last| at.since(last) < GIVES_IN_ONCE_US) {
            // What we know is fresh, and the master has said it.
            return Culprit::They;
        }
        *gave_in = Some(at);
        let mut discipline = self.discipline.write();
        discipline.drop_samples(Raw::now());
        self.has_dropped();
        drop(discipline);
        drop(gave_in);
        tracing::error!(
            %theirs,
            "another process's clock contradicts ours, and not the time master's; synchronising anew"
        );
        self.doubt.notify_one();
        Culprit::We
    }

    /// All that was known is gone, and what was said by it is not vouched for. Called
    /// with the discipline locked.
    fn has_dropped(&self) {
        self.earliest.store(0, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.dropped.fetch_max(Raw::now().0, Ordering::AcqRel);
        METRICS.faults.inc();
    }

    /// T1: a machine that slept has a counter that stood still.
    fn drop_after_sleep(&self, discipline: &mut Discipline) {
        if self.sleep.has_slept() {
            self.sleep.awake();
            discipline.drop_samples(Raw::now());
            self.has_dropped();
            tracing::error!("this machine was suspended; synchronising its clock anew");
        }
    }
}

impl Clock for ClusterClock {
    fn now(&self) -> Result<Interval> {
        let Some(bounds) = self.bounds() else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the clock is not synchronised: the metaservice's leader has not answered within \
                 the last minute, or not yet",
            ));
        };
        if bounds.width() > MAX_CLOCK_ERROR.as_micros() as u64 {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the clock's error is {} ms, above the {} ms that are allowed: the way to the \
                     metaservice's leader is too slow",
                    bounds.width() / 1000,
                    MAX_CLOCK_ERROR.as_millis()
                ),
            ));
        }
        Ok(Interval {
            earliest: Timestamp::from_micros(bounds.earliest),
            latest: Timestamp::from_micros(bounds.latest),
        })
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn compare(&self, theirs: Timestamp) -> Option<Comparing<'_>> {
        // In this order: what came later than the reading says nothing about it. An
        // error that is too large to work with is still one to compare with.
        let (at, ours) = (Raw::now(), self.bounds()?);
        if theirs.micros() <= ours.latest {
            return None;
        }
        METRICS.disagreements.inc();
        Some(Box::pin(self.arbitrate(theirs, at)))
    }
}

impl Raw {
    /// The counter of this machine, now.
    pub fn now() -> Raw {
        Raw(monotonic_raw_us())
    }
}

#[cfg(test)]
mod tests {
    use super::super::discipline::Bounds;
    use super::*;

    fn sample(latest: u64) -> Sample {
        let now = Raw::now();
        Sample {
            epoch: 1,
            sent: now,
            received: now,
            at_master: Bounds {
                earliest: 1_000_000,
                latest,
            },
            shared: None,
        }
    }

    #[test]
    fn it_says_when_it_does_not_know() {
        let clock = ClusterClock::unsynchronised();
        let error = clock.now().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        // Half a second is too much.
        clock.observe(sample(1_600_000));
        assert!(clock.now().unwrap_err().message.contains("error is 600 ms"));
        clock.observe(sample(1_000_300));
        let now = clock.now().unwrap();
        assert!(now.earliest.micros() >= 999_999 && now.latest.micros() >= 1_000_300);
        assert!(clock.sample().is_some());
    }

    /// What was read by it before cannot be vouched for.
    #[test]
    fn a_gap_and_another_epoch_are_another_generation() {
        let clock = ClusterClock::unsynchronised();
        clock.observe(sample(1_400_000));
        let first = clock.generation();
        clock.observe(sample(1_400_000));
        assert_eq!(clock.generation(), first);
        let next = Sample {
            epoch: 2,
            ..sample(1_400_000)
        };
        clock.observe(next);
        assert_ne!(clock.generation(), first);
        // Of before: passed over.
        let second = clock.generation();
        clock.observe(sample(1_400_000));
        assert_eq!(clock.generation(), second);
    }

    #[test]
    fn the_earliest_time_never_falls() {
        let clock = ClusterClock::unsynchronised();
        clock.observe(sample(1_000_000));
        let first = clock.now().unwrap();
        // Narrower than the one before, and with an earlier earliest.
        let now = Raw::now();
        clock.observe(Sample {
            at_master: Bounds {
                earliest: 999_000,
                latest: 1_000_000,
            },
            sent: now,
            received: now,
            epoch: 2,
            shared: None,
        });
        let second = clock.now().unwrap();
        assert!(second.earliest >= first.earliest && second.latest >= second.earliest);
    }
}
