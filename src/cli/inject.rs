//! `novafed chaos inject`, `list` and `stop`: faults in a region that runs. Owns: their options, and what people see.
//! Always: what is typed is judged by the region, which knows its peers, clusters and actors. Not here: faults of
//! simulations (`chaos.rs`).

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::args::{bytes, millis};
use super::output::{Output, note, span, word};
use super::vm::escaped;
use super::{CliError, own};
use crate::admin::client::{Ask, Client};
use crate::admin::{ChaosFault, ChaosFaults, FaultState, InjectFault, Page};
use crate::types::{
    ClusterId, CrashParameters, CutParameters, DelayParameters, Direction, ErrorCode, FaultId, FaultSpec,
    HostParameters, KillParameters, LoseParameters, Millis, NarrowParameters, RegionName, SlowStoreParameters,
};

/// Faults of a region that runs.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum LiveVerb {
    /// Inject a fault into the running region, for a time: for game days. Refused unless [chaos] allow = true
    Inject {
        #[command(subcommand)]
        kind: InjectKind,
    },
    /// List injected faults: those that are active, and the last that were
    List,
    /// End injected faults before their time
    Stop {
        /// The fault's id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        fault: Option<FaultId>,
        /// All that are active
        #[arg(long)]
        all: bool,
    },
}

/// What is common to all kinds that last.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct For {
    /// For how long; it ends by itself
    #[arg(long = "for", value_name = "TIME", value_parser = millis)]
    lasting: Millis,
    #[command(flatten)]
    why: Why,
}

/// What is common to all kinds.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct Why {
    /// Why, for the status and the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Say what would happen, but do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which way between this region and the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum WayArg {
    Both,
    Out,
    In,
}

impl From<WayArg> for Direction {
    fn from(way: WayArg) -> Direction {
        match way {
            WayArg::Both => Direction::Both,
            WayArg::Out => Direction::Out,
            WayArg::In => Direction::In,
        }
    }
}

/// A peer and a way.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct LinkArgs {
    /// The peer
    peer: RegionName,
    /// Only what goes out to it, or what comes in
    #[arg(long, value_enum, default_value_t = WayArg::Both)]
    direction: WayArg,
}

/// The kinds of faults.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum InjectKind {
    /// Cut the link to a peer; one way: what is sent that way never arrives
    Cut {
        #[command(flatten)]
        link: LinkArgs,
        #[command(flatten)]
        time: For,
    },
    /// Delay messages to and from a peer
    Delay {
        #[command(flatten)]
        link: LinkArgs,
        /// So much longer, each way
        #[arg(long, value_parser = millis, value_name = "TIME")]
        by: Millis,
        /// And up to so much more, drawn for each message
        #[arg(long, value_parser = millis, value_name = "TIME", default_value = "0ms")]
        jitter: Millis,
        #[command(flatten)]
        time: For,
    },
    /// Lose messages to and from a peer
    Lose {
        #[command(flatten)]
        link: LinkArgs,
        /// So many of a thousand
        #[arg(long)]
        permille: u32,
        #[command(flatten)]
        time: For,
    },
    /// Narrow what transfers to and from a peer carry
    Narrow {
        #[command(flatten)]
        link: LinkArgs,
        /// Per second, all transfers together, each way
        #[arg(long, value_parser = bytes, value_name = "SIZE")]
        to: u64,
        #[command(flatten)]
        time: For,
    },
    /// Have calls of a cluster's host go wrong
    Host {
        /// The cluster
        cluster: ClusterId,
        /// The kind of call: inventory, start, pauseForSwitch, hold, activate, ...
        #[arg(long)]
        call: String,
        /// How it goes wrong: slow, refuses, hangs, saysFailed, dies, forgets
        #[arg(long)]
        how: String,
        /// With --how slow: so much later
        #[arg(long, value_parser = millis, value_name = "TIME")]
        late: Option<Millis>,
        /// The next so many calls of that kind
        #[arg(long, default_value_t = 1)]
        times: u32,
        #[command(flatten)]
        time: For,
    },
    /// Have each commit of the region's store take longer
    SlowStore {
        /// So much longer
        #[arg(long, value_parser = millis, value_name = "TIME")]
        by: Millis,
        #[command(flatten)]
        time: For,
    },
    /// Crash an actor once; its supervisor starts it anew
    Crash {
        /// Its supervisor and itself, as they stand in novafed tree, for example clusters/cluster-eu-a
        #[arg(value_name = "SUPERVISOR/ACTOR")]
        actor: String,
        #[command(flatten)]
        why: Why,
    },
    /// Have the node send SIGKILL to itself, now or where a migration passes a point; nothing starts it again
    Kill {
        /// The point, step:side:phase, for example hold:source:before-write
        #[arg(long, value_name = "POINT", requires = "lasting")]
        at: Option<String>,
        /// With --at: how long it waits for that
        #[arg(long = "for", value_name = "TIME", value_parser = millis, requires = "at")]
        lasting: Option<Millis>,
        #[command(flatten)]
        why: Why,
    },
}

impl InjectKind {
    /// The request, and whether it is only to be tried.
    fn request(self) -> (InjectFault, bool) {
        let (spec, lasting, why) = match self {
            Self::Cut { link, time } => {
                let spec = FaultSpec::Cut(CutParameters { peer: link.peer, direction: link.direction.into() });
                (spec, Some(time.lasting), time.why)
            }
            Self::Delay { link, by: delay_ms, jitter: jitter_ms, time } => {
                let (peer, direction) = (link.peer, link.direction.into());
                let spec = FaultSpec::Delay(DelayParameters { peer, delay_ms, jitter_ms, direction });
                (spec, Some(time.lasting), time.why)
            }
            Self::Lose { link, permille, time } => {
                let (peer, direction) = (link.peer, link.direction.into());
                (FaultSpec::Lose(LoseParameters { peer, permille, direction }), Some(time.lasting), time.why)
            }
            Self::Narrow { link, to: bytes_per_second, time } => {
                let (peer, direction) = (link.peer, link.direction.into());
                let spec = FaultSpec::Narrow(NarrowParameters { peer, bytes_per_second, direction });
                (spec, Some(time.lasting), time.why)
            }
            Self::Host { cluster, call, how, late: late_ms, times, time } => {
                let spec = FaultSpec::Host(HostParameters { cluster, call, how, late_ms, times });
                (spec, Some(time.lasting), time.why)
            }
            Self::SlowStore { by: delay_ms, time } => {
                (FaultSpec::SlowStore(SlowStoreParameters { delay_ms }), Some(time.lasting), time.why)
            }
            Self::Crash { actor, why } => (FaultSpec::Crash(CrashParameters { actor }), None, why),
            Self::Kill { at, lasting, why } => (FaultSpec::Kill(KillParameters { at }), lasting, why),
        };
        (InjectFault { spec, duration_ms: lasting, reason: why.reason }, why.dry_run)
    }
}

pub(super) async fn live(client: &Client, out: &mut Output, verb: LiveVerb) -> Result<(), CliError> {
    match verb {
        LiveVerb::Inject { kind } => inject(client, out, kind).await,
        LiveVerb::List => list(client, out).await,
        LiveVerb::Stop { fault: Some(id), .. } => {
            let fault = stop(client, id).await?;
            if out.json() {
                return Ok(out.document(&fault)?);
            }
            Ok(out.line(&sentence(&fault))?)
        }
        LiveVerb::Stop { fault: None, all: true } => stop_all(client, out).await,
        // Refused by clap before it comes to this.
        LiveVerb::Stop { fault: None, all: false } => {
            Err(own(ErrorCode::InvalidArgument, "say which fault ends, or --all"))
        }
    }
}

async fn inject(client: &Client, out: &mut Output, kind: InjectKind) -> Result<(), CliError> {
    let (request, dry_run) = kind.request();
    let path = if dry_run { "/v2/chaos/faults?dryRun=true" } else { "/v2/chaos/faults" };
    let fault: ChaosFault = client.typed(Ask::post(path).body(&request)).await?;
    if out.json() {
        return Ok(out.document(&fault)?);
    }
    out.line(&sentence(&fault))?;
    if fault.state == FaultState::Active && fault.spec.lasts() {
        note(&format!("end it before its time with: novafed chaos stop {}", fault.id));
    }
    Ok(())
}

async fn stop(client: &Client, id: FaultId) -> Result<ChaosFault, CliError> {
    Ok(client.typed(Ask::delete(format!("/v2/chaos/faults/{}", escaped(&id.to_string())))).await?)
}

async fn stop_all(client: &Client, out: &mut Output) -> Result<(), CliError> {
    let faults: ChaosFaults = client.get("/v2/chaos/faults").await?;
    let mut stopped = Vec::new();
    for fault in faults.active {
        stopped.push(stop(client, fault.id).await?);
    }
    if out.json() {
        return Ok(out.document(&Page::last(stopped))?);
    }
    if stopped.is_empty() {
        return Ok(out.line("No faults are active.")?);
    }
    for fault in stopped {
        out.line(&sentence(&fault))?;
    }
    Ok(())
}

async fn list(client: &Client, out: &mut Output) -> Result<(), CliError> {
    let faults: ChaosFaults = client.get("/v2/chaos/faults").await?;
    if out.json() {
        return Ok(out.document(&faults)?);
    }
    let row = |fault: &ChaosFault| {
        vec![
            fault.id.to_string(),
            fault.spec.kind().to_owned(),
            fault.subject.clone(),
            match fault.state {
                FaultState::Active => format!("{} left", span(fault.left_ms)),
                FaultState::Planned | FaultState::Ended => word(&fault.state),
            },
            format!("uid {}", fault.caller.uid),
            fault.ended_because.clone().unwrap_or_default(),
            fault.reason.clone(),
        ]
    };
    let nothing = match faults.allowed {
        true => "No faults were injected since the node was started.",
        false => "This region takes no faults: [chaos] allow is not true in its node.toml.",
    };
    let rows = faults.active.iter().chain(&faults.ended).map(row).collect();
    Ok(out.table(&["fault", "kind", "of", "state", "by", "over because", "reason"], rows, nothing)?)
}

/// A fault in a line.
fn sentence(fault: &ChaosFault) -> String {
    let ChaosFault { id, effect, .. } = fault;
    match fault.state {
        FaultState::Planned => format!("it would be so: {effect}"),
        FaultState::Active if fault.spec.lasts() => format!("{id}: {effect}, for {}", span(fault.left_ms)),
        FaultState::Active => format!("{id}: {effect}"),
        FaultState::Ended => {
            let why = fault.ended_because.as_deref().unwrap_or("its time is over");
            format!("{id} is over ({why}): {effect}")
        }
    }
}
