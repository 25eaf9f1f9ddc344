//! Which table to rewrite so that blob files that are mostly garbage can go: a pure function.
//!
//! Every compaction moves what is alive in such a file and in its way. Where none comes by, as on a deep level that
//! nothing is written to, the space would never come back; so when nothing else is due, the table that points to most
//! of such bytes is rewritten on its own level. Level 0 is left alone: a table there is as new as its number says, and
//! what is in it comes down before long.
//!
//! This ends: what a rewritten table points to of stale files, it points to in a new one afterwards, all of which is
//! alive.

use super::pick::{Busy, Pick};
use crate::table::TableMeta;

/// Decides, given the tables of each level, those that are busy, and which blob files are mostly garbage.
pub(crate) fn pick(
    levels: &[Vec<&TableMeta>],
    busy: &Busy,
    is_stale: impl Fn(u64) -> bool,
) -> Option<Pick> {
    let stale_bytes = |table: &TableMeta| -> u64 {
        let stale = table.blobs.iter().filter(|blob| is_stale(blob.file));
        stale.map(|blob| blob.bytes).sum()
    };
    let deeper = levels.iter().enumerate().skip(1);
    let tables = deeper.flat_map(|(level, tables)| tables.iter().map(move |table| (level, *table)));
    let idle = tables.filter(|(_, table)| !busy.contains(table));
    let candidates = idle.map(|(level, table)| (stale_bytes(table), level, table.number));
    let (bytes, level, number) = candidates.filter(|(bytes, ..)| *bytes > 0).max()?;
    Some(Pick {
        score: bytes,
        level,
        output_level: level,
        inputs: vec![number],
        overlaps: Vec::new(),
        trivial: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::blob::BlobUse;

    #[test]
    fn the_idle_table_with_most_of_stale_files_is_rewritten_where_it_is() {
        let table = |number, blobs: &[(u64, u64)]| TableMeta {
            number,
            blobs: { blobs.iter() }
                .map(|(file, bytes)| BlobUse {
                    file: *file,
                    bytes: *bytes,
                })
                .collect(),
            ..TableMeta::default()
        };
        let level0 = table(1, &[(90, 1_000)]);
        let deep = [
            table(2, &[(90, 10), (91, 500)]),
            table(3, &[(90, 20), (92, 15)]),
        ];
        let levels = [vec![&level0], vec![], vec![&deep[0]], vec![&deep[1]]];
        let stale = |file| file == 90 || file == 92;
        let mut busy = Busy::default();
        let first = pick(&levels, &busy, stale);
        let place = |pick: &Pick| {
            (
                pick.level,
                pick.output_level,
                pick.inputs.clone(),
                pick.score,
            )
        };
        assert_eq!(first.as_ref().map(place), Some((3, 3, vec![3], 35)));
        first.iter().for_each(|pick| busy.begin(pick));
        let second = pick(&levels, &busy, stale);
        assert_eq!(second.as_ref().map(place), Some((2, 2, vec![2], 10)));
        second.iter().for_each(|pick| busy.begin(pick));
        assert_eq!(pick(&levels, &busy, stale), None);
        assert_eq!(
            pick(&levels, &Busy::default(), |file| file == 91).map(|pick| pick.inputs),
            Some(vec![2])
        );
        assert_eq!(pick(&levels, &Busy::default(), |_| false), None);
    }
}
