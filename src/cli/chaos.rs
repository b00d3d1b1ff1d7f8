//! `novafed chaos`: what can be typed. Owns: its options and their help. Not here: what they do (`chaos/`, which `main`
//! hands in); faults of a region that runs, which go by its API (`inject.rs`).

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::args::PlantArg;
use super::inject::LiveVerb;

/// All that can be said after `chaos`.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum ChaosCommand {
    #[command(flatten)]
    Apart(ChaosVerb),
    #[command(flatten)]
    Live(LiveVerb),
}

/// Faults on purpose, apart from any region that runs.
#[derive(Debug, Clone, Subcommand)]
pub enum ChaosVerb {
    /// Simulate whole federations by seed, with faults, and check what must hold
    Sim(SimArgs),
    /// Run one seed of a simulation again and print what happened; the last line is the hash of its events
    Replay(ReplayArgs),
    /// Add summaries up and write a page that shows them, and a document with the same figures
    Report(ReportArgs),
    /// Run a federation of real processes on this machine under faults, and judge it from outside
    Run(RunArgs),
}

/// A run on real processes.
#[derive(Debug, Clone, ClapArgs)]
pub struct RunArgs {
    /// How long faults last; 0.5 is half a minute
    #[arg(long, value_parser = minutes, default_value = "5")]
    pub minutes: f64,
    /// Regions of the federation, 2 to 9
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=9))]
    pub regions: u64,
    /// Which faults come when, and what clients wish [default: a random one, which is printed]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print one JSON document to standard output; progress stays on standard error
    #[arg(long)]
    pub json: bool,
    /// Leave logs, consoles and stores in place, and say where; they are left anyway if something did not hold
    #[arg(long)]
    pub keep: bool,
    /// Self-test of the judge: do what must never happen, so that the run has to fail
    #[arg(long, hide = true)]
    pub plant: Option<PlantArg>,
}

/// How messages travel in a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    /// Whole messages, in memory: thousands of seeds
    Message,
    /// QUIC with mutual TLS on a simulated network: hundreds of seeds
    Full,
}

/// What is common to one seed and many.
#[derive(Debug, Clone, ClapArgs)]
pub struct WorldArgs {
    /// How messages travel
    #[arg(long, value_enum, default_value_t = LevelArg::Message)]
    pub level: LevelArg,
    /// Regions of each federation, drawn from this range
    #[arg(long, value_parser = regions, default_value = "3..7", value_name = "MIN..MAX")]
    pub regions: RangeInclusive<usize>,
}

/// Many seeds.
#[derive(Debug, Clone, ClapArgs)]
pub struct SimArgs {
    #[command(flatten)]
    pub world: WorldArgs,
    /// How many seeds
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// The first of them [default: a random one, which is printed]
    #[arg(long)]
    pub first: Option<u64>,
    /// Seeds that run at once [default: one for each processor]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub threads: Option<u64>,
    /// Print one JSON document to standard output; progress stays on standard error
    #[arg(long)]
    pub json: bool,
}

/// One seed.
#[derive(Debug, Clone, ClapArgs)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub world: WorldArgs,
    /// The seed
    #[arg(long)]
    pub seed: u64,
    /// Only these faults of its plan, by number, as in 0,3,7 [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub faults: Option<Vec<usize>>,
}

/// What is shown, and where.
#[derive(Debug, Clone, ClapArgs)]
pub struct ReportArgs {
    /// Files that `chaos sim --json` or an earlier report wrote
    #[arg(required = true, value_name = "SUMMARY.json")]
    pub summaries: Vec<PathBuf>,
    /// The directory for report.html and report.json, made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if (0.1..=20_160.0).contains(&minutes) => Ok(minutes),
        _ => Err(format!("'{text}' is not a time of 0.1 to 20160 minutes")),
    }
}

fn regions(text: &str) -> Result<RangeInclusive<usize>, String> {
    let bad = || format!("'{text}' is not a range of 2 to 9 regions: write MIN..MAX, for example 3..7");
    let (min, max) = text.split_once("..").unwrap_or((text, text));
    let (min, max): (usize, usize) = (min.parse().map_err(|_| bad())?, max.parse().map_err(|_| bad())?);
    if 2 <= min && min <= max && max <= 9 { Ok(min..=max) } else { Err(bad()) }
}
