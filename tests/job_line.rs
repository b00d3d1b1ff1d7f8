//! More migrations than a region runs at once: the others wait in line, say so, and go one after the other, also over
//! the death of their node.

use std::path::Path;

use novafed::admin::client::{Ask, ClientError};
use novafed::admin::{EventView, Page, TreeNode};
use novafed::chaos::federation::{Federation, Setup};
use novafed::chaos::moves::guest;
use novafed::chaos::process::Run;
use novafed::types::*;

struct Line {
    fed: Federation,
    eu: RegionName,
}

impl Line {
    async fn start(dir: &Path) -> Line {
        let capacity = Resources { cpu: 100, memory_bytes: GIB, disk_bytes: GIB };
        let clusters = ["eu/eu-a", "us/us-a"].map(|place| place.parse().unwrap());
        let setup = Setup::of("line".parse().unwrap(), clusters, capacity, "\n[migration]\nrunning_max = 1\n");
        let mut fed = Federation::start(dir, &setup, Path::new(env!("CARGO_BIN_EXE_novafed"))).await.unwrap();
        fed.all_ready().await.unwrap();
        Line { fed, eu: "eu".parse().unwrap() }
    }

    async fn create(&self, name: &str) -> VmId {
        let program = GuestProgram { resident_bytes: 2 * MIB, disk_resident_bytes: MIB, ..GuestProgram::default() };
        let spec = guest(name.parse().unwrap(), 4 * MIB, 2 * MIB, program);
        let vm = self.fed.create(&self.eu, &spec).await.unwrap().vm.unwrap().record.id;
        self.fed.powered(&self.eu, vm, "running").await.unwrap();
        vm
    }

    /// Starts a move to `us`, at so many bytes per second.
    async fn start_move(&self, vm: VmId, rate: u64) -> JobId {
        let options = MigrationOptions {
            max_downtime_ms: Some(5_000),
            bandwidth_limit_bytes_per_second: Some(rate),
            ..MigrationOptions::default()
        };
        let plan = self.fed.planned(&self.eu, vm, &"us/us-a".parse().unwrap(), &options).await.unwrap();
        let request = serde_json::json!({ "planID": plan });
        let started: MigrationStatus = self.fed.post(&self.eu, "/v2/migrations", &request).await.unwrap();
        started.id
    }

    async fn status(&self, job: JobId) -> MigrationStatus {
        self.fed.job(&self.eu, job).await.unwrap()
    }

    async fn cancel(&self, job: JobId, key: &str) -> Result<MigrationStatus, ClientError> {
        let ask = Ask::post(format!("/v2/migrations/{job}/cancel")).key(key);
        self.fed.api(&self.eu).unwrap().typed(ask).await
    }

    async fn until(&self, job: JobId, what: &str, holds: impl Fn(&MigrationStatus) -> bool) -> MigrationStatus {
        self.fed.until(&self.eu, job, what, holds).await.unwrap()
    }

    /// It waits, and says behind how many.
    async fn waits(&self, job: JobId, ahead: usize) {
        let words = format!("in line, {ahead} before it: 1 of at most 1 jobs run in eu");
        let waits = |status: &MigrationStatus| status.reason.as_ref().is_some_and(|reason| reason.starts_with(&words));
        let status = self.until(job, "to wait", waits).await;
        assert_eq!((status.state, status.phase.as_str()), (JobState::Pending, "queue"));
    }

    async fn journal(&self, job: JobId) -> Vec<EventView> {
        let page: Page<EventView> = self.fed.get(&self.eu, &format!("/v2/migrations/{job}/events")).await.unwrap();
        page.items
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_beyond_the_limit_wait_in_line_and_go_in_order() {
    let run = Run::create().await.unwrap();
    let mut line = Line::start(run.dir()).await;
    let vms =
        [line.create("one").await, line.create("two").await, line.create("three").await, line.create("four").await];
    // Ids from the ninth on: as text, by which the store sorts, the tenth comes before it.
    for number in 1..=8 {
        let job = line.start_move(vms[0], 20_000).await;
        line.cancel(job, &format!("use up {number}")).await.unwrap();
        line.fed.end_of(&line.eu, job).await.unwrap();
    }
    // So slow that it is under way until somebody cancels it.
    let slow = line.start_move(vms[0], 20_000).await;
    line.until(slow, "to copy", |status| status.phase == "copy").await;
    let mut jobs = Vec::new();
    for vm in &vms[1..] {
        jobs.push(line.start_move(*vm, 50_000_000).await);
    }
    for (ahead, job) in jobs.iter().enumerate() {
        line.waits(*job, ahead).await;
    }

    // One that waits is cancelled on the spot; nothing was done for it anywhere.
    for _ in 0..2 {
        assert_eq!(line.cancel(jobs[0], "first").await.unwrap().state, JobState::Cancelled);
    }
    // The key of that request is no other's.
    let other = line.cancel(jobs[1], "first").await.unwrap_err();
    assert!(other.to_string().contains("used for another request"), "{other}");
    line.waits(jobs[1], 0).await;

    // An actor that is started anew takes up where its journal ends, and keeps its place.
    let path = format!("/v2/tree/migrations/job-source-{slow}/restart");
    let anew: TreeNode = line.fed.post(&line.eu, &path, &()).await.unwrap();
    assert_eq!(anew.name, format!("job-source-{slow}"));
    let nobody = line.fed.post::<TreeNode>(&line.eu, "/v2/tree/migrations/nobody/restart", &()).await.unwrap_err();
    assert!(nobody.to_string().contains("there is no child 'nobody'"), "{nobody}");
    line.until(slow, "to go on copying", |status| status.phase == "copy" && status.resumes == 1).await;
    line.waits(jobs[1], 0).await;

    line.fed.kill_node(&line.eu.clone()).await.unwrap();
    line.fed.start_node(&line.eu.clone()).await.unwrap();
    line.fed.ready(&line.eu.clone()).await.unwrap();
    line.until(slow, "to go on copying", |status| status.phase == "copy").await;
    line.waits(jobs[1], 0).await;
    line.waits(jobs[2], 1).await;

    line.cancel(slow, "slow").await.unwrap();
    for job in &jobs[1..] {
        let status = line.fed.end_of(&line.eu, *job).await.unwrap();
        assert_eq!(status.state, JobState::Completed, "{:?}", status.reason);
    }
    // Each began only when the one before was over.
    let mut before = line.status(slow).await.completed_at.unwrap();
    for job in &jobs[1..] {
        let went = line.journal(*job).await[0].at;
        assert!(before <= went, "{job} went at {went:?}, the one before it ended at {before:?}");
        before = line.status(*job).await.completed_at.unwrap();
    }
    drop(line);
    run.close().await.unwrap();
}
