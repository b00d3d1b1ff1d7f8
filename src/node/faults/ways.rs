//! What passes between this region and its peers, as injected faults have it. Owns: the board under its lock, the
//! chances, and how much passes a narrow place.
//! Always: asked anew for each message and each piece of a stream, with the time of that moment.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::admin::Caller;
use crate::clock::Clock;
use crate::decision::chaos::{Board, Way};
use crate::types::{Millis, RegionName, Tick, Toward, WallMillis};

/// Who asked for a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Who.
    pub caller: Caller,
    /// Why.
    pub reason: String,
    /// When.
    pub at: WallMillis,
    /// For how long.
    pub lasting: Option<Millis>,
}

/// How much of a stream may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// So many bytes, now.
    Bytes(usize),
    /// Nothing before this time has passed, or something has changed.
    Wait(Millis),
}

/// A piece that passes a narrow place at once: so much of a second's worth.
const PIECES_PER_SECOND: u64 = 20;
/// How long a stream that is cut waits before it looks again.
const LOOK_AGAIN: Millis = Millis(1_000);

/// The ways to and from all peers.
pub struct Ways {
    clock: Clock,
    board: Mutex<Board<Asked>>,
    changes: watch::Sender<u64>,
    chance: Mutex<fastrand::Rng>,
    /// When a narrow way is free again, microseconds.
    free_at: Mutex<BTreeMap<(RegionName, Toward), u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ways {
    /// Clear ones. No fault lasts longer than `most`.
    pub fn new(clock: Clock, most: Millis, seed: u64) -> Ways {
        Ways {
            clock,
            board: Mutex::new(Board::new(most)),
            changes: watch::Sender::new(0),
            chance: Mutex::new(fastrand::Rng::with_seed(seed)),
            free_at: Mutex::default(),
        }
    }

    /// Works on the board, and tells everybody who waits.
    pub fn board<T>(&self, f: impl FnOnce(&mut Board<Asked>, Tick) -> T) -> T {
        let done = f(&mut locked(&self.board), self.clock.now());
        self.changes.send_modify(|count| *count += 1);
        done
    }

    /// Looks at the board.
    pub fn board_quietly<T>(&self, f: impl FnOnce(&Board<Asked>, Tick) -> T) -> T {
        f(&locked(&self.board), self.clock.now())
    }

    /// Changes with the board.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What the way to or from `peer` is like now.
    pub fn way(&self, peer: &RegionName, toward: Toward) -> Way {
        self.board_quietly(|board, now| board.way(peer, toward, now))
    }

    /// Whether nothing passes in either direction.
    pub fn is_apart(&self, peer: &RegionName) -> bool {
        self.board_quietly(|board, now| board.is_apart(peer, now))
    }

    /// A message takes the way: resolves when it arrives, never if it gets lost.
    pub async fn cross(&self, peer: &RegionName, toward: Toward) {
        let way = self.way(peer, toward);
        if way.cut || self.loses(way.lose_permille) {
            std::future::pending::<()>().await;
        }
        let late = Millis(way.delay.0 + self.drawn(way.jitter.0));
        if late.0 > 0 {
            tokio::time::sleep(late.duration()).await;
            // Cut while it was on its way.
            if self.way(peer, toward).cut {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether a message gets lost.
    pub fn loses(&self, permille: u32) -> bool {
        permille > 0 && locked(&self.chance).u32(0..1_000) < permille
    }

    fn drawn(&self, most: u64) -> u64 {
        if most == 0 { 0 } else { locked(&self.chance).u64(0..=most) }
    }

    /// Resolves when a connection with `peer` may come about.
    pub async fn joined(&self, peer: &RegionName) {
        while self.is_apart(peer) {
            self.changed_within(LOOK_AGAIN).await;
        }
    }

    /// How much of a stream may pass now.
    pub fn allowance(&self, peer: &RegionName, toward: Toward) -> Allowance {
        let way = self.way(peer, toward);
        if way.cut {
            return Allowance::Wait(LOOK_AGAIN);
        }
        let Some(rate) = way.bytes_per_second else { return Allowance::Bytes(usize::MAX) };
        let now_us = self.clock.now().0 * 1_000;
        let free_us = locked(&self.free_at).get(&(peer.clone(), toward)).copied().unwrap_or(0);
        if free_us > now_us {
            return Allowance::Wait(Millis((free_us - now_us).div_ceil(1_000)));
        }
        Allowance::Bytes(usize::try_from((rate / PIECES_PER_SECOND).max(1)).unwrap_or(usize::MAX))
    }

    /// So many bytes of a stream have passed.
    pub fn passed(&self, peer: &RegionName, toward: Toward, bytes: usize) {
        let Some(rate) = self.way(peer, toward).bytes_per_second else { return };
        let now_us = self.clock.now().0 * 1_000;
        let takes_us = (bytes as u64).saturating_mul(1_000_000) / rate.max(1);
        let mut free = locked(&self.free_at);
        let free_us = free.entry((peer.clone(), toward)).or_insert(0);
        *free_us = (*free_us).max(now_us).saturating_add(takes_us);
    }

    /// Resolves after `time`, or when the board changes.
    pub async fn changed_within(&self, time: Millis) {
        let mut changes = self.changes();
        let _ = tokio::time::timeout(time.duration(), changes.changed()).await;
    }
}
