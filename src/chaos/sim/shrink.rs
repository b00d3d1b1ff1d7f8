//! Taking faults away from a plan that fails. Owns: which of them are enough.
//! Always: what is left fails by the same invariant. Not here: a run (`run.rs`).

use super::plan::Plan;
use super::run;

/// Runs that are tried at most.
const TRIES_MAX: usize = 60;

/// The places of faults of `plan` without which it would not fail by `invariant`, as far as was tried: halves are left
/// out, then smaller parts (delta debugging, Zeller and Hildebrandt 2002).
pub fn shrink(plan: &Plan, invariant: &str) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..plan.faults.len()).collect();
    let mut tries = 0;
    let mut parts = 2;
    while !kept.is_empty() && tries < TRIES_MAX {
        let size = kept.len().div_ceil(parts);
        let mut without = None;
        for start in (0..kept.len()).step_by(size) {
            let rest: Vec<usize> = kept
                .iter()
                .enumerate()
                .filter(|(n, _)| !(start..start + size).contains(n))
                .map(|(_, at)| *at)
                .collect();
            tries += 1;
            let outcome = run::run(plan.keeping(|at| rest.contains(&at)), false);
            if outcome.violation().is_some_and(|(name, _)| name == invariant) {
                without = Some(rest);
                break;
            }
            if tries >= TRIES_MAX {
                break;
            }
        }
        match without {
            Some(rest) => {
                kept = rest;
                parts = 2.max(parts - 1);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    kept
}
