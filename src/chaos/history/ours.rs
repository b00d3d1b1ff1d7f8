//! Our checker: the search of Wing and Gong with the memory of Lowe. Owns: the search, and what it says when it fails.
//! Always: it counts steps and no time, so a verdict depends on the history and the budget alone. Three short cuts,
//! none of which loses an order that explains the history:
//! - a read that fits is placed at once: it changes nothing, so whatever works with it placed later works with it here;
//! - an operation with an unknown outcome is placed only where the very next one needs the value that it puts there:
//!   take an order with as few of them as possible, and one that nobody needs could be left out of it;
//! - of several such that do the same, the oldest is taken: once one of them may be placed, each may for ever.
//!
//! Not here: the other two checkers, which share nothing of this but what an operation does to a register.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::judge::{Verdict, Why};
use super::key::{Act, Op, Shown, Value};

/// Operations listed beside the one that could not be placed.
const LISTED_MAX: usize = 16;

/// Judges one key within `steps_max` operations placed.
pub(super) fn check(ops: &[Op], steps_max: u64) -> Verdict {
    match search(ops, steps_max) {
        End::Explained => Verdict::Linearizable,
        End::OutOfSteps => Verdict::NotChecked { why: Why::Budget { steps: steps_max } },
        End::Stuck { answered } => Verdict::Violation { explanation: explanation(ops, answered, steps_max) },
    }
}

/// How a search ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// An order was found.
    Explained,
    /// There is none: all that was answered before event `answered` can be explained, that answer cannot.
    Stuck { answered: u64 },
    /// Nobody knows.
    OutOfSteps,
}

fn search(ops: &[Op], steps_max: u64) -> End {
    let (sure, unsure): (Vec<Op>, Vec<Op>) = ops.iter().partition(|op| op.answered.is_some());
    let mut search = Search { sure, unsure, steps: 0 };
    let mut answered = 0;
    let mut seen = BTreeSet::new();
    let mut ahead = vec![State::default()];
    while let Some(mut state) = ahead.pop() {
        let Some(frontier) = search.place_reads(&mut state) else {
            return End::Explained;
        };
        if search.steps > steps_max {
            return End::OutOfSteps;
        }
        // All states are looked at before giving up, so the furthest is how far any order comes.
        answered = answered.max(frontier.deadline);
        if seen.insert(state.clone()) {
            search.moves(&state, &frontier, &mut ahead);
        }
    }
    End::Stuck { answered }
}

/// The first answer that no order explains, what could have been found instead, and what was under way at that time.
fn explanation(ops: &[Op], answered: u64, steps_max: u64) -> String {
    let mut until: Vec<Op> = ops.iter().filter(|op| op.invoked < answered).copied().collect();
    for op in &mut until {
        op.answered = op.answered.filter(|at| *at <= answered);
    }
    let (stuck, rest): (Vec<Op>, Vec<Op>) = until.into_iter().partition(|op| op.answered == Some(answered));
    let Some(stuck) = stuck.first() else {
        return format!("no order explains what was answered until event {answered}");
    };
    let candidates = candidates(&rest, stuck.invoked);
    // All of them together may cost what the verdict may.
    let steps_max = steps_max / candidates.len().max(1) as u64;
    let mut found: Vec<String> = Vec::new();
    for value in candidates {
        let instead = Op { act: Act::Saw(value), ..*stuck };
        let at = rest.partition_point(|op| op.invoked < instead.invoked);
        match search(&[&rest[..at], &[instead], &rest[at..]].concat(), steps_max) {
            End::Explained => found.push(Shown(value).to_string()),
            End::Stuck { .. } => {}
            End::OutOfSteps => found.push(format!("perhaps {}", Shown(value))),
        }
    }
    let mut text = format!("{stuck}, which no order explains: it could find {}", found.join(" or "));
    let beside = ops.iter().filter(|op| op.invoked < answered && op.invoked != stuck.invoked);
    let beside: Vec<&Op> = beside.filter(|op| op.answered.is_none_or(|at| at > stuck.invoked)).collect();
    for op in beside.iter().take(LISTED_MAX) {
        // Writing to a string does not fail.
        let _ = write!(text, "\n  under way: {op}");
    }
    if beside.len() > LISTED_MAX {
        let _ = write!(text, "\n  and {} more", beside.len() - LISTED_MAX);
    }
    text
}

/// What the register may hold at `at` or later as far as `ops` go: all that nobody surely wrote over before.
fn candidates(ops: &[Op], at: u64) -> BTreeSet<Value> {
    let puts: Vec<&Op> = ops.iter().filter(|op| op.act.puts().is_some()).collect();
    let over = |since: u64| puts.iter().any(|op| op.invoked > since && op.answered.is_some_and(|done| done < at));
    let left = puts.iter().filter(|op| op.answered.is_none_or(|done| !over(done))).map(|op| op.act.puts());
    let untouched = !puts.iter().any(|op| op.answered.is_some_and(|done| done < at));
    left.chain(untouched.then_some(None)).collect()
}

/// Where a search stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    /// Which of `sure` are placed.
    sure: Placed,
    /// Which of `unsure` are placed.
    unsure: Placed,
    /// What the register holds.
    value: Value,
    /// The last one placed is unsure, so that the next must need `value`.
    owed: bool,
}

/// A set of indices that starts out full: what lies before its first gap takes no room.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    full: usize,
    words: Vec<u64>,
}

impl Placed {
    fn holds(&self, index: usize) -> bool {
        match (index / 64).checked_sub(self.full) {
            None => true,
            Some(word) => self.words.get(word).is_some_and(|bits| bits >> (index % 64) & 1 == 1),
        }
    }

    fn insert(&mut self, index: usize) {
        let word = index / 64 - self.full;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (index % 64);
        let full = self.words.iter().take_while(|bits| **bits == u64::MAX).count();
        self.words.drain(..full);
        self.full += full;
    }

    /// The first index that may not be in it.
    fn gap(&self) -> usize {
        self.full * 64
    }
}

/// What may come next.
struct Frontier {
    /// Those of `sure` that may be placed: asked before any that is not placed was answered.
    next: Vec<usize>,
    /// When the first of those that are not placed was answered.
    deadline: u64,
}

struct Search {
    sure: Vec<Op>,
    unsure: Vec<Op>,
    steps: u64,
}

impl Search {
    /// Places each read that fits, and says what may come then; `None` if all is placed.
    fn place_reads(&mut self, state: &mut State) -> Option<Frontier> {
        loop {
            let frontier = self.frontier(state)?;
            let fits =
                |at: &&usize| self.sure[**at].act.puts().is_none() && self.sure[**at].act.on(state.value).is_some();
            let reads: Vec<usize> = frontier.next.iter().filter(fits).copied().collect();
            if reads.is_empty() {
                return Some(frontier);
            }
            self.steps += reads.len() as u64;
            reads.into_iter().for_each(|at| state.sure.insert(at));
            state.owed = false;
        }
    }

    fn frontier(&self, state: &State) -> Option<Frontier> {
        let mut deadline = None;
        let mut next = Vec::new();
        for (at, op) in self.sure.iter().enumerate().skip(state.sure.gap()) {
            // They stand in the order of their calls: what was asked after one of these answers waits, as does the
            // rest.
            if deadline.is_some_and(|deadline| op.invoked > deadline) {
                break;
            }
            if !state.sure.holds(at) {
                next.push(at);
                deadline = deadline.min(op.answered).or(op.answered);
            }
        }
        let deadline = deadline?;
        // What was answered first most likely happened first.
        next.sort_by_key(|at| self.sure[*at].answered);
        Some(Frontier { next, deadline })
    }

    /// Pushes what may follow `state`, in which no read fits; what is likeliest to lead on comes last, to be taken
    /// first.
    fn moves(&mut self, state: &State, frontier: &Frontier, ahead: &mut Vec<State>) {
        let may: Vec<usize> = (0..self.unsure.len())
            .filter(|at| !state.unsure.holds(*at) && self.unsure[*at].invoked < frontier.deadline)
            .collect();
        let needed = |value: Value| {
            let sure = frontier.next.iter().map(|at| &self.sure[*at]);
            sure.chain(may.iter().map(|at| &self.unsure[*at])).any(|op| op.act.needs() == Some(value))
        };
        let steps = ahead.len();
        for (place, at) in may.iter().enumerate() {
            let op = &self.unsure[*at];
            let older = may[..place].iter().any(|older| self.unsure[*older].act == op.act);
            if let Some(value) = after(op, state)
                && value != state.value
                && !older
                && needed(value)
            {
                let mut next = State { value, owed: true, ..state.clone() };
                next.unsure.insert(*at);
                ahead.push(next);
            }
        }
        for at in frontier.next.iter().rev() {
            if let Some(value) = after(&self.sure[*at], state) {
                let mut next = State { value, owed: false, ..state.clone() };
                next.sure.insert(*at);
                ahead.push(next);
            }
        }
        self.steps += (ahead.len() - steps) as u64;
    }
}

/// What the register holds after `op`, if it may come next.
fn after(op: &Op, state: &State) -> Option<Value> {
    if state.owed && op.act.needs().is_none() { None } else { op.act.on(state.value) }
}
