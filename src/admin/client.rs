//! A client of the admin socket: for the CLI, the demo and tests.
//! Always: a mutation has a key, and a lost reply is asked for again with the same key until the deadline; what then is
//! still unknown is called unknown. Not here: what people see (`cli/`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::call::{DEADLINE, IDEMPOTENCY_KEY};
use super::socket::SOCKET_NAME;
use super::views::ErrorDocument;
use crate::clock::Clock;
use crate::types::limits::{API_DEADLINE_MS, API_RETRY_MS, FRAME_BYTES_MAX};
use crate::types::{ApiError, ErrorCode, Millis, Tick};

/// First and last pause before a lost reply is asked for again.
const AGAIN_MS_MIN: u64 = 20;
const AGAIN_MS_MAX: u64 = 1_000;

/// Why there is no answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The region answered with an error.
    #[error("{}", .document.error.message)]
    Refused { document: ErrorDocument, status: u16 },
    /// Nobody answers at the socket; nothing was sent.
    #[error("no node answers at {socket}: {source}")]
    NoNode { socket: PathBuf, source: io::Error },
    /// This user may not use the socket.
    #[error("permission denied: {socket} belongs to another user")]
    Denied { socket: PathBuf },
    /// It was sent, and no reply came by the deadline.
    #[error("{method} {path} was sent and no reply came within {deadline}: {why}")]
    Unknown { method: Method, path: String, deadline: Millis, why: String },
    /// Something answered that is not a node's API.
    #[error("what answers at {socket} is not a novafed node: {why}")]
    Garbled { socket: PathBuf, why: String },
}

impl ClientError {
    /// Its code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused { document, .. } => document.error.code,
            Self::NoNode { .. } => ErrorCode::Unavailable,
            Self::Denied { .. } => ErrorCode::PermissionDenied,
            Self::Unknown { method, .. } if method.is_safe() => ErrorCode::DeadlineExceeded,
            Self::Unknown { .. } => ErrorCode::OutcomeUnknown,
            Self::Garbled { .. } => ErrorCode::Internal,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Refused { document, .. } => document.error.hint.clone(),
            Self::NoNode { socket, .. } => {
                let dir = socket.parent().and_then(Path::parent).unwrap_or(Path::new("."));
                let shown = dir.display();
                if dir.join(crate::config::FILE_NAME).exists() {
                    format!("start it with: novafed node --dir {shown}")
                } else {
                    format!(
                        "there is no region in {shown}: say where it is with --dir or NOVAFED_DIR, or make one: novafed init"
                    )
                }
            }
            Self::Denied { .. } => "run the command as the user that the node runs as, or as root".into(),
            Self::Unknown { method, .. } if method.is_safe() => "ask again, or allow more time with --timeout".into(),
            Self::Unknown { .. } => {
                "it may have been done: look at the object, or repeat the request with the same key".into()
            }
            Self::Garbled { .. } => "see which process has the socket open".into(),
        }
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    method: Method,
    path: String,
    body: Option<Value>,
    key: Option<String>,
    if_match: Option<u64>,
}

impl Ask {
    /// A read of `path` (path and query).
    pub fn get(path: impl Into<String>) -> Ask {
        Ask { method: Method::GET, path: path.into(), body: None, key: None, if_match: None }
    }
    /// A mutation with a key of its own.
    pub fn post(path: impl Into<String>) -> Ask {
        Ask { method: Method::POST, path: path.into(), body: None, key: Some(fresh_key()), if_match: None }
    }
    /// A deletion with a key of its own.
    pub fn delete(path: impl Into<String>) -> Ask {
        Ask { method: Method::DELETE, ..Ask::post(path) }
    }
    /// The same with a body.
    pub fn body(mut self, body: &impl Serialize) -> Ask {
        self.body = serde_json::to_value(body).ok();
        self
    }
    /// The same with a given key: a repeat of an earlier request.
    pub fn key(mut self, key: impl Into<String>) -> Ask {
        self.key = Some(key.into());
        self
    }
    /// The same, to be done only if the object still has that resource version.
    pub fn if_match(mut self, version: u64) -> Ask {
        self.if_match = Some(version);
        self
    }
}

/// A key that nobody else has.
pub fn fresh_key() -> String {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Without the kernel's randomness a key of this process's generator is still one of 2^128.
        bytes = fastrand::u128(..).to_le_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A client of one region's API.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    clock: Clock,
    deadline: Millis,
    keys: Option<Keys>,
}

/// The keys of what one command asks for, one after the other, so that the whole command can be repeated.
#[derive(Debug, Clone)]
struct Keys {
    base: String,
    used: Arc<AtomicUsize>,
}

impl Keys {
    fn next(&self) -> String {
        match self.used.fetch_add(1, Ordering::Relaxed) {
            0 => self.base.clone(),
            before => format!("{}.{}", self.base, before + 1),
        }
    }
}

/// What one try came to.
enum Try {
    Answer(StatusCode, Vec<u8>),
    NotSent(io::Error),
    Lost(String),
}

impl Client {
    /// A client of the region in `directory`.
    pub fn new(directory: &Path) -> Client {
        let socket = directory.join("run").join(SOCKET_NAME);
        Client { socket, clock: Clock::start(), deadline: API_DEADLINE_MS, keys: None }
    }

    /// The same with another deadline for each request.
    pub fn deadline(mut self, deadline: Millis) -> Client {
        self.deadline = deadline;
        self
    }

    /// The same with keys made from `base` for its mutations, in their order: asked the same things in the same order
    /// again, they are done at most once.
    pub fn keyed(mut self, base: String) -> Client {
        self.keys = Some(Keys { base, used: Arc::default() });
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads `path` as a `T`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.typed(Ask::get(path)).await
    }

    /// Asks and reads the answer as a `T`.
    pub async fn typed<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, ClientError> {
        let value = self.ask(ask).await?;
        serde_json::from_value(value).map_err(|e| self.garbled(e.to_string()))
    }

    /// Asks; the answer's document. An empty body is `null`.
    pub async fn ask(&self, ask: Ask) -> Result<Value, ClientError> {
        let body = self.raw(ask).await?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|e| self.garbled(e.to_string()))
    }

    /// Asks; the answer's bytes, of any type.
    pub async fn raw(&self, mut ask: Ask) -> Result<Vec<u8>, ClientError> {
        if let (Some(key), Some(keys)) = (&mut ask.key, &self.keys) {
            *key = keys.next();
        }
        let until = self.clock.now().plus(self.deadline);
        let mut sent = None;
        let mut pause = AGAIN_MS_MIN;
        loop {
            let wait = match self.once(&ask, until).await {
                Try::Answer(status, body) if status.is_success() => return Ok(body),
                Try::Answer(status, body) => {
                    let error = self.refusal(status, &body)?;
                    let busy = error.code() == ErrorCode::Busy;
                    match retry_after(&error).filter(|_| busy) {
                        Some(wait) if self.clock.now().plus(wait) < until => wait.0,
                        _ => return Err(error),
                    }
                }
                Try::NotSent(source) if sent.is_none() => return Err(self.no_node(source)),
                // The node died with our request and is not back yet.
                Try::NotSent(_) => pause,
                Try::Lost(why) => {
                    sent = Some(why);
                    pause
                }
            };
            if self.clock.now().plus(Millis(wait)) >= until {
                let why = sent.unwrap_or_else(|| "the node stayed busy".to_owned());
                let (method, path) = (ask.method, ask.path);
                return Err(ClientError::Unknown { method, path, deadline: self.deadline, why });
            }
            tokio::time::sleep(Duration::from_millis(wait)).await;
            pause = (pause * 2).min(AGAIN_MS_MAX);
        }
    }

    async fn once(&self, ask: &Ask, until: Tick) -> Try {
        let left = until.since(self.clock.now());
        let stream = match UnixStream::connect(&self.socket).await {
            Ok(stream) => stream,
            Err(e) => return Try::NotSent(e),
        };
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
            let driver = tokio::spawn(connection);
            let mut request = Request::builder()
                .method(ask.method.clone())
                .uri(&ask.path)
                .header(header::HOST, "novafed")
                .header(DEADLINE, left.0.max(1));
            if let Some(key) = &ask.key {
                request = request.header(IDEMPOTENCY_KEY, key);
            }
            if let Some(version) = ask.if_match {
                request = request.header(header::IF_MATCH, format!("\"{version}\""));
            }
            let body = match &ask.body {
                Some(body) => {
                    request = request.header(header::CONTENT_TYPE, "application/json");
                    Body::from(body.to_string())
                }
                None => Body::empty(),
            };
            let request = request.body(body).map_err(|e| e.to_string())?;
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), 4 * FRAME_BYTES_MAX).collect().await;
            drop(driver);
            Ok::<_, String>((status, body.map_err(|e| e.to_string())?.to_bytes().to_vec()))
        };
        // A little longer than the node itself waits, so that its own words arrive.
        match tokio::time::timeout(left.duration() + Duration::from_millis(250), exchange).await {
            Ok(Ok((status, body))) => Try::Answer(status, body),
            Ok(Err(why)) => Try::Lost(why),
            Err(_) => Try::Lost("it is still at work".to_owned()),
        }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Result<ClientError, ClientError> {
        let document: ErrorDocument =
            serde_json::from_slice(body).map_err(|_| self.garbled(format!("it answers {status} without a reason")))?;
        Ok(ClientError::Refused { document, status: status.as_u16() })
    }

    fn no_node(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            _ => ClientError::NoNode { socket, source },
        }
    }

    fn garbled(&self, why: String) -> ClientError {
        ClientError::Garbled { socket: self.socket.clone(), why }
    }
}

fn retry_after(error: &ClientError) -> Option<Millis> {
    let ClientError::Refused { document: ErrorDocument { error: ApiError { details, .. }, .. }, .. } = error else {
        return None;
    };
    Some(Millis(details.get("retryAfterMs").and_then(Value::as_u64).unwrap_or(API_RETRY_MS.0)))
}
