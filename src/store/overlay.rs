//! Writes that are not committed yet. Owns: what a transaction, or a whole group of them, has put and deleted.
//! Always: the last write to a key wins; a deletion hides what is below.

use std::collections::BTreeMap;

use super::tables::Area;
use super::value::Plain;

type Rows = BTreeMap<Vec<u8>, Option<Plain>>;

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
        self.areas[area as usize].insert(key, value);
    }
    pub(super) fn get(&self, area: Area, key: &[u8]) -> Option<&Option<Plain>> {
        self.areas[area as usize].get(key)
    }
    pub(super) fn rows(&self, area: Area) -> &Rows {
        &self.areas[area as usize]
    }
    /// The tables that have rows.
    pub(super) fn areas(&self) -> impl Iterator<Item = (Area, &Rows)> {
        Area::ALL.iter().map(|area| (*area, self.rows(*area))).filter(|(_, rows)| !rows.is_empty())
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
