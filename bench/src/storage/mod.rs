//! `lineradb-bench storage`: the storage engine alone, under the names of
//! db_bench; 16-byte keys, values of 100 bytes, 1 KiB and 64 KiB, one thread (two
//! where the name says so). With the feature `peers` RocksDB and fjall do the same
//! work, one after the other, in the same process and folder, with as much memory;
//! for 64 KiB both as they are and with large values apart from their trees.

mod engine;
#[cfg(feature = "peers")]
mod fjall;
mod ours;
#[cfg(feature = "peers")]
mod rocks;
mod workload;

use crate::Figure;
use anyhow::{Result, bail};
use engine::Engine;
use std::path::Path;
use workload::{Better, Measured, suite};

/// How much work.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Entries of the filled database, at 100 bytes; a tenth of it at 1 KiB, an eighth of a tenth of that at 64 KiB.
    pub entries: u64,
    /// Synced writes, of whatever size: fewer would be over before the device has settled.
    pub synced: u64,
    /// Seeks.
    pub seeks: u64,
    /// Random reads with a small cache: an engine may read megabytes for each.
    pub cold_reads: u64,
}

/// An hour or two, with peers.
pub const FULL: Scale = Scale {
    entries: 10_000_000,
    synced: 50_000,
    seeks: 1_000_000,
    cold_reads: 500_000,
};
/// Minutes.
pub const QUICK: Scale = Scale {
    entries: 1_000_000,
    synced: 5_000,
    seeks: 100_000,
    cold_reads: 1_000_000,
};

/// Runs the suite for values of each of these sizes `runs` times in fresh folders
/// under `dir`, one engine after the other; each figure is the median.
///
/// # Errors
/// When an engine answers an error, or a wrong value; for a size that is none of ours.
pub fn run(dir: &Path, scale: Scale, runs: usize, value_bytes: &[usize]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if let Some(other) = value_bytes
        .iter()
        .find(|b| !GROUPS.iter().any(|g| g.0 == **b))
    {
        bail!("there is no measurement of values of {other} bytes: choose of 100, 1024 and 65536");
    }
    for (bytes, part, note) in { GROUPS.into_iter() }.filter(|g| value_bytes.contains(&g.0)) {
        let scale = Scale {
            entries: scale.entries / part,
            seeks: scale.seeks / part,
            cold_reads: scale.cold_reads.min(scale.entries / part),
            ..scale
        };
        let engines = engines(bytes == LARGE_BYTES);
        let mut measured: Vec<Vec<_>> = engines.iter().map(|_| Vec::new()).collect();
        for _ in 0..runs {
            for ((name, suite), runs) in engines.iter().zip(&mut measured) {
                eprintln!("{name}, {bytes} bytes");
                let measured = suite(&dir.join(name), scale, bytes)?;
                // What was measured is not lost when a long run is broken off.
                for line in &measured {
                    eprintln!("    {}: {:.2} {}", line.name, line.value, line.unit);
                }
                runs.push(measured);
            }
        }
        let medians = engines.iter().zip(measured);
        let mut medians = medians.map(|((name, _), runs)| (*name, median(runs)));
        if let Some((_, ours)) = medians.next() {
            figures.extend(compare(&ours, &medians.collect::<Vec<_>>(), note));
        }
    }
    Ok(figures)
}

/// Sizes of values, into how many parts the entries go for each, and what that adds to
/// the names of the lines.
const GROUPS: [(usize, u64, &str); 3] = [
    (100, 1, ""),
    (1024, 10, ", 1 KiB values"),
    (LARGE_BYTES, 125, ", 64 KiB values"),
];

/// Values of this size an engine may keep apart from its tree.
const LARGE_BYTES: usize = 64 << 10;

/// Runs the suite on one engine.
type Suite = fn(&Path, Scale, usize) -> Result<Vec<Measured>>;

/// What is measured: our engine, and after it the peers.
fn engines(large: bool) -> Vec<(&'static str, Suite)> {
    fn named<E: Engine>() -> (&'static str, Suite) {
        (E::NAME, suite::<E>)
    }
    let engines = vec![
        named::<ours::Ours>(),
        #[cfg(feature = "peers")]
        named::<rocks::Rocks<false>>(),
        #[cfg(feature = "peers")]
        named::<fjall::Fjall<false>>(),
    ];
    #[cfg(feature = "peers")]
    let apart = [named::<rocks::Rocks<true>>(), named::<fjall::Fjall<true>>()];
    #[cfg(not(feature = "peers"))]
    let apart = [];
    engines
        .into_iter()
        .chain(apart.into_iter().filter(|_| large))
        .collect()
}

/// Of each line the median over the runs, all of which have the same lines.
fn median(runs: Vec<Vec<Measured>>) -> Vec<Measured> {
    let lines = runs.first().map_or(0, Vec::len);
    let line = |at: usize| {
        let mut values: Vec<&Measured> = runs.iter().filter_map(|run| run.get(at)).collect();
        values.sort_by(|a, b| a.value.total_cmp(&b.value));
        values
            .get(values.len() / 2)
            .map(|measured| (*measured).clone())
    };
    (0..lines).filter_map(line).collect()
}

/// Ours beside each peer's, line by line.
fn compare(ours: &[Measured], peers: &[(&str, Vec<Measured>)], note: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    for own in ours {
        let name = format!("{}{note}", own.name);
        let before = figures.len();
        for (peer, measured) in peers {
            if let Some(their) = measured.iter().find(|m| m.name == own.name) {
                let figure = Figure::ours(&name, own.unit, own.value);
                let ratio = match own.better {
                    Better::More => own.value / their.value,
                    Better::Less => their.value / own.value,
                };
                figures.push(figure.beside(peer, their.value, ratio));
            }
        }
        if figures.len() == before {
            figures.push(Figure::ours(name, own.unit, own.value));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_runs_on_every_engine() {
        let scale = Scale {
            entries: 2_000,
            synced: 125,
            seeks: 250,
            cold_reads: 2_000,
        };
        let folder = tempfile::tempdir().unwrap();
        let figures = run(folder.path(), scale, 1, &[100, 1024, LARGE_BYTES]).unwrap();
        assert!(figures.len() >= 36, "{figures:?}");
        assert!(figures.iter().all(|figure| figure.ours > 0.0));
    }

    #[test]
    fn peers_stand_beside_ours() {
        let measured = |rate, latency| {
            let line = |name, unit, value, better| Measured {
                name,
                unit,
                value,
                better,
            };
            vec![
                line("fillseq", "ops/s", rate, Better::More),
                line("p99.9", "us", latency, Better::Less),
            ]
        };
        let ours = median(vec![
            measured(30.0, 4.0),
            measured(20.0, 5.0),
            measured(90.0, 6.0),
        ]);
        let figures = compare(&ours, &[("a", measured(10.0, 10.0)), ("b", vec![])], "!");
        assert_eq!(figures.len(), 2);
        assert_eq!(figures[0].name, "fillseq!");
        assert_eq!((figures[0].peer, figures[0].ratio), (Some(10.0), Some(3.0)));
        assert_eq!((figures[1].ours, figures[1].ratio), (5.0, Some(2.0)));
    }
}
