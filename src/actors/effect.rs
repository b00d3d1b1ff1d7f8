//! Effects of jobs, beside their actors. Owns: that an effect which panics is noticed: its job would wait in vain for
//! what it was to tell.
//! Not here: what the effects are (`source_effects.rs`, `target_effects.rs`).

use tokio::task::AbortHandle;

/// An effect of a job panicked: the job starts anew from its journal, and its effect with it.
#[derive(Debug, thiserror::Error)]
#[error("an effect panicked")]
pub struct Broken;

/// Runs `work`; if it panics, `broken` is called. Aborted, it ends without a word.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static, broken: impl FnOnce() + Send + 'static) -> AbortHandle {
    let task = tokio::spawn(work);
    let abort = task.abort_handle();
    tokio::spawn(async move {
        if task.await.is_err_and(|error| error.is_panic()) {
            broken();
        }
    });
    abort
}
