//! The source's side of a migration: owner and coordinator. Owns: what the source does next, and when it gives up.
//!
//! ```text
//! queued > reserving > preparing > copying > pausing > sealing > holding > deciding > switching > verifying > completed
//!              |          |           |         |         |         |          |abort      |            |
//!              +----------+-----------+----+----+---------+         |          v           +-- parked --+ (memory lost
//!                                          v                        |      reviving               after the decision)
//!                                      resuming > deciding(abort) <-+          |
//!                                                       +----------------------+--> preparing (next attempt)
//!                                                                                   | rolledBack | cancelled
//! ```
//! Always (laws 6.3 and 7.2): nothing is held before the target says that it has everything; `Transfer` is proposed
//! only after the hold; an attempt given up before its hold is recorded as `Abort` too; after `Transfer` only forward.
//! Not here: the target's side (`target.rs`), the record of decisions (`ownership.rs`), performing (`actors/`).

mod step;

pub use step::step;

use serde::{Deserialize, Serialize};

use super::steps::Step;
use super::{TargetRequest, Verdict};
use crate::decision::ownership::Decision;
use crate::types::{Attempt, Fence, JobId, JobState, Millis, Place, VmId, limits};

/// What a move may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SwitchRules {
    /// Blackout that is acceptable.
    pub downtime_max: Millis,
    /// From the pause to the watchdog.
    pub deadline: Millis,
    /// Rounds of pre-copy before the job stops trying to converge.
    pub rounds_max: u32,
    /// Attempts of this job.
    pub attempts_max: u32,
    /// How long a side may be silent before the decision.
    pub patience: Millis,
}

impl Default for SwitchRules {
    fn default() -> Self {
        SwitchRules {
            downtime_max: limits::DOWNTIME_MS_MAX,
            deadline: limits::SWITCH_DEADLINE_MS,
            rounds_max: limits::ROUNDS_MAX,
            attempts_max: limits::ATTEMPTS_PER_JOB_MAX,
            patience: limits::RESERVATION_MS,
        }
    }
}

/// Where the job wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Goal {
    /// To the target; a failed attempt is followed by the next.
    Forward,
    /// Back, because somebody said so.
    Cancel,
    /// Back, because it can't be done.
    RollBack,
}

/// The ends (law 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum End {
    /// The VM belongs to the target.
    Completed,
    /// It could not be moved and belongs to the source.
    RolledBack,
    /// Somebody cancelled the job; the VM belongs to the source.
    Cancelled,
}

/// Why a job needs a person: the short list of law 7.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ParkReason {
    /// The target lost the VM's memory after the decision; its disk is there.
    TargetMemoryLost,
    /// The source's host does not answer, and only it knows whether it holds the guest. Ends by itself when it answers.
    SourceHostSilent,
    /// The job killed its actor again and again without progress.
    Quarantined,
}

/// Phase of the source's side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// In line.
    Queued,
    /// The target is asked for room.
    Reserving,
    /// The target's host is made ready.
    Preparing,
    /// Rounds of pre-copy.
    Copying,
    /// The guest is being paused.
    Pausing,
    /// Last round; the target is asked to seal.
    Sealing,
    /// The host is asked to hold.
    Holding,
    /// A decision is proposed.
    Deciding {
        /// Which.
        proposal: Decision,
        /// Whether the host holds the guest.
        held: bool,
    },
    /// `Transfer` is recorded: the target starts, the source's copy is destroyed.
    Switching {
        /// The target said that it started.
        started: bool,
        /// The source's copy is destroyed.
        retired: bool,
        /// A person allowed to boot from the disk.
        cold: bool,
    },
    /// The target is asked whether it runs.
    Verifying {
        /// The source's copy is destroyed.
        retired: bool,
    },
    /// Back: the pause is cancelled, the attempt spent.
    Resuming,
    /// Back after a recorded abort: the hold is released.
    Reviving,
    /// Needs a person.
    Parked {
        /// Why.
        why: ParkReason,
        /// Where it goes on.
        at: Box<Phase>,
    },
    /// Over.
    Ended(End),
}

impl Phase {
    /// The step that it belongs to.
    pub fn step(&self) -> Step {
        match self {
            Phase::Queued => Step::Queue,
            Phase::Reserving => Step::Reserve,
            Phase::Preparing => Step::Prepare,
            Phase::Copying => Step::Copy,
            Phase::Pausing => Step::Pause,
            Phase::Sealing => Step::Seal,
            Phase::Holding => Step::Hold,
            Phase::Deciding { .. } => Step::Decide,
            Phase::Switching { .. } => Step::Switch,
            Phase::Verifying { .. } => Step::Verify,
            Phase::Resuming => Step::Resume,
            Phase::Reviving => Step::Revive,
            Phase::Parked { .. } => Step::Park,
            Phase::Ended(_) => Step::End,
        }
    }
}

/// The source's side of one job: the fold of its journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The job.
    pub job: JobId,
    /// The VM.
    pub vm: VmId,
    /// Where it is.
    pub from: Place,
    /// Where it goes.
    pub to: Place,
    /// Its fence.
    pub fence: Fence,
    /// Its fence after the move.
    pub next_fence: Fence,
    /// The first attempt of this job.
    pub first_attempt: Attempt,
    /// The attempt under way.
    pub attempt: Attempt,
    /// What the move may take.
    pub rules: SwitchRules,
    /// Where the job wants to go.
    pub goal: Goal,
    /// Where it is.
    pub phase: Phase,
    /// The outcome of the phase's effect at the host is unknown: look before anything else.
    pub settling: bool,
    /// The target was asked for room, so it may have something to give back.
    pub target_involved: bool,
    /// Estimated blackout when the guest was paused, microseconds.
    pub estimated_downtime_us: u64,
    /// Rounds of pre-copy at the pause.
    pub rounds: u32,
    /// Why it is going back, is parked or ended.
    pub note: Option<String>,
}

/// What is left of a round, as the host counted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Round {
    /// Rounds finished.
    pub rounds: u32,
    /// Bytes that would have to be sent with the guest paused.
    pub remaining_bytes: u64,
    /// Measured rate of the transfer.
    pub bytes_per_second: u64,
    /// Measured rate of the guest's writes.
    pub dirty_bytes_per_second: u64,
    /// What a switch costs besides the bytes: round trips and commits, microseconds, measured.
    pub overhead_us: u64,
    /// The decider answered just now (law 6.3 a).
    pub decider_reachable: bool,
}

impl Round {
    /// Estimated blackout if the guest was paused now, microseconds.
    pub fn downtime_us(&self) -> u64 {
        let rate = self.bytes_per_second.max(1);
        self.remaining_bytes.saturating_mul(1_000_000).div_ceil(rate).saturating_add(self.overhead_us)
    }
}

/// What a look at the source's host showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostView {
    /// The guest's memory is there (running or paused).
    pub alive: bool,
    /// It is paused for this attempt under an armed watchdog.
    pub paused: bool,
    /// This attempt holds it.
    pub held: bool,
    /// This attempt, or a later one, can't pause or hold any more.
    pub spent: bool,
    /// The VM is retired here or not known at all.
    pub gone: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Event {
    /// There is room among the running jobs.
    Go,
    /// The target promised room.
    Reserved,
    /// The target's host is ready.
    Prepared,
    /// A round ended.
    Round(Round),
    /// The guest is paused, the watchdog armed.
    Paused,
    /// The target has everything.
    Sealed,
    /// The hold is durable.
    Held,
    /// This decision is recorded.
    Decided(Decision),
    /// The source's copy is destroyed.
    Retired,
    /// The target started it.
    Started,
    /// The target saw it run.
    Verified,
    /// The guest was resumed or is lost, and the attempt is spent.
    Resumed,
    /// The hold is released.
    Revived,
    /// The target says no.
    TargetRefused {
        /// Why.
        why: String,
    },
    /// The target lost what it had received, or the VM.
    TargetLost {
        /// Why.
        why: String,
    },
    /// The source's host says no: the attempt is spent.
    SourceRefused {
        /// Why.
        why: String,
    },
    /// The source's host lost the guest's memory.
    SourceLost {
        /// Why.
        why: String,
    },
    /// The patience of this phase is over.
    TimedOut,
    /// Whether the host did it is not known.
    Unknown,
    /// A look at the host.
    Observed(HostView),
    /// Somebody wants it cancelled.
    Cancel,
    /// Somebody wants a parked job to go on.
    Retry,
    /// Somebody wants a parked job to look first.
    Probe,
    /// Somebody wants a parked job undone.
    Undo,
    /// Somebody gives a parked job up.
    Abandon,
    /// The job's actor crashed too often.
    Quarantined,
}

/// An event and what it belongs to: an outcome of an earlier attempt or step is nobody's any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Input {
    /// The attempt that asked for it.
    pub attempt: Attempt,
    /// The step that asked for it; `None` for what nobody asked for (a person, a timer of the job).
    pub step: Option<Step>,
    /// What happened.
    pub event: Event,
}

/// What a state wants done. Each may be done again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Ask the target; its answer comes from its state, so that asking again is the probe.
    AskTarget(TargetRequest),
    /// Send rounds, and tell of each.
    Copy,
    /// Send the last round, then ask the target to seal.
    FinishCopy,
    /// Pause the guest at the host.
    Pause,
    /// Hold it.
    Hold,
    /// Cancel the pause.
    CancelPause,
    /// Release the hold.
    ReleaseHold,
    /// Destroy the source's copy.
    Retire,
    /// Propose a decision.
    Decide(Decision),
    /// Look at the host.
    Observe,
    /// Say `TimedOut` after so long without an advance.
    Patience(Millis),
}

/// What the transaction that journals an advance must write with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    /// The VM left: keep where it went, owe the destruction of the copy and of its disk.
    VmLeft,
    /// The VM stays: unlock it.
    VmStays,
    /// The target may have something to throw away: tell it, through the outbox.
    OweDiscard,
    /// The job is over.
    JobEnded,
}

impl Source {
    /// Whether the VM already belongs to the target.
    pub fn decided_transfer(&self) -> bool {
        let mut phase = &self.phase;
        while let Phase::Parked { at, .. } = phase {
            phase = at;
        }
        matches!(phase, Phase::Switching { .. } | Phase::Verifying { .. } | Phase::Ended(End::Completed))
    }

    /// The `/v2` state.
    pub fn state(&self) -> JobState {
        match &self.phase {
            Phase::Ended(End::Completed) => JobState::Completed,
            Phase::Ended(End::RolledBack) => JobState::RolledBack,
            Phase::Ended(End::Cancelled) => JobState::Cancelled,
            other => other.step().row().state,
        }
    }
}

/// The words with which a person may steer a job in this state; each would change something.
pub fn person_may(s: &Source) -> Vec<&'static str> {
    let words = [
        ("cancel", Event::Cancel),
        ("retry", Event::Retry),
        ("probe", Event::Probe),
        ("undo", Event::Undo),
        ("abandon", Event::Abandon),
    ];
    let taken = |event| matches!(step(s, &Input { attempt: s.attempt, step: None, event }), Verdict::Advance(_));
    words.into_iter().filter_map(|(word, event)| taken(event).then_some(word)).collect()
}

/// What a state wants done: at entry, and again after a crash.
pub fn commands(s: &Source) -> Vec<Command> {
    use Command as C;
    let patience = C::Patience(s.rules.patience);
    if s.settling {
        return vec![C::Observe, patience];
    }
    match &s.phase {
        // It needs a person only as long as the host is silent.
        Phase::Parked { why: ParkReason::SourceHostSilent, .. } => vec![C::Observe],
        Phase::Queued | Phase::Parked { .. } => vec![],
        Phase::Reserving => vec![C::AskTarget(TargetRequest::Reserve), patience],
        Phase::Preparing => vec![C::AskTarget(TargetRequest::Prepare), patience],
        Phase::Copying => vec![C::Copy, patience],
        Phase::Pausing => vec![C::Pause, C::Patience(s.rules.deadline)],
        Phase::Sealing => vec![C::FinishCopy, C::Patience(s.rules.deadline)],
        Phase::Holding => vec![C::Hold, patience],
        Phase::Deciding { proposal, .. } => vec![C::Decide(*proposal)],
        Phase::Switching { retired: false, cold, .. } => {
            vec![C::AskTarget(TargetRequest::Start { cold: *cold }), C::Retire]
        }
        Phase::Switching { retired: true, cold, .. } => vec![C::AskTarget(TargetRequest::Start { cold: *cold })],
        // Destroying the copy on a dead host is an owed clean-up and does not keep the job open.
        Phase::Verifying { retired: false } => vec![C::AskTarget(TargetRequest::Verify), C::Retire],
        Phase::Verifying { retired: true } => vec![C::AskTarget(TargetRequest::Verify)],
        Phase::Resuming => vec![C::CancelPause, patience],
        Phase::Reviving => vec![C::ReleaseHold, patience],
        Phase::Ended(_) => vec![],
    }
}

/// What must be written in the transaction that takes `before` to `after`.
pub fn writes(before: &Source, after: &Source) -> Vec<Write> {
    let mut list = Vec::new();
    if after.decided_transfer() && !before.decided_transfer() {
        list.push(Write::VmLeft);
    }
    if let Phase::Ended(end) = after.phase
        && before.phase != after.phase
    {
        if end != End::Completed {
            list.push(Write::VmStays);
            if after.target_involved {
                list.push(Write::OweDiscard);
            }
        }
        list.push(Write::JobEnded);
    }
    list
}

/// The fold of a journal. An input that does not advance is a corrupt journal: only what advances is written there.
///
/// # Errors
/// The position of the first input that the core does not take, and why.
pub fn fold(first: Source, journal: &[Input]) -> Result<Source, (usize, &'static str)> {
    let mut state = first;
    for (position, input) in journal.iter().enumerate() {
        state = match step(&state, input) {
            Verdict::Advance(next) => next,
            Verdict::Ignore(why) | Verdict::Refuse(why) => return Err((position, why)),
        };
    }
    Ok(state)
}
