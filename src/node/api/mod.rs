//! The region behind its API. Owns: how each request becomes a transaction, a message to an actor, or a view.
//! Always: a mutation and its idempotency key are one transaction; a view says how old it is.
//! Not here: HTTP (`admin/`), what actors do afterwards (`actors/`).

mod chaos;
mod issues;
mod journal;
mod migrations;
mod plans;
mod status;
mod tree;
mod vms;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::faults::Faults;
use crate::actors::Supervisor;
use crate::actors::context::Context;
use crate::actors::tables;
use crate::admin::*;
use crate::planted::{self, Bug};
use crate::protocol::TraceId;
use crate::protocol::bodies::{ApiMessage, ApiReply};
use crate::protocol::link::{LinkError, Request};
use crate::protocol::messages::Kind;
use crate::store::{StoreError, TransactError, Txn};
use crate::types::*;

/// One region, as its API sees it.
pub struct RegionApi {
    pub(super) ctx: Arc<Context>,
    pub(super) root: Supervisor,
    /// The supervisors below it, by their names in the tree.
    pub(super) groups: BTreeMap<&'static str, Supervisor>,
    /// Injected faults, if they are allowed.
    pub(super) faults: Option<Arc<Faults>>,
    pub(super) metrics: Arc<dyn Fn() -> String + Send + Sync>,
    pub(super) started: Tick,
    pub(super) addresses: BTreeMap<RegionName, String>,
}

/// Why a transaction of the API wrote nothing.
enum Refused {
    Store(StoreError),
    Api(ApiError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused::Store(error)
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Refused {
        Refused::Api(error)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match refused {
            Refused::Store(error) => error.into(),
            Refused::Api(error) => error,
        }
    }
}

fn api_error(error: TransactError<Refused>) -> ApiError {
    match error {
        TransactError::Store(error) => error.into(),
        TransactError::Refused(refused) => refused.into(),
    }
}

/// What a key came to before: the id of its subject, if the same request was made under it.
///
/// # Errors
/// `CONFLICT` if it was another request.
fn replayed(txn: &mut Txn<'_, '_>, context: &RequestContext) -> Result<Option<String>, Refused> {
    let Some(key) = &context.idempotency_key else { return Ok(None) };
    let Some(before) = tables::request_in(txn, key)? else { return Ok(None) };
    if before.fingerprint != context.fingerprint {
        return Err(key_of_another(key).into());
    }
    Ok(Some(before.subject))
}

fn key_of_another(key: &str) -> ApiError {
    let text = format!("the idempotency key '{key}' was used for another request");
    ApiError::new(ErrorCode::Conflict, text).hint("use a new key for a new request")
}

/// Binds what the request came to to its key, in the same transaction.
fn remember(txn: &mut Txn<'_, '_>, context: &RequestContext, subject: impl ToString) -> Result<(), Refused> {
    if let Some(key) = &context.idempotency_key {
        tables::put_request(txn, key, context.fingerprint, &subject.to_string())?;
    }
    Ok(())
}

fn not_found(what: &str, id: impl ToString) -> ApiError {
    // Plans are many and short-lived: nobody lists them.
    let hint = match what {
        "migration plan" => "plans are kept for a while only; make a new one: novafed migration plan".to_owned(),
        listed => format!("list what there is with: novafed {listed} list"),
    };
    ApiError::new(ErrorCode::NotFound, format!("there is no {what} {} here", id.to_string())).hint(hint)
}

fn check_version(context: &RequestContext, subject: impl ToString, version: u64) -> Result<(), ApiError> {
    match context.if_match {
        Some(seen) if seen != version => Err(ApiError::new(
            ErrorCode::PreconditionFailed,
            format!("{} is at version {version}, the request is for version {seen}", subject.to_string()),
        )
        .hint("read it again and decide anew")),
        Some(_) | None => Ok(()),
    }
}

impl RegionApi {
    /// Its context.
    pub fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    async fn locate_now(&self, target: Target) -> Result<Whereabouts, ApiError> {
        let region = match target {
            Target::Region(region) => Some(region),
            Target::Job(job) => self.region_of(job.region),
            Target::Plan(plan) => self.region_of(plan.region),
            Target::Vm(vm) => self.region_of_vm(vm)?,
        };
        Ok(match region {
            Some(region) if region != self.ctx.region => Whereabouts::Elsewhere(region),
            Some(_) | None => Whereabouts::Here,
        })
    }

    fn region_of(&self, number: RegionNumber) -> Option<RegionName> {
        if number == self.ctx.number { Some(self.ctx.region.clone()) } else { self.ctx.numbers.get(&number).cloned() }
    }

    /// Who to ask about a VM: this region if it has it, else where it was last known to go, else who made it.
    fn region_of_vm(&self, vm: VmId) -> Result<Option<RegionName>, ApiError> {
        let stale = planted::is(Bug::StaleRead) && planted::once_known(&self.ctx.region, vm, None).is_some();
        if tables::vm(&self.ctx.store, vm)?.is_some() || stale {
            return Ok(Some(self.ctx.region.clone()));
        }
        if let Some(moved) = tables::decisions(&self.ctx.store, vm)?.moved {
            return Ok(Some(moved.to.region));
        }
        Ok(self.region_of(vm.region))
    }

    async fn forward_now(&self, to: RegionName, request: Forwarded) -> Result<ForwardedReply, ApiError> {
        let Some(link) = self.ctx.link(&to) else {
            let text = format!("region {to} has to answer this, and no peer {to} is configured in {}", self.ctx.region);
            return Err(ApiError::new(ErrorCode::Unavailable, text).hint("add a [[peer]] section for it to node.toml"));
        };
        let deadline = request.deadline;
        let message = ApiMessage { request: postcard_bytes(&request)? };
        let body = postcard_bytes(&message)?;
        let asked = Request::query(Kind::API, "admin", body, deadline).traced(TraceId(request.trace));
        match link.request(asked).await {
            Ok(bytes) => {
                let reply: ApiReply = from_postcard(&bytes, &to)?;
                from_postcard(&reply.reply, &to)
            }
            Err(error @ (LinkError::NotSent { .. } | LinkError::Refused { .. })) => {
                let text = format!("region {to} has to answer this and can't be asked now: {error}");
                Err(ApiError::new(ErrorCode::Unavailable, text)
                    .hint(format!("look at the link with: novafed link list; or ask at {to} itself")))
            }
            Err(LinkError::Unknown { .. }) if planted::is(Bug::TimeoutIsFailure) => {
                Err(ApiError::new(ErrorCode::Conflict, format!("region {to} did not do it")))
            }
            Err(error @ LinkError::Unknown { .. }) => {
                let text = format!("region {to} was asked and did not answer: {error}");
                Err(ApiError::new(ErrorCode::OutcomeUnknown, text)
                    .hint("repeat the request with the same idempotency key: it is done at most once"))
            }
        }
    }
}

fn postcard_bytes<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, ApiError> {
    postcard::to_stdvec(value)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("encoding a request: {error}")))
}

fn from_postcard<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8], from: &RegionName) -> Result<T, ApiError> {
    postcard::from_bytes(bytes).map_err(|error| {
        ApiError::new(ErrorCode::OutcomeUnknown, format!("the answer of region {from} can't be read: {error}"))
    })
}

impl Region for RegionApi {
    fn name(&self) -> RegionName {
        self.ctx.region.clone()
    }
    fn next_request(&self) -> RequestId {
        self.ctx.next_request()
    }
    fn locate(&self, target: Target) -> Answer<'_, Whereabouts> {
        Box::pin(self.locate_now(target))
    }
    fn forward(&self, to: RegionName, request: Forwarded) -> Answer<'_, ForwardedReply> {
        Box::pin(self.forward_now(to, request))
    }
    fn status(&self) -> Answer<'_, FederationStatus> {
        Box::pin(self.status_now())
    }
    fn clusters(&self, filter: ClusterFilter, page: PageQuery) -> Answer<'_, Page<ClusterView>> {
        Box::pin(async move {
            let views = self.all_clusters().await.into_iter().filter(|view| filter.lets(view)).collect();
            page.cut(views, |view: &ClusterView| Place { region: view.region.clone(), cluster: view.id.clone() })
        })
    }
    fn cluster(&self, id: ClusterId, region: Option<RegionName>) -> Answer<'_, ClusterView> {
        Box::pin(self.cluster_now(id, region))
    }
    fn inventory(&self, region: Option<RegionName>) -> Answer<'_, ResourceInventory> {
        Box::pin(self.inventory_now(region))
    }
    fn vms(&self, filter: VmFilter, page: PageQuery) -> Answer<'_, Page<VmView>> {
        Box::pin(async move {
            let (views, warnings) = self.all_vms(&filter).await?;
            let views = views.into_iter().filter(|view| filter.lets(view)).collect();
            Ok(Page { warnings, ..page.cut(views, |view: &VmView| view.record.id)? })
        })
    }
    fn vm(&self, id: VmId) -> Answer<'_, VmView> {
        Box::pin(self.vm_now(id))
    }
    fn explain_placement(&self, request: CreateVm) -> Answer<'_, PlacementDecision> {
        Box::pin(async move { self.place(&request).await.map(|decision| vms::shown(decision, None)) })
    }
    fn plan(&self, id: PlanId) -> Answer<'_, MigrationPlan> {
        Box::pin(async move { tables::plan(&self.ctx.store, id)?.ok_or_else(|| not_found("migration plan", id)) })
    }
    fn migrations(&self, filter: MigrationFilter, page: PageQuery) -> Answer<'_, Page<MigrationStatus>> {
        Box::pin(async move {
            let jobs = self.all_migrations().await?.into_iter().filter(|job| filter.lets(job)).collect();
            page.cut(jobs, |job: &MigrationStatus| job.id)
        })
    }
    fn migration(&self, id: JobId) -> Answer<'_, MigrationStatus> {
        Box::pin(self.migration_now(id))
    }
    fn migration_events(&self, id: JobId, after: u64, limit: usize) -> Answer<'_, Vec<EventView>> {
        Box::pin(async move { self.journal_of(id, after, limit) })
    }
    fn events(&self, after: u64, limit: usize) -> Answer<'_, Vec<EventView>> {
        Box::pin(async move { Ok(self.events_after(after, limit)) })
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.ctx.events.changes()
    }
    fn tree(&self) -> Answer<'_, TreeNode> {
        Box::pin(self.tree_now())
    }
    fn links(&self) -> Answer<'_, Vec<LinkView>> {
        Box::pin(async move { self.links_now() })
    }
    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(self.ready_now())
    }
    fn restart_actor(&self, supervisor: String, actor: String) -> Answer<'_, TreeNode> {
        Box::pin(self.restart_actor_now(supervisor, actor))
    }
    fn store(&self) -> Answer<'_, StoreStats> {
        Box::pin(async move { self.store_now() })
    }
    fn operations(&self, page: PageQuery) -> Answer<'_, Page<OperationView>> {
        Box::pin(self.operations_now(page))
    }
    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(async move { Ok((self.metrics)()) })
    }
    fn create_vm(&self, context: RequestContext, request: CreateVm) -> Answer<'_, CreatedVm> {
        Box::pin(self.create_vm_now(context, request))
    }
    fn start_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, VmView> {
        Box::pin(self.power(context, id, DesiredPower::Running))
    }
    fn stop_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, VmView> {
        Box::pin(self.power(context, id, DesiredPower::Stopped))
    }
    fn delete_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, Deleted> {
        Box::pin(self.delete_vm_now(context, id))
    }
    fn create_plan(&self, context: RequestContext, request: PlanRequest) -> Answer<'_, MigrationPlan> {
        Box::pin(self.create_plan_now(context, request))
    }
    fn start_migration(&self, context: RequestContext, plan: PlanId) -> Answer<'_, MigrationStatus> {
        Box::pin(self.start_migration_now(context, plan))
    }
    fn steer_migration(
        &self,
        context: RequestContext,
        id: JobId,
        steer: Steer,
        request: SteerRequest,
    ) -> Answer<'_, MigrationStatus> {
        Box::pin(self.steer_now(context, id, steer, request))
    }
    fn chaos_faults(&self) -> Answer<'_, ChaosFaults> {
        Box::pin(async move { Ok(self.chaos_faults_now()) })
    }
    fn inject_fault(&self, context: RequestContext, request: InjectFault) -> Answer<'_, ChaosFault> {
        Box::pin(self.inject_fault_now(context, request))
    }
    fn stop_fault(&self, context: RequestContext, id: FaultId) -> Answer<'_, ChaosFault> {
        Box::pin(self.stop_fault_now(context, id))
    }
    fn audit(&self, record: AuditRecord) -> Answer<'_, ()> {
        Box::pin(self.audit_now(record))
    }
}
