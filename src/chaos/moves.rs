//! VMs and their moves as a client of a region asks for them: what tests and measurements of real processes share.
//! Owns: asking, and waiting for what the regions then say. Always: a wait that comes to nothing tells what was seen last.
//! Not here: processes and ways between them (`federation.rs`), how the demo tells it (`demo/`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::federation::{Federation, HarnessError};
use super::process::wait_for;
use crate::admin::{CreatedVm, VmView};
use crate::types::{
    CheckStatus, GuestProgram, JobId, MigrationPlan, MigrationStatus, Millis, Place, PlanId, RegionName, VmId, VmName,
    VmSpec,
};

/// What takes longer is not going to happen.
pub const SEEN_MS_MAX: Millis = Millis(60_000);

/// A VM of one CPU in the namespace `default`.
pub fn guest(name: VmName, memory_bytes: u64, disk_bytes: u64, program: GuestProgram) -> VmSpec {
    let namespace = "default".parse().expect("a literal that matches the grammar");
    VmSpec { name, namespace, cpu: 1, memory_bytes, disk_bytes, labels: BTreeMap::new(), program }
}

impl Federation {
    /// Creates a VM at `region`; it may not run yet.
    ///
    /// # Errors
    /// The region's.
    pub async fn create(&self, region: &RegionName, spec: &VmSpec) -> Result<CreatedVm, HarnessError> {
        self.post(region, "/v2/vms", spec).await
    }

    /// Waits until `region` says that `vm` is `power`.
    ///
    /// # Errors
    /// What it said last.
    pub async fn powered(&self, region: &RegionName, vm: VmId, power: &str) -> Result<(), HarnessError> {
        let look = async || {
            let view: VmView = self.get(region, &format!("/v2/vms/{vm}")).await.map_err(|e| e.to_string())?;
            if view.power.word() == power { Ok(()) } else { Err(view.power.word().to_owned()) }
        };
        Ok(wait_for(&format!("{vm} to be {power}"), SEEN_MS_MAX, look).await?)
    }

    /// Plans to move `vm` from `region`, again and again until a plan can be started.
    ///
    /// # Errors
    /// What was missing last.
    pub async fn planned(
        &self,
        region: &RegionName,
        vm: VmId,
        to: &Place,
        options: &impl Serialize,
    ) -> Result<PlanId, HarnessError> {
        let request = serde_json::json!({ "vmID": vm, "targetClusterID": to, "options": options });
        let look = async || {
            let plan: MigrationPlan =
                self.post(region, "/v2/migration-plans", &request).await.map_err(|e| e.to_string())?;
            let failed: Vec<_> = plan.checks.iter().filter(|check| check.status == CheckStatus::Failed).collect();
            if plan.executable { Ok(plan.id) } else { Err(format!("{failed:?}")) }
        };
        Ok(wait_for("an executable plan", SEEN_MS_MAX, look).await?)
    }

    /// How `region` says that a job stands.
    ///
    /// # Errors
    /// The region's.
    pub async fn job(&self, region: &RegionName, job: JobId) -> Result<MigrationStatus, HarnessError> {
        self.get(region, &format!("/v2/migrations/{job}")).await
    }

    /// Waits until `holds` of a job.
    ///
    /// # Errors
    /// How it stood last.
    pub async fn until(
        &self,
        region: &RegionName,
        job: JobId,
        what: &str,
        holds: impl Fn(&MigrationStatus) -> bool,
    ) -> Result<MigrationStatus, HarnessError> {
        let look = async || {
            let status = self.job(region, job).await.map_err(|e| e.to_string())?;
            if holds(&status) {
                Ok(status)
            } else {
                Err(format!("{:?} at {}: {:?}", status.state, status.phase, status.reason))
            }
        };
        Ok(wait_for(&format!("{job} {what}"), SEEN_MS_MAX, look).await?)
    }

    /// Waits for the end of a job.
    ///
    /// # Errors
    /// How it stood last.
    pub async fn end_of(&self, region: &RegionName, job: JobId) -> Result<MigrationStatus, HarnessError> {
        self.until(region, job, "to end", |status| status.state.is_end()).await
    }
}
