//! How a node ends other than by being told to. Owns: exit codes and advice.

use std::io;

use crate::actors::Ended;
use crate::admin::ServeError;
use crate::admin::telemetry::TelemetryError;
use crate::config::ConfigError;
use crate::protocol::quic::QuicError;
use crate::protocol::trust::TrustError;
use crate::store::StoreError;

/// Why a node did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// `node.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logs or metrics.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates and keys.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A file of the directory.
    #[error("{doing} {path}: {source}")]
    File { doing: &'static str, path: std::path::PathBuf, source: io::Error },
    /// The UDP socket.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] ServeError),
    /// The operating system.
    #[error("starting the runtime: {0}")]
    Runtime(io::Error),
    /// The supervisors.
    #[error("starting the actors: {0}")]
    Actors(String),
    /// Somebody knows a later life of this region's store.
    #[error("this node must not act: {why}")]
    Refused { why: String },
    /// The root supervisor gave up.
    #[error("the actors ended: {ended:?}")]
    Ended { ended: Ended },
}

impl NodeError {
    /// The exit code: 1 failed, 2 a bad configuration, 3 refused, 5 something that is needed is not there.
    pub fn exit_code(&self) -> u8 {
        match self {
            NodeError::Config(_) => 2,
            NodeError::Refused { .. } | NodeError::Store(StoreError::OlderCopy { .. }) => 3,
            NodeError::Store(StoreError::InUse { .. })
            | NodeError::Admin(ServeError::InUse { .. })
            | NodeError::Quic(_) => 5,
            NodeError::Telemetry(_)
            | NodeError::Store(_)
            | NodeError::Trust(_)
            | NodeError::File { .. }
            | NodeError::Admin(_)
            | NodeError::Runtime(_)
            | NodeError::Actors(_)
            | NodeError::Ended { .. } => 1,
        }
    }

    /// What to do next.
    pub fn advice(&self) -> String {
        match self {
            NodeError::Config(error) => error.hint(),
            NodeError::Store(error) => error.advice().to_owned(),
            NodeError::Refused { .. } => {
                "its hosts or peers know a later life of this region's store: this is an older copy. Put the latest \
                 state.redb back, or move the directory away and create the region anew. The VMs go on."
                    .into()
            }
            NodeError::Quic(_) => "choose another [listen] address, or stop what uses it".into(),
            NodeError::Trust(_) | NodeError::File { .. } => {
                "the files of 'novafed init' must be there and belong to this user, keys with mode 0600".into()
            }
            NodeError::Ended { .. } | NodeError::Actors(_) => {
                "read the log for what crashed again and again, then start the node again; the VMs go on".into()
            }
            NodeError::Admin(ServeError::InUse { .. }) => {
                "a node of this directory runs already: novafed status; stop it with SIGTERM first".into()
            }
            NodeError::Admin(_) | NodeError::Telemetry(_) | NodeError::Runtime(_) => {
                "see the message; nothing was changed".into()
            }
        }
    }
}
