//! Trust (law 8.1). Owns: each region's own CA, the leaves that it signs, and which CA speaks for which region.
//! Always: a certificate is verified against the CA set of the region that it claims, and against nothing else; its
//! names are compared exactly; a leaf lives at most a day. There is no federation CA.
//! Not here: how TLS is driven (`quic/tls.rs`); who edits the trust store (the node, from its configuration).

mod ca;
mod identity;
mod store;

pub use ca::{Leaf, RegionCa, TrustError};
pub use identity::{Identity, keep_renewed};
pub use store::{CertificateRefusal, Role, TrustStore, VerifiedPeer};

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;
use crate::types::{FederationName, Millis, RegionName, WallMillis};

/// Longest life of a leaf: a day, the back-dating included.
pub const LEAF_LIFE_MAX: Millis = Millis(24 * 3_600_000);
/// A leaf is dated back so much, for peers whose clock is behind.
pub const LEAF_BACKDATE: Millis = Millis(300_000);

/// The URI by which a region is known in certificates.
pub fn region_uri(federation: &FederationName, region: &RegionName) -> String {
    format!("spiffe://{federation}/region/{region}")
}

/// The DNS name by which a region is dialled.
pub fn region_dns(federation: &FederationName, region: &RegionName) -> String {
    format!("{region}.{federation}")
}

/// The wall clock as certificates see it.
pub trait CertificateClock: Debug + Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn wall(&self) -> WallMillis;
}

impl CertificateClock for Clock {
    fn wall(&self) -> WallMillis {
        Clock::wall(self)
    }
}

/// A wall clock that is set by hand: tests of expiry use it.
#[derive(Debug, Default)]
pub struct SetClock(AtomicU64);

impl SetClock {
    /// A clock that stands at `at`.
    pub fn at(at: WallMillis) -> SetClock {
        SetClock(AtomicU64::new(at.0))
    }
    /// Moves it to `at`.
    pub fn set(&self, at: WallMillis) {
        self.0.store(at.0, Ordering::SeqCst);
    }
}

impl CertificateClock for SetClock {
    fn wall(&self) -> WallMillis {
        WallMillis(self.0.load(Ordering::SeqCst))
    }
}
