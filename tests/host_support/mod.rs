//! What the tests of the embedded host share.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use novafed::drivers::embedded::local::LocalDriver;
use novafed::drivers::embedded::program::TICKS_PROMISED;
use novafed::drivers::{
    Channel, End, HostCall, HostError, HostReply, Hypervisor, SealReport, SwitchKey, TransferProgress, VmObservation,
};
use novafed::types::limits::{BLOCK_BYTES_MAX, DISK_BLOCK_BYTES};
use novafed::types::units::{GIB, KIB, MIB};
use novafed::types::*;

pub const PATIENCE: Millis = Millis(20_000);

pub fn vm(number: u64) -> VmId {
    VmId { region: RegionNumber(1), incarnation: 1, number }
}

pub fn key(vm: VmId, attempt: u32) -> SwitchKey {
    let job = JobId { region: RegionNumber(1), incarnation: 1, number: 1 };
    SwitchKey { vm, job, attempt: Attempt(attempt) }
}

pub fn fence(epoch: u64) -> Fence {
    Fence { epoch, generation: 1 }
}

pub fn incarnation(counter: u64) -> Incarnation {
    Incarnation { counter, nonce: counter }
}

pub fn capacity() -> Resources {
    Resources { cpu: 10_000, memory_bytes: 64 * GIB, disk_bytes: 64 * GIB }
}

/// A busy guest of a few MiB that ticks each 5 ms.
pub fn busy() -> GuestProgram {
    GuestProgram {
        seed: 7,
        tick_ms: 5,
        resident_bytes: 4 * MIB,
        working_set_bytes: MIB,
        dirty_bytes_per_second: 4 * MIB,
        pattern: DirtyPattern::Hot,
        disk_resident_bytes: 2 * MIB,
        disk_bytes_per_second: MIB,
    }
}

/// A guest that writes nothing after its first tick: what it has is known to the byte.
pub fn idle() -> GuestProgram {
    GuestProgram {
        resident_bytes: 32 * MIB,
        working_set_bytes: 0,
        dirty_bytes_per_second: 0,
        disk_resident_bytes: 8 * MIB,
        disk_bytes_per_second: 0,
        ..busy()
    }
}

/// Checks that of an [`idle`] guest everything was stored once: whoever forgets what it had, or what the other had,
/// stores some of it again. Its superblock alone changes, each so many ticks.
pub fn stored_once(stored: u64, tick: u64, who: &str) {
    let superblocks = tick / TICKS_PROMISED + 1;
    let whole = 40 * MIB + DISK_BLOCK_BYTES as u64;
    let most = whole + superblocks * DISK_BLOCK_BYTES as u64;
    assert!((whole..=most).contains(&stored), "{who}: {stored} bytes are stored, not {whole} to {most}");
}

/// Checks what one connection of a transfer cost: of `arrived` bytes, all but a block that was on its way are stored
/// sooner or later, besides one percent for the heads of frames. Returns what is stored then.
pub async fn stored_but_a_block(target: &dyn Hypervisor, key: SwitchKey, before: u64, arrived: u64, who: &str) -> u64 {
    let most = BLOCK_BYTES_MAX as u64 + 64 * KIB + arrived / 100;
    let lost = async || arrived.saturating_sub(progress(target, key).await.acknowledged_bytes - before);
    eventually(&format!("{who}: all but a block of {arrived} bytes is stored"), async || lost().await <= most).await;
    progress(target, key).await.acknowledged_bytes
}

pub fn spec(program: GuestProgram) -> VmSpec {
    VmSpec {
        name: "guest".parse().unwrap(),
        namespace: "default".parse().unwrap(),
        cpu: 1,
        memory_bytes: 64 * MIB,
        disk_bytes: 16 * MIB,
        labels: Default::default(),
        program,
    }
}

pub async fn local(directory: &std::path::Path, name: &str) -> LocalDriver {
    let cluster = format!("{name}-cluster").parse().unwrap();
    let region = "eu".parse().unwrap();
    let opened = LocalDriver::open(name.parse().unwrap(), directory, &region, incarnation(1), cluster, capacity());
    opened.await.expect("the host opens").expect("the cluster attaches")
}

static OPERATION: AtomicU64 = AtomicU64::new(1);

pub fn operation() -> OperationId {
    let number = OPERATION.fetch_add(1, Ordering::Relaxed);
    OperationId::of_request(RequestId { region: RegionNumber(1), incarnation: 1, number }, "test")
}

pub async fn try_call(driver: &dyn Hypervisor, call: HostCall) -> Result<HostReply, HostError> {
    driver.call(operation(), call, PATIENCE).await
}

pub async fn call(driver: &dyn Hypervisor, call: HostCall) -> HostReply {
    let shown = format!("{call:?}");
    try_call(driver, call).await.unwrap_or_else(|error| panic!("{shown}: {error}"))
}

pub async fn get(driver: &dyn Hypervisor, vm: VmId) -> Option<VmObservation> {
    match call(driver, HostCall::Get { vm }).await {
        HostReply::Vm(seen) => seen,
        other => panic!("{other:?}"),
    }
}

pub async fn progress(driver: &dyn Hypervisor, key: SwitchKey) -> TransferProgress {
    match call(driver, HostCall::Progress { key }).await {
        HostReply::Progress(progress) => progress,
        other => panic!("{other:?}"),
    }
}

pub async fn seal(driver: &dyn Hypervisor, key: SwitchKey) -> SealReport {
    match call(driver, HostCall::SealReceive { key }).await {
        HostReply::Sealed(report) => report,
        other => panic!("{other:?}"),
    }
}

/// Waits until `holds`; the tests' only way to wait for something.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..10_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never came true: {what}");
}

pub async fn ticked(driver: &dyn Hypervisor, vm: VmId, ticks: u64) {
    let from = get(driver, vm).await.expect("it is here").sight.tick;
    eventually("the guest ticks", async || get(driver, vm).await.is_some_and(|seen| seen.sight.tick >= from + ticks))
        .await;
}

/// Creates and starts a guest.
pub async fn start(driver: &dyn Hypervisor, vm: VmId, spec: &VmSpec) {
    call(driver, HostCall::Create { vm, spec: spec.clone(), fence: Fence::FIRST }).await;
    call(driver, HostCall::Start { vm, fence: Fence::FIRST }).await;
}

/// Joins both ends of a channel, as two nodes would.
pub async fn connect(source: &dyn Hypervisor, target: &dyn Hypervisor, key: SwitchKey) -> tokio::task::JoinHandle<()> {
    let mut from = source.open_channel(key, Channel::Blocks, End::Source).await.expect("the source's end opens");
    let mut to = target.open_channel(key, Channel::Blocks, End::Target).await.expect("the target's end opens");
    tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
    })
}
