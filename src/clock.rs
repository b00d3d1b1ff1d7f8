//! Time. The only module that asks for it; everything else is given a [`Tick`] or a [`WallMillis`].
//! Timers are tokio's, so that tests run on paused time, and so do simulations, whose wall clocks are [`SimulatedWall`]s.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::{Millis, Tick, WallMillis};

/// A clock: a copy of it counts from the same origin.
#[derive(Debug, Clone)]
pub struct Clock {
    origin: tokio::time::Instant,
    wall: Option<SimulatedWall>,
}

/// The wall clock of a simulated machine: it goes with tokio's time and jumps when it is set. A copy is the same clock.
#[derive(Debug, Clone)]
pub struct SimulatedWall {
    origin: tokio::time::Instant,
    /// Milliseconds since 1970 at the origin, jumps included.
    at_origin: Arc<AtomicI64>,
}

#[allow(clippy::disallowed_methods, reason = "this is the module that asks")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

fn millis_since(origin: tokio::time::Instant) -> u64 {
    u64::try_from(origin.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl SimulatedWall {
    /// A wall clock that shows `at` now.
    pub fn showing(at: WallMillis) -> SimulatedWall {
        let at = i64::try_from(at.0).unwrap_or(i64::MAX);
        SimulatedWall { origin: now(), at_origin: Arc::new(AtomicI64::new(at)) }
    }
    /// Sets it forward, or back, by so many milliseconds.
    pub fn jump(&self, by_ms: i64) {
        self.at_origin.fetch_add(by_ms, Ordering::Relaxed);
    }
    fn read(&self) -> WallMillis {
        let passed = i64::try_from(millis_since(self.origin)).unwrap_or(i64::MAX);
        let shown = self.at_origin.load(Ordering::Relaxed).saturating_add(passed);
        // A clock that was set to before 1970 shows 1970.
        WallMillis(u64::try_from(shown).unwrap_or(0))
    }
}

impl Clock {
    /// A clock whose tick 0 is now.
    pub fn start() -> Clock {
        Clock { origin: now(), wall: None }
    }
    /// The same with the wall clock of a simulated machine.
    pub fn simulated(wall: SimulatedWall) -> Clock {
        Clock { origin: now(), wall: Some(wall) }
    }
    /// Milliseconds since its origin; follows tokio's paused time in tests.
    pub fn now(&self) -> Tick {
        Tick(millis_since(self.origin))
    }
    /// When `tick` is, for timers that are set anew again and again.
    pub fn at(&self, tick: Tick) -> tokio::time::Instant {
        self.origin + Millis(tick.0).duration()
    }
    /// Wall time, for records that people read.
    #[allow(clippy::disallowed_methods, reason = "this is the module that asks")]
    pub fn wall(&self) -> WallMillis {
        if let Some(wall) = &self.wall {
            return wall.read();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Nanoseconds of the machine's monotonic clock: comparable between processes of one machine, hence what
/// witnesses stamp.
pub fn machine_nanos() -> u64 {
    nanos(rustix::time::ClockId::Monotonic)
}

/// Nanoseconds for which processors have worked for this process.
pub fn process_nanos() -> u64 {
    nanos(rustix::time::ClockId::ProcessCPUTime)
}

fn nanos(clock: rustix::time::ClockId) -> u64 {
    let t = rustix::time::clock_gettime(clock);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}
