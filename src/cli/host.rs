//! `novafed host list` and `host stop`. They speak to the hosts themselves, so they also work when no node runs.

use std::path::Path;

use serde::Serialize;

use super::args::HostVerb;
use super::output::Output;
use super::{CliError, own};
use crate::drivers::embedded::launch::{self, LaunchError};
use crate::types::{ApiError, ErrorCode, chain};

/// A host that runs.
#[derive(Serialize)]
struct HostLine {
    name: String,
    pid: u32,
}

fn failed(error: LaunchError) -> CliError {
    own(ErrorCode::Internal, chain(&error))
}

/// Lists the hosts of the region in `dir`, or stops them or one of them.
pub(super) async fn host(dir: &Path, out: &mut Output, verb: HostVerb) -> Result<(), CliError> {
    let root = dir.join("hosts");
    let mut hosts: Vec<HostLine> = launch::find(&root)
        .map_err(failed)?
        .into_iter()
        .filter_map(|(path, process)| Some(HostLine { name: path.file_name()?.to_str()?.to_owned(), pid: process.pid }))
        .collect();
    let head = match verb {
        HostVerb::List => ["host", "process"],
        HostVerb::Stop { host } => {
            if let Some(name) = host {
                hosts.retain(|host| host.name == name.as_str());
                if hosts.is_empty() {
                    let error =
                        ApiError::new(ErrorCode::NotFound, format!("no host {name} runs in {}", root.display()));
                    return Err(CliError::Own(error.hint("novafed host list shows those that do")));
                }
            }
            for host in &hosts {
                launch::stop(&root.join(&host.name)).await.map_err(failed)?;
            }
            ["stopped host", "process"]
        }
    };
    if out.json() {
        return Ok(out.document(&serde_json::json!({ "items": hosts, "next": null }))?);
    }
    let rows = hosts.iter().map(|host| vec![host.name.clone(), host.pid.to_string()]).collect();
    Ok(out.table(&head, rows, &format!("No host runs in {}.", root.display()))?)
}
