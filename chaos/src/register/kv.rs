//! Registers in the key space of the KV API, each request one call to some
//! kvnode, whoever leads the shard.

use super::Request;
use crate::kv::{Connections, in_time};
use crate::linear::{Action, Answer, Value};
use crate::sql::Failure;
use anyhow::{Context, Result};
use bytes::Bytes;
use lineradb_proto::kv::v1::kv_client::KvClient;
use lineradb_proto::kv::v1::{CompareAndSwapRequest, DeleteRequest, GetRequest, PutRequest};
use std::net::SocketAddr;
use tonic::Status;
use tonic::transport::Channel;

/// A client of the KV API.
pub(super) struct Kv(Connections);

impl Kv {
    pub(super) fn new(addresses: Vec<SocketAddr>, number: usize) -> Self {
        Kv(Connections::new(addresses, number))
    }

    pub(super) async fn ready(&mut self) -> bool {
        self.0.ready().await
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
        let key = Bytes::from(format!("chaos/{number}"));
        let answer = self.0.request(|client| carry_out(client, key, request));
        match (answer.await?, request) {
            (Ok(action), _) => Ok(Ok(action?)),
            (Err(failure), Request::Read) => Ok(Err(failure.before_commit())),
            (Err(failure), _) => Ok(Err(failure)),
        }
    }
}

async fn carry_out(
    mut client: KvClient<Channel>,
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
