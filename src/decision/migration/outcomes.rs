//! What an answer means to the job that asked. Owns: which event a host's word, a look at it or the other side's answer
//! is. Always: a refusal says nothing of its reason, so the host is looked at before it is believed; what is unclear stays
//! unclear. The search of all worlds hears answers by these same functions.
//! Not here: asking, and asking again (`actors/`), what an event leads to (`source/`, `target.rs`).

use super::TargetAnswer;
use super::source::{Event as Source, HostView};
use super::steps::Step;
use super::target::Event as Target;
use crate::types::{ClusterId, Fence, GuestPower, Sight, SwitchKey, VmRecord};

const MEMORY_GONE: &str = "its host restarted and the guest's memory is gone";

/// How a call to a host ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Done, now or before.
    Done,
    /// It knows no such VM, receipt or attempt.
    NotFound {
        /// In its words.
        why: String,
    },
    /// It understood, and does not.
    Refused {
        /// In its words.
        why: String,
    },
    /// It may have been done: no answer, or one that it failed, which hypervisors also say when they did it.
    Unclear,
}

/// What a look at the source's host shows of the attempt `key`.
pub fn view(seen: Option<&Sight>, key: SwitchKey) -> HostView {
    let Some(seen) = seen else {
        return HostView { alive: false, paused: false, held: false, spent: true, gone: true };
    };
    let (held, paused) = (seen.hold == Some(key), seen.paused_for == Some(key));
    HostView {
        alive: matches!(seen.power, GuestPower::Running | GuestPower::Paused),
        paused,
        held,
        // A host that knows a later attempt refuses this one, whatever became of it.
        spent: !held
            && !paused
            && (seen.attempt > key.attempt || seen.spent.is_some_and(|spent| spent.attempt >= key.attempt)),
        gone: seen.power == GuestPower::Retired,
    }
}

/// The source's host was asked for `done`.
///
/// # Errors
/// Its refusal, which the host must be looked at to understand ([`of_refusal`]).
pub fn of_source_host(said: Said, done: Source) -> Result<Source, String> {
    match said {
        Said::Done => Ok(done),
        Said::Unclear => Ok(Source::Unknown),
        Said::NotFound { why } => Ok(Source::SourceLost { why }),
        Said::Refused { why } => Err(why),
    }
}

/// The source's host refused `step`, and this is seen there.
pub fn of_refusal(seen: Option<&Sight>, key: SwitchKey, step: Step, why: String) -> Source {
    match seen {
        Some(seen) if seen.power == GuestPower::Lost && seen.hold != Some(key) => {
            Source::SourceLost { why: MEMORY_GONE.into() }
        }
        // A hold that was on its way came first: only the decision frees the guest now.
        Some(seen) if seen.hold == Some(key) && step == Step::Resume => Source::Held,
        Some(_) | None => Source::SourceRefused { why },
    }
}

/// The target answered; `None`: it is to be asked again.
pub fn of_target(answer: TargetAnswer) -> Option<Source> {
    Some(match answer {
        TargetAnswer::Reserved => Source::Reserved,
        TargetAnswer::Prepared => Source::Prepared,
        TargetAnswer::Sealed { .. } => Source::Sealed,
        TargetAnswer::Started => Source::Started,
        TargetAnswer::Verified { .. } => Source::Verified,
        TargetAnswer::Refused { why } => Source::TargetRefused { why },
        TargetAnswer::Lost { why } => Source::TargetLost { why },
        TargetAnswer::Superseded { by } => Source::TargetLost { why: format!("the target is at attempt {by} already") },
        TargetAnswer::NotComplete => return None,
        // Nobody asks for it this way: discards go through the outbox.
        TargetAnswer::Discarded => Source::TargetLost { why: "the target gave the room back".into() },
    })
}

/// The channel of a copy is cut, and the target, asked once more to prepare, answered: only what ends the copy counts.
pub fn of_target_while_cut(answer: TargetAnswer) -> Option<Source> {
    of_target(answer).filter(ends_a_copy)
}

/// Whether there is nothing left to copy to.
pub fn ends_a_copy(event: &Source) -> bool {
    matches!(event, Source::TargetLost { .. } | Source::TargetRefused { .. })
}

/// The source's host was looked at while rounds are sent.
pub fn while_copying(view: HostView) -> Option<Source> {
    (!view.alive).then(|| Source::SourceLost { why: MEMORY_GONE.into() })
}

/// The source's host was looked at while the last round is on its way, the guest paused.
pub fn while_sealing(view: HostView) -> Option<Source> {
    if view.spent {
        return Some(Source::SourceRefused { why: "the watchdog fired before the target had everything".into() });
    }
    while_copying(view)
}

/// The target's host was asked for `done`; `None`: it is to be asked again, since it answers from what it recorded.
pub fn of_target_host(said: Said, done: Target) -> Option<Target> {
    match said {
        Said::Done => Some(done),
        Said::Unclear => None,
        Said::NotFound { why } => Some(Target::HostLost { why }),
        Said::Refused { why } => Some(Target::HostRefused { why }),
    }
}

/// The target's host refused to seal, and this is seen there.
pub fn of_unsealed(seen: Option<&Sight>, key: SwitchKey, why: String) -> Target {
    match seen.and_then(|seen| seen.receiving) {
        // It still receives: something is on its way, and the source is told to ask again.
        Some((receiving, false)) if receiving == key => Target::HostIncomplete,
        Some(_) => Target::HostRefused { why },
        None => Target::HostLost { why },
    }
}

/// The VM is this side's, and its host will not run it: what it had received, or its disk, is no use any more.
pub fn of_unstarted(event: Target) -> Target {
    match event {
        Target::HostRefused { why } | Target::HostLost { why } => {
            Target::HostLost { why: format!("the target's host can't run what it received: {why}") }
        }
        other => other,
    }
}

/// How a VM whose memory is lost is started, by a person's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cold {
    /// Its memory is there after all, in a sealed receipt: it is activated.
    ByReceipt,
    /// From its disk.
    ByDisk,
}

/// How, by what is seen at the target's host; `fence` is the one that it moved with.
///
/// # Errors
/// What is so already: that there is nothing to start, or that its owner started it meanwhile.
pub fn cold(seen: Option<&Sight>, key: SwitchKey, fence: Fence) -> Result<Cold, Target> {
    match seen {
        Some(seen) if seen.power == GuestPower::Running && seen.fence >= fence => Err(Target::HostStarted),
        None => Err(Target::HostLost { why: "its disk is not at the target's host either".into() }),
        Some(seen) if seen.receiving == Some((key, true)) => Ok(Cold::ByReceipt),
        Some(_) => Ok(Cold::ByDisk),
    }
}

/// What is seen, at the target's host, of a VM of this region whose memory was lost on its way, and which was offered
/// with `fence`; `None`: nobody has looked after it yet.
pub fn of_looked_after(
    record: Option<&VmRecord>,
    to: &ClusterId,
    fence: Fence,
    seen: Option<&Sight>,
) -> Option<Target> {
    const ELSEWHERE: Target = Target::HostRuns { tick: u64::MAX };
    match record {
        // Deleted, or moved on.
        None => return Some(ELSEWHERE),
        Some(record) if record.cluster != *to || record.fence.epoch > fence.epoch => return Some(ELSEWHERE),
        Some(_) => {}
    }
    match seen.map(|seen| (seen.power, seen.fence, seen.tick)) {
        Some((GuestPower::Running, under, tick)) if under >= fence => Some(Target::HostRuns { tick }),
        Some((GuestPower::Stopped, under, _)) if under >= fence => Some(ELSEWHERE),
        Some(_) | None => None,
    }
}

/// What is seen at the target's host of a VM that was started; `None`: it is to be looked at again.
pub fn of_started(seen: Option<&Sight>) -> Option<Target> {
    match seen.map(|seen| (seen.power, seen.tick)) {
        Some((GuestPower::Running, tick)) => Some(Target::HostRuns { tick }),
        Some((GuestPower::Lost, _)) | None => {
            let why = "the target's host died after it started the VM; it can be started from its disk".into();
            Some(Target::HostLost { why })
        }
        // Stopped by its owner meanwhile: it ran, or it would not be stopped.
        Some((GuestPower::Stopped, _)) => Some(Target::HostRuns { tick: u64::MAX }),
        Some((GuestPower::Paused | GuestPower::Receiving | GuestPower::Retired, _)) => None,
    }
}
