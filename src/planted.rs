//! Planted bugs: what the simulator must find, so that its silence means something. Owns: which bug is in this build's
//! code paths, and how each is named.
//! Always: they exist in builds with the feature `planted` alone, which only `tests/planted_bugs.rs` asks for; in any
//! other [`is`] is `false` and the compiler removes it with all that stands behind it.
//! Not here: what each does (where it is asked for), who finds it (`chaos/`).

#[cfg(not(feature = "planted"))]
use crate::types::{RegionName, VmId, VmRecord};

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $bug:ident $name:literal;)*) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug { $($(#[doc = $doc])* $bug),* }

        impl Bug {
            /// All of them.
            pub const ALL: [Bug; [$($name),*].len()] = [$(Bug::$bug),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Bug::$bug => $name),* }
            }
        }
    };
}

bugs! {
    /// Hosts take calls with any fence, of any attempt and from any copy of a store.
    NoFence "no-fence";
    /// A commit is acknowledged before it is synced.
    AckBeforeSync "ack-before-sync";
    /// A target starts what is not decided yet.
    StartBeforeCommit "start-before-commit";
    /// A region answers from what it once knew.
    StaleRead "stale-read";
    /// A promise of room is kept when it is used up.
    ReservationCountedTwice "reservation-counted-twice";
    /// A command that was not delivered is taken for one that was.
    LostOutboxEntry "lost-outbox-entry";
    /// Idempotency keys are not looked up.
    DedupForgotten "dedup-forgotten";
    /// Silence of another region is taken for its refusal.
    TimeoutIsFailure "timeout-is-failure";
    /// Who cancels after the decision, or loses the memory at the target, lets the source go on.
    UndoPastThePivot "undo-past-the-pivot";
    /// A transfer is resumed some blocks too late, and digests are not compared.
    WrongOffset "resume-from-wrong-offset";
    /// A target that hears nothing throws away what it has sealed.
    CleanUpByInference "clean-up-by-inference";
    /// A host forgets fences and attempts when it restarts.
    EpochForgottenAtReboot "epoch-not-checked-after-reboot";
}

#[cfg(feature = "planted")]
mod chosen {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Bug;
    use crate::types::{RegionName, VmId, VmRecord};

    thread_local! {
        static KNOWN: RefCell<BTreeMap<(RegionName, VmId), VmRecord>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// What a region once knew of a VM, for [`Bug::StaleRead`]; `now` is what it knows, and is kept.
    pub fn once_known(region: &RegionName, vm: VmId, now: Option<&VmRecord>) -> Option<VmRecord> {
        KNOWN.with_borrow_mut(|known| {
            if let Some(now) = now {
                known.entry((region.clone(), vm)).or_insert_with(|| now.clone());
            }
            known.get(&(region.clone(), vm)).cloned()
        })
    }

    static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// From now on this bug is there, or none is.
    pub fn choose(bug: Option<Bug>) {
        CHOSEN.store(bug.map_or(usize::MAX, |bug| bug as usize), Ordering::SeqCst);
    }

    /// Whether this bug is there.
    pub fn is(bug: Bug) -> bool {
        CHOSEN.load(Ordering::Relaxed) == bug as usize
    }
}

#[cfg(feature = "planted")]
pub use chosen::{choose, is, once_known};

/// What a region once knew of a VM: only a bug asks.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn once_known(_: &RegionName, _: VmId, _: Option<&VmRecord>) -> Option<VmRecord> {
    None
}

/// Whether this bug is there: it is not.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
