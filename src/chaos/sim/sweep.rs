//! Many seeds. Owns: which thread runs which seed, which are run twice, what is printed, and the exit code.
//! Always: seeds are told apart by their number alone, so that it does not matter who runs which; an outcome says how
//! to see it again.
//! Not here: one seed (`run.rs`), the document (`chaos/summary.rs`).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::plan::{Plan, SimOptions};
use super::run::{self, Outcome};
use super::shrink;
use crate::chaos::summary::{Failure, Recovery, Summary};
use crate::clock::machine_nanos;

/// Each seed whose number is a multiple of this is run twice.
const RECHECKED_EVERY: u64 = 20;
/// Failures that are looked into.
const SHRUNK_MAX: usize = 3;

/// Which seeds, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepOptions {
    /// How many.
    pub seeds: u64,
    /// The first; a random one if there is none.
    pub first: Option<u64>,
    /// How many at once.
    pub threads: Option<u64>,
    /// Print a document.
    pub json: bool,
}

/// What many seeds came to.
#[derive(Debug, Default)]
struct Sum {
    summary: Summary,
    failed: Vec<(u64, String, String)>,
    /// Seeds that were run twice and went otherwise.
    odd: Vec<u64>,
}

/// The line that runs a seed again.
pub fn replay_line(options: &SimOptions, seed: u64, faults: Option<&[usize]>) -> String {
    let (min, max) = (options.regions.start(), options.regions.end());
    let mut line =
        format!("novafed chaos replay --seed {seed} --level {} --regions {min}..{max}", options.level.name());
    if let Some(faults) = faults {
        let numbers: Vec<String> = faults.iter().map(ToString::to_string).collect();
        line += &format!(" --faults {}", numbers.join(","));
    }
    line
}

fn summary_of(options: &SimOptions, outcome: &Outcome) -> Summary {
    let violation = outcome.violation();
    let name = |step: crate::decision::migration::steps::Step| step.name().to_owned();
    let mut met: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for ((kind, step), count) in &outcome.met.pairs {
        *met.entry(kind.name().to_owned()).or_default().entry(name(*step)).or_default() += count;
    }
    Summary {
        seeds: 1,
        clean: u64::from(violation.is_none()),
        first_failing_seed: violation.as_ref().map(|_| outcome.seed),
        first_seed: outcome.seed,
        levels: vec![options.level.name().to_owned()],
        virtual_region_seconds: outcome.busy.0 * outcome.regions as u64 / 1_000,
        cpu_seconds: 0.0,
        operations: outcome.operations,
        unanswered: outcome.unknown,
        migrations: outcome.migrations,
        ends: outcome.ends.iter().map(|(end, count)| (end.nova_status().to_owned(), *count)).collect(),
        parked: outcome.parked.clone(),
        exits: outcome.exits.iter().map(|(exit, count)| (exit.name().to_owned(), *count)).collect(),
        faults_by_kind: outcome.met.faults.iter().map(|(kind, count)| (kind.name().to_owned(), *count)).collect(),
        invariants: outcome.ledger.invariants().to_vec(),
        judges: outcome.judges.clone(),
        determinism_rechecked: 0,
        met,
        killed_at: outcome.met.killed_at.iter().map(|(point, count)| (point.to_string(), *count)).collect(),
        slowest: vec![Recovery { seed: outcome.seed, took_ms: outcome.healed_in.0 }],
        failures: Vec::new(),
        notes: Vec::new(),
    }
}

/// Runs many seeds and prints what they came to.
pub fn main(options: &SimOptions, sweep: &SweepOptions) -> ExitCode {
    if let Err(why) = run::can_simulate() {
        say(&why);
        return ExitCode::from(3);
    }
    run::quiet_planned_panics();
    let first = sweep.first.unwrap_or_else(random_seed);
    say(&format!("{} seeds from {first}, level {}", sweep.seeds, options.level.name()));
    let mut sum = run_all(options, first, sweep);
    sum.failed.sort();
    for (seed, invariant, seen) in sum.failed.iter().take(SHRUNK_MAX) {
        let plan = Plan::draw(*seed, options);
        say(&format!("seed {seed}: {invariant} did not hold: {seen}"));
        let kept = shrink::shrink(&plan, invariant);
        for at in &kept {
            let fault = &plan.faults[*at];
            say(&format!("    fault {at}: {} at {} for {}", fault.fault, fault.at, fault.lasts));
        }
        let replay = replay_line(options, *seed, Some(&kept));
        say(&format!("    replay: {replay}"));
        let failure = Failure { seed: *seed, invariant: invariant.clone(), seen: seen.clone(), replay };
        sum.summary.failures.push(failure);
    }
    for seed in &sum.odd {
        say(&format!("seed {seed} went otherwise the second time; see: {}", replay_line(options, *seed, None)));
    }
    let clean = sum.summary.is_clean() && sum.odd.is_empty();
    if sweep.json {
        let text = serde_json::to_string(&sum.summary).expect("a summary is JSON");
        print(&text);
    } else {
        print_for_people(&sum.summary);
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn random_seed() -> u64 {
    // Short enough to be typed.
    fastrand::u64(1..1_000_000_000)
}

fn run_all(options: &SimOptions, first: u64, sweep: &SweepOptions) -> Sum {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    let available = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let threads = sweep.threads.unwrap_or(available).min(sweep.seeds);
    let cpu = cpu_seconds();
    let began = machine_nanos();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= sweep.seeds {
                        return;
                    }
                    one(options, first.wrapping_add(n), &sum);
                    if (n + 1).is_multiple_of(100) {
                        say(&format!("{} seeds after {} s", n + 1, (machine_nanos() - began) / 1_000_000_000));
                    }
                }
            });
        }
    });
    let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.summary.cpu_seconds = cpu_seconds() - cpu;
    sum
}

fn one(options: &SimOptions, seed: u64, sum: &Mutex<Sum>) {
    let outcome = run::run(Plan::draw(seed, options), false);
    let twice = seed.is_multiple_of(RECHECKED_EVERY);
    let odd = twice && run::run(Plan::draw(seed, options), false).hash != outcome.hash;
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    sum.summary.add(&summary_of(options, &outcome));
    sum.summary.determinism_rechecked += u64::from(twice && !odd);
    if odd {
        sum.odd.push(seed);
    }
    if let Some((invariant, seen)) = outcome.violation() {
        sum.failed.push((seed, invariant, seen));
    }
}

/// Runs one seed and prints its events, what did not hold, and their hash.
pub fn replay(options: &SimOptions, seed: u64, faults: Option<&[usize]>) -> ExitCode {
    if let Err(why) = run::can_simulate() {
        say(&why);
        return ExitCode::from(3);
    }
    run::quiet_planned_panics();
    let plan = Plan::draw(seed, options);
    let plan = match faults {
        Some(kept) => plan.keeping(|at| kept.contains(&at)),
        None => plan,
    };
    for (n, fault) in plan.faults.iter().enumerate() {
        print(&format!("fault {n}: {} at {} for {}", fault.fault, fault.at, fault.lasts));
    }
    let outcome = run::run(plan, true);
    for line in &outcome.lines {
        print(line);
    }
    let violation = outcome.violation();
    match &violation {
        Some((invariant, seen)) => print(&format!("{invariant} did not hold: {seen}")),
        None => print("everything held"),
    }
    print(&format!("hash {:016x}", outcome.hash));
    if violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_for_people(summary: &Summary) {
    print(&format!(
        "{} of {} seeds clean; {} moves, {} requests, {} of them unanswered",
        summary.clean, summary.seeds, summary.migrations, summary.operations, summary.unanswered
    ));
    print(&format!(
        "{:.3} region-years in {:.0} s of processor: {:.2} region-years per processor-hour",
        summary.virtual_region_seconds as f64 / (365.25 * 86_400.0),
        summary.cpu_seconds,
        summary.region_years_per_cpu_hour()
    ));
    for invariant in &summary.invariants {
        print(&format!("{:<32} checked {:>9}  violated {}", invariant.name, invariant.checked, invariant.violated));
    }
    for (judge, count) in &summary.judges {
        print(&format!(
            "histories by {judge:<18} checked {:>9}  violated {}  not checked {}",
            count.checked, count.violated, count.not_checked
        ));
    }
    let faults: Vec<String> = summary.faults_by_kind.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    print(&format!("faults: {}", faults.join(", ")));
    print(&format!("{} seeds were run twice, with the same events", summary.determinism_rechecked));
}

/// Time of processors that this process has taken, seconds.
fn cpu_seconds() -> f64 {
    crate::clock::process_nanos() as f64 / 1e9
}

fn print(line: &str) {
    // Who closed stdout has enough.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
