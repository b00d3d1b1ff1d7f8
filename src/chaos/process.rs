//! The processes of a run and the directory they live in. Owns: starting them, killing them, leaving nothing behind.
//! Always: every process of a run has the run's directory in its command line, so it is found there even if whoever
//! started it died first; a process is killed through a descriptor of it, never by a number that may be another's now.
//! Not here: what the processes are told to do (`federation.rs`).

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, Command};

use crate::clock::Clock;
use crate::types::Millis;

const PREFIX: &str = "novafed-run-";
const OWNER: &str = "owner";
/// Between two looks at something that has no event: short beside what is waited for, long beside what it costs.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);
const GONE_MS_MAX: Millis = Millis(5_000);

/// What went wrong with a process or the directory of a run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A file or directory of the run.
    #[error("{doing} {}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A process could not be started, killed or waited for.
    #[error("{doing} {what}")]
    Process {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something did not come in time.
    #[error("waited {waited} for {what}; last seen: {seen}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Millis,
        /// What was there instead.
        seen: String,
    },
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProcessError {
    let path = path.to_owned();
    move |source| ProcessError::File { doing, path, source }
}

/// Looks every 50 ms until `look` gives a value; `look` says what it saw instead.
pub async fn wait_for<T>(
    what: &str,
    at_most: Millis,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, ProcessError> {
    let clock = Clock::start();
    loop {
        let seen = match look().await {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if clock.now().0 >= at_most.0 {
            return Err(ProcessError::Late { what: what.to_owned(), waited: at_most, seen });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A directory for one run, removed with every process that has it in its command line.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    keep: bool,
}

impl Run {
    /// Makes a directory below the system's temporary one, after clearing what runs killed earlier left there.
    pub async fn create() -> Result<Run, ProcessError> {
        Run::create_in(&std::env::temp_dir()).await
    }

    /// The same below `base`: for measurements, which need a disk where the temporary directory may be memory.
    pub async fn create_in(base: &Path) -> Result<Run, ProcessError> {
        sweep(base).await?;
        let me = std::process::id();
        let dir = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{me}-"))
            .rand_bytes(4)
            .tempdir_in(base)
            .map_err(file("making a directory in", base))?
            .keep();
        let run = Run { dir, keep: false };
        let owner = run.dir.join(OWNER);
        fs::write(&owner, format!("{me} {}\n", started(me).unwrap_or_default())).map_err(file("writing", &owner))?;
        Ok(run)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves the directory (not the processes) for somebody who wants to look at it.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Ends every process of the run and removes its directory; says what could not be removed.
    pub async fn close(mut self) -> Result<(), ProcessError> {
        let ended = end_all(&self.dir).await;
        let removed =
            if self.keep { Ok(()) } else { fs::remove_dir_all(&self.dir).map_err(file("removing", &self.dir)) };
        // Whatever is left now was reported; the drop would only try the same again.
        self.keep = true;
        ended.and(removed)
    }
}

impl Drop for Run {
    /// The way out of a panic or an early return: no waiting, so that a last file of a dying process may stay, which
    /// the next run sweeps.
    fn drop(&mut self) {
        for process in processes_of(&self.dir) {
            process.kill();
        }
        if !self.keep {
            let _ = fs::remove_dir_all(&self.dir).or_else(|_| fs::remove_dir_all(&self.dir));
        }
    }
}

/// Removes runs below `base` whose owner is gone, with their processes.
async fn sweep(base: &Path) -> Result<(), ProcessError> {
    let entries = fs::read_dir(base).map_err(file("reading", base))?;
    for dir in entries.flatten().map(|e| e.path()) {
        let ours = dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX));
        if !ours || owner_lives(&dir) {
            continue;
        }
        end_all(&dir).await?;
        // Another sweep may have been faster, and a foreign user's directory is not ours to remove.
        let _ = fs::remove_dir_all(&dir);
    }
    Ok(())
}

/// Whether the process that made the run still lives. A directory without a readable owner is being made just now
/// unless its name's process is gone.
fn owner_lives(dir: &Path) -> bool {
    let written = fs::read_to_string(dir.join(OWNER)).unwrap_or_default();
    if let Some((pid, start)) = written.trim().split_once(' ') {
        return pid.parse().ok().and_then(started).is_some_and(|now| now == start);
    }
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let pid = name[PREFIX.len()..].split('-').next().and_then(|p| p.parse().ok());
    pid.and_then(started).is_some()
}

/// When the process `pid` started, in the kernel's ticks since boot, as text; `None` if there is none.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything; the start time is the 22nd.
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_whitespace().nth(19).map(str::to_owned)
}

/// A process of a run, found by its command line.
#[derive(Debug)]
pub struct Found {
    /// Its number.
    pub pid: u32,
    /// Its command line, for people.
    pub command: String,
    handle: rustix::fd::OwnedFd,
}

impl Found {
    /// SIGKILL.
    pub fn kill(&self) {
        // It may be dead already, which is what was wanted.
        self.signal(Signal::KILL);
    }

    /// Sends it `signal`, if it lives.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

/// Every node, host or `init` that has `dir` or something below it as an argument.
pub fn processes_of(dir: &Path) -> Vec<Found> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id()).filter_map(|pid| found(pid, dir)).collect()
}

fn found(pid: u32, dir: &Path) -> Option<Found> {
    // First the handle, then the look: what was looked at is what the handle holds, or it is gone.
    let handle = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments: Vec<String> =
        line.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).filter(|a| !a.is_empty()).collect();
    // Not by the program's name, which may be another's copy; and not whoever reads a log there.
    let ours = arguments.get(1).is_some_and(|a| ["node", "host", "init"].contains(&a.as_str()));
    let of_run = arguments.iter().any(|a| Path::new(a).starts_with(dir));
    (ours && of_run).then(|| Found { pid, command: arguments.join(" "), handle })
}

/// Kills every process of `dir` until there is none.
async fn end_all(dir: &Path) -> Result<(), ProcessError> {
    wait_for("the processes of the run to be gone", GONE_MS_MAX, async || {
        let alive = processes_of(dir);
        alive.iter().for_each(Found::kill);
        match alive.as_slice() {
            [] => Ok(()),
            [first, ..] => Err(format!("{} alive, one is {} ({})", alive.len(), first.pid, first.command)),
        }
    })
    .await
}

/// A child process with its output in a file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `binary` with `arguments` in a process group of its own, so that a Ctrl-C at the terminal reaches only
    /// the harness. Its output is appended to `log`.
    pub fn start(
        name: &str,
        binary: &Path,
        arguments: &[&std::ffi::OsStr],
        log: &Path,
    ) -> Result<Process, ProcessError> {
        let out = OpenOptions::new().create(true).append(true).open(log).map_err(file("opening", log))?;
        let err = out.try_clone().map_err(file("opening", log))?;
        let child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ProcessError::Process {
                doing: "starting",
                what: binary.display().to_string(),
                source,
            })?;
        Ok(Process { name: name.to_owned(), child })
    }

    /// Its number, while it lives.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends it `signal`, if it lives.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(|p| Pid::from_raw(i32::try_from(p).ok()?)) {
            // It was not waited for yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), ProcessError> {
        let name = self.name.clone();
        self.child.kill().await.map_err(|source| ProcessError::Process { doing: "killing", what: name, source })
    }

    /// SIGTERM, and waits for the end, at most `at_most`.
    pub async fn stop(&mut self, at_most: Millis) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::TERM);
        self.wait(at_most).await
    }

    /// Waits for the end, at most `at_most`.
    pub async fn wait(&mut self, at_most: Millis) -> Result<ExitStatus, ProcessError> {
        let what = self.name.clone();
        match tokio::time::timeout(at_most.duration(), self.child.wait()).await {
            Ok(ended) => ended.map_err(|source| ProcessError::Process { doing: "waiting for", what, source }),
            Err(_) => {
                Err(ProcessError::Late { what: format!("{what} to end"), waited: at_most, seen: "it runs".into() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_whose_owner_is_gone_is_swept_and_a_living_one_is_not() {
        let base = tempfile::tempdir().expect("a directory");
        let me = std::process::id();
        let made = |name: &str, owner: &str| {
            let dir = base.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&dir).expect("a directory");
            fs::write(dir.join(OWNER), owner).expect("a file");
            dir
        };
        let alive = made("alive", &format!("{me} {}\n", started(me).expect("this process")));
        let reused = made("reused", &format!("{me} 1\n"));
        let dead = made("dead", "4194304 77\n");
        let nameless = base.path().join(format!("{PREFIX}4194304-x"));
        fs::create_dir(&nameless).expect("a directory");
        let foreign = base.path().join("somebody-else");
        fs::create_dir(&foreign).expect("a directory");

        sweep(base.path()).await.expect("a sweep");

        assert!(alive.exists() && foreign.exists());
        assert!(!reused.exists() && !dead.exists() && !nameless.exists());
    }

    #[tokio::test]
    async fn a_closed_run_leaves_no_directory() {
        let run = Run::create().await.expect("a run");
        let dir = run.dir().to_owned();
        fs::create_dir_all(dir.join("eu/hosts")).expect("a directory");
        run.close().await.expect("closed");
        assert!(!dir.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_says_for_what_and_what_was_there() {
        let late = wait_for::<()>("rain", Millis(200), async || Err("sun".to_owned())).await;
        let text = late.expect_err("no rain").to_string();
        assert_eq!(text, "waited 200 ms for rain; last seen: sun");
    }
}
