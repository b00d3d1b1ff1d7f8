//! Peers that mean harm: each is refused with a counted reason, what it can make the node hold is bounded, and good
//! peers are served meanwhile.

mod protocol_support;

use std::time::Duration;

use bytes::Bytes;
use novafed::chaos::relay::{Direction, Relay};
use novafed::clock::Clock;
use novafed::protocol::envelope::frame;
use novafed::protocol::{Kind, LinkError, RefusalCode, Request};
use novafed::types::Millis;
use novafed::types::limits::{FRAME_BYTES_MAX, PEER_STREAMS_MAX};
use protocol_support::*;
use tokio::net::UdpSocket;

const CONTROL: &[u8] = b"novafed-ctl/1";

/// A node `us`, its good peer `eu`, and a bad one: `mx`, with a good certificate.
struct Scene {
    us: Region,
    eu: Region,
    mx: Region,
}

impl Scene {
    async fn new() -> Scene {
        let (us, eu, mx) = (setup("us", 1).start(), setup("eu", 1).start(), setup("mx", 1).start());
        introduce(("eu", &eu), ("us", &us));
        us.trusts("mx", &mx.ca);
        connected(&eu, "us").await;
        Scene { us, eu, mx }
    }

    /// A control connection of `mx`, welcome so far.
    async fn bad(&self, transport: quinn::TransportConfig) -> quinn::Connection {
        let mut config = stranger::config(Some(self.mx.identity.certified()), CONTROL);
        config.transport_config(std::sync::Arc::new(transport));
        let connection = stranger::dial(&stranger::endpoint(), config, &self.us.address(), "us.acme").await.unwrap();
        assert!(stranger::say_hello(&connection, &peer("mx", 1), (1, 1)).await.is_some());
        connection
    }

    fn counted(&self, reason: &str) -> u64 {
        self.us.link("mx").state().refusals.get(reason).copied().unwrap_or(0)
    }

    /// The good peer is answered, and soon.
    async fn still_serves(&self) {
        let link = self.eu.link("us");
        for _ in 0..20 {
            let clock = Clock::start();
            let request = Request::query(Kind::API, "x", "still here", DEADLINE);
            assert_eq!(link.request(request).await.unwrap(), "still here");
            assert!(clock.now().0 < 1_000, "a good peer waited for {} ms", clock.now().0);
        }
    }
}

async fn send(connection: &quinn::Connection, bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_all(bytes).await.ok()?;
    send.finish().ok()?;
    recv.read_to_end(10_000).await.ok()
}

fn a_frame(body: impl Into<Bytes>) -> Vec<u8> {
    let request = Request::query(Kind::API, "x", body, DEADLINE);
    frame(&request.head(&peer("mx", 1)), &request.body).to_vec()
}

#[tokio::test]
async fn garbage_and_oversize_frames_close_the_connection_and_are_counted() {
    let scene = Scene::new().await;
    let huge = {
        let mut bytes = a_frame("x");
        bytes[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes
    };
    let just_too_large = {
        let mut bytes = a_frame("x");
        bytes[12..16].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
        bytes
    };
    let other_version = {
        let mut bytes = a_frame("x");
        bytes[4..6].copy_from_slice(&9u16.to_be_bytes());
        bytes
    };
    let trailing = [a_frame("x"), vec![0]].concat();
    let cases: [(&str, Vec<u8>); 5] = [
        ("too-large", huge),
        ("too-large", just_too_large),
        ("version", other_version),
        ("malformed", trailing),
        ("malformed", (0..5000u32).map(|n| (n * 31) as u8).collect()),
    ];
    for (reason, bytes) in cases {
        let (connection, before) = (scene.bad(quinn::TransportConfig::default()).await, scene.counted(reason));
        assert!(send(&connection, &bytes).await.is_none(), "{reason} was answered");
        until(reason, || scene.counted(reason) > before && connection.close_reason().is_some()).await;
    }
    scene.still_serves().await;
    assert_eq!(scene.us.answers.requests.lock().unwrap().iter().filter(|(from, _)| *from == peer("mx", 1)).count(), 0);
}

#[tokio::test]
async fn unknown_kinds_get_a_typed_refusal_and_truncated_messages_are_not_acted_on() {
    let scene = Scene::new().await;
    let connection = scene.bad(quinn::TransportConfig::default()).await;
    let mut unknown = a_frame("x");
    unknown[6..8].copy_from_slice(&40_000u16.to_be_bytes());
    let reply = send(&connection, &unknown).await.unwrap();
    assert_eq!(u16::from_be_bytes([reply[6], reply[7]]), RefusalCode::UNKNOWN_KIND.0);
    let whole = a_frame(vec![7; 3000]);
    for cut in [1, 20, 80, 1000, whole.len() - 1] {
        assert!(send(&connection, &whole[..cut]).await.is_none_or(|reply| reply.is_empty()));
    }
    until("they are counted", || scene.counted("truncated") == 5).await;
    assert!(connection.close_reason().is_none());
    scene.still_serves().await;
}

#[tokio::test]
async fn garbage_datagrams_and_udp_packets_change_nothing() {
    let scene = Scene::new().await;
    let connection = scene.bad(quinn::TransportConfig::default()).await;
    connection.send_datagram(Bytes::from_static(b"NVFDnonsense")).unwrap();
    until("it is counted", || scene.counted("truncated") == 1).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    for round in 0..2000usize {
        let bytes: Vec<u8> = (0..rng.usize(0..1500)).map(|_| rng.u8(..)).collect();
        socket.send_to(&bytes, scene.us.address()).await.unwrap();
        if round % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    scene.still_serves().await;
}

#[tokio::test]
async fn more_streams_than_allowed_can_not_be_opened() {
    let scene = Scene::new().await;
    let connection = scene.bad(quinn::TransportConfig::default()).await;
    let mut open = Vec::new();
    let opening = async {
        loop {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            // One byte, so that the other end has to do with it.
            send.write_all(b"N").await.unwrap();
            open.push((send, recv));
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(2), opening).await.is_err());
    assert!(open.len() <= PEER_STREAMS_MAX as usize, "{} streams are open", open.len());
    scene.still_serves().await;
    // They say nothing more, so they are given up.
    until("the slow ones are given up", || scene.counted("stalled") >= open.len() as u64).await;
}

#[tokio::test]
async fn a_stream_that_drips_is_given_up() {
    let scene = Scene::new().await;
    let connection = scene.bad(quinn::TransportConfig::default()).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&a_frame(vec![1; 100_000])[..1000]).await.unwrap();
    scene.still_serves().await;
    assert!(recv.read_to_end(1000).await.is_err(), "a stalled stream was ended in good order");
    assert_eq!(scene.counted("stalled"), 1);
    scene.still_serves().await;
}

#[tokio::test]
async fn a_peer_that_never_reads_holds_a_bounded_amount() {
    let scene = Scene::new().await;
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(1000u32.into()).receive_window(2000u32.into());
    let connection = scene.bad(transport).await;
    let body = a_frame(vec![9; FRAME_BYTES_MAX]);
    let mut unread = Vec::new();
    let asking = async {
        for _ in 0..40 {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            unread.push(recv);
            if send.write_all(&body).await.is_err() {
                return;
            }
            let _ = send.finish();
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), asking).await;
    let taken = scene.us.answers.requests.lock().unwrap().iter().filter(|(from, _)| *from == peer("mx", 1)).count();
    assert!((1..=4).contains(&taken), "{taken} requests of 4 MiB are held for a peer that reads no answer");
    scene.still_serves().await;
}

#[tokio::test]
async fn a_flood_of_handshakes_is_answered_with_retry_and_good_peers_still_get_in() {
    let scene = Scene::new().await;
    // The flooders never see an answer, as spoofed senders do not.
    let us = scene.us.address().parse().unwrap();
    let relay = Relay::start("127.0.0.1:0".parse().unwrap(), us, 1).await.unwrap();
    relay.cut(Direction::Backward, true);
    let mut flood = Vec::new();
    for _ in 0..30 {
        let endpoint = stranger::endpoint();
        for _ in 0..10 {
            let config = stranger::config(None, CONTROL);
            flood.push((endpoint.connect_with(config, relay.address(), "us.acme").unwrap(), endpoint.clone()));
        }
    }
    until("strangers must validate their addresses", || scene.us.refused("retry") > 50).await;
    scene.still_serves().await;
    // A peer that was not there before gets in.
    let ap = setup("ap", 1).start();
    introduce(("ap", &ap), ("us", &scene.us));
    connected(&ap, "us").await;
    let (asked, answered) = (relay.counts(Direction::Forward).bytes, relay.counts(Direction::Backward).bytes);
    assert!(answered <= 3 * asked, "{answered} bytes went back for {asked}");
    drop(flood);
}

#[tokio::test]
async fn a_peer_that_connects_again_and_again_keeps_few_connections() {
    let scene = Scene::new().await;
    let before = scene.us.node.open_connections();
    let mut kept = Vec::new();
    for _ in 0..30 {
        kept.push(scene.bad(quinn::TransportConfig::default()).await);
    }
    let open = kept.iter().filter(|connection| connection.close_reason().is_none()).count();
    assert!(open <= 6, "{open} connections of one peer are open");
    until("only one is left", || scene.us.node.open_connections() <= before + 1).await;
    scene.still_serves().await;
}

#[tokio::test]
async fn a_request_whose_deadline_is_over_is_refused_at_both_ends() {
    let scene = Scene::new().await;
    let link = scene.eu.link("us");
    let error = link.request(Request::query(Kind::API, "x", "hang", Millis(0))).await.unwrap_err();
    assert!(matches!(&error, LinkError::Refused { refusal, .. } if refusal.code == RefusalCode::DEADLINE), "{error}");
    let connection = scene.bad(quinn::TransportConfig::default()).await;
    let request = Request::query(Kind::API, "x", "x", Millis(0));
    let bytes = frame(&request.head(&peer("mx", 1)), &request.body);
    let reply = send(&connection, &bytes).await.unwrap();
    assert_eq!(u16::from_be_bytes([reply[6], reply[7]]), RefusalCode::DEADLINE.0);
}
