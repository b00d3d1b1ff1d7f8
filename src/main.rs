//! The one binary. Owns nothing: it hands the command line over, and knows who runs what it starts.

use std::path::Path;
use std::process::ExitCode;

use novafed::chaos::demo::{self, DemoOptions, Plant};
use novafed::cli::{self, DemoArgs, PlantArg, Runners};
use novafed::drivers::embedded::process::{self, HostOptions};
use novafed::node;
use novafed::types::chain;

fn main() -> ExitCode {
    let runners = Runners {
        node: run_node,
        host: |directory, name, allow_faults| process::main(HostOptions { directory, name, allow_faults }),
        demo: run_demo,
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
