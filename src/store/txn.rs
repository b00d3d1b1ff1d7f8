//! A transaction as its closure sees it. Owns: the layered view (own writes over those of its group, over those of the
//! group that is being committed, over what is committed), typed access, minting.
//! Always: nothing of a transaction reaches its group unless its closure returned `Ok`.
//! Not here: journal and checkpoints (`journal.rs`), outbox and dedup (`delivery.rs`), the group itself (`writer.rs`).

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::engine::{Edge, Engine, Snapshot};
use super::error::StoreError;
use super::overlay::Overlay;
use super::tables::{Area, Table, check_key, prefix_end};
use super::value::{Plain, Stored, plain_of, value_of};
use crate::types::Incarnation;

/// What is numbered per incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Minted {
    /// VMs.
    Vm,
    /// Jobs.
    Job,
    /// Plans.
    Plan,
    /// API requests.
    Request,
    /// Messages of the outbox.
    Message,
}

/// The counters behind minted ids. In memory only: each opening takes a new incarnation, which is part of every id.
#[derive(Default)]
pub(super) struct Counters([AtomicU64; 5]);

impl Counters {
    pub(super) fn next(&self, kind: Minted) -> u64 {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed) + 1
    }
    /// The number given last; 0 before the first.
    pub(super) fn last(&self, kind: Minted) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }
}

/// What all transactions of a group share: one snapshot, opened when the first of them reads, and the writes so far.
/// The snapshot may show the group below or not: its writes are laid over it and are the same.
pub(super) struct Group<'e> {
    pub(super) engine: &'e Engine,
    pub(super) counters: &'e Counters,
    pub(super) incarnation: Incarnation,
    /// The group before, if its commit was not done when this one began.
    below: Option<Arc<Overlay>>,
    writes: Overlay,
    snapshot: Option<Snapshot<'e>>,
}

impl<'e> Group<'e> {
    pub(super) fn new(
        engine: &'e Engine,
        counters: &'e Counters,
        incarnation: Incarnation,
        below: Option<Arc<Overlay>>,
    ) -> Group<'e> {
        Group { engine, counters, incarnation, below, writes: Overlay::new(), snapshot: None }
    }
    fn snapshot(&mut self) -> Result<&mut Snapshot<'e>, StoreError> {
        if self.snapshot.is_none() {
            self.snapshot = Some(self.engine.snapshot()?);
        }
        self.snapshot.as_mut().ok_or(StoreError::Closed)
    }
    /// Lets go of the snapshot, so that the commit may reuse the pages that it pinned.
    pub(super) fn into_writes(self) -> Overlay {
        self.writes
    }
}

/// A transaction under way. Its reads see what is committed, what earlier transactions of its group wrote, and its
/// own writes.
pub struct Txn<'g, 'e> {
    group: &'g mut Group<'e>,
    own: Overlay,
}

impl<'g, 'e> Txn<'g, 'e> {
    pub(super) fn new(group: &'g mut Group<'e>) -> Txn<'g, 'e> {
        Txn { group, own: Overlay::new() }
    }
    /// Seals its writes and puts them into the group.
    pub(super) fn accept(mut self) -> Result<(), StoreError> {
        self.own.seal(&self.group.engine.sealer)?;
        self.group.writes.absorb(self.own);
        Ok(())
    }

    /// Uncommitted writes, lowest first.
    fn layers(&self) -> impl DoubleEndedIterator<Item = &Overlay> {
        self.group.below.as_deref().into_iter().chain([&self.group.writes, &self.own])
    }

    /// The value at `key`.
    ///
    /// # Errors
    /// [`StoreError`] if it can't be read, decrypted or decoded.
    pub fn get<V: Stored>(&mut self, table: Table, key: &str) -> Result<Option<V>, StoreError> {
        let plain = self.get_plain(table.into(), key.as_bytes())?;
        plain.map(|plain| value_of(&plain, table.name(), key)).transpose()
    }

    /// Writes `value` at `key`.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] or [`StoreError::Encode`].
    pub fn put<V: Stored>(&mut self, table: Table, key: &str, value: &V) -> Result<(), StoreError> {
        self.put_plain(table.into(), key.as_bytes().to_vec(), plain_of(value)?)
    }

    /// Deletes what is at `key`, if anything.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for a key that can't exist.
    pub fn delete(&mut self, table: Table, key: &str) -> Result<(), StoreError> {
        check_key(key.as_bytes())?;
        self.delete_plain(table.into(), key.as_bytes().to_vec());
        Ok(())
    }

    /// All rows whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// As [`Txn::get`].
    pub fn scan<V: Stored>(&mut self, table: Table, prefix: &str) -> Result<Vec<(String, V)>, StoreError> {
        let end = prefix_end(prefix.as_bytes());
        let range = (Bound::Included(prefix.as_bytes()), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let rows = self.range_plain(table.into(), range)?;
        rows.into_iter().map(|(key, plain)| typed_row(table, key, &plain)).collect()
    }

    /// The next number of `kind` in this incarnation, from 1. A number whose transaction fails is not used again.
    pub fn mint(&self, kind: Minted) -> u64 {
        self.group.counters.next(kind)
    }

    /// The store's incarnation, which is part of every minted id.
    pub fn incarnation(&self) -> Incarnation {
        self.group.incarnation
    }

    pub(super) fn get_plain(&mut self, area: Area, key: &[u8]) -> Result<Option<Plain>, StoreError> {
        if let Some(value) = self.layers().rev().find_map(|layer| layer.get(area, key)) {
            return Ok(value.as_ref().map(|put| put.plain.clone()));
        }
        self.group.snapshot()?.get(area, key)
    }

    pub(super) fn put_plain(&mut self, area: Area, key: Vec<u8>, plain: Plain) -> Result<(), StoreError> {
        check_key(&key)?;
        self.own.set(area, key, Some(plain));
        Ok(())
    }

    pub(super) fn delete_plain(&mut self, area: Area, key: Vec<u8>) {
        self.own.set(area, key, None);
    }

    /// The rows of a range, in key order.
    pub(super) fn range_plain(
        &mut self,
        area: Area,
        range: (Edge<'_>, Edge<'_>),
    ) -> Result<BTreeMap<Vec<u8>, Plain>, StoreError> {
        let mut rows = BTreeMap::new();
        let snapshot = self.group.snapshot()?;
        let mut raw = Vec::new();
        snapshot.visit(area, range, false, |key, value| {
            raw.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        for (key, value) in raw {
            let plain = snapshot.open(area, &key, &value)?;
            rows.insert(key, plain);
        }
        for layer in self.layers() {
            for (key, value) in layer.rows(area).range::<[u8], _>(range) {
                match value {
                    Some(put) => rows.insert(key.clone(), put.plain.clone()),
                    None => rows.remove(key),
                };
            }
        }
        Ok(rows)
    }

    /// The keys of a range, in order, without opening the values.
    pub(super) fn keys(&mut self, area: Area, range: (Edge<'_>, Edge<'_>)) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut keys = std::collections::BTreeSet::new();
        self.group.snapshot()?.visit(area, range, false, |key, _| {
            keys.insert(key.to_vec());
            ControlFlow::Continue(())
        })?;
        for layer in self.layers() {
            for (key, value) in layer.rows(area).range::<[u8], _>(range) {
                match value {
                    Some(_) => keys.insert(key.clone()),
                    None => keys.remove(key),
                };
            }
        }
        Ok(keys.into_iter().collect())
    }

    /// The last key of a range.
    pub(super) fn last_key(&mut self, area: Area, range: (Edge<'_>, Edge<'_>)) -> Result<Option<Vec<u8>>, StoreError> {
        self.group.snapshot()?;
        let Txn { group, own } = self;
        let Group { below, writes, snapshot, .. } = &mut **group;
        let layers = || below.as_deref().into_iter().chain([&*writes, &*own]);
        let hidden = |key: &[u8]| layers().rev().find_map(|layer| layer.get(area, key)).is_some_and(Option::is_none);
        let mut last = None;
        if let Some(snapshot) = snapshot {
            snapshot.visit(area, range, true, |key, _| {
                if hidden(key) {
                    return ControlFlow::Continue(());
                }
                last = Some(key.to_vec());
                ControlFlow::Break(())
            })?;
        }
        for layer in layers() {
            let top = layer.rows(area).range::<[u8], _>(range).rev().find(|(key, put)| put.is_some() && !hidden(key));
            if let Some((key, _)) = top
                && last.as_ref().is_none_or(|last| key > last)
            {
                last = Some(key.clone());
            }
        }
        Ok(last)
    }
}

/// A row of a named table, decoded.
pub(super) fn typed_row<V: Stored>(table: Table, key: Vec<u8>, plain: &Plain) -> Result<(String, V), StoreError> {
    let key = String::from_utf8(key)
        .map_err(|e| StoreError::Damaged { what: table.name().into(), detail: format!("a key is not text: {e}") })?;
    let value = value_of(plain, table.name(), &key)?;
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::super::backend::SharedBackend;
    use super::super::seal::Sealer;
    use super::super::value::Marker;
    use super::*;
    use proptest::prelude::*;

    const MARKER: Marker = Marker { kind: *b"test", version: 1 };

    fn plain(n: u8) -> Plain {
        Plain { marker: MARKER, payload: vec![n] }
    }

    /// Puts (`Some`) and deletions (`None`) of one-byte keys.
    fn writes() -> impl Strategy<Value = Vec<(u8, Option<u8>)>> {
        proptest::collection::vec((0..12u8, proptest::option::of(any::<u8>())), 0..10)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn layers_read_like_one_map(
            committed in writes(),
            committing in writes(),
            done in any::<bool>(),
            earlier in writes(),
            own in writes(),
            refused in writes(),
            low in 0..12u8,
            high in 0..12u8,
        ) {
            let engine = Engine::open(SharedBackend::memory(), "a test", 1 << 20, Sealer::plain(), true).unwrap();
            let counters = Counters::default();
            let incarnation = Incarnation { counter: 1, nonce: 1 };
            let mut model = BTreeMap::new();
            let mut base = Overlay::new();
            for (key, value) in &committed {
                base.set(Area::Map, vec![*key], value.map(plain));
                model.insert(*key, *value);
            }
            base.seal(&engine.sealer).unwrap();
            engine.commit(&base).unwrap();
            let mut below = Overlay::new();
            for (key, value) in &committing {
                below.set(Area::Map, vec![*key], value.map(plain));
                model.insert(*key, *value);
            }
            below.seal(&engine.sealer).unwrap();
            let below = Arc::new(below);
            let mut group = Group::new(&engine, &counters, incarnation, Some(Arc::clone(&below)));
            if done {
                engine.commit(&below).unwrap();
            }
            let apply = |txn: &mut Txn<'_, '_>, writes: &[(u8, Option<u8>)]| {
                for (key, value) in writes {
                    match value {
                        Some(n) => txn.put_plain(Area::Map, vec![*key], plain(*n)).unwrap(),
                        None => txn.delete_plain(Area::Map, vec![*key]),
                    }
                }
            };
            let mut txn = Txn::new(&mut group);
            apply(&mut txn, &earlier);
            txn.accept().unwrap();
            let mut txn = Txn::new(&mut group);
            apply(&mut txn, &refused);
            drop(txn);
            let mut txn = Txn::new(&mut group);
            apply(&mut txn, &own);
            model.extend(earlier.iter().chain(&own).copied());

            let model: BTreeMap<u8, u8> = model.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
            let (low, high) = (low.min(high), low.max(high));
            let (from, to) = ([low], [high]);
            let range = (Bound::Included(&from[..]), Bound::Included(&to[..]));
            let rows = txn.range_plain(Area::Map, range).unwrap();
            let rows: Vec<_> = rows.into_iter().map(|(key, plain)| (key[0], plain.payload[0])).collect();
            prop_assert_eq!(&rows, &model.range(low..=high).map(|(key, value)| (*key, *value)).collect::<Vec<_>>());
            let keys: Vec<_> = txn.keys(Area::Map, range).unwrap().into_iter().map(|key| key[0]).collect();
            prop_assert_eq!(keys, rows.iter().map(|row| row.0).collect::<Vec<_>>());
            let last = txn.last_key(Area::Map, range).unwrap().map(|key| key[0]);
            prop_assert_eq!(last, rows.last().map(|row| row.0));
            for key in 0..12 {
                let got = txn.get_plain(Area::Map, &[key]).unwrap().map(|plain| plain.payload[0]);
                prop_assert_eq!(got, model.get(&key).copied());
            }
            txn.accept().unwrap();
            let writes = group.into_writes();
            if !done {
                engine.commit(&below).unwrap();
            }
            engine.commit(&writes).unwrap();
            let mut snapshot = engine.snapshot().unwrap();
            for key in 0..12 {
                let got = snapshot.get(Area::Map, &[key]).unwrap().map(|plain| plain.payload[0]);
                prop_assert_eq!(got, model.get(&key).copied());
            }
        }
    }
}
