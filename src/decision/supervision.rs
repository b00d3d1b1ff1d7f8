//! Restart budget. Owns: which child of one supervisor is started, stopped, parked, and when the supervisor gives up.
//!
//! ```text
//!            Registered                    Started
//!  (absent) ───────────► Down ──Start──► Starting ──────► Running
//!                         ▲ ▲                │ failed         │ exited, or Stop
//!                         │ └── pause, wait ─┴────────────────┤
//!              unparked   │                                   ▼
//!                       Parked ◄── poison, quarantine ──── Stopping ──► Stopped, Forget, or Down again
//! ```
//!
//! Always: one live incarnation per child, numbers only grow; a child that fails is restarted at most
//! `restarts_max` times in any window; waiting for a dependency is free; a group stops in reverse order; a parked
//! child stays listed with its reason; giving up is said once, when nothing is alive any more.
//! Order means the order of registration: a child may rely on those before it.
//! Not here: what can be said (`nouns.rs`); tasks, timers, the crash ledger (`actors/supervise.rs`).

use std::collections::VecDeque;

use crate::types::{Millis, Tick};

mod nouns;
#[cfg(test)]
mod tests;

pub use nouns::*;

/// Why a child that is down will be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// New, asked for, or cycled with a sibling: free.
    Asked,
    /// It failed: the restart is charged to its budget.
    Failed,
    /// Its dependency was down: free.
    Dependency,
}

/// What comes after a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Restart,
    Stay,
    Forget,
}

/// A stop that was decided but perhaps not yet issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    then: Then,
    /// Part of a group: issued only when no later member is alive.
    group: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Down { due: Tick, cause: Cause },
    Starting,
    Running { since: Tick },
    Stopping { since: Tick },
    Parked { reason: ParkReason, since: Tick },
    Stopped,
}

#[derive(Debug, Clone)]
struct Child {
    id: ChildId,
    policy: ChildPolicy,
    phase: Phase,
    incarnation: ChildIncarnation,
    /// Set while it is alive and shall not be.
    mark: Option<Mark>,
    /// When it was restarted after failures, within the window.
    restarts: VecDeque<Tick>,
    restarts_total: u64,
    crashes: u32,
    /// The last pause, from which the next is drawn.
    pause: Millis,
    last_failure: Option<String>,
}

impl Child {
    fn is_alive(&self) -> bool {
        match self.phase {
            Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. } => true,
            Phase::Down { .. } | Phase::Parked { .. } | Phase::Stopped => false,
        }
    }
    fn is_group_stopping(&self) -> bool {
        self.is_alive() && self.mark.is_some_and(|mark| mark.group)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Up,
    Stopping(Option<GaveUp>),
    Over,
}

/// The children of one supervisor.
#[derive(Debug, Clone)]
pub struct Supervision {
    strategy: Strategy,
    budget: Budget,
    children: Vec<Child>,
    mode: Mode,
    random: u64,
}

impl Supervision {
    /// Without children, and not begun. `seed` decides the jitter.
    pub fn new(strategy: Strategy, budget: Budget, seed: u64) -> Self {
        Self { strategy, budget, children: Vec::new(), mode: Mode::Over, random: seed }
    }

    /// The supervisor starts, or starts again: nothing of a former life is alive, budgets are fresh, all that is
    /// neither parked nor stopped is to run.
    pub fn begin(&mut self, now: Tick) -> Vec<Command> {
        let mut commands = Vec::new();
        self.mode = Mode::Up;
        while let Some(i) = self.children.iter().position(|c| c.mark.is_some_and(|mark| mark.then == Then::Forget)) {
            self.forget(i, &mut commands);
        }
        for child in &mut self.children {
            let stay = child.mark.take().is_some_and(|mark| mark.then == Then::Stay);
            child.restarts.clear();
            child.pause = self.budget.pause_min;
            child.phase = match std::mem::replace(&mut child.phase, Phase::Stopped) {
                Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. } | Phase::Down { .. } if !stay => {
                    Phase::Down { due: now, cause: Cause::Asked }
                }
                Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. } | Phase::Down { .. } => Phase::Stopped,
                parked @ Phase::Parked { .. } => parked,
                Phase::Stopped => Phase::Stopped,
            };
        }
        self.advance(now, &mut commands);
        commands
    }

    /// Takes an event; returns what has to be done. A refused request changes nothing.
    pub fn step(&mut self, now: Tick, event: Event) -> Result<Vec<Command>, Refusal> {
        let mut commands = Vec::new();
        match event {
            Event::Registered { child, policy, crashes } => {
                self.register(now, child, policy, crashes, &mut commands)?;
            }
            Event::Started { child, incarnation } => {
                if let Some(i) = self.living(&child, incarnation)
                    && self.children[i].phase == Phase::Starting
                {
                    self.children[i].phase = Phase::Running { since: now };
                }
            }
            Event::StartFailed { child, incarnation, class, reason }
            | Event::Exited { child, incarnation, class, reason } => {
                if let Some(i) = self.living(&child, incarnation) {
                    self.ended(now, i, class, reason, &mut commands);
                }
            }
            Event::Progressed { child, incarnation } => {
                if let Some(i) = self.living(&child, incarnation)
                    && self.children[i].crashes > 0
                {
                    self.children[i].crashes = 0;
                    commands.push(Command::ClearCrashes { child });
                }
            }
            Event::StopRequested { child } => self.stop_one(&child, Then::Stay, &mut commands)?,
            Event::RemoveRequested { child } => self.stop_one(&child, Then::Forget, &mut commands)?,
            Event::RestartRequested { child } => self.restart_one(now, &child, &mut commands)?,
            Event::Ticked => {}
            Event::ShutdownRequested => self.stop_all(None),
        }
        self.advance(now, &mut commands);
        Ok(commands)
    }

    /// Whether it is on its way out or has ended, and why if it gave up.
    pub fn leaving(&self) -> Option<Option<&GaveUp>> {
        match &self.mode {
            Mode::Up => None,
            Mode::Stopping(gave_up) => Some(gave_up.as_ref()),
            Mode::Over => Some(None),
        }
    }

    /// The children in their order, as people see them.
    pub fn view(&self, now: Tick) -> Vec<ChildView> {
        self.children.iter().map(|child| self.view_of(child, now)).collect()
    }

    /// One child as people see it.
    pub fn view_child(&self, id: &ChildId, now: Tick) -> Option<ChildView> {
        self.children.iter().find(|child| child.id == *id).map(|child| self.view_of(child, now))
    }

    fn view_of(&self, child: &Child, now: Tick) -> ChildView {
        let state = match &child.phase {
            // It is started by the next life of its supervisor, if there is one.
            Phase::Down { .. } if self.mode != Mode::Up => ChildState::Stopped,
            Phase::Down { cause: Cause::Asked, .. } | Phase::Starting => ChildState::Starting,
            Phase::Down { due, cause: Cause::Failed } => ChildState::Restarting { at: *due },
            Phase::Down { due, cause: Cause::Dependency } => ChildState::Waiting { at: *due },
            Phase::Running { since } => ChildState::Running { since: *since },
            Phase::Stopping { since } => ChildState::Stopping { since: *since },
            Phase::Parked { reason, since } => ChildState::Parked { reason: reason.clone(), since: *since },
            Phase::Stopped => ChildState::Stopped,
        };
        ChildView {
            id: child.id.clone(),
            state,
            incarnation: child.incarnation,
            restarts_in_window: self.restarts_in_window(child, now),
            restarts_total: child.restarts_total,
            crashes: child.crashes,
            last_failure: child.last_failure.clone(),
        }
    }

    fn restarts_in_window(&self, child: &Child, now: Tick) -> u32 {
        let recent = child.restarts.iter().filter(|at| now.since(**at) < self.budget.window).count();
        u32::try_from(recent).unwrap_or(u32::MAX)
    }

    fn find(&self, id: &ChildId) -> Result<usize, Refusal> {
        self.children.iter().position(|child| child.id == *id).ok_or_else(|| Refusal::Unknown(id.clone()))
    }

    /// The child if this life of it is the present one; news of another life come too late.
    fn living(&self, id: &ChildId, incarnation: ChildIncarnation) -> Option<usize> {
        self.children.iter().position(|child| child.id == *id && child.incarnation == incarnation && child.is_alive())
    }

    fn register(
        &mut self,
        now: Tick,
        id: ChildId,
        policy: ChildPolicy,
        crashes: u32,
        commands: &mut Vec<Command>,
    ) -> Result<(), Refusal> {
        if self.mode != Mode::Up {
            return Err(Refusal::Stopping);
        }
        if self.find(&id).is_ok() {
            return Err(Refusal::Duplicate(id));
        }
        let phase = if policy.crashes_max.is_some_and(|max| crashes >= max) {
            let reason = ParkReason::Quarantine { crashes, reason: "in an earlier life of this process".into() };
            commands.push(Command::Park { child: id.clone(), reason: reason.clone() });
            Phase::Parked { reason, since: now }
        } else {
            Phase::Down { due: now, cause: Cause::Asked }
        };
        self.children.push(Child {
            id,
            policy,
            phase,
            incarnation: ChildIncarnation::default(),
            mark: None,
            restarts: VecDeque::new(),
            restarts_total: 0,
            crashes,
            pause: self.budget.pause_min,
            last_failure: None,
        });
        Ok(())
    }

    fn stop_one(&mut self, id: &ChildId, then: Then, commands: &mut Vec<Command>) -> Result<(), Refusal> {
        let i = self.find(id)?;
        let child = &mut self.children[i];
        if child.is_alive() {
            // A request never loosens what was decided before: in a group it keeps its place, forgotten stays so.
            let then = if child.mark.is_some_and(|mark| mark.then == Then::Forget) { Then::Forget } else { then };
            child.mark = Some(Mark { then, group: child.mark.is_some_and(|mark| mark.group) });
        } else if then == Then::Forget {
            self.forget(i, commands);
        } else if !matches!(child.phase, Phase::Parked { .. }) {
            child.phase = Phase::Stopped;
        }
        Ok(())
    }

    fn restart_one(&mut self, now: Tick, id: &ChildId, commands: &mut Vec<Command>) -> Result<(), Refusal> {
        if self.mode != Mode::Up {
            return Err(Refusal::Stopping);
        }
        let i = self.find(id)?;
        let child = &mut self.children[i];
        if child.mark.is_some_and(|mark| mark.then == Then::Forget) {
            return Err(Refusal::Unknown(id.clone()));
        }
        if child.crashes > 0 {
            child.crashes = 0;
            commands.push(Command::ClearCrashes { child: id.clone() });
        }
        if child.is_alive() {
            child.mark = Some(Mark { then: Then::Restart, group: child.mark.is_some_and(|mark| mark.group) });
        } else {
            child.phase = Phase::Down { due: now, cause: Cause::Asked };
        }
        Ok(())
    }

    /// Marks all that is alive; what is down is not started again in this mode.
    fn stop_all(&mut self, gave_up: Option<GaveUp>) {
        if self.mode != Mode::Up {
            return;
        }
        self.mode = Mode::Stopping(gave_up);
        for child in self.children.iter_mut().filter(|child| child.is_alive()) {
            let then = child.mark.map_or(Then::Restart, |mark| mark.then);
            child.mark = Some(Mark { then, group: true });
        }
    }

    fn forget(&mut self, i: usize, commands: &mut Vec<Command>) {
        let child = self.children.remove(i);
        if child.crashes > 0 {
            commands.push(Command::ClearCrashes { child: child.id.clone() });
        }
        commands.push(Command::Forget { child: child.id });
    }

    /// A life ended: as decided before, or by itself.
    fn ended(&mut self, now: Tick, i: usize, class: ExitClass, reason: String, commands: &mut Vec<Command>) {
        let child = &mut self.children[i];
        if let Some(mark) = child.mark.take() {
            match mark.then {
                Then::Restart => child.phase = Phase::Down { due: now, cause: Cause::Asked },
                Then::Stay => child.phase = Phase::Stopped,
                Then::Forget => self.forget(i, commands),
            }
            return;
        }
        if let Phase::Running { since } = child.phase
            && now.since(since) >= self.budget.window
        {
            child.pause = self.budget.pause_min;
        }
        match (class, child.policy.restart) {
            (ExitClass::Poison, Restart::Permanent | Restart::Transient | Restart::Temporary) => {
                child.last_failure = Some(reason.clone());
                if let Some(max) = child.policy.crashes_max {
                    // So that the next life of this process does not feed it the poison again.
                    child.crashes = child.crashes.max(max);
                    let (id, count, why) = (child.id.clone(), child.crashes, reason.clone());
                    commands.push(Command::PersistCrash { child: id, count, reason: why });
                }
                self.park(now, i, ParkReason::Poison { reason }, commands);
                self.cycle_siblings(i);
            }
            (ExitClass::Normal, Restart::Transient | Restart::Temporary)
            | (ExitClass::Crash | ExitClass::DependencyDown, Restart::Temporary) => self.forget(i, commands),
            (ExitClass::DependencyDown, Restart::Permanent | Restart::Transient) => {
                child.last_failure = Some(reason);
                let due = now.plus(self.draw_pause(i, self.budget.wait_max));
                self.children[i].phase = Phase::Down { due, cause: Cause::Dependency };
                self.cycle_siblings(i);
            }
            (ExitClass::Crash, Restart::Permanent | Restart::Transient) => {
                child.last_failure = Some(reason.clone());
                if let Some(max) = child.policy.crashes_max {
                    child.crashes = child.crashes.saturating_add(1);
                    let crashes = child.crashes;
                    let (id, why) = (child.id.clone(), reason.clone());
                    commands.push(Command::PersistCrash { child: id, count: crashes, reason: why });
                    if crashes >= max {
                        self.park(now, i, ParkReason::Quarantine { crashes, reason }, commands);
                        self.cycle_siblings(i);
                        return;
                    }
                }
                self.failed(now, i, reason, commands);
            }
            (ExitClass::Normal, Restart::Permanent) => self.failed(now, i, reason, commands),
        }
    }

    /// A failure that costs budget.
    fn failed(&mut self, now: Tick, i: usize, reason: String, commands: &mut Vec<Command>) {
        let restarts = self.restarts_in_window(&self.children[i], now);
        if restarts < self.budget.restarts_max {
            let due = now.plus(self.draw_pause(i, self.budget.pause_max));
            self.children[i].phase = Phase::Down { due, cause: Cause::Failed };
            self.cycle_siblings(i);
        } else if self.children[i].policy.crashes_max.is_some() {
            self.park(now, i, ParkReason::Budget { restarts, reason }, commands);
            self.cycle_siblings(i);
        } else {
            let child = &mut self.children[i];
            child.phase = Phase::Down { due: now, cause: Cause::Failed };
            let gave_up = GaveUp { child: child.id.clone(), restarts, window: self.budget.window, reason };
            self.stop_all(Some(gave_up));
        }
    }

    fn park(&mut self, now: Tick, i: usize, reason: ParkReason, commands: &mut Vec<Command>) {
        let child = &mut self.children[i];
        child.phase = Phase::Parked { reason: reason.clone(), since: now };
        commands.push(Command::Park { child: child.id.clone(), reason });
    }

    /// Those who go down with child `i` are marked to be stopped and started again.
    fn cycle_siblings(&mut self, i: usize) {
        let first = match self.strategy {
            Strategy::OneForOne => return,
            Strategy::RestForOne => i + 1,
            Strategy::OneForAll => 0,
        };
        for child in self.children[first..].iter_mut().filter(|child| child.is_alive()) {
            let then = child.mark.map_or(Then::Restart, |mark| mark.then);
            child.mark = Some(Mark { then, group: true });
        }
    }

    /// Decorrelated jitter: between the shortest pause and three times the last one.
    fn draw_pause(&mut self, i: usize, max: Millis) -> Millis {
        let low = self.budget.pause_min.0;
        let high = self.children[i].pause.times(3).0.max(low);
        let span = (high - low).saturating_add(1);
        let pause = Millis((low + self.draw() % span).min(max.0));
        self.children[i].pause = pause;
        pause
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Issues every stop and start that may be issued now.
    fn advance(&mut self, now: Tick, commands: &mut Vec<Command>) {
        self.issue_stops(now, commands);
        match &mut self.mode {
            Mode::Up => self.issue_starts(now, commands),
            Mode::Stopping(gave_up) => {
                if !self.children.iter().any(Child::is_alive) {
                    commands.push(match gave_up.take() {
                        Some(reason) => Command::Escalate { reason },
                        None => Command::Finished,
                    });
                    self.mode = Mode::Over;
                }
            }
            Mode::Over => {}
        }
    }

    fn issue_stops(&mut self, now: Tick, commands: &mut Vec<Command>) {
        let mut later_in_group = false;
        for child in self.children.iter_mut().rev() {
            let Some(mark) = child.mark else { continue };
            match child.phase {
                Phase::Starting | Phase::Running { .. } if !(mark.group && later_in_group) => {
                    child.phase = Phase::Stopping { since: now };
                    commands.push(Command::Stop {
                        child: child.id.clone(),
                        incarnation: child.incarnation,
                        shutdown: child.policy.shutdown,
                    });
                }
                Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. } => {}
                Phase::Down { .. } | Phase::Parked { .. } | Phase::Stopped => continue,
            }
            later_in_group |= mark.group;
        }
    }

    fn issue_starts(&mut self, now: Tick, commands: &mut Vec<Command>) {
        let ordered = self.strategy != Strategy::OneForOne;
        if ordered && self.children.iter().any(Child::is_group_stopping) {
            return;
        }
        let mut next_due: Option<Tick> = None;
        for child in &mut self.children {
            match child.phase {
                Phase::Down { due, cause } if due <= now => {
                    if cause == Cause::Failed {
                        child.restarts.retain(|at| now.since(*at) < self.budget.window);
                        child.restarts.push_back(now);
                        child.restarts_total += 1;
                    }
                    child.incarnation = ChildIncarnation(child.incarnation.0 + 1);
                    child.phase = Phase::Starting;
                    commands.push(Command::Start { child: child.id.clone(), incarnation: child.incarnation });
                }
                Phase::Down { due, .. } => next_due = Some(next_due.map_or(due, |first| first.min(due))),
                Phase::Starting | Phase::Stopping { .. } => {}
                Phase::Running { .. } | Phase::Parked { .. } | Phase::Stopped => continue,
            }
            if ordered {
                // Those after it may rely on it: they wait until it runs.
                break;
            }
        }
        if let Some(due) = next_due {
            commands.push(Command::StartAt(due));
        }
    }
}
