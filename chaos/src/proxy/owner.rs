//! Who has opened a connection: the kernel's table of sockets says which inode
//! it is, and the descriptors of a process say which inodes it holds. Both may
//! be read for processes of the same user.

use super::Peer;
use lineradb_common::spawn;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

/// Looks into the table; the process may be just being entered into
/// [`Processes`] when it connects for the first time.
const LOOKS: usize = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// The process ids of the services that run.
#[derive(Debug, Default)]
pub struct Processes(Mutex<BTreeMap<Peer, u32>>);

impl Processes {
    /// A service runs.
    pub fn started(&self, peer: Peer, pid: u32) {
        self.0.lock().insert(peer, pid);
    }

    /// A service runs no more.
    pub fn ended(&self, peer: Peer) {
        self.0.lock().remove(&peer);
    }

    /// Who holds the socket of a connection from `from` to `to`; `None` when
    /// nobody of the cluster does, or does no longer.
    pub(super) async fn owner(self: Arc<Self>, from: SocketAddr, to: SocketAddr) -> Option<Peer> {
        for _ in 0..LOOKS {
            let processes = self.clone();
            let look = spawn::blocking(move || processes.look(from, to));
            if let Ok(Some(peer)) = look.await {
                return Some(peer);
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    fn look(&self, from: SocketAddr, to: SocketAddr) -> Option<Peer> {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
            return None;
        };
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = inode_of(&table, from, to)?;
        let mut candidates: Vec<(Peer, u32)> =
            self.0.lock().iter().map(|(p, id)| (*p, *id)).collect();
        candidates.push((Peer::Client, std::process::id()));
        let found = candidates.into_iter().find(|(_, pid)| holds(*pid, inode));
        Some(found?.0)
    }
}

/// The inode of a socket, in the text of `/proc/net/tcp`.
fn inode_of(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ends = (address(fields.next()?)?, address(fields.next()?)?);
        // Then: state, queues, timer, retransmissions, user, timeout, inode.
        let inode = fields.nth(6)?.parse().ok()?;
        (ends == (local, remote)).then_some(inode)
    })
}

/// `0100007F:1F90` is 127.0.0.1:8080: the address as it lies in memory, the port
/// as a number.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(ip.to_ne_bytes()), port))
}

fn holds(pid: u32, inode: u64) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let name = format!("socket:[{inode}]");
    descriptors
        .flatten()
        .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
        .any(|target| target.as_os_str() == name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inode_of_a_socket_is_found_by_its_two_ends() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0
";
        let at = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        assert_eq!(inode_of(table, at(50_000), at(8080)), Some(4712));
        assert_eq!(inode_of(table, at(8080), at(50_000)), Some(4713));
        assert_eq!(inode_of(table, at(50_001), at(8080)), None);
        assert_eq!(inode_of("", at(1), at(2)), None);
    }

    #[tokio::test]
    async fn a_connection_belongs_to_who_holds_its_socket() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let to = listener.local_addr().unwrap();
        let stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let from = stream.local_addr().unwrap();
        let processes = Arc::new(Processes::default());
        let own = processes.clone().owner(from, to).await;
        assert_eq!(own, Some(Peer::Client));
        // Whoever runs under a name is found before.
        processes.started(Peer::KvNode(1), std::process::id());
        let named = processes.clone().owner(from, to).await;
        assert_eq!(named, Some(Peer::KvNode(1)));
        processes.ended(Peer::KvNode(1));
        drop(stream);
        assert_eq!(processes.owner(from, to).await, None);
    }
}
