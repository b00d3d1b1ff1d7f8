//! VMs as registers: what clients wrote into them and read. Owns: a history with two registers for each VM, its power as
//! its tenant ordered it and its place, which a move changes by compare-and-set; judging them.
//! Always: a call is recorded before it is sent; a read counts only if the VM's owner answered it; a register that is
//! near its limit is not read any more, and orders and moves are recorded to the end, because one that was left out
//! would make what is read after it impossible. Not here: the checkers (`chaos/history/`).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::chaos::history::{
    Answer, Budget, Call, Checker, Judgement, OPS_PER_KEY_MAX, OpId, Process, Recorder, judge,
};
use crate::chaos::summary::JudgeCount;
use crate::clock::Clock;
use crate::types::{DesiredPower, VmId};

/// Reads that are recorded, and a few orders, of one VM; its tenant deletes it then, and what is under way has room.
const CALLS_MAX: usize = OPS_PER_KEY_MAX - 100;

/// The registers of all VMs.
pub struct Registers {
    recorder: Recorder,
    clock: Clock,
    used: Mutex<BTreeMap<VmId, usize>>,
}

/// One client's side of them: a process for each kind of call, because a move is open while its client goes on.
pub struct Asked {
    orders: Process,
    moves: Process,
    reads: (Process, Process),
}

/// A call that waits for its answer; none if it is about a place that nobody knows.
#[must_use = "its answer is to be recorded"]
pub struct Open(Option<(OpId, Whose)>);

enum Whose {
    Orders,
    Moves,
}

/// Two reads that one request answers.
#[must_use = "their answers are to be recorded"]
pub struct Reads(Option<(OpId, OpId)>);

fn power(vm: VmId) -> String {
    format!("power/{vm}")
}

fn place_of(vm: VmId) -> String {
    format!("place/{vm}")
}

impl Registers {
    /// No VM yet.
    pub fn new(clock: Clock) -> Registers {
        Registers { recorder: Recorder::new(), clock, used: Mutex::default() }
    }

    /// A new client.
    pub fn client(&self) -> Asked {
        let process = || self.recorder.process();
        Asked { orders: process(), moves: process(), reads: (process(), process()) }
    }

    /// Whether no more is recorded of this VM.
    pub fn is_full(&self, vm: VmId) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(&vm).is_some_and(|count| *count >= CALLS_MAX)
    }

    /// Counts one more call of a VM.
    fn count(&self, vm: VmId) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used.entry(vm).or_default() += 1;
    }

    fn invoke(&self, process: Process, key: &str, call: Call) -> OpId {
        self.recorder.invoke(process, key, call, self.clock.now().0)
    }

    fn done(&self, op: OpId, answer: Answer) {
        self.recorder.done(op, answer, self.clock.now().0);
    }

    /// What all checkers say of all registers.
    pub fn judge(&self) -> (Judgement, BTreeMap<String, JudgeCount>) {
        let judgement = judge(&self.recorder.history(), &Budget::default());
        let counts = Checker::ALL.into_iter().map(|checker| {
            let counts = judgement.counts(checker);
            let count = JudgeCount {
                checked: counts.checked as u64,
                violated: counts.violated as u64,
                not_checked: counts.not_checked as u64,
            };
            (checker.to_string(), count)
        });
        let counts = counts.collect();
        (judgement, counts)
    }
}

impl Asked {
    /// A VM was created at the n-th place, to run; nobody knows it yet.
    pub fn begins(&self, of: &Registers, vm: VmId, place: Option<usize>) {
        of.count(vm);
        let op = of.invoke(self.orders, &power(vm), Call::Write(1));
        of.done(op, Answer::Done);
        if let Some(place) = place {
            let op = of.invoke(self.orders, &place_of(vm), Call::Write(place as u64));
            of.done(op, Answer::Done);
        }
    }

    /// Orders a VM to run, or to stop.
    pub fn orders(&self, of: &Registers, vm: VmId, run: bool) -> Open {
        of.count(vm);
        Open(Some((of.invoke(self.orders, &power(vm), Call::Write(u64::from(run))), Whose::Orders)))
    }

    /// Moves a VM from a place to another.
    pub fn moves(&self, of: &Registers, vm: VmId, from: Option<usize>, to: Option<usize>) -> Open {
        let (Some(from), Some(to)) = (from, to) else { return Open(None) };
        let call = Call::Cas { from: from as u64, to: to as u64 };
        of.count(vm);
        Open(Some((of.invoke(self.moves, &place_of(vm), call), Whose::Moves)))
    }

    /// What came of it.
    pub fn done(&mut self, of: &Registers, open: Open, answer: Answer) {
        let Some((op, whose)) = open.0 else { return };
        of.done(op, answer);
        if answer == Answer::Unknown {
            // It may be under way yet, beside what this client does next.
            match whose {
                Whose::Orders => self.orders = of.recorder.process(),
                Whose::Moves => self.moves = of.recorder.process(),
            }
        }
    }

    /// Reads a VM.
    pub fn reads(&self, of: &Registers, vm: VmId) -> Reads {
        let both = || {
            let (first, second) = self.reads;
            (of.invoke(first, &power(vm), Call::Read), of.invoke(second, &place_of(vm), Call::Read))
        };
        if of.is_full(vm) {
            return Reads(None);
        }
        of.count(vm);
        Reads(Some(both()))
    }

    /// What was shown by its owner, if it was.
    pub fn have_read(&self, of: &Registers, reads: Reads, desired: Option<DesiredPower>, place: Option<usize>) {
        let Some((first, second)) = reads.0 else { return };
        let word = |value: Option<u64>| value.map_or(Answer::Failed, |value| Answer::Value(Some(value)));
        of.done(first, word(desired.map(|desired| u64::from(desired == DesiredPower::Running))));
        of.done(second, word(place.map(|place| place as u64)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RegionNumber;

    const VM: VmId = VmId { region: RegionNumber(1), incarnation: 1, number: 1 };

    fn judged(what: impl FnOnce(&Registers, &mut Asked)) -> BTreeMap<String, JudgeCount> {
        let registers = Registers::new(Clock::start());
        let mut client = registers.client();
        client.begins(&registers, VM, Some(0));
        what(&registers, &mut client);
        registers.judge().1
    }

    #[tokio::test]
    async fn a_read_of_what_was_acknowledged_passes_and_one_of_what_was_before_does_not() {
        for (seen, violated) in [(Some(1), 0), (Some(0), 1)] {
            let counts = judged(|registers, client| {
                let moves = client.moves(registers, VM, Some(0), Some(1));
                client.done(registers, moves, Answer::Done);
                let reads = client.reads(registers, VM);
                client.have_read(registers, reads, Some(DesiredPower::Running), seen);
            });
            for (checker, count) in counts {
                assert_eq!((count.checked, count.violated, count.not_checked), (2, violated, 0), "{checker}");
            }
        }
    }

    #[tokio::test]
    async fn an_unanswered_order_may_have_been_done_or_not() {
        let counts = judged(|registers, client| {
            let stops = client.orders(registers, VM, false);
            client.done(registers, stops, Answer::Unknown);
            for desired in [DesiredPower::Running, DesiredPower::Stopped] {
                let reads = client.reads(registers, VM);
                client.have_read(registers, reads, Some(desired), Some(0));
            }
        });
        assert!(counts.values().all(|count| count.violated == 0), "{counts:?}");
    }
}
