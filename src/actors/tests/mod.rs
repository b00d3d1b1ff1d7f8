//! Properties of supervision and mailboxes, on paused time.

mod mailbox;
mod storm;
mod supervisor;

use std::sync::{Arc, Mutex};

use super::{
    Class, CrashLedger, Ctx, Exit, Handle, HandlerError, MemoryLedger, Reply, Root, Serve, Start, SupervisorSpec,
};
use crate::clock::Clock;
use crate::decision::supervision::{ChildState, Strategy};
use crate::types::Millis;

/// What happened, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().expect("no test panics under the lock").push(what.into());
    }
    fn all(&self) -> Vec<String> {
        self.0.lock().expect("no test panics under the lock").clone()
    }
    fn count(&self, what: &str) -> usize {
        self.all().iter().filter(|entry| entry.starts_with(what)).count()
    }
}

/// What the actor of the tests can be told.
enum Tell {
    Panic,
    Fail,
    Exit(Exit),
    Sleep(Millis),
    Note(&'static str),
    Incarnation(Reply<u64>),
    /// Keeps the reply, and sends it after a while from a task that outlives the actor.
    AnswerLate(Millis, Reply<u64>),
    TaskPanic,
    Progress,
    Trace(Reply<u128>),
    Remind(Millis, &'static str),
}

#[derive(Debug, thiserror::Error)]
#[error("planned")]
struct Planned;

struct Puppet {
    name: &'static str,
    log: Log,
}

impl Serve for Puppet {
    type Message = Tell;

    async fn started(&mut self, ctx: &mut Ctx<Tell>) -> Result<(), HandlerError> {
        self.log.add(format!("start {} {}", self.name, ctx.incarnation()));
        Ok(())
    }

    async fn handle(&mut self, message: Tell, ctx: &mut Ctx<Tell>) -> Result<(), HandlerError> {
        match message {
            Tell::Panic => panic!("planned panic of {}", self.name),
            Tell::Fail => Err(Planned)?,
            Tell::Exit(exit) => Err(exit)?,
            Tell::Sleep(pause) => tokio::time::sleep(pause.duration()).await,
            Tell::Note(note) => self.log.add(note),
            Tell::Incarnation(reply) => drop(reply.send(ctx.incarnation().0)),
            Tell::AnswerLate(pause, reply) => {
                let (log, incarnation) = (self.log.clone(), ctx.incarnation().0);
                tokio::spawn(async move {
                    tokio::time::sleep(pause.duration()).await;
                    log.add(format!("late answer delivered: {}", reply.send(incarnation)));
                });
            }
            Tell::TaskPanic => drop(ctx.spawn(async { panic!("planned panic of a task") })),
            Tell::Progress => ctx.progress(),
            Tell::Trace(reply) => drop(reply.send(ctx.trace())),
            Tell::Remind(pause, note) => drop(ctx.send_after(pause, Class::Control, Tell::Note(note))),
        }
        Ok(())
    }

    async fn stopped(&mut self, _: &mut Ctx<Tell>) {
        self.log.add(format!("stop {}", self.name));
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.log.add(format!("drop {}", self.name));
    }
}

/// A root, and what its children do.
struct Stage {
    root: Root,
    clock: Clock,
    log: Log,
}

impl Stage {
    async fn new(strategy: Strategy) -> Stage {
        Stage::with_ledger(strategy, Arc::new(MemoryLedger::default())).await
    }

    async fn with_ledger(strategy: Strategy, ledger: Arc<dyn CrashLedger>) -> Stage {
        let clock = Clock::start();
        let root =
            Root::start(SupervisorSpec::new("root", strategy), clock.clone(), 7, ledger).await.expect("it starts");
        Stage { root, clock, log: Log::default() }
    }

    fn puppet(&self, name: &'static str) -> (super::ChildSpec, Handle<Tell>) {
        let handle = Handle::new(self.clock.clone(), super::Admission::each(8));
        let log = self.log.clone();
        let make = move |_: Start| std::future::ready(Ok(Puppet { name, log: log.clone() }));
        (super::ChildSpec::actor(name, &handle, make), handle)
    }

    async fn add(&self, name: &'static str) -> Handle<Tell> {
        let (spec, handle) = self.puppet(name);
        let state = self.root.add_child(spec).await.expect("it is added");
        assert!(matches!(state, ChildState::Running { .. }), "{state:?}");
        handle
    }

    /// Waits until a child does what `wanted` says, at most ten virtual minutes.
    async fn until(&self, name: &'static str, wanted: impl Fn(&ChildState) -> bool) -> ChildState {
        let deadline = self.clock.now().plus(Millis(600_000));
        loop {
            let state = self.root.child(name).expect("it is listed").state;
            if wanted(&state) {
                return state;
            }
            assert!(self.clock.now() < deadline, "'{name}' is {state:?} after ten minutes");
            tokio::time::sleep(Millis(1).duration()).await;
        }
    }

    async fn until_running(&self, name: &'static str) {
        self.until(name, |state| matches!(state, ChildState::Running { .. })).await;
    }
}
