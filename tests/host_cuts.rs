//! A transfer that is cut at random bytes, in both directions: everything arrives, and nothing that the target stored
//! is sent again.

mod host_support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use host_support::*;
use novafed::drivers::embedded::judge::{Moment, judge};
use novafed::drivers::embedded::program::Plan;
use novafed::drivers::embedded::snapshot::SnapshotFiles;
use novafed::drivers::{Channel, Duplex, End, HostCall, HostReply, Hypervisor, SwitchKey};
use novafed::types::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A connection that outlives this moved all there was to move.
const LIFE_MAX: Duration = Duration::from_millis(400);

/// Carries bytes one way until `budget` is used up, counting them in `carried`.
async fn carry<R, W>(mut from: R, mut to: W, mut budget: u64, carried: &AtomicU64)
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut buffer = vec![0; 64 * 1024];
    while budget > 0 {
        let max = buffer.len().min(usize::try_from(budget).unwrap_or(usize::MAX));
        let Ok(count @ 1..) = from.read(&mut buffer[..max]).await else { break };
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        carried.fetch_add(count as u64, Ordering::Relaxed);
        budget -= count as u64;
    }
}

/// One connection that is cut after so many bytes to the target or back. Returns the bytes that reached the target.
async fn connection(source: &dyn Hypervisor, target: &dyn Hypervisor, key: SwitchKey, to: u64, back: u64) -> u64 {
    let from: Box<dyn Duplex> = source.open_channel(key, Channel::Blocks, End::Source).await.unwrap();
    let into: Box<dyn Duplex> = target.open_channel(key, Channel::Blocks, End::Target).await.unwrap();
    let (source_reader, source_writer) = tokio::io::split(from);
    let (target_reader, target_writer) = tokio::io::split(into);
    let (arrived, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let both = async {
        tokio::select! {
            () = carry(source_reader, target_writer, to, &arrived) => {}
            () = carry(target_reader, source_writer, back, &answered) => {}
        }
    };
    // Once all is copied nothing flows any more: then its time ends it.
    let _ = tokio::time::timeout(LIFE_MAX, both).await;
    arrived.into_inner()
}

async fn cut_again_and_again(seed: u64, program: GuestProgram) {
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let vm = vm(1);
    let spec = spec(GuestProgram { seed, ..program });
    start(&a, vm, &spec).await;
    let mut attempt = 1;
    let mut key = key(vm, attempt);
    let prepare = async |key| {
        call(&b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
        call(&a, HostCall::Send { key, bytes_per_second_max: None }).await;
    };
    prepare(key).await;
    let who = format!("seed {seed}");
    let mut stored = 0;
    for _ in 0..12 {
        // Often inside the greeting or the first frame, sometimes after megabytes.
        let to = if random.bool() { random.u64(1..200_000) } else { random.u64(1..3_000_000) };
        let back = if random.bool() { random.u64(1..20_000) } else { u64::MAX };
        let arrived = connection(&a, &b, key, to, back).await;
        stored = stored_but_a_block(&b, key, stored, arrived, &who).await;
        if random.u8(..) < 50 {
            // The watchdog's way out: pause, cancel, and a new attempt that adopts what is there.
            call(&a, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
            call(&a, HostCall::CancelPause { key }).await;
            attempt += 1;
            key = host_support::key(vm, attempt);
            prepare(key).await;
        }
    }
    call(&a, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
    // One more cut in the last round, then it is left alone.
    let arrived = connection(&a, &b, key, random.u64(1..100_000), u64::MAX).await;
    stored_but_a_block(&b, key, stored, arrived, &who).await;
    let wire = connect(&a, &b, key).await;
    eventually("everything arrived", async || progress(&a, key).await.drained).await;
    let sealed = seal(&b, key).await;
    wire.abort();

    let (source, target) = (progress(&a, key).await, progress(&b, key).await);
    assert_eq!(target.sent_twice_bytes, 0, "seed {seed}: {target:?}");
    assert_eq!(source.acknowledged_bytes, target.acknowledged_bytes, "seed {seed}");
    if program.dirty_bytes_per_second == 0 {
        stored_once(target.acknowledged_bytes, sealed.tick, &who);
    }

    call(&a, HostCall::Hold { key }).await;
    call(&b, HostCall::Activate { key, fence: fence(2) }).await;
    call(&a, HostCall::Retire { key, fence: fence(2) }).await;
    let HostReply::Snapshot(info) = call(&b, HostCall::Snapshot { vm, directory: dir.path().join("s") }).await else {
        panic!("no snapshot")
    };
    assert!(info.tick >= sealed.tick);
    let files = SnapshotFiles::of(&dir.path().join("s"), vm);
    let moment = Moment { boot: 1, boot_tick: 0, tick: info.tick };
    judge(&Plan::of(&spec), moment, &files.memory, &files.disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_was_stored_is_sent_again_whatever_is_cut() {
    for seed in 0..8 {
        cut_again_and_again(seed, if seed % 2 == 0 { busy() } else { idle() }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guest_that_was_restarted_from_its_disk_shares_no_versions_with_its_former_life() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, spec) = (vm(1), spec(busy()));
    start(&a, vm, &spec).await;
    let first = key(vm, 1);
    call(&b, HostCall::PrepareReceive { key: first, spec: spec.clone(), fence: fence(2) }).await;
    call(&a, HostCall::Send { key: first, bytes_per_second_max: None }).await;
    let wire = connect(&a, &b, first).await;
    eventually("a round is over", async || progress(&a, first).await.rounds >= 1).await;
    wire.abort();
    call(&a, HostCall::Stop { vm, fence: Fence::FIRST }).await;
    call(&a, HostCall::Start { vm, fence: Fence::FIRST }).await;
    let second = key(vm, 2);
    call(&b, HostCall::PrepareReceive { key: second, spec: spec.clone(), fence: fence(2) }).await;
    call(&a, HostCall::Send { key: second, bytes_per_second_max: None }).await;
    let _wire = connect(&a, &b, second).await;
    call(&a, HostCall::PauseForSwitch { key: second, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
    eventually("everything arrived", async || progress(&a, second).await.drained).await;
    seal(&b, second).await;
    call(&a, HostCall::Hold { key: second }).await;
    call(&b, HostCall::Activate { key: second, fence: fence(2) }).await;
    let HostReply::Snapshot(info) = call(&b, HostCall::Snapshot { vm, directory: dir.path().join("s") }).await else {
        panic!("no snapshot")
    };
    let files = SnapshotFiles::of(&dir.path().join("s"), vm);
    let registers = files.read_registers().unwrap();
    assert_eq!(registers.boot, 2);
    let moment = Moment { boot: 2, boot_tick: registers.boot_tick, tick: info.tick };
    judge(&Plan::of(&spec), moment, &files.memory, &files.disk).unwrap();
}
