//! Sagas, step by step and in order: with a death at each point of the step table, with every pair of deaths, with each
//! command and outcome repeated, with each way to fail at each step.
//! Owns: the end that each of them comes to. Always: journals are real here; what a node is after its death is the fold
//! of its journal, and nothing else. Everything is enumerated from the step table, so a new step without a line fails.

use std::collections::{BTreeMap, VecDeque};

use novafed::decision::migration::TargetRequest;
use novafed::decision::migration::outcomes;
use novafed::decision::migration::source::{self, Command, End, Event as SourceEvent, Phase, Source};
use novafed::decision::migration::steps::{KillPoint, Moment, STEPS, Side as TableSide, Step};
use novafed::decision::migration::target::{self, Event as TargetEvent};
use novafed::drivers::embedded::rules::{Event as HostEvent, Power};
use novafed::types::{Attempt, JobState};

use super::model::{Model, Taken, source_input, target_input};
use super::world::{self, Side, World};

/// Two deaths may cost an attempt each.
const ATTEMPTS: u32 = 3;

/// When a node that died comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Return {
    /// At once.
    Soon,
    /// After the watchdog's deadline.
    Late,
}

/// Ways to fail, once, at the first visit of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    SourceHostDies,
    TargetHostDies,
    SourceHostRefuses,
    TargetRefuses,
    NothingHappens,
}

const FAILURES: [Failure; 5] = [
    Failure::SourceHostDies,
    Failure::TargetHostDies,
    Failure::SourceHostRefuses,
    Failure::TargetRefuses,
    Failure::NothingHappens,
];

/// What is done to a saga.
#[derive(Debug, Clone, Default)]
struct Plan {
    /// Where nodes die, in order.
    deaths: Vec<(KillPoint, Option<Return>)>,
    /// Each command is performed twice and each outcome delivered twice; after each advance all that was ever sent
    /// arrives again.
    twice: bool,
    /// What fails, and where.
    failure: Option<(Step, TableSide, Failure)>,
    /// What is said when the job comes to a step, in order.
    said: VecDeque<(Step, SourceEvent)>,
    /// What a person says to a parked job.
    parked: Option<SourceEvent>,
}

struct Saga {
    model: Model,
    w: World,
    plan: Plan,
    started: bool,
    source_journal: Vec<source::Input>,
    target_first: Option<Attempt>,
    target_journal: Vec<target::Input>,
    /// The question of this step was asked and waits at the target.
    asked: Option<(Attempt, TargetRequest)>,
    died: Vec<KillPoint>,
    failed: bool,
    repeats: BTreeMap<Step, u32>,
}

/// How a saga came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ended(End),
    Parked,
}

impl Saga {
    fn new(plan: Plan) -> Saga {
        let (model, w) = Model::new(None, ATTEMPTS);
        Saga {
            model,
            w,
            plan,
            started: false,
            source_journal: Vec::new(),
            target_first: None,
            target_journal: Vec::new(),
            asked: None,
            died: Vec::new(),
            failed: false,
            repeats: BTreeMap::new(),
        }
    }

    // -- deaths --------------------------------------------------------------------

    /// Passes a point; `true` if the node died there and is back.
    fn pass(&mut self, step: Step, side: TableSide, moment: Moment) -> bool {
        let here = KillPoint { step, side, moment };
        let Some((point, back)) = self.plan.deaths.get(self.died.len()).copied() else { return false };
        if point != here {
            return false;
        }
        self.died.push(here);
        if back == Some(Return::Late)
            && let Power::Paused { key } = self.model.host(&self.w, Side::Source).power
        {
            self.w = self.model.host_event(&self.w, Side::Source, &HostEvent::Watchdog { key });
        }
        self.come_back();
        true
    }

    /// Everything volatile is gone; the journals say where both sides are.
    fn come_back(&mut self) {
        self.asked = None;
        let source = source::fold(world::queued(ATTEMPTS), &self.source_journal);
        let source = source.unwrap_or_else(|(at, why)| panic!("entry {at} of the source's journal: {why}"));
        assert_eq!(&Source { note: None, ..source }, self.model.source(&self.w), "the fold is the state");
        if let Some(attempt) = self.target_first {
            let target = target::fold(world::reserved(attempt), &self.target_journal);
            let target = target.unwrap_or_else(|(at, why)| panic!("entry {at} of the target's journal: {why}"));
            assert_eq!(Some(&target), self.model.target(&self.w), "the fold is the state");
        }
    }

    // -- taking ----------------------------------------------------------------------

    fn lawful(&mut self) {
        let violation = self.model.violation.take().or_else(|| self.model.bad(&self.w));
        assert_eq!(violation, None, "{:?}", self.plan);
    }

    /// The source's core takes an event; `true` if it advanced.
    fn source_takes(&mut self, event: &SourceEvent) -> bool {
        let state = self.model.source(&self.w);
        let (was, input) = (state.phase.step(), source_input(state, event.clone()));
        let id = self.model.source_events.id(event);
        let Taken::Advanced(next) = self.model.feed_source(&self.w, id) else { return false };
        if input.step == Some(was) && self.pass(was, TableSide::Source, Moment::AfterEffect) {
            return true;
        }
        let will = self.model.source(&next).phase.step();
        if was != will && self.pass(will, TableSide::Source, Moment::BeforeWrite) {
            return true;
        }
        self.w = World { source_inbox: 0, ..next };
        self.source_journal.push(input);
        self.pass(will, TableSide::Source, Moment::AfterWrite);
        self.everything_again();
        true
    }

    /// The target's core takes an event; `true` if it advanced.
    fn target_takes(&mut self, attempt: Attempt, event: &TargetEvent) -> bool {
        let Some(state) = self.model.target(&self.w) else { return false };
        let (was, input) = (state.phase.step(), target_input(state, attempt, event.clone()));
        let id = self.model.target_events.id(event);
        let Taken::Advanced(next) = self.model.feed_target(&self.w, attempt, id) else { return false };
        if input.step == Some(was) && self.pass(was, TableSide::Target, Moment::AfterEffect) {
            return true;
        }
        let will = self.model.target(&next).expect("it advanced").phase.step();
        if was != will && self.pass(will, TableSide::Target, Moment::BeforeWrite) {
            return true;
        }
        self.w = World { target_inbox: 0, ..next };
        self.target_journal.push(input);
        self.pass(will, TableSide::Target, Moment::AfterWrite);
        self.everything_again();
        true
    }

    /// Everything that was ever sent to a host or to the log arrives once more.
    fn everything_again(&mut self) {
        if !self.plan.twice {
            return;
        }
        for id in super::intern::bits(self.w.stale) {
            let call = self.model.call(id).clone();
            // What is asked of the target again is asked through its journal; see `ask`.
            if !matches!(call, world::Call::Source(_, Command::AskTarget(_) | Command::FinishCopy)) {
                self.w = self.model.arrive_late(&self.w, &call);
                self.settle();
            }
        }
    }

    fn settle(&mut self) {
        if self.model.host(&self.w, Side::Source).power == Power::Running {
            self.w.fresh = false;
        }
        self.w.moved |= self.model.log(&self.w).moved.is_some();
        self.lawful();
    }

    // -- doing -----------------------------------------------------------------------

    fn ask(&mut self, attempt: Attempt, request: &TargetRequest) -> Option<SourceEvent> {
        let question = (attempt, request.clone());
        if self.asked.as_ref() == Some(&question) {
            return self.answer(question);
        }
        if self.model.target(&self.w).is_none() {
            if *request != TargetRequest::Reserve {
                return Some(SourceEvent::TargetLost { why: String::new() });
            }
            if self.pass(Step::Reserve, TableSide::Target, Moment::BeforeWrite) {
                return None;
            }
            self.w = self.model.admit(&self.w, attempt);
            self.target_first = Some(attempt);
            if self.pass(Step::Reserve, TableSide::Target, Moment::AfterWrite)
                || self.pass(Step::Reserve, TableSide::Target, Moment::AfterEffect)
            {
                return None;
            }
        }
        let died = self.died.len();
        for _ in 0..if self.plan.twice { 2 } else { 1 } {
            self.target_takes(attempt, &TargetEvent::Asked(request.clone()));
        }
        if self.died.len() > died { None } else { self.answer(question) }
    }

    /// The state's answer; while it has none the question waits.
    fn answer(&mut self, question: (Attempt, TargetRequest)) -> Option<SourceEvent> {
        let (attempt, request) = &question;
        let answer = self.model.answered(&self.w, *attempt, request);
        let state = self.model.target(&self.w)?;
        let waits = target::answer(state, *attempt, request).is_none();
        self.asked = waits.then_some(question);
        answer
    }

    fn do_source(&mut self, command: &Command) -> Vec<SourceEvent> {
        let attempt = self.model.source(&self.w).attempt;
        match command {
            Command::AskTarget(request) => self.ask(attempt, request).into_iter().collect(),
            Command::FinishCopy => {
                let watched = self.model.watched(&self.w, attempt);
                self.ask(attempt, &TargetRequest::Seal).into_iter().chain(watched).collect()
            }
            Command::Copy if !self.model.receives(&self.w, attempt) => {
                self.ask(attempt, &TargetRequest::Prepare).into_iter().filter(outcomes::ends_a_copy).collect()
            }
            other => {
                let (next, outcomes) = self.model.perform_source(&self.w, attempt, other);
                self.w = next;
                self.settle();
                outcomes
            }
        }
    }

    /// One thing that the source wants done; `true` if it advanced.
    fn source_turn(&mut self) -> bool {
        if self.model.source(&self.w).phase == Phase::Queued {
            return self.source_takes(&SourceEvent::Go);
        }
        for (_, command) in self.model.source_commands(&self.w).iter() {
            let state = self.model.source(&self.w);
            let (step, attempt) = (state.phase.step(), state.attempt);
            let mut outcomes = self.do_source(command);
            if self.plan.twice && !matches!(command, Command::Patience(_)) {
                *self.repeats.entry(step).or_insert(0) += 1;
                outcomes.extend(self.do_source(command));
                outcomes.extend(outcomes.clone());
            }
            let mut advanced = false;
            for outcome in outcomes {
                // An outcome carries what asked for it; of another step it is nobody's any more.
                let state = self.model.source(&self.w);
                if (state.phase.step(), state.attempt) == (step, attempt) {
                    advanced |= self.source_takes(&outcome);
                }
            }
            if advanced {
                return true;
            }
        }
        false
    }

    /// The same of the target.
    fn target_turn(&mut self) -> bool {
        for (_, command) in self.model.target_commands(&self.w).iter() {
            let state = self.model.target(&self.w).expect("it has commands");
            let (step, attempt) = (state.phase.step(), state.attempt);
            let (next, mut outcomes) = self.model.perform_target(&self.w, attempt, command);
            self.w = next;
            if self.plan.twice && !matches!(command, target::Command::Patience(_)) {
                *self.repeats.entry(step).or_insert(0) += 1;
                let (next, again) = self.model.perform_target(&self.w, attempt, command);
                self.w = next;
                outcomes.extend(again);
                outcomes.extend(outcomes.clone());
            }
            self.settle();
            let mut advanced = false;
            for outcome in outcomes {
                let state = self.model.target(&self.w).expect("a job does not vanish");
                if (state.phase.step(), state.attempt) == (step, attempt) {
                    advanced |= self.target_takes(attempt, &outcome);
                }
            }
            if advanced {
                return true;
            }
        }
        false
    }

    /// What happens without either core.
    fn surroundings(&mut self) -> bool {
        let before = self.w;
        if self.w.discard_owed {
            let attempt = self.model.source(&self.w).attempt;
            self.target_takes(attempt, &TargetEvent::Asked(TargetRequest::Discard));
        }
        for side in [Side::Source, Side::Target] {
            if let Some(next) = self.model.repair(&self.w, side) {
                self.w = next;
            }
        }
        self.settle();
        self.w != before
    }

    /// Nothing else moves: time passes.
    fn time_passes(&mut self) -> bool {
        // A question that was not answered for long is asked again.
        if self.asked.take().is_some() && self.source_turn() {
            return true;
        }
        if let Power::Paused { key } = self.model.host(&self.w, Side::Source).power {
            self.w = self.model.host_event(&self.w, Side::Source, &HostEvent::Watchdog { key });
            self.settle();
            return true;
        }
        let waits = |c: &Command| matches!(c, Command::Patience(_));
        if self.model.source_commands(&self.w).iter().any(|(_, c)| waits(c))
            && self.source_takes(&SourceEvent::TimedOut)
        {
            return true;
        }
        let waits = |c: &target::Command| matches!(c, target::Command::Patience(_));
        let attempt = self.model.target(&self.w).map(|t| t.attempt).unwrap_or_default();
        self.model.target_commands(&self.w).iter().any(|(_, c)| waits(c))
            && self.target_takes(attempt, &TargetEvent::TimedOut)
    }

    /// The planned failure, if its step has come; `true` if it changed something.
    fn fail(&mut self) -> bool {
        let Some((step, side, failure)) = self.plan.failure else { return false };
        let at_target = side == TableSide::Target;
        let here = match side {
            TableSide::Source => self.model.source(&self.w).phase.step(),
            TableSide::Target => match self.model.target(&self.w) {
                Some(t) => t.phase.step(),
                None => return false,
            },
        };
        if self.failed || here != step {
            return false;
        }
        self.failed = true;
        let attempt = self.model.target(&self.w).map(|t| t.attempt).unwrap_or_default();
        let why = String::new;
        match failure {
            Failure::SourceHostDies => {
                self.w = self.model.host_event(&self.w, Side::Source, &HostEvent::HostRestarted);
                self.settle();
                true
            }
            Failure::TargetHostDies => {
                self.w = self.model.host_event(&self.w, Side::Target, &HostEvent::HostRestarted);
                self.settle();
                true
            }
            Failure::SourceHostRefuses => self.source_takes(&SourceEvent::SourceRefused { why: why() }),
            Failure::TargetRefuses if at_target => self.target_takes(attempt, &TargetEvent::HostRefused { why: why() }),
            Failure::TargetRefuses => self.source_takes(&SourceEvent::TargetRefused { why: why() }),
            Failure::NothingHappens if at_target => self.target_takes(attempt, &TargetEvent::TimedOut),
            Failure::NothingHappens => self.source_takes(&SourceEvent::TimedOut),
        }
    }

    fn run(&mut self) -> Outcome {
        if !self.started {
            // Before this write there is no job, only a client that repeats its request.
            self.pass(Step::Queue, TableSide::Source, Moment::BeforeWrite);
            self.started = true;
            self.pass(Step::Queue, TableSide::Source, Moment::AfterWrite);
        }
        for _ in 0..2_000 {
            let died = self.died.len();
            let here = self.model.source(&self.w).phase.step();
            if let Some((_, event)) = self.plan.said.pop_front_if(|(step, _)| *step == here) {
                self.source_takes(&event);
                continue;
            }
            if let Some(next) = self.model.last_round(&self.w) {
                self.w = next;
            }
            // A question may have brought the target to its step, so it is looked again before the target acts.
            if self.fail()
                || self.source_turn()
                || self.fail()
                || self.target_turn()
                || self.surroundings()
                || self.died.len() > died
            {
                continue;
            }
            if let Some(end) = self.model.end(&self.w) {
                return Outcome::Ended(end);
            }
            if self.model.parked(&self.w).is_some() {
                if let Some(said) = self.plan.parked.take() {
                    self.source_takes(&said);
                    continue;
                }
                return Outcome::Parked;
            }
            if !self.time_passes() {
                break;
            }
        }
        panic!(
            "{:?} never ended: source {:?}, target {:?}, hosts {:?} {:?}",
            self.plan,
            self.model.source(&self.w).phase,
            self.model.target(&self.w).map(|t| &t.phase),
            self.model.host(&self.w, Side::Source).power,
            self.model.host(&self.w, Side::Target).power
        )
    }
}

fn promised(point: KillPoint) -> Outcome {
    match point.step.row().after_node_death {
        Some(JobState::Completed) => Outcome::Ended(End::Completed),
        other => panic!("no saga for a promise of {other:?} at {point}"),
    }
}

#[test]
fn a_death_at_each_point_of_the_way_forward_ends_as_its_row_promises() {
    for point in KillPoint::all_forward() {
        for back in [Return::Soon, Return::Late] {
            let mut saga = Saga::new(Plan { deaths: vec![(point, Some(back))], ..Plan::default() });
            assert_eq!(saga.run(), promised(point), "{point} {back:?}");
            assert_eq!(saga.died, [point], "{point} was not passed");
        }
    }
    println!("{} points, each with a return before and after the watchdog", KillPoint::all_forward().len());
}

#[test]
fn any_two_deaths_end_as_promised() {
    let points = KillPoint::all_forward();
    let mut both = 0;
    for first in &points {
        for second in &points {
            for back in [Return::Soon, Return::Late] {
                let deaths = vec![(*first, Some(back)), (*second, Some(back))];
                let mut saga = Saga::new(Plan { deaths, ..Plan::default() });
                assert_eq!(saga.run(), promised(*first), "{first} then {second} {back:?}");
                both += u32::from(saga.died.len() == 2);
            }
        }
    }
    // A second point that lies before the first is passed only if an attempt is repeated.
    println!("{} runs, in {both} of them both nodes died", points.len() * points.len() * 2);
}

#[test]
fn each_command_and_outcome_twice_changes_nothing() {
    let mut saga = Saga::new(Plan { twice: true, ..Plan::default() });
    assert_eq!(saga.run(), Outcome::Ended(End::Completed));
    assert_eq!(saga.model.source(&saga.w).attempt, Attempt(1), "no attempt was lost to a repeat");
    let mut cancelled =
        Saga::new(Plan { twice: true, said: [(Step::Hold, SourceEvent::Cancel)].into(), ..Plan::default() });
    assert_eq!(cancelled.run(), Outcome::Ended(End::Cancelled));
    for row in STEPS.iter().filter(|row| !matches!(row.step, Step::Queue | Step::End | Step::Park)) {
        let repeated = saga.repeats.contains_key(&row.step) || cancelled.repeats.contains_key(&row.step);
        assert!(repeated || row.step == Step::Resume, "{} was not repeated", row.name);
    }
    let mut early =
        Saga::new(Plan { twice: true, said: [(Step::Copy, SourceEvent::Cancel)].into(), ..Plan::default() });
    assert_eq!(early.run(), Outcome::Ended(End::Cancelled));
    assert!(early.repeats.contains_key(&Step::Resume));
}

/// How a step is come to if it does not lie on the way forward.
fn scenario(step: Step) -> Plan {
    match step {
        Step::Resume => Plan { said: [(Step::Copy, SourceEvent::Cancel)].into(), ..Plan::default() },
        Step::Revive | Step::Discard => Plan { said: [(Step::Hold, SourceEvent::Cancel)].into(), ..Plan::default() },
        Step::Park => Plan {
            said: [(Step::Copy, SourceEvent::Quarantined)].into(),
            parked: Some(SourceEvent::Retry),
            ..Plan::default()
        },
        Step::Queue
        | Step::Reserve
        | Step::Prepare
        | Step::Copy
        | Step::Pause
        | Step::Seal
        | Step::Hold
        | Step::Decide
        | Step::Switch
        | Step::Verify
        | Step::End => Plan::default(),
    }
}

fn shown(saga: &Saga, outcome: Outcome) -> String {
    let name = match outcome {
        Outcome::Ended(End::Completed) => "completed",
        Outcome::Ended(End::RolledBack) => "rolled-back",
        Outcome::Ended(End::Cancelled) => "cancelled",
        Outcome::Parked => "parked",
    };
    format!("{name}/{}", saga.model.source(&saga.w).attempt)
}

/// How a job ends, and with which attempt, after something failed once at a step: the source's host dies, the target's
/// host dies, the source's host says no, the target (or its host) says no, nothing happens until patience ends.
/// Reviving is reached by a cancel at the hold, resuming by one while copying, parking by a quarantine while copying.
/// A target whose host died after it sealed has the disk and no memory: once decided, it waits for a person's word.
const AFTER_A_FAILURE: &str = "
    queue    source   rolled-back/1 completed/1   completed/1   completed/1   completed/1
    reserve  source   rolled-back/1 completed/1   rolled-back/1 rolled-back/1 rolled-back/1
    reserve  target   rolled-back/1 completed/1   rolled-back/1 completed/1   rolled-back/1
    prepare  source   rolled-back/1 completed/1   rolled-back/1 rolled-back/1 rolled-back/1
    prepare  target   rolled-back/1 completed/1   rolled-back/1 completed/2   rolled-back/1
    copy     source   rolled-back/1 completed/1   rolled-back/1 rolled-back/1 rolled-back/1
    pause    source   rolled-back/1 completed/2   completed/2   completed/2   completed/2
    seal     source   rolled-back/2 completed/2   completed/2   completed/2   completed/2
    seal     target   rolled-back/2 completed/2   completed/2   completed/2   completed/1
    hold     source   rolled-back/1 parked/1      completed/2   completed/1   completed/1
    decide   source   completed/1   parked/1      completed/1   completed/1   completed/1
    switch   source   completed/1   parked/1      completed/1   completed/1   completed/1
    switch   target   completed/1   parked/1      completed/1   parked/1      completed/1
    verify   source   completed/1   completed/1   completed/1   completed/1   completed/1
    verify   target   completed/1   completed/1   completed/1   completed/1   completed/1
    resume   source   cancelled/1   cancelled/1   cancelled/1   cancelled/1   cancelled/1
    revive   source   cancelled/1   cancelled/1   cancelled/1   cancelled/1   cancelled/1
    discard  target   cancelled/1   cancelled/1   cancelled/1   cancelled/1   cancelled/1
    park     source   rolled-back/1 completed/1   completed/1   completed/1   completed/1
    end      source   completed/1   completed/1   completed/1   completed/1   completed/1
    end      target   completed/1   completed/1   completed/1   completed/1   completed/1
";

/// Lines of a table, their words with single spaces between them.
fn lines(table: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    table.lines().map(words).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_failure_at_each_step_ends_as_its_line_says() {
    let mut seen = Vec::new();
    for row in STEPS {
        for side in row.sides {
            let mut line = format!("{} {}", row.name, side.name());
            for failure in FAILURES {
                let mut saga = Saga::new(Plan { failure: Some((row.step, *side, failure)), ..scenario(row.step) });
                let outcome = saga.run();
                assert!(saga.failed, "{line}: {failure:?} was not come to");
                line += &format!(" {}", shown(&saga, outcome));
            }
            seen.push(line);
        }
    }
    assert_eq!(seen, lines(AFTER_A_FAILURE), "\n{}", seen.join("\n"));
}

/// How a job ends that was quarantined at a step, once a person says: retry, probe, undo, abandon. After the decision
/// there is only forward: undo and abandon are refused and it stays parked.
const AFTER_A_PERSON: &str = "
    reserve  completed/1 completed/1 rolled-back/1 rolled-back/1
    prepare  completed/1 completed/1 rolled-back/1 rolled-back/1
    copy     completed/1 completed/1 rolled-back/1 rolled-back/1
    pause    completed/1 completed/1 rolled-back/1 rolled-back/1
    seal     completed/1 completed/1 rolled-back/1 rolled-back/1
    hold     completed/1 completed/1 rolled-back/1 rolled-back/1
    decide   completed/1 completed/1 rolled-back/1 rolled-back/1
    switch   completed/1 completed/1 parked/1      parked/1
    verify   completed/1 completed/1 parked/1      parked/1
    resume   cancelled/1 cancelled/1 cancelled/1   cancelled/1
    revive   cancelled/1 cancelled/1 cancelled/1   cancelled/1
";

#[test]
fn a_parked_job_ends_as_its_person_says() {
    let mut seen = Vec::new();
    for row in STEPS.iter().filter(|row| row.sides.contains(&TableSide::Source)) {
        if matches!(row.step, Step::Queue | Step::Park | Step::End) {
            // In line it is not at rest for a moment; parked it is already; over it is over.
            continue;
        }
        let mut line = row.name.to_owned();
        for said in [SourceEvent::Retry, SourceEvent::Probe, SourceEvent::Undo, SourceEvent::Abandon] {
            let mut plan = Plan { parked: Some(said), ..scenario(row.step) };
            plan.said.extend([(row.step, SourceEvent::Quarantined)]);
            let mut saga = Saga::new(plan);
            let outcome = saga.run();
            assert!(saga.plan.parked.is_none(), "{line} was not parked");
            line += &format!(" {}", shown(&saga, outcome));
        }
        seen.push(line);
    }
    assert_eq!(seen, lines(AFTER_A_PERSON), "\n{}", seen.join("\n"));
}
