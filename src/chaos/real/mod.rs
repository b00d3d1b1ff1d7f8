//! Chaos on real processes: regions and hosts of this very binary, on real sockets, under faults, judged from outside.
//! Owns: the options, the beginning and the end of a run, also when it is interrupted or fails; its bound in time.
//! Always: it uses regions as anybody would, over their APIs; everything that it started is ended, and removed unless
//! somebody wants to look at it. One thread, so that nothing goes on once the run was dropped.
//!
//! ```text
//! seed ── faults.rs ──► run.rs ─┬─ world.rs      the federation, who is to run: `chaos/federation.rs`
//!                               ├─ workload.rs   clients: client.rs (a request), registers.rs (their history)
//!                               ├─ inject.rs     faults, done; disks.rs (full ones)
//!                               └─ judge.rs      what must hold in the end; operator.rs answers parked jobs
//! ```
//! Not here: the phases of a run (`run.rs`), federations by seed (`sim/`).

mod client;
mod disks;
mod faults;
mod inject;
mod judge;
mod operator;
mod registers;
mod run;
mod workload;
mod world;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use self::disks::Disks;
use self::run::Outcome;
use super::demo;
use super::plant::Plant;
use super::process::Run;
use super::summary::{Failure, Recovery, Summary};
use crate::types::{Millis, chain};

/// Options of a run; `novafed chaos run --help` has their defaults.
#[derive(Debug, Clone)]
pub struct RealOptions {
    /// How long faults last, minutes.
    pub minutes: f64,
    /// Regions.
    pub regions: usize,
    /// Which faults come when.
    pub seed: Option<u64>,
    /// Print one JSON document to standard output.
    pub json: bool,
    /// Leave logs, consoles and stores in place.
    pub keep: bool,
    /// Self-test of the judge.
    pub plant: Option<Plant>,
}

impl RealOptions {
    /// How long faults last.
    fn length(&self) -> Millis {
        Millis((self.minutes * 60_000.0) as u64)
    }
    /// The line that runs it again.
    fn replay(&self, seed: u64) -> String {
        format!("novafed chaos run --minutes {} --regions {} --seed {seed}", self.minutes, self.regions)
    }
}

/// Beside the time of faults: for starting, healing and the last look. A run that is not over then has failed.
const BESIDE_MAX: Duration = Duration::from_secs(360);
/// Where the words of the run are.
const EVENTS: &str = "events.log";

/// Runs it in a runtime of its own.
pub fn main(options: RealOptions) -> ExitCode {
    // Before there are threads, because it starts this program anew.
    let small_disks = disks::enter();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(play(options, small_disks)),
        Err(error) => {
            say(&format!("starting the runtime: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A run to its end, or to Ctrl-C. Success if everything held.
async fn play(options: RealOptions, small_disks: Result<(), String>) -> ExitCode {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000_000));
    let mut interrupted = std::pin::pin!(demo::interrupted());
    let made = tokio::select! {
        biased;
        name = &mut interrupted => Err(name.to_owned()),
        made = Run::create() => made.map_err(|e| chain(&e)),
    };
    let mut run = match made {
        Ok(run) => run,
        Err(why) => {
            say(&why);
            return end(&options, &summary_of_failed(&options, seed, why));
        }
    };
    let dir = run.dir().to_owned();
    say(&format!("{}: {} regions in {}", options.replay(seed), options.regions, dir.display()));
    let regions = run::region_names(options.regions);
    let mut notes = Vec::new();
    let dirs = regions.iter().map(|name| dir.join(name.as_str())).collect();
    let mut disks = match small_disks.and_then(|()| Disks::mount(dirs)) {
        Ok(disks) => Some(disks),
        Err(why) => {
            notes.push(format!("disk-full is left out: {why}"));
            None
        }
    };
    let at_most = options.length().duration() + BESIDE_MAX;
    let told = tokio::select! {
        biased;
        name = interrupted => Err(format!("{name}: stopping, and removing what was made")),
        told = tokio::time::timeout(at_most, run::run(&options, seed, &dir, disks.is_some())) => match told {
            Ok(told) => told.map_err(|e| chain(&e)),
            Err(_) => Err(format!("it is not over after {} s", at_most.as_secs())),
        },
    };
    let violated = match &told {
        Ok(outcome) => outcome.ledger.invariants().iter().any(|i| i.violated > 0),
        // Whoever interrupts it does not want it to stay.
        Err(why) => !why.contains("stopping"),
    };
    let keep = options.keep || violated;
    if keep {
        run.keep();
    } else {
        // A directory with something mounted on it can't be removed.
        disks = None;
    }
    let closed = run.close().await.map_err(|e| chain(&e));
    let left = demo::nothing_left(&dir, keep).and(closed);
    let kept = if keep { keep_files(&dir, disks, seed) } else { Ok(None) };
    let mut summary = match told {
        Ok(mut outcome) => {
            outcome.ledger.check(judge::NOTHING_LEFT, left);
            summary_of(&options, seed, outcome)
        }
        Err(why) => {
            say(&why);
            summary_of_failed(&options, seed, why)
        }
    };
    summary.notes.extend(notes);
    match kept {
        Ok(Some(kept)) => {
            say(&format!("logs, consoles and stores: {}, events: {}", kept.display(), kept.join(EVENTS).display()));
        }
        Ok(None) => {}
        Err(why) => say(&format!("what was left in {} is not whole: {why}", dir.display())),
    }
    end(&options, &summary)
}

/// Prints what it came to.
fn end(options: &RealOptions, summary: &Summary) -> ExitCode {
    for failure in &summary.failures {
        say(&format!("{} did not hold: {}", failure.invariant, failure.seen));
        say(&format!("    again: {}", failure.replay));
    }
    if options.json {
        print(&serde_json::to_string(summary).expect("a summary is JSON"));
    } else {
        print_for_people(summary);
    }
    if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is left out on every machine, and why.
const NOTES: [&str; 4] = [
    "network namespaces and nftables are not used: the relays spoil the same ways without root",
    "clock-jump is left out: a process has the wall clock of its machine",
    "power-loss, slow-disk, sync-fails, write-fails, read-fails, bit-flip, file-cut-off, older-copy and host-disk-full \
     are left out: the simulator's disk has them",
    "panic-storm and poison are left out: only the simulator's nodes can be made to panic",
];

fn summary_of_failed(options: &RealOptions, seed: u64, seen: String) -> Summary {
    let failure = Failure { seed, invariant: "the-run-itself".to_owned(), seen, replay: options.replay(seed) };
    Summary {
        seeds: 1,
        first_failing_seed: Some(seed),
        first_seed: seed,
        levels: vec!["process".to_owned()],
        failures: vec![failure],
        notes: NOTES.iter().map(ToString::to_string).collect(),
        ..Summary::default()
    }
}

fn summary_of(options: &RealOptions, seed: u64, outcome: Outcome) -> Summary {
    let mut failures = Vec::new();
    for invariant in outcome.ledger.invariants().iter().filter(|i| !i.held()) {
        let seen = match invariant.examples.as_slice() {
            [] => "it was not looked at".to_owned(),
            some => some.join("; "),
        };
        failures.push(Failure { seed, invariant: invariant.name.clone(), seen, replay: options.replay(seed) });
    }
    let clean = failures.is_empty();
    Summary {
        seeds: 1,
        clean: u64::from(clean),
        first_failing_seed: (!clean).then_some(seed),
        first_seed: seed,
        levels: vec!["process".to_owned()],
        virtual_region_seconds: outcome.busy.0 * options.regions as u64 / 1_000,
        cpu_seconds: outcome.cpu_seconds,
        operations: outcome.operations,
        unanswered: outcome.unknown,
        migrations: outcome.migrations,
        ends: outcome.ends,
        parked: outcome.parked,
        exits: outcome.tally.exits,
        faults_by_kind: outcome.tally.faults,
        invariants: outcome.ledger.into_invariants(),
        judges: outcome.judges,
        determinism_rechecked: 0,
        met: outcome.tally.met,
        killed_at: outcome.tally.killed_at,
        slowest: vec![Recovery { seed, took_ms: outcome.healed_in.0 }],
        failures,
        notes: NOTES.iter().map(ToString::to_string).collect(),
    }
}

/// Puts what is to be looked at where no later run sweeps it; none if it is not there.
fn keep_files(dir: &Path, disks: Option<Disks>, seed: u64) -> Result<Option<PathBuf>, String> {
    if let Some(disks) = disks {
        disks.keep()?;
    }
    let kept = dir.with_file_name(format!("novafed-kept-{seed}-{}", std::process::id()));
    std::fs::rename(dir, &kept).map_err(|e| format!("renaming it: {e}"))?;
    Ok(Some(kept))
}

fn print_for_people(summary: &Summary) {
    let counts = |of: &std::collections::BTreeMap<String, u64>| {
        let texts: Vec<String> = of.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
    };
    print(&format!(
        "{}: {} moves, {} requests, {} of them unanswered, {:.0} s of processor",
        if summary.is_clean() { "everything held" } else { "something did not hold" },
        summary.migrations,
        summary.operations,
        summary.unanswered,
        summary.cpu_seconds
    ));
    for invariant in &summary.invariants {
        print(&format!("{:<36} checked {:>9}  violated {}", invariant.name, invariant.checked, invariant.violated));
    }
    for (judge, count) in &summary.judges {
        print(&format!(
            "histories by {judge:<23} checked {:>9}  violated {}  not checked {}",
            count.checked, count.violated, count.not_checked
        ));
    }
    for recovery in &summary.slowest {
        print(&format!("settled {:.1} s after the last fault", recovery.took_ms as f64 / 1_000.0));
    }
    print(&format!("ends of moves: {}", counts(&summary.ends)));
    print(&format!("answered by a person: {}", counts(&summary.parked)));
    print(&format!("faults, {} kinds: {}", summary.faults_by_kind.len(), counts(&summary.faults_by_kind)));
    print(&format!("nodes ended by themselves: {}", counts(&summary.exits)));
    print(&format!("killed at points: {}", counts(&summary.killed_at)));
    for note in &summary.notes {
        print(&format!("note: {note}"));
    }
}

fn print(line: &str) {
    // Who closed stdout has enough.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
