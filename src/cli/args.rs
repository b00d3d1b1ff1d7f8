//! What can be typed. Owns: commands, options, their help.
//! Always: noun, then verb; quantities are read as in configuration files.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::chaos::ChaosCommand;
use crate::config::{ListenConfig, quantity};
use crate::types::limits::{API_DEADLINE_MS_MAX, IDEMPOTENCY_KEY_BYTES_MAX};
use crate::types::{
    ClusterId, DirtyPattern, FederationName, HostName, JobId, Millis, NamespaceName, Place, RegionName, VmName,
};

const EXAMPLES: &str = "\
Where to begin:
  novafed demo                                        watch three regions on this machine
  novafed init --region eu --federation demo          make a region in ./novafed
  novafed node                                        run it
  novafed status                                      how this region sees the federation
  novafed vm create web --memory 256MiB --disk 1GiB   place, create and start a VM
  novafed vm list                                     what runs where, and how old that knowledge is
  novafed migration start web --to us/us-a --watch    move it while it runs

Commands talk to the region whose directory is given by --dir or NOVAFED_DIR (default ./novafed), over its admin socket.
With -o json they print the API's own document.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 not found, 5 node does not answer, 6 outcome unknown.";

/// Many independent VM clusters in many regions as one system.
#[derive(Debug, Parser)]
#[command(name = "novafed", version, after_help = EXAMPLES, propagate_version = true, max_term_width = 110)]
pub(super) struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Common options")]
pub(super) struct Global {
    /// Directory of the region [default: $NOVAFED_DIR, or ./novafed]
    #[arg(long, global = true, default_value_os_t = default_dir(), hide_default_value = true, value_name = "DIR")]
    pub dir: PathBuf,
    /// For people, or the API's document for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
    /// How long to wait for an answer
    #[arg(long, global = true, value_parser = timeout, default_value = "30s", value_name = "TIME")]
    pub timeout: Millis,
    /// Names the request: repeated with its key, a command is done at most once [default: a new one]
    #[arg(long, global = true, value_parser = key, value_name = "KEY")]
    pub key: Option<String>,
}

impl Global {
    pub fn json(&self) -> bool {
        self.output == Format::Json
    }
}

fn default_dir() -> PathBuf {
    std::env::var_os("NOVAFED_DIR").filter(|dir| !dir.is_empty()).unwrap_or_else(|| "./novafed".into()).into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(super) fn millis(text: &str) -> Result<Millis, String> {
    quantity::millis(text).map_err(|e| e.to_string())
}

fn timeout(text: &str) -> Result<Millis, String> {
    match millis(text)? {
        time if time.0 > 0 && time <= API_DEADLINE_MS_MAX => Ok(time),
        _ => Err(format!("it is 1 ms to {} s", API_DEADLINE_MS_MAX.0 / 1_000)),
    }
}

fn key(text: &str) -> Result<String, String> {
    // A command may ask for several things; each has its number behind the key.
    const NUMBER_BYTES: usize = 4;
    let most = IDEMPOTENCY_KEY_BYTES_MAX - NUMBER_BYTES;
    match text.len() {
        1.. if text.len() <= most && text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(format!("a key is 1 to {most} visible ASCII characters")),
    }
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    quantity::bytes(text).map_err(|e| e.to_string())
}

/// A host.
#[derive(Debug, ClapArgs)]
pub struct HostArgs {
    /// Its name, as it stands in consoles; --dir is the host's own directory
    #[arg(long, value_name = "NAME")]
    pub name: Option<HostName>,
    /// Take plans of failures over its socket, for tests
    #[arg(long)]
    pub allow_faults: bool,
    #[command(subcommand)]
    pub verb: Option<HostVerb>,
}

/// What to do with hosts.
#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// List the hosts of a region that run
    List,
    /// Stop the hosts of a region (--dir is the region's), and with them its VMs
    Stop {
        /// Only this one
        host: Option<HostName>,
    },
}

/// The demo.
#[derive(Debug, Clone, ClapArgs)]
pub struct DemoArgs {
    /// Print one JSON document to standard output; the timeline stays on standard error
    #[arg(long)]
    pub json: bool,
    /// Memory that the moving VM really uses, MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(4..=4096))]
    pub memory_mib: u64,
    /// Disk of the moving VM, filled, MiB
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(4..=4096))]
    pub disk_mib: u64,
    /// Memory that it writes anew each second, MiB
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub dirty_mib_per_second: u64,
    /// Leave logs, consoles and stores in place, and say where
    #[arg(long)]
    pub keep: bool,
    /// Self-test of the judge: do what must never happen, so that the demo has to fail
    #[arg(long, hide = true)]
    pub plant: Option<PlantArg>,
}

/// A crime for the judge to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlantArg {
    /// A second copy of the moving VM, started at another host behind its owner's back.
    DoubleRun,
}

#[derive(Debug, Subcommand)]
pub(super) enum TreeVerb {
    /// Start an actor anew and forgive its crashes: the way out of a parked one
    Restart {
        /// Its supervisor and itself, as they stand in the tree, for example migrations/job-target-job-1-1-1
        #[arg(value_name = "SUPERVISOR/ACTOR")]
        actor: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new region in an empty directory
    Init(InitArgs),
    /// Run the node of a region until it is told to stop (SIGTERM, Ctrl-C); its VMs go on
    Node,
    /// Run or stop a host: the process that owns the VMs of a machine. Nodes start theirs by themselves
    #[command(args_conflicts_with_subcommands = true)]
    Host(HostArgs),
    /// Show it all on this machine: three regions, VMs that move while nodes are killed
    Demo(DemoArgs),
    /// Faults on purpose: in federations simulated by seed, and in the region that runs
    Chaos {
        #[command(subcommand)]
        verb: ChaosCommand,
    },
    /// The federation as this region sees it
    Status,
    /// Clusters of all regions
    Cluster {
        #[command(subcommand)]
        verb: ClusterVerb,
    },
    /// What all clusters have, use and reserve
    Inventory {
        #[command(subcommand)]
        verb: InventoryVerb,
    },
    /// Virtual machines
    Vm {
        #[command(subcommand)]
        verb: VmVerb,
    },
    /// Where a VM would go, and why
    Placement {
        #[command(subcommand)]
        verb: PlacementVerb,
    },
    /// Moves of running VMs
    Migration {
        #[command(subcommand)]
        verb: MigrationVerb,
    },
    /// Connections to the other regions
    Link {
        #[command(subcommand)]
        verb: ListVerb,
    },
    /// Long work: jobs, and clean-ups that are owed
    Operation {
        #[command(subcommand)]
        verb: ListVerb,
    },
    /// What happened in this region
    Event {
        #[command(subcommand)]
        verb: EventVerb,
    },
    /// The region's store
    Store {
        #[command(subcommand)]
        verb: StoreVerb,
    },
    /// The live tree of actors: state, restarts, queues
    Tree {
        #[command(subcommand)]
        verb: Option<TreeVerb>,
    },
    /// Metrics as Prometheus text
    Metrics,
    /// Print the API's description (OpenAPI); needs no node
    Openapi,
}

#[derive(Debug, ClapArgs)]
pub(super) struct InitArgs {
    /// The region's name
    #[arg(long)]
    pub region: RegionName,
    /// The federation that it belongs to
    #[arg(long)]
    pub federation: FederationName,
    /// The region's number, which no other region of the federation has or had
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub number: u32,
    /// UDP address to listen on for the other regions
    #[arg(long, default_value_t = ListenConfig::default().address, value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// A cluster of the region; can be given several times [default: one, called REGION-a]
    #[arg(long, value_name = "ID")]
    pub cluster: Vec<ClusterId>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ListVerb {
    /// List them
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum ClusterVerb {
    /// List clusters
    List {
        /// Only of this region
        #[arg(long)]
        region: Option<RegionName>,
    },
    /// Show one cluster
    Show {
        /// Its id, or region/id where several regions have one of that id
        cluster: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum InventoryVerb {
    /// Show it
    Show {
        /// Only of this region
        #[arg(long)]
        region: Option<RegionName>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum EventVerb {
    /// List events, the oldest first
    List {
        /// Only events after this sequence
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum StoreVerb {
    /// What is in it, and whether it takes new work
    Stats,
    /// Check every page and every value, while the node is stopped
    Verify,
    /// Seal everything with a new key, while the node is stopped
    Rekey,
}

#[derive(Debug, Subcommand)]
pub(super) enum VmVerb {
    /// Place, create and start a VM
    Create(CreateArgs),
    /// List VMs of all regions
    List {
        /// Only of this region
        #[arg(long)]
        region: Option<RegionName>,
        /// Only of this cluster
        #[arg(long)]
        cluster: Option<ClusterId>,
        /// Only in this state: running, paused, stopped, lost, receiving, retired, unknown
        #[arg(long)]
        state: Option<String>,
        /// Only with this label
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// Show one VM
    Show {
        /// Its id or name
        vm: String,
    },
    /// Have a VM run
    Start(ChangeArgs),
    /// Have a VM stopped; its disk stays
    Stop(ChangeArgs),
    /// Delete a VM and its disk
    Delete(ChangeArgs),
}

#[derive(Debug, ClapArgs)]
pub(super) struct ChangeArgs {
    /// Its id or name
    pub vm: String,
    /// Say what would happen, but change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum PlacementVerb {
    /// Say where a VM would go, and why nowhere else
    Explain(SpecArgs),
}

#[derive(Debug, ClapArgs)]
pub(super) struct CreateArgs {
    /// Say where it would go, but create nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub spec: SpecArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SpecArgs {
    /// Its name, unique in its namespace and region
    pub name: VmName,
    /// Namespace
    #[arg(long, default_value = "default")]
    pub namespace: NamespaceName,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu: u32,
    /// Memory
    #[arg(long, value_parser = bytes, default_value = "128MiB", value_name = "SIZE")]
    pub memory: u64,
    /// Disk
    #[arg(long, value_parser = bytes, default_value = "256MiB", value_name = "SIZE")]
    pub disk: u64,
    /// Free label; can be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    /// Region to place it in [default: the one that is asked]
    #[arg(long)]
    pub region: Option<RegionName>,
    /// Cluster to place it in [default: chosen]
    #[arg(long)]
    pub cluster: Option<ClusterId>,
    #[command(flatten)]
    pub program: ProgramArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// What a guest of the embedded driver does
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "What a guest of the embedded driver does")]
pub(super) struct ProgramArgs {
    /// Seed of all its contents
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Time between two ticks
    #[arg(long, value_parser = millis, default_value = "1s", value_name = "TIME")]
    pub tick: Millis,
    /// Memory that it fills at boot
    #[arg(long, value_parser = bytes, default_value = "0B", value_name = "SIZE")]
    pub resident: u64,
    /// Part of it that is written again and again [default: all of it]
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub working_set: Option<u64>,
    /// Rate of its memory writes, per second
    #[arg(long, value_parser = bytes, default_value = "0B", value_name = "SIZE")]
    pub dirty_rate: u64,
    /// Where they go; hot: nine of ten to a tenth of the pages
    #[arg(long, value_enum, default_value_t = Pattern::Sequential)]
    pub pattern: Pattern,
    /// Disk that it fills at first boot
    #[arg(long, value_parser = bytes, default_value = "0B", value_name = "SIZE")]
    pub disk_resident: u64,
    /// Rate of its disk writes, per second
    #[arg(long, value_parser = bytes, default_value = "0B", value_name = "SIZE")]
    pub disk_rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Pattern {
    Sequential,
    Random,
    Hot,
}

impl From<Pattern> for DirtyPattern {
    fn from(pattern: Pattern) -> Self {
        match pattern {
            Pattern::Sequential => DirtyPattern::Sequential,
            Pattern::Random => DirtyPattern::Random,
            Pattern::Hot => DirtyPattern::Hot,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct MoveArgs {
    /// Where it goes, region/cluster
    #[arg(long, value_name = "REGION/CLUSTER")]
    pub to: Place,
    /// How long the VM may stand still [default: the region's]
    #[arg(long, value_parser = millis, value_name = "TIME")]
    pub max_downtime: Option<Millis>,
    /// When its source resumes it by itself, if nothing was decided [default: the region's]
    #[arg(long, value_parser = millis, value_name = "TIME")]
    pub switch_deadline: Option<Millis>,
    /// Cap on the transfer, per second [default: the region's]
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub bandwidth: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MigrationVerb {
    /// Assess a move: what it takes, what may go wrong, whether it can start
    Plan {
        /// The VM's id or name
        vm: String,
        #[command(flatten)]
        to: MoveArgs,
    },
    /// Start a move: of a VM (--to), or what was planned (--plan)
    #[command(group = ArgGroup::new("what").required(true).args(["vm", "plan"]))]
    Start {
        /// The VM's id or name
        #[arg(requires = "to")]
        vm: Option<String>,
        /// Where it goes, region/cluster
        #[arg(long, value_name = "REGION/CLUSTER", conflicts_with = "plan")]
        to: Option<Place>,
        /// Start this plan
        #[arg(long, value_name = "PLAN")]
        plan: Option<crate::types::PlanId>,
        /// How long the VM may stand still [default: the region's]
        #[arg(long, value_parser = millis, value_name = "TIME", conflicts_with = "plan")]
        max_downtime: Option<Millis>,
        /// When its source resumes it by itself, if nothing was decided [default: the region's]
        #[arg(long, value_parser = millis, value_name = "TIME", conflicts_with = "plan")]
        switch_deadline: Option<Millis>,
        /// Cap on the transfer, per second [default: the region's]
        #[arg(long, value_parser = bytes, value_name = "SIZE", conflicts_with = "plan")]
        bandwidth: Option<u64>,
        /// Follow it to its end
        #[arg(long)]
        watch: bool,
    },
    /// List migrations out of this region (its target tells none of them)
    List {
        /// Only of this VM
        #[arg(long)]
        vm: Option<String>,
        /// Only in this state: pending, preparing, transferring, finalizing, synchronizing, parked, completed,
        /// rolled_back, cancelled
        #[arg(long)]
        state: Option<String>,
        /// Only with this status: pending, running, completed, failed, cancelled
        #[arg(long)]
        status: Option<String>,
    },
    /// Show one migration and its journal
    Show { job: JobId },
    /// Follow a migration to its end
    Watch { job: JobId },
    /// Stop a migration before its decision; the VM stays where it is
    Cancel(SteerArgs),
    /// Try a parked migration's step again
    Retry(SteerArgs),
    /// Find out how a step of unknown outcome ended
    Probe(SteerArgs),
    /// Undo to a running source, before the decision
    Undo(SteerArgs),
    /// Give a parked migration up, leaving what it owes to be cleaned up
    Abandon(SteerArgs),
}

#[derive(Debug, ClapArgs)]
pub(super) struct SteerArgs {
    /// The job
    pub job: JobId,
    /// Why, for the audit
    #[arg(long)]
    pub reason: Option<String>,
}
