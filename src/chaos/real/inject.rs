//! Faults, done to real processes and undone. Owns: what each one does, and how it ends.
//! Always: each ends by itself, or when faults are over; what was killed is started again by who keeps nodes running.
//! Not here: which there are and when (`faults.rs`), what ways do (`world.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::disks;
use super::faults::{Fault, Kind, Scheduled};
use super::workload::Workload;
use super::world::{World, take_deaths};
use crate::admin::client::Ask;
use crate::decision::migration::steps::KillPoint;
use crate::drivers::embedded::client::admin;
use crate::drivers::embedded::wire::AdminCall;
use crate::types::Millis;

/// How long a node may take to end when it is told to, before it is killed.
const END_MAX: Millis = Millis(10_000);
/// How long a host may take to answer.
const HOST_MAX: Duration = Duration::from_secs(2);
/// Of each slice of a slow node's time it runs so long, and stands still so long.
const SLICE: (Millis, Millis) = (Millis(15), Millis(85));
/// Between two floods of requests, and between two new addresses.
const AGAIN: Millis = Millis(300);

/// Does the n-th fault of the plan when it is due, and undoes it.
pub async fn run(world: Arc<World>, work: Arc<Workload>, n: usize, scheduled: Scheduled) {
    world.until(scheduled.at).await;
    if world.is_healing() {
        return;
    }
    let Scheduled { fault, lasts, .. } = scheduled;
    // Which two die is known only now.
    let fault = match fault {
        Fault::KillBoth(a, b) => {
            let (a, b) = work.open_move().unwrap_or((a, b));
            Fault::KillBoth(a, b)
        }
        other => other,
    };
    world.note("chaos", format_args!("{fault} for {lasts}"));
    world.begins(n, &fault);
    work_of(&world, n, &fault, lasts).await;
    world.ends(n);
    world.shape_ways().await;
    world.note("chaos", format_args!("{fault} is over"));
}

async fn work_of(world: &Arc<World>, n: usize, fault: &Fault, lasts: Millis) {
    match *fault {
        Fault::KillNode(a) => nodes_die(world, &[a], lasts).await,
        Fault::KillBoth(a, b) => nodes_die(world, &[a, b], lasts).await,
        Fault::KillAllNodes => {
            let all: Vec<usize> = (0..world.regions.len()).collect();
            nodes_die(world, &all, lasts).await;
        }
        Fault::KillEverything => {
            let all: Vec<usize> = (0..world.regions.len()).collect();
            for a in &all {
                world.keep_down(*a).await;
            }
            for place in 0..world.places.len() {
                world.host(place).iter().for_each(|process| process.kill());
            }
            world.until(lasts).await;
            all.iter().for_each(|a| world.let_up(*a));
        }
        Fault::KillAtStep(a, point) => die_at(world, a, point, lasts).await,
        Fault::KillAgain(a, after, times) => {
            for _ in 0..=times {
                nodes_die(world, &[a], Millis(100)).await;
                world.until(after).await;
            }
        }
        Fault::RestartNode(a) => {
            world.told_to_end(a).await;
            let mut waited = 0;
            while world.lives(a).await && waited < END_MAX.0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                waited += 50;
            }
            if world.lives(a).await {
                world.note("chaos", format_args!("{} did not end when told to", world.regions[a]));
                world.keep_down(a).await;
                world.let_up(a);
            }
            world.let_up(a);
        }
        Fault::HoldNode(a) => {
            world.hold(a).await;
            world.until(lasts).await;
            world.let_go(a).await;
        }
        Fault::SlowNode(a) => slow(world, a, lasts).await,
        Fault::HoldHost(place) => {
            world.hold_host(place);
            world.until(lasts).await;
            world.let_host_go(place);
        }
        Fault::KillHost(place) => {
            world.host(place).iter().for_each(|process| process.kill());
            world.until(lasts).await;
        }
        Fault::Overload(a, requests) => flood(world, a, requests, lasts).await,
        Fault::DiskFull(a, left) => {
            let filler = filler(world, a);
            let _ = disks::fill(&filler, left);
            let mut passed = 0;
            while passed < lasts.0 && !world.is_healing() {
                world.until(AGAIN).await;
                passed += AGAIN.0;
                // What was freed meanwhile, by a store that closed, is taken as well.
                let _ = disks::fill(&filler, left);
            }
            let _ = std::fs::remove_file(filler);
        }
        Fault::Flap(a, b, up, down) => flap(world, n, (a, b), (up, down), lasts).await,
        Fault::NewAddress(a, b) => {
            let mut passed = 0;
            while passed < lasts.0 && !world.is_healing() {
                {
                    let fed = world.fed().await;
                    for (from, to) in [(a, b), (b, a)] {
                        if let Ok(relay) = fed.relay(&world.regions[from], &world.regions[to]) {
                            relay.rebind();
                        }
                    }
                }
                world.until(Millis(AGAIN.0 * 4)).await;
                passed += AGAIN.0 * 4;
            }
        }
        Fault::Host(place, kind, fault, times) => {
            if !ask_host(world, place, AdminCall::PlanFault { kind, fault, times }).await {
                world.note("chaos", format_args!("the host of {} did not take it", world.places[place]));
                world.was_not_done(Kind::Host);
                return;
            }
            world.until(lasts).await;
            ask_host(world, place, AdminCall::PlanFault { kind, fault, times: 0 }).await;
        }
        Fault::Isolate(..)
        | Fault::Split(..)
        | Fault::OneWay(..)
        | Fault::NonTransitive(..)
        | Fault::Far(..)
        | Fault::Lossy(..)
        | Fault::Disorder(..)
        | Fault::Narrow(..)
        | Fault::SmallMtu(..) => {
            world.shape_ways().await;
            world.until(lasts).await;
        }
    }
}

async fn nodes_die(world: &World, nodes: &[usize], lasts: Millis) {
    for a in nodes {
        world.keep_down(*a).await;
    }
    world.until(lasts).await;
    nodes.iter().for_each(|a| world.let_up(*a));
}

/// The node is started anew with the point armed, and again without if it did not pass there.
async fn die_at(world: &World, a: usize, point: KillPoint, lasts: Millis) {
    world.keep_down(a).await;
    take_deaths(world, a);
    world.arm(a, Some(point)).await;
    world.let_up(a);
    world.until(lasts).await;
    world.arm(a, None).await;
    if world.killed_word(a).exists() {
        take_deaths(world, a);
    } else {
        world.keep_down(a).await;
        world.let_up(a);
    }
}

async fn slow(world: &World, a: usize, lasts: Millis) {
    let mut passed = 0;
    while passed < lasts.0 && !world.is_healing() {
        world.hold(a).await;
        world.until(SLICE.1).await;
        world.let_go(a).await;
        world.until(SLICE.0).await;
        passed += SLICE.0.0 + SLICE.1.0;
    }
}

async fn flood(world: &Arc<World>, a: usize, requests: u32, lasts: Millis) {
    let mut passed = 0;
    while passed < lasts.0 && !world.is_healing() {
        for _ in 0..requests {
            let client = world.client(a).clone().deadline(Millis(1_000));
            tokio::spawn(async move { drop(client.ask(Ask::get("/v2/vms?limit=5")).await) });
        }
        world.until(AGAIN).await;
        passed += AGAIN.0;
    }
}

async fn flap(world: &World, n: usize, (a, b): (usize, usize), (up, down): (Millis, Millis), lasts: Millis) {
    let mut passed = 0;
    while passed < lasts.0 && !world.is_healing() {
        world.changes(n, Fault::NonTransitive(a, b));
        world.shape_ways().await;
        world.until(down).await;
        world.changes(n, Fault::Flap(a, b, up, down));
        world.shape_ways().await;
        world.until(up).await;
        passed += up.0 + down.0;
    }
}

/// A file on the disk of the n-th region's store that is there to take room.
fn filler(world: &World, n: usize) -> PathBuf {
    world.region_dir(n).join("filler")
}

/// Whether the host of a place took it.
async fn ask_host(world: &World, place: usize, call: AdminCall) -> bool {
    let answer = tokio::time::timeout(HOST_MAX, admin(world.host_dir(place), call)).await;
    matches!(answer, Ok(Ok(Ok(_))))
}

/// Undoes what a fault could not undo itself, because who should have heard of it did not answer.
pub async fn all_is_well(world: &World) {
    for n in 0..world.regions.len() {
        world.arm(n, None).await;
        let _ = std::fs::remove_file(filler(world, n));
    }
    for place in 0..world.places.len() {
        // A host that is being started anew has forgotten by itself.
        ask_host(world, place, AdminCall::ClearFaults).await;
    }
    world.shape_ways().await;
}
