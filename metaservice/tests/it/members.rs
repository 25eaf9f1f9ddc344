//! Members: restart from disk, three of them, loss of the leader.

use crate::cluster::{FakeNode, FakeNodes, Metas, eventually};
use lineradb_metaservice::MetaService;
use lineradb_proto::meta::v1 as meta;

async fn take(metas: &Metas, member: u64, count: u64) -> Option<u64> {
    let request = meta::AllocateIdsRequest {
        sequence: "table".to_owned(),
        count,
    };
    let reply = metas.client(member).allocate_ids(request).await;
    reply.ok().map(|r| r.into_inner().first)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_member_keeps_everything_over_a_restart() {
    let mut metas = Metas::start(1, 1).await;
    let node = FakeNode::register(&metas, 7).await;
    let first = eventually("ids", || take(&metas, 1, 10)).await;
    let before = metas.map().await;
    assert_eq!(before.nodes.len(), 1);
    let clock = eventually("the time", || read_clock(&metas, 1)).await;
    metas.kill(1).await;
    metas.restart(1).await;
    let after = metas.map().await;
    assert_eq!(after.cluster_id, before.cluster_id);
    assert!(after.revision > before.revision);
    let again = FakeNode::register(&metas, 7).await;
    assert_eq!(again.id, node.id);
    assert_eq!(again.incarnation, node.incarnation + 1);
    let next = eventually("ids", || take(&metas, 1, 1)).await;
    assert_eq!(next, first + 10);
    // The same counter: the same line goes on.
    let later = eventually("the time", || read_clock(&metas, 1)).await;
    let passed = later.raw_us - clock.raw_us;
    assert_eq!(later.earliest_us, clock.earliest_us + passed);
    assert_eq!(
        (later.latest_us, later.epoch),
        (later.earliest_us, clock.epoch)
    );
}

async fn read_clock(metas: &Metas, member: u64) -> Option<meta::ReadClockReply> {
    let mut client = metas.client(member);
    let reply = client.read_clock(meta::ReadClockRequest {}).await;
    reply.ok().map(|reply| reply.into_inner())
}

/// T3: members that do not share a counter. The one that takes over goes on
/// with its predecessor's time, as well as it knows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_time_master_follows_the_time_of_the_old_one() {
    let mut metas = Metas::start_with(3, 1, |config| config.shared_counter = false).await;
    let leader = metas.leader().await;
    let before = eventually("the time", || read_clock(&metas, leader)).await;
    assert_eq!(before.earliest_us, before.latest_us);
    // The others have asked it.
    for member in (1..=3).filter(|member| *member != leader) {
        let refused = { metas.client(member) }
            .read_clock(meta::ReadClockRequest {})
            .await
            .unwrap_err();
        let named = refused.metadata().get("lineradb-leader").unwrap();
        assert_eq!(named.to_str().unwrap(), metas.config(leader).listen);
    }
    eventually("samples at the others", || async {
        metas
            .running
            .values()
            .all(|member| member.has_time())
            .then_some(())
    })
    .await;
    metas.kill(leader).await;
    let next = metas.leader().await;
    let after = eventually("the time of the new leader", || read_clock(&metas, next)).await;
    // They are on one machine here, which they do not know: its counter tells.
    let truth = before.earliest_us + (after.raw_us - before.raw_us);
    assert!(
        after.earliest_us <= truth && truth <= after.latest_us,
        "{after:?} does not contain {truth}"
    );
    assert_eq!(after.epoch, before.epoch);
    assert_ne!(after.counter, before.counter);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_in_use_is_refused_with_the_holders_pid() {
    let metas = Metas::start(1, 1).await;
    let mut config = metas.config(1);
    config.listen = "127.0.0.1:0".to_owned();
    config.peers = String::new();
    let error = MetaService::start(config).await.err().unwrap().to_string();
    let pid = std::process::id().to_string();
    assert!(error.contains(&pid), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named_with_its_flag() {
    let metas = Metas::start(1, 1).await;
    let error = MetaService::start(metas.config(1)).await.err().unwrap();
    assert!(error.to_string().contains("--listen"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_of_three_members_answers_and_ids_are_unique() {
    let metas = Metas::start(3, 3).await;
    metas.leader().await;
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..3u64 {
        for member in 1..=3 {
            let first = eventually("ids", || take(&metas, member, 1 + round)).await;
            for id in first..=first + round {
                assert!(seen.insert(id), "{id} was given out twice");
            }
        }
    }
    for member in 1..=3 {
        let status = { metas.client(member) }
            .status(meta::StatusRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(status.member_id, member);
        assert_eq!(status.members.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_survives_the_loss_of_the_leader() {
    let mut metas = Metas::start(3, 1).await;
    let mut nodes = FakeNodes::register(&metas, 1..=1).await;
    let before = loop {
        nodes.round(&metas).await;
        let map = metas.map().await;
        if map.shards.len() == 3 && map.shards.iter().all(|s| s.leader_node_id != 0) {
            break map;
        }
    };
    let first = eventually("ids", || take(&metas, 1, 5)).await;
    let leader = metas.leader().await;
    metas.kill(leader).await;
    let next = metas.leader().await;
    assert_ne!(next, leader);
    let ids = eventually("ids of the new leader", || take(&metas, next, 1)).await;
    assert!(ids >= first + 5);
    // Leaders are hints that the new leader learns by heartbeats.
    let after = loop {
        nodes.round(&metas).await;
        let map = metas.map().await;
        if map.shards.iter().all(|s| s.leader_node_id != 0) {
            break map;
        }
    };
    assert_eq!(after.shards, before.shards);
    assert!(after.revision > before.revision);
    // The old leader comes back and follows.
    metas.restart(leader).await;
    let asked = eventually("ids through the old leader", || take(&metas, leader, 1)).await;
    assert!(asked > ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_the_answer_is_unavailable() {
    let mut metas = Metas::start(3, 1).await;
    metas.leader().await;
    metas.kill(1).await;
    metas.kill(2).await;
    let status = { metas.client(3) }
        .get_map(meta::GetMapRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_for_long_catches_up_by_snapshot() {
    let mut metas = Metas::start(3, 1).await;
    let leader = metas.leader().await;
    let away = if leader == 1 { 2 } else { 1 };
    metas.kill(away).await;
    // More than the log keeps after a snapshot.
    let tasks = (0..8).map(|_| async {
        for _ in 0..1000 {
            eventually("ids", || take(&metas, leader, 1)).await;
        }
    });
    futures::future::join_all(tasks).await;
    metas.restart(away).await;
    let got = eventually("ids", || take(&metas, away, 1)).await;
    assert!(got > 8000);
    let gone = metas.leader().await;
    if gone != away {
        metas.kill(gone).await;
    }
    let got = eventually("ids after the change", || take(&metas, away, 1)).await;
    assert!(got > 8000);
}
