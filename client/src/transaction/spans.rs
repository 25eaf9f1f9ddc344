//! A set of keys as disjoint spans: what a transaction has read. Bounded: a
//! set that grows too large closes its smallest worries away by joining
//! neighbours, which can only cause a needless retry, never a missed one.

use crate::types::Span;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Spans kept apart at most.
const SPANS_MAX: usize = 16 * 1024;

/// Disjoint, non-adjacent spans in key order.
#[derive(Clone, Debug, Default)]
pub struct SpanSet {
    /// Start to end; an empty end has no bound.
    spans: BTreeMap<Bytes, Bytes>,
}

impl SpanSet {
    /// Adds all keys of a span.
    pub fn insert(&mut self, span: &Span) {
        if span.is_empty() {
            return;
        }
        let mut start = span.start.clone();
        let mut end = span.end.clone();
        if let Some((s, e)) = self.spans.range(..=start.clone()).next_back()
            && (e.is_empty() || *e >= start)
        {
            start = s.clone();
            end = later(&end, e);
        }
        while let Some((s, e)) = self.spans.range(start.clone()..).next() {
            if !end.is_empty() && *s > end {
                break;
            }
            end = later(&end, e);
            let s = s.clone();
            self.spans.remove(&s);
        }
        self.spans.insert(start, end);
        if self.spans.len() > SPANS_MAX {
            self.halve();
        }
    }

    fn halve(&mut self) {
        let old = std::mem::take(&mut self.spans);
        let mut old = old.into_iter();
        while let Some((start, end)) = old.next() {
            let end = old.next().map_or(end, |(_, end)| end);
            self.spans.insert(start, end);
        }
    }

    /// The spans in key order.
    pub fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans
            .iter()
            .map(|(start, end)| Span::new(start.clone(), end.clone()))
    }

    /// True when nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// True when it shares a key with `span`.
    pub fn overlaps(&self, span: &Span) -> bool {
        !span.is_empty()
            && (self
                .spans
                .range(..=span.start.clone())
                .next_back()
                .is_some_and(|(_, end)| end.is_empty() || *end > span.start)
                || self
                    .spans
                    .range(span.start.clone()..)
                    .next()
                    .is_some_and(|(start, _)| span.end.is_empty() || *start < span.end))
    }
}

fn later(a: &Bytes, b: &Bytes) -> Bytes {
    if a.is_empty() || b.is_empty() {
        Bytes::new()
    } else {
        a.clone().max(b.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(start: u8, end: u8) -> Span {
        let end = if end == 0 { vec![] } else { vec![end] };
        Span::new(vec![start], end)
    }

    proptest! {
        #[test]
        fn it_holds_exactly_what_was_added(
            added in prop::collection::vec((any::<u8>(), any::<u8>()), 0..20),
            probe in (any::<u8>(), any::<u8>()),
        ) {
            let mut set = SpanSet::default();
            for &(s, e) in &added {
                set.insert(&span(s, e));
            }
            let model = |key: u8| added.iter().any(|&(s, e)| span(s, e).contains(&[key]));
            let mut last_end: Option<Bytes> = None;
            for part in set.iter() {
                prop_assert!(!part.is_empty());
                if let Some(end) = &last_end {
                    prop_assert!(!end.is_empty() && *end < part.start);
                }
                last_end = Some(part.end);
            }
            for key in 0..=255u8 {
                prop_assert_eq!(set.iter().any(|p| p.contains(&[key])), model(key));
            }
            let probe = span(probe.0, probe.1);
            let hit = set.iter().any(|p| p.overlaps(&probe));
            prop_assert_eq!(set.overlaps(&probe), hit);
        }
    }

    #[test]
    fn a_full_set_joins_neighbours_and_loses_nothing() {
        let mut set = SpanSet::default();
        for i in 0..(SPANS_MAX as u32 + 1) {
            set.insert(&Span::point(&(i * 7).to_be_bytes()));
        }
        assert!(set.iter().count() <= SPANS_MAX);
        for i in 0..(SPANS_MAX as u32 + 1) {
            assert!(set.overlaps(&Span::point(&(i * 7).to_be_bytes())));
        }
    }
}
