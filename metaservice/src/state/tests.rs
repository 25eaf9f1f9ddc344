use super::codec::{decode_state, encode_state};
use super::command::*;
use super::*;
use lineradb_common::{NodeId, ReplicaId};
use lineradb_proto::shard::v1::Span;
use proptest::prelude::*;

fn run(state: &mut State, body: Body) -> Reply {
    state.apply(&body.into()).reply
}

fn register(state: &mut State, name: u8, address: &str) -> NodeRecord {
    let body = Body::RegisterNode(RegisterNode {
        uuid: Bytes::copy_from_slice(&[name; 16]),
        address: address.to_owned(),
        ..RegisterNode::default()
    });
    match run(state, body) {
        Reply::Node(node) => node,
        other => panic!("{other}"),
    }
}

fn descriptor(id: u64, start: &str, end: &str, version: u64) -> ShardDescriptor {
    ShardDescriptor {
        shard_id: id,
        span: Some(Span {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
        }),
        version,
        configuration_version: 1,
        replicas: (1..=3).map(|n| replica(n, 1)).collect(),
        leader_node_id: 0,
    }
}

fn replica(node: u64, incarnation: u16) -> Replica {
    Replica {
        replica_id: ReplicaId::new(NodeId(node), incarnation).0,
        node_id: node,
        address: format!("n{node}"),
    }
}

/// Three nodes, two shards: ["", "m") and ["m", "").
fn cluster() -> State {
    let mut state = State::default();
    for n in 1..=3 {
        register(&mut state, n, &format!("n{n}"));
    }
    let shards = vec![descriptor(1, "", "m", 1), descriptor(2, "m", "", 1)];
    let reply = run(&mut state, Body::Bootstrap(Bootstrap { shards }));
    assert_eq!(reply, Reply::Done);
    state.check().unwrap();
    state
}

fn report(state: &mut State, shards: Vec<ShardDescriptor>) {
    run(state, Body::ReportShards(ReportShards { shards }));
    state.check().unwrap();
}

fn split(state: &mut State, shard_id: u64, key: &'static [u8]) -> Reply {
    let version = state.shards[&shard_id].descriptor.version;
    let body = Body::BeginSplit(BeginSplit {
        shard_id,
        version,
        split_key: Bytes::from_static(key),
    });
    run(state, body)
}

#[test]
fn the_cluster_is_named_once() {
    let mut state = State::default();
    for name in [b"first", b"other"] {
        let body = Body::Initialise(Initialise {
            cluster_id: Bytes::copy_from_slice(name),
            replication_factor: 3,
        });
        run(&mut state, body);
    }
    assert_eq!(state.header.cluster_id, "first");
}

#[test]
fn a_node_keeps_its_id_and_raises_its_incarnation() {
    let mut state = State::default();
    let first = register(&mut state, 1, "a");
    let other = register(&mut state, 2, "b");
    let again = register(&mut state, 1, "c");
    assert_ne!(first.node_id, other.node_id);
    assert_eq!(first.node_id, again.node_id);
    assert_eq!(again.incarnation, first.incarnation + 1);
    assert_eq!(again.address, "c");
}

#[test]
fn a_node_that_moves_moves_in_the_descriptors() {
    let mut state = cluster();
    register(&mut state, 2, "elsewhere");
    for shard in state.shards.values() {
        assert_eq!(shard.descriptor.replicas[1].address, "elsewhere");
    }
}

#[test]
fn there_is_one_bootstrap() {
    let mut state = cluster();
    let before = state.clone();
    let shards = vec![descriptor(1, "", "", 1)];
    run(&mut state, Body::Bootstrap(Bootstrap { shards }));
    assert_eq!(state, before);
}

#[test]
fn a_bootstrap_with_a_hole_is_refused() {
    let mut state = State::default();
    register(&mut state, 1, "a");
    let shards = vec![descriptor(1, "", "m", 1), descriptor(2, "n", "", 1)];
    let reply = run(&mut state, Body::Bootstrap(Bootstrap { shards }));
    assert!(matches!(reply, Reply::Refused(_)));
    assert!(state.shards.is_empty());
}

#[test]
fn blocks_of_ids_do_not_overlap() {
    let mut state = State::default();
    let mut take = |count| {
        let body = Body::AllocateIds(AllocateIds {
            sequence: "table".to_owned(),
            count,
        });
        run(&mut state, body)
    };
    assert_eq!(take(10), Reply::Ids(1));
    assert_eq!(take(1), Reply::Ids(11));
    assert_eq!(take(5), Reply::Ids(12));
    assert!(matches!(take(u64::MAX), Reply::Refused(_)));
}

fn record(counter: &str, offset_us: i64, ceiling_us: u64, epoch: u64) -> ClockRecord {
    ClockRecord {
        counter: counter.to_owned(),
        offset_us,
        ceiling_us,
        epoch,
    }
}

#[test]
fn t3_the_clock_changes_only_as_its_leader_meant_it() {
    let mut state = State::default();
    let mut set = |expected: Option<&ClockRecord>, clock: &ClockRecord| {
        let command = SetClock {
            expected: expected.cloned(),
            clock: Some(clock.clone()),
        };
        let reply = run(&mut state, Body::SetClock(command));
        (reply == Reply::Done, state.header.clock.clone())
    };
    let first = record("a", 900, 1010, 1);
    assert_eq!(set(None, &first), (true, Some(first.clone())));
    // The proposal of a leader of before.
    let other = record("b", 5, 2000, 1);
    assert_eq!(set(None, &other), (false, Some(first.clone())));
    let ahead = record("a", 900, 1500, 1);
    assert_eq!(set(Some(&first), &ahead), (true, Some(ahead.clone())));
    assert_eq!(set(Some(&first), &other), (false, Some(ahead.clone())));
    // Neither falls.
    for lower in [record("b", 5, 1499, 2), record("b", 5, 1500, 0)] {
        assert_eq!(set(Some(&ahead), &lower), (false, Some(ahead.clone())));
    }
    let anew = record("b", -3, 9000, 2);
    assert_eq!(set(Some(&ahead), &anew), (true, Some(anew)));
}

#[test]
fn the_time_of_a_record() {
    assert_eq!(record("a", 900, 0, 1).time_at(100), 1000);
    assert_eq!(record("a", -40, 0, 1).time_at(100), 60);
}

#[test]
fn a_split_is_taken_over_when_both_halves_are_known() {
    let mut state = cluster();
    let Reply::Split(child) = split(&mut state, 1, b"f") else {
        panic!("refused")
    };
    assert_eq!(child, 3);
    // The parent alone would leave a hole.
    report(&mut state, vec![descriptor(1, "", "f", 2)]);
    assert_eq!(state.shards[&1].descriptor.version, 1);
    // The child alone would overlap.
    report(&mut state, vec![descriptor(3, "f", "m", 2)]);
    assert!(!state.shards.contains_key(&3));
    report(
        &mut state,
        vec![descriptor(3, "f", "m", 2), descriptor(1, "", "f", 2)],
    );
    assert_eq!(state.shards.len(), 3);
    assert_eq!(state.shards[&1].split, None);
    assert!(!state.shards[&3].founded);
    // Repeated reports change nothing.
    let before = state.clone();
    report(&mut state, vec![descriptor(1, "", "f", 2)]);
    assert_eq!(state, before);
}

#[test]
fn several_splits_at_once_are_taken_over_together() {
    let mut state = cluster();
    split(&mut state, 1, b"f");
    report(
        &mut state,
        vec![descriptor(1, "", "f", 2), descriptor(3, "f", "m", 2)],
    );
    split(&mut state, 1, b"c");
    split(&mut state, 3, b"h");
    report(
        &mut state,
        vec![
            descriptor(5, "h", "m", 3),
            descriptor(1, "", "c", 3),
            descriptor(4, "c", "f", 3),
            // 3 is incomplete: reported only later.
        ],
    );
    assert!(state.shards.contains_key(&4));
    assert!(!state.shards.contains_key(&5));
    report(
        &mut state,
        vec![descriptor(3, "f", "h", 3), descriptor(5, "h", "m", 3)],
    );
    assert_eq!(state.shards.len(), 5);
}

#[test]
fn a_child_with_an_id_that_was_never_given_out_is_ignored() {
    let mut state = cluster();
    report(
        &mut state,
        vec![descriptor(1, "", "f", 2), descriptor(99, "f", "m", 2)],
    );
    assert_eq!(state.shards.len(), 2);
}

#[test]
fn one_split_at_a_time_and_only_inside_the_shard() {
    let mut state = cluster();
    assert!(matches!(split(&mut state, 1, b"z"), Reply::Refused(_)));
    assert!(matches!(split(&mut state, 2, b"m"), Reply::Refused(_)));
    let first = split(&mut state, 1, b"f");
    assert_eq!(split(&mut state, 1, b"f"), first, "idempotent");
    assert!(matches!(split(&mut state, 1, b"g"), Reply::Refused(_)));
    let cancel = |new_shard_id| {
        Body::CancelSplit(CancelSplit {
            shard_id: 1,
            new_shard_id,
        })
    };
    run(&mut state, cancel(77));
    assert!(state.shards[&1].split.is_some());
    run(&mut state, cancel(3));
    assert!(state.shards[&1].split.is_none());
    // Ids are not reused, even of a cancelled split.
    assert_eq!(split(&mut state, 1, b"g"), Reply::Split(4));
}

#[test]
fn a_stale_version_begins_no_split() {
    let mut state = cluster();
    let body = Body::BeginSplit(BeginSplit {
        shard_id: 1,
        version: 0,
        split_key: Bytes::new(),
    });
    assert!(matches!(run(&mut state, body), Reply::Refused(_)));
}

fn replace(state: &mut State, failed: u64, node: u64) -> Reply {
    let body = Body::BeginReplacement(BeginReplacement {
        shard_id: 1,
        failed_replica_id: failed,
        node_id: node,
    });
    run(state, body)
}

#[test]
fn c3_a_replacement_never_reuses_a_replica_id() {
    let mut state = cluster();
    let old = replica(2, 1).replica_id;
    let Reply::Replacement(new) = replace(&mut state, old, 2) else {
        panic!("refused")
    };
    assert_eq!(new, replica(2, 2));
    // Asked again: the same one.
    assert_eq!(
        replace(&mut state, old, 2),
        Reply::Replacement(new.clone()),
        "idempotent"
    );
    // The new one fails before it joined: yet another id, the old one is
    // still the one to be removed.
    let Reply::Replacement(newer) = replace(&mut state, new.replica_id, 2) else {
        panic!("refused")
    };
    assert_eq!(newer, replica(2, 3));
    let pending = state.shards[&1].replacement.clone().unwrap();
    assert_eq!(pending.old_replica_id, old);
    assert!(state.shards[&1].retired.contains(&new.replica_id));
    // Done when the new one is in and the old one out.
    let mut joint = descriptor(1, "", "m", 1);
    joint.configuration_version = 2;
    joint.replicas.push(newer.clone());
    report(&mut state, vec![joint.clone()]);
    assert!(state.shards[&1].replacement.is_some());
    joint.configuration_version = 3;
    joint.replicas.retain(|r| r.replica_id != old);
    report(&mut state, vec![joint]);
    let shard = &state.shards[&1];
    assert!(shard.replacement.is_none());
    assert!(shard.retired.contains(&old));
    assert!(shard.wants(newer.replica_id) && !shard.wants(old));
}

#[test]
fn a_replacement_does_not_go_where_another_replica_is() {
    let mut state = cluster();
    let failed = replica(2, 1).replica_id;
    assert!(matches!(replace(&mut state, failed, 3), Reply::Refused(_)));
    assert!(matches!(replace(&mut state, 12345, 2), Reply::Refused(_)));
    assert!(matches!(replace(&mut state, failed, 9), Reply::Refused(_)));
}

#[test]
fn only_wanted_replicas_count_as_created() {
    let mut state = cluster();
    let body = Body::ReplicasCreated(ReplicasCreated {
        shard_id: 1,
        replica_ids: vec![replica(1, 1).replica_id, 999],
    });
    run(&mut state, body);
    assert_eq!(state.shards[&1].created, vec![replica(1, 1).replica_id]);
}

#[test]
fn records_of_another_format_are_refused() {
    let mut bytes = encode_state(&cluster()).to_vec();
    assert_eq!(decode_state(&bytes).unwrap(), cluster());
    bytes[0] = 9;
    assert!(decode_state(&bytes).unwrap_err().to_string().contains('9'));
    assert!(decode_state(&[]).is_err());
}

/// Any command at all: the planner and the network may propose stale ones.
fn any_body() -> impl Strategy<Value = Body> {
    let key = proptest::sample::select(vec!["", "c", "f", "h", "m", "p", "t"]);
    let shard = 1u64..8;
    prop_oneof![
        (1u8..5, 0u8..3).prop_map(|(name, address)| Body::RegisterNode(RegisterNode {
            uuid: Bytes::copy_from_slice(&[name; 16]),
            address: format!("a{address}"),
            ..RegisterNode::default()
        })),
        (shard.clone(), 0u64..4, key.clone()).prop_map(|(shard_id, version, key)| {
            Body::BeginSplit(BeginSplit {
                shard_id,
                version,
                split_key: Bytes::from(key),
            })
        }),
        (shard.clone(), 1u64..10).prop_map(|(shard_id, new_shard_id)| Body::CancelSplit(
            CancelSplit {
                shard_id,
                new_shard_id
            }
        )),
        proptest::collection::vec(
            (shard.clone(), key.clone(), key, 1u64..5, 1u64..4).prop_map(
                |(id, start, end, version, configuration)| {
                    let mut d = descriptor(id, start, end, version);
                    d.configuration_version = configuration;
                    d.replicas = vec![replica(configuration, 1), replica(4, configuration as u16)];
                    d
                }
            ),
            1..4
        )
        .prop_map(|shards| Body::ReportShards(ReportShards { shards })),
        (shard.clone(), 1u64..5, 1u16..3, 1u64..5).prop_map(|(shard_id, node, inc, target)| {
            Body::BeginReplacement(BeginReplacement {
                shard_id,
                failed_replica_id: replica(node, inc).replica_id,
                node_id: target,
            })
        }),
        (shard, proptest::collection::vec(1u64..300_000, 1..3)).prop_map(
            |(shard_id, replica_ids)| Body::ReplicasCreated(ReplicasCreated {
                shard_id,
                replica_ids
            })
        ),
        ("[ab]", 0u64..100, 0u64..3, any::<bool>()).prop_map(|(counter, ceiling, epoch, knows)| {
            Body::SetClock(SetClock {
                // Put right below.
                expected: knows.then(ClockRecord::default),
                clock: Some(record(&counter, 0, ceiling, epoch)),
            })
        }),
    ]
}

proptest! {
    /// Whatever is proposed: the ranges tile, ids and the ceiling only grow,
    /// a retired replica never comes back under a replacement, what `changed`
    /// names is all that changed, and a snapshot is the state.
    #[test]
    fn the_invariants_hold_after_any_commands(
        bodies in proptest::collection::vec(any_body(), 1..60),
    ) {
        let mut state = cluster();
        let mut issued = std::collections::BTreeSet::new();
        for body in bodies {
            let before = state.clone();
            let mut body = body;
            if let Body::SetClock(SetClock { expected: expected @ Some(_), .. }) = &mut body {
                expected.clone_from(&state.header.clock);
            }
            let outcome = state.apply(&body.clone().into());
            prop_assert_eq!(state.check(), Ok(()), "{:?}", body);
            if matches!(outcome.reply, Reply::Refused(_)) {
                prop_assert_eq!(&before, &state);
            }
            let ceiling = |s: &State| s.header.clock.as_ref().map_or(0, |c| c.ceiling_us);
            prop_assert!(ceiling(&state) >= ceiling(&before));
            for (name, last) in &before.header.sequences {
                prop_assert!(state.sequence(name) >= *last);
            }
            if let Reply::Replacement(new) = &outcome.reply {
                let Body::BeginReplacement(c) = &body else { unreachable!() };
                let pending = before.shards[&c.shard_id].replacement.as_ref().map(|r| &r.new);
                if pending != Some(new) {
                    prop_assert!(issued.insert((c.shard_id, new.replica_id)));
                    prop_assert!(!before.shards[&c.shard_id].wants(new.replica_id));
                }
            }
            prop_assert!(outcome.changed.header || before.header == state.header);
            for (id, shard) in &state.shards {
                let same = before.shards.get(id) == Some(shard);
                prop_assert!(same || outcome.changed.shards.contains(id));
            }
            for (id, node) in &state.nodes {
                let same = before.nodes.get(id) == Some(node);
                prop_assert!(same || outcome.changed.nodes.contains(id));
            }
        }
        prop_assert_eq!(decode_state(&encode_state(&state)).unwrap(), state);
    }
}
