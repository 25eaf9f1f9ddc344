//! Two processes are played by one: whoever connects from here is whoever is
//! entered as running under this process id.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NODE: Peer = Peer::KvNode(0);
const OTHER: Peer = Peer::KvNode(1);
const THERE: Link = Link {
    from: OTHER,
    to: NODE,
};

/// A network in which this process is `OTHER`, and `NODE` listens.
async fn network() -> (Network, TcpListener, SocketAddr) {
    let processes = Arc::new(Processes::default());
    processes.started(OTHER, std::process::id());
    let network = Network::new(processes);
    let node = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let front = network.front(NODE, node.local_addr().unwrap()).unwrap();
    (network, node, front)
}

async fn connected(node: &TcpListener, front: SocketAddr) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(front).await.unwrap();
    let (far, _) = node.accept().await.unwrap();
    (near, far)
}

async fn send(stream: &mut TcpStream, word: &[u8; 4]) {
    stream.write_all(word).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> [u8; 4] {
    let mut word = [0; 4];
    stream.read_exact(&mut word).await.unwrap();
    word
}

/// Nothing comes for a while. On a slow machine it may see too little, never too
/// much.
async fn is_silent(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let patience = Duration::from_millis(50);
    let read = tokio::time::timeout(patience, stream.peek(&mut byte));
    read.await.is_err()
}

#[tokio::test]
async fn a_held_link_keeps_bytes_until_it_is_healed() {
    let (network, node, front) = network().await;
    let (mut near, mut far) = connected(&node, front).await;
    send(&mut near, b"ping").await;
    assert_eq!(&receive(&mut far).await, b"ping");

    network.apply(Rules::hold([THERE]));
    send(&mut near, b"lost").await;
    send(&mut far, b"pong").await;
    // The other direction passes.
    assert_eq!(&receive(&mut near).await, b"pong");
    assert!(is_silent(&mut far).await);
    // A rule for another link heals this one, and what was held arrives.
    network.apply(Rules::hold([THERE.back()]));
    assert_eq!(&receive(&mut far).await, b"lost");
    send(&mut far, b"late").await;
    assert!(is_silent(&mut near).await);
    network.heal();
    assert_eq!(&receive(&mut near).await, b"late");
}

#[tokio::test]
async fn nobody_learns_of_an_end_behind_a_held_link() {
    let (network, node, front) = network().await;
    let (near, mut far) = connected(&node, front).await;
    network.apply(Rules::hold([THERE, THERE.back()]));
    drop(near);
    assert!(is_silent(&mut far).await);
    network.heal();
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_connection_that_is_opened_while_one_direction_is_held_hangs() {
    let (network, node, front) = network().await;
    network.apply(Rules::hold([THERE.back()]));
    let mut near = TcpStream::connect(front).await.unwrap();
    send(&mut near, b"ping").await;
    let accept = tokio::time::timeout(Duration::from_millis(50), node.accept());
    assert!(accept.await.is_err());
    network.heal();
    let (mut far, _) = node.accept().await.unwrap();
    assert_eq!(&receive(&mut far).await, b"ping");
}

#[tokio::test]
async fn rules_for_others_and_delays_let_everything_pass() {
    let (network, node, front) = network().await;
    let slow = Quality {
        delay: Duration::from_millis(20),
        ..Quality::default()
    };
    network.apply(Rules {
        held: [Link::new(Peer::Metaservice, NODE)].into(),
        impaired: [(THERE, slow)].into(),
    });
    let (mut near, mut far) = connected(&node, front).await;
    let watch = lineradb_common::clock::Stopwatch::start();
    send(&mut near, b"slow").await;
    assert_eq!(&receive(&mut far).await, b"slow");
    assert!(watch.elapsed() >= Duration::from_millis(20));
}

#[tokio::test]
async fn what_a_bad_link_holds_up_arrives_when_it_is_healed() {
    let (network, node, front) = network().await;
    let (mut near, mut far) = connected(&node, front).await;
    let bad = Quality {
        bytes_per_second: Some(1),
        delay: Duration::from_secs(600),
        ..Quality::default()
    };
    network.apply(Rules::impair([THERE], bad));
    send(&mut near, b"slow").await;
    assert!(is_silent(&mut far).await);
    // Bad is not held, and held is not healed.
    network.apply(Rules::hold([THERE]));
    assert!(is_silent(&mut far).await);
    network.heal();
    assert_eq!(&receive(&mut far).await, b"slow");
}

#[tokio::test]
async fn a_dead_service_and_the_end_of_the_network_close_connections() {
    let (network, node, front) = network().await;
    let (mut near, far) = connected(&node, front).await;
    drop(far);
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    // Nobody listens any more: what the proxy accepts, it closes.
    let (mut left, _far) = connected(&node, front).await;
    drop(node);
    let mut refused = TcpStream::connect(front).await.unwrap();
    assert_eq!(refused.read(&mut [0]).await.unwrap_or(0), 0);
    drop(network);
    assert_eq!(left.read(&mut [0]).await.unwrap_or(0), 0);
}
