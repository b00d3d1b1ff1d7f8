//! What the API shows and takes, where `types/` has no noun for it.
//! Always: camelCase; what is not authoritative carries its age; lists are never null.
//! Not here: records, plans and jobs themselves (`types/`), who answers (`region.rs`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::types::{
    ClusterId, ClusterView, GuestPower, JobId, Millis, Place, RegionName, RegionNumber, Resources, Severity, VmId,
    VmRecord, VmSpec, WallMillis,
};

/// How something as a whole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// All is well.
    Healthy,
    /// It works, and something needs attention.
    Degraded,
    /// It does not do its work.
    Failed,
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Issue {
    /// Stable code, for example `cluster-disconnected`.
    pub code: String,
    /// How bad.
    pub severity: Severity,
    /// What it is about: a region, a cluster, a job.
    pub subject: String,
    /// What is the matter, with the figures.
    pub message: String,
    /// Since when.
    pub since: WallMillis,
}

/// What this region knows of a region of the federation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegionView {
    /// Its name.
    pub name: RegionName,
    /// Its number, the first part of the ids that it mints.
    pub number: RegionNumber,
    /// Whether it is the region that answers.
    pub this: bool,
    /// Whether a link to it works now; true for the region itself.
    pub reachable: bool,
    /// How many clusters it has said it has.
    pub clusters: u64,
    /// How many VMs it has said it has.
    pub vms: u64,
    /// When what is known of it was observed.
    pub observed_at: Option<WallMillis>,
    /// How old that is; absent if nothing is known.
    pub age_ms: Option<Millis>,
    /// Older than the bound within which a view counts as fresh.
    pub stale: bool,
}

/// Jobs of this region by what they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobCounts {
    /// Waiting in line.
    pub pending: u64,
    /// Under way.
    pub running: u64,
    /// Needing a person.
    pub parked: u64,
    /// At an end and still remembered.
    pub ended: u64,
}

/// The federation as one region sees it (plan: `FederationStatus`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FederationStatus {
    /// The federation.
    pub federation: String,
    /// The region that answers.
    pub region: RegionName,
    /// Its version.
    pub version: String,
    /// The opening of its store that it runs on.
    pub incarnation: u64,
    /// How long the process has run.
    pub uptime_ms: Millis,
    /// The worst of what follows.
    pub health_status: Health,
    /// Clusters known in all regions.
    pub total_clusters: u64,
    /// Of these, how many are connected and freshly seen.
    pub active_clusters: u64,
    /// VMs that this region owns.
    pub vms: u64,
    /// Its jobs.
    pub jobs: JobCounts,
    /// When another region was last heard of; absent if none was.
    pub last_sync: Option<WallMillis>,
    /// Every region, this one included, ordered by name.
    pub regions: Vec<RegionView>,
    /// Links to the peers, ordered by name.
    pub links: Vec<LinkView>,
    /// What a person should know, the worst first.
    pub issues: Vec<Issue>,
    /// What to do about it.
    pub recommendations: Vec<String>,
}

/// State of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum LinkState {
    /// Messages pass.
    Connected,
    /// It is being dialled.
    Connecting,
    /// It does not answer; it is dialled again.
    Down,
    /// The peer was refused, or refuses us; `reason` says why.
    Refused,
}

/// A link to a peer region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinkView {
    /// The peer.
    pub region: RegionName,
    /// Where it was reached or is dialled.
    pub address: String,
    /// State.
    pub state: LinkState,
    /// Why, if it is not connected.
    pub reason: Option<String>,
    /// How long it has been in that state.
    pub since_ms: Millis,
    /// Incarnation of the peer's store, as it presented it.
    pub incarnation: Option<u64>,
    /// Round trip, microseconds, measured.
    pub rtt_us: Option<u64>,
    /// Lost packets, per thousand, measured.
    pub loss_permille: Option<u32>,
    /// Rate of the last bulk transfer, bytes per second.
    pub bytes_per_second: Option<u64>,
    /// How long ago the peer was heard.
    pub age_ms: Option<Millis>,
    /// Longer than a link may be silent.
    pub stale: bool,
    /// Connections made since the process began.
    pub connects: u64,
    /// Handshakes and messages of this peer that were refused.
    pub refused: u64,
    /// Commands to the peer that it has not acknowledged.
    pub outbox: u64,
}

/// What a host says of a guest, or that nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ObservedPower {
    /// Ticking.
    Running,
    /// Paused for a switch.
    Paused,
    /// Defined, its disk is there, it does not run.
    Stopped,
    /// It was running when its host died: its memory is lost, its disk is there.
    Lost,
    /// Being received.
    Receiving,
    /// Destroyed after a transfer; only its disk is kept.
    Retired,
    /// Its host has not said, or not for too long.
    Unknown,
}

impl From<Option<GuestPower>> for ObservedPower {
    fn from(power: Option<GuestPower>) -> Self {
        match power {
            Some(GuestPower::Running) => Self::Running,
            Some(GuestPower::Paused) => Self::Paused,
            Some(GuestPower::Stopped) => Self::Stopped,
            Some(GuestPower::Lost) => Self::Lost,
            Some(GuestPower::Receiving) => Self::Receiving,
            Some(GuestPower::Retired) => Self::Retired,
            None => Self::Unknown,
        }
    }
}

impl ObservedPower {
    /// The word that stands for it in JSON and in filters.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
            Self::Receiving => "receiving",
            Self::Retired => "retired",
            Self::Unknown => "unknown",
        }
    }
}

/// A VM: its owner's record and what its host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmView {
    /// The record of its owner.
    #[serde(flatten)]
    pub record: VmRecord,
    /// The region that owns it.
    pub region: RegionName,
    /// Where it is.
    pub place: Place,
    /// What its host says.
    pub power: ObservedPower,
    /// How long ago the host said so.
    pub power_age_ms: Option<Millis>,
    /// It is caught between hold and decision, and stays paused until the decision is known.
    pub held: bool,
    /// What keeps it from being as its owner wants it.
    #[serde(default)]
    pub trouble: Option<String>,
    /// When the record was read from its owner.
    pub observed_at: WallMillis,
    /// How long ago that is; 0 at the owner itself.
    pub age_ms: Millis,
    /// Older than the bound within which a view counts as fresh.
    pub stale: bool,
}

/// A wish for where a VM goes. What is left out is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PlacementWish {
    /// The region; left out, the region that is asked.
    pub region: Option<RegionName>,
    /// The cluster.
    pub cluster: Option<ClusterId>,
}

/// A VM to create, or to ask about: a `VMSpec` and, if wanted, where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateVm {
    /// What is asked for.
    #[serde(flatten)]
    pub spec: VmSpec,
    /// Where.
    pub placement: PlacementWish,
}

/// How well a cluster suits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterScore {
    /// The cluster.
    pub cluster: Place,
    /// 0 to 1, more is better.
    pub score: f64,
    /// What counted, in words.
    pub reasons: Vec<String>,
    /// The rule that it breaks; absent if it would have done.
    pub rejected_by: Option<String>,
}

/// Where a VM goes and why (plan: `PlacementDecision`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementDecision {
    /// The VM; absent in a dry run.
    #[serde(rename = "vmID")]
    pub vm: Option<VmId>,
    /// Where it goes.
    pub target_cluster: Place,
    /// Why, in words.
    pub reasoning: String,
    /// 0 to 1, more is better.
    pub score: f64,
    /// Every other cluster, the best first.
    pub alternatives: Vec<ClusterScore>,
}

/// Answer to creating a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedVm {
    /// The VM; absent in a dry run.
    pub vm: Option<VmView>,
    /// Where it was placed and why.
    pub placement: PlacementDecision,
}

/// Answer to deleting something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    /// What was deleted.
    pub id: String,
    /// False in a dry run.
    pub deleted: bool,
}

/// A migration to plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanRequest {
    /// The VM.
    #[serde(rename = "vmID")]
    pub vm: VmId,
    /// Where it goes, `region/cluster`.
    #[serde(rename = "targetClusterID")]
    pub target: Place,
    /// Where it is; refused if it is elsewhere. Left out, wherever it is.
    #[serde(rename = "sourceClusterID", default)]
    pub source: Option<Place>,
    /// Limits that differ from the defaults.
    #[serde(default)]
    pub options: crate::types::MigrationOptions,
}

/// A migration to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartMigration {
    /// The plan.
    #[serde(rename = "planID")]
    pub plan: crate::types::PlanId,
}

/// What a person tells a job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SteerRequest {
    /// Why, for the audit.
    pub reason: Option<String>,
}

/// What can be told to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Steer {
    /// Stop before the decision; the VM stays where it is.
    Cancel,
    /// Try a parked job's step again.
    Retry,
    /// Find out how a step of unknown outcome ended.
    Probe,
    /// Undo to a running source, before the decision.
    Undo,
    /// Give a parked job up, leaving what it owes to be cleaned up.
    Abandon,
}

impl Steer {
    /// The word in the path and in the CLI.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Probe => "probe",
            Self::Undo => "undo",
            Self::Abandon => "abandon",
        }
    }
}

/// Sums of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceSum {
    /// What there is.
    pub capacity: Resources,
    /// What VMs use. A migrating VM counts here at its source,
    pub used: Resources,
    /// and here at its target.
    pub reserved: Resources,
    /// What is neither.
    pub free: Resources,
    /// How many VMs.
    pub vms: u64,
}

/// What all clusters have (plan: `ResourceInventory`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceInventory {
    /// Over every cluster listed.
    pub total: ResourceSum,
    /// By region.
    pub regions: BTreeMap<String, ResourceSum>,
    /// Every cluster with the age of what is known of it, ordered by region and id.
    pub clusters: Vec<ClusterView>,
    /// What is missing or old.
    pub warnings: Vec<String>,
    /// When this was put together.
    pub observed_at: WallMillis,
}

impl ResourceInventory {
    /// Sums `clusters` up and warns of those that are stale.
    pub fn of(mut clusters: Vec<ClusterView>, mut warnings: Vec<String>, observed_at: WallMillis) -> Self {
        clusters.sort_by(|a, b| (&a.region, &a.id).cmp(&(&b.region, &b.id)));
        let mut total = ResourceSum::default();
        let mut regions: BTreeMap<String, ResourceSum> = BTreeMap::new();
        for cluster in &clusters {
            for sum in [&mut total, regions.entry(cluster.region.to_string()).or_default()] {
                sum.capacity = sum.capacity.plus(cluster.capacity);
                sum.used = sum.used.plus(cluster.used);
                sum.reserved = sum.reserved.plus(cluster.reserved);
                sum.free = sum.free.plus(cluster.free());
                sum.vms += cluster.vms;
            }
            if cluster.stale {
                let (region, id, age) = (&cluster.region, &cluster.id, cluster.age());
                warnings.push(format!("cluster {region}/{id}: last known state is {age}"));
            }
        }
        Self { total, regions, clusters, warnings, observed_at }
    }
}

/// State of an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ActorState {
    /// At work.
    Running,
    /// Crashed, waiting for its restart.
    Restarting,
    /// Something that it needs is down.
    Waiting,
    /// Set aside until a person looks.
    Parked,
    /// Stopped.
    Stopped,
}

/// An actor and those under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TreeNode {
    /// Its name, for example `job/job-1-3-17`.
    pub name: String,
    /// State.
    pub state: ActorState,
    /// How long it has been in that state.
    pub since_ms: Millis,
    /// Restarts since the process began.
    pub restarts: u64,
    /// Messages that wait.
    pub queue: u64,
    /// How long the oldest of them has waited.
    pub oldest_message_ms: Option<Millis>,
    /// Why it is not running.
    pub reason: Option<String>,
    /// Its children in their order of start.
    #[schema(no_recursion)]
    pub children: Vec<TreeNode>,
}

/// A table of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableStats {
    /// Its name.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Bytes in use.
    pub bytes: u64,
}

/// The region's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreStats {
    /// Where it is.
    pub path: String,
    /// Size of the file.
    pub file_bytes: u64,
    /// Free space of the disk under it.
    pub free_bytes: u64,
    /// Below that new work is refused.
    pub reserve_bytes: u64,
    /// Whether new work is taken.
    pub accepts_work: bool,
    /// Why not.
    pub reason: Option<String>,
    /// How often it was opened.
    pub incarnation: u64,
    /// Commits since it was opened.
    pub commits: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Transactions that wait for the writer.
    pub queue: u64,
    /// Its tables, ordered by name.
    pub tables: Vec<TableStats>,
}

/// A long action: a job, or a clean-up that is owed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationView {
    /// Its id, of a job or of what owes it.
    pub id: String,
    /// `migration`, `cleanUp`.
    pub kind: String,
    /// What it works on.
    pub subject: String,
    /// Its state.
    pub state: String,
    /// 0 to 100, where it can be told.
    pub progress: Option<f64>,
    /// Why it waits or ended as it did.
    pub reason: Option<String>,
    /// The job behind it.
    pub job: Option<JobId>,
    /// When it began.
    pub started_at: WallMillis,
    /// When it ended.
    pub completed_at: Option<WallMillis>,
}

/// Something that happened: in a region, or, from the journal, to one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// Its place in the order of its source; a reader that has seen it asks for what comes after.
    pub sequence: u64,
    /// When.
    pub at: WallMillis,
    /// Where.
    pub region: RegionName,
    /// What kind, for example `vm.created` or a journal entry's name.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// For people.
    pub message: String,
    /// For programs.
    pub data: serde_json::Value,
}

/// One page of a list, in a stable order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass it as `cursor` to get the next page; null on the last one.
    pub next: Option<String>,
    /// What is missing, and why: a region that did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl<T> Page<T> {
    /// The last page, or the only one.
    pub fn last(items: Vec<T>) -> Page<T> {
        Page { items, next: None, warnings: Vec::new() }
    }
}

/// An error document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorDocument {
    /// The error.
    pub error: crate::types::ApiError,
    /// The request, as it stands in the audit.
    pub request_id: String,
}
