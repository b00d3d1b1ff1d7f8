//! Small disks for the stores of a run, so that one can be full. Owns: the private mount namespace, one small file system
//! in memory for each region's directory, filling it.
//! Always: nothing is mounted outside of the run's own namespace, which ends with its last process, however that ends.
//! Hosts have their files elsewhere, so that only stores meet a full disk.
//! Not here: when a disk is full (`faults.rs`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says to this program, started anew, that it is in its namespace.
const INSIDE: &str = "NOVAFED_CHAOS_NAMESPACE";
/// A store of some thousand moves, and room to grow.
const SIZE: &str = "size=512m";
const UNSHARE: [&str; 4] = ["--mount", "--propagation", "private", "--"];
/// Where somebody else takes room as well.
const STEP: u64 = 4 << 20;

/// Starts this program anew in a mount namespace of its own, with the same arguments; returns if it is in one already.
///
/// # Errors
/// Why it can't be, in words; the run then goes on without.
pub fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err("this is not root, who alone may mount a small disk for each store".into());
    }
    let place = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let mut probe = Command::new("unshare");
    probe.args(UNSHARE).args(["mount", "-t", "tmpfs", "-o", "size=1m", "none"]).arg(place.path());
    match probe.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(format!("no mount namespace: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => return Err(format!("no mount namespace: unshare: {error}")),
    }
    drop(place);
    let me = std::env::current_exe().map_err(|e| format!("finding the path of this program: {e}"))?;
    let error = Command::new("unshare").args(UNSHARE).arg(me).args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
    Err(format!("no mount namespace: {error}"))
}

/// Small disks that are mounted; taken away when dropped.
pub struct Disks {
    dirs: Vec<PathBuf>,
}

impl Disks {
    /// One for each of these directories of regions, which are made, with their hosts' files beside it.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn mount(dirs: Vec<PathBuf>) -> Result<Disks, String> {
        let mut disks = Disks { dirs: Vec::new() };
        for dir in dirs {
            let hosts = dir.with_extension("hosts");
            fs::create_dir_all(&dir).and_then(|()| fs::create_dir_all(&hosts)).map_err(|e| e.to_string())?;
            run(Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "none"]).arg(&dir))?;
            disks.dirs.push(dir.clone());
            // From where it stands, so that it holds when the whole run is moved.
            let beside = Path::new("..").join(hosts.file_name().unwrap_or_default());
            symlink(beside, dir.join("hosts")).map_err(|e| e.to_string())?;
        }
        Ok(disks)
    }

    /// Leaves what is on them in their place, for somebody who wants to look at it. Nobody writes to them any more.
    ///
    /// # Errors
    /// What could not be copied.
    pub fn keep(mut self) -> Result<(), String> {
        for dir in std::mem::take(&mut self.dirs) {
            let copy = dir.with_extension("kept");
            run(Command::new("cp").arg("-a").arg(&dir).arg(&copy))?;
            run(Command::new("umount").arg("-l").arg(&dir))?;
            fs::remove_dir(&dir).and_then(|()| fs::rename(&copy, &dir)).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // What stays mounted is gone with the namespace.
            let _ = Command::new("umount").arg("-l").arg(dir).output();
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// Lets the file `filler` grow until its disk has `left` bytes.
///
/// # Errors
/// If it can't.
pub fn fill(filler: &Path, left: u64) -> io::Result<()> {
    let file: File = OpenOptions::new().create(true).append(true).open(filler)?;
    let mut step = u64::MAX;
    loop {
        let room = rustix::fs::fstatvfs(&file)?;
        let free = (room.f_bavail * room.f_frsize).saturating_sub(left).min(step);
        let have = file.metadata()?.len();
        if free < room.f_frsize {
            return Ok(());
        }
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), have, free) {
            Ok(()) => {}
            // Somebody else took some of it: smaller steps, or what there is was taken.
            Err(rustix::io::Errno::NOSPC) if step > STEP => step = STEP,
            Err(rustix::io::Errno::NOSPC) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
