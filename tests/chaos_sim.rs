//! The simulator: a seed is a run, and what it found once stays found. Level 4: whole regions by seed.
//! Many seeds are run by `cargo sim`; here are few, in both levels, and each bug that the simulator found, by its cause.

use novafed::chaos::sim::faults::{Fault, Kind};
use novafed::chaos::sim::plan::{Level, Plan, Scheduled, SimOptions};
use novafed::chaos::sim::run::{self, Outcome};
use novafed::drivers::embedded::faults::{CallKind, Fault as HostFault};
use novafed::types::Millis;

fn options(level: Level) -> SimOptions {
    SimOptions { level, regions: 3..=4 }
}

/// The plan of a seed with these faults instead of its own, one after the other.
fn plan(seed: u64, faults: impl IntoIterator<Item = (u64, u64, Fault)>) -> Plan {
    let drawn = Plan::draw(seed, &options(Level::Message));
    let faults = faults.into_iter();
    let faults = faults.map(|(at, lasts, fault)| Scheduled { at: Millis(at), lasts: Millis(lasts), fault }).collect();
    Plan { faults, ..drawn }
}

fn sound(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.violation(), None, "seed {}\n{}", outcome.seed, outcome.lines.join("\n"));
    outcome
}

#[test]
fn a_seed_gives_the_same_events_each_time() {
    run::can_simulate().expect("a build that can simulate");
    run::quiet_planned_panics();
    for (level, seeds) in [(Level::Message, 1..=3), (Level::Full, 1..=2)] {
        for seed in seeds {
            let once = sound(run::run(Plan::draw(seed, &options(level)), true));
            let again = run::run(Plan::draw(seed, &options(level)), true);
            let odd = once.lines.iter().zip(&again.lines).find(|(once, again)| once != again);
            assert_eq!(odd, None, "seed {seed} of {}", level.name());
            assert_eq!((once.hash, once.events), (again.hash, again.events));
            assert!(once.operations > 0 && once.events > 0);
        }
    }
}

#[test]
fn a_plan_without_faults_moves_vms_and_nothing_goes_wrong() {
    let outcome = sound(run::run(plan(7, []), true));
    assert!(outcome.migrations > 5 && outcome.parked.is_empty() && outcome.exits.is_empty(), "{outcome:?}");
}

#[test]
fn every_kind_of_fault_is_drawn_by_some_seed() {
    let drawn: std::collections::BTreeSet<Kind> = (1..300)
        .flat_map(|seed| [Level::Message, Level::Full].map(|level| Plan::draw(seed, &options(level))))
        .flat_map(|plan| plan.faults.into_iter().map(|fault| fault.fault.kind()))
        .collect();
    assert_eq!(drawn.len(), Kind::ALL.len());
}

/// The guest died alone, its host lived: the transfer that had ended went on being reported, and the job waited for ever.
#[test]
fn a_job_whose_guest_dies_while_it_is_copied_ends() {
    for seed in 1..=6 {
        let dies = |n: u64| (1_500 * n, 1_500, Fault::Host((0, 0), CallKind::Send, HostFault::Dies, 2));
        sound(run::run(plan(seed, (1..=12).map(dies)), true));
    }
}

/// All power went between the start at the target and the first look at it there: the source was done, the target waited
/// for ever for a person who had nothing to say.
#[test]
fn a_power_loss_behind_the_start_leaves_no_job_open_at_its_target() {
    for seed in 1..=6 {
        let losses = (1..=5).map(|n| (4_100 * n + 137 * seed, 900, Fault::PowerLossOfAll(seed * 100 + n)));
        sound(run::run(plan(seed, losses), true));
    }
}

/// The wall clock was ten years ahead when a disk was retired, so it was to be kept for ten years.
#[test]
fn a_wall_clock_that_was_set_delays_no_clean_up() {
    const YEARS: i64 = 315_360_000_000;
    for seed in 1..=3 {
        let jumps = (0..3).map(|a| (1_000, 15_000, Fault::ClockJump(a, if seed % 2 == 0 { YEARS } else { -YEARS })));
        sound(run::run(plan(seed, jumps), true));
    }
}

/// A host died and its VM was ordered to be stopped: it stayed *lost* for ever.
#[test]
fn a_vm_that_was_lost_and_is_to_be_stopped_is_shown_as_stopped() {
    for seed in 1..=4 {
        let deaths = (1..=8).map(|n| (2_000 * n, 300, Fault::KillHost(((n % 3) as usize, 0))));
        sound(run::run(plan(seed, deaths), true));
    }
}

/// Whoever passed a point panicked: an effect of a job, which was then waited for in vain; a request that had just made a
/// job, which then had no actor until the next start.
#[test]
fn a_panic_beside_a_job_s_actor_leaves_no_job_behind() {
    let point = |text: &str| text.parse().expect("a kill point");
    let points = ["reserve:target:after-effect", "queue:source:after-write", "reserve:target:before-write"];
    for seed in 1..=3 {
        let poisoned = points.iter().zip(0..).map(|(text, n)| (2_000 + 6_000 * n, 4_000, Fault::Poison(point(text))));
        sound(run::run(plan(seed, poisoned), true));
    }
}
