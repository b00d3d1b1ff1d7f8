//! Nouns of the restart budget: policies, events, commands, reasons, views. Owns: what can be said; what follows is in
//! `supervision.rs`.

use std::fmt;

use crate::types::limits::{
    JOB_CRASHES_IN_TREE_MAX, RESTART_PAUSE_MS_MAX, RESTART_PAUSE_MS_MIN, RESTART_WAIT_MS_MAX, RESTART_WINDOW_MS,
    RESTARTS_MAX, STOP_MS_MAX,
};
use crate::types::{Millis, Tick};

/// What a child is called among its siblings, for example `job/job-1-3-17`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildId(String);

impl ChildId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for ChildId {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The how-manieth life of a child, from 1; 0 before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ChildIncarnation(pub u64);

impl fmt::Display for ChildIncarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who is restarted together with a child that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Nobody.
    OneForOne,
    /// Those registered after it.
    RestForOne,
    /// Everybody.
    OneForAll,
}

/// After which exits a child is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// After each.
    Permanent,
    /// Unless it exited normally; then it is forgotten.
    Transient,
    /// Never; it is forgotten, unless it is poison.
    Temporary,
}

/// How a child is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Killed at once.
    Brutal,
    /// Asked, and killed when it has not stopped by then.
    Graceful(Millis),
    /// Asked, without a limit of its own: for supervisors, whose children have each their own.
    Subtree,
}

/// Why a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitClass {
    /// It was done.
    Normal,
    /// A panic, an error, or a kill that nobody here asked for.
    Crash,
    /// Something that it needs is not there: try again later, it is not its fault.
    DependencyDown,
    /// What it is fed kills it each time: a person must look.
    Poison,
}

/// The rules for one child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildPolicy {
    /// When it is restarted.
    pub restart: Restart,
    /// How it is stopped.
    pub shutdown: Shutdown,
    /// After so many crashes without progress, over all lives of the process, it is parked. Such a child is also
    /// parked where another would make its supervisor give up: one job never takes its siblings down.
    pub crashes_max: Option<u32>,
}

impl ChildPolicy {
    /// Something that has to be there always.
    pub const fn permanent() -> Self {
        Self { restart: Restart::Permanent, shutdown: Shutdown::Graceful(STOP_MS_MAX), crashes_max: None }
    }
    /// Something that ends by itself one day and is quarantined if it crashes again and again.
    pub const fn job() -> Self {
        Self {
            restart: Restart::Transient,
            shutdown: Shutdown::Graceful(STOP_MS_MAX),
            crashes_max: Some(JOB_CRASHES_IN_TREE_MAX),
        }
    }
}

/// How often and how fast a child is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Restarts of one child in one window; one more failure and the supervisor gives up.
    pub restarts_max: u32,
    /// The window; it slides.
    pub window: Millis,
    /// Shortest pause before a restart.
    pub pause_min: Millis,
    /// Longest pause before a restart.
    pub pause_max: Millis,
    /// Longest pause before a dependency is tried again.
    pub wait_max: Millis,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            restarts_max: RESTARTS_MAX,
            window: RESTART_WINDOW_MS,
            pause_min: RESTART_PAUSE_MS_MIN,
            pause_max: RESTART_PAUSE_MS_MAX,
            wait_max: RESTART_WAIT_MS_MAX,
        }
    }
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new child, the last in order, with its crashes as persisted.
    Registered { child: ChildId, policy: ChildPolicy, crashes: u32 },
    /// A `Start` succeeded.
    Started { child: ChildId, incarnation: ChildIncarnation },
    /// A `Start` failed; nothing of it is alive.
    StartFailed { child: ChildId, incarnation: ChildIncarnation, class: ExitClass, reason: String },
    /// A child ended, asked or not; nothing of it is alive.
    Exited { child: ChildId, incarnation: ChildIncarnation, class: ExitClass, reason: String },
    /// A child got on: its crashes so far are forgiven.
    Progressed { child: ChildId, incarnation: ChildIncarnation },
    /// Stop a child and keep it listed.
    StopRequested { child: ChildId },
    /// Stop a child and forget it.
    RemoveRequested { child: ChildId },
    /// Start a child that is parked, stopped or paused; stop and start one that runs.
    RestartRequested { child: ChildId },
    /// Time went on.
    Ticked,
    /// Stop everything, for good.
    ShutdownRequested,
}

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start it; answer with `Started` or `StartFailed`.
    Start { child: ChildId, incarnation: ChildIncarnation },
    /// Stop it, also while it is starting; answer with `Exited` when nothing of it is alive.
    Stop { child: ChildId, incarnation: ChildIncarnation, shutdown: Shutdown },
    /// Come back with `Ticked` then; replaces the moment asked for before.
    StartAt(Tick),
    /// It is parked: tell a person.
    Park { child: ChildId, reason: ParkReason },
    /// Record its crashes durably before it is started again.
    PersistCrash { child: ChildId, count: u32, reason: String },
    /// Forget its recorded crashes.
    ClearCrashes { child: ChildId },
    /// It is listed no more; drop what you have of it.
    Forget { child: ChildId },
    /// Everything is stopped: end, as a crash with this reason.
    Escalate { reason: GaveUp },
    /// Everything is stopped: end normally.
    Finished,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such child.
    #[error("there is no child '{0}'")]
    Unknown(ChildId),
    /// There is one already.
    #[error("there is a child '{0}' already")]
    Duplicate(ChildId),
    /// The supervisor is on its way out.
    #[error("the supervisor is stopping")]
    Stopping,
}

/// Why a child is parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParkReason {
    /// It said so itself.
    Poison { reason: String },
    /// It crashed too often without progress, over all lives of the process.
    Quarantine { crashes: u32, reason: String },
    /// It was restarted too often in one window.
    Budget { restarts: u32, reason: String },
}

impl fmt::Display for ParkReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poison { reason } => write!(f, "poison: {reason}"),
            Self::Quarantine { crashes, reason } => {
                write!(f, "quarantined after {crashes} crashes without progress: {reason}")
            }
            Self::Budget { restarts, reason } => write!(f, "failed after {restarts} restarts in a row: {reason}"),
        }
    }
}

/// Why a supervisor gave up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("child '{child}' failed after {restarts} restarts within {window}: {reason}")]
pub struct GaveUp {
    /// The child that failed once too often.
    pub child: ChildId,
    /// Its restarts in the window.
    pub restarts: u32,
    /// The window.
    pub window: Millis,
    /// Its last failure.
    pub reason: String,
}

/// A child as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildView {
    /// Its id.
    pub id: ChildId,
    /// What it is doing.
    pub state: ChildState,
    /// Its present or last life.
    pub incarnation: ChildIncarnation,
    /// Restarts after failures inside the window that ends now.
    pub restarts_in_window: u32,
    /// Restarts after failures since it was registered.
    pub restarts_total: u64,
    /// Crashes without progress, over all lives of the process.
    pub crashes: u32,
    /// Its last failure, if any.
    pub last_failure: Option<String>,
}

/// What a child is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildState {
    /// It is being started, or is next in line.
    Starting,
    /// It runs.
    Running { since: Tick },
    /// It failed and is started again then.
    Restarting { at: Tick },
    /// A dependency is down; it is tried again then.
    Waiting { at: Tick },
    /// It was told to stop.
    Stopping { since: Tick },
    /// It waits for a person.
    Parked { reason: ParkReason, since: Tick },
    /// It was stopped on request, or with its supervisor.
    Stopped,
}
