//! The envelope around every message. Owns: the bytes of its head, laid by hand, and of the head of a reply.
//! Always: decoding checks every limit first, borrows nothing, allocates at most two names, and never panics.
//! Version 1 is frozen: `tests/fixtures/v1/` holds its bytes.
//!
//! ```text
//! head   offset  0  magic "NVFD"           reply  0  magic "NVFR"
//!                4  u16 version                   4  u16 version
//!                6  u16 kind                      6  u16 code (0 = done, else a refusal)
//!                8  u16 flags                     8  u32 length of what follows
//!               10  u16 length of this head      12  u32 retry after, ms (0 = no advice)
//!               12  u32 length of the body
//!               16  u32 deadline, ms from sending
//!               20  u64 + u64 message id: incarnation, number (0 = none)
//!               36  u128 trace id
//!               52  u64 + u64 incarnation of the sender: counter, nonce
//!               68  u8 n, n bytes: sender region
//!                   u8 m, m bytes: destination actor
//!                   (whatever a later minor revision appends, skipped by its length)
//! ```
//! All numbers are big-endian.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::link::{Refusal, RefusalCode};
use super::messages::Kind;
use crate::types::limits::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES_MAX, NAME_BYTES_MAX};
use crate::types::{Incarnation, JobId, Millis, RegionName};

/// The version of the envelope that this build writes.
pub const VERSION: u16 = 1;
/// The oldest version that this build reads.
pub const VERSION_MIN: u16 = 1;

const MAGIC: [u8; 4] = *b"NVFD";
const REPLY_MAGIC: [u8; 4] = *b"NVFR";
/// Bytes of a head up to the names.
pub const HEAD_FIXED_BYTES: usize = 68;
/// Bytes of the head of a reply.
pub const REPLY_HEAD_BYTES: usize = 16;
/// Length of a destination.
pub const DESTINATION_BYTES_MAX: usize = 120;
/// Length of the reason in a refusal; what is longer is cut by the sender and refused by the receiver.
pub const REASON_BYTES_MAX: usize = 1024;

const _: () = assert!(HEAD_FIXED_BYTES + 2 + NAME_BYTES_MAX + DESTINATION_BYTES_MAX <= FRAME_HEAD_BYTES_MAX);

/// Id of a durable command, given by the sender's outbox and kept over restarts; its number is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct MessageId {
    /// The counter of the sender's incarnation when the id was given.
    pub incarnation: u64,
    /// The how-manieth of that incarnation, from 1.
    pub number: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.number)
    }
}

/// Ties together what one cause leads to, over all regions. 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct TraceId(pub u128);

impl TraceId {
    /// Of a job: derived from its id, so that it outlives the processes and is the same on both sides.
    pub fn of_job(job: JobId) -> TraceId {
        let high = (u64::from(job.region.0) << 32) | (job.incarnation & 0xffff_ffff);
        TraceId((u128::from(high) << 64) | u128::from(job.number))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Head of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What the body is.
    pub kind: Kind,
    /// Bits for later versions; version 1 sends 0 and ignores what it gets.
    pub flags: u16,
    /// Bytes of the body.
    pub length: u32,
    /// How long the sender waits, counted from sending.
    pub deadline: Millis,
    /// The id of a durable command; none for a query.
    pub id: Option<MessageId>,
    /// What it belongs to.
    pub trace: TraceId,
    /// The region that says it sends this. To be compared with the certificate, never to be believed.
    pub region: RegionName,
    /// The life of the sender's store.
    pub incarnation: Incarnation,
    /// The actor that it is for.
    pub to: String,
}

/// Head of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHead {
    /// None if the request was done; else why it was refused, and the body is the reason as text.
    pub refusal: Option<RefusalCode>,
    /// Bytes of the body.
    pub length: u32,
    /// When trying again makes sense; 0 = no advice.
    pub retry_after: Millis,
}

/// Why bytes are not a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes are needed than there are.
    #[error("the head is cut off")]
    Short,
    /// It does not start as ours do.
    #[error("these bytes are not a novafed message")]
    Magic,
    /// A version that was not negotiated.
    #[error("version {0} of the envelope is not spoken here ({VERSION_MIN} to {VERSION} are)")]
    Version(u16),
    /// A body longer than is allowed.
    #[error("a body of {0} bytes; at most {FRAME_BYTES_MAX} are allowed")]
    TooLarge(u32),
    /// The length of the head is impossible.
    #[error("a head of {0} bytes; at most {FRAME_HEAD_BYTES_MAX} are allowed")]
    HeadLength(u16),
    /// A name that is not one.
    #[error("the sender or the destination is not a name")]
    Name,
    /// A refusal code that is 0 where it may not be, or a reason that is too long.
    #[error("the reply is malformed")]
    Reply,
}

/// Reads big-endian numbers off the front; `None` once there is too little.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.bytes(N)?.try_into().map_err(|_| DecodeError::Short)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn text(&mut self, max: usize) -> Result<&'a str, DecodeError> {
        let n = usize::from(self.u8()?);
        if n > max {
            return Err(DecodeError::Name);
        }
        std::str::from_utf8(self.bytes(n)?).map_err(|_| DecodeError::Name)
    }
}

/// Whether `text` may be a destination: actors are named by lower-case letters, digits and `-/._`.
pub fn is_destination(text: &str) -> bool {
    text.len() <= DESTINATION_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-/._".contains(&b))
}

impl Head {
    /// Bytes of this head.
    pub fn encoded_len(&self) -> usize {
        HEAD_FIXED_BYTES + 2 + self.region.as_str().len() + self.to.len()
    }

    /// Appends this head. The destination must satisfy [`is_destination`] and the length its limit, which
    /// [`super::link::Request::check`] has seen to.
    pub fn encode(&self, out: &mut BytesMut) {
        let head_len = self.encoded_len();
        assert!(head_len <= FRAME_HEAD_BYTES_MAX, "a head of {head_len} bytes was not checked before it was laid");
        out.reserve(head_len);
        out.put_slice(&MAGIC);
        out.put_u16(VERSION);
        out.put_u16(self.kind.0);
        out.put_u16(self.flags);
        out.put_u16(head_len as u16);
        out.put_u32(self.length);
        out.put_u32(u32::try_from(self.deadline.0).unwrap_or(u32::MAX));
        out.put_u64(self.id.map_or(0, |id| id.incarnation));
        out.put_u64(self.id.map_or(0, |id| id.number));
        out.put_u128(self.trace.0);
        out.put_u64(self.incarnation.counter);
        out.put_u64(self.incarnation.nonce);
        for text in [self.region.as_str(), &self.to] {
            out.put_u8(text.len() as u8);
            out.put_slice(text.as_bytes());
        }
    }

    /// How long the head is that begins with `fixed`, and how long its body: the limits, before anything else is read.
    pub fn lengths(fixed: &[u8; HEAD_FIXED_BYTES]) -> Result<(usize, usize), DecodeError> {
        let mut reader = Reader(fixed);
        if reader.array()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        let version = reader.u16()?;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(DecodeError::Version(version));
        }
        let _kind_and_flags = reader.u32()?;
        let head = reader.u16()?;
        if usize::from(head) > FRAME_HEAD_BYTES_MAX || usize::from(head) < HEAD_FIXED_BYTES + 2 {
            return Err(DecodeError::HeadLength(head));
        }
        let length = reader.u32()?;
        match usize::try_from(length) {
            Ok(body) if body <= FRAME_BYTES_MAX => Ok((usize::from(head), body)),
            Ok(_) | Err(_) => Err(DecodeError::TooLarge(length)),
        }
    }

    /// Decodes the head at the front of `bytes`. Returns it and its length.
    pub fn decode(bytes: &[u8]) -> Result<(Head, usize), DecodeError> {
        let fixed = bytes.first_chunk::<HEAD_FIXED_BYTES>().ok_or(DecodeError::Short)?;
        let (head_len, _) = Self::lengths(fixed)?;
        let mut reader = Reader(bytes.get(..head_len).ok_or(DecodeError::Short)?);
        let _magic_and_version = reader.bytes(6)?;
        let kind = Kind(reader.u16()?);
        let flags = reader.u16()?;
        let _head_len = reader.u16()?;
        let length = reader.u32()?;
        let deadline = Millis(u64::from(reader.u32()?));
        let id = Some(MessageId { incarnation: reader.u64()?, number: reader.u64()? }).filter(|id| id.number != 0);
        let trace = TraceId(u128::from_be_bytes(reader.array()?));
        let incarnation = Incarnation { counter: reader.u64()?, nonce: reader.u64()? };
        let region = reader.text(NAME_BYTES_MAX)?.parse().map_err(|_| DecodeError::Name)?;
        let to = reader.text(DESTINATION_BYTES_MAX)?;
        if !is_destination(to) {
            return Err(DecodeError::Name);
        }
        let head = Head { kind, flags, length, deadline, id, trace, region, incarnation, to: to.to_owned() };
        Ok((head, head_len))
    }
}

impl ReplyHead {
    /// The request was done; `length` bytes of answer follow.
    pub fn done(length: u32) -> ReplyHead {
        ReplyHead { refusal: None, length, retry_after: Millis(0) }
    }
    /// The request was refused; `length` bytes of reason follow.
    pub fn refused(refusal: &Refusal, length: u32) -> ReplyHead {
        let retry_after = refusal.retry_after.unwrap_or_default();
        ReplyHead { refusal: Some(refusal.code), length, retry_after }
    }
    /// Its bytes.
    pub fn encode(&self) -> [u8; REPLY_HEAD_BYTES] {
        let mut out = [0; REPLY_HEAD_BYTES];
        out[..4].copy_from_slice(&REPLY_MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_be_bytes());
        out[6..8].copy_from_slice(&self.refusal.map_or(0, |code| code.0).to_be_bytes());
        out[8..12].copy_from_slice(&self.length.to_be_bytes());
        out[12..].copy_from_slice(&u32::try_from(self.retry_after.0).unwrap_or(u32::MAX).to_be_bytes());
        out
    }

    /// Decodes and checks the limits of what follows.
    pub fn decode(bytes: &[u8; REPLY_HEAD_BYTES]) -> Result<ReplyHead, DecodeError> {
        let mut reader = Reader(bytes);
        if reader.array()? != REPLY_MAGIC {
            return Err(DecodeError::Magic);
        }
        let version = reader.u16()?;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(DecodeError::Version(version));
        }
        let refusal = Some(RefusalCode(reader.u16()?)).filter(|code| code.0 != 0);
        let length = reader.u32()?;
        let retry_after = Millis(u64::from(reader.u32()?));
        let max = if refusal.is_some() { REASON_BYTES_MAX } else { FRAME_BYTES_MAX };
        if usize::try_from(length).is_ok_and(|length| length <= max) {
            Ok(ReplyHead { refusal, length, retry_after })
        } else {
            Err(DecodeError::TooLarge(length))
        }
    }
}

/// A whole message: head and body in one buffer.
pub fn frame(head: &Head, body: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(head.encoded_len() + body.len());
    head.encode(&mut out);
    out.put_slice(body);
    out.freeze()
}
