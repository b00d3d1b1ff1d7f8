//! `novafed host stop`. Speaks to the hosts themselves: it must also work when no node runs.

use std::path::Path;

use super::output::Output;
use super::{CliError, own};
use crate::drivers::embedded::launch;
use crate::types::{ErrorCode, HostName};

/// Stops the hosts of the region in `dir`, or one of them.
pub(super) async fn stop(dir: &Path, only: Option<&HostName>, out: &mut Output) -> Result<(), CliError> {
    let root = dir.join("hosts");
    let failed = |error: launch::LaunchError| own(ErrorCode::Internal, error.to_string());
    let mut found = launch::find(&root).map_err(failed)?;
    if let Some(name) = only {
        found.retain(|(directory, _)| directory.ends_with(name.as_str()));
        if found.is_empty() {
            return Err(own(ErrorCode::NotFound, format!("no host {name} runs in {}", root.display())));
        }
    }
    if found.is_empty() {
        return Ok(out.raw(format!("no host runs in {}\n", root.display()).as_bytes())?);
    }
    for (directory, process) in found {
        launch::stop(&directory).await.map_err(failed)?;
        out.raw(format!("stopped process {} of {}\n", process.pid, directory.display()).as_bytes())?;
    }
    Ok(())
}
