//! What a node does when not all that it needs is there: it goes on with the rest and says what is missing.

use std::path::Path;

use novafed::admin::{FederationStatus, Page, VmView};
use novafed::chaos::federation::{Federation, Setup};
use novafed::chaos::moves::guest;
use novafed::chaos::process::{Run, wait_for};
use novafed::types::*;

fn spec(name: &str) -> VmSpec {
    let program = GuestProgram { resident_bytes: MIB, disk_resident_bytes: MIB, ..GuestProgram::default() };
    guest(name.parse().unwrap(), 4 * MIB, 2 * MIB, program)
}

async fn start(dir: &Path, clusters: &[&str]) -> Federation {
    let clusters = clusters.iter().map(|place| place.parse().unwrap());
    let capacity = Resources { cpu: 10, memory_bytes: GIB, disk_bytes: GIB };
    let setup = Setup::of("starts".parse().unwrap(), clusters, capacity, "");
    let mut fed = Federation::start(dir, &setup, Path::new(env!("CARGO_BIN_EXE_novafed"))).await.unwrap();
    fed.all_ready().await.unwrap();
    fed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_cannot_start_keeps_nobody_else_from_working() {
    let run = Run::create().await.unwrap();
    let eu: RegionName = "eu".parse().unwrap();
    let mut fed = start(run.dir(), &["eu/eu-a", "eu/eu-b"]).await;
    assert!(fed.stop_node(&eu).await.unwrap().success());
    let broken: Place = "eu/eu-b".parse().unwrap();
    fed.kill_host(&broken).await.unwrap();
    let directory = fed.host_dir(&broken).unwrap();
    let aside = directory.with_extension("aside");
    std::fs::rename(&directory, &aside).unwrap();
    std::fs::write(&directory, "not a directory").unwrap();

    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    let vm = fed.create(&eu, &spec("one")).await.unwrap().vm.unwrap().record;
    assert_eq!(vm.cluster.as_str(), "eu-a");
    fed.powered(&eu, vm.id, "running").await.unwrap();
    let status: FederationStatus = fed.get(&eu, "/v2/federation/status").await.unwrap();
    let issue = status.issues.iter().find(|issue| issue.subject == "eu/eu-b").expect("an issue of the cluster");
    assert_eq!(issue.code, "cluster-not-connected");
    let pinned = serde_json::json!({ "placement": { "cluster": "eu-b" } });
    let mut body = serde_json::to_value(spec("two")).unwrap();
    body["placement"] = pinned["placement"].clone();
    let refused = fed.post::<serde_json::Value>(&eu, "/v2/vms", &body).await.unwrap_err().to_string();
    assert!(refused.contains("can't be placed in eu now") && refused.contains("disconnected"), "{refused}");

    // Mended, it is found without a restart of the node.
    std::fs::remove_file(&directory).unwrap();
    std::fs::rename(&aside, &directory).unwrap();
    let look = async || {
        let status: FederationStatus = fed.get(&eu, "/v2/federation/status").await.map_err(|e| e.to_string())?;
        if status.issues.is_empty() { Ok(()) } else { Err(format!("{:?}", status.issues)) }
    };
    wait_for("the cluster is back", Millis(30_000), look).await.unwrap();
    drop(fed);
    run.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_of_a_region_that_is_away_are_said_to_be_missing_and_ones_of_an_unnamed_cluster_unserved() {
    let run = Run::create().await.unwrap();
    let [eu, us]: [RegionName; 2] = ["eu", "us"].map(|name| name.parse().unwrap());
    let mut fed = start(run.dir(), &["eu/eu-a", "us/us-a"]).await;
    let vm = fed.create(&us, &spec("web")).await.unwrap().vm.unwrap().record.id;
    wait_for("eu to list it", Millis(30_000), async || {
        let page: Page<VmView> = fed.get(&eu, "/v2/vms").await.map_err(|e| e.to_string())?;
        if page.items.len() == 1 && page.warnings.is_empty() { Ok(()) } else { Err(format!("{page:?}")) }
    })
    .await
    .unwrap();
    fed.kill_node(&us).await.unwrap();
    wait_for("eu to say that it does not know", Millis(30_000), async || {
        let page: Page<VmView> = fed.get(&eu, "/v2/vms").await.map_err(|e| e.to_string())?;
        let told = page.warnings.iter().any(|warning| warning.contains("the VMs of region us are missing"));
        if page.items.is_empty() && told { Ok(()) } else { Err(format!("{page:?}")) }
    })
    .await
    .unwrap();

    // The cluster's name goes from the configuration; the VM is not forgotten.
    fed.start_node(&us).await.unwrap();
    fed.ready(&us).await.unwrap();
    assert!(fed.stop_node(&us).await.unwrap().success());
    let path = fed.region_dir(&us).unwrap().join("node.toml");
    let named = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, named.replace("id = \"us-a\"", "id = \"us-b\"")).unwrap();
    let mut node = std::process::Command::new(env!("CARGO_BIN_EXE_novafed"))
        .args(["node", "--dir"])
        .arg(fed.region_dir(&us).unwrap())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let look = async || {
        let status: FederationStatus = fed.get(&us, "/v2/federation/status").await.map_err(|e| e.to_string())?;
        match status.issues.iter().find(|issue| issue.code == "vms-unserved") {
            Some(issue) if issue.message.contains(&vm.to_string()) => Ok(()),
            _ => Err(format!("{:?}", status.issues)),
        }
    };
    let told = wait_for("the VM to be called unserved", Millis(30_000), look).await;
    node.kill().unwrap();
    node.wait().unwrap();
    told.unwrap();
    drop(fed);
    run.close().await.unwrap();
}
