//! Keeps a host process alive. Owns: that at most one attempt to start a host is under way.
//! Always: a host that lives is adopted, never started twice (it holds a lock); its VMs' fate is not decided here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::drivers::embedded::launch::{self, Launch, LaunchError, Running};

/// Looks after one host.
#[derive(Debug)]
pub struct HostKeeper {
    launch: Launch,
    busy: AtomicBool,
}

impl HostKeeper {
    /// Of the host that `launch` describes.
    pub fn new(launch: Launch) -> Arc<HostKeeper> {
        Arc::new(HostKeeper { launch, busy: AtomicBool::new(false) })
    }

    /// Adopts the host, or starts it, and waits until it answers.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ensure(&self) -> Result<Running, LaunchError> {
        launch::ensure_running(&self.launch).await
    }

    /// Starts the host again if it died; returns at once.
    pub fn look_after(self: &Arc<Self>) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let keeper = self.clone();
        tokio::spawn(async move {
            match keeper.ensure().await {
                Ok(running) => tracing::info!(host = %keeper.launch.name, ?running, "the host answers"),
                Err(error) => tracing::error!(host = %keeper.launch.name, %error, "the host can't be started"),
            }
            keeper.busy.store(false, Ordering::Release);
        });
    }
}
