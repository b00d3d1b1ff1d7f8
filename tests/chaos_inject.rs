//! Faults injected into real nodes: each is felt, ends by itself, and is gone with the node that had it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use novafed::admin::client::{Ask, Client, ClientError};
use novafed::admin::{AuditRecord, ChaosFault, ChaosFaults, EventView, FaultState, FederationStatus, LinkView, Page};
use novafed::admin::{LinkState, TreeNode};
use novafed::chaos::federation::{Federation, Setup};
use novafed::chaos::moves::guest;
use novafed::chaos::process::{Run, wait_for};
use novafed::clock::Clock;
use novafed::store::{Store, StoreOptions, Table, load_keys};
use novafed::types::*;
use serde_json::{Value, json};

const PATIENCE: Millis = Millis(30_000);
const ALLOWED: &str = "\n[chaos]\nallow = true\nmax = \"20 s\"\n";

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn spec(name: &str) -> VmSpec {
    let program = GuestProgram { resident_bytes: MIB, disk_resident_bytes: MIB, ..GuestProgram::default() };
    guest(name.parse().unwrap(), 4 * MIB, 2 * MIB, program)
}

async fn start(dir: &Path, clusters: &[&str], extra: &str) -> Federation {
    let clusters = clusters.iter().map(|place| place.parse().unwrap());
    let capacity = Resources { cpu: 100, memory_bytes: GIB, disk_bytes: GIB };
    let setup = Setup::of("games".parse().unwrap(), clusters, capacity, extra);
    let mut fed = Federation::start(dir, &setup, Path::new(env!("CARGO_BIN_EXE_novafed"))).await.unwrap();
    fed.all_ready().await.unwrap();
    fed
}

fn fault(kind: &str, parameters: Value, seconds: u64) -> Value {
    json!({ "kind": kind, "parameters": parameters, "durationMs": seconds * 1_000, "reason": "a game day" })
}

async fn inject(api: &Client, body: &Value) -> ChaosFault {
    api.typed(Ask::post("/v2/chaos/faults").body(body)).await.unwrap()
}

async fn refused(api: &Client, body: &Value) -> ApiError {
    match api.ask(Ask::post("/v2/chaos/faults").body(body)).await.unwrap_err() {
        ClientError::Refused { document, .. } => document.error,
        other => panic!("{other}"),
    }
}

async fn faults(api: &Client) -> ChaosFaults {
    api.get("/v2/chaos/faults").await.unwrap()
}

async fn link_is(fed: &Federation, at: &RegionName, wanted: bool) {
    let what = format!("the link at {at} to be {}", if wanted { "up" } else { "down" });
    let look = async || {
        let page: Page<LinkView> = fed.get(at, "/v2/links").await.map_err(|e| e.to_string())?;
        let up = page.items.iter().all(|link| link.state == LinkState::Connected);
        if up == wanted { Ok(()) } else { Err(format!("{:?}", page.items)) }
    };
    wait_for(&what, PATIENCE, look).await.unwrap();
}

async fn no_fault_is_active(api: &Client) {
    let look = async || {
        let faults: ChaosFaults = api.get("/v2/chaos/faults").await.map_err(|e| e.to_string())?;
        if faults.active.is_empty() { Ok(()) } else { Err(format!("{:?}", faults.active)) }
    };
    wait_for("every fault to be over", PATIENCE, look).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_takes_a_link_down_at_both_ends_is_shown_and_ends_by_itself() {
    let run = Run::create().await.unwrap();
    let (eu, us) = (region("eu"), region("us"));
    let fed = start(run.dir(), &["eu/eu-a", "us/us-a"], ALLOWED).await;
    let api = fed.api(&eu).unwrap();
    for at in [&eu, &us] {
        link_is(&fed, at, true).await;
    }

    let ask = Ask::post("/v2/chaos/faults").body(&fault("cut", json!({ "peer": "us" }), 8)).key("cut-once");
    let cut: ChaosFault = api.typed(ask.clone()).await.unwrap();
    assert_eq!((cut.state, cut.subject.as_str()), (FaultState::Active, "link us"));
    for at in [&eu, &us] {
        link_is(&fed, at, false).await;
    }
    let again: ChaosFault = api.typed(ask).await.unwrap();
    assert_eq!((again.id, again.began_at), (cut.id, cut.began_at), "the same request, the same fault");
    assert_eq!(faults(&api).await.active.len(), 1);
    let status: FederationStatus = fed.get(&eu, "/v2/federation/status").await.unwrap();
    let issue = status.issues.iter().find(|issue| issue.code == "chaos-fault").expect("an issue of the fault");
    assert_eq!((issue.severity, issue.subject.as_str()), (Severity::Warning, "link us"));
    for part in ["the link to us is cut", "s left", "asked for by user", "a game day", &cut.id.to_string()] {
        assert!(issue.message.contains(part), "'{part}' is missing: {}", issue.message);
    }
    assert!(status.recommendations.iter().any(|advice| advice.contains("novafed chaos stop")), "{status:?}");

    for at in [&eu, &us] {
        link_is(&fed, at, true).await;
    }
    no_fault_is_active(&api).await;
    let over = faults(&api).await.ended.remove(0);
    assert_eq!(over.ended_because.as_deref(), Some("its time is over"));
    let lasted = over.ended_at.unwrap().0 - over.began_at.unwrap().0;
    assert_eq!(lasted, 8_000, "to the millisecond, whoever looked when");
    let events: Page<EventView> = fed.get(&eu, "/v2/events?limit=500").await.unwrap();
    let of_it: Vec<_> = events.items.iter().filter(|event| event.subject == cut.id.to_string()).collect();
    assert_eq!(of_it.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), ["chaos.began", "chaos.ended"]);
    let status: FederationStatus = fed.get(&eu, "/v2/federation/status").await.unwrap();
    assert!(status.issues.iter().all(|issue| issue.code != "chaos-fault"), "{:?}", status.issues);

    // A long way: a question to the other region goes there and back over it.
    let there_and_back = async || {
        let clock = Clock::start();
        let error = api.ask(Ask::get("/v2/vms/vm-2-1-99")).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound);
        clock.now().0
    };
    let delay = inject(&api, &fault("delay", json!({ "peer": "us", "delayMs": 700 }), 20)).await;
    let took = there_and_back().await;
    assert!(took >= 1_400, "it took only {took} ms");
    let links: Page<LinkView> = fed.get(&eu, "/v2/links").await.unwrap();
    assert!(links.items[0].rtt_us.is_some_and(|rtt| rtt >= 1_400_000), "the way is measured as long as it is");
    let stopped: ChaosFault = api.typed(Ask::delete(format!("/v2/chaos/faults/{}", delay.id))).await.unwrap();
    assert!(stopped.ended_because.unwrap().starts_with("ended by user"));

    // One way: what eu sends does not arrive, and eu can't know that.
    inject(&api, &fault("cut", json!({ "peer": "us", "direction": "out" }), 20)).await;
    let error = api.clone().deadline(Millis(1_500)).ask(Ask::post("/v2/vms/vm-2-1-99/stop")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::OutcomeUnknown, "{error}");
    link_is(&fed, &eu, true).await;
    drop(fed);
    run.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_a_host_a_store_and_an_actor_are_felt_and_gone_when_they_end() {
    let run = Run::create().await.unwrap();
    let eu = region("eu");
    let mut fed = start(run.dir(), &["eu/eu-a"], ALLOWED).await;
    let api = fed.api(&eu).unwrap();

    let slow = inject(&api, &fault("slow-store", json!({ "delayMs": 1_500 }), 20)).await;
    let clock = Clock::start();
    let vm = fed.create(&eu, &spec("slow")).await.unwrap().vm.unwrap().record.id;
    let took = clock.now().0;
    assert!(took >= 1_500, "a commit took only {took} ms");
    api.ask(Ask::delete(format!("/v2/chaos/faults/{}", slow.id))).await.unwrap();
    fed.powered(&eu, vm, "running").await.unwrap();

    let host = fault("host", json!({ "cluster": "eu-a", "call": "start", "how": "refuses", "times": 1_000_000 }), 20);
    let planned = inject(&api, &host).await;
    let taken = refused(&api, &host).await;
    assert!(taken.code == ErrorCode::Conflict && taken.message.contains(&planned.id.to_string()), "{taken:?}");
    let short = api.clone().deadline(Millis(4_000));
    let _ = short.ask(Ask::post("/v2/vms").body(&spec("refused"))).await;
    let page: Value = fed.get(&eu, "/v2/vms?name=refused").await.unwrap();
    let vm: VmId = serde_json::from_value(page["items"][0]["id"].clone()).unwrap();
    let troubled = async || {
        let view: Value = fed.get(&eu, &format!("/v2/vms/{vm}")).await.map_err(|e| e.to_string())?;
        if view["trouble"].to_string().contains("planned fault") { Ok(()) } else { Err(view.to_string()) }
    };
    wait_for("the host to refuse", PATIENCE, troubled).await.unwrap();
    api.ask(Ask::delete(format!("/v2/chaos/faults/{}", planned.id))).await.unwrap();
    fed.powered(&eu, vm, "running").await.unwrap();

    let crash = json!({ "kind": "crash", "parameters": { "actor": "clusters/cluster-eu-a" }, "reason": "a game day" });
    let crashed = inject(&api, &crash).await;
    assert_eq!((crashed.state, crashed.ended_because.as_deref()), (FaultState::Ended, Some("it is done")));
    let restarted = async || {
        let tree: TreeNode = fed.get(&eu, "/v2/tree").await.map_err(|e| e.to_string())?;
        let clusters = tree.children.iter().find(|group| group.name == "clusters").ok_or("no clusters")?;
        if clusters.children[0].restarts == 1 { Ok(()) } else { Err(format!("{clusters:?}")) }
    };
    wait_for("the actor to be started anew", PATIENCE, restarted).await.unwrap();

    // What was planned at a host outlives the node, and does not outlive its next start.
    inject(&api, &host).await;
    inject(&api, &fault("slow-store", json!({ "delayMs": 300 }), 20)).await;
    fed.kill_node(&eu).await.unwrap();
    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    let left = faults(&api).await;
    assert_eq!((left.allowed, left.active.len(), left.ended.len()), (true, 0, 0));
    let vm = fed.create(&eu, &spec("after")).await.unwrap().vm.unwrap().record.id;
    fed.powered(&eu, vm, "running").await.unwrap();

    // A node that is told to stop leaves a host that is well, too.
    inject(&api, &host).await;
    assert!(fed.stop_node(&eu).await.unwrap().success());
    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    let vm = fed.create(&eu, &spec("again")).await.unwrap().vm.unwrap().record.id;
    fed.powered(&eu, vm, "running").await.unwrap();
    drop(fed);
    run.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_kills_itself_by_request_has_it_in_the_audit_and_is_killed_once() {
    let run = Run::create().await.unwrap();
    let eu = region("eu");
    let mut fed = start(run.dir(), &["eu/eu-a", "eu/eu-b"], ALLOWED).await;
    let api = fed.api(&eu).unwrap();
    let body = json!({ "kind": "kill", "reason": "a game day" });
    let ask = Ask::post("/v2/chaos/faults").body(&body).key("die-once");
    let killed: ChaosFault = api.typed(ask.clone()).await.unwrap();
    let status = fed.node(&eu).unwrap().wait(PATIENCE).await.unwrap();
    assert_eq!(status.signal(), Some(9));
    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    let again: ChaosFault = api.typed(ask).await.unwrap();
    assert_eq!((again.id, again.state), (killed.id, FaultState::Ended), "its time was another life");

    // Where a migration passes a point: it goes on when the node is back, and passes it then.
    let vm = fed.create(&eu, &spec("moves")).await.unwrap().vm.unwrap().record.id;
    fed.powered(&eu, vm, "running").await.unwrap();
    let at = json!({ "at": "hold:source:after-write" });
    inject(&api, &fault("kill", at, 20)).await;
    let plan = json!({ "vmID": vm, "targetClusterID": "eu/eu-b" });
    let plan: MigrationPlan = api.typed(Ask::post("/v2/migration-plans").body(&plan)).await.unwrap();
    let job: MigrationStatus =
        api.typed(Ask::post("/v2/migrations").body(&json!({ "planID": plan.id }))).await.unwrap();
    let status = fed.node(&eu).unwrap().wait(PATIENCE).await.unwrap();
    assert_eq!(status.signal(), Some(9));
    fed.start_node(&eu).await.unwrap();
    fed.ready(&eu).await.unwrap();
    let end = fed.end_of(&eu, job.id).await.unwrap();
    assert_eq!(end.state, JobState::Completed, "{end:?}");
    assert!(faults(&api).await.active.is_empty());

    assert!(fed.stop_node(&eu).await.unwrap().success());
    let dir = fed.region_dir(&eu).unwrap();
    let keys = load_keys(&dir.join("store.key")).unwrap();
    let (store, _) = Store::open(StoreOptions::file(dir.join("state.redb"), eu.clone(), keys), 7).unwrap();
    let audit: Vec<(String, AuditRecord)> = store.scan(Table::Audit, "").unwrap();
    let deaths: Vec<_> = audit.iter().filter(|(_, record)| record.path == "/v2/chaos/faults").collect();
    assert_eq!(deaths.len(), 3, "{deaths:?}");
    for (_, record) in deaths {
        assert_eq!((record.status, record.reason.as_deref()), (201, Some("a game day")));
    }
    store.close().unwrap();
    drop(fed);
    run.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_allowed_or_not_there_is_refused_with_what_would_do() {
    let run = Run::create().await.unwrap();
    let eu = region("eu");
    let mut fed = start(run.dir(), &["eu/eu-a", "us/us-a"], "").await;
    let api = fed.api(&eu).unwrap();
    let error = refused(&api, &fault("cut", json!({ "peer": "us" }), 1)).await;
    assert_eq!(error.code, ErrorCode::PreconditionFailed);
    assert!(error.hint.contains("allow = true") && error.hint.contains("[chaos]"), "{error:?}");
    assert_eq!(error.details["key"], "chaos.allow");
    assert!(!faults(&api).await.allowed);

    assert!(fed.stop_node(&eu).await.unwrap().success());
    let path = fed.region_dir(&eu).unwrap().join("node.toml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str(ALLOWED);
    std::fs::write(&path, text).unwrap();
    let mut node = std::process::Command::new(env!("CARGO_BIN_EXE_novafed"))
        .args(["node", "--dir"])
        .arg(fed.region_dir(&eu).unwrap())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    fed.ready(&eu).await.unwrap();
    let host = |call: &str, how: &str| json!({ "cluster": "eu-a", "call": call, "how": how });
    let slow = json!({ "cluster": "eu-a", "call": "hold", "how": "refuses", "lateMs": 5 });
    for (kind, parameters, field, part) in [
        ("cut", json!({ "peer": "uss" }), "parameters.peer", "did you mean 'us'?"),
        ("delay", json!({ "peer": "us", "delayMs": 0 }), "parameters.delayMs", "1 to 60000"),
        ("lose", json!({ "peer": "us", "permille": 1_001 }), "parameters.permille", "1 to 1000"),
        ("narrow", json!({ "peer": "us", "bytesPerSecond": 0 }), "parameters.bytesPerSecond", "0 is not"),
        ("host", json!({ "cluster": "eu-b", "call": "hold", "how": "hangs" }), "parameters.cluster", "'eu-a'"),
        ("host", host("holds", "hangs"), "parameters.call", "did you mean 'hold'?"),
        ("host", host("hold", "hang"), "parameters.how", "did you mean 'hangs'?"),
        ("host", host("hold", "forgets"), "parameters.how", "only inventory and get"),
        ("host", host("inventory", "dies"), "parameters.how", "only looks"),
        ("host", slow, "parameters.lateMs", "how = 'slow'"),
        ("slow-store", json!({ "delayMs": 10_001 }), "parameters.delayMs", "1 to 10000"),
        ("crash", json!({ "actor": "clusters/cluster-eu" }), "parameters.actor", "'clusters/cluster-eu-a'"),
        ("kill", json!({ "at": "hold:source:before" }), "parameters.at", "kill point"),
    ] {
        let error = refused(&api, &fault(kind, parameters.clone(), 1)).await;
        let said = format!("{} {}", error.message, error.hint);
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{kind} {parameters}: {error:?}");
        assert_eq!(error.details["field"], field, "{kind} {parameters}: {error:?}");
        assert!(said.contains(part), "{kind} {parameters}: '{part}' is missing: {said}");
    }
    let error = refused(&api, &fault("cut", json!({ "peer": "us" }), 21)).await;
    assert!(error.code == ErrorCode::InvalidArgument && error.message.contains("20000 ms"), "{error:?}");
    // Its host was started by a node that did not allow it, and lives on.
    let error = refused(&api, &fault("host", host("hold", "hangs"), 1)).await;
    assert!(error.code == ErrorCode::PreconditionFailed && error.hint.contains("novafed host stop"), "{error:?}");
    assert!(faults(&api).await.active.is_empty(), "what could not be done is not active");
    let dry: ChaosFault = api
        .typed(Ask::post("/v2/chaos/faults?dryRun=true").body(&fault("cut", json!({ "peer": "us" }), 5)))
        .await
        .unwrap();
    assert_eq!(dry.state, FaultState::Planned);
    assert!(faults(&api).await.active.is_empty());
    for _ in 0..limits::CHAOS_FAULTS_MAX {
        inject(&api, &fault("delay", json!({ "peer": "us", "delayMs": 1 }), 20)).await;
    }
    let full = refused(&api, &fault("cut", json!({ "peer": "us" }), 1)).await;
    assert!(full.code == ErrorCode::Conflict && full.message.contains("16 faults are active"), "{full:?}");
    node.kill().unwrap();
    node.wait().unwrap();
    drop(fed);
    run.close().await.unwrap();
}
