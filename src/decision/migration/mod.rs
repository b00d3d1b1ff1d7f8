//! Migration: the two sides of the saga, its step table, and what comes before it (assess, estimate).
//!
//! ```text
//!  source (owner, coordinator)                                      target
//!  queued > reserving > preparing > copying > pausing > sealing     reserved > preparing > receiving > sealing
//!    > holding > deciding > switching > verifying > completed         > ready > starting > verifying > running
//!  before the decision, back:  resuming > deciding(abort)           discarding > discarded
//!    > [reviving, if held] > next attempt | rolledBack | cancelled
//! ```
//! Owns: which event leads where, and what each state wants done. Always: a state *is* the intent of its step, so the
//! commands of a state may be issued again after a crash; each is keyed by (job, attempt, step) and may be repeated.
//! Not here: performing (`actors/`), the host's own rules (`drivers/embedded/rules/`).

pub mod assess;
pub mod defaults;
pub mod estimate;
pub mod outcomes;
pub mod source;
pub mod steps;
pub mod target;

use serde::{Deserialize, Serialize};

use crate::types::{Attempt, Fence, VmSpec};

/// What a core says to an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<S> {
    /// It advances: journal the input, then perform the commands of the new state.
    Advance(S),
    /// It changes nothing, and why.
    Ignore(&'static str),
    /// Somebody asked for what can't be: tell them why. Changes nothing.
    Refuse(&'static str),
}

/// What the source asks of the target. Each may be repeated; each is answered from the target's state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetRequest {
    /// Promise the room.
    Reserve,
    /// Make the host ready to receive this attempt.
    Prepare,
    /// Verify that everything is there, make it durable, say so.
    Seal,
    /// The decision is `Transfer`: own it and run it; `cold`: a person allowed to boot from its disk, the memory lost.
    Start {
        /// Boot from the disk if the memory is lost.
        cold: bool,
    },
    /// Say whether it runs.
    Verify,
    /// The decision is `Abort` and there is no next attempt: throw it away, give the room back.
    Discard,
}

/// What the target answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetAnswer {
    /// To `Reserve`.
    Reserved,
    /// To `Prepare`.
    Prepared,
    /// To `Seal`: everything is there; the digest is of the target's own making.
    Sealed {
        /// Digest over what is stored.
        digest: u64,
        /// The tick at which the guest was paused.
        tick: u64,
    },
    /// To `Seal`: something is still on its way.
    NotComplete,
    /// To `Start`.
    Started,
    /// To `Verify`.
    Verified {
        /// A tick of the guest under its new fence.
        tick: u64,
    },
    /// To `Discard`.
    Discarded,
    /// It understood, and says no.
    Refused {
        /// Why.
        why: String,
    },
    /// It lost what it had received.
    Lost {
        /// Why.
        why: String,
    },
    /// The request belongs to an earlier attempt than the one it knows.
    Superseded {
        /// The attempt that it knows.
        by: Attempt,
    },
}

/// What a target needs to know of the VM it is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its spec.
    pub spec: VmSpec,
    /// The fence it will run with at the target.
    pub next_fence: Fence,
}
