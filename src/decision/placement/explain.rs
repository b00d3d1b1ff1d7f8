//! The words of a placement. Owns: each reason with its figures. Always: it only tells what `mod.rs` decided.

use super::{Alternative, Rejection, Request, Score};
use crate::types::{ClusterState, ClusterView, Millis, Resources, human_bytes};

fn percent(permille: u64) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

fn amount(r: Resources) -> String {
    let mut parts = Vec::new();
    if r.cpu > 0 {
        parts.push(format!("{} CPU", r.cpu));
    }
    if r.memory_bytes > 0 {
        parts.push(format!("{} memory", human_bytes(r.memory_bytes)));
    }
    if r.disk_bytes > 0 {
        parts.push(format!("{} disk", human_bytes(r.disk_bytes)));
    }
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}

fn state(s: ClusterState) -> &'static str {
    match s {
        ClusterState::Connected => "connected",
        ClusterState::Degraded => "degraded",
        ClusterState::Disconnected => "disconnected",
        ClusterState::Unknown => "unknown",
    }
}

/// Why a cluster was not taken, in words.
pub fn rejection(why: &Rejection) -> String {
    match why {
        Rejection::Region { asked } => format!("region {asked} was asked for"),
        Rejection::Cluster { asked } => format!("cluster {asked} was asked for"),
        Rejection::State { state: s, why } => format!("it is {}: {why}", state(*s)),
        Rejection::Stale { age_ms } => format!("what is known of it is {age_ms} old"),
        Rejection::Room { short_by, free } => format!("short of {}; free is {}", amount(*short_by), amount(*free)),
    }
}

pub(super) fn winner(best: &Score, view: &ClusterView, others: usize, rejected: &[Alternative]) -> String {
    let left = match (others, rejected.len()) {
        (0, 0) => "it is the only cluster".to_owned(),
        (0, n) => format!("it is the only one that can take it; {n} can't"),
        (n, 0) => format!("the least loaded of {} that can take it", n + 1),
        (n, m) => format!("the least loaded of {} that can take it; {m} can't", n + 1),
    };
    let age = match view.age_ms {
        None | Some(Millis(0)) => String::new(),
        Some(age) => format!(" (figures {age} old)"),
    };
    format!("{} is {} and {} full with it: {left}{age}", best.place, state(best.state), percent(best.load_permille))
}

pub(super) fn runner_up(best: &Score, score: &Score, view: &ClusterView) -> String {
    let load = percent(score.load_permille);
    if score.state != best.state {
        format!("it is {}: {}; {load} full with it", state(score.state), view.reason)
    } else if score.load_permille > best.load_permille {
        format!("it would be {load} full with it, {} would be {}", best.place, percent(best.load_permille))
    } else {
        format!("just as full ({load}); {} comes first by name", best.place)
    }
}

pub(super) fn nowhere(request: &Request<'_>, need: Resources, rejected: &[Alternative]) -> String {
    let name = &request.spec.name;
    if rejected.is_empty() {
        return format!("no cluster is known for {name}: configure one, or wait until a peer region is linked");
    }
    let asked_out = |a: &Alternative| {
        a.rejected_by.iter().any(|r| matches!(r, Rejection::Region { .. } | Rejection::Cluster { .. }))
    };
    let eligible: Vec<&Alternative> = rejected.iter().filter(|a| !asked_out(a)).collect();
    if eligible.is_empty() {
        let known: Vec<String> = rejected.iter().map(|a| a.cluster.to_string()).collect();
        return format!("no cluster is where {name} was asked to go; known are {}", known.join(", "));
    }
    let each: Vec<String> = eligible.iter().map(|a| format!("{}: {}", a.cluster, a.reasons.join("; "))).collect();
    format!("{name} needs {} and fits nowhere: {}", amount(need), each.join(" | "))
}
