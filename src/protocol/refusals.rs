//! Counts what was refused, by reason. Always: every refusal is counted; a flood of them does not flood the log.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

/// Counters by reason, for one endpoint or one link.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<&'static str, u64>>);

impl Refusals {
    /// Counts one refusal of `who` for `reason`, and logs the 1st, 2nd, 4th, 8th... of each reason, so that an
    /// attacker can't fill the disk with our log.
    pub fn count(&self, reason: &'static str, who: &dyn Display, detail: &dyn Display) {
        metrics::counter!("novafed_link_refusals_total", "reason" => reason).increment(1);
        let so_far = {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(reason).or_default();
            *count += 1;
            *count
        };
        if so_far.is_power_of_two() {
            tracing::warn!(%who, reason, so_far, "refused: {detail}");
        }
    }
    /// The counts so far.
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
