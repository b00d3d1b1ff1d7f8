//! Rules of a host for one VM: law 6.1 and the host's part of law 6.3. Owns: which call may do what, and in which
//! order it takes effect. Always: pure and small, so that it is searched exhaustively together with the migration core.
//! Not here: how an effect is performed (`slot.rs`), where a state is kept (`state.rs`).
//!
//! ```text
//!              Create            Start                 PauseForSwitch            Hold
//!   Absent ─────────────► Stopped ───────► Running ───────────────────► Paused ────────► Held
//!     │ ▲                    ▲  ▲ Stop        │ ▲ watchdog, CancelPause │                  │
//!     │ └── Delete ──────────┘  └─────────────┘ └───────────────────────┘                  │
//!     │                                         ▲          ReleaseHold (the decision: Abort)│
//!     │                                         └──────────────────────────────────────────┤
//!     │ PrepareReceive     SealReceive     Activate                                        │
//!     ├──────────► Open ─────────► Sealed ─────────► Running        Retire (the decision:  │
//!     └◄─────────── DiscardReceive ──┘                              Transfer)  ► Absent ◄──┘
//! ```
//! A host that restarts has lost all memory: Running and Paused become Lost and their attempt is spent; Held stays
//! held, its guest lost; an open receipt is gone; a sealed one keeps its disk, which was synced (*disk only*): if the
//! decision is for this side, its owner may boot it from there (`Start`) or delete it, and nobody else.
//!
//! An attempt is *spent* when it can never pause or hold again: its watchdog fired, its pause was cancelled, it was
//! discarded, or the memory that it copied is gone.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::drivers::SwitchKey;
use crate::planted::{self, Bug};
use crate::types::{Attempt, Fence, GuestPower, Millis, Sight};

mod event;

pub use event::{Effect, Event, Refusal};

/// How far a receipt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Blocks arrive.
    Open,
    /// Everything is there, verified, its disk synced.
    Sealed,
    /// It was sealed, then the host restarted: the disk is whole, the memory is lost.
    DiskOnly,
}

/// What is with the VM on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Power {
    /// It is not here.
    #[default]
    Absent,
    /// Its disk is here.
    Stopped,
    /// It runs.
    Running,
    /// Paused for an attempt, the watchdog armed.
    Paused {
        /// The attempt.
        key: SwitchKey,
    },
    /// Only the decision of an attempt frees it.
    Held {
        /// The attempt.
        key: SwitchKey,
        /// Its memory is gone.
        lost: bool,
    },
    /// It is being received.
    Receiving {
        /// The attempt.
        key: SwitchKey,
        /// The fence with which it will start.
        fence: Fence,
        /// How far it is.
        stage: Stage,
    },
    /// It ran when its memory was lost; its disk is here.
    Lost,
}

/// Everything that a host must remember of one VM to keep the law.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Rules {
    /// The highest fence seen.
    pub fence: Fence,
    /// The highest attempt seen.
    pub newest: Option<SwitchKey>,
    /// The highest attempt that can never pause or hold again, nor be received again.
    pub spent: Option<SwitchKey>,
    /// The attempt by which the VM came here, if it came by one.
    pub activated: Option<SwitchKey>,
    /// What is with it.
    pub power: Power,
    /// Fences of transfers that retired the VM here and whose disks are kept.
    pub retired: BTreeSet<Fence>,
}

type Step = Result<(Rules, Vec<Effect>), Refusal>;

impl Rules {
    /// The state after `event`, and what to do in which order; or why not, and then nothing changed.
    pub fn apply(&self, event: &Event) -> Step {
        let (next, mut effects) = match *event {
            Event::Create { fence } => self.create(fence),
            Event::Start { fence } => self.start(fence),
            Event::Stop { fence } => self.stop(fence),
            Event::Delete { fence } => self.delete(fence),
            Event::PrepareReceive { key, fence } => self.prepare_receive(key, fence),
            Event::SealReceive { key } => self.seal_receive(key),
            Event::Activate { key, fence } => self.activate(key, fence),
            Event::DiscardReceive { key } => self.discard_receive(key),
            Event::Send { key } => self.send(key),
            Event::StopSending { key } => self.stop_sending(key),
            Event::PauseForSwitch { key, fence, deadline } => self.pause_for_switch(key, fence, deadline),
            Event::CancelPause { key } => self.cancel_pause(key),
            Event::Hold { key } => self.hold(key),
            Event::ReleaseHold { key } => self.release_hold(key),
            Event::Retire { key, fence } => self.retire(key, fence),
            Event::Purge { fence } => self.purge(fence),
            Event::Watchdog { key } => self.watchdog(key),
            Event::GuestLost => Ok(self.memory_lost()),
            Event::HostRestarted => Ok(self.host_restarted()),
        }?;
        if next.durable() == self.durable() {
            effects.retain(|e| *e != Effect::Persist);
        } else {
            debug_assert!(effects.contains(&Effect::Persist), "{self:?} -{event:?}-> {next:?} must be persisted");
        }
        Ok((next, effects))
    }

    /// What of this state outlives the process. A pause does not: who is found running or paused after a restart is
    /// lost, and its attempt spent, all the same. So a pause costs no write while the guest stands still.
    pub fn durable(&self) -> Rules {
        let power = match self.power {
            Power::Paused { .. } => Power::Running,
            power => power,
        };
        Rules { power, ..self.clone() }
    }

    /// Whether this host knows the VM at all: it is here, or a disk of it is kept.
    pub fn is_listed(&self) -> bool {
        self.power != Power::Absent || !self.retired.is_empty()
    }

    /// The power as the contract names it.
    pub fn guest_power(&self) -> GuestPower {
        match self.power {
            Power::Absent => GuestPower::Retired,
            Power::Stopped => GuestPower::Stopped,
            Power::Running => GuestPower::Running,
            Power::Paused { .. } | Power::Held { lost: false, .. } => GuestPower::Paused,
            Power::Held { lost: true, .. } | Power::Lost => GuestPower::Lost,
            Power::Receiving { .. } => GuestPower::Receiving,
        }
    }

    /// What the host says of the VM, whose guest did so many ticks; `None` if it is not here.
    pub fn sight(&self, tick: u64) -> Option<Sight> {
        if !self.is_listed() {
            return None;
        }
        let (mut hold, mut paused_for, mut receiving) = (None, None, None);
        match self.power {
            Power::Held { key, .. } => hold = Some(key),
            Power::Paused { key } => paused_for = Some(key),
            Power::Receiving { key, stage, .. } => receiving = Some((key, stage == Stage::Sealed)),
            _ => {}
        }
        Some(Sight {
            power: self.guest_power(),
            fence: self.fence,
            attempt: self.newest.map_or(Attempt(0), |key| key.attempt),
            hold,
            paused_for,
            spent: self.spent,
            receiving,
            tick,
        })
    }

    /// Whether this attempt can never pause or hold again.
    pub fn is_spent(&self, key: SwitchKey) -> bool {
        self.spent.is_some_and(|spent| key.attempt <= spent.attempt) && !planted::is(Bug::NoFence)
    }

    fn check_fence(&self, got: Fence) -> Result<(), Refusal> {
        if got < self.fence && !planted::is(Bug::NoFence) {
            Err(Refusal::LowerFence { seen: self.fence, got })
        } else {
            Ok(())
        }
    }

    /// A host that has seen this very fence gave the VM away under it, or has it: a transfer here carries a new one.
    fn check_raised(&self, got: Fence) -> Result<(), Refusal> {
        if got > self.fence { Ok(()) } else { Err(Refusal::No("a transfer raises the fence, this one does not")) }
    }

    fn check_key(&self, key: SwitchKey) -> Result<(), Refusal> {
        match self.newest {
            Some(_) if planted::is(Bug::NoFence) => Ok(()),
            Some(newest) if key.attempt < newest.attempt => {
                Err(Refusal::LowerAttempt { seen: newest.attempt, got: key.attempt })
            }
            Some(newest) if key.attempt == newest.attempt && key.job != newest.job => {
                Err(Refusal::No("this attempt belongs to another job"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn same(&self) -> Step {
        Ok((self.clone(), Vec::new()))
    }

    /// The newest attempt is over: the memory that it copies, or would have, is not there any more.
    fn spend_newest(&mut self) {
        self.spent = self.spent.max_by_attempt(self.newest);
    }

    fn spend(&mut self, key: SwitchKey) {
        self.newest = self.newest.max_by_attempt(Some(key));
        self.spent = self.spent.max_by_attempt(Some(key));
    }

    // -- power ---------------------------------------------------------------

    fn create(&self, fence: Fence) -> Step {
        self.check_fence(fence)?;
        match self.power {
            Power::Absent if self.fence != Fence::default() && fence == self.fence => {
                Err(Refusal::No("the VM was here and is gone; it is not made again under the same fence"))
            }
            Power::Absent => {
                let next = Rules { fence, power: Power::Stopped, ..self.clone() };
                Ok((next, vec![Effect::MakeDisk, Effect::Persist]))
            }
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Stopped | Power::Running | Power::Paused { .. } | Power::Held { .. } | Power::Lost => self.same(),
        }
    }

    fn start(&self, fence: Fence) -> Step {
        self.check_fence(fence)?;
        let next = Rules { fence, power: Power::Running, ..self.clone() };
        match self.power {
            Power::Stopped | Power::Lost => Ok((next, vec![Effect::Persist, Effect::Boot])),
            Power::Running if fence == self.fence => self.same(),
            Power::Running => Ok((next, vec![Effect::Persist, Effect::Refence])),
            Power::Paused { .. } => Err(Refusal::No("the VM is paused for a switch")),
            Power::Held { .. } => Err(Refusal::No("the VM is held: only the decision frees it")),
            // Only its owner names the fence that it was offered with, and this region owns it since the transfer.
            Power::Receiving { key, fence: offered, stage: Stage::DiskOnly } if fence >= offered => {
                let mut next = Rules { activated: Some(key), ..next };
                next.spend_newest();
                Ok((next, vec![Effect::Persist, Effect::BootReceipt]))
            }
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent if self.retired.is_empty() => Err(Refusal::NotFound),
            Power::Absent => Err(Refusal::No("the VM was retired: it lives elsewhere")),
        }
    }

    fn stop(&self, fence: Fence) -> Step {
        self.check_fence(fence)?;
        let mut next = Rules { fence, power: Power::Stopped, ..self.clone() };
        next.spend_newest();
        match self.power {
            Power::Running => Ok((next, vec![Effect::StopOffer, Effect::ShutDown, Effect::Persist])),
            // A newer fence means that the offer is not what its owner goes by any more (law 6.2).
            Power::Paused { .. } if fence > self.fence => {
                Ok((next, vec![Effect::StopOffer, Effect::DisarmWatchdog, Effect::ShutDown, Effect::Persist]))
            }
            Power::Paused { .. } => Err(Refusal::No("the VM is paused for a switch")),
            Power::Held { .. } => Err(Refusal::No("the VM is held: only the decision frees it")),
            // Its owner's word, as for `start`.
            Power::Receiving { key, fence: offered, stage: Stage::DiskOnly } if fence >= offered => {
                Ok((Rules { activated: Some(key), ..next }, vec![Effect::Persist]))
            }
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Stopped | Power::Lost => {
                Ok((Rules { fence, power: Power::Stopped, ..self.clone() }, vec![Effect::Persist]))
            }
            Power::Absent if self.retired.is_empty() => Err(Refusal::NotFound),
            Power::Absent => Err(Refusal::No("the VM was retired: it lives elsewhere")),
        }
    }

    fn delete(&self, fence: Fence) -> Step {
        self.check_fence(fence)?;
        let mut next = Rules { fence, power: Power::Absent, activated: None, ..self.clone() };
        next.spend_newest();
        match self.power {
            Power::Held { .. } => Err(Refusal::No("the VM is held: only the decision frees it")),
            // Its owner's word, as for `start`.
            Power::Receiving { fence: offered, stage: Stage::DiskOnly, .. } if fence >= offered => {
                Ok((next, vec![Effect::Persist, Effect::DropReceipt]))
            }
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent => Ok((Rules { fence, ..self.clone() }, vec![Effect::Persist])),
            Power::Stopped | Power::Lost => Ok((next, vec![Effect::DeleteDisk, Effect::Persist])),
            Power::Running | Power::Paused { .. } => {
                let effects = vec![
                    Effect::StopOffer,
                    Effect::DisarmWatchdog,
                    Effect::Destroy,
                    Effect::DeleteDisk,
                    Effect::Persist,
                ];
                Ok((next, effects))
            }
        }
    }

    // -- target ----------------------------------------------------------------

    fn prepare_receive(&self, key: SwitchKey, fence: Fence) -> Step {
        self.check_fence(fence)?;
        self.check_key(key)?;
        self.check_raised(fence)?;
        if self.is_spent(key) {
            return Err(Refusal::No("this attempt is over"));
        }
        let power = Power::Receiving { key, fence, stage: Stage::Open };
        let next = Rules { newest: Some(key), power, ..self.clone() };
        match self.power {
            Power::Absent => Ok((next, vec![Effect::OpenReceipt { key }, Effect::Persist])),
            Power::Receiving { key: mine, .. } if mine == key => self.same(),
            Power::Receiving { .. } => Ok((next, vec![Effect::Persist, Effect::AdoptReceipt { key }])),
            Power::Stopped | Power::Running | Power::Paused { .. } | Power::Held { .. } | Power::Lost => {
                Err(Refusal::No("the VM is here already"))
            }
        }
    }

    fn seal_receive(&self, key: SwitchKey) -> Step {
        self.check_key(key)?;
        if self.activated == Some(key) {
            return self.same();
        }
        match self.power {
            Power::Receiving { key: mine, stage: Stage::Sealed, .. } if mine == key => self.same(),
            Power::Receiving { key: mine, fence, .. } if mine == key => {
                let power = Power::Receiving { key, fence, stage: Stage::Sealed };
                Ok((Rules { power, ..self.clone() }, vec![Effect::VerifyReceipt, Effect::Persist]))
            }
            Power::Receiving { .. }
            | Power::Absent
            | Power::Stopped
            | Power::Running
            | Power::Paused { .. }
            | Power::Held { .. }
            | Power::Lost => Err(Refusal::NotFound),
        }
    }

    fn activate(&self, key: SwitchKey, fence: Fence) -> Step {
        self.check_fence(fence)?;
        self.check_key(key)?;
        if self.activated == Some(key) {
            return self.same();
        }
        self.check_raised(fence)?;
        let next = Rules { fence, activated: Some(key), power: Power::Running, ..self.clone() };
        match self.power {
            Power::Receiving { key: mine, stage, .. } if mine == key => match stage {
                Stage::Open => Err(Refusal::No("not sealed: it does not have everything")),
                Stage::Sealed => Ok((next, vec![Effect::Persist, Effect::ActivateReceipt])),
                // A guest that forgets what it was doing is its owner's to decide on: see `start`.
                Stage::DiskOnly => Err(Refusal::No("its memory was lost with the host; its disk is here")),
            },
            Power::Receiving { .. }
            | Power::Absent
            | Power::Stopped
            | Power::Running
            | Power::Paused { .. }
            | Power::Held { .. }
            | Power::Lost => Err(Refusal::NotFound),
        }
    }

    fn discard_receive(&self, key: SwitchKey) -> Step {
        self.check_key(key)?;
        let mut next = self.clone();
        next.spend(key);
        match self.power {
            Power::Receiving { .. } => {
                next.power = Power::Absent;
                Ok((next, vec![Effect::Persist, Effect::DropReceipt]))
            }
            // Also before anything came: a preparation that is still on its way is refused then.
            Power::Absent => Ok((next, vec![Effect::Persist])),
            Power::Stopped | Power::Running | Power::Paused { .. } | Power::Held { .. } | Power::Lost => {
                Err(Refusal::No("the VM is not being received: it runs or ran here"))
            }
        }
    }

    // -- source ----------------------------------------------------------------

    /// Checks that `key` may copy or pause this VM, which runs here.
    fn check_source(&self, key: SwitchKey) -> Result<(), Refusal> {
        self.check_key(key)?;
        if self.is_spent(key) {
            return Err(Refusal::No("this attempt is spent: its pause ended, or its memory is gone; begin a new one"));
        }
        Ok(())
    }

    fn send(&self, key: SwitchKey) -> Step {
        self.check_source(key)?;
        let next = Rules { newest: Some(key), ..self.clone() };
        match self.power {
            Power::Running => Ok((next, vec![Effect::Persist, Effect::Offer { key }])),
            Power::Paused { key: mine } | Power::Held { key: mine, lost: false } if mine == key => {
                Ok((next, vec![Effect::Offer { key }]))
            }
            Power::Paused { .. } | Power::Held { lost: false, .. } => {
                Err(Refusal::No("the VM is paused or held for another attempt"))
            }
            Power::Held { lost: true, .. } | Power::Lost => Err(Refusal::No("the VM's memory is lost")),
            Power::Stopped => Err(Refusal::No("the VM does not run")),
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent => Err(Refusal::NotFound),
        }
    }

    fn stop_sending(&self, key: SwitchKey) -> Step {
        self.check_key(key)?;
        match self.power {
            Power::Running | Power::Paused { .. } | Power::Held { .. } => Ok((self.clone(), vec![Effect::StopOffer])),
            Power::Stopped | Power::Lost => self.same(),
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent if self.retired.is_empty() => Err(Refusal::NotFound),
            Power::Absent => self.same(),
        }
    }

    fn pause_for_switch(&self, key: SwitchKey, fence: Fence, deadline: Millis) -> Step {
        self.check_fence(fence)?;
        self.check_source(key)?;
        let next = Rules { fence, newest: Some(key), power: Power::Paused { key }, ..self.clone() };
        match self.power {
            // The watchdog runs before the guest stands still.
            Power::Running => Ok((next, vec![Effect::Persist, Effect::ArmWatchdog { key, deadline }, Effect::Pause])),
            Power::Paused { key: mine } | Power::Held { key: mine, lost: false } if mine == key => self.same(),
            Power::Paused { .. } | Power::Held { lost: false, .. } => {
                Err(Refusal::No("the VM is paused or held for another attempt"))
            }
            Power::Held { lost: true, .. } | Power::Lost => Err(Refusal::No("the VM's memory is lost")),
            Power::Stopped => Err(Refusal::No("the VM does not run")),
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent => Err(Refusal::NotFound),
        }
    }

    fn cancel_pause(&self, key: SwitchKey) -> Step {
        self.check_key(key)?;
        let mut next = self.clone();
        next.spend(key);
        match self.power {
            Power::Paused { .. } => {
                next.power = Power::Running;
                Ok((next, vec![Effect::Resume, Effect::DisarmWatchdog, Effect::StopOffer, Effect::Persist]))
            }
            Power::Running => Ok((next, vec![Effect::StopOffer, Effect::Persist])),
            Power::Stopped | Power::Lost => Ok((next, vec![Effect::Persist])),
            Power::Held { .. } => Err(Refusal::No("the VM is held: only the decision frees it")),
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent => Err(Refusal::NotFound),
        }
    }

    fn hold(&self, key: SwitchKey) -> Step {
        self.check_source(key)?;
        match self.power {
            Power::Paused { key: mine } if mine == key => {
                let power = Power::Held { key, lost: false };
                Ok((Rules { power, ..self.clone() }, vec![Effect::Persist, Effect::DisarmWatchdog]))
            }
            Power::Held { key: mine, .. } if mine == key => self.same(),
            Power::Paused { .. } | Power::Held { .. } => {
                Err(Refusal::No("the VM is paused or held for another attempt"))
            }
            Power::Running | Power::Stopped | Power::Lost => Err(Refusal::No("the VM is not paused for this attempt")),
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent => Err(Refusal::NotFound),
        }
    }

    fn release_hold(&self, key: SwitchKey) -> Step {
        match self.power {
            Power::Held { key: mine, lost } if mine == key => {
                let mut next = self.clone();
                next.spend(key);
                if lost {
                    next.power = Power::Lost;
                    Ok((next, vec![Effect::Persist]))
                } else {
                    next.power = Power::Running;
                    Ok((next, vec![Effect::StopOffer, Effect::Persist, Effect::Resume]))
                }
            }
            // An attempt that was given up before its hold is recorded as an Abort too.
            Power::Held { .. } => {
                self.check_key(key)?;
                Err(Refusal::No("the VM is held by another attempt"))
            }
            Power::Running
            | Power::Paused { .. }
            | Power::Stopped
            | Power::Lost
            | Power::Receiving { .. }
            | Power::Absent => self.cancel_pause(key),
        }
    }

    fn retire(&self, key: SwitchKey, fence: Fence) -> Step {
        self.check_fence(fence)?;
        if self.power == Power::Absent && fence == self.fence {
            return self.same();
        }
        self.check_key(key)?;
        let mut next = Rules { fence, power: Power::Absent, activated: None, ..self.clone() };
        next.spend(key);
        self.check_raised(fence)?;
        match self.power {
            Power::Held { key: mine, .. } if mine != key => Err(Refusal::No("the VM is held by another attempt")),
            Power::Receiving { .. } => Err(Refusal::No("the VM is being received")),
            Power::Absent => Ok((next, vec![Effect::Persist])),
            // Held by the law; in any other state a newer fence says that it lives elsewhere, and it ends (law 6.2).
            Power::Running | Power::Paused { .. } | Power::Held { .. } | Power::Stopped | Power::Lost => {
                next.retired.insert(fence);
                let effects = vec![
                    Effect::StopOffer,
                    Effect::DisarmWatchdog,
                    Effect::Destroy,
                    Effect::RetireDisk { fence },
                    Effect::Persist,
                ];
                Ok((next, effects))
            }
        }
    }

    fn purge(&self, fence: Fence) -> Step {
        let mut next = self.clone();
        if next.retired.remove(&fence) {
            return Ok((next, vec![Effect::PurgeDisk { fence }, Effect::Persist]));
        }
        match self.power {
            _ if fence <= self.fence => self.same(),
            Power::Absent => Err(Refusal::NotFound),
            // Whoever thinks that it is destroyed must not forget that it is not.
            _ => Err(Refusal::No("the VM is here and was not retired with this fence")),
        }
    }

    // -- what happens by itself --------------------------------------------------

    fn watchdog(&self, key: SwitchKey) -> Step {
        match self.power {
            Power::Paused { key: mine } if mine == key => {
                let mut next = Rules { power: Power::Running, ..self.clone() };
                next.spend(key);
                // The guest first: that a disk is full may not keep it standing.
                Ok((next, vec![Effect::Resume, Effect::StopOffer, Effect::Persist]))
            }
            Power::Paused { .. }
            | Power::Absent
            | Power::Stopped
            | Power::Running
            | Power::Held { .. }
            | Power::Receiving { .. }
            | Power::Lost => self.same(),
        }
    }

    fn memory_lost(&self) -> (Rules, Vec<Effect>) {
        let mut next = self.clone();
        let effects = match self.power {
            Power::Running | Power::Paused { .. } => {
                next.power = Power::Lost;
                next.spend_newest();
                vec![Effect::StopOffer, Effect::DisarmWatchdog, Effect::Destroy, Effect::Persist]
            }
            Power::Held { key, lost: false } => {
                next.power = Power::Held { key, lost: true };
                vec![Effect::StopOffer, Effect::Destroy, Effect::Persist]
            }
            Power::Held { lost: true, .. } | Power::Absent | Power::Stopped | Power::Receiving { .. } | Power::Lost => {
                Vec::new()
            }
        };
        (next, effects)
    }

    fn host_restarted(&self) -> (Rules, Vec<Effect>) {
        let mut next = self.clone();
        if planted::is(Bug::EpochForgottenAtReboot) {
            (next.fence, next.newest, next.spent) = (Fence::default(), None, None);
        }
        let effects = match self.power {
            Power::Running | Power::Paused { .. } => {
                next.power = Power::Lost;
                next.spend_newest();
                vec![Effect::Persist]
            }
            Power::Held { key, .. } => {
                next.power = Power::Held { key, lost: true };
                vec![Effect::Persist]
            }
            Power::Receiving { stage: Stage::Open, .. } => {
                next.power = Power::Absent;
                vec![Effect::DropReceipt, Effect::Persist]
            }
            Power::Receiving { key, fence, stage: Stage::Sealed | Stage::DiskOnly } => {
                next.power = Power::Receiving { key, fence, stage: Stage::DiskOnly };
                vec![Effect::Persist]
            }
            Power::Absent | Power::Stopped | Power::Lost => Vec::new(),
        };
        (next, effects)
    }
}

trait MaxByAttempt {
    fn max_by_attempt(self, other: Self) -> Self;
}

impl MaxByAttempt for Option<SwitchKey> {
    fn max_by_attempt(self, other: Self) -> Self {
        match (self, other) {
            (Some(a), Some(b)) => Some(if b.attempt > a.attempt { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}
