//! Simulated hosts that die, on one machine's seed after another: what they promised holds, no VM runs twice, and the
//! same seed tells the same story to the event.

mod host_support;
mod sim_support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host_support::*;
use novafed::drivers::embedded::local::LocalDriver;
use novafed::drivers::embedded::port::Port;
use novafed::drivers::embedded::rules::{Event, Rules};
use novafed::drivers::embedded::sim::SimHost;
use novafed::drivers::embedded::simulated::Death;
use novafed::drivers::{Channel, End, HostCall, HostError, HostReply, Hypervisor, SwitchKey};
use novafed::store::Keep;
use novafed::types::*;
use sim_support::*;

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(future)
}

async fn milliseconds(count: u64) {
    tokio::time::sleep(Duration::from_millis(count)).await;
}

// -- any call at any time ---------------------------------------------------------------------------------------------

/// What a host is asked while it dies again and again.
struct Asked {
    host: SimHost,
    driver: Arc<LocalDriver>,
    cluster: ClusterId,
    /// Calls that were not answered yet.
    under_way: Mutex<Vec<(u64, Event)>>,
}

impl Asked {
    async fn new(told: &Told, name: &str, seed: u64) -> Arc<Asked> {
        let host = told.host(name, seed).await;
        let driver = Arc::new(host.driver(options(name, 1), Port::default()));
        Arc::new(Asked { host, driver, cluster: options(name, 1).cluster, under_way: Mutex::default() })
    }

    fn rules(&self, vm: VmId) -> Rules {
        self.host.host().and_then(|host| host.rules(&self.cluster, vm)).unwrap_or_default()
    }

    fn ask(self: &Arc<Asked>, number: u64, call: HostCall) {
        let asked = Arc::clone(self);
        let (_, event) = Event::of_call(&call).expect("a call that changes something");
        asked.under_way.lock().unwrap().push((number, event));
        tokio::spawn(async move {
            // Short: a hold, an answer and a death may come first.
            let _ = asked.driver.call(operation(), call, Millis(600)).await;
            asked.under_way.lock().unwrap().retain(|(n, _)| *n != number);
        });
    }

    /// Every state that a restart may make of what is known now and what is under way.
    fn after_a_death(&self, vm: VmId) -> BTreeSet<Rules> {
        let under_way: Vec<Event> = self.under_way.lock().unwrap().iter().map(|(_, event)| *event).collect();
        let (mut seen, mut todo) = (BTreeSet::new(), vec![(self.rules(vm), under_way)]);
        let mut ends = BTreeSet::new();
        while let Some((rules, left)) = todo.pop() {
            if !seen.insert((rules.clone(), left.clone())) {
                continue;
            }
            ends.insert(rules.durable().apply(&Event::HostRestarted).expect("a restart is never refused").0);
            let mut then = |event: &Event, left: Vec<Event>| {
                if let Ok((next, _)) = rules.apply(event) {
                    todo.push((next, left));
                }
            };
            for at in 0..left.len() {
                let mut rest = left.clone();
                let event = rest.remove(at);
                then(&event, rest);
            }
            if let novafed::drivers::embedded::rules::Power::Paused { key } = rules.power {
                then(&Event::Watchdog { key }, left.clone());
            }
        }
        ends
    }
}

/// A call that a confused node may make: often the next of a move, as often any.
fn any_call(random: &mut fastrand::Rng, step: &mut usize, vm: VmId) -> (usize, HostCall) {
    let spec = || spec(GuestProgram { tick_ms: 200, ..small() });
    let fence = [Fence::FIRST, Fence::FIRST, Fence { epoch: 1, generation: 2 }, fence(2), fence(3)];
    let fence = fence[random.usize(..fence.len())];
    let key = key(vm, random.u32(1..=3));
    let deadline = Millis(random.u64(300..4_000));
    let chain = [
        (0, HostCall::Create { vm, spec: spec(), fence: Fence::FIRST }),
        (0, HostCall::Start { vm, fence: Fence::FIRST }),
        (1, HostCall::PrepareReceive { key: host_support::key(vm, 1), spec: spec(), fence: host_support::fence(2) }),
        (0, HostCall::Send { key: host_support::key(vm, 1), bytes_per_second_max: None }),
        (0, HostCall::PauseForSwitch { key: host_support::key(vm, 1), fence: Fence::FIRST, deadline }),
        (1, HostCall::SealReceive { key: host_support::key(vm, 1) }),
        (0, HostCall::Hold { key: host_support::key(vm, 1) }),
        (1, HostCall::Activate { key: host_support::key(vm, 1), fence: host_support::fence(2) }),
        (0, HostCall::Retire { key: host_support::key(vm, 1), fence: host_support::fence(2) }),
        (0, HostCall::Purge { vm, fence: host_support::fence(2) }),
    ];
    if random.u8(..) < 170 && *step < chain.len() {
        *step += 1;
        return chain[*step - 1].clone();
    }
    let at = random.usize(..2);
    let call = match random.u8(..16) {
        0 => HostCall::Create { vm, spec: spec(), fence },
        1 | 2 => HostCall::Start { vm, fence },
        3 => HostCall::Stop { vm, fence },
        4 => HostCall::Delete { vm, fence },
        5 => HostCall::PrepareReceive { key, spec: spec(), fence },
        6 => HostCall::SealReceive { key },
        7 => HostCall::Activate { key, fence },
        8 => HostCall::DiscardReceive { key },
        9 => HostCall::Send { key, bytes_per_second_max: None },
        10 => HostCall::PauseForSwitch { key, fence, deadline },
        11 => HostCall::CancelPause { key },
        12 => HostCall::Hold { key },
        13 => HostCall::ReleaseHold { key },
        14 => HostCall::Retire { key, fence },
        _ => HostCall::Purge { vm, fence },
    };
    (at, call)
}

/// Returns what the restarts found, by its kind of power, so that a test knows what it tried.
async fn dies_at_random(seed: u64) -> BTreeSet<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let told = Told::new();
    let hosts = [Asked::new(&told, "a", random.u64(..)).await, Asked::new(&told, "b", random.u64(..)).await];
    let (vm, mut found) = (vm(1), BTreeSet::new());
    let wires = [1, 2, 3].map(|attempt| {
        let (a, b) = (Arc::clone(&hosts[0].driver), Arc::clone(&hosts[1].driver));
        tokio::spawn(async move { relay(&*a, &*b, key(vm, attempt)).await })
    });
    let mut step = 0;
    for number in 0..random.u64(20..60) {
        let (at, call) = any_call(&mut random, &mut step, vm);
        hosts[at].ask(number, call);
        milliseconds(if random.bool() { random.u64(0..8) } else { random.u64(0..900) }).await;
        if random.u8(..) < 40 {
            let dying = &hosts[random.usize(..2)];
            let death = if random.bool() { Death::Process } else { Death::Machine(Keep::Subset(random.u64(..))) };
            let may_be = dying.after_a_death(vm);
            dying.host.crash(death);
            milliseconds(random.u64(0..300)).await;
            dying.host.start().await.unwrap();
            let is = dying.rules(vm);
            assert!(may_be.contains(&is), "seed {seed}, call {number}, {death:?}: {is:?} is none of {may_be:#?}");
            found.insert(kind(&is));
        }
    }
    wires.iter().for_each(tokio::task::JoinHandle::abort);
    // On each host by itself: nobody kept these calls to the law between hosts.
    told.runs(vm);
    found
}

fn kind(rules: &Rules) -> String {
    let shown = format!("{:?}", rules.power);
    let lost = if shown.contains("lost: true") { " lost" } else { "" };
    let disk = if shown.contains("DiskOnly") { " disk only" } else { "" };
    format!("{}{lost}{disk}", shown.split([' ', '{']).next().unwrap_or_default())
}

#[test]
fn whatever_a_host_was_doing_when_it_died_it_comes_back_as_the_rules_say() {
    let mut found = BTreeSet::new();
    for seed in 0..400 {
        found.extend(run(dies_at_random(seed)));
    }
    let must = ["Absent", "Held lost", "Lost", "Receiving disk only", "Stopped"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), must);
}

// -- moves by the law -------------------------------------------------------------------------------------------------

/// Carries a transfer's bytes, over a new connection whenever one is cut.
async fn relay(from: &dyn Hypervisor, to: &dyn Hypervisor, key: SwitchKey) {
    loop {
        let ends = (
            from.open_channel(key, Channel::Blocks, End::Source).await,
            to.open_channel(key, Channel::Blocks, End::Target).await,
        );
        if let (Ok(mut near), Ok(mut far)) = ends {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
        milliseconds(100).await;
    }
}

/// One owner of a VM that moves it to and fro by the law, and what befalls its hosts meanwhile.
struct Owner {
    told: Told,
    hosts: [SimHost; 2],
    drivers: [Arc<LocalDriver>; 2],
    vm: VmId,
    spec: VmSpec,
    fence: Fence,
    place: usize,
    random: fastrand::Rng,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Tale {
    events: Vec<sim_support::Event>,
    transfers: u32,
    aborts: u32,
    boots_after_loss: u32,
}

impl Owner {
    async fn new(seed: u64) -> Owner {
        let mut random = fastrand::Rng::with_seed(seed);
        let told = Told::new();
        let hosts = [told.host("a", random.u64(..)).await, told.host("b", random.u64(..)).await];
        let drivers = [(0, "a"), (1, "b")].map(|(at, name)| {
            let host: &SimHost = &hosts[at];
            Arc::new(host.driver(options(name, 1), Port::default()))
        });
        let spec = spec(GuestProgram { seed, tick_ms: random.u32(100..1_000), ..small() });
        Owner { told, hosts, drivers, vm: vm(1), spec, fence: Fence::FIRST, place: 0, random }
    }

    /// Repeats `call` until its outcome is known.
    async fn settled(&self, at: usize, call: HostCall) -> Result<HostReply, HostError> {
        let operation = operation();
        loop {
            match self.drivers[at].call(operation.clone(), call.clone(), Millis(2_000)).await {
                Err(HostError::Unknown { .. } | HostError::Failed { .. }) => milliseconds(200).await,
                known => return known,
            }
        }
    }

    async fn done(&self, at: usize, call: HostCall) {
        let shown = format!("{call:?}");
        self.settled(at, call).await.unwrap_or_else(|error| panic!("{shown} at {at}: {error}"));
    }

    /// Whether the transfer's source says so within a while.
    async fn sees(&self, key: SwitchKey, holds: impl Fn(novafed::drivers::TransferProgress) -> bool) -> bool {
        for _ in 0..100 {
            let now = self.drivers[self.place].call(operation(), HostCall::Progress { key }, Millis(500)).await;
            if let Ok(HostReply::Progress(progress)) = now
                && holds(progress)
            {
                return true;
            }
            milliseconds(150).await;
        }
        false
    }

    /// Everything up to the hold. What fails here fails the attempt.
    async fn held(&self, key: SwitchKey, fence: Fence) -> Option<()> {
        let (from, to) = (self.place, 1 - self.place);
        self.settled(to, HostCall::PrepareReceive { key, spec: self.spec.clone(), fence }).await.ok()?;
        self.settled(from, HostCall::Send { key, bytes_per_second_max: None }).await.ok()?;
        self.sees(key, |progress| progress.rounds > 0).await.then_some(())?;
        let pause = HostCall::PauseForSwitch { key, fence: self.fence, deadline: Millis(20_000) };
        self.settled(from, pause).await.ok()?;
        self.sees(key, |progress| progress.drained).await.then_some(())?;
        self.settled(to, HostCall::SealReceive { key }).await.ok()?;
        self.settled(from, HostCall::Hold { key }).await.ok()?;
        Some(())
    }

    /// One attempt; says whether it ended with a transfer.
    async fn attempt(&mut self, attempt: u32, tale: &mut Tale) {
        let (from, to, vm, key) = (self.place, 1 - self.place, self.vm, key(self.vm, attempt));
        let fence = Fence { epoch: self.fence.epoch + 1, generation: 1 };
        let wire = {
            let (a, b) = (Arc::clone(&self.drivers[from]), Arc::clone(&self.drivers[to]));
            tokio::spawn(async move { relay(&*a, &*b, key).await })
        };
        let held = self.held(key, fence).await;
        wire.abort();
        if held.is_some() && self.random.u8(..) > 30 {
            // The decision is recorded: from here on there is only forward.
            (self.fence, self.place) = (fence, to);
            if self.settled(to, HostCall::Activate { key, fence }).await.is_err() {
                tale.boots_after_loss += 1;
                self.done(to, HostCall::Start { vm, fence }).await;
            }
            self.done(from, HostCall::Retire { key, fence }).await;
            self.done(from, HostCall::Purge { vm, fence }).await;
            tale.transfers += 1;
        } else {
            self.done(from, HostCall::ReleaseHold { key }).await;
            self.done(to, HostCall::DiscardReceive { key }).await;
            tale.aborts += 1;
        }
        self.revive(tale).await;
    }

    /// Boots it again if its memory was lost.
    async fn revive(&mut self, tale: &mut Tale) {
        let seen = self.settled(self.place, HostCall::Get { vm: self.vm }).await;
        let Ok(HostReply::Vm(Some(seen))) = seen else { panic!("{seen:?}") };
        if seen.sight.power == GuestPower::Lost {
            self.fence.generation += 1;
            tale.boots_after_loss += 1;
            let fence = self.fence;
            // A start that is overtaken by a death leaves it lost, which the next look finds.
            let _ = self.settled(self.place, HostCall::Start { vm: self.vm, fence }).await;
        }
    }
}

/// Kills, stops and restarts hosts until it is aborted.
async fn troubles(hosts: [SimHost; 2], mut random: fastrand::Rng) {
    loop {
        milliseconds(random.u64(50..12_000)).await;
        let host = &hosts[random.usize(..2)];
        match random.u8(..3) {
            0 => {
                host.hold(true);
                milliseconds(random.u64(1..30_000)).await;
                host.hold(false);
            }
            1 => host.restart().await.unwrap(),
            _ => {
                host.crash(Death::Process);
                milliseconds(random.u64(1..8_000)).await;
                host.start().await.unwrap();
            }
        }
    }
}

async fn tale(seed: u64) -> Tale {
    let mut owner = Owner::new(seed).await;
    let (vm, mut tale) = (owner.vm, Tale::default());
    owner.done(0, HostCall::Create { vm, spec: owner.spec.clone(), fence: Fence::FIRST }).await;
    owner.done(0, HostCall::Start { vm, fence: Fence::FIRST }).await;
    let troubles = tokio::spawn(troubles(owner.hosts.clone(), owner.random.fork()));
    for attempt in 1..=6 {
        let pause = owner.random.u64(0..8_000);
        milliseconds(pause).await;
        owner.attempt(attempt, &mut tale).await;
    }
    troubles.abort();
    for host in &owner.hosts {
        host.hold(false);
        host.start().await.unwrap();
    }
    owner.revive(&mut tale).await;
    milliseconds(3_000).await;
    let (here, there) = (owner.place, 1 - owner.place);
    let clusters = ["a", "b"].map(|name| options(name, 1).cluster);
    owner.hosts[here].judge(&clusters[here], vm).expect("it has memory").unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    assert!(owner.hosts[there].host().unwrap().guest(&clusters[there], vm).is_none(), "seed {seed}");
    assert_eq!(get(&*owner.drivers[there], vm).await, None, "seed {seed}");
    let runs = owner.told.runs(vm);
    assert_eq!(runs.iter().filter(|run| run.until.is_none()).count(), 1, "seed {seed}: {runs:?}");
    owner.told.holds_the_law();
    tale.events = std::mem::take(&mut *owner.told.events());
    tale
}

#[test]
fn no_vm_runs_twice_and_no_tick_comes_back_whatever_dies_during_its_moves() {
    let (mut transfers, mut aborts, mut boots) = (0, 0, 0);
    for seed in 0..150 {
        let told = run(tale(seed));
        (transfers, aborts, boots) = (transfers + told.transfers, aborts + told.aborts, boots + told.boots_after_loss);
    }
    // All of it was tried, and often.
    assert!(transfers > 300 && aborts > 100 && boots > 50, "{transfers} transfers, {aborts} aborts, {boots} boots");
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let mut stories = BTreeSet::new();
    for seed in 1_000..1_025 {
        let (one, two) = (run(tale(seed)), run(tale(seed)));
        assert!(one.events.len() > 20, "seed {seed}");
        assert_eq!(one, two, "seed {seed}");
        stories.insert(format!("{one:?}"));
    }
    assert_eq!(stories.len(), 25);
}
