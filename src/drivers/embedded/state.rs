//! What a host remembers over its own death. Owns: how batches of rows get into its durable map.
//! Always: a batch is in it whole or not at all, and durable when [`State::put`] returns; batches that wait for the
//! disk share one commit. Not here: what the rows mean (`host.rs`), the map itself (`store/map.rs`).

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::media::Media;
use crate::store::{DurableMap, SharedBackend, StoreError};

/// A change: a key and its new value, `None` to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);
/// Rows with their keys.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Why the state could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// The map said so. Whether a batch whose write failed is in it is unknown; the next one opens the map anew.
    #[error("the host's state: {0}")]
    Map(#[from] StoreError),
    /// A bug of ours.
    #[error("the host's state: its writer panicked")]
    Panicked,
}

type Waiting = (Vec<Change>, oneshot::Sender<Result<(), StoreError>>);

/// The map, shared.
#[derive(Clone)]
pub struct State {
    media: Media,
    path: Arc<Path>,
    /// `None` if it could not be opened anew after a failure.
    map: Arc<Mutex<Option<DurableMap>>>,
    queue: Arc<Mutex<Vec<Waiting>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_map(media: &Media, path: &Path) -> Result<DurableMap, StoreError> {
    match media {
        Media::Files => DurableMap::open(path),
        Media::Simulated(media) => DurableMap::on(SharedBackend::new(media.state())),
    }
}

impl State {
    /// Opens the map in `path`, made if it is not there. Blocks on the disk.
    pub fn open(media: &Media, path: &Path) -> Result<(State, Rows), StateError> {
        let map = open_map(media, path)?;
        let rows = map.iter()?.collect();
        let map = Arc::new(Mutex::new(Some(map)));
        Ok((State { media: media.clone(), path: path.into(), map, queue: Arc::default() }, rows))
    }

    /// Makes `changes` durable, together.
    pub async fn put(&self, changes: Vec<Change>) -> Result<(), StateError> {
        if let Media::Simulated(media) = &self.media {
            // At one moment, some time after it was asked for and before it is answered.
            media.take_time().await;
            let put = self.healthy(&mut locked(&self.map)).and_then(|map| map.put_all(changes));
            media.take_time().await;
            return Ok(put?);
        }
        let (done, answer) = oneshot::channel();
        locked(&self.queue).push((changes, done));
        let state = self.clone();
        // Whoever gets the map first writes for everybody that waits; the others find their answer ready.
        let writer = tokio::task::spawn_blocking(move || {
            let mut map = locked(&state.map);
            let waiting = std::mem::take(&mut *locked(&state.queue));
            let (batches, answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            let result = state.healthy(&mut map).and_then(|map| map.put_all(batches.into_iter().flatten()));
            for answer in answers {
                let _ = answer.send(result.clone());
            }
        });
        writer.await.map_err(|_| StateError::Panicked)?;
        Ok(answer.await.map_err(|_| StateError::Panicked)??)
    }

    /// The map, opened anew if its medium failed: a disk that was full may have room again, and a host that gave up for
    /// ever would take its guests with it. Every row is written whole, so an unknown batch is settled by the next.
    fn healthy<'a>(&self, map: &'a mut Option<DurableMap>) -> Result<&'a DurableMap, StoreError> {
        if map.as_ref().is_some_and(|map| map.failure().is_some()) {
            *map = None;
        }
        match map {
            Some(map) => Ok(map),
            None => Ok(map.insert(open_map(&self.media, &self.path)?)),
        }
    }
}
