//! Who drives an index build, and what happens when the driver is gone.
//!
//! Each index under construction has a record in the catalog (`c` `b`), written by
//! the transaction that makes it write-only and removed by the one that makes it
//! public or takes it back. The record names its driver. Every batch of the fill
//! reads it, and so does the last step: whoever is no longer named stops there,
//! because its transaction and the one that named another cannot both commit. So
//! two gateways never both decide about a build, without a clock between them.
//!
//! A driver that lives changes the record every few seconds (its *beat*) and notes
//! how far it has come. A gateway that has seen the same record for longer than the
//! takeover time, by its own watch alone, puts itself in and goes on from there.
//! The build then ends as it would have: public, or taken back.

use super::online;
use crate::catalog::{IndexBuild, IndexState, build_key, build_of, build_span, decode, encode};
use crate::error::Result;
use crate::gateway::Gateway;
use bytes::Bytes;
use lineradb_client::{ScanOptions, Transaction, TransactionOptions, WriteOptions};
use lineradb_common::clock::Stopwatch;
use lineradb_common::random;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A record that has not changed for so long has no driver any more.
pub const TAKEOVER: Duration = Duration::from_secs(10);

/// One index under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildId {
    /// Its table.
    pub table: u32,
    /// Its number in the table.
    pub index: u32,
}

impl BuildId {
    /// Where its record is.
    pub fn key(self) -> Bytes {
        build_key(self.table, self.index)
    }
}

/// Drivers of this gateway that ended before their build did: their builds need
/// not be waited for.
#[derive(Debug, Default)]
pub struct Abandoned(Mutex<HashSet<String>>);

/// A driver. Dropped before [`Driver::done`] (the statement's task ended), it
/// leaves its build to whoever comes first.
pub struct Driver {
    /// What the records name it by.
    pub name: String,
    gateway: Arc<Gateway>,
    done: bool,
}

impl Driver {
    /// A new one.
    pub fn new(gateway: &Arc<Gateway>) -> Self {
        Driver {
            name: hex::encode(random::bytes::<16>()),
            gateway: Arc::clone(gateway),
            done: false,
        }
    }

    /// Its build is over, or another's.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.done {
            let name = std::mem::take(&mut self.name);
            self.gateway.abandoned.0.lock().insert(name);
            self.gateway.clean_up();
        }
    }
}

/// The record of a build as a transaction sees it.
///
/// # Errors
/// Those of the transaction layer.
pub async fn read(txn: &Transaction, id: BuildId) -> Result<Option<IndexBuild>> {
    match txn.get(&id.key(), None).await? {
        Some(value) => decode(&value).map(Some),
        None => Ok(None),
    }
}

/// Shows that the driver lives, and how far it has come; false: it drives no more.
///
/// # Errors
/// Those of the transaction layer.
pub async fn beat(gateway: &Gateway, id: BuildId, driver: &str, from: &Bytes) -> Result<bool> {
    let txn = gateway.client().begin(TransactionOptions::default())?;
    let Some(mut build) = read(&txn, id).await?.filter(|b| b.driver == driver) else {
        txn.rollback().await;
        return Ok(false);
    };
    build.beat += 1;
    build.from = Some(hex::encode(from));
    txn.put(id.key(), encode(&build)?, WriteOptions::default())?;
    txn.commit().await?;
    Ok(true)
}

/// Names another driver, if the record is still the one that was seen.
async fn take_over(
    gateway: &Gateway,
    id: BuildId,
    seen: Option<&IndexBuild>,
    driver: &str,
) -> Result<Option<IndexBuild>> {
    let txn = gateway.client().begin(TransactionOptions::default())?;
    if read(&txn, id).await?.as_ref() != seen {
        txn.rollback().await;
        return Ok(None);
    }
    let mut build = seen.cloned().unwrap_or_default();
    build.driver = driver.to_owned();
    build.beat += 1;
    txn.put(id.key(), encode(&build)?, WriteOptions::default())?;
    txn.commit().await?;
    Ok(Some(build))
}

/// What a gateway knows about builds that others drive.
#[derive(Default)]
pub struct Watch {
    seen: HashMap<BuildId, (Option<IndexBuild>, Stopwatch)>,
}

impl Watch {
    /// True while a build is watched.
    pub fn is_busy(&self) -> bool {
        !self.seen.is_empty()
    }

    /// Notes what the record of a build says now; true when nobody drives it.
    fn is_orphan(&mut self, id: BuildId, now: Option<&IndexBuild>, takeover: Duration) -> bool {
        match self.seen.get(&id) {
            Some((before, since)) if before.as_ref() == now => since.elapsed() >= takeover,
            _ => {
                self.seen.insert(id, (now.cloned(), Stopwatch::start()));
                false
            }
        }
    }

    /// Looks at every build once, and drives those that nobody else does.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub async fn look(&mut self, gateway: &Arc<Gateway>) -> Result<()> {
        let builds = all(gateway).await?;
        self.seen.retain(|id, _| builds.contains_key(id));
        for (id, build) in builds {
            let abandoned = build
                .as_ref()
                .is_some_and(|b| gateway.abandoned.0.lock().contains(&b.driver));
            if !abandoned && !self.is_orphan(id, build.as_ref(), gateway.takeover) {
                continue;
            }
            let driver = Driver::new(gateway);
            let taken = take_over(gateway, id, build.as_ref(), &driver.name).await;
            if let Some(old) = &build {
                gateway.abandoned.0.lock().remove(&old.driver);
            }
            self.seen.remove(&id);
            match taken {
                Ok(Some(build)) => {
                    tracing::info!(table = id.table, index = id.index, "index build taken over");
                    online::resume(gateway, id, driver, &build).await?;
                }
                Ok(None) => driver.done(),
                Err(error) => {
                    driver.done();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Every build: those with a record, and indexes that say to be under construction
/// without one.
async fn all(gateway: &Gateway) -> Result<HashMap<BuildId, Option<IndexBuild>>> {
    let txn = gateway.client().begin(TransactionOptions {
        read_only: true,
        ..TransactionOptions::default()
    })?;
    let snapshot = gateway.catalog().load(&txn).await?;
    let pairs = txn.scan(build_span(), ScanOptions::default(), None).await?;
    txn.rollback().await;
    let mut builds = HashMap::new();
    for table in snapshot.tables() {
        let pending = table.pending_primary.iter();
        for index in pending.chain(&table.indexes) {
            if index.state == IndexState::WriteOnly {
                let id = BuildId {
                    table: table.id,
                    index: index.id,
                };
                builds.insert(id, None);
            }
        }
    }
    for (key, value) in pairs {
        if let Some((table, index)) = build_of(&key) {
            builds.insert(BuildId { table, index }, Some(decode(&value)?));
        }
    }
    Ok(builds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_an_orphan_when_its_record_stands_still() {
        let mut watch = Watch::default();
        let id = BuildId { table: 1, index: 2 };
        let record = |beat| IndexBuild {
            driver: "a".into(),
            beat,
            ..IndexBuild::default()
        };
        let (first, second) = (record(1), record(2));
        let long = Duration::from_secs(3600);
        assert!(!watch.is_orphan(id, Some(&first), Duration::ZERO));
        // It has changed: its driver lives.
        assert!(!watch.is_orphan(id, Some(&second), Duration::ZERO));
        assert!(!watch.is_orphan(id, Some(&second), long));
        assert!(watch.is_orphan(id, Some(&second), Duration::ZERO));
        assert!(watch.is_busy());
    }
}
