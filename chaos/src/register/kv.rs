//! Registers in the key space of the KV API, each request one call to some
//! kvnode, whoever leads the shard.

use super::Request;
use crate::linear::{Action, Answer, Value};
use crate::sql::{Failure, STATEMENT_TIMEOUT};
use crate::turns::Turns;
use anyhow::{Context, Result};
use bytes::Bytes;
use lineradb_proto::kv::v1::kv_client::KvClient;
use lineradb_proto::kv::v1::{CompareAndSwapRequest, DeleteRequest, GetRequest, PutRequest};
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

/// A client of the KV API.
pub(super) struct Kv {
    addresses: Vec<SocketAddr>,
    turns: Turns,
    client: Option<KvClient<Channel>>,
}

impl Kv {
    pub(super) fn new(addresses: Vec<SocketAddr>, number: usize) -> Self {
        Kv {
            turns: Turns::new(addresses.len(), number),
            addresses,
            client: None,
        }
    }

    pub(super) async fn ready(&mut self) -> bool {
        if let Some(server) = self.turns.next(self.client.is_some()) {
            self.client = connect(self.addresses[server]).await;
        }
        self.client.is_some()
    }

    /// Carries a request out.
    ///
    /// # Errors
    /// An answer that makes no sense.
    pub(super) async fn request(
        &mut self,
        number: u64,
        request: Request,
    ) -> Result<Result<Action, Failure>> {
        let client = self.client.as_mut().context("there is no connection")?;
        let key = Bytes::from(format!("chaos/{number}"));
        let answer = tokio::time::timeout(STATEMENT_TIMEOUT, carry_out(client, key, request));
        let failure = match answer.await {
            Ok(Ok(action)) => return Ok(Ok(action?)),
            Ok(Err(status)) => failure_of(&status),
            Err(_) => Failure {
                unknown: true,
                reason: "no answer in time".to_owned(),
            },
        };
        // Whoever did not serve is left.
        self.client = None;
        Ok(Err(match request {
            Request::Read => failure.before_commit(),
            _ => failure,
        }))
    }
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

async fn carry_out(
    client: &mut KvClient<Channel>,
    key: Bytes,
    request: Request,
) -> Result<Result<Action>, Status> {
    match request {
        Request::Read => {
            let call = in_time(GetRequest { key });
            let reply = client.get(call).await?.into_inner();
            let value = reply.found.then_some(&reply.value);
            Ok(decoded(value).map(Action::Read))
        }
        Request::Write(Some(value)) => {
            let call = PutRequest {
                key,
                value: encoded(value),
                ..PutRequest::default()
            };
            client.put(in_time(call)).await?;
            Ok(Ok(Action::Write(Some(value))))
        }
        Request::Write(None) => {
            let call = DeleteRequest {
                key,
                ..DeleteRequest::default()
            };
            client.delete(in_time(call)).await?;
            Ok(Ok(Action::Write(None)))
        }
        Request::CompareAndSet { expected, new } => {
            let call = CompareAndSwapRequest {
                key,
                expected: expected.map(encoded),
                value: new.map(encoded),
                ..CompareAndSwapRequest::default()
            };
            let reply = client.compare_and_swap(in_time(call)).await?.into_inner();
            let answer = match reply.swapped {
                true => Ok(Answer::Set),
                false => decoded(reply.current.as_ref()).map(Answer::Found),
            };
            Ok(answer.map(|answer| Action::CompareAndSet {
                expected,
                new,
                answer,
            }))
        }
    }
}

fn in_time<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(SERVER_TIMEOUT);
    request
}

fn encoded(value: i64) -> Bytes {
    Bytes::from(value.to_string())
}

fn decoded(value: Option<&Bytes>) -> Result<Value> {
    let number = |bytes: &Bytes| {
        let text = std::str::from_utf8(bytes)?;
        anyhow::Ok(text.parse()?)
    };
    value
        .map(|bytes| number(bytes).with_context(|| format!("{bytes:?} was never written")))
        .transpose()
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
