//! One peer: its connections of both classes and the [`Link`] over them. Owns: which of several connections is used,
//! and when it is dialled again.
//! Always: per class at most one connection takes new requests; of two that were dialled at once both ends keep the
//! same one; a region is redialled with growing, jittered pauses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::conn::{CloseCode, Conn, Delta, EstablishError};
use super::serve::INBOUND_BYTES_MAX;
use super::{Class, Shared};
use crate::protocol::link::{BoxFuture, BulkStream, Link, LinkError, LinkState, Refused, Request};
use crate::protocol::messages::Kind;
use crate::protocol::refusals::Refusals;
use crate::types::limits::{REDIAL_MS_MAX, REDIAL_MS_MIN};
use crate::types::{Incarnation, Millis, RegionName, Tick, chain};

/// Connections of one peer and class that may be finishing what they carry; a peer that opens more loses the oldest.
const DRAINING_MAX: usize = 4;

/// The connections of one class.
pub(super) struct Slot {
    pub current: watch::Sender<Option<Arc<Conn>>>,
    draining: Mutex<Vec<Weak<Conn>>>,
    established: AtomicU64,
}

impl Slot {
    fn new() -> Slot {
        Slot { current: watch::Sender::new(None), draining: Mutex::default(), established: AtomicU64::new(0) }
    }

    /// Closes all of them.
    fn sever(&self) {
        let mut draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        let old = draining.drain(..).filter_map(|conn| conn.upgrade());
        for conn in old.chain(self.current.borrow().clone()) {
            conn.close(CloseCode::Severed, "cut on purpose");
        }
    }

    fn drain(&self, conn: &Arc<Conn>) {
        conn.drain();
        let mut draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        draining.retain(|conn| conn.strong_count() > 0);
        draining.push(Arc::downgrade(conn));
        if draining.len() > DRAINING_MAX {
            // One that carries nothing, else the oldest.
            let idle = draining.iter().position(|conn| conn.upgrade().is_none_or(|conn| conn.is_drained()));
            if let Some(surplus) = draining.remove(idle.unwrap_or(0)).upgrade() {
                surplus.close(CloseCode::Replaced, "too many connections of this peer");
            }
        }
    }
}

/// A peer.
pub(super) struct Peer {
    pub region: RegionName,
    /// Where it is dialled; none if it only dials us.
    pub address: watch::Sender<Option<String>>,
    pub inbound_bytes: Semaphore,
    control: Slot,
    bulk: Slot,
    connected: watch::Sender<bool>,
    refusals: Refusals,
    incarnation: Mutex<Option<Incarnation>>,
    last_error: Mutex<Option<(String, Option<Refused>)>>,
    /// Since when the control connection has been up or down.
    changed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// The tick after the one at which anything was heard last; 0 = never.
    heard: AtomicU64,
    /// Bytes per second; 0 = not known.
    bandwidth: AtomicU64,
}

impl Peer {
    pub fn new(region: RegionName, address: Option<String>) -> Peer {
        Peer {
            region,
            address: watch::Sender::new(address),
            inbound_bytes: Semaphore::new(INBOUND_BYTES_MAX),
            control: Slot::new(),
            bulk: Slot::new(),
            connected: watch::Sender::new(false),
            refusals: Refusals::default(),
            incarnation: Mutex::default(),
            last_error: Mutex::default(),
            changed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            bandwidth: AtomicU64::new(0),
        }
    }

    pub fn slot(&self, class: Class) -> &Slot {
        match class {
            Class::Control => &self.control,
            Class::Bulk => &self.bulk,
        }
    }

    /// Counts a refusal of this peer.
    pub fn refuse(&self, reason: &'static str, detail: &dyn std::fmt::Display) {
        self.refusals.count(reason, &self.region, detail);
    }

    /// Remembers why a dial failed.
    pub fn failed(&self, class: Class, error: &EstablishError) {
        let text = format!("{} connection: {}", class.name(), chain(error));
        tracing::debug!(peer = %self.region, "dialling failed: {text}");
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some((text, error.refused()));
    }

    /// Takes in a new connection: it is used if it is better than the one in use, else it may finish what it carries.
    pub fn settle(&self, shared: &Shared, new: &Arc<Conn>) {
        let slot = self.slot(new.class);
        let now = shared.clock.now();
        let mut replaced = None;
        let taken = slot.current.send_if_modified(|current| match current {
            Some(old) if !old.is_closed() && !new.is_better_than(old, now) => false,
            _ => {
                replaced = current.replace(Arc::clone(new));
                true
            }
        });
        if !taken {
            return slot.drain(new);
        }
        match replaced {
            // A former life of the peer can't finish anything.
            Some(old) if old.peer.incarnation != new.peer.incarnation => {
                old.close(CloseCode::Replaced, "a later life of this region has connected");
            }
            Some(old) => slot.drain(&old),
            None => {}
        }
        let before = slot.established.fetch_add(1, Ordering::Relaxed);
        if before > 0 {
            metrics::counter!("novafed_link_reconnects_total", "peer" => self.region.to_string(), "class" => new.class.name())
                .increment(1);
        }
        *self.incarnation.lock().unwrap_or_else(PoisonError::into_inner) = Some(new.peer.incarnation);
        if new.class == Class::Control {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if !self.connected.send_replace(true) {
                self.changed.store(now.0, Ordering::Relaxed);
            }
        }
        tracing::info!(peer = %new.peer, class = new.class.name(), dialled_by = %new.dialled_by, "connected");
    }

    /// Forgets a connection that has ended.
    pub fn ended(&self, shared: &Shared, conn: &Arc<Conn>) {
        // Who was dialled welcomes the dialler before that has judged it, so this may be how a refusal arrives.
        if let Some(error) = conn.quinn.close_reason().map(EstablishError::from)
            && error.refused().is_some()
        {
            self.failed(conn.class, &error);
        }
        let was_current = self.slot(conn.class).current.send_if_modified(|current| {
            let ours = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, conn));
            if ours {
                *current = None;
            }
            ours
        });
        if was_current {
            let why = conn.quinn.close_reason().map(|reason| reason.to_string()).unwrap_or_default();
            tracing::info!(peer = %conn.peer, class = conn.class.name(), why, "disconnected");
            if conn.class == Class::Control {
                // Only while there is no other: `settle` may have put one there meanwhile.
                let down = self.connected.send_if_modified(|up| {
                    *up = self.control.current.borrow().is_some();
                    !*up
                });
                if down {
                    self.changed.store(shared.clock.now().0, Ordering::Relaxed);
                }
            }
        }
    }

    /// Adds what `conn` carried since the last time, and returns it. Called in even steps, because rates come of it.
    pub fn account(&self, shared: &Shared, conn: &Conn) -> Delta {
        let now = shared.clock.now();
        let delta = conn.account(now);
        self.heard.fetch_max(now.0.saturating_sub(conn.silence(now).0) + 1, Ordering::Relaxed);
        self.sent.fetch_add(delta.sent, Ordering::Relaxed);
        self.received.fetch_add(delta.received, Ordering::Relaxed);
        let labels = [("peer", self.region.to_string()), ("class", conn.class.name().to_owned())];
        metrics::counter!("novafed_link_sent_bytes_total", &labels).increment(delta.sent);
        metrics::counter!("novafed_link_received_bytes_total", &labels).increment(delta.received);
        metrics::gauge!("novafed_link_rtt_seconds", &labels).set(conn.quinn.rtt().as_secs_f64());
        if conn.class == Class::Bulk
            && let Some(rate) = delta.busy_rate()
        {
            // Leans to what it could carry at best: a slow spell may be its user's, a fast one can't be.
            let known = self.bandwidth.load(Ordering::Relaxed);
            let next = if rate >= known { known / 2 + rate / 2 } else { known - known / 8 + rate / 8 };
            self.bandwidth.store(if known == 0 { rate } else { next }, Ordering::Relaxed);
        }
        delta
    }

    /// The connection of `class` in use.
    pub fn current(&self, class: Class) -> Option<Arc<Conn>> {
        self.slot(class).current.borrow().clone().filter(|conn| !conn.is_closed())
    }
}

/// Pauses between dials: decorrelated jitter, so that many regions that lost one peer do not return in step.
struct Backoff {
    last: Millis,
}

impl Backoff {
    fn next(&mut self, shared: &Shared) -> Millis {
        let upper = (self.last.0 * 3).clamp(REDIAL_MS_MIN.0 + 1, REDIAL_MS_MAX.0);
        let drawn = shared.rng.lock().unwrap_or_else(PoisonError::into_inner).u64(REDIAL_MS_MIN.0..=upper);
        self.last = Millis(drawn);
        self.last
    }
}

/// Keeps a connection of `class` to `peer` for ever.
pub(super) async fn keep_connected(shared: Arc<Shared>, peer: Arc<Peer>, class: Class) {
    let mut slot = peer.slot(class).current.subscribe();
    let mut leaf = shared.tls.identity.changes();
    let mut address = peer.address.subscribe();
    let mut backoff = Backoff { last: Millis(0) };
    // Both ends dial; the lower name begins, so that at rest nothing has to be settled.
    let mut pause = if shared.us.region < peer.region { Millis(0) } else { backoff.next(&shared) };
    loop {
        // A connection is wanted while there is none, or while the one in use shows a leaf that was renewed since.
        let current = slot.borrow_and_update().clone();
        let own_not_after = shared.tls.identity.not_after();
        let wanted = current.as_ref().is_none_or(|conn| conn.is_closed() || conn.own_not_after < own_not_after);
        let target = address.borrow_and_update().clone();
        let (Some(target), true) = (target, wanted) else {
            tokio::select! {
                biased;
                _ = slot.changed() => {}
                _ = leaf.changed() => {}
                _ = address.changed() => backoff.last = Millis(0),
            }
            // One that held for a while is lost for a new reason.
            if let Some(conn) = current
                && shared.clock.now().since(conn.established) >= REDIAL_MS_MAX
            {
                backoff.last = Millis(0);
                pause = Millis(0);
            }
            continue;
        };
        if pause.0 > 0 {
            tokio::select! {
                biased;
                // The peer connected, or another address is known: look again.
                _ = slot.changed() => continue,
                _ = address.changed() => continue,
                () = tokio::time::sleep(pause.duration()) => {}
            }
        }
        pause = backoff.next(&shared);
        let dialled = tokio::select! {
            biased;
            // What is dialled here is not where the peer is.
            _ = address.changed() => continue,
            dialled = shared.dial(&peer, class, &target) => dialled,
        };
        match dialled {
            Ok(conn) => shared.establish(&peer, conn),
            Err(error) => {
                if let Some(reason) = error.reason() {
                    peer.refuse(reason, &error);
                }
                peer.failed(class, &error);
            }
        }
    }
}

/// The [`Link`] that actors get.
pub(super) struct QuicLink {
    pub shared: Arc<Shared>,
    pub peer: Arc<Peer>,
}

impl Link for QuicLink {
    fn peer(&self) -> &RegionName {
        &self.peer.region
    }
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        Box::pin(super::call::request(&self.shared, &self.peer, request))
    }
    fn datagram(&self, kind: Kind, body: Bytes) -> Result<(), LinkError> {
        super::call::datagram(&self.shared, &self.peer, kind, body)
    }
    fn open_bulk(&self, hello: Bytes, deadline: Millis) -> BoxFuture<'_, Result<BulkStream, LinkError>> {
        Box::pin(super::call::open_bulk(&self.peer, hello, deadline))
    }
    fn connected(&self) -> watch::Receiver<bool> {
        self.peer.connected.subscribe()
    }
    fn sever(&self) {
        self.peer.control.sever();
        self.peer.bulk.sever();
    }
    fn state(&self) -> LinkState {
        let (control, bulk) = (self.peer.current(Class::Control), self.peer.current(Class::Bulk));
        let now = self.shared.clock.now();
        let heard = self.peer.heard.load(Ordering::Relaxed).checked_sub(1).map(|heard| now.since(Tick(heard)));
        let silences = [&control, &bulk].into_iter().flatten().map(|conn| conn.silence(now));
        let known = |slot: &Mutex<Option<Incarnation>>| *slot.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.peer.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (last_error, refused) = last.map_or((None, None), |(text, refused)| (Some(text), refused));
        let paths = [&control, &bulk].into_iter().flatten().map(|conn| conn.quinn.stats().path);
        let (sent, lost) = paths.fold((0, 0), |sum, path| (sum.0 + path.sent_packets, sum.1 + path.lost_packets));
        let loss_permille = (lost * 1_000).checked_div(sent).and_then(|loss| u32::try_from(loss).ok());
        LinkState {
            connected: control.is_some(),
            bulk_connected: bulk.is_some(),
            incarnation: known(&self.peer.incarnation),
            rtt_us: control.as_ref().map(|conn| u64::try_from(conn.quinn.rtt().as_micros()).unwrap_or(u64::MAX)),
            last_heard: silences.chain(heard).min(),
            bytes_sent: self.peer.sent.load(Ordering::Relaxed),
            bytes_received: self.peer.received.load(Ordering::Relaxed),
            bandwidth_bytes_s: Some(self.peer.bandwidth.load(Ordering::Relaxed)).filter(|rate| *rate > 0),
            reconnects: self.peer.control.established.load(Ordering::Relaxed).saturating_sub(1),
            refusals: self.peer.refusals.snapshot(),
            last_error,
            refused,
            since: now.since(Tick(self.peer.changed.load(Ordering::Relaxed))),
            loss_permille,
        }
    }
}
