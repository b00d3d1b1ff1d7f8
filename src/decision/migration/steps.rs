//! The step table. Owns: which steps there are, which sides write and act in each, what is promised if a node dies.
//! Always: kill points and failure points are enumerated from here, so a step without tests fails the build.

use serde::{Deserialize, Serialize};

use crate::types::JobState;

/// A step of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Waits in line.
    Queue,
    /// The target promises room.
    Reserve,
    /// The target's host makes ready.
    Prepare,
    /// Rounds of pre-copy, the guest running.
    Copy,
    /// The guest is paused under a watchdog.
    Pause,
    /// The last round; the target verifies, syncs and journals that it is ready.
    Seal,
    /// The source's host records that only the decision frees the guest.
    Hold,
    /// The decision is recorded.
    Decide,
    /// The target owns and starts it; the source's copy is destroyed.
    Switch,
    /// It is seen running.
    Verify,
    /// Back: the guest is resumed, the attempt given up.
    Resume,
    /// Back, after a hold: the hold is released by the recorded abort.
    Revive,
    /// Back, at the target: what was received is thrown away.
    Discard,
    /// Needs a person.
    Park,
    /// Over.
    End,
}

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Side {
    /// The region that owns the VM and coordinates.
    Source,
    /// The region that receives it.
    Target,
}

/// Where in a step a process can die. The entry into `decide`, the decision and the entry of what follows are one write
/// at the source: its moments lie before and after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Moment {
    /// Before the journal entry that enters the step.
    BeforeWrite,
    /// After that entry is durable, before the effect.
    AfterWrite,
    /// After the effect, before its outcome is journalled.
    AfterEffect,
}

/// All moments.
pub const MOMENTS: [Moment; 3] = [Moment::BeforeWrite, Moment::AfterWrite, Moment::AfterEffect];

/// A row of the step table.
#[derive(Debug, Clone, Copy)]
pub struct StepRow {
    /// The step.
    pub step: Step,
    /// Its name in journals, operation ids, kill points and plans.
    pub name: &'static str,
    /// What happens in it, for people.
    pub description: &'static str,
    /// The `/v2` state that it shows as (architecture §4).
    pub state: JobState,
    /// Whether it can still be undone.
    pub reversible: bool,
    /// Whether it belongs to the way forward, and so to each plan.
    pub forward: bool,
    /// The sides that journal and act in it.
    pub sides: &'static [Side],
    /// How the job ends if a node dies there once and comes back; `None` where a job does not stop by itself.
    pub after_node_death: Option<JobState>,
}

const BOTH: &[Side] = &[Side::Source, Side::Target];
const SOURCE: &[Side] = &[Side::Source];
const TARGET: &[Side] = &[Side::Target];

/// The table.
pub const STEPS: &[StepRow] = &[
    StepRow {
        step: Step::Queue,
        name: "queue",
        description: "wait for a free place among the running jobs",
        state: JobState::Pending,
        reversible: true,
        forward: true,
        sides: SOURCE,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Reserve,
        name: "reserve",
        description: "reserve CPU, memory and disk at the target cluster",
        state: JobState::Preparing,
        reversible: true,
        forward: true,
        sides: BOTH,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Prepare,
        name: "prepare",
        description: "make the target host ready to receive this attempt",
        state: JobState::Preparing,
        reversible: true,
        forward: true,
        sides: BOTH,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Copy,
        name: "copy",
        description: "copy memory and disk in rounds while the guest runs",
        state: JobState::Transferring,
        reversible: true,
        forward: true,
        sides: SOURCE,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Pause,
        name: "pause",
        description: "pause the guest; a watchdog at its host resumes it at the deadline",
        state: JobState::Finalizing,
        reversible: true,
        forward: true,
        sides: SOURCE,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Seal,
        name: "seal",
        description: "send the last round; the target verifies it, syncs its disk and records that it is ready",
        state: JobState::Finalizing,
        reversible: true,
        forward: true,
        sides: BOTH,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Hold,
        name: "hold",
        description: "the source host records that from now on only the decision frees the guest",
        state: JobState::Finalizing,
        reversible: true,
        forward: true,
        sides: SOURCE,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Decide,
        name: "decide",
        description: "record the decision: transfer or abort, the first recorded wins",
        state: JobState::Finalizing,
        reversible: true,
        forward: true,
        sides: SOURCE,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Switch,
        name: "switch",
        description: "the target records its ownership and starts the VM; the source destroys its copy",
        state: JobState::Finalizing,
        reversible: false,
        forward: true,
        sides: BOTH,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Verify,
        name: "verify",
        description: "see the VM run under its new fence",
        state: JobState::Synchronizing,
        reversible: false,
        forward: true,
        sides: BOTH,
        after_node_death: Some(JobState::Completed),
    },
    StepRow {
        step: Step::Resume,
        name: "resume",
        description: "resume the guest at the source and give this attempt up",
        state: JobState::Finalizing,
        reversible: true,
        forward: false,
        sides: SOURCE,
        after_node_death: None,
    },
    StepRow {
        step: Step::Revive,
        name: "revive",
        description: "release the hold by the recorded abort; the guest goes on at the source",
        state: JobState::Finalizing,
        reversible: false,
        forward: false,
        sides: SOURCE,
        after_node_death: None,
    },
    StepRow {
        step: Step::Discard,
        name: "discard",
        description: "throw away what the target received and give its room back",
        state: JobState::Finalizing,
        reversible: false,
        forward: false,
        sides: TARGET,
        after_node_death: None,
    },
    StepRow {
        step: Step::Park,
        name: "park",
        description: "wait for a person",
        state: JobState::Parked,
        reversible: true,
        forward: false,
        sides: SOURCE,
        after_node_death: None,
    },
    StepRow {
        step: Step::End,
        name: "end",
        description: "over",
        state: JobState::Completed,
        reversible: false,
        forward: true,
        sides: BOTH,
        after_node_death: Some(JobState::Completed),
    },
];

impl Step {
    /// Its row.
    pub fn row(self) -> &'static StepRow {
        STEPS.iter().find(|r| r.step == self).expect("each step has a row: a test holds it")
    }
    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

impl Side {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }
}

impl Moment {
    /// Its name in `[chaos] killAt`.
    pub const fn name(self) -> &'static str {
        match self {
            Moment::BeforeWrite => "before-write",
            Moment::AfterWrite => "after-write",
            Moment::AfterEffect => "after-effect",
        }
    }
}

/// A point at which a process can be told to die: `step:side:moment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KillPoint {
    /// The step.
    pub step: Step,
    /// The side.
    pub side: Side,
    /// The moment.
    pub moment: Moment,
}

impl KillPoint {
    /// Every point of the way forward, from the table. The end has no effect and hence no moment after it, and a
    /// job is in line (`queue`) before its first entry exists: before that write there is no job, only a client
    /// that repeats its request.
    pub fn all_forward() -> Vec<KillPoint> {
        KillPoint::all().into_iter().filter(|point| point.step.row().forward).collect()
    }

    /// The same with those of the way back.
    pub fn all() -> Vec<KillPoint> {
        let mut points = Vec::new();
        for row in STEPS {
            for side in row.sides {
                for moment in MOMENTS {
                    let effect = moment == Moment::AfterEffect;
                    if effect && matches!(row.step, Step::Queue | Step::End) {
                        continue;
                    }
                    points.push(KillPoint { step: row.step, side: *side, moment });
                }
            }
        }
        points
    }
}

impl std::fmt::Display for KillPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.step.name(), self.side.name(), self.moment.name())
    }
}

impl std::str::FromStr for KillPoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "'{text}' is not a kill point: write step:side:phase, step one of {}, side source or target, \
                 phase before-write, after-write or after-effect",
                STEPS.iter().map(|r| r.name).collect::<Vec<_>>().join(", ")
            )
        };
        let parts: Vec<&str> = text.split(':').collect();
        let [step, side, moment] = parts.as_slice() else { return Err(bad()) };
        let row = STEPS.iter().find(|r| r.name == *step).ok_or_else(bad)?;
        let side = [Side::Source, Side::Target].into_iter().find(|s| s.name() == *side).ok_or_else(bad)?;
        let moment = MOMENTS.into_iter().find(|m| m.name() == *moment).ok_or_else(bad)?;
        Ok(KillPoint { step: row.step, side, moment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_reads_back_and_each_forward_step_promises_an_end() {
        for point in KillPoint::all_forward() {
            assert_eq!(point.to_string().parse(), Ok(point));
            assert!(point.step.row().after_node_death.is_some_and(JobState::is_end), "{point}");
        }
        assert!("copy:source".parse::<KillPoint>().is_err());
        assert!("copy:middle:before-write".parse::<KillPoint>().is_err());
    }
}
