//! Moves between two hosts: everything arrives, whatever is cut, and nothing is sent twice.

#![allow(clippy::print_stderr, reason = "figures that a person reads")]

mod host_support;

use host_support::*;
use novafed::clock::Clock;
use novafed::drivers::embedded::judge::{Moment, judge};
use novafed::drivers::embedded::local::LocalDriver;
use novafed::drivers::embedded::program::Plan;
use novafed::drivers::embedded::snapshot::SnapshotFiles;
use novafed::drivers::embedded::witness::{Account, Consoles, Line, check};
use novafed::drivers::{HostCall, HostReply, Hypervisor, SwitchKey};
use novafed::types::units::MIB;
use novafed::types::*;

async fn judged(driver: &dyn Hypervisor, vm: VmId, spec: &VmSpec, directory: &std::path::Path) -> u64 {
    let HostReply::Snapshot(info) = call(driver, HostCall::Snapshot { vm, directory: directory.to_owned() }).await
    else {
        panic!("no snapshot")
    };
    let files = SnapshotFiles::of(directory, vm);
    let registers = files.read_registers().expect("registers");
    let moment = Moment { boot: registers.boot, boot_tick: registers.boot_tick, tick: info.tick };
    let verdict = judge(&Plan::of(spec), moment, &files.memory, &files.disk).expect("every byte is right");
    assert!(verdict.pages > 0 && verdict.blocks > 0);
    info.tick
}

/// Moves the VM and lets it run at `b`.
async fn moved(a: &LocalDriver, b: &LocalDriver, key: SwitchKey, spec: &VmSpec) {
    call(b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
    call(a, HostCall::Send { key, bytes_per_second_max: None }).await;
    let wire = connect(a, b, key).await;
    eventually("two rounds are over", async || progress(a, key).await.rounds >= 2).await;
    call(a, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
    eventually("everything arrived", async || progress(a, key).await.drained).await;
    let sealed = seal(b, key).await;
    assert_eq!(sealed.tick, get(a, key.vm).await.unwrap().sight.tick);
    assert_eq!(seal(b, key).await, sealed);
    call(a, HostCall::Hold { key }).await;
    call(a, HostCall::Retire { key, fence: fence(2) }).await;
    call(b, HostCall::Activate { key, fence: fence(2) }).await;
    wire.abort();
}

fn witnessed(directory: &std::path::Path, vm: VmId) -> Account {
    let mut consoles = Consoles::default();
    for host in ["a", "b"] {
        consoles.add_directory(&directory.join(host).join("console")).unwrap();
    }
    let report = check(&consoles);
    assert_eq!(report.violations, []);
    report.vms[&vm].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_busy_guest_moves_whole_and_its_ticks_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(busy()));
    start(&a, vm, &spec).await;
    ticked(&a, vm, 30).await;
    judged(&a, vm, &spec, &dir.path().join("before")).await;
    moved(&a, &b, key, &spec).await;
    ticked(&b, vm, 30).await;
    judged(&b, vm, &spec, &dir.path().join("after")).await;
    let account = witnessed(dir.path(), vm);
    assert_eq!(account.moves.len(), 1);
    // How it stood at the end can still be asked, at both ends.
    let (sent, received) = (progress(&a, key).await, progress(&b, key).await);
    assert_eq!((sent.acknowledged_bytes, received.sent_twice_bytes), (received.acknowledged_bytes, 0));
    assert_eq!(get(&a, vm).await.unwrap().sight.power, GuestPower::Retired);
    call(&a, HostCall::Purge { vm, fence: fence(2) }).await;
    assert_eq!(get(&a, vm).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_large_guest_that_dirties_20_mb_a_second_ticks_on_while_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let program = GuestProgram {
        seed: 3,
        tick_ms: 10,
        resident_bytes: 64 * MIB,
        working_set_bytes: 16 * MIB,
        dirty_bytes_per_second: 20 * MIB,
        pattern: DirtyPattern::Random,
        disk_resident_bytes: 128 * MIB,
        disk_bytes_per_second: MIB,
    };
    let spec = VmSpec { memory_bytes: 128 * MIB, disk_bytes: 128 * MIB, ..spec(program) };
    let (vm, key) = (vm(1), key(vm(1), 1));
    let clock = Clock::start();
    start(&a, vm, &spec).await;
    let booted = clock.now().0;
    ticked(&a, vm, 20).await;
    let from = clock.now().0;
    moved(&a, &b, key, &spec).await;
    let took = clock.now().0 - from;
    ticked(&b, vm, 20).await;
    judged(&b, vm, &spec, &dir.path().join("after")).await;
    let account = witnessed(dir.path(), vm);
    let path = dir.path().join("a").join("console").join(format!("{vm}.log"));
    let lines: Vec<Line> = std::fs::read_to_string(path).unwrap().lines().filter_map(Line::parse).collect();
    let longest = lines.windows(2).map(|w| w[1].nanos - w[0].nanos).max().unwrap() / 1_000_000;
    eprintln!(
        "boot {booted} ms, {} MiB moved in {took} ms, guest's gap {} ms, longest time between two ticks before {longest} ms",
        progress(&b, key).await.acknowledged_bytes / MIB,
        account.moves[0].gap_nanos / 1_000_000
    );
    assert!(longest < 500, "the transfer kept the guest from ticking for {longest} ms");
}
