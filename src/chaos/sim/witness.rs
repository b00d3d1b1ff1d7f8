//! The witness of who ran when. Owns: for each VM, where a guest of it runs at this moment, and what must follow.
//! Always: it is told by the machines, at the moment and in true (simulator's) time; nothing under test reads it. Each
//! thing that it is told is checked at once: one place at a time (I1), fences that only rise (I8), and a memory that
//! goes on where it stood, or begins anew where it was lost.
//! Not here: what a node believes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::trace::Trace;
use crate::chaos::invariants::{FENCE_RISES, Ledger, MEMORY_GOES_ON, ONE_PLACE};
use crate::drivers::embedded::console::Witness;
use crate::types::{Fence, HostName, Tick, VmId};

/// What is known of one VM.
#[derive(Default)]
struct Guest {
    /// Where it runs, since when and under which fence. More than one is a violation.
    runs: BTreeMap<HostName, (Tick, Fence)>,
    highest: Fence,
    tick: u64,
    /// Whole milliseconds for which some guest of it ran.
    ran_ms: u64,
}

struct Inner {
    guests: BTreeMap<VmId, Guest>,
    ledger: Ledger,
    first: Option<Violation>,
}

/// What was seen to be wrong first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant.
    pub name: &'static str,
    /// What was seen.
    pub what: String,
}

/// The witness of a run. A copy is the same one.
#[derive(Clone)]
pub struct RunWitness {
    trace: Trace,
    inner: Arc<Mutex<Inner>>,
}

impl RunWitness {
    /// Who has seen nothing yet.
    pub fn new(trace: Trace) -> RunWitness {
        let ledger = Ledger::expecting(&[ONE_PLACE, FENCE_RISES, MEMORY_GOES_ON]);
        RunWitness { trace, inner: Arc::new(Mutex::new(Inner { guests: BTreeMap::new(), ledger, first: None })) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was checked so far.
    pub fn ledger(&self) -> Ledger {
        self.lock().ledger.clone()
    }

    /// The first violation.
    pub fn first(&self) -> Option<Violation> {
        self.lock().first.clone()
    }

    /// Where a guest of the VM runs now.
    pub fn runs_on(&self, vm: VmId) -> Vec<HostName> {
        self.lock().guests.get(&vm).map(|guest| guest.runs.keys().cloned().collect()).unwrap_or_default()
    }

    /// For how long guests ran, all together, milliseconds.
    pub fn ran_ms(&self) -> u64 {
        self.lock().guests.values().map(|guest| guest.ran_ms).sum()
    }

    fn check(&self, inner: &mut Inner, name: &'static str, outcome: Result<(), String>) {
        if let Err(what) = &outcome {
            self.trace.note("witness", format_args!("VIOLATION {name}: {what}"));
            inner.first.get_or_insert_with(|| Violation { name, what: what.clone() });
        }
        inner.ledger.check(name, outcome);
    }

    fn began(&self, vm: VmId, host: &HostName, fence: Fence, goes_on_at: Option<u64>) {
        let now = self.trace.now();
        let mut inner = self.lock();
        let inner = &mut *inner;
        let guest = inner.guests.entry(vm).or_default();
        let elsewhere: Vec<String> = guest
            .runs
            .iter()
            .filter(|(other, _)| *other != host)
            .map(|(other, (since, fence))| format!("{other} since {} ms under fence {fence}", since.0))
            .collect();
        let one_place = match elsewhere.is_empty() {
            true => Ok(()),
            false => Err(format!("{vm} begins to run on {host} and runs on {}", elsewhere.join(" and "))),
        };
        let rises = if fence >= guest.highest {
            Ok(())
        } else {
            Err(format!("{vm} begins to run on {host} under fence {fence}, after it ran under {}", guest.highest))
        };
        let goes_on = match goes_on_at {
            Some(tick) if tick != guest.tick => {
                Err(format!("{vm} goes on at tick {tick} on {host}, and had done tick {}", guest.tick))
            }
            Some(_) | None => Ok(()),
        };
        guest.highest = guest.highest.max(fence);
        guest.runs.insert(host.clone(), (now, fence));
        self.check(inner, ONE_PLACE, one_place);
        self.check(inner, FENCE_RISES, rises);
        self.check(inner, MEMORY_GOES_ON, goes_on);
    }
}

impl Witness for RunWitness {
    fn boot(&self, vm: VmId, host: &HostName, boot: u64, tick: u64, fence: Fence) {
        self.trace.note(host, format_args!("{vm} boots ({boot}) at tick {tick}, fence {fence}"));
        self.lock().guests.entry(vm).or_default().tick = tick;
    }

    fn runs(&self, vm: VmId, host: &HostName, fence: Fence, tick: u64) {
        self.trace.note(host, format_args!("{vm} runs from tick {tick}, fence {fence}"));
        self.began(vm, host, fence, Some(tick));
    }

    fn refence(&self, vm: VmId, host: &HostName, fence: Fence, _: u64) {
        self.trace.note(host, format_args!("{vm} runs under fence {fence} now"));
        let runs = self.lock().guests.get(&vm).is_some_and(|guest| guest.runs.contains_key(host));
        if runs {
            self.began(vm, host, fence, None);
        }
    }

    fn tick(&self, vm: VmId, host: &HostName, tick: u64, fence: Fence) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let guest = inner.guests.entry(vm).or_default();
        let known = guest.runs.contains_key(host);
        let follows = tick == guest.tick + 1;
        let before = std::mem::replace(&mut guest.tick, tick);
        let place = if known { Ok(()) } else { Err(format!("{vm} ticks on {host}, where it does not run")) };
        let next = if follows { Ok(()) } else { Err(format!("{vm} did tick {tick} on {host} after tick {before}")) };
        let rises = if fence >= guest.highest {
            Ok(())
        } else {
            Err(format!("{vm} ticks on {host} under fence {fence}, after it ran under {}", guest.highest))
        };
        self.check(inner, ONE_PLACE, place);
        self.check(inner, MEMORY_GOES_ON, next);
        self.check(inner, FENCE_RISES, rises);
    }

    fn stands(&self, vm: VmId, host: &HostName, tick: u64) {
        self.trace.note(host, format_args!("{vm} stands at tick {tick}"));
        let now = self.trace.now();
        let mut inner = self.lock();
        let guest = inner.guests.entry(vm).or_default();
        if let Some((since, _)) = guest.runs.remove(host) {
            guest.ran_ms += now.since(since).0;
        }
    }
}
