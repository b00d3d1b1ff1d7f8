//! Values as they stand in the file. Owns: the layout, encryption and its keys in use.
//! Always: XChaCha20-Poly1305 with a random 24-byte nonce per value; table, key, kind, version and key id are
//! authenticated, so a value can't be moved, relabelled or downgraded; a store with a key takes no plain value.
//! Keys (ids and names) are not encrypted: the tree is sorted by them.
//!
//! ```text
//! sealed: 2 | kind 4 | version 1 | key id 4 | nonce 24 | ciphertext | tag 16
//! plain:  1 | kind 4 | version 1 | payload                              (only in stores without a key)
//! ```

use std::sync::{Mutex, PoisonError, RwLock};

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305};

use super::error::StoreError;
use super::keys::{StoreKey, fill_random, key_id_text};
use super::tables::{Area, key_text};
use super::value::{Marker, Plain};

const PLAIN: u8 = 1;
const SEALED: u8 = 2;
const KEY_ID_BYTES: usize = 4;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// Nonces fetched from the system at once: one call for about a whole group.
const NONCES_AT_ONCE: usize = 64;

/// The keys that open values; the last one given seals new ones.
#[derive(Default)]
struct Ring {
    ciphers: Vec<(u32, XChaCha20Poly1305)>,
    current: Option<u32>,
}

/// Seals and opens values.
pub(super) struct Sealer {
    ring: RwLock<Ring>,
    nonces: Mutex<Vec<[u8; NONCE_BYTES]>>,
}

impl Sealer {
    /// One that leaves values as they are, for stores that hold no secrets.
    pub(super) fn plain() -> Sealer {
        Sealer { ring: RwLock::default(), nonces: Mutex::default() }
    }

    /// One with these keys; `keys[0]` seals.
    pub(super) fn with_keys(keys: &[StoreKey]) -> Sealer {
        let sealer = Sealer::plain();
        for key in keys.iter().rev() {
            sealer.add_key(key);
        }
        sealer
    }

    /// Adds a key, which seals from now on.
    pub(super) fn add_key(&self, key: &StoreKey) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        ring.ciphers.retain(|(id, _)| *id != key.id());
        ring.ciphers.push((key.id(), XChaCha20Poly1305::new(key.bytes().into())));
        ring.current = Some(key.id());
    }

    /// Lets the key `id` seal if it is known.
    pub(super) fn seal_with(&self, id: u32) -> bool {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        let known = ring.ciphers.iter().any(|(known, _)| *known == id);
        if known {
            ring.current = Some(id);
        }
        known
    }

    /// The ids of all known keys, as people see them.
    pub(super) fn key_ids(&self) -> Vec<String> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        ring.ciphers.iter().map(|(id, _)| key_id_text(*id)).collect()
    }

    /// Appends the value as it stands in the file to `out`.
    pub(super) fn seal(&self, area: Area, key: &[u8], plain: &Plain, out: &mut Vec<u8>) -> Result<(), StoreError> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let current = ring.current.and_then(|id| ring.ciphers.iter().find(|(known, _)| *known == id));
        let Some((id, cipher)) = current else {
            out.push(PLAIN);
            out.extend_from_slice(&plain.marker.bytes());
            out.extend_from_slice(&plain.payload);
            return Ok(());
        };
        let nonce = self.nonce()?;
        out.reserve(1 + Marker::BYTES + KEY_ID_BYTES + NONCE_BYTES + plain.payload.len() + TAG_BYTES);
        out.push(SEALED);
        out.extend_from_slice(&plain.marker.bytes());
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(&plain.payload);
        let context = context(area, key, plain.marker, *id);
        let tag = cipher
            .encrypt_inout_detached(&nonce.into(), &context, InOutBuf::from(&mut out[start..]))
            .map_err(|e| StoreError::Encode { kind: area.name().into(), why: e.to_string() })?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// The value in `bytes`, which stand at `area`/`key`.
    pub(super) fn open(&self, area: Area, key: &[u8], bytes: &[u8]) -> Result<Plain, StoreError> {
        let damaged = |detail: &str| StoreError::Damaged {
            what: format!("{}/{}", area.name(), key_text(key)),
            detail: detail.to_owned(),
        };
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let (format, rest) = bytes.split_first().ok_or_else(|| damaged("it is empty"))?;
        let (marker, rest) = Marker::read(rest).ok_or_else(|| damaged("it is cut off"))?;
        match *format {
            PLAIN if ring.ciphers.is_empty() => Ok(Plain { marker, payload: rest.to_vec() }),
            PLAIN => Err(damaged("it is not encrypted, as everything here must be")),
            SEALED => {
                let cut = || damaged("it is cut off");
                let (id, rest) = rest.split_first_chunk::<KEY_ID_BYTES>().ok_or_else(cut)?;
                let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or_else(cut)?;
                let (cipher_text, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or_else(cut)?;
                let id = u32::from_le_bytes(*id);
                let cipher = ring.ciphers.iter().find(|(known, _)| *known == id).map(|(_, cipher)| cipher);
                let cipher = cipher.ok_or_else(|| StoreError::WrongKey {
                    needed: key_id_text(id),
                    given: ring.ciphers.iter().map(|(id, _)| key_id_text(*id)).collect(),
                })?;
                let mut payload = cipher_text.to_vec();
                let context = context(area, key, marker, id);
                cipher
                    .decrypt_inout_detached(
                        &(*nonce).into(),
                        &context,
                        InOutBuf::from(&mut payload[..]),
                        &(*tag).into(),
                    )
                    .map_err(|_| damaged("it does not decrypt: altered, moved, or sealed with another key"))?;
                Ok(Plain { marker, payload })
            }
            other => Err(damaged(&format!("layout {other} is not known"))),
        }
    }

    /// The id of the key that sealed `bytes`, if it is sealed.
    pub(super) fn key_id_of(bytes: &[u8]) -> Option<u32> {
        let at = 1 + Marker::BYTES;
        (bytes.first() == Some(&SEALED))
            .then(|| bytes.get(at..at + KEY_ID_BYTES)?.first_chunk().copied())
            .flatten()
            .map(u32::from_le_bytes)
    }

    fn nonce(&self) -> Result<[u8; NONCE_BYTES], StoreError> {
        let mut pool = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nonce) = pool.pop() {
            return Ok(nonce);
        }
        let mut bytes = [0; NONCE_BYTES * NONCES_AT_ONCE];
        fill_random(&mut bytes)?;
        let (chunks, _) = bytes.as_chunks::<NONCE_BYTES>();
        pool.extend_from_slice(&chunks[1..]);
        Ok(chunks[0])
    }
}

/// What is authenticated beside the value. Table names and markers have fixed ends, so no two contexts look alike.
fn context(area: Area, key: &[u8], marker: Marker, key_id: u32) -> Vec<u8> {
    let mut context = Vec::with_capacity(area.name().len() + 1 + Marker::BYTES + KEY_ID_BYTES + key.len());
    context.extend_from_slice(area.name().as_bytes());
    context.push(0);
    context.extend_from_slice(&marker.bytes());
    context.extend_from_slice(&key_id.to_le_bytes());
    context.extend_from_slice(key);
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Plain {
        Plain { marker: Marker { kind: *b"test", version: 3 }, payload: b"sixteen tons and what do you get".to_vec() }
    }

    #[test]
    fn a_value_opens_only_where_it_was_sealed() {
        let key = StoreKey::generate().unwrap();
        let sealer = Sealer::with_keys(std::slice::from_ref(&key));
        let mut bytes = Vec::new();
        sealer.seal(Area::Vms, b"vm-1", &plain(), &mut bytes).unwrap();
        assert_eq!(sealer.open(Area::Vms, b"vm-1", &bytes).unwrap(), plain());
        assert!(!bytes.windows(7).any(|w| w == b"sixteen"));
        assert!(sealer.open(Area::Vms, b"vm-2", &bytes).is_err());
        assert!(sealer.open(Area::Jobs, b"vm-1", &bytes).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_sealed_value_is_refused() {
        let sealer = Sealer::with_keys(&[StoreKey::generate().unwrap()]);
        let mut bytes = Vec::new();
        sealer.seal(Area::Vms, b"vm-1", &plain(), &mut bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(sealer.open(Area::Vms, b"vm-1", &bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(sealer.open(Area::Vms, b"vm-1", &bytes[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_plain_value_in_a_store_with_a_key_is_refused() {
        let mut bytes = Vec::new();
        Sealer::plain().seal(Area::Vms, b"vm-1", &plain(), &mut bytes).unwrap();
        assert_eq!(Sealer::plain().open(Area::Vms, b"vm-1", &bytes).unwrap(), plain());
        let sealer = Sealer::with_keys(&[StoreKey::generate().unwrap()]);
        assert!(sealer.open(Area::Vms, b"vm-1", &bytes).unwrap_err().to_string().contains("not encrypted"));
    }

    #[test]
    fn a_second_key_opens_what_the_first_sealed_and_a_foreign_one_is_named() {
        let (old, new) = (StoreKey::generate().unwrap(), StoreKey::generate().unwrap());
        let sealer = Sealer::with_keys(std::slice::from_ref(&old));
        let (mut first, mut second) = (Vec::new(), Vec::new());
        sealer.seal(Area::Vms, b"vm-1", &plain(), &mut first).unwrap();
        sealer.add_key(&new);
        sealer.seal(Area::Vms, b"vm-1", &plain(), &mut second).unwrap();
        assert_eq!(sealer.open(Area::Vms, b"vm-1", &first).unwrap(), plain());
        assert_eq!(Sealer::key_id_of(&second), Some(new.id()));
        let error = Sealer::with_keys(&[old]).open(Area::Vms, b"vm-1", &second).unwrap_err();
        assert!(error.to_string().contains(&new.id_text()), "{error}");
    }
}
