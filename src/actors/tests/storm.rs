//! Many threads, children that fail in every way at once: no child ever has two lives at a time, none is lost.

use std::sync::atomic::{AtomicU32, Ordering};

use super::super::{Admission, CallError, ChildSpec, Ended};
use super::*;
use crate::decision::supervision::{Budget, Restart};

const CHILDREN: usize = 6;
const FAILURES: usize = 60;
const SOON: Millis = Millis(10_000);

#[derive(Default)]
struct Lives {
    now: AtomicU32,
    most: AtomicU32,
    all: AtomicU32,
}

/// Counts as alive from its making to its drop, and so does its task.
struct Mark(Arc<Lives>);

impl Mark {
    fn new(lives: &Arc<Lives>) -> Mark {
        lives.most.fetch_max(lives.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Mark(Arc::clone(lives))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Mayfly {
    inner: Puppet,
    _mark: Mark,
    task: Arc<Lives>,
}

impl Serve for Mayfly {
    type Message = Tell;
    async fn started(&mut self, ctx: &mut Ctx<Tell>) -> Result<(), HandlerError> {
        self.task.all.fetch_add(1, Ordering::SeqCst);
        let mark = Mark::new(&self.task);
        ctx.spawn(async move {
            let _mark = mark;
            std::future::pending().await
        });
        Ok(())
    }
    async fn handle(&mut self, message: Tell, ctx: &mut Ctx<Tell>) -> Result<(), HandlerError> {
        self.inner.handle(message, ctx).await
    }
}

async fn storm(seed: u64, strategy: Strategy) {
    let clock = Clock::start();
    let budget = Budget {
        restarts_max: u32::MAX,
        pause_min: Millis(0),
        pause_max: Millis(1),
        wait_max: Millis(1),
        ..Budget::default()
    };
    let spec = SupervisorSpec::new("root", Strategy::OneForOne);
    let root = Root::start(spec, clock.clone(), seed, Arc::new(MemoryLedger::default())).await.expect("it starts");
    let spec = SupervisorSpec::new("storm", strategy).budget(budget);
    let middle = root.add_supervisor(spec, Restart::Permanent).await.expect("it is added");
    let log = Log::default();
    let mut children = Vec::new();
    for n in 0..CHILDREN {
        let (lives, tasks, handle) =
            (Arc::new(Lives::default()), Arc::new(Lives::default()), Handle::new(clock.clone(), Admission::each(8)));
        let (log, making, task) = (log.clone(), Arc::clone(&lives), Arc::clone(&tasks));
        let make = move |_: Start| {
            let inner = Puppet { name: "mayfly", log: log.clone() };
            std::future::ready(Ok(Mayfly { inner, _mark: Mark::new(&making), task: Arc::clone(&task) }))
        };
        middle.add_child(ChildSpec::actor(format!("c{n}"), &handle, make)).await.expect("it is added");
        children.push((lives, tasks, handle));
    }
    let mut tormentors = tokio::task::JoinSet::new();
    for (n, (_, _, handle)) in children.iter().enumerate() {
        let (handle, middle) = (handle.clone(), middle.clone());
        let mut random = fastrand::Rng::with_seed(seed * 100 + n as u64);
        tormentors.spawn(async move {
            for _ in 0..FAILURES {
                loop {
                    match handle.call(Class::Control, SOON, Tell::Incarnation).await {
                        Ok(_) => break,
                        Err(CallError::Gone) => tokio::time::sleep(Millis(1).duration()).await,
                        Err(error) => panic!("seed {seed}: c{n}: {error}"),
                    }
                }
                let tell = match random.u32(0..6) {
                    0 => Tell::Panic,
                    1 => Tell::Fail,
                    2 => Tell::TaskPanic,
                    3 => Tell::Exit(Exit::DependencyDown("weather".into())),
                    4 => Tell::Exit(Exit::Normal),
                    _ => {
                        middle.restart_child(format!("c{n}")).await.expect("it is known");
                        continue;
                    }
                };
                // It may just have ended for another reason.
                let _ = handle.cast(Class::Control, tell);
            }
        });
    }
    while let Some(done) = tormentors.join_next().await {
        done.expect("no tormentor panics");
    }
    assert_eq!(root.shutdown().await, Ended::Shutdown);
    for (n, (lives, tasks, _)) in children.iter().enumerate() {
        let seen = [lives, tasks].map(|lives| (lives.now.load(Ordering::SeqCst), lives.most.load(Ordering::SeqCst)));
        assert_eq!(seen, [(0, 1), (0, 1)], "seed {seed}: c{n}: alive at the end, alive at most");
        assert!(tasks.all.load(Ordering::SeqCst) as usize > FAILURES / 4, "seed {seed}: c{n} hardly lived");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_child_ever_has_two_lives_at_once_on_many_threads() {
    for (seed, strategy) in [Strategy::OneForOne, Strategy::RestForOne, Strategy::OneForAll].into_iter().enumerate() {
        storm(seed as u64, strategy).await;
    }
}
