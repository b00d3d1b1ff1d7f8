//! Crimes for the judges to find. Owns: how each is committed. Always: it is what must never happen, done to real hosts.
//! Not here: who finds it (`invariants.rs`), when it is planted (`demo/`, `real/`).

use super::federation::{Federation, HarnessError, READY_MS_MAX};
use super::process::wait_for;
use crate::drivers::embedded::client::{DriverOptions, EmbeddedDriver};
use crate::drivers::{HostCall, Hypervisor as _};
use crate::types::{Fence, Incarnation, OperationId, Place, RequestId, Resources, VmId, VmSpec};

/// What there is to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A second copy of a running VM, started at another host behind its owner's back.
    DoubleRun,
}

/// Ticks of the copy that are waited for: more than the true one can have missed.
const TICKS: u64 = 10;

/// A copy of `vm` at another host, started behind its owner's back by somebody who poses as a later life of that
/// region's node; waits until it ticks.
///
/// # Errors
/// The host's, or that it does not tick.
pub async fn run_twice(
    fed: &Federation,
    elsewhere: &Place,
    capacity: Resources,
    vm: VmId,
    spec: VmSpec,
    fence: Fence,
) -> Result<(), HarnessError> {
    let driver = EmbeddedDriver::new(DriverOptions {
        directory: fed.host_dir(elsewhere)?,
        region: elsewhere.region.clone(),
        lineage: Incarnation { counter: u64::MAX, nonce: 0 }.into(),
        cluster: elsewhere.cluster.clone(),
        capacity,
    });
    let ticks = || -> Result<u64, HarnessError> {
        Ok(fed.witness_of(elsewhere)?.vms.get(&vm).map_or(0, |account| account.ticks))
    };
    let before = ticks()?;
    for (number, call) in [HostCall::Create { vm, spec, fence }, HostCall::Start { vm, fence }].into_iter().enumerate()
    {
        let request = RequestId { region: vm.region, incarnation: 0, number: 0 };
        let operation = OperationId::of_request(request, &number.to_string());
        let what = format!("{call:?}");
        let done = driver.call(operation, call, READY_MS_MAX).await;
        done.map_err(|e| HarnessError::Host { place: elsewhere.clone(), call: what, source: Box::new(e) })?;
    }
    Ok(wait_for("the second copy to tick", READY_MS_MAX, async || match ticks() {
        Ok(now) if now > before + TICKS => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?)
}
