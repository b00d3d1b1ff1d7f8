//! The first exchange on each connection. Owns: which version is spoken and which lives of their stores talk.
//! Always: the dialler speaks first; who it is was already proven by TLS, and its hello must agree with that.
//!
//! The layout of a hello never changes (a version must be readable to be refused), it can only grow at the end:
//! ```text
//! 0  magic "NVFH"    6  u16 oldest version spoken   10  u16 zero
//! 4  u16 length      8  u16 newest version spoken   12  u64 + u64 incarnation   28  u8 n, n bytes: region
//!                                                   then u8 m, m times u64: nonces of the lives before, newest first
//! ```
//! A hello that is not welcome is answered by closing the connection, with the code and the reason in the close.

use super::envelope;
use crate::types::limits::NAME_BYTES_MAX;
use crate::types::{Incarnation, LIVES_NAMED_MAX, Lineage, RegionName};

const MAGIC: [u8; 4] = *b"NVFH";
const FIXED_BYTES: usize = 29;
/// A longer hello is not read.
pub const HELLO_BYTES_MAX: usize = 512;
/// What is read first: it says how long the whole is.
pub const PREFIX_BYTES: usize = 6;

const _: () = assert!(FIXED_BYTES + NAME_BYTES_MAX + 1 + LIVES_NAMED_MAX * 8 <= HELLO_BYTES_MAX);
const _: () = assert!(LIVES_NAMED_MAX <= u8::MAX as usize);

/// Versions that an end speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The oldest: not below the configured floor.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl Versions {
    /// What this build speaks, and nothing below `floor`.
    pub fn ours(floor: u16) -> Versions {
        Versions { min: floor.max(envelope::VERSION_MIN), max: envelope::VERSION }
    }
    /// The newest version that both speak.
    pub fn agree(self, other: Versions) -> Option<u16> {
        let version = self.max.min(other.max);
        (version >= self.min && version >= other.min).then_some(version)
    }
}

/// A hello, or the answer to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What its sender speaks.
    pub versions: Versions,
    /// The life of the sender's store, and those before it.
    pub lineage: Lineage,
    /// The sender's region.
    pub region: RegionName,
}

/// The bytes are not a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are not a hello")]
pub struct NotAHello;

impl Hello {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let region = self.region.as_str().as_bytes();
        let before = &self.lineage.before[..self.lineage.before.len().min(LIVES_NAMED_MAX)];
        let length = FIXED_BYTES + region.len() + 1 + before.len() * 8;
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&(length as u16).to_be_bytes());
        out.extend_from_slice(&self.versions.min.to_be_bytes());
        out.extend_from_slice(&self.versions.max.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.lineage.now.counter.to_be_bytes());
        out.extend_from_slice(&self.lineage.now.nonce.to_be_bytes());
        out.push(region.len() as u8);
        out.extend_from_slice(region);
        out.push(before.len() as u8);
        for nonce in before {
            out.extend_from_slice(&nonce.to_be_bytes());
        }
        out
    }

    /// The whole length of the hello that begins with `prefix`.
    pub fn length(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, NotAHello> {
        let length = usize::from(u16::from_be_bytes([prefix[4], prefix[5]]));
        if prefix[..4] == MAGIC && (FIXED_BYTES + 1..=HELLO_BYTES_MAX).contains(&length) {
            Ok(length)
        } else {
            Err(NotAHello)
        }
    }

    /// Decodes a whole hello; what a later version appended is skipped.
    pub fn decode(bytes: &[u8]) -> Result<Hello, NotAHello> {
        let prefix = bytes.first_chunk::<PREFIX_BYTES>().ok_or(NotAHello)?;
        if bytes.len() != Self::length(prefix)? {
            return Err(NotAHello);
        }
        let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u64_at =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes).ok_or(NotAHello);
        let end = FIXED_BYTES + usize::from(bytes[FIXED_BYTES - 1]);
        let region = bytes.get(FIXED_BYTES..end).ok_or(NotAHello)?;
        let region = std::str::from_utf8(region).ok().and_then(|text| text.parse().ok()).ok_or(NotAHello)?;
        let before = match bytes.get(end) {
            None => Vec::new(),
            Some(count) if usize::from(*count) > LIVES_NAMED_MAX => return Err(NotAHello),
            Some(count) => (0..usize::from(*count)).map(|at| u64_at(end + 1 + at * 8)).collect::<Result<_, _>>()?,
        };
        Ok(Hello {
            versions: Versions { min: u16_at(6), max: u16_at(8) },
            lineage: Lineage { now: Incarnation { counter: u64_at(12)?, nonce: u64_at(20)? }, before },
            region,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken_and_none_below_the_floor() {
        let v = |min, max| Versions { min, max };
        assert_eq!(v(1, 3).agree(v(2, 5)), Some(3));
        assert_eq!(v(2, 5).agree(v(1, 3)), Some(3));
        assert_eq!(v(4, 5).agree(v(1, 3)), None);
        assert_eq!(v(1, 3).agree(v(4, 5)), None);
    }
}
