//! Measuring. Owns: rounds, medians, what is void, and how results are shown.
//! Always: subject and baseline run interleaved in blocks of the same minute; only ratios are judged; what could not
//! be measured is never called met.

use std::path::PathBuf;
use std::process::Command;

use novafed::clock::machine_nanos;
use serde::{Deserialize, Serialize};

/// Rounds that count.
const ROUNDS: usize = 5;
/// Void rounds that are repeated before a measurement is given up.
const REPEATS_MAX: usize = 5;
/// Two rounds of one measurement whose baselines differ by more: the later one is void.
const BASELINE_SPREAD_MAX: f64 = 1.5;
/// How long one block runs, nanoseconds. A round has two or more of each side.
pub const BLOCK_NANOS: u64 = 200_000_000;

/// What a result has to be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// The ratio ours to bare is at least this.
    RatioAtLeast(f64),
    /// The ratio ours to bare is at most this.
    RatioAtMost(f64),
    /// Ours alone is at most this, in its unit.
    AtMost(f64),
    /// Ours is at most so much more than bare, in its unit.
    AddsAtMost(f64),
    /// Shown, not judged.
    None,
}

impl Goal {
    fn is_met(self, ours: Option<f64>, bare: Option<f64>, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtLeast(bound) => Some(ratio.is_some_and(|ratio| ratio >= bound)),
            Self::RatioAtMost(bound) => Some(ratio.is_some_and(|ratio| ratio <= bound)),
            Self::AtMost(bound) => Some(ours.is_some_and(|ours| ours <= bound)),
            Self::AddsAtMost(bound) => Some(ours.zip(bare).is_some_and(|(ours, bare)| ours - bare <= bound)),
            Self::None => None,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::RatioAtLeast(bound) => format!(">= {bound:.2}x bare"),
            Self::RatioAtMost(bound) => format!("<= {bound:.2}x bare"),
            Self::AtMost(bound) => format!("<= {bound} {unit}"),
            Self::AddsAtMost(bound) => format!("<= bare + {bound:.1} {unit}"),
            Self::None => "-".to_owned(),
        }
    }
}

/// One line of `target/ratios.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Outcome {
    name: String,
    unit: String,
    ours: Option<f64>,
    bare: Option<f64>,
    ratio: Option<f64>,
    /// Smallest and largest ratio of a round (of a value, where there is no baseline).
    spread: Option<(f64, f64)>,
    goal: String,
    met: Option<bool>,
    commit: String,
}

/// All measurements of one run.
pub struct Bench {
    filter: Option<String>,
    commit: String,
    outcomes: Vec<Outcome>,
    notes: Vec<String>,
}

impl Bench {
    /// The first argument that is no option filters by name.
    pub fn from_args() -> Bench {
        let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
        let mut commit = said("git", &["rev-parse", "--short=12", "HEAD"]);
        if !said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() {
            commit.push_str("-dirty");
        }
        let bench = Bench { filter, commit, outcomes: Vec::new(), notes: Vec::new() };
        println!("{}", machine());
        bench
    }

    /// Whether `name` is to be measured: ask before an expensive preparation.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.to_lowercase().contains(&filter.to_lowercase()))
    }

    /// Compares `ours` with `bare`. Each call of them runs one block of about [`BLOCK_NANOS`], at most a second, and
    /// returns its value (a rate, or the median of a latency) in `unit`.
    pub fn compare(
        &mut self,
        name: &str,
        unit: &str,
        goal: Goal,
        mut ours: impl FnMut() -> f64,
        mut bare: impl FnMut() -> f64,
    ) {
        if !self.wants(name) {
            return;
        }
        let before = load();
        // The first blocks warm caches and allocators up.
        let _ = (ours(), bare());
        let mut rounds: Vec<Round> = Vec::new();
        let mut repeats = 0;
        while rounds.len() < ROUNDS && repeats <= REPEATS_MAX {
            let round = Round::run(&mut ours, &mut bare);
            let mut baselines: Vec<f64> = rounds.iter().map(|round| round.bare).collect();
            baselines.push(round.bare);
            if spread_of(&baselines) > BASELINE_SPREAD_MAX {
                repeats += 1;
                // A first round at an odd moment must not make all others void.
                if rounds.len() == 1 {
                    rounds.clear();
                }
            } else {
                rounds.push(round);
            }
        }
        if rounds.len() < ROUNDS {
            self.notes.push(format!(
                "{name}: not measured, the baseline differed by more than {BASELINE_SPREAD_MAX}x in {repeats} rounds"
            ));
            self.push(name, unit, goal, None, None, None, None);
            return;
        }
        let ratios: Vec<f64> = rounds.iter().map(|round| round.ours / round.bare).collect();
        let ours = median(rounds.iter().map(|round| round.ours).collect());
        let bare = median(rounds.iter().map(|round| round.bare).collect());
        let ratio = median(ratios.clone());
        if repeats > 0 {
            self.notes.push(format!("{name}: {repeats} void rounds repeated"));
        }
        self.notes.push(format!("{name}: load average {before} before, {} after", load()));
        self.push(name, unit, goal, Some(ours), Some(bare), Some(ratio), Some(bounds(&ratios)));
    }

    /// Measures `ours` without a baseline: each call returns one value; the median is judged.
    pub fn absolute(&mut self, name: &str, unit: &str, goal: Goal, mut ours: impl FnMut() -> f64) {
        if !self.wants(name) {
            return;
        }
        let values: Vec<f64> = (0..ROUNDS).map(|_| ours()).collect();
        self.push(name, unit, goal, Some(median(values.clone())), None, None, Some(bounds(&values)));
    }

    /// Something that a reader must know of a result.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of one line")]
    fn push(
        &mut self,
        name: &str,
        unit: &str,
        goal: Goal,
        ours: Option<f64>,
        bare: Option<f64>,
        ratio: Option<f64>,
        spread: Option<(f64, f64)>,
    ) {
        let outcome = Outcome {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours,
            bare,
            ratio,
            spread,
            goal: goal.text(unit),
            met: goal.is_met(ours, bare, ratio),
            commit: self.commit.clone(),
        };
        println!("{}", line(&outcome));
        self.outcomes.push(outcome);
    }

    /// Prints the table and the notes, and writes `target/ratios.json`; what a filter left out keeps its old line.
    pub fn finish(self) {
        println!("\n{}", header());
        for outcome in &self.outcomes {
            println!("{}", line(outcome));
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        let path = target().join("ratios.json");
        let mut all: Vec<Outcome> = match &self.filter {
            Some(_) => std::fs::read(&path).ok().and_then(|old| serde_json::from_slice(&old).ok()).unwrap_or_default(),
            None => Vec::new(),
        };
        all.retain(|old| !self.outcomes.iter().any(|new| new.name == old.name));
        all.extend(self.outcomes);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let written = serde_json::to_vec_pretty(&all).map_err(std::io::Error::other);
        match written.and_then(|bytes| std::fs::write(&path, bytes)) {
            Ok(()) => println!("written to {}", path.display()),
            Err(error) => println!("writing {}: {error}", path.display()),
        }
    }
}

/// One round: blocks in the order ABBA ABBA.
struct Round {
    ours: f64,
    bare: f64,
}

impl Round {
    fn run(ours: &mut impl FnMut() -> f64, bare: &mut impl FnMut() -> f64) -> Round {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            a.push(ours());
            b.push(bare());
            b.push(bare());
            a.push(ours());
        }
        Round { ours: median(a), bare: median(b) }
    }
}

/// Runs `one` for a block; returns how often it ran per second. `one` returns how much it did.
pub fn rate(mut one: impl FnMut() -> u64) -> f64 {
    let start = machine_nanos();
    let mut done = 0;
    loop {
        done += one();
        let took = machine_nanos() - start;
        if took >= BLOCK_NANOS {
            return done as f64 * 1e9 / took as f64;
        }
    }
}

/// The value at `share` (0.5 for the median) of samples, which are sorted.
pub fn quantile(samples: &mut [u64], share: f64) -> f64 {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    samples.get((last as f64 * share).round() as usize).map_or(f64::NAN, |sample| *sample as f64)
}

/// The middle value, or the mean of the two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn bounds(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    (low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

fn spread_of(values: &[f64]) -> f64 {
    let (low, high) = bounds(values);
    high / low
}

fn header() -> String {
    format!(
        "{:<40} {:>12} {:>12} {:<6} {:>7} {:>15}  {:<18} met",
        "measured", "ours", "bare", "unit", "ratio", "spread", "goal"
    )
}

fn line(outcome: &Outcome) -> String {
    let number = |value: Option<f64>| match value {
        Some(value) if value >= 1_000.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.3}"),
        None => "-".to_owned(),
    };
    let spread = outcome.spread.map_or("-".to_owned(), |(low, high)| format!("{low:.3}-{high:.3}"));
    let met = match outcome.met {
        Some(true) => "yes",
        Some(false) if outcome.ours.is_none() => "NOT MEASURED",
        Some(false) => "MISSED",
        None => "-",
    };
    format!(
        "{:<40} {:>12} {:>12} {:<6} {:>7} {:>15}  {:<18} {met}",
        outcome.name,
        number(outcome.ours),
        number(outcome.bare),
        outcome.unit,
        outcome.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
        spread,
        outcome.goal,
    )
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn machine() -> String {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap_or_default();
    let version = |name: &str| {
        let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"\n")));
        let version =
            entry.and_then(|entry| entry.split("version = \"").nth(1)).and_then(|rest| rest.split('"').next());
        format!("{name} {}", version.unwrap_or("?"))
    };
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let crates = ["tokio", "ractor", "quinn", "redb"].map(version).join(", ");
    format!("{cores} cores shared by both sides, load average {}; {}; {crates}", load(), said("rustc", &["--version"]))
}

/// Where results go, and what is measured on the disk.
pub fn target() -> PathBuf {
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target"));
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from)
}
