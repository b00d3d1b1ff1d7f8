//! The host of production on a simulated machine: on one thread and virtual time it keeps the same laws, whatever dies,
//! and does the same again with the same seed.

mod host_support;
mod sim_support;

use std::sync::Arc;

use host_support::*;
use novafed::clock::Clock;
use novafed::drivers::conformance::conformance;
use novafed::drivers::embedded::faults::{CallKind, Fault};
use novafed::drivers::embedded::host::{Host, HostOpenError};
use novafed::drivers::embedded::local::LocalOptions;
use novafed::drivers::embedded::port::Port;
use novafed::drivers::embedded::sim::SimHost;
use novafed::drivers::embedded::simulated::{Death, Room};
use novafed::drivers::{Channel, End, HostCall, HostError, HostReply, Hypervisor, SwitchKey};
use novafed::store::Keep;
use novafed::types::units::{GIB, KIB};
use novafed::types::*;
use sim_support::*;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

async fn sleep(milliseconds: u64) {
    tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
}

/// Moves the VM by calls, as the nodes of two regions would, and lets it run at `b`.
async fn moved(a: &dyn Hypervisor, b: &dyn Hypervisor, key: SwitchKey, spec: &VmSpec) {
    call(b, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
    call(a, HostCall::Send { key, bytes_per_second_max: None }).await;
    let wire = connect(a, b, key).await;
    eventually("two rounds are over", async || progress(a, key).await.rounds >= 2).await;
    call(a, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
    eventually("everything arrived", async || progress(a, key).await.drained).await;
    let sealed = seal(b, key).await;
    assert_eq!(sealed.tick, get(a, key.vm).await.unwrap().sight.tick);
    call(a, HostCall::Hold { key }).await;
    call(b, HostCall::Activate { key, fence: fence(2) }).await;
    call(a, HostCall::Retire { key, fence: fence(2) }).await;
    wire.abort();
}

#[tokio::test(start_paused = true)]
async fn a_live_move_between_simulated_hosts_is_contiguous_to_the_tick() {
    let told = Told::new();
    let (a, b) = (told.host("a", 1).await, told.host("b", 2).await);
    let (a, b) = (a.driver(options("a", 1), Port::default()), b.driver(options("b", 1), Port::default()));
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(small()));
    start(&a, vm, &spec).await;
    ticked(&a, vm, 5).await;
    moved(&a, &b, key, &spec).await;
    ticked(&b, vm, 5).await;
    let runs = told.runs(vm);
    assert_eq!(runs.len(), 2, "{runs:?}");
    assert_eq!((runs[0].host.as_str(), runs[0].from_tick), ("a", 0));
    assert_eq!((runs[1].host.as_str(), runs[1].from_tick), ("b", runs[0].to_tick));
    assert!(runs[0].until.unwrap() < runs[1].from && runs[1].until.is_none());
    assert!(runs[0].ticks >= 5 && runs[1].ticks >= 5);
    told.holds_the_law();
}

#[tokio::test(start_paused = true)]
async fn the_simulated_host_conforms() {
    let told = Told::new();
    let (a, b) = (told.host("a", 1).await, told.host("b", 2).await);
    let (a, b) = (a.driver(options("a", 1), Port::default()), b.driver(options("b", 1), Port::default()));
    conformance(&a, &b, 1).await.unwrap_or_else(|e| panic!("{e}"));
    // Also between two clusters of one host, which attach to it one after the other.
    let host = told.host("c", 3).await;
    let (a, b) = (host.driver(options("c", 1), Port::default()), host.driver(options("d", 1), Port::default()));
    conformance(&a, &b, 2).await.unwrap_or_else(|e| panic!("{e}"));
    told.holds_the_law();
}

#[tokio::test(start_paused = true)]
async fn every_byte_of_a_guest_is_right_before_and_after_a_move_and_a_boot_from_its_disk() {
    let told = Told::new();
    let (a, b) = (told.host("a", 1).await, told.host("b", 2).await);
    let clusters = [options("a", 1).cluster, options("b", 1).cluster];
    let (from, to) = (a.driver(options("a", 1), Port::default()), b.driver(options("b", 1), Port::default()));
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(small()));
    start(&from, vm, &spec).await;
    sleep(40_000).await;
    a.judge(&clusters[0], vm).unwrap().unwrap();
    moved(&from, &to, key, &spec).await;
    assert!(a.judge(&clusters[0], vm).is_none());
    sleep(400_000).await;
    let verdict = b.judge(&clusters[1], vm).unwrap().unwrap();
    assert_eq!((verdict.pages, verdict.blocks), (64, 3));
    b.restart().await.unwrap();
    call(&to, HostCall::Start { vm, fence: Fence { epoch: 2, generation: 2 } }).await;
    sleep(40_000).await;
    b.judge(&clusters[1], vm).unwrap().unwrap();
    told.holds_the_law();
}

#[tokio::test(start_paused = true)]
async fn a_large_disk_of_zeros_costs_nothing() {
    let host = Told::new().host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    let spec = VmSpec { disk_bytes: 16 * GIB, ..spec(GuestProgram { disk_resident_bytes: 0, ..small() }) };
    start(&driver, vm(1), &spec).await;
    ticked(&driver, vm(1), 3).await;
    assert_eq!(host.media().bytes(), 4 * KIB, "the superblock's page");
}

// -- nobody listens, or not now ---------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_call_to_a_dead_host_is_unknown_at_its_deadline_and_a_channel_fails_at_once() {
    let told = Told::new();
    let host = SimHost::new("a".parse().unwrap(), 1, Arc::new(told.clone()));
    let driver = Arc::new(host.driver(options("a", 1), Port::default()));
    let clock = Clock::start();
    let unknown = driver.call(operation(), HostCall::Inventory, Millis(3_000)).await;
    assert!(matches!(unknown, Err(HostError::Unknown { .. })), "{unknown:?}");
    assert_eq!(clock.now().0, 3_000);
    let failed = driver.open_channel(key(vm(1), 1), Channel::Blocks, End::Source).await.err();
    assert!(matches!(failed, Some(HostError::Failed { .. })), "{failed:?}");
    assert_eq!(clock.now().0, 3_000);
    // A host that comes while somebody waits is found.
    let waiting = {
        let driver = Arc::clone(&driver);
        tokio::spawn(async move { driver.call(operation(), HostCall::Inventory, Millis(5_000)).await })
    };
    sleep(1_000).await;
    host.start().await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(HostReply::Inventory(vec![])));
    assert!(clock.now().0 <= 4_050, "{}", clock.now().0);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_dies_during_a_call_leaves_it_unknown_at_once_and_cuts_its_channels() {
    let told = Told::new();
    let (a, b) = (told.host("a", 1).await, told.host("b", 2).await);
    let driver = Arc::new(a.driver(options("a", 1), Port::default()));
    let to = b.driver(options("b", 1), Port::default());
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(small()));
    start(&*driver, vm, &spec).await;
    call(&*driver, HostCall::Send { key, bytes_per_second_max: None }).await;
    call(&to, HostCall::PrepareReceive { key, spec, fence: fence(2) }).await;
    let wire = connect(&*driver, &to, key).await;
    a.faults().plan(CallKind::Get, Fault::Hangs, 1);
    let hanging = {
        let driver = Arc::clone(&driver);
        tokio::spawn(async move { driver.call(operation(), HostCall::Get { vm }, Millis(60_000)).await })
    };
    sleep(500).await;
    let clock = Clock::start();
    a.crash(Death::Process);
    let unknown = hanging.await.unwrap();
    assert!(matches!(unknown, Err(HostError::Unknown { .. })), "{unknown:?}");
    wire.await.unwrap();
    assert_eq!(clock.now().0, 0);
    assert_eq!(told.runs(vm).last().unwrap().until, Some(told.now()));
}

#[tokio::test(start_paused = true)]
async fn while_a_host_is_held_nothing_happens_and_at_its_release_what_fell_due_does() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    let (vm, other, first) = (vm(1), vm(2), key(vm(1), 1));
    start(&driver, vm, &spec(small())).await;
    start(&driver, other, &spec(small())).await;
    let pause = HostCall::PauseForSwitch { key: first, fence: Fence::FIRST, deadline: Millis(2_000) };
    call(&driver, pause).await;
    host.hold(true);
    let (ticks, held_at) = (told.events().len(), told.now());
    // Calls wait; the caller gives up at its deadline, and the call is done all the same.
    let unknown = driver.call(operation(), HostCall::Stop { vm: other, fence: Fence::FIRST }, Millis(1_000)).await;
    assert!(matches!(unknown, Err(HostError::Unknown { .. })), "{unknown:?}");
    sleep(9_000).await;
    assert_eq!(told.events().len(), ticks);
    host.hold(false);
    sleep(20).await;
    assert_eq!(told.now().since(held_at), Millis(10_020));
    assert_eq!(get(&driver, other).await.unwrap().sight.power, GuestPower::Stopped);
    // The watchdog was due eight seconds ago.
    let seen = get(&driver, vm).await.unwrap().sight;
    assert_eq!((seen.power, seen.spent), (GuestPower::Running, Some(first)));
    let resumed = told.runs(vm).last().unwrap().from;
    assert!(resumed.since(held_at).0 >= 10_000 && resumed.since(held_at).0 < 10_010, "{resumed:?}");
    told.holds_the_law();
}

#[tokio::test(start_paused = true)]
async fn a_held_host_may_be_killed() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    start(&driver, vm(1), &spec(small())).await;
    host.hold(true);
    sleep(5_000).await;
    host.restart().await.unwrap();
    assert!(host.serves());
    assert_eq!(get(&driver, vm(1)).await.unwrap().sight.power, GuestPower::Lost);
    assert_eq!(told.runs(vm(1)).last().unwrap().to_tick, told.runs(vm(1)).last().unwrap().ticks);
}

// -- nodes that die ---------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn what_a_dead_node_had_sent_arrives_and_nothing_after_it() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let dies = CancellationToken::new();
    let driver = Arc::new(host.driver(options("a", 1), Port::from(dies.clone())));
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(small()));
    start(&*driver, vm, &spec).await;
    call(&*driver, HostCall::Send { key, bytes_per_second_max: None }).await;
    let mut channel = driver.open_channel(key, Channel::Blocks, End::Source).await.unwrap();
    host.set_latency(Millis(50), Millis(0));
    let stopping = {
        let driver = Arc::clone(&driver);
        tokio::spawn(async move { call(&*driver, HostCall::Stop { vm, fence: Fence::FIRST }).await })
    };
    // It is on its way when the node dies.
    tokio::task::yield_now().await;
    dies.cancel();
    let deleting = {
        let driver = Arc::clone(&driver);
        tokio::spawn(async move { call(&*driver, HostCall::Delete { vm, fence: Fence::FIRST }).await })
    };
    let reading = tokio::spawn(async move { channel.read_u8().await });
    sleep(10_000).await;
    assert!(!stopping.is_finished() && !deleting.is_finished() && !reading.is_finished());
    let next = host.driver(options("a", 2), Port::default());
    assert_eq!(get(&next, vm).await.unwrap().sight.power, GuestPower::Stopped);
}

#[tokio::test(start_paused = true)]
async fn the_streams_of_a_dead_node_are_cut_for_the_other_end() {
    let told = Told::new();
    let (a, b) = (told.host("a", 1).await, told.host("b", 2).await);
    let dies = CancellationToken::new();
    let from = a.driver(options("a", 1), Port::from(dies.clone()));
    let to = b.driver(options("b", 1), Port::from(dies.clone()));
    let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(small()));
    start(&from, vm, &spec).await;
    call(&from, HostCall::Send { key, bytes_per_second_max: None }).await;
    call(&to, HostCall::PrepareReceive { key, spec, fence: fence(2) }).await;
    let _wire = connect(&from, &to, key).await;
    sleep(1_000).await;
    let (source, target) = (a.host().unwrap(), b.host().unwrap());
    let connected = async |host: &Arc<Host>, name: &str| match host
        .observe(&options(name, 1).cluster, HostCall::Progress { key })
        .await
    {
        Ok(HostReply::Progress(progress)) => progress.connected,
        other => panic!("{other:?}"),
    };
    assert!(connected(&source, "a").await && connected(&target, "b").await);
    dies.cancel();
    sleep(1).await;
    assert!(!connected(&source, "a").await && !connected(&target, "b").await);
}

#[tokio::test(start_paused = true)]
async fn a_later_life_of_a_node_shuts_the_earlier_one_out_and_a_copy_is_refused() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let first = Lineage::after(None, 11);
    let second = Lineage::after(Some(first.clone()), 22);
    let copy = Lineage::after(Some(first.clone()), 33);
    let driver = |lineage: &Lineage, name: &str| {
        let options = LocalOptions { lineage: lineage.clone(), ..options(name, 1) };
        Arc::new(host.driver(options, Port::default()))
    };
    // Several clusters of one region.
    let (one, other) = (driver(&first, "a"), driver(&first, "b"));
    start(&*one, vm(1), &spec(small())).await;
    start(&*other, vm(2), &spec(small())).await;
    host.faults().plan(CallKind::Get, Fault::Hangs, 1);
    let hanging = {
        let one = Arc::clone(&one);
        tokio::spawn(async move { one.call(operation(), HostCall::Get { vm: vm(1) }, Millis(60_000)).await })
    };
    sleep(100).await;
    let later = driver(&second, "a");
    assert_eq!(get(&*later, vm(1)).await.unwrap().sight.power, GuestPower::Running);
    let unknown = hanging.await.unwrap();
    assert!(matches!(unknown, Err(HostError::Unknown { .. })), "{unknown:?}");
    for stale in [&one, &other, &driver(&first, "b"), &driver(&copy, "a")] {
        let refused = try_call(&**stale, HostCall::Inventory).await;
        assert!(matches!(refused, Err(HostError::StaleIncarnation { .. })), "{refused:?}");
    }
    // Over the death of the host, too.
    host.restart().await.unwrap();
    let refused = try_call(&*driver(&copy, "a"), HostCall::Inventory).await;
    assert!(matches!(refused, Err(HostError::StaleIncarnation { .. })), "{refused:?}");
    assert_eq!(get(&*later, vm(1)).await.unwrap().sight.power, GuestPower::Lost);
}

// -- disks ------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn while_the_state_has_no_room_nothing_is_promised_and_afterwards_all_is_well() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    let (vm, key) = (vm(1), key(vm(1), 1));
    start(&driver, vm, &spec(small())).await;
    call(&driver, HostCall::Send { key, bytes_per_second_max: None }).await;
    call(&driver, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
    host.set_state_room(Room::None);
    for _ in 0..3 {
        let failed = try_call(&driver, HostCall::Hold { key }).await;
        assert!(matches!(failed, Err(HostError::Failed { .. })), "{failed:?}");
        assert_eq!(get(&driver, vm).await.unwrap().sight.hold, None);
    }
    host.set_state_room(Room::Plenty);
    call(&driver, HostCall::Hold { key }).await;
    host.restart().await.unwrap();
    let seen = get(&driver, vm).await.unwrap().sight;
    assert_eq!((seen.hold, seen.power), (Some(key), GuestPower::Lost));
}

#[tokio::test(start_paused = true)]
async fn at_whichever_write_the_state_is_full_the_call_failed_or_is_kept() {
    for at in 1..40 {
        let host = Told::new().host("a", at).await;
        let driver = host.driver(options("a", 1), Port::default());
        let create = |number| HostCall::Create { vm: vm(number), spec: spec(small()), fence: Fence::FIRST };
        call(&driver, create(1)).await;
        host.set_state_room(Room::NoneAtWrite(at));
        let outcome = try_call(&driver, create(2)).await;
        assert!(matches!(outcome, Ok(HostReply::Done) | Err(HostError::Failed { .. })), "{outcome:?}");
        host.set_state_room(Room::Plenty);
        // Whether it is in the state or not, the next one opens it anew.
        call(&driver, create(3)).await;
        host.crash(if at % 2 == 0 { Death::Process } else { Death::Machine(Keep::None) });
        host.start().await.unwrap();
        assert!(get(&driver, vm(1)).await.is_some() && get(&driver, vm(3)).await.is_some(), "write {at}");
        assert!(outcome.is_err() || get(&driver, vm(2)).await.is_some(), "write {at}");
        call(&driver, create(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_state_is_full_does_not_start_until_there_is_room() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    start(&driver, vm(1), &spec(small())).await;
    host.crash(Death::Process);
    host.set_state_room(Room::None);
    assert!(matches!(host.start().await, Err(HostOpenError::State(_))));
    assert!(!host.serves());
    host.set_state_room(Room::Plenty);
    host.start().await.unwrap();
    assert_eq!(get(&driver, vm(1)).await.unwrap().sight.power, GuestPower::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_disk_is_full_stands_still_and_goes_on_when_there_is_room() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    let program = GuestProgram { disk_bytes_per_second: 128 * KIB, ..small() };
    start(&driver, vm(1), &spec(program)).await;
    ticked(&driver, vm(1), 5).await;
    host.set_disk_room(Room::None);
    let full = try_call(&driver, HostCall::Create { vm: vm(2), spec: spec(small()), fence: Fence::FIRST }).await;
    assert!(matches!(full, Err(HostError::Failed { .. })), "{full:?}");
    let stood = get(&driver, vm(1)).await.unwrap().sight.tick;
    sleep(10_000).await;
    assert_eq!(get(&driver, vm(1)).await.unwrap().sight.tick, stood);
    host.set_disk_room(Room::Plenty);
    ticked(&driver, vm(1), 5).await;
    host.judge(&options("a", 1).cluster, vm(1)).unwrap().unwrap();
    call(&driver, HostCall::Create { vm: vm(2), spec: spec(small()), fence: Fence::FIRST }).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_sealed_and_held_outlives_the_machine_whatever_it_loses() {
    for seed in 0..40 {
        let told = Told::new();
        let (a, b) = (told.host("a", seed).await, told.host("b", seed + 1_000).await);
        let (from, to) = (a.driver(options("a", 1), Port::default()), b.driver(options("b", 1), Port::default()));
        let (vm, key, spec) = (vm(1), key(vm(1), 1), spec(small()));
        start(&from, vm, &spec).await;
        sleep(20_000).await;
        call(&to, HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
        call(&from, HostCall::Send { key, bytes_per_second_max: None }).await;
        let wire = connect(&from, &to, key).await;
        call(&from, HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) }).await;
        eventually("everything arrived", async || progress(&from, key).await.drained).await;
        seal(&to, key).await;
        call(&from, HostCall::Hold { key }).await;
        wire.abort();
        for host in [&a, &b] {
            host.crash(Death::Machine(if seed == 0 { Keep::None } else { Keep::Subset(seed) }));
            host.start().await.unwrap();
        }
        let (source, target) = (get(&from, vm).await.unwrap().sight, get(&to, vm).await.unwrap().sight);
        assert_eq!((source.hold, source.power), (Some(key), GuestPower::Lost), "seed {seed}");
        assert_eq!(target.receiving, Some((key, false)), "seed {seed}");
        call(&to, HostCall::Start { vm, fence: fence(2) }).await;
        ticked(&to, vm, 3).await;
        b.judge(&options("b", 1).cluster, vm).unwrap().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        told.holds_the_law();
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_stopped_in_good_order_remembers_its_ticks() {
    let told = Told::new();
    let host = told.host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    start(&driver, vm(1), &spec(small())).await;
    ticked(&driver, vm(1), 7).await;
    host.stop().await;
    assert!(!host.serves());
    let stood = told.runs(vm(1))[0].to_tick;
    host.start().await.unwrap();
    call(&driver, HostCall::Start { vm: vm(1), fence: Fence { epoch: 1, generation: 2 } }).await;
    assert_eq!(told.runs(vm(1))[1].from_tick, stood);
}

// -- cost -------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn an_idle_host_never_wakes_and_a_busy_one_only_for_ticks() {
    let host = Told::new().host("a", 1).await;
    let driver = host.driver(options("a", 1), Port::default());
    let metrics = tokio::runtime::Handle::current().metrics();
    let wakes = async |seconds: u64| {
        let before = metrics.worker_park_count(0);
        sleep(seconds * 1_000).await;
        metrics.worker_park_count(0) - before
    };
    let nothing = wakes(100_000).await;
    for number in 1..=3 {
        start(&driver, vm(number), &spec(GuestProgram { seed: number, ..small() })).await;
    }
    let ticking = wakes(1_000).await;
    for number in 1..=3 {
        let pause = HostCall::PauseForSwitch { key: key(vm(number), 1), fence: Fence::FIRST, deadline: Millis(60_000) };
        call(&driver, pause).await;
        call(&driver, HostCall::Hold { key: key(vm(number), 1) }).await;
    }
    sleep(2_000).await;
    let held = wakes(100_000).await;
    // A long sleep, as the test's own, is handed down the timer's six wheels, that of a tick down two.
    assert!(nothing <= 6 && held <= 6, "{nothing} and {held} wakes of an idle host");
    assert!(ticking <= 3 * 3 * 1_000 + 6, "{ticking} wakes for 3000 ticks");
}
