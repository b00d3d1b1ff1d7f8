//! What the protocol's tests share: regions with CAs, an inbound that answers, nodes on loopback.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use novafed::clock::Clock;
use novafed::protocol::quic::{QuicConfig, QuicNode};
use novafed::protocol::trust::{CertificateClock, Identity, Leaf, RegionCa, TrustStore};
use novafed::protocol::{BoxFuture, BulkOffer, Inbound, Kind, Link, PeerId, Refusal, RefusalCode, Request};
use novafed::types::{FederationName, Incarnation, IncarnationVerdict, Lineage, Millis, RegionName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const DEADLINE: Millis = Millis(5_000);

pub fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

pub fn federation() -> FederationName {
    "acme".parse().unwrap()
}

pub fn life(counter: u64) -> Incarnation {
    Incarnation { counter, nonce: counter * 7 }
}

pub fn peer(name: &str, counter: u64) -> PeerId {
    PeerId { region: region(name), incarnation: life(counter) }
}

/// Waits until `holds`; fails the test after ten seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "never came: {what}");
}

/// Answers by the body: `echo...` is sent back, `refuse`, `panic`, `hang`; remembers what came.
#[derive(Default)]
pub struct Answers {
    pub requests: Mutex<Vec<(PeerId, Request)>>,
    pub datagrams: Mutex<Vec<(PeerId, Bytes)>>,
    pub known: Mutex<BTreeMap<RegionName, Incarnation>>,
}

impl Inbound for Answers {
    fn request(&self, from: PeerId, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        self.requests.lock().unwrap().push((from, request.clone()));
        Box::pin(async move {
            match &request.body[..] {
                b"refuse" => {
                    Err(Refusal { retry_after: Some(Millis(7)), ..Refusal::new(RefusalCode::FORBIDDEN, "not you") })
                }
                b"panic" => panic!("asked to"),
                b"hang" => std::future::pending().await,
                _ => Ok(request.body),
            }
        })
    }
    /// Echoes the stream; refuses one whose hello is `refuse`, drops one whose hello is `drop`, leaves one unread whose
    /// hello is `ignore`.
    fn bulk(&self, _from: PeerId, hello: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match &hello[..] {
                b"refuse" => offer.refuse(Refusal::new(RefusalCode::FENCED, "attempt 3 is newer")),
                b"drop" => drop(offer),
                b"ignore" => {
                    let _stream = offer.accept().await;
                    std::future::pending().await
                }
                _ => {
                    let Ok(mut stream) = offer.accept().await else { return };
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(n) = stream.read(&mut buffer).await {
                        if n == 0 {
                            let _ = stream.shutdown().await;
                            return;
                        }
                        if stream.write_all(&buffer[..n]).await.is_err() {
                            return;
                        }
                    }
                }
            }
        })
    }
    fn datagram(&self, from: PeerId, _kind: Kind, body: Bytes) {
        self.datagrams.lock().unwrap().push((from, body));
    }
    fn incarnation_seen(&self, peer: RegionName, lineage: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        let mut known = self.known.lock().unwrap();
        let verdict = lineage.judge(known.get(&peer).copied());
        if verdict == IncarnationVerdict::Accept {
            known.insert(peer, lineage.now);
        }
        Box::pin(std::future::ready(verdict))
    }
}

/// A region on loopback.
pub struct Region {
    pub node: QuicNode,
    pub answers: Arc<Answers>,
    pub trust: Arc<TrustStore>,
    pub identity: Arc<Identity>,
    pub ca: RegionCa,
}

impl Region {
    pub fn address(&self) -> String {
        self.node.local_addr().unwrap().to_string()
    }
    pub fn link(&self, to: &str) -> Arc<dyn Link> {
        self.node.link(&region(to))
    }
    pub fn trusts(&self, name: &str, ca: &RegionCa) {
        self.trust.set(region(name), ca.certificate_pem()).unwrap();
    }
    pub fn dials(&self, name: &str, address: &str) {
        self.node.set_address(&region(name), Some(address.to_owned()));
    }
    pub fn refused(&self, reason: &str) -> u64 {
        self.node.refusals().get(reason).copied().unwrap_or(0)
    }
}

/// What may differ from a plain region.
pub struct Setup {
    pub id: PeerId,
    pub ca: Option<RegionCa>,
    pub leaf: Option<Leaf>,
    pub wall: Arc<dyn CertificateClock>,
    pub floor: u16,
    pub federation: FederationName,
    /// Who serves what peers send; left out, [`Answers`].
    pub inbound: Option<Arc<dyn Inbound>>,
}

pub fn setup(name: &str, counter: u64) -> Setup {
    let (id, wall) = (peer(name, counter), Arc::new(Clock::start()));
    Setup { id, ca: None, leaf: None, wall, floor: 0, federation: federation(), inbound: None }
}

impl Setup {
    pub fn start(self) -> Region {
        let now = self.wall.wall();
        let ca = self.ca.unwrap_or_else(|| RegionCa::create(&self.federation, &self.id.region, now).unwrap());
        let leaf = self.leaf.unwrap_or_else(|| ca.issue_leaf(now, Millis(3_600_000)).unwrap());
        let (identity, trust) = (Arc::new(Identity::new(leaf)), Arc::new(TrustStore::new(self.federation)));
        let answers = Arc::new(Answers::default());
        let config = QuicConfig {
            seed: self.id.incarnation.counter,
            us: self.id.region,
            lineage: self.id.incarnation.into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            peers: BTreeMap::new(),
            version_floor: self.floor,
        };
        let node = QuicNode::start(
            config,
            Arc::clone(&identity),
            Arc::clone(&trust),
            self.wall,
            self.inbound.unwrap_or_else(|| Arc::clone(&answers) as Arc<dyn Inbound>),
        );
        Region { node: node.unwrap(), answers, trust, identity, ca }
    }
}

/// Makes the two trust and dial each other.
pub fn introduce(a: (&str, &Region), b: (&str, &Region)) {
    a.1.trusts(b.0, &b.1.ca);
    b.1.trusts(a.0, &a.1.ca);
    a.1.dials(b.0, &b.1.address());
    b.1.dials(a.0, &a.1.address());
}

pub async fn connected(a: &Region, to: &str) -> Arc<dyn Link> {
    let link = a.link(to);
    until(&format!("a link to {to}"), || {
        let state = link.state();
        state.connected && state.bulk_connected
    })
    .await;
    link
}

/// A stranger with quinn in its hands: dials with any leaf, protocol and name, and believes any server.
pub mod stranger {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use quinn::crypto::rustls::QuicClientConfig;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{DigitallySignedStruct, SignatureScheme};

    #[derive(Debug)]
    struct Credulous;

    impl ServerCertVerifier for Credulous {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    }

    /// What a stranger dials with.
    pub fn config(leaf: Option<Arc<CertifiedKey>>, alpn: &[u8]) -> quinn::ClientConfig {
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous));
        let mut config = match leaf {
            Some(leaf) => {
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::unwrap_or_clone(leaf))))
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
    }

    pub fn endpoint() -> quinn::Endpoint {
        quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    /// Dials `address` under `name`; fails unless the handshake holds for a moment (with TLS 1.3 the dialler learns
    /// only afterwards that its certificate was refused).
    pub async fn dial(
        endpoint: &quinn::Endpoint,
        config: quinn::ClientConfig,
        address: &str,
        name: &str,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let address: SocketAddr = address.parse().unwrap();
        let connection = endpoint.connect_with(config, address, name).unwrap().await?;
        match tokio::time::timeout(Duration::from_millis(200), connection.closed()).await {
            Ok(closed) => Err(closed),
            Err(_) => Ok(connection),
        }
    }

    /// Says hello as `region` with `incarnation` on a new control connection. `None` if it is not welcome.
    pub async fn say_hello(
        connection: &quinn::Connection,
        id: &novafed::protocol::PeerId,
        versions: (u16, u16),
    ) -> Option<novafed::protocol::hello::Hello> {
        use novafed::protocol::hello::{Hello, Versions};
        let versions = Versions { min: versions.0, max: versions.1 };
        let hello = Hello { versions, lineage: id.incarnation.into(), region: id.region.clone() };
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(&hello.encode()).await.ok()?;
        send.finish().ok()?;
        Hello::decode(&recv.read_to_end(600).await.ok()?).ok()
    }
}
