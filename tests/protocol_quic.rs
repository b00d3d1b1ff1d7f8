//! Links over real QUIC on loopback.

mod protocol_support;

use bytes::Bytes;
use novafed::protocol::{Kind, LinkError, MessageId, RefusalCode, Request, TraceId};
use novafed::types::Millis;
use novafed::types::limits::FRAME_BYTES_MAX;
use novafed::types::limits::PEER_BULK_STREAMS_MAX;
use protocol_support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn ask(body: impl Into<Bytes>) -> Request {
    Request::query(Kind::API, "directory", body, DEADLINE)
}

#[tokio::test]
async fn a_request_is_answered_and_says_who_asked() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 4).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    let request =
        Request::command(MessageId { incarnation: 1, number: 9 }, Kind::MIGRATION, "job/job-1-1-1", "hello", DEADLINE);
    let request = request.traced(TraceId(77));
    assert_eq!(link.request(request.clone()).await.unwrap(), "hello");
    assert_eq!(*us.answers.requests.lock().unwrap(), [(peer("eu", 1), request)]);
    assert_eq!(connected(&us, "eu").await.request(ask("back")).await.unwrap(), "back");
    assert_eq!(link.state().incarnation, Some(life(4)));
}

#[tokio::test]
async fn answers_of_every_size_come_back_whole() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    for size in [0, 1, 1000, 1200, 5000, 100_000, FRAME_BYTES_MAX] {
        let body: Bytes = vec![size as u8; size].into();
        assert_eq!(link.request(ask(body.clone())).await.unwrap(), body, "{size} bytes");
    }
}

#[tokio::test]
async fn a_refusal_is_typed_and_an_unknown_outcome_is_not_a_refusal() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    let Err(LinkError::Refused { refusal, .. }) = link.request(ask("refuse")).await else { panic!("not refused") };
    assert_eq!((refusal.code, refusal.reason.as_str()), (RefusalCode::FORBIDDEN, "not you"));
    assert_eq!(refusal.retry_after, Some(Millis(7)));
    let Err(LinkError::Unknown { .. }) = link.request(ask("panic")).await else { panic!("not unknown") };
    let hang = Request { deadline: Millis(100), ..ask("hang") };
    let Err(LinkError::Unknown { .. }) = link.request(hang).await else { panic!("not unknown") };
    let Err(LinkError::Refused { refusal, .. }) = link.request(ask(vec![0; FRAME_BYTES_MAX + 1])).await else {
        panic!("not refused")
    };
    assert_eq!(refusal.code, RefusalCode::TOO_LARGE);
    let unknown_kind = Request { kind: Kind(999), ..ask("x") };
    let Err(LinkError::Refused { refusal, .. }) = link.request(unknown_kind).await else { panic!("not refused") };
    assert_eq!(refusal.code, RefusalCode::UNKNOWN_KIND);
    assert_eq!(link.request(ask("still here")).await.unwrap(), "still here");
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    let eu = setup("eu", 1).start();
    let Err(LinkError::NotSent { .. }) = eu.link("us").request(ask("x")).await else { panic!("sent to nobody") };
}

#[tokio::test]
async fn bulk_streams_carry_bytes_both_ways_and_end_in_good_order() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    let stream = link.open_bulk("echo".into(), DEADLINE).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    // Made in one go: a long computation would keep this one thread from the connection.
    let sent: Vec<u8> = [1, 2, 3, 5, 7, 11, 13].repeat(3_000_000);
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&copy).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    assert!(received == sent, "{} bytes of {} came back", received.len(), sent.len());
    drop(writer.await.unwrap());
    for (hello, code) in [("refuse", RefusalCode::FENCED), ("drop", RefusalCode::DECLINED)] {
        let Err(LinkError::Refused { refusal, .. }) = link.open_bulk(hello.into(), DEADLINE).await else {
            panic!("{hello} was not refused")
        };
        assert_eq!(refusal.code, code);
    }
}

#[tokio::test]
async fn a_bulk_stream_beyond_the_limit_waits_and_was_surely_not_opened() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    let mut open = std::collections::VecDeque::new();
    // Also when some were closed one by one there are always as many as are promised.
    for opened in 0..3 * PEER_BULK_STREAMS_MAX {
        let stream = link.open_bulk("echo".into(), DEADLINE).await;
        open.push_back(stream.unwrap_or_else(|error| panic!("{opened}: {} are open: {error}", open.len())));
        if open.len() == PEER_BULK_STREAMS_MAX as usize {
            open.pop_front();
        }
    }
    let error = loop {
        match link.open_bulk("echo".into(), Millis(100)).await {
            Ok(stream) => open.push_back(stream),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LinkError::NotSent { .. }), "{error}");
    assert!(open.len() < PEER_BULK_STREAMS_MAX as usize * 5 / 4, "{} are open", open.len());
    let waiting = link.open_bulk("echo".into(), DEADLINE);
    open.drain(..PEER_BULK_STREAMS_MAX as usize / 4);
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_bulk_stream_that_is_dropped_shows_as_broken() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    let mut stream = link.open_bulk("echo".into(), DEADLINE).await.unwrap();
    stream.write_all(b"half a block").await.unwrap();
    let mut back = [0; 12];
    stream.read_exact(&mut back).await.unwrap();
    us.node.close().await;
    let error = stream.read(&mut back).await.unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn datagrams_arrive() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    link.datagram(Kind::HEARTBEAT, "alive".into()).unwrap();
    until("the datagram", || us.answers.datagrams.lock().unwrap().len() == 1).await;
    assert_eq!(us.answers.datagrams.lock().unwrap()[0], (peer("eu", 1), "alive".into()));
    assert!(link.datagram(Kind::HEARTBEAT, vec![0; 20_000].into()).is_err());
}
