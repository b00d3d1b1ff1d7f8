//! The line of a region's jobs. Owns: which of them may run, which wait.
//! Always: whoever asked first goes first; nobody waits while a place is free; a place is given only while fewer than the
//! limit run. What has begun never waits again, so more run only after the limit was lowered, or while parked jobs go on.
//! Not here: durability (a job's own journal says whether it waits, so the line is rebuilt from the jobs).

use std::collections::BTreeSet;

use crate::decision::migration::steps::Step;
use crate::types::JobId;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has not begun.
    Waits,
    /// It has begun and goes on by itself.
    Runs,
    /// It is over, or needs a person: it keeps no place, or a few such jobs would stop all others.
    Away,
}

impl Standing {
    /// Where a job stands in `step`.
    pub fn of(step: Step) -> Standing {
        match step {
            Step::Queue => Standing::Waits,
            Step::Park | Step::End => Standing::Away,
            Step::Reserve
            | Step::Prepare
            | Step::Copy
            | Step::Pause
            | Step::Seal
            | Step::Hold
            | Step::Decide
            | Step::Switch
            | Step::Verify
            | Step::Resume
            | Step::Revive
            | Step::Discard => Standing::Runs,
        }
    }
}

/// How a waiting job stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Jobs that go before it.
    pub ahead: usize,
    /// Jobs that run.
    pub running: usize,
    /// How many may run.
    pub limit: usize,
}

/// The line of one region. Ids order jobs by when they were asked for.
#[derive(Debug, Clone)]
pub struct Line {
    limit: usize,
    running: BTreeSet<JobId>,
    waiting: BTreeSet<JobId>,
}

impl Line {
    /// An empty one with so many places.
    pub fn new(limit: usize) -> Line {
        Line { limit, running: BTreeSet::new(), waiting: BTreeSet::new() }
    }

    /// A job says where it stands. A job that was let go and says that it waits has crashed in between: it gives its
    /// place back and asks again.
    pub fn stand(&mut self, job: JobId, standing: Standing) {
        self.running.remove(&job);
        self.waiting.remove(&job);
        match standing {
            Standing::Waits => self.waiting.insert(job),
            Standing::Runs => self.running.insert(job),
            Standing::Away => false,
        };
    }

    /// Lets jobs go as far as there are places; each is counted as running from now on.
    pub fn admit(&mut self) -> Vec<JobId> {
        let mut admitted = Vec::new();
        while self.running.len() < self.limit
            && let Some(job) = self.waiting.pop_first()
        {
            self.running.insert(job);
            admitted.push(job);
        }
        admitted
    }

    /// How `job` stands if it waits.
    pub fn waiting(&self, job: JobId) -> Option<Waiting> {
        self.waiting.contains(&job).then(|| Waiting {
            ahead: self.waiting.range(..job).count(),
            running: self.running.len(),
            limit: self.limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::RegionNumber;

    fn job(number: u64) -> JobId {
        JobId { region: RegionNumber(1), incarnation: 1 + number / 8, number }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        /// Against a model: a map of standings from which the head's promises are read off.
        #[test]
        fn goes_in_order_and_leaves_no_place_empty(
            limit in 1_usize..4,
            says in proptest::collection::vec((0_u64..16, 0_usize..3), 0..60),
        ) {
            let mut line = Line::new(limit);
            let mut model: BTreeMap<JobId, Standing> = BTreeMap::new();
            for (number, standing) in says {
                let standing = [Standing::Waits, Standing::Runs, Standing::Away][standing];
                line.stand(job(number), standing);
                model.insert(job(number), standing);
                let waited: Vec<JobId> =
                    model.iter().filter(|(_, s)| **s == Standing::Waits).map(|(job, _)| *job).collect();
                let ran = model.values().filter(|s| **s == Standing::Runs).count();
                let admitted = line.admit();
                let free = limit.saturating_sub(ran);
                prop_assert_eq!(&admitted, &waited.iter().copied().take(free).collect::<Vec<_>>());
                for job in &admitted {
                    model.insert(*job, Standing::Runs);
                }
                let ran = ran + admitted.len();
                for (ahead, job) in waited.iter().skip(admitted.len()).enumerate() {
                    prop_assert_eq!(line.waiting(*job), Some(Waiting { ahead, running: ran, limit }));
                }
                for (job, standing) in &model {
                    prop_assert_eq!(line.waiting(*job).is_some(), *standing == Standing::Waits);
                }
            }
        }
    }
}
