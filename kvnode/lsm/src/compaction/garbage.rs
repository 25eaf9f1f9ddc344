//! Collecting the garbage of blob files: which files to empty, and which table to rewrite for it. Pure functions.
//!
//! A record is garbage once no table points to it, and its space comes back when its file goes: when nothing in it is
//! pointed to. So what is alive has to move. Which files are worth it is decided for the whole database
//! ([`victims`]): files that are mostly garbage, and none as long as theirs is a small part of all; then the emptiest,
//! a batch at a time, so that space comes back before the next batch takes any.
//!
//! Every compaction moves what it meets of the victims. Where none comes by, as on a deep level that nothing is
//! written to, the space would never come back; so when nothing else is due, the table that points to most of
//! them is rewritten on its own level ([`pick`]). Level 0 is left alone: a table there is as new as its number says, and
//! what is in it comes down before long.
//!
//! This ends: what a rewritten table points to of the victims, it points to in new files afterwards, all of which is
//! alive.

use super::pick::{Busy, Pick};
use crate::table::TableMeta;
use std::collections::BTreeSet;

/// As long as the garbage of the files that are mostly garbage is not more than this part of all files, they are left
/// alone.
const GARBAGE_PART: u64 = 8;
/// What is alive in a batch of victims is about this part of all files.
const BATCH_PART: u64 = 16;

/// A blob file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Its number.
    pub file: u64,
    pub bytes: u64,
    /// Bytes of it that tables point to.
    pub used_bytes: u64,
}

/// The files to empty. `table_bytes`: of all tables; `batch_bytes_min`: a batch may have so much, however small the
/// database is.
pub(crate) fn victims(
    shares: impl Iterator<Item = Share>,
    table_bytes: u64,
    batch_bytes_min: u64,
) -> BTreeSet<u64> {
    let mut shares: Vec<Share> = shares.collect();
    let all = table_bytes + shares.iter().map(|share| share.bytes).sum::<u64>();
    shares.retain(|share| share.used_bytes < share.bytes / 2);
    let garbage: u64 = { shares.iter() }
        .map(|share| share.bytes - share.used_bytes)
        .sum();
    if garbage <= all / GARBAGE_PART {
        return BTreeSet::new();
    }
    let used_part = |share: &Share| share.used_bytes as f64 / share.bytes.max(1) as f64;
    shares.sort_by(|left, right| used_part(left).total_cmp(&used_part(right)));
    let mut room = batch_bytes_min.max(all / BATCH_PART);
    let batch = shares.into_iter().take_while(|share| {
        let fits = room > 0;
        room = room.saturating_sub(share.used_bytes);
        fits
    });
    batch.map(|share| share.file).collect()
}

/// The table to rewrite, given the tables of each level, those that are busy, and the victims.
pub(crate) fn pick(
    levels: &[Vec<&TableMeta>],
    busy: &Busy,
    victims: &BTreeSet<u64>,
) -> Option<Pick> {
    let bytes_to_move = |table: &TableMeta| -> u64 {
        let blobs = table.blobs.iter();
        let moved = blobs.filter(|blob| victims.contains(&blob.file));
        moved.map(|blob| blob.bytes).sum()
    };
    let deeper = levels.iter().enumerate().skip(1);
    let tables = deeper.flat_map(|(level, tables)| tables.iter().map(move |table| (level, *table)));
    let idle = tables.filter(|(_, table)| !busy.contains(table));
    let candidates = idle.map(|(level, table)| (bytes_to_move(table), level, table.number));
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
    fn the_emptiest_files_go_first_once_their_garbage_is_an_eighth_of_all() {
        let share = |file, bytes, used_bytes| Share {
            file,
            bytes,
            used_bytes,
        };
        let shares = [
            share(1, 100, 49),
            share(2, 100, 40),
            share(3, 100, 50),
            share(4, 100, 100),
            share(5, 100, 0),
        ];
        let victims = |table_bytes, batch| {
            let victims = victims(shares.into_iter(), table_bytes, batch);
            victims.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(victims(0, 1_000), [1, 2, 5]);
        assert_eq!(victims(1_187, 1_000), [1, 2, 5], "211 of 1687 bytes");
        assert_eq!(victims(1_188, 1_000), [], "211 of 1688 bytes");
        assert_eq!(victims(0, 10), [2, 5], "a sixteenth of all is more");
        assert_eq!(victims(0, 41), [1, 2, 5], "what is begun is finished");
    }

    #[test]
    fn the_idle_table_with_most_of_the_victims_is_rewritten_where_it_is() {
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
        let victims = BTreeSet::from([90, 92]);
        let mut busy = Busy::default();
        let first = pick(&levels, &busy, &victims);
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
        let second = pick(&levels, &busy, &victims);
        assert_eq!(second.as_ref().map(place), Some((2, 2, vec![2], 10)));
        second.iter().for_each(|pick| busy.begin(pick));
        assert_eq!(pick(&levels, &busy, &victims), None);
        let other = pick(&levels, &Busy::default(), &BTreeSet::from([91]));
        assert_eq!(other.map(|pick| pick.inputs), Some(vec![2]));
        assert_eq!(pick(&levels, &Busy::default(), &BTreeSet::new()), None);
    }
}
