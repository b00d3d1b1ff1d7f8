//! Kill points (architecture §10). Owns: dying exactly where a test said. Always: honoured only with `[chaos] allow`,
//! once: the point is written to `run/killed` before the process dies, and a point that stands there is passed.
//! A point that is armed while the process runs is forgotten with it, and so needs no word.
//! A simulated region has no process to kill: whoever simulates it is told of each point that it passes.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::decision::migration::steps::{KillPoint, Moment, Side, Step};

/// Told of each point before the region goes on.
pub type Watcher = Arc<dyn Fn(KillPoint) + Send + Sync>;

/// The switch. A copy is the same one.
#[derive(Clone)]
pub struct KillSwitch {
    how: How,
    armed: Arc<Mutex<Option<KillPoint>>>,
}

#[derive(Clone)]
enum How {
    /// Every point is passed.
    Off,
    /// Dies at the point, once it has left word of that.
    At(KillPoint, PathBuf),
    /// Somebody watches.
    Watched(Watcher),
}

impl KillSwitch {
    /// A switch for `point`, if one is configured and allowed, that has not been hit before in this region's directory.
    pub fn new(point: Option<KillPoint>, run_dir: &Path) -> KillSwitch {
        let word = run_dir.join("killed");
        let hit = fs::read_to_string(&word).unwrap_or_default();
        let armed = point.filter(|p| !hit.lines().any(|line| line == p.to_string()));
        KillSwitch { how: armed.map_or(How::Off, |point| How::At(point, word)), armed: Arc::default() }
    }

    /// A switch of a simulated region.
    pub fn watched(watcher: Watcher) -> KillSwitch {
        KillSwitch { how: How::Watched(watcher), armed: Arc::default() }
    }

    /// Whether there is a process that it can kill.
    pub fn is_real(&self) -> bool {
        !matches!(self.how, How::Watched(_))
    }

    /// The process dies at `point` as well, the next time that it passes there; `None` takes that back.
    pub fn arm(&self, point: Option<KillPoint>) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = point;
    }

    /// Dies here if this is the point.
    pub fn pass(&self, step: Step, side: Side, moment: Moment) {
        let here = KillPoint { step, side, moment };
        if self.is_real() && *self.armed.lock().unwrap_or_else(PoisonError::into_inner) == Some(here) {
            die();
        }
        let word = match &self.how {
            How::Watched(watcher) => return watcher(here),
            How::At(point, word) if *point == here => word,
            How::At(..) | How::Off => return,
        };
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(word)
            .and_then(|mut file| writeln!(file, "{here}").and_then(|()| file.sync_all()));
        if let Err(error) = written {
            // Without the word the process would die here again after each restart.
            tracing::error!(%here, %error, "can't leave word of the kill point, so it is passed");
            return;
        }
        die();
    }
}

/// The process dies here and now, as by SIGKILL from outside.
pub fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // SIGKILL of oneself is delivered before the call returns to user code; nothing after it runs.
    std::process::abort();
}
