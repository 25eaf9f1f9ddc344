//! One proxied connection: bytes in both directions, each past its rules.

use super::Peer;
use super::owner::Processes;
use super::rules::{Link, Passage, Rules};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// What waits here at most, for each direction of a connection.
const CHUNK_BYTES: usize = 64 * 1024;

/// Returns when there is no network any more.
pub(super) async fn over(rules: &mut watch::Receiver<Rules>) {
    while rules.changed().await.is_ok() {}
}

/// A connection that was accepted for a service.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) from: SocketAddr,
    pub(super) to: Peer,
    pub(super) target: SocketAddr,
    pub(super) rules: watch::Receiver<Rules>,
}

impl Connection {
    /// Lasts until both sides have closed it, one has reset it, or the network
    /// is no more.
    pub(super) async fn run(self, processes: Arc<Processes>) {
        let mut end = self.rules.clone();
        tokio::select! {
            () = self.relay(processes) => {}
            () = over(&mut end) => {}
        }
    }

    async fn relay(mut self, processes: Arc<Processes>) {
        let Ok(here) = self.stream.local_addr() else {
            return;
        };
        let Some(from) = processes.owner(self.from, here).await else {
            tracing::debug!(from = %self.from, to = %self.to, "nobody's connection is closed");
            return;
        };
        let link = Link::new(from, self.to);
        // Neither side of a connection exists before packets have gone both ways.
        if self.rules.wait_for(|r| r.connects(link)).await.is_err() {
            return;
        }
        let Ok(mut target) = TcpStream::connect(self.target).await else {
            return;
        };
        for stream in [&self.stream, &target] {
            // Without it everything is only slower.
            let _ = stream.set_nodelay(true);
        }
        let (mut near_read, mut near_write) = self.stream.split();
        let (mut far_read, mut far_write) = target.split();
        let there = pump(&mut near_read, &mut far_write, link, self.rules.clone());
        let back = pump(&mut far_read, &mut near_write, link.back(), self.rules);
        // An error of either ends both: dropping the streams tells the sides.
        let _ = tokio::try_join!(there, back);
    }
}

/// Carries the bytes of one direction.
async fn pump(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    link: Link,
    mut rules: watch::Receiver<Rules>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        // The end and a reset are packets, too: first the rules, then the news.
        let got = read.read(&mut chunk).await;
        pass(&mut rules, link, *got.as_ref().unwrap_or(&0)).await?;
        let sent = match got? {
            0 => return write.shutdown().await,
            n => write.write_all(&chunk[..n]).await,
        };
        if sent.is_err() {
            // That the receiver is gone, the sender learns by the way back.
            pass(&mut rules, link.back(), 0).await?;
            return sent;
        }
    }
}

/// Returns when so many bytes may pass: at once, when the link has carried them, when it is
/// no longer held. What is under way when the rules change begins anew.
async fn pass(rules: &mut watch::Receiver<Rules>, link: Link, bytes: usize) -> std::io::Result<()> {
    loop {
        let passage = rules.borrow_and_update().passage(link);
        let takes = match passage {
            Passage::Open(quality) => {
                let takes = quality.takes(bytes, lineradb_common::random::below);
                if takes.is_zero() {
                    return Ok(());
                }
                Some(takes)
            }
            Passage::Held => None,
        };
        let carried = async {
            match takes {
                Some(takes) => tokio::time::sleep(takes).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = carried => return Ok(()),
            changed = rules.changed() => {
                changed.map_err(|_| std::io::Error::other("the network is no more"))?;
            }
        }
    }
}
