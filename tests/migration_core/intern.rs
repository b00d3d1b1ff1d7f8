//! Interning: a value once, a small number wherever it is used. Owns: that a state of the whole world is a few bytes and
//! that each transition of a core is computed once, so that millions of states can be visited.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A fast hasher for small keys that nobody chooses with ill will.
#[derive(Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }
    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

/// A map with that hasher.
pub type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// Values by number, in order of their first appearance.
#[derive(Clone)]
pub struct Interner<T> {
    items: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner { items: Vec::new() }
    }
}

impl<T: Clone + Eq> Interner<T> {
    /// The number of `value`.
    pub fn id(&mut self, value: &T) -> u16 {
        let known = self.items.iter().position(|item| item == value);
        let at = known.unwrap_or_else(|| {
            self.items.push(value.clone());
            self.items.len() - 1
        });
        u16::try_from(at).expect("a small world has few distinct parts")
    }
    /// The value with that number.
    pub fn get(&self, id: u16) -> &T {
        &self.items[usize::from(id)]
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }
}

impl<T: Clone + Eq> Interner<T> {
    /// The bit of `value` in a set of at most 64.
    pub fn bit(&mut self, value: &T) -> u64 {
        let id = self.id(value);
        assert!(id < 64, "more than 64 distinct values in one set");
        1 << id
    }
}

/// The numbers whose bits are set.
pub fn bits(mut set: u64) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        u16::try_from(lowest).ok()
    })
}

/// A remembered function.
pub type Memo<K, V> = QuickMap<K, V>;

/// What `compute` gives for `key`, computed once.
pub fn remember<K: Hash + Eq, V: Clone>(memo: &mut Memo<K, V>, key: K, compute: impl FnOnce(&K) -> V) -> V {
    if let Some(known) = memo.get(&key) {
        return known.clone();
    }
    let value = compute(&key);
    memo.insert(key, value.clone());
    value
}
