//! Values with a version. Owns: the trait of everything that is stored, its marker, encoding and migration.
//! Always: bytes carry kind and version; a newer version is refused and left untouched; an older one is migrated
//! step by step. Payloads are postcard: field order is the format, so a stored type is frozen once released, and
//! changed by a new type with the next version.
//! Not here: encryption (`seal.rs`).

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;
use crate::types::limits::VALUE_BYTES_MAX;

/// Kind and version of a value, written before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// Four letters that name the kind.
    pub kind: [u8; 4],
    /// Version, from 1.
    pub version: u8,
}

impl Marker {
    pub(super) const BYTES: usize = 5;

    /// As it stands on disk.
    pub fn bytes(self) -> [u8; Marker::BYTES] {
        let [a, b, c, d] = self.kind;
        [a, b, c, d, self.version]
    }
    pub(super) fn read(bytes: &[u8]) -> Option<(Marker, &[u8])> {
        let (head, rest) = bytes.split_first_chunk::<{ Marker::BYTES }>()?;
        let [a, b, c, d, version] = *head;
        Some((Marker { kind: [a, b, c, d], version }, rest))
    }
    fn kind_text(self) -> String {
        self.kind.escape_ascii().to_string()
    }
}

/// A value before it is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plain {
    pub(super) marker: Marker,
    pub(super) payload: Vec<u8>,
}

/// A type whose bytes outlive the process. Implement it with [`stored!`](crate::stored) and freeze version 1 with
/// a fixture (`store::fixture`).
pub trait Stored: Serialize + DeserializeOwned + Send + 'static {
    /// Four letters, unique in the program.
    const KIND: [u8; 4];
    /// The version of this type, from 1.
    const VERSION: u8;
    /// The type of the version before; [`NoPrevious`] for version 1.
    type Previous: Stored;
    /// The same value in this version.
    fn migrate(previous: Self::Previous) -> Self;
}

/// What came before version 1: nothing.
#[derive(Debug, Serialize, serde::Deserialize)]
pub enum NoPrevious {}

impl Stored for NoPrevious {
    const KIND: [u8; 4] = *b"none";
    const VERSION: u8 = 0;
    type Previous = NoPrevious;
    fn migrate(previous: NoPrevious) -> NoPrevious {
        previous
    }
}

/// Implements [`Stored`]: `stored!(VmRecord, b"vmrc")` for a first version, and
/// `stored!(JobRecordV2, b"jobr", 2, from JobRecord => |old| JobRecordV2 { .. })` for a later one.
#[macro_export]
macro_rules! stored {
    ($type:ty, $kind:literal) => {
        impl $crate::store::Stored for $type {
            const KIND: [u8; 4] = *$kind;
            const VERSION: u8 = 1;
            type Previous = $crate::store::NoPrevious;
            fn migrate(previous: $crate::store::NoPrevious) -> Self {
                match previous {}
            }
        }
    };
    ($type:ty, $kind:literal, $version:literal, from $previous:ty => $migrate:expr) => {
        impl $crate::store::Stored for $type {
            const KIND: [u8; 4] = *$kind;
            const VERSION: u8 = $version;
            type Previous = $previous;
            fn migrate(previous: $previous) -> Self {
                let migrate: fn($previous) -> Self = $migrate;
                migrate(previous)
            }
        }
    };
}

/// The marker of a type.
pub(super) fn marker_of<V: Stored>() -> Marker {
    Marker { kind: V::KIND, version: V::VERSION }
}

pub(super) fn plain_of<V: Stored>(value: &V) -> Result<Plain, StoreError> {
    let marker = marker_of::<V>();
    let payload =
        postcard::to_stdvec(value).map_err(|e| StoreError::Encode { kind: marker.kind_text(), why: e.to_string() })?;
    check_len(payload.len())?;
    Ok(Plain { marker, payload })
}

pub(super) fn check_len(bytes: usize) -> Result<(), StoreError> {
    if bytes <= VALUE_BYTES_MAX {
        Ok(())
    } else {
        Err(StoreError::TooLarge { what: "a stored value", bytes, max: VALUE_BYTES_MAX })
    }
}

/// The value in `plain`, which stands at `table`/`key`.
pub(super) fn value_of<V: Stored>(plain: &Plain, table: &'static str, key: &str) -> Result<V, StoreError> {
    let damaged = |detail: String| StoreError::Damaged { what: format!("{table}/{key}"), detail };
    let Marker { kind, version } = plain.marker;
    if kind != V::KIND {
        let want = marker_of::<V>().kind_text();
        return Err(damaged(format!("it holds a '{}' where a '{want}' belongs", plain.marker.kind_text())));
    }
    if version > V::VERSION {
        return Err(StoreError::Newer {
            table,
            key: key.to_owned(),
            kind: plain.marker.kind_text(),
            found: version,
            known: V::VERSION,
        });
    }
    migrated(version, &plain.payload).map_err(damaged)
}

fn migrated<V: Stored>(version: u8, payload: &[u8]) -> Result<V, String> {
    if version == V::VERSION && version > 0 {
        let (value, rest) = postcard::take_from_bytes(payload).map_err(|e| format!("not a version {version}: {e}"))?;
        return if rest.is_empty() { Ok(value) } else { Err(format!("{} bytes too many", rest.len())) };
    }
    if V::VERSION == 0 {
        return Err(format!("version {version} is not one this program ever wrote"));
    }
    Ok(V::migrate(migrated::<V::Previous>(version, payload)?))
}

/// A value as versioned bytes, for what carries its own: journal entries, checkpoints, commands.
///
/// # Errors
/// [`StoreError::TooLarge`] or [`StoreError::Encode`].
pub fn to_bytes<V: Stored>(value: &V) -> Result<Vec<u8>, StoreError> {
    let plain = plain_of(value)?;
    let mut bytes = plain.marker.bytes().to_vec();
    bytes.extend_from_slice(&plain.payload);
    Ok(bytes)
}

/// The value of versioned bytes; `what` names them in errors.
///
/// # Errors
/// [`StoreError::Newer`] if a newer program wrote it, [`StoreError::Damaged`] if it is none.
pub fn from_bytes<V: Stored>(what: &'static str, bytes: &[u8]) -> Result<V, StoreError> {
    let (marker, payload) = Marker::read(bytes)
        .ok_or_else(|| StoreError::Damaged { what: what.into(), detail: format!("only {} bytes", bytes.len()) })?;
    value_of(&Plain { marker, payload: payload.to_vec() }, what, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct First {
        cores: u32,
    }
    stored!(First, b"test");

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Second {
        milli_cores: u64,
    }
    stored!(Second, b"test", 2, from First => |old| Second { milli_cores: u64::from(old.cores) * 1000 });

    #[test]
    fn an_older_version_is_migrated() {
        let bytes = to_bytes(&First { cores: 3 }).unwrap();
        assert_eq!(from_bytes::<Second>("a test", &bytes).unwrap(), Second { milli_cores: 3000 });
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = to_bytes(&Second { milli_cores: 1 }).unwrap();
        bytes[4] = 9;
        let error = from_bytes::<Second>("a test", &bytes).unwrap_err();
        assert!(error.to_string().contains("written by newer version v9"), "{error}");
    }

    #[test]
    fn another_kind_zero_version_and_trailing_bytes_are_damage() {
        let good = to_bytes(&First { cores: 3 }).unwrap();
        let mut kind = good.clone();
        kind[0] = b'X';
        let mut zero = good.clone();
        zero[4] = 0;
        let mut long = good.clone();
        long.push(0);
        for bad in [&kind, &zero, &long, &good[..5].to_vec(), &good[..3].to_vec()] {
            assert!(matches!(from_bytes::<First>("a test", bad), Err(StoreError::Damaged { .. })), "{bad:?}");
        }
    }
}
