//! What chaos comes to, as a document. Owns: the JSON of simulations and of runs on real processes, which are the same.
//! Always: figures of several runs add up; what was not checked is said to be so.
//! Not here: the page that shows it (`report.rs`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::invariants::Invariant;

/// How one checker judged the histories of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JudgeCount {
    /// Keys that it judged.
    pub checked: u64,
    /// Of these, keys whose history no order explains.
    pub violated: u64,
    /// Keys that it did not judge, because they were too large or took too long: never counted as passed.
    pub not_checked: u64,
}

/// A recovery: from the end of faults until everything had settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// The seed.
    pub seed: u64,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// Something that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The invariant.
    pub invariant: String,
    /// What was seen.
    pub seen: String,
    /// The line that runs it again.
    pub replay: String,
}

/// What one or more runs came to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many seeds were run; of runs on real processes, how many such runs.
    pub seeds: u64,
    /// In how many of them everything held.
    pub clean: u64,
    /// The first in which something did not.
    pub first_failing_seed: Option<u64>,
    /// The first that was run.
    pub first_seed: u64,
    /// `message`, `full` or `process`.
    pub levels: Vec<String>,
    /// Time of regions, virtual or real, while a job or a fault was open, seconds.
    pub virtual_region_seconds: u64,
    /// Time of processors that it took, seconds.
    pub cpu_seconds: f64,
    /// Requests of clients.
    pub operations: u64,
    /// Requests that were not answered.
    pub unanswered: u64,
    /// Moves that were acknowledged and watched to their end.
    pub migrations: u64,
    /// By how they ended.
    pub ends: BTreeMap<String, u64>,
    /// Jobs that a person had to answer, by why.
    pub parked: BTreeMap<String, u64>,
    /// How nodes ended by themselves.
    pub exits: BTreeMap<String, u64>,
    /// Faults that were injected, by kind.
    pub faults_by_kind: BTreeMap<String, u64>,
    /// What was checked.
    pub invariants: Vec<Invariant>,
    /// Client histories, by who judged them.
    pub judges: BTreeMap<String, JudgeCount>,
    /// Seeds that were run twice, with the same events.
    pub determinism_rechecked: u64,
    /// How often jobs passed a step while a fault was at work: by fault, then by step.
    pub met: BTreeMap<String, BTreeMap<String, u64>>,
    /// How often nodes died at a point.
    pub killed_at: BTreeMap<String, u64>,
    /// The slowest recoveries, the slowest first.
    pub slowest: Vec<Recovery>,
    /// What did not hold.
    pub failures: Vec<Failure>,
    /// What a run left out on this machine, and why.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Recoveries that are kept.
const SLOWEST_MAX: usize = 10;
/// Failures that are kept.
const FAILURES_MAX: usize = 20;

fn add_all<K: Ord + Clone>(sums: &mut BTreeMap<K, u64>, others: &BTreeMap<K, u64>) {
    for (key, count) in others {
        *sums.entry(key.clone()).or_default() += count;
    }
}

impl Summary {
    /// Whether everything held, and something was looked at.
    pub fn is_clean(&self) -> bool {
        self.seeds > 0 && self.clean == self.seeds && self.invariants.iter().all(|invariant| invariant.violated == 0)
    }

    /// Adds what another run came to.
    pub fn add(&mut self, other: &Summary) {
        self.first_seed = if self.seeds == 0 { other.first_seed } else { self.first_seed.min(other.first_seed) };
        self.seeds += other.seeds;
        self.clean += other.clean;
        self.first_failing_seed = match (self.first_failing_seed, other.first_failing_seed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        for level in &other.levels {
            if !self.levels.contains(level) {
                self.levels.push(level.clone());
            }
        }
        self.virtual_region_seconds += other.virtual_region_seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.operations += other.operations;
        self.unanswered += other.unanswered;
        self.migrations += other.migrations;
        self.determinism_rechecked += other.determinism_rechecked;
        add_all(&mut self.ends, &other.ends);
        add_all(&mut self.parked, &other.parked);
        add_all(&mut self.exits, &other.exits);
        add_all(&mut self.faults_by_kind, &other.faults_by_kind);
        add_all(&mut self.killed_at, &other.killed_at);
        for (fault, steps) in &other.met {
            add_all(self.met.entry(fault.clone()).or_default(), steps);
        }
        for invariant in &other.invariants {
            match self.invariants.iter_mut().find(|known| known.name == invariant.name) {
                Some(known) => {
                    known.checked += invariant.checked;
                    known.violated += invariant.violated;
                }
                None => self.invariants.push(Invariant { examples: Vec::new(), ..invariant.clone() }),
            }
        }
        for (judge, count) in &other.judges {
            let sum = self.judges.entry(judge.clone()).or_default();
            sum.checked += count.checked;
            sum.violated += count.violated;
            sum.not_checked += count.not_checked;
        }
        self.slowest.extend(other.slowest.iter().cloned());
        self.slowest.sort_by_key(|recovery| (std::cmp::Reverse(recovery.took_ms), recovery.seed));
        self.slowest.truncate(SLOWEST_MAX);
        self.failures.extend(other.failures.iter().cloned());
        self.failures.sort_by_key(|failure| failure.seed);
        self.failures.truncate(FAILURES_MAX);
        for note in &other.notes {
            if !self.notes.contains(note) {
                self.notes.push(note.clone());
            }
        }
    }

    /// Region-years per hour of one processor.
    pub fn region_years_per_cpu_hour(&self) -> f64 {
        const YEAR_S: f64 = 365.25 * 86_400.0;
        if self.cpu_seconds > 0.0 {
            self.virtual_region_seconds as f64 / YEAR_S / (self.cpu_seconds / 3_600.0)
        } else {
            0.0
        }
    }
}
