//! The `Meta` service. Any member answers: a follower forwards to the leader,
//! once. Answers are linearizable: the leader confirms with a quorum,
//! after the request has arrived, that it still leads. What must be quick, the time
//! and deadlocks, is answered by the leader alone and at once.

mod protect;
mod split;
mod waits;

use crate::error::{Error, Result};
use crate::metrics::METRICS;
use crate::planner;
use crate::server::{Member, Role, map};
use crate::state::command::{AllocateIds, Body, RegisterNode};
use crate::state::{NODE_SEQUENCE, PROTECTION_SEQUENCE, Reply, SHARD_SEQUENCE, State};
use futures::Stream;
use lineradb_common::spawn;
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::meta::v1::meta_client::MetaClient;
use lineradb_proto::meta::v1::meta_server::Meta;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// Marks a request that a follower has forwarded: it goes no further.
const FORWARDED: &str = "lineradb-forwarded";

/// Names the leader's address to whoever asked another member.
const LEADER_HEADER: &str = "lineradb-leader";

/// How long `SplitShard` waits for the split to be in the map.
const SPLIT_WAIT: Duration = Duration::from_secs(30);

/// Longest block of ids.
const IDS_MAX: u64 = 1_000_000;

/// The service on one member.
pub struct MetaApi {
    member: Arc<Member>,
    stop: CancellationToken,
}

/// Where a request is answered.
enum Place {
    Here(Arc<State>),
    There(MetaClient<Channel>),
}

impl MetaApi {
    pub(crate) fn new(member: Arc<Member>, stop: CancellationToken) -> Self {
        MetaApi { member, stop }
    }

    async fn place<T>(&self, request: &mut Request<T>) -> Result<Place, Status> {
        if self.stop.is_cancelled() {
            return Err(Status::unavailable("this member is stopping"));
        }
        match self.member.role().await? {
            Role::Leader(state) => Ok(Place::Here(state)),
            Role::Follower(_) if request.metadata().contains_key(FORWARDED) => Err(
                Status::unavailable("the leader of the metaservice has just changed"),
            ),
            Role::Follower(leader) => {
                let address = { self.member.peers.address(leader) }
                    .ok_or_else(|| Status::unavailable(format!("no address of member {leader}")))?;
                let channel = self.member.peers.channel(address)?;
                request
                    .metadata_mut()
                    .insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
                METRICS.forwarded.inc();
                Ok(Place::There(
                    MetaClient::new(channel).max_decoding_message_size(64 << 20),
                ))
            }
        }
    }

    /// A refusal that names the leader, if it is another member.
    fn not_here(&self, why: &str) -> Status {
        let mut status = Status::unavailable(why);
        let leader = self
            .member
            .leader()
            .filter(|id| *id != self.member.config.id);
        let address = leader.and_then(|id| self.member.peers.address(id));
        if let Some(Ok(address)) = address.map(|address| address.parse()) {
            status.metadata_mut().insert(LEADER_HEADER, address);
        }
        status
    }

    async fn register_here(
        &self,
        request: meta::RegisterNodeRequest,
    ) -> Result<meta::RegisterNodeReply> {
        if request.node_uuid.len() != 16 {
            return Err(Error::Invalid("node_uuid must have 16 bytes".to_owned()));
        }
        if request.address.is_empty() {
            return Err(Error::Invalid("a node must say its address".to_owned()));
        }
        if self.member.shared.state().header.cluster_id.is_empty() {
            // A folder that did not learn its cluster's id could join another one.
            return Err(Error::Unavailable(
                "the cluster has no name yet; it is being born".to_owned(),
            ));
        }
        let reply = self
            .member
            .propose(Body::RegisterNode(RegisterNode {
                uuid: request.node_uuid,
                address: request.address,
                http_address: request.http_address,
                locality: request.locality.into_iter().collect(),
            }))
            .await?;
        let Reply::Node(node) = reply else {
            return Err(Error::Internal(format!("registration answered {reply}")));
        };
        let state = self.member.shared.state();
        tracing::info!(
            node = node.node_id,
            incarnation = node.incarnation,
            address = node.address,
            "node registered"
        );
        // It is alive: it has just spoken.
        self.member.with_view(|view, now| {
            view.record(
                now,
                &meta::HeartbeatRequest {
                    node_id: node.node_id,
                    ..meta::HeartbeatRequest::default()
                },
            )
        });
        self.member.work.notify_one();
        self.member.map_changed.notify_one();
        Ok(meta::RegisterNodeReply {
            node_id: node.node_id,
            incarnation: node.incarnation,
            cluster_id: state.header.cluster_id.clone(),
        })
    }

    fn heartbeat_here(
        &self,
        state: &State,
        request: &meta::HeartbeatRequest,
    ) -> Result<meta::HeartbeatReply, Status> {
        let node_id = request.node_id;
        match state.nodes.get(&node_id) {
            None => {
                return Err(Status::not_found(format!(
                    "node {node_id} is not registered"
                )));
            }
            Some(node) if node.incarnation != request.incarnation => {
                return Err(Status::failed_precondition(format!(
                    "node {node_id} has registered again since (incarnation {} is over, {} is \
                     current): register again",
                    request.incarnation, node.incarnation
                )));
            }
            Some(_) => {}
        }
        METRICS.heartbeats.inc();
        let (orders, news) = self.member.with_view(|view, now| {
            let news = view.record(now, request);
            (planner::orders(state, view, node_id, now), news)
        });
        self.member.note_orders(node_id, orders.len());
        if news {
            self.member.map_changed.notify_one();
        }
        self.member.work.notify_one();
        Ok(meta::HeartbeatReply { sent_at: 0, orders })
    }

    async fn allocate_here(&self, request: meta::AllocateIdsRequest) -> Result<u64> {
        let name_ok = (1..=64).contains(&request.sequence.len()) && { request.sequence.bytes() }
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
        if !name_ok {
            return Err(Error::Invalid(format!(
                "sequence {:?}: a name has 1 to 64 of a-z, 0-9, _ and -",
                request.sequence
            )));
        }
        if matches!(
            request.sequence.as_str(),
            NODE_SEQUENCE | SHARD_SEQUENCE | PROTECTION_SEQUENCE
        ) {
            return Err(Error::Invalid(format!(
                "sequence {:?} belongs to the metaservice",
                request.sequence
            )));
        }
        if request.count == 0 || request.count > IDS_MAX {
            return Err(Error::Invalid(format!(
                "count {}: must be 1 to {IDS_MAX}",
                request.count
            )));
        }
        let body = Body::AllocateIds(AllocateIds {
            sequence: request.sequence,
            count: request.count,
        });
        match self.member.propose(body).await? {
            Reply::Ids(first) => Ok(first),
            Reply::Refused(reason) => Err(Error::Invalid(reason)),
            other => Err(Error::Internal(format!("allocation answered {other}"))),
        }
    }
}

/// The map with fresh ages.
fn current_map(member: &Member, state: &State) -> meta::ClusterMap {
    let mut map = meta::ClusterMap::clone(&map::publish(member, state));
    member.with_view(|view, now| {
        for node in &mut map.nodes {
            let last = view.nodes.get(&node.node_id).map(|n| n.last);
            node.last_heartbeat_ms_ago =
                last.map_or(u64::MAX, |at| now.saturating_sub(at).as_millis() as u64);
        }
    });
    map
}

type MapStream = Pin<Box<dyn Stream<Item = Result<meta::ClusterMap, Status>> + Send>>;

#[async_trait::async_trait]
impl Meta for MetaApi {
    async fn register_node(
        &self,
        mut request: Request<meta::RegisterNodeRequest>,
    ) -> Result<Response<meta::RegisterNodeReply>, Status> {
        match self.place(&mut request).await? {
            Place::There(mut leader) => leader.register_node(request).await,
            Place::Here(_) => {
                let reply = self.register_here(request.into_inner()).await?;
                Ok(Response::new(reply))
            }
        }
    }

    async fn heartbeat(
        &self,
        mut request: Request<meta::HeartbeatRequest>,
    ) -> Result<Response<meta::HeartbeatReply>, Status> {
        match self.place(&mut request).await? {
            Place::There(mut leader) => leader.heartbeat(request).await,
            Place::Here(state) => {
                let reply = self.heartbeat_here(&state, request.get_ref())?;
                Ok(Response::new(reply))
            }
        }
    }

    async fn get_map(
        &self,
        mut request: Request<meta::GetMapRequest>,
    ) -> Result<Response<meta::ClusterMap>, Status> {
        match self.place(&mut request).await? {
            Place::There(mut leader) => leader.get_map(request).await,
            Place::Here(state) => Ok(Response::new(current_map(&self.member, &state))),
        }
    }

    type WatchMapStream = MapStream;

    async fn watch_map(
        &self,
        mut request: Request<meta::GetMapRequest>,
    ) -> Result<Response<MapStream>, Status> {
        let state = match self.place(&mut request).await? {
            Place::Here(state) => state,
            Place::There(mut leader) => {
                let stream = leader.watch_map(request).await?.into_inner();
                return Ok(Response::new(Box::pin(stream)));
            }
        };
        map::publish(&self.member, &state);
        let (sender, receiver) = mpsc::channel(4);
        let mut maps = self.member.map.subscribe();
        let stop = self.stop.clone();
        spawn::task("meta-watch", async move {
            METRICS.watchers.inc();
            loop {
                let map = maps.borrow_and_update().clone();
                let (item, last) = match map {
                    Some(map) => (Ok(meta::ClusterMap::clone(&map)), false),
                    None => (Err(Status::unavailable("this member does not lead")), true),
                };
                if sender.send(item).await.is_err() || last {
                    break;
                }
                tokio::select! {
                    changed = maps.changed() => if changed.is_err() { break },
                    () = sender.closed() => break,
                    () = stop.cancelled() => break,
                }
            }
            METRICS.watchers.dec();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn allocate_ids(
        &self,
        mut request: Request<meta::AllocateIdsRequest>,
    ) -> Result<Response<meta::AllocateIdsReply>, Status> {
        match self.place(&mut request).await? {
            Place::There(mut leader) => leader.allocate_ids(request).await,
            Place::Here(_) => {
                let first = self.allocate_here(request.into_inner()).await?;
                Ok(Response::new(meta::AllocateIdsReply { first }))
            }
        }
    }

    async fn split_shard(
        &self,
        mut request: Request<meta::SplitShardRequest>,
    ) -> Result<Response<meta::SplitShardReply>, Status> {
        match self.place(&mut request).await? {
            Place::There(mut leader) => leader.split_shard(request).await,
            Place::Here(_) => {
                let split = self.split_here(request.get_ref());
                tokio::select! {
                    reply = tokio::time::timeout(SPLIT_WAIT, split) => match reply {
                        Ok(reply) => reply.map(Response::new),
                        Err(_) => Err(Status::deadline_exceeded(
                            "the split was ordered but is not done yet; its shard has no leader, \
                             or the leader is busy",
                        )),
                    },
                    () = self.stop.cancelled() => {
                        Err(Status::unavailable("this member is stopping"))
                    }
                }
            }
        }
    }

    /// Answered by the leader alone, and at once: what a way through another
    /// member and a quorum takes would be an error of the clock.
    async fn read_clock(
        &self,
        _request: Request<meta::ReadClockRequest>,
    ) -> Result<Response<meta::ReadClockReply>, Status> {
        if let Some(reply) = self.member.time.read() {
            return Ok(Response::new(reply));
        }
        Err(self.not_here(match self.member.raft.is_leader() {
            true => "this member leads, but may not tell the time yet",
            false => "this member does not lead; the leader tells the time",
        }))
    }

    /// Answered by the leader alone, from memory: nothing rests on it but who gives
    /// way, and the waiting node looks itself whether it is so.
    async fn report_waits(
        &self,
        request: Request<meta::ReportWaitsRequest>,
    ) -> Result<Response<meta::ReportWaitsReply>, Status> {
        if self.stop.is_cancelled() || !self.member.raft.is_leader() {
            return Err(self.not_here("this member does not lead; the leader finds deadlocks"));
        }
        let reply = self.report_waits_here(request.get_ref())?;
        Ok(Response::new(reply))
    }

    async fn protect(
        &self,
        mut request: Request<meta::ProtectRequest>,
    ) -> Result<Response<meta::ProtectReply>, Status> {
        match self.place(&mut request).await? {
            Place::There(mut leader) => leader.protect(request).await,
            Place::Here(_) => {
                let reply = self.protect_here(request.into_inner()).await?;
                Ok(Response::new(reply))
            }
        }
    }

    async fn protections(
        &self,
        mut request: Request<meta::ProtectionsRequest>,
    ) -> Result<Response<meta::ProtectionsReply>, Status> {
        let as_of = self.member.time.read();
        match self.place(&mut request).await? {
            Place::There(mut leader) => leader.protections(request).await,
            Place::Here(state) => Self::protections_of(&state, as_of).map(Response::new),
        }
    }

    /// Answered by the member asked, leader or not: it says what it knows.
    async fn status(
        &self,
        _request: Request<meta::StatusRequest>,
    ) -> Result<Response<meta::StatusReply>, Status> {
        Ok(Response::new(status_of(&self.member)))
    }
}

/// What this member knows of its group and cluster.
pub(crate) fn status_of(member: &Member) -> meta::StatusReply {
    let state = member.shared.state();
    let members = member.peers.all().iter();
    meta::StatusReply {
        member_id: member.config.id,
        leader_id: member.leader().unwrap_or(0),
        term: member.term(),
        cluster_id: state.header.cluster_id.clone(),
        revision: member.map.borrow().as_ref().map_or(0, |m| m.revision),
        replication_factor: state.header.replication_factor,
        members: members
            .map(|(id, address)| meta::Member {
                id: *id,
                address: address.clone(),
            })
            .collect(),
    }
}
