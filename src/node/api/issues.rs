//! What is the matter with a region and what to do about it. Owns: the issues of a status and the advice on each.
//! Always: the worst first, in a stable order; each says since when, as far as that is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::RegionApi;
use super::vms::SeenVms;
use crate::actors::{Tree, TreeState, tables};
use crate::admin::*;
use crate::protocol::link::{Link, RefusalCode};
use crate::types::*;

impl RegionApi {
    /// All issues.
    pub(super) async fn issues_now(
        &self,
        clusters: &[ClusterView],
        links: &[LinkView],
        regions: &[RegionView],
        jobs: &[MigrationStatus],
        wall: WallMillis,
    ) -> Result<Vec<Issue>, ApiError> {
        let mut issues = self.issues(clusters, links, regions, wall);
        let seen = self.seen_vms().await;
        issues.extend(self.strays(&seen, wall)?);
        issues.extend(lost_vms(&self.views_of(seen)?, wall));
        issues.extend(self.parked_jobs(jobs, wall)?);
        issues.extend(self.known_later());
        issues.extend(parked_actors(&self.root.tree(), "", wall));
        issues.sort_by(|a, b| (b.severity, &a.code, &a.subject).cmp(&(a.severity, &b.code, &b.subject)));
        Ok(issues)
    }

    fn parked_jobs(&self, jobs: &[MigrationStatus], wall: WallMillis) -> Result<Option<Issue>, ApiError> {
        let mut parked = Vec::new();
        for job in jobs.iter().filter(|job| job.state == JobState::Parked).map(|job| job.id) {
            let last = tables::source_journal(&self.ctx.store, job)?.last().map(|entry| entry.at);
            parked.push((last.unwrap_or(wall), job));
        }
        let Some((since, _)) = parked.iter().min() else { return Ok(None) };
        let names: Vec<String> = parked.iter().take(5).map(|(_, job)| job.to_string()).collect();
        Ok(Some(Issue {
            code: "jobs-parked".into(),
            severity: Severity::Warning,
            subject: "jobs".into(),
            message: format!("{} of the jobs wait for a person: {}", parked.len(), names.join(", ")),
            since: *since,
        }))
    }

    /// VMs that a host has and that this region has no record of; nobody touches them.
    fn strays(&self, seen: &SeenVms, wall: WallMillis) -> Result<Option<Issue>, ApiError> {
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
        Ok(Some(Issue {
            code: "vms-unknown".into(),
            severity: Severity::Warning,
            subject: "VMs".into(),
            message: format!("VMs without a record: {}", strays.join(", ")),
            since: wall,
        }))
    }

    /// Peers that know a later life of this region's store. Each of them shuts this node out; that it stops is left to
    /// its hosts, so that no peer can stop it by a claim.
    fn known_later(&self) -> Vec<Issue> {
        let links = self.ctx.peers().into_iter().filter_map(|peer| self.ctx.link(&peer));
        let stale = links.filter(|link| {
            let refused = link.state().refused;
            refused.is_some_and(|refused| refused.by_peer && refused.reason == RefusalCode::STALE_INCARNATION.name())
        });
        let issue = |link: Arc<dyn Link>| Issue {
            code: "older-copy".into(),
            severity: Severity::Blocking,
            subject: link.peer().to_string(),
            message: format!(
                "region {} knows a later life of this region's store: this one is an older copy, and what happened \
                 since is missing here",
                link.peer()
            ),
            since: WallMillis(self.ctx.clock.wall().0.saturating_sub(link.state().since.0)),
        };
        stale.map(issue).collect()
    }

    fn issues(
        &self,
        clusters: &[ClusterView],
        links: &[LinkView],
        regions: &[RegionView],
        wall: WallMillis,
    ) -> Vec<Issue> {
        let mut issues = Vec::new();
        let ago = |age: Millis| WallMillis(wall.0.saturating_sub(age.0));
        for link in links.iter().filter(|link| link.state != LinkState::Connected) {
            issues.push(Issue {
                code: "link-down".into(),
                severity: Severity::Warning,
                subject: link.region.to_string(),
                message: format!(
                    "the link to {} is {:?}{}",
                    link.region,
                    link.state,
                    link.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
                ),
                since: ago(link.since_ms),
            });
        }
        for view in clusters.iter().filter(|view| view.state != ClusterState::Connected) {
            let reached = regions.iter().any(|region| region.name == view.region && region.reachable);
            // A cluster of a region that is not reachable is not known to be down: the link is.
            if reached || view.region == self.ctx.region {
                issues.push(Issue {
                    code: "cluster-not-connected".into(),
                    severity: Severity::Warning,
                    subject: format!("{}/{}", view.region, view.id),
                    message: format!("{:?}: {}", view.state, view.reason),
                    since: ago(view.since_ms),
                });
            }
        }
        if let Some(why) = self.ctx.failure().borrow().clone() {
            issues.push(Issue {
                code: "stopping".into(),
                severity: Severity::Blocking,
                subject: self.ctx.region.to_string(),
                message: why,
                since: wall,
            });
        }
        issues
    }
}

/// VMs that are wanted running and whose memory is gone: each waits for a person.
fn lost_vms(vms: &[VmView], wall: WallMillis) -> Option<Issue> {
    let lost: Vec<String> = vms
        .iter()
        .filter(|vm| vm.power == ObservedPower::Lost && vm.record.desired == DesiredPower::Running)
        .map(|vm| format!("{} ({})", vm.record.spec.name, vm.record.id))
        .collect();
    (!lost.is_empty()).then(|| Issue {
        code: "vms-lost".into(),
        severity: Severity::Warning,
        subject: "vms".into(),
        message: format!("{} VMs lost their memory with their host: {}", lost.len(), lost.join(", ")),
        since: wall,
    })
}

/// Actors that wait for a person, wherever they stand in the tree.
fn parked_actors(tree: &Tree, above: &str, wall: WallMillis) -> Vec<Issue> {
    let mut issues: Vec<Issue> = Vec::new();
    for child in &tree.children {
        let path = format!("{above}{}", child.id);
        if let TreeState::Parked { reason, since } = &child.state {
            issues.push(Issue {
                code: "actor-parked".into(),
                severity: Severity::Warning,
                subject: path.clone(),
                message: format!("it was given up: {reason}"),
                since: WallMillis((*since).min(wall.0)),
            });
        }
        issues.extend(parked_actors(child, &format!("{path}/"), wall));
    }
    issues
}

pub(super) fn recommendations(issues: &[Issue]) -> Vec<String> {
    let by_code: BTreeMap<&str, &str> = BTreeMap::from([
        ("link-down", "see why (novafed link list): its address, its clock, or the ca.pem that node.toml names for it"),
        ("cluster-not-connected", "look at its host process and its log: novafed cluster show <id>"),
        ("jobs-parked", "read why and decide: novafed migration list --state parked"),
        ("vms-unknown", "find out whose they are: no region may start or remove what it has no record of"),
        ("vms-lost", "start them again from their disks: novafed vm start <VM>"),
        ("actor-parked", "read its reason and the log, then start it anew: novafed tree restart <supervisor>/<actor>"),
        ("older-copy", "stop this node and put the latest state.redb back: its VMs may run elsewhere by now"),
        ("stopping", "read the log, mend the cause, start the node again; VMs go on meanwhile"),
    ]);
    let mut list: Vec<String> = Vec::new();
    for issue in issues {
        if let Some(advice) = by_code.get(issue.code.as_str())
            && !list.iter().any(|known| known == advice)
        {
            list.push((*advice).to_owned());
        }
    }
    list
}
