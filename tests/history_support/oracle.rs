//! What is right, by trying everything. Owns: the brute force that checkers are measured against. Always: it remembers
//! nothing, skips nothing and shares no line with what it measures; so it takes small histories only.
//! Not here: speed.

use std::collections::BTreeMap;

use novafed::chaos::history::{Answer, Call, Event, History, Phase, Process};

#[derive(Debug, Clone)]
struct Asked {
    call: Call,
    answer: Answer,
    from: u64,
    to: u64,
}

/// Whether some order of all that was answered, with any of what was not, is one that a register could have performed.
/// Takes histories of one key.
pub fn could_be(history: &History) -> bool {
    let mut open: BTreeMap<Process, usize> = BTreeMap::new();
    let mut all: Vec<Asked> = Vec::new();
    for Event { index, process, call, phase, .. } in history.events() {
        match phase {
            Phase::Asked => {
                open.insert(*process, all.len());
                all.push(Asked { call: *call, answer: Answer::Unknown, from: *index, to: u64::MAX });
            }
            Phase::Answered(answer) => {
                let asked = &mut all[open[process]];
                asked.answer = *answer;
                if *answer != Answer::Unknown {
                    asked.to = *index;
                }
            }
        }
    }
    all.retain(|asked| asked.answer != Answer::Failed);
    assert!(all.len() <= 8, "{} operations are too many to try all orders", all.len());
    some_order(&all, None)
}

fn some_order(rest: &[Asked], register: Option<u64>) -> bool {
    if rest.iter().all(|asked| asked.answer == Answer::Unknown) {
        return true;
    }
    (0..rest.len()).any(|at| {
        let mut others = rest.to_vec();
        let next = others.remove(at);
        let in_time = others.iter().all(|other| other.to > next.from);
        in_time && effect(&next, register).is_some_and(|register| some_order(&others, register))
    })
}

/// What the register holds after `asked`, if it can answer so.
fn effect(asked: &Asked, register: Option<u64>) -> Option<Option<u64>> {
    match (asked.call, asked.answer) {
        (Call::Read, Answer::Value(seen)) => (seen == register).then_some(register),
        (Call::Read, _) => Some(register),
        (Call::Write(value), _) => Some(Some(value)),
        (Call::Cas { from, to }, _) => (register == Some(from)).then_some(Some(to)),
    }
}
