//! The sending end. Owns: the rounds of a transfer and what the target is known to have.
//! Always: a page is copied under the guest's lock, at most one block at a time, so its ticks are hardly delayed;
//! what is in flight is bounded by the transfer's buffer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    BLOCKS_HEAD_BYTES, Control, FRAME_HEAD_BYTES, Items, Kind, PROTOCOL, Part, Rate, STALL_MS_MAX, TransferError,
    digest_of, memory_versions, parse_control, read_frame, send_control, sum_of,
};
use crate::clock::Clock;
use crate::drivers::embedded::guest::{Guest, Registers};
use crate::drivers::embedded::memory::CHUNK_PAGES;
use crate::drivers::embedded::scheduler::{GuestCell, Motion};
use crate::drivers::{SwitchKey, TransferProgress};
use crate::planted::{self, Bug};
use crate::types::limits::{BLOCK_BYTES_MAX, DISK_BLOCK_BYTES, PAGE_BYTES, TRANSFER_BUFFER_BYTES_MAX};
use crate::types::{Millis, Tick};

/// Between two rounds while the guest runs: long enough not to send a hot page again and again for nothing.
const ROUND_PAUSE_MS: Millis = Millis(20);
/// Chunks of versions that are compared under one hold of the guest's lock.
const SCAN_CHUNKS_MAX: usize = 1024;
/// What is written under one deadline.
const WRITE_BYTES: usize = 64 * 1024;

/// One attempt's permission to send a guest, and what came of it.
pub struct Offer {
    key: SwitchKey,
    cell: Arc<GuestCell>,
    clock: Clock,
    inner: Mutex<Inner>,
    /// The guest was paused or resumed.
    changed: Notify,
    /// The target answered.
    heard: Notify,
}

struct Inner {
    bytes_per_second_max: Option<u64>,
    /// What the target has, as far as is known; sent and not acknowledged counts as had until the next greeting.
    memory: Items,
    disk: Items,
    /// Of the guest whose versions these are.
    lineage: Option<u64>,
    progress: TransferProgress,
    sent_of_round: u64,
    /// When what was left was last counted.
    counted: Tick,
    /// Payload sent and acknowledged on this connection.
    in_flight: (u64, u64),
    /// Digest that the target verified.
    verified: Option<u64>,
    rate: Rate,
    connection: CancellationToken,
    stopped: bool,
}

impl Offer {
    /// Allows `key` to send the guest in `cell`. What an `earlier` offer of this VM learned is taken over.
    pub fn new(
        clock: Clock,
        key: SwitchKey,
        cell: Arc<GuestCell>,
        bytes_per_second_max: Option<u64>,
        earlier: Option<&Offer>,
    ) -> Arc<Offer> {
        let mut inner = Inner {
            bytes_per_second_max,
            memory: Items::default(),
            disk: Items::default(),
            lineage: None,
            progress: TransferProgress::default(),
            sent_of_round: 0,
            counted: Tick(0),
            in_flight: (0, 0),
            verified: None,
            rate: Rate::default(),
            connection: CancellationToken::new(),
            stopped: false,
        };
        if let Some(earlier) = earlier {
            let mut old = earlier.lock();
            old.stopped = true;
            old.disconnect();
            inner.memory = std::mem::take(&mut old.memory);
            inner.disk = std::mem::take(&mut old.disk);
            inner.lineage = old.lineage;
            if earlier.key.job == key.job {
                inner.progress = TransferProgress { drained: false, ..old.progress };
            }
        }
        Arc::new(Offer { key, cell, clock, inner: Mutex::new(inner), changed: Notify::new(), heard: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt.
    pub fn key(&self) -> SwitchKey {
        self.key
    }

    /// Changes the cap and allows connections again after [`Offer::stop`].
    pub fn renew(&self, bytes_per_second_max: Option<u64>) {
        let mut inner = self.lock();
        inner.bytes_per_second_max = bytes_per_second_max;
        inner.stopped = false;
    }

    /// Closes the connection and allows no more.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.stopped = true;
        inner.progress.drained = false;
        inner.disconnect();
    }

    /// The guest was paused or resumed.
    pub fn guest_changed(&self) {
        self.lock().progress.drained = false;
        self.changed.notify_one();
    }

    /// How the transfer stands, as this end counts.
    pub fn progress(&self) -> TransferProgress {
        let (dirty, paused) = {
            let cell = self.cell.lock();
            (cell.guest.dirty_rate(), cell.motion() == Motion::Paused)
        };
        let inner = self.lock();
        let per_second = dirty.memory_bytes_per_second.saturating_add(dirty.disk_bytes_per_second);
        // What the guest wrote since: of its working set, if that is known, each page counts once.
        let set = if dirty.working_set_bytes > 0 { dirty.working_set_bytes } else { dirty.resident_bytes };
        let most = set.saturating_add(dirty.disk_resident_bytes);
        let since = if paused { Millis(0) } else { self.clock.now().since(inner.counted) };
        let written = (per_second.saturating_mul(since.0) / 1_000).min(most);
        TransferProgress {
            bytes_per_second: if inner.progress.connected { inner.rate.bytes_per_second() } else { 0 },
            dirty_bytes_per_second: per_second,
            remaining_bytes: inner.progress.remaining_bytes.saturating_sub(inner.sent_of_round).saturating_add(written),
            ..inner.progress
        }
    }
}

/// One connection of an offer.
struct Sending<'a> {
    offer: &'a Offer,
    connection: &'a CancellationToken,
}

impl Sending<'_> {
    /// The offer's state, as long as this connection is the one. What a connection that was taken over still has in
    /// hand must not count as known to the target: it may never arrive.
    fn lock(&self) -> Result<MutexGuard<'_, Inner>, TransferError> {
        let inner = self.offer.lock();
        if self.connection.is_cancelled() {
            return Err(TransferError::Closed("another connection took over, or the attempt ended"));
        }
        Ok(inner)
    }
}

/// Sends over `stream` round by round until it is cut or the offer ends.
pub async fn serve_source<S>(offer: Arc<Offer>, stream: S) -> Result<(), TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = CancellationToken::new();
    {
        let mut inner = offer.lock();
        if inner.stopped {
            return Err(TransferError::Closed("the attempt does not send any more"));
        }
        inner.disconnect();
        inner.connection = connection.clone();
    }
    let sending = Sending { offer: &offer, connection: &connection };
    let result = connection.run_until_cancelled(send(&sending, stream)).await;
    result.unwrap_or(Err(TransferError::Closed("another connection took over, or the attempt ended")))
}

/// However a connection ends, dropped in the middle too, it does not count as one any more.
impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut inner = self.offer.lock();
        // A connection that was taken over may not speak for its successor.
        if !self.connection.is_cancelled() {
            inner.disconnect();
        }
    }
}

impl Inner {
    fn disconnect(&mut self) {
        self.connection.cancel();
        self.progress.connected = false;
    }
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(sending: &Sending<'_>, stream: S) -> Result<(), TransferError> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(16 * 1024, reader);
    let lineage = sending.offer.cell.registers().lineage;
    let greeted = tokio::time::timeout(STALL_MS_MAX.duration(), greeting(sending, lineage, &mut reader));
    greeted.await.map_err(|_| TransferError::Stalled)??;
    let total_bytes = resident_bytes(&sending.offer.cell.lock().guest);
    {
        let mut inner = sending.lock()?;
        inner.in_flight = (0, 0);
        inner.verified = None;
        inner.progress.total_bytes = total_bytes;
        inner.progress.connected = true;
        inner.progress.drained = false;
    }
    send_control(&mut writer, &Control::Begin { lineage, total_bytes }).await?;
    tokio::try_join!(listen(sending, &mut reader), pump(sending, &mut writer)).map(|((), ())| ())
}

fn resident_bytes(guest: &Guest) -> u64 {
    guest.memory().resident_pages() * PAGE_BYTES as u64 + guest.disk().written_blocks() * DISK_BLOCK_BYTES as u64
}

/// Reads what the target has and makes it what is known.
async fn greeting<R: AsyncRead + Unpin>(
    sending: &Sending<'_>,
    lineage: u64,
    reader: &mut R,
) -> Result<(), TransferError> {
    let mut body = Vec::new();
    let mut had = None;
    let (mut memory, mut disk) = (Items::default(), Items::default());
    loop {
        let (kind, length) = read_frame(reader, &mut body).await?;
        if kind != Kind::Control {
            return Err(TransferError::Protocol("the target sent blocks"));
        }
        match parse_control(&body[..length])? {
            Control::Greet { protocol, lineage, stored_bytes, twice_bytes } => {
                if protocol != PROTOCOL {
                    return Err(TransferError::Protocol("another version of the protocol"));
                }
                had = Some((lineage, stored_bytes, twice_bytes));
            }
            Control::Have { part, first, versions } => {
                let limit = match part {
                    Part::Memory => sending.offer.cell.lock().guest.plan().pages,
                    Part::Disk => sending.offer.cell.lock().guest.plan().blocks,
                };
                if first.checked_add(versions.len() as u64).is_none_or(|end| end > limit) {
                    return Err(TransferError::Protocol("the target has what lies outside of the VM"));
                }
                let items = if part == Part::Memory { &mut memory } else { &mut disk };
                let behind = versions.last().copied().filter(|_| planted::is(Bug::WrongOffset));
                let end = first + versions.len() as u64;
                for (index, version) in (first..).zip(versions) {
                    items.set(index, version, 0);
                }
                for index in end..limit.min(end + behind.map_or(0, |_| 8)) {
                    items.set(index, behind.unwrap_or(0), 0);
                }
            }
            Control::Ready => break,
            Control::Begin { .. }
            | Control::Ack { .. }
            | Control::Mark { .. }
            | Control::End { .. }
            | Control::Verified { .. } => return Err(TransferError::Protocol("a greeting was expected")),
        }
    }
    let (theirs, stored_bytes, twice_bytes) = had.ok_or(TransferError::Protocol("no greeting came"))?;
    let mut inner = sending.lock()?;
    let same = theirs == Some(lineage);
    if inner.lineage != Some(lineage) {
        // Checksums of another life of the guest, whose versions may look alike.
        inner.memory.clear();
        inner.disk.clear();
    }
    inner.memory = if same { with_sums(memory, &inner.memory) } else { Items::default() };
    inner.disk = if same { with_sums(disk, &inner.disk) } else { Items::default() };
    inner.lineage = Some(lineage);
    inner.progress.acknowledged_bytes = stored_bytes;
    inner.progress.sent_twice_bytes = twice_bytes;
    Ok(())
}

/// Keeps the checksums of what was sent in exactly the versions that the target says it has; 0 is unknown.
fn with_sums(mut have: Items, sent: &Items) -> Items {
    for (at, sum) in have.sums.iter_mut().enumerate() {
        if sent.versions.get(at) == Some(&have.versions[at]) {
            *sum = sent.sums[at];
        }
    }
    have
}

/// Takes in what the target acknowledges, until the stream ends.
async fn listen<R: AsyncRead + Unpin>(sending: &Sending<'_>, reader: &mut R) -> Result<(), TransferError> {
    let mut body = Vec::new();
    loop {
        let (kind, length) = read_frame(reader, &mut body).await?;
        if kind != Kind::Control {
            return Err(TransferError::Protocol("the target sent blocks"));
        }
        let mut inner = sending.lock()?;
        match parse_control(&body[..length])? {
            Control::Ack { received_bytes, stored_bytes, twice_bytes } => {
                if received_bytes > inner.in_flight.0 || received_bytes < inner.in_flight.1 {
                    return Err(TransferError::Protocol("the target acknowledged what was not sent"));
                }
                let now = sending.offer.clock.now();
                let fresh = received_bytes - inner.in_flight.1;
                inner.rate.add(now, fresh);
                inner.in_flight.1 = received_bytes;
                inner.progress.acknowledged_bytes = stored_bytes;
                inner.progress.sent_twice_bytes = twice_bytes;
            }
            Control::Verified { digest } => inner.verified = Some(digest),
            Control::Greet { .. }
            | Control::Have { .. }
            | Control::Ready
            | Control::Begin { .. }
            | Control::Mark { .. }
            | Control::End { .. } => return Err(TransferError::Protocol("an answer was expected")),
        }
        drop(inner);
        sending.offer.heard.notify_one();
    }
}

/// Where a round is: a chunk of memory, then a block of the disk.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    page: u64,
    block: u64,
}

/// A run of pages or blocks in the buffer, whose checksums are still to be made.
struct Laid {
    part: Part,
    first: u64,
    count: usize,
    at: usize,
}

/// Frames laid one behind the other, ready to be written in one go.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    laid: Vec<Laid>,
    payload: usize,
}

impl Batch {
    fn clear(&mut self) {
        self.bytes.clear();
        self.laid.clear();
        self.payload = 0;
    }

    /// Lays the head of a run; the payload follows at the returned place.
    fn lay(&mut self, part: Part, first: u64, versions: &[u32]) -> usize {
        let (count, payload) = (versions.len(), versions.len() * part.unit());
        self.laid.push(Laid { part, first, count, at: self.bytes.len() });
        let body = BLOCKS_HEAD_BYTES + count * 12 + payload;
        self.bytes.push(Kind::Blocks as u8);
        self.bytes.extend_from_slice(&u32::try_from(body).expect("a block is small").to_le_bytes());
        self.bytes.push(part as u8);
        self.bytes.extend_from_slice(&first.to_le_bytes());
        self.bytes.extend_from_slice(&u32::try_from(count).expect("a block is small").to_le_bytes());
        for version in versions {
            self.bytes.extend_from_slice(&version.to_le_bytes());
        }
        let at = self.bytes.len() + count * 8;
        self.bytes.resize(at, 0);
        self.payload += payload;
        at
    }

    /// Makes the checksums, without the guest's lock, and notes what the target will have.
    fn finish(&mut self, memory: &mut Items, disk: &mut Items) {
        for Laid { part, first, count, at } in &self.laid {
            let versions_at = at + FRAME_HEAD_BYTES + BLOCKS_HEAD_BYTES;
            let sums_at = versions_at + count * 4;
            let (head, payload) = self.bytes.split_at_mut(sums_at + count * 8);
            let (versions, sums) = head[versions_at..].split_at_mut(count * 4);
            let items = if *part == Part::Memory { &mut *memory } else { &mut *disk };
            let units = payload.chunks_exact(part.unit());
            let each = versions.as_chunks::<4>().0.iter().zip(sums.as_chunks_mut::<8>().0).zip(units);
            for (index, ((version, place), unit)) in (*first..).zip(each) {
                let version = u32::from_le_bytes(*version);
                let sum = sum_of(*part, index, version, unit);
                *place = sum.to_le_bytes();
                items.set(index, version, sum);
            }
        }
    }
}

/// Copies what differs from `memory` and `disk`, from `cursor` on, up to a block. Returns whether the round is over.
fn collect(
    guest: &Guest,
    memory: &Items,
    disk: &Items,
    cursor: &mut Cursor,
    batch: &mut Batch,
) -> Result<bool, TransferError> {
    let pages_max = |batch: &Batch| (BLOCK_BYTES_MAX - batch.payload) / PAGE_BYTES;
    let chunk_pages = CHUNK_PAGES as u64;
    let end = guest.memory().chunks_len() as u64 * chunk_pages;
    let stop_at = cursor.page.saturating_add(SCAN_CHUNKS_MAX as u64 * chunk_pages);
    while cursor.page < end {
        if pages_max(batch) == 0 || cursor.page >= stop_at {
            return Ok(false);
        }
        let chunk = usize::try_from(cursor.page / chunk_pages).expect("a chunk number fits");
        let within = usize::try_from(cursor.page % chunk_pages).expect("below the chunk's length");
        let versions = memory_versions(guest.memory(), chunk);
        let differs = |at: &usize| versions[*at] != memory.version(chunk as u64 * chunk_pages + *at as u64);
        let Some(from) = (within..versions.len()).find(differs) else {
            cursor.page = (chunk as u64 + 1) * chunk_pages;
            continue;
        };
        let count = (from..versions.len()).take(pages_max(batch)).take_while(differs).count();
        let first = chunk as u64 * chunk_pages + from as u64;
        batch.lay(Part::Memory, first, &versions[from..from + count]);
        batch.bytes.extend_from_slice(guest.memory().pages(first, count).expect("it has versions"));
        cursor.page = first + count as u64;
    }
    let versions = guest.disk().versions();
    let differs = |at: &usize| versions[*at] != disk.version(*at as u64);
    loop {
        let room = (BLOCK_BYTES_MAX - batch.payload) / DISK_BLOCK_BYTES;
        let at = usize::try_from(cursor.block).expect("a block number fits");
        let Some(from) = (at..versions.len()).find(differs) else { return Ok(true) };
        if room == 0 {
            return Ok(false);
        }
        let count = (from..versions.len()).take(room).take_while(differs).count();
        let place = batch.lay(Part::Disk, from as u64, &versions[from..from + count]);
        batch.bytes.resize(place + count * DISK_BLOCK_BYTES, 0);
        guest.disk().read(from as u64, &mut batch.bytes[place..])?;
        cursor.block = (from + count) as u64;
    }
}

/// Bytes of pages and blocks of which the target does not have the present version.
fn dirty_bytes(sending: &Sending<'_>) -> Result<u64, TransferError> {
    let mut bytes = 0;
    let mut chunk = 0;
    loop {
        // Both locks for a slice at a time, the guest's first, as everywhere.
        let cell = sending.offer.cell.lock();
        let inner = sending.lock()?;
        let end = cell.guest.memory().chunks_len();
        let stop = end.min(chunk + SCAN_CHUNKS_MAX);
        for at in chunk..stop {
            let versions = (at as u64 * CHUNK_PAGES as u64..).zip(memory_versions(cell.guest.memory(), at));
            bytes += versions.filter(|(page, v)| inner.memory.version(*page) != **v).count() as u64 * PAGE_BYTES as u64;
        }
        chunk = stop;
        if chunk == end {
            let blocks = (0..).zip(cell.guest.disk().versions());
            let dirty = blocks.filter(|(block, v)| inner.disk.version(*block) != **v).count() as u64;
            return Ok(bytes + dirty * DISK_BLOCK_BYTES as u64);
        }
    }
}

async fn pump<W: AsyncWrite + Unpin>(sending: &Sending<'_>, writer: &mut W) -> Result<(), TransferError> {
    let mut batch = Batch::default();
    let mut pace = Pace::new(sending.offer.clock.now());
    loop {
        let stood = standing(sending);
        let dirty = dirty_bytes(sending)?;
        {
            let mut inner = sending.lock()?;
            inner.progress.remaining_bytes = dirty;
            inner.sent_of_round = 0;
            inner.counted = sending.offer.clock.now();
        }
        let mut cursor = Cursor::default();
        loop {
            wait_for_room(sending).await?;
            batch.clear();
            let over = {
                let cell = sending.offer.cell.lock();
                let inner = sending.lock()?;
                collect(&cell.guest, &inner.memory, &inner.disk, &mut cursor, &mut batch)?
            };
            if batch.payload > 0 {
                {
                    let mut inner = sending.lock()?;
                    let Inner { memory, disk, .. } = &mut *inner;
                    batch.finish(memory, disk);
                    inner.in_flight.0 += batch.payload as u64;
                    inner.sent_of_round += batch.payload as u64;
                    inner.progress.sent_bytes += batch.payload as u64;
                }
                write(writer, &batch.bytes).await?;
                let cap = sending.lock()?.bytes_per_second_max;
                pace.wait(sending.offer.clock.clone(), cap, batch.payload as u64).await;
            }
            if over {
                break;
            }
        }
        let dirty = dirty_bytes(sending)?;
        let rounds = {
            let mut inner = sending.lock()?;
            inner.progress.rounds += 1;
            inner.progress.dirty_bytes = dirty;
            inner.progress.remaining_bytes = dirty;
            inner.sent_of_round = 0;
            inner.counted = sending.offer.clock.now();
            inner.progress.rounds
        };
        match stood {
            Some((turn, registers)) if dirty == 0 => finish(sending, writer, turn, registers).await?,
            Some(_) | None => {
                send_control(writer, &Control::Mark { rounds, dirty_bytes: dirty }).await?;
                writer.flush().await?;
                if standing(sending).is_none() {
                    let _ = tokio::time::timeout(ROUND_PAUSE_MS.duration(), sending.offer.changed.notified()).await;
                }
            }
        }
    }
}

/// The turn and the registers of a guest that is paused.
fn standing(sending: &Sending<'_>) -> Option<(u64, Registers)> {
    let cell = sending.offer.cell.lock();
    (cell.motion() == Motion::Paused).then(|| (cell.turn(), cell.guest.registers()))
}

/// Says that this was everything, and waits until the target verified it and the guest goes on.
async fn finish<W: AsyncWrite + Unpin>(
    sending: &Sending<'_>,
    writer: &mut W,
    turn: u64,
    registers: Registers,
) -> Result<(), TransferError> {
    let still = || standing(sending).is_some_and(|(now, _)| now == turn);
    if !still() {
        return Ok(());
    }
    fill_unknown_sums(sending)?;
    let digest = {
        let inner = sending.lock()?;
        digest_of(&inner.memory, &inner.disk)
    };
    sending.lock()?.verified = None;
    send_control(writer, &Control::End { registers, digest }).await?;
    writer.flush().await?;
    let verified = tokio::time::timeout(STALL_MS_MAX.duration(), async {
        while still() {
            if let Some(theirs) = sending.lock()?.verified {
                return if theirs == digest || planted::is(Bug::WrongOffset) {
                    Ok(())
                } else {
                    Err(TransferError::Digest { ours: digest, theirs })
                };
            }
            tokio::select! {
                biased;
                () = sending.offer.changed.notified() => {}
                () = sending.offer.heard.notified() => {}
            }
        }
        Ok(())
    });
    verified.await.map_err(|_| TransferError::Stalled)??;
    if still() {
        sending.lock()?.progress.drained = true;
    }
    while still() {
        sending.offer.changed.notified().await;
    }
    sending.lock()?.progress.drained = false;
    Ok(())
}

/// Checksums of what the target had before this offer began are made from the guest, which is paused.
fn fill_unknown_sums(sending: &Sending<'_>) -> Result<(), TransferError> {
    let cell = sending.offer.cell.lock();
    let mut inner = sending.lock()?;
    let guest = &cell.guest;
    let Inner { memory, disk, .. } = &mut *inner;
    let mut block = vec![0; DISK_BLOCK_BYTES];
    for (part, items) in [(Part::Memory, memory), (Part::Disk, disk)] {
        for at in 0..items.versions.len() {
            let (version, index) = (items.versions[at], at as u64);
            if version == 0 || items.sums[at] != 0 {
                continue;
            }
            items.sums[at] = match part {
                Part::Memory => sum_of(part, index, version, guest.memory().pages(index, 1).unwrap_or(&[])),
                Part::Disk => {
                    guest.disk().read(index, &mut block)?;
                    sum_of(part, index, version, &block)
                }
            };
        }
    }
    Ok(())
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> Result<(), TransferError> {
    // In slices, so that a slow link is told from a dead one.
    for slice in bytes.chunks(WRITE_BYTES) {
        let written = tokio::time::timeout(STALL_MS_MAX.duration(), writer.write_all(slice)).await;
        written.map_err(|_| TransferError::Stalled)??;
    }
    let flushed = tokio::time::timeout(STALL_MS_MAX.duration(), writer.flush()).await;
    Ok(flushed.map_err(|_| TransferError::Stalled)??)
}

/// Waits until another block may be in flight.
async fn wait_for_room(sending: &Sending<'_>) -> Result<(), TransferError> {
    loop {
        let (sent, acknowledged) = sending.lock()?.in_flight;
        if sent - acknowledged + BLOCK_BYTES_MAX as u64 <= TRANSFER_BUFFER_BYTES_MAX as u64 {
            return Ok(());
        }
        let heard = tokio::time::timeout(STALL_MS_MAX.duration(), sending.offer.heard.notified()).await;
        if heard.is_err() && sending.lock()?.in_flight.1 == acknowledged {
            return Err(TransferError::Stalled);
        }
    }
}

/// Keeps to a cap of bytes per second.
struct Pace {
    free_at: Tick,
}

impl Pace {
    fn new(now: Tick) -> Pace {
        Pace { free_at: now }
    }

    async fn wait(&mut self, clock: Clock, cap: Option<u64>, bytes: u64) {
        let Some(cap) = cap.filter(|cap| *cap > 0) else { return };
        let now = clock.now();
        let cost = Millis(bytes.saturating_mul(1_000) / cap);
        self.free_at = self.free_at.max(now).plus(cost);
        tokio::time::sleep(self.free_at.since(now).duration()).await;
    }
}
