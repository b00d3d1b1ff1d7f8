//! Names of the states and events of both cores, for tables and counts.
//! Always: each match names every variant, so that a new one does not compile until somebody has thought about it.

use novafed::decision::migration::TargetRequest as Request;
use novafed::decision::migration::source::{End, Event as S, HostView, ParkReason, Phase, Source};
use novafed::decision::migration::target::{Event as T, Phase as TargetPhase, Target};
use novafed::decision::ownership::{Decision, DecisionAnswer};

/// All states of the source's side that differ in what they take; `?` while it looks at its host.
pub const SOURCE_STATES: &[&str] = &[
    "queued",
    "reserving",
    "preparing",
    "copying",
    "copying?",
    "pausing",
    "pausing?",
    "sealing",
    "sealing?",
    "holding",
    "holding?",
    "deciding-transfer",
    "deciding-abort-held",
    "deciding-abort",
    "switching",
    "switching-retired",
    "verifying",
    "verifying-retired",
    "resuming",
    "resuming?",
    "reviving",
    "reviving?",
    "parked-memory",
    "parked-silent",
    "parked-quarantined",
    "completed",
    "rolled-back",
    "cancelled",
];

/// The state's name.
pub fn source_state(s: &Source) -> &'static str {
    match (&s.phase, s.settling) {
        (Phase::Queued, _) => "queued",
        (Phase::Reserving, _) => "reserving",
        (Phase::Preparing, _) => "preparing",
        (Phase::Copying, false) => "copying",
        (Phase::Copying, true) => "copying?",
        (Phase::Pausing, false) => "pausing",
        (Phase::Pausing, true) => "pausing?",
        (Phase::Sealing, false) => "sealing",
        (Phase::Sealing, true) => "sealing?",
        (Phase::Holding, false) => "holding",
        (Phase::Holding, true) => "holding?",
        (Phase::Deciding { proposal: Decision::Transfer, .. }, _) => "deciding-transfer",
        (Phase::Deciding { proposal: Decision::Abort, held: true }, _) => "deciding-abort-held",
        (Phase::Deciding { proposal: Decision::Abort, held: false }, _) => "deciding-abort",
        (Phase::Switching { retired: false, .. }, _) => "switching",
        (Phase::Switching { retired: true, .. }, _) => "switching-retired",
        (Phase::Verifying { retired: false }, _) => "verifying",
        (Phase::Verifying { retired: true }, _) => "verifying-retired",
        (Phase::Resuming, false) => "resuming",
        (Phase::Resuming, true) => "resuming?",
        (Phase::Reviving, false) => "reviving",
        (Phase::Reviving, true) => "reviving?",
        (Phase::Parked { why: ParkReason::TargetMemoryLost, .. }, _) => "parked-memory",
        (Phase::Parked { why: ParkReason::SourceHostSilent, .. }, _) => "parked-silent",
        (Phase::Parked { why: ParkReason::Quarantined, .. }, _) => "parked-quarantined",
        (Phase::Ended(End::Completed), _) => "completed",
        (Phase::Ended(End::RolledBack), _) => "rolled-back",
        (Phase::Ended(End::Cancelled), _) => "cancelled",
    }
}

/// All events of the source's side.
pub const SOURCE_EVENTS: &[&str] = &[
    "go",
    "reserved",
    "prepared",
    "round",
    "paused",
    "sealed",
    "held",
    "transfer",
    "abort",
    "retired",
    "started",
    "verified",
    "resumed",
    "revived",
    "t-refused",
    "t-lost",
    "s-refused",
    "s-lost",
    "timed-out",
    "unknown",
    "observed",
    "cancel",
    "retry",
    "probe",
    "undo",
    "abandon",
    "quarantined",
];

/// The event's name.
pub fn source_event(e: &S) -> &'static str {
    match e {
        S::Go => "go",
        S::Reserved => "reserved",
        S::Prepared => "prepared",
        S::Round(_) => "round",
        S::Paused => "paused",
        S::Sealed => "sealed",
        S::Held => "held",
        S::Decided(Decision::Transfer) => "transfer",
        S::Decided(Decision::Abort) => "abort",
        S::Retired => "retired",
        S::Started => "started",
        S::Verified => "verified",
        S::Resumed => "resumed",
        S::Revived => "revived",
        S::TargetRefused { .. } => "t-refused",
        S::TargetLost { .. } => "t-lost",
        S::SourceRefused { .. } => "s-refused",
        S::SourceLost { .. } => "s-lost",
        S::TimedOut => "timed-out",
        S::Unknown => "unknown",
        S::Observed(_) => "observed",
        S::Cancel => "cancel",
        S::Retry => "retry",
        S::Probe => "probe",
        S::Undo => "undo",
        S::Abandon => "abandon",
        S::Quarantined => "quarantined",
    }
}

/// One of each event of the source's side, in the order of their names.
pub fn source_samples() -> Vec<S> {
    let why = || "it was so".to_owned();
    let view = HostView { alive: true, paused: false, held: false, spent: false, gone: false };
    vec![
        S::Go,
        S::Reserved,
        S::Prepared,
        S::Round(super::model::round(true)),
        S::Paused,
        S::Sealed,
        S::Held,
        S::Decided(Decision::Transfer),
        S::Decided(Decision::Abort),
        S::Retired,
        S::Started,
        S::Verified,
        S::Resumed,
        S::Revived,
        S::TargetRefused { why: why() },
        S::TargetLost { why: why() },
        S::SourceRefused { why: why() },
        S::SourceLost { why: why() },
        S::TimedOut,
        S::Unknown,
        S::Observed(view),
        S::Cancel,
        S::Retry,
        S::Probe,
        S::Undo,
        S::Abandon,
        S::Quarantined,
    ]
}

/// All states of the target's side that differ in what they take.
pub const TARGET_STATES: &[&str] = &[
    "reserved",
    "preparing",
    "receiving",
    "sealing",
    "ready",
    "starting",
    "starting-cold",
    "verifying",
    "running",
    "lost",
    "lost-sealed",
    "lost-owned",
    "discarding",
    "discarded",
];

/// The state's name.
pub fn target_state(t: &Target) -> &'static str {
    match &t.phase {
        TargetPhase::Reserved => "reserved",
        TargetPhase::Preparing => "preparing",
        TargetPhase::Receiving => "receiving",
        TargetPhase::Sealing => "sealing",
        TargetPhase::Ready { .. } => "ready",
        TargetPhase::Starting { cold: false, .. } => "starting",
        TargetPhase::Starting { cold: true, .. } => "starting-cold",
        TargetPhase::Verifying { .. } => "verifying",
        TargetPhase::Running { .. } => "running",
        TargetPhase::Lost { owned: false, sealed: false, .. } => "lost",
        TargetPhase::Lost { owned: false, sealed: true, .. } => "lost-sealed",
        TargetPhase::Lost { owned: true, .. } => "lost-owned",
        TargetPhase::Discarding { .. } => "discarding",
        TargetPhase::Discarded => "discarded",
    }
}

/// All events of the target's side.
pub const TARGET_EVENTS: &[&str] = &[
    "reserve",
    "prepare",
    "seal",
    "start",
    "start-cold",
    "verify",
    "discard",
    "told-undecided",
    "told-transfer",
    "told-abort",
    "told-superseded",
    "prepared",
    "sealed",
    "incomplete",
    "started",
    "runs",
    "discarded",
    "refused",
    "lost",
    "timed-out",
];

/// The event's name.
pub fn target_event(e: &T) -> &'static str {
    match e {
        T::Asked(Request::Reserve) => "reserve",
        T::Asked(Request::Prepare) => "prepare",
        T::Asked(Request::Seal) => "seal",
        T::Asked(Request::Start { cold: false }) => "start",
        T::Asked(Request::Start { cold: true }) => "start-cold",
        T::Asked(Request::Verify) => "verify",
        T::Asked(Request::Discard) => "discard",
        T::Told(DecisionAnswer::Undecided) => "told-undecided",
        T::Told(DecisionAnswer::Decided(Decision::Transfer)) => "told-transfer",
        T::Told(DecisionAnswer::Decided(Decision::Abort)) => "told-abort",
        T::Told(DecisionAnswer::Superseded) => "told-superseded",
        T::HostPrepared => "prepared",
        T::HostSealed { .. } => "sealed",
        T::HostIncomplete => "incomplete",
        T::HostStarted => "started",
        T::HostRuns { .. } => "runs",
        T::HostDiscarded => "discarded",
        T::HostRefused { .. } => "refused",
        T::HostLost { .. } => "lost",
        T::TimedOut => "timed-out",
    }
}

/// One of each event of the target's side, in the order of their names.
pub fn target_samples() -> Vec<T> {
    let why = || "it was so".to_owned();
    vec![
        T::Asked(Request::Reserve),
        T::Asked(Request::Prepare),
        T::Asked(Request::Seal),
        T::Asked(Request::Start { cold: false }),
        T::Asked(Request::Start { cold: true }),
        T::Asked(Request::Verify),
        T::Asked(Request::Discard),
        T::Told(DecisionAnswer::Undecided),
        T::Told(DecisionAnswer::Decided(Decision::Transfer)),
        T::Told(DecisionAnswer::Decided(Decision::Abort)),
        T::Told(DecisionAnswer::Superseded),
        T::HostPrepared,
        T::HostSealed { digest: 7, tick: 1 },
        T::HostIncomplete,
        T::HostStarted,
        T::HostRuns { tick: 2 },
        T::HostDiscarded,
        T::HostRefused { why: why() },
        T::HostLost { why: why() },
        T::TimedOut,
    ]
}

#[test]
fn each_event_has_a_sample() {
    let named: Vec<&str> = source_samples().iter().map(source_event).collect();
    assert_eq!(named, SOURCE_EVENTS);
    let named: Vec<&str> = target_samples().iter().map(target_event).collect();
    assert_eq!(named, TARGET_EVENTS);
}
