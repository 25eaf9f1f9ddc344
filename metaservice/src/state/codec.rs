//! Bytes on disk and in the log: one format byte, then a Protobuf message.
//!
//! Protobuf lets fields be added; the format byte is raised for anything that
//! an older member must not misread.

use super::{Header, NodeRecord, ShardRecord, State};
use crate::error::{Error, Result};
use bytes::Bytes;
use prost::Message;

/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u8 = 1;

/// Encodes a message behind the format byte.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(FORMAT);
    // Encoding into a Vec cannot fail: it grows.
    let _ = message.encode(&mut out);
    out
}

/// Decodes what [`encode`] wrote. `what` names it in errors.
///
/// # Errors
/// When the bytes are damaged or of a newer format.
pub fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            M::decode(rest).map_err(|e| Error::Corrupt(format!("{what} does not decode: {e}")))
        }
        Some((&other, _)) => Err(Error::Corrupt(format!(
            "{what} has format {other}, this build reads format {FORMAT}"
        ))),
        None => Err(Error::Corrupt(format!("{what} is empty"))),
    }
}

/// A whole state in one message: what a snapshot carries.
#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(message, required, tag = "1")]
    header: Header,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<NodeRecord>,
    #[prost(message, repeated, tag = "3")]
    shards: Vec<ShardRecord>,
}

/// A whole state as bytes.
pub fn encode_state(state: &State) -> Bytes {
    encode(&Image {
        header: state.header.clone(),
        nodes: state.nodes.values().cloned().collect(),
        shards: state.shards.values().cloned().collect(),
    })
    .into()
}

/// Reads what [`encode_state`] wrote.
///
/// # Errors
/// When the bytes are damaged or of a newer format.
pub fn decode_state(bytes: &[u8]) -> Result<State> {
    let image: Image = decode("snapshot", bytes)?;
    Ok(State {
        header: image.header,
        nodes: image.nodes.into_iter().map(|n| (n.node_id, n)).collect(),
        shards: image
            .shards
            .into_iter()
            .map(|s| (s.descriptor.shard_id, s))
            .collect(),
    })
}
