//! One life of a host process. Owns: ending it, and holding it still, as SIGKILL and SIGSTOP do with a process.
//! Always: after [`Life::end`] nothing that runs in it is polled again; while it is held nothing in it is polled, and
//! what fell due meanwhile is done at the release. Not here: what runs in it (`host.rs`), what it leaves (`media.rs`).
//!
//! The host process never ends or holds its own: the system does that. In-process hosts (`local.rs`, `sim.rs`) do.

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A life; a clone is the same one.
#[derive(Clone, Default)]
pub struct Life(Arc<Inner>);

#[derive(Default)]
struct Inner {
    over: CancellationToken,
    held: AtomicBool,
    /// What was woken while it was held.
    woken: Mutex<Vec<Waker>>,
}

impl Inner {
    fn woken(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stands_still(&self, context: &Context<'_>) -> bool {
        if !self.held.load(Ordering::Acquire) {
            return false;
        }
        let mut woken = self.woken();
        // Again under the lock: a release in between has taken the list already.
        let held = self.held.load(Ordering::Acquire);
        if held {
            woken.push(context.waker().clone());
        }
        held
    }
}

impl Life {
    /// Does `work` in this life; `None` if the life ended before the work did.
    pub async fn run<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = std::pin::pin!(work);
        let work =
            poll_fn(|context| if self.0.stands_still(context) { Poll::Pending } else { work.as_mut().poll(context) });
        tokio::select! {
            biased;
            () = self.over() => None,
            output = work => Some(output),
        }
    }

    /// Does `work` in this life, in a task of its own.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let life = self.clone();
        tokio::spawn(async move { life.run(work).await })
    }

    /// Ends it for ever.
    pub fn end(&self) {
        self.0.over.cancel();
    }

    /// Whether it ended.
    pub fn is_over(&self) -> bool {
        self.0.over.is_cancelled()
    }

    /// Returns when it has ended.
    pub async fn over(&self) {
        self.0.over.cancelled().await;
    }

    /// Nothing in it is polled until [`Life::release`].
    pub fn hold(&self) {
        self.0.held.store(true, Ordering::Release);
    }

    /// Whether it is held.
    pub fn is_held(&self) -> bool {
        self.0.held.load(Ordering::Acquire)
    }

    /// Goes on. What was woken meanwhile is polled in the order that `order` makes of it.
    pub fn release(&self, order: impl FnOnce(&mut [Waker])) {
        let mut woken = {
            let mut woken = self.0.woken();
            self.0.held.store(false, Ordering::Release);
            std::mem::take(&mut *woken)
        };
        order(&mut woken);
        for waker in woken {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn what_fell_due_while_it_was_held_is_done_at_the_release() {
        let (life, clock) = (Life::default(), Clock::start());
        let at = life.spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            clock.now().0
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        life.hold();
        tokio::time::sleep(Duration::from_millis(950)).await;
        assert!(!at.is_finished());
        life.release(|_| ());
        assert_eq!(at.await.unwrap(), Some(1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_polled_after_its_end_even_if_it_was_woken_before() {
        let life = Life::default();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let done = life.spawn(receiver);
        tokio::task::yield_now().await;
        sender.send(()).unwrap();
        life.end();
        assert!(done.await.unwrap().is_none());
        assert!(life.run(std::future::ready(())).await.is_none());
    }
}
