//! What must hold, by name. Owns: counting what was checked and what was violated.
//! Always: a check looks at witnesses, files and answers of the API; it asks nobody who is being judged whether all is
//! well.
//! Not here: how consoles are read (`drivers/embedded/witness.rs`), how bytes are recomputed (`drivers/embedded/judge.rs`).

use serde::{Deserialize, Serialize};

use crate::drivers::embedded::witness::{Report, Violation};

const EXAMPLES_MAX: usize = 3;

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invariant {
    /// Its name.
    pub name: String,
    /// How often it was looked at.
    pub checked: u64,
    /// How often it did not hold.
    pub violated: u64,
    /// The first violations, in words.
    #[serde(skip)]
    pub examples: Vec<String>,
}

impl Invariant {
    /// It was checked and never violated.
    pub fn held(&self) -> bool {
        self.checked > 0 && self.violated == 0
    }
}

/// All that is counted in a run, in the order of first mention.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Vec<Invariant>);

impl Ledger {
    /// Names what is going to be checked, so that a check that never came to pass is seen.
    pub fn expecting(names: &[&str]) -> Ledger {
        let named = |name: &&str| Invariant { name: (*name).into(), checked: 0, violated: 0, examples: Vec::new() };
        Ledger(names.iter().map(named).collect())
    }

    /// Counts one look; `Err` says what was violated.
    pub fn check(&mut self, name: &str, outcome: Result<(), String>) {
        self.count(name, 1, outcome.err().into_iter().collect());
    }

    /// Counts `checked` looks of which `violations` failed.
    pub fn count(&mut self, name: &str, checked: u64, violations: Vec<String>) {
        let at = self.0.iter().position(|i| i.name == name).unwrap_or_else(|| {
            self.0.push(Invariant { name: name.to_owned(), checked: 0, violated: 0, examples: Vec::new() });
            self.0.len() - 1
        });
        let invariant = &mut self.0[at];
        invariant.checked += checked;
        invariant.violated += violations.len() as u64;
        let room = EXAMPLES_MAX.saturating_sub(invariant.examples.len());
        invariant.examples.extend(violations.into_iter().take(room));
    }

    /// The counts.
    pub fn into_invariants(self) -> Vec<Invariant> {
        self.0
    }
}

/// Counts what the consoles say: who ran when, under which fence, which ticks.
pub fn witnessed(ledger: &mut Ledger, report: &Report) {
    let mut double = Vec::new();
    let mut gaps = Vec::new();
    let mut fences = Vec::new();
    for violation in &report.violations {
        let text = violation.to_string();
        match violation {
            Violation::RunsTwice { .. } => double.push(text),
            Violation::TickGap { .. } | Violation::Damaged { .. } => gaps.push(text),
            Violation::FenceBack { .. } => fences.push(text),
        }
    }
    let runs = report.vms.values().map(|account| account.runs.len() as u64).sum();
    ledger.count("no-double-run", runs, double);
    ledger.count("ticks-contiguous", report.lines, gaps);
    ledger.count("fence-monotone", report.lines, fences);
}
