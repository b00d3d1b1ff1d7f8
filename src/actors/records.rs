//! What actors keep in the store. Owns: the records of jobs, ledgers, clean-ups and request keys, version 1.
//! Always: a field is never changed in place; a new version is a new type with a `migrate` (style §2.2, convention 8).

use serde::{Deserialize, Serialize};

use crate::decision::migration::source::Source;
use crate::decision::migration::target::Target;
use crate::types::{ClusterId, Fence, JobId, MigrationStatus, PlanId, VmId, VmSpec, WallMillis};

/// An open job on its source's side: where its journal begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceJobRecord {
    /// The state before the first journal entry.
    pub first: Source,
    /// What moves.
    pub spec: VmSpec,
    /// The plan that it came from.
    pub plan: Option<PlanId>,
    /// Cap on the transfer, bytes per second.
    pub bytes_per_second_max: Option<u64>,
    /// Blackout that the plan estimated, microseconds.
    pub planned_downtime_us: u64,
    /// When it began.
    pub started_at: WallMillis,
}

/// An open job on its target's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetJobRecord {
    /// The state before the first journal entry.
    pub first: Target,
    /// When it began.
    pub started_at: WallMillis,
}

/// A checkpoint of a source's side: a cache of the fold, and how far the transfer got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceCheckpoint {
    /// The state after `entries` journal entries.
    pub state: Source,
    /// How many entries it folds.
    pub entries: u64,
    /// The transfer as last seen.
    pub transfer: TransferRecord,
}

/// How far a transfer got, and what its crashes cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransferRecord {
    /// Payload bytes that the target acknowledged.
    pub acknowledged: u64,
    /// Payload bytes sent.
    pub sent: u64,
    /// Payload bytes of a version that the target had.
    pub sent_twice: u64,
    /// Payload bytes of the first round.
    pub total: u64,
    /// What the target had when the job was last resumed.
    pub resumed_from: u64,
    /// How often the job was resumed after a crash.
    pub resumes: u32,
    /// When the guest was paused for the switch, wall milliseconds; zero before.
    pub paused_at: u64,
    /// From the pause to the target's word that it started, microseconds; zero before.
    pub downtime_us: u64,
}

/// A job that is over, on its source's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceJobEnded {
    /// Its last status.
    pub status: MigrationStatus,
}

/// A job that is over, on its target's side: late questions are still answered from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetJobEnded {
    /// Its last state.
    pub last: Target,
    /// When it ended.
    pub ended_at: WallMillis,
}

/// What is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CleanupKind {
    /// Destroy the copy of a VM that moved away, then, after the retention window, its disk (law 7.3).
    Purge,
    /// Remove a VM that its owner deleted.
    Delete,
}

/// A clean-up that is owed at a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cleanup {
    /// What.
    pub kind: CleanupKind,
    /// The job whose transfer retired it, if one did.
    pub job: Option<JobId>,
    /// The VM.
    pub vm: VmId,
    /// Where the copy lies.
    pub cluster: ClusterId,
    /// The fence it was retired or deleted with.
    pub fence: Fence,
    /// Not before.
    pub due: WallMillis,
}

/// What a client's request came to, under its idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Hash over method, path and body.
    pub fingerprint: u64,
    /// The id of what it made or changed.
    pub subject: String,
    /// Counts requests, so that the oldest can be forgotten.
    pub number: u64,
}
