//! Fencing (laws 6.1 and 8.3). Owns: what is newer than what.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Fence of a VM: the epoch changes when another region owns it, the generation when its owner says so.
/// Ordered: every host persists the highest one it has seen per VM and refuses lower ones.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct Fence {
    /// Counts transfers between regions.
    pub epoch: u64,
    /// Counts what its owner changed inside its region.
    pub generation: u64,
}

impl Fence {
    /// The fence of a VM at its creation.
    pub const FIRST: Fence = Fence { epoch: 1, generation: 1 };

    /// The fence after a move: to another region a new epoch, inside one a new generation.
    pub fn after_move(self, between_regions: bool) -> Fence {
        if between_regions {
            Fence { epoch: self.epoch + 1, generation: 1 }
        } else {
            Fence { epoch: self.epoch, generation: self.generation + 1 }
        }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// Number of an attempt to move a VM; counted per VM over all jobs and regions, and travels with the VM.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The attempt after this one.
    pub fn next(self) -> Attempt {
        Attempt(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Incarnation of a store, taken anew at each opening. Ordered by the counter; two with the same counter
/// and another nonce are two lives of one store (a copied file), of which a receiver knows only the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Counts openings of the store.
    pub counter: u64,
    /// Random, from the shell.
    pub nonce: u64,
}

/// What a host or peer that remembers an incarnation says of one that presents itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncarnationVerdict {
    /// The one that is known, or a later one: remember it.
    Accept,
    /// An earlier one, or one that does not descend from what is known: a stale copy of a store, refuse it.
    Stale,
    /// What is known can't be read or written now: refuse it for now.
    NotNow,
}

/// Lives of a store that it can still name. So many fit into the hello of a link.
pub const LIVES_NAMED_MAX: usize = 48;

/// A life of a store with those before it. A counter alone proves nothing: an older copy of a store that is started
/// often enough counts past the true one. That it *descends* from the life that somebody knows is what counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lineage {
    /// This life.
    pub now: Incarnation,
    /// Nonces of the lives before it, the one just before it first, at most [`LIVES_NAMED_MAX`].
    pub before: Vec<u64>,
}

impl From<Incarnation> for Lineage {
    /// A life that names none before it.
    fn from(now: Incarnation) -> Lineage {
        Lineage { now, before: Vec::new() }
    }
}

impl Lineage {
    /// The life after `before`, or the first one.
    pub fn after(before: Option<Lineage>, nonce: u64) -> Lineage {
        let Some(Lineage { now: last, before: mut nonces }) = before else {
            return Incarnation { counter: 1, nonce }.into();
        };
        nonces.insert(0, last.nonce);
        nonces.truncate(LIVES_NAMED_MAX);
        Lineage { now: Incarnation { counter: last.counter + 1, nonce }, before: nonces }
    }

    /// Whether this is `life`, or names it among those before it.
    pub fn names(&self, life: Incarnation) -> bool {
        match self.now.counter.checked_sub(life.counter) {
            None => false,
            Some(0) => self.now == life,
            Some(ago) => usize::try_from(ago - 1).ok().and_then(|at| self.before.get(at)) == Some(&life.nonce),
        }
    }

    /// Whether `other`, which is not to be accepted after this, surely has a life of its own: no earlier one of this
    /// store, but one of a copy.
    pub fn parts_from(&self, other: &Lineage) -> bool {
        match self.now.counter.checked_sub(other.now.counter) {
            // As late as this or later, and refused.
            None | Some(0) => true,
            Some(ago) => {
                let named = usize::try_from(ago - 1).ok().and_then(|at| self.before.get(at));
                named.is_some_and(|nonce| *nonce != other.now.nonce)
            }
        }
    }

    /// Judges who presents this by the life that is `known` so far. Of a life that is too long ago to be named only
    /// the counter speaks.
    pub fn judge(&self, known: Option<Incarnation>) -> IncarnationVerdict {
        let Some(known) = known else { return IncarnationVerdict::Accept };
        let named = match self.now.counter.checked_sub(known.counter) {
            None => return IncarnationVerdict::Stale,
            Some(0) => Some(&self.now.nonce),
            Some(ago) => usize::try_from(ago - 1).ok().and_then(|at| self.before.get(at)),
        };
        match named {
            Some(nonce) if *nonce != known.nonce => IncarnationVerdict::Stale,
            Some(_) | None => IncarnationVerdict::Accept,
        }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_life_with_the_same_counter_is_stale() {
        let known = Some(Incarnation { counter: 5, nonce: 1 });
        let judge = |counter, nonce| Lineage::from(Incarnation { counter, nonce }).judge(known);
        assert_eq!(judge(5, 1), IncarnationVerdict::Accept);
        assert_eq!(judge(6, 9), IncarnationVerdict::Accept);
        assert_eq!(judge(5, 2), IncarnationVerdict::Stale);
        assert_eq!(judge(4, 1), IncarnationVerdict::Stale);
    }

    #[test]
    fn an_older_copy_is_stale_however_often_it_is_started() {
        let life = |before: &Lineage, nonce| Lineage::after(Some(before.clone()), nonce);
        let copied = life(&Lineage::after(None, 1), 2);
        let known = life(&life(&copied, 3), 4).now;
        let mut copy = copied.clone();
        for start in 0..LIVES_NAMED_MAX as u64 {
            copy = life(&copy, 100 + start);
            assert_eq!(copy.judge(Some(known)), IncarnationVerdict::Stale, "start {start}");
        }
        // Whoever refused it knows it again by what it was then, also when it counts too far to name what they share.
        let refused = copy.now;
        for start in 0..LIVES_NAMED_MAX as u64 {
            copy = life(&copy, 300 + start);
            assert!(copy.names(refused), "start {start}");
        }
        assert_eq!(copy.judge(Some(known)), IncarnationVerdict::Accept, "the counter alone says nothing");
        // The true one goes on from where it was, also for who missed some of its lives.
        let mut truth = life(&life(&copied, 3), 4);
        for start in 0..3 * LIVES_NAMED_MAX as u64 {
            truth = life(&truth, 200 + start);
            for seen in [known, copied.now] {
                assert_eq!(truth.judge(Some(seen)), IncarnationVerdict::Accept, "start {start}");
            }
            assert!(truth.before.len() <= LIVES_NAMED_MAX && !truth.names(refused));
        }
    }

    #[test]
    fn a_move_always_raises_the_fence() {
        let f = Fence { epoch: 3, generation: 9 };
        assert!(f.after_move(true) > f);
        assert!(f.after_move(false) > f);
    }
}
