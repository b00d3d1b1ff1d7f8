//! The federation as this region sees it: status, clusters, links, store, operations, events, audit.
//! Always: from memory and the own store; nobody else is waited for, so it answers also when cut off.

use super::{RegionApi, not_found};
use crate::actors::records::CleanupKind;
use crate::actors::{outbox, tables};
use crate::admin::*;
use crate::protocol::link;
use crate::store::Work;
use crate::types::*;

impl RegionApi {
    pub(super) async fn all_clusters(&self) -> Vec<ClusterView> {
        let mut views = outbox::own_clusters(&self.ctx).await;
        views.extend(self.ctx.directory.clusters(self.ctx.clock.now()));
        views.sort_by(|a, b| (&a.region, &a.id).cmp(&(&b.region, &b.id)));
        views
    }

    pub(super) async fn cluster_now(&self, id: ClusterId, region: Option<RegionName>) -> Result<ClusterView, ApiError> {
        let mut found: Vec<ClusterView> = self.all_clusters().await;
        found.retain(|view| view.id == id && region.as_ref().is_none_or(|region| *region == view.region));
        match found.len() {
            0 => Err(not_found("cluster", id)),
            1 => Ok(found.remove(0)),
            _ => {
                let regions: Vec<_> = found.iter().map(|view| view.region.to_string()).collect();
                let text = format!("several regions have a cluster {id}: {}", regions.join(", "));
                Err(ApiError::new(ErrorCode::Conflict, text).hint("name the region with ?region="))
            }
        }
    }

    pub(super) async fn inventory_now(&self, region: Option<RegionName>) -> Result<ResourceInventory, ApiError> {
        let mut views = self.all_clusters().await;
        views.retain(|view| region.as_ref().is_none_or(|region| *region == view.region));
        let silent = self.ctx.peers().into_iter().filter(|peer| {
            region.as_ref().is_none_or(|region| region == peer)
                && self.ctx.directory.age(peer, self.ctx.clock.now()).is_none()
        });
        let warnings = silent.map(|peer| format!("region {peer}: nothing was heard of it yet")).collect();
        Ok(ResourceInventory::of(views, warnings, self.ctx.clock.wall()))
    }

    pub(super) fn links_now(&self) -> Result<Vec<LinkView>, ApiError> {
        let mut views = Vec::new();
        for peer in self.ctx.peers() {
            let Some(link) = self.ctx.link(&peer) else { continue };
            let state = link.state();
            let waiting = self.ctx.store.outbox(&peer)?.len() as u64;
            let address = self.addresses.get(&peer).cloned().unwrap_or_default();
            views.push(shown_link(peer, address, state, waiting));
        }
        Ok(views)
    }

    pub(super) fn store_now(&self) -> Result<StoreStats, ApiError> {
        let stats = self.ctx.store.stats()?;
        let (free_bytes, reserve_bytes) = (stats.free_bytes.unwrap_or(u64::MAX), self.ctx.store.reserve_bytes());
        let failed = self.ctx.failure().borrow().clone();
        let short = (free_bytes < reserve_bytes).then(|| {
            format!("{} are free, {} are kept for what runs", human_bytes(free_bytes), human_bytes(reserve_bytes))
        });
        let reason = failed.or(short);
        Ok(StoreStats {
            path: self.ctx.dir.join("state.redb").display().to_string(),
            file_bytes: stats.file_bytes.unwrap_or_default(),
            free_bytes,
            reserve_bytes,
            accepts_work: reason.is_none(),
            reason,
            incarnation: self.ctx.store.incarnation().counter,
            commits: stats.commits,
            transactions: stats.writer.transactions,
            queue: stats.writer.waiting,
            tables: stats
                .tables
                .into_iter()
                .map(|table| TableStats { name: table.table.to_owned(), rows: table.rows, bytes: table.bytes })
                .collect(),
        })
    }

    /// A region takes new work once its store does and each of its clusters was seen or found to be away: before that,
    /// nothing could be placed.
    pub(super) async fn ready_now(&self) -> Result<(), ApiError> {
        let store = self.store_now()?;
        let views = outbox::own_clusters(&self.ctx).await;
        let unknown = self.ctx.cluster_ids().into_iter().find_map(|id| match views.iter().find(|view| view.id == id) {
            Some(view) if view.state != ClusterState::Unknown => None,
            Some(view) => Some(format!("cluster {id} is unknown: {}", view.reason)),
            None => Some(format!("cluster {id} says nothing of itself")),
        });
        let Some(why) = store.reason.or(unknown) else { return Ok(()) };
        Err(ApiError::new(ErrorCode::Unavailable, format!("region {} is not ready: {why}", self.ctx.region)))
    }

    pub(super) async fn operations_now(&self, page: PageQuery) -> Result<Page<OperationView>, ApiError> {
        let mut all: Vec<OperationView> = Vec::new();
        for job in self.all_migrations().await? {
            all.push(OperationView {
                id: job.id.to_string(),
                kind: "migration".into(),
                subject: job.vm.to_string(),
                state: job.status.clone(),
                progress: Some(job.progress),
                reason: job.reason,
                job: Some(job.id),
                started_at: job.started_at,
                completed_at: job.completed_at,
            });
        }
        for owed in tables::cleanups(&self.ctx.store, None)? {
            all.push(OperationView {
                id: format!("clean-up-{}-{}-{}", owed.cluster, owed.vm, owed.fence),
                kind: "cleanUp".into(),
                subject: owed.vm.to_string(),
                state: "owed".into(),
                progress: None,
                reason: Some(match owed.kind {
                    CleanupKind::Purge => format!("its disk at {} is removed after {}", owed.cluster, owed.due),
                    CleanupKind::Delete => format!("it is deleted at {} once its host does it", owed.cluster),
                }),
                job: owed.job,
                started_at: owed.due,
                completed_at: None,
            });
        }
        page.cut(all, |operation: &OperationView| operation.id.clone())
    }

    pub(super) fn events_after(&self, after: u64, limit: usize) -> Vec<EventView> {
        let region = self.ctx.events.region();
        let shown = self.ctx.events.after(after, limit).into_iter().map(|event| EventView {
            sequence: event.sequence,
            at: event.at,
            region: region.clone(),
            kind: event.kind,
            subject: event.subject,
            message: event.message,
            data: serde_json::Value::Null,
        });
        shown.collect()
    }

    pub(super) async fn audit_now(&self, record: AuditRecord) -> Result<(), ApiError> {
        let request = record.request_id;
        let written = self
            .ctx
            .store
            .transact(Work::Finish, move |txn| tables::put_audit(txn, record.at, record.request_id, &record))
            .await;
        if let Some(faults) = &self.faults {
            faults.audited(request);
        }
        written.map_err(|error| error.flatten().into())
    }

    pub(super) async fn status_now(&self) -> Result<FederationStatus, ApiError> {
        let (now, wall) = (self.ctx.clock.now(), self.ctx.clock.wall());
        let clusters = self.all_clusters().await;
        let links = self.links_now()?;
        let jobs = self.all_migrations().await?;
        let mut regions = vec![self.own_region(&clusters, wall)];
        for peer in self.ctx.peers() {
            regions.push(self.peer_region(&peer, &clusters, now, wall));
        }
        regions.sort_by(|a, b| a.name.cmp(&b.name));
        let (issues, recommendations) = self.issues_now(&clusters, &links, &regions, &jobs, wall).await?;
        let health_status = match issues.iter().map(|issue| issue.severity).max() {
            Some(Severity::Blocking) => Health::Failed,
            Some(Severity::Warning) => Health::Degraded,
            Some(Severity::Info) | None => Health::Healthy,
        };
        let heard = self.ctx.peers().into_iter().filter_map(|peer| self.ctx.directory.age(&peer, now)).min();
        Ok(FederationStatus {
            federation: self.ctx.federation.to_string(),
            region: self.ctx.region.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            incarnation: self.ctx.store.incarnation().counter,
            uptime_ms: now.since(self.started),
            health_status,
            total_clusters: clusters.len() as u64,
            active_clusters: clusters.iter().filter(|v| v.state == ClusterState::Connected && !v.stale).count() as u64,
            vms: tables::vms(&self.ctx.store)?.len() as u64,
            jobs: counts(&jobs),
            last_sync: heard.map(|age| WallMillis(wall.0.saturating_sub(age.0))),
            regions,
            links,
            issues,
            recommendations,
        })
    }

    fn own_region(&self, clusters: &[ClusterView], wall: WallMillis) -> RegionView {
        let own = clusters.iter().filter(|view| view.region == self.ctx.region);
        RegionView {
            name: self.ctx.region.clone(),
            number: self.ctx.number,
            this: true,
            reachable: true,
            clusters: own.clone().count() as u64,
            vms: own.map(|view| view.vms).sum(),
            observed_at: Some(wall),
            age_ms: Some(Millis(0)),
            stale: false,
        }
    }

    fn peer_region(&self, peer: &RegionName, clusters: &[ClusterView], now: Tick, wall: WallMillis) -> RegionView {
        let age = self.ctx.directory.age(peer, now);
        let theirs = clusters.iter().filter(|view| view.region == *peer);
        let number = self.ctx.numbers.iter().find(|(_, name)| *name == peer).map(|(number, _)| *number);
        RegionView {
            name: peer.clone(),
            number: number.unwrap_or(RegionNumber(0)),
            this: false,
            reachable: self.ctx.link(peer).is_some_and(|link| link.state().connected),
            clusters: theirs.clone().count() as u64,
            vms: theirs.map(|view| view.vms).sum(),
            observed_at: age.map(|age| WallMillis(wall.0.saturating_sub(age.0))),
            age_ms: age,
            stale: age.is_none_or(|age| age > crate::actors::context::Context::fresh_for()),
        }
    }
}

fn counts(jobs: &[MigrationStatus]) -> JobCounts {
    let mut counts = JobCounts::default();
    for job in jobs {
        match job.state {
            JobState::Pending => counts.pending += 1,
            JobState::Parked => counts.parked += 1,
            state if state.is_end() => counts.ended += 1,
            _ => counts.running += 1,
        }
    }
    counts
}

fn shown_link(region: RegionName, address: String, state: link::LinkState, outbox: u64) -> LinkView {
    let stale = state.last_heard.is_none_or(|age| age > limits::LINK_IDLE_MS_MAX);
    LinkView {
        region,
        address,
        state: match (state.connected, &state.last_error) {
            (true, _) => LinkState::Connected,
            (false, None) => LinkState::Connecting,
            (false, Some(_)) if state.refused.is_some() => LinkState::Refused,
            (false, Some(_)) => LinkState::Down,
        },
        reason: if state.connected { None } else { state.last_error },
        since_ms: state.since,
        incarnation: state.incarnation.map(|incarnation| incarnation.counter),
        rtt_us: state.rtt_us,
        loss_permille: state.loss_permille,
        bytes_per_second: state.bandwidth_bytes_s,
        age_ms: state.last_heard,
        stale,
        connects: state.reconnects + u64::from(state.incarnation.is_some()),
        refused: state.refusals.values().sum(),
        outbox,
    }
}
