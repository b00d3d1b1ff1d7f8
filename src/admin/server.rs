//! The admin server. Owns: connections: who may have one, how many there are, how long a head may take.
//! Always: the kernel names the peer on every connection; only the node's own user and root get an answer that is not
//! a refusal. Not here: the file (`socket.rs`), requests (`api.rs`).

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::{Api, busy};
use super::region::Caller;
use super::socket::{self, AdminSocket};
use crate::types::limits::{API_CONNECTIONS_MAX, API_HEAD_BYTES_MAX, API_HEADERS_MAX, API_READ_MS_MAX};
use crate::types::{ApiError, ErrorCode};

/// How long requests under way may go on after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(2);
/// Refusals that are being delivered at once; a connection beyond them is closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long a refused client may take to read why.
const REFUSAL: Duration = Duration::from_secs(1);

/// Why the admin socket can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The system said no.
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// Another process answers there.
    #[error("{path} is answered by another process: is this region's node running already?")]
    InUse { path: PathBuf },
    /// Something else stands there.
    #[error("{path} exists and is not a socket: nothing of ours puts it there, look at it and remove it")]
    NotASocket { path: PathBuf },
    /// A link, a file, or somebody else's directory.
    #[error("{path} is not a directory that belongs to user {uid}: look at it and remove it")]
    NotOurDirectory { path: PathBuf, uid: u32 },
    /// Longer than the kernel takes.
    #[error("{path} is longer than the {bytes_max} bytes that a socket's path may have: use a shorter --dir")]
    PathTooLong { path: PathBuf, bytes_max: usize },
}

/// A bound admin socket that is not served yet.
#[derive(Debug)]
pub struct Server {
    socket: AdminSocket,
    uid: u32,
}

impl Server {
    /// Binds `run_directory/admin.sock` (directory 0700, socket 0600). A stale socket is replaced.
    pub async fn bind(run_directory: &Path) -> Result<Server, ServeError> {
        let uid = rustix::process::geteuid().as_raw();
        Ok(Server { socket: socket::bind(run_directory).await?, uid })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Serves `api` until `stop`, then lets requests under way end, removes the socket and returns.
    pub async fn serve(self, api: Api, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(API_CONNECTIONS_MAX));
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.socket.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // No descriptor is free, most likely: accepting again at once would spin.
                    tracing::warn!(error = %e, "accepting a connection to the admin socket failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let refusal = match self.judge(&stream) {
                Ok(caller) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(slot) => {
                        let (api, stop) = (api.clone(), stop.clone());
                        tasks.spawn(async move {
                            let _slot = slot;
                            connection(stream, api, caller, stop).await;
                        });
                        continue;
                    }
                    Err(_) => busy("too many connections to the admin socket"),
                },
                Err(refusal) => refusal,
            };
            metrics::counter!("novafed_admin_refused_total", "code" => refusal.code.to_string()).increment(1);
            if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                let response = api.refuse(refusal);
                tasks.spawn(async move {
                    let _permit = permit;
                    let _ = tokio::time::timeout(REFUSAL, deliver(stream, response)).await;
                });
            }
        }
        tasks.close();
        let _ = tokio::time::timeout(DRAIN * 2, tasks.wait()).await;
    }

    /// Who is at the other end, if it may be there.
    fn judge(&self, stream: &UnixStream) -> Result<Caller, ApiError> {
        let denied = |text: String| {
            tracing::warn!("{text}");
            ApiError::new(ErrorCode::PermissionDenied, text)
                .hint(format!("use the admin socket as user {} or as root", self.uid))
        };
        let peer = stream.peer_cred().map_err(|e| denied(format!("the kernel does not say who connected: {e}")))?;
        if peer.uid() != self.uid && peer.uid() != 0 {
            return Err(denied(format!("permission denied: user {} may not use this admin socket", peer.uid())));
        }
        Ok(Caller { uid: peer.uid(), gid: peer.gid(), pid: peer.pid(), via: None })
    }
}

/// Serves one connection until it closes or the server stops.
async fn connection(stream: UnixStream, api: Api, caller: Caller, stop: CancellationToken) {
    let service = service_fn(move |request| {
        let (api, caller) = (api.clone(), caller.clone());
        async move { Ok::<_, Infallible>(api.serve(request, caller).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(API_READ_MS_MAX.duration())
        .max_headers(API_HEADERS_MAX)
        .max_buf_size(API_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(e) = ended {
        metrics::counter!("novafed_admin_broken_connections_total").increment(1);
        tracing::debug!(error = %e, "a connection to the admin socket broke");
    }
}

/// Writes `response` as it is, whatever the client says, and closes.
async fn deliver(mut stream: UnixStream, response: Response) -> io::Result<()> {
    let (head, body) = response.into_parts();
    let body = to_bytes(body, API_HEAD_BYTES_MAX).await.unwrap_or_default();
    let mut text = format!("HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: {}\r\n", head.status, body.len());
    for (name, value) in head.headers.iter().filter(|(name, _)| name.as_str() != "content-length") {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or("")));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await?;
    // Closing with its request unread would make the client see a broken pipe instead of the refusal.
    let mut sink = [0; 1024];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}
