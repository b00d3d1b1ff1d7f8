//! The target's side of a migration. Owns: what the target does next, and what it answers.
//!
//! ```text
//! reserved > preparing > receiving > sealing > ready > starting > verifying > running
//!     |          |           |          |        |         |
//!     +----------+-----------+----------+--------+--> discarding > discarded      (abort, expiry before ready)
//!                any of them, its memory gone   ---> lost > preparing (next attempt) | starting (cold) | discarding
//! ```
//! Always (law 6.3): it starts only what was transferred to it, by the recorded decision; once it is ready it waits for
//! that decision and never gives up by itself. A request is answered from the state, so asking again is harmless.
//! Not here: the source's side (`source/`), performing (`actors/`).

use serde::{Deserialize, Serialize};

use super::steps::Step;
use super::{Offer, TargetAnswer, TargetRequest, Verdict};
use crate::decision::ownership::{Decision, DecisionAnswer};
use crate::planted::{self, Bug};
use crate::types::{Attempt, JobId, JobState, Millis, Place, VmId, limits};

/// Phase of the target's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Room is promised.
    Reserved,
    /// The host is being made ready.
    Preparing,
    /// Blocks may arrive.
    Receiving,
    /// The host verifies and syncs.
    Sealing,
    /// It has everything, and waits for the decision.
    Ready {
        /// Digest over what is stored.
        digest: u64,
        /// The tick at which the guest was paused.
        tick: u64,
    },
    /// It owns the VM; the host is told to run it.
    Starting {
        /// The tick at which the guest was paused.
        tick: u64,
        /// From its disk.
        cold: bool,
    },
    /// The host said that it runs; a tick under the new fence is awaited.
    Verifying {
        /// The tick at which the guest was paused.
        tick: u64,
    },
    /// An end: it ran here, and is its owner's to look after.
    Running {
        /// A tick under its new fence, or the one at which it was paused if its host died before one was seen.
        tick: u64,
    },
    /// What was received, or the memory of what started, is gone.
    Lost {
        /// Why.
        why: String,
        /// It owns the VM: the decision was recorded before.
        owned: bool,
        /// It had said that it is ready: a transfer may be recorded, so it may not give up by itself.
        sealed: bool,
        /// Where the guest was paused, once it was sealed.
        tick: u64,
    },
    /// The host is told to throw it away.
    Discarding {
        /// The target gave up by itself, before it was ready.
        expired: bool,
    },
    /// An end: nothing is here.
    Discarded,
}

impl Phase {
    /// The step that it belongs to.
    pub fn step(&self) -> Step {
        match self {
            Phase::Reserved => Step::Reserve,
            Phase::Preparing => Step::Prepare,
            Phase::Receiving => Step::Copy,
            Phase::Sealing | Phase::Ready { .. } => Step::Seal,
            Phase::Starting { .. } => Step::Switch,
            Phase::Verifying { .. } => Step::Verify,
            Phase::Running { .. } | Phase::Discarded => Step::End,
            Phase::Lost { .. } => Step::Park,
            Phase::Discarding { .. } => Step::Discard,
        }
    }
}

/// The target's side of one job: the fold of its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The job.
    pub job: JobId,
    /// The VM.
    pub vm: VmId,
    /// Where it comes from.
    pub from: Place,
    /// Where it goes: one of this region's clusters.
    pub to: Place,
    /// What is offered.
    pub offer: Offer,
    /// The highest attempt that the source asked for.
    pub attempt: Attempt,
    /// Where it is.
    pub phase: Phase,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Event {
    /// The source asks.
    Asked(TargetRequest),
    /// The source's region answers how the attempt was decided.
    Told(DecisionAnswer),
    /// The host is ready to receive.
    HostPrepared,
    /// Everything is there, verified, its disk synced.
    HostSealed {
        /// Digest over what is stored.
        digest: u64,
        /// The tick at which the guest was paused.
        tick: u64,
    },
    /// Something is still on its way.
    HostIncomplete,
    /// It runs, or will at once.
    HostStarted,
    /// It was seen running with this tick.
    HostRuns {
        /// The tick.
        tick: u64,
    },
    /// It is thrown away.
    HostDiscarded,
    /// The host says no.
    HostRefused {
        /// Why.
        why: String,
    },
    /// The host lost what it had: it died.
    HostLost {
        /// Why.
        why: String,
    },
    /// Nobody asked for anything for so long.
    TimedOut,
}

/// An event and the attempt that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Input {
    /// The attempt.
    pub attempt: Attempt,
    /// The step that asked for it; `None` for requests of the source and timers.
    pub step: Option<Step>,
    /// What happened.
    pub event: Event,
}

/// What a state wants done. Each may be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Make the host ready for this attempt.
    PrepareReceive,
    /// Verify, sync, stay paused.
    SealReceive,
    /// Run what was received.
    Activate,
    /// Boot it from its disk.
    StartCold,
    /// Watch it until it ticks under its new fence.
    SeeItRun,
    /// Its memory is lost, and a person has the word: watch until it was started, stopped, deleted or moved on.
    SeeItLookedAfter,
    /// Throw away what was received.
    DiscardReceive,
    /// Ask the source's region for the decision, again and again until it is told.
    AskDecision,
    /// Say `TimedOut` after so long without a request.
    Patience(Millis),
}

/// What the transaction that journals an advance must write with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    /// The VM is this region's: record ownership and the VM, turn the reservation into use, tell all peers.
    VmArrived,
    /// Give the reserved room back.
    FreeRoom,
    /// The job is over on this side.
    JobEnded,
}

const NOT_NOW: &str = "nothing of this kind is under way in this phase";

impl Target {
    /// The target's side as the first request makes it; its transaction also writes the reservation.
    pub fn reserved(job: JobId, vm: VmId, from: Place, to: Place, offer: Offer, attempt: Attempt) -> Target {
        Target { job, vm, from, to, offer, attempt, phase: Phase::Reserved }
    }

    fn to_phase(&self, phase: Phase) -> Target {
        Target { phase, ..self.clone() }
    }

    fn advance(&self, phase: Phase) -> Verdict<Target> {
        Verdict::Advance(self.to_phase(phase))
    }

    /// Whether this region owns the VM by this job.
    pub fn owns(&self) -> bool {
        match self.phase {
            Phase::Starting { .. } | Phase::Verifying { .. } | Phase::Running { .. } => true,
            Phase::Lost { owned, .. } => owned,
            Phase::Reserved
            | Phase::Preparing
            | Phase::Receiving
            | Phase::Sealing
            | Phase::Ready { .. }
            | Phase::Discarding { .. }
            | Phase::Discarded => false,
        }
    }

    /// The `/v2` state.
    pub fn state(&self) -> JobState {
        match self.phase {
            Phase::Running { .. } => JobState::Completed,
            Phase::Discarded => JobState::RolledBack,
            Phase::Receiving => JobState::Transferring,
            _ => self.phase.step().row().state,
        }
    }
}

/// The next state for an input, or why there is none.
pub fn step(t: &Target, input: &Input) -> Verdict<Target> {
    if let Event::Asked(TargetRequest::Prepare) = input.event
        && input.attempt > t.attempt
    {
        return next_attempt(t, input.attempt);
    }
    // The source's last attempt may never have reached this side; its discard is of all attempts.
    let discards = input.event == Event::Asked(TargetRequest::Discard) && input.attempt > t.attempt;
    if input.attempt != t.attempt && !discards {
        return Verdict::Ignore("it belongs to another attempt");
    }
    if input.step.is_some_and(|asked| asked != t.phase.step()) {
        return Verdict::Ignore("it belongs to another step");
    }
    match &input.event {
        Event::Asked(request) => asked(t, request),
        Event::Told(answer) => told(t, *answer),
        Event::HostPrepared
        | Event::HostSealed { .. }
        | Event::HostIncomplete
        | Event::HostStarted
        | Event::HostRuns { .. }
        | Event::HostDiscarded
        | Event::HostRefused { .. }
        | Event::HostLost { .. } => from_host(t, &input.event),
        Event::TimedOut => match t.phase {
            // Without its word "ready" the source can't transfer, so giving up is safe; after it, never.
            Phase::Reserved | Phase::Preparing | Phase::Receiving | Phase::Lost { owned: false, sealed: false, .. } => {
                t.advance(Phase::Discarding { expired: true })
            }
            Phase::Ready { .. } if planted::is(Bug::CleanUpByInference) => {
                t.advance(Phase::Discarding { expired: true })
            }
            Phase::Sealing
            | Phase::Ready { .. }
            | Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Running { .. }
            | Phase::Lost { .. }
            | Phase::Discarding { .. }
            | Phase::Discarded => Verdict::Ignore("it may not give up by itself in this phase"),
        },
    }
}

/// The source begins a new attempt: it may do so only after the earlier one was recorded as aborted.
fn next_attempt(t: &Target, attempt: Attempt) -> Verdict<Target> {
    match t.phase {
        Phase::Reserved
        | Phase::Preparing
        | Phase::Receiving
        | Phase::Sealing
        | Phase::Ready { .. }
        | Phase::Lost { owned: false, .. } => Verdict::Advance(Target { attempt, ..t.to_phase(Phase::Preparing) }),
        Phase::Starting { .. } | Phase::Verifying { .. } | Phase::Running { .. } | Phase::Lost { owned: true, .. } => {
            Verdict::Refuse("the VM was transferred by an earlier attempt")
        }
        Phase::Discarding { .. } | Phase::Discarded => Verdict::Refuse("the room was given back"),
    }
}

fn asked(t: &Target, request: &TargetRequest) -> Verdict<Target> {
    match request {
        TargetRequest::Reserve => Verdict::Ignore("the room is promised already"),
        TargetRequest::Prepare => match t.phase {
            // The source asks again when its channel is cut: a host that died since has lost what it had received, and
            // preparing once more is how that is noticed and mended.
            Phase::Reserved | Phase::Receiving => t.advance(Phase::Preparing),
            _ => Verdict::Ignore("it is being prepared, or is past it"),
        },
        TargetRequest::Seal => match t.phase {
            Phase::Receiving => t.advance(Phase::Sealing),
            _ => Verdict::Ignore("it is being sealed, or was"),
        },
        TargetRequest::Start { cold } => match &t.phase {
            Phase::Ready { tick, .. } => t.advance(Phase::Starting { tick: *tick, cold: false }),
            Phase::Lost { owned: true, tick, .. } if *cold => t.advance(Phase::Starting { tick: *tick, cold: true }),
            // The decision came after the loss: the VM is this region's all the same.
            Phase::Lost { owned: false, sealed: true, tick, why } => {
                t.advance(Phase::Lost { owned: true, sealed: true, tick: *tick, why: why.clone() })
            }
            _ => Verdict::Ignore("it was started already, or can't be"),
        },
        TargetRequest::Verify => Verdict::Ignore("answered from the state"),
        TargetRequest::Discard => discard(t),
    }
}

fn discard(t: &Target) -> Verdict<Target> {
    match t.phase {
        Phase::Reserved
        | Phase::Preparing
        | Phase::Receiving
        | Phase::Sealing
        | Phase::Ready { .. }
        | Phase::Lost { owned: false, .. } => t.advance(Phase::Discarding { expired: false }),
        Phase::Starting { .. } | Phase::Verifying { .. } | Phase::Running { .. } | Phase::Lost { owned: true, .. } => {
            Verdict::Refuse("the VM was transferred here: it is not thrown away")
        }
        Phase::Discarding { .. } | Phase::Discarded => Verdict::Ignore("it is gone already"),
    }
}

fn told(t: &Target, answer: DecisionAnswer) -> Verdict<Target> {
    match answer {
        DecisionAnswer::Undecided if planted::is(Bug::StartBeforeCommit) => {
            asked(t, &TargetRequest::Start { cold: false })
        }
        DecisionAnswer::Undecided => Verdict::Ignore("not decided yet: ask again"),
        DecisionAnswer::Decided(Decision::Transfer) => asked(t, &TargetRequest::Start { cold: false }),
        // The next attempt of the job may come and adopt what is here: only the source says that there is none.
        DecisionAnswer::Decided(Decision::Abort) => Verdict::Ignore("aborted: a next attempt or a discard follows"),
        DecisionAnswer::Superseded => Verdict::Ignore("a later attempt was decided: a discard follows"),
    }
}

fn from_host(t: &Target, event: &Event) -> Verdict<Target> {
    use Event as E;
    use Verdict::Ignore;
    let unsealed = |why: &str| t.advance(Phase::Lost { why: why.to_owned(), owned: false, sealed: false, tick: 0 });
    let lost = |why: &str, owned, tick| t.advance(Phase::Lost { why: why.to_owned(), owned, sealed: true, tick });
    match &t.phase {
        Phase::Reserved | Phase::Running { .. } | Phase::Discarded => Ignore(NOT_NOW),
        Phase::Preparing => match event {
            E::HostPrepared => t.advance(Phase::Receiving),
            E::HostRefused { why } | E::HostLost { why } => unsealed(why),
            _ => Ignore(NOT_NOW),
        },
        Phase::Receiving => match event {
            E::HostLost { why } => unsealed(why),
            _ => Ignore(NOT_NOW),
        },
        Phase::Sealing => match event {
            E::HostSealed { digest, tick } => t.advance(Phase::Ready { digest: *digest, tick: *tick }),
            E::HostIncomplete => t.advance(Phase::Receiving),
            E::HostRefused { why } | E::HostLost { why } => unsealed(why),
            _ => Ignore(NOT_NOW),
        },
        Phase::Ready { tick, .. } => match event {
            E::HostLost { why } => lost(why, false, *tick),
            _ => Ignore(NOT_NOW),
        },
        Phase::Starting { tick, .. } => match event {
            E::HostStarted => t.advance(Phase::Verifying { tick: *tick }),
            // Asking again would be refused again: a person must know.
            E::HostLost { why } | E::HostRefused { why } => lost(why, true, *tick),
            _ => Ignore(NOT_NOW),
        },
        Phase::Verifying { tick: paused_at } => match event {
            E::HostRuns { tick } if tick > paused_at => t.advance(Phase::Running { tick: *tick }),
            // It ran here: the move is over, on both sides, and what happened since is a matter of this region alone.
            E::HostLost { .. } => t.advance(Phase::Running { tick: *paused_at }),
            _ => Ignore(NOT_NOW),
        },
        Phase::Lost { owned: true, .. } => match event {
            // Its owner looked after it without this job.
            E::HostRuns { tick } => t.advance(Phase::Running { tick: *tick }),
            _ => Ignore("it is lost already"),
        },
        Phase::Lost { owned: false, .. } => Ignore("it is lost already"),
        Phase::Discarding { .. } => match event {
            E::HostDiscarded => t.advance(Phase::Discarded),
            // A host that lost everything, or has a later attempt or the VM itself there, has nothing to throw away.
            E::HostLost { .. } | E::HostRefused { .. } => t.advance(Phase::Discarded),
            _ => Ignore(NOT_NOW),
        },
    }
}

/// What the target answers to `request` of `attempt` in this state; `None` while it is under way.
pub fn answer(t: &Target, attempt: Attempt, request: &TargetRequest) -> Option<TargetAnswer> {
    use TargetAnswer as A;
    if attempt < t.attempt {
        return Some(A::Superseded { by: t.attempt });
    }
    if attempt > t.attempt && *request != TargetRequest::Discard {
        // A new attempt begins with `Prepare`; that it did not begin here is a refusal of the core.
        return Some(A::Refused { why: format!("attempt {attempt} was not prepared here, {} is", t.attempt) });
    }
    let given_back = || A::Refused { why: "the room was given back".into() };
    let discarding = matches!(t.phase, Phase::Discarding { .. } | Phase::Discarded);
    match request {
        TargetRequest::Reserve if discarding => Some(given_back()),
        TargetRequest::Reserve => Some(A::Reserved),
        TargetRequest::Prepare => match &t.phase {
            Phase::Reserved | Phase::Preparing => None,
            Phase::Lost { why, .. } => Some(A::Lost { why: why.clone() }),
            Phase::Discarding { .. } | Phase::Discarded => Some(given_back()),
            Phase::Receiving
            | Phase::Sealing
            | Phase::Ready { .. }
            | Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Running { .. } => Some(A::Prepared),
        },
        TargetRequest::Seal => match &t.phase {
            Phase::Reserved | Phase::Preparing | Phase::Receiving => Some(A::NotComplete),
            Phase::Sealing => None,
            Phase::Ready { digest, tick } => Some(A::Sealed { digest: *digest, tick: *tick }),
            Phase::Lost { why, .. } => Some(A::Lost { why: why.clone() }),
            Phase::Discarding { .. } | Phase::Discarded => {
                Some(A::Lost { why: "what was received was thrown away".into() })
            }
            Phase::Starting { tick, .. } | Phase::Verifying { tick } | Phase::Running { tick } => {
                Some(A::Sealed { digest: 0, tick: *tick })
            }
        },
        TargetRequest::Start { .. } => match &t.phase {
            Phase::Reserved | Phase::Preparing | Phase::Receiving | Phase::Sealing => {
                Some(A::Refused { why: "it was never sealed".into() })
            }
            Phase::Ready { .. } | Phase::Starting { .. } => None,
            Phase::Verifying { .. } | Phase::Running { .. } => Some(A::Started),
            Phase::Lost { why, .. } => Some(A::Lost { why: why.clone() }),
            Phase::Discarding { .. } | Phase::Discarded => {
                Some(A::Lost { why: "what was received was thrown away".into() })
            }
        },
        TargetRequest::Verify => match &t.phase {
            Phase::Running { tick } => Some(A::Verified { tick: *tick }),
            Phase::Lost { why, .. } => Some(A::Lost { why: why.clone() }),
            Phase::Starting { .. } | Phase::Verifying { .. } => None,
            Phase::Reserved | Phase::Preparing | Phase::Receiving | Phase::Sealing | Phase::Ready { .. } => {
                Some(A::Refused { why: "it was not started".into() })
            }
            Phase::Discarding { .. } | Phase::Discarded => {
                Some(A::Lost { why: "what was received was thrown away".into() })
            }
        },
        TargetRequest::Discard => match &t.phase {
            Phase::Discarded => Some(A::Discarded),
            Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Running { .. }
            | Phase::Lost { owned: true, .. } => Some(A::Refused { why: "the VM was transferred here".into() }),
            Phase::Reserved
            | Phase::Preparing
            | Phase::Receiving
            | Phase::Sealing
            | Phase::Ready { .. }
            | Phase::Lost { owned: false, .. }
            | Phase::Discarding { .. } => None,
        },
    }
}

/// What a state wants done: at entry, and again after a crash.
pub fn commands(t: &Target) -> Vec<Command> {
    let patience = Command::Patience(limits::RESERVATION_MS);
    match &t.phase {
        Phase::Reserved => vec![patience],
        Phase::Preparing => vec![Command::PrepareReceive, patience],
        Phase::Receiving => vec![patience],
        Phase::Sealing => vec![Command::SealReceive],
        Phase::Ready { .. } if planted::is(Bug::CleanUpByInference) => {
            vec![Command::AskDecision, Command::Patience(Millis(400))]
        }
        Phase::Ready { .. } => vec![Command::AskDecision],
        Phase::Starting { cold: false, .. } => vec![Command::Activate],
        Phase::Starting { cold: true, .. } => vec![Command::StartCold],
        Phase::Verifying { .. } => vec![Command::SeeItRun],
        Phase::Lost { owned: false, sealed: false, .. } => vec![patience],
        Phase::Lost { owned: false, sealed: true, .. } => vec![Command::AskDecision],
        Phase::Lost { owned: true, .. } => vec![Command::SeeItLookedAfter],
        Phase::Running { .. } | Phase::Discarded => vec![],
        Phase::Discarding { .. } => vec![Command::DiscardReceive],
    }
}

/// What must be written in the transaction that takes `before` to `after`.
pub fn writes(before: &Target, after: &Target) -> Vec<Write> {
    let mut list = Vec::new();
    if after.owns() && !before.owns() {
        list.push(Write::VmArrived);
    }
    if after.phase == Phase::Discarded && before.phase != after.phase {
        list.push(Write::FreeRoom);
    }
    if matches!(after.phase, Phase::Running { .. } | Phase::Discarded) && before.phase != after.phase {
        list.push(Write::JobEnded);
    }
    list
}

/// The fold of a journal.
///
/// # Errors
/// The position of the first input that the core does not take, and why.
pub fn fold(first: Target, journal: &[Input]) -> Result<Target, (usize, &'static str)> {
    let mut state = first;
    for (position, input) in journal.iter().enumerate() {
        state = match step(&state, input) {
            Verdict::Advance(next) => next,
            Verdict::Ignore(why) | Verdict::Refuse(why) => return Err((position, why)),
        };
    }
    Ok(state)
}
