//! A federation of two regions, `eu` and `us`, as real processes on this disk: for what only the whole shows.

use std::path::Path;

use novafed::admin::client::Ask;
use novafed::admin::{LinkView, Page};
use novafed::chaos::federation::{Federation, Setup};
use novafed::chaos::moves::guest;
use novafed::chaos::process::{Run, wait_for};
use novafed::types::*;
use serde::de::DeserializeOwned;

use crate::measure::target;

pub const PATIENCE: Millis = Millis(120_000);
/// The program under test, built with the bench's own profile.
pub const BINARY: &str = env!("CARGO_BIN_EXE_novafed");

/// Room for everything that is measured.
pub fn capacity() -> Resources {
    Resources { cpu: 10_000, memory_bytes: 64 * GIB, disk_bytes: 64 * GIB }
}

/// A VM's description.
pub fn spec(name: &str, memory_bytes: u64, disk_bytes: u64, program: GuestProgram) -> VmSpec {
    guest(name.parse().expect("a name"), memory_bytes, disk_bytes, program)
}

/// Two regions.
pub struct Two {
    pub fed: Federation,
    pub eu: RegionName,
    pub us: RegionName,
    pub run: Run,
}

impl Two {
    /// Starts them, with further lines for their `node.toml`.
    pub async fn start(extra: &str) -> Two {
        let run = Run::create_in(&target()).await.expect("a directory");
        let clusters = ["eu/eu-a", "us/us-a"].map(|place| place.parse().expect("a place"));
        let setup = Setup::of("bench".parse().expect("a name"), clusters, capacity(), extra);
        let mut fed = Federation::start(run.dir(), &setup, Path::new(BINARY)).await.expect("a federation");
        fed.all_ready().await.expect("they become ready");
        Two { fed, run, eu: "eu".parse().expect("a name"), us: "us".parse().expect("a name") }
    }

    /// Ends everything.
    pub async fn close(self) {
        let Two { fed, run, .. } = self;
        drop(fed);
        run.close().await.expect("nothing is left behind");
    }

    /// Reads from a region.
    pub async fn get<T: DeserializeOwned>(&self, region: &RegionName, path: &str) -> Result<T, String> {
        self.fed.get(region, path).await.map_err(|error| error.to_string())
    }

    /// Creates a VM at `region`.
    pub async fn create(&self, region: &RegionName, spec: &VmSpec) -> VmId {
        let made = self.fed.create(region, spec).await.expect("it is created");
        made.vm.expect("it was no dry run").record.id
    }

    /// Waits until a VM runs.
    pub async fn runs(&self, region: &RegionName, vm: VmId) {
        self.fed.powered(region, vm, "running").await.expect("it runs");
    }

    /// A plan to move `vm` from one region to the other that can be started.
    pub async fn plan(&self, from: &RegionName, to: &RegionName, vm: VmId, options: &MigrationOptions) -> PlanId {
        let to = Place { region: to.clone(), cluster: format!("{to}-a").parse().expect("a name") };
        self.fed.planned(from, vm, &to, options).await.expect("it can be planned")
    }

    /// Starts a plan.
    pub async fn begin(&self, from: &RegionName, plan: PlanId) -> JobId {
        let request = serde_json::json!({ "planID": plan });
        let started: MigrationStatus = self.fed.post(from, "/v2/migrations", &request).await.expect("it starts");
        started.id
    }

    /// Cancels a job, if it can be cancelled still.
    pub async fn cancel(&self, from: &RegionName, job: JobId) {
        let ask = Ask::post(format!("/v2/migrations/{job}/cancel"));
        let _ = self.fed.api(from).expect("a region").ask(ask).await;
    }

    /// Waits for the end of a job.
    pub async fn end_of(&self, from: &RegionName, job: JobId) -> MigrationStatus {
        self.fed.end_of(from, job).await.expect("it ends")
    }

    /// Waits until both ends of the link know its round trip to be about `rtt`, and says what they measure, the mean in
    /// milliseconds: relays and timers add theirs.
    pub async fn apart(&self, rtt: Millis) -> f64 {
        let mut sum_us = 0;
        for region in [&self.eu, &self.us] {
            let measured = wait_for("the round trip to be known", PATIENCE, async || {
                let links: Page<LinkView> = self.get(region, "/v2/links").await?;
                let known = links.items.first().and_then(|link| link.rtt_us).unwrap_or(u64::MAX);
                let right = known + 500 >= rtt.0 * 1_000 && known <= rtt.0 * 1_200 + 5_000;
                if right { Ok(known) } else { Err(format!("{known} us of {rtt}")) }
            });
            sum_us += measured.await.expect("it is known");
        }
        sum_us as f64 / 2_000.0
    }
}
