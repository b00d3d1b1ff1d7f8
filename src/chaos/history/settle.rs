//! Unknown outcomes that others' answers settle, so that a checker has less to try. Owns: the two rules below.
//! Always: the history that comes out is linearizable if and only if the one that went in is.
//! Not here: our own checker, which takes histories as they are, so that a mistake here shows as a disagreement.
//!
//! The value of an operation is *seen* by a read that returned it and by a cas from it, if they may come after it.
//! 1. An unknown operation whose value nobody sees is left out. Take an order that has it: left out of it, everything
//!    before the next write works as before, because no read or cas there needs its value, and then it is written over.
//! 2. An unknown operation whose value is put there by nobody else and was seen in an answer has happened, before that
//!    answer: it is given the same end. (An unknown cas that sees it may never have happened, and tells nothing.)
//!
//! What is left has a value that several put there; it stays open for ever.

use super::key::{Act, Op};

/// `ops` with as few unknown outcomes as the rules leave.
pub(super) fn settle(ops: &[Op]) -> Vec<Op> {
    let mut ops = ops.to_vec();
    // Each round that changes something leaves one unknown outcome less.
    while let Some((at, settled)) = ops.iter().enumerate().find_map(|(at, op)| Some((at, settled(&ops, op)?))) {
        match settled {
            Settled::Unseen => {
                ops.remove(at);
            }
            Settled::Before(answer) => ops[at].answered = Some(answer),
        }
    }
    ops
}

enum Settled {
    Unseen,
    Before(u64),
}

/// What the rules say of `op`, one of `ops`.
fn settled(ops: &[Op], op: &Op) -> Option<Settled> {
    let value = op.act.puts().filter(|_| op.answered.is_none())?;
    let seers = || {
        let others = ops.iter().filter(|other| other.process != op.process || other.invoked != op.invoked);
        others.filter(|other| other.act.needs() == Some(Some(value)) && other.answered.is_none_or(|at| at > op.invoked))
    };
    // A cas from a value to itself changes nothing, so whoever sees its value sees another's.
    let idle = matches!(op.act, Act::Swap { from, to } if from == to);
    if idle || seers().next().is_none() {
        return Some(Settled::Unseen);
    }
    let putters = ops.iter().filter(|other| other.act.puts() == Some(value)).count();
    let answer = seers().filter_map(|seer| seer.answered).min().filter(|_| putters == 1)?;
    Some(Settled::Before(answer))
}
