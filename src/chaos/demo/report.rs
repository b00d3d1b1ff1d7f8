//! What the demo says at its end. Owns: the JSON document and the closing table, two faces of one value.
//! Always: `ok` follows from the rest, nothing sets it.
//! Not here: how it came to be (`scenario.rs`), the lines before it (`stage.rs`).

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::chaos::invariants::Invariant;
use crate::types::JobId;
use crate::types::units::human_bytes;

/// Which side's node was killed during a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Killed {
    /// The node of the region that has the VM.
    Source,
    /// The node of the region that receives it.
    Target,
}

/// One move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveReport {
    /// The job.
    pub id: JobId,
    /// Name of the VM.
    pub vm: String,
    /// Where it was, `region/cluster`.
    pub from: String,
    /// Where it went.
    pub to: String,
    /// How the job ended; the last state seen if it did not.
    pub result: String,
    /// Whose node was killed on the way.
    pub killed: Option<Killed>,
    /// What the target had, by the survivor's record, when the job went on; 0 without a kill.
    pub resumed_from_bytes: u64,
    /// What the survivor had on record once its peer was dead; 0 without a kill.
    pub acknowledged_at_kill: u64,
    /// Payload of the first round.
    pub bytes_total: u64,
    /// Payload of pages and blocks in a version that the target had stored already.
    pub bytes_sent_twice: u64,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// From the last tick at the source to the first at the target, by the guest's own console.
    pub downtime_ms: f64,
    /// What the plan had estimated.
    pub estimated_downtime_ms: f64,
}

/// The whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Everything held.
    pub ok: bool,
    /// The regions.
    pub regions: Vec<String>,
    /// The moves, in order.
    pub migrations: Vec<MoveReport>,
    /// What was checked.
    pub invariants: Vec<Invariant>,
    /// How long the run took.
    pub seconds: f64,
    /// Why it did not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// Of a run that did not come to its end.
    pub fn failed(regions: Vec<String>, error: String, seconds: f64) -> Report {
        Report { ok: false, regions, migrations: vec![], invariants: vec![], seconds, error: Some(error) }
    }

    /// Puts it together: `ok` if `expected` moves completed and each invariant was checked and held.
    pub fn of(
        regions: Vec<String>,
        migrations: Vec<MoveReport>,
        expected: usize,
        invariants: Vec<Invariant>,
        seconds: f64,
    ) -> Report {
        let moved = migrations.len() == expected && migrations.iter().all(|m| m.result == "completed");
        let ok = moved && !invariants.is_empty() && invariants.iter().all(Invariant::held);
        Report { ok, regions, migrations, invariants, seconds, error: None }
    }

    /// The closing tables, for people.
    pub fn tables(&self) -> String {
        let mut moves = table(&[
            "move",
            "job",
            "killed",
            "result",
            "first round",
            "resumed at",
            "sent twice",
            "rounds",
            "downtime",
            "estimated",
        ]);
        for m in &self.migrations {
            let killed = match m.killed {
                None => "-".to_owned(),
                Some(Killed::Source) => format!("source at {}", human_bytes(m.acknowledged_at_kill)),
                Some(Killed::Target) => format!("target at {}", human_bytes(m.acknowledged_at_kill)),
            };
            let resumed = if m.killed.is_some() { human_bytes(m.resumed_from_bytes) } else { "-".to_owned() };
            moves.add_row(vec![
                Cell::new(format!("{} > {}", m.from, m.to)),
                Cell::new(m.id),
                Cell::new(killed),
                Cell::new(&m.result),
                right(human_bytes(m.bytes_total)),
                right(resumed),
                right(human_bytes(m.bytes_sent_twice)),
                right(m.rounds.to_string()),
                right(format!("{:.0} ms", m.downtime_ms)),
                right(format!("{:.0} ms", m.estimated_downtime_ms)),
            ]);
        }
        let mut checks = table(&["what must hold", "checked", "violated", ""]);
        for i in &self.invariants {
            let verdict = match (i.violated, i.checked) {
                (0, 0) => "never checked".to_owned(),
                (0, _) => "held".to_owned(),
                _ => i.examples.first().map_or_else(|| "violated".to_owned(), |e| format!("violated: {e}")),
            };
            let counts = [right(i.checked.to_string()), right(i.violated.to_string())];
            let [checked, violated] = counts;
            checks.add_row(vec![Cell::new(&i.name), checked, violated, Cell::new(verdict)]);
        }
        let verdict = if self.ok { "everything held" } else { "NOT everything held" };
        format!("{moves}\n\n{checks}\n\n{verdict}, {:.1} s\n", self.seconds)
    }
}

fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED).set_header(columns);
    table
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved() -> MoveReport {
        MoveReport {
            id: "job-1-1-1".parse().expect("an id"),
            vm: "atlas".into(),
            from: "eu/west".into(),
            to: "us/east".into(),
            result: "completed".into(),
            killed: Some(Killed::Source),
            resumed_from_bytes: 2,
            acknowledged_at_kill: 1,
            bytes_total: 3,
            bytes_sent_twice: 0,
            rounds: 4,
            downtime_ms: 31.5,
            estimated_downtime_ms: 20.0,
        }
    }

    fn checked(checked: u64, violated: u64) -> Invariant {
        Invariant { name: "no-double-run".into(), checked, violated, examples: Vec::new() }
    }

    #[test]
    fn the_document_has_the_promised_fields_and_no_others() {
        let report = Report::of(vec!["eu".into()], vec![moved()], 1, vec![checked(5, 0)], 1.5);
        let json = serde_json::to_value(&report).expect("JSON");
        let expected = serde_json::json!({
            "ok": true, "regions": ["eu"], "seconds": 1.5,
            "migrations": [{
                "id": "job-1-1-1", "vm": "atlas", "from": "eu/west", "to": "us/east", "result": "completed",
                "killed": "source", "resumedFromBytes": 2, "acknowledgedAtKill": 1, "bytesTotal": 3,
                "bytesSentTwice": 0, "rounds": 4, "downtimeMs": 31.5, "estimatedDowntimeMs": 20.0
            }],
            "invariants": [{"name": "no-double-run", "checked": 5, "violated": 0}]
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn what_was_not_checked_or_not_moved_is_not_ok() {
        let ok = |moves: Vec<MoveReport>, invariants| Report::of(Vec::new(), moves, 1, invariants, 0.0).ok;
        assert!(ok(vec![moved()], vec![checked(1, 0)]));
        assert!(!ok(vec![moved()], vec![checked(1, 1)]));
        assert!(!ok(vec![moved()], vec![checked(0, 0)]));
        assert!(!ok(vec![moved()], vec![]));
        assert!(!ok(vec![], vec![checked(1, 0)]));
        assert!(!ok(vec![MoveReport { result: "parked".into(), ..moved() }], vec![checked(1, 0)]));
    }
}
