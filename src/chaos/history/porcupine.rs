//! Histories as Porcupine takes them: an operation a line, as JSON. Owns: that format.
//! Always: two operations overlap there if and only if they do here. Not here: reading it back; EDN has all of it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::{Answer, Call, History, Phase, Process};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    client_id: Process,
    input: Input<'a>,
    output: Output,
    call: u64,
    r#return: u64,
}

#[derive(Serialize)]
struct Input<'a> {
    key: &'a str,
    #[serde(flatten)]
    op: Op,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase", tag = "op")]
enum Op {
    Read,
    Write { value: u64 },
    Cas { from: u64, to: u64 },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Output {
    Value { value: Option<u64> },
    Done { ok: bool },
    Unknown { unknown: bool },
}

/// Writes each operation as a line, in the order of their calls:
///
/// ```json
/// {"clientId":3,"input":{"key":"k","op":"cas","from":1,"to":2},"output":{"ok":true},"call":1203000000,
///  "return":1204000001}
/// ```
///
/// `op` is `read`, `write` with `value`, or `cas`; `output` is `{"value":v}` for a read (`null`: nothing there),
/// `{"ok":true}` for a write or cas that took effect, and `{"unknown":true}` where nobody knows: that one returns after
/// everything else, and a model lets it change the state or not. What surely had no effect is left out. Times are
/// nanoseconds and all different: what was recorded in one millisecond is counted up from it.
///
/// # Errors
/// What `to` says.
pub fn write_porcupine(history: &History, mut to: impl Write) -> io::Result<()> {
    let times = times(history);
    let end = times.last().map_or(0, |last| last.saturating_add(1));
    let mut answers: BTreeMap<Process, (u64, Answer)> = BTreeMap::new();
    let mut lines = Vec::new();
    for (event, time) in history.events().iter().zip(&times).rev() {
        match event.phase {
            Phase::Answered(answer) => {
                answers.insert(event.process, (*time, answer));
            }
            Phase::Asked => {
                let (returned, answer) = answers.remove(&event.process).unwrap_or((end, Answer::Unknown));
                let output = match answer {
                    Answer::Value(value) => Output::Value { value },
                    Answer::Done => Output::Done { ok: true },
                    Answer::Failed => continue,
                    Answer::Unknown => Output::Unknown { unknown: true },
                };
                let op = match event.call {
                    Call::Read => Op::Read,
                    Call::Write(value) => Op::Write { value },
                    Call::Cas { from, to } => Op::Cas { from, to },
                };
                let r#return = if answer == Answer::Unknown { end } else { returned };
                let input = Input { key: &event.key, op };
                lines.push(Line { client_id: event.process, input, output, call: *time, r#return });
            }
        }
    }
    for line in lines.iter().rev() {
        serde_json::to_writer(&mut to, line)?;
        to.write_all(b"\n")?;
    }
    Ok(())
}

/// A time for each event that is later than the one before.
fn times(history: &History) -> Vec<u64> {
    let mut times: Vec<u64> = Vec::new();
    for event in history.events() {
        let next = times.last().map_or(0, |last| last.saturating_add(1));
        times.push(event.time_ms.saturating_mul(1_000_000).max(next));
    }
    times
}
