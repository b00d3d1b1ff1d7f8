//! Faults, done and undone. Owns: what each one does to the world, and how it ends.
//! Always: each ends by itself, or when faults are over; overlapping ones don't undo each other.
//! Not here: which there are and when (`plan.rs`), faults of ways (`network.rs`), of points (`points.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::client;
use super::faults::Fault;
use super::plan::Scheduled;
use super::region::{Copy, Death};
use super::world::World;
use crate::drivers::embedded::simulated::{self, Room};
use crate::store::{Faults, Keep};
use crate::types::Millis;
use crate::types::units::GIB;

/// How long somebody waits for a node to come back before it is killed again.
const RECOVERY_MAX: Millis = Millis(20_000);
/// Between two floods of requests.
const FLOOD_EVERY: Millis = Millis(200);

/// Does the n-th fault of the plan when it is due, and undoes it.
pub async fn run(world: Arc<World>, n: usize, scheduled: Scheduled) {
    world.until(scheduled.at).await;
    if world.is_healing() {
        return;
    }
    let fault = scheduled.fault;
    world.trace.note("chaos", format_args!("{fault} for {}", scheduled.lasts));
    let at_work = world.coverage.begins(n, &fault);
    world.shape_ways(&at_work);
    work(&world, n, &fault, scheduled.lasts).await;
    undo(&world, n, &fault);
    let at_work = world.coverage.ends(n);
    world.shape_ways(&at_work);
    world.trace.note("chaos", format_args!("{fault} is over"));
}

async fn work(world: &Arc<World>, n: usize, fault: &Fault, lasts: Millis) {
    match *fault {
        Fault::KillNode(a) => {
            world.region(a).die(world, Death::Process);
            world.region(a).keep_down(true);
        }
        Fault::KillAtStep(..) | Fault::KillBoth(..) | Fault::PanicStorm(..) | Fault::Poison(..) => {
            world.points.arm(n, fault.clone());
        }
        Fault::KillAgain(a, after, times) => {
            for _ in 0..=times {
                world.region(a).die(world, Death::Process);
                answers(world, a).await;
                world.until(after).await;
            }
            return;
        }
        Fault::PowerLossOfAll(seed) => {
            for a in 0..world.regions().len() {
                power_loss(world, a, seed ^ a as u64);
            }
        }
        Fault::PowerLoss(a, seed) => power_loss(world, a, seed),
        Fault::HoldNode(a) => {
            world.region(a).hold(true);
            world.network.hold(a, true);
        }
        Fault::HoldHost(at) => world.host_at(at).2.hold(true),
        Fault::KillHost(at) => {
            let (region, cluster, _) = world.host_at(at);
            world.keep_host_down(region, cluster, true);
            world.crash_host(region, cluster, simulated::Death::Process);
        }
        Fault::Overload(a, requests) => return client::flood(world, a, requests, FLOOD_EVERY, lasts).await,
        Fault::SlowDisk(a, commit) => world.region(a).commit_ms.store(commit.0, Ordering::Relaxed),
        Fault::SyncFails(a, at) => world.region(a).disk_faults(Faults { fail_sync: Some(at), ..Faults::default() }),
        Fault::DiskFull(a, at) => {
            world.region(a).free_bytes.store(0, Ordering::Relaxed);
            world.region(a).disk_faults(Faults { full_at_write: Some(at), full_stays: true, ..Faults::default() });
        }
        Fault::WriteFails(a, at) => {
            world.region(a).disk_faults(Faults { full_at_write: Some(at), ..Faults::default() });
        }
        Fault::ReadFails(a, at) => world.region(a).disk_faults(Faults { fail_read: Some(at), ..Faults::default() }),
        Fault::BitFlip(a, bit) => swap_disk(world, a, Copy::Damaged, |image| {
            let bits = image.len() as u64 * 8;
            let at = usize::try_from(bit % bits).expect("an image fits the address space");
            image[at / 8] ^= 1 << (at % 8);
        }),
        Fault::Truncated(a, permille) => swap_disk(world, a, Copy::Damaged, |image| {
            let keep = image.len() * usize::from(permille) / 1_000;
            image.truncate(keep);
        }),
        Fault::OlderCopy(a) => older_copy(world, a).await,
        Fault::Break(a, b) => world.network.break_connection(a, b, lasts),
        Fault::CutBulk(a, b, bytes) => world.network.cut_bulk_after(a, b, bytes),
        Fault::ClockJump(a, by) => world.region(a).wall.jump(by),
        Fault::Host(at, call, ref lie, times) => world.host_at(at).2.faults().plan(call, *lie, times),
        Fault::HostDiskFull(at) => {
            let (_, _, host) = world.host_at(at);
            host.set_state_room(Room::None);
            host.set_disk_room(Room::None);
        }
        // By the shape of the ways.
        Fault::Isolate(..)
        | Fault::Split(..)
        | Fault::OneWay(..)
        | Fault::NonTransitive(..)
        | Fault::Far(..)
        | Fault::Lossy(..)
        | Fault::Disorder(..)
        | Fault::Narrow(..)
        | Fault::SmallMtu(..) => {}
        Fault::Flap(a, b, up, down) => return flap(world, n, (a, b), (up, down), lasts).await,
    }
    world.until(lasts).await;
}

fn undo(world: &Arc<World>, n: usize, fault: &Fault) {
    match *fault {
        Fault::KillNode(a) => world.region(a).keep_down(false),
        Fault::KillAtStep(..) | Fault::KillBoth(..) | Fault::PanicStorm(..) | Fault::Poison(..) => {
            world.points.disarm(n);
        }
        Fault::PowerLossOfAll(_) => {
            for a in 0..world.regions().len() {
                power_is_back(world, a);
            }
        }
        Fault::PowerLoss(a, _) => power_is_back(world, a),
        Fault::HoldNode(a) => {
            world.region(a).hold(false);
            world.network.hold(a, false);
        }
        Fault::HoldHost(at) => world.host_at(at).2.hold(false),
        Fault::KillHost(at) => {
            let (region, cluster, _) = world.host_at(at);
            world.keep_host_down(region, cluster, false);
        }
        Fault::SlowDisk(a, _) => world.region(a).well(),
        Fault::SyncFails(a, _) | Fault::WriteFails(a, _) | Fault::ReadFails(a, _) => {
            world.region(a).disk_faults(Faults::default());
        }
        Fault::DiskFull(a, _) => {
            world.region(a).free_bytes.store(100 * GIB, Ordering::Relaxed);
            world.region(a).disk_faults(Faults::default());
        }
        Fault::BitFlip(a, _) | Fault::Truncated(a, _) | Fault::OlderCopy(a) => world.region(a).true_disk_back(world),
        Fault::ClockJump(a, by) => world.region(a).wall.jump(-by),
        Fault::Host(at, call, ref lie, _) => world.host_at(at).2.faults().plan(call, *lie, 0),
        Fault::HostDiskFull(at) => {
            let (_, _, host) = world.host_at(at);
            host.set_state_room(Room::Plenty);
            host.set_disk_room(Room::Plenty);
        }
        Fault::KillAgain(..)
        | Fault::Overload(..)
        | Fault::Break(..)
        | Fault::CutBulk(..)
        | Fault::Isolate(..)
        | Fault::Split(..)
        | Fault::OneWay(..)
        | Fault::NonTransitive(..)
        | Fault::Flap(..)
        | Fault::Far(..)
        | Fault::Lossy(..)
        | Fault::Disorder(..)
        | Fault::Narrow(..)
        | Fault::SmallMtu(..) => {}
    }
}

fn power_loss(world: &Arc<World>, a: usize, seed: u64) {
    world.region(a).die(world, Death::Machine(seed));
    world.region(a).keep_down(true);
    let name = &world.region(a).plan.name;
    for (k, cluster) in world.region(a).plan.clusters.iter().enumerate() {
        world.keep_host_down(name, cluster, true);
        world.crash_host(name, cluster, simulated::Death::Machine(Keep::Subset(seed ^ (k as u64 + 1))));
    }
}

fn power_is_back(world: &Arc<World>, a: usize) {
    let name = &world.region(a).plan.name;
    for cluster in &world.region(a).plan.clusters {
        world.keep_host_down(name, cluster, false);
    }
    world.region(a).keep_down(false);
}

/// A node dies, and its next life finds another state.
fn swap_disk(world: &Arc<World>, a: usize, copy: Copy, change: impl FnOnce(&mut Vec<u8>)) {
    world.region(a).die(world, Death::Process);
    world.region(a).replace_disk(copy, change);
}

/// A copy is made, the node starts anew, its hosts and all others hear of that life, and then the copy is put in the place of its state.
/// Within one life nobody could tell the copy from the state.
async fn older_copy(world: &Arc<World>, a: usize) {
    let region = world.region(a);
    if !answers(world, a).await {
        return;
    }
    let older = region.disk().cached_image();
    region.die(world, Death::Process);
    let mut known = answers(world, a).await;
    for _ in 0..40 {
        world.until(Millis(250)).await;
        known = region.is_known_to_all(world).await;
        if known || world.is_healing() {
            break;
        }
    }
    if known && !world.is_healing() {
        world.trace.note("chaos", format_args!("{} finds an older copy of its store", region.plan.name));
        swap_disk(world, a, Copy::Older, |image| *image = older);
    }
}

/// Waits until the n-th region's node answers, but not for ever; tells whether it does.
async fn answers(world: &Arc<World>, n: usize) -> bool {
    let mut waited = 0;
    while world.region(n).life().is_none() && waited < RECOVERY_MAX.0 && !world.is_healing() {
        world.until(Millis(50)).await;
        waited += 50;
    }
    world.region(n).life().is_some()
}

async fn flap(world: &Arc<World>, n: usize, (a, b): (usize, usize), (up, down): (Millis, Millis), lasts: Millis) {
    let mut passed = 0;
    while passed < lasts.0 && !world.is_healing() {
        let at_work = world.coverage.changes(n, Fault::NonTransitive(a, b));
        world.shape_ways(&at_work);
        world.until(down).await;
        let at_work = world.coverage.changes(n, Fault::Flap(a, b, up, down));
        world.shape_ways(&at_work);
        world.until(up).await;
        passed += up.0 + down.0;
    }
}
