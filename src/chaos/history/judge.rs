//! Three checkers' verdicts on a history. Owns: budgets, verdicts, counts, disagreements.
//! Always: what was not checked is no pass, and it is never silent; a verdict depends on the history and the budget
//! alone.
//! Not here: the checkers (`ours.rs`, `stateright.rs`, `todc.rs`).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::key::{Part, parts};
use super::settle::settle;
use super::{CLIENTS_PER_KEY_MAX, EdnError, History, OPS_PER_KEY_MAX, ours, read_edn, stateright, todc};

/// A history as a file; one of a thousand operations has about 200 KiB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Who judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Checker {
    /// Ours: a search with memory, for everything up to the limits of a key.
    Ours,
    /// `stateright`'s `LinearizabilityTester`, between moments at which nothing is open.
    Stateright,
    /// `todc-utils`' `WGLChecker`.
    Todc,
}

impl Checker {
    /// All of them.
    pub const ALL: [Checker; 3] = [Checker::Ours, Checker::Stateright, Checker::Todc];
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Checker::Ours => "ours",
            Checker::Stateright => "stateright",
            Checker::Todc => "todc",
        })
    }
}

/// Steps that each checker may take for one key: an operation tried in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// For [`Checker::Ours`].
    pub ours: u64,
    /// For [`Checker::Stateright`].
    pub stateright: u64,
    /// For [`Checker::Todc`]. Long histories end before, at 256 MiB of its memory.
    pub todc: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { ours: 500_000, stateright: 50_000, todc: 100_000 }
    }
}

/// What a checker says of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "verdict")]
pub enum Verdict {
    /// One register could have answered so.
    Linearizable,
    /// None could.
    Violation {
        /// Which answer cannot be, what it could have been, and what was under way; only where, from the other
        /// checkers.
        explanation: String,
    },
    /// Nothing is known, so it did not pass.
    NotChecked {
        /// Why not.
        why: Why,
    },
}

impl Verdict {
    /// What was found, if anything was.
    pub fn linearizable(&self) -> Option<bool> {
        match self {
            Verdict::Linearizable => Some(true),
            Verdict::Violation { .. } => Some(false),
            Verdict::NotChecked { .. } => None,
        }
    }
}

/// Why a key was not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// More operations than [`OPS_PER_KEY_MAX`].
    Operations(usize),
    /// More clients with an open call than [`CLIENTS_PER_KEY_MAX`].
    Clients(usize),
    /// More steps than it may take.
    Budget {
        /// Those it took.
        steps: u64,
    },
    /// Too much between two moments at which nothing is open.
    Window {
        /// Operations there.
        ops: usize,
        /// Of these, open for ever.
        unknown: usize,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Operations(ops) => write!(f, "{ops} operations on one key, at most {OPS_PER_KEY_MAX} are judged"),
            Why::Clients(open) => {
                write!(f, "{open} clients at once on one key, at most {CLIENTS_PER_KEY_MAX} are judged")
            }
            Why::Budget { steps } => write!(f, "no verdict after {steps} steps"),
            Why::Window { ops, unknown } => {
                write!(
                    f,
                    "{ops} operations, {unknown} of them with unknown outcomes, and no moment without an open one"
                )
            }
        }
    }
}

/// What all checkers say of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyJudgement {
    /// The key.
    pub key: String,
    /// Operations asked of it.
    pub ops: usize,
    /// What [`Checker::Ours`] says.
    pub ours: Verdict,
    /// What [`Checker::Stateright`] says.
    pub stateright: Verdict,
    /// What [`Checker::Todc`] says.
    pub todc: Verdict,
}

impl KeyJudgement {
    /// What `checker` says.
    pub fn verdict(&self, checker: Checker) -> &Verdict {
        match checker {
            Checker::Ours => &self.ours,
            Checker::Stateright => &self.stateright,
            Checker::Todc => &self.todc,
        }
    }

    /// Who found that it is linearizable (`true`), or that it is not.
    fn who(&self, linearizable: bool) -> Vec<Checker> {
        let all = Checker::ALL.into_iter();
        all.filter(|checker| self.verdict(*checker).linearizable() == Some(linearizable)).collect()
    }

    fn disagreement(&self) -> Option<Disagreement> {
        let (accepted_by, refused_by) = (self.who(true), self.who(false));
        let differ = !accepted_by.is_empty() && !refused_by.is_empty();
        differ.then(|| Disagreement { key: self.key.clone(), accepted_by, refused_by })
    }
}

/// Two checkers that contradict each other: one of them is wrong, so nothing that either says can be relied on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("the checkers contradict each other on key {key:?}: {accepted_by:?} accept it, {refused_by:?} refuse it")]
pub struct Disagreement {
    /// On which key.
    pub key: String,
    /// Who found it linearizable.
    pub accepted_by: Vec<Checker>,
    /// Who found that it is not.
    pub refused_by: Vec<Checker>,
}

/// Keys of one checker by what it found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// With a verdict.
    pub checked: usize,
    /// Of these, with a violation.
    pub violated: usize,
    /// Without a verdict.
    pub not_checked: usize,
}

/// What all checkers say of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Key by key, in their order.
    pub keys: Vec<KeyJudgement>,
    /// Keys on which checkers contradict each other. Should be empty whatever the system under test does.
    pub disagreements: Vec<Disagreement>,
}

impl Judgement {
    /// The counts of one checker.
    pub fn counts(&self, checker: Checker) -> Counts {
        let mut counts = Counts::default();
        for verdict in self.keys.iter().map(|key| key.verdict(checker)) {
            match verdict {
                Verdict::Linearizable => counts.checked += 1,
                Verdict::Violation { .. } => {
                    counts.checked += 1;
                    counts.violated += 1;
                }
                Verdict::NotChecked { .. } => counts.not_checked += 1,
            }
        }
        counts
    }

    /// Keys of which no checker says anything.
    pub fn unchecked(&self) -> impl Iterator<Item = &KeyJudgement> {
        self.keys.iter().filter(|key| key.who(true).is_empty() && key.who(false).is_empty())
    }

    /// There are keys, each has a verdict, and no verdict is a violation.
    pub fn passed(&self) -> bool {
        let passed = |key: &KeyJudgement| !key.who(true).is_empty() && key.who(false).is_empty();
        !self.keys.is_empty() && self.keys.iter().all(passed)
    }
}

/// Judges each key of `history` by each checker, within `budget` for each of them. A good key takes less than a second
/// of this thread, a bad one up to some seconds. Values that are written once each let all checkers do best: whoever
/// reads one settles whose it was.
pub fn judge(history: &History, budget: &Budget) -> Judgement {
    let keys: Vec<KeyJudgement> = parts(history).into_iter().map(|(key, part)| judge_key(key, &part, budget)).collect();
    let disagreements = keys.iter().filter_map(KeyJudgement::disagreement).collect();
    Judgement { keys, disagreements }
}

fn judge_key(key: &str, part: &Part, budget: &Budget) -> KeyJudgement {
    let (key, ops) = (key.to_owned(), part.asked);
    if let Some(why) = too_much(part) {
        let not = || Verdict::NotChecked { why };
        return KeyJudgement { key, ops, ours: not(), stateright: not(), todc: not() };
    }
    let settled = settle(&part.ops);
    KeyJudgement {
        key,
        ops,
        ours: ours::check(&part.ops, budget.ours),
        stateright: stateright::check(&settled, budget.stateright),
        todc: todc::check(&settled, budget.todc),
    }
}

fn too_much(part: &Part) -> Option<Why> {
    let open = part.open_max();
    if part.asked > OPS_PER_KEY_MAX {
        Some(Why::Operations(part.asked))
    } else if open > CLIENTS_PER_KEY_MAX {
        Some(Why::Clients(open))
    } else {
        None
    }
}

/// Judges the history in a file of EDN (see [`read_edn`]), within the default budget.
///
/// # Errors
/// [`FileError`] if it cannot be read as a history.
pub fn judge_file(path: &Path) -> Result<Judgement, FileError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    let history = read_edn(&text).map_err(|source| FileError::Edn { path: path.to_owned(), source })?;
    Ok(judge(&history, &Budget::default()))
}

/// A file that was not judged.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system does not give it.
    #[error("reading the history {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is larger than any history that is judged.
    #[error("the history {} is larger than {FILE_BYTES_MAX} bytes: split it by key", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no history.
    #[error("understanding the history {}", path.display())]
    Edn {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: EdnError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_that_contradict_each_other_are_a_disagreement_and_what_is_missing_is_none() {
        let violation = || Verdict::Violation { explanation: String::new() };
        let not = || Verdict::NotChecked { why: Why::Budget { steps: 1 } };
        let key = |ours, stateright, todc| KeyJudgement { key: "k".to_owned(), ops: 1, ours, stateright, todc };
        let split = key(Verdict::Linearizable, not(), violation());
        let told = split.disagreement().map(|it| it.to_string());
        let expected = "the checkers contradict each other on key \"k\": [Ours] accept it, [Todc] refuse it";
        assert_eq!(told.as_deref(), Some(expected));
        for agreed in [
            key(Verdict::Linearizable, not(), Verdict::Linearizable),
            key(violation(), violation(), not()),
            key(not(), not(), not()),
        ] {
            assert_eq!(agreed.disagreement(), None);
        }
        // Whoever is wrong, it did not pass; and neither did what nobody looked at, or nothing at all.
        for keys in [vec![split], vec![key(not(), not(), not())], Vec::new()] {
            assert!(!Judgement { keys, disagreements: Vec::new() }.passed());
        }
    }
}
