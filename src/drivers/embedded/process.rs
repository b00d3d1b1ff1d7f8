//! The host process: `novafed host`. Owns: its directory, its lock, its socket and its end.
//! Always: one process per directory, by a lock that dies with it; whoever may not use the directory may not speak.
//! Not here: what calls do (`host.rs`), starting it (`launch.rs`).
//!
//! ```text
//! <dir>/lock      held while it lives; "<pid> <start time in clock ticks since boot>"
//! <dir>/pid       the same, for people
//! <dir>/sock      its socket, 0600
//! <dir>/state.redb what outlives it (state.rs)
//! <dir>/disks/    one file per VM       <dir>/console/  the witness
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::host::{Host, HostOpenError, Session};
use super::media::make_directory;
use super::wire::{self, AdminCall, HOST_PROTOCOL, Hello, Purpose, Request, Response, Welcome};
use crate::drivers::HostError;
use crate::types::limits::{REQUEST_MS, STOP_MS_MAX};
use crate::types::{HostName, chain};

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Calls of one session under way at once; more wait unread.
const CALLS_MAX: usize = 256;
/// Longest path that a socket address takes, by the kernel.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// The lock is tried so often, with so much time between.
const LOCK_TRIES: u32 = 20;
const LOCK_RETRY: std::time::Duration = std::time::Duration::from_millis(10);

/// How to run a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOptions {
    /// Its directory.
    pub directory: PathBuf,
    /// Its name, as it stands in consoles.
    pub name: HostName,
    /// Whether faults may be planned over its socket.
    pub allow_faults: bool,
}

/// Why the host process ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum HostProcessError {
    /// Another one serves this directory.
    #[error("a host already serves {}{}", directory.display(), pid.map(|p| format!(", process {p}")).unwrap_or_default())]
    Runs {
        /// The directory.
        directory: PathBuf,
        /// Its process, if the lock tells.
        pid: Option<u32>,
    },
    /// A file could not be used.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its state could not be opened.
    #[error("opening the host")]
    Open(#[from] HostOpenError),
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub start: u64,
}

impl ProcessId {
    /// This process.
    pub fn own() -> ProcessId {
        let pid = std::process::id();
        ProcessId { pid, start: start_time(pid).unwrap_or(0) }
    }

    /// Whether it lives. One that died and was not waited for does not.
    pub fn lives(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    fn parse(text: &str) -> Option<ProcessId> {
        let (pid, start) = text.trim().split_once(' ')?;
        Some(ProcessId { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; the fields behind it are plain.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

/// Reads who holds the lock of `directory`; `None` if nobody does.
pub fn holder(directory: &Path) -> io::Result<Option<Option<ProcessId>>> {
    let mut file = match OpenOptions::new().read(true).write(true).open(directory.join("lock")) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Some(ProcessId::parse(&text)))
        }
        Err(e) => Err(e.into()),
    }
}

/// The path by which the socket of `directory` is bound or dialled. A long one goes through the open directory,
/// which has to be kept open meanwhile: a socket's address is short.
pub fn socket_path(directory: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = directory.join("sock");
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((path, None));
    }
    let open = File::open(directory)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/sock", open.as_raw_fd())), Some(open)))
}

/// Dials the host that serves `directory`.
pub async fn dial(directory: &Path) -> io::Result<UnixStream> {
    let (path, _open) = socket_path(directory)?;
    UnixStream::connect(path).await
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostProcessError {
    move |source| HostProcessError::Io { doing, path: path.to_owned(), source }
}

async fn take_lock(directory: &Path) -> Result<File, HostProcessError> {
    let path = directory.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("opening", &path))?;
    let mut tries = 0;
    while let Err(e) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if e != rustix::io::Errno::WOULDBLOCK {
            return Err(io_error("locking", &path)(e.into()));
        }
        // Somebody who only looks (`holder`) has the lock for a moment too.
        tries += 1;
        if tries < LOCK_TRIES {
            tokio::time::sleep(LOCK_RETRY).await;
            continue;
        }
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        let pid = ProcessId::parse(&text).map(|p| p.pid);
        return Err(HostProcessError::Runs { directory: directory.to_owned(), pid });
    }
    let ProcessId { pid, start } = ProcessId::own();
    let text = format!("{pid} {start}\n");
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(text.as_bytes()))
        .map_err(io_error("writing", &path))?;
    let path = directory.join("pid");
    std::fs::write(&path, text).map_err(io_error("writing", &path))?;
    Ok(file)
}

/// Thousands of guests have a disk and a console open each.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// Runs a host until it is told to stop, by its socket, SIGTERM or SIGINT. Its guests are shut down then.
pub async fn run(options: HostOptions) -> Result<(), HostProcessError> {
    let directory = options.directory.clone();
    make_directory(&directory).map_err(io_error("making", &directory))?;
    let lock = take_lock(&directory).await?;
    raise_file_limit();
    let host = Host::open(options.name.clone(), &directory).await?;
    let stop = CancellationToken::new();
    watch_signals(&stop).map_err(io_error("catching signals for", &directory))?;
    let listener = bind(&directory)?;
    tracing::info!(host = %options.name, directory = %directory.display(), "host serves");
    let tracker = TaskTracker::new();
    let server = Arc::new(Server { host: Arc::clone(&host), options, stop: stop.clone() });
    stop.run_until_cancelled(accept(&listener, &server, &tracker)).await;
    drop(listener);
    tracker.close();
    // Calls under way finish; a connection that does not end is left behind with the process.
    let _ = tokio::time::timeout(STOP_MS_MAX.duration(), tracker.wait()).await;
    host.shut_down().await;
    let _ = std::fs::remove_file(directory.join("sock"));
    let _ = std::fs::remove_file(directory.join("pid"));
    drop(lock);
    Ok(())
}

fn watch_signals(stop: &CancellationToken) -> io::Result<()> {
    let (mut term, mut interrupt, mut hangup) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        // Caught and dropped: the terminal of whoever started it may go.
        signal(SignalKind::hangup())?,
    );
    let stop = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                _ = term.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {}
                () = stop.cancelled() => break,
            }
        }
        stop.cancel();
    });
    Ok(())
}

fn bind(directory: &Path) -> Result<UnixListener, HostProcessError> {
    let path = directory.join("sock");
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("removing the stale", &path)(e)),
        Ok(()) | Err(_) => {}
    }
    let (address, _open) = socket_path(directory).map_err(io_error("opening", directory))?;
    let listener = UnixListener::bind(address).map_err(io_error("binding", &path))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(io_error("closing", &path))?;
    Ok(listener)
}

struct Server {
    host: Arc<Host>,
    options: HostOptions,
    stop: CancellationToken,
}

async fn accept(listener: &UnixListener, server: &Arc<Server>, tracker: &TaskTracker) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(server);
                tracker.spawn(async move {
                    let _permit = permit;
                    let stop = server.stop.clone();
                    if let Some(Err(error)) = stop.run_until_cancelled(serve(&server, stream)).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of files, most likely; it gets better when connections end.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("another user may not speak to this host")]
    ForeignUser,
    #[error("no hello came")]
    Silent,
    #[error(transparent)]
    Transfer(#[from] super::transfer::TransferError),
}

async fn serve(server: &Arc<Server>, mut stream: UnixStream) -> Result<(), ServeError> {
    if stream.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(ServeError::ForeignUser);
    }
    let hello = tokio::time::timeout(REQUEST_MS.duration(), wire::read::<Hello>(&mut stream)).await;
    let Some(hello) = hello.map_err(|_| ServeError::Silent)?? else { return Ok(()) };
    if hello.protocol != HOST_PROTOCOL {
        let why = format!("this host speaks protocol {HOST_PROTOCOL}, not {}", hello.protocol);
        return Ok(wire::write(&mut stream, &refusal(HostError::Unsupported { what: why })).await?);
    }
    match hello.purpose {
        Purpose::Admin(call) => {
            let result = admin(server, call);
            Ok(wire::write(&mut stream, &result).await?)
        }
        Purpose::Observe { cluster, call } => {
            let result = server.host.observe(&cluster, call).await;
            Ok(wire::write(&mut stream, &result).await?)
        }
        Purpose::Session { region, lineage, clusters } => {
            match server.host.attach(&region, &lineage, &clusters).await {
                Err(error) => Ok(wire::write(&mut stream, &refusal(error)).await?),
                Ok(session) => {
                    wire::write(&mut stream, &welcome(server)).await?;
                    serve_session(server, session, stream).await
                }
            }
        }
        Purpose::Channel { region, lineage, cluster, key, channel, end } => {
            let opened = match server.host.attach(&region, &lineage, &[]).await {
                Ok(session) => {
                    let open = server.host.channel(&session, &cluster, key, channel, end);
                    open.map(|open| (session, open))
                }
                Err(error) => Err(error),
            };
            match opened {
                Err(error) => Ok(wire::write(&mut stream, &refusal(error)).await?),
                Ok((mut session, open)) => {
                    wire::write(&mut stream, &welcome(server)).await?;
                    tokio::select! {
                        biased;
                        () = session.superseded() => Ok(()),
                        result = open.serve(stream) => Ok(result?),
                    }
                }
            }
        }
    }
}

type Answer = Result<Welcome, HostError>;

fn welcome(server: &Server) -> Answer {
    Ok(Welcome { host: server.options.name.clone(), pid: std::process::id() })
}

fn refusal(error: HostError) -> Answer {
    Err(error)
}

fn admin(server: &Server, call: AdminCall) -> Answer {
    let forbidden = || HostError::Refused { why: "this host was not started with --allow-faults".into() };
    match call {
        AdminCall::Status => {}
        AdminCall::Stop => {
            // After the answer had its chance to leave.
            let stop = server.stop.clone();
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                stop.cancel();
            });
        }
        AdminCall::PlanFault { .. } | AdminCall::ClearFaults if !server.options.allow_faults => {
            return Err(forbidden());
        }
        AdminCall::PlanFault { kind, fault, times } => server.host.faults().plan(kind, fault, times),
        AdminCall::ClearFaults => server.host.faults().clear(),
    }
    welcome(server)
}

async fn serve_session(server: &Arc<Server>, session: Session, stream: UnixStream) -> Result<(), ServeError> {
    let (mut reader, mut writer) = stream.into_split();
    let (answers, mut outgoing) = mpsc::channel::<Response>(CALLS_MAX);
    let write = async {
        while let Some(response) = outgoing.recv().await {
            let frame = wire::frame(&response).or_else(|error| {
                let why = format!("the answer can't be sent: {error}");
                wire::frame(&Response { serial: response.serial, result: Err(HostError::Failed { why }) })
            })?;
            writer.write_all(&frame).await?;
        }
        Ok::<(), ServeError>(())
    };
    let mut latest = session.clone();
    let read = async {
        let room = Arc::new(Semaphore::new(CALLS_MAX));
        while let Some(request) = wire::read::<Request>(&mut reader).await? {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
            let (host, session, answers) = (Arc::clone(&server.host), session.clone(), answers.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let Request { serial, cluster, operation, call } = request;
                let result = host.call(&session, &cluster, operation, call).await;
                // Nobody waits any more: the call is done all the same, a repeat will be told.
                let _ = answers.send(Response { serial, result }).await;
            });
        }
        Ok::<(), ServeError>(())
    };
    tokio::select! {
        biased;
        () = latest.superseded() => Ok(()),
        result = read => result,
        result = write => result,
    }
}

/// Entry of `novafed host --dir <directory> --name <name> [--allow-faults]`: runs a host on a runtime of its own.
pub fn main(options: HostOptions) -> std::process::ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_env_filter(filter).init();
    // A write to a disk may block a worker for a moment; the others tick on.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let result = runtime
        .map_err(io_error("starting the runtime for", &options.directory))
        .and_then(|runtime| runtime.block_on(run(options)));
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            complain(&chain(&error));
            std::process::ExitCode::FAILURE
        }
    }
}

fn complain(why: &str) {
    // Where it goes is not there any more if this fails.
    let _ = writeln!(io::stderr(), "novafed host: {why}");
}
