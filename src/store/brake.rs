//! Commits that take longer than they have to, for tests. Owns: how much longer.
//! Always: a commit waits before it writes, so what is slow is also what is not acknowledged; once the brake is off,
//! nobody waits any more. Not here: who asks for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::clock::machine_nanos;
use crate::types::Millis;

/// Off unless it is set.
#[derive(Debug, Default)]
pub(super) struct Brake {
    delay_ms: AtomicU64,
    turned: Mutex<()>,
    changed: Condvar,
}

impl Brake {
    /// Each commit takes so much longer from now on; 0 takes it off.
    pub(super) fn set(&self, delay: Millis) {
        let _turned = self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        self.delay_ms.store(delay.0, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// How much longer a commit takes.
    pub(super) fn delay(&self) -> Millis {
        Millis(self.delay_ms.load(Ordering::Relaxed))
    }

    /// Waits as long as is set.
    pub(super) fn hold(&self) {
        if self.delay().0 == 0 {
            return;
        }
        let began = machine_nanos();
        let mut turned = self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let passed = std::time::Duration::from_nanos(machine_nanos().saturating_sub(began));
            let Some(left) = self.delay().duration().checked_sub(passed).filter(|left| !left.is_zero()) else { return };
            let waited = self.changed.wait_timeout(turned, left);
            turned = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn it_holds_as_long_as_it_is_set_and_lets_go_when_it_is_taken_off() {
        let brake = Arc::new(Brake::default());
        brake.set(Millis(30));
        let began = machine_nanos();
        brake.hold();
        assert!(machine_nanos() - began >= 30_000_000);
        brake.set(Millis(600_000));
        let held = brake.clone();
        let waiting = std::thread::spawn(move || held.hold());
        brake.set(Millis(0));
        waiting.join().unwrap();
        brake.hold();
    }
}
