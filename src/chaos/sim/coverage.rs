//! Which faults met which steps. Owns: the counts behind the report's picture. Always: counted while the fault is at
//! work, at each point that a job passes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::faults::{Fault, Kind};
use crate::decision::migration::steps::{KillPoint, Step};

/// Counts by fault and step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Met {
    /// How often jobs passed a step while a fault was at work.
    pub pairs: BTreeMap<(Kind, Step), u64>,
    /// How often a node died at a point.
    pub killed_at: BTreeMap<KillPoint, u64>,
    /// How often each kind of fault was injected.
    pub faults: BTreeMap<Kind, u64>,
}

impl Met {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Met) {
        for (pair, count) in &other.pairs {
            *self.pairs.entry(*pair).or_default() += count;
        }
        for (point, count) in &other.killed_at {
            *self.killed_at.entry(*point).or_default() += count;
        }
        for (kind, count) in &other.faults {
            *self.faults.entry(*kind).or_default() += count;
        }
    }
}

#[derive(Default)]
struct Inner {
    at_work: BTreeMap<usize, Fault>,
    met: Met,
}

/// What is at work now, and what it met.
#[derive(Default)]
pub struct Coverage(Mutex<Inner>);

impl Coverage {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// The n-th fault of the plan begins to work. Returns all that work now.
    pub fn begins(&self, n: usize, fault: &Fault) -> BTreeMap<usize, Fault> {
        self.with(|inner| {
            inner.at_work.insert(n, fault.clone());
            *inner.met.faults.entry(fault.kind()).or_default() += 1;
            inner.at_work.clone()
        })
    }
    /// It goes on as `fault`. Returns all that work now.
    pub fn changes(&self, n: usize, fault: Fault) -> BTreeMap<usize, Fault> {
        self.with(|inner| {
            inner.at_work.insert(n, fault);
            inner.at_work.clone()
        })
    }
    /// It ends. Returns all that work now.
    pub fn ends(&self, n: usize) -> BTreeMap<usize, Fault> {
        self.with(|inner| {
            inner.at_work.remove(&n);
            inner.at_work.clone()
        })
    }
    /// Whether any is at work.
    pub fn any(&self) -> bool {
        self.with(|inner| !inner.at_work.is_empty())
    }
    /// A job passed a point.
    pub fn passed(&self, point: KillPoint) {
        self.with(|inner| {
            for fault in inner.at_work.values() {
                *inner.met.pairs.entry((fault.kind(), point.step)).or_default() += 1;
            }
        });
    }
    /// A node died at a point.
    pub fn killed_at(&self, point: KillPoint) {
        self.with(|inner| *inner.met.killed_at.entry(point).or_default() += 1);
    }
    /// What was met so far.
    pub fn met(&self) -> Met {
        self.with(|inner| inner.met.clone())
    }
}
