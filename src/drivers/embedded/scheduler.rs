//! Ticks all guests of a host. Owns: when a guest ticks, and that a paused or ended one does not.
//! Always: one task and one heap for all; an idle guest costs nothing between its ticks; a guest whose lock is taken
//! (a snapshot, a long read) is passed over for a moment and never delays the others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::console::Console;
use super::guest::{Guest, Registers};
use crate::clock::Clock;
use crate::types::{Fence, Millis, Tick, VmId};

/// Ticks that a guest which is behind its schedule does in one go; the rest is skipped.
pub const CATCH_UP_TICKS_MAX: u32 = 8;
/// A guest whose disk or console fails tries its tick again after so long.
const RETRY_MS: Millis = Millis(500);
/// A guest whose lock is taken is looked at again after so long.
const BUSY_MS: Millis = Millis(1);
/// Guests ticked before the task lets others run.
const TICKS_PER_TURN: usize = 64;

/// Whether a guest ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// It ticks.
    Running,
    /// It stands still and may go on.
    Paused,
    /// It will never tick again.
    Ended,
}

/// A guest in its host, with its console and the fence it runs under.
pub struct GuestCell {
    /// The VM.
    pub vm: VmId,
    /// Ticks done, to be looked at without the lock.
    tick: AtomicU64,
    inner: Mutex<Inner>,
}

/// What the lock of a guest guards.
pub struct Inner {
    /// The machine.
    pub guest: Guest,
    console: Console,
    fence: Fence,
    motion: Motion,
    /// Counts changes of `motion`, so that an entry of the heap from before a pause is known as stale.
    turn: u64,
    complained: bool,
}

impl Inner {
    /// Whether it ticks.
    pub fn motion(&self) -> Motion {
        self.motion
    }
    /// Changes with each pause and resume.
    pub fn turn(&self) -> u64 {
        self.turn
    }
}

impl GuestCell {
    /// A guest that is paused until [`Scheduler::resume`].
    pub fn new(vm: VmId, guest: Guest, console: Console, fence: Fence) -> Arc<GuestCell> {
        let inner = Inner { guest, console, fence, motion: Motion::Paused, turn: 0, complained: false };
        let tick = AtomicU64::new(inner.guest.registers().tick);
        Arc::new(GuestCell { vm, tick, inner: Mutex::new(inner) })
    }

    /// Its lock. Hold it shortly: it does not tick meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in a tick is a bug of ours; the guest's state is still what the last whole tick made of it or
        // a page further, and the judge will tell. Refusing the lock would only hide the guest from its owner.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its registers now.
    pub fn registers(&self) -> Registers {
        self.lock().guest.registers()
    }

    /// Ticks done. Never waits.
    pub fn tick(&self) -> u64 {
        self.tick.load(Ordering::Relaxed)
    }

    /// Writes the line that it booted.
    pub fn witness_boot(&self) -> std::io::Result<()> {
        let mut inner = self.lock();
        let Registers { boot, boot_tick, .. } = inner.guest.registers();
        let fence = inner.fence;
        inner.console.boot(boot, boot_tick, fence)
    }

    /// Stands still when this returns.
    pub fn pause(&self) {
        self.set(Motion::Paused);
    }

    /// Will never tick again when this returns.
    pub fn end(&self) {
        self.set(Motion::Ended);
    }

    /// Runs on under a newer fence.
    pub fn refence(&self, fence: Fence) {
        self.lock().fence = fence;
    }

    fn set(&self, motion: Motion) {
        let mut inner = self.lock();
        if inner.motion != Motion::Ended {
            inner.motion = motion;
            inner.turn += 1;
        }
    }
}

struct Entry {
    due: Tick,
    turn: u64,
    cell: Weak<GuestCell>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

struct Shared {
    clock: Clock,
    heap: Mutex<BinaryHeap<Reverse<Entry>>>,
    wake: Notify,
}

/// The task that ticks guests. Dropping it ends the task.
pub struct Scheduler {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Scheduler {
    /// Starts the task on the current runtime.
    pub fn start(clock: Clock) -> Scheduler {
        let shared = Arc::new(Shared { clock, heap: Mutex::default(), wake: Notify::new() });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(run(Arc::clone(&shared))));
        Scheduler { shared, stop }
    }

    /// Lets a paused guest tick; its next tick is due one interval from now.
    pub fn resume(&self, cell: &Arc<GuestCell>) {
        let mut inner = cell.lock();
        if inner.motion != Motion::Paused {
            return;
        }
        inner.motion = Motion::Running;
        inner.turn += 1;
        let due = self.shared.clock.now().plus(Millis(inner.guest.plan().tick_ms));
        let entry = Entry { due, turn: inner.turn, cell: Arc::downgrade(cell) };
        drop(inner);
        self.shared.push(entry);
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn heap(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Entry>>> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, entry: Entry) {
        let mut heap = self.heap();
        let first = heap.peek().is_none_or(|Reverse(head)| entry.due < head.due);
        heap.push(Reverse(entry));
        drop(heap);
        if first {
            self.wake.notify_one();
        }
    }

    fn pop_due(&self, now: Tick) -> Result<Entry, Option<Tick>> {
        let mut heap = self.heap();
        match heap.peek() {
            Some(Reverse(head)) if head.due <= now => {
                let Reverse(entry) = heap.pop().expect("it was just seen");
                Ok(entry)
            }
            Some(Reverse(head)) => Err(Some(head.due)),
            None => Err(None),
        }
    }
}

async fn run(shared: Arc<Shared>) {
    let mut in_turn = 0;
    loop {
        let now = shared.clock.now();
        match shared.pop_due(now) {
            Ok(entry) => {
                if let Some(next) = visit(entry, now) {
                    shared.push(next);
                }
                in_turn += 1;
                if in_turn >= TICKS_PER_TURN {
                    in_turn = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(due) => {
                in_turn = 0;
                let wait = due.map_or(Millis(3_600_000), |due| due.since(now));
                tokio::select! {
                    biased;
                    () = shared.wake.notified() => {}
                    () = tokio::time::sleep(wait.duration()) => {}
                }
            }
        }
    }
}

/// Ticks one guest, and again if it is behind. Returns when to come back.
fn visit(entry: Entry, now: Tick) -> Option<Entry> {
    let cell = entry.cell.upgrade()?;
    let mut inner = match cell.inner.try_lock() {
        Ok(inner) => inner,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Some(Entry { due: now.plus(BUSY_MS), ..entry }),
    };
    if inner.motion != Motion::Running || inner.turn != entry.turn {
        return None;
    }
    let interval = Millis(inner.guest.plan().tick_ms);
    let mut due = entry.due;
    for _ in 0..CATCH_UP_TICKS_MAX {
        if due > now {
            break;
        }
        if let Err(error) = tick(&mut inner) {
            if !inner.complained {
                tracing::warn!(vm = %cell.vm, %error, "guest stalled: its disk or console fails; it is tried again");
            }
            inner.complained = true;
            return Some(Entry { due: now.plus(RETRY_MS), ..entry });
        }
        inner.complained = false;
        cell.tick.store(inner.guest.registers().tick, Ordering::Relaxed);
        due = due.plus(interval);
    }
    if due <= now {
        due = now.plus(interval);
    }
    Some(Entry { due, ..entry })
}

fn tick(inner: &mut Inner) -> Result<(), Box<dyn std::error::Error>> {
    let tick = inner.guest.tick()?;
    let fence = inner.fence;
    inner.console.tick(tick, fence)?;
    Ok(())
}
