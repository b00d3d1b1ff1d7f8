//! Events of a region: the latest few thousand, for the API's event list and its watchers. Owns: their order.
//! Always: bounded; a reader that was too slow sees a gap in the sequence. Not here: a job's journal (the store's).

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::types::{JobId, RegionName, WallMillis};

/// Events kept.
const EVENTS_MAX: usize = 4096;

/// Something that happened in this region.
#[derive(Debug, Clone)]
pub struct RegionEvent {
    /// Its place in the order.
    pub sequence: u64,
    /// When.
    pub at: WallMillis,
    /// What kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// For people.
    pub message: String,
}

/// The events of one region.
#[derive(Debug)]
pub struct Events {
    region: RegionName,
    kept: Mutex<(u64, VecDeque<RegionEvent>)>,
    changes: watch::Sender<u64>,
}

impl Events {
    /// None yet.
    pub fn new(region: RegionName) -> Events {
        Events { region, kept: Mutex::default(), changes: watch::channel(0).0 }
    }

    /// The region.
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// Takes note.
    pub fn note(&self, at: WallMillis, kind: &str, subject: impl ToString, message: impl Into<String>) {
        let sequence = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.0 += 1;
            let event = RegionEvent {
                sequence: kept.0,
                at,
                kind: kind.to_owned(),
                subject: subject.to_string(),
                message: message.into(),
            };
            kept.1.push_back(event);
            if kept.1.len() > EVENTS_MAX {
                kept.1.pop_front();
            }
            kept.0
        };
        self.changes.send_replace(sequence);
    }

    /// A job entered a step.
    pub fn job(&self, at: WallMillis, job: JobId, step: &str) {
        self.note(at, "migration.step", job, format!("{job} is at step {step}"));
    }

    /// Those after `after`, at most `limit`.
    pub fn after(&self, after: u64, limit: usize) -> Vec<RegionEvent> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.iter().filter(|event| event.sequence > after).take(limit).cloned().collect()
    }

    /// Changes with each event.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
