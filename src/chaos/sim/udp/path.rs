//! One directed path between two addresses. Owns: when a datagram arrives, how often, and whether as it was sent.
//! Always: what a datagram meets is drawn in one order whatever its fate, and only from this path's chance.

use std::net::SocketAddr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::NANOS_PER_MS;
use crate::types::Millis;
use crate::types::units::KIB;

/// Jitter is drawn anew so often: paths do not change their mind for each datagram, and it must not reorder.
const JITTER_NANOS: u64 = 20 * NANOS_PER_MS;
/// How much later than its turn an overtaken datagram arrives, at least.
const REORDER_NANOS: u64 = 2 * NANOS_PER_MS;
/// A router's queue, unless told otherwise: 200 ms of 10 Mbit/s.
const QUEUE_BYTES: u64 = 256 * KIB;

/// What a path does to its datagrams. Chances are in thousandths; the default does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathFaults {
    /// Time from one end to the other.
    pub delay: Millis,
    /// Up to this is added, changing slowly and never reordering.
    pub jitter: Millis,
    /// Chance to be lost.
    pub loss_permille: u16,
    /// Chance that all is lost for a while, beginning with this datagram.
    pub burst_permille: u16,
    /// For how long then.
    pub burst: Millis,
    /// Chance to be overtaken by what comes after.
    pub reorder_permille: u16,
    /// Chance to arrive twice.
    pub duplicate_permille: u16,
    /// Chance that one bit is flipped.
    pub corrupt_permille: u16,
    /// Bytes per second that pass.
    pub rate_bytes_s: Option<u64>,
    /// Bytes that wait where the rate limits; more are dropped.
    pub queue_bytes: u64,
    /// Longer datagrams vanish.
    pub mtu: Option<usize>,
    /// Nothing passes, also of what is under way.
    pub cut: bool,
}

impl PathFaults {
    /// None.
    pub const NONE: PathFaults = PathFaults {
        delay: Millis(0),
        jitter: Millis(0),
        loss_permille: 0,
        burst_permille: 0,
        burst: Millis(0),
        reorder_permille: 0,
        duplicate_permille: 0,
        corrupt_permille: 0,
        rate_bytes_s: None,
        queue_bytes: QUEUE_BYTES,
        mtu: None,
        cut: false,
    };
}

impl Default for PathFaults {
    fn default() -> PathFaults {
        PathFaults::NONE
    }
}

/// What a path has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Datagrams that were received, duplicates included.
    pub delivered: u64,
    /// Bytes that were received.
    pub delivered_bytes: u64,
    /// Lost by chance, in bursts or one by one.
    pub lost: u64,
    /// Dropped because of a cut.
    pub cut: u64,
    /// Dropped because a queue or a buffer was full.
    pub overflowed: u64,
    /// Dropped because they were too long.
    pub too_long: u64,
    /// Arrived where nobody was.
    pub nobody: u64,
    /// Arrived twice.
    pub duplicated: u64,
    /// Were overtaken.
    pub reordered: u64,
    /// Had a bit flipped.
    pub corrupted: u64,
}

impl Carried {
    pub(super) fn plus(self, other: &Carried) -> Carried {
        Carried {
            sent: self.sent + other.sent,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            delivered: self.delivered + other.delivered,
            delivered_bytes: self.delivered_bytes + other.delivered_bytes,
            lost: self.lost + other.lost,
            cut: self.cut + other.cut,
            overflowed: self.overflowed + other.overflowed,
            too_long: self.too_long + other.too_long,
            nobody: self.nobody + other.nobody,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
            corrupted: self.corrupted + other.corrupted,
        }
    }
}

/// When a datagram or its duplicate arrives, and as what.
pub(super) type Fate = (u64, Box<[u8]>);

/// A path. Times are nanoseconds.
pub(super) struct Path {
    pub from: SocketAddr,
    pub faults: PathFaults,
    pub counts: Carried,
    rng: fastrand::Rng,
    lost_until: u64,
    /// When the rate-limited line is free again.
    line_free: u64,
    last_due: u64,
    jitter: Option<(u64, u64)>,
}

impl Path {
    pub fn new(seed: u64, from: SocketAddr, to: SocketAddr, faults: PathFaults) -> Path {
        let seed = xxh3_64_with_seed(format!("{from} {to}").as_bytes(), seed);
        Path {
            from,
            faults,
            counts: Carried::default(),
            rng: fastrand::Rng::with_seed(seed),
            lost_until: 0,
            line_free: 0,
            last_due: 0,
            jitter: None,
        }
    }

    pub fn lose_until(&mut self, until: u64) {
        self.lost_until = self.lost_until.max(until);
    }

    fn chance(&mut self, permille: u16) -> bool {
        permille > 0 && self.rng.u16(0..1000) < permille
    }

    /// What becomes of a datagram that is sent at `now`: nothing, an arrival, or two.
    pub fn fates(&mut self, now: u64, bytes: &[u8]) -> [Option<Fate>; 2] {
        self.counts.sent += 1;
        self.counts.sent_bytes += bytes.len() as u64;
        let faults = self.faults;
        if faults.cut {
            self.counts.cut += 1;
            return [None, None];
        }
        if faults.mtu.is_some_and(|mtu| bytes.len() > mtu) {
            self.counts.too_long += 1;
            return [None, None];
        }
        if self.chance(faults.burst_permille) {
            self.lose_until(now + faults.burst.0 * NANOS_PER_MS);
        }
        if now < self.lost_until || self.chance(faults.loss_permille) {
            self.counts.lost += 1;
            return [None, None];
        }
        let Some(sent) = self.through_the_line(now, bytes.len() as u64) else {
            self.counts.overflowed += 1;
            return [None, None];
        };
        let in_turn = self.due(now, sent);
        let due = if self.chance(faults.reorder_permille) {
            self.counts.reordered += 1;
            in_turn + REORDER_NANOS + self.rng.u64(0..=faults.delay.0 * NANOS_PER_MS / 2)
        } else {
            in_turn
        };
        let again = self.chance(faults.duplicate_permille).then(|| {
            self.counts.duplicated += 1;
            // As it was sent: each copy is spoiled on its own way, and one of them is enough.
            (in_turn, bytes.into())
        });
        let mut bytes: Box<[u8]> = bytes.into();
        if self.chance(faults.corrupt_permille) && !bytes.is_empty() {
            let at = self.rng.usize(0..bytes.len());
            bytes[at] ^= 1 << self.rng.u8(0..8);
            self.counts.corrupted += 1;
        }
        [Some((due, bytes)), again]
    }

    /// When the line has sent `bytes` more; none if its queue is full.
    fn through_the_line(&mut self, now: u64, bytes: u64) -> Option<u64> {
        let Some(rate) = self.faults.rate_bytes_s else { return Some(now) };
        let (rate, start) = (u128::from(rate.max(1)), self.line_free.max(now));
        let waiting = u128::from(start - now) * rate / 1_000_000_000;
        if waiting + u128::from(bytes) > u128::from(self.faults.queue_bytes) {
            return None;
        }
        let takes = u128::from(bytes) * 1_000_000_000 / rate;
        self.line_free = start.saturating_add(u64::try_from(takes).unwrap_or(u64::MAX));
        Some(self.line_free)
    }

    /// When something that the line has sent at `sent` arrives; never before what was sent earlier.
    fn due(&mut self, now: u64, sent: u64) -> u64 {
        let jitter = match self.jitter {
            _ if self.faults.jitter.0 == 0 => 0,
            Some((drawn_at, jitter)) if now < drawn_at + JITTER_NANOS => jitter,
            Some(_) | None => {
                let drawn = self.rng.u64(0..=self.faults.jitter.0 * NANOS_PER_MS);
                self.jitter = Some((now, drawn));
                drawn
            }
        };
        self.last_due = self.last_due.max(sent + self.faults.delay.0 * NANOS_PER_MS + jitter);
        self.last_due
    }
}
