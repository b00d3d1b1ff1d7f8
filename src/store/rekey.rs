//! Changing the store's key. Owns: the order of its steps, so that a crash at any point leaves a store that opens.
//! Always: until the last value is sealed anew both keys are needed and both are kept; afterwards only the new one.
//!
//! For a key file `store.key`: the new key is written to `store.key.next` (durable); the state notes that the new key
//! seals; every value is sealed anew, some per commit; the state notes that it is done; `store.key.next` becomes
//! `store.key`. Opening takes both files, if both are there, and goes by what the state says.

use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};

use super::error::{StoreError, TransactError};
use super::keys::StoreKey;
use super::open::{SealingKey, load_keys, sync_dir_of};
use super::seal::Sealer;
use super::tables::{Area, Table};
use super::writer::Work;
use super::{Store, StoreOptions};

/// Values sealed anew per commit.
const VALUES_PER_COMMIT: usize = 256;

/// What a change of keys did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RekeyReport {
    /// Id of the key that seals now.
    pub key: String,
    /// Values that were sealed anew.
    pub values: u64,
}

/// Where the next key stands while it replaces the one at `path`.
pub(super) fn next_key_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

impl Store {
    /// Seals every value with `key`, while the store goes on serving. Repeating it with the same key after a crash
    /// goes on where it stopped. The caller keeps both keys until it returns.
    ///
    /// # Errors
    /// [`StoreError`]; what is sealed anew so far stays so.
    pub async fn rekey(&self, key: StoreKey) -> Result<RekeyReport, StoreError> {
        self.inner.engine.sealer.add_key(&key);
        let id = key.id();
        self.note_key(SealingKey { id, changing: true }).await?;
        let mut values = 0;
        for area in Area::ALL {
            let mut after: Option<Vec<u8>> = None;
            while let Some(keys) = self.sealed_otherwise(*area, after.as_deref(), id)? {
                after = keys.last().cloned();
                values += keys.len() as u64;
                self.seal_anew(*area, keys).await?;
            }
        }
        self.note_key(SealingKey { id, changing: false }).await?;
        Ok(RekeyReport { key: key.id_text(), values })
    }

    async fn note_key(&self, note: SealingKey) -> Result<(), StoreError> {
        self.transact(Work::Finish, move |txn| txn.put(Table::Meta, SealingKey::ROW, &note))
            .await
            .map_err(TransactError::flatten)
    }

    /// The next keys of `area` after `after` whose values another key than `id` sealed; `None` if there is none left.
    fn sealed_otherwise(&self, area: Area, after: Option<&[u8]>, id: u32) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
        let mut keys = Vec::new();
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        self.snapshot()?.visit(area, range, false, |key, value| {
            if Sealer::key_id_of(value) != Some(id) {
                keys.push(key.to_vec());
            }
            if keys.len() < VALUES_PER_COMMIT { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok((!keys.is_empty()).then_some(keys))
    }

    async fn seal_anew(&self, area: Area, keys: Vec<Vec<u8>>) -> Result<(), StoreError> {
        let again = move |txn: &mut super::Txn<'_, '_>| -> Result<(), StoreError> {
            for key in keys {
                // It may have changed or gone meanwhile: what is there now is what counts.
                if let Some(plain) = txn.get_plain(area, &key)? {
                    txn.put_plain(area, key, plain)?;
                }
            }
            Ok(())
        };
        self.transact(Work::Finish, again).await.map_err(TransactError::flatten)
    }
}

/// Changes the key of the store that `options` name, whose key file is `key_path`: offline, for
/// `novafed store rekey`. After a crash, calling it again completes the change.
///
/// # Errors
/// [`StoreError`]; the store opens with the keys that [`load_keys`] gives.
pub async fn rekey_file(options: StoreOptions, key_path: &Path, nonce: u64) -> Result<RekeyReport, StoreError> {
    let next_path = next_key_path(key_path);
    let next = match StoreKey::load(&next_path) {
        Ok(key) => key,
        Err(_) if !next_path.exists() => {
            let key = StoreKey::generate()?;
            key.save(&next_path)?;
            key
        }
        Err(error) => return Err(error),
    };
    let (store, _) = Store::open(StoreOptions { keys: load_keys(key_path)?, ..options }, nonce)?;
    let report = store.rekey(next).await?;
    store.close()?;
    std::fs::rename(&next_path, key_path)
        .and_then(|()| sync_dir_of(key_path))
        .map_err(|e| StoreError::file("replacing key file", key_path, e))?;
    Ok(report)
}
