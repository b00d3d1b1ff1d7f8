//! Real host processes: they survive whoever started them, are adopted, refuse stale stores, and die honestly.

mod host_support;

use std::path::{Path, PathBuf};

use host_support::*;
use novafed::drivers::embedded::client::{DriverOptions, EmbeddedDriver, admin};
use novafed::drivers::embedded::faults::{CallKind, Fault};
use novafed::drivers::embedded::launch::{self, Launch};
use novafed::drivers::embedded::wire::AdminCall;
use novafed::drivers::embedded::witness::{Consoles, check};
use novafed::drivers::{HostCall, HostError, HostReply};
use novafed::types::*;

/// Stops the host when the test ends, however it ends.
struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let directory = self.0.clone();
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(launch::kill(&directory))
        });
        ended.join().unwrap().expect("the host ends");
    }
}

fn launch(directory: &Path) -> Launch {
    Launch {
        program: Some(env!("CARGO_BIN_EXE_novafed").into()),
        directory: directory.to_owned(),
        name: "h1".parse().unwrap(),
        allow_faults: true,
    }
}

fn driver(directory: &Path, counter: u64) -> EmbeddedDriver {
    EmbeddedDriver::new(DriverOptions {
        directory: directory.to_owned(),
        region: "eu".parse().unwrap(),
        lineage: incarnation(counter).into(),
        cluster: "c1".parse().unwrap(),
        capacity: capacity(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_adopted_and_its_guests_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("hosts").join("h1");
    let _guard = Guard(home.clone());
    let first = launch::ensure_running(&launch(&home)).await.unwrap();
    assert!(!first.adopted);
    let before = driver(&home, 1);
    start(&before, vm(1), &spec(busy())).await;
    ticked(&before, vm(1), 10).await;
    drop(before);

    // Another node, or the same after its death, finds it.
    let second = launch::ensure_running(&launch(&home)).await.unwrap();
    assert!(second.adopted && second.process == first.process);
    assert_eq!(launch::find(&dir.path().join("hosts")).unwrap(), [(home.clone(), first.process)]);
    let after = driver(&home, 2);
    ticked(&after, vm(1), 10).await;
    assert_eq!(get(&after, vm(1)).await.unwrap().sight.power, GuestPower::Running);

    // A stale copy of the node's store is refused, by name.
    let stale = try_call(&driver(&home, 1), HostCall::Inventory).await;
    assert!(matches!(stale, Err(HostError::StaleIncarnation { .. })), "{stale:?}");

    launch::stop(&home).await.unwrap();
    assert_eq!(launch::running(&home).unwrap(), None);
    assert!(!first.process.lives());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_start_one_host_at_once_get_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let _guard = Guard(dir.path().to_owned());
    let start = launch(dir.path());
    let start = || launch::ensure_running(&start);
    let (a, b, c) = tokio::join!(start(), start(), start());
    let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
    assert!(a.process == b.process && b.process == c.process, "{a:?} {b:?} {c:?}");
    assert_eq!([a, b, c].iter().filter(|running| !running.adopted).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_guest_goes_on_at_its_tick_and_a_late_duplicate_is_not_done_again() {
    use novafed::drivers::Hypervisor;
    let dir = tempfile::tempdir().unwrap();
    let _guard = Guard(dir.path().to_owned());
    launch::ensure_running(&launch(dir.path())).await.unwrap();
    let driver = driver(dir.path(), 1);
    start(&driver, vm(1), &spec(busy())).await;
    ticked(&driver, vm(1), 5).await;
    let (stop, call_stop) = (operation(), HostCall::Stop { vm: vm(1), fence: Fence::FIRST });
    driver.call(stop.clone(), call_stop.clone(), PATIENCE).await.unwrap();
    call(&driver, HostCall::Start { vm: vm(1), fence: Fence::FIRST }).await;
    assert_eq!(driver.call(stop.clone(), call_stop, PATIENCE).await, Ok(HostReply::Done));
    ticked(&driver, vm(1), 5).await;
    let other = HostCall::Delete { vm: vm(1), fence: Fence::FIRST };
    assert!(matches!(driver.call(stop, other, PATIENCE).await, Err(HostError::Refused { .. })));
    launch::stop(dir.path()).await.unwrap();

    let text = std::fs::read_to_string(dir.path().join("console").join("vm-1-1-1.log")).unwrap();
    let mut consoles = Consoles::default();
    consoles.add(vm(1), &text);
    let account = &check(&consoles).vms[&vm(1)];
    // Stopped in good order: no tick is missing between the two boots.
    assert_eq!((account.boots, account.ticks), (2, account.last.2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_an_older_incarnation_is_shut_out_when_a_newer_one_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let _guard = Guard(dir.path().to_owned());
    launch::ensure_running(&launch(dir.path())).await.unwrap();
    let (old, new) = (driver(dir.path(), 5), driver(dir.path(), 6));
    call(&old, HostCall::Inventory).await;
    call(&new, HostCall::Inventory).await;
    eventually("the old session is refused", async || {
        matches!(try_call(&old, HostCall::Inventory).await, Err(HostError::StaleIncarnation { .. }))
    })
    .await;
    call(&new, HostCall::Inventory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_reports_its_guests_lost_and_restarts_them_from_their_disks() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_owned();
    let _guard = Guard(home.clone());
    launch::ensure_running(&launch(&home)).await.unwrap();
    let driver = driver(&home, 1);
    start(&driver, vm(1), &spec(busy())).await;
    start(&driver, vm(2), &spec(busy())).await;
    ticked(&driver, vm(1), 20).await;
    let key = key(vm(2), 1);
    call(&driver, HostCall::Send { key, bytes_per_second_max: None }).await;
    call(&driver, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
    call(&driver, HostCall::Hold { key }).await;

    launch::kill(&home).await.unwrap();
    launch::ensure_running(&launch(&home)).await.unwrap();
    // The same driver finds the new process.
    let seen = get(&driver, vm(1)).await.unwrap();
    assert_eq!(seen.sight.power, GuestPower::Lost);
    let held = get(&driver, vm(2)).await.unwrap();
    assert_eq!((held.sight.power, held.sight.hold), (GuestPower::Lost, Some(key)));
    let refused = try_call(&driver, HostCall::Start { vm: vm(2), fence: fence(9) }).await;
    assert!(matches!(refused, Err(HostError::Refused { .. })), "{refused:?}");
    let fenced = try_call(&driver, HostCall::Start { vm: vm(1), fence: Fence::default() }).await;
    assert!(matches!(fenced, Err(HostError::Fenced { .. })), "{fenced:?}");
    call(&driver, HostCall::Start { vm: vm(1), fence: Fence::FIRST }).await;
    ticked(&driver, vm(1), 10).await;
    call(&driver, HostCall::ReleaseHold { key }).await;
    call(&driver, HostCall::Start { vm: vm(2), fence: Fence::FIRST }).await;
    ticked(&driver, vm(2), 10).await;

    let mut consoles = Consoles::default();
    consoles.add_directory(&home.join("console")).unwrap();
    let report = check(&consoles);
    assert_eq!(report.violations, []);
    assert!(report.vms.values().all(|account| account.boots == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_faults_strike_as_often_as_planned() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_owned();
    let _guard = Guard(home.clone());
    launch::ensure_running(&launch(&home)).await.unwrap();
    let driver = driver(&home, 1);
    let vm = vm(1);
    call(&driver, HostCall::Create { vm, spec: spec(busy()), fence: Fence::FIRST }).await;
    let plan = async |kind, fault| {
        let call = AdminCall::PlanFault { kind, fault, times: 1 };
        admin(&home, call).await.unwrap().unwrap();
    };
    let start = || try_call(&driver, HostCall::Start { vm, fence: Fence::FIRST });

    plan(CallKind::Start, Fault::Refuses).await;
    assert!(matches!(start().await, Err(HostError::Refused { .. })));
    plan(CallKind::Start, Fault::SaysFailed).await;
    assert!(matches!(start().await, Err(HostError::Failed { .. })));
    assert_eq!(get(&driver, vm).await.unwrap().sight.power, GuestPower::Running);
    plan(CallKind::Inventory, Fault::Forgets).await;
    assert_eq!(call(&driver, HostCall::Inventory).await, HostReply::Inventory(Vec::new()));
    assert_ne!(call(&driver, HostCall::Inventory).await, HostReply::Inventory(Vec::new()));
    call(&driver, HostCall::Stop { vm, fence: Fence::FIRST }).await;
    plan(CallKind::Start, Fault::Dies).await;
    assert_eq!(start().await, Ok(HostReply::Done));
    assert_eq!(get(&driver, vm).await.unwrap().sight.power, GuestPower::Lost);
    plan(CallKind::Get, Fault::Hangs).await;
    let hung = novafed::drivers::Hypervisor::call(&driver, operation(), HostCall::Get { vm }, Millis(100)).await;
    assert!(hung.unwrap_err().outcome_unknown());
    plan(CallKind::Get, Fault::Slow(Millis(300))).await;
    let slow = novafed::drivers::Hypervisor::call(&driver, operation(), HostCall::Get { vm }, Millis(10)).await;
    assert!(slow.unwrap_err().outcome_unknown());
    call(&driver, HostCall::Get { vm }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_does_not_serve_the_same_directory_and_garbage_ends_only_its_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let home =
        dir.path().join("a-rather-long-name-so-that-the-socket-path-exceeds-the-kernels-limit-of-108-bytes").join("h");
    let _guard = Guard(home.clone());
    launch::ensure_running(&launch(&home)).await.unwrap();
    let second = tokio::process::Command::new(env!("CARGO_BIN_EXE_novafed"))
        .args(["host", "--name", "h1", "--dir"])
        .arg(&home)
        .output()
        .await
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("already serves"), "{second:?}");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
        let mut stream = novafed::drivers::embedded::process::dial(&home).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        // A reset says the same as an end.
        let _ = stream.read_to_end(&mut rest).await;
    }
    call(&driver(&home, 1), HostCall::Inventory).await;
}
