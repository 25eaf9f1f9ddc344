//! The settings of a kvnode: a TOML file, `LINERADB_*` variables and flags of
//! the same names (common::config).

use super::KvNodeOptions;
use crate::consensus::HEARTBEAT;
use crate::{Error, Result};
use clap::Parser;
use lineradb_client::LocalNodes;
use lineradb_common::clock::ClusterClock;
use lineradb_common::limits::HISTORY_MIN;
use lineradb_common::telemetry::LogFormat;
use lineradb_lsm::Vfs;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Disks alone take some milliseconds.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// Elections begin after three times as long.
const HEARTBEAT_MAX: Duration = Duration::from_secs(5);

/// A year: beyond it, keep backups.
const HISTORY_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How long old versions can be read, unless set otherwise.
pub const HISTORY: Duration = Duration::from_secs(4 * 60 * 60);

/// What is set, after all layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Data folder.
    pub data: PathBuf,
    /// gRPC address.
    pub listen: String,
    /// HTTP address.
    pub http: String,
    /// Metaservice members, separated by commas.
    pub meta: String,
    /// Where others reach this node; `listen` unless given.
    pub advertise: Option<String>,
    /// Where the node is: `cloud=aws,region=us-east-1,zone=a`.
    pub locality: String,
    /// Budget of the block cache, in bytes.
    pub block_cache_bytes: u64,
    /// How long old versions can be read, in minutes.
    pub history_minutes: u64,
    /// How often leaders say that they are there, in milliseconds.
    pub heartbeat_ms: u64,
    /// How logs look.
    pub log_format: LogFormat,
    /// Level, or `target=level` list.
    pub log: String,
    /// Serve beyond this machine without TLS and authentication.
    pub insecure: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig {
            data: PathBuf::from("lineradb-kvnode"),
            listen: "127.0.0.1:9090".to_owned(),
            http: "127.0.0.1:9091".to_owned(),
            meta: "127.0.0.1:9190".to_owned(),
            advertise: None,
            locality: String::new(),
            block_cache_bytes: 256 << 20,
            history_minutes: HISTORY.as_secs() / 60,
            heartbeat_ms: HEARTBEAT.as_millis() as u64,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            insecure: false,
        }
    }
}

/// The flags; what is absent falls through to the environment, the file, the
/// default.
#[derive(Debug, Default, Parser, Serialize)]
#[command(name = "lineradb-kvnode", version, about = "LineraDB kvnode: holds replicas of shards", long_about = None)]
pub struct Flags {
    /// Configuration file (TOML; the keys are the flags' names with _ for -)
    #[arg(long, value_name = "FILE", env = "LINERADB_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Data folder
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// gRPC address [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// HTTP address [default: 127.0.0.1:9091]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Metaservice members: ADDR[,ADDR] [default: 127.0.0.1:9190]
    #[arg(long, value_name = "LIST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<String>,
    /// Where others reach this node [default: the gRPC address]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Where the node is: cloud=aws,region=us-east-1,zone=a
    #[arg(long, value_name = "KEY=VALUE,...")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Budget of the block cache [default: 256 MiB]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_cache_bytes: Option<u64>,
    /// How long old versions can be read; the same on all nodes [default: 240]
    #[arg(long, value_name = "MINUTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_minutes: Option<u64>,
    /// How often leaders say that they are there: more than a round trip between any two nodes; the
    /// same on all nodes [default: 150]
    #[arg(long, value_name = "MILLISECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// Log format [default: text]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// Log level, or target=level list [default: info]
    #[arg(long, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Serve beyond this machine without TLS and authentication
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Break disk and clock as standard input says (docs/TESTING.md)
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub faults: bool,
}

impl NodeConfig {
    /// All layers together.
    ///
    /// # Errors
    /// When a key is unknown or of the wrong type.
    pub fn load(flags: &Flags) -> Result<Self> {
        lineradb_common::config::load(flags.config.as_deref(), flags)
            .map_err(|e| Error::Refused(e.message))
    }

    /// What the node is started with, on files that are given.
    ///
    /// # Errors
    /// When an address or the locality does not parse, or a service would be
    /// reachable from other machines unprotected.
    pub fn options(&self, vfs: Arc<dyn Vfs>) -> Result<KvNodeOptions> {
        let listen = self.address("--listen", &self.listen)?;
        let http = self.address("--http", &self.http)?;
        let metas: Vec<String> = self
            .meta
            .split(',')
            .map(|m| m.trim().to_owned())
            .filter(|m| !m.is_empty())
            .collect();
        let history = Duration::from_secs(self.history_minutes.saturating_mul(60));
        // X1: what became of a commit whose reply was lost is asked for so long.
        if history < HISTORY_MIN || history > HISTORY_MAX {
            return Err(Error::Refused(format!(
                "--history-minutes {}: between {} and {}",
                self.history_minutes,
                HISTORY_MIN.as_secs() / 60,
                HISTORY_MAX.as_secs() / 60
            )));
        }
        let heartbeat = Duration::from_millis(self.heartbeat_ms);
        if heartbeat < HEARTBEAT_MIN || heartbeat > HEARTBEAT_MAX {
            return Err(Error::Refused(format!(
                "--heartbeat-ms {}: between {} and {}",
                self.heartbeat_ms,
                HEARTBEAT_MIN.as_millis(),
                HEARTBEAT_MAX.as_millis()
            )));
        }
        Ok(KvNodeOptions {
            heartbeat,
            history,
            data: self.data.clone(),
            vfs,
            listen,
            http,
            advertise: self.advertise.clone(),
            metas,
            locality: lineradb_common::locality::parse(&self.locality)
                .map_err(|e| Error::Refused(e.message))?,
            block_cache_bytes: self.block_cache_bytes,
            clock: ClusterClock::unsynchronised(),
            local: LocalNodes::new(),
            listen_flag: "--listen",
        })
    }

    fn address(&self, flag: &str, value: &str) -> Result<SocketAddr> {
        let address: SocketAddr = value
            .replace("localhost", "127.0.0.1")
            .parse()
            .map_err(|_| Error::Refused(format!("{flag} {value:?}: expected IP:PORT")))?;
        lineradb_common::config::check_exposure(flag, &address, self.insecure)
            .map_err(|e| Error::Refused(e.message))?;
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_lsm::RealVfs;

    fn options(config: &NodeConfig) -> Result<KvNodeOptions> {
        config.options(Arc::new(RealVfs))
    }

    #[test]
    fn history_has_bounds() {
        let minutes = |history_minutes| NodeConfig {
            history_minutes,
            ..NodeConfig::default()
        };
        assert_eq!(options(&NodeConfig::default()).unwrap().history, HISTORY);
        for wrong in [0, 9, u64::MAX] {
            assert!(options(&minutes(wrong)).is_err());
        }
        assert!(options(&minutes(10)).is_ok());
    }

    #[test]
    fn heartbeats_have_bounds() {
        let every = |heartbeat_ms| NodeConfig {
            heartbeat_ms,
            ..NodeConfig::default()
        };
        let default = options(&NodeConfig::default()).unwrap();
        assert_eq!(default.heartbeat, HEARTBEAT);
        for wrong in [0, 49, 5_001, u64::MAX] {
            assert!(options(&every(wrong)).is_err());
        }
        assert!(options(&every(50)).is_ok() && options(&every(5_000)).is_ok());
    }

    #[test]
    fn exposure_needs_a_word() {
        let mut config = NodeConfig {
            listen: "0.0.0.0:9090".into(),
            ..NodeConfig::default()
        };
        assert!(options(&config).is_err());
        config.insecure = true;
        assert!(options(&config).is_ok());
    }
}
