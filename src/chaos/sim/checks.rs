//! What must hold when faults are over. Owns: whether all has settled, what is left open, and one function for each
//! invariant that is looked at then.
//! Always: compares what clients were told with what stores hold and what machines say; asks no node whether all is
//! well.
//! Not here: what is checked at every event (`witness.rs`), what a person does about parked jobs (`operator.rs`).

use std::collections::{BTreeMap, BTreeSet};

use super::book::{Pages, Was};
use super::faults::Kind;
use super::region::Life;
use super::world::World;
use crate::actors::{tables, vms};
use crate::chaos::history::{self, Budget, Checker, History, Verdict};
use crate::chaos::invariants::{self as names, Ledger};
use crate::chaos::summary::JudgeCount;
use crate::drivers::{HostCall, HostReply, VmObservation};
use crate::types::{ClusterId, DesiredPower, GuestPower, RegionName, Resources, VmId, VmRecord};

/// Everything that stores and machines hold, at one moment.
#[derive(Default)]
pub struct Sights {
    /// VM records by region.
    pub records: BTreeMap<RegionName, Vec<VmRecord>>,
    /// What hosts say, by region and cluster.
    pub hosts: BTreeMap<(RegionName, ClusterId), Vec<VmObservation>>,
    /// What is not as it will be when all has settled, in words.
    pub open: Vec<String>,
}

impl Sights {
    /// Looks everywhere.
    pub async fn take(world: &World) -> Sights {
        let mut sights = Sights { records: BTreeMap::new(), hosts: BTreeMap::new(), open: Vec::new() };
        for region in world.regions() {
            let name = &region.plan.name;
            match region.life() {
                Some(life) => sights.look_at_store(name, &life),
                None => sights.open.push(format!("the node of {name} does not answer")),
            }
        }
        for (region, cluster, host) in world.hosts() {
            match host.observe(cluster, HostCall::Inventory).await {
                Ok(HostReply::Inventory(list)) => {
                    sights.hosts.insert((region.clone(), cluster.clone()), list);
                }
                other => sights.open.push(format!("the host of {region}/{cluster} says {other:?}")),
            }
        }
        sights.compare();
        sights
    }

    fn look_at_store(&mut self, name: &RegionName, life: &Life) {
        let ctx = &life.ctx;
        let mut open = |what: String| self.open.push(format!("{name}: {what}"));
        match tables::vms(&ctx.store) {
            Ok(records) => drop(self.records.insert(name.clone(), records)),
            Err(error) => open(format!("the store can't be read: {error}")),
        }
        if let Ok((sources, targets)) = tables::open_jobs(&ctx.store) {
            for job in sources {
                open(format!("{} of {} is open at its source", job.first.job, job.first.vm));
            }
            for job in targets {
                open(format!("{} of {} is open at its target", job.first.job, job.first.vm));
            }
        }
        for (cluster, held) in tables::reservations(&ctx.store).unwrap_or_default() {
            open(format!("{cluster} has room reserved for {}", held.job));
        }
        for owed in tables::cleanups(&ctx.store, None).unwrap_or_default() {
            open(format!("{:?} of {} is owed in {}", owed.kind, owed.vm, owed.cluster));
        }
        let to = ctx.peers().into_iter().chain([name.clone()]);
        for peer in to {
            let waiting = ctx.store.outbox(&peer).map(|rows| rows.len()).unwrap_or_default();
            if waiting > 0 {
                open(format!("{waiting} commands to {peer} are not delivered"));
            }
        }
        let now = ctx.clock.now();
        for view in ctx.directory.clusters(now).into_iter().filter(|view| view.stale) {
            open(format!("what is known of {}/{} is stale", view.region, view.id));
        }
        let known = ctx.directory.clusters(now).iter().map(|view| view.region.clone()).collect::<BTreeSet<_>>();
        for peer in ctx.peers().into_iter().filter(|peer| !known.contains(peer)) {
            let link = ctx.link(&peer).map(|link| link.state()).unwrap_or_default();
            open(format!("nothing is known of {peer}: connected {}, refused {:?}", link.connected, link.refusals));
        }
    }

    /// Each record has its guest, as it should be, and each guest its record.
    pub(in crate::chaos) fn compare(&mut self) {
        let mut wanted: BTreeMap<(RegionName, ClusterId, VmId), &VmRecord> = BTreeMap::new();
        for (region, records) in &self.records {
            for record in records {
                wanted.insert((region.clone(), record.cluster.clone(), record.id), record);
            }
        }
        let mut open = Vec::new();
        for ((region, cluster), list) in &self.hosts {
            for seen in list {
                let key = (region.clone(), cluster.clone(), seen.vm);
                let at = format!("{} at {region}/{cluster}", seen.vm);
                match wanted.remove(&key) {
                    None => open.push(format!("{at} is {:?} and no record says so", seen.sight.power)),
                    Some(record) => {
                        let right = match record.desired {
                            DesiredPower::Running => GuestPower::Running,
                            DesiredPower::Stopped => GuestPower::Stopped,
                        };
                        if seen.sight.power != right {
                            open.push(format!("{at} is {:?} and should be {right:?}", seen.sight.power));
                        }
                        if seen.sight.fence > record.fence {
                            open.push(format!("{at} has fence {}, its record {}", seen.sight.fence, record.fence));
                        }
                    }
                }
            }
        }
        open.extend(wanted.keys().map(|(region, cluster, vm)| format!("{vm} is not at {region}/{cluster}")));
        if self.hosts.len() == self.hosts.keys().collect::<BTreeSet<_>>().len() {
            self.open.extend(open);
        }
    }

    /// A VM's records, with the regions that hold them.
    fn records_of(&self, vm: VmId) -> Vec<(&RegionName, &VmRecord)> {
        let all = self.records.iter();
        all.flat_map(|(region, list)| list.iter().filter(move |r| r.id == vm).map(move |r| (region, r))).collect()
    }
}

/// Looks at all that must hold now.
pub fn check_all(world: &World, sights: &Sights, pages: &Pages, ledger: &mut Ledger) {
    jobs_ended(sights, pages, ledger);
    one_owner(sights, ledger);
    acknowledged_is_there(sights, pages, ledger);
    created_once(sights, pages, ledger);
    powers_as_ordered(sights, pages, ledger);
    room_adds_up(world, sights, ledger);
    runs_where_recorded(world, sights, ledger);
    every_byte(world, sights, ledger);
}

/// I2, I14: nothing is open any more: jobs, promises, clean-ups, commands, views.
pub(in crate::chaos) fn jobs_ended(sights: &Sights, pages: &Pages, ledger: &mut Ledger) {
    ledger.count(names::ALL_SETTLED, pages.jobs.len() as u64 + 1, sights.open.clone());
}

/// A VM has one record in the whole federation.
pub(in crate::chaos) fn one_owner(sights: &Sights, ledger: &mut Ledger) {
    let mut owners: BTreeMap<VmId, Vec<&RegionName>> = BTreeMap::new();
    for (region, records) in &sights.records {
        for record in records {
            owners.entry(record.id).or_default().push(region);
        }
    }
    for (vm, regions) in owners {
        let outcome = if regions.len() == 1 { Ok(()) } else { Err(format!("{vm} is owned by {regions:?}")) };
        ledger.check(names::ONE_OWNER, outcome);
    }
}

/// I3: what was acknowledged is so.
pub(in crate::chaos) fn acknowledged_is_there(sights: &Sights, pages: &Pages, ledger: &mut Ledger) {
    for (vm, known) in &pages.vms {
        let there = !sights.records_of(*vm).is_empty();
        let outcome = match (known.deleted, there) {
            (Was::NotDone, false) => Err(format!("{vm} ({}) was acknowledged and nobody has it", known.name)),
            (Was::Done, true) => {
                Err(format!("{vm} ({}) was deleted, which was acknowledged, and is there", known.name))
            }
            _ => Ok(()),
        };
        ledger.check(names::NOTHING_LOST, outcome);
    }
}

/// I12: a request under one key had one effect at most, and an acknowledged one exactly one.
pub(in crate::chaos) fn created_once(sights: &Sights, pages: &Pages, ledger: &mut Ledger) {
    let mut by_name: BTreeMap<&str, Vec<VmId>> = BTreeMap::new();
    for record in sights.records.values().flatten() {
        by_name.entry(record.spec.name.as_str()).or_default().push(record.id);
    }
    for (name, creation) in &pages.creations {
        let found = by_name.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        let outcome = match (creation.was, found) {
            (Was::NotDone, [id, ..]) => Err(format!("the creation of {name} was refused, and {id} is there")),
            (_, [first, second, ..]) => Err(format!("{name} was created twice: {first} and {second}")),
            (Was::Done, [id]) if creation.vm != Some(*id) => {
                Err(format!("{name} was acknowledged as {:?}, and {id} is there", creation.vm))
            }
            // Nobody else asks for this name: it is the earlier try that has it, under the same key.
            (_, [id]) if creation.taken => Err(format!("{name} was created as {id}, and a repeat was refused")),
            _ => Ok(()),
        };
        ledger.check(names::ONCE_PER_KEY, outcome);
    }
}

/// I3 for orders: a VM is to be as was acknowledged last.
pub(in crate::chaos) fn powers_as_ordered(sights: &Sights, pages: &Pages, ledger: &mut Ledger) {
    for (vm, known) in pages.vms.iter().filter(|(_, known)| known.deleted == Was::NotDone) {
        let records = sights.records_of(*vm);
        let (Some(to_run), [(_, record)]) = (known.to_run, records.as_slice()) else { continue };
        let is = record.desired == DesiredPower::Running;
        let word = |run: bool| if run { "run" } else { "be stopped" };
        let outcome = if is == to_run {
            Ok(())
        } else {
            Err(format!("{vm} is to {}, and its record has it {}", word(to_run), word(is)))
        };
        ledger.check(names::NOTHING_LOST, outcome);
    }
}

/// I4, as far as there is anything to count yet: what a cluster has given out is what its VMs use, and no more than it has.
fn room_adds_up(world: &World, sights: &Sights, ledger: &mut Ledger) {
    for region in world.regions() {
        let Some(life) = region.life() else { continue };
        for cluster in &region.config.clusters {
            let records = sights.records.get(&region.plan.name).map_or(&[][..], Vec::as_slice);
            let mine = records.iter().filter(|record| record.cluster == cluster.id);
            let used = mine.map(|record| vms::needs(&record.spec)).fold(Resources::default(), Resources::plus);
            let balance = life.ctx.ledgers.with(&cluster.id, |ledger| ledger.balance()).unwrap_or_default();
            let (counted, reserved) = (balance.used, balance.reserved);
            let outcome = if counted != used {
                Err(format!("{} counts {counted:?} as used, its VMs use {used:?}", cluster.id))
            } else if reserved != Resources::default() && sights.open.is_empty() {
                Err(format!("{} has {reserved:?} reserved, and no job is open", cluster.id))
            } else if !cluster.capacity.resources().holds(used) {
                Err(format!("{} gave out {used:?}, more than it has", cluster.id))
            } else {
                Ok(())
            };
            ledger.check(names::ROOM_ADDS_UP, outcome);
        }
    }
}

/// A guest that runs, runs where its owner's record says.
fn runs_where_recorded(world: &World, sights: &Sights, ledger: &mut Ledger) {
    for record in sights.records.values().flatten().filter(|record| record.desired == DesiredPower::Running) {
        let runs_on = world.witness.runs_on(record.id);
        let outcome = match runs_on.as_slice() {
            [host] if host.as_str() == record.cluster.as_str() => Ok(()),
            other => Err(format!("{} should run in {}, and runs on {other:?}", record.id, record.cluster)),
        };
        ledger.check(names::RUNS_WHERE_OWNED, outcome);
    }
}

/// What guests remember is what they wrote, wherever they went. A machine that lost its power may have lost what a guest
/// had not synced, and so may a disk that was full: such runs are not judged.
fn every_byte(world: &World, sights: &Sights, ledger: &mut Ledger) {
    let forgets = |kind: &Kind| matches!(kind, Kind::PowerLoss | Kind::PowerLossOfAll | Kind::HostDiskFull);
    if world.coverage.met().faults.keys().any(forgets) {
        return;
    }
    for ((region, cluster), list) in &sights.hosts {
        for seen in list {
            if let Some(verdict) = world.host(region, cluster).judge(cluster, seen.vm) {
                ledger.check(names::EVERY_BYTE, verdict.map(drop).map_err(|error| format!("{}: {error}", seen.vm)));
            }
        }
    }
}

/// What a run's histories may cost to judge: they are short, and there are many.
const BUDGET: Budget = Budget { ours: 200_000, stateright: 10_000, todc: 20_000 };

/// I7: one order explains who owned what, as clients saw it; three checkers judge it, and none may disagree.
pub fn judge(history: &History, ledger: &mut Ledger) -> BTreeMap<String, JudgeCount> {
    let judgement = history::judge(history, &BUDGET);
    for key in &judgement.keys {
        let verdicts = Checker::ALL.map(|checker| (checker, key.verdict(checker)));
        let refused = verdicts.iter().find_map(|(checker, verdict)| match verdict {
            Verdict::Violation { explanation } => Some(format!("{} ({checker}): {explanation}", key.key)),
            Verdict::Linearizable | Verdict::NotChecked { .. } => None,
        });
        // A key that nobody judged is counted as such, and not as one that held.
        if verdicts.iter().any(|(_, verdict)| verdict.linearizable().is_some()) {
            ledger.check(names::LINEARIZABLE, refused.map_or(Ok(()), Err));
        }
    }
    for disagreement in &judgement.disagreements {
        ledger.check(names::LINEARIZABLE, Err(disagreement.to_string()));
    }
    let count = |checker: Checker| {
        let counts = judgement.counts(checker);
        let counted = JudgeCount {
            checked: counts.checked as u64,
            violated: counts.violated as u64,
            not_checked: counts.not_checked as u64,
        };
        (checker.to_string(), counted)
    };
    Checker::ALL.map(count).into()
}
