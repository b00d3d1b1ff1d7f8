//! What a region offers to its API: the trait that the node implements, and what a request brings along.
//! Always: each mutation carries who asks, the request's id, its key and the fingerprint of what it asks.
//! Not here: HTTP (`server.rs`, `routes/`), what is shown (`views.rs`).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};

use super::chaos::{ChaosFault, ChaosFaults, InjectFault};
use super::views::*;
use crate::types::limits::API_PAGE_MAX;
use crate::types::{
    ApiError, ClusterId, ClusterState, ClusterView, ErrorCode, FaultId, JobId, JobState, MigrationPlan,
    MigrationStatus, Millis, PlanId, RegionName, RequestId, VmId, WallMillis,
};

/// An answer that comes later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// Who asks, as the kernel says of the other end of the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, if the kernel knows it.
    pub pid: Option<i32>,
    /// The region at whose socket the caller is, if the request was forwarded.
    pub via: Option<RegionName>,
}

/// What a mutation brings along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestContext {
    /// The request, for audit, errors and operation ids.
    pub request_id: RequestId,
    /// Who asks.
    pub caller: Caller,
    /// The client's key: the same key again gives the same result, with another fingerprint `CONFLICT`.
    /// It is bound to the effect in one transaction.
    pub idempotency_key: Option<String>,
    /// Digest over method, path, query and body.
    pub fingerprint: u64,
    /// How long the client waits, from now.
    pub deadline: Millis,
    /// Decide and answer, but change nothing.
    pub dry_run: bool,
    /// The version of the object that the client has seen (`If-Match`); another one is `PRECONDITION_FAILED`.
    pub if_match: Option<u64>,
    /// Trace id, as it goes into envelopes.
    pub trace: u128,
}

/// What a request is about, as far as it decides which region answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A VM.
    Vm(VmId),
    /// A job.
    Job(JobId),
    /// A plan.
    Plan(PlanId),
    /// A region that the request names.
    Region(RegionName),
}

/// Which region answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// This one.
    Here,
    /// That one: the request is forwarded.
    Elsewhere(RegionName),
}

/// A request on its way to the region that owns its object. It fits into a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The headers that matter beyond the hop: `idempotency-key`, `if-match`.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Who asked, and at whose socket.
    pub caller: Caller,
    /// How long the client still waits.
    pub deadline: Millis,
    /// Trace id.
    pub trace: u128,
}

/// The answer on its way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardedReply {
    /// HTTP status.
    pub status: u16,
    /// The headers that matter to the client.
    pub headers: Vec<(String, String)>,
    /// Body, JSON.
    pub body: Vec<u8>,
}

/// Which page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PageQuery {
    /// Where the page before ended (`next`).
    pub cursor: Option<String>,
    /// Items on the page, 1 to 500; default 100.
    pub limit: Option<usize>,
}

/// Items on a page unless the request says otherwise.
const PAGE_DEFAULT: usize = 100;

impl PageQuery {
    /// How many items go onto the page.
    pub fn limit(&self) -> Result<usize, ApiError> {
        match self.limit {
            None => Ok(PAGE_DEFAULT),
            Some(n) if (1..=API_PAGE_MAX).contains(&n) => Ok(n),
            Some(n) => {
                let text = format!("limit: {n} is not a page size");
                Err(ApiError::new(ErrorCode::InvalidArgument, text).hint(format!("use 1 to {API_PAGE_MAX}")))
            }
        }
    }

    /// The page of `items` that the query asks for. Items are ordered by `key`, and the cursor is the key of the last
    /// one of a page: so a page is right also when items came and went between two requests.
    pub fn cut<T, K>(&self, mut items: Vec<T>, key: impl Fn(&T) -> K) -> Result<Page<T>, ApiError>
    where
        K: Ord + Display + FromStr,
    {
        let limit = self.limit()?;
        if let Some(cursor) = &self.cursor {
            let after: K = cursor.parse().map_err(|_| {
                let shown: String = cursor.chars().take(80).collect();
                ApiError::new(ErrorCode::InvalidArgument, format!("cursor: '{shown}' is not a cursor of this list"))
                    .hint("pass `next` of the page before, or leave the cursor out to begin at the first page")
            })?;
            items.retain(|item| key(item) > after);
        }
        items.sort_by_key(&key);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(|item| key(item).to_string()) } else { None };
        Ok(Page { items, next, warnings: Vec::new() })
    }
}

/// Which clusters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterFilter {
    /// Only of this region.
    pub region: Option<RegionName>,
    /// Only in this state.
    pub state: Option<ClusterState>,
}

impl ClusterFilter {
    /// Whether it lets `cluster` pass.
    pub fn lets(&self, cluster: &ClusterView) -> bool {
        self.region.as_ref().is_none_or(|region| *region == cluster.region)
            && self.state.is_none_or(|state| state == cluster.state)
    }
}

/// Which VMs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmFilter {
    /// Only of this region.
    pub region: Option<RegionName>,
    /// Only of this cluster.
    pub cluster: Option<ClusterId>,
    /// Only with this observed power.
    pub state: Option<ObservedPower>,
    /// Only of this name.
    pub name: Option<String>,
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only with all of these labels.
    pub labels: BTreeMap<String, String>,
}

impl VmFilter {
    /// Whether it lets `vm` pass.
    pub fn lets(&self, vm: &VmView) -> bool {
        let spec = &vm.record.spec;
        self.region.as_ref().is_none_or(|region| *region == vm.region)
            && self.cluster.as_ref().is_none_or(|cluster| *cluster == vm.record.cluster)
            && self.state.is_none_or(|state| state == vm.power)
            && self.name.as_ref().is_none_or(|name| name == spec.name.as_str())
            && self.namespace.as_ref().is_none_or(|namespace| namespace == spec.namespace.as_str())
            && self.labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
    }
}

/// Which migrations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MigrationFilter {
    /// Only of this VM.
    pub vm: Option<VmId>,
    /// Only in this state.
    pub state: Option<JobState>,
    /// Only with this one of NovaCron's five statuses.
    pub status: Option<String>,
}

impl MigrationFilter {
    /// Whether it lets `job` pass.
    pub fn lets(&self, job: &MigrationStatus) -> bool {
        self.vm.is_none_or(|vm| vm == job.vm)
            && self.state.is_none_or(|state| state == job.state)
            && self.status.as_ref().is_none_or(|status| *status == job.status)
    }
}

/// A record of the audit: a mutation, who asked for it, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// The request.
    pub request_id: RequestId,
    /// When it came in.
    pub at: WallMillis,
    /// Who asked.
    pub caller: Caller,
    /// HTTP method.
    pub method: String,
    /// Path.
    pub path: String,
    /// Its key.
    pub idempotency_key: Option<String>,
    /// Why, in the caller's words (`--reason`).
    pub reason: Option<String>,
    /// Whether nothing was to be changed.
    pub dry_run: bool,
    /// HTTP status of the answer.
    pub status: u16,
    /// The error's code, if it was refused or failed.
    pub code: Option<ErrorCode>,
    /// How long it took.
    pub took_ms: Millis,
}

crate::stored!(AuditRecord, b"audt");

/// A region, as its API needs it. Implemented by the node.
///
/// Views hold what the region knows, with its age: no read waits for another region, except by [`Region::forward`].
pub trait Region: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> RegionName;
    /// An id for a request that just came in.
    fn next_request(&self) -> RequestId;
    /// Which region answers for `target`. Unknown things are `Here`, where they are then not found.
    fn locate(&self, target: Target) -> Answer<'_, Whereabouts>;
    /// Has `to` execute a request ([`super::Api::dispatch`]). Fails `UNAVAILABLE` if it certainly was not delivered,
    /// `OUTCOME_UNKNOWN` if it may have been.
    fn forward(&self, to: RegionName, request: Forwarded) -> Answer<'_, ForwardedReply>;

    /// Whether it takes new work; `UNAVAILABLE` with the reason while it does not.
    fn ready(&self) -> Answer<'_, ()>;
    /// The federation as this region sees it.
    fn status(&self) -> Answer<'_, FederationStatus>;
    /// Clusters of all regions, ordered by (region, id).
    fn clusters(&self, filter: ClusterFilter, page: PageQuery) -> Answer<'_, Page<ClusterView>>;
    /// One cluster; `CONFLICT` if several regions have one of that id and `region` is not given.
    fn cluster(&self, id: ClusterId, region: Option<RegionName>) -> Answer<'_, ClusterView>;
    /// What all clusters have, or those of one region.
    fn inventory(&self, region: Option<RegionName>) -> Answer<'_, ResourceInventory>;
    /// VMs of all regions, as far as known here, ordered by id.
    fn vms(&self, filter: VmFilter, page: PageQuery) -> Answer<'_, Page<VmView>>;
    /// One VM, as known here.
    fn vm(&self, id: VmId) -> Answer<'_, VmView>;
    /// Where a VM would go, without creating it.
    fn explain_placement(&self, request: CreateVm) -> Answer<'_, PlacementDecision>;
    /// A plan of this region.
    fn plan(&self, id: PlanId) -> Answer<'_, MigrationPlan>;
    /// Migrations out of this region, ordered by id.
    fn migrations(&self, filter: MigrationFilter, page: PageQuery) -> Answer<'_, Page<MigrationStatus>>;
    /// One of them.
    fn migration(&self, id: JobId) -> Answer<'_, MigrationStatus>;
    /// A job's journal, the entries with a sequence above `after`, at most `limit`, in order.
    fn migration_events(&self, id: JobId, after: u64, limit: usize) -> Answer<'_, Vec<EventView>>;
    /// What happened in this region after `after`, at most `limit`, in order.
    fn events(&self, after: u64, limit: usize) -> Answer<'_, Vec<EventView>>;
    /// Changes whenever there are new events of the region or in a journal.
    fn changes(&self) -> watch::Receiver<u64>;
    /// The live tree of actors.
    fn tree(&self) -> Answer<'_, TreeNode>;
    /// Starts an actor anew, and forgives its crashes: the way out of a parked one. `supervisor` and `actor` are their
    /// names in the tree.
    /// Repeatable.
    fn restart_actor(&self, supervisor: String, actor: String) -> Answer<'_, TreeNode>;
    /// Links to the peers, ordered by name.
    fn links(&self) -> Answer<'_, Vec<LinkView>>;
    /// The store.
    fn store(&self) -> Answer<'_, StoreStats>;
    /// Jobs and owed clean-ups, ordered by id.
    fn operations(&self, page: PageQuery) -> Answer<'_, Page<OperationView>>;
    /// Metrics as Prometheus text.
    fn metrics(&self) -> Answer<'_, String>;

    /// Places, creates and starts a VM.
    fn create_vm(&self, context: RequestContext, request: CreateVm) -> Answer<'_, CreatedVm>;
    /// Has a VM run.
    fn start_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, VmView>;
    /// Has a VM stopped.
    fn stop_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, VmView>;
    /// Deletes a VM and its disk.
    fn delete_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, Deleted>;
    /// Assesses a move and plans it. A blocked check gives a plan that is not executable, not an error.
    fn create_plan(&self, context: RequestContext, request: PlanRequest) -> Answer<'_, MigrationPlan>;
    /// Starts what was planned.
    fn start_migration(&self, context: RequestContext, plan: PlanId) -> Answer<'_, MigrationStatus>;
    /// Cancels a job or frees a parked one.
    fn steer_migration(
        &self,
        context: RequestContext,
        id: JobId,
        steer: Steer,
        request: SteerRequest,
    ) -> Answer<'_, MigrationStatus>;
    /// Faults that were injected, active ones and the last ended ones.
    fn chaos_faults(&self) -> Answer<'_, ChaosFaults>;
    /// Injects one.
    fn inject_fault(&self, context: RequestContext, request: InjectFault) -> Answer<'_, ChaosFault>;
    /// Ends one before its time.
    fn stop_fault(&self, context: RequestContext, id: FaultId) -> Answer<'_, ChaosFault>;
    /// Records a mutation and its end, refused ones too.
    fn audit(&self, record: AuditRecord) -> Answer<'_, ()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RegionNumber;

    #[test]
    fn pages_cover_a_list_once_and_in_order() {
        let all: Vec<u64> = (0..25).rev().collect();
        let mut seen = Vec::new();
        let mut query = PageQuery { cursor: None, limit: Some(10) };
        loop {
            let page = query.cut(all.clone(), |n| *n).unwrap();
            seen.extend(page.items);
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, (0..25).collect::<Vec<_>>());
    }

    #[test]
    fn a_page_that_ends_with_the_list_has_no_next() {
        let page = PageQuery { cursor: None, limit: Some(3) }.cut(vec![1u64, 2, 3], |n| *n).unwrap();
        assert_eq!(page.next, None);
    }

    #[test]
    fn a_page_without_sense_is_refused_with_its_rule() {
        for query in [PageQuery { cursor: None, limit: Some(0) }, PageQuery { cursor: None, limit: Some(501) }] {
            assert_eq!(query.cut(vec![1u64], |n| *n).unwrap_err().code, ErrorCode::InvalidArgument);
        }
        let query = PageQuery { cursor: Some("soup".into()), limit: None };
        assert!(query.cut(vec![1u64], |n| *n).unwrap_err().message.contains("soup"));
    }

    #[test]
    fn the_audit_format_is_frozen() {
        crate::store::fixture::holds(&AuditRecord {
            request_id: RequestId { region: RegionNumber(1), incarnation: 2, number: 3 },
            at: WallMillis(1_700_000_000_000),
            caller: Caller { uid: 1000, gid: 100, pid: Some(77), via: Some("us".parse().unwrap()) },
            method: "POST".into(),
            path: "/v2/vms".into(),
            idempotency_key: Some("k-1".into()),
            reason: Some("moving out".into()),
            dry_run: false,
            status: 409,
            code: Some(ErrorCode::Conflict),
            took_ms: Millis(12),
        });
    }
}
