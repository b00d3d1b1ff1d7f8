//! What must hold, by name. Owns: counting what was checked and what was violated.
//! Always: a check looks at witnesses, files and answers of the API; it asks nobody who is being judged whether all is
//! well.
//! Not here: how consoles are read (`drivers/embedded/witness.rs`), how bytes are recomputed (`drivers/embedded/judge.rs`).

use serde::{Deserialize, Serialize};

use crate::drivers::embedded::witness::{Report, Violation};

const EXAMPLES_MAX: usize = 3;

/// A VM runs in at most one place at any instant (I1).
pub const ONE_PLACE: &str = "no-double-run";
/// A VM runs under fences that only rise (I8).
pub const FENCE_RISES: &str = "fence-monotone";
/// A guest goes on where it stood, wherever it went, or begins anew where its memory was lost.
pub const MEMORY_GOES_ON: &str = "ticks-contiguous";
/// Every job ended, nothing is owed or reserved, every command is delivered, every view is fresh (I2, I14).
pub const ALL_SETTLED: &str = "every-job-ended";
/// Every byte of a guest's memory and disk is what its program makes of it.
pub const EVERY_BYTE: &str = "memory-and-disk-match-the-program";
/// A VM has one owner (I7).
pub const ONE_OWNER: &str = "one-owner";
/// What was acknowledged is so (I3).
pub const NOTHING_LOST: &str = "no-acknowledged-command-lost";
/// Who owns a VM is linearizable: one order explains what all clients asked and saw (I7).
pub const LINEARIZABLE: &str = "ownership-linearizable";
/// No client sees what it saw before undone by what it sees next (I16).
pub const SESSIONS_GO_ON: &str = "sessions-go-on";
/// A request under one key has one effect (I12).
pub const ONCE_PER_KEY: &str = "once-per-key";
/// What clusters gave out is what VMs use (I4, as far as there is room and no quota yet).
pub const ROOM_ADDS_UP: &str = "room-adds-up";
/// A guest runs where its owner says.
pub const RUNS_WHERE_OWNED: &str = "runs-where-owned";

/// All of them, with what each says.
pub const ALL: &[(&str, &str)] = &[
    (ONE_PLACE, "A VM runs in at most one place at any moment."),
    (FENCE_RISES, "A VM runs under fences that only rise."),
    (MEMORY_GOES_ON, "A guest goes on where it stood, or begins anew where its memory was lost."),
    (ALL_SETTLED, "Every job ends; nothing stays owed, reserved, undelivered or out of date."),
    (EVERY_BYTE, "Every byte of a guest is what its program makes of it."),
    (ONE_OWNER, "A VM has one owner."),
    (NOTHING_LOST, "What was acknowledged is so."),
    (LINEARIZABLE, "One order explains what all clients asked and saw of who owns a VM."),
    (SESSIONS_GO_ON, "No client sees undone what it saw before."),
    (ONCE_PER_KEY, "A request under one key has one effect."),
    (ROOM_ADDS_UP, "What clusters gave out is what VMs use, and no more than they have."),
    (RUNS_WHERE_OWNED, "A guest runs where its owner says."),
];

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

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Ledger) {
        for invariant in &other.0 {
            self.count(&invariant.name, invariant.checked, Vec::new());
            if let Some(mine) = self.0.iter_mut().find(|mine| mine.name == invariant.name) {
                mine.violated += invariant.violated;
                mine.examples.extend(invariant.examples.iter().cloned());
                mine.examples.truncate(EXAMPLES_MAX);
            }
        }
    }

    /// The counts so far.
    pub fn invariants(&self) -> &[Invariant] {
        &self.0
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
    ledger.count(ONE_PLACE, runs, double);
    ledger.count(MEMORY_GOES_ON, report.lines, gaps);
    ledger.count(FENCE_RISES, report.lines, fences);
}
