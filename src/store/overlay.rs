//! Writes that are not committed yet. Owns: what a transaction, or a whole group of them, has put and deleted.
//! Always: the last write to a key wins; a deletion hides what is below.

use std::collections::BTreeMap;

use super::error::StoreError;
use super::seal::Sealer;
use super::tables::Area;
use super::value::Plain;

/// A value that was put.
pub(super) struct Put {
    pub(super) plain: Plain,
    /// As it will stand in the file; empty until it is sealed.
    pub(super) sealed: Vec<u8>,
}

type Rows = BTreeMap<Vec<u8>, Option<Put>>;

/// Uncommitted rows of every table: `Some` is put, `None` deleted.
pub(super) struct Overlay {
    areas: [Rows; Area::COUNT],
}

impl Overlay {
    pub(super) fn new() -> Overlay {
        Overlay { areas: [const { BTreeMap::new() }; Area::COUNT] }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.areas.iter().all(BTreeMap::is_empty)
    }
    pub(super) fn set(&mut self, area: Area, key: Vec<u8>, value: Option<Plain>) {
        let put = value.map(|plain| Put { plain, sealed: Vec::new() });
        self.areas[area as usize].insert(key, put);
    }
    /// `Some(None)` if it was deleted, `None` if nothing was written there.
    pub(super) fn get(&self, area: Area, key: &[u8]) -> Option<&Option<Put>> {
        self.areas[area as usize].get(key)
    }
    pub(super) fn rows(&self, area: Area) -> &Rows {
        &self.areas[area as usize]
    }
    /// The tables that have rows.
    pub(super) fn areas(&self) -> impl Iterator<Item = (Area, &Rows)> {
        Area::ALL.iter().map(|area| (*area, self.rows(*area))).filter(|(_, rows)| !rows.is_empty())
    }
    /// Seals what is not sealed yet.
    pub(super) fn seal(&mut self, sealer: &Sealer) -> Result<(), StoreError> {
        for area in Area::ALL {
            for (key, put) in &mut self.areas[*area as usize] {
                if let Some(put) = put
                    && put.sealed.is_empty()
                {
                    sealer.seal(*area, key, &put.plain, &mut put.sealed)?;
                }
            }
        }
        Ok(())
    }
    /// Lays `above` over this one.
    pub(super) fn absorb(&mut self, above: Overlay) {
        for (below, above) in self.areas.iter_mut().zip(above.areas) {
            if below.is_empty() {
                *below = above;
            } else {
                below.extend(above);
            }
        }
    }
}
