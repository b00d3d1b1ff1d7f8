//! The receiving end. Owns: what was received of one VM, whatever attempt and connection brought it.
//! Always: a sealed receipt changes no more; one connection at a time, the newest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    BlocksView, Control, Items, Kind, PROTOCOL, Part, Rate, STALL_MS_MAX, TransferError, digest_of, parse_blocks,
    parse_control, read_frame, send_control, sum_of,
};
use crate::clock::Clock;
use crate::drivers::embedded::disk::{Disk, DiskError};
use crate::drivers::embedded::guest::{Guest, Registers};
use crate::drivers::embedded::memory::{CHUNK_PAGES, Memory};
use crate::drivers::embedded::program::Plan;
use crate::drivers::{SealReport, SwitchKey, TransferProgress};
use crate::planted::{self, Bug};
use crate::types::limits::{DISK_BLOCK_BYTES, PAGE_BYTES};
use crate::types::units::MIB;

/// Payload after which the source is told at the latest how far the target is.
const ACK_BYTES: u64 = 256 * 1024;
/// Disk bytes after which the disk is synced while blocks still arrive.
const SYNC_BYTES: u64 = 16 * MIB;

/// What is received of one VM.
pub struct Receipt {
    clock: Clock,
    inner: Mutex<Inner>,
    /// The end of the last round is there.
    ended: Notify,
}

struct Inner {
    key: SwitchKey,
    plan: Plan,
    /// Of the guest whose pages these are.
    lineage: Option<u64>,
    /// The disk was whole once (it was sealed): bytes of the same moment may go over it, but it is not emptied.
    keep_disk: bool,
    memory: Memory,
    /// `None` once it was taken.
    disk: Option<Disk>,
    memory_items: Items,
    disk_items: Items,
    /// The source said that this was everything, and the digest held.
    end: Option<(Registers, u64)>,
    sealed: bool,
    syncing: bool,
    unsynced_bytes: u64,
    stored_bytes: u64,
    twice_bytes: u64,
    total_bytes: u64,
    rounds: u32,
    dirty_bytes: u64,
    rate: Rate,
    connection: CancellationToken,
    connected: bool,
}

impl Receipt {
    /// An empty receipt over an empty disk; `keep_disk` if that disk was sealed in an earlier life of the host.
    pub fn new(clock: Clock, key: SwitchKey, plan: Plan, disk: Disk, keep_disk: bool) -> Arc<Receipt> {
        let inner = Inner {
            key,
            plan,
            lineage: None,
            keep_disk,
            memory: Memory::new(),
            disk: Some(disk),
            memory_items: Items::default(),
            disk_items: Items::default(),
            end: None,
            sealed: false,
            syncing: false,
            unsynced_bytes: 0,
            stored_bytes: 0,
            twice_bytes: 0,
            total_bytes: 0,
            rounds: 0,
            dirty_bytes: 0,
            rate: Rate::default(),
            connection: CancellationToken::new(),
            connected: false,
        };
        Arc::new(Receipt { clock, inner: Mutex::new(inner), ended: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on under a later attempt, with everything that arrived so far.
    pub fn adopt(&self, key: SwitchKey) {
        let mut inner = self.lock();
        inner.disconnect();
        if inner.key.job != key.job {
            (inner.stored_bytes, inner.twice_bytes) = (0, 0);
        }
        inner.key = key;
        inner.end = None;
        inner.sealed = false;
        inner.keep_disk = false;
    }

    /// Ends the connection, if there is one.
    pub fn close(&self) {
        self.lock().disconnect();
    }

    /// Returns once the end of the last round is there.
    pub async fn ended(&self) {
        loop {
            let notified = self.ended.notified();
            tokio::pin!(notified);
            // Before the look, so that an end in between is not missed.
            notified.as_mut().enable();
            if self.lock().end.is_some() {
                return;
            }
            notified.await;
        }
    }

    /// Checks that everything is there, syncs the disk, and refuses whatever still comes. Blocks on the disk.
    /// `Ok(None)`: not everything is there.
    pub fn seal(&self) -> Result<Option<SealReport>, DiskError> {
        let mut inner = self.lock();
        let Some((registers, digest)) = inner.end else { return Ok(None) };
        if let Some(disk) = &inner.disk {
            disk.sync()?;
        }
        inner.sealed = true;
        let report = SealReport { digest, tick: registers.tick, stored_bytes: inner.resident_bytes() };
        Ok(Some(report))
    }

    /// Syncs the disk in the background, one sync at a time: the seal, for which the guest stands still, then finds
    /// little left to do. That it fails shows at the seal.
    fn sync_early(self: &Arc<Receipt>) {
        let handle = {
            let mut inner = self.lock();
            if inner.syncing || inner.unsynced_bytes < SYNC_BYTES {
                return;
            }
            let Some(Ok(handle)) = inner.disk.as_ref().map(Disk::handle) else { return };
            inner.syncing = true;
            inner.unsynced_bytes = 0;
            handle
        };
        let receipt = Arc::clone(self);
        handle.sync_aside(move || receipt.lock().syncing = false);
    }

    /// How the transfer stands, as this end counts.
    pub fn progress(&self) -> TransferProgress {
        let inner = self.lock();
        TransferProgress {
            acknowledged_bytes: inner.stored_bytes,
            sent_bytes: inner.stored_bytes,
            sent_twice_bytes: inner.twice_bytes,
            total_bytes: inner.total_bytes,
            remaining_bytes: if inner.end.is_some() { 0 } else { inner.dirty_bytes },
            dirty_bytes: inner.dirty_bytes,
            rounds: inner.rounds,
            bytes_per_second: if inner.connected { inner.rate.bytes_per_second() } else { 0 },
            dirty_bytes_per_second: 0,
            connected: inner.connected,
            drained: inner.end.is_some(),
        }
    }

    /// The attempt it receives for.
    pub fn key(&self) -> SwitchKey {
        self.lock().key
    }

    /// Takes the guest, as it was paused, out of a sealed receipt; `None` if it is not sealed or was taken already.
    pub fn take(&self) -> Option<Guest> {
        let mut inner = self.lock();
        let (registers, _) = inner.end.filter(|_| inner.sealed)?;
        let disk = inner.disk.take()?;
        inner.disconnect();
        let memory = std::mem::take(&mut inner.memory);
        Some(Guest::of_parts(inner.plan.clone(), memory, disk, registers))
    }
}

impl Inner {
    fn resident_bytes(&self) -> u64 {
        let blocks = self.disk.as_ref().map_or(0, Disk::written_blocks);
        self.memory.resident_pages() * PAGE_BYTES as u64 + blocks * DISK_BLOCK_BYTES as u64
    }

    fn disconnect(&mut self) {
        self.connection.cancel();
        self.connected = false;
    }

    fn check(&self, connection: &CancellationToken) -> Result<(), TransferError> {
        if connection.is_cancelled() {
            return Err(TransferError::Closed("another connection or attempt took over"));
        }
        Ok(())
    }

    /// A source that comes back to a sealed receipt may hear that everything is there, and change nothing.
    fn check_unsealed(&self) -> Result<(), TransferError> {
        if self.sealed { Err(TransferError::Closed("the receipt is sealed")) } else { Ok(()) }
    }

    fn begin(&mut self, lineage: u64, total_bytes: u64) -> Result<(), TransferError> {
        if self.lineage != Some(lineage) {
            self.check_unsealed()?;
        }
        if !self.sealed {
            self.end = None;
        }
        self.total_bytes = total_bytes;
        if self.lineage != Some(lineage) {
            self.memory = Memory::new();
            self.memory_items.clear();
            self.disk_items.clear();
            match &mut self.disk {
                Some(disk) if self.keep_disk => disk.forget_versions(),
                Some(disk) => disk.clear()?,
                None => {}
            }
            self.lineage = Some(lineage);
        }
        Ok(())
    }

    fn store(&mut self, blocks: &BlocksView<'_>) -> Result<(), TransferError> {
        self.check_unsealed()?;
        let count = blocks.versions.len() as u64;
        let limit = match blocks.part {
            Part::Memory => self.plan.pages,
            Part::Disk => self.plan.blocks,
        };
        if blocks.first.checked_add(count).is_none_or(|end| end > limit) {
            return Err(TransferError::Protocol("a block lies outside of the VM"));
        }
        self.end = None;
        if blocks.part == Part::Disk {
            self.unsynced_bytes += blocks.payload.len() as u64;
        }
        let (had, items) = match blocks.part {
            Part::Memory => {
                if usize::try_from(blocks.first).unwrap_or(0) % CHUNK_PAGES + blocks.versions.len() > CHUNK_PAGES {
                    return Err(TransferError::Protocol("pages of one frame lie in one chunk"));
                }
                (self.memory.store(blocks.first, &blocks.versions, blocks.payload), &mut self.memory_items)
            }
            Part::Disk => {
                let disk = self.disk.as_mut().ok_or(TransferError::Closed("the receipt was taken"))?;
                (disk.store(blocks.first, &blocks.versions, blocks.payload)?, &mut self.disk_items)
            }
        };
        for (index, (version, sum)) in (blocks.first..).zip(blocks.versions.iter().zip(&blocks.sums)) {
            items.set(index, *version, *sum);
        }
        self.stored_bytes += blocks.payload.len() as u64;
        self.twice_bytes += had * blocks.part.unit() as u64;
        Ok(())
    }
}

/// Receives over `stream` until it is cut, the receipt is sealed, or another connection takes its place.
pub async fn serve_target<S>(receipt: Arc<Receipt>, key: SwitchKey, stream: S) -> Result<(), TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = CancellationToken::new();
    let (greeting, haves) = {
        let mut inner = receipt.lock();
        if inner.key != key || inner.disk.is_none() {
            return Err(TransferError::Closed("the attempt is over"));
        }
        inner.disconnect();
        inner.connection = connection.clone();
        inner.connected = true;
        let greeting = Control::Greet {
            protocol: PROTOCOL,
            lineage: inner.lineage,
            stored_bytes: inner.stored_bytes,
            twice_bytes: inner.twice_bytes,
        };
        let haves: Vec<Control> =
            inner.memory_items.have(Part::Memory).chain(inner.disk_items.have(Part::Disk)).collect();
        (greeting, haves)
    };
    let receiving = Receiving { receipt: &receipt, connection: &connection };
    let result = connection.run_until_cancelled(receive(&receiving, greeting, haves, stream)).await;
    result.unwrap_or(Err(TransferError::Closed("another connection or attempt took over")))
}

/// One connection of a receipt. However it ends, dropped in the middle too, it does not count as one any more.
struct Receiving<'a> {
    receipt: &'a Arc<Receipt>,
    connection: &'a CancellationToken,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let mut inner = self.receipt.lock();
        // A connection that was taken over may not speak for its successor.
        if !self.connection.is_cancelled() {
            inner.disconnect();
        }
    }
}

async fn receive<S>(
    receiving: &Receiving<'_>,
    greeting: Control,
    haves: Vec<Control>,
    stream: S,
) -> Result<(), TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Receiving { receipt, connection } = receiving;
    let (reader, mut writer) = tokio::io::split(stream);
    send_control(&mut writer, &greeting).await?;
    for have in haves {
        send_control(&mut writer, &have).await?;
    }
    send_control(&mut writer, &Control::Ready).await?;
    writer.flush().await?;
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let mut body = Vec::new();
    let (mut received, mut acknowledged) = (0_u64, 0_u64);
    loop {
        let (kind, length) = read_frame(&mut reader, &mut body).await?;
        let body = &body[..length];
        match kind {
            Kind::Blocks => {
                let blocks = parse_blocks(body)?;
                let unit = blocks.part.unit();
                let each = blocks.versions.iter().zip(&blocks.sums).zip(blocks.payload.chunks_exact(unit));
                for (index, ((version, sum), bytes)) in (blocks.first..).zip(each) {
                    if sum_of(blocks.part, index, *version, bytes) != *sum {
                        return Err(TransferError::Damaged { index });
                    }
                }
                let mut inner = receipt.lock();
                inner.check(connection)?;
                inner.store(&blocks)?;
                received += blocks.payload.len() as u64;
                inner.rate.add(receipt.clock.now(), blocks.payload.len() as u64);
                drop(inner);
                receipt.sync_early();
            }
            Kind::Control => {
                let control = parse_control(body)?;
                let verified = {
                    let mut inner = receipt.lock();
                    inner.check(connection)?;
                    inner.control(control)?
                };
                if let Some(digest) = verified {
                    receipt.ended.notify_waiters();
                    send_control(&mut writer, &ack(receipt, received)).await?;
                    acknowledged = received;
                    send_control(&mut writer, &Control::Verified { digest }).await?;
                    writer.flush().await?;
                }
            }
        }
        let quiet = reader.buffer().is_empty();
        if received > acknowledged && (quiet || received - acknowledged >= ACK_BYTES) {
            let sent = tokio::time::timeout(STALL_MS_MAX.duration(), async {
                send_control(&mut writer, &ack(receipt, received)).await?;
                writer.flush().await.map_err(TransferError::from)
            });
            sent.await.map_err(|_| TransferError::Stalled)??;
            acknowledged = received;
        }
    }
}

fn ack(receipt: &Receipt, received_bytes: u64) -> Control {
    let inner = receipt.lock();
    Control::Ack { received_bytes, stored_bytes: inner.stored_bytes, twice_bytes: inner.twice_bytes }
}

impl Inner {
    /// Performs a control frame; `Some(digest)` if it was the end and everything is there.
    fn control(&mut self, control: Control) -> Result<Option<u64>, TransferError> {
        match control {
            Control::Begin { lineage, total_bytes } => {
                self.begin(lineage, total_bytes)?;
                Ok(None)
            }
            Control::Mark { rounds, dirty_bytes } => {
                (self.rounds, self.dirty_bytes) = (rounds, dirty_bytes);
                Ok(None)
            }
            Control::End { registers, digest } => {
                if self.sealed && self.end != Some((registers, digest)) {
                    return Err(TransferError::Closed("the receipt is sealed, and otherwise"));
                }
                let ours = digest_of(&self.memory_items, &self.disk_items);
                if (ours != digest && !planted::is(Bug::WrongOffset)) || Some(registers.lineage) != self.lineage {
                    // Whatever differs is not known; the next connection sends everything.
                    self.lineage = None;
                    return Err(TransferError::Digest { ours, theirs: digest });
                }
                self.dirty_bytes = 0;
                self.end = Some((registers, digest));
                Ok(Some(digest))
            }
            Control::Greet { .. }
            | Control::Have { .. }
            | Control::Ready
            | Control::Ack { .. }
            | Control::Verified { .. } => Err(TransferError::Protocol("the source sent a target's frame")),
        }
    }
}
