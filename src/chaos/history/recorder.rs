//! Writing a history down while it happens. Owns: the numbers of events and processes, the rules that each event keeps.
//! Always: what one handle recorded is before what any handle records next, so record a call before it is sent and its
//! answer after it came. Recording never waits for anything but another record.
//! Not here: the clock; calls take the time from whoever makes them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Answer, Call, Event, History, Misuse, Phase, Process};

/// Where the clients of a run write down what they ask and are told. Clones write into the same history.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Arc<Mutex<Log>>);

/// A call that waits for its answer. It cannot be copied, so none is answered twice; dropped, its outcome is unknown.
#[derive(Debug)]
#[must_use = "a call whose answer is never recorded has an unknown outcome"]
pub struct OpId {
    process: Process,
    key: String,
    call: Call,
}

impl Recorder {
    /// An empty history.
    pub fn new() -> Recorder {
        Recorder::default()
    }

    /// A process that nobody else is: for each client at its start, and again after each unknown outcome.
    pub fn process(&self) -> Process {
        self.with(Log::process)
    }

    /// `process` is about to ask `call` of the register `key`. To be called before anything is sent.
    ///
    /// # Panics
    /// If `process` has a call open or had one with an unknown outcome: [`Misuse`] says so.
    pub fn invoke(&self, process: Process, key: &str, call: Call, at_ms: u64) -> OpId {
        let key = key.to_owned();
        self.push(process, key.clone(), call, Phase::Asked, at_ms);
        OpId { process, key, call }
    }

    /// `op` was answered. After [`Answer::Unknown`] its process is retired: take a new one.
    ///
    /// # Panics
    /// If `answer` is none that its call can have, or `op` is of another recorder: [`Misuse`] says so.
    pub fn done(&self, op: OpId, answer: Answer, at_ms: u64) {
        self.push(op.process, op.key, op.call, Phase::Answered(answer), at_ms);
    }

    /// What was recorded so far.
    pub fn history(&self) -> History {
        self.with(|log| log.history.clone())
    }

    fn push(&self, process: Process, key: String, call: Call, phase: Phase, time_ms: u64) {
        let pushed = self.with(|log| {
            let index = log.history.events.last().map_or(0, |event| event.index + 1);
            log.push(Event { index, time_ms, process, key, call, phase })
        });
        // Outside of the lock, so that one client's mistake is not everybody's.
        pushed.unwrap_or_else(|misuse| panic!("recording a history: {misuse}"));
    }

    fn with<T>(&self, f: impl FnOnce(&mut Log) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A history that grows, with what is needed to refuse an event that breaks its rules.
#[derive(Debug, Default)]
pub(super) struct Log {
    history: History,
    open: BTreeMap<Process, (String, Call)>,
    retired: BTreeSet<Process>,
    processes: u64,
}

impl Log {
    fn process(&mut self) -> Process {
        self.processes += 1;
        Process(self.processes - 1)
    }

    /// Takes the next event. A time before its predecessor's becomes that: clients read the clock before they get here.
    pub(super) fn push(&mut self, mut event: Event) -> Result<(), Misuse> {
        if let Some(last) = self.history.events.last() {
            if event.index <= last.index {
                return Err(Misuse::Order { after: last.index, index: event.index });
            }
            event.time_ms = event.time_ms.max(last.time_ms);
        }
        match event.phase {
            Phase::Asked => self.asked(&event)?,
            Phase::Answered(answer) => self.answered(&event, answer)?,
        }
        self.history.events.push(event);
        Ok(())
    }

    pub(super) fn into_history(self) -> History {
        self.history
    }

    /// What the open call of `process` asks.
    pub(super) fn open(&self, process: Process) -> Option<&(String, Call)> {
        self.open.get(&process)
    }

    fn asked(&mut self, event: &Event) -> Result<(), Misuse> {
        if self.retired.contains(&event.process) {
            return Err(Misuse::Retired(event.process));
        }
        if self.open.contains_key(&event.process) {
            return Err(Misuse::Busy(event.process));
        }
        self.open.insert(event.process, (event.key.clone(), event.call));
        Ok(())
    }

    fn answered(&mut self, event: &Event, answer: Answer) -> Result<(), Misuse> {
        let fits = match answer {
            Answer::Value(_) => event.call == Call::Read,
            Answer::Done => event.call != Call::Read,
            Answer::Failed | Answer::Unknown => true,
        };
        if !fits {
            return Err(Misuse::WrongAnswer { call: event.call, answer });
        }
        let open = self.open.get(&event.process);
        if !open.is_some_and(|(key, call)| *key == event.key && *call == event.call) {
            return Err(Misuse::NotOpen(event.process));
        }
        self.open.remove(&event.process);
        if answer == Answer::Unknown {
            self.retired.insert(event.process);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "go on as a new process")]
    fn nobody_asks_after_an_unknown_outcome() {
        let recorder = Recorder::new();
        let process = recorder.process();
        let op = recorder.invoke(process, "k", Call::Write(1), 0);
        recorder.done(op, Answer::Unknown, 5);
        let _refused = recorder.invoke(process, "k", Call::Read, 6);
    }

    #[test]
    #[should_panic(expected = "one call at a time")]
    fn nobody_asks_while_a_call_is_open() {
        let recorder = Recorder::new();
        let process = recorder.process();
        let _open = recorder.invoke(process, "k", Call::Write(1), 0);
        let _refused = recorder.invoke(process, "k", Call::Read, 1);
    }

    #[test]
    #[should_panic(expected = "does not answer 'read'")]
    fn a_read_is_answered_with_a_value() {
        let recorder = Recorder::new();
        let op = recorder.invoke(recorder.process(), "k", Call::Read, 0);
        recorder.done(op, Answer::Done, 1);
    }

    #[test]
    fn one_clients_mistake_is_not_everybodys_and_leaves_nothing_behind() {
        let recorder = Recorder::new();
        let (careless, careful) = (recorder.process(), recorder.process());
        let open = recorder.invoke(careless, "k", Call::Write(1), 0);
        let twice = recorder.clone();
        let mistake = std::thread::spawn(move || drop(twice.invoke(careless, "k", Call::Read, 1)));
        assert!(mistake.join().is_err());
        let read = recorder.invoke(careful, "k", Call::Read, 2);
        recorder.done(open, Answer::Done, 3);
        recorder.done(read, Answer::Value(None), 4);
        assert_eq!(recorder.history().events().len(), 4);
    }

    #[test]
    fn numbers_grow_and_time_never_goes_back() {
        let recorder = Recorder::new();
        let op = recorder.invoke(recorder.process(), "k", Call::Read, 10);
        recorder.done(op, Answer::Value(None), 7);
        let events = recorder.history().events().to_vec();
        assert_eq!(events.iter().map(|e| (e.index, e.time_ms)).collect::<Vec<_>>(), [(0, 10), (1, 10)]);
        assert_eq!(History::from_events(events.clone()).map(|h| h.events), Ok(events.clone()));
        let back = events.into_iter().rev();
        assert!(History::from_events(back).is_err());
    }
}
