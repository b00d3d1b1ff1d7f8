//! The demo itself, with a smaller traveller: it holds, and its judge finds a planted double run.

use std::process::{Command, Output};

use serde_json::Value;

fn demo(more: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_novafed"))
        .args(["demo", "--json", "--memory-mib", "16", "--disk-mib", "16", "--dirty-mib-per-second", "1"])
        .args(more)
        .output()
        .unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, document)
}

fn violated(document: &Value, name: &str) -> (u64, u64) {
    let invariants = document["invariants"].as_array().unwrap();
    let found = invariants.iter().find(|i| i["name"] == name).unwrap();
    (found["checked"].as_u64().unwrap(), found["violated"].as_u64().unwrap())
}

#[test]
fn the_demo_moves_a_vm_three_times_while_nodes_die_and_everything_holds() {
    let (output, document) = demo(&[]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{document:#}");
    assert_eq!(document["ok"], true);
    let killed: Vec<_> = document["migrations"].as_array().unwrap().iter().map(|m| m["killed"].clone()).collect();
    assert_eq!(killed, [Value::Null, "source".into(), "target".into()]);
    for invariant in document["invariants"].as_array().unwrap() {
        assert!(invariant["checked"].as_u64() > Some(0), "{invariant} was never checked");
        assert_eq!(invariant["violated"], 0, "{invariant}");
    }
}

#[test]
fn a_planted_double_run_makes_the_demo_fail() {
    let (output, document) = demo(&["--plant", "double-run"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}\n{document:#}");
    assert_eq!(document["ok"], false);
    assert!(violated(&document, "no-double-run").1 > 0, "{told}\n{document:#}");
}
