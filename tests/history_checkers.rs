//! The checkers, checked. Owns: that each verdict on a small history is the one that trying everything gives, that
//! large histories are judged within the budget, and that what is too much is said to be unchecked.
//! Not here: the files (`history_golden.rs`).
#![allow(clippy::print_stdout, reason = "how many lies were illegal is part of the result")]

mod history_support;

use std::collections::BTreeMap;

use fastrand::Rng;
use history_support::oracle::could_be;
use history_support::{Lie, Shape, made_up, of_a_register};
use novafed::chaos::history::*;

const SMALL: u64 = 10_000;

fn edn(history: &History) -> String {
    let mut text = Vec::new();
    write_edn(history, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn shape_of(seed: u64) -> Shape {
    let mut rng = Rng::with_seed(seed);
    Shape {
        clients: rng.usize(1..=4),
        ops: rng.usize(1..=6),
        values: rng.u64(1..=3),
        unknown_permille: *rng.choice(&[0, 200, 500]).unwrap(),
        haste: *rng.choice(&[1, 5, 10]).unwrap(),
    }
}

/// Every checker says what trying everything says; returns that.
fn all_agree_with_the_oracle(seed: u64, history: &History) -> bool {
    let expected = could_be(history);
    for key in judge(history, &Budget::default()).keys {
        for checker in Checker::ALL {
            let verdict = key.verdict(checker);
            let told = format!("seed {seed}: {checker} says {verdict:?}, right is {expected}\n{}", edn(history));
            assert_eq!(verdict.linearizable(), Some(expected), "{told}");
        }
    }
    expected
}

#[test]
fn every_checker_accepts_what_a_register_did_and_refuses_each_illegal_lie() {
    let mut lies: BTreeMap<Lie, (u64, u64)> = BTreeMap::new();
    for seed in 0..SMALL {
        let shape = shape_of(seed);
        let mut rng = Rng::with_seed(seed);
        let history = of_a_register(&mut rng, shape);
        assert!(all_agree_with_the_oracle(seed, &history), "seed {seed}: a register did this\n{}", edn(&history));
        for lie in Lie::ALL {
            if let Some(told) = lie.tell(&mut rng, &history, shape.values) {
                let (all, illegal) = lies.entry(lie).or_default();
                *all += 1;
                *illegal += u64::from(!all_agree_with_the_oracle(seed, &told));
            }
        }
    }
    for (lie, (all, illegal)) in &lies {
        println!("{lie:?}: {all} told, {illegal} illegal, each of these refused by all checkers");
    }
    for lie in [Lie::SwapValue, Lie::FalseAck, Lie::MoveRead] {
        assert!(lies[&lie].1 > 500, "too few to show anything: {lies:?}");
    }
    assert_eq!(lies[&Lie::DropAck].1, 0, "not having heard an answer makes nothing impossible");
}

#[test]
fn every_checker_knows_which_made_up_histories_could_be() {
    let mut illegal = 0;
    for seed in 0..SMALL {
        let history = made_up(&mut Rng::with_seed(seed), shape_of(seed));
        illegal += u64::from(!all_agree_with_the_oracle(seed, &history));
    }
    println!("{SMALL} made up, {illegal} illegal");
    assert!((SMALL / 5..SMALL * 4 / 5).contains(&illegal), "too few of one kind: {illegal} of {SMALL}");
}

#[test]
fn checkers_never_contradict_each_other_where_trying_everything_would_take_too_long() {
    let mut counts: BTreeMap<Checker, Counts> = BTreeMap::new();
    // The one without a memory tries the same in vain more often than it comes to a verdict late.
    let budget = Budget { stateright: 2_000, ..Budget::default() };
    for seed in 0..400 {
        let mut rng = Rng::with_seed(seed);
        let shape = Shape {
            // A moved read may be one more than they have open.
            clients: rng.usize(2..CLIENTS_PER_KEY_MAX),
            ops: rng.usize(10..=60),
            values: *rng.choice(&[0, 3, 10]).unwrap(),
            unknown_permille: *rng.choice(&[0, 50]).unwrap(),
            haste: *rng.choice(&[2, 10]).unwrap(),
        };
        let history = of_a_register(&mut rng, shape);
        let lie = *rng.choice(&Lie::ALL).unwrap();
        for history in lie.tell(&mut rng, &history, 10).into_iter().chain([history]) {
            let judgement = judge(&history, &budget);
            assert_eq!(judgement.disagreements, [], "seed {seed}\n{}", edn(&history));
            assert_eq!(judgement.counts(Checker::Ours).not_checked, 0, "seed {seed}\n{}", edn(&history));
            for checker in Checker::ALL {
                let (sum, one) = (counts.entry(checker).or_default(), judgement.counts(checker));
                sum.checked += one.checked;
                sum.violated += one.violated;
                sum.not_checked += one.not_checked;
            }
        }
    }
    for (checker, counts) in &counts {
        println!("{checker}: {counts:?}");
        assert!(counts.violated > 50 && counts.checked > 2 * counts.not_checked, "too few to show anything");
    }
}

/// A key as full as a key may be.
fn full(seed: u64, haste: u32, unknown_permille: u32) -> History {
    let shape = Shape { clients: CLIENTS_PER_KEY_MAX, ops: OPS_PER_KEY_MAX, values: 0, unknown_permille, haste };
    of_a_register(&mut Rng::with_seed(seed), shape)
}

#[test]
fn a_full_key_is_judged_within_the_budget_good_or_bad() {
    for (haste, unknown_permille) in [(10, 0), (10, 20), (2, 0), (2, 50)] {
        for seed in 0..3 {
            let good = full(seed, haste, unknown_permille);
            let judged = &judge(&good, &Budget::default()).keys[0];
            for checker in [Checker::Ours, Checker::Todc] {
                assert_eq!(judged.verdict(checker), &Verdict::Linearizable, "seed {seed}, haste {haste}: {checker}");
            }
            // Between quiet moments also the checker that remembers nothing comes to its end.
            let quiet = haste == 2 && judged.stateright == Verdict::Linearizable;
            let window = matches!(judged.stateright, Verdict::NotChecked { why: Why::Window { .. } });
            assert!(quiet || window, "seed {seed}, haste {haste}: {:?}", judged.stateright);

            let never_written = 2 * OPS_PER_KEY_MAX as u64;
            let bad = Lie::SwapValue.tell(&mut Rng::with_seed(seed), &good, never_written).unwrap();
            let judged = &judge(&bad, &Budget::default()).keys[0];
            assert_eq!(judged.ours.linearizable(), Some(false), "seed {seed}, haste {haste}");
        }
    }
}

#[test]
fn a_checker_without_steps_passes_nothing() {
    let history = full(1, 2, 0);
    for checker in Checker::ALL {
        let mut budget = Budget::default();
        match checker {
            Checker::Ours => budget.ours = 10,
            Checker::Stateright => budget.stateright = 10,
            Checker::Todc => budget.todc = 10,
        }
        let judgement = judge(&history, &budget);
        let why = Why::Budget { steps: 10 };
        assert_eq!(judgement.keys[0].verdict(checker), &Verdict::NotChecked { why });
        assert_eq!(judgement.counts(checker), Counts { checked: 0, violated: 0, not_checked: 1 });
        assert_eq!(judgement.disagreements, []);
    }
    let judgement = judge(&history, &Budget { ours: 0, stateright: 0, todc: 0 });
    assert!(!judgement.passed() && judgement.unchecked().count() == 1);
}

#[test]
fn a_key_beyond_the_limits_is_not_checked_and_the_others_are() {
    let recorder = Recorder::new();
    let process = recorder.process();
    for n in 0..=OPS_PER_KEY_MAX {
        let op = recorder.invoke(process, "long", Call::Write(n as u64), 0);
        recorder.done(op, Answer::Done, 0);
    }
    let all: Vec<OpId> =
        (0..=CLIENTS_PER_KEY_MAX).map(|_| recorder.invoke(recorder.process(), "crowd", Call::Write(1), 0)).collect();
    all.into_iter().for_each(|op| recorder.done(op, Answer::Done, 0));
    // One that never hears anything leaves its place to the next.
    let unheard: Vec<OpId> =
        (0..=CLIENTS_PER_KEY_MAX).map(|_| recorder.invoke(recorder.process(), "silence", Call::Write(1), 0)).collect();
    drop(unheard);
    let judgement = judge(&recorder.history(), &Budget::default());
    let verdicts: Vec<(&str, &Verdict)> = judgement.keys.iter().map(|key| (key.key.as_str(), &key.ours)).collect();
    let not = |why| Verdict::NotChecked { why };
    assert_eq!(
        verdicts,
        [
            ("crowd", &not(Why::Clients(CLIENTS_PER_KEY_MAX + 1))),
            ("long", &not(Why::Operations(OPS_PER_KEY_MAX + 1))),
            ("silence", &Verdict::Linearizable),
        ]
    );
    assert_eq!(judgement.unchecked().count(), 2);
    assert!(!judgement.passed());
}
