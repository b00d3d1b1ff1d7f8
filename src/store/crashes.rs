//! Crash counts that outlive the process. Owns: how often something crashed without progress in between.
//! Always: the count grows in the store before the next attempt, so a job that kills its process is counted, too.

use serde::{Deserialize, Serialize};

use super::Store;
use super::error::StoreError;
use super::tables::Table;
use super::txn::Txn;
use crate::stored;
use crate::types::WallMillis;

/// Longest reason kept.
const REASON_CHARS_MAX: usize = 500;

/// How often something crashed, over all lives of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashRecord {
    /// Crashes since the last progress.
    pub count: u32,
    /// When the last one was, for people.
    pub last: WallMillis,
    /// What it said.
    pub reason: String,
}
stored!(CrashRecord, b"crsh");

impl Txn<'_, '_> {
    /// Writes how often `child` (its path in the tree) crashed without progress.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for a name that can't exist.
    pub fn put_crashes(&mut self, child: &str, count: u32, now: WallMillis, reason: &str) -> Result<(), StoreError> {
        let reason = reason.chars().take(REASON_CHARS_MAX).collect();
        self.put(Table::Crashes, child, &CrashRecord { count, last: now, reason })
    }

    /// Forgets the crashes of `child`: it made progress, or a person released it.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for a name that can't exist.
    pub fn clear_crashes(&mut self, child: &str) -> Result<(), StoreError> {
        self.delete(Table::Crashes, child)
    }
}

impl Store {
    /// All crash records by child.
    ///
    /// # Errors
    /// A read error.
    pub fn crashes(&self) -> Result<Vec<(String, CrashRecord)>, StoreError> {
        self.scan(Table::Crashes, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crash_format_is_frozen() {
        let sample =
            CrashRecord { count: 2, last: WallMillis(1_700_000_000_000), reason: "index out of bounds".into() };
        crate::store::fixture::holds(&sample);
    }
}
