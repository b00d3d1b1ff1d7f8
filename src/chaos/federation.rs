//! A federation on this machine: regions as real processes, between each two a relay per direction that makes distance.
//! Owns: directories, configurations, ports, starting, killing, restarting, waiting until a region answers.
//! Always: a region is made by the same code as `novafed init` and used over its API; nothing here knows its inside.
//! Not here: processes as such (`process.rs`), what is done with the federation (`demo/`, tests).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::process::{LOOK_AGAIN, Process, ProcessError, processes_of, wait_for};
use super::relay::{Direction, Impairment, Relay};
use crate::admin::client::{Ask, Client, ClientError};
use crate::clock::Clock;
use crate::decision::migration::steps::KillPoint;
use crate::drivers::embedded::client;
use crate::drivers::embedded::judge::{self, Moment, Verdict};
use crate::drivers::embedded::program::Plan;
use crate::drivers::embedded::snapshot::SnapshotFiles;
use crate::drivers::embedded::witness::{self, Consoles};
use crate::drivers::{HostCall, HostError, HostReply};
use crate::types::{ClusterId, FederationName, Millis, Place, RegionName, RegionNumber, Resources, VmId, VmSpec};

/// How long a node may take to answer after its start.
pub const READY_MS_MAX: Millis = Millis(20_000);

/// A federation to be made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its name.
    pub federation: FederationName,
    /// Its regions; the n-th gets the number n + 1.
    pub regions: Vec<RegionPlan>,
    /// What the way from one region to another is like. A pair that is not named is as near as the machine makes it.
    pub distances: BTreeMap<(RegionName, RegionName), Impairment>,
    /// Seed of the relays' chances.
    pub seed: u64,
}

/// A region to be made.
#[derive(Debug, Clone)]
pub struct RegionPlan {
    /// Its name.
    pub name: RegionName,
    /// Its clusters with what each has.
    pub clusters: BTreeMap<ClusterId, Resources>,
    /// Whether its hosts take plans of failures.
    pub allow_faults: bool,
    /// Further lines of its `node.toml`.
    pub extra: String,
}

impl Setup {
    /// Regions with these clusters, as near to each other as the machine makes them, each cluster with so much; `extra`
    /// are further lines of each `node.toml`.
    pub fn of(
        federation: FederationName,
        clusters: impl IntoIterator<Item = Place>,
        capacity: Resources,
        extra: &str,
    ) -> Setup {
        let mut regions: Vec<RegionPlan> = Vec::new();
        for Place { region, cluster } in clusters {
            match regions.iter_mut().find(|plan| plan.name == region) {
                Some(plan) => drop(plan.clusters.insert(cluster, capacity)),
                None => {
                    let clusters = BTreeMap::from([(cluster, capacity)]);
                    regions.push(RegionPlan { name: region, clusters, allow_faults: false, extra: extra.to_owned() });
                }
            }
        }
        Setup { federation, regions, distances: BTreeMap::new(), seed: 1 }
    }
}

/// What went wrong with the harness or with what it drives.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// A process, its directory, or something waited for.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A relay.
    #[error("making the way from {from} to {to}")]
    Relay {
        /// The one end.
        from: RegionName,
        /// The other end.
        to: RegionName,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A region refused or did not answer.
    #[error("asking {region} for {path}: {cause}{}", hint(.cause))]
    Api {
        /// What was asked for.
        path: String,
        /// The region asked.
        region: RegionName,
        /// Its answer.
        cause: Box<ClientError>,
    },
    /// A host refused or did not answer.
    #[error("asking the host of {place} to {call}")]
    Host {
        /// Where.
        place: Place,
        /// What.
        call: String,
        /// Its answer.
        #[source]
        source: Box<HostError>,
    },
    /// A file.
    #[error("{doing} {}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The plan can't be carried out.
    #[error("{0}")]
    Plan(String),
}

fn hint(error: &ClientError) -> String {
    let hint = error.hint();
    if hint.is_empty() { hint } else { format!(" ({hint})") }
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HarnessError {
    let path = path.to_owned();
    move |source| HarnessError::File { doing, path, source }
}

/// One region.
#[derive(Debug)]
struct Region {
    dir: PathBuf,
    log: PathBuf,
    plan: RegionPlan,
    number: RegionNumber,
    listen: SocketAddr,
    kill_at: Option<KillPoint>,
    process: Option<Process>,
}

/// Regions that run. Its processes end with the [`Run`](super::process::Run) in whose directory it was started.
pub struct Federation {
    name: FederationName,
    binary: PathBuf,
    dir: PathBuf,
    regions: BTreeMap<RegionName, Region>,
    relays: BTreeMap<(RegionName, RegionName), Relay>,
    snapshots: AtomicU64,
}

impl Federation {
    /// Makes every region of `setup` below `dir` and starts its node with `binary`. See [`Federation::ready`].
    pub async fn start(dir: &Path, setup: &Setup, binary: &Path) -> Result<Federation, HarnessError> {
        let ports = free_ports(setup.regions.len())?;
        let mut regions = BTreeMap::new();
        for ((plan, listen), number) in setup.regions.iter().zip(ports).zip(1..) {
            let region = Region {
                dir: dir.join(plan.name.as_str()),
                log: dir.join(format!("{}.log", plan.name)),
                plan: plan.clone(),
                number: RegionNumber(number),
                listen,
                kill_at: None,
                process: None,
            };
            regions.insert(plan.name.clone(), region);
        }
        let mut relays = BTreeMap::new();
        for (from, to) in pairs(&regions) {
            let seed = setup.seed ^ (u64::from(regions[&from].number.0) << 32 | u64::from(regions[&to].number.0));
            let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let relay = Relay::start(nowhere, regions[&to].listen, seed)
                .await
                .map_err(|source| HarnessError::Relay { from: from.clone(), to: to.clone(), source })?;
            // Whoever dials goes through the relay of his own direction, and hears the answers through it as well.
            let way = |a: &RegionName, b: &RegionName| setup.distances.get(&(a.clone(), b.clone())).copied();
            relay.set(Direction::Forward, way(&from, &to).unwrap_or_default());
            relay.set(Direction::Backward, way(&to, &from).unwrap_or_default());
            relays.insert((from, to), relay);
        }
        let federation = Federation {
            name: setup.federation.clone(),
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            regions,
            relays,
            snapshots: AtomicU64::new(0),
        };
        for (name, region) in &federation.regions {
            federation.init(name, region).await?;
        }
        let mut federation = federation;
        let names: Vec<RegionName> = federation.regions.keys().cloned().collect();
        for name in names {
            federation.start_node(&name).await?;
        }
        Ok(federation)
    }

    async fn init(&self, name: &RegionName, region: &Region) -> Result<(), HarnessError> {
        let number = region.number.to_string();
        let arguments = [
            OsStr::new("init"),
            OsStr::new("--dir"),
            region.dir.as_os_str(),
            OsStr::new("--region"),
            OsStr::new(name.as_str()),
            OsStr::new("--federation"),
            OsStr::new(self.name.as_str()),
            OsStr::new("--number"),
            OsStr::new(&number),
        ];
        let mut init = Process::start(&format!("init of {name}"), &self.binary, &arguments, &region.log)?;
        match init.wait(READY_MS_MAX).await? {
            status if status.success() => Ok(()),
            status => Err(HarnessError::Plan(format!("init of {name} ended ({status}): {}", last_line(&region.log)))),
        }
    }

    /// Starts a region's node, which must not run.
    pub async fn start_node(&mut self, name: &RegionName) -> Result<(), HarnessError> {
        self.configure(name)?;
        let binary = self.binary.clone();
        let region = self.region_mut(name)?;
        let arguments = [OsStr::new("node"), OsStr::new("--dir"), region.dir.as_os_str()];
        region.process = Some(Process::start(&format!("node of {name}"), &binary, &arguments, &region.log)?);
        Ok(())
    }

    /// Kills a region's node with SIGKILL.
    pub async fn kill_node(&mut self, name: &RegionName) -> Result<(), HarnessError> {
        match self.region_mut(name)?.process.take() {
            Some(mut process) => Ok(process.kill().await?),
            None => Err(HarnessError::Plan(format!("the node of {name} does not run"))),
        }
    }

    /// Tells a region's node to stop, and waits for it.
    pub async fn stop_node(&mut self, name: &RegionName) -> Result<std::process::ExitStatus, HarnessError> {
        match self.region_mut(name)?.process.take() {
            Some(mut process) => Ok(process.stop(READY_MS_MAX).await?),
            None => Err(HarnessError::Plan(format!("the node of {name} does not run"))),
        }
    }

    /// The node's process, to wait for its end.
    pub fn node(&mut self, name: &RegionName) -> Result<&mut Process, HarnessError> {
        let missing = HarnessError::Plan(format!("the node of {name} does not run"));
        self.region_mut(name)?.process.as_mut().ok_or(missing)
    }

    /// Sends a signal to a region's node, if it runs.
    pub fn signal_node(&self, name: &RegionName, signal: Signal) -> Result<(), HarnessError> {
        if let Some(process) = &self.region(name)?.process {
            process.signal(signal);
        }
        Ok(())
    }

    /// Kills the host process of a place with SIGKILL.
    pub async fn kill_host(&self, place: &Place) -> Result<(), HarnessError> {
        let dir = self.host_dir(place)?;
        for process in processes_of(&dir) {
            process.kill();
        }
        Ok(wait_for(&format!("the host of {place} to be dead"), READY_MS_MAX, async || {
            let alive = processes_of(&dir).len();
            if alive == 0 { Ok(()) } else { Err(format!("{alive} processes")) }
        })
        .await?)
    }

    /// From its next start on, the node dies at `point`; `None` takes that back.
    pub fn kill_at(&mut self, name: &RegionName, point: Option<KillPoint>) -> Result<(), HarnessError> {
        self.region_mut(name)?.kill_at = point;
        Ok(())
    }

    /// Waits until every region's node says that it is ready. See [`Federation::ready`].
    pub async fn all_ready(&mut self) -> Result<(), HarnessError> {
        let names: Vec<RegionName> = self.regions.keys().cloned().collect();
        for name in &names {
            self.ready(name).await?;
        }
        Ok(())
    }

    /// Waits until a region's node says that it is ready; fails at once if its process ends.
    pub async fn ready(&mut self, name: &RegionName) -> Result<(), HarnessError> {
        let client = self.api(name)?;
        let region = self.region_mut(name)?;
        let log = region.log.clone();
        let clock = Clock::start();
        loop {
            let seen = match client.ask(Ask::get("/readyz")).await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if let Some(status) = region.process.as_mut().and_then(Process::ended) {
                return Err(HarnessError::Plan(format!("the node of {name} ended ({status}): {}", last_line(&log))));
            }
            if clock.now().0 > READY_MS_MAX.0 {
                return Err(HarnessError::Plan(format!(
                    "the node of {name} is not ready after {READY_MS_MAX}: {seen}"
                )));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A client of a region's API.
    pub fn api(&self, name: &RegionName) -> Result<Client, HarnessError> {
        Ok(Client::new(&self.region(name)?.dir))
    }

    /// Reads `path` of a region's API.
    pub async fn get<T: DeserializeOwned>(&self, name: &RegionName, path: &str) -> Result<T, HarnessError> {
        self.ask(name, path, Ask::get(path)).await
    }

    /// Sends `body` to `path` of a region's API, again and again with the same key until it is answered.
    pub async fn post<T: DeserializeOwned>(
        &self,
        name: &RegionName,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, HarnessError> {
        self.ask(name, path, Ask::post(path).body(body)).await
    }

    async fn ask<T: DeserializeOwned>(&self, name: &RegionName, path: &str, ask: Ask) -> Result<T, HarnessError> {
        let answer = self.api(name)?.typed(ask).await;
        answer.map_err(|e| HarnessError::Api { path: path.to_owned(), region: name.clone(), cause: Box::new(e) })
    }

    /// The process number of a region's node, while it lives.
    pub fn pid(&self, name: &RegionName) -> Option<u32> {
        self.regions.get(name)?.process.as_ref()?.pid()
    }

    /// The relay through which `from` dials `to`.
    pub fn relay(&self, from: &RegionName, to: &RegionName) -> Result<&Relay, HarnessError> {
        let missing = || HarnessError::Plan(format!("there is no way from {from} to {to}"));
        self.relays.get(&(from.clone(), to.clone())).ok_or_else(missing)
    }

    /// Cuts, or mends, everything between two regions.
    pub fn cut(&self, a: &RegionName, b: &RegionName, cut: bool) -> Result<(), HarnessError> {
        self.relay(a, b)?.cut_both(cut);
        self.relay(b, a)?.cut_both(cut);
        Ok(())
    }

    /// Where a region's files are.
    pub fn region_dir(&self, name: &RegionName) -> Result<&Path, HarnessError> {
        Ok(&self.region(name)?.dir)
    }

    /// Where a region's node writes what it has to say.
    pub fn log(&self, name: &RegionName) -> Result<&Path, HarnessError> {
        Ok(&self.region(name)?.log)
    }

    /// Asks a host something that changes nothing, past its node.
    pub async fn observe(&self, place: &Place, call: HostCall) -> Result<HostReply, HarnessError> {
        let dir = self.host_dir(place)?;
        let what = format!("{call:?}");
        let answer = client::observe(&dir, &place.cluster, call).await;
        answer.map_err(|e| HarnessError::Host { place: place.clone(), call: what, source: Box::new(e) })
    }

    /// What all consoles say.
    pub fn witness(&self) -> Result<witness::Report, HarnessError> {
        let mut consoles = Consoles::default();
        for place in self.places() {
            self.add_consoles(&place, &mut consoles)?;
        }
        Ok(witness::check(&consoles))
    }

    /// What the consoles of one place say.
    pub fn witness_of(&self, place: &Place) -> Result<witness::Report, HarnessError> {
        let mut consoles = Consoles::default();
        self.add_consoles(place, &mut consoles)?;
        Ok(witness::check(&consoles))
    }

    /// What all consoles of one VM say.
    pub fn witness_of_vm(&self, vm: VmId) -> Result<witness::Report, HarnessError> {
        let mut consoles = Consoles::default();
        for place in self.places() {
            let path = self.console_dir(&place)?.join(format!("{vm}.log"));
            match fs::read(&path) {
                Ok(bytes) => consoles.add(vm, &String::from_utf8_lossy(&bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(file("reading", &path)(error)),
            }
        }
        Ok(witness::check(&consoles))
    }

    /// Recomputes a running VM's memory and disk from its program and its tick, and compares. The inner error says what
    /// differs.
    pub async fn judge(&self, place: &Place, vm: VmId, spec: &VmSpec) -> Result<Result<Verdict, String>, HarnessError> {
        let number = self.snapshots.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(format!("snapshot-{number}"));
        let reply = self.observe(place, HostCall::Snapshot { vm, directory: dir.clone() }).await?;
        let HostReply::Snapshot(info) = reply else {
            return Err(HarnessError::Plan(format!("the host of {place} answers a snapshot with {reply:?}")));
        };
        let report = self.witness_of_vm(vm)?;
        let account = report.vms.get(&vm).ok_or_else(|| HarnessError::Plan(format!("{vm} has no console")))?;
        // Boot and boot tick from the witness; the tick too would be its last line, had the guest not gone on.
        let (boot, boot_tick, _) = account.last;
        let moment = Moment { boot, boot_tick, tick: info.tick };
        let files = SnapshotFiles::of(&dir, vm);
        let plan = Plan::of(spec);
        let judged = tokio::task::spawn_blocking(move || judge::judge(&plan, moment, &files.memory, &files.disk)).await;
        fs::remove_dir_all(&dir).map_err(file("removing", &dir))?;
        match judged {
            Ok(verdict) => Ok(verdict.map_err(|e| e.to_string())),
            Err(error) => Err(HarnessError::Plan(format!("judging {vm}: {error}"))),
        }
    }

    /// All places, in order.
    pub fn places(&self) -> Vec<Place> {
        let of = |(region, r): (&RegionName, &Region)| {
            let region = region.clone();
            r.plan
                .clusters
                .keys()
                .map(move |c| Place { region: region.clone(), cluster: c.clone() })
                .collect::<Vec<_>>()
        };
        self.regions.iter().flat_map(of).collect()
    }

    fn add_consoles(&self, place: &Place, consoles: &mut Consoles) -> Result<(), HarnessError> {
        let dir = self.console_dir(place)?;
        consoles.add_directory(&dir).map_err(file("reading", &dir))
    }

    /// Where the host of a place keeps the consoles of its VMs.
    pub fn console_dir(&self, place: &Place) -> Result<PathBuf, HarnessError> {
        Ok(self.host_dir(place)?.join("console"))
    }

    /// The directory of the host of a place: each cluster has a host of its own, of its name.
    pub fn host_dir(&self, place: &Place) -> Result<PathBuf, HarnessError> {
        Ok(self.region(&place.region)?.dir.join("hosts").join(place.cluster.as_str()))
    }

    fn region(&self, name: &RegionName) -> Result<&Region, HarnessError> {
        self.regions.get(name).ok_or_else(|| HarnessError::Plan(format!("there is no region {name}")))
    }

    fn region_mut(&mut self, name: &RegionName) -> Result<&mut Region, HarnessError> {
        self.regions.get_mut(name).ok_or_else(|| HarnessError::Plan(format!("there is no region {name}")))
    }

    /// Writes `node.toml`: who the region is, its peers behind their relays, its clusters.
    fn configure(&self, name: &RegionName) -> Result<(), HarnessError> {
        let region = self.region(name)?;
        let mut text = format!(
            "[region]\nname = \"{name}\"\nfederation = \"{}\"\nnumber = {}\n\n[listen]\naddress = \"{}\"\n",
            self.name, region.number, region.listen
        );
        for (peer, other) in self.regions.iter().filter(|(peer, _)| *peer != name) {
            let address = self.relay(name, peer)?.address();
            let number = other.number;
            let _ = write!(
                text,
                "\n[[peer]]\nregion = \"{peer}\"\nnumber = {number}\naddress = \"{address}\"\nca = \"../{peer}/ca.pem\"\n"
            );
        }
        for (cluster, capacity) in &region.plan.clusters {
            let Resources { cpu, memory_bytes, disk_bytes } = capacity;
            let _ = write!(
                text,
                "\n[[cluster]]\nid = \"{cluster}\"\n\
                 capacity = {{ cpu = {cpu}, memory = \"{memory_bytes} B\", disk = \"{disk_bytes} B\" }}\n"
            );
        }
        if region.plan.allow_faults || region.kill_at.is_some() {
            text.push_str("\n[chaos]\nallow = true\n");
        }
        if let Some(point) = region.kill_at {
            let _ = writeln!(text, "kill_at = \"{point}\"");
        }
        text.push_str(&region.plan.extra);
        let path = region.dir.join(crate::config::FILE_NAME);
        fs::write(&path, text).map_err(file("writing", &path))
    }
}

/// Each pair of regions, in both directions.
fn pairs(regions: &BTreeMap<RegionName, Region>) -> Vec<(RegionName, RegionName)> {
    let to = |a: &RegionName| {
        let a = a.clone();
        regions.keys().filter(move |b| **b != a).cloned().collect::<Vec<_>>()
    };
    regions.keys().flat_map(|a| to(a).into_iter().map(|b| (a.clone(), b))).collect()
}

/// UDP ports of loopback that nobody has now. All are held until all are found, so that they differ.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>, HarnessError> {
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let held: Result<Vec<UdpSocket>, _> = (0..count).map(|_| bind()).collect();
    let addresses = held.and_then(|sockets| sockets.iter().map(UdpSocket::local_addr).collect());
    addresses.map_err(|e| HarnessError::Plan(format!("finding free UDP ports: {e}")))
}

/// The last line of a log, for an error.
fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().next_back().unwrap_or("it said nothing").to_owned()
}
