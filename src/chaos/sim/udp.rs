//! UDP in one process, on tokio's clock. Owns: a [`UdpNet`] of sockets, and what each directed path between two of them
//! does to its datagrams: delay, jitter, loss, bursts of it, reordering, duplicates, flipped bits, a rate, a length
//! limit, cuts.
//! Always: the same seed and the same sends give the same deliveries, in order of due time and then of sending; each
//! path draws from a chance of its own, so what happens on one changes nothing on another; what waits is bounded. No
//! task and no thread: a socket is woken by its own timer, which is as fine as tokio's (1 ms).
//! Not here: which path is spoiled when; real sockets (`chaos/relay.rs`).

mod path;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Sleep, sleep_until};
use xxhash_rust::xxh3::Xxh3;

use crate::clock::Clock;
use crate::types::units::MIB;
use crate::types::{Millis, Tick};
use path::Path;
pub use path::{Carried, PathFaults};

/// What may be under way to one address, as on a long and fat path.
const FLYING_BYTES_MAX: usize = 64 * MIB as usize;
/// What waits at a socket whose process stands still, and what such a process may have given out: a kernel's buffer.
const HELD_BYTES_MAX: usize = 4 * MIB as usize;

const NANOS_PER_MS: u64 = 1_000_000;

/// A datagram on its way.
struct Flying {
    due: u64,
    number: u64,
    path: usize,
    bytes: Box<[u8]>,
    ecn: Option<EcnCodepoint>,
}

impl PartialEq for Flying {
    fn eq(&self, other: &Flying) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Flying {}
impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Flying) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flying {
    fn cmp(&self, other: &Flying) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// What a held process has sent: where to, and what.
type Unsent = (SocketAddr, Box<[u8]>, Option<EcnCodepoint>);

/// An address, whether somebody is there or not.
#[derive(Default)]
struct Place {
    /// The number of the socket that is bound.
    bound: Option<u64>,
    flying: BinaryHeap<Reverse<Flying>>,
    flying_bytes: usize,
    /// Who waits for a datagram, and until when it sleeps.
    reader: Option<Waker>,
    sleeps_until: Option<Tick>,
    held: bool,
    unsent: VecDeque<Unsent>,
    unsent_bytes: usize,
}

impl Place {
    fn pop_due(&mut self, now: u64) -> Option<Flying> {
        if self.flying.peek()?.0.due > now {
            return None;
        }
        let Reverse(flying) = self.flying.pop()?;
        self.flying_bytes -= flying.bytes.len();
        Some(flying)
    }

    fn wake(&mut self) {
        self.sleeps_until = None;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

struct State {
    seed: u64,
    places: BTreeMap<SocketAddr, Place>,
    paths: Vec<Path>,
    path_of: BTreeMap<(SocketAddr, SocketAddr), usize>,
    /// What paths do that nobody spoke of.
    otherwise: PathFaults,
    number: u64,
    sockets: u64,
    trace: Xxh3,
}

impl State {
    fn path(&mut self, from: SocketAddr, to: SocketAddr) -> usize {
        *self.path_of.entry((from, to)).or_insert_with(|| {
            self.paths.push(Path::new(self.seed, from, to, self.otherwise));
            self.paths.len() - 1
        })
    }

    fn place(&mut self, address: SocketAddr) -> &mut Place {
        self.places.entry(address).or_default()
    }

    /// Takes in a datagram at `now`.
    fn send(&mut self, now: u64, from: SocketAddr, to: SocketAddr, bytes: &[u8], ecn: Option<EcnCodepoint>) {
        let at = self.path(from, to);
        for (due, bytes) in self.paths[at].fates(now, bytes).into_iter().flatten() {
            self.number += 1;
            let flying = Flying { due, number: self.number, path: at, bytes, ecn };
            let place = self.places.entry(to).or_default();
            if place.bound.is_none() {
                // Else they would gather where nobody ever comes.
                while let Some(gone) = place.pop_due(now) {
                    self.paths[gone.path].counts.nobody += 1;
                }
            }
            let most = if place.held { HELD_BYTES_MAX } else { FLYING_BYTES_MAX };
            if place.flying_bytes + flying.bytes.len() > most {
                self.paths[at].counts.overflowed += 1;
                continue;
            }
            place.flying_bytes += flying.bytes.len();
            let tick = tick_of(due);
            place.flying.push(Reverse(flying));
            if !place.held && place.sleeps_until.is_none_or(|until| tick < until) {
                place.wake();
            }
        }
    }

    /// The next datagram that is to be read at `address` now.
    fn receive(&mut self, now: u64, address: SocketAddr) -> Option<Flying> {
        loop {
            let flying = self.places.get_mut(&address)?.pop_due(now)?;
            let path = &mut self.paths[flying.path];
            // A cut holds for what is under way, too.
            if path.faults.cut {
                path.counts.cut += 1;
                continue;
            }
            path.counts.delivered += 1;
            path.counts.delivered_bytes += flying.bytes.len() as u64;
            self.trace.update(&(now / NANOS_PER_MS).to_le_bytes());
            self.trace.update(&(flying.path as u64).to_le_bytes());
            self.trace.update(&flying.bytes);
            return Some(flying);
        }
    }

    /// Ends whatever holds `address`.
    fn unbind(&mut self, address: SocketAddr) {
        let place = self.place(address);
        (place.bound, place.held) = (None, false);
        (place.unsent, place.unsent_bytes) = (VecDeque::new(), 0);
        place.reader = None;
        place.sleeps_until = None;
    }
}

/// The first tick at which something due at `nanos` is over.
fn tick_of(nanos: u64) -> Tick {
    Tick(nanos.div_ceil(NANOS_PER_MS))
}

/// A network of simulated UDP sockets. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct UdpNet {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for UdpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpNet").field("now", &self.clock.now()).finish_non_exhaustive()
    }
}

impl UdpNet {
    /// A network without faults whose chances are drawn from `seed`. Needs a tokio runtime around it, whose clock should
    /// have been paused since it began.
    pub fn new(seed: u64) -> UdpNet {
        let state = State {
            seed,
            places: BTreeMap::new(),
            paths: Vec::new(),
            path_of: BTreeMap::new(),
            otherwise: PathFaults::default(),
            number: 0,
            sockets: 0,
            trace: Xxh3::new(),
        };
        UdpNet { clock: Clock::start(), state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.clock.now().0 * NANOS_PER_MS
    }

    /// A socket at `address`. What was sent there before and is still under way reaches it.
    pub fn socket(&self, address: SocketAddr) -> io::Result<Arc<SimSocket>> {
        let now = self.now();
        let mut state = self.lock();
        state.sockets += 1;
        let number = state.sockets;
        if state.place(address).bound.is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        while let Some(gone) = state.place(address).pop_due(now) {
            state.paths[gone.path].counts.nobody += 1;
        }
        state.place(address).bound = Some(number);
        Ok(Arc::new(SimSocket { net: self.clone(), address, number, timer: Mutex::new(None) }))
    }

    /// From now on the path `from` → `to` does this.
    pub fn set(&self, from: SocketAddr, to: SocketAddr, faults: PathFaults) {
        self.change(from, to, |now| *now = faults);
    }

    /// The same for both directions.
    pub fn set_both(&self, a: SocketAddr, b: SocketAddr, faults: PathFaults) {
        self.set(a, b, faults);
        self.set(b, a, faults);
    }

    /// The same for all paths, those of later sockets included.
    pub fn set_all(&self, faults: PathFaults) {
        let mut state = self.lock();
        state.otherwise = faults;
        for path in &mut state.paths {
            path.faults = faults;
        }
    }

    /// Changes some of what the path `from` → `to` does.
    pub fn change(&self, from: SocketAddr, to: SocketAddr, change: impl FnOnce(&mut PathFaults)) {
        let mut state = self.lock();
        let at = state.path(from, to);
        change(&mut state.paths[at].faults);
    }

    /// What the path `from` → `to` does now.
    pub fn faults(&self, from: SocketAddr, to: SocketAddr) -> PathFaults {
        let mut state = self.lock();
        let at = state.path(from, to);
        state.paths[at].faults
    }

    /// Cuts or heals one direction and leaves its other faults as they are.
    pub fn cut(&self, from: SocketAddr, to: SocketAddr, cut: bool) {
        self.change(from, to, |now| now.cut = cut);
    }

    /// Cuts or heals both directions.
    pub fn cut_both(&self, a: SocketAddr, b: SocketAddr, cut: bool) {
        self.cut(a, b, cut);
        self.cut(b, a, cut);
    }

    /// Loses all that is sent from `from` to `to` in the next `span`, beside what is lost by chance.
    pub fn lose(&self, from: SocketAddr, to: SocketAddr, span: Millis) {
        let until = self.now() + span.0 * NANOS_PER_MS;
        let mut state = self.lock();
        let at = state.path(from, to);
        state.paths[at].lose_until(until);
    }

    /// The process at `address` dies: its socket neither sends nor receives any more, and the address is free for the
    /// next one. What it has sent is under way and arrives.
    pub fn sever(&self, address: SocketAddr) {
        self.lock().unbind(address);
    }

    /// The process at `address` stands still, as after SIGSTOP: what is sent to it waits, like what it sends, in buffers
    /// as a kernel has them; or it goes on. Its timers run meanwhile, as they are not part of the network.
    pub fn hold(&self, address: SocketAddr, held: bool) {
        let now = self.now();
        let mut state = self.lock();
        let place = state.place(address);
        if place.bound.is_none() || std::mem::replace(&mut place.held, held) == held {
            return;
        }
        place.wake();
        if held {
            return;
        }
        place.unsent_bytes = 0;
        for (to, bytes, ecn) in std::mem::take(&mut place.unsent) {
            state.send(now, address, to, &bytes, ecn);
        }
    }

    /// What the path `from` → `to` has done so far.
    pub fn carried(&self, from: SocketAddr, to: SocketAddr) -> Carried {
        let mut state = self.lock();
        let at = state.path(from, to);
        state.paths[at].counts
    }

    /// What all paths have done so far.
    pub fn carried_in_all(&self) -> Carried {
        self.lock().paths.iter().fold(Carried::default(), |sum, path| sum.plus(&path.counts))
    }

    /// A digest of all that was delivered so far: when, on which path, and each byte of it.
    pub fn trace(&self) -> u64 {
        self.lock().trace.digest()
    }

    fn sent_by(&self, socket: &SimSocket, transmit: &Transmit<'_>) {
        let now = self.now();
        let mut state = self.lock();
        let place = state.place(socket.address);
        if place.bound != Some(socket.number) {
            // Severed: the process believes that it sends.
            return;
        }
        let whole = transmit.contents.len().max(1);
        for bytes in transmit.contents.chunks(transmit.segment_size.unwrap_or(whole).max(1)) {
            let place = state.place(socket.address);
            if !place.held {
                state.send(now, socket.address, transmit.destination, bytes, transmit.ecn);
            } else if place.unsent_bytes + bytes.len() <= HELD_BYTES_MAX {
                place.unsent_bytes += bytes.len();
                place.unsent.push_back((transmit.destination, bytes.into(), transmit.ecn));
            } else {
                let at = state.path(socket.address, transmit.destination);
                state.paths[at].counts.overflowed += 1;
            }
        }
    }
}

/// A simulated UDP socket; its address is free again once it is dropped.
pub struct SimSocket {
    net: UdpNet,
    address: SocketAddr,
    number: u64,
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({}, number {})", self.address, self.number)
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut state = self.net.lock();
        if state.place(self.address).bound == Some(self.number) {
            state.unbind(self.address);
        }
    }
}

/// What one look at a socket found.
enum Look {
    Datagrams(usize),
    /// Nothing is due before this; none if nothing is under way.
    Nothing(Option<Tick>),
}

impl SimSocket {
    fn look(&self, cx: &Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Look {
        let now = self.net.now();
        let mut state = self.net.lock();
        let place = state.place(self.address);
        if place.bound != Some(self.number) {
            return Look::Nothing(None);
        }
        let mut count = 0;
        if !place.held {
            for (buf, meta) in bufs.iter_mut().zip(meta) {
                let Some(flying) = state.receive(now, self.address) else { break };
                // Like the kernel: what does not fit into the buffer is cut off.
                let len = flying.bytes.len().min(buf.len());
                buf[..len].copy_from_slice(&flying.bytes[..len]);
                let addr = state.paths[flying.path].from;
                *meta = RecvMeta { addr, len, stride: len, ecn: flying.ecn, dst_ip: Some(self.address.ip()) };
                count += 1;
            }
        }
        if count > 0 {
            return Look::Datagrams(count);
        }
        let place = state.place(self.address);
        let due = place.flying.peek().filter(|_| !place.held).map(|Reverse(flying)| tick_of(flying.due));
        place.sleeps_until = due;
        if place.reader.as_ref().is_none_or(|reader| !reader.will_wake(cx.waker())) {
            place.reader = Some(cx.waker().clone());
        }
        Look::Nothing(due)
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.net.sent_by(self, transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let due = match self.look(cx, bufs, meta) {
                Look::Datagrams(count) => return Poll::Ready(Ok(count)),
                Look::Nothing(None) => return Poll::Pending,
                Look::Nothing(Some(due)) => self.net.clock.at(due),
            };
            let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A datagram can always be sent: what is too much for the path is lost on it.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
