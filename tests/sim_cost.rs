//! What simulated hosts cost: virtual seconds for each second of a core, and CPU for each live move.
//! The figures count in a release build: `cargo test --release --test sim_cost -- --nocapture --test-threads 1`.

#![allow(clippy::print_stderr, reason = "figures that a person reads")]

mod host_support;
mod sim_support;

use std::sync::Arc;

use host_support::*;
use novafed::drivers::embedded::console::Nobody;
use novafed::drivers::embedded::local::LocalDriver;
use novafed::drivers::embedded::port::Port;
use novafed::drivers::embedded::sim::SimHost;
use novafed::drivers::{HostCall, Hypervisor, SwitchKey};
use novafed::types::units::KIB;
use novafed::types::*;
use sim_support::*;

async fn host(name: &str) -> (SimHost, LocalDriver) {
    let host = SimHost::new(name.parse().unwrap(), 1, Arc::new(Nobody));
    host.set_latency(Millis(3), Millis(2));
    host.start().await.unwrap();
    let driver = host.driver(options(name, 1), Port::default());
    (host, driver)
}

/// Nanoseconds that this thread has used of a core: others may need the machine meanwhile.
fn used() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts what a thread uses");
    text.split(' ').next().and_then(|used| used.parse().ok()).expect("its first field")
}

fn seconds_since(began: u64) -> f64 {
    (used() - began) as f64 / 1e9
}

#[tokio::test(start_paused = true)]
async fn ten_running_guests_cost_little_of_a_core() {
    let quiet = GuestProgram { dirty_bytes_per_second: 4 * KIB, disk_bytes_per_second: 0, ..small() };
    for (what, program) in [("32 KiB of memory and 16 KiB of disk", small()), ("4 KiB of memory", quiet)] {
        let (_host, driver) = host("a").await;
        for number in 1..=10 {
            start(&driver, vm(number), &spec(GuestProgram { seed: number, ..program })).await;
        }
        let (virtual_seconds, began) = (20_000, used());
        tokio::time::sleep(std::time::Duration::from_secs(virtual_seconds)).await;
        let took = seconds_since(began);
        let ticks = get(&driver, vm(1)).await.unwrap().sight.tick * 10;
        eprintln!(
            "10 guests that write {what} each second: {:.0} virtual seconds for one of a core, {:.1} us a tick",
            virtual_seconds as f64 / took,
            took * 1e6 / ticks as f64
        );
        assert!(took < 60.0, "{virtual_seconds} virtual seconds took {took} s");
    }
}

async fn moved(a: &dyn Hypervisor, b: &dyn Hypervisor, key: SwitchKey, now: Fence, next: Fence, spec: &VmSpec) {
    call(b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: next }).await;
    call(a, HostCall::Send { key, bytes_per_second_max: None }).await;
    let wire = connect(a, b, key).await;
    eventually("a round is over", async || progress(a, key).await.rounds >= 1).await;
    call(a, HostCall::PauseForSwitch { key, fence: now, deadline: Millis(60_000) }).await;
    eventually("everything arrived", async || progress(a, key).await.drained).await;
    seal(b, key).await;
    call(a, HostCall::Hold { key }).await;
    call(b, HostCall::Activate { key, fence: next }).await;
    call(a, HostCall::Retire { key, fence: next }).await;
    call(a, HostCall::Purge { vm: key.vm, fence: next }).await;
    wire.abort();
}

#[tokio::test(start_paused = true)]
async fn a_live_move_costs_little_of_a_core() {
    let ((a, from), (b, to)) = (host("a").await, host("b").await);
    let (vm, spec, moves) = (vm(1), spec(small()), 200);
    start(&from, vm, &spec).await;
    let began = used();
    for epoch in 1..=moves {
        let (from, to) = if epoch % 2 == 1 { (&from, &to) } else { (&to, &from) };
        let attempt = u32::try_from(epoch).unwrap();
        moved(from, to, key(vm, attempt), fence(epoch), fence(epoch + 1), &spec).await;
    }
    let took = seconds_since(began);
    eprintln!(
        "a live move: {:.2} ms; a start after a crash: {:.2} ms",
        took * 1e3 / moves as f64,
        starts(&a, &b).await
    );
    assert!(took < 60.0, "{moves} moves took {took} s");
}

/// Milliseconds that it takes to kill a host and start it again.
async fn starts(a: &SimHost, b: &SimHost) -> f64 {
    let (began, times) = (used(), 50);
    for _ in 0..times {
        a.restart().await.unwrap();
        b.restart().await.unwrap();
    }
    seconds_since(began) * 1e3 / f64::from(2 * times)
}
