//! The metaservice seen from outside: several members, of which any may be
//! down. A call goes to the member that answered last; a failure moves on to
//! the next. A member that is not the leader may name the leader's address in
//! the status metadata [`LEADER_HEADER`].

use crate::backoff::Backoff;
use crate::connection::endpoint;
use crate::{Error, Result};
use lineradb_common::clock::discipline::{Bounds, Raw, Sample};
use lineradb_common::clock::{ClusterClock, PROBE_INTERVAL, counter_id, deadline_after};
use lineradb_proto::meta::v1 as pb;
use lineradb_proto::meta::v1::meta_client::MetaClient as Grpc;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Metadata of a refusal in which a member names the leader's address.
pub const LEADER_HEADER: &str = "lineradb-leader";
/// One member gets this long before the next is asked.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// A new clock begins with the best of so many probes.
const FIRST_PROBES: usize = 3;
/// Maps and heartbeats of a large cluster are large.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A client of the metaservice. Cheap to clone.
#[derive(Clone)]
pub struct MetaClient(Arc<Inner>);

struct Inner {
    members: Vec<String>,
    channels: Mutex<HashMap<String, Grpc<Channel>>>,
    /// Who answered last, or was named as leader.
    preferred: Mutex<String>,
}

/// What a reply of the time master says to a process that sent and received at
/// these readings of its counter.
pub fn sample(sent: Raw, received: Raw, reply: &pb::ReadClockReply) -> Sample {
    let shared = counter_id().is_some_and(|id| id == reply.counter);
    Sample {
        epoch: reply.epoch,
        sent,
        received,
        at_master: Bounds {
            earliest: reply.earliest_us,
            latest: reply.latest_us,
        },
        shared: shared.then_some(Raw(reply.raw_us)),
    }
}

impl MetaClient {
    /// A client of these members (`host:port`).
    ///
    /// # Errors
    /// When there is none, or an address is malformed.
    pub fn new(members: Vec<String>) -> Result<Self> {
        let Some(first) = members.first().cloned() else {
            return Err(Error::invalid("no metaservice address is given"));
        };
        for member in &members {
            endpoint(member)
                .map_err(|e| Error::invalid(format!("metaservice address {member:?}: {e}")))?;
        }
        Ok(MetaClient(Arc::new(Inner {
            members,
            channels: Mutex::default(),
            preferred: Mutex::new(first),
        })))
    }

    fn member(&self, address: &str) -> Result<Grpc<Channel>> {
        let mut channels = self.0.channels.lock();
        if let Some(client) = channels.get(address) {
            return Ok(client.clone());
        }
        let endpoint = endpoint(address)
            .map_err(|e| Error::invalid(format!("metaservice address {address:?}: {e}")))?;
        let client = Grpc::new(endpoint.connect_lazy())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        channels.insert(address.to_owned(), client.clone());
        Ok(client)
    }

    /// After a failure of `address`: whom to ask next.
    fn move_on(&self, address: &str, status: &Status) {
        let named = status
            .metadata()
            .get(LEADER_HEADER)
            .and_then(|v| v.to_str().ok())
            .filter(|leader| *leader != address && endpoint(leader).is_ok());
        let next = named.map_or_else(
            || {
                let at = self.0.members.iter().position(|m| m == address);
                let next = at.map_or(0, |i| (i + 1) % self.0.members.len());
                self.0.members[next].clone()
            },
            str::to_owned,
        );
        *self.0.preferred.lock() = next;
    }

    async fn call<Q, R, F, Fut>(&self, request: Q, deadline: Instant, one: F) -> Result<R>
    where
        Q: Clone,
        F: Fn(Grpc<Channel>, Q) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(300));
        loop {
            let address = self.0.preferred.lock().clone();
            let answer = one(self.member(&address)?, request.clone());
            let until = deadline.min(deadline_after(TRY_TIMEOUT));
            let status = match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            if !may_pass(status.code()) {
                return Err(refused(&status));
            }
            self.move_on(&address, &status);
            if !backoff.pause(deadline).await {
                return Err(Error::unavailable(format!(
                    "the metaservice at {address} does not answer: {}",
                    status.message()
                )));
            }
        }
    }

    /// The whole map, now.
    pub async fn get_map(&self, deadline: Instant) -> Result<pb::ClusterMap> {
        self.call(
            pb::GetMapRequest::default(),
            deadline,
            |mut m, q| async move { m.get_map(q).await },
        )
        .await
    }

    /// The first of `count` ids that nobody else gets.
    pub async fn allocate_ids(&self, sequence: &str, count: u64, deadline: Instant) -> Result<u64> {
        let request = pb::AllocateIdsRequest {
            sequence: sequence.to_owned(),
            count,
        };
        let reply = self
            .call(request, deadline, |mut m, q| async move {
                m.allocate_ids(q).await
            })
            .await?;
        Ok(reply.first)
    }

    /// Splits a shard; waits until the split is in the map.
    pub async fn split_shard(
        &self,
        request: pb::SplitShardRequest,
        deadline: Instant,
    ) -> Result<pb::SplitShardReply> {
        self.call(request, deadline, |mut m, q| async move {
            m.split_shard(q).await
        })
        .await
    }

    /// Introduces a kvnode.
    pub async fn register_node(
        &self,
        request: pb::RegisterNodeRequest,
        deadline: Instant,
    ) -> Result<pb::RegisterNodeReply> {
        self.call(request, deadline, |mut m, q| async move {
            m.register_node(q).await
        })
        .await
    }

    /// Tells what a kvnode hosts; brings back what to do.
    pub async fn heartbeat(
        &self,
        request: pb::HeartbeatRequest,
        deadline: Instant,
    ) -> Result<pb::HeartbeatReply> {
        self.call(
            request,
            deadline,
            |mut m, q| async move { m.heartbeat(q).await },
        )
        .await
    }

    /// Tells what waits on a kvnode; brings back who has to give way there.
    pub async fn report_waits(
        &self,
        request: pb::ReportWaitsRequest,
        deadline: Instant,
    ) -> Result<pb::ReportWaitsReply> {
        self.call(request, deadline, |mut m, q| async move {
            m.report_waits(q).await
        })
        .await
    }

    /// Keeps history from a timestamp on, for as long as the protection is renewed
    /// within its lease; a lease of zero gives it back (X5).
    ///
    /// # Errors
    /// `Invalid` when the timestamp lies too far back to be protected anew.
    pub async fn protect(&self, request: pb::ProtectRequest, deadline: Instant) -> Result<()> {
        self.call(
            request,
            deadline,
            |mut m, q| async move { m.protect(q).await },
        )
        .await?;
        Ok(())
    }

    /// Which history is protected.
    pub async fn protections(&self, deadline: Instant) -> Result<pb::ProtectionsReply> {
        self.call(pb::ProtectionsRequest {}, deadline, |mut m, q| async move {
            m.protections(q).await
        })
        .await
    }

    /// Asks the time master once.
    async fn read_clock(&self, deadline: Instant) -> Result<Sample> {
        self.call(pb::ReadClockRequest {}, deadline, |mut m, q| async move {
            let sent = Raw::now();
            let reply = m.read_clock(q).await?.into_inner();
            Ok(Response::new(sample(sent, Raw::now(), &reply)))
        })
        .await
    }

    /// Who leads, and who is a member.
    pub async fn status(&self, deadline: Instant) -> Result<pb::StatusReply> {
        self.call(pb::StatusRequest {}, deadline, |mut m, q| async move {
            m.status(q).await
        })
        .await
    }

    /// Gives a clock its first samples; tries until the time master answers.
    pub async fn synchronise(&self, clock: &ClusterClock) {
        for _ in 0..FIRST_PROBES {
            while !self.probe(clock, TRY_TIMEOUT * 2).await {
                tokio::time::sleep(PROBE_INTERVAL / 10).await;
            }
        }
    }

    /// Goes on to discipline a clock for as long as somebody holds it.
    pub async fn keep_synchronised(&self, clock: Weak<ClusterClock>) {
        loop {
            let Some(clock) = clock.upgrade() else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
                () = clock.doubted() => {}
            }
            self.probe(&clock, TRY_TIMEOUT).await;
        }
    }

    async fn probe(&self, clock: &ClusterClock, timeout: Duration) -> bool {
        match self.read_clock(deadline_after(timeout)).await {
            Ok(sample) => {
                clock.observe(sample);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the time master does not answer");
                false
            }
        }
    }

    /// Follows the map for ever: hands every change to `on_map`, reconnects
    /// when the stream breaks. Ends when `on_map` answers `false`.
    pub async fn watch<F: FnMut(pb::ClusterMap) -> bool>(&self, mut on_map: F) {
        let longest = Duration::from_secs(1);
        let mut backoff = Backoff::new(Duration::from_millis(20), longest);
        loop {
            let address = self.0.preferred.lock().clone();
            let status = match self.member(&address) {
                Ok(mut member) => match member.watch_map(pb::GetMapRequest::default()).await {
                    Ok(maps) => {
                        let mut maps = maps.into_inner();
                        loop {
                            match maps.message().await {
                                Ok(Some(map)) => {
                                    backoff = Backoff::new(Duration::from_millis(20), longest);
                                    if !on_map(map) {
                                        return;
                                    }
                                }
                                Ok(None) => break Status::unavailable("the stream ended"),
                                Err(status) => break status,
                            }
                        }
                    }
                    Err(status) => status,
                },
                Err(error) => Status::invalid_argument(error.to_string()),
            };
            tracing::debug!(%address, status = status.message(), "map watch ended");
            self.move_on(&address, &status);
            tokio::time::sleep(backoff.step()).await;
        }
    }
}

/// True for a refusal that another member, or the same one later, may not
/// repeat.
fn may_pass(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Aborted
        | Code::FailedPrecondition => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

fn refused(status: &Status) -> Error {
    let message = format!("metaservice: {}", status.message());
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::OutOfRange => {
            Error::Invalid { message }
        }
        Code::ResourceExhausted => Error::Limit { message },
        _ => Error::Internal { message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_moves_on_and_a_named_leader_is_followed() {
        let metas = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        let client = MetaClient::new(metas).unwrap();
        client.move_on("a:1", &Status::unavailable("down"));
        assert_eq!(*client.0.preferred.lock(), "b:1");
        let mut status = Status::failed_precondition("not the leader");
        status
            .metadata_mut()
            .insert(LEADER_HEADER, "x:9".parse().unwrap());
        client.move_on("b:1", &status);
        assert_eq!(*client.0.preferred.lock(), "x:9");
        client.move_on("x:9", &Status::unavailable("down"));
        assert_eq!(*client.0.preferred.lock(), "a:1");
        assert!(MetaClient::new(vec![]).is_err());
        assert!(MetaClient::new(vec!["no address".into()]).is_err());
    }
}
