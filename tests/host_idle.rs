//! What idle guests cost a host.

#![allow(clippy::print_stderr, reason = "figures that a person reads")]

mod host_support;

use host_support::*;
use novafed::types::units::{GIB, KIB};
use novafed::types::*;

const GUESTS: u64 = 400;

/// User and system time of this process, in clock ticks of 10 ms, and its resident memory in pages.
fn used() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let number = |at: usize| fields[at].parse::<u64>().unwrap();
    (number(11) + number(12), number(21))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_guest_costs_a_line_a_second_and_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let a = std::sync::Arc::new(local(dir.path(), "a").await);
    let spec = VmSpec { memory_bytes: GIB / 32, disk_bytes: GIB / 32, ..spec(GuestProgram::default()) };
    let clock = novafed::clock::Clock::start();
    let (_, before) = used();
    let mut all = tokio::task::JoinSet::new();
    for n in 1..=GUESTS {
        let (a, spec) = (a.clone(), spec.clone());
        all.spawn(async move { start(&*a, vm(n), &spec).await });
    }
    while let Some(started) = all.join_next().await {
        started.unwrap();
    }
    let started_ms = clock.now().0;
    let (cpu, after) = used();
    let from = clock.now().0;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let (cpu_then, _) = used();
    let seconds = (clock.now().0 - from) as f64 / 1_000.0;
    let memory = (after - before) * 4 * KIB / GUESTS;
    let micros = (cpu_then - cpu) as f64 * 10_000.0 / seconds / GUESTS as f64;
    eprintln!("{GUESTS} guests started in {started_ms} ms; each {memory} bytes and {micros:.0} µs of CPU a second");
    assert!(memory < 256 * KIB, "{memory} bytes per idle guest");
    assert!(micros < 2_000.0, "{micros} µs of CPU a second per idle guest");
    for n in 1..=GUESTS {
        assert!(get(&*a, vm(n)).await.unwrap().sight.tick >= 2);
    }
}
