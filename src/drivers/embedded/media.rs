//! Where a host keeps what outlives its process. Owns: the seam between a host and its files, real or simulated.
//! Always: the rules, slots and transfers above it are the same on both. Not here: what a simulated machine does to
//! its files (`simulated.rs`), the durable map (`state.rs`), what a disk is (`disk.rs`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tokio::task::JoinError;

use super::console::Console;
use super::simulated::{SimFile, SimMedia};
use crate::types::{HostName, VmId};

/// What a host's paths lead to.
#[derive(Clone)]
pub enum Media {
    /// Files of this machine.
    Files,
    /// Files of a simulated one: no thread, no system call, and every failure on demand.
    Simulated(SimMedia),
}

/// An open file.
#[derive(Debug)]
pub enum Raw {
    /// Of this machine.
    File(File),
    /// Of a simulated one.
    Simulated(SimFile),
}

impl Media {
    /// Makes a directory that only its owner may enter.
    pub fn make_directory(&self, path: &Path) -> io::Result<()> {
        match self {
            Media::Files => make_directory(path),
            Media::Simulated(_) => Ok(()),
        }
    }

    /// An empty file, whatever was there before.
    pub fn create(&self, path: &Path) -> io::Result<Raw> {
        match self {
            Media::Files => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path).map(Raw::File)
            }
            Media::Simulated(media) => media.create(path).map(Raw::Simulated),
        }
    }

    /// A file that is there.
    pub fn open(&self, path: &Path) -> io::Result<Raw> {
        match self {
            Media::Files => OpenOptions::new().read(true).write(true).open(path).map(Raw::File),
            Media::Simulated(media) => media.open(path).map(Raw::Simulated),
        }
    }

    /// Whether there is such a file.
    pub fn exists(&self, path: &Path) -> bool {
        match self {
            Media::Files => path.exists(),
            Media::Simulated(media) => media.exists(path),
        }
    }

    /// Removes a file.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match self {
            Media::Files => std::fs::remove_file(path),
            Media::Simulated(media) => media.remove(path),
        }
    }

    /// Gives a file another name.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Media::Files => std::fs::rename(from, to),
            Media::Simulated(media) => media.rename(from, to),
        }
    }

    /// The files of a directory.
    pub fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        match self {
            Media::Files => Ok(std::fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect()),
            Media::Simulated(media) => Ok(media.list(directory)),
        }
    }

    /// The console of `vm`, kept in `path` where consoles are files.
    pub fn console(&self, path: &Path, vm: VmId, host: &HostName) -> io::Result<Console> {
        match self {
            Media::Files => Console::open(path, host),
            Media::Simulated(media) => Ok(Console::told(media.witness(), vm, host)),
        }
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        match self {
            Media::Files => getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)),
            Media::Simulated(media) => media.random(),
        }
    }

    /// Runs what waits for a disk where it may wait: in a thread of its own. A simulated disk takes virtual time.
    pub async fn blocking<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R, JoinError> {
        match self {
            Media::Files => tokio::task::spawn_blocking(work).await,
            Media::Simulated(media) => {
                media.take_time().await;
                Ok(work())
            }
        }
    }
}

impl Raw {
    /// Writes all of `bytes` at `offset`.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Raw::File(file) => file.write_all_at(bytes, offset),
            Raw::Simulated(file) => file.write_all_at(bytes, offset),
        }
    }

    /// Fills `out` from `offset` on.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Raw::File(file) => file.read_exact_at(out, offset),
            Raw::Simulated(file) => file.read_exact_at(out, offset),
        }
    }

    /// Cuts it off or lengthens it with zeros, which take no room.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        match self {
            Raw::File(file) => file.set_len(len),
            Raw::Simulated(file) => file.set_len(len),
        }
    }

    /// Makes what was written outlive the machine.
    pub fn sync(&self) -> io::Result<()> {
        match self {
            Raw::File(file) => file.sync_all(),
            Raw::Simulated(file) => file.sync(),
        }
    }

    /// A second handle.
    pub fn try_clone(&self) -> io::Result<Raw> {
        match self {
            Raw::File(file) => file.try_clone().map(Raw::File),
            Raw::Simulated(file) => Ok(Raw::Simulated(file.clone())),
        }
    }

    /// Syncs it where nobody waits for it, then does `then`. A simulated sync takes no time.
    pub fn sync_aside(self, then: impl FnOnce() + Send + 'static) {
        match self {
            Raw::File(file) => {
                tokio::task::spawn_blocking(move || {
                    let _ = file.sync_data();
                    then();
                });
            }
            Raw::Simulated(file) => {
                let _ = file.sync();
                then();
            }
        }
    }
}

/// Makes a directory that only its owner may enter.
pub fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}
