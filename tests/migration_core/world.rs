//! The world: what there is at one moment, and the names in it. Owns: the state that is searched, and when it is bad.

use std::hash::{Hash, Hasher};

use novafed::decision::migration::source::{Command as SourceCommand, Source, SwitchRules};
use novafed::decision::migration::source::{Goal, Phase as SourcePhase};
use novafed::decision::migration::target::Command as TargetCommand;
use novafed::decision::migration::{Offer, target::Target};
use novafed::drivers::SwitchKey;
use novafed::drivers::embedded::rules::Event as HostEvent;
use novafed::types::{Attempt, DesiredPower, Fence, JobId, Place, RegionNumber, VmId, VmRecord, VmSpec, WallMillis};

/// See [`World::source_inbox`].
pub const ASKED: u64 = 1 << 63;

/// A side of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Source,
    Target,
}

/// Everything at one moment; the numbers are those of [`super::model::Model`]'s tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// The source's core.
    pub source: u16,
    /// The target's core; 0 while there is none.
    pub target: u16,
    /// The decisions, in the source region's store.
    pub log: u16,
    /// The rules of the source's host for the VM.
    pub source_host: u16,
    /// The same of the target's.
    pub target_host: u16,
    /// Outcomes on their way to the source's core, of its present step; each may come late, again or never. The bit
    /// [`ASKED`]: a question to the target waits there until its state has an answer.
    pub source_inbox: u64,
    /// The same of the target's.
    pub target_inbox: u64,
    /// Calls and messages of steps that were left: each may still arrive, any number of times.
    pub stale: u64,
    /// The attempt whose last round the target's host has received; 0 for none.
    pub last_round: u8,
    /// The guest did not run at the source since that round.
    pub fresh: bool,
    /// A transfer was recorded: seen by the world alone, so that nobody can forget it.
    pub moved: bool,
    /// The source ended without a transfer and owes the target a discard.
    pub discard_owed: bool,
    /// Crashes and lies so far.
    pub faults: u8,
    /// Acts of a person so far.
    pub persons: u8,
}

impl Hash for World {
    /// In few words: worlds are hashed by the million.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let parts = [self.source, self.target, self.log, self.source_host];
        state.write_u64(parts.iter().fold(0, |word, part| word << 16 | u64::from(*part)));
        let flags = u8::from(self.fresh) | u8::from(self.moved) << 1 | u8::from(self.discard_owed) << 2;
        let small = [self.last_round, flags, self.faults, self.persons];
        state.write_u64(small.iter().fold(u64::from(self.target_host), |word, part| word << 8 | u64::from(*part)));
        state.write_u64(self.source_inbox);
        state.write_u64(self.target_inbox);
        state.write_u64(self.stale);
    }
}

/// Something that was sent and may arrive late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A command of the source's core.
    Source(Attempt, SourceCommand),
    /// A command of the target's core.
    Target(Attempt, TargetCommand),
    /// A repair by a cluster.
    Repair(Side, HostEvent),
}

/// Ways to break the law, each of which a search must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// The source proposes without its host's hold.
    NoHold,
    /// The host grants a hold though its watchdog fired.
    HoldAfterWatchdog,
    /// The host resumes a held guest after a while.
    ResumeOnTimeout,
    /// The source tells the target to start before the decision.
    StartOnMessage,
    /// A host that restarts boots a guest that is on offer.
    RebootStartsOffer,
    /// The source's store and host forget that the VM went away.
    ForgetMove,
    /// An attempt pauses again after its watchdog fired.
    Repause,
    /// The log forgets that an attempt was aborted.
    ForgetAbort,
}

/// All of them.
pub const PLANTED: [Planted; 8] = [
    Planted::NoHold,
    Planted::HoldAfterWatchdog,
    Planted::ResumeOnTimeout,
    Planted::StartOnMessage,
    Planted::RebootStartsOffer,
    Planted::ForgetMove,
    Planted::Repause,
    Planted::ForgetAbort,
];

/// The VM.
pub fn vm() -> VmId {
    VmId { region: RegionNumber(1), incarnation: 1, number: 1 }
}

/// The job.
pub fn job() -> JobId {
    JobId { region: RegionNumber(1), incarnation: 1, number: 1 }
}

/// What both ends of an attempt are fenced by.
pub fn key(attempt: Attempt) -> SwitchKey {
    SwitchKey { vm: vm(), job: job(), attempt }
}

/// Where the VM is.
pub fn from() -> Place {
    "eu/eu-a".parse().expect("a place")
}

/// Where it goes.
pub fn to() -> Place {
    "us/us-a".parse().expect("a place")
}

/// Its fence before.
pub const FENCE: Fence = Fence::FIRST;

/// Its fence after.
pub fn next_fence() -> Fence {
    FENCE.after_move(true)
}

/// What is offered.
pub fn spec() -> VmSpec {
    serde_json::from_str(r#"{"name":"a","cpu":1,"memoryBytes":1,"diskBytes":1}"#).expect("a spec")
}

/// The target's side as the first request makes it.
pub fn reserved(attempt: Attempt) -> Target {
    Target::reserved(job(), vm(), from(), to(), Offer { spec: spec(), next_fence: next_fence() }, attempt)
}

/// The job as it begins, if it may take so many attempts.
pub fn queued(attempts: u32) -> Source {
    Source {
        job: job(),
        vm: vm(),
        from: from(),
        to: to(),
        fence: FENCE,
        next_fence: next_fence(),
        first_attempt: Attempt(1),
        attempt: Attempt(1),
        rules: SwitchRules { attempts_max: attempts, ..SwitchRules::default() },
        goal: Goal::Forward,
        phase: SourcePhase::Queued,
        settling: false,
        target_involved: false,
        estimated_downtime_us: 0,
        rounds: 0,
        note: None,
    }
}

/// The owner's record of the VM under `fence`.
pub fn record(fence: Fence) -> VmRecord {
    VmRecord {
        id: vm(),
        spec: spec(),
        cluster: if fence == FENCE { from().cluster } else { to().cluster },
        desired: DesiredPower::Running,
        fence,
        attempt: Attempt(0),
        job: None,
        reasoning: String::new(),
        resource_version: 1,
        created_at: WallMillis(0),
    }
}
