//! What actors keep in the store. Owns: the records of jobs, ledgers, clean-ups and request keys, version 1.
//! Always: a field is never changed in place; a new version is a new type with a `migrate`.

use serde::{Deserialize, Serialize};

use crate::decision::migration::source::Source;
use crate::decision::migration::target::Target;
use crate::types::{ClusterId, Fence, JobId, PlanId, VmId, VmSpec, WallMillis};

/// An open job on its source's side: where its journal begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceJobRecord {
    /// The state before the first journal entry.
    pub first: Source,
    /// What moves.
    pub spec: VmSpec,
    /// The plan that it came from.
    pub plan: Option<PlanId>,
    /// Cap on the transfer, bytes per second.
    pub bytes_per_second_max: Option<u64>,
    /// Blackout that the plan estimated, microseconds.
    pub planned_downtime_us: u64,
    /// When it began.
    pub started_at: WallMillis,
}

/// An open job on its target's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetJobRecord {
    /// The state before the first journal entry.
    pub first: Target,
    /// When it began.
    pub started_at: WallMillis,
}

/// A checkpoint of a source's side: a cache of the fold, and how far the transfer got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceCheckpoint {
    /// The state after `entries` journal entries.
    pub state: Source,
    /// How many entries it folds.
    pub entries: u64,
    /// The transfer as last seen.
    pub transfer: TransferRecord,
}

/// How far a transfer got, and what its crashes cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransferRecord {
    /// Payload bytes that the target acknowledged.
    pub acknowledged: u64,
    /// Payload bytes sent.
    pub sent: u64,
    /// Payload bytes of a version that the target had.
    pub sent_twice: u64,
    /// Payload bytes of the first round.
    pub total: u64,
    /// What the target had when the job was last resumed.
    pub resumed_from: u64,
    /// How often the job was resumed after a crash.
    pub resumes: u32,
    /// When the guest was paused for the switch, wall milliseconds; zero before.
    pub paused_at: u64,
    /// From the pause to the target's word that it started, microseconds; zero before.
    pub downtime_us: u64,
}

/// A job that is over, on its source's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceJobEnded {
    /// Where it began.
    pub record: SourceJobRecord,
    /// Its last state.
    pub last: Source,
    /// How its transfer went.
    pub transfer: TransferRecord,
    /// When it ended.
    pub ended_at: WallMillis,
}

/// A job that is over, on its target's side: late questions are still answered from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetJobEnded {
    /// Its last state.
    pub last: Target,
    /// When it ended.
    pub ended_at: WallMillis,
}

/// What is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CleanupKind {
    /// Destroy the copy of a VM that moved away, then, after the retention window, its disk (law 7.3).
    Purge,
    /// Remove a VM that its owner deleted.
    Delete,
}

/// A clean-up that is owed at a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cleanup {
    /// What.
    pub kind: CleanupKind,
    /// The job whose transfer retired it, if one did.
    pub job: Option<JobId>,
    /// The VM.
    pub vm: VmId,
    /// Where the copy lies.
    pub cluster: ClusterId,
    /// The fence it was retired or deleted with.
    pub fence: Fence,
    /// Not before.
    pub due: WallMillis,
}

/// What a client's request came to, under its idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Hash over method, path and body.
    pub fingerprint: u64,
    /// The id of what it made or changed.
    pub subject: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::tables::{JobEntry, JournalEntry, ReservationRecord, VmName};
    use crate::decision::migration::source::{Event, Goal, Input, Phase, SwitchRules};
    use crate::decision::migration::{Offer, steps::Step};
    use crate::decision::ownership::{Decision, Moved, VmDecisions};
    use crate::store::fixture::holds;
    use crate::types::{
        Attempt, Check, CheckCategory, CheckStatus, DesiredPower, MigrationOptions, MigrationPlan, MigrationRisk,
        MigrationStep, NetworkChange, RegionNumber, Resources, Severity, StorageChange, VmRecord,
    };

    fn spec() -> VmSpec {
        serde_json::from_str(r#"{"name":"web","cpu":2,"memoryBytes":4096,"diskBytes":65536,"labels":{"tier":"front"}}"#)
            .unwrap()
    }

    fn source() -> Source {
        Source {
            job: JobId { region: RegionNumber(1), incarnation: 2, number: 3 },
            vm: VmId { region: RegionNumber(1), incarnation: 1, number: 7 },
            from: "eu/eu-a".parse().unwrap(),
            to: "us/us-a".parse().unwrap(),
            fence: Fence::FIRST,
            next_fence: Fence { epoch: 2, generation: 1 },
            first_attempt: Attempt(1),
            attempt: Attempt(2),
            rules: SwitchRules::default(),
            goal: Goal::Forward,
            phase: Phase::Deciding { proposal: Decision::Transfer, held: true },
            settling: false,
            target_involved: true,
            estimated_downtime_us: 55_000,
            rounds: 3,
            note: Some("why".into()),
        }
    }

    fn plan() -> MigrationPlan {
        MigrationPlan {
            id: PlanId { region: RegionNumber(1), incarnation: 2, number: 4 },
            vm: VmId { region: RegionNumber(1), incarnation: 1, number: 7 },
            source: "eu/eu-a".parse().unwrap(),
            target: "us/us-a".parse().unwrap(),
            options: MigrationOptions { max_downtime_ms: Some(200), ..MigrationOptions::default() },
            estimated_downtime: 50_500_000,
            estimated_downtime_ms: 50.5,
            estimated_duration: 2_000_000_000,
            estimated_duration_ms: 2_000.0,
            estimated_bytes: 300,
            steps: vec![MigrationStep { name: "copy".into(), description: "rounds".into(), reversible: true }],
            network_changes: vec![NetworkChange { description: "reached in us".into() }],
            storage_changes: vec![StorageChange { description: "a disk".into(), bytes: 128 }],
            risks: vec![MigrationRisk { severity: Severity::Warning, description: "slow".into() }],
            checks: vec![Check {
                id: "link".into(),
                name: "the link".into(),
                category: CheckCategory::Network,
                status: CheckStatus::Passed,
                severity: Severity::Blocking,
                message: "up".into(),
            }],
            executable: true,
            resource_version: 9,
            created_at: WallMillis(1_700_000_000_008),
            expires_at: WallMillis(1_700_000_600_008),
        }
    }

    #[test]
    fn the_formats_are_frozen() {
        let (s, spec) = (source(), spec());
        let offer = Offer { spec: spec.clone(), next_fence: s.next_fence };
        let first = Target::reserved(s.job, s.vm, s.from.clone(), s.to.clone(), offer, s.attempt);
        let transfer = TransferRecord { acknowledged: 1, sent: 2, total: 3, resumes: 1, ..TransferRecord::default() };
        holds(&SourceJobRecord {
            first: s.clone(),
            spec: spec.clone(),
            plan: None,
            bytes_per_second_max: Some(1_000_000),
            planned_downtime_us: 50_000,
            started_at: WallMillis(1_700_000_000_000),
        });
        holds(&SourceCheckpoint { state: s.clone(), entries: 9, transfer });
        let record = SourceJobRecord {
            first: s.clone(),
            spec: spec.clone(),
            plan: Some(PlanId { region: RegionNumber(1), incarnation: 2, number: 4 }),
            bytes_per_second_max: None,
            planned_downtime_us: 1,
            started_at: WallMillis(1_700_000_000_006),
        };
        holds(&SourceJobEnded { record, last: s.clone(), transfer, ended_at: WallMillis(1_700_000_000_007) });
        holds(&TargetJobRecord { first: first.clone(), started_at: WallMillis(1_700_000_000_001) });
        holds(&TargetJobEnded { last: first, ended_at: WallMillis(1_700_000_000_002) });
        let input = Input { attempt: s.attempt, step: Some(Step::Decide), event: Event::Decided(Decision::Abort) };
        holds(&JobEntry::Source(JournalEntry { input, at: WallMillis(1_700_000_000_003) }));
        holds(&Cleanup {
            kind: CleanupKind::Purge,
            job: Some(s.job),
            vm: s.vm,
            cluster: s.from.cluster.clone(),
            fence: s.next_fence,
            due: WallMillis(1_700_000_000_004),
        });
        holds(&RequestRecord { fingerprint: 5, subject: "vm-1-1-7".into() });
        holds(&plan());
        holds(&VmName { vm: s.vm });
        let resources = Resources { cpu: 2, memory_bytes: 4096, disk_bytes: 65536 };
        holds(&ReservationRecord { job: s.job, vm: s.vm, resources });
        let moved = Moved { to: s.to.clone(), fence: s.next_fence, attempt: s.attempt };
        holds(&VmDecisions { decided: Some((s.attempt, Decision::Transfer)), moved: Some(moved) });
        holds(&VmRecord {
            id: s.vm,
            spec,
            cluster: s.from.cluster,
            desired: DesiredPower::Running,
            fence: Fence::FIRST,
            attempt: s.attempt,
            job: Some(s.job),
            reasoning: "the only one".into(),
            resource_version: 4,
            created_at: WallMillis(1_700_000_000_005),
        });
    }
}
