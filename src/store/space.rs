//! Free space. Owns: how much the state's file system has left, as the writer asks before new work.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where the free space is read from.
#[derive(Debug, Clone)]
pub enum Space {
    /// The file system of this directory.
    Of(PathBuf),
    /// As much as is written here: simulations and tests fill a disk with it.
    Given(Arc<AtomicU64>),
}

impl Space {
    /// Space that never runs out.
    pub fn plenty() -> Space {
        Space::Given(Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// Free bytes for this process; `None` if the system does not say, which refuses nobody: the disk itself will.
    pub fn free(&self) -> Option<u64> {
        match self {
            Space::Of(dir) => {
                let stat = rustix::fs::statvfs(dir.as_path()).ok()?;
                Some(stat.f_bavail.saturating_mul(stat.f_frsize))
            }
            Space::Given(free) => Some(free.load(Ordering::Relaxed)),
        }
    }
}
