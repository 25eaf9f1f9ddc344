//! X5: what is protected is known to whoever asks, until it is given back or its
//! holder is silent.

use crate::cluster::{Metas, eventually};
use lineradb_common::Timestamp;
use lineradb_proto::meta::v1 as meta;
use tonic::{Code, Status};

const MINUTE: u64 = 60_000_000;
const HOUR_MS: u32 = 3_600_000;

fn request(holder: u8, timestamp: u64, lease_ms: u32) -> meta::ProtectRequest {
    meta::ProtectRequest {
        id: vec![holder; 16].into(),
        timestamp,
        lease_ms,
    }
}

/// Asks member 1, who leads or passes it on; again while the group has no leader or
/// no time.
async fn protect(metas: &Metas, request: meta::ProtectRequest) -> Result<(), Status> {
    eventually("an answer", || async {
        let member = *metas.running.keys().next().unwrap();
        match metas.client(member).protect(request.clone()).await {
            Ok(_) => Some(Ok(())),
            Err(status) => match status.code() {
                Code::OutOfRange | Code::InvalidArgument | Code::ResourceExhausted => {
                    Some(Err(status))
                }
                // No leader, no time yet.
                _ => None,
            },
        }
    })
    .await
}

/// When it was said, and what is protected, by holder.
async fn protected(metas: &Metas) -> (u64, Vec<(u8, u64)>) {
    let reply = eventually("the protections", || async {
        let member = *metas.running.keys().next().unwrap();
        let request = meta::ProtectionsRequest {};
        let reply = metas.client(member).protections(request).await;
        reply.ok().map(tonic::Response::into_inner)
    })
    .await;
    let mut all: Vec<_> = { reply.protections.iter() }
        .map(|protection| (protection.id[0], protection.timestamp))
        .collect();
    all.sort_unstable();
    (Timestamp::from_raw(reply.as_of).micros(), all)
}

fn at(micros: u64) -> u64 {
    Timestamp::from_micros(micros).raw()
}

#[tokio::test(flavor = "multi_thread")]
async fn protections_outlive_their_leader_and_end_with_their_holder() {
    let mut metas = Metas::start(3, 1).await;
    let (now, none) = protected(&metas).await;
    assert_eq!(none, []);
    let long = at(now - 8 * MINUTE);
    protect(&metas, request(1, long, HOUR_MS)).await.unwrap();
    protect(&metas, request(2, at(now), HOUR_MS)).await.unwrap();
    let (later, all) = protected(&metas).await;
    assert!(later > now);
    assert_eq!(all, [(1, long), (2, at(now))]);

    metas.kill(metas.leader().await).await;
    assert_eq!(protected(&metas).await.1, all);
    protect(&metas, request(1, long, HOUR_MS)).await.unwrap();
    protect(&metas, request(2, 0, 0)).await.unwrap();
    protect(&metas, request(2, 0, 0)).await.unwrap();
    assert_eq!(protected(&metas).await.1, [(1, long)]);

    // It moves up, and now its holder is silent.
    protect(&metas, request(1, at(now), 1_000)).await.unwrap();
    eventually("the silent one is forgotten", || async {
        let (_, all) = protected(&metas).await;
        assert!(all.is_empty() || all == [(1, at(now))]);
        all.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_gone_is_not_protected() {
    let metas = Metas::start(1, 1).await;
    let (now, _) = protected(&metas).await;
    let refused = |request| async { protect(&metas, request).await.unwrap_err().code() };
    let old = at(now - 10 * MINUTE);
    assert_eq!(refused(request(1, old, HOUR_MS)).await, Code::OutOfRange);
    // Neither by a holder of something younger.
    let young = at(now - 5 * MINUTE);
    protect(&metas, request(1, young, HOUR_MS)).await.unwrap();
    assert_eq!(refused(request(1, old, HOUR_MS)).await, Code::OutOfRange);
    assert_eq!(protected(&metas).await.1, [(1, young)]);
    for nonsense in [
        request(1, 0, HOUR_MS),
        request(1, young, 999),
        request(1, young, HOUR_MS + 1),
        meta::ProtectRequest {
            id: "short".into(),
            ..request(1, young, HOUR_MS)
        },
    ] {
        assert_eq!(refused(nonsense).await, Code::InvalidArgument);
    }
}
