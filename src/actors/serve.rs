//! Actors. Owns: what an actor of ours is ([`Serve`]), what it may ask for ([`Ctx`]) and how it ends ([`Exit`]).
//!
//! ractor gives an actor its task, catches its panics, kills it at its next await, and tells its supervisor. One
//! message sets the loop going that empties our mailbox (`mailbox.rs`); ractor's own mailbox is otherwise unused.
//! Always: an error or a panic ends the life; the tasks and timers of a life end with it.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ractor::{ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::Instrument;

use super::mailbox::{Class, Envelope, Gauge, Handle, Opened, SendError, with_trace};
use super::supervise::Order;
use crate::clock::Clock;
use crate::decision::supervision::{ChildId, ChildIncarnation, ExitClass};
use crate::types::{Millis, Tick, chain};

/// How an actor says that it ends otherwise than by a crash. Any other error, and a panic, is a crash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    /// It is done.
    #[error("done")]
    Normal,
    /// Something that it needs is not there now; it is started again later, and that costs it nothing.
    #[error("a dependency is down: {0}")]
    DependencyDown(String),
    /// What it was given will fail each time; it is parked until a person decides.
    #[error("poison: {0}")]
    Poison(String),
}

/// Why a handler ends its actor: an [`Exit`], or any error, which is a crash. An `Exit` among an error's sources
/// counts, so that what wraps it does not hide it.
#[derive(Debug)]
pub struct HandlerError(ActorProcessingErr);

impl<E: std::error::Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

/// What an error says about the exit, and its text with its sources.
pub(super) fn classify(error: &(dyn std::error::Error + Send + Sync + 'static)) -> (ExitClass, String) {
    let mut class = ExitClass::Crash;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if class == ExitClass::Crash {
            class = match error.downcast_ref::<Exit>() {
                Some(Exit::Normal) => ExitClass::Normal,
                Some(Exit::DependencyDown(_)) => ExitClass::DependencyDown,
                Some(Exit::Poison(_)) => ExitClass::Poison,
                None => ExitClass::Crash,
            };
        }
        next = error.source();
    }
    (class, chain(error))
}

/// An actor: a state that takes messages one by one. A new value is made for each life.
pub trait Serve: Sized + Send + 'static {
    /// What it is sent.
    type Message: Send + 'static;

    /// Before the first message. An error means that the start failed.
    fn started(&mut self, ctx: &mut Ctx<Self::Message>) -> impl Future<Output = Result<(), HandlerError>> + Send {
        let _ = ctx;
        std::future::ready(Ok(()))
    }

    /// One message. It may be cut at any await, when the actor is killed.
    fn handle(
        &mut self,
        message: Self::Message,
        ctx: &mut Ctx<Self::Message>,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;

    /// After the last message of a life that ends normally or was asked to stop; not after a crash or a kill.
    fn stopped(&mut self, ctx: &mut Ctx<Self::Message>) -> impl Future<Output = ()> + Send {
        let _ = ctx;
        std::future::ready(())
    }
}

/// Held by everything that belongs to one life, and to the lives above it: they are over when the last copy is gone.
#[derive(Clone)]
pub(super) struct Life {
    _own: std::sync::Arc<LifeMark>,
}

struct LifeMark {
    _ended: oneshot::Sender<std::convert::Infallible>,
    _above: Option<Life>,
}

/// Resolves, with an error, when a life is over.
pub(super) type LifeEnd = oneshot::Receiver<std::convert::Infallible>;

impl Life {
    pub(super) fn begin(above: Option<Life>) -> (Life, LifeEnd) {
        let (ended, end) = oneshot::channel();
        (Life { _own: std::sync::Arc::new(LifeMark { _ended: ended, _above: above }) }, end)
    }
}

/// Which life is being started.
#[derive(Debug, Clone)]
pub struct Start {
    /// Its id.
    pub id: ChildId,
    /// Its number, from 1.
    pub incarnation: ChildIncarnation,
    /// Its crashes so far without progress.
    pub crashes: u32,
}

/// Ends a timer when asked to; dropping it does nothing.
#[derive(Debug, Clone)]
pub struct Timer(AbortHandle);

impl Timer {
    /// The message is not sent, unless it was already.
    pub fn cancel(&self) {
        self.0.abort();
    }
}

/// What an actor may ask for while it serves.
pub struct Ctx<M> {
    start: Start,
    // First of those that end a life: nothing is accepted any more while its tasks are still ending.
    opened: Opened<M>,
    tasks: JoinSet<()>,
    this: Handle<M>,
    supervisor: ActorRef<Order>,
    trace: u128,
    deadline: Option<Tick>,
    life: Life,
}

impl<M: Send + 'static> Ctx<M> {
    /// Its id among its siblings.
    pub fn id(&self) -> &ChildId {
        &self.start.id
    }
    /// The number of this life.
    pub fn incarnation(&self) -> ChildIncarnation {
        self.start.incarnation
    }
    /// The clock.
    pub fn clock(&self) -> Clock {
        self.this.clock()
    }
    /// The trace of the message in hand, 0 if none.
    pub fn trace(&self) -> u128 {
        self.trace
    }
    /// Until when the message in hand is of use.
    pub fn deadline(&self) -> Option<Tick> {
        self.deadline
    }
    /// Where this life gets answers, results and timers: what it set in motion itself, which is therefore not
    /// refused as `Busy` with others'. It dies with this life, so a late answer reaches no later one.
    pub fn this(&self) -> Handle<M> {
        self.this.clone()
    }
    /// Tells that the work got on: earlier crashes are forgiven.
    pub fn progress(&mut self) {
        if std::mem::take(&mut self.start.crashes) > 0 {
            let news = Order::Progressed { child: self.start.id.clone(), incarnation: self.start.incarnation };
            // Without a supervisor this life is about to end; the next one says it again.
            let _ = self.supervisor.send_message(news);
        }
    }
    /// Runs `work` beside the actor. It ends at the latest with this life; if it panics, this life crashes.
    pub fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let (life, trace) = (self.life.clone(), self.trace);
        self.tasks.spawn(async move {
            let _life = life;
            if trace == 0 { work.await } else { with_trace(trace, work).await }
        })
    }
    /// Sends `message` to itself after `delay`.
    pub fn send_after(&mut self, delay: Millis, class: Class, message: M) -> Timer {
        let this = self.this();
        Timer(self.spawn(async move {
            tokio::time::sleep(delay.duration()).await;
            if let Err(SendError::Busy { .. }) = this.cast(class, message) {
                tracing::error!("a timer was lost: the actor does not keep up with what it sends itself");
            }
        }))
    }
    /// Sends what `message` makes to itself every `period`, the first time after one. A tick for which there is no
    /// room is left out.
    pub fn send_every(
        &mut self,
        period: Millis,
        class: Class,
        mut message: impl FnMut() -> M + Send + 'static,
    ) -> Timer {
        let this = self.this();
        Timer(self.spawn(async move {
            loop {
                tokio::time::sleep(period.duration()).await;
                if this.cast(class, message()) == Err(SendError::Gone) {
                    return;
                }
            }
        }))
    }

    /// The next message, or that there is none any more, or that a task of this life panicked.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Envelope<M>>, JoinError>> {
        if let Poll::Ready(next) = self.opened.mailbox.poll_take(self.opened.incarnation, cx) {
            return Poll::Ready(Ok(next));
        }
        while let Some(ended) = ready!(self.tasks.poll_join_next(cx)) {
            if let Err(error) = ended
                && error.is_panic()
            {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Pending
    }
}

/// Sets the loop going.
pub(super) struct Run;

pub(super) type Making<S> = Pin<Box<dyn Future<Output = Result<S, HandlerError>> + Send>>;

/// What a life is made from.
pub(super) struct Birth<S: Serve> {
    pub start: Start,
    pub making: Making<S>,
    pub handle: Handle<S::Message>,
    pub supervisor: ActorRef<Order>,
    pub life: Life,
}

fn span_of(actor: &ChildId, trace: u128) -> tracing::Span {
    tracing::info_span!("handle", %actor, trace = format_args!("{trace:032x}"))
}

/// The ractor actor around a [`Serve`].
pub(super) struct Shell<S>(PhantomData<fn() -> S>);

impl<S> Shell<S> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

/// An actor and what it may ask for.
pub(super) struct Serving<S: Serve> {
    // Before the actor: nothing is accepted any more while it is dropped.
    ctx: Ctx<S::Message>,
    server: S,
}

impl<S: Serve> ractor::Actor for Shell<S> {
    type Msg = Run;
    type State = Serving<S>;
    type Arguments = Birth<S>;

    async fn pre_start(&self, _: ActorRef<Run>, birth: Birth<S>) -> Result<Serving<S>, ActorProcessingErr> {
        let Birth { start, making, handle, supervisor, life } = birth;
        let opened = handle.mailbox.open(start.incarnation);
        let this = Handle { mailbox: handle.mailbox, pinned: Some(start.incarnation) };
        let tasks = JoinSet::new();
        let mut ctx = Ctx { start, opened, tasks, this, supervisor, trace: 0, deadline: None, life };
        let mut server = making.await.map_err(|error| error.0)?;
        server.started(&mut ctx).await.map_err(|error| error.0)?;
        Ok(Serving { ctx, server })
    }

    async fn post_start(&self, myself: ActorRef<Run>, _: &mut Serving<S>) -> Result<(), ActorProcessingErr> {
        myself.send_message(Run).map_err(Into::into)
    }

    async fn handle(&self, myself: ActorRef<Run>, _: Run, serving: &mut Serving<S>) -> Result<(), ActorProcessingErr> {
        let Serving { ctx, server } = serving;
        while let Some(envelope) = std::future::poll_fn(|cx| ctx.poll_next(cx)).await? {
            ctx.trace = envelope.trace;
            ctx.deadline = envelope.deadline;
            let handled = if envelope.trace == 0 {
                server.handle(envelope.message, ctx).await
            } else {
                let span = span_of(&ctx.start.id, envelope.trace);
                with_trace(envelope.trace, server.handle(envelope.message, ctx)).instrument(span).await
            };
            if let Err(HandlerError(error)) = handled {
                if classify(&*error).0 == ExitClass::Normal {
                    ctx.opened.mailbox.finish(ctx.opened.incarnation);
                    myself.stop(None);
                    return Ok(());
                }
                return Err(error);
            }
            // A full mailbox must not keep the worker from everybody else.
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Run>, serving: &mut Serving<S>) -> Result<(), ActorProcessingErr> {
        serving.server.stopped(&mut serving.ctx).await;
        Ok(())
    }
}
