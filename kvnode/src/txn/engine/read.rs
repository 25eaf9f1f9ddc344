//! Reads (PROTOCOLS L3, in its ReadIndex form): into the timestamp cache, wait
//! for earlier writes in flight, snapshot, a round that confirms the
//! leadership, and only then an answer. What has changed (`changes.rs`) is read in the
//! same way.

use super::changes::Changes;
use super::wait::Patience;
use super::{Answer, Call, Engine, SchemaCheck};
use crate::consensus::Mark;
use crate::mvcc::{self, ScanOptions, Store, VersionScan, keys};
use crate::rules::Rule;
use crate::txn::fate;
use crate::txn::placement::{check_key, txn_id};
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use crate::txn::wait_graph::Contender;
use bytes::Bytes;
use lineradb_common::clock::Stopwatch;
use lineradb_common::keys::key_after;
use lineradb_common::{Timestamp, TxnId};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, ShardDescriptor, reply};
use std::pin::pin;

/// Bytes of keys and values in one page of a scan.
const PAGE_BYTES: usize = 1 << 20;
/// Values in the answer to a multi-get end here, one value more or less.
pub(super) const GET_BYTES: usize = 4 << 20;

/// What is read, and how it is answered.
pub(super) enum Work<'a> {
    Get(&'a proto::Get),
    Scan(&'a proto::Scan, proto::Span),
    Fragment(&'a proto::Fragment, proto::Span),
    Refresh(&'a proto::Refresh, Vec<proto::Span>),
    QueryIntents(&'a proto::QueryIntents, TxnId),
    Changes(&'a Changes),
}

impl Work<'_> {
    fn keys(&self) -> &[Bytes] {
        match self {
            Work::Get(get) => &get.keys,
            Work::QueryIntents(query, _) => &query.keys,
            _ => &[],
        }
    }

    /// The oldest timestamp whose history it needs.
    fn oldest(&self, at: Timestamp) -> Timestamp {
        match self {
            Work::Refresh(refresh, _) => at.min(Timestamp::from_raw(refresh.from_ts)),
            // Intents are not collected, and a transaction is to be recovered however
            // old it is.
            Work::QueryIntents(..) => Timestamp::MAX,
            Work::Changes(changes) => changes.oldest(),
            _ => at,
        }
    }

    fn spans(&self) -> &[proto::Span] {
        match self {
            Work::Get(_) | Work::QueryIntents(..) => &[],
            Work::Scan(_, span) | Work::Fragment(_, span) => std::slice::from_ref(span),
            Work::Refresh(_, spans) => spans,
            Work::Changes(changes) => std::slice::from_ref(&changes.span),
        }
    }
}

/// The transaction of a read; empty: none.
fn reader_id(bytes: &[u8]) -> Result<Option<TxnId>, Refusal> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        txn_id(bytes).map(Some)
    }
}

/// The key of a span that holds one key.
fn single_key(span: &proto::Span) -> Option<&Bytes> {
    let is_single = span.end.len() == span.start.len() + 1
        && span.end.last() == Some(&0)
        && span.end.starts_with(&span.start);
    is_single.then_some(&span.start)
}

/// A span must lie in the shard.
pub(super) fn span_here(
    descriptor: &ShardDescriptor,
    span: Option<&proto::Span>,
) -> Result<proto::Span, Refusal> {
    let span = span.cloned().unwrap_or_default();
    let shard = descriptor.span.clone().unwrap_or_default();
    let end_inside = shard.end.is_empty() || (!span.end.is_empty() && span.end <= shard.end);
    if span.start >= shard.start && end_inside {
        Ok(span)
    } else {
        Err(Refusal::shard_changed())
    }
}

impl<C: Consensus, S: Store> Engine<C, S> {
    pub(super) async fn get(&self, call: &mut Call, get: &proto::Get) -> Answer {
        for key in &get.keys {
            check_key(&call.descriptor, key)?;
        }
        let own = reader_id(&get.txn_id)?;
        self.read(call, get.read_ts, own, Work::Get(get)).await
    }

    pub(super) async fn scan(&self, call: &mut Call, scan: &proto::Scan) -> Answer {
        let span = span_here(&call.descriptor, scan.span.as_ref())?;
        let own = reader_id(&scan.txn_id)?;
        self.read(call, scan.read_ts, own, Work::Scan(scan, span))
            .await
    }

    pub(super) async fn fragment(&self, call: &mut Call, fragment: &proto::Fragment) -> Answer {
        let span = span_here(&call.descriptor, fragment.span.as_ref())?;
        let own = reader_id(&fragment.txn_id)?;
        let work = Work::Fragment(fragment, span);
        self.read(call, fragment.read_ts, own, work).await
    }

    pub(super) async fn refresh(&self, call: &mut Call, refresh: &proto::Refresh) -> Answer {
        let spans = refresh
            .spans
            .iter()
            .map(|span| span_here(&call.descriptor, Some(span)))
            .collect::<Result<Vec<_>, _>>()?;
        if refresh.to_ts == 0 {
            return Err(Refusal::invalid("a refresh names the timestamp to reach"));
        }
        let own = reader_id(&refresh.txn_id)?;
        let work = Work::Refresh(refresh, spans);
        self.read(call, refresh.to_ts, own, work).await
    }

    /// X3: recovery looks for what a transaction has staged. As a read of nobody's,
    /// it sends what is not there yet above itself, the transaction's own writes
    /// too.
    pub(super) async fn query_intents(
        &self,
        call: &mut Call,
        query: &proto::QueryIntents,
    ) -> Answer {
        for key in &query.keys {
            check_key(&call.descriptor, key)?;
        }
        if query.commit_ts == 0 {
            return Err(Refusal::invalid("a commit has a timestamp"));
        }
        let work = Work::QueryIntents(query, txn_id(&query.txn_id)?);
        self.read(call, query.commit_ts, None, work).await
    }

    pub(super) async fn read(
        &self,
        call: &mut Call,
        requested: u64,
        own: Option<TxnId>,
        work: Work<'_>,
    ) -> Answer {
        let at = match requested {
            0 => self.clock.now()?.latest,
            at => Timestamp::from_raw(at),
        };
        self.check_ahead(at)?;
        self.wait_readable(call, at).await?;
        let early = self.rules.hold(Rule::CacheBeforeSnapshot);
        if early {
            self.record(call, &work, at, own);
        }
        let mut patience = Patience::new();
        loop {
            self.wait_for_writes(call, &work, at).await?;
            // Before the snapshot: what is visible by now is in it.
            let mark = matches!(work, Work::Changes(_)).then(|| self.consensus.tail().ask());
            let snapshot = self.store.snapshot();
            match work {
                // It goes on, and would soon lag behind.
                Work::Changes(_) => self.check_age(call, work.oldest(at))?,
                _ => self.check_history(call, work.oldest(at))?,
            }
            self.still(call)?;
            // The round begins after the read is in the cache and the snapshot
            // is taken; the evaluation runs while it is under way.
            let mut round = pin!(self.consensus.read_index(call.leading.term));
            let begun = futures::poll!(round.as_mut());
            let schema = self.check_schema(call, at, own, None, &[])?;
            let watch = Stopwatch::start();
            let answer = match schema {
                SchemaCheck::Same => {
                    let mark = mark.flatten();
                    self.evaluate(&snapshot, at, own, &work, mark).await
                }
                SchemaCheck::Refused(refusal) => Err(refusal),
                SchemaCheck::InFlight(changed) => {
                    let _ = self.until(call, changed).await?;
                    continue;
                }
            };
            call.timing.scan_us += watch.elapsed_us();
            match answer {
                Err(refusal) if refusal.code() == ErrorCode::Locked => {
                    // All that a read says of its transaction's age.
                    let who = own.map(|id| Contender { started: at, id });
                    let waited = self
                        .wait_for_intents(call, &mut patience, who, refusal)
                        .await;
                    match (waited, &work) {
                        (Ok(()), _) => continue,
                        // Two transactions that refresh over each other's
                        // intents must not wait for each other.
                        (Err(locked), Work::Refresh(..)) if locked.code() == ErrorCode::Locked => {
                            let key = locked.error.locks.first().map(|l| l.key.clone());
                            return Ok(changed_at(key.unwrap_or_default()));
                        }
                        (Err(refusal), _) => return Err(refusal),
                    }
                }
                answer => {
                    if self.rules.hold(Rule::ConfirmedReads) {
                        let round = async {
                            match begun {
                                std::task::Poll::Ready(done) => done,
                                std::task::Poll::Pending => round.await,
                            }
                        };
                        self.confirmed(call, round).await?;
                    }
                    if !early {
                        self.record(call, &work, at, own);
                    }
                    return answer;
                }
            }
        }
    }

    /// L5: what is examined, absent keys and gaps included. A scan that will
    /// stop early is recorded whole: more than needed is safe.
    fn record(&self, call: &Call, work: &Work<'_>, at: Timestamp, own: Option<TxnId>) {
        let cache = &call.leading.cache;
        if matches!(work, Work::QueryIntents(..)) && !self.rules.hold(Rule::RecoveryReadsMissing) {
            return;
        }
        for key in work.keys() {
            if !self.rules.hold(Rule::AbsentReadsRecorded) {
                let stored =
                    mvcc::newest_version(&self.store.snapshot(), &keys::addressable(key), at);
                if matches!(stored, Ok(None)) {
                    continue;
                }
            }
            cache.read_point(key, at, own);
        }
        for span in work.spans() {
            match single_key(span) {
                Some(key) => cache.read_point(key, at, own),
                None => cache.read_span(&span.start, &span.end, at, own),
            }
        }
    }

    async fn wait_for_writes(
        &self,
        call: &mut Call,
        work: &Work<'_>,
        at: Timestamp,
    ) -> Result<(), Refusal> {
        let latches = call.leading.latches.clone();
        let instant = latches.instant();
        for key in work.keys() {
            let key = keys::addressable(key);
            self.until(call, latches.wait_point(&key, at, instant))
                .await?;
        }
        for span in work.spans() {
            let lower = keys::addressable(&span.start);
            let upper = keys::addressable_end(&span.end);
            self.until(call, latches.wait_span(&lower, &upper, at, instant))
                .await?;
        }
        Ok(())
    }

    pub(super) async fn evaluate(
        &self,
        snapshot: &S::Snapshot,
        at: Timestamp,
        own: Option<TxnId>,
        work: &Work<'_>,
        mark: Option<Mark>,
    ) -> Answer {
        match work {
            Work::Changes(changes) => {
                let reply = changes.evaluate(snapshot, self.consensus.tail(), mark)?;
                Ok((reply::Body::Changes(reply), at))
            }
            Work::Get(get) => Ok(evaluate_get(snapshot, get, at, own)?),
            Work::Scan(scan, span) => Ok(evaluate_scan(snapshot, scan, span, at, own)?),
            Work::Refresh(refresh, spans) => {
                let from = Timestamp::from_raw(refresh.from_ts);
                Ok(evaluate_refresh(snapshot, spans, from, at, own)?)
            }
            Work::QueryIntents(query, id) => {
                let all_there = fate::all_there(snapshot, *id, at, &query.keys)?;
                let reply = proto::QueryIntentsReply { all_there };
                Ok((reply::Body::QueryIntents(reply), Timestamp::ZERO))
            }
            Work::Fragment(fragment, span) => {
                let mut rows = VersionScan::new(
                    snapshot.clone(),
                    scan_options(span, fragment.reverse, at, own),
                );
                let reply = crate::query::run_fragment(&mut rows, fragment).await;
                let reply = reply.map_err(|error| Refusal {
                    error: Box::new(error),
                    observed: rows.observed(),
                })?;
                Ok((reply::Body::Fragment(reply), rows.observed()))
            }
        }
    }
}

fn scan_options(
    span: &proto::Span,
    reverse: bool,
    at: Timestamp,
    own: Option<TxnId>,
) -> ScanOptions {
    ScanOptions {
        start: span.start.clone(),
        end: span.end.clone(),
        reverse,
        at,
        own,
    }
}

fn evaluate_get(
    snapshot: &impl mvcc::Reader,
    get: &proto::Get,
    at: Timestamp,
    own: Option<TxnId>,
) -> mvcc::Result<(reply::Body, Timestamp)> {
    let mut observed = Timestamp::ZERO;
    let mut values = Vec::with_capacity(get.keys.len());
    let mut bytes = 0;
    for key in &get.keys {
        if bytes >= GET_BYTES {
            break;
        }
        let read = mvcc::read_point(snapshot, key, &keys::addressable(key), at, own)?;
        observed = observed.max(read.observed);
        bytes += read.value.as_ref().map_or(0, Bytes::len) + 16;
        values.push(proto::VersionedValue {
            present: read.value.is_some(),
            value: read.value.unwrap_or_default(),
            version_ts: read.version_ts.raw(),
        });
    }
    let reply = proto::GetReply {
        read_ts: at.raw(),
        values,
    };
    Ok((reply::Body::Get(reply), observed))
}

fn evaluate_scan(
    snapshot: &impl mvcc::Reader,
    scan: &proto::Scan,
    span: &proto::Span,
    at: Timestamp,
    own: Option<TxnId>,
) -> mvcc::Result<(reply::Body, Timestamp)> {
    let mut rows = VersionScan::new(snapshot.clone(), scan_options(span, scan.reverse, at, own));
    let mut reply = proto::ScanReply {
        read_ts: at.raw(),
        ..Default::default()
    };
    let mut bytes = 0;
    while let Some(row) = rows.next_row()? {
        bytes += row.key.len() + row.value.len() + 16;
        reply.pairs.push(proto::KeyValue {
            key: row.key,
            value: row.value,
            version_ts: row.version_ts.raw(),
        });
        let full = scan.limit != 0 && reply.pairs.len() as u64 >= scan.limit;
        if full || bytes >= PAGE_BYTES {
            reply.more = true;
            break;
        }
    }
    if reply.more
        && let Some(last) = reply.pairs.last()
    {
        reply.resume = if scan.reverse {
            last.key.clone()
        } else {
            key_after(&last.key)
        };
    }
    let observed = rows.observed();
    Ok((reply::Body::Scan(reply), observed))
}

/// Whether anything in the spans got a version in `(from, to]`.
fn evaluate_refresh(
    snapshot: &impl mvcc::Reader,
    spans: &[proto::Span],
    from: Timestamp,
    to: Timestamp,
    own: Option<TxnId>,
) -> mvcc::Result<(reply::Body, Timestamp)> {
    let mut observed = Timestamp::ZERO;
    for span in spans {
        let (changed, seen) = changed_in_span(snapshot, span, from, to, own)?;
        observed = observed.max(seen);
        if let Some(key) = changed {
            let (body, _) = changed_at(key);
            return Ok((body, observed));
        }
    }
    let reply = proto::RefreshReply {
        ok: true,
        key: Bytes::new(),
    };
    Ok((reply::Body::Refresh(reply), observed))
}

fn changed_at(key: Bytes) -> (reply::Body, Timestamp) {
    let reply = proto::RefreshReply { ok: false, key };
    (reply::Body::Refresh(reply), Timestamp::ZERO)
}

/// A key of the span that changed in `(from, to]` (or one near it, when the
/// change was a deletion), and the largest timestamp examined.
pub(super) fn changed_in_span(
    snapshot: &impl mvcc::Reader,
    span: &proto::Span,
    from: Timestamp,
    to: Timestamp,
    own: Option<TxnId>,
) -> mvcc::Result<(Option<Bytes>, Timestamp)> {
    if let Some(key) = single_key(span) {
        let read = mvcc::read_point(snapshot, key, &keys::addressable(key), to, own)?;
        let changed = read.observed > from;
        return Ok((changed.then(|| key.clone()), read.observed));
    }
    let options = scan_options(span, false, to, own);
    let mut rows = VersionScan::since(snapshot.clone(), options, from);
    loop {
        let row = rows.next_row()?;
        if rows.observed() > from {
            let key = row.map_or_else(|| span.start.clone(), |row| row.key);
            return Ok((Some(key), rows.observed()));
        }
        if row.is_none() {
            return Ok((None, rows.observed()));
        }
    }
}
