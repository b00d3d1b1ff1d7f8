//! The simulated network by itself: what each fault does to datagrams, on virtual time.

use std::future::poll_fn;
use std::io::{ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use novafed::chaos::sim::udp::{PathFaults, SimSocket, UdpNet};
use novafed::clock::Clock;
use novafed::types::Millis;
use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tokio::time::{sleep, timeout};

fn at(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 7443))
}

fn send(from: &SimSocket, to: SocketAddr, bytes: &[u8]) {
    let transmit = Transmit { destination: to, ecn: None, contents: bytes, segment_size: None, src_ip: None };
    from.try_send(&transmit).unwrap();
}

/// The next datagrams, and when they came.
async fn receive(socket: &SimSocket, clock: &Clock) -> Vec<(u64, SocketAddr, Vec<u8>)> {
    let mut bytes = vec![[0; 1500]; 8];
    let mut metas = [RecvMeta::default(); 8];
    let count = poll_fn(|cx| {
        let mut bufs: Vec<_> = bytes.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        socket.poll_recv(cx, &mut bufs, &mut metas)
    });
    let count = count.await.unwrap();
    let whole = metas.iter().zip(&bytes).take(count);
    whole.map(|(meta, bytes)| (clock.now().0, meta.addr, bytes[..meta.len].to_vec())).collect()
}

/// All that comes within `span`.
async fn all(socket: &SimSocket, clock: &Clock, span: Millis) -> Vec<(u64, SocketAddr, Vec<u8>)> {
    let mut got = Vec::new();
    let _ = timeout(span.duration(), async {
        loop {
            got.extend(receive(socket, clock).await);
        }
    })
    .await;
    got
}

struct Two {
    net: UdpNet,
    clock: Clock,
    a: Arc<SimSocket>,
    b: Arc<SimSocket>,
}

fn two(seed: u64, faults: PathFaults) -> Two {
    let net = UdpNet::new(seed);
    net.set_all(faults);
    let (a, b) = (net.socket(at(1)).unwrap(), net.socket(at(2)).unwrap());
    Two { net, clock: Clock::start(), a, b }
}

fn numbered(got: &[(u64, SocketAddr, Vec<u8>)]) -> Vec<u16> {
    got.iter().map(|(_, _, bytes)| u16::from_be_bytes([bytes[0], bytes[1]])).collect()
}

async fn burst(two: &Two, count: u16) {
    for number in 0..count {
        send(&two.a, at(2), &[&number.to_be_bytes()[..], &[7; 98]].concat());
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_arrive_after_the_delay_in_order_and_say_where_they_are_from() {
    let two = two(1, PathFaults { delay: Millis(40), jitter: Millis(30), ..PathFaults::NONE });
    let (_, got) = tokio::join!(burst(&two, 500), all(&two.b, &two.clock, Millis(1_000)));
    assert_eq!(numbered(&got), (0..500).collect::<Vec<_>>());
    for (sent, (came, from, bytes)) in (0..).zip(&got) {
        assert!((40..=100).contains(&(came - sent)), "sent at {sent}, came at {came}");
        assert_eq!((*from, bytes.len()), (at(1), 100));
    }
    let delays = |range: std::ops::Range<usize>| range.map(|n| got[n].0 - n as u64).max();
    assert_ne!(delays(0..20), delays(200..220), "the jitter changes");
    let counts = two.net.carried(at(1), at(2));
    assert_eq!((counts.sent, counts.delivered, counts.delivered_bytes), (500, 500, 50_000));
    assert_eq!(two.net.carried(at(2), at(1)).sent, 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_delay_a_datagram_is_there_at_once() {
    let two = two(1, PathFaults::NONE);
    send(&two.a, at(2), b"now");
    assert_eq!(receive(&two.b, &two.clock).await, [(0, at(1), b"now".to_vec())]);
}

#[tokio::test(start_paused = true)]
async fn chances_are_kept_and_counted() {
    let spoiled = PathFaults {
        delay: Millis(20),
        loss_permille: 100,
        reorder_permille: 250,
        duplicate_permille: 50,
        corrupt_permille: 100,
        ..PathFaults::NONE
    };
    let two = two(3, spoiled);
    let (_, got) = tokio::join!(burst(&two, 10_000), all(&two.b, &two.clock, Millis(11_000)));
    let counts = two.net.carried(at(1), at(2));
    for (found, expected) in
        [(counts.lost, 1_000), (counts.reordered, 2_250), (counts.duplicated, 450), (counts.corrupted, 900)]
    {
        assert!((expected * 8 / 10..expected * 12 / 10).contains(&found), "{counts:?}");
    }
    assert_eq!(got.len() as u64, 10_000 - counts.lost + counts.duplicated);
    let flipped = |bytes: &[u8]| bytes[2..].iter().map(|byte| (byte ^ 7).count_ones()).sum::<u32>();
    let spoiled = got.iter().filter(|(_, _, bytes)| flipped(bytes) > 0).count() as u64;
    assert!(spoiled <= counts.corrupted && spoiled > counts.corrupted * 9 / 10, "the number is 2 of 100 bytes");
    assert!(got.iter().all(|(_, _, bytes)| flipped(bytes) <= 1), "one bit at most");
    let turned = numbered(&got).windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(turned > 500, "{turned} of 10,000 were overtaken");
}

#[tokio::test(start_paused = true)]
async fn a_burst_loses_all_for_its_time() {
    let two = two(1, PathFaults { burst_permille: 5, burst: Millis(100), ..PathFaults::NONE });
    let (_, got) = tokio::join!(burst(&two, 2_000), all(&two.b, &two.clock, Millis(2_100)));
    let lost = 2_000 - got.len();
    assert!((300..1_500).contains(&lost), "{lost} lost");
    let gaps: Vec<_> = numbered(&got).windows(2).map(|pair| pair[1] - pair[0] - 1).filter(|gap| *gap > 0).collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap >= 100), "{gaps:?}");
    two.net.set_all(PathFaults::NONE);
    sleep(Duration::from_millis(200)).await;
    two.net.lose(at(1), at(2), Millis(50));
    let (_, got) = tokio::join!(burst(&two, 200), all(&two.b, &two.clock, Millis(300)));
    assert_eq!(numbered(&got), (50..200).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_slow_path_queues_to_its_bound_and_drops_the_rest() {
    let two = two(1, PathFaults { rate_bytes_s: Some(10_000), queue_bytes: 5_000, ..PathFaults::NONE });
    for number in 0..100u16 {
        send(&two.a, at(2), &[&number.to_be_bytes()[..], &[7; 98]].concat());
    }
    let got = all(&two.b, &two.clock, Millis(5_000)).await;
    assert_eq!(numbered(&got), (0..50).collect::<Vec<_>>());
    assert_eq!(got.iter().map(|(came, ..)| *came).collect::<Vec<_>>(), (1..=50).map(|n| n * 10).collect::<Vec<_>>());
    assert_eq!(two.net.carried(at(1), at(2)).overflowed, 50);
}

#[tokio::test(start_paused = true)]
async fn long_datagrams_vanish_in_a_black_hole() {
    let two = two(1, PathFaults { mtu: Some(1_280), ..PathFaults::NONE });
    for length in [1_280, 1_281, 1_200] {
        send(&two.a, at(2), &vec![1; length]);
    }
    let got = all(&two.b, &two.clock, Millis(10)).await;
    assert_eq!(got.iter().map(|(_, _, bytes)| bytes.len()).collect::<Vec<_>>(), [1_280, 1_200]);
    assert_eq!(two.net.carried(at(1), at(2)).too_long, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_one_way_and_holds_for_what_is_under_way() {
    let two = two(1, PathFaults { delay: Millis(50), ..PathFaults::NONE });
    send(&two.a, at(2), b"under way");
    sleep(Duration::from_millis(20)).await;
    two.net.cut(at(1), at(2), true);
    send(&two.a, at(2), b"cut");
    send(&two.b, at(1), b"the other way");
    let (at_a, at_b) = tokio::join!(all(&two.a, &two.clock, Millis(500)), all(&two.b, &two.clock, Millis(500)));
    assert_eq!((at_a.len(), at_b.len(), two.net.carried(at(1), at(2)).cut), (1, 0, 2));
    two.net.cut(at(1), at(2), false);
    send(&two.a, at(2), b"healed");
    assert_eq!(all(&two.b, &two.clock, Millis(500)).await[0].2, b"healed");
}

#[tokio::test(start_paused = true)]
async fn the_dead_are_silent_and_the_next_one_at_their_address_gets_what_comes_later() {
    let two = two(1, PathFaults { delay: Millis(50), ..PathFaults::NONE });
    assert_eq!(two.net.socket(at(1)).unwrap_err().kind(), ErrorKind::AddrInUse);
    send(&two.a, at(2), b"last words");
    send(&two.b, at(1), b"to the dead");
    two.net.sever(at(1));
    send(&two.a, at(2), b"from the grave");
    assert_eq!(all(&two.a, &two.clock, Millis(100)).await, []);
    assert_eq!(all(&two.b, &two.clock, Millis(100)).await, [(100, at(1), b"last words".to_vec())]);
    send(&two.b, at(1), b"before");
    sleep(Duration::from_millis(60)).await;
    send(&two.b, at(1), b"to whoever is there");
    sleep(Duration::from_millis(20)).await;
    let next = two.net.socket(at(1)).unwrap();
    // The former one goes away only now, which is nothing to the next.
    let Two { net, clock, a, b } = two;
    drop(a);
    send(&b, at(1), b"to the next");
    let got = all(&next, &clock, Millis(500)).await;
    let texts: Vec<_> = got.iter().map(|(_, _, bytes)| &bytes[..]).collect();
    assert_eq!(texts, [&b"to whoever is there"[..], b"to the next"]);
    assert_eq!(net.carried(at(2), at(1)).nobody, 2);
    send(&next, at(2), b"hello");
    assert_eq!(all(&b, &clock, Millis(100)).await[0].2, b"hello");
    drop(next);
    net.socket(at(1)).expect("it is free again");
}

#[tokio::test(start_paused = true)]
async fn a_held_process_gets_and_sends_later_what_fits_into_its_buffers() {
    let two = two(1, PathFaults { delay: Millis(10), ..PathFaults::NONE });
    two.net.hold(at(1), true);
    send(&two.a, at(2), b"out");
    for _ in 0..4_000 {
        send(&two.b, at(1), &[1; 1_400]);
    }
    let (out, into) = tokio::join!(all(&two.b, &two.clock, Millis(1_000)), all(&two.a, &two.clock, Millis(1_000)));
    assert_eq!((out.len(), into.len()), (0, 0));
    two.net.hold(at(1), false);
    let (out, into) = tokio::join!(all(&two.b, &two.clock, Millis(500)), all(&two.a, &two.clock, Millis(500)));
    assert_eq!(out, [(1_010, at(1), b"out".to_vec())]);
    assert_eq!(into.len(), (4 << 20) / 1_400);
    assert!(into.iter().all(|(came, ..)| *came == 1_000));
    assert_eq!(two.net.carried(at(2), at(1)).overflowed, 4_000 - into.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn what_happens_on_one_path_changes_nothing_on_another() {
    let spoiled = PathFaults { delay: Millis(20), loss_permille: 200, reorder_permille: 200, ..PathFaults::NONE };
    let mut seen = Vec::new();
    for others in [0, 3] {
        let two = two(5, spoiled);
        let third = two.net.socket(at(3)).unwrap();
        for _ in 0..others {
            send(&third, at(2), b"noise");
            send(&two.b, at(1), b"noise");
        }
        let (_, got) = tokio::join!(burst(&two, 300), all(&two.b, &two.clock, Millis(500)));
        let ours: Vec<_> = got.into_iter().filter(|(_, from, _)| *from == at(1)).collect();
        seen.push(numbered(&ours));
    }
    assert_eq!(seen[0], seen[1]);
    let two = two(6, spoiled);
    let (_, got) = tokio::join!(burst(&two, 300), all(&two.b, &two.clock, Millis(500)));
    assert_ne!(seen[0], numbered(&got), "another seed is another network");
}
