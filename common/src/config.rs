//! Layered configuration: defaults, then `--config FILE.toml`, then
//! `LINERADB_*` variables, then flags. Unknown keys are errors.

use crate::{Error, Result};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Builds a configuration of type `T` (which must deny unknown fields).
///
/// `flags` holds only what was given on the command line; a key that is absent
/// there falls through to the environment, the file and `T`'s default.
///
/// # Errors
/// When the file cannot be read, or a key is unknown or of the wrong type; the
/// message names the key and where it came from.
pub fn load<T, F>(file: Option<&Path>, flags: &F) -> Result<T>
where
    T: DeserializeOwned + Serialize + Default,
    F: Serialize,
{
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = file {
        if !path.is_file() {
            return Err(Error::invalid(format!(
                "no configuration file at {}",
                path.display()
            )));
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    let own = Figment::from(Serialized::defaults(T::default()));
    let variables = Env::prefixed("LINERADB_").filter(move |key| {
        let key = key.as_str().to_ascii_lowercase();
        own.find_value(&key).is_ok() || !is_elsewhere(&key)
    });
    figment = figment.merge(variables).merge(Serialized::defaults(flags));
    figment
        .extract()
        .map_err(|e| Error::invalid(format!("configuration: {e}")))
}

/// True for a variable that is no key of a service and no mistake either: those
/// of the command-line tool and of other services in the same environment, the
/// name of the configuration file, and what Kubernetes sets for a service that
/// is called `lineradb` or `lineradb-...`.
fn is_elsewhere(key: &str) -> bool {
    let tools = ["config", "url", "kv_address", "meta"];
    let kubernetes = key == "port"
        || key.starts_with("port_")
        || key.ends_with("_port")
        || key.contains("_port_")
        || key.starts_with("service_")
        || key.contains("_service_");
    tools.contains(&key) || kubernetes
}

/// True for an address that only this machine can reach.
pub fn is_loopback(addr: &std::net::SocketAddr) -> bool {
    addr.ip().is_loopback()
}

/// Refuses to serve beyond this machine without TLS and authentication.
///
/// # Errors
/// When `addr` is not a loopback address and `insecure` was not given.
pub fn check_exposure(flag: &str, addr: &std::net::SocketAddr, insecure: bool) -> Result<()> {
    if is_loopback(addr) || insecure {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{flag} {addr} is reachable from other machines, and there is no authentication yet: \
         listen on 127.0.0.1, or pass --insecure if the network is trusted"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        name: String,
        count: u32,
    }

    #[derive(Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<u32>,
    }

    #[test]
    fn the_environment_holds_more_than_keys() {
        for key in [
            "url",
            "service_host",
            "port_5432_tcp",
            "sqlgateway_service_port",
            "sqlgateway_port",
        ] {
            assert!(is_elsewhere(key), "{key}");
        }
        assert!(!is_elsewhere("listn") && !is_elsewhere("split_byte"));
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_errors() {
        let dir = std::env::temp_dir().join(format!("lineradb-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("c.toml");
        std::fs::write(&file, "name = \"x\"\ncount = 1\n").unwrap();
        let got: Sample = load(Some(&file), &Flags { count: Some(2) }).unwrap();
        assert_eq!(
            got,
            Sample {
                name: "x".into(),
                count: 2
            }
        );
        std::fs::write(&file, "nam = \"x\"\n").unwrap();
        let error = load::<Sample, _>(Some(&file), &Flags { count: None }).unwrap_err();
        assert!(error.to_string().contains("nam"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
