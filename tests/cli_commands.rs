//! The command line as people and programs meet it: the real binary against a region in memory.

mod admin_fake;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use admin_fake::*;
use novafed::admin::Server;
use novafed::config::Config;
use novafed::types::JobState;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

struct Node {
    directory: tempfile::TempDir,
    region: Arc<FakeRegion>,
    runtime: Runtime,
    stop: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn novafed(directory: &Path, args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_novafed"))
        .args(args)
        .env("NOVAFED_DIR", directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

impl Node {
    fn start() -> Node {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (region, stop) = (fake("eu"), CancellationToken::new());
        let server = runtime.block_on(Server::bind(&directory.path().join("run"))).unwrap();
        runtime.spawn(server.serve(api(&region), stop.clone()));
        Node { directory, region, runtime, stop }
    }
    fn run(&self, args: &[&str]) -> Ran {
        novafed(self.directory.path(), args)
    }
    /// Runs a command that must succeed; its answer.
    fn good(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }
    fn json(&self, args: &[&str]) -> Value {
        let text = self.good(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
    }
}

#[test]
fn help_reads_well_to_somebody_new_and_every_command_has_some() {
    let nowhere = tempfile::tempdir().unwrap();
    let help = novafed(nowhere.path(), &["--help"]);
    assert_eq!(help.code, 0);
    for part in ["Where to begin", "novafed init", "migration", "NOVAFED_DIR", "Exit codes"] {
        assert!(help.out.contains(part), "{part} is missing:\n{}", help.out);
    }
    assert!(help.out.lines().all(|line| line.chars().count() <= 120), "a line is too long:\n{}", help.out);
    for noun in ["host", "cluster", "inventory", "vm", "placement", "migration", "link", "operation", "event", "store"]
    {
        let help = novafed(nowhere.path(), &[noun, "--help"]);
        assert_eq!(help.code, 0, "{noun}");
        let verbs =
            help.out.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        for verb in verbs {
            assert!(verb.split_whitespace().count() > 1, "novafed {noun}: a verb without a word: {verb}");
        }
    }
}

#[test]
fn wrong_usage_is_2_and_says_what_is_meant() {
    let nowhere = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["vm", "crate"][..], "create"),
        (&["vm", "create", "Web_1"], "a-z"),
        (&["vm", "create", "web", "--memory", "lots"], "is not a size"),
        (&["migration", "start", "web"], "--to"),
        (&["migration", "start"], "--plan"),
        (&["migration", "start", "web", "--plan", "plan-1-1-1"], "cannot be used with"),
        (&["migration", "start", "--plan", "plan-1-1-1", "--to", "us/us-a"], "cannot be used with"),
        (&["migration", "start", "web", "--to", "us"], "region>/<cluster"),
        (&["migration", "show", "vm-1-1-1"], "job"),
        (&["status", "--timeout", "soon"], "is not a duration"),
        (&["status", "--timeout", "10min"], "1 ms to 300 s"),
        (&["vm", "list", "--key", "two words"], "visible ASCII"),
    ] {
        let ran = novafed(nowhere.path(), args);
        assert!(ran.code == 2 && ran.err.contains(part), "{args:?}: {}: {}", ran.code, ran.err);
    }
}

#[test]
fn a_node_that_does_not_answer_is_5_and_the_hint_starts_it() {
    let nowhere = tempfile::tempdir().unwrap();
    let ran = novafed(nowhere.path(), &["vm", "list"]);
    assert!(ran.code == 5 && ran.err.contains("novafed init"), "{}: {}", ran.code, ran.err);
    std::fs::write(nowhere.path().join("node.toml"), "").unwrap();
    let ran = novafed(nowhere.path(), &["vm", "list"]);
    assert!(ran.code == 5 && ran.err.contains("novafed node --dir"), "{}: {}", ran.code, ran.err);
}

#[test]
fn a_vm_lives_its_life_by_name() {
    let node = Node::start();
    assert!(node.good(&["vm", "list"]).contains("novafed vm create"), "an empty list says how to fill it");
    let made = node.good(&["vm", "create", "web", "--memory", "1 MiB", "--disk", "2MiB", "--label", "tier=front"]);
    assert_eq!(made, "vm-1-1-1 is running at eu/eu-a: the only cluster with room\n");
    let list = node.good(&["vm", "list", "--label", "tier=front"]);
    for part in ["ID", "SEEN", "vm-1-1-1", "web", "eu/eu-a", "running", "1 MiB", "2 MiB", "3 ms"] {
        assert!(list.contains(part), "{part} is missing:\n{list}");
    }
    let shown = node.good(&["vm", "show", "web"]);
    for part in
        ["why there    the only cluster with room", "tier=front", "fence        1.1", "2025-11-24T10:00:00.000Z"]
    {
        assert!(shown.contains(part), "{part} is missing:\n{shown}");
    }
    assert!(node.good(&["vm", "stop", "web"]).contains("vm-1-1-1 is stopped"));
    assert!(node.good(&["vm", "start", "vm-1-1-1"]).contains("vm-1-1-1 is running"));
    assert!(node.good(&["vm", "delete", "web", "--dry-run"]).contains("would be deleted"));
    assert!(node.good(&["vm", "delete", "web"]).contains("is deleted"));
    let gone = node.run(&["vm", "show", "web"]);
    assert!(gone.code == 4 && gone.err.contains("no VM is called 'web'"), "{}: {}", gone.code, gone.err);
    assert_eq!(node.run(&["vm", "show", "vm-1-1-1"]).code, 4);
}

#[test]
fn a_command_with_a_key_is_done_once_however_often_it_is_given() {
    let node = Node::start();
    let create = ["vm", "create", "web", "--memory", "1MiB", "--disk", "1MiB", "--key", "order-66"];
    assert_eq!(node.good(&create), node.good(&create));
    assert_eq!(node.json(&["vm", "list"])["items"].as_array().unwrap().len(), 1);
    let start = ["migration", "start", "web", "--to", "us/us-a", "--key", "move-1"];
    assert_eq!(node.good(&start), node.good(&start), "also one that asks for two things");
    assert_eq!(node.json(&["migration", "list"])["items"].as_array().unwrap().len(), 1);
    let other = node.run(&["vm", "create", "other", "--memory", "1MiB", "--disk", "1MiB", "--key", "order-66"]);
    assert!(other.code == 3 && other.err.contains("order-66"), "{}: {}", other.code, other.err);
}

#[test]
fn a_name_that_several_vms_have_is_refused_with_their_ids() {
    let node = Node::start();
    node.good(&["vm", "create", "web"]);
    node.good(&["vm", "create", "web", "--namespace", "other"]);
    let ran = node.run(&["vm", "stop", "web"]);
    assert!(ran.code == 2 && ran.err.contains("vm-1-1-1") && ran.err.contains("vm-1-1-2"), "{}", ran.err);
}

#[test]
fn programs_get_the_apis_own_document_and_errors_on_stderr() {
    let node = Node::start();
    let made = node.json(&["vm", "create", "web"]);
    assert_eq!(made["vm"]["id"], "vm-1-1-1");
    assert_eq!(node.json(&["vm", "list"])["items"][0]["spec"]["name"], "web");
    assert_eq!(node.json(&["cluster", "list"])["items"][0]["id"], "eu-a");
    assert_eq!(node.json(&["status"])["region"], "eu");
    assert_eq!(node.json(&["tree"])["children"][0]["name"], "links");
    assert!(node.json(&["openapi"])["paths"].is_object());
    let ran = node.run(&["vm", "create", "db", "--cluster", "full", "-o", "json"]);
    assert_eq!((ran.code, ran.out.as_str()), (3, ""));
    let error: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(error["error"]["code"], "UNSCHEDULABLE");
}

#[test]
fn refusals_are_a_message_and_a_hint() {
    let node = Node::start();
    let ran = node.run(&["vm", "create", "db", "--cluster", "full"]);
    assert_eq!((ran.code, ran.out.as_str()), (3, ""));
    assert_eq!(ran.err, "error: full has no room\n hint: leave the cluster out\n");
}

#[test]
fn a_placement_explains_itself_without_creating_anything() {
    let node = Node::start();
    let text = node.good(&["placement", "explain", "web"]);
    for part in ["It would go to eu/eu-a (score 0.75): the only cluster with room", "eu/full", "does not fit: memory"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert_eq!(node.json(&["vm", "list"])["items"], serde_json::json!([]));
}

#[test]
fn a_migration_is_planned_started_in_one_go_followed_and_cancelled() {
    let node = Node::start();
    node.good(&["vm", "create", "web"]);
    let plan = node.good(&["migration", "plan", "web", "--to", "us/us-a", "--max-downtime", "50ms"]);
    for part in ["plan-1-1-1", "from eu/eu-a to us/us-a", "40.0 ms", "room at the target", "--plan plan-1-1-1"] {
        assert!(plan.contains(part), "{part} is missing:\n{plan}");
    }
    let blocked = node.run(&["migration", "plan", "web", "--to", "us/full"]);
    assert!(blocked.code == 3 && blocked.out.contains("12 MiB are missing"), "{}{}", blocked.out, blocked.err);
    let blocked = node.run(&["migration", "start", "web", "--to", "us/full"]);
    assert!(blocked.code == 3 && blocked.err.contains("target-capacity: 12 MiB are missing"), "{}", blocked.err);
    let started = node.good(&["migration", "start", "web", "--to", "us/us-a"]);
    assert!(started.starts_with("job-1-1-1 moves vm-1-1-1 from eu/eu-a to us/us-a"), "{started}");
    node.good(&["migration", "start", "--plan", "plan-1-1-1"]);
    let none = node.good(&["migration", "list", "--state", "parked"]);
    assert!(!none.contains("job-1-1-1"), "{none}");
    let wrong = node.run(&["migration", "list", "--state", "perked"]);
    assert!(wrong.code == 2 && wrong.err.contains("perked"), "{}: {}", wrong.code, wrong.err);
    let list = node.good(&["migration", "list", "--vm", "web"]);
    assert!(list.contains("job-1-1-1") && list.contains("transferring") && list.contains("42 %"), "{list}");
    let shown = node.good(&["migration", "show", "job-1-1-1"]);
    assert!(shown.contains("at step copying") && shown.contains("heard 9 ms ago"), "{shown}");
    let ran = node.run(&["migration", "probe", "job-1-1-1"]);
    assert!(ran.code == 3 && ran.err.contains("not parked"), "{}", ran.err);
    let done = node.good(&["migration", "cancel", "job-1-1-1", "--reason", "lunch"]);
    assert_eq!(done, "vm-1-1-1 was left at eu/eu-a: lunch\n");
    let watched = node.run(&["migration", "watch", "job-1-1-1"]);
    assert_eq!(watched.code, 1, "a migration that did not complete is not a success: {}", watched.out);
    node.region.set_job_state("job-1-1-2".parse().unwrap(), JobState::Completed);
    assert!(node.good(&["migration", "watch", "job-1-1-2"]).contains("vm-1-1-1 runs at us/us-a"));
}

#[test]
fn watching_outlives_the_nodes_death_and_return() {
    let mut node = Node::start();
    node.good(&["vm", "create", "web"]);
    node.good(&["migration", "start", "web", "--to", "us/us-a"]);
    let mut watching = Command::new(env!("CARGO_BIN_EXE_novafed"))
        .args(["migration", "watch", "job-1-1-1"])
        .env("NOVAFED_DIR", node.directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(watching.stderr.take().unwrap());
    let mut until = |part: &str| {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            let n = std::io::BufRead::read_line(&mut said, &mut line).unwrap();
            assert_ne!(n, 0, "it ended before it said '{part}'");
        }
    };
    until("copying");
    node.stop.cancel();
    until("does not answer");
    node.region.set_job_state("job-1-1-1".parse().unwrap(), JobState::Completed);
    node.stop = CancellationToken::new();
    // The old server needs a moment to take its socket away; a new one refuses to replace one that is answered.
    let server = node.runtime.block_on(async {
        loop {
            match Server::bind(&node.directory.path().join("run")).await {
                Ok(server) => break server,
                Err(novafed::admin::ServeError::InUse { .. }) => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        }
    });
    node.runtime.spawn(server.serve(api(&node.region), node.stop.clone()));
    assert_eq!(watching.wait().unwrap().code(), Some(0));
}

#[test]
fn init_makes_a_region_whose_keys_are_private_and_overwrites_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("regions/eu");
    let init = ["init", "--region", "eu", "--federation", "demo", "--listen", "127.0.0.1:7001", "--cluster", "eu-x"];
    let ran = novafed(&directory, &init);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for part in ["novafed node --dir", "[[peer]]", "7001", "keep a copy"] {
        assert!(ran.out.contains(part), "{part} is missing:\n{}", ran.out);
    }
    let config = Config::load(&directory).unwrap();
    assert_eq!((config.region.name.as_str(), config.clusters[0].id.as_str()), ("eu", "eu-x"));
    assert_eq!(config.listen.address.port(), 7001);
    let mode = |name: &str| std::fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["store.key", "ca.key", "leaf.pem"].map(mode), [0o600; 3]);
    assert_eq!(mode("."), 0o700);
    let before = std::fs::read(directory.join("store.key")).unwrap();
    let again = novafed(&directory, &init);
    assert!(again.code == 3 && again.err.contains("nothing was changed"), "{}", again.err);
    assert_eq!(std::fs::read(directory.join("store.key")).unwrap(), before);
}

#[test]
fn hosts_that_do_not_run_are_said_not_to() {
    let parent = tempfile::tempdir().unwrap();
    let listed = novafed(parent.path(), &["host", "list"]);
    assert!(listed.code == 0 && listed.out.contains("No host runs"), "{}{}", listed.out, listed.err);
    let stopped = novafed(parent.path(), &["host", "stop", "eu-a"]);
    assert!(stopped.code == 4 && stopped.err.contains("novafed host list"), "{}", stopped.err);
    assert_eq!(novafed(parent.path(), &["host"]).code, 2, "a host needs a name, and is not started by mistake");
}

#[test]
fn init_refuses_what_can_not_stand_in_a_certificate_before_it_makes_anything() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("eu");
    let ran = novafed(&directory, &["init", "--region=-eu-", "--federation", "demo"]);
    assert!(ran.code == 2 && !directory.exists(), "{}: {}", ran.code, ran.err);
}

#[test]
fn a_store_that_is_not_there_is_not_found_and_one_that_is_can_be_verified_and_rekeyed() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("eu");
    novafed(&directory, &["init", "--region", "eu", "--federation", "demo"]);
    let ran = novafed(&directory, &["store", "verify"]);
    assert!(ran.code == 4 && ran.err.contains("first start"), "{}: {}", ran.code, ran.err);
    let options = || {
        let keys = novafed::store::load_keys(&directory.join("store.key")).unwrap();
        novafed::store::StoreOptions::file(directory.join("state.redb"), "eu".parse().unwrap(), keys)
    };
    let (store, _) = novafed::store::Store::open(options(), 7).unwrap();
    let busy = novafed(&directory, &["store", "verify"]);
    assert!(busy.code == 5 && busy.err.contains("stop the node first"), "{}: {}", busy.code, busy.err);
    store.close().unwrap();
    let before = std::fs::read(directory.join("store.key")).unwrap();
    assert!(novafed(&directory, &["store", "verify"]).out.contains("is good"));
    let ran = novafed(&directory, &["store", "rekey"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_ne!(std::fs::read(directory.join("store.key")).unwrap(), before);
    assert!(novafed(&directory, &["store", "verify"]).out.contains("is good"), "with the new key");
}

#[test]
fn faults_are_injected_listed_and_ended() {
    let node = Node::start();
    assert!(node.good(&["chaos", "list"]).contains("No faults were injected"));
    let for_a_while = |args: &[&'static str]| [args, &["--for", "30s", "--reason", "a game day"]].concat();
    for (args, part) in [
        (&["cut", "us"][..], "the link to us is cut, both ways"),
        (&["cut", "us", "--direction", "in"], "inwards"),
        (&["delay", "us", "--by", "200ms", "--jitter", "50 ms"], "take 200 ms longer and up to 50 ms more"),
        (&["lose", "us", "--permille", "30"], "30 of 1000 messages"),
        (&["narrow", "us", "--to", "1MiB"], "pass at 1 MiB/s"),
        (&["host", "eu-a", "--call", "hold", "--how", "slow", "--late", "2s"], "(slow, 2000 ms late)"),
        (&["slow-store", "--by", "500ms"], "takes 500 ms longer"),
        (&["kill", "--at", "hold:source:before-write"], "kills itself at hold:source:before-write"),
    ] {
        let text = node.good(&[&["chaos", "inject"][..], &for_a_while(args)].concat());
        assert!(text.contains(part) && text.contains("for 30.0 s"), "{args:?}: {text}");
    }
    let dry = node.good(&["chaos", "inject", "crash", "clusters/cluster-eu-a", "--reason", "why not", "--dry-run"]);
    assert!(dry.contains("it would be so: the actor clusters/cluster-eu-a crashes"), "{dry}");
    let list = node.good(&["chaos", "list"]);
    assert!(list.contains("fault-1-1-1") && list.contains("link us") && list.contains("30.0 s left"), "{list}");
    assert!(node.good(&["chaos", "stop", "fault-1-1-1"]).contains("fault-1-1-1 is over (ended by a test)"));
    assert_eq!(node.json(&["chaos", "stop", "--all"])["items"].as_array().unwrap().len(), 7);
    assert_eq!(node.json(&["chaos", "list"])["ended"].as_array().unwrap().len(), 8);
    assert!(node.good(&["chaos", "stop", "--all"]).contains("No faults are active"));
    for (args, part) in [
        (&["cut", "us", "--reason", "x"][..], "--for"),
        (&["cut", "us", "--for", "1s"], "--reason"),
        (&["kil", "--reason", "x"], "'kill'"),
        (&["kill", "--at", "hold:source:before-write", "--reason", "x"], "--for"),
    ] {
        let ran = node.run(&[&["chaos", "inject"], args].concat());
        assert!(ran.code == 2 && ran.err.contains(part), "{args:?}: {}: {}", ran.code, ran.err);
    }
    assert_eq!(node.run(&["chaos", "stop"]).code, 2);
    let records = node.region.audit_records();
    assert!(records.iter().any(|record| record.reason.as_deref() == Some("a game day")), "{records:?}");
}

#[test]
fn the_rest_of_what_can_be_looked_at_is_shown() {
    let node = Node::start();
    for (args, part) in [
        (&["status"][..], "health"),
        (&["cluster", "show", "eu/eu-a"], "embedded on host eu-a"),
        (&["inventory", "show"], "capacity"),
        (&["link", "list"], "no links"),
        (&["operation", "list"], "Nothing is under way"),
        (&["event", "list"], "Nothing has happened"),
        (&["store", "stats"], "takes work"),
        (&["tree"], "└─ links  running for 4 ms"),
        (&["metrics"], "# nothing"),
    ] {
        let text = node.good(args);
        assert!(text.contains(part), "{args:?}: {part} is missing:\n{text}");
    }
}
