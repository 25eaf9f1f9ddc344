//! What to compact next: a pure function.
//!
//! Each level gets a score in thousandths; the largest of at least 1000 that can be served wins. Level 0 scores by its
//! number of tables, as each costs every read a lookup; the others by bytes against their target. Level 0 goes down
//! whole, to the first level that is in use. From another level goes the one table that overlaps least with the next
//! level in proportion to its size: the cheapest bytes first. Where nothing overlaps, tables just change their level.
//!
//! Compactions run side by side if no table takes part in two of them ([`Busy`]). That is enough to keep their
//! outputs disjoint: a compaction takes every table of its output level that lies between its first and its last key,
//! so whatever another one writes there lies beside it. Level 0 of a tree is compacted by one at a time.

use crate::options::Options;
use crate::table::TableMeta;
use std::collections::BTreeMap;

/// Tables that running compactions work on, by number, and whether they are about to leave their level.
#[derive(Debug, Default)]
pub(crate) struct Busy(BTreeMap<u64, bool>);

impl Busy {
    /// Marks the tables of a compaction.
    pub fn begin(&mut self, pick: &Pick) {
        let leaving = pick.level != pick.output_level;
        let inputs = pick.inputs.iter().map(|number| (*number, leaving));
        let overlaps = pick.overlaps.iter().map(|number| (*number, false));
        self.0.extend(inputs.chain(overlaps));
    }

    /// Frees them.
    pub fn end(&mut self, pick: &Pick) {
        for number in pick.inputs.iter().chain(&pick.overlaps) {
            self.0.remove(number);
        }
    }

    pub fn contains(&self, table: &TableMeta) -> bool {
        self.0.contains_key(&table.number)
    }

    fn is_leaving(&self, table: &TableMeta) -> bool {
        self.0.get(&table.number) == Some(&true)
    }
}

/// A compaction, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Urgency in thousandths.
    pub score: u64,
    pub level: usize,
    pub output_level: usize,
    /// Numbers of the tables of `level` to compact.
    pub inputs: Vec<u64>,
    /// Numbers of the tables of `output_level` that overlap them.
    pub overlaps: Vec<u64>,
    /// The inputs can move to the output level as they are.
    pub trivial: bool,
}

/// Target sizes: the first level in use below level 0, and the bytes each level from there on should have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Targets {
    base: usize,
    bytes: Vec<u64>,
}

fn targets(sizes: &[u64], options: &Options) -> Targets {
    let last = sizes.len() - 1;
    let largest = sizes.iter().skip(1).copied().max().unwrap_or(0);
    let mut bytes = vec![0; sizes.len()];
    let mut target = largest.max(options.level_base_bytes);
    let mut base = last;
    bytes[last] = target;
    while base > 1 && target > options.level_base_bytes {
        base -= 1;
        target = (target / options.level_growth).max(1);
        bytes[base] = target;
    }
    Targets { base, bytes }
}

/// Bytes of each level without what is about to leave it.
fn sizes(levels: &[Vec<&TableMeta>], busy: &Busy) -> Vec<u64> {
    let size = |level: &Vec<&TableMeta>| {
        let staying = level.iter().filter(|table| !busy.is_leaving(table));
        staying.map(|table| table.bytes).sum()
    };
    levels.iter().map(size).collect()
}

/// Estimated bytes that compactions have to write before every level has its size: level 0 once it is due, and what
/// the others hold beyond their targets, each with its share of the next level.
pub(crate) fn debt(levels: &[Vec<&TableMeta>], options: &Options) -> u64 {
    let sizes = sizes(levels, &Busy::default());
    let targets = targets(&sizes, options);
    let mut debt = 0;
    if levels[0].len() >= options.level0_compaction_tables {
        debt += sizes[0] + sizes[targets.base];
    }
    let last = levels.len() - 1;
    for level in 1..last {
        let beyond = sizes[level].saturating_sub(targets.bytes[level]);
        let share = sizes[level + 1].checked_div(sizes[level]).unwrap_or(0);
        debt += beyond.saturating_mul(1 + share.min(options.level_growth));
    }
    debt
}

/// True if a tree has a level that is due and stays so when the running compactions have ended, whether or not its
/// tables are free.
pub(crate) fn is_due(levels: &[Vec<&TableMeta>], busy: &Busy, options: &Options) -> bool {
    let sizes = sizes(levels, busy);
    !due(levels, busy, &sizes, &targets(&sizes, options), options).is_empty()
}

/// The levels that are due and their scores, the most urgent first.
fn due(
    levels: &[Vec<&TableMeta>],
    busy: &Busy,
    sizes: &[u64],
    targets: &Targets,
    options: &Options,
) -> Vec<(usize, u64)> {
    let last = levels.len() - 1;
    let level0 = levels[0].iter().filter(|table| !busy.is_leaving(table));
    let level0_score = level0.count() as u64 * 1000 / options.level0_compaction_tables as u64;
    let scores = (1..last).map(|level| match (sizes[level], targets.bytes[level]) {
        (0, _) => 0,
        // The level is above the first one in use: it must empty.
        (_, 0) => u64::MAX,
        (size, target) => size.saturating_mul(1000) / target,
    });
    let mut scored: Vec<(usize, u64)> = std::iter::once(level0_score)
        .chain(scores)
        .enumerate()
        .filter(|(_, score)| *score >= 1000)
        .collect();
    // Of equal scores the upper level goes first.
    scored.sort_by_key(|(level, score)| (std::cmp::Reverse(*score), *level));
    scored
}

/// Decides the next compaction of a tree, given the tables of each level (level 0 newest first, the others sorted)
/// and those that are busy.
pub(crate) fn pick(levels: &[Vec<&TableMeta>], busy: &Busy, options: &Options) -> Option<Pick> {
    let sizes = sizes(levels, busy);
    let targets = targets(&sizes, options);
    let due = due(levels, busy, &sizes, &targets, options);
    due.into_iter().find_map(|(level, score)| match level {
        0 => pick_level0(levels, busy, targets.base, score, options),
        _ => pick_table(levels, busy, level, score, options),
    })
}

fn pick_level0(
    levels: &[Vec<&TableMeta>],
    busy: &Busy,
    base: usize,
    score: u64,
    options: &Options,
) -> Option<Pick> {
    let inputs = &levels[0];
    let first_used = (1..levels.len()).find(|level| !levels[*level].is_empty());
    let output_level = first_used.unwrap_or(base).min(base);
    let overlaps = overlapping(&levels[output_level], inputs);
    if inputs
        .iter()
        .chain(&overlaps)
        .any(|table| busy.contains(table))
    {
        return None;
    }
    let is_alone = overlaps.is_empty() && are_disjoint(inputs);
    let trivial = is_alone && may_move(inputs, 0, output_level, options);
    Some(Pick {
        score,
        level: 0,
        output_level,
        inputs: numbers(inputs),
        overlaps: numbers(&overlaps),
        trivial,
    })
}

/// The table of a level that is cheapest to push down.
fn pick_table(
    levels: &[Vec<&TableMeta>],
    busy: &Busy,
    level: usize,
    score: u64,
    options: &Options,
) -> Option<Pick> {
    let candidates = levels[level].iter().filter(|table| !busy.contains(table));
    let candidates = candidates.filter_map(|table| {
        let overlaps = overlapping(&levels[level + 1], &[table]);
        if overlaps.iter().any(|table| busy.contains(table)) {
            return None;
        }
        let bytes: u64 = overlaps.iter().map(|table| table.bytes).sum();
        let cost = bytes.saturating_mul(1000) / table.bytes.max(1);
        Some((cost, table, overlaps))
    });
    let (_, table, overlaps) = candidates.min_by_key(|(cost, table, _)| (*cost, table.number))?;
    let trivial = overlaps.is_empty() && may_move(&[table], level, level + 1, options);
    Some(Pick {
        score,
        level,
        output_level: level + 1,
        inputs: vec![table.number],
        overlaps: numbers(&overlaps),
        trivial,
    })
}

/// The tables of a sorted level that lie between the first and the last key of `inputs`.
fn overlapping<'a>(level: &[&'a TableMeta], inputs: &[&TableMeta]) -> Vec<&'a TableMeta> {
    let Some(smallest) = inputs.iter().map(|table| &table.smallest_key).min() else {
        return Vec::new();
    };
    let start = level.partition_point(|table| table.is_before(smallest));
    let reached = |table: &&&TableMeta| {
        let mut inputs = inputs.iter();
        inputs.any(|input| !input.is_before(&table.smallest_key))
    };
    level[start..].iter().take_while(reached).copied().collect()
}

/// Two kinds of tables are rewritten even where nothing overlaps: one with range deletes, since only that ever gets rid
/// of them; and one that comes to a level with another compression, where it would stay as large as it is.
fn may_move(tables: &[&TableMeta], from: usize, to: usize, options: &Options) -> bool {
    tables.iter().all(|table| table.range_deletes == 0)
        && options.compression_at(from) == options.compression_at(to)
}

fn are_disjoint(tables: &[&TableMeta]) -> bool {
    let mut sorted = tables.to_vec();
    sorted.sort_by(|left, right| left.smallest_key.cmp(&right.smallest_key));
    sorted
        .windows(2)
        .all(|pair| pair[0].is_before(&pair[1].smallest_key))
}

fn numbers(tables: &[&TableMeta]) -> Vec<u64> {
    tables.iter().map(|table| table.number).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::options::Compression;

    fn table(number: u64, range: &str, bytes: u64) -> TableMeta {
        let (smallest, largest) = range.split_once('-').unwrap();
        TableMeta {
            number,
            bytes,
            smallest_key: smallest.into(),
            largest_key: largest.into(),
            smallest_seqno: 0,
            largest_seqno: 0,
            entries: 1,
            tombstones: 0,
            ..TableMeta::default()
        }
    }

    fn options() -> Options {
        Options {
            level0_compaction_tables: 2,
            level_base_bytes: 100,
            ..Options::default()
        }
    }

    fn decide(levels: &[(usize, Vec<TableMeta>)]) -> Option<Pick> {
        let mut shape = vec![Vec::new(); 7];
        for (level, tables) in levels {
            shape[*level] = tables.iter().collect();
        }
        pick(&shape, &Busy::default(), &options())
    }

    #[test]
    fn what_is_busy_is_left_alone_and_the_rest_goes_on() {
        let upper = [
            table(1, "a-c", 300),
            table(2, "d-e", 400),
            table(3, "f-g", 300),
        ];
        let lower = [
            table(4, "a-b", 4_000),
            table(5, "d-g", 1_000),
            table(6, "h-i", 3_000),
        ];
        let mut shape = vec![Vec::new(); 7];
        (shape[5], shape[6]) = (upper.iter().collect(), lower.iter().collect());
        let mut busy = Busy::default();
        let first = pick(&shape, &busy, &options()).unwrap();
        assert_eq!((&first.inputs, &first.overlaps), (&vec![2], &vec![5]));
        busy.begin(&first);
        // Table 3 would need table 5, too; and what is about to leave counts no more.
        let second = pick(&shape, &busy, &options());
        assert_eq!(second, None);
        let lower = [table(4, "a-b", 2_000), table(5, "d-e", 1_000)];
        shape[6] = lower.iter().collect();
        let second = pick(&shape, &busy, &options()).unwrap();
        assert_eq!((&second.inputs, second.trivial), (&vec![3], true));
        busy.end(&first);
        assert_eq!(pick(&shape, &busy, &options()).unwrap().inputs, [3]);
        assert!(is_due(&shape, &busy, &options()));
        // Level 0 goes alone.
        shape[0] = vec![&upper[0], &upper[0]];
        busy.begin(&Pick {
            inputs: vec![1],
            ..first
        });
        assert_ne!(
            pick(&shape, &busy, &options()).map(|pick| pick.level),
            Some(0)
        );
    }

    #[test]
    fn debt_is_what_lies_beyond_the_targets() {
        let (small, large) = (table(1, "a-c", 50), table(2, "a-z", 10_000));
        let mut shape: Vec<Vec<&TableMeta>> = vec![Vec::new(); 7];
        (shape[0], shape[6]) = (vec![&small], vec![&large]);
        assert_eq!(debt(&shape, &options()), 0);
        shape[0] = vec![&small, &small];
        assert_eq!(debt(&shape, &options()), 100);
        let beyond = table(3, "a-c", 1_500);
        (shape[0], shape[5]) = (Vec::new(), vec![&beyond]);
        assert_eq!(debt(&shape, &options()), 500 * 7);
    }

    #[test]
    fn nothing_to_do() {
        assert_eq!(decide(&[]), None);
        assert_eq!(
            decide(&[
                (0, vec![table(1, "a-z", 50)]),
                (6, vec![table(2, "a-z", 1_000_000)])
            ]),
            None
        );
    }

    #[test]
    fn level_0_goes_to_the_last_level_of_a_small_tree() {
        let level0 = vec![table(3, "c-f", 50), table(2, "a-d", 50)];
        let pick = decide(&[
            (0, level0),
            (6, vec![table(1, "e-g", 50), table(4, "h-k", 50)]),
        ])
        .unwrap();
        assert_eq!((pick.level, pick.output_level, pick.trivial), (0, 6, false));
        assert_eq!((pick.inputs, pick.overlaps), (vec![3, 2], vec![1]));
    }

    #[test]
    fn disjoint_tables_move_to_a_level_with_their_compression() {
        let level0 = [table(3, "c-d", 50), table(2, "a-b", 50)];
        let mut shape = vec![Vec::new(); 7];
        shape[0] = level0.iter().collect();
        for (compression, moves) in [(Compression::None, true), (Compression::Lz4, false)] {
            let options = Options {
                compression,
                ..options()
            };
            let pick = pick(&shape, &Busy::default(), &options).unwrap();
            assert_eq!((pick.output_level, pick.trivial), (6, moves));
        }
        let options = Options {
            compression_last_level: Some(Compression::Zstd),
            ..options()
        };
        assert!(may_move(&shape[0], 4, 5, &options) && !may_move(&shape[0], 5, 6, &options));
    }

    #[test]
    fn a_range_that_ends_where_a_table_begins_does_not_overlap_it() {
        let upper = TableMeta {
            range_deletes: 1,
            largest_exclusive: true,
            ..table(1, "a-d", 300)
        };
        let pick = decide(&[(5, vec![upper]), (6, vec![table(2, "d-e", 1_000)])]).unwrap();
        assert_eq!((pick.inputs, pick.overlaps), (vec![1], vec![]));
        assert!(!pick.trivial, "the range delete is to go");
    }

    #[test]
    fn a_grown_last_level_opens_levels_above_it() {
        let level0 = vec![table(3, "c-f", 50), table(2, "a-d", 50)];
        let pick = decide(&[(0, level0), (6, vec![table(1, "a-z", 5_000)])]).unwrap();
        assert_eq!(pick.output_level, 4);
    }

    #[test]
    fn the_table_with_least_overlap_goes_down() {
        let upper = vec![
            table(1, "a-c", 300),
            table(2, "d-e", 400),
            table(3, "f-g", 300),
        ];
        let lower = vec![
            table(4, "a-b", 4_000),
            table(5, "d-e", 1_000),
            table(6, "f-g", 3_000),
        ];
        let pick = decide(&[(5, upper), (6, lower)]).unwrap();
        assert_eq!(
            (pick.level, pick.inputs, pick.overlaps),
            (5, vec![2], vec![5])
        );
    }

    #[test]
    fn a_level_above_the_first_in_use_empties() {
        let pick = decide(&[
            (3, vec![table(1, "a-c", 1)]),
            (6, vec![table(2, "d-e", 50)]),
        ])
        .unwrap();
        assert_eq!((pick.level, pick.output_level, pick.trivial), (3, 4, true));
    }
}
