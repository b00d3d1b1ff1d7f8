//! Plans behind the API: gathers the facts, has them assessed, keeps the plan. Always: a blocked check gives a plan that
//! can be read and not started; what could not be looked at is shown as skipped.

use super::{Refused, RegionApi, api_error, key_of_another, not_found, remember, replayed};
use crate::actors::{outbox, tables, vms};
use crate::admin::*;
use crate::decision::migration::assess::{self, DriverFacts, Facts, LinkFacts};
use crate::decision::migration::estimate::Workload;
use crate::drivers::{HostCall, HostReply};
use crate::store::{Minted, Work};
use crate::types::*;

/// What a transfer inside a region is taken to carry until one was measured: about what one core copies with checksums.
const INSIDE_BYTES_PER_SECOND: u64 = 400 * MIB;

impl RegionApi {
    pub(super) async fn create_plan_now(
        &self,
        context: RequestContext,
        request: PlanRequest,
    ) -> Result<MigrationPlan, ApiError> {
        if let Some(plan) = self.planned_before(&context)? {
            return Ok(plan);
        }
        let facts = self.facts(&request).await?;
        let assessment = assess::assess(&facts);
        let (number, wall) = (self.ctx.number, self.ctx.clock.wall());
        if context.dry_run {
            let id = PlanId { region: number, incarnation: self.ctx.store.incarnation().counter, number: 0 };
            return Ok(assess::plan(id, wall, &facts, assessment));
        }
        self.ctx
            .store
            .transact(Work::New, move |txn| {
                if replayed(txn, &context)?.is_some() {
                    let text = "the same request is being planned right now";
                    return Err(ApiError::new(ErrorCode::Busy, text).hint("repeat it with the same key").into());
                }
                let incarnation = txn.incarnation().counter;
                let id = PlanId { region: number, incarnation, number: txn.mint(Minted::Plan) };
                let plan = assess::plan(id, wall, &facts, assessment);
                tables::put_plan(txn, &plan)?;
                remember(txn, &context, id)?;
                Ok::<_, Refused>(plan)
            })
            .await
            .map_err(api_error)
    }

    fn planned_before(&self, context: &RequestContext) -> Result<Option<MigrationPlan>, ApiError> {
        let Some(key) = &context.idempotency_key else { return Ok(None) };
        let Some(before) = tables::request(&self.ctx.store, key)? else { return Ok(None) };
        if before.fingerprint != context.fingerprint {
            let text = format!("the idempotency key '{key}' was used for another request");
            return Err(ApiError::new(ErrorCode::Conflict, text).hint("use a new key for a new request"));
        }
        let id = before.subject.parse::<PlanId>();
        let Ok(id) = id else { return Err(key_of_another(key)) };
        match tables::plan(&self.ctx.store, id)? {
            Some(plan) => Ok(Some(plan)),
            None => {
                let text = format!("the same request made {id}, which is not kept any more");
                Err(ApiError::new(ErrorCode::NotFound, text).hint("plan it again, with a new key"))
            }
        }
    }

    async fn facts(&self, request: &PlanRequest) -> Result<Facts, ApiError> {
        let record = tables::vm(&self.ctx.store, request.vm)?.ok_or_else(|| not_found("vm", request.vm))?;
        let source = request.source.clone().unwrap_or_else(|| self.ctx.here(&record.cluster));
        if source == request.target {
            let text = format!("{} is at {source} already: source and target are the same", request.vm);
            return Err(ApiError::new(ErrorCode::InvalidArgument, text).hint("name another cluster as target"));
        }
        let own = outbox::own_clusters(&self.ctx).await;
        let mut all = own.clone();
        all.extend(self.ctx.directory.clusters(self.ctx.clock.now()));
        let target_cluster =
            all.into_iter().find(|v| v.region == request.target.region && v.id == request.target.cluster);
        let source_view = own.into_iter().find(|view| view.id == record.cluster);
        let live = self.live_migration(&record.cluster).await;
        Ok(Facts {
            vm: record.id,
            needs: vms::needs(&record.spec),
            resource_version: record.resource_version,
            source,
            target: request.target.clone(),
            recorded_at: Some(record.cluster.clone()),
            power: self.host_says(&record).await.map(|seen| seen.sight.power),
            locked_by: record.job,
            source_driver: source_view
                .as_ref()
                .map(|view| DriverFacts { name: view.driver.clone(), live_migration: live }),
            source_disk_free_bytes: source_view.as_ref().map(|view| view.free().disk_bytes),
            // The same driver at the other end can what it can here; of another one nothing is known yet.
            target_live_migration: target_cluster
                .as_ref()
                .zip(source_view.as_ref())
                .and_then(|(target, source)| (target.driver == source.driver).then_some(live)),
            target_cluster,
            link: self.link_facts(&request.target.region),
            assumed_bytes_per_second: INSIDE_BYTES_PER_SECOND,
            commit_us: self.ctx.store.commit_us(),
            defaults: self.ctx.settings.moves.clone(),
            workload: self.workload(&record).await,
            options: request.options.clone(),
            source_store_free_bytes: self.ctx.store.free_bytes(),
            target_store_free_bytes: None,
            decider_unreachable: self.ctx.failure().borrow().clone(),
        })
    }

    fn link_facts(&self, region: &RegionName) -> Option<LinkFacts> {
        if *region == self.ctx.region {
            return None;
        }
        let state = self.ctx.link(region).map(|link| link.state()).unwrap_or_default();
        Some(LinkFacts {
            up: state.connected,
            rtt_us: state.rtt_us,
            bytes_per_second: state.bandwidth_bytes_s,
            last_heard_ms: state.last_heard,
        })
    }

    async fn live_migration(&self, cluster: &ClusterId) -> bool {
        let Some(driver) = self.ctx.driver(cluster) else { return false };
        let operation = OperationId::of_request(self.ctx.next_request(), "capabilities");
        let asked = driver.call(operation, HostCall::Capabilities, limits::REQUEST_MS).await;
        matches!(asked, Ok(HostReply::Capabilities(capabilities)) if capabilities.live_migration)
    }

    async fn workload(&self, record: &VmRecord) -> Option<Workload> {
        let driver = self.ctx.driver(&record.cluster)?;
        let operation = OperationId::of_request(self.ctx.next_request(), "dirty-rate");
        match driver.call(operation, HostCall::DirtyRate { vm: record.id }, limits::REQUEST_MS).await {
            Ok(HostReply::DirtyRate(rate)) => Some(Workload {
                memory_bytes_per_second: rate.memory_bytes_per_second,
                disk_bytes_per_second: rate.disk_bytes_per_second,
                working_set_bytes: rate.working_set_bytes,
                resident_bytes: rate.resident_bytes,
                disk_resident_bytes: rate.disk_resident_bytes,
            }),
            Ok(_) | Err(_) => None,
        }
    }
}
