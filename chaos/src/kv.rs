//! A connection to the KV API of some kvnode, and what its errors say of a request.

use crate::sql::{Failure, STATEMENT_TIMEOUT};
use crate::turns::Turns;
use anyhow::{Context, Result};
use lineradb_proto::kv::v1::kv_client::KvClient;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// What a server is given, so that it answers before it is given up.
const SERVER_TIMEOUT: Duration = Duration::from_secs(9);
/// A kvnode that does not let somebody in for so long is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Metadata by which a kvnode says in a word what went wrong.
const ERROR_WORD: &str = "lineradb-error";

/// The connections of a client, one after the other.
pub struct Connections {
    addresses: Vec<SocketAddr>,
    turns: Turns,
    current: Option<KvClient<Channel>>,
}

impl Connections {
    /// Of the client of that number.
    pub fn new(addresses: Vec<SocketAddr>, number: usize) -> Self {
        Connections {
            turns: Turns::new(addresses.len(), number),
            addresses,
            current: None,
        }
    }

    /// Before each request: connects unless it is; false when the kvnode whose turn it is
    /// lets nobody in.
    pub async fn ready(&mut self) -> bool {
        if let Some(server) = self.turns.next(self.current.is_some()) {
            self.current = connect(self.addresses[server]).await;
        }
        self.current.is_some()
    }

    /// Makes a request. Whoever does not serve is left.
    ///
    /// # Errors
    /// When it was not made [`Connections::ready`].
    pub async fn request<T, F: Future<Output = Result<T, Status>>>(
        &mut self,
        request: impl FnOnce(KvClient<Channel>) -> F,
    ) -> Result<Result<T, Failure>> {
        let client = self.current.clone().context("there is no connection")?;
        let failure = match tokio::time::timeout(STATEMENT_TIMEOUT, request(client)).await {
            Ok(Ok(answer)) => return Ok(Ok(answer)),
            Ok(Err(status)) => failure_of(&status),
            Err(_) => Failure::unknown("no answer in time"),
        };
        self.current = None;
        Ok(Err(failure))
    }
}

/// A message with the time that the server has for it.
pub fn in_time<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(SERVER_TIMEOUT);
    request
}

async fn connect(address: SocketAddr) -> Option<KvClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await;
    Some(KvClient::new(connected.ok()?.ok()?))
}

/// What a status says of the request: where the server names the error, it
/// knows; else nobody does, since the call may have been lost on its way back.
fn failure_of(status: &Status) -> Failure {
    let word = status.metadata().get(ERROR_WORD);
    let unknown = match word.and_then(|word| word.to_str().ok()) {
        None | Some("outcome-unknown" | "internal") => true,
        Some(_) => false,
    };
    Failure {
        unknown,
        reason: format!("{:?}: {}", status.code(), status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_status_without_a_word_from_the_server_leaves_the_outcome_unknown() {
        let mut status = Status::unavailable("connection reset");
        assert!(failure_of(&status).unknown);
        for (word, unknown) in [
            ("unavailable", false),
            ("conflict", false),
            ("timeout", false),
            ("outcome-unknown", true),
            ("internal", true),
        ] {
            status = Status::new(Code::Unknown, word);
            let metadata = status.metadata_mut();
            metadata.insert(ERROR_WORD, word.parse().unwrap());
            assert_eq!(failure_of(&status).unknown, unknown, "{word}");
        }
    }
}
