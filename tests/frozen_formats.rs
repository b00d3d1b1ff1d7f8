//! What processes of different builds say to each other, and what their journals hold, byte for byte. Owns: one sample
//! of each variant, compared with the bytes of version 1 in `fixtures/v1/*.txt`. Always: variants only grow at the end.
//! Not here: rows of the store (`store/fixture.rs`), heads of frames (`protocol_envelope.rs`).

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};

use novafed::decision::migration::source::{self, HostView, Round};
use novafed::decision::migration::steps::Step;
use novafed::decision::migration::{Offer, TargetAnswer, TargetRequest, target};
use novafed::decision::ownership::{Decision, DecisionAnswer, Moved};
use novafed::drivers::embedded::faults::{CallKind, Fault};
use novafed::drivers::embedded::wire::{self, AdminCall, ClusterOffer, Purpose, Response, Welcome};
use novafed::drivers::{
    DirtyRate, HostCall, HostCapabilities, HostError, HostReply, SealReport, SnapshotInfo, TransferProgress,
    VmObservation,
};
use novafed::protocol::bodies::*;
use novafed::types::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The frozen bytes of one file.
struct Frozen {
    name: &'static str,
    known: BTreeMap<String, String>,
    now: String,
    wrong: Vec<String>,
}

impl Frozen {
    fn file(name: &'static str) -> Frozen {
        let text = std::fs::read_to_string(Frozen::path(name)).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').map(|(what, bytes)| (what.to_owned(), bytes.to_owned()));
        Frozen { name, known: text.lines().filter_map(line).collect(), now: String::new(), wrong: Vec::new() }
    }

    fn path(name: &str) -> String {
        format!("{}/tests/fixtures/v1/{name}.txt", env!("CARGO_MANIFEST_DIR"))
    }

    /// One value under `what`.
    fn one<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, what: &str, sample: &T) {
        let bytes = postcard::to_stdvec(sample).unwrap();
        let mut hex = String::new();
        for byte in &bytes {
            write!(hex, "{byte:02x}").unwrap();
        }
        writeln!(self.now, "{what} {hex}").unwrap();
        match postcard::from_bytes::<T>(&bytes) {
            Ok(read) if read == *sample => {}
            other => self.wrong.push(format!("{what} reads back as {other:?}")),
        }
        if self.known.get(what) != Some(&hex) {
            self.wrong.push(format!("{what} is {hex}, frozen is {:?}", self.known.get(what)));
        }
    }

    /// One sample of each variant of an enum, in their order.
    fn each<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, what: &str, samples: &[T]) {
        for (at, sample) in samples.iter().enumerate() {
            let first = usize::from(postcard::to_stdvec(sample).unwrap()[0]);
            assert_eq!(first, at, "{what}: {sample:?} does not stand at its place");
            self.one(&format!("{what}.{at}"), sample);
        }
        let beyond = u8::try_from(samples.len()).unwrap();
        let padded: Vec<u8> = std::iter::once(beyond).chain([0; 64]).collect();
        // A variant without a sample here would be one whose bytes nobody froze.
        assert!(postcard::from_bytes::<T>(&padded).is_err(), "{what} has more variants than samples");
    }

    fn hold(self) {
        if std::env::var_os("NOVAFED_WRITE_FIXTURES").is_some() && self.known.is_empty() {
            std::fs::write(Frozen::path(self.name), self.now).unwrap();
            return;
        }
        assert!(self.wrong.is_empty(), "{}: version 1 has changed:\n{}", self.name, self.wrong.join("\n"));
    }
}

fn vm() -> VmId {
    VmId { region: RegionNumber(1), incarnation: 2, number: 7 }
}

fn job() -> JobId {
    JobId { region: RegionNumber(1), incarnation: 2, number: 3 }
}

fn key() -> SwitchKey {
    SwitchKey { vm: vm(), job: job(), attempt: Attempt(4) }
}

fn place(text: &str) -> Place {
    text.parse().unwrap()
}

fn fence() -> Fence {
    Fence { epoch: 2, generation: 300 }
}

fn spec() -> VmSpec {
    serde_json::from_str(r#"{"name":"web","cpu":2,"memoryBytes":4096,"diskBytes":65536,"labels":{"tier":"front"}}"#)
        .unwrap()
}

fn resources() -> Resources {
    Resources { cpu: 2, memory_bytes: 4096, disk_bytes: 65_536 }
}

fn incarnation() -> Incarnation {
    Incarnation { counter: 4, nonce: 0xdead_beef }
}

fn why() -> String {
    "why".into()
}

#[test]
fn messages_between_regions() {
    let mut frozen = Frozen::file("messages");
    let (attempt, from, to) = (Attempt(4), place("eu/eu-a"), place("us/us-a"));
    let offer = Some(Box::new(Offer { spec: spec(), next_fence: fence() }));
    let request = TargetRequest::Reserve;
    frozen.each(
        "MigrationMessage",
        &[
            MigrationMessage::Ask { job: job(), attempt, vm: vm(), from, to: to.clone(), request, offer },
            MigrationMessage::AskDecision { vm: vm(), attempt },
        ],
    );
    frozen.each(
        "TargetRequest",
        &[
            TargetRequest::Reserve,
            TargetRequest::Prepare,
            TargetRequest::Seal,
            TargetRequest::Start { cold: true },
            TargetRequest::Verify,
            TargetRequest::Discard,
        ],
    );
    frozen.each(
        "MigrationReply",
        &[
            MigrationReply::Target(TargetAnswer::Reserved),
            MigrationReply::Pending,
            MigrationReply::Decision(DecisionAnswer::Undecided),
        ],
    );
    frozen.each(
        "TargetAnswer",
        &[
            TargetAnswer::Reserved,
            TargetAnswer::Prepared,
            TargetAnswer::Sealed { digest: 5, tick: 600 },
            TargetAnswer::NotComplete,
            TargetAnswer::Started,
            TargetAnswer::Verified { tick: 601 },
            TargetAnswer::Discarded,
            TargetAnswer::Refused { why: why() },
            TargetAnswer::Lost { why: why() },
            TargetAnswer::Superseded { by: Attempt(5) },
        ],
    );
    frozen.each(
        "DecisionAnswer",
        &[DecisionAnswer::Undecided, DecisionAnswer::Decided(Decision::Abort), DecisionAnswer::Superseded],
    );
    let moved = Moved { to, fence: fence(), attempt };
    frozen.each(
        "AnnounceMessage",
        &[AnnounceMessage::VmArrived { vm: vm(), moved }, AnnounceMessage::Discard { job: job(), vm: vm(), attempt }],
    );
    frozen.each("Channel", &[Channel::Blocks, Channel::Disk, Channel::Memory]);
    frozen.one("BulkHello", &BulkHello { key: key(), channel: Channel::Blocks });
    frozen.one("ApiMessage", &ApiMessage { request: vec![1, 2] });
    frozen.one("ApiReply", &ApiReply { reply: vec![3, 4] });
    let view = ClusterView {
        id: "eu-a".parse().unwrap(),
        region: "eu".parse().unwrap(),
        host: "host-a".parse().unwrap(),
        driver: "embedded".into(),
        state: ClusterState::Degraded,
        reason: why(),
        since_ms: Millis(9),
        capacity: resources(),
        used: Resources::default(),
        reserved: Resources::default(),
        vms: 1,
        age_ms: Some(Millis(10)),
        stale: false,
    };
    frozen
        .one("DirectoryMessage", &DirectoryMessage { generation: 8, acknowledged: Some((4, 9)), clusters: vec![view] });
    frozen.hold();
}

#[test]
fn entries_of_journals() {
    use source::Event as S;
    use target::Event as T;
    let mut frozen = Frozen::file("journals");
    let round = Round {
        rounds: 2,
        remaining_bytes: 300,
        bytes_per_second: 400,
        dirty_bytes_per_second: 500,
        overhead_us: 600,
        decider_reachable: true,
    };
    let view = HostView { alive: true, paused: false, held: true, spent: false, gone: false };
    frozen.each(
        "source.Event",
        &[
            S::Go,
            S::Reserved,
            S::Prepared,
            S::Round(round),
            S::Paused,
            S::Sealed,
            S::Held,
            S::Decided(Decision::Transfer),
            S::Retired,
            S::Started,
            S::Verified,
            S::Resumed,
            S::Revived,
            S::TargetRefused { why: why() },
            S::TargetLost { why: why() },
            S::SourceRefused { why: why() },
            S::SourceLost { why: why() },
            S::TimedOut,
            S::Unknown,
            S::Observed(view),
            S::Cancel,
            S::Retry,
            S::Probe,
            S::Undo,
            S::Abandon,
            S::Quarantined,
        ],
    );
    frozen.each(
        "target.Event",
        &[
            T::Asked(TargetRequest::Seal),
            T::Told(DecisionAnswer::Superseded),
            T::HostPrepared,
            T::HostSealed { digest: 5, tick: 600 },
            T::HostIncomplete,
            T::HostStarted,
            T::HostRuns { tick: 601 },
            T::HostDiscarded,
            T::HostRefused { why: why() },
            T::HostLost { why: why() },
            T::TimedOut,
        ],
    );
    frozen.each(
        "Step",
        &[
            Step::Queue,
            Step::Reserve,
            Step::Prepare,
            Step::Copy,
            Step::Pause,
            Step::Seal,
            Step::Hold,
            Step::Decide,
            Step::Switch,
            Step::Verify,
            Step::Resume,
            Step::Revive,
            Step::Discard,
            Step::Park,
            Step::End,
        ],
    );
    frozen.one("source.Input", &source::Input { attempt: Attempt(4), step: Some(Step::Copy), event: S::TimedOut });
    frozen.one("target.Input", &target::Input { attempt: Attempt(4), step: None, event: T::TimedOut });
    frozen.hold();
}

fn calls() -> Vec<HostCall> {
    let (vm, key, fence, spec) = (vm(), key(), fence(), spec());
    vec![
        HostCall::Capabilities,
        HostCall::Inventory,
        HostCall::Get { vm },
        HostCall::Create { vm, spec: spec.clone(), fence },
        HostCall::Start { vm, fence },
        HostCall::Stop { vm, fence },
        HostCall::Delete { vm, fence },
        HostCall::Snapshot { vm, directory: "x/y".into() },
        HostCall::DirtyRate { vm },
        HostCall::PrepareReceive { key, spec, fence },
        HostCall::SealReceive { key },
        HostCall::Activate { key, fence },
        HostCall::DiscardReceive { key },
        HostCall::Send { key, bytes_per_second_max: Some(1_000) },
        HostCall::Progress { key },
        HostCall::StopSending { key },
        HostCall::PauseForSwitch { key, fence, deadline: Millis(900) },
        HostCall::CancelPause { key },
        HostCall::Hold { key },
        HostCall::ReleaseHold { key },
        HostCall::Retire { key, fence },
        HostCall::Purge { vm, fence },
    ]
}

fn replies() -> Vec<HostReply> {
    let sight = Sight {
        power: GuestPower::Paused,
        fence: fence(),
        attempt: Attempt(4),
        hold: Some(key()),
        paused_for: None,
        spent: None,
        receiving: Some((key(), true)),
        tick: 600,
    };
    let seen = VmObservation { vm: vm(), spec: spec(), sight };
    let capabilities = HostCapabilities {
        driver: "embedded".into(),
        version: "1".into(),
        capacity: resources(),
        live_migration: true,
        channels: vec![(Channel::Blocks, true)],
    };
    vec![
        HostReply::Done,
        HostReply::Capabilities(capabilities),
        HostReply::Inventory(vec![]),
        HostReply::Vm(Some(seen)),
        HostReply::DirtyRate(DirtyRate { working_set_bytes: 7, ..DirtyRate::default() }),
        HostReply::Progress(TransferProgress { rounds: 3, drained: true, ..TransferProgress::default() }),
        HostReply::Sealed(SealReport { digest: 5, tick: 600, stored_bytes: 700 }),
        HostReply::Snapshot(SnapshotInfo { files: vec!["x/y/memory".into()], tick: 600 }),
    ]
}

#[test]
fn frames_between_node_and_host() {
    let mut frozen = Frozen::file("host");
    frozen.each("HostCall", &calls());
    frozen.each("HostReply", &replies());
    let why = why;
    frozen.each(
        "HostError",
        &[
            HostError::NotFound { what: why() },
            HostError::Fenced { vm: vm(), seen: why(), got: why() },
            HostError::StaleIncarnation { known: incarnation(), presented: Incarnation { counter: 3, nonce: 1 } },
            HostError::Refused { why: why() },
            HostError::NoRoom { why: why() },
            HostError::Unsupported { what: why() },
            HostError::Failed { why: why() },
            HostError::Unknown { why: why() },
        ],
    );
    let (region, cluster): (RegionName, ClusterId) = ("eu".parse().unwrap(), "eu-a".parse().unwrap());
    let lineage = Lineage { now: incarnation(), before: vec![3, 2] };
    let clusters = vec![ClusterOffer { cluster: cluster.clone(), capacity: resources() }];
    let (channel, end) = (Channel::Blocks, End::Target);
    frozen.each(
        "Purpose",
        &[
            Purpose::Session { region: region.clone(), lineage: lineage.clone(), clusters },
            Purpose::Channel { region, lineage, cluster: cluster.clone(), key: key(), channel, end },
            Purpose::Admin(AdminCall::Status),
            Purpose::Observe { cluster: cluster.clone(), call: HostCall::Inventory },
        ],
    );
    frozen.each(
        "AdminCall",
        &[
            AdminCall::Status,
            AdminCall::Stop,
            AdminCall::PlanFault { kind: CallKind::Hold, fault: Fault::Slow(Millis(5)), times: 2 },
            AdminCall::ClearFaults,
        ],
    );
    frozen.one("Hello", &wire::Hello { protocol: 1, purpose: Purpose::Admin(AdminCall::Stop) });
    frozen.one("Welcome", &Welcome { host: "host-a".parse().unwrap(), pid: 77 });
    let operation = OperationId::of_job(job(), Attempt(4), "hold");
    frozen.one("Request", &wire::Request { serial: 9, cluster, operation, call: HostCall::Hold { key: key() } });
    frozen.one("Response", &Response { serial: 9, result: Ok(HostReply::Done) });
    frozen.hold();
}
