//! Mailbox. Owns: what waits for one actor, who is admitted, and in which order it is taken out.
//!
//! ractor's mailboxes are unbounded and know one order. So an actor of ours has a mailbox of its own, bounded per
//! class, and ractor only runs the loop that empties it (see `serve.rs`).
//!
//! Always: a class that is full refuses at once and delays nobody else; a higher class is taken out first; within a
//! class first in, first out; a message whose deadline passed is dropped, not executed; nothing is accepted unless
//! an incarnation lives that will look at it, and what it leaves behind is dropped with it.
//! A [`Handle`] survives restarts: it always means the incarnation that lives now.
//! Not here: calls and their replies (`call.rs`), who restarts whom (`supervisor.rs`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::clock::Clock;
use crate::decision::supervision::ChildIncarnation;
use crate::types::limits::{BUSY_RETRY_MS_MAX, BUSY_RETRY_MS_MIN, MAILBOX_MAX, MAILBOX_OWN_MAX};
use crate::types::{Millis, Tick};

tokio::task_local! {
    /// The trace of what this task is handling.
    static TRACE: u128;
}

/// The trace that the present task works for; 0 if none. Messages that it sends carry it on.
pub fn current_trace() -> u128 {
    TRACE.try_with(|trace| *trace).unwrap_or(0)
}

/// Runs `work` for the trace `trace`, so that what it sends carries it.
pub async fn with_trace<T>(trace: u128, work: impl Future<Output = T>) -> T {
    TRACE.scope(trace, work).await
}

/// How urgent a message is, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Fencing, heartbeats: what keeps a VM from running twice.
    Fencing,
    /// Votes and log entries.
    Consensus,
    /// Requests of clients and what serves them.
    Control,
    /// Steps and bytes of migrations.
    Migration,
    /// Measurements; may be lost.
    Telemetry,
}

const CLASSES: usize = 5;

/// How many messages of each class may wait in one mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// By class, most urgent first.
    pub max: [usize; CLASSES],
}

impl Default for Admission {
    fn default() -> Self {
        Self { max: MAILBOX_MAX }
    }
}

impl Admission {
    /// The same bound for each class.
    pub const fn each(max: usize) -> Self {
        Self { max: [max; CLASSES] }
    }
}

/// Why a message was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too many of its class wait already.
    #[error("too many messages are waiting, try again in {retry_after_ms} ms")]
    Busy { retry_after_ms: u64 },
    /// No incarnation of the actor lives now: it is being restarted, is parked, or has ended.
    #[error("the actor is not running")]
    Gone,
}

/// A message as it waits.
pub(super) struct Envelope<M> {
    pub message: M,
    pub sent: Tick,
    pub deadline: Option<Tick>,
    pub trace: u128,
    own: bool,
}

struct Queues<M> {
    /// The life that takes messages out; none between two lives.
    live: Option<ChildIncarnation>,
    /// Set when it shall take out no more.
    stopping: bool,
    waker: Option<Waker>,
    waiting: [VecDeque<Envelope<M>>; CLASSES],
    /// Of those waiting, how many the actor sent to itself.
    own: usize,
    /// Of those waiting, how many others sent, by class.
    others: [usize; CLASSES],
    /// When the message in hand was sent.
    in_hand: Option<Tick>,
    counts: Counts,
}

/// What went through a mailbox, since its actor was first started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Taken out to be handled.
    pub handled: u64,
    /// Refused with `Busy`.
    pub refused: u64,
    /// Dropped because their deadline had passed.
    pub expired: u64,
}

/// What waits in a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Messages waiting, with the one in hand.
    pub queued: usize,
    /// Age of the oldest of them.
    pub oldest: Option<Millis>,
    /// What went through.
    pub counts: Counts,
}

/// What can be asked of a mailbox without knowing its messages.
pub(super) trait Gauge: Send + Sync {
    /// What waits now.
    fn load(&self, now: Tick) -> Load;
    /// The present life shall finish what it has in hand and take out no more.
    fn finish(&self, incarnation: ChildIncarnation);
}

pub(super) struct Mailbox<M> {
    queues: Mutex<Queues<M>>,
    /// The life that is accepted at present, 0 for none; apart from the lock, for replies.
    live: Arc<AtomicU64>,
    admission: Admission,
    clock: Clock,
}

impl<M> Mailbox<M> {
    fn lock(&self) -> MutexGuard<'_, Queues<M>> {
        // No code of others runs under the lock, so a poisoned one is still whole.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new life takes messages from now on. Its end is the end of what it returns.
    pub(super) fn open(self: &Arc<Self>, incarnation: ChildIncarnation) -> Opened<M> {
        let mut queues = self.lock();
        queues.live = Some(incarnation);
        queues.stopping = false;
        self.live.store(incarnation.0, Ordering::Release);
        drop(queues);
        Opened { mailbox: Arc::clone(self), incarnation }
    }

    fn close(&self, incarnation: ChildIncarnation) {
        let mut queues = self.lock();
        if queues.live != Some(incarnation) {
            return;
        }
        queues.live = None;
        self.live.store(0, Ordering::Release);
        let left = std::mem::take(&mut queues.waiting);
        queues.own = 0;
        queues.others = [0; CLASSES];
        queues.in_hand = None;
        queues.waker = None;
        drop(queues);
        // Dropping a message may run code of others: their reply ports tell the callers that it is gone.
        drop(left);
    }

    /// The next message, `None` if the life shall end. Pending when nothing waits.
    pub(super) fn poll_take(&self, incarnation: ChildIncarnation, cx: &mut Context<'_>) -> Poll<Option<Envelope<M>>> {
        loop {
            let mut queues = self.lock();
            queues.in_hand = None;
            if queues.stopping || queues.live != Some(incarnation) {
                return Poll::Ready(None);
            }
            let mut by_class = queues.waiting.iter_mut().enumerate();
            let Some((class, envelope)) = by_class.find_map(|(class, waiting)| Some((class, waiting.pop_front()?)))
            else {
                match &mut queues.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            };
            if envelope.own {
                queues.own -= 1;
            } else {
                queues.others[class] -= 1;
            }
            if envelope.deadline.is_some_and(|deadline| self.clock.now() >= deadline) {
                queues.counts.expired += 1;
                drop(queues);
                drop(envelope);
                continue;
            }
            queues.counts.handled += 1;
            queues.in_hand = Some(envelope.sent);
            return Poll::Ready(Some(envelope));
        }
    }
}

impl<M: Send> Gauge for Mailbox<M> {
    fn load(&self, now: Tick) -> Load {
        let queues = self.lock();
        let fronts = queues.waiting.iter().filter_map(|waiting| waiting.front()).map(|envelope| envelope.sent);
        let oldest = fronts.chain(queues.in_hand).min();
        Load {
            queued: queues.waiting.iter().map(VecDeque::len).sum::<usize>() + usize::from(queues.in_hand.is_some()),
            oldest: oldest.map(|sent| now.since(sent)),
            counts: queues.counts,
        }
    }

    fn finish(&self, incarnation: ChildIncarnation) {
        let mut queues = self.lock();
        if queues.live != Some(incarnation) {
            return;
        }
        queues.stopping = true;
        let waker = queues.waker.take();
        drop(queues);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The time in which one life takes messages out; dropping it refuses and drops all others.
pub(super) struct Opened<M> {
    pub mailbox: Arc<Mailbox<M>>,
    pub incarnation: ChildIncarnation,
}

impl<M> Drop for Opened<M> {
    fn drop(&mut self) {
        self.mailbox.close(self.incarnation);
    }
}

/// Where to send messages to an actor. Cheap to copy; stays valid over the actor's restarts.
pub struct Handle<M> {
    pub(super) mailbox: Arc<Mailbox<M>>,
    /// Set in the actor's own handles: they die with the life that they belong to.
    pub(super) pinned: Option<ChildIncarnation>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self { mailbox: Arc::clone(&self.mailbox), pinned: self.pinned }
    }
}

impl<M> std::fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("pinned", &self.pinned).finish_non_exhaustive()
    }
}

impl<M: Send + 'static> Handle<M> {
    /// For an actor that does not live yet: whoever it is given to gets `Gone` until then.
    pub fn new(clock: Clock, admission: Admission) -> Self {
        let queues = Queues {
            live: None,
            stopping: false,
            waker: None,
            waiting: Default::default(),
            own: 0,
            others: [0; CLASSES],
            in_hand: None,
            counts: Counts::default(),
        };
        let live = Arc::new(AtomicU64::new(0));
        Self { mailbox: Arc::new(Mailbox { queues: Mutex::new(queues), live, admission, clock }), pinned: None }
    }

    /// Sends a message and does not wait for anything. It has no deadline.
    pub fn cast(&self, class: Class, message: M) -> Result<(), SendError> {
        self.push(class, message, self.mailbox.clock.now(), None, self.pinned)
    }

    /// Sends a message to an actor that may have ended meanwhile, and then has no use for it; that the actor does not
    /// keep up with what it set in motion itself is logged, since what waits for the message then ends by its deadline.
    pub fn told(&self, class: Class, message: M) {
        if let Err(SendError::Busy { .. }) = self.cast(class, message) {
            tracing::error!("an outcome was lost: the actor does not keep up with what it set in motion");
        }
    }

    /// Sends a message that is of no use any more after `within`; it is dropped if it was not handled by then.
    pub fn cast_within(&self, class: Class, within: Millis, message: M) -> Result<(), SendError> {
        let now = self.mailbox.clock.now();
        self.push(class, message, now, Some(now.plus(within)), self.pinned)
    }

    /// What waits for the actor.
    pub fn load(&self) -> Load {
        self.mailbox.load(self.mailbox.clock.now())
    }

    /// Whether an incarnation of the actor lives that would see a message.
    pub fn is_live(&self) -> bool {
        let live = self.mailbox.live.load(Ordering::Acquire);
        live != 0 && self.pinned.is_none_or(|incarnation| incarnation.0 == live)
    }

    pub(super) fn clock(&self) -> Clock {
        self.mailbox.clock.clone()
    }

    pub(super) fn life(&self) -> (Arc<AtomicU64>, u64) {
        (Arc::clone(&self.mailbox.live), self.mailbox.live.load(Ordering::Acquire))
    }

    /// Only a message for the life `only` is accepted, if that is given.
    pub(super) fn push(
        &self,
        class: Class,
        message: M,
        sent: Tick,
        deadline: Option<Tick>,
        only: Option<ChildIncarnation>,
    ) -> Result<(), SendError> {
        let mailbox = &*self.mailbox;
        let own = self.pinned.is_some();
        let trace = current_trace();
        let mut queues = mailbox.lock();
        match queues.live {
            Some(live) if !queues.stopping && only.is_none_or(|only| only == live) => {}
            Some(_) | None => return Err(SendError::Gone),
        }
        // What the actor itself set in motion is not refused for what others sent.
        let (waiting, max) = if own {
            (&mut queues.own, MAILBOX_OWN_MAX)
        } else {
            (&mut queues.others[class as usize], mailbox.admission.max[class as usize])
        };
        if *waiting >= max {
            queues.counts.refused += 1;
            let oldest = queues.waiting[class as usize].front().map_or(Millis(0), |envelope| sent.since(envelope.sent));
            // A full class turns over in about the time that its oldest message has waited.
            let advice = oldest.clamp(BUSY_RETRY_MS_MIN, BUSY_RETRY_MS_MAX);
            return Err(SendError::Busy { retry_after_ms: advice.0 });
        }
        *waiting += 1;
        queues.waiting[class as usize].push_back(Envelope { message, sent, deadline, trace, own });
        let waker = queues.waker.take();
        drop(queues);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}
