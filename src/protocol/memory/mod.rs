//! Regions in one process, joined by a network in memory. Owns: a [`Net`] of named regions, and [`Link`]s over it with
//! seeded delay, jitter, loss, reordering, duplication and cuts.
//! Always: runs under paused time; on one thread the same seed gives the same run; a message passes through the real
//! envelope, so what QUIC refuses is refused here too.
//! Not here: the bytes of a bulk stream (`pipe.rs`).

mod link;
mod pipe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::link::{Inbound, Link, PeerId};
use crate::clock::Clock;
use crate::types::limits::LINK_IDLE_MS_MAX;
use crate::types::{Lineage, Millis, RegionName, Tick};
use link::MemoryLink;

/// What one direction of a link does to what it carries. Chances are in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Time from one end to the other.
    pub delay: Millis,
    /// Added to the delay, evenly drawn from 0 to this.
    pub jitter: Millis,
    /// A request, reply or datagram is lost: its sender learns that the outcome is unknown.
    pub loss_permille: u16,
    /// A request or datagram is held back for up to three more delays and so may be overtaken.
    pub reorder_permille: u16,
    /// A request or datagram arrives twice.
    pub duplicate_permille: u16,
    /// Bytes per second of each bulk stream.
    pub bulk_bytes_s: Option<u64>,
}

/// One direction of a link.
struct Direction {
    faults: Faults,
    cut: watch::Sender<bool>,
    /// Bulk bytes carried so far, and at which count the next cut of the bulk streams happens.
    bulk_bytes: u64,
    bulk_cut_at: Option<u64>,
    bytes: u64,
    heard: Option<Tick>,
}

impl Default for Direction {
    fn default() -> Self {
        let cut = watch::Sender::new(false);
        Direction { faults: Faults::default(), cut, bulk_bytes: 0, bulk_cut_at: None, bytes: 0, heard: None }
    }
}

/// A region that takes part.
#[derive(Clone)]
struct Node {
    id: PeerId,
    lineage: Lineage,
    inbound: Arc<dyn Inbound>,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    rng: fastrand::Rng,
    nodes: BTreeMap<RegionName, Node>,
    directions: BTreeMap<(RegionName, RegionName), Direction>,
    /// Whether the two regions of a pair (lower name first) have a connection.
    up: BTreeMap<(RegionName, RegionName), watch::Sender<bool>>,
    /// Pairs of lives that have accepted each other.
    sessions: BTreeSet<(PeerId, PeerId)>,
    reconnects: BTreeMap<(RegionName, RegionName), u64>,
}

impl State {
    fn direction(&mut self, from: &RegionName, to: &RegionName) -> &mut Direction {
        self.directions.entry((from.clone(), to.clone())).or_default()
    }
    fn up(&mut self, a: &RegionName, b: &RegionName) -> &watch::Sender<bool> {
        self.up.entry(pair(a, b)).or_insert_with(|| watch::Sender::new(false))
    }
    fn is_cut(&mut self, a: &RegionName, b: &RegionName) -> bool {
        *self.direction(a, b).cut.borrow() || *self.direction(b, a).cut.borrow()
    }
    /// Connects the pair if nothing stands in the way.
    fn connect(&mut self, a: &RegionName, b: &RegionName) {
        if self.nodes.contains_key(a) && self.nodes.contains_key(b) && !self.is_cut(a, b) {
            let fresh = self.up(a, b).send_if_modified(|up| !std::mem::replace(up, true));
            if fresh {
                *self.reconnects.entry(pair(a, b)).or_default() += 1;
            }
        }
    }
    fn chance(&mut self, permille: u16) -> bool {
        self.rng.u16(0..1000) < permille
    }
    /// How long something takes from `from` to `to` this time.
    fn travel(&mut self, from: &RegionName, to: &RegionName) -> Millis {
        let faults = self.direction(from, to).faults;
        Millis(faults.delay.0 + self.rng.u64(0..=faults.jitter.0))
    }
}

fn pair(a: &RegionName, b: &RegionName) -> (RegionName, RegionName) {
    if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

/// A network in memory. Cloning gives another handle to the same one. Its methods need a tokio runtime around them.
#[derive(Clone)]
pub struct Net {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

impl Net {
    /// A network without faults whose chances are drawn from `seed`.
    pub fn new(seed: u64) -> Net {
        let state = State { rng: fastrand::Rng::with_seed(seed), ..State::default() };
        Net { clock: Clock::start(), state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A region joins, or a new life of it takes the place of the old one.
    pub fn join(&self, region: RegionName, lineage: impl Into<Lineage>, inbound: Arc<dyn Inbound>) {
        self.leave(&region);
        let lineage = lineage.into();
        let id = PeerId { region: region.clone(), incarnation: lineage.now };
        let mut state = self.lock();
        state.nodes.insert(region.clone(), Node { id, lineage, inbound, stop: CancellationToken::new() });
        let others: Vec<_> = state.nodes.keys().filter(|other| **other != region).cloned().collect();
        for other in others {
            state.connect(&region, &other);
        }
    }

    /// A region dies: what it was doing for others stops, its connections break.
    pub fn leave(&self, region: &RegionName) {
        let mut state = self.lock();
        let Some(node) = state.nodes.remove(region) else { return };
        node.stop.cancel();
        // Its next life has to be accepted anew.
        state.sessions.retain(|(a, b)| a.region != *region && b.region != *region);
        for ((a, b), up) in &state.up {
            if a == region || b == region {
                up.send_replace(false);
            }
        }
    }

    /// The link of `from` to `to`; both may join later.
    pub fn link(&self, from: &RegionName, to: &RegionName) -> Arc<dyn Link> {
        // Subscribed to once, so that the pair is known from now on.
        self.lock().up(from, to);
        Arc::new(MemoryLink::new(self.clone(), from.clone(), to.clone()))
    }

    /// Sets the faults of the direction `from` → `to`.
    pub fn set_faults(&self, from: &RegionName, to: &RegionName, faults: Faults) {
        self.lock().direction(from, to).faults = faults;
    }

    /// Cuts the direction `from` → `to`. The connection of the pair is given up after [`LINK_IDLE_MS_MAX`], as a real
    /// one would be; until then requests are sent and their outcome is unknown.
    pub fn cut_one_way(&self, from: &RegionName, to: &RegionName) {
        self.lock().direction(from, to).cut.send_replace(true);
        let (net, from, to) = (self.clone(), from.clone(), to.clone());
        tokio::spawn(async move {
            let mut cut = net.lock().direction(&from, &to).cut.subscribe();
            let healed = tokio::time::timeout(LINK_IDLE_MS_MAX.duration(), cut.wait_for(|cut| !cut)).await;
            if healed.is_err() {
                net.lock().up(&from, &to).send_replace(false);
            }
        });
    }

    /// Cuts one direction or ends its cut; the pair connects again once neither is cut.
    pub fn set_cut(&self, from: &RegionName, to: &RegionName, cut: bool) {
        let is = *self.lock().direction(from, to).cut.borrow();
        match (is, cut) {
            (false, true) => self.cut_one_way(from, to),
            (true, false) => {
                let mut state = self.lock();
                state.direction(from, to).cut.send_replace(false);
                state.connect(from, to);
            }
            (false, false) | (true, true) => {}
        }
    }

    /// Cuts both directions; see [`Net::cut_one_way`].
    pub fn cut(&self, a: &RegionName, b: &RegionName) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Ends all cuts between the two.
    pub fn heal(&self, a: &RegionName, b: &RegionName) {
        let mut state = self.lock();
        state.direction(a, b).cut.send_replace(false);
        state.direction(b, a).cut.send_replace(false);
        state.connect(a, b);
    }

    /// Breaks the connection at once; it is there again `after` that, unless the link is cut.
    pub fn break_connection(&self, a: &RegionName, b: &RegionName, after: Millis) {
        self.lock().up(a, b).send_replace(false);
        let (net, a, b) = (self.clone(), a.clone(), b.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after.duration()).await;
            net.lock().connect(&a, &b);
        });
    }

    /// Cuts the bulk streams between the two once `bytes` more have been carried from `from` to `to`: exactly so many
    /// arrive, then both ends see an error. Happens once; new streams can be opened at once.
    pub fn cut_bulk_after(&self, from: &RegionName, to: &RegionName, bytes: u64) {
        let mut state = self.lock();
        let direction = state.direction(from, to);
        direction.bulk_cut_at = Some(direction.bulk_bytes + bytes);
    }
}
