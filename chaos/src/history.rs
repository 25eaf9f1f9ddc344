//! What clients asked for and what came of it, in one order.
//!
//! An event is recorded before its request is sent, and after its reply has
//! come: so when one operation's end stands before another's beginning in a
//! history, it was over before the other began. Checkers use this order alone;
//! the times are for people.
//!
//! Histories are kept as JSON lines in the format of Jepsen and Elle:
//! `{"index":7,"time":120000,"process":3,"type":"invoke","f":"read","value":..}`.
//! A process does one operation at a time. After one whose outcome it does not
//! know it is never heard of again: its client goes on as another process.
//! What is done to the cluster is recorded under the process `nemesis`.

use anyhow::{Context, Result, anyhow, bail};
use lineradb_common::clock::Stopwatch;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

/// The process under which faults are recorded.
const NEMESIS: &str = "nemesis";

/// What an event says of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It begins.
    Invoke,
    /// It took place.
    Ok,
    /// It did not take place, and never will.
    Fail,
    /// It may have taken place, may do so at any later time, or never.
    Info,
}

impl Kind {
    const ALL: [(Kind, &'static str); 4] = [
        (Kind::Invoke, "invoke"),
        (Kind::Ok, "ok"),
        (Kind::Fail, "fail"),
        (Kind::Info, "info"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    fn named(name: &str) -> Option<Kind> {
        Some(Self::ALL.iter().find(|(_, n)| *n == name)?.0)
    }
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Nanoseconds since the history began.
    pub time: u64,
    /// Whose operation it is; `None`: a fault.
    pub process: Option<u64>,
    /// Beginning or end.
    pub kind: Kind,
    /// What is done, in the words of the workload.
    pub function: String,
    /// Arguments, or results.
    pub value: Value,
    /// Why it is not known to have taken place.
    pub error: Option<String>,
}

impl Event {
    /// The line of this event, which is the `index`th.
    pub fn to_json(&self, index: usize) -> Value {
        let process = self.process.map_or_else(|| json!(NEMESIS), |p| json!(p));
        let mut line = json!({
            "index": index,
            "time": self.time,
            "process": process,
            "type": self.kind.name(),
            "f": self.function,
            "value": self.value,
        });
        if let Some(error) = &self.error {
            line["error"] = json!(error);
        }
        line
    }

    fn from_json(line: &Value) -> Option<Event> {
        let process = &line["process"];
        Some(Event {
            time: line["time"].as_u64()?,
            process: match process.as_str() {
                Some(NEMESIS) => None,
                _ => Some(process.as_u64()?),
            },
            kind: Kind::named(line["type"].as_str()?)?,
            function: line["f"].as_str()?.to_owned(),
            value: line["value"].clone(),
            error: line["error"].as_str().map(str::to_owned),
        })
    }
}

/// A history that is being recorded, by many at once.
#[derive(Debug)]
pub struct History {
    clock: Stopwatch,
    recorded: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    events: Vec<Event>,
    file: Option<BufWriter<File>>,
    failure: Option<std::io::Error>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// One that is kept in memory alone.
    pub fn new() -> Self {
        History {
            clock: Stopwatch::start(),
            recorded: Mutex::default(),
        }
    }

    /// One that is written to a file as well.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let history = History::new();
        history.recorded.lock().file = Some(BufWriter::new(file));
        Ok(history)
    }

    /// An operation begins: to be called before anything is sent.
    pub fn invoke(&self, process: u64, function: &str, value: Value) {
        self.record(Some(process), Kind::Invoke, function, value, None);
    }

    /// An operation has ended: to be called when nothing more can come.
    pub fn complete(
        &self,
        process: u64,
        kind: Kind,
        function: &str,
        value: Value,
        error: Option<String>,
    ) {
        self.record(Some(process), kind, function, value, error);
    }

    /// Something was done to the cluster.
    pub fn fault(&self, function: &str, value: Value) {
        self.record(None, Kind::Info, function, value, None);
    }

    fn record(
        &self,
        process: Option<u64>,
        kind: Kind,
        function: &str,
        value: Value,
        error: Option<String>,
    ) {
        let mut recorded = self.recorded.lock();
        let event = Event {
            time: self.clock.elapsed().as_nanos() as u64,
            process,
            kind,
            function: function.to_owned(),
            value,
            error,
        };
        let line = event.to_json(recorded.events.len());
        recorded.events.push(event);
        if let Some(file) = &mut recorded.file
            && let Err(error) = writeln!(file, "{line}")
        {
            recorded.failure = Some(error);
        }
    }

    /// What has been recorded so far; the file has it, too.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut recorded = self.recorded.lock();
        if let Some(file) = &mut recorded.file {
            file.flush().context("writing the history")?;
        }
        match recorded.failure.take() {
            Some(error) => Err(anyhow!(error).context("writing the history")),
            None => Ok(recorded.events.clone()),
        }
    }
}

/// Reads a file of JSON lines.
///
/// # Errors
/// When it cannot be read, or a line is none of a history.
pub fn read(path: &Path) -> Result<Vec<Event>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut events = Vec::new();
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{}, line {}", path.display(), n + 1);
        let line: Value = serde_json::from_str(&line?).with_context(at)?;
        events.push(Event::from_json(&line).with_context(at)?);
    }
    Ok(events)
}

/// An operation with its beginning and its end.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// What is done.
    pub function: &'a str,
    /// Its arguments.
    pub arguments: &'a Value,
    /// Its results; the arguments again when it is not known to have any.
    pub result: &'a Value,
    /// What came of it.
    pub kind: Kind,
    /// Place of its beginning in the history.
    pub invoked: usize,
    /// Place of its end; `None` when it had none.
    pub completed: Option<usize>,
}

/// The operations of a history, in the order in which they began.
///
/// # Errors
/// When a process does two at once, or ends one that it did not begin.
pub fn operations(events: &[Event]) -> Result<Vec<Operation<'_>>> {
    let mut operations: Vec<Operation> = Vec::new();
    let mut open: HashMap<u64, usize> = HashMap::new();
    for (index, event) in events.iter().enumerate() {
        let Some(process) = event.process else {
            continue;
        };
        if event.kind == Kind::Invoke {
            if open.insert(process, operations.len()).is_some() {
                bail!("event {index}: process {process} does two things at once");
            }
            operations.push(Operation {
                function: &event.function,
                arguments: &event.value,
                result: &event.value,
                kind: Kind::Info,
                invoked: index,
                completed: None,
            });
        } else {
            let begun = open.remove(&process);
            let begun = begun.with_context(|| format!("event {index} ends what never began"))?;
            let operation = &mut operations[begun];
            operation.result = &event.value;
            operation.kind = event.kind;
            operation.completed = Some(index);
        }
    }
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_it_was_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        let history = History::create(&path).unwrap();
        history.invoke(0, "read", json!({"key": "a"}));
        history.fault("kill", json!("kvnode-1"));
        history.invoke(1, "write", json!({"key": "a", "value": 1}));
        history.complete(0, Kind::Ok, "read", json!({"key": "a", "value": 1}), None);
        let lost = Some("connection lost".to_owned());
        history.complete(1, Kind::Info, "write", json!({"key": "a"}), lost);
        let events = history.events().unwrap();
        assert_eq!(read(&path).unwrap(), events);
        assert!(events.is_sorted_by_key(|event| event.time));
        let operations = operations(&events).unwrap();
        let ends: Vec<_> = operations
            .iter()
            .map(|o| (o.invoked, o.completed))
            .collect();
        assert_eq!(ends, [(0, Some(3)), (2, Some(4))]);
        assert_eq!(operations[0].result["value"], 1);
        assert_eq!(operations[1].kind, Kind::Info);
    }

    #[test]
    fn a_process_does_one_thing_at_a_time() {
        let history = History::new();
        history.invoke(0, "read", Value::Null);
        assert!(operations(&history.events().unwrap()).is_ok());
        history.invoke(0, "read", Value::Null);
        assert!(operations(&history.events().unwrap()).is_err());
        let history = History::new();
        history.complete(0, Kind::Ok, "read", Value::Null, None);
        assert!(operations(&history.events().unwrap()).is_err());
    }
}
