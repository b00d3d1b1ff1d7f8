//! Room of one cluster. Owns: who uses what, and what is promised to VMs on their way.
//! Always: free + reserved + used = capacity; where a host has more than fits (adopted, never granted) the excess is shown
//! as `over` and free is zero. A repeat of any call changes nothing more than the first.
//! A promise lives as long as its job at the target, whose patience ends both.
//! Not here: durability (each change is written with what caused it), who may ask.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::planted::{self, Bug};
use crate::types::{JobId, Resources, VmId};

/// Room promised to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The VM that it is for.
    pub vm: VmId,
    /// How much.
    pub resources: Resources,
}

/// What a VM uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Usage {
    resources: Resources,
    /// The job that brought it, so that a late repeat of its `reserve` is known.
    by: Option<JobId>,
}

/// The balance of a cluster: `free + reserved + used = capacity + over`, and `free` or `over` is zero in each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Balance {
    /// What there is.
    pub capacity: Resources,
    /// What VMs use.
    pub used: Resources,
    /// What is promised.
    pub reserved: Resources,
    /// What is left.
    pub free: Resources,
    /// What is used or promised beyond capacity.
    pub over: Resources,
}

/// What became of a request for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Promised now, or before to the same job.
    Granted,
    /// The VM of this job is here already.
    Arrived,
    /// The same job asked for another amount or another VM before.
    Clash(Reservation),
    /// It does not fit: what is missing in each resource.
    NoRoom {
        /// Missing.
        short_by: Resources,
    },
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// The promise is used up, the VM uses the room.
    Done,
    /// It was done before.
    Again,
    /// There is no such promise: it was given back. If the VM is here all the same, `adopt` it.
    Unknown,
}

/// The ledger of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ledger {
    capacity: Resources,
    used: BTreeMap<VmId, Usage>,
    reserved: BTreeMap<JobId, Reservation>,
}

impl Ledger {
    /// An empty one.
    pub fn new(capacity: Resources) -> Ledger {
        Ledger { capacity, used: BTreeMap::new(), reserved: BTreeMap::new() }
    }

    /// How it stands.
    pub fn balance(&self) -> Balance {
        let used = sum(self.used.values().map(|u| u.resources));
        let reserved = sum(self.reserved.values().map(|r| r.resources));
        let taken = used.plus(reserved);
        Balance {
            capacity: self.capacity,
            used,
            reserved,
            free: self.capacity.minus(taken),
            over: taken.minus(self.capacity),
        }
    }

    /// How many VMs use room.
    pub fn vms(&self) -> usize {
        self.used.len()
    }

    /// Promises `resources` for `vm` to `job`. A repeat counts once.
    pub fn reserve(&mut self, job: JobId, vm: VmId, resources: Resources) -> Reserve {
        if self.used.get(&vm).is_some_and(|u| u.by == Some(job)) {
            return Reserve::Arrived;
        }
        if let Some(held) = self.reserved.get(&job) {
            if held.resources != resources || held.vm != vm {
                return Reserve::Clash(*held);
            }
            return Reserve::Granted;
        }
        let free = self.balance().free;
        if !free.holds(resources) {
            return Reserve::NoRoom { short_by: resources.minus(free) };
        }
        self.reserved.insert(job, Reservation { vm, resources });
        Reserve::Granted
    }

    /// Takes over a promise that was made in an earlier life, whether or not it still fits.
    pub fn restore(&mut self, job: JobId, reservation: Reservation) {
        if self.used.get(&reservation.vm).is_none_or(|u| u.by != Some(job)) {
            self.reserved.insert(job, reservation);
        }
    }

    /// The VM of `job` arrived: the promise turns into use.
    pub fn commit(&mut self, job: JobId) -> Commit {
        if let Some(held) = self.reserved.remove(&job) {
            self.used.insert(held.vm, Usage { resources: held.resources, by: Some(job) });
            if planted::is(Bug::ReservationCountedTwice) {
                self.reserved.insert(job, held);
            }
            return Commit::Done;
        }
        if self.used.values().any(|u| u.by == Some(job)) { Commit::Again } else { Commit::Unknown }
    }

    /// Gives the promise to `job` back; whether there was one.
    pub fn release(&mut self, job: JobId) -> bool {
        self.reserved.remove(&job).is_some()
    }

    /// A new VM takes room at once, or learns what is missing. A repeat for the same VM counts once.
    ///
    /// # Errors
    /// What is missing in each resource.
    pub fn occupy(&mut self, vm: VmId, resources: Resources) -> Result<(), Resources> {
        if self.used.get(&vm).is_some_and(|u| u.resources == resources) {
            return Ok(());
        }
        let own = self.used.get(&vm).map(|u| u.resources).unwrap_or_default();
        let taken = sum(self.used.values().map(|u| u.resources)).minus(own).plus(self.balance().reserved);
        let free = self.capacity.minus(taken);
        if !free.holds(resources) {
            return Err(resources.minus(free));
        }
        self.adopt(vm, resources);
        Ok(())
    }

    /// The host has this VM: it counts whether or not it fits.
    pub fn adopt(&mut self, vm: VmId, resources: Resources) {
        let by = self.used.get(&vm).and_then(|u| u.by);
        self.used.insert(vm, Usage { resources, by });
    }

    /// The VM is gone from here; whether it was here.
    pub fn vacate(&mut self, vm: VmId) -> bool {
        self.used.remove(&vm).is_some()
    }
}

fn sum(parts: impl Iterator<Item = Resources>) -> Resources {
    parts.fold(Resources::default(), Resources::plus)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::RegionNumber;

    fn job(number: u64) -> JobId {
        JobId { region: RegionNumber(1), incarnation: 1, number }
    }

    fn vm(number: u64) -> VmId {
        VmId { region: RegionNumber(1), incarnation: 1, number }
    }

    fn room(n: u64) -> Resources {
        Resources { cpu: n, memory_bytes: n * 10, disk_bytes: n * 100 }
    }

    #[test]
    fn a_promise_is_counted_once_and_given_back_once() {
        let mut ledger = Ledger::new(room(10));
        assert_eq!(ledger.reserve(job(1), vm(1), room(6)), Reserve::Granted);
        assert_eq!(ledger.reserve(job(1), vm(1), room(6)), Reserve::Granted);
        assert_eq!(ledger.balance().reserved, room(6));
        assert_eq!(ledger.reserve(job(2), vm(2), room(5)), Reserve::NoRoom { short_by: room(1) });
        assert!(matches!(ledger.reserve(job(1), vm(1), room(5)), Reserve::Clash(_)));
        assert!(ledger.release(job(1)));
        assert!(!ledger.release(job(1)));
        assert_eq!(ledger.balance().free, room(10));
    }

    #[test]
    fn a_late_repeat_of_a_request_whose_vm_arrived_promises_nothing() {
        let mut ledger = Ledger::new(room(10));
        ledger.reserve(job(1), vm(1), room(6));
        assert_eq!(ledger.commit(job(1)), Commit::Done);
        assert_eq!(ledger.commit(job(1)), Commit::Again);
        assert_eq!(ledger.reserve(job(1), vm(1), room(6)), Reserve::Arrived);
        ledger.restore(job(1), Reservation { vm: vm(1), resources: room(6) });
        let balance = ledger.balance();
        assert_eq!((balance.used, balance.reserved, balance.free), (room(6), room(0), room(4)));
        assert!(ledger.vacate(vm(1)));
        assert_eq!(ledger.commit(job(1)), Commit::Unknown);
    }

    #[test]
    fn what_a_host_has_beyond_its_capacity_is_shown_and_nothing_is_promised_on_top() {
        let mut ledger = Ledger::new(room(4));
        ledger.adopt(vm(1), room(3));
        ledger.adopt(vm(2), room(3));
        let balance = ledger.balance();
        assert_eq!((balance.free, balance.over), (room(0), room(2)));
        assert_eq!(ledger.reserve(job(1), vm(3), room(1)), Reserve::NoRoom { short_by: room(1) });
        assert_eq!(ledger.occupy(vm(3), room(1)), Err(room(1)));
        assert_eq!(ledger.occupy(vm(1), room(3)), Ok(()), "a repeat of what is there");
    }

    #[derive(Debug, Clone)]
    enum Op {
        Reserve(u64, u64),
        Commit(u64),
        Release(u64),
        Occupy(u64, u64),
        Adopt(u64, u64),
        Vacate(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let id = 1..6_u64;
        prop_oneof![
            (id.clone(), 0..6_u64).prop_map(|(j, n)| Op::Reserve(j, n)),
            id.clone().prop_map(Op::Commit),
            id.clone().prop_map(Op::Release),
            (id.clone(), 0..6_u64).prop_map(|(v, n)| Op::Occupy(v, n)),
            (id.clone(), 0..6_u64).prop_map(|(v, n)| Op::Adopt(v, n)),
            id.prop_map(Op::Vacate),
        ]
    }

    fn apply(ledger: &mut Ledger, op: &Op) {
        match *op {
            Op::Reserve(j, n) => {
                let before = ledger.balance();
                if ledger.reserve(job(j), vm(j), room(n)) == Reserve::Granted && before.over == room(0) {
                    assert_eq!(ledger.balance().over, room(0), "a grant never exceeds capacity");
                }
            }
            Op::Commit(j) => {
                ledger.commit(job(j));
            }
            Op::Release(j) => {
                ledger.release(job(j));
            }
            Op::Occupy(v, n) => {
                let before = ledger.balance();
                if ledger.occupy(vm(v), room(n)).is_ok() && before.over == room(0) {
                    assert_eq!(ledger.balance().over, room(0), "a grant never exceeds capacity");
                }
            }
            Op::Adopt(v, n) => ledger.adopt(vm(v), room(n)),
            Op::Vacate(v) => {
                ledger.vacate(vm(v));
            }
        }
    }

    proptest! {
        #[test]
        fn free_and_reserved_and_used_are_the_capacity(ops in prop::collection::vec(op(), 0..60)) {
            let mut ledger = Ledger::new(room(10));
            let mut replay = Ledger::new(room(10));
            for op in &ops {
                apply(&mut ledger, op);
                let b = ledger.balance();
                prop_assert_eq!(b.free.plus(b.reserved).plus(b.used), b.capacity.plus(b.over));
                for (free, over) in [
                    (b.free.cpu, b.over.cpu),
                    (b.free.memory_bytes, b.over.memory_bytes),
                    (b.free.disk_bytes, b.over.disk_bytes),
                ] {
                    prop_assert!(free == 0 || over == 0);
                }
            }
            for op in &ops {
                apply(&mut replay, op);
            }
            prop_assert_eq!(replay, ledger, "replay gives the same balance");
        }

        #[test]
        fn a_repeat_of_each_call_changes_nothing(ops in prop::collection::vec(op(), 0..60)) {
            let mut once = Ledger::new(room(10));
            let mut twice = Ledger::new(room(10));
            for op in &ops {
                apply(&mut once, op);
                apply(&mut twice, op);
                apply(&mut twice, op);
                prop_assert_eq!(&once, &twice);
            }
        }
    }
}
