//! What clients do. Owns: tenants, who create, start, stop, delete and read VMs, and movers, who move them about.
//! Always: an order is repeated with its key until it is answered or its client loses patience; what is acknowledged is
//! written down first; a VM's power is ordered by its tenant alone, so what was acknowledged last is known.
//! Not here: one request (`client.rs`), what is made of the answers (`judge.rs`), the registers (`registers.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use super::client::ask;
use super::registers::{Asked, Registers};
use super::world::World;
use crate::admin::client::Ask;
use crate::admin::{CreatedVm, ObservedPower, VmView};
use crate::chaos::history::Answer;
use crate::chaos::sim::book::{Book, Creation, KnownJob, KnownVm, Was};
use crate::chaos::sim::client::Heard;
use crate::types::units::{KIB, MIB};
use crate::types::{
    GuestProgram, JobId, JobState, MigrationPlan, MigrationStatus, Millis, Place, RegionName, VmId, VmSpec,
};

/// How often an order is repeated.
const TRIES_MAX: u32 = 12;
/// How long a mover follows a move.
const FOLLOW_MAX: Millis = Millis(120_000);
/// Between two wishes of a tenant, and of a mover, at most.
const THINK: (Millis, Millis) = (Millis(400), Millis(150));
/// VMs of a tenant.
const SHARE: usize = 7;
/// Movers for each region: enough that most VMs are on their way.
const MOVERS: usize = 5;

/// The clients of a run.
pub struct Workload {
    world: Arc<World>,
    /// What they know.
    pub book: Book,
    /// What they asked of registers, and were told.
    pub registers: Registers,
    /// What was asked for, by name, for the judge of memory and disk.
    specs: Mutex<BTreeMap<VmId, VmSpec>>,
    /// Moves that are open, with their regions.
    open: Mutex<BTreeMap<JobId, (usize, usize)>>,
    moved: AtomicUsize,
}

/// One client.
struct Client {
    work: Arc<Workload>,
    name: String,
    serial: u64,
    registers: Asked,
}

impl Workload {
    /// Nobody has done anything yet.
    pub fn new(world: Arc<World>) -> Arc<Workload> {
        let registers = Registers::new(world.clock.clone());
        Arc::new(Workload {
            world,
            book: Book::default(),
            registers,
            specs: Mutex::default(),
            open: Mutex::default(),
            moved: AtomicUsize::new(0),
        })
    }

    /// Runs one tenant and [`MOVERS`] movers for each region until faults are over.
    pub async fn run(self: Arc<Workload>) {
        let client = |kind: &str, n: usize| Client {
            work: self.clone(),
            name: format!("{kind}{n}"),
            serial: 0,
            registers: self.registers.client(),
        };
        let count = self.world.regions.len();
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..count {
            clients.spawn(client("tenant", n).be_tenant());
        }
        for n in 0..MOVERS * count {
            clients.spawn(client("mover", n).be_mover());
        }
        while let Some(ended) = clients.join_next().await {
            // A client that panics is a bug of the harness, and loud.
            ended.expect("a client does not panic");
        }
    }

    /// Source and target of a move that is open and goes to another region.
    pub fn open_move(&self) -> Option<(usize, usize)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().copied().find(|(from, to)| from != to)
    }
    /// Moves whose end nobody saw and nobody waits for.
    pub fn unfollowed(&self) -> Vec<JobId> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pages = self.book.pages();
        let unseen = pages.jobs.iter().filter(|(job, known)| known.end.is_none() && !open.contains_key(job));
        unseen.map(|(job, _)| *job).collect()
    }
    /// What a VM was asked to be.
    pub fn spec(&self, vm: VmId) -> Option<VmSpec> {
        self.specs.lock().unwrap_or_else(PoisonError::into_inner).get(&vm).cloned()
    }
    /// Moves that completed, as far as clients saw.
    pub fn moved(&self) -> usize {
        self.moved.load(Ordering::Relaxed)
    }
}

impl Client {
    fn world(&self) -> &Arc<World> {
        &self.work.world
    }
    fn any_region(&self) -> usize {
        self.world().below(self.world().regions.len())
    }
    fn key(&mut self) -> String {
        self.serial += 1;
        format!("{}-{}", self.name, self.serial)
    }
    async fn pause(&self, most: Millis) {
        self.world().until(Millis(self.world().dice(most.0))).await;
    }
    fn note(&self, what: impl std::fmt::Display) {
        self.world().note(&self.name, what);
    }

    /// Asks, and asks again with the same key while nothing is known. Through another region now and then.
    async fn order(&self, mut via: usize, what: Ask) -> Heard {
        let mut heard = Heard::Unknown("NOT_ASKED".into());
        // As far as it is known, of all tries together.
        let mut perhaps = false;
        for n in 0..TRIES_MAX {
            if n > 0 {
                let pause = Millis(50 + self.world().dice(400 << n.min(3)));
                // Also while it heals: an order that was made is heard of, if it can be.
                tokio::time::sleep(pause.duration()).await;
                if self.world().chance(200) {
                    via = self.any_region();
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
            if self.world().is_healing() && n >= 4 {
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

    async fn be_tenant(mut self) {
        let mut mine: Vec<VmId> = Vec::new();
        while !self.world().is_healing() {
            self.pause(THINK.0).await;
            let wish = self.world().below(100);
            if mine.len() < SHARE && (wish < 50 || mine.is_empty()) {
                mine.extend(self.create().await);
                continue;
            }
            let at = self.world().below(mine.len());
            match wish {
                0..60 => self.read(mine[at]).await,
                60..68 => self.list().await,
                68..78 => self.power(mine[at], false).await,
                78..96 => self.power(mine[at], true).await,
                _ => {
                    let vm = mine.swap_remove(at);
                    self.delete(vm).await;
                }
            }
            // A register has a limit; its VM makes room for one with a new register.
            if let Some(at) = mine.iter().position(|vm| self.work.registers.is_full(*vm)) {
                let vm = mine.swap_remove(at);
                self.delete(vm).await;
            }
        }
    }

    fn draw_spec(&self, name: &str) -> VmSpec {
        let world = self.world();
        let resident_bytes = (64 + world.dice(448)) * 4 * KIB;
        VmSpec {
            name: name.parse().expect("names of clients match the grammar"),
            namespace: "default".parse().expect("a literal that matches the grammar"),
            cpu: 1,
            memory_bytes: 4 * MIB,
            disk_bytes: 4 * MIB,
            labels: [("serial".to_owned(), name.to_owned())].into(),
            program: GuestProgram {
                seed: world.dice(u64::MAX),
                tick_ms: [20, 30, 50][world.below(3)],
                resident_bytes,
                working_set_bytes: resident_bytes / 2,
                dirty_bytes_per_second: world.dice(64) * 4 * KIB,
                disk_resident_bytes: (1 + world.dice(7)) * 64 * KIB,
                disk_bytes_per_second: world.dice(1) * 64 * KIB,
                ..GuestProgram::default()
            },
        }
    }

    async fn create(&mut self) -> Option<VmId> {
        let key = self.key();
        let name = key.clone();
        let home = self.any_region();
        let via = if self.world().chance(700) { home } else { self.any_region() };
        let spec = self.draw_spec(&name);
        let mut body = serde_json::to_value(&spec).expect("a spec is JSON");
        body["placement"] = json!({ "region": self.world().regions[home] });
        self.work.book.pages().creations.insert(name.clone(), Creation { was: Was::Perhaps, vm: None, taken: false });
        let heard = self.order(via, Ask::post("/v2/vms").body(&body).key(key)).await;
        self.note(format_args!("creates {name}: {}", heard.word()));
        let created = heard.shown::<CreatedVm>().and_then(|created| created.vm);
        if let Some(vm) = &created {
            let place = self.world().place(&vm.place);
            self.registers.begins(&self.work.registers, vm.record.id, place);
            let mut specs = self.work.specs.lock().unwrap_or_else(PoisonError::into_inner);
            specs.insert(vm.record.id, spec);
        }
        let mut pages = self.work.book.pages();
        let creation = pages.creations.get_mut(&name)?;
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
        match seen_at.and_then(|region: RegionName| self.world().named(&region)) {
            Some(n) if self.world().chance(750) => n,
            _ => self.any_region(),
        }
    }

    async fn read(&mut self, vm: VmId) {
        let via = self.near(vm);
        let reads = self.registers.reads(&self.work.registers, vm);
        let heard = self.ask(via, Ask::get(format!("/v2/vms/{vm}"))).await;
        let view = heard.shown::<VmView>();
        // Only the owner's word is the register's; an older one says how old it is.
        let fresh = view.as_ref().filter(|view| view.age_ms == Millis(0));
        let place = fresh.and_then(|view| self.world().place(&view.place));
        self.registers.have_read(&self.work.registers, reads, fresh.map(|view| view.record.desired), place);
        let Some(view) = view else { return };
        let lost = view.power == ObservedPower::Lost;
        let to_run = {
            let mut pages = self.work.book.pages();
            let Some(known) = pages.vms.get_mut(&vm) else { return };
            known.seen_at = view.place;
            known.to_run
        };
        // Whose memory was lost is started again by whoever it belongs to.
        if lost && to_run != Some(false) {
            self.note(format_args!("finds {vm} lost"));
            self.power(vm, true).await;
        }
    }

    async fn list(&mut self) {
        let paths = ["/v2/vms", "/v2/clusters", "/v2/federation/status", "/v2/migrations?limit=20", "/v2/tree"];
        let path = paths[self.world().below(paths.len())];
        self.ask(self.any_region(), Ask::get(path)).await;
    }

    async fn power(&mut self, vm: VmId, run: bool) {
        let (key, word) = (self.key(), if run { "start" } else { "stop" });
        let before = self.work.book.pages().vms.get_mut(&vm).and_then(|known| known.to_run.take());
        let orders = self.registers.orders(&self.work.registers, vm, run);
        let heard = self.order(self.near(vm), Ask::post(format!("/v2/vms/{vm}/{word}")).key(key)).await;
        self.registers.done(&self.work.registers, orders, answer(&heard));
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
        let heard = self.order(self.near(vm), Ask::delete(format!("/v2/vms/{vm}")).key(key)).await;
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
        while !self.world().is_healing() {
            self.pause(THINK.1).await;
            let living = self.work.book.pages().living();
            if living.is_empty() {
                self.world().until(Millis(200)).await;
            } else {
                let vm = living[self.world().below(living.len())];
                self.move_about(vm).await;
            }
        }
    }

    async fn move_about(&mut self, vm: VmId) {
        let Some(seen_at) = self.work.book.pages().vms.get(&vm).map(|known| known.seen_at.clone()) else { return };
        let others: Vec<Place> = self.world().places.iter().filter(|place| **place != seen_at).cloned().collect();
        let target = others[self.world().below(others.len())].clone();
        let (plan_key, start_key) = (self.key(), self.key());
        let body = json!({ "vmID": vm, "targetClusterID": target });
        let via = self.near(vm);
        let heard = self.order(via, Ask::post("/v2/migration-plans").body(&body).key(plan_key)).await;
        let Some(plan) = heard.shown::<MigrationPlan>() else {
            self.note(format_args!("plans {vm} to {target}: {}", heard.word()));
            return;
        };
        if let Some(known) = self.work.book.pages().vms.get_mut(&vm) {
            known.seen_at = plan.source.clone();
        }
        if !plan.executable || self.world().is_healing() {
            return;
        }
        self.work.book.pages().moves += 1;
        let (from, to) = (self.world().place(&plan.source), self.world().place(&plan.target));
        let moves = self.registers.moves(&self.work.registers, vm, from, to);
        let start = Ask::post("/v2/migrations").body(&json!({ "planID": plan.id })).key(start_key);
        let heard = self.order(via, start).await;
        self.note(format_args!("moves {vm} to {target}: {}", heard.word()));
        let Some(job) = heard.shown::<MigrationStatus>() else {
            self.registers.done(&self.work.registers, moves, answer(&heard));
            return;
        };
        self.work.book.pages().jobs.entry(job.id).or_insert(KnownJob { vm, end: None });
        let region = |place: &Place| self.world().named(&place.region);
        if let (Some(from), Some(to)) = (region(&job.source), region(&job.target)) {
            self.work.open.lock().unwrap_or_else(PoisonError::into_inner).insert(job.id, (from, to));
        }
        let end = self.follow(&job).await;
        self.work.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.id);
        let moved = match end {
            Some(JobState::Completed) if job.source == plan.source => Answer::Done,
            Some(JobState::RolledBack | JobState::Cancelled) => Answer::Failed,
            _ => Answer::Unknown,
        };
        self.registers.done(&self.work.registers, moves, moved);
    }

    async fn follow(&mut self, job: &MigrationStatus) -> Option<JobState> {
        let at_home = self.world().numbered(job.id.region);
        let cancel_at = self.world().chance(60).then(|| self.world().dice(2_000));
        let (mut waited, mut cancelled) = (0, false);
        let mut phase = String::new();
        while waited < FOLLOW_MAX.0 && !self.world().is_healing() {
            let pause = 40 + self.world().dice(160);
            self.world().until(Millis(pause)).await;
            waited += pause;
            let via = if self.world().chance(850) { at_home } else { self.any_region() };
            if cancel_at.is_some_and(|at| waited >= at) && !cancelled {
                cancelled = true;
                let key = self.key();
                let path = format!("/v2/migrations/{}/cancel", job.id);
                let heard = self.order(via, Ask::post(path).body(&json!({ "reason": "chaos" })).key(key)).await;
                self.note(format_args!("cancels {}: {}", job.id, heard.word()));
            }
            let heard = self.ask(via, Ask::get(format!("/v2/migrations/{}", job.id))).await;
            let Some(now) = heard.shown::<MigrationStatus>() else { continue };
            if now.phase != phase {
                self.world().passed(&now.phase);
                phase = now.phase.clone();
            }
            if now.state.is_end() {
                let why = now.reason.as_deref().unwrap_or("");
                self.note(format_args!("sees {} {} {why}", job.id, now.status));
                let mut pages = self.work.book.pages();
                if let Some(known) = pages.jobs.get_mut(&job.id) {
                    known.end = Some(now.state);
                }
                if now.state == JobState::Completed {
                    self.work.moved.fetch_add(1, Ordering::Relaxed);
                    if let Some(known) = pages.vms.get_mut(&job.vm) {
                        known.seen_at = now.target;
                    }
                }
                return Some(now.state);
            }
        }
        None
    }
}

/// What a register's client is told by an order's answer.
fn answer(heard: &Heard) -> Answer {
    match heard {
        Heard::Done(_) => Answer::Done,
        Heard::Refused(_) => Answer::Failed,
        Heard::Unknown(_) => Answer::Unknown,
    }
}
