//! Links without chance, for simulations: two runs with one seed send the same bytes at the same moments.
//! Owns: what stands in for each source of chance in a QUIC endpoint and in TLS.
//! Always: sizes, lengths and checks are those of production, so that a simulated link behaves like a real one; nothing
//! here keeps a secret, so it can be had by [`super::QuicNode::start_on`] alone, which opens no socket.
//! Not here: the network on which it runs (`chaos/sim/udp.rs`); keys of certificates (`trust/ca.rs`).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use quinn::crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey, ServerConfig};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, TimeSource};
use quinn_proto::InvalidCid;
use rustls::NamedGroup;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, PeerMisbehaved};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::clock::Clock;
use crate::types::{Incarnation, Millis, RegionName};

/// What determines a node in a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Determined {
    /// Of the whole run. Each region and each of its lives draws its own from it, as they share no chance in reality.
    pub seed: u64,
}

/// A node's stand-ins.
pub(super) struct Seeded {
    seed: u64,
    clock: Clock,
    initial_ids: Arc<Mutex<fastrand::Rng>>,
}

/// What is drawn for which purpose.
#[derive(Clone, Copy)]
enum Purpose {
    Endpoint = 1,
    Ids,
    IdTag,
    InitialIds,
    Resets,
    Tokens,
}

impl Seeded {
    pub fn new(determined: Determined, region: &RegionName, life: Incarnation) -> Seeded {
        let seed = xxh3_64_with_seed(region.as_str().as_bytes(), determined.seed);
        let seed = xxh3_64_with_seed(&[life.counter.to_le_bytes(), life.nonce.to_le_bytes()].concat(), seed);
        let initial_ids = Arc::new(Mutex::new(fastrand::Rng::with_seed(of(seed, Purpose::InitialIds))));
        Seeded { seed, clock: Clock::start(), initial_ids }
    }

    pub fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(Tags(of(self.seed, Purpose::Resets))));
        let mut chance = [0; 32];
        fastrand::Rng::with_seed(of(self.seed, Purpose::Endpoint)).fill(&mut chance);
        config.rng_seed(Some(chance));
        let (ids, tag) = (of(self.seed, Purpose::Ids), Tags(of(self.seed, Purpose::IdTag)));
        config.cid_generator(move || Box::new(Ids { rng: fastrand::Rng::with_seed(ids), tag }));
        config
    }

    pub fn server(&self, crypto: Arc<dyn ServerConfig>) -> quinn::ServerConfig {
        let mut config = quinn::ServerConfig::new(crypto, Arc::new(Tags(of(self.seed, Purpose::Tokens))));
        config.time_source(Arc::new(SinceStart(self.clock.clone())));
        config
    }

    pub fn dialling(&self, config: &mut quinn::ClientConfig) {
        let rng = Arc::clone(&self.initial_ids);
        config.initial_dst_cid_provider(Arc::new(move || {
            let mut id = [0; INITIAL_ID_BYTES];
            rng.lock().unwrap_or_else(PoisonError::into_inner).fill(&mut id);
            ConnectionId::new(&id)
        }));
    }
}

fn of(seed: u64, purpose: Purpose) -> u64 {
    xxh3_64_with_seed(&[purpose as u8], seed)
}

/// A clock that says 1970 when it starts.
struct SinceStart(Clock);

impl TimeSource for SinceStart {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Millis(self.0.now().0).duration()
    }
}

/// Checksums in the place of keyed signatures: they tell what is whole and ours, and keep nobody from forging it.
#[derive(Clone, Copy)]
struct Tags(u64);

impl Tags {
    fn fill(self, data: &[u8], out: &mut [u8]) {
        for (number, part) in (0..).zip(out.chunks_mut(8)) {
            let tag = xxh3_64_with_seed(data, self.0.wrapping_add(number)).to_le_bytes();
            part.copy_from_slice(&tag[..part.len()]);
        }
    }
    fn check(self, data: &[u8], tag: &[u8]) -> Result<(), CryptoError> {
        let mut ours = [0; 64];
        let ours = ours.get_mut(..tag.len()).ok_or(CryptoError)?;
        self.fill(data, ours);
        if ours == tag { Ok(()) } else { Err(CryptoError) }
    }
}

impl HmacKey for Tags {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        self.fill(data, signature_out);
    }
    fn signature_len(&self) -> usize {
        32
    }
    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.check(data, signature)
    }
}

impl HandshakeTokenKey for Tags {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        Box::new(Tags(xxh3_64_with_seed(random_bytes, self.0)))
    }
}

/// As long as the tag of what it stands in for.
const TOKEN_TAG_BYTES: usize = 16;

impl AeadKey for Tags {
    fn seal(&self, data: &mut Vec<u8>, _additional_data: &[u8]) -> Result<(), CryptoError> {
        let mut tag = [0; TOKEN_TAG_BYTES];
        self.fill(data, &mut tag);
        data.extend_from_slice(&tag);
        Ok(())
    }
    fn open<'a>(&self, data: &'a mut [u8], _additional_data: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        let whole = data.len().checked_sub(TOKEN_TAG_BYTES).ok_or(CryptoError)?;
        let (plain, tag) = data.split_at_mut(whole);
        self.check(plain, tag)?;
        Ok(plain)
    }
}

/// Connection ids in quinn's shape: something drawn, and a tag by which a node knows its own.
struct Ids {
    rng: fastrand::Rng,
    tag: Tags,
}

const ID_BYTES: usize = 8;
/// Of the id under which a dialler knows the dialled one at first: as long as QUIC allows.
const INITIAL_ID_BYTES: usize = 20;
const ID_DRAWN_BYTES: usize = 3;

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        let (drawn, tag) = id.split_at_mut(ID_DRAWN_BYTES);
        self.rng.fill(drawn);
        self.tag.fill(drawn, tag);
        ConnectionId::new(&id)
    }
    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        let (drawn, tag) = cid.split_at_checked(ID_DRAWN_BYTES).ok_or(InvalidCid)?;
        self.tag.check(drawn, tag).map_err(|_| InvalidCid)
    }
    fn cid_len(&self) -> usize {
        ID_BYTES
    }
    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// TLS that draws nothing. Two connections still have different keys, because their ids, which are drawn from the seed,
/// are part of what the keys are made of.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![&NoExchange],
        secure_random: &NoChance,
        ..rustls::crypto::ring::default_provider()
    }
}

/// What is said where something random or secret is due.
const SAID: u8 = 0x5A;

#[derive(Debug)]
struct NoChance;

impl SecureRandom for NoChance {
    fn fill(&self, buf: &mut [u8]) -> Result<(), GetRandomFailed> {
        buf.fill(SAID);
        Ok(())
    }
}

/// A key exchange that looks like X25519 on the wire and whose secret everybody knows.
#[derive(Debug)]
struct NoExchange;

const PUBLIC_KEY: [u8; 32] = [SAID; 32];

impl SupportedKxGroup for NoExchange {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(NoExchange))
    }
    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }
    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for NoExchange {
    fn complete(self: Box<Self>, peer_pub_key: &[u8]) -> Result<SharedSecret, Error> {
        if peer_pub_key.len() != PUBLIC_KEY.len() {
            return Err(PeerMisbehaved::InvalidKeyShare.into());
        }
        Ok(SharedSecret::from(&PUBLIC_KEY[..]))
    }
    fn pub_key(&self) -> &[u8] {
        &PUBLIC_KEY
    }
    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl fmt::Debug for Seeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seeded({:#x})", self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeded(seed: u64, region: &str, counter: u64) -> Seeded {
        Seeded::new(Determined { seed }, &region.parse().unwrap(), Incarnation { counter, nonce: 1 })
    }

    #[test]
    fn each_region_and_each_life_draws_its_own() {
        let one = seeded(1, "eu", 1).seed;
        assert_eq!(one, seeded(1, "eu", 1).seed);
        for other in [seeded(2, "eu", 1), seeded(1, "us", 1), seeded(1, "eu", 2)] {
            assert_ne!(one, other.seed);
        }
    }

    #[test]
    fn a_node_knows_its_own_connection_ids_and_no_others() {
        let ids = |seed| Ids { rng: fastrand::Rng::with_seed(seed), tag: Tags(seed) };
        let (mut ours, mut theirs) = (ids(1), ids(2));
        for _ in 0..100 {
            let own = ours.generate_cid();
            assert!(ours.validate(&own).is_ok());
            assert!(ours.validate(&theirs.generate_cid()).is_err());
        }
    }

    #[test]
    fn a_token_is_opened_by_its_own_key_while_it_is_whole() {
        let key = |random: &[u8]| Tags(7).aead_from_hkdf(random);
        let mut sealed = b"token".to_vec();
        key(b"a").seal(&mut sealed, &[]).unwrap();
        assert_eq!(key(b"a").open(&mut sealed.clone(), &[]).unwrap(), b"token");
        assert!(key(b"b").open(&mut sealed.clone(), &[]).is_err());
        sealed[0] ^= 1;
        assert!(key(b"a").open(&mut sealed, &[]).is_err());
        assert!(key(b"a").open(&mut [0; 3], &[]).is_err());
    }
}
