//! Tests of the checks: each one in each way that it can end.

use super::*;
use crate::types::units::{GIB, MIB};
use crate::types::{CheckCategory, ClusterState, PlanId, RegionNumber, WallMillis, limits};

fn vm() -> VmId {
    VmId { region: RegionNumber(1), incarnation: 1, number: 7 }
}

fn target_view() -> ClusterView {
    ClusterView {
        id: "us-a".parse().unwrap(),
        region: "us".parse().unwrap(),
        host: "h2".parse().unwrap(),
        driver: "embedded".into(),
        state: ClusterState::Connected,
        reason: "it answers after 2 ms".into(),
        capacity: Resources { cpu: 16, memory_bytes: 4 * GIB, disk_bytes: 64 * GIB },
        used: Resources { cpu: 4, memory_bytes: GIB, disk_bytes: 4 * GIB },
        reserved: Resources { cpu: 2, memory_bytes: GIB, disk_bytes: GIB },
        vms: 3,
        since_ms: Millis(0),
        age_ms: Some(Millis(400)),
        stale: false,
    }
}

/// A busy VM that can move from eu to us.
fn good() -> Facts {
    Facts {
        vm: vm(),
        needs: Resources { cpu: 2, memory_bytes: 64 * MIB, disk_bytes: 128 * MIB },
        resource_version: 9,
        source: "eu/eu-a".parse().unwrap(),
        target: "us/us-a".parse().unwrap(),
        recorded_at: Some("eu-a".parse().unwrap()),
        power: Some(GuestPower::Running),
        locked_by: None,
        source_driver: Some(DriverFacts { name: "embedded".into(), live_migration: true }),
        source_disk_free_bytes: Some(GIB),
        target_cluster: Some(target_view()),
        target_live_migration: Some(true),
        link: Some(LinkFacts {
            up: true,
            rtt_us: Some(90_000 / 3),
            bytes_per_second: Some(100 * MIB),
            last_heard_ms: Some(Millis(200)),
        }),
        assumed_bytes_per_second: 50 * MIB,
        commit_us: 2_000,
        workload: Some(Workload {
            memory_bytes_per_second: 20 * MIB,
            disk_bytes_per_second: MIB,
            working_set_bytes: 16 * MIB,
            resident_bytes: 64 * MIB,
            disk_resident_bytes: 128 * MIB,
        }),
        defaults: Defaults::default(),
        options: MigrationOptions::default(),
        source_store_free_bytes: Some(10 * GIB),
        target_store_free_bytes: Some(10 * GIB),
        decider_unreachable: None,
    }
}

fn check(facts: &Facts, id: &str) -> Check {
    assess(facts).checks.into_iter().find(|c| c.id == id).unwrap_or_else(|| panic!("no check {id}"))
}

#[test]
fn a_good_move_passes_every_check_and_its_figures_are_in_the_messages() {
    let a = assess(&good());
    for c in &a.checks {
        assert_eq!(c.status, CheckStatus::Passed, "{}: {}", c.id, c.message);
    }
    assert!(a.executable);
    let message = |id| check(&good(), id).message;
    assert_eq!(message("link"), "up, 30.0 ms round trip, 100 MiB/s");
    assert!(message("target-capacity").contains("free at us/us-a are 10 CPU, 2 GiB memory, 59 GiB disk"));
    assert!(message("convergence").starts_with("192 MiB to copy at 100 MiB/s, the guest writes 21 MiB/s"));
    let categories: std::collections::BTreeSet<CheckCategory> = a.checks.iter().map(|c| c.category).collect();
    assert!(categories.len() >= 5, "{categories:?}");
}

type Change = fn(&mut Facts);
type Case = (&'static str, CheckStatus, bool, &'static str, Change);

fn view(f: &mut Facts) -> &mut ClusterView {
    f.target_cluster.as_mut().expect("the good facts have one")
}

fn state(f: &mut Facts, state: ClusterState) {
    view(f).state = state;
}

/// Check, its status, whether the plan stays executable, what the message says, what is wrong.
#[rustfmt::skip]
const CASES: &[Case] = &[
    ("different-place", CheckStatus::Failed, false, "choose another cluster", |f| f.target = f.source.clone()),
    ("vm-at-source", CheckStatus::Failed, false, "region eu has no vm-1-1-7", |f| f.recorded_at = None),
    ("vm-at-source", CheckStatus::Failed, false, "is at eu/eu-b, not at eu/eu-a", |f| f.recorded_at = "eu-b".parse().ok()),
    ("vm-power", CheckStatus::Failed, false, "start it first", |f| f.power = Some(GuestPower::Stopped)),
    ("vm-power", CheckStatus::Failed, false, "paused for a switch", |f| f.power = Some(GuestPower::Paused)),
    ("vm-power", CheckStatus::Failed, false, "from its disk", |f| f.power = Some(GuestPower::Lost)),
    ("vm-power", CheckStatus::Failed, false, "being received", |f| f.power = Some(GuestPower::Receiving)),
    ("vm-power", CheckStatus::Failed, false, "moved away", |f| f.power = Some(GuestPower::Retired)),
    ("vm-power", CheckStatus::Failed, false, "not reported", |f| f.power = None),
    ("vm-unlocked", CheckStatus::Failed, false, "job-1-1-3 has", |f| f.locked_by = "job-1-1-3".parse().ok()),
    ("target-known", CheckStatus::Failed, false, "no region told of us/us-a", |f| f.target_cluster = None),
    ("target-fresh", CheckStatus::Warning, true, "90000 ms old", |f| { view(f).stale = true; view(f).age_ms = Some(Millis(90_000)) }),
    ("target-fresh", CheckStatus::Skipped, false, "not known", |f| f.target_cluster = None),
    ("target-state", CheckStatus::Warning, true, "degraded: it answers", |f| state(f, ClusterState::Degraded)),
    ("target-state", CheckStatus::Failed, false, "mend host h2", |f| state(f, ClusterState::Disconnected)),
    ("target-state", CheckStatus::Failed, false, "first answer", |f| state(f, ClusterState::Unknown)),
    ("target-state", CheckStatus::Skipped, false, "not known", |f| f.target_cluster = None),
    ("driver-match", CheckStatus::Failed, false, "eu/eu-a has driver embedded, us/us-a has qemu", |f| view(f).driver = "qemu".into()),
    ("driver-match", CheckStatus::Skipped, true, "did not answer", |f| f.source_driver = None),
    ("driver-match", CheckStatus::Skipped, false, "not known", |f| f.target_cluster = None),
    ("live-migration", CheckStatus::Failed, false, "the driver of eu/eu-a", |f| f.source_driver.as_mut().unwrap().live_migration = false),
    ("live-migration", CheckStatus::Failed, false, "the driver of us/us-a", |f| f.target_live_migration = Some(false)),
    ("live-migration", CheckStatus::Skipped, true, "asked again", |f| f.target_live_migration = None),
    ("live-migration", CheckStatus::Skipped, true, "did not answer", |f| f.source_driver = None),
    ("target-capacity", CheckStatus::Failed, false, "needs 11 CPU", |f| f.needs.cpu = 11),
    ("target-capacity", CheckStatus::Failed, false, "needs 2 CPU, 3 GiB memory", |f| f.needs.memory_bytes = 3 * GIB),
    ("target-capacity", CheckStatus::Failed, false, "make room", |f| f.needs.disk_bytes = 60 * GIB),
    ("target-capacity", CheckStatus::Warning, true, "by figures 400 ms old", |f| { f.needs.cpu = 11; view(f).stale = true }),
    ("target-capacity", CheckStatus::Skipped, false, "not known", |f| f.target_cluster = None),
    ("link", CheckStatus::Failed, false, "there is no link to us", |f| f.link = None),
    ("link", CheckStatus::Failed, false, "down, last heard of 200 ms ago", |f| f.link.as_mut().unwrap().up = false),
    ("link", CheckStatus::Warning, true, "50 MiB/s are assumed", |f| f.link.as_mut().unwrap().bytes_per_second = None),
    ("link", CheckStatus::Passed, true, "inside region eu", |f| { f.target = "eu/eu-b".parse().unwrap(); f.link = None }),
    ("options", CheckStatus::Failed, false, "allow at least 1", |f| f.options.max_downtime_ms = Some(0)),
    ("options", CheckStatus::Failed, false, "(300) must be more than maxDowntimeMs (300)", |f| f.options.switch_deadline_ms = Some(300)),
    ("options", CheckStatus::Failed, false, "must be at most 120000", |f| f.options.switch_deadline_ms = Some(120_001)),
    ("options", CheckStatus::Failed, false, "nothing would ever arrive", |f| f.options.bandwidth_limit_bytes_per_second = Some(0)),
    ("options", CheckStatus::Passed, true, "at most 80 MiB/s", |f| f.options.bandwidth_limit_bytes_per_second = Some(80 * MIB)),
    ("convergence", CheckStatus::Failed, false, "lift the bandwidth limit", |f| f.options.bandwidth_limit_bytes_per_second = Some(MIB)),
    ("convergence", CheckStatus::Failed, false, "after 6 rounds 16.2 MiB are left", |f| {
        f.workload.as_mut().unwrap().memory_bytes_per_second = 500 * MIB;
        f.options.max_downtime_ms = Some(200);
    }),
    ("options", CheckStatus::Passed, true, "at most 70 MiB/s", |f| f.defaults.bytes_per_second_max = Some(70 * MIB)),
    ("options", CheckStatus::Failed, false, "(500) must be more than maxDowntimeMs (600)", |f| { f.defaults.downtime_max = Millis(600); f.defaults.deadline = Millis(500) }),
    ("convergence", CheckStatus::Failed, false, "acceptable are 40 ms", |f| f.defaults.downtime_max = Millis(40)),
    ("convergence", CheckStatus::Failed, false, "copy at 1 MiB/s", |f| f.defaults.bytes_per_second_max = Some(MIB)),
    ("store-room", CheckStatus::Failed, false, "its reserve of 20 GiB", |f| f.defaults.store_reserve_bytes = 20 * GIB),
    ("retention-room", CheckStatus::Warning, true, "for 60 s", |f| { f.source_disk_free_bytes = Some(MIB); f.defaults.retention = Millis(60_000) }),
    ("convergence", CheckStatus::Skipped, true, "not measured", |f| f.workload = None),
    ("store-room", CheckStatus::Failed, false, "63 MiB are free under the store of eu", |f| f.source_store_free_bytes = Some(63 * MIB)),
    ("store-room", CheckStatus::Failed, false, "under the store of us", |f| f.target_store_free_bytes = Some(0)),
    ("store-room", CheckStatus::Passed, true, "us judges its own", |f| f.target_store_free_bytes = None),
    ("store-room", CheckStatus::Skipped, true, "could not be read", |f| f.source_store_free_bytes = None),
    ("retention-room", CheckStatus::Warning, true, "keeps 128 MiB at eu/eu-a for 3600 s", |f| f.source_disk_free_bytes = Some(MIB)),
    ("retention-room", CheckStatus::Skipped, true, "not known", |f| f.source_disk_free_bytes = None),
    ("decider", CheckStatus::Failed, false, "no majority: without it", |f| f.decider_unreachable = Some("no majority".into())),
];

#[test]
fn each_check_ends_as_its_case_says() {
    for (id, status, executable, says, change) in CASES {
        let mut facts = good();
        change(&mut facts);
        let c = check(&facts, id);
        assert_eq!(c.status, *status, "{id}: {}", c.message);
        assert!(c.message.contains(says), "{id} should say '{says}': {}", c.message);
        let a = assess(&facts);
        assert_eq!(a.executable, *executable, "{id}: {:?}", a.checks);
        if *status != CheckStatus::Passed {
            assert!(a.risks.iter().any(|r| r.description.contains(&c.message)), "{id} is no risk");
        }
    }
}

#[test]
fn each_check_has_a_case_in_which_it_does_not_pass() {
    for c in assess(&good()).checks {
        assert!(CASES.iter().any(|(id, status, ..)| *id == c.id && *status != CheckStatus::Passed), "{}", c.id);
    }
}

#[test]
fn a_plan_has_the_forward_rows_in_order_and_durations_in_both_units() {
    let facts = good();
    let id = PlanId { region: RegionNumber(1), incarnation: 1, number: 1 };
    let p = plan(id, WallMillis(1_000), &facts, assess(&facts));
    let names: Vec<&str> = p.steps.iter().map(|s| s.name.as_str()).collect();
    let forward = crate::decision::migration::steps::STEPS.iter().filter(|r| r.forward);
    assert_eq!(names, forward.map(|r| r.name).collect::<Vec<_>>());
    assert_eq!(p.estimated_downtime as f64 / 1e6, p.estimated_downtime_ms);
    assert_eq!(p.estimated_duration as f64 / 1e6, p.estimated_duration_ms);
    assert!(p.estimated_bytes > 192 * MIB);
    assert_eq!(p.expires_at, WallMillis(1_000 + limits::PLAN_EXPIRES_MS.0));
    assert!(p.executable);
    assert_eq!(p.resource_version, 9);
    let json = serde_json::to_value(&p).unwrap();
    for field in ["vmID", "sourceClusterID", "targetClusterID", "estimatedDowntimeMs", "networkChanges", "risks"] {
        assert!(json.get(field).is_some(), "{field}");
    }
}

#[test]
fn a_blackout_near_the_deadline_is_a_risk() {
    let mut facts = good();
    facts.options.switch_deadline_ms = Some(301);
    facts.options.max_downtime_ms = Some(300);
    let a = assess(&facts);
    assert!(a.executable && a.risks.iter().any(|r| r.description.contains("more than half")), "{:?}", a.risks);
}
