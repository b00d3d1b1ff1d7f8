//! The supervisors' crash ledger on the store. Owns nothing: it joins `ledger.rs` and the store's crash rows.

use super::ledger::{CrashLedger, LedgerError, LedgerFuture};
use crate::clock::Clock;
use crate::store::{CrashRecord, Store, StoreError, Table, TransactError, Work};

/// A ledger in the region's store.
pub struct StoredCrashes {
    store: Store,
    clock: Clock,
}

impl StoredCrashes {
    /// On `store`.
    pub fn new(store: Store, clock: Clock) -> StoredCrashes {
        StoredCrashes { store, clock }
    }
}

fn failed(
    attempt: &'static str,
    child: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LedgerError {
    LedgerError { attempt, child: child.to_owned(), source: source.into() }
}

impl CrashLedger for StoredCrashes {
    fn load<'a>(&'a self, child: &'a str) -> LedgerFuture<'a, u32> {
        let found = self.store.get::<CrashRecord>(Table::Crashes, child);
        let count = found.map(|row| row.map_or(0, |row| row.count)).map_err(|e| failed("reading", child, e));
        Box::pin(std::future::ready(count))
    }

    fn record<'a>(&'a self, child: &'a str, count: u32, why: &'a str) -> LedgerFuture<'a, ()> {
        Box::pin(async move {
            let (key, why, now) = (child.to_owned(), why.to_owned(), self.clock.wall());
            let put = self.store.transact(Work::Finish, move |txn| txn.put_crashes(&key, count, now, &why)).await;
            put.map_err(|error: TransactError<StoreError>| failed("recording", child, error.flatten()))
        })
    }

    fn clear<'a>(&'a self, child: &'a str) -> LedgerFuture<'a, ()> {
        Box::pin(async move {
            let key = child.to_owned();
            let cleared = self.store.transact(Work::Finish, move |txn| txn.clear_crashes(&key)).await;
            cleared.map_err(|error: TransactError<StoreError>| failed("clearing", child, error.flatten()))
        })
    }
}
