//! The host's part of the switch (law 6.3), on paused time and over crashes of the host.

mod host_support;

use std::time::Duration;

use host_support::*;
use novafed::drivers::embedded::local::LocalDriver;
use novafed::drivers::embedded::witness::{Consoles, check};
use novafed::drivers::{HostCall, HostError, HostReply, Hypervisor, SwitchKey};
use novafed::types::units::MIB;
use novafed::types::*;

fn pause(key: SwitchKey, deadline: u64) -> HostCall {
    HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(deadline) }
}

async fn power(driver: &dyn Hypervisor, vm: VmId) -> GuestPower {
    get(driver, vm).await.expect("it is here").sight.power
}

fn refused(result: Result<HostReply, HostError>) -> bool {
    matches!(result, Err(HostError::Refused { .. }))
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_resumes_at_its_deadline_and_spends_the_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let a = local(dir.path(), "a").await;
    let (vm, first, second) = (vm(1), key(vm(1), 1), key(vm(1), 2));
    start(&a, vm, &spec(GuestProgram { tick_ms: 100, ..busy() })).await;
    call(&a, HostCall::Send { key: first, bytes_per_second_max: None }).await;
    call(&a, pause(first, 5_000)).await;
    let stood = get(&a, vm).await.unwrap();
    assert_eq!((stood.sight.power, stood.sight.paused_for), (GuestPower::Paused, Some(first)));
    tokio::time::sleep(Duration::from_millis(4_900)).await;
    call(&a, pause(first, 5_000)).await; // a repeat arms nothing anew
    assert_eq!(get(&a, vm).await.unwrap().sight.tick, stood.sight.tick);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let runs = get(&a, vm).await.unwrap();
    assert_eq!((runs.sight.power, runs.sight.paused_for, runs.sight.spent), (GuestPower::Running, None, Some(first)));
    assert!(refused(try_call(&a, HostCall::Hold { key: first }).await));
    assert!(refused(try_call(&a, pause(first, 5_000)).await));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(get(&a, vm).await.unwrap().sight.tick > stood.sight.tick);

    call(&a, HostCall::Send { key: second, bytes_per_second_max: None }).await;
    call(&a, pause(second, 5_000)).await;
    call(&a, HostCall::Hold { key: second }).await;
    let held = get(&a, vm).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let later = get(&a, vm).await.unwrap();
    assert_eq!(
        (later.sight.power, later.sight.tick, later.sight.hold),
        (GuestPower::Paused, held.sight.tick, Some(second))
    );
    assert!(refused(try_call(&a, HostCall::CancelPause { key: second }).await));
    call(&a, HostCall::ReleaseHold { key: second }).await;
    call(&a, HostCall::ReleaseHold { key: second }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(get(&a, vm).await.unwrap().sight.tick > held.sight.tick);
}

/// Begins to copy the guest from `a` to `b`, over the channel that is given back.
async fn copying(a: &LocalDriver, b: &LocalDriver, key: SwitchKey, spec: &VmSpec) -> tokio::task::JoinHandle<()> {
    call(b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
    call(a, HostCall::Send { key, bytes_per_second_max: None }).await;
    connect(a, b, key).await
}

/// Copies everything and seals it at `b`; the source is paused.
async fn copied(a: &LocalDriver, b: &LocalDriver, key: SwitchKey, spec: &VmSpec) {
    let wire = copying(a, b, key, spec).await;
    call(a, pause(key, 60_000)).await;
    eventually("everything arrived", async || progress(a, key).await.drained).await;
    seal(b, key).await;
    wire.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_seal_that_comes_before_the_end_of_the_last_round_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    let wire = copying(&a, &b, key, &spec).await;
    eventually("a round ends", async || progress(&a, key).await.rounds > 0).await;
    // The seal is asked for while the guest still runs: there is no last round yet.
    let (sealed, stood) = tokio::join!(seal(&b, key), async {
        ticked(&a, vm, 2).await;
        call(&a, pause(key, 60_000)).await;
        get(&a, vm).await.unwrap().sight.tick
    });
    assert_eq!(sealed.tick, stood);
    wire.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_target_whose_host_died_after_the_decision_boots_from_its_disk_by_its_owners_word_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    ticked(&a, vm, 5).await;
    copied(&a, &b, key, &spec).await;
    call(&a, HostCall::Hold { key }).await;
    b.crash();
    let b = local(&dir.path().join("b"), "b").await;
    // It does not say that it has everything any more.
    assert_eq!(get(&b, vm).await.unwrap().sight.receiving, Some((key, false)));
    assert!(refused(try_call(&b, HostCall::SealReceive { key }).await));
    call(&a, HostCall::Retire { key, fence: fence(2) }).await;
    assert!(refused(try_call(&b, HostCall::Activate { key, fence: fence(2) }).await));
    assert!(matches!(
        try_call(&b, HostCall::Start { vm, fence: Fence::FIRST }).await,
        Err(HostError::Refused { .. } | HostError::Fenced { .. })
    ));
    // As it could also be deleted: by its owner, and by nobody who names an older fence.
    assert!(try_call(&b, HostCall::Delete { vm, fence: Fence::FIRST }).await.is_err());
    call(&b, HostCall::Start { vm, fence: fence(2) }).await;
    call(&b, HostCall::Activate { key, fence: fence(2) }).await;
    ticked(&b, vm, 5).await;
    let mut consoles = Consoles::default();
    for host in ["a", "b"] {
        consoles.add_directory(&dir.path().join(host).join("console")).unwrap();
    }
    assert_eq!(check(&consoles).violations, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_held_source_sends_everything_again_to_a_target_that_lost_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    copied(&a, &b, key, &spec).await;
    call(&a, HostCall::Hold { key }).await;
    b.crash();
    let b = local(&dir.path().join("b"), "b").await;
    let wire = connect(&a, &b, key).await;
    eventually("everything arrived again", async || progress(&b, key).await.drained).await;
    seal(&b, key).await;
    wire.abort();
    let tick = get(&a, vm).await.unwrap().sight.tick;
    call(&a, HostCall::Retire { key, fence: fence(2) }).await;
    call(&b, HostCall::Activate { key, fence: fence(2) }).await;
    ticked(&b, vm, 5).await;
    // Not a boot: its ticks follow.
    let console = std::fs::read_to_string(dir.path().join("b").join("console").join(format!("{vm}.log"))).unwrap();
    assert!(console.starts_with(&format!("T {} 2.1 b ", tick + 1)), "{console}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_that_comes_back_to_a_sealed_target_hears_that_everything_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    copied(&a, &b, key, &spec).await;
    let (stored, sealed) = (progress(&b, key).await.acknowledged_bytes, seal(&b, key).await);
    // Both nodes died and open the channel again, not knowing how far it was.
    call(&a, HostCall::Send { key, bytes_per_second_max: None }).await;
    let wire = connect(&a, &b, key).await;
    eventually("it says so", async || {
        let now = progress(&a, key).await;
        now.connected && now.drained
    })
    .await;
    wire.abort();
    assert_eq!((progress(&b, key).await.acknowledged_bytes, seal(&b, key).await), (stored, sealed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_channel_of_a_stale_incarnation_is_closed_when_a_later_one_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    let wire = copying(&a, &b, key, &spec).await;
    eventually("it is connected", async || progress(&a, key).await.connected).await;
    let region = "eu".parse().unwrap();
    let cluster = "a-cluster".parse().unwrap();
    let later = LocalDriver::attach(a.host().unwrap(), &region, incarnation(2), cluster, capacity()).await.unwrap();
    let stale = try_call(&a, HostCall::Inventory).await;
    assert!(matches!(stale, Err(HostError::StaleIncarnation { .. })), "{stale:?}");
    eventually("it is closed", async || !progress(&later, key).await.connected).await;
    wire.abort();
    let wire = connect(&later, &b, key).await;
    eventually("the later one goes on", async || progress(&later, key).await.rounds > 0).await;
    wire.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_open_receipt_dies_with_its_host_and_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    let wire = copying(&a, &b, key, &spec).await;
    eventually("a round is over", async || progress(&a, key).await.rounds >= 1).await;
    b.crash();
    wire.abort();
    let b = local(&dir.path().join("b"), "b").await;
    assert_eq!(get(&b, vm).await, None);
    assert_eq!(std::fs::read_dir(dir.path().join("b").join("disks")).unwrap().count(), 0);
    copied(&a, &b, key, &spec).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_aborted_move_leaves_the_source_running_and_the_target_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    copied(&a, &b, key, &spec).await;
    call(&a, HostCall::Hold { key }).await;
    for _ in 0..2 {
        call(&b, HostCall::DiscardReceive { key }).await;
        call(&a, HostCall::ReleaseHold { key }).await;
    }
    ticked(&a, vm, 5).await;
    assert_eq!(get(&b, vm).await, None);
    // What is still on its way is refused.
    let late = try_call(&b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
    assert!(refused(late));
    assert!(matches!(try_call(&b, HostCall::Activate { key, fence: fence(2) }).await, Err(HostError::NotFound { .. })));
    assert_eq!(power(&a, vm).await, GuestPower::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cap_on_bandwidth_is_kept_and_the_guest_ticks_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key) = (vm(1), key(vm(1), 1));
    let spec = spec(GuestProgram { dirty_bytes_per_second: 0, disk_bytes_per_second: 0, ..busy() });
    start(&a, vm, &spec).await;
    call(&b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
    call(&a, HostCall::Send { key, bytes_per_second_max: Some(8 * MIB) }).await;
    let clock = novafed::clock::Clock::start();
    let from = get(&a, vm).await.unwrap().sight.tick;
    let wire = connect(&a, &b, key).await;
    eventually("a round is over", async || progress(&a, key).await.rounds >= 1).await;
    let took = clock.now().0;
    wire.abort();
    // Six MiB of memory and disk at eight a second; the first block is free.
    assert!(took >= 600, "{took} ms");
    let ticks = get(&a, vm).await.unwrap().sight.tick - from;
    assert!(ticks >= took / 5 / 2, "{ticks} ticks of 5 ms in {took} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_takes_no_more_than_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let a = local(dir.path(), "a").await;
    let large = VmSpec { memory_bytes: capacity().memory_bytes, ..spec(GuestProgram::default()) };
    call(&a, HostCall::Create { vm: vm(1), spec: large.clone(), fence: Fence::FIRST }).await;
    let full = try_call(&a, HostCall::Create { vm: vm(2), spec: spec(busy()), fence: Fence::FIRST }).await;
    assert!(matches!(full, Err(HostError::NoRoom { .. })), "{full:?}");
    let full = try_call(&a, HostCall::PrepareReceive { key: key(vm(2), 1), spec: spec(busy()), fence: fence(2) }).await;
    assert!(matches!(full, Err(HostError::NoRoom { .. })), "{full:?}");
    call(&a, HostCall::Delete { vm: vm(1), fence: Fence::FIRST }).await;
    call(&a, HostCall::Create { vm: vm(2), spec: spec(busy()), fence: Fence::FIRST }).await;
    // Room that was taken survives a restart.
    call(&a, HostCall::Create { vm: vm(3), spec: spec(busy()), fence: Fence::FIRST }).await;
    a.crash();
    let a = local(dir.path(), "a").await;
    let full = try_call(&a, HostCall::Create { vm: vm(1), spec: large, fence: fence(2) }).await;
    assert!(matches!(full, Err(HostError::NoRoom { .. })), "{full:?}");
}
