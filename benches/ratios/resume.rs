//! How long a region needs from the start of its process, after SIGKILL, until all of 1,000 open jobs move again: each
//! has folded its journal, has asked its target anew over a link that had to be dialled, and has journalled the answer.
//! Real processes; the times are those of the journals' entries.

use std::cell::RefCell;

use novafed::admin::{EventView, Page};
use novafed::chaos::process::wait_for;
use novafed::clock::Clock;
use novafed::types::*;
use tokio::runtime::Runtime;

use crate::fed::{PATIENCE, Two, spec};
use crate::measure::{Bench, Goal, quantile};

const JOBS: usize = 1_000;

struct Crowd {
    two: Two,
    vms: Vec<VmId>,
    clock: Clock,
}

impl Crowd {
    async fn start() -> Crowd {
        let two = Two::start(&format!("\n[migration]\nrunning_max = {JOBS}\n")).await;
        let mut vms = Vec::new();
        for number in 0..JOBS {
            let program = GuestProgram { tick_ms: 1_000, resident_bytes: 64 * KIB, ..GuestProgram::default() };
            vms.push(two.create(&two.eu, &spec(&format!("crowd-{number}"), MIB, MIB, program)).await);
        }
        for vm in &vms {
            two.runs(&two.eu, *vm).await;
        }
        Crowd { two, vms, clock: Clock::start() }
    }

    /// One round: the milliseconds of each job from the start of the process.
    async fn round(&mut self) -> Vec<u64> {
        let two = &mut self.two;
        let (eu, us) = (two.eu.clone(), two.us.clone());
        // So slow that none of them ends while it is measured.
        let options = MigrationOptions { bandwidth_limit_bytes_per_second: Some(1_000), ..MigrationOptions::default() };
        let (mut plans, mut jobs, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for vm in &self.vms {
            plans.push(two.plan(&eu, &us, *vm, &options).await);
        }
        two.fed.kill_node(&us).await.expect("it is killed");
        for plan in plans {
            jobs.push(two.begin(&eu, plan).await);
        }
        for job in &jobs {
            let asks = wait_for("it to ask its target", PATIENCE, async || {
                let status: MigrationStatus = two.get(&eu, &format!("/v2/migrations/{job}")).await?;
                if status.phase == "reserve" { Ok(()) } else { Err(status.phase) }
            });
            asks.await.expect("it asks");
        }
        two.fed.kill_node(&eu).await.expect("it is killed");
        two.fed.start_node(&us).await.expect("it starts");
        two.fed.ready(&us).await.expect("it becomes ready");
        let start = self.clock.wall();
        two.fed.start_node(&eu).await.expect("it starts");
        two.fed.ready(&eu).await.expect("it becomes ready");
        // The one that is started last is looked at first, so that the looking does not compete with what is measured.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.to_string()));
        for job in &jobs {
            let first = wait_for("it to move", PATIENCE, async || {
                let journal: Page<EventView> = two.get(&eu, &format!("/v2/migrations/{job}/events")).await?;
                let after = journal.items.iter().map(|entry| entry.at).find(|at| *at >= start);
                after.map(|at| at.0 - start.0).ok_or("no entry yet".to_owned())
            });
            moved.push(first.await.expect("it moves"));
        }
        for job in &jobs {
            two.cancel(&eu, *job).await;
        }
        for job in &jobs {
            two.end_of(&eu, *job).await;
        }
        moved
    }
}

/// Measures it.
pub fn register(bench: &mut Bench) {
    let name = "1,000 open jobs move again, p99";
    if !bench.wants(name) {
        return;
    }
    let runtime = Runtime::new().expect("a runtime");
    let mut crowd = runtime.block_on(Crowd::start());
    let middle = RefCell::new(Vec::new());
    bench.absolute(name, "ms", Goal::AtMost(500.0), || {
        let mut moved = runtime.block_on(crowd.round());
        middle.borrow_mut().push((quantile(&mut moved, 0.5), quantile(&mut moved, 1.0)));
        quantile(&mut moved, 0.99)
    });
    bench.note(format!("{name}: median and last of each round, ms: {:?}", middle.borrow()));
    runtime.block_on(crowd.two.close());
}
