//! The UDP relay, by itself and under a link.

mod protocol_support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use novafed::chaos::relay::{Direction, Impairment, Relay};
use novafed::protocol::{Kind, Request};
use novafed::types::Millis;
use protocol_support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Sends `count` numbered datagrams through a relay and returns the numbers that arrive, in order of arrival.
async fn run(seed: u64, impairment: Impairment, count: u16) -> Vec<u16> {
    let (client, server) = (UdpSocket::bind(any()).await.unwrap(), UdpSocket::bind(any()).await.unwrap());
    let relay = Relay::start(any(), server.local_addr().unwrap(), seed).await.unwrap();
    relay.set(Direction::Forward, impairment);
    let mut arrived = Vec::new();
    let mut buffer = [0; 64];
    for number in 0..count {
        client.send_to(&number.to_be_bytes(), relay.address()).await.unwrap();
    }
    until("the relay took all", || relay.counts(Direction::Forward).datagrams == u64::from(count)).await;
    while let Ok(read) = timeout(Duration::from_millis(300), server.recv(&mut buffer)).await {
        assert_eq!(read.unwrap(), 2);
        arrived.push(u16::from_be_bytes([buffer[0], buffer[1]]));
    }
    arrived
}

#[tokio::test]
async fn without_faults_everything_passes_in_order() {
    assert_eq!(run(1, Impairment::default(), 200).await, (0..200).collect::<Vec<_>>());
    let delayed = Impairment { delay: Millis(30), jitter: Millis(20), ..Impairment::default() };
    assert_eq!(run(1, delayed, 200).await, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn loss_and_duplicates_follow_the_seed() {
    let faults = Impairment { loss_permille: 300, duplicate_permille: 200, ..Impairment::default() };
    let (one, again, other) = (run(5, faults, 200).await, run(5, faults, 200).await, run(6, faults, 200).await);
    // The client's port differs between runs; the forward direction does not depend on it.
    assert_eq!(one, again);
    assert_ne!(one, other);
    let mut unique = one.clone();
    unique.dedup();
    assert!((100..180).contains(&unique.len()), "{} of 200 arrived", unique.len());
    assert!(one.len() > unique.len(), "none came twice");
}

#[tokio::test]
async fn reordering_and_corruption_happen_as_asked() {
    let faults = Impairment { reorder_permille: 250, ..Impairment::default() };
    let arrived = run(7, faults, 200).await;
    let mut sorted = arrived.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..200).collect::<Vec<_>>());
    assert_ne!(arrived, sorted);
    let faults = Impairment { corrupt_permille: 500, ..Impairment::default() };
    let wrong = run(7, faults, 200).await.iter().zip(0u16..).filter(|(got, sent)| **got != *sent).count();
    assert!((60..140).contains(&wrong), "{wrong} of 200 were corrupted");
}

#[tokio::test]
async fn a_link_works_through_a_bad_relay_and_nothing_of_it_shows() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let [there, back] = [&us, &eu].map(|to| to.address().parse().unwrap());
    let (there, back) = (Relay::start(any(), there, 11).await.unwrap(), Relay::start(any(), back, 12).await.unwrap());
    let bad = Impairment {
        delay: Millis(5),
        jitter: Millis(5),
        loss_permille: 20,
        reorder_permille: 100,
        duplicate_permille: 50,
        corrupt_permille: 10,
        ..Impairment::default()
    };
    for relay in [&there, &back] {
        relay.set_both(bad);
    }
    eu.dials("us", &there.address().to_string());
    us.dials("eu", &back.address().to_string());
    let link = connected(&eu, "us").await;
    for number in 0..50u8 {
        let body: Bytes = vec![number; 3000].into();
        assert_eq!(link.request(Request::query(Kind::API, "x", body.clone(), DEADLINE)).await.unwrap(), body);
    }
    let mut stream = link.open_bulk("echo".into(), DEADLINE).await.unwrap();
    let sent: Vec<u8> = [1, 2, 3, 5, 7, 11, 13].repeat(40_000);
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert!(received == sent);
    assert_eq!(us.answers.requests.lock().unwrap().len(), 50);
}

#[tokio::test]
async fn a_rate_is_held() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let relay = Relay::start(any(), us.address().parse().unwrap(), 3).await.unwrap();
    relay.set_both(Impairment { rate_bytes_s: Some(2_000_000), delay: Millis(5), ..Impairment::default() });
    us.node.set_address(&region("eu"), None);
    eu.dials("us", &relay.address().to_string());
    let link = connected(&eu, "us").await;
    let clock = novafed::clock::Clock::start();
    let mut stream = link.open_bulk("echo".into(), DEADLINE).await.unwrap();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let sent = vec![7; 2_000_000];
    let (written, received) = tokio::join!(
        async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await
        },
        async {
            let mut received = Vec::new();
            read.read_to_end(&mut received).await.map(|_| received.len())
        }
    );
    written.unwrap();
    assert_eq!(received.unwrap(), sent.len());
    let took = clock.now().0;
    assert!((900..6_000).contains(&took), "2 MB at 2 MB/s took {took} ms");
}
