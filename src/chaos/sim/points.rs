//! What happens at the points that jobs pass. Owns: which of them a node dies or an actor panics at.
//! Always: a point is told before the node goes on; a node that dies there goes on without any effect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faults::Fault;
use super::region::Death;
use super::world::World;
use crate::actors::kill::Watcher;
use crate::actors::tables;
use crate::decision::migration::steps::KillPoint;
use crate::types::RegionName;

/// The panic of an actor that a fault makes; not printed.
pub struct Planned;

/// Faults that wait for a point, by their place in the plan.
#[derive(Default)]
pub struct Points(Mutex<BTreeMap<usize, Fault>>);

impl Points {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The n-th fault waits from now on.
    pub fn arm(&self, n: usize, fault: Fault) {
        self.lock().insert(n, fault);
    }
    /// It does not wait any more.
    pub fn disarm(&self, n: usize) {
        self.lock().remove(&n);
    }
}

impl World {
    /// What the n-th region tells of the points that it passes.
    pub fn watcher(self: &Arc<World>, n: usize) -> Watcher {
        let world = Arc::downgrade(self);
        Arc::new(move |point| {
            if let Some(world) = world.upgrade() {
                world.passed(n, point);
            }
        })
    }

    fn passed(&self, n: usize, point: KillPoint) {
        self.coverage.passed(point);
        let waiting: Vec<(usize, Fault)> = self.points.lock().iter().map(|(at, fault)| (*at, fault.clone())).collect();
        for (at, fault) in waiting {
            match fault {
                Fault::KillAtStep(region, of) if region == n && of == point => {
                    self.points.disarm(at);
                    self.dies_at(n, point);
                }
                Fault::KillBoth(of) if of == point => {
                    self.points.disarm(at);
                    for partner in self.partners(n) {
                        self.dies_at(partner, point);
                    }
                    self.dies_at(n, point);
                }
                Fault::PanicStorm(permille) if self.chance(permille) => {
                    self.trace.note(&self.region(n).plan.name, format_args!("actor panics at {point}"));
                    std::panic::resume_unwind(Box::new(Planned));
                }
                Fault::Poison(of) if of == point => std::panic::resume_unwind(Box::new(Planned)),
                _ => {}
            }
        }
    }

    fn dies_at(&self, n: usize, point: KillPoint) {
        if self.region(n).die(self, Death::Process) {
            self.trace.note(&self.region(n).plan.name, format_args!("node dies at {point}"));
            self.coverage.killed_at(point);
        }
    }

    /// The regions that the n-th has open jobs with.
    fn partners(&self, n: usize) -> Vec<usize> {
        let Some(life) = self.region(n).life() else { return Vec::new() };
        let Ok((sources, targets)) = tables::open_jobs(&life.ctx.store) else { return Vec::new() };
        let there = sources.into_iter().map(|job| job.first.to.region);
        let back = targets.into_iter().map(|job| job.first.from.region);
        let names: std::collections::BTreeSet<RegionName> = there.chain(back).collect();
        names.iter().filter_map(|name| self.number_of(name)).filter(|other| *other != n).collect()
    }
}
