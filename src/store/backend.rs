//! Media under redb. Owns: the shared handle to one, and a medium that fails as disks do.
//! Always: a faulty disk is a function of what was asked of it, its faults and seeds.
//! Not here: what is promised in spite of it (`mod.rs`).

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// A medium that redb and whoever made it both hold.
#[derive(Clone)]
pub struct SharedBackend(Arc<dyn StorageBackend>);

impl SharedBackend {
    /// Shares `backend`.
    pub fn new(backend: impl StorageBackend) -> SharedBackend {
        SharedBackend(Arc::new(backend))
    }
    /// A medium in memory, without faults.
    pub fn memory() -> SharedBackend {
        SharedBackend::new(redb::backends::InMemoryBackend::new())
    }
}

impl fmt::Debug for SharedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StorageBackend for SharedBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

/// What a write reaches at once: a disk writes whole sectors.
pub const SECTOR_BYTES: usize = 512;

/// Which of the unsynced changes are on disk after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None of them.
    None,
    /// All of them.
    All,
    /// The n-th alone, from 0.
    Only(usize),
    /// All but the n-th, from 0.
    Without(usize),
    /// Each with a chance of one half, by this seed.
    Subset(u64),
}

/// Called at the beginning of each sync with its number; a slow disk waits in it.
pub type SyncHook = Arc<dyn Fn(u64) + Send + Sync>;

/// What goes wrong, and when. Operations are counted from 1 since [`FaultBackend::set_faults`]; a change of length
/// counts as a write.
#[derive(Clone, Default)]
pub struct Faults {
    /// The machine stops in this write: its sectors are among the unsynced, and nothing answers any more.
    pub crash_at_write: Option<u64>,
    /// The machine stops in this sync, before it has any effect.
    pub crash_at_sync: Option<u64>,
    /// This write finds the disk full.
    pub full_at_write: Option<u64>,
    /// The disk stays full from there on.
    pub full_stays: bool,
    /// This sync fails, and later ones say that all is well, though what was unsynced never reaches the disk.
    pub fail_sync: Option<u64>,
    /// This read fails.
    pub fail_read: Option<u64>,
    /// Called in each sync.
    pub on_sync: Option<SyncHook>,
}

/// A change that no sync has made durable.
#[derive(Debug, Clone)]
enum Change {
    Sector { index: usize, bytes: Box<[u8; SECTOR_BYTES]> },
    Length(usize),
}

#[derive(Debug, Clone)]
struct Unsynced {
    change: Change,
    /// A sync failed over it: the system takes it for written and will not try again.
    given_up: bool,
}

/// Operations so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Operations {
    /// Writes and changes of length.
    pub writes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Reads.
    pub reads: u64,
}

#[derive(Default)]
struct Disk {
    /// What survives a crash for certain.
    durable: Vec<u8>,
    /// What reads show: the system's cache.
    cached: Vec<u8>,
    unsynced: Vec<Unsynced>,
    faults: Faults,
    done: Operations,
    stopped: bool,
}

/// A medium in memory that fails as disks do. Deterministic: the same operations, faults and seeds give the same
/// bytes. A clone is another handle to the same disk.
#[derive(Clone, Default)]
pub struct FaultBackend(Arc<Mutex<Disk>>);

impl fmt::Debug for FaultBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk();
        write!(f, "FaultBackend({} bytes, {} unsynced changes)", disk.cached.len(), disk.unsynced.len())
    }
}

impl FaultBackend {
    /// A disk that holds `image`, all of it durable.
    pub fn holding(image: Vec<u8>) -> FaultBackend {
        FaultBackend(Arc::new(Mutex::new(Disk { cached: image.clone(), durable: image, ..Disk::default() })))
    }

    /// From now on these faults, counted from now.
    pub fn set_faults(&self, faults: Faults) {
        let mut disk = self.disk();
        disk.faults = faults;
        disk.done = Operations::default();
    }

    /// The process or the machine stops now: nothing answers any more. What it left is in the images.
    pub fn stop(&self) {
        self.disk().stopped = true;
    }

    /// Operations since [`FaultBackend::set_faults`].
    pub fn operations(&self) -> Operations {
        self.disk().done
    }

    /// How many changes are unsynced: what [`Keep::Only`] counts.
    pub fn unsynced(&self) -> usize {
        self.disk().unsynced.len()
    }

    /// A process died and another goes on with the disk as it is, unsynced changes included, without faults. This handle
    /// and its clones answer no more.
    pub fn take_over(&self) -> FaultBackend {
        let mut disk = self.disk();
        let left = std::mem::take(&mut *disk);
        disk.stopped = true;
        let heir = Disk { durable: left.durable, cached: left.cached, unsynced: left.unsynced, ..Disk::default() };
        FaultBackend(Arc::new(Mutex::new(heir)))
    }

    /// What a process that starts now reads: the disk went on, the process did not.
    pub fn cached_image(&self) -> Vec<u8> {
        self.disk().cached.clone()
    }

    /// What is on disk if the machine stops now and the unsynced changes in `keep` made it there.
    pub fn crash_image(&self, keep: Keep) -> Vec<u8> {
        let disk = self.disk();
        let mut image = disk.durable.clone();
        let mut random = match keep {
            Keep::Subset(seed) => fastrand::Rng::with_seed(seed),
            _ => fastrand::Rng::with_seed(0),
        };
        for (n, unsynced) in disk.unsynced.iter().enumerate() {
            let kept = match keep {
                Keep::None => false,
                Keep::All => true,
                Keep::Only(only) => n == only,
                Keep::Without(without) => n != without,
                Keep::Subset(_) => random.bool(),
            };
            if kept {
                apply(&mut image, &unsynced.change);
            }
        }
        image
    }

    /// Flips one bit at rest.
    pub fn flip_bit(&self, bit: usize) {
        let mut disk = self.disk();
        let Disk { durable, cached, .. } = &mut *disk;
        for image in [durable, cached] {
            if let Some(byte) = image.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// Cuts the disk's content off at `len`.
    pub fn truncate(&self, len: usize) {
        let mut disk = self.disk();
        disk.durable.truncate(len);
        disk.cached.truncate(len);
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(len) => image.resize(*len, 0),
        Change::Sector { index, bytes } => {
            // Beyond the end there is nothing to write to: the change of length did not make it.
            let start = index * SECTOR_BYTES;
            if start < image.len() {
                let end = image.len().min(start + SECTOR_BYTES);
                image[start..end].copy_from_slice(&bytes[..end - start]);
            }
        }
    }
}

impl Disk {
    fn alive(&self) -> io::Result<()> {
        if self.stopped { Err(io::Error::other("the machine has stopped")) } else { Ok(()) }
    }

    fn change(&mut self, changes: impl FnOnce(&Disk) -> Vec<Change>) -> io::Result<()> {
        self.alive()?;
        self.done.writes += 1;
        if let Some(full) = self.faults.full_at_write
            && (self.done.writes == full || (self.faults.full_stays && self.done.writes > full))
        {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        for change in changes(self) {
            apply(&mut self.cached, &change);
            self.unsynced.push(Unsynced { change, given_up: false });
        }
        if self.faults.crash_at_write == Some(self.done.writes) {
            self.stopped = true;
        }
        self.alive()
    }

    fn sync(&mut self) -> io::Result<()> {
        self.alive()?;
        if self.faults.crash_at_sync == Some(self.done.syncs) {
            self.stopped = true;
            return self.alive();
        }
        if self.faults.fail_sync == Some(self.done.syncs) {
            for unsynced in &mut self.unsynced {
                unsynced.given_up = true;
            }
            return Err(io::Error::other("the disk reports a lost write"));
        }
        let mut still_open: Vec<Unsynced> = Vec::new();
        for unsynced in std::mem::take(&mut self.unsynced) {
            if unsynced.given_up {
                still_open.push(unsynced);
                continue;
            }
            apply(&mut self.durable, &unsynced.change);
            if let Change::Sector { index, .. } = unsynced.change {
                // Written again and synced: what was given up there can't come back.
                still_open.retain(|old| !matches!(old.change, Change::Sector { index: old, .. } if old == index));
            }
        }
        self.unsynced = still_open;
        Ok(())
    }
}

impl StorageBackend for FaultBackend {
    fn len(&self) -> io::Result<u64> {
        let disk = self.disk();
        disk.alive()?;
        Ok(disk.cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk();
        disk.alive()?;
        disk.done.reads += 1;
        if disk.faults.fail_read == Some(disk.done.reads) {
            return Err(io::Error::other("the disk can't read there"));
        }
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = start.checked_add(out.len()).and_then(|end| disk.cached.get(start..end));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.disk().change(|_| vec![Change::Length(len)])
    }

    fn sync_data(&self) -> io::Result<()> {
        let (hook, number) = {
            let mut disk = self.disk();
            disk.alive()?;
            disk.done.syncs += 1;
            (disk.faults.on_sync.clone(), disk.done.syncs)
        };
        // Not under the lock: reads go on while a disk is slow to sync.
        if let Some(hook) = hook {
            hook(number);
        }
        self.disk().sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(data.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let mut disk = self.disk();
        if end > disk.cached.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        disk.change(|disk| {
            (start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES))
                .map(|index| {
                    let mut bytes = Box::new([0; SECTOR_BYTES]);
                    let from = index * SECTOR_BYTES;
                    let old = &disk.cached[from..disk.cached.len().min(from + SECTOR_BYTES)];
                    bytes[..old.len()].copy_from_slice(old);
                    let (low, high) = (from.max(start), (from + SECTOR_BYTES).min(end));
                    bytes[low - from..high - from].copy_from_slice(&data[low - start..high - start]);
                    Change::Sector { index, bytes }
                })
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> FaultBackend {
        let disk = FaultBackend::holding(vec![0; 2 * SECTOR_BYTES]);
        disk.write(500, &[1; 24]).unwrap();
        disk
    }

    #[test]
    fn a_crash_keeps_the_chosen_sectors() {
        let disk = disk();
        assert_eq!(disk.unsynced(), 2);
        assert_eq!(disk.crash_image(Keep::None), vec![0; 1024]);
        assert_eq!(disk.crash_image(Keep::All), disk.cached_image());
        let first = disk.crash_image(Keep::Only(0));
        assert_eq!((first[511], first[512]), (1, 0));
        let second = disk.crash_image(Keep::Without(0));
        assert_eq!((second[511], second[512]), (0, 1));
        assert_eq!(disk.crash_image(Keep::Subset(7)), disk.crash_image(Keep::Subset(7)));
        disk.sync_data().unwrap();
        assert_eq!(disk.crash_image(Keep::None), disk.cached_image());
    }

    #[test]
    fn what_a_failed_sync_gave_up_no_later_sync_saves() {
        let disk = disk();
        disk.set_faults(Faults { fail_sync: Some(1), ..Faults::default() });
        assert!(disk.sync_data().is_err());
        disk.write(0, &[2]).unwrap();
        disk.sync_data().unwrap();
        let image = disk.crash_image(Keep::None);
        // The first sector was written again, whole; the second is lost though reads still show it.
        assert_eq!((image[0], image[511], image[512]), (2, 1, 0));
        assert_eq!(disk.cached_image()[512], 1);
    }

    #[test]
    fn a_length_that_did_not_make_it_takes_its_sectors_along() {
        let disk = FaultBackend::holding(vec![0; SECTOR_BYTES]);
        disk.set_len(3 * SECTOR_BYTES as u64).unwrap();
        disk.write(SECTOR_BYTES as u64, &[9; SECTOR_BYTES]).unwrap();
        assert_eq!(disk.crash_image(Keep::Without(0)).len(), SECTOR_BYTES);
        assert_eq!(disk.crash_image(Keep::All)[SECTOR_BYTES], 9);
    }

    #[test]
    fn after_a_crash_nothing_answers() {
        let disk = disk();
        disk.set_faults(Faults { crash_at_write: Some(1), ..Faults::default() });
        assert!(disk.write(0, &[3]).is_err());
        assert!(disk.sync_data().is_err() && disk.read(0, &mut [0]).is_err() && disk.len().is_err());
        assert_eq!(disk.crash_image(Keep::All)[0], 3);
    }
}
