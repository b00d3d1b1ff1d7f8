//! The demo: three regions, a busy VM that goes round the world, two nodes killed on the way, and a judge.
//! Owns: its options, its beginning and its end, also when it is interrupted. Always: it uses a region as anybody would,
//! over its API; whatever it finds out about VMs it finds in their own consoles, disks and memory.
//! Not here: regions as processes (`federation.rs`), what must hold (`invariants.rs`).

mod audit;
pub mod report;
mod scenario;
pub mod stage;
mod travel;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::task::Poll;

use tokio::signal::unix::{SignalKind, signal};

use self::report::{MoveReport, Report};
use self::scenario::Demo;
use self::stage::Stage;
use super::federation::HarnessError;
use super::invariants::Ledger;
use super::plant::Plant;
use super::process::{Run, processes_of};
use crate::types::chain;

/// Options of the demo; `novafed demo --help` has their defaults.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Print one JSON document to standard output; the timeline stays on standard error.
    pub json: bool,
    /// Memory that the moving VM really uses, MiB.
    pub memory_mib: u64,
    /// Disk of the moving VM, filled, MiB.
    pub disk_mib: u64,
    /// Memory that it writes anew each second, MiB.
    pub dirty_mib_per_second: u64,
    /// Leave logs, consoles and stores in place, and say where.
    pub keep: bool,
    /// Self-test of the judge: do what must never happen, so that the demo has to fail.
    pub plant: Option<Plant>,
}

impl DemoOptions {
    /// The binary that runs nodes: this one.
    pub fn binary(&self) -> Result<PathBuf, HarnessError> {
        std::env::current_exe().map_err(|e| HarnessError::Plan(format!("finding the path of this program: {e}")))
    }
}

/// Runs the demo in a runtime of its own.
pub fn run(options: DemoOptions) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(demo(options)),
        Err(error) => {
            Stage::open().head(&format!("starting the runtime: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo to its end, or to Ctrl-C, and removes all that it made. Success if everything held.
async fn demo(options: DemoOptions) -> ExitCode {
    let mut stage = Stage::open();
    // Before anything is made or swept: a signal's default would end the process in the middle of it.
    let mut interrupted = std::pin::pin!(interrupted());
    let made = tokio::select! {
        biased;
        name = &mut interrupted => {
            stage.head(name);
            return ExitCode::FAILURE;
        }
        made = Run::create() => made,
    };
    let mut run = match made {
        Ok(run) => run,
        Err(error) => {
            stage.head(&chain(&error));
            if options.json {
                print(&Report::failed(scenario::region_names(), chain(&error), stage.seconds()), true);
            }
            return ExitCode::FAILURE;
        }
    };
    if options.keep {
        run.keep();
    }
    let dir = run.dir().to_owned();
    let told = tokio::select! {
        biased;
        name = interrupted => Err(format!("{name}: stopping, and removing what was made")),
        told = story(options.clone(), &dir, &mut stage) => told.map_err(|e| chain(&e)),
    };
    stage.end();
    let closed = run.close().await;
    match told {
        Ok((moves, mut ledger)) => {
            ledger
                .check("nothing-left-behind", nothing_left(&dir, options.keep).and(closed.map_err(|e| e.to_string())));
            let invariants = ledger.into_invariants();
            let report = Report::of(scenario::region_names(), moves, scenario::MOVES, invariants, stage.seconds());
            print(&report, options.json);
            if options.keep {
                stage.head(&format!("logs, consoles and stores: {}", dir.display()));
            }
            if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            stage.head(&why);
            if options.json {
                print(&Report::failed(scenario::region_names(), why, stage.seconds()), true);
            }
            if let Err(error) = closed {
                stage.head(&chain(&error));
            }
            ExitCode::FAILURE
        }
    }
}

async fn story(options: DemoOptions, dir: &Path, stage: &mut Stage) -> Result<(Vec<MoveReport>, Ledger), HarnessError> {
    let plant = options.plant;
    let mut demo = Demo::open(options, dir, stage).await?;
    let moves = demo.play().await?;
    demo.audit_promises().await?;
    match plant {
        Some(Plant::DoubleRun) => demo.run_twice().await?,
        None => {}
    }
    demo.audit_witnesses()?;
    Ok((moves, demo.ledger))
}

/// The name of the signal that ended the demo.
pub(super) async fn interrupted() -> &'static str {
    let mut signals = [
        (SignalKind::interrupt(), "interrupted"),
        (SignalKind::terminate(), "terminated"),
        (SignalKind::hangup(), "hung up"),
    ]
    .into_iter()
    .filter_map(|(kind, name)| signal(kind).ok().map(|s| (s, name)))
    .collect::<Vec<_>>();
    std::future::poll_fn(move |context| {
        for (signal, name) in &mut signals {
            if signal.poll_recv(context).is_ready() {
                return Poll::Ready(*name);
            }
        }
        Poll::Pending
    })
    .await
}

pub(super) fn nothing_left(dir: &Path, kept: bool) -> Result<(), String> {
    let alive = processes_of(dir);
    match alive.first() {
        Some(one) => Err(format!("{} processes, one is {} ({})", alive.len(), one.pid, one.command)),
        None if dir.exists() && !kept => Err(format!("{} is still there", dir.display())),
        None => Ok(()),
    }
}

fn print(report: &Report, json: bool) {
    let text = if json {
        serde_json::to_string_pretty(report).unwrap_or_else(|e| format!("{{\"ok\":false,\"error\":\"{e}\"}}")) + "\n"
    } else {
        format!("\n{}", report.tables())
    };
    // Whoever closed the pipe does not want to read it.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
