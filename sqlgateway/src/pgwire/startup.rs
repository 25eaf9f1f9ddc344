//! From an accepted TCP connection to a session: TLS and GSSAPI requests,
//! cancel requests, and the start-up packet.

use super::link::Link;
use super::message::{self, Startup};
use super::stream::Stream;
use crate::Gateway;
use crate::error::SqlError;
use crate::session::{Session, SessionParams};
use std::io;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// The ALPN name that a direct TLS connection must offer.
pub const ALPN: &[u8] = b"postgresql";
/// First byte of a TLS record: a client that starts with TLS directly.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a new connection turned out to be.
pub enum Started {
    /// A session, and its link.
    Session(Box<Session>, Link),
    /// A cancel request (done), or a client that went away or was refused.
    Over,
}

/// Brings a connection up to its first ReadyForQuery.
///
/// # Errors
/// When the connection breaks.
pub async fn start(
    tcp: TcpStream,
    tls: Option<&TlsAcceptor>,
    gateway: &Arc<Gateway>,
    full: bool,
) -> io::Result<Started> {
    let peer = tcp.peer_addr()?.to_string();
    tcp.set_nodelay(true)?;
    let mut first = [0; 1];
    if tcp.peek(&mut first).await? == 0 {
        return Ok(Started::Over);
    }
    let mut link = if first[0] == TLS_HANDSHAKE {
        let Some(tls) = tls else {
            return Ok(Started::Over);
        };
        let stream = tls.accept(tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Ok(Started::Over);
        }
        Link::new(Stream::Tls(Box::new(stream)))
    } else {
        Link::new(Stream::Plain(tcp))
    };
    loop {
        let packet = match link.startup().await? {
            Some(body) => message::startup(body),
            None => return Ok(Started::Over),
        };
        match packet {
            Err(bad) => {
                return refuse(link, &SqlError::new(bad.sqlstate, bad.message)).await;
            }
            Ok(Startup::Cancel { pid, secret }) => {
                // No answer, whether it hit or not.
                gateway.cancel(pid, secret);
                return Ok(Started::Over);
            }
            Ok(Startup::Gss) => link.stream.write_all(b"N").await?,
            Ok(Startup::Ssl) => match (tls, link) {
                (Some(tls), plain) => link = upgrade(plain, tls).await?,
                (None, mut plain) => {
                    plain.stream.write_all(b"N").await?;
                    link = plain;
                }
            },
            Ok(Startup::Session {
                version,
                parameters,
            }) => {
                if full {
                    let error = SqlError::new("53300", "sorry, too many clients already");
                    return refuse(link, &error).await;
                }
                return open(link, version, parameters, gateway, peer).await;
            }
        }
    }
}

async fn upgrade(mut plain: Link, tls: &TlsAcceptor) -> io::Result<Link> {
    // What came in the clear before the handshake must not be read as if it
    // had been encrypted (CVE-2021-23214).
    if !plain.input.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "unencrypted data after SSLRequest",
        ));
    }
    plain.stream.write_all(b"S").await?;
    match plain.stream {
        Stream::Plain(tcp) => {
            let stream = tls.accept(tcp).await?;
            Ok(Link::new(Stream::Tls(Box::new(stream))))
        }
        Stream::Tls(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "SSLRequest inside TLS",
        )),
    }
}

async fn refuse(mut link: Link, error: &SqlError) -> io::Result<Started> {
    link.output.error("FATAL", error);
    link.flush().await?;
    link.stream.shutdown().await?;
    Ok(Started::Over)
}

async fn open(
    mut link: Link,
    version: u32,
    parameters: Vec<(String, String)>,
    gateway: &Arc<Gateway>,
    peer: String,
) -> io::Result<Started> {
    let (options, parameters): (Vec<_>, Vec<_>) = parameters
        .into_iter()
        .partition(|(name, _)| name.starts_with("_pq_."));
    if version & 0xffff != 0 || !options.is_empty() {
        link.output
            .negotiate(options.into_iter().map(|(name, _)| name).collect());
    }
    let session = params(parameters, peer).and_then(|params| gateway.session(params));
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return refuse(link, &error).await,
    };
    // Trust: check_exposure lets nobody in from elsewhere without --insecure.
    link.output.authenticated();
    for (name, value) in session.take_parameter_changes() {
        link.output.parameter(name, value);
    }
    link.output.backend_key(session.backend_key());
    link.output.ready(session.transaction_status());
    link.flush().await?;
    Ok(Started::Session(Box::new(session), link))
}

fn params(parameters: Vec<(String, String)>, peer: String) -> Result<SessionParams, SqlError> {
    let mut params = SessionParams {
        peer,
        ..SessionParams::default()
    };
    for (name, value) in parameters {
        match name.as_str() {
            "user" => params.user = value,
            "database" => params.database = value,
            "application_name" => params.application_name = value,
            "replication" if matches!(value.as_str(), "false" | "off" | "no" | "0") => {}
            "replication" => return Err(SqlError::unsupported("replication")),
            "options" => params.settings.extend(options(&value)?),
            _ => params.settings.push((name, value)),
        }
    }
    if params.user.is_empty() {
        return Err(SqlError::new(
            "28000",
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    if params.database.is_empty() {
        params.database.clone_from(&params.user);
    }
    Ok(params)
}

/// The settings of `options`: `-c name=value` and `--name=value`, separated by
/// blanks, a backslash in front of a blank that belongs to a value.
fn options(text: &str) -> Result<Vec<(String, String)>, SqlError> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                if let (Some(word), Some(next)) = (words.last_mut(), characters.next()) {
                    word.push(next);
                }
            }
            blank if blank.is_whitespace() => words.push(String::new()),
            other => {
                if let Some(word) = words.last_mut() {
                    word.push(other);
                }
            }
        }
    }
    let bad = |word: &str| {
        SqlError::new(
            "42601",
            format!("invalid command-line argument for server process: {word}"),
        )
    };
    let mut settings = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next().ok_or_else(|| bad(&word))?
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(bad(&word));
        };
        let (name, value) = setting.split_once('=').ok_or_else(|| bad(&setting))?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_settings() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            options("-c search_path=a -cgeqo=off --lock-timeout=5s -c application_name=x\\ y")
                .unwrap(),
            [
                pair("search_path", "a"),
                pair("geqo", "off"),
                pair("lock_timeout", "5s"),
                pair("application_name", "x y")
            ]
        );
        assert!(options("-E").is_err());
        assert!(options("-c novalue").is_err());
    }

    #[test]
    fn the_database_defaults_to_the_user_and_the_user_is_needed() {
        let given = vec![("user".to_owned(), "ada".to_owned())];
        assert_eq!(params(given, String::new()).unwrap().database, "ada");
        assert_eq!(params(vec![], String::new()).unwrap_err().sqlstate, "28000");
    }
}
