//! `Protect` and `Protections`: which history the shards have to keep (X5).
//!
//! ```text
//!  holder      protects t -> record -> "it holds"
//!  shard       asks: what is protected, as of T?
//!              raises its threshold to T - kept history (10 minutes at least), or
//!              to the oldest protected t, whichever is less
//! ```
//!
//! No shard needs to be told. One that asks when the record is there hears of t. One
//! that has asked before was told a T below the clock's ceiling of that time (T3),
//! which no later ceiling is below; so a new record is refused, when it is applied,
//! for a t before the ceiling less ten minutes. The ceiling runs ten seconds ahead:
//! nine minutes may always be protected.

use super::MetaApi;
use crate::error::{Error, Result};
use crate::state::command::{Body, Protect};
use crate::state::{Reply, State};
use bytes::Bytes;
use lineradb_common::Timestamp;
use lineradb_proto::meta::v1 as meta;
use tonic::Status;

/// Leases that may be asked for.
const LEASE_MS: std::ops::RangeInclusive<u32> = 1_000..=3_600_000;

impl MetaApi {
    pub(super) async fn protect_here(
        &self,
        request: meta::ProtectRequest,
    ) -> Result<meta::ProtectReply, Status> {
        let meta::ProtectRequest {
            id,
            timestamp,
            lease_ms,
        } = request;
        if id.len() != 16 {
            return Err(Status::invalid_argument(
                "the id of a protection has 16 bytes",
            ));
        }
        if lease_ms == 0 {
            return self.give_back(&id).await;
        }
        if timestamp == 0 || !LEASE_MS.contains(&lease_ms) {
            return Err(Status::invalid_argument(format!(
                "a protection has a timestamp and a lease of {} to {} ms; 0 ms gives it back",
                LEASE_MS.start(),
                LEASE_MS.end()
            )));
        }
        let (term, stands) = self.member.with_view(|view, now| {
            view.leases.hear(&id, now);
            // The newest state: what has just ended is not taken to stand.
            let state = self.member.shared.state();
            let stands = state.protection(&id).is_some_and(|known| {
                (known.timestamp, known.lease_ms) == (timestamp, lease_ms)
                    && view.leases.stands(known)
            });
            (view.term, stands)
        });
        if stands {
            return Ok(meta::ProtectReply {});
        }
        let protect = Protect {
            id,
            timestamp,
            lease_ms,
        };
        match self.member.propose(Body::Protect(protect)).await? {
            Reply::Protected(revision) => {
                self.member.with_view(|view, _| {
                    if view.term == term {
                        view.leases.wrote(revision);
                    }
                });
                Ok(meta::ProtectReply {})
            }
            Reply::TooOld(oldest) => Err(Status::out_of_range(format!(
                "{} may be collected already; what is to be protected anew must not lie before {}",
                Timestamp::from_raw(timestamp),
                Timestamp::from_micros(oldest)
            ))),
            Reply::Refused(reason) => Err(Status::resource_exhausted(reason)),
            other => Err(Error::Internal(format!("a protection answered {other}")).into()),
        }
    }

    async fn give_back(&self, id: &Bytes) -> Result<meta::ProtectReply, Status> {
        let end = self.member.with_view(|view, _| {
            let state = self.member.shared.state();
            let record = state.protection(id)?;
            Some(view.leases.give_back(record))
        });
        if let Some(end) = end {
            self.member.propose(Body::Unprotect(end)).await?;
        }
        Ok(meta::ProtectReply {})
    }

    /// `as_of` was read before the leader was confirmed whose state this is.
    pub(super) fn protections_of(
        state: &State,
        as_of: Option<meta::ReadClockReply>,
    ) -> Result<meta::ProtectionsReply, Status> {
        let as_of = as_of.ok_or_else(no_time)?;
        let protections = state.header.protections.iter();
        Ok(meta::ProtectionsReply {
            as_of: Timestamp::from_micros(as_of.earliest_us).raw(),
            protections: protections
                .map(|record| meta::Protection {
                    id: record.id.clone(),
                    timestamp: record.timestamp,
                })
                .collect(),
        })
    }
}

fn no_time() -> Status {
    Status::unavailable("the metaservice may not tell the time yet; ask again")
}
