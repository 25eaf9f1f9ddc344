//! The settings of a gateway: a TOML file, `LINERADB_*` variables and flags of
//! the same names (common::config).

use clap::Parser;
use lineradb_common::telemetry::LogFormat;
use lineradb_common::{Error, Result, locality};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What is set, after all layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Address of the PostgreSQL protocol.
    pub pg: String,
    /// Address of HTTP.
    pub http: String,
    /// Addresses of the metaservice's members, separated by commas.
    pub meta: String,
    /// Where this gateway stands: `cloud=aws,region=us-east-1,zone=a`.
    pub locality: String,
    /// Certificate chain (PEM).
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub tls_key: Option<PathBuf>,
    /// Clients of the PostgreSQL protocol; more get 53300.
    pub max_connections: usize,
    /// `statement_timeout` of new sessions in milliseconds; 0: none.
    pub statement_timeout_ms: u64,
    /// Longest body of an HTTP request in bytes.
    pub http_body_limit: usize,
    /// Seconds that open transactions get to finish at a shutdown.
    pub drain_seconds: u64,
    /// How logs look.
    pub log_format: LogFormat,
    /// Level, or `target=level` list.
    pub log: String,
    /// Serve beyond this machine without authentication.
    pub insecure: bool,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            pg: "127.0.0.1:5432".to_owned(),
            http: "127.0.0.1:8080".to_owned(),
            meta: "127.0.0.1:9190".to_owned(),
            locality: String::new(),
            tls_cert: None,
            tls_key: None,
            max_connections: 1_000,
            statement_timeout_ms: 0,
            http_body_limit: 16 << 20,
            drain_seconds: 5,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            insecure: false,
        }
    }
}

/// The flags; what is absent falls through to the environment, the file, the
/// default.
#[derive(Debug, Default, Parser, Serialize)]
#[command(
    name = "lineradb-sqlgateway",
    version,
    about = "LineraDB SQL gateway: PostgreSQL protocol and HTTP in front of a cluster",
    long_about = None
)]
pub struct Flags {
    /// Configuration file (TOML; the keys are the flags' names with _ for -)
    #[arg(long, value_name = "FILE", env = "LINERADB_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address of the PostgreSQL protocol [default: 127.0.0.1:5432]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pg: Option<String>,
    /// Address of HTTP [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// The metaservice: ADDR[,ADDR] [default: 127.0.0.1:9190]
    #[arg(long, value_name = "LIST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<String>,
    /// Where this gateway stands: cloud=aws,region=us-east-1,zone=a
    #[arg(long, value_name = "TIERS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Certificate chain for TLS (PEM)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Most clients of the PostgreSQL protocol [default: 1000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// statement_timeout of new sessions in milliseconds; 0: none [default: 0]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_timeout_ms: Option<u64>,
    /// Longest body of an HTTP request [default: 16 MiB]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_body_limit: Option<usize>,
    /// Time that open transactions get to finish at a shutdown [default: 5]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u64>,
    /// Log format [default: text]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// Log level, or target=level list [default: info]
    #[arg(long, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Serve beyond this machine without authentication
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Break the clock as standard input says (docs/TESTING.md)
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub faults: bool,
}

impl GatewayConfig {
    /// All layers together, checked.
    ///
    /// # Errors
    /// When a key is unknown or a value makes no sense.
    pub fn load(flags: &Flags) -> Result<Self> {
        let config: GatewayConfig = lineradb_common::config::load(flags.config.as_deref(), flags)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        parse_address("--pg", &self.pg)?;
        parse_address("--http", &self.http)?;
        if self.metas().is_empty() {
            return Err(Error::invalid("--meta names no address"));
        }
        self.locality()?;
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(Error::invalid("--tls-cert and --tls-key belong together"));
        }
        if self.max_connections == 0 {
            return Err(Error::invalid("--max-connections must be at least 1"));
        }
        Ok(())
    }

    /// Where the gateway stands, by tier.
    ///
    /// # Errors
    /// When a part is not TIER=VALUE.
    pub fn locality(&self) -> Result<HashMap<String, String>> {
        locality::parse(&self.locality)
    }

    /// The metaservice's addresses.
    pub fn metas(&self) -> Vec<String> {
        let addresses = self.meta.split(',').map(str::trim);
        let addresses = addresses.filter(|address| !address.is_empty());
        addresses.map(str::to_owned).collect()
    }
}

/// Reads an address of the form IP:PORT (or localhost:PORT).
///
/// # Errors
/// When it is not one.
pub fn parse_address(flag: &str, value: &str) -> Result<SocketAddr> {
    let value = match value.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => value.to_owned(),
    };
    value
        .parse()
        .map_err(|_| Error::invalid(format!("{flag} {value:?}: expected IP:PORT")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_certificate_and_wrong_addresses_are_refused() {
        let changed = |change: fn(&mut GatewayConfig)| {
            let mut config = GatewayConfig::default();
            change(&mut config);
            config.check().map_err(|error| error.to_string())
        };
        changed(|_| {}).unwrap();
        assert!(changed(|c| c.tls_cert = Some("x".into())).is_err());
        assert!(
            changed(|c| c.pg = "5432".into())
                .unwrap_err()
                .contains("--pg")
        );
        assert!(changed(|c| c.meta = " , ".into()).is_err());
        assert!(changed(|c| c.locality = "here".into()).is_err());
        changed(|c| c.locality = "region=a,zone=b".into()).unwrap();
    }

    #[test]
    fn the_metaservice_is_a_list() {
        let config = GatewayConfig {
            meta: "a:1, b:2".to_owned(),
            ..GatewayConfig::default()
        };
        assert_eq!(config.metas(), ["a:1", "b:2"]);
    }
}
