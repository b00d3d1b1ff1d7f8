//! Directory: what other regions last said of themselves, with its age. Owns: the latest message of each.
//! Always: an older generation of the same incarnation, or an older incarnation, is ignored; age is never hidden.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use super::context::Context;
use crate::protocol::bodies::DirectoryMessage;
use crate::types::{ClusterState, ClusterView, Incarnation, Millis, RegionName, Tick};

#[derive(Debug, Clone)]
struct Entry {
    incarnation: Incarnation,
    generation: u64,
    received: Tick,
    clusters: Vec<ClusterView>,
}

/// The directory of one region.
#[derive(Debug, Default)]
pub struct Directory(RwLock<BTreeMap<RegionName, Entry>>);

impl Directory {
    /// Takes note of what `from` says.
    pub fn learn(&self, from: &RegionName, incarnation: Incarnation, message: DirectoryMessage, now: Tick) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = entries.get(from) {
            let newer = (incarnation.counter, message.generation) > (known.incarnation.counter, known.generation);
            if !newer {
                return;
            }
        }
        // A region speaks for itself alone.
        let clusters = message.clusters.into_iter().filter(|view| view.region == *from).collect();
        let entry = Entry { incarnation, generation: message.generation, received: now, clusters };
        entries.insert(from.clone(), entry);
    }

    /// The clusters of all other regions, each with its age here, ordered by region and id.
    pub fn clusters(&self, now: Tick) -> Vec<ClusterView> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut views = Vec::new();
        for entry in entries.values() {
            let since = now.since(entry.received);
            for view in &entry.clusters {
                let age_ms = view.age_ms.map(|age| Millis(age.0.saturating_add(since.0)));
                let stale = view.stale || age_ms.is_none_or(|age| age > Context::fresh_for());
                let state = if stale { ClusterState::Unknown } else { view.state };
                // What is stale has been unknown since it became so.
                let since_ms = match age_ms.filter(|_| stale) {
                    Some(age) => Millis(age.0.saturating_sub(Context::fresh_for().0)),
                    None => Millis(view.since_ms.0.saturating_add(since.0)),
                };
                let reason = if stale && !view.stale {
                    format!("its region was last heard {since} ago; then it was {:?}: {}", view.state, view.reason)
                } else {
                    view.reason.clone()
                };
                views.push(ClusterView { age_ms, since_ms, stale, state, reason, ..view.clone() });
            }
        }
        views
    }

    /// How long ago `region` last said something.
    pub fn age(&self, region: &RegionName, now: Tick) -> Option<Millis> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(region).map(|entry| now.since(entry.received))
    }
}
