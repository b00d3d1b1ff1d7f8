//! The demo as somebody runs it: it holds, it finds a planted crime, and it leaves nothing behind, however it ends.
//! The moving VM is smaller here than by default, because these builds are slow; nothing else differs.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use novafed::chaos::process::{processes_of, wait_for};
use novafed::types::Millis;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;

/// One demo at a time: each has six processes.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn command(temporary: &TempDir, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_novafed"));
    command
        .args(["demo", "--json", "--memory-mib", "16", "--disk-mib", "32", "--dirty-mib-per-second", "2"])
        .args(extra)
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null());
    command
}

fn run(temporary: &TempDir, extra: &[&str]) -> (Output, Value) {
    let output = command(temporary, extra).output().expect("the demo starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}; it said:\n{told}"));
    (output, document)
}

fn nothing_is_left(temporary: &Path) {
    let left: Vec<_> = std::fs::read_dir(temporary).expect("a directory").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let alive = processes_of(temporary);
    assert!(alive.is_empty(), "still alive: {alive:?}");
}

fn violated<'a>(document: &'a Value, name: &str) -> &'a Value {
    let all = document["invariants"].as_array().expect("invariants");
    &all.iter().find(|i| i["name"] == name).unwrap_or_else(|| panic!("no invariant {name}"))["violated"]
}

#[test]
fn everything_holds_and_nothing_is_left_behind() {
    let _alone = alone();
    let temporary = TempDir::new().expect("a directory");
    let (output, document) = run(&temporary, &[]);
    let said = format!("{document:#}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && document["ok"] == true, "{said}");
    assert_eq!(document["regions"], serde_json::json!(["eu", "us", "ap"]));
    let moves = document["migrations"].as_array().expect("migrations");
    let killed: Vec<_> = moves.iter().map(|m| m["killed"].as_str()).collect();
    assert_eq!(killed, [None, Some("source"), Some("target")], "{said}");
    for m in moves {
        assert_eq!(m["result"], "completed", "{said}");
        assert!(m["downtimeMs"].as_f64().is_some_and(|ms| ms > 0.0), "{said}");
        assert!(m["bytesTotal"].as_u64().is_some_and(|bytes| bytes >= 48 << 20), "{said}");
    }
    for invariant in document["invariants"].as_array().expect("invariants") {
        assert!(invariant["checked"].as_u64().is_some_and(|n| n > 0) && invariant["violated"] == 0, "{said}");
    }
    nothing_is_left(temporary.path());
}

#[test]
fn a_planted_double_run_makes_it_fail() {
    let _alone = alone();
    let temporary = TempDir::new().expect("a directory");
    let (output, document) = run(&temporary, &["--plant", "double-run"]);
    let said = format!("{document:#}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && document["ok"] == false, "{said}");
    assert!(violated(&document, "no-double-run").as_u64().is_some_and(|n| n > 0), "{said}");
    assert_eq!(violated(&document, "memory-and-disk-match-the-program"), 0, "{said}");
    nothing_is_left(temporary.path());
}

/// Starts a demo and waits until its regions run VMs.
async fn under_way(temporary: &TempDir) -> Child {
    let mut command = tokio::process::Command::from(command(temporary, &[]));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().expect("it starts");
    let consoles = async || {
        let found =
            files_below(temporary.path()).into_iter().filter(|f| f.ends_with(".log") && f.contains("/console/"));
        let found = found.count();
        if found > 2 { Ok(()) } else { Err(format!("{found} consoles")) }
    };
    wait_for("VMs to run", Millis(60_000), consoles).await.expect("a demo under way");
    child
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path.display().to_string()) }
    }
    files
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?)).expect("it lives");
    rustix::process::kill_process(pid, signal).expect("a signal");
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the whole test is to be alone, and its runtime has no other task")]
async fn ctrl_c_leaves_nothing_behind() {
    let _alone = alone();
    let temporary = TempDir::new().expect("a directory");
    let child = under_way(&temporary).await;
    signal(&child, rustix::process::Signal::INT);
    let ended = child.wait_with_output();
    let ended = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends").expect("a status");
    assert_eq!(ended.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&ended.stdout).expect("one document, also of a run that was ended");
    assert_eq!(document["ok"], false);
    assert!(document["error"].as_str().is_some_and(|why| why.contains("interrupted")), "{document}");
    nothing_is_left(temporary.path());
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the whole test is to be alone, and its runtime has no other task")]
async fn what_a_killed_demo_left_is_swept_by_the_next() {
    let _alone = alone();
    let temporary = TempDir::new().expect("a directory");
    let mut first = under_way(&temporary).await;
    first.kill().await.expect("SIGKILL");
    assert!(!processes_of(temporary.path()).is_empty(), "its hosts go on");
    let left: Vec<_> = std::fs::read_dir(temporary.path()).expect("a directory").flatten().map(|e| e.path()).collect();
    let [left] = left.as_slice() else { panic!("one run's directory, not {left:?}") };

    let mut second = under_way(&temporary).await;
    wait_for("the first one's directory to be swept", Millis(60_000), async || match processes_of(left).len() {
        0 if !left.exists() => Ok(()),
        alive => Err(format!("{alive} processes, directory {}", if left.exists() { "there" } else { "gone" })),
    })
    .await
    .expect("a sweep");
    signal(&second, rustix::process::Signal::TERM);
    tokio::time::timeout(Duration::from_secs(20), second.wait()).await.expect("it ends").expect("a status");
    nothing_is_left(temporary.path());
}
