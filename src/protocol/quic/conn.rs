//! One connection to one peer. Owns: how it comes about (TLS, then hello), what it counts, and why it is closed.
//! Always: a [`Conn`] is of a peer whose certificate was verified, whose hello agrees with it, and whose incarnation
//! was accepted and persisted.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;

use super::tls::TlsError;
use super::{Class, Shared, transport};
use crate::protocol::hello::{self, Hello};
use crate::protocol::link::{PeerId, Refusal, RefusalCode, Refused};
use crate::protocol::trust::{CertificateRefusal, Role, VerifiedPeer};
use crate::types::limits::{HANDSHAKE_MS_MAX, HEARTBEAT_MS};
use crate::types::units::KIB;
use crate::types::{IncarnationVerdict, Millis, RegionName, Tick, WallMillis};

/// Why we close a connection; append only, because the other end reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseCode {
    /// This node stops.
    Closing = 0,
    /// Another connection of the pair took its place.
    Replaced = 1,
    /// The peer does not keep to the protocol.
    Protocol = 2,
    /// No CA speaks for the peer any more.
    Revoked = 3,
    /// A certificate of the connection has expired.
    Expired = 4,
    /// Cut on purpose.
    Severed = 5,
}

/// Added to a [`RefusalCode`] when a hello is refused.
const REFUSED_BASE: u32 = 0x100;

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> VarInt {
        VarInt::from_u32(code as u32)
    }
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum EstablishError {
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("the certificate of the peer: {0}")]
    Certificate(#[from] CertificateRefusal),
    #[error("the peer speaks '{0}', which is not a protocol of ours")]
    Protocol(String),
    #[error("the peer did not say hello as it should")]
    Hello,
    #[error("no answer within {HANDSHAKE_MS_MAX}")]
    TimedOut,
    #[error("'{0}' can't be resolved to an address")]
    Address(String),
    #[error("dialling")]
    Dial(#[from] quinn::ConnectError),
    #[error("dialling")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Refused(Refusal),
}

impl EstablishError {
    /// For metrics; none if the reason was counted where it arose.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Connection(ConnectionError::TransportError(error)) => {
                // TLS alerts, by their numbers: verifiers have counted what is about certificates.
                let alert = u64::from(error.code).checked_sub(0x100);
                match alert {
                    Some(42..=49 | 112) => None,
                    Some(116) => Some("no-certificate"),
                    Some(120) => Some("wrong-protocol"),
                    Some(_) => Some("handshake-failed"),
                    None => Some("transport-error"),
                }
            }
            Self::Connection(ConnectionError::TimedOut) | Self::TimedOut => Some("handshake-timeout"),
            Self::Connection(ConnectionError::ApplicationClosed(close)) => {
                let code = u32::try_from(u64::from(close.error_code)).ok();
                let refused = code.and_then(|c| c.checked_sub(REFUSED_BASE)).and_then(|c| u16::try_from(c).ok());
                refused.map(|code| RefusalCode(code).name())
            }
            Self::Connection(_) => Some("handshake-failed"),
            Self::Certificate(refusal) => Some(refusal.reason()),
            Self::Protocol(_) => Some("wrong-protocol"),
            Self::Hello => Some("malformed"),
            Self::Address(_) | Self::Dial(_) | Self::Tls(_) => Some("dial-failed"),
            Self::Refused(refusal) => Some(refusal.code.name()),
        }
    }

    /// Which end wants nothing to do with the other, if that is why.
    pub fn refused(&self) -> Option<Refused> {
        const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;
        let by_peer = match self {
            Self::Connection(ConnectionError::ApplicationClosed(close)) => {
                u64::from(close.error_code) >= u64::from(REFUSED_BASE)
            }
            // An alert that came; our own is a refusal of the certificate.
            Self::Connection(ConnectionError::ConnectionClosed(close)) => {
                TLS_ALERTS.contains(&u64::from(close.error_code))
            }
            Self::Connection(ConnectionError::TransportError(error)) if TLS_ALERTS.contains(&u64::from(error.code)) => {
                return Some(Refused { by_peer: false, reason: self.reason().unwrap_or("certificate") });
            }
            Self::Certificate(_) | Self::Refused(_) | Self::Protocol(_) => {
                return self.reason().map(|reason| Refused { by_peer: false, reason });
            }
            _ => false,
        };
        by_peer.then(|| Refused { by_peer, reason: self.reason().unwrap_or("certificate") })
    }
}

/// What was already added to the peer's totals.
#[derive(Default)]
struct Accounted {
    at: Tick,
    sent: u64,
    received: u64,
    datagrams: u64,
}

/// What [`Conn::account`] found since it was called last.
pub(super) struct Delta {
    pub sent: u64,
    pub received: u64,
    span: Millis,
}

impl Delta {
    /// Bytes per second in the busier direction; none if neither was busy enough to say what the link can carry.
    pub fn busy_rate(&self) -> Option<u64> {
        const BUSY_BYTES: u64 = 256 * KIB;
        let busy = self.sent.max(self.received);
        (busy >= BUSY_BYTES && self.span.0 > 0).then(|| busy * 1000 / self.span.0)
    }
    /// Bytes per second that came in.
    pub fn received_rate(&self) -> u64 {
        self.received * 1000 / self.span.0.max(1)
    }
}

/// A connection to a peer.
pub(super) struct Conn {
    pub class: Class,
    pub peer: PeerId,
    pub quinn: Connection,
    pub dialled_by: RegionName,
    /// When our leaf expires that this connection shows.
    pub own_not_after: WallMillis,
    /// When the peer's leaf expires.
    pub peer_not_after: WallMillis,
    pub established: Tick,
    /// The version of the envelope that both speak.
    pub version: u16,
    chain: Vec<CertificateDer<'static>>,
    heard: AtomicU64,
    accounted: Mutex<Accounted>,
    streams: AtomicUsize,
    draining: AtomicBool,
}

/// Counts a stream as in use while it lives.
pub(super) struct InUse(Arc<Conn>);

impl InUse {
    pub fn of(conn: &Arc<Conn>) -> InUse {
        conn.streams.fetch_add(1, Ordering::Relaxed);
        InUse(Arc::clone(conn))
    }
    pub fn conn(&self) -> &Arc<Conn> {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Conn {
    /// When the first of its two leaves expires, at which it is closed, and when the second.
    fn expiries(&self) -> (WallMillis, WallMillis) {
        (self.own_not_after.min(self.peer_not_after), self.own_not_after.max(self.peer_not_after))
    }
    /// Closes it. Harmless if it is closed already.
    pub fn close(&self, code: CloseCode, why: &str) {
        self.quinn.close(code.into(), why.as_bytes());
    }
    pub fn is_closed(&self) -> bool {
        self.quinn.close_reason().is_some()
    }
    /// No longer used for new requests; closed by [`Conn::is_drained`] once nothing uses it.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
    pub fn is_drained(&self) -> bool {
        self.draining.load(Ordering::Relaxed) && self.streams.load(Ordering::Relaxed) == 0
    }
    /// How long nothing was heard.
    pub fn silence(&self, now: Tick) -> Millis {
        self.hear(now, self.quinn.stats().udp_rx.datagrams);
        now.since(Tick(self.heard.load(Ordering::Relaxed)))
    }
    fn hear(&self, now: Tick, datagrams: u64) {
        let mut accounted = self.accounted.lock().unwrap_or_else(PoisonError::into_inner);
        if datagrams > accounted.datagrams {
            accounted.datagrams = datagrams;
            self.heard.store(now.0, Ordering::Relaxed);
        }
    }

    /// What happened since the last call.
    pub fn account(&self, now: Tick) -> Delta {
        let stats = self.quinn.stats();
        self.hear(now, stats.udp_rx.datagrams);
        let mut last = self.accounted.lock().unwrap_or_else(PoisonError::into_inner);
        let (sent, received) = (stats.udp_tx.bytes - last.sent, stats.udp_rx.bytes - last.received);
        let span = now.since(last.at);
        (last.at, last.sent, last.received) = (now, stats.udp_tx.bytes, stats.udp_rx.bytes);
        Delta { sent, received, span }
    }

    /// Whether one of its certificates has expired.
    pub fn is_expired(&self, shared: &Shared) -> bool {
        shared.tls.wall.wall() >= self.expiries().0
    }
    /// Whether the peer's certificate would be accepted now.
    pub fn check_trust(&self, shared: &Shared) -> Result<(), CertificateRefusal> {
        let now = shared.tls.wall.wall();
        let role = if self.dialled_by == self.peer.region { Role::Dialler } else { Role::Dialled };
        shared.tls.trust.verify(&self.chain[0], &self.chain[1..], role, Some(&self.peer.region), now).map(|_| ())
    }

    /// Whether `self` should be used rather than `other`, both being up. Both ends judge alike, so that of two
    /// connections dialled at once both keep the same one.
    pub fn is_better_than(&self, other: &Conn, now: Tick) -> bool {
        let (ours, theirs) = (self.peer.incarnation.counter, other.peer.incarnation.counter);
        if ours != theirs {
            return ours > theirs;
        }
        // Silent for longer than a live one can be: the other end has probably given it up.
        if other.silence(now).0 > HEARTBEAT_MS.0 + HEARTBEAT_MS.0 / 2 {
            return true;
        }
        // A renewed leaf wants to be used. Both ends know both leaves.
        if self.expiries() != other.expiries() {
            return self.expiries() > other.expiries();
        }
        // The same dialler again: it would not have dialled if it still had the other one.
        self.dialled_by <= other.dialled_by
    }
}

fn chain_of(connection: &Connection) -> Result<Vec<CertificateDer<'static>>, EstablishError> {
    let identity = connection.peer_identity().and_then(|id| id.downcast::<Vec<CertificateDer<'static>>>().ok());
    identity.map(|chain| *chain).filter(|chain| !chain.is_empty()).ok_or(CertificateRefusal::Malformed.into())
}

/// A connection after TLS, before hello.
pub(super) struct Proven {
    pub quinn: Connection,
    pub class: Class,
    pub verified: VerifiedPeer,
    chain: Vec<CertificateDer<'static>>,
    /// The end of our own leaf, as it was when the handshake began.
    own_not_after: WallMillis,
}

/// Reads from a connection whose handshake is over what it proved.
pub(super) fn proven(
    shared: &Shared,
    quinn: Connection,
    dialled: Option<&RegionName>,
    own_not_after: WallMillis,
) -> Result<Proven, EstablishError> {
    let data = quinn.handshake_data().and_then(|d| d.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    let protocol = data.and_then(|data| data.protocol).unwrap_or_default();
    let class = Class::of_alpn(&protocol)
        .ok_or_else(|| EstablishError::Protocol(String::from_utf8_lossy(&protocol).chars().take(80).collect()))?;
    let chain = chain_of(&quinn)?;
    let role = if dialled.is_some() { Role::Dialled } else { Role::Dialler };
    let verified = shared.tls.trust.verify(&chain[0], &chain[1..], role, dialled, shared.tls.wall.wall())?;
    Ok(Proven { quinn, class, verified, chain, own_not_after })
}

impl Proven {
    /// The dialler's side of the hello.
    pub async fn dial_hello(self, shared: &Shared) -> Result<Conn, EstablishError> {
        let (mut send, mut recv) = self.quinn.open_bi().await?;
        say(&mut send, &shared.hello()).await?;
        let theirs = hear(&mut recv).await?;
        self.finish(shared, theirs, shared.us.region.clone()).await
    }

    /// The dialled one's side of the hello.
    pub async fn accept_hello(self, shared: &Shared) -> Result<Conn, EstablishError> {
        let (mut send, mut recv) = self.quinn.accept_bi().await?;
        let theirs = hear(&mut recv).await?;
        let (quinn, class, peer) = (self.quinn.clone(), self.class, self.verified.region.clone());
        let conn = self.finish(shared, theirs, peer).await?;
        transport::welcome(&quinn, class);
        say(&mut send, &shared.hello()).await?;
        Ok(conn)
    }

    /// Judges the peer's hello; closes the connection with the reason if it is refused.
    async fn finish(self, shared: &Shared, theirs: Hello, dialled_by: RegionName) -> Result<Conn, EstablishError> {
        let peer = PeerId { region: self.verified.region.clone(), incarnation: theirs.lineage.now };
        let refuse = |code, reason: String| {
            let refusal = Refusal::new(code, reason);
            let wire = VarInt::from_u32(REFUSED_BASE + u32::from(code.0));
            self.quinn.close(wire, refusal.reason_bytes());
            EstablishError::Refused(refusal)
        };
        if peer.region == shared.us.region {
            return Err(refuse(RefusalCode::IDENTITY, format!("this is region {} itself", peer.region)));
        }
        if theirs.region != peer.region {
            let reason = format!("the certificate is of {}, the hello of {}", peer.region, theirs.region);
            return Err(refuse(RefusalCode::IDENTITY, reason));
        }
        let Some(version) = shared.versions.agree(theirs.versions) else {
            let (ours, theirs) = (shared.versions, theirs.versions);
            let reason =
                format!("{} to {} are spoken here, {} to {} there", ours.min, ours.max, theirs.min, theirs.max);
            return Err(refuse(RefusalCode::VERSION, reason));
        };
        match shared.inbound.incarnation_seen(peer.region.clone(), theirs.lineage).await {
            IncarnationVerdict::Accept => {}
            IncarnationVerdict::NotNow => {
                return Err(refuse(RefusalCode::BUSY, "the incarnation can't be judged now".into()));
            }
            IncarnationVerdict::Stale => {
                let reason = format!("a later life of the store of {} than {} is known", peer.region, peer.incarnation);
                return Err(refuse(RefusalCode::STALE_INCARNATION, reason));
            }
        }
        let now = shared.clock.now();
        Ok(Conn {
            class: self.class,
            peer,
            dialled_by,
            own_not_after: self.own_not_after,
            peer_not_after: self.verified.not_after,
            established: now,
            version,
            chain: self.chain,
            heard: AtomicU64::new(now.0),
            accounted: Mutex::new(Accounted { at: now, ..Accounted::default() }),
            streams: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            quinn: self.quinn,
        })
    }
}

async fn say(send: &mut SendStream, hello: &Hello) -> Result<(), EstablishError> {
    match send.write_all(&hello.encode()).await {
        Ok(()) => {}
        Err(quinn::WriteError::ConnectionLost(lost)) => return Err(lost.into()),
        Err(_) => return Err(EstablishError::Hello),
    }
    send.finish().map_err(|_| EstablishError::Hello)
}

async fn hear(recv: &mut RecvStream) -> Result<Hello, EstablishError> {
    let lost = |error| match error {
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(lost)) => lost.into(),
        _ => EstablishError::Hello,
    };
    let mut bytes = [0; hello::HELLO_BYTES_MAX];
    let (prefix, rest) = bytes.split_first_chunk_mut::<{ hello::PREFIX_BYTES }>().ok_or(EstablishError::Hello)?;
    recv.read_exact(prefix).await.map_err(lost)?;
    let length = Hello::length(prefix).map_err(|_| EstablishError::Hello)?;
    recv.read_exact(&mut rest[..length - hello::PREFIX_BYTES]).await.map_err(lost)?;
    Hello::decode(&bytes[..length]).map_err(|_| EstablishError::Hello)
}
