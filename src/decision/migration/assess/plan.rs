//! The plan. Owns: what an assessment looks like for a client. Always: its steps are the rows of the step table.

use super::{Assessment, Facts};
use crate::decision::migration::steps::STEPS;
use crate::types::{MigrationPlan, MigrationStep, PlanId, WallMillis, limits};

/// Builds the plan `id`, made at `created_at`.
pub fn plan(id: PlanId, created_at: WallMillis, facts: &Facts, assessment: Assessment) -> MigrationPlan {
    let estimate = assessment.estimate;
    MigrationPlan {
        id,
        vm: facts.vm,
        source: facts.source.clone(),
        target: facts.target.clone(),
        options: facts.options.clone(),
        estimated_downtime: estimate.downtime_us.saturating_mul(1_000),
        estimated_downtime_ms: estimate.downtime_us as f64 / 1_000.0,
        estimated_duration: estimate.duration_us.saturating_mul(1_000),
        estimated_duration_ms: estimate.duration_us as f64 / 1_000.0,
        estimated_bytes: estimate.bytes,
        steps: STEPS
            .iter()
            .filter(|row| row.forward)
            .map(|row| MigrationStep {
                name: row.name.into(),
                description: row.description.into(),
                reversible: row.reversible,
            })
            .collect(),
        network_changes: assessment.network_changes,
        storage_changes: assessment.storage_changes,
        risks: assessment.risks,
        checks: assessment.checks,
        executable: assessment.executable,
        resource_version: facts.resource_version,
        created_at,
        expires_at: WallMillis(created_at.0.saturating_add(limits::PLAN_EXPIRES_MS.0)),
    }
}
