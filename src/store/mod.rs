//! What survives the process. Owns: the state file, its tables, and what is promised about them.
//! Not here: what any of it means (`decision/`), who asks (`actors/`, `admin/`).
//!
//! # The promise
//! A transaction is *acknowledged* when [`Store::transact`] returned `Ok`. By the moment of a crash (of the process or
//! of the machine; any subset of the sectors written since the last sync may be on disk):
//!
//! | crash | afterwards |
//! |---|---|
//! | before the writer took it | nothing of it is there |
//! | while its group runs, is written or is synced | the group is there whole, or not at all: never half of a transaction, never a later one without an earlier |
//! | after it was acknowledged | it is there |
//! | while the file is created | the next opening creates it anew, or completes it; nothing was acknowledged |
//! | while it is opened after a crash | as if that opening had not been tried |
//! | while the key changes | every value opens with one of the two keys |
//!
//! And by what the medium does:
//!
//! | fault | then |
//! |---|---|
//! | a write or sync fails, the disk is full | nothing that waited is acknowledged, every later call fails, [`Store::failed`] resolves: the process exits and a restart goes on from the acknowledged state |
//! | a sync fails and the next would not | as above: a failed sync is never repeated |
//! | bits flipped, pages or the tail lost at rest | opening verifies every page and refuses with [`StoreError::Damaged`], or all acknowledged records are there (but see below); a damaged value is refused when read |
//! | the file is missing, empty, another's | refused ([`StoreError::Lost`], [`StoreError::Foreign`]): never started empty |
//! | an older copy is put in its place | it opens and names its past lives; who knows another refuses it; once a host did, it never opens again |
//! | a value from a newer version | refused ([`StoreError::Newer`]) and left untouched |
//!
//! The one gap: where the machine (not only the process) stops within 50 ms of the last commit *and* bits of just that
//! commit's pages flip before the next start, that commit is taken for a torn one and rolled back, whole. Closing the
//! gap costs a second sync in every commit (`engine.rs`).
//!
//! `tests/store_crash.rs` tries each of these on a medium that crashes at every write and every sync.

mod backend;
mod brake;
mod crashes;
mod delivery;
mod engine;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod header;
mod journal;
mod keys;
mod map;
mod open;
mod overlay;
mod rekey;
mod seal;
mod space;
mod tables;
mod txn;
mod value;
mod verify;
mod writer;

use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

pub use backend::{FaultBackend, Faults, Keep, Operations, SECTOR_BYTES, SharedBackend, SyncHook};
pub use crashes::CrashRecord;
pub use delivery::{MessageId, PeerRecord, Seen};
pub use error::{StoreError, TransactError};
pub use journal::Checkpoint;
pub use keys::StoreKey;
pub use map::DurableMap;
pub use open::{Opened, load_keys};
pub use rekey::{RekeyReport, rekey_file};
pub use space::Space;
pub use tables::Table;
pub use txn::{Minted, Txn};
pub use value::{Marker, NoPrevious, Stored, from_bytes, to_bytes};
pub use verify::{StoreStats, TableStats, VerifyReport, stats_file, verify_file};
pub use writer::{Work, WriterStats};

use engine::{Edge, Engine, Snapshot};
use open::{LockFile, StoreIdentity};
use tables::{Area, check_key, prefix_end};
use txn::typed_row;
use value::{Plain, value_of};
use writer::{Runner, Writer};

use crate::types::limits::{STORE_CACHE_BYTES, STORE_RESERVE_BYTES};
use crate::types::{Incarnation, Lineage, Millis, RegionName};

/// When to ask again after [`StoreError::Busy`]: a few group commits.
pub const BUSY_RETRY_MS: Millis = Millis(50);

/// Where the state is.
#[derive(Debug, Clone)]
pub enum Medium {
    /// A file; `state.id` and `state.lock` stand beside a `state.redb`.
    File(PathBuf),
    /// Any medium; `member` says whether it held this region's state before, so that its loss is noticed.
    Backend {
        /// The medium.
        backend: SharedBackend,
        /// True if it must not be empty.
        member: bool,
    },
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Medium::File(path) => path.display().fmt(f),
            Medium::Backend { .. } => f.write_str("the state"),
        }
    }
}

/// Who commits transactions, and when.
#[derive(Debug, Clone)]
pub enum Commits {
    /// Two threads, which gather what waits into groups.
    Threads,
    /// The caller's own thread, at once, each transaction alone.
    Inline,
    /// The same in turn, after so many milliseconds of tokio's time: a simulated disk, whose speed may change.
    After(Arc<AtomicU64>),
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where the state is.
    pub medium: Medium,
    /// Whose state it is.
    pub region: RegionName,
    /// Keys of the values: the first seals unless the state says that a change to another of them has begun.
    pub keys: Vec<StoreKey>,
    /// Bytes of redb's cache.
    pub cache_bytes: usize,
    /// New work is refused when less than this is free.
    pub reserve_bytes: u64,
    /// Where free space is read from.
    pub space: Space,
    /// Who commits.
    pub commits: Commits,
}

impl StoreOptions {
    /// A state file with its writer thread.
    pub fn file(path: impl Into<PathBuf>, region: RegionName, keys: Vec<StoreKey>) -> StoreOptions {
        let path = path.into();
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        StoreOptions {
            space: Space::Of(dir.to_owned()),
            medium: Medium::File(path),
            region,
            keys,
            cache_bytes: STORE_CACHE_BYTES,
            reserve_bytes: STORE_RESERVE_BYTES,
            commits: Commits::Threads,
        }
    }

    /// A state on `backend`, without a thread; see [`Medium::Backend`].
    pub fn backend(backend: SharedBackend, member: bool, region: RegionName, keys: Vec<StoreKey>) -> StoreOptions {
        StoreOptions {
            medium: Medium::Backend { backend, member },
            region,
            keys,
            cache_bytes: STORE_CACHE_BYTES,
            reserve_bytes: STORE_RESERVE_BYTES,
            space: Space::plenty(),
            commits: Commits::Inline,
        }
    }

    /// A new state in memory, without a thread, with a key of its own.
    ///
    /// # Errors
    /// [`StoreError::Key`] if the system gives no random bytes.
    pub fn memory(region: RegionName) -> Result<StoreOptions, StoreError> {
        Ok(StoreOptions::backend(SharedBackend::memory(), false, region, vec![StoreKey::generate()?]))
    }
}

struct Inner {
    engine: Arc<Engine>,
    writer: Writer,
    identity: StoreIdentity,
    lineage: Lineage,
    medium: Medium,
    lock: Mutex<Option<LockFile>>,
}

impl Inner {
    fn close(&self) -> Result<(), StoreError> {
        self.engine.brake.set(Millis(0));
        self.writer.stop();
        let closed = self.engine.close();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        closed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "closing the state; the next start repairs it");
        }
    }
}

/// A region's state. A clone is another handle to the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({}, incarnation {})", self.inner.medium, self.incarnation())
    }
}

impl Store {
    /// Opens or creates the state, checks all of it, and takes the next incarnation with `nonce`, a random number
    /// from the shell. Blocks for as long as reading the whole file takes.
    ///
    /// # Errors
    /// [`StoreError`]; its `advice` says what a person should do.
    pub fn open(options: StoreOptions, nonce: u64) -> Result<(Store, Opened), StoreError> {
        let (engine, identity, created, lock) = open::open_engine(&options)?;
        let (lineage, rekey_pending) = open::take_incarnation(&engine, nonce)?;
        let incarnation = lineage.now;
        let engine = Arc::new(engine);
        let runner = Runner::new(Arc::clone(&engine), incarnation, options.space, options.reserve_bytes);
        let writer = match options.commits {
            Commits::Threads => Writer::spawn(runner)?,
            Commits::Inline => Writer::inline(runner, None),
            Commits::After(delay) => Writer::inline(runner, Some(delay)),
        };
        let medium = options.medium;
        let inner = Inner { engine, writer, identity, lineage, medium, lock: Mutex::new(lock) };
        Ok((Store { inner: Arc::new(inner) }, Opened { incarnation, created, rekey_pending }))
    }

    /// The incarnation that this opening took.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.writer.runner.incarnation
    }

    /// The same with the lives before it, as hosts and peers judge it.
    pub fn lineage(&self) -> &Lineage {
        &self.inner.lineage
    }

    /// `by` knows `known`, a later life of this store: this is an older copy. It never opens again.
    ///
    /// # Errors
    /// What the write failed with.
    pub async fn refuse_for_ever(&self, by: String, known: Incarnation) -> Result<(), StoreError> {
        let record = open::RefusedRecord { by, known };
        let written = self.transact(Work::Finish, move |txn| txn.put(Table::Meta, open::RefusedRecord::ROW, &record));
        written.await.map_err(|error: TransactError<StoreError>| error.flatten())
    }

    /// Free bytes of the state's file system, if the system says.
    pub fn free_bytes(&self) -> Option<u64> {
        self.inner.writer.runner.space.free()
    }

    /// What a durable write takes lately, microseconds; 0 before the first.
    pub fn commit_us(&self) -> u64 {
        self.inner.writer.runner.engine.commit_us()
    }

    /// Commits since it was opened: as long as they are as many, every row is as it was.
    pub fn commits(&self) -> u64 {
        self.inner.writer.runner.engine.commits()
    }

    /// Each commit takes so much longer from now on, for tests; 0 takes that back. Without threads of its own the store
    /// commits where it is asked to, and nothing can be held up there.
    pub fn slow_commits(&self, delay: Millis) {
        self.inner.engine.brake.set(delay);
    }

    /// Below so much free space new work is refused.
    pub fn reserve_bytes(&self) -> u64 {
        self.inner.writer.runner.reserve_bytes
    }

    /// Whose state it is.
    pub fn region(&self) -> &RegionName {
        &self.inner.identity.region
    }

    /// The value at `key`, as committed.
    ///
    /// # Errors
    /// [`StoreError`] if it can't be read, decrypted or decoded.
    pub fn get<V: Stored>(&self, table: Table, key: &str) -> Result<Option<V>, StoreError> {
        check_key(key.as_bytes())?;
        let plain = self.snapshot()?.get(table.into(), key.as_bytes())?;
        plain.map(|plain| value_of(&plain, table.name(), key)).transpose()
    }

    /// All rows whose key starts with `prefix`, in key order, as committed at one moment.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn scan<V: Stored>(&self, table: Table, prefix: &str) -> Result<Vec<(String, V)>, StoreError> {
        self.scan_page(table, prefix, None, usize::MAX)
    }

    /// At most `limit` of the rows whose key starts with `prefix`, beginning after the key `after`.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn scan_page<V: Stored>(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, V)>, StoreError> {
        check_key(prefix.as_bytes())?;
        let end = prefix_end(prefix.as_bytes());
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.as_bytes()),
            Some(_) | None => Bound::Included(prefix.as_bytes()),
        };
        // redb refuses a range that ends before it begins.
        if let (Bound::Excluded(from), Some(end)) = (from, &end)
            && from >= end.as_slice()
        {
            return Ok(Vec::new());
        }
        let range = (from, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let rows = page_of(&mut self.snapshot()?, table.into(), range, limit)?;
        rows.into_iter().map(|(key, plain)| typed_row(table, key, &plain)).collect()
    }

    /// Runs `closure` in the writer, in a transaction: its reads see everything before it, its writes go in together
    /// or, if it returns `Err` or panics, not at all. Resolves when the commit is durable. What it decides ("the first
    /// recorded wins") it decides alone: transactions run one after the other.
    ///
    /// The closure blocks all other writes while it runs: it computes and does nothing else.
    ///
    /// # Errors
    /// [`TransactError::Refused`] with the closure's own error; [`TransactError::Store`] if the store could not, e.g.
    /// `Busy`, `NoSpace` (only [`Work::New`]), or `Failed`, after which the outcome is not known.
    pub async fn transact<T, E, F>(&self, class: Work, closure: F) -> Result<T, TransactError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&mut Txn<'_, '_>) -> Result<T, E> + Send + 'static,
    {
        self.inner.writer.transact(class, closure).await
    }

    /// The next number of `kind` in this incarnation, outside of a transaction (API requests).
    pub fn mint(&self, kind: Minted) -> u64 {
        self.inner.writer.runner.counters.next(kind)
    }

    /// Resolves with the first failure of the medium. From then on every call fails and the process should exit:
    /// its VMs go on, and the next start goes on from what was acknowledged. Never resolves on a healthy store.
    pub async fn failed(&self) -> StoreError {
        let mut failure = self.inner.engine.watch_failure();
        let first = match failure.wait_for(Option::is_some).await {
            Ok(first) => first.clone(),
            Err(_) => None,
        };
        match first {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// The failure that [`Store::failed`] would resolve with, if there was one.
    pub fn failure(&self) -> Option<StoreError> {
        self.inner.engine.failure()
    }

    /// Commits what waits, marks the file as closed cleanly and lets go of it. Every handle is closed with it.
    /// Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`StoreError`] if the mark could not be written; the next opening then repairs, and nothing is lost.
    pub fn close(&self) -> Result<(), StoreError> {
        self.inner.close()
    }

    fn snapshot(&self) -> Result<Snapshot<'_>, StoreError> {
        self.inner.engine.snapshot()
    }

    /// All rows of a table whose key starts with `prefix`, opened.
    fn rows(&self, area: Area, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Plain)>, StoreError> {
        let end = prefix_end(prefix);
        let range = (Bound::Included(prefix), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        page_of(&mut self.snapshot()?, area, range, usize::MAX)
    }
}

/// At most `limit` rows of a range, opened.
fn page_of(
    snapshot: &mut Snapshot<'_>,
    area: Area,
    range: (Edge<'_>, Edge<'_>),
    limit: usize,
) -> Result<Vec<(Vec<u8>, Plain)>, StoreError> {
    let mut raw = Vec::new();
    if limit > 0 {
        snapshot.visit(area, range, false, |key, value| {
            raw.push((key.to_vec(), value.to_vec()));
            if raw.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    raw.into_iter()
        .map(|(key, value)| {
            let plain = snapshot.open(area, &key, &value)?;
            Ok((key, plain))
        })
        .collect()
}
