//! Snapshots: memory, disk and registers of one moment as files. Owns: their names and format.
//! Always: the guest does not tick while it is written, so the files are of one moment.
//!
//! ```text
//! <directory>/<vm>.memory          raw pages from page 0 to the last chunk of 1 MiB that was written; holes are zeros
//! <directory>/<vm>.disk            the disk as it is: superblock block, then the VM's disk
//! <directory>/<vm>.registers.json  boot, bootTick, tick, lineage
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::disk::DiskError;
use super::guest::{Guest, Registers};
use crate::drivers::SnapshotInfo;
use crate::types::VmId;
use crate::types::units::MIB;

/// Why a snapshot was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk could not be copied.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file could not be written or read.
    #[error("{doing} snapshot file {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where the files of a VM's snapshot lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFiles {
    /// Memory.
    pub memory: PathBuf,
    /// Disk.
    pub disk: PathBuf,
    /// Registers.
    pub registers: PathBuf,
}

impl SnapshotFiles {
    /// Their names in `directory`.
    pub fn of(directory: &Path, vm: VmId) -> SnapshotFiles {
        let named = |what: &str| directory.join(format!("{vm}.{what}"));
        SnapshotFiles { memory: named("memory"), disk: named("disk"), registers: named("registers.json") }
    }

    /// Reads the registers back.
    pub fn read_registers(&self) -> Result<Registers, SnapshotError> {
        let path = &self.registers;
        let failed = |source| SnapshotError::Io { doing: "reading", path: path.clone(), source };
        let text = std::fs::read(path).map_err(failed)?;
        serde_json::from_slice(&text).map_err(|e| failed(io::Error::from(e)))
    }
}

/// Writes a snapshot of `guest` into `directory`, which is made if it is not there.
pub fn write(guest: &Guest, vm: VmId, directory: &Path) -> Result<SnapshotInfo, SnapshotError> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| SnapshotError::Io { doing, path, source }
    };
    std::fs::create_dir_all(directory).map_err(io("making the directory of", directory))?;
    let files = SnapshotFiles::of(directory, vm);
    let memory = File::create(&files.memory).map_err(io("creating", &files.memory))?;
    let chunks = guest.memory().chunks_len();
    memory.set_len(chunks as u64 * MIB).map_err(io("sizing", &files.memory))?;
    for chunk in 0..chunks {
        if let Some(bytes) = guest.memory().chunk_bytes(chunk) {
            memory.write_all_at(bytes, chunk as u64 * MIB).map_err(io("writing", &files.memory))?;
        }
    }
    guest.disk().copy_to(&files.disk)?;
    let registers = serde_json::to_vec(&guest.registers()).map_err(io::Error::from);
    registers.and_then(|text| std::fs::write(&files.registers, text)).map_err(io("writing", &files.registers))?;
    let SnapshotFiles { memory, disk, registers } = files;
    Ok(SnapshotInfo { files: vec![memory, disk, registers], tick: guest.registers().tick })
}
