//! What all parts of a member share: the group, the state, the view.

use super::TimeKeeper;
use crate::config::MetaConfig;
use crate::error::{Error, Result};
use crate::metrics::METRICS;
use crate::raft::Raft;
use crate::raft::machine::Shared;
use crate::raft::network::Peers;
use crate::state::command::Body;
use crate::state::{Reply, State};
use crate::view::View;
use lineradb_common::clock::Stopwatch;
use lineradb_lsm::Db;
use lineradb_proto::meta::v1::ClusterMap;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// No answer of the group within this time means that there is no quorum.
const QUORUM_WAIT: Duration = Duration::from_secs(5);

pub(crate) struct Member {
    pub config: MetaConfig,
    pub raft: Raft,
    pub shared: Arc<Shared>,
    pub peers: Peers,
    pub time: TimeKeeper,
    db: Db,
    started: Stopwatch,
    view: Mutex<View>,
    /// Wakes the leader's loop: something was reported or applied.
    pub work: Notify,
    /// Wakes the publisher of the map.
    pub map_changed: Notify,
    /// The map as last published, while this member leads.
    pub map: watch::Sender<Option<Arc<ClusterMap>>>,
    /// Orders in the last answer to each node, for the metrics.
    orders: Mutex<BTreeMap<u64, usize>>,
}

/// Who answers a request.
pub(crate) enum Role {
    /// This member leads, confirmed by a quorum; the state is current.
    Leader(Arc<State>),
    /// That one leads.
    Follower(u64),
}

impl Member {
    pub fn new(
        config: MetaConfig,
        raft: Raft,
        shared: Arc<Shared>,
        peers: Peers,
        db: Db,
    ) -> Arc<Member> {
        let (map, _) = watch::channel(None);
        let time = TimeKeeper::new(config.shared_counter);
        Arc::new(Member {
            config,
            raft,
            shared,
            peers,
            time,
            db,
            started: Stopwatch::start(),
            view: Mutex::default(),
            work: Notify::new(),
            map_changed: Notify::new(),
            map,
            orders: Mutex::default(),
        })
    }

    /// Time since this process started, the time of [`View`].
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The leader's view, of the present term.
    pub fn with_view<T>(&self, f: impl FnOnce(&mut View, Duration) -> T) -> T {
        let term = self.term();
        let now = self.now();
        let mut view = self.view.lock();
        if view.term != term {
            view.reset(term, now);
        }
        f(&mut view, now)
    }

    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    pub fn leader(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// Waits for the group to have a leader, but not for long.
    async fn await_leader(&self) -> Result<u64> {
        let mut metrics = self.raft.metrics();
        let wait = async {
            loop {
                let leader = metrics.borrow_watched().current_leader;
                if let Some(leader) = leader {
                    return Ok(leader);
                }
                if metrics.changed().await.is_err() {
                    return Err(Error::Unavailable("this member is stopping".to_owned()));
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(3), wait).await {
            Ok(found) => found,
            Err(_) => Err(Error::Unavailable(
                "the metaservice has no leader (no quorum of its members)".to_owned(),
            )),
        }
    }

    /// Says who answers: a leader only after a quorum has confirmed it in a
    /// round begun after this call (ReadIndex).
    ///
    /// # Errors
    /// Without a leader or a quorum.
    pub async fn role(&self) -> Result<Role> {
        let leader = self.await_leader().await?;
        if leader != self.config.id {
            return Ok(Role::Follower(leader));
        }
        let confirm = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(QUORUM_WAIT, confirm).await {
            Err(_) => Err(no_quorum()),
            Ok(Ok(_)) => Ok(Role::Leader(self.shared.state())),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(f)))) => {
                match f.leader_id {
                    Some(id) if id != self.config.id => Ok(Role::Follower(id)),
                    _ => Err(no_quorum()),
                }
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
                Err(no_quorum())
            }
            Ok(Err(RaftError::Fatal(e))) => Err(Error::Unavailable(e.to_string())),
        }
    }

    /// Proposes a command and waits for its reply.
    ///
    /// # Errors
    /// `Unavailable`: it was not appended. `Unknown`: it may be applied later.
    pub async fn propose(&self, body: Body) -> Result<Reply> {
        let write = self.raft.client_write(body.into());
        let result = match tokio::time::timeout(QUORUM_WAIT, write).await {
            Err(_) => Err(Error::Unknown(
                "no quorum of the metaservice answered in time".to_owned(),
            )),
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(
                Error::Unavailable("this member does not lead any more".to_owned()),
            ),
            Ok(Err(e)) => Err(Error::Unknown(e.to_string())),
        };
        let label = match &result {
            Ok(Reply::Refused(_)) => "refused",
            Ok(_) => "applied",
            Err(_) => "failed",
        };
        METRICS.commands.with_label_values(&[label]).inc();
        result
    }

    /// Remembers how many orders a node was given last.
    pub fn note_orders(&self, node_id: u64, count: usize) {
        let mut orders = self.orders.lock();
        orders.insert(node_id, count);
        METRICS
            .orders_pending
            .set(orders.values().sum::<usize>() as i64);
    }

    /// Returns when the group has stopped on a fatal error.
    pub async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            let state = metrics.borrow_watched().running_state.clone();
            if let Err(fatal) = state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "the raft group has ended".to_owned();
            }
        }
    }

    /// Gives leadership to another member before this one stops.
    pub async fn hand_over(&self) {
        let others = self.peers.all().keys().filter(|id| **id != self.config.id);
        let Some(target) = self.most_current(others.copied()) else {
            return;
        };
        if !self.raft.is_leader() {
            return;
        }
        if self.raft.trigger().transfer_leader(target).await.is_err() {
            return;
        }
        let mut metrics = self.raft.metrics();
        let gone = async {
            while metrics.borrow_watched().current_leader == Some(self.config.id) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), gone).await;
    }

    /// Of `candidates`, the one whose log is the longest as far as is known.
    fn most_current(&self, candidates: impl Iterator<Item = u64>) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = |id: u64| {
            let replication = metrics.replication.as_ref()?;
            replication.get(&id)?.as_ref().map(|log_id| log_id.index)
        };
        candidates.max_by_key(|id| matched(*id))
    }

    /// Stops the group and closes the database.
    pub async fn close(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the raft group did not stop cleanly");
        }
        let db = self.db.clone();
        let closed = lineradb_common::spawn::blocking(move || db.close()).await;
        if let Ok(Err(error)) = closed {
            tracing::warn!(%error, "the database did not close cleanly");
        }
    }
}

fn no_quorum() -> Error {
    Error::Unavailable("no quorum of the metaservice's members answers".to_owned())
}
