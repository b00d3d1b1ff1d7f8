//! What can happen to a VM on a host, what the host does about it, and why it may refuse.
//! Owns: the vocabulary of the rules. Not here: what follows from what (`rules/mod.rs`).

use crate::drivers::{HostCall, SwitchKey};
use crate::types::{Attempt, Fence, Millis, VmId};

/// What happens to a VM on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// [`HostCall::Create`].
    Create { fence: Fence },
    /// [`HostCall::Start`].
    Start { fence: Fence },
    /// [`HostCall::Stop`].
    Stop { fence: Fence },
    /// [`HostCall::Delete`].
    Delete { fence: Fence },
    /// [`HostCall::PrepareReceive`].
    PrepareReceive { key: SwitchKey, fence: Fence },
    /// [`HostCall::SealReceive`].
    SealReceive { key: SwitchKey },
    /// [`HostCall::Activate`].
    Activate { key: SwitchKey, fence: Fence },
    /// [`HostCall::DiscardReceive`].
    DiscardReceive { key: SwitchKey },
    /// [`HostCall::Send`].
    Send { key: SwitchKey },
    /// [`HostCall::StopSending`].
    StopSending { key: SwitchKey },
    /// [`HostCall::PauseForSwitch`].
    PauseForSwitch { key: SwitchKey, fence: Fence, deadline: Millis },
    /// [`HostCall::CancelPause`].
    CancelPause { key: SwitchKey },
    /// [`HostCall::Hold`].
    Hold { key: SwitchKey },
    /// [`HostCall::ReleaseHold`].
    ReleaseHold { key: SwitchKey },
    /// [`HostCall::Retire`].
    Retire { key: SwitchKey, fence: Fence },
    /// [`HostCall::Purge`].
    Purge { fence: Fence },
    /// The watchdog of this attempt fired.
    Watchdog { key: SwitchKey },
    /// The guest's memory is gone though the host lives: it crashed, or could not boot.
    GuestLost,
    /// The host process began anew.
    HostRestarted,
}

/// What the host does, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Make the new state durable. What stands before it may fail and then nothing has happened;
    /// what stands after it is never done without it.
    Persist,
    /// Make an empty disk.
    MakeDisk,
    /// Delete the disk.
    DeleteDisk,
    /// Boot from the disk.
    Boot,
    /// The guest runs on under a newer fence.
    Refence,
    /// Shut the guest down in good order.
    ShutDown,
    /// End the guest as it is.
    Destroy,
    /// Pause the guest and tell its transfer.
    Pause,
    /// Let the guest run on.
    Resume,
    /// Arm the watchdog.
    ArmWatchdog { key: SwitchKey, deadline: Millis },
    /// Disarm it.
    DisarmWatchdog,
    /// Make room to receive, on an empty disk.
    OpenReceipt { key: SwitchKey },
    /// What an earlier attempt received goes on under this one.
    AdoptReceipt { key: SwitchKey },
    /// Check that everything of the last round is there, and sync the disk.
    VerifyReceipt,
    /// Run what was received.
    ActivateReceipt,
    /// Its memory is lost: boot from its disk instead.
    BootReceipt,
    /// Throw away what was received.
    DropReceipt,
    /// Allow this attempt's channels to be opened.
    Offer { key: SwitchKey },
    /// Close them and allow no more.
    StopOffer,
    /// Put the disk aside as the one that this transfer retired.
    RetireDisk { fence: Fence },
    /// Delete the disk that this transfer retired.
    PurgeDisk { fence: Fence },
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    /// The VM is not here.
    #[error("the VM is not here")]
    NotFound,
    /// A lower fence than was seen.
    #[error("fence {got} is below {seen}")]
    LowerFence { seen: Fence, got: Fence },
    /// A lower attempt than was seen.
    #[error("attempt {got} is below {seen}")]
    LowerAttempt { seen: Attempt, got: Attempt },
    /// Not in this state.
    #[error("{0}")]
    No(&'static str),
}

impl Event {
    /// The VM and the event of a call that concerns the rules; `None` for calls that only look.
    pub fn of_call(call: &HostCall) -> Option<(VmId, Event)> {
        Some(match *call {
            HostCall::Capabilities
            | HostCall::Inventory
            | HostCall::Get { .. }
            | HostCall::Snapshot { .. }
            | HostCall::DirtyRate { .. }
            | HostCall::Progress { .. } => return None,
            HostCall::Create { vm, fence, .. } => (vm, Event::Create { fence }),
            HostCall::Start { vm, fence } => (vm, Event::Start { fence }),
            HostCall::Stop { vm, fence } => (vm, Event::Stop { fence }),
            HostCall::Delete { vm, fence } => (vm, Event::Delete { fence }),
            HostCall::PrepareReceive { key, fence, .. } => (key.vm, Event::PrepareReceive { key, fence }),
            HostCall::SealReceive { key } => (key.vm, Event::SealReceive { key }),
            HostCall::Activate { key, fence } => (key.vm, Event::Activate { key, fence }),
            HostCall::DiscardReceive { key } => (key.vm, Event::DiscardReceive { key }),
            HostCall::Send { key, .. } => (key.vm, Event::Send { key }),
            HostCall::StopSending { key } => (key.vm, Event::StopSending { key }),
            HostCall::PauseForSwitch { key, fence, deadline } => {
                (key.vm, Event::PauseForSwitch { key, fence, deadline })
            }
            HostCall::CancelPause { key } => (key.vm, Event::CancelPause { key }),
            HostCall::Hold { key } => (key.vm, Event::Hold { key }),
            HostCall::ReleaseHold { key } => (key.vm, Event::ReleaseHold { key }),
            HostCall::Retire { key, fence } => (key.vm, Event::Retire { key, fence }),
            HostCall::Purge { vm, fence } => (vm, Event::Purge { fence }),
        })
    }
}
