//! The links between the services of a cluster, and what is done to them.
//!
//! Every service advertises the address of a proxy that runs in this process
//! ([`Network::front`]). The proxy knows whom it stands for, and finds out who
//! has connected (`owner`): so for each ordered pair of services it can hold the
//! bytes back that the one sends to the other, or let them pass late, slowly or with losses. This needs no
//! rights, and no change of the services.
//!
//! A held link resembles a network that loses every packet:
//!
//! * No connection is reset or closed: neither side learns anything. The end of
//!   a stream, and a reset, are held like data.
//! * The sender can go on until the buffers are full: a chunk here, and what the
//!   kernel takes. Then its writes block.
//! * A connection that is opened meanwhile is accepted by the kernel, since that
//!   is how sockets work, but nothing comes of it while either direction is held.
//! * After healing, held bytes arrive, as retransmitted ones would.
//!
//! One thing is harsher than TCP: with one direction held, the other one carries
//! any amount of data, where TCP would stop after a window without an
//! acknowledgement.

mod owner;
mod relay;
mod rules;

pub use owner::Processes;
pub use rules::{Link, Quality, Rules};

use lineradb_common::spawn;
use relay::Connection;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Connections through one proxy at once; more wait unaccepted.
const CONNECTIONS_MAX: usize = 512;
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The metaservice.
    Metaservice,
    /// A kvnode, from 0.
    KvNode(usize),
    /// A SQL gateway, from 0.
    Gateway(usize),
    /// This process, which is no part of the cluster: no rule concerns it.
    Client,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Metaservice => f.write_str("metaservice-1"),
            Peer::KvNode(n) => write!(f, "kvnode-{}", n + 1),
            Peer::Gateway(n) => write!(f, "sqlgateway-{}", n + 1),
            Peer::Client => f.write_str("client"),
        }
    }
}

/// All proxies, and the rules that they keep. Dropping it ends them, with every
/// connection.
#[derive(Debug)]
pub struct Network {
    processes: Arc<Processes>,
    rules: watch::Sender<Rules>,
}

impl Network {
    /// A network without proxies. Who connects is looked up in `processes`.
    pub fn new(processes: Arc<Processes>) -> Self {
        Network {
            processes,
            rules: watch::Sender::new(Rules::default()),
        }
    }

    /// Starts a proxy for a service that listens on `target`; answers where
    /// others reach it.
    ///
    /// # Errors
    /// When no port is free.
    pub fn front(&self, peer: Peer, target: SocketAddr) -> std::io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let front = Front {
            listener: TcpListener::from_std(listener)?,
            peer,
            target,
            processes: self.processes.clone(),
            rules: self.rules.subscribe(),
        };
        spawn::task("proxy", front.run());
        Ok(address)
    }

    /// From now on these rules hold, and no others.
    pub fn apply(&self, rules: Rules) {
        self.rules.send_replace(rules);
    }

    /// From now on everything passes.
    pub fn heal(&self) {
        self.apply(Rules::default());
    }
}

/// The proxy in front of one service.
struct Front {
    listener: TcpListener,
    peer: Peer,
    target: SocketAddr,
    processes: Arc<Processes>,
    rules: watch::Receiver<Rules>,
}

impl Front {
    async fn run(self) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut over = self.rules.clone();
        let accept = async {
            while let Ok(permit) = room.clone().acquire_owned().await {
                let Ok((stream, from)) = self.listener.accept().await else {
                    // Out of descriptors, or given up by the other side.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let connection = Connection {
                    stream,
                    from,
                    to: self.peer,
                    target: self.target,
                    rules: self.rules.clone(),
                };
                let processes = self.processes.clone();
                spawn::task("proxied-connection", async move {
                    connection.run(processes).await;
                    drop(permit);
                });
            }
        };
        tokio::select! {
            () = accept => {}
            () = relay::over(&mut over) => {}
        }
    }
}

#[cfg(test)]
mod tests;
