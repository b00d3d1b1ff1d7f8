//! The fault catalogue is what it says: complete, in step with the kinds of the simulation, with tests that exist, and
//! the same in the document. Prints how each row stands.
#![allow(clippy::print_stdout, reason = "the tables are what this is for")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use novafed::chaos::catalogue::{BESIDE, Family, PROMISES, ROWS, Stands, faults, promises};
use novafed::chaos::invariants;
use novafed::chaos::sim::faults::Kind;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names of functions that are tests.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders: Vec<PathBuf> = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of the project is readable") {
            let path = entry.expect("an entry of the project is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests_of(&fs::read_to_string(&path).expect("a source is text"), &mut names);
            }
        }
    }
    names
}

/// Of an attribute `#[test]`, `#[tokio::test]` or one with arguments, the function that comes next.
fn tests_of(text: &str, names: &mut BTreeSet<String>) {
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
            names.extend(rest.split('(').next().map(str::to_owned));
            marked = false;
        }
    }
}

/// How all rows and invariants stand.
fn all() -> Vec<(String, &'static str, Vec<Stands>)> {
    let rows = ROWS.iter().map(|row| (row.number.to_string(), row.name, row.stands()));
    let promises = PROMISES.iter().map(|promise| (format!("I{}", promise.number), promise.says, promise.stands()));
    rows.chain(promises).collect()
}

#[test]
fn every_row_is_there_once_in_order_and_stands_somehow() {
    for (number, words, stands) in all() {
        let how: Vec<String> = stands.iter().map(ToString::to_string).collect();
        println!("{number:>4}  {words}: {}", how.join("; "));
        assert!(!stands.is_empty(), "{number} {words}: nobody says how it stands");
    }
    assert!(ROWS.iter().map(|row| row.number).eq(1..=64), "rows are 1 to 64, in order");
    assert!(PROMISES.iter().map(|promise| promise.number).eq(1..=16), "invariants are 1 to 16, in order");
    let names: BTreeSet<&str> = all().iter().map(|(_, words, _)| *words).collect();
    assert_eq!(names.len(), ROWS.len() + PROMISES.len(), "two have one name");
}

#[test]
fn every_kind_is_a_row_and_every_row_of_a_kind_is_simulated() {
    for kind in Kind::ALL {
        assert!(!kind.rows().is_empty(), "{} is no row", kind.name());
        for number in kind.rows() {
            let row = ROWS.iter().find(|row| row.number == *number).expect("a row of a kind is one of the catalogue");
            let simulated = row.stands().into_iter().any(|stands| match stands {
                Stands::Simulated(kinds) => kinds.contains(&kind),
                _ => false,
            });
            assert!(simulated, "{} is row {number}, which does not say so", kind.name());
        }
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let tests = tests();
    assert!(tests.len() > 300, "only {} tests were found", tests.len());
    for (number, _, stands) in all() {
        for way in stands {
            if let Stands::Processes(named) | Stands::Unit(named) = way {
                for test in named {
                    assert!(tests.contains(*test), "{number} names the test '{test}', which is not there");
                }
            }
        }
    }
}

#[test]
fn what_is_checked_is_named_as_runs_name_it_and_nothing_that_runs_check_is_left_out() {
    let mut named: BTreeSet<&str> = BESIDE.iter().copied().collect();
    for way in PROMISES.iter().flat_map(|promise| promise.stands()) {
        if let Stands::Checked(names) = way {
            named.extend(names);
        }
    }
    let known: BTreeSet<&str> = invariants::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, known);
}

/// Of what a region has by itself, only what several regions decide together has to wait.
#[test]
fn processes_storage_network_and_time_wait_for_nothing_but_consensus() {
    for row in ROWS.iter().filter(|row| row.number <= 41) {
        let stands = row.stands();
        let waits = stands.iter().find_map(|way| match way {
            Stands::Pending { waits_for } => Some(*waits_for),
            _ => None,
        });
        if let Some(waits_for) = waits {
            assert!(waits_for.starts_with("consensus"), "row {} waits for {waits_for}", row.number);
            assert!(stands.len() > 1 || row.number == 5, "row {} waits for {waits_for} as a whole", row.number);
        }
    }
}

#[test]
fn the_document_has_the_same_rows() {
    let page = fs::read_to_string(root().join("docs/chaos.md")).expect("docs/chaos.md");
    let section = page.split("\n## ").find(|part| part.starts_with("The catalogue\n")).expect("## The catalogue");
    let written: Vec<&str> = section.lines().filter(|line| line.starts_with('|')).collect();
    let tables: Vec<String> = Family::ALL.into_iter().map(faults).chain([promises()]).collect();
    let expected: Vec<&str> = tables.iter().flat_map(|table| table.lines()).collect();
    if written != expected {
        for table in &tables {
            println!("{table}");
        }
        panic!("docs/chaos.md has other rows than src/chaos/catalogue.rs; the right ones are printed above");
    }
    for family in Family::ALL {
        assert!(section.contains(&format!("\n### {}\n", family.name())), "{} has no heading", family.name());
    }
}
