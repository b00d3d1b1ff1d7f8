//! Children. Owns: what a supervisor must know to start, stop, watch and show a child, whatever kind it is.
//! Always: a description can start any number of lives, one after the other.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorRef, SpawnErr};
use tokio::task::JoinHandle;

use super::mailbox::{Gauge, Handle};
use super::serve::{Birth, HandlerError, Life, Run, Serve, Shell, Start, classify};
use super::supervise::Order;
use super::supervisor::Supervisor;
use crate::decision::supervision::{ChildId, ChildIncarnation, ChildPolicy, ExitClass, Restart, Shutdown};
use crate::types::Millis;
use crate::types::limits::START_MS_MAX;

/// Where a life begins.
pub(super) struct Place {
    pub start: Start,
    pub supervisor: ActorRef<Order>,
    pub life: Life,
}

/// A life that has begun.
pub(super) struct Newborn {
    pub cell: ActorCell,
    pub join: JoinHandle<()>,
    pub stopper: Stopper,
}

/// How a life is asked to stop.
pub(super) enum Stopper {
    Actor { gauge: Arc<dyn Gauge>, incarnation: ChildIncarnation, cell: ActorCell },
    Supervisor(ActorRef<Order>),
}

impl Stopper {
    pub(super) fn stop(&self) {
        match self {
            Self::Actor { gauge, incarnation, cell } => {
                gauge.finish(*incarnation);
                cell.stop(None);
            }
            // It may have ended by itself already: then its end is on its way.
            Self::Supervisor(port) => drop(port.send_message(Order::Shutdown)),
        }
    }
}

/// Why a life did not begin.
pub(super) struct StartFailure {
    pub class: ExitClass,
    pub reason: String,
}

impl From<SpawnErr> for StartFailure {
    fn from(error: SpawnErr) -> Self {
        match error {
            SpawnErr::StartupFailed(error) => {
                let (class, reason) = classify(&*error);
                Self { class, reason }
            }
            error => Self { class: ExitClass::Crash, reason: error.to_string() },
        }
    }
}

type Starting = Pin<Box<dyn Future<Output = Result<Newborn, StartFailure>> + Send>>;
type Starter = Arc<dyn Fn(Place) -> Starting + Send + Sync>;

/// What a child shows of itself in the tree.
#[derive(Clone)]
pub(super) enum Shown {
    Actor(Arc<dyn Gauge>),
    Supervisor(Supervisor),
}

/// A child as its supervisor keeps it.
#[derive(Clone)]
pub struct ChildSpec {
    pub(super) id: ChildId,
    pub(super) policy: ChildPolicy,
    pub(super) start_within: Millis,
    pub(super) starter: Starter,
    pub(super) shown: Shown,
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec").field("id", &self.id).field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl ChildSpec {
    /// An actor that is there always ([`ChildPolicy::permanent`]). `make` is called for each of its lives, whose
    /// messages come in over `handle`.
    pub fn actor<S, F, Fut>(id: impl Into<ChildId>, handle: &Handle<S::Message>, make: F) -> Self
    where
        S: Serve,
        F: Fn(Start) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        let handle = handle.clone();
        let gauge: Arc<dyn Gauge> = handle.mailbox.clone();
        let starter: Starter = Arc::new(move |place: Place| {
            let making = Box::pin(make(place.start.clone()));
            let handle = handle.clone();
            Box::pin(async move {
                let incarnation = place.start.incarnation;
                let gauge: Arc<dyn Gauge> = handle.mailbox.clone();
                let Place { start, supervisor, life } = place;
                let above = supervisor.get_cell();
                let birth = Birth { start, making, handle, supervisor, life };
                let (actor, join) = Shell::<S>::spawn_linked(None, Shell::new(), birth, above).await?;
                let cell = ActorRef::<Run>::get_cell(&actor);
                Ok(Newborn { cell: cell.clone(), join, stopper: Stopper::Actor { gauge, incarnation, cell } })
            })
        });
        Self {
            id: id.into(),
            policy: ChildPolicy::permanent(),
            start_within: START_MS_MAX,
            starter,
            shown: Shown::Actor(gauge),
        }
    }

    /// With other rules.
    pub fn policy(mut self, policy: ChildPolicy) -> Self {
        self.policy = policy;
        self
    }
    /// As a job: it ends by itself one day, and is quarantined if it crashes again and again without progress.
    pub fn job(self) -> Self {
        self.policy(ChildPolicy::job())
    }
    /// Restarted otherwise.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.policy.restart = restart;
        self
    }
    /// Stopped otherwise.
    pub fn shutdown(mut self, shutdown: Shutdown) -> Self {
        self.policy.shutdown = shutdown;
        self
    }
    /// With another limit for its start.
    pub fn start_within(mut self, within: Millis) -> Self {
        self.start_within = within;
        self
    }
    /// Its id.
    pub fn id(&self) -> &ChildId {
        &self.id
    }
}
