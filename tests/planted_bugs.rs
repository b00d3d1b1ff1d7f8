//! The simulator finds what is wrong: each bug of `src/planted.rs`, alone, is caught within so many seeds, by an invariant
//! that is named, and the sound build passes the same seeds.
//!
//! `cargo test --release --features planted --test planted_bugs -- --nocapture` prints the table. `PLANTED_SEEDS` sets how
//! many seeds each bug is given at most (default 200), `PLANTED_BUG` takes one bug alone.
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::collections::BTreeSet;

use novafed::chaos::sim::plan::{Level, Plan, SimOptions};
use novafed::chaos::sim::run;
use novafed::planted::{self, Bug};

fn outcome(seed: u64) -> Option<(String, String)> {
    let options = SimOptions { level: Level::Message, regions: 3..=5 };
    run::run(Plan::draw(seed, &options), false).violation()
}

#[test]
fn every_planted_bug_is_caught_and_the_sound_build_passes_the_same_seeds() {
    run::can_simulate().expect("a build that can simulate");
    run::quiet_planned_panics();
    let seeds_max: u64 = std::env::var("PLANTED_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let only = std::env::var("PLANTED_BUG").ok();
    let mut missed = Vec::new();
    let mut tried = BTreeSet::new();
    for bug in Bug::ALL.into_iter().filter(|bug| only.as_deref().is_none_or(|only| only == bug.name())) {
        planted::choose(Some(bug));
        let caught = (1..=seeds_max).find_map(|seed| {
            tried.insert(seed);
            outcome(seed).map(|(invariant, what)| (seed, invariant, what))
        });
        match caught {
            Some((seeds, invariant, what)) => {
                println!("caught {} by {invariant} after {seeds} seeds", bug.name());
                println!("    {what}");
            }
            None => {
                println!("missed {} in {seeds_max} seeds", bug.name());
                missed.push(bug.name());
            }
        }
    }
    planted::choose(None);
    for seed in tried {
        assert_eq!(outcome(seed), None, "seed {seed} of the sound build");
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
