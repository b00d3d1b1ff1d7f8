//! What a move is fenced by, and which streams it uses. Named by drivers and by messages alike.

use serde::{Deserialize, Serialize};

use super::{Attempt, Fence, GuestPower, JobId, VmId};

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

/// What a host says of a VM, its definition aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sight {
    /// Its power state.
    pub power: GuestPower,
    /// The highest fence that the host has seen for it.
    pub fence: Fence,
    /// The highest attempt that the host has seen for it.
    pub attempt: Attempt,
    /// The attempt that holds it.
    pub hold: Option<SwitchKey>,
    /// The attempt for which it is paused with an armed watchdog.
    pub paused_for: Option<SwitchKey>,
    /// The attempt whose pause ended without a hold.
    pub spent: Option<SwitchKey>,
    /// What is being received, and whether it is sealed.
    pub receiving: Option<(SwitchKey, bool)>,
    /// Ticks done.
    pub tick: u64,
}

impl Sight {
    /// Whether the guest's memory is gone with a host that died, also if it never ran here: what was received and sealed
    /// is its disk then. Of a VM that is still being received this says nothing.
    pub fn memory_lost(&self) -> bool {
        self.power == GuestPower::Lost || matches!(self.receiving, Some((_, false)))
    }
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
