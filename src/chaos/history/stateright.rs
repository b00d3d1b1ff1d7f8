//! The checker of `stateright`, which nobody here wrote, window by window. Owns: windows, what each is fed, what is
//! carried from one to the next. Always: it ends; the register counts its steps, as for `todc`.
//! Not here: the search.
//!
//! It remembers nothing of what it tried, so it is given little at a time. A window reaches from one moment at which no
//! operation is open to the next. What an order leaves to the next window is then the value of the register and nothing
//! else. Whether a window can leave a value is asked by putting a read of it behind: is it still linearizable? The
//! history is so if there is a chain of values from window to window, and each link is asked for once. An operation
//! that stays unknown after `settle` is open for ever, so there is no such moment after its call: all that follows is
//! one window, and there it stays open, which this checker takes as it is.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::judge::{Verdict, Why};
use super::key::{Act, Edge, Op, Value, edges};
use super::todc::Meter;

/// Operations of a window. Its search calls itself once for each.
const WINDOW_OPS_MAX: usize = 50;

/// Operations of a window that stay open. When the steps are spent, what is answered can be refused, but these go on to
/// be placed in each order that there is: 5 of them in 326 ways at each depth.
const WINDOW_UNKNOWN_MAX: usize = 5;

/// Judges the operations of one key within `steps_max` looks at the register.
pub(super) fn check(ops: &[Op], steps_max: u64) -> Verdict {
    let windows = windows(ops);
    for window in &windows {
        let unknown = window.iter().filter(|op| op.answered.is_none()).count();
        if window.len() > WINDOW_OPS_MAX || unknown > WINDOW_UNKNOWN_MAX {
            return Verdict::NotChecked { why: Why::Window { ops: window.len(), unknown } };
        }
    }
    let meter = Meter::new(steps_max);
    let mut furthest = 0;
    let mut asked = BTreeSet::from([(0, None)]);
    let mut links = links(&windows, 0, None);
    while let Some(Link { number, from, to }) = links.pop() {
        furthest = furthest.max(number);
        let holds = linearizable(windows[number], from, to, &meter);
        if meter.spent() {
            return Verdict::NotChecked { why: Why::Budget { steps: steps_max } };
        }
        match to {
            None if holds => return Verdict::Linearizable,
            Some(value) if holds && asked.insert((number + 1, value)) => {
                links.extend(self::links(&windows, number + 1, value));
            }
            _ => {}
        }
    }
    windows
        .get(furthest)
        .map_or(Verdict::Linearizable, |window| Verdict::Violation { explanation: explanation(window) })
}

/// A question: may window `number` begin with `from` and leave `to`? `None` for the last one, which only has to work.
#[derive(Debug)]
struct Link {
    number: usize,
    from: Value,
    to: Option<Value>,
}

/// All questions about window `number`. It may leave what no other operation of it surely wrote over, or what was there
/// if it writes nothing. The likeliest comes last: what is needed first in the next window.
fn links(windows: &[&[Op]], number: usize, from: Value) -> Vec<Link> {
    let Some(window) = windows.get(number) else {
        return Vec::new();
    };
    let Some(next) = windows.get(number + 1) else {
        return vec![Link { number, from, to: None }];
    };
    let over = |op: &Op| window.iter().any(|by| by.act.puts().is_some() && Some(by.invoked) > op.answered);
    let puts = window.iter().filter(|op| op.act.puts().is_some() && !over(op)).map(|op| op.act.puts());
    let mut values: Vec<Value> = puts.collect::<BTreeSet<Value>>().into_iter().collect();
    if values.is_empty() {
        values.push(from);
    }
    let needed = |value: &Value| next.iter().position(|op| op.act.needs() == Some(*value)).unwrap_or(next.len());
    values.sort_by_key(|value| Reverse(needed(value)));
    values.into_iter().map(|value| Link { number, from, to: Some(value) }).collect()
}

/// The operations from one moment at which none is open to the next, in the order of their calls.
fn windows(ops: &[Op]) -> Vec<&[Op]> {
    let mut windows = Vec::new();
    let (mut begun, mut called, mut open) = (0, 0, 0_usize);
    for (_, edge, _) in edges(ops) {
        match edge {
            Edge::Call => {
                called += 1;
                open += 1;
            }
            Edge::Answer => open -= 1,
        }
        if open == 0 {
            windows.push(&ops[begun..called]);
            begun = called;
        }
    }
    windows.extend((begun < called).then(|| &ops[begun..]));
    windows
}

/// Whether `window` works from `value`, and leaves `end` if that is given.
fn linearizable(window: &[Op], value: Value, end: Option<Value>, meter: &Meter) -> bool {
    if meter.spent() {
        return false;
    }
    let mut tester = LinearizabilityTester::new(Register { value, meter });
    // A thread is whoever is free: what follows each other in time may as well be asked by one, and few are tried
    // faster.
    let mut threads: Vec<Option<u64>> = Vec::new();
    for (_, edge, op) in edges(window) {
        let wanted = (edge == Edge::Answer).then_some(op.invoked);
        let thread = threads.iter().position(|open| *open == wanted).unwrap_or(threads.len());
        if edge == Edge::Call {
            threads.resize(threads.len().max(thread + 1), None);
            threads[thread] = Some(op.invoked);
            tester.on_invoke(thread, op.act)
        } else {
            threads[thread] = None;
            tester.on_return(thread, ())
        }
        .expect("a thread is taken when it is free");
    }
    if let Some(end) = end {
        tester.on_invret(usize::MAX, Act::Saw(end), ()).expect("nobody else is this thread");
    }
    tester.is_consistent()
}

fn explanation(window: &[Op]) -> String {
    let (first, last) = window
        .iter()
        .fold((u64::MAX, 0), |(first, last), op| (first.min(op.invoked), last.max(op.answered.unwrap_or(op.invoked))));
    format!("no order of the {} operations of events {first} to {last} explains the answers", window.len())
}

#[derive(Debug, Clone)]
struct Register<'a> {
    value: Value,
    meter: &'a Meter,
}

impl SequentialSpec for Register<'_> {
    type Op = Act;
    /// What was answered is part of the act, so that it either fits or does not.
    type Ret = ();

    /// Asked for what stays open: it may happen also where it changes nothing.
    fn invoke(&mut self, act: &Act) {
        self.meter.step();
        self.value = act.on(self.value).unwrap_or(self.value);
    }

    fn is_valid_step(&mut self, act: &Act, (): &()) -> bool {
        let after = act.on(self.value).filter(|_| self.meter.step());
        self.value = after.unwrap_or(self.value);
        after.is_some()
    }
}
