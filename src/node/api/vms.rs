//! VMs behind the API: create, start, stop, delete, show. Always: the record is durable before the answer; the host is
//! made to follow it by the cluster's convergence, also if this process dies in between.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Refused, RegionApi, api_error, check_version, not_found, remember, replayed};
use crate::actors::Class;
use crate::actors::cluster::{ClusterMessage, SeenVm};
use crate::actors::context::Context;
use crate::actors::records::{Cleanup, CleanupKind};
use crate::actors::{outbox, tables, vms};
use crate::admin::*;
use crate::decision::placement::{self, Placement};
use crate::drivers::{HostCall, HostReply, VmObservation};
use crate::planted::{self, Bug};
use crate::store::{Minted, Work};
use crate::types::*;

/// How often a VM is looked at while a request waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What is left of a request's deadline for answering.
const ANSWER_MS: u64 = 200;

/// A decision as the API shows it.
pub fn shown(decision: placement::Decision, vm: Option<VmId>) -> PlacementDecision {
    PlacementDecision {
        vm,
        target_cluster: decision.target,
        reasoning: decision.reasoning,
        score: decision.score,
        alternatives: decision.alternatives.into_iter().map(shown_alternative).collect(),
    }
}

fn shown_alternative(other: placement::Alternative) -> ClusterScore {
    let rejected_by = (!other.rejected_by.is_empty())
        .then(|| other.rejected_by.iter().map(placement::rejection).collect::<Vec<_>>().join("; "));
    ClusterScore { cluster: other.cluster, score: other.score, reasons: other.reasons, rejected_by }
}

/// What clusters saw of VMs.
pub(super) type SeenVms = BTreeMap<(ClusterId, VmId), SeenVm>;

impl RegionApi {
    /// Where a VM would go among this region's clusters.
    pub(super) async fn place(&self, request: &CreateVm) -> Result<placement::Decision, ApiError> {
        let views = outbox::own_clusters(&self.ctx).await;
        let asked = placement::Request {
            spec: &request.spec,
            region: request.placement.region.as_ref(),
            cluster: request.placement.cluster.as_ref(),
            own: &self.ctx.region,
        };
        match placement::place(&asked, &views) {
            Placement::Placed(decision) => Ok(decision),
            Placement::Unschedulable(verdict) => {
                let rejected: Vec<_> = verdict.rejected.into_iter().map(shown_alternative).collect();
                let details = serde_json::json!({ "rejected": rejected });
                let (name, region, why) = (&request.spec.name, &self.ctx.region, &verdict.reasoning);
                let error = if verdict.for_now {
                    let text = format!("VM {name} can't be placed in {region} now: {why}");
                    ApiError::new(ErrorCode::Unavailable, text)
                        .hint("try again when the cluster answers: novafed cluster list")
                } else {
                    let text = format!("VM {name} fits into no cluster of {region}: {why}");
                    ApiError::new(ErrorCode::Unschedulable, text)
                        .hint("make room, ask for less, or name another region with placement.region")
                };
                Err(error.details(details))
            }
        }
    }

    pub(super) async fn create_vm_now(
        &self,
        context: RequestContext,
        request: CreateVm,
    ) -> Result<CreatedVm, ApiError> {
        check_spec(&request.spec)?;
        if let Some(vm) = self.created_before(&context)? {
            return self.created(vm, &request).await;
        }
        let decision = self.place(&request).await?;
        if context.dry_run {
            return Ok(CreatedVm { vm: None, placement: shown(decision, None) });
        }
        let (ctx, spec, asked) = (self.ctx.clone(), request.spec.clone(), context.clone());
        let (cluster, reasoning) = (decision.target.cluster.clone(), decision.reasoning.clone());
        let made = self
            .ctx
            .store
            .transact(Work::New, move |txn| {
                if let Some(subject) = replayed(txn, &asked)? {
                    return Ok::<_, Refused>(subject.parse::<VmId>().map_err(bad_subject)?);
                }
                if let Some(other) = vms::named(txn, &spec)? {
                    let text = format!("{other} has the name {}/{} in this region", spec.namespace, spec.name);
                    return Err(ApiError::new(ErrorCode::Conflict, text).hint("choose another name").into());
                }
                let incarnation = txn.incarnation().counter;
                let id = VmId { region: ctx.number, incarnation, number: txn.mint(Minted::Vm) };
                let record = VmRecord {
                    id,
                    spec: spec.clone(),
                    cluster: cluster.clone(),
                    desired: DesiredPower::Running,
                    fence: Fence::FIRST,
                    attempt: Attempt(0),
                    job: None,
                    reasoning,
                    resource_version: 0,
                    created_at: ctx.clock.wall(),
                };
                vms::create(txn, record)?;
                remember(txn, &asked, id)?;
                // Last, because it is in memory: nothing after it refuses.
                let room = ctx.ledgers.with(&cluster, |ledger| ledger.occupy(id, vms::needs(&spec)));
                match room {
                    Some(Ok(())) => Ok(id),
                    Some(Err(short)) => Err(short_of(&cluster, short).into()),
                    None => Err(not_found("cluster", &cluster).into()),
                }
            })
            .await
            .map_err(api_error)?;
        self.ctx.events.note(
            self.ctx.clock.wall(),
            "vm.created",
            made,
            format!("{} in {}", request.spec.name, decision.target),
        );
        self.ctx.changed(&decision.target.cluster);
        let view = self.wait_for(made, &context, |power| power == ObservedPower::Running).await?;
        Ok(CreatedVm { vm: Some(view), placement: shown(decision, Some(made)) })
    }

    fn created_before(&self, context: &RequestContext) -> Result<Option<VmId>, ApiError> {
        let Some(key) = &context.idempotency_key else { return Ok(None) };
        let Some(before) = tables::request(&self.ctx.store, key)? else { return Ok(None) };
        if before.fingerprint != context.fingerprint {
            // The transaction refuses it with its words.
            return Ok(None);
        }
        before.subject.parse().map(Some).map_err(bad_subject)
    }

    async fn created(&self, vm: VmId, request: &CreateVm) -> Result<CreatedVm, ApiError> {
        let view = self.vm_now(vm).await?;
        let placement = PlacementDecision {
            vm: Some(vm),
            target_cluster: view.place.clone(),
            reasoning: view.record.reasoning.clone(),
            score: 0.0,
            alternatives: Vec::new(),
        };
        debug_assert_eq!(view.record.spec.name, request.spec.name);
        Ok(CreatedVm { vm: Some(view), placement })
    }

    /// Waits until the host says what the record wants, at most for the request's deadline; the answer then shows how
    /// far it is.
    async fn wait_for(
        &self,
        vm: VmId,
        context: &RequestContext,
        done: impl Fn(ObservedPower) -> bool,
    ) -> Result<VmView, ApiError> {
        let until = self.ctx.clock.now().plus(Millis(context.deadline.0.saturating_sub(ANSWER_MS)));
        loop {
            let view = self.vm_now(vm).await?;
            if done(view.power) || self.ctx.clock.now() >= until {
                return Ok(view);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(super) async fn power(
        &self,
        context: RequestContext,
        id: VmId,
        desired: DesiredPower,
    ) -> Result<VmView, ApiError> {
        let before = self.vm_now(id).await?;
        if context.dry_run {
            check_version(&context, id, before.record.resource_version)?;
            return Ok(before);
        }
        let wants_it = desired == DesiredPower::Running;
        let restart = wants_it && self.host_says(&before.record).await.is_some_and(|seen| seen.sight.memory_lost());
        let (asked, held) = (context.clone(), before.held);
        let record = self
            .ctx
            .store
            .transact(Work::New, move |txn| {
                let mut record = vms::get(txn, id)?.ok_or_else(|| not_found("vm", id))?;
                if replayed(txn, &asked)?.is_some() {
                    return Ok::<_, Refused>(record);
                }
                check_version(&asked, id, record.resource_version)?;
                if let Some(job) = record.job {
                    return Err(locked(id, job).into());
                }
                if held {
                    let text = format!("{id} is caught between hold and decision");
                    let error = ApiError::new(ErrorCode::Conflict, text).hint("it is freed by the decision alone");
                    return Err(error.into());
                }
                if record.desired != desired || restart {
                    record.desired = desired;
                    if restart {
                        // Whatever is left of the lost copy is fenced off.
                        record.fence.generation += 1;
                    }
                    record = vms::put(txn, record)?;
                }
                remember(txn, &asked, id)?;
                Ok(record)
            })
            .await
            .map_err(api_error)?;
        if restart && let Some(cluster) = self.ctx.cluster(&record.cluster) {
            let told = cluster.actor.cast(Class::Control, ClusterMessage::MayStartLost(id));
            told.map_err(|error| ApiError::new(ErrorCode::Busy, format!("{id} was not started: {error}")))?;
        }
        self.ctx.changed(&record.cluster);
        let want = match desired {
            DesiredPower::Running => ObservedPower::Running,
            DesiredPower::Stopped => ObservedPower::Stopped,
        };
        self.ctx.events.note(self.ctx.clock.wall(), "vm.power", id, format!("{desired:?} wanted"));
        self.wait_for(id, &context, |power| power == want).await
    }

    pub(super) async fn delete_vm_now(&self, context: RequestContext, id: VmId) -> Result<Deleted, ApiError> {
        let before = tables::vm(&self.ctx.store, id)?;
        if context.dry_run {
            return match before {
                Some(record) => check_version(&context, id, record.resource_version)
                    .map(|()| Deleted { id: id.to_string(), deleted: false }),
                None => Err(not_found("vm", id)),
            };
        }
        let (ctx, asked) = (self.ctx.clone(), context);
        let cluster = self
            .ctx
            .store
            .transact(Work::Finish, move |txn| {
                if replayed(txn, &asked)?.is_some() {
                    return Ok::<_, Refused>(None);
                }
                let record = vms::get(txn, id)?.ok_or_else(|| not_found("vm", id))?;
                check_version(&asked, id, record.resource_version)?;
                if let Some(job) = record.job {
                    return Err(locked(id, job).into());
                }
                tables::owe(
                    txn,
                    &Cleanup {
                        kind: CleanupKind::Delete,
                        job: None,
                        vm: id,
                        cluster: record.cluster.clone(),
                        fence: record.fence,
                        due: WallMillis(0),
                    },
                )?;
                remember(txn, &asked, id)?;
                vms::remove(txn, &ctx.ledgers, &record)?;
                Ok(Some(record.cluster))
            })
            .await
            .map_err(api_error)?;
        if let Some(cluster) = cluster {
            self.ctx.events.note(self.ctx.clock.wall(), "vm.deleted", id, "its disk follows");
            self.ctx.changed(&cluster);
        }
        Ok(Deleted { id: id.to_string(), deleted: true })
    }

    pub(super) async fn vm_now(&self, id: VmId) -> Result<VmView, ApiError> {
        let mut record = tables::vm(&self.ctx.store, id)?;
        if planted::is(Bug::StaleRead) {
            record = planted::once_known(&self.ctx.region, id, record.as_ref());
        }
        let record = record.ok_or_else(|| not_found("vm", id))?;
        let seen = match self.ctx.cluster(&record.cluster) {
            Some(cluster) => cluster
                .actor
                .call(Class::Control, limits::HEARTBEAT_MS, |reply| ClusterMessage::Vm(id, reply))
                .await
                .ok(),
            None => None,
        };
        Ok(self.view(record, seen))
    }

    /// This region's VMs and what the reachable others say of theirs. A request that names a region is answered by it
    /// alone, so that the question does not go round.
    pub(super) async fn all_vms(&self, filter: &VmFilter) -> Result<(Vec<VmView>, Vec<String>), ApiError> {
        let wanted = |region: &RegionName| filter.region.as_ref().is_none_or(|only| only == region);
        let mut views = if wanted(&self.ctx.region) { self.own_vms().await? } else { Vec::new() };
        let mut warnings = Vec::new();
        let peers: Vec<RegionName> = self.ctx.peers().into_iter().filter(|peer| wanted(peer)).collect();
        for peer in peers {
            let told = match self.ctx.link(&peer).is_some_and(|link| link.state().connected) {
                true => self.vms_of(&peer, filter).await.map_err(|error| error.to_string()),
                false => Err("it is not connected".to_owned()),
            };
            match told {
                Ok(more) => views.extend(more),
                Err(why) => warnings.push(self.untold(&peer, &why)),
            }
        }
        Ok((views, warnings))
    }

    /// That the VMs of `peer` are missing, with what was last known of them.
    fn untold(&self, peer: &RegionName, why: &str) -> String {
        let now = self.ctx.clock.now();
        let known = self.ctx.directory.clusters(now);
        let vms: u64 = known.iter().filter(|view| view.region == *peer).map(|view| view.vms).sum();
        match self.ctx.directory.age(peer, now) {
            Some(age) => format!("the VMs of region {peer} are missing, {vms} when it was last heard {age} ago: {why}"),
            None => format!("the VMs of region {peer} are missing, which was never heard: {why}"),
        }
    }

    async fn vms_of(&self, peer: &RegionName, filter: &VmFilter) -> Result<Vec<VmView>, ApiError> {
        let name = filter.name.as_ref().map(|name| format!("&name={name}")).unwrap_or_default();
        let (mut views, mut cursor) = (Vec::new(), String::new());
        loop {
            let caller = Caller {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
                pid: None,
                via: Some(self.ctx.region.clone()),
            };
            let request = Forwarded {
                method: "GET".into(),
                path: format!("/v2/vms?region={peer}&limit={}{name}{cursor}", limits::API_PAGE_MAX),
                headers: Vec::new(),
                body: Vec::new(),
                caller,
                deadline: limits::HEARTBEAT_MS.times(2),
                trace: 0,
            };
            let reply = self.forward_now(peer.clone(), request).await?;
            let page: Page<VmView> = serde_json::from_slice(&reply.body).map_err(|error| {
                ApiError::new(ErrorCode::Unavailable, format!("region {peer} answered {}: {error}", reply.status))
            })?;
            views.extend(page.items);
            match page.next {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(views),
            }
        }
    }

    pub(super) async fn own_vms(&self) -> Result<Vec<VmView>, ApiError> {
        let seen = self.seen_vms().await;
        self.views_of(seen)
    }

    /// The VMs of this region, with what was seen of them.
    pub(super) fn views_of(&self, mut seen: SeenVms) -> Result<Vec<VmView>, ApiError> {
        let views = tables::vms(&self.ctx.store)?.into_iter().map(|record| {
            let seen = seen.remove(&(record.cluster.clone(), record.id));
            self.view(record, seen)
        });
        Ok(views.collect())
    }

    /// What the clusters of this region saw, VMs without a record included.
    pub(super) async fn seen_vms(&self) -> SeenVms {
        let mut seen = BTreeMap::new();
        for id in self.ctx.cluster_ids() {
            let Some(cluster) = self.ctx.cluster(&id) else { continue };
            let all = cluster.actor.call(Class::Control, limits::HEARTBEAT_MS, ClusterMessage::Vms).await;
            seen.extend(all.unwrap_or_default().into_iter().map(|(vm, of)| ((id.clone(), vm), of)));
        }
        seen
    }

    /// What its host says of a VM when it is asked: a cluster's last look may be older than a move that just ended.
    pub(super) async fn host_says(&self, record: &VmRecord) -> Option<VmObservation> {
        let driver = self.ctx.driver(&record.cluster)?;
        let operation = OperationId::of_request(self.ctx.next_request(), "get");
        match driver.call(operation, HostCall::Get { vm: record.id }, limits::REQUEST_MS).await {
            Ok(HostReply::Vm(seen)) => seen,
            Ok(_) | Err(_) => None,
        }
    }

    fn view(&self, record: VmRecord, seen: Option<SeenVm>) -> VmView {
        let age = seen.as_ref().and_then(|seen| seen.age);
        let fresh = age.is_some_and(|age| age <= Context::fresh_for());
        let trouble = seen.as_ref().and_then(|seen| seen.trouble.clone());
        let vm = seen.and_then(|seen| seen.seen).filter(|_| fresh);
        VmView {
            region: self.ctx.region.clone(),
            place: self.ctx.here(&record.cluster),
            power: match &vm {
                // No job moves it any more, and it is this region's: what was received is a disk without a memory.
                Some(seen) if record.job.is_none() && trouble.is_some() && seen.sight.memory_lost() => {
                    ObservedPower::Lost
                }
                seen => seen.as_ref().map(|seen| seen.sight.power).into(),
            },
            power_age_ms: age,
            trouble,
            held: vm.as_ref().is_some_and(|vm| vm.sight.hold.is_some()),
            observed_at: self.ctx.clock.wall(),
            age_ms: Millis(0),
            stale: !fresh,
            record,
        }
    }
}

fn bad_subject(error: IdError) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("the idempotency key was used for another kind of request: {error}"))
        .hint("use a new key for a new request")
}

fn locked(vm: VmId, job: JobId) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("{vm} is being moved by {job}"))
        .details(serde_json::json!({ "job": job }))
        .hint(format!("wait for it (novafed migration watch {job}) or cancel it (novafed migration cancel {job})"))
}

fn short_of(cluster: &ClusterId, short: Resources) -> ApiError {
    let text = format!(
        "cluster {cluster} has no room left: short by {} CPU, {} memory, {} disk",
        short.cpu,
        human_bytes(short.memory_bytes),
        human_bytes(short.disk_bytes)
    );
    ApiError::new(ErrorCode::Unschedulable, text).hint("try again: another cluster may have room")
}

/// What can't be a VM anywhere.
fn check_spec(spec: &VmSpec) -> Result<(), ApiError> {
    let bad = |field: &str, rule: &str| {
        Err(ApiError::new(ErrorCode::InvalidArgument, format!("{field}: {rule}"))
            .details(serde_json::json!({ "field": field })))
    };
    let program = &spec.program;
    if spec.cpu == 0 {
        return bad("cpu", "a VM needs at least 1");
    }
    if spec.memory_bytes == 0 || !spec.memory_bytes.is_multiple_of(limits::PAGE_BYTES as u64) {
        return bad("memoryBytes", "memory comes in pages of 4,096 bytes, at least one");
    }
    if spec.disk_bytes == 0 || !spec.disk_bytes.is_multiple_of(limits::DISK_BLOCK_BYTES as u64) {
        return bad("diskBytes", "a disk comes in blocks of 65,536 bytes, at least one");
    }
    if program.tick_ms == 0 {
        return bad("program.tickMs", "a tick takes at least 1 ms");
    }
    if program.resident_bytes > spec.memory_bytes {
        return bad("program.residentBytes", "it can't exceed memoryBytes");
    }
    if program.working_set_bytes > program.resident_bytes {
        return bad("program.workingSetBytes", "it can't exceed program.residentBytes");
    }
    if program.disk_resident_bytes > spec.disk_bytes {
        return bad("program.diskResidentBytes", "it can't exceed diskBytes");
    }
    Ok(())
}
