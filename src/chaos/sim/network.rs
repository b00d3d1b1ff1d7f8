//! The ways between regions. Owns: how a way is shaped from the plan and the faults at work, at either level.
//! Always: faults that overlap add up, and each ends by itself. Not here: how bytes travel (`protocol/memory/`,
//! `udp.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faults::Fault;
use super::gate::Gate;
use super::plan::{Level, Plan};
use super::region::{BEGINNING, Region, address};
use super::udp::{PathFaults, UdpNet};
use crate::clock::Clock;
use crate::node::NodeError;
use crate::protocol::link::{Inbound, Link};
use crate::protocol::memory::{Faults, Net};
use crate::protocol::quic::{Determined, QuicConfig, QuicError, QuicNode};
use crate::protocol::trust::{Identity, RegionCa, TrustError, TrustStore, keep_renewed};
use crate::types::{Lineage, Millis, RegionName};

/// What one direction of a way is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// One way.
    pub delay: Millis,
    /// Added to it, evenly drawn from 0 to this.
    pub jitter: Millis,
    /// Lost per thousand.
    pub loss_permille: u16,
    /// Overtaken per thousand.
    pub reorder_permille: u16,
    /// Doubled per thousand.
    pub duplicate_permille: u16,
    /// Damaged per thousand.
    pub corrupt_permille: u16,
    /// Of bulk.
    pub bytes_per_second: u64,
    /// Longer datagrams vanish.
    pub mtu: Option<u16>,
    /// Nothing arrives.
    pub cut: bool,
}

impl Shape {
    /// The way from the n-th region to the m-th with these faults at work.
    pub fn of<'a>(plan: &Plan, from: usize, to: usize, faults: impl Iterator<Item = &'a Fault>) -> Shape {
        let way = plan.way(from, to);
        let mut shape = Shape {
            delay: way.delay,
            jitter: way.jitter,
            loss_permille: 0,
            reorder_permille: 0,
            duplicate_permille: 0,
            corrupt_permille: 0,
            bytes_per_second: way.bytes_per_second,
            mtu: None,
            cut: false,
        };
        let between = |a: usize, b: usize| (a, b) == (from, to) || (b, a) == (from, to);
        for fault in faults {
            match *fault {
                Fault::Isolate(a) => shape.cut |= a == from || a == to,
                Fault::Split(set) => shape.cut |= (set >> from & 1) != (set >> to & 1),
                Fault::OneWay(a, b) => shape.cut |= (a, b) == (from, to),
                Fault::NonTransitive(a, b) => shape.cut |= between(a, b),
                Fault::Far(a, b, delay, jitter) if between(a, b) => {
                    shape.delay = shape.delay.max(delay);
                    shape.jitter = shape.jitter.max(jitter);
                }
                Fault::Lossy(a, b, permille) if between(a, b) => {
                    shape.loss_permille = shape.loss_permille.max(permille)
                }
                Fault::Disorder(a, b, reorder, duplicate, corrupt) if between(a, b) => {
                    shape.reorder_permille = shape.reorder_permille.max(reorder);
                    shape.duplicate_permille = shape.duplicate_permille.max(duplicate);
                    shape.corrupt_permille = shape.corrupt_permille.max(corrupt);
                }
                Fault::Narrow(a, b, rate) if between(a, b) => {
                    shape.bytes_per_second = shape.bytes_per_second.min(rate);
                }
                Fault::SmallMtu(a, b, mtu) if between(a, b) => shape.mtu = Some(mtu),
                _ => {}
            }
        }
        shape
    }
}

/// QUIC of all regions on one simulated network.
pub struct Full {
    net: UdpNet,
    /// What each region's CA looks like; the CAs themselves are made anew from the seed.
    cas: Vec<String>,
    /// The nodes of present lives.
    nodes: Mutex<BTreeMap<RegionName, QuicNode>>,
    seed: u64,
}

/// The network of a world.
pub enum Network {
    /// Whole messages, in memory.
    Message(Net, Vec<RegionName>),
    /// Datagrams.
    Full(Box<Full>, Vec<RegionName>),
}

impl Network {
    /// With every way as the plan has it.
    pub fn new(plan: &Plan, seed: u64) -> Network {
        let names: Vec<RegionName> = plan.regions.iter().map(|region| region.name.clone()).collect();
        let network = match plan.level {
            Level::Message => Network::Message(Net::new(seed), names),
            Level::Full => {
                let ca = |name| authority(name, seed).map(|ca| ca.certificate_pem().to_owned());
                let cas = names.iter().map(ca).collect::<Result<_, _>>().expect("a CA can be made");
                let full = Full { net: UdpNet::new(seed), cas, nodes: Mutex::default(), seed };
                Network::Full(Box::new(full), names)
            }
        };
        for (from, to) in plan.pairs() {
            network.shape(from, to, &Shape::of(plan, from, to, std::iter::empty()));
        }
        network
    }

    /// The n-th region joins with a new life.
    ///
    /// # Errors
    /// Its QUIC node does not start.
    pub fn join(
        &self,
        region: &Region,
        n: usize,
        lineage: Lineage,
        inbound: Arc<dyn Inbound>,
        peers: impl Iterator<Item = RegionName>,
        gate: &Gate,
    ) -> Result<Vec<Arc<dyn Link>>, NodeError> {
        match self {
            Network::Message(net, _) => {
                let name = &region.plan.name;
                let links = peers.map(|peer| net.link(name, &peer)).collect();
                net.join(name.clone(), lineage, inbound);
                Ok(links)
            }
            Network::Full(full, _) => full.join(region, n, lineage, inbound, peers, gate),
        }
    }

    /// Its life is over.
    pub fn leave(&self, region: &RegionName) {
        match self {
            Network::Message(net, _) => net.leave(region),
            Network::Full(full, names) => {
                if let Some(n) = names.iter().position(|name| name == region) {
                    full.net.sever(udp(n));
                }
                drop(full.nodes().remove(region));
            }
        }
    }

    /// Holds what the n-th region sends and is sent.
    pub fn hold(&self, n: usize, held: bool) {
        match self {
            // Its gate holds whole messages.
            Network::Message(..) => {}
            Network::Full(full, _) => full.net.hold(udp(n), held),
        }
    }

    /// Shapes one direction.
    pub fn shape(&self, from: usize, to: usize, shape: &Shape) {
        match self {
            Network::Message(net, names) => {
                let (from, to) = (&names[from], &names[to]);
                let faults = Faults {
                    delay: shape.delay,
                    jitter: shape.jitter,
                    loss_permille: shape.loss_permille,
                    reorder_permille: shape.reorder_permille,
                    duplicate_permille: shape.duplicate_permille,
                    bulk_bytes_s: Some(shape.bytes_per_second),
                };
                net.set_faults(from, to, faults);
                net.set_cut(from, to, shape.cut);
            }
            Network::Full(full, _) => {
                let faults = PathFaults {
                    delay: shape.delay,
                    jitter: shape.jitter,
                    loss_permille: shape.loss_permille,
                    reorder_permille: shape.reorder_permille,
                    duplicate_permille: shape.duplicate_permille,
                    corrupt_permille: shape.corrupt_permille,
                    rate_bytes_s: Some(shape.bytes_per_second),
                    queue_bytes: QUEUE_BYTES,
                    mtu: shape.mtu.map(usize::from),
                    cut: shape.cut,
                    ..PathFaults::NONE
                };
                full.net.set(udp(from), udp(to), faults);
            }
        }
    }

    /// The connection of two regions breaks and is there again after `after`.
    pub fn break_connection(&self, a: usize, b: usize, after: Millis) {
        match self {
            Network::Message(net, names) => net.break_connection(&names[a], &names[b], after),
            Network::Full(full, _) => {
                full.net.lose(udp(a), udp(b), after);
                full.net.lose(udp(b), udp(a), after);
            }
        }
    }

    /// Bulk from `from` to `to` breaks after so many more bytes; counted in memory only.
    pub fn cut_bulk_after(&self, from: usize, to: usize, bytes: u64) {
        if let Network::Message(net, names) = self {
            net.cut_bulk_after(&names[from], &names[to], bytes);
        }
    }
}

/// What waits where a rate limits.
const QUEUE_BYTES: u64 = 256 * 1024;
/// How long a leaf lives (law 8.1).
const LEAF_LIFE: Millis = Millis(24 * 3_600_000);

/// Where the n-th region listens.
fn udp(n: usize) -> SocketAddr {
    address(n).parse().expect("what is written there is an address")
}

/// A region's CA.
fn authority(name: &RegionName, seed: u64) -> Result<RegionCa, TrustError> {
    let federation = "sim".parse().expect("a literal that matches the grammar");
    RegionCa::create_determined(&federation, name, BEGINNING, seed)
}

impl Full {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<RegionName, QuicNode>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(
        &self,
        region: &Region,
        n: usize,
        lineage: Lineage,
        inbound: Arc<dyn Inbound>,
        peers: impl Iterator<Item = RegionName>,
        gate: &Gate,
    ) -> Result<Vec<Arc<dyn Link>>, NodeError> {
        let wall = Arc::new(Clock::simulated(region.wall.clone()));
        let ca = authority(&region.plan.name, self.seed)?;
        let identity = Arc::new(Identity::new(ca.issue_leaf(wall.wall(), LEAF_LIFE)?));
        tokio::spawn(keep_renewed(identity.clone(), ca, wall.clone(), LEAF_LIFE, None, gate.token()));
        let trust = Arc::new(TrustStore::new(region.config.region.federation.clone()));
        for (peer, ca) in region.config.peers.iter().zip(self.cas.iter().enumerate().filter(|(of, _)| *of != n)) {
            trust.set(peer.region.clone(), ca.1)?;
        }
        let seed = self.seed ^ (n as u64) << 32 ^ lineage.now.counter;
        let config = QuicConfig {
            us: region.plan.name.clone(),
            lineage,
            listen: udp(n),
            peers: region.config.peers.iter().map(|peer| (peer.region.clone(), peer.address.clone())).collect(),
            version_floor: 0,
            seed,
        };
        let socket = self.net.socket(udp(n)).map_err(|source| QuicError::Listen { listen: udp(n), source })?;
        let node = QuicNode::start_on(socket, Determined { seed }, config, identity, trust, wall, inbound)?;
        let links = peers.map(|peer| node.link(&peer)).collect();
        self.nodes().insert(region.plan.name.clone(), node);
        Ok(links)
    }
}
