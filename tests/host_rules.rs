//! The rules of a host, searched exhaustively over small numbers and at random over larger ones.

#![allow(clippy::print_stderr, reason = "figures that a person reads")]

use std::collections::{BTreeSet, VecDeque};

use novafed::drivers::SwitchKey;
use novafed::drivers::embedded::rules::{Effect, Event, Power, Refusal, Rules, Stage};
use novafed::types::{Attempt, Fence, JobId, Millis, RegionNumber, VmId};
use proptest::prelude::*;

fn key(attempt: u32) -> SwitchKey {
    let (region, incarnation) = (RegionNumber(1), 1);
    // An attempt belongs to one job; the third is of another one.
    let number = u64::from(attempt / 3);
    SwitchKey {
        vm: VmId { region, incarnation, number: 1 },
        job: JobId { region, incarnation, number },
        attempt: Attempt(attempt),
    }
}

fn foreign(attempt: u32) -> SwitchKey {
    SwitchKey { job: JobId { region: RegionNumber(9), incarnation: 1, number: 1 }, ..key(attempt) }
}

fn fence(epoch: u64) -> Fence {
    Fence { epoch, generation: 1 }
}

const DEADLINE: Millis = Millis(1);

/// Every event over these fences and attempts.
fn events(fences: u64, attempts: u32) -> Vec<Event> {
    let mut all = vec![Event::GuestLost, Event::HostRestarted];
    for fence in (1..=fences).map(fence) {
        all.extend([Event::Create { fence }, Event::Start { fence }, Event::Stop { fence }]);
        all.extend([Event::Delete { fence }, Event::Purge { fence }]);
    }
    for key in (1..=attempts).flat_map(|n| [key(n), foreign(n)]) {
        all.extend([Event::SealReceive { key }, Event::DiscardReceive { key }, Event::Send { key }]);
        all.extend([Event::StopSending { key }, Event::CancelPause { key }, Event::Hold { key }]);
        all.extend([Event::ReleaseHold { key }, Event::Watchdog { key }]);
        for fence in (1..=fences).map(fence) {
            all.extend([Event::PrepareReceive { key, fence }, Event::Activate { key, fence }]);
            all.extend([Event::PauseForSwitch { key, fence, deadline: DEADLINE }, Event::Retire { key, fence }]);
        }
    }
    all
}

fn fence_of(event: &Event) -> Option<Fence> {
    match *event {
        Event::Create { fence }
        | Event::Start { fence }
        | Event::Stop { fence }
        | Event::Delete { fence }
        | Event::PrepareReceive { fence, .. }
        | Event::Activate { fence, .. }
        | Event::PauseForSwitch { fence, .. }
        | Event::Retire { fence, .. } => Some(fence),
        Event::Purge { .. }
        | Event::SealReceive { .. }
        | Event::DiscardReceive { .. }
        | Event::Send { .. }
        | Event::StopSending { .. }
        | Event::CancelPause { .. }
        | Event::Hold { .. }
        | Event::ReleaseHold { .. }
        | Event::Watchdog { .. }
        | Event::GuestLost
        | Event::HostRestarted => None,
    }
}

fn place(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> Option<usize> {
    effects.iter().position(wanted)
}

/// Checks one step; the name of each property stands in its message.
fn check_step(before: &Rules, event: &Event) -> Option<Rules> {
    let step = before.apply(event);
    let (after, effects) = match step {
        Ok(step) => step,
        Err(Refusal::LowerFence { seen, got }) => {
            assert!(got < seen && seen == before.fence);
            return None;
        }
        Err(Refusal::LowerAttempt { seen, got }) => {
            assert!(got < seen);
            return None;
        }
        Err(Refusal::NotFound | Refusal::No(_)) => return None,
    };
    let at = || format!("{before:?} -{event:?}-> {after:?} by {effects:?}");

    assert!(after.fence >= before.fence, "fences never go back: {}", at());
    assert!(after.newest.map(|k| k.attempt) >= before.newest.map(|k| k.attempt), "attempts never go back: {}", at());
    assert!(after.spent.map(|k| k.attempt) >= before.spent.map(|k| k.attempt), "what is spent stays spent: {}", at());
    if let Some(fence) = fence_of(event) {
        let harmless = after == *before && !before.is_listed();
        assert!(fence >= before.fence || harmless, "a lower fence is refused: {}", at());
    }

    if let Power::Held { key, .. } = before.power {
        let decided = matches!(*event, Event::ReleaseHold { key: k } | Event::Retire { key: k, .. } if k == key);
        let still = matches!(after.power, Power::Held { key: k, .. } if k == key);
        assert!(still || decided, "only the decision frees a held guest: {}", at());
    }
    match after.power {
        Power::Paused { key } if after.power != before.power => {
            assert!(before.power == Power::Running, "only a running guest is paused: {}", at());
            assert!(!before.is_spent(key), "a spent attempt never pauses: {}", at());
        }
        Power::Held { key, lost: false } if after.power != before.power => {
            assert_eq!(before.power, Power::Paused { key }, "only the paused guest of this attempt is held: {}", at());
            assert!(!before.is_spent(key), "a spent attempt never holds: {}", at());
        }
        Power::Running if before.power != Power::Running => {
            let may = matches!(
                (before.power, *event),
                (Power::Stopped | Power::Lost, Event::Start { .. })
                    | (Power::Receiving { stage: Stage::Sealed, .. }, Event::Activate { .. })
                    | (Power::Receiving { stage: Stage::DiskOnly, .. }, Event::Start { .. })
                    | (Power::Paused { .. }, Event::Watchdog { .. } | Event::CancelPause { .. })
                    | (Power::Paused { .. } | Power::Held { .. }, Event::ReleaseHold { .. })
            );
            assert!(may, "a guest runs by a start, an activation, or the end of its pause: {}", at());
        }
        _ => {}
    }
    if let (Power::Paused { key }, Power::Running) = (before.power, after.power) {
        assert!(after.is_spent(key), "a pause that ended without a hold spends its attempt: {}", at());
    }
    let memory = |power| matches!(power, Power::Running | Power::Paused { .. } | Power::Held { lost: false, .. });
    if memory(before.power) && !memory(after.power) && !matches!(after.power, Power::Held { .. }) {
        let spent = before.newest.is_none_or(|newest| after.is_spent(newest));
        assert!(spent, "an attempt does not outlive the memory that it copied: {}", at());
    }

    let persist = place(&effects, |e| *e == Effect::Persist);
    assert_eq!(persist.is_some(), after.durable() != before.durable(), "what must outlive is persisted: {}", at());
    let runs = place(&effects, |e| matches!(e, Effect::Boot | Effect::ActivateReceipt | Effect::BootReceipt));
    assert!(runs.is_none() || persist < runs, "a fence is durable before a guest starts under it: {}", at());
    if matches!(event, Event::Hold { .. }) {
        let disarm = place(&effects, |e| *e == Effect::DisarmWatchdog);
        assert!(disarm.is_none() || persist < disarm, "a hold is durable before its watchdog is disarmed: {}", at());
    }

    let restart = Event::HostRestarted;
    assert_eq!(
        after.apply(&restart).unwrap().0,
        after.durable().apply(&restart).unwrap().0,
        "what is not persisted makes no difference to a restart: {}",
        at()
    );
    let (again, effects) = after.apply(event).unwrap_or_else(|e| panic!("a repeat is refused ({e}): {}", at()));
    assert_eq!(again, after, "each call twice is once: {}", at());
    let harmless = |e: &Effect| matches!(e, Effect::Offer { .. } | Effect::StopOffer);
    assert!(effects.iter().all(harmless), "a repeat has no effect: {} then {effects:?}", at());
    Some(after)
}

#[test]
fn every_reachable_state_keeps_the_law() {
    let events = events(3, 3);
    let mut seen = BTreeSet::from([Rules::default()]);
    let mut queue = VecDeque::from([Rules::default()]);
    let mut steps = 0_u64;
    while let Some(state) = queue.pop_front() {
        for event in &events {
            if let Some(next) = check_step(&state, event) {
                steps += 1;
                if seen.insert(next.clone()) {
                    queue.push_back(next);
                }
            }
        }
    }
    eprintln!("{} states, {steps} steps", seen.len());
    assert!(seen.len() > 500, "the search reached only {} states", seen.len());
    let powers: BTreeSet<u8> = seen
        .iter()
        .map(|rules| match rules.power {
            Power::Absent => 0,
            Power::Stopped => 1,
            Power::Running => 2,
            Power::Paused { .. } => 3,
            Power::Held { lost: false, .. } => 4,
            Power::Held { lost: true, .. } => 5,
            Power::Receiving { stage: Stage::Open, .. } => 6,
            Power::Receiving { stage: Stage::Sealed, .. } => 7,
            Power::Receiving { stage: Stage::DiskOnly, .. } => 8,
            Power::Lost => 9,
        })
        .collect();
    assert_eq!(powers.len(), 10);
}

/// From every state that is reachable, some sequence of calls leads to a guest that runs or is gone: nothing is stuck.
#[test]
fn no_state_is_a_trap() {
    let events = events(2, 2);
    let mut seen = BTreeSet::from([Rules::default()]);
    let mut queue = VecDeque::from([Rules::default()]);
    let mut into: std::collections::BTreeMap<Rules, Vec<Rules>> = std::collections::BTreeMap::new();
    while let Some(state) = queue.pop_front() {
        for event in &events {
            if let Ok((next, _)) = state.apply(event) {
                into.entry(next.clone()).or_default().push(state.clone());
                if seen.insert(next.clone()) {
                    queue.push_back(next);
                }
            }
        }
    }
    let good = |rules: &&Rules| matches!(rules.power, Power::Running | Power::Absent);
    let mut out: BTreeSet<Rules> = seen.iter().filter(good).cloned().collect();
    let mut queue: VecDeque<Rules> = out.iter().cloned().collect();
    while let Some(state) = queue.pop_front() {
        for before in into.get(&state).into_iter().flatten() {
            if out.insert(before.clone()) {
                queue.push_back(before.clone());
            }
        }
    }
    // A hold taken under the highest fence of this small world can't be retired by a higher one, but released.
    assert_eq!(seen.difference(&out).next(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn long_lives_keep_the_law(picks in prop::collection::vec(any::<prop::sample::Index>(), 1..200)) {
        let events = events(9, 12);
        let mut state = Rules::default();
        for pick in picks {
            if let Some(next) = check_step(&state, pick.get(&events)) {
                state = next;
            }
        }
    }
}

/// Of the ways to break the law that `migration_core/world.rs` plants, those that are the host's to prevent.
#[test]
fn the_ways_to_break_the_switch_are_refused() {
    let follow = |events: &[Event]| {
        let step = |rules: Rules, event: &Event| rules.apply(event).unwrap_or_else(|e| panic!("{event:?}: {e}")).0;
        events.iter().fold(Rules::default(), step)
    };
    let (first, k) = (fence(1), key(1));
    let pause = Event::PauseForSwitch { key: k, fence: first, deadline: DEADLINE };
    let running = [Event::Create { fence: first }, Event::Start { fence: first }, Event::Send { key: k }];
    let fired = follow(&[&running[..], &[pause, Event::Watchdog { key: k }]].concat());
    assert!(fired.apply(&Event::Hold { key: k }).is_err(), "hold_after_watchdog");
    assert!(fired.apply(&pause).is_err(), "repause");
    let held = follow(&[&running[..], &[pause, Event::Hold { key: k }]].concat());
    assert_eq!(held.apply(&Event::Watchdog { key: k }).unwrap().0, held, "resume_on_timeout");
    assert!(held.apply(&Event::CancelPause { key: k }).is_err());
    let rebooted = held.apply(&Event::HostRestarted).unwrap().0;
    assert!(rebooted.apply(&Event::Start { fence: fence(9) }).is_err(), "reboot_starts_offer");
    let retired = rebooted.apply(&Event::Retire { key: k, fence: fence(2) }).unwrap().0;
    assert!(retired.apply(&Event::Start { fence: first }).is_err(), "forget_move");
    assert!(retired.apply(&Event::Start { fence: fence(3) }).is_err(), "forget_move");
    let open = follow(&[Event::PrepareReceive { key: k, fence: fence(2) }]);
    assert!(open.apply(&Event::Activate { key: k, fence: fence(2) }).is_err(), "the target lacks the last writes");
}
