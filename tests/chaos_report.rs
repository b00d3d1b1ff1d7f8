//! `novafed chaos report`: from summaries to a page and a document, by the real binary.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use novafed::chaos::invariants::{self, Invariant};
use novafed::chaos::report;
use novafed::chaos::sim::faults::Kind;
use novafed::chaos::summary::{Failure, JudgeCount, Recovery, Summary};
use novafed::decision::migration::steps::{KillPoint, STEPS};

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn report(directory: &Path, args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_novafed"))
        .args(["chaos", "report"])
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

fn counts(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
    of.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

fn invariant(name: &str, checked: u64, violated: u64) -> Invariant {
    Invariant { name: name.into(), checked, violated, examples: vec![] }
}

/// Ten seeds in which all held.
fn clean() -> Summary {
    Summary {
        seeds: 10,
        clean: 10,
        first_seed: 1,
        levels: vec!["message".into()],
        virtual_region_seconds: 7_200,
        cpu_seconds: 36.0,
        operations: 1_500,
        unanswered: 3,
        migrations: 200,
        ends: counts(&[("completed", 190), ("failed", 10)]),
        parked: counts(&[("memory lost", 2)]),
        exits: counts(&[("disk-failed", 4)]),
        faults_by_kind: counts(&[("kill-node", 5), ("lossy", 7)]),
        invariants: vec![invariant(invariants::ONE_PLACE, 900, 0), invariant(invariants::ALL_SETTLED, 210, 0)],
        judges: BTreeMap::from([("ours".to_owned(), JudgeCount { checked: 40, violated: 0, not_checked: 1 })]),
        determinism_rechecked: 1,
        met: BTreeMap::from([("kill-node".to_owned(), counts(&[("copy", 12), ("decide", 3)]))]),
        killed_at: counts(&[("copy:source:after-write", 4)]),
        slowest: vec![Recovery { seed: 4, took_ms: 9_500 }],
        ..Summary::default()
    }
}

/// Five seeds, of which one did not hold, with texts that try to be more than text.
fn broken() -> Summary {
    Summary {
        seeds: 5,
        clean: 4,
        first_seed: 11,
        first_failing_seed: Some(13),
        levels: vec!["full".into()],
        virtual_region_seconds: 100,
        cpu_seconds: 4.0,
        operations: 500,
        unanswered: 1,
        migrations: 50,
        ends: counts(&[("completed", 50)]),
        parked: counts(&[("<script>alert('parked')</script>", 1)]),
        faults_by_kind: counts(&[("kill-node", 1), ("<script>kind</script>", 1)]),
        invariants: vec![invariant(invariants::ONE_PLACE, 100, 2), invariant("of-another-version", 6, 0)],
        judges: BTreeMap::from([("ours".to_owned(), JudgeCount { checked: 10, violated: 0, not_checked: 6 })]),
        met: BTreeMap::from([("kill-node".to_owned(), counts(&[("copy", 8)]))]),
        killed_at: counts(&[("copy:source:after-write", 1), ("switch:target:before-write", 1)]),
        slowest: vec![Recovery { seed: 12, took_ms: 20_000 }],
        failures: vec![Failure {
            seed: 13,
            invariant: invariants::ONE_PLACE.into(),
            seen: "vm-1-1-1 at eu and us\n<script>alert(1)</script>".into(),
            replay: "novafed chaos replay --seed 13 --level full --regions 3..7 --faults 0,2".into(),
        }],
        ..Summary::default()
    }
}

fn save(directory: &Path, name: &str, summary: &Summary) {
    fs::write(directory.join(name), serde_json::to_vec(summary).unwrap()).unwrap();
}

/// What stands between a row's head and its end.
fn row<'a>(page: &'a str, head: &str) -> &'a str {
    let from = page.find(head).unwrap_or_else(|| panic!("the page has no row {head}"));
    page[from..].split("</tr>").next().unwrap()
}

#[test]
fn the_document_adds_up_and_can_be_added_up_again() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), "clean.json", &clean());
    save(dir.path(), "broken.json", &broken());
    let ran = report(dir.path(), &["clean.json", "broken.json", "--out", "made/here"]);
    assert_eq!(ran.code, 0, "a report of failures is a report: {}", ran.err);
    assert!(ran.err.contains("Something did not hold"), "{}", ran.err);
    assert_eq!(ran.out, "made/here/report.html\nmade/here/report.json\n");

    let document = fs::read(dir.path().join("made/here/report.json")).unwrap();
    let sum: Summary = serde_json::from_slice(&document).unwrap();
    let mut expected = clean();
    expected.add(&broken());
    assert_eq!(sum, expected);
    assert_eq!((sum.seeds, sum.clean, sum.first_seed, sum.first_failing_seed), (15, 14, 1, Some(13)));
    assert_eq!((sum.operations, sum.unanswered, sum.migrations), (2_000, 4, 250));
    assert_eq!(sum.invariants[0], invariant(invariants::ONE_PLACE, 1_000, 2));
    assert_eq!(sum.judges["ours"], JudgeCount { checked: 50, violated: 0, not_checked: 7 });
    assert_eq!(sum.met["kill-node"]["copy"], 20);
    assert_eq!(sum.slowest.iter().map(|recovery| recovery.seed).collect::<Vec<_>>(), [12, 4]);

    let again = report(dir.path(), &["made/here/report.json", "--out", "again"]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!(fs::read(dir.path().join("again/report.json")).unwrap(), document);
}

#[test]
fn the_page_has_every_invariant_fault_step_and_point() {
    let everywhere = Summary { levels: vec!["message".into(), "full".into()], ..clean() };
    let page = report::page(&everywhere);
    for (name, means) in invariants::ALL {
        assert!(row(&page, &format!("<code>{name}</code>")).contains(means), "{name}");
    }
    assert!(row(&page, "<code>no-double-run</code>").contains("✓ held"));
    assert!(row(&page, "<code>one-owner</code>").contains("○ never checked"));
    let heads = page.split("</thead>").find(|part| part.contains("rowspan")).expect("the picture of faults");
    let mut from = 0;
    for step in STEPS {
        let head = format!(">{}</th>", step.name);
        from += heads[from..].find(&head).unwrap_or_else(|| panic!("{} is not there, or not in order", step.name));
    }
    for kind in Kind::ALL {
        // Its head, how often it was injected, and a cell for each step.
        let row = row(&page, &format!("<th scope=\"row\">{}<", kind.name()));
        assert_eq!(row.matches("<td").count(), STEPS.len() + 1, "{row}");
    }
    let points = page.split("Where nodes died").nth(1).expect("the picture of points");
    let points = points.split("</section>").next().unwrap();
    let (cells, none) = (points.matches("<td").count(), points.matches("aria-label=\"no such point\"").count());
    assert_eq!((cells, cells - none), (STEPS.len() * 6, KillPoint::all().len()));
}

#[test]
fn what_was_never_hit_is_told_from_what_was() {
    let page = report::page(&clean());
    let kill = row(&page, "<th scope=\"row\">kill-node<");
    assert_eq!(kill.matches(">never</td>").count(), STEPS.len() - 2, "{kill}");
    assert!(kill.contains(">12</td>") && kill.contains(">3</td>"), "{kill}");
    let lossy = row(&page, "<th scope=\"row\">lossy<");
    assert!(lossy.contains(">7</td>") && lossy.matches(">never</td>").count() == STEPS.len(), "{lossy}");
    // It was not even injected, and at this level it never is.
    let mtu = row(&page, "<th scope=\"row\">small-mtu ");
    assert!(mtu.contains("only at level full") && mtu.contains("<td class=\"number warn\">never</td>"), "{mtu}");
    let all = Kind::ALL.len() * STEPS.len();
    assert!(page.contains(&format!("2 of {all} pairs met")));
    assert!(page.contains(&format!("{} of {all} pairs of a fault and a step never met", all - 2)));
    assert!(page.contains(&format!("1 of {} points", KillPoint::all().len())));
}

#[test]
fn what_did_not_hold_and_what_was_not_checked_stand_at_the_top() {
    let good = report::page(&clean());
    assert!(good.contains("<h1>Everything that was checked held</h1>"));
    assert!(!good.contains("What did not hold"));
    assert!(good.contains("1 judgement of a key was left out"), "what was not judged did not pass");

    let bad = report::page(&broken());
    let top = bad.split("</header>").next().unwrap();
    assert!(top.contains("<h1>Something did not hold</h1>"));
    assert!(top.contains("In 1 of 5 seeds at level full, something did not hold. The first was seed 13."), "{top}");
    assert!(top.contains("Violated: no-double-run."));
    assert!(bad.contains("<code>novafed chaos replay --seed 13 --level full --regions 3..7 --faults 0,2</code>"));
    assert!(row(&bad, "<code>no-double-run</code>").contains("✗ violated"));
    assert!(row(&bad, "<code>ours</code>").contains(">6</td>"));

    let nothing = report::page(&Summary::default());
    assert!(nothing.contains("<h1>Nothing was checked</h1>"), "nothing is no success");
    let unlooked = Summary { seeds: 3, clean: 3, ..Summary::default() };
    assert!(report::page(&unlooked).contains("<h1>Nothing was checked</h1>"));
}

#[test]
fn no_text_of_a_summary_becomes_more_than_text_and_nothing_is_fetched() {
    let page = report::page(&broken());
    assert!(!page.contains("<script"), "a text became a script");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("&lt;script&gt;alert(&#39;parked&#39;)&lt;/script&gt;"));
    assert!(page.contains("&lt;script&gt;kind&lt;/script&gt;"), "a kind that this version does not know is shown");
    assert!(page.contains("of-another-version"));
    for word in ["http://", "https://", "src=", "href=", "url(", "@import", "<link"] {
        assert!(!page.contains(word), "the page has {word}");
    }
    assert!(page.len() < 96 << 10, "{} bytes", page.len());
    for tag in ["table", "thead", "tbody", "tr", "td", "section", "div", "ul", "ol", "dl", "aside", "header"] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
}

#[test]
fn bad_input_is_named_with_what_to_do_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), "good.json", &clean());
    fs::write(dir.path().join("other.json"), "{\"vms\": []}").unwrap();
    fs::write(dir.path().join("half.json"), &serde_json::to_vec(&clean()).unwrap()[..100]).unwrap();
    fs::write(dir.path().join("empty.json"), "\n").unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["good.json", "missing.json"], &["missing.json", "No such file", "novafed chaos sim --json"]),
        (&["good.json", "other.json"], &["other.json is not a summary", "seeds", "novafed chaos sim --json"]),
        (&["good.json", "half.json"], &["half.json is not a summary", "novafed chaos sim --json"]),
        (&["good.json", "empty.json"], &["empty.json is not a summary", "it is empty"]),
        (&["good.json", "."], &["reading the summary .", "nothing was written"]),
        (&["good.json", "./good.json"], &["./good.json was given twice", "count double"]),
        (&[], &["SUMMARY.json"]),
    ];
    for (files, says) in cases {
        let ran = report(dir.path(), &[*files, &["--out", "out"]].concat());
        assert_eq!(ran.code, 2, "{files:?}: {}", ran.err);
        for word in *says {
            assert!(ran.err.contains(word), "{files:?} should say '{word}':\n{}", ran.err);
        }
        assert!(!dir.path().join("out").exists(), "{files:?} left something");
    }
    let ran = report(dir.path(), &["good.json", "--out", "good.json"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("writing good.json") && ran.err.contains("another --out"), "{}", ran.err);
}
