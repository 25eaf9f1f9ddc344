//! One run: a cluster, a workload, faults, and what is to be thought of it.

use crate::append::Append;
use crate::bank::{self, Bank};
use crate::counter::{self, Counters};
use crate::elle;
use crate::faults::{self, Plan};
use crate::harness::{Cluster, ClusterOptions};
use crate::history::{self, Event, History, Kind};
use crate::keys::{Keys, Pattern, once};
use crate::nemesis;
use crate::queue::{self, Queue};
use crate::register::{self, Registers};
use crate::timeline::{self, Outage};
use crate::timestamps::{self, Timestamps};
use crate::workload::{self, Processes, Verdict, Workload};
use anyhow::{Context, Result};
use clap::ValueEnum;
use lineradb_common::spawn;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The file of the history, in a run's folder.
pub const HISTORY: &str = "history.jsonl";
/// The picture of it, beside that.
pub const TIMELINE: &str = "timeline.svg";
/// Clients that look at everything when a run is over.
const CLOSERS: usize = 2;

/// Which workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Transfers between accounts; no money is made or lost
    Bank,
    /// Transactions that append to lists and read them; strictly serializable
    Append,
    /// Single keys over SQL and gRPC; linearizable
    Register,
    /// Transactions that read and overwrite keys; strictly serializable
    RwRegister,
    /// Single writes and scans; no write is lost, none comes and goes
    Set,
    /// Two readers see two writes in one order
    LongFork,
    /// A client's second write is not seen without its first one
    Sequential,
    /// A write is not seen without those that were over before it
    CausalReverse,
    /// Of two writes, each made by who has not seen the other, one takes place
    WriteSkew,
    /// Increments; each has a number of its own
    Counter,
    /// Jobs taken under locks; each by one client
    Queue,
    /// Timestamps of the KV API; in the order of real time
    Timestamps,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The workload.
    pub workload: Name,
    /// What may happen to the cluster.
    pub faults: Vec<faults::Kind>,
    /// For how long clients work.
    pub length: Duration,
    /// From which operations and faults follow.
    pub seed: u64,
    /// Concurrent clients.
    pub clients: usize,
    /// Number of kvnodes.
    pub kvnodes: usize,
    /// Number of SQL gateways.
    pub gateways: usize,
    /// See [`ClusterOptions::measured_clocks`]; the metaservice is not killed.
    pub measured_clocks: bool,
    /// Where data, logs and the history go.
    pub root: PathBuf,
}

impl RunOptions {
    /// A run with twelve clients of a cluster of three kvnodes and two gateways.
    pub fn new(workload: Name, faults: &[faults::Kind], root: &Path) -> Self {
        RunOptions {
            workload,
            faults: faults.to_vec(),
            length: Duration::from_secs(60),
            seed: lineradb_common::random::below(u64::from(u32::MAX)),
            clients: 12,
            kvnodes: 3,
            gateways: 2,
            measured_clocks: false,
            root: root.to_owned(),
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the checker says.
    pub verdict: Verdict,
    /// What happened in numbers.
    pub counts: Counts,
    /// What each fault cost.
    pub outages: Vec<Outage>,
}

/// A history in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that took place.
    pub ok: usize,
    /// That did not.
    pub fail: usize,
    /// Of which nobody knows.
    pub info: usize,
    /// Things done to the cluster.
    pub strikes: usize,
    /// Longest time without an operation that took place.
    pub longest_gap: Duration,
    /// Why operations did not take place: by the first word (an SQLSTATE, a
    /// gRPC code), how often, and one example.
    pub reasons: BTreeMap<String, (usize, String)>,
}

impl Counts {
    fn of(events: &[Event]) -> Self {
        let mut counts = Counts::default();
        let mut last_ok = 0;
        for event in events {
            match (event.process, event.kind) {
                (None, _) => counts.strikes += usize::from(event.function == "strike"),
                (_, Kind::Invoke) => {}
                (_, Kind::Ok) => {
                    counts.ok += 1;
                    let gap = Duration::from_nanos(event.time - last_ok);
                    counts.longest_gap = counts.longest_gap.max(gap);
                    last_ok = event.time;
                }
                (_, Kind::Fail) => counts.fail += 1,
                (_, Kind::Info) => counts.info += 1,
            }
            if let Some(reason) = &event.error {
                let word = reason.split(':').next().unwrap_or_default();
                let example = || (0, reason.clone());
                let count = counts.reasons.entry(word.to_owned());
                count.or_insert_with(example).0 += 1;
            }
        }
        counts
    }
}

/// Runs it.
///
/// # Errors
/// When there is no verdict: the cluster does not start, or a file cannot be
/// written.
pub async fn run(options: &RunOptions) -> Result<Report> {
    let seed = options.seed;
    let keys = |pattern| run_one(Keys::new(pattern, seed), options);
    match options.workload {
        Name::Bank => run_one(Bank::small(seed), options).await,
        Name::Append => run_one(Append::new(seed), options).await,
        Name::Register => run_one(Registers::new(seed), options).await,
        Name::RwRegister => keys(Pattern::RwRegister).await,
        Name::Set => keys(Pattern::Set).await,
        Name::LongFork => keys(Pattern::LongFork).await,
        Name::Sequential => keys(Pattern::Sequential).await,
        Name::CausalReverse => keys(Pattern::CausalReverse).await,
        Name::WriteSkew => keys(Pattern::WriteSkew).await,
        Name::Counter => run_one(Counters::new(seed), options).await,
        Name::Queue => run_one(Queue::new(seed), options).await,
        Name::Timestamps => run_one(Timestamps::new(seed), options).await,
    }
}

/// Judges a history that was kept.
///
/// # Errors
/// When it cannot be read, or is none of that workload.
pub fn check(workload: Name, file: &Path) -> Result<Report> {
    let events = history::read(file)?;
    let verdict = judge(workload, &events)?;
    Ok(Report {
        verdict,
        counts: Counts::of(&events),
        outages: timeline::outages(&events),
    })
}

fn judge(workload: Name, events: &[Event]) -> Result<Verdict> {
    match workload {
        Name::Bank => bank::check(events),
        Name::Append => elle::check(events, adya::Workload::ListAppend),
        Name::Register => register::check(events),
        Name::RwRegister => elle::check(events, adya::Workload::RwRegister),
        Name::Set | Name::LongFork | Name::Sequential | Name::CausalReverse | Name::WriteSkew => {
            once::check(events)
        }
        Name::Counter => counter::check(events),
        Name::Queue => queue::check(events),
        Name::Timestamps => timestamps::check(events),
    }
}

async fn run_one<W: Workload>(workload: W, options: &RunOptions) -> Result<Report> {
    let mut cluster = Cluster::start(&ClusterOptions {
        root: options.root.clone(),
        kvnodes: options.kvnodes,
        gateways: options.gateways,
        well_known_ports: false,
        split_bytes: None,
        proxied: true,
        measured_clocks: options.measured_clocks,
    })
    .await?;
    let prepared = workload.prepare(&cluster).await;
    prepared.context("preparing the workload")?;
    let history = Arc::new(History::create(&options.root.join(HISTORY))?);
    let mut wrong = work(&workload, &mut cluster, options, &history).await?;
    wrong.extend(cluster.services().filter_map(|service| service.panic()));
    let events = history.events()?;
    let counts = Counts::of(&events);
    let outages = timeline::outages(&events);
    let title = format!("{}, seed {}", options.workload, options.seed);
    let picture = timeline::svg(&title, &events)?;
    std::fs::write(options.root.join(TIMELINE), picture).context(TIMELINE)?;
    let name = options.workload;
    let verdict = spawn::blocking(move || judge(name, &events)).await??;
    Ok(Report {
        verdict: with(wrong, verdict),
        counts,
        outages,
    })
}

/// Lets clients work while faults strike, and looks at everything afterwards.
/// Answers what was seen to be wrong on the way.
async fn work<W: Workload>(
    workload: &W,
    cluster: &mut Cluster,
    options: &RunOptions,
    history: &Arc<History>,
) -> Result<Vec<String>> {
    let all = options.clients + CLOSERS;
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..options.clients)
        .map(|number| {
            let client = workload.client(cluster, number);
            let processes = Processes::new(number, all);
            let work = workload::drive(client, processes, history.clone(), stop.clone());
            spawn::task("chaos-client", work)
        })
        .collect();
    let (kvnodes, gateways) = (options.kvnodes, options.gateways);
    let plan = Plan::new(&options.faults, kvnodes, gateways, options.seed)
        .sparing_metaservice(options.measured_clocks);
    let tormented = nemesis::torment(cluster, plan, options.length, history).await;
    stop.store(true, Ordering::Release);
    let mut wrong = match tormented {
        Ok(died) => died,
        Err(error) => vec![format!("{error:#}")],
    };
    for task in tasks {
        wrong.extend(task.await?.err().map(|error| format!("{error:#}")));
    }
    for number in options.clients..all {
        // Who is not served once will not be served twice.
        if wrong.is_empty() {
            let mut client = workload.client(cluster, number);
            let looks = workload.closing(number);
            let processes = Processes::new(number, all);
            let closed = workload::close(&mut client, &looks, processes, history).await;
            wrong.extend(closed.err().map(|error| format!("{error:#}")));
        }
    }
    Ok(wrong)
}

/// The checker's verdict, with what was seen to be wrong before.
fn with(mut wrong: Vec<String>, verdict: Verdict) -> Verdict {
    if wrong.is_empty() {
        return verdict;
    }
    if let Verdict::Violated(more) = verdict {
        wrong.extend(more);
    }
    Verdict::Violated(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_history_is_counted() {
        let history = History::new();
        let lost = |code: &str| Some(format!("{code}: key {code}"));
        for (process, kind, reason) in [
            (0, Kind::Ok, None),
            (1, Kind::Fail, lost("40001")),
            (2, Kind::Fail, lost("40001")),
            (3, Kind::Info, Some("no answer in time".to_owned())),
        ] {
            history.invoke(process, "txn", Value::Null);
            history.complete(process, kind, "txn", Value::Null, reason);
        }
        history.fault("strike", Value::Null);
        history.fault("heal", Value::Null);
        let counts = Counts::of(&history.events().unwrap());
        let of = (counts.ok, counts.fail, counts.info, counts.strikes);
        assert_eq!(of, (1, 2, 1, 1));
        let conflict = (2, "40001: key 40001".to_owned());
        assert_eq!(counts.reasons["40001"], conflict);
        assert_eq!(counts.reasons["no answer in time"].0, 1);
    }

    #[test]
    fn what_was_seen_on_the_way_is_a_violation() {
        let seen = || vec!["kvnode-1 ended by itself".to_owned()];
        assert_eq!(with(Vec::new(), Verdict::Holds), Verdict::Holds);
        assert_eq!(with(seen(), Verdict::Holds), Verdict::Violated(seen()));
        let stale = Verdict::Violated(vec!["stale".to_owned()]);
        let Verdict::Violated(both) = with(seen(), stale) else {
            panic!("no violation");
        };
        assert_eq!(both.len(), 2);
    }
}
