//! Programs of the embedded hypervisor's guests. Owns: what a deterministic guest is told to do.
//! Not here: how it does it (`drivers/embedded/guest.rs`).

use serde::{Deserialize, Serialize};

/// Where a guest writes in its working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DirtyPattern {
    /// Page after page, round and round: the worst case for pre-copy.
    #[default]
    Sequential,
    /// Pages drawn evenly from the working set.
    Random,
    /// Nine of ten writes go to a tenth of the working set.
    Hot,
}

/// What a guest does. Its memory and disk at tick `n` are a function of this and `n` alone,
/// so that a judge can recompute them without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GuestProgram {
    /// Seed of all contents and of the random patterns.
    pub seed: u64,
    /// Time between two ticks, milliseconds.
    pub tick_ms: u32,
    /// Memory that the guest fills at boot, bytes; the rest is never touched. At most the VM's memory.
    pub resident_bytes: u64,
    /// Part of the resident memory that is written again and again, bytes.
    pub working_set_bytes: u64,
    /// Rate of memory writes, bytes per second.
    pub dirty_bytes_per_second: u64,
    /// Where they go.
    pub pattern: DirtyPattern,
    /// Part of the disk that the guest fills at first boot, bytes. At most the VM's disk.
    pub disk_resident_bytes: u64,
    /// Rate of disk writes, bytes per second, in the filled part.
    pub disk_bytes_per_second: u64,
}

impl Default for GuestProgram {
    /// An idle guest: a tick a second, nothing filled, nothing written.
    fn default() -> Self {
        Self {
            seed: 1,
            tick_ms: 1_000,
            resident_bytes: 0,
            working_set_bytes: 0,
            dirty_bytes_per_second: 0,
            pattern: DirtyPattern::Sequential,
            disk_resident_bytes: 0,
            disk_bytes_per_second: 0,
        }
    }
}
