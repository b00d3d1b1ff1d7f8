//! What the tests of simulated hosts share: a witness that notes everything with its virtual time, and what it knows.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use novafed::clock::Clock;
use novafed::drivers::embedded::console::Witness;
use novafed::drivers::embedded::local::LocalOptions;
use novafed::drivers::embedded::sim::SimHost;
use novafed::types::units::KIB;
use novafed::types::*;

use super::host_support::{capacity, incarnation};

/// What a witness was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Boot { boot: u64, fence: Fence },
    Tick { fence: Fence },
    Runs { fence: Fence },
    Stands,
    Refence { fence: Fence },
}

/// One thing that it was told: when, of which VM, on which host, at which tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: Tick,
    pub vm: VmId,
    pub host: String,
    pub tick: u64,
    pub what: What,
}

/// An interval in which a VM could tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub host: String,
    pub from: Tick,
    /// `None` if it still runs.
    pub until: Option<Tick>,
    pub from_tick: u64,
    pub to_tick: u64,
    pub ticks: u64,
}

struct Noted {
    clock: Clock,
    events: Mutex<Vec<Event>>,
}

/// A witness of all hosts of a test.
#[derive(Clone)]
pub struct Told(Arc<Noted>);

impl Told {
    pub fn new() -> Told {
        Told(Arc::new(Noted { clock: Clock::start(), events: Mutex::default() }))
    }

    fn note(&self, vm: VmId, host: &HostName, tick: u64, what: What) {
        let event = Event { at: self.0.clock.now(), vm, host: host.to_string(), tick, what };
        self.events().push(event);
    }

    /// The time by its clock.
    pub fn now(&self) -> Tick {
        self.0.clock.now()
    }

    pub fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.events.lock().unwrap()
    }

    /// A host that was started and tells this witness.
    pub async fn host(&self, name: &str, seed: u64) -> SimHost {
        let host = SimHost::new(name.parse().unwrap(), seed, Arc::new(self.clone()));
        host.set_latency(Millis(3), Millis(2));
        host.start().await.expect("an empty machine starts a host");
        host
    }

    /// The runs of `vm`, in order.
    pub fn runs(&self, vm: VmId) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for Event { at, host, tick, what, .. } in self.events().iter().filter(|e| e.vm == vm) {
            let open = runs.iter_mut().rev().find(|run| run.host == *host && run.until.is_none());
            match what {
                What::Runs { .. } => {
                    assert!(open.is_none(), "{vm} runs on {host} and is said to begin to");
                    let (from, from_tick, to_tick) = (*at, *tick, *tick);
                    runs.push(Run { host: host.clone(), from, until: None, from_tick, to_tick, ticks: 0 });
                }
                What::Stands => {
                    let run = open.unwrap_or_else(|| panic!("{vm} stands on {host} and did not run"));
                    (run.until, run.to_tick) = (Some(*at), *tick);
                }
                What::Tick { .. } => {
                    let run = open.unwrap_or_else(|| panic!("{vm} ticks on {host} and does not run"));
                    (run.to_tick, run.ticks) = (*tick, run.ticks + 1);
                }
                What::Boot { .. } | What::Refence { .. } => {}
            }
        }
        runs
    }

    /// No two runs of a VM overlap, not even in the order within one moment; ticks follow one another, a boot may skip
    /// ahead; fences never go back where it runs.
    pub fn holds_the_law(&self) {
        let events = self.events();
        let mut runs_at: BTreeMap<VmId, &str> = BTreeMap::new();
        let mut last: BTreeMap<VmId, (u64, Fence)> = BTreeMap::new();
        for event in events.iter() {
            let Event { vm, host, tick, what, .. } = event;
            let (before, fence) = last.get(vm).copied().unwrap_or((0, Fence::default()));
            let mut under = fence;
            match what {
                What::Runs { fence: now } => {
                    let other = runs_at.insert(*vm, host);
                    assert_eq!(other, None, "{event:?}: it runs already");
                    under = *now;
                }
                What::Stands => assert_eq!(runs_at.remove(vm), Some(host.as_str()), "{event:?}: it did not run here"),
                What::Tick { fence: now } => {
                    assert_eq!(runs_at.get(vm), Some(&host.as_str()), "{event:?}: it does not run here");
                    assert_eq!(*tick, before + 1, "{event:?}: the tick before was {before}");
                    under = *now;
                }
                What::Boot { fence: now, .. } => {
                    assert!(*tick >= before, "{event:?}: the tick before was {before}");
                    under = *now;
                }
                What::Refence { .. } => {}
            }
            assert!(under >= fence, "{event:?}: it ran under {fence} before");
            last.insert(*vm, (before.max(*tick), under));
        }
    }
}

impl Witness for Told {
    fn boot(&self, vm: VmId, host: &HostName, boot: u64, tick: u64, fence: Fence) {
        self.note(vm, host, tick, What::Boot { boot, fence });
    }
    fn tick(&self, vm: VmId, host: &HostName, tick: u64, fence: Fence) {
        self.note(vm, host, tick, What::Tick { fence });
    }
    fn runs(&self, vm: VmId, host: &HostName, fence: Fence, tick: u64) {
        self.note(vm, host, tick, What::Runs { fence });
    }
    fn stands(&self, vm: VmId, host: &HostName, tick: u64) {
        self.note(vm, host, tick, What::Stands);
    }
    fn refence(&self, vm: VmId, host: &HostName, fence: Fence, tick: u64) {
        self.note(vm, host, tick, What::Refence { fence });
    }
}

/// What the `life`-th life of region eu says of its cluster on host `name`.
pub fn options(name: &str, life: u64) -> LocalOptions {
    LocalOptions {
        region: "eu".parse().unwrap(),
        lineage: incarnation(life).into(),
        cluster: format!("{name}-cluster").parse().unwrap(),
        capacity: capacity(),
    }
}

/// A guest that costs little: it ticks each second.
pub fn small() -> GuestProgram {
    GuestProgram {
        seed: 7,
        tick_ms: 1_000,
        resident_bytes: 256 * KIB,
        working_set_bytes: 64 * KIB,
        dirty_bytes_per_second: 32 * KIB,
        pattern: DirtyPattern::Random,
        disk_resident_bytes: 128 * KIB,
        disk_bytes_per_second: 16 * KIB,
    }
}
