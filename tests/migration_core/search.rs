//! The exhaustive search over the product's own cores and rules.
//! Owns: that in every world which can be reached within the limits the law holds, and that from every one of them an
//! end, or a job that waits for a person for a reason of law 7.4, can still be reached by what the product does.

use super::intern::QuickMap;
use super::model::Model;
use super::moves::{Kind, Limits, Move};
use super::world::{PLANTED, Planted, World};

/// Attempts that the job may take: one to fail, one to try again.
const ATTEMPTS: u32 = 2;

/// A world that was reached: from which, by what.
struct Reached {
    world: World,
    from: u32,
    by: Move,
}

/// What a search found.
struct Found {
    worlds: Vec<Reached>,
    /// Live moves, as (from, to).
    live: Vec<(u32, u32)>,
    violation: Option<(&'static str, Vec<Move>)>,
    model: Model,
}

fn path(worlds: &[Reached], mut at: u32) -> Vec<Move> {
    let mut moves = Vec::new();
    while at != 0 {
        let reached = &worlds[at as usize];
        moves.push(reached.by);
        at = reached.from;
    }
    moves.reverse();
    moves
}

/// Breadth first, so that what is found is found by a shortest way.
fn search(planted: Option<Planted>, limits: Limits) -> Found {
    let (mut model, first) = Model::new(planted, ATTEMPTS);
    let mut known: QuickMap<World, u32> = QuickMap::default();
    let mut worlds = vec![Reached { world: first, from: 0, by: Move::Watchdog }];
    let mut live = Vec::new();
    known.insert(first, 0);
    let mut at = 0;
    while at < worlds.len() {
        let world = worlds[at].world;
        let from = u32::try_from(at).expect("fewer than 2^32 worlds");
        for (what, kind) in model.choices(&world, limits) {
            let Some((next, violation)) = model.make(&world, (what, kind)) else { continue };
            let new = u32::try_from(worlds.len()).expect("fewer than 2^32 worlds");
            let to = *known.entry(next).or_insert(new);
            if to == new {
                worlds.push(Reached { world: next, from, by: what });
            }
            if let Some(why) = violation {
                let mut moves = path(&worlds, from);
                moves.push(what);
                return Found { worlds, live, violation: Some((why, moves)), model };
            }
            if kind == Kind::Live {
                live.push((from, to));
            }
        }
        at += 1;
    }
    Found { worlds, live, violation: None, model }
}

/// The worlds from which no live way leads to an end or to a parked job.
fn stuck(found: &Found) -> Vec<u32> {
    let count = found.worlds.len();
    // Live moves by where they lead, in one array: the first edge of `n` is at `starts[n]`.
    let mut starts = vec![0_u32; count + 1];
    for (_, to) in &found.live {
        starts[*to as usize + 1] += 1;
    }
    for n in 0..count {
        starts[n + 1] += starts[n];
    }
    let mut filled = starts.clone();
    let mut sources = vec![0_u32; found.live.len()];
    for (from, to) in &found.live {
        let slot = &mut filled[*to as usize];
        sources[*slot as usize] = *from;
        *slot += 1;
    }
    let good = |w: &World| found.model.end(w).is_some() || found.model.parked(w).is_some();
    let mut reaches: Vec<bool> = found.worlds.iter().map(|r| good(&r.world)).collect();
    let mut queue: Vec<u32> = (0..).zip(&reaches).filter(|(_, good)| **good).map(|(n, _)| n).collect();
    while let Some(at) = queue.pop() {
        for edge in starts[at as usize]..starts[at as usize + 1] {
            let from = sources[edge as usize];
            if !std::mem::replace(&mut reaches[from as usize], true) {
                queue.push(from);
            }
        }
    }
    (0..).zip(&reaches).filter(|(_, reaches)| !**reaches).map(|(n, _)| n).collect()
}

fn told(found: &Found, moves: &[Move]) -> String {
    moves.iter().map(|m| format!("  {}", found.model.told(*m))).collect::<Vec<_>>().join("\n")
}

fn describe(found: &Found, at: u32) -> String {
    let w = &found.worlds[at as usize].world;
    format!(
        "source {:?}\ntarget {:?}\nlog {:?}\nhosts {:?} {:?}\n{w:?}\nafter\n{}",
        found.model.source(w),
        found.model.target(w).map(|t| (t.attempt, t.phase.clone())),
        found.model.log(w),
        found.model.host(w, super::world::Side::Source),
        found.model.host(w, super::world::Side::Target),
        told(found, &path(&found.worlds, at))
    )
}

fn the_law_holds(name: &str, limits: Limits) {
    let found = search(None, limits);
    if let Some((why, moves)) = &found.violation {
        panic!("{name}: {why} after {} moves:\n{}", moves.len(), told(&found, moves));
    }
    let ends = found.worlds.iter().filter(|r| found.model.end(&r.world).is_some()).count();
    let parked = found.worlds.iter().filter(|r| found.model.parked(&r.world).is_some()).count();
    let stuck = stuck(&found);
    println!(
        "{name}: {} worlds, {} live moves, parts {:?}, {ends} at an end, {parked} parked, {} without a way out",
        found.worlds.len(),
        found.live.len(),
        found.model.parts(),
        stuck.len()
    );
    if let Some(first) = stuck.first() {
        panic!("{name}: no way out:\n{}", describe(&found, *first));
    }
}

#[test]
fn no_world_breaks_the_law_and_each_has_a_way_out() {
    the_law_holds("two faults, lies among them, and a person", Limits { faults: 2, persons: 1, lies: true });
}

/// What must be allowed to go wrong besides the planted fault for it to do harm.
fn limits_of(planted: Planted) -> Limits {
    let (faults, persons) = match planted {
        Planted::NoHold
        | Planted::HoldAfterWatchdog
        | Planted::ResumeOnTimeout
        | Planted::StartOnMessage
        | Planted::ForgetMove
        | Planted::Repause => (0, 0),
        // Only a host that died has something to boot.
        Planted::RebootStartsOffer => (1, 0),
        // Both decisions are proposed for one attempt when somebody cancels in between.
        Planted::ForgetAbort => (0, 1),
    };
    Limits { faults, persons, lies: false }
}

#[test]
fn each_planted_fault_is_found() {
    for planted in PLANTED {
        let found = search(Some(planted), limits_of(planted));
        let Some((why, moves)) = &found.violation else {
            panic!("{planted:?} was not found in {} worlds", found.worlds.len())
        };
        println!("{planted:?}: {why}, after {} moves, in {} worlds", moves.len(), found.worlds.len());
    }
}
