//! Which safety rules hold. In service: all of them, for ever. A test may
//! switch one off to show the history that it forbids (PROTOCOLS: each such
//! history is a scenario, seen to fail without its rule).

/// A rule that a scenario test may switch off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// X1: the version of a transaction's first write carries its id.
    VersionCarriesId,
    /// X1, X3: a commit attempt meets the ABORTED record that a recovery wrote.
    AbortedRecordMet,
    /// X3: recovery reads where it misses a declared write, so that this can land
    /// above the staged timestamp only.
    RecoveryReadsMissing,
    /// X3: a verdict is put down only if the record is what was read.
    VerdictCompares,
    /// L3: a new leader writes above every read its predecessor can have served.
    LowWaterMark,
    /// L3: a read enters the timestamp cache before its snapshot is taken.
    CacheBeforeSnapshot,
    /// L3: a read is served only after a round confirmed the leadership.
    ConfirmedReads,
    /// L3: what a write reads at its timestamp is not above what the next
    /// leader respects.
    EffectsReadable,
    /// L4: nothing is written at or below a closed timestamp.
    ClosedIsFloor,
    /// L4: a timestamp is closed when the writes in flight below it have landed.
    ClosedAwaitsWrites,
    /// L4: a replica that has not applied what was closed serves nothing.
    AppliedBeforeServed,
    /// L5: equal timestamps of two transactions erase the owner.
    EqualReadsEraseOwner,
    /// L5: reads of absent keys are recorded as well.
    AbsentReadsRecorded,
    /// S1: the schema version is compared at the timestamp of effect.
    SchemaAtEffect,
    /// C5: the right half of a split writes above what the left half served.
    SplitInheritance,
    /// C4: a child's seed is part of the batch that applies the split.
    SeedInParentsBatch,
    /// D2: the log is purged only when the edit that stands for it is durable.
    EditBeforePurge,
    /// X3: only a confirmed leader says that no intent is left to resolve.
    NothingLeftConfirmed,
    /// X5: nothing is read below the threshold of the collection.
    ThresholdRefuses,
    /// X5: a delete marker stays while an older version lies deeper.
    MarkersLast,
}

/// The rules in force.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    #[cfg(test)]
    off: Option<Rule>,
}

impl Rules {
    /// All rules but one.
    #[cfg(test)]
    pub fn without(rule: Rule) -> Self {
        Rules { off: Some(rule) }
    }

    /// Whether a rule is in force: always, outside of tests.
    #[inline]
    pub fn hold(self, rule: Rule) -> bool {
        #[cfg(test)]
        if self.off == Some(rule) {
            return false;
        }
        let _ = rule;
        true
    }
}
