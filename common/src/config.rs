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
    // LINERADB_CONFIG names the file itself, RUST-style log filters are read by
    // the telemetry; neither is a key.
    figment = figment
        .merge(Env::prefixed("LINERADB_").ignore(&["config"]))
        .merge(Serialized::defaults(flags));
    figment
        .extract()
        .map_err(|e| Error::invalid(format!("configuration: {e}")))
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
        "{flag} {addr} is reachable from other machines, and neither TLS nor authentication is \
         configured: listen on 127.0.0.1, or pass --insecure if the network is trusted"
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
