//! Migrations as clients see them (plan: `MigrationPlan`, `MigrationJob`, `MigrationStatus`).
//! Not here: the state of a running job (`decision/migration/`).

use serde::{Deserialize, Serialize};

use super::{Attempt, Fence, JobId, Millis, Place, PlanId, VmId, WallMillis};

/// What is checked before a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CheckCategory {
    /// CPU, memory, disk.
    Resources,
    /// The link between the regions.
    Network,
    /// Identity and permission.
    Security,
    /// Drivers and formats.
    Compatibility,
    /// Whether it converges and how long it takes.
    Performance,
    /// Policies.
    Compliance,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CheckStatus {
    /// Good.
    Passed,
    /// It may go wrong.
    Warning,
    /// It would go wrong; a failed check of severity `blocking` makes the plan not executable.
    Failed,
    /// It could not be looked at.
    Skipped,
}

/// What a failed check means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// To know.
    Info,
    /// To think about.
    Warning,
    /// The move can't start.
    Blocking,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Stable id, for example `target-capacity`.
    pub id: String,
    /// For people.
    pub name: String,
    /// Its category.
    pub category: CheckCategory,
    /// How it ended.
    pub status: CheckStatus,
    /// What a failure means.
    pub severity: Severity,
    /// What was seen, with the figures.
    pub message: String,
}

/// One step of a plan; from the step table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStep {
    /// The step's name in the step table.
    pub name: String,
    /// What happens in it.
    pub description: String,
    /// Whether it can be undone.
    pub reversible: bool,
}

/// A change of the network that a move brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkChange {
    /// What changes.
    pub description: String,
}

/// A change of storage that a move brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageChange {
    /// What changes.
    pub description: String,
    /// How many bytes it concerns.
    pub bytes: u64,
}

/// A risk of a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationRisk {
    /// How bad.
    pub severity: Severity,
    /// What may happen, and what helps.
    pub description: String,
}

/// What a client may ask of a move.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MigrationOptions {
    /// Cap on the transfer, bytes per second.
    pub bandwidth_limit_bytes_per_second: Option<u64>,
    /// Blackout that is acceptable, milliseconds; default 300.
    pub max_downtime_ms: Option<u64>,
    /// From pause to watchdog, milliseconds; default 10,000.
    pub switch_deadline_ms: Option<u64>,
}

/// A plan (plan: `MigrationPlan`). Durations in the JSON are nanoseconds with an `…Ms` twin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPlan {
    /// Its id.
    pub id: PlanId,
    /// The VM.
    #[serde(rename = "vmID")]
    pub vm: VmId,
    /// Where it is, `region/cluster`.
    #[serde(rename = "sourceClusterID")]
    pub source: Place,
    /// Where it goes.
    #[serde(rename = "targetClusterID")]
    pub target: Place,
    /// What was asked.
    pub options: MigrationOptions,
    /// Estimated blackout, nanoseconds.
    pub estimated_downtime: u64,
    /// The same, milliseconds.
    pub estimated_downtime_ms: f64,
    /// Estimated duration, nanoseconds.
    pub estimated_duration: u64,
    /// The same, milliseconds.
    pub estimated_duration_ms: f64,
    /// Estimated bytes over all rounds.
    pub estimated_bytes: u64,
    /// What will be done, in order.
    pub steps: Vec<MigrationStep>,
    /// What changes in the network.
    pub network_changes: Vec<NetworkChange>,
    /// What changes in storage.
    pub storage_changes: Vec<StorageChange>,
    /// What may go wrong.
    pub risks: Vec<MigrationRisk>,
    /// What was checked.
    pub checks: Vec<Check>,
    /// Whether it can be started.
    pub executable: bool,
    /// The VM's record version that it was made for.
    pub resource_version: u64,
    /// When it was made.
    pub created_at: WallMillis,
    /// After that it can't be started.
    pub expires_at: WallMillis,
}

/// State of a job as clients see it (architecture §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Planned, waiting in line.
    Pending,
    /// Reserving, preparing.
    Preparing,
    /// Copying, converging.
    Transferring,
    /// Pausing, sealed, deciding, switching.
    Finalizing,
    /// Verifying and what comes with it.
    Synchronizing,
    /// Needs a person.
    Parked,
    /// An end: it moved.
    Completed,
    /// An end: it could not, and runs at its source.
    RolledBack,
    /// An end: somebody cancelled it, and it runs at its source.
    Cancelled,
}

impl JobState {
    /// Whether it is an end.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack | Self::Cancelled)
    }
    /// NovaCron's five-valued status (architecture §4).
    pub const fn nova_status(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Preparing | Self::Transferring | Self::Finalizing | Self::Synchronizing | Self::Parked => "running",
            Self::Completed => "completed",
            Self::RolledBack => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How a job stands (plan: `MigrationStatus`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStatus {
    /// The job.
    pub id: JobId,
    /// The plan that it came from.
    #[serde(rename = "planID")]
    pub plan: Option<PlanId>,
    /// The VM.
    #[serde(rename = "vmID")]
    pub vm: VmId,
    /// Where the VM is or was.
    #[serde(rename = "sourceClusterID")]
    pub source: Place,
    /// Where it goes.
    #[serde(rename = "targetClusterID")]
    pub target: Place,
    /// `/v2` state.
    pub state: JobState,
    /// NovaCron's status.
    pub status: String,
    /// The step it is at, by the step table.
    pub phase: String,
    /// 0 to 100; monotone inside a phase.
    pub progress: f64,
    /// The attempt.
    pub attempt: Attempt,
    /// The VM's fence once the job is done.
    pub next_fence: Fence,
    /// Payload bytes of the first round.
    pub bytes_total: u64,
    /// Payload bytes that the target acknowledged.
    pub bytes_acknowledged: u64,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes of a version that the target had.
    pub bytes_sent_twice: u64,
    /// What the target had acknowledged when the job was last resumed after a crash or cut.
    pub resumed_from_bytes: u64,
    /// How often the job was resumed after a crash.
    pub resumes: u32,
    /// Bytes left of the current round.
    pub bytes_remaining: u64,
    /// Bytes per second.
    pub rate: u64,
    /// Dirty rate, bytes per second.
    pub dirty_rate: u64,
    /// Rounds, with the last one, for which the guest stands still.
    pub iterations: u32,
    /// Estimated time to the end, milliseconds.
    pub eta_ms: Option<u64>,
    /// Estimated blackout when the guest was paused, milliseconds.
    pub estimated_downtime_ms: f64,
    /// Blackout as the node measured it from pause to start, milliseconds; the guests' own ticks tell more.
    pub downtime_ms: Option<f64>,
    /// Why it is parked, or why it ended as it did.
    pub reason: Option<String>,
    /// What a person may do with a parked job.
    pub commands: Vec<String>,
    /// When the region last heard of the other side, milliseconds ago.
    pub last_heard_ms: Option<Millis>,
    /// When it began.
    pub started_at: WallMillis,
    /// When it ended.
    pub completed_at: Option<WallMillis>,
}
