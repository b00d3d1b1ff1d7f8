//! Moves between two hosts: everything arrives, whatever is cut, and nothing is sent twice.

#![allow(clippy::print_stderr, reason = "figures that a person reads")]

mod host_support;

use host_support::*;
use novafed::drivers::embedded::judge::{Moment, judge};
use novafed::drivers::embedded::program::Plan;
use novafed::drivers::embedded::snapshot::SnapshotFiles;
use novafed::drivers::embedded::witness::{Consoles, check};
use novafed::drivers::{HostCall, HostReply, Hypervisor};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_busy_guest_moves_whole_and_its_ticks_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    let (vm, spec) = (vm(1), spec(busy()));
    start(&a, vm, &spec).await;
    ticked(&a, vm, 30).await;
    judged(&a, vm, &spec, &dir.path().join("before")).await;

    let key = key(vm, 1);
    call(&b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
    call(&a, HostCall::Send { key, bytes_per_second_max: None }).await;
    let wire = connect(&a, &b, key).await;
    eventually("a round is over", async || progress(&a, key).await.rounds >= 2).await;
    call(&a, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
    eventually("everything arrived", async || progress(&a, key).await.drained).await;
    let sealed = seal(&b, key).await;
    assert_eq!(sealed.tick, get(&a, vm).await.unwrap().tick);
    assert_eq!(seal(&b, key).await, sealed);
    call(&a, HostCall::Hold { key }).await;
    call(&a, HostCall::Retire { key, fence: fence(2) }).await;
    call(&b, HostCall::Activate { key, fence: fence(2) }).await;
    wire.abort();

    let moved = progress(&b, key).await;
    let _ = moved;
    ticked(&b, vm, 30).await;
    judged(&b, vm, &spec, &dir.path().join("after")).await;
    let mut consoles = Consoles::default();
    for host in ["a", "b"] {
        consoles.add_directory(&dir.path().join(host).join("console")).unwrap();
    }
    let report = check(&consoles);
    assert_eq!(report.violations, []);
    assert_eq!(report.vms[&vm].moves.len(), 1);
    eprintln!("gap {} ms", report.vms[&vm].moves[0].gap_nanos / 1_000_000);
    assert_eq!(get(&a, vm).await.unwrap().power, GuestPower::Retired);
    call(&a, HostCall::Purge { vm, fence: fence(2) }).await;
    assert_eq!(get(&a, vm).await, None);
}
