//! The host: clusters, their VMs, and who may speak for a region. Owns: finding the VM of a call, capacity, what is
//! remembered over the process's death, and the refusal of stale stores.
//! Always: an incarnation is durable before a call of it is done; a later one shuts an earlier one out for good.
//! Not here: what a call does to a VM (`slot.rs`, `rules/`), sockets (`process.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::faults::{CallKind, Fault, Faults};
use super::life::Life;
use super::media::Media;
use super::rules::{Effect, Event, Power, Refusal, Rules};
use super::scheduler::{GuestCell, Scheduler};
use super::slot::{Details, Slot};
use super::snapshot;
use super::state::{State, StateError};
use super::transfer::OpenChannel;
use super::wire::ClusterOffer;
use crate::clock::Clock;
use crate::drivers::{
    Channel, DirtyRate, End, HostCall, HostCapabilities, HostError, HostReply, SwitchKey, TransferProgress,
};
use crate::planted::{self, Bug};
use crate::types::limits::REQUEST_MS;
use crate::types::{
    ClusterId, HostName, Incarnation, IncarnationVerdict, Lineage, Millis, OperationId, RegionName, Resources, VmId,
    VmSpec,
};

/// Replies that are remembered so that a late duplicate of an operation is not done again.
const OPERATIONS_MAX: usize = 4096;

/// How long a host waits for the end of the last round before it says that something is missing. A caller's deadline
/// ([`REQUEST_MS`]) must not come first, or "not yet" would look like "unknown".
const LAST_ROUND_MS_MAX: Millis = Millis(2_000);
const _: () = assert!(LAST_ROUND_MS_MAX.0 * 2 < REQUEST_MS.0);

/// Why a host could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HostOpenError {
    /// A directory could not be made or read.
    #[error("preparing {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The remembered state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A row of the state makes no sense: it is of a later version, or damaged.
    #[error("the host state holds a row that this version can't read; use the version that wrote it")]
    Row,
}

/// Keys of the rows.
#[derive(Serialize, Deserialize)]
enum Key {
    Vm(ClusterId, VmId),
    Region(RegionName),
    Cluster(ClusterId),
}

/// First byte of each row.
const ROW_VERSION: u8 = 1;

fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_extend(row, vec![ROW_VERSION]).expect("rows always encode")
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, HostOpenError> {
    match bytes.split_first() {
        Some((&ROW_VERSION, row)) => postcard::from_bytes(row).map_err(|_| HostOpenError::Row),
        Some(_) | None => Err(HostOpenError::Row),
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct ClusterRow {
    region: RegionName,
    capacity: Resources,
}

struct Cluster {
    row: ClusterRow,
    used: BTreeMap<VmId, Resources>,
}

/// A session of a region: what its node proved when it said hello.
#[derive(Debug, Clone)]
pub struct Session {
    region: RegionName,
    incarnation: Incarnation,
    latest: watch::Receiver<Incarnation>,
    /// Held shared while a call of this region changes something.
    busy: Arc<tokio::sync::RwLock<()>>,
}

impl Session {
    /// Whether a later incarnation of the region's store has spoken up.
    pub fn is_superseded(&self) -> bool {
        *self.latest.borrow() != self.incarnation
    }

    /// Returns when a later incarnation of the region's store has spoken up.
    pub async fn superseded(&mut self) {
        let mine = self.incarnation;
        // An error means that the host is gone, which ends the session as well.
        let _ = self.latest.wait_for(|latest| *latest != mine).await;
    }
}

struct Region {
    latest: watch::Sender<Incarnation>,
    busy: Arc<tokio::sync::RwLock<()>>,
}

impl Region {
    fn new(incarnation: Incarnation) -> Region {
        Region { latest: watch::Sender::new(incarnation), busy: Arc::default() }
    }
}

type Remembered = (ClusterId, OperationId);

#[derive(Default)]
struct Operations {
    replies: BTreeMap<Remembered, (HostCall, HostReply)>,
    order: VecDeque<Remembered>,
}

/// What a host is opened from.
#[derive(Clone)]
pub struct Ground {
    /// Its name.
    pub name: HostName,
    /// Where its files lie.
    pub directory: PathBuf,
    /// On which medium.
    pub media: Media,
    /// The life that everything it does is done in.
    pub life: Life,
    /// Faults to come.
    pub faults: Arc<Faults>,
}

/// A host.
pub struct Host {
    ground: Ground,
    clock: Clock,
    state: State,
    scheduler: Scheduler,
    slots: Mutex<BTreeMap<(ClusterId, VmId), Arc<Slot>>>,
    clusters: Mutex<BTreeMap<ClusterId, Cluster>>,
    regions: Mutex<BTreeMap<RegionName, Region>>,
    /// One hello at a time: judging an incarnation and making it durable may not interleave with another.
    greeting: tokio::sync::Mutex<()>,
    operations: Mutex<Operations>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The resources that a VM takes.
fn resources(spec: &VmSpec) -> Resources {
    Resources { cpu: u64::from(spec.cpu), memory_bytes: spec.memory_bytes, disk_bytes: spec.disk_bytes }
}

impl Host {
    /// Opens the host in `directory`, made if it is not there; what its earlier life left is made true to the rules.
    pub async fn open(name: HostName, directory: &Path) -> Result<Arc<Host>, HostOpenError> {
        let (directory, media) = (directory.to_owned(), Media::Files);
        Host::open_on(Ground { name, directory, media, life: Life::default(), faults: Arc::default() }).await
    }

    /// As [`Host::open`], on any ground.
    pub async fn open_on(ground: Ground) -> Result<Arc<Host>, HostOpenError> {
        let Ground { directory, media, .. } = &ground;
        for path in [directory.to_owned(), directory.join("disks"), directory.join("console")] {
            media.make_directory(&path).map_err(|source| HostOpenError::Directory { path, source })?;
        }
        let clock = Clock::start();
        let (path, on) = (directory.join("state.redb"), media.clone());
        let opened = media.blocking(move || State::open(&on, &path)).await;
        let (state, rows) = opened.map_err(|_| StateError::Panicked)??;
        let (mut slots, mut clusters, mut regions) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (key, row) in rows {
            match postcard::from_bytes(&key).map_err(|_| HostOpenError::Row)? {
                Key::Vm(cluster, vm) => {
                    let (rules, spec): (Rules, Option<VmSpec>) = decode(&row)?;
                    slots.insert((cluster.clone(), vm), Slot::new(cluster, vm, rules, spec));
                }
                Key::Region(region) => {
                    regions.insert(region, Region::new(decode(&row)?));
                }
                Key::Cluster(cluster) => {
                    clusters.insert(cluster, Cluster { row: decode(&row)?, used: BTreeMap::new() });
                }
            }
        }
        let host = Arc::new(Host {
            scheduler: Scheduler::start_in(&ground.life, clock.clone()),
            ground,
            clock,
            state,
            slots: Mutex::new(slots),
            clusters: Mutex::new(clusters),
            regions: Mutex::new(regions),
            greeting: tokio::sync::Mutex::new(()),
            operations: Mutex::default(),
        });
        host.settle().await?;
        Ok(host)
    }

    /// Makes every VM what a restart makes of it, and removes files that no VM names.
    async fn settle(self: &Arc<Host>) -> Result<(), HostOpenError> {
        let slots: Vec<Arc<Slot>> = locked(&self.slots).values().cloned().collect();
        let mut changes = Vec::new();
        for slot in &slots {
            let rules = slot.now().rules.clone();
            let Ok((next, effects)) = rules.apply(&Event::HostRestarted) else { continue };
            if effects.contains(&Effect::Persist) {
                let spec = slot.now().spec.clone();
                changes.push((encode_key(&slot.cluster, slot.vm), Some(encode(&(&next, spec)))));
            }
            slot.now().rules = next;
        }
        if !changes.is_empty() {
            self.state.put(changes).await?;
        }
        for slot in &slots {
            if let Err(error) = slot.reopen(self) {
                tracing::warn!(vm = %slot.vm, %error, "a sealed receipt's disk could not be opened");
            }
            let spec = slot.now().spec.clone();
            if let (Some(spec), true) = (spec, slot.now().rules.power != Power::Absent)
                && let Some(cluster) = locked(&self.clusters).get_mut(&slot.cluster)
            {
                cluster.used.insert(slot.vm, resources(&spec));
            }
        }
        let disks = self.directory().join("disks");
        let files = self.media().list(&disks).map_err(|source| HostOpenError::Directory { path: disks, source })?;
        for path in files {
            match slots.iter().find_map(|slot| slot.keeps(self, &path)) {
                Some(true) => {}
                // An effect that a kill cut off: its record says that the file is not needed.
                Some(false) => {
                    tracing::info!(path = %path.display(), "removing a disk that its VM does not name any more");
                    let _ = self.media().remove(&path);
                }
                // Nothing is deleted by inference (law 7.3): perhaps the state was lost, not the VM.
                None => tracing::warn!(path = %path.display(), "a disk of no known VM; it is left alone"),
            }
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &HostName {
        &self.ground.name
    }
    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.ground.directory
    }
    /// What its directory lies on.
    pub fn media(&self) -> &Media {
        &self.ground.media
    }
    /// The life that everything it does is done in.
    pub fn life(&self) -> &Life {
        &self.ground.life
    }
    /// Faults to come; only an admin session of a host that allows them plans any.
    pub fn faults(&self) -> &Faults {
        &self.ground.faults
    }
    /// Its clock.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }
    /// What ticks its guests.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Lets a node speak for `region` with these clusters, if its store is not stale.
    pub async fn attach(
        &self,
        region: &RegionName,
        lineage: &Lineage,
        offers: &[ClusterOffer],
    ) -> Result<Session, HostError> {
        let incarnation = lineage.now;
        let _one = self.greeting.lock().await;
        let known = locked(&self.regions).get(region).map(|known| *known.latest.borrow());
        if let (IncarnationVerdict::Stale, Some(known)) = (lineage.judge(known), known)
            && !planted::is(Bug::NoFence)
        {
            return Err(HostError::StaleIncarnation { known, presented: incarnation });
        }
        // What an earlier incarnation began is over before this one sees anything, and begins nothing more.
        let busy = locked(&self.regions).get(region).map(|known| Arc::clone(&known.busy));
        let _alone = match &busy {
            Some(busy) if known != Some(incarnation) => Some(busy.write().await),
            Some(_) | None => None,
        };
        let mut changes = Vec::new();
        if known != Some(incarnation) {
            let key = postcard::to_stdvec(&Key::Region(region.clone())).expect("keys always encode");
            changes.push((key, Some(encode(&incarnation))));
        }
        for offer in offers {
            let row = ClusterRow { region: region.clone(), capacity: offer.capacity };
            let before = locked(&self.clusters).get(&offer.cluster).map(|c| c.row.clone());
            if let Some(before) = &before
                && before.region != *region
            {
                let why = format!("cluster {} belongs to region {}", offer.cluster, before.region);
                return Err(HostError::Refused { why });
            }
            if before.is_none_or(|before| before.capacity != offer.capacity) {
                let key = postcard::to_stdvec(&Key::Cluster(offer.cluster.clone())).expect("keys always encode");
                changes.push((key, Some(encode(&row))));
            }
        }
        if !changes.is_empty() {
            self.state.put(changes).await.map_err(|e| HostError::Failed { why: e.to_string() })?;
        }
        for offer in offers {
            let row = ClusterRow { region: region.clone(), capacity: offer.capacity };
            locked(&self.clusters)
                .entry(offer.cluster.clone())
                .and_modify(|cluster| cluster.row = row.clone())
                .or_insert_with(|| Cluster { row, used: BTreeMap::new() });
        }
        let mut regions = locked(&self.regions);
        let known = regions.entry(region.clone()).or_insert_with(|| Region::new(incarnation));
        known.latest.send_replace(incarnation);
        let busy = Arc::clone(&known.busy);
        Ok(Session { region: region.clone(), incarnation, latest: known.latest.subscribe(), busy })
    }

    /// Checks that the session is not superseded and may speak for `cluster`.
    fn check(&self, session: &Session, cluster: &ClusterId) -> Result<(), HostError> {
        let latest = *session.latest.borrow();
        if latest != session.incarnation {
            return Err(HostError::StaleIncarnation { known: latest, presented: session.incarnation });
        }
        match locked(&self.clusters).get(cluster) {
            Some(known) if known.row.region == session.region => Ok(()),
            Some(_) | None => Err(HostError::NotFound { what: format!("cluster {cluster} of {}", session.region) }),
        }
    }

    /// The rules of a VM as they are now, for judges and tests.
    pub fn rules(&self, cluster: &ClusterId, vm: VmId) -> Option<Rules> {
        self.find(cluster, vm).map(|slot| slot.now().rules.clone())
    }

    /// A guest that has memory here, for judges and tests.
    pub fn guest(&self, cluster: &ClusterId, vm: VmId) -> Option<Arc<GuestCell>> {
        self.find(cluster, vm)?.now().cell.clone()
    }

    /// Performs a call that changes nothing, without a session: for people, judges and tests.
    pub async fn observe(self: &Arc<Host>, cluster: &ClusterId, call: HostCall) -> Result<HostReply, HostError> {
        match call {
            HostCall::Capabilities
            | HostCall::Inventory
            | HostCall::Get { .. }
            | HostCall::DirtyRate { .. }
            | HostCall::Progress { .. }
            | HostCall::Snapshot { .. } => self.perform(cluster, call).await,
            _ => Err(HostError::Refused { why: "who only looks may not change anything".into() }),
        }
    }

    /// Performs a call. It goes on to its end even if the caller stops waiting.
    pub async fn call(
        self: &Arc<Host>,
        session: &Session,
        cluster: &ClusterId,
        operation: OperationId,
        call: HostCall,
    ) -> Result<HostReply, HostError> {
        self.check(session, cluster)?;
        let (host, session, cluster) = (Arc::clone(self), session.clone(), cluster.clone());
        let life = self.life();
        let task = life.spawn(async move { host.call_with_faults(&session, &cluster, operation, call).await });
        match task.await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(HostError::Unknown { why: "the host died before it answered".into() }),
            Err(panic) => Err(HostError::Unknown { why: format!("the call panicked: {panic}") }),
        }
    }

    async fn call_with_faults(
        self: &Arc<Host>,
        session: &Session,
        cluster: &ClusterId,
        operation: OperationId,
        call: HostCall,
    ) -> Result<HostReply, HostError> {
        let fault = self.faults().strike(CallKind::of(&call));
        match fault {
            Some(Fault::Slow(late)) => tokio::time::sleep(late.duration()).await,
            Some(Fault::Refuses) => return Err(HostError::Refused { why: "planned fault".into() }),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::SaysFailed | Fault::Dies | Fault::Forgets) | None => {}
        }
        if let HostCall::SealReceive { key } = call {
            self.last_round(cluster, key).await;
        }
        let vm = Event::of_call(&call).map(|(vm, _)| vm);
        // A call that only looks may take its time (a snapshot) and keeps no later incarnation waiting.
        let busy = if vm.is_some() { Some(session.busy.read().await) } else { None };
        self.check(session, cluster)?;
        let reply = self.remembered_call(cluster, operation, call).await;
        drop(busy);
        match (fault, reply) {
            (Some(Fault::SaysFailed), Ok(_)) => Err(HostError::Failed { why: "planned fault".into() }),
            (Some(Fault::Forgets), Ok(HostReply::Inventory(_))) => Ok(HostReply::Inventory(Vec::new())),
            (Some(Fault::Forgets), Ok(HostReply::Vm(_))) => Ok(HostReply::Vm(None)),
            (Some(Fault::Dies), reply) => {
                if let Some(slot) = vm.and_then(|vm| self.find(cluster, vm)) {
                    slot.step(self, Event::GuestLost, &Details::default()).await?;
                }
                reply
            }
            (_, reply) => reply,
        }
    }

    /// Waits for the end of the last round, which may still be on its way: to be asked again would cost the paused guest
    /// another round trip between the regions. Nothing is locked meanwhile.
    async fn last_round(&self, cluster: &ClusterId, key: SwitchKey) {
        let receipt = self.find(cluster, key.vm).and_then(|slot| slot.now().receipt.clone());
        if let Some(receipt) = receipt.filter(|receipt| receipt.key() == key) {
            let _ = tokio::time::timeout(LAST_ROUND_MS_MAX.duration(), receipt.ended()).await;
        }
    }

    /// Calls that no attempt fences could do harm when a late duplicate of them arrives, so their replies are kept.
    async fn remembered_call(
        self: &Arc<Host>,
        cluster: &ClusterId,
        operation: OperationId,
        call: HostCall,
    ) -> Result<HostReply, HostError> {
        let unfenced = matches!(
            call,
            HostCall::Create { .. } | HostCall::Start { .. } | HostCall::Stop { .. } | HostCall::Delete { .. }
        );
        if !unfenced {
            return self.perform(cluster, call).await;
        }
        let key = (cluster.clone(), operation);
        if let Some((done, reply)) = locked(&self.operations).replies.get(&key) {
            let other = || HostError::Refused { why: format!("operation {} was another call", key.1) };
            return if *done == call { Ok(reply.clone()) } else { Err(other()) };
        }
        let reply = self.perform(cluster, call.clone()).await?;
        let mut operations = locked(&self.operations);
        if operations.replies.insert(key.clone(), (call, reply.clone())).is_none() {
            operations.order.push_back(key);
        }
        if operations.order.len() > OPERATIONS_MAX
            && let Some(oldest) = operations.order.pop_front()
        {
            operations.replies.remove(&oldest);
        }
        Ok(reply)
    }

    async fn perform(self: &Arc<Host>, cluster: &ClusterId, call: HostCall) -> Result<HostReply, HostError> {
        let found = |vm| self.find(cluster, vm).ok_or(HostError::NotFound { what: vm.to_string() });
        match call {
            HostCall::Capabilities => self.capabilities(cluster).map(HostReply::Capabilities),
            HostCall::Inventory => {
                let slots: Vec<Arc<Slot>> = locked(&self.slots)
                    .iter()
                    .filter(|((of, _), _)| of == cluster)
                    .map(|(_, slot)| Arc::clone(slot))
                    .collect();
                Ok(HostReply::Inventory(slots.iter().filter_map(|slot| slot.observe()).collect()))
            }
            HostCall::Get { vm } => Ok(HostReply::Vm(self.find(cluster, vm).and_then(|slot| slot.observe()))),
            HostCall::DirtyRate { vm } => found(vm)?.dirty_rate().map(HostReply::DirtyRate),
            HostCall::Progress { key } => found(key.vm)?.progress(key).map(HostReply::Progress),
            HostCall::Snapshot { vm, directory } => {
                let cell = found(vm)?.now().cell.clone();
                let cell = cell.ok_or(HostError::Refused { why: format!("{vm} does not run") })?;
                let work = move || snapshot::write(&cell.lock().guest, vm, &directory);
                let Media::Files = self.media() else {
                    return Err(HostError::Unsupported { what: "snapshots of simulated guests".into() });
                };
                let written = tokio::task::spawn_blocking(work).await;
                let failed = |why: String| HostError::Failed { why };
                written.map_err(|e| failed(e.to_string()))?.map(HostReply::Snapshot).map_err(|e| failed(e.to_string()))
            }
            call => {
                let Some((vm, event)) = Event::of_call(&call) else {
                    return Err(HostError::Unsupported { what: format!("{:?}", CallKind::of(&call)) });
                };
                let details = match call {
                    HostCall::Create { spec, .. } | HostCall::PrepareReceive { spec, .. } => {
                        Details { spec: Some(spec), bytes_per_second_max: None }
                    }
                    HostCall::Send { bytes_per_second_max, .. } => Details { spec: None, bytes_per_second_max },
                    _ => Details::default(),
                };
                let slot = match self.find(cluster, vm) {
                    Some(slot) => slot,
                    None => {
                        // A refused call about a VM that was never here leaves nothing behind.
                        Rules::default().apply(&event).map_err(|refusal| refused(vm, refusal))?;
                        self.slot(cluster, vm)
                    }
                };
                slot.step(self, event, &details).await?;
                match event {
                    Event::SealReceive { .. } => {
                        let report = slot.now().sealed;
                        report.map(HostReply::Sealed).ok_or(HostError::NotFound { what: "what was sealed".into() })
                    }
                    _ => Ok(HostReply::Done),
                }
            }
        }
    }

    fn capabilities(&self, cluster: &ClusterId) -> Result<HostCapabilities, HostError> {
        let capacity = locked(&self.clusters).get(cluster).map(|c| c.row.capacity);
        Ok(HostCapabilities {
            driver: super::NAME.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capacity: capacity.ok_or(HostError::NotFound { what: cluster.to_string() })?,
            live_migration: true,
            channels: vec![(Channel::Blocks, true)],
        })
    }

    fn find(&self, cluster: &ClusterId, vm: VmId) -> Option<Arc<Slot>> {
        locked(&self.slots).get(&(cluster.clone(), vm)).cloned()
    }

    fn slot(&self, cluster: &ClusterId, vm: VmId) -> Arc<Slot> {
        let mut slots = locked(&self.slots);
        let slot = slots
            .entry((cluster.clone(), vm))
            .or_insert_with(|| Slot::new(cluster.clone(), vm, Rules::default(), None));
        Arc::clone(slot)
    }

    /// Takes room for a VM, or says that there is none.
    pub fn admit(&self, slot: &Slot, spec: &VmSpec) -> Result<(), HostError> {
        let mut clusters = locked(&self.clusters);
        let cluster = clusters.get_mut(&slot.cluster).ok_or(HostError::NotFound { what: slot.cluster.to_string() })?;
        let others = cluster.used.iter().filter(|(vm, _)| **vm != slot.vm).map(|(_, used)| *used);
        let used = others.fold(Resources::default(), Resources::plus);
        let wanted = used.plus(resources(spec));
        if !cluster.row.capacity.holds(wanted) {
            let free = cluster.row.capacity.minus(used);
            return Err(HostError::NoRoom { why: format!("cluster {} has {free:?} left", slot.cluster) });
        }
        cluster.used.insert(slot.vm, resources(spec));
        Ok(())
    }

    /// Gives the room of a VM back.
    pub fn dismiss(&self, slot: &Slot) {
        if let Some(cluster) = locked(&self.clusters).get_mut(&slot.cluster) {
            cluster.used.remove(&slot.vm);
        }
    }

    /// Makes the rules of a VM durable.
    pub async fn remember(&self, slot: &Slot, rules: &Rules, spec: Option<&VmSpec>) -> Result<(), HostError> {
        let spec = spec.cloned().or_else(|| slot.now().spec.clone());
        let row = encode(&(rules.durable(), spec));
        let change = (encode_key(&slot.cluster, slot.vm), Some(row));
        self.state.put(vec![change]).await.map_err(|e| HostError::Failed { why: e.to_string() })
    }

    /// Checks that a channel may be opened; then `serve` it.
    pub fn channel(
        &self,
        session: &Session,
        cluster: &ClusterId,
        key: SwitchKey,
        channel: Channel,
        end: End,
    ) -> Result<OpenChannel, HostError> {
        self.check(session, cluster)?;
        if channel != Channel::Blocks {
            return Err(HostError::Unsupported { what: format!("channel {channel:?}") });
        }
        let slot = self.find(cluster, key.vm).ok_or(HostError::NotFound { what: key.vm.to_string() })?;
        let now = slot.now();
        let none = || HostError::NotFound { what: format!("attempt {} of {} at this end", key.attempt, key.vm) };
        match end {
            End::Source => {
                let offer = now.offer.clone().filter(|offer| offer.key() == key).ok_or_else(none)?;
                Ok(OpenChannel::Source(offer))
            }
            End::Target => {
                let receipt = now.receipt.clone().filter(|receipt| receipt.key() == key).ok_or_else(none)?;
                Ok(OpenChannel::Target(receipt, key))
            }
        }
    }

    /// Ends everything it does as SIGKILL would: nothing is written down.
    pub fn crash(&self) {
        self.life().end();
        for slot in locked(&self.slots).values() {
            slot.crash();
        }
    }

    /// Shuts all guests down in good order; nothing ticks when this returns.
    pub async fn shut_down(self: &Arc<Host>) {
        let slots: Vec<Arc<Slot>> = locked(&self.slots).values().cloned().collect();
        let mut all = tokio::task::JoinSet::new();
        for slot in slots {
            let host = Arc::clone(self);
            all.spawn(async move { slot.shut_down(&host).await });
        }
        all.join_all().await;
    }
}

/// A refusal of the rules in the contract's words.
pub fn refused(vm: VmId, refusal: Refusal) -> HostError {
    match refusal {
        Refusal::NotFound => HostError::NotFound { what: format!("{vm} in this state") },
        Refusal::LowerFence { seen, got } => {
            HostError::Fenced { vm, seen: format!("fence {seen}"), got: format!("fence {got}") }
        }
        Refusal::LowerAttempt { seen, got } => {
            HostError::Fenced { vm, seen: format!("attempt {seen}"), got: format!("attempt {got}") }
        }
        Refusal::No(why) => HostError::Refused { why: format!("{vm}: {why}") },
    }
}

fn encode_key(cluster: &ClusterId, vm: VmId) -> Vec<u8> {
    postcard::to_stdvec(&Key::Vm(cluster.clone(), vm)).expect("keys always encode")
}

impl Slot {
    fn dirty_rate(&self) -> Result<DirtyRate, HostError> {
        let cell = self.now().cell.clone();
        let cell = cell.ok_or(HostError::Refused { why: format!("{} does not run", self.vm) })?;
        Ok(cell.lock().guest.dirty_rate())
    }

    fn progress(&self, key: SwitchKey) -> Result<TransferProgress, HostError> {
        let (offer, receipt, ended) = {
            let now = self.now();
            (now.offer.clone(), now.receipt.clone(), now.ended)
        };
        if let Some(offer) = offer.filter(|offer| offer.key() == key) {
            return Ok(offer.progress());
        }
        if let Some(receipt) = receipt.filter(|receipt| receipt.key() == key) {
            return Ok(receipt.progress());
        }
        let ended = ended.filter(|(of, _)| *of == key).map(|(_, progress)| progress);
        ended.ok_or(HostError::NotFound { what: format!("attempt {} of {}", key.attempt, key.vm) })
    }
}
