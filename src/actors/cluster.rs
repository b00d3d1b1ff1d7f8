//! Shell of a local cluster: inventory, health, convergence of its VMs, owed clean-ups.
//! Owns: the evidence about the cluster's driver and the repairs under way. Always: one repair per VM at a time; what
//! a job moves is left to the job; a host that died is started again, its VMs are shown as lost and not restarted by
//! themselves.
//! Not here: what to do about a VM (`decision/converge.rs`), what the evidence means (`decision/membership.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::call::Reply;
use super::context::Context;
use super::mailbox::{Class, Handle};
use super::records::{Cleanup, CleanupKind};
use super::serve::{Ctx, HandlerError, Serve};
use super::tables;
use crate::decision::converge::{self, Repair};
use crate::decision::membership::{Health, Probe, Thresholds};
use crate::decision::ownership::{Decision, Proposed};
use crate::drivers::{HostCall, HostError, HostReply, Hypervisor, VmObservation};
use crate::store::{StoreError, Work};
use crate::types::{
    ClusterId, ClusterView, Fence, HostName, Millis, OperationId, SwitchKey, Tick, VmId, VmRecord, limits,
};

/// How often the host is asked for its inventory.
const LOOK_EVERY: Millis = Millis(500);
/// A look that takes longer is a miss: three of them make a cluster disconnected.
const LOOK_MS_MAX: Millis = Millis(2_000);
/// A host that does not answer for so long is looked after: it may have died.
const HOST_AWAY_MS: Millis = Millis(1_000);

/// What a cluster is told.
pub enum ClusterMessage {
    /// Look at the host now.
    Look,
    /// The host's inventory, or why there is none, and how long it took.
    Inventory(Result<Vec<VmObservation>, HostError>, Millis),
    /// A repair of a VM ended.
    Repaired(VmId, Result<(), String>),
    /// A person wants a VM whose memory was lost to start from its disk.
    MayStartLost(VmId),
    /// How is the cluster?
    View(Reply<ClusterView>),
    /// What was last seen of a VM, how long ago, and what stands in its way.
    Vm(VmId, Reply<SeenVm>),
    /// The same of all VMs that were seen.
    Vms(Reply<Vec<(VmId, SeenVm)>>),
}

/// What a cluster knows of a VM.
#[derive(Debug, Clone)]
pub struct SeenVm {
    /// What the host said.
    pub seen: Option<VmObservation>,
    /// How long ago.
    pub age: Option<Millis>,
    /// What keeps it from being as it should.
    pub trouble: Option<String>,
}

/// What serves a cluster.
pub struct ServedBy {
    /// The host process.
    pub host: HostName,
    /// The kind of driver.
    pub kind: &'static str,
    /// The driver.
    pub driver: Arc<dyn Hypervisor>,
    /// Starts the host if it died.
    pub look_after: Arc<dyn Fn() + Send + Sync>,
}

/// The shell of one cluster.
pub struct Cluster {
    ctx: Arc<Context>,
    me: Handle<ClusterMessage>,
    id: ClusterId,
    served_by: ServedBy,
    health: Health,
    seen: BTreeMap<VmId, VmObservation>,
    seen_at: Option<Tick>,
    looking: bool,
    repairing: BTreeSet<VmId>,
    trouble: BTreeMap<VmId, String>,
    may_start_lost: BTreeSet<VmId>,
    /// Since when, in this life, clean-ups are known to be owed.
    owed_since: BTreeMap<(VmId, Fence), Tick>,
    /// How many commits the store had when its records and the host's word agreed, and nothing was owed.
    agreed_at: Option<u64>,
}

impl Cluster {
    /// A cluster that nothing is known of yet. `me` is its own handle.
    pub fn new(ctx: Arc<Context>, me: Handle<ClusterMessage>, id: ClusterId, served_by: ServedBy) -> Cluster {
        let health = Health::new(Thresholds::default(), ctx.clock.now());
        Cluster {
            ctx,
            me,
            id,
            served_by,
            health,
            seen: BTreeMap::new(),
            seen_at: None,
            looking: false,
            repairing: BTreeSet::new(),
            trouble: BTreeMap::new(),
            may_start_lost: BTreeSet::new(),
            owed_since: BTreeMap::new(),
            agreed_at: None,
        }
    }

    fn take(&mut self, message: ClusterMessage) {
        match message {
            ClusterMessage::Look => self.look(),
            ClusterMessage::Inventory(result, took) => self.inventory(result, took),
            ClusterMessage::Repaired(vm, result) => self.repaired(vm, result),
            ClusterMessage::MayStartLost(vm) => {
                self.may_start_lost.insert(vm);
                // A person's word is news, though nothing was written and the host says the same.
                self.agreed_at = None;
                self.look();
            }
            ClusterMessage::View(reply) => {
                reply.send(self.view());
            }
            ClusterMessage::Vm(vm, reply) => {
                reply.send(self.seen_vm(vm));
            }
            ClusterMessage::Vms(reply) => {
                reply.send(self.seen.keys().map(|vm| (*vm, self.seen_vm(*vm))).collect());
            }
        }
    }

    fn seen_vm(&self, vm: VmId) -> SeenVm {
        SeenVm { seen: self.seen.get(&vm).cloned(), age: self.age(), trouble: self.trouble.get(&vm).cloned() }
    }

    fn age(&self) -> Option<Millis> {
        self.seen_at.map(|at| self.ctx.clock.now().since(at))
    }

    fn look(&mut self) {
        if self.looking {
            return;
        }
        self.looking = true;
        if let Some(change) = self.health.tick(self.ctx.clock.now()) {
            self.changed(&change.reason);
        }
        let (me, driver, clock) = (self.me.clone(), self.served_by.driver.clone(), self.ctx.clock.clone());
        let operation = OperationId::of_request(self.ctx.next_request(), "inventory");
        tokio::spawn(async move {
            let asked = clock.now();
            let result = match driver.call(operation, HostCall::Inventory, LOOK_MS_MAX).await {
                Ok(HostReply::Inventory(list)) => Ok(list),
                Ok(other) => Err(HostError::Failed { why: format!("an answer of another kind: {other:?}") }),
                Err(error) => Err(error),
            };
            // A cluster that is gone has no use for it.
            let _ = me.cast(Class::Fencing, ClusterMessage::Inventory(result, clock.now().since(asked)));
        });
    }

    fn inventory(&mut self, result: Result<Vec<VmObservation>, HostError>, took: Millis) {
        self.looking = false;
        let now = self.ctx.clock.now();
        let probe = match &result {
            Ok(_) => Probe::Ok { latency: took },
            Err(HostError::Unknown { .. }) => Probe::TimedOut { after: took },
            Err(error) => Probe::Failed { why: error.to_string() },
        };
        if let Some(change) = self.health.observe(now, &probe) {
            self.changed(&change.reason);
        }
        match result {
            Ok(list) => {
                let seen: BTreeMap<VmId, VmObservation> = list.into_iter().map(|seen| (seen.vm, seen)).collect();
                let same = seen.len() == self.seen.len()
                    && seen.iter().zip(&self.seen).all(|((a, now), (b, before))| a == b && now.is_as(before));
                self.seen = seen;
                self.seen_at = Some(now);
                if same && self.agreed_at == Some(self.ctx.store.commits()) {
                    return;
                }
                if let Err(error) = self.converge() {
                    tracing::error!(cluster = %self.id, %error, "the cluster's VMs can't be compared with the records");
                }
            }
            Err(HostError::StaleIncarnation { known, .. }) => self.ctx.stop_as_older_copy(&self.id, known),
            Err(error) => {
                let away = self.seen_at.map_or(HOST_AWAY_MS, |at| now.since(at));
                if away >= HOST_AWAY_MS {
                    tracing::debug!(cluster = %self.id, %error, "the host is away: it is looked after");
                    (self.served_by.look_after)();
                }
            }
        }
    }

    fn changed(&self, reason: &str) {
        let state = self.health.state();
        tracing::info!(cluster = %self.id, ?state, reason, "cluster");
        self.ctx.events.note(self.ctx.clock.wall(), "cluster.state", &self.id, format!("{state:?}: {reason}"));
    }

    fn converge(&mut self) -> Result<(), StoreError> {
        let here = self.ctx.here(&self.id);
        // Before anything is read: what is written from now on counts as news.
        let commits = self.ctx.store.commits();
        let records: BTreeMap<VmId, _> = tables::vms(&self.ctx.store)?.into_iter().map(|r| (r.id, r)).collect();
        let mine = records.values().filter(|record| record.cluster == self.id).map(|record| record.id);
        let all: BTreeSet<VmId> = mine.chain(self.seen.keys().copied()).collect();
        let receiving: BTreeSet<VmId> = self.receiving();
        let mut owed = tables::cleanups(&self.ctx.store, Some(&self.id))?;
        owed.sort_by_key(|cleanup| (cleanup.vm, cleanup.fence));
        // As long as nobody writes and the host says the same, there is nothing new to find out.
        let idle = owed.is_empty() && self.repairing.is_empty() && self.may_start_lost.is_empty();
        for vm in all {
            if self.repairing.contains(&vm) {
                continue;
            }
            let record = records.get(&vm);
            // What this region owns is not received any more, whatever a leftover of a job says.
            let job = match record {
                Some(record) => record.job.is_some(),
                None => receiving.contains(&vm),
            };
            let decisions = tables::decisions(&self.ctx.store, vm)?;
            let seen = self.seen.get(&vm).map(|seen| seen.sight);
            let mine = record.filter(|record| record.cluster == self.id);
            let retiring: Vec<&Cleanup> =
                owed.iter().filter(|owed| owed.kind == CleanupKind::Purge && owed.vm == vm).collect();
            let fences: Vec<Fence> = retiring.iter().map(|owed| owed.fence).collect();
            let may_start = self.may_start_lost.contains(&vm);
            let repair = converge::converge(&here, mine, &decisions, &fences, job, seen.as_ref(), may_start);
            self.repair(vm, repair, mine.cloned(), &retiring);
        }
        self.agreed_at = (idle && self.repairing.is_empty()).then_some(commits);
        self.clean_up(owed)
    }

    /// VMs that a job of this region receives.
    fn receiving(&self) -> BTreeSet<VmId> {
        let open = tables::open_jobs(&self.ctx.store).map(|(_, target)| target).unwrap_or_default();
        open.into_iter().filter(|job| job.first.to.cluster == self.id).map(|job| job.first.vm).collect()
    }

    fn repair(&mut self, vm: VmId, repair: Repair, record: Option<VmRecord>, retiring: &[&Cleanup]) {
        let fence = record.as_ref().map(|record| record.fence);
        let call = match (repair, record) {
            (Repair::Nothing, _) => {
                self.trouble.remove(&vm);
                // A word that was given for one loss is not good for the next: its start was seen under the fence that
                // it was given with.
                let started =
                    |seen: &VmObservation| fence.is_some_and(|f| seen.sight.fence >= f) && !seen.sight.memory_lost();
                if self.seen.get(&vm).is_some_and(started) {
                    self.may_start_lost.remove(&vm);
                }
                return;
            }
            (Repair::Report(why), _) => {
                self.trouble.insert(vm, why.to_owned());
                return;
            }
            (Repair::Create, Some(record)) => HostCall::Create { vm, spec: record.spec, fence: record.fence },
            (Repair::Start, Some(record)) => HostCall::Start { vm, fence: record.fence },
            (Repair::Stop, Some(record)) => HostCall::Stop { vm, fence: record.fence },
            // These three need a record, and the core names them only with one.
            (Repair::Create | Repair::Start | Repair::Stop, None) => return,
            (Repair::Retire { fence }, _) => {
                let attempt = self.seen.get(&vm).map(|seen| seen.sight.attempt).unwrap_or_default();
                let owed = retiring.iter().find(|cleanup| cleanup.fence == fence);
                let Some(job) = owed.and_then(|cleanup| cleanup.job) else {
                    self.trouble.insert(vm, "it moved away, and no clean-up names the job that moved it".into());
                    return;
                };
                HostCall::Retire { key: SwitchKey { vm, job, attempt }, fence }
            }
            (Repair::AbortAndResume(key), _) => return self.abort_and_resume(key),
            (Repair::ReleaseHold(key), _) => HostCall::ReleaseHold { key },
        };
        tracing::info!(cluster = %self.id, %vm, ?repair, fence = fence.map(|f| f.to_string()), "repair");
        self.repairing.insert(vm);
        let (me, driver) = (self.me.clone(), self.served_by.driver.clone());
        let operation = OperationId::of_request(self.ctx.next_request(), "repair");
        tokio::spawn(async move {
            let result = driver.call(operation, call, limits::REQUEST_MS).await;
            let result = result.map(|_| ()).map_err(|error| error.to_string());
            let _ = me.cast(Class::Fencing, ClusterMessage::Repaired(vm, result));
        });
    }

    /// Law 6.3 e: an attempt given up before its hold is recorded as `Abort` too, and only then is the guest resumed.
    fn abort_and_resume(&mut self, key: SwitchKey) {
        let vm = key.vm;
        self.repairing.insert(vm);
        let (me, driver, ctx) = (self.me.clone(), self.served_by.driver.clone(), self.ctx.clone());
        let here = self.ctx.here(&self.id);
        tokio::spawn(async move {
            let recorded = ctx
                .store
                .transact(Work::Finish, move |txn| {
                    let known = tables::decisions_in(txn, vm)?;
                    let fence = crate::types::Fence::default();
                    if let Proposed::Recorded(record) = known.propose(key.attempt, Decision::Abort, &here, fence) {
                        tables::put_decisions(txn, vm, &record)?;
                    }
                    Ok::<_, StoreError>(())
                })
                .await;
            let result = match recorded {
                Ok(()) => {
                    let operation = OperationId::of_request(ctx.next_request(), "repair");
                    let called = driver.call(operation, HostCall::CancelPause { key }, limits::REQUEST_MS).await;
                    called.map(|_| ()).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            let _ = me.cast(Class::Fencing, ClusterMessage::Repaired(vm, result));
        });
    }

    fn repaired(&mut self, vm: VmId, result: Result<(), String>) {
        self.repairing.remove(&vm);
        match result {
            Ok(()) => {
                self.trouble.remove(&vm);
                self.may_start_lost.remove(&vm);
                self.look();
            }
            Err(why) => {
                tracing::warn!(cluster = %self.id, %vm, why, "a repair failed; it is tried again");
                self.trouble.insert(vm, why);
            }
        }
    }

    /// Disks of VMs that moved away, after their retention window; named by the fence they were retired with.
    fn clean_up(&mut self, owed: Vec<Cleanup>) -> Result<(), StoreError> {
        let now = self.ctx.clock.now();
        let still: BTreeSet<(VmId, Fence)> = owed.iter().map(|owed| (owed.vm, owed.fence)).collect();
        self.owed_since.retain(|known, _| still.contains(known));
        for owed in owed {
            let sight = self.seen.get(&owed.vm).map(|seen| seen.sight);
            let of_transfer = owed.kind == CleanupKind::Purge;
            let waited = now.since(*self.owed_since.entry((owed.vm, owed.fence)).or_insert(now));
            let window = if of_transfer { self.ctx.settings.moves.retention } else { Millis(0) };
            if self.repairing.contains(&owed.vm)
                || !converge::may_clean_up(of_transfer, owed.fence, waited, window, sight.as_ref())
            {
                continue;
            }
            let call = match owed.kind {
                CleanupKind::Purge => HostCall::Purge { vm: owed.vm, fence: owed.fence },
                CleanupKind::Delete => HostCall::Delete { vm: owed.vm, fence: owed.fence },
            };
            self.repairing.insert(owed.vm);
            let (me, driver, ctx) = (self.me.clone(), self.served_by.driver.clone(), self.ctx.clone());
            let vm = owed.vm;
            tokio::spawn(async move {
                let operation = OperationId::of_request(ctx.next_request(), "purge");
                let result = match driver.call(operation, call, limits::REQUEST_MS).await {
                    Ok(_) | Err(HostError::NotFound { .. }) => {
                        let settled =
                            ctx.store.transact(Work::Finish, move |txn| tables::settle_cleanup(txn, &owed)).await;
                        settled.map_err(|error| error.to_string())
                    }
                    Err(error) => Err(error.to_string()),
                };
                let _ = me.cast(Class::Control, ClusterMessage::Repaired(vm, result));
            });
        }
        Ok(())
    }

    fn view(&self) -> ClusterView {
        let balance = self.ctx.ledgers.with(&self.id, |ledger| (ledger.balance(), ledger.vms())).unwrap_or_default();
        let age = self.age();
        let stale = age.is_none_or(|age| age > Context::fresh_for());
        ClusterView {
            id: self.id.clone(),
            region: self.ctx.region.clone(),
            host: self.served_by.host.clone(),
            driver: self.served_by.kind.into(),
            state: self.health.state(),
            reason: self.health.reason().to_owned(),
            since_ms: self.ctx.clock.now().since(self.health.since()),
            capacity: balance.0.capacity,
            used: balance.0.used,
            reserved: balance.0.reserved,
            vms: balance.1 as u64,
            age_ms: age,
            stale,
        }
    }
}

impl Serve for Cluster {
    type Message = ClusterMessage;

    async fn started(&mut self, ctx: &mut Ctx<ClusterMessage>) -> Result<(), HandlerError> {
        self.me = ctx.this();
        ctx.send_every(LOOK_EVERY, Class::Control, || ClusterMessage::Look);
        self.look();
        Ok(())
    }

    async fn handle(&mut self, message: ClusterMessage, _: &mut Ctx<ClusterMessage>) -> Result<(), HandlerError> {
        self.take(message);
        Ok(())
    }
}
