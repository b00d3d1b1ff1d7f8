//! The live tree. Owns: what people see of supervisors and actors, as data. Always: taken without asking any actor,
//! so that it shows also what hangs.

use serde::{Deserialize, Serialize};

use super::mailbox::Load;
use crate::decision::supervision::{ChildState, ChildView};
use crate::types::{Tick, WallMillis};

/// A supervisor or an actor, and what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tree {
    /// What it is called among its siblings.
    pub id: String,
    /// What it is doing.
    pub state: TreeState,
    /// Its present or last life, from 1.
    pub incarnation: u64,
    /// Restarts after failures in the window that ends now.
    pub restarts_in_window: u32,
    /// Restarts after failures since it was added.
    pub restarts: u64,
    /// Crashes without progress, over all lives of the process; counted only for jobs.
    pub crashes: u32,
    /// Its last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// Messages that wait, with the one in hand.
    pub queue: u64,
    /// Age of the oldest of them, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
    /// Messages handled so far.
    pub handled: u64,
    /// Messages refused so far because too many waited.
    pub refused: u64,
    /// Messages dropped so far because their deadline had passed.
    pub expired: u64,
    /// Below it, in the order in which they start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub children: Vec<Tree>,
}

/// What a supervisor or an actor is doing. Moments are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", tag = "name")]
pub enum TreeState {
    /// It is being started, or is next in line.
    Starting,
    /// It runs.
    Running { since: u64 },
    /// It failed and is started again then.
    Restarting { at: u64 },
    /// A dependency is down; it is tried again then.
    Waiting { at: u64 },
    /// It was told to stop.
    Stopping { since: u64 },
    /// It waits for a person.
    Parked { reason: String, since: u64 },
    /// It is stopped.
    Stopped,
}

/// Turns ticks into wall time, both read at the same moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub now: Tick,
    pub wall: WallMillis,
}

impl Moment {
    fn wall_of(self, tick: Tick) -> u64 {
        (self.wall.0 + tick.since(self.now).0).saturating_sub(self.now.since(tick).0)
    }

    fn state(self, state: &ChildState) -> TreeState {
        match state {
            ChildState::Starting => TreeState::Starting,
            ChildState::Running { since } => TreeState::Running { since: self.wall_of(*since) },
            ChildState::Restarting { at } => TreeState::Restarting { at: self.wall_of(*at) },
            ChildState::Waiting { at } => TreeState::Waiting { at: self.wall_of(*at) },
            ChildState::Stopping { since } => TreeState::Stopping { since: self.wall_of(*since) },
            ChildState::Parked { reason, since } => {
                TreeState::Parked { reason: reason.to_string(), since: self.wall_of(*since) }
            }
            ChildState::Stopped => TreeState::Stopped,
        }
    }

    /// A node of the tree.
    pub(super) fn node(self, view: ChildView, load: Load, children: Vec<Tree>) -> Tree {
        Tree {
            state: self.state(&view.state),
            id: view.id.to_string(),
            incarnation: view.incarnation.0,
            restarts_in_window: view.restarts_in_window,
            restarts: view.restarts_total,
            crashes: view.crashes,
            last_failure: view.last_failure,
            queue: load.queued as u64,
            oldest_ms: load.oldest.map(|age| age.0),
            handled: load.counts.handled,
            refused: load.counts.refused,
            expired: load.counts.expired,
            children,
        }
    }
}
