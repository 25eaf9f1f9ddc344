//! The time of the cluster, as this member sees it. The leader is the time
//! master (rule T3): `common::clock::master` says what it may answer; here are
//! the quorum that confirms it, the record that the group commits, and the
//! answers. A member that follows asks the leader like any process, so that it
//! can take over without a gap.
//!
//! **One counter.** The raw counter of a machine goes on through the restarts
//! of its processes. The record names the counter that the line is drawn on; a
//! new leader that reads the same one goes on with that very line, with no
//! wait and no error. So does every process there when it reads the clock.

use super::{Member, Role};
use crate::raft::network::MESSAGE_BYTES_MAX;
use crate::state::ClockRecord;
use crate::state::command::{Body, SetClock};
use crate::state::{Reply, State};
use lineradb_common::clock::discipline::{Bounds, Raw, Sample};
use lineradb_common::clock::master::{Line, MASTER_LEASE_US, Master, Stage, cold_start};
use lineradb_common::clock::{
    ClusterClock, MAX_CLOCK_ERROR, PROBE_INTERVAL, SleepWatch, counter_id, wall_clock_us,
};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::meta::v1::meta_client::MetaClient;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The ceiling stands this far ahead of the present when it is renewed (T3),
const CEILING_AHEAD_US: u64 = 10_000_000;
/// and is renewed when less than this is left.
const CEILING_LEFT_US: u64 = 5_000_000;
/// A leader that does not answer a member within this is asked again.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a member knows of the time.
pub(crate) struct TimeKeeper {
    /// The member's own clock.
    clock: Arc<ClusterClock>,
    leading: Mutex<Option<Leading>>,
    /// Names the counter that this process reads.
    counter: String,
    sleep: SleepWatch,
    /// The line that the machine slept on: it is not the time any more.
    slept_on: Mutex<Option<(String, i64)>>,
}

/// A leader's part.
struct Leading {
    term: u64,
    master: Master,
    /// The counter at the beginning of the last round in which a quorum
    /// confirmed the leader in this term.
    confirmed: Raw,
    /// As committed.
    ceiling: u64,
}

impl TimeKeeper {
    /// Of a process that shares its counter with those of its machine, or, for
    /// tests, acts as if it were alone on one.
    pub fn new(shares_counter: bool) -> Self {
        let shared = counter_id().filter(|_| shares_counter);
        TimeKeeper {
            clock: ClusterClock::unsynchronised(),
            leading: Mutex::new(None),
            counter: shared.unwrap_or_else(|| lineradb_common::random::uuid().to_string()),
            sleep: SleepWatch::start(),
            slept_on: Mutex::new(None),
        }
    }

    /// What the time master answers now; `None` if this member is none, or may
    /// not answer yet, or does not know any more whether it leads.
    pub fn read(&self) -> Option<meta::ReadClockReply> {
        let (read, epoch, bounds) = self.answer()?;
        Some(meta::ReadClockReply {
            epoch,
            earliest_us: bounds.earliest,
            latest_us: bounds.latest,
            counter: self.counter.clone(),
            raw_us: read.0,
        })
    }

    /// True if this member's own clock is synchronised.
    pub fn is_known(&self) -> bool {
        self.clock.sample().is_some()
    }

    fn answer(&self) -> Option<(Raw, u64, Bounds)> {
        let leading = self.leading.lock();
        // T1: the lease was measured with a counter that stood still.
        let leading = leading.as_ref().filter(|_| !self.sleep.has_slept())?;
        // T2: reads its clock, then checks its lease.
        let read = Raw::now();
        let bounds = leading.master.bounds(read)?;
        let in_lease = Raw::now().since(leading.confirmed) < MASTER_LEASE_US;
        let below_ceiling = bounds.latest <= leading.ceiling;
        (in_lease && below_ceiling).then(|| (read, leading.master.epoch(), bounds))
    }

    /// The leader's part of a round that began at `began` and was confirmed in
    /// `term`. Answers what has to be committed for it to go on.
    fn lead(&self, term: u64, began: Raw, state: &State) -> Option<SetClock> {
        let record = state.header.clock.as_ref();
        let now = Raw::now();
        let mut guard = self.leading.lock();
        if self.sleep.has_slept() {
            // T1: what was confirmed, and the line, are of before.
            self.sleep.awake();
            *self.slept_on.lock() = record.map(ClockRecord::line);
            *guard = None;
            return None;
        }
        let known = guard.take().filter(|leading| leading.term == term);
        let leading = known.unwrap_or_else(|| Leading {
            term,
            master: Master::elected(record.map_or(0, |record| record.epoch), now),
            confirmed: began,
            ceiling: 0,
        });
        let leading = guard.insert(leading);
        leading.confirmed = began;
        leading.ceiling = record.map_or(0, |record| record.ceiling_us);
        leading.master.advance(now, self.clock.sample());
        // The line of our counter is the time: it goes on as if nothing had
        // happened, or begins.
        if let Some(record) = record.filter(|record| self.reads_line_of(record))
            && !matches!(leading.master.stage(), Stage::Leading { .. })
        {
            leading.master = Master::drawing(record.epoch, now, record.time_at(now.0));
        }
        let next = self.next_record(now, &leading.master, record)?;
        Some(SetClock {
            expected: record.cloned(),
            clock: Some(next),
        })
    }

    /// The record that the master needs next: of a line that it is about to
    /// draw, or with a higher ceiling.
    fn next_record(
        &self,
        now: Raw,
        master: &Master,
        record: Option<&ClockRecord>,
    ) -> Option<ClockRecord> {
        let ceiling = record.map_or(0, |record| record.ceiling_us);
        let line = |epoch, line: Line| ClockRecord {
            counter: self.counter.clone(),
            offset_us: line.at(now) as i64 - now.0 as i64,
            ceiling_us: ceiling.max(line.at(now).saturating_add(CEILING_AHEAD_US)),
            epoch,
        };
        if record.is_none() || master.may_draw(now) {
            let slack = MAX_CLOCK_ERROR.as_micros() as u64;
            let time = cold_start(wall_clock_us(), ceiling, slack);
            return Some(line(master.epoch() + 1, Line { raw: now, time }));
        }
        if let Some(due) = master.due(now) {
            return Some(line(master.epoch(), due));
        }
        let latest = master.bounds(now)?.latest;
        let low = ceiling < latest.saturating_add(CEILING_LEFT_US);
        low.then(|| ClockRecord {
            ceiling_us: latest.saturating_add(CEILING_AHEAD_US),
            ..record.cloned().unwrap_or_default()
        })
    }

    fn reads_line_of(&self, record: &ClockRecord) -> bool {
        record.counter == self.counter && *self.slept_on.lock() != Some(record.line())
    }

    /// What the master knows is a sample to its own process.
    fn observe_itself(&self) {
        if let Some((read, epoch, at_master)) = self.answer() {
            self.clock.observe(Sample {
                epoch,
                sent: read,
                received: read,
                at_master,
                shared: Some(read),
            });
        }
    }

    fn follow(&self) {
        *self.leading.lock() = None;
    }
}

pub(super) async fn run(member: Arc<Member>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        round(&member).await;
        let sooner = member.time.read().is_none() && member.raft.is_leader();
        let pause = match sooner {
            true => PROBE_INTERVAL / 10,
            false => PROBE_INTERVAL,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn round(member: &Member) {
    let (term, began) = (member.term(), Raw::now());
    match member.role().await {
        Ok(Role::Leader(state)) if member.term() == term => {
            if let Some(command) = member.time.lead(term, began, &state) {
                match member.propose(Body::SetClock(command)).await {
                    Ok(Reply::Done) if member.term() == term => {
                        member.time.lead(term, began, &member.shared.state());
                    }
                    // The next round looks at the state again.
                    Ok(reply) => tracing::debug!(%reply, "the clock's record was not taken"),
                    Err(error) => tracing::debug!(%error, "the clock's record was not committed"),
                }
            }
            member.time.observe_itself();
        }
        Ok(Role::Leader(_)) => {}
        Ok(Role::Follower(leader)) => {
            member.time.follow();
            probe(member, leader).await;
        }
        Err(error) => tracing::debug!(%error, "nobody to ask for the time"),
    }
}

/// Asks the leader, as any process does.
async fn probe(member: &Member, leader: u64) {
    let Some(channel) =
        { member.peers.address(leader) }.and_then(|address| member.peers.channel(address).ok())
    else {
        return;
    };
    let mut leader = MetaClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let sent = Raw::now();
    let asked = leader.read_clock(meta::ReadClockRequest {});
    if let Ok(Ok(reply)) = tokio::time::timeout(PROBE_TIMEOUT, asked).await {
        let (received, reply) = (Raw::now(), reply.into_inner());
        let shared = reply.counter == member.time.counter;
        member.time.clock.observe(Sample {
            epoch: reply.epoch,
            sent,
            received,
            at_master: Bounds {
                earliest: reply.earliest_us,
                latest: reply.latest_us,
            },
            shared: shared.then_some(Raw(reply.raw_us)),
        });
    }
}
