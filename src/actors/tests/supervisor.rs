//! Who is restarted, parked, stopped, and when a supervisor gives up.

use super::super::{ChildSpec, Ended, TreeState};
use super::*;
use crate::decision::supervision::{ParkReason, Restart, Shutdown};
use crate::types::limits::{JOB_CRASHES_IN_TREE_MAX, RESTARTS_MAX, STOP_MS_MAX};

const SOON: Millis = Millis(1_000);

async fn incarnation(handle: &Handle<Tell>) -> Result<u64, crate::actors::CallError> {
    handle.call(Class::Control, SOON, Tell::Incarnation).await
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_a_restart_after_a_pause_and_the_handle_finds_the_new_life() {
    for tell in [|| Tell::Panic, || Tell::Fail, || Tell::TaskPanic] {
        let stage = Stage::new(Strategy::OneForOne).await;
        let handle = stage.add("a").await;
        assert_eq!(incarnation(&handle).await, Ok(1));
        let before = stage.clock.now();
        handle.cast(Class::Control, tell()).expect("it is taken");
        stage.until("a", |state| matches!(state, ChildState::Restarting { .. })).await;
        assert!(!handle.is_live());
        assert_eq!(handle.cast(Class::Control, Tell::Note("lost")), Err(crate::actors::SendError::Gone));
        assert_eq!(incarnation(&handle).await, Err(crate::actors::CallError::Gone));
        stage.until_running("a").await;
        assert!(stage.clock.now().since(before) >= Millis(50), "no pause");
        assert_eq!(incarnation(&handle).await, Ok(2));
        assert_eq!(stage.log.all(), ["start a 1", "drop a", "start a 2"]);
        assert_eq!(stage.root.shutdown().await, Ended::Shutdown);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_dependency_burns_no_budget() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    for _ in 0..RESTARTS_MAX * 4 {
        handle.cast(Class::Control, Tell::Exit(Exit::DependencyDown("store".into()))).expect("it is taken");
        stage.until("a", |state| matches!(state, ChildState::Waiting { .. })).await;
        stage.until_running("a").await;
    }
    let view = stage.root.child("a").expect("it is listed");
    assert_eq!((view.restarts_in_window, view.restarts_total, view.crashes), (0, 0, 0));
    assert_eq!(view.last_failure.as_deref(), Some("a dependency is down: store"));
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_budget_escalates_exactly_one_level() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let bystander = stage.add("bystander").await;
    let middle = stage.root.add_supervisor(SupervisorSpec::new("middle", Strategy::OneForOne), Restart::Permanent);
    let middle = middle.await.expect("it is added");
    let (spec, handle) = stage.puppet("a");
    let (sibling, _) = stage.puppet("b");
    middle.add_child(spec).await.expect("it is added");
    middle.add_child(sibling).await.expect("it is added");
    for _ in 0..=RESTARTS_MAX {
        while incarnation(&handle).await.is_err() {
            tokio::time::sleep(Millis(1).duration()).await;
        }
        handle.cast(Class::Control, Tell::Fail).expect("it lives");
    }
    stage.until("middle", |state| matches!(state, ChildState::Restarting { .. })).await;
    let view = stage.root.child("middle").expect("it is listed");
    let reason = view.last_failure.expect("it has a reason");
    assert!(reason.contains("'a'") && reason.contains("planned"), "{reason}");
    assert_eq!(stage.log.all().last().map(String::as_str), Some("drop b"), "its siblings are stopped with it");
    stage.until_running("middle").await;
    while incarnation(&handle).await.is_err() {
        tokio::time::sleep(Millis(1).duration()).await;
    }
    assert_eq!(incarnation(&handle).await, Ok(u64::from(RESTARTS_MAX) + 2), "numbers go on over the restart");
    assert_eq!(incarnation(&bystander).await, Ok(1), "nobody else was touched");
}

#[tokio::test(start_paused = true)]
async fn a_root_that_gives_up_says_why() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    let watch = tokio::spawn({
        let root = stage.root.clone();
        async move { root.ended().await }
    });
    while !watch.is_finished() {
        // Gone between two lives.
        let _ = handle.cast(Class::Control, Tell::Panic);
        tokio::time::sleep(Millis(1).duration()).await;
    }
    let ended = watch.await.expect("it does not panic");
    let Ended::GaveUp(reason) = ended else { panic!("{ended:?}") };
    assert_eq!(reason.child.as_str(), "a");
    assert_eq!(reason.restarts, RESTARTS_MAX);
    assert!(reason.reason.contains("planned panic of a"), "{reason}");
    assert_eq!(stage.log.count("drop"), stage.log.count("start"), "nothing is left alive");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_crashes_again_and_again_is_parked_even_over_a_restart_of_the_process() {
    let ledger = Arc::new(MemoryLedger::default());
    {
        let stage = Stage::with_ledger(Strategy::OneForOne, ledger.clone()).await;
        let (spec, handle) = stage.puppet("job");
        stage.root.add_child(spec.job()).await.expect("it is added");
        for _ in 1..JOB_CRASHES_IN_TREE_MAX {
            handle.cast(Class::Control, Tell::Panic).expect("it is taken");
            stage.until("job", |state| matches!(state, ChildState::Restarting { .. })).await;
            stage.until_running("job").await;
        }
        assert_eq!(stage.root.shutdown().await, Ended::Shutdown);
    }
    {
        let stage = Stage::with_ledger(Strategy::OneForOne, ledger.clone()).await;
        let (spec, handle) = stage.puppet("job");
        stage.root.add_child(spec.job()).await.expect("it is added");
        handle.cast(Class::Control, Tell::Panic).expect("it is taken");
        let parked = stage.until("job", |state| matches!(state, ChildState::Parked { .. })).await;
        let ChildState::Parked { reason: ParkReason::Quarantine { crashes, reason }, .. } = parked else {
            panic!("{parked:?}")
        };
        assert_eq!(crashes, JOB_CRASHES_IN_TREE_MAX);
        assert!(reason.contains("planned panic"), "{reason}");
        stage.root.shutdown().await;
    }
    let stage = Stage::with_ledger(Strategy::OneForOne, ledger.clone()).await;
    let (spec, handle) = stage.puppet("job");
    let state = stage.root.add_child(spec.job()).await.expect("it is added");
    assert!(matches!(state, ChildState::Parked { .. }), "{state:?}");
    let tree = stage.root.tree();
    assert!(matches!(&tree.children[0].state, TreeState::Parked { reason, .. } if reason.contains("quarantined")));
    assert_eq!(stage.log.all(), Vec::<String>::new(), "it never ran");
    stage.root.restart_child("job").await.expect("a person lets it run again");
    stage.until_running("job").await;
    assert_eq!(incarnation(&handle).await, Ok(1));
    tokio::task::yield_now().await;
    assert_eq!(ledger.load("job").await.expect("it is in memory"), 0);
}

/// A ledger on a slow disk.
struct SlowLedger(MemoryLedger);

impl CrashLedger for SlowLedger {
    fn load<'a>(&'a self, child: &'a str) -> crate::actors::LedgerFuture<'a, u32> {
        self.0.load(child)
    }
    fn record<'a>(&'a self, child: &'a str, count: u32, why: &'a str) -> crate::actors::LedgerFuture<'a, ()> {
        Box::pin(async move {
            tokio::time::sleep(Millis(20_000).duration()).await;
            self.0.record(child, count, why).await
        })
    }
    fn clear<'a>(&'a self, child: &'a str) -> crate::actors::LedgerFuture<'a, ()> {
        self.0.clear(child)
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_on_record_before_the_next_life_begins() {
    let ledger = Arc::new(SlowLedger(MemoryLedger::default()));
    let stage = Stage::with_ledger(Strategy::OneForOne, ledger.clone()).await;
    let (spec, handle) = stage.puppet("job");
    stage.root.add_child(spec.job()).await.expect("it is added");
    handle.cast(Class::Control, Tell::Panic).expect("it is taken");
    tokio::time::sleep(SOON.duration()).await;
    assert_eq!(stage.log.count("start"), 1);
    stage.until_running("job").await;
    assert_eq!(ledger.load("job").await.expect("it is in memory"), 1);
    assert_eq!(stage.log.count("start"), 2);
}

#[tokio::test(start_paused = true)]
async fn progress_forgives_crashes_and_poison_is_parked_at_once() {
    let ledger = Arc::new(MemoryLedger::default());
    let stage = Stage::with_ledger(Strategy::OneForOne, ledger.clone()).await;
    let (spec, handle) = stage.puppet("job");
    stage.root.add_child(spec.job()).await.expect("it is added");
    for _ in 0..JOB_CRASHES_IN_TREE_MAX + 1 {
        handle.cast(Class::Control, Tell::Panic).expect("it is taken");
        stage.until("job", |state| matches!(state, ChildState::Restarting { .. })).await;
        stage.until_running("job").await;
        assert_eq!(ledger.load("job").await.expect("it is in memory"), 1);
        handle.cast(Class::Control, Tell::Progress).expect("it is taken");
        tokio::time::sleep(SOON.duration()).await;
        assert_eq!(ledger.load("job").await.expect("it is in memory"), 0);
    }
    handle.cast(Class::Control, Tell::Exit(Exit::Poison("no such disk".into()))).expect("it is taken");
    stage.until("job", |state| matches!(state, ChildState::Parked { reason: ParkReason::Poison { .. }, .. })).await;
    assert_eq!(ledger.load("job").await.expect("it is in memory"), JOB_CRASHES_IN_TREE_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_done_is_forgotten_after_its_last_words() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let (spec, handle) = stage.puppet("job");
    stage.root.add_child(spec.job()).await.expect("it is added");
    handle.cast(Class::Control, Tell::Exit(Exit::Normal)).expect("it is taken");
    while stage.root.child("job").is_some() {
        tokio::time::sleep(Millis(1).duration()).await;
    }
    assert_eq!(stage.log.all(), ["start job 1", "stop job", "drop job"]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_stops_in_reverse_order_over_all_levels() {
    let stage = Stage::new(Strategy::RestForOne).await;
    stage.add("a").await;
    let middle = stage.root.add_supervisor(SupervisorSpec::new("m", Strategy::OneForOne), Restart::Permanent).await;
    let middle = middle.expect("it is added");
    for name in ["m1", "m2"] {
        middle.add_child(stage.puppet(name).0).await.expect("it is added");
    }
    stage.add("z").await;
    assert_eq!(stage.root.shutdown().await, Ended::Shutdown);
    let stops: Vec<_> = stage.log.all().into_iter().filter(|entry| !entry.starts_with("start")).collect();
    assert_eq!(stops, ["stop z", "drop z", "stop m2", "drop m2", "stop m1", "drop m1", "stop a", "drop a"]);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_stop_is_killed_at_its_deadline() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let stuck = stage.add("stuck").await;
    stuck.cast(Class::Control, Tell::Sleep(Millis(3_600_000))).expect("it is taken");
    tokio::time::sleep(SOON.duration()).await;
    let before = stage.clock.now();
    stage.root.stop_child("stuck").await.expect("it is known");
    assert_eq!(stage.root.child("stuck").expect("it is listed").state, ChildState::Stopped);
    let took = stage.clock.now().since(before);
    assert!(took >= STOP_MS_MAX && took < STOP_MS_MAX.times(2), "{took}");
    assert_eq!(stage.log.all(), ["start stuck 1", "drop stuck"], "killed, not stopped");
    let (spec, brutal) = stage.puppet("brutal");
    stage.root.add_child(spec.shutdown(Shutdown::Brutal)).await.expect("it is added");
    brutal.cast(Class::Control, Tell::Sleep(Millis(3_600_000))).expect("it is taken");
    let before = stage.clock.now();
    assert_eq!(stage.root.shutdown().await, Ended::Shutdown);
    assert!(stage.clock.now().since(before) < SOON);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_hangs_is_given_up_and_a_stop_cuts_it() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle: Handle<Tell> = Handle::new(stage.clock.clone(), Default::default());
    let make = |_: Start| std::future::pending::<Result<Puppet, HandlerError>>();
    let spec = ChildSpec::actor("hangs", &handle, make).start_within(SOON.times(10));
    let state = stage.root.add_child(spec).await.expect("it is added");
    assert!(matches!(state, ChildState::Restarting { .. }), "{state:?}");
    stage.until("hangs", |state| *state == ChildState::Starting).await;
    let before = stage.clock.now();
    assert_eq!(stage.root.shutdown().await, Ended::Shutdown);
    assert!(stage.clock.now().since(before) < SOON);
}

#[tokio::test(start_paused = true)]
async fn a_new_life_begins_when_nothing_of_the_old_subtree_is_left() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let middle = stage.root.add_supervisor(SupervisorSpec::new("m", Strategy::OneForAll), Restart::Permanent).await;
    let middle = middle.expect("it is added");
    let mut handles = Vec::new();
    for name in ["m1", "m2", "m3"] {
        let (spec, handle) = stage.puppet(name);
        middle.add_child(spec).await.expect("it is added");
        handles.push(handle);
    }
    stage.root.restart_child("m").await.expect("it is known");
    while stage.log.count("start") < 6 {
        tokio::time::sleep(Millis(1).duration()).await;
    }
    let log = stage.log.all();
    let last_drop = log.iter().rposition(|entry| entry.starts_with("drop")).expect("all were dropped");
    let restart = log.iter().position(|entry| entry == "start m1 2").expect("it is started again");
    assert!(last_drop < restart, "{log:?}");
    handles[1].cast(Class::Control, Tell::Panic).expect("it is taken");
    while stage.log.count("start") < 9 {
        tokio::time::sleep(Millis(1).duration()).await;
    }
    let log = stage.log.all();
    let tail: Vec<_> = log.iter().rev().take(8).rev().map(String::as_str).collect();
    let cycle = ["drop m2", "stop m3", "drop m3", "stop m1", "drop m1", "start m1 3", "start m2 3", "start m3 3"];
    assert_eq!(tail, cycle, "one for all, in order");
}

#[tokio::test(start_paused = true)]
async fn two_roots_in_one_process_do_not_see_each_other() {
    let (one, two) = (Stage::new(Strategy::OneForOne).await, Stage::new(Strategy::OneForOne).await);
    let (_, two_a) = (one.add("a").await, two.add("a").await);
    assert_eq!(one.root.shutdown().await, Ended::Shutdown);
    assert_eq!(incarnation(&two_a).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn the_tree_shows_what_waits_and_what_hangs() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let middle = stage.root.add_supervisor(SupervisorSpec::new("m", Strategy::OneForOne), Restart::Permanent).await;
    let (spec, handle) = stage.puppet("m1");
    middle.expect("it is added").add_child(spec).await.expect("it is added");
    handle.cast(Class::Control, Tell::Sleep(Millis(60_000))).expect("it is taken");
    tokio::time::sleep(SOON.duration()).await;
    handle.cast(Class::Control, Tell::Note("waits")).expect("it is taken");
    tokio::time::sleep(SOON.duration()).await;
    let tree = stage.root.tree();
    let shown = &tree.children[0].children[0];
    assert_eq!((shown.id.as_str(), shown.queue, shown.oldest_ms), ("m1", 2, Some(2_000)));
    assert!(matches!(shown.state, TreeState::Running { .. }));
    let json = serde_json::to_value(&tree).expect("it is data");
    assert_eq!(json["children"][0]["children"][0]["oldestMs"], 2_000);
    assert_eq!(serde_json::from_value::<crate::actors::Tree>(json).expect("it is data"), tree);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_is_crashed_on_purpose_comes_back_as_after_any_crash_also_out_of_a_hang() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let (handle, bystander) = (stage.add("a").await, stage.add("b").await);
    handle.cast(Class::Control, Tell::Sleep(Millis(3_600_000))).expect("it is taken");
    assert!(stage.root.crash_child("a").await.expect("it is known"), "it runs");
    stage.until("a", |state| matches!(state, ChildState::Restarting { .. })).await;
    assert!(!stage.root.crash_child("a").await.expect("it is known"), "between two lives there is nothing to crash");
    stage.until_running("a").await;
    assert_eq!(incarnation(&handle).await, Ok(2));
    assert_eq!(incarnation(&bystander).await, Ok(1));
    assert_eq!(stage.root.child("a").expect("it is listed").restarts_total, 1);
    assert!(stage.root.crash_child("c").await.is_err(), "nobody is called so");
}
