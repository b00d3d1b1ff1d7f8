//! Errors of the store. Owns: what can go wrong with state on disk, and what a person should do about it.
//! Always: an error says what was attempted, on what, and why; [`StoreError::advice`] says what to do.
//! Not here: verdicts of closures (their own type, see [`TransactError`]).

use std::path::PathBuf;
use std::sync::Arc;

use crate::types::{ApiError, ErrorCode, human_bytes};

/// Why the store did not do what it was asked. Cheap to clone: one failed commit answers many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process has the state open.
    #[error("state in use: {} is open in {}", path.display(), match pid { Some(p) => format!("process {p}"), None => "another process".into() })]
    InUse {
        /// The state file.
        path: PathBuf,
        /// Who has it, if it said so.
        pid: Option<u32>,
    },
    /// The region was a member before and its state is not there any more.
    #[error("this node lost state: {} {why}, but {} says that region {region} was a member before", path.display(), identity.display())]
    Lost {
        /// The state file.
        path: PathBuf,
        /// The identity file beside it.
        identity: PathBuf,
        /// The region.
        region: String,
        /// "is missing", "is empty", ...
        why: String,
    },
    /// A host knew a later life of it.
    #[error("this state is an older copy: {by} knows its life {known}, which this copy has not seen")]
    OlderCopy {
        /// Who knew it.
        by: String,
        /// The later life.
        known: u64,
    },
    /// The state belongs to somebody else.
    #[error("{path} belongs to {found}, not to {expected}", path = path.display())]
    Foreign {
        /// The state file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// What is on disk is not what was written.
    #[error("state damaged: {what}: {detail}")]
    Damaged {
        /// The file, page, table or row.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A value that a newer program wrote; it was not touched.
    #[error(
        "{table}/{key}: '{kind}' was written by newer version v{found}, this program knows up to v{known}; left untouched"
    )]
    Newer {
        /// The table.
        table: &'static str,
        /// The key, as text.
        key: String,
        /// The kind of the value.
        kind: String,
        /// The version on disk.
        found: u8,
        /// The latest that this program knows.
        known: u8,
    },
    /// No given key opens the values.
    #[error("the state is encrypted with key {needed}, given: {}", if given.is_empty() { "no key".to_owned() } else { given.join(", ") })]
    WrongKey {
        /// Id of the key that is needed.
        needed: String,
        /// Ids of the keys that were given.
        given: Vec<String>,
    },
    /// A key could not be had.
    #[error("taking the store key from {from}: {why}")]
    Key {
        /// File or command.
        from: String,
        /// Why not.
        why: String,
    },
    /// The first failure of the medium: from here on every call fails, since what is on disk is not known.
    #[error("storage failed: {attempt}: {cause}")]
    Failed {
        /// What was attempted.
        attempt: &'static str,
        /// What the medium or redb said.
        cause: Arc<str>,
        /// True if the disk was full.
        full: bool,
    },
    /// A file beside the state could not be read or written.
    #[error("{attempt} {}: {source}", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Too many transactions wait.
    #[error("the store is busy: {waiting} transactions wait, which is the most allowed")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// New work is refused to leave room for what runs.
    #[error("little disk space: {} free, {} are kept for work under way, so new work is refused", human_bytes(*free), human_bytes(*reserve))]
    NoSpace {
        /// Free bytes on the state's file system.
        free: u64,
        /// Bytes kept.
        reserve: u64,
    },
    /// A key or value exceeds its limit.
    #[error("{what} has {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// A value could not be turned into bytes.
    #[error("encoding a '{kind}' for the store: {why}")]
    Encode {
        /// Its kind.
        kind: String,
        /// Why not.
        why: String,
    },
    /// The closure of a transaction panicked; nothing of it was written.
    #[error("a transaction panicked and was discarded: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// What to do about it, in one or two sentences.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "Stop the other process, or use another directory.",
            Self::Lost { .. } => {
                "Put the state file back where it was, or move this directory away and create the region anew with \
                 'novafed init'. A copy that is older than the lost file is refused by hosts and peers."
            }
            Self::OlderCopy { .. } => {
                "Put the latest state.redb back, or move the directory away and create the region anew with \
                 'novafed init'. It can't be in charge again; VMs go on meanwhile."
            }
            Self::Foreign { .. } => "Check --dir: each region has its own directory.",
            Self::Damaged { .. } => {
                "Keep a copy of the file and run 'novafed store verify'. Restore the file, or move the directory away \
                 and create the region anew with 'novafed init'. VMs go on meanwhile."
            }
            Self::Newer { .. } => {
                "Start the newer version of novafed again, or restore a copy from before the upgrade."
            }
            Self::WrongKey { .. } => "Give the key that the state was written with (store.key, or the key command).",
            Self::Key { .. } => "Check the key file (mode 0600, written by 'novafed init') or the key command.",
            Self::Failed { full: true, .. } => {
                "The disk is full. Free some space and start the node again; VMs go on meanwhile."
            }
            Self::Failed { .. } => {
                "Check the disk and the kernel log, then start the node again: it goes on from the last acknowledged \
                 record. VMs go on meanwhile."
            }
            Self::File { .. } => "Check the directory's permissions and the disk.",
            Self::Busy { .. } => "Try again shortly.",
            Self::NoSpace { .. } => "Free some disk space; running jobs may finish.",
            Self::TooLarge { .. } => "Send less at once.",
            Self::Encode { .. } | Self::Panicked { .. } => "This is a bug: please report it with the log.",
            Self::Closed => "The node is stopping; ask again when it is back.",
        }
    }

    /// True if the process must stop: nothing more can be promised about what is on disk.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    /// A redb error met while doing `attempt`.
    pub(super) fn redb(attempt: &'static str, error: impl Into<redb::Error>) -> StoreError {
        let error = error.into();
        match &error {
            redb::Error::Corrupted(detail) => {
                StoreError::Damaged { what: format!("state file, {attempt}"), detail: detail.clone() }
            }
            redb::Error::DatabaseClosed => StoreError::Closed,
            redb::Error::Io(io) => StoreError::Failed {
                attempt,
                cause: io.to_string().into(),
                full: io.kind() == std::io::ErrorKind::StorageFull,
            },
            other => StoreError::Failed { attempt, cause: other.to_string().into(), full: false },
        }
    }

    /// A file error met while doing `attempt` on `path`.
    pub(super) fn file(attempt: &'static str, path: &std::path::Path, source: std::io::Error) -> StoreError {
        StoreError::File { attempt, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        let code = match &error {
            StoreError::Busy { .. } => ErrorCode::Busy,
            StoreError::TooLarge { .. } => ErrorCode::InvalidArgument,
            StoreError::Encode { .. } | StoreError::Panicked { .. } => ErrorCode::Internal,
            // A commit that failed may still be found at the next start.
            StoreError::Failed { .. } => ErrorCode::OutcomeUnknown,
            _ => ErrorCode::Unavailable,
        };
        let details = match &error {
            StoreError::Busy { .. } => serde_json::json!({ "retryAfterMs": super::BUSY_RETRY_MS.0 }),
            _ => serde_json::Value::Null,
        };
        ApiError::new(code, error.to_string()).details(details).hint(error.advice())
    }
}

/// How a transaction ended if not with a durable commit of its writes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransactError<E> {
    /// The store could not; whether a commit under way is on disk is not known if the error is fatal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The closure refused; nothing of it was written.
    #[error("{0}")]
    Refused(E),
}

impl TransactError<StoreError> {
    /// For closures whose only refusals are the store's own errors.
    pub fn flatten(self) -> StoreError {
        match self {
            Self::Store(e) | Self::Refused(e) => e,
        }
    }
}
