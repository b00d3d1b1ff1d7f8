//! What this region shows of itself. Owns: the current leaf and its renewal.
//! Always: a renewal drops no connection; links see the new leaf and move over by themselves.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{CertificateClock, Leaf, RegionCa};
use crate::types::{Millis, WallMillis};

/// The wall clock is looked at this often, because it may jump and timers do not follow it.
const LOOK_MS: Millis = Millis(60_000);
/// After a renewal that failed.
const RETRY_MS: Millis = Millis(5_000);

/// This region's current leaf.
#[derive(Debug)]
pub struct Identity(watch::Sender<Leaf>);

impl Identity {
    /// An identity that shows `leaf`.
    pub fn new(leaf: Leaf) -> Identity {
        Identity(watch::Sender::new(leaf))
    }
    /// From now on new connections show `leaf`.
    pub fn replace(&self, leaf: Leaf) {
        self.0.send_replace(leaf);
    }
    /// Chain and key of the current leaf.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.0.borrow().certified()
    }
    /// The end of the current leaf's life.
    pub fn not_after(&self) -> WallMillis {
        self.0.borrow().not_after
    }
    /// When the current leaf should be replaced.
    pub fn renew_at(&self) -> WallMillis {
        self.0.borrow().renew_at
    }
    /// Changes with the leaf.
    pub fn changes(&self) -> watch::Receiver<Leaf> {
        self.0.subscribe()
    }
}

/// Renews the leaf of `identity` from `ca` after two thirds of each `life` and saves it to `path`, until `stop`.
/// Needs nobody else, so a region that is cut off keeps its identity.
pub async fn keep_renewed(
    identity: Arc<Identity>,
    ca: RegionCa,
    clock: Arc<dyn CertificateClock>,
    life: Millis,
    path: Option<PathBuf>,
    stop: CancellationToken,
) {
    loop {
        let wait = Millis(identity.renew_at().0.saturating_sub(clock.wall().0));
        if wait.0 > 0 {
            match stop.run_until_cancelled(tokio::time::sleep(wait.min(LOOK_MS).duration())).await {
                Some(()) => continue,
                None => return,
            }
        }
        let renewed = ca.issue_leaf(clock.wall(), life).and_then(|leaf| {
            // Saved first: after a crash the file is at least as new as what peers have seen.
            path.as_deref().map_or(Ok(()), |path| leaf.save(path)).map(|()| leaf)
        });
        match renewed {
            Ok(leaf) => {
                tracing::info!(until = leaf.not_after.0, "leaf renewed");
                identity.replace(leaf);
            }
            Err(error) => {
                tracing::error!(%error, until = identity.not_after().0, "renewing the leaf failed; trying again");
                if stop.run_until_cancelled(tokio::time::sleep(RETRY_MS.duration())).await.is_none() {
                    return;
                }
            }
        }
    }
}
