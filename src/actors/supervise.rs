//! The actor of a supervisor. Owns: the lives of its children, its timer, crash records under way: it performs what
//! `decision/supervision.rs` commands and reports what happened.
//!
//! Always: a new life begins only when nothing of the one before is alive, its tasks and its whole subtree with it;
//! a handler never waits, so a supervisor answers while its children hang.
//! Not here: who may ask for what (`supervisor.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use super::child::{ChildSpec, Newborn, Place, StartFailure, Stopper};
use super::serve::{Life, LifeEnd, Start, classify};
use super::supervisor::{Ended, Supervisor};
use crate::decision::supervision::{
    ChildId, ChildIncarnation, ChildState, Command, Event, ExitClass, Refusal, Shutdown,
};
use crate::types::Tick;

pub(super) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// What a supervisor is sent.
pub(super) enum Order {
    Add {
        spec: Box<ChildSpec>,
        crashes: u32,
        answer: Answer<ChildState>,
        _permit: OwnedSemaphorePermit,
    },
    Stop {
        child: ChildId,
        forget: bool,
        answer: Answer<()>,
        _permit: OwnedSemaphorePermit,
    },
    Restart {
        child: ChildId,
        answer: Answer<()>,
        _permit: OwnedSemaphorePermit,
    },
    /// Answered with whether there was a life to end.
    Crash {
        child: ChildId,
        answer: Answer<bool>,
        _permit: OwnedSemaphorePermit,
    },
    Progressed {
        child: ChildId,
        incarnation: ChildIncarnation,
    },
    Began {
        child: ChildId,
        incarnation: ChildIncarnation,
        outcome: Result<(Newborn, LifeEnd), StartFailure>,
    },
    Over {
        child: ChildId,
        incarnation: ChildIncarnation,
        class: ExitClass,
        reason: String,
    },
    Tick,
    Shutdown,
}

pub(super) struct SupervisorActor;

/// One life of one child, as the shell holds it.
struct Living {
    incarnation: ChildIncarnation,
    stage: Stage,
}

enum Stage {
    /// Its start runs; `stop` if it is to be stopped should the start succeed nevertheless.
    Starting {
        task: AbortHandle,
        stop: Option<Shutdown>,
    },
    Up {
        cell: ActorCell,
        stopper: Stopper,
    },
}

/// What is to be awaited before a life counts as over.
struct Remains {
    join: JoinHandle<()>,
    end: LifeEnd,
}

/// An exit that ractor reported.
struct Reported {
    cell: ActorCell,
    class: ExitClass,
    reason: String,
}

/// A task that ends with its owner.
struct Owned(AbortHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) struct State {
    supervisor: Supervisor,
    first: Vec<Command>,
    living: BTreeMap<ChildId, Living>,
    remains: BTreeMap<ChildId, Remains>,
    /// Exits of lives whose start has not been reported yet.
    early: Vec<Reported>,
    adding: Vec<(ChildId, Answer<ChildState>)>,
    stopping: Vec<(ChildId, ChildIncarnation, Answer<()>)>,
    /// Crash records under way, by child: its next start waits for them.
    records: BTreeMap<ChildId, JoinHandle<()>>,
    timer: Option<(Tick, Owned)>,
    life: Life,
}

impl Drop for State {
    fn drop(&mut self) {
        self.supervisor.shared.lock().port = None;
        for living in self.living.values() {
            if let Stage::Starting { task, .. } = &living.stage {
                task.abort();
            }
        }
    }
}

/// An error ends the supervisor: it gave up.
type Handled = Result<(), ActorProcessingErr>;

impl Actor for SupervisorActor {
    type Msg = Order;
    type State = State;
    type Arguments = (Supervisor, Life);

    async fn pre_start(
        &self,
        myself: ActorRef<Order>,
        (supervisor, life): (Supervisor, Life),
    ) -> Result<State, ActorProcessingErr> {
        let now = supervisor.shared.clock.now();
        let first = {
            let mut inner = supervisor.shared.lock();
            inner.port = Some(myself);
            inner.ended = None;
            inner.core.begin(now)
        };
        Ok(State {
            supervisor,
            first,
            living: BTreeMap::new(),
            remains: BTreeMap::new(),
            early: Vec::new(),
            adding: Vec::new(),
            stopping: Vec::new(),
            records: BTreeMap::new(),
            timer: None,
            life,
        })
    }

    async fn post_start(&self, myself: ActorRef<Order>, state: &mut State) -> Handled {
        let first = std::mem::take(&mut state.first);
        state.perform(&myself, first)
    }

    async fn handle(&self, myself: ActorRef<Order>, order: Order, state: &mut State) -> Handled {
        match order {
            Order::Add { spec, crashes, answer, _permit } => state.add(&myself, *spec, crashes, answer),
            Order::Stop { child, forget, answer, _permit } => state.stop_asked(&myself, child, forget, answer),
            Order::Restart { child, answer, _permit } => {
                let (verdict, performed) = state.request(&myself, Event::RestartRequested { child });
                // Who asked may have left.
                let _ = answer.send(verdict);
                performed
            }
            Order::Crash { child, answer, _permit } => {
                // Who asked may have left.
                let _ = answer.send(state.crash(child));
                Ok(())
            }
            Order::Progressed { child, incarnation } => state.step(&myself, Event::Progressed { child, incarnation }),
            Order::Began { child, incarnation, outcome } => state.began(&myself, child, incarnation, outcome),
            Order::Over { child, incarnation, class, reason } => {
                state.living.remove(&child);
                state.step(&myself, Event::Exited { child, incarnation, class, reason })
            }
            Order::Tick => {
                state.timer = None;
                state.step(&myself, Event::Ticked)
            }
            Order::Shutdown => state.step(&myself, Event::ShutdownRequested),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Order>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Handled {
        let reported = match event {
            SupervisionEvent::ActorTerminated(cell, remains, reason) => {
                // What the dead life held is given back before another begins.
                drop(remains);
                match reason.as_deref() {
                    None => Reported { cell, class: ExitClass::Normal, reason: "done".into() },
                    Some(reason) => Reported { cell, class: ExitClass::Crash, reason: reason.into() },
                }
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let (class, reason) = classify(&*error);
                Reported { cell, class, reason }
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        state.exited(&myself, reported);
        Ok(())
    }
}

impl State {
    fn step(&mut self, myself: &ActorRef<Order>, event: Event) -> Handled {
        let now = self.supervisor.shared.clock.now();
        let commands = self.supervisor.shared.lock().core.step(now, event)?;
        self.perform(myself, commands)
    }

    fn add(&mut self, myself: &ActorRef<Order>, spec: ChildSpec, crashes: u32, answer: Answer<ChildState>) -> Handled {
        let child = spec.id.clone();
        let event = Event::Registered { child: child.clone(), policy: spec.policy, crashes };
        let now = self.supervisor.shared.clock.now();
        let commands = {
            let mut inner = self.supervisor.shared.lock();
            let commands = inner.core.step(now, event);
            if commands.is_ok() {
                inner.specs.insert(child.clone(), spec);
            }
            commands
        };
        match commands {
            Ok(commands) => {
                self.adding.push((child, answer));
                self.perform(myself, commands)
            }
            Err(refusal) => {
                // Who asked may have left.
                let _ = answer.send(Err(refusal));
                Ok(())
            }
        }
    }

    fn request(&mut self, myself: &ActorRef<Order>, event: Event) -> (Result<(), Refusal>, Handled) {
        let now = self.supervisor.shared.clock.now();
        let commands = self.supervisor.shared.lock().core.step(now, event);
        match commands {
            Ok(commands) => (Ok(()), self.perform(myself, commands)),
            Err(refusal) => (Err(refusal), Ok(())),
        }
    }

    fn stop_asked(&mut self, myself: &ActorRef<Order>, child: ChildId, forget: bool, answer: Answer<()>) -> Handled {
        let incarnation = self.living.get(&child).map(|living| living.incarnation);
        let event = match forget {
            true => Event::RemoveRequested { child: child.clone() },
            false => Event::StopRequested { child: child.clone() },
        };
        let (verdict, performed) = self.request(myself, event);
        match (verdict, incarnation) {
            (Ok(()), Some(incarnation)) => self.stopping.push((child, incarnation, answer)),
            // Who asked may have left.
            (verdict, _) => drop(answer.send(verdict)),
        }
        performed
    }

    /// Kills an actor where it is. Nobody asked the core for that, so to it it is a crash.
    fn crash(&self, child: ChildId) -> Result<bool, Refusal> {
        if !self.supervisor.shared.lock().specs.contains_key(&child) {
            return Err(Refusal::Unknown(child));
        }
        let Some(Stage::Up { cell, stopper: Stopper::Actor { .. } }) = self.living.get(&child).map(|l| &l.stage) else {
            return Ok(false);
        };
        cell.kill();
        Ok(true)
    }

    fn began(
        &mut self,
        myself: &ActorRef<Order>,
        child: ChildId,
        incarnation: ChildIncarnation,
        outcome: Result<(Newborn, LifeEnd), StartFailure>,
    ) -> Handled {
        let Some(Living { stage: Stage::Starting { stop, .. }, .. }) = self.living.get(&child) else { return Ok(()) };
        let stop = *stop;
        match outcome {
            Ok((Newborn { cell, join, stopper }, end)) => {
                self.remains.insert(child.clone(), Remains { join, end });
                let early = self.early.iter().position(|reported| reported.cell == cell);
                let stage = Stage::Up { cell, stopper };
                self.living.insert(child.clone(), Living { incarnation, stage });
                self.step(myself, Event::Started { child: child.clone(), incarnation })?;
                if let Some(i) = early {
                    let reported = self.early.swap_remove(i);
                    self.exited(myself, reported);
                } else if let Some(shutdown) = stop {
                    self.stop(&child, shutdown);
                }
                Ok(())
            }
            Err(StartFailure { class, reason }) => {
                self.living.remove(&child);
                tracing::warn!(child = %self.path_of(&child), %incarnation, ?class, reason, "a start failed");
                self.step(myself, Event::StartFailed { child, incarnation, class, reason })
            }
        }
    }

    /// A life has ended its work; it is over when everything that belongs to it has gone too.
    fn exited(&mut self, myself: &ActorRef<Order>, reported: Reported) {
        let found = self.living.iter().find_map(|(child, living)| match &living.stage {
            Stage::Up { cell, .. } if *cell == reported.cell => Some((child.clone(), living.incarnation)),
            Stage::Up { .. } | Stage::Starting { .. } => None,
        });
        let Some((child, incarnation)) = found else {
            self.early.push(reported);
            return;
        };
        let Reported { class, reason, .. } = reported;
        if class == ExitClass::Normal {
            tracing::debug!(child = %self.path_of(&child), %incarnation, "ended");
        } else {
            tracing::warn!(child = %self.path_of(&child), %incarnation, ?class, reason, "failed");
        }
        let remains = self.remains.remove(&child);
        let myself = myself.clone();
        tokio::spawn(async move {
            if let Some(Remains { join, end }) = remains {
                // Both end without a value: what matters is that they did.
                let _ = join.await;
                let _ = end.await;
            }
            // Without a supervisor nobody needs to know.
            let _ = myself.send_message(Order::Over { child, incarnation, class, reason });
        });
    }

    fn path_of(&self, child: &ChildId) -> String {
        format!("{}{child}", self.supervisor.shared.path)
    }

    fn perform(&mut self, myself: &ActorRef<Order>, commands: Vec<Command>) -> Handled {
        let mut due = None;
        for command in commands {
            match command {
                Command::Start { child, incarnation } => self.start(myself, child, incarnation),
                Command::Stop { child, incarnation: _, shutdown } => self.stop(&child, shutdown),
                Command::StartAt(tick) => due = Some(tick),
                Command::Park { child, reason } => {
                    tracing::error!(child = %self.path_of(&child), %reason, "parked: it waits for a person");
                }
                Command::PersistCrash { child, count, reason } => self.record(child, Some((count, reason))),
                Command::ClearCrashes { child } => self.record(child, None),
                Command::Forget { child } => {
                    self.supervisor.shared.lock().specs.remove(&child);
                }
                Command::Escalate { reason } => {
                    tracing::error!(supervisor = %self.supervisor.shared.id, %reason, "gave up");
                    self.supervisor.shared.lock().ended = Some(Ended::GaveUp(reason.clone()));
                    return Err(reason.into());
                }
                Command::Finished => {
                    self.supervisor.shared.lock().ended = Some(Ended::Shutdown);
                    myself.stop(None);
                }
            }
        }
        self.set_timer(myself, due);
        self.answer_those_who_wait();
        if self.supervisor.shared.lock().core.leaving().is_some() {
            self.supervisor.shared.leaving.notify_one();
        }
        Ok(())
    }

    fn set_timer(&mut self, myself: &ActorRef<Order>, due: Option<Tick>) {
        if self.timer.as_ref().map(|(tick, _)| *tick) == due {
            return;
        }
        self.timer = due.map(|tick| {
            let pause = tick.since(self.supervisor.shared.clock.now());
            let myself = myself.clone();
            let task = tokio::spawn(async move {
                tokio::time::sleep(pause.duration()).await;
                // Without a supervisor nobody needs to know.
                let _ = myself.send_message(Order::Tick);
            });
            (tick, Owned(task.abort_handle()))
        });
    }

    /// Who added a child learns how its first start went; who stopped one, that it is over.
    fn answer_those_who_wait(&mut self) {
        let now = self.supervisor.shared.clock.now();
        for (child, answer) in std::mem::take(&mut self.adding) {
            // First, since many may start at once and each look at the core goes through all children.
            if self.is_starting(&child) {
                self.adding.push((child, answer));
                continue;
            }
            let view = self.supervisor.shared.lock().core.view_child(&child, now);
            let verdict = match view {
                Some(view) => Ok(view.state),
                // It was done at once, and is forgotten.
                None => Ok(ChildState::Stopped),
            };
            // Who asked may have left.
            let _ = answer.send(verdict);
        }
        for (child, incarnation, answer) in std::mem::take(&mut self.stopping) {
            if self.living.get(&child).is_some_and(|living| living.incarnation == incarnation) {
                self.stopping.push((child, incarnation, answer));
            } else {
                let _ = answer.send(Ok(()));
            }
        }
    }

    fn is_starting(&self, child: &ChildId) -> bool {
        matches!(self.living.get(child), Some(Living { stage: Stage::Starting { .. }, .. }))
    }

    fn start(&mut self, myself: &ActorRef<Order>, child: ChildId, incarnation: ChildIncarnation) {
        let (spec, crashes) = {
            let inner = self.supervisor.shared.lock();
            let view = inner.core.view_child(&child, Tick(0));
            (inner.specs.get(&child).cloned(), view.map_or(0, |view| view.crashes))
        };
        // The core starts only what was registered with its description.
        let Some(spec) = spec else { return };
        let (life, end) = Life::begin(Some(self.life.clone()));
        let start = Start { id: child.clone(), incarnation, crashes };
        let place = Place { start, supervisor: myself.clone(), life };
        let recorded = self.records.remove(&child);
        let within = spec.start_within;
        let task = tokio::spawn(async move {
            if let Some(recorded) = recorded {
                // It has logged its failure.
                let _ = recorded.await;
            }
            tokio::time::timeout(within.duration(), (spec.starter)(place)).await
        });
        let stage = Stage::Starting { task: task.abort_handle(), stop: None };
        self.living.insert(child.clone(), Living { incarnation, stage });
        let myself = myself.clone();
        tokio::spawn(async move {
            let failure = match task.await {
                Ok(Ok(Ok(newborn))) => {
                    // Without a supervisor the newborn, linked to it, is killed by ractor.
                    let outcome = Ok((newborn, end));
                    let _ = myself.send_message(Order::Began { child, incarnation, outcome });
                    return;
                }
                Ok(Ok(Err(failure))) => failure,
                Ok(Err(_)) => {
                    StartFailure { class: ExitClass::Crash, reason: format!("it did not start within {within}") }
                }
                Err(error) => StartFailure { class: ExitClass::Crash, reason: error.to_string() },
            };
            // Ends without a value when nothing of the failed life is left.
            let _ = end.await;
            let _ = myself.send_message(Order::Began { child, incarnation, outcome: Err(failure) });
        });
    }

    fn stop(&mut self, child: &ChildId, shutdown: Shutdown) {
        let path = self.path_of(child);
        match self.living.get_mut(child).map(|living| &mut living.stage) {
            Some(Stage::Starting { task, stop }) => {
                *stop = Some(shutdown);
                task.abort();
            }
            Some(Stage::Up { cell, stopper }) => match shutdown {
                Shutdown::Brutal => cell.kill(),
                Shutdown::Subtree => stopper.stop(),
                Shutdown::Graceful(within) => {
                    stopper.stop();
                    let cell = cell.clone();
                    tokio::spawn(async move {
                        if cell.wait(Some(within.duration())).await.is_err() {
                            tracing::warn!(child = path, %within, "did not stop in time and is killed");
                            cell.kill();
                        }
                    });
                }
            },
            // Its end is on its way to the core.
            None => {}
        }
    }

    /// Sets or clears the persisted crashes of a child, one after the other.
    fn record(&mut self, child: ChildId, crashed: Option<(u32, String)>) {
        let ledger = Arc::clone(&self.supervisor.shared.ledger);
        let path = self.path_of(&child);
        let before = self.records.remove(&child);
        self.records.retain(|_, task| !task.is_finished());
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            let done = match crashed {
                Some((count, why)) => ledger.record(&path, count, &why).await,
                None => ledger.clear(&path).await,
            };
            if let Err(error) = done {
                let (_, reason) = classify(&error);
                tracing::error!(child = path, reason, "the crash ledger failed: a crash may be counted twice or not");
            }
        });
        self.records.insert(child, task);
    }
}
