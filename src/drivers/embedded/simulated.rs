//! The files of one simulated machine. Owns: their bytes over the deaths of processes and of the machine, and what goes
//! wrong with them. Always: a function of what was asked, the seed and the faults; a process that died writes no more.
//! Not here: who uses them (`media.rs`), the host on them (`sim.rs`).
//!
//! A process's death leaves what it wrote. A machine's leaves what was synced, and of the rest a choice of sectors.
//! Simpler than a real one: names and lengths of files are durable at once, and a full disk refuses every write.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::console::Witness;
use crate::store::{FaultBackend, Faults, Keep, SECTOR_BYTES};
use crate::types::Millis;

/// What one entry of a sparse file holds.
const PAGE: usize = 4096;

/// How a host's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// As by SIGKILL: what it wrote is there.
    Process,
    /// With its machine: of what was not synced only some sectors are there.
    Machine(Keep),
}

/// How much room a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Room {
    /// Enough.
    #[default]
    Plenty,
    /// The n-th write from now on, from 1, finds the disk full; those after it don't.
    NoneAtWrite(u64),
    /// Every write from now on finds the disk full.
    None,
}

type Page = Box<[u8; PAGE]>;

#[derive(Default)]
struct Data {
    len: u64,
    pages: BTreeMap<u64, Page>,
    /// What stood where since the last sync something was written.
    before: BTreeMap<u64, Option<Page>>,
}

struct Inner {
    /// Counts processes; a handle of an earlier one is dead.
    life: u64,
    files: BTreeMap<PathBuf, Arc<Mutex<Data>>>,
    state: FaultBackend,
    state_room: Room,
    disk_room: Room,
    /// Writes to disks since `disk_room` was set.
    writes: u64,
    disk_ms_max: Millis,
    random: fastrand::Rng,
}

struct Machine {
    inner: Mutex<Inner>,
    witness: Arc<dyn Witness>,
}

impl Machine {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of a simulated machine, as one process sees them.
#[derive(Clone)]
pub struct SimMedia {
    machine: Arc<Machine>,
    life: u64,
}

/// An open file of a simulated machine.
#[derive(Clone)]
pub struct SimFile {
    data: Arc<Mutex<Data>>,
    machine: Arc<Machine>,
    life: u64,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = locked(&self.data);
        write!(f, "SimFile({} bytes, {} pages)", data.len, data.pages.len())
    }
}

fn locked(data: &Mutex<Data>) -> MutexGuard<'_, Data> {
    data.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Inner {
    fn alive(&self, life: u64) -> io::Result<()> {
        if self.life == life { Ok(()) } else { Err(dead()) }
    }

    /// A write of a process that lives and finds room.
    fn writes(&mut self, life: u64) -> io::Result<()> {
        self.alive(life)?;
        self.writes += 1;
        match self.disk_room {
            Room::None => Err(io::ErrorKind::StorageFull.into()),
            Room::NoneAtWrite(at) if at == self.writes => Err(io::ErrorKind::StorageFull.into()),
            Room::NoneAtWrite(_) | Room::Plenty => Ok(()),
        }
    }

    fn fill_state(&self) {
        let (full_at_write, full_stays) = match self.state_room {
            Room::Plenty => (None, false),
            Room::NoneAtWrite(at) => (Some(at), false),
            Room::None => (Some(1), true),
        };
        self.state.set_faults(Faults { full_at_write, full_stays, ..Faults::default() });
    }
}

impl SimMedia {
    /// An empty machine whose consoles tell `witness`.
    pub fn new(seed: u64, witness: Arc<dyn Witness>) -> SimMedia {
        let inner = Inner {
            life: 0,
            files: BTreeMap::new(),
            state: FaultBackend::default(),
            state_room: Room::default(),
            disk_room: Room::default(),
            writes: 0,
            disk_ms_max: Millis(0),
            random: fastrand::Rng::with_seed(seed),
        };
        SimMedia { machine: Arc::new(Machine { inner: Mutex::new(inner), witness }), life: 0 }
    }

    /// Who is told what guests do.
    pub(super) fn witness(&self) -> Arc<dyn Witness> {
        Arc::clone(&self.machine.witness)
    }

    /// What a process finds that begins after `death` of the one before, whose handles are dead.
    pub fn after(&self, death: Death) -> SimMedia {
        let mut inner = self.machine.lock();
        inner.life += 1;
        if let Room::NoneAtWrite(at) = inner.state_room {
            // Counted on over the death.
            let left = at.saturating_sub(inner.state.operations().writes);
            inner.state_room = if left > 0 { Room::NoneAtWrite(left) } else { Room::Plenty };
        }
        inner.state = match death {
            Death::Process => inner.state.take_over(),
            Death::Machine(keep) => FaultBackend::holding(inner.state.take_over().crash_image(keep)),
        };
        if let Death::Machine(keep) = death {
            let mut choice = Choice::new(keep);
            for data in inner.files.values() {
                locked(data).lose(&mut choice);
            }
        }
        inner.fill_state();
        SimMedia { machine: Arc::clone(&self.machine), life: inner.life }
    }

    /// The medium of the durable map.
    pub(super) fn state(&self) -> FaultBackend {
        self.machine.lock().state.clone()
    }

    /// From now on the durable map's disk has so much room.
    pub fn set_state_room(&self, room: Room) {
        let mut inner = self.machine.lock();
        inner.state_room = room;
        inner.fill_state();
    }

    /// From now on the guests' disks have so much room.
    pub fn set_disk_room(&self, room: Room) {
        let mut inner = self.machine.lock();
        (inner.disk_room, inner.writes) = (room, 0);
    }

    /// From now on what waits for the disk takes a while up to so long, drawn from the seed.
    pub fn set_disk_time(&self, most: Millis) {
        self.machine.lock().disk_ms_max = most;
    }

    /// Waits as long as a disk takes.
    pub(super) async fn take_time(&self) {
        let wait = {
            let mut inner = self.machine.lock();
            let most = inner.disk_ms_max.0;
            if most == 0 { 0 } else { inner.random.u64(0..=most) }
        };
        if wait > 0 {
            tokio::time::sleep(Millis(wait).duration()).await;
        }
    }

    /// A number from the seed.
    pub fn random(&self) -> u64 {
        self.machine.lock().random.u64(..)
    }

    fn file(&self, data: Arc<Mutex<Data>>) -> SimFile {
        SimFile { data, machine: Arc::clone(&self.machine), life: self.life }
    }

    pub(super) fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut inner = self.machine.lock();
        inner.writes(self.life)?;
        let data = Arc::clone(inner.files.entry(path.to_owned()).or_default());
        locked(&data).set_len(0);
        drop(inner);
        Ok(self.file(data))
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<SimFile> {
        let inner = self.machine.lock();
        inner.alive(self.life)?;
        let data = inner.files.get(path).map(Arc::clone).ok_or_else(missing)?;
        drop(inner);
        Ok(self.file(data))
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        self.machine.lock().files.contains_key(path)
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.machine.lock();
        inner.alive(self.life)?;
        inner.files.remove(path).map(drop).ok_or_else(missing)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.machine.lock();
        inner.alive(self.life)?;
        let data = inner.files.remove(from).ok_or_else(missing)?;
        inner.files.insert(to.to_owned(), data);
        Ok(())
    }

    /// The files of a directory, in order.
    pub fn list(&self, directory: &Path) -> Vec<PathBuf> {
        let inner = self.machine.lock();
        inner.files.keys().filter(|path| path.parent() == Some(directory)).cloned().collect()
    }

    /// Bytes that the guests' disks take, without holes.
    pub fn bytes(&self) -> u64 {
        self.machine.lock().files.values().map(|data| locked(data).pages.len() as u64 * PAGE as u64).sum()
    }
}

impl SimFile {
    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.machine.lock().writes(self.life)?;
        locked(&self.data).write(bytes, offset);
        Ok(())
    }

    pub(super) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.machine.lock().alive(self.life)?;
        locked(&self.data).read(out, offset)
    }

    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.machine.lock().alive(self.life)?;
        locked(&self.data).set_len(len);
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.machine.lock().alive(self.life)?;
        locked(&self.data).before.clear();
        Ok(())
    }
}

/// Which page lies at `offset`, and where in it.
fn place(offset: u64) -> (u64, usize) {
    let within = usize::try_from(offset % PAGE as u64).expect("below a page");
    (offset / PAGE as u64, within)
}

impl Data {
    fn write(&mut self, mut bytes: &[u8], mut offset: u64) {
        self.len = self.len.max(offset + bytes.len() as u64);
        while !bytes.is_empty() {
            let (at, within) = place(offset);
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE - within));
            let pages = &mut self.pages;
            self.before.entry(at).or_insert_with(|| pages.get(&at).cloned());
            let page = pages.entry(at).or_insert_with(|| Box::new([0; PAGE]));
            page[within..within + now.len()].copy_from_slice(now);
            bytes = rest;
            offset += now.len() as u64;
        }
    }

    fn read(&self, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !out.is_empty() {
            let (at, within) = place(offset);
            let length = out.len().min(PAGE - within);
            let (now, rest) = out.split_at_mut(length);
            match self.pages.get(&at) {
                Some(page) => now.copy_from_slice(&page[within..within + length]),
                None => now.fill(0),
            }
            out = rest;
            offset += length as u64;
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) {
        let (last, within) = place(len);
        let _ = self.pages.split_off(&(last + u64::from(within > 0)));
        let _ = self.before.split_off(&(last + u64::from(within > 0)));
        if within > 0
            && let Some(page) = self.pages.get_mut(&last)
        {
            page[within..].fill(0);
        }
        self.len = len;
    }

    /// The machine stops: of what was not synced, what is not chosen is as it was before.
    fn lose(&mut self, choice: &mut Choice) {
        for (at, before) in std::mem::take(&mut self.before) {
            let Some(page) = self.pages.get_mut(&at) else { continue };
            let before = before.unwrap_or_else(|| Box::new([0; PAGE]));
            let sectors = page.as_chunks_mut::<SECTOR_BYTES>().0.iter_mut();
            for (now, before) in sectors.zip(before.as_chunks::<SECTOR_BYTES>().0) {
                if !choice.keeps() {
                    *now = *before;
                }
            }
        }
    }
}

/// Chooses sectors one after the other, as `FaultBackend` does.
struct Choice {
    keep: Keep,
    random: fastrand::Rng,
    next: usize,
}

impl Choice {
    fn new(keep: Keep) -> Choice {
        let seed = if let Keep::Subset(seed) = keep { seed } else { 0 };
        Choice { keep, random: fastrand::Rng::with_seed(seed), next: 0 }
    }

    fn keeps(&mut self) -> bool {
        let number = self.next;
        self.next += 1;
        match self.keep {
            Keep::None => false,
            Keep::All => true,
            Keep::Only(only) => number == only,
            Keep::Without(without) => number != without,
            Keep::Subset(_) => self.random.bool(),
        }
    }
}
