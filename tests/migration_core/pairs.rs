//! Every (state, event) pair of both cores against an explicit table. Owns: what each pair must come to.
//! Always: rows and columns cover every name of `names.rs`, whose matches name every variant, so a new state or event
//! breaks the build or these tests until its row or column is written.
//!
//! The tables (`*.txt` beside this): a block per state; a line in it says what comes of the events that it lists:
//! `ignored`, `refused`, or the state that follows, with `next attempt`, `goal back` or `goal cancel` where that changes.

use std::collections::BTreeSet;

use novafed::decision::migration::source::{self, End, Event, Goal, HostView, ParkReason, Phase, Round, Source};
use novafed::decision::migration::steps::STEPS;
use novafed::decision::migration::target::{self, Event as TargetEvent, Phase as TargetPhase, Target};
use novafed::decision::migration::{TargetAnswer, TargetRequest, Verdict};
use novafed::decision::ownership::Decision;
use novafed::types::Attempt;

use super::model::{source_input, target_input};
use super::{names, world};

fn at(phase: Phase) -> Source {
    Source { phase, target_involved: true, ..world::queued(3) }
}

fn parked(why: ParkReason, phase: Phase) -> Source {
    at(Phase::Parked { why, at: Box::new(phase) })
}

fn settling(s: Source) -> Source {
    Source { settling: true, ..s }
}

fn with(goal: Goal, s: Source) -> Source {
    Source { goal, ..s }
}

fn last(s: Source) -> Source {
    Source { attempt: Attempt(3), ..s }
}

const ABORT_HELD: Phase = Phase::Deciding { proposal: Decision::Abort, held: true };
const ABORT: Phase = Phase::Deciding { proposal: Decision::Abort, held: false };
const TRANSFER: Phase = Phase::Deciding { proposal: Decision::Transfer, held: true };
const SWITCHING: Phase = Phase::Switching { started: false, retired: false, cold: false };

/// The rows: every state, and those in which the goal, the last attempt or what is parked make a difference.
fn source_rows() -> Vec<(&'static str, Source)> {
    use ParkReason::{Quarantined, SourceHostSilent, TargetMemoryLost};
    let switched = Phase::Switching { started: false, retired: true, cold: false };
    vec![
        ("queued", at(Phase::Queued)),
        ("reserving", at(Phase::Reserving)),
        ("preparing", at(Phase::Preparing)),
        ("copying", at(Phase::Copying)),
        ("copying?", settling(at(Phase::Copying))),
        ("pausing", at(Phase::Pausing)),
        ("pausing?", settling(at(Phase::Pausing))),
        ("sealing", at(Phase::Sealing)),
        ("sealing?", settling(at(Phase::Sealing))),
        ("holding", at(Phase::Holding)),
        ("holding?", settling(at(Phase::Holding))),
        ("holding, cancel", with(Goal::Cancel, at(Phase::Holding))),
        ("deciding-transfer", at(TRANSFER)),
        ("deciding-abort-held", at(ABORT_HELD)),
        ("deciding-abort", at(ABORT)),
        ("deciding-abort, last", last(at(ABORT))),
        ("deciding-abort, back", with(Goal::RollBack, at(ABORT))),
        ("deciding-abort, cancel", with(Goal::Cancel, at(ABORT))),
        ("switching", at(SWITCHING)),
        ("switching-retired", at(switched)),
        ("verifying", at(Phase::Verifying { retired: false })),
        ("verifying-retired", at(Phase::Verifying { retired: true })),
        ("resuming", at(Phase::Resuming)),
        ("resuming?", settling(at(Phase::Resuming))),
        ("resuming, cancel", with(Goal::Cancel, at(Phase::Resuming))),
        ("reviving", at(Phase::Reviving)),
        ("reviving?", settling(at(Phase::Reviving))),
        ("reviving, last", last(at(Phase::Reviving))),
        ("reviving, cancel", with(Goal::Cancel, at(Phase::Reviving))),
        ("parked-memory", parked(TargetMemoryLost, SWITCHING)),
        ("parked-silent, holding", parked(SourceHostSilent, Phase::Holding)),
        ("parked-silent, resuming", parked(SourceHostSilent, Phase::Resuming)),
        ("parked-silent, reviving", parked(SourceHostSilent, Phase::Reviving)),
        ("parked-quarantined, queued", parked(Quarantined, Phase::Queued)),
        ("parked-quarantined, copying", parked(Quarantined, Phase::Copying)),
        ("parked-quarantined, sealing", parked(Quarantined, Phase::Sealing)),
        ("parked-quarantined, holding", parked(Quarantined, Phase::Holding)),
        ("parked-quarantined, deciding", parked(Quarantined, TRANSFER)),
        ("parked-quarantined, switching", parked(Quarantined, SWITCHING)),
        ("completed", at(Phase::Ended(End::Completed))),
        ("rolled-back", at(Phase::Ended(End::RolledBack))),
        ("cancelled", at(Phase::Ended(End::Cancelled))),
    ]
}

/// The columns: every event, and what makes a difference inside one.
fn source_columns() -> Vec<(&'static str, Event)> {
    let mut columns = Vec::new();
    for event in names::source_samples() {
        match event {
            Event::Round(_) => {
                let fits = super::model::round(true);
                let more = Round { remaining_bytes: u64::MAX, ..fits };
                columns.push(("round+", Event::Round(fits)));
                columns.push(("round-", Event::Round(more)));
                columns.push(("round!", Event::Round(super::model::round(false))));
            }
            Event::Observed(runs) => {
                let view = |view| Event::Observed(view);
                columns.push(("sees-run", view(runs)));
                columns.push(("sees-paused", view(HostView { paused: true, ..runs })));
                columns.push(("sees-held", view(HostView { held: true, ..runs })));
                columns.push(("sees-spent", view(HostView { spent: true, ..runs })));
                columns.push(("sees-lost", view(HostView { alive: false, spent: true, ..runs })));
            }
            other => columns.push((names::source_event(&other), other)),
        }
    }
    columns
}

fn shown(before: &Source, verdict: &Verdict<Source>) -> String {
    let next = match verdict {
        Verdict::Ignore(_) => return "ignored".into(),
        Verdict::Refuse(_) => return "refused".into(),
        Verdict::Advance(next) => next,
    };
    let attempt = if next.attempt > before.attempt { " (next attempt)" } else { "" };
    let goal = match next.goal {
        Goal::RollBack if before.goal != Goal::RollBack => " (goal back)",
        Goal::Cancel if before.goal != Goal::Cancel => " (goal cancel)",
        Goal::Forward | Goal::RollBack | Goal::Cancel => "",
    };
    format!("{}{attempt}{goal}", names::source_state(next))
}

/// A block of a table: what comes of each event, those with the same outcome on one line.
fn block(state: &str, outcomes: impl Iterator<Item = (&'static str, String)>) -> Vec<String> {
    let mut by_outcome: Vec<(String, Vec<&str>)> = Vec::new();
    for (event, outcome) in outcomes {
        match by_outcome.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, events)) => events.push(event),
            None => by_outcome.push((outcome, vec![event])),
        }
    }
    let line = |(outcome, events): (String, Vec<&str>)| format!("  {outcome}: {}", events.join(" "));
    std::iter::once(state.to_owned()).chain(by_outcome.into_iter().map(line)).collect()
}

/// The first line in which a table is not what the core does.
fn compare(name: &str, table: &str, seen: &[String]) {
    let mut state = "";
    let wanted: Vec<&str> = table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    for (line, seen) in wanted.iter().zip(seen) {
        if !line.starts_with(' ') {
            state = line;
        }
        assert_eq!(line, seen, "{name}, {state}: the table says the first, the core does the second");
    }
    assert_eq!(wanted.len(), seen.len(), "{name}: lines; all of the core's:\n{}", seen.join("\n"));
}

fn source_table() -> Vec<String> {
    let columns = source_columns();
    let outcome =
        |state: &Source, event: &Event| shown(state, &source::step(state, &source_input(state, event.clone())));
    let rows = source_rows();
    rows.iter().flat_map(|(row, s)| block(row, columns.iter().map(|(name, e)| (*name, outcome(s, e))))).collect()
}

#[test]
fn each_pair_of_the_source_comes_to_what_its_table_says() {
    let named: BTreeSet<&str> = source_rows().iter().map(|(_, s)| names::source_state(s)).collect();
    assert_eq!(named, names::SOURCE_STATES.iter().copied().collect(), "each state has a row");
    let named: BTreeSet<&str> = source_columns().iter().map(|(_, e)| names::source_event(e)).collect();
    assert_eq!(named, names::SOURCE_EVENTS.iter().copied().collect(), "each event has a column");
    compare("source", include_str!("source_pairs.txt"), &source_table());
}

#[test]
fn outcomes_of_another_attempt_or_step_change_nothing() {
    for (row, state) in source_rows() {
        for (column, event) in source_columns() {
            let input = source_input(&state, event);
            for attempt in [state.attempt.0 - 1, state.attempt.0 + 1].map(Attempt) {
                let other = source::Input { attempt, ..input.clone() };
                assert!(matches!(source::step(&state, &other), Verdict::Ignore(_)), "{row} {column} of {attempt}");
            }
            for step in STEPS.iter().map(|r| r.step).filter(|step| *step != state.phase.step()) {
                let other = source::Input { step: Some(step), ..input.clone() };
                assert!(matches!(source::step(&state, &other), Verdict::Ignore(_)), "{row} {column} of {step:?}");
            }
        }
    }
    for (row, state) in target_rows() {
        for (column, attempt, event) in target_columns() {
            let input = target_input(&state, attempt, event);
            let older = target::Input { attempt: Attempt(state.attempt.0 - 1), ..input.clone() };
            assert!(matches!(target::step(&state, &older), Verdict::Ignore(_)), "{row} {column} of an older attempt");
        }
    }
}

#[test]
fn no_advance_is_empty_and_nothing_leaves_an_end() {
    for (row, state) in source_rows() {
        for (column, event) in source_columns() {
            if let Verdict::Advance(next) = source::step(&state, &source_input(&state, event)) {
                assert_ne!(next, state, "{row} {column}: a journal entry without progress");
                assert!(!matches!(state.phase, Phase::Ended(_)), "{row} {column}");
            }
        }
    }
}

// -- the target's side -----------------------------------------------------------------

fn target_at(phase: TargetPhase) -> Target {
    Target { phase, ..world::reserved(Attempt(2)) }
}

fn target_rows() -> Vec<(&'static str, Target)> {
    let lost = |owned, sealed| TargetPhase::Lost { why: "it was so".into(), owned, sealed, tick: 1 };
    let phases = [
        TargetPhase::Reserved,
        TargetPhase::Preparing,
        TargetPhase::Receiving,
        TargetPhase::Sealing,
        TargetPhase::Ready { digest: 7, tick: 1 },
        TargetPhase::Starting { tick: 1, cold: false },
        TargetPhase::Starting { tick: 1, cold: true },
        TargetPhase::Verifying { tick: 1 },
        TargetPhase::Running { tick: 2 },
        lost(false, false),
        lost(false, true),
        lost(true, true),
        TargetPhase::Discarding { expired: false },
        TargetPhase::Discarded,
    ];
    phases.into_iter().map(target_at).map(|t| (names::target_state(&t), t)).collect()
}

/// The columns: every event of the present attempt, what of a later one makes a difference, and a tick too early.
fn target_columns() -> Vec<(&'static str, Attempt, TargetEvent)> {
    let (now, next) = (Attempt(2), Attempt(3));
    let mut columns: Vec<_> = names::target_samples().into_iter().map(|e| (names::target_event(&e), now, e)).collect();
    columns.push(("runs-same-tick", now, TargetEvent::HostRuns { tick: 1 }));
    columns.push(("next-prepare", next, TargetEvent::Asked(TargetRequest::Prepare)));
    columns.push(("next-seal", next, TargetEvent::Asked(TargetRequest::Seal)));
    columns.push(("next-discard", next, TargetEvent::Asked(TargetRequest::Discard)));
    columns
}

fn target_table() -> Vec<String> {
    let columns = target_columns();
    let outcome = |state: &Target, attempt: Attempt, event: &TargetEvent| match target::step(
        state,
        &target_input(state, attempt, event.clone()),
    ) {
        Verdict::Ignore(_) => "ignored".to_owned(),
        Verdict::Refuse(_) => "refused".to_owned(),
        Verdict::Advance(next) if next.attempt > state.attempt => {
            format!("{} (next attempt)", names::target_state(&next))
        }
        Verdict::Advance(next) => names::target_state(&next).to_owned(),
    };
    let rows = target_rows();
    let cells = |t: &Target| columns.iter().map(|(name, at, e)| (*name, outcome(t, *at, e))).collect::<Vec<_>>();
    rows.iter().flat_map(|(row, t)| block(row, cells(t).into_iter())).collect()
}

#[test]
fn each_pair_of_the_target_comes_to_what_its_table_says() {
    let named: BTreeSet<&str> = target_rows().iter().map(|(name, _)| *name).collect();
    assert_eq!(named, names::TARGET_STATES.iter().copied().collect(), "each state has a row");
    let named: BTreeSet<&str> = target_columns().iter().map(|(_, _, e)| names::target_event(e)).collect();
    assert_eq!(named, names::TARGET_EVENTS.iter().copied().collect(), "each event has a column");
    compare("target", include_str!("target_pairs.txt"), &target_table());
}

fn answer_name(answer: Option<TargetAnswer>) -> String {
    match answer {
        None => "waits",
        Some(TargetAnswer::Reserved) => "reserved",
        Some(TargetAnswer::Prepared) => "prepared",
        Some(TargetAnswer::Sealed { .. }) => "sealed",
        Some(TargetAnswer::NotComplete) => "not complete",
        Some(TargetAnswer::Started) => "started",
        Some(TargetAnswer::Verified { .. }) => "verified",
        Some(TargetAnswer::Discarded) => "discarded",
        Some(TargetAnswer::Refused { .. }) => "refused",
        Some(TargetAnswer::Lost { .. }) => "lost",
        Some(TargetAnswer::Superseded { .. }) => "superseded",
    }
    .to_owned()
}

fn answer_table() -> Vec<String> {
    let questions: Vec<(&'static str, Attempt, TargetRequest)> = target_columns()
        .into_iter()
        .filter_map(|(name, attempt, event)| match event {
            TargetEvent::Asked(request) => Some((name, attempt, request)),
            _ => None,
        })
        .chain([("older-start", Attempt(1), TargetRequest::Start { cold: false })])
        .collect();
    let answers = |t: &Target| {
        let answer = |(name, at, request): &(&'static str, _, _)| (*name, answer_name(target::answer(t, *at, request)));
        questions.iter().map(answer).collect::<Vec<_>>()
    };
    target_rows().iter().flat_map(|(row, t)| block(row, answers(t).into_iter())).collect()
}

#[test]
fn each_question_is_answered_from_each_state_as_its_table_says() {
    compare("answers", include_str!("target_answers.txt"), &answer_table());
}
