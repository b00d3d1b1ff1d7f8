//! The command line. Owns: commands, what people see, exit codes.
//! Always: it speaks only the API, except where it makes a region (`init`), runs one or works on its files; answers go to
//! stdout, everything else to stderr; an error is a message and a hint.
//! Not here: requests (`admin/client.rs`), documents (`admin/views.rs`).

mod args;
mod chaos;
mod host;
mod init;
mod inject;
mod migration;
mod observe;
mod output;
mod store;
mod vm;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::admin::client::{Client, ClientError, fresh_key};
use crate::types::{ApiError, ErrorCode, HostName, chain};
use args::{Args, Command};
pub use args::{DemoArgs, HostArgs, HostVerb, PlantArg};
use chaos::ChaosCommand;
pub use chaos::{ChaosVerb, LevelArg, ReplayArgs, ReportArgs, RunArgs, SimArgs, WorldArgs};
use output::Output;
pub use output::complain;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The API said no, or could not be asked.
    #[error("{0}")]
    Api(#[from] ClientError),
    /// The command itself found out that it can't be done.
    #[error("{0}")]
    Own(#[from] ApiError),
    /// stdout is closed: whoever read it has enough.
    #[error("writing the answer: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Api(e) => e.code(),
            Self::Own(e) => e.code,
            Self::Output(_) => ErrorCode::Internal,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Api(e) => e.hint(),
            Self::Own(e) => e.hint.clone(),
            Self::Output(_) => String::new(),
        }
    }
}

/// An error that the command itself makes.
fn own(code: ErrorCode, message: impl Into<String>) -> CliError {
    CliError::Own(ApiError::new(code, message))
}

/// What the command line starts but does not contain; supplied by `main`, which alone names them all.
pub struct Runners {
    /// Runs the node of the region in a directory.
    pub node: fn(&Path) -> ExitCode,
    /// Runs a host in a directory, under a name, with faults allowed or not.
    pub host: fn(PathBuf, HostName, bool) -> ExitCode,
    /// Runs the demo.
    pub demo: fn(DemoArgs) -> ExitCode,
    /// Runs chaos.
    pub chaos: fn(ChaosVerb) -> ExitCode,
}

/// Runs the command line `args`, the program's name included, to its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, runners: &Runners) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            // Help and version are answers: clap prints them to stdout and gives 0; mistakes give 2.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    match args.command {
        Command::Node => return (runners.node)(&args.global.dir),
        Command::Demo(demo) => return (runners.demo)(demo),
        Command::Chaos { verb: ChaosCommand::Apart(verb) } => return (runners.chaos)(verb),
        Command::Host(HostArgs { name, allow_faults, verb: None }) => {
            let Some(name) = name else {
                output::complain("novafed host needs --name and --dir", "nodes start their hosts by themselves");
                return ExitCode::from(2);
            };
            return (runners.host)(args.global.dir, name, allow_faults);
        }
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            output::complain(&format!("starting the runtime: {e}"), "");
            return ExitCode::FAILURE;
        }
    };
    let json = args.global.json();
    let key = args.global.key.clone().unwrap_or_else(fresh_key);
    match runtime.block_on(command(args, key.clone())) {
        Ok(code) => ExitCode::from(code),
        Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            match &e {
                CliError::Api(ClientError::Refused { document, .. }) if json => output::complain_json(document),
                _ => output::complain(&chain(&e), &e.hint()),
            }
            if e.code() == ErrorCode::OutcomeUnknown {
                output::note(&format!("  key: {key} (the same command with --key {key} is done at most once)"));
            }
            ExitCode::from(e.code().exit_code())
        }
    }
}

/// Runs one command; the exit code if it did what it was told.
async fn command(args: Args, key: String) -> Result<u8, CliError> {
    let client = Client::new(&args.global.dir).deadline(args.global.timeout).keyed(key);
    let mut out = Output::new(args.global.json());
    match args.command {
        Command::Init(init) => init::init(&args.global.dir, init, &mut out)?,
        Command::Host(HostArgs { verb: Some(verb), .. }) => host::host(&args.global.dir, &mut out, verb).await?,
        // Taken by `run`.
        Command::Node
        | Command::Demo(_)
        | Command::Chaos { verb: ChaosCommand::Apart(_) }
        | Command::Host(HostArgs { verb: None, .. }) => {}
        Command::Chaos { verb: ChaosCommand::Live(verb) } => inject::live(&client, &mut out, verb).await?,
        Command::Status => observe::status(&client, &mut out).await?,
        Command::Cluster { verb } => observe::cluster(&client, &mut out, verb).await?,
        Command::Inventory { verb } => observe::inventory(&client, &mut out, verb).await?,
        Command::Vm { verb } => vm::vm(&client, &mut out, verb).await?,
        Command::Placement { verb } => vm::placement(&client, &mut out, verb).await?,
        Command::Migration { verb } => return migration::migration(&client, &mut out, verb).await,
        Command::Link { verb } => observe::link(&client, &mut out, verb).await?,
        Command::Operation { verb } => observe::operation(&client, &mut out, verb).await?,
        Command::Event { verb } => observe::event(&client, &mut out, verb).await?,
        Command::Store { verb } => return store::store(&client, &args.global.dir, &mut out, verb).await,
        Command::Tree { verb } => observe::tree(&client, &mut out, verb).await?,
        Command::Metrics => out.raw(&client.raw(crate::admin::client::Ask::get("/v2/metrics")).await?)?,
        Command::Openapi => out.document(&crate::admin::openapi())?,
    }
    Ok(0)
}
