//! Identifiers. Each is a type of its own, so that a shard can never be handed
//! where a node is meant.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

id!(
    /// A shard: one half-open key range and the replicas that hold it. Also the
    /// id of its Raft group.
    ShardId
);
id!(
    /// A kvnode. Given out by the metaservice, never reused.
    NodeId
);
id!(
    /// A SQL table (or any other catalog object that owns rows).
    TableId
);
id!(
    /// A replica of a shard, unique within its group for ever (PROTOCOLS C3):
    /// the node's id and how often the shard has been placed there.
    ReplicaId
);

/// The Raft group of a shard carries the shard's id.
pub type GroupId = ShardId;

impl ReplicaId {
    /// The `incarnation`-th replica of a shard on `node`, counted from 1.
    pub const fn new(node: NodeId, incarnation: u16) -> Self {
        ReplicaId((node.0 << 16) | incarnation as u64)
    }

    /// The node on which it lives.
    pub const fn node(self) -> NodeId {
        NodeId(self.0 >> 16)
    }

    /// How often the shard had been placed on that node, counted from 1.
    pub const fn incarnation(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

/// A transaction attempt: 128 random bits. A retry is a new transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId(pub [u8; 16]);

impl TxnId {
    /// Reads an id from a message; `None` unless it has 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(TxnId)
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", hex::encode(self.0))
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
