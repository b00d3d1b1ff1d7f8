//! The one binary. Owns nothing: it hands the command line over, and knows who runs what it starts.

use std::path::Path;
use std::process::ExitCode;

use novafed::chaos::demo::{self, DemoOptions};
use novafed::chaos::plant::Plant;
use novafed::chaos::real::{self, RealOptions};
use novafed::chaos::report::{self, ReportError};
use novafed::chaos::sim::plan::{Level, SimOptions};
use novafed::chaos::sim::sweep;
use novafed::cli::{self, ChaosVerb, DemoArgs, LevelArg, PlantArg, ReportArgs, Runners, WorldArgs};
use novafed::drivers::embedded::process::{self, HostOptions};
use novafed::node;
use novafed::types::chain;

fn main() -> ExitCode {
    let runners = Runners {
        node: run_node,
        host: |directory, name, allow_faults| process::main(HostOptions { directory, name, allow_faults }),
        demo: run_demo,
        chaos: run_chaos,
    };
    cli::run(std::env::args_os(), &runners)
}

fn run_node(dir: &Path) -> ExitCode {
    match node::run(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&chain(&error), &error.advice());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run_demo(args: DemoArgs) -> ExitCode {
    demo::run(DemoOptions {
        json: args.json,
        memory_mib: args.memory_mib,
        disk_mib: args.disk_mib,
        dirty_mib_per_second: args.dirty_mib_per_second,
        keep: args.keep,
        plant: args.plant.map(|PlantArg::DoubleRun| Plant::DoubleRun),
    })
}

fn run_chaos(verb: ChaosVerb) -> ExitCode {
    let world = |world: WorldArgs| SimOptions {
        level: match world.level {
            LevelArg::Message => Level::Message,
            LevelArg::Full => Level::Full,
        },
        regions: world.regions,
    };
    match verb {
        ChaosVerb::Sim(args) => {
            let sweep =
                sweep::SweepOptions { seeds: args.seeds, first: args.first, threads: args.threads, json: args.json };
            sweep::main(&world(args.world), &sweep)
        }
        ChaosVerb::Run(args) => real::main(RealOptions {
            minutes: args.minutes,
            regions: usize::try_from(args.regions).unwrap_or(usize::MAX),
            seed: args.seed,
            json: args.json,
            keep: args.keep,
            plant: args.plant.map(|PlantArg::DoubleRun| Plant::DoubleRun),
        }),
        ChaosVerb::Replay(args) => sweep::replay(&world(args.world), args.seed, args.faults.as_deref()),
        ChaosVerb::Report(args) => run_report(&args),
    }
}

fn run_report(args: &ReportArgs) -> ExitCode {
    let report = |args: &ReportArgs| -> Result<(), ReportError> {
        let summary = report::read(&args.summaries)?;
        let written = report::write(&summary, &args.out)?;
        report::announce(&summary, &written);
        Ok(())
    };
    match report(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&chain(&error), error.advice());
            ExitCode::from(error.exit_code())
        }
    }
}
