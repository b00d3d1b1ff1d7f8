//! Calls. Owns: a question to an actor and its answer. Always: every call has a deadline; an answer from a life that
//! has ended meanwhile is dropped; a timeout says nothing about whether it was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;

use super::mailbox::{Class, Handle, SendError};
use crate::decision::supervision::ChildIncarnation;
use crate::types::Millis;

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was not accepted: too many of its class wait already.
    #[error("too many messages are waiting, try again in {retry_after_ms} ms")]
    Busy { retry_after_ms: u64 },
    /// No answer in time. If it was begun, whether it was done is not known; if not, it never will be.
    #[error("no answer before the deadline")]
    Deadline,
    /// The actor does not run, or it ended or gave the question up before it answered.
    #[error("the actor is not running, or ended before it answered")]
    Gone,
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Busy { retry_after_ms } => Self::Busy { retry_after_ms },
            SendError::Gone => Self::Gone,
        }
    }
}

/// Where the answer goes. Dropping it tells the caller at once that none will come.
pub struct Reply<R> {
    port: oneshot::Sender<R>,
    live: Arc<AtomicU64>,
    incarnation: u64,
}

impl<R> Reply<R> {
    /// Answers. Returns whether somebody may still get it: `false` if the caller has left, or if the life that was
    /// asked has ended.
    pub fn send(self, answer: R) -> bool {
        self.live.load(Ordering::Acquire) == self.incarnation && self.port.send(answer).is_ok()
    }
    /// Whether the caller has left.
    pub fn is_abandoned(&self) -> bool {
        self.port.is_closed()
    }
}

impl<R> std::fmt::Debug for Reply<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

impl<M: Send + 'static> Handle<M> {
    /// Asks, and waits for the answer at most `within`. `build` makes the message around the reply port.
    pub async fn call<R: Send + 'static>(
        &self,
        class: Class,
        within: Millis,
        build: impl FnOnce(Reply<R>) -> M,
    ) -> Result<R, CallError> {
        let clock = self.clock();
        let now = clock.now();
        let deadline = now.plus(within);
        let (live, incarnation) = self.life();
        let (port, answer) = oneshot::channel();
        let message = build(Reply { port, live, incarnation });
        // A restart between the two lines would let a later life answer for this one: refused.
        let only = ChildIncarnation(incarnation);
        if self.pinned.is_some_and(|pinned| pinned != only) {
            return Err(CallError::Gone);
        }
        self.push(class, message, now, Some(deadline), Some(only))?;
        match tokio::time::timeout(within.duration(), answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) if clock.now() >= deadline => Err(CallError::Deadline),
            Ok(Err(_)) => Err(CallError::Gone),
            Err(_) => Err(CallError::Deadline),
        }
    }
}
