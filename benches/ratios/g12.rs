//! G12: what the federation adds to a live migration of the embedded hypervisor. Bare is the hypervisor by itself: two
//! host processes, driven by nothing but their calls, their channel joined by a bare quinn connection (no journal, no
//! regions that agree, and no hold, without which a crash could run the guest twice).
//! The blackout is what the guest saw: from its last tick at the one host to the next at the other.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use novafed::chaos::process::{Run, wait_for};
use novafed::chaos::relay::Impairment;
use novafed::clock::machine_nanos;
use novafed::drivers::embedded::client::{DriverOptions, EmbeddedDriver};
use novafed::drivers::embedded::launch::{Launch, ensure_running};
use novafed::drivers::embedded::witness::{Consoles, check};
use novafed::drivers::{Channel, End, HostCall, HostReply, Hypervisor, SwitchKey};
use novafed::types::*;
use tokio::io::{AsyncRead, AsyncWrite, Join};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;

use crate::fed::{BINARY, PATIENCE, Two, capacity, spec};
use crate::g2 as quic;
use crate::g4::commit_us;
use crate::measure::{Bench, Goal, median, target};

const MEMORY: u64 = 64 * MIB;
const DISK: u64 = 16 * MIB;
/// Round trips of the published table between cloud regions: within a city, within a continent, over an ocean, far.
const ROUND_TRIPS: [Millis; 4] = [Millis(2), Millis(31), Millis(86), Millis(250)];
/// What the goal allows beside two durable commits and one round trip.
const SPARE_MS: f64 = 5.0;
/// Moves whose median is one value where there is no baseline.
const MOVES: usize = 3;
const CALL: Millis = Millis(5_000);

/// Ticks each millisecond, so that the blackout is seen that sharply; writes a little all the time.
fn guest(name: &str) -> VmSpec {
    let program = GuestProgram {
        seed: 12,
        tick_ms: 1,
        resident_bytes: MEMORY,
        working_set_bytes: 256 * KIB,
        dirty_bytes_per_second: 256 * KIB,
        disk_resident_bytes: DISK / 2,
        ..GuestProgram::default()
    };
    spec(name, MEMORY, DISK, program)
}

/// What a move took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    total_ms: f64,
    blackout_ms: f64,
}

/// The federation, and where the guest is.
struct Ours {
    two: Two,
    vm: VmId,
    at: RefCell<RegionName>,
}

impl Ours {
    async fn start() -> Ours {
        let two = Two::start("\n[migration]\nretention = \"0 s\"\n").await;
        let vm = two.create(&two.eu, &guest("ours")).await;
        two.runs(&two.eu, vm).await;
        let at = RefCell::new(two.eu.clone());
        Ours { two, vm, at }
    }

    /// Moves it to the other region.
    async fn travel(&self) -> Cost {
        let two = &self.two;
        let from = self.at.borrow().clone();
        let to = if from == two.eu { two.us.clone() } else { two.eu.clone() };
        let options = MigrationOptions { max_downtime_ms: Some(3_000), ..MigrationOptions::default() };
        let plan = two.plan(&from, &to, self.vm, &options).await;
        let job = two.begin(&from, plan).await;
        let status = two.end_of(&from, job).await;
        assert_eq!(status.state, JobState::Completed, "{:?}", status.reason);
        *self.at.borrow_mut() = to.clone();
        let ended = status.completed_at.expect("it has ended");
        let report = two.fed.witness().expect("consoles");
        let gap = report.vms[&self.vm].moves.last().expect("it moved").gap_nanos;
        Cost { total_ms: (ended.0 - status.started_at.0) as f64, blackout_ms: gap as f64 / 1e6 }
    }
}

type Streams = Receiver<Join<quinn::RecvStream, quinn::SendStream>>;

/// Two hosts, and where the guest is.
struct Hosts {
    run: Run,
    /// What joins them, and where its other end's streams come out.
    between: (quic::Bare, Mutex<Streams>),
    drivers: [EmbeddedDriver; 2],
    vm: VmId,
    spec: VmSpec,
    moves: RefCell<u32>,
}

fn fence(moves: u32) -> Fence {
    Fence { epoch: u64::from(moves) + 1, generation: 1 }
}

impl Hosts {
    async fn start() -> Hosts {
        let run = Run::create_in(&target()).await.expect("a directory");
        let drivers = [driver(run.dir(), "bare-a").await, driver(run.dir(), "bare-b").await];
        let (vm, spec) = ("vm-9-1-1".parse().expect("an id"), guest("bare"));
        // One stream at a time.
        let (sender, streams) = tokio::sync::mpsc::channel(1);
        let serve = move |send, recv| drop(sender.try_send(tokio::io::join(recv, send)));
        let between = quic::Bare::serving(quinn::TransportConfig::default(), serve).await;
        let bare = Hosts { run, between: (between, Mutex::new(streams)), drivers, vm, spec, moves: RefCell::new(0) };
        bare.call(0, HostCall::Create { vm, spec: bare.spec.clone(), fence: fence(0) }).await;
        bare.call(0, HostCall::Start { vm, fence: fence(0) }).await;
        bare
    }

    async fn call(&self, host: usize, call: HostCall) -> HostReply {
        let request = RequestId { region: RegionNumber(9), incarnation: 1, number: machine_nanos() };
        let operation = OperationId::of_request(request, "bench");
        self.drivers[host].call(operation, call, CALL).await.expect("the host does it")
    }

    /// Moves it to the other host: rounds until little is left, pause, the last round, start.
    async fn travel(&self) -> Cost {
        let moves = *self.moves.borrow();
        let (source, sink) = ((moves % 2) as usize, (moves as usize + 1) % 2);
        let job = JobId { region: RegionNumber(9), incarnation: 1, number: u64::from(moves) + 1 };
        let key = SwitchKey { vm: self.vm, job, attempt: Attempt(moves + 1) };
        let start = machine_nanos();
        self.call(sink, HostCall::PrepareReceive { key, spec: self.spec.clone(), fence: fence(moves + 1) }).await;
        self.call(source, HostCall::Send { key, bytes_per_second_max: None }).await;
        let open = async |host: usize, end| {
            self.drivers[host].open_channel(key, Channel::Blocks, end).await.expect("its channel opens")
        };
        let (mut near, mut far) = (open(source, End::Source).await, open(sink, End::Target).await);
        let (send, recv) = self.between.0.connection.open_bi().await.expect("it is open");
        let mut there = tokio::io::join(recv, send);
        let receiving = tokio::spawn(async move { relay(&mut far, &mut there).await });
        // The target speaks first, and a stream is seen with its first bytes.
        let mut here = self.between.1.lock().await.recv().await.expect("a stream");
        let sending = tokio::spawn(async move { relay(&mut near, &mut here).await });
        loop {
            let HostReply::Progress(progress) = self.call(source, HostCall::Progress { key }).await else { continue };
            if progress.rounds >= 1 && progress.remaining_bytes <= MIB {
                break;
            }
            tokio::time::sleep(Millis(5).duration()).await;
        }
        self.call(source, HostCall::PauseForSwitch { key, fence: fence(moves), deadline: CALL }).await;
        let HostReply::Sealed(sealed) = self.call(sink, HostCall::SealReceive { key }).await else {
            panic!("it has everything");
        };
        self.call(sink, HostCall::Activate { key, fence: fence(moves + 1) }).await;
        // A migration is over when the guest is seen to run.
        while let HostReply::Vm(Some(seen)) = self.call(sink, HostCall::Get { vm: self.vm }).await
            && seen.sight.tick <= sealed.tick
        {
            tokio::time::sleep(Millis(1).duration()).await;
        }
        let total_ms = (machine_nanos() - start) as f64 / 1e6;
        sending.abort();
        receiving.abort();
        self.call(source, HostCall::Hold { key }).await;
        self.call(source, HostCall::Retire { key, fence: fence(moves + 1) }).await;
        self.call(source, HostCall::Purge { vm: self.vm, fence: fence(moves + 1) }).await;
        *self.moves.borrow_mut() += 1;
        let moved = wait_for("a tick after the move", PATIENCE, async || {
            let mut consoles = Consoles::default();
            for host in ["bare-a", "bare-b"] {
                let dir = self.run.dir().join(host).join("console");
                consoles.add_directory(&dir).map_err(|e| e.to_string())?;
            }
            let report = check(&consoles);
            let seen = &report.vms[&self.vm].moves;
            if seen.len() == moves as usize + 1 {
                Ok(seen[moves as usize].gap_nanos)
            } else {
                Err(seen.len().to_string())
            }
        });
        Cost { total_ms, blackout_ms: moved.await.expect("it ticks") as f64 / 1e6 }
    }
}

/// Bytes in both directions until it is aborted.
async fn relay(a: &mut (impl AsyncRead + AsyncWrite + Unpin), b: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    const BUFFER: usize = 256 * 1024;
    let _ = tokio::io::copy_bidirectional_with_sizes(a, b, BUFFER, BUFFER).await;
}

async fn driver(dir: &Path, name: &str) -> EmbeddedDriver {
    let directory = dir.join(name);
    let launch = Launch {
        program: Some(PathBuf::from(BINARY)),
        directory: directory.clone(),
        name: name.parse().expect("a name"),
        allow_faults: false,
    };
    ensure_running(&launch).await.expect("the host starts");
    EmbeddedDriver::new(DriverOptions {
        directory,
        region: "bare".parse().expect("a name"),
        lineage: Lineage::after(None, 1),
        cluster: name.parse().expect("a name"),
        capacity: capacity(),
    })
}

/// Measures G12.
pub fn register(bench: &mut Bench) {
    let (total, blackout) = ("G12 whole migration of 64 MiB", "G12 blackout");
    let apart = ROUND_TRIPS.map(|rtt| (rtt, format!("G12 blackout, {rtt} apart, over near")));
    if !bench.wants(total) && !bench.wants(blackout) && !apart.iter().any(|(_, name)| bench.wants(name)) {
        return;
    }
    let runtime = Runtime::new().expect("a runtime");
    let (ours, bare) = runtime.block_on(async { (Ours::start().await, Hosts::start().await) });
    let goal = Goal::RatioAtMost(1.15);
    let (a, b) = (|| runtime.block_on(ours.travel()), || runtime.block_on(bare.travel()));
    bench.compare(total, "ms", goal, || a().total_ms, || b().total_ms);
    let allowed = 2.0 * commit_us() / 1e3 + SPARE_MS;
    bench.compare(blackout, "ms", Goal::AddsAtMost(allowed), || a().blackout_ms, || b().blackout_ms);
    let some = || median((0..MOVES).map(|_| a().blackout_ms).collect());
    if apart.iter().any(|(_, name)| bench.wants(name)) {
        let near = some();
        for (rtt, name) in &apart {
            let way = Impairment { delay: Millis(rtt.0 / 2), ..Impairment::default() };
            let two = &ours.two;
            for (from, to) in [(&two.eu, &two.us), (&two.us, &two.eu)] {
                two.fed.relay(from, to).expect("a way").set_both(way);
            }
            let measured_ms = runtime.block_on(two.apart(*rtt));
            // In round trips: the goal is two more than where both regions are in one place.
            bench.absolute(name, "rtt", Goal::AtMost(2.0), || (some() - near) / measured_ms);
        }
    }
    runtime.block_on(async {
        let Hosts { run, drivers, .. } = bare;
        drop(drivers);
        run.close().await.expect("nothing is left behind");
        ours.two.close().await;
    });
}
