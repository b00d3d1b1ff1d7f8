//! What each part of the world does when it is asked. Owns: the product's cores and rules, called as their shells call
//! them, and the ways in which a test breaks them. Always: an outcome is put on its way, never handed over at once, so
//! that it may come late; which event an answer is, the product's own `outcomes.rs` says here as it does to the shells.
//! Abstracted: the notes for people (they decide nothing) and all figures of a transfer but "it fits" and "it never will".

use std::collections::BTreeMap;
use std::rc::Rc;

use novafed::decision::converge::{Repair, converge};
use novafed::decision::migration::outcomes::{self, Cold, Said};
use novafed::decision::migration::source::{self, Event as SourceEvent, HostView, Phase as SourcePhase, Source};
use novafed::decision::migration::steps::Step;
use novafed::decision::migration::target::{self, Event as TargetEvent, Phase as TargetPhase, Target};
use novafed::decision::migration::{TargetAnswer, TargetRequest, Verdict};
use novafed::decision::ownership::{Decision, DecisionAnswer, Proposed, VmDecisions};
use novafed::drivers::SwitchKey;
use novafed::drivers::embedded::rules::{Effect, Event as HostEvent, Power, Refusal, Rules, Stage};
use novafed::types::{Attempt, Place, Sight, VmRecord};

use super::intern::{Interner, Memo, remember};
use super::names;
use super::world::{self, Call, Planted, Side, World};

/// What a call did at a host, besides its state.
#[derive(Debug, Clone, Copy)]
struct HostStep {
    next: u16,
    forgets_round: bool,
    verifies: bool,
    activates: bool,
}

/// The world after a command, and its outcomes.
type Heard = (World, Vec<SourceEvent>);

/// What a core said to an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It advanced to this world.
    Advanced(World),
    /// It changed nothing.
    Ignored,
    /// It said no.
    Refused,
}

/// Commands with their numbers.
pub type Numbered<C> = Rc<[(u16, C)]>;

/// The parts by number, and how they behave.
pub struct Model {
    planted: Option<Planted>,
    from: Place,
    to: Place,
    /// The VM's record at its source and at its target.
    records: [VmRecord; 2],
    sources: Interner<Source>,
    targets: Interner<Option<Target>>,
    logs: Interner<VmDecisions>,
    hosts: Interner<Rules>,
    pub source_events: Interner<SourceEvent>,
    pub target_events: Interner<TargetEvent>,
    calls: Interner<Call>,
    /// By state and event, with how often it was fed.
    source_steps: Memo<(u16, u16), (Verdict<u16>, u64)>,
    /// By state, attempt and event.
    target_steps: Memo<(u16, u32, u16), (Verdict<u16>, u64)>,
    host_steps: Memo<(u16, HostEvent), Result<HostStep, Refusal>>,
    source_commands: Interner<source::Command>,
    target_commands: Interner<target::Command>,
    late: Memo<(u16, u16, u8), bool>,
    commands_of_source: Memo<u16, Numbered<source::Command>>,
    commands_of_target: Memo<u16, Numbered<target::Command>>,
    /// Set when a step broke the law.
    pub violation: Option<&'static str>,
}

impl Model {
    /// A model in which `planted`, if any, is wrong and a job may take `attempts`; and the world as it begins.
    pub fn new(planted: Option<Planted>, attempts: u32) -> (Model, World) {
        let mut model = Model {
            planted,
            from: world::from(),
            to: world::to(),
            records: [world::record(world::FENCE), world::record(world::next_fence())],
            sources: Interner::default(),
            targets: Interner::default(),
            logs: Interner::default(),
            hosts: Interner::default(),
            source_events: Interner::default(),
            target_events: Interner::default(),
            calls: Interner::default(),
            source_steps: Memo::default(),
            target_steps: Memo::default(),
            host_steps: Memo::default(),
            source_commands: Interner::default(),
            target_commands: Interner::default(),
            late: Memo::default(),
            commands_of_source: Memo::default(),
            commands_of_target: Memo::default(),
            violation: None,
        };
        let running = Rules { fence: world::FENCE, power: Power::Running, ..Rules::default() };
        let first = World {
            source: model.sources.id(&world::queued(attempts)),
            target: model.targets.id(&None),
            log: model.logs.id(&VmDecisions::default()),
            source_host: model.hosts.id(&running),
            target_host: model.hosts.id(&Rules::default()),
            source_inbox: 0,
            target_inbox: 0,
            stale: 0,
            last_round: 0,
            fresh: false,
            moved: false,
            discard_owed: false,
            faults: 0,
            persons: 0,
        };
        (model, first)
    }

    pub fn source(&self, w: &World) -> &Source {
        self.sources.get(w.source)
    }
    pub fn target(&self, w: &World) -> Option<&Target> {
        self.targets.get(w.target).as_ref()
    }
    pub fn log(&self, w: &World) -> &VmDecisions {
        self.logs.get(w.log)
    }
    pub fn host(&self, w: &World, side: Side) -> &Rules {
        match side {
            Side::Source => self.hosts.get(w.source_host),
            Side::Target => self.hosts.get(w.target_host),
        }
    }
    /// What the source's core wants done.
    pub fn source_commands(&mut self, w: &World) -> Numbered<source::Command> {
        let (sources, table) = (&self.sources, &mut self.source_commands);
        remember(&mut self.commands_of_source, w.source, |at| {
            source::commands(sources.get(*at)).into_iter().map(|c| (table.id(&c), c)).collect()
        })
    }
    /// What the target's core wants done; nothing while there is none.
    pub fn target_commands(&mut self, w: &World) -> Numbered<target::Command> {
        let (targets, table) = (&self.targets, &mut self.target_commands);
        remember(&mut self.commands_of_target, w.target, |at| {
            let wanted = targets.get(*at).as_ref().map(target::commands).unwrap_or_default();
            wanted.into_iter().map(|c| (table.id(&c), c)).collect()
        })
    }
    pub fn source_command(&self, id: u16) -> &source::Command {
        self.source_commands.get(id)
    }
    pub fn target_command(&self, id: u16) -> &target::Command {
        self.target_commands.get(id)
    }
    pub fn planted(&self) -> Option<Planted> {
        self.planted
    }
    pub fn call(&self, id: u16) -> &Call {
        self.calls.get(id)
    }
    /// How many distinct states each part took: source, target, host, calls.
    pub fn parts(&self) -> [usize; 4] {
        [self.sources.len(), self.targets.len(), self.hosts.len(), self.calls.len()]
    }

    // -- the cores -------------------------------------------------------------

    /// Feeds the source's core with what belongs to its present attempt and step.
    pub fn feed_source(&mut self, w: &World, event: u16) -> Taken {
        let (sources, events) = (&mut self.sources, &self.source_events);
        let known = self.source_steps.entry((w.source, event)).or_insert_with(|| {
            let state = sources.get(w.source);
            let verdict = match source::step(state, &source_input(state, events.get(event).clone())) {
                Verdict::Advance(next) => Verdict::Advance(sources.id(&Source { note: None, ..next })),
                Verdict::Ignore(why) => Verdict::Ignore(why),
                Verdict::Refuse(why) => Verdict::Refuse(why),
            };
            (verdict, 0)
        });
        known.1 += 1;
        let next = match known.0 {
            Verdict::Advance(next) => next,
            Verdict::Ignore(_) => return Taken::Ignored,
            Verdict::Refuse(_) => return Taken::Refused,
        };
        let mut out = World { source: next, ..*w };
        let (left, live) = (self.source_commands(w), self.source_commands(&out));
        let (before, after) = (self.sources.get(w.source), self.sources.get(next));
        for (_, command) in left.iter() {
            use source::Command as C;
            let acts = !matches!(command, C::Copy | C::Observe | C::Patience(_));
            if acts && (before.attempt != after.attempt || !live.iter().any(|(_, c)| c == command)) {
                out.stale |= self.calls.bit(&Call::Source(before.attempt, command.clone()));
            }
        }
        if (before.attempt, before.phase.step()) != (after.attempt, after.phase.step()) {
            out.source_inbox = 0;
        }
        if source::writes(before, after).contains(&source::Write::OweDiscard) {
            out.discard_owed = true;
        }
        Taken::Advanced(out)
    }

    /// Feeds the target's core with what belongs to `attempt` and, unless it is a question, to its present step.
    pub fn feed_target(&mut self, w: &World, attempt: Attempt, event: u16) -> Taken {
        let (targets, events) = (&mut self.targets, &self.target_events);
        let known = self.target_steps.entry((w.target, attempt.0, event)).or_insert_with(|| {
            let verdict = match targets.get(w.target) {
                Some(state) => target::step(state, &target_input(state, attempt, events.get(event).clone())),
                None => Verdict::Ignore("there is no such job"),
            };
            let verdict = match verdict {
                Verdict::Advance(next) => Verdict::Advance(targets.id(&Some(next))),
                Verdict::Ignore(why) => Verdict::Ignore(why),
                Verdict::Refuse(why) => Verdict::Refuse(why),
            };
            (verdict, 0)
        });
        known.1 += 1;
        let next = match known.0 {
            Verdict::Advance(next) => next,
            Verdict::Ignore(_) => return Taken::Ignored,
            Verdict::Refuse(_) => return Taken::Refused,
        };
        let mut out = World { target: next, ..*w };
        let (left, live) = (self.target_commands(w), self.target_commands(&out));
        if let (Some(before), Some(after)) = (self.targets.get(w.target), self.targets.get(next)) {
            for (_, command) in left.iter() {
                use target::Command as C;
                let acts = !matches!(command, C::AskDecision | C::SeeItRun | C::Patience(_));
                if acts && (before.attempt != after.attempt || !live.iter().any(|(_, c)| c == command)) {
                    out.stale |= self.calls.bit(&Call::Target(before.attempt, *command));
                }
            }
            if (before.attempt, before.phase.step()) != (after.attempt, after.phase.step()) {
                out.target_inbox = 0;
            }
        }
        Taken::Advanced(out)
    }

    /// How often each (state, event) was fed, by name; inputs of other attempts do not count.
    pub fn pairs(&self) -> BTreeMap<(Side, &'static str, &'static str), u64> {
        let mut pairs = BTreeMap::new();
        for ((at, event), (_, hits)) in &self.source_steps {
            let event = names::source_event(self.source_events.get(*event));
            *pairs.entry((Side::Source, names::source_state(self.sources.get(*at)), event)).or_insert(0) += hits;
        }
        for ((at, attempt, event), (_, hits)) in &self.target_steps {
            if let Some(state) = self.targets.get(*at)
                && *attempt == state.attempt.0
            {
                let event = names::target_event(self.target_events.get(*event));
                *pairs.entry((Side::Target, names::target_state(state), event)).or_insert(0) += hits;
            }
        }
        pairs
    }

    // -- the hosts -------------------------------------------------------------

    fn break_rules(&self, side: Side, rules: &Rules, event: &HostEvent) -> Option<Rules> {
        let planted = self.planted.filter(|_| side == Side::Source)?;
        match (planted, event, rules.power) {
            (Planted::HoldAfterWatchdog, HostEvent::Hold { key }, Power::Running) if rules.is_spent(*key) => {
                Some(Rules { power: Power::Held { key: *key, lost: false }, ..rules.clone() })
            }
            (Planted::Repause, HostEvent::PauseForSwitch { key, .. }, Power::Running) if rules.is_spent(*key) => {
                Some(Rules { spent: None, power: Power::Paused { key: *key }, ..rules.clone() })
            }
            _ => None,
        }
    }

    /// Applies `event` at a host.
    fn call_host(&mut self, w: &World, side: Side, event: &HostEvent) -> Result<(World, HostStep), Refusal> {
        let at = match side {
            Side::Source => w.source_host,
            Side::Target => w.target_host,
        };
        let broken = self.break_rules(side, self.hosts.get(at), event);
        let hosts = &mut self.hosts;
        let step = match broken {
            Some(next) => HostStep { next: hosts.id(&next), forgets_round: false, verifies: false, activates: false },
            None => remember(&mut self.host_steps, (at, *event), |(at, event)| {
                let (next, effects) = hosts.get(*at).apply(event)?;
                let any = |wanted: fn(&Effect) -> bool| effects.iter().any(wanted);
                Ok(HostStep {
                    next: hosts.id(&next),
                    forgets_round: any(|e| {
                        matches!(e, Effect::OpenReceipt { .. } | Effect::AdoptReceipt { .. } | Effect::DropReceipt)
                    }),
                    verifies: any(|e| matches!(e, Effect::VerifyReceipt)),
                    activates: any(|e| matches!(e, Effect::ActivateReceipt | Effect::BootReceipt)),
                })
            })?,
        };
        let mut out = *w;
        match side {
            Side::Source => out.source_host = step.next,
            Side::Target => out.target_host = step.next,
        }
        if step.forgets_round {
            out.last_round = 0;
        }
        if step.activates && !w.fresh {
            self.violation = Some("the target starts without the guest's last writes");
        }
        Ok((out, step))
    }

    /// What happens to a host by itself: a restart, the watchdog.
    pub fn host_event(&mut self, w: &World, side: Side, event: &HostEvent) -> World {
        self.call_host(w, side, event).map_or(*w, |(next, _)| next)
    }

    /// Puts rules in place of a host's by force: what only a broken host does.
    pub fn force_host(&mut self, w: &World, side: Side, rules: &Rules) -> World {
        let id = self.hosts.id(rules);
        match side {
            Side::Source => World { source_host: id, ..*w },
            Side::Target => World { target_host: id, ..*w },
        }
    }

    /// The same with the log.
    pub fn force_log(&mut self, w: &World, log: &VmDecisions) -> World {
        World { log: self.logs.id(log), ..*w }
    }

    /// What a look at the host of a side shows.
    fn sight(&self, w: &World, side: Side) -> Option<Sight> {
        self.host(w, side).sight(2)
    }

    fn view(&self, w: &World, attempt: Attempt) -> HostView {
        outcomes::view(self.sight(w, Side::Source).as_ref(), world::key(attempt))
    }

    fn ask_source_host(
        &mut self,
        w: &World,
        step: Step,
        event: HostEvent,
        key: SwitchKey,
        done: &SourceEvent,
    ) -> Heard {
        let called = self.call_host(w, Side::Source, &event);
        let next = called.as_ref().map_or(*w, |(next, _)| *next);
        let heard = outcomes::of_source_host(said(&called), done.clone())
            .unwrap_or_else(|why| outcomes::of_refusal(self.sight(w, Side::Source).as_ref(), key, step, why));
        (next, vec![mute_source(heard)])
    }

    fn ask_target_host(&mut self, w: &World, event: HostEvent, done: TargetEvent) -> (World, TargetEvent) {
        let called = self.call_host(w, Side::Target, &event);
        let next = called.as_ref().map_or(*w, |(next, _)| *next);
        (next, outcomes::of_target_host(said(&called), done).expect("a host of the model is never unclear"))
    }

    // -- performing ------------------------------------------------------------

    /// Performs a command of the source's core for `attempt`; its outcomes are handed back.
    pub fn perform_source(&mut self, w: &World, attempt: Attempt, command: &source::Command) -> Heard {
        use source::Command as C;
        let key = world::key(attempt);
        let s = self.source(w);
        let (fence, after, deadline) = (s.fence, s.next_fence, s.rules.deadline);
        let step = s.phase.step();
        let host = |model: &mut Model, event, done| model.ask_source_host(w, step, event, key, &done);
        match command {
            C::AskTarget(request) => self.ask_target(w, attempt, request),
            C::Copy => {
                if let Some(lost) = outcomes::while_copying(self.view(w, attempt)) {
                    return (*w, vec![mute_source(lost)]);
                }
                if self.receives(w, attempt) {
                    let runs = self.host(w, Side::Source).power == Power::Running;
                    return (*w, runs.then(|| SourceEvent::Round(round(true))).into_iter().collect());
                }
                // The channel is cut: the target is asked once more whether it is prepared.
                let (next, answer) = self.put_to_target(w, attempt, &TargetRequest::Prepare);
                (next, answer.and_then(outcomes::of_target_while_cut).map(mute_source).into_iter().collect())
            }
            C::FinishCopy => {
                let (next, mut outcomes) = self.ask_target(w, attempt, &TargetRequest::Seal);
                outcomes.extend(self.watched(w, attempt));
                (next, outcomes)
            }
            C::Pause => host(self, HostEvent::PauseForSwitch { key, fence, deadline }, SourceEvent::Paused),
            C::Hold if self.planted == Some(Planted::NoHold) => (*w, vec![SourceEvent::Held]),
            C::Hold => host(self, HostEvent::Hold { key }, SourceEvent::Held),
            C::CancelPause => host(self, HostEvent::CancelPause { key }, SourceEvent::Resumed),
            C::ReleaseHold => host(self, HostEvent::ReleaseHold { key }, SourceEvent::Revived),
            C::Retire => match self.call_host(w, Side::Source, &HostEvent::Retire { key, fence: after }) {
                Ok((next, _)) => (next, vec![SourceEvent::Retired]),
                Err(_) => (*w, vec![]),
            },
            C::Decide(decision) => {
                let (next, stands) = self.propose(w, attempt, *decision);
                (next, vec![SourceEvent::Decided(stands)])
            }
            C::Observe => (*w, vec![SourceEvent::Observed(self.view(w, attempt))]),
            C::Patience(_) => (*w, vec![]),
        }
    }

    /// What is seen of the paused guest while its last round is on its way.
    pub fn watched(&self, w: &World, attempt: Attempt) -> Option<SourceEvent> {
        outcomes::while_sealing(self.view(w, attempt)).map(mute_source)
    }

    /// The first request makes the target's job.
    pub fn admit(&mut self, w: &World, attempt: Attempt) -> World {
        World { target: self.targets.id(&Some(world::reserved(attempt))), ..*w }
    }

    /// Proposes at the log; what stands then.
    pub fn propose(&mut self, w: &World, attempt: Attempt, decision: Decision) -> (World, Decision) {
        match self.log(w).propose(attempt, decision, &self.to, world::next_fence()) {
            Proposed::Recorded(record) => (World { log: self.logs.id(&record), ..*w }, decision),
            Proposed::Stands(stands) => (*w, stands),
            Proposed::Superseded(_) => (*w, Decision::Abort),
        }
    }

    /// Whether the target's host receives `attempt`.
    pub fn receives(&self, w: &World, attempt: Attempt) -> bool {
        let power = self.host(w, Side::Target).power;
        matches!(power, Power::Receiving { key, stage: Stage::Open, .. } if key.attempt == attempt)
    }

    /// The last round arrives, if there is one to send.
    pub fn last_round(&mut self, w: &World) -> Option<World> {
        let key = match self.host(w, Side::Source).power {
            Power::Paused { key } | Power::Held { key, lost: false } => key,
            _ => return None,
        };
        if !self.receives(w, key.attempt) {
            return None;
        }
        Some(World { last_round: u8::try_from(key.attempt.0).ok()?, fresh: true, ..*w })
    }

    /// Puts a question to the target's job; its answer, if it has one yet.
    fn put_to_target(&mut self, w: &World, attempt: Attempt, request: &TargetRequest) -> (World, Option<TargetAnswer>) {
        let mut at = *w;
        if self.target(w).is_none() {
            if *request != TargetRequest::Reserve {
                return (at, Some(TargetAnswer::Lost { why: String::new() }));
            }
            at = self.admit(w, attempt);
        }
        let asked = self.target_events.id(&TargetEvent::Asked(request.clone()));
        // A job that is over answers from its last state.
        match self.feed_target(&at, attempt, asked) {
            Taken::Refused => return (at, Some(TargetAnswer::Refused { why: String::new() })),
            Taken::Advanced(next) => at = next,
            Taken::Ignored => {}
        }
        (at, self.target(&at).and_then(|target| target::answer(target, attempt, request)))
    }

    fn ask_target(&mut self, w: &World, attempt: Attempt, request: &TargetRequest) -> Heard {
        let (next, answer) = self.put_to_target(w, attempt, request);
        (next, answer.and_then(outcomes::of_target).map(mute_source).into_iter().collect())
    }

    /// What the target's state answers to a question that was asked.
    pub fn answered(&self, w: &World, attempt: Attempt, request: &TargetRequest) -> Option<SourceEvent> {
        target::answer(self.target(w)?, attempt, request).and_then(outcomes::of_target).map(mute_source)
    }

    /// The owed discard arrives.
    pub fn discard(&mut self, w: &World) -> World {
        let attempt = self.source(w).attempt;
        let asked = self.target_events.id(&TargetEvent::Asked(TargetRequest::Discard));
        match self.feed_target(w, attempt, asked) {
            Taken::Advanced(next) => next,
            Taken::Ignored | Taken::Refused => *w,
        }
    }

    /// Performs a command of the target's core for `attempt`; its outcomes are handed back.
    pub fn perform_target(
        &mut self,
        w: &World,
        attempt: Attempt,
        command: &target::Command,
    ) -> (World, Vec<TargetEvent>) {
        use target::Command as C;
        let (key, fence) = (world::key(attempt), world::next_fence());
        let (next, heard) = match command {
            C::PrepareReceive => {
                self.ask_target_host(w, HostEvent::PrepareReceive { key, fence }, TargetEvent::HostPrepared)
            }
            C::SealReceive => {
                let unsealed =
                    |model: &Model, why| outcomes::of_unsealed(model.sight(w, Side::Target).as_ref(), key, why);
                match self.call_host(w, Side::Target, &HostEvent::SealReceive { key }) {
                    // The host verifies, finds the last round missing, and refuses.
                    Ok((_, step)) if step.verifies && u32::from(w.last_round) != attempt.0 => {
                        (*w, unsealed(self, String::new()))
                    }
                    Ok((next, _)) => (next, TargetEvent::HostSealed { digest: 0, tick: 1 }),
                    refused => match outcomes::of_target_host(said(&refused), TargetEvent::HostIncomplete) {
                        Some(TargetEvent::HostRefused { why }) => (*w, unsealed(self, why)),
                        other => (*w, other.expect("a host of the model is never unclear")),
                    },
                }
            }
            C::Activate => {
                let (next, heard) =
                    self.ask_target_host(w, HostEvent::Activate { key, fence }, TargetEvent::HostStarted);
                (next, outcomes::of_unstarted(heard))
            }
            C::StartCold => {
                let event = match outcomes::cold(self.sight(w, Side::Target).as_ref(), key, fence) {
                    Err(known) => return (*w, vec![mute_target(known)]),
                    Ok(Cold::ByReceipt) => HostEvent::Activate { key, fence },
                    Ok(Cold::ByDisk) => HostEvent::Start { fence },
                };
                let (next, heard) = self.ask_target_host(w, event, TargetEvent::HostStarted);
                (next, outcomes::of_unstarted(heard))
            }
            C::SeeItRun => match outcomes::of_started(self.sight(w, Side::Target).as_ref()) {
                Some(heard) => (*w, heard),
                None => return (*w, vec![]),
            },
            C::SeeItLookedAfter => {
                let (record, seen) = (Some(&self.records[1]), self.sight(w, Side::Target));
                match outcomes::of_looked_after(record, &self.to.cluster, fence, seen.as_ref()) {
                    Some(heard) => (*w, heard),
                    None => return (*w, vec![]),
                }
            }
            C::DiscardReceive => self.ask_target_host(w, HostEvent::DiscardReceive { key }, TargetEvent::HostDiscarded),
            C::AskDecision => match self.log(w).answer(attempt) {
                DecisionAnswer::Undecided => return (*w, vec![]),
                told => (*w, TargetEvent::Told(told)),
            },
            C::Patience(_) => return (*w, vec![]),
        };
        (next, vec![mute_target(heard)])
    }

    // -- the clusters' repairs ---------------------------------------------------

    /// What the cluster of a side wants mended, and the world after it did.
    pub fn repair(&mut self, w: &World, side: Side) -> Option<World> {
        let rules = self.host(w, side).clone();
        let seen = rules.sight(2);
        let (here, record, decisions, job) = match side {
            Side::Source => {
                let s = self.source(w);
                let over = matches!(s.phase, SourcePhase::Ended(_));
                let decisions = self.log(w).clone();
                let owns = decisions.moved.is_none();
                (&self.from, owns.then_some(&self.records[0]), decisions, !over)
            }
            Side::Target => {
                let t = self.target(w)?;
                let over = matches!(t.phase, TargetPhase::Running { .. } | TargetPhase::Discarded);
                let decisions = VmDecisions::default().arrived(t.attempt);
                (&self.to, t.owns().then_some(&self.records[1]), decisions, !over)
            }
        };
        // Owed once the source knows of the transfer; a store that forgets it forgets what was owed too.
        let owes = side == Side::Source && self.source(w).decided_transfer() && decisions.moved.is_some();
        let owed = owes.then_some(self.source(w).next_fence);
        let call = match converge(here, record, &decisions, owed.as_slice(), job, seen.as_ref(), true) {
            Repair::Nothing | Repair::Report(_) => return None,
            Repair::Create => HostEvent::Create { fence: record?.fence },
            Repair::Start => HostEvent::Start { fence: record?.fence },
            Repair::Stop => HostEvent::Stop { fence: record?.fence },
            // A clean-up names the job, and is owed from the moment that the job knows of the transfer.
            Repair::Retire { .. } if !self.source(w).decided_transfer() => return None,
            Repair::Retire { fence } => HostEvent::Retire { key: rules.newest?, fence },
            Repair::ReleaseHold(key) => HostEvent::ReleaseHold { key },
            Repair::AbortAndResume(key) => {
                let (recorded, _) = self.propose(w, key.attempt, Decision::Abort);
                return Some(self.host_event(&recorded, side, &HostEvent::CancelPause { key }));
            }
        };
        let mut next = self.host_event(w, side, &call);
        next.stale |= self.calls.bit(&Call::Repair(side, call));
        Some(next)
    }

    /// Whether a late arrival of the call `id` changes anything. It depends on one part of the world alone, so it is
    /// known for most worlds without trying.
    pub fn late_matters(&mut self, w: &World, id: u16) -> bool {
        use source::Command as C;
        let part = match self.call(id) {
            Call::Source(_, C::AskTarget(_) | C::FinishCopy) => w.target,
            Call::Source(_, C::Decide(_)) => w.log,
            Call::Source(..) | Call::Repair(Side::Source, _) => w.source_host,
            Call::Target(..) | Call::Repair(Side::Target, _) => w.target_host,
        };
        let key = (id, part, w.last_round);
        if let Some(known) = self.late.get(&key) {
            return *known;
        }
        let call = self.call(id).clone();
        let matters = self.arrive_late(w, &call) != *w;
        // What it broke, if so, is told when the move is made.
        self.violation = None;
        self.late.insert(key, matters);
        matters
    }

    /// Something that was sent long ago arrives.
    pub fn arrive_late(&mut self, w: &World, call: &Call) -> World {
        match call {
            Call::Source(attempt, command) => self.perform_source(w, *attempt, command).0,
            Call::Target(attempt, command) => self.perform_target(w, *attempt, command).0,
            Call::Repair(side, event) => self.host_event(w, *side, event),
        }
    }
}

/// `event` as the shell of the source's side tells it: of the present attempt, and of the present step unless somebody
/// speaks to the job as a whole.
pub fn source_input(state: &Source, event: SourceEvent) -> source::Input {
    use SourceEvent as E;
    let said = matches!(event, E::Cancel | E::Retry | E::Probe | E::Undo | E::Abandon | E::Quarantined);
    source::Input { attempt: state.attempt, step: (!said).then(|| state.phase.step()), event }
}

/// The same of the target's side, where questions name their attempt and no step.
pub fn target_input(state: &Target, attempt: Attempt, event: TargetEvent) -> target::Input {
    let asked = matches!(event, TargetEvent::Asked(_));
    target::Input { attempt, step: (!asked).then(|| state.phase.step()), event }
}

/// What a round is judged by: it fits, or never will.
pub fn round(fits: bool) -> source::Round {
    source::Round {
        rounds: if fits { 1 } else { u32::MAX },
        remaining_bytes: if fits { 0 } else { u64::MAX },
        bytes_per_second: 1,
        dirty_bytes_per_second: 1,
        overhead_us: 0,
        decider_reachable: true,
    }
}

/// How a host's call ended, in the words of its driver.
fn said<T>(called: &Result<T, Refusal>) -> Said {
    match called {
        Ok(_) => Said::Done,
        Err(Refusal::NotFound) => Said::NotFound { why: String::new() },
        Err(_) => Said::Refused { why: String::new() },
    }
}

/// The same without its words for people, which would tell worlds apart that are one.
fn mute_source(event: SourceEvent) -> SourceEvent {
    let why = String::new();
    match event {
        SourceEvent::SourceLost { .. } => SourceEvent::SourceLost { why },
        SourceEvent::SourceRefused { .. } => SourceEvent::SourceRefused { why },
        SourceEvent::TargetLost { .. } => SourceEvent::TargetLost { why },
        SourceEvent::TargetRefused { .. } => SourceEvent::TargetRefused { why },
        other => other,
    }
}

/// The same of the target's.
fn mute_target(event: TargetEvent) -> TargetEvent {
    let why = String::new();
    match event {
        TargetEvent::HostLost { .. } => TargetEvent::HostLost { why },
        TargetEvent::HostRefused { .. } => TargetEvent::HostRefused { why },
        other => other,
    }
}
