//! What every driver has to do, tried on a real one. Owns: the suite that a third party runs against its driver.
//! Always: only the contract is used; it takes two drivers with room for a few small VMs and leaves nothing behind.
//! Not here: what only the embedded host can show (its consoles, its faults).

use std::time::Duration;

use super::{
    Channel, End, HostCall, HostError, HostReply, Hypervisor, SealReport, SwitchKey, TransferProgress, VmObservation,
};
use crate::types::units::MIB;
use crate::types::{
    Attempt, DirtyPattern, Fence, GuestPower, GuestProgram, JobId, Millis, OperationId, RegionNumber, RequestId, VmId,
    VmSpec,
};

/// A property that the driver does not have.
#[derive(Debug, thiserror::Error)]
#[error("{property}: {found}")]
pub struct Nonconformance {
    /// What must hold.
    pub property: &'static str,
    /// What was seen instead.
    pub found: String,
}

type Outcome = Result<(), Nonconformance>;

const DEADLINE: Millis = Millis(20_000);
/// How long the suite waits for something that must come true.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Runs the whole suite: `driver` alone, then moves from `driver` to `target`. VM numbers come from `seed`, so that a
/// driver which remembers fences (as it must) can be tried again.
pub async fn conformance(driver: &dyn Hypervisor, target: &dyn Hypervisor, seed: u64) -> Outcome {
    let suite = Suite { driver, target, seed };
    suite.power().await?;
    suite.fences().await?;
    suite.watchdog().await?;
    suite.cancelled_pause().await?;
    suite.moved().await?;
    suite.aborted().await
}

struct Suite<'a> {
    driver: &'a dyn Hypervisor,
    target: &'a dyn Hypervisor,
    seed: u64,
}

fn fails(property: &'static str, found: impl std::fmt::Debug) -> Nonconformance {
    Nonconformance { property, found: format!("{found:?}") }
}

fn holds(property: &'static str, holds: bool, found: impl std::fmt::Debug) -> Outcome {
    if holds { Ok(()) } else { Err(fails(property, found)) }
}

fn spec() -> VmSpec {
    VmSpec {
        name: "conformance".parse().expect("a name"),
        namespace: "default".parse().expect("a name"),
        cpu: 1,
        memory_bytes: 16 * MIB,
        disk_bytes: 4 * MIB,
        labels: Default::default(),
        program: GuestProgram {
            seed: 5,
            tick_ms: 10,
            resident_bytes: 2 * MIB,
            working_set_bytes: MIB,
            dirty_bytes_per_second: MIB,
            pattern: DirtyPattern::Random,
            disk_resident_bytes: MIB,
            disk_bytes_per_second: 256 * 1024,
        },
    }
}

const MOVED: Fence = Fence { epoch: 2, generation: 1 };

impl Suite<'_> {
    fn vm(&self, number: u64) -> VmId {
        VmId { region: RegionNumber(0), incarnation: self.seed, number }
    }

    fn key(&self, vm: VmId, attempt: u32) -> SwitchKey {
        let job = JobId { region: RegionNumber(0), incarnation: self.seed, number: vm.number };
        SwitchKey { vm, job, attempt: Attempt(attempt) }
    }

    /// Calls with an operation of its own.
    async fn call(&self, driver: &dyn Hypervisor, call: HostCall) -> Result<HostReply, HostError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let request = RequestId { region: RegionNumber(0), incarnation: self.seed, number };
        driver.call(OperationId::of_request(request, "conformance"), call, DEADLINE).await
    }

    /// Does it twice: a repeat of what is done says done.
    async fn twice(&self, driver: &dyn Hypervisor, call: HostCall) -> Outcome {
        for _ in 0..2 {
            let reply = self.call(driver, call.clone()).await;
            holds("a call and its repeat say done", reply == Ok(HostReply::Done), (&call, reply))?;
        }
        Ok(())
    }

    async fn refused(&self, property: &'static str, driver: &dyn Hypervisor, call: HostCall) -> Outcome {
        let reply = self.call(driver, call).await;
        let refused =
            matches!(reply, Err(HostError::Refused { .. } | HostError::Fenced { .. } | HostError::NotFound { .. }));
        holds(property, refused, reply)
    }

    async fn fenced(&self, property: &'static str, driver: &dyn Hypervisor, call: HostCall) -> Outcome {
        let reply = self.call(driver, call).await;
        holds(property, matches!(reply, Err(HostError::Fenced { .. })), reply)
    }

    async fn get(&self, driver: &dyn Hypervisor, vm: VmId) -> Result<Option<VmObservation>, Nonconformance> {
        match self.call(driver, HostCall::Get { vm }).await {
            Ok(HostReply::Vm(seen)) => Ok(seen),
            other => Err(fails("`Get` says how a VM is", other)),
        }
    }

    async fn progress(&self, driver: &dyn Hypervisor, key: SwitchKey) -> Result<TransferProgress, Nonconformance> {
        match self.call(driver, HostCall::Progress { key }).await {
            Ok(HostReply::Progress(progress)) => Ok(progress),
            other => Err(fails("`Progress` says how a transfer stands", other)),
        }
    }

    async fn power_is(&self, driver: &dyn Hypervisor, vm: VmId, power: GuestPower) -> Outcome {
        let seen = self.get(driver, vm).await?;
        holds(
            "the power is what the calls made it",
            seen.as_ref().is_some_and(|s| s.sight.power == power),
            (power, seen),
        )
    }

    async fn until<F>(&self, property: &'static str, mut come_true: F) -> Outcome
    where
        F: AsyncFnMut() -> Result<bool, Nonconformance>,
    {
        let wait = async {
            while !come_true().await? {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err(fails(property, "it never came true")))
    }

    async fn ticks_on(&self, driver: &dyn Hypervisor, vm: VmId) -> Outcome {
        let from = self.get(driver, vm).await?.map_or(0, |seen| seen.sight.tick);
        self.until("a running guest ticks", async || {
            Ok(self.get(driver, vm).await?.is_some_and(|seen| seen.sight.tick > from + 2))
        })
        .await
    }

    async fn started(&self, vm: VmId) -> Outcome {
        self.twice(self.driver, HostCall::Create { vm, spec: spec(), fence: Fence::FIRST }).await?;
        self.twice(self.driver, HostCall::Start { vm, fence: Fence::FIRST }).await
    }

    async fn removed(&self, vm: VmId, fence: Fence) -> Outcome {
        self.twice(self.driver, HostCall::Delete { vm, fence }).await?;
        let seen = self.get(self.driver, vm).await?;
        holds("a deleted VM is not there", seen.is_none(), seen)
    }

    async fn power(&self) -> Outcome {
        let (driver, vm) = (self.driver, self.vm(1));
        let capabilities = self.call(driver, HostCall::Capabilities).await;
        let Ok(HostReply::Capabilities(_)) = &capabilities else {
            return Err(fails("`Capabilities` says what the driver can do", capabilities));
        };
        let seen = self.get(driver, vm).await?;
        holds("a VM that was never there is not there", seen.is_none(), seen)?;
        self.refused("what was not created can't start", driver, HostCall::Start { vm, fence: Fence::FIRST }).await?;
        self.started(vm).await?;
        self.power_is(driver, vm, GuestPower::Running).await?;
        self.ticks_on(driver, vm).await?;
        match self.call(driver, HostCall::Inventory).await {
            Ok(HostReply::Inventory(all)) => {
                holds("the inventory has it", all.iter().any(|seen| seen.vm == vm), &all)?;
                holds("the inventory is ordered", all.is_sorted_by_key(|seen| seen.vm), &all)?;
            }
            other => return Err(fails("`Inventory` lists all VMs", other)),
        }
        match self.call(driver, HostCall::DirtyRate { vm }).await {
            Ok(HostReply::DirtyRate(_)) | Err(HostError::Unsupported { .. }) => {}
            other => return Err(fails("`DirtyRate` is measured or unsupported", other)),
        }
        let before = self.get(driver, vm).await?.map_or(0, |seen| seen.sight.tick);
        self.twice(driver, HostCall::Stop { vm, fence: Fence::FIRST }).await?;
        self.power_is(driver, vm, GuestPower::Stopped).await?;
        self.twice(driver, HostCall::Start { vm, fence: Fence::FIRST }).await?;
        let after = self.get(driver, vm).await?.map_or(0, |seen| seen.sight.tick);
        holds("ticks never go back over a restart", after >= before, (before, after))?;
        self.removed(vm, Fence::FIRST).await
    }

    async fn fences(&self) -> Outcome {
        let (driver, vm) = (self.driver, self.vm(2));
        self.started(vm).await?;
        self.twice(driver, HostCall::Start { vm, fence: MOVED }).await?;
        for call in [
            HostCall::Start { vm, fence: Fence::FIRST },
            HostCall::Stop { vm, fence: Fence::FIRST },
            HostCall::Delete { vm, fence: Fence::FIRST },
            HostCall::PauseForSwitch { key: self.key(vm, 1), fence: Fence::FIRST, deadline: DEADLINE },
        ] {
            self.fenced("a lower fence is refused", driver, call).await?;
        }
        let key = self.key(vm, 5);
        self.twice(driver, HostCall::Send { key, bytes_per_second_max: None }).await?;
        let lower = self.key(vm, 4);
        for call in [
            HostCall::Send { key: lower, bytes_per_second_max: None },
            HostCall::PauseForSwitch { key: lower, fence: MOVED, deadline: DEADLINE },
            HostCall::Hold { key: lower },
        ] {
            self.fenced("a lower attempt is refused", driver, call).await?;
        }
        self.removed(vm, MOVED).await?;
        let again = HostCall::Create { vm, spec: spec(), fence: Fence::FIRST };
        self.fenced("the fence of a deleted VM is remembered", driver, again).await
    }

    async fn watchdog(&self) -> Outcome {
        let (driver, vm) = (self.driver, self.vm(3));
        let key = self.key(vm, 1);
        self.started(vm).await?;
        self.twice(driver, HostCall::Send { key, bytes_per_second_max: None }).await?;
        let pause = HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(300) };
        let reply = self.call(driver, pause.clone()).await;
        holds("a running guest can be paused", reply == Ok(HostReply::Done), reply)?;
        self.until("the watchdog resumes the guest", async || {
            Ok(self.get(driver, vm).await?.is_some_and(|seen| seen.sight.power == GuestPower::Running))
        })
        .await?;
        self.ticks_on(driver, vm).await?;
        let seen = self.get(driver, vm).await?;
        holds("its attempt is shown as spent", seen.as_ref().is_some_and(|s| s.sight.spent == Some(key)), seen)?;
        self.refused("a spent attempt never holds", driver, HostCall::Hold { key }).await?;
        self.refused("a spent attempt never pauses", driver, pause).await?;
        self.removed(vm, Fence::FIRST).await
    }

    async fn cancelled_pause(&self) -> Outcome {
        let (driver, vm) = (self.driver, self.vm(4));
        let key = self.key(vm, 1);
        self.started(vm).await?;
        let pause = HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: DEADLINE };
        self.twice(driver, pause.clone()).await?;
        let stood = self.get(driver, vm).await?;
        holds(
            "it is shown for whom it is paused",
            stood.as_ref().is_some_and(|s| s.sight.paused_for == Some(key)),
            &stood,
        )?;
        self.refused("a paused guest can't be started", driver, HostCall::Start { vm, fence: Fence::FIRST }).await?;
        self.twice(driver, HostCall::CancelPause { key }).await?;
        self.ticks_on(driver, vm).await?;
        self.refused("a cancelled attempt never holds", driver, HostCall::Hold { key }).await?;
        self.refused("a cancelled attempt never pauses", driver, pause).await?;
        self.removed(vm, Fence::FIRST).await
    }

    /// Copies, pauses, drains and seals.
    async fn sealed(&self, key: SwitchKey) -> Result<SealReport, Nonconformance> {
        let (source, target) = (self.driver, self.target);
        self.twice(target, HostCall::PrepareReceive { key, spec: spec(), fence: MOVED }).await?;
        self.twice(source, HostCall::Send { key, bytes_per_second_max: None }).await?;
        let fence = MOVED;
        self.refused("what is not sealed is not activated", target, HostCall::Activate { key, fence }).await?;
        let open = async |driver: &dyn Hypervisor, end| {
            let opened = driver.open_channel(key, Channel::Blocks, end).await;
            opened.map_err(|error| fails("an end of a channel opens", (end, error)))
        };
        let (mut from, mut to) = (open(source, End::Source).await?, open(target, End::Target).await?);
        let wire = async {
            let ended = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            Err(fails("a channel stays open until it is closed", ended))
        };
        let drive = async {
            self.until("a round ends", async || Ok(self.progress(source, key).await?.rounds > 0)).await?;
            let pause = HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: DEADLINE };
            self.twice(source, pause).await?;
            self.until("the last round arrives", async || Ok(self.progress(source, key).await?.drained)).await?;
            let mut reports = Vec::new();
            for _ in 0..2 {
                match self.call(target, HostCall::SealReceive { key }).await {
                    Ok(HostReply::Sealed(report)) => reports.push(report),
                    other => return Err(fails("what arrived is sealed", other)),
                }
            }
            holds("a repeat seals the same", reports[0] == reports[1], &reports)?;
            Ok(reports[0])
        };
        tokio::select! {
            biased;
            report = drive => report,
            broken = wire => broken,
        }
    }

    async fn moved(&self) -> Outcome {
        let (source, target, vm) = (self.driver, self.target, self.vm(5));
        let (key, fence) = (self.key(vm, 1), MOVED);
        self.started(vm).await?;
        let early = self.call(source, HostCall::Purge { vm, fence }).await;
        holds("what is here and not retired is not purged", matches!(early, Err(HostError::Refused { .. })), early)?;
        let report = self.sealed(key).await?;
        let stood = self.get(source, vm).await?;
        holds(
            "what is sealed is the paused moment",
            stood.as_ref().is_some_and(|s| s.sight.tick == report.tick),
            &stood,
        )?;
        self.twice(source, HostCall::Hold { key }).await?;
        self.refused("a held guest can't be started", source, HostCall::Start { vm, fence }).await?;
        self.refused("a held guest can't be stopped", source, HostCall::Stop { vm, fence }).await?;
        self.refused("a held guest can't be deleted", source, HostCall::Delete { vm, fence }).await?;
        self.refused("a held guest's pause can't be cancelled", source, HostCall::CancelPause { key }).await?;
        self.twice(source, HostCall::Retire { key, fence }).await?;
        self.power_is(source, vm, GuestPower::Retired).await?;
        self.refused("a retired VM can't be started", source, HostCall::Start { vm, fence }).await?;
        self.twice(target, HostCall::Activate { key, fence }).await?;
        self.ticks_on(target, vm).await?;
        let twice = self.progress(target, key).await?.sent_twice_bytes;
        holds("nothing is sent twice on a whole link", twice == 0, twice)?;
        self.refused("what runs is never discarded", target, HostCall::DiscardReceive { key }).await?;
        self.twice(source, HostCall::Purge { vm, fence }).await?;
        let seen = self.get(source, vm).await?;
        holds("a purged VM is not there", seen.is_none(), seen)?;
        self.twice(target, HostCall::Delete { vm, fence }).await
    }

    async fn aborted(&self) -> Outcome {
        let (source, target, vm) = (self.driver, self.target, self.vm(6));
        let key = self.key(vm, 1);
        self.started(vm).await?;
        self.sealed(key).await?;
        self.twice(source, HostCall::Hold { key }).await?;
        self.twice(target, HostCall::DiscardReceive { key }).await?;
        self.twice(source, HostCall::ReleaseHold { key }).await?;
        self.ticks_on(source, vm).await?;
        let seen = self.get(target, vm).await?;
        holds("what was discarded is not there", seen.is_none(), seen)?;
        let late = HostCall::PrepareReceive { key, spec: spec(), fence: MOVED };
        self.refused("a discarded attempt is not prepared again", target, late).await?;
        self.removed(vm, Fence::FIRST).await
    }
}
