//! A UDP relay that spoils a link: delay, jitter, loss, reordering, duplicates, corruption, a rate, a longest
//! datagram, cuts. Owns: one directed link: it listens where the dialler dials and passes on to the real address. No
//! root is needed.
//! Always: its chances come from a seed; each client address has an upstream socket of its own, so that the dialled end
//! sees distinct paths; what it holds is bounded; without faults a whole batch passes in two system calls.
//! Not here: which links are spoiled when (`demo/`, tests).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::machine_nanos;
use crate::types::Millis;

/// Client addresses with an upstream socket; the one that was silent longest makes room.
const CLIENTS_MAX: usize = 256;
/// Messages that one system call receives, each of up to 64 KiB of datagrams that belong together.
const BATCH: usize = 8;
const BUFFER_BYTES: usize = 64 * 1024;
/// A full queue of a rate-limited link drops what would wait longer, as routers do.
const QUEUE_NANOS_MAX: u64 = 200_000_000;
/// What one direction holds back at most.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Jitter is drawn anew so often: links do not change their mind for each packet, and it must not reorder.
const JITTER_NANOS: u64 = 20_000_000;
/// How much later than its turn an overtaken datagram arrives, at least.
const REORDER_NANOS: u64 = 2_000_000;
/// Kernel buffers, best effort: a burst must not be lost where no loss was asked for.
const SOCKET_BYTES: usize = 4 * 1024 * 1024;

/// What one direction does to its datagrams. Chances are in thousandths; the default does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Impairment {
    /// Added to every datagram.
    pub delay: Millis,
    /// Up to this is added, changing slowly and never reordering.
    pub jitter: Millis,
    /// Chance to be lost.
    pub loss_permille: u16,
    /// Chance to be overtaken by what comes after.
    pub reorder_permille: u16,
    /// Chance to arrive twice.
    pub duplicate_permille: u16,
    /// Chance that one bit is flipped.
    pub corrupt_permille: u16,
    /// Longer datagrams vanish, as on a path whose routers do not say so.
    pub bytes_max: Option<u16>,
    /// Bytes per second that pass.
    pub rate_bytes_s: Option<u64>,
    /// Nothing passes.
    pub cut: bool,
}

impl Impairment {
    /// Whether each datagram has a fate of its own, so that batches must be taken apart.
    fn is_per_datagram(&self) -> bool {
        self.loss_permille + self.reorder_permille + self.duplicate_permille + self.corrupt_permille > 0
            || self.rate_bytes_s.is_some()
            || self.bytes_max.is_some()
    }
}

/// A direction of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the dialler to the dialled.
    Forward,
    /// From the dialled back to the dialler.
    Backward,
}

/// What one direction has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Datagrams that came in.
    pub datagrams: u64,
    /// Bytes that came in.
    pub bytes: u64,
    /// Bytes that went out.
    pub delivered_bytes: u64,
    /// Datagrams lost by chance, or because they were too long.
    pub lost: u64,
    /// Datagrams dropped because of a cut.
    pub cut: u64,
    /// Datagrams dropped because a rate-limited queue was full.
    pub overflowed: u64,
    /// Datagrams that went out twice.
    pub duplicated: u64,
    /// Datagrams that were overtaken.
    pub reordered: u64,
    /// Datagrams with a flipped bit.
    pub corrupted: u64,
}

/// Settings and counters of a direction.
#[derive(Default)]
struct Way {
    impairment: Mutex<Impairment>,
    counts: [AtomicU64; 9],
}

/// Indices into [`Way::counts`], in the order of [`Counts`].
#[derive(Clone, Copy)]
enum Count {
    Datagrams,
    Bytes,
    DeliveredBytes,
    Lost,
    Cut,
    Overflowed,
    Duplicated,
    Reordered,
    Corrupted,
}

impl Way {
    fn count(&self, what: Count, n: usize) {
        self.counts[what as usize].fetch_add(n as u64, Ordering::Relaxed);
    }
    fn get(&self) -> Impairment {
        *self.impairment.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn set(&self, change: impl FnOnce(&mut Impairment)) {
        change(&mut self.impairment.lock().unwrap_or_else(PoisonError::into_inner));
    }
    fn counts(&self) -> Counts {
        let [datagrams, bytes, delivered_bytes, lost, cut, overflowed, duplicated, reordered, corrupted] =
            std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed));
        Counts { datagrams, bytes, delivered_bytes, lost, cut, overflowed, duplicated, reordered, corrupted }
    }
}

/// A socket with what batches need.
struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    async fn bind(address: SocketAddr) -> io::Result<Arc<Socket>> {
        let io = UdpSocket::bind(address).await?;
        let state = UdpSocketState::new((&io).into())?;
        // Best effort: the machine may allow less.
        let _ = state.set_recv_buffer_size((&io).into(), SOCKET_BYTES);
        let _ = state.set_send_buffer_size((&io).into(), SOCKET_BYTES);
        Ok(Arc::new(Socket { io, state }))
    }

    async fn send(&self, held: &Held) {
        let most = held.segment * self.state.max_gso_segments().max(1);
        for part in held.bytes.chunks(most.max(1)) {
            let transmit = Transmit {
                destination: held.to,
                ecn: held.ecn,
                contents: part,
                segment_size: (part.len() > held.segment).then_some(held.segment),
                src_ip: None,
            };
            // Any other failure than a full buffer loses the datagram, as networks do.
            let _ = self.io.async_io(Interest::WRITABLE, || self.state.send((&self.io).into(), &transmit)).await;
        }
    }
}

/// Datagrams of one sender on their way, all of `segment` bytes but the last.
struct Held {
    due: u64,
    /// In order of arrival, so that equal due times keep it.
    number: u64,
    via: Arc<Socket>,
    to: SocketAddr,
    bytes: Vec<u8>,
    segment: usize,
    ecn: Option<EcnCodepoint>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    fn cmp(&self, other: &Held) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// What decides over the datagrams of one direction and one client, and holds those that are not due.
struct Shaper {
    way: Arc<Way>,
    rng: fastrand::Rng,
    queue: BinaryHeap<Reverse<Held>>,
    queued_bytes: usize,
    number: u64,
    /// When the rate-limited line is free again.
    line_free: u64,
    last_due: u64,
    jitter: (u64, u64),
}

impl Shaper {
    fn new(way: Arc<Way>, seed: u64) -> Shaper {
        Shaper {
            way,
            rng: fastrand::Rng::with_seed(seed),
            queue: BinaryHeap::new(),
            queued_bytes: 0,
            number: 0,
            line_free: 0,
            last_due: 0,
            jitter: (0, 0),
        }
    }

    fn chance(&mut self, permille: u16) -> bool {
        permille > 0 && self.rng.u16(0..1000) < permille
    }

    /// Takes in a batch; returns it if it may pass at once.
    fn admit(&mut self, batch: Held) -> Option<Held> {
        let impairment = self.way.get();
        let datagrams = batch.bytes.len().div_ceil(batch.segment.max(1));
        self.way.count(Count::Datagrams, datagrams);
        self.way.count(Count::Bytes, batch.bytes.len());
        if impairment.cut {
            self.way.count(Count::Cut, datagrams);
            return None;
        }
        let now = machine_nanos();
        if !impairment.is_per_datagram() {
            let at_once = impairment.delay.0 + impairment.jitter.0 == 0 && self.queue.is_empty();
            if at_once {
                return Some(batch);
            }
            let due = self.due(&impairment, now, 0);
            self.hold(batch, due);
            return None;
        }
        for datagram in batch.bytes.chunks(batch.segment.max(1)) {
            self.admit_one(&impairment, &batch, datagram.to_vec(), now);
        }
        None
    }

    fn admit_one(&mut self, impairment: &Impairment, batch: &Held, mut bytes: Vec<u8>, now: u64) {
        let too_long = impairment.bytes_max.is_some_and(|most| bytes.len() > usize::from(most));
        if too_long || self.chance(impairment.loss_permille) {
            return self.way.count(Count::Lost, 1);
        }
        if let Some(rate) = impairment.rate_bytes_s {
            let start = self.line_free.max(now);
            if start - now > QUEUE_NANOS_MAX {
                return self.way.count(Count::Overflowed, 1);
            }
            self.line_free = start + bytes.len() as u64 * 1_000_000_000 / rate.max(1);
        }
        if self.chance(impairment.corrupt_permille) && !bytes.is_empty() {
            let at = self.rng.usize(0..bytes.len());
            bytes[at] ^= 1 << self.rng.u8(0..8);
            self.way.count(Count::Corrupted, 1);
        }
        let wait = if impairment.rate_bytes_s.is_some() { self.line_free - now } else { 0 };
        let mut due = self.due(impairment, now, wait);
        if self.chance(impairment.reorder_permille) {
            due += REORDER_NANOS + self.rng.u64(0..=impairment.delay.0 * 1_000_000 / 2);
            self.way.count(Count::Reordered, 1);
        }
        let segment = bytes.len();
        let copy = |bytes| Held { via: Arc::clone(&batch.via), bytes, segment, ..*batch };
        if self.chance(impairment.duplicate_permille) {
            self.way.count(Count::Duplicated, 1);
            self.hold(copy(bytes.clone()), due);
        }
        self.hold(copy(bytes), due);
    }

    /// When something that came now and waits `wait` for the line is due; never before what came earlier.
    fn due(&mut self, impairment: &Impairment, now: u64, wait: u64) -> u64 {
        let (drawn_at, mut jitter) = self.jitter;
        if impairment.jitter.0 == 0 {
            jitter = 0;
        } else if now >= drawn_at + JITTER_NANOS {
            jitter = self.rng.u64(0..=impairment.jitter.0 * 1_000_000);
            self.jitter = (now, jitter);
        }
        self.last_due = self.last_due.max(now + wait + impairment.delay.0 * 1_000_000 + jitter);
        self.last_due
    }

    fn hold(&mut self, held: Held, due: u64) {
        if self.queued_bytes + held.bytes.len() > QUEUE_BYTES_MAX {
            return self.way.count(Count::Overflowed, held.bytes.len().div_ceil(held.segment.max(1)));
        }
        self.queued_bytes += held.bytes.len();
        self.number += 1;
        self.queue.push(Reverse(Held { due, number: self.number, ..held }));
    }

    /// How long until something is due; none if nothing is held.
    fn wait(&self) -> Option<Duration> {
        let due = self.queue.peek()?.0.due;
        Some(Duration::from_nanos(due.saturating_sub(machine_nanos())))
    }

    fn pop_due(&mut self) -> Option<Held> {
        if self.queue.peek()?.0.due > machine_nanos() {
            return None;
        }
        let Reverse(held) = self.queue.pop()?;
        self.queued_bytes -= held.bytes.len();
        // A cut holds for what is under way, too.
        if self.way.get().cut {
            self.way.count(Count::Cut, held.bytes.len().div_ceil(held.segment.max(1)));
            return self.pop_due();
        }
        Some(held)
    }

    async fn send(&self, held: Held) {
        self.way.count(Count::DeliveredBytes, held.bytes.len());
        held.via.send(&held).await;
    }
}

/// Receives from `source` for ever; `route` says for each sender through which socket and whereto.
async fn pump(
    source: Arc<Socket>,
    mut shaper: Shaper,
    mut route: impl AsyncFnMut(SocketAddr) -> Option<(Arc<Socket>, SocketAddr)>,
) {
    let mut buffers = vec![vec![0; BUFFER_BYTES]; BATCH];
    let mut metas = [RecvMeta::default(); BATCH];
    loop {
        let wait = shaper.wait();
        let received = {
            let mut slices = buffers.iter_mut().map(|buffer| io::IoSliceMut::new(buffer)).collect::<Vec<_>>();
            let receive = source
                .io
                .async_io(Interest::READABLE, || source.state.recv((&source.io).into(), &mut slices, &mut metas));
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => 0,
                // A failed receive is an ICMP message about an earlier datagram: the other end is not there yet.
                received = receive => received.unwrap_or(0),
            }
        };
        for at in 0..received {
            let meta = metas[at];
            let Some((via, to)) = route(meta.addr).await else { continue };
            let bytes = buffers[at][..meta.len].to_vec();
            let batch = Held { due: 0, number: 0, via, to, bytes, segment: meta.stride.max(1), ecn: meta.ecn };
            if let Some(batch) = shaper.admit(batch) {
                shaper.send(batch).await;
            }
        }
        while let Some(held) = shaper.pop_due() {
            shaper.send(held).await;
        }
    }
}

/// The upstream socket of one client; its backward pump ends with it.
struct Client {
    upstream: Arc<Socket>,
    used: u64,
    _pump: DropGuard,
}

struct Inner {
    listen: Arc<Socket>,
    address: SocketAddr,
    target: Mutex<SocketAddr>,
    forward: Arc<Way>,
    backward: Arc<Way>,
    clients: Mutex<BTreeMap<SocketAddr, Client>>,
    seed: u64,
    stop: CancellationToken,
}

/// A running relay; dropping it stops it.
pub struct Relay {
    inner: Arc<Inner>,
    _stop: DropGuard,
}

impl Relay {
    /// Relays from `listen` (port 0 takes a free one) to `target`; nothing is spoiled yet.
    pub async fn start(listen: SocketAddr, target: SocketAddr, seed: u64) -> io::Result<Relay> {
        let socket = Socket::bind(listen).await?;
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            address: socket.io.local_addr()?,
            listen: socket,
            target: Mutex::new(target),
            forward: Arc::default(),
            backward: Arc::default(),
            clients: Mutex::default(),
            seed,
            stop: stop.clone(),
        });
        let shaper = Shaper::new(Arc::clone(&inner.forward), seed);
        let routing = Arc::clone(&inner);
        let work = pump(Arc::clone(&inner.listen), shaper, async move |client| routing.upstream(client).await);
        let ends = stop.clone();
        tokio::spawn(async move { ends.run_until_cancelled(work).await });
        Ok(Relay { inner, _stop: stop.drop_guard() })
    }

    /// Where it listens: what the dialler dials.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }
    /// From now on passes on to `target`.
    pub fn set_target(&self, target: SocketAddr) {
        *self.inner.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Forward => &self.inner.forward,
            Direction::Backward => &self.inner.backward,
        }
    }
    /// Spoils one direction.
    pub fn set(&self, direction: Direction, impairment: Impairment) {
        self.way(direction).set(|now| *now = impairment);
    }
    /// Spoils both directions.
    pub fn set_both(&self, impairment: Impairment) {
        self.set(Direction::Forward, impairment);
        self.set(Direction::Backward, impairment);
    }
    /// What one direction does now.
    pub fn get(&self, direction: Direction) -> Impairment {
        self.way(direction).get()
    }
    /// Cuts or heals one direction and leaves its other faults as they are.
    pub fn cut(&self, direction: Direction, cut: bool) {
        self.way(direction).set(|now| now.cut = cut);
    }
    /// Cuts or heals both directions.
    pub fn cut_both(&self, cut: bool) {
        self.cut(Direction::Forward, cut);
        self.cut(Direction::Backward, cut);
    }
    /// Gives every client a new upstream socket: what a NAT does that has forgotten.
    pub fn rebind(&self) {
        self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
    /// What one direction has done so far.
    pub fn counts(&self, direction: Direction) -> Counts {
        self.way(direction).counts()
    }
}

impl Inner {
    fn client(&self, client: SocketAddr) -> Option<Arc<Socket>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let found = clients.get_mut(&client)?;
        found.used = machine_nanos();
        Some(Arc::clone(&found.upstream))
    }

    /// The way upstream for `client`; none if no socket can be had.
    async fn upstream(self: &Arc<Self>, client: SocketAddr) -> Option<(Arc<Socket>, SocketAddr)> {
        let target = *self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = self.client(client) {
            return Some((upstream, target));
        }
        let any = if target.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0u16; 8], 0)) };
        let upstream = match Socket::bind(any).await {
            Ok(upstream) => upstream,
            Err(error) => {
                tracing::warn!(%client, %error, "relay: no upstream socket for a client; its datagrams are dropped");
                return None;
            }
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MAX
            && let Some(oldest) = clients.iter().min_by_key(|(_, client)| client.used).map(|(address, _)| *address)
        {
            clients.remove(&oldest);
        }
        // Its own seed: which client came first must not change what happens to the others.
        let seed = self.seed ^ u64::from(client.port()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let shaper = Shaper::new(Arc::clone(&self.backward), seed);
        let listen = Arc::clone(&self.listen);
        let back = pump(Arc::clone(&upstream), shaper, async move |_| Some((Arc::clone(&listen), client)));
        let stop = self.stop.child_token();
        let ends = stop.clone();
        tokio::spawn(async move { ends.run_until_cancelled(back).await });
        let client_entry = Client { upstream: Arc::clone(&upstream), used: machine_nanos(), _pump: stop.drop_guard() };
        clients.insert(client, client_entry);
        Some((upstream, target))
    }
}
