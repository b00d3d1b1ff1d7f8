//! What the clients of a run know. Owns: every creation, order and move with what was heard of it.
//! Always: written down before it is asked, and again when an answer comes; what was not answered stays *perhaps*.
//! Not here: what the regions know (`checks.rs` compares).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::types::{JobId, JobState, Place, VmId};

/// Whether something was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Was {
    /// Surely not.
    NotDone,
    /// Nobody said.
    Perhaps,
    /// Acknowledged.
    Done,
}

/// A VM that a client asked for, by its name, which no other creation has.
#[derive(Debug, Clone)]
pub struct Creation {
    /// Whether it was created.
    pub was: Was,
    /// Its id, once acknowledged.
    pub vm: Option<VmId>,
    /// A repeat under the same key was told that the name is taken.
    pub taken: bool,
}

/// A VM whose creation was acknowledged.
#[derive(Debug, Clone)]
pub struct KnownVm {
    /// Its name.
    pub name: String,
    /// Whether it was deleted.
    pub deleted: Was,
    /// Whether it is to run; none while an order is not answered.
    pub to_run: Option<bool>,
    /// Where it was last seen.
    pub seen_at: Place,
}

/// A move whose start was acknowledged.
#[derive(Debug, Clone)]
pub struct KnownJob {
    /// The VM.
    pub vm: VmId,
    /// Its end, once a client saw it.
    pub end: Option<JobState>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Pages {
    /// By name.
    pub creations: BTreeMap<String, Creation>,
    /// By id.
    pub vms: BTreeMap<VmId, KnownVm>,
    /// By id.
    pub jobs: BTreeMap<JobId, KnownJob>,
    /// Moves begun, acknowledged or not.
    pub moves: usize,
    /// Requests made.
    pub operations: u64,
    /// Requests without an answer.
    pub unknown: u64,
}

/// The book of a run.
#[derive(Debug, Default)]
pub struct Book(Mutex<Pages>);

impl Book {
    /// Its pages. Short, and never across an await.
    pub fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    /// VMs that were acknowledged and not deleted, as far as anybody knows.
    pub fn living(&self) -> Vec<VmId> {
        self.vms.iter().filter(|(_, vm)| vm.deleted == Was::NotDone).map(|(id, _)| *id).collect()
    }
}
