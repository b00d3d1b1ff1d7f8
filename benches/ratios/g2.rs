//! G2: a request over [`Link`], authenticated, with kind, deadline, dedup id and trace, 128 B there and back, against
//! the same bytes on a new stream of a bare quinn connection with default settings. Both in one process, on loopback.
//! Owns also the two pairs of ends that G14 uses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use novafed::chaos::relay::Relay;
use novafed::clock::{Clock, machine_nanos};
use novafed::drivers::SwitchKey;
use novafed::drivers::embedded::transfer::{Receipt, serve_target};
use novafed::protocol::quic::{QuicConfig, QuicNode};
use novafed::protocol::trust::{Identity, RegionCa, TrustStore};
use novafed::protocol::{BoxFuture, BulkOffer, Inbound, Kind, Link, MessageId, PeerId, Refusal, Request, TraceId};
use novafed::types::{FederationName, IncarnationVerdict, Lineage, Millis, RegionName};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::io::AsyncReadExt;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::measure::{BLOCK_NANOS, Bench, Goal, quantile, rate};

const BODY: [u8; 128] = [7; 128];
const DEADLINE: Millis = Millis(5_000);
const IN_FLIGHT: u64 = 128;
/// Round trips of each of the many between two looks at the clock.
const BURST: u64 = 20;

/// One round trip.
type Ask = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// One at a time, and many in flight.
pub fn register(bench: &mut Bench) {
    let [p50, p99, many_name] = ["G2 request 128 B p50", "G2 request 128 B p99", "G2 requests, 128 in flight"];
    if ![p50, p99, many_name].iter().any(|name| bench.wants(name)) {
        return;
    }
    let runtime = runtime();
    let pair = runtime.block_on(Pair::connect(false));
    let bare = runtime.block_on(Bare::connect(quinn::TransportConfig::default()));
    let (ours, theirs) = (ask(&pair.link), ask_bare(&bare.connection));
    for (name, share, bound) in [(p50, 0.5, 1.30), (p99, 0.99, 1.50)] {
        let goal = Goal::RatioAtMost(bound);
        bench.compare(name, "us", goal, || one(&runtime, share, &ours), || one(&runtime, share, &theirs));
    }
    let goal = Goal::RatioAtLeast(0.80);
    bench.compare(many_name, "1/s", goal, || rate(|| many(&runtime, &ours)), || rate(|| many(&runtime, &theirs)));
    runtime.block_on(pair.close());
}

/// As many workers as a node has.
pub fn runtime() -> Runtime {
    Builder::new_multi_thread().enable_all().build().expect("the machine has threads")
}

fn ask(link: &Arc<dyn Link>) -> Ask {
    let link = Arc::clone(link);
    Arc::new(move || {
        let link = Arc::clone(&link);
        Box::pin(async move {
            let id = MessageId { incarnation: 1, number: 1 };
            let request = Request::command(id, Kind::MIGRATION, "job/job-1-1-1", &BODY[..], DEADLINE);
            assert_eq!(link.request(request.traced(TraceId(7))).await.expect("it is answered").len(), BODY.len());
        })
    })
}

fn ask_bare(connection: &quinn::Connection) -> Ask {
    let connection = connection.clone();
    Arc::new(move || {
        let connection = connection.clone();
        Box::pin(async move {
            let (mut send, mut recv) = connection.open_bi().await.expect("it is open");
            send.write_all(&BODY).await.expect("it is open");
            send.finish().expect("it is open");
            assert_eq!(recv.read_to_end(BODY.len()).await.expect("it is answered").len(), BODY.len());
        })
    })
}

/// The latency at `share`, in microseconds, over one block of round trips one after the other.
fn one(runtime: &Runtime, share: f64, ask: &Ask) -> f64 {
    let ask = Arc::clone(ask);
    let asking = async move {
        let mut samples = Vec::new();
        let end = machine_nanos() + BLOCK_NANOS;
        loop {
            let start = machine_nanos();
            ask().await;
            let now = machine_nanos();
            samples.push(now - start);
            if now >= end {
                return quantile(&mut samples, share) / 1_000.0;
            }
        }
    };
    runtime.block_on(async { tokio::spawn(asking).await.expect("it does not panic") })
}

fn many(runtime: &Runtime, ask: &Ask) -> u64 {
    runtime.block_on(async {
        let mut asking = JoinSet::new();
        for _ in 0..IN_FLIGHT {
            let ask = Arc::clone(ask);
            asking.spawn(async move {
                for _ in 0..BURST {
                    ask().await;
                }
            });
        }
        asking.join_all().await;
    });
    IN_FLIGHT * BURST
}

/// What the next transfer brings, and for which attempt.
pub type Expected = Arc<Mutex<Option<(SwitchKey, Arc<Receipt>)>>>;

/// Answers what it is asked; takes in the transfer that is expected, else reads a bulk stream to its end and says how
/// long it was.
struct Echo(Expected);

impl Inbound for Echo {
    fn request(&self, _: PeerId, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        Box::pin(std::future::ready(Ok(request.body)))
    }
    fn bulk(&self, _: PeerId, _: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()> {
        let expected = self.0.lock().expect("no panic").take();
        Box::pin(async move {
            let Ok(mut stream) = offer.accept().await else { return };
            if let Some((key, receipt)) = expected {
                // Ends when the receipt is closed.
                let _ = serve_target(receipt, key, stream).await;
            } else {
                let mut buffer = vec![0; 256 * 1024];
                let mut total = 0u64;
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    total += n as u64;
                }
                // Who asked sees a short answer, and panics.
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &total.to_be_bytes()).await;
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
            }
        })
    }
    fn datagram(&self, _: PeerId, _: Kind, _: Bytes) {}
    fn incarnation_seen(&self, _: RegionName, _: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        Box::pin(std::future::ready(IncarnationVerdict::Accept))
    }
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Two regions with a link between them.
pub struct Pair {
    ends: [QuicNode; 2],
    _relay: Option<Relay>,
    /// What the second end is to take in next.
    pub expected: Expected,
    /// From the first to the second.
    pub link: Arc<dyn Link>,
}

impl Pair {
    /// Starts both and waits for the link, which passes through a relay that spoils nothing if asked.
    pub async fn connect(relayed: bool) -> Pair {
        let clock = Clock::start();
        let expected = Expected::default();
        let federation: FederationName = "bench".parse().expect("a name");
        let regions: [RegionName; 2] = ["eu", "us"].map(|name| name.parse().expect("a name"));
        let cas = regions.each_ref().map(|region| RegionCa::create(&federation, region, clock.wall()).expect("a CA"));
        let start = |at: usize| {
            let trust = TrustStore::new(federation.clone());
            trust.set(regions[1 - at].clone(), cas[1 - at].certificate_pem()).expect("a certificate");
            let leaf = cas[at].issue_leaf(clock.wall(), Millis(3_600_000)).expect("a leaf");
            let config = QuicConfig {
                us: regions[at].clone(),
                lineage: Lineage::after(None, 1),
                listen: any(),
                peers: BTreeMap::new(),
                version_floor: 0,
                seed: 1,
            };
            let identity = Arc::new(Identity::new(leaf));
            let inbound = Arc::new(Echo(Arc::clone(&expected)));
            QuicNode::start(config, identity, Arc::new(trust), Arc::new(clock.clone()), inbound).expect("a socket")
        };
        let ends = [start(0), start(1)];
        let mut address = ends[1].local_addr().expect("an address");
        let relay = if relayed {
            let relay = Relay::start(any(), address, 1).await.expect("a socket");
            address = relay.address();
            Some(relay)
        } else {
            None
        };
        ends[0].set_address(&regions[1], Some(address.to_string()));
        let link = ends[0].link(&regions[1]);
        while !(link.state().connected && link.state().bulk_connected) {
            tokio::time::sleep(Millis(5).duration()).await;
        }
        Pair { ends, link, _relay: relay, expected }
    }

    /// Stops both.
    pub async fn close(self) {
        for end in &self.ends {
            end.close().await;
        }
    }
}

/// A bare quinn connection whose other end does what [`Echo`] does.
pub struct Bare {
    /// The dialler's end.
    pub connection: quinn::Connection,
    _ends: [quinn::Endpoint; 2],
}

impl Bare {
    /// Connects, with certificates as ours and `transport` at both ends.
    pub async fn connect(transport: quinn::TransportConfig) -> Bare {
        Bare::serving(transport, |send, recv| drop(tokio::spawn(serve_bare(send, recv)))).await
    }

    /// The same, where the other end does something else with each stream.
    pub async fn serving(
        transport: quinn::TransportConfig,
        serve: impl Fn(quinn::SendStream, quinn::RecvStream) + Clone + Send + 'static,
    ) -> Bare {
        let (server, client) = tls();
        let transport = Arc::new(transport);
        let mut server =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).expect("TLS 1.3")));
        server.transport_config(Arc::clone(&transport));
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).expect("TLS 1.3")));
        config.transport_config(transport);
        let dialled = quinn::Endpoint::server(server, any()).expect("a socket");
        let dialler = quinn::Endpoint::client(any()).expect("a socket");
        let accepting = dialled.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let connection = incoming.await.expect("a handshake");
                let serve = serve.clone();
                tokio::spawn(async move {
                    while let Ok((send, recv)) = connection.accept_bi().await {
                        serve(send, recv);
                    }
                });
            }
        });
        let address = dialled.local_addr().expect("an address");
        let connection = dialler.connect_with(config, address, "us.bench").expect("a name").await.expect("a handshake");
        Bare { connection, _ends: [dialled, dialler] }
    }
}

/// What begins so is kept in memory, as what a transfer brings is.
pub const KEEP: &[u8] = b"keep this";
/// As much as is kept.
pub const KEEP_BYTES: usize = 192 << 20;

/// Echoes what is as short as a request, counts what is longer.
async fn serve_bare(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    let (mut kept, mut total) = (Vec::new(), 0);
    let mut keep = BODY.len();
    while let Ok(Some(chunk)) = recv.read_chunk(256 * 1024, true).await {
        if total == 0 && chunk.bytes.starts_with(KEEP) {
            keep = KEEP_BYTES;
            kept.reserve_exact(KEEP_BYTES);
        }
        total += chunk.bytes.len();
        if total <= keep {
            kept.extend_from_slice(&chunk.bytes);
        }
    }
    let answer = if total <= BODY.len() { kept } else { total.to_be_bytes().to_vec() };
    // The dialler sees what is missing.
    let _ = send.write_all(&answer).await;
    let _ = send.finish();
}

/// TLS 1.3 with a leaf of a region's CA, for one server and one client.
pub fn tls() -> (rustls::ServerConfig, rustls::ClientConfig) {
    let now = Clock::start().wall();
    let (federation, region) = ("bench".parse().expect("a name"), "us".parse().expect("a name"));
    let ca = RegionCa::create(&federation, &region, now).expect("a CA");
    let leaf = ca.issue_leaf(now, Millis(3_600_000)).expect("a leaf").certified();
    let mut roots = rustls::RootCertStore::empty();
    let pem = ca.certificate_pem().as_bytes();
    let der = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(pem);
    roots.add(der.expect("a certificate")).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::unwrap_or_clone(leaf))));
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, client)
}
