//! The transitions of the source's side. Owns: the next state for each (state, input).
//! Not here: the states (`mod.rs` beside this), what they want done.

use super::{End, Event, Goal, HostView, Input, ParkReason, Phase, Round, Source};
use crate::decision::migration::Verdict;
use crate::decision::ownership::Decision;
use crate::planted::{self, Bug};

impl Source {
    fn to_phase(&self, phase: Phase) -> Source {
        Source { phase, settling: false, ..self.clone() }
    }

    fn advance(&self, phase: Phase) -> Verdict<Source> {
        Verdict::Advance(self.to_phase(phase))
    }

    /// Gives this attempt up; `goal` says what comes after.
    fn give_up(&self, goal: Goal, note: impl Into<String>) -> Verdict<Source> {
        // A cancel that was asked for stays one, whatever else goes wrong.
        let goal = if self.goal == Goal::Cancel { Goal::Cancel } else { goal };
        let note = Some(note.into());
        Verdict::Advance(Source { goal, note, ..self.to_phase(Phase::Resuming) })
    }

    fn park(&self, why: ParkReason, note: impl Into<String>) -> Verdict<Source> {
        let at = Box::new(self.phase.clone());
        Verdict::Advance(Source { note: Some(note.into()), ..self.to_phase(Phase::Parked { why, at }) })
    }

    fn with_goal(&self, goal: Goal, note: &str) -> Source {
        Source { goal, note: Some(note.to_owned()), ..self.clone() }
    }

    /// The abort is recorded and nothing holds the guest: the next attempt, or an end.
    fn after_abort(&self) -> Source {
        let used = self.attempt.0.saturating_sub(self.first_attempt.0) + 1;
        match self.goal {
            Goal::Forward if used < self.rules.attempts_max => {
                Source { attempt: self.attempt.next(), ..self.to_phase(Phase::Preparing) }
            }
            Goal::Forward => {
                let last = self.note.clone().unwrap_or_else(|| "it was given up".into());
                let note = Some(format!("rolled back after {used} attempts; the last: {last}"));
                Source { note, ..self.to_phase(Phase::Ended(End::RolledBack)) }
            }
            Goal::RollBack => self.to_phase(Phase::Ended(End::RolledBack)),
            Goal::Cancel => self.to_phase(Phase::Ended(End::Cancelled)),
        }
    }
}

/// The event that an observation amounts to in this phase, if it settles it.
fn settled(phase: &Phase, view: HostView) -> Option<Event> {
    let lost = || Event::SourceLost { why: "its host restarted and the guest's memory is gone".into() };
    let spent = || Event::SourceRefused { why: "the watchdog fired or the pause was cancelled".into() };
    match phase {
        Phase::Pausing if view.paused || view.held => Some(Event::Paused),
        Phase::Holding if view.held => Some(Event::Held),
        Phase::Pausing | Phase::Holding | Phase::Sealing if view.spent => Some(spent()),
        Phase::Pausing | Phase::Holding | Phase::Sealing | Phase::Copying if !view.alive => Some(lost()),
        Phase::Resuming if view.held => Some(Event::Held),
        Phase::Resuming if view.spent => Some(Event::Resumed),
        Phase::Reviving if !view.held => Some(Event::Revived),
        Phase::Queued
        | Phase::Reserving
        | Phase::Preparing
        | Phase::Copying
        | Phase::Pausing
        | Phase::Sealing
        | Phase::Holding
        | Phase::Deciding { .. }
        | Phase::Switching { .. }
        | Phase::Verifying { .. }
        | Phase::Resuming
        | Phase::Reviving
        | Phase::Parked { .. }
        | Phase::Ended(_) => None,
    }
}

const NOT_NOW: &str = "nothing of this kind is under way in this phase";
const DECIDED: &str = "the decision to transfer is recorded: from here only forward; start a reverse migration instead";
const NOT_PARKED: &str = "the job is not parked: nothing to decide";
const OVER: &str = "the job has ended";

/// The next state for an input, or why there is none.
pub fn step(s: &Source, input: &Input) -> Verdict<Source> {
    if input.attempt != s.attempt {
        return Verdict::Ignore("it belongs to another attempt");
    }
    if input.step.is_some_and(|asked| asked != s.phase.step()) {
        return Verdict::Ignore("it belongs to another step");
    }
    match &input.event {
        Event::Unknown if s.settling => return Verdict::Ignore("it is being looked at already"),
        Event::Observed(view) if s.settling => {
            let plain = Source { settling: false, ..s.clone() };
            return match settled(&s.phase, *view) {
                Some(event) => forward(&plain, &event),
                None => Verdict::Advance(plain),
            };
        }
        Event::Observed(view) => {
            if let Phase::Parked { why: ParkReason::SourceHostSilent, at } = &s.phase {
                return host_spoke(s, at, *view);
            }
        }
        _ => {}
    }
    match forward(s, &input.event) {
        // What was known before is not journalled again: a journal must not grow without progress.
        Verdict::Advance(next) if next == *s => Verdict::Ignore("it is known already"),
        verdict => verdict,
    }
}

/// A host that was silent answers: the job goes on by itself, a person is not needed any more.
fn host_spoke(s: &Source, at: &Phase, view: HostView) -> Verdict<Source> {
    let on = s.to_phase(at.clone());
    match settled(at, view) {
        Some(event) => forward(&on, &event),
        None => Verdict::Advance(on),
    }
}

fn forward(s: &Source, event: &Event) -> Verdict<Source> {
    use Event as E;
    use Verdict::Ignore;
    match event {
        E::Cancel => return cancel(s),
        E::Retry | E::Probe | E::Undo | E::Abandon => return person(s, event),
        E::Quarantined => {
            return match &s.phase {
                Phase::Parked { .. } | Phase::Ended(_) => Ignore("it waits or is over"),
                _ => s.park(ParkReason::Quarantined, "its actor crashed again and again without progress"),
            };
        }
        E::Go
        | E::Reserved
        | E::Prepared
        | E::Round(_)
        | E::Paused
        | E::Sealed
        | E::Held
        | E::Decided(_)
        | E::Retired
        | E::Started
        | E::Verified
        | E::Resumed
        | E::Revived
        | E::TargetRefused { .. }
        | E::TargetLost { .. }
        | E::SourceRefused { .. }
        | E::SourceLost { .. }
        | E::TimedOut
        | E::Unknown
        | E::Observed(_) => {}
    }
    match &s.phase {
        Phase::Queued => match event {
            E::Go => Verdict::Advance(Source { target_involved: true, ..s.to_phase(Phase::Reserving) }),
            _ => Ignore(NOT_NOW),
        },
        Phase::Reserving => match event {
            E::Reserved => s.advance(Phase::Preparing),
            _ => before_pause(s, event),
        },
        Phase::Preparing => match event {
            E::Prepared => s.advance(Phase::Copying),
            _ => before_pause(s, event),
        },
        Phase::Copying => match event {
            E::Round(round) => round_ended(s, round),
            _ => before_pause(s, event),
        },
        Phase::Pausing => match event {
            E::Paused => s.advance(Phase::Sealing),
            E::Unknown => settle(s),
            _ => before_hold(s, event),
        },
        Phase::Sealing => match event {
            E::Sealed => s.advance(Phase::Holding),
            E::Unknown => settle(s),
            _ => before_hold(s, event),
        },
        Phase::Holding => match event {
            E::Held if s.goal == Goal::Forward => {
                s.advance(Phase::Deciding { proposal: Decision::Transfer, held: true })
            }
            E::Held => s.advance(Phase::Deciding { proposal: Decision::Abort, held: true }),
            E::SourceRefused { why } => s.give_up(s.goal, why),
            // The hold may have been recorded before the host died: it alone knows.
            E::SourceLost { why } if !s.settling => s.give_up(Goal::RollBack, why),
            E::Unknown => settle(s),
            E::TimedOut if s.settling => {
                s.park(ParkReason::SourceHostSilent, "the source's host does not say whether it holds the guest")
            }
            E::TimedOut => settle(s),
            // Whatever it lost, the hold must be settled first; the seal is asked for again by nobody, so an abort
            // is what a held attempt without a target comes to.
            E::TargetLost { why } => Verdict::Advance(s.with_goal_if_forward(Goal::RollBack, why)),
            _ => Ignore(NOT_NOW),
        },
        Phase::Deciding { proposal, held } => match event {
            E::Decided(Decision::Transfer) if *held => {
                s.advance(Phase::Switching { started: false, retired: false, cold: false })
            }
            E::Decided(Decision::Transfer) => Ignore("a transfer of an attempt that was not held can't be recorded"),
            E::Decided(Decision::Abort) if *held => s.advance(Phase::Reviving),
            E::Decided(Decision::Abort) => Verdict::Advance(s.after_abort()),
            E::TargetLost { why } if *proposal == Decision::Transfer => {
                Verdict::Advance(Source { note: Some(why.clone()), ..s.to_phase(abort(*held)) })
            }
            _ => Ignore(NOT_NOW),
        },
        Phase::Switching { started, retired, cold } => match event {
            E::Started => s.advance(Phase::Verifying { retired: *retired }),
            E::Retired if !*retired => s.advance(Phase::Switching { started: *started, retired: true, cold: *cold }),
            E::TargetLost { .. } if planted::is(Bug::UndoPastThePivot) => s.advance(Phase::Reviving),
            E::TargetLost { why } => s.park(
                ParkReason::TargetMemoryLost,
                format!("{why}; the VM belongs to {} and can be started there from its disk", s.to),
            ),
            _ => Ignore(NOT_NOW),
        },
        Phase::Verifying { retired } => match event {
            E::Verified => s.advance(Phase::Ended(End::Completed)),
            E::Retired if !*retired => s.advance(Phase::Verifying { retired: true }),
            // It ran there: the move is complete, and what happened since is the target's to report.
            E::TargetLost { why } => {
                let note = Some(format!("it moved and started; then {why}"));
                Verdict::Advance(Source { note, ..s.to_phase(Phase::Ended(End::Completed)) })
            }
            _ => Ignore(NOT_NOW),
        },
        Phase::Resuming => match event {
            E::Resumed => s.advance(abort(false)),
            // A hold that was on its way came first: only the decision frees the guest now.
            E::Held => s.advance(abort(true)),
            E::SourceLost { why } => {
                // Dead, and the host says so: the attempt is spent, there is nothing left to move.
                let rolled = s.with_goal_if_forward(Goal::RollBack, why);
                Verdict::Advance(rolled.to_phase(abort(false)))
            }
            E::Unknown => settle(s),
            E::TimedOut => {
                s.park(ParkReason::SourceHostSilent, "the source's host does not confirm that the guest runs")
            }
            _ => Ignore(NOT_NOW),
        },
        Phase::Reviving => match event {
            E::Revived => Verdict::Advance(s.after_abort()),
            E::SourceLost { why } => Verdict::Advance(s.with_goal_if_forward(Goal::RollBack, why).after_abort()),
            E::Unknown => settle(s),
            E::TimedOut => {
                s.park(ParkReason::SourceHostSilent, "the source's host does not confirm the end of the hold")
            }
            _ => Ignore(NOT_NOW),
        },
        Phase::Parked { .. } => Ignore("it waits for a person"),
        Phase::Ended(_) => Ignore(OVER),
    }
}

impl Source {
    fn with_goal_if_forward(&self, goal: Goal, note: &str) -> Source {
        if self.goal == Goal::Forward { self.with_goal(goal, note) } else { self.clone() }
    }
}

fn abort(held: bool) -> Phase {
    Phase::Deciding { proposal: Decision::Abort, held }
}

fn settle(s: &Source) -> Verdict<Source> {
    if s.settling {
        return Verdict::Ignore("it is being looked at already");
    }
    Verdict::Advance(Source { settling: true, ..s.clone() })
}

fn round_ended(s: &Source, round: &Round) -> Verdict<Source> {
    let fits = round.downtime_us() <= s.rules.downtime_max.0.saturating_mul(1_000);
    if round.rounds >= 1 && fits && round.decider_reachable {
        let paused = s.to_phase(Phase::Pausing);
        return Verdict::Advance(Source { estimated_downtime_us: round.downtime_us(), rounds: round.rounds, ..paused });
    }
    if round.rounds >= s.rules.rounds_max && !fits {
        return s.give_up(
            Goal::RollBack,
            format!(
                "it does not converge: after {} rounds {} bytes are left, the guest writes {} bytes/s and the link \
                 carries {} bytes/s; allow a longer downtime or a faster link",
                round.rounds, round.remaining_bytes, round.dirty_bytes_per_second, round.bytes_per_second
            ),
        );
    }
    Verdict::Ignore("what is left does not fit yet")
}

/// Events that mean the same in every phase before the guest is paused.
fn before_pause(s: &Source, event: &Event) -> Verdict<Source> {
    match event {
        Event::TargetRefused { why } => s.give_up(Goal::RollBack, why),
        Event::TargetLost { why } => s.give_up(s.goal, why),
        Event::SourceRefused { why } | Event::SourceLost { why } => s.give_up(Goal::RollBack, why),
        Event::TimedOut => s.give_up(Goal::RollBack, format!("nothing moved for {}", s.rules.patience)),
        Event::Unknown if s.phase == Phase::Copying => settle(s),
        _ => Verdict::Ignore(NOT_NOW),
    }
}

/// Events that mean the same while the guest is paused, or may be, and not held.
fn before_hold(s: &Source, event: &Event) -> Verdict<Source> {
    match event {
        Event::TargetRefused { why } | Event::TargetLost { why } | Event::SourceRefused { why } => {
            s.give_up(s.goal, why)
        }
        Event::SourceLost { why } => s.give_up(Goal::RollBack, why),
        Event::TimedOut => s.give_up(s.goal, "the switch took longer than its deadline"),
        _ => Verdict::Ignore(NOT_NOW),
    }
}

fn cancel(s: &Source) -> Verdict<Source> {
    const BY: &str = "cancelled by request";
    if s.goal == Goal::Cancel && !matches!(s.phase, Phase::Ended(_)) {
        return Verdict::Ignore("it is being cancelled already");
    }
    match &s.phase {
        Phase::Queued => Verdict::Advance(s.with_goal(Goal::Cancel, BY).to_phase(Phase::Ended(End::Cancelled))),
        Phase::Reserving | Phase::Preparing | Phase::Copying | Phase::Pausing | Phase::Sealing => {
            s.give_up(Goal::Cancel, BY)
        }
        // Whether the host holds is not known yet: when it is, the goal decides.
        Phase::Holding | Phase::Resuming | Phase::Reviving => Verdict::Advance(s.with_goal(Goal::Cancel, BY)),
        // A transfer may be on its way to the record: the abort competes with it, the first recorded wins.
        Phase::Deciding { held, .. } => Verdict::Advance(s.with_goal(Goal::Cancel, BY).to_phase(abort(*held))),
        Phase::Switching { .. } | Phase::Verifying { .. } if planted::is(Bug::UndoPastThePivot) => {
            Verdict::Advance(s.with_goal(Goal::Cancel, BY).to_phase(Phase::Reviving))
        }
        Phase::Switching { .. } | Phase::Verifying { .. } => Verdict::Refuse(DECIDED),
        Phase::Parked { .. } if s.decided_transfer() => Verdict::Refuse(DECIDED),
        Phase::Parked { .. } => Verdict::Refuse("the job is parked: use undo or abandon"),
        Phase::Ended(End::Cancelled) => Verdict::Ignore("it was cancelled before"),
        Phase::Ended(_) => Verdict::Refuse(OVER),
    }
}

/// `retry | probe | undo | abandon`.
fn person(s: &Source, event: &Event) -> Verdict<Source> {
    let Phase::Parked { why, at } = &s.phase else {
        return match s.phase {
            Phase::Ended(_) => Verdict::Refuse(OVER),
            _ => Verdict::Refuse(NOT_PARKED),
        };
    };
    let on = s.to_phase((**at).clone());
    match event {
        Event::Retry => Verdict::Advance(match (why, &on.phase) {
            (ParkReason::TargetMemoryLost, Phase::Switching { started, retired, .. }) => {
                on.to_phase(Phase::Switching { started: *started, retired: *retired, cold: true })
            }
            _ => on,
        }),
        Event::Probe => Verdict::Advance(Source { settling: on.observable(), ..on }),
        Event::Undo | Event::Abandon if s.decided_transfer() => match (event, why) {
            // The VM is the target's since the decision: what is given up is seeing it run.
            (Event::Abandon, ParkReason::TargetMemoryLost) => {
                Verdict::Advance(on.to_phase(Phase::Ended(End::Completed)))
            }
            _ => Verdict::Refuse(DECIDED),
        },
        Event::Undo => match &on.phase {
            Phase::Queued => Verdict::Advance(on.to_phase(Phase::Ended(End::RolledBack))),
            Phase::Deciding { held, .. } => {
                Verdict::Advance(on.with_goal_if_forward(Goal::RollBack, "undone by request").to_phase(abort(*held)))
            }
            Phase::Holding | Phase::Reviving => Verdict::Advance(Source {
                settling: true,
                ..on.with_goal_if_forward(Goal::RollBack, "undone by request")
            }),
            _ => on.give_up(Goal::RollBack, "undone by request"),
        },
        // Without the host's word, by a person's: the abort makes a transfer impossible whatever the host did, and a
        // host that comes back with this guest paused or held is told of the abort by its region.
        Event::Abandon => {
            let on = on.with_goal_if_forward(Goal::RollBack, "abandoned by request");
            match &on.phase {
                Phase::Queued => Verdict::Advance(on.to_phase(Phase::Ended(End::RolledBack))),
                Phase::Reviving => Verdict::Advance(on.after_abort()),
                // A transfer may be on its way to the record, or in it: it competes, and is followed if it came first.
                Phase::Deciding { held, .. } => Verdict::Advance(on.to_phase(abort(*held))),
                _ => Verdict::Advance(on.to_phase(abort(false))),
            }
        }
        _ => Verdict::Ignore(NOT_NOW),
    }
}

impl Source {
    fn observable(&self) -> bool {
        matches!(
            self.phase,
            Phase::Copying | Phase::Pausing | Phase::Sealing | Phase::Holding | Phase::Resuming | Phase::Reviving
        )
    }
}
