//! The checker of `todc-utils`, which nobody here wrote: Wing, Gong and Lowe again, over the whole history of a key.
//! Owns: what it is fed. Always: it ends. It has no budget of its own, but asks our register before each step; once the
//! steps are spent the register agrees to nothing, so the search runs out of moves, and its 'no' is not believed.
//!
//! It panics on an operation without an answer. One that stays unknown after `settle` gets an answer behind all others,
//! and the register lets it happen also where it changes nothing: then 'never' is the same as 'after everything'.
//! Not here: the search.

use std::cell::Cell;
use std::marker::PhantomData;

use todc_utils::{Action, History, Specification, WGLChecker};

use super::judge::{Verdict, Why};
use super::key::{Edge, Op, Value, edges};

/// What its memory may take, which grows by one byte for each end of an operation at each step.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Judges the operations of one key within `steps_max` looks at the register.
pub(super) fn check(ops: &[Op], steps_max: u64) -> Verdict {
    if ops.is_empty() {
        // It takes no empty history.
        return Verdict::Linearizable;
    }
    let steps_max = steps_max.min(MEMORY_BYTES_MAX / (2 * ops.len() as u64));
    let meter = Meter::new(steps_max);
    let unknown = ops.iter().filter(|op| op.answered.is_none()).map(|op| (0, Edge::Answer, op));
    let ends = edges(ops).into_iter().chain(unknown);
    let actions = ends.map(|(_, edge, op)| {
        let step = Step { op, meter: &meter };
        // A process for each operation: to this checker they only say which answer belongs to which call.
        let process = ops.partition_point(|other| other.invoked < op.invoked);
        (process, if edge == Edge::Call { Action::Call(step) } else { Action::Response(step) })
    });
    let linearizable = WGLChecker::<Register>::is_linearizable(History::from_actions(actions.collect()));
    match (linearizable, meter.spent()) {
        (true, _) => Verdict::Linearizable,
        (false, true) => Verdict::NotChecked { why: Why::Budget { steps: steps_max } },
        (false, false) => {
            Verdict::Violation { explanation: format!("no order of the {} operations explains the answers", ops.len()) }
        }
    }
}

/// Steps that are left.
#[derive(Debug)]
pub(super) struct Meter {
    left: Cell<u64>,
    short: Cell<bool>,
}

impl Meter {
    pub(super) fn new(steps: u64) -> Meter {
        Meter { left: Cell::new(steps), short: Cell::new(false) }
    }

    /// Takes a step, if there is one.
    pub(super) fn step(&self) -> bool {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.short.set(true),
        }
        !self.short.get()
    }

    /// Whether a step was refused.
    pub(super) fn spent(&self) -> bool {
        self.short.get()
    }
}

/// An operation with the meter of the search that it is part of.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    op: &'a Op,
    meter: &'a Meter,
}

struct Register<'a>(PhantomData<&'a ()>);

impl<'a> Specification for Register<'a> {
    type State = Value;
    type Operation = Step<'a>;

    fn init() -> Value {
        None
    }

    fn apply(step: &Step<'a>, value: &Value) -> (bool, Value) {
        if !step.meter.step() {
            return (false, *value);
        }
        match step.op.act.on(*value) {
            Some(after) => (true, after),
            None => (step.op.answered.is_none(), *value),
        }
    }
}
