//! The envelope's bytes: frozen for version 1, and whatever else comes decodes to an error within its limits.

use bytes::{Bytes, BytesMut};
use novafed::protocol::envelope::{
    DESTINATION_BYTES_MAX, DecodeError, HEAD_FIXED_BYTES, Head, REPLY_HEAD_BYTES, ReplyHead, frame, is_destination,
};
use novafed::protocol::hello::{Hello, Versions};
use novafed::protocol::{Kind, MessageId, PeerId, Refusal, RefusalCode, Request, TraceId};
use novafed::types::limits::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES_MAX, REQUEST_MS};
use novafed::types::{Incarnation, LIVES_NAMED_MAX, Lineage, Millis, RegionName};
use proptest::prelude::*;

fn sample() -> Head {
    Head {
        kind: Kind::MIGRATION,
        flags: 0,
        length: 5,
        deadline: Millis(1_500),
        id: Some(MessageId { incarnation: 3, number: 17 }),
        trace: TraceId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        region: "eu-west".parse().unwrap(),
        incarnation: Incarnation { counter: 4, nonce: 0xdead_beef },
        to: "job/job-1-3-17".to_owned(),
    }
}

fn bytes_of(head: &Head) -> Bytes {
    let mut out = BytesMut::new();
    head.encode(&mut out);
    out.freeze()
}

/// Compares with the frozen bytes. They were written once; a version 1 that differs is not version 1.
fn frozen(name: &str, bytes: &[u8]) {
    let path = format!("{}/tests/fixtures/v1/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let now: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let frozen =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}; is: {}", now.join(" ")));
    assert_eq!(frozen.split_whitespace().collect::<Vec<_>>(), now, "the bytes of version 1 have changed: {name}");
}

#[test]
fn version_1_is_frozen() {
    frozen("envelope", &frame(&sample(), &Bytes::from_static(b"hello")));
    frozen("reply-done", &ReplyHead::done(5).encode());
    let refusal = Refusal::busy(Millis(200));
    frozen("reply-refused", &ReplyHead::refused(&refusal, 9).encode());
    let hello = Hello {
        versions: Versions { min: 1, max: 1 },
        lineage: Lineage {
            now: Incarnation { counter: 4, nonce: 0xdead_beef },
            before: vec![3, 0x0102_0304_0506_0708],
        },
        region: "eu-west".parse().unwrap(),
    };
    frozen("hello", &hello.encode());
}

#[test]
fn limits_are_checked_before_anything_is_read() {
    let good = bytes_of(&sample());
    let fixed = |change: &dyn Fn(&mut [u8; HEAD_FIXED_BYTES])| {
        let mut fixed = *good.first_chunk::<HEAD_FIXED_BYTES>().unwrap();
        change(&mut fixed);
        Head::lengths(&fixed)
    };
    assert_eq!(fixed(&|_| {}), Ok((good.len(), 5)));
    assert_eq!(fixed(&|b| b[0] = b'X'), Err(DecodeError::Magic));
    assert_eq!(fixed(&|b| b[5] = 2), Err(DecodeError::Version(2)));
    assert_eq!(fixed(&|b| b[5] = 0), Err(DecodeError::Version(0)));
    assert_eq!(fixed(&|b| b[12..16].copy_from_slice(&[0xff; 4])), Err(DecodeError::TooLarge(u32::MAX)));
    assert_eq!(fixed(&|b| b[10..12].copy_from_slice(&[0xff; 2])), Err(DecodeError::HeadLength(u16::MAX)));
    assert_eq!(fixed(&|b| b[10..12].copy_from_slice(&[0, 1])), Err(DecodeError::HeadLength(1)));
    let most = (FRAME_BYTES_MAX as u32).to_be_bytes();
    assert_eq!(fixed(&|b| b[12..16].copy_from_slice(&most)), Ok((good.len(), FRAME_BYTES_MAX)));
    let mut reply = ReplyHead::refused(&Refusal::new(RefusalCode::BUSY, ""), 0).encode();
    reply[8..12].copy_from_slice(&1_000_000u32.to_be_bytes());
    assert_eq!(ReplyHead::decode(&reply), Err(DecodeError::TooLarge(1_000_000)), "a reason is short");
}

#[test]
fn what_a_later_revision_appends_to_the_head_is_skipped() {
    let mut later = bytes_of(&sample()).to_vec();
    later.extend_from_slice(b"more");
    let length = later.len() as u16;
    later[10..12].copy_from_slice(&length.to_be_bytes());
    assert_eq!(Head::decode(&later), Ok((sample(), later.len())));
}

#[test]
fn the_largest_head_fits_its_limit() {
    let region = "x".repeat(63).parse().unwrap();
    let head = Head { region, to: "d".repeat(DESTINATION_BYTES_MAX), ..sample() };
    let bytes = bytes_of(&head);
    assert!(bytes.len() <= FRAME_HEAD_BYTES_MAX);
    assert_eq!(Head::decode(&bytes), Ok((head, bytes.len())));
}

#[test]
fn a_request_is_checked_where_it_is_sent() {
    let code = |request: Request| request.check().unwrap_err().code;
    let query = |to: &str, body: usize, ms| Request::query(Kind::API, to, vec![0; body], Millis(ms));
    assert_eq!(query("job/1", FRAME_BYTES_MAX, 1).check(), Ok(()));
    assert_eq!(code(query("job/1", FRAME_BYTES_MAX + 1, 1)), RefusalCode::TOO_LARGE);
    assert_eq!(code(query("Job 1", 1, 1)), RefusalCode::MALFORMED);
    assert_eq!(code(query(&"d".repeat(DESTINATION_BYTES_MAX + 1), 1, 1)), RefusalCode::MALFORMED);
    assert_eq!(code(query("job/1", 1, 0)), RefusalCode::DEADLINE);
    let head = Request::command(MessageId { incarnation: 1, number: 2 }, Kind::API, "x", "body", REQUEST_MS)
        .head(&PeerId { region: "eu".parse().unwrap(), incarnation: Incarnation { counter: 1, nonce: 1 } });
    assert_eq!((head.length, head.id), (4, Some(MessageId { incarnation: 1, number: 2 })));
}

prop_compose! {
    fn any_head()(
        (kind, flags, length, deadline) in (any::<u16>(), any::<u16>(), 0..=FRAME_BYTES_MAX as u32, any::<u32>()),
        (incarnation, number, trace) in (any::<u64>(), any::<u64>(), any::<u128>()),
        (counter, nonce) in any::<(u64, u64)>(),
        region in "[a-z0-9-]{1,63}",
        to in "[a-z0-9/._-]{0,120}",
    ) -> Head {
        Head {
            kind: Kind(kind),
            flags,
            length,
            deadline: Millis(u64::from(deadline)),
            id: (number != 0).then_some(MessageId { incarnation, number }),
            trace: TraceId(trace),
            region: region.parse().unwrap(),
            incarnation: Incarnation { counter, nonce },
            to,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_head_survives_its_bytes(head in any_head()) {
        let bytes = bytes_of(&head);
        prop_assert_eq!(bytes.len(), head.encoded_len());
        prop_assert_eq!(Head::decode(&bytes), Ok((head, bytes.len())));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Head::decode(&bytes);
        let _ = Hello::decode(&bytes);
        if let Some(reply) = bytes.first_chunk::<REPLY_HEAD_BYTES>() {
            let _ = ReplyHead::decode(reply);
        }
    }

    #[test]
    fn mutated_heads_decode_to_something_valid_or_are_refused(
        head in any_head(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = bytes_of(&head).to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok((decoded, length)) = Head::decode(&bytes) {
            prop_assert!(length <= bytes.len() && length <= FRAME_HEAD_BYTES_MAX);
            prop_assert!(decoded.length as usize <= FRAME_BYTES_MAX);
            prop_assert!(is_destination(&decoded.to));
            prop_assert!(decoded.region.as_str().parse::<RegionName>().is_ok());
        }
    }

    #[test]
    fn mutated_hellos_decode_to_something_valid_or_are_refused(
        counter in any::<u64>(),
        before in proptest::collection::vec(any::<u64>(), 0..=LIVES_NAMED_MAX),
        region in "[a-z0-9-]{1,63}",
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let hello = Hello {
            versions: Versions { min: 1, max: 3 },
            lineage: Lineage { now: Incarnation { counter, nonce: !counter }, before },
            region: region.parse().unwrap(),
        };
        let mut bytes = hello.encode();
        prop_assert_eq!(Hello::decode(&bytes), Ok(hello));
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = Hello::decode(&bytes);
    }
}
