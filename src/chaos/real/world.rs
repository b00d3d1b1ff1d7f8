//! What a run on real processes shares. Owns: the federation, who of its nodes is to run, what is at work, what was
//! counted, the words of the run.
//! Always: nodes are kept running as a service manager would, unless a fault keeps them down or holds them; what a fault
//! did is undone by counts, so that overlapping ones don't undo each other.
//! Not here: what faults do (`inject.rs`), what clients do (`workload.rs`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use super::faults::{Fault, Kind};
use crate::admin::client::Client;
use crate::chaos::federation::{Federation, HarnessError};
use crate::chaos::process::{Found, processes_of};
use crate::chaos::relay::{Direction, Impairment};
use crate::clock::Clock;
use crate::decision::migration::steps::KillPoint;
use crate::types::{Millis, Place, RegionName, RegionNumber};

/// How long a client waits for an answer, its own repeats of a lost one included.
const CLIENT_MS_MAX: Millis = Millis(5_000);
/// Between two looks whether a node still lives, as a service manager that is told would see it.
const WATCH: Duration = Duration::from_millis(50);
/// A node that ended by itself is started again after this.
const RESTART: Millis = Millis(500);

/// A node, as faults treat it.
#[derive(Default)]
struct Node {
    /// Faults that keep it down.
    down: AtomicU32,
    /// Faults that hold it.
    held: AtomicU32,
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Tally {
    /// Faults, by kind.
    pub faults: BTreeMap<String, u64>,
    /// How nodes ended by themselves.
    pub exits: BTreeMap<String, u64>,
    /// Deaths at points.
    pub killed_at: BTreeMap<String, u64>,
    /// Steps that were seen while a fault was at work: by fault, then by step.
    pub met: BTreeMap<String, BTreeMap<String, u64>>,
}

/// The world of a run.
pub struct World {
    /// Regions, in the order of their numbers.
    pub regions: Vec<RegionName>,
    /// Places, in order.
    pub places: Vec<Place>,
    /// Time since the run began.
    pub clock: Clock,
    /// Faults are over.
    pub over: CancellationToken,
    fed: tokio::sync::Mutex<Federation>,
    distances: BTreeMap<(usize, usize), Impairment>,
    clients: Vec<Client>,
    region_dirs: Vec<PathBuf>,
    host_dirs: Vec<PathBuf>,
    nodes: Vec<Node>,
    hosts_held: Vec<AtomicU32>,
    watched: AtomicBool,
    at_work: Mutex<BTreeMap<usize, Fault>>,
    tally: Mutex<Tally>,
    dice: Mutex<fastrand::Rng>,
    events: Mutex<Option<File>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// The world of `fed`, whose words go to `events`.
    ///
    /// # Errors
    /// If a region is not there.
    pub fn new(
        fed: Federation,
        regions: Vec<RegionName>,
        distances: BTreeMap<(usize, usize), Impairment>,
        seed: u64,
        events: &Path,
    ) -> Result<Arc<World>, HarnessError> {
        let places = fed.places();
        let region_dirs =
            regions.iter().map(|name| Ok(fed.region_dir(name)?.to_owned())).collect::<Result<_, HarnessError>>()?;
        let clients = regions.iter().map(|name| Ok(fed.api(name)?.deadline(CLIENT_MS_MAX)));
        let clients = clients.collect::<Result<_, HarnessError>>()?;
        let host_dirs = places.iter().map(|place| fed.host_dir(place)).collect::<Result<_, _>>()?;
        Ok(Arc::new(World {
            nodes: regions.iter().map(|_| Node::default()).collect(),
            hosts_held: places.iter().map(|_| AtomicU32::default()).collect(),
            regions,
            places,
            clock: Clock::start(),
            over: CancellationToken::new(),
            fed: tokio::sync::Mutex::new(fed),
            distances,
            clients,
            region_dirs,
            host_dirs,
            watched: AtomicBool::new(true),
            at_work: Mutex::default(),
            tally: Mutex::default(),
            // Another stream than that of the plan.
            dice: Mutex::new(fastrand::Rng::with_seed(seed ^ 0x5EED)),
            events: Mutex::new(File::create(events).ok()),
        }))
    }

    /// The federation. Never held while somebody outside is waited for.
    pub async fn fed(&self) -> tokio::sync::MutexGuard<'_, Federation> {
        self.fed.lock().await
    }
    /// A client of the n-th region's API.
    pub fn client(&self, n: usize) -> &Client {
        &self.clients[n]
    }
    /// The n-th region's directory.
    pub fn region_dir(&self, n: usize) -> &Path {
        &self.region_dirs[n]
    }
    /// The log of the n-th region's node.
    pub fn log(&self, n: usize) -> PathBuf {
        self.region_dirs[n].with_extension("log")
    }
    /// The directory of the host of the n-th place.
    pub fn host_dir(&self, n: usize) -> &Path {
        &self.host_dirs[n]
    }
    /// Which region has this number.
    pub fn numbered(&self, number: RegionNumber) -> usize {
        (number.0 as usize).saturating_sub(1).min(self.regions.len() - 1)
    }
    /// Which region has this name.
    pub fn named(&self, name: &RegionName) -> Option<usize> {
        self.regions.iter().position(|region| region == name)
    }
    /// Which place this is.
    pub fn place(&self, place: &Place) -> Option<usize> {
        self.places.iter().position(|one| one == place)
    }

    /// A number below `count`.
    pub fn below(&self, count: usize) -> usize {
        locked(&self.dice).usize(0..count.max(1))
    }
    /// A number up to `most`.
    pub fn dice(&self, most: u64) -> u64 {
        locked(&self.dice).u64(0..=most)
    }
    /// True in so many of a thousand cases.
    pub fn chance(&self, permille: usize) -> bool {
        self.below(1_000) < permille
    }

    /// Whether faults are over.
    pub fn is_healing(&self) -> bool {
        self.over.is_cancelled()
    }
    /// Waits so long, or until faults are over.
    pub async fn until(&self, time: Millis) {
        tokio::select! {
            biased;
            () = self.over.cancelled() => {}
            () = tokio::time::sleep(time.duration()) => {}
        }
    }

    /// One line of the run's events.
    pub fn note(&self, who: &str, what: impl std::fmt::Display) {
        if let Some(file) = locked(&self.events).as_mut() {
            // Words are for people; a run does not end because they can't be written.
            let _ = writeln!(file, "{:>9.3} {who:<10} {what}", self.clock.now().0 as f64 / 1_000.0);
        }
    }

    /// What was counted.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        locked(&self.tally)
    }
    /// The n-th fault begins to work.
    pub fn begins(&self, n: usize, fault: &Fault) {
        locked(&self.at_work).insert(n, fault.clone());
        *self.tally().faults.entry(fault.kind().name().to_owned()).or_default() += 1;
    }
    /// It could not be done.
    pub fn was_not_done(&self, kind: Kind) {
        if let Some(count) = self.tally().faults.get_mut(kind.name()) {
            *count -= 1;
        }
    }
    /// It goes on as `fault`.
    pub fn changes(&self, n: usize, fault: Fault) {
        locked(&self.at_work).insert(n, fault);
    }
    /// It is over.
    pub fn ends(&self, n: usize) {
        locked(&self.at_work).remove(&n);
    }
    /// A job was seen at a step.
    pub fn passed(&self, step: &str) {
        let kinds: Vec<&str> = locked(&self.at_work).values().map(|fault| fault.kind().name()).collect();
        let mut tally = self.tally();
        for kind in kinds {
            *tally.met.entry(kind.to_owned()).or_default().entry(step.to_owned()).or_default() += 1;
        }
    }

    /// Shapes every way by what is at work.
    pub async fn shape_ways(&self) {
        let at_work = locked(&self.at_work).clone();
        let fed = self.fed().await;
        let count = self.regions.len();
        for (from, to) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            let base = self.distances.get(&(from, to)).copied().unwrap_or_default();
            let impairment = shape(base, at_work.values(), from, to);
            let (a, b) = (&self.regions[from], &self.regions[to]);
            // What one sends goes through the relay that it dials, and through the one by which it was dialled.
            if let (Ok(dialled), Ok(dialler)) = (fed.relay(a, b), fed.relay(b, a)) {
                dialled.set(Direction::Forward, impairment);
                dialler.set(Direction::Backward, impairment);
            }
        }
    }

    /// SIGKILL of the n-th region's node, which stays dead until [`World::let_up`].
    pub async fn keep_down(&self, n: usize) {
        self.nodes[n].down.fetch_add(1, Ordering::Relaxed);
        let mut fed = self.fed().await;
        // It may have died by itself just now.
        let _ = fed.kill_node(&self.regions[n]).await;
    }
    /// One fault less keeps it down.
    pub fn let_up(&self, n: usize) {
        self.nodes[n].down.fetch_sub(1, Ordering::Relaxed);
    }
    /// The n-th node stays down once it ends; it is told to.
    pub async fn told_to_end(&self, n: usize) {
        self.nodes[n].down.fetch_add(1, Ordering::Relaxed);
        self.signal(n, Signal::TERM).await;
    }
    /// Arms, or disarms, a point from the next start on.
    pub async fn arm(&self, n: usize, point: Option<KillPoint>) {
        let _ = self.fed().await.kill_at(&self.regions[n], point);
    }
    /// Whether the n-th node lives.
    pub async fn lives(&self, n: usize) -> bool {
        self.fed().await.pid(&self.regions[n]).is_some()
    }
    /// SIGSTOP; held until as many faults let it go as held it.
    pub async fn hold(&self, n: usize) {
        self.nodes[n].held.fetch_add(1, Ordering::Relaxed);
        self.signal(n, Signal::STOP).await;
    }
    /// SIGCONT, unless another fault holds it.
    pub async fn let_go(&self, n: usize) {
        if self.nodes[n].held.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.signal(n, Signal::CONT).await;
        }
    }
    async fn signal(&self, n: usize, signal: Signal) {
        let _ = self.fed().await.signal_node(&self.regions[n], signal);
    }
    /// SIGSTOP of the host of the n-th place; held until as many faults let it go as held it.
    pub fn hold_host(&self, n: usize) {
        self.hosts_held[n].fetch_add(1, Ordering::Relaxed);
        self.host(n).iter().for_each(|process| process.signal(Signal::STOP));
    }
    /// SIGCONT, unless another fault holds it.
    pub fn let_host_go(&self, n: usize) {
        if self.hosts_held[n].fetch_sub(1, Ordering::Relaxed) == 1 {
            self.host(n).iter().for_each(|process| process.signal(Signal::CONT));
        }
    }
    /// The processes of the host of the n-th place.
    pub fn host(&self, n: usize) -> Vec<Found> {
        processes_of(&self.host_dirs[n])
    }

    /// Nobody starts nodes any more.
    pub fn stop_watching(&self) {
        self.watched.store(false, Ordering::Relaxed);
    }

    /// Where a node leaves word of the point that it died at.
    pub fn killed_word(&self, n: usize) -> PathBuf {
        self.region_dirs[n].join("run/killed")
    }
}

/// What a way does now.
fn shape<'a>(base: Impairment, at_work: impl Iterator<Item = &'a Fault>, from: usize, to: usize) -> Impairment {
    let mut shape = base;
    for fault in at_work {
        let between = |a: usize, b: usize| (from, to) == (a, b) || (to, from) == (a, b);
        match *fault {
            Fault::Isolate(a) => shape.cut |= from == a || to == a,
            Fault::Split(set) => shape.cut |= (set >> from & 1) != (set >> to & 1),
            Fault::OneWay(a, b) => shape.cut |= (from, to) == (a, b),
            Fault::NonTransitive(a, b) => shape.cut |= between(a, b),
            Fault::Far(a, b, delay, jitter) if between(a, b) => {
                shape.delay = shape.delay.max(delay);
                shape.jitter = shape.jitter.max(jitter);
            }
            Fault::Lossy(a, b, permille) if between(a, b) => {
                shape.loss_permille = shape.loss_permille.max(permille);
            }
            Fault::Disorder(a, b, reorder, duplicate, corrupt) if between(a, b) => {
                shape.reorder_permille = shape.reorder_permille.max(reorder);
                shape.duplicate_permille = shape.duplicate_permille.max(duplicate);
                shape.corrupt_permille = shape.corrupt_permille.max(corrupt);
            }
            Fault::Narrow(a, b, rate) if between(a, b) => {
                shape.rate_bytes_s = Some(shape.rate_bytes_s.map_or(rate, |other| other.min(rate)));
            }
            Fault::SmallMtu(a, b, most) if between(a, b) => shape.bytes_max = Some(most),
            _ => {}
        }
    }
    shape
}

/// Keeps the n-th region's node running.
pub async fn keep_running(world: Arc<World>, n: usize) {
    let name = world.regions[n].clone();
    while world.watched.load(Ordering::Relaxed) {
        tokio::time::sleep(WATCH).await;
        let mut fed = world.fed().await;
        let ended = match fed.node(&name) {
            Ok(process) => match process.ended() {
                Some(status) => Some(status),
                None => continue,
            },
            Err(_) => None,
        };
        if let Some(status) = ended {
            let word = exit_name(&world, n, status);
            world.note(name.as_str(), format_args!("its node ended: {word} ({status})"));
            // One that was told to does not end by itself.
            if status.code() != Some(0) || world.nodes[n].down.load(Ordering::Relaxed) == 0 {
                *world.tally().exits.entry(word).or_default() += 1;
            }
            // It is dead; this forgets it.
            let _ = fed.kill_node(&name).await;
            drop(fed);
            world.until(RESTART).await;
            continue;
        }
        if world.nodes[n].down.load(Ordering::Relaxed) == 0 && world.watched.load(Ordering::Relaxed) {
            world.note(name.as_str(), "its node is started");
            if let Err(error) = fed.start_node(&name).await {
                world.note(name.as_str(), format_args!("its node can't be started: {error}"));
            }
        }
    }
}

/// How a node ended, in the words of the simulator where its log says as much.
fn exit_name(world: &World, n: usize, status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "told-to".to_owned(),
        (Some(3), _) => "refused".to_owned(),
        (Some(1), _) if last_words(world, n).contains("storage failed") => "disk-failed".to_owned(),
        (Some(code), _) => format!("exit-{code}"),
        (None, Some(9)) if world.killed_word(n).exists() => "kill-point".to_owned(),
        (None, signal) => format!("signal-{}", signal.unwrap_or_default()),
    }
}

/// The end of the log of the n-th region's node.
fn last_words(world: &World, n: usize) -> String {
    const WORDS: u64 = 4_096;
    let mut end = Vec::new();
    if let Ok(mut log) = File::open(world.log(n)) {
        let length = log.metadata().map_or(0, |meta| meta.len());
        // A log that can't be read has nothing to say.
        let _ = log.seek(SeekFrom::Start(length.saturating_sub(WORDS))).and_then(|_| log.read_to_end(&mut end));
    }
    String::from_utf8_lossy(&end).into_owned()
}

/// The points at which the n-th region's node died since this was asked last.
pub fn take_deaths(world: &World, n: usize) {
    let word = world.killed_word(n);
    for line in fs::read_to_string(&word).unwrap_or_default().lines() {
        *world.tally().killed_at.entry(line.to_owned()).or_default() += 1;
    }
    // Without word a point can be armed again.
    let _ = fs::remove_file(word);
}
