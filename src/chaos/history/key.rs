//! One register's part of a history, as checkers take it. Owns: what an operation does to a register.
//! Always: what surely had no effect is left out, because it explains nothing and needs no explanation; that is a
//! failed operation and a read without an answer. A history is linearizable if each key's part is, so parts are all
//! there is.
//! Not here: how an order is looked for.

use std::collections::BTreeMap;
use std::fmt;

use super::{Answer, Call, History, Phase, Process};

/// What the register holds; `None` is nothing.
pub(super) type Value = Option<u64>;

/// An operation as the register would have to perform it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// A read that was told this.
    Saw(Value),
    /// A write.
    Set(u64),
    /// A cas that found `from`.
    Swap { from: u64, to: u64 },
}

impl Act {
    /// What the register holds afterwards, or `None` if this cannot happen while it holds `value`.
    pub(super) fn on(self, value: Value) -> Option<Value> {
        match self {
            Act::Saw(_) | Act::Swap { .. } if self.needs() != Some(value) => None,
            Act::Saw(seen) => Some(seen),
            Act::Set(to) | Act::Swap { to, .. } => Some(Some(to)),
        }
    }

    /// What the register must hold for this to happen, if that matters.
    pub(super) fn needs(self) -> Option<Value> {
        match self {
            Act::Saw(seen) => Some(seen),
            Act::Set(_) => None,
            Act::Swap { from, .. } => Some(Some(from)),
        }
    }

    /// What it puts there, if it changes anything.
    pub(super) fn puts(self) -> Option<u64> {
        match self {
            Act::Saw(_) => None,
            Act::Set(to) | Act::Swap { to, .. } => Some(to),
        }
    }
}

/// One operation; times are indices of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) process: Process,
    pub(super) act: Act,
    pub(super) invoked: u64,
    /// `None`: the outcome is unknown, so it may happen at any time from its call on, or never.
    pub(super) answered: Option<u64>,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.process)?;
        match self.act {
            Act::Saw(value) => write!(f, "read {}", Shown(value)),
            Act::Set(value) => write!(f, "wrote {value}"),
            Act::Swap { from, to } => write!(f, "changed {from} to {to}"),
        }?;
        match self.answered {
            Some(answered) => write!(f, " (events {} to {answered})", self.invoked),
            None => write!(f, " (event {}, outcome unknown)", self.invoked),
        }
    }
}

/// A value for people.
pub(super) struct Shown(pub(super) Value);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value}"),
            None => f.write_str("nothing"),
        }
    }
}

/// The operations on one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// Those that count, in the order of their calls.
    pub(super) ops: Vec<Op>,
    /// How many were asked, with those that do not count.
    pub(super) asked: usize,
}

impl Part {
    /// The most operations with a known answer that were open at one time.
    pub(super) fn open_max(&self) -> usize {
        let (mut open, mut most) = (0_usize, 0_usize);
        for (_, edge, _) in edges(self.ops.iter().filter(|op| op.answered.is_some())) {
            match edge {
                Edge::Call => open += 1,
                Edge::Answer => open -= 1,
            }
            most = most.max(open);
        }
        most
    }
}

/// One end of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Edge {
    Call,
    Answer,
}

/// Calls and answers of `ops` in the order in which they happened.
pub(super) fn edges<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Vec<(u64, Edge, &'a Op)> {
    let mut edges = Vec::new();
    for op in ops {
        edges.push((op.invoked, Edge::Call, op));
        edges.extend(op.answered.map(|answered| (answered, Edge::Answer, op)));
    }
    edges.sort_by_key(|(at, edge, _)| (*at, *edge));
    edges
}

/// Each key's part of `history`.
pub(super) fn parts(history: &History) -> BTreeMap<&str, Part> {
    let mut parts: BTreeMap<&str, Part> = BTreeMap::new();
    let mut answers: BTreeMap<Process, (u64, Answer)> = BTreeMap::new();
    // Backwards, so that the answer of a call is known when the call comes: it is the last one seen of its process.
    for event in history.events().iter().rev() {
        match event.phase {
            Phase::Answered(answer) => {
                answers.insert(event.process, (event.index, answer));
            }
            Phase::Asked => {
                let part = parts.entry(&event.key).or_default();
                part.asked += 1;
                let answer = answers.remove(&event.process);
                part.ops.extend(act(event.call, answer.map(|(_, answer)| answer)).map(|act| Op {
                    process: event.process,
                    act,
                    invoked: event.index,
                    answered: answer.filter(|(_, answer)| *answer != Answer::Unknown).map(|(at, _)| at),
                }));
            }
        }
    }
    parts.values_mut().for_each(|part| part.ops.reverse());
    parts
}

/// What the register has to perform, if anything.
fn act(call: Call, answer: Option<Answer>) -> Option<Act> {
    match (call, answer) {
        (_, Some(Answer::Failed)) | (Call::Read, None | Some(Answer::Unknown | Answer::Done)) => None,
        (Call::Read, Some(Answer::Value(seen))) => Some(Act::Saw(seen)),
        (Call::Write(value), None | Some(Answer::Value(_) | Answer::Done | Answer::Unknown)) => Some(Act::Set(value)),
        (Call::Cas { from, to }, None | Some(Answer::Value(_) | Answer::Done | Answer::Unknown)) => {
            Some(Act::Swap { from, to })
        }
    }
}
