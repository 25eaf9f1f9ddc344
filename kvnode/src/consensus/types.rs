//! The types with which openraft is instantiated, and their bytes.
//!
//! Nothing of openraft's own serialisation is used: entries, memberships and
//! votes have our codec on disk and our messages on the wire, so that an
//! upgrade of the library never meets old bytes. Terms have one leader each
//! (`leader_id_std`), so a log id is a term and an index.

use crate::command::{
    Command, Malformed, Verdict, put_slice, put_varint, take_count, take_slice, take_u8,
    take_varint,
};
use crate::raft_log::{LogId, Vote};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::ReplicaId;
use openraft::alias::CommittedLeaderIdOf;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What is proposed: a command and who evaluated it. The proposer is named
/// because a split's child must know its first leader (C4), and a log id only
/// names the term.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The replica that evaluated the command.
    pub proposer: ReplicaId,
    /// An encoded [`Command`].
    pub command: Bytes,
}

impl Proposal {
    /// Reads the command.
    ///
    /// # Errors
    /// When the bytes are no command.
    pub fn decode(&self) -> Result<Command, Malformed> {
        Command::decode(self.command.clone())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes by {}", self.command.len(), self.proposer)
    }
}

openraft::declare_raft_types!(
    /// openraft as this node uses it.
    pub TypeConfig:
        D = Proposal,
        R = Verdict,
        NodeId = u64,
        Node = openraft::BasicNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// An entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What an entry carries.
pub type Payload = openraft::alias::PayloadOf<TypeConfig>;
/// A log id.
pub type RaftLogId = openraft::alias::LogIdOf<TypeConfig>;
/// Who leads a term.
pub type CommittedLeaderId = CommittedLeaderIdOf<TypeConfig>;
/// A vote.
pub type RaftVote = openraft::alias::VoteOf<TypeConfig>;
/// A membership with its place in the log.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// A membership.
pub type Membership = openraft::Membership<u64, openraft::BasicNode>;
/// What a snapshot is about.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// From ours.
pub fn raft_log_id(id: LogId) -> RaftLogId {
    openraft::LogId {
        leader_id: CommittedLeaderId::new(id.term),
        index: id.index,
    }
}

/// To ours.
pub fn log_id_from(id: &RaftLogId) -> LogId {
    LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

/// From ours.
pub fn raft_vote(vote: Vote) -> RaftVote {
    match vote.committed {
        true => openraft::Vote::new_committed(vote.term, vote.replica.0),
        false => openraft::Vote::new(vote.term, vote.replica.0),
    }
}

/// To ours.
pub fn vote_from(vote: &RaftVote) -> Vote {
    Vote {
        term: vote.leader_id.term,
        replica: ReplicaId(vote.leader_id.voted_for),
        committed: vote.committed,
    }
}

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// The bytes of what an entry carries, in the log and on the wire.
pub fn entry_payload(payload: &Payload) -> Bytes {
    match payload {
        Payload::Blank => Bytes::from_static(&[BLANK]),
        Payload::Normal(proposal) => {
            let mut out = BytesMut::with_capacity(12 + proposal.command.len());
            out.put_u8(COMMAND);
            put_varint(&mut out, proposal.proposer.0);
            out.put_slice(&proposal.command);
            out.freeze()
        }
        Payload::Membership(membership) => {
            let mut out = BytesMut::new();
            out.put_u8(MEMBERSHIP);
            put_membership(&mut out, membership);
            out.freeze()
        }
    }
}

/// The entry of these bytes; a command's are shared, not copied.
///
/// # Errors
/// When they are not what [`entry_payload`] writes.
pub fn entry_from(id: LogId, mut payload: Bytes) -> Result<Entry, Malformed> {
    let payload = match take_u8(&mut payload)? {
        BLANK => Payload::Blank,
        COMMAND => Payload::Normal(Proposal {
            proposer: ReplicaId(take_varint(&mut payload)?),
            command: payload,
        }),
        MEMBERSHIP => Payload::Membership(take_membership(&mut payload)?),
        _ => return Err(Malformed("unknown kind of entry")),
    };
    Ok(openraft::Entry {
        log_id: raft_log_id(id),
        payload,
    })
}

fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    put_varint(out, configs.len() as u64);
    for config in configs {
        put_varint(out, config.len() as u64);
        for replica in config {
            put_varint(out, *replica);
        }
    }
    put_varint(out, membership.nodes().count() as u64);
    for (replica, node) in membership.nodes() {
        put_varint(out, *replica);
        put_slice(out, node.addr.as_bytes());
    }
}

fn take_membership(input: &mut Bytes) -> Result<Membership, Malformed> {
    let mut configs = Vec::new();
    for _ in 0..take_count(input)? {
        let mut config = BTreeSet::new();
        for _ in 0..take_count(input)? {
            config.insert(take_varint(input)?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..take_count(input)? {
        let replica = take_varint(input)?;
        let address = String::from_utf8(take_slice(input)?.to_vec())
            .map_err(|_| Malformed("address is not text"))?;
        nodes.insert(replica, openraft::BasicNode { addr: address });
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("a voter without a node"))
}

/// The bytes of a membership and its log id.
pub fn encode_membership(stored: &StoredMembership) -> Bytes {
    let mut out = BytesMut::new();
    match stored.log_id() {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            put_varint(&mut out, id.leader_id.term);
            put_varint(&mut out, id.index);
        }
    }
    put_membership(&mut out, stored.membership());
    out.freeze()
}

/// What [`encode_membership`] wrote.
///
/// # Errors
/// When the bytes are something else.
pub fn decode_membership(mut input: Bytes) -> Result<StoredMembership, Malformed> {
    let log_id = match take_u8(&mut input)? {
        0 => None,
        _ => Some(raft_log_id(LogId {
            term: take_varint(&mut input)?,
            index: take_varint(&mut input)?,
        })),
    };
    Ok(StoredMembership::new(log_id, take_membership(&mut input)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_memberships_come_back() {
        let id = LogId { term: 3, index: 9 };
        let nodes = BTreeMap::from([
            (1, openraft::BasicNode::new("a:1")),
            (2, openraft::BasicNode::new("b:2")),
            (3, openraft::BasicNode::new("c:3")),
        ]);
        let joint = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
        let membership = Membership::new(joint, nodes).unwrap();
        let stored = StoredMembership::new(Some(raft_log_id(id)), membership.clone());
        assert_eq!(
            decode_membership(encode_membership(&stored)).unwrap(),
            stored
        );
        let empty = StoredMembership::default();
        assert_eq!(decode_membership(encode_membership(&empty)).unwrap(), empty);
        let payloads = [
            Payload::Blank,
            Payload::Membership(membership),
            Payload::Normal(Proposal {
                proposer: ReplicaId(65537),
                command: Bytes::from_static(b"whatever"),
            }),
        ];
        for payload in payloads {
            let entry = entry_from(id, entry_payload(&payload)).unwrap();
            assert_eq!(entry.log_id, raft_log_id(id));
            assert_eq!(entry_payload(&entry.payload), entry_payload(&payload));
        }
        assert!(entry_from(id, Bytes::new()).is_err());
    }
}
