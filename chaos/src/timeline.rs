//! A run seen from outside: how long each fault kept everybody waiting, and a picture
//! of what took place when.

use crate::history::{Event, Kind, operations};
use anyhow::Result;
use std::fmt::Write;
use std::time::Duration;

/// What one fault cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The fault.
    pub fault: String,
    /// When it struck, since the beginning.
    pub at: Duration,
    /// When it was undone; the end of the history if it was not.
    pub healed: Duration,
    /// The longest time without an operation that took place, of which some part
    /// lies between the two.
    pub longest_pause: Duration,
}

/// The faults of a history, in their order.
pub fn outages(events: &[Event]) -> Vec<Outage> {
    let end = events.last().map_or(0, |event| event.time);
    let ok: Vec<u64> = { events.iter() }
        .filter(|event| event.process.is_some() && event.kind == Kind::Ok)
        .map(|event| event.time)
        .collect();
    let mut outages = Vec::new();
    for (n, event) in events.iter().enumerate() {
        if event.process.is_some() || event.function != "strike" {
            continue;
        }
        let heals = |later: &&Event| {
            later.process.is_none() && later.function == "heal" && later.value == event.value
        };
        let healed = events[n..].iter().find(heals).map_or(end, |heal| heal.time);
        outages.push(Outage {
            fault: event.value.as_str().unwrap_or_default().to_owned(),
            at: Duration::from_nanos(event.time),
            healed: Duration::from_nanos(healed),
            longest_pause: Duration::from_nanos(longest_pause(&ok, event.time, healed, end)),
        });
    }
    outages
}

/// Of the times between two successes (or an end of the history) the longest that
/// overlaps `[from, to]`. `ok` ascends.
fn longest_pause(ok: &[u64], from: u64, to: u64, end: u64) -> u64 {
    let first = ok.partition_point(|at| *at <= from);
    let last = ok.partition_point(|at| *at < to);
    let before = first.checked_sub(1).map_or(0, |at| ok[at]);
    let after = ok.get(last).copied().unwrap_or(end);
    let mut longest = 0;
    let mut since = before;
    for at in ok[first..last.max(first)].iter().copied().chain([after]) {
        longest = longest.max(at.saturating_sub(since));
        since = at;
    }
    longest
}

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
/// Top and height of the three panels.
const FAULTS: (f64, f64) = (40.0, 60.0);
const RATES: (f64, f64) = (115.0, 150.0);
const LATENCIES: (f64, f64) = (290.0, 120.0);
const HEIGHT: f64 = 440.0;
/// Points of a curve at most.
const POINTS: usize = 240;
/// The shortest time that a point stands for.
const SHORTEST: Duration = Duration::from_millis(250);

/// What happened between two points of the curves.
#[derive(Clone, Default)]
struct Bucket {
    ok: u32,
    other: u32,
    latencies_us: Vec<u64>,
}

/// The picture: faults, operations a second, latencies.
///
/// # Errors
/// When it is no history.
pub fn svg(title: &str, events: &[Event]) -> Result<String> {
    let length = events.last().map_or(1, |event| event.time.max(1));
    let step = (length / POINTS as u64).max(SHORTEST.as_nanos() as u64);
    let mut buckets = vec![Bucket::default(); (length / step + 1) as usize];
    for operation in operations(events)? {
        let Some(completed) = operation.completed else {
            continue;
        };
        let (began, ended) = (events[operation.invoked].time, events[completed].time);
        let bucket = &mut buckets[(ended / step) as usize];
        if operation.kind == Kind::Ok {
            bucket.ok += 1;
            bucket.latencies_us.push((ended - began) / 1_000);
        } else {
            bucket.other += 1;
        }
    }
    let x = |time: f64| LEFT + time / length as f64 * (WIDTH - LEFT - RIGHT);
    let seconds = step as f64 / 1e9;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    let outages = outages(events);
    let mut names = String::new();
    for (n, outage) in outages.iter().enumerate() {
        let (from, to) = (
            x(outage.at.as_nanos() as f64),
            x(outage.healed.as_nanos() as f64),
        );
        let row = FAULTS.0 + 10.0 + (n % 4) as f64 * (FAULTS.1 / 4.0);
        // Writing into a String never fails.
        let _ = writeln!(
            out,
            "<rect x=\"{from:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"#f6d9d5\"/>",
            FAULTS.0,
            (to - from).max(1.0),
            LATENCIES.0 + LATENCIES.1 - FAULTS.0,
        );
        let _ = writeln!(
            names,
            "<text x=\"{from:.1}\" y=\"{row}\" font-size=\"9\">{}</text>",
            escape(&outage.fault),
        );
    }
    out.push_str(&names);
    let curve = |value: &dyn Fn(&Bucket) -> Option<f64>| -> Vec<(f64, f64)> {
        { buckets.iter().enumerate() }
            .filter_map(|(n, bucket)| Some((x((n as f64 + 0.5) * step as f64), value(bucket)?)))
            .collect()
    };
    let rates = [
        (curve(&|b| Some(f64::from(b.ok) / seconds)), "#3b7d4f"),
        (curve(&|b| Some(f64::from(b.other) / seconds)), "#c0504d"),
    ];
    panel(
        &mut out,
        RATES,
        "operations a second: took place, did not",
        &rates,
    );
    let percentile = |percent: f64| {
        curve(&move |bucket| {
            let mut sorted = bucket.latencies_us.clone();
            sorted.sort_unstable();
            let at = (sorted.len() as f64 * percent) as usize;
            let us = sorted.get(at.min(sorted.len().checked_sub(1)?))?;
            Some(*us as f64 / 1_000.0)
        })
    };
    let latencies = [(percentile(0.5), "#31618f"), (percentile(0.99), "#8a6d3b")];
    panel(
        &mut out,
        LATENCIES,
        "milliseconds, p50 and p99, of what took place",
        &latencies,
    );
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{0}\">0 s</text>\n\
         <text x=\"{1}\" y=\"{0}\" text-anchor=\"end\">{2:.0} s</text>\n</svg>",
        HEIGHT - 10.0,
        WIDTH - RIGHT,
        length as f64 / 1e9,
    );
    Ok(out)
}

/// Curves over one axis that begins at 0.
fn panel(
    out: &mut String,
    (top, height): (f64, f64),
    name: &str,
    curves: &[(Vec<(f64, f64)>, &str)],
) {
    let all = curves.iter().flat_map(|(points, _)| points);
    let highest = all.map(|(_, value)| *value).fold(1.0, f64::max);
    let bottom = top + height;
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{0}\" fill=\"#666\">{name}</text>\n\
         <line x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{1}\" y2=\"{bottom}\" stroke=\"#999\"/>\n\
         <text x=\"{2}\" y=\"{3}\" text-anchor=\"end\">{highest:.0}</text>\n\
         <text x=\"{2}\" y=\"{bottom}\" text-anchor=\"end\">0</text>",
        top - 4.0,
        WIDTH - RIGHT,
        LEFT - 6.0,
        top + 8.0,
    );
    for (points, color) in curves {
        let points: Vec<String> = { points.iter() }
            .map(|(x, value)| format!("{x:.1},{:.1}", bottom - value / highest * height))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/>",
            points.join(" ")
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event(
        seconds: u64,
        process: Option<u64>,
        kind: Kind,
        function: &str,
        value: Value,
    ) -> Event {
        Event {
            time: seconds * 1_000_000_000,
            process,
            kind,
            function: function.to_owned(),
            value,
            error: None,
        }
    }

    fn read(process: u64, from: u64, to: u64, kind: Kind) -> [Event; 2] {
        [
            event(from, Some(process), Kind::Invoke, "read", Value::Null),
            event(to, Some(process), kind, "read", Value::Null),
        ]
    }

    fn fault(at: u64, function: &str, name: &str) -> Event {
        event(at, None, Kind::Info, function, json!(name))
    }

    #[test]
    fn a_fault_costs_the_longest_pause_that_it_overlaps() {
        let mut events = Vec::new();
        events.extend(read(1, 1, 2, Kind::Ok));
        events.push(fault(3, "strike", "kill <kvnode-1>"));
        events.extend(read(1, 3, 6, Kind::Fail));
        events.extend(read(1, 6, 7, Kind::Ok));
        events.push(fault(8, "heal", "kill <kvnode-1>"));
        events.extend(read(1, 8, 9, Kind::Ok));
        events.push(fault(10, "strike", "pause gateway-1"));
        events.extend(read(1, 10, 20, Kind::Info));
        let outages = outages(&events);
        let pauses: Vec<u64> = outages.iter().map(|o| o.longest_pause.as_secs()).collect();
        // From the last success before the fault; the second one nobody survived.
        assert_eq!(pauses, [5, 11]);
        assert_eq!(outages[1].healed.as_secs(), 20);

        let picture = svg("a & b", &events).unwrap();
        assert!(picture.contains("a &amp; b") && picture.contains("kill &lt;kvnode-1>"));
        assert_eq!(picture.matches("<polyline").count(), 4);
    }

    #[test]
    fn a_history_of_nothing_is_drawn_as_well() {
        assert!(outages(&[]).is_empty());
        assert!(svg("nothing", &[]).unwrap().ends_with("</svg>\n"));
    }
}
