//! What the actors of one region share. Owns: handles to the store, links, drivers and open jobs of this region.
//! Always: no global state, so that several regions fit into one process.
//! Not here: how it is put together (`node/`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use tokio::sync::watch;

use super::cluster::ClusterMessage;
use super::directory::Directory;
use super::events::Events;
use super::kill::KillSwitch;
use super::mailbox::{Class, Handle};
use super::source_job::SourceMessage;
use super::supervisor::Supervisor;
use super::target_job::TargetMessage;
use super::vms::Ledgers;
use crate::clock::Clock;
use crate::decision::line::Line;
use crate::decision::migration::defaults::Defaults;
use crate::decision::migration::estimate::{Path, RTT_NOT_MEASURED_US};
use crate::drivers::Hypervisor;
use crate::protocol::link::Link;
use crate::store::{Minted, Store};
use crate::types::{
    ClusterId, FederationName, Incarnation, JobId, Millis, Place, RegionName, RegionNumber, RequestId, limits,
};

/// Settings of a region, from its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What holds for a move where its request says nothing.
    pub moves: Defaults,
    /// Jobs that run at once; the others wait in line.
    pub running_max: usize,
}

/// A local cluster: its driver and its actor.
pub struct LocalCluster {
    /// What runs its VMs.
    pub driver: Arc<dyn Hypervisor>,
    /// Its actor.
    pub actor: Handle<ClusterMessage>,
}

/// Open jobs of this region.
pub struct OpenJobs {
    /// Actors of those on their source's side.
    pub source: BTreeMap<JobId, Handle<SourceMessage>>,
    /// Actors of those on their target's side.
    pub target: BTreeMap<JobId, Handle<TargetMessage>>,
    /// Which of the source's side run, which wait.
    pub line: Line,
}

/// One region's shared handles.
pub struct Context {
    /// The region.
    pub region: RegionName,
    /// Its number.
    pub number: RegionNumber,
    /// The federation.
    pub federation: FederationName,
    /// Its directory.
    pub dir: PathBuf,
    /// Time.
    pub clock: Clock,
    /// The store.
    pub store: Store,
    /// Defaults.
    pub settings: Settings,
    /// Room of the local clusters.
    pub ledgers: Ledgers,
    /// Kill points.
    pub kill: KillSwitch,
    /// What happened, for the API.
    pub events: Events,
    /// What other regions last said.
    pub directory: Directory,
    /// Numbers of the peers, for ids that name a region.
    pub numbers: BTreeMap<RegionNumber, RegionName>,
    links: RwLock<BTreeMap<RegionName, Arc<dyn Link>>>,
    clusters: RwLock<BTreeMap<ClusterId, Arc<LocalCluster>>>,
    jobs: Mutex<OpenJobs>,
    migrations: OnceLock<Supervisor>,
    failed: watch::Sender<Option<String>>,
}

impl Context {
    /// A context without links, clusters and jobs yet.
    #[expect(clippy::too_many_arguments, reason = "the assembler names each once")]
    pub fn new(
        region: RegionName,
        number: RegionNumber,
        federation: FederationName,
        dir: PathBuf,
        clock: Clock,
        store: Store,
        settings: Settings,
        ledgers: Ledgers,
        kill: KillSwitch,
        numbers: BTreeMap<RegionNumber, RegionName>,
    ) -> Context {
        let line = Line::new(settings.running_max);
        Context {
            events: Events::new(region.clone()),
            directory: Directory::default(),
            region,
            number,
            federation,
            dir,
            clock,
            store,
            settings,
            ledgers,
            kill,
            numbers,
            links: RwLock::default(),
            clusters: RwLock::default(),
            jobs: Mutex::new(OpenJobs { source: BTreeMap::new(), target: BTreeMap::new(), line }),
            migrations: OnceLock::new(),
            failed: watch::channel(None).0,
        }
    }

    /// Adds a link.
    pub fn add_link(&self, link: Arc<dyn Link>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.insert(link.peer().clone(), link);
    }

    /// The link to `peer`.
    pub fn link(&self, peer: &RegionName) -> Option<Arc<dyn Link>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    /// All peers, in order.
    pub fn peers(&self) -> Vec<RegionName> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Adds a local cluster.
    pub fn add_cluster(&self, id: ClusterId, cluster: LocalCluster) {
        self.clusters.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(cluster));
    }

    /// A local cluster.
    pub fn cluster(&self, id: &ClusterId) -> Option<Arc<LocalCluster>> {
        self.clusters.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// The supervisor of running jobs, once the assembler has started it.
    pub fn migrations(&self) -> Option<&Supervisor> {
        self.migrations.get()
    }

    /// Sets it; a second time changes nothing.
    pub fn run_jobs_under(&self, supervisor: Supervisor) {
        let _ = self.migrations.set(supervisor);
    }

    /// All local clusters, in order.
    pub fn cluster_ids(&self) -> Vec<ClusterId> {
        self.clusters.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The driver of a local cluster.
    pub fn driver(&self, id: &ClusterId) -> Option<Arc<dyn Hypervisor>> {
        self.cluster(id).map(|cluster| cluster.driver.clone())
    }

    /// A place in this region.
    pub fn here(&self, cluster: &ClusterId) -> Place {
        Place { region: self.region.clone(), cluster: cluster.clone() }
    }

    /// Works on the open jobs. Short, and never across an await.
    pub fn with_jobs<T>(&self, f: impl FnOnce(&mut OpenJobs) -> T) -> T {
        f(&mut self.jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells a cluster that a VM of it changed, so that it looks at once and not only at its next round.
    pub fn changed(&self, cluster: &ClusterId) {
        if let Some(cluster) = self.cluster(cluster) {
            let _ = cluster.actor.cast(Class::Control, ClusterMessage::Look);
        }
    }

    /// An id for a request of a client or of this region itself.
    pub fn next_request(&self) -> RequestId {
        RequestId {
            region: self.number,
            incarnation: self.store.incarnation().counter,
            number: self.store.mint(Minted::Request),
        }
    }

    /// The way to a region as it is now; `bytes_per_second` is what a transfer was seen to carry.
    pub fn path(&self, region: &RegionName, bytes_per_second: u64) -> Path {
        let rtt_us = if *region == self.region {
            0
        } else {
            self.link(region).and_then(|link| link.state().rtt_us).unwrap_or(RTT_NOT_MEASURED_US)
        };
        Path { bytes_per_second, rtt_us, commit_us: self.store.commit_us() }
    }

    /// Whether decisions can be recorded now.
    pub fn store_works(&self) -> bool {
        self.failed.borrow().is_none()
    }

    /// The host of `cluster` knows `known`, a later life of this region's store: this process must stop, and its store
    /// never be in charge again. That is written down before the process ends, so that no restart hides it.
    pub fn stop_as_older_copy(self: &Arc<Self>, cluster: &ClusterId, known: Incarnation) {
        let (ctx, by) = (self.clone(), format!("the host of cluster {cluster}"));
        let why = format!("{by} knows life {known} of this region's store, this is {}", self.store.incarnation());
        tokio::spawn(async move {
            let written = ctx.store.refuse_for_ever(by, known);
            match tokio::time::timeout(limits::REQUEST_MS.duration(), written).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "that this is an older copy could not be written down"),
                Err(_) => tracing::error!("that this is an older copy was not written down in time"),
            }
            ctx.fail(why);
        });
    }

    /// This process must stop: it can't keep its promises. The first reason counts.
    pub fn fail(&self, why: String) {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(why);
            }
            first
        });
    }

    /// Resolves once the process must stop.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// How old a view of another region may be and still count as fresh.
    pub const fn fresh_for() -> Millis {
        limits::LINK_IDLE_MS_MAX
    }
}
