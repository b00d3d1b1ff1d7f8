//! The writer: group commit. Owns: the queue, its thread, who waits for which commit.
//! Always: it commits when it is free and takes everything that waits in one go, up to `STORE_BATCH_MAX`, without
//! lingering; a caller hears of its transaction only after the commit that holds it, and of a refusal only after the
//! commit that holds what the refusal was based on; a closure that panics or refuses takes nothing else with it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::engine::{Engine, guarded};
use super::error::{StoreError, TransactError};
use super::space::Space;
use super::txn::{Counters, Group, Txn};
use crate::types::Incarnation;
use crate::types::limits::{STORE_BATCH_MAX, STORE_QUEUE_MAX};

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
    waiting: AtomicUsize,
}

/// Runs groups.
pub(super) struct Runner {
    pub(super) engine: Arc<Engine>,
    pub(super) counters: Counters,
    pub(super) incarnation: Incarnation,
    pub(super) space: Space,
    pub(super) reserve_bytes: u64,
    figures: Figures,
}

impl Runner {
    pub(super) fn new(engine: Arc<Engine>, incarnation: Incarnation, space: Space, reserve_bytes: u64) -> Runner {
        let (counters, figures) = (Counters::default(), Figures::default());
        Runner { engine, counters, incarnation, space, reserve_bytes, figures }
    }

    /// Runs `tasks` in one group and replies to each after the commit.
    fn run(&self, tasks: &mut Vec<Box<dyn Task>>) {
        let size = tasks.len() as u64;
        self.figures.groups.fetch_add(1, Ordering::Relaxed);
        self.figures.transactions.fetch_add(size, Ordering::Relaxed);
        self.figures.largest_group.fetch_max(size, Ordering::Relaxed);
        let failure = self.engine.failure();
        let short = if tasks.iter().any(|task| task.class() == Work::New) { self.short_of_space() } else { None };
        let mut ran: Vec<Box<dyn Task>> = Vec::with_capacity(tasks.len());
        let mut group = Group::new(&self.engine, &self.counters, self.incarnation);
        for mut task in tasks.drain(..) {
            if let Some(failure) = &failure {
                reply(task, Some(failure.clone()));
                continue;
            }
            if let (Work::New, Some(short)) = (task.class(), &short) {
                self.figures.refused_for_space.fetch_add(1, Ordering::Relaxed);
                reply(task, Some(short.clone()));
                continue;
            }
            let mut txn = Txn::new(&mut group);
            if task.run(&mut txn) {
                txn.accept();
            }
            ran.push(task);
        }
        let writes = group.into_writes();
        // A group that wrote nothing is as durable as what it read.
        let committed = if writes.is_empty() { Ok(()) } else { self.engine.commit(&writes) };
        // The medium may have failed in a read, too: then what a closure answered may rest on it.
        let failed = committed.err().or_else(|| self.engine.failure());
        for task in ran {
            reply(task, failed.clone());
        }
    }

    fn short_of_space(&self) -> Option<StoreError> {
        let free = self.space.free()?;
        (free < self.reserve_bytes).then_some(StoreError::NoSpace { free, reserve: self.reserve_bytes })
    }
}

enum Message {
    Run(Box<dyn Task>),
    Close,
}

enum Lane {
    /// A thread of its own, and the queue to it.
    Thread { queue: SyncSender<Message>, thread: Mutex<Option<JoinHandle<()>>> },
    /// The caller's own thread: for simulations, which have no others.
    Inline(Mutex<()>),
}

/// The way to the writer.
pub(super) struct Writer {
    pub(super) runner: Arc<Runner>,
    lane: Lane,
}

impl Writer {
    /// A writer with a thread of its own.
    pub(super) fn spawn(runner: Runner) -> Result<Writer, StoreError> {
        let runner = Arc::new(runner);
        let (queue, inbox) = sync_channel(STORE_QUEUE_MAX);
        let of_thread = Arc::clone(&runner);
        let thread = std::thread::Builder::new()
            .name("novafed-store".into())
            .spawn(move || write_until_closed(&of_thread, &inbox))
            .map_err(|e| StoreError::Failed {
                attempt: "starting the writer thread",
                cause: e.to_string().into(),
                full: false,
            })?;
        Ok(Writer { runner, lane: Lane::Thread { queue, thread: Mutex::new(Some(thread)) } })
    }

    /// A writer that runs each transaction where it is asked for.
    pub(super) fn inline(runner: Runner) -> Writer {
        Writer { runner: Arc::new(runner), lane: Lane::Inline(Mutex::new(())) }
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
        let figures = &self.runner.figures;
        match &self.lane {
            Lane::Inline(turn) => {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                self.runner.run(&mut vec![task]);
            }
            Lane::Thread { queue, .. } => {
                let waiting = figures.waiting.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = queue.try_send(Message::Run(task)) {
                    figures.waiting.fetch_sub(1, Ordering::Relaxed);
                    return Err(TransactError::Store(match error {
                        TrySendError::Full(_) => {
                            figures.refused_as_busy.fetch_add(1, Ordering::Relaxed);
                            StoreError::Busy { waiting }
                        }
                        TrySendError::Disconnected(_) => StoreError::Closed,
                    }));
                }
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
            waiting: figures.waiting.load(Ordering::Relaxed) as u64,
        }
    }

    /// Lets the writer finish what waits, ends its thread and waits for it.
    pub(super) fn stop(&self) {
        if let Lane::Thread { queue, thread } = &self.lane {
            let Some(thread) = thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            // A blocking send: there is room as soon as the writer took its next group.
            let _ = queue.send(Message::Close);
            // The last handle may be dropped by a closure, in the writer's own thread, which can't wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("the store's writer thread panicked");
            }
        }
    }
}

fn write_until_closed(runner: &Runner, inbox: &Receiver<Message>) {
    let mut group: Vec<Box<dyn Task>> = Vec::with_capacity(STORE_BATCH_MAX);
    let mut open = true;
    while open {
        match inbox.recv() {
            Ok(Message::Run(task)) => group.push(task),
            Ok(Message::Close) | Err(_) => return,
        }
        while group.len() < STORE_BATCH_MAX {
            match inbox.try_recv() {
                Ok(Message::Run(task)) => group.push(task),
                Ok(Message::Close) => {
                    open = false;
                    break;
                }
                Err(_) => break,
            }
        }
        runner.figures.waiting.fetch_sub(group.len(), Ordering::Relaxed);
        runner.run(&mut group);
    }
}
