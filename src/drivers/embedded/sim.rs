//! Simulated hosts: the host of production on a simulated machine, for federations that run in one process on one
//! thread and on virtual time. Owns: what befalls a host's processes and its machine, on demand.
//! Always: the same seed and the same demands give the same run, to the order of what the witness is told; nothing
//! here or below touches a thread, a file, the time of the system or its randomness.
//! Not here: the driver (`local.rs`), the files (`simulated.rs`), what the host does (`host.rs`).
//!
//! How it differs from a real process:
//!
//! - It dies only where it waits: for its disk, a lock, a timer, bytes. A write to the state is whole, before or after
//!   the death; [`SimHost::set_latency`] makes both happen, and deaths between the effects of one call.
//! - What fell due while it was held is done at the release in an order drawn from the seed; a real one's is the
//!   kernel's. Its guests' runs go on meanwhile, as the witness is told: a held guest is not paused, it is late.
//! - A call has no frame, so that it is neither too long nor cut, and a session takes any number of calls at once. Two
//!   calls of one session may overtake each other on their way. Bytes of a channel take no time.
//! - It starts in no time, and snapshots of its guests are not written: [`SimHost::judge`] looks at the guest itself.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::console::Witness;
use super::faults::Faults;
use super::host::{Ground, Host, HostOpenError};
use super::judge::{JudgeError, Verdict, judge_guest};
use super::life::Life;
use super::local::{Home, LocalDriver, LocalOptions};
use super::media::Media;
use super::port::Port;
use super::simulated::{Death, Room, SimMedia};
use crate::drivers::{HostCall, HostError, HostReply};
use crate::types::{ClusterId, HostName, Millis, VmId};

/// A host on a simulated machine; it outlives its processes. A clone is the same one.
#[derive(Clone)]
pub struct SimHost(Arc<Machine>);

struct Machine {
    name: HostName,
    home: Arc<Home>,
    faults: Arc<Faults>,
    now: Mutex<Now>,
}

struct Now {
    media: SimMedia,
    /// Of the present process, or the last one.
    life: Life,
    held: bool,
}

impl SimHost {
    /// A host that is not started. Whatever is drawn is drawn from `seed`; `witness` is told what its guests do.
    pub fn new(name: HostName, seed: u64, witness: Arc<dyn Witness>) -> SimHost {
        let mut seeds = fastrand::Rng::with_seed(seed);
        let (home, media) = (Arc::new(Home::new(seeds.u64(..))), SimMedia::new(seeds.u64(..), witness));
        let life = Life::default();
        life.end();
        let now = Mutex::new(Now { media, life, held: false });
        SimHost(Arc::new(Machine { name, home, faults: Arc::default(), now }))
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    pub fn name(&self) -> &HostName {
        &self.0.name
    }

    /// Starts its process; nothing happens if there is one.
    ///
    /// # Errors
    /// [`HostOpenError`]: its state can't be opened, as when the disk is full. It is not started then.
    pub async fn start(&self) -> Result<(), HostOpenError> {
        let (media, life) = {
            let mut now = self.now();
            if !now.life.is_over() {
                return Ok(());
            }
            now.life = Life::default();
            now.held = false;
            (now.media.clone(), now.life.clone())
        };
        let ground = Ground {
            name: self.0.name.clone(),
            directory: PathBuf::from("host"),
            media: Media::Simulated(media),
            life: life.clone(),
            faults: Arc::clone(&self.0.faults),
        };
        match life.run(Host::open_on(ground)).await {
            Some(Ok(host)) => self.0.home.set(Some(host)),
            Some(Err(error)) => {
                // The process ends by itself.
                self.crash(Death::Process);
                return Err(error);
            }
            // It was killed while it opened its state.
            None => {}
        }
        Ok(())
    }

    /// Its process ends at once, wherever it was: guests, their memory, transfers and calls under way are gone, and of
    /// what it wrote there is what `death` leaves. Nothing happens if there is none, but that a machine takes what was
    /// not synced with it.
    pub fn crash(&self, death: Death) {
        let host = self.0.home.host();
        let mut now = self.now();
        if now.life.is_over() && death == Death::Process {
            return;
        }
        now.life.end();
        now.media = now.media.after(death);
        drop(now);
        self.0.home.set(None);
        if let Some(host) = host {
            host.crash();
        }
    }

    /// Ends its process in good order, as SIGTERM does: guests are shut down and remember their ticks.
    pub async fn stop(&self) {
        if let Some(host) = self.0.home.host() {
            self.0.home.set(None);
            host.life().run(host.shut_down()).await;
            self.crash(Death::Process);
        }
    }

    /// A new process after a crash. If there is one it is killed first.
    ///
    /// # Errors
    /// As [`SimHost::start`].
    pub async fn restart(&self) -> Result<(), HostOpenError> {
        self.crash(Death::Process);
        self.start().await
    }

    /// Stops its process (`true`) as SIGSTOP does, or lets it go on: meanwhile guests don't tick, calls wait and
    /// answers too; what fell due, watchdogs among it, is done at the release, in an order drawn from the seed.
    pub fn hold(&self, held: bool) {
        let mut now = self.now();
        if now.held == held || now.life.is_over() {
            return;
        }
        now.held = held;
        let life = now.life.clone();
        drop(now);
        if held {
            life.hold();
        } else {
            life.release(|woken| self.shuffle(woken));
        }
    }

    fn shuffle(&self, woken: &mut [Waker]) {
        for at in (1..woken.len()).rev() {
            let with = self.0.home.draw(at as u64);
            woken.swap(at, usize::try_from(with).expect("below the length"));
        }
    }

    /// Whether its process is there, and not held.
    pub fn serves(&self) -> bool {
        let now = self.now();
        !now.life.is_over() && !now.held
    }

    /// Faults of its calls to come; they outlive its processes.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// From now on each call and each answer is on its way for up to so long, and a disk takes up to so long; both
    /// drawn from the seed. At first nothing takes any time.
    pub fn set_latency(&self, calls: Millis, disk: Millis) {
        self.0.home.set_latency(calls);
        self.now().media.set_disk_time(disk);
    }

    /// From now on there is so much room for its state.
    pub fn set_state_room(&self, room: Room) {
        self.now().media.set_state_room(room);
    }

    /// From now on there is so much room for its guests' disks.
    pub fn set_disk_room(&self, room: Room) {
        self.now().media.set_disk_room(room);
    }

    /// A driver of one cluster on it, for one life of a node; it dials when it is first used. `port` closes when that
    /// node's process dies.
    pub fn driver(&self, options: LocalOptions, port: Port) -> LocalDriver {
        LocalDriver::new(Arc::clone(&self.0.home), options, port)
    }

    /// Its present process, for those who only look.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.0.home.host()
    }

    /// Its files.
    pub fn media(&self) -> SimMedia {
        self.now().media.clone()
    }

    /// Judges every byte of a guest that has memory here; `None` if it has none.
    ///
    /// # Errors
    /// [`JudgeError`]: the first byte that is not what the program makes of it.
    pub fn judge(&self, cluster: &ClusterId, vm: VmId) -> Option<Result<Verdict, JudgeError>> {
        let cell = self.host()?.guest(cluster, vm)?;
        let inner = cell.lock();
        Some(judge_guest(&inner.guest))
    }

    /// What its process says at this moment, whether it is held or not, to a call that changes nothing.
    ///
    /// # Errors
    /// [`HostError`]; `Unknown` if there is no process.
    pub async fn observe(&self, cluster: &ClusterId, call: HostCall) -> Result<HostReply, HostError> {
        match self.host() {
            Some(host) => host.observe(cluster, call).await,
            None => Err(HostError::Unknown { why: format!("host {} does not run", self.0.name) }),
        }
    }
}
