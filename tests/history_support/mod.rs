//! What the tests of histories share. Owns: histories of a real register with clients that give up, and lies told about
//! them. Always: the same seed gives the same history. Not here: what is right (`oracle.rs`).
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod oracle;

use fastrand::Rng;
use novafed::chaos::history::{Answer, Call, Event, History, OpId, Phase, Process, Recorder};

/// How a history is made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Clients that ask at once.
    pub clients: usize,
    /// Operations, over all clients.
    pub ops: usize,
    /// Values that are written; 0: each value is written once.
    pub values: u64,
    /// Of a thousand calls, those whose outcome the client never learns.
    pub unknown_permille: u32,
    /// Of ten times that an idle client could ask, those at which it does: few make moments at which nothing is open.
    pub haste: u32,
}

struct Client {
    process: Process,
    waits: Option<UnderWay>,
}

/// A call on its way through the register.
struct UnderWay {
    op: OpId,
    call: Call,
    /// What it did, once it did.
    outcome: Option<Answer>,
    /// Its client does not wait for the answer.
    gives_up: bool,
}

/// What clients of one register saw: each call takes effect at one moment between its call and its answer, or, if the
/// client gave up, at any moment after its call, or never.
pub fn of_a_register(rng: &mut Rng, shape: Shape) -> History {
    let recorder = Recorder::new();
    let client = |_| Client { process: recorder.process(), waits: None };
    let mut clients: Vec<Client> = (0..shape.clients).map(client).collect();
    let mut late: Vec<Call> = Vec::new();
    let (mut register, mut asked, mut written, mut now) = (None, 0, 0, 0);
    while asked < shape.ops || clients.iter().any(|client| client.waits.is_some()) {
        now += rng.u64(0..3);
        if !late.is_empty() && rng.u32(0..10) == 0 {
            let call = late.swap_remove(rng.usize(0..late.len()));
            if rng.bool() {
                perform(call, &mut register);
            }
        }
        let at = rng.usize(0..clients.len());
        let client = &mut clients[at];
        match client.waits.take() {
            None if asked < shape.ops && rng.u32(0..10) < shape.haste => {
                asked += 1;
                let call = a_call(rng, shape.values, &mut written, register);
                let op = recorder.invoke(client.process, "k", call, now);
                let gives_up = rng.u32(0..1000) < shape.unknown_permille;
                client.waits = Some(UnderWay { op, call, outcome: None, gives_up });
            }
            None => {}
            Some(way) if way.outcome.is_none() && !(way.gives_up && rng.bool()) => {
                let refused = rng.u32(0..20) == 0;
                let outcome = if refused { Answer::Failed } else { perform(way.call, &mut register) };
                client.waits = Some(UnderWay { outcome: Some(outcome), ..way });
            }
            Some(UnderWay { op, outcome: Some(outcome), gives_up: false, .. }) => recorder.done(op, outcome, now),
            Some(UnderWay { op, call, outcome, .. }) => {
                late.extend(outcome.is_none().then_some(call));
                // Half of them go without a word of it.
                if rng.bool() {
                    recorder.done(op, Answer::Unknown, now);
                }
                client.process = recorder.process();
            }
        }
    }
    recorder.history()
}

/// What nobody saw: calls and answers that fit each other in kind only. Half of them, or so, could be.
pub fn made_up(rng: &mut Rng, shape: Shape) -> History {
    let recorder = Recorder::new();
    let mut open: Vec<(OpId, Call)> = Vec::new();
    let mut asked = 0;
    while asked < shape.ops {
        if open.len() < shape.clients && rng.u32(0..10) < shape.haste {
            asked += 1;
            let call = a_call(rng, shape.values, &mut 0, None);
            open.push((recorder.invoke(recorder.process(), "k", call, asked as u64), call));
        } else if !open.is_empty() {
            let (op, call) = open.swap_remove(rng.usize(0..open.len()));
            let answer = match call {
                _ if rng.u32(0..1000) < shape.unknown_permille => Answer::Unknown,
                Call::Read => Answer::Value(Some(rng.u64(0..=shape.values)).filter(|value| *value > 0)),
                Call::Write(_) | Call::Cas { .. } => Answer::Done,
            };
            recorder.done(op, answer, asked as u64);
        }
    }
    recorder.history()
}

fn a_call(rng: &mut Rng, values: u64, written: &mut u64, register: Option<u64>) -> Call {
    *written += 1;
    let value = if values == 0 { *written } else { rng.u64(1..=values) };
    let guess = if values == 0 { value } else { rng.u64(1..=values) };
    match rng.u32(0..10) {
        0..5 => Call::Read,
        5..8 => Call::Write(value),
        _ => Call::Cas { from: register.filter(|_| rng.u32(0..3) > 0).unwrap_or(guess), to: value },
    }
}

fn perform(call: Call, register: &mut Option<u64>) -> Answer {
    match call {
        Call::Read => Answer::Value(*register),
        Call::Write(value) => {
            *register = Some(value);
            Answer::Done
        }
        Call::Cas { from, to } if *register == Some(from) => {
            *register = Some(to);
            Answer::Done
        }
        Call::Cas { .. } => Answer::Failed,
    }
}

/// A way to tell a history wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// A read got another value.
    SwapValue,
    /// An answer was never heard. The one lie that stays true.
    DropAck,
    /// What failed, or nobody knows, was done: an acknowledged write that never came, a cas that found what was not
    /// there.
    FalseAck,
    /// A read was made at another time.
    MoveRead,
}

impl Lie {
    pub const ALL: [Lie; 4] = [Lie::SwapValue, Lie::DropAck, Lie::FalseAck, Lie::MoveRead];

    /// `history` told so; `None` if there is nothing in it to tell so.
    pub fn tell(self, rng: &mut Rng, history: &History, values: u64) -> Option<History> {
        let mut events = history.events().to_vec();
        let victims: Vec<usize> = (0..events.len()).filter(|at| self.is_about(&events[*at])).collect();
        let at = *rng.choice(&victims)?;
        match self {
            Lie::SwapValue => {
                let other = Some(rng.u64(0..=values)).filter(|value| *value > 0);
                events[at].phase = Phase::Answered(Answer::Value(other));
            }
            Lie::DropAck => {
                events.remove(at);
            }
            Lie::FalseAck => events[at].phase = Phase::Answered(Answer::Done),
            Lie::MoveRead => {
                let answer = events.remove(at);
                let asked = events[..at].iter().rposition(|event| event.process == answer.process)?;
                let call = events.remove(asked);
                let asked = rng.usize(0..=events.len());
                events.insert(asked, call);
                events.insert(rng.usize(asked + 1..=events.len()), answer);
            }
        }
        Some(retold(events))
    }

    fn is_about(self, event: &Event) -> bool {
        let answered = |of: fn(&Answer) -> bool| matches!(&event.phase, Phase::Answered(answer) if of(answer));
        match self {
            Lie::SwapValue | Lie::MoveRead => answered(|answer| matches!(answer, Answer::Value(_))),
            Lie::DropAck => answered(|answer| matches!(answer, Answer::Value(_) | Answer::Done)),
            Lie::FalseAck => {
                event.call != Call::Read && answered(|answer| matches!(answer, Answer::Failed | Answer::Unknown))
            }
        }
    }
}

/// The events with new numbers, and with a process for each operation, so that none is of one that is busy or retired.
fn retold(mut events: Vec<Event>) -> History {
    let mut open: Vec<(Process, Call, Process)> = Vec::new();
    for (at, event) in events.iter_mut().enumerate() {
        event.index = at as u64;
        event.time_ms = at as u64;
        let (said, new) = (event.process, Process(at as u64));
        event.process = match event.phase {
            Phase::Asked => {
                open.push((said, event.call, new));
                new
            }
            Phase::Answered(_) => {
                let of = |(process, call, _): &(Process, Call, Process)| *process == said && *call == event.call;
                open.remove(open.iter().rposition(of).expect("asked before")).2
            }
        };
    }
    History::from_events(events).expect("a process for each operation breaks no rule")
}
