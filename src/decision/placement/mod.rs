//! Plain placement: where a VM goes. Owns: which clusters can take it, which of them is best, and the words for both.
//! Always: the same input gives the same answer, whatever its order; never past a hard constraint; more capacity at the
//! winner never makes it lose. Figures of another region are believed for a proposal only: its own ledger settles it.
//! Not here: the promise of room (`reservations.rs`), the words (`explain.rs`).

mod explain;

pub use explain::rejection;

use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, ClusterState, ClusterView, Millis, Place, RegionName, Resources, VmSpec};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The VM.
    pub spec: &'a VmSpec,
    /// Only in this region.
    pub region: Option<&'a RegionName>,
    /// Only in this cluster.
    pub cluster: Option<&'a ClusterId>,
    /// The region that decides: its own figures can be committed on.
    pub own: &'a RegionName,
}

/// How good a cluster is: smaller is better, the order of the fields is the policy, the place comes last so that ties
/// are stable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    state: ClusterState,
    load_permille: u64,
    place: Place,
}

/// Why a cluster can't take a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "constraint")]
pub enum Rejection {
    /// Another region was asked for.
    Region {
        /// Which.
        asked: RegionName,
    },
    /// Another cluster was asked for.
    Cluster {
        /// Which.
        asked: ClusterId,
    },
    /// Its driver does not answer, or nothing is known of it.
    State {
        /// What it is.
        state: ClusterState,
        /// Why.
        why: String,
    },
    /// What is known of it is too old.
    Stale {
        /// How old.
        age_ms: Millis,
    },
    /// It does not fit.
    Room {
        /// What is missing.
        short_by: Resources,
        /// What is free, reservations taken off.
        free: Resources,
    },
}

/// A cluster that was looked at and not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alternative {
    /// The cluster.
    pub cluster: Place,
    /// 0 to 1, more is better; 0 for one that can't.
    pub score: f64,
    /// In words.
    pub reasons: Vec<String>,
    /// The hard constraints that it does not meet; empty for one that can and is just not the best.
    pub rejected_by: Vec<Rejection>,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// There.
    pub target: Place,
    /// Why, in words.
    pub reasoning: String,
    /// 0 to 1, more is better.
    pub score: f64,
    /// The region whose ledger must promise the room first; `None` if the deciding region's own does.
    pub settled_by: Option<RegionName>,
    /// How old the figures are that it was decided on.
    pub age_ms: Option<Millis>,
    /// All others, the best first.
    pub alternatives: Vec<Alternative>,
}

/// It fits nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unschedulable {
    /// In words, with what to do.
    pub reasoning: String,
    /// Each cluster and what it does not meet.
    pub rejected: Vec<Alternative>,
    /// A cluster that does not answer now would take it.
    pub for_now: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "verdict")]
pub enum Placement {
    /// It goes there.
    Placed(Decision),
    /// It goes nowhere.
    Unschedulable(Unschedulable),
}

/// What a VM takes of a cluster.
pub fn needs(spec: &VmSpec) -> Resources {
    Resources { cpu: u64::from(spec.cpu), memory_bytes: spec.memory_bytes, disk_bytes: spec.disk_bytes }
}

/// Places a VM on one of `views`.
pub fn place(request: &Request<'_>, views: &[ClusterView]) -> Placement {
    let need = needs(request.spec);
    let mut fitting: Vec<(Score, &ClusterView)> = Vec::new();
    let mut rejected: Vec<Alternative> = Vec::new();
    for view in views {
        let rejected_by = rejections(request, need, view);
        if rejected_by.is_empty() {
            fitting.push((score(need, view), view));
        } else {
            let reasons = rejected_by.iter().map(explain::rejection).collect();
            rejected.push(Alternative { cluster: place_of(view), score: 0.0, reasons, rejected_by });
        }
    }
    fitting.sort_by(|(a, _), (b, _)| a.cmp(b));
    rejected.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    let Some(((best, view), others)) = fitting.split_first() else {
        let silent = |why: &Rejection| matches!(why, Rejection::State { .. } | Rejection::Stale { .. });
        return Placement::Unschedulable(Unschedulable {
            reasoning: explain::nowhere(request, need, &rejected),
            for_now: rejected.iter().any(|cluster| cluster.rejected_by.iter().all(silent)),
            rejected,
        });
    };
    let mut alternatives: Vec<Alternative> = others
        .iter()
        .map(|(score, other)| Alternative {
            cluster: score.place.clone(),
            score: shown(score),
            reasons: vec![explain::runner_up(best, score, other)],
            rejected_by: Vec::new(),
        })
        .collect();
    let reasoning = explain::winner(best, view, others.len(), &rejected);
    alternatives.extend(rejected);
    Placement::Placed(Decision {
        target: best.place.clone(),
        reasoning,
        score: shown(best),
        settled_by: (view.region != *request.own).then(|| view.region.clone()),
        age_ms: view.age_ms,
        alternatives,
    })
}

fn place_of(view: &ClusterView) -> Place {
    Place { region: view.region.clone(), cluster: view.id.clone() }
}

/// The hard constraints that `view` does not meet, all of them, so that an answer is complete.
fn rejections(request: &Request<'_>, need: Resources, view: &ClusterView) -> Vec<Rejection> {
    let mut list = Vec::new();
    if let Some(asked) = request.region.filter(|r| **r != view.region) {
        list.push(Rejection::Region { asked: asked.clone() });
    }
    if let Some(asked) = request.cluster.filter(|c| **c != view.id) {
        list.push(Rejection::Cluster { asked: asked.clone() });
    }
    match view.state {
        ClusterState::Connected | ClusterState::Degraded => {}
        state @ (ClusterState::Disconnected | ClusterState::Unknown) => {
            list.push(Rejection::State { state, why: view.reason.clone() });
        }
    }
    // One that was never seen is unknown, which is said above.
    if let Some(age_ms) = view.age_ms.filter(|_| view.stale) {
        list.push(Rejection::Stale { age_ms });
    }
    let free = view.free();
    if !free.holds(need) {
        list.push(Rejection::Room { short_by: need.minus(free), free });
    }
    list
}

fn score(need: Resources, view: &ClusterView) -> Score {
    let after = view.used.plus(view.reserved).plus(need);
    let load = |taken: u64, capacity: u64| -> u64 {
        let permille = (u128::from(taken) * 1_000).div_ceil(u128::from(capacity.max(1)));
        u64::try_from(permille).unwrap_or(u64::MAX)
    };
    // The scarcest resource is what decides how full a cluster is.
    let load_permille = load(after.cpu, view.capacity.cpu)
        .max(load(after.memory_bytes, view.capacity.memory_bytes))
        .max(load(after.disk_bytes, view.capacity.disk_bytes));
    Score { state: view.state, load_permille, place: place_of(view) }
}

/// 0 to 1, more is better: what is left of the scarcest resource.
fn shown(score: &Score) -> f64 {
    let left = 1_000_u64.saturating_sub(score.load_permille.min(1_000)) as f64 / 1_000.0;
    if score.state == ClusterState::Connected { left } else { left / 2.0 }
}

#[cfg(test)]
mod tests;
