//! What happened in a simulated run. Owns: the one order of all events, their hash, and, if wanted, their text.
//! Always: an event is something that somebody outside could have seen (a fault, a guest that ran, an answer to a
//! client, a life that began or ended) with its virtual time; two runs of one seed have the same events.

use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use crate::clock::Clock;
use crate::types::Tick;

/// The events of a run so far. A copy is the same one.
#[derive(Clone)]
pub struct Trace {
    clock: Clock,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    hash: Xxh3,
    events: u64,
    line: String,
    /// The text, if somebody wants to read it.
    kept: Option<Vec<String>>,
}

impl Trace {
    /// None yet. `keep`: their text is kept, too.
    pub fn new(clock: Clock, keep: bool) -> Trace {
        let inner = Inner { hash: Xxh3::new(), events: 0, line: String::new(), kept: keep.then(Vec::new) };
        Trace { clock, inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The virtual time since the run began.
    pub fn now(&self) -> Tick {
        self.clock.now()
    }

    /// Takes note that `who` did, or met with, `what`.
    pub fn note(&self, who: impl Display, what: impl Display) {
        let now = self.clock.now();
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.line.clear();
        // Writing to a String can't fail.
        let _ = write!(inner.line, "{:>9.3} {who:<12} {what}", now.0 as f64 / 1_000.0);
        inner.hash.update(inner.line.as_bytes());
        inner.hash.update(b"\n");
        inner.events += 1;
        if let Some(kept) = &mut inner.kept {
            kept.push(inner.line.clone());
        }
    }

    /// Hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.lock().hash.digest()
    }

    /// How many there were.
    pub fn events(&self) -> u64 {
        self.lock().events
    }

    /// Their text, as far as it was kept.
    pub fn lines(&self) -> Vec<String> {
        self.lock().kept.clone().unwrap_or_default()
    }
}
