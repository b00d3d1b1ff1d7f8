//! The failures of real hypervisors, on demand. Owns: which of the next calls goes wrong, and how.
//! Always: nothing happens unless the host was started with `--allow-faults`. Not here: what a call does when it is well.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::drivers::HostCall;
use crate::types::Millis;

/// A call without its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named after the calls of the contract")]
pub enum CallKind {
    Capabilities,
    Inventory,
    Get,
    Create,
    Start,
    Stop,
    Delete,
    Snapshot,
    DirtyRate,
    PrepareReceive,
    SealReceive,
    Activate,
    DiscardReceive,
    Send,
    Progress,
    StopSending,
    PauseForSwitch,
    CancelPause,
    Hold,
    ReleaseHold,
    Retire,
    Purge,
}

impl CallKind {
    /// All kinds.
    pub const ALL: [CallKind; 22] = [
        CallKind::Capabilities,
        CallKind::Inventory,
        CallKind::Get,
        CallKind::Create,
        CallKind::Start,
        CallKind::Stop,
        CallKind::Delete,
        CallKind::Snapshot,
        CallKind::DirtyRate,
        CallKind::PrepareReceive,
        CallKind::SealReceive,
        CallKind::Activate,
        CallKind::DiscardReceive,
        CallKind::Send,
        CallKind::Progress,
        CallKind::StopSending,
        CallKind::PauseForSwitch,
        CallKind::CancelPause,
        CallKind::Hold,
        CallKind::ReleaseHold,
        CallKind::Retire,
        CallKind::Purge,
    ];

    /// As it is written in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            CallKind::Capabilities => "capabilities",
            CallKind::Inventory => "inventory",
            CallKind::Get => "get",
            CallKind::Create => "create",
            CallKind::Start => "start",
            CallKind::Stop => "stop",
            CallKind::Delete => "delete",
            CallKind::Snapshot => "snapshot",
            CallKind::DirtyRate => "dirtyRate",
            CallKind::PrepareReceive => "prepareReceive",
            CallKind::SealReceive => "sealReceive",
            CallKind::Activate => "activate",
            CallKind::DiscardReceive => "discardReceive",
            CallKind::Send => "send",
            CallKind::Progress => "progress",
            CallKind::StopSending => "stopSending",
            CallKind::PauseForSwitch => "pauseForSwitch",
            CallKind::CancelPause => "cancelPause",
            CallKind::Hold => "hold",
            CallKind::ReleaseHold => "releaseHold",
            CallKind::Retire => "retire",
            CallKind::Purge => "purge",
        }
    }

    /// Whether it changes nothing about a guest.
    pub const fn only_looks(self) -> bool {
        matches!(
            self,
            CallKind::Capabilities
                | CallKind::Inventory
                | CallKind::Get
                | CallKind::Snapshot
                | CallKind::DirtyRate
                | CallKind::Progress
        )
    }

    /// The kind of `call`.
    pub fn of(call: &HostCall) -> CallKind {
        match call {
            HostCall::Capabilities => CallKind::Capabilities,
            HostCall::Inventory => CallKind::Inventory,
            HostCall::Get { .. } => CallKind::Get,
            HostCall::Create { .. } => CallKind::Create,
            HostCall::Start { .. } => CallKind::Start,
            HostCall::Stop { .. } => CallKind::Stop,
            HostCall::Delete { .. } => CallKind::Delete,
            HostCall::Snapshot { .. } => CallKind::Snapshot,
            HostCall::DirtyRate { .. } => CallKind::DirtyRate,
            HostCall::PrepareReceive { .. } => CallKind::PrepareReceive,
            HostCall::SealReceive { .. } => CallKind::SealReceive,
            HostCall::Activate { .. } => CallKind::Activate,
            HostCall::DiscardReceive { .. } => CallKind::DiscardReceive,
            HostCall::Send { .. } => CallKind::Send,
            HostCall::Progress { .. } => CallKind::Progress,
            HostCall::StopSending { .. } => CallKind::StopSending,
            HostCall::PauseForSwitch { .. } => CallKind::PauseForSwitch,
            HostCall::CancelPause { .. } => CallKind::CancelPause,
            HostCall::Hold { .. } => CallKind::Hold,
            HostCall::ReleaseHold { .. } => CallKind::ReleaseHold,
            HostCall::Retire { .. } => CallKind::Retire,
            HostCall::Purge { .. } => CallKind::Purge,
        }
    }
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// It is done, so much later.
    Slow(Millis),
    /// It is refused and not done.
    Refuses,
    /// It is not done and never answered.
    Hangs,
    /// It is done, and the host says that it failed ("says failed yet started").
    SaysFailed,
    /// It is done, and then the guest dies at once ("says started yet dies").
    Dies,
    /// `Inventory` and `Get` answer as if the host had no VM.
    Forgets,
}

/// The faults that are still to happen.
#[derive(Debug, Default)]
pub struct Faults {
    planned: Mutex<BTreeMap<CallKind, (Fault, u32)>>,
}

impl Faults {
    /// The next `times` calls of this kind go wrong; 0 ends it.
    pub fn plan(&self, kind: CallKind, fault: Fault, times: u32) {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        if times == 0 {
            planned.remove(&kind);
        } else {
            planned.insert(kind, (fault, times));
        }
    }

    /// All is well again.
    pub fn clear(&self) {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What happens to this call; it is used up by asking.
    pub fn strike(&self, kind: CallKind) -> Option<Fault> {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let (fault, times) = planned.get_mut(&kind)?;
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            planned.remove(&kind);
        }
        Some(fault)
    }
}
