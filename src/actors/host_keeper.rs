//! Keeps a host process alive. Owns: that at most one attempt to start a host is under way.
//! Always: a host that lives is adopted, never started twice (it holds a lock); nobody waits for a start: a host that
//! can't be started keeps neither its region nor the other hosts from their work. Its VMs' fate is not decided here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::drivers::embedded::launch::{self, Launch};
use crate::types::chain;

/// Looks after one host.
pub struct HostKeeper {
    launch: Launch,
    busy: AtomicBool,
}

impl HostKeeper {
    /// Of the host that `launch` describes.
    pub fn new(launch: Launch) -> Arc<HostKeeper> {
        Arc::new(HostKeeper { launch, busy: AtomicBool::new(false) })
    }

    /// Adopts the host, or starts it if it died; returns at once.
    pub fn look_after(self: &Arc<Self>) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let keeper = self.clone();
        tokio::spawn(async move {
            match launch::ensure_running(&keeper.launch).await {
                Ok(running) => tracing::info!(
                    host = %keeper.launch.name, pid = running.process.pid, adopted = running.adopted,
                    "the host answers"
                ),
                Err(error) => {
                    tracing::error!(host = %keeper.launch.name, error = chain(&error), "the host can't be started");
                }
            }
            keeper.busy.store(false, Ordering::Release);
        });
    }
}
