//! Bodies of the messages between regions, version 1. Owns: what is said. Always: enums are append-only and structs are
//! never changed, because postcard writes the position of a variant and of a field.
//! Not here: heads, kinds and limits (`envelope.rs`, `messages.rs`), who answers (`actors/inbound.rs`).

use serde::{Deserialize, Serialize};

use crate::decision::migration::{Offer, TargetAnswer, TargetRequest};
use crate::decision::ownership::{DecisionAnswer, Moved};
use crate::types::{Attempt, Channel, ClusterView, JobId, Place, SwitchKey, VmId};

/// Between the two sides of a migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MigrationMessage {
    /// The source asks its target. `offer` comes with `Reserve` only.
    Ask {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: Attempt,
        /// The VM.
        vm: VmId,
        /// Where it is.
        from: Place,
        /// Where it goes.
        to: Place,
        /// What is asked.
        request: TargetRequest,
        /// What is offered.
        offer: Option<Box<Offer>>,
    },
    /// The target asks how an attempt was decided.
    AskDecision {
        /// The VM.
        vm: VmId,
        /// The attempt.
        attempt: Attempt,
    },
}

/// Answers to [`MigrationMessage`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MigrationReply {
    /// The target's.
    Target(TargetAnswer),
    /// It is under way: ask again.
    Pending,
    /// The decider's.
    Decision(DecisionAnswer),
}

/// Opens a bulk stream: one channel of one transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BulkHello {
    /// What both ends are fenced by.
    pub key: SwitchKey,
    /// Which channel.
    pub channel: Channel,
}

/// What a region says of itself, again and again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirectoryMessage {
    /// Counts what it said in this incarnation; an older one is ignored.
    pub generation: u64,
    /// The command of the sender (incarnation, number) up to which it has every answer.
    pub acknowledged: Option<(u64, u64)>,
    /// Its clusters.
    pub clusters: Vec<ClusterView>,
}

/// An API request that another region must answer, as its API writes it down (`admin/region.rs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiMessage {
    /// The request.
    pub request: Vec<u8>,
}

/// The answer to an [`ApiMessage`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiReply {
    /// The reply.
    pub reply: Vec<u8>,
}

/// A durable command, from the sender's outbox; repeated until it is acknowledged, done once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AnnounceMessage {
    /// A VM belongs to the sender now.
    VmArrived {
        /// The VM.
        vm: VmId,
        /// Where it is, and with which fence.
        moved: Moved,
    },
    /// The source has no further attempt: throw away what was received.
    Discard {
        /// The job.
        job: JobId,
        /// The VM.
        vm: VmId,
        /// The last attempt.
        attempt: Attempt,
    },
}
