//! `lineradb-models`: looks at every history of every model, and says how many
//! states that were.

use lineradb_models::clock::Clock;
use lineradb_models::parallel_commit::ParallelCommit;
use lineradb_models::schema_version::SchemaVersion;
use lineradb_models::{Verdict, explore};
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("| model | states | depth | broken promises |\n|---|---:|---:|---:|");
    let mut broken = false;
    let mut report = |name: &str, verdict: Verdict| {
        let Verdict { states, depth, .. } = verdict;
        println!("| {name} | {states} | {depth} | {} |", verdict.broken.len());
        for (promise, history) in verdict.broken {
            broken = true;
            eprintln!("{name}, not so: {promise}\n{history}\n");
        }
    };
    report("parallel commit", explore(ParallelCommit::SOUND));
    report("clock", explore(Clock::SOUND));
    report("schema version", explore(SchemaVersion::SOUND));
    ExitCode::from(u8::from(broken))
}
