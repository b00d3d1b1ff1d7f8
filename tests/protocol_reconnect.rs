//! Links that break: they are noticed, redialled by identity, and end up as one connection of each class.

mod protocol_support;

use std::sync::Arc;
use std::time::Duration;

use novafed::chaos::relay::{Direction, Impairment, Relay};
use novafed::clock::Clock;
use novafed::protocol::trust::RegionCa;
use novafed::protocol::{Kind, Link, LinkError, Request};
use novafed::types::Millis;
use novafed::types::limits::LINK_IDLE_MS_MAX;
use protocol_support::*;

fn ask(body: &'static str) -> Request {
    Request::query(Kind::API, "x", body, DEADLINE)
}

/// `eu` and `us`, each dialling the other through a relay of its own.
struct Pair {
    eu: Region,
    us: Region,
    there: Relay,
    back: Relay,
}

impl Pair {
    async fn new(delay: Millis) -> Pair {
        let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
        introduce(("eu", &eu), ("us", &us));
        for (region, other) in [(&eu, "us"), (&us, "eu")] {
            region.node.set_address(&protocol_support::region(other), None);
        }
        let any = "127.0.0.1:0".parse().unwrap();
        let there = Relay::start(any, us.address().parse().unwrap(), 1).await.unwrap();
        let back = Relay::start(any, eu.address().parse().unwrap(), 2).await.unwrap();
        for relay in [&there, &back] {
            relay.set_both(Impairment { delay, ..Impairment::default() });
        }
        eu.dials("us", &there.address().to_string());
        us.dials("eu", &back.address().to_string());
        Pair { eu, us, there, back }
    }
    fn cut(&self, cut: bool) {
        self.there.cut_both(cut);
        self.back.cut_both(cut);
    }
    async fn settled(&self) -> (Arc<dyn Link>, Arc<dyn Link>) {
        let links = (connected(&self.eu, "us").await, connected(&self.us, "eu").await);
        until("one connection of each class at both ends", || {
            self.eu.node.open_connections() == 2 && self.us.node.open_connections() == 2
        })
        .await;
        links
    }
}

#[tokio::test]
async fn a_simultaneous_dial_ends_in_one_connection_of_each_class() {
    for delay in [0, 20, 60] {
        let pair = Pair::new(Millis(delay)).await;
        let (eu, us) = pair.settled().await;
        assert_eq!(eu.request(ask("there")).await.unwrap(), "there");
        assert_eq!(us.request(ask("back")).await.unwrap(), "back");
    }
}

#[tokio::test]
async fn a_cut_link_is_noticed_within_its_idle_time_and_comes_back_after_it() {
    let pair = Pair::new(Millis(5)).await;
    let (eu, us) = pair.settled().await;
    let clock = Clock::start();
    pair.cut(true);
    assert!(matches!(eu.request(Request { deadline: Millis(300), ..ask("x") }).await, Err(LinkError::Unknown { .. })));
    for link in [&eu, &us] {
        let mut connected = link.connected();
        connected.wait_for(|up| !up).await.unwrap();
    }
    let noticed = clock.now().0;
    assert!(noticed < LINK_IDLE_MS_MAX.0 + 2_500, "noticed after {noticed} ms");
    assert!(matches!(eu.request(ask("x")).await, Err(LinkError::NotSent { .. })));
    let silent = eu.state().last_heard.expect("it was heard before");
    assert!(silent.0 + 1_500 > noticed, "last heard {silent} ago, cut for {noticed} ms");
    pair.cut(false);
    let (eu, _) = pair.settled().await;
    assert_eq!(eu.request(ask("again")).await.unwrap(), "again");
    assert!(eu.state().reconnects >= 1);
}

#[tokio::test]
async fn a_link_that_is_cut_one_way_is_noticed_at_both_ends() {
    let pair = Pair::new(Millis(5)).await;
    let (eu, us) = pair.settled().await;
    // Nothing from `eu` reaches `us`, over either relay.
    pair.there.cut(Direction::Forward, true);
    pair.back.cut(Direction::Backward, true);
    for link in [&eu, &us] {
        link.connected().wait_for(|up| !up).await.unwrap();
    }
    pair.cut(false);
    pair.settled().await;
}

#[tokio::test]
async fn a_restarted_peer_takes_over_from_its_former_life_at_once() {
    let pair = Pair::new(Millis(5)).await;
    pair.settled().await;
    let dir = tempfile::tempdir().unwrap();
    pair.eu.ca.save(dir.path()).unwrap();
    // Its goodbye does not arrive, as after SIGKILL.
    pair.cut(true);
    pair.eu.node.close().await;
    let mut next = setup("eu", 2);
    next.ca = Some(RegionCa::load(dir.path(), &federation(), &region("eu")).unwrap());
    let next = next.start();
    next.trusts("us", &pair.us.ca);
    pair.back.set_target(next.address().parse().unwrap());
    pair.cut(false);
    let clock = Clock::start();
    next.dials("us", &pair.there.address().to_string());
    let link = connected(&next, "us").await;
    assert_eq!(link.request(ask("I am back")).await.unwrap(), "I am back");
    let took = clock.now().0;
    assert!(took < 1_500, "it took {took} ms, as if the former life had to time out first");
    assert_eq!(pair.us.link("eu").state().incarnation, Some(life(2)));
    let back = connected(&pair.us, "eu").await;
    assert_eq!(back.request(ask("welcome")).await.unwrap(), "welcome");
    assert_eq!(next.answers.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_nat_that_forgets_does_not_break_the_link() {
    let pair = Pair::new(Millis(5)).await;
    let (eu, us) = pair.settled().await;
    for _ in 0..3 {
        pair.there.rebind();
        pair.back.rebind();
        assert_eq!(eu.request(ask("there")).await.unwrap(), "there");
        assert_eq!(us.request(ask("back")).await.unwrap(), "back");
    }
    assert_eq!((eu.state().reconnects, us.state().reconnects), (0, 0));
}

#[tokio::test]
async fn a_peer_that_moved_is_found_at_its_new_address() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    connected(&eu, "us").await;
    let dir = tempfile::tempdir().unwrap();
    us.ca.save(dir.path()).unwrap();
    us.node.close().await;
    let mut moved = setup("us", 2);
    moved.ca = Some(RegionCa::load(dir.path(), &federation(), &region("us")).unwrap());
    let moved = moved.start();
    moved.trusts("eu", &eu.ca);
    eu.dials("us", &moved.address());
    let link = connected(&eu, "us").await;
    assert_eq!(link.request(ask("found")).await.unwrap(), "found");
}

#[tokio::test]
async fn a_flapping_link_is_not_redialled_in_a_storm() {
    let pair = Pair::new(Millis(1)).await;
    pair.settled().await;
    // A peer that refuses everybody: each dial fails at once.
    pair.us.trust.remove(&region("eu"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let dials = pair.us.refused("unknown-region");
    // Two classes, pauses of 50 ms and growing.
    assert!((2..80).contains(&dials), "{dials} dials in 5 s");
}

#[tokio::test]
async fn a_heartbeat_is_not_delayed_by_bulk() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pair = Pair::new(Millis(5)).await;
    for relay in [&pair.there, &pair.back] {
        relay.set_both(Impairment { delay: Millis(5), rate_bytes_s: Some(4_000_000), ..Impairment::default() });
    }
    let (eu, _) = pair.settled().await;
    let stream = eu.open_bulk("echo".into(), DEADLINE).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let pushing = tokio::spawn(async move {
        let block = vec![3; 1 << 20];
        while write.write_all(&block).await.is_ok() {}
    });
    let draining = tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while read.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..10 {
        let clock = Clock::start();
        assert_eq!(eu.request(ask("urgent")).await.unwrap(), "urgent");
        // The relay queues for up to 200 ms each way; what must not be added is a window of 8 MiB, which is 2 s.
        assert!(clock.now().0 < 1_000, "a control request took {} ms", clock.now().0);
    }
    assert!(eu.state().bandwidth_bytes_s.is_some_and(|rate| (500_000..12_000_000).contains(&rate)), "{:?}", eu.state());
    pushing.abort();
    draining.abort();
}
