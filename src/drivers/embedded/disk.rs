//! A guest's disk: a sparse file with versions. Owns: its blocks and how often each was written since it was opened.
//! Always: block 0 is the guest's superblock; version 0 means never written, zeros, and is never sent.
//! Safety of bytes: a write outlives the process at once and the machine only after [`Disk::sync`].

use std::io;
use std::path::{Path, PathBuf};

use crate::types::limits::DISK_BLOCK_BYTES;

use super::media::{Media, Raw};
use super::memory::next_version;
use super::program::{DamagedSuperblock, SUPERBLOCK_BYTES, Superblock};

const BLOCK: u64 = DISK_BLOCK_BYTES as u64;

/// What failed on which disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system said no.
    #[error("{doing} disk {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A guest booted from it, and the host has no record of the VM.
    #[error("disk {} holds a guest that the host has no record of; move the file away if it is not needed", path.display())]
    Occupied {
        /// The file.
        path: PathBuf,
    },
    /// The first block makes no sense: the file is not a guest's disk, or was damaged.
    #[error("disk {}: {source}; restore it from a copy or delete the VM", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DamagedSuperblock,
    },
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    file: Raw,
    blocks: u64,
    versions: Vec<u32>,
    windows: Vec<u32>,
    written: u64,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Io { doing, path: path.to_owned(), source }
}

impl Disk {
    /// Makes an empty disk of so many blocks, replacing what an unfinished creation left there.
    pub fn create(path: &Path, blocks: u64) -> Result<Disk, DiskError> {
        Disk::create_on(&Media::Files, path, blocks)
    }

    /// As [`Disk::create`], on any medium.
    pub fn create_on(media: &Media, path: &Path, blocks: u64) -> Result<Disk, DiskError> {
        let file = media.create(path).map_err(failed("creating", path))?;
        file.set_len(blocks.saturating_mul(BLOCK)).map_err(failed("sizing", path))?;
        Ok(Disk::over(path, file, blocks))
    }

    /// Makes the disk of a new VM. A file from which a guest booted is left alone: that the record of it is gone is no
    /// proof that nobody needs it (law 7.3). One that was only begun is made anew.
    pub fn create_new_on(media: &Media, path: &Path, blocks: u64) -> Result<Disk, DiskError> {
        if media.exists(path) && Disk::open_on(media, path, blocks)?.superblock()?.is_some() {
            return Err(DiskError::Occupied { path: path.to_owned() });
        }
        Disk::create_on(media, path, blocks)
    }

    /// Opens a disk that was made before. All versions are 0 until [`Disk::assume_written`].
    pub fn open(path: &Path, blocks: u64) -> Result<Disk, DiskError> {
        Disk::open_on(&Media::Files, path, blocks)
    }

    /// As [`Disk::open`], on any medium.
    pub fn open_on(media: &Media, path: &Path, blocks: u64) -> Result<Disk, DiskError> {
        let file = media.open(path).map_err(failed("opening", path))?;
        Ok(Disk::over(path, file, blocks))
    }

    fn over(path: &Path, file: Raw, blocks: u64) -> Disk {
        Disk { path: path.to_owned(), file, blocks, versions: Vec::new(), windows: Vec::new(), written: 0 }
    }

    /// Empties it: what was received belongs to another life of the guest.
    pub fn clear(&mut self) -> Result<(), DiskError> {
        self.file.set_len(0).map_err(failed("emptying", &self.path))?;
        self.file.set_len(self.blocks * BLOCK).map_err(failed("sizing", &self.path))?;
        self.forget_versions();
        Ok(())
    }

    /// All versions back to 0, the bytes as they are.
    pub fn forget_versions(&mut self) {
        self.versions.clear();
        self.windows.clear();
        self.written = 0;
    }

    /// Says that blocks below `count` hold data which was written before the disk was opened.
    pub fn assume_written(&mut self, count: u64) {
        for block in 0..count {
            if self.version(block) == 0 {
                self.set_version(block, 1);
            }
        }
    }

    fn slot(&mut self, block: u64) -> usize {
        let at = usize::try_from(block).expect("a block number fits the address space");
        if self.versions.len() <= at {
            self.versions.resize(at + 1, 0);
            self.windows.resize(at + 1, 0);
        }
        at
    }

    fn set_version(&mut self, block: u64, version: u32) {
        let at = self.slot(block);
        self.written += u64::from(self.versions[at] == 0 && version > 0);
        self.versions[at] = version;
    }

    /// Writes one block, or its first bytes. Returns whether it is its first write in `window`.
    pub fn write(&mut self, block: u64, window: u32, bytes: &[u8]) -> Result<bool, DiskError> {
        assert!(bytes.len() <= DISK_BLOCK_BYTES && block < self.blocks);
        self.file.write_all_at(bytes, block * BLOCK).map_err(failed("writing", &self.path))?;
        let version = next_version(self.version(block));
        self.set_version(block, version);
        let at = self.slot(block);
        let first = self.windows[at] != window.wrapping_add(1);
        self.windows[at] = window.wrapping_add(1);
        Ok(first)
    }

    /// Takes over blocks from `first` on as another host had them.
    /// Returns how many of them were here in exactly this version already.
    pub fn store(&mut self, first: u64, versions: &[u32], bytes: &[u8]) -> Result<u64, DiskError> {
        assert!(bytes.len() == versions.len() * DISK_BLOCK_BYTES && first + versions.len() as u64 <= self.blocks);
        self.file.write_all_at(bytes, first * BLOCK).map_err(failed("writing", &self.path))?;
        let mut had = 0;
        for (block, theirs) in (first..).zip(versions) {
            had += u64::from(self.version(block) == *theirs);
            self.set_version(block, *theirs);
        }
        Ok(had)
    }

    /// Reads blocks from `first` on into `out`.
    pub fn read(&self, first: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_exact_at(out, first * BLOCK).map_err(failed("reading", &self.path))
    }

    /// How often `block` was written.
    pub fn version(&self, block: u64) -> u32 {
        usize::try_from(block).ok().and_then(|at| self.versions.get(at)).copied().unwrap_or(0)
    }

    /// Versions of all blocks up to the last that was written.
    pub fn versions(&self) -> &[u32] {
        &self.versions
    }

    /// Blocks that were ever written.
    pub fn written_blocks(&self) -> u64 {
        self.written
    }

    /// Blocks that it has.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The superblock; `None` on a disk that no guest has booted from.
    pub fn superblock(&self) -> Result<Option<Superblock>, DiskError> {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        self.read(0, &mut bytes)?;
        Superblock::decode(&bytes).map_err(|source| DiskError::Damaged { path: self.path.clone(), source })
    }

    /// Makes every write so far outlive the machine.
    pub fn sync(&self) -> Result<(), DiskError> {
        self.file.sync().map_err(failed("syncing", &self.path))
    }

    /// A second handle, so that a sync needs no lock.
    pub fn handle(&self) -> Result<Raw, DiskError> {
        self.file.try_clone().map_err(failed("opening", &self.path))
    }

    /// Copies it, holes kept where the file system can.
    pub fn copy_to(&self, target: &Path) -> Result<(), DiskError> {
        let copied = match &self.file {
            Raw::File(_) => std::fs::copy(&self.path, target).map(drop),
            Raw::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        copied.map_err(failed("copying", &self.path))
    }
}
