//! Serves what a peer opens on a connection. Owns: reading a request within its limits and deadlines, and answering it.
//! Always: at most [`INBOUND_BYTES_MAX`] of one peer's requests are held; who sends too slowly, never reads, or sends
//! garbage loses the stream or the connection, and nobody else notices.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::Instrument;

use super::Shared;
use super::conn::{CloseCode, Conn, InUse};
use super::peer::Peer;
use super::stream::{QuicStream, Sending};
use crate::protocol::envelope::{DecodeError, HEAD_FIXED_BYTES, Head, ReplyHead};
use crate::protocol::link::{BULK_HELLO_BYTES_MAX, BulkOffer, BulkStream, Refusal, RefusalCode, Request};
use crate::protocol::messages::Kind;
use crate::types::Millis;
use crate::types::limits::{API_DEADLINE_MS_MAX, FRAME_BYTES_MAX, FRAME_HEAD_BYTES_MAX, REQUEST_MS};

/// Bytes of one peer's requests that are held at once, from their first byte to their answer.
pub(super) const INBOUND_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;
/// A peer that sends nothing for so long in the middle of a message is not waited for.
const STALL_MS: Millis = REQUEST_MS;
/// How long a whole message may take to arrive.
const READ_MS_MAX: Millis = Millis(60_000);
/// The longest deadline that a request may ask for: that of a forwarded API request.
const REQUEST_MS_MAX: Millis = API_DEADLINE_MS_MAX;
/// How long a node may think about an offered bulk stream.
const OFFER_MS: Millis = Millis(10_000);
/// Opens a bulk stream: magic, version, length of the hello.
const BULK_MAGIC: [u8; 4] = *b"NVFB";
/// Bytes before the hello of a bulk stream.
pub(super) const BULK_PREFIX_BYTES: usize = 8;

/// The bytes that open a bulk stream.
pub(super) fn bulk_prefix(version: u16, hello: &Bytes) -> [u8; BULK_PREFIX_BYTES] {
    let mut out = [0; BULK_PREFIX_BYTES];
    out[..4].copy_from_slice(&BULK_MAGIC);
    out[4..6].copy_from_slice(&version.to_be_bytes());
    out[6..].copy_from_slice(&(hello.len() as u16).to_be_bytes());
    out
}

/// Why a stream was not served.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// The peer or the connection went away: nothing to count.
    #[error("the peer gave up")]
    Gone,
    /// Too slow.
    #[error("nothing more came for {STALL_MS}")]
    Stalled,
    /// Not what the protocol says.
    #[error("{0}")]
    Malformed(#[from] DecodeError),
    /// Bytes after the end of the message.
    #[error("bytes follow the end of the message")]
    Trailing,
    /// More at once than one peer may have.
    #[error("too many bytes at once")]
    Budget,
}

fn gone(_: ReadError) -> Fault {
    Fault::Gone
}

/// The next bytes, or none at the end of the stream.
async fn chunk(recv: &mut RecvStream, max: usize) -> Result<Option<Bytes>, Fault> {
    match timeout(STALL_MS.duration(), recv.read_chunk(max, true)).await {
        Ok(read) => Ok(read.map_err(gone)?.map(|chunk| chunk.bytes)),
        Err(_) => Err(Fault::Stalled),
    }
}

/// Reads a whole message and its end. `permits` are held for as long as the message is.
async fn read_message<'p>(
    recv: &mut RecvStream,
    peer: &'p Peer,
) -> Result<(Head, Bytes, Option<tokio::sync::SemaphorePermit<'p>>), Fault> {
    // Most messages come in one piece, which is then used as it is.
    let mut bytes = chunk(recv, FRAME_HEAD_BYTES_MAX + FRAME_BYTES_MAX).await?.ok_or(DecodeError::Short)?;
    while bytes.len() < HEAD_FIXED_BYTES {
        let more = chunk(recv, FRAME_HEAD_BYTES_MAX).await?.ok_or(DecodeError::Short)?;
        bytes = [bytes, more].concat().into();
    }
    let fixed = bytes.first_chunk().ok_or(DecodeError::Short)?;
    let (head_len, body_len) = Head::lengths(fixed)?;
    let whole = head_len + body_len;
    let permits = match u32::try_from(body_len) {
        // Small ones are bounded by the number of streams.
        Ok(n) if n > 4096 => {
            let permits = timeout(STALL_MS.duration(), peer.inbound_bytes.acquire_many(n)).await;
            Some(permits.map_err(|_| Fault::Budget)?.map_err(|_| Fault::Gone)?)
        }
        Ok(_) | Err(_) => None,
    };
    if bytes.len() < whole {
        let mut buffer = BytesMut::with_capacity(whole);
        buffer.extend_from_slice(&bytes);
        while buffer.len() < whole {
            let more = chunk(recv, whole - buffer.len()).await?.ok_or(DecodeError::Short)?;
            buffer.extend_from_slice(&more);
        }
        bytes = buffer.freeze();
    }
    if bytes.len() > whole || chunk(recv, 1).await?.is_some() {
        return Err(Fault::Trailing);
    }
    let (head, head_len) = Head::decode(&bytes)?;
    Ok((head, bytes.slice(head_len..), permits))
}

/// Serves one stream of a control connection.
pub(super) async fn request(shared: Arc<Shared>, peer: Arc<Peer>, used: InUse, send: SendStream, mut recv: RecvStream) {
    let _panics = CountPanic(&peer);
    let mut send = Sending::new(send);
    // The whole of a request must have come by then, however steadily it drips.
    let read = match timeout(READ_MS_MAX.duration(), read_message(&mut recv, &peer)).await {
        Ok(read) => read,
        Err(_) => Err(Fault::Stalled),
    };
    let (head, body, _permits) = match read {
        Ok(message) => message,
        Err(Fault::Budget) => {
            let refusal = Refusal::busy(STALL_MS);
            peer.refuse(refusal.code.name(), &refusal);
            let _ = timeout(STALL_MS.duration(), reply(&mut send, Err(refusal))).await;
            return;
        }
        Err(fault) => return punish(&peer, used.conn(), fault),
    };
    let kind = head.kind;
    send.prioritise(kind);
    let deadline = head.deadline.min(REQUEST_MS_MAX);
    let answer = match refuse(used.conn(), &head) {
        Some(refusal) => Err(refusal),
        None => {
            let trace = head.trace;
            let span = tracing::debug_span!("request", %trace, from = %used.conn().peer, %kind);
            let handling = shared.inbound.request(used.conn().peer.clone(), Request::from_parts(head, body));
            let handling = shared.stop.run_until_cancelled(timeout(deadline.duration(), handling));
            match handling.instrument(span).await {
                Some(Ok(answer)) => answer,
                // Whether it was done is not known, so no answer is one.
                Some(Err(_)) | None => return,
            }
        }
    };
    if let Err(refusal) = &answer {
        peer.refuse(refusal.code.name(), refusal);
    }
    // A peer that does not read its answers loses them.
    let _ = timeout(deadline.duration().max(Duration::from_secs(1)), reply(&mut send, answer)).await;
}

/// Refusals that need no handler.
fn refuse(conn: &Conn, head: &Head) -> Option<Refusal> {
    let peer = &conn.peer;
    if head.region != peer.region || head.incarnation != peer.incarnation {
        let reason = format!("the message says {}#{}, its sender is {peer}", head.region, head.incarnation);
        return Some(Refusal::new(RefusalCode::IDENTITY, reason));
    }
    if head.kind.name().is_none() {
        return Some(Refusal::new(RefusalCode::UNKNOWN_KIND, format!("{} is not known here", head.kind)));
    }
    (head.deadline.0 == 0).then(|| Refusal::new(RefusalCode::DEADLINE, "its deadline is over"))
}

fn punish(peer: &Peer, conn: &Conn, fault: Fault) {
    let (reason, close) = match &fault {
        Fault::Gone => return,
        // A sender that was stopped in the middle looks like this, too.
        Fault::Malformed(DecodeError::Short) => ("truncated", false),
        Fault::Malformed(DecodeError::TooLarge(_)) => ("too-large", true),
        Fault::Malformed(DecodeError::Version(_)) => ("version", true),
        Fault::Malformed(_) | Fault::Trailing => ("malformed", true),
        Fault::Stalled => ("stalled", false),
        Fault::Budget => ("busy", false),
    };
    peer.refuse(reason, &fault);
    if close {
        conn.close(CloseCode::Protocol, &fault.to_string());
    }
}

async fn reply(send: &mut Sending, answer: Result<Bytes, Refusal>) -> Result<(), quinn::WriteError> {
    let (head, body) = match answer {
        Ok(body) if body.len() <= FRAME_BYTES_MAX => (ReplyHead::done(body.len() as u32), body),
        Ok(body) => {
            // Done, but the answer can't travel: no answer is honest, a refusal would not be.
            tracing::error!(bytes = body.len(), "an answer exceeds the limit of a frame; it is not sent");
            return Ok(());
        }
        Err(refusal) => {
            let body = Bytes::copy_from_slice(refusal.reason_bytes());
            (ReplyHead::refused(&refusal, body.len() as u32), body)
        }
    };
    let head = head.encode();
    if body.len() <= 16 * 1024 {
        send.stream.write_chunk([&head, &body[..]].concat().into()).await?;
    } else {
        send.stream.write_all_chunks(&mut [Bytes::copy_from_slice(&head), body]).await?;
    }
    send.finish();
    Ok(())
}

/// Serves one stream of a bulk connection.
pub(super) async fn bulk(shared: Arc<Shared>, peer: Arc<Peer>, used: InUse, send: SendStream, mut recv: RecvStream) {
    let _panics = CountPanic(&peer);
    let hello = match timeout(STALL_MS.duration(), read_bulk_hello(&mut recv)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(fault)) => return punish(&peer, used.conn(), fault),
        Err(_) => return punish(&peer, used.conn(), Fault::Stalled),
    };
    let mut send = Sending::new(send);
    let (offer, answer) = oneshot::channel();
    let serving = shared.inbound.bulk(used.conn().peer.clone(), hello, BulkOffer(offer));
    let stop = shared.stop.clone();
    let serving = shared.tasks.spawn(async move { stop.run_until_cancelled(serving).await });
    let declined = || Refusal::new(RefusalCode::DECLINED, "the stream was declined");
    let answer = match timeout(OFFER_MS.duration(), answer).await {
        Ok(answer) => answer.unwrap_or_else(|_| Err(declined())),
        Err(_) => {
            serving.abort();
            Err(Refusal::busy(REQUEST_MS))
        }
    };
    match answer {
        Ok(take) => {
            let accepted = ReplyHead::done(0).encode();
            if timeout(STALL_MS.duration(), send.stream.write_all(&accepted)).await.is_ok_and(|r| r.is_ok()) {
                // Whoever accepted and went away meanwhile drops the stream, which resets it.
                let stream: BulkStream = Box::new(QuicStream::new(send, recv, used));
                let _ = take.send(stream);
            }
        }
        Err(refusal) => {
            peer.refuse(refusal.code.name(), &refusal);
            let _ = timeout(STALL_MS.duration(), reply(&mut send, Err(refusal))).await;
        }
    }
}

async fn read_bulk_hello(recv: &mut RecvStream) -> Result<Bytes, Fault> {
    let short = |error| match error {
        quinn::ReadExactError::FinishedEarly(_) => Fault::Malformed(DecodeError::Short),
        quinn::ReadExactError::ReadError(_) => Fault::Gone,
    };
    let mut prefix = [0; BULK_PREFIX_BYTES];
    recv.read_exact(&mut prefix).await.map_err(short)?;
    let version = u16::from_be_bytes([prefix[4], prefix[5]]);
    let length = usize::from(u16::from_be_bytes([prefix[6], prefix[7]]));
    if prefix[..4] != BULK_MAGIC {
        return Err(DecodeError::Magic.into());
    }
    if version != crate::protocol::envelope::VERSION {
        return Err(DecodeError::Version(version).into());
    }
    if length > BULK_HELLO_BYTES_MAX {
        return Err(DecodeError::TooLarge(length as u32).into());
    }
    let mut hello = vec![0; length];
    recv.read_exact(&mut hello).await.map_err(short)?;
    Ok(hello.into())
}

/// Takes in a datagram.
pub(super) fn datagram(shared: &Shared, peer: &Peer, conn: &Conn, bytes: &Bytes) {
    let taken = Head::decode(bytes).map_err(Fault::from).and_then(|(head, length)| {
        let body = bytes.slice(length..);
        if body.len() == head.length as usize { Ok((head, body)) } else { Err(Fault::Trailing) }
    });
    match taken {
        Ok((head, body)) => match refuse(conn, &head) {
            None => shared.inbound.datagram(conn.peer.clone(), head.kind, body),
            Some(refusal) => peer.refuse(refusal.code.name(), &refusal),
        },
        Err(fault) => punish(peer, conn, fault),
    }
}

/// The head of a datagram has no deadline of use, but a deadline of 0 is refused.
pub(super) fn datagram_request(kind: Kind, body: Bytes) -> Request {
    Request::query(kind, "", body, REQUEST_MS)
}

/// Counts a handler that panics; the other end sees that its request broke off.
struct CountPanic<'a>(&'a Peer);

impl Drop for CountPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.refuse("handler-panicked", &"a handler panicked; the outcome is unknown to the peer");
        }
    }
}
