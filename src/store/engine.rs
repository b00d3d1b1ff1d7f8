//! redb, as this store uses it. Owns: opening with every check, snapshots, the one way to commit, the first failure.
//! Always: a commit is durable when it returns; after the first failure of the medium nothing is read or written any
//! more; a panic inside redb (its debug builds panic on a damaged file) is an error here.
//!
//! Choices, with their price (2 cores shared with a load of 11, so syncs are slow; `benches/ratios/g4.rs`):
//! - One phase per commit, and a mark after it (`header.rs`), which costs a read and a write of the system's cache,
//!   some 3 us. One phase alone falls back silently from a last commit that was acknowledged and has rotted;
//!   `tests/store_crash.rs` finds that at once. redb's two phases close that gap, too, with one more sync per commit:
//!   p50 11.9 ms instead of 4.9 ms (0.35 and 0.24 ms on an idle machine).
//! - Every opening verifies every page's checksum. A plain open trusts a file that was closed cleanly, and a flipped
//!   bit in an inner page then hides rows or panics. 1,000,000 rows in 544 MiB: 2.5 s instead of 10 ms, where reading
//!   all rows once takes 1.3 s; after a crash redb does it anyway.
//! - No quick repair: it writes the allocator's state with each commit (and makes it two phases) so that an opening
//!   need not walk the file; ours walks it anyway.

use std::any::Any;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use redb::{Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, TableError};
use tokio::sync::watch;

use super::backend::SharedBackend;
use super::brake::Brake;
use super::error::StoreError;
use super::header;
use super::overlay::Overlay;
use super::seal::Sealer;
use super::tables::Area;
use super::value::Plain;
use crate::clock::machine_nanos;
use crate::planted::{self, Bug};

type Bytes = &'static [u8];

/// An open database with its keys.
pub(super) struct Engine {
    db: RwLock<Option<Database>>,
    backend: SharedBackend,
    /// True while the last mark may be in the system's cache only.
    mark_unsynced: AtomicBool,
    pub(super) sealer: Sealer,
    failure: watch::Sender<Option<StoreError>>,
    commits: AtomicU64,
    slowest_commit_us: AtomicU64,
    /// What a commit takes lately: each new one counts for an eighth.
    commit_us: AtomicU64,
    pub(super) brake: Brake,
}

/// A commit that takes longer is worth a line in the log.
const SLOW_COMMIT_US: u64 = 1_000_000;

impl Engine {
    /// Opens the database on `backend`, repairing what a crash left, and checks all of it. With `create`, an empty
    /// medium gets a new database; without, it is an error. `what` names the medium in errors.
    pub(super) fn open(
        backend: SharedBackend,
        what: &str,
        cache_bytes: usize,
        sealer: Sealer,
        create: bool,
    ) -> Result<Engine, StoreError> {
        let len = redb::StorageBackend::len(&backend).map_err(|e| StoreError::redb("asking for its length", e))?;
        if len == 0 && !create {
            return Err(StoreError::Damaged { what: what.to_owned(), detail: "the file is empty".into() });
        }
        let opened = guarded(|| {
            let found = header::settle(&backend, what)?;
            let mut builder = redb::Builder::new();
            builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
            builder.set_repair_callback(move |session| {
                // Between a third and a half redb has found that the newest commit does not verify, has changed
                // nothing yet, and would go back to the one before.
                if found.newest_is_acknowledged && (0.1..0.5).contains(&session.progress()) {
                    session.abort();
                }
            });
            builder.create_with_backend(backend.clone()).map_err(|e| opening(what, e))
        });
        let db = match opened {
            Ok(result) => result?,
            Err(panic) => return Err(StoreError::Damaged { what: what.to_owned(), detail: panic }),
        };
        Ok(Engine {
            db: RwLock::new(Some(db)),
            backend,
            mark_unsynced: AtomicBool::new(false),
            sealer,
            failure: watch::Sender::new(None),
            commits: AtomicU64::new(0),
            slowest_commit_us: AtomicU64::new(0),
            commit_us: AtomicU64::new(0),
            brake: Brake::default(),
        })
    }

    /// The failure that poisoned it, if any.
    pub(super) fn failure(&self) -> Option<StoreError> {
        self.failure.borrow().clone()
    }
    pub(super) fn watch_failure(&self) -> watch::Receiver<Option<StoreError>> {
        self.failure.subscribe()
    }
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
    pub(super) fn commit_us(&self) -> u64 {
        self.commit_us.load(Ordering::Relaxed)
    }
    pub(super) fn slowest_commit_us(&self) -> u64 {
        self.slowest_commit_us.load(Ordering::Relaxed)
    }

    /// Does `what` with the database unless it failed before or is closed; a failure or a panic in it poisons.
    fn with<T>(
        &self,
        attempt: &'static str,
        what: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_ref() else { return Err(StoreError::Closed) };
        self.checked(attempt, guarded(|| what(db)))
    }

    fn checked<T>(
        &self,
        attempt: &'static str,
        outcome: Result<Result<T, StoreError>, String>,
    ) -> Result<T, StoreError> {
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.poison(attempt, error)),
            Err(panic) => Err(self.poison(attempt, panicked(panic))),
        }
    }

    /// Remembers the first failure and wakes who waits for it; returns what callers get from now on.
    fn poison(&self, attempt: &'static str, error: StoreError) -> StoreError {
        let fatal = match error {
            failed @ StoreError::Failed { .. } => failed,
            StoreError::Closed => return StoreError::Closed,
            other => StoreError::Failed { attempt, cause: other.to_string().into(), full: false },
        };
        self.failure.send_if_modified(|first| {
            let fresh = first.is_none();
            if fresh {
                tracing::error!(attempt, error = %fatal, "storage failed");
                *first = Some(fatal.clone());
            }
            fresh
        });
        self.failure().unwrap_or(fatal)
    }

    /// What is committed now.
    pub(super) fn snapshot(&self) -> Result<Snapshot<'_>, StoreError> {
        let begin = |db: &Database| db.begin_read().map_err(|e| StoreError::redb("beginning to read", e));
        let txn = self.with("beginning to read", begin)?;
        Ok(Snapshot { engine: self, txn, tables: [const { None }; Area::COUNT] })
    }

    /// Writes `changes`, which are sealed, in one durable transaction.
    pub(super) fn commit(&self, changes: &Overlay) -> Result<(), StoreError> {
        let began = machine_nanos();
        self.brake.hold();
        self.commit_untimed(changes)?;
        self.took(machine_nanos().saturating_sub(began) / 1_000);
        Ok(())
    }

    /// The same where the machine's time means nothing.
    pub(super) fn commit_untimed(&self, changes: &Overlay) -> Result<(), StoreError> {
        self.with("committing", |db| self.write(db, changes))
    }

    /// Counts a commit and how long it took.
    pub(super) fn took(&self, took_us: u64) {
        if took_us > SLOW_COMMIT_US {
            tracing::warn!(took_us, "slow storage: a commit took longer than a second");
        }
        self.slowest_commit_us.fetch_max(took_us, Ordering::Relaxed);
        // Nobody else commits meanwhile.
        let before = self.commit_us();
        let lately = if before == 0 { took_us } else { (before * 7 + took_us) / 8 };
        self.commit_us.store(lately.max(1), Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, db: &Database, changes: &Overlay) -> Result<(), StoreError> {
        let failed = |e: redb::Error| StoreError::redb("writing", e);
        let mut txn = db.begin_write().map_err(|e| failed(e.into()))?;
        let durability = if planted::is(Bug::AckBeforeSync) { Durability::None } else { Durability::Immediate };
        txn.set_durability(durability).map_err(|e| failed(e.into()))?;
        for (area, rows) in changes.areas() {
            let mut table = txn.open_table(area.definition()).map_err(|e| failed(e.into()))?;
            for (key, value) in rows {
                match value {
                    Some(put) => {
                        table.insert(key.as_slice(), put.sealed.as_slice()).map_err(|e| failed(e.into()))?;
                    }
                    None => {
                        table.remove(key.as_slice()).map_err(|e| failed(e.into()))?;
                    }
                }
            }
        }
        txn.commit().map_err(|e| StoreError::redb("committing", e))?;
        header::mark(&self.backend)?;
        self.mark_unsynced.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// True while a sync would add to what survives: the mark of the last commit.
    pub(super) fn mark_is_unsynced(&self) -> bool {
        self.mark_unsynced.load(Ordering::Relaxed) && self.failure().is_none()
    }

    /// Makes the mark of the last commit durable.
    pub(super) fn sync_mark(&self) -> Result<(), StoreError> {
        self.with("syncing", |_| {
            redb::StorageBackend::sync_data(&self.backend).map_err(|e| StoreError::redb("syncing", e))
        })?;
        self.mark_unsynced.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Closes the file, marking it as shut down cleanly unless it failed before.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        // Waits for a commit under way.
        let Some(db) = self.db.write().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        match guarded(|| db.close().map_err(|e| StoreError::redb("closing", e))) {
            Ok(result) => result,
            Err(panic) => Err(panicked(panic)),
        }
    }
}

/// Why redb did not open `what`: a file that it can't make sense of is damaged, whatever it calls that.
fn opening(what: &str, error: redb::DatabaseError) -> StoreError {
    use redb::{DatabaseError, StorageError};
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    let damaged = |detail: String| StoreError::Damaged { what: what.to_owned(), detail };
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: what.into(), pid: None },
        DatabaseError::RepairAborted => damaged("a page of the last acknowledged commit fails its checksum".into()),
        DatabaseError::UpgradeRequired(version) => damaged(format!("it says that it has redb's old format {version}")),
        DatabaseError::Storage(StorageError::Io(io)) if matches!(io.kind(), InvalidData | UnexpectedEof) => {
            damaged(io.to_string())
        }
        other => StoreError::redb("opening the state file", other),
    }
}

/// Runs `f`, turning a panic into its message.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| panic_text(&*panic))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".into())
}

fn panicked(message: String) -> StoreError {
    StoreError::Damaged { what: "state file".into(), detail: message }
}

/// One consistent view of everything committed; later commits don't show.
pub(super) struct Snapshot<'e> {
    engine: &'e Engine,
    txn: ReadTransaction,
    tables: [Option<ReadOnlyTable<Bytes, Bytes>>; Area::COUNT],
}

/// Where a range of keys begins or ends.
pub(super) type Edge<'a> = Bound<&'a [u8]>;

impl Snapshot<'_> {
    fn table(&mut self, area: Area) -> Result<Option<&ReadOnlyTable<Bytes, Bytes>>, StoreError> {
        let slot = &mut self.tables[area as usize];
        if slot.is_none() {
            match self.txn.open_table(area.definition()) {
                Ok(table) => *slot = Some(table),
                // Tables come into being with their first row.
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(e) => return Err(StoreError::redb("opening a table", e)),
            }
        }
        Ok(slot.as_ref())
    }

    /// The value at `key`.
    pub(super) fn get(&mut self, area: Area, key: &[u8]) -> Result<Option<Plain>, StoreError> {
        let engine = self.engine;
        let found = guarded(|| -> Result<_, StoreError> {
            let Some(table) = self.table(area)? else { return Ok(None) };
            let guard = table.get(key).map_err(|e| StoreError::redb("reading", e))?;
            Ok(guard.map(|bytes| engine.sealer.open(area, key, bytes.value())))
        });
        engine.checked("reading", found)?.transpose()
    }

    /// Shows the rows between two keys, as they stand in the file, to `see` until it breaks.
    pub(super) fn visit(
        &mut self,
        area: Area,
        range: (Edge<'_>, Edge<'_>),
        backwards: bool,
        mut see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let engine = self.engine;
        let done = guarded(|| -> Result<(), StoreError> {
            let Some(table) = self.table(area)? else { return Ok(()) };
            let mut rows = table.range::<&[u8]>(range).map_err(|e| StoreError::redb("reading", e))?;
            loop {
                let Some(row) = (if backwards { rows.next_back() } else { rows.next() }) else { return Ok(()) };
                let (key, value) = row.map_err(|e| StoreError::redb("reading", e))?;
                if see(key.value(), value.value()).is_break() {
                    return Ok(());
                }
            }
        });
        engine.checked("reading", done)
    }

    /// Opens a value that [`Snapshot::visit`] showed.
    pub(super) fn open(&self, area: Area, key: &[u8], bytes: &[u8]) -> Result<Plain, StoreError> {
        self.engine.sealer.open(area, key, bytes)
    }
    pub(super) fn transaction(&self) -> &ReadTransaction {
        &self.txn
    }
}
