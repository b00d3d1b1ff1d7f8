//! Time. The only module that asks for it; everything else is given a [`Tick`] or a [`WallMillis`].
//! Timers are tokio's, so that tests run on paused time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::{Tick, WallMillis};

/// A clock: a copy of it counts from the same origin.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: tokio::time::Instant,
}

impl Clock {
    /// A clock whose tick 0 is now.
    #[allow(clippy::disallowed_methods, reason = "this is the module that asks")]
    pub fn start() -> Clock {
        Clock { origin: tokio::time::Instant::now() }
    }
    /// Milliseconds since its origin; follows tokio's paused time in tests.
    pub fn now(&self) -> Tick {
        Tick(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
    /// Wall time, for records that people read.
    #[allow(clippy::disallowed_methods, reason = "this is the module that asks")]
    pub fn wall(&self) -> WallMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Nanoseconds of the machine's monotonic clock: comparable between processes of one machine, hence what
/// witnesses stamp.
pub fn machine_nanos() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}
