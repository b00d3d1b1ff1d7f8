//! Starting, adopting and stopping host processes. Owns: that a host outlives whoever started it.
//! Always: a process is known by its lock, or by number and start time; one that only has the same number is left alone.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::client::admin;
use super::media::make_directory;
use super::process::{ProcessId, holder};
use super::wire::AdminCall;
use crate::clock::Clock;
use crate::types::{HostName, Millis};

/// How long a host may take to answer after its start.
pub const START_MS_MAX: Millis = Millis(10_000);
/// How long it may take to stop before it is killed.
pub const STOP_HOST_MS_MAX: Millis = Millis(15_000);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How to start a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The program; `None` for the one that runs now.
    pub program: Option<PathBuf>,
    /// Directory of the host.
    pub directory: PathBuf,
    /// Its name.
    pub name: HostName,
    /// Whether faults may be planned over its socket.
    pub allow_faults: bool,
}

/// Why a host was not started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file or the program could not be used.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended before it answered.
    #[error("the host in {} ended at once ({status}); see {}", directory.display(), directory.join("log").display())]
    Ended {
        /// The directory.
        directory: PathBuf,
        /// How.
        status: String,
    },
    /// It does not answer.
    #[error("the host in {} does not answer; see {}", directory.display(), directory.join("log").display())]
    Silent {
        /// The directory.
        directory: PathBuf,
    },
    /// It lives on after all.
    #[error("the host in {} does not end", directory.display())]
    Stubborn {
        /// The directory.
        directory: PathBuf,
    },
}

/// A host that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Its process.
    pub process: ProcessId,
    /// It ran already.
    pub adopted: bool,
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Io { doing, path: path.to_owned(), source }
}

/// The host that serves `directory` now, if one does and its lock tells who it is.
pub fn running(directory: &Path) -> Result<Option<ProcessId>, LaunchError> {
    Ok(holder(directory).map_err(io_error("looking at the lock of", directory))?.flatten())
}

/// Directories of hosts below `root` that a process serves: what an earlier node left running.
pub fn find(root: &Path) -> Result<Vec<(PathBuf, ProcessId)>, LaunchError> {
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io_error("reading", root))?,
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        if let Some(process) = running(&entry.path())? {
            found.push((entry.path(), process));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Adopts the host that serves the directory, or starts one, and waits until it answers.
pub async fn ensure_running(launch: &Launch) -> Result<Running, LaunchError> {
    let directory = &launch.directory;
    make_directory(directory).map_err(io_error("making", directory))?;
    let mut child = None;
    if holder(directory).map_err(io_error("looking at the lock of", directory))?.is_none() {
        child = Some(spawn(launch)?);
    }
    let clock = Clock::start();
    while clock.now().0 < START_MS_MAX.0 {
        if let Ok(Ok(_)) = admin(directory, AdminCall::Status).await
            && let Some(process) = running(directory)?
        {
            let adopted = child.as_ref().and_then(tokio::process::Child::id) != Some(process.pid);
            if adopted && let Some(mut slower) = child {
                // It still tries the lock, and would take over later, when nobody expects it.
                let _ = slower.kill().await;
            }
            return Ok(Running { process, adopted });
        }
        if let Some(status) = child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            // Another node may have been faster by the lock: then that host is the one.
            if holder(directory).map_err(io_error("looking at the lock of", directory))?.is_none() {
                return Err(LaunchError::Ended { directory: directory.clone(), status: status.to_string() });
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Err(LaunchError::Silent { directory: directory.clone() })
}

fn spawn(launch: &Launch) -> Result<tokio::process::Child, LaunchError> {
    let program = match &launch.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(io_error("finding", Path::new("the running program")))?,
    };
    let log_path = launch.directory.join("log");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(io_error("opening", &log_path))?;
    let second = log.try_clone().map_err(io_error("opening", &log_path))?;
    let mut command = tokio::process::Command::new(&program);
    command.arg("host").arg("--dir").arg(&launch.directory).arg("--name").arg(launch.name.as_str());
    if launch.allow_faults {
        command.arg("--allow-faults");
    }
    // Its own process group: a Ctrl-C at its node's terminal is not meant for it.
    command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(second).kill_on_drop(false);
    command.spawn().map_err(io_error("starting", &program))
}

/// Stops the host that serves `directory`: asked, then told, then killed. Nothing to do is done.
pub async fn stop(directory: &Path) -> Result<(), LaunchError> {
    let Some(process) = running(directory)? else { return Ok(()) };
    let asked = admin(directory, AdminCall::Stop).await.is_ok_and(|answer| answer.is_ok());
    if !asked {
        signal(process, Signal::TERM);
    }
    if gone(directory, process, STOP_HOST_MS_MAX).await? {
        return Ok(());
    }
    kill(directory).await
}

/// Kills the host that serves `directory` at once, as a crash would.
pub async fn kill(directory: &Path) -> Result<(), LaunchError> {
    let Some(process) = running(directory)? else { return Ok(()) };
    signal(process, Signal::KILL);
    if gone(directory, process, Millis(5_000)).await? {
        return Ok(());
    }
    Err(LaunchError::Stubborn { directory: directory.to_owned() })
}

fn signal(process: ProcessId, signal: Signal) {
    if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw).filter(|_| process.lives()) {
        // That it is gone meanwhile is what was wanted.
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process has gone and its lock with it.
async fn gone(directory: &Path, process: ProcessId, within: Millis) -> Result<bool, LaunchError> {
    let clock = Clock::start();
    while clock.now().0 < within.0 {
        if !process.lives() && holder(directory).map_err(io_error("looking at the lock of", directory))?.is_none() {
            return Ok(true);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(false)
}
