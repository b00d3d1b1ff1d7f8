//! One simulated region over all its lives. Owns: its disk, its configuration, and the service manager that starts its
//! node again whenever it ended.
//! Always: a life is assembled by the same code as the process; it ends at once, wherever it was: its gate closes, its
//! links are gone, its disk answers no more, and what the disk holds is left to the next life.
//! Not here: when it is to die (`inject.rs`).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::gate::{Gate, GatedDriver, GatedInbound, GatedLink};
use super::plan::{Plan, RegionPlan};
use super::world::World;
use crate::actors::cluster::ClusterMessage;
use crate::actors::context::Context;
use crate::actors::kill::KillSwitch;
use crate::actors::{Class, Root};
use crate::admin::Api;
use crate::clock::{Clock, SimulatedWall};
use crate::config::{ClusterConfig, Config};
use crate::drivers::embedded::local::LocalOptions;
use crate::node::{self, NodeError, Parts, Served};
use crate::protocol::link::{Inbound, Link};
use crate::store::{Commits, FaultBackend, Faults, Keep, Medium, SharedBackend, Space, Store, StoreKey, StoreOptions};
use crate::types::units::{GIB, MIB};
use crate::types::{Lineage, Millis, RegionName, WallMillis};

/// What a service manager waits before it starts a node again.
const RESTART_PAUSE: Millis = Millis(500);
/// And after a node that refused to start.
const REFUSED_PAUSE: Millis = Millis(3_000);
/// What the wall clocks show when a run begins: any date will do, and always the same.
pub const BEGINNING: WallMillis = WallMillis(1_800_000_000_000);
/// The page cache of a simulated store: its states are small, and there are many.
const CACHE_BYTES: usize = MIB as usize;

/// What is on a disk after a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The process died: all that it wrote is there.
    Process,
    /// The machine died: of what was not synced some sectors are there, by this seed.
    Machine(u64),
}

/// What stands in the place of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// The same, damaged: it is refused, or everything is in it.
    Damaged,
    /// What it was in an earlier life: it opens, and others refuse it.
    Older,
}

/// A life of a node that answers.
#[derive(Clone)]
pub struct Life {
    /// What its actors share.
    pub ctx: Arc<Context>,
    /// Its API.
    pub api: Api,
    /// Its way to the world.
    pub gate: Gate,
}

struct State {
    disk: FaultBackend,
    /// The disk has held a state: it may not be empty.
    member: bool,
    lives: u64,
    /// So many faults keep it from being started.
    kept_down: u32,
    held: bool,
    /// Faults of the disk that outlive a process.
    standing: Faults,
    gate: Option<Gate>,
    life: Option<Life>,
    /// The true state, while another stands in its place, and whether that is an older copy of it.
    apart: Option<(Vec<u8>, Copy)>,
}

/// A region.
pub struct Region {
    /// What it is.
    pub plan: RegionPlan,
    /// Its `node.toml`.
    pub config: Config,
    keys: Vec<StoreKey>,
    /// What a commit takes, milliseconds.
    pub commit_ms: Arc<AtomicU64>,
    /// Free bytes of its disk.
    pub free_bytes: Arc<AtomicU64>,
    /// The wall clock of its machine.
    pub wall: SimulatedWall,
    state: Mutex<State>,
    /// Told when it may be started.
    startable: watch::Sender<bool>,
}

/// Where the n-th region is dialled.
pub fn address(n: usize) -> String {
    format!("10.0.0.{}:7443", n + 1)
}

fn config(plan: &Plan, own: usize) -> Config {
    let me = &plan.regions[own];
    let mut text = format!("[region]\nname = \"{}\"\nfederation = \"sim\"\nnumber = {}\n", me.name, me.number);
    for (n, peer) in plan.regions.iter().enumerate().filter(|(n, _)| *n != own) {
        let (name, number, at) = (&peer.name, peer.number, address(n));
        text += &format!("[[peer]]\nregion = \"{name}\"\nnumber = {number}\naddress = \"{at}\"\nca = \"{name}.pem\"\n");
    }
    for cluster in &me.clusters {
        text += &format!(
            "[[cluster]]\nid = \"{cluster}\"\ncapacity = {{ cpu = 64, memory = \"8 GiB\", disk = \"64 GiB\" }}\n"
        );
    }
    text += "[migration]\nretention = \"20 s\"\nmax_downtime = \"3 s\"\n[store]\ncache = \"1 MiB\"\n";
    let path = PathBuf::from(format!("/sim/{}/node.toml", me.name));
    Config::parse(&text, &path).expect("what is written here is a configuration")
}

impl Region {
    /// The n-th region of `plan`, with an empty disk.
    pub fn new(plan: &Plan, n: usize) -> Region {
        let me = plan.regions[n].clone();
        let state = State {
            disk: FaultBackend::default(),
            member: false,
            lives: 0,
            kept_down: 0,
            held: false,
            standing: Faults::default(),
            gate: None,
            life: None,
            apart: None,
        };
        Region {
            config: config(plan, n),
            keys: vec![StoreKey::generate().expect("the system gives random bytes")],
            commit_ms: Arc::new(AtomicU64::new(me.commit.0)),
            free_bytes: Arc::new(AtomicU64::new(100 * GIB)),
            wall: SimulatedWall::showing(BEGINNING),
            plan: me,
            state: Mutex::new(state),
            startable: watch::Sender::new(true),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its present life, if it answers.
    pub fn life(&self) -> Option<Life> {
        self.state().life.clone()
    }

    /// Whether each of its hosts has answered its present life, and each other region has heard from it: then whoever it
    /// meets later knows of this life.
    pub async fn is_known_to_all(&self, world: &World) -> bool {
        let Some(life) = self.life() else { return false };
        for cluster in &self.plan.clusters {
            let Some(cluster) = life.ctx.cluster(cluster) else { return false };
            let view = cluster.actor.call(Class::Control, Millis(1_000), ClusterMessage::View).await;
            if !view.is_ok_and(|view| view.age_ms.is_some()) {
                return false;
            }
        }
        // A life's clock begins with it.
        let lived = life.ctx.clock.now();
        world.regions().iter().filter(|other| other.plan.name != self.plan.name).all(|other| {
            let heard = other.life().and_then(|it| it.ctx.directory.age(&self.plan.name, it.ctx.clock.now()));
            heard.is_some_and(|age| age.0 < lived.0)
        })
    }

    /// How often it was started.
    pub fn lives(&self) -> u64 {
        self.state().lives
    }

    /// Its disk.
    pub fn disk(&self) -> FaultBackend {
        self.state().disk.clone()
    }

    /// It dies now, if it lives, and its disk keeps what `death` leaves. Returns whether there was a life to end.
    pub fn die(&self, world: &World, death: Death) -> bool {
        {
            let mut state = self.state();
            let Some(gate) = state.gate.take() else {
                // A machine without a node loses what a dead one had not synced.
                if let Death::Machine(_) = death {
                    state.leave(death);
                }
                return false;
            };
            state.life = None;
            gate.kill();
            state.disk.stop();
            state.leave(death);
        }
        world.leave_net(&self.plan.name);
        true
    }

    /// Keeps it from being started (`true`), or lets it be: as often as it was kept.
    pub fn keep_down(&self, down: bool) {
        let mut state = self.state();
        state.kept_down = if down { state.kept_down + 1 } else { state.kept_down.saturating_sub(1) };
        let startable = state.kept_down == 0;
        drop(state);
        self.startable.send_replace(startable);
    }

    /// Holds it still (`true`), or lets it go on.
    pub fn hold(&self, held: bool) {
        let mut state = self.state();
        state.held = held;
        if let Some(gate) = &state.gate {
            gate.hold(held);
        }
    }

    /// Puts another image in the place of its state, which is put aside. It must be dead.
    pub fn replace_disk(&self, copy: Copy, other: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let image = state.disk.cached_image();
        if !state.member || image.is_empty() || state.apart.is_some() {
            return;
        }
        let mut changed = image.clone();
        other(&mut changed);
        state.disk = FaultBackend::holding(changed);
        state.apart = Some((image, copy));
    }

    /// Puts the true state back, if another stands in its place: whoever runs on that dies.
    pub fn true_disk_back(&self, world: &World) {
        if !self.is_replaced() {
            return;
        }
        self.die(world, Death::Process);
        let mut state = self.state();
        if let Some((image, _)) = state.apart.take() {
            state.disk = FaultBackend::holding(image);
            state.disk.set_faults(state.standing.clone());
        }
    }

    /// Whether another state stands in the place of the true one.
    pub fn is_replaced(&self) -> bool {
        self.state().apart.is_some()
    }

    /// Faults of its disk from now on; a disk that stays full does so over deaths.
    pub fn disk_faults(&self, faults: Faults) {
        let mut state = self.state();
        let stays = faults.full_stays;
        state.standing = if stays { Faults { full_at_write: Some(1), ..faults.clone() } } else { Faults::default() };
        state.disk.set_faults(faults);
    }
}

impl State {
    /// The disk is what a death leaves of it.
    fn leave(&mut self, death: Death) {
        self.disk = FaultBackend::holding(match death {
            Death::Process => self.disk.cached_image(),
            Death::Machine(seed) => self.disk.crash_image(Keep::Subset(seed)),
        });
        self.disk.set_faults(self.standing.clone());
    }
}

/// The service manager: starts the n-th region's node again and again.
pub async fn keep_running(world: Arc<World>, n: usize) {
    let region = world.region(n);
    let mut startable = region.startable.subscribe();
    loop {
        if startable.wait_for(|startable| *startable).await.is_err() {
            return;
        }
        let gate = {
            let mut state = region.state();
            // Kept down since: looked at again.
            if state.kept_down > 0 {
                continue;
            }
            state.lives += 1;
            let gate = Gate::open(state.held);
            state.gate = Some(gate.clone());
            gate
        };
        let name = &region.plan.name;
        let ended = tokio::select! {
            biased;
            () = gate.died() => None,
            error = live(&world, n, &gate) => Some(error),
        };
        let pause = match ended {
            None => {
                world.trace.note(name, "node died");
                RESTART_PAUSE
            }
            Some(error) => {
                let refused = matches!(error, NodeError::Store(_) | NodeError::Refused { .. });
                world.node_ended(n, &error);
                region.die(&world, Death::Process);
                if refused { REFUSED_PAUSE } else { RESTART_PAUSE }
            }
        };
        let jitter = world.dice(0..=pause.0 / 4);
        tokio::time::sleep(Millis(pause.0 + jitter).duration()).await;
    }
}

/// One life: resolves when its process would end by itself.
async fn live(world: &Arc<World>, n: usize, gate: &Gate) -> NodeError {
    let region = world.region(n);
    let name = region.plan.name.clone();
    let (disk, member, lives) = {
        let state = region.state();
        (state.disk.clone(), state.member, state.lives)
    };
    let mut options = StoreOptions::backend(SharedBackend::new(disk), member, name.clone(), region.keys.clone());
    options.cache_bytes = CACHE_BYTES;
    options.space = Space::Given(region.free_bytes.clone());
    options.commits = Commits::After(region.commit_ms.clone());
    if let Medium::Backend { member, .. } = &mut options.medium {
        *member &= lives > 1;
    }
    let nonce = world.plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n as u64) << 48 ^ lives;
    let store = match Store::open(options, nonce) {
        Ok((store, _)) => store,
        Err(error) => return error.into(),
    };
    {
        let mut state = region.state();
        state.member = true;
        // What was damaged and opens all the same is whole: it is the true state from now on.
        state.apart.take_if(|(_, copy)| *copy == Copy::Damaged);
    }
    let lineage = store.lineage().clone();
    let parts = Parts {
        dir: region_dir(&name),
        clock: Clock::simulated(region.wall.clone()),
        store,
        kill: KillSwitch::watched(world.watcher(n)),
        seed: nonce,
        metrics: Arc::new(String::new),
    };
    let connect = |_: &Arc<Context>, inbound: Arc<dyn Inbound>| {
        let inbound = GatedInbound::behind(gate, inbound);
        let peers = region.config.peers.iter().map(|peer| peer.region.clone());
        let links = world.join_net(n, lineage.clone(), inbound, peers, gate)?;
        let gated = links.into_iter().map(|link| GatedLink::behind(gate, link)).collect::<Vec<Arc<dyn Link>>>();
        Ok(((), gated))
    };
    let serve = |cluster: &ClusterConfig| Some(served(world, n, &lineage, gate, cluster));
    let assembled = match node::assemble(&region.config, parts, connect, serve).await {
        Ok(assembled) => assembled,
        Err(error) => return error,
    };
    let life = Life { ctx: assembled.ctx.clone(), api: assembled.api.clone(), gate: gate.clone() };
    tokio::spawn(bury(gate.clone(), assembled.root.clone()));
    if let Err(error) = assembled.run_jobs().await {
        return error;
    }
    region.state().life = Some(life);
    world.trace.note(&name, format_args!("node is up (life {lives})"));
    assembled.failed().await
}

/// Ends the actors of a life that is over: they have no effect any more, and should take no time either.
async fn bury(gate: Gate, root: Root) {
    gate.died().await;
    root.shutdown().await;
}

fn served(world: &Arc<World>, n: usize, lineage: &Lineage, gate: &Gate, cluster: &ClusterConfig) -> Served {
    let region = world.region(n);
    let host = world.host(&region.plan.name, &cluster.id).clone();
    let options = LocalOptions {
        region: region.plan.name.clone(),
        lineage: lineage.clone(),
        cluster: cluster.id.clone(),
        capacity: cluster.capacity.resources(),
    };
    let driver = GatedDriver::behind(gate, Arc::new(host.driver(options, gate.token().into())));
    let (world, gate, id) = (Arc::downgrade(world), gate.clone(), cluster.id.clone());
    let name = region.plan.name.clone();
    let look_after = Arc::new(move || {
        let (world, gate, name, id) = (world.clone(), gate.clone(), name.clone(), id.clone());
        tokio::spawn(async move {
            gate.pass().await;
            if let Some(world) = world.upgrade() {
                world.start_host(&name, &id).await;
            }
        });
    });
    Served { driver, look_after }
}

/// The directory of a region, which is never looked into.
pub fn region_dir(name: &RegionName) -> PathBuf {
    Path::new("/sim").join(name.as_str())
}

impl Region {
    /// The commit time when its disk is well.
    pub fn well(&self) {
        self.commit_ms.store(self.plan.commit.0, Ordering::Relaxed);
        self.free_bytes.store(100 * GIB, Ordering::Relaxed);
    }
}
