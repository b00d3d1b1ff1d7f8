//! What clients of a register asked and were told, and whether one register could have answered so.
//! Owns: calls, answers, the history of a run and its rules. Always: events stand in the order in which they were
//! recorded, and that order is real time: what was answered before something else was asked came before it. A process
//! has at most one operation open, and asks nothing after one whose outcome is unknown.
//! Not here: the clients and their clock; what VMs did (`drivers/embedded/witness.rs`).
//!
//! The way through: clients write into a [`Recorder`]; its [`History`] is judged by [`judge`], key by key, by three
//! checkers of which two come from elsewhere; [`write_edn`] and [`write_porcupine`] hand it to anybody who trusts none
//! of them, and [`read_edn`] and [`judge_file`] take one back.

mod edn;
mod judge;
mod key;
mod ours;
mod porcupine;
mod recorder;
mod settle;
mod stateright;
mod todc;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use edn::{EdnError, Problem, read_edn, write_edn};
pub use judge::{
    Budget, Checker, Counts, Disagreement, FileError, Judgement, KeyJudgement, Verdict, Why, judge, judge_file,
};
pub use porcupine::write_porcupine;
pub use recorder::{OpId, Recorder};

/// Operations of one key that are judged; a key with more is not checked. Take a new key before.
pub const OPS_PER_KEY_MAX: usize = 1_000;

/// Clients that may have a call on one key open at once; a key with more is not checked. Calls whose outcome is unknown
/// do not count: their clients have gone on.
pub const CLIENTS_PER_KEY_MAX: usize = 8;

/// Who asks: one thread of calls, each after the answer of the one before. A client whose call has an unknown outcome
/// goes on as another process, because that call may still be under way beside the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process(pub u64);

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)
    }
}

/// What is asked of the register of a key. A register holds nothing until something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Call {
    /// What is there?
    Read,
    /// Put this there, whatever was there.
    Write(u64),
    /// Put `to` there if `from` is there.
    Cas {
        /// What must be there.
        from: u64,
        /// What is there afterwards.
        to: u64,
    },
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Read => f.write_str("read"),
            Call::Write(value) => write!(f, "write {value}"),
            Call::Cas { from, to } => write!(f, "cas {from} to {to}"),
        }
    }
}

/// What the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Answer {
    /// To a read: what is there, or that nothing is.
    Value(Option<u64>),
    /// To a write or cas: it took effect.
    Done,
    /// It surely had no effect, and never will. Why it failed is not judged: a refused cas says nothing of the value.
    Failed,
    /// Nobody knows: a timeout, a cut. It may take effect at any time from its call on, or never.
    Unknown,
}

/// What an event tells of its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// It was asked.
    Asked,
    /// It was answered.
    Answered(Answer),
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number, which only grows. Explanations name events by it.
    pub index: u64,
    /// When, in the milliseconds of whoever recorded. For people: order is that of the events.
    pub time_ms: u64,
    /// Whose operation.
    pub process: Process,
    /// On which register.
    pub key: String,
    /// What was asked.
    pub call: Call,
    /// Whether this is the call or its answer.
    pub phase: Phase,
}

/// Events that keep the rules above. An operation whose answer is missing counts as one with an unknown outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// Takes events as they are, if they keep the rules.
    ///
    /// # Errors
    /// [`Misuse`] for the first event that breaks one.
    pub fn from_events(events: impl IntoIterator<Item = Event>) -> Result<History, Misuse> {
        let mut log = recorder::Log::default();
        for event in events {
            log.push(event)?;
        }
        Ok(log.into_history())
    }

    /// All events, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

/// What no history may hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// A second call while one is open.
    #[error("{0} asks again while its last call is open: one call at a time, or another process")]
    Busy(Process),
    /// A call after an unknown outcome.
    #[error("{0} goes on after a call with an unknown outcome: it may still be under way, go on as a new process")]
    Retired(Process),
    /// An answer without its call.
    #[error("{0} is told something that answers no open call of it")]
    NotOpen(Process),
    /// A value for a write, a bare 'done' for a read.
    #[error("{answer:?} does not answer '{call}'")]
    WrongAnswer {
        /// What was asked.
        call: Call,
        /// What was told.
        answer: Answer,
    },
    /// The numbers of events go back or stand still.
    #[error("event {index} follows event {after}")]
    Order {
        /// The number before.
        after: u64,
        /// The number.
        index: u64,
    },
}
