//! What clients do. Owns: tenants, who create, start, stop, delete and read VMs, and movers, who move them about.
//! Always: an order is repeated with its key until it is answered or its client loses patience; a VM's power is ordered
//! by its tenant alone, so what was acknowledged last is known.
//! Not here: one request (`client.rs`), what is made of the answers (`checks.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use super::book::{Book, Creation, KnownJob, KnownVm, Was};
use super::client::{Ask, Heard, ask};
use super::world::World;
use crate::admin::{CreatedVm, VmView};
use crate::chaos::history::{Answer, Call, OpId, Process, Recorder};
use crate::chaos::invariants::{Ledger, SESSIONS_GO_ON};
use crate::types::units::{KIB, MIB};
use crate::types::{Fence, GuestProgram, JobState, MigrationPlan, MigrationStatus, Millis, Place, VmId, VmSpec};

/// How often an order is repeated.
const TRIES_MAX: u32 = 8;
/// How long a mover follows a move.
const FOLLOW_MAX: Millis = Millis(120_000);

/// The clients of a run.
pub struct Workload {
    world: Arc<World>,
    /// What they know.
    pub book: Book,
    /// What they asked and were told about who owns a VM: its epoch, which each move to another region raises by one.
    pub history: Recorder,
    /// What no client may see: that what it saw was undone.
    pub sessions: Mutex<Ledger>,
    /// No more moves are begun.
    moved: AtomicBool,
}

/// One client.
struct Client {
    work: Arc<Workload>,
    name: String,
    serial: u64,
    /// As whom its next question is recorded.
    process: Process,
    /// The epoch of each VM that it saw last.
    seen: BTreeMap<VmId, u64>,
}

impl Workload {
    /// Nobody has done anything yet.
    pub fn new(world: Arc<World>) -> Arc<Workload> {
        let sessions = Mutex::new(Ledger::expecting(&[SESSIONS_GO_ON]));
        let moved = AtomicBool::new(false);
        Arc::new(Workload { world, book: Book::default(), history: Recorder::new(), sessions, moved })
    }

    /// Runs all clients until faults are over.
    pub async fn run(self: &Arc<Workload>) {
        let client = |kind: &str, n: usize| Client {
            work: self.clone(),
            name: format!("{kind}{n}"),
            serial: 0,
            process: self.history.process(),
            seen: BTreeMap::new(),
        };
        let tenants: Vec<_> =
            (0..self.world.plan.clients).map(|n| tokio::spawn(client("tenant", n).be_tenant())).collect();
        let movers: Vec<_> = (0..self.world.plan.movers).map(|n| tokio::spawn(client("mover", n).be_mover())).collect();
        for mover in movers {
            // A client that panics is a bug of the simulator, and loud.
            mover.await.expect("a mover does not panic");
        }
        self.moved.store(true, Ordering::Relaxed);
        for tenant in tenants {
            tenant.await.expect("a tenant does not panic");
        }
    }

    /// Whether all moves were made.
    pub fn all_moved(&self) -> bool {
        self.moved.load(Ordering::Relaxed)
    }
}

impl Client {
    fn world(&self) -> &Arc<World> {
        &self.work.world
    }
    fn dice(&self, max: usize) -> usize {
        usize::try_from(self.world().dice(0..=max as u64)).expect("it was a usize")
    }
    fn key(&mut self) -> String {
        self.serial += 1;
        format!("{}-{}", self.name, self.serial)
    }
    async fn pause(&self, most: Millis) {
        self.world().until(Millis(self.world().dice(0..=most.0))).await;
    }

    /// Asks, and asks again with the same key while nothing is known. Through another region now and then.
    async fn order(&self, mut via: usize, what: Ask) -> Heard {
        let mut heard = Heard::Unknown("NOT_ASKED".into());
        // As far as it is known, of all tries together.
        let mut perhaps = false;
        for n in 0..TRIES_MAX {
            if n > 0 {
                self.world().until(Millis(self.world().dice(50..=400 << n.min(4)))).await;
                if self.world().chance(200) {
                    via = self.dice(self.world().regions().len() - 1);
                }
            }
            heard = self.ask(via, what.clone()).await;
            match &heard {
                Heard::Done(_) => return heard,
                // These say that it was not begun this time, and that another time it may be.
                Heard::Refused(code) if code == "NOT_RUNNING" || code == "BUSY" => {}
                // Refused now: but an earlier try may have been done, or be done yet.
                Heard::Refused(_) if !perhaps => return heard,
                Heard::Refused(_) => {}
                Heard::Unknown(_) => perhaps = true,
            }
            if self.world().is_healing() && n >= 2 {
                break;
            }
        }
        match heard {
            Heard::Refused(code) if perhaps => Heard::Unknown(code),
            heard => heard,
        }
    }

    async fn ask(&self, via: usize, what: Ask) -> Heard {
        let heard = ask(self.world(), via, what).await;
        let mut pages = self.work.book.pages();
        pages.operations += 1;
        pages.unknown += u64::from(matches!(heard, Heard::Unknown(_)));
        heard
    }

    fn note(&self, what: impl std::fmt::Display) {
        self.world().trace.note(&self.name, what);
    }

    async fn be_tenant(mut self) {
        let mut mine: Vec<VmId> = Vec::new();
        let share = self.world().plan.vms_max.div_ceil(self.world().plan.clients);
        while !self.world().is_healing() {
            let think = self.world().plan.think;
            // Nobody waits for them any more: only long faults do.
            let slower = if self.work.all_moved() { 40 } else { 1 };
            self.pause(Millis(think.0 * slower)).await;
            let wish = self.dice(99);
            if mine.len() < share && (wish < 40 || mine.is_empty()) {
                mine.extend(self.create().await);
                continue;
            }
            let Some(at) = (!mine.is_empty()).then(|| self.dice(mine.len() - 1)) else { continue };
            match wish {
                0..50 => drop(self.read(mine[at]).await),
                50..60 => self.list().await,
                60..75 => self.power(mine[at], false).await,
                75..96 => self.power(mine[at], true).await,
                _ => {
                    let vm = mine.swap_remove(at);
                    self.delete(vm).await;
                }
            }
        }
    }

    fn spec(&self, name: &str) -> VmSpec {
        let world = self.world();
        let resident_bytes = world.dice(16..=96) * 4 * KIB;
        VmSpec {
            name: name.parse().expect("names of clients match the grammar"),
            namespace: "default".parse().expect("a literal that matches the grammar"),
            cpu: 1,
            memory_bytes: MIB,
            disk_bytes: 4 * MIB,
            labels: [("serial".to_owned(), name.to_owned())].into(),
            program: GuestProgram {
                seed: world.dice(1..=u64::MAX),
                tick_ms: [500, 1_000, 2_500][self.dice(2)],
                resident_bytes,
                working_set_bytes: resident_bytes / 2,
                dirty_bytes_per_second: world.dice(0..=24) * KIB,
                disk_resident_bytes: world.dice(0..=3) * 64 * KIB,
                disk_bytes_per_second: world.dice(0..=1) * 32 * KIB,
                ..GuestProgram::default()
            },
        }
    }

    async fn create(&mut self) -> Option<VmId> {
        let key = self.key();
        let name = key.clone();
        let home = self.dice(self.world().regions().len() - 1);
        let via = if self.world().chance(700) { home } else { self.dice(self.world().regions().len() - 1) };
        let mut body = serde_json::to_value(self.spec(&name)).expect("a spec is JSON");
        body["placement"] = json!({ "region": self.world().region(home).plan.name });
        self.work.book.pages().creations.insert(name.clone(), Creation { was: Was::Perhaps, vm: None, taken: false });
        self.note(format_args!("creates {name}"));
        let heard = self.order(via, Ask::post("/v2/vms", &key, &body)).await;
        self.note(format_args!("creates {name}: {}", heard.word()));
        let created = heard.shown::<CreatedVm>().and_then(|created| created.vm);
        if let Some(vm) = &created {
            // Nobody else knows of it yet.
            let op = self.invoke(vm.record.id, Call::Write(Fence::FIRST.epoch));
            self.answered(op, Answer::Done);
        }
        let mut pages = self.work.book.pages();
        let creation = pages.creations.get_mut(&name)?;
        creation.taken = matches!(&heard, Heard::Unknown(code) | Heard::Refused(code) if code == "CONFLICT");
        creation.was = match heard {
            Heard::Done(_) => Was::Done,
            Heard::Refused(_) => Was::NotDone,
            Heard::Unknown(_) => Was::Perhaps,
        };
        let vm = created?;
        creation.vm = Some(vm.record.id);
        let known = KnownVm { name, deleted: Was::NotDone, to_run: Some(true), seen_at: vm.place };
        pages.vms.insert(vm.record.id, known);
        Some(vm.record.id)
    }

    /// Where a request about the VM is made: mostly where it is.
    fn near(&self, vm: VmId) -> usize {
        let seen_at = self.work.book.pages().vms.get(&vm).map(|known| known.seen_at.region.clone());
        match seen_at.and_then(|region| self.world().number_of(&region)) {
            Some(n) if self.world().chance(750) => n,
            _ => self.dice(self.world().regions().len() - 1),
        }
    }

    /// Begins a recorded question about who owns the VM.
    fn invoke(&self, vm: VmId, call: Call) -> OpId {
        self.work.history.invoke(self.process, &vm.to_string(), call, self.world().trace.now().0)
    }
    /// Its end; after one that nobody knows this client goes on as somebody else.
    fn answered(&mut self, op: OpId, answer: Answer) {
        self.work.history.done(op, answer, self.world().trace.now().0);
        if answer == Answer::Unknown {
            self.process = self.work.history.process();
        }
    }

    async fn read(&mut self, vm: VmId) -> Option<VmView> {
        let op = self.invoke(vm, Call::Read);
        let heard = self.ask(self.near(vm), Ask::get(format!("/v2/vms/{vm}"))).await;
        self.note(format_args!("reads {vm}: {}", heard.word()));
        // Only its owner's own word is its state; anybody else's is history, and says so by its age.
        let view = heard.shown::<VmView>().filter(|view| view.age_ms == Millis(0));
        let epoch = view.as_ref().map(|view| view.record.fence.epoch);
        self.answered(op, epoch.map_or(Answer::Failed, |epoch| Answer::Value(Some(epoch))));
        let (view, epoch) = (view?, epoch?);
        let before = self.seen.insert(vm, epoch).unwrap_or(0);
        let goes_on = if epoch >= before {
            Ok(())
        } else {
            Err(format!("{} saw {vm} in epoch {before}, and then in epoch {epoch}", self.name))
        };
        self.work.sessions.lock().unwrap_or_else(PoisonError::into_inner).check(SESSIONS_GO_ON, goes_on);
        if let Some(known) = self.work.book.pages().vms.get_mut(&vm) {
            known.seen_at = view.place.clone();
        }
        Some(view)
    }

    async fn list(&mut self) {
        let paths = ["/v2/vms", "/v2/clusters", "/v2/federation/status", "/v2/migrations", "/v2/tree"];
        let via = self.dice(self.world().regions().len() - 1);
        let path = paths[self.dice(paths.len() - 1)];
        let heard = self.ask(via, Ask::get(path)).await;
        self.note(format_args!("reads {path}: {}", heard.word()));
    }

    async fn power(&mut self, vm: VmId, run: bool) {
        let (key, word) = (self.key(), if run { "start" } else { "stop" });
        let before = self.work.book.pages().vms.get_mut(&vm).and_then(|known| known.to_run.take());
        let heard = self.order(self.near(vm), Ask::order(format!("/v2/vms/{vm}/{word}"), &key)).await;
        self.note(format_args!("{word}s {vm}: {}", heard.word()));
        if let Some(known) = self.work.book.pages().vms.get_mut(&vm) {
            known.to_run = match heard {
                Heard::Done(_) => Some(run),
                Heard::Refused(_) => before,
                Heard::Unknown(_) => None,
            };
        }
    }

    async fn delete(&mut self, vm: VmId) {
        let key = self.key();
        if let Some(known) = self.work.book.pages().vms.get_mut(&vm) {
            known.deleted = Was::Perhaps;
        }
        let heard = self.order(self.near(vm), Ask::delete(format!("/v2/vms/{vm}"), &key)).await;
        self.note(format_args!("deletes {vm}: {}", heard.word()));
        if let Some(known) = self.work.book.pages().vms.get_mut(&vm) {
            known.deleted = match heard {
                Heard::Done(_) => Was::Done,
                Heard::Refused(_) => Was::NotDone,
                Heard::Unknown(_) => Was::Perhaps,
            };
        }
    }

    async fn be_mover(mut self) {
        loop {
            self.pause(self.world().plan.think).await;
            if self.world().is_healing() {
                return;
            }
            let vm = {
                let living = self.work.book.pages().living();
                if living.is_empty() { None } else { Some(living[self.dice(living.len() - 1)]) }
            };
            let Some(vm) = vm else {
                self.world().until(Millis(200)).await;
                continue;
            };
            {
                let mut pages = self.work.book.pages();
                if pages.moves >= self.world().plan.moves {
                    return;
                }
                pages.moves += 1;
            }
            self.move_about(vm).await;
        }
    }

    async fn move_about(&mut self, vm: VmId) {
        let places: Vec<Place> = self
            .world()
            .plan
            .places()
            .map(|(region, cluster)| Place { region: region.name.clone(), cluster: cluster.clone() })
            .collect();
        let Some(seen_at) = self.work.book.pages().vms.get(&vm).map(|known| known.seen_at.clone()) else { return };
        let others: Vec<&Place> = places.iter().filter(|place| **place != seen_at).collect();
        if others.is_empty() {
            return;
        }
        let target = others[self.dice(others.len() - 1)].clone();
        let (plan_key, start_key) = (self.key(), self.key());
        let body = json!({ "vmID": vm, "targetClusterID": target });
        let via = self.near(vm);
        let heard = self.order(via, Ask::post("/v2/migration-plans", &plan_key, &body)).await;
        self.note(format_args!("plans {vm} to {target}: {}", heard.word()));
        let Some(plan) = heard.shown::<MigrationPlan>() else { return };
        if !plan.executable {
            return;
        }
        // A plan is started as long as the VM is as it was planned for: so this is the epoch that the move begins from.
        let Some(now) = self.read(vm).await else { return };
        if now.record.resource_version != plan.resource_version || now.place != plan.source {
            return;
        }
        let from = now.record.fence.epoch;
        let abroad = plan.source.region != plan.target.region;
        let op = abroad.then(|| self.invoke(vm, Call::Cas { from, to: from + 1 }));
        let heard = self.order(via, Ask::post("/v2/migrations", &start_key, &json!({ "planID": plan.id }))).await;
        self.note(format_args!("moves {vm} to {target}: {}", heard.word()));
        let end = match (&heard, heard.shown::<MigrationStatus>()) {
            (_, Some(job)) => {
                self.work.book.pages().jobs.entry(job.id).or_insert(KnownJob { vm, end: None });
                match self.follow(&job, via).await {
                    Some(JobState::Completed) => Answer::Done,
                    Some(_) => Answer::Failed,
                    None => Answer::Unknown,
                }
            }
            (Heard::Refused(_), None) => Answer::Failed,
            (Heard::Done(_) | Heard::Unknown(_), None) => Answer::Unknown,
        };
        if let Some(op) = op {
            self.answered(op, end);
        }
    }

    /// Follows a job until its end is seen; `None` if it was not.
    async fn follow(&mut self, job: &MigrationStatus, via: usize) -> Option<JobState> {
        let cancel_at = self.world().chance(60).then(|| self.world().dice(0..=4_000));
        let (mut waited, mut cancelled) = (0, false);
        while waited < FOLLOW_MAX.0 && !self.world().is_healing() {
            let pause = self.world().dice(100..=800);
            self.world().until(Millis(pause)).await;
            waited += pause;
            if cancel_at.is_some_and(|at| waited >= at) && !cancelled {
                cancelled = true;
                let key = self.key();
                let path = format!("/v2/migrations/{}/cancel", job.id);
                let heard = self.order(via, Ask::post(path, &key, &json!({ "reason": "chaos" }))).await;
                self.note(format_args!("cancels {}: {}", job.id, heard.word()));
            }
            let heard = self.ask(via, Ask::get(format!("/v2/migrations/{}", job.id))).await;
            let Some(now) = heard.shown::<MigrationStatus>() else { continue };
            if now.state.is_end() {
                self.note(format_args!("sees {} {}", job.id, now.status));
                let mut pages = self.work.book.pages();
                if let Some(known) = pages.jobs.get_mut(&job.id) {
                    known.end = Some(now.state);
                }
                if let Some(known) = pages.vms.get_mut(&job.vm)
                    && now.state == JobState::Completed
                {
                    known.seen_at = now.target;
                }
                return Some(now.state);
            }
        }
        None
    }
}
