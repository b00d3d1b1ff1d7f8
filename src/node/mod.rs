//! A region as a process. Owns: the order in which its parts start and stop, and with which code it exits.
//! Always: it is the only assembler; the store opens first and closes last; VMs go on whatever happens here.
//! Not here: what the parts do.

mod api;
mod assemble;
mod exit;
mod faults;
mod start;

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use api::RegionApi;
pub use assemble::{Assembled, Parts, Served, assemble};
pub use exit::NodeError;
pub use faults::Faults;

use crate::actors::Ended;
use crate::admin::telemetry::Metrics;
use crate::config::Config;
use crate::types::chain;

/// Runs the node of the region in `dir` until it is told to stop or can't keep its promises.
///
/// # Errors
/// [`NodeError`]: why, with the exit code and what to do.
pub fn run(dir: &Path) -> Result<(), NodeError> {
    let config = Config::load(dir)?;
    config.log.install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(NodeError::Runtime)?;
    let result = runtime.block_on(serve(dir, config));
    // A task that hangs must not keep the process: the store is closed already.
    runtime.shutdown_background();
    result
}

async fn serve(dir: &Path, config: Config) -> Result<(), NodeError> {
    // From the first moment on, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).map_err(NodeError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Runtime)?;
    let metrics = Metrics::install()?;
    let stop = CancellationToken::new();
    tokio::spawn(metrics.clone().upkeep(stop.clone()));
    let region = start::start(dir, &config, metrics, stop.clone()).await?;
    let store = region.ctx.store.clone();
    let ended = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = region.failed() => Some(error),
    };
    match &ended {
        Some(error) => tracing::error!(error = chain(error), advice = error.advice(), "the node stops; its VMs go on"),
        None => tracing::info!("told to stop; the VMs go on"),
    }
    stop.cancel();
    if let Some(faults) = &region.faults {
        faults.end_all("the node stops").await;
    }
    if !matches!(ended, Some(NodeError::Ended { .. })) {
        let how = region.root.shutdown().await;
        if !matches!(how, Ended::Shutdown) {
            tracing::warn!(?how, "the actors did not stop in order");
        }
    }
    region.links.close().await;
    let closed = tokio::task::spawn_blocking(move || store.close()).await;
    if let Ok(Err(error)) = closed
        && ended.is_none()
    {
        return Err(error.into());
    }
    ended.map_or(Ok(()), Err)
}
