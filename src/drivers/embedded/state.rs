//! What a host remembers over its own death: a small durable map. Owns: the file `state` of a host.
//! Always: a batch is in it whole or not at all, and durable when [`State::put`] returns; batches that wait for the
//! disk share one sync. Not here: what the rows mean (`host.rs`).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

/// A change: a key and its new value, `None` to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// Why the state could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{doing} host state {}: {why}", path.display())]
pub struct StateError {
    doing: &'static str,
    path: PathBuf,
    why: String,
}

/// One batch may be this long; a longer length in the file is damage.
const BATCH_BYTES_MAX: u32 = 64 << 20;

/// Lines of the log: length, checksum, batch. A torn end was never acknowledged and is cut off.
struct Log {
    path: PathBuf,
    file: File,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    broken: Option<StateError>,
}

type Waiting = (Vec<Change>, oneshot::Sender<Result<(), StateError>>);

/// The map.
#[derive(Clone)]
pub struct State {
    log: Arc<Mutex<Log>>,
    queue: Arc<Mutex<Vec<Waiting>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Opens the map in `path`, made if it is not there.
    pub fn open(path: &Path) -> Result<State, StateError> {
        Ok(State { log: Arc::new(Mutex::new(Log::open(path)?)), queue: Arc::default() })
    }

    /// All rows, in order of their keys.
    pub fn rows(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        locked(&self.log).rows.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Makes `changes` durable, together.
    pub async fn put(&self, changes: Vec<Change>) -> Result<(), StateError> {
        let (done, answer) = oneshot::channel();
        locked(&self.queue).push((changes, done));
        let (log, queue) = (Arc::clone(&self.log), Arc::clone(&self.queue));
        // Whoever gets the log first writes for everybody that waits; the others find their answer ready.
        let writer = tokio::task::spawn_blocking(move || {
            let mut log = locked(&log);
            let waiting = std::mem::take(&mut *locked(&queue));
            if waiting.is_empty() {
                return;
            }
            let (batches, answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            let result = log.append(batches.into_iter().flatten().collect());
            for answer in answers {
                let _ = answer.send(result.clone());
            }
        });
        let gone = || StateError { doing: "writing", path: PathBuf::from("state"), why: "its writer panicked".into() };
        writer.await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Log {
    fn open(path: &Path) -> Result<Log, StateError> {
        let failed = |doing| {
            let path = path.to_owned();
            move |e: io::Error| StateError { doing, path, why: e.to_string() }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed("opening"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("reading"))?;
        let mut rows = BTreeMap::new();
        let mut whole = 0;
        while let Some((batch, end)) = next_batch(&bytes, whole) {
            for (key, value) in batch {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
            whole = end;
        }
        file.set_len(whole as u64).map_err(failed("cutting the torn end of"))?;
        file.seek(SeekFrom::End(0)).map_err(failed("seeking"))?;
        file.sync_all().map_err(failed("syncing"))?;
        Ok(Log { path: path.to_owned(), file, rows, broken: None })
    }

    fn append(&mut self, changes: Vec<Change>) -> Result<(), StateError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let body = postcard::to_stdvec(&changes).expect("bytes always encode");
        let mut bytes = Vec::with_capacity(body.len() + 12);
        bytes.extend_from_slice(&u32::try_from(body.len()).expect("a batch is small").to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        if let Err(e) = self.file.write_all(&bytes).and_then(|()| self.file.sync_data()) {
            // What is in the file now is unknown; going on would build on it.
            let error = StateError { doing: "writing", path: self.path.clone(), why: e.to_string() };
            self.broken = Some(error.clone());
            return Err(error);
        }
        for (key, value) in changes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        Ok(())
    }
}

fn next_batch(bytes: &[u8], at: usize) -> Option<(Vec<Change>, usize)> {
    let head = bytes.get(at..at + 12)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?);
    if length > BATCH_BYTES_MAX {
        return None;
    }
    let sum = u64::from_le_bytes(head[4..].try_into().ok()?);
    let end = at + 12 + length as usize;
    let body = bytes.get(at + 12..end)?;
    if xxh3_64(body) != sum {
        return None;
    }
    Some((postcard::from_bytes(body).ok()?, end))
}
