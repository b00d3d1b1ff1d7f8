//! What is the matter with a region and what to do about it. Owns: the issues of a status and the advice on each.
//! Always: the worst first, in a stable order; each says since when, as far as that is known.

use std::sync::Arc;

use super::RegionApi;
use super::vms::SeenVms;
use crate::actors::{Tree, TreeState, tables};
use crate::admin::*;
use crate::protocol::link::{Link, RefusalCode};
use crate::types::*;

/// A kind of trouble.
pub(super) struct Matter {
    code: &'static str,
    severity: Severity,
    advice: &'static str,
}

/// An issue and what it is one of.
pub(super) type Found = (&'static Matter, Issue);

impl Matter {
    const fn warning(code: &'static str, advice: &'static str) -> Matter {
        Matter { code, severity: Severity::Warning, advice }
    }

    const fn blocking(code: &'static str, advice: &'static str) -> Matter {
        Matter { code, severity: Severity::Blocking, advice }
    }

    fn issue(&'static self, subject: impl ToString, message: String, since: WallMillis) -> Found {
        let subject = subject.to_string();
        (self, Issue { code: self.code.into(), severity: self.severity, subject, message, since })
    }
}

static LINK_DOWN: Matter = Matter::warning(
    "link-down",
    "see why (novafed link list): its address, its clock, or the ca.pem that node.toml names for it",
);
static CLUSTER_AWAY: Matter =
    Matter::warning("cluster-not-connected", "look at its host process and its log: novafed cluster show <id>");
static JOBS_PARKED: Matter =
    Matter::warning("jobs-parked", "read why and decide: novafed migration list --state parked");
static VMS_UNKNOWN: Matter =
    Matter::warning("vms-unknown", "find out whose they are: no region may start or remove what it has no record of");
static VMS_LOST: Matter = Matter::warning("vms-lost", "start them again from their disks: novafed vm start <VM>");
static ACTOR_PARKED: Matter = Matter::warning(
    "actor-parked",
    "read its reason and the log, then start it anew: novafed tree restart <supervisor>/<actor>",
);
static OLDER_COPY: Matter = Matter::blocking(
    "older-copy",
    "stop this node and put the latest state.redb back: its VMs may run elsewhere by now",
);
static STORE_FULL: Matter = Matter::blocking(
    "store-takes-no-work",
    "free some space on the disk of the region's directory; what runs goes on, and new work is refused until then",
);
static VMS_UNSERVED: Matter = Matter::warning(
    "vms-unserved",
    "name their clusters in node.toml again and restart the node: nobody looks after these VMs meanwhile",
);
static CHAOS_FAULT: Matter = Matter::warning(
    "chaos-fault",
    "it is on purpose and ends by itself; to end it now: novafed chaos stop <id>, or novafed chaos stop --all",
);
static STOPPING: Matter =
    Matter::blocking("stopping", "read the log, mend the cause, start the node again; VMs go on meanwhile");

impl RegionApi {
    /// All issues, and what to do about them.
    pub(super) async fn issues_now(
        &self,
        clusters: &[ClusterView],
        links: &[LinkView],
        regions: &[RegionView],
        jobs: &[MigrationStatus],
        wall: WallMillis,
    ) -> Result<(Vec<Issue>, Vec<String>), ApiError> {
        let mut issues = self.issues(clusters, links, regions, wall);
        let seen = self.seen_vms().await;
        issues.extend(self.strays(&seen, wall)?);
        let vms = self.views_of(seen)?;
        issues.extend(lost_vms(&vms, wall));
        issues.extend(self.unserved(&vms, wall));
        if let Some(why) = self.store_now()?.reason.filter(|_| self.ctx.store_works()) {
            issues.push(STORE_FULL.issue("store", why, wall));
        }
        issues.extend(self.parked_jobs(jobs, wall)?);
        issues.extend(self.known_later());
        issues.extend(self.faults_active());
        issues.extend(parked_actors(&self.root.tree(), "", wall));
        issues.sort_by(|(_, a), (_, b)| (b.severity, &a.code, &a.subject).cmp(&(a.severity, &b.code, &b.subject)));
        let mut advice: Vec<String> = Vec::new();
        for (matter, _) in &issues {
            if !advice.iter().any(|known| known == matter.advice) {
                advice.push(matter.advice.to_owned());
            }
        }
        Ok((issues.into_iter().map(|(_, issue)| issue).collect(), advice))
    }

    fn parked_jobs(&self, jobs: &[MigrationStatus], wall: WallMillis) -> Result<Option<Found>, ApiError> {
        let mut parked = Vec::new();
        for job in jobs.iter().filter(|job| job.state == JobState::Parked).map(|job| job.id) {
            let last = tables::source_journal(&self.ctx.store, job)?.last().map(|entry| entry.at);
            parked.push((last.unwrap_or(wall), job));
        }
        let Some((since, _)) = parked.iter().min() else { return Ok(None) };
        let names: Vec<String> = parked.iter().take(5).map(|(_, job)| job.to_string()).collect();
        Ok(Some(JOBS_PARKED.issue(
            "jobs",
            format!("{} of the jobs wait for a person: {}", parked.len(), names.join(", ")),
            *since,
        )))
    }

    /// VMs in clusters that the configuration does not name.
    fn unserved(&self, vms: &[VmView], wall: WallMillis) -> Option<Found> {
        let known = self.ctx.cluster_ids();
        let names: Vec<String> = vms
            .iter()
            .filter(|vm| !known.contains(&vm.record.cluster))
            .map(|vm| format!("{} ({}) in {}", vm.record.spec.name, vm.record.id, vm.record.cluster))
            .collect();
        let message =
            || format!("{} VMs are in clusters that node.toml does not name: {}", names.len(), names.join(", "));
        (!names.is_empty()).then(|| VMS_UNSERVED.issue("vms", message(), wall))
    }

    /// VMs that a host has and that this region has no record of; nobody touches them.
    fn strays(&self, seen: &SeenVms, wall: WallMillis) -> Result<Option<Found>, ApiError> {
        let mut strays = Vec::new();
        for ((cluster, vm), seen) in seen {
            if let Some(trouble) = &seen.trouble
                && tables::vm(&self.ctx.store, *vm)?.is_none()
                && tables::decisions(&self.ctx.store, *vm)?.moved.is_none()
            {
                strays.push(format!("{vm} at {cluster} ({trouble})"));
            }
        }
        if strays.is_empty() {
            return Ok(None);
        }
        Ok(Some(VMS_UNKNOWN.issue("VMs", format!("VMs without a record: {}", strays.join(", ")), wall)))
    }

    /// Peers that know a later life of this region's store. Each of them shuts this node out; that it stops is left to
    /// its hosts, so that no peer can stop it by a claim.
    fn known_later(&self) -> Vec<Found> {
        let links = self.ctx.peers().into_iter().filter_map(|peer| self.ctx.link(&peer));
        let stale = links.filter(|link| {
            let refused = link.state().refused;
            refused.is_some_and(|refused| refused.by_peer && refused.reason == RefusalCode::STALE_INCARNATION.name())
        });
        let issue = |link: Arc<dyn Link>| {
            let peer = link.peer();
            let message = format!(
                "region {peer} knows a later life of this region's store: this one is an older copy, and what happened \
                 since is missing here"
            );
            let since = self.ctx.clock.wall().0.saturating_sub(link.state().since.0);
            OLDER_COPY.issue(peer, message, WallMillis(since))
        };
        stale.map(issue).collect()
    }

    fn issues(
        &self,
        clusters: &[ClusterView],
        links: &[LinkView],
        regions: &[RegionView],
        wall: WallMillis,
    ) -> Vec<Found> {
        let mut issues = Vec::new();
        let ago = |age: Millis| WallMillis(wall.0.saturating_sub(age.0));
        for link in links.iter().filter(|link| link.state != LinkState::Connected) {
            issues.push(LINK_DOWN.issue(
                &link.region,
                format!(
                    "the link to {} is {:?}{}",
                    link.region,
                    link.state,
                    link.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
                ),
                ago(link.since_ms),
            ));
        }
        for view in clusters.iter().filter(|view| view.state != ClusterState::Connected) {
            let reached = regions.iter().any(|region| region.name == view.region && region.reachable);
            // A cluster of a region that is not reachable is not known to be down: the link is.
            if reached || view.region == self.ctx.region {
                issues.push(CLUSTER_AWAY.issue(
                    format!("{}/{}", view.region, view.id),
                    format!("{:?}: {}", view.state, view.reason),
                    ago(view.since_ms),
                ));
            }
        }
        if let Some(why) = self.ctx.failure().borrow().clone() {
            issues.push(STOPPING.issue(&self.ctx.region, why, wall));
        }
        issues
    }
}

/// A fault that somebody injected.
pub(super) fn chaos_fault(subject: String, message: String, since: WallMillis) -> Found {
    CHAOS_FAULT.issue(subject, message, since)
}

/// VMs that are wanted running and whose memory is gone: each waits for a person.
fn lost_vms(vms: &[VmView], wall: WallMillis) -> Option<Found> {
    let lost: Vec<String> = vms
        .iter()
        .filter(|vm| vm.power == ObservedPower::Lost && vm.record.desired == DesiredPower::Running)
        .map(|vm| format!("{} ({})", vm.record.spec.name, vm.record.id))
        .collect();
    (!lost.is_empty()).then(|| {
        VMS_LOST.issue(
            "vms",
            format!("{} VMs lost their memory with their host: {}", lost.len(), lost.join(", ")),
            wall,
        )
    })
}

/// Actors that wait for a person, wherever they stand in the tree.
fn parked_actors(tree: &Tree, above: &str, wall: WallMillis) -> Vec<Found> {
    let mut issues: Vec<Found> = Vec::new();
    for child in &tree.children {
        let path = format!("{above}{}", child.id);
        if let TreeState::Parked { reason, since } = &child.state {
            issues.push(ACTOR_PARKED.issue(
                path.clone(),
                format!("it was given up: {reason}"),
                WallMillis((*since).min(wall.0)),
            ));
        }
        issues.extend(parked_actors(child, &format!("{path}/"), wall));
    }
    issues
}
