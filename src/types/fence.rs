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
    /// An earlier one, or another life with the same counter: a stale copy of a store, refuse it.
    Stale,
}

impl Incarnation {
    /// Judges `presented` by what is `known` so far.
    pub fn judge(known: Option<Incarnation>, presented: Incarnation) -> IncarnationVerdict {
        match known {
            Some(k) if presented.counter < k.counter => IncarnationVerdict::Stale,
            Some(k) if presented.counter == k.counter && presented.nonce != k.nonce => IncarnationVerdict::Stale,
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
        let judge = |counter, nonce| Incarnation::judge(known, Incarnation { counter, nonce });
        assert_eq!(judge(5, 1), IncarnationVerdict::Accept);
        assert_eq!(judge(6, 9), IncarnationVerdict::Accept);
        assert_eq!(judge(5, 2), IncarnationVerdict::Stale);
        assert_eq!(judge(4, 1), IncarnationVerdict::Stale);
    }

    #[test]
    fn a_move_always_raises_the_fence() {
        let f = Fence { epoch: 3, generation: 9 };
        assert!(f.after_move(true) > f);
        assert!(f.after_move(false) > f);
    }
}
