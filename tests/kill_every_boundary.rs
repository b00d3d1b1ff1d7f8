//! Real processes, killed with SIGKILL exactly at each boundary of a migration that the step table lists.
//! For each point: the process dies there (it left word of it), restarts, and the job ends as its row promises; by the
//! witness the guest's ticks are contiguous and never overlap between hosts; memory and disk are right.

#![allow(clippy::print_stdout, reason = "a test says which points it hit")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use novafed::admin::client::{Ask, ClientError};
use novafed::admin::{FederationStatus, LinkView, Page, VmView};
use novafed::chaos::federation::{Federation, Setup};
use novafed::chaos::moves::guest;
use novafed::chaos::process::{Run, wait_for};
use novafed::decision::migration::steps::{KillPoint, Moment, Side, Step};
use novafed::drivers::{HostCall, HostReply};
use novafed::types::*;

const END_MS_MAX: Millis = Millis(60_000);
/// Short, so that a restart after it does not take long.
const WATCHDOG_MS: u64 = 1_500;

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn place(text: &str) -> Place {
    text.parse().unwrap()
}

fn setup() -> Setup {
    let capacity = Resources { cpu: 1_000, memory_bytes: 64 * GIB, disk_bytes: 64 * GIB };
    let clusters = ["eu/eu-a", "us/us-a"].map(place);
    Setup::of("kill".parse().unwrap(), clusters, capacity, "\n[migration]\nretention = \"0 s\"\n")
}

fn spec(name: &str, seed: u64) -> VmSpec {
    let program = GuestProgram {
        seed,
        tick_ms: 5,
        resident_bytes: 2 * MIB,
        working_set_bytes: MIB,
        dirty_bytes_per_second: MIB,
        disk_resident_bytes: MIB,
        disk_bytes_per_second: 128 * KIB,
        ..GuestProgram::default()
    };
    guest(name.parse().unwrap(), 4 * MIB, 2 * MIB, program)
}

struct Bench {
    fed: Federation,
    eu: RegionName,
    us: RegionName,
    number: u64,
}

/// What came of one move under a death.
struct Outcome {
    vm: VmId,
    job: JobId,
    spec: VmSpec,
    died: bool,
    status: MigrationStatus,
}

impl Bench {
    async fn start(dir: &Path) -> Bench {
        let mut fed = Federation::start(dir, &setup(), Path::new(env!("CARGO_BIN_EXE_novafed"))).await.unwrap();
        fed.all_ready().await.unwrap();
        Bench { fed, eu: region("eu"), us: region("us"), number: 0 }
    }

    async fn restart(&mut self, name: &RegionName, point: Option<KillPoint>) {
        self.fed.kill_at(name, point).unwrap();
        self.fed.start_node(name).await.unwrap();
        self.fed.ready(name).await.unwrap();
    }

    fn killed(&self, name: &RegionName) -> String {
        let word = self.fed.region_dir(name).unwrap().join("run/killed");
        std::fs::read_to_string(word).unwrap_or_default()
    }

    async fn create(&mut self) -> (VmId, VmSpec) {
        self.number += 1;
        let spec = spec(&format!("guest-{}", self.number), self.number);
        let vm = self.fed.create(&self.eu, &spec).await.unwrap().vm.unwrap().record.id;
        self.power(vm, "running").await;
        (vm, spec)
    }

    async fn plan(&self, vm: VmId) -> PlanId {
        self.plan_with(vm, &serde_json::json!({ "switchDeadlineMs": WATCHDOG_MS, "maxDowntimeMs": 500 })).await
    }

    async fn plan_with(&self, vm: VmId, options: &serde_json::Value) -> PlanId {
        self.fed.planned(&self.eu, vm, &place("us/us-a"), options).await.unwrap()
    }

    /// A client that repeats an unanswered request with its key, as the API asks it to.
    async fn start_move(&self, plan: PlanId, key: &str) -> Result<MigrationStatus, ClientError> {
        let body = serde_json::json!({ "planID": plan });
        let client = self.fed.api(&self.eu).unwrap().deadline(Millis(3_000));
        client.typed(Ask::post("/v2/migrations").body(&body).key(key)).await
    }

    /// Moves a new VM while `point` is armed on its side; restarts the dead node after `pause`.
    async fn die_at(&mut self, point: KillPoint, pause: Duration) -> Outcome {
        let (vm, spec) = self.create().await;
        let victim = self.side(point.side);
        let (plan, key, first, died) = self.killed_at(vm, point).await;
        // Not a wait for something to have happened by then: the moment of the restart is what is being tried.
        tokio::time::sleep(pause).await;
        self.restart(&victim, None).await;
        let job = match first {
            Ok(status) => status.id,
            Err(_) => self.start_move(plan, &key).await.unwrap().id,
        };
        let status = self.end_of(job).await;
        Outcome { vm, job, spec, died, status }
    }

    fn side(&self, side: Side) -> RegionName {
        match side {
            Side::Source => self.eu.clone(),
            Side::Target => self.us.clone(),
        }
    }

    /// Moves `vm` while `point` is armed, and leaves the node of that side dead: the plan, the key that the move was
    /// started with, the answer, and whether the node died where it was told to.
    async fn killed_at(
        &mut self,
        vm: VmId,
        point: KillPoint,
    ) -> (PlanId, String, Result<MigrationStatus, ClientError>, bool) {
        let victim = self.side(point.side);
        self.fed.stop_node(&victim).await.unwrap();
        let word = self.fed.region_dir(&victim).unwrap().join("run/killed");
        let _ = std::fs::remove_file(word);
        self.restart(&victim, Some(point)).await;
        let plan = self.plan(vm).await;
        let key = format!("move-{}", self.number);
        let first = self.start_move(plan, &key).await;
        let ended = self.fed.node(&victim).unwrap().wait(END_MS_MAX).await.unwrap();
        let died = ended.signal() == Some(9) && self.killed(&victim).lines().any(|line| line == point.to_string());
        (plan, key, first, died)
    }

    async fn end_of(&self, job: JobId) -> MigrationStatus {
        self.fed.end_of(&self.eu, job).await.unwrap()
    }

    /// What the regions owe each other by their outboxes is delivered, and acknowledged.
    async fn everything_is_delivered(&self) {
        for name in [&self.eu, &self.us] {
            wait_for("the outbox to be empty", END_MS_MAX, async || {
                let links: Page<LinkView> = self.fed.get(name, "/v2/links").await.map_err(|e| e.to_string())?;
                match links.items.iter().map(|link| link.outbox).sum::<u64>() {
                    0 => Ok(()),
                    waiting => Err(format!("{waiting} commands wait in {name}")),
                }
            })
            .await
            .unwrap();
        }
    }

    async fn a_cancelled_move_leaves_nothing_at_the_target(&mut self) {
        let (vm, _) = self.create().await;
        let plan = self.plan_with(vm, &serde_json::json!({ "bandwidthLimitBytesPerSecond": 200_000 })).await;
        let job = self.start_move(plan, "to-be-cancelled").await.unwrap().id;
        let cancel = Ask::post(format!("/v2/migrations/{job}/cancel"));
        let _: MigrationStatus = self.fed.api(&self.eu).unwrap().typed(cancel).await.unwrap();
        assert_eq!(self.end_of(job).await.state, JobState::Cancelled);
        wait_for("the target's room to be free again", END_MS_MAX, async || {
            let page: Page<ClusterView> =
                self.fed.get(&self.us, "/v2/clusters?region=us").await.map_err(|e| e.to_string())?;
            let reserved = page.items.iter().map(|cluster| cluster.reserved.cpu).sum::<u64>();
            if reserved == 0 { Ok(()) } else { Err(format!("{reserved} CPUs are reserved")) }
        })
        .await
        .unwrap();
    }

    /// The witness and the judge over one VM; the VM is then deleted, so that the hosts stay quiet.
    async fn judge(&self, outcome: &Outcome, at: &Place) -> Vec<String> {
        let mut wrong = Vec::new();
        let report = self.fed.witness().unwrap();
        let about = report
            .violations
            .iter()
            .map(ToString::to_string)
            .filter(|v| v.contains(&format!("{}:", outcome.vm)) || v.contains(&format!("{} ran", outcome.vm)));
        wrong.extend(about);
        match self.fed.judge(at, outcome.vm, &outcome.spec).await {
            Ok(Ok(_)) => {}
            Ok(Err(why)) => wrong.push(why),
            Err(error) => wrong.push(format!("{error:?}")),
        }
        let owner = &at.region;
        let deleted = self.fed.api(owner).unwrap().ask(Ask::delete(format!("/v2/vms/{}", outcome.vm))).await;
        if let Err(error) = deleted {
            wrong.push(format!("deleting it: {error}"));
        }
        wrong
    }
}

fn is_switch(step: Step) -> bool {
    matches!(step, Step::Pause | Step::Seal | Step::Hold | Step::Decide)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_at_any_boundary_comes_back_and_the_move_completes() {
    let run = Run::create().await.unwrap();
    let mut bench = Bench::start(run.dir()).await;
    let (mut hits, mut wrong) = (BTreeMap::<KillPoint, u32>::new(), Vec::new());
    for point in KillPoint::all_forward() {
        let mut pauses = vec![("at once", Duration::ZERO)];
        if is_switch(point.step) {
            pauses.push(("after the watchdog", Duration::from_millis(WATCHDOG_MS + 300)));
        }
        for (when, pause) in pauses {
            let outcome = bench.die_at(point, pause).await;
            if outcome.died {
                *hits.entry(point).or_default() += 1;
            } else {
                wrong.push(format!("{point} ({when}): the node did not die there"));
            }
            let promised = point.step.row().after_node_death;
            if Some(outcome.status.state) != promised {
                let reason = outcome.status.reason.as_deref().unwrap_or("-");
                wrong.push(format!("{point} ({when}): {} ended as {:?}: {reason}", outcome.job, outcome.status.state));
            }
            let at = match outcome.status.state {
                JobState::Completed => place("us/us-a"),
                _ => place("eu/eu-a"),
            };
            wrong.extend(bench.judge(&outcome, &at).await.into_iter().map(|w| format!("{point} ({when}): {w}")));
        }
    }
    bench.everything_is_delivered().await;
    bench.a_cancelled_move_leaves_nothing_at_the_target().await;
    drop(bench);
    run.close().await.unwrap();
    for (point, count) in &hits {
        println!("hit {point} {count}");
    }
    println!("{} points, {} deaths", hits.len(), hits.values().sum::<u32>());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(hits.len(), KillPoint::all_forward().len(), "each point was hit");
    assert!(hits.keys().any(|p| p.moment == Moment::AfterEffect));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_dies_in_the_middle_of_a_copy_has_an_honest_end() {
    let run = Run::create().await.unwrap();
    let mut bench = Bench::start(run.dir()).await;
    let slow = serde_json::json!({ "bandwidthLimitBytesPerSecond": 400_000, "maxDowntimeMs": 5_000 });

    // The source's host: the guest's memory is gone, so the move is rolled back; the VM is lost, not doubled, and
    // starts again from its disk.
    let (vm, spec) = bench.create().await;
    let job = bench.move_with(vm, &slow).await;
    bench.copying(job).await;
    bench.fed.kill_host(&place("eu/eu-a")).await.unwrap();
    let status = bench.end_of(job).await;
    assert_eq!(status.state, JobState::RolledBack, "{:?}", status.reason);
    bench.power(vm, "lost").await;
    let started: VmView = bench.fed.post(&bench.eu, &format!("/v2/vms/{vm}/start"), &()).await.unwrap();
    assert_eq!(started.power.word(), "running");
    let outcome = Outcome { vm, job, spec, died: true, status };
    assert_eq!(bench.judge(&outcome, &place("eu/eu-a")).await, Vec::<String>::new());

    // The target's host: what it had received is gone; another attempt sends it again, and the move completes.
    let (vm, spec) = bench.create().await;
    let job = bench.move_with(vm, &slow).await;
    bench.copying(job).await;
    bench.fed.kill_host(&place("us/us-a")).await.unwrap();
    let status = bench.end_of(job).await;
    assert_eq!(status.state, JobState::Completed, "{:?}", status.reason);
    let outcome = Outcome { vm, job, spec, died: true, status };
    assert_eq!(bench.judge(&outcome, &place("us/us-a")).await, Vec::<String>::new());
    drop(bench);
    run.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_that_is_lost_after_the_decision_waits_for_a_persons_word() {
    let run = Run::create().await.unwrap();
    let mut bench = Bench::start(run.dir()).await;
    let (us, there) = (bench.us.clone(), place("us/us-a"));
    let point = "switch:target:before-write".parse().unwrap();
    for word in ["retry", "start", "delete"] {
        let (vm, spec) = bench.create().await;
        let (_, _, first, died) = bench.killed_at(vm, point).await;
        assert!(died, "the node died at {point}");
        let job = first.unwrap().id;
        // What was sealed is on the disk; the guest's memory was in the host's.
        bench.fed.kill_host(&there).await.unwrap();
        bench.restart(&us, None).await;
        let parked =
            bench.fed.until(&bench.eu, job, "to park", |status| status.state == JobState::Parked).await.unwrap();
        assert_eq!(parked.commands, ["retry", "probe", "abandon"], "{:?}", parked.reason);
        wait_for("the cluster to say what is the matter", END_MS_MAX, async || {
            let seen: VmView = bench.fed.get(&us, &format!("/v2/vms/{vm}")).await.map_err(|e| e.to_string())?;
            assert_ne!(seen.power.word(), "running", "nobody said that it may forget what it did");
            match seen.trouble {
                Some(why) if why.contains("from its disk") && seen.power.word() == "lost" => Ok(()),
                other => Err(format!("{}: {other:?}", seen.power.word())),
            }
        })
        .await
        .unwrap();
        let federation: FederationStatus = bench.fed.get(&us, "/v2/federation/status").await.unwrap();
        assert!(federation.issues.iter().any(|issue| issue.code == "vms-lost"), "{:?}", federation.issues);
        if word == "delete" {
            bench.fed.api(&us).unwrap().ask(Ask::delete(format!("/v2/vms/{vm}"))).await.unwrap();
            wait_for("the host to have it no more", END_MS_MAX, async || {
                match bench.fed.observe(&there, HostCall::Get { vm }).await.map_err(|e| e.to_string())? {
                    HostReply::Vm(None) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await
            .unwrap();
            let abandon = format!("/v2/migrations/{job}/abandon");
            let _: MigrationStatus = bench.fed.post(&bench.eu, &abandon, &serde_json::json!({})).await.unwrap();
            assert_eq!(bench.end_of(job).await.state, JobState::Completed);
            continue;
        }
        if word == "start" {
            let _: VmView = bench.fed.post(&us, &format!("/v2/vms/{vm}/start"), &()).await.unwrap();
            bench.fed.powered(&us, vm, "running").await.unwrap();
        }
        let _: MigrationStatus =
            bench.fed.post(&bench.eu, &format!("/v2/migrations/{job}/retry"), &serde_json::json!({})).await.unwrap();
        let status = bench.end_of(job).await;
        assert_eq!(status.state, JobState::Completed, "{:?}", status.reason);
        bench.fed.powered(&us, vm, "running").await.unwrap();
        let outcome = Outcome { vm, job, spec, died, status };
        assert_eq!(bench.judge(&outcome, &there).await, Vec::<String>::new());
    }
    drop(bench);
    run.close().await.unwrap();
}

impl Bench {
    async fn move_with(&self, vm: VmId, options: &serde_json::Value) -> JobId {
        let plan = self.plan_with(vm, options).await;
        self.start_move(plan, &format!("host-{vm}")).await.unwrap().id
    }

    async fn copying(&self, job: JobId) {
        let some = |status: &MigrationStatus| status.bytes_acknowledged > 400_000;
        self.fed.until(&self.eu, job, "to copy some of it", some).await.unwrap();
    }

    async fn power(&self, vm: VmId, word: &str) {
        self.fed.powered(&self.eu, vm, word).await.unwrap();
    }
}
