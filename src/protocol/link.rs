//! What a region's actors see of another region. Owns: the contract of a [`Link`] and of who serves the other end.
//! Always: an answer says whether the request was surely not done ([`LinkError::NotSent`], [`LinkError::Refused`]) or
//! whether that is not known ([`LinkError::Unknown`]); a link never repeats a request by itself.
//! Not here: at-least-once delivery (the sender's outbox) and dedup (the receiver's store).

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};

use super::envelope::{self, Head, MessageId, TraceId};
use super::messages::Kind;
use crate::types::limits::FRAME_BYTES_MAX;
use crate::types::{Incarnation, IncarnationVerdict, Lineage, Millis, RegionName};

/// A future on the heap, so that links can be held behind `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A duplex stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A bulk stream. Closing its write half (`shutdown`) tells the other end that it is complete. Dropped before that, or
/// cut, it shows as an error at the other end, never as an end, and what was written last may be lost.
pub type BulkStream = Box<dyn ByteStream>;

/// Length of what opens a bulk stream.
pub const BULK_HELLO_BYTES_MAX: usize = 4096;

/// A peer, as its certificate and its hello have shown it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    /// Its region: proven by its certificate.
    pub region: RegionName,
    /// The life of its store: said by itself, judged by [`Inbound::incarnation_seen`].
    pub incarnation: Incarnation,
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.region, self.incarnation)
    }
}

/// A message to or from another region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What the body is.
    pub kind: Kind,
    /// The actor that it is for; see [`envelope::is_destination`].
    pub to: String,
    /// The id that the sender's outbox gave a command; none for a query.
    pub id: Option<MessageId>,
    /// The body, usually postcard. At most [`FRAME_BYTES_MAX`].
    pub body: Bytes,
    /// How long an answer is waited for.
    pub deadline: Millis,
    /// What it belongs to.
    pub trace: TraceId,
}

impl Request {
    /// A query: at most once, no id.
    pub fn query(kind: Kind, to: impl Into<String>, body: impl Into<Bytes>, deadline: Millis) -> Request {
        Request { kind, to: to.into(), id: None, body: body.into(), deadline, trace: TraceId::default() }
    }
    /// A durable command from an outbox: the caller repeats it until it is answered, the receiver drops repeats.
    pub fn command(
        id: MessageId,
        kind: Kind,
        to: impl Into<String>,
        body: impl Into<Bytes>,
        deadline: Millis,
    ) -> Request {
        Request { id: Some(id), ..Request::query(kind, to, body, deadline) }
    }
    /// The same as part of `trace`.
    pub fn traced(mut self, trace: TraceId) -> Request {
        self.trace = trace;
        self
    }
    /// Refuses here what the other end would have to refuse.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.body.len() > FRAME_BYTES_MAX {
            let reason = format!("a body of {} bytes; at most {FRAME_BYTES_MAX} are allowed", self.body.len());
            return Err(Refusal::new(RefusalCode::TOO_LARGE, reason));
        }
        if self.deadline.0 == 0 {
            return Err(Refusal::new(RefusalCode::DEADLINE, "its deadline is over"));
        }
        if !envelope::is_destination(&self.to) {
            return Err(Refusal::new(RefusalCode::MALFORMED, "the destination is not the name of an actor"));
        }
        Ok(())
    }
    /// Its head, sent by `from`.
    pub fn head(&self, from: &PeerId) -> Head {
        Head {
            kind: self.kind,
            flags: 0,
            length: self.body.len() as u32,
            deadline: self.deadline,
            id: self.id,
            trace: self.trace,
            region: from.region.clone(),
            incarnation: from.incarnation,
            to: self.to.clone(),
        }
    }
    /// The message that `head` and `body` make.
    pub fn from_parts(head: Head, body: Bytes) -> Request {
        Request { kind: head.kind, to: head.to, id: head.id, body, deadline: head.deadline, trace: head.trace }
    }
}

/// Code of a refusal; append only. Any number may come from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefusalCode(pub u16);

impl RefusalCode {
    /// A kind of message that the receiver does not know.
    pub const UNKNOWN_KIND: RefusalCode = RefusalCode(1);
    /// It exceeds a limit.
    pub const TOO_LARGE: RefusalCode = RefusalCode(2);
    /// It can't be decoded.
    pub const MALFORMED: RefusalCode = RefusalCode(3);
    /// Too much at once; see `retry_after`.
    pub const BUSY: RefusalCode = RefusalCode(4);
    /// No version that both speak, or one below the floor.
    pub const VERSION: RefusalCode = RefusalCode(5);
    /// The sender is not who it says.
    pub const IDENTITY: RefusalCode = RefusalCode(6);
    /// There is no such actor or job here.
    pub const NOT_FOUND: RefusalCode = RefusalCode(7);
    /// Its deadline was over before it was begun.
    pub const DEADLINE: RefusalCode = RefusalCode(8);
    /// The sender may not ask this.
    pub const FORBIDDEN: RefusalCode = RefusalCode(9);
    /// The receiver knows a later life of the sender's store.
    pub const STALE_INCARNATION: RefusalCode = RefusalCode(10);
    /// It contradicts what the receiver has recorded, for instance a newer attempt or fence.
    pub const FENCED: RefusalCode = RefusalCode(11);
    /// The receiver is shutting down.
    pub const CLOSING: RefusalCode = RefusalCode(12);
    /// The receiver declined a bulk stream without a reason of its own.
    pub const DECLINED: RefusalCode = RefusalCode(13);

    /// Its name, for logs and metrics.
    pub fn name(self) -> &'static str {
        match self.0 {
            1 => "unknown-kind",
            2 => "too-large",
            3 => "malformed",
            4 => "busy",
            5 => "version",
            6 => "identity",
            7 => "not-found",
            8 => "deadline",
            9 => "forbidden",
            10 => "stale-incarnation",
            11 => "fenced",
            12 => "closing",
            13 => "declined",
            _ => "other",
        }
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal: surely not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Refusal {
    /// Why, for programs.
    pub code: RefusalCode,
    /// Why, for people. At most [`envelope::REASON_BYTES_MAX`] bytes reach the other end.
    pub reason: String,
    /// When trying again makes sense.
    pub retry_after: Option<Millis>,
}

impl Refusal {
    /// A refusal without advice when to try again.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Refusal {
        Refusal { code, reason: reason.into(), retry_after: None }
    }
    /// Too much at once.
    pub fn busy(retry_after: Millis) -> Refusal {
        let reason = format!("too much at once; try again after {retry_after}");
        Refusal { code: RefusalCode::BUSY, reason, retry_after: Some(retry_after) }
    }
    /// The reason, cut to what may travel.
    pub fn reason_bytes(&self) -> &[u8] {
        let end = self.reason.floor_char_boundary(envelope::REASON_BYTES_MAX);
        &self.reason.as_bytes()[..end]
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It was surely not sent as a whole, hence surely not done.
    #[error("{peer} was not asked: {why}")]
    NotSent {
        /// Who should have got it.
        peer: RegionName,
        /// What stood in the way.
        why: &'static str,
    },
    /// The other end (or this one, before sending) refused it: surely not done.
    #[error("{peer} refused: {refusal}")]
    Refused {
        /// Who refused.
        peer: RegionName,
        /// Why.
        #[source]
        refusal: Refusal,
    },
    /// It was sent and no answer came: it may or may not have been done.
    #[error("whether {peer} did it is not known: {why}")]
    Unknown {
        /// Who was asked.
        peer: RegionName,
        /// What happened instead of an answer.
        why: &'static str,
    },
}

/// What is known about a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkState {
    /// Whether the control connection is up.
    pub connected: bool,
    /// Whether the bulk connection is up.
    pub bulk_connected: bool,
    /// The peer's incarnation, as last accepted.
    pub incarnation: Option<Incarnation>,
    /// Smoothed round trip of the control connection, microseconds.
    pub rtt_us: Option<u64>,
    /// How long ago anything was heard from it; none if never in this life.
    pub last_heard: Option<Millis>,
    /// Bytes sent over both connections, headers of QUIC included, in this life.
    pub bytes_sent: u64,
    /// Bytes received, likewise.
    pub bytes_received: u64,
    /// What the bulk connection carried when it was busy, bytes per second; none before it was busy once.
    pub bandwidth_bytes_s: Option<u64>,
    /// How often a connection was established again after the first time.
    pub reconnects: u64,
    /// What was refused, by reason: both what this end refused and what the other end refused of ours.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Why the last dial failed; none while connected.
    pub last_error: Option<String>,
    /// If it failed because one end wants nothing to do with the other: which and why.
    pub refused: Option<Refused>,
    /// How long it has been connected, or not.
    pub since: Millis,
    /// Packets lost on the connections in use, per thousand sent; none before any was sent.
    pub loss_permille: Option<u32>,
}

/// A hello or certificate that was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The peer refused us; else we refused it.
    pub by_peer: bool,
    /// Why, as in [`LinkState::refusals`].
    pub reason: &'static str,
}

/// A link to one region.
pub trait Link: Send + Sync {
    /// The region at the other end.
    fn peer(&self) -> &RegionName;
    /// Sends `request` and waits for its answer, at most for its deadline.
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Bytes, LinkError>>;
    /// Sends a datagram: at most once, in no order, at most about 1,000 bytes. `Ok` says that it was handed over.
    fn datagram(&self, kind: Kind, body: Bytes) -> Result<(), LinkError>;
    /// Opens a stream on the bulk connection. `hello` (at most [`BULK_HELLO_BYTES_MAX`]) is shown to the other end's
    /// [`Inbound::bulk`], which takes or refuses it. Waits at most `deadline` for that.
    fn open_bulk(&self, hello: Bytes, deadline: Millis) -> BoxFuture<'_, Result<BulkStream, LinkError>>;
    /// What is known about the link now.
    fn state(&self) -> LinkState;
    /// Whether the control connection is up, to be waited on: for instance before an outbox delivers again.
    fn connected(&self) -> watch::Receiver<bool>;
    /// Breaks its connections, as a cut does; they are made again. A link without connections has nothing to break.
    fn sever(&self) {}
}

/// Serves what other regions send. Each call runs in a task of its own and is given up at the request's deadline.
pub trait Inbound: Send + Sync + 'static {
    /// Answers a message. A refusal says that it was surely not done; a panic shows as *unknown* at the other end.
    fn request(&self, from: PeerId, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>>;
    /// Takes or refuses a bulk stream. The future may live as long as the stream does.
    fn bulk(&self, from: PeerId, hello: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()>;
    /// Takes note of a datagram. Must not block.
    fn datagram(&self, from: PeerId, kind: Kind, body: Bytes);
    /// Judges the incarnation that a peer presents by the persisted one, and persists a later one before it answers.
    fn incarnation_seen(&self, peer: RegionName, lineage: Lineage) -> BoxFuture<'static, IncarnationVerdict>;
}

/// Answer to an offered bulk stream, on its way to the link.
pub(super) type BulkAnswer = Result<oneshot::Sender<BulkStream>, Refusal>;

/// A bulk stream that a peer wants to open. Dropped unanswered it is refused.
pub struct BulkOffer(pub(super) oneshot::Sender<BulkAnswer>);

impl BulkOffer {
    /// Takes it. Fails if the stream broke meanwhile.
    pub async fn accept(self) -> Result<BulkStream, LinkGone> {
        let (give, take) = oneshot::channel();
        self.0.send(Ok(give)).map_err(|_| LinkGone)?;
        take.await.map_err(|_| LinkGone)
    }
    /// The same offer, whose stream is what `wrap` makes of it.
    pub fn wrapped(self, wrap: impl FnOnce(BulkStream) -> BulkStream + Send + 'static) -> BulkOffer {
        let (answer, answered) = oneshot::channel::<BulkAnswer>();
        tokio::spawn(async move {
            match answered.await {
                Ok(Ok(give)) => {
                    // If either end is gone, the other learns it by the end of its half.
                    if let Ok(stream) = self.accept().await {
                        let _ = give.send(wrap(stream));
                    }
                }
                Ok(Err(refusal)) => self.refuse(refusal),
                // Dropped unanswered: so is this one.
                Err(_) => {}
            }
        });
        BulkOffer(answer)
    }
    /// Refuses it.
    pub fn refuse(self, refusal: Refusal) {
        // If the other end is gone there is nobody left to tell.
        let _ = self.0.send(Err(refusal));
    }
}

/// The stream broke before it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bulk stream broke before it was taken")]
pub struct LinkGone;
