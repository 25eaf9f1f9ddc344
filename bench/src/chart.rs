//! A chart of ratios, as SVG: one bar for each figure that has a peer, to the right
//! where we are faster and to the left where the peer is.

use crate::Figure;
use std::fmt::Write;

const ROW: f64 = 22.0;
const LABEL: f64 = 330.0;
const WIDTH: f64 = 900.0;
/// Ratios beyond this are cut off; the number beside the bar is not.
const RATIO_MAX: f64 = 8.0;

/// The chart; figures without a peer are left out.
#[must_use]
pub fn svg(title: &str, figures: &[Figure]) -> String {
    let rows: Vec<(&Figure, f64, &str)> = { figures.iter() }
        .filter_map(|figure| Some((figure, figure.ratio?, figure.peer_name.as_deref()?)))
        .collect();
    let height = 70.0 + ROW * rows.len() as f64;
    let half = (WIDTH - LABEL - 60.0) / 2.0;
    let middle = LABEL + half;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">{}</text>\n\
         <text x=\"{middle}\" y=\"42\" text-anchor=\"middle\" fill=\"#666\">the same speed</text>\n",
        escape(title)
    );
    for (at, (figure, ratio, peer)) in rows.iter().enumerate() {
        let y = 52.0 + ROW * at as f64;
        let share = (ratio.max(f64::MIN_POSITIVE).ln() / RATIO_MAX.ln()).clamp(-1.0, 1.0);
        let (x, color) = match share < 0.0 {
            true => (middle + share * half, "#c0504d"),
            false => (middle, "#3b7d4f"),
        };
        let length = share.abs() * half;
        let beside = match share < 0.0 {
            true => middle + 6.0,
            false => x + length + 6.0,
        };
        // Writing into a String never fails.
        let _ = writeln!(
            out,
            "<text x=\"12\" y=\"{0}\">{1} / {2}</text>\n\
             <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{3}\" fill=\"{color}\"/>\n\
             <text x=\"{beside:.1}\" y=\"{0}\">{ratio:.2}</text>",
            y + 12.0,
            escape(&figure.name),
            escape(peer),
            ROW - 6.0,
        );
    }
    let _ = writeln!(
        out,
        "<line x1=\"{middle}\" y1=\"46\" x2=\"{middle}\" y2=\"{}\" stroke=\"#333\"/>\n</svg>",
        height - 10.0
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_for_each_peer_on_its_side() {
        let figures = [
            Figure::ours("fill <1>", "ops/s", 2.0).beside("a", 1.0, 2.0),
            Figure::ours("read", "ops/s", 1.0).beside("b", 100.0, 0.01),
            Figure::ours("alone", "ops/s", 1.0),
        ];
        let chart = svg("ratios", &figures);
        assert_eq!(chart.matches("<rect").count(), 3);
        assert!(chart.contains("fill &lt;1> / a") && !chart.contains("alone"));
        assert_eq!(chart.matches("#c0504d").count(), 1);
        assert!(chart.trim_end().ends_with("</svg>"));
    }
}
