//! One VM on a host. Owns: performing what `rules/` decides, in that order, one event at a time.
//! Always: an event is decided on the state that the one before left; a failed effect leaves rules and guest agreeing.
//! Not here: whether something may happen (`rules/`), finding the VM (`host.rs`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::task::AbortHandle;

use super::disk::Disk;
use super::guest::Guest;
use super::host::{Host, refused};
use super::media::Media;
use super::program::Plan;
use super::rules::{Effect, Event, Power, Rules, Stage};
use super::scheduler::GuestCell;
use super::transfer::{Offer, Receipt};
use crate::drivers::{BoxFuture, HostError, SealReport, SwitchKey, TransferProgress, VmObservation};
use crate::types::{ClusterId, Fence, Millis, VmId, VmSpec};

/// What a call brings beside its event.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// Of `Create` and `PrepareReceive`.
    pub spec: Option<VmSpec>,
    /// Of `Send`.
    pub bytes_per_second_max: Option<u64>,
}

/// One VM.
pub struct Slot {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub vm: VmId,
    /// Taken for as long as an event is performed.
    turn: tokio::sync::Mutex<()>,
    now: Mutex<Now>,
}

/// What is so now. Looked at without waiting for an event that is under way.
#[derive(Default)]
pub struct Now {
    /// Its rules.
    pub rules: Rules,
    /// Its definition; `None` if it was never here.
    pub spec: Option<VmSpec>,
    /// The guest, if it has memory here.
    pub cell: Option<Arc<GuestCell>>,
    /// The latest permission to send it.
    pub offer: Option<Arc<Offer>>,
    /// What is being received.
    pub receipt: Option<Arc<Receipt>>,
    /// What the seal found.
    pub sealed: Option<SealReport>,
    /// How the last transfer at this end stood when it was over.
    pub ended: Option<(SwitchKey, TransferProgress)>,
    watchdog: Option<AbortHandle>,
    /// The rules are so, and the disk could not be told: it is before anything else happens.
    unsaved: bool,
}

fn failed(error: impl std::error::Error) -> HostError {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        why.push_str(": ");
        why.push_str(&cause.to_string());
        source = cause.source();
    }
    HostError::Failed { why }
}

/// Runs what blocks on a disk where it may block.
async fn blocking<T, E>(media: &Media, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, HostError>
where
    T: Send + 'static,
    E: std::error::Error + Send + 'static,
{
    match media.blocking(work).await {
        Ok(result) => result.map_err(failed),
        Err(panic) => Err(HostError::Failed { why: format!("the work panicked: {panic}") }),
    }
}

impl Slot {
    /// A VM as it was remembered, or one that was never here.
    pub fn new(cluster: ClusterId, vm: VmId, rules: Rules, spec: Option<VmSpec>) -> Arc<Slot> {
        let now = Now { rules, spec, ..Now::default() };
        Arc::new(Slot { cluster, vm, turn: tokio::sync::Mutex::new(()), now: Mutex::new(now) })
    }

    /// What is so now. Hold it shortly.
    pub fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `event` happen: decides, then performs.
    pub async fn step(self: &Arc<Slot>, host: &Arc<Host>, event: Event, details: &Details) -> Result<(), HostError> {
        let _turn = self.turn.lock().await;
        self.save_first(host).await?;
        let before = self.now().rules.clone();
        let (next, effects) = before.apply(&event).map_err(|refusal| refused(self.vm, refusal))?;
        if let (Some(spec), Event::Create { .. } | Event::PrepareReceive { .. }) = (&details.spec, event) {
            self.check_spec(&before, spec)?;
            host.admit(self, spec)?;
        }
        let result = self.perform_all(host, &next, &effects, details).await;
        if self.now().rules.power == Power::Absent {
            host.dismiss(self);
        }
        result
    }

    /// Makes durable what an earlier event left unsaved.
    async fn save_first(self: &Arc<Slot>, host: &Arc<Host>) -> Result<(), HostError> {
        let unsaved = {
            let now = self.now();
            now.unsaved.then(|| now.rules.clone())
        };
        if let Some(rules) = unsaved {
            host.remember(self, &rules, None).await?;
            self.now().unsaved = false;
        }
        Ok(())
    }

    /// A repeat must mean the same VM, and a later attempt one of the same shape; the program must be one to bear.
    fn check_spec(&self, before: &Rules, spec: &VmSpec) -> Result<(), HostError> {
        Plan::of(spec).check().map_err(|e| HostError::Refused { why: format!("{}: {e}", self.vm) })?;
        let now = self.now();
        let Some(known) = &now.spec else { return Ok(()) };
        let same = match before.power {
            Power::Absent => true,
            Power::Receiving { .. } => Plan::of(known) == Plan::of(spec),
            Power::Stopped | Power::Running | Power::Paused { .. } | Power::Held { .. } | Power::Lost => known == spec,
        };
        if same { Ok(()) } else { Err(HostError::Refused { why: format!("{} is defined otherwise here", self.vm) }) }
    }

    async fn perform_all(
        self: &Arc<Slot>,
        host: &Arc<Host>,
        next: &Rules,
        effects: &[Effect],
        details: &Details,
    ) -> Result<(), HostError> {
        let mut done = Vec::new();
        for effect in effects {
            let result = if *effect == Effect::Persist {
                host.remember(self, next, details.spec.as_ref()).await
            } else {
                self.perform(host, *effect, next, details).await
            };
            if let Err(error) = result {
                self.recover(host, next, &done, *effect).await;
                return Err(error);
            }
            if *effect == Effect::Persist {
                self.settle(next, details);
            }
            done.push(*effect);
        }
        self.settle(next, details);
        Ok(())
    }

    fn settle(&self, next: &Rules, details: &Details) {
        let mut now = self.now();
        now.rules = next.clone();
        if details.spec.is_some() {
            now.spec.clone_from(&details.spec);
        }
    }

    /// After `failed` did not go well, makes rules and guest agree again.
    async fn recover(self: &Arc<Slot>, host: &Arc<Host>, next: &Rules, done: &[Effect], failed: Effect) {
        let gone = |e: &Effect| matches!(e, Effect::ShutDown | Effect::Destroy);
        let irrevocable =
            |e: &Effect| matches!(e, Effect::Resume | Effect::DeleteDisk | Effect::RetireDisk { .. }) || gone(e);
        if failed == Effect::Persist && done.iter().any(irrevocable) {
            // It is so, even if the disk does not know it: what a restart makes of the older record is safe too. But a
            // repeat must not be told that it is done before the disk knows.
            let mut now = self.now();
            now.rules = next.clone();
            now.unsaved = true;
            return;
        }
        let cannot_run = matches!(failed, Effect::Boot | Effect::ActivateReceipt | Effect::BootReceipt);
        if cannot_run || done.iter().any(gone) {
            let rules = self.now().rules.clone();
            if let Ok((lost, effects)) = rules.apply(&Event::GuestLost) {
                self.now().rules = lost.clone();
                if effects.contains(&Effect::Persist)
                    && let Err(error) = host.remember(self, &lost, None).await
                {
                    self.now().unsaved = true;
                    tracing::warn!(vm = %self.vm, %error, "a lost guest could not be remembered");
                }
            }
        }
    }

    async fn perform(
        self: &Arc<Slot>,
        host: &Arc<Host>,
        effect: Effect,
        next: &Rules,
        details: &Details,
    ) -> Result<(), HostError> {
        match effect {
            Effect::Persist => {}
            Effect::MakeDisk => {
                let (media, path, plan) = (host.media().clone(), self.disk_path(host), self.plan(details)?);
                drop(blocking(host.media(), move || Disk::create_new_on(&media, &path, plan.blocks)).await?);
            }
            Effect::DeleteDisk => self.delete_file(host, self.disk_path(host)).await?,
            Effect::PurgeDisk { fence } => self.delete_file(host, self.retired_path(host, fence)).await?,
            Effect::RetireDisk { fence } => self.retire_disk(host, fence).await?,
            Effect::Boot | Effect::BootReceipt => {
                let receipt = self.now().receipt.take();
                if let Some(receipt) = receipt {
                    receipt.close();
                }
                let (media, path, plan) = (host.media().clone(), self.disk_path(host), self.plan(details)?);
                let lineage = host.media().random();
                let boot = move || {
                    let disk = Disk::open_on(&media, &path, plan.blocks)?;
                    Guest::boot(plan, disk, lineage)
                };
                let guest = blocking(host.media(), boot).await?;
                self.run(host, guest, next.fence, true)?;
            }
            Effect::ActivateReceipt => {
                let receipt = self.now().receipt.take();
                if let Some(receipt) = &receipt {
                    self.now().ended = Some((receipt.key(), receipt.progress()));
                }
                let guest = receipt.and_then(|receipt| receipt.take());
                let guest = guest.ok_or(HostError::Failed { why: "what was sealed is not there".into() })?;
                self.run(host, guest, next.fence, false)?;
            }
            Effect::Refence => {
                if let Some(cell) = self.cell() {
                    cell.refence(next.fence);
                }
            }
            Effect::ShutDown => self.shut_down(host).await,
            Effect::Destroy => self.end_guest(),
            Effect::Pause => self.pause(),
            Effect::Resume => self.resume(host, next.fence),
            Effect::ArmWatchdog { key, deadline } => {
                let watchdog = host.life().spawn(Arc::clone(self).watch(Arc::downgrade(host), key, deadline));
                self.now().watchdog = Some(watchdog.abort_handle());
            }
            Effect::DisarmWatchdog => {
                if let Some(watchdog) = self.now().watchdog.take() {
                    watchdog.abort();
                }
            }
            Effect::OpenReceipt { key } => {
                let (media, path, plan) = (host.media().clone(), self.disk_path(host), self.plan(details)?);
                let blocks = plan.blocks;
                let disk = blocking(host.media(), move || Disk::create_on(&media, &path, blocks)).await?;
                self.now().receipt = Some(Receipt::new(host.clock(), key, plan, disk, false));
            }
            Effect::AdoptReceipt { key } => {
                let mut now = self.now();
                now.sealed = None;
                if let Some(receipt) = &now.receipt {
                    receipt.adopt(key);
                }
            }
            Effect::VerifyReceipt => self.verify(host).await?,
            Effect::DropReceipt => {
                let receipt = {
                    let mut now = self.now();
                    now.sealed = None;
                    now.receipt.take()
                };
                if let Some(receipt) = receipt {
                    receipt.close();
                }
                self.delete_file(host, self.disk_path(host)).await?;
            }
            Effect::Offer { key } => self.offer(host, key, details)?,
            Effect::StopOffer => {
                if let Some(offer) = &self.now().offer {
                    offer.stop();
                }
            }
        }
        Ok(())
    }

    /// Law 6.3 b: lets the guest go on when the deadline has passed without a hold.
    fn watch(self: Arc<Slot>, host: Weak<Host>, key: SwitchKey, deadline: Millis) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::time::sleep(deadline.duration()).await;
            let Some(host) = host.upgrade() else { return };
            if let Err(error) = self.step(&host, Event::Watchdog { key }, &Details::default()).await {
                tracing::warn!(vm = %self.vm, %error, "the watchdog resumed the guest and could not note it");
            }
        })
    }

    fn cell(&self) -> Option<Arc<GuestCell>> {
        self.now().cell.clone()
    }

    fn plan(&self, details: &Details) -> Result<Plan, HostError> {
        let now = self.now();
        let spec = details.spec.as_ref().or(now.spec.as_ref());
        spec.map(Plan::of).ok_or(HostError::NotFound { what: format!("definition of {}", self.vm) })
    }

    fn disk_path(&self, host: &Host) -> PathBuf {
        host.directory().join("disks").join(format!("{}.{}.raw", self.cluster, self.vm))
    }

    fn retired_path(&self, host: &Host, fence: Fence) -> PathBuf {
        host.directory()
            .join("disks")
            .join(format!("{}.{}.{}-{}.retired", self.cluster, self.vm, fence.epoch, fence.generation))
    }

    async fn delete_file(&self, host: &Host, path: PathBuf) -> Result<(), HostError> {
        let media = host.media().clone();
        blocking(host.media(), move || match media.remove(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        })
        .await
    }

    async fn retire_disk(&self, host: &Host, fence: Fence) -> Result<(), HostError> {
        let (media, from, to) = (host.media().clone(), self.disk_path(host), self.retired_path(host, fence));
        blocking(host.media(), move || match media.rename(&from, &to) {
            // Put aside already, before a crash.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }

    /// Begins to tick `guest` under `fence`.
    fn run(&self, host: &Host, guest: Guest, fence: Fence, booted: bool) -> Result<(), HostError> {
        let path = host.directory().join("console").join(format!("{}.log", self.vm));
        let console = host.media().console(&path, self.vm, host.name()).map_err(failed)?;
        let cell = GuestCell::new(self.vm, guest, console, fence);
        if booted {
            cell.witness_boot().map_err(failed)?;
        }
        let old = self.now().cell.replace(Arc::clone(&cell));
        if let Some(old) = old {
            old.end();
        }
        host.scheduler().resume(&cell);
        Ok(())
    }

    fn pause(&self) {
        let (cell, offer) = {
            let now = self.now();
            (now.cell.clone(), now.offer.clone())
        };
        if let Some(cell) = cell {
            cell.pause();
        }
        if let Some(offer) = offer {
            offer.guest_changed();
        }
    }

    fn resume(&self, host: &Host, fence: Fence) {
        let (cell, offer) = {
            let now = self.now();
            (now.cell.clone(), now.offer.clone())
        };
        if let Some(cell) = cell {
            cell.refence(fence);
            host.scheduler().resume(&cell);
        }
        if let Some(offer) = offer {
            offer.guest_changed();
        }
    }

    fn end_guest(&self) {
        let mut now = self.now();
        if let Some(offer) = now.offer.take() {
            now.ended = Some((offer.key(), offer.progress()));
        }
        if let Some(cell) = now.cell.take() {
            cell.end();
        }
    }

    /// Ends the guest, its watchdog and its transfers as the death of the process would.
    pub fn crash(&self) {
        let mut now = self.now();
        if let Some(watchdog) = now.watchdog.take() {
            watchdog.abort();
        }
        if let Some(offer) = now.offer.take() {
            offer.stop();
        }
        if let Some(receipt) = now.receipt.take() {
            receipt.close();
        }
        if let Some(cell) = now.cell.take() {
            cell.end();
        }
    }

    /// Ends the guest and writes its tick down. That this fails costs ticks at the next boot, nothing else.
    pub async fn shut_down(&self, host: &Host) {
        let Some(cell) = self.cell() else { return };
        cell.end();
        self.end_guest();
        let vm = self.vm;
        if let Err(error) = blocking(host.media(), move || cell.lock().guest.shut_down()).await {
            tracing::warn!(%vm, %error, "a guest could not write its tick down");
        }
    }

    async fn verify(&self, host: &Host) -> Result<(), HostError> {
        let receipt = self.now().receipt.clone();
        let receipt = receipt.ok_or(HostError::NotFound { what: format!("receipt of {}", self.vm) })?;
        let report = blocking(host.media(), move || receipt.seal()).await?;
        let missing = || HostError::Refused { why: format!("{}: not everything has arrived", self.vm) };
        self.now().sealed = Some(report.ok_or_else(missing)?);
        Ok(())
    }

    fn offer(&self, host: &Host, key: SwitchKey, details: &Details) -> Result<(), HostError> {
        let mut now = self.now();
        let lost = || HostError::Failed { why: format!("{} has no memory here", self.vm) };
        let cell = now.cell.clone().ok_or_else(lost)?;
        match &now.offer {
            Some(offer) if offer.key() == key => offer.renew(details.bytes_per_second_max),
            earlier => {
                let offer = Offer::new(host.clock(), key, cell, details.bytes_per_second_max, earlier.as_deref());
                now.offer = Some(offer);
            }
        }
        Ok(())
    }

    /// Opens the receipt of a disk that was sealed before the host restarted.
    pub fn reopen(&self, host: &Host) -> Result<(), HostError> {
        let Power::Receiving { key, stage: Stage::DiskOnly, .. } = self.now().rules.power else { return Ok(()) };
        let plan = self.plan(&Details::default())?;
        let disk = Disk::open_on(host.media(), &self.disk_path(host), plan.blocks).map_err(failed)?;
        self.now().receipt = Some(Receipt::new(host.clock(), key, plan, disk, true));
        Ok(())
    }

    /// Whether a file among the disks is still needed; `None` if it is not of this VM. For the sweep at the start.
    pub fn keeps(&self, host: &Host, path: &Path) -> Option<bool> {
        let name = path.file_name()?.to_str()?;
        let rest = name.strip_prefix(&format!("{}.{}.", self.cluster, self.vm))?;
        let rules = self.now().rules.clone();
        if self.disk_path(host) == path {
            return Some(rules.power != Power::Absent);
        }
        let (epoch, generation) = rest.strip_suffix(".retired")?.split_once('-')?;
        let fence = Fence { epoch: epoch.parse().ok()?, generation: generation.parse().ok()? };
        // A higher fence is that of a retirement which a kill cut off between the disk and the record.
        Some(fence > rules.fence || rules.retired.contains(&fence))
    }

    /// What the host says of it; `None` if it is not here.
    pub fn observe(&self) -> Option<VmObservation> {
        let (rules, spec, cell) = {
            let now = self.now();
            (now.rules.clone(), now.spec.clone()?, now.cell.clone())
        };
        let sight = rules.sight(cell.map_or(0, |cell| cell.tick()))?;
        Some(VmObservation { vm: self.vm, spec, sight })
    }
}
