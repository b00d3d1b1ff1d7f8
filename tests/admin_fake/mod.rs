//! A region in memory, for tests of the API: it keeps VMs, plans, jobs, events and audit records in maps.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use novafed::admin::*;
use novafed::clock::Clock;
use novafed::types::*;
use tokio::sync::watch;

#[derive(Default)]
struct Kept {
    vms: BTreeMap<VmId, VmView>,
    plans: BTreeMap<PlanId, MigrationPlan>,
    jobs: BTreeMap<JobId, MigrationStatus>,
    keys: BTreeMap<String, (u64, serde_json::Value)>,
    events: Vec<EventView>,
    audit: Vec<AuditRecord>,
    faults: Vec<ChaosFault>,
    peers: BTreeMap<RegionName, Api>,
}

pub struct FakeRegion {
    name: RegionName,
    number: RegionNumber,
    kept: Mutex<Kept>,
    requests: AtomicU64,
    changes: watch::Sender<u64>,
    /// While it is set, every mutation waits.
    pub stuck: watch::Sender<bool>,
    /// While it is set, forwarding fails as over a cut link.
    pub cut: AtomicBool,
    pub seen: Mutex<Vec<RequestContext>>,
}

pub fn number_of(region: &RegionName) -> RegionNumber {
    RegionNumber(if region.as_str() == "eu" { 1 } else { 2 })
}

pub fn fake(name: &str) -> Arc<FakeRegion> {
    let name: RegionName = name.parse().unwrap();
    Arc::new(FakeRegion {
        number: number_of(&name),
        name,
        kept: Mutex::default(),
        requests: AtomicU64::new(0),
        changes: watch::channel(0).0,
        stuck: watch::channel(false).0,
        cut: AtomicBool::new(false),
        seen: Mutex::default(),
    })
}

pub fn api(region: &Arc<FakeRegion>) -> Api {
    Api::new(region.clone(), Clock::start())
}

/// Two regions that forward to each other.
pub fn pair() -> (Arc<FakeRegion>, Api, Arc<FakeRegion>, Api) {
    let (eu, us) = (fake("eu"), fake("us"));
    let (eu_api, us_api) = (api(&eu), api(&us));
    eu.kept.lock().unwrap().peers.insert(us.name.clone(), us_api.clone());
    us.kept.lock().unwrap().peers.insert(eu.name.clone(), eu_api.clone());
    (eu, eu_api, us, us_api)
}

impl FakeRegion {
    pub fn audit_records(&self) -> Vec<AuditRecord> {
        self.kept.lock().unwrap().audit.clone()
    }

    pub fn note(&self, kind: &str) {
        let mut kept = self.kept.lock().unwrap();
        let sequence = kept.events.len() as u64 + 1;
        kept.events.push(EventView {
            sequence,
            at: WallMillis(sequence),
            region: self.name.clone(),
            kind: kind.into(),
            subject: "test".into(),
            message: format!("event {sequence}"),
            data: serde_json::json!({}),
        });
        drop(kept);
        self.changes.send_replace(sequence);
    }

    pub fn set_job_state(&self, id: JobId, state: JobState) {
        let mut kept = self.kept.lock().unwrap();
        let job = kept.jobs.get_mut(&id).unwrap();
        job.state = state;
        job.status = state.nova_status().into();
        drop(kept);
        self.note("job");
    }

    fn place(&self, cluster: &ClusterId) -> Place {
        Place { region: self.name.clone(), cluster: cluster.clone() }
    }

    fn home(&self) -> ClusterId {
        format!("{}-a", self.name).parse().unwrap()
    }

    async fn admit(&self, context: &RequestContext) -> Result<(), ApiError> {
        self.seen.lock().unwrap().push(context.clone());
        let mut stuck = self.stuck.subscribe();
        stuck.wait_for(|stuck| !stuck).await.map_err(|_| ApiError::new(ErrorCode::Internal, "gone"))?;
        Ok(())
    }

    /// The answer that the key was given before, if it was.
    fn replayed<T: serde::de::DeserializeOwned>(&self, context: &RequestContext) -> Result<Option<T>, ApiError> {
        let Some(key) = &context.idempotency_key else { return Ok(None) };
        match self.kept.lock().unwrap().keys.get(key) {
            None => Ok(None),
            Some((fingerprint, _)) if *fingerprint != context.fingerprint => {
                Err(ApiError::new(ErrorCode::Conflict, format!("the key {key} was used for another request")))
            }
            Some((_, value)) => Ok(Some(serde_json::from_value(value.clone()).unwrap())),
        }
    }

    fn remember<T: serde::Serialize>(&self, context: &RequestContext, answer: &T) {
        if let Some(key) = &context.idempotency_key {
            let value = serde_json::to_value(answer).unwrap();
            self.kept.lock().unwrap().keys.insert(key.clone(), (context.fingerprint, value));
        }
    }

    fn change(&self, context: &RequestContext, id: VmId, desired: DesiredPower) -> Result<VmView, ApiError> {
        let mut kept = self.kept.lock().unwrap();
        let vm = kept.vms.get_mut(&id).ok_or_else(|| no(&id))?;
        if context.if_match.is_some_and(|version| version != vm.record.resource_version) {
            return Err(ApiError::new(ErrorCode::PreconditionFailed, format!("{id} has changed")));
        }
        if context.dry_run {
            return Ok(vm.clone());
        }
        vm.record.desired = desired;
        vm.record.resource_version += 1;
        vm.power = match desired {
            DesiredPower::Running => ObservedPower::Running,
            DesiredPower::Stopped => ObservedPower::Stopped,
        };
        Ok(vm.clone())
    }

    fn decision(&self, request: &CreateVm) -> Result<PlacementDecision, ApiError> {
        let wanted = request.placement.cluster.clone().unwrap_or_else(|| self.home());
        if wanted != self.home() {
            return Err(ApiError::new(ErrorCode::Unschedulable, format!("{wanted} has no room"))
                .details(serde_json::json!({ "clusters": { wanted.as_str(): "full" } }))
                .hint("leave the cluster out"));
        }
        Ok(PlacementDecision {
            vm: None,
            target_cluster: self.place(&wanted),
            reasoning: "the only cluster with room".into(),
            score: 0.75,
            alternatives: vec![ClusterScore {
                cluster: self.place(&"full".parse().unwrap()),
                score: 0.0,
                reasons: vec![],
                rejected_by: Some("memory".into()),
            }],
        })
    }

    pub fn clusters_here(&self) -> Vec<ClusterView> {
        let vms = self.kept.lock().unwrap().vms.len() as u64;
        vec![ClusterView {
            id: self.home(),
            region: self.name.clone(),
            host: self.home().as_str().parse().unwrap(),
            driver: "embedded".into(),
            state: ClusterState::Connected,
            reason: "answers".into(),
            capacity: Resources { cpu: 8, memory_bytes: 1 << 30, disk_bytes: 1 << 34 },
            used: Resources::default(),
            reserved: Resources::default(),
            vms,
            since_ms: Millis(0),
            age_ms: Some(Millis(12)),
            stale: false,
        }]
    }
}

fn no(what: &impl ToString) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no {}", what.to_string())).hint("list what there is")
}

impl Region for FakeRegion {
    fn name(&self) -> RegionName {
        self.name.clone()
    }

    fn next_request(&self) -> RequestId {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        RequestId { region: self.number, incarnation: 1, number }
    }

    fn locate(&self, target: Target) -> Answer<'_, Whereabouts> {
        let number = match &target {
            Target::Vm(id) => id.region,
            Target::Job(id) => id.region,
            Target::Plan(id) => id.region,
            Target::Region(name) => number_of(name),
        };
        let kept = self.kept.lock().unwrap();
        let other = kept.peers.keys().find(|peer| number_of(peer) == number).cloned();
        Box::pin(async move {
            Ok(match other {
                Some(peer) if number != self.number => Whereabouts::Elsewhere(peer),
                _ => Whereabouts::Here,
            })
        })
    }

    fn forward(&self, to: RegionName, request: Forwarded) -> Answer<'_, ForwardedReply> {
        let peer = self.kept.lock().unwrap().peers.get(&to).cloned();
        Box::pin(async move {
            match peer {
                Some(peer) if !self.cut.load(Ordering::Relaxed) => Ok(peer.dispatch(request).await),
                _ => Err(ApiError::new(ErrorCode::Unavailable, format!("the link to {to} is cut"))),
            }
        })
    }

    fn status(&self) -> Answer<'_, FederationStatus> {
        Box::pin(async {
            Ok(FederationStatus {
                federation: "test".into(),
                region: self.name.clone(),
                version: "0".into(),
                incarnation: 1,
                uptime_ms: Millis(5),
                health_status: Health::Healthy,
                total_clusters: 1,
                active_clusters: 1,
                vms: self.kept.lock().unwrap().vms.len() as u64,
                jobs: JobCounts::default(),
                last_sync: None,
                regions: vec![],
                links: vec![],
                issues: vec![],
                recommendations: vec![],
            })
        })
    }

    fn clusters(&self, filter: ClusterFilter, page: PageQuery) -> Answer<'_, Page<ClusterView>> {
        Box::pin(async move {
            let clusters = self.clusters_here().into_iter().filter(|c| filter.lets(c)).collect();
            page.cut(clusters, |c: &ClusterView| Place { region: c.region.clone(), cluster: c.id.clone() })
        })
    }

    fn cluster(&self, id: ClusterId, _: Option<RegionName>) -> Answer<'_, ClusterView> {
        Box::pin(async move { self.clusters_here().into_iter().find(|c| c.id == id).ok_or_else(|| no(&id)) })
    }

    fn inventory(&self, _: Option<RegionName>) -> Answer<'_, ResourceInventory> {
        Box::pin(async { Ok(ResourceInventory::of(self.clusters_here(), vec![], WallMillis(1))) })
    }

    fn vms(&self, filter: VmFilter, page: PageQuery) -> Answer<'_, Page<VmView>> {
        let vms = self.kept.lock().unwrap().vms.values().filter(|vm| filter.lets(vm)).cloned().collect();
        Box::pin(async move { page.cut(vms, |vm: &VmView| vm.record.id) })
    }

    fn vm(&self, id: VmId) -> Answer<'_, VmView> {
        Box::pin(async move {
            // A panic on request, to see what becomes of it.
            assert_ne!(id.number, 666, "this VM brings its handler down");
            self.kept.lock().unwrap().vms.get(&id).cloned().ok_or_else(|| no(&id))
        })
    }

    fn explain_placement(&self, request: CreateVm) -> Answer<'_, PlacementDecision> {
        Box::pin(async move { self.decision(&request) })
    }

    fn plan(&self, id: PlanId) -> Answer<'_, MigrationPlan> {
        Box::pin(async move { self.kept.lock().unwrap().plans.get(&id).cloned().ok_or_else(|| no(&id)) })
    }

    fn migrations(&self, filter: MigrationFilter, page: PageQuery) -> Answer<'_, Page<MigrationStatus>> {
        let jobs = self.kept.lock().unwrap().jobs.values().filter(|job| filter.lets(job)).cloned().collect();
        Box::pin(async move { page.cut(jobs, |job: &MigrationStatus| job.id) })
    }

    fn migration(&self, id: JobId) -> Answer<'_, MigrationStatus> {
        Box::pin(async move { self.kept.lock().unwrap().jobs.get(&id).cloned().ok_or_else(|| no(&id)) })
    }

    fn migration_events(&self, id: JobId, after: u64, limit: usize) -> Answer<'_, Vec<EventView>> {
        Box::pin(async move {
            if !self.kept.lock().unwrap().jobs.contains_key(&id) {
                return Err(no(&id));
            }
            self.events(after, limit).await
        })
    }

    fn events(&self, after: u64, limit: usize) -> Answer<'_, Vec<EventView>> {
        let kept = self.kept.lock().unwrap();
        let events = kept.events.iter().filter(|e| e.sequence > after).take(limit).cloned().collect();
        Box::pin(async move { Ok(events) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn restart_actor(&self, supervisor: String, actor: String) -> Answer<'_, TreeNode> {
        Box::pin(async move {
            let tree = self.tree().await?;
            let found = tree.children.into_iter().find(|child| child.name == actor || supervisor == "migrations");
            found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no {supervisor}/{actor}")))
        })
    }
    fn tree(&self) -> Answer<'_, TreeNode> {
        Box::pin(async {
            let leaf = TreeNode {
                name: "links".into(),
                state: ActorState::Running,
                since_ms: Millis(4),
                restarts: 0,
                queue: 0,
                oldest_message_ms: None,
                reason: None,
                children: vec![],
            };
            Ok(TreeNode { name: "root".into(), children: vec![leaf.clone()], ..leaf })
        })
    }

    fn links(&self) -> Answer<'_, Vec<LinkView>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn store(&self) -> Answer<'_, StoreStats> {
        Box::pin(async {
            Ok(StoreStats {
                path: "memory".into(),
                file_bytes: 0,
                free_bytes: 1 << 30,
                reserve_bytes: 1 << 20,
                accepts_work: true,
                reason: None,
                incarnation: 1,
                commits: 0,
                transactions: 0,
                queue: 0,
                tables: vec![],
            })
        })
    }

    fn operations(&self, page: PageQuery) -> Answer<'_, Page<OperationView>> {
        Box::pin(async move { page.cut(vec![], |operation: &OperationView| operation.id.clone()) })
    }

    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(async { Ok("# nothing\n".into()) })
    }

    fn create_vm(&self, context: RequestContext, request: CreateVm) -> Answer<'_, CreatedVm> {
        Box::pin(async move {
            self.admit(&context).await?;
            if let Some(answer) = self.replayed(&context)? {
                return Ok(answer);
            }
            let mut placement = self.decision(&request)?;
            if context.dry_run {
                return Ok(CreatedVm { vm: None, placement });
            }
            let number = self.kept.lock().unwrap().vms.len() as u64 + 1;
            let id = VmId { region: self.number, incarnation: 1, number };
            placement.vm = Some(id);
            let vm = VmView {
                record: VmRecord {
                    id,
                    spec: request.spec,
                    cluster: self.home(),
                    desired: DesiredPower::Running,
                    fence: Fence::FIRST,
                    attempt: Attempt(0),
                    job: None,
                    reasoning: placement.reasoning.clone(),
                    resource_version: 1,
                    created_at: WallMillis(1_763_978_400_000),
                },
                region: self.name.clone(),
                place: self.place(&self.home()),
                power: ObservedPower::Running,
                power_age_ms: Some(Millis(3)),
                trouble: None,
                held: false,
                observed_at: WallMillis(1_763_978_400_000),
                age_ms: Millis(0),
                stale: false,
            };
            self.kept.lock().unwrap().vms.insert(id, vm.clone());
            let answer = CreatedVm { vm: Some(vm), placement };
            self.remember(&context, &answer);
            Ok(answer)
        })
    }

    fn start_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, VmView> {
        Box::pin(async move {
            self.admit(&context).await?;
            self.change(&context, id, DesiredPower::Running)
        })
    }

    fn stop_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, VmView> {
        Box::pin(async move {
            self.admit(&context).await?;
            self.change(&context, id, DesiredPower::Stopped)
        })
    }

    fn delete_vm(&self, context: RequestContext, id: VmId) -> Answer<'_, Deleted> {
        Box::pin(async move {
            self.admit(&context).await?;
            self.change(&context, id, DesiredPower::Stopped)?;
            let deleted = !context.dry_run && self.kept.lock().unwrap().vms.remove(&id).is_some();
            Ok(Deleted { id: id.to_string(), deleted })
        })
    }

    fn create_plan(&self, context: RequestContext, request: PlanRequest) -> Answer<'_, MigrationPlan> {
        Box::pin(async move {
            self.admit(&context).await?;
            if let Some(answer) = self.replayed(&context)? {
                return Ok(answer);
            }
            let vm = self.vm(request.vm).await?;
            let mut kept = self.kept.lock().unwrap();
            let id = PlanId { region: self.number, incarnation: 1, number: kept.plans.len() as u64 + 1 };
            let executable = request.target.cluster.as_str() != "full";
            let plan = MigrationPlan {
                id,
                vm: request.vm,
                source: vm.place,
                target: request.target,
                options: request.options,
                estimated_downtime: 40_000_000,
                estimated_downtime_ms: 40.0,
                estimated_duration: 3_000_000_000,
                estimated_duration_ms: 3000.0,
                estimated_bytes: 1 << 28,
                steps: vec![MigrationStep {
                    name: "reserve".into(),
                    description: "reserve room".into(),
                    reversible: true,
                }],
                network_changes: vec![],
                storage_changes: vec![],
                risks: vec![],
                checks: vec![Check {
                    id: "target-capacity".into(),
                    name: "room at the target".into(),
                    category: CheckCategory::Resources,
                    status: if executable { CheckStatus::Passed } else { CheckStatus::Failed },
                    severity: Severity::Blocking,
                    message: if executable { "it fits".into() } else { "12 MiB are missing".into() },
                }],
                executable,
                resource_version: vm.record.resource_version,
                created_at: WallMillis(1),
                expires_at: WallMillis(600_001),
            };
            kept.plans.insert(id, plan.clone());
            drop(kept);
            self.remember(&context, &plan);
            Ok(plan)
        })
    }

    fn start_migration(&self, context: RequestContext, plan: PlanId) -> Answer<'_, MigrationStatus> {
        Box::pin(async move {
            self.admit(&context).await?;
            if let Some(answer) = self.replayed(&context)? {
                return Ok(answer);
            }
            let plan = self.plan(plan).await?;
            let mut kept = self.kept.lock().unwrap();
            let id = JobId { region: self.number, incarnation: 1, number: kept.jobs.len() as u64 + 1 };
            let job = MigrationStatus {
                id,
                plan: Some(plan.id),
                vm: plan.vm,
                source: plan.source,
                target: plan.target,
                state: JobState::Transferring,
                status: "running".into(),
                phase: "copying".into(),
                progress: 42.0,
                attempt: Attempt(1),
                next_fence: Fence { epoch: 2, generation: 1 },
                bytes_total: 1 << 28,
                bytes_acknowledged: 1 << 26,
                bytes_sent: 1 << 26,
                bytes_sent_twice: 0,
                resumed_from_bytes: 0,
                resumes: 0,
                bytes_remaining: 1 << 27,
                rate: 1 << 24,
                dirty_rate: 1 << 20,
                iterations: 1,
                eta_ms: Some(12_000),
                estimated_downtime_ms: 40.0,
                downtime_ms: None,
                reason: None,
                commands: vec![],
                last_heard_ms: Some(Millis(9)),
                started_at: WallMillis(1),
                completed_at: None,
            };
            kept.jobs.insert(id, job.clone());
            drop(kept);
            self.remember(&context, &job);
            Ok(job)
        })
    }

    fn steer_migration(
        &self,
        context: RequestContext,
        id: JobId,
        steer: Steer,
        request: SteerRequest,
    ) -> Answer<'_, MigrationStatus> {
        Box::pin(async move {
            self.admit(&context).await?;
            let mut kept = self.kept.lock().unwrap();
            let job = kept.jobs.get_mut(&id).ok_or_else(|| no(&id))?;
            match steer {
                Steer::Cancel if job.state == JobState::Completed => {
                    return Err(
                        ApiError::new(ErrorCode::Conflict, format!("{id} has completed")).hint("plan a migration back")
                    );
                }
                Steer::Cancel => job.state = JobState::Cancelled,
                Steer::Retry | Steer::Probe | Steer::Undo | Steer::Abandon => {
                    return Err(ApiError::new(ErrorCode::PreconditionFailed, format!("{id} is not parked")));
                }
            }
            job.reason = request.reason;
            job.status = job.state.nova_status().into();
            Ok(job.clone())
        })
    }

    fn chaos_faults(&self) -> Answer<'_, ChaosFaults> {
        let faults = self.kept.lock().unwrap().faults.clone();
        let (active, ended) = faults.into_iter().partition(|fault| fault.state == FaultState::Active);
        Box::pin(async move { Ok(ChaosFaults { allowed: true, max_ms: Some(Millis(600_000)), active, ended }) })
    }

    fn inject_fault(&self, context: RequestContext, request: InjectFault) -> Answer<'_, ChaosFault> {
        Box::pin(async move {
            self.admit(&context).await?;
            if let Some(answer) = self.replayed(&context)? {
                return Ok(answer);
            }
            let number = self.kept.lock().unwrap().faults.len() as u64 + 1;
            let fault = ChaosFault {
                id: FaultId { region: self.number, incarnation: 1, number },
                effect: request.spec.to_string(),
                subject: request.spec.subject(),
                spec: request.spec,
                state: if context.dry_run { FaultState::Planned } else { FaultState::Active },
                duration_ms: request.duration_ms,
                left_ms: request.duration_ms.unwrap_or_default(),
                began_at: Some(WallMillis(1)),
                ended_at: None,
                ended_because: None,
                caller: context.caller.clone(),
                reason: request.reason,
            };
            if !context.dry_run {
                self.kept.lock().unwrap().faults.push(fault.clone());
                self.remember(&context, &fault);
            }
            Ok(fault)
        })
    }

    fn stop_fault(&self, context: RequestContext, id: FaultId) -> Answer<'_, ChaosFault> {
        Box::pin(async move {
            self.admit(&context).await?;
            let mut kept = self.kept.lock().unwrap();
            let fault = kept.faults.iter_mut().find(|fault| fault.id == id).ok_or_else(|| no(&id))?;
            if !context.dry_run {
                fault.state = FaultState::Ended;
                fault.ended_because = Some("ended by a test".into());
            }
            Ok(fault.clone())
        })
    }

    fn audit(&self, record: AuditRecord) -> Answer<'_, ()> {
        self.kept.lock().unwrap().audit.push(record);
        Box::pin(async { Ok(()) })
    }
}

/// The body of a VM that fits.
pub fn vm_body(name: &str) -> serde_json::Value {
    serde_json::json!({ "name": name, "cpu": 1, "memoryBytes": 1 << 20, "diskBytes": 1 << 20 })
}

/// A request as if it came from a socket of `via`.
pub fn asked(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Forwarded {
    Forwarded {
        method: method.into(),
        path: path.into(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        body: body.to_vec(),
        caller: Caller { uid: 0, gid: 0, pid: Some(1), via: None },
        deadline: Millis(2_000),
        trace: 7,
    }
}

/// Asks `api` directly: status and document.
pub async fn ask(
    api: &Api,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: serde_json::Value,
) -> (u16, serde_json::Value) {
    let body = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
    let reply = api.dispatch(asked(method, path, headers, &body)).await;
    (reply.status, serde_json::from_slice(&reply.body).unwrap_or(serde_json::Value::Null))
}
