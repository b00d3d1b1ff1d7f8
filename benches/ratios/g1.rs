//! G1: casts and calls to an actor through our mailbox (bounded by class, stamped with deadline and trace, counted,
//! supervised) against the same through bare ractor, in one runtime.

use std::sync::Arc;

use novafed::actors::{
    Admission, ChildSpec, Class, Ctx, Handle, HandlerError, MemoryLedger, Reply, Root, Serve, Start, SupervisorSpec,
};
use novafed::clock::{Clock, machine_nanos};
use novafed::decision::supervision::Strategy;
use novafed::types::Millis;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::runtime::{Builder, Runtime};

use crate::measure::{BLOCK_NANOS, Bench, Goal, quantile, rate};

/// Casts that are under way at most: less than a class may have waiting.
const BURST: u64 = 1_000;
/// Calls per sample, so that reading the clock weighs little.
const CALLS: u64 = 10;
const DEADLINE: Millis = Millis(5_000);

/// Casts and calls, with one and with two workers.
pub fn register(bench: &mut Bench) {
    for workers in [1, 2] {
        let plural = if workers == 1 { "" } else { "s" };
        let cast = format!("G1 cast, {workers} worker{plural}");
        let call = format!("G1 call p50, {workers} worker{plural}");
        let timed = format!("G1 call p50, {workers} worker{plural}, bare timed");
        if ![&cast, &call, &timed].into_iter().any(|name| bench.wants(name)) {
            continue;
        }
        let runtime = if workers == 1 {
            Builder::new_current_thread().enable_all().build()
        } else {
            Builder::new_multi_thread().worker_threads(workers).enable_all().build()
        };
        let runtime = runtime.expect("the machine has threads");
        let (supervisor, ours) = runtime.block_on(our_actor());
        let bare = runtime.block_on(bare_actor());
        bench.compare(
            &cast,
            "1/s",
            Goal::RatioAtLeast(0.90),
            || rate(|| on(&runtime, our_burst(ours.clone()))),
            || rate(|| on(&runtime, bare_burst(bare.clone()))),
        );
        bench.compare(
            &call,
            "us",
            Goal::RatioAtMost(1.15),
            || on(&runtime, our_calls(ours.clone())),
            || on(&runtime, bare_calls(bare.clone(), None)),
        );
        bench.compare(
            &timed,
            "us",
            Goal::None,
            || on(&runtime, our_calls(ours.clone())),
            || on(&runtime, bare_calls(bare.clone(), Some(DEADLINE.duration()))),
        );
        runtime.block_on(supervisor.shutdown());
        bare.stop(None);
    }
}

/// Runs `work` as a task, as actors' callers are.
fn on<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async move { tokio::spawn(work).await.expect("it does not panic") })
}

enum Ours {
    Add(u64),
    Sum(Reply<u64>),
}

struct Sum(u64);

impl Serve for Sum {
    type Message = Ours;
    async fn handle(&mut self, message: Ours, _: &mut Ctx<Ours>) -> Result<(), HandlerError> {
        match message {
            Ours::Add(more) => self.0 = self.0.wrapping_add(more),
            Ours::Sum(reply) => drop(reply.send(self.0)),
        }
        Ok(())
    }
}

async fn our_actor() -> (Root, Handle<Ours>) {
    let clock = Clock::start();
    let spec = SupervisorSpec::new("root", Strategy::OneForOne);
    let root = Root::start(spec, clock.clone(), 1, Arc::new(MemoryLedger::default())).await.expect("it starts");
    let handle = Handle::new(clock.clone(), Admission::default());
    let child = ChildSpec::actor("sum", &handle, |_: Start| std::future::ready(Ok(Sum(0))));
    root.add_child(child).await.expect("it starts");
    (root, handle)
}

async fn our_burst(actor: Handle<Ours>) -> u64 {
    for n in 0..BURST {
        actor.cast(Class::Control, Ours::Add(n)).expect("there is room");
    }
    actor.call(Class::Control, DEADLINE, Ours::Sum).await.expect("it lives");
    BURST
}

async fn our_calls(actor: Handle<Ours>) -> f64 {
    let mut samples = Vec::new();
    let end = machine_nanos() + BLOCK_NANOS;
    loop {
        let start = machine_nanos();
        for _ in 0..CALLS {
            actor.call(Class::Control, DEADLINE, Ours::Sum).await.expect("it lives");
        }
        let now = machine_nanos();
        samples.push(now - start);
        if now >= end {
            return quantile(&mut samples, 0.5) / (1_000 * CALLS) as f64;
        }
    }
}

enum Bare {
    Add(u64),
    Sum(RpcReplyPort<u64>),
}

struct BareSum;

impl Actor for BareSum {
    type Msg = Bare;
    type State = u64;
    type Arguments = ();
    async fn pre_start(&self, _: ActorRef<Bare>, (): ()) -> Result<u64, ActorProcessingErr> {
        Ok(0)
    }
    async fn handle(&self, _: ActorRef<Bare>, message: Bare, sum: &mut u64) -> Result<(), ActorProcessingErr> {
        match message {
            Bare::Add(more) => *sum = sum.wrapping_add(more),
            Bare::Sum(reply) => drop(reply.send(*sum)),
        }
        Ok(())
    }
}

async fn bare_actor() -> ActorRef<Bare> {
    BareSum::spawn(None, BareSum, ()).await.expect("it starts").0
}

async fn bare_burst(actor: ActorRef<Bare>) -> u64 {
    for n in 0..BURST {
        actor.cast(Bare::Add(n)).expect("it lives");
    }
    actor.call(Bare::Sum, None).await.expect("it lives").expect("it answers");
    BURST
}

async fn bare_calls(actor: ActorRef<Bare>, timeout: Option<std::time::Duration>) -> f64 {
    let mut samples = Vec::new();
    let end = machine_nanos() + BLOCK_NANOS;
    loop {
        let start = machine_nanos();
        for _ in 0..CALLS {
            actor.call(Bare::Sum, timeout).await.expect("it lives").expect("it answers");
        }
        let now = machine_nanos();
        samples.push(now - start);
        if now >= end {
            return quantile(&mut samples, 0.5) / (1_000 * CALLS) as f64;
        }
    }
}
