//! Blocks from host to host: how a guest's memory and disk travel. Owns: the protocol between the two ends of a
//! transfer, over any duplex byte stream. Always: what the target has stored is not sent again unless it changed,
//! whatever was cut; a byte is stored only after its checksum, which covers place and version too, held.
//! Not here: who may transfer (`rules/`), what carries the stream (nodes relay it without looking inside).
//!
//! ```text
//! target                                       source
//!   Greet{lineage, stored}  ──────────────►
//!   Have{medium, first, versions}* ───────►     what an earlier connection or attempt left there
//!   Ready ────────────────────────────────►
//!                             ◄───────────────  Begin{lineage, total}      another lineage: the target empties itself
//!                             ◄───────────────  Blocks{medium, first, versions, sums, payload}*
//!   Ack{stored, twice, received} ─────────►
//!                             ◄───────────────  Mark{rounds, dirty}        a round is over, the guest runs
//!                             ◄───────────────  End{registers, digest}     the guest is paused, this was everything
//!   Verified{digest} ─────────────────────►
//! ```
//! A frame is `kind: u8, length: u32` little-endian and its body. `Blocks` is laid by hand, the rest is postcard.
//! Versions compare within one lineage (`guest.rs`) only.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::disk::DiskError;
use super::guest::Registers;
use super::memory::Memory;
use super::program::mix;
use crate::drivers::SwitchKey;
use crate::types::limits::{BLOCK_BYTES_MAX, DISK_BLOCK_BYTES, PAGE_BYTES};
use crate::types::{Millis, Tick};

mod source;
mod target;

pub use source::{Offer, serve_source};
pub use target::{Receipt, serve_target};

/// An end that hears nothing for so long while it waits for an answer gives the connection up.
pub const STALL_MS_MAX: Millis = Millis(10_000);
/// Versions in one `Have`.
const HAVE_VERSIONS_MAX: usize = 16 * 1024;
/// Frames without payload are no longer than this.
const CONTROL_BYTES_MAX: usize = 8 * HAVE_VERSIONS_MAX;
/// `Blocks` before its payload: medium, first, count, then a version and a sum for each.
const BLOCKS_HEAD_BYTES: usize = 1 + 8 + 4;
const BLOCKS_BYTES_MAX: usize = BLOCKS_HEAD_BYTES + BLOCK_BYTES_MAX + (BLOCK_BYTES_MAX / PAGE_BYTES) * 12;
const FRAME_HEAD_BYTES: usize = 5;

/// Why a connection of a transfer ended.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The stream broke: a cut.
    #[error("the stream broke")]
    Cut(#[from] io::Error),
    /// The other end said nothing for too long.
    #[error("the other end did not answer for {STALL_MS_MAX}")]
    Stalled,
    /// The other end sent what it may not send.
    #[error("the other end breaks the protocol: {0}")]
    Protocol(&'static str),
    /// A checksum did not hold.
    #[error("page or block {index} arrived damaged")]
    Damaged {
        /// Which.
        index: u64,
    },
    /// Everything arrived, yet the ends disagree about what that is; the target empties itself.
    #[error("the digests differ: {ours:x} here, {theirs:x} there")]
    Digest {
        /// Of this end.
        ours: u64,
        /// Of the other end.
        theirs: u64,
    },
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The attempt is over, or another connection took its place.
    #[error("this connection was closed here: {0}")]
    Closed(&'static str),
}

/// An end of a transfer that may be served.
pub enum OpenChannel {
    /// This host sends.
    Source(Arc<Offer>),
    /// This host receives.
    Target(Arc<Receipt>, SwitchKey),
}

impl OpenChannel {
    /// Serves it until it is cut.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) -> Result<(), TransferError> {
        match self {
            OpenChannel::Source(offer) => serve_source(offer, stream).await,
            OpenChannel::Target(receipt, key) => serve_target(receipt, key, stream).await,
        }
    }
}

/// Memory or disk, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    Memory,
    Disk,
}

impl Part {
    fn unit(self) -> usize {
        match self {
            Part::Memory => PAGE_BYTES,
            Part::Disk => DISK_BLOCK_BYTES,
        }
    }
    fn of_wire(byte: u8) -> Result<Part, TransferError> {
        match byte {
            0 => Ok(Part::Memory),
            1 => Ok(Part::Disk),
            _ => Err(TransferError::Protocol("no such medium")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Control = 1,
    Blocks = 2,
}

/// Control frames of both directions.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Control {
    Greet {
        protocol: u16,
        lineage: Option<u64>,
        stored_bytes: u64,
        twice_bytes: u64,
    },
    Have {
        part: Part,
        first: u64,
        versions: Vec<u32>,
    },
    Ready,
    Begin {
        lineage: u64,
        total_bytes: u64,
    },
    /// `received_bytes` counts payload of this connection.
    Ack {
        received_bytes: u64,
        stored_bytes: u64,
        twice_bytes: u64,
    },
    Mark {
        rounds: u32,
        dirty_bytes: u64,
    },
    End {
        registers: Registers,
        digest: u64,
    },
    Verified {
        digest: u64,
    },
}

const PROTOCOL: u16 = 1;

/// Checksum of one page or block at its place, in its version.
fn sum_of(part: Part, index: u64, version: u32, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, mix(index ^ (u64::from(version) << 40)) ^ (part as u64))
}

/// Versions and checksums of what one end has, by index.
#[derive(Debug, Clone, Default)]
struct Items {
    versions: Vec<u32>,
    sums: Vec<u64>,
}

impl Items {
    fn version(&self, index: u64) -> u32 {
        usize::try_from(index).ok().and_then(|at| self.versions.get(at)).copied().unwrap_or(0)
    }

    fn set(&mut self, index: u64, version: u32, sum: u64) {
        let at = usize::try_from(index).expect("an index fits the address space");
        if self.versions.len() <= at {
            self.versions.resize(at + 1, 0);
            self.sums.resize(at + 1, 0);
        }
        self.versions[at] = version;
        self.sums[at] = sum;
    }

    fn clear(&mut self) {
        self.versions.clear();
        self.sums.clear();
    }

    /// A digest of everything that is not zeros, independent of order.
    fn digest(&self, part: Part) -> u64 {
        let items = (0_u64..).zip(self.versions.iter().zip(&self.sums)).filter(|(_, (version, _))| **version > 0);
        items.fold(0, |digest, (index, (version, sum))| {
            digest.wrapping_add(mix(mix(index ^ ((part as u64) << 63)) ^ mix(u64::from(*version)) ^ sum))
        })
    }

    /// Runs of versions to tell, without the zeros between them.
    fn have(&self, part: Part) -> impl Iterator<Item = Control> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            at += self.versions[at..].iter().position(|v| *v > 0)?;
            // Gaps of a few zeros are cheaper to send than another frame.
            let end = self.versions.len().min(at + HAVE_VERSIONS_MAX);
            let versions = self.versions[at..end].to_vec();
            let first = at as u64;
            at = end;
            Some(Control::Have { part, first, versions })
        })
    }
}

fn digest_of(memory: &Items, disk: &Items) -> u64 {
    memory.digest(Part::Memory).wrapping_add(disk.digest(Part::Disk))
}

async fn send_control<W: AsyncWrite + Unpin>(writer: &mut W, control: &Control) -> Result<(), TransferError> {
    let mut frame = vec![Kind::Control as u8, 0, 0, 0, 0];
    frame = postcard::to_extend(control, frame).expect("control frames always encode");
    let length = u32::try_from(frame.len() - FRAME_HEAD_BYTES).expect("control frames are short");
    frame[1..FRAME_HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
    writer.write_all(&frame).await?;
    Ok(())
}

/// Reads one frame's body into the front of `body`, which is kept between frames. Returns its kind and length.
async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R, body: &mut Vec<u8>) -> Result<(Kind, usize), TransferError> {
    let mut head = [0; FRAME_HEAD_BYTES];
    reader.read_exact(&mut head).await?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let (kind, max) = match head[0] {
        1 => (Kind::Control, CONTROL_BYTES_MAX),
        2 => (Kind::Blocks, BLOCKS_BYTES_MAX),
        _ => return Err(TransferError::Protocol("no such kind of frame")),
    };
    if length > max {
        return Err(TransferError::Protocol("a frame is too long"));
    }
    // The buffer only grows: zeroing a megabyte for each frame would cost as much as the checksum.
    if body.len() < length {
        body.resize(length, 0);
    }
    reader.read_exact(&mut body[..length]).await?;
    Ok((kind, length))
}

fn parse_control(body: &[u8]) -> Result<Control, TransferError> {
    postcard::from_bytes(body).map_err(|_| TransferError::Protocol("a control frame makes no sense"))
}

/// Pages or blocks of a frame, looked at in place.
struct BlocksView<'a> {
    part: Part,
    first: u64,
    versions: Vec<u32>,
    sums: Vec<u64>,
    payload: &'a [u8],
}

fn parse_blocks(body: &[u8]) -> Result<BlocksView<'_>, TransferError> {
    let short = || TransferError::Protocol("a block frame is too short");
    let (head, rest) = body.split_at_checked(BLOCKS_HEAD_BYTES).ok_or_else(short)?;
    let part = Part::of_wire(head[0])?;
    let first = u64::from_le_bytes(head[1..9].try_into().expect("eight bytes"));
    let count = u32::from_le_bytes(head[9..13].try_into().expect("four bytes")) as usize;
    if count == 0 || count > BLOCK_BYTES_MAX / part.unit() {
        return Err(TransferError::Protocol("a block frame holds too many or no blocks"));
    }
    let (versions, rest) = rest.split_at_checked(count * 4).ok_or_else(short)?;
    let (sums, payload) = rest.split_at_checked(count * 8).ok_or_else(short)?;
    if payload.len() != count * part.unit() {
        return Err(TransferError::Protocol("a block frame's payload has the wrong length"));
    }
    let versions: Vec<u32> = versions.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let sums = sums.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
    if versions.contains(&0) {
        return Err(TransferError::Protocol("version 0 is never sent"));
    }
    Ok(BlocksView { part, first, versions, sums, payload })
}

/// Versions of a guest's memory, chunk by chunk, for scans.
fn memory_versions(memory: &Memory, chunk: usize) -> &[u32] {
    memory.chunk_versions(chunk).map_or(&[], |versions| &versions[..])
}

/// A rate of bytes, smoothed over about a second.
#[derive(Debug, Default)]
struct Rate {
    since: Option<Tick>,
    until: Tick,
    bytes: u64,
    smooth: Option<u64>,
}

impl Rate {
    fn add(&mut self, now: Tick, bytes: u64) {
        let since = *self.since.get_or_insert(now);
        self.until = now;
        self.bytes += bytes;
        if now.since(since).0 >= 200 {
            let rate = self.window();
            self.smooth = Some(self.smooth.map_or(rate, |old| (old.saturating_mul(3).saturating_add(rate)) / 4));
            (self.since, self.bytes) = (Some(now), 0);
        }
    }

    fn window(&self) -> u64 {
        let elapsed = self.since.map_or(0, |since| self.until.since(since).0);
        self.bytes.saturating_mul(1_000) / elapsed.max(1)
    }

    /// What is left of a window that has just begun says little, unless it is the first.
    fn bytes_per_second(&self) -> u64 {
        self.smooth.unwrap_or_else(|| self.window())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_are_frozen() {
        let registers = Registers { boot: 1, boot_tick: 2, tick: 300, lineage: 9 };
        let frames: [(Control, &[u8]); 8] = [
            (
                Control::Greet { protocol: 1, lineage: Some(9), stored_bytes: 300, twice_bytes: 1 },
                &[0, 1, 1, 9, 0xac, 2, 1],
            ),
            (Control::Have { part: Part::Disk, first: 4, versions: vec![5, 0] }, &[1, 1, 4, 2, 5, 0]),
            (Control::Ready, &[2]),
            (Control::Begin { lineage: 9, total_bytes: 300 }, &[3, 9, 0xac, 2]),
            (Control::Ack { received_bytes: 1, stored_bytes: 300, twice_bytes: 0 }, &[4, 1, 0xac, 2, 0]),
            (Control::Mark { rounds: 2, dirty_bytes: 300 }, &[5, 2, 0xac, 2]),
            (Control::End { registers, digest: 7 }, &[6, 1, 2, 0xac, 2, 9, 7]),
            (Control::Verified { digest: 7 }, &[7, 7]),
        ];
        for (frame, frozen) in frames {
            assert_eq!(postcard::to_stdvec(&frame).unwrap(), frozen, "{frame:?}");
            assert_eq!(postcard::from_bytes::<Control>(frozen).unwrap(), frame);
        }
        // Also what both ends must agree on without saying it.
        assert_eq!(sum_of(Part::Disk, 3, 2, b"block"), 6_177_327_011_346_170_947);
    }
}
