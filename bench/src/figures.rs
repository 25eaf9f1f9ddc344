//! How a benchmark reports: one line per measurement, ours beside the peer's.

use anyhow::Result;
use serde::Serialize;
use std::path::Path;

/// One measurement. A ratio above 1 means that we are better.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured, in the field's usual name.
    pub name: String,
    /// Unit of `ours` and `peer`.
    pub unit: &'static str,
    /// Our result.
    pub ours: f64,
    /// The peer's result in the same run, if one was run.
    pub peer: Option<f64>,
    /// Who the peer is.
    pub peer_name: Option<String>,
    /// Ours against the peer's.
    pub ratio: Option<f64>,
}

impl Figure {
    /// A measurement without a peer.
    pub fn ours(name: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Figure {
            name: name.into(),
            unit,
            ours,
            peer: None,
            peer_name: None,
            ratio: None,
        }
    }

    /// The same measurement of a peer, and the ratio.
    #[must_use]
    pub fn beside(mut self, name: &str, peer: f64, ratio: f64) -> Self {
        self.peer = Some(peer);
        self.peer_name = Some(name.to_owned());
        self.ratio = Some(ratio);
        self
    }
}

/// Prints the table and writes the file, if one is asked for.
///
/// # Errors
/// When the file cannot be written.
pub fn report(figures: &[Figure], json: Option<&Path>) -> Result<()> {
    println!("| benchmark | unit | ours | peer | ratio |\n|---|---|---:|---:|---:|");
    for figure in figures {
        let peer = match (&figure.peer_name, figure.peer) {
            (Some(name), Some(value)) => format!("{value:.1} ({name})"),
            _ => "-".into(),
        };
        let ratio = figure
            .ratio
            .map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        println!(
            "| {} | {} | {:.1} | {peer} | {ratio} |",
            figure.name, figure.unit, figure.ours
        );
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(figures)?)?;
    }
    Ok(())
}

/// The value below which `percent` of the samples lie; sorts them.
pub fn percentile(samples: &mut [u32], percent: f64) -> f64 {
    if samples.is_empty() {
        return 0.0;
    }
    samples.sort_unstable();
    let index = ((samples.len() - 1) as f64 * percent / 100.0).round() as usize;
    f64::from(samples[index])
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_of_a_hundred() {
        let mut samples: Vec<u32> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut samples, 0.0), 1.0);
        assert_eq!(percentile(&mut samples, 99.0), 99.0);
        assert_eq!(percentile(&mut [], 50.0), 0.0);
    }
}
