//! Ports for services.

use anyhow::{Context, Result, bail};
use lineradb_common::random;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};

/// Free ports are taken from here: below those that Linux gives to outgoing
/// connections, so that a service which is started again finds its port free.
const FREE: std::ops::Range<u16> = 10_000..30_000;
/// Draws until a free port must have been met.
const DRAWS: usize = 1_000;

/// Ports that this process has handed out: clusters that start side by side, and
/// services that are down for a while, keep theirs.
static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Hands out ports: each is held until all are chosen.
pub(super) struct Ports {
    well_known: bool,
    taken: Vec<TcpListener>,
}

impl Ports {
    pub(super) fn new(well_known: bool) -> Self {
        Ports {
            well_known,
            taken: Vec::new(),
        }
    }

    /// The documented port, or a free one.
    pub(super) fn next(&mut self, well_known: u16) -> Result<SocketAddr> {
        let listener = if self.well_known {
            TcpListener::bind(("127.0.0.1", well_known))
                .with_context(|| format!("port {well_known} on 127.0.0.1 is taken"))?
        } else {
            free()?
        };
        let address = listener.local_addr()?;
        self.taken.push(listener);
        Ok(address)
    }
}

fn free() -> Result<TcpListener> {
    for _ in 0..DRAWS {
        let port = FREE.start + random::below(u64::from(FREE.end - FREE.start)) as u16;
        let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else {
            continue;
        };
        if HANDED_OUT.lock().insert(port) {
            return Ok(listener);
        }
    }
    bail!("no free port on 127.0.0.1 from {} on", FREE.start)
}
