//! `Protect` and `Protections`: which history the shards have to keep (X5).
//!
//! ```text
//!  holder      protects t, not further back than 9 minutes -> record -> "it holds"
//!  shard       asks: what is protected, as of T?
//!              raises its threshold to T - kept history (10 minutes at least), or
//!              to the oldest protected t, whichever is less
//! ```
//!
//! A shard that has asked before the record was there raises to less than t: the
//! answer came within seconds, and a minute lies between nine and ten. One that asks
//! later is told of t. So nothing at t or above is collected, and no shard needs to
//! be told.

use super::MetaApi;
use crate::error::{Error, Result};
use crate::state::command::{Body, Protect};
use crate::state::{Reply, State};
use lineradb_common::Timestamp;
use lineradb_common::limits::PROTECTED_AGE_MAX;
use lineradb_proto::meta::v1 as meta;
use tonic::Status;

/// Leases that may be asked for.
const LEASE_MS: std::ops::RangeInclusive<u32> = 1_000..=3_600_000;

impl MetaApi {
    pub(super) async fn protect_here(
        &self,
        state: &State,
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
            if let Some(record) = state.protection(&id) {
                let end = self
                    .member
                    .with_view(|view, _| view.leases.give_back(record));
                self.member.propose(Body::Unprotect(end)).await?;
            }
            return Ok(meta::ProtectReply {});
        }
        if timestamp == 0 || !LEASE_MS.contains(&lease_ms) {
            return Err(Status::invalid_argument(format!(
                "a protection has a timestamp and a lease of {} to {} ms; 0 ms gives it back",
                LEASE_MS.start(),
                LEASE_MS.end()
            )));
        }
        let stands = self.member.with_view(|view, now| {
            view.leases.hear(&id, now);
            // The newest state: what has just ended is not taken to stand.
            let state = self.member.shared.state();
            let known = state.protection(&id);
            known.filter(|known| view.leases.stands(known)).cloned()
        });
        let held = stands.map(|record| (record.timestamp, record.lease_ms));
        if held == Some((timestamp, lease_ms)) {
            return Ok(meta::ProtectReply {});
        }
        // X5: what no protection holds may be collected soon, unless it is young.
        if held.is_none_or(|(held, _)| timestamp < held) {
            let oldest = self.oldest_protectable()?;
            if Timestamp::from_raw(timestamp) < oldest {
                return Err(Status::out_of_range(format!(
                    "{} may be collected already; what is to be protected must not lie before {oldest}",
                    Timestamp::from_raw(timestamp)
                )));
            }
        }
        let protect = Protect {
            id,
            timestamp,
            lease_ms,
        };
        match self.member.propose(Body::Protect(protect)).await? {
            Reply::Done => Ok(meta::ProtectReply {}),
            Reply::Refused(reason) => Err(Status::resource_exhausted(reason)),
            other => Err(Error::Internal(format!("a protection answered {other}")).into()),
        }
    }

    fn oldest_protectable(&self) -> Result<Timestamp, Status> {
        let now = self.member.time.read().ok_or_else(no_time)?;
        let age = PROTECTED_AGE_MAX.as_micros() as u64;
        Ok(Timestamp::from_micros(now.latest_us.saturating_sub(age)))
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
