//! The part of a verdict that needs no storage: may this command, at this place
//! of the log, still be what its proposer evaluated?

use super::bounds::Bounds;
use crate::command::{Body, Command, Rejection, Tree};
use lineradb_proto::shard::v1::ShardDescriptor;

/// Why a command logged in `log_term` must not be carried out; `None`: it may.
pub(crate) fn check(
    command: &Command,
    log_term: u64,
    descriptor: &ShardDescriptor,
    bounds: &Bounds,
) -> Option<Rejection> {
    // C2: evaluated by the leader of one term, logged in another: what the
    // proposer read may have changed under a leader in between.
    if command.term != log_term {
        return Some(Rejection::StaleTerm);
    }
    if command.shard_version != descriptor.version {
        return Some(Rejection::ShardChanged);
    }
    let fits = |tree: Tree, key: &[u8]| tree != Tree::Local && bounds.contains(key);
    let inside = match &command.body {
        Body::Write { ops, expect } => {
            ops.iter().all(|op| fits(op.tree, &op.key))
                && expect.iter().all(|expect| fits(expect.tree, &expect.key))
        }
        Body::Split {
            split_key,
            new_shard_id,
            ..
        } => {
            let (start, end) = super::bounds::span(descriptor);
            split_key > &start
                && (end.is_empty() || split_key < &end)
                && new_shard_id.0 != descriptor.shard_id
        }
    };
    (!inside).then_some(Rejection::ShardChanged)
}

#[cfg(test)]
mod tests {
    use super::super::bounds::{range_start, schema_prefix};
    use super::*;
    use crate::command::Op;
    use bytes::Bytes;
    use lineradb_common::ShardId;
    use lineradb_proto::shard::v1::Span;

    fn descriptor() -> ShardDescriptor {
        ShardDescriptor {
            shard_id: 3,
            version: 4,
            span: Some(Span {
                start: Bytes::from_static(b"b"),
                end: Bytes::from_static(b"d"),
            }),
            ..ShardDescriptor::default()
        }
    }

    fn write(term: u64, version: u64, tree: Tree, key: Bytes) -> Option<Rejection> {
        let command = Command {
            term,
            shard_version: version,
            body: Body::Write {
                ops: vec![Op {
                    tree,
                    key,
                    value: None,
                }],
                expect: vec![],
            },
        };
        let descriptor = descriptor();
        check(&command, 7, &descriptor, &Bounds::of(&descriptor))
    }

    #[test]
    fn term_version_and_range_must_fit() {
        let key = range_start(b"c");
        assert_eq!(write(7, 4, Tree::Data, key.clone()), None);
        assert_eq!(
            write(5, 4, Tree::Data, key.clone()),
            Some(Rejection::StaleTerm)
        );
        let changed = Some(Rejection::ShardChanged);
        assert_eq!(write(7, 3, Tree::Data, key.clone()), changed);
        assert_eq!(write(7, 4, Tree::Local, key), changed);
        assert_eq!(write(7, 4, Tree::Data, range_start(b"a")), changed);
        assert_eq!(write(7, 4, Tree::Data, range_start(b"d")), changed);
        assert_eq!(write(7, 4, Tree::Data, schema_prefix(ShardId(3))), None);
        assert_eq!(write(7, 4, Tree::Data, schema_prefix(ShardId(4))), changed);
    }

    #[test]
    fn a_split_key_lies_inside() {
        let split = |key: &'static [u8], id| {
            let command = Command {
                term: 7,
                shard_version: 4,
                body: Body::Split {
                    split_key: Bytes::from_static(key),
                    new_shard_id: ShardId(id),
                    child_replicas: vec![],
                },
            };
            let descriptor = descriptor();
            check(&command, 7, &descriptor, &Bounds::of(&descriptor))
        };
        assert_eq!(split(b"c", 9), None);
        for (key, id) in [(&b"b"[..], 9), (b"d", 9), (b"a", 9), (b"c", 3)] {
            assert_eq!(split(key, id), Some(Rejection::ShardChanged));
        }
    }
}
