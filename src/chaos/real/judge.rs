//! The last look, from outside. Owns: what regions, hosts and consoles say once faults are over, and whether that is what
//! clients were told.
//! Always: compares what was acknowledged with what is there; that a VM ran once, and how, is known from consoles and
//! bytes alone. The rules are those of simulations (`chaos/sim/checks.rs`).
//! Not here: what a person does about parked jobs (`operator.rs`), what is counted as what (`invariants.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::workload::Workload;
use super::world::World;
use crate::admin::client::Ask;
use crate::admin::{LinkState, LinkView, OperationView, Page, VmView};
use crate::chaos::federation::HarnessError;
use crate::chaos::invariants::{self as names, Ledger};
use crate::chaos::sim::checks::{self, Sights};
use crate::chaos::summary::JudgeCount;
use crate::drivers::embedded::client::observe;
use crate::drivers::{HostCall, HostReply};
use crate::types::{ClusterView, DesiredPower, GuestPower, Resources, VmId};

/// Every byte of a running VM's memory and disk is what its program made it.
pub const BYTES_MATCH: &str = "memory-and-disk-match-the-program";
/// No node refused to start, panicked or was ended by a signal that was not the run's.
pub const NODES_END: &str = "nodes-end-by-faults-alone";
/// Nothing of the run is left on the machine.
pub const NOTHING_LEFT: &str = "nothing-left-behind";
/// Each register of a VM could have answered so.
pub const REGISTERS: &str = "registers-linearizable";

/// What must hold, and must have been looked at, when all is over.
pub const INVARIANTS: [&str; 12] = [
    names::ONE_PLACE,
    names::MEMORY_GOES_ON,
    names::FENCE_RISES,
    names::ALL_SETTLED,
    names::ONE_OWNER,
    names::NOTHING_LOST,
    names::ONCE_PER_KEY,
    names::RUNS_WHERE_OWNED,
    BYTES_MATCH,
    REGISTERS,
    NODES_END,
    NOTHING_LEFT,
];

/// A running guest ticks several times within this.
const TICKS_WITHIN: Duration = Duration::from_millis(1_500);
/// VMs whose every byte is looked at.
const BYTES_OF_MAX: usize = 24;

/// Looks everywhere.
pub async fn look(world: &World) -> Sights {
    let mut sights = Sights::default();
    for n in 0..world.regions.len() {
        let name = &world.regions[n];
        if let Err(why) = look_at_region(world, n, &mut sights).await {
            sights.open.push(format!("{name}: {why}"));
        }
    }
    for (n, place) in world.places.iter().enumerate() {
        match observe(world.host_dir(n), &place.cluster, HostCall::Inventory).await {
            Ok(HostReply::Inventory(list)) => {
                sights.hosts.insert((place.region.clone(), place.cluster.clone()), list);
            }
            other => sights.open.push(format!("the host of {place} says {other:?}")),
        }
    }
    sights.compare();
    sights
}

async fn look_at_region(world: &World, n: usize, sights: &mut Sights) -> Result<(), String> {
    let name = &world.regions[n];
    let vms: Vec<VmView> = all(world, n, &format!("/v2/vms?region={name}")).await?;
    sights.records.insert(name.clone(), vms.into_iter().map(|view| view.record).collect());
    let mut open = |what: String| sights.open.push(format!("{name}: {what}"));
    for operation in all::<OperationView>(world, n, "/v2/operations?").await? {
        if operation.kind != "migration" {
            open(format!("{} of {} is owed", operation.kind, operation.subject));
        } else if ["pending", "running"].contains(&operation.state.as_str()) {
            open(format!("{} of {} is open", operation.id, operation.subject));
        }
    }
    for link in all::<LinkView>(world, n, "/v2/links?").await? {
        if link.outbox > 0 {
            open(format!("{} commands to {} are not delivered", link.outbox, link.region));
        }
        if link.state != LinkState::Connected {
            open(format!("the link to {} is {:?}: {:?}", link.region, link.state, link.reason));
        }
    }
    let clusters: Vec<ClusterView> = all(world, n, "/v2/clusters?").await?;
    for cluster in &clusters {
        if cluster.stale {
            open(format!("what is known of {}/{} is stale", cluster.region, cluster.id));
        }
        if cluster.region == *name && cluster.reserved != Resources::default() {
            open(format!("{} has {:?} reserved", cluster.id, cluster.reserved));
        }
    }
    if clusters.len() < world.places.len() {
        open(format!("{} of {} clusters are known", clusters.len(), world.places.len()));
    }
    Ok(())
}

/// All pages of a list. `path` has its `?`.
async fn all<T: DeserializeOwned>(world: &World, n: usize, path: &str) -> Result<Vec<T>, String> {
    let mut items = Vec::new();
    // Links have no pages and take no limit.
    let limit = if path.starts_with("/v2/links") { "" } else { "&limit=500" };
    let mut next = Some(String::new());
    while let Some(cursor) = next {
        let cursor = if cursor.is_empty() { cursor } else { format!("&cursor={cursor}") };
        let query = format!("{path}{limit}{cursor}").replace("?&", "?");
        let page: Page<T> =
            world.client(n).typed(Ask::get(query.trim_end_matches('?'))).await.map_err(|e| format!("{path}: {e}"))?;
        if let Some(warning) = page.warnings.first() {
            return Err(format!("{path}: {warning}"));
        }
        items.extend(page.items);
        next = page.next;
    }
    Ok(items)
}

/// Looks at all that must hold now.
///
/// # Errors
/// If consoles can't be read.
pub async fn check_all(
    world: &World,
    work: &Workload,
    sights: &Sights,
    ledger: &mut Ledger,
) -> Result<(), HarnessError> {
    {
        let pages = work.book.pages();
        checks::jobs_ended(sights, &pages, ledger);
        checks::one_owner(sights, ledger);
        checks::acknowledged_is_there(sights, &pages, ledger);
        checks::created_once(sights, &pages, ledger);
        checks::powers_as_ordered(sights, &pages, ledger);
        for (job, known) in &pages.jobs {
            let outcome = if known.end.is_some() { Ok(()) } else { Err(format!("nobody saw the end of {job}")) };
            ledger.check(names::NOTHING_LOST, outcome);
        }
    }
    nodes_ended(world, ledger);
    runs_where_recorded(world, sights, ledger).await;
    bytes_match(world, work, sights, ledger).await?;
    consoles(world, ledger).await
}

/// A disk that is full ends a node, and a point that it is to die at; nothing else that is done here does.
fn nodes_ended(world: &World, ledger: &mut Ledger) {
    for (how, count) in &world.tally().exits {
        let by_fault = ["disk-failed", "kill-point", "exit-1"].contains(&how.as_str());
        let outcome = if by_fault { Ok(()) } else { Err(format!("nodes ended by themselves: {how} {count}")) };
        ledger.check(NODES_END, outcome);
    }
    for n in 0..world.regions.len() {
        let log = File::open(world.log(n)).map(BufReader::new);
        let lines = log.into_iter().flat_map(|log| log.lines().map_while(Result::ok));
        let panic = lines.into_iter().find(|line| line.contains("panicked at"));
        let outcome = panic.map_or(Ok(()), |line| Err(format!("the node of {}: {line}", world.regions[n])));
        ledger.check(NODES_END, outcome);
    }
}

/// A guest that runs, runs where its owner's record says: there alone its console goes on.
async fn runs_where_recorded(world: &World, sights: &Sights, ledger: &mut Ledger) {
    let before = lengths(world).await;
    tokio::time::sleep(TICKS_WITHIN).await;
    let after = lengths(world).await;
    for (region, record) in sights.records.iter().flat_map(|(region, list)| list.iter().map(move |r| (region, r))) {
        let runs_on: Vec<String> = world
            .places
            .iter()
            .enumerate()
            .filter(|(n, _)| after.get(&(*n, record.id)) != before.get(&(*n, record.id)))
            .map(|(_, place)| place.to_string())
            .collect();
        let outcome = match (record.desired, runs_on.as_slice()) {
            (DesiredPower::Running, [one]) if *one == format!("{region}/{}", record.cluster) => Ok(()),
            (DesiredPower::Stopped, []) => Ok(()),
            (desired, others) => Err(format!(
                "{} is to be {desired:?} in {region}/{}, and its consoles go on in {others:?}",
                record.id, record.cluster
            )),
        };
        ledger.check(names::RUNS_WHERE_OWNED, outcome);
    }
}

/// How long each console is.
async fn lengths(world: &World) -> BTreeMap<(usize, VmId), u64> {
    let mut lengths = BTreeMap::new();
    for n in 0..world.places.len() {
        for (vm, length) in consoles_in(&world.host_dir(n).join("console")) {
            lengths.insert((n, vm), length);
        }
    }
    lengths
}

fn consoles_in(dir: &Path) -> Vec<(VmId, u64)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let console = |entry: std::fs::DirEntry| {
        let vm = entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()?;
        Some((vm, entry.metadata().ok()?.len()))
    };
    entries.filter_map(console).collect()
}

/// Recomputes memory and disks of guests that run.
async fn bytes_match(world: &World, work: &Workload, sights: &Sights, ledger: &mut Ledger) -> Result<(), HarnessError> {
    let fed = world.fed().await;
    let running = sights.hosts.iter().flat_map(|((region, cluster), list)| {
        let running = list.iter().filter(|seen| seen.sight.power == GuestPower::Running);
        running.map(move |seen| (region, cluster, seen.vm))
    });
    for (region, cluster, vm) in running.take(BYTES_OF_MAX) {
        let Some(spec) = work.spec(vm) else { continue };
        let place = world.places.iter().find(|place| place.region == *region && place.cluster == *cluster);
        let Some(place) = place else { continue };
        let judged = fed.judge(place, vm, &spec).await?;
        ledger.check(BYTES_MATCH, judged.map(|_| ()).map_err(|why| format!("{vm} in {place}: {why}")));
    }
    Ok(())
}

/// Who ran when, VM by VM: the consoles of a long run are not held at once.
async fn consoles(world: &World, ledger: &mut Ledger) -> Result<(), HarnessError> {
    let fed = world.fed().await;
    let mut vms = BTreeSet::new();
    for n in 0..world.places.len() {
        vms.extend(consoles_in(&world.host_dir(n).join("console")).into_iter().map(|(vm, _)| vm));
    }
    for vm in vms {
        names::witnessed(ledger, &fed.witness_of_vm(vm)?);
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Whether the histories of all registers have an order; what each checker says.
pub fn registers(work: &Workload, ledger: &mut Ledger) -> BTreeMap<String, JudgeCount> {
    let (judgement, counts) = work.registers.judge();
    for disagreement in &judgement.disagreements {
        ledger.check(REGISTERS, Err(disagreement.to_string()));
    }
    for key in &judgement.keys {
        let violation = [&key.ours, &key.stateright, &key.todc].into_iter().find(|v| v.linearizable() == Some(false));
        match violation {
            Some(seen) => ledger.check(REGISTERS, Err(format!("{}: {seen:?}", key.key))),
            None if judgement.unchecked().any(|unchecked| unchecked.key == key.key) => {}
            None => ledger.check(REGISTERS, Ok(())),
        }
    }
    counts
}
