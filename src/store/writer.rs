//! The writer: group commit. Owns: the queue, its threads, who waits for which commit.
//! Always: it commits when it is free and takes everything that waits in one go, up to `STORE_BATCH_MAX`, without
//! lingering; a caller hears of its transaction only after the commit that holds it, and of a refusal only after the
//! commit that holds what the refusal was based on; a closure that panics or refuses takes nothing else with it.
//!
//! Two threads take turns. The one in the lead runs closures and seals their values, one after the other, into the next
//! group; when no commit is under way it passes the lead on, commits its group and replies, while the other gathers
//! the group after it. So closures and encryption cost no time of the disk, and a lone transaction sees one thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use super::engine::{Engine, guarded};
use super::error::{StoreError, TransactError};
use super::overlay::Overlay;
use super::space::Space;
use super::txn::{Counters, Group, Minted, Txn};
use crate::types::limits::{STORE_BATCH_MAX, STORE_QUEUE_MAX};
use crate::types::{Incarnation, Millis};

/// After so much quiet the mark of the last commit is synced (`header.rs`). Longer than the pauses between the steps
/// of a busy job, so that its next commit does not wait for this sync: its own brings the mark along.
const MARK_SYNC_MS: Millis = Millis(50);

/// Whether a transaction begins something or goes on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It begins something: refused when disk space is short.
    New,
    /// It goes on with something, or ends it: allowed as long as the disk takes it.
    Finish,
}

/// A transaction that waits.
trait Task: Send {
    fn class(&self) -> Work;
    /// Runs the closure; true if its writes count.
    fn run(&mut self, txn: &mut Txn<'_, '_>) -> bool;
    /// Replies: with the closure's outcome, or with `failed` in its place.
    fn reply(self: Box<Self>, failed: Option<StoreError>);
}

struct Call<T, E, F> {
    class: Work,
    closure: Option<F>,
    outcome: Option<Result<T, TransactError<E>>>,
    reply: oneshot::Sender<Result<T, TransactError<E>>>,
}

impl<T, E, F> Task for Call<T, E, F>
where
    T: Send + 'static,
    E: Send + 'static,
    F: FnOnce(&mut Txn<'_, '_>) -> Result<T, E> + Send + 'static,
{
    fn class(&self) -> Work {
        self.class
    }
    fn run(&mut self, txn: &mut Txn<'_, '_>) -> bool {
        let Some(closure) = self.closure.take() else { return false };
        let outcome = match guarded(|| closure(txn)) {
            Ok(result) => result.map_err(TransactError::Refused),
            Err(message) => Err(TransactError::Store(StoreError::Panicked { message })),
        };
        let counts = outcome.is_ok();
        self.outcome = Some(outcome);
        counts
    }
    fn reply(self: Box<Self>, failed: Option<StoreError>) {
        let outcome = match (failed, self.outcome) {
            (Some(error), _) => Err(TransactError::Store(error)),
            (None, Some(outcome)) => outcome,
            (None, None) => Err(TransactError::Store(StoreError::Closed)),
        };
        // Nobody listens if the caller gave up: the commit stands all the same.
        let _ = self.reply.send(outcome);
    }
}

/// Replies to a task. What it captured may panic when dropped; that must not take the writer with it.
fn reply(task: Box<dyn Task>, failed: Option<StoreError>) {
    if let Err(message) = guarded(|| task.reply(failed)) {
        tracing::error!(message, "what a transaction captured panicked when dropped");
    }
}

/// Figures of the writer since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WriterStats {
    /// Transactions that ran.
    pub transactions: u64,
    /// Groups that ran, with or without anything to commit.
    pub groups: u64,
    /// Transactions of the largest group.
    pub largest_group: u64,
    /// Transactions that were refused for lack of disk space.
    pub refused_for_space: u64,
    /// Transactions that were refused because the queue was full.
    pub refused_as_busy: u64,
    /// Transactions that wait now.
    pub waiting: u64,
}

#[derive(Default)]
struct Figures {
    transactions: AtomicU64,
    groups: AtomicU64,
    largest_group: AtomicU64,
    refused_for_space: AtomicU64,
    refused_as_busy: AtomicU64,
}

/// Runs groups.
pub(super) struct Runner {
    pub(super) engine: Arc<Engine>,
    pub(super) counters: Counters,
    pub(super) incarnation: Incarnation,
    pub(super) space: Space,
    pub(super) reserve_bytes: u64,
    /// How many commands the outbox was given, as far as that is durable.
    pub(super) enqueued: watch::Sender<u64>,
    figures: Figures,
}

impl Runner {
    pub(super) fn new(engine: Arc<Engine>, incarnation: Incarnation, space: Space, reserve_bytes: u64) -> Runner {
        let (counters, figures) = (Counters::default(), Figures::default());
        Runner { engine, counters, incarnation, space, reserve_bytes, enqueued: watch::Sender::new(0), figures }
    }

    fn group(&self, below: Option<Arc<Overlay>>) -> Group<'_> {
        Group::new(&self.engine, &self.counters, self.incarnation, below)
    }

    /// Runs `tasks` in `group`; those that were refused for another reason than their own are answered at once, the
    /// others put into `ran`.
    fn run(
        &self,
        group: &mut Group<'_>,
        tasks: impl ExactSizeIterator<Item = Box<dyn Task>>,
        ran: &mut Vec<Box<dyn Task>>,
    ) {
        self.figures.transactions.fetch_add(tasks.len() as u64, Ordering::Relaxed);
        let failure = self.engine.failure();
        // Asked once, and only if it matters.
        let mut short = None;
        for mut task in tasks {
            if let Some(failure) = &failure {
                reply(task, Some(failure.clone()));
                continue;
            }
            if task.class() == Work::New
                && let Some(short) = short.get_or_insert_with(|| self.short_of_space())
            {
                self.figures.refused_for_space.fetch_add(1, Ordering::Relaxed);
                reply(task, Some(short.clone()));
                continue;
            }
            let mut txn = Txn::new(group);
            if task.run(&mut txn)
                && let Err(error) = txn.accept()
            {
                reply(task, Some(error));
                continue;
            }
            ran.push(task);
        }
    }

    /// Commits what `ran` wrote and replies. `took_us` is how long that takes, where it is not to be measured.
    fn finish(&self, writes: &Overlay, ran: Vec<Box<dyn Task>>, took_us: Option<u64>) {
        let size = ran.len() as u64;
        self.figures.groups.fetch_add(1, Ordering::Relaxed);
        self.figures.largest_group.fetch_max(size, Ordering::Relaxed);
        // A group that wrote nothing is as durable as what it read.
        let committed = match took_us {
            _ if writes.is_empty() => Ok(()),
            None => self.engine.commit(writes),
            Some(took_us) => self.engine.commit_untimed(writes).map(|()| self.engine.took(took_us)),
        };
        // The medium may have failed in a read, too: then what a closure answered may rest on it.
        let failed = committed.err().or_else(|| self.engine.failure());
        let enqueued = self.counters.last(Minted::Message);
        self.enqueued.send_if_modified(|known| std::mem::replace(known, enqueued) != enqueued);
        for task in ran {
            reply(task, failed.clone());
        }
    }

    /// Runs one task as a group of its own.
    fn run_alone(&self, task: Box<dyn Task>, took_us: u64) {
        let (mut group, mut ran) = (self.group(None), Vec::with_capacity(1));
        self.run(&mut group, std::iter::once(task), &mut ran);
        self.finish(&group.into_writes(), ran, Some(took_us));
    }

    fn short_of_space(&self) -> Option<StoreError> {
        let free = self.space.free()?;
        (free < self.reserve_bytes).then_some(StoreError::NoSpace { free, reserve: self.reserve_bytes })
    }
}

/// What waits, and whether a commit is under way.
#[derive(Default)]
struct Waiting {
    tasks: VecDeque<Box<dyn Task>>,
    committing: bool,
    closing: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// A task came, a commit ended, or it closes: only the thread in the lead waits for it.
    changed: Condvar,
    /// The writes of the commit under way.
    below: Mutex<Option<Arc<Overlay>>>,
    lead: Mutex<()>,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn below(&self) -> MutexGuard<'_, Option<Arc<Overlay>>> {
        self.below.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Lets the thread in the lead commit.
    fn commit_ended(&self) {
        self.waiting().committing = false;
        self.changed.notify_one();
    }
}

enum Lane {
    /// Two threads of its own, and the queue to them.
    Threads { queue: Arc<Queue>, threads: Mutex<Vec<JoinHandle<()>>> },
    /// The caller's own thread: for simulations, which have no others.
    Inline(Mutex<()>),
    /// The same, one after the other, each after this many milliseconds.
    After { turn: Arc<tokio::sync::Mutex<()>>, delay_ms: Arc<AtomicU64> },
}

/// The way to the writer.
pub(super) struct Writer {
    pub(super) runner: Arc<Runner>,
    lane: Lane,
}

impl Writer {
    /// A writer with threads of its own.
    pub(super) fn spawn(runner: Runner) -> Result<Writer, StoreError> {
        let (runner, queue) = (Arc::new(runner), Arc::new(Queue::default()));
        let mut threads = Vec::with_capacity(2);
        for name in ["novafed-store-a", "novafed-store-b"] {
            let (of_thread, inbox) = (Arc::clone(&runner), Arc::clone(&queue));
            let spawned = std::thread::Builder::new().name(name.into()).spawn(move || take_turns(&of_thread, &inbox));
            threads.push(spawned.map_err(|e| StoreError::Failed {
                attempt: "starting the writer's threads",
                cause: e.to_string().into(),
                full: false,
            })?);
        }
        Ok(Writer { runner, lane: Lane::Threads { queue, threads: Mutex::new(threads) } })
    }

    /// A writer that runs each transaction where it is asked for, or in turn, after so many milliseconds.
    pub(super) fn inline(runner: Runner, delay_ms: Option<Arc<AtomicU64>>) -> Writer {
        let lane = match delay_ms {
            None => Lane::Inline(Mutex::new(())),
            Some(delay_ms) => Lane::After { turn: Arc::default(), delay_ms },
        };
        Writer { runner: Arc::new(runner), lane }
    }

    /// Runs `closure` in a transaction; see [`super::Store::transact`].
    pub(super) async fn transact<T, E, F>(&self, class: Work, closure: F) -> Result<T, TransactError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&mut Txn<'_, '_>) -> Result<T, E> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task = Box::new(Call { class, closure: Some(closure), outcome: None, reply });
        match &self.lane {
            Lane::Inline(turn) => {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                self.runner.run_alone(task, 0);
            }
            Lane::After { turn, delay_ms } => {
                let (runner, turn, delay_ms) = (Arc::clone(&self.runner), Arc::clone(turn), Arc::clone(delay_ms));
                // In a task of its own: what was asked for is done, even if the caller gives up meanwhile.
                tokio::spawn(async move {
                    let _turn = turn.lock().await;
                    let delay_ms = delay_ms.load(Ordering::Relaxed) + runner.engine.brake.delay().0;
                    tokio::time::sleep(Millis(delay_ms).duration()).await;
                    runner.run_alone(task, delay_ms * 1_000);
                });
            }
            Lane::Threads { queue, .. } => {
                let mut waiting = queue.waiting();
                if waiting.closing {
                    return Err(TransactError::Store(StoreError::Closed));
                }
                if waiting.tasks.len() >= STORE_QUEUE_MAX {
                    self.runner.figures.refused_as_busy.fetch_add(1, Ordering::Relaxed);
                    return Err(TransactError::Store(StoreError::Busy { waiting: waiting.tasks.len() }));
                }
                waiting.tasks.push_back(task);
                drop(waiting);
                queue.changed.notify_one();
            }
        }
        answer.await.unwrap_or_else(|_| Err(TransactError::Store(StoreError::Closed)))
    }

    pub(super) fn stats(&self) -> WriterStats {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let figures = &self.runner.figures;
        WriterStats {
            transactions: read(&figures.transactions),
            groups: read(&figures.groups),
            largest_group: read(&figures.largest_group),
            refused_for_space: read(&figures.refused_for_space),
            refused_as_busy: read(&figures.refused_as_busy),
            waiting: match &self.lane {
                Lane::Threads { queue, .. } => queue.waiting().tasks.len() as u64,
                Lane::Inline(_) | Lane::After { .. } => 0,
            },
        }
    }

    /// Lets the writer finish what waits, ends its threads and waits for them.
    pub(super) fn stop(&self) {
        let Lane::Threads { queue, threads } = &self.lane else { return };
        queue.waiting().closing = true;
        queue.changed.notify_all();
        let threads = std::mem::take(&mut *threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The last handle may be dropped by a closure, in one of these threads: it can't wait for itself, nor for the
        // other, which may wait for it. Both end by themselves.
        if threads.iter().any(|thread| thread.thread().id() == std::thread::current().id()) {
            return;
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store's writer panicked");
            }
        }
    }
}

/// What each of the two threads does.
fn take_turns(runner: &Runner, queue: &Queue) {
    let lead = || queue.lead.lock().unwrap_or_else(PoisonError::into_inner);
    let mut leading = lead();
    loop {
        let below = queue.below().clone();
        let (mut group, mut ran) = (runner.group(below), Vec::new());
        if !gather(runner, queue, &mut group, &mut ran) {
            return;
        }
        let writes = Arc::new(group.into_writes());
        if ran.len() == 1 {
            // A lone transaction, and nothing to gather most likely: waking the other thread would only cost time.
            runner.finish(&writes, ran, None);
            queue.commit_ended();
            continue;
        }
        // No other commit is under way, so what lies below the next group is this one alone.
        *queue.below() = Some(Arc::clone(&writes));
        drop(leading);
        runner.finish(&writes, ran, None);
        *queue.below() = None;
        queue.commit_ended();
        leading = lead();
    }
}

/// Runs what comes until there is something to commit and nobody else commits. False if it closes.
fn gather<'r>(runner: &'r Runner, queue: &Queue, group: &mut Group<'r>, ran: &mut Vec<Box<dyn Task>>) -> bool {
    let mut waiting = queue.waiting();
    loop {
        let room = STORE_BATCH_MAX.saturating_sub(ran.len()).min(waiting.tasks.len());
        if room > 0 {
            let tasks: Vec<_> = waiting.tasks.drain(..room).collect();
            drop(waiting);
            runner.run(group, tasks.into_iter(), ran);
            waiting = queue.waiting();
        } else if !waiting.committing && !ran.is_empty() {
            waiting.committing = true;
            return true;
        } else if !waiting.committing && waiting.closing {
            return false;
        } else if !waiting.committing && runner.engine.mark_is_unsynced() {
            let quiet = |waiting: &mut Waiting| waiting.tasks.is_empty() && !waiting.closing;
            let waited = queue.changed.wait_timeout_while(waiting, MARK_SYNC_MS.duration(), quiet);
            let (guard, time_is_up) = waited.unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            if time_is_up.timed_out() {
                drop(waiting);
                if let Err(error) = runner.engine.sync_mark() {
                    tracing::debug!(%error, "the engine has reported it");
                }
                waiting = queue.waiting();
            }
        } else {
            waiting = queue.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
