//! A node that comes back with an older copy of its store: its hosts and peers know better, and it is never in charge
//! again, however often somebody starts it. The latest state, put back, is.

use std::path::{Path, PathBuf};

use novafed::admin::{FederationStatus, LinkState, LinkView, Page};
use novafed::chaos::federation::{Federation, Setup};
use novafed::chaos::moves::guest;
use novafed::chaos::process::{Run, wait_for};
use novafed::drivers::{HostCall, HostReply};
use novafed::types::*;

const REFUSED: Option<i32> = Some(3);
const SOON: Millis = Millis(30_000);

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

async fn start(dir: &Path) -> Federation {
    let capacity = Resources { cpu: 10, memory_bytes: GIB, disk_bytes: GIB };
    let clusters = ["eu/eu-a", "us/us-a"].map(|place| place.parse().unwrap());
    let setup = Setup::of("copies".parse().unwrap(), clusters, capacity, "");
    let mut fed = Federation::start(dir, &setup, Path::new(env!("CARGO_BIN_EXE_novafed"))).await.unwrap();
    fed.all_ready().await.unwrap();
    fed
}

async fn again(fed: &mut Federation, name: &RegionName) {
    assert!(fed.stop_node(name).await.unwrap().success());
    fed.start_node(name).await.unwrap();
    fed.ready(name).await.unwrap();
}

/// Copies what is in `from`, folders too.
fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy_all(&path, &to),
            kind if kind.is_file() => drop(std::fs::copy(path, to).unwrap()),
            _ => {}
        }
    }
}

async fn linked(fed: &Federation, at: &RegionName, state: LinkState) {
    let look = async || {
        let links: Page<LinkView> = fed.get(at, "/v2/links").await.map_err(|error| error.to_string())?;
        if links.items[0].state == state { Ok(()) } else { Err(format!("{:?}", links.items[0])) }
    };
    wait_for("the link", SOON, look).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_is_refused_by_its_host_for_ever_and_the_latest_is_not() {
    let run = Run::create().await.unwrap();
    let mut fed = start(run.dir()).await;
    let eu = region("eu");
    let program = GuestProgram { resident_bytes: 2 * MIB, disk_resident_bytes: MIB, ..GuestProgram::default() };
    let spec = guest("guest".parse().unwrap(), 4 * MIB, 2 * MIB, program);
    let vm = fed.create(&eu, &spec).await.unwrap().vm.unwrap().record.id;
    fed.powered(&eu, vm, "running").await.unwrap();

    assert!(fed.stop_node(&eu).await.unwrap().success());
    let state: PathBuf = fed.region_dir(&eu).unwrap().join("state.redb");
    let older = std::fs::read(&state).unwrap();
    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    again(&mut fed, &eu).await;
    assert!(fed.stop_node(&eu).await.unwrap().success());
    let latest = std::fs::read(&state).unwrap();

    // The older copy counts up with each start, past what the host knows, were it not refused and told so for ever.
    std::fs::write(&state, older).unwrap();
    for start in 0..5 {
        fed.start_node(&eu).await.unwrap();
        let ended = fed.node(&eu).unwrap().wait(SOON).await.unwrap();
        assert_eq!(ended.code(), REFUSED, "start {start}");
    }
    let log = std::fs::read_to_string(fed.log(&eu).unwrap()).unwrap();
    assert!(log.contains("this state is an older copy") && log.contains("Put the latest state.redb back"), "{log}");

    // Its VM went on meanwhile, and belongs to the latest state.
    let host = "eu/eu-a".parse().unwrap();
    let HostReply::Vm(Some(seen)) = fed.observe(&host, HostCall::Get { vm }).await.unwrap() else { panic!("no {vm}") };
    assert_eq!(seen.sight.power, GuestPower::Running);
    std::fs::write(&state, latest).unwrap();
    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    fed.powered(&eu, vm, "running").await.unwrap();
    drop(fed);
    run.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_node_from_an_older_copy_is_shut_out_by_its_peers_and_says_so() {
    let run = Run::create().await.unwrap();
    let mut fed = start(run.dir()).await;
    let (eu, us) = (region("eu"), region("us"));
    linked(&fed, &us, LinkState::Connected).await;
    assert!(fed.stop_node(&eu).await.unwrap().success());
    fed.kill_host(&"eu/eu-a".parse().unwrap()).await.unwrap();
    // As a snapshot of the whole machine: hosts forget as much as the node.
    let dir = fed.region_dir(&eu).unwrap().to_owned();
    copy_all(&dir, &run.dir().join("older"));
    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    linked(&fed, &us, LinkState::Connected).await;
    again(&mut fed, &eu).await;
    linked(&fed, &us, LinkState::Connected).await;
    assert!(fed.stop_node(&eu).await.unwrap().success());
    fed.kill_host(&"eu/eu-a".parse().unwrap()).await.unwrap();

    std::fs::remove_dir_all(&dir).unwrap();
    copy_all(&run.dir().join("older"), &dir);
    fed.start_node(&eu).await.unwrap();
    for start in 0..3 {
        fed.ready(&eu).await.unwrap();
        linked(&fed, &eu, LinkState::Refused).await;
        let status: FederationStatus = fed.get(&eu, "/v2/federation/status").await.unwrap();
        let issue = status.issues.iter().find(|issue| issue.code == "older-copy");
        assert!(issue.is_some_and(|issue| issue.subject == "us"), "start {start}: {:?}", status.issues);
        linked(&fed, &us, LinkState::Refused).await;
        again(&mut fed, &eu).await;
    }
    drop(fed);
    run.close().await.unwrap();
}
