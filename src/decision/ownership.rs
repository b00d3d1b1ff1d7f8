//! Ownership (architecture §6). Owns: what was decided about each attempt to move a VM, and who owns it after.
//! Always (law 6.3 e): of the proposals for one attempt the first recorded wins; nothing in it depends on time; the
//! highest decided attempt is kept, and it and lower ones are refused.
//! Not here: where the record lies (until consensus: the source region's store), who proposes (`migration/source/`).

use serde::{Deserialize, Serialize};

use crate::types::{Attempt, Fence, Place, RegionName};

/// What is decided about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// The VM belongs to the target, with the next fence.
    Transfer,
    /// The attempt is void: the VM stays.
    Abort,
}

/// Where a VM went.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moved {
    /// The new place.
    pub to: Place,
    /// The fence that it runs with there.
    pub fence: Fence,
    /// The attempt that moved it.
    pub attempt: Attempt,
}

/// All that a decider keeps of one VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct VmDecisions {
    /// The highest attempt that was decided, and how.
    pub decided: Option<(Attempt, Decision)>,
    /// Set once the VM belongs to another region.
    pub moved: Option<Moved>,
}

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proposed {
    /// It is the first of its attempt: keep this.
    Recorded(VmDecisions),
    /// Another one, or the same, came first: this stands.
    Stands(Decision),
    /// The attempt is below the highest decided one.
    Superseded(Attempt),
}

/// What a decider answers to who asks about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DecisionAnswer {
    /// Not yet.
    Undecided,
    /// This.
    Decided(Decision),
    /// A later attempt was decided since: this one can't become a transfer any more.
    Superseded,
}

impl VmDecisions {
    /// Judges the proposal of `decision` for `attempt`; `to` and `fence` are used if it is a transfer.
    pub fn propose(&self, attempt: Attempt, decision: Decision, to: &Place, fence: Fence) -> Proposed {
        match self.decided {
            Some((highest, stands)) if highest == attempt => Proposed::Stands(stands),
            Some((highest, _)) if attempt < highest => Proposed::Superseded(highest),
            Some(_) | None => Proposed::Recorded(VmDecisions {
                decided: Some((attempt, decision)),
                moved: match decision {
                    Decision::Transfer => Some(Moved { to: to.clone(), fence, attempt }),
                    Decision::Abort => self.moved.clone(),
                },
            }),
        }
    }

    /// Answers who asks how `attempt` was decided.
    pub fn answer(&self, attempt: Attempt) -> DecisionAnswer {
        match self.decided {
            Some((highest, decision)) if highest == attempt => DecisionAnswer::Decided(decision),
            // Whatever was decided since: who holds this copy owns it, and must be told so.
            _ if self.moved.as_ref().is_some_and(|m| m.attempt == attempt) => {
                DecisionAnswer::Decided(Decision::Transfer)
            }
            Some((highest, _)) if attempt < highest => DecisionAnswer::Superseded,
            Some(_) | None => DecisionAnswer::Undecided,
        }
    }

    /// The same after this region learnt that the VM came (back) to it by `attempt`.
    pub fn arrived(&self, attempt: Attempt) -> VmDecisions {
        let decided = match self.decided {
            Some((highest, decision)) if highest >= attempt => Some((highest, decision)),
            // The attempt was decided elsewhere; here it only raises the floor for later ones. It is recorded as
            // an abort, because from here that attempt must never lead away again.
            Some(_) | None => Some((attempt, Decision::Abort)),
        };
        VmDecisions { decided, moved: None }
    }

    /// Law 6.2: whether `region`, which has or had the VM, may start, resume or keep it running.
    pub fn may_run(&self, region: &RegionName) -> bool {
        self.moved.as_ref().is_none_or(|m| m.to.region == *region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to() -> Place {
        "us/us-a".parse().expect("a place")
    }

    #[test]
    fn the_first_recorded_wins() {
        let none = VmDecisions::default();
        let fence = Fence { epoch: 2, generation: 1 };
        let Proposed::Recorded(aborted) = none.propose(Attempt(1), Decision::Abort, &to(), fence) else {
            panic!("nothing stood in the way")
        };
        let late = aborted.propose(Attempt(1), Decision::Transfer, &to(), fence);
        assert_eq!(late, Proposed::Stands(Decision::Abort));
        let Proposed::Recorded(moved) = aborted.propose(Attempt(2), Decision::Transfer, &to(), fence) else {
            panic!("attempt 2 is new")
        };
        assert_eq!(moved.propose(Attempt(1), Decision::Transfer, &to(), fence), Proposed::Superseded(Attempt(2)));
        assert!(!moved.may_run(&"eu".parse().unwrap()));
        assert!(moved.may_run(&"us".parse().unwrap()));
        assert_eq!(moved.answer(Attempt(1)), DecisionAnswer::Superseded);
        assert_eq!(moved.answer(Attempt(3)), DecisionAnswer::Undecided);
        let Proposed::Recorded(later) = moved.propose(Attempt(3), Decision::Abort, &to(), fence) else {
            panic!("attempt 3 is new")
        };
        assert_eq!(later.answer(Attempt(2)), DecisionAnswer::Decided(Decision::Transfer), "its owner is still told");
    }

    #[test]
    fn a_vm_that_comes_back_may_run_and_old_attempts_stay_void() {
        let left = VmDecisions {
            decided: Some((Attempt(1), Decision::Transfer)),
            moved: Some(Moved { to: to(), fence: Fence { epoch: 2, generation: 1 }, attempt: Attempt(1) }),
        };
        let back = left.arrived(Attempt(2));
        assert!(back.may_run(&"eu".parse().unwrap()));
        let fence = Fence { epoch: 4, generation: 1 };
        assert!(matches!(back.propose(Attempt(2), Decision::Transfer, &to(), fence), Proposed::Stands(_)));
        assert!(matches!(back.propose(Attempt(3), Decision::Transfer, &to(), fence), Proposed::Recorded(_)));
    }
}
