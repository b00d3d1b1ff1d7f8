//! Opening a store. Owns: the lock, the identity file beside the state, creation, the new incarnation.
//! Always: a state file appears under its name only complete (written as `state.redb.new`, synced, renamed); once the
//! identity file exists, a state file that is missing, empty or another's is refused and never replaced; each opening
//! records an incarnation later than all before it, durable before anybody hears of it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use redb::backends::FileBackend;
use serde::{Deserialize, Serialize};

use super::backend::SharedBackend;
use super::engine::Engine;
use super::error::StoreError;
use super::keys::{StoreKey, fill_random, key_id_text};
use super::overlay::Overlay;
use super::seal::Sealer;
use super::tables::Area;
use super::value::{Stored, plain_of, value_of};
use super::{Medium, StoreOptions};
use crate::stored;
use crate::types::{Incarnation, Lineage, RegionName};

/// First word of the identity file.
const IDENTITY_MAGIC: &str = "novafed-store";

/// Whose state it is. Stands in the state and, so that its loss is noticed, in a file beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreIdentity {
    pub(super) region: RegionName,
    /// Random, 32 hex digits.
    pub(super) store: String,
}
stored!(StoreIdentity, b"stid");

impl StoreIdentity {
    pub(super) const ROW: &'static str = "identity";
}

/// The incarnation that the latest opening took, and those before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct IncarnationRecord {
    lineage: Lineage,
}
stored!(IncarnationRecord, b"incn");

impl IncarnationRecord {
    const ROW: &'static str = "incarnation";
}

/// A host knew a later life of this store: this is an older copy, which must never be in charge again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RefusedRecord {
    /// Who knew it.
    pub(super) by: String,
    /// The later life.
    pub(super) known: Incarnation,
}
stored!(RefusedRecord, b"rfsd");

impl RefusedRecord {
    pub(super) const ROW: &'static str = "refused";
}

/// Which key seals. Written when a change of keys begins, so that a crash in the middle of it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SealingKey {
    pub(super) id: u32,
    /// True until no value is sealed with an older key any more.
    pub(super) changing: bool,
}
stored!(SealingKey, b"skey");

impl SealingKey {
    pub(super) const ROW: &'static str = "sealing_key";
}

/// What opening found and took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The incarnation of this opening.
    pub incarnation: Incarnation,
    /// True if there was no state and a new one was created.
    pub created: bool,
    /// True if a change of keys is not finished: run [`super::Store::rekey`] with the new key again.
    pub rekey_pending: bool,
}

/// An exclusive lock on a file beside the state, with the pid of who holds it. The system lets go of it when the
/// process ends, however it ends.
pub(super) struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock of the state at `path`.
    pub(super) fn take(path: &Path) -> Result<LockFile, StoreError> {
        let lock = path.with_extension("lock");
        let failed = |e| StoreError::file("opening lock file", &lock, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The pid is a courtesy: that it can't be read changes nothing about the refusal.
                let _ = file.take(32).read_to_string(&mut text);
                return Err(StoreError::InUse { path: path.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(e)) => return Err(StoreError::file("locking", &lock, e)),
        }
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        // On a full disk the lock holds without its note.
        if let Err(error) = note(&mut file) {
            tracing::warn!(%error, file = %lock.display(), "the lock file does not name this process");
        }
        Ok(LockFile { _file: file })
    }
}

/// Makes a new or renamed entry of the directory that holds `path` durable.
pub(super) fn sync_dir_of(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// Opens a file as a medium; with `create`, a new one.
pub(super) fn file_backend(path: &Path, create: bool) -> Result<SharedBackend, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create).mode(0o600);
    let file = options.open(path).map_err(|e| StoreError::file("opening", path, e))?;
    let backend = FileBackend::new(file).map_err(|e| StoreError::redb("opening the state file", e))?;
    Ok(SharedBackend::new(backend))
}

/// Length of a file; `None` if there is none.
pub(super) fn file_len(path: &Path) -> Result<Option<u64>, StoreError> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::file("looking at", path, e)),
    }
}

fn identity_path(state: &Path) -> PathBuf {
    state.with_extension("id")
}

fn read_identity(path: &Path) -> Result<Option<StoreIdentity>, StoreError> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(4096).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::file("reading identity file", path, e)),
    }
    let mut words = text.split_ascii_whitespace();
    let parsed = (|| {
        (words.next()? == IDENTITY_MAGIC && words.next()? == "v1").then_some(())?;
        let region = words.next()?.parse().ok()?;
        let store = words.next().filter(|w| w.len() == 32)?.to_owned();
        words.next().is_none().then_some(StoreIdentity { region, store })
    })();
    parsed.map(Some).ok_or_else(|| StoreError::Damaged {
        what: path.display().to_string(),
        detail: "it does not read 'novafed-store v1 <region> <store>'".into(),
    })
}

fn write_identity(path: &Path, identity: &StoreIdentity) -> Result<(), StoreError> {
    let new = path.with_extension("id.new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        writeln!(file, "{IDENTITY_MAGIC} v1 {} {}", identity.region, identity.store)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        sync_dir_of(path)
    };
    write().map_err(|e| StoreError::file("writing identity file", path, e))
}

/// Opens or creates what `options` name, with every check, but takes no incarnation.
pub(super) fn open_engine(
    options: &StoreOptions,
) -> Result<(Engine, StoreIdentity, bool, Option<LockFile>), StoreError> {
    let what = options.medium.to_string();
    match &options.medium {
        Medium::File(path) => {
            let lock = LockFile::take(path)?;
            let id_path = identity_path(path);
            let known = read_identity(&id_path)?;
            let len = file_len(path)?;
            let lost = |identity: &StoreIdentity, why: &str| StoreError::Lost {
                path: path.clone(),
                identity: id_path.clone(),
                region: identity.region.to_string(),
                why: why.to_owned(),
            };
            let created = match (&known, len) {
                (Some(identity), None) => return Err(lost(identity, "is missing")),
                (Some(identity), Some(0)) => return Err(lost(identity, "is empty")),
                (None, None) => {
                    create_file(path, options)?;
                    true
                }
                (_, Some(_)) => false,
            };
            let engine = Engine::open(file_backend(path, false)?, &what, options.cache_bytes, sealer(options), false)?;
            let Some(identity) = identity_of(&engine)? else {
                return Err(match &known {
                    Some(identity) => lost(identity, "holds no identity"),
                    None => StoreError::Damaged { what, detail: "it is no state of novafed".into() },
                });
            };
            check_identity(&what, &identity, known.as_ref(), options)?;
            if known.is_none() {
                // A crash between creating the state and its identity file, or a restored state file.
                write_identity(&id_path, &identity)?;
            }
            Ok((engine, identity, created, Some(lock)))
        }
        Medium::Backend { backend, member } => {
            let lost = |why: &str| StoreError::Lost {
                path: what.clone().into(),
                identity: "its owner".into(),
                region: options.region.to_string(),
                why: why.to_owned(),
            };
            let len = backend.len().map_err(|e| StoreError::redb("asking for its length", e))?;
            if len == 0 && *member {
                return Err(lost("is empty"));
            }
            let engine = Engine::open(backend.clone(), &what, options.cache_bytes, sealer(options), true)?;
            if let Some(identity) = identity_of(&engine)? {
                check_identity(&what, &identity, None, options)?;
                return Ok((engine, identity, false, None));
            }
            if *member {
                return Err(lost("holds no identity"));
            }
            let identity = new_identity(options)?;
            commit_row(&engine, StoreIdentity::ROW, &identity)?;
            Ok((engine, identity, true, None))
        }
    }
}

/// Takes the next incarnation and settles which key seals.
pub(super) fn take_incarnation(engine: &Engine, nonce: u64) -> Result<(Lineage, bool), StoreError> {
    let key: Option<SealingKey> = meta(engine, SealingKey::ROW)?;
    if let Some(key) = &key
        && !engine.sealer.seal_with(key.id)
    {
        return Err(StoreError::WrongKey { needed: key_id_text(key.id), given: engine.sealer.key_ids() });
    }
    if let Some(refused) = meta::<RefusedRecord>(engine, RefusedRecord::ROW)? {
        // Not one start more: each makes it look later than it is.
        return Err(StoreError::OlderCopy { by: refused.by, known: refused.known.counter });
    }
    let before: Option<IncarnationRecord> = meta(engine, IncarnationRecord::ROW)?;
    let lineage = Lineage::after(before.map(|record| record.lineage), nonce);
    commit_row(engine, IncarnationRecord::ROW, &IncarnationRecord { lineage: lineage.clone() })?;
    Ok((lineage, key.is_some_and(|key| key.changing)))
}

fn sealer(options: &StoreOptions) -> Sealer {
    Sealer::with_keys(&options.keys)
}

fn new_identity(options: &StoreOptions) -> Result<StoreIdentity, StoreError> {
    let mut random = [0; 16];
    fill_random(&mut random)?;
    let store = random.iter().map(|b| format!("{b:02x}")).collect();
    Ok(StoreIdentity { region: options.region.clone(), store })
}

/// Creates the state under another name and gives it its own when it is complete.
fn create_file(path: &Path, options: &StoreOptions) -> Result<(), StoreError> {
    let new = path.with_extension("redb.new");
    match std::fs::remove_file(&new) {
        Ok(()) => tracing::warn!(file = %new.display(), "removed what an interrupted creation left"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(StoreError::file("removing", &new, e)),
    }
    let engine = Engine::open(
        file_backend(&new, true)?,
        &new.display().to_string(),
        options.cache_bytes,
        sealer(options),
        true,
    )?;
    let identity = new_identity(options)?;
    commit_row(&engine, StoreIdentity::ROW, &identity)?;
    engine.close()?;
    let publish = || -> std::io::Result<()> {
        File::open(&new)?.sync_all()?;
        std::fs::rename(&new, path)?;
        sync_dir_of(path)
    };
    publish().map_err(|e| StoreError::file("creating", path, e))
}

fn identity_of(engine: &Engine) -> Result<Option<StoreIdentity>, StoreError> {
    meta(engine, StoreIdentity::ROW)
}

fn check_identity(
    what: &str,
    found: &StoreIdentity,
    known: Option<&StoreIdentity>,
    options: &StoreOptions,
) -> Result<(), StoreError> {
    let foreign = |found: String, expected: String| StoreError::Foreign { path: what.into(), found, expected };
    if found.region != options.region {
        return Err(foreign(format!("region {}", found.region), format!("region {}", options.region)));
    }
    match known {
        Some(known) if known != found => Err(foreign(
            format!("store {} of region {}", found.store, found.region),
            format!("store {} of region {}", known.store, known.region),
        )),
        Some(_) | None => Ok(()),
    }
}

/// A row of the store's own table.
pub(super) fn meta<V: Stored>(engine: &Engine, row: &str) -> Result<Option<V>, StoreError> {
    let plain = engine.snapshot()?.get(Area::Meta, row.as_bytes())?;
    plain.map(|plain| value_of(&plain, Area::Meta.name(), row)).transpose()
}

fn commit_row<V: Stored>(engine: &Engine, row: &str, value: &V) -> Result<(), StoreError> {
    let mut changes = Overlay::new();
    changes.set(Area::Meta, row.as_bytes().to_vec(), Some(plain_of(value)?));
    changes.seal(&engine.sealer)?;
    engine.commit(&changes)
}

/// The keys to give to [`StoreOptions`]: the current one, and the next one if a change of keys was interrupted.
///
/// # Errors
/// [`StoreError::Key`]
pub fn load_keys(path: &Path) -> Result<Vec<StoreKey>, StoreError> {
    let mut keys = vec![StoreKey::load(path)?];
    let next = super::rekey::next_key_path(path);
    if file_len(&next)?.is_some() {
        keys.push(StoreKey::load(&next)?);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_are_frozen() {
        crate::store::fixture::holds(&StoreIdentity {
            region: "eu".parse().unwrap(),
            store: "00112233445566778899aabbccddeeff".into(),
        });
        crate::store::fixture::holds(&IncarnationRecord {
            lineage: Lineage { now: Incarnation { counter: 300, nonce: 7 }, before: vec![6, 5] },
        });
        crate::store::fixture::holds(&RefusedRecord {
            by: "host-a".into(),
            known: Incarnation { counter: 301, nonce: 9 },
        });
        crate::store::fixture::holds(&SealingKey { id: 0xdead_beef, changing: true });
    }
}
