//! What a region's settings say of moves. Owns: how they and a request's options give one set of rules. Always: a plan is
//! judged by the rules that its job then has, unless the region was configured anew in between.
//! Not here: reading them from the configuration (`config.rs`).

use super::source::SwitchRules;
use crate::types::{MigrationOptions, Millis, limits};

/// A region's settings for moves; of the first two and of the cap a request may say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Blackout that is acceptable.
    pub downtime_max: Millis,
    /// From the pause to the watchdog.
    pub deadline: Millis,
    /// Rounds of pre-copy before a job stops trying to converge.
    pub rounds_max: u32,
    /// How long a side may be silent before the decision.
    pub patience: Millis,
    /// Cap on each transfer, bytes per second.
    pub bytes_per_second_max: Option<u64>,
    /// How long a retired source disk is kept (law 7.3).
    pub retention: Millis,
    /// Free space below which the store takes no new work, bytes.
    pub store_reserve_bytes: u64,
}

impl Default for Defaults {
    fn default() -> Self {
        let plain = SwitchRules::default();
        Defaults {
            downtime_max: plain.downtime_max,
            deadline: plain.deadline,
            rounds_max: plain.rounds_max,
            patience: plain.patience,
            bytes_per_second_max: None,
            retention: limits::RETENTION_MS,
            store_reserve_bytes: limits::STORE_RESERVE_BYTES,
        }
    }
}

impl Defaults {
    /// The rules of a switch that `options` ask for; sane only if the check `options` of a plan passed.
    pub fn rules(&self, options: &MigrationOptions) -> SwitchRules {
        SwitchRules {
            downtime_max: options.max_downtime_ms.map_or(self.downtime_max, Millis),
            deadline: options.switch_deadline_ms.map_or(self.deadline, Millis),
            rounds_max: self.rounds_max,
            attempts_max: limits::ATTEMPTS_PER_JOB_MAX,
            patience: self.patience,
        }
    }

    /// The cap on the transfer: the request's may only lower the region's, which protects what else the link carries.
    pub fn cap(&self, options: &MigrationOptions) -> Option<u64> {
        match (options.bandwidth_limit_bytes_per_second, self.bytes_per_second_max) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_overrides_what_it_names_and_nothing_else() {
        let region = Defaults { downtime_max: Millis(700), rounds_max: 4, ..Defaults::default() };
        let silent = region.rules(&MigrationOptions::default());
        assert_eq!((silent.downtime_max, silent.rounds_max), (Millis(700), 4));
        let asked = MigrationOptions { max_downtime_ms: Some(50), ..MigrationOptions::default() };
        assert_eq!(region.rules(&asked), SwitchRules { downtime_max: Millis(50), ..silent });
    }

    #[test]
    fn a_cap_is_the_lower_of_both() {
        let cap = |asked, most| {
            let options = MigrationOptions { bandwidth_limit_bytes_per_second: asked, ..MigrationOptions::default() };
            Defaults { bytes_per_second_max: most, ..Defaults::default() }.cap(&options)
        };
        assert_eq!(cap(None, None), None);
        assert_eq!(cap(Some(5), None), Some(5));
        assert_eq!(cap(None, Some(7)), Some(7));
        assert_eq!((cap(Some(5), Some(7)), cap(Some(9), Some(7))), (Some(5), Some(7)));
    }
}
