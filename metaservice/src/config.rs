//! The settings of a member: a TOML file, `LINERADB_*` variables and flags of
//! the same names (common::config).

use crate::error::{Error, Result};
use clap::Parser;
use lineradb_common::telemetry::LogFormat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What is set, after all layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetaConfig {
    /// This member's id, from 1.
    pub id: u64,
    /// Data folder.
    pub data: PathBuf,
    /// gRPC address.
    pub listen: String,
    /// HTTP address.
    pub http: String,
    /// All members as `1=ADDR,2=ADDR,3=ADDR`; empty: this one alone.
    pub peers: String,
    /// Replicas per shard; decided when the cluster is born.
    pub replicas: u32,
    /// A shard larger than this is split; 0: never by size.
    pub split_bytes: u64,
    /// Processes of one machine have one raw counter, and with it one time
    /// without an error; `false`: they ask for the time as those of other
    /// machines do, which is of use in tests.
    pub shared_counter: bool,
    /// How logs look.
    pub log_format: LogFormat,
    /// Level, or `target=level` list.
    pub log: String,
    /// Serve beyond this machine without TLS and authentication.
    pub insecure: bool,
}

impl Default for MetaConfig {
    fn default() -> Self {
        MetaConfig {
            id: 1,
            data: PathBuf::from("lineradb-meta"),
            listen: "127.0.0.1:9190".to_owned(),
            http: "127.0.0.1:9191".to_owned(),
            peers: String::new(),
            replicas: 3,
            split_bytes: 128 << 20,
            shared_counter: true,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            insecure: false,
        }
    }
}

/// The flags; what is absent falls through to the environment, the file, the
/// default.
#[derive(Debug, Default, Parser, Serialize)]
#[command(name = "lineradb-metaservice", version, about = "LineraDB metaservice: the shard map, placement and time of a cluster", long_about = None)]
pub struct Flags {
    /// Configuration file (TOML; the keys are the flags' names with _ for -)
    #[arg(long, value_name = "FILE", env = "LINERADB_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// This member's id, from 1
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Data folder
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// gRPC address [default: 127.0.0.1:9190]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// HTTP address [default: 127.0.0.1:9191]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// All members: 1=ADDR,2=ADDR,3=ADDR [default: this one alone]
    #[arg(long, value_name = "LIST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<String>,
    /// Replicas per shard, decided when the cluster is born [default: 3]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Split a shard larger than this many bytes; 0: never [default: 128 MiB]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_bytes: Option<u64>,
    /// Let processes of this machine use its raw counter as one clock [default: true]
    #[arg(long, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_counter: Option<bool>,
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

impl MetaConfig {
    /// All layers together, checked.
    ///
    /// # Errors
    /// When a key is unknown or a value makes no sense.
    pub fn load(flags: &Flags) -> Result<Self> {
        let config: MetaConfig = lineradb_common::config::load(flags.config.as_deref(), flags)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        for (flag, value) in [("--listen", &self.listen), ("--http", &self.http)] {
            let address = parse_address(flag, value)?;
            lineradb_common::config::check_exposure(flag, &address, self.insecure)?;
        }
        if self.replicas == 0 || self.replicas > 9 || self.replicas.is_multiple_of(2) {
            return Err(Error::Invalid(format!(
                "--replicas {}: must be 1, 3, 5, 7 or 9",
                self.replicas
            )));
        }
        self.members().map(|_| ())
    }

    /// The members by id, this one included.
    ///
    /// # Errors
    /// When `peers` does not parse or leaves this member out.
    pub fn members(&self) -> Result<BTreeMap<u64, String>> {
        if self.id == 0 {
            return Err(Error::Invalid("--id: members count from 1".to_owned()));
        }
        if self.peers.trim().is_empty() {
            return Ok(BTreeMap::from([(self.id, self.listen.clone())]));
        }
        let mut members = BTreeMap::new();
        for item in self.peers.split(',') {
            let bad = || Error::Invalid(format!("--peers: {item:?} is not ID=ADDR"));
            let (id, address) = item.trim().split_once('=').ok_or_else(bad)?;
            let id: u64 = id.trim().parse().map_err(|_| bad())?;
            if id == 0 || members.insert(id, address.trim().to_owned()).is_some() {
                return Err(bad());
            }
        }
        if !members.contains_key(&self.id) {
            return Err(Error::Invalid(format!(
                "--peers does not list this member (--id {})",
                self.id
            )));
        }
        if !matches!(members.len(), 1 | 3 | 5) {
            return Err(Error::Invalid(format!(
                "--peers lists {} members: it must be 1, 3 or 5",
                members.len()
            )));
        }
        Ok(members)
    }
}

/// Reads an address of the form IP:PORT.
///
/// # Errors
/// When it is not one.
pub fn parse_address(flag: &str, value: &str) -> Result<SocketAddr> {
    let value = value.replace("localhost", "127.0.0.1");
    value
        .parse()
        .map_err(|_| Error::Invalid(format!("{flag} {value:?}: expected IP:PORT")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_peers(id: u64, peers: &str) -> MetaConfig {
        MetaConfig {
            id,
            peers: peers.to_owned(),
            ..MetaConfig::default()
        }
    }

    #[test]
    fn members_are_one_three_or_five_and_include_this_one() {
        let alone = with_peers(1, "").members().unwrap();
        assert_eq!(alone.len(), 1);
        let three = with_peers(2, "1=a:1, 2=b:2,3=c:3").members().unwrap();
        assert_eq!(three[&3], "c:3");
        assert!(with_peers(1, "1=a:1,2=b:2").members().is_err());
        assert!(with_peers(4, "1=a:1,2=b:2,3=c:3").members().is_err());
        assert!(with_peers(1, "1=a:1,1=b:2,3=c:3").members().is_err());
        assert!(with_peers(1, "a:1").members().is_err());
    }

    #[test]
    fn other_machines_are_not_served_by_accident() {
        let mut config = MetaConfig {
            listen: "0.0.0.0:9190".to_owned(),
            ..MetaConfig::default()
        };
        assert!(config.check().unwrap_err().to_string().contains("--listen"));
        config.insecure = true;
        config.check().unwrap();
    }

    #[test]
    fn an_even_number_of_replicas_is_refused() {
        let config = MetaConfig {
            replicas: 2,
            ..MetaConfig::default()
        };
        assert!(config.check().is_err());
    }
}
