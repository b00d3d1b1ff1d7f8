//! What a move is fenced by, and which streams it uses. Named by drivers and by messages alike.

use serde::{Deserialize, Serialize};

use super::{Attempt, JobId, VmId};

/// One attempt of one job to move one VM: what both ends of a transfer are fenced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SwitchKey {
    /// The VM.
    pub vm: VmId,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: Attempt,
}

/// A stream of a VM's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Channel {
    /// Disk, memory and state in one stream of blocks (the embedded host's).
    Blocks,
    /// A disk.
    Disk,
    /// Memory and device state.
    Memory,
}

/// Which end of a transfer a node opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum End {
    /// The host that has the guest.
    Source,
    /// The host that receives it.
    Target,
}
