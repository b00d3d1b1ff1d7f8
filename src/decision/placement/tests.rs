//! Tests of plain placement.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::types::GuestProgram;

fn spec(cpu: u32, memory_bytes: u64, disk_bytes: u64) -> VmSpec {
    VmSpec {
        name: "web-1".parse().unwrap(),
        namespace: "default".parse().unwrap(),
        cpu,
        memory_bytes,
        disk_bytes,
        labels: BTreeMap::new(),
        program: GuestProgram::default(),
    }
}

fn room(n: u64) -> Resources {
    Resources { cpu: n, memory_bytes: n, disk_bytes: n }
}

fn view(place: &str, capacity: u64, used: u64) -> ClusterView {
    let place: Place = place.parse().unwrap();
    ClusterView {
        id: place.cluster,
        region: place.region,
        host: "h".parse().unwrap(),
        driver: "embedded".into(),
        state: ClusterState::Connected,
        reason: "it answers".into(),
        capacity: room(capacity),
        used: room(used),
        reserved: room(0),
        vms: 0,
        since_ms: Millis(0),
        age_ms: Some(Millis(0)),
        stale: false,
    }
}

fn ask(spec: &VmSpec, region: Option<&str>, cluster: Option<&str>, views: &[ClusterView]) -> Placement {
    let own = "eu".parse().unwrap();
    let region = region.map(|r| r.parse().unwrap());
    let cluster = cluster.map(|c| c.parse().unwrap());
    place(&Request { spec, region: region.as_ref(), cluster: cluster.as_ref(), own: &own }, views)
}

fn target(placement: &Placement) -> String {
    match placement {
        Placement::Placed(d) => d.target.to_string(),
        Placement::Unschedulable(u) => format!("nowhere: {}", u.reasoning),
    }
}

#[test]
fn the_least_loaded_that_fits_is_taken_and_says_why() {
    let views = [view("eu/a", 100, 60), view("eu/b", 100, 20), view("us/c", 10, 0)];
    let Placement::Placed(d) = ask(&spec(20, 20, 20), None, None, &views) else { panic!("it fits") };
    assert_eq!(d.target.to_string(), "eu/b");
    assert_eq!(d.settled_by, None);
    assert_eq!(
        d.reasoning,
        "eu/b is connected and 40.0 % full with it: the least loaded of 2 that can take it; 1 can't"
    );
    assert_eq!(d.alternatives.len(), 2);
    assert_eq!(d.alternatives[0].cluster.to_string(), "eu/a");
    assert_eq!(d.alternatives[0].reasons, ["it would be 80.0 % full with it, eu/b would be 40.0 %"]);
    assert!(d.alternatives[0].rejected_by.is_empty());
    assert!(matches!(d.alternatives[1].rejected_by[..], [Rejection::Room { .. }]));
    assert!(d.score > d.alternatives[0].score && d.alternatives[0].score > d.alternatives[1].score);
}

#[test]
fn each_hard_constraint_rejects_with_its_figures() {
    let vm = spec(5, 5, 5);
    let full = ClusterView { reserved: room(6), ..view("eu/a", 10, 0) };
    let gone = ClusterView { state: ClusterState::Disconnected, reason: "no answer".into(), ..view("eu/a", 10, 0) };
    let unknown = ClusterView { state: ClusterState::Unknown, ..view("eu/a", 10, 0) };
    let old = ClusterView { stale: true, age_ms: Some(Millis(90_000)), ..view("eu/a", 10, 0) };
    let table = [
        (full, None, None, "short of 1 CPU, 1 B memory, 1 B disk; free is 4 CPU, 4 B memory, 4 B disk", false),
        (gone, None, None, "it is disconnected: no answer", true),
        (unknown, None, None, "it is unknown: it answers", true),
        (old, None, None, "what is known of it is 90000 ms old", true),
        (view("eu/a", 10, 0), Some("us"), None, "region us was asked for", false),
        (view("eu/a", 10, 0), None, Some("b"), "cluster b was asked for", false),
    ];
    for (view, region, cluster, why, for_now) in table {
        let Placement::Unschedulable(u) = ask(&vm, region, cluster, &[view]) else { panic!("{why}") };
        assert_eq!(u.rejected[0].reasons, [why]);
        assert_eq!(u.for_now, for_now, "{why}");
        assert!(!u.reasoning.is_empty());
    }
}

#[test]
fn a_degraded_cluster_is_taken_only_if_no_connected_one_can() {
    let weak = ClusterView { state: ClusterState::Degraded, ..view("eu/a", 100, 0) };
    let vm = spec(1, 1, 1);
    assert_eq!(target(&ask(&vm, None, None, &[weak.clone(), view("eu/b", 100, 90)])), "eu/b");
    assert_eq!(target(&ask(&vm, None, None, &[weak, view("eu/b", 100, 100)])), "eu/a");
}

#[test]
fn figures_of_another_region_are_settled_by_it() {
    let remote = ClusterView { age_ms: Some(Millis(800)), ..view("us/a", 100, 0) };
    let Placement::Placed(d) = ask(&spec(1, 1, 1), None, None, &[remote]) else { panic!("it fits") };
    assert_eq!(d.settled_by, Some("us".parse().unwrap()));
    assert_eq!(d.age_ms, Some(Millis(800)));
    assert!(d.reasoning.ends_with("(figures 800 ms old)"), "{}", d.reasoning);
}

#[test]
fn nothing_known_says_what_to_do() {
    assert!(target(&ask(&spec(1, 1, 1), None, None, &[])).contains("configure one"));
}

fn any_view() -> impl Strategy<Value = ClusterView> {
    (0..3_u8, 0..6_u8, 0..4_u8, 0..60_u64, 0..60_u64, 0..20_u64, prop::bool::weighted(0.1)).prop_map(
        |(region, id, state, capacity, used, reserved, stale)| ClusterView {
            state: match state {
                0 | 1 => ClusterState::Connected,
                2 => ClusterState::Degraded,
                _ => ClusterState::Disconnected,
            },
            reserved: room(reserved),
            stale,
            ..view(&format!("r{region}/c{id}"), capacity, used)
        },
    )
}

fn views() -> impl Strategy<Value = Vec<ClusterView>> {
    // One view per place, as a directory has it.
    prop::collection::vec(any_view(), 0..8).prop_map(|list| {
        let by_place: BTreeMap<Place, ClusterView> = list.into_iter().map(|v| (place_of(&v), v)).collect();
        by_place.into_values().collect()
    })
}

proptest! {
    #[test]
    fn the_order_of_the_input_does_not_matter(mut list in views(), n in 1..30_u32) {
        let vm = spec(n, u64::from(n), u64::from(n));
        let one = ask(&vm, None, None, &list);
        prop_assert_eq!(&one, &ask(&vm, None, None, &list));
        list.reverse();
        prop_assert_eq!(one, ask(&vm, None, None, &list));
    }

    #[test]
    fn more_capacity_at_the_winner_never_makes_it_lose(
        mut list in views(), n in 1..30_u32, more in (0..50_u64, 0..50_u64, 0..50_u64),
    ) {
        let vm = spec(n, u64::from(n), u64::from(n));
        if let Placement::Placed(d) = ask(&vm, None, None, &list) {
            let winner = list.iter_mut().find(|v| place_of(v) == d.target).unwrap();
            winner.capacity = winner.capacity.plus(Resources { cpu: more.0, memory_bytes: more.1, disk_bytes: more.2 });
            let grown = ask(&vm, None, None, &list);
            prop_assert_eq!(target(&grown), d.target.to_string());
        }
    }

    #[test]
    fn no_placement_past_a_hard_constraint_and_none_refused_that_fits(
        list in views(), n in 1..30_u32, region in prop::option::of(0..3_u8),
    ) {
        let vm = spec(n, u64::from(n), u64::from(n));
        let region = region.map(|r| format!("r{r}"));
        let can = |v: &ClusterView| {
            region.as_ref().is_none_or(|r| v.region.as_str() == r)
                && matches!(v.state, ClusterState::Connected | ClusterState::Degraded)
                && !v.stale
                && v.capacity.cpu >= v.used.cpu + v.reserved.cpu + u64::from(n)
        };
        match ask(&vm, region.as_deref(), None, &list) {
            Placement::Placed(d) => {
                let taken = list.iter().find(|v| place_of(v) == d.target).unwrap();
                prop_assert!(can(taken));
                prop_assert_eq!(d.alternatives.len() + 1, list.len());
                prop_assert!((0.0..=1.0).contains(&d.score));
            }
            Placement::Unschedulable(u) => {
                prop_assert!(!list.iter().any(can));
                prop_assert_eq!(u.rejected.len(), list.len());
                prop_assert!(u.rejected.iter().all(|a| !a.rejected_by.is_empty()));
            }
        }
    }
}
