//! One run on real processes. Owns: its phases: all start, faults and clients, healing, the last look.
//! Always: faults end before healing begins, and healing has a bound; every task of a run ends with it.
//! Not here: what is made and removed around it, what is printed (`mod.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::faults::{self, Shape};
use super::workload::Workload;
use super::world::{self, Tally, World, take_deaths};
use super::{EVENTS, RealOptions, inject, judge, operator, say};
use crate::admin::{LinkState, LinkView, Page};
use crate::chaos::federation::{Federation, HarnessError, READY_MS_MAX, RegionPlan, Setup};
use crate::chaos::invariants::Ledger;
use crate::chaos::plant::{self, Plant};
use crate::chaos::process::{processes_of, wait_for};
use crate::chaos::relay::Impairment;
use crate::chaos::sim::checks::Sights;
use crate::chaos::summary::JudgeCount;
use crate::types::units::GIB;
use crate::types::{ClusterId, DesiredPower, Millis, Place, RegionName, Resources};

/// How long healing may take: within it everything must have settled (architecture, law 7.4).
const HEAL_MAX: Millis = Millis(90_000);
/// Between two looks while it heals.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A person looks now and then, not all the time.
const PERSON_EVERY: Duration = Duration::from_secs(3);
/// How long clients may take to hear of what they asked for once faults are over.
const CLIENTS_END_MAX: Duration = Duration::from_secs(60);
const TOLD_EVERY: Duration = Duration::from_secs(15);
const SAMPLED_EVERY: Duration = Duration::from_secs(1);
const NAMES: [&str; 9] = ["eu", "us", "ap", "sa", "af", "oc", "na", "me", "in"];
const CAPACITY: Resources = Resources { cpu: 1_000, memory_bytes: 64 * GIB, disk_bytes: 64 * GIB };
/// What a retired copy is kept for: long enough to be met by faults, short enough to be gone in the end.
const EXTRA: &str = "\n[migration]\nretention = \"2 s\"\n\n[store]\nreserve = \"4 MiB\"\n";

/// What a run came to.
pub struct Outcome {
    /// What was checked.
    pub ledger: Ledger,
    /// From the first fault until everything had settled.
    pub busy: Millis,
    /// From the end of faults until everything had settled.
    pub healed_in: Millis,
    /// Time of processors, of all processes.
    pub cpu_seconds: f64,
    /// Requests of clients.
    pub operations: u64,
    /// Those without an answer.
    pub unknown: u64,
    /// Moves whose start was acknowledged.
    pub migrations: u64,
    /// By how they ended.
    pub ends: BTreeMap<String, u64>,
    /// Jobs that a person had to answer, by why.
    pub parked: BTreeMap<String, u64>,
    /// Client histories, by who judged them.
    pub judges: BTreeMap<String, JudgeCount>,
    /// What was counted.
    pub tally: Tally,
}

/// Names of so many regions.
pub fn region_names(count: usize) -> Vec<RegionName> {
    let names = NAMES.iter().take(count);
    names.map(|name| name.parse().expect("a literal that matches the grammar")).collect()
}

/// One cluster for each region, and a second one for the first, so that there are moves inside a region, too.
fn setup(names: &[RegionName], seed: u64) -> (Setup, BTreeMap<(usize, usize), Impairment>) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0xD15);
    let cluster = |text: String| text.parse::<ClusterId>().expect("a name that matches the grammar");
    let plan = |(n, name): (usize, &RegionName)| {
        let letters: &[char] = if n == 0 { &['a', 'b'] } else { &['a'] };
        let clusters = letters.iter().map(|letter| (cluster(format!("{name}-{letter}")), CAPACITY)).collect();
        RegionPlan { name: name.clone(), clusters, allow_faults: true, extra: EXTRA.to_owned() }
    };
    let regions: Vec<RegionPlan> = names.iter().enumerate().map(plan).collect();
    let mut by_number = BTreeMap::new();
    let mut by_name = BTreeMap::new();
    for a in 0..names.len() {
        for b in a + 1..names.len() {
            let way = Impairment { delay: Millis(rng.u64(1..=8)), ..Impairment::default() };
            for (from, to) in [(a, b), (b, a)] {
                by_number.insert((from, to), way);
                by_name.insert((names[from].clone(), names[to].clone()), way);
            }
        }
    }
    let federation = "chaos".parse().expect("a literal that matches the grammar");
    (Setup { federation, regions, distances: by_name, seed }, by_number)
}

/// Runs it to its end.
pub async fn run(options: &RealOptions, seed: u64, dir: &Path, small_disks: bool) -> Result<Outcome, HarnessError> {
    let names = region_names(options.regions);
    let (setup, distances) = setup(&names, seed);
    let binary =
        std::env::current_exe().map_err(|e| HarnessError::Plan(format!("finding the path of this program: {e}")))?;
    let mut fed = Federation::start(dir, &setup, &binary).await?;
    fed.all_ready().await?;
    see_the_links(&fed, &names).await?;
    let world = World::new(fed, names, distances, seed, &dir.join(EVENTS))?;
    let work = Workload::new(world.clone());
    let met = Arc::new(Mutex::new(operator::Met::default()));
    let cpu = Arc::new(Mutex::new(BTreeMap::new()));

    // All of them end when this is dropped.
    let mut keepers = JoinSet::new();
    for n in 0..world.regions.len() {
        keepers.spawn(world::keep_running(world.clone(), n));
    }
    keepers.spawn(sample(dir.to_owned(), cpu.clone()));
    keepers.spawn(tell(world.clone(), work.clone()));
    let mut person = JoinSet::new();
    person.spawn(look_after(world.clone(), work.clone(), met.clone()));
    let mut clients = JoinSet::new();
    clients.spawn(work.clone().run());
    let shape = Shape { regions: world.regions.len(), places: world.places.len(), small_disks };
    let mut injectors = JoinSet::new();
    for (n, scheduled) in faults::plan(seed, options.length(), shape).into_iter().enumerate() {
        injectors.spawn(inject::run(world.clone(), work.clone(), n, scheduled));
    }

    tokio::time::sleep(options.length().duration()).await;
    world.over.cancel();
    let healing = world.clock.now();
    world.note("run", "faults are over");
    while let Some(ended) = injectors.join_next().await {
        // One that panics is a bug of the harness, and loud.
        ended.expect("an injector does not panic");
    }
    inject::all_is_well(&world).await;
    let ended = tokio::time::timeout(CLIENTS_END_MAX, clients.join_next()).await;
    if let Ok(Some(ended)) = ended {
        ended.expect("clients do not panic");
    }
    clients.shutdown().await;
    person.shutdown().await;
    let mut met = met.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let sights = heal(&world, &work, &mut met).await;
    let settled = world.clock.now();
    let healed_in = settled.since(healing);
    say(&format!("settled {:.1} s after the last fault, {} things open", healed_in.0 as f64 / 1e3, sights.open.len()));
    for open in &sights.open {
        world.note("run", format_args!("open: {open}"));
    }
    for n in 0..world.regions.len() {
        take_deaths(&world, n);
    }
    let mut ledger = Ledger::expecting(&judge::INVARIANTS);
    let mut seen = Ok(());
    if options.plant == Some(Plant::DoubleRun) {
        seen = run_twice(&world, &work, &sights).await;
    }
    seen?;
    judge::check_all(&world, &work, &sights, &mut ledger).await?;
    let judges = judge::registers(&work, &mut ledger);
    world.stop_watching();
    let cpu_seconds = cpu.lock().unwrap_or_else(PoisonError::into_inner).values().sum::<u64>() as f64 / TICKS_PER_S
        + crate::clock::process_nanos() as f64 / 1e9;
    let pages = work.book.pages();
    let mut ends = BTreeMap::new();
    for end in pages.jobs.values().filter_map(|job| job.end) {
        *ends.entry(end.nova_status().to_owned()).or_default() += 1;
    }
    Ok(Outcome {
        ledger,
        busy: Millis(settled.0),
        healed_in,
        cpu_seconds,
        operations: pages.operations,
        unknown: pages.unknown,
        migrations: pages.jobs.len() as u64,
        ends,
        parked: met.parked,
        judges,
        tally: std::mem::take(&mut *world.tally()),
    })
}

async fn see_the_links(fed: &Federation, names: &[RegionName]) -> Result<(), HarnessError> {
    for name in names {
        wait_for(&format!("{name}'s links to the other regions"), READY_MS_MAX, async || {
            let page: Page<LinkView> = fed.get(name, "/v2/links").await.map_err(|e| e.to_string())?;
            let connected = page.items.iter().filter(|link| link.state == LinkState::Connected).count();
            if connected + 1 == names.len() { Ok(()) } else { Err(format!("{connected} connected")) }
        })
        .await?;
    }
    Ok(())
}

/// Until everything has settled, or it took too long.
async fn heal(world: &World, work: &Workload, met: &mut operator::Met) -> Sights {
    let began = world.clock.now();
    let mut round = 0;
    loop {
        if round % 4 == 0 {
            operator::go_round(world, work, met).await;
        }
        round += 1;
        let sights = judge::look(world).await;
        let unseen = !work.unfollowed().is_empty();
        if (sights.open.is_empty() && !unseen) || world.clock.now().since(began) >= HEAL_MAX {
            return sights;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look_after(world: Arc<World>, work: Arc<Workload>, met: Arc<Mutex<operator::Met>>) {
    loop {
        tokio::time::sleep(PERSON_EVERY).await;
        let mut mine = met.lock().unwrap_or_else(PoisonError::into_inner).clone();
        operator::go_round(&world, &work, &mut mine).await;
        *met.lock().unwrap_or_else(PoisonError::into_inner) = mine;
    }
}

async fn tell(world: Arc<World>, work: Arc<Workload>) {
    while !world.is_healing() {
        world.until(Millis(TOLD_EVERY.as_millis() as u64)).await;
        let (moves, requests) = {
            let pages = work.book.pages();
            (pages.jobs.len(), pages.operations)
        };
        let kinds = world.tally().faults.len();
        let seconds = world.clock.now().0 / 1_000;
        say(&format!(
            "{seconds:>5} s  {moves} moves acknowledged, {} completed, {requests} requests, {kinds} kinds of faults",
            work.moved()
        ));
    }
}

/// The kernel's ticks in which it counts time of processes.
const TICKS_PER_S: f64 = 100.0;

/// Time of processors that the run's processes took, by process.
async fn sample(dir: std::path::PathBuf, cpu: Arc<Mutex<BTreeMap<u32, u64>>>) {
    loop {
        for process in processes_of(&dir) {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
            // The second field is a name in parentheses that may hold anything; user and system time are 14th and 15th.
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            let times = after_name.split_whitespace().skip(11).take(2);
            let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
            cpu.lock().unwrap_or_else(PoisonError::into_inner).insert(process.pid, ticks);
        }
        tokio::time::sleep(SAMPLED_EVERY).await;
    }
}

/// The crime: some running VM runs elsewhere, too.
async fn run_twice(world: &World, work: &Workload, sights: &Sights) -> Result<(), HarnessError> {
    let mut running = sights.records.iter().flat_map(|(region, list)| list.iter().map(move |record| (region, record)));
    let found = running.find_map(|(region, record)| {
        let spec = work.spec(record.id).filter(|_| record.desired == DesiredPower::Running)?;
        let here = Place { region: region.clone(), cluster: record.cluster.clone() };
        Some((here, record, spec))
    });
    let Some((here, record, spec)) = found else {
        return Err(HarnessError::Plan("no VM runs that could run twice".to_owned()));
    };
    let elsewhere = world.places.iter().find(|place| **place != here && place.region != here.region);
    let elsewhere = elsewhere.ok_or_else(|| HarnessError::Plan("there is one region only".to_owned()))?;
    say(&format!("planted: {} runs in {here}, and now in {elsewhere} as well", record.id));
    let fence = record.fence.after_move(true);
    let fed = world.fed().await;
    plant::run_twice(&fed, elsewhere, CAPACITY, record.id, spec, fence).await
}
