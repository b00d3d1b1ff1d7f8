//! What the simulations of links share: regions on a simulated network on virtual time, and a log of what applications
//! see.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use novafed::chaos::sim::udp::{Carried, PathFaults, UdpNet};
use novafed::clock::{Clock, machine_nanos};
use novafed::protocol::quic::{Determined, QuicConfig, QuicNode};
use novafed::protocol::trust::{Identity, RegionCa, SetClock, TrustStore};
use novafed::protocol::{BoxFuture, BulkOffer, Inbound, Kind, Link, LinkError, PeerId, Refusal, Request};
use novafed::types::{FederationName, Incarnation, IncarnationVerdict, Lineage, Millis, RegionName, WallMillis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, JoinSet};
use xxhash_rust::xxh3::xxh3_64;

pub const DEADLINE: Millis = Millis(5_000);
/// The wall clock of all regions.
pub const WALL: WallMillis = WallMillis(1_800_000_000_000);
/// Regions and where they are.
const REGIONS: [&str; 3] = ["ap", "eu", "us"];

pub fn address(name: &str) -> SocketAddr {
    let number = REGIONS.iter().position(|region| *region == name).expect("a known region") as u8;
    SocketAddr::from(([10, 0, 0, number + 1], 7443))
}

pub fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

/// What happened, in virtual milliseconds.
#[derive(Clone)]
pub struct Log {
    clock: Clock,
    events: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Log {
    pub fn say(&self, what: impl fmt::Display) {
        self.events.lock().unwrap().push((self.clock.now().0, what.to_string()));
    }
}

/// Answers each request with its body after as many ms as its first byte says, and a stream with its digest.
struct Serving {
    us: RegionName,
    log: Log,
    known: Mutex<BTreeMap<RegionName, Incarnation>>,
}

impl Inbound for Serving {
    fn request(&self, from: PeerId, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        self.log.say(format_args!("{} is asked by {from}: {}", self.us, shown(&request.body)));
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(request.body.first().copied().unwrap_or(0).into())).await;
            Ok(request.body)
        })
    }
    fn bulk(&self, from: PeerId, _hello: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()> {
        let (log, us) = (self.log.clone(), self.us.clone());
        Box::pin(async move {
            let Ok(mut stream) = offer.accept().await else { return };
            let mut body = Vec::new();
            let mut ended = stream.read_to_end(&mut body).await.map(|_| ());
            if ended.is_ok() {
                ended = stream.write_all(&xxh3_64(&body).to_le_bytes()).await;
            }
            if ended.is_ok() {
                ended = stream.shutdown().await;
            }
            let ended = ended.map_err(|error| error.kind());
            log.say(format_args!("{us} has {} bytes of {from}, which ended {ended:?}", body.len()));
        })
    }
    fn datagram(&self, from: PeerId, _kind: Kind, body: Bytes) {
        self.log.say(format_args!("{} has a datagram of {from}: {}", self.us, shown(&body)));
    }
    fn incarnation_seen(&self, peer: RegionName, lineage: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        let mut known = self.known.lock().unwrap();
        let verdict = lineage.judge(known.get(&peer).copied());
        self.log.say(format_args!("{} sees {peer}#{}: {verdict:?}", self.us, lineage.now));
        if verdict == IncarnationVerdict::Accept {
            known.insert(peer, lineage.now);
        }
        Box::pin(std::future::ready(verdict))
    }
}

fn shown(body: &[u8]) -> String {
    format!("{} bytes of {}", body.len(), body.first().copied().unwrap_or(0))
}

/// A region that runs.
pub struct Region {
    pub name: &'static str,
    pub node: QuicNode,
    pub identity: Arc<Identity>,
    pub trust: Arc<TrustStore>,
}

impl Region {
    pub fn link(&self, to: &str) -> Arc<dyn Link> {
        self.node.link(&region(to))
    }
    pub fn address(&self) -> SocketAddr {
        address(self.name)
    }
}

/// One run.
pub struct World {
    pub seed: u64,
    pub net: UdpNet,
    pub log: Log,
    pub wall: Arc<SetClock>,
    cas: BTreeMap<&'static str, RegionCa>,
    rng: Mutex<fastrand::Rng>,
}

impl World {
    fn new(seed: u64) -> World {
        let federation: FederationName = "acme".parse().unwrap();
        let ca = |name| (name, RegionCa::create_determined(&federation, &region(name), WALL, seed).unwrap());
        World {
            seed,
            net: UdpNet::new(seed),
            log: Log { clock: Clock::start(), events: Arc::default() },
            wall: Arc::new(SetClock::at(WALL)),
            cas: REGIONS.map(ca).into(),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    pub fn now(&self) -> u64 {
        self.log.clock.now().0
    }

    pub async fn sleep(&self, span: Millis) {
        tokio::time::sleep(span.duration()).await;
    }

    /// The life `counter` of a region begins, which trusts and dials `peers`.
    pub fn start(&self, name: &'static str, counter: u64, peers: &[&str]) -> Region {
        let trust = Arc::new(TrustStore::new("acme".parse().unwrap()));
        for peer in peers {
            trust.set(region(peer), self.cas[peer].certificate_pem()).unwrap();
        }
        let identity = Arc::new(Identity::new(self.cas[name].issue_leaf(WALL, Millis(3_600_000)).unwrap()));
        let serving = Serving { us: region(name), log: self.log.clone(), known: Mutex::default() };
        // What stands in a store: the lives before this one.
        let lineage = Lineage {
            now: Incarnation { counter, nonce: counter * 7 },
            before: (1..counter).rev().map(|counter| counter * 7).collect(),
        };
        let config = QuicConfig {
            us: region(name),
            lineage,
            listen: address(name),
            peers: peers.iter().map(|peer| (region(peer), address(peer).to_string())).collect(),
            version_floor: 0,
            seed: self.seed ^ counter,
        };
        let socket = self.net.socket(address(name)).expect("nobody is there");
        let node = QuicNode::start_on(
            socket,
            Determined { seed: self.seed },
            config,
            Arc::clone(&identity),
            Arc::clone(&trust),
            Arc::clone(&self.wall) as Arc<_>,
            Arc::new(serving),
        );
        let region = Region { name, node: node.unwrap(), identity, trust };
        for peer in peers {
            self.tell(&region, peer);
        }
        region
    }

    /// Logs when the link comes and goes.
    fn tell(&self, region: &Region, to: &str) {
        let (mut connected, log) = (region.link(to).connected(), self.log.clone());
        let what = format!("{} to {to}", region.name);
        tokio::spawn(async move {
            while connected.changed().await.is_ok() {
                let up = *connected.borrow();
                log.say(format_args!("{what} is {}", if up { "up" } else { "down" }));
            }
        });
    }

    /// The region dies without a word.
    pub fn kill(&self, region: Region) {
        self.net.sever(region.address());
        self.log.say(format_args!("{} is killed", region.name));
        drop(region);
    }

    /// Two regions that are connected.
    pub async fn pair(&self) -> (Region, Region) {
        let (eu, us) = (self.start("eu", 1, &["us"]), self.start("us", 1, &["eu"]));
        self.connected(&eu, &us).await;
        (eu, us)
    }

    /// Three regions that are connected.
    pub async fn trio(&self) -> [Region; 3] {
        let start = |name| {
            let peers: Vec<_> = REGIONS.into_iter().filter(|peer| *peer != name).collect();
            self.start(name, 1, &peers)
        };
        let trio = REGIONS.map(start);
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            self.connected(&trio[a], &trio[b]).await;
        }
        trio
    }

    /// Waits until both see both connections.
    pub async fn connected(&self, a: &Region, b: &Region) {
        for link in [a.link(b.name), b.link(a.name)] {
            loop {
                let state = link.state();
                if state.connected && state.bulk_connected {
                    break;
                }
                assert!(self.now() < 600_000, "never connected: {:?}", state.last_error);
                self.sleep(Millis(5)).await;
            }
        }
        self.log.say(format_args!("{} and {} are connected", a.name, b.name));
    }

    /// Waits until `link` is up or down.
    pub async fn wait(&self, from: &Region, to: &str, up: bool) {
        from.link(to).connected().wait_for(|now| *now == up).await.unwrap();
    }

    /// `region` shows a new leaf from now on.
    pub fn renew(&self, region: &Region, now: WallMillis) {
        self.log.say(format_args!("{} has a new leaf", region.name));
        region.identity.replace(self.cas[region.name].issue_leaf(now, Millis(3_600_000)).unwrap());
    }

    /// `region` trusts `other` from now on.
    pub fn trust(&self, region: &Region, other: &str) {
        region.trust.set(other.parse().unwrap(), self.cas[other].certificate_pem()).unwrap();
    }

    /// Asks and tells what came of it; a reply is always what was asked.
    pub async fn ask(&self, from: &Region, to: &Region, body: &[u8]) -> Result<(), LinkError> {
        ask(self.log.clone(), from.link(to.name), from.name, body.to_vec().into()).await
    }

    /// The same beside what follows.
    pub fn ask_later(&self, from: &Region, to: &Region, body: &[u8]) -> JoinHandle<Result<(), LinkError>> {
        tokio::spawn(ask(self.log.clone(), from.link(to.name), from.name, body.to_vec().into()))
    }

    /// All ask all others again and again, until [`ended_well`] or what this returns is dropped.
    pub fn ask_all_the_time(&self, regions: &[Option<Region>]) -> JoinSet<()> {
        let mut asking = JoinSet::new();
        for (from, to) in regions.iter().flat_map(|from| regions.iter().map(move |to| (from, to))) {
            let (Some(from), Some(to)) = (from, to) else { continue };
            if from.name != to.name {
                let (log, link, name) = (self.log.clone(), from.link(to.name), from.name);
                asking.spawn(async move {
                    for number in (0..=255).cycle() {
                        let _ = ask(log.clone(), Arc::clone(&link), name, vec![number; 700].into()).await;
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                });
            }
        }
        asking
    }

    /// Does something to the network or to a region, and waits for a while.
    pub async fn mischief(&self, regions: &mut [Option<Region>; 3], lives: &mut [u64; 3]) {
        let (what, at, to, wait) = {
            let mut rng = self.rng.lock().unwrap();
            let at = rng.usize(0..3);
            (rng.u8(0..9), at, (at + rng.usize(1..3)) % 3, Millis(rng.u64(0..6_000)))
        };
        let (name, other) = (REGIONS[at], REGIONS[to]);
        let (from, to) = (address(name), address(other));
        self.log.say(format_args!("mischief {what} to {name} and {other} for {wait}"));
        match what {
            0 => self.net.cut(from, to, true),
            1 => self.net.cut_both(from, to, true),
            2 => self.net.cut_both(from, to, false),
            3 => self.net.lose(from, to, wait),
            4 => self.net.hold(from, true),
            5 => self.net.hold(from, false),
            6 => {
                let mut rng = self.rng.lock().unwrap();
                let spoiled = PathFaults {
                    delay: Millis(rng.u64(0..300)),
                    jitter: Millis(rng.u64(0..50)),
                    loss_permille: rng.u16(0..150),
                    burst_permille: rng.u16(0..10),
                    burst: Millis(rng.u64(0..2_000)),
                    reorder_permille: rng.u16(0..300),
                    duplicate_permille: rng.u16(0..100),
                    corrupt_permille: rng.u16(0..100),
                    rate_bytes_s: rng.bool().then(|| rng.u64(10_000..1_000_000)),
                    mtu: rng.bool().then(|| rng.usize(1_200..1_500)),
                    ..PathFaults::NONE
                };
                self.net.set_both(from, to, spoiled);
            }
            7 => {
                let lately = WallMillis(WALL.0 + self.now());
                self.renew(regions[at].as_ref().unwrap(), lately);
            }
            _ => {
                self.kill(regions[at].take().unwrap());
                self.sleep(wait).await;
                lives[at] += 1;
                let peers: Vec<_> = REGIONS.into_iter().filter(|peer| *peer != name).collect();
                regions[at] = Some(self.start(name, lives[at], &peers));
            }
        }
        self.sleep(wait).await;
    }

    /// Sends `bytes` as a bulk stream, all of which the other end says that it has.
    pub async fn stream(&self, from: &Region, to: &Region, bytes: usize) {
        let mut stream = from.link(to.name).open_bulk("x".into(), DEADLINE).await.expect("it is connected");
        let mut body = vec![0; bytes];
        self.rng.lock().unwrap().fill(&mut body);
        stream.write_all(&body).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut digest = Vec::new();
        stream.read_to_end(&mut digest).await.unwrap();
        assert_eq!(digest, xxh3_64(&body).to_le_bytes(), "what arrived is what was sent");
        self.log.say(format_args!("{bytes} bytes of {} are at {}", from.name, to.name));
    }
}

/// Ends what [`World::ask_all_the_time`] began; fails if a reply was wrong.
pub async fn ended_well(mut asking: JoinSet<()>) {
    asking.abort_all();
    while let Some(ended) = asking.join_next().await {
        assert!(ended.is_err_and(|error| error.is_cancelled()), "a reply was wrong");
    }
}

async fn ask(log: Log, link: Arc<dyn Link>, from: &str, body: Bytes) -> Result<(), LinkError> {
    let answer = link.request(Request::query(Kind::API, "x", body.clone(), DEADLINE)).await;
    let what = match &answer {
        Ok(_) => "answered".to_owned(),
        Err(error) => error.to_string(),
    };
    log.say(format_args!("{from} asked {} for {}: {what}", link.peer(), shown(&body)));
    answer.map(|answer| assert!(answer == body, "the reply is another one"))
}

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    pub seed: u64,
    pub events: Vec<(u64, String)>,
    pub ended: u64,
    pub trace: u64,
    pub carried: Carried,
    pub wall: Duration,
}

impl Run {
    /// How many events hold `text`.
    pub fn count(&self, text: &str) -> usize {
        self.events.iter().filter(|(_, what)| what.contains(text)).count()
    }
}

/// Says which seed it was.
struct Seed(u64);

impl Drop for Seed {
    #[allow(clippy::print_stderr, reason = "a failure has to say how to repeat it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was seed {0}; NOVAFED_SEED={0} runs no other", self.0);
        }
    }
}

pub fn once(seed: u64, scenario: &impl AsyncFn(&World)) -> Run {
    let _seed = Seed(seed);
    // Without a driver for input and output: there is none.
    let runtime = novafed::chaos::sim::run::runtime(seed);
    let began = machine_nanos();
    runtime.block_on(async {
        let world = World::new(seed);
        scenario(&world).await;
        let events = std::mem::take(&mut *world.log.events.lock().unwrap());
        let (ended, trace, carried) = (world.now(), world.net.trace(), world.net.carried_in_all());
        Run { seed, events, ended, trace, carried, wall: Duration::from_nanos(machine_nanos() - began) }
    })
}

/// Runs `scenario` twice for each seed, or for the one that the environment names; both runs must be the same.
pub fn twice(seeds: Range<u64>, scenario: impl AsyncFn(&World)) -> Vec<Run> {
    let run = |seed| {
        let (first, second) = (once(seed, &scenario), once(seed, &scenario));
        for (at, (one, other)) in first.events.iter().zip(&second.events).enumerate() {
            let before = &first.events[at.saturating_sub(5)..at];
            assert_eq!(one, other, "seed {seed}: event {at} differs; before it: {before:#?}");
        }
        assert_eq!(first.events.len(), second.events.len(), "seed {seed}: one run goes on longer");
        assert_eq!((first.ended, first.carried), (second.ended, second.carried), "seed {seed}: the networks differ");
        assert_eq!(first.trace, second.trace, "seed {seed}: the same was seen of other bytes");
        first
    };
    match std::env::var("NOVAFED_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(only) => vec![run(only)],
        None => seeds.map(run).collect(),
    }
}
