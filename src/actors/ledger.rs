//! Crash ledger. Owns: the promise that crashes of a child are counted over all lives of the process.
//! Not here: the counts on disk (`store/`; the assembler joins the two), what follows from them
//! (`decision/supervision.rs`).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

/// What a ledger does for one child.
pub type LedgerFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send + 'a>>;

/// A ledger could not do it.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} the crashes of child '{child}'")]
pub struct LedgerError {
    /// What was attempted, for example "recording".
    pub attempt: &'static str,
    /// Of which child.
    pub child: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Crashes without progress, by the path of the child in its region (`migrations/job/job-1-3-17`).
pub trait CrashLedger: Send + Sync + 'static {
    /// The count of `child`; 0 if there is none.
    fn load<'a>(&'a self, child: &'a str) -> LedgerFuture<'a, u32>;
    /// Sets the count of `child`, and what the last crash said; durable when it returns.
    fn record<'a>(&'a self, child: &'a str, count: u32, why: &'a str) -> LedgerFuture<'a, ()>;
    /// Forgets the count of `child`.
    fn clear<'a>(&'a self, child: &'a str) -> LedgerFuture<'a, ()>;
}

/// A ledger that lives as long as its process: for supervisors none of whose children is quarantined, and for tests.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    counts: Mutex<BTreeMap<String, u32>>,
}

impl CrashLedger for MemoryLedger {
    fn load<'a>(&'a self, child: &'a str) -> LedgerFuture<'a, u32> {
        let count = self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(child).copied();
        Box::pin(std::future::ready(Ok(count.unwrap_or(0))))
    }
    fn record<'a>(&'a self, child: &'a str, count: u32, _: &'a str) -> LedgerFuture<'a, ()> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).insert(child.to_owned(), count);
        Box::pin(std::future::ready(Ok(())))
    }
    fn clear<'a>(&'a self, child: &'a str) -> LedgerFuture<'a, ()> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(child);
        Box::pin(std::future::ready(Ok(())))
    }
}
