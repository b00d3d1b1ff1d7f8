//! Histories as files. Owns: that the formats stay what they are, byte for byte, and that what was written is read
//! back.
//! Always: each file of `fixtures/history` is judged as its name says, by every checker. Not here: what is right in
//! general (`history_checkers.rs`).

mod history_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use fastrand::Rng;
use history_support::{Shape, of_a_register};
use novafed::chaos::history::*;
use proptest::prelude::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/history")
}

/// The text of each file with this ending, by its name without it.
fn files(ending: &str) -> BTreeMap<String, String> {
    let paths = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|it| it == ending));
    paths.map(|path| (path.file_stem().unwrap().to_str().unwrap().into(), fs::read_to_string(&path).unwrap())).collect()
}

fn edn(history: &History) -> String {
    let mut text = Vec::new();
    write_edn(history, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn porcupine(history: &History) -> String {
    let mut text = Vec::new();
    write_porcupine(history, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn each_file_is_judged_as_its_name_says_by_every_checker() {
    for name in files("edn").keys() {
        let judgement = judge_file(&folder().join(format!("{name}.edn"))).unwrap();
        let good = name.starts_with("good-");
        assert!(good != name.starts_with("bad-"), "{name} says neither");
        assert_eq!(judgement.passed(), good, "{name}: {judgement:#?}");
        assert_eq!(judgement.disagreements, [], "{name}");
        for checker in Checker::ALL {
            let counts = judgement.counts(checker);
            assert_eq!((counts.not_checked, counts.violated > 0), (0, !good), "{name}: {checker}");
        }
    }
    assert_eq!(files("edn").len(), 6);
}

#[test]
fn a_violation_names_the_answer_that_cannot_be_and_what_it_could_have_been() {
    let explained = |name: &str| {
        let judgement = judge_file(&folder().join(format!("{name}.edn"))).unwrap();
        let Verdict::Violation { explanation } = judgement.keys[0].ours.clone() else { panic!("{name} passes") };
        explanation
    };
    assert_eq!(
        explained("bad-stale-read"),
        "process 2 read 1 (events 5 to 6), which no order explains: it could find 2\n\
         \x20 under way: process 0 wrote 2 (events 2 to 7)"
    );
    assert_eq!(
        explained("bad-both-cas-win"),
        "process 2 changed 1 to 3 (events 3 to 5), which no order explains: it could find 1 or 2\n\
         \x20 under way: process 1 changed 1 to 2 (events 2 to 4)"
    );
    assert_eq!(
        explained("bad-retry-done-twice"),
        "process 2 read 2 (events 10 to 11), which no order explains: it could find 3\n\
         \x20 under way: process 1 wrote 2 (event 2, outcome unknown)"
    );
}

#[test]
fn what_is_written_is_what_was_read_byte_for_byte() {
    let twins = files("jsonl");
    for (name, text) in files("edn") {
        let history = read_edn(&text).unwrap();
        assert_eq!(edn(&history), text, "{name}.edn");
        assert_eq!(Some(&porcupine(&history)), twins.get(&name), "{name}.jsonl");
    }
}

#[test]
fn any_history_is_read_back_as_it_was() {
    for seed in 0..200 {
        let shape = Shape { clients: 4, ops: 40, values: 0, unknown_permille: 100, haste: 5 };
        let history = of_a_register(&mut Rng::with_seed(seed), shape);
        assert_eq!(read_edn(&edn(&history)), Ok(history), "seed {seed}");
    }
    let recorder = Recorder::new();
    let odd = recorder.invoke(
        recorder.process(),
        "a \"key\"\\ of {two}\n;\tlines",
        Call::Write(u64::MAX),
        u64::MAX / 2_000_000,
    );
    recorder.done(odd, Answer::Failed, 0);
    assert_eq!(edn(&recorder.history()).lines().count(), 2);
    assert_eq!(read_edn(&edn(&recorder.history())), Ok(recorder.history()));
}

#[test]
fn operations_overlap_for_porcupine_if_and_only_if_they_did() {
    let (history, text) = {
        let recorder = Recorder::new();
        let (a, b) = (recorder.process(), recorder.process());
        // All in one millisecond.
        let first = recorder.invoke(a, "k", Call::Write(1), 5);
        recorder.done(first, Answer::Done, 5);
        let second = recorder.invoke(b, "k", Call::Read, 5);
        let never = recorder.invoke(a, "k", Call::Write(2), 5);
        recorder.done(second, Answer::Value(Some(1)), 5);
        drop(never);
        (recorder.history(), porcupine(&recorder.history()))
    };
    assert_eq!(history.events().len(), 5);
    assert_eq!(
        text,
        "{\"clientId\":0,\"input\":{\"key\":\"k\",\"op\":\"write\",\"value\":1},\"output\":{\"ok\":true},\
         \"call\":5000000,\"return\":5000001}\n\
         {\"clientId\":1,\"input\":{\"key\":\"k\",\"op\":\"read\"},\"output\":{\"value\":1},\
         \"call\":5000002,\"return\":5000004}\n\
         {\"clientId\":0,\"input\":{\"key\":\"k\",\"op\":\"write\",\"value\":2},\"output\":{\"unknown\":true},\
         \"call\":5000003,\"return\":5000005}\n"
    );
}

#[test]
fn what_others_write_of_a_register_is_read() {
    let jepsen = "; a history of one register
        [#jepsen.history.Op{:process 0 :type :invoke :f :write :value 3 :error nil}
         {:process :nemesis, :type :info, :f :start, :value #{\"n1\" \"n2\"}}
         {:process 0 :type :ok :f :write :value 3 :ratio 0.5 :by some/body}
         {:process 1 :type :invoke :f :cas :value [3 4]}
         {:process 1 :type :info :f :cas :value [3 4] :error :timeout}
         {:process 2 :type :invoke :f :read :value nil} {:process 2 :type :ok :f :read :value 4}]";
    let history = read_edn(jepsen).unwrap();
    assert_eq!(history.events().len(), 6);
    assert!(history.events().iter().all(|event| event.key == "register"));
    assert!(judge(&history, &Budget::default()).passed());

    let numbered =
        "{:process 0 :type :invoke :f :cas :value [7 [1 2]]} {:process 0 :type :ok :f :cas :value [7 [1 2]]}";
    let history = read_edn(numbered).unwrap();
    assert_eq!((history.events()[0].key.as_str(), history.events()[0].call), ("7", Call::Cas { from: 1, to: 2 }));
    assert!(!judge(&history, &Budget::default()).passed());
}

#[test]
fn what_is_no_history_is_refused_with_its_line() {
    let line = "{:index 0, :time 0, :process 0, :type :invoke, :f :write, :value [\"k\" 1], :key \"k\"}\n";
    for (bad, says) in [
        ("{:process 0", "line 2: the text ends inside of a form"),
        ("{:process }", "line 2: a map has a key without a value"),
        ("}", "line 2: '}' is not expected here"),
        ("17", "line 2: an event needs :process with a number"),
        ("{:process 1 :type :invoke :f :append :value 1}", "line 2: an event needs :f with :read, :write or :cas"),
        ("{:process 1 :type :invoke :f :write :value -1}", "line 2: an event needs a whole number to write, from 0 up"),
        (
            "{:process 1 :type :ok :f :read :value 1}",
            "line 2: process 1 is told something that answers no open call of it",
        ),
        (
            "{:process 0 :type :invoke :f :read :value nil}",
            "line 2: process 0 asks again while its last call is open: one call at a time, or another process",
        ),
        (
            "{:process 1 :type :invoke :f :read :value [\"k\" nil] :key \"l\"}",
            "line 2: an event needs the same key in :value and :key",
        ),
        ("{:index 0 :process 1 :type :invoke :f :read}", "line 2: event 0 follows event 0"),
        (&"[".repeat(100_000), "line 2: forms stand in each other more than 16 deep"),
    ] {
        let read = read_edn(&format!("{line}{bad}"));
        assert_eq!(read.expect_err(bad).to_string(), says, "{bad:.60}");
    }
    let gone = judge_file(&folder().join("gone.edn")).unwrap_err();
    assert!(gone.to_string().starts_with("reading the history "), "{gone}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_is_read_as_more_than_it_says(
        text in "[\\[\\](){}#:\", 0-9a-z\\\\;\n]{0,80}",
        cut in 0_usize..800,
        seed in 0_u64..50,
    ) {
        let _ = read_edn(&text);
        let shape = Shape { clients: 2, ops: 5, values: 3, unknown_permille: 200, haste: 5 };
        let history = of_a_register(&mut Rng::with_seed(seed), shape);
        let whole = edn(&history);
        let cut = cut.min(whole.len());
        if let Ok(read) = read_edn(&whole[..cut]) {
            prop_assert_eq!(read.events(), &history.events()[..read.events().len()]);
        }
        let _ = read_edn(&format!("{}{text}{}", &whole[..cut], &whole[cut..]));
    }
}
