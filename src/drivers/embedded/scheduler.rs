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
use super::life::Life;
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
    /// The line of the latest tick could not be written yet.
    line_owed: bool,
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
        let inner =
            Inner { guest, console, fence, motion: Motion::Paused, turn: 0, line_owed: false, complained: false };
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
        let mut inner = self.lock();
        if inner.fence != fence {
            inner.fence = fence;
            inner.console.refence(fence, inner.guest.registers().tick);
        }
    }

    fn set(&self, motion: Motion) {
        let mut inner = self.lock();
        if inner.motion == Motion::Ended {
            return;
        }
        if inner.motion == Motion::Running && motion != Motion::Running {
            inner.console.stands(inner.guest.registers().tick);
        }
        inner.motion = motion;
        inner.turn += 1;
    }
}

struct Entry {
    /// When it is looked at.
    at: Tick,
    /// When its tick is due: earlier than `at` if it was busy or failed then.
    due: Tick,
    turn: u64,
    cell: Weak<GuestCell>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
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
        self.at.cmp(&other.at)
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
    /// Starts the task on the current runtime, in a life that nobody ends.
    pub fn start(clock: Clock) -> Scheduler {
        Scheduler::start_in(&Life::default(), clock)
    }

    /// Starts the task on the current runtime, in `life`.
    pub fn start_in(life: &Life, clock: Clock) -> Scheduler {
        let shared = Arc::new(Shared { clock, heap: Mutex::default(), wake: Notify::new() });
        let stop = CancellationToken::new();
        life.spawn(stop.clone().run_until_cancelled_owned(run(Arc::clone(&shared))));
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
        inner.console.runs(inner.fence, inner.guest.registers().tick);
        let due = self.shared.clock.now().plus(Millis(inner.guest.plan().tick_ms));
        let entry = Entry { at: due, due, turn: inner.turn, cell: Arc::downgrade(cell) };
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
        let first = heap.peek().is_none_or(|Reverse(head)| entry.at < head.at);
        heap.push(Reverse(entry));
        drop(heap);
        if first {
            self.wake.notify_one();
        }
    }

    fn pop_due(&self, now: Tick) -> Result<Entry, Option<Tick>> {
        let mut heap = self.heap();
        match heap.peek() {
            Some(Reverse(head)) if head.at <= now => {
                let Reverse(entry) = heap.pop().expect("it was just seen");
                Ok(entry)
            }
            Some(Reverse(head)) => Err(Some(head.at)),
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
                // Not by `push`: this task needs no waking, it looks at the heap next.
                if let Some(next) = visit(entry, now) {
                    shared.heap().push(Reverse(next));
                }
                in_turn += 1;
                if in_turn >= TICKS_PER_TURN {
                    in_turn = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(due) => {
                in_turn = 0;
                let Some(due) = due else {
                    shared.wake.notified().await;
                    continue;
                };
                tokio::select! {
                    biased;
                    () = shared.wake.notified() => {}
                    () = tokio::time::sleep(due.since(now).duration()) => {}
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
        Err(TryLockError::WouldBlock) => return Some(Entry { at: now.plus(BUSY_MS), ..entry }),
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
            return Some(Entry { at: now.plus(RETRY_MS), due, ..entry });
        }
        inner.complained = false;
        cell.tick.store(inner.guest.registers().tick, Ordering::Relaxed);
        due = due.plus(interval);
    }
    if due <= now {
        due = now.plus(interval);
    }
    Some(Entry { at: due, due, ..entry })
}

fn tick(inner: &mut Inner) -> Result<(), Box<dyn std::error::Error>> {
    // Every tick has its line before the next begins, also after a disk was full.
    if !inner.line_owed {
        inner.guest.tick()?;
        inner.line_owed = true;
    }
    inner.console.tick(inner.guest.registers().tick, inner.fence)?;
    inner.line_owed = false;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::embedded::disk::Disk;
    use crate::drivers::embedded::program::Plan;
    use crate::drivers::embedded::witness::{Consoles, check};
    use crate::types::{GuestProgram, RegionNumber};

    const VM: VmId = VmId { region: RegionNumber(1), incarnation: 1, number: 1 };

    fn cell(directory: &std::path::Path, console: &std::path::Path) -> Arc<GuestCell> {
        let plan = Plan::new(&GuestProgram { tick_ms: 10, ..GuestProgram::default() }, 0, 0);
        let disk = Disk::create(&directory.join("disk"), plan.blocks).unwrap();
        let console = Console::open(console, &"h".parse().unwrap()).unwrap();
        GuestCell::new(VM, Guest::boot(plan, disk, 1).unwrap(), console, Fence::FIRST)
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_ticks_at_its_rate_and_not_while_it_is_paused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let cell = cell(dir.path(), &path);
        let scheduler = Scheduler::start(Clock::start());
        scheduler.resume(&cell);
        scheduler.resume(&cell); // twice is once
        tokio::time::sleep(std::time::Duration::from_millis(1_005)).await;
        assert_eq!(cell.tick(), 100);
        cell.pause();
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        assert_eq!(cell.tick(), 100);
        scheduler.resume(&cell);
        tokio::time::sleep(std::time::Duration::from_millis(105)).await;
        assert_eq!(cell.tick(), 110);
        cell.end();
        scheduler.resume(&cell);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(cell.tick(), 110);
        let mut consoles = Consoles::default();
        consoles.add(VM, &std::fs::read_to_string(path).unwrap());
        assert_eq!(check(&consoles).violations, []);
    }

    #[tokio::test(start_paused = true)]
    #[allow(clippy::await_holding_lock, reason = "that is what is tried")]
    async fn a_guest_whose_lock_is_taken_catches_up_a_little_and_delays_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&two).unwrap();
        let (held, free) = (cell(&one, &one.join("console")), cell(&two, &two.join("console")));
        let scheduler = Scheduler::start(Clock::start());
        scheduler.resume(&held);
        scheduler.resume(&free);
        let lock = held.lock();
        tokio::time::sleep(std::time::Duration::from_millis(1_005)).await;
        assert_eq!(free.tick(), 100);
        drop(lock);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        assert_eq!(held.tick(), u64::from(CATCH_UP_TICKS_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_whose_console_is_full_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let cell = cell(dir.path(), std::path::Path::new("/dev/full"));
        let scheduler = Scheduler::start(Clock::start());
        scheduler.resume(&cell);
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        assert_eq!(cell.registers().tick, 1);
    }
}
