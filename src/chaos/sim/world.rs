//! The simulated world. Owns: the machines, the network between them, and what watches over them all.
//! Always: one thread, one seed, tokio's paused time; whatever is drawn while it runs is drawn from one generator, in
//! the order of what happens.
//! Not here: what befalls it (`inject.rs`), what its clients do (`workload.rs`).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::coverage::Coverage;
use super::faults::Fault;
use super::gate::Gate;
use super::network::{Network, Shape};
use super::plan::Plan;
use super::points::Points;
use super::region::Region;
use super::trace::Trace;
use super::witness::RunWitness;
use crate::clock::Clock;
use crate::drivers::embedded::sim::SimHost;
use crate::drivers::embedded::simulated::Death;
use crate::node::NodeError;
use crate::protocol::link::{Inbound, Link};
use crate::store::StoreError;
use crate::types::{ClusterId, Lineage, Millis, RegionName};

/// What a node said when it ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Its store is damaged, lost or of a newer version: it did not start.
    StoreRefused,
    /// It, or somebody else, knows that its store is an older copy.
    OlderCopy,
    /// Its disk failed.
    DiskFailed,
    /// Its actors gave up.
    GaveUp,
    /// Anything else, which is a bug.
    Other,
}

impl Exit {
    fn of(error: &NodeError) -> Exit {
        match error {
            NodeError::Refused { .. } | NodeError::Store(StoreError::OlderCopy { .. }) => Exit::OlderCopy,
            NodeError::Store(StoreError::Damaged { .. } | StoreError::Lost { .. } | StoreError::Newer { .. }) => {
                Exit::StoreRefused
            }
            NodeError::Store(_) => Exit::DiskFailed,
            NodeError::Ended { .. } => Exit::GaveUp,
            _ => Exit::Other,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Exit::StoreRefused => "store-refused",
            Exit::OlderCopy => "older-copy",
            Exit::DiskFailed => "disk-failed",
            Exit::GaveUp => "gave-up",
            Exit::Other => "other",
        }
    }
}

/// The world.
pub struct World {
    /// What it is made of.
    pub plan: Plan,
    /// What happened in it.
    pub trace: Trace,
    /// Who ran when.
    pub witness: RunWitness,
    /// The ways between its regions.
    pub network: Network,
    /// What happens at the points that jobs pass.
    pub points: Points,
    /// Which fault met which step.
    pub coverage: Coverage,
    regions: Vec<Region>,
    hosts: BTreeMap<(RegionName, ClusterId), Machine>,
    dice: Mutex<fastrand::Rng>,
    exits: Mutex<BTreeMap<Exit, u64>>,
    /// True when faults are over.
    healing: watch::Sender<bool>,
}

struct Machine {
    host: SimHost,
    /// So many faults keep its process from being started.
    kept_down: Mutex<u32>,
}

impl World {
    /// The world of `plan`, nothing started. `keep`: the text of all events is kept.
    pub fn new(plan: Plan, keep: bool) -> Arc<World> {
        let mut seeds = fastrand::Rng::with_seed(plan.seed ^ 0x776f_726c_6400_0000);
        let trace = Trace::new(Clock::start(), keep);
        let witness = RunWitness::new(trace.clone());
        let regions: Vec<Region> = (0..plan.regions.len()).map(|n| Region::new(&plan, n)).collect();
        let mut hosts = BTreeMap::new();
        for (region, cluster) in plan.places() {
            let name = cluster.as_str().parse().expect("ids of clusters and names of hosts have one grammar");
            let host = SimHost::new(name, seeds.u64(..), Arc::new(witness.clone()));
            host.set_latency(plan.host_latency, plan.host_latency);
            hosts.insert((region.name.clone(), cluster.clone()), Machine { host, kept_down: Mutex::new(0) });
        }
        let network = Network::new(&plan, seeds.u64(..));
        let dice = Mutex::new(fastrand::Rng::with_seed(seeds.u64(..)));
        let world = World {
            trace,
            witness,
            network,
            points: Points::default(),
            coverage: Coverage::default(),
            regions,
            hosts,
            dice,
            exits: Mutex::default(),
            healing: watch::Sender::new(false),
            plan,
        };
        Arc::new(world)
    }

    /// The n-th region.
    pub fn region(&self, n: usize) -> &Region {
        &self.regions[n]
    }
    /// All regions.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }
    /// Its place in the plan.
    pub fn number_of(&self, region: &RegionName) -> Option<usize> {
        self.regions.iter().position(|known| known.plan.name == *region)
    }

    fn machine(&self, region: &RegionName, cluster: &ClusterId) -> &Machine {
        self.hosts.get(&(region.clone(), cluster.clone())).expect("a cluster of the plan has a host")
    }
    /// The host of a cluster.
    pub fn host(&self, region: &RegionName, cluster: &ClusterId) -> &SimHost {
        &self.machine(region, cluster).host
    }
    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = (&RegionName, &ClusterId, &SimHost)> {
        self.hosts.iter().map(|((region, cluster), machine)| (region, cluster, &machine.host))
    }
    /// The host of the n-th region's k-th cluster.
    pub fn host_at(&self, (n, k): (usize, usize)) -> (&RegionName, &ClusterId, &SimHost) {
        let region = &self.plan.regions[n];
        (&region.name, &region.clusters[k], self.host(&region.name, &region.clusters[k]))
    }

    /// Starts a host's process unless it runs or is kept from it.
    pub async fn start_host(&self, region: &RegionName, cluster: &ClusterId) {
        let machine = self.machine(region, cluster);
        if *locked(&machine.kept_down) > 0 || machine.host.host().is_some() {
            return;
        }
        match machine.host.start().await {
            Ok(()) => self.trace.note(machine.host.name(), "host is up"),
            Err(error) => self.trace.note(machine.host.name(), format_args!("host does not start: {error}")),
        }
    }
    /// Ends a host's process.
    pub fn crash_host(&self, region: &RegionName, cluster: &ClusterId, death: Death) {
        self.trace.note(self.host(region, cluster).name(), "host dies");
        self.host(region, cluster).crash(death);
    }
    /// Keeps a host from being started (`true`), or lets it be.
    pub fn keep_host_down(&self, region: &RegionName, cluster: &ClusterId, down: bool) {
        let mut kept = locked(&self.machine(region, cluster).kept_down);
        *kept = if down { *kept + 1 } else { kept.saturating_sub(1) };
    }

    /// A number in `range`.
    pub fn dice(&self, range: RangeInclusive<u64>) -> u64 {
        locked(&self.dice).u64(range)
    }
    /// True with so many chances in a thousand.
    pub fn chance(&self, permille: u16) -> bool {
        self.dice(1..=1_000) <= u64::from(permille)
    }

    /// The n-th region's links, from now on served by `inbound`.
    pub fn join_net(
        &self,
        n: usize,
        lineage: Lineage,
        inbound: Arc<dyn Inbound>,
        peers: impl Iterator<Item = RegionName>,
        gate: &Gate,
    ) -> Result<Vec<Arc<dyn Link>>, NodeError> {
        self.network.join(&self.regions[n], n, lineage, inbound, peers, gate)
    }
    /// The region's links are gone.
    pub fn leave_net(&self, region: &RegionName) {
        self.network.leave(region);
    }

    /// A node ended by itself.
    pub fn node_ended(&self, n: usize, error: &NodeError) {
        let exit = Exit::of(error);
        self.trace.note(&self.regions[n].plan.name, format_args!("node ends: {}", exit.name()));
        tracing::debug!(region = %self.regions[n].plan.name, error = crate::types::chain(error), "node ended");
        *locked(&self.exits).entry(exit).or_default() += 1;
    }
    /// How often nodes ended by themselves, by what they said.
    pub fn exits(&self) -> BTreeMap<Exit, u64> {
        locked(&self.exits).clone()
    }

    /// Faults are over.
    pub fn heal(&self) {
        self.healing.send_replace(true);
    }
    /// Resolves after `time`, or when faults are over.
    pub async fn until(&self, time: Millis) {
        let mut healing = self.healing.subscribe();
        // The sender lives in the world.
        let _ = tokio::time::timeout(time.duration(), healing.wait_for(|healing| *healing)).await;
    }
    /// Whether faults are over.
    pub fn is_healing(&self) -> bool {
        *self.healing.borrow()
    }

    /// Shapes the ways anew, with these faults at work.
    pub fn shape_ways(&self, faults: &BTreeMap<usize, Fault>) {
        for (from, to) in self.plan.pairs() {
            self.network.shape(from, to, &Shape::of(&self.plan, from, to, faults.values()));
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
