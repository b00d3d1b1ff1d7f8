//! Links and streams under injected faults, on paused time: what arrives, what is known of it, and how fast it passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::stream::FaultyStream;
use super::*;
use crate::admin::Caller;
use crate::clock::Clock;
use crate::protocol::link::{BoxFuture, BulkStream, Link, LinkError, LinkState, PeerId, Refusal, Request};
use crate::protocol::link::{BulkOffer, Inbound};
use crate::protocol::messages::Kind;

fn us() -> RegionName {
    "us".parse().unwrap()
}

/// Answers at once, and counts what it was asked.
#[derive(Clone)]
struct Near(RegionName, Arc<AtomicU32>);

impl Link for Near {
    fn peer(&self) -> &RegionName {
        &self.0
    }
    fn request(&self, _: Request) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        Box::pin(async {
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::new())
        })
    }
    fn datagram(&self, _: Kind, _: Bytes) -> Result<(), LinkError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn open_bulk(&self, _: Bytes, _: Millis) -> BoxFuture<'_, Result<BulkStream, LinkError>> {
        Box::pin(async { Ok(Box::new(tokio::io::duplex(64).0) as BulkStream) })
    }
    fn state(&self) -> LinkState {
        LinkState { rtt_us: Some(500), ..LinkState::default() }
    }
    fn connected(&self) -> watch::Receiver<bool> {
        watch::Sender::new(true).subscribe()
    }
}

impl Inbound for Near {
    fn request(&self, _: PeerId, _: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let count = self.1.clone();
        Box::pin(async move {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::new())
        })
    }
    fn bulk(&self, _: PeerId, _: Bytes, _: BulkOffer) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
    fn datagram(&self, _: PeerId, _: Kind, _: Bytes) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
    fn incarnation_seen(&self, _: RegionName, _: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        Box::pin(std::future::ready(IncarnationVerdict::Accept))
    }
}

struct Bench {
    ways: Arc<Ways>,
    clock: Clock,
    arrived: Arc<AtomicU32>,
    link: Arc<dyn Link>,
    inbound: Arc<dyn Inbound>,
    number: u64,
}

impl Bench {
    fn new() -> Bench {
        let clock = Clock::start();
        let ways = Arc::new(Ways::new(clock.clone(), Millis(600_000), 7));
        let arrived = Arc::new(AtomicU32::new(0));
        let near = Near(us(), arrived.clone());
        let (link, inbound) = (FaultyLink::by(&ways, Arc::new(near.clone())), FaultyInbound::by(&ways, Arc::new(near)));
        Bench { ways, clock, arrived, link, inbound, number: 0 }
    }

    fn begin(&mut self, spec: FaultSpec, lasting: Millis) -> FaultId {
        self.number += 1;
        let id = FaultId { region: RegionNumber(1), incarnation: 1, number: self.number };
        let caller = Caller { uid: 0, gid: 0, pid: None, via: None };
        let asked = Asked { caller, reason: "test".into(), at: WallMillis(0), lasting: Some(lasting) };
        self.ways.board(|board, now| board.begin((id, spec, None), now, Some(lasting), asked)).unwrap();
        id
    }

    fn request(&self) -> Request {
        Request::query(Kind::DIRECTORY, "directory", Bytes::new(), Millis(1_000))
    }

    /// What comes of a request over the link, whether the other end saw it, and how long it took.
    async fn ask(&self) -> (Result<Bytes, LinkError>, bool, u64) {
        let (before, seen) = (self.clock.now(), self.arrived.load(Ordering::Relaxed));
        let answer = self.link.request(self.request()).await;
        (answer, self.arrived.load(Ordering::Relaxed) > seen, self.clock.now().since(before).0)
    }

    /// The same for one that comes in, as its sender sees it.
    async fn asked(&self) -> (bool, bool) {
        let seen = self.arrived.load(Ordering::Relaxed);
        let incarnation = Incarnation { counter: 1, nonce: 1 };
        let answer = self.inbound.request(PeerId { region: us(), incarnation }, self.request());
        let answered = tokio::time::timeout(Millis(1_000).duration(), answer).await.is_ok();
        (answered, self.arrived.load(Ordering::Relaxed) > seen)
    }
}

fn cut(direction: Direction) -> FaultSpec {
    FaultSpec::Cut(CutParameters { peer: us(), direction })
}

#[tokio::test(start_paused = true)]
async fn without_a_fault_everything_passes_at_once() {
    let bench = Bench::new();
    assert_eq!(bench.ask().await, (Ok(Bytes::new()), true, 0));
    assert_eq!(bench.asked().await, (true, true));
    assert_eq!(bench.link.state().rtt_us, Some(500));
}

#[tokio::test(start_paused = true)]
async fn of_what_is_cut_off_nothing_is_known_and_only_what_got_through_was_done() {
    // Direction, whether what is sent arrives, whether what comes in does.
    for (direction, out, back) in
        [(Direction::Both, false, false), (Direction::Out, false, true), (Direction::In, true, false)]
    {
        let mut bench = Bench::new();
        bench.begin(cut(direction), Millis(60_000));
        let (answer, arrived, took) = bench.ask().await;
        assert!(matches!(answer, Err(LinkError::Unknown { .. })), "{direction:?}: {answer:?}");
        assert_eq!((arrived, took), (out, 1_000), "{direction:?}");
        assert_eq!(bench.asked().await, (false, back), "{direction:?}");
        tokio::time::sleep(Millis(60_000).duration()).await;
        assert_eq!(bench.ask().await, (Ok(Bytes::new()), true, 0), "{direction:?}: it is over by itself");
    }
}

#[tokio::test(start_paused = true)]
async fn no_connection_comes_about_while_both_ways_are_cut() {
    let mut bench = Bench::new();
    bench.begin(cut(Direction::Out), Millis(10_000));
    let judge = |bench: &Bench| bench.inbound.incarnation_seen(us(), Lineage::after(None, 1));
    judge(&bench).await;
    assert_eq!(bench.clock.now().0, 0, "one way alone keeps nobody from connecting");
    bench.begin(cut(Direction::In), Millis(4_000));
    judge(&bench).await;
    assert!((4_000..5_100).contains(&bench.clock.now().0), "at {}", bench.clock.now().0);
}

#[tokio::test(start_paused = true)]
async fn a_long_way_is_long_in_each_direction_that_is_meant_and_measured_so() {
    for (direction, rtt) in [(Direction::Both, 200), (Direction::Out, 100), (Direction::In, 100)] {
        let mut bench = Bench::new();
        let (delay_ms, jitter_ms) = (Millis(100), Millis(0));
        bench.begin(FaultSpec::Delay(DelayParameters { peer: us(), delay_ms, jitter_ms, direction }), Millis(9_000));
        assert_eq!(bench.ask().await, (Ok(Bytes::new()), true, rtt), "{direction:?}");
        assert_eq!(bench.link.state().rtt_us, Some(500 + rtt * 1_000));
    }
    let mut bench = Bench::new();
    let (delay_ms, jitter_ms, direction) = (Millis(100), Millis(50), Direction::Out);
    bench.begin(FaultSpec::Delay(DelayParameters { peer: us(), delay_ms, jitter_ms, direction }), Millis(90_000));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        seen.insert(bench.ask().await.2);
    }
    assert!(seen.len() > 20 && seen.iter().all(|ms| (100..=150).contains(ms)), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn so_many_of_a_thousand_messages_get_lost() {
    let mut bench = Bench::new();
    bench.begin(
        FaultSpec::Lose(LoseParameters { peer: us(), permille: 200, direction: Direction::Out }),
        Millis(600_000),
    );
    let mut lost = 0;
    for _ in 0..500 {
        lost += u32::from(!bench.ask().await.1);
    }
    assert!((60..140).contains(&lost), "{lost} of 500, a hundred were meant");
}

#[tokio::test(start_paused = true)]
async fn a_narrow_way_carries_what_it_may_and_a_stream_that_is_cut_off_goes_on_whole() {
    let mut bench = Bench::new();
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let mut stream = FaultyStream::of(&bench.ways, &us(), Box::new(near));
    let narrow = NarrowParameters { peer: us(), bytes_per_second: 100_000, direction: Direction::Out };
    let narrow = bench.begin(FaultSpec::Narrow(narrow), Millis(60_000));
    stream.write_all(&vec![1; 500_000]).await.unwrap();
    let took = bench.clock.now().0;
    assert!((4_800..5_300).contains(&took), "500,000 bytes at 100,000 a second took {took} ms");
    // Inwards nothing was said.
    far.write_all(&vec![2; 500_000]).await.unwrap();
    let mut read = vec![0; 500_000];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(bench.clock.now().0, took);
    assert!(read.iter().all(|byte| *byte == 2));

    // Ended before its time it holds nobody up any more: whoever waits is told.
    let writing = tokio::spawn(async move {
        stream.write_all(&vec![3; 400_000]).await.unwrap();
        stream
    });
    tokio::time::sleep(Millis(200).duration()).await;
    bench.ways.board(|board, now| board.end(narrow, now, "test").is_some());
    let mut stream = writing.await.unwrap();
    assert!(bench.clock.now().0 < took + 300, "at {}", bench.clock.now().0);

    bench.begin(cut(Direction::In), Millis(3_000));
    let began = bench.clock.now();
    far.write_all(b"held").await.unwrap();
    let mut held = [0; 4];
    stream.read_exact(&mut held).await.unwrap();
    assert_eq!(&held, b"held");
    assert!((3_000..4_100).contains(&bench.clock.now().since(began).0));
}
