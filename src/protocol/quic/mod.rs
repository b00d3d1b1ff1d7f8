//! Links over QUIC: the only place that speaks it (`chaos/` names quinn too, for UDP sockets alone).
//! Owns: one UDP socket per region, on which it dials and is dialled; per peer one control and one bulk connection, so
//! that a full window of bulk never delays a heartbeat.
//! Always: a handshake never holds up the accept loop, and there is a limit on how many there are; a refused peer costs
//! a counter and a line in the log, and the node goes on.

mod call;
mod conn;
mod determined;
mod peer;
mod serve;
mod stream;
mod tls;
mod transport;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Incoming, Runtime, TokioRuntime};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::hello::{Hello, Versions};
use super::link::{Inbound, Link, PeerId};
use super::refusals::Refusals;
use super::trust::{CertificateClock, Identity, TrustStore};
use crate::clock::Clock;
use crate::types::limits::{HANDSHAKE_MS_MAX, HANDSHAKES_MAX};
use crate::types::{Lineage, Millis, RegionName};
use conn::{CloseCode, Conn, EstablishError, InUse};
pub use determined::Determined;
use determined::Seeded;
use peer::{Peer, QuicLink, keep_connected};
use tls::Tls;
pub use tls::TlsError;

/// While more handshakes than this are under way, a stranger must show first that its address is its own.
const RETRY_ABOVE: usize = HANDSHAKES_MAX / 4;
/// How often connections are looked after.
const LOOK_MS: Millis = Millis(500);
/// For so many looks nothing uses a connection before it is closed for another one: the other end may have asked
/// something on it before it knew, and on a path that loses datagrams the last answer takes a few tries to arrive.
const DRAINED_LOOKS: u32 = 6;
/// How long [`QuicNode::close`] waits for goodbyes to leave.
const CLOSE_MS: Millis = Millis(1_000);

/// Which of the two connections of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Control,
    Bulk,
}

impl Class {
    /// Its protocol name in TLS. The number is the version of what is spoken before the hello is through.
    fn alpn(self) -> &'static [u8] {
        match self {
            Class::Control => b"novafed-ctl/1",
            Class::Bulk => b"novafed-blk/1",
        }
    }
    fn of_alpn(alpn: &[u8]) -> Option<Class> {
        [Class::Control, Class::Bulk].into_iter().find(|class| class.alpn() == alpn)
    }
    fn name(self) -> &'static str {
        match self {
            Class::Control => "control",
            Class::Bulk => "bulk",
        }
    }
}

/// What a region needs to take part.
#[derive(Debug)]
pub struct QuicConfig {
    /// Our region.
    pub us: RegionName,
    /// The life of our store, and those before it.
    pub lineage: Lineage,
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// Where peers are dialled, as `host:port`, resolved at each dial. A relay may stand there.
    pub peers: BTreeMap<RegionName, String>,
    /// The oldest version of the envelope to speak, 0 for whatever this build can.
    pub version_floor: u16,
    /// Seeds the jitter of redialling.
    pub seed: u64,
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The socket could not be opened.
    #[error("listening on UDP {listen}; is another node running, or is the address not of this machine?")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS could not be configured.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What all tasks of a node share.
struct Shared {
    us: PeerId,
    lineage: Lineage,
    versions: Versions,
    clock: Clock,
    tls: Tls,
    inbound: Arc<dyn Inbound>,
    endpoint: Endpoint,
    peers: RwLock<BTreeMap<RegionName, Arc<Peer>>>,
    refusals: Arc<Refusals>,
    rng: Mutex<fastrand::Rng>,
    /// In a simulation, what stands in for chance.
    seeded: Option<Seeded>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A region's end of all its links. Dropping it stops them; [`QuicNode::close`] also says goodbye.
pub struct QuicNode(Arc<Shared>);

impl Drop for QuicNode {
    fn drop(&mut self) {
        self.0.stop.cancel();
        self.0.endpoint.close(CloseCode::Closing.into(), b"this node stops");
    }
}

impl QuicNode {
    /// Opens the socket, begins to dial all peers, and serves what they send through `inbound`. Needs a tokio runtime.
    pub fn start(
        config: QuicConfig,
        identity: Arc<Identity>,
        trust: Arc<TrustStore>,
        wall: Arc<dyn CertificateClock>,
        inbound: Arc<dyn Inbound>,
    ) -> Result<QuicNode, QuicError> {
        let listen = config.listen;
        let socket = transport::socket(listen).and_then(|socket| TokioRuntime.wrap_udp_socket(socket));
        let socket = socket.map_err(|source| QuicError::Listen { listen, source })?;
        let provider = rustls::crypto::ring::default_provider();
        let tls = Tls::new(provider, &config.us, identity, trust, wall);
        QuicNode::assemble(socket, tls, None, config, inbound)
    }

    /// The same on a socket that is there already, instead of one at the address that `config` names, and without
    /// secrets and chance: each byte that it sends follows from its seed and from what reaches it. For simulations.
    pub fn start_on(
        socket: Arc<dyn AsyncUdpSocket>,
        determined: Determined,
        config: QuicConfig,
        identity: Arc<Identity>,
        trust: Arc<TrustStore>,
        wall: Arc<dyn CertificateClock>,
        inbound: Arc<dyn Inbound>,
    ) -> Result<QuicNode, QuicError> {
        let seeded = Seeded::new(determined, &config.us, config.lineage.now);
        let tls = Tls::new(determined::provider(), &config.us, identity, trust, wall);
        QuicNode::assemble(socket, tls, Some(seeded), config, inbound)
    }

    fn assemble(
        socket: Arc<dyn AsyncUdpSocket>,
        tls: Tls,
        seeded: Option<Seeded>,
        config: QuicConfig,
        inbound: Arc<dyn Inbound>,
    ) -> Result<QuicNode, QuicError> {
        let crypto = Arc::new(tls.server()?);
        let (mut server, own) = match &seeded {
            None => (quinn::ServerConfig::with_crypto(crypto), EndpointConfig::default()),
            Some(seeded) => (seeded.server(crypto), seeded.endpoint()),
        };
        server.transport_config(transport::accepting());
        // Not yet accepted handshakes and their early packets: a bound on what strangers make us hold.
        server.max_incoming(HANDSHAKES_MAX).incoming_buffer_size(16 * 1024).incoming_buffer_size_total(1 << 20);
        server.validation_token_config(no_tokens());
        let endpoint = Endpoint::new_with_abstract_socket(own, Some(server), socket, Arc::new(TokioRuntime))
            .map_err(|source| QuicError::Listen { listen: config.listen, source })?;
        let peers = config
            .peers
            .into_iter()
            .map(|(region, address)| (region.clone(), Arc::new(Peer::new(region, Some(address)))))
            .collect::<BTreeMap<_, _>>();
        let shared = Arc::new(Shared {
            us: PeerId { region: config.us, incarnation: config.lineage.now },
            lineage: config.lineage,
            versions: Versions::ours(config.version_floor),
            clock: Clock::start(),
            refusals: Arc::clone(&tls.refusals),
            tls,
            inbound,
            endpoint,
            peers: RwLock::new(peers.clone()),
            seeded,
            rng: Mutex::new(fastrand::Rng::with_seed(config.seed)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        for peer in peers.into_values() {
            shared.keep(&peer);
        }
        shared.spawn(accept(Arc::clone(&shared)));
        Ok(QuicNode(shared))
    }

    /// The address it listens on; tells the port if 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }

    /// The link to `region`. A region without a known address is waited for to dial us.
    pub fn link(&self, region: &RegionName) -> Arc<dyn Link> {
        Arc::new(QuicLink { shared: Arc::clone(&self.0), peer: self.0.peer(region) })
    }

    /// From now on `region` is dialled at `address`, or not at all. An open connection is left alone.
    pub fn set_address(&self, region: &RegionName, address: Option<String>) {
        self.0.peer(region).address.send_replace(address);
    }

    /// What was refused before it was known of whom, by reason; see [`Link::state`] for what known peers did.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.0.refusals.snapshot()
    }

    /// Connections that are open now, of all peers, those that finish what they carry included.
    pub fn open_connections(&self) -> usize {
        self.0.endpoint.open_connections()
    }

    /// Says goodbye to all peers, so that they notice at once, and waits a moment for that to leave.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.endpoint.close(CloseCode::Closing.into(), b"this node stops");
        self.0.tasks.close();
        // After that the peers notice by themselves.
        let gone = async { tokio::join!(self.0.endpoint.wait_idle(), self.0.tasks.wait()) };
        let _ = timeout(CLOSE_MS.duration(), gone).await;
    }
}

/// No address-validation tokens for later connections: they would let a stranger skip the Retry.
fn no_tokens() -> quinn::ValidationTokenConfig {
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0);
    tokens
}

impl Shared {
    /// A task that ends with the node.
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(work).await });
    }

    /// Keeps both connections to `peer`.
    fn keep(self: &Arc<Self>, peer: &Arc<Peer>) {
        for class in [Class::Control, Class::Bulk] {
            self.spawn(keep_connected(Arc::clone(self), Arc::clone(peer), class));
        }
    }

    /// The peer `region`, known from now on.
    fn peer(self: &Arc<Self>, region: &RegionName) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(region) {
            return Arc::clone(peer);
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.entry(region.clone()).or_insert_with(|| {
            let peer = Arc::new(Peer::new(region.clone(), None));
            self.keep(&peer);
            peer
        });
        Arc::clone(peer)
    }

    fn hello(&self) -> Hello {
        Hello { versions: self.versions, lineage: self.lineage.clone(), region: self.us.region.clone() }
    }

    /// Dials `peer` once.
    async fn dial(&self, peer: &Peer, class: Class, address: &str) -> Result<Conn, EstablishError> {
        let unreachable = || EstablishError::Address(address.to_owned());
        let dialling = async {
            let mut targets = tokio::net::lookup_host(address).await.map_err(|_| unreachable())?;
            // A socket of IPv6 reaches both.
            let v6 = self.endpoint.local_addr().is_ok_and(|own| own.is_ipv6());
            let target = targets.find(|target| v6 || target.is_ipv4()).ok_or_else(unreachable)?;
            let own_not_after = self.tls.identity.not_after();
            let crypto = self.tls.client(&peer.region, class)?;
            let mut config = quinn::ClientConfig::new(Arc::new(crypto));
            config.transport_config(transport::dialling(class));
            if let Some(seeded) = &self.seeded {
                seeded.dialling(&mut config);
            }
            let connecting = self.endpoint.connect_with(config, target, &self.tls.dns(&peer.region))?;
            let proven = conn::proven(self, connecting.await?, Some(&peer.region), own_not_after)?;
            proven.dial_hello(self).await
        };
        match timeout(HANDSHAKE_MS_MAX.duration(), dialling).await {
            Ok(result) => result,
            Err(_) => Err(EstablishError::TimedOut),
        }
    }

    /// Takes a new connection into use and looks after it until it ends.
    fn establish(self: &Arc<Self>, peer: &Arc<Peer>, conn: Conn) {
        let conn = Arc::new(conn);
        peer.settle(self, &conn);
        let (shared, peer) = (Arc::clone(self), Arc::clone(peer));
        self.spawn(async move {
            let work = async {
                tokio::join!(
                    streams(&shared, &peer, &conn),
                    datagrams(&shared, &peer, &conn),
                    look_after(&shared, &peer, &conn)
                )
            };
            tokio::select! {
                biased;
                _ = conn.quinn.closed() => {}
                _ = work => {}
            }
            peer.account(&shared, &conn);
            peer.ended(&shared, &conn);
        });
    }
}

/// Accepts connections until the node stops.
async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        let from = incoming.remote_address();
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            shared.refusals.count("flood", &from, &"too many handshakes are under way");
            incoming.refuse();
            continue;
        };
        if handshakes.available_permits() < HANDSHAKES_MAX - RETRY_ABOVE && incoming.may_retry() {
            shared.refusals.count("retry", &from, &"many handshakes are under way: the address must be validated");
            // It was just asked whether it may.
            let _ = incoming.retry();
            continue;
        }
        let task = Arc::clone(&shared);
        shared.spawn(async move {
            let welcomed = timeout(HANDSHAKE_MS_MAX.duration(), welcome(&task, incoming)).await;
            let error = match welcomed {
                Ok(Ok(conn)) => {
                    let peer = task.peer(&conn.peer.region);
                    task.establish(&peer, conn);
                    None
                }
                Ok(Err(error)) => Some(error),
                Err(_) => Some(EstablishError::TimedOut),
            };
            if let Some(error) = error
                && let Some(reason) = error.reason()
            {
                task.refusals.count(reason, &from, &error);
            }
            drop(permit);
        });
    }
}

async fn welcome(shared: &Shared, incoming: Incoming) -> Result<Conn, EstablishError> {
    let own_not_after = shared.tls.identity.not_after();
    let connection = incoming.accept()?.await?;
    conn::proven(shared, connection, None, own_not_after)?.accept_hello(shared).await
}

/// Serves the streams that the peer opens.
async fn streams(shared: &Arc<Shared>, peer: &Arc<Peer>, conn: &Arc<Conn>) {
    while let Ok((send, recv)) = conn.quinn.accept_bi().await {
        let (shared_too, peer, used) = (Arc::clone(shared), Arc::clone(peer), InUse::of(conn));
        match conn.class {
            Class::Control => shared.tasks.spawn(serve::request(shared_too, peer, used, send, recv)),
            Class::Bulk => shared.tasks.spawn(serve::bulk(shared_too, peer, used, send, recv)),
        };
    }
}

/// Takes in the datagrams that the peer sends.
async fn datagrams(shared: &Shared, peer: &Peer, conn: &Arc<Conn>) {
    while let Ok(bytes) = conn.quinn.read_datagram().await {
        serve::datagram(shared, peer, conn, &bytes);
    }
}

/// Counts what a connection carries, and closes it when it is drained or its trust has ended.
async fn look_after(shared: &Shared, peer: &Peer, conn: &Arc<Conn>) {
    let mut trust = shared.tls.trust.changes();
    // What changed while the connection was made counts, too.
    trust.mark_changed();
    let mut looks = interval(LOOK_MS.duration());
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drained = 0;
    let mut window = transport::BULK_WINDOW_BYTES_MIN;
    loop {
        tokio::select! {
            biased;
            _ = trust.changed() => {
                if let Err(refusal) = conn.check_trust(shared) {
                    peer.refuse("revoked", &refusal);
                    return conn.close(CloseCode::Revoked, &refusal.to_string());
                }
                continue;
            }
            _ = looks.tick() => {}
        }
        let carried = peer.account(shared, conn);
        if conn.class == Class::Bulk {
            let grown = transport::grown(window, carried.received_rate(), conn.quinn.min_rtt());
            if grown > window {
                window = grown;
                conn.quinn.set_receive_window(window.into());
            }
        }
        if conn.is_expired(shared) {
            peer.refuse("expired", &"a certificate of an open connection has expired");
            return conn.close(CloseCode::Expired, "a certificate of this connection has expired");
        }
        drained = if conn.is_drained() { drained + 1 } else { 0 };
        if drained > DRAINED_LOOKS {
            return conn.close(CloseCode::Replaced, "another connection is used");
        }
    }
}
