//! Drivers: how real clusters join. Owns: the contract between a node and what runs its VMs.
//! Always: each call carries an operation id and may be repeated; a driver persists fences, attempts and holds.
//! Not here: who may run what (`decision/`), the embedded hypervisor itself (`embedded/`).
//!
//! The contract is one enum of calls rather than twenty methods: the socket protocol, the failure switches and the
//! conformance tests all range over the same list, and a driver that lacks a call says [`HostError::Unsupported`].
//! It fits QEMU as `embedded` fits it: a channel is an opaque duplex byte stream that nodes relay without looking
//! inside (QEMU: the NBD mirror is a resumable channel, the memory stream is not).

pub mod conformance;
pub mod embedded;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use embedded::faults::{CallKind, Fault};

pub use crate::types::{Channel, End, SwitchKey};
use crate::types::{Fence, Incarnation, Millis, OperationId, Resources, Sight, VmId, VmSpec};

/// A future on the heap, so that drivers can be held behind `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A duplex byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What a node asks of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostCall {
    /// What the driver can do.
    Capabilities,
    /// Every VM of this cluster, whatever its state.
    Inventory,
    /// One VM.
    Get { vm: VmId },
    /// Define a VM and make its disk; it does not run yet.
    Create { vm: VmId, spec: VmSpec, fence: Fence },
    /// Boot it, from its disk. Refused while it is held, retired or being received, or with a lower fence; what was
    /// received and sealed and lost its memory since is booted by its new owner's fence.
    Start { vm: VmId, fence: Fence },
    /// Stop it. Its disk stays.
    Stop { vm: VmId, fence: Fence },
    /// Remove it and its disk. Refused while it is held; the fence stays remembered.
    Delete { vm: VmId, fence: Fence },
    /// Write memory, disk and tick of one moment into files of `directory` (see `embedded/snapshot.rs`).
    Snapshot { vm: VmId, directory: PathBuf },
    /// Measure the rate at which the guest dirties its memory and disk.
    DirtyRate { vm: VmId },

    // -- target of a move ---------------------------------------------------
    /// Make room to receive. A later attempt of the same VM adopts what an earlier one received;
    /// an earlier attempt than the highest seen is refused. `fence` is the one it will start with.
    PrepareReceive { key: SwitchKey, spec: VmSpec, fence: Fence },
    /// Verify that everything of the last round is there, sync the disk, and stay paused. Repeatable. It may come before
    /// the end of that round: a driver waits for it a while, well below the caller's deadline, then refuses.
    SealReceive { key: SwitchKey },
    /// Run what was received and sealed: the decision is `Transfer`. Refused if its memory was lost since. Repeatable.
    Activate { key: SwitchKey, fence: Fence },
    /// Throw away what was received: the decision is `Abort`. Never touches a VM that runs or ran here. Repeatable.
    DiscardReceive { key: SwitchKey },

    // -- source of a move ---------------------------------------------------
    /// Allow channels of this attempt to be opened and send what changed, round by round, the guest running.
    Send { key: SwitchKey, bytes_per_second_max: Option<u64> },
    /// How the transfer stands, at either end.
    Progress { key: SwitchKey },
    /// Stop sending; the guest goes on. Repeatable.
    StopSending { key: SwitchKey },
    /// Law 6.3 b: pause the guest and arm a watchdog that resumes it after `deadline`.
    /// Once that fired or the pause was cancelled, this attempt can never pause or hold again.
    PauseForSwitch { key: SwitchKey, fence: Fence, deadline: Millis },
    /// Resume the guest, give this attempt up for ever. Refused once held. Repeatable.
    CancelPause { key: SwitchKey },
    /// Law 6.3 d: record durably that only the decision frees this guest; disarm the watchdog.
    /// Refused if the watchdog has fired. Repeatable.
    Hold { key: SwitchKey },
    /// The decision is `Abort`: clear the hold and resume the guest (or leave it lost). Repeatable.
    ReleaseHold { key: SwitchKey },
    /// The decision is `Transfer`: destroy the guest, remember `fence` as the VM's, keep its disk as retired.
    Retire { key: SwitchKey, fence: Fence },
    /// Delete the disk of a VM that was retired with exactly this fence. Refused while a copy with a lower fence is here:
    /// it was not destroyed yet. Repeatable.
    Purge { vm: VmId, fence: Fence },
}

/// What a host answers.
#[allow(clippy::large_enum_variant, reason = "one exists per call, and it is sent at once")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostReply {
    /// Done, or was done before by the same operation.
    Done,
    /// To [`HostCall::Capabilities`].
    Capabilities(HostCapabilities),
    /// To [`HostCall::Inventory`], ordered by id.
    Inventory(Vec<VmObservation>),
    /// To [`HostCall::Get`]; `None` if the host never had it or it was deleted.
    Vm(Option<VmObservation>),
    /// To [`HostCall::DirtyRate`].
    DirtyRate(DirtyRate),
    /// To [`HostCall::Progress`].
    Progress(TransferProgress),
    /// To [`HostCall::SealReceive`].
    Sealed(SealReport),
    /// To [`HostCall::Snapshot`].
    Snapshot(SnapshotInfo),
}

/// What a driver says that it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCapabilities {
    /// Name of the driver.
    pub driver: String,
    /// Its version.
    pub version: String,
    /// What this cluster has.
    pub capacity: Resources,
    /// Whether VMs can move live.
    pub live_migration: bool,
    /// Channels that a transfer uses, and whether each resumes after a cut.
    pub channels: Vec<(Channel, bool)>,
}

/// What a host says of one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmObservation {
    /// Its id.
    pub vm: VmId,
    /// Its definition.
    pub spec: VmSpec,
    /// How it is.
    pub sight: Sight,
}

impl VmObservation {
    /// Whether it is the same but for the ticks that were done meanwhile.
    pub fn is_as(&self, other: &VmObservation) -> bool {
        let still = |sight: Sight| Sight { tick: 0, ..sight };
        self.vm == other.vm && self.spec == other.spec && still(self.sight) == still(other.sight)
    }
}

/// Measured rates of a guest's writes, bytes per second of distinct pages or blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirtyRate {
    /// Memory.
    pub memory_bytes_per_second: u64,
    /// Disk.
    pub disk_bytes_per_second: u64,
    /// Size of the part of memory that is rewritten, bytes, as far as was seen.
    pub working_set_bytes: u64,
    /// Memory that was ever written, bytes.
    pub resident_bytes: u64,
    /// Disk that was ever written, bytes.
    pub disk_resident_bytes: u64,
}

/// How a transfer stands. Counted by the end that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferProgress {
    /// Payload bytes that the target has stored and acknowledged, over all connections of this job.
    pub acknowledged_bytes: u64,
    /// Payload bytes sent, over all connections of this job.
    pub sent_bytes: u64,
    /// Payload bytes of a page or block in a version that the target had already stored.
    pub sent_twice_bytes: u64,
    /// What the first round has to send, bytes.
    pub total_bytes: u64,
    /// What would have to be sent if the guest was paused now, bytes: the rest of the round, and what the guest wrote
    /// since that was counted.
    pub remaining_bytes: u64,
    /// Bytes of distinct pages and blocks that the last finished round left dirty.
    pub dirty_bytes: u64,
    /// Rounds finished.
    pub rounds: u32,
    /// Measured rate, bytes per second.
    pub bytes_per_second: u64,
    /// Measured dirty rate while sending, bytes per second.
    pub dirty_bytes_per_second: u64,
    /// Whether a channel is connected now.
    pub connected: bool,
    /// The guest is paused and everything, the last round included, was acknowledged by the target.
    pub drained: bool,
}

/// What the target verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealReport {
    /// Digest over (block, version, checksum) of everything, equal at both ends.
    pub digest: u64,
    /// The tick at which the guest was paused.
    pub tick: u64,
    /// Bytes stored at the target.
    pub stored_bytes: u64,
}

/// Where a snapshot lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotInfo {
    /// Files written.
    pub files: Vec<PathBuf>,
    /// The tick of the moment.
    pub tick: u64,
}

/// Why a host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum HostError {
    /// It does not know such a VM, receipt or attempt.
    #[error("the host knows no {what}")]
    NotFound { what: String },
    /// A lower fence or attempt than it has seen.
    #[error("fenced: the host has seen {seen} of {vm}, this call carries {got}")]
    Fenced { vm: VmId, seen: String, got: String },
    /// An earlier incarnation of the node's store than it has seen.
    #[error("stale: the host has seen incarnation {known:?} of this region's store, this is {presented:?}")]
    StaleIncarnation { known: Incarnation, presented: Incarnation },
    /// It understood and says no; nothing changed.
    #[error("refused: {why}")]
    Refused { why: String },
    /// It does not fit.
    #[error("no room: {why}")]
    NoRoom { why: String },
    /// The driver has no such call.
    #[error("the driver can't do {what}")]
    Unsupported { what: String },
    /// It tried and the machine failed.
    #[error("the host failed: {why}")]
    Failed { why: String },
    /// No answer by the deadline, or the connection broke: it may have been done. Probe before anything else.
    #[error("unknown: {why}")]
    Unknown { why: String },
}

impl HostError {
    /// Whether the call may have taken effect.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, HostError::Unknown { .. })
    }
}

/// One cluster's driver, as the node sees it.
pub trait Hypervisor: Send + Sync + 'static {
    /// Performs `call`, at most until `deadline`. It may be repeated: what a call with an attempt came to is known from
    /// the attempt and the fence that the host keeps. `Create`, `Start`, `Stop` and `Delete` have no attempt: of the
    /// latest that succeeded the answer is remembered by `operation`, in memory and up to a limit, so that a late
    /// duplicate is not done again.
    fn call(
        &self,
        operation: OperationId,
        call: HostCall,
        deadline: Millis,
    ) -> BoxFuture<'_, Result<HostReply, HostError>>;

    /// Opens one end of a channel of a transfer. Dropping the stream is a cut: the host keeps what was acknowledged.
    fn open_channel(
        &self,
        key: SwitchKey,
        channel: Channel,
        end: End,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, HostError>>;

    /// Has the next `times` calls of that kind go wrong, for tests; 0 takes it back. A driver of a real hypervisor has no
    /// such plans.
    fn plan_fault(&self, kind: CallKind, fault: Fault, times: u32) -> BoxFuture<'_, Result<(), HostError>> {
        let what = format!("make {kind:?} go wrong ({fault:?}, {times} times)");
        Box::pin(std::future::ready(Err(HostError::Unsupported { what })))
    }
}
