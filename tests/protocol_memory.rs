//! Links in memory, on paused time.

mod protocol_support;

use std::sync::Arc;

use bytes::Bytes;
use novafed::clock::Clock;
use novafed::protocol::memory::{Faults, Net};
use novafed::protocol::{Inbound, Kind, Link, LinkError, RefusalCode, Request};
use novafed::types::Millis;
use novafed::types::limits::{FRAME_BYTES_MAX, LINK_IDLE_MS_MAX};
use protocol_support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct World {
    net: Net,
    eu: Arc<Answers>,
    us: Arc<Answers>,
    link: Arc<dyn Link>,
}

fn world(seed: u64) -> World {
    let net = Net::new(seed);
    let [eu, us] = ["eu", "us"].map(|name| {
        let answers = Arc::new(Answers::default());
        net.join(region(name), life(1), Arc::clone(&answers) as Arc<dyn Inbound>);
        answers
    });
    let link = net.link(&region("eu"), &region("us"));
    World { net, eu, us, link }
}

impl World {
    fn faults(&self, faults: Faults) {
        self.net.set_faults(&region("eu"), &region("us"), faults);
        self.net.set_faults(&region("us"), &region("eu"), faults);
    }
}

fn ask(body: impl Into<Bytes>) -> Request {
    Request::query(Kind::API, "x", body, DEADLINE)
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_the_time_of_both_ways() {
    let world = world(1);
    world.faults(Faults { delay: Millis(40), ..Faults::default() });
    let clock = Clock::start();
    assert_eq!(world.link.request(ask("hello")).await.unwrap(), "hello");
    // Timers round up to the next millisecond.
    assert!((80..84).contains(&clock.now().0), "{} ms", clock.now().0);
    assert_eq!(world.us.requests.lock().unwrap()[0].0, peer("eu", 1));
    let back = world.net.link(&region("us"), &region("eu"));
    assert_eq!(back.request(ask("back")).await.unwrap(), "back");
    assert_eq!(world.eu.requests.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn refusals_and_unknown_outcomes_are_told_apart_as_over_quic() {
    let world = world(1);
    let code = |error| match error {
        Err(LinkError::Refused { refusal, .. }) => refusal.code,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(code(world.link.request(ask("refuse")).await), RefusalCode::FORBIDDEN);
    assert_eq!(code(world.link.request(ask(vec![0; FRAME_BYTES_MAX + 1])).await), RefusalCode::TOO_LARGE);
    assert_eq!(code(world.link.request(Request { kind: Kind(77), ..ask("x") }).await), RefusalCode::UNKNOWN_KIND);
    for body in ["panic", "hang"] {
        assert!(matches!(world.link.request(ask(body)).await, Err(LinkError::Unknown { .. })), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_or_reply_is_an_unknown_outcome() {
    let world = world(3);
    world.faults(Faults { delay: Millis(5), loss_permille: 300, ..Faults::default() });
    let (mut answered, mut unknown) = (0, 0);
    for _ in 0..200 {
        match world.link.request(ask("x")).await {
            Ok(_) => answered += 1,
            Err(LinkError::Unknown { .. }) => unknown += 1,
            Err(other) => panic!("{other}"),
        }
    }
    let done = world.us.requests.lock().unwrap().len();
    // Some were done although nobody was told: those whose reply was lost.
    assert!(answered < done && done < 200, "{answered} answered, {done} done");
    assert!((60..140).contains(&unknown), "{unknown} unknown");
}

#[tokio::test(start_paused = true)]
async fn duplicates_and_reordering_happen() {
    let world = world(4);
    world.faults(Faults { delay: Millis(10), duplicate_permille: 300, reorder_permille: 300, ..Faults::default() });
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..100u8 {
        let link = Arc::clone(&world.link);
        asking.spawn(async move { link.request(ask(vec![number])).await.unwrap() });
    }
    while asking.join_next().await.is_some() {}
    tokio::time::sleep(Millis(200).duration()).await;
    let order: Vec<u8> = world.us.requests.lock().unwrap().iter().map(|(_, request)| request.body[0]).collect();
    assert!((115..150).contains(&order.len()), "{} arrived", order.len());
    assert!(!order.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn a_cut_shows_first_as_unknown_and_then_as_not_connected() {
    for one_way in [false, true] {
        let world = world(5);
        if one_way {
            world.net.cut_one_way(&region("us"), &region("eu"));
        } else {
            world.net.cut(&region("eu"), &region("us"));
        }
        let clock = Clock::start();
        assert!(matches!(world.link.request(ask("x")).await, Err(LinkError::Unknown { .. })));
        let _ = world.link.connected().wait_for(|up| !up).await.unwrap();
        assert!(clock.now().0 <= LINK_IDLE_MS_MAX.0 + 5);
        assert!(matches!(world.link.request(ask("x")).await, Err(LinkError::NotSent { .. })));
        // One way cut, the request was done and its answer lost.
        assert_eq!(world.us.requests.lock().unwrap().len(), usize::from(one_way));
        world.net.heal(&region("eu"), &region("us"));
        assert_eq!(world.link.request(ask("again")).await.unwrap(), "again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_region_breaks_what_it_was_doing_and_its_next_life_takes_over() {
    let world = world(6);
    let link = Arc::clone(&world.link);
    let asking = tokio::spawn(async move { link.request(ask("hang")).await });
    tokio::time::sleep(Millis(1).duration()).await;
    world.net.leave(&region("us"));
    assert!(matches!(asking.await.unwrap(), Err(LinkError::Unknown { .. })));
    assert!(matches!(world.link.request(ask("x")).await, Err(LinkError::NotSent { .. })));
    let next = Arc::new(Answers::default());
    world.net.join(region("us"), life(2), Arc::clone(&next) as Arc<dyn Inbound>);
    assert_eq!(world.link.request(ask("new life")).await.unwrap(), "new life");
    assert_eq!(next.requests.lock().unwrap().len(), 1);
    // A stale copy of it is refused by who knows better.
    world.net.join(region("us"), life(1), Arc::new(Answers::default()));
    let Err(LinkError::Refused { refusal, .. }) = world.link.request(ask("x")).await else {
        panic!("stale copy served")
    };
    assert_eq!(refusal.code, RefusalCode::STALE_INCARNATION);
}

#[tokio::test(start_paused = true)]
async fn a_bulk_stream_is_cut_after_exactly_the_bytes_that_were_asked_for() {
    for (seed, bytes) in [(1, 0), (2, 1), (3, 70_000), (4, 999_999)] {
        let world = world(seed);
        world.faults(Faults { delay: Millis(20), ..Faults::default() });
        let mut stream = world.link.open_bulk("echo".into(), DEADLINE).await.unwrap();
        world.net.cut_bulk_after(&region("us"), &region("eu"), bytes);
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let pushing = async { while write.write_all(&[7; 10_000]).await.is_ok() {} };
        let reading = async {
            let mut buffer = [0; 4096];
            let mut arrived = 0;
            loop {
                match read.read(&mut buffer).await {
                    Ok(0) => panic!("a cut looks like an end"),
                    Ok(n) => arrived += n as u64,
                    Err(error) => return (arrived, error.kind()),
                }
            }
        };
        let ((), (arrived, kind)) = tokio::join!(pushing, reading);
        assert_eq!((arrived, kind), (bytes, std::io::ErrorKind::ConnectionReset));
        assert!(world.link.open_bulk("echo".into(), DEADLINE).await.is_ok(), "it can't be opened again");
    }
}

#[tokio::test(start_paused = true)]
async fn bulk_streams_end_in_good_order_only_when_closed() {
    let world = world(9);
    let mut stream = world.link.open_bulk("echo".into(), DEADLINE).await.unwrap();
    stream.write_all(b"whole").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"whole");
    let mut stream = world.link.open_bulk("ignore".into(), DEADLINE).await.unwrap();
    world.net.leave(&region("us"));
    assert!(stream.read(&mut [0; 10]).await.is_err());
    let Err(LinkError::NotSent { .. }) = world.link.open_bulk("x".into(), DEADLINE).await else { panic!("sent") };
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_carries_bulk_at_its_rate() {
    let world = world(10);
    world.faults(Faults { bulk_bytes_s: Some(1_000_000), ..Faults::default() });
    let mut stream = world.link.open_bulk("echo".into(), DEADLINE).await.unwrap();
    let clock = Clock::start();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let body = vec![1; 2_000_000];
    let (written, received) = tokio::join!(
        async {
            write.write_all(&body).await.unwrap();
            write.shutdown().await
        },
        async {
            let mut received = Vec::new();
            read.read_to_end(&mut received).await.map(|_| received.len())
        }
    );
    written.unwrap();
    assert_eq!(received.unwrap(), body.len());
    assert!((1_900..2_300).contains(&clock.now().0), "2 MB at 1 MB/s took {} ms", clock.now().0);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = world(seed);
            world.faults(Faults {
                delay: Millis(10),
                jitter: Millis(30),
                loss_permille: 100,
                reorder_permille: 100,
                duplicate_permille: 100,
                bulk_bytes_s: None,
            });
            let clock = Clock::start();
            let mut trace = Vec::new();
            let mut asking = tokio::task::JoinSet::new();
            for number in 0..60u8 {
                let link = Arc::clone(&world.link);
                asking.spawn(async move { (number, link.request(ask(vec![number])).await.is_ok()) });
            }
            while let Some(done) = asking.join_next().await {
                trace.push((clock.now().0, done.unwrap()));
            }
            let order: Vec<u8> = world.us.requests.lock().unwrap().iter().map(|(_, r)| r.body[0]).collect();
            (trace, order)
        })
    };
    assert_eq!(run(42), run(42));
    assert_ne!(run(42), run(43));
}
