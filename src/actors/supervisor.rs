//! Supervisors. Owns: what can be asked of a supervisor, and how a root ends.
//! Always: a handle stays valid over restarts; children stay registered over restarts of their supervisor; no global
//! name is used, so several regions fit into one process.
//! Not here: who is restarted when (`decision/supervision.rs`), how that is done (`supervise.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::{Actor, ActorRef};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use super::child::{ChildSpec, Newborn, Place, Shown, Stopper};
use super::ledger::{CrashLedger, LedgerError};
use super::mailbox::Load;
use super::serve::{Life, LifeEnd};
use super::supervise::{Answer, Order, SupervisorActor};
use super::tree::{Moment, Tree};
use crate::clock::Clock;
use crate::decision::supervision::{
    Budget, ChildId, ChildIncarnation, ChildPolicy, ChildState, ChildView, GaveUp, Refusal, Restart, Shutdown,
    Strategy, Supervision,
};
use crate::types::Tick;
use crate::types::limits::{BUSY_RETRY_MS_MIN, REGION_STOP_MS_MAX, START_MS_MAX, SUPERVISOR_REQUESTS_MAX};

/// What a supervisor is.
#[derive(Debug, Clone)]
pub struct SupervisorSpec {
    /// Its id among its siblings.
    pub id: ChildId,
    /// Who is restarted together.
    pub strategy: Strategy,
    /// How often and how fast.
    pub budget: Budget,
}

impl SupervisorSpec {
    /// With the default budget.
    pub fn new(id: impl Into<ChildId>, strategy: Strategy) -> Self {
        Self { id: id.into(), strategy, budget: Budget::default() }
    }
    /// With another budget.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }
}

/// Why a supervisor did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// It decided against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many requests wait already.
    #[error("the supervisor is busy, try again in {retry_after_ms} ms")]
    Busy { retry_after_ms: u64 },
    /// It does not run: it is being restarted, or has ended.
    #[error("supervisor '{0}' is not running")]
    Gone(ChildId),
    /// How often the child crashed in earlier lives can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// How a root supervisor ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It was shut down.
    #[error("shut down")]
    Shutdown,
    /// It gave up: the process should exit with this reason and a code that is not 0.
    #[error("gave up: {0}")]
    GaveUp(#[from] GaveUp),
    /// It died itself, or something below it did not stop, which are bugs.
    #[error("the root supervisor died or did not stop in time; this is a bug, please report it with the log")]
    Died,
}

pub(super) struct Inner {
    pub core: Supervision,
    pub specs: BTreeMap<ChildId, ChildSpec>,
    /// Where its present life is reached.
    pub port: Option<ActorRef<Order>>,
    /// How its last life ended, if by decision.
    pub ended: Option<Ended>,
}

/// What the copies of a handle and the actor share.
pub(super) struct Shared {
    pub id: ChildId,
    /// Its path from the root, which has none, with a slash behind it.
    pub path: String,
    pub clock: Clock,
    seed: u64,
    pub ledger: Arc<dyn CrashLedger>,
    inner: Mutex<Inner>,
    requests: Arc<Semaphore>,
    /// Told when it begins to stop.
    pub leaving: Notify,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // The core asserts nothing under the lock, and `begin` makes it whole again.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A supervisor. Cheap to copy; stays valid over restarts.
#[derive(Clone)]
pub struct Supervisor {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl Supervisor {
    fn describe(spec: SupervisorSpec, path: String, clock: Clock, seed: u64, ledger: Arc<dyn CrashLedger>) -> Self {
        let inner = Inner {
            core: Supervision::new(spec.strategy, spec.budget, seed),
            specs: BTreeMap::new(),
            port: None,
            ended: None,
        };
        let shared = Shared {
            id: spec.id,
            path,
            clock,
            seed,
            ledger,
            inner: Mutex::new(inner),
            requests: Arc::new(Semaphore::new(SUPERVISOR_REQUESTS_MAX)),
            leaving: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Adds a child, last in order, and starts it. Answers when its first start has succeeded, failed (it is then
    /// tried again), or has to wait for children before it.
    pub async fn add_child(&self, spec: ChildSpec) -> Result<ChildState, SupervisorError> {
        let crashes = match spec.policy.crashes_max {
            Some(_) => self.shared.ledger.load(&format!("{}{}", self.shared.path, spec.id)).await?,
            None => 0,
        };
        self.ask(|answer, _permit| Order::Add { spec: Box::new(spec), crashes, answer, _permit }).await
    }

    /// Adds a supervisor as a child. It is stopped when all below it is, each child with its own deadline.
    pub async fn add_supervisor(&self, spec: SupervisorSpec, restart: Restart) -> Result<Supervisor, SupervisorError> {
        let id = spec.id.clone();
        let path = format!("{}{}/", self.shared.path, id);
        let seed = id
            .as_str()
            .bytes()
            .fold(self.shared.seed, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let nested = Self::describe(spec, path, self.shared.clock.clone(), seed, Arc::clone(&self.shared.ledger));
        let child = nested.clone();
        let spec = ChildSpec {
            id,
            policy: ChildPolicy { restart, shutdown: Shutdown::Subtree, crashes_max: None },
            start_within: START_MS_MAX,
            starter: Arc::new(move |place: Place| {
                let args = (child.clone(), place.life);
                let above = place.supervisor.get_cell();
                Box::pin(async move {
                    let (port, join) = SupervisorActor::spawn_linked(None, SupervisorActor, args, above).await?;
                    Ok(Newborn { cell: port.get_cell(), join, stopper: Stopper::Supervisor(port) })
                })
            }),
            shown: Shown::Supervisor(nested.clone()),
        };
        self.add_child(spec).await?;
        Ok(nested)
    }

    /// Stops a child and keeps it listed; one that is parked stays so. Answers when nothing of it is alive.
    pub async fn stop_child(&self, id: impl Into<ChildId>) -> Result<(), SupervisorError> {
        let child = id.into();
        self.ask(|answer, _permit| Order::Stop { child, forget: false, answer, _permit }).await
    }

    /// Stops a child and forgets it, with its crashes. Answers when nothing of it is alive.
    pub async fn remove_child(&self, id: impl Into<ChildId>) -> Result<(), SupervisorError> {
        let child = id.into();
        self.ask(|answer, _permit| Order::Stop { child, forget: true, answer, _permit }).await
    }

    /// Starts a child that is parked, stopped or paused, and forgives its crashes; one that runs is stopped first.
    /// Answers when that is under way.
    pub async fn restart_child(&self, id: impl Into<ChildId>) -> Result<(), SupervisorError> {
        let child = id.into();
        self.ask(|answer, _permit| Order::Restart { child, answer, _permit }).await
    }

    /// Has an actor crash where it is, for tests: what follows is what follows a crash. False if it does not run now.
    pub async fn crash_child(&self, id: impl Into<ChildId>) -> Result<bool, SupervisorError> {
        let child = id.into();
        self.ask(|answer, _permit| Order::Crash { child, answer, _permit }).await
    }

    /// What one child does.
    pub fn child(&self, id: impl Into<ChildId>) -> Option<ChildView> {
        self.shared.lock().core.view_child(&id.into(), self.shared.clock.now())
    }

    /// This supervisor and everything below it. Waits for nobody.
    pub fn tree(&self) -> Tree {
        let moment = Moment { now: self.shared.clock.now(), wall: self.shared.clock.wall() };
        let state = if self.shared.lock().port.is_some() {
            ChildState::Running { since: Tick(0) }
        } else {
            ChildState::Stopped
        };
        let view = ChildView {
            id: self.shared.id.clone(),
            state,
            incarnation: ChildIncarnation(1),
            restarts_in_window: 0,
            restarts_total: 0,
            crashes: 0,
            last_failure: None,
        };
        moment.node(view, Load::default(), self.branches(moment))
    }

    fn branches(&self, moment: Moment) -> Vec<Tree> {
        let children: Vec<_> = {
            let inner = self.shared.lock();
            let views = inner.core.view(moment.now).into_iter();
            views.map(|view| (inner.specs.get(&view.id).map(|spec| spec.shown.clone()), view)).collect()
        };
        children
            .into_iter()
            .map(|(shown, view)| match shown {
                Some(Shown::Actor(gauge)) => moment.node(view, gauge.load(moment.now), Vec::new()),
                Some(Shown::Supervisor(nested)) => moment.node(view, Load::default(), nested.branches(moment)),
                None => moment.node(view, Load::default(), Vec::new()),
            })
            .collect()
    }

    async fn ask<T>(&self, order: impl FnOnce(Answer<T>, OwnedSemaphorePermit) -> Order) -> Result<T, SupervisorError> {
        let gone = || SupervisorError::Gone(self.shared.id.clone());
        let Ok(permit) = Arc::clone(&self.shared.requests).try_acquire_owned() else {
            return Err(SupervisorError::Busy { retry_after_ms: BUSY_RETRY_MS_MIN.0 });
        };
        let port = self.shared.lock().port.clone().ok_or_else(gone)?;
        let (answer, answered) = oneshot::channel();
        port.send_message(order(answer, permit)).map_err(|_| gone())?;
        Ok(answered.await.map_err(|_| gone())??)
    }
}

/// The supervisor of a region, which nobody supervises. Cheap to copy. What a [`Supervisor`] does, it does too.
#[derive(Debug, Clone)]
pub struct Root {
    supervisor: Supervisor,
    ended: watch::Receiver<Option<Ended>>,
}

impl std::ops::Deref for Root {
    type Target = Supervisor;
    fn deref(&self) -> &Supervisor {
        &self.supervisor
    }
}

impl Root {
    /// Starts one. `seed` decides the jitter of all pauses below it; `ledger` remembers crashes over lives of the
    /// process.
    pub async fn start(
        spec: SupervisorSpec,
        clock: Clock,
        seed: u64,
        ledger: Arc<dyn CrashLedger>,
    ) -> Result<Root, SupervisorError> {
        let supervisor = Supervisor::describe(spec, String::new(), clock, seed, ledger);
        let (life, end) = Life::begin(None);
        let args = (supervisor.clone(), life);
        let gone = |_| SupervisorError::Gone(supervisor.shared.id.clone());
        let (_, join) = SupervisorActor::spawn(None, SupervisorActor, args).await.map_err(gone)?;
        let (tell, ended) = watch::channel(None);
        tokio::spawn(watch_root(supervisor.clone(), join, end, tell));
        Ok(Root { supervisor, ended })
    }

    /// Stops everything below in reverse order, each child with its deadline, then itself; see [`Root::ended`].
    pub async fn shutdown(&self) -> Ended {
        let port = self.shared.lock().port.clone();
        if let Some(port) = port {
            // If it ends meanwhile, that is what is waited for.
            let _ = port.send_message(Order::Shutdown);
        }
        self.ended().await
    }

    /// Resolves when it has ended and nothing below it is alive, or a minute (`REGION_STOP_MS_MAX`) after it began
    /// to stop.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        ended.unwrap_or(Ended::Died)
    }
}

/// Tells how a root ended: when nothing of it is alive, or when that takes too long.
async fn watch_root(root: Supervisor, join: JoinHandle<()>, end: LifeEnd, tell: watch::Sender<Option<Ended>>) {
    let over = async {
        // Both end without a value: what matters is that they did.
        let _ = join.await;
        let _ = end.await;
    };
    let late = async {
        root.shared.leaving.notified().await;
        tokio::time::sleep(REGION_STOP_MS_MAX.duration()).await;
    };
    tokio::select! {
        biased;
        () = over => {}
        () = late => {
            let tree = root.tree();
            tracing::error!(?tree, "what still runs does not stop within {REGION_STOP_MS_MAX}; it is left behind");
        }
    }
    let mut inner = root.shared.lock();
    let ended = match (inner.ended.take(), inner.core.leaving()) {
        (Some(ended), _) => ended,
        (None, Some(Some(gave_up))) => Ended::GaveUp(gave_up.clone()),
        (None, Some(None) | None) => Ended::Died,
    };
    drop(inner);
    tell.send_replace(Some(ended));
}
