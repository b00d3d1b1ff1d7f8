//! A small durable map. Owns: bytes by key for processes that need no more (a host's fences, holds and attempts).
//! Always: the same checks, commits and promise as the store's (`mod.rs`); values are not encrypted.

use std::ops::Bound;
use std::path::Path;

use super::backend::SharedBackend;
use super::engine::Engine;
use super::error::StoreError;
use super::open::{LockFile, file_backend, file_len, sync_dir_of};
use super::overlay::Overlay;
use super::page_of;
use super::seal::Sealer;
use super::tables::{Area, check_key};
use super::value::{Marker, Plain, check_len};

const VALUE: Marker = Marker { kind: *b"mapv", version: 1 };
/// It holds little.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// A durable map of bytes. Calls block for as long as the disk takes.
pub struct DurableMap {
    engine: Engine,
    _lock: Option<LockFile>,
}

impl DurableMap {
    /// Opens the map at `path`, or creates it; `path` with the extension `lock` is its lock file.
    ///
    /// # Errors
    /// [`StoreError`]: in use, damaged, or a file error.
    pub fn open(path: &Path) -> Result<DurableMap, StoreError> {
        let lock = LockFile::take(path)?;
        let fresh = file_len(path)?.is_none();
        if fresh {
            let new = path.with_extension("redb.new");
            match std::fs::remove_file(&new) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::file("removing", &new, e));
                }
                Ok(()) | Err(_) => {}
            }
            DurableMap::over(file_backend(&new, true)?, &new, true)?.close()?;
            std::fs::rename(&new, path)
                .and_then(|()| sync_dir_of(path))
                .map_err(|e| StoreError::file("creating", path, e))?;
        }
        let engine = DurableMap::over(file_backend(path, false)?, path, false)?;
        Ok(DurableMap { engine, _lock: Some(lock) })
    }

    /// A map on any medium, created if that is empty.
    ///
    /// # Errors
    /// As [`DurableMap::open`].
    pub fn on(backend: SharedBackend) -> Result<DurableMap, StoreError> {
        let engine = DurableMap::over(backend, Path::new("the map"), true)?;
        Ok(DurableMap { engine, _lock: None })
    }

    fn over(backend: SharedBackend, path: &Path, create: bool) -> Result<Engine, StoreError> {
        Engine::open(backend, &path.display().to_string(), CACHE_BYTES, Sealer::plain(), create)
    }

    /// Puts (`Some`) and deletes (`None`) all of `batch` in one commit, durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], or [`StoreError::Failed`], after which every call fails.
    pub fn put_all<K: AsRef<[u8]>>(
        &self,
        batch: impl IntoIterator<Item = (K, Option<Vec<u8>>)>,
    ) -> Result<(), StoreError> {
        let mut changes = Overlay::new();
        for (key, value) in batch {
            let key = key.as_ref();
            check_key(key)?;
            if let Some(bytes) = &value {
                check_len(bytes.len())?;
            }
            changes.set(Area::Map, key.to_vec(), value.map(|payload| Plain { marker: VALUE, payload }));
        }
        if changes.is_empty() {
            return Ok(());
        }
        changes.seal(&self.engine.sealer)?;
        self.engine.commit(&changes)
    }

    /// The value at `key`.
    ///
    /// # Errors
    /// A read error.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.engine.snapshot()?.get(Area::Map, key)?.map(|plain| plain.payload))
    }

    /// Everything in it, in key order.
    ///
    /// # Errors
    /// A read error.
    pub fn iter(&self) -> Result<impl Iterator<Item = (Vec<u8>, Vec<u8>)>, StoreError> {
        let everything = (Bound::Unbounded, Bound::Unbounded);
        let rows = page_of(&mut self.engine.snapshot()?, Area::Map, everything, usize::MAX)?;
        Ok(rows.into_iter().map(|(key, plain)| (key, plain.payload)))
    }

    /// The failure of the medium that poisoned it, if there was one.
    pub fn failure(&self) -> Option<StoreError> {
        self.engine.failure()
    }
}

impl Drop for DurableMap {
    fn drop(&mut self) {
        if let Err(error) = self.engine.close() {
            tracing::warn!(%error, "closing the map; the next start repairs it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::{FaultBackend, Faults, Keep};
    use super::*;

    #[test]
    fn a_crash_leaves_a_batch_whole_or_not_at_all() {
        let disk = FaultBackend::default();
        let batch = |n: u8| [("fence", Some(vec![n])), ("hold", Some(vec![n]))];
        DurableMap::on(SharedBackend::new(disk.clone())).unwrap().put_all(batch(1)).unwrap();
        let image = disk.cached_image();
        for at in 1.. {
            let disk = FaultBackend::holding(image.clone());
            disk.set_faults(Faults { crash_at_write: Some(at), ..Faults::default() });
            let done = DurableMap::on(SharedBackend::new(disk.clone())).and_then(|map| map.put_all(batch(2)));
            for keep in [Keep::None, Keep::All, Keep::Subset(at), Keep::Subset(at + 1000)] {
                let torn = FaultBackend::holding(disk.crash_image(keep));
                let map = DurableMap::on(SharedBackend::new(torn)).unwrap();
                let read = ["fence", "hold"].map(|key| map.get(key.as_bytes()).unwrap().unwrap());
                assert!(read == [[2], [2]] || (done.is_err() && read == [[1], [1]]), "write {at}, {keep:?}: {read:?}");
            }
            if done.is_ok() {
                break;
            }
        }
    }

    #[test]
    fn a_batch_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.redb");
        let map = DurableMap::open(&path).unwrap();
        map.put_all([("a", Some(vec![1])), ("b", Some(vec![2]))]).unwrap();
        map.put_all([("a", None), ("c", Some(vec![3]))]).unwrap();
        assert!(matches!(DurableMap::open(&path), Err(StoreError::InUse { pid: Some(_), .. })));
        drop(map);
        let map = DurableMap::open(&path).unwrap();
        assert_eq!(map.get(b"a").unwrap(), None);
        assert_eq!(map.iter().unwrap().collect::<Vec<_>>(), [(b"b".to_vec(), vec![2]), (b"c".to_vec(), vec![3])]);
    }

    #[test]
    fn an_emptied_map_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.redb");
        drop(DurableMap::open(&path).unwrap());
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(DurableMap::open(&path), Err(StoreError::Damaged { .. })));
    }
}
