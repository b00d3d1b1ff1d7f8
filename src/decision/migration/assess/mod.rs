//! What is looked at before a move. Owns: the checks, their severity, their words, and whether a plan can be started.
//! Always: a check that can't be looked at says so (`skipped`); a failed check of severity `blocking` makes the plan
//! not executable, nothing else does; each message carries the figures and, unless it passed, what to do.
//! Not here: gathering the facts (`actors/`), the arithmetic (`estimate.rs`), the plan's struct (`plan.rs`).

mod checks;
mod plan;

pub use plan::plan;

use super::defaults::Defaults;
use super::estimate::{Estimate, Path, RTT_NOT_MEASURED_US, Workload, estimate};
use super::source::SwitchRules;
use crate::types::{
    Check, CheckStatus, ClusterId, ClusterView, GuestPower, JobId, MigrationOptions, MigrationRisk, Millis,
    NetworkChange, Place, Resources, Severity, StorageChange, VmId,
};

/// A driver as far as a move is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverFacts {
    /// Its name, for example `embedded`.
    pub name: String,
    /// Whether its VMs can move live.
    pub live_migration: bool,
}

/// The link to the target's region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFacts {
    /// It is connected now.
    pub up: bool,
    /// A round trip, microseconds; `None` while it was not measured.
    pub rtt_us: Option<u64>,
    /// What its bulk connection carries, bytes per second; `None` while it was not measured.
    pub bytes_per_second: Option<u64>,
    /// When the peer was last heard of.
    pub last_heard_ms: Option<Millis>,
}

/// Everything that an assessment looks at. What is not known is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The VM.
    pub vm: VmId,
    /// What it needs.
    pub needs: Resources,
    /// Its record's version.
    pub resource_version: u64,
    /// Where the request says it is.
    pub source: Place,
    /// Where it is to go.
    pub target: Place,
    /// The cluster that its record names; `None`: this region does not have it.
    pub recorded_at: Option<ClusterId>,
    /// What its host said of it last.
    pub power: Option<GuestPower>,
    /// The job that has it locked.
    pub locked_by: Option<JobId>,
    /// The source cluster's driver.
    pub source_driver: Option<DriverFacts>,
    /// Free disk of the source cluster, reservations taken off.
    pub source_disk_free_bytes: Option<u64>,
    /// The target cluster as this region sees it.
    pub target_cluster: Option<ClusterView>,
    /// Whether the target's driver moves VMs live.
    pub target_live_migration: Option<bool>,
    /// The link; `None` inside one region.
    pub link: Option<LinkFacts>,
    /// What a transfer inside one region carries, or over a link that was not measured yet, bytes per second.
    pub assumed_bytes_per_second: u64,
    /// A durable write of this region's store, microseconds.
    pub commit_us: u64,
    /// The guest's measured writes.
    pub workload: Option<Workload>,
    /// What holds where the request says nothing.
    pub defaults: Defaults,
    /// What is asked.
    pub options: MigrationOptions,
    /// Free space under the source region's store.
    pub source_store_free_bytes: Option<u64>,
    /// Free space under the target region's store.
    pub target_store_free_bytes: Option<u64>,
    /// Why the decider can't be reached, if so.
    pub decider_unreachable: Option<String>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// All checks, in a fixed order.
    pub checks: Vec<Check>,
    /// What may go wrong.
    pub risks: Vec<MigrationRisk>,
    /// What changes in the network.
    pub network_changes: Vec<NetworkChange>,
    /// What changes in storage.
    pub storage_changes: Vec<StorageChange>,
    /// What it will take.
    pub estimate: Estimate,
    /// Whether it can be started.
    pub executable: bool,
}

impl Facts {
    /// The rules that the job would have.
    fn rules(&self) -> SwitchRules {
        self.defaults.rules(&self.options)
    }

    /// Whether the VM stays in its region.
    pub fn inside_one_region(&self) -> bool {
        self.source.region == self.target.region
    }

    /// The way that the bytes take, after every cap.
    pub fn path(&self) -> Path {
        let measured = self.link.and_then(|l| l.bytes_per_second).filter(|rate| *rate > 0);
        let carried = measured.unwrap_or(self.assumed_bytes_per_second);
        Path {
            bytes_per_second: carried.min(self.defaults.cap(&self.options).unwrap_or(u64::MAX)),
            rtt_us: self.link.map_or(0, |link| link.rtt_us.unwrap_or(RTT_NOT_MEASURED_US)),
            commit_us: self.commit_us,
        }
    }

    /// The measured writes, or an idle guest that filled all it has, where nothing was measured.
    fn assumed_workload(&self) -> Workload {
        self.workload.unwrap_or(Workload {
            resident_bytes: self.needs.memory_bytes,
            disk_resident_bytes: self.needs.disk_bytes,
            ..Workload::default()
        })
    }
}

/// Looks at everything.
pub fn assess(facts: &Facts) -> Assessment {
    let estimate = estimate(&facts.assumed_workload(), &facts.path(), &facts.rules());
    let checks = checks::all(facts, &estimate);
    let executable = !checks.iter().any(|c| c.status == CheckStatus::Failed && c.severity == Severity::Blocking);
    Assessment {
        risks: risks(facts, &estimate, &checks),
        network_changes: network_changes(facts),
        storage_changes: storage_changes(facts, &estimate),
        estimate,
        executable,
        checks,
    }
}

fn risks(facts: &Facts, estimate: &Estimate, checks: &[Check]) -> Vec<MigrationRisk> {
    let mut list = Vec::new();
    for check in checks {
        let severity = match (check.status, check.severity) {
            (CheckStatus::Passed, _) => continue,
            (CheckStatus::Failed, severity) => severity,
            (CheckStatus::Warning, _) => Severity::Warning,
            (CheckStatus::Skipped, _) => Severity::Info,
        };
        list.push(MigrationRisk { severity, description: format!("{}: {}", check.name, check.message) });
    }
    let deadline = facts.rules().deadline;
    if estimate.converges && estimate.downtime_us / 1_000 > deadline.0 / 2 {
        list.push(MigrationRisk {
            severity: Severity::Warning,
            description: format!(
                "the estimated blackout of {} ms takes more than half of the {deadline} until the watchdog resumes the \
                 guest, which would cost an attempt; ask for a longer switchDeadlineMs",
                estimate.downtime_us / 1_000
            ),
        });
    }
    // True of every move (law 6.3 f): said, because it is the honest price.
    list.push(MigrationRisk {
        severity: Severity::Info,
        description: format!(
            "a node or link that dies between hold and decision leaves the guest paused until {} answers again",
            if facts.inside_one_region() { "its node" } else { "the source's node" }
        ),
    });
    list
}

fn network_changes(facts: &Facts) -> Vec<NetworkChange> {
    if facts.inside_one_region() {
        return vec![NetworkChange {
            description: format!(
                "the VM is reached at {} instead of {}; the region stays {}",
                facts.target.cluster, facts.source.cluster, facts.source.region
            ),
        }];
    }
    vec![NetworkChange {
        description: format!(
            "the VM is reached in region {} instead of {}; clients of {} pay the way between the two",
            facts.target.region, facts.source.region, facts.source.region
        ),
    }]
}

fn storage_changes(facts: &Facts, estimate: &Estimate) -> Vec<StorageChange> {
    vec![
        StorageChange {
            description: format!("a disk of this size is made at {}", facts.target),
            bytes: facts.needs.disk_bytes,
        },
        StorageChange {
            description: format!(
                "memory and disk are sent to {}, about so much over {} rounds",
                facts.target,
                estimate.rounds.saturating_add(1)
            ),
            bytes: estimate.bytes,
        },
        StorageChange {
            description: format!(
                "the retired disk stays at {} for {} s after the move, then it is deleted",
                facts.source,
                facts.defaults.retention.0 / 1_000
            ),
            bytes: facts.needs.disk_bytes,
        },
    ]
}

#[cfg(test)]
mod tests;
