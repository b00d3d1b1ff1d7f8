//! A guest that writes almost as fast as its transfer is allowed to be: the copy goes on round by round until what is
//! really left fits, and the guest stands still no longer than was allowed.

use std::path::Path;

use novafed::admin::client::Ask;
use novafed::chaos::federation::{Federation, Setup};
use novafed::chaos::moves::guest;
use novafed::chaos::process::Run;
use novafed::types::*;

/// What is allowed. With what is dirty after one round the guest would stand still for three times as long.
const ALLOWED_MS: u64 = 250;
/// Two busy cores may take so much longer than was estimated.
const SLACK_MS: f64 = 150.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_guest_behind_a_cap_is_paused_only_when_what_is_left_fits() {
    let run = Run::create().await.unwrap();
    let capacity = Resources { cpu: 10, memory_bytes: GIB, disk_bytes: GIB };
    let clusters = ["eu/eu-a", "us/us-a"].map(|place| place.parse().unwrap());
    let setup = Setup::of("blackout".parse().unwrap(), clusters, capacity, "");
    let mut fed = Federation::start(run.dir(), &setup, Path::new(env!("CARGO_BIN_EXE_novafed"))).await.unwrap();
    let eu: RegionName = "eu".parse().unwrap();
    fed.all_ready().await.unwrap();
    let program = GuestProgram {
        tick_ms: 10,
        resident_bytes: 8 * MIB,
        working_set_bytes: 8 * MIB,
        dirty_bytes_per_second: 6 * MIB,
        disk_resident_bytes: MIB,
        disk_bytes_per_second: 0,
        ..GuestProgram::default()
    };
    let spec = guest("busy".parse().unwrap(), 32 * MIB, 2 * MIB, program);
    let vm = fed.create(&eu, &spec).await.unwrap().vm.unwrap().record.id;
    fed.powered(&eu, vm, "running").await.unwrap();
    let options = MigrationOptions {
        bandwidth_limit_bytes_per_second: Some(8 * MIB),
        max_downtime_ms: Some(ALLOWED_MS),
        ..MigrationOptions::default()
    };
    // Planned again and again until the guest's writes were measured and the plan says that it converges.
    let plan = fed.planned(&eu, vm, &"us/us-a".parse().unwrap(), &options).await.unwrap();
    let body = serde_json::json!({ "planID": plan });
    let started: MigrationStatus = fed.api(&eu).unwrap().typed(Ask::post("/v2/migrations").body(&body)).await.unwrap();
    let status = fed.end_of(&eu, started.id).await.unwrap();
    assert_eq!(status.state, JobState::Completed, "{:?}", status.reason);
    let (stood, estimated) = (status.downtime_ms.unwrap(), status.estimated_downtime_ms);
    assert!(estimated <= ALLOWED_MS as f64, "it was paused though {estimated} ms were expected");
    assert!(stood <= ALLOWED_MS as f64 + SLACK_MS, "it stood still for {stood} ms, expected were {estimated}");
    assert!(status.iterations >= 3, "{} rounds", status.iterations);
    drop(fed);
    run.close().await.unwrap();
}
