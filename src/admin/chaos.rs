//! What the API shows and takes of injected faults. Always: what is over says why; who asked is who the kernel says.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::region::Caller;
use crate::types::{FaultId, FaultSpec, Millis, WallMillis};

/// A fault to inject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InjectFault {
    /// What.
    #[serde(flatten)]
    pub spec: FaultSpec,
    /// For how long, at most `[chaos] max`. A crash and a kill at once need none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<Millis>,
    /// Why, for the status and the audit.
    pub reason: String,
}

/// Whether a fault is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultState {
    /// A dry run: it would be injected.
    Planned,
    /// It is done now.
    Active,
    /// It is over.
    Ended,
}

/// An injected fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChaosFault {
    /// Its id; its number is that of the request that asked for it.
    pub id: FaultId,
    /// What.
    #[serde(flatten)]
    pub spec: FaultSpec,
    /// The same in words.
    pub effect: String,
    /// What it is done to: a link, a cluster, the store, an actor, the node.
    pub subject: String,
    /// Whether it is active.
    pub state: FaultState,
    /// For how long it was asked.
    pub duration_ms: Option<Millis>,
    /// What is left of that.
    pub left_ms: Millis,
    /// When it began; absent if that was in an earlier life of the node.
    pub began_at: Option<WallMillis>,
    /// When it ended, if it did in this life of the node.
    pub ended_at: Option<WallMillis>,
    /// Why it is over.
    pub ended_because: Option<String>,
    /// Who asked for it.
    pub caller: Caller,
    /// Why.
    pub reason: String,
}

/// The injected faults of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChaosFaults {
    /// Whether the configuration lets any be injected.
    pub allowed: bool,
    /// How long one may last.
    pub max_ms: Option<Millis>,
    /// Those that are active, in the order in which they were asked for.
    pub active: Vec<ChaosFault>,
    /// Those that are over, the latest first; none of an earlier life of the node.
    pub ended: Vec<ChaosFault>,
}
