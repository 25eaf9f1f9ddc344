//! Closed timestamps (PROTOCOLS L4): reads of the past that any replica serves.
//!
//! ```text
//! client --Close--> leader     floor c, await writes in flight, applied index i, round
//!        <-(c, i)--
//! client --Get at r <= c, (c, i)--> any replica that has applied i
//! ```
//!
//! Closing c is a read of the whole shard at c, in the order of any read (L3): the
//! floor of the timestamp cache rises to c, so that every later write goes above;
//! the writes in flight at or below c land; then a round begun after all that
//! confirms the leadership, and the next leader's mark lies above c, which the clock
//! has passed. What the read sees is the state at the leader's applied index i. That
//! index is committed, so whoever has applied it holds the same state: the pair (c, i)
//! is true for ever, and of every replica. (PROTOCOLS names the term with the index,
//! which serves an index that is proposed only.)
//!
//! A provisional write at or below r that a replica holds may have been decided since:
//! it is the leader's business, as is everything else that is not a plain answer.
//! A split changes the shard's version, which the client's pair is for.
//!
//! Nobody is asked to close anything as long as nobody reads the past: leaders hear of
//! it from clients, once a second for each shard in use.

use super::read::{Work, span_here};
use super::{Answer, Call, Engine, collect};
use crate::mvcc::Store;
use crate::rules::Rule;
use crate::txn::placement::check_key;
use crate::txn::refusal::Refusal;
use crate::txn::schema::{TableVersions, Verdict};
use crate::txn::seam::Consensus;
use lineradb_common::{TableId, Timestamp};
use lineradb_proto::shard::v1::{self as proto, reply, request};

/// How far behind the clock a timestamp is closed: transactions shorter than this are
/// not pushed by it.
const CLOSE_LAG_US: u64 = 3_000_000;
/// Below and above all places that are latched.
const ALL: (&[u8], &[u8]) = (&[], &[0xff]);

impl<C: Consensus, S: Store> Engine<C, S> {
    /// Closes a timestamp.
    pub(super) async fn close(&self, call: &mut Call) -> Answer {
        let earliest = self.clock.now()?.earliest.micros();
        let at = Timestamp::from_micros(earliest.saturating_sub(CLOSE_LAG_US));
        let leading = call.leading.clone();
        if self.rules.hold(Rule::ClosedIsFloor) {
            leading.cache.raise_floor(at);
        }
        if self.rules.hold(Rule::ClosedAwaitsWrites) {
            let instant = leading.latches.instant();
            let landed = leading.latches.wait_span(ALL.0, ALL.1, at, instant);
            self.until(call, landed).await?;
        }
        let index = self.consensus.applied_index();
        self.still(call)?;
        self.confirm(call).await?;
        let closed = proto::Closed {
            timestamp: at.raw(),
            index,
        };
        let reply = proto::CloseReply {
            closed: Some(closed),
        };
        Ok((reply::Body::Close(reply), Timestamp::ZERO))
    }

    /// A read at or below a closed timestamp, by a replica that need not lead. It
    /// leaves no trace (L5), and waits for no clock (T5): what it sees is seconds old.
    pub(super) async fn read_closed(
        &self,
        request: &proto::Request,
        closed: &proto::Closed,
    ) -> Answer {
        let at = request.body.as_ref().map_or(0, read_ts);
        if at == 0 || at > closed.timestamp {
            return Err(Refusal::invalid(
                "a read by any replica names a timestamp that is closed",
            ));
        }
        let at = Timestamp::from_raw(at);
        let index = match self.rules.hold(Rule::AppliedBeforeServed) {
            true => closed.index,
            false => 0,
        };
        let snapshot = self.consensus.as_of(index, || self.store.snapshot());
        let snapshot = snapshot
            .ok_or_else(|| Refusal::unavailable("this replica has not come that far yet"))?;
        // After the snapshot: it is one of this version of the shard.
        let descriptor = self.consensus.descriptor();
        if descriptor.version != request.shard_version {
            return Err(Refusal::shard_changed());
        }
        let threshold = collect::stored_threshold(&snapshot, self.shard)?;
        if at < threshold {
            return Err(Refusal::too_old(at, threshold));
        }
        for planned in &request.schema {
            let table = TableId(planned.table_id);
            let versions = TableVersions::load(&snapshot, self.shard, table)?;
            if !matches!(versions.check(at, planned.version, None), Verdict::Same(_)) {
                return Err(Refusal::unavailable("another schema version, or none yet"));
            }
        }
        let work = match &request.body {
            Some(request::Body::Get(get)) => {
                for key in &get.keys {
                    check_key(&descriptor, key)?;
                }
                Work::Get(get)
            }
            Some(request::Body::Scan(scan)) => {
                Work::Scan(scan, span_here(&descriptor, scan.span.as_ref())?)
            }
            Some(request::Body::Fragment(fragment)) => {
                Work::Fragment(fragment, span_here(&descriptor, fragment.span.as_ref())?)
            }
            _ => return Err(Refusal::invalid("only reads are served by any replica")),
        };
        self.evaluate(&snapshot, at, None, &work, None).await
    }
}

/// The timestamp that a read names.
fn read_ts(body: &request::Body) -> u64 {
    match body {
        request::Body::Get(get) => get.read_ts,
        request::Body::Scan(scan) => scan.read_ts,
        request::Body::Fragment(fragment) => fragment.read_ts,
        _ => 0,
    }
}
