//! `lineradb-bench storage`: the storage engine alone, under the names of
//! db_bench; 16-byte keys, values of 100 bytes and of 1 KiB, one thread (two where
//! the name says so). With the feature `peers` RocksDB and fjall do the same work,
//! one after the other, in the same process and folder, with as much memory.

mod engine;
#[cfg(feature = "peers")]
mod fjall;
mod ours;
#[cfg(feature = "peers")]
mod rocks;
mod workload;

use crate::Figure;
use anyhow::Result;
use engine::Engine;
use std::path::Path;
use workload::{Better, Measured, suite};

/// How much work.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Entries of the filled database, at 100 bytes; a tenth of it at 1 KiB.
    pub entries: u64,
    /// Synced writes.
    pub synced: u64,
    /// Seeks.
    pub seeks: u64,
}

/// An hour, with peers.
pub const FULL: Scale = Scale {
    entries: 10_000_000,
    synced: 50_000,
    seeks: 1_000_000,
};
/// Minutes.
pub const QUICK: Scale = Scale {
    entries: 1_000_000,
    synced: 5_000,
    seeks: 100_000,
};

/// Runs the suite `runs` times in fresh folders under `dir`, one engine after the other; each figure is the median.
///
/// # Errors
/// When an engine answers an error, or a wrong value.
pub fn run(dir: &Path, scale: Scale, runs: usize) -> Result<Vec<Figure>> {
    let tenth = Scale {
        entries: scale.entries / 10,
        synced: scale.synced / 10,
        seeks: scale.seeks / 10,
    };
    let mut figures = Vec::new();
    for (bytes, scale, note) in [(100, scale, ""), (1024, tenth, ", 1 KiB values")] {
        let mut ours = Vec::new();
        #[cfg(feature = "peers")]
        let (mut rocks, mut fjall) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(measure::<ours::Ours>(dir, scale, bytes)?);
            #[cfg(feature = "peers")]
            {
                rocks.push(measure::<rocks::Rocks>(dir, scale, bytes)?);
                fjall.push(measure::<fjall::Fjall>(dir, scale, bytes)?);
            }
        }
        #[cfg(feature = "peers")]
        let peers = [
            (rocks::Rocks::NAME, median(rocks)),
            (fjall::Fjall::NAME, median(fjall)),
        ];
        #[cfg(not(feature = "peers"))]
        let peers = [];
        figures.extend(compare(&median(ours), &peers, note));
    }
    Ok(figures)
}

fn measure<E: Engine>(dir: &Path, scale: Scale, value_bytes: usize) -> Result<Vec<Measured>> {
    eprintln!("{}, {value_bytes} bytes", E::NAME);
    suite::<E>(&dir.join(E::NAME), scale, value_bytes)
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
            synced: 20,
            seeks: 200,
        };
        let folder = tempfile::tempdir().unwrap();
        let figures = run(folder.path(), scale, 1).unwrap();
        assert!(figures.len() >= 24, "{figures:?}");
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
