//! Convergence of one VM with its host. Owns: what a region does about a guest that is not as it should be, and what it
//! leaves alone. Always: law 6.2 (only what this region owns may run) and law 7.3 (nothing is deleted by inference).
//! Not here: moving (`migration/`), performing (`actors/cluster.rs`).

use crate::decision::ownership::{Decision, DecisionAnswer, VmDecisions};
use crate::types::{DesiredPower, Fence, GuestPower, Millis, Place, Sight, SwitchKey, VmRecord};

/// What to do next about it. One thing at a time: the host is looked at again afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Repair {
    /// It is as it should be, or somebody else's business.
    Nothing,
    /// Define it.
    Create,
    /// Run it.
    Start,
    /// Stop it.
    Stop,
    /// It belongs elsewhere: destroy this copy, keep its disk as retired.
    Retire {
        /// The fence under which it runs elsewhere.
        fence: Fence,
    },
    /// No job is on it: record that attempt as aborted, then resume it.
    AbortAndResume(SwitchKey),
    /// It is held by an attempt whose abort is recorded: release it.
    ReleaseHold(SwitchKey),
    /// Shown to a person, never touched, and why.
    Report(&'static str),
}

/// Decides what to do about a VM. `record` is this region's record if it owns it; `owed` the fences, lowest first, with
/// which recorded transfers retire copies here; `job` says that a live job moves it from or to this cluster;
/// `lost_may_start` that a person asked for a start from disk after its memory was lost.
pub fn converge(
    here: &Place,
    record: Option<&VmRecord>,
    decisions: &VmDecisions,
    owed: &[Fence],
    job: bool,
    seen: Option<&Sight>,
    lost_may_start: bool,
) -> Repair {
    // Also once the VM came back to another cluster of this region, or went on from where it moved to: what is owed names
    // the copy, by the fence that it was retired with, and no later one.
    if let Some(seen) = seen
        && !matches!(seen.power, GuestPower::Retired | GuestPower::Receiving)
        && let Some(fence) = owed.iter().copied().find(|fence| seen.fence < *fence)
    {
        return Repair::Retire { fence };
    }
    if let Some(moved) = decisions.moved.as_ref().filter(|m| m.to != *here) {
        return match seen {
            // Stopping a copy that another place owns comes before anything else, a job included.
            Some(s) if !matches!(s.power, GuestPower::Retired | GuestPower::Receiving) => {
                Repair::Retire { fence: moved.fence }
            }
            Some(_) | None => Repair::Nothing,
        };
    }
    if job {
        return Repair::Nothing;
    }
    let Some(record) = record else {
        return match seen.map(|s| s.power) {
            None | Some(GuestPower::Retired | GuestPower::Receiving) => Repair::Nothing,
            Some(_) => Repair::Report("the host has a VM that this region has no record of"),
        };
    };
    let Some(seen) = seen else {
        return Repair::Create;
    };
    if let Some(hold) = seen.hold {
        return match decisions.answer(hold.attempt) {
            DecisionAnswer::Decided(Decision::Abort) | DecisionAnswer::Superseded => Repair::ReleaseHold(hold),
            DecisionAnswer::Decided(Decision::Transfer) => {
                Repair::Report("it is held for a transfer inside this region that no job finishes")
            }
            DecisionAnswer::Undecided => Repair::Report("it is held, and its attempt is not decided"),
        };
    }
    if let Some(paused) = seen.paused_for {
        return Repair::AbortAndResume(paused);
    }
    match (seen.power, record.desired) {
        (_, DesiredPower::Running) if lost_may_start && seen.memory_lost() => Repair::Start,
        (GuestPower::Running, DesiredPower::Running) => Repair::Nothing,
        (GuestPower::Running | GuestPower::Paused, DesiredPower::Stopped) => Repair::Stop,
        (GuestPower::Paused, DesiredPower::Running) => Repair::Report("it is paused and nobody says for what"),
        (GuestPower::Stopped, DesiredPower::Running) => Repair::Start,
        (GuestPower::Stopped, DesiredPower::Stopped) => Repair::Nothing,
        // There is nothing to stop but the word that its memory is lost, which nobody waits for any more.
        (GuestPower::Lost, DesiredPower::Stopped) => Repair::Stop,
        (GuestPower::Lost, DesiredPower::Running) => {
            Repair::Report("its host died and its memory is lost; start it again from its disk")
        }
        (GuestPower::Receiving, DesiredPower::Running) if seen.memory_lost() => {
            Repair::Report("its host died before it could start it here; start it again from its disk")
        }
        (GuestPower::Receiving, DesiredPower::Running) => Repair::Report("it was received here and does not run yet"),
        (GuestPower::Receiving, DesiredPower::Stopped) if seen.memory_lost() => Repair::Stop,
        (GuestPower::Receiving, DesiredPower::Stopped) => Repair::Nothing,
        (GuestPower::Retired, _) => Repair::Report("its host says that it was retired, and this region owns it"),
    }
}

/// Whether a clean-up that has been owed for `waited` may be done: not before its `window`, and one of a copy that a
/// transfer retired (with `fence`) not before that copy was destroyed, which [`converge`] does first. A host that does
/// not show the copy may be asked: it refuses if it has it still. Both are of the node's own monotonic clock: a wall
/// clock that is set would delete too early, or keep for years.
pub fn may_clean_up(of_transfer: bool, fence: Fence, waited: Millis, window: Millis, seen: Option<&Sight>) -> bool {
    waited >= window && (!of_transfer || seen.is_none_or(|seen| seen.fence >= fence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::ownership::Moved;
    use crate::types::{Attempt, JobId, RegionNumber, VmId, WallMillis};

    fn record(desired: DesiredPower) -> VmRecord {
        VmRecord {
            id: VmId { region: RegionNumber(1), incarnation: 1, number: 1 },
            spec: serde_json::from_str(r#"{"name":"a","cpu":1,"memoryBytes":1,"diskBytes":1}"#).unwrap(),
            cluster: "eu-a".parse().unwrap(),
            desired,
            fence: Fence::FIRST,
            attempt: Attempt(0),
            job: None,
            reasoning: String::new(),
            resource_version: 1,
            created_at: WallMillis(0),
        }
    }

    fn seen(power: GuestPower) -> Sight {
        Sight {
            power,
            fence: Fence::FIRST,
            attempt: Attempt(0),
            hold: None,
            paused_for: None,
            spent: None,
            receiving: None,
            tick: 0,
        }
    }

    const POWERS: [GuestPower; 6] = [
        GuestPower::Running,
        GuestPower::Paused,
        GuestPower::Stopped,
        GuestPower::Lost,
        GuestPower::Receiving,
        GuestPower::Retired,
    ];

    #[test]
    fn what_belongs_to_another_region_is_never_started_here() {
        let eu: Place = "eu/eu-a".parse().unwrap();
        let moved =
            Moved { to: "us/us-a".parse().unwrap(), fence: Fence { epoch: 2, generation: 1 }, attempt: Attempt(1) };
        let gone = VmDecisions { decided: Some((Attempt(1), Decision::Transfer)), moved: Some(moved) };
        for power in POWERS {
            for job in [false, true] {
                let repair =
                    converge(&eu, Some(&record(DesiredPower::Running)), &gone, &[], job, Some(&seen(power)), true);
                assert!(matches!(repair, Repair::Retire { .. } | Repair::Nothing), "{power:?} {repair:?}");
            }
        }
    }

    #[test]
    fn an_open_offer_is_never_resumed_and_a_live_job_is_left_alone() {
        let eu: Place = "eu/eu-a".parse().unwrap();
        let vm = VmId { region: RegionNumber(1), incarnation: 1, number: 1 };
        let job = JobId { region: RegionNumber(1), incarnation: 1, number: 1 };
        let job = SwitchKey { vm, job, attempt: Attempt(1) };
        let held = Sight { hold: Some(job), ..seen(GuestPower::Paused) };
        let none = VmDecisions::default();
        let r = record(DesiredPower::Running);
        assert!(matches!(converge(&eu, Some(&r), &none, &[], false, Some(&held), true), Repair::Report(_)));
        let aborted = VmDecisions { decided: Some((Attempt(1), Decision::Abort)), moved: None };
        assert_eq!(converge(&eu, Some(&r), &aborted, &[], false, Some(&held), false), Repair::ReleaseHold(job));
        for power in POWERS {
            assert_eq!(converge(&eu, Some(&r), &none, &[], true, Some(&seen(power)), true), Repair::Nothing);
        }
    }

    #[test]
    fn lost_memory_waits_for_a_person_and_strangers_are_reported() {
        let eu: Place = "eu/eu-a".parse().unwrap();
        let none = VmDecisions::default();
        let r = record(DesiredPower::Running);
        let lost = seen(GuestPower::Lost);
        assert!(matches!(converge(&eu, Some(&r), &none, &[], false, Some(&lost), false), Repair::Report(_)));
        assert_eq!(converge(&eu, Some(&r), &none, &[], false, Some(&lost), true), Repair::Start);
        assert!(matches!(
            converge(&eu, None, &none, &[], false, Some(&seen(GuestPower::Running)), false),
            Repair::Report(_)
        ));
        assert_eq!(converge(&eu, Some(&r), &none, &[], false, None, false), Repair::Create);
    }

    #[test]
    fn a_disk_goes_when_it_is_due_and_its_guest_is_destroyed() {
        let fence = Fence { epoch: 2, generation: 1 };
        let lower = seen(GuestPower::Running);
        let retired = Sight { fence, ..seen(GuestPower::Retired) };
        let window = Millis(100);
        let may =
            |of_transfer, waited, seen: Option<&Sight>| may_clean_up(of_transfer, fence, Millis(waited), window, seen);
        for of_transfer in [false, true] {
            assert!(!may(of_transfer, 99, Some(&retired)) && may(of_transfer, 100, Some(&retired)));
            assert!(may(of_transfer, 100, None));
        }
        assert!(!may(true, 100, Some(&lower)) && may(false, 100, Some(&lower)));
    }

    #[test]
    fn what_is_owed_is_retired_with_its_own_fence_and_a_vm_that_came_back_is_not() {
        let eu = "eu/eu-a".parse().unwrap();
        let none = VmDecisions::default();
        let fence = Fence { epoch: 2, generation: 1 };
        let owed = &[fence, Fence { epoch: 2, generation: 2 }];
        let old = seen(GuestPower::Lost);
        // The VM is at another cluster of this region by now: nothing else says that this copy is an old one.
        assert_eq!(converge(&eu, None, &none, owed, false, Some(&old), false), Repair::Retire { fence });
        let back = Sight { fence: Fence { epoch: 3, generation: 1 }, ..seen(GuestPower::Running) };
        let r = record(DesiredPower::Running);
        assert_eq!(converge(&eu, Some(&r), &none, owed, false, Some(&back), false), Repair::Nothing);
        let coming = seen(GuestPower::Receiving);
        assert_eq!(converge(&eu, None, &none, owed, true, Some(&coming), false), Repair::Nothing);
    }
}
