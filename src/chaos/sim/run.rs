//! A run of one seed. Owns: its phases: all start, faults and clients, healing, the last look.
//! Always: one thread, paused time; what a run comes to is a function of its plan.
//! Not here: many seeds (`sweep.rs`), taking faults away from a plan that fails (`shrink.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::checks::{self, Sights};
use super::coverage::Met;
use super::operator;
use super::plan::Plan;
use super::region;
use super::workload::Workload;
use super::world::{Exit, World};
use crate::chaos::history::History;
use crate::chaos::invariants::Ledger;
use crate::chaos::summary::JudgeCount;
use crate::types::{JobState, Millis};

/// How long the regions may take to be up.
const START_MAX: Millis = Millis(60_000);
/// How long healing may take: within it everything must have settled (architecture, law 7.4).
pub const HEAL_MAX: Millis = Millis(60_000);
/// Between two looks while it heals.
const LOOK_EVERY: Millis = Millis(500);

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Hash of its events.
    pub hash: u64,
    /// How many there were.
    pub events: u64,
    /// Their text, if it was kept.
    pub lines: Vec<String>,
    /// What was checked.
    pub ledger: Ledger,
    /// Regions.
    pub regions: usize,
    /// Virtual time while a job or a fault was open.
    pub busy: Millis,
    /// From the end of faults until everything had settled.
    pub healed_in: Millis,
    /// Requests of clients.
    pub operations: u64,
    /// Those without an answer.
    pub unknown: u64,
    /// Moves whose start was acknowledged.
    pub migrations: u64,
    /// By how they ended.
    pub ends: BTreeMap<JobState, u64>,
    /// Jobs that a person had to answer, by why.
    pub parked: BTreeMap<String, u64>,
    /// What clients asked and were told about who owns a VM.
    pub history: History,
    /// Client histories, by who judged them.
    pub judges: BTreeMap<String, JudgeCount>,
    /// How nodes ended by themselves.
    pub exits: BTreeMap<Exit, u64>,
    /// Which faults met which steps.
    pub met: Met,
}

impl Outcome {
    /// The first thing that did not hold: its name and what was seen.
    pub fn violation(&self) -> Option<(String, String)> {
        let violated = self.ledger.invariants().iter().find(|invariant| invariant.violated > 0)?;
        Some((violated.name.clone(), violated.examples.first().cloned().unwrap_or_default()))
    }
}

/// Runs `plan` to its end, on this thread. `keep`: the text of all events is kept.
///
/// # Panics
/// If the simulator itself is wrong.
pub fn run(plan: Plan, keep: bool) -> Outcome {
    runtime(plan.seed).block_on(play(plan, keep))
}

/// Lets panics that a fault makes pass without a word; any other is printed as ever.
pub fn quiet_planned_panics() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload().is::<super::points::Planned>() {
            loud(panic);
        }
    }));
}

/// Whether this binary can simulate: which of several tasks is woken first must be a function of the seed, too.
///
/// # Errors
/// What is missing, and what to do.
pub fn can_simulate() -> Result<(), String> {
    if cfg!(tokio_unstable) {
        return Ok(());
    }
    Err("this binary can't simulate: it was built without `--cfg tokio_unstable`, and so could not repeat a run. \
         Build it in a checkout, whose .cargo/config.toml sets that, and without RUSTFLAGS of your own"
        .into())
}

/// A thread's runtime on paused time, on which every choice is a function of `seed`.
///
/// # Panics
/// If the system gives no memory.
pub fn runtime(seed: u64) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder.build().expect("a runtime without sockets can be made")
}

async fn play(plan: Plan, keep: bool) -> Outcome {
    let world = World::new(plan, keep);
    let regions = world.regions().len();
    for (region, cluster, _) in world.hosts() {
        world.start_host(region, cluster).await;
    }
    let managers: Vec<_> = (0..regions).map(|n| tokio::spawn(region::keep_running(world.clone(), n))).collect();
    let up = within(START_MAX, async || world.regions().iter().all(|region| region.life().is_some())).await;
    assert!(up, "seed {}: the regions do not start without faults", world.plan.seed);
    let began = world.trace.now();
    world.trace.note("run", "all regions are up");
    let faults = world.plan.faults.clone();
    let injectors: Vec<_> = faults
        .into_iter()
        .enumerate()
        .map(|(n, fault)| tokio::spawn(super::inject::run(world.clone(), n, fault)))
        .collect();
    let work = Workload::new(world.clone());
    let clients = tokio::spawn({
        let work = work.clone();
        async move { work.run().await }
    });
    safety(&world, &work).await;
    world.heal();
    world.trace.note("run", "faults are over");
    let healing = world.trace.now();
    for injector in injectors {
        injector.await.expect("an injector does not panic");
    }
    clients.await.expect("clients do not panic");
    let (sights, person, healed_in) = heal(&world).await;
    world.trace.note("run", format_args!("settled, {} things open", sights.open.len()));
    for open in &sights.open {
        world.trace.note("run", format_args!("open: {open}"));
    }
    if !sights.open.is_empty() {
        for job in &operator::open_jobs(&world).await {
            world.trace.note("run", job);
        }
    }
    let mut ledger = world.witness.ledger();
    let pages = work.book.pages();
    checks::check_all(&world, &sights, &pages, &mut ledger);
    ledger.add(&work.sessions.lock().unwrap_or_else(PoisonError::into_inner));
    let history = work.history.history();
    let judges = checks::judge(&history, &mut ledger);

    let busy = Millis(healing.since(began).0 + healed_in.0);
    let mut ends = BTreeMap::new();
    for end in pages.jobs.values().filter_map(|job| job.end) {
        *ends.entry(end).or_default() += 1;
    }
    for manager in managers {
        manager.abort();
    }
    Outcome {
        seed: world.plan.seed,
        hash: world.trace.hash(),
        events: world.trace.events(),
        lines: world.trace.lines(),
        ledger,
        regions,
        busy,
        healed_in,
        operations: pages.operations,
        unknown: pages.unknown,
        migrations: pages.jobs.len() as u64,
        ends,
        parked: person.parked,
        judges,
        history,
        exits: world.exits(),
        met: world.coverage.met(),
    }
}

/// The phase of faults: until all moves were made and no fault is at work or to come, or time is up.
async fn safety(world: &Arc<World>, work: &Arc<Workload>) {
    let last = world.plan.faults.iter().map(|fault| fault.at.0).max().unwrap_or(0);
    let mut passed = 0;
    while passed < world.plan.safety_max.0 {
        world.until(LOOK_EVERY).await;
        passed += LOOK_EVERY.0;
        if work.all_moved() && passed > last && !world.coverage.any() {
            return;
        }
        if world.witness.first().is_some() {
            return;
        }
    }
}

/// Until everything has settled, or it took too long.
async fn heal(world: &Arc<World>) -> (Sights, operator::Met, Millis) {
    let began = world.trace.now();
    let mut met = operator::Met::default();
    let mut round = 0;
    loop {
        let sights = Sights::take(world).await;
        let passed = world.trace.now().since(began);
        if sights.open.is_empty() || passed >= HEAL_MAX || world.witness.first().is_some() {
            return (sights, met, passed);
        }
        // A person looks now and then, not all the time.
        if round % 4 == 0 {
            operator::go_round(world, &mut met, round / 4).await;
        }
        round += 1;
        tokio::time::sleep(LOOK_EVERY.duration()).await;
    }
}

/// Whether `condition` becomes true within `time`.
async fn within(time: Millis, condition: impl AsyncFn() -> bool) -> bool {
    let mut passed = 0;
    while passed < time.0 {
        if condition().await {
            return true;
        }
        tokio::time::sleep(Millis(20).duration()).await;
        passed += 20;
    }
    false
}
