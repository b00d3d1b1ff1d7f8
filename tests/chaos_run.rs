//! Level 6, real processes: a short run of `novafed chaos run` as somebody runs it. It holds under many kinds of faults,
//! it finds a planted crime, and it leaves nothing behind, however it ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use novafed::chaos::process::{processes_of, wait_for};
use novafed::chaos::summary::Summary;
use novafed::types::Millis;
use tempfile::TempDir;

/// One run at a time: each has seven processes.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn command(temporary: &TempDir, minutes: &str, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_novafed"));
    command
        .args(["chaos", "run", "--json", "--regions", "3", "--seed", "7", "--minutes", minutes])
        .args(extra)
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null());
    command
}

fn run(temporary: &TempDir, minutes: &str, extra: &[&str]) -> (Output, Summary) {
    let output = command(temporary, minutes, extra).output().expect("the run starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}; it said:\n{told}"));
    (output, summary)
}

fn violated(summary: &Summary, name: &str) -> u64 {
    let found = summary.invariants.iter().find(|invariant| invariant.name == name);
    found.unwrap_or_else(|| panic!("no invariant {name}")).violated
}

/// What lies directly in a directory.
fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn nothing_is_left(temporary: &Path) {
    assert_eq!(entries(temporary), Vec::<String>::new(), "left behind");
    let alive = processes_of(temporary);
    assert!(alive.is_empty(), "still alive: {alive:?}");
}

#[test]
fn a_short_run_holds_under_many_kinds_of_faults_and_leaves_nothing_behind() {
    let _alone = alone();
    let temporary = TempDir::new().expect("a directory");
    let (output, summary) = run(&temporary, "0.45", &[]);
    let said = format!("{summary:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && summary.is_clean(), "{said}");
    assert_eq!((summary.levels.as_slice(), summary.seeds, summary.first_seed), (&["process".to_owned()][..], 1, 7));
    assert!(summary.migrations >= 10, "{said}");
    assert!(summary.ends.get("completed").is_some_and(|count| *count >= 5), "{said}");
    assert!(summary.faults_by_kind.len() >= 8, "{said}");
    assert!(summary.invariants.iter().all(|invariant| invariant.checked > 0 && invariant.violated == 0), "{said}");
    assert_eq!(summary.judges.len(), 3, "{said}");
    assert!(summary.judges.values().all(|judge| judge.violated == 0), "{said}");
    assert!(summary.virtual_region_seconds >= 3 * 25 && summary.cpu_seconds > 0.0, "{said}");
    nothing_is_left(temporary.path());
}

#[test]
fn a_planted_double_run_makes_it_fail_and_its_files_stay() {
    let _alone = alone();
    let temporary = TempDir::new().expect("a directory");
    let (output, summary) = run(&temporary, "0.15", &["--plant", "double-run"]);
    let told = String::from_utf8_lossy(&output.stderr);
    let said = format!("{summary:#?}\n{told}");
    assert!(!output.status.success() && !summary.is_clean(), "{said}");
    assert!(violated(&summary, "no-double-run") > 0, "{said}");
    assert!(violated(&summary, "runs-where-owned") > 0, "{said}");
    assert_eq!(violated(&summary, "once-per-key"), 0, "{said}");
    let failure = summary.failures.iter().find(|failure| failure.invariant == "no-double-run").expect("a failure");
    assert_eq!(failure.replay, "novafed chaos run --minutes 0.15 --regions 3 --seed 7");
    assert!(told.contains(&failure.replay) && failure.seen.contains("ran twice"), "{said}");
    // What shows it lies there, and nothing runs.
    let kept = entries(temporary.path());
    let [kept] = kept.as_slice() else { panic!("one directory, not {kept:?}\n{said}") };
    assert!(told.contains(kept.as_str()), "{said}");
    for file in ["events.log", "eu.log", "eu/state.redb", "eu/hosts/eu-a/console"] {
        assert!(temporary.path().join(kept).join(file).exists(), "{file} is not in {kept}");
    }
    let alive = processes_of(temporary.path());
    assert!(alive.is_empty(), "still alive: {alive:?}");
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the whole test is to be alone, and its runtime has no other task")]
async fn ctrl_c_in_the_middle_of_faults_leaves_nothing_behind() {
    let _alone = alone();
    let temporary = TempDir::new().expect("a directory");
    let mut command = tokio::process::Command::from(command(&temporary, "5", &[]));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().expect("it starts");
    let events = || {
        let run = entries(temporary.path()).pop()?;
        std::fs::read_to_string(temporary.path().join(run).join("events.log")).ok()
    };
    wait_for("faults to be at work", Millis(60_000), async || match events() {
        Some(text) if text.lines().filter(|line| line.contains(" chaos ")).count() > 3 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .expect("a run under way");
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?)).expect("it lives");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let ended = ended.expect("it ends").expect("a status");
    assert_eq!(ended.status.code(), Some(1));
    let summary: Summary = serde_json::from_slice(&ended.stdout).expect("one document, also of a run that was ended");
    assert!(!summary.is_clean() && summary.failures[0].seen.contains("interrupted"), "{summary:?}");
    nothing_is_left(temporary.path());
}
