//! The person who looks after a federation once faults are over. Owns: what is told to jobs that are parked and to VMs
//! whose memory was lost.
//! Always: over the API, by what it offers; a person answers questions and repairs nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::client::{Ask, ask};
use super::world::World;
use crate::admin::{ActorState, ObservedPower, Page, TreeNode, VmView};
use crate::types::{JobId, MigrationStatus};

/// What was met.
#[derive(Debug, Clone, Default)]
pub struct Met {
    /// Jobs that were parked, by why.
    pub parked: BTreeMap<String, u64>,
    jobs: BTreeSet<JobId>,
    actors: BTreeSet<String>,
    /// VMs that were started from their disk.
    pub restarted: u64,
}

/// One round: looks at every region, and answers what it asks.
pub async fn go_round(world: &World, met: &mut Met, round: u32) {
    for n in 0..world.regions().len() {
        let heard = ask(world, n, Ask::get("/v2/migrations?state=parked&limit=500")).await;
        for job in heard.shown::<Page<MigrationStatus>>().map(|page| page.items).unwrap_or_default() {
            answer(world, n, &job, met, round).await;
        }
        let heard = ask(world, n, Ask::get("/v2/tree")).await;
        for group in heard.shown::<TreeNode>().map(|root| root.children).unwrap_or_default() {
            for actor in group.children.iter().filter(|actor| actor.state == ActorState::Parked) {
                let key = format!("operator-{round}-{}", actor.name);
                let path = format!("/v2/tree/{}/{}/restart", group.name, actor.name);
                let heard = ask(world, n, Ask::order(path, &key)).await;
                world.trace.note("operator", format_args!("restarts {}: {}", actor.name, heard.word()));
                if met.actors.insert(actor.name.clone()) {
                    *met.parked.entry("its actor is parked, and was started anew".into()).or_default() += 1;
                }
            }
        }
        let region = &world.region(n).plan.name;
        let heard = ask(world, n, Ask::get(format!("/v2/vms?region={region}&state=lost&limit=500"))).await;
        for vm in heard.shown::<Page<VmView>>().map(|page| page.items).unwrap_or_default() {
            if vm.power == ObservedPower::Lost && vm.record.desired == crate::types::DesiredPower::Running {
                let id = vm.record.id;
                let key = format!("operator-{round}-{id}");
                let heard = ask(world, n, Ask::order(format!("/v2/vms/{id}/start"), &key)).await;
                world.trace.note("operator", format_args!("starts {id}: {}", heard.word()));
                met.restarted += 1;
            }
        }
    }
}

/// What regions say of jobs that are open, for whoever wants to know why.
pub async fn open_jobs(world: &World) -> Vec<String> {
    let mut open = Vec::new();
    for n in 0..world.regions().len() {
        let heard = ask(world, n, Ask::get("/v2/migrations?limit=500")).await;
        for job in heard.shown::<Page<MigrationStatus>>().map(|page| page.items).unwrap_or_default() {
            if !job.state.is_end() {
                let MigrationStatus { id, phase, attempt, bytes_acknowledged, bytes_total, .. } = &job;
                let reason = job.reason.as_deref().unwrap_or("no reason");
                open.push(format!(
                    "{id}: attempt {attempt} in {phase}, {bytes_acknowledged} of {bytes_total} bytes there, {reason}"
                ));
            }
        }
    }
    open
}

/// The first that is offered of what helps most.
async fn answer(world: &World, n: usize, job: &MigrationStatus, met: &mut Met, round: u32) {
    let why = job.reason.clone().unwrap_or_default();
    let wish = ["retry", "undo", "probe", "abandon"];
    // One that is parked again and again is given up in the end.
    let wish = if round > 6 { &wish[1..] } else { &wish[..] };
    let Some(command) = wish.iter().find(|word| job.commands.iter().any(|offered| offered == *word)) else {
        return;
    };
    let key = format!("operator-{round}-{}", job.id);
    let path = format!("/v2/migrations/{}/{command}", job.id);
    let heard = ask(world, n, Ask::post(path, &key, &json!({ "reason": "faults are over" }))).await;
    world.trace.note("operator", format_args!("{command}s {} ({why}): {}", job.id, heard.word()));
    if met.jobs.insert(job.id) {
        *met.parked.entry(why).or_default() += 1;
    }
}
