//! The person who looks after the regions. Owns: what is told to jobs that are parked, to VMs whose memory was lost once
//! their tenants have gone, and who writes down the ends of moves that nobody follows any more.
//! Always: over the API, by what it offers; a person answers questions and repairs nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::client::ask;
use super::workload::Workload;
use super::world::World;
use crate::admin::client::Ask;
use crate::admin::{ObservedPower, Page, VmView};
use crate::types::{DesiredPower, JobId, MigrationStatus};

/// What was met.
#[derive(Debug, Clone, Default)]
pub struct Met {
    /// Jobs that were parked, by why.
    pub parked: BTreeMap<String, u64>,
    jobs: BTreeSet<JobId>,
    round: u32,
}

/// One round: looks at every region, and answers what it asks.
pub async fn go_round(world: &World, work: &Workload, met: &mut Met) {
    met.round += 1;
    for n in 0..world.regions.len() {
        let heard = ask(world, n, Ask::get("/v2/migrations?state=parked&limit=500")).await;
        for job in heard.shown::<Page<MigrationStatus>>().map(|page| page.items).unwrap_or_default() {
            answer(world, n, &job, met).await;
        }
        // As long as there are tenants, each looks after its own.
        if !world.is_healing() {
            continue;
        }
        let region = &world.regions[n];
        let heard = ask(world, n, Ask::get(format!("/v2/vms?region={region}&state=lost&limit=500"))).await;
        for vm in heard.shown::<Page<VmView>>().map(|page| page.items).unwrap_or_default() {
            if vm.power == ObservedPower::Lost && vm.record.desired == DesiredPower::Running {
                let id = vm.record.id;
                let key = format!("operator-{}-{id}", met.round);
                let heard = ask(world, n, Ask::post(format!("/v2/vms/{id}/start")).key(key)).await;
                world.note("operator", format_args!("starts {id}: {}", heard.word()));
            }
        }
    }
    see_ends(world, work).await;
}

/// Asks for the ends of moves that nobody follows.
async fn see_ends(world: &World, work: &Workload) {
    for job in work.unfollowed() {
        let n = world.numbered(job.region);
        let heard = ask(world, n, Ask::get(format!("/v2/migrations/{job}"))).await;
        let Some(status) = heard.shown::<MigrationStatus>() else { continue };
        if status.state.is_end()
            && let Some(known) = work.book.pages().jobs.get_mut(&job)
        {
            known.end = Some(status.state);
        }
    }
}

/// The first that is offered of what helps most.
async fn answer(world: &World, n: usize, job: &MigrationStatus, met: &mut Met) {
    // Without what it tells of this job alone.
    let why = job.reason.as_deref().unwrap_or_default().split(": ").next().unwrap_or_default().to_owned();
    let wish = ["retry", "undo", "probe", "abandon"];
    // One that is parked again and again is given up in the end.
    let wish = if met.round % 8 > 6 { &wish[1..] } else { &wish[..] };
    let Some(command) = wish.iter().find(|word| job.commands.iter().any(|offered| offered == *word)) else {
        return;
    };
    let key = format!("operator-{}-{}", met.round, job.id);
    let path = format!("/v2/migrations/{}/{command}", job.id);
    let heard = ask(world, n, Ask::post(path).body(&json!({ "reason": "chaos" })).key(key)).await;
    world.note("operator", format_args!("{command}s {} ({why}): {}", job.id, heard.word()));
    if met.jobs.insert(job.id) {
        *met.parked.entry(why).or_default() += 1;
    }
}
