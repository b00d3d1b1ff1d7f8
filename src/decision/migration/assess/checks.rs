//! The checks themselves. Owns: one function per check. Always: the list and its order are fixed, whatever the facts.

use super::{Estimate, Facts};
use crate::types::CheckCategory::{Compatibility, Compliance, Network, Performance, Resources as Room};
use crate::types::CheckStatus::{Failed, Passed, Skipped, Warning};
use crate::types::limits::SWITCH_DEADLINE_MS_MAX;
use crate::types::{Check, CheckCategory, CheckStatus, ClusterState, GuestPower, Millis, Severity, human_bytes};

type Outcome = (CheckStatus, String);
type Row = (&'static str, &'static str, CheckCategory, Severity, fn(&Facts, &Estimate) -> Outcome);

const BLOCKING: Severity = Severity::Blocking;

/// The table: id, name, category, what a failure means, how it is looked at.
const CHECKS: &[Row] = &[
    ("different-place", "source and target differ", Compatibility, BLOCKING, different_place),
    ("vm-at-source", "the VM is at the source", Compatibility, BLOCKING, vm_at_source),
    ("vm-power", "the VM runs", Compatibility, BLOCKING, vm_power),
    ("vm-unlocked", "no other job has the VM", Compliance, BLOCKING, vm_unlocked),
    ("target-known", "the target cluster is known", Network, BLOCKING, target_known),
    ("target-fresh", "what is known of the target is fresh", Network, Severity::Warning, target_fresh),
    ("target-state", "the target cluster answers", Network, BLOCKING, target_state),
    ("driver-match", "both clusters have the same driver", Compatibility, BLOCKING, driver_match),
    ("live-migration", "both drivers move VMs live", Compatibility, BLOCKING, live_migration),
    ("target-capacity", "the VM fits at the target", Room, BLOCKING, target_capacity),
    ("link", "the link to the target's region", Network, BLOCKING, link),
    ("options", "the options are sane", Compliance, BLOCKING, options),
    ("convergence", "the copy converges", Performance, BLOCKING, convergence),
    ("store-room", "the stores have room for the job", Room, BLOCKING, store_room),
    ("retention-room", "the source has room for the retired disk", Room, Severity::Warning, retention_room),
    ("decider", "the decision can be recorded", Compliance, BLOCKING, decider),
];

pub(super) fn all(facts: &Facts, estimate: &Estimate) -> Vec<Check> {
    let check = |(id, name, category, severity, look): &Row| {
        let (status, message) = look(facts, estimate);
        Check { id: (*id).into(), name: (*name).into(), category: *category, status, severity: *severity, message }
    };
    CHECKS.iter().map(check).collect()
}

fn different_place(f: &Facts, _: &Estimate) -> Outcome {
    if f.source == f.target {
        return (Failed, format!("source and target are both {}: choose another cluster", f.source));
    }
    (Passed, format!("from {} to {}", f.source, f.target))
}

fn vm_at_source(f: &Facts, _: &Estimate) -> Outcome {
    match &f.recorded_at {
        None => (Failed, format!("region {} has no {}: ask the region that owns it", f.source.region, f.vm)),
        Some(at) if *at != f.source.cluster => {
            (Failed, format!("{} is at {}/{at}, not at {}: name that as the source", f.vm, f.source.region, f.source))
        }
        Some(at) => (Passed, format!("{} is at {}/{at}", f.vm, f.source.region)),
    }
}

fn vm_power(f: &Facts, _: &Estimate) -> Outcome {
    let not = |what: &str| (Failed, format!("{} {what}", f.vm));
    match f.power {
        Some(GuestPower::Running) => (Passed, format!("{} is running", f.vm)),
        Some(GuestPower::Paused) => not("is paused for a switch: wait until that job ends, or cancel it"),
        Some(GuestPower::Stopped) => not("is stopped: start it first, only a running VM moves live"),
        Some(GuestPower::Lost) => not("lost its memory with its host: start it from its disk first"),
        Some(GuestPower::Receiving) => not("is still being received: wait until that job ends"),
        Some(GuestPower::Retired) => not("moved away, only its retired disk is here: ask the region that owns it"),
        None => not("is not reported by its host: wait for the next inventory, or look whether the host runs"),
    }
}

fn vm_unlocked(f: &Facts, _: &Estimate) -> Outcome {
    match f.locked_by {
        Some(job) => (Failed, format!("{job} has {}: wait until it ends, or cancel it", f.vm)),
        None => (Passed, "no job has it".into()),
    }
}

fn target_known(f: &Facts, _: &Estimate) -> Outcome {
    match &f.target_cluster {
        Some(view) => (Passed, format!("{} is served by host {} with driver {}", f.target, view.host, view.driver)),
        None => (Failed, format!("no region told of {}: check the name, or the link to {}", f.target, f.target.region)),
    }
}

const UNKNOWN_TARGET: &str = "the target cluster is not known";

fn target_fresh(f: &Facts, _: &Estimate) -> Outcome {
    match &f.target_cluster {
        None => (Skipped, UNKNOWN_TARGET.into()),
        Some(view) if view.stale => {
            let advice = format!("{} settles with its own figures when it reserves", f.target.region);
            (Warning, format!("what is known of {} is {}; {advice}", f.target, view.age()))
        }
        Some(view) => (Passed, view.age()),
    }
}

fn target_state(f: &Facts, _: &Estimate) -> Outcome {
    let Some(view) = &f.target_cluster else { return (Skipped, UNKNOWN_TARGET.into()) };
    let why = &view.reason;
    match view.state {
        ClusterState::Connected => (Passed, format!("connected: {why}")),
        ClusterState::Degraded => (Warning, format!("degraded: {why}; the move may be slow or need another attempt")),
        ClusterState::Disconnected => (Failed, format!("disconnected: {why}; mend host {} first", view.host)),
        ClusterState::Unknown => (Failed, format!("unknown: {why}; wait for its first answer")),
    }
}

fn driver_match(f: &Facts, _: &Estimate) -> Outcome {
    match (&f.source_driver, &f.target_cluster) {
        (Some(source), Some(target)) if source.name == target.driver => (Passed, format!("both have {}", source.name)),
        (Some(source), Some(target)) => (
            Failed,
            format!(
                "{} has driver {}, {} has {}: choose a cluster with {}",
                f.source, source.name, f.target, target.driver, source.name
            ),
        ),
        (None, _) => (Skipped, format!("the driver of {} did not answer", f.source)),
        (_, None) => (Skipped, UNKNOWN_TARGET.into()),
    }
}

fn live_migration(f: &Facts, _: &Estimate) -> Outcome {
    let lacks = |place: &crate::types::Place| {
        (Failed, format!("the driver of {place} does not move VMs live: stop the VM there, or choose another cluster"))
    };
    match (f.source_driver.as_ref().map(|d| d.live_migration), f.target_live_migration) {
        (Some(false), _) => lacks(&f.source),
        (_, Some(false)) => lacks(&f.target),
        (Some(true), Some(true)) => (Passed, "both do".into()),
        (Some(true), None) => (Skipped, format!("{} did not say; it is asked again when it prepares", f.target)),
        (None, _) => (Skipped, format!("the driver of {} did not answer", f.source)),
    }
}

fn target_capacity(f: &Facts, _: &Estimate) -> Outcome {
    let Some(view) = &f.target_cluster else { return (Skipped, UNKNOWN_TARGET.into()) };
    let (free, need) = (view.free(), f.needs);
    let figures = format!(
        "it needs {} CPU, {} memory, {} disk; free at {} are {} CPU, {} memory, {} disk",
        need.cpu,
        human_bytes(need.memory_bytes),
        human_bytes(need.disk_bytes),
        f.target,
        free.cpu,
        human_bytes(free.memory_bytes),
        human_bytes(free.disk_bytes),
    );
    if free.holds(need) {
        return (Passed, figures);
    }
    if view.stale {
        return (Warning, format!("{figures}, by figures {}; {} settles it", view.age(), f.target.region));
    }
    (Failed, format!("{figures}: make room there, or choose another cluster"))
}

fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", human_bytes(bytes_per_second))
}

fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
}

fn link(f: &Facts, _: &Estimate) -> Outcome {
    if f.inside_one_region() {
        return (Passed, format!("inside region {}: no link is needed", f.source.region));
    }
    let region = &f.target.region;
    let Some(link) = f.link else {
        return (Failed, format!("there is no link to {region}: add it to the peers of the configuration"));
    };
    if !link.up {
        let heard = link.last_heard_ms.map_or("never heard of".into(), |ms| format!("last heard of {ms} ago"));
        return (Failed, format!("the link to {region} is down, {heard}: look at `novafed link list`"));
    }
    match (link.rtt_us, link.bytes_per_second) {
        (Some(rtt), Some(carried)) if carried > 0 => (Passed, format!("up, {} round trip, {}", ms(rtt), rate(carried))),
        (rtt, _) => {
            let rtt = rtt.map_or("not measured".into(), ms);
            let assumed = rate(f.assumed_bytes_per_second);
            (Warning, format!("up, round trip {rtt}, its rate was not measured yet; {assumed} are assumed"))
        }
    }
}

fn options(f: &Facts, _: &Estimate) -> Outcome {
    let asked = f.rules();
    let (downtime, deadline) = (asked.downtime_max, asked.deadline);
    if downtime == Millis(0) {
        return (Failed, "maxDowntimeMs is 0: no switch takes no time, allow at least 1".into());
    }
    if deadline <= downtime {
        let text = format!("switchDeadlineMs ({}) must be more than maxDowntimeMs ({})", deadline.0, downtime.0);
        return (Failed, format!("{text}: else the watchdog resumes the guest in the middle of the switch"));
    }
    if deadline > SWITCH_DEADLINE_MS_MAX {
        return (Failed, format!("switchDeadlineMs ({}) must be at most {}", deadline.0, SWITCH_DEADLINE_MS_MAX.0));
    }
    match f.defaults.cap(&f.options) {
        Some(0) => {
            (Failed, "bandwidthLimitBytesPerSecond is 0: nothing would ever arrive; leave it out for no cap".into())
        }
        Some(cap) => (Passed, format!("blackout at most {downtime}, watchdog after {deadline}, at most {}", rate(cap))),
        None => (Passed, format!("blackout at most {downtime}, watchdog after {deadline}, no cap on the rate")),
    }
}

fn convergence(f: &Facts, estimate: &Estimate) -> Outcome {
    let Some(workload) = f.workload else {
        let text =
            "the guest's writes were not measured: all its memory and disk is taken as filled, and nothing written";
        return (Skipped, text.into());
    };
    let max = f.rules().downtime_max;
    let dirty = workload.memory_bytes_per_second.saturating_add(workload.disk_bytes_per_second);
    let figures = format!(
        "{} to copy at {}, the guest writes {} in a working set of {}; after {} rounds {} are left, which is an estimated \
         blackout of {}, acceptable are {max}",
        human_bytes(estimate.first_round_bytes),
        rate(f.path().bytes_per_second),
        rate(dirty),
        human_bytes(workload.working_set_bytes),
        estimate.rounds,
        human_bytes(estimate.last_round_bytes),
        ms(estimate.downtime_us),
    );
    if estimate.converges {
        return (Passed, figures);
    }
    let needed = estimate.downtime_us.div_ceil(1_000);
    (Failed, format!("{figures}: allow maxDowntimeMs of {needed} or more, lift the bandwidth limit, or calm the guest"))
}

fn store_room(f: &Facts, _: &Estimate) -> Outcome {
    let reserve = f.defaults.store_reserve_bytes;
    let sides = [(&f.source.region, f.source_store_free_bytes), (&f.target.region, f.target_store_free_bytes)];
    for (region, free) in sides {
        if let Some(free) = free.filter(|free| *free < reserve) {
            let figures = format!("{} are free under the store of {region}", human_bytes(free));
            return (
                Failed,
                format!("{figures}, below its reserve of {}: free some space there", human_bytes(reserve)),
            );
        }
    }
    match (f.source_store_free_bytes, f.target_store_free_bytes) {
        (None, _) => (Skipped, format!("the free space under the store of {} could not be read", f.source.region)),
        (Some(source), None) => {
            let own = format!("{} are free in {}", human_bytes(source), f.source.region);
            (Passed, format!("{own}; {} judges its own when it reserves", f.target.region))
        }
        (Some(source), Some(target)) => (
            Passed,
            format!(
                "{} and {} are free, the reserve is {}",
                human_bytes(source),
                human_bytes(target),
                human_bytes(reserve)
            ),
        ),
    }
}

fn retention_room(f: &Facts, _: &Estimate) -> Outcome {
    let seconds = f.defaults.retention.0 / 1_000;
    let disk = human_bytes(f.needs.disk_bytes);
    match f.source_disk_free_bytes {
        None => (Skipped, format!("the free disk of {} is not known", f.source)),
        Some(free) if free < f.needs.disk_bytes => {
            let figures = format!("the retired disk keeps {disk} at {} for {seconds} s", f.source);
            let advice = "a VM of this size can't take its place before";
            (Warning, format!("{figures}, where {} are free: {advice}", human_bytes(free)))
        }
        Some(free) => {
            (Passed, format!("the retired disk keeps {disk} for {seconds} s, {} more are free", human_bytes(free)))
        }
    }
}

fn decider(f: &Facts, _: &Estimate) -> Outcome {
    match &f.decider_unreachable {
        Some(why) => (Failed, format!("{why}: without it the switch could not end; wait until it answers")),
        None => (Passed, format!("the store of {} records it", f.source.region)),
    }
}
