//! The restart budget against a model that knows only the rules: random histories of a supervisor whose children
//! start, fail, hang and end at any moment.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, ProptestConfig, any, prop_oneof, proptest};

use super::*;
use crate::types::limits::{RESTART_WINDOW_MS, RESTARTS_MAX};

const RESTARTS: u32 = 2;
const CRASHES: u32 = 4;
const BUDGET: Budget = Budget {
    restarts_max: RESTARTS,
    window: Millis(3_000),
    pause_min: Millis(10),
    pause_max: Millis(200),
    wait_max: Millis(500),
};

/// A life as the outside world sees it.
#[derive(Debug, Clone, Copy)]
struct Alive {
    incarnation: u64,
    runs: bool,
    told: bool,
}

/// What the rules say that a child is, apart from whether it is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    /// It shall run; its next start costs budget or not, and not before that moment.
    Run {
        costs: bool,
        earliest: Tick,
    },
    Parked,
    Stopped,
}

#[derive(Debug, Clone)]
struct Rules {
    policy: ChildPolicy,
    intent: Intent,
    /// It is to be stopped: alone or with a group, and what is intended then, `None` to forget it.
    doom: Option<(bool, Option<Intent>)>,
    crashes: u32,
    incarnation: u64,
    /// All restarts that cost budget, ever.
    paid: Vec<Tick>,
}

/// The model. It looks at events and commands only.
struct Model {
    strategy: Strategy,
    now: Tick,
    order: Vec<String>,
    rules: BTreeMap<String, Rules>,
    alive: BTreeMap<String, Alive>,
    /// Set once everything is to be stopped: `true` if it gave up.
    ending: Option<bool>,
    ended: bool,
    wake: Option<Tick>,
    persisted: BTreeMap<String, u32>,
    starts: u32,
    cycles: u32,
}

impl Model {
    fn later(&self, id: &str) -> Vec<String> {
        self.order.iter().skip_while(|other| *other != id).skip(1).cloned().collect()
    }

    fn doom_group(&mut self, members: Vec<String>) {
        let free = Intent::Run { costs: false, earliest: self.now };
        for member in members.iter().filter(|member| self.alive.contains_key(*member)) {
            self.cycles += 1;
            let rules = self.rules.get_mut(member).expect("it is listed");
            rules.doom = Some((true, rules.doom.map_or(Some(free), |(_, then)| then)));
        }
    }

    fn cycle(&mut self, id: &str) {
        let members = match self.strategy {
            Strategy::OneForOne => Vec::new(),
            Strategy::RestForOne => self.later(id),
            Strategy::OneForAll => self.order.clone(),
        };
        self.doom_group(members);
    }

    fn forget(&mut self, id: &str) {
        self.order.retain(|other| other != id);
        self.rules.remove(id);
        self.persisted.remove(id);
    }

    fn end_all(&mut self, gave_up: bool) {
        if self.ending.is_none() {
            self.ending = Some(gave_up);
            self.doom_group(self.order.clone());
        }
    }

    fn paid_in_window(&self, id: &str) -> u32 {
        let window = BUDGET.window.0;
        self.rules[id].paid.iter().filter(|paid| paid.0 + window > self.now.0).count() as u32
    }

    /// A life ended without having been told to.
    fn fell(&mut self, id: &str, class: ExitClass) {
        let now = self.now;
        let paid = self.paid_in_window(id);
        let rules = self.rules.get_mut(id).expect("it is listed");
        if let Some((_, then)) = rules.doom.take() {
            match then {
                Some(intent) => rules.intent = intent,
                None => self.forget(id),
            }
            return;
        }
        let restart = rules.policy.restart;
        let job = rules.policy.crashes_max;
        let unpaid = Intent::Run { costs: false, earliest: now.plus(BUDGET.pause_min) };
        match class {
            ExitClass::Poison => {
                rules.intent = Intent::Parked;
                if let Some(max) = job {
                    rules.crashes = rules.crashes.max(max);
                }
            }
            _ if restart == Restart::Temporary => return self.forget(id),
            ExitClass::Normal if restart == Restart::Transient => return self.forget(id),
            ExitClass::DependencyDown => rules.intent = unpaid,
            ExitClass::Normal | ExitClass::Crash => {
                if class == ExitClass::Crash && job.is_some() {
                    rules.crashes += 1;
                }
                if class == ExitClass::Crash && job.is_some_and(|max| rules.crashes >= max) {
                    rules.intent = Intent::Parked;
                } else if paid < RESTARTS {
                    rules.intent = Intent::Run { costs: true, earliest: now.plus(BUDGET.pause_min) };
                } else if job.is_some() {
                    rules.intent = Intent::Parked;
                } else {
                    return self.end_all(true);
                }
            }
        }
        self.cycle(id);
    }

    fn obey(&mut self, commands: &[Command]) {
        self.wake = None;
        for command in commands {
            match command {
                Command::Start { child, incarnation } => self.started(child.as_str(), incarnation.0),
                Command::Stop { child, incarnation, shutdown } => {
                    let rules = &self.rules[child.as_str()];
                    assert_eq!(*shutdown, rules.policy.shutdown);
                    let (group, _) = rules.doom.expect("only what shall stop is told to");
                    if group {
                        for later in self.later(child.as_str()) {
                            let doomed = self.rules[&later].doom.is_some_and(|(group, _)| group);
                            assert!(!(doomed && self.alive.contains_key(&later)), "{child} is stopped before {later}");
                        }
                    }
                    let alive = self.alive.get_mut(child.as_str()).expect("only the living are told to stop");
                    assert_eq!(alive.incarnation, incarnation.0);
                    assert!(!std::mem::replace(&mut alive.told, true), "told once");
                }
                Command::StartAt(tick) => {
                    assert!(*tick > self.now && *tick <= self.now.plus(BUDGET.wait_max), "wakes in time");
                    self.wake = Some(*tick);
                }
                Command::Park { child, .. } => assert_eq!(self.rules[child.as_str()].intent, Intent::Parked),
                Command::PersistCrash { child, count, .. } => {
                    assert_eq!(*count, self.rules[child.as_str()].crashes);
                    self.persisted.insert(child.to_string(), *count);
                }
                Command::ClearCrashes { child } => {
                    assert!(self.rules.get(child.as_str()).is_none_or(|rules| rules.crashes == 0));
                    self.persisted.remove(child.as_str());
                }
                Command::Forget { child } => assert!(!self.rules.contains_key(child.as_str()), "{child} is needed"),
                Command::Escalate { .. } => self.over(true),
                Command::Finished => self.over(false),
            }
        }
    }

    fn started(&mut self, id: &str, incarnation: u64) {
        assert!(self.ending.is_none(), "nothing starts any more");
        assert!(!self.alive.contains_key(id), "two lives of {id} at once");
        let rules = &self.rules[id];
        assert!(incarnation > rules.incarnation, "numbers grow");
        let Intent::Run { costs, earliest } = rules.intent else { panic!("{id} shall not run: {:?}", rules.intent) };
        assert!(self.now >= earliest, "{id} is started without a pause");
        if self.strategy != Strategy::OneForOne {
            for earlier in self.order.iter().take_while(|earlier| *earlier != id) {
                let ready = match self.alive.get(earlier) {
                    Some(alive) => alive.runs && !alive.told,
                    None => matches!(self.rules[earlier].intent, Intent::Parked | Intent::Stopped),
                };
                assert!(ready, "{id} is started before {earlier} runs");
            }
            let falling = |id: &String| self.rules[id].doom.is_some_and(|(group, _)| group);
            assert!(!self.alive.keys().any(falling), "{id} is started while its group is still stopping");
        }
        let rules = self.rules.get_mut(id).expect("it is listed");
        rules.incarnation = incarnation;
        if costs {
            rules.paid.push(self.now);
            let paid = self.paid_in_window(id);
            assert!(paid <= RESTARTS, "{paid} restarts of {id} in one window");
        }
        self.starts += 1;
        self.alive.insert(id.to_owned(), Alive { incarnation, runs: false, told: false });
    }

    fn over(&mut self, escalated: bool) {
        assert_eq!(self.ending, Some(escalated), "it ends for the reason for which it stopped");
        assert!(self.alive.is_empty(), "{:?} live on", self.alive);
        assert!(!std::mem::replace(&mut self.ended, true), "said once");
    }

    /// What people are shown is what is the case.
    fn compare(&self, core: &Supervision) {
        let view = core.view(self.now);
        let shown: Vec<_> = view.iter().map(|child| child.id.to_string()).collect();
        assert_eq!(shown, self.order, "all children are visible, in order");
        for child in view {
            let id = child.id.as_str();
            let (rules, alive) = (&self.rules[id], self.alive.get(id));
            assert_eq!(child.crashes, rules.crashes);
            assert_eq!(child.incarnation.0, rules.incarnation);
            assert_eq!(self.persisted.get(id).copied().unwrap_or(0), rules.crashes, "{id} is persisted");
            assert_eq!(child.restarts_in_window, self.paid_in_window(id));
            match (alive, &child.state) {
                (Some(alive), ChildState::Stopping { .. }) => assert!(alive.told),
                (Some(alive), ChildState::Running { .. }) => assert!(alive.runs && !alive.told),
                (Some(alive), ChildState::Starting) => assert!(!alive.runs && !alive.told),
                (None, ChildState::Parked { reason, .. }) => {
                    assert_eq!(rules.intent, Intent::Parked);
                    assert!(!reason.to_string().is_empty());
                }
                (None, ChildState::Stopped) => {
                    assert!(
                        rules.intent == Intent::Stopped || (self.ending.is_some() && rules.intent != Intent::Parked)
                    );
                }
                (None, ChildState::Starting | ChildState::Restarting { .. } | ChildState::Waiting { .. }) => {
                    assert!(self.ending.is_none() && matches!(rules.intent, Intent::Run { .. }), "{id}");
                }
                (alive, state) => panic!("{id} is shown as {state:?} and is {alive:?}, {:?}", rules.intent),
            }
        }
    }
}

/// One history: core, model, and what the world does to them.
struct World {
    core: Supervision,
    model: Model,
    names: u32,
}

impl World {
    fn new(strategy: Strategy, seed: u64) -> World {
        let mut core = Supervision::new(strategy, BUDGET, seed);
        assert_eq!(core.begin(Tick(0)), []);
        let model = Model {
            strategy,
            now: Tick(0),
            order: Vec::new(),
            rules: BTreeMap::new(),
            alive: BTreeMap::new(),
            ending: None,
            ended: false,
            wake: None,
            persisted: BTreeMap::new(),
            starts: 0,
            cycles: 0,
        };
        World { core, model, names: 0 }
    }

    fn step(&mut self, event: Event) {
        let said = format!("{event:?}");
        let commands = self.core.step(self.model.now, event).unwrap_or_else(|refusal| panic!("{said}: {refusal}"));
        self.model.obey(&commands);
        self.model.compare(&self.core);
    }

    fn register(&mut self, policy: ChildPolicy, crashes: u32) {
        let id = format!("c{}", self.names);
        let event = Event::Registered { child: id.as_str().into(), policy, crashes };
        if self.model.ending.is_some() {
            assert_eq!(self.core.step(self.model.now, event), Err(Refusal::Stopping));
            return;
        }
        self.names += 1;
        let parked = policy.crashes_max.is_some_and(|max| crashes >= max);
        let run = Intent::Run { costs: false, earliest: self.model.now };
        let intent = if parked { Intent::Parked } else { run };
        self.model.order.push(id.clone());
        self.model
            .rules
            .insert(id.clone(), Rules { policy, intent, doom: None, crashes, incarnation: 0, paid: Vec::new() });
        if crashes > 0 {
            self.model.persisted.insert(id, crashes);
        }
        self.step(event);
        let again = self.model.order.last().cloned().expect("one was added");
        let event = Event::Registered { child: again.into(), policy, crashes };
        assert!(matches!(self.core.step(self.model.now, event), Err(Refusal::Duplicate(_))));
    }

    /// A life ends, or its start fails.
    fn fall(&mut self, id: &str, class: ExitClass) {
        let alive = self.model.alive.remove(id).expect("it lives");
        let (child, incarnation) = (id.into(), ChildIncarnation(alive.incarnation));
        self.model.fell(id, class);
        let reason = "planned".to_owned();
        self.step(if alive.runs {
            Event::Exited { child, incarnation, class, reason }
        } else {
            Event::StartFailed { child, incarnation, class, reason }
        });
    }

    fn rise(&mut self, id: &str) {
        let alive = self.model.alive.get_mut(id).expect("it lives");
        alive.runs = true;
        let incarnation = ChildIncarnation(alive.incarnation);
        self.step(Event::Started { child: id.into(), incarnation });
    }

    fn request(&mut self, id: &str, event: Event) {
        let now = self.model.now;
        let is_alive = self.model.alive.contains_key(id);
        let rules = self.model.rules.get_mut(id).expect("it is listed");
        let run = Intent::Run { costs: false, earliest: now };
        let then = match event {
            Event::StopRequested { .. } => Some(Intent::Stopped),
            Event::RemoveRequested { .. } => None,
            _ => Some(run),
        };
        let forgotten = matches!(rules.doom, Some((_, None)));
        if matches!(event, Event::RestartRequested { .. }) {
            if self.model.ending.is_some() || forgotten {
                assert!(self.core.step(now, event).is_err());
                return;
            }
            rules.crashes = 0;
        }
        if is_alive {
            let group = rules.doom.is_some_and(|(group, _)| group);
            rules.doom = Some((group, if forgotten { None } else { then }));
        } else {
            match then {
                None => self.model.forget(id),
                Some(Intent::Stopped) if rules.intent == Intent::Parked => {}
                Some(intent) => rules.intent = intent,
            }
        }
        self.step(event);
    }

    fn turn(&mut self, op: u8, who: u8, arg: u16) {
        const CLASSES: [ExitClass; 8] = [
            ExitClass::Crash,
            ExitClass::Crash,
            ExitClass::Crash,
            ExitClass::Crash,
            ExitClass::Normal,
            ExitClass::DependencyDown,
            ExitClass::DependencyDown,
            ExitClass::Poison,
        ];
        let class = CLASSES[usize::from(arg) % 8];
        let pick = |ids: Vec<String>| (!ids.is_empty()).then(|| ids[usize::from(who) % ids.len()].clone());
        let living = |wanted: &dyn Fn(&Alive) -> bool| {
            pick(self.model.alive.iter().filter(|(_, alive)| wanted(alive)).map(|(id, _)| id.clone()).collect())
        };
        match op {
            0..=2 if self.model.order.len() < 6 => {
                let restart = [Restart::Permanent, Restart::Permanent, Restart::Transient, Restart::Temporary];
                let crashes_max = (arg & 4 == 0).then_some(CRASHES);
                let shutdown = if arg & 8 == 0 { Shutdown::Brutal } else { Shutdown::Graceful(Millis(77)) };
                let policy = ChildPolicy { restart: restart[usize::from(arg) & 3], shutdown, crashes_max };
                let crashes = if crashes_max.is_some() { u32::from(arg >> 4) % (CRASHES + 2) } else { 0 };
                self.register(policy, crashes);
            }
            0..=9 => {
                if let Some(id) = living(&|alive| !alive.runs && !alive.told) {
                    self.rise(&id);
                }
            }
            10 | 11 => {
                if let Some(id) = living(&|alive| !alive.runs) {
                    self.fall(&id, class);
                }
            }
            12..=18 => {
                if let Some(id) = living(&|alive| alive.runs && !alive.told) {
                    self.fall(&id, class);
                }
            }
            19..=23 => {
                if let Some(id) = living(&|alive| alive.told) {
                    self.fall(&id, class);
                }
            }
            24..=31 => {
                let pause = if arg.is_multiple_of(3) { u64::from(arg) % 1_500 } else { u64::from(arg) % 60 };
                self.model.now = self.model.now.plus(Millis(pause));
                self.step(Event::Ticked);
            }
            32 => {
                if let Some(id) = pick(self.model.order.clone()) {
                    self.request(&id, Event::StopRequested { child: id.as_str().into() });
                }
            }
            33 => {
                if let Some(id) = pick(self.model.order.clone()) {
                    self.request(&id, Event::RemoveRequested { child: id.as_str().into() });
                }
            }
            34 | 35 => {
                if let Some(id) = pick(self.model.order.clone()) {
                    self.request(&id, Event::RestartRequested { child: id.as_str().into() });
                }
            }
            36 => {
                if let Some(id) = living(&|_| true) {
                    let incarnation = ChildIncarnation(self.model.alive[&id].incarnation);
                    self.model.rules.get_mut(&id).expect("it is listed").crashes = 0;
                    self.step(Event::Progressed { child: id.as_str().into(), incarnation });
                }
            }
            37 => {
                // News of a former life, and of one that nobody knows, change nothing.
                if let Some(id) = pick(self.model.order.clone()) {
                    let incarnation = ChildIncarnation(self.model.rules[&id].incarnation.wrapping_sub(1));
                    let (child, reason): (ChildId, _) = (id.as_str().into(), "late".to_owned());
                    self.step(Event::Started { child: child.clone(), incarnation });
                    self.step(Event::Progressed { child: child.clone(), incarnation });
                    self.step(Event::Exited { child, incarnation, class, reason });
                }
            }
            38 if arg.is_multiple_of(8) => {
                self.model.end_all(false);
                self.step(Event::ShutdownRequested);
            }
            39 if self.model.ended => self.begin_again(),
            _ => {}
        }
    }

    /// The supervisor is started again after it has ended.
    fn begin_again(&mut self) {
        self.model.ending = None;
        self.model.ended = false;
        for rules in self.model.rules.values_mut() {
            rules.paid.clear();
            if let Intent::Run { .. } = rules.intent {
                rules.intent = Intent::Run { costs: false, earliest: self.model.now };
            }
        }
        let commands = self.core.begin(self.model.now);
        self.model.obey(&commands);
        self.model.compare(&self.core);
    }

    /// When everything answers and nothing fails any more, all that shall run does, and what shall end has.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let next = self.model.alive.iter().find(|(_, alive)| alive.told || !alive.runs);
            if let Some((id, alive)) = next {
                let (id, told) = (id.clone(), alive.told);
                if told { self.fall(&id, ExitClass::Normal) } else { self.rise(&id) }
            } else if let Some(wake) = self.model.wake {
                self.model.now = wake;
                self.step(Event::Ticked);
            } else {
                let run = |id: &&String| matches!(self.model.rules[*id].intent, Intent::Run { .. });
                let wanted: BTreeSet<_> = self.model.order.iter().filter(run).cloned().collect();
                let alive: BTreeSet<_> = self.model.alive.keys().cloned().collect();
                assert_eq!(self.model.ended, self.model.ending.is_some(), "what ends says so");
                assert!(self.model.ended || wanted == alive, "{wanted:?} shall run, {alive:?} do");
                return;
            }
        }
        panic!("it does not come to rest");
    }
}

fn history(strategy: Strategy, seed: u64, turns: &[(u8, u8, u16)]) -> World {
    let mut world = World::new(strategy, seed);
    for (op, who, arg) in turns {
        world.turn(*op, *who, *arg);
    }
    world.settle();
    world
}

fn any_strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop_oneof![Just(Strategy::OneForOne), Just(Strategy::RestForOne), Just(Strategy::OneForAll)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never more than so many restarts in a window, stops in reverse order, never two lives of one child, every
    /// parked child visible, and the rest of `Model`.
    #[test]
    fn the_rules_hold_in_every_history(
        strategy in any_strategy(),
        seed in any::<u64>(),
        turns in proptest::collection::vec((0u8..40, any::<u8>(), any::<u16>()), 1..240),
    ) {
        history(strategy, seed, &turns);
    }
}

#[test]
fn random_histories_reach_what_they_shall_test() {
    let (mut starts, mut cycles, mut ends, mut parked) = (0, 0, [0, 0], 0);
    for seed in 0..2_000u64 {
        let mut random = Supervision::new(Strategy::OneForOne, BUDGET, seed);
        let turns: Vec<_> = (0..240)
            .map(|_| ((random.draw() % 40) as u8, (random.draw() % 256) as u8, (random.draw() % 65_536) as u16))
            .collect();
        let strategy = [Strategy::OneForOne, Strategy::RestForOne, Strategy::OneForAll][(seed % 3) as usize];
        let world = history(strategy, seed, &turns);
        starts += world.model.starts;
        cycles += world.model.cycles;
        ends[usize::from(world.model.ending == Some(true))] += usize::from(world.model.ended);
        parked += world.model.rules.values().filter(|rules| rules.intent == Intent::Parked).count();
    }
    assert!(starts > 10_000 && cycles > 1_000 && parked > 500, "{starts} starts, {cycles} cycled, {parked} parked");
    assert!(ends[0] > 100 && ends[1] > 100, "{ends:?} shut down and gave up");
}

/// The life starts now, and crashes after a while, which is the moment returned.
fn crash(core: &mut Supervision, now: &mut Tick, lasts: u64, incarnation: u64) -> Vec<Command> {
    let incarnation = ChildIncarnation(incarnation);
    core.step(*now, Event::Started { child: "a".into(), incarnation }).expect("it is listed");
    *now = now.plus(Millis(lasts));
    let reason = "planned".to_owned();
    let event = Event::Exited { child: "a".into(), incarnation, class: ExitClass::Crash, reason };
    core.step(*now, event).expect("it is listed")
}

fn pauses(seed: u64, lasts: u64) -> Vec<u64> {
    let budget = Budget { restarts_max: 1_000, ..Budget::default() };
    let mut core = Supervision::new(Strategy::OneForOne, budget, seed);
    core.begin(Tick(0));
    let policy = ChildPolicy::permanent();
    core.step(Tick(0), Event::Registered { child: "a".into(), policy, crashes: 0 }).expect("it is new");
    let mut now = Tick(0);
    let mut pauses = Vec::new();
    for life in 1..=20 {
        let [Command::StartAt(due)] = crash(&mut core, &mut now, lasts, life)[..] else { panic!("no pause") };
        pauses.push(due.since(now).0);
        now = due;
        core.step(now, Event::Ticked).expect("always");
    }
    pauses
}

#[test]
fn pauses_grow_with_jitter_from_the_seed_and_stay_in_their_bounds() {
    assert_eq!(pauses(1, 0), pauses(1, 0), "the same seed, the same pauses");
    assert_ne!(pauses(1, 0), pauses(2, 0), "another seed, other pauses");
    for seed in 0..200 {
        let pauses = pauses(seed, 0);
        assert!(pauses.iter().all(|pause| (50..=1_000).contains(pause)), "{pauses:?}");
        assert!(pauses[0] <= 150, "the first is short: {pauses:?}");
        assert!(pauses.windows(2).all(|pair| pair[1] <= pair[0].max(50) * 3), "{pauses:?}");
    }
    let mean = |n: usize| (0..200).map(|seed| pauses(seed, 0)[n]).sum::<u64>() / 200;
    assert!(mean(10) > 3 * mean(0), "they grow: {} then {}", mean(0), mean(10));
    let calm = pauses(1, RESTART_WINDOW_MS.0);
    assert!(calm.iter().all(|pause| *pause <= 150), "a life as long as the window makes good: {calm:?}");
}

#[test]
fn a_child_that_fails_at_once_does_exhaust_its_budget() {
    for seed in 0..500 {
        let mut core = Supervision::new(Strategy::OneForOne, Budget::default(), seed);
        core.begin(Tick(0));
        let policy = ChildPolicy::permanent();
        core.step(Tick(0), Event::Registered { child: "a".into(), policy, crashes: 0 }).expect("it is new");
        let mut now = Tick(0);
        for life in 1..=u64::from(RESTARTS_MAX) {
            let [Command::StartAt(due)] = crash(&mut core, &mut now, 0, life)[..] else {
                panic!("seed {seed}: no pause")
            };
            now = due;
            core.step(now, Event::Ticked).expect("always");
        }
        let last = crash(&mut core, &mut now, 0, u64::from(RESTARTS_MAX) + 1);
        let [Command::Escalate { reason }] = &last[..] else { panic!("seed {seed}: {last:?}") };
        let text = "child 'a' failed after 5 restarts within 10000 ms: planned";
        assert_eq!(reason.to_string(), text);
    }
}
